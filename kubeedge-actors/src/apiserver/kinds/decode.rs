//! From the wire form to the stored form, by a walk along the schema.
//!
//! The walk does what a Go decoder followed by a Go encoder does to an object: wrong types are refused with Go's words,
//! fields that no schema knows are dropped and reported, `null` and empty optional values disappear, quantities and
//! times get their canonical form. Everything else stays as the user wrote it, numbers included. Field names are
//! compared with their case.

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde_json::{Map, Value};

use super::quantity::{self, Quantity};
use super::schema::{Schemas, Struct, Type};
use super::time::{self, Precision};
use super::zero;
use crate::apiserver::kind::{DecodeError, Decoded};

/// How many unknown fields are reported by name; the rest is dropped all the same. A body of a few megabytes could
/// otherwise be answered with a header of megabytes.
const REPORTED_UNKNOWN_FIELDS: usize = 100;

/// Decodes an object of the type that `definition` names.
pub(crate) fn decode(definition: &str, object: Value) -> Result<Decoded, DecodeError> {
    let schemas = Schemas::get();
    let Some(type_) = schemas.struct_type(definition) else {
        return Err(DecodeError { message: format!("no schema for {definition}") });
    };
    if !object.is_object() {
        let message =
            format!("json: cannot unmarshal {} into Go value of type {}", word(&object), type_name(schemas, &type_));
        return Err(DecodeError { message });
    }
    let mut walk = Walk { schemas, place: Vec::new(), unknown_fields: Vec::new() };
    let object = walk.value(&type_, object, None)?;
    Ok(Decoded { object, unknown_fields: walk.unknown_fields })
}

/// One step of the way from the root to the value in hand.
enum Step {
    Field(String),
    Index(usize),
}

struct Walk {
    schemas: &'static Schemas,
    place: Vec<Step>,
    unknown_fields: Vec<String>,
}

impl Walk {
    /// The stored form of `value`; `owner` is the struct whose field it is (or is inside of).
    fn value(&mut self, type_: &Type, value: Value, owner: Option<&Struct>) -> Result<Value, DecodeError> {
        if value.is_null() {
            return Ok(zero::of(type_));
        }
        match (type_, value) {
            (Type::Struct(index), Value::Object(fields)) => self.object(*index, fields),
            (Type::List(item), Value::Array(items)) => {
                let mut list = Vec::with_capacity(items.len());
                for (index, value) in items.into_iter().enumerate() {
                    self.place.push(Step::Index(index));
                    list.push(self.value(item, value, owner)?);
                    self.place.pop();
                }
                Ok(Value::Array(list))
            }
            (Type::Map(item), Value::Object(entries)) => {
                let mut map = Map::new();
                for (key, value) in entries {
                    map.insert(key, self.value(item, value, owner)?);
                }
                Ok(Value::Object(map))
            }
            (Type::String, value @ Value::String(_))
            | (Type::Bool, value @ Value::Bool(_))
            | (Type::Float, value @ Value::Number(_))
            | (Type::Any, value) => Ok(value),
            (Type::Bytes, Value::String(text)) => bytes(&text).map(Value::String),
            (Type::Time, Value::String(text)) => moment(&text, Precision::Seconds),
            (Type::MicroTime, Value::String(text)) => moment(&text, Precision::Micros),
            (Type::Quantity, Value::String(text)) => canonical(&text),
            (Type::Quantity, Value::Number(number)) => canonical(&number.to_string()),
            (Type::IntOrString, value @ Value::String(_)) => Ok(value),
            (Type::Int32 | Type::IntOrString, Value::Number(number)) => match number.as_i64() {
                Some(integer) if i32::try_from(integer).is_ok() => Ok(integer.into()),
                _ => Err(self.mismatch(&format!("number {number}"), "int32", owner)),
            },
            (Type::Int64, Value::Number(number)) => match number.as_i64() {
                Some(integer) => Ok(integer.into()),
                None => Err(self.mismatch(&format!("number {number}"), "int64", owner)),
            },
            (Type::Quantity, _) => Err(DecodeError { message: quantity::SYNTAX.to_owned() }),
            // These decode themselves in Go, so the error names neither struct nor field.
            (Type::Time | Type::MicroTime, value) => Err(DecodeError {
                message: format!("json: cannot unmarshal {} into Go value of type string", word(&value)),
            }),
            (type_, value) => Err(self.mismatch(word(&value), &type_name(self.schemas, type_), owner)),
        }
    }

