//! Custom kinds in OpenAPI: their schemas as users wrote them, with what every object has.

use std::collections::BTreeMap;
use std::sync::Arc;

use ring::digest::{SHA256, digest};
use serde_json::{Map, Value, json};

use super::definitions::gvk;
use super::paths::Form;
use crate::apiserver::custom::Version;
use crate::apiserver::kinds::schema;

const METADATA: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";

/// The name of a custom kind's definition: its domain in reverse.
pub(super) fn name(group: &str, version: &str, kind: &str) -> String {
    let domain: Vec<&str> = group.rsplit('.').collect();
    format!("{}.{version}.{kind}", domain.join("."))
}

/// The group versions of custom kinds, each with a hash that changes with what is told of them.
pub(super) fn hashes(custom: &[Arc<Version>]) -> Vec<(&'static str, &'static str, String)> {
    let mut all: BTreeMap<(&str, &str), String> = BTreeMap::new();
    for version in custom {
        all.entry((version.kind.group, version.kind.version)).or_default().push_str(&version.hash);
    }
    let short = |text: String| digest(&SHA256, text.as_bytes()).as_ref().iter().map(|b| format!("{b:02X}")).collect();
    all.into_iter().map(|((group, version), text)| (group, version, short(text))).collect()
}

/// The definition of a version, by its name.
pub(super) fn definition(version: &Version, form: Form) -> (String, Value) {
    let kind = version.kind;
    let mut whole = version.published.clone();
    if form == Form::V2 {
        simplify(&mut whole);
    }
    let Some(fields) = whole.as_object_mut() else { return (schema::definition(kind), whole) };
    let own = json!({
        "apiVersion": {"type": "string", "description": "Group and version of the kind"},
        "kind": {"type": "string", "description": "Name of the kind"},
        "metadata": form.schema(METADATA),
    });
    if let Some(properties) = fields.entry("properties").or_insert_with(|| json!({})).as_object_mut() {
        properties.extend(own.as_object().cloned().unwrap_or_else(Map::new));
    }
    if !version.selectable.is_empty() {
        let paths: Vec<Value> = version.selectable.iter().map(|name| json!({"fieldPath": name})).collect();
        fields.insert("x-kubernetes-selectable-fields".into(), json!(paths));
    }
    fields.insert("x-kubernetes-group-version-kind".into(), json!([gvk(kind.group, kind.version, kind.kind)]));
    (schema::definition(kind), whole)
}

/// Takes out what version 2 of OpenAPI cannot say. Clients check by it: it may say less, never more.
fn simplify(value: &mut Value) {
    let Some(fields) = value.as_object_mut() else { return };
    for name in ["allOf", "anyOf", "oneOf", "not", "nullable", "default", "x-kubernetes-validations"] {
        fields.remove(name);
    }
    let open = fields.get("x-kubernetes-preserve-unknown-fields") == Some(&Value::Bool(true));
    if open || fields.get("x-kubernetes-int-or-string") == Some(&Value::Bool(true)) {
        for name in ["type", "properties", "items", "additionalProperties", "required"] {
            fields.remove(name);
        }
    }
    for inner in fields.get_mut("properties").and_then(Value::as_object_mut).into_iter().flat_map(Map::values_mut) {
        simplify(inner);
    }
    for name in ["items", "additionalProperties"] {
        if let Some(inner) = fields.get_mut(name) {
            simplify(inner);
        }
    }
}
