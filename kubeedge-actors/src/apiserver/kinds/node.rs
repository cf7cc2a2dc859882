//! Node.

use k8s_openapi::api::core::v1::Node;
use serde_json::{Value, json};

use super::fields::{Errors, Path, entries, flag, integer, list, object_mut, set_missing, text};
use super::quantity::Quantity;
use super::{decode, names, zero};
use crate::apiserver::kind::Kind;
use crate::apiserver::status::FieldError;
use crate::kubeapi::kinds as rows;

pub(super) const KIND: Kind = Kind {
    resource: rows::NODE,
    scale_subresource: false,
    has_generation: false,
    decode: decode::typed::<Node>,
    default,
    validate_create: validate,
    validate_update,
    validate_status,
};

/// The taint of a node that is not ready.
pub const NOT_READY: &str = "node.kubernetes.io/not-ready";
/// The taint of a node whose state nobody knows.
pub const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
/// The taint of a node that is closed for scheduling.
pub const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";

/// Conditions that taint a node while they hold: condition, status, taint.
const TAINTING: &[(&str, &str, &str)] = &[
    ("Ready", "False", NOT_READY),
    ("Ready", "Unknown", UNREACHABLE),
    ("MemoryPressure", "True", "node.kubernetes.io/memory-pressure"),
    ("DiskPressure", "True", "node.kubernetes.io/disk-pressure"),
    ("PIDPressure", "True", "node.kubernetes.io/pid-pressure"),
    ("NetworkUnavailable", "True", "node.kubernetes.io/network-unavailable"),
];

fn default(object: &mut Value) {
    set_missing(object, "spec", json!({}));
    set_missing(object, "status", json!({}));
    let Some(status) = object.get_mut("status") else { return };
    set_missing(status, "daemonEndpoints", json!({"kubeletEndpoint": {"Port": 0}}));
    set_missing(status, "nodeInfo", zero::node_info());
    // What a node can give is what it has, unless it says otherwise.
    if let Some(capacity) = status.get("capacity").cloned() {
        set_missing(status, "allocatable", capacity);
    }
}

/// Admission of a new node: nothing is scheduled to it before it said that it is ready.
pub fn admit_create(object: &mut Value) {
    let Some(spec) = object_mut(object, "spec") else { return };
    let taints = spec.entry("taints").or_insert_with(|| json!([]));
    if let Some(taints) = taints.as_array_mut()
        && !taints.iter().any(|t| is_taint(t, NOT_READY))
    {
        taints.push(no_schedule(NOT_READY));
    }
}

fn is_taint(taint: &Value, key: &str) -> bool {
    text(taint, "/key") == key && text(taint, "/effect") == "NoSchedule"
}

fn no_schedule(key: &str) -> Value {
    json!({"key": key, "effect": "NoSchedule"})
}

/// The taints that a node should have by its conditions and `unschedulable`, or `None` when it has exactly these.
/// Taints that do not come from conditions are kept, in their order.
pub fn condition_taints(node: &Value) -> Option<Vec<Value>> {
    let holds = |type_: &str, status: &str| {
        list(node, "/status/conditions").iter().any(|c| text(c, "/type") == type_ && text(c, "/status") == status)
    };
    let mut wanted: Vec<&str> =
        TAINTING.iter().filter(|(type_, status, _)| holds(type_, status)).map(|(_, _, key)| *key).collect();
    if flag(node, "/spec/unschedulable") {
        wanted.push(UNSCHEDULABLE);
    }
    let managed = |key: &str| key == UNSCHEDULABLE || TAINTING.iter().any(|(_, _, taint)| *taint == key);
    let old = list(node, "/spec/taints");
    let mut new: Vec<Value> = old
        .iter()
        .filter(|taint| {
            let key = text(taint, "/key");
            !is_taint(taint, key) || !managed(key) || wanted.contains(&key)
        })
        .cloned()
        .collect();
    for key in wanted {
        if !new.iter().any(|taint| is_taint(taint, key)) {
            new.push(no_schedule(key));
        }
    }
    (new != old).then_some(new)
}

fn validate(object: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    check_taints(object, &mut errors);
    check_resources(object, &mut errors);
    for (index, cidr) in list(object, "/spec/podCIDRs").iter().enumerate() {
        let text = cidr.as_str().unwrap_or_default();
        if !is_cidr(text) {
            let why = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";
            errors.invalid(&Path::new("spec").field("podCIDRs").index(index), text, why);
        }
    }
    errors.done()
}

fn validate_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    check_taints(new, &mut errors);
    let spec = Path::new("spec");
    let (new_cidrs, old_cidrs) = (list(new, "/spec/podCIDRs"), list(old, "/spec/podCIDRs"));
    if !old_cidrs.is_empty() && new_cidrs != old_cidrs {
        errors.forbidden(&spec.field("podCIDRs"), "node updates may not change podCIDR except from \"\" to valid");
    }
    let (new_id, old_id) = (text(new, "/spec/providerID"), text(old, "/spec/providerID"));
    if !old_id.is_empty() && new_id != old_id {
        errors.forbidden(&spec.field("providerID"), "node updates may not change providerID except from \"\" to valid");
    }
    errors.done()
}

fn validate_status(new: &Value, _old: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    check_resources(new, &mut errors);
    let addresses = list(new, "/status/addresses");
    for (index, address) in addresses.iter().enumerate() {
        if addresses[..index].contains(address) {
            errors.duplicate(&Path::new("status").field("addresses").index(index), address.clone());
        }
    }
    if let Some(port) = integer(new, "/status/daemonEndpoints/kubeletEndpoint/Port")
        && !(0..=65535).contains(&port)
    {
        let path = Path::new("status").field("daemonEndpoints").field("kubeletEndpoint").field("Port");
        errors.invalid(&path, port, "must be between 1 and 65535, inclusive");
    }
    errors.done()
}

