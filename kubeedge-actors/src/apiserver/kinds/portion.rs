//! Parts of an object that change only by a subresource of their own.

use serde_json::Value;

use crate::apiserver::status::FieldError;

/// A subresource that is a part of its object.
pub(crate) struct Portion {
    /// Its name in the path.
    pub(crate) name: &'static str,
    /// The object of old, with this part of what was sent.
    pub(crate) take: fn(&Value, &Value) -> Value,
    /// What is wrong with changing the second into the first.
    pub(crate) validate: fn(&Value, &Value) -> Vec<FieldError>,
}

impl PartialEq for Portion {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Eq for Portion {}

impl std::fmt::Debug for Portion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}
