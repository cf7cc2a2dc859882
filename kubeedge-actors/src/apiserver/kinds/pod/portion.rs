//! `pods/resize` and `pods/ephemeralcontainers`: what of a pod that runs may change, and only there.

use serde_json::Value;

use super::container::{self, Context, check_resize_policy, check_resources};
use super::qos;
use crate::apiserver::kinds::fields::{Errors, Path, entries, flag, list, list_mut, text};
use crate::apiserver::kinds::portion::Portion;
use crate::apiserver::status::FieldError;

/// Processor and memory of containers.
pub(super) const RESIZE: Portion = Portion { name: "resize", take: take_resources, validate: validate_resize };
/// Containers that are added to look into the others.
pub(super) const EPHEMERAL: Portion =
    Portion { name: "ephemeralcontainers", take: take_ephemeral, validate: validate_ephemeral };

/// These change by a resize.
const RESIZED: [&str; 2] = ["cpu", "memory"];
const LISTS: [&str; 2] = ["containers", "initContainers"];

/// A pod that the node made itself; its manifest says what it has.
fn is_mirror(pod: &Value) -> bool {
    pod.pointer("/metadata/annotations/kubernetes.io~1config.mirror").is_some()
}

/// Those of a list that have resources while the others run.
fn stays(field: &str, container: &Value) -> bool {
    field == "containers" || text(container, "/restartPolicy") == "Always"
}

fn take_resources(sent: &Value, old: &Value) -> Value {
    let mut new = old.clone();
    let Some(spec) = new.get_mut("spec") else { return new };
    for field in LISTS {
        let sent = list(sent, &format!("/spec/{field}"));
        for container in list_mut(spec, field) {
            let name = text(container, "/name").to_owned();
            let Some(wanted) = sent.iter().find(|sent| text(sent, "/name") == name) else { continue };
            if !stays(field, container) {
                continue;
            }
            let Some(fields) = container.as_object_mut() else { continue };
            for member in ["resources", "resizePolicy"] {
                match wanted.get(member) {
                    Some(value) => fields.insert(member.to_owned(), value.clone()),
                    None => fields.remove(member),
                };
            }
        }
    }
    new
}

fn validate_resize(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let spec = Path::new("spec");
    if is_mirror(old) {
        errors.forbidden(&spec, "static pods cannot be resized");
        return errors.done();
    }
    for field in LISTS {
        let pairs = list(new, &format!("/spec/{field}")).iter().zip(list(old, &format!("/spec/{field}")));
        for (index, (new, old)) in pairs.enumerate() {
            let path = spec.field(field).index(index);
            check_resources(new, &path.field("resources"), &mut errors);
            check_resize_policy(new, &path.field("resizePolicy"), &mut errors);
            check_change(new, old, &path.field("resources"), &mut errors);
        }
    }
    let (class, before) = (qos::class(new), qos::class(old));
    if class != before {
        errors.invalid(&spec, class, "Pod QOS Class may not change as a result of resizing");
    }
    errors.done()
}

fn check_change(new: &Value, old: &Value, path: &Path, errors: &mut Errors) {
    for field in ["limits", "requests"] {
        let pointer = format!("/resources/{field}");
        let has = |container: &Value, name: &str| entries(container, &pointer).any(|(known, _)| known == name);
        for name in RESIZED.into_iter().filter(|name| has(old, name) && !has(new, name)) {
            errors.forbidden(&path.field(field).key(name), format!("resource {field} cannot be removed"));
        }
        let other = |(name, _): &(&String, &Value)| !RESIZED.contains(&name.as_str());
        if !entries(new, &pointer).filter(other).eq(entries(old, &pointer).filter(other)) {
            errors.forbidden(&path.field(field), "only cpu and memory resources are mutable");
        }
    }
}

fn take_ephemeral(sent: &Value, old: &Value) -> Value {
    let mut new = old.clone();
    let Some(spec) = new.get_mut("spec").and_then(Value::as_object_mut) else { return new };
    match sent.pointer("/spec/ephemeralContainers") {
        Some(containers) => spec.insert("ephemeralContainers".to_owned(), containers.clone()),
        None => spec.remove("ephemeralContainers"),
    };
    new
}

