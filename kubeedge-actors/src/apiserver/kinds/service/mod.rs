//! Service. Its addresses and ports are given in `addresses`, with the write; here is what needs no other Service.

mod defaults;
mod table;
mod update;
mod validate;

use k8s_openapi::api::core::v1::Service;
use serde_json::Value;

use super::decode;
use super::fields::{list, text};
use crate::apiserver::kind::{Kind, Resource};

pub(crate) use update::inherit;
pub(super) use validate::{check_not_special, check_port_number, check_protocol};

pub(super) const KIND: Kind = Kind {
    resource: Resource {
        group: "",
        version: "v1",
        kind: "Service",
        plural: "services",
        singular: "service",
        short_names: &["svc"],
        categories: &["all"],
        namespaced: true,
        status_subresource: true,
        stored_as: None,
        selectable: &[
            ("spec.clusterIP", |o| text(o, "/spec/clusterIP").to_owned()),
            ("spec.type", |o| text(o, "/spec/type").to_owned()),
        ],
        columns: table::COLUMNS,
        cells: table::cells,
    },
    scale_subresource: false,
    has_generation: false,
    decode: decode::typed::<Service>,
    default: defaults::default,
    validate_create: validate::validate,
    validate_update: update::validate,
    validate_status: update::validate_status,
};

/// `spec.clusterIP` of a Service that has names and no address.
pub(crate) const HEADLESS: &str = "None";

/// The type of a Service, also before defaults.
pub(crate) fn type_of(service: &Value) -> &str {
    match text(service, "/spec/type") {
        "" => "ClusterIP",
        type_ => type_,
    }
}

/// Whether this type has a cluster IP (or says that it wants none).
pub(crate) fn has_cluster_ip(service: &Value) -> bool {
    matches!(type_of(service), "ClusterIP" | "NodePort" | "LoadBalancer")
}

/// Whether this type has node ports.
pub(crate) fn has_node_ports(service: &Value) -> bool {
    matches!(type_of(service), "NodePort" | "LoadBalancer")
}

/// Whether a port of the nodes answers for the health of a local load balancer.
pub(crate) fn has_health_port(service: &Value) -> bool {
    type_of(service) == "LoadBalancer" && text(service, "/spec/externalTrafficPolicy") == "Local"
}

/// Whether it has no address on purpose.
pub(crate) fn is_headless(service: &Value) -> bool {
    match service.pointer("/spec/clusterIPs/0").and_then(Value::as_str) {
        Some(address) => address == HEADLESS,
        None => text(service, "/spec/clusterIP") == HEADLESS,
    }
}

/// Whether something outside the cluster may come to it.
fn is_external(service: &Value) -> bool {
    has_node_ports(service) || (type_of(service) == "ClusterIP" && !list(service, "/spec/externalIPs").is_empty())
}