/// Effects of taints and tolerations.
pub(super) const EFFECTS: &[&str] = &["NoSchedule", "PreferNoSchedule", "NoExecute"];

fn check_taints(object: &Value, errors: &mut Errors) {
    let taints = list(object, "/spec/taints");
    for (index, taint) in taints.iter().enumerate() {
        let path = Path::new("spec").field("taints").index(index);
        let (key, value, effect) = (text(taint, "/key"), text(taint, "/value"), text(taint, "/effect"));
        errors.format(&path.field("key"), key, names::qualified_name(key));
        errors.format(&path.field("value"), value, names::label_value(value));
        match effect {
            "" => errors.required(&path.field("effect"), ""),
            effect => errors.one_of(&path.field("effect"), effect, EFFECTS),
        }
        let twice = |other: &Value| text(other, "/key") == key && text(other, "/effect") == effect;
        if taints[..index].iter().any(twice) {
            errors.duplicate(&path, taint.clone());
        }
    }
}

fn check_resources(object: &Value, errors: &mut Errors) {
    for field in ["capacity", "allocatable"] {
        for (name, amount) in entries(object, &format!("/status/{field}")) {
            let path = Path::new("status").field(field).key(name);
            errors.format(&path, name, names::qualified_name(name));
            let text = amount.as_str().unwrap_or_default();
            if Quantity::parse(text).is_some_and(Quantity::is_negative) {
                errors.invalid(&path, text, "must be greater than or equal to 0");
            }
        }
    }
}

fn is_cidr(text: &str) -> bool {
    let Some((address, bits)) = text.split_once('/') else { return false };
    let bits: u8 = match bits.parse() {
        Ok(bits) if !bits_are_padded(bits, text) => bits,
        _ => return false,
    };
    match address.parse() {
        Ok(std::net::IpAddr::V4(_)) => bits <= 32,
        Ok(std::net::IpAddr::V6(_)) => bits <= 128,
        Err(_) => false,
    }
}

fn bits_are_padded(bits: u8, text: &str) -> bool {
    !text.ends_with(&format!("/{bits}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_node_is_tainted_until_it_is_ready() {
        let mut node = json!({"metadata": {"name": "n"}, "spec": {"taints": [{"key": "k", "effect": "NoSchedule"}]}});
        admit_create(&mut node);
        admit_create(&mut node);
        assert_eq!(list(&node, "/spec/taints"), [no_schedule("k"), no_schedule(NOT_READY)]);
        node["status"] = json!({"conditions": [{"type": "Ready", "status": "True"}]});
        assert_eq!(condition_taints(&node), Some(vec![no_schedule("k")]));
    }

    #[test]
    fn conditions_and_cordon_become_taints_and_go_with_them() {
        let mut node = json!({"spec": {"unschedulable": true}, "status": {"conditions": [
            {"type": "Ready", "status": "Unknown"}, {"type": "DiskPressure", "status": "True"}]}});
        let taints = condition_taints(&node).expect("taints change");
        let keys: Vec<_> = taints.iter().map(|t| text(t, "/key").to_owned()).collect();
        assert_eq!(keys, [UNREACHABLE, "node.kubernetes.io/disk-pressure", UNSCHEDULABLE]);
        node["spec"]["taints"] = json!(taints);
        assert_eq!(condition_taints(&node), None);
        node["spec"]["unschedulable"] = json!(false);
        node["status"] = json!({});
        assert_eq!(condition_taints(&node), Some(vec![]));
    }

    #[test]
    fn taints_are_checked() {
        let fields = |taints: Value| {
            validate(&json!({"spec": {"taints": taints}})).into_iter().map(|e| e.field).collect::<Vec<_>>()
        };
        assert_eq!(fields(json!([{"key": "a", "effect": "Later"}])), ["spec.taints[0].effect"]);
        assert_eq!(fields(json!([{"key": "a b", "value": "c d"}])).len(), 3);
        let twice = json!({"key": "a", "value": "1", "effect": "NoSchedule"});
        assert_eq!(fields(json!([twice, twice])), ["spec.taints[1]"]);
    }

    #[test]
    fn the_table_shows_roles_cordon_and_addresses() {
        let node = json!({
            "metadata": {"name": "n", "labels": {"node-role.kubernetes.io/edge": "", "kubernetes.io/role": "agent"}},
            "spec": {"unschedulable": true},
            "status": {"conditions": [{"type": "Ready", "status": "False"}],
                "addresses": [{"type": "InternalIP", "address": "10.0.0.9"}],
                "nodeInfo": {"kubeletVersion": "v1", "kernelVersion": "6", "architecture": "amd64"}},
        });
        let cells: Vec<_> = (KIND.cells)(&node, 0).iter().map(|c| c.as_str().unwrap_or_default().to_owned()).collect();
        assert_eq!(
            cells,
            [
                "n",
                "NotReady,SchedulingDisabled",
                "agent,edge",
                "<unknown>",
                "v1",
                "10.0.0.9",
                "<none>",
                "<unknown>",
                "6 (amd64)",
                "<unknown>"
            ]
        );
    }

    #[test]
    fn provider_and_pod_ranges_do_not_change_once_set() {
        let old = json!({"spec": {"podCIDRs": ["10.0.0.0/24"], "providerID": "a"}});
        assert!(validate_update(&old, &old).is_empty());
        assert_eq!(validate_update(&json!({"spec": {}}), &old).len(), 2);
        assert!(validate_update(&old, &json!({"spec": {}})).is_empty());
        assert!(is_cidr("2001:db8::/64") && !is_cidr("10.0.0.0/33") && !is_cidr("10.0.0.0/08") && !is_cidr("x"));
    }
}