/// What a container has not that is added to a pod which runs.
const NOT_EPHEMERAL: [&str; 7] =
    ["ports", "livenessProbe", "readinessProbe", "startupProbe", "lifecycle", "resizePolicy", "restartPolicy"];

fn validate_ephemeral(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let path = Path::new("spec").field("ephemeralContainers");
    if is_mirror(old) {
        errors.forbidden(&path, "static pods do not support ephemeral containers");
        return errors.done();
    }
    let all = list(new, "/spec/ephemeralContainers");
    let lasting = || LISTS.into_iter().flat_map(|field| list(new, &format!("/spec/{field}")));
    let mut names: Vec<&str> = lasting().map(|container| text(container, "/name")).collect();
    let context = Context {
        volumes: list(new, "/spec/volumes").iter().map(|volume| text(volume, "/name")).collect(),
        host_network: flag(new, "/spec/hostNetwork"),
    };
    container::check_list(all, &path, &context, &mut names, &mut errors);
    for (index, container) in all.iter().enumerate() {
        let path = path.index(index);
        const WHY: &str = "cannot be set for an Ephemeral Container";
        for field in NOT_EPHEMERAL.into_iter().filter(|field| container.get(field).is_some()) {
            errors.forbidden(&path.field(field), WHY);
        }
        if ["limits", "requests"]
            .iter()
            .any(|field| entries(container, &format!("/resources/{field}")).next().is_some())
        {
            errors.forbidden(&path.field("resources"), WHY);
        }
        for (at, mount) in list(container, "/volumeMounts").iter().enumerate() {
            for field in ["subPath", "subPathExpr"].into_iter().filter(|field| mount.get(field).is_some()) {
                errors.forbidden(&path.field("volumeMounts").index(at).field(field), WHY);
            }
        }
        let target = text(container, "/targetContainerName");
        if !target.is_empty() && !lasting().any(|container| text(container, "/name") == target) {
            errors.not_found(&path.field("targetContainerName"), target);
        }
    }
    for before in list(old, "/spec/ephemeralContainers") {
        let name = text(before, "/name");
        match all.iter().find(|container| text(container, "/name") == name) {
            None => errors.forbidden(&path, format!("existing ephemeral containers {name:?} may not be removed\n")),
            Some(now) if now != before => {
                errors.forbidden(&path, format!("existing ephemeral containers {name:?} may not be changed\n"));
            }
            Some(_) => {}
        }
    }
    errors.done()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::apiserver::kinds::pod::KIND;

    fn pod(change: impl FnOnce(&mut Value)) -> Value {
        let limits = json!({"cpu": "500m", "memory": "64Mi", "example.com/x": "1"});
        let mut pod = json!({"metadata": {"name": "p", "labels": {"a": "b"}}, "spec": {
            "volumes": [{"name": "v", "emptyDir": {}}],
            "containers": [{"name": "c", "image": "i", "resources": {"limits": limits, "requests": {"cpu": "100m"}}}],
            "initContainers": [{"name": "i", "image": "i", "resources": {"requests": {"cpu": "1"}}}],
        }});
        change(&mut pod);
        (KIND.default)(&mut pod);
        pod
    }

    fn sent(portion: &Portion, change: impl FnOnce(&mut Value)) -> (Value, Vec<String>) {
        let old = pod(|_| ());
        let mut wanted = old.clone();
        change(&mut wanted);
        let mut new = (portion.take)(&wanted, &old);
        (KIND.default)(&mut new);
        let errors = (portion.validate)(&new, &old).into_iter().map(|error| error.field).collect();
        (new, errors)
    }

    #[test]
    fn a_resize_takes_processor_and_memory_and_nothing_else() {
        let (new, errors) = sent(&RESIZE, |pod| {
            pod["spec"]["containers"][0]["resources"]["limits"]["cpu"] = "1".into();
            pod["spec"]["containers"][0]["image"] = "other".into();
            pod["spec"]["initContainers"][0]["resources"]["requests"]["cpu"] = "2".into();
            pod["spec"]["hostNetwork"] = true.into();
            pod["metadata"]["labels"]["a"] = "c".into();
        });
        assert_eq!(errors, Vec::<String>::new());
        let mut expected = pod(|_| ());
        expected["spec"]["containers"][0]["resources"]["limits"]["cpu"] = "1".into();
        assert_eq!(new, expected);
    }

    #[test]
    fn a_resize_that_is_none_is_refused_where_it_stands() {
        let refused =
            |change: &dyn Fn(&mut Value)| sent(&RESIZE, |pod| change(&mut pod["spec"]["containers"][0]["resources"])).1;
        let at = "spec.containers[0].resources";
        let removed = refused(&|resources| drop(resources["limits"].as_object_mut().unwrap().remove("memory")));
        assert_eq!(removed, [format!("{at}.limits[memory]")]);
        let other = refused(&|resources| {
            resources["limits"]["example.com/x"] = "2".into();
            resources["requests"]["example.com/x"] = "2".into();
        });
        assert_eq!(other, [format!("{at}.limits"), format!("{at}.requests")]);
        assert_eq!(refused(&|resources| resources["requests"]["cpu"] = "1".into()), [format!("{at}.requests")]);
        let guaranteed = |pod: &mut Value| {
            let all = json!({"cpu": "1", "memory": "1Gi"});
            pod["spec"]["containers"][0]["resources"] = json!({"limits": all, "requests": all});
            pod["spec"].as_object_mut().unwrap().remove("initContainers");
        };
        let (old, mut less) = (pod(guaranteed), pod(guaranteed));
        less["spec"]["containers"][0]["resources"]["requests"]["cpu"] = "500m".into();
        let errors = validate_resize(&(RESIZE.take)(&less, &old), &old);
        assert_eq!(errors.into_iter().map(|error| error.field).collect::<Vec<_>>(), ["spec"], "another class");
        let mirror = pod(|pod| pod["metadata"]["annotations"] = json!({"kubernetes.io/config.mirror": "x"}));
        assert_eq!(validate_resize(&mirror, &mirror).len(), 1);
        let policy = sent(&RESIZE, |pod| {
            pod["spec"]["containers"][0]["resizePolicy"] = json!([{"resourceName": "cpu", "restartPolicy": "Sometimes"}, {"resourceName": "disk", "restartPolicy": "NotRequired"}]);
        });
        let at = "spec.containers[0].resizePolicy";
        assert_eq!(policy.1, [format!("{at}[0].restartPolicy"), format!("{at}[1].resourceName")]);
    }

    #[test]
    fn ephemeral_containers_come_and_stay_as_they_are() {
        let debug = |extra: Value| {
            let mut container = json!({"name": "debug", "image": "busybox", "targetContainerName": "c"});
            for (field, value) in extra.as_object().unwrap() {
                container[field] = value.clone();
            }
            container
        };
        let add = |container: Value| sent(&EPHEMERAL, |pod| pod["spec"]["ephemeralContainers"] = json!([container]));
        let (with, errors) = add(debug(json!({"volumeMounts": [{"name": "v", "mountPath": "/v"}]})));
        assert_eq!(errors, Vec::<String>::new());
        assert_eq!(with["spec"]["ephemeralContainers"][0]["terminationMessagePolicy"], "File");
        let at = "spec.ephemeralContainers[0]";
        assert_eq!(add(debug(json!({"name": "c"}))).1, [format!("{at}.name")]);
        assert_eq!(add(debug(json!({"targetContainerName": "x"}))).1, [format!("{at}.targetContainerName")]);
        let fields = add(debug(json!({"ports": [{"containerPort": 1}], "resources": {"limits": {"cpu": "1"}}}))).1;
        assert_eq!(fields, [format!("{at}.ports"), format!("{at}.resources")]);

        let without = (EPHEMERAL.take)(&pod(|_| ()), &with);
        assert_eq!(validate_ephemeral(&without, &with).len(), 1, "it may not go");
        let mut other = with.clone();
        other["spec"]["ephemeralContainers"][0]["image"] = "other".into();
        assert_eq!(validate_ephemeral(&other, &with).len(), 1, "it may not change");
        assert_eq!(validate_ephemeral(&with, &with).len(), 0);
    }
}
