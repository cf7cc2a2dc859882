//! What a Service is when it does not say.

use serde_json::{Value, json};

use super::super::fields::{integer, list_mut, object_mut, set_missing, text};
use super::{has_cluster_ip, is_external, type_of};

/// Seconds a client stays with its endpoint: three hours.
const AFFINITY_SECONDS: u32 = 10_800;

pub(super) fn default(service: &mut Value) {
    if object_mut(service, "spec").is_none() {
        return;
    }
    let type_ = type_of(service).to_owned();
    let external = is_external(service);
    let addressed = has_cluster_ip(service);
    let spec = &mut service["spec"];
    set_missing(spec, "type", type_.as_str());
    set_missing(spec, "sessionAffinity", "None");
    match text(spec, "/sessionAffinity") {
        "None" => {
            if let Some(spec) = spec.as_object_mut() {
                spec.remove("sessionAffinityConfig");
            }
        }
        "ClientIP" => {
            let known = integer(spec, "/sessionAffinityConfig/clientIP/timeoutSeconds").is_some();
            if !known {
                spec["sessionAffinityConfig"] = json!({"clientIP": {"timeoutSeconds": AFFINITY_SECONDS}});
            }
        }
        _ => {}
    }
    for port in list_mut(spec, "ports") {
        set_missing(port, "protocol", "TCP");
        let unset = match port.get("targetPort") {
            None | Some(Value::Null) => true,
            Some(Value::String(name)) => name.is_empty(),
            Some(number) => number.as_i64() == Some(0),
        };
        if unset {
            let number = port.get("port").cloned().unwrap_or_else(|| json!(0));
            port["targetPort"] = number;
        }
    }
    if external {
        set_missing(spec, "externalTrafficPolicy", "Cluster");
    }
    if type_ == "LoadBalancer" {
        set_missing(spec, "allocateLoadBalancerNodePorts", true);
    }
    if addressed {
        set_missing(spec, "internalTrafficPolicy", "Cluster");
        set_missing(spec, "ipFamilies", json!(["IPv4"]));
        set_missing(spec, "ipFamilyPolicy", "SingleStack");
        let address = text(spec, "/clusterIP").to_owned();
        if !address.is_empty() {
            set_missing(spec, "clusterIPs", json!([address]));
        }
    }
    if object_mut(service, "status").is_some() {
        let status = &mut service["status"];
        set_missing(status, "loadBalancer", json!({}));
        for ingress in status.get_mut("loadBalancer").map_or(&mut [][..], |balancer| list_mut(balancer, "ingress")) {
            if !text(ingress, "/ip").is_empty() {
                set_missing(ingress, "ipMode", "VIP");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn defaulted(spec: Value) -> Value {
        let mut service = json!({"spec": spec});
        default(&mut service);
        service["spec"].clone()
    }

    #[test]
    fn a_plain_service_gets_what_a_cluster_gives() {
        let spec = defaulted(json!({"ports": [{"port": 80}, {"port": 53, "protocol": "UDP", "targetPort": "dns"}]}));
        let expected = json!({
            "ports": [{"port": 80, "protocol": "TCP", "targetPort": 80},
                {"port": 53, "protocol": "UDP", "targetPort": "dns"}],
            "type": "ClusterIP", "sessionAffinity": "None", "internalTrafficPolicy": "Cluster",
            "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack",
        });
        assert_eq!(spec, expected);
    }

    #[test]
    fn types_bring_their_own_defaults() {
        let balanced = defaulted(json!({"type": "LoadBalancer", "sessionAffinity": "ClientIP"}));
        assert_eq!(balanced["allocateLoadBalancerNodePorts"], true);
        assert_eq!(balanced["externalTrafficPolicy"], "Cluster");
        assert_eq!(balanced["sessionAffinityConfig"]["clientIP"]["timeoutSeconds"], 10_800);
        let named = defaulted(json!({"type": "ExternalName", "externalName": "a.b"}));
        assert!(named.get("ipFamilies").is_none() && named.get("internalTrafficPolicy").is_none());
        let headless = defaulted(json!({"clusterIP": "None"}));
        assert_eq!(headless["clusterIPs"], json!(["None"]));
        assert!(headless.get("externalTrafficPolicy").is_none());
    }
}
