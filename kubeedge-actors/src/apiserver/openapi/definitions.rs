//! The definitions: schemas of `k8s-openapi` with the extensions that clients look for.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::custom;
use super::paths::{V2_REFERENCE, V3_REFERENCE};
use crate::apiserver::discovery::WRITE_ONLY;
use crate::apiserver::kinds::kinds;
use crate::apiserver::kinds::schema::{self, reference};
use crate::apiserver::merge_keys;

/// Kinds that are only sent to subresources: group, version, kind, definition.
const BODIES: &[(&str, &str, &str, &str)] = &[
    ("autoscaling", "v1", "Scale", "io.k8s.api.autoscaling.v1.Scale"),
    ("policy", "v1", "Eviction", "io.k8s.api.policy.v1.Eviction"),
    ("authentication.k8s.io", "v1", "TokenRequest", "io.k8s.api.authentication.v1.TokenRequest"),
];

/// The definition of a group, version and kind that is served or sent to a subresource.
pub(super) fn definition_of((group, version, kind): (&str, &str, &str)) -> String {
    if let Some((_, _, _, definition)) = BODIES.iter().find(|(g, v, k, _)| (*g, *v, *k) == (group, version, kind)) {
        return (*definition).to_owned();
    }
    if WRITE_ONLY.iter().any(|one| (one.group, one.version, one.kind) == (group, version, kind)) {
        return schema::own_name(group, version, kind);
    }
    let served = kinds().iter().find(|k| (k.group, k.version, k.kind) == (group, version, kind));
    served.map_or_else(|| custom::name(group, version, kind), schema::definition)
}

/// All definitions, with the extensions that clients look for.
pub(super) fn definitions() -> Map<String, Value> {
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
    let written = WRITE_ONLY
        .iter()
        .map(|one| (schema::own_name(one.group, one.version, one.kind), one.group, one.version, one.kind));
    for (name, group, version, kind) in served.chain(bodies).chain(written) {
        if let Some(definition) = all.get_mut(&name) {
            definition["x-kubernetes-group-version-kind"] = json!([gvk(group, version, kind)]);
        }
    }
    all
}

pub(super) fn gvk(group: &str, version: &str, kind: &str) -> Value {
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
pub(super) fn reachable(all: &Map<String, Value>, mut roots: Vec<String>) -> Map<String, Value> {
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

pub(super) fn references(value: &Value, found: &mut Vec<String>) {
    found.extend(reference(value).map(str::to_owned));
    match value {
        Value::Object(fields) => fields.values().for_each(|value| references(value, found)),
        Value::Array(items) => items.iter().for_each(|value| references(value, found)),
        _ => {}
    }
}

pub(super) fn rewrite_references(value: &mut Value) {
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
