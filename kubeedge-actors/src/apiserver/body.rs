//! From the bytes of a request to an object of a kind.

use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use super::kind::Kind;
use super::object::{add_type, api_version, text};
use super::protobuf::MEDIA;
use super::request::{FieldValidation, Target};
use super::status::{FieldCause, FieldError, Status};

/// Largest request body, in bytes: that of a real API server.
pub(crate) const MAX_BODY: usize = 3 << 20;

/// What a body may be.
const TYPES: &str = "application/json";

/// A decoded object and what was left out of it.
#[derive(Debug)]
pub(crate) struct Body {
    pub(crate) object: Value,
    pub(crate) warnings: Vec<String>,
}

/// Refuses a body that is not JSON.
pub(crate) fn check_content_type(content_type: Option<&str>) -> Result<(), Status> {
    let media = content_type.unwrap_or(TYPES).split(';').next().unwrap_or_default().trim();
    if media.is_empty() || media.eq_ignore_ascii_case(TYPES) {
        return Ok(());
    }
    Err(Status {
        details: None,
        ..Status::unsupported_media_type(format!(
            "the body of the request was in an unknown format - accepted media types include: {TYPES}, {MEDIA}"
        ))
    })
}

/// Parses JSON, noting members that stand twice (`data.a`); the last one counts.
pub(crate) fn parse(bytes: &[u8]) -> Result<(Value, Vec<String>), serde_json::Error> {
    let mut duplicates = Vec::new();
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let value = Noting { path: String::new(), duplicates: &mut duplicates }.deserialize(&mut deserializer)?;
    deserializer.end()?;
    Ok((value, duplicates))
}

struct Noting<'a> {
    path: String,
    duplicates: &'a mut Vec<String>,
}

impl<'de> DeserializeSeed<'de> for Noting<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Noting<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        loop {
            let path = format!("{}[{}]", self.path, list.len());
            match items.next_element_seed(Noting { path, duplicates: &mut *self.duplicates })? {
                Some(item) => list.push(item),
                None => return Ok(Value::Array(list)),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            let path = if self.path.is_empty() { key.clone() } else { format!("{}.{key}", self.path) };
            let twice = map.contains_key(&key).then(|| path.clone());
            let value = entries.next_value_seed(Noting { path, duplicates: &mut *self.duplicates })?;
            self.duplicates.extend(twice);
            map.insert(key, value);
        }
        Ok(Value::Object(map))
    }
}

/// Decodes the body of a create or an update.
pub(crate) fn decode(target: &Target, bytes: &[u8], validation: FieldValidation) -> Result<Body, Status> {
    let kind = target.kind;
    let unrecognized = |why: String| {
        let sent: String = String::from_utf8_lossy(bytes).chars().take(1024).collect();
        Status::bad_request(format!(
            "the object provided is unrecognized (must be of type {}): couldn't get version/kind; json parse error: \
             {why} ({sent})",
            kind.kind
        ))
    };
    let (mut value, duplicates) = parse(bytes).map_err(|error| {
        unrecognized(if error.is_eof() { "unexpected end of JSON input".into() } else { error.to_string() })
    })?;
    if !value.is_object() {
        return Err(unrecognized("the body must be a JSON object".into()));
    }
    check_type(kind, &value)?;
    add_type(&mut value, kind);
    let refuse = |why: String| {
        Status::bad_request(format!(
            "{} in version \"{}\" cannot be handled as a {}: {why}",
            kind.kind, kind.version, kind.kind
        ))
    };
    let decoded = target.decode(value).map_err(|error| refuse(error.message))?;
    let mut object = decoded.object;
    add_type(&mut object, kind);
    let complaints: Vec<String> = decoded
        .unknown_fields
        .iter()
        .map(|path| format!("unknown field \"{path}\""))
        .chain(duplicates.iter().map(|path| format!("duplicate field \"{path}\"")))
        .collect();
    if validation == FieldValidation::Strict && !complaints.is_empty() {
        return Err(refuse(format!("strict decoding error: {}", complaints.join(", "))));
    }
    let warnings = if validation == FieldValidation::Warn { complaints } else { Vec::new() };
    Ok(Body { object, warnings })
}

fn check_type(kind: &Kind, value: &Value) -> Result<(), Status> {
    let (sent_kind, sent_version) = (text(value, "kind"), text(value, "apiVersion"));
    let expected = api_version(kind);
    if (sent_kind.is_empty() || sent_kind == kind.kind) && (sent_version.is_empty() || sent_version == expected) {
        return Ok(());
    }
    let sent_kind = if sent_kind.is_empty() { kind.kind } else { sent_kind };
    let sent_version = if sent_version.is_empty() { expected.as_str() } else { sent_version };
    let why = if sent_kind == kind.kind {
        format!("no kind \"{sent_kind}\" is registered for version \"{sent_version}\"")
    } else {
        let internal = kind.group.split('.').next().filter(|group| !group.is_empty()).unwrap_or("core");
        format!("converting ({sent_version}.{sent_kind}) to ({internal}.{}): unknown conversion", kind.kind)
    };
    let version = sent_version.rsplit('/').next().unwrap_or(sent_version);
    Err(Status::bad_request(format!(
        "{sent_kind} in version \"{version}\" cannot be handled as a {}: {why}",
        kind.kind
    )))
}

/// Decodes the outcome of a patch: what is wrong with it is wrong with the patch.
pub(crate) fn decode_patched(target: &Target, value: Value, validation: FieldValidation) -> Result<Body, Status> {
    let kind = target.kind;
    let patched = value.to_string();
    let refuse = |why: String| {
        let cause = FieldCause::Invalid(patched.as_str().into(), why);
        Status::invalid_as("", "", "", vec![FieldError::new("patch", cause)])
    };
    if text(&value, "kind") != kind.kind || text(&value, "apiVersion") != api_version(kind) {
        return Err(Status::bad_request(format!(
            "the patch changes the type: {} in version \"{}\" is expected",
            kind.kind,
            api_version(kind)
        )));
    }
    let decoded = target.decode(value).map_err(|error| refuse(error.message))?;
    let mut object = decoded.object;
    add_type(&mut object, kind);
    let complaints: Vec<String> =
        decoded.unknown_fields.iter().map(|path| format!("unknown field \"{path}\"")).collect();
    if validation == FieldValidation::Strict && !complaints.is_empty() {
        return Err(refuse(format!("strict decoding error: {}", complaints.join(", "))));
    }
    let warnings = if validation == FieldValidation::Warn { complaints } else { Vec::new() };
    Ok(Body { object, warnings })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_member_that_stands_twice_is_noted_with_its_path() {
        let (value, twice) = parse(br#"{"data":{"a":1,"a":2},"l":[{"x":1,"x":2}]}"#).unwrap();
        assert_eq!(value["data"]["a"], 2);
        assert_eq!(twice, ["data.a", "l[0].x"]);
        assert!(parse(b"{} x").is_err());
        assert!(parse(b"{\"kind\":").unwrap_err().is_eof());
    }

    proptest! {
        #[test]
        fn parsing_agrees_with_serde_json(text in "[\\[\\]{}\":,a0-9. -]{0,30}") {
            let ours = parse(text.as_bytes()).map(|(value, _)| value).ok();
            prop_assert_eq!(ours, serde_json::from_str::<Value>(&text).ok());
        }
    }
}
