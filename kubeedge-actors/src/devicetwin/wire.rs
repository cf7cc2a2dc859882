//! The payloads of `$hw/events/...`, as applications write and read them. Pure.
//!
//! Names of fields are found whatever their case, as KubeEdge finds them. What is sent leaves absent fields out.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Map, Value};

/// What is wrong with a request, in the words that applications know.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Wrong {
    /// Not JSON, or a field of another type.
    #[error("Unmarshal update request body failed, please check the request")]
    Body,
    /// No `twin`.
    #[error("Update twin error, key:twin does not exist")]
    NoTwin,
    /// A name that no twin may have.
    #[error(
        "The key of twin must only include upper or lowercase letters, number, english, and special letter - _ . , : / \
         @ # and the length of key should be less than 128 bytes"
    )]
    Key,
    /// A value that no twin may have.
    #[error(
        "The value of twin must only include upper or lowercase letters, number, english, and special letter - _ . , : \
         / @ # and the length of value should be less than 512 bytes"
    )]
    Value,
    /// A value that is not of its twin's type.
    #[error("{0}")]
    Type(String),
    /// Nothing said of a twin that is not there.
    #[error("The request body is wrong")]
    Nothing,
    /// No such device on this node.
    #[error("Update rejected due to the device is not existed")]
    NoDevice,
    /// No such device on this node, asked for its twin.
    #[error("Device {0} not found while getting twin")]
    NoDeviceToGet(String),
    /// A state that there is not.
    #[error("the state {0:?} is not one of online, offline, ok, unknown, unhealthy")]
    State(String),
    /// More than a device can have.
    #[error("{0}")]
    TooMany(String),
    /// An attribute that no device may have.
    #[error("attribute {0}")]
    Attribute(String),
    /// A topic that names no device, or nothing that it can be asked for.
    #[error("{0}")]
    Topic(String),
    /// A change of the cloud whose versions are behind the edge's, or that names none.
    #[error("the versions are behind the edge's: its own values stand, and are told to the cloud again")]
    Conflict,
    /// The disk did not take it.
    #[error("the edge's store refused it: {0}")]
    Store(String),
}

impl Wrong {
    /// The `code` beside the reason.
    pub fn code(&self) -> u16 {
        match self {
            Wrong::NoDevice | Wrong::NoDeviceToGet(_) => 404,
            Wrong::Conflict => 409,
            Wrong::Store(_) => 500,
            _ => 400,
        }
    }
}

/// What every payload has.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Base {
    /// Echoed in answers.
    pub event_id: String,
    /// Milliseconds since 1970.
    pub timestamp: i64,
}

/// `{cloud, edge}`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Version {
    /// Changes of the cloud.
    pub cloud: i64,
    /// Changes of the edge.
    pub edge: i64,
}

/// One side of a twin.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TwinValue {
    /// Absent: not said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// When it was set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metadata: Option<ValueMetadata>,
}

/// `{timestamp}`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ValueMetadata {
    /// Milliseconds since 1970.
    #[serde(skip_serializing_if = "is_zero")]
    pub timestamp: i64,
}

/// `{type}`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TypeMetadata {
    /// Of the values.
    #[serde(rename = "type", skip_serializing_if = "String::is_empty")]
    pub type_: String,
}

/// A twin as it is sent.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct MsgTwin {
    /// What it is to be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expected: Option<TwinValue>,
    /// What it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub actual: Option<TwinValue>,
    /// Whether it may be deleted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub optional: Option<bool>,
    /// Its type.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metadata: Option<TypeMetadata>,
    /// Of `expected`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expected_version: Option<Version>,
    /// Of `actual`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub actual_version: Option<Version>,
}

/// An attribute as it is sent.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct MsgAttr {
    /// Its value.
    pub value: String,
    /// Whether it may be deleted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub optional: Option<bool>,
    /// Its type.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metadata: Option<TypeMetadata>,
}

/// A device as it is sent.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct MsgDevice {
    /// `<namespace>/<name>`.
    pub id: String,
    /// Its name.
    pub name: String,
    /// For people.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub description: String,
    /// As its mapper tells it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub state: String,
    /// When it was last seen.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub last_online: String,
    /// What applications gave it.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub attributes: BTreeMap<String, MsgAttr>,
}

