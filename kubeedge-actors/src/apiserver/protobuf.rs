//! Bodies in Kubernetes' protobuf, turned into JSON.
//!
//! kubectl sends what it makes itself (`create service`, `create token`, `drain`, `auth can-i`) as protobuf and does
//! not try JSON after a refusal; other clients of Go do so with every kind. Types and names are those of the schemas,
//! the numbers those of a table (`numbers`), so that every kind of Kubernetes' own that is served can come that way.
//! Answers are JSON, which clients take as well. Definitions of custom kinds and custom objects come as JSON only.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::{Buf, Bytes};
use prost::encoding::{WireType, decode_key, decode_varint};
use serde_json::{Map, Value, json};

use super::clock;
use super::kinds::decode::decode;
use super::kinds::schema::{Schemas, Struct, Type, own_name};
use super::status::Status;
use numbers::{Field, Message};
use wire::{Malformed, delimited, envelope, skip, text};

mod numbers;
mod wire;

/// The media type.
pub(super) const MEDIA: &str = "application/vnd.kubernetes.protobuf";
/// The first bytes of every such body.
const MAGIC: &[u8] = b"k8s\0";
/// Options of a deletion: they come in the group and version of what is deleted.
const DELETE_OPTIONS: (&str, &str) = ("DeleteOptions", "io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions");
/// Messages inside each other at most; those of Kubernetes' own kinds are flatter.
const MAX_DEPTH: usize = 40;

/// Turns a body into JSON.
pub(super) fn to_json(body: &[u8]) -> Result<Bytes, Status> {
    let refuse = |why: &str| Status::bad_request(format!("cannot read the protobuf body: {why}"));
    let rest = body.strip_prefix(MAGIC).ok_or_else(|| refuse("it does not begin with \"k8s\" and a zero byte"))?;
    let (version, kind, raw) = envelope(rest).map_err(|error| refuse(&error.to_string()))?;
    let definition = if kind == DELETE_OPTIONS.0 {
        DELETE_OPTIONS.1.to_owned()
    } else {
        let (group, version) = version.split_once('/').unwrap_or(("", &version));
        own_name(group, version, &kind)
    };
    let schemas = Schemas::get();
    let (Some(Type::Struct(index)), Some(message)) = (schemas.struct_type(&definition), numbers::of(&definition))
    else {
        return Err(Status {
            details: None,
            ..Status::unsupported_media_type(format!(
                "this server does not read {kind:?} of {version:?} as protobuf: send application/json"
            ))
        });
    };
    let walk = Walk { schemas };
    let object = walk.message(schemas.at(index), message, raw, 0).map_err(|error| refuse(&error.to_string()))?;
    // Go writes what is empty, too: the walk that JSON takes leaves it out.
    let mut object = decode(&definition, Value::Object(object)).map_err(|error| refuse(&error.message))?.object;
    object["apiVersion"] = version.into();
    object["kind"] = kind.into();
    Ok(object.to_string().into())
}

struct Walk {
    schemas: &'static Schemas,
}

impl Walk {
    /// A message with these numbers, whose fields have the types of `owner`.
    fn message(
        &self,
        owner: &'static Struct,
        numbers: &'static Message,
        mut body: &[u8],
        depth: usize,
    ) -> Result<Map<String, Value>, Malformed> {
        if depth > MAX_DEPTH {
            return Err(Malformed::Deep);
        }
        let mut object = Map::new();
        while body.has_remaining() {
            let (number, wire) = decode_key(&mut body)?;
            let name = match numbers::field(&owner.definition, numbers, number) {
                Some(Field::Named(name)) => name,
                Some(Field::Inline(inner)) => {
                    object.extend(self.message(owner, inner, delimited(&mut body)?, depth + 1)?);
                    continue;
                }
                None => {
                    skip(wire, &mut body)?;
                    continue;
                }
            };
            // Fields of a newer Kubernetes have a number and no type here.
            let Some(field) = owner.fields.get(name) else {
                skip(wire, &mut body)?;
                continue;
            };
            match &field.type_ {
                Type::List(item) => {
                    let list = object.entry(name).or_insert_with(|| json!([]));
                    let items = self.items(item, wire, &mut body, name, depth)?;
                    if let Some(list) = list.as_array_mut() {
                        list.extend(items);
                    }
                }
                Type::Map(item) => {
                    let (key, value) = self.entry(item, delimited(&mut body)?, name, depth)?;
                    object.entry(name).or_insert_with(|| json!({}))[key.as_str()] = value;
                }
                type_ => {
                    let value = self.value(type_, wire, &mut body, name, depth)?;
                    object.insert(name.into(), value);
                }
            }
        }
        Ok(object)
    }

