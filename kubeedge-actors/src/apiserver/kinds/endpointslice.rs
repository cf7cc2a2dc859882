//! EndpointSlice (`discovery.k8s.io/v1`): a part of the addresses behind a Service.

use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde_json::{Value, json};

use super::fields::{Errors, Path, integer, list, list_mut, nothing, set_missing, text};
use super::service::{check_not_special, check_protocol};
use super::table::{AGE, NAME, column, creation_age, name};
use super::{decode, names};
use crate::apiserver::kind::{Kind, Resource};
use crate::apiserver::status::FieldError;

pub(super) const KIND: Kind = Kind {
    resource: Resource {
        group: "discovery.k8s.io",
        version: "v1",
        kind: "EndpointSlice",
        plural: "endpointslices",
        singular: "endpointslice",
        short_names: &[],
        categories: &[],
        namespaced: true,
        status_subresource: false,
        stored_as: None,
        selectable: &[],
        columns: &[
            NAME,
            column("AddressType", "What its addresses are"),
            column("Ports", "Its ports"),
            column("Endpoints", "The first addresses"),
            AGE,
        ],
        cells,
    },
    scale_subresource: false,
    has_generation: true,
    decode: decode::typed::<EndpointSlice>,
    default,
    validate_create: validate,
    validate_update,
    validate_status: nothing,
};

/// The label that names the Service of a slice.
pub(crate) const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// Endpoints in one slice at most.
const ENDPOINTS_MAX: usize = 1000;
/// Addresses of one endpoint, and ports of one slice, at most.
const ITEMS_MAX: usize = 100;
/// Items that a cell shows.
const SHOWN: usize = 3;

fn default(slice: &mut Value) {
    set_missing(slice, "endpoints", json!([]));
    for port in list_mut(slice, "ports") {
        set_missing(port, "name", "");
        set_missing(port, "protocol", "TCP");
    }
}

fn validate(slice: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let type_ = text(slice, "/addressType");
    let path = Path::new("addressType");
    if type_.is_empty() {
        errors.required(&path, "");
    } else {
        errors.one_of(&path, type_, &["FQDN", "IPv4", "IPv6"]);
    }
    let path = Path::new("endpoints");
    let endpoints = list(slice, "/endpoints");
    errors.at_most(&path, endpoints.len(), ENDPOINTS_MAX);
    for (index, endpoint) in endpoints.iter().enumerate().take(ENDPOINTS_MAX) {
        check_endpoint(endpoint, type_, &path.index(index), &mut errors);
    }
    check_ports(list(slice, "/ports"), &Path::new("ports"), &mut errors);
    errors.done()
}

fn check_endpoint(endpoint: &Value, type_: &str, path: &Path, errors: &mut Errors) {
    let addresses = list(endpoint, "/addresses");
    let place = path.field("addresses");
    if addresses.is_empty() {
        errors.required(&place, "must contain at least 1 address");
    }
    errors.at_most(&place, addresses.len(), ITEMS_MAX);
    for (index, address) in addresses.iter().enumerate().take(ITEMS_MAX) {
        let path = place.index(index);
        let address = address.as_str().unwrap_or_default();
        match (type_, address.parse::<std::net::IpAddr>()) {
            ("FQDN", _) => errors.format(&path, address, names::dns_subdomain(address)),
            ("IPv4", Ok(std::net::IpAddr::V4(_))) | ("IPv6", Ok(std::net::IpAddr::V6(_))) => {
                check_not_special(address, &path, errors);
            }
            ("IPv4", _) => errors.invalid(&path, address, "must be an IPv4 address"),
            ("IPv6", _) => errors.invalid(&path, address, "must be an IPv6 address"),
            _ => {}
        }
    }
    for (field, check) in
        [("nodeName", names::dns_subdomain as fn(&str) -> Vec<String>), ("hostname", names::dns_label)]
    {
        if let Some(value) = endpoint.get(field).and_then(Value::as_str) {
            errors.format(&path.field(field), value, check(value));
        }
    }
}

