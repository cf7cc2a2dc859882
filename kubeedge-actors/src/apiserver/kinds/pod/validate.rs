//! Validation of a new pod.

use serde_json::Value;

use super::container::{self, Context, check_ids};
use super::probe::NOT_NEGATIVE;
use super::{CONTAINER_LISTS, volume};
use crate::apiserver::kinds::fields::{Errors, Path, entries, flag, integer, list, text};
use crate::apiserver::kinds::{names, node};
use crate::apiserver::status::FieldError;

/// Everything that is wrong with a pod.
pub(super) fn validate(pod: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let path = Path::new("spec");
    if let Some(spec) = pod.get("spec") {
        check_spec(spec, &path, &mut errors);
    } else {
        errors.required(&path.field("containers"), "");
    }
    errors.done()
}

/// Checks the spec of a pod, or of a template of pods.
pub(in crate::apiserver::kinds) fn check_spec(spec: &Value, path: &Path, errors: &mut Errors) {
    let volumes = list(spec, "/volumes");
    volume::check_list(volumes, &path.field("volumes"), errors);
    let context = Context {
        volumes: volumes.iter().map(|v| text(v, "/name")).collect(),
        host_network: flag(spec, "/hostNetwork"),
    };
    let mut seen = Vec::new();
    let containers = list(spec, "/containers");
    let at = path.field("containers");
    if containers.is_empty() {
        errors.required(&at, "");
    }
    container::check_list(containers, &at, &context, &mut seen, errors);
    container::check_host_ports(containers, &at, errors);
    check_init(spec, path, &context, &mut seen, errors);
    if !list(spec, "/ephemeralContainers").is_empty() {
        let why = "cannot be set on create";
        errors.forbidden(&path.field("ephemeralContainers"), why);
    }
    match text(spec, "/restartPolicy") {
        "" => errors.required(&path.field("restartPolicy"), ""),
        policy => errors.one_of(&path.field("restartPolicy"), policy, &["Always", "OnFailure", "Never"]),
    }
    match text(spec, "/dnsPolicy") {
        "" => errors.required(&path.field("dnsPolicy"), ""),
        policy => {
            let all = ["ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"];
            errors.one_of(&path.field("dnsPolicy"), policy, &all);
        }
    }
    check_names(spec, path, errors);
    check_selector(spec, path, errors);
    check_security(spec, path, errors);
    for (index, alias) in list(spec, "/hostAliases").iter().enumerate() {
        let path = path.field("hostAliases").index(index);
        let ip = text(alias, "/ip");
        errors.format(&path.field("ip"), ip, names::ip(ip));
        for (at, name) in list(alias, "/hostnames").iter().enumerate() {
            let name = name.as_str().unwrap_or_default();
            errors.format(&path.field("hostnames").index(at), name, names::dns_subdomain(name));
        }
    }
    check_tolerations(list(spec, "/tolerations"), &path.field("tolerations"), errors);
    check_numbers(spec, path, errors);
    check_dns(spec, path, errors);
}

fn check_init<'a>(spec: &'a Value, path: &Path, context: &Context<'a>, seen: &mut Vec<&'a str>, errors: &mut Errors) {
    let init = list(spec, "/initContainers");
    let path = path.field("initContainers");
    container::check_list(init, &path, context, seen, errors);
    for (index, container) in init.iter().enumerate() {
        let path = path.index(index);
        match text(container, "/restartPolicy") {
            "" => {
                for field in ["lifecycle", "livenessProbe", "readinessProbe", "startupProbe"] {
                    if container.get(field).is_some() {
                        let why = "may not be set for init containers without restartPolicy=Always";
                        errors.forbidden(&path.field(field), why);
                    }
                }
            }
            policy => errors.one_of(&path.field("restartPolicy"), policy, &["Always"]),
        }
    }
}

