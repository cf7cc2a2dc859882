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
mod protobuf;

use std::collections::BTreeSet;
use std::sync::{Arc, OnceLock};

use ring::digest::{SHA256, digest};
use serde_json::{Map, Value, json};

use super::custom::Version;
use super::discovery;
use super::kind::Kind;
use super::kinds::kinds;
use super::kinds::schema::{self, reference};
use super::merge_keys;

/// Media type of OpenAPI v2 as protobuf, as it is answered.
pub const V2_PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";
/// The same as clients up to 1.28 ask for it; `@` is not allowed in a media type, so nobody can be answered with it.
const V2_PROTOBUF_ASKED: &str = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";

const V3_REFERENCE: &str = "#/components/schemas/";
const V2_REFERENCE: &str = "#/definitions/";

/// Kinds that are only sent to subresources: group, version, kind, definition.
const BODIES: &[(&str, &str, &str, &str)] = &[
    ("", "v1", "Binding", "io.k8s.api.core.v1.Binding"),
    ("autoscaling", "v1", "Scale", "io.k8s.api.autoscaling.v1.Scale"),
    ("policy", "v1", "Eviction", "io.k8s.api.policy.v1.Eviction"),
    ("authentication.k8s.io", "v1", "TokenRequest", "io.k8s.api.authentication.v1.TokenRequest"),
];

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
        for kind in kinds() {
            if all.iter().any(|(group, version, _)| (*group, *version) == (kind.group, kind.version)) {
                continue;
            }
            let document = v3(&[], kind.group, kind.version).unwrap_or_default();
            let hash = digest(&SHA256, document.as_bytes());
            let hex: String = hash.as_ref().iter().map(|byte| format!("{byte:02X}")).collect();
            all.push((kind.group, kind.version, hex));
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
    if served.is_empty() {
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

/// The definition of a group, version and kind that is served or sent to a subresource.
fn definition_of((group, version, kind): (&str, &str, &str)) -> String {
    if let Some((_, _, _, definition)) = BODIES.iter().find(|(g, v, k, _)| (*g, *v, *k) == (group, version, kind)) {
        return (*definition).to_owned();
    }
    let served = kinds().iter().find(|k| (k.group, k.version, k.kind) == (group, version, kind));
    served.map_or_else(|| custom::name(group, version, kind), schema::definition)
}

/// All definitions, with the extensions that clients look for.
fn definitions() -> Map<String, Value> {
    let mut all = schema::definitions();
    for (name, definition) in &mut all {
        let owner = name.rsplit('.').next().unwrap_or_default().to_owned();
        for (field, schema) in definition.get_mut("properties").and_then(Value::as_object_mut).into_iter().flatten() {
            wrap_reference(schema);
            add_merge_facts(schema, &owner, field);
        }
        if let Some(fields) = definition.as_object_mut()
            && fields.remove("x-kubernetes-int-or-string").is_some()
        {
            let types = if owner == "Quantity" { ["string", "number"] } else { ["integer", "string"] };
            fields.insert("oneOf".to_owned(), json!(types.map(|name| json!({"type": name}))));
        }
    }
    let served = kinds().iter().map(|kind| (schema::definition(kind), kind.group, kind.version, kind.kind));
    let bodies = BODIES.iter().map(|(group, version, kind, name)| ((*name).to_owned(), *group, *version, *kind));
    for (name, group, version, kind) in served.chain(bodies) {
        if let Some(definition) = all.get_mut(&name) {
            definition["x-kubernetes-group-version-kind"] = json!([gvk(group, version, kind)]);
        }
    }
    all
}

fn gvk(group: &str, version: &str, kind: &str) -> Value {
    json!({"group": group, "version": version, "kind": kind})
}

/// OpenAPI 3.0 allows nothing beside a reference: what stands there goes around it.
fn wrap_reference(schema: &mut Value) {
    if let Some(fields) = schema.as_object_mut()
        && fields.len() > 1
        && let Some(target) = fields.remove("$ref")
    {
        fields.insert("allOf".to_owned(), json!([{"$ref": target}]));
    }
}

fn add_merge_facts(schema: &mut Value, owner: &str, field: &str) {
    let Some(merge) = merge_keys::of(owner, field) else { return };
    for (name, value) in [("x-kubernetes-patch-strategy", merge.strategy), ("x-kubernetes-patch-merge-key", merge.key)]
    {
        if !value.is_empty() {
            schema[name] = json!(value);
        }
    }
    if schema.get("type").is_some_and(|type_| type_ == "array") {
        schema["x-kubernetes-list-type"] = json!(merge.list_type);
    } else if !merge.list_type.is_empty() {
        schema["x-kubernetes-map-type"] = json!(merge.list_type);
    }
    if !merge.list_keys.is_empty() {
        schema["x-kubernetes-list-map-keys"] = json!(merge.list_keys);
    }
}

/// The definitions that `roots` need.
fn reachable(all: &Map<String, Value>, mut roots: Vec<String>) -> Map<String, Value> {
    let mut seen = BTreeSet::new();
    let mut found = Map::new();
    while let Some(name) = roots.pop() {
        if !seen.insert(name.clone()) {
            continue;
        }
        if let Some(definition) = all.get(&name) {
            references(definition, &mut roots);
            found.insert(name, definition.clone());
        }
    }
    found
}

fn references(value: &Value, found: &mut Vec<String>) {
    found.extend(reference(value).map(str::to_owned));
    match value {
        Value::Object(fields) => fields.values().for_each(|value| references(value, found)),
        Value::Array(items) => items.iter().for_each(|value| references(value, found)),
        _ => {}
    }
}

fn rewrite_references(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            // Version 2 has neither `oneOf` nor references with something beside them inside `allOf` of one.
            if let Some(target) =
                fields.get("allOf").and_then(|all| all.get(0)).and_then(|one| one.get("$ref")).cloned()
            {
                fields.remove("allOf");
                fields.insert("$ref".to_owned(), target);
            }
            // A choice of scalars is text; one that has a reference in it cannot be said.
            let choices = fields.remove("oneOf");
            if choices.as_ref().and_then(Value::as_array).is_some_and(|all| all.iter().all(|c| reference(c).is_none()))
            {
                fields.insert("type".to_owned(), json!("string"));
                fields.insert("format".to_owned(), json!("int-or-string"));
            }
            for (name, value) in fields {
                match value {
                    // The names of fields are no words of a schema, even where they look the same.
                    Value::Object(properties) if name == "properties" => {
                        properties.values_mut().for_each(rewrite_references);
                    }
                    Value::String(target) if name == "$ref" => *target = target.replace(V3_REFERENCE, V2_REFERENCE),
                    value => rewrite_references(value),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(rewrite_references),
        _ => {}
    }
}

/// The two versions of OpenAPI differ in how parameters, bodies and answers are written.
#[derive(Clone, Copy, PartialEq)]
enum Form {
    V2,
    V3,
}

const PATCH_TYPES: [&str; 3] =
    ["application/json-patch+json", "application/merge-patch+json", "application/strategic-merge-patch+json"];

impl Form {
    fn parameter(self, name: &str, place: &str, type_: &str, description: &str) -> Value {
        let mut parameter = json!({"name": name, "in": place, "description": description});
        if place == "path" {
            parameter["required"] = json!(true);
        }
        match self {
            Self::V3 => parameter["schema"] = json!({"type": type_, "uniqueItems": true}),
            Self::V2 => {
                parameter["type"] = json!(type_);
                parameter["uniqueItems"] = json!(true);
            }
        }
        parameter
    }

    fn schema(self, definition: &str) -> Value {
        let prefix = if self == Self::V3 { V3_REFERENCE } else { V2_REFERENCE };
        json!({"$ref": format!("{prefix}{definition}")})
    }

    fn answers(self, code: u16, definition: Option<&str>) -> Value {
        let mut answer = json!({"description": if code == 201 { "Created" } else { "OK" }});
        match (self, definition) {
            (Self::V3, Some(definition)) => {
                answer["content"] = json!({"application/json": {"schema": self.schema(definition)}});
            }
            (Self::V2, Some(definition)) => answer["schema"] = self.schema(definition),
            (_, None) => {}
        }
        json!({code.to_string(): answer, "401": {"description": "Unauthorized"}})
    }

    /// Adds the body of a request to an operation.
    fn add_body(self, operation: &mut Value, types: &[&str], schema: &Value) {
        match self {
            Self::V3 => {
                let content: Map<String, Value> =
                    types.iter().map(|media| ((*media).to_owned(), json!({"schema": schema}))).collect();
                operation["requestBody"] = json!({"content": content, "required": true});
            }
            Self::V2 => {
                operation["consumes"] = json!(types);
                let body = json!({"name": "body", "in": "body", "required": true, "schema": schema});
                if let Some(parameters) = operation["parameters"].as_array_mut() {
                    parameters.push(body);
                }
            }
        }
    }
}

/// Paths of a kind and its subresources.
fn add_paths(paths: &mut Map<String, Value>, kind: &'static Kind, form: Form) {
    // Only Kubernetes' own types carry merge keys.
    let patch_types = if discovery::is_custom(kind) { &PATCH_TYPES[..2] } else { &PATCH_TYPES };
    let root = root_of(kind.group, kind.version);
    let kind_gvk = (kind.group, kind.version, kind.kind);
    let definition = schema::definition(kind);
    let collection = if kind.namespaced {
        paths.insert(
            format!("/{root}/{}", kind.plural),
            json!({"get": operation(form, "list", kind_gvk, 200, None), "parameters": list_parameters(form)}),
        );
        format!("/{root}/namespaces/{{namespace}}/{}", kind.plural)
    } else {
        format!("/{root}/{}", kind.plural)
    };
    let place = |named: bool| {
        let mut parameters = Vec::new();
        if named {
            parameters.push(form.parameter("name", "path", "string", "Name of the object"));
        }
        if kind.namespaced {
            parameters.push(form.parameter("namespace", "path", "string", "Namespace of the object"));
        }
        json!(parameters)
    };
    let mut list = operation(form, "list", kind_gvk, 200, None);
    list["parameters"] = list_parameters(form);
    let mut item = json!({
        "get": list,
        "post": writing(form, "post", kind_gvk, 201, &definition, &["application/json"], form.schema(&definition)),
        "parameters": place(false),
    });
    if discovery::verbs(kind).contains(&"deletecollection") {
        item["delete"] = operation(form, "deletecollection", kind_gvk, 200, None);
    }
    paths.insert(collection.clone(), item);
    let patch = patch_schema(form);
    let item = json!({
        "get": operation(form, "get", kind_gvk, 200, Some(&definition)),
        "put": writing(form, "put", kind_gvk, 200, &definition, &["application/json"], form.schema(&definition)),
        "patch": writing(form, "patch", kind_gvk, 200, &definition, patch_types, patch.clone()),
        "delete": operation(form, "delete", kind_gvk, 200, None),
        "parameters": place(true),
    });
    paths.insert(format!("{collection}/{{name}}"), item);
    for sub in discovery::of(kind) {
        let definition = definition_of(sub.kind);
        let mut item = json!({"parameters": place(true)});
        for verb in sub.verbs {
            let (method, operation) = match *verb {
                "get" => {
                    // A log is plain text.
                    let answer = Some(definition.as_str()).filter(|_| sub.name != "log");
                    ("get", operation(form, "get", sub.kind, 200, answer))
                }
                "patch" => ("patch", writing(form, "patch", sub.kind, 200, &definition, patch_types, patch.clone())),
                verb => {
                    let (method, code) = if verb == "create" { ("post", 201) } else { ("put", 200) };
                    let body = form.schema(&definition);
                    (method, writing(form, method, sub.kind, code, &definition, &["application/json"], body))
                }
            };
            item[method] = operation;
        }
        paths.insert(format!("{collection}/{{name}}/{}", sub.name), item);
    }
}

/// A patch is any object (or, as a JSON patch, a list): its schema says only that.
fn patch_schema(form: Form) -> Value {
    match form {
        Form::V3 => json!({"description": "The change, in the form that the content type names"}),
        Form::V2 => json!({"type": "object"}),
    }
}

fn list_parameters(form: Form) -> Value {
    json!([
        form.parameter("labelSelector", "query", "string", "Only objects with these labels"),
        form.parameter("fieldSelector", "query", "string", "Only objects with these fields"),
        form.parameter("limit", "query", "integer", "Most objects in one answer"),
        form.parameter("continue", "query", "string", "Where the previous answer ended"),
        form.parameter("watch", "query", "boolean", "Follow changes instead of listing"),
        form.parameter("resourceVersion", "query", "string", "The version to start from"),
        form.parameter("timeoutSeconds", "query", "integer", "How long to follow"),
    ])
}

fn operation(
    form: Form,
    action: &str,
    (group, version, kind): (&str, &str, &str),
    code: u16,
    definition: Option<&str>,
) -> Value {
    let mut operation = json!({
        "responses": form.answers(code, definition),
        "parameters": [],
        "x-kubernetes-action": action,
        "x-kubernetes-group-version-kind": gvk(group, version, kind),
    });
    if form == Form::V2 {
        operation["produces"] = json!(["application/json"]);
    }
    operation
}

fn writing(
    form: Form,
    action: &str,
    kind: (&str, &str, &str),
    code: u16,
    definition: &str,
    types: &[&str],
    body: Value,
) -> Value {
    let mut operation = operation(form, action, kind, code, Some(definition));
    operation["parameters"] = json!([
        form.parameter("dryRun", "query", "string", "All: check everything, store nothing"),
        form.parameter("fieldManager", "query", "string", "Who makes the change"),
        form.parameter("fieldValidation", "query", "string", "Ignore, Warn or Strict: what becomes of unknown fields"),
    ]);
    form.add_body(&mut operation, types, &body);
    operation
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document(group: &str, version: &str) -> Value {
        serde_json::from_str(&v3(&[], group, version).expect("is served")).expect("is JSON")
    }

    #[test]
    fn a_document_defines_everything_it_refers_to() {
        for (group, version) in [("", "v1"), ("apps", "v1"), ("coordination.k8s.io", "v1")] {
            let document = document(group, version);
            let schemas = document["components"]["schemas"].as_object().expect("schemas");
            let mut all = Vec::new();
            references(&document, &mut all);
            assert!(all.len() > 10);
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
