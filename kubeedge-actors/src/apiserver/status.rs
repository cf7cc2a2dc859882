//! `metav1.Status`: what an API server answers when something is refused.

use serde_json::{Value, json};

/// An error answer. Built by the constructors below so that code, reason and message always agree.
#[derive(Clone, Debug, PartialEq)]
pub struct Status {
    /// HTTP status code.
    pub code: u16,
    /// Kubernetes' reason, e.g. `NotFound`.
    pub reason: &'static str,
    /// The sentence for a person.
    pub message: String,
    /// `details`, already in its JSON form; `None` when the answer has none.
    pub details: Option<Value>,
}

/// Why one field was refused: one entry of `details.causes`.
#[derive(Clone, Debug, PartialEq)]
pub struct FieldError {
    /// Path from the root of the object, e.g. `spec.containers[0].image`.
    pub field: String,
    /// What is wrong with it.
    pub cause: FieldCause,
}

/// The kinds of refusal that `k8s.io/apimachinery/pkg/util/validation/field` knows.
#[derive(Clone, Debug, PartialEq)]
pub enum FieldCause {
    /// Nothing there and something needed.
    Required(String),
    /// The value (as it is printed) and why it cannot be.
    Invalid(Value, String),
    /// The value and the values that are supported.
    NotSupported(Value, Vec<String>),
    /// Stands twice.
    Duplicate(Value),
    /// May not be set or changed.
    Forbidden(String),
    /// Refers to something that is not there.
    NotFound(Value),
    /// Larger than allowed: the limit in bytes or items.
    TooLong(u64),
    /// More items than allowed: how many there are and the limit.
    TooMany(u64, u64),
}

impl FieldError {
    /// A refusal of `field` because of `cause`.
    pub fn new(field: impl Into<String>, cause: FieldCause) -> Self {
        Self { field: field.into(), cause }
    }
}

impl Status {
    /// The JSON body.
    pub fn body(&self) -> Value {
        let mut body = json!({
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
            "reason": self.reason,
            "code": self.code,
        });
        if let Some(details) = &self.details {
            body["details"] = details.clone();
        }
        body
    }
}
