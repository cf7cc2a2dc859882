//! What is wrong with a Service, in Kubernetes' words and order.

use serde_json::{Value, json};

use super::super::fields::{Errors, Path, entries, integer, list, text};
use super::super::names;
use super::{HEADLESS, has_cluster_ip, has_health_port, is_external, is_headless, type_of};
use crate::apiserver::status::FieldError;

/// Sessions are kept for a day at most.
const AFFINITY_MAX_SECONDS: i64 = 86_400;
/// The kubelet's own port.
const KUBELET_PORT: i64 = 10250;
const TYPES: &[&str] = &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];

pub(super) fn validate(service: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let name = text(service, "/metadata/name");
    // Every object's name is checked as a subdomain already; here only what this kind forbids beyond that.
    if !name.is_empty() && names::dns_subdomain(name).is_empty() {
        errors.format(&Path::new("metadata").field("name"), name, names::dns_1035_label(name));
    }
    check_spec(service, &mut errors);
    errors.done()
}

pub(super) fn check_spec(service: &Value, errors: &mut Errors) {
    let spec = Path::new("spec");
    let type_ = type_of(service);
    let headless = is_headless(service);
    let ports = list(service, "/spec/ports");
    if ports.is_empty() && !headless && type_ != "ExternalName" {
        errors.required(&spec.field("ports"), "");
    }
    check_type(service, &spec, errors);
    check_ports(ports, type_, &spec.field("ports"), errors);
    for (key, value) in entries(service, "/spec/selector") {
        errors.format(&spec.field("selector"), key, names::qualified_name(key));
        let value = value.as_str().unwrap_or_default();
        errors.format(&spec.field("selector"), value, names::label_value(value));
    }
    errors.one_of(&spec.field("sessionAffinity"), text(service, "/spec/sessionAffinity"), &["ClientIP", "None"]);
    if let Some(seconds) = integer(service, "/spec/sessionAffinityConfig/clientIP/timeoutSeconds")
        && !(1..=AFFINITY_MAX_SECONDS).contains(&seconds)
    {
        let path = spec.field("sessionAffinityConfig").field("clientIP").field("timeoutSeconds");
        errors.invalid(&path, seconds, format!("must be greater than 0 and less than {AFFINITY_MAX_SECONDS}"));
    }
    check_addresses(service, &spec, errors);
    for (index, address) in list(service, "/spec/externalIPs").iter().enumerate() {
        let address = address.as_str().unwrap_or_default();
        let path = spec.field("externalIPs").index(index);
        errors.format(&path, address, names::ip(address));
        check_not_special(address, &path, errors);
    }
    errors.one_of(&spec.field("type"), type_, TYPES);
    check_balancer(service, &spec, errors);
    check_policies(service, &spec, errors);
}

fn check_type(service: &Value, spec: &Path, errors: &mut Errors) {
    match type_of(service) {
        "LoadBalancer" => {
            for (index, port) in list(service, "/spec/ports").iter().enumerate() {
                if integer(port, "/port") == Some(KUBELET_PORT) {
                    let why = "may not expose port 10250 externally since it is used by kubelet";
                    errors.invalid(&spec.field("ports").index(index), KUBELET_PORT, why);
                }
            }
            if is_headless(service) {
                let why = "may not be set to 'None' for LoadBalancer services";
                errors.invalid(&spec.field("clusterIPs").index(0), HEADLESS, why);
            }
        }
        "NodePort" if is_headless(service) => {
            let why = "may not be set to 'None' for NodePort services";
            errors.invalid(&spec.field("clusterIPs").index(0), HEADLESS, why);
        }
        "ExternalName" => {
            if !list(service, "/spec/clusterIPs").is_empty() || !text(service, "/spec/clusterIP").is_empty() {
                errors.forbidden(&spec.field("clusterIPs"), "may not be set for ExternalName services");
            }
            for field in ["ipFamilies", "ipFamilyPolicy"] {
                if service["spec"].get(field).is_some() {
                    errors.forbidden(&spec.field(field), "may not be set for ExternalName services");
                }
            }
            let path = spec.field("externalName");
            match text(service, "/spec/externalName") {
                "" => errors.required(&path, ""),
                name => errors.format(&path, name, names::dns_subdomain(name.strip_suffix('.').unwrap_or(name))),
            }
        }
        _ => {}
    }
}