fn check_names(spec: &Value, path: &Path, errors: &mut Errors) {
    type Check = fn(&str) -> Vec<String>;
    let checks: [(&str, Check); 8] = [
        ("nodeName", names::dns_subdomain),
        ("serviceAccountName", names::dns_subdomain),
        ("hostname", names::dns_label),
        ("subdomain", names::dns_label),
        ("priorityClassName", names::dns_subdomain),
        ("runtimeClassName", names::dns_subdomain),
        ("schedulerName", names::qualified_name),
        ("nominatedNodeName", names::dns_subdomain),
    ];
    for (field, check) in checks {
        let name = text(spec, &format!("/{field}"));
        if !name.is_empty() {
            errors.format(&path.field(field), name, check(name));
        }
    }
}

fn check_selector(spec: &Value, path: &Path, errors: &mut Errors) {
    let path = path.field("nodeSelector");
    for (key, value) in entries(spec, "/nodeSelector") {
        errors.format(&path, key, names::qualified_name(key));
        let value = value.as_str().unwrap_or_default();
        errors.format(&path, value, names::label_value(value));
    }
}

fn check_security(spec: &Value, path: &Path, errors: &mut Errors) {
    let Some(context) = spec.get("securityContext") else { return };
    let (shared, path) = (path.field("shareProcessNamespace"), path.field("securityContext"));
    check_ids(context, &["runAsUser", "runAsGroup", "fsGroup"], &path, errors);
    for (index, sysctl) in list(context, "/sysctls").iter().enumerate() {
        let name = text(sysctl, "/name");
        let path = path.field("sysctls").index(index).field("name");
        if name.is_empty() {
            errors.required(&path, "");
        } else if !name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'/')) {
            errors.invalid(&path, name, "must consist of lower case letters, digits, '-', '_', '.' and '/'");
        }
    }
    if flag(spec, "/shareProcessNamespace") && flag(spec, "/hostPID") {
        let why = "ShareProcessNamespace and HostPID cannot both be enabled";
        errors.invalid(&shared, true, why);
    }
}

/// Checks a list of tolerations.
pub(in crate::apiserver::kinds) fn check_tolerations(tolerations: &[Value], path: &Path, errors: &mut Errors) {
    for (index, toleration) in tolerations.iter().enumerate() {
        let path = path.index(index);
        let key = text(toleration, "/key");
        if !key.is_empty() {
            errors.format(&path.field("key"), key, names::qualified_name(key));
        }
        let operator = text(toleration, "/operator");
        if key.is_empty() && operator != "Exists" {
            let why = "operator must be Exists when `key` is empty, which means \"match all values and all keys\"";
            errors.invalid(&path.field("operator"), operator, why);
        }
        let effect = text(toleration, "/effect");
        if toleration.get("tolerationSeconds").is_some() && effect != "NoExecute" {
            let why = "effect must be 'NoExecute' when `tolerationSeconds` is set";
            errors.invalid(&path.field("effect"), effect, why);
        }
        let value = text(toleration, "/value");
        match operator {
            "" | "Equal" => errors.format(&path.field("operator"), value, names::label_value(value)),
            "Exists" if !value.is_empty() => {
                errors.invalid(&path.field("operator"), value, "value must be empty when `operator` is 'Exists'");
            }
            "Exists" => {}
            operator => errors.one_of(&path.field("operator"), operator, &["Equal", "Exists"]),
        }
        if !effect.is_empty() {
            errors.one_of(&path.field("effect"), effect, node::EFFECTS);
        }
    }
}

fn check_numbers(spec: &Value, path: &Path, errors: &mut Errors) {
    if let Some(seconds) = integer(spec, "/activeDeadlineSeconds")
        && !(1..=i64::from(i32::MAX)).contains(&seconds)
    {
        let why = format!("must be between 1 and {}, inclusive", i32::MAX);
        errors.invalid(&path.field("activeDeadlineSeconds"), seconds, why);
    }
    if let Some(seconds) = integer(spec, "/terminationGracePeriodSeconds")
        && seconds < 0
    {
        errors.invalid(&path.field("terminationGracePeriodSeconds"), seconds, NOT_NEGATIVE);
    }
    let policy = text(spec, "/preemptionPolicy");
    if !policy.is_empty() {
        errors.one_of(&path.field("preemptionPolicy"), policy, &["Never", "PreemptLowerPriority"]);
    }
}

