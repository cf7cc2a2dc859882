//! Ports of the node that lead to a pod.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Container, Pod};
use kubeedge_proto::cri::{PortMapping, Protocol};
use thiserror::Error;

/// A container port that cannot be mapped.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("container {container}: port {port}: {field} {value:?} is not valid: expected {expected}")]
pub struct InvalidPort {
    /// The container.
    pub container: String,
    /// The container's port.
    pub port: i32,
    /// Which field.
    pub field: &'static str,
    /// What it holds.
    pub value: String,
    /// What it should hold.
    pub expected: &'static str,
}

/// The port mappings of a pod: those with a `hostPort`. None on the node's own network, where the ports are the node's.
pub fn port_mappings(pod: &Pod) -> Result<Vec<PortMapping>, InvalidPort> {
    let Some(spec) = &pod.spec else { return Ok(Vec::new()) };
    if spec.host_network == Some(true) {
        return Ok(Vec::new());
    }
    let sidecar = |container: &&Container| container.restart_policy.as_deref() == Some("Always");
    let sidecars = spec.init_containers.iter().flatten().filter(sidecar);
    let mut mappings: Vec<PortMapping> = Vec::new();
    for container in spec.containers.iter().chain(sidecars) {
        for port in container.ports.iter().flatten() {
            let host_port = port.host_port.unwrap_or(0);
            if host_port == 0 {
                continue;
            }
            let invalid = |field, value: String, expected| {
                let (container, port) = (container.name.clone(), port.container_port);
                InvalidPort { container, port, field, value, expected }
            };
            for (field, number) in [("hostPort", host_port), ("containerPort", port.container_port)] {
                if !(1..=65535).contains(&number) {
                    return Err(invalid(field, number.to_string(), "1 to 65535"));
                }
            }
            let protocol = match port.protocol.as_deref().unwrap_or_default() {
                "" | "TCP" => Protocol::Tcp,
                "UDP" => Protocol::Udp,
                "SCTP" => Protocol::Sctp,
                other => return Err(invalid("protocol", other.to_owned(), "TCP, UDP or SCTP")),
            };
            let host_ip = port.host_ip.clone().unwrap_or_default();
            if !host_ip.is_empty() && host_ip.parse::<IpAddr>().is_err() {
                return Err(invalid("hostIP", host_ip, "an IP address"));
            }
            let mapping =
                PortMapping { protocol: protocol.into(), container_port: port.container_port, host_port, host_ip };
            if !mappings.contains(&mapping) {
                mappings.push(mapping);
            }
        }
    }
    Ok(mappings)
}

/// A port of the node that a pod takes for itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct HostPort<'a> {
    number: i32,
    protocol: &'a str,
    /// The address; [`EVERY_ADDRESS`] for all that the node has.
    ip: &'a str,
}

/// What stands for every address, as the scheduler has it.
const EVERY_ADDRESS: &str = "0.0.0.0";

impl HostPort<'_> {
    fn conflicts(&self, other: &Self) -> bool {
        let everywhere = [self.ip, other.ip].contains(&EVERY_ADDRESS);
        (self.number, self.protocol) == (other.number, other.protocol) && (everywhere || self.ip == other.ip)
    }
}

/// The ports of the node that a pod takes while it runs: of its containers and sidecars those with a `hostPort`, on the
/// node's own network all.
fn host_ports(pod: &Pod) -> impl Iterator<Item = HostPort<'_>> {
    let spec = pod.spec.as_ref();
    let on_host = spec.is_some_and(|spec| spec.host_network == Some(true));
    let sidecar = |container: &&Container| container.restart_policy.as_deref() == Some("Always");
    let sidecars = spec.into_iter().flat_map(|spec| spec.init_containers.iter().flatten()).filter(sidecar);
    let containers = spec.into_iter().flat_map(|spec| &spec.containers).chain(sidecars);
    containers.flat_map(|container| container.ports.iter().flatten()).filter_map(move |port| {
        let own = on_host.then_some(port.container_port);
        let number = port.host_port.filter(|number| *number > 0).or(own).filter(|number| *number > 0)?;
        let protocol = port.protocol.as_deref().filter(|text| !text.is_empty()).unwrap_or("TCP");
        let ip = port.host_ip.as_deref().filter(|text| !text.is_empty()).unwrap_or(EVERY_ADDRESS);
        Some(HostPort { number, protocol, ip })
    })
}