fn check_ports(ports: &[Value], type_: &str, path: &Path, errors: &mut Errors) {
    let mut names_seen: Vec<&str> = Vec::new();
    for (index, port) in ports.iter().enumerate() {
        let path = path.index(index);
        let name = text(port, "/name");
        if name.is_empty() && ports.len() > 1 {
            errors.required(&path.field("name"), "");
        } else if !name.is_empty() {
            errors.format(&path.field("name"), name, names::dns_label(name));
            if names_seen.contains(&name) {
                errors.duplicate(&path.field("name"), name);
            }
            names_seen.push(name);
        }
        check_port_number(integer(port, "/port").unwrap_or_default(), &path.field("port"), errors);
        check_protocol(text(port, "/protocol"), &path.field("protocol"), errors);
        match &port["targetPort"] {
            Value::String(name) => errors.format(&path.field("targetPort"), name, names::port_name(name)),
            number => check_port_number(number.as_i64().unwrap_or_default(), &path.field("targetPort"), errors),
        }
        let application = text(port, "/appProtocol");
        if !application.is_empty() {
            errors.format(&path.field("appProtocol"), application, names::qualified_name(application));
        }
    }
    if type_ == "ClusterIP" {
        for (index, port) in ports.iter().enumerate() {
            if integer(port, "/nodePort").unwrap_or_default() != 0 {
                let path = path.index(index).field("nodePort");
                errors.forbidden(&path, "may not be used when `type` is 'ClusterIP'");
            }
        }
    }
    let key = |port: &Value, field: &str| json!({"protocol": port["protocol"], field: port[field]});
    for (index, port) in ports.iter().enumerate() {
        let earlier = &ports[..index];
        if integer(port, "/nodePort").unwrap_or_default() != 0
            && earlier.iter().any(|one| key(one, "nodePort") == key(port, "nodePort"))
        {
            errors.duplicate(&path.index(index).field("nodePort"), key(port, "nodePort"));
        }
        if earlier.iter().any(|one| key(one, "port") == key(port, "port")) {
            errors.duplicate(&path.index(index), key(port, "port"));
        }
    }
}

/// Refuses what is no port.
pub(in super::super) fn check_port_number(number: i64, path: &Path, errors: &mut Errors) {
    if !(1..=65_535).contains(&number) {
        errors.invalid(path, number, "must be between 1 and 65535, inclusive");
    }
}

/// Refuses what is no transport protocol.
pub(in super::super) fn check_protocol(protocol: &str, path: &Path, errors: &mut Errors) {
    if protocol.is_empty() {
        errors.required(path, "");
    } else {
        errors.one_of(path, protocol, &["SCTP", "TCP", "UDP"]);
    }
}

/// Refuses addresses that lead to the node itself or to no one.
pub(in super::super) fn check_not_special(address: &str, path: &Path, errors: &mut Errors) {
    let Ok(ip) = address.parse::<std::net::IpAddr>() else { return };
    let (local, local_multicast) = match ip {
        std::net::IpAddr::V4(ip) => (ip.is_link_local(), ip.octets()[..3] == [224, 0, 0]),
        std::net::IpAddr::V6(ip) => (ip.is_unicast_link_local(), ip.segments()[0] == 0xff02),
    };
    if ip.is_unspecified() {
        errors.invalid(path, address, format!("may not be unspecified ({address})"));
    }
    if ip.is_loopback() {
        errors.invalid(path, address, "may not be in the loopback range (127.0.0.0/8, ::1/128)");
    }
    if local {
        errors.invalid(path, address, "may not be in the link-local range (169.254.0.0/16, fe80::/10)");
    }
    if local_multicast {
        let why = "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)";
        errors.invalid(path, address, why);
    }
}

