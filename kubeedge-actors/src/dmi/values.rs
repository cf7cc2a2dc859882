//! Free settings on the wire: well-known types within `Any`. Pure.

use prost::Message;
use prost_types::Any;
use serde_json::Value;

/// A value as a well-known type; `None` for null.
#[cfg(any(test, feature = "devicetwin"))]
pub(crate) fn any(value: &Value) -> Option<Any> {
    let wrap = |name: &str, value: Vec<u8>| {
        Some(Any { type_url: format!("type.googleapis.com/google.protobuf.{name}"), value })
    };
    match value {
        Value::Null => None,
        Value::Bool(value) => wrap("BoolValue", value.encode_to_vec()),
        Value::String(value) => wrap("StringValue", value.encode_to_vec()),
        Value::Number(number) => match number.as_i64() {
            Some(whole) if whole as f32 as i128 != i128::from(whole) => wrap("Int64Value", whole.encode_to_vec()),
            // A float32 is all that mappers read of a number with a fraction.
            _ => wrap("FloatValue", (number.as_f64().unwrap_or_default() as f32).encode_to_vec()),
        },
        Value::Array(_) | Value::Object(_) => wrap("StringValue", value.to_string().encode_to_vec()),
    }
}

/// What a value of a mapper's settings says; `None` for a type that is none of a mapper's.
pub fn plain(any: &Any) -> Option<Value> {
    let bytes = any.value.as_slice();
    match any.type_url.rsplit('/').next()? {
        "google.protobuf.StringValue" => String::decode(bytes).ok().map(Value::from),
        "google.protobuf.BoolValue" => bool::decode(bytes).ok().map(Value::from),
        "google.protobuf.Int32Value" => i32::decode(bytes).ok().map(Value::from),
        "google.protobuf.Int64Value" => i64::decode(bytes).ok().map(Value::from),
        "google.protobuf.FloatValue" => f32::decode(bytes).ok().map(Value::from),
        "google.protobuf.DoubleValue" => f64::decode(bytes).ok().map(Value::from),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn settings_that_no_mapper_could_read_go_as_text() {
        assert_eq!(plain(&any(&json!([1, 2])).unwrap()), Some(json!("[1,2]")));
        assert_eq!(plain(&any(&json!(true)).unwrap()), Some(json!(true)));
        assert_eq!(any(&json!(null)), None);
        assert_eq!(plain(&any(&json!(0.5)).unwrap()), Some(json!(0.5)));
    }
}
