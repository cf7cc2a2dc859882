//! What clients are told about the resources that are served: `/api`, `/apis`, resource lists and the aggregated form.
//!
//! Answers are built at each request and hold nothing in memory.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::digest::{SHA256, SHA512, digest};
use serde_json::{Value, json};

use super::resource::Resource;

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

/// A resource that is written to and holds nothing. Its only verb is `create`.
#[derive(Debug)]
pub struct WriteOnly {
    /// API group, empty for core.
    pub group: &'static str,
    /// API version.
    pub version: &'static str,
    /// Plural resource name, e.g. `tokenreviews`.
    pub plural: &'static str,
    /// Singular name, e.g. `tokenreview`.
    pub singular: &'static str,
    /// Kind, e.g. `TokenReview`.
    pub kind: &'static str,
    /// Whether it is sent to a namespace.
    pub namespaced: bool,
}

/// A resource, and what can be done with it.
#[derive(Debug)]
pub struct Offer {
    /// The resource.
    pub resource: &'static Resource,
    /// Its verbs, as they are told.
    pub verbs: Vec<&'static str>,
    /// The paths below it, as they are told.
    pub subresources: Vec<Subresource>,
}

/// What a server offers.
#[derive(Debug)]
pub struct Catalog {
    /// Every resource in every version that is served, those of a group and version as they are told.
    pub offers: Vec<Offer>,
    /// Resources that hold nothing.
    pub write_only: &'static [WriteOnly],
    /// The groups that are told first, in their order; others follow in the order of `offers`.
    pub group_order: &'static [&'static str],
}

const CORE: (&str, &str) = ("", "v1");
/// What can be done with a resource that holds nothing.
const WRITE_ONLY_VERBS: &[&str] = &["create"];
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

/// Adds what only `own` names to a document of the same kind: groups to a list of groups, resources to those of a version.
pub fn merge(document: &mut Value, own: &Value) {
    for (list, name) in [("groups", "/name"), ("resources", "/name"), ("items", "/metadata/name")] {
        let (Some(known), Some(others)) =
            (document.get_mut(list).and_then(Value::as_array_mut), own.get(list).and_then(Value::as_array))
        else {
            continue;
        };
        for other in others {
            if !known.iter().any(|one| one.pointer(name) == other.pointer(name)) {
                known.push(other.clone());
            }
        }
    }
}

impl Catalog {
    /// Group and version of everything served outside the core group, without repetition.
    fn group_versions(&self) -> Vec<(&'static str, &'static str)> {
        let mut all: Vec<_> = Vec::new();
        let written = self.write_only.iter().map(|one| (one.group, one.version));
        for (group, version) in self.offers.iter().map(|one| (one.resource.group, one.resource.version)).chain(written)
        {
            if !group.is_empty() && !all.contains(&(group, version)) {
                all.push((group, version));
            }
        }
        let place = |group| self.group_order.iter().position(|own| *own == group).unwrap_or(self.group_order.len());
        all.sort_by_key(|(group, _)| place(*group));
        all
    }

    fn group_value(&self, group: &str) -> Value {
        let versions: Vec<Value> = self
            .group_versions()
            .into_iter()
            .filter(|(name, _)| *name == group)
            .map(|(group, version)| json!({"groupVersion": format!("{group}/{version}"), "version": version}))
            .collect();
        let preferred = versions.first().cloned().unwrap_or_default();
        json!({"name": group, "versions": versions, "preferredVersion": preferred})
    }

