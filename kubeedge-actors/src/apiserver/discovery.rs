//! What the server tells clients about the resources it has: `/api`, `/apis`, resource lists and the aggregated form.
//!
//! All of it comes from the table of kinds and the table of subresources below; answers are built at each request (some
//! twenty small objects) and hold nothing in memory.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::digest::{SHA256, SHA512, digest};
use serde_json::{Value, json};

use super::kind::Kind;
use super::kinds;

pub(crate) mod measured;
pub(crate) mod write_only;

pub use write_only::{WRITE_ONLY, WriteOnly};

/// A path below a resource.
#[derive(Clone, Copy, Debug)]
pub struct Subresource {
    /// Group of the resource.
    pub group: &'static str,
    /// Version of the resource.
    pub version: &'static str,
    /// Plural of the resource.
    pub plural: &'static str,
    /// Last part of the path, e.g. `status`.
    pub name: &'static str,
    /// Whether the resource lives in namespaces.
    pub namespaced: bool,
    /// Group, version and kind of what is sent and answered.
    pub kind: (&'static str, &'static str, &'static str),
    /// Verbs, sorted.
    pub verbs: &'static [&'static str],
}

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
const GROUP_ORDER: [&str; 7] = [
    "apps",
    "events.k8s.io",
    "authentication.k8s.io",
    "authorization.k8s.io",
    "apiextensions.k8s.io",
    "coordination.k8s.io",
    "discovery.k8s.io",
];

/// Media type of the aggregated form, without its version.
const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io";

/// The version of the aggregated form that a client asks for: `v2`, `v2beta1` or none.
pub fn aggregated_version(accept: &str) -> Option<&'static str> {
    let wants = |version: &str| {
        accept.split(',').any(|range| {
            let mut parameters = range.split(';').map(str::trim).skip(1);
            range.contains("as=APIGroupDiscoveryList") && parameters.any(|p| p == format!("v={version}"))
        })
    };
    ["v2", "v2beta1"].into_iter().find(|version| wants(version))
}

/// `Content-Type` of an aggregated answer.
pub fn aggregated_content_type(version: &str) -> String {
    format!("{AGGREGATED};v={version};as=APIGroupDiscoveryList")
}

/// A strong entity tag of an answer: clients send it back and get 304 while nothing changed.
pub fn etag(body: &[u8]) -> String {
    let hex: String = digest(&SHA512, body).as_ref().iter().map(|byte| format!("{byte:02X}")).collect();
    format!("\"{hex}\"")
}

/// `/api`: the versions of the core group; `address` is where the server is reached (`host:port`).
pub fn versions(address: &str) -> Value {
    json!({
        "kind": "APIVersions",
        "versions": [CORE.1],
        "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": address}],
    })
}

