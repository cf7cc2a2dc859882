//! What a pod gets that did not say otherwise.

use serde_json::{Map, Value, json};

use super::{CONTAINER_LISTS, qos};
use crate::apiserver::kinds::fields::{flag, list_mut, object_mut, set_missing, text};

/// Mode of files in config map, secret, downward API and projected volumes: 0644.
const FILE_MODE: u32 = 0o644;
/// Priorities of the two classes that every cluster has.
const CLASSES: &[(&str, i32)] = &[("system-node-critical", 2_000_001_000), ("system-cluster-critical", 2_000_000_000)];

/// Sets defaults of a pod, on create and update.
pub(super) fn default(object: &mut Value) {
    set_missing(object, "spec", json!({}));
    if let Some(spec) = object.get_mut("spec") {
        default_spec(spec);
    }
    let class = qos::class(object);
    set_missing(object, "status", json!({}));
    if let Some(status) = object.get_mut("status") {
        set_missing(status, "phase", "Pending");
        set_missing(status, "qosClass", class);
    }
}

fn default_spec(spec: &mut Value) {
    default_template_spec(spec);
    set_missing(spec, "enableServiceLinks", true);
    let class = text(spec, "/priorityClassName");
    let priority = CLASSES.iter().find(|(name, _)| *name == class).map_or(0, |(_, priority)| *priority);
    set_missing(spec, "priority", priority);
    set_missing(spec, "preemptionPolicy", "PreemptLowerPriority");
    let host_network = flag(spec, "/hostNetwork");
    for field in CONTAINER_LISTS {
        for container in list_mut(spec, field) {
            default_of_pod(container, host_network);
        }
    }
}

/// What the spec of a pod template gets: the rest is decided when a pod is made from it.
pub(in crate::apiserver::kinds) fn default_template_spec(spec: &mut Value) {
    set_missing(spec, "restartPolicy", "Always");
    set_missing(spec, "terminationGracePeriodSeconds", 30);
    set_missing(spec, "dnsPolicy", "ClusterFirst");
    set_missing(spec, "securityContext", json!({}));
    set_missing(spec, "schedulerName", "default-scheduler");
    // Two names of one field; the newer one leads.
    match (text(spec, "/serviceAccountName").to_owned(), text(spec, "/serviceAccount").to_owned()) {
        (name, old) if name.is_empty() && !old.is_empty() => set_missing(spec, "serviceAccountName", old),
        (name, old) if !name.is_empty() && name != old => spec["serviceAccount"] = json!(name),
        _ => {}
    }
    for field in CONTAINER_LISTS {
        for container in list_mut(spec, field) {
            default_container(container);
        }
    }
    for volume in list_mut(spec, "volumes") {
        default_volume(volume);
    }
}

/// Ports of the host and requests, which a template does not say.
fn default_of_pod(container: &mut Value, host_network: bool) {
    for port in list_mut(container, "ports") {
        if host_network && let Some(number) = port.get("containerPort").cloned() {
            set_missing(port, "hostPort", number);
        }
    }
    if let Some(resources) = object_mut(container, "resources")
        && let Some(limits) = resources.get("limits").and_then(Value::as_object).cloned()
    {
        let requests = resources.entry("requests").or_insert_with(|| Map::new().into());
        if let Some(requests) = requests.as_object_mut() {
            for (name, amount) in limits {
                requests.entry(name).or_insert(amount);
            }
        }
    }
}

fn default_container(container: &mut Value) {
    set_missing(container, "terminationMessagePath", "/dev/termination-log");
    set_missing(container, "terminationMessagePolicy", "File");
    let policy = pull_policy(text(container, "/image"));
    set_missing(container, "imagePullPolicy", policy);
    for port in list_mut(container, "ports") {
        set_missing(port, "protocol", "TCP");
    }
    for env in list_mut(container, "env") {
        if let Some(source) = env.get_mut("valueFrom") {
            default_field_ref(source);
        }
    }
    for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(probe) = container.get_mut(probe) {
            set_missing(probe, "timeoutSeconds", 1);
            set_missing(probe, "periodSeconds", 10);
            set_missing(probe, "successThreshold", 1);
            set_missing(probe, "failureThreshold", 3);
            if let Some(grpc) = probe.get_mut("grpc") {
                set_missing(grpc, "service", "");
            }
            default_http(probe);
        }
    }
    for hook in ["postStart", "preStop"] {
        if let Some(hook) = container.pointer_mut(&format!("/lifecycle/{hook}")) {
            default_http(hook);
        }
    }
}

fn default_http(handler: &mut Value) {
    if let Some(get) = handler.get_mut("httpGet") {
        set_missing(get, "path", "/");
        set_missing(get, "scheme", "HTTP");
    }
}

fn default_field_ref(holder: &mut Value) {
    if let Some(field) = holder.get_mut("fieldRef") {
        set_missing(field, "apiVersion", "v1");
    }
}

