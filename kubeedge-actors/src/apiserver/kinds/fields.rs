//! Changing JSON objects and collecting what is wrong with their fields.

use std::fmt;

use serde_json::{Map, Value};

use crate::apiserver::status::{FieldCause, FieldError};
pub(crate) use crate::kubeapi::fields::{entries, flag, integer, list, text};

/// The list of a field, to change it; empty when there is none.
pub(crate) fn list_mut<'a>(object: &'a mut Value, field: &str) -> &'a mut [Value] {
    object.get_mut(field).and_then(Value::as_array_mut).map_or(&mut [], Vec::as_mut_slice)
}

/// Sets a field of an object that does not have it (or has `null`).
pub(crate) fn set_missing(object: &mut Value, field: &str, value: impl Into<Value>) {
    if let Some(fields) = object.as_object_mut()
        && fields.get(field).is_none_or(Value::is_null)
    {
        fields.insert(field.to_owned(), value.into());
    }
}

/// The object in a field, made when it is missing; `None` when something else stands there.
pub(crate) fn object_mut<'a>(object: &'a mut Value, field: &str) -> Option<&'a mut Map<String, Value>> {
    set_missing(object, field, Map::new());
    object.get_mut(field)?.as_object_mut()
}

/// The place of a field, as Kubernetes writes it: `spec.containers[0].image`.
#[derive(Clone, Debug)]
pub(crate) struct Path(String);

impl Path {
    pub(crate) fn new(root: &str) -> Self {
        Self(root.to_owned())
    }

    pub(crate) fn field(&self, name: &str) -> Self {
        if self.0.is_empty() { Self::new(name) } else { Self(format!("{}.{name}", self.0)) }
    }

    pub(crate) fn index(&self, index: usize) -> Self {
        Self(format!("{}[{index}]", self.0))
    }

    pub(crate) fn key(&self, key: &str) -> Self {
        Self(format!("{}[{key}]", self.0))
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// At most this many errors are collected for one object: an answer stays small however bad the object is.
pub(crate) const MAX_ERRORS: usize = 200;

/// The errors found so far, in Kubernetes' order.
#[derive(Debug, Default)]
pub(crate) struct Errors(Vec<FieldError>);

impl Errors {
    fn add(&mut self, path: &Path, cause: FieldCause) {
        if self.0.len() < MAX_ERRORS {
            self.0.push(FieldError::new(path.0.clone(), cause));
        }
    }

    pub(crate) fn required(&mut self, path: &Path, why: &str) {
        self.add(path, FieldCause::Required(why.to_owned()));
    }

    pub(crate) fn invalid(&mut self, path: &Path, value: impl Into<Value>, why: impl Into<String>) {
        self.add(path, FieldCause::Invalid(value.into(), why.into()));
    }

    pub(crate) fn forbidden(&mut self, path: &Path, why: impl Into<String>) {
        self.add(path, FieldCause::Forbidden(why.into()));
    }

    pub(crate) fn duplicate(&mut self, path: &Path, value: impl Into<Value>) {
        self.add(path, FieldCause::Duplicate(value.into()));
    }

    pub(crate) fn not_found(&mut self, path: &Path, value: impl Into<Value>) {
        self.add(path, FieldCause::NotFound(value.into()));
    }

    pub(crate) fn too_long(&mut self, path: &Path, limit: u64) {
        self.add(path, FieldCause::TooLong(limit));
    }

    /// Refuses a list with more than `limit` items.
    pub(crate) fn at_most(&mut self, path: &Path, items: usize, limit: usize) {
        if items > limit {
            self.add(path, FieldCause::TooMany(items as u64, limit as u64));
        }
    }

    /// Refuses a value that is none of `supported`.
    pub(crate) fn one_of(&mut self, path: &Path, value: &str, supported: &[&str]) {
        if !supported.contains(&value) {
            let supported = supported.iter().map(|s| (*s).to_owned()).collect();
            self.add(path, FieldCause::NotSupported(value.into(), supported));
        }
    }

    /// Takes each complaint of a format check about `value`.
    pub(crate) fn format(&mut self, path: &Path, value: &str, complaints: Vec<String>) {
        for why in complaints {
            self.invalid(path, value, why);
        }
    }

    /// Refuses a value that differs from the one stored.
    pub(crate) fn immutable(&mut self, path: &Path, new: Option<&Value>, old: Option<&Value>) {
        if new != old {
            self.invalid(path, new.cloned().unwrap_or_default(), IMMUTABLE);
        }
    }

    pub(crate) fn done(self) -> Vec<FieldError> {
        self.0
    }
}

/// What is said of a changed field that may not change.
pub(crate) const IMMUTABLE: &str = "field is immutable";

/// No objection: for kinds that check nothing in some respect.
pub(crate) fn nothing(_new: &Value, _old: &Value) -> Vec<FieldError> {
    Vec::new()
}
