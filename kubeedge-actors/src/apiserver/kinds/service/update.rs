//! What a change of a Service keeps, and what it may not change.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::super::fields::{Errors, Path, integer, list, list_mut, object_mut, text};
use super::super::names;
use super::validate::{check_not_special, check_spec};
use super::{has_cluster_ip, has_health_port, has_node_ports, is_external, is_headless, type_of};
use crate::apiserver::status::FieldError;

/// Keeps in `new` what was given to `old` and was not sent again, and drops what its new type does not have.
pub(crate) fn inherit(new: &mut Value, old: &Value) {
    if object_mut(new, "spec").is_none() {
        return;
    }
    keep_addresses(new, old);
    keep_ports(new, old);
    drop_what_the_type_lacks(new, old);
}

fn keep_addresses(new: &mut Value, old: &Value) {
    if !(has_cluster_ip(old) && has_cluster_ip(new)) {
        return;
    }
    let before = text(old, "/spec/clusterIP").to_owned();
    let all = old["spec"].get("clusterIPs");
    let spec = &mut new["spec"];
    if text(spec, "/clusterIP").is_empty() && list(spec, "/clusterIPs").is_empty() && !before.is_empty() {
        spec["clusterIP"] = before.as_str().into();
    }
    let first = text(spec, "/clusterIP").to_owned();
    if first == before {
        if spec.get("clusterIPs").is_none()
            && let Some(all) = all
        {
            spec["clusterIPs"] = all.clone();
        }
    } else if spec.get("clusterIPs") == all {
        // Only the older of the two fields was changed: it counts.
        if let Some(address) = spec.get_mut("clusterIPs").and_then(|all| all.get_mut(0)) {
            *address = first.into();
        }
    }
}

/// The node ports of a Service.
fn node_ports(service: &Value) -> Vec<i64> {
    let mut all: Vec<i64> = list(service, "/spec/ports")
        .iter()
        .filter_map(|port| integer(port, "/nodePort"))
        .filter(|number| *number != 0)
        .collect();
    all.sort_unstable();
    all.dedup();
    all
}

fn keep_ports(new: &mut Value, old: &Value) {
    if has_node_ports(old) && has_node_ports(new) {
        let known = node_ports(old);
        let mut used: Vec<i64> = node_ports(new).into_iter().filter(|number| known.contains(number)).collect();
        let by_name: BTreeMap<&str, i64> = list(old, "/spec/ports")
            .iter()
            .map(|port| (text(port, "/name"), integer(port, "/nodePort").unwrap_or_default()))
            .collect();
        for port in list_mut(&mut new["spec"], "ports") {
            if integer(port, "/nodePort").unwrap_or_default() != 0 {
                continue;
            }
            if let Some(number) = by_name.get(text(port, "/name")).filter(|n| **n != 0 && !used.contains(n)) {
                port["nodePort"] = (*number).into();
                used.push(*number);
            }
        }
    }
    let health = integer(old, "/spec/healthCheckNodePort").unwrap_or_default();
    if has_health_port(old)
        && has_health_port(new)
        && health != 0
        && integer(new, "/spec/healthCheckNodePort").unwrap_or_default() == 0
    {
        new["spec"]["healthCheckNodePort"] = health.into();
    }
}

fn drop_what_the_type_lacks(new: &mut Value, old: &Value) {
    let same = |new: &Value, field: &str| new["spec"].get(field) == old["spec"].get(field);
    let mut dropped: Vec<&str> = Vec::new();
    if has_cluster_ip(old) && !has_cluster_ip(new) && same(new, "clusterIP") && same(new, "clusterIPs") {
        dropped.extend(["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy", "internalTrafficPolicy"]);
    }
    if is_external(old) && !is_external(new) && same(new, "externalTrafficPolicy") {
        dropped.push("externalTrafficPolicy");
    }
    if has_health_port(old) && !has_health_port(new) && same(new, "healthCheckNodePort") {
        dropped.push("healthCheckNodePort");
    }
    if type_of(old) == "LoadBalancer" && type_of(new) != "LoadBalancer" {
        let fields = ["allocateLoadBalancerNodePorts", "loadBalancerClass"];
        dropped.extend(fields.into_iter().filter(|field| same(new, field)));
    }
    let ports_go = has_node_ports(old) && !has_node_ports(new) && node_ports(new) == node_ports(old);
    let spec = &mut new["spec"];
    if ports_go {
        for port in list_mut(spec, "ports").iter_mut().filter_map(Value::as_object_mut) {
            port.remove("nodePort");
        }
    }
    let Some(spec) = spec.as_object_mut() else { return };
    drop_fields(spec, &dropped);
}

fn drop_fields(spec: &mut Map<String, Value>, fields: &[&str]) {
    for field in fields {
        spec.remove(*field);
    }
}