    fn group_names(&self) -> Vec<&'static str> {
        let mut names: Vec<&str> = self.group_versions().into_iter().map(|(group, _)| group).collect();
        names.dedup();
        names
    }

    /// What is offered of a group version.
    fn of(&self, group: &str, version: &str) -> impl Iterator<Item = &Offer> {
        self.offers.iter().filter(move |one| one.resource.group == group && one.resource.version == version)
    }

    fn written_of(&self, group: &str, version: &str) -> impl Iterator<Item = &'static WriteOnly> {
        self.write_only.iter().filter(move |one| one.group == group && one.version == version)
    }

    /// `/apis`: the groups.
    pub fn groups(&self) -> Value {
        let groups: Vec<Value> = self.group_names().into_iter().map(|name| self.group_value(name)).collect();
        json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
    }

    /// `/apis/<group>`; `None` when the group is not served.
    pub fn group(&self, group: &str) -> Option<Value> {
        self.group_versions().iter().find(|(name, _)| *name == group)?;
        let mut value = self.group_value(group);
        value["kind"] = json!("APIGroup");
        value["apiVersion"] = json!("v1");
        Some(value)
    }

    /// `/api/v1` and `/apis/<group>/<version>`; `None` when the version is not served.
    pub fn resources(&self, group: &str, version: &str) -> Option<Value> {
        let mut list: Vec<Value> = self
            .written_of(group, version)
            .map(|one| {
                json!({"name": one.plural, "singularName": one.singular, "namespaced": one.namespaced,
                    "kind": one.kind, "verbs": WRITE_ONLY_VERBS})
            })
            .collect();
        for Offer { resource: kind, verbs, subresources } in self.of(group, version) {
            let mut resource = json!({"name": kind.plural, "singularName": kind.singular, "namespaced": kind.namespaced,
                "kind": kind.kind, "verbs": verbs, "storageVersionHash": storage_version_hash(kind)});
            add_names(&mut resource, kind);
            list.push(resource);
            for sub in subresources {
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
        if list.is_empty() {
            return None;
        }
        let mut answer = json!({"kind": "APIResourceList", "groupVersion": version, "resources": list});
        if !group.is_empty() {
            answer["groupVersion"] = json!(format!("{group}/{version}"));
            answer["apiVersion"] = json!("v1");
        }
        Some(answer)
    }

    /// `/api` in the aggregated form of `version` (`v2` or `v2beta1`).
    pub fn aggregated_core(&self, version: &str) -> Value {
        aggregated(version, vec![json!({"metadata": {}, "versions": [self.aggregated_resources(CORE.0, CORE.1)]})])
    }

    /// `/apis` in the aggregated form of `version` (`v2` or `v2beta1`).
    pub fn aggregated_groups(&self, version: &str) -> Value {
        let items = self
            .group_names()
            .into_iter()
            .map(|name| {
                let versions: Vec<Value> = self
                    .group_versions()
                    .into_iter()
                    .filter(|(group, _)| *group == name)
                    .map(|(group, version)| self.aggregated_resources(group, version))
                    .collect();
                json!({"metadata": {"name": name}, "versions": versions})
            })
            .collect();
        aggregated(version, items)
    }

    /// One version of a group in the aggregated form.
    fn aggregated_resources(&self, group: &str, version: &str) -> Value {
        // A kind of the resource's own group and version is named without them.
        let response_kind = |kind: (&str, &str, &str)| match kind {
            (g, v, kind) if (g, v) == (group, version) && group.is_empty() => {
                json!({"group": "", "version": "", "kind": kind})
            }
            (group, version, kind) => json!({"group": group, "version": version, "kind": kind}),
        };
        let scope = |namespaced: bool| if namespaced { "Namespaced" } else { "Cluster" };
        let mut list: Vec<Value> = self
            .written_of(group, version)
            .map(|one| {
                json!({"resource": one.plural, "responseKind": response_kind((one.group, one.version, one.kind)),
                    "scope": scope(one.namespaced), "singularResource": one.singular, "verbs": WRITE_ONLY_VERBS})
            })
            .collect();
        for Offer { resource: kind, verbs, subresources } in self.of(group, version) {
            let mut resource = json!({"resource": kind.plural,
                "responseKind": response_kind((kind.group, kind.version, kind.kind)), "scope": scope(kind.namespaced),
                "singularResource": kind.singular, "verbs": verbs});
            add_names(&mut resource, kind);
            let subresources: Vec<Value> = subresources
                .iter()
                .map(
                    |sub| json!({"subresource": sub.name, "responseKind": response_kind(sub.kind), "verbs": sub.verbs}),
                )
                .collect();
            if !subresources.is_empty() {
                resource["subresources"] = json!(subresources);
            }
            list.push(resource);
        }
        json!({"version": version, "resources": list, "freshness": "Current"})
    }
}

fn aggregated(version: &str, items: Vec<Value>) -> Value {
    json!({"kind": "APIGroupDiscoveryList", "apiVersion": format!("apidiscovery.k8s.io/{version}"), "metadata": {},
        "items": items})
}

fn add_names(resource: &mut Value, kind: &Resource) {
    if !kind.short_names.is_empty() {
        resource["shortNames"] = json!(kind.short_names);
    }
    if !kind.categories.is_empty() {
        resource["categories"] = json!(kind.categories);
    }
}

/// Tells clients when the stored form of a kind changes: Kubernetes' hash of group, version and kind.
pub(crate) fn storage_version_hash(kind: &Resource) -> String {
    let kind = kind.stored_as.map_or(kind, |stored| stored.kind);
    let name = format!("{}/{}/{}", kind.group, kind.version, kind.kind);
    let hash = digest(&SHA256, name.as_bytes());
    STANDARD.encode(&hash.as_ref()[..8])
}
