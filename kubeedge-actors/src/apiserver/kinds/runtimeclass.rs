//! RuntimeClass (`node.k8s.io/v1`): which of a container runtime's handlers the pods of a class are run by, and what a pod
//! of it gets at its creation: overhead, node selector, tolerations.

use k8s_openapi::api::node::v1::RuntimeClass;
use serde_json::{Map, Value, json};

use super::decode;
use super::fields::{Errors, Path, entries, list, nothing, object_mut, text};
use super::names;
use super::pod::{check_resources, check_tolerations};
use super::quantity::Quantity;
use super::table::{AGE, NAME, column, creation_age, name};
use crate::apiserver::kind::{Kind, Resource};
use crate::apiserver::status::FieldError;

pub(super) const KIND: Kind = Kind {
    resource: Resource {
        group: "node.k8s.io",
        version: "v1",
        kind: "RuntimeClass",
        plural: "runtimeclasses",
        singular: "runtimeclass",
        short_names: &[],
        categories: &[],
        namespaced: false,
        status_subresource: false,
        stored_as: None,
        selectable: &[],
        columns: &[NAME, column("Handler", "The runtime's name for it"), AGE],
        cells: |object, now| vec![name(object), json!(text(object, "/handler")), creation_age(object, now)],
    },
    scale_subresource: false,
    has_generation: false,
    decode: decode::typed::<RuntimeClass>,
    default: |_| (),
    validate_create: validate,
    validate_update: |new, old| {
        let mut errors = Errors::default();
        errors.immutable(&Path::new("handler"), new.get("handler"), old.get("handler"));
        errors.done()
    },
    validate_status: nothing,
};

fn validate(object: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let handler = text(object, "/handler");
    errors.format(&Path::new("handler"), handler, names::dns_label(handler));
    if let Some(overhead) = object.get("overhead") {
        let limits = json!({"resources": {"limits": overhead.get("podFixed").cloned().unwrap_or_default()}});
        check_resources(&limits, &Path::new("overhead"), &mut errors);
    }
    let scheduling = Path::new("scheduling");
    for (key, value) in entries(object, "/scheduling/nodeSelector") {
        let path = scheduling.field("nodeSelector");
        errors.format(&path, key, names::qualified_name(key));
        let value = value.as_str().unwrap_or_default();
        errors.format(&path, value, names::label_value(value));
    }
    check_tolerations(list(object, "/scheduling/tolerations"), &scheduling.field("tolerations"), &mut errors);
    errors.done()
}

/// The class that a pod names; an empty name is none.
pub(crate) fn named(pod: &Value) -> Option<&str> {
    Some(text(pod, "/spec/runtimeClassName")).filter(|name| !name.is_empty())
}

/// Gives a new pod what its class says; why it may not be of that class, otherwise. `class`: that of a pod that names one.
pub(crate) fn admit(pod: &mut Value, class: Option<&Value>) -> Result<(), String> {
    let fixed = class.and_then(|class| class.pointer("/overhead/podFixed")).and_then(Value::as_object);
    let own = pod.pointer("/spec/overhead").and_then(Value::as_object);
    match (fixed, own) {
        (None, Some(own)) if !own.is_empty() => {
            return Err("pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead".into());
        }
        (Some(fixed), Some(own)) if !same_amounts(fixed, own) => {
            return Err("pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead".into());
        }
        _ => {}
    }
    let Some(class) = class else { return Ok(()) };
    for (key, value) in entries(class, "/scheduling/nodeSelector") {
        let value = value.as_str().unwrap_or_default();
        let other = entries(pod, "/spec/nodeSelector").find(|(own, _)| *own == key).and_then(|(_, own)| own.as_str());
        if let Some(other) = other.filter(|other| *other != value) {
            return Err(format!(
                "conflict: runtimeClass.scheduling.nodeSelector[{key}] = {value}; pod.spec.nodeSelector[{key}] = {other}"
            ));
        }
    }
    let Some(spec) = pod.get_mut("spec") else { return Ok(()) };
    let asked = entries(class, "/scheduling/nodeSelector").map(|(key, value)| (key.clone(), value.clone()));
    let asked: Vec<(String, Value)> = asked.collect();
    if !asked.is_empty()
        && let Some(selector) = object_mut(spec, "nodeSelector")
    {
        selector.extend(asked);
    }
    let tolerated = list(class, "/scheduling/tolerations");
    let tolerations = spec.get("tolerations").and_then(Value::as_array).cloned().unwrap_or_default();
    let more: Vec<Value> = tolerated.iter().filter(|one| !tolerations.contains(one)).cloned().collect();
    if !more.is_empty() {
        spec["tolerations"] = tolerations.into_iter().chain(more).collect();
    }
    if let Some(fixed) = class.pointer("/overhead/podFixed") {
        spec["overhead"] = fixed.clone();
    }
    Ok(())
}

