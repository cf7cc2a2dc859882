//! What may change in a pod.

use serde_json::{Value, json};

use super::container::check_image;
use super::validate::{check_tolerations, container_names};
use crate::apiserver::kinds::fields::{Errors, IMMUTABLE, Path, integer, list, list_mut, text};
use crate::apiserver::status::FieldError;

const ONLY: &str = "pod updates may not change fields other than `spec.containers[*].image`,\
    `spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing \
    tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";
/// Most differences named in the answer to a forbidden change.
const NAMED_DIFFERENCES: usize = 10;

/// What is wrong with changing `old` into `new`.
pub(super) fn validate(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let spec = Path::new("spec");
    for field in ["containers", "initContainers"] {
        let path = spec.field(field);
        let containers = list(new, &format!("/spec/{field}"));
        if containers.len() != list(old, &format!("/spec/{field}")).len() {
            errors.forbidden(&path, format!("pod updates may not add or remove {}", spoken(field)));
            return errors.done();
        }
        for (index, container) in containers.iter().enumerate() {
            check_image(container, &path.index(index), &mut errors);
        }
    }
    check_deadline(new, old, &spec, &mut errors);
    check_added_tolerations(new, old, &spec, &mut errors);
    let mut expected = old.get("spec").cloned().unwrap_or_default();
    allow(&mut expected, new, old);
    let found = new.get("spec").cloned().unwrap_or_default();
    if expected != found {
        let mut differences = Vec::new();
        compare("spec", Some(&expected), Some(&found), &mut differences);
        errors.forbidden(&spec, format!("{ONLY}\n{}", differences.join("\n")));
    }
    errors.done()
}

fn spoken(field: &str) -> &'static str {
    if field == "containers" { "containers" } else { "initContainers" }
}

fn check_deadline(new: &Value, old: &Value, spec: &Path, errors: &mut Errors) {
    let path = spec.field("activeDeadlineSeconds");
    let read = |pod: &Value| integer(pod, "/spec/activeDeadlineSeconds");
    match (read(new), read(old)) {
        (Some(new), _) if !(1..=i64::from(i32::MAX)).contains(&new) => {
            errors.invalid(&path, new, format!("must be between 1 and {}, inclusive", i32::MAX));
        }
        (Some(new), Some(old)) if new > old => {
            errors.invalid(&path, new, "must be less than or equal to previous value");
        }
        (None, Some(_)) => {
            errors.invalid(&path, Value::Null, "must not update from a positive integer to nil value");
        }
        _ => {}
    }
}

fn check_added_tolerations(new: &Value, old: &Value, spec: &Path, errors: &mut Errors) {
    let path = spec.field("tolerations");
    let (new, old) = (list(new, "/spec/tolerations"), list(old, "/spec/tolerations"));
    // How long a toleration holds may change, the rest of it may not.
    let core = |toleration: &Value| {
        let mut core = toleration.clone();
        if let Some(fields) = core.as_object_mut() {
            fields.remove("tolerationSeconds");
        }
        core
    };
    if !old.iter().all(|o| new.iter().any(|n| core(n) == core(o))) {
        errors.forbidden(&path, "existing toleration can not be modified except its tolerationSeconds");
    }
    check_tolerations(new, &path, errors);
}

/// Takes over from `new` what a pod may change, so that what is left to compare may not.
fn allow(expected: &mut Value, new: &Value, old: &Value) {
    for field in ["containers", "initContainers"] {
        for (container, new) in list_mut(expected, field).iter_mut().zip(list(new, &format!("/spec/{field}"))) {
            copy(container, new, "image");
        }
    }
    let new_spec = new.get("spec").unwrap_or(&Value::Null);
    copy(expected, new_spec, "activeDeadlineSeconds");
    copy(expected, new_spec, "tolerations");
    if integer(old, "/spec/terminationGracePeriodSeconds").is_some_and(|s| s < 0)
        && integer(new, "/spec/terminationGracePeriodSeconds") == Some(1)
    {
        copy(expected, new_spec, "terminationGracePeriodSeconds");
    }
    // A gate may be taken away, none may come; while gates hold the pod back, its node selector may narrow.
    let (new_gates, old_gates) = (list(new, "/spec/schedulingGates"), list(old, "/spec/schedulingGates"));
    if new_gates.iter().all(|gate| old_gates.contains(gate)) {
        copy(expected, new_spec, "schedulingGates");
    }
    if !old_gates.is_empty() {
        let (new_selector, old_selector) = (new.pointer("/spec/nodeSelector"), old.pointer("/spec/nodeSelector"));
        let kept = old_selector
            .and_then(Value::as_object)
            .is_none_or(|old| old.iter().all(|(key, value)| new_selector.and_then(|new| new.get(key)) == Some(value)));
        if kept {
            copy(expected, new_spec, "nodeSelector");
        }
    }
}

