//! Containers of a pod.

use serde_json::Value;

use super::probe::{self, NOT_NEGATIVE, PORT_RANGE};
use crate::apiserver::kinds::fields::{Errors, Path, entries, flag, integer, list, text};
use crate::apiserver::kinds::names;
use crate::apiserver::kinds::quantity::Quantity;

/// What containers are checked against.
pub(super) struct Context<'a> {
    /// Names of the pod's volumes.
    pub(super) volumes: Vec<&'a str>,
    pub(super) host_network: bool,
}

/// Checks one list of containers; `names` holds the names of the lists before it.
pub(super) fn check_list<'a>(
    containers: &'a [Value],
    path: &Path,
    context: &Context<'a>,
    names: &mut Vec<&'a str>,
    errors: &mut Errors,
) {
    for (index, container) in containers.iter().enumerate() {
        let path = path.index(index);
        check(container, &path, context, errors);
        let name = text(container, "/name");
        if names.contains(&name) {
            errors.duplicate(&path.field("name"), name);
        } else if !name.is_empty() {
            names.push(name);
        }
        probe::check_all(container, &path, errors);
    }
}

fn check(container: &Value, path: &Path, context: &Context<'_>, errors: &mut Errors) {
    let name = text(container, "/name");
    if name.is_empty() {
        errors.required(&path.field("name"), "");
    } else {
        errors.format(&path.field("name"), name, names::dns_label(name));
    }
    check_image(container, path, errors);
    let policy = text(container, "/terminationMessagePolicy");
    match policy {
        "" => errors.required(&path.field("terminationMessagePolicy"), ""),
        policy => {
            errors.one_of(&path.field("terminationMessagePolicy"), policy, &["FallbackToLogsOnError", "File"]);
        }
    }
    check_ports(list(container, "/ports"), &path.field("ports"), context, errors);
    check_env(list(container, "/env"), &path.field("env"), errors);
    check_env_from(list(container, "/envFrom"), &path.field("envFrom"), errors);
    check_mounts(list(container, "/volumeMounts"), &path.field("volumeMounts"), context, errors);
    match text(container, "/imagePullPolicy") {
        "" => errors.required(&path.field("imagePullPolicy"), ""),
        policy => errors.one_of(&path.field("imagePullPolicy"), policy, &["Always", "IfNotPresent", "Never"]),
    }
    check_resources(container, &path.field("resources"), errors);
    check_resize_policy(container, &path.field("resizePolicy"), errors);
    if let Some(security) = container.get("securityContext") {
        check_security(security, &path.field("securityContext"), errors);
    }
}

/// An image must be named, without blanks around it.
pub(super) fn check_image(container: &Value, path: &Path, errors: &mut Errors) {
    let image = text(container, "/image");
    if image.is_empty() {
        errors.required(&path.field("image"), "");
    } else if image.trim() != image {
        errors.invalid(&path.field("image"), image, "must not have leading or trailing whitespace");
    }
}

const PROTOCOLS: &[&str] = &["SCTP", "TCP", "UDP"];

fn check_ports(ports: &[Value], path: &Path, context: &Context<'_>, errors: &mut Errors) {
    for (index, port) in ports.iter().enumerate() {
        let path = path.index(index);
        let name = text(port, "/name");
        if !name.is_empty() {
            errors.format(&path.field("name"), name, names::port_name(name));
            if ports[..index].iter().any(|other| text(other, "/name") == name) {
                errors.duplicate(&path.field("name"), name);
            }
        }
        let number = integer(port, "/containerPort").unwrap_or_default();
        match number {
            0 => errors.required(&path.field("containerPort"), ""),
            1..=65535 => {}
            _ => errors.invalid(&path.field("containerPort"), number, PORT_RANGE),
        }
        if let Some(host) = integer(port, "/hostPort") {
            if !(1..=65535).contains(&host) {
                errors.invalid(&path.field("hostPort"), host, PORT_RANGE);
            } else if context.host_network && host != number {
                errors.invalid(&path.field("hostPort"), host, "must match `containerPort`");
            }
        }
        match text(port, "/protocol") {
            "" => errors.required(&path.field("protocol"), ""),
            protocol => errors.one_of(&path.field("protocol"), protocol, PROTOCOLS),
        }
    }
}

/// Two containers of a pod cannot have one port of the host.
pub(super) fn check_host_ports(containers: &[Value], path: &Path, errors: &mut Errors) {
    let mut taken = Vec::new();
    for (index, container) in containers.iter().enumerate() {
        for (at, port) in list(container, "/ports").iter().enumerate() {
            let Some(host) = integer(port, "/hostPort").filter(|p| *p != 0) else { continue };
            let key = format!("{}/{}/{host}", text(port, "/protocol"), text(port, "/hostIP"));
            if taken.contains(&key) {
                errors.duplicate(&path.index(index).field("ports").index(at).field("hostPort"), key);
            } else {
                taken.push(key);
            }
        }
    }
}