/// `Always` for images without a tag or digest or with the tag `latest`, else `IfNotPresent`.
fn pull_policy(image: &str) -> &'static str {
    if image.is_empty() || image.contains('@') {
        return "IfNotPresent";
    }
    // A colon before the last slash belongs to the registry's port.
    let last = image.rsplit('/').next().unwrap_or(image);
    match last.split_once(':') {
        None | Some((_, "latest")) => "Always",
        Some(_) => "IfNotPresent",
    }
}

fn default_volume(volume: &mut Value) {
    if volume.as_object().is_some_and(|fields| fields.keys().all(|field| field == "name")) {
        volume["emptyDir"] = json!({});
        return;
    }
    for field in ["configMap", "secret", "downwardAPI", "projected"] {
        if let Some(source) = volume.get_mut(field) {
            set_missing(source, "defaultMode", FILE_MODE);
            for item in list_mut(source, "items") {
                default_field_ref(item);
            }
        }
    }
    if let Some(path) = volume.get_mut("hostPath") {
        set_missing(path, "type", "");
    }
    if let Some(projected) = volume.get_mut("projected") {
        for source in list_mut(projected, "sources") {
            if let Some(token) = source.get_mut("serviceAccountToken") {
                set_missing(token, "expirationSeconds", 3600);
            }
            if let Some(downward) = source.get_mut("downwardAPI") {
                for item in list_mut(downward, "items") {
                    default_field_ref(item);
                }
            }
        }
    }
    if let Some(claim) = volume.pointer_mut("/ephemeral/volumeClaimTemplate/spec") {
        set_missing(claim, "volumeMode", "Filesystem");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pull_policy_follows_the_tag() {
        for (image, policy) in [
            ("busybox", "Always"),
            ("busybox:latest", "Always"),
            ("busybox:1", "IfNotPresent"),
            ("localhost:5000/busybox", "Always"),
            ("localhost:5000/busybox:1", "IfNotPresent"),
            ("busybox@sha256:0123", "IfNotPresent"),
            ("", "IfNotPresent"),
        ] {
            assert_eq!(pull_policy(image), policy, "{image}");
        }
    }

    #[test]
    fn volumes_get_modes_and_a_volume_of_nothing_is_an_empty_directory() {
        let mut spec = json!({"volumes": [{"name": "a"}, {"name": "b", "secret": {"secretName": "s"}},
            {"name": "c", "hostPath": {"path": "/x"}},
            {"name": "d", "projected": {"sources": [{"serviceAccountToken": {"path": "t"}},
                {"downwardAPI": {"items": [{"path": "n", "fieldRef": {"fieldPath": "metadata.name"}}]}}]}}]});
        default_spec(&mut spec);
        assert_eq!(
            spec["volumes"],
            json!([{"name": "a", "emptyDir": {}}, {"name": "b", "secret": {"secretName": "s", "defaultMode": 420}},
                {"name": "c", "hostPath": {"path": "/x", "type": ""}},
                {"name": "d", "projected": {"defaultMode": 420, "sources": [
                    {"serviceAccountToken": {"path": "t", "expirationSeconds": 3600}},
                    {"downwardAPI": {"items": [
                        {"path": "n", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.name"}}]}}]}}])
        );
    }

    #[test]
    fn host_network_opens_its_ports_on_the_host_and_hooks_get_a_scheme() {
        let mut spec = json!({"hostNetwork": true, "containers": [{"name": "c", "ports": [{"containerPort": 80}],
            "lifecycle": {"preStop": {"httpGet": {"port": 80}}}}]});
        default_spec(&mut spec);
        let container = &spec["containers"][0];
        assert_eq!(container["ports"], json!([{"containerPort": 80, "hostPort": 80, "protocol": "TCP"}]));
        assert_eq!(container["lifecycle"]["preStop"]["httpGet"], json!({"port": 80, "path": "/", "scheme": "HTTP"}));
    }

    #[test]
    fn defaulting_twice_changes_nothing_and_keeps_what_was_said() {
        let mut pod = json!({"spec": {"serviceAccount": "old", "priorityClassName": "system-node-critical",
            "terminationGracePeriodSeconds": 0, "enableServiceLinks": false,
            "containers": [{"name": "c", "image": "i:1",
                "livenessProbe": {"exec": {"command": ["x"]}, "periodSeconds": 3},
                "resources": {"limits": {"cpu": "1", "memory": "1Mi"}, "requests": {"cpu": "500m"}}}]}});
        default(&mut pod);
        let spec = &pod["spec"];
        assert_eq!(spec["serviceAccountName"], "old");
        assert_eq!(spec["priority"], 2_000_001_000);
        assert_eq!(spec["terminationGracePeriodSeconds"], 0);
        assert_eq!(spec["enableServiceLinks"], false);
        let container = &spec["containers"][0];
        assert_eq!(container["resources"]["requests"], json!({"cpu": "500m", "memory": "1Mi"}));
        assert_eq!(container["livenessProbe"]["periodSeconds"], 3);
        assert_eq!(pod["status"], json!({"phase": "Pending", "qosClass": "Burstable"}));
        let mut again = pod.clone();
        default(&mut again);
        assert_eq!(again, pod);
    }
}