/// The addresses agree with each other; whether they are free is for the one who gives them.
fn check_addresses(service: &Value, spec: &Path, errors: &mut Errors) {
    if !has_cluster_ip(service) {
        return;
    }
    let path = spec.field("clusterIPs");
    let first = text(service, "/spec/clusterIP");
    let all = list(service, "/spec/clusterIPs");
    if first.is_empty() && !all.is_empty() {
        errors.invalid(&path, all.to_vec(), "must be empty when `clusterIP` is not specified");
    } else if let Some(address) = all.first()
        && address != first
    {
        errors.invalid(&path, all.to_vec(), "first value must match `clusterIP`");
    }
    if all.len() > 1 && all.iter().any(|address| address == HEADLESS) {
        errors.invalid(&path, all.to_vec(), "'None' must be the first and only value");
    }
    for (index, address) in all.iter().enumerate() {
        let address = address.as_str().unwrap_or_default();
        if address != HEADLESS {
            errors.format(&path.index(index), address, names::ip(address));
        }
    }
    if all.len() > 1 {
        errors.invalid(&path, all.to_vec(), "may only hold one value: this cluster has one IP family");
    }
    for (index, family) in list(service, "/spec/ipFamilies").iter().enumerate() {
        let path = spec.field("ipFamilies").index(index);
        match family.as_str().unwrap_or_default() {
            "IPv4" if index == 0 => {}
            "IPv4" => errors.duplicate(&path, "IPv4"),
            "IPv6" => errors.invalid(&path, "IPv6", "not configured on this cluster"),
            other => errors.one_of(&path, other, &["IPv4", "IPv6"]),
        }
    }
    let path = spec.field("ipFamilyPolicy");
    match text(service, "/spec/ipFamilyPolicy") {
        "RequireDualStack" => {
            errors.invalid(&path, "RequireDualStack", "this cluster is not configured for dual-stack services");
        }
        policy => errors.one_of(&path, policy, &["SingleStack", "PreferDualStack", "RequireDualStack"]),
    }
}

fn check_balancer(service: &Value, spec: &Path, errors: &mut Errors) {
    let balanced = type_of(service) == "LoadBalancer";
    let only = "may only be used when `type` is 'LoadBalancer'";
    let ranges = list(service, "/spec/loadBalancerSourceRanges");
    let path = spec.field("loadBalancerSourceRanges");
    if !ranges.is_empty() && !balanced {
        errors.forbidden(&path, only);
    }
    for (index, range) in ranges.iter().enumerate() {
        let range = range.as_str().unwrap_or_default().trim();
        errors.format(&path.index(index), range, names::cidr(range));
    }
    if !balanced && service["spec"].get("allocateLoadBalancerNodePorts").is_some() {
        errors.forbidden(&spec.field("allocateLoadBalancerNodePorts"), only);
    }
    if let Some(class) = service["spec"].get("loadBalancerClass").and_then(Value::as_str) {
        let path = spec.field("loadBalancerClass");
        if balanced {
            errors.format(&path, class, names::qualified_name(class));
        } else {
            errors.forbidden(&path, only);
        }
    }
}

fn check_policies(service: &Value, spec: &Path, errors: &mut Errors) {
    let path = spec.field("externalTrafficPolicy");
    match (text(service, "/spec/externalTrafficPolicy"), is_external(service)) {
        ("", _) => {}
        (policy, true) => errors.one_of(&path, policy, &["Cluster", "Local"]),
        (policy, false) => errors.invalid(&path, policy, "may only be set for externally-accessible services"),
    }
    let health = integer(service, "/spec/healthCheckNodePort").unwrap_or_default();
    if health != 0 && !has_health_port(service) {
        let why = "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'";
        errors.invalid(&spec.field("healthCheckNodePort"), health, why);
    }
    let policy = text(service, "/spec/internalTrafficPolicy");
    if has_cluster_ip(service) {
        errors.one_of(&spec.field("internalTrafficPolicy"), policy, &["Cluster", "Local"]);
    }
    let distribution = text(service, "/spec/trafficDistribution");
    if !distribution.is_empty() {
        errors.one_of(&spec.field("trafficDistribution"), distribution, &["PreferClose"]);
    }
}