fn check_ports(ports: &[Value], path: &Path, errors: &mut Errors) {
    errors.at_most(path, ports.len(), ITEMS_MAX);
    let mut seen: Vec<&str> = Vec::new();
    for (index, port) in ports.iter().enumerate().take(ITEMS_MAX) {
        let path = path.index(index);
        let name = text(port, "/name");
        if !name.is_empty() {
            errors.format(&path.field("name"), name, names::dns_label(name));
        }
        if seen.contains(&name) {
            errors.duplicate(&path.field("name"), name);
        }
        seen.push(name);
        check_protocol(text(port, "/protocol"), &path.field("protocol"), errors);
        if let Some(number) = integer(port, "/port") {
            super::service::check_port_number(number, &path.field("port"), errors);
        }
        let application = text(port, "/appProtocol");
        if !application.is_empty() {
            errors.format(&path.field("appProtocol"), application, names::qualified_name(application));
        }
    }
}

fn validate_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    errors.immutable(&Path::new("addressType"), new.get("addressType"), old.get("addressType"));
    let mut all = validate(new);
    all.extend(errors.done());
    all
}

/// Whether what a slice says has changed: its generation counts that, as it has no `spec`.
pub(crate) fn says_something_else(new: &Value, old: &Value) -> bool {
    ["endpoints", "ports"].iter().any(|field| new.get(*field) != old.get(*field))
        || new["metadata"].get("labels") != old["metadata"].get("labels")
}

fn cells(slice: &Value, now: i64) -> Vec<Value> {
    let ports = list(slice, "/ports").iter().map(|port| match (integer(port, "/port"), text(port, "/name")) {
        (Some(number), _) => number.to_string(),
        (None, "") => "*".to_owned(),
        (None, name) => name.to_owned(),
    });
    let addresses = list(slice, "/endpoints").iter().flat_map(|one| list(one, "/addresses")).filter_map(Value::as_str);
    vec![
        name(slice),
        json!(text(slice, "/addressType")),
        json!(first(ports.collect(), "<unset>")),
        json!(first(addresses.map(str::to_owned).collect(), "<unset>")),
        creation_age(slice, now),
    ]
}

fn first(items: Vec<String>, otherwise: &str) -> String {
    match items.len() {
        0 => otherwise.to_owned(),
        count if count > SHOWN => format!("{} + {} more...", items[..SHOWN].join(","), count - SHOWN),
        _ => items.join(","),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn errors(mut slice: Value) -> Vec<String> {
        default(&mut slice);
        validate(&slice).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn addresses_are_of_the_type_and_ports_have_names_of_their_own() {
        let slice = |type_: &str, address: &str| json!({"addressType": type_, "endpoints": [{"addresses": [address]}]});
        assert!(errors(slice("IPv4", "10.0.0.1")).is_empty());
        assert!(errors(slice("FQDN", "a.example.com")).is_empty());
        assert_eq!(
            errors(slice("IPv4", "fd00::1")),
            ["endpoints[0].addresses[0]: Invalid value: \"fd00::1\": must be an IPv4 address"]
        );
        assert_eq!(errors(json!({"endpoints": []})), ["addressType: Required value"]);
        assert_eq!(
            errors(json!({"addressType": "IPv4", "ports": [{"port": 1}, {"port": 2}]})),
            ["ports[1].name: Duplicate value: \"\""]
        );
        let many: Vec<Value> = (0..1001).map(|_| json!({"addresses": ["10.0.0.1"]})).collect();
        assert_eq!(
            errors(json!({"addressType": "IPv4", "endpoints": many})),
            ["endpoints: Too many: 1001: must have at most 1000 items"]
        );
    }

    #[test]
    fn the_address_type_stays() {
        let slice = |type_: &str| json!({"addressType": type_, "endpoints": []});
        assert_eq!(validate_update(&slice("IPv6"), &slice("IPv4"))[0].field, "addressType");
        assert!(validate_update(&slice("IPv4"), &slice("IPv4")).is_empty());
    }

    #[test]
    fn a_row_shows_ports_and_addresses() {
        let endpoints: Vec<Value> = (1..=4).map(|n| json!({"addresses": [format!("10.0.0.{n}")]})).collect();
        let slice = json!({"metadata": {"name": "s"}, "addressType": "IPv4", "ports": [{"port": 80}],
            "endpoints": endpoints});
        let row = cells(&slice, 0);
        assert_eq!(row[1..4], [json!("IPv4"), json!("80"), json!("10.0.0.1,10.0.0.2,10.0.0.3 + 1 more...")]);
    }
}
