//! The selector and the pod template that workloads have.

use serde_json::{Value, json};

use crate::apiserver::kinds::fields::{Errors, Path, entries, list, set_missing, text};
use crate::apiserver::kinds::{names, pod};
use crate::apiserver::label_selector;

/// Sets the defaults of `spec.template`.
pub(super) fn default(object: &mut Value) {
    let Some(spec) = object.get_mut("spec").filter(|spec| spec.is_object()) else { return };
    set_missing(spec, "template", json!({}));
    let template = &mut spec["template"];
    set_missing(template, "metadata", json!({}));
    set_missing(template, "spec", json!({}));
    pod::default_template_spec(&mut template["spec"]);
}

/// Checks `spec.selector` and `spec.template`; `owner` is the word for the object in messages.
pub(super) fn check(object: &Value, owner: &str, errors: &mut Errors) {
    let path = Path::new("spec");
    let selector = &object["spec"]["selector"];
    let at = path.field("selector");
    check_selector(selector, &at, owner, errors);
    let at = path.field("template");
    let template = &object["spec"]["template"];
    let labels = &template["metadata"]["labels"];
    if let Some(requirements) = label_selector::requirements(selector).filter(|all| !all.is_empty())
        && !label_selector::matches(&requirements, |key| labels.get(key).and_then(Value::as_str))
    {
        let why = "`selector` does not match template `labels`";
        errors.invalid(&at.field("metadata").field("labels"), labels.clone(), why);
    }
    check_metadata(template, &at.field("metadata"), errors);
    let spec = at.field("spec");
    pod::check_spec(&template["spec"], &spec, errors);
    if !list(template, "/spec/ephemeralContainers").is_empty() {
        errors.forbidden(&spec.field("ephemeralContainers"), "ephemeral containers not allowed in pod template");
    }
    let policy = text(template, "/spec/restartPolicy");
    if matches!(policy, "OnFailure" | "Never") {
        errors.one_of(&spec.field("restartPolicy"), policy, &["Always"]);
    }
    if template["spec"].get("activeDeadlineSeconds").is_some() {
        let why = format!("activeDeadlineSeconds in {owner} is not Supported");
        errors.forbidden(&spec.field("activeDeadlineSeconds"), why);
    }
}

fn check_selector(selector: &Value, path: &Path, owner: &str, errors: &mut Errors) {
    let Some(fields) = selector.as_object() else { return errors.required(path, "") };
    if fields.is_empty() {
        errors.invalid(path, selector.clone(), format!("empty selector is invalid for {}", owner.to_lowercase()));
    }
    check_labels(selector, "/matchLabels", &path.field("matchLabels"), errors);
    for (index, expression) in list(selector, "/matchExpressions").iter().enumerate() {
        let path = path.field("matchExpressions").index(index);
        let values = list(expression, "/values");
        match text(expression, "/operator") {
            "In" | "NotIn" if values.is_empty() => {
                errors.required(&path.field("values"), "must be specified when `operator` is 'In' or 'NotIn'");
            }
            "Exists" | "DoesNotExist" if !values.is_empty() => {
                let why = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
                errors.forbidden(&path.field("values"), why);
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            other => errors.invalid(&path.field("operator"), other, "not a valid selector operator"),
        }
        let key = text(expression, "/key");
        errors.format(&path.field("key"), key, names::qualified_name(key));
        for (index, value) in values.iter().enumerate() {
            let value = value.as_str().unwrap_or_default();
            errors.format(&path.field("values").index(index), value, names::label_value(value));
        }
    }
}

fn check_labels(owner: &Value, pointer: &str, path: &Path, errors: &mut Errors) {
    for (key, value) in entries(owner, pointer) {
        errors.format(path, key, names::qualified_name(key));
        let value = value.as_str().unwrap_or_default();
        errors.format(path, value, names::label_value(value));
    }
}

fn check_metadata(template: &Value, path: &Path, errors: &mut Errors) {
    check_labels(template, "/metadata/labels", &path.field("labels"), errors);
    for (key, _) in entries(template, "/metadata/annotations") {
        errors.format(&path.field("annotations"), key, names::qualified_name(&key.to_lowercase()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_gets_the_defaults_of_a_template_and_not_those_of_a_pod() {
        let mut object = json!({"spec": {"template": {"spec": {"hostNetwork": true, "containers": [{
            "name": "c", "image": "i:1", "ports": [{"containerPort": 80}], "resources": {"limits": {"cpu": "1"}},
        }]}}}});
        default(&mut object);
        assert_eq!(
            object["spec"]["template"],
            json!({"metadata": {}, "spec": {
                "hostNetwork": true, "dnsPolicy": "ClusterFirst", "restartPolicy": "Always",
                "schedulerName": "default-scheduler", "securityContext": {}, "terminationGracePeriodSeconds": 30,
                "containers": [{
                    "name": "c", "image": "i:1", "imagePullPolicy": "IfNotPresent",
                    "ports": [{"containerPort": 80, "protocol": "TCP"}], "resources": {"limits": {"cpu": "1"}},
                    "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File",
                }],
            }})
        );
    }
}
