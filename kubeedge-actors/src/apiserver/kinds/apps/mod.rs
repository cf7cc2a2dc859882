//! The kinds of group `apps`: what makes pods from a template, and the revisions of such templates.

mod controllerrevision;
mod daemonset;
mod deployment;
mod replicaset;
mod statefulset;
mod template;

pub(super) use controllerrevision::KIND as CONTROLLER_REVISION;
pub(super) use daemonset::KIND as DAEMON_SET;
pub(super) use deployment::KIND as DEPLOYMENT;
pub(super) use replicaset::KIND as REPLICA_SET;
pub(super) use statefulset::KIND as STATEFUL_SET;

use serde_json::{Value, json};

use super::fields::{Errors, Path, integer, list, set_missing, text};

/// Said of a negative number.
const NOT_NEGATIVE: &str = "must be greater than or equal to 0";

/// `spec` and `status`, which Go always writes.
fn default_parts(object: &mut Value) {
    set_missing(object, "spec", json!({}));
    set_missing(object, "status", json!({}));
}

/// Refuses negative numbers in these fields of the object at `root` (`/spec`, `/status`).
fn check_counts(object: &Value, root: &str, fields: &[&str], errors: &mut Errors) {
    let path = Path::new(root.trim_start_matches('/'));
    for field in fields {
        if let Some(number) = integer(object, &format!("{root}/{field}"))
            && number < 0
        {
            errors.invalid(&path.field(field), number, NOT_NEGATIVE);
        }
    }
}

/// Refuses a status that counts more of one field than of another.
fn check_not_above(status: &Value, pairs: &[(&str, &str)], errors: &mut Errors) {
    let count = |field: &str| integer(status, &format!("/status/{field}")).unwrap_or_default();
    for (less, more) in pairs {
        if count(less) > count(more) {
            let path = Path::new("status").field(less);
            errors.invalid(&path, count(less), format!("cannot be greater than status.{more}"));
        }
    }
}

/// A number of pods or a part of them: `3` or `25%`.
fn check_share(value: &Value, path: &Path, errors: &mut Errors) {
    match value {
        Value::Number(number) => {
            let number = number.as_i64().unwrap_or_default();
            if number < 0 {
                errors.invalid(path, number, NOT_NEGATIVE);
            }
        }
        Value::String(text) => match percent(text) {
            Some(_) => {}
            None => errors.invalid(path, text.as_str(), "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', regex used for validation is '[0-9]+%')"),
        },
        _ => {}
    }
}

/// The number before the sign.
fn percent(text: &str) -> Option<u64> {
    let digits = text.strip_suffix('%')?;
    let all_digits = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    all_digits.then(|| digits.parse().unwrap_or(u64::MAX))
}

/// Refuses a part of more than the whole.
fn check_not_above_all(value: &Value, path: &Path, errors: &mut Errors) {
    if let Some(text) = value.as_str()
        && percent(text).is_some_and(|percent| percent > 100)
    {
        errors.invalid(path, text, "must not be greater than 100%");
    }
}

/// Whether a share says none.
fn is_zero(value: &Value) -> bool {
    match value {
        Value::String(text) => percent(text) == Some(0),
        value => value.as_i64() == Some(0),
    }
}

/// Images and names of a template's containers, as wide tables show them.
fn containers(object: &Value) -> (String, String) {
    let containers = list(object, "/spec/template/spec/containers");
    let join = |field: &str| containers.iter().map(|one| text(one, field)).collect::<Vec<_>>().join(",");
    (join("/name"), join("/image"))
}