    /// One item of a list, or several numbers packed.
    fn items(
        &self,
        item: &Type,
        wire: WireType,
        body: &mut &[u8],
        name: &'static str,
        depth: usize,
    ) -> Result<Vec<Value>, Malformed> {
        if !matches!((item, wire), (Type::Int32 | Type::Int64 | Type::Bool, WireType::LengthDelimited)) {
            return Ok(vec![self.value(item, wire, body, name, depth)?]);
        }
        let mut packed = delimited(body)?;
        let mut all = Vec::new();
        while packed.has_remaining() {
            all.push(self.value(item, WireType::Varint, &mut packed, name, depth)?);
        }
        Ok(all)
    }

    /// Key and value of a map.
    fn entry(
        &self,
        item: &Type,
        mut bytes: &[u8],
        name: &'static str,
        depth: usize,
    ) -> Result<(String, Value), Malformed> {
        let (mut key, mut value): (&[u8], Option<Value>) = (&[], None);
        while bytes.has_remaining() {
            match decode_key(&mut bytes)? {
                (1, WireType::LengthDelimited) => key = delimited(&mut bytes)?,
                // A list inside a map is a message of its own.
                (2, WireType::LengthDelimited) if matches!(item, Type::List(_)) => {
                    let (mut inner, mut list) = (delimited(&mut bytes)?, Vec::new());
                    while inner.has_remaining() {
                        let (number, wire) = decode_key(&mut inner)?;
                        match (number, item) {
                            (1, Type::List(item)) => list.push(self.value(item, wire, &mut inner, name, depth)?),
                            _ => skip(wire, &mut inner)?,
                        }
                    }
                    value = Some(list.into());
                }
                (2, wire) => value = Some(self.value(item, wire, &mut bytes, name, depth)?),
                (_, wire) => skip(wire, &mut bytes)?,
            }
        }
        let empty = match item {
            Type::String | Type::Bytes => "".into(),
            _ => Value::Null,
        };
        Ok((text(key, name)?, value.unwrap_or(empty)))
    }

    fn value(
        &self,
        type_: &Type,
        wire: WireType,
        body: &mut &[u8],
        name: &'static str,
        depth: usize,
    ) -> Result<Value, Malformed> {
        match (type_, wire) {
            // Negative numbers are written as their two's complement.
            (Type::Int32 | Type::Int64, WireType::Varint) => return Ok(decode_varint(body)?.cast_signed().into()),
            (Type::Bool, WireType::Varint) => return Ok((decode_varint(body)? != 0).into()),
            (Type::Float, WireType::SixtyFourBit) => {
                return Ok(body.try_get_f64_le().map_err(|_| Malformed::Short)?.into());
            }
            (Type::Int32 | Type::Int64 | Type::Bool | Type::Float, _) => return Err(Malformed::Type(name)),
            (_, WireType::LengthDelimited) => {}
            _ => return Err(Malformed::Type(name)),
        }
        let bytes = delimited(body)?;
        Ok(match type_ {
            Type::String => text(bytes, name)?.into(),
            Type::Bytes => STANDARD.encode(bytes).into(),
            Type::Struct(index) => {
                let inner = self.schemas.at(*index);
                let numbers = numbers::of(&inner.definition).ok_or(Malformed::Type(name))?;
                Value::Object(self.message(inner, numbers, bytes, depth + 1)?)
            }
            Type::Time => time(bytes, false)?,
            Type::MicroTime => time(bytes, true)?,
            Type::Quantity => text(first(bytes)?, name)?.into(),
            Type::IntOrString => int_or_string(bytes, name)?,
            Type::Any => serde_json::from_slice(first(bytes)?).map_err(|_| Malformed::Type(name))?,
            Type::List(_) | Type::Map(_) | Type::Bool | Type::Int32 | Type::Int64 | Type::Float => {
                return Err(Malformed::Type(name));
            }
        })
    }
}

