//! `metrics.k8s.io/v1beta1`: what is measured at the nodes and kept nowhere. Served where nodes can be asked.

use serde_json::{Value, json};

/// The group.
pub(crate) const GROUP: &str = "metrics.k8s.io";
/// Its version.
pub(crate) const VERSION: &str = "v1beta1";
const VERBS: [&str; 2] = ["get", "list"];
/// Resource, kind, and whether it lives in namespaces.
const RESOURCES: [(&str, &str, bool); 2] = [("nodes", "NodeMetrics", false), ("pods", "PodMetrics", true)];

/// Its entry in `/apis`.
pub(crate) fn entry() -> Value {
    let version = json!({"groupVersion": format!("{GROUP}/{VERSION}"), "version": VERSION});
    json!({"name": GROUP, "versions": [version], "preferredVersion": version})
}

/// `/apis/metrics.k8s.io`
pub(crate) fn group() -> Value {
    let mut group = entry();
    group["kind"] = json!("APIGroup");
    group["apiVersion"] = json!("v1");
    group
}

/// `/apis/metrics.k8s.io/v1beta1`
pub(crate) fn resources() -> Value {
    let resources = RESOURCES.map(|(name, kind, namespaced)| {
        json!({"name": name, "singularName": "", "namespaced": namespaced, "kind": kind, "verbs": VERBS})
    });
    json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": format!("{GROUP}/{VERSION}"),
        "resources": resources})
}

/// Its entry in the aggregated form of `/apis`.
pub(crate) fn aggregated() -> Value {
    let resources = RESOURCES.map(|(name, kind, namespaced)| {
        json!({"resource": name, "responseKind": {"group": GROUP, "version": VERSION, "kind": kind},
            "scope": if namespaced { "Namespaced" } else { "Cluster" }, "singularResource": "", "verbs": VERBS})
    });
    json!({"metadata": {"name": GROUP},
        "versions": [{"version": VERSION, "resources": resources, "freshness": "Current"}]})
}
