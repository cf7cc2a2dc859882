//! ReplicaSet (`apps/v1`).

use k8s_openapi::api::apps::v1::ReplicaSet;
use serde_json::{Value, json};

use super::{check_counts, check_not_above, containers, default_parts, selector_cell, template};
use crate::apiserver::kind::{Column, Kind, Resource};
use crate::apiserver::kinds::decode;
use crate::apiserver::kinds::fields::{Errors, Path, integer, set_missing};
use crate::apiserver::kinds::table::{AGE, NAME, column, creation_age, name, wide};
use crate::apiserver::status::FieldError;

pub(in crate::apiserver::kinds) const KIND: Kind = Kind {
    resource: Resource {
        group: "apps",
        version: "v1",
        kind: "ReplicaSet",
        plural: "replicasets",
        singular: "replicaset",
        short_names: &["rs"],
        categories: &["all"],
        namespaced: true,
        status_subresource: true,
        stored_as: None,
        selectable: &[("status.replicas", |o| integer(o, "/status/replicas").unwrap_or_default().to_string())],
        columns: COLUMNS,
        cells,
    },
    scale_subresource: true,
    has_generation: true,
    decode: decode::typed::<ReplicaSet>,
    default,
    validate_create: validate,
    validate_update,
    validate_status,
};

const COLUMNS: &[Column] = &[
    NAME,
    Column { type_: "integer", ..column("Desired", "Pods that are wanted") },
    Column { type_: "integer", ..column("Current", "Pods that are there") },
    Column { type_: "integer", ..column("Ready", "Pods that are ready") },
    AGE,
    wide("Containers", "Names of the containers"),
    wide("Images", "Images of the containers"),
    wide("Selector", "Labels of the pods"),
];

fn cells(object: &Value, now: i64) -> Vec<Value> {
    let count = |pointer: &str| json!(integer(object, pointer).unwrap_or_default());
    let (names, images) = containers(object);
    vec![
        name(object),
        count("/spec/replicas"),
        count("/status/replicas"),
        count("/status/readyReplicas"),
        creation_age(object, now),
        json!(names),
        json!(images),
        json!(selector_cell(object)),
    ]
}

fn default(object: &mut Value) {
    default_parts(object);
    template::default(object);
    set_missing(&mut object["spec"], "replicas", 1);
    set_missing(&mut object["status"], "replicas", 0);
}

fn validate(object: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    check_counts(object, "/spec", &["replicas", "minReadySeconds"], &mut errors);
    template::check(object, "ReplicaSet", &mut errors);
    errors.done()
}

fn validate_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let path = Path::new("spec").field("selector");
    errors.immutable(&path, new.pointer("/spec/selector"), old.pointer("/spec/selector"));
    let mut all = validate(new);
    all.extend(errors.done());
    all
}

fn validate_status(new: &Value, _: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let counts = ["replicas", "fullyLabeledReplicas", "readyReplicas", "availableReplicas", "observedGeneration"];
    check_counts(new, "/status", &counts, &mut errors);
    let pairs = [
        ("fullyLabeledReplicas", "replicas"),
        ("readyReplicas", "replicas"),
        ("availableReplicas", "replicas"),
        ("availableReplicas", "readyReplicas"),
    ];
    check_not_above(new, &pairs, &mut errors);
    errors.done()
}
