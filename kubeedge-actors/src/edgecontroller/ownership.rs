//! What of a status and of a Node belongs to the node that reports it. Pure.
//!
//! The cloud writes only these fields, so that a node's report never overwrites what others own: readiness gates, the
//! eviction API's `DisruptionTarget`, routes' `NetworkUnavailable`, attached volumes, users' labels and taints.

use serde_json::{Map, Value, json};

/// Fields of a pod's status that a kubelet owns. `conditions` is merged by type, see [`POD_CONDITIONS`].
const POD_FIELDS: &[&str] = &[
    "phase",
    "message",
    "reason",
    "hostIP",
    "hostIPs",
    "podIP",
    "podIPs",
    "startTime",
    "initContainerStatuses",
    "containerStatuses",
    "ephemeralContainerStatuses",
    "qosClass",
    "resize",
    "observedGeneration",
];

/// Pod conditions that a kubelet owns. `PodScheduled` too: of a pod that came to its node without a scheduler nobody else
/// says it.
const POD_CONDITIONS: &[&str] = &[
    "PodScheduled",
    "PodReadyToStartContainers",
    "Initialized",
    "ContainersReady",
    "Ready",
    "PodResizePending",
    "PodResizeInProgress",
    HELD,
];

/// Those of them that go away again: of a pod whose containers have resources.
const RESIZED: &[&str] = &["PodResizePending", "PodResizeInProgress"];
/// And of any pod, once it is released.
const HELD: &str = "HeldUpgrade";

/// Fields of a node's status that a kubelet owns.
const NODE_FIELDS: &[&str] = &["capacity", "allocatable", "addresses", "daemonEndpoints", "nodeInfo", "images"];

/// Node conditions that a kubelet owns.
const NODE_CONDITIONS: &[&str] = &["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"];

/// Label domains a node may set on itself, besides labels outside `kubernetes.io` and `k8s.io`.
const NODE_LABELS: &[&str] = &[
    "kubernetes.io/hostname",
    "kubernetes.io/os",
    "kubernetes.io/arch",
    "beta.kubernetes.io/os",
    "beta.kubernetes.io/arch",
    "node.kubernetes.io/instance-type",
    "node-role.kubernetes.io/edge",
    "node-role.kubernetes.io/agent",
    "topology.kubernetes.io/region",
    "topology.kubernetes.io/zone",
];

/// Which object a status belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// A pod's status.
    Pod,
    /// A node's status.
    Node,
}

/// The strategic merge patch that writes what a node owns of `reported` and nothing else.
///
/// `uid` makes the API server refuse the patch (409) when the object is another one by now.
pub fn status_patch(owner: Owner, uid: &str, reported: &Value) -> Value {
    let reported = &without_directives(reported);
    let (fields, conditions) = match owner {
        Owner::Pod => (POD_FIELDS, POD_CONDITIONS),
        Owner::Node => (NODE_FIELDS, NODE_CONDITIONS),
    };
    let mut status = Map::new();
    for field in fields {
        match reported.get(*field) {
            Some(value) => {
                status.insert((*field).into(), replaced(field, value));
            }
            // A pod's reason and message go away again; a node's capacity does not.
            None if owner == Owner::Pod && matches!(*field, "message" | "reason") => {
                status.insert((*field).into(), Value::Null);
            }
            None => {}
        }
    }
    let mut own: Vec<Value> = reported
        .get("conditions")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter(|condition| {
            let text = |field| condition.get(field).and_then(Value::as_str).unwrap_or_default();
            // A kubelet says itself that it takes a pod's place away; every other disruption is somebody else's to tell.
            let own_disruption =
                owner == Owner::Pod && (text("type"), text("reason")) == ("DisruptionTarget", "TerminationByKubelet");
            conditions.contains(&text("type")) || own_disruption
        })
        .map(with_explanation)
        .collect();
    // Only what has resources can have been resized. A status without conditions says nothing of them.
    if owner == Owner::Pod && !own.is_empty() {
        let resized = RESIZED.iter().copied().filter(|_| has_resources(reported));
        let said = |own: &[Value], type_: &str| own.iter().any(|condition| condition["type"] == type_);
        let over: Vec<&str> = resized.chain([HELD]).filter(|type_| !said(&own, type_)).collect();
        own.extend(over.into_iter().map(|type_| json!({"type": type_, "$patch": "delete"})));
    }
    if !own.is_empty() {
        status.insert("conditions".into(), own.into());
    }
    let mut metadata = Map::new();
    if !uid.is_empty() {
        metadata.insert("uid".into(), uid.into());
    }
    json!({"metadata": metadata, "status": status})
}