#[cfg(test)]
mod tests {
    use super::super::defaults::default;
    use super::*;

    fn errors(spec: Value) -> Vec<String> {
        let mut service = json!({"metadata": {"name": "s"}, "spec": spec});
        default(&mut service);
        validate(&service).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_types_are_taken_as_they_are_meant() {
        for spec in [
            json!({"ports": [{"port": 80}]}),
            json!({"clusterIP": "None"}),
            json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 30080}]}),
            json!({"type": "LoadBalancer", "ports": [{"port": 80}], "loadBalancerSourceRanges": ["10.0.0.0/8"]}),
            json!({"type": "ExternalName", "externalName": "example.com."}),
            json!({"ports": [{"port": 53, "name": "u", "protocol": "UDP"}, {"port": 53, "name": "t"}]}),
        ] {
            assert_eq!(errors(spec.clone()), Vec::<String>::new(), "{spec}");
        }
    }

    #[test]
    fn what_does_not_fit_together_is_refused() {
        assert_eq!(errors(json!({})), ["spec.ports: Required value"]);
        let two = errors(json!({"ports": [{"port": 80}, {"port": 80, "name": "b", "targetPort": "no_name"}]}));
        assert_eq!(two[0], "spec.ports[0].name: Required value");
        assert!(two[1].starts_with("spec.ports[1].targetPort: Invalid value: \"no_name\""), "{two:?}");
        assert!(two[2].starts_with("spec.ports[1]: Duplicate value"), "{two:?}");
        assert_eq!(
            errors(json!({"ports": [{"port": 0}]})),
            [
                "spec.ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive",
                "spec.ports[0].targetPort: Invalid value: 0: must be between 1 and 65535, inclusive",
            ]
        );
        assert_eq!(
            errors(json!({"ports": [{"port": 1, "nodePort": 30000}]})),
            ["spec.ports[0].nodePort: Forbidden: may not be used when `type` is 'ClusterIP'"]
        );
        assert_eq!(
            errors(json!({"type": "NodePort", "clusterIP": "None", "ports": [{"port": 1}]})),
            ["spec.clusterIPs[0]: Invalid value: \"None\": may not be set to 'None' for NodePort services"]
        );
        assert_eq!(
            errors(json!({"type": "Other", "ports": [{"port": 1}]})),
            ["spec.type: Unsupported value: \"Other\": supported values: \"ClusterIP\", \"ExternalName\", \
              \"LoadBalancer\", \"NodePort\""]
        );
        assert_eq!(errors(json!({"type": "ExternalName"})), ["spec.externalName: Required value"]);
        assert_eq!(
            errors(json!({"ports": [{"port": 1}], "ipFamilies": ["IPv6"]})),
            ["spec.ipFamilies[0]: Invalid value: \"IPv6\": not configured on this cluster"]
        );
        assert_eq!(
            errors(json!({"ports": [{"port": 1}], "externalIPs": ["127.0.0.1"]})),
            ["spec.externalIPs[0]: Invalid value: \"127.0.0.1\": may not be in the loopback range (127.0.0.0/8, \
              ::1/128)"]
        );
    }

    #[test]
    fn a_name_begins_with_a_letter() {
        let mut service = json!({"metadata": {"name": "1s"}, "spec": {"ports": [{"port": 1}]}});
        default(&mut service);
        assert_eq!(validate(&service)[0].field, "metadata.name");
    }
}