/// Most name servers, and most search domains with their longest total length, that a resolver file may have.
const DNS_LIMITS: (usize, usize, usize) = (3, 32, 2048);

fn check_dns(spec: &Value, path: &Path, errors: &mut Errors) {
    let path = path.field("dnsConfig");
    let servers = list(spec, "/dnsConfig/nameservers");
    if text(spec, "/dnsPolicy") == "None" && servers.is_empty() {
        let why = "must provide at least one DNS nameserver when `dnsPolicy` is None";
        errors.required(&path.field("nameservers"), why);
    }
    if servers.len() > DNS_LIMITS.0 {
        let why = format!("must not have more than {} nameservers", DNS_LIMITS.0);
        errors.invalid(&path.field("nameservers"), servers.to_vec(), why);
    }
    for (index, server) in servers.iter().enumerate() {
        let server = server.as_str().unwrap_or_default();
        errors.format(&path.field("nameservers").index(index), server, names::ip(server));
    }
    let searches = list(spec, "/dnsConfig/searches");
    let length: usize = searches.iter().filter_map(Value::as_str).map(|s| s.len() + 1).sum();
    if searches.len() > DNS_LIMITS.1 || length > DNS_LIMITS.2 + 1 {
        let why = format!("must not have more than {} search paths or {} characters", DNS_LIMITS.1, DNS_LIMITS.2);
        errors.invalid(&path.field("searches"), searches.to_vec(), why);
    }
}

