//! Bodies in Kubernetes' protobuf, turned into JSON.
//!
//! kubectl sends what it makes itself (`create namespace`, `create token`, `drain`, `auth can-i`) as protobuf and does
//! not try JSON after a refusal. The messages are few and small, so their fields stand here as tables; every answer is
//! JSON, which clients take as well. Field numbers: `generated.proto` of `k8s.io/api` and `k8s.io/apimachinery`.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::{Buf, Bytes};
use prost::encoding::{WireType, decode_key, decode_varint};
use serde_json::{Map, Value, json};

use super::clock;
use super::status::Status;

mod apps;

/// The media type.
pub(super) const MEDIA: &str = "application/vnd.kubernetes.protobuf";
/// The first bytes of every such body.
const MAGIC: &[u8] = b"k8s\0";

/// What stands in a field.
#[derive(Clone, Copy)]
enum Shape {
    Text,
    /// An integer that is always written: 0 means absent.
    Int,
    /// An integer that is written only when it is set.
    OptionalInt,
    Bool,
    /// Whole seconds.
    Time,
    /// Microseconds.
    MicroTime,
    Message(&'static [Field]),
    /// Text by text.
    Texts,
    /// Bytes by text, base64 in JSON.
    Blobs,
}

/// One field: number, JSON name, shape, whether it repeats.
struct Field(u32, &'static str, Shape, bool);

use Shape::{Blobs, Bool, Int, Message, MicroTime, OptionalInt, Text, Texts, Time};

const OWNER: &[Field] = &[
    Field(5, "apiVersion", Text, false),
    Field(1, "kind", Text, false),
    Field(3, "name", Text, false),
    Field(4, "uid", Text, false),
    Field(6, "controller", Bool, false),
    Field(7, "blockOwnerDeletion", Bool, false),
];
const META: Field = Field(
    1,
    "metadata",
    Message(&[
        Field(1, "name", Text, false),
        Field(2, "generateName", Text, false),
        Field(3, "namespace", Text, false),
        Field(5, "uid", Text, false),
        Field(6, "resourceVersion", Text, false),
        Field(7, "generation", Int, false),
        Field(8, "creationTimestamp", Time, false),
        Field(9, "deletionTimestamp", Time, false),
        Field(10, "deletionGracePeriodSeconds", OptionalInt, false),
        Field(11, "labels", Texts, false),
        Field(12, "annotations", Texts, false),
        Field(13, "ownerReferences", Message(OWNER), true),
        Field(14, "finalizers", Text, true),
    ]),
    false,
);
const REFERENCE: &[Field] = &[
    Field(1, "kind", Text, false),
    Field(2, "namespace", Text, false),
    Field(3, "name", Text, false),
    Field(4, "uid", Text, false),
    Field(5, "apiVersion", Text, false),
    Field(6, "resourceVersion", Text, false),
    Field(7, "fieldPath", Text, false),
];
const DELETE_OPTIONS: &[Field] = &[
    Field(1, "gracePeriodSeconds", OptionalInt, false),
    Field(
        2,
        "preconditions",
        Message(&[Field(1, "uid", Text, false), Field(2, "resourceVersion", Text, false)]),
        false,
    ),
    Field(3, "orphanDependents", Bool, false),
    Field(4, "propagationPolicy", Text, false),
    Field(5, "dryRun", Text, true),
];
const RESOURCE_ATTRIBUTES: &[Field] = &[
    Field(1, "namespace", Text, false),
    Field(2, "verb", Text, false),
    Field(3, "group", Text, false),
    Field(4, "version", Text, false),
    Field(5, "resource", Text, false),
    Field(6, "subresource", Text, false),
    Field(7, "name", Text, false),
];
const NON_RESOURCE_ATTRIBUTES: &[Field] = &[Field(1, "path", Text, false), Field(2, "verb", Text, false)];
const BOUND: &[Field] = &[
    Field(1, "kind", Text, false),
    Field(2, "apiVersion", Text, false),
    Field(3, "name", Text, false),
    Field(4, "uid", Text, false),
];

/// The kinds that are taken, with their fields.
const KINDS: &[(&str, &str, &[Field])] = &[
    ("v1", "DeleteOptions", DELETE_OPTIONS),
    ("meta.k8s.io/v1", "DeleteOptions", DELETE_OPTIONS),
    ("v1", "Namespace", &[META, Field(2, "spec", Message(&[Field(1, "finalizers", Text, true)]), false)]),
    (
        "v1",
        "ConfigMap",
        &[
            META,
            Field(2, "data", Texts, false),
            Field(3, "binaryData", Blobs, false),
            Field(4, "immutable", Bool, false),
        ],
    ),
    (
        "v1",
        "Secret",
        &[
            META,
            Field(2, "data", Blobs, false),
            Field(3, "type", Text, false),
            Field(4, "stringData", Texts, false),
            Field(5, "immutable", Bool, false),
        ],
    ),
    (
        "v1",
        "ServiceAccount",
        &[
            META,
            Field(2, "secrets", Message(REFERENCE), true),
            Field(3, "imagePullSecrets", Message(&[Field(1, "name", Text, false)]), true),
            Field(4, "automountServiceAccountToken", Bool, false),
        ],
    ),
    ("v1", "Binding", &[META, Field(2, "target", Message(REFERENCE), false)]),
    ("policy/v1", "Eviction", &[META, Field(2, "deleteOptions", Message(DELETE_OPTIONS), false)]),
    (
        "authentication.k8s.io/v1",
        "TokenRequest",
        &[
            META,
            Field(
                2,
                "spec",
                Message(&[
                    Field(1, "audiences", Text, true),
                    Field(4, "expirationSeconds", OptionalInt, false),
                    Field(3, "boundObjectRef", Message(BOUND), false),
                ]),
                false,
            ),
        ],
    ),
    ("authentication.k8s.io/v1", "SelfSubjectReview", &[META]),
    (
        "authentication.k8s.io/v1",
        "TokenReview",
        &[META, Field(2, "spec", Message(&[Field(1, "token", Text, false), Field(2, "audiences", Text, true)]), false)],
    ),
    (
        "authorization.k8s.io/v1",
        "SelfSubjectRulesReview",
        &[META, Field(2, "spec", Message(&[Field(1, "namespace", Text, false)]), false)],
    ),
    (
        "authorization.k8s.io/v1",
        "SelfSubjectAccessReview",
        &[
            META,
            Field(
                2,
                "spec",
                Message(&[
                    Field(1, "resourceAttributes", Message(RESOURCE_ATTRIBUTES), false),
                    Field(2, "nonResourceAttributes", Message(NON_RESOURCE_ATTRIBUTES), false),
                ]),
                false,
            ),
        ],
    ),
    (
        "coordination.k8s.io/v1",
        "Lease",
        &[
            META,
            Field(
                2,
                "spec",
                Message(&[
                    Field(1, "holderIdentity", Text, false),
                    Field(2, "leaseDurationSeconds", OptionalInt, false),
                    Field(3, "acquireTime", MicroTime, false),
                    Field(4, "renewTime", MicroTime, false),
                    Field(5, "leaseTransitions", OptionalInt, false),
                ]),
                false,
            ),
        ],
    ),
    ("apps/v1", "Deployment", apps::DEPLOYMENT),
];

/// Whether a body of a kind may hold nothing but what its table names.
fn is_strict(kind: &str) -> bool {
    kind == "Deployment"
}

/// Turns a body into JSON.
pub(super) fn to_json(body: &[u8]) -> Result<Bytes, Status> {
    let refuse = |why: &str| Status::bad_request(format!("cannot read the protobuf body: {why}"));
    let rest = body.strip_prefix(MAGIC).ok_or_else(|| refuse("it does not begin with \"k8s\" and a zero byte"))?;
    let type_meta =
        Field(1, "typeMeta", Message(&[Field(1, "apiVersion", Text, false), Field(2, "kind", Text, false)]), false);
    let (head, raw) = envelope(rest, &type_meta).map_err(|error| refuse(&error.to_string()))?;
    let (version, kind) = (&head["typeMeta"]["apiVersion"], &head["typeMeta"]["kind"]);
    let known = KINDS.iter().find(|(v, k, _)| version == v && kind == k);
    let Some((version, kind, fields)) = known else {
        return Err(Status {
            details: None,
            ..Status::unsupported_media_type(format!(
                "this server does not read {kind} of {version} as protobuf: send application/json"
            ))
        });
    };
    let mut object = message(raw, fields, is_strict(kind)).map_err(|error| match error {
        Malformed::Unknown(_) => Status {
            details: None,
            ..Status::unsupported_media_type(format!("the protobuf body of {kind}: {error}: send application/json"))
        },
        error => refuse(&error.to_string()),
    })?;
    object.insert("apiVersion".into(), (*version).into());
    object.insert("kind".into(), (*kind).into());
    Ok(Value::Object(object).to_string().into())
}

/// The wire holds something else than the tables say.
#[derive(Debug, thiserror::Error)]
enum Malformed {
    #[error("{0}")]
    Wire(#[from] prost::DecodeError),
    #[error("a field ends after the body")]
    Short,
    #[error("field {0} has another wire type than it should")]
    Type(&'static str),
    #[error("field {0} is not UTF-8")]
    Text(&'static str),
    #[error("this server does not read field number {0}")]
    Unknown(u32),
}

/// Type and raw object of the envelope `runtime.Unknown`.
fn envelope<'a>(mut body: &'a [u8], type_meta: &Field) -> Result<(Value, &'a [u8]), Malformed> {
    let (mut head, mut raw): (Map<String, Value>, &[u8]) = (Map::new(), &[]);
    while body.has_remaining() {
        let (number, wire) = decode_key(&mut body)?;
        match (number, wire) {
            (1, WireType::LengthDelimited) => {
                let bytes = delimited(&mut body)?;
                head.insert(type_meta.1.into(), single(type_meta, bytes, false)?);
            }
            (2, WireType::LengthDelimited) => raw = delimited(&mut body)?,
            _ => {
                skip(wire, &mut body)?;
            }
        }
    }
    Ok((Value::Object(head), raw))
}

fn delimited<'a>(body: &mut &'a [u8]) -> Result<&'a [u8], Malformed> {
    let length = usize::try_from(decode_varint(body)?).map_err(|_| Malformed::Short)?;
    let (bytes, rest) = body.split_at_checked(length).ok_or(Malformed::Short)?;
    *body = rest;
    Ok(bytes)
}

/// Passes over a field; says whether it held something.
fn skip(wire: WireType, body: &mut &[u8]) -> Result<bool, Malformed> {
    let length = match wire {
        WireType::Varint => return Ok(decode_varint(body)? != 0),
        WireType::LengthDelimited => return Ok(holds_something(delimited(body)?)),
        WireType::SixtyFourBit => 8,
        WireType::ThirtyTwoBit => 4,
        // Groups are not used by Kubernetes.
        WireType::StartGroup | WireType::EndGroup => return Err(Malformed::Short),
    };
    let (bytes, rest) = body.split_at_checked(length).ok_or(Malformed::Short)?;
    *body = rest;
    Ok(bytes.iter().any(|byte| *byte != 0))
}

/// Whether a field of unknown meaning says anything: Go writes the fields of an empty message that are not pointers.
fn holds_something(mut bytes: &[u8]) -> bool {
    while bytes.has_remaining() {
        match decode_key(&mut bytes) {
            Ok((_, WireType::Varint)) if decode_varint(&mut bytes).is_ok_and(|number| number == 0) => {}
            Ok((_, WireType::LengthDelimited)) if delimited(&mut bytes).is_ok_and(<[u8]>::is_empty) => {}
            _ => return true,
        }
    }
    false
}

/// The tables are of fixed depth, so this is too.
fn message(mut body: &[u8], fields: &'static [Field], strict: bool) -> Result<Map<String, Value>, Malformed> {
    let mut object = Map::new();
    while body.has_remaining() {
        let (number, wire) = decode_key(&mut body)?;
        let Some(field) = fields.iter().find(|field| field.0 == number) else {
            if skip(wire, &mut body)? && strict {
                return Err(Malformed::Unknown(number));
            }
            continue;
        };
        let Field(_, name, shape, repeated) = field;
        let value = match (shape, wire) {
            (Int | OptionalInt, WireType::Varint) => {
                // Negative numbers are written as their two's complement.
                let number = decode_varint(&mut body)?.cast_signed();
                if matches!(shape, Int) && number == 0 { Value::Null } else { number.into() }
            }
            (Bool, WireType::Varint) => (decode_varint(&mut body)? != 0).into(),
            (Texts | Blobs, WireType::LengthDelimited) => {
                let (key, value) = entry(delimited(&mut body)?, name, matches!(shape, Blobs))?;
                object.entry(*name).or_insert_with(|| json!({}))[key.as_str()] = value;
                continue;
            }
            (Int | OptionalInt | Bool, _) | (_, WireType::Varint) => return Err(Malformed::Type(name)),
            (_, WireType::LengthDelimited) => single(field, delimited(&mut body)?, strict)?,
            _ => return Err(Malformed::Type(name)),
        };
        if *repeated {
            if let Some(list) = object.entry(*name).or_insert_with(|| json!([])).as_array_mut() {
                list.push(value);
            }
        } else if !value.is_null() {
            object.insert((*name).into(), value);
        }
    }
    Ok(object)
}

fn single(field: &Field, bytes: &[u8], strict: bool) -> Result<Value, Malformed> {
    Ok(match &field.2 {
        // Go writes empty strings too: they mean absent, except in a list.
        Text if bytes.is_empty() && !field.3 => Value::Null,
        Text => text(bytes, field.1)?.into(),
        Message(fields) => Value::Object(message(bytes, fields, strict)?),
        Time | MicroTime => time(bytes, matches!(field.2, MicroTime))?,
        _ => return Err(Malformed::Type(field.1)),
    })
}

fn text(bytes: &[u8], name: &'static str) -> Result<String, Malformed> {
    String::from_utf8(bytes.to_vec()).map_err(|_| Malformed::Text(name))
}

fn entry(bytes: &[u8], name: &'static str, blob: bool) -> Result<(String, Value), Malformed> {
    let (mut rest, mut key, mut value): (&[u8], &[u8], &[u8]) = (bytes, &[], &[]);
    while rest.has_remaining() {
        match decode_key(&mut rest)? {
            (1, WireType::LengthDelimited) => key = delimited(&mut rest)?,
            (2, WireType::LengthDelimited) => value = delimited(&mut rest)?,
            (_, wire) => {
                skip(wire, &mut rest)?;
            }
        }
    }
    let value = if blob { STANDARD.encode(value) } else { text(value, name)? };
    Ok((text(key, name)?, value.into()))
}

/// Seconds and nanoseconds; the empty message is Go's zero time, which JSON leaves out.
fn time(bytes: &[u8], micro: bool) -> Result<Value, Malformed> {
    let (mut rest, mut seconds, mut nanos) = (bytes, None, 0);
    while rest.has_remaining() {
        match decode_key(&mut rest)? {
            (1, WireType::Varint) => seconds = Some(decode_varint(&mut rest)?.cast_signed()),
            (2, WireType::Varint) => nanos = decode_varint(&mut rest)?,
            (_, wire) => {
                skip(wire, &mut rest)?;
            }
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
    fn a_deployment_keeps_what_it_says_or_is_refused() {
        let container = [field(1, b"c"), field(2, b"image"), field(13, b"")].concat();
        let pod = |more: &[u8]| [&field(2, &container)[..], &field(3, b""), more].concat();
        let spec = |more: &[u8]| [vec![1 << 3, 2], field(3, &field(2, &pod(more))), vec![5 << 3, 0]].concat();
        let read = |more: &[u8]| {
            let meta = field(1, &field(1, b"web"));
            to_json(&body("apps/v1", "Deployment", &[meta, field(2, &spec(more)), field(3, &[1 << 3, 0])].concat()))
        };
        let json: Value = serde_json::from_slice(&read(b"").unwrap()).unwrap();
        assert_eq!(
            json["spec"],
            json!({"replicas": 2, "template": {"spec": {"containers": [{"name": "c", "image": "image"}]}}})
        );
        // A volume (number 1), which the table does not have.
        let refused = read(&field(1, &field(1, b"data"))).unwrap_err();
        assert_eq!(refused.code, 415, "{}", refused.message);
        assert!(read(&field(1, b"")).is_ok());
    }

    #[test]
    fn a_kind_without_a_table_is_refused_by_name() {
        let refused = to_json(&body("v1", "Pod", b"")).unwrap_err();
        assert_eq!((refused.code, refused.reason), (415, "UnsupportedMediaType"));
        assert!(refused.message.contains("\"Pod\""));
        assert_eq!(to_json(b"{}").unwrap_err().code, 400);
    }

    proptest! {
        #[test]
        fn no_bytes_panic(raw: Vec<u8>) {
            let type_meta = [field(1, b"v1"), field(2, b"Secret")].concat();
            let mut bytes = [MAGIC.to_vec(), field(1, &type_meta)].concat();
            bytes.push(2 << 3 | 2);
            bytes.push(u8::try_from(raw.len().min(127)).unwrap());
            bytes.extend(raw.iter().take(127));
            let _ = to_json(&bytes);
            let _ = to_json(&[MAGIC, &raw].concat());
        }
    }
}
