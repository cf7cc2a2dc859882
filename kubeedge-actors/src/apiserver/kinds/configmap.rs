//! ConfigMap.

use k8s_openapi::api::core::v1::ConfigMap;
use serde_json::Value;

use super::fields::{Errors, Path, entries, flag, nothing};
use super::{decode, names};
use crate::apiserver::kind::Kind;
use crate::apiserver::status::FieldError;
use crate::kubeapi::kinds as rows;

/// Most bytes of data in one config map or secret.
pub(super) const MAX_DATA: usize = 1 << 20;

pub(super) const KIND: Kind = Kind {
    resource: rows::CONFIG_MAP,
    scale_subresource: false,
    has_generation: false,
    decode: decode::typed::<ConfigMap>,
    default: |_| {},
    validate_create: validate,
    validate_update,
    validate_status: nothing,
};

fn validate(object: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let mut size = 0;
    for field in ["data", "binaryData"] {
        for (key, value) in entries(object, &format!("/{field}")) {
            let path = Path::new(field).key(key);
            errors.format(&path, key, names::config_key(key));
            let text = value.as_str().unwrap_or_default();
            if field == "binaryData" {
                size += text.len() / 4 * 3;
                if entries(object, "/data").any(|(other, _)| other == key) {
                    errors.invalid(&path, key.as_str(), "duplicate of key present in data");
                }
            } else {
                size += text.len();
            }
        }
    }
    if size > MAX_DATA {
        errors.too_long(&Path::new(""), MAX_DATA as u64);
    }
    errors.done()
}

fn validate_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = validate(new);
    errors.extend(frozen(new, old, &["data", "binaryData"]));
    errors
}

/// What may not change once `immutable` is set: the flag itself and the data.
pub(super) fn frozen(new: &Value, old: &Value, data: &[&str]) -> Vec<FieldError> {
    let mut errors = Errors::default();
    if flag(old, "/immutable") {
        let why = "field is immutable when `immutable` is set";
        if !flag(new, "/immutable") {
            errors.forbidden(&Path::new("immutable"), why);
        }
        for field in data {
            if new.get(field) != old.get(field) {
                errors.forbidden(&Path::new(field), why);
            }
        }
    }
    errors.done()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::apiserver::status::FieldCause;

    #[test]
    fn keys_are_checked_and_may_not_stand_in_both_maps() {
        let errors = validate(&json!({"data": {"a": "1", "b c": ""}, "binaryData": {"a": ""}}));
        let fields: Vec<_> = errors.iter().map(|e| e.field.as_str()).collect();
        assert_eq!(fields, ["data[b c]", "binaryData[a]"]);
    }

    #[test]
    fn a_megabyte_is_the_limit() {
        assert!(validate(&json!({"data": {"a": "x".repeat(MAX_DATA)}})).is_empty());
        let errors = validate(&json!({"data": {"a": "x".repeat(MAX_DATA), "b": "x"}}));
        assert_eq!(errors, [FieldError::new("", FieldCause::TooLong(MAX_DATA as u64))]);
    }

    #[test]
    fn an_immutable_config_map_keeps_its_data_and_its_flag() {
        let old = json!({"immutable": true, "data": {"a": "1"}});
        assert!(validate_update(&old, &old).is_empty());
        let errors = validate_update(&json!({"data": {"a": "2"}}), &old);
        let fields: Vec<_> = errors.iter().map(|e| e.field.as_str()).collect();
        assert_eq!(fields, ["immutable", "data"]);
    }

    #[test]
    fn the_table_counts_keys_of_both_maps() {
        let object = json!({"metadata": {"name": "c"}, "data": {"a": ""}, "binaryData": {"b": ""}});
        assert_eq!((KIND.cells)(&object, 0), [json!("c"), json!(2), json!("<unknown>")]);
    }
}