fn check_env(env: &[Value], path: &Path, errors: &mut Errors) {
    for (index, variable) in env.iter().enumerate() {
        let path = path.index(index);
        let name = text(variable, "/name");
        if name.is_empty() {
            errors.required(&path.field("name"), "");
        } else {
            errors.format(&path.field("name"), name, names::env_name(name));
        }
        if let Some(source) = variable.get("valueFrom") {
            let path = path.field("valueFrom");
            if !text(variable, "/value").is_empty() {
                errors.invalid(&path, "", "may not be specified when `value` is not empty");
            }
            check_env_source(source, &path, errors);
        }
    }
}

/// Fields of the pod that environment variables may carry.
const ENV_FIELDS: &[&str] = &[
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];
const ENV_RESOURCES: &[&str] = &[
    "limits.cpu",
    "limits.ephemeral-storage",
    "limits.memory",
    "requests.cpu",
    "requests.ephemeral-storage",
    "requests.memory",
];

fn check_env_source(source: &Value, path: &Path, errors: &mut Errors) {
    let count = source.as_object().map_or(0, serde_json::Map::len);
    if count == 0 {
        errors.invalid(
            path,
            "",
            "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef`",
        );
    } else if count > 1 {
        errors.invalid(path, "", "may not have more than one field specified at a time");
    }
    if let Some(field) = source.get("fieldRef") {
        check_field_ref(field, ENV_FIELDS, &path.field("fieldRef"), errors);
    }
    if let Some(resource) = source.get("resourceFieldRef") {
        let path = path.field("resourceFieldRef").field("resource");
        match text(resource, "/resource") {
            "" => errors.required(&path, ""),
            name if name.contains("hugepages-") => {}
            name => errors.one_of(&path, name, ENV_RESOURCES),
        }
    }
    for field in ["configMapKeyRef", "secretKeyRef"] {
        if let Some(reference) = source.get(field) {
            let path = path.field(field);
            if text(reference, "/name").is_empty() {
                errors.required(&path.field("name"), "");
            }
            match text(reference, "/key") {
                "" => errors.required(&path.field("key"), ""),
                key => errors.format(&path.field("key"), key, names::config_key(key)),
            }
        }
    }
}

/// A reference to a field of the pod; labels and annotations are named with a subscript.
pub(super) fn check_field_ref(field: &Value, supported: &[&str], path: &Path, errors: &mut Errors) {
    let name = text(field, "/fieldPath");
    let path = path.field("fieldPath");
    let subscript = ["metadata.labels['", "metadata.annotations['"]
        .iter()
        .find_map(|prefix| name.strip_prefix(prefix).and_then(|rest| rest.strip_suffix("']")));
    if name.is_empty() {
        errors.required(&path, "");
    } else if let Some(key) = subscript {
        errors.format(&path, key, names::qualified_name(&key.to_lowercase()));
    } else if !supported.contains(&name) {
        let known = ["metadata.labels", "metadata.annotations", "spec.restartPolicy", "status.phase"];
        if ENV_FIELDS.contains(&name) || known.contains(&name) {
            errors.one_of(&path, name, supported);
        } else {
            errors.invalid(&path, name, format!("error converting fieldPath: field label not supported: {name}"));
        }
    }
}

fn check_env_from(sources: &[Value], path: &Path, errors: &mut Errors) {
    for (index, source) in sources.iter().enumerate() {
        let path = path.index(index);
        let prefix = text(source, "/prefix");
        if !prefix.is_empty() {
            errors.format(&path.field("prefix"), prefix, names::env_name(prefix));
        }
        let given: Vec<_> = ["configMapRef", "secretRef"].into_iter().filter(|f| source.get(f).is_some()).collect();
        match given.as_slice() {
            [] => errors.invalid(&path, "", "must specify one of: `configMapRef` or `secretRef`"),
            [field] if text(source, &format!("/{field}/name")).is_empty() => {
                errors.required(&path.field(field).field("name"), "");
            }
            [_] => {}
            _ => errors.invalid(&path, "", "may not have more than one field specified at a time"),
        }
    }
}

fn check_mounts(mounts: &[Value], path: &Path, context: &Context<'_>, errors: &mut Errors) {
    for (index, mount) in mounts.iter().enumerate() {
        let path = path.index(index);
        let name = text(mount, "/name");
        if name.is_empty() {
            errors.required(&path.field("name"), "");
        }
        if !context.volumes.contains(&name) {
            errors.not_found(&path.field("name"), name);
        }
        let at = text(mount, "/mountPath");
        if at.is_empty() {
            errors.required(&path.field("mountPath"), "");
        }
        if mounts[..index].iter().any(|other| text(other, "/mountPath") == at) {
            errors.invalid(&path.field("mountPath"), at, "must be unique");
        }
        let sub_path = text(mount, "/subPath");
        check_descending(sub_path, &path.field("subPath"), errors);
        let expression = text(mount, "/subPathExpr");
        check_descending(expression, &path.field("subPathExpr"), errors);
        if !sub_path.is_empty() && !expression.is_empty() {
            let why = "subPathExpr and subPath are mutually exclusive";
            errors.invalid(&path.field("subPathExpr"), expression, why);
        }
        let propagation = text(mount, "/mountPropagation");
        if !propagation.is_empty() {
            let all = ["Bidirectional", "HostToContainer", "None"];
            errors.one_of(&path.field("mountPropagation"), propagation, &all);
        }
    }
}

