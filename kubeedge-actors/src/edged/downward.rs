//! The downward API: a pod's own fields and a container's resources as text.

use std::{collections::BTreeMap, net::IpAddr};

use k8s_openapi::api::core::v1::{Container, ObjectFieldSelector, Pod, PodSpec, ResourceFieldSelector};
use thiserror::Error;

use super::{
    facts::{Allocatable, PodFacts},
    quantity::{InvalidQuantity, Quantity},
};

/// A field or resource that cannot be told. The pod's specification has to change.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum DownwardError {
    /// A path that the downward API does not know.
    #[error("unsupported fieldPath: {0}")]
    Field(String),
    /// An `apiVersion` other than `v1`.
    #[error("unsupported pod version: {0}")]
    Version(String),
    /// A resource that the downward API does not know.
    #[error("unsupported container resource : {0}")]
    Resource(String),
    /// A container that is not in the pod.
    #[error("container {0} not found")]
    Container(String),
    /// A divisor of zero or less, or one that is smaller than a thousandth.
    #[error(
        "divisor {divisor:?} of {resource} is not valid: expected a quantity of at least 1m for cpu and 1 otherwise"
    )]
    Divisor {
        /// The resource.
        resource: String,
        /// The divisor as written.
        divisor: String,
    },
    /// A resource of the container, or its divisor, is no quantity.
    #[error(transparent)]
    Quantity(#[from] InvalidQuantity),
}

/// The value of a pod's field.
pub fn field(pod: &Pod, facts: &PodFacts, selector: &ObjectFieldSelector) -> Result<String, DownwardError> {
    match selector.api_version.as_deref() {
        None | Some("" | "v1") => {}
        Some(other) => return Err(DownwardError::Version(other.to_owned())),
    }
    let path = selector.field_path.as_str();
    let metadata = &pod.metadata;
    let spec = pod.spec.as_ref();
    if let Some((map, key)) = subscripted(path) {
        let map = match map {
            "metadata.labels" => metadata.labels.as_ref(),
            "metadata.annotations" => metadata.annotations.as_ref(),
            _ => return Err(DownwardError::Field(path.to_owned())),
        };
        return Ok(map.and_then(|map| map.get(key)).cloned().unwrap_or_default());
    }
    Ok(match path {
        "metadata.name" => metadata.name.clone().unwrap_or_default(),
        "metadata.namespace" => metadata.namespace.clone().unwrap_or_default(),
        "metadata.uid" => metadata.uid.clone().unwrap_or_default(),
        "metadata.labels" => format_map(metadata.labels.as_ref()),
        "metadata.annotations" => format_map(metadata.annotations.as_ref()),
        "spec.nodeName" => spec.and_then(|spec| spec.node_name.clone()).unwrap_or_else(|| facts.node_name.clone()),
        "spec.serviceAccountName" => spec.map(service_account).unwrap_or_default().to_owned(),
        "status.hostIP" => first(&facts.host_ips),
        "status.hostIPs" => joined(&facts.host_ips),
        "status.podIP" => first(pod_ips(spec, facts)),
        "status.podIPs" => joined(pod_ips(spec, facts)),
        other => return Err(DownwardError::Field(other.to_owned())),
    })
}

/// The pod's service account, by its new or its old field.
pub fn service_account(spec: &PodSpec) -> &str {
    spec.service_account_name.as_deref().or(spec.service_account.as_deref()).unwrap_or_default()
}

/// A pod in the node's network has the node's addresses.
fn pod_ips<'a>(spec: Option<&PodSpec>, facts: &'a PodFacts) -> &'a [IpAddr] {
    if facts.pod_ips.is_empty() && spec.and_then(|spec| spec.host_network) == Some(true) {
        &facts.host_ips
    } else {
        &facts.pod_ips
    }
}

fn first(ips: &[IpAddr]) -> String {
    ips.first().map(IpAddr::to_string).unwrap_or_default()
}

fn joined(ips: &[IpAddr]) -> String {
    ips.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(",")
}

/// `metadata.labels['key']` as (`metadata.labels`, `key`).
fn subscripted(path: &str) -> Option<(&str, &str)> {
    path.strip_suffix("']")?.split_once("['").filter(|(map, _)| !map.is_empty())
}

/// One `key="value"` a line, by key, the value quoted as Go does it.
fn format_map(map: Option<&BTreeMap<String, String>>) -> String {
    let lines: Vec<String> = map.into_iter().flatten().map(|(key, value)| format!("{key}={}", quoted(value))).collect();
    lines.join("\n")
}

