//! `metav1.Status`: what an API server answers when something is refused.

use serde_json::{Value, json};

use super::resource::Resource;

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
    /// The type found (as it is printed) and why it cannot be.
    TypeInvalid(Value, String),
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

impl FieldCause {
    /// Kubernetes' reason of the cause, e.g. `FieldValueRequired`.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Required(_) => "FieldValueRequired",
            Self::Invalid(..) => "FieldValueInvalid",
            Self::TypeInvalid(..) => "FieldValueTypeInvalid",
            Self::NotSupported(..) => "FieldValueNotSupported",
            Self::Duplicate(_) => "FieldValueDuplicate",
            Self::Forbidden(_) => "FieldValueForbidden",
            Self::NotFound(_) => "FieldValueNotFound",
            Self::TooLong(_) => "FieldValueTooLong",
            Self::TooMany(..) => "FieldValueTooMany",
        }
    }

    /// The sentence, without the field.
    pub fn message(&self) -> String {
        match self {
            Self::Required(detail) if detail.is_empty() => "Required value".into(),
            Self::Required(detail) => format!("Required value: {detail}"),
            Self::Invalid(value, detail) if detail.is_empty() => format!("Invalid value: {value}"),
            Self::Invalid(value, detail) | Self::TypeInvalid(value, detail) => {
                format!("Invalid value: {value}: {detail}")
            }
            Self::NotSupported(value, supported) => {
                let list: Vec<String> = supported.iter().map(|one| Value::from(one.as_str()).to_string()).collect();
                format!("Unsupported value: {value}: supported values: {}", list.join(", "))
            }
            Self::Duplicate(value) => format!("Duplicate value: {value}"),
            Self::Forbidden(detail) => format!("Forbidden: {detail}"),
            Self::NotFound(value) => format!("Not found: {value}"),
            Self::TooLong(limit) => format!("Too long: may not be more than {limit} bytes"),
            Self::TooMany(actual, limit) => format!("Too many: {actual}: must have at most {limit} items"),
        }
    }
}

impl std::fmt::Display for FieldError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.field, self.cause.message())
    }
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}: {}", self.code, self.reason, self.message)
    }
}

impl std::error::Error for Status {}

/// The one detail that goes out in `metadata`.
const CONTINUE: &str = "continue";

/// `pods`, or `leases.coordination.k8s.io`: how messages name a resource or a kind.
fn qualified(word: &str, group: &str) -> String {
    if group.is_empty() { word.to_owned() } else { format!("{word}.{group}") }
}

fn details(name: &str, group: &str, kind: &str) -> Value {
    let mut details = serde_json::Map::new();
    for (key, value) in [("name", name), ("group", group), ("kind", kind)] {
        if !value.is_empty() {
            details.insert(key.into(), value.into());
        }
    }
    Value::Object(details)
}

impl Status {
    /// An answer with no details.
    pub fn new(code: u16, reason: &'static str, message: impl Into<String>) -> Self {
        Self { code, reason, message: message.into(), details: None }
    }

    /// 404: no object of that name.
    pub fn not_found(kind: &Resource, name: &str) -> Self {
        let message = format!("{} \"{name}\" not found", qualified(kind.plural, kind.group));
        Self { details: Some(details(name, kind.group, kind.plural)), ..Self::new(404, "NotFound", message) }
    }

    /// 404: the path names nothing that is served.
    pub fn no_such_resource() -> Self {
        let message = "the server could not find the requested resource";
        Self { details: Some(json!({})), ..Self::new(404, "NotFound", message) }
    }

    /// 501: a part of a resource that a real API server has and this one does not.
    pub fn not_implemented(kind: &Resource, subresource: &str) -> Self {
        let what = format!("{}/{subresource}", kind.plural);
        let message = format!("this API server does not serve {what}: reach the pod or the node itself");
        Self { details: Some(details("", kind.group, &what)), ..Self::new(501, "NotImplemented", message) }
    }

    /// 409: the name is taken.
    pub fn already_exists(kind: &Resource, name: &str) -> Self {
        let message = format!("{} \"{name}\" already exists", qualified(kind.plural, kind.group));
        Self { details: Some(details(name, kind.group, kind.plural)), ..Self::new(409, "AlreadyExists", message) }
    }

    /// 409 naming the resource as the path does (`configmaps`, `pods/binding`).
    pub fn conflict(group: &str, resource: &str, name: &str, why: &str) -> Self {
        let message = format!("Operation cannot be fulfilled on {} \"{name}\": {why}", qualified(resource, group));
        Self { details: Some(details(name, group, resource)), ..Self::new(409, "Conflict", message) }
    }

    /// 409: the resourceVersion sent is not the object's.
    pub fn modified(kind: &Resource, name: &str) -> Self {
        let why = "the object has been modified; please apply your changes to the latest version and try again";
        Self::conflict(kind.group, kind.plural, name, why)
    }

    /// 422: fields of an object are wrong. The same error twice stands twice in the causes, once in the message.
    pub fn invalid(kind: &Resource, name: &str, errors: Vec<FieldError>) -> Self {
        Self::invalid_as(kind.group, kind.kind, name, errors)
    }

    /// 422 for something that is no stored kind, e.g. `ListOptions` of `meta.k8s.io`, or nothing at all.
    pub fn invalid_as(group: &str, kind: &str, name: &str, errors: Vec<FieldError>) -> Self {
        let mut sentences: Vec<String> = Vec::new();
        for error in &errors {
            let sentence = error.to_string();
            if !sentences.contains(&sentence) {
                sentences.push(sentence);
            }
        }
        let all = if sentences.len() == 1 { sentences.remove(0) } else { format!("[{}]", sentences.join(", ")) };
        let mut details = details(name, group, kind);
        details["causes"] = errors
            .iter()
            .map(|e| json!({"reason": e.cause.reason(), "message": e.cause.message(), "field": e.field}))
            .collect();
        let message = format!("{} \"{name}\" is invalid: {all}", qualified(kind, group));
        Self { details: Some(details), ..Self::new(422, "Invalid", message) }
    }