pub(super) fn validate(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let spec = Path::new("spec");
    if has_cluster_ip(new) && has_cluster_ip(old) && !(is_headless(new) && is_headless(old)) {
        let (before, after) = (list(old, "/spec/clusterIPs"), list(new, "/spec/clusterIPs"));
        for (index, address) in before.iter().enumerate() {
            if after.get(index) != Some(address) {
                let path = spec.field("clusterIPs").index(index);
                errors.invalid(&path, after.to_vec(), "may not change once set");
            }
        }
    }
    if type_of(old) == "LoadBalancer" && type_of(new) == "LoadBalancer" {
        let class = |service: &Value| service["spec"].get("loadBalancerClass").cloned();
        if class(new) != class(old) {
            let value = class(new).unwrap_or_default();
            errors.invalid(&spec.field("loadBalancerClass"), value, "may not change once set");
        }
    }
    check_spec(new, &mut errors);
    errors.done()
}

pub(super) fn validate_status(new: &Value, _old: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let path = Path::new("status").field("loadBalancer").field("ingress");
    for (index, ingress) in list(new, "/status/loadBalancer/ingress").iter().enumerate() {
        let path = path.index(index);
        let address = text(ingress, "/ip");
        if !address.is_empty() {
            errors.format(&path.field("ip"), address, names::ip(address));
            check_not_special(address, &path.field("ip"), &mut errors);
        }
        let name = text(ingress, "/hostname");
        if !name.is_empty() {
            errors.format(&path.field("hostname"), name, names::dns_subdomain(name));
            if name.parse::<std::net::IpAddr>().is_ok() {
                errors.invalid(&path.field("hostname"), name, "must be a DNS name, not an IP address");
            }
        }
    }
    errors.done()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::defaults::default;
    use super::*;

    fn service(spec: Value) -> Value {
        let mut service = json!({"metadata": {"name": "s"}, "spec": spec});
        default(&mut service);
        service
    }

    fn change(old: &Value, spec: Value) -> (Value, Vec<String>) {
        let mut new = json!({"metadata": {"name": "s"}, "spec": spec});
        inherit(&mut new, old);
        default(&mut new);
        let errors = validate(&new, old).iter().map(ToString::to_string).collect();
        (new["spec"].clone(), errors)
    }

    #[test]
    fn what_was_given_stays_when_it_is_not_sent_again() {
        let ports = json!([{"port": 80, "name": "a", "nodePort": 30001}, {"port": 81, "name": "b", "nodePort": 30002}]);
        let old = service(json!({"type": "NodePort", "clusterIP": "10.96.0.7", "ports": ports}));
        let sent = json!([{"port": 90, "name": "b"}, {"port": 80, "name": "a"}, {"port": 1, "name": "c"}]);
        let (new, errors) = change(&old, json!({"type": "NodePort", "ports": sent}));
        assert!(errors.is_empty(), "{errors:?}");
        assert_eq!((&new["clusterIP"], &new["clusterIPs"]), (&json!("10.96.0.7"), &json!(["10.96.0.7"])));
        assert_eq!((&new["ports"][0]["nodePort"], &new["ports"][1]["nodePort"]), (&json!(30002), &json!(30001)));
        assert!(new["ports"][2].get("nodePort").is_none());
    }

    #[test]
    fn a_new_type_drops_what_it_does_not_have() {
        let old = service(json!({"type": "NodePort", "clusterIP": "10.96.0.7",
            "ports": [{"port": 80, "nodePort": 30001}]}));
        let mut sent = old["spec"].clone();
        sent["type"] = json!("ClusterIP");
        let (new, errors) = change(&old, sent.clone());
        assert!(errors.is_empty(), "{errors:?}");
        assert!(new["ports"][0].get("nodePort").is_none() && new.get("externalTrafficPolicy").is_none());
        assert_eq!(new["clusterIP"], "10.96.0.7");
        sent["type"] = json!("ExternalName");
        sent["externalName"] = json!("a.b");
        let (new, errors) = change(&old, sent);
        assert!(errors.is_empty(), "{errors:?}");
        assert!(new.get("clusterIP").is_none() && new.get("ipFamilies").is_none());
    }

    #[test]
    fn an_address_is_kept_for_life() {
        let old = service(json!({"clusterIP": "10.96.0.7", "ports": [{"port": 80}]}));
        let mut sent = old["spec"].clone();
        sent["clusterIP"] = json!("10.96.0.8");
        let (_, errors) = change(&old, sent);
        assert_eq!(errors, ["spec.clusterIPs[0]: Invalid value: [\"10.96.0.8\"]: may not change once set"]);
        let (_, errors) = change(&old, json!({"clusterIP": "None", "ports": [{"port": 80}]}));
        assert_eq!(errors, ["spec.clusterIPs[0]: Invalid value: [\"None\"]: may not change once set"]);
    }
}
