//! Cells that several kinds print.

use serde_json::{Value, json};

use crate::kubeapi::fields::text;
use crate::kubeapi::resource::Column;
use crate::kubeapi::time;

/// What is printed where there is nothing.
pub(crate) const NONE: &str = "<none>";

/// The first column of most tables.
pub(crate) const NAME: Column =
    Column { name: "Name", type_: "string", format: "name", priority: 0, description: "Name of the object" };
/// The last column of most tables.
pub(crate) const AGE: Column = column("Age", "Time since creation");

/// A column that is always shown.
pub(crate) const fn column(name: &'static str, description: &'static str) -> Column {
    Column { name, type_: "string", format: "", priority: 0, description }
}

/// A column shown with `-o wide`.
pub(crate) const fn wide(name: &'static str, description: &'static str) -> Column {
    Column { name, type_: "string", format: "", priority: 1, description }
}

/// The name of an object.
pub(crate) fn name(object: &Value) -> Value {
    json!(text(object, "/metadata/name"))
}

/// The age of an object at `now`, seconds since 1970.
pub(crate) fn creation_age(object: &Value, now: i64) -> Value {
    json!(time::age(object.pointer("/metadata/creationTimestamp").and_then(Value::as_str), now))
}

/// Text at a pointer, or a stand-in for nothing.
pub(crate) fn text_or<'a>(object: &'a Value, pointer: &str, otherwise: &'a str) -> &'a str {
    match text(object, pointer) {
        "" => otherwise,
        text => text,
    }
}
