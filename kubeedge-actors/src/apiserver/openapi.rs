//! What the server says of the shapes of its objects: OpenAPI v3 by group version, and v2 as one document, in JSON and
//! in the protobuf form that kubectl up to 1.28 insists on.
//!
//! Enough for `kubectl apply` (it looks for the `fieldValidation` parameter, the patch types and the merge keys), for
//! `kubectl explain` and for clients that generate types. Components come from the schemas of `k8s-openapi`, merge keys
//! and list types from `merge_keys`.
//!
//! **Memory.** A document is about 300 KB and clients keep it for as long as its hash stays, so that it is asked for a
//! few times in a server's life: it is built at each request (40 to 100 ms of one core in a debug build) and nothing is
//! kept but the hashes. The server should build one at a time, on a thread that may block.

mod custom;
mod definitions;
mod paths;
mod protobuf;

use std::sync::{Arc, OnceLock};

use ring::digest::{SHA256, digest};
use serde_json::{Map, Value, json};

use super::custom::Version;
use super::discovery::{self, WRITE_ONLY, write_only};
use super::kind::Kind;
use super::kinds::kinds;
use super::kinds::schema;
use definitions::{definition_of, definitions, reachable, rewrite_references};
use paths::{Form, add_paths, add_write_only};

/// Media type of OpenAPI v2 as protobuf, as it is answered.
pub const V2_PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";
/// The same as clients up to 1.28 ask for it; `@` is not allowed in a media type, so nobody can be answered with it.
const V2_PROTOBUF_ASKED: &str = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";

/// Whether a client takes OpenAPI v2 as JSON (and not as protobuf only).
pub fn accepts_json(accept: &str) -> bool {
    accept.is_empty()
        || accept.split(',').any(|range| {
            let media = range.split(';').next().unwrap_or_default().trim();
            matches!(media, "application/json" | "application/*" | "*/*")
        })
}

/// Whether a client takes OpenAPI v2 as protobuf.
pub fn accepts_protobuf(accept: &str) -> bool {
    accept.split(',').any(|range| {
        let media = range.split(';').next().unwrap_or_default().trim();
        media == V2_PROTOBUF || media == V2_PROTOBUF_ASKED
    })
}

/// `/openapi/v3`: the documents there are, each at an address that changes with its content.
pub(super) fn index(custom: &[Arc<Version>]) -> Value {
    let mut paths = Map::new();
    let own = hashes().iter().map(|(group, version, hash)| (*group, *version, hash.clone()));
    for (group, version, hash) in own.chain(custom::hashes(custom)) {
        let root = root_of(group, version);
        let url = format!("/openapi/v3/{root}?hash={hash}");
        paths.insert(root, json!({"serverRelativeURL": url}));
    }
    json!({"paths": paths})
}

/// The hash of a document: its entity tag. `None` when the group version is not served.
pub(super) fn hash(custom: &[Arc<Version>], group: &str, version: &str) -> Option<String> {
    let own = hashes().iter().map(|(group, version, hash)| (*group, *version, hash.clone()));
    own.chain(custom::hashes(custom)).find(|(g, v, _)| (*g, *v) == (group, version)).map(|(_, _, hash)| hash)
}

fn hashes() -> &'static [(&'static str, &'static str, String)] {
    static HASHES: OnceLock<Vec<(&'static str, &'static str, String)>> = OnceLock::new();
    HASHES.get_or_init(|| {
        let mut all: Vec<(&'static str, &'static str, String)> = Vec::new();
        let written = WRITE_ONLY.iter().map(|one| (one.group, one.version));
        for (group, version) in kinds().iter().map(|kind| (kind.group, kind.version)).chain(written) {
            if all.iter().any(|(known, at, _)| (*known, *at) == (group, version)) {
                continue;
            }
            let document = v3(&[], group, version).unwrap_or_default();
            let hash = digest(&SHA256, document.as_bytes());
            let hex: String = hash.as_ref().iter().map(|byte| format!("{byte:02X}")).collect();
            all.push((group, version, hex));
        }
        all
    })
}

/// `api/v1` or `apis/<group>/<version>`.
fn root_of(group: &str, version: &str) -> String {
    if group.is_empty() { format!("api/{version}") } else { format!("apis/{group}/{version}") }
}

/// `/openapi/v3/<root>`: the document of a group version; `None` when it is not served.
pub(super) fn v3(custom: &[Arc<Version>], group: &str, version: &str) -> Option<String> {
    let custom: Vec<&Version> = custom.iter().map(|one| &**one).filter(|one| one.kind.group == group).collect();
    let served: Vec<&'static Kind> = kinds()
        .iter()
        .chain(custom.iter().map(|one| one.kind))
        .filter(|k| k.group == group && k.version == version)
        .collect();
    if served.is_empty() && write_only::of(group, version).next().is_none() {
        return None;
    }
    let mut all = definitions();
    all.extend(custom.iter().map(|one| custom::definition(one, Form::V3)));
    let mut paths = Map::new();
    let mut roots: Vec<String> = served.iter().map(|kind| schema::definition(kind)).collect();
    for kind in &served {
        add_paths(&mut paths, kind, Form::V3);
        roots.extend(discovery::of(kind).map(|sub| definition_of(sub.kind)));
    }
    for one in write_only::of(group, version) {
        add_write_only(&mut paths, one, Form::V3);
        roots.push(definition_of((one.group, one.version, one.kind)));
    }
    let schemas = reachable(&all, roots);
    let document = json!({
        "openapi": "3.0.0",
        "info": {"title": "Kubernetes", "version": "unversioned"},
        "paths": paths,
        "components": {"schemas": schemas},
    });
    Some(document.to_string())
}

