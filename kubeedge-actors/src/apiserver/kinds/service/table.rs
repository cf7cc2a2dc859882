//! `kubectl get services`.

use serde_json::{Value, json};

use super::super::fields::{entries, integer, list, text};
use super::super::table::{AGE, NAME, NONE, column, creation_age, name, text_or, wide};
use super::type_of;
use crate::apiserver::kind::Column;

pub(super) const COLUMNS: &[Column] = &[
    NAME,
    column("Type", "How it is reached"),
    column("Cluster-IP", "Its address inside the cluster"),
    column("External-IP", "Its addresses or its name outside"),
    column("Port(s)", "Its ports, with those of the nodes"),
    AGE,
    wide("Selector", "The labels of its pods"),
];

pub(super) fn cells(service: &Value, now: i64) -> Vec<Value> {
    vec![
        name(service),
        json!(type_of(service)),
        json!(text_or(service, "/spec/clusterIP", NONE)),
        json!(external(service)),
        json!(ports(service)),
        creation_age(service, now),
        json!(selector(service)),
    ]
}

fn external(service: &Value) -> String {
    let mut addresses: Vec<&str> = list(service, "/spec/externalIPs").iter().filter_map(Value::as_str).collect();
    match type_of(service) {
        "ExternalName" => return text(service, "/spec/externalName").to_owned(),
        "LoadBalancer" => {
            let given = list(service, "/status/loadBalancer/ingress").iter().map(|one| match text(one, "/ip") {
                "" => text(one, "/hostname"),
                ip => ip,
            });
            addresses.splice(0..0, given);
            if addresses.is_empty() {
                return "<pending>".to_owned();
            }
        }
        _ => {}
    }
    if addresses.is_empty() { NONE.to_owned() } else { addresses.join(",") }
}

fn ports(service: &Value) -> String {
    let all: Vec<String> = list(service, "/spec/ports")
        .iter()
        .map(|port| {
            let number = integer(port, "/port").unwrap_or_default();
            let protocol = text(port, "/protocol");
            match integer(port, "/nodePort") {
                Some(node_port) if node_port > 0 => format!("{number}:{node_port}/{protocol}"),
                _ => format!("{number}/{protocol}"),
            }
        })
        .collect();
    if all.is_empty() { NONE.to_owned() } else { all.join(",") }
}

fn selector(service: &Value) -> String {
    let mut all: Vec<String> = entries(service, "/spec/selector")
        .map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()))
        .collect();
    all.sort();
    if all.is_empty() { NONE.to_owned() } else { all.join(",") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_shows_how_a_service_is_reached() {
        let row =
            |spec: Value, status: Value| cells(&json!({"metadata": {"name": "s"}, "spec": spec, "status": status}), 0);
        let ports = json!([{"port": 80, "protocol": "TCP", "nodePort": 30080}, {"port": 53, "protocol": "UDP"}]);
        let balanced =
            json!({"type": "LoadBalancer", "clusterIP": "10.96.0.9", "ports": ports, "selector": {"a": "b"}});
        let cells = row(balanced.clone(), json!({}));
        assert_eq!(
            cells[1..5],
            [json!("LoadBalancer"), json!("10.96.0.9"), json!("<pending>"), json!("80:30080/TCP,53/UDP")]
        );
        assert_eq!(cells[6], "a=b");
        let given = row(balanced, json!({"loadBalancer": {"ingress": [{"ip": "192.0.2.1"}, {"hostname": "h"}]}}));
        assert_eq!(given[3], "192.0.2.1,h");
        let named = row(json!({"type": "ExternalName", "externalName": "a.b"}), json!({}));
        assert_eq!(named[2..5], [json!("<none>"), json!("a.b"), json!("<none>")]);
    }
}
