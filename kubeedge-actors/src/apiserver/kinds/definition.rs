//! CustomResourceDefinition: the shape of a kind that users add.

use std::collections::BTreeSet;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use serde_json::{Value, json};

use super::fields::{Errors, Path, flag, list, object_mut, set_missing, text};
use super::table::{NAME, column, name};
use super::{decode, names};
use crate::apiserver::custom::{Definition, GROUP, PLURAL};
use crate::apiserver::kind::{DecodeError, Decoded, Kind, Resource};
use crate::apiserver::status::FieldError;

/// The definition of a schema inside a definition.
const PROPS: &str = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps";
/// The annotation that allows a definition in one of Kubernetes' own groups.
const APPROVED: &str = "api-approved.kubernetes.io";
/// Versions of one kind at most.
const MAX_VERSIONS: usize = 20;

pub(super) const KIND: Kind = Kind {
    resource: Resource {
        group: GROUP,
        version: "v1",
        kind: "CustomResourceDefinition",
        plural: PLURAL,
        singular: "customresourcedefinition",
        short_names: &["crd", "crds"],
        categories: &["api-extensions"],
        namespaced: false,
        status_subresource: true,
        stored_as: None,
        selectable: &[],
        columns: &[NAME, column("Created At", "Time of creation")],
        cells: |object, _| vec![name(object), json!(text(object, "/metadata/creationTimestamp"))],
    },
    scale_subresource: false,
    has_generation: true,
    decode,
    default,
    validate_create: validate,
    validate_update,
    validate_status: |new, _| stored_versions(new),
};

fn decode(object: Value) -> Result<Decoded, DecodeError> {
    let mut decoded = decode::typed::<CustomResourceDefinition>(object)?;
    let versions = decoded.object.pointer_mut("/spec/versions").and_then(Value::as_array_mut);
    for version in versions.into_iter().flatten() {
        if let Some(schema) = version.pointer_mut("/schema/openAPIV3Schema") {
            decode_inner(schema, &mut decoded.unknown_fields)?;
        }
    }
    Ok(decoded)
}

/// `items` and `additionalProperties` may be something else than a schema, so that the walk leaves them as they are.
fn decode_inner(schema: &mut Value, unknown: &mut Vec<String>) -> Result<(), DecodeError> {
    for field in ["items", "additionalProperties"] {
        if let Some(inner) = schema.get_mut(field).filter(|inner| inner.is_object()) {
            let decoded = decode::decode(PROPS, inner.take())?;
            *inner = decoded.object;
            unknown.extend(decoded.unknown_fields.into_iter().map(|path| format!("{field}.{path}")));
            decode_inner(inner, unknown)?;
        }
    }
    for field in ["properties", "patternProperties", "definitions"] {
        for inner in schema.get_mut(field).and_then(Value::as_object_mut).into_iter().flat_map(|all| all.values_mut()) {
            decode_inner(inner, unknown)?;
        }
    }
    for field in ["allOf", "anyOf", "oneOf"] {
        for inner in schema.get_mut(field).and_then(Value::as_array_mut).into_iter().flatten() {
            decode_inner(inner, unknown)?;
        }
    }
    schema.get_mut("not").map_or(Ok(()), |not| decode_inner(not, unknown))
}

fn default(object: &mut Value) {
    let kind = text(object, "/spec/names/kind").to_owned();
    let stored: Vec<Value> =
        list(object, "/spec/versions").iter().filter(|v| v["storage"] == true).map(|v| v["name"].clone()).collect();
    if let Some(spec) = object.get_mut("spec").filter(|spec| spec.is_object()) {
        if object_mut(spec, "conversion").is_some() {
            set_missing(&mut spec["conversion"], "strategy", "None");
        }
        if !kind.is_empty() && object_mut(spec, "names").is_some() {
            set_missing(&mut spec["names"], "singular", kind.to_lowercase());
            set_missing(&mut spec["names"], "listKind", format!("{kind}List"));
        }
    }
    if object_mut(object, "status").is_none() {
        return;
    }
    let status = &mut object["status"];
    if status.get("conditions").is_none() {
        status["conditions"] = Value::Null;
    }
    set_missing(status, "acceptedNames", json!({"plural": "", "kind": ""}));
    set_missing(status, "storedVersions", json!([]));
    if let Some(all) = status["storedVersions"].as_array_mut() {
        for version in stored {
            if !all.contains(&version) {
                all.push(version);
            }
        }
    }
}