/// A Go string literal.
fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\x07' => out.push_str("\\a"),
            '\x08' => out.push_str("\\b"),
            '\x0c' => out.push_str("\\f"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\x0b' => out.push_str("\\v"),
            ' ' => out.push(' '),
            c if is_printable(c) => out.push(c),
            c if (c as u32) < 0x80 => out.push_str(&format!("\\x{:02x}", c as u32)),
            c if (c as u32) < 0x1_0000 => out.push_str(&format!("\\u{:04x}", c as u32)),
            c => out.push_str(&format!("\\U{:08x}", c as u32)),
        }
    }
    out.push('"');
    out
}

fn is_printable(c: char) -> bool {
    // `escape_debug` knows what is printable; behind another character it leaves combining marks alone, as Go does.
    let text: String = ['a', c].iter().collect();
    !c.is_whitespace() && text.escape_debug().count() == 2
}

/// The value of a resource of `container`, or of the container that the selector names, in units of the divisor.
pub fn resource(
    pod: &Pod,
    container: Option<&Container>,
    facts: &PodFacts,
    selector: &ResourceFieldSelector,
) -> Result<String, DownwardError> {
    let container = match (selector.container_name.as_deref().unwrap_or_default(), container) {
        ("", Some(container)) => container,
        (name, _) => find_container(pod, name).ok_or_else(|| DownwardError::Container(name.to_owned()))?,
    };
    let unknown = || DownwardError::Resource(selector.resource.clone());
    let (section, name) = selector.resource.split_once('.').ok_or_else(unknown)?;
    if !matches!(name, "cpu" | "memory" | "ephemeral-storage") && !name.starts_with("hugepages-") {
        return Err(unknown());
    }
    let resources = container.resources.as_ref();
    let amount = match section {
        "limits" => limit(resources.and_then(|r| r.limits.as_ref()), name, &facts.allocatable)?,
        "requests" => quantity_of(resources.and_then(|r| r.requests.as_ref()), name)?.unwrap_or_default(),
        _ => return Err(unknown()),
    };
    let divisor = match selector.divisor.as_ref() {
        None => Quantity::ZERO,
        Some(divisor) => Quantity::from_api(divisor)?,
    };
    // An unset divisor arrives as "0" from some clients and means one.
    let divisor = if divisor.is_zero() { Quantity::units(1) } else { divisor };
    let (amount, by) = match name {
        "cpu" => (amount.milli_value(), divisor.milli_value()),
        _ => (amount.value(), divisor.value()),
    };
    if by <= 0 {
        let divisor = divisor.to_string();
        return Err(DownwardError::Divisor { resource: selector.resource.clone(), divisor });
    }
    let (amount, by) = (i128::from(amount), i128::from(by));
    Ok((amount.div_euclid(by) + i128::from(amount.rem_euclid(by) != 0)).to_string())
}

fn find_container<'a>(pod: &'a Pod, name: &str) -> Option<&'a Container> {
    let spec = pod.spec.as_ref()?;
    spec.containers.iter().chain(spec.init_containers.iter().flatten()).find(|container| container.name == name)
}

type Resources = BTreeMap<String, k8s_openapi::apimachinery::pkg::api::resource::Quantity>;

fn quantity_of(resources: Option<&Resources>, name: &str) -> Result<Option<Quantity>, DownwardError> {
    Ok(resources.and_then(|resources| resources.get(name)).map(Quantity::from_api).transpose()?)
}