/// The bytes of field 1.
fn first(mut bytes: &[u8]) -> Result<&[u8], Malformed> {
    let mut found: &[u8] = &[];
    while bytes.has_remaining() {
        match decode_key(&mut bytes)? {
            (1, WireType::LengthDelimited) => found = delimited(&mut bytes)?,
            (_, wire) => skip(wire, &mut bytes)?,
        }
    }
    Ok(found)
}

/// Field 1 says which one it is: 0 the number in field 2, 1 the text in field 3.
fn int_or_string(mut bytes: &[u8], name: &'static str) -> Result<Value, Malformed> {
    let (mut is_text, mut number, mut word) = (false, 0, String::new());
    while bytes.has_remaining() {
        match decode_key(&mut bytes)? {
            (1, WireType::Varint) => is_text = decode_varint(&mut bytes)? == 1,
            (2, WireType::Varint) => number = decode_varint(&mut bytes)?.cast_signed(),
            (3, WireType::LengthDelimited) => word = text(delimited(&mut bytes)?, name)?,
            (_, wire) => skip(wire, &mut bytes)?,
        }
    }
    Ok(if is_text { word.into() } else { number.into() })
}

/// Seconds and nanoseconds; the empty message is Go's zero time, which JSON leaves out.
fn time(bytes: &[u8], micro: bool) -> Result<Value, Malformed> {
    let (mut rest, mut seconds, mut nanos) = (bytes, None, 0);
    while rest.has_remaining() {
        match decode_key(&mut rest)? {
            (1, WireType::Varint) => seconds = Some(decode_varint(&mut rest)?.cast_signed()),
            (2, WireType::Varint) => nanos = decode_varint(&mut rest)?,
            (_, wire) => skip(wire, &mut rest)?,
        }
    }
    let Some(seconds) = seconds else { return Ok(Value::Null) };
    let whole = clock::rfc3339(seconds);
    Ok(if micro {
        format!("{}.{:06}Z", whole.trim_end_matches('Z'), (nanos / 1000) % 1_000_000).into()
    } else {
        whole.into()
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
        let mut out = vec![number << 3 | 2, u8::try_from(bytes.len()).unwrap()];
        out.extend_from_slice(bytes);
        out
    }

    fn body(version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
        let type_meta = [field(1, version.as_bytes()), field(2, kind.as_bytes())].concat();
        [MAGIC.to_vec(), field(1, &type_meta), field(2, raw), field(3, b""), field(4, b"")].concat()
    }

    #[test]
    fn a_config_map_as_kubectl_writes_it_becomes_json() {
        let labels = field(11, &[field(1, b"app"), field(2, b"x")].concat());
        let meta = [field(1, b"one"), field(2, b""), field(3, b"ns"), vec![7 << 3, 0], field(8, b""), labels].concat();
        let data = field(2, &[field(1, b"a"), field(2, b"1")].concat());
        let blob = field(3, &[field(1, b"b"), field(2, &[0, 255])].concat());
        let raw = [field(1, &meta), data, blob].concat();
        let json: Value = serde_json::from_slice(&to_json(&body("v1", "ConfigMap", &raw)).unwrap()).unwrap();
        assert_eq!(
            json,
            json!({
                "apiVersion": "v1", "kind": "ConfigMap",
                "metadata": {"name": "one", "namespace": "ns", "labels": {"app": "x"}},
                "data": {"a": "1"}, "binaryData": {"b": "AP8="},
            })
        );
    }

    #[test]
    fn a_kind_without_a_table_is_refused_by_name() {
        let refused = to_json(&body("v1", "Widget", b"")).unwrap_err();
        assert_eq!((refused.code, refused.reason), (415, "UnsupportedMediaType"));
        assert!(refused.message.contains("\"Widget\""));
        assert_eq!(to_json(b"{}").unwrap_err().code, 400);
    }

    #[test]
    fn a_service_has_ports_selectors_and_targets_of_both_kinds() {
        let number = |number: u8, value: u8| vec![number << 3, value];
        let target = |fields: &[u8]| field(4, fields);
        let port = |name: &[u8], to: &[u8]| [field(1, name), number(3, 80), target(to), number(5, 0)].concat();
        let http = port(b"http", &[number(1, 1), number(2, 0), field(3, b"web")].concat());
        let other = port(b"", &[number(1, 0), number(2, 81), field(3, b"")].concat());
        let selector = field(2, &[field(1, b"app"), field(2, b"x")].concat());
        let spec = [field(1, &http), field(1, &other), selector, field(3, b""), field(4, b"NodePort")].concat();
        let raw = [field(1, &field(1, b"s")), field(2, &spec), field(3, &field(1, b""))].concat();
        let json: Value = serde_json::from_slice(&to_json(&body("v1", "Service", &raw)).unwrap()).unwrap();
        assert_eq!(
            json["spec"],
            json!({
                "type": "NodePort", "selector": {"app": "x"},
                "ports": [{"name": "http", "port": 80, "targetPort": "web"}, {"port": 80, "targetPort": 81}],
            })
        );
    }

    #[test]
    fn fields_of_an_inlined_message_quantities_and_lists_in_maps_stand_where_json_has_them() {
        let quantity = field(2, &[field(1, b"cpu"), field(2, &field(1, b"0.5"))].concat());
        let path = field(1, &field(1, b"/srv"));
        let volume = [field(1, b"data"), field(2, &path)].concat();
        let container = [field(1, b"c"), field(2, b"i"), field(8, &field(1, &quantity[2..]))].concat();
        let raw = field(2, &[field(1, &volume), field(2, &container)].concat());
        let json: Value = serde_json::from_slice(&to_json(&body("v1", "Pod", &raw)).unwrap()).unwrap();
        assert_eq!(json["spec"]["volumes"], json!([{"name": "data", "hostPath": {"path": "/srv"}}]));
        assert_eq!(json["spec"]["containers"][0]["resources"], json!({"limits": {"cpu": "500m"}}));

        let extra = [field(1, b"scopes"), field(2, &[field(1, b"a"), field(1, b"b")].concat())].concat();
        let raw = field(2, &[field(3, b"me"), field(5, &extra)].concat());
        let review = to_json(&body("authorization.k8s.io/v1", "SubjectAccessReview", &raw)).unwrap();
        let review: Value = serde_json::from_slice(&review).unwrap();
        assert_eq!(review["spec"], json!({"user": "me", "extra": {"scopes": ["a", "b"]}}));
    }

    #[test]
    fn options_of_a_deletion_come_in_any_group() {
        let raw = [vec![1 << 3, 0], field(4, b"Background")].concat();
        for version in ["v1", "meta.k8s.io/v1", "coordination.k8s.io/v1"] {
            let options = to_json(&body(version, "DeleteOptions", &raw)).unwrap();
            let options: Value = serde_json::from_slice(&options).unwrap();
            assert_eq!(options["gracePeriodSeconds"], 0, "a set zero counts");
            assert_eq!(options["propagationPolicy"], "Background");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic(raw: Vec<u8>, kind in proptest::sample::select(vec!["Secret", "Pod", "Service"])) {
            let type_meta = [field(1, b"v1"), field(2, kind.as_bytes())].concat();
            let mut bytes = [MAGIC.to_vec(), field(1, &type_meta)].concat();
            bytes.push(2 << 3 | 2);
            bytes.push(u8::try_from(raw.len().min(127)).unwrap());
            bytes.extend(raw.iter().take(127));
            let _ = to_json(&bytes);
            let _ = to_json(&[MAGIC, &raw].concat());
        }
    }
}
