//! Secret.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use k8s_openapi::api::core::v1::Secret;
use serde_json::Value;

use super::configmap::{MAX_DATA, frozen};
use super::fields::{Errors, Path, entries, nothing, object_mut, set_missing, text};
use super::{decode, names};
use crate::apiserver::kind::Kind;
use crate::apiserver::status::FieldError;
use crate::kubeapi::kinds as rows;

pub(super) const KIND: Kind = Kind {
    resource: rows::SECRET,
    scale_subresource: false,
    has_generation: false,
    decode: decode::typed::<Secret>,
    default,
    validate_create: validate,
    validate_update,
    validate_status: nothing,
};

const OPAQUE: &str = "Opaque";
const SERVICE_ACCOUNT_TOKEN: &str = "kubernetes.io/service-account-token";
/// Keys that a type demands. Each entry: type, keys of which all must be there.
const DEMANDED: &[(&str, &[&str])] = &[
    ("kubernetes.io/dockercfg", &[".dockercfg"]),
    ("kubernetes.io/dockerconfigjson", &[".dockerconfigjson"]),
    ("kubernetes.io/ssh-auth", &["ssh-privatekey"]),
    ("kubernetes.io/tls", &["tls.crt", "tls.key"]),
];

fn default(object: &mut Value) {
    // `stringData` is write-only: its values overrule those of `data`.
    let plain = object.as_object_mut().and_then(|fields| fields.remove("stringData"));
    if let Some(Value::Object(plain)) = plain
        && let Some(data) = object_mut(object, "data")
    {
        for (key, value) in plain {
            data.insert(key, STANDARD.encode(value.as_str().unwrap_or_default()).into());
        }
    }
    set_missing(object, "type", OPAQUE);
}

fn validate(object: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let data = Path::new("data");
    let mut size = 0;
    for (key, value) in entries(object, "/data") {
        errors.format(&data.key(key), key, names::config_key(key));
        size += value.as_str().unwrap_or_default().len() / 4 * 3;
    }
    if size > MAX_DATA + 2 {
        errors.too_long(&data, MAX_DATA as u64);
    }
    let type_ = text(object, "/type");
    let has = |key: &str| entries(object, "/data").any(|(k, _)| k == key);
    match type_ {
        SERVICE_ACCOUNT_TOKEN => {
            let annotation = "kubernetes.io/service-account.name";
            let named = entries(object, "/metadata/annotations")
                .any(|(key, value)| key == annotation && value.as_str().is_some_and(|v| !v.is_empty()));
            if !named {
                errors.required(&Path::new("metadata").field("annotations").key(annotation), "");
            }
        }
        "kubernetes.io/basic-auth" if !has("username") && !has("password") => {
            errors.required(&data.key("username"), "");
            errors.required(&data.key("password"), "");
        }
        _ => {
            let demanded = DEMANDED.iter().find(|(t, _)| *t == type_).map_or(&[][..], |(_, keys)| keys);
            for key in demanded.iter().filter(|key| !has(key)) {
                errors.required(&data.key(key), "");
            }
            for key in demanded.iter().filter(|key| key.starts_with(".docker") && has(key)) {
                let text = entries(object, "/data").find(|(k, _)| k == key).and_then(|(_, v)| v.as_str());
                let json = STANDARD.decode(text.unwrap_or_default()).unwrap_or_default();
                if serde_json::from_slice::<Value>(&json).is_err() {
                    errors.invalid(&data.key(key), "<secret contents redacted>", "invalid JSON");
                }
            }
        }
    }
    errors.done()
}

fn validate_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    errors.immutable(&Path::new("type"), new.get("type"), old.get("type"));
    let mut errors = errors.done();
    errors.extend(frozen(new, old, &["data"]));
    errors.extend(validate(new));
    errors
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn string_data_overrules_data_and_is_not_kept() {
        let mut secret = json!({"data": {"k": "eA==", "l": "eA=="}, "stringData": {"k": "v"}});
        default(&mut secret);
        assert_eq!(secret, json!({"data": {"k": "dg==", "l": "eA=="}, "type": "Opaque"}));
    }

    #[test]
    fn a_type_demands_its_keys() {
        let fields = |secret: Value| validate(&secret).into_iter().map(|e| e.field).collect::<Vec<_>>();
        assert_eq!(fields(json!({"type": "kubernetes.io/tls", "data": {"tls.crt": ""}})), ["data[tls.key]"]);
        assert_eq!(
            fields(json!({"type": "kubernetes.io/dockerconfigjson", "data": {".dockerconfigjson": "eA=="}})),
            ["data[.dockerconfigjson]"]
        );
        assert_eq!(
            fields(json!({"type": SERVICE_ACCOUNT_TOKEN})),
            ["metadata.annotations[kubernetes.io/service-account.name]"]
        );
        assert!(fields(json!({"type": "my/type"})).is_empty());
    }

    #[test]
    fn the_type_never_changes() {
        let old = json!({"type": "Opaque"});
        let errors = validate_update(&json!({"type": "other"}), &old);
        assert_eq!(errors.len(), 1);
        assert_eq!(errors[0].field, "type");
        assert!(validate_update(&old, &old).is_empty());
    }
}
