//! What is told of the node's conditions, by kubelet's reasons. Pure.

use k8s_openapi::api::core::v1::{Node, NodeCondition};

use crate::edged::events::Reason;

/// The conditions that are told, each with its reason when it is true and when it is not.
const TOLD: [(&str, Reason, Reason); 4] = [
    ("MemoryPressure", Reason::NodeHasInsufficientMemory, Reason::NodeHasSufficientMemory),
    ("DiskPressure", Reason::NodeHasDiskPressure, Reason::NodeHasNoDiskPressure),
    ("PIDPressure", Reason::NodeHasInsufficientPid, Reason::NodeHasSufficientPid),
    ("Ready", Reason::NodeReady, Reason::NodeNotReady),
];

/// What has changed from the conditions that were told last to those of now. Without the former all is news, as it is to a
/// kubelet that starts.
pub fn changes(last: &[NodeCondition], now: &[NodeCondition]) -> Vec<Reason> {
    let status = |conditions: &[NodeCondition], type_: &str| {
        conditions.iter().find(|condition| condition.type_ == type_).map(|condition| condition.status.clone())
    };
    let changed = TOLD.into_iter().filter_map(|(type_, is, is_not)| {
        let new = status(now, type_)?;
        let reason = match new.as_str() {
            "True" => is,
            "False" => is_not,
            _ => return None,
        };
        (status(last, type_) != Some(new)).then_some(reason)
    });
    changed.collect()
}

/// A kubelet's message for it.
pub fn message(node: &str, reason: &Reason) -> String {
    format!("Node {node} status is now: {}", reason.as_str())
}

/// Whether the machine was started anew since this Node was last brought up to date. Of a new Node that is not known.
pub fn is_rebooted(node: &Node, boot_id: &str) -> bool {
    let info = node.status.as_ref().and_then(|status| status.node_info.as_ref());
    info.is_some_and(|info| !info.boot_id.is_empty() && info.boot_id != boot_id)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn conditions(statuses: &[(&str, &str)]) -> Vec<NodeCondition> {
        let one = |(type_, status): &(&str, &str)| NodeCondition {
            type_: (*type_).to_owned(),
            status: (*status).to_owned(),
            ..NodeCondition::default()
        };
        statuses.iter().map(one).collect()
    }

    fn names(last: &[(&str, &str)], now: &[(&str, &str)]) -> Vec<String> {
        changes(&conditions(last), &conditions(now)).iter().map(|reason| reason.as_str().to_owned()).collect()
    }

    #[test]
    fn a_start_tells_all_and_then_each_change_once() {
        let well =
            [("MemoryPressure", "False"), ("DiskPressure", "False"), ("PIDPressure", "False"), ("Ready", "True")];
        let all = ["NodeHasSufficientMemory", "NodeHasNoDiskPressure", "NodeHasSufficientPID", "NodeReady"];
        assert_eq!(names(&[], &well), all);
        assert_eq!(names(&well, &well), [""; 0]);
        let ill = [("MemoryPressure", "True"), ("DiskPressure", "True"), ("PIDPressure", "True"), ("Ready", "False")];
        let none = ["NodeHasInsufficientMemory", "NodeHasDiskPressure", "NodeHasInsufficientPID", "NodeNotReady"];
        assert_eq!(names(&well, &ill), none);
        assert_eq!(names(&ill, &well), all);
        let away = [well[0], well[1], well[2], ("Ready", "False")];
        assert_eq!(names(&well, &away), ["NodeNotReady"]);
        assert_eq!(names(&away, &well), ["NodeReady"]);
        // Those of others, and what is not known, are nobody's news.
        assert_eq!(names(&[], &[("NetworkUnavailable", "False"), ("Ready", "Unknown")]), [""; 0]);
        assert_eq!(message("edge-1", &Reason::NodeReady), "Node edge-1 status is now: NodeReady");
    }

    #[test]
    fn a_reboot_is_seen_by_the_boot_id_of_a_node_that_is_there() {
        let node = |status: serde_json::Value| serde_json::from_value::<Node>(json!({"status": status})).unwrap();
        let info = |id: &str| {
            json!({"nodeInfo": {"bootID": id, "architecture": "", "containerRuntimeVersion": "", "kernelVersion": "",
                "kubeProxyVersion": "", "kubeletVersion": "", "machineID": "", "operatingSystem": "", "osImage": "",
                "systemUUID": ""}})
        };
        assert!(is_rebooted(&node(info("before")), "now"));
        assert!(!is_rebooted(&node(info("now")), "now"));
        assert!(!is_rebooted(&node(info("")), "now"), "a Node that was only just registered");
        assert!(!is_rebooted(&node(json!({})), "now") && !is_rebooted(&Node::default(), "now"));
    }

    proptest! {
        #[test]
        fn what_is_told_one_after_the_other_is_what_became_of_it(history in prop::collection::vec(
            prop::array::uniform4(any::<bool>()), 1..20,
        )) {
            let (mut last, mut heard) = (Vec::new(), std::collections::BTreeMap::new());
            for states in history {
                let now: Vec<(&str, &str)> = TOLD
                    .iter()
                    .zip(states)
                    .map(|((type_, ..), is)| (*type_, if is { "True" } else { "False" }))
                    .collect();
                let now = conditions(&now);
                for reason in changes(&last, &now) {
                    let (type_, is, _) =
                        TOLD.into_iter().find(|(_, is, is_not)| [is, is_not].contains(&&reason)).unwrap();
                    prop_assert!(heard.insert(type_, is == reason) != Some(is == reason), "told twice");
                }
                for ((type_, ..), is) in TOLD.iter().zip(states) {
                    prop_assert_eq!(heard.get(type_), Some(&is));
                }
                last = now;
            }
        }
    }
}