fn copy(to: &mut Value, from: &Value, field: &str) {
    let Some(fields) = to.as_object_mut() else { return };
    match from.get(field) {
        Some(value) => {
            fields.insert(field.to_owned(), value.clone());
        }
        None => {
            fields.remove(field);
        }
    }
}

/// Names the places where two values differ, a line each.
fn compare(path: &str, old: Option<&Value>, new: Option<&Value>, found: &mut Vec<String>) {
    if old == new || found.len() >= NAMED_DIFFERENCES {
        return;
    }
    match (old, new) {
        (Some(Value::Object(old)), Some(Value::Object(new))) => {
            for (field, value) in old {
                compare(&format!("{path}.{field}"), Some(value), new.get(field), found);
            }
            for (field, value) in new.iter().filter(|(field, _)| !old.contains_key(*field)) {
                compare(&format!("{path}.{field}"), None, Some(value), found);
            }
        }
        (Some(Value::Array(old)), Some(Value::Array(new))) => {
            for index in 0..old.len().max(new.len()) {
                compare(&format!("{path}[{index}]"), old.get(index), new.get(index), found);
            }
        }
        (old, new) => {
            let show = |value: Option<&Value>| value.map_or_else(|| "(unset)".to_owned(), Value::to_string);
            found.push(format!("{path}: {} -> {}", show(old), show(new)));
        }
    }
}

/// What is wrong with a new status.
pub(super) fn validate_status(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let status = Path::new("status");
    // A pod that is bound to a node stays there; the main resource refuses it, here it cannot come in.
    let nominated = text(new, "/status/nominatedNodeName");
    if !nominated.is_empty() {
        let why = crate::apiserver::kinds::names::dns_subdomain(nominated);
        errors.format(&status.field("nominatedNodeName"), nominated, why);
    }
    let (new_class, old_class) = (text(new, "/status/qosClass"), text(old, "/status/qosClass"));
    if !old_class.is_empty() && !new_class.is_empty() && new_class != old_class {
        errors.invalid(&status.field("qosClass"), new_class, IMMUTABLE);
    }
    check_restarts(new, old, &status, &mut errors);
    let ips = list(new, "/status/podIPs");
    for (index, entry) in ips.iter().enumerate() {
        let ip = text(entry, "/ip");
        let path = status.field("podIPs").index(index);
        errors.format(&path, ip, crate::apiserver::kinds::names::ip(ip));
        if ips[..index].iter().any(|other| text(other, "/ip") == ip) {
            errors.duplicate(&path, entry.clone());
        }
    }
    let first = ips.first().map(|entry| text(entry, "/ip"));
    let ip = text(new, "/status/podIP");
    if let Some(first) = first
        && !ip.is_empty()
        && ip != first
    {
        errors.invalid(&status.field("podIPs").index(0).field("ip"), json!(first), "must be equal to `podIP`");
    }
    errors.done()
}