/// A condition that says why, or that nothing is to be said any more: what it does not say would stay in the API as it was.
fn with_explanation(condition: &Value) -> Value {
    let mut condition = condition.clone();
    if let Some(fields) = condition.as_object_mut() {
        for field in ["reason", "message"] {
            fields.entry(field).or_insert(Value::Null);
        }
    }
    condition
}

/// Whether a container of a pod has resources, by its status.
fn has_resources(reported: &Value) -> bool {
    let lists = ["containerStatuses", "initContainerStatuses"];
    let statuses = lists.iter().filter_map(|list| reported.get(*list)?.as_array()).flatten();
    statuses.into_iter().any(|status| status.get("resources").is_some())
}

/// Without `$patch` and its like: in a condition it could replace the whole list, others' conditions included.
fn without_directives(value: &Value) -> Value {
    match value {
        Value::Object(fields) => fields
            .iter()
            .filter(|(name, _)| !name.starts_with('$'))
            .map(|(name, value)| (name.clone(), without_directives(value)))
            .collect::<Map<_, _>>()
            .into(),
        Value::Array(items) => items.iter().map(without_directives).collect(),
        other => other.clone(),
    }
}

/// Lists that a strategic patch would merge by key are replaced whole: an address that is gone must go.
fn replaced(field: &str, value: &Value) -> Value {
    if !matches!(field, "podIPs" | "hostIPs" | "addresses") {
        return value.clone();
    }
    let mut list = value.as_array().cloned().unwrap_or_default();
    list.push(json!({"$patch": "replace"}));
    list.into()
}

/// An event's name may begin with a cut name of its object when so much of it is there.
const LONG_STEM: usize = 200;

/// Whether a node may tell this event: about itself, or about a pod that is not bound to another node, under a name that
/// begins with the object's, so that it cannot change somebody else's event. The error says what is wrong.
///
/// `node_of` gives the node a pod (namespace, name) is bound to; `None` when there is no such pod any more.
pub fn may_tell(node: &str, event: &Value, node_of: impl Fn(&str, &str) -> Option<String>) -> Result<(), String> {
    let text = |pointer| event.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    let (kind, name) = (text("/involvedObject/kind"), text("/involvedObject/name"));
    // A pod's name may be too long to stand whole in front of the dot and what follows.
    let own_name = text("/metadata/name")
        .rsplit_once('.')
        .is_some_and(|(stem, _)| stem == name || (stem.len() >= LONG_STEM && name.starts_with(stem)));
    if name.is_empty() || !own_name {
        return Err("an event's name begins with that of its involvedObject and a dot".to_owned());
    }
    match kind {
        "Node" if name == node => Ok(()),
        "Pod" => {
            let namespace = text("/involvedObject/namespace");
            if namespace != text("/metadata/namespace") {
                return Err("an event about a pod is in the pod's namespace".to_owned());
            }
            match node_of(namespace, name) {
                Some(other) if other != node => Err(format!("pod {namespace}/{name} is not bound to node {node}")),
                // Gone: what happened to it at last may still be told.
                _ => Ok(()),
            }
        }
        _ => Err(format!("node {node} tells events about itself and its pods, not about {kind} {name}")),
    }
}

/// What a node may say of itself when it registers.
#[derive(Clone, Debug, PartialEq)]
pub struct Registration {
    /// The Node to create.
    pub node: Value,
    /// The merge patch for a Node that is there already: labels and annotations, never taints.
    pub patch: Value,
    /// Labels that a node may not set on itself; left out.
    pub refused_labels: Vec<String>,
}

