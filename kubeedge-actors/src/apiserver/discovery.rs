//! What the server tells clients about the resources it has: `/api`, `/apis`, resource lists and the aggregated form.
//!
//! All of it comes from the table of kinds and the table of subresources below; answers are built at each request (some
//! twenty small objects) and hold nothing in memory.

use serde_json::Value;

use super::kind::Kind;
use super::kinds;
use crate::kubeapi::discovery::{Catalog, Offer};
pub use crate::kubeapi::discovery::{Subresource, aggregated_content_type, aggregated_version, etag, versions};

pub(crate) mod measured;
pub(crate) mod write_only;

pub use write_only::{WRITE_ONLY, WriteOnly};

const STATUS_VERBS: &[&str] = &["get", "patch", "update"];
const CORE: (&str, &str) = ("", "v1");

const fn core(
    plural: &'static str,
    name: &'static str,
    namespaced: bool,
    kind: (&'static str, &'static str, &'static str),
    verbs: &'static [&'static str],
) -> Subresource {
    Subresource { group: CORE.0, version: CORE.1, plural, name, namespaced, kind, verbs }
}

const SCALE: (&str, &str, &str) = ("autoscaling", "v1", "Scale");

const fn apps(
    plural: &'static str,
    name: &'static str,
    kind: (&'static str, &'static str, &'static str),
) -> Subresource {
    Subresource { group: "apps", version: "v1", plural, name, namespaced: true, kind, verbs: STATUS_VERBS }
}

/// All subresources that are served.
pub static SUBRESOURCES: &[Subresource] = &[
    core("namespaces", "finalize", false, ("", "v1", "Namespace"), &["update"]),
    core("namespaces", "status", false, ("", "v1", "Namespace"), STATUS_VERBS),
    core("nodes", "status", false, ("", "v1", "Node"), STATUS_VERBS),
    apps("daemonsets", "status", ("apps", "v1", "DaemonSet")),
    apps("deployments", "scale", SCALE),
    apps("deployments", "status", ("apps", "v1", "Deployment")),
    apps("replicasets", "scale", SCALE),
    apps("replicasets", "status", ("apps", "v1", "ReplicaSet")),
    apps("statefulsets", "scale", SCALE),
    apps("statefulsets", "status", ("apps", "v1", "StatefulSet")),
    core("persistentvolumeclaims", "status", true, ("", "v1", "PersistentVolumeClaim"), STATUS_VERBS),
    core("persistentvolumes", "status", false, ("", "v1", "PersistentVolume"), STATUS_VERBS),
    core("pods", "binding", true, ("", "v1", "Binding"), &["create"]),
    core("pods", "ephemeralcontainers", true, ("", "v1", "Pod"), STATUS_VERBS),
    core("pods", "eviction", true, ("policy", "v1", "Eviction"), &["create"]),
    core("pods", "log", true, ("", "v1", "Pod"), &["get"]),
    core("pods", "resize", true, ("", "v1", "Pod"), STATUS_VERBS),
    core("pods", "status", true, ("", "v1", "Pod"), STATUS_VERBS),
    Subresource {
        group: "apiextensions.k8s.io",
        version: "v1",
        plural: "customresourcedefinitions",
        name: "status",
        namespaced: false,
        kind: ("apiextensions.k8s.io", "v1", "CustomResourceDefinition"),
        verbs: STATUS_VERBS,
    },
    core("services", "status", true, ("", "v1", "Service"), STATUS_VERBS),
    core("serviceaccounts", "token", true, ("authentication.k8s.io", "v1", "TokenRequest"), &["create"]),
];

/// Streams with a pod, by what their query holds. They are requests to connect, of which OpenAPI has no documents here.
const CONNECTS: [(&str, &str); 3] =
    [("attach", "PodAttachOptions"), ("exec", "PodExecOptions"), ("portforward", "PodPortForwardOptions")];

/// Kubernetes' order of its own groups; those that users define come behind, in the order of their definitions.
const GROUP_ORDER: [&str; 8] = [
    "apps",
    "events.k8s.io",
    "authentication.k8s.io",
    "authorization.k8s.io",
    "apiextensions.k8s.io",
    "coordination.k8s.io",
    "node.k8s.io",
    "discovery.k8s.io",
];

fn catalog(served: &[&'static Kind]) -> Catalog {
    let offer = |kind: &&'static Kind| Offer { resource: kind, verbs: verbs(kind), subresources: listed(kind) };
    Catalog { offers: served.iter().map(offer).collect(), write_only: WRITE_ONLY, group_order: &GROUP_ORDER }
}

/// `/apis`: the groups.
pub fn groups(served: &[&'static Kind]) -> Value {
    catalog(served).groups()
}

/// `/apis/<group>`; `None` when the group is not served.
pub fn group(served: &[&'static Kind], group: &str) -> Option<Value> {
    catalog(served).group(group)
}

/// `/api/v1` and `/apis/<group>/<version>`; `None` when the version is not served.
pub fn resources(served: &[&'static Kind], group: &str, version: &str) -> Option<Value> {
    catalog(served).resources(group, version)
}

/// `/api` in the aggregated form of `version` (`v2` or `v2beta1`).
pub fn aggregated_core(served: &[&'static Kind], version: &str) -> Value {
    catalog(served).aggregated_core(version)
}

/// `/apis` in the aggregated form of `version` (`v2` or `v2beta1`).
pub fn aggregated_groups(served: &[&'static Kind], version: &str) -> Value {
    catalog(served).aggregated_groups(version)
}

/// Whether users defined the kind.
pub(crate) fn is_custom(kind: &Kind) -> bool {
    kinds::find(kind.group, kind.version, kind.plural).is_none()
}

/// The subresources of a kind, by name.
pub fn of(kind: &'static Kind) -> impl Iterator<Item = Subresource> {
    let (group, version, plural) = (kind.group, kind.version, kind.plural);
    let own = SUBRESOURCES.iter().filter(move |s| s.group == group && s.version == version && s.plural == plural);
    let status = Subresource {
        group,
        version,
        plural,
        name: "status",
        namespaced: kind.namespaced,
        kind: (group, version, kind.kind),
        verbs: STATUS_VERBS,
    };
    let scale = Subresource { name: "scale", kind: ("autoscaling", "v1", "Scale"), ..status };
    let custom = is_custom(kind);
    // As a real API server has them: the status first.
    own.copied()
        .chain((custom && kind.status_subresource).then_some(status))
        .chain((custom && kind.scale_subresource).then_some(scale))
}

/// What is listed below a kind, by name: its subresources, and streams.
fn listed(kind: &'static Kind) -> Vec<Subresource> {
    let mut all: Vec<Subresource> = of(kind).collect();
    if (kind.group, kind.version, kind.plural) == (CORE.0, CORE.1, "pods") {
        let connects = CONNECTS.map(|(name, of)| core("pods", name, true, (CORE.0, CORE.1, of), &["create", "get"]));
        all.extend(connects);
        all.sort_by_key(|sub| sub.name);
    }
    all
}

/// The verbs of a kind, sorted; those of a custom kind stand as a real API server has them. Namespaces are not deleted
/// by the dozen.
pub fn verbs(kind: &Kind) -> Vec<&'static str> {
    if is_custom(kind) {
        return vec!["delete", "deletecollection", "get", "list", "patch", "create", "update", "watch"];
    }
    ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"]
        .into_iter()
        .filter(|verb| *verb != "deletecollection" || kind.plural != "namespaces")
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kubeapi::discovery::storage_version_hash;

    #[test]
    fn the_storage_version_hash_is_that_of_kubernetes() {
        let hash = |plural| kinds::kinds().iter().find(|k| k.plural == plural).map(|k| storage_version_hash(k));
        assert_eq!(hash("pods").as_deref(), Some("xPOwRZ+Yhw8="));
        assert_eq!(hash("leases").as_deref(), Some("gqkMMb/YqFM="));
    }

    #[test]
    fn the_aggregated_form_is_given_to_those_who_ask() {
        let kubectl = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,\
            application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList,application/json";
        assert_eq!(aggregated_version(kubectl), Some("v2"));
        let older = "application/json;as=APIGroupDiscoveryList;v=v2beta1;g=apidiscovery.k8s.io,application/json";
        assert_eq!(aggregated_version(older), Some("v2beta1"));
        assert_eq!(aggregated_version("application/json"), None);
        assert_eq!(aggregated_version("application/json;v=v2"), None);
    }

    #[test]
    fn every_served_group_version_is_listed_and_no_other() {
        let all: Vec<&'static Kind> = kinds::kinds().iter().collect();
        let (resources, group) =
            (|group: &str, version: &str| resources(&all, group, version), |name: &str| group(&all, name));
        assert!(resources("", "v1").is_some() && resources("coordination.k8s.io", "v1").is_some());
        assert!(resources("batch", "v1").is_none() && group("batch").is_none() && resources("", "v2").is_none());
        assert_eq!(groups(&all)["groups"][0]["preferredVersion"]["groupVersion"], "apps/v1");
        let names: Vec<Value> = aggregated_groups(&all, "v2")["items"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|item| item["metadata"]["name"].clone())
            .collect();
        assert_eq!(names, GROUP_ORDER);
    }
}