fn is_zero(number: &i64) -> bool {
    *number == 0
}

/// Twins by name; `None` asks for the twin's end.
pub type Twins = BTreeMap<String, Option<MsgTwin>>;

/// A request to change twins.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TwinUpdate {
    /// Its `event_id`.
    pub event_id: String,
    /// What it asks for.
    pub twins: Twins,
}

#[derive(Deserialize)]
struct RawUpdate {
    #[serde(default)]
    event_id: String,
    #[serde(default)]
    #[expect(dead_code, reason = "its type is checked")]
    timestamp: i64,
    #[serde(default)]
    twin: Option<Twins>,
}

/// Twins that one request may name.
pub const MAX_TWINS: usize = 1024;

impl TwinUpdate {
    /// Reads a request. The error comes with what could be read of its `event_id`.
    pub fn parse(payload: &[u8]) -> Result<Self, (String, Wrong)> {
        let value = lower_case(payload).ok_or((String::new(), Wrong::Body))?;
        let event_id = value["event_id"].as_str().unwrap_or_default().to_owned();
        let raw: RawUpdate = serde_json::from_value(value).map_err(|_| (event_id.clone(), Wrong::Body))?;
        let twins = raw.twin.ok_or_else(|| (event_id.clone(), Wrong::NoTwin))?;
        match check(&twins) {
            Ok(()) => Ok(Self { event_id: raw.event_id, twins }),
            Err(wrong) => Err((event_id, wrong)),
        }
    }
}

fn check(twins: &Twins) -> Result<(), Wrong> {
    if twins.len() > MAX_TWINS {
        return Err(Wrong::TooMany(format!("{} twins in one request, expected at most {MAX_TWINS}", twins.len())));
    }
    for (name, twin) in twins {
        if !is_word(name, 128) || name.is_empty() {
            return Err(Wrong::Key);
        }
        let sides = twin.iter().flat_map(|twin| [&twin.expected, &twin.actual]).flatten();
        if sides.filter_map(|side| side.value.as_ref()).any(|value| !is_word(value, 512)) {
            return Err(Wrong::Value);
        }
    }
    Ok(())
}

/// Longest name, value and type of an attribute, bytes.
const ATTRIBUTE: [(&str, usize); 3] = [("name", 128), ("value", 1024), ("type", 64)];

/// What an application gives to a device: text without control characters, none of it too long. An attribute has a name.
pub fn check_attributes(attributes: &BTreeMap<String, Option<MsgAttr>>) -> Result<(), Wrong> {
    for (name, attribute) in attributes {
        let shown: String = name.chars().take(64).collect();
        let wrong = |text: String| Err(Wrong::Attribute(format!("{shown:?}: {text}")));
        if name.is_empty() {
            return wrong("its name is empty".to_owned());
        }
        let type_ = attribute.as_ref().and_then(|attribute| attribute.metadata.as_ref());
        let (value, type_) = (attribute.as_ref().map(|it| &it.value), type_.map(|metadata| &metadata.type_));
        for ((what, most), text) in ATTRIBUTE.into_iter().zip([Some(name), value, type_]) {
            let Some(text) = text else { continue };
            if text.len() > most {
                return wrong(format!("its {what} has {} bytes, expected at most {most}", text.len()));
            }
            if text.contains(char::is_control) {
                return wrong(format!("its {what} has control characters"));
            }
        }
    }
    Ok(())
}

/// Letters, digits and `-_.,:/@#`, no more of them than this.
pub fn is_word(text: &str, most: usize) -> bool {
    text.len() <= most && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.,:/@#".contains(&byte))
}

/// Reads an object whose field names may have any case. Only those of the protocol are made lower case: the names of
/// twins and attributes are the user's own.
pub fn lower_case(payload: &[u8]) -> Option<Value> {
    fn fields(value: Value, depth: u8) -> Value {
        let Value::Object(fields_) = value else { return value };
        let lowered = fields_.into_iter().map(|(name, value)| {
            let name = name.to_ascii_lowercase();
            let value = match (name.as_str(), value) {
                ("twin" | "attributes", Value::Object(named)) if depth == 0 => {
                    Value::Object(named.into_iter().map(|(name, value)| (name, fields(value, 1))).collect())
                }
                (_, value) => fields(value, depth + 1),
            };
            (name, value)
        });
        Value::Object(lowered.collect::<Map<_, _>>())
    }
    let value: Value = serde_json::from_slice(payload).ok()?;
    value.is_object().then(|| fields(value, 0))
}