fn validate(object: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let (group, plural) = (text(object, "/spec/group"), text(object, "/spec/names/plural"));
    let own_name = text(object, "/metadata/name");
    if own_name != format!("{plural}.{group}") {
        errors.invalid(&Path::new("metadata.name"), own_name, "must be spec.names.plural+\".\"+spec.group");
    }
    check_group(object, group, &mut errors);
    check_names(object, &mut errors);
    let spec = Path::new("spec");
    errors.one_of(&spec.field("scope"), text(object, "/spec/scope"), &["Cluster", "Namespaced"]);
    if flag(object, "/spec/preserveUnknownFields") {
        let why = "must be false: set x-kubernetes-preserve-unknown-fields in the schema instead";
        errors.invalid(&spec.field("preserveUnknownFields"), true, why);
    }
    if text(object, "/spec/conversion/strategy") != "None" {
        // The recorded server calls webhooks; this one does not.
        let path = spec.field("conversion").field("strategy");
        errors.one_of(&path, text(object, "/spec/conversion/strategy"), &["None"]);
    }
    check_versions(object, &mut errors);
    let mut errors = errors.done();
    if errors.is_empty()
        && let Err(schema) = Definition::compile(object)
    {
        errors = schema;
    }
    errors
}

fn check_group(object: &Value, group: &str, errors: &mut Errors) {
    let path = Path::new("spec").field("group");
    if group.is_empty() {
        errors.required(&path, "");
    } else {
        errors.format(&path, group, names::dns_subdomain(group));
        if !group.contains('.') {
            errors.invalid(&path, group, "should be a domain with at least one dot");
        }
    }
    if super::kinds().iter().any(|kind| kind.group == group) {
        errors.forbidden(&path, "this server serves the group itself");
    }
    let protected = ["k8s.io", "kubernetes.io"];
    let within = |domain: &str| group == domain || group.ends_with(&format!(".{domain}"));
    if protected.into_iter().any(within) && object["metadata"]["annotations"][APPROVED].is_null() {
        let why = format!(
            "protected groups must have approval annotation {APPROVED:?}, see \
             https://github.com/kubernetes/enhancements/pull/1111"
        );
        errors.required(&Path::new("metadata.annotations").key(APPROVED), &why);
    }
}

fn check_names(object: &Value, errors: &mut Errors) {
    let path = Path::new("spec").field("names");
    for field in ["plural", "singular", "kind", "listKind"] {
        let value = text(object, &format!("/spec/names/{field}"));
        if value.is_empty() {
            errors.required(&path.field(field), "");
        } else {
            errors.format(&path.field(field), value, names::dns_label(&value.to_lowercase()));
        }
    }
    for field in ["shortNames", "categories"] {
        for (index, one) in list(object, &format!("/spec/names/{field}")).iter().enumerate() {
            let value = one.as_str().unwrap_or_default();
            errors.format(&path.field(field).index(index), value, names::dns_label(value));
        }
    }
    let kind = text(object, "/spec/names/kind");
    if !kind.is_empty() && kind == text(object, "/spec/names/listKind") {
        errors.invalid(&path.field("listKind"), kind, "kind and listKind may not be the same");
    }
}

fn check_versions(object: &Value, errors: &mut Errors) {
    let path = Path::new("spec").field("versions");
    let versions = list(object, "/spec/versions");
    if versions.is_empty() {
        return errors.required(&path, "");
    }
    if versions.len() > MAX_VERSIONS {
        errors.invalid(&path, versions.len(), format!("must have at most {MAX_VERSIONS} versions"));
    }
    let mut seen = BTreeSet::new();
    for (index, version) in versions.iter().enumerate() {
        let path = path.index(index);
        let name = text(version, "/name");
        errors.format(&path.field("name"), name, names::dns_label(name));
        if !seen.insert(name) {
            errors.duplicate(&path.field("name"), name);
        }
        if version.pointer("/schema/openAPIV3Schema").is_none_or(Value::is_null) {
            errors.required(&path.field("schema").field("openAPIV3Schema"), "schemas are required");
        }
    }
    if versions.iter().filter(|version| version["storage"] == true).count() != 1 {
        let why = "must have exactly one version marked as storage version";
        errors.invalid(&path, object["spec"]["versions"].clone(), why);
    }
}

fn validate_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let is_established =
        list(old, "/status/conditions").iter().any(|one| one["type"] == "Established" && one["status"] == "True");
    if is_established {
        for (pointer, path) in [("/spec/scope", "spec.scope"), ("/spec/names/kind", "spec.names.kind")] {
            errors.immutable(&Path::new(path), new.pointer(pointer), old.pointer(pointer));
        }
    }
    let mut errors = errors.done();
    errors.extend(validate(new));
    errors.extend(stored_versions(new));
    errors
}

/// Every version that objects were stored in is still defined.
fn stored_versions(object: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let path = Path::new("status").field("storedVersions");
    for (index, stored) in list(object, "/status/storedVersions").iter().enumerate() {
        if !list(object, "/spec/versions").iter().any(|version| version["name"] == *stored) {
            errors.invalid(&path.index(index), stored.clone(), "must appear in spec.versions");
        }
    }
    errors.done()
}
