//! Which nodes a DaemonSet's pods run on, and how its pods are made for one of them.

use serde_json::{Value, json};

use super::super::super::binder::{Candidate, selected, toleration};
use crate::apiserver::kinds::fields::{flag, list, text};
use crate::apiserver::object::member;

/// Taints that a DaemonSet's pods live with: key and effect. Those of Kubernetes.
const TOLERATED: [(&str, &str); 6] = [
    ("node.kubernetes.io/not-ready", "NoExecute"),
    ("node.kubernetes.io/unreachable", "NoExecute"),
    ("node.kubernetes.io/disk-pressure", "NoSchedule"),
    ("node.kubernetes.io/memory-pressure", "NoSchedule"),
    ("node.kubernetes.io/pid-pressure", "NoSchedule"),
    ("node.kubernetes.io/unschedulable", "NoSchedule"),
];
/// And those that use the network of their node.
const NETWORK: (&str, &str) = ("node.kubernetes.io/network-unavailable", "NoSchedule");

/// What a DaemonSet wants of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    /// A pod.
    Run,
    /// No new pod; one that is there may stay.
    Stay,
    /// None.
    Leave,
}

/// The spec of a DaemonSet's pods, with what they tolerate.
pub(super) fn spec(set: &Value) -> Value {
    let mut spec = set["spec"]["template"]["spec"].clone();
    let host_network = flag(&spec, "/hostNetwork").then_some(NETWORK);
    let mut tolerations = list(&spec, "/tolerations").to_vec();
    for (key, effect) in TOLERATED.into_iter().chain(host_network) {
        let added = json!({"key": key, "operator": "Exists", "effect": effect});
        if !tolerations.contains(&added) {
            tolerations.push(added);
        }
    }
    spec["tolerations"] = tolerations.into();
    spec
}

/// What is wanted of `node` for pods of this `spec`.
pub(super) fn wanted(spec: &Value, node: &Value) -> Wanted {
    let named = text(spec, "/nodeName");
    if !named.is_empty() && named != text(node, "/metadata/name") {
        return Wanted::Leave;
    }
    if !selected(spec, &Candidate::new(node, &[])) {
        return Wanted::Leave;
    }
    let taints = list(node, "/spec/taints").iter().filter(|taint| toleration(spec, taint).is_none());
    let effects: Vec<&str> = taints.map(|taint| text(taint, "/effect")).collect();
    match (effects.contains(&"NoExecute"), effects.contains(&"NoSchedule")) {
        (true, _) => Wanted::Leave,
        (false, true) => Wanted::Stay,
        (false, false) => Wanted::Run,
    }
}

/// Makes a pod one for `node`: the scheduler has no other choice.
pub(super) fn place(pod: &mut Value, node: &str) {
    let affinity = member(&mut pod["spec"], "affinity").entry("nodeAffinity").or_insert_with(|| json!({}));
    affinity["requiredDuringSchedulingIgnoredDuringExecution"] = json!({"nodeSelectorTerms": [
        {"matchFields": [{"key": "metadata.name", "operator": "In", "values": [node]}]},
    ]});
}

/// The node that a pod is on, or was made for.
pub(super) fn node_of(pod: &Value) -> &str {
    let term = "/spec/affinity/nodeAffinity/requiredDuringSchedulingIgnoredDuringExecution/nodeSelectorTerms/0";
    match text(pod, "/spec/nodeName") {
        "" => text(pod, &format!("{term}/matchFields/0/values/0")),
        name => name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(labels: Value, taints: Value) -> Value {
        json!({"metadata": {"name": "edge", "labels": labels}, "spec": {"taints": taints}})
    }

    fn look(spec_: Value, node: &Value) -> Wanted {
        wanted(&spec(&json!({"spec": {"template": {"spec": spec_}}})), node)
    }

    #[test]
    fn selectors_affinity_and_taints_say_which_nodes() {
        let plain = node(json!({"hall": "3"}), json!([]));
        assert_eq!(look(json!({}), &plain), Wanted::Run);
        assert_eq!(look(json!({"nodeSelector": {"hall": "3"}}), &plain), Wanted::Run);
        assert_eq!(look(json!({"nodeSelector": {"hall": "4"}}), &plain), Wanted::Leave);
        assert_eq!(look(json!({"nodeName": "other"}), &plain), Wanted::Leave);
        let affinity = json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution":
            {"nodeSelectorTerms": [{"matchExpressions": [{"key": "hall", "operator": "NotIn", "values": ["3"]}]}]}}}});
        assert_eq!(look(affinity, &plain), Wanted::Leave);
        let taint = |effect: &str| node(json!({}), json!([{"key": "wet", "value": "y", "effect": effect}]));
        assert_eq!(look(json!({}), &taint("NoSchedule")), Wanted::Stay);
        assert_eq!(look(json!({}), &taint("NoExecute")), Wanted::Leave);
        assert_eq!(look(json!({}), &taint("PreferNoSchedule")), Wanted::Run);
        let anything = json!({"tolerations": [{"operator": "Exists"}]});
        assert_eq!(look(anything, &taint("NoExecute")), Wanted::Run);
    }

    #[test]
    fn a_node_that_is_cordoned_or_out_of_reach_keeps_its_pods() {
        for (key, effect) in TOLERATED {
            let tainted = node(json!({}), json!([{"key": key, "effect": effect}]));
            assert_eq!(look(json!({}), &tainted), Wanted::Run, "{key}");
        }
        let tainted = node(json!({}), json!([{"key": NETWORK.0, "effect": NETWORK.1}]));
        assert_eq!(look(json!({}), &tainted), Wanted::Stay);
        assert_eq!(look(json!({"hostNetwork": true}), &tainted), Wanted::Run);
    }

    #[test]
    fn a_placed_pod_is_of_its_node_before_it_is_bound() {
        let mut pod = json!({"spec": {"affinity": {"podAffinity": {}}}});
        place(&mut pod, "edge");
        assert_eq!(node_of(&pod), "edge");
        assert_eq!(pod["spec"]["affinity"]["podAffinity"], json!({}));
        assert_eq!(wanted(&pod["spec"], &node(json!({}), json!([]))), Wanted::Run);
    }
}