/// Group and version of everything served outside the core group, without repetition.
fn group_versions(served: &[&'static Kind]) -> Vec<(&'static str, &'static str)> {
    let mut all: Vec<_> = Vec::new();
    let written = WRITE_ONLY.iter().map(|one| (one.group, one.version));
    for (group, version) in served.iter().map(|kind| (kind.group, kind.version)).chain(written) {
        if !group.is_empty() && !all.contains(&(group, version)) {
            all.push((group, version));
        }
    }
    let place = |group| GROUP_ORDER.iter().position(|own| *own == group).unwrap_or(GROUP_ORDER.len());
    all.sort_by_key(|(group, _)| place(*group));
    all
}

fn group_value(served: &[&'static Kind], group: &str) -> Value {
    let versions: Vec<Value> = group_versions(served)
        .into_iter()
        .filter(|(name, _)| *name == group)
        .map(|(group, version)| json!({"groupVersion": format!("{group}/{version}"), "version": version}))
        .collect();
    let preferred = versions.first().cloned().unwrap_or_default();
    json!({"name": group, "versions": versions, "preferredVersion": preferred})
}

/// `/apis`: the groups.
pub fn groups(served: &[&'static Kind]) -> Value {
    let mut names: Vec<&str> = group_versions(served).into_iter().map(|(group, _)| group).collect();
    names.dedup();
    let groups: Vec<Value> = names.into_iter().map(|name| group_value(served, name)).collect();
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
}

/// `/apis/<group>`; `None` when the group is not served.
pub fn group(served: &[&'static Kind], group: &str) -> Option<Value> {
    group_versions(served).iter().find(|(name, _)| *name == group)?;
    let mut value = group_value(served, group);
    value["kind"] = json!("APIGroup");
    value["apiVersion"] = json!("v1");
    Some(value)
}

/// `/api/v1` and `/apis/<group>/<version>`; `None` when the version is not served.
pub fn resources(served: &[&'static Kind], group: &str, version: &str) -> Option<Value> {
    let served: Vec<&Kind> = served.iter().copied().filter(|k| k.group == group && k.version == version).collect();
    let mut list: Vec<Value> = write_only::of(group, version)
        .map(|one| {
            json!({"name": one.plural, "singularName": one.singular, "namespaced": one.namespaced, "kind": one.kind,
                "verbs": write_only::VERBS})
        })
        .collect();
    if served.is_empty() && list.is_empty() {
        return None;
    }
    for kind in served {
        let mut resource = json!({"name": kind.plural, "singularName": kind.singular, "namespaced": kind.namespaced,
            "kind": kind.kind, "verbs": verbs(kind), "storageVersionHash": storage_version_hash(kind)});
        add_names(&mut resource, kind);
        list.push(resource);
        for sub in listed(kind) {
            let (group, version, name) = sub.kind;
            let mut resource = json!({"name": format!("{}/{}", sub.plural, sub.name), "singularName": "",
                "namespaced": sub.namespaced, "kind": name, "verbs": sub.verbs});
            if (group, version) != (kind.group, kind.version) {
                resource["group"] = json!(group);
                resource["version"] = json!(version);
            }
            list.push(resource);
        }
    }
    let mut answer = json!({"kind": "APIResourceList", "groupVersion": version, "resources": list});
    if !group.is_empty() {
        answer["groupVersion"] = json!(format!("{group}/{version}"));
        answer["apiVersion"] = json!("v1");
    }
    Some(answer)
}

/// `/api` in the aggregated form of `version` (`v2` or `v2beta1`).
pub fn aggregated_core(served: &[&'static Kind], version: &str) -> Value {
    aggregated(version, vec![json!({"metadata": {}, "versions": [aggregated_resources(served, CORE.0, CORE.1)]})])
}

/// `/apis` in the aggregated form of `version` (`v2` or `v2beta1`).
pub fn aggregated_groups(served: &[&'static Kind], version: &str) -> Value {
    let mut names: Vec<&str> = group_versions(served).into_iter().map(|(group, _)| group).collect();
    names.dedup();
    let items = names
        .into_iter()
        .map(|name| {
            let versions: Vec<Value> = group_versions(served)
                .into_iter()
                .filter(|(group, _)| *group == name)
                .map(|(group, version)| aggregated_resources(served, group, version))
                .collect();
            json!({"metadata": {"name": name}, "versions": versions})
        })
        .collect();
    aggregated(version, items)
}

fn aggregated(version: &str, items: Vec<Value>) -> Value {
    json!({"kind": "APIGroupDiscoveryList", "apiVersion": format!("apidiscovery.k8s.io/{version}"), "metadata": {},
        "items": items})
}

/// One version of a group in the aggregated form.
fn aggregated_resources(served: &[&'static Kind], group: &str, version: &str) -> Value {
    // A kind of the resource's own group and version is named without them.
    let response_kind = |kind: (&str, &str, &str)| match kind {
        (g, v, kind) if (g, v) == (group, version) && group.is_empty() => {
            json!({"group": "", "version": "", "kind": kind})
        }
        (group, version, kind) => json!({"group": group, "version": version, "kind": kind}),
    };
    let scope = |namespaced: bool| if namespaced { "Namespaced" } else { "Cluster" };
    let mut list: Vec<Value> = write_only::of(group, version)
        .map(|one| {
            json!({"resource": one.plural, "responseKind": response_kind((one.group, one.version, one.kind)),
                "scope": scope(one.namespaced), "singularResource": one.singular, "verbs": write_only::VERBS})
        })
        .collect();
    for kind in served.iter().filter(|k| k.group == group && k.version == version) {
        let mut resource = json!({"resource": kind.plural,
            "responseKind": response_kind((kind.group, kind.version, kind.kind)), "scope": scope(kind.namespaced),
            "singularResource": kind.singular, "verbs": verbs(kind)});
        add_names(&mut resource, kind);
        let subresources: Vec<Value> = listed(kind)
            .into_iter()
            .map(|sub| json!({"subresource": sub.name, "responseKind": response_kind(sub.kind), "verbs": sub.verbs}))
            .collect();
        if !subresources.is_empty() {
            resource["subresources"] = json!(subresources);
        }
        list.push(resource);
    }
    json!({"version": version, "resources": list, "freshness": "Current"})
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

fn add_names(resource: &mut Value, kind: &Kind) {
    if !kind.short_names.is_empty() {
        resource["shortNames"] = json!(kind.short_names);
    }
    if !kind.categories.is_empty() {
        resource["categories"] = json!(kind.categories);
    }
}

/// Tells clients when the stored form of a kind changes: Kubernetes' hash of group, version and kind.
fn storage_version_hash(kind: &Kind) -> String {
    let kind = kind.stored_as.map_or(kind, |stored| stored.kind);
    let name = format!("{}/{}/{}", kind.group, kind.version, kind.kind);
    let hash = digest(&SHA256, name.as_bytes());
    STANDARD.encode(&hash.as_ref()[..8])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_storage_version_hash_is_that_of_kubernetes() {
        let hash = |plural| kinds::kinds().iter().find(|k| k.plural == plural).map(storage_version_hash);
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
