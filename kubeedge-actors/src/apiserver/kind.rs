//! What the server knows of one kind: a row of the table in `kinds`.

use serde_json::Value;

use super::status::FieldError;

/// A resource type the server serves. The generic code (storage, watch, HTTP) reads only this.
pub struct Kind {
    /// API group, empty for core.
    pub group: &'static str,
    /// API version, e.g. `v1`.
    pub version: &'static str,
    /// Kind, e.g. `Pod`.
    pub kind: &'static str,
    /// Plural resource name, e.g. `pods`.
    pub plural: &'static str,
    /// Singular name, e.g. `pod`.
    pub singular: &'static str,
    /// Short names, e.g. `po`.
    pub short_names: &'static [&'static str],
    /// Categories, e.g. `all`.
    pub categories: &'static [&'static str],
    /// Whether objects live in namespaces.
    pub namespaced: bool,
    /// Whether `/status` is served, and the main resource then ignores changes of `status` (and the reverse).
    pub status_subresource: bool,
    /// Whether `/scale` is served.
    pub scale_subresource: bool,
    /// Whether `metadata.generation` is kept (1 at creation, +1 with each change of `spec`).
    pub has_generation: bool,
    /// The kind whose objects these are, for one that shows stored objects in another form; `None` is one of its own.
    pub stored_as: Option<StoredAs>,
    /// Turns the wire form into the stored form: wrong types are an error naming the field, fields that no schema knows
    /// are removed and returned as paths (`spec.foo`), duplicates of map keys too.
    pub decode: fn(Value) -> Result<Decoded, DecodeError>,
    /// Sets defaults in place, on create and update.
    pub default: fn(&mut Value),
    /// What is wrong with a new object (metadata is checked by the generic code).
    pub validate_create: fn(&Value) -> Vec<FieldError>,
    /// What is wrong with changing `old` (second) into `new` (first).
    pub validate_update: fn(&Value, &Value) -> Vec<FieldError>,
    /// What is wrong with a new status.
    pub validate_status: fn(&Value, &Value) -> Vec<FieldError>,
    /// Field selectors beside `metadata.name` and `metadata.namespace`, with how to read each.
    pub selectable: &'static [Selectable],
    /// Columns of `kubectl get`, without `Name`'s metadata: name, type, format, priority, description.
    pub columns: &'static [Column],
    /// One object's cells, in the order of `columns`; `now` is seconds since 1970.
    pub cells: fn(&Value, i64) -> Vec<Value>,
}

/// How the objects of a kind are kept: as those of another kind, under the same namespace and name.
///
/// The two functions turn one form into the other, without `kind` and `apiVersion`, and lose nothing that both can say.
#[derive(Clone, Copy)]
pub struct StoredAs {
    /// The kind that is stored. Its selectable values begin with those of this kind, in their order.
    pub kind: &'static Kind,
    /// From the served form to the stored one.
    pub to_stored: fn(Value) -> Value,
    /// From the stored form to the served one.
    pub from_stored: fn(Value) -> Value,
}

/// A field selector's name and how to read the field.
pub type Selectable = (&'static str, fn(&Value) -> String);

/// One column of a table.
pub struct Column {
    /// Header.
    pub name: &'static str,
    /// OpenAPI type.
    pub type_: &'static str,
    /// OpenAPI format, `name` for the first column.
    pub format: &'static str,
    /// 0 always shown, 1 with `-o wide`.
    pub priority: u8,
    /// A short text of our own.
    pub description: &'static str,
}

/// What `decode` gives.
pub struct Decoded {
    /// The object without what no schema knows.
    pub object: Value,
    /// Paths of removed fields.
    pub unknown_fields: Vec<String>,
}

/// A value of a wrong type.
#[derive(Clone, Debug, PartialEq)]
pub struct DecodeError {
    /// What a Go decoder would say, e.g. `json: cannot unmarshal string into Go struct field ...`.
    pub message: String,
}