/// A limit that is not set is what the node can give.
fn limit(limits: Option<&Resources>, name: &str, node: &Allocatable) -> Result<Quantity, DownwardError> {
    let set = quantity_of(limits, name)?.filter(|limit| !limit.is_zero());
    Ok(set.unwrap_or(match name {
        "cpu" => node.cpu,
        "memory" => node.memory,
        "ephemeral-storage" => node.ephemeral_storage,
        _ => Quantity::ZERO,
    }))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod() -> Pod {
        serde_json::from_value(json!({
            "metadata": {
                "name": "p", "namespace": "ns", "uid": "u-1",
                "labels": {"b": "2", "a": "say \"hi\"\n\u{7f}é\u{301}"},
                "annotations": {"x.io/y": "long\ttext"},
            },
            "spec": {
                "nodeName": "edge-1", "serviceAccountName": "sa",
                "containers": [
                    {"name": "c", "resources": {
                        "limits": {"cpu": "1500m", "memory": "64Mi", "hugepages-2Mi": "4Mi"},
                        "requests": {"cpu": "250m"}}},
                    {"name": "free"},
                ],
                "initContainers": [{"name": "i", "resources": {"limits": {"memory": "1"}}}],
            },
        }))
        .unwrap()
    }

    fn facts() -> PodFacts {
        PodFacts {
            node_name: "edge-1".to_owned(),
            host_ips: vec!["192.0.2.7".parse().unwrap(), "2001:db8::7".parse().unwrap()],
            pod_ips: vec!["10.0.0.5".parse().unwrap(), "fd00::5".parse().unwrap()],
            allocatable: Allocatable {
                cpu: Quantity::units(4),
                memory: Quantity::bytes(1 << 30),
                ephemeral_storage: Quantity::bytes(5000),
            },
            ..PodFacts::default()
        }
    }

    fn at(path: &str) -> Result<String, DownwardError> {
        field(&pod(), &facts(), &ObjectFieldSelector { field_path: path.to_owned(), ..Default::default() })
    }

    #[test]
    fn every_field_of_the_downward_api_is_told() {
        for (path, value) in [
            ("metadata.name", "p"),
            ("metadata.namespace", "ns"),
            ("metadata.uid", "u-1"),
            ("metadata.labels", "a=\"say \\\"hi\\\"\\n\\x7fé\u{301}\"\nb=\"2\""),
            ("metadata.annotations", "x.io/y=\"long\\ttext\""),
            ("metadata.labels['b']", "2"),
            ("metadata.labels['none']", ""),
            ("metadata.annotations['x.io/y']", "long\ttext"),
            ("spec.nodeName", "edge-1"),
            ("spec.serviceAccountName", "sa"),
            ("status.hostIP", "192.0.2.7"),
            ("status.hostIPs", "192.0.2.7,2001:db8::7"),
            ("status.podIP", "10.0.0.5"),
            ("status.podIPs", "10.0.0.5,fd00::5"),
        ] {
            assert_eq!(at(path).as_deref(), Ok(value), "{path}");
        }
        for path in ["spec.containers", "metadata.labels[b]", "['b']", "spec['b']", "", "status.phase"] {
            assert_eq!(at(path), Err(DownwardError::Field(path.to_owned())));
        }
    }

    #[test]
    fn a_pod_in_the_nodes_network_has_the_nodes_addresses() {
        let mut pod = pod();
        pod.spec.as_mut().unwrap().host_network = Some(true);
        let facts = PodFacts { pod_ips: Vec::new(), ..facts() };
        let selector = ObjectFieldSelector { field_path: "status.podIP".to_owned(), ..Default::default() };
        assert_eq!(field(&pod, &facts, &selector).unwrap(), "192.0.2.7");
    }

    fn res(container: &str, resource_name: &str, divisor: &str) -> Result<String, DownwardError> {
        let selector: ResourceFieldSelector =
            serde_json::from_value(json!({"containerName": container, "resource": resource_name, "divisor": divisor}))
                .unwrap();
        resource(&pod(), None, &facts(), &selector)
    }

    #[test]
    fn resources_are_divided_and_rounded_up() {
        for (container, name, divisor, value) in [
            ("c", "limits.cpu", "0", "2"),
            ("c", "limits.cpu", "1m", "1500"),
            ("c", "requests.cpu", "100m", "3"),
            ("c", "limits.memory", "1Mi", "64"),
            ("c", "limits.memory", "1", "67108864"),
            ("c", "limits.memory", "60Mi", "2"),
            ("c", "requests.memory", "1", "0"),
            ("c", "limits.hugepages-2Mi", "1Mi", "4"),
            ("i", "limits.memory", "1", "1"),
            // What is not limited is limited by the node.
            ("free", "limits.cpu", "1", "4"),
            ("free", "limits.memory", "1Mi", "1024"),
            ("free", "limits.ephemeral-storage", "1k", "5"),
        ] {
            assert_eq!(res(container, name, divisor).as_deref(), Ok(value), "{container} {name} {divisor}");
        }
    }

    #[test]
    fn unknown_resources_containers_and_divisors_are_refused() {
        assert_eq!(res("c", "limits.gpu", "1").unwrap_err().to_string(), "unsupported container resource : limits.gpu");
        assert_eq!(res("c", "cpu", "1").unwrap_err(), DownwardError::Resource("cpu".to_owned()));
        assert_eq!(res("nope", "limits.cpu", "1").unwrap_err().to_string(), "container nope not found");
        assert!(matches!(res("c", "limits.cpu", "-1"), Err(DownwardError::Divisor { .. })));
        assert!(matches!(res("c", "limits.cpu", "x"), Err(DownwardError::Quantity(_))));
    }
}