/// Whether a pod wants a port of the node that one of the others has.
pub fn ports_conflict<'a>(pod: &Pod, mut others: impl Iterator<Item = &'a Pod>) -> bool {
    let wanted: Vec<HostPort> = host_ports(pod).collect();
    // Most pods want none.
    !wanted.is_empty()
        && others.any(|other| host_ports(other).any(|taken| wanted.iter().any(|want| want.conflicts(&taken))))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn of(spec: Value) -> Result<Vec<PortMapping>, InvalidPort> {
        port_mappings(&serde_json::from_value(json!({"spec": spec})).unwrap())
    }

    #[test]
    fn only_ports_with_a_host_port_are_mapped() {
        let ports = json!([
            {"containerPort": 80},
            {"containerPort": 80, "hostPort": 8080},
            {"containerPort": 53, "hostPort": 53, "protocol": "UDP", "hostIP": "127.0.0.1"},
            {"containerPort": 80, "hostPort": 8080, "name": "again"},
        ]);
        let spec = json!({"containers": [{"name": "c", "ports": ports}]});
        let mapped = of(spec.clone()).unwrap();
        let shown: Vec<_> =
            mapped.iter().map(|m| (m.protocol(), m.container_port, m.host_port, m.host_ip.as_str())).collect();
        assert_eq!(shown, [(Protocol::Tcp, 80, 8080, ""), (Protocol::Udp, 53, 53, "127.0.0.1")]);
        let mut on_host = spec;
        on_host["hostNetwork"] = json!(true);
        assert!(of(on_host).unwrap().is_empty());
    }

    #[test]
    fn what_cannot_be_mapped_is_refused() {
        for (port, field) in [
            (json!({"containerPort": 80, "hostPort": 70000}), "hostPort"),
            (json!({"containerPort": 0, "hostPort": 80}), "containerPort"),
            (json!({"containerPort": 80, "hostPort": 80, "protocol": "ICMP"}), "protocol"),
            (json!({"containerPort": 80, "hostPort": 80, "hostIP": "x"}), "hostIP"),
        ] {
            assert_eq!(of(json!({"containers": [{"name": "c", "ports": [port]}]})).unwrap_err().field, field);
        }
    }

    fn pod(spec: Value) -> Pod {
        serde_json::from_value(json!({"spec": spec})).unwrap()
    }

    fn takes(port: Value) -> Pod {
        pod(json!({"containers": [{"name": "c", "ports": [port]}]}))
    }

    #[test]
    fn pods_conflict_over_number_protocol_and_address() {
        let web = takes(json!({"containerPort": 80, "hostPort": 8080}));
        let on_host = |port: Value| pod(json!({"hostNetwork": true, "containers": [{"name": "c", "ports": [port]}]}));
        let of_init = |policy: Value| {
            let ports = json!([{"containerPort": 80, "hostPort": 8080}]);
            let init = json!({"name": "i", "restartPolicy": policy, "ports": ports});
            pod(json!({"initContainers": [init], "containers": [{"name": "c"}]}))
        };
        for (other, conflict) in [
            (takes(json!({"containerPort": 81, "hostPort": 8080})), true),
            (takes(json!({"containerPort": 81, "hostPort": 8080, "protocol": "TCP", "hostIP": ""})), true),
            (takes(json!({"containerPort": 80, "hostPort": 8080, "protocol": "UDP"})), false),
            (takes(json!({"containerPort": 80, "hostPort": 8081})), false),
            (takes(json!({"containerPort": 8080})), false),
            (takes(json!({"containerPort": 80, "hostPort": 8080, "hostIP": "192.0.2.1"})), true),
            (on_host(json!({"containerPort": 8080})), true),
            (on_host(json!({"containerPort": 8080, "hostPort": 8080, "hostIP": "127.0.0.1"})), true),
            (on_host(json!({"containerPort": 80})), false),
            (of_init(json!("Always")), true),
            (of_init(Value::Null), false),
            (Pod::default(), false),
        ] {
            assert_eq!(ports_conflict(&web, std::iter::once(&other)), conflict, "{:?}", other.spec);
            assert_eq!(ports_conflict(&other, std::iter::once(&web)), conflict, "{:?}", other.spec);
        }
        let at = |ip: &str| takes(json!({"containerPort": 80, "hostPort": 8080, "hostIP": ip}));
        assert!(!ports_conflict(&at("192.0.2.1"), [at("192.0.2.2"), Pod::default()].iter()));
        assert!(ports_conflict(&at("192.0.2.1"), [at("192.0.2.2"), at("192.0.2.1")].iter()));
        assert!(!ports_conflict(&web, std::iter::empty()));
    }

    fn any_port() -> impl Strategy<Value = Value> {
        let ip = prop::sample::select(vec!["", "0.0.0.0", "192.0.2.1", "192.0.2.2"]);
        let protocol = prop::sample::select(vec!["", "TCP", "UDP"]);
        (80..83_i32, 0..3_i32, protocol, ip).prop_map(|(port, host, protocol, ip)| {
            json!({"containerPort": port, "hostPort": host, "protocol": protocol, "hostIP": ip})
        })
    }

    proptest! {
        /// Who was let in one after the other could bind what it wants, each.
        #[test]
        fn who_is_let_in_has_its_ports_for_itself(
            pods in prop::collection::vec((any::<bool>(), prop::collection::vec(any_port(), 1..3)), 1..8),
        ) {
            let mut here: Vec<Pod> = Vec::new();
            for (on_host, ports) in pods {
                let next = pod(json!({"hostNetwork": on_host, "containers": [{"name": "c", "ports": ports}]}));
                if !ports_conflict(&next, here.iter()) {
                    here.push(next);
                }
            }
            // Address by address: what a socket of each would be bound to.
            let addresses = ["192.0.2.1", "192.0.2.2", "192.0.2.3"];
            let mut bound = std::collections::BTreeMap::new();
            for (at, one) in here.iter().enumerate() {
                for HostPort { number, protocol, ip } in host_ports(one) {
                    for address in addresses.iter().filter(|address| ip == EVERY_ADDRESS || ip == **address) {
                        let of = *bound.entry((number, protocol.to_owned(), *address)).or_insert(at);
                        prop_assert_eq!(of, at, "{:?}", here);
                    }
                }
            }
        }
    }
}