/// A container that ended for good does not run again: not in a pod that never restarts, and not after success in one
/// that restarts on failure only.
fn check_restarts(new: &Value, old: &Value, path: &Path, errors: &mut Errors) {
    let policy = text(new, "/spec/restartPolicy");
    if policy == "Always" {
        return;
    }
    let known = container_names(new);
    let path = path.field("containerStatuses");
    let new_statuses = list(new, "/status/containerStatuses");
    for old_status in list(old, "/status/containerStatuses") {
        let name = text(old_status, "/name");
        let Some(terminated) = old_status.pointer("/state/terminated") else { continue };
        let failed = integer(terminated, "/exitCode").unwrap_or_default() != 0;
        if !known.contains(&name) || policy == "OnFailure" && failed {
            continue;
        }
        let revived = |status: &&Value| text(status, "/name") == name && status.pointer("/state/terminated").is_none();
        if let Some(index) = new_statuses.iter().position(|status| revived(&status)) {
            errors.forbidden(&path.index(index).field("state"), "may not be transitioned to non-terminated state");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apiserver::kinds::pod::KIND;
    use crate::apiserver::status::FieldCause;

    fn pod() -> Value {
        let mut pod = json!({"metadata": {"name": "p"}, "spec": {"nodeName": "a", "activeDeadlineSeconds": 10,
            "containers": [{"name": "c", "image": "i"}],
            "tolerations": [{"key": "k", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 3}]}});
        (KIND.default)(&mut pod);
        pod
    }

    fn changed(change: impl Fn(&mut Value)) -> Vec<FieldError> {
        let mut new = pod();
        change(&mut new);
        validate(&new, &pod())
    }

    #[test]
    fn image_deadline_and_added_tolerations_may_change() {
        let errors = changed(|pod| {
            pod["spec"]["containers"][0]["image"] = json!("i:2");
            pod["spec"]["activeDeadlineSeconds"] = json!(5);
            pod["spec"]["tolerations"][0]["tolerationSeconds"] = json!(9);
            let more = json!({"key": "l", "operator": "Exists"});
            pod["spec"]["tolerations"].as_array_mut().expect("a list").push(more);
        });
        assert_eq!(errors, []);
    }

    #[test]
    fn the_rest_of_the_spec_is_forbidden_and_the_difference_is_named() {
        let errors = changed(|pod| pod["spec"]["nodeName"] = json!("b"));
        assert_eq!(errors.len(), 1);
        assert_eq!(errors[0].field, "spec");
        let FieldCause::Forbidden(why) = &errors[0].cause else { panic!("{errors:?}") };
        assert!(why.starts_with(ONLY), "{why}");
        assert!(why.ends_with("\nspec.nodeName: \"a\" -> \"b\""), "{why}");
        assert_eq!(changed(|pod| pod["spec"]["hostNetwork"] = json!(true)).len(), 1);
        assert_eq!(changed(|pod| pod["spec"]["containers"][0]["command"] = json!(["x"])).len(), 1);
    }

    #[test]
    fn containers_come_and_go_only_with_their_pod() {
        let errors = changed(|pod| pod["spec"]["containers"] = json!([]));
        assert_eq!(errors[0].field, "spec.containers");
        let errors = changed(|pod| pod["spec"]["containers"][0]["image"] = json!(""));
        assert_eq!(errors[0].field, "spec.containers[0].image");
    }

    #[test]
    fn deadlines_only_shrink_and_tolerations_only_grow() {
        assert_eq!(changed(|pod| pod["spec"]["activeDeadlineSeconds"] = json!(11)).len(), 1);
        let gone = changed(|pod| {
            pod["spec"].as_object_mut().expect("an object").remove("activeDeadlineSeconds");
        });
        assert_eq!(gone.len(), 1);
        assert_eq!(changed(|pod| pod["spec"]["tolerations"] = json!([]))[0].field, "spec.tolerations");
    }

    #[test]
    fn a_container_that_ended_for_good_stays_ended() {
        let mut old = pod();
        old["spec"]["restartPolicy"] = json!("Never");
        old["status"]["containerStatuses"] = json!([{"name": "c", "state": {"terminated": {"exitCode": 0}}}]);
        let mut new = old.clone();
        assert_eq!(validate_status(&new, &old), []);
        new["status"]["containerStatuses"] = json!([{"name": "c", "state": {"running": {}}}]);
        assert_eq!(validate_status(&new, &old)[0].field, "status.containerStatuses[0].state");
        new["spec"]["restartPolicy"] = json!("Always");
        assert_eq!(validate_status(&new, &old), []);
    }

    #[test]
    fn addresses_of_a_status_are_checked() {
        let mut new = pod();
        new["status"]["podIP"] = json!("10.0.0.1");
        new["status"]["podIPs"] = json!([{"ip": "10.0.0.2"}, {"ip": "x"}, {"ip": "x"}]);
        assert_eq!(validate_status(&new, &pod()).len(), 4);
        new["status"]["podIPs"] = json!([{"ip": "10.0.0.1"}]);
        assert_eq!(validate_status(&new, &pod()), []);
    }
}