/// Reads a payload of another kind.
pub fn parse<T: DeserializeOwned>(payload: &[u8]) -> Result<T, Wrong> {
    lower_case(payload).and_then(|value| serde_json::from_value(value).ok()).ok_or(Wrong::Body)
}

/// Whether a value is of a type, and what is said when it is not.
pub fn check_type(type_: &str, value: &str) -> Result<(), Wrong> {
    let wrong = |text: &str| Err(Wrong::Type(text.to_owned()));
    match type_ {
        "" | "string" | "deleted" => Ok(()),
        "int" | "integer" if value.parse::<i64>().is_err() => wrong("the value is not int or integer"),
        "float" if !is_float(value) => wrong("the value is not float"),
        "boolean" if !matches!(value, "true" | "false") => wrong("the bool value must be true or false"),
        "int" | "integer" | "float" | "boolean" => Ok(()),
        _ => wrong("the value type is not allowed"),
    }
}

/// A number as Go's `ParseFloat` takes it, but for hexadecimal ones.
fn is_float(value: &str) -> bool {
    value.parse::<f64>().is_ok_and(|number| number.is_finite() || !value.bytes().any(|byte| byte.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_read_whatever_the_case_of_its_fields() {
        let payload = br#"{"Event_ID": "e", "Timestamp": 5, "TWIN": {"Temp": {"Actual": {"Value": "1"}}, "x": null}}"#;
        let update = TwinUpdate::parse(payload).unwrap();
        assert_eq!(update.event_id, "e");
        assert_eq!(update.twins["Temp"].as_ref().unwrap().actual.as_ref().unwrap().value.as_deref(), Some("1"));
        assert_eq!(update.twins["x"], None);
    }

    #[test]
    fn bad_requests_are_told_apart_in_words_that_applications_know() {
        let long = "k".repeat(129);
        for (payload, wrong) in [
            ("", Wrong::Body),
            ("{", Wrong::Body),
            ("[]", Wrong::Body),
            (r#"{"twin": 5}"#, Wrong::Body),
            (r#"{"event_id": 5, "twin": {}}"#, Wrong::Body),
            (r#"{"twin": {"a": {"actual": {"value": 5}}}}"#, Wrong::Body),
            (r#"{"event_id": "e"}"#, Wrong::NoTwin),
            (r#"{"twin": {"a b": {}}}"#, Wrong::Key),
            (r#"{"twin": {"": {}}}"#, Wrong::Key),
            (&format!(r#"{{"twin": {{"{long}": {{}}}}}}"#), Wrong::Key),
            (r#"{"twin": {"ä": {}}}"#, Wrong::Key),
            (r#"{"twin": {"a": {"expected": {"value": "x y"}}}}"#, Wrong::Value),
            (&format!(r#"{{"twin": {{"a": {{"actual": {{"value": "{}"}}}}}}}}"#, "v".repeat(513)), Wrong::Value),
        ] {
            let (_, found) = TwinUpdate::parse(payload.as_bytes()).unwrap_err();
            assert_eq!(found, wrong, "{payload}");
        }
        assert!(TwinUpdate::parse(br#"{"twin": {"a": {"actual": {"value": ""}}}}"#).is_ok(), "empty is a value");
    }

    #[test]
    fn values_are_held_to_their_type() {
        for (type_, value) in
            [("", "x"), ("string", "x"), ("int", "-7"), ("integer", "7"), ("float", "1e3"), ("boolean", "true")]
        {
            assert_eq!(check_type(type_, value), Ok(()), "{type_} {value}");
        }
        for (type_, value) in [("int", "7.5"), ("int", ""), ("float", "x"), ("boolean", "True"), ("double", "1.5")] {
            assert!(check_type(type_, value).is_err(), "{type_} {value}");
        }
        assert_eq!(check_type("double", "1").unwrap_err().to_string(), "the value type is not allowed");
    }
}