    /// 422: a patch that cannot be applied to this object.
    pub fn patch_rejected() -> Self {
        let message = "the server rejected our request due to an error in our request";
        Self { details: Some(json!({})), ..Self::new(422, "Invalid", message) }
    }

    /// 400: the request cannot be understood.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, "BadRequest", message)
    }

    /// 401: no credentials, or none that are known.
    pub fn unauthorized() -> Self {
        Self::new(401, "Unauthorized", "Unauthorized")
    }

    /// 403: known, and not allowed.
    pub fn forbidden(kind: &Resource, name: &str, why: &str) -> Self {
        let what = qualified(kind.plural, kind.group);
        let message = if name.is_empty() {
            format!("{what} is forbidden: {why}")
        } else {
            format!("{what} \"{name}\" is forbidden: {why}")
        };
        Self { details: Some(details(name, kind.group, kind.plural)), ..Self::new(403, "Forbidden", message) }
    }

    /// 410: a resourceVersion or continue token older than what is kept.
    pub fn expired(message: impl Into<String>) -> Self {
        Self::new(410, "Expired", message)
    }

    /// 410 for a page, with the token to go on with, although no longer consistently: `metadata.continue`.
    pub fn expired_page(message: impl Into<String>, token: &str) -> Self {
        Self { details: Some(json!({CONTINUE: token})), ..Self::expired(message) }
    }

    /// 504: a resourceVersion that is still to come.
    pub fn resource_version_too_large(asked: u64, current: u64) -> Self {
        let message = format!("Timeout: Too large resource version: {asked}, current: {current}");
        let details = json!({
            "causes": [{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}],
            "retryAfterSeconds": 1,
        });
        Self { details: Some(details), ..Self::new(504, "Timeout", message) }
    }

    /// 415: a body of a type that this path does not take.
    pub fn unsupported_media_type(message: impl Into<String>) -> Self {
        Self { details: Some(json!({})), ..Self::new(415, "UnsupportedMediaType", message) }
    }

    /// 406: none of the answers the client takes can be given.
    pub fn not_acceptable(available: &str) -> Self {
        let message = format!("406: Not Acceptable\n\nAvailable representations: {available}");
        Self { details: Some(json!({})), ..Self::new(406, "NotAcceptable", message) }
    }

    /// 405: the path is served, not with this method.
    pub fn method_not_allowed() -> Self {
        let message = "the server does not allow this method on the requested resource";
        Self { details: Some(json!({})), ..Self::new(405, "MethodNotAllowed", message) }
    }

    /// 413: a body above `limit` bytes.
    pub fn too_large(limit: usize) -> Self {
        Self::new(413, "RequestEntityTooLarge", format!("Request entity too large: limit is {limit}"))
    }

    /// 429: a bound of the server is reached; `after` in seconds.
    pub fn too_many(message: impl Into<String>, after: u32) -> Self {
        Self { details: Some(json!({"retryAfterSeconds": after})), ..Self::new(429, "TooManyRequests", message) }
    }

    /// 500: the server could not do its part.
    pub fn internal(message: impl std::fmt::Display) -> Self {
        let details = json!({"causes": [{"message": message.to_string()}]});
        let message = format!("Internal error occurred: {message}");
        Self { details: Some(details), ..Self::new(500, "InternalError", message) }
    }

    /// 507: the server's disk takes nothing more; it does again by itself when it can. A real API server answers 500 when
    /// etcd has no space; this one can be told from a fault.
    pub fn insufficient_storage(message: impl std::fmt::Display) -> Self {
        Self::new(507, "InsufficientStorage", message.to_string())
    }

    /// 503: the server is stopping.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(503, "ServiceUnavailable", message)
    }

    /// Seconds after which a retry makes sense, when the answer says so.
    pub fn retry_after(&self) -> Option<u64> {
        self.details.as_ref()?.get("retryAfterSeconds")?.as_u64()
    }

    /// The JSON body.
    pub fn body(&self) -> Value {
        let mut body = json!({
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
            "code": self.code,
        });
        if !self.reason.is_empty() {
            body["reason"] = self.reason.into();
        }
        if let Some(details) = &self.details {
            match details.get(CONTINUE) {
                Some(token) => body["metadata"][CONTINUE] = token.clone(),
                None => body["details"] = details.clone(),
            }
        }
        body
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_error_stands_plain_several_in_brackets_and_twins_once() {
        let one = FieldError::new("spec.containers", FieldCause::Required(String::new()));
        let two = FieldError::new("spec.restartPolicy", FieldCause::NotSupported("x".into(), vec!["Always".into()]));
        let status = Status::invalid_as("", "Pod", "bad", vec![one.clone()]);
        assert_eq!(status.message, "Pod \"bad\" is invalid: spec.containers: Required value");
        let status = Status::invalid_as("", "Pod", "bad", vec![one.clone(), two, one]);
        assert_eq!(
            status.message,
            "Pod \"bad\" is invalid: [spec.containers: Required value, \
             spec.restartPolicy: Unsupported value: \"x\": supported values: \"Always\"]"
        );
        let causes = status.details.as_ref().and_then(|d| d["causes"].as_array()).map(Vec::len);
        assert_eq!(causes, Some(3));
    }
}