/// A path below something: relative and without `..`.
pub(super) fn check_descending(text: &str, path: &Path, errors: &mut Errors) {
    if text.starts_with('/') {
        errors.invalid(path, text, "must be a relative path");
    }
    if text.split('/').any(|part| part == "..") {
        errors.invalid(path, text, "must not contain '..'");
    }
}

const STANDARD_RESOURCES: [&str; 3] = ["cpu", "memory", "ephemeral-storage"];

/// Resources that are given whole and never promised twice.
fn is_whole(name: &str) -> bool {
    name.contains('/') || name.starts_with("hugepages-")
}

pub(in crate::apiserver::kinds) fn check_resources(container: &Value, path: &Path, errors: &mut Errors) {
    for field in ["limits", "requests"] {
        for (name, amount) in entries(container, &format!("/resources/{field}")) {
            let path = path.field(field).key(name);
            errors.format(&path, name, names::qualified_name(name));
            if !is_whole(name) && !STANDARD_RESOURCES.contains(&name.as_str()) {
                errors.invalid(&path, name.as_str(), "must be a standard resource for containers");
            }
            let text = amount.as_str().unwrap_or_default();
            let Some(amount) = Quantity::parse(text) else { continue };
            if amount.is_negative() {
                errors.invalid(&path, text, NOT_NEGATIVE);
            } else if name.contains('/') && !amount.is_integer() {
                errors.invalid(&path, text, "must be an integer");
            }
            if field == "requests" {
                check_request(container, name, amount, &path, errors);
            }
        }
    }
}

/// How another amount of a resource reaches a container that runs.
pub(super) fn check_resize_policy(container: &Value, path: &Path, errors: &mut Errors) {
    let policies = list(container, "/resizePolicy");
    for (index, policy) in policies.iter().enumerate() {
        let path = path.index(index);
        let resource = text(policy, "/resourceName");
        errors.one_of(&path.field("resourceName"), resource, &["cpu", "memory"]);
        let how = text(policy, "/restartPolicy");
        errors.one_of(&path.field("restartPolicy"), how, &["NotRequired", "RestartContainer"]);
        if policies[..index].iter().any(|other| text(other, "/resourceName") == resource) {
            errors.duplicate(&path.field("resourceName"), resource);
        }
    }
}

fn check_request(container: &Value, name: &str, request: Quantity, path: &Path, errors: &mut Errors) {
    let limit = entries(container, "/resources/limits").find(|(n, _)| *n == name).and_then(|(_, v)| v.as_str());
    match limit.and_then(|text| Quantity::parse(text).map(|limit| (text, limit))) {
        Some((text, limit)) if is_whole(name) && limit != request => {
            let why = format!("must be equal to {name} limit of {text}");
            errors.invalid(&parent(path, name), request.to_string(), why);
        }
        Some((text, limit)) if limit < request => {
            let why = format!("must be less than or equal to {name} limit of {text}");
            errors.invalid(&parent(path, name), request.to_string(), why);
        }
        None if is_whole(name) => {
            errors.required(&parent(path, name), "Limit must be set for non overcommitable resources");
        }
        _ => {}
    }
}

/// The list of requests, where Kubernetes puts what is wrong between request and limit.
fn parent(path: &Path, name: &str) -> Path {
    let whole = path.to_string();
    Path::new(whole.strip_suffix(&format!("[{name}]")).unwrap_or(&whole))
}

/// Largest user and group id.
const ID_MAX: i64 = 2_147_483_647;

/// User and group ids of a security context.
pub(super) fn check_ids(context: &Value, fields: &[&str], path: &Path, errors: &mut Errors) {
    for field in fields {
        if let Some(id) = context.get(field).and_then(Value::as_i64)
            && !(0..=ID_MAX).contains(&id)
        {
            errors.invalid(&path.field(field), id, format!("must be between 0 and {ID_MAX}, inclusive"));
        }
    }
}

fn check_security(context: &Value, path: &Path, errors: &mut Errors) {
    check_ids(context, &["runAsUser", "runAsGroup"], path, errors);
    let escalation = context.get("allowPrivilegeEscalation").and_then(Value::as_bool);
    if escalation == Some(false) {
        if flag(context, "/privileged") {
            let why = "cannot set `allowPrivilegeEscalation` to false and `privileged` to true";
            errors.invalid(path, context.clone(), why);
        }
        if list(context, "/capabilities/add").iter().any(|c| c == "CAP_SYS_ADMIN") {
            let why = "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN";
            errors.invalid(path, context.clone(), why);
        }
    }
    let proc_mount = text(context, "/procMount");
    if !proc_mount.is_empty() {
        errors.one_of(&path.field("procMount"), proc_mount, &["Default", "Unmasked"]);
    }
}