/// The names of all containers, in the order of the lists.
pub(super) fn container_names(pod: &Value) -> Vec<&str> {
    CONTAINER_LISTS
        .iter()
        .flat_map(|field| pod.get("spec").and_then(|s| s.get(field)).and_then(Value::as_array).into_iter().flatten())
        .map(|container| text(container, "/name"))
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::apiserver::kinds::pod::KIND;
    use crate::apiserver::status::FieldCause;

    fn errors(spec: Value) -> Vec<FieldError> {
        let mut pod = json!({"metadata": {"name": "p"}, "spec": spec});
        (KIND.default)(&mut pod);
        validate(&pod)
    }

    fn fields(spec: Value) -> Vec<String> {
        errors(spec).into_iter().map(|e| e.field).collect()
    }

    fn with_container(extra: Value) -> Value {
        let mut container = json!({"name": "c", "image": "i"});
        for (field, value) in extra.as_object().expect("an object") {
            container[field] = value.clone();
        }
        json!({"containers": [container]})
    }

    #[test]
    fn mounts_refer_to_volumes() {
        let mounts = json!([{"name": "v", "mountPath": "/a"}, {"name": "w", "mountPath": "/a", "subPath": "/x"}]);
        let mut spec = with_container(json!({"volumeMounts": mounts}));
        spec["volumes"] = json!([{"name": "v"}]);
        assert_eq!(
            fields(spec),
            [
                "spec.containers[0].volumeMounts[1].name",
                "spec.containers[0].volumeMounts[1].mountPath",
                "spec.containers[0].volumeMounts[1].subPath"
            ]
        );
    }

    #[test]
    fn requests_stay_within_limits() {
        let resources = json!({"limits": {"cpu": "100m"}, "requests": {"cpu": "200m"}});
        assert_eq!(
            errors(with_container(json!({"resources": resources}))),
            [FieldError::new(
                "spec.containers[0].resources.requests",
                FieldCause::Invalid(json!("200m"), "must be less than or equal to cpu limit of 100m".to_owned())
            )]
        );
        let resources = json!({"limits": {"gpus": "1", "a.b/gpu": "0.5", "memory": "-1"}});
        assert_eq!(fields(with_container(json!({"resources": resources}))).len(), 6);
    }

    #[test]
    fn environment_sources_are_checked() {
        let env = json!([{"name": "A", "value": "x", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
            {"name": "", "valueFrom": {}}, {"name": "B", "valueFrom": {"fieldRef": {"fieldPath": "spec.image"}}},
            {"name": "C", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['app']"}}},
            {"name": "D", "valueFrom": {"secretKeyRef": {"name": "s", "key": ""}}}]);
        let at = "spec.containers[0].env";
        assert_eq!(
            fields(with_container(json!({"env": env}))),
            [
                format!("{at}[0].valueFrom"),
                format!("{at}[1].name"),
                format!("{at}[1].valueFrom"),
                format!("{at}[2].valueFrom.fieldRef.fieldPath"),
                format!("{at}[4].valueFrom.secretKeyRef.key"),
            ]
        );
    }

    #[test]
    fn ports_are_unique_on_the_host() {
        let port = json!({"containerPort": 80, "hostPort": 80});
        let spec = json!({"containers": [{"name": "a", "image": "i", "ports": [port]},
            {"name": "b", "image": "i", "ports": [port]}]});
        assert_eq!(fields(spec), ["spec.containers[1].ports[0].hostPort"]);
        let ports = json!([{"containerPort": 80, "name": "a"}, {"containerPort": 81, "name": "a", "protocol": "ICMP"}]);
        assert_eq!(
            fields(with_container(json!({"ports": ports}))),
            ["spec.containers[0].ports[1].name", "spec.containers[0].ports[1].protocol"]
        );
    }

    #[test]
    fn tolerations_and_policies_are_checked() {
        let mut spec = with_container(json!({"imagePullPolicy": "Sometimes", "image": " i"}));
        spec["tolerations"] = json!([{"operator": "Equal"}, {"key": "a", "operator": "Exists", "value": "b"},
            {"key": "a", "tolerationSeconds": 3}, {"operator": "Exists"}]);
        spec["dnsPolicy"] = json!("None");
        spec["activeDeadlineSeconds"] = json!(0);
        spec["nodeSelector"] = json!({"a b": "c"});
        assert_eq!(
            fields(spec),
            [
                "spec.containers[0].image",
                "spec.containers[0].imagePullPolicy",
                "spec.nodeSelector",
                "spec.tolerations[0].operator",
                "spec.tolerations[1].operator",
                "spec.tolerations[2].effect",
                "spec.activeDeadlineSeconds",
                "spec.dnsConfig.nameservers"
            ]
        );
    }

    #[test]
    fn init_containers_share_the_name_space_and_have_no_probes() {
        let mut spec = with_container(json!({}));
        let probe = json!({"exec": {"command": ["x"]}});
        spec["initContainers"] = json!([{"name": "c", "image": "i", "livenessProbe": probe},
            {"name": "d", "image": "i", "livenessProbe": probe, "restartPolicy": "Always"}]);
        assert_eq!(fields(spec), ["spec.initContainers[0].name", "spec.initContainers[0].livenessProbe"]);
    }

    proptest! {
        #[test]
        fn whatever_stands_in_a_spec_is_judged_without_a_panic_and_within_bounds(
            name in "\\PC{0,8}", number in any::<i64>(), quantity in "\\PC{0,8}", many in 0usize..300,
        ) {
            let container = json!({"name": name, "image": quantity,
                "ports": [{"containerPort": number, "hostPort": number}],
                "env": [{"name": name}], "resources": {"limits": {name.as_str(): quantity}},
                "livenessProbe": {"tcpSocket": {"port": name}}});
            let found = errors(json!({"containers": vec![container; many], "volumes": [{"name": name}],
                "terminationGracePeriodSeconds": number, "nodeName": name}));
            prop_assert!(found.len() <= crate::apiserver::kinds::fields::MAX_ERRORS);
        }
    }
}
