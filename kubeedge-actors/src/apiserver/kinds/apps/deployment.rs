//! Deployment (`apps/v1`).

use k8s_openapi::api::apps::v1::Deployment;
use serde_json::{Value, json};

use super::{
    check_counts, check_not_above, check_not_above_all, check_share, containers, default_parts, is_zero, selector_cell,
    template,
};
use crate::apiserver::kind::{Column, Kind, Resource};
use crate::apiserver::kinds::decode;
use crate::apiserver::kinds::fields::{Errors, Path, integer, object_mut, set_missing, text};
use crate::apiserver::kinds::table::{AGE, NAME, column, creation_age, name, wide};
use crate::apiserver::status::FieldError;

pub(in crate::apiserver::kinds) const KIND: Kind = Kind {
    resource: Resource {
        group: "apps",
        version: "v1",
        kind: "Deployment",
        plural: "deployments",
        singular: "deployment",
        short_names: &["deploy"],
        categories: &["all"],
        namespaced: true,
        status_subresource: true,
        stored_as: None,
        selectable: &[],
        columns: COLUMNS,
        cells,
    },
    scale_subresource: true,
    has_generation: true,
    decode: decode::typed::<Deployment>,
    default,
    validate_create: validate,
    validate_update,
    validate_status,
};

const COLUMNS: &[Column] = &[
    NAME,
    column("Ready", "Pods that are ready, of those that are wanted"),
    Column { type_: "integer", ..column("Up-to-date", "Pods of the present template") },
    Column { type_: "integer", ..column("Available", "Pods that have been ready long enough") },
    AGE,
    wide("Containers", "Names of the containers"),
    wide("Images", "Images of the containers"),
    wide("Selector", "Labels of the pods"),
];