    fn object(&mut self, index: usize, fields: Map<String, Value>) -> Result<Value, DecodeError> {
        let schemas = self.schemas;
        let owner = schemas.at(index);
        let mut object = Map::new();
        for (name, value) in fields {
            let Some(field) = owner.fields.get(&name) else {
                self.unknown(&name);
                continue;
            };
            self.place.push(Step::Field(name));
            let value = self.value(&field.type_, value, Some(owner))?;
            let Some(Step::Field(name)) = self.place.pop() else { continue };
            if field.required || !zero::is_left_out(owner, &name, &field.type_, &value) {
                object.insert(name, value);
            }
        }
        // Two structs may have one name: only what this one has is written.
        for (name, value) in zero::written(&owner.name) {
            if !owner.fields.contains_key(&name) {
                continue;
            }
            object.entry(name).or_insert(value);
        }
        Ok(Value::Object(object))
    }

    fn unknown(&mut self, name: &str) {
        if self.unknown_fields.len() < REPORTED_UNKNOWN_FIELDS {
            let mut path = String::new();
            for step in &self.place {
                match step {
                    Step::Field(field) if path.is_empty() => path.push_str(field),
                    Step::Field(field) => {
                        path.push('.');
                        path.push_str(field);
                    }
                    Step::Index(index) => path.push_str(&format!("[{index}]")),
                }
            }
            if !path.is_empty() {
                path.push('.');
            }
            path.push_str(name);
            self.unknown_fields.push(path);
        }
    }

    fn mismatch(&self, found: &str, wanted: &str, owner: Option<&Struct>) -> DecodeError {
        let fields: Vec<&str> = self
            .place
            .iter()
            .filter_map(|step| match step {
                Step::Field(field) => Some(field.as_str()),
                Step::Index(_) => None,
            })
            .collect();
        let place = match owner {
            Some(owner) => format!("Go struct field {}.{}", owner.name, fields.join(".")),
            None => "Go value".to_owned(),
        };
        DecodeError { message: format!("json: cannot unmarshal {found} into {place} of type {wanted}") }
    }
}