/// The selector as wide tables show it.
fn selector_cell(object: &Value) -> String {
    match crate::apiserver::label_selector::to_text(&object["spec"]["selector"]) {
        text if text.is_empty() => super::table::NONE.to_owned(),
        text => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apiserver::kind::Kind;
    use crate::apiserver::kinds::kinds;
    use crate::apiserver::status::FieldError;

    /// A small valid object of a kind with a template, with `change` merged into its spec.
    pub(super) fn object(kind: &Kind, change: Value) -> Value {
        let mut spec = json!({
            "selector": {"matchLabels": {"app": "web"}},
            "template": {
                "metadata": {"labels": {"app": "web"}},
                "spec": {"containers": [{"name": "c", "image": "registry.example/c:1"}]},
            },
        });
        for (field, value) in change.as_object().expect("an object") {
            spec[field] = value.clone();
        }
        let mut object = (kind.decode)(json!({"metadata": {"name": "web"}, "spec": spec})).expect("decodes").object;
        (kind.default)(&mut object);
        object
    }

    /// The fields that are refused in a new object.
    pub(super) fn refused(kind: &Kind, change: Value) -> Vec<String> {
        fields((kind.validate_create)(&object(kind, change)))
    }

    pub(super) fn fields(errors: Vec<FieldError>) -> Vec<String> {
        errors.into_iter().map(|error| error.field).collect()
    }

    fn with_templates() -> impl Iterator<Item = &'static Kind> {
        kinds().iter().filter(|kind| kind.group == "apps" && kind.kind != "ControllerRevision")
    }

    #[test]
    fn every_workload_needs_a_selector_that_selects_its_own_pods() {
        for kind in with_templates() {
            assert_eq!(refused(kind, json!({})), Vec::<String>::new(), "{}", kind.kind);
            let other = json!({"selector": {"matchLabels": {"app": "other"}}});
            assert_eq!(refused(kind, other), ["spec.template.metadata.labels"], "{}", kind.kind);
            assert_eq!(refused(kind, json!({"selector": {}})), ["spec.selector"], "{}", kind.kind);
            assert_eq!(refused(kind, json!({"selector": null}))[0], "spec.selector", "{}", kind.kind);
            let wrong = json!({"selector": {"matchExpressions": [{"key": "app", "operator": "Like"}]}});
            assert!(refused(kind, wrong)[0].starts_with("spec.selector.matchExpressions[0]"), "{}", kind.kind);
        }
    }

    #[test]
    fn pods_of_workloads_never_end_for_good_and_their_template_is_checked_as_a_pod() {
        for kind in with_templates() {
            let template = |spec: Value| json!({"template": {"metadata": {"labels": {"app": "web"}}, "spec": spec}});
            let containers = json!([{"name": "c", "image": "i"}]);
            let never = refused(kind, template(json!({"restartPolicy": "Never", "containers": containers})));
            assert_eq!(never, ["spec.template.spec.restartPolicy"], "{}", kind.kind);
            let bad = refused(kind, template(json!({"containers": [{"name": "A_", "image": ""}]})));
            let place = "spec.template.spec.containers[0]";
            assert_eq!(bad, [format!("{place}.name"), format!("{place}.image")], "{}", kind.kind);
            assert_eq!(refused(kind, template(json!({"containers": []}))), ["spec.template.spec.containers"]);
        }
    }

    #[test]
    fn a_selector_never_changes() {
        for kind in with_templates() {
            let old = object(kind, json!({}));
            let labels = json!({"app": "web", "b": "c"});
            let new = object(
                kind,
                json!({"selector": {"matchLabels": labels}, "template": {
                "metadata": {"labels": labels}, "spec": {"containers": [{"name": "c", "image": "i"}]}}}),
            );
            let refused = fields((kind.validate_update)(&new, &old));
            assert_eq!(refused.len(), 1, "{}: {refused:?}", kind.kind);
            assert!(refused[0].starts_with("spec"), "{refused:?}");
            assert_eq!(fields((kind.validate_update)(&old, &old)), Vec::<String>::new());
        }
    }

    #[test]
    fn shares_are_numbers_or_percents() {
        let judge = |value: Value| {
            let mut errors = Errors::default();
            check_share(&value, &Path::new("x"), &mut errors);
            check_not_above_all(&value, &Path::new("x"), &mut errors);
            errors.done().len()
        };
        for good in [json!(0), json!(7), json!("0%"), json!("100%")] {
            assert_eq!(judge(good), 0);
        }
        for bad in [json!(-1), json!("1"), json!("%"), json!("-1%"), json!("101%"), json!("1.5%")] {
            assert_eq!(judge(bad.clone()), 1, "{bad}");
        }
        assert!(is_zero(&json!("0%")) && is_zero(&json!(0)) && !is_zero(&json!("1%")) && !is_zero(&json!(1)));
    }
}