fn same_amounts(one: &Map<String, Value>, other: &Map<String, Value>) -> bool {
    let amount = |value: &Value| value.as_str().and_then(Quantity::parse);
    one.len() == other.len()
        && one.iter().all(|(name, value)| {
            other
                .get(name)
                .is_some_and(|other| other == value || amount(other).is_some_and(|it| amount(value) == Some(it)))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn class() -> Value {
        json!({
            "metadata": {"name": "slim"}, "handler": "runc-2", "overhead": {"podFixed": {"cpu": "250m", "memory": "64Mi"}},
            "scheduling": {
                "nodeSelector": {"slim": "yes"},
                "tolerations": [{"key": "slim", "operator": "Exists"}, {"key": "own", "operator": "Exists"}],
            },
        })
    }

    fn fields(object: &Value) -> Vec<String> {
        validate(object).iter().map(|error| error.field.clone()).collect()
    }

    #[test]
    fn a_class_has_a_handler_that_never_changes() {
        assert!(validate(&class()).is_empty() && validate(&json!({"handler": "runc"})).is_empty());
        for handler in ["", "Runc", "run.c", "-a"] {
            let found = validate(&json!({"handler": handler}));
            assert_eq!(found.len(), 1, "{handler}: {found:?}");
            assert!(found[0].to_string().contains("a lowercase RFC 1123 label must consist of"), "{}", found[0]);
        }
        let mut bad = class();
        bad["overhead"]["podFixed"]["cpu"] = "-1".into();
        bad["scheduling"]["nodeSelector"] = json!({"not a key": "-"});
        bad["scheduling"]["tolerations"] = json!([{"effect": "Sometimes", "operator": "Exists"}]);
        let places = ["overhead.limits[cpu]", "scheduling.nodeSelector", "scheduling.nodeSelector"];
        assert_eq!(fields(&bad)[..3], places);
        assert_eq!(fields(&bad)[3], "scheduling.tolerations[0].effect");
        let changed = (KIND.validate_update)(&json!({"handler": "b"}), &json!({"handler": "a"}));
        assert_eq!(changed[0].to_string(), "handler: Invalid value: \"b\": field is immutable");
        assert!((KIND.validate_update)(&json!({"handler": "a", "overhead": {}}), &json!({"handler": "a"})).is_empty());
    }

    #[test]
    fn a_pod_gets_what_its_class_says() {
        let own = json!({"key": "own", "operator": "Exists"});
        let mut pod = json!({"spec": {"runtimeClassName": "slim", "nodeSelector": {"a": "b"}, "tolerations": [own]}});
        assert_eq!(admit(&mut pod, Some(&class())), Ok(()));
        let spec = &pod["spec"];
        assert_eq!(spec["overhead"], json!({"cpu": "250m", "memory": "64Mi"}));
        assert_eq!(spec["nodeSelector"], json!({"a": "b", "slim": "yes"}));
        assert_eq!(spec["tolerations"], json!([own, {"key": "slim", "operator": "Exists"}]));
        // Once more, as when a stored manifest is sent again.
        let before = pod.clone();
        assert_eq!(admit(&mut pod, Some(&class())), Ok(()));
        assert_eq!(pod, before);
        let mut plain = json!({"spec": {}});
        assert_eq!(admit(&mut plain, Some(&json!({"handler": "runc"}))), Ok(()));
        assert_eq!(plain, json!({"spec": {}}));
    }

    #[test]
    fn what_a_pod_says_against_its_class_is_refused() {
        let refused = |spec: Value, class: Option<&Value>| admit(&mut json!({"spec": spec}), class).unwrap_err();
        let class = class();
        let why = "pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead";
        assert_eq!(refused(json!({"overhead": {"cpu": "250m"}}), Some(&class)), why);
        assert_eq!(refused(json!({"overhead": {"cpu": "251m", "memory": "64Mi"}}), Some(&class)), why);
        let why = "pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead";
        assert_eq!(refused(json!({"overhead": {"cpu": "1"}}), None), why);
        let why = "conflict: runtimeClass.scheduling.nodeSelector[slim] = yes; pod.spec.nodeSelector[slim] = no";
        assert_eq!(refused(json!({"nodeSelector": {"slim": "no"}}), Some(&class)), why);
        let mut same = json!({"spec": {"overhead": {"cpu": "0.25", "memory": "65536Ki"}}});
        assert_eq!(admit(&mut same, Some(&class)), Ok(()));
    }
}
