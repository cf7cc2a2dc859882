//! Event (core).

use k8s_openapi::api::core::v1::Event;
use serde_json::{Value, json};

use super::decode;
use super::fields::{Errors, Path, integer, nothing, text};
use super::table::{NAME, column, name, wide};
use super::time;
use crate::apiserver::kind::{Column, Kind, Resource};
use crate::apiserver::status::FieldError;

pub(super) const KIND: Kind = Kind {
    resource: Resource {
        group: "",
        version: "v1",
        kind: "Event",
        plural: "events",
        singular: "event",
        short_names: &["ev"],
        categories: &[],
        namespaced: true,
        status_subresource: false,
        stored_as: None,
        selectable: &[
            ("involvedObject.kind", |o| text(o, "/involvedObject/kind").to_owned()),
            ("involvedObject.namespace", |o| text(o, "/involvedObject/namespace").to_owned()),
            ("involvedObject.name", |o| text(o, "/involvedObject/name").to_owned()),
            ("involvedObject.uid", |o| text(o, "/involvedObject/uid").to_owned()),
            ("involvedObject.apiVersion", |o| text(o, "/involvedObject/apiVersion").to_owned()),
            ("involvedObject.resourceVersion", |o| text(o, "/involvedObject/resourceVersion").to_owned()),
            ("involvedObject.fieldPath", |o| text(o, "/involvedObject/fieldPath").to_owned()),
            ("reason", |o| text(o, "/reason").to_owned()),
            ("type", |o| text(o, "/type").to_owned()),
            ("reportingComponent", |o| component(o).to_owned()),
            ("source", |o| component(o).to_owned()),
        ],
        columns: &[
            column("Last Seen", "When it happened last"),
            column("Type", "Normal or Warning"),
            column("Reason", "Why, in one word"),
            column("Object", "What it is about"),
            wide("Subobject", "The part of the object it is about"),
            wide("Source", "Who reports it"),
            column("Message", "What happened"),
            wide("First Seen", "When it happened first"),
            wide("Count", "How often it happened"),
            Column { priority: 1, ..NAME },
        ],
        cells,
    },
    scale_subresource: false,
    has_generation: false,
    decode: decode::typed::<Event>,
    default: |_| {},
    validate_create: validate,
    validate_update,
    validate_status: nothing,
};

/// Longest message, bytes: that of the events API; keeps an event small enough to be carried as one.
const MESSAGE_MAX: usize = 1024;

/// Who reports an event, by the newer or the older field.
pub(super) fn component(object: &Value) -> &str {
    match text(object, "/source/component") {
        "" => text(object, "/reportingComponent"),
        component => component,
    }
}

/// Namespace of events about objects that have none.
const CLUSTER_NAMESPACE: &str = "default";

pub(super) fn validate(object: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let namespace = text(object, "/metadata/namespace");
    let about = text(object, "/involvedObject/namespace");
    let path = Path::new("involvedObject").field("namespace");
    if about.is_empty() {
        if namespace != CLUSTER_NAMESPACE && namespace != "kube-system" {
            errors.invalid(&path, about, "does not match event.namespace");
        }
    } else if about != namespace {
        errors.invalid(&path, about, "does not match event.namespace");
    }
    if object.get("eventTime").is_some_and(|time| !time.is_null()) {
        // Events of the newer kind must say who reports them and what was done.
        for field in ["reportingComponent", "reportingInstance", "action", "reason"] {
            let name = if field == "reportingComponent" { "reportingController" } else { field };
            if text(object, &format!("/{field}")).is_empty() {
                errors.required(&Path::new(name), "");
            }
        }
        errors.one_of(&Path::new("type"), text(object, "/type"), &["Normal", "Warning"]);
        if text(object, "/message").len() > MESSAGE_MAX {
            errors.too_long(&Path::new("message"), MESSAGE_MAX as u64);
        }
    }
    errors.done()
}

pub(super) fn validate_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut all = validate(new);
    if old.get("eventTime").is_some_and(|time| !time.is_null()) {
        let mut errors = Errors::default();
        for field in ["involvedObject", "reason", "message", "type", "eventTime", "action", "reportingInstance"] {
            errors.immutable(&Path::new(field), new.get(field), old.get(field));
        }
        all.extend(errors.done());
    }
    all
}

pub(super) fn cells(object: &Value, now: i64) -> Vec<Value> {
    let age = |pointer: &str| time::age(object.pointer(pointer).and_then(Value::as_str), now);
    let has = |pointer: &str| object.pointer(pointer).is_some_and(Value::is_string);
    let first = if has("/firstTimestamp") { age("/firstTimestamp") } else { age("/eventTime") };
    let (last, count) = if has("/series/lastObservedTime") {
        (age("/series/lastObservedTime"), integer(object, "/series/count").unwrap_or_default())
    } else {
        let last = if has("/lastTimestamp") { age("/lastTimestamp") } else { first.clone() };
        (last, integer(object, "/count").unwrap_or(0).max(1))
    };
    let kind = text(object, "/involvedObject/kind").to_lowercase();
    let target = match text(object, "/involvedObject/name") {
        "" => kind,
        name => format!("{kind}/{name}"),
    };
    let instance = match text(object, "/source/host") {
        "" => text(object, "/reportingInstance"),
        host => host,
    };
    let source = match instance {
        "" => component(object).to_owned(),
        instance => format!("{}, {instance}", component(object)),
    };
    vec![
        json!(last),
        json!(text(object, "/type")),
        json!(text(object, "/reason")),
        json!(target),
        json!(text(object, "/involvedObject/fieldPath")),
        json!(source),
        json!(text(object, "/message").trim()),
        json!(first),
        json!(count),
        name(object),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event() -> Value {
        json!({"metadata": {"name": "e.1", "namespace": "golden"}, "message": " hi\n",
            "reason": "Started", "type": "Normal",
            "involvedObject": {"kind": "Pod", "name": "p", "namespace": "golden"}, "source": {"component": "kubelet"},
            "count": 1, "firstTimestamp": "2026-01-01T00:00:00Z", "lastTimestamp": "2026-01-02T00:00:00Z"})
    }

    #[test]
    fn an_event_lives_in_the_namespace_of_its_object() {
        assert!(validate(&event()).is_empty());
        let mut other = event();
        other["involvedObject"]["namespace"] = json!("elsewhere");
        assert_eq!(validate(&other)[0].field, "involvedObject.namespace");
        let mut node = event();
        node["involvedObject"] = json!({"kind": "Node", "name": "n"});
        assert_eq!(validate(&node).len(), 1);
        node["metadata"]["namespace"] = json!("default");
        assert!(validate(&node).is_empty());
    }

    #[test]
    fn a_row_names_object_source_and_ages() {
        let now = crate::kubeapi::time::seconds("2026-01-02T00:01:00Z").expect("a time");
        let row = cells(&event(), now);
        let expected = json!(["60s", "Normal", "Started", "pod/p", "", "kubelet", "hi", "24h", 1, "e.1"]);
        assert_eq!(json!(row), expected);
        let mut series = event();
        series["series"] = json!({"count": 7, "lastObservedTime": "2026-01-02T00:00:50.000000Z"});
        series["source"] = json!({});
        series["reportingComponent"] = json!("edged");
        series["reportingInstance"] = json!("edge-1");
        let row = cells(&series, now);
        assert_eq!((&row[0], &row[8], &row[5]), (&json!("10s"), &json!(7), &json!("edged, edge-1")));
    }
}
