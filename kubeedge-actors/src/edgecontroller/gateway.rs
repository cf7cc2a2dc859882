//! Where an API server finds the logs of every node's containers: CloudStream, in the place of a kubelet.

use serde_json::{Value, json};

/// CloudStream's host and port. An API server dials the first address of a Node that has the type it prefers:
/// `Hostname`, then `InternalDNS`, then `InternalIP`. So a node keeps its true `InternalIP`, has no `Hostname`, and its
/// `InternalDNS` is the gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamGateway {
    /// A DNS name or an IP address that the API server can reach and that the gateway's certificate is for.
    pub host: String,
    /// Its port.
    pub port: u16,
}

impl StreamGateway {
    /// Puts the gateway into a node's status.
    pub(super) fn publish(&self, status: &mut Value) {
        if !status.is_object() {
            return;
        }
        let of_type = |address: &Value, name: &str| address["type"] == name;
        let own = status["addresses"].as_array().into_iter().flatten();
        let mut addresses: Vec<Value> =
            own.filter(|address| !of_type(address, "Hostname") && !of_type(address, "InternalDNS")).cloned().collect();
        addresses.push(json!({"type": "InternalDNS", "address": self.host}));
        status["addresses"] = addresses.into();
        status["daemonEndpoints"] = json!({"kubeletEndpoint": {"Port": self.port}});
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_keeps_its_address_and_is_reached_through_the_gateway() {
        let mut status = json!({
            "addresses": [{"type": "InternalIP", "address": "10.0.0.7"}, {"type": "Hostname", "address": "e1"},
                          {"type": "InternalDNS", "address": "elsewhere"}],
            "capacity": {"cpu": "2"},
        });
        StreamGateway { host: "cloud.example".into(), port: 10003 }.publish(&mut status);
        assert_eq!(
            status,
            json!({
                "addresses": [{"type": "InternalIP", "address": "10.0.0.7"},
                              {"type": "InternalDNS", "address": "cloud.example"}],
                "daemonEndpoints": {"kubeletEndpoint": {"Port": 10003}},
                "capacity": {"cpu": "2"},
            })
        );
    }
}
