//! Endpoints (core): the addresses behind a Service, all in one object.

use k8s_openapi::api::core::v1::Endpoints;
use serde_json::{Value, json};

use super::fields::{Errors, Path, integer, list, list_mut, nothing, text};
use super::service::{check_not_special, check_port_number, check_protocol};
use super::table::{AGE, NAME, NONE, column, creation_age, name};
use super::{decode, names};
use crate::apiserver::kind::{Kind, Resource};
use crate::apiserver::status::FieldError;

pub(super) const KIND: Kind = Kind {
    resource: Resource {
        group: "",
        version: "v1",
        kind: "Endpoints",
        plural: "endpoints",
        singular: "endpoints",
        short_names: &["ep"],
        categories: &[],
        namespaced: true,
        status_subresource: false,
        stored_as: None,
        selectable: &[],
        columns: &[NAME, column("Endpoints", "The first addresses and ports"), AGE],
        cells: |object, now| vec![name(object), json!(shown(object)), creation_age(object, now)],
    },
    scale_subresource: false,
    has_generation: false,
    decode: decode::typed::<Endpoints>,
    default,
    validate_create: validate,
    validate_update: |new, _| validate(new),
    validate_status: nothing,
};

/// Endpoints that a table shows.
const SHOWN: usize = 3;

fn default(endpoints: &mut Value) {
    for subset in list_mut(endpoints, "subsets") {
        for port in list_mut(subset, "ports") {
            super::fields::set_missing(port, "protocol", "TCP");
            if text(port, "/name").is_empty()
                && let Some(fields) = port.as_object_mut()
            {
                fields.remove("name");
            }
        }
    }
}

fn validate(endpoints: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    for (index, subset) in list(endpoints, "/subsets").iter().enumerate() {
        let path = Path::new("subsets").index(index);
        let lists = ["addresses", "notReadyAddresses"];
        if lists.iter().all(|field| list(subset, &format!("/{field}")).is_empty()) {
            errors.required(&path, "must specify `addresses` or `notReadyAddresses`");
        }
        for field in lists {
            for (at, address) in list(subset, &format!("/{field}")).iter().enumerate() {
                check_address(address, &path.field(field).index(at), &mut errors);
            }
        }
        let ports = list(subset, "/ports");
        for (at, port) in ports.iter().enumerate() {
            let path = path.field("ports").index(at);
            match text(port, "/name") {
                "" if ports.len() > 1 => errors.required(&path.field("name"), ""),
                "" => {}
                name => errors.format(&path.field("name"), name, names::dns_label(name)),
            }
            check_port_number(integer(port, "/port").unwrap_or_default(), &path.field("port"), &mut errors);
            check_protocol(text(port, "/protocol"), &path.field("protocol"), &mut errors);
        }
    }
    errors.done()
}

fn check_address(address: &Value, path: &Path, errors: &mut Errors) {
    let ip = text(address, "/ip");
    errors.format(&path.field("ip"), ip, names::ip(ip));
    check_not_special(ip, &path.field("ip"), errors);
    let hostname = text(address, "/hostname");
    if !hostname.is_empty() {
        errors.format(&path.field("hostname"), hostname, names::dns_label(hostname));
    }
    let node = text(address, "/nodeName");
    if !node.is_empty() {
        errors.format(&path.field("nodeName"), node, names::dns_subdomain(node));
    }
}

fn shown(endpoints: &Value) -> String {
    let mut all: Vec<String> = Vec::new();
    let mut more = 0_usize;
    for subset in list(endpoints, "/subsets") {
        let (addresses, ports) = (list(subset, "/addresses"), list(subset, "/ports"));
        let without = [Value::Null];
        for port in if ports.is_empty() { &without[..] } else { ports } {
            for address in addresses {
                if all.len() == SHOWN {
                    more += 1;
                    continue;
                }
                let ip = text(address, "/ip");
                all.push(match integer(port, "/port") {
                    Some(port) if ip.contains(':') => format!("[{ip}]:{port}"),
                    Some(port) => format!("{ip}:{port}"),
                    None => ip.to_owned(),
                });
            }
        }
    }
    match (all.is_empty(), more) {
        (true, _) => NONE.to_owned(),
        (false, 0) => all.join(","),
        (false, more) => format!("{} + {more} more...", all.join(",")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subset_has_addresses_that_lead_somewhere_and_named_ports() {
        let errors = |subset: Value| -> Vec<String> {
            let mut endpoints = json!({"metadata": {"name": "e"}, "subsets": [subset]});
            default(&mut endpoints);
            validate(&endpoints).iter().map(ToString::to_string).collect()
        };
        assert!(errors(json!({"addresses": [{"ip": "10.0.0.1"}], "ports": [{"port": 80}]})).is_empty());
        assert_eq!(
            errors(json!({"ports": [{"port": 80}]})),
            ["subsets[0]: Required value: must specify `addresses` or `notReadyAddresses`"]
        );
        let bad = errors(json!({"addresses": [{"ip": "127.0.0.1"}, {"ip": "x"}],
            "ports": [{"port": 80}, {"port": 0, "name": "a"}]}));
        assert_eq!(bad.len(), 4, "{bad:?}");
        assert!(bad[0].contains("may not be in the loopback range") && bad[1].contains("must be a valid IP address"));
        assert_eq!(bad[2], "subsets[0].ports[0].name: Required value");
    }

    #[test]
    fn a_row_shows_the_first_endpoints() {
        let addresses: Vec<Value> = (1..=3).map(|n| json!({"ip": format!("10.0.0.{n}")})).collect();
        let two = json!({"subsets": [{"addresses": addresses, "ports": [{"port": 80}, {"port": 443}]}]});
        assert_eq!(shown(&two), "10.0.0.1:80,10.0.0.2:80,10.0.0.3:80 + 3 more...");
        assert_eq!(
            shown(&json!({"subsets": [{"addresses": [{"ip": "fd00::1"}], "ports": [{"port": 1}]}]})),
            "[fd00::1]:1"
        );
        assert_eq!(shown(&json!({"subsets": [{"notReadyAddresses": [{"ip": "10.0.0.1"}]}]})), NONE);
        assert_eq!(shown(&json!({"subsets": [{"addresses": [{"ip": "10.0.0.1"}]}]})), "10.0.0.1");
    }
}
