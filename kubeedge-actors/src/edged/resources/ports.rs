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

#[cfg(test)]
mod tests {
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
}
