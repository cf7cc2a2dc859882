//! What a few kinds do differently when they are created, changed or deleted.

use serde_json::Value;

use super::kind::Kind;
use super::kinds::{endpointslice, node, service};
use super::object::{member, metadata, text};

/// Whether a PUT of a name that is not there creates it.
pub(crate) fn creates_on_update(kind: &Kind) -> bool {
    matches!(kind.plural, "leases" | "events" | "services" | "endpoints")
}

/// Whether a PUT may leave out the resourceVersion.
pub(crate) fn updates_unconditionally(kind: &Kind) -> bool {
    kind.plural != "leases"
}

/// Whether deleting answers with the object that was deleted instead of a `Status`.
pub(crate) fn returns_deleted(kind: &Kind) -> bool {
    matches!(kind.plural, "pods" | "serviceaccounts" | "services" | "namespaces")
}

/// Takes from a new object what a client does not set: the status of pods, namespaces, Services, volumes and their claims,
/// definitions and custom resources. A node brings its own.
pub(crate) fn prepare_create(kind: &Kind, object: &mut Value) {
    let own = kind.group.is_empty()
        && !matches!(kind.plural, "pods" | "namespaces" | "services" | "persistentvolumes" | "persistentvolumeclaims");
    if !own
        && kind.status_subresource
        && let Value::Object(map) = object
    {
        map.remove("status");
    }
}

/// Keeps what a change of the main resource may not touch, beside `status`.
pub(crate) fn prepare_update(kind: &Kind, new: &mut Value, old: &Value) {
    if kind.group.is_empty() && kind.plural == "namespaces" {
        member(new, "spec").insert("finalizers".into(), old["spec"]["finalizers"].clone());
    }
    if kind.group.is_empty() && kind.plural == "services" {
        service::inherit(new, old);
    }
    if kind.plural == "endpointslices" && endpointslice::says_something_else(new, old) {
        let generation = old["metadata"]["generation"].as_i64().unwrap_or(0) + 1;
        metadata(new).insert("generation".into(), generation.into());
    }
}

/// What follows from a new status at once: a node's taints follow its conditions, so that no one sees a ready node that
/// is still marked as not ready.
pub(crate) fn prepare_status(kind: &Kind, new: &mut Value) {
    if kind.group.is_empty()
        && kind.plural == "nodes"
        && let Some(taints) = node::condition_taints(new)
    {
        set_taints(new, taints);
    }
}

/// Sets a node's taints, none being no list.
pub(crate) fn set_taints(node: &mut Value, taints: Vec<Value>) {
    let spec = member(node, "spec");
    if taints.is_empty() {
        spec.remove("taints");
    } else {
        spec.insert("taints".into(), Value::Array(taints));
    }
}

/// Seconds that a pod gets to end; `None` for a kind that goes at once.
pub(crate) fn grace_seconds(kind: &Kind, object: &Value, asked: Option<i64>) -> Option<i64> {
    if !kind.group.is_empty() || kind.plural != "pods" {
        return None;
    }
    let finished = matches!(text(&object["status"], "phase"), "Succeeded" | "Failed");
    if text(&object["spec"], "nodeName").is_empty() || finished {
        return Some(0);
    }
    let own = object["spec"]["terminationGracePeriodSeconds"].as_i64().unwrap_or(30);
    let seconds = asked.unwrap_or(own);
    Some(if seconds < 0 { 1 } else { seconds })
}