/// `/openapi/v2`, as JSON.
pub(super) fn v2(custom: &[Arc<Version>]) -> String {
    v2_document(custom).to_string()
}

/// `/openapi/v2`, as protobuf.
pub(super) fn v2_protobuf(custom: &[Arc<Version>]) -> Vec<u8> {
    protobuf::document(&v2_document(custom))
}

fn v2_document(custom: &[Arc<Version>]) -> Value {
    let mut paths = Map::new();
    for kind in kinds().iter().chain(custom.iter().map(|one| one.kind)) {
        add_paths(&mut paths, kind, Form::V2);
    }
    for one in WRITE_ONLY {
        add_write_only(&mut paths, one, Form::V2);
    }
    let mut definitions = Value::Object(definitions());
    rewrite_references(&mut definitions);
    if let Some(all) = definitions.as_object_mut() {
        all.extend(custom.iter().map(|one| custom::definition(one, Form::V2)));
    }
    json!({
        "swagger": "2.0",
        "info": {"title": "Kubernetes", "version": "unversioned"},
        "paths": paths,
        "definitions": definitions,
    })
}

#[cfg(test)]
mod tests {
    use super::definitions::{gvk, references};
    use super::paths::V3_REFERENCE;
    use super::*;

    fn document(group: &str, version: &str) -> Value {
        serde_json::from_str(&v3(&[], group, version).expect("is served")).expect("is JSON")
    }

    #[test]
    fn a_document_defines_everything_it_refers_to() {
        for (group, version, _) in hashes() {
            let document = document(group, version);
            let schemas = document["components"]["schemas"].as_object().expect("schemas");
            let mut all = Vec::new();
            references(&document, &mut all);
            assert!(all.len() > 5, "{group}/{version}");
            for name in all {
                assert!(schemas.contains_key(&name), "{name} is missing");
            }
        }
        let leases = document("coordination.k8s.io", "v1");
        assert!(leases["components"]["schemas"].get("io.k8s.api.core.v1.Pod").is_none());
    }

    #[test]
    fn apply_finds_field_validation_patch_types_and_merge_keys() {
        let document = document("", "v1");
        let patch = &document["paths"]["/api/v1/namespaces/{namespace}/pods/{name}"]["patch"];
        assert_eq!(patch["x-kubernetes-group-version-kind"], gvk("", "v1", "Pod"));
        let parameters = patch["parameters"].as_array().expect("parameters");
        assert!(parameters.iter().any(|p| p["name"] == "fieldValidation" && p["in"] == "query"));
        assert!(patch["requestBody"]["content"].get("application/strategic-merge-patch+json").is_some());
        let schemas = &document["components"]["schemas"];
        let containers = &schemas["io.k8s.api.core.v1.PodSpec"]["properties"]["containers"];
        assert_eq!(containers["x-kubernetes-patch-merge-key"], "name");
        assert_eq!(containers["x-kubernetes-patch-strategy"], "merge");
        assert_eq!(containers["x-kubernetes-list-map-keys"], json!(["name"]));
        assert_eq!(schemas["io.k8s.api.core.v1.Pod"]["x-kubernetes-group-version-kind"], json!([gvk("", "v1", "Pod")]));
        let selector = &schemas["io.k8s.api.core.v1.PodSpec"]["properties"]["nodeSelector"];
        assert_eq!(selector["x-kubernetes-map-type"], "atomic");
    }

    #[test]
    fn the_index_names_each_document_with_the_hash_of_its_content() {
        let index = index(&[]);
        let url = index["paths"]["api/v1"]["serverRelativeURL"].as_str().expect("a URL").to_owned();
        assert_eq!(url, format!("/openapi/v3/api/v1?hash={}", hash(&[], "", "v1").expect("is served")));
        assert!(index["paths"].get("apis/coordination.k8s.io/v1").is_some());
        assert!(hash(&[], "batch", "v1").is_none() && v3(&[], "batch", "v1").is_none());
        assert_eq!(v3(&[], "", "v1"), v3(&[], "", "v1"), "the same build gives the same document");
    }

    #[test]
    fn version_two_speaks_its_own_form() {
        let document: Value = serde_json::from_str(&v2(&[])).expect("is JSON");
        let text = document.to_string();
        assert!(!text.contains(V3_REFERENCE) && !text.contains("\"oneOf\":[") && !text.contains("\"allOf\":["));
        let schema = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps";
        assert_eq!(document["definitions"][schema]["properties"]["oneOf"]["type"], "array");
        let quantity = &document["definitions"]["io.k8s.apimachinery.pkg.api.resource.Quantity"];
        assert_eq!(quantity["type"], "string");
        let put = &document["paths"]["/api/v1/nodes/{name}"]["put"];
        assert_eq!(put["consumes"], json!(["application/json"]));
        assert!(put["parameters"].as_array().is_some_and(|all| all.iter().any(|p| p["in"] == "body")));
    }

    #[test]
    fn protobuf_alone_is_not_json() {
        assert!(
            !accepts_json(V2_PROTOBUF) && accepts_protobuf(V2_PROTOBUF_ASKED) && !accepts_protobuf("application/json")
        );
        assert!(accepts_json("application/json") && accepts_json("*/*") && accepts_json(""));
        assert!(accepts_json(&format!("{V2_PROTOBUF},application/json;q=0.5")));
    }
}
