//! Cells that several kinds print.

use serde_json::{Value, json};

use super::fields::text;
use super::time;
use crate::apiserver::kind::Column;

/// What is printed where there is nothing.
pub(super) const NONE: &str = "<none>";

/// The first column of most tables.
pub(super) const NAME: Column =
    Column { name: "Name", type_: "string", format: "name", priority: 0, description: "Name of the object" };
/// The last column of most tables.
pub(super) const AGE: Column = column("Age", "Time since creation");

/// A column that is always shown.
pub(super) const fn column(name: &'static str, description: &'static str) -> Column {
    Column { name, type_: "string", format: "", priority: 0, description }
}

/// A column shown with `-o wide`.
pub(super) const fn wide(name: &'static str, description: &'static str) -> Column {
    Column { name, type_: "string", format: "", priority: 1, description }
}

/// The name of an object.
pub(super) fn name(object: &Value) -> Value {
    json!(text(object, "/metadata/name"))
}

/// The age of an object at `now`, seconds since 1970.
pub(super) fn creation_age(object: &Value, now: i64) -> Value {
    json!(time::age(object.pointer("/metadata/creationTimestamp").and_then(Value::as_str), now))
}

/// Text at a pointer, or a stand-in for nothing.
pub(super) fn text_or<'a>(object: &'a Value, pointer: &str, otherwise: &'a str) -> &'a str {
    match text(object, pointer) {
        "" => otherwise,
        text => text,
    }
}
