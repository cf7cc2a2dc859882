//! Event (`events.k8s.io/v1`): the stored core Event under other names.

use k8s_openapi::api::events::v1::Event;
use serde_json::{Map, Value, json};

use super::decode;
use super::event;
use super::fields::{Errors, Path, integer, nothing, text};
use crate::apiserver::kind::{Kind, Resource, StoredAs};
use crate::apiserver::status::FieldError;

pub(super) const KIND: Kind = Kind {
    resource: Resource {
        group: "events.k8s.io",
        stored_as: Some(StoredAs { kind: &event::KIND.resource, to_stored, from_stored }),
        // In the order of the stored kind, whose values count; what it has beyond them cannot be asked for here.
        selectable: &[
            ("regarding.kind", |o| text(o, "/regarding/kind").to_owned()),
            ("regarding.namespace", |o| text(o, "/regarding/namespace").to_owned()),
            ("regarding.name", |o| text(o, "/regarding/name").to_owned()),
            ("regarding.uid", |o| text(o, "/regarding/uid").to_owned()),
            ("regarding.apiVersion", |o| text(o, "/regarding/apiVersion").to_owned()),
            ("regarding.resourceVersion", |o| text(o, "/regarding/resourceVersion").to_owned()),
            ("regarding.fieldPath", |o| text(o, "/regarding/fieldPath").to_owned()),
            ("reason", |o| text(o, "/reason").to_owned()),
            ("type", |o| text(o, "/type").to_owned()),
            ("reportingController", |o| event::component(&to_stored(o.clone())).to_owned()),
        ],
        cells: |object, now| event::cells(&to_stored(object.clone()), now),
        ..event::KIND.resource
    },
    decode: decode::typed::<Event>,
    validate_create,
    validate_update: |new, old| event::validate_update(&to_stored(new.clone()), &to_stored(old.clone())),
    validate_status: nothing,
    ..event::KIND
};

/// Names here and in the core group; everything else has the same name in both.
const NAMES: [(&str, &str); 7] = [
    ("regarding", "involvedObject"),
    ("note", "message"),
    ("reportingController", "reportingComponent"),
    ("deprecatedSource", "source"),
    ("deprecatedFirstTimestamp", "firstTimestamp"),
    ("deprecatedLastTimestamp", "lastTimestamp"),
    ("deprecatedCount", "count"),
];

fn rename(event: Value, names: impl Fn(&str) -> Option<&'static str>) -> Map<String, Value> {
    let Value::Object(fields) = event else { return Map::new() };
    fields
        .into_iter()
        .map(|(name, value)| match names(&name) {
            Some(other) => (other.to_owned(), value),
            None => (name, value),
        })
        .collect()
}

fn to_stored(event: Value) -> Value {
    let mut fields = rename(event, |name| NAMES.iter().find(|(here, _)| *here == name).map(|(_, core)| *core));
    // What the core form always has.
    for (name, value) in [
        ("involvedObject", json!({})),
        ("source", json!({})),
        ("firstTimestamp", Value::Null),
        ("lastTimestamp", Value::Null),
        ("eventTime", Value::Null),
        ("reportingComponent", json!("")),
        ("reportingInstance", json!("")),
    ] {
        fields.entry(name).or_insert(value);
    }
    fields.into()
}

fn from_stored(event: Value) -> Value {
    let mut fields = rename(event, |name| NAMES.iter().find(|(_, core)| *core == name).map(|(here, _)| *here));
    for name in ["reportingController", "reportingInstance"] {
        if fields.get(name).is_some_and(|value| value == "") {
            fields.remove(name);
        }
    }
    fields.into()
}

/// New events here are of the newer kind only: the older fields are for reading.
fn validate_create(object: &Value) -> Vec<FieldError> {
    let stored = to_stored(object.clone());
    let mut all = event::validate(&stored);
    let mut errors = Errors::default();
    if stored["eventTime"].is_null() {
        errors.required(&Path::new("eventTime"), "");
    }
    if let Some(series) = stored.get("series") {
        let path = Path::new("series");
        if integer(series, "/count").unwrap_or_default() < 2 {
            errors.invalid(&path.field("count"), "", "should be at least 2");
        }
        if series["lastObservedTime"].is_null() {
            errors.required(&path.field("lastObservedTime"), "");
        }
    }
    let older = [
        ("firstTimestamp", !stored["firstTimestamp"].is_null()),
        ("lastTimestamp", !stored["lastTimestamp"].is_null()),
        ("count", integer(&stored, "/count").unwrap_or_default() != 0),
        ("source", stored["source"].as_object().is_some_and(|source| !source.is_empty())),
    ];
    for (field, _) in older.into_iter().filter(|(_, set)| *set) {
        errors.invalid(&Path::new(field), "", "needs to be unset");
    }
    all.extend(errors.done());
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn newer() -> Value {
        json!({
            "metadata": {"name": "e", "namespace": "a"}, "eventTime": "2026-01-01T00:00:00.000000Z",
            "regarding": {"kind": "Pod", "namespace": "a", "name": "p"}, "note": "hi", "reason": "Started",
            "type": "Normal", "action": "Start", "reportingController": "example.com/c", "reportingInstance": "i",
            "series": {"count": 2, "lastObservedTime": "2026-01-01T00:00:01.000000Z"},
        })
    }

    #[test]
    fn both_forms_say_the_same() {
        let stored = to_stored(newer());
        assert_eq!(stored["involvedObject"]["name"], "p");
        assert_eq!((&stored["message"], &stored["reportingComponent"]), (&json!("hi"), &json!("example.com/c")));
        assert_eq!((&stored["source"], &stored["firstTimestamp"]), (&json!({}), &Value::Null));
        let mut back = from_stored(stored);
        for field in ["deprecatedSource", "deprecatedFirstTimestamp", "deprecatedLastTimestamp"] {
            back.as_object_mut().unwrap().remove(field);
        }
        assert_eq!(back, newer());
    }

    #[test]
    fn selectors_here_read_what_those_of_the_stored_kind_read() {
        let stored = to_stored(newer());
        for (index, (name, read)) in KIND.selectable.iter().enumerate() {
            assert_eq!(read(&newer()), (event::KIND.selectable[index].1)(&stored), "{name}");
        }
    }

    #[test]
    fn a_new_event_says_when_and_who_and_not_in_the_older_fields() {
        assert_eq!(validate_create(&newer()), Vec::new());
        let mut old = newer();
        old["eventTime"] = Value::Null;
        old["deprecatedCount"] = json!(1);
        old["series"]["count"] = json!(1);
        let fields: Vec<String> = validate_create(&old).into_iter().map(|error| error.field).collect();
        assert_eq!(fields, ["eventTime", "series.count", "count"]);
    }
}