fn cells(object: &Value, now: i64) -> Vec<Value> {
    let count = |pointer: &str| integer(object, pointer).unwrap_or_default();
    let (names, images) = containers(object);
    vec![
        name(object),
        json!(format!("{}/{}", count("/status/readyReplicas"), count("/spec/replicas"))),
        json!(count("/status/updatedReplicas")),
        json!(count("/status/availableReplicas")),
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
    set_missing(spec, "replicas", 1);
    set_missing(spec, "revisionHistoryLimit", 10);
    set_missing(spec, "progressDeadlineSeconds", 600);
    if object_mut(spec, "strategy").is_none() {
        return;
    }
    let strategy = &mut spec["strategy"];
    set_missing(strategy, "type", "RollingUpdate");
    if text(strategy, "/type") == "RollingUpdate" && object_mut(strategy, "rollingUpdate").is_some() {
        set_missing(&mut strategy["rollingUpdate"], "maxUnavailable", "25%");
        set_missing(&mut strategy["rollingUpdate"], "maxSurge", "25%");
    }
}

fn validate(object: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let counts = ["replicas", "minReadySeconds", "revisionHistoryLimit", "progressDeadlineSeconds"];
    check_counts(object, "/spec", &counts, &mut errors);
    template::check(object, "Deployment", &mut errors);
    check_strategy(object, &mut errors);
    let seconds = |field: &str| integer(object, &format!("/spec/{field}"));
    if let Some(deadline) = seconds("progressDeadlineSeconds")
        && deadline >= 0
        && deadline <= seconds("minReadySeconds").unwrap_or_default()
    {
        let path = Path::new("spec").field("progressDeadlineSeconds");
        errors.invalid(&path, deadline, "must be greater than minReadySeconds");
    }
    errors.done()
}

fn check_strategy(object: &Value, errors: &mut Errors) {
    let path = Path::new("spec").field("strategy");
    let strategy = &object["spec"]["strategy"];
    let rolling = strategy.get("rollingUpdate");
    match (text(strategy, "/type"), rolling) {
        ("Recreate", Some(_)) => {
            let why = "may not be specified when strategy `type` is 'Recreate'";
            errors.forbidden(&path.field("rollingUpdate"), why);
        }
        ("Recreate", None) => {}
        ("RollingUpdate", None) => errors.required(&path.field("rollingUpdate"), ""),
        ("RollingUpdate", Some(rolling)) => {
            let path = path.field("rollingUpdate");
            let (unavailable, surge) = (&rolling["maxUnavailable"], &rolling["maxSurge"]);
            check_share(unavailable, &path.field("maxUnavailable"), errors);
            check_share(surge, &path.field("maxSurge"), errors);
            if is_zero(unavailable) && is_zero(surge) {
                let why = "may not be 0 when `maxSurge` is 0";
                errors.invalid(&path.field("maxUnavailable"), unavailable.clone(), why);
            }
            check_not_above_all(unavailable, &path.field("maxUnavailable"), errors);
        }
        (other, _) => errors.one_of(&path.field("type"), other, &["Recreate", "RollingUpdate"]),
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

fn validate_status(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let counts = [
        "observedGeneration",
        "replicas",
        "updatedReplicas",
        "readyReplicas",
        "availableReplicas",
        "unavailableReplicas",
    ];
    check_counts(new, "/status", &counts, &mut errors);
    let pairs = [
        ("updatedReplicas", "replicas"),
        ("readyReplicas", "replicas"),
        ("availableReplicas", "replicas"),
        ("availableReplicas", "readyReplicas"),
    ];
    check_not_above(new, &pairs, &mut errors);
    if let (Some(before), now) = (integer(old, "/status/collisionCount"), integer(new, "/status/collisionCount"))
        && now.is_none_or(|now| now < before)
    {
        let path = Path::new("status").field("collisionCount");
        errors.invalid(&path, now.unwrap_or_default(), "cannot be decremented");
    }
    errors.done()
}

#[cfg(test)]
mod tests {
    use super::super::tests::{fields, object, refused};
    use super::*;

    #[test]
    fn a_deployment_rolls_a_quarter_at_a_time_unless_it_says_otherwise() {
        let web = object(&KIND, json!({}));
        let spec = &web["spec"];
        assert_eq!(spec["strategy"]["rollingUpdate"], json!({"maxUnavailable": "25%", "maxSurge": "25%"}));
        assert_eq!((&spec["replicas"], &spec["progressDeadlineSeconds"]), (&json!(1), &json!(600)));
        let recreate = object(&KIND, json!({"strategy": {"type": "Recreate"}}));
        assert_eq!(recreate["spec"]["strategy"], json!({"type": "Recreate"}));
    }

    #[test]
    fn a_strategy_can_make_progress() {
        let rolling =
            |update: Value| refused(&KIND, json!({"strategy": {"type": "RollingUpdate", "rollingUpdate": update}}));
        let at = "spec.strategy.rollingUpdate";
        assert_eq!(rolling(json!({"maxUnavailable": 0, "maxSurge": "0%"})), [format!("{at}.maxUnavailable")]);
        assert_eq!(rolling(json!({"maxUnavailable": "101%", "maxSurge": "200%"})), [format!("{at}.maxUnavailable")]);
        assert_eq!(rolling(json!({"maxUnavailable": 0, "maxSurge": 1})), Vec::<String>::new());
        let both = json!({"strategy": {"type": "Recreate", "rollingUpdate": {"maxSurge": 1}}});
        assert_eq!(refused(&KIND, both), [at]);
        assert_eq!(refused(&KIND, json!({"strategy": {"type": "Fast"}})), ["spec.strategy.type"]);
        assert_eq!(refused(&KIND, json!({"replicas": -1})), ["spec.replicas"]);
        let late = json!({"minReadySeconds": 20, "progressDeadlineSeconds": 20});
        assert_eq!(refused(&KIND, late), ["spec.progressDeadlineSeconds"]);
    }

    #[test]
    fn a_status_counts_no_more_of_a_part_than_of_the_whole() {
        let old = json!({"status": {"collisionCount": 2}});
        let new = json!({"status": {"replicas": 2, "readyReplicas": 3, "availableReplicas": 1, "collisionCount": 1}});
        assert_eq!(fields(validate_status(&new, &old)), ["status.readyReplicas", "status.collisionCount"]);
    }

    #[test]
    fn a_row_shows_how_far_it_is() {
        let mut web = object(&KIND, json!({"replicas": 3}));
        web["status"] = json!({"replicas": 3, "readyReplicas": 2, "updatedReplicas": 3, "availableReplicas": 1});
        let cells = cells(&web, 0);
        assert_eq!(cells[..4], [json!("web"), json!("2/3"), json!(3), json!(1)]);
        assert_eq!(cells[5..], [json!("c"), json!("registry.example/c:1"), json!("app=web")]);
    }
}
