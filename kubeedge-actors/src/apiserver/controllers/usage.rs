//! What a pod takes of its node: requested resources and ports of the host.

use std::collections::BTreeMap;

use serde_json::Value;

use super::super::kinds::quantity::Quantity;
use super::super::object::text;

/// Amounts by resource name, e.g. `cpu`.
pub(super) type Amounts = BTreeMap<String, Quantity>;

/// What one pod takes, or all pods of a node.
#[derive(Clone, Debug, Default)]
pub(super) struct Usage {
    requests: Amounts,
    ports: Vec<HostPort>,
}

#[derive(Clone, Debug)]
struct HostPort {
    number: u64,
    protocol: String,
    /// Empty is every address.
    address: String,
}

impl HostPort {
    fn conflicts(&self, other: &Self) -> bool {
        self.number == other.number
            && self.protocol == other.protocol
            && (self.address == other.address || self.address.is_empty() || other.address.is_empty())
    }
}

impl Usage {
    /// What a pod with this spec takes. Init containers run one after the other before the others, those that restart
    /// always run on beside them: it is the most at any moment that counts.
    pub(super) fn of(spec: &Value) -> Self {
        let list = |name: &str| spec[name].as_array().map(Vec::as_slice).unwrap_or_default();
        let mut running = Amounts::new();
        let mut peak = Amounts::new();
        let mut ports = Vec::new();
        for container in list("initContainers") {
            let mut now = running.clone();
            add(&mut now, &amounts(&container["resources"]["requests"]));
            if container["restartPolicy"] == "Always" {
                running.clone_from(&now);
                ports.extend(host_ports(container));
            }
            for (name, amount) in now {
                let most = peak.entry(name).or_insert(Quantity::ZERO);
                if amount > *most {
                    *most = amount;
                }
            }
        }
        for container in list("containers") {
            add(&mut running, &amounts(&container["resources"]["requests"]));
            ports.extend(host_ports(container));
        }
        for (name, amount) in peak {
            let most = running.entry(name).or_insert(Quantity::ZERO);
            if amount > *most {
                *most = amount;
            }
        }
        add(&mut running, &amounts(&spec["overhead"]));
        Self { requests: running, ports }
    }

    /// Takes in what another pod takes.
    pub(super) fn add(&mut self, other: &Self) {
        add(&mut self.requests, &other.requests);
        self.ports.extend(other.ports.iter().cloned());
    }

    /// Whether a port of `pod` is taken.
    pub(super) fn port_taken(&self, pod: &Self) -> bool {
        pod.ports.iter().any(|port| self.ports.iter().any(|taken| taken.conflicts(port)))
    }

    /// The resources of which too little of `allocatable` is left for `pod`. What a node does not name it has not.
    pub(super) fn lacking<'a>(&self, allocatable: &Amounts, pod: &'a Self) -> Vec<&'a str> {
        let of = |amounts: &Amounts, name: &str| amounts.get(name).copied().unwrap_or(Quantity::ZERO);
        let asked = pod.requests.iter().filter(|(_, amount)| amount.is_positive());
        asked
            .filter(|(name, amount)| of(&self.requests, name).plus(**amount) > of(allocatable, name))
            .map(|(name, _)| name.as_str())
            .collect()
    }
}

/// Reads a map of quantities; what is none (validation lets none in) counts as nothing.
pub(super) fn amounts(map: &Value) -> Amounts {
    let entries = map.as_object().into_iter().flatten();
    entries.filter_map(|(name, amount)| Some((name.clone(), Quantity::parse(amount.as_str()?)?))).collect()
}

fn add(sum: &mut Amounts, more: &Amounts) {
    for (name, amount) in more {
        let total = sum.entry(name.clone()).or_insert(Quantity::ZERO);
        *total = total.plus(*amount);
    }
}

fn host_ports(container: &Value) -> impl Iterator<Item = HostPort> {
    container["ports"].as_array().into_iter().flatten().filter_map(|port| {
        let number = port["hostPort"].as_u64().filter(|number| *number > 0)?;
        let address = Some(text(port, "hostIP")).filter(|ip| !matches!(*ip, "0.0.0.0" | "::")).unwrap_or_default();
        let protocol = Some(text(port, "protocol")).filter(|protocol| !protocol.is_empty()).unwrap_or("TCP");
        Some(HostPort { number, protocol: protocol.to_owned(), address: address.to_owned() })
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn asks(cpu: &str) -> Value {
        json!({"resources": {"requests": {"cpu": cpu}}})
    }

    fn lacks(used: &Value, allocatable: &str, pod: &Value) -> bool {
        !Usage::of(used).lacking(&amounts(&json!({"cpu": allocatable})), &Usage::of(pod)).is_empty()
    }

    #[test]
    fn the_most_that_a_pod_takes_at_any_moment_counts() {
        let none = json!({});
        let two = json!({"containers": [asks("300m"), asks("200m")]});
        assert!(!lacks(&none, "500m", &two));
        assert!(lacks(&none, "499m", &two));
        let init = json!({"initContainers": [asks("2"), asks("1")], "containers": [asks("500m")]});
        assert!(!lacks(&none, "2", &init) && lacks(&none, "1999m", &init));
        let mut beside = asks("1");
        beside["restartPolicy"] = "Always".into();
        let sidecar = json!({"initContainers": [beside, asks("2")], "containers": [asks("500m")]});
        assert!(!lacks(&none, "3", &sidecar) && lacks(&none, "2", &sidecar));
        let overhead = json!({"containers": [asks("1")], "overhead": {"cpu": "250m"}});
        assert!(!lacks(&none, "1250m", &overhead) && lacks(&none, "1249m", &overhead));
        assert!(!lacks(&two, "1", &two) && lacks(&two, "999m", &two), "what is used is not there");
        assert!(!lacks(&two, "0", &none), "who asks nothing lacks nothing");
    }

    #[test]
    fn a_host_port_is_taken_once_for_each_protocol_and_address() {
        let port = |number: u64, protocol: &str, address: &str| {
            Usage::of(&json!({"containers": [{"ports": [
                {"containerPort": 1, "hostPort": number, "protocol": protocol, "hostIP": address}
            ]}]}))
        };
        let used = port(80, "TCP", "10.0.0.1");
        assert!(used.port_taken(&port(80, "TCP", "10.0.0.1")));
        assert!(used.port_taken(&port(80, "TCP", "0.0.0.0")));
        assert!(!used.port_taken(&port(80, "TCP", "10.0.0.2")));
        assert!(!used.port_taken(&port(80, "UDP", "10.0.0.1")));
        assert!(!used.port_taken(&port(81, "TCP", "")));
        assert!(!used.port_taken(&Usage::of(&json!({"containers": [{"ports": [{"containerPort": 80}]}]}))));
    }
}
