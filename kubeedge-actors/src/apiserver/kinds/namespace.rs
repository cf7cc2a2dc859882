//! Namespace. Its phase and its finalizer belong to the server: deletion empties the namespace first.

use k8s_openapi::api::core::v1::Namespace;
use serde_json::{Value, json};

use super::fields::{Errors, Path, list, object_mut, set_missing, text};
use super::table::{AGE, NAME, column, creation_age, name};
use super::{decode, names};
use crate::apiserver::kind::{Kind, Resource};
use crate::apiserver::status::FieldError;

/// The label that carries the name, for selectors.
pub const NAME_LABEL: &str = "kubernetes.io/metadata.name";
/// The finalizer that stands until a namespace is empty.
pub const FINALIZER: &str = "kubernetes";

pub(super) const KIND: Kind = Kind {
    resource: Resource {
        group: "",
        version: "v1",
        kind: "Namespace",
        plural: "namespaces",
        singular: "namespace",
        short_names: &["ns"],
        categories: &[],
        namespaced: false,
        status_subresource: true,
        stored_as: None,
        selectable: &[("status.phase", |object| text(object, "/status/phase").to_owned())],
        columns: &[NAME, column("Status", "Active or Terminating"), AGE],
        cells: |object, now| vec![name(object), json!(text(object, "/status/phase")), creation_age(object, now)],
    },
    scale_subresource: false,
    has_generation: false,
    decode: decode::typed::<Namespace>,
    default,
    validate_create: validate,
    validate_update: |_, _| Vec::new(),
    validate_status,
};

fn default(object: &mut Value) {
    let name = text(object, "/metadata/name").to_owned();
    if !name.is_empty()
        && let Some(metadata) = object_mut(object, "metadata")
    {
        let labels = metadata.entry("labels").or_insert_with(|| json!({}));
        if let Some(labels) = labels.as_object_mut() {
            labels.insert(NAME_LABEL.to_owned(), name.into());
        }
    }
    let deleting = object.pointer("/metadata/deletionTimestamp").is_some_and(|t| !t.is_null());
    if let Some(spec) = object_mut(object, "spec")
        // Removing the finalizer is how a namespace ends: it comes back only on one that lives.
        && !deleting
    {
        let finalizers = spec.entry("finalizers").or_insert_with(|| json!([]));
        if let Some(all) = finalizers.as_array_mut()
            && !all.iter().any(|f| f == FINALIZER)
        {
            all.push(json!(FINALIZER));
        }
    }
    set_missing(object, "status", json!({}));
    if let Some(status) = object.get_mut("status") {
        set_missing(status, "phase", if deleting { "Terminating" } else { "Active" });
    }
}

fn validate(object: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let name = text(object, "/metadata/name");
    // Every object's name is checked as a subdomain already; here only what a label forbids beyond that.
    if !name.is_empty() && names::dns_subdomain(name).is_empty() {
        errors.format(&Path::new("metadata").field("name"), name, names::dns_label(name));
    }
    for (index, finalizer) in list(object, "/spec/finalizers").iter().enumerate() {
        let finalizer = finalizer.as_str().unwrap_or_default();
        let path = Path::new("spec").field("finalizers").index(index);
        errors.format(&path, finalizer, names::qualified_name(finalizer));
    }
    errors.done()
}

fn validate_status(new: &Value, _old: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let phase = text(new, "/status/phase");
    let path = Path::new("status").field("Phase");
    let deleting = new.pointer("/metadata/deletionTimestamp").is_some_and(|t| !t.is_null());
    match (deleting, phase) {
        (false, "Active") | (true, "Terminating") => {}
        (false, _) => {
            errors.invalid(&path, phase, "may only be 'Active' if `deletionTimestamp` is empty");
        }
        (true, _) => {
            errors.invalid(&path, phase, "may only be 'Terminating' if `deletionTimestamp` is not empty");
        }
    }
    errors.done()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_namespace_gets_label_finalizer_and_phase() {
        let mut namespace = json!({"metadata": {"name": "golden"}});
        default(&mut namespace);
        let expected = json!({
            "metadata": {"name": "golden", "labels": {"kubernetes.io/metadata.name": "golden"}},
            "spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "Active"},
        });
        assert_eq!(namespace, expected);
        let mut again = namespace.clone();
        default(&mut again);
        assert_eq!(again, namespace);
    }

    #[test]
    fn the_finalizer_of_a_deleted_namespace_stays_away() {
        let mut namespace = json!({"metadata": {"name": "n", "deletionTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {}, "status": {"phase": "Terminating"}});
        default(&mut namespace);
        assert_eq!(namespace["spec"], json!({}));
    }

    #[test]
    fn a_namespace_is_named_by_a_label() {
        let errors = validate(&json!({"metadata": {"name": "a.b"}}));
        assert_eq!(errors.len(), 1);
        assert_eq!(errors[0].field, "metadata.name");
    }
}
