//! DaemonSet (`apps/v1`).

use k8s_openapi::api::apps::v1::DaemonSet;
use serde_json::{Value, json};

use super::{
    check_counts, check_not_above_all, check_share, containers, default_parts, is_zero, selector_cell, template,
};
use crate::apiserver::kind::{Column, Kind, Resource};
use crate::apiserver::kinds::decode;
use crate::apiserver::kinds::fields::{Errors, Path, entries, integer, object_mut, set_missing, text};
use crate::apiserver::kinds::table::{AGE, NAME, NONE, column, creation_age, name, wide};
use crate::apiserver::status::FieldError;

pub(in crate::apiserver::kinds) const KIND: Kind = Kind {
    resource: Resource {
        group: "apps",
        version: "v1",
        kind: "DaemonSet",
        plural: "daemonsets",
        singular: "daemonset",
        short_names: &["ds"],
        categories: &["all"],
        namespaced: true,
        status_subresource: true,
        stored_as: None,
        selectable: &[],
        columns: COLUMNS,
        cells,
    },
    scale_subresource: false,
    has_generation: true,
    decode: decode::typed::<DaemonSet>,
    default,
    validate_create: validate,
    validate_update,
    validate_status: |new, _| {
        let mut errors = Errors::default();
        check_counts(new, "/status", COUNTS, &mut errors);
        errors.done()
    },
};

/// What a status counts.
const COUNTS: &[&str] = &[
    "currentNumberScheduled",
    "numberMisscheduled",
    "desiredNumberScheduled",
    "numberReady",
    "observedGeneration",
    "updatedNumberScheduled",
    "numberAvailable",
    "numberUnavailable",
];

const COLUMNS: &[Column] = &[
    NAME,
    Column { type_: "integer", ..column("Desired", "Nodes that should have a pod") },
    Column { type_: "integer", ..column("Current", "Nodes that have the pod they should have") },
    Column { type_: "integer", ..column("Ready", "Nodes whose pod is ready") },
    Column { type_: "integer", ..column("Up-to-date", "Nodes with a pod of the present template") },
    Column { type_: "integer", ..column("Available", "Nodes whose pod has been ready long enough") },
    column("Node Selector", "Labels of the nodes"),
    AGE,
    wide("Containers", "Names of the containers"),
    wide("Images", "Images of the containers"),
    wide("Selector", "Labels of the pods"),
];

fn cells(object: &Value, now: i64) -> Vec<Value> {
    let count = |field: &str| json!(integer(object, &format!("/status/{field}")).unwrap_or_default());
    let (names, images) = containers(object);
    let nodes: Vec<String> = entries(object, "/spec/template/spec/nodeSelector")
        .map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()))
        .collect();
    vec![
        name(object),
        count("desiredNumberScheduled"),
        count("currentNumberScheduled"),
        count("numberReady"),
        count("updatedNumberScheduled"),
        count("numberAvailable"),
        json!(if nodes.is_empty() { NONE.to_owned() } else { nodes.join(",") }),
        creation_age(object, now),
        json!(names),
        json!(images),
        json!(selector_cell(object)),
    ]
}

fn default(object: &mut Value) {
    default_parts(object);
    template::default(object);
    let spec = &mut object["spec"];
    set_missing(spec, "revisionHistoryLimit", 10);
    if object_mut(spec, "updateStrategy").is_some() {
        let strategy = &mut spec["updateStrategy"];
        set_missing(strategy, "type", "RollingUpdate");
        if text(strategy, "/type") == "RollingUpdate" && object_mut(strategy, "rollingUpdate").is_some() {
            set_missing(&mut strategy["rollingUpdate"], "maxUnavailable", 1);
            set_missing(&mut strategy["rollingUpdate"], "maxSurge", 0);
        }
    }
    for field in ["currentNumberScheduled", "numberMisscheduled", "desiredNumberScheduled", "numberReady"] {
        set_missing(&mut object["status"], field, 0);
    }
}

fn validate(object: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    template::check(object, "DaemonSet", &mut errors);
    check_counts(object, "/spec", &["minReadySeconds", "revisionHistoryLimit"], &mut errors);
    let path = Path::new("spec").field("updateStrategy");
    let strategy = &object["spec"]["updateStrategy"];
    match (text(strategy, "/type"), strategy.get("rollingUpdate")) {
        ("OnDelete", _) => {}
        ("RollingUpdate", None) => errors.required(&path.field("rollingUpdate"), ""),
        ("RollingUpdate", Some(rolling)) => check_rolling(rolling, &path.field("rollingUpdate"), &mut errors),
        (other, _) => errors.one_of(&path.field("type"), other, &["OnDelete", "RollingUpdate"]),
    }
    errors.done()
}

fn check_rolling(rolling: &Value, path: &Path, errors: &mut Errors) {
    let (unavailable, surge) = (&rolling["maxUnavailable"], &rolling["maxSurge"]);
    for (value, field) in [(unavailable, "maxUnavailable"), (surge, "maxSurge")] {
        check_share(value, &path.field(field), errors);
        check_not_above_all(value, &path.field(field), errors);
    }
    match (is_zero(unavailable), is_zero(surge)) {
        (false, false) => {
            errors.invalid(&path.field("maxSurge"), surge.clone(), "may not be set when maxUnavailable is non-zero")
        }
        (true, true) => errors.required(&path.field("maxUnavailable"), "cannot be 0 when maxSurge is 0"),
        _ => {}
    }
}

fn validate_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let path = Path::new("spec").field("selector");
    errors.immutable(&path, new.pointer("/spec/selector"), old.pointer("/spec/selector"));
    let mut all = validate(new);
    all.extend(errors.done());
    all
}

#[cfg(test)]
mod tests {
    use super::super::tests::{object, refused};
    use super::*;

    #[test]
    fn one_node_at_a_time_is_the_default_and_surge_excludes_unavailable() {
        let agent = object(&KIND, json!({}));
        let rolling = json!({"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 1, "maxSurge": 0}});
        assert_eq!(agent["spec"]["updateStrategy"], rolling);
        let judge = |rolling: Value| {
            refused(&KIND, json!({"updateStrategy": {"type": "RollingUpdate", "rollingUpdate": rolling}}))
        };
        let at = "spec.updateStrategy.rollingUpdate";
        assert_eq!(judge(json!({"maxUnavailable": 1, "maxSurge": 1})), [format!("{at}.maxSurge")]);
        assert_eq!(judge(json!({"maxUnavailable": 0})), [format!("{at}.maxUnavailable")]);
        assert_eq!(judge(json!({"maxUnavailable": 0, "maxSurge": "10%"})), Vec::<String>::new());
        assert_eq!(refused(&KIND, json!({"updateStrategy": {"type": "Never"}})), ["spec.updateStrategy.type"]);
    }
}