/// What Go calls the kind of a JSON value.
fn word(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

fn type_name(schemas: &Schemas, type_: &Type) -> String {
    match type_ {
        Type::Struct(index) => {
            let of = schemas.at(*index);
            format!("{}.{}", of.package, of.name)
        }
        Type::List(item) => format!("[]{}", type_name(schemas, item)),
        Type::Map(item) => format!("map[string]{}", type_name(schemas, item)),
        Type::Bytes => "[]uint8".to_owned(),
        Type::Bool => "bool".to_owned(),
        Type::Int32 => "int32".to_owned(),
        Type::Int64 => "int64".to_owned(),
        Type::Float => "float64".to_owned(),
        Type::Quantity => "resource.Quantity".to_owned(),
        Type::IntOrString => "intstr.IntOrString".to_owned(),
        Type::String | Type::Time | Type::MicroTime | Type::Any => "string".to_owned(),
    }
}

fn canonical(text: &str) -> Result<Value, DecodeError> {
    match Quantity::parse(text) {
        Some(quantity) => Ok(quantity.to_string().into()),
        None => Err(DecodeError { message: quantity::SYNTAX.to_owned() }),
    }
}

fn moment(text: &str, precision: Precision) -> Result<Value, DecodeError> {
    time::parse(text, precision).map(Value::String).map_err(|message| DecodeError { message })
}

/// Standard base64 with padding; line breaks are skipped, as Go does. Trailing bits are not judged, as in Go.
fn bytes(text: &str) -> Result<String, DecodeError> {
    const ENGINE: GeneralPurpose = GeneralPurpose::new(
        &alphabet::STANDARD,
        GeneralPurposeConfig::new()
            .with_decode_allow_trailing_bits(true)
            .with_decode_padding_mode(DecodePaddingMode::RequireCanonical),
    );
    let compact: String = text.chars().filter(|c| !matches!(c, '\r' | '\n')).collect();
    match ENGINE.decode(&compact) {
        Ok(decoded) => Ok(ENGINE.encode(decoded)),
        Err(error) => {
            let at = match error {
                base64::DecodeError::InvalidByte(at, _) | base64::DecodeError::InvalidLastSymbol(at, _) => at,
                base64::DecodeError::InvalidLength(length) => length,
                base64::DecodeError::InvalidPadding => compact.trim_end_matches('=').len(),
            };
            Err(DecodeError { message: format!("illegal base64 data at input byte {at}") })
        }
    }
}

/// The decode function of a kind, for its row in the table.
pub(crate) fn typed<K: schemars::JsonSchema>(object: Value) -> Result<Decoded, DecodeError> {
    decode(&K::schema_name(), object)
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    const POD: &str = "io.k8s.api.core.v1.Pod";
    const SECRET: &str = "io.k8s.api.core.v1.Secret";
    const LEASE: &str = "io.k8s.api.coordination.v1.Lease";

    fn refused(definition: &str, object: Value) -> String {
        match decode(definition, object) {
            Ok(_) => panic!("accepted"),
            Err(error) => error.message,
        }
    }

    #[test]
    fn unknown_fields_are_dropped_and_reported_with_their_path() {
        let decoded = decode(
            POD,
            json!({"spec": {"foo": 1, "containers": [{"name": "c", "Image": "x", "ports": [{"containerport": 1}]}]}}),
        )
        .expect("decodes");
        assert_eq!(decoded.object["spec"]["containers"][0]["ports"], json!([{}]));
        let mut unknown = decoded.unknown_fields;
        unknown.sort();
        assert_eq!(unknown, ["spec.containers[0].Image", "spec.containers[0].ports[0].containerport", "spec.foo"]);
    }

    #[test]
    fn wrong_types_are_refused_as_go_says_it() {
        assert_eq!(
            refused(POD, json!({"spec": {"containers": [{"ports": "x"}]}})),
            "json: cannot unmarshal string into Go struct field Container.spec.containers.ports of type \
             []v1.ContainerPort"
        );
        assert_eq!(
            refused(POD, json!({"spec": {"containers": [{"ports": [{"hostPort": 1.5}]}]}})),
            "json: cannot unmarshal number 1.5 into Go struct field \
             ContainerPort.spec.containers.ports.hostPort of type int32"
        );
        assert_eq!(
            refused(POD, json!({"metadata": {"labels": {"a": 1}}})),
            "json: cannot unmarshal number into Go struct field ObjectMeta.metadata.labels of type string"
        );
        assert_eq!(refused(POD, json!([])), "json: cannot unmarshal array into Go value of type v1.Pod");
        assert_eq!(refused(SECRET, json!({"data": {"k": "%%"}})), "illegal base64 data at input byte 0");
        assert_eq!(
            refused(LEASE, json!({"spec": {"renewTime": "yesterday"}})),
            "parsing time \"yesterday\" as \"2006-01-02T15:04:05.000000Z07:00\": cannot parse \"yesterday\" as \"2006\""
        );
        let limits = |q: Value| json!({"spec": {"containers": [{"resources": {"limits": {"cpu": q}}}]}});
        assert_eq!(refused(POD, limits(json!("lots"))), quantity::SYNTAX);
        assert!(decode(POD, limits(json!(2))).is_ok());
    }

    #[test]
    fn int_or_string_keeps_its_kind() {
        for port in [json!(80), json!("http")] {
            let probe = json!({"httpGet": {"port": port}});
            let decoded = decode(POD, json!({"spec": {"containers": [{"name": "c", "livenessProbe": probe}]}}));
            let object = decoded.expect("decodes").object;
            assert_eq!(object["spec"]["containers"][0]["livenessProbe"]["httpGet"]["port"], port);
        }
    }

    #[test]
    fn null_and_empty_values_disappear_and_pointers_stay() {
        let decoded = decode(
            POD,
            json!({"metadata": {"labels": null, "annotations": {}}, "spec": {
                "hostNetwork": false, "nodeName": "", "enableServiceLinks": false,
                "volumes": [{"name": "v", "emptyDir": {}}],
                "tolerations": [], "securityContext": {"runAsUser": 0},
                "containers": [{"name": "c", "env": [{"name": "A", "value": ""}]}],
            }}),
        )
        .expect("decodes")
        .object;
        assert_eq!(decoded["metadata"], json!({}));
        assert_eq!(
            decoded["spec"],
            json!({"enableServiceLinks": false, "volumes": [{"name": "v", "emptyDir": {}}],
                "securityContext": {"runAsUser": 0},
                "containers": [{"name": "c", "env": [{"name": "A"}], "resources": {}}]})
        );
    }

    #[test]
    fn the_report_of_unknown_fields_is_bounded() {
        let many: Map<String, Value> = (0..500).map(|n| (format!("x{n}"), json!(n))).collect();
        let decoded = decode(POD, Value::Object(many)).expect("decodes");
        assert_eq!(decoded.unknown_fields.len(), REPORTED_UNKNOWN_FIELDS);
        assert_eq!(decoded.object.as_object().expect("an object").len(), 0);
    }

    /// Values of the right type for a schema, with fields left out and unknown ones added.
    fn of_type(type_: &Type, depth: u32) -> BoxedStrategy<Value> {
        let schemas = Schemas::get();
        match type_ {
            Type::Struct(index) if depth > 0 => {
                let fields: Vec<(String, Type)> =
                    schemas.at(*index).fields.iter().map(|(n, f)| (n.clone(), f.type_.clone())).collect();
                let most = fields.len().min(4);
                proptest::sample::subsequence(fields, 0..=most)
                    .prop_flat_map(move |some| {
                        some.into_iter()
                            .map(|(name, type_)| (Just(name), of_type(&type_, depth - 1)))
                            .collect::<Vec<_>>()
                    })
                    .prop_map(|fields| Value::Object(fields.into_iter().collect()))
                    .boxed()
            }
            Type::Struct(_) => Just(json!({})).boxed(),
            Type::List(item) => proptest::collection::vec(of_type(item, depth), 0..3).prop_map(Value::Array).boxed(),
            Type::Map(item) => proptest::collection::btree_map("[a-z]{1,3}", of_type(item, depth), 0..3)
                .prop_map(|map| Value::Object(map.into_iter().collect()))
                .boxed(),
            Type::String => "[a-z]{0,4}".prop_map(Value::from).boxed(),
            Type::Bytes => prop_oneof![Just(json!("dg==")), Just(json!(""))].boxed(),
            Type::Bool => any::<bool>().prop_map(Value::from).boxed(),
            Type::Int32 | Type::IntOrString => any::<i32>().prop_map(Value::from).boxed(),
            Type::Int64 => any::<i64>().prop_map(Value::from).boxed(),
            Type::Float => Just(json!(0.5)).boxed(),
            Type::Time => Just(json!("2026-01-01T02:00:00+02:00")).boxed(),
            Type::MicroTime => Just(json!("2026-01-01T00:00:00.000001Z")).boxed(),
            Type::Quantity => prop_oneof![Just(json!("0.1")), Just(json!("1Gi")), Just(json!(3))].boxed(),
            Type::Any => Just(json!({"f:spec": {}})).boxed(),
        }
    }

    /// Objects of a definition.
    pub(in crate::apiserver::kinds) fn any_of(definition: &str) -> BoxedStrategy<Value> {
        of_type(&Schemas::get().struct_type(definition).expect("a known definition"), 5)
    }

    fn any_pod() -> BoxedStrategy<Value> {
        any_of(POD)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]

        #[test]
        fn every_value_of_the_schema_decodes_and_decoding_again_changes_nothing(pod in any_pod()) {
            let once = decode(POD, pod).expect("a value of the schema decodes");
            prop_assert!(once.unknown_fields.is_empty());
            let twice = decode(POD, once.object.clone()).expect("the stored form decodes");
            prop_assert_eq!(twice.object, once.object);
        }

        #[test]
        fn the_stored_form_is_what_the_typed_struct_reads(pod in any_pod()) {
            let stored = decode(POD, pod).expect("decodes").object;
            let typed: Result<k8s_openapi::api::core::v1::Pod, _> = serde_json::from_value({
                let mut full = stored.clone();
                full["apiVersion"] = json!("v1");
                full["kind"] = json!("Pod");
                full
            });
            prop_assert!(typed.is_ok(), "{typed:?} from {stored}");
        }

        #[test]
        fn a_field_that_no_schema_knows_never_survives(pod in any_pod(), name in "zz[a-z]{1,5}") {
            let mut with = pod.clone();
            with[&name] = json!({"a": [1, null]});
            let decoded = decode(POD, with).expect("decodes");
            prop_assert_eq!(decoded.unknown_fields, vec![name]);
            prop_assert_eq!(decoded.object, decode(POD, pod).expect("decodes").object);
        }
    }
}
