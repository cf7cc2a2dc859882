//! ControllerRevision (`apps/v1`): a former state of a DaemonSet or StatefulSet.

use k8s_openapi::api::apps::v1::ControllerRevision;
use serde_json::{Value, json};

use super::NOT_NEGATIVE;
use crate::apiserver::kind::{Column, Kind, Resource};
use crate::apiserver::kinds::decode;
use crate::apiserver::kinds::fields::{Errors, Path, integer, list, nothing, set_missing, text};
use crate::apiserver::kinds::table::{AGE, NAME, NONE, column, creation_age, name};
use crate::apiserver::status::FieldError;

pub(in crate::apiserver::kinds) const KIND: Kind = Kind {
    resource: Resource {
        group: "apps",
        version: "v1",
        kind: "ControllerRevision",
        plural: "controllerrevisions",
        singular: "controllerrevision",
        short_names: &[],
        categories: &[],
        namespaced: true,
        status_subresource: false,
        stored_as: None,
        selectable: &[],
        columns: COLUMNS,
        cells,
    },
    scale_subresource: false,
    has_generation: false,
    decode: decode::typed::<ControllerRevision>,
    default: |object| set_missing(object, "revision", 0),
    validate_create: validate,
    validate_update,
    validate_status: nothing,
};

const COLUMNS: &[Column] = &[
    NAME,
    column("Controller", "Whose state it is"),
    Column { type_: "integer", ..column("Revision", "Its number") },
    AGE,
];

fn cells(object: &Value, now: i64) -> Vec<Value> {
    let controller = list(object, "/metadata/ownerReferences").iter().find(|owner| owner["controller"] == true);
    let controller = controller.map_or_else(
        || NONE.to_owned(),
        |owner| {
            let group = text(owner, "/apiVersion").split_once('/').map(|(group, _)| format!(".{group}"));
            let kind = text(owner, "/kind").to_lowercase();
            format!("{kind}{}/{}", group.unwrap_or_default(), text(owner, "/name"))
        },
    );
    vec![
        name(object),
        json!(controller),
        json!(integer(object, "/revision").unwrap_or_default()),
        creation_age(object, now),
    ]
}

fn validate(object: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    match object.get("data") {
        None | Some(Value::Null) => errors.required(&Path::new("data"), "data is mandatory"),
        Some(Value::Object(_)) => {}
        Some(other) => errors.invalid(&Path::new("data"), other.clone(), "must be a JSON object"),
    }
    if let Some(revision) = integer(object, "/revision")
        && revision < 0
    {
        errors.invalid(&Path::new("revision"), revision, NOT_NEGATIVE);
    }
    errors.done()
}

fn validate_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    errors.immutable(&Path::new("data"), new.get("data"), old.get("data"));
    let mut all = validate(new);
    all.extend(errors.done());
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_data_of_a_revision_is_an_object_and_never_changes() {
        let one = json!({"data": {"spec": 1}, "revision": 1});
        assert!(validate(&one).is_empty() && validate_update(&one, &one).is_empty());
        assert_eq!(validate(&json!({"revision": -1})).len(), 2);
        assert_eq!(validate_update(&json!({"data": {}, "revision": 2}), &one)[0].field, "data");
        let owner = json!({"apiVersion": "apps/v1", "kind": "DaemonSet", "name": "agent", "controller": true});
        let owned = json!({"metadata": {"name": "agent-1", "ownerReferences": [owner]}, "revision": 4});
        assert_eq!(cells(&owned, 0)[1..3], [json!("daemonset.apps/agent"), json!(4)]);
    }
}
