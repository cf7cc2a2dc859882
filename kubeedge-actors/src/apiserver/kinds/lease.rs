//! Lease (`coordination.k8s.io/v1`).

use k8s_openapi::api::coordination::v1::Lease;
use serde_json::{Value, json};

use super::decode;
use super::fields::{Errors, Path, integer, nothing, text};
use super::table::{AGE, NAME, column, creation_age, name};
use crate::apiserver::kind::{Kind, Resource};
use crate::apiserver::status::FieldError;

pub(super) const KIND: Kind = Kind {
    resource: Resource {
        group: "coordination.k8s.io",
        version: "v1",
        kind: "Lease",
        plural: "leases",
        singular: "lease",
        short_names: &[],
        categories: &[],
        namespaced: true,
        status_subresource: false,
        stored_as: None,
        selectable: &[],
        columns: &[NAME, column("Holder", "Who holds the lease"), AGE],
        cells: |object, now| vec![name(object), json!(text(object, "/spec/holderIdentity")), creation_age(object, now)],
    },
    scale_subresource: false,
    has_generation: false,
    decode: decode::typed::<Lease>,
    default: |object| super::fields::set_missing(object, "spec", json!({})),
    validate_create: validate,
    validate_update: |new, _| validate(new),
    validate_status: nothing,
};

fn validate(object: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let spec = Path::new("spec");
    if let Some(seconds) = integer(object, "/spec/leaseDurationSeconds")
        && seconds <= 0
    {
        errors.invalid(&spec.field("leaseDurationSeconds"), seconds, "must be greater than 0");
    }
    if let Some(transitions) = integer(object, "/spec/leaseTransitions")
        && transitions < 0
    {
        errors.invalid(&spec.field("leaseTransitions"), transitions, "must be greater than or equal to 0");
    }
    if object.pointer("/spec/holderIdentity").and_then(Value::as_str) == Some("") {
        errors.invalid(&spec.field("holderIdentity"), "", "must not be empty");
    }
    let strategy = text(object, "/spec/strategy");
    if !strategy.is_empty() {
        let path = spec.field("strategy");
        if strategy.contains('/') {
            errors.format(&path, strategy, super::names::qualified_name(strategy));
        } else {
            errors.one_of(&path, strategy, &["OldestEmulationVersion"]);
        }
    } else if !text(object, "/spec/preferredHolder").is_empty() {
        errors.forbidden(&spec.field("preferredHolder"), "may only be specified if `strategy` is defined");
    }
    errors.done()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_positive_and_transitions_not_negative() {
        let errors = validate(&json!({"spec": {"leaseDurationSeconds": 0, "leaseTransitions": -1}}));
        let fields: Vec<_> = errors.iter().map(|e| e.field.as_str()).collect();
        assert_eq!(fields, ["spec.leaseDurationSeconds", "spec.leaseTransitions"]);
        assert!(validate(&json!({"spec": {"leaseDurationSeconds": 40, "holderIdentity": "n"}})).is_empty());
        assert!(validate(&json!({"spec": {}})).is_empty());
    }
}
