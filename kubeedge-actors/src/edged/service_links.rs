//! The variables by which a container sees Services: those of Kubernetes, and those that container links once had. Pure.

use std::collections::BTreeMap;

use super::objects::{ServiceAddress, ServicePort};

/// All variables of these Services, by name.
pub(super) fn variables(services: &[ServiceAddress]) -> BTreeMap<String, String> {
    let mut variables = BTreeMap::new();
    for ServiceAddress { name, address, ports } in services {
        let service = variable_name(name);
        variables.insert(format!("{service}_SERVICE_HOST"), address.clone());
        for port in ports.iter().filter(|port| port.name.as_ref().is_some_and(|name| !name.is_empty())) {
            let name = variable_name(port.name.as_deref().unwrap_or_default());
            variables.insert(format!("{service}_SERVICE_PORT_{name}"), port.port.to_string());
        }
        if let Some(first) = ports.first() {
            variables.insert(format!("{service}_SERVICE_PORT"), first.port.to_string());
            variables.insert(format!("{service}_PORT"), url(address, first));
        }
        for port in ports {
            let prefix = format!("{service}_PORT_{}_{}", port.port, protocol(port).to_uppercase());
            variables.insert(format!("{prefix}_PROTO"), protocol(port).to_lowercase());
            variables.insert(format!("{prefix}_PORT"), port.port.to_string());
            variables.insert(format!("{prefix}_ADDR"), address.clone());
            variables.insert(prefix, url(address, port));
        }
    }
    variables
}

fn protocol(port: &ServicePort) -> &str {
    port.protocol.as_deref().filter(|protocol| !protocol.is_empty()).unwrap_or("TCP")
}

fn url(address: &str, port: &ServicePort) -> String {
    let bracketed = if address.contains(':') { format!("[{address}]") } else { address.to_owned() };
    format!("{}://{bracketed}:{}", protocol(port).to_lowercase(), port.port)
}

/// A Service's or port's name as it is in variables.
fn variable_name(name: &str) -> String {
    name.to_uppercase().replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(name: &str, protocol: &str, port: u16) -> ServicePort {
        let text = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
        ServicePort { name: text(name), protocol: text(protocol), port }
    }

    /// The example of Kubernetes' own page on Services, `redis-primary` on 10.0.0.11:6379.
    #[test]
    fn a_service_is_told_as_kubernetes_tells_it() {
        let service = ServiceAddress {
            name: "redis-primary".into(),
            address: "10.0.0.11".into(),
            ports: vec![port("", "TCP", 6379)],
        };
        let expected = [
            ("REDIS_PRIMARY_SERVICE_HOST", "10.0.0.11"),
            ("REDIS_PRIMARY_SERVICE_PORT", "6379"),
            ("REDIS_PRIMARY_PORT", "tcp://10.0.0.11:6379"),
            ("REDIS_PRIMARY_PORT_6379_TCP", "tcp://10.0.0.11:6379"),
            ("REDIS_PRIMARY_PORT_6379_TCP_PROTO", "tcp"),
            ("REDIS_PRIMARY_PORT_6379_TCP_PORT", "6379"),
            ("REDIS_PRIMARY_PORT_6379_TCP_ADDR", "10.0.0.11"),
        ];
        let expected: BTreeMap<String, String> =
            expected.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        assert_eq!(variables(&[service]), expected);
    }

    #[test]
    fn ports_with_names_and_other_protocols_and_addresses_of_ipv6_are_told() {
        let service = ServiceAddress {
            name: "dns".into(),
            address: "fd00::a".into(),
            ports: vec![port("dns-udp", "UDP", 53), port("metrics", "", 9153)],
        };
        let variables = variables(&[service]);
        for (name, value) in [
            ("DNS_SERVICE_PORT", "53"),
            ("DNS_SERVICE_PORT_DNS_UDP", "53"),
            ("DNS_SERVICE_PORT_METRICS", "9153"),
            ("DNS_PORT", "udp://[fd00::a]:53"),
            ("DNS_PORT_53_UDP_PROTO", "udp"),
            ("DNS_PORT_9153_TCP", "tcp://[fd00::a]:9153"),
            ("DNS_PORT_9153_TCP_ADDR", "fd00::a"),
        ] {
            assert_eq!(variables[name], value, "{name}");
        }
        assert_eq!(variables.len(), 13);
    }
}