/// Keeps of a self-made Node what the node may say of itself.
pub fn registration(name: &str, reported: &Value) -> Registration {
    let mut refused_labels = Vec::new();
    let mut labels = Map::new();
    for (label, value) in reported.pointer("/metadata/labels").and_then(Value::as_object).into_iter().flatten() {
        if may_label(label) && value.is_string() {
            labels.insert(label.clone(), value.clone());
        } else {
            refused_labels.push(label.clone());
        }
    }
    let annotations = reported.pointer("/metadata/annotations").cloned().unwrap_or_else(|| json!({}));
    let mut spec = Map::new();
    for field in ["taints", "unschedulable"] {
        if let Some(value) = reported.pointer(&format!("/spec/{field}")) {
            spec.insert(field.into(), value.clone());
        }
    }
    Registration {
        node: json!({
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": name, "labels": labels, "annotations": annotations},
            "spec": spec,
        }),
        patch: json!({"metadata": {"labels": labels, "annotations": annotations}}),
        refused_labels,
    }
}

fn may_label(label: &str) -> bool {
    if NODE_LABELS.contains(&label) {
        return true;
    }
    let domain = label.split_once('/').map_or("", |(domain, _)| domain);
    let under = |parent: &str| domain == parent || domain.ends_with(&format!(".{parent}"));
    domain == "kubelet.kubernetes.io"
        || domain.ends_with(".kubelet.kubernetes.io")
        || domain == "node.kubernetes.io"
        || !(under("kubernetes.io") || under("k8s.io"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unexplained(type_: &str) -> Value {
        json!({"type": type_, "status": "True", "reason": null, "message": null})
    }

    #[test]
    fn what_is_not_said_of_a_condition_any_more_goes() {
        let why = json!({"type": "Ready", "status": "False", "reason": "ContainersNotReady", "message": "[a]"});
        for (reported, written) in
            [(why.clone(), why), (json!({"type": "Ready", "status": "True"}), unexplained("Ready"))]
        {
            for owner in [Owner::Pod, Owner::Node] {
                let patch = status_patch(owner, "u", &json!({"conditions": [reported]}));
                assert_eq!(patch["status"]["conditions"][0], written);
            }
        }
    }

    #[test]
    fn what_others_own_of_a_pod_stays_out_of_the_patch() {
        let reported = json!({
            "phase": "Running",
            "nominatedNodeName": "x",
            "conditions": [{"type": "Ready", "status": "True"}, {"type": "DisruptionTarget", "status": "False"},
                           {"type": "example.com/gate", "status": "True"}],
            "podIPs": [{"ip": "10.0.0.2"}],
        });
        assert_eq!(
            status_patch(Owner::Pod, "u1", &reported),
            json!({
                "metadata": {"uid": "u1"},
                "status": {
                    "phase": "Running", "message": null, "reason": null,
                    "conditions": [unexplained("Ready"), {"type": "HeldUpgrade", "$patch": "delete"}],
                    "podIPs": [{"ip": "10.0.0.2"}, {"$patch": "replace"}],
                },
            })
        );
    }

    #[test]
    fn a_resize_that_is_over_takes_its_conditions_with_it() {
        let resized = json!([{"name": "a", "resources": {"requests": {"cpu": "1"}}}]);
        let under_way = json!({"type": "PodResizeInProgress", "status": "True"});
        let reported = json!({"containerStatuses": resized, "conditions": [under_way]});
        let conditions = status_patch(Owner::Pod, "u", &reported)["status"]["conditions"].clone();
        let over = ["PodResizePending", "HeldUpgrade"].map(|type_| json!({"type": type_, "$patch": "delete"}));
        assert_eq!(conditions, json!([unexplained("PodResizeInProgress"), over[0], over[1]]));
        let without = json!({"containerStatuses": [{"name": "a"}], "conditions": []});
        assert_eq!(status_patch(Owner::Pod, "u", &without)["status"].get("conditions"), None);
    }

    #[test]
    fn a_pod_that_is_released_is_not_held_any_more() {
        let of = |type_: &str| {
            let reported = json!({"phase": "Pending", "conditions": [{"type": type_, "status": "True"}]});
            status_patch(Owner::Pod, "u", &reported)["status"]["conditions"].clone()
        };
        assert_eq!(of("HeldUpgrade"), json!([unexplained("HeldUpgrade")]));
        let released = json!([unexplained("PodScheduled"), {"type": "HeldUpgrade", "$patch": "delete"}]);
        assert_eq!(of("PodScheduled"), released);
    }

    #[test]
    fn a_report_gives_the_api_server_no_orders() {
        let reported = json!({
            "$retainKeys": ["phase"],
            "conditions": [{"type": "Ready", "status": "True", "$patch": "replace"}],
            "containerStatuses": [{"name": "a", "state": {"$patch": "delete", "running": {}}}],
        });
        let status = &status_patch(Owner::Pod, "u", &reported)["status"];
        let own = json!([unexplained("Ready"), {"type": "HeldUpgrade", "$patch": "delete"}]);
        assert_eq!(status["conditions"], own);
        assert_eq!(status["containerStatuses"], json!([{"name": "a", "state": {"running": {}}}]));
    }

    #[test]
    fn a_node_keeps_its_hands_off_foreign_conditions_and_volumes() {
        let reported = json!({
            "capacity": {"cpu": "2"}, "volumesAttached": [],
            "conditions": [{"type": "Ready", "status": "True"}, {"type": "NetworkUnavailable", "status": "False"}],
        });
        assert_eq!(
            status_patch(Owner::Node, "u", &reported)["status"],
            json!({"capacity": {"cpu": "2"}, "conditions": [unexplained("Ready")]})
        );
    }

    #[test]
    fn a_node_tells_events_only_about_itself_and_its_pods() {
        let event = |name: &str, kind: &str, object: &str, namespace: &str| {
            json!({"metadata": {"name": name, "namespace": "ns"},
                   "involvedObject": {"kind": kind, "name": object, "namespace": namespace}})
        };
        let bound = |_: &str, pod: &str| match pod {
            "mine" => Some("e1".to_owned()),
            "theirs" => Some("e2".to_owned()),
            _ => None,
        };
        let may = |event: &Value| may_tell("e1", event, bound).is_ok();
        assert!(may(&event("mine.17a", "Pod", "mine", "ns")));
        assert!(may(&event("gone.17a", "Pod", "gone", "ns")));
        assert!(may(&event("e1.17a", "Node", "e1", "")));
        let long = "p".repeat(250);
        assert!(may(&event(&format!("{}.17a", &long[..230]), "Pod", &long, "ns")));
        for refused in [
            event("theirs.17a", "Pod", "theirs", "ns"),
            event("theirs.17a", "Pod", "mine", "ns"),
            event("mine.17a", "Pod", "mine", "other"),
            event("e2.17a", "Node", "e2", ""),
            event("x.17a", "Secret", "x", "ns"),
            json!({"metadata": {"name": ".17a"}, "involvedObject": {"kind": "Pod"}}),
            json!([]),
        ] {
            assert!(!may(&refused), "{refused}");
        }
    }

    #[test]
    fn a_node_labels_itself_only_where_it_may() {
        let made = registration(
            "e1",
            &json!({
                "metadata": {"name": "other", "labels": {
                    "kubernetes.io/hostname": "e1", "site": "a", "example.com/x": "y",
                    "node-role.kubernetes.io/edge": "", "node-role.kubernetes.io/control-plane": "",
                    "node-restriction.kubernetes.io/a": "b", "x.k8s.io/y": "z", "bad": 1}},
                "spec": {"taints": [{"key": "a", "effect": "NoSchedule"}], "podCIDR": "10.0.0.0/8"},
            }),
        );
        assert_eq!(made.node["metadata"]["name"], "e1");
        assert_eq!(
            made.refused_labels,
            ["bad", "node-restriction.kubernetes.io/a", "node-role.kubernetes.io/control-plane", "x.k8s.io/y"]
        );
        assert_eq!(made.node["spec"], json!({"taints": [{"key": "a", "effect": "NoSchedule"}]}));
        assert!(made.patch.pointer("/spec").is_none(), "taints of a node that exists are its operator's");
    }
}
