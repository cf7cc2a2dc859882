//! What the server knows of one kind: a row of the table in `kinds`.

use serde_json::Value;

use super::status::FieldError;
pub use crate::kubeapi::resource::{Column, Resource, StoredAs};

/// A resource type the server serves. The generic code (storage, watch, HTTP) reads only this.
pub struct Kind {
    /// Its names, columns and selectable fields.
    pub resource: Resource,
    /// Whether `/scale` is served.
    pub scale_subresource: bool,
    /// Whether `metadata.generation` is kept (1 at creation, +1 with each change of `spec`).
    pub has_generation: bool,
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
}

impl std::ops::Deref for Kind {
    type Target = Resource;

    fn deref(&self) -> &Resource {
        &self.resource
    }
}

impl std::fmt::Debug for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.resource.fmt(f)
    }
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
