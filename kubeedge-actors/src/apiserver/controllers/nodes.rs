//! Nodes: the taints that follow from their conditions, and `Ready: Unknown` for one that is not heard of.
//!
//! A node is heard of when its lease is renewed or its status changes, by the time this server saw it: clocks of nodes
//! do not matter, and after a restart every node has its time again. A node that is unknown or not ready also gets the
//! `NoExecute` taint of that, with the time; what follows for its pods is decided in `evictions`.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};

use super::super::kinds::node::{NOT_READY, UNREACHABLE, condition_taints};
use super::super::object::{Key, Object, member, text};
use super::super::status::Status;
use super::super::storage::{Change, KindId};
use super::super::strategy::set_taints;
use super::super::{Api, clock};
use super::Again;

/// Seconds without a sign after which nothing is known of a node: what a node's lease lasts in Kubernetes.
const GRACE_SECONDS: i64 = 40;
/// How often it is looked, beside changes.
const PERIOD: Duration = Duration::from_secs(5);
/// Where nodes have their leases.
const LEASES: &str = "kube-node-lease";
/// Conditions that turn unknown with the node.
const REPORTED: [&str; 4] = ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"];

/// The last sign of one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Sign {
    /// Versions of the node and its lease.
    node: u64,
    lease: u64,
    /// When they were first seen like that.
    at: i64,
    /// Whether the node of this version was looked at.
    settled: bool,
}

/// What the monitor remembers: one entry a node.
#[derive(Debug, Default)]
pub(super) struct Monitor(Mutex<HashMap<String, Sign>>);

impl Monitor {
    /// Notes the present versions; gives the nodes to look at, and whether each is silent.
    fn observe(&self, nodes: &[Arc<Object>], lease: impl Fn(&str) -> u64, now: i64) -> Vec<(Arc<Object>, bool)> {
        let mut signs = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        signs.retain(|name, _| nodes.iter().any(|node| node.key.name == *name));
        let mut due = Vec::new();
        for node in nodes {
            let (version, lease) = (node.resource_version, lease(&node.key.name));
            let fresh = Sign { node: version, lease, at: now, settled: false };
            let sign = signs.entry(node.key.name.clone()).or_insert(fresh);
            if sign.node != version || sign.lease != lease {
                *sign = Sign { settled: sign.node == version && sign.settled, ..fresh };
            }
            let silent = now - sign.at > GRACE_SECONDS;
            if silent || !sign.settled {
                due.push((node.clone(), silent));
                sign.settled = true;
            }
        }
        due
    }

    /// Notes a version that this controller made itself: no sign of the node.
    fn wrote(&self, node: &Object) {
        let mut signs = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(sign) = signs.get_mut(&node.key.name) {
            sign.node = node.resource_version;
        }
    }
}

/// What a node becomes: unknown when it is silent, with the taints of its conditions. `None` when it is so already.
fn settle(node: &Value, silent: bool, now: i64) -> Option<Value> {
    let mut new = node.clone();
    if silent {
        let conditions = member(&mut new, "status").entry("conditions").or_insert_with(|| json!([]));
        let list = conditions.as_array_mut()?;
        for type_ in REPORTED {
            let reason = "NodeStatusUnknown";
            match list.iter_mut().find(|one| one["type"] == type_) {
                Some(known) if known["status"] == "Unknown" => {}
                Some(known) => {
                    known["status"] = "Unknown".into();
                    known["reason"] = reason.into();
                    known["message"] = "Kubelet stopped posting node status.".into();
                    known["lastTransitionTime"] = clock::rfc3339(now).into();
                }
                None => list.push(json!({
                    "type": type_, "status": "Unknown", "reason": "NodeStatusNeverUpdated",
                    "message": "Kubelet never posted node status.",
                    "lastHeartbeatTime": text(&node["metadata"], "creationTimestamp"),
                    "lastTransitionTime": clock::rfc3339(now),
                })),
            }
        }
    }
    // One that has not reported yet stays as admission made it.
    let reports = new["status"]["conditions"].as_array().is_some_and(|all| !all.is_empty());
    if reports {
        let taints = condition_taints(&new).or_else(|| new["spec"]["taints"].as_array().cloned());
        let taints = execution_taints(&new, taints.unwrap_or_default(), now);
        set_taints(&mut new, taints);
    }
    (new != *node).then_some(new)
}

/// `taints` with the one `NoExecute` taint that follows from `Ready`, and no other of this kind. One that is there
/// already keeps its time.
fn execution_taints(node: &Value, mut taints: Vec<Value>, now: i64) -> Vec<Value> {
    let conditions = node["status"]["conditions"].as_array();
    let ready = conditions.into_iter().flatten().find(|one| one["type"] == "Ready");
    let wanted = match ready.map(|ready| text(ready, "status")) {
        Some("False") => Some(NOT_READY),
        Some("Unknown") => Some(UNREACHABLE),
        _ => None,
    };
    let ours = |taint: &Value| taint["effect"] == "NoExecute" && [NOT_READY, UNREACHABLE].contains(&text(taint, "key"));
    taints.retain(|taint| !ours(taint) || wanted == Some(text(taint, "key")));
    if let Some(key) = wanted
        && !taints.iter().any(ours)
    {
        taints.push(json!({"key": key, "effect": "NoExecute", "timeAdded": clock::rfc3339(now)}));
    }
    taints
}

/// Looks at the nodes that changed and at those that are silent.
pub(super) async fn reconcile(api: &Arc<Api>, monitor: &Monitor) -> Result<Again, Status> {
    let Some(id) = api.storage.core("nodes") else { return Ok(Again::OnChange) };
    let leases = api.storage.find("coordination.k8s.io", "v1", "leases");
    let lease = |name: &str| {
        let found = leases.and_then(|leases| api.storage.get(leases, &Key::new(LEASES, name)));
        found.map(|lease| lease.resource_version).unwrap_or_default()
    };
    let due = monitor.observe(&api.storage.list(id, None).1, lease, api.now());
    for (node, silent) in due {
        write(api, id, monitor, &node, silent).await?;
    }
    Ok(Again::After(PERIOD))
}

async fn write(api: &Arc<Api>, id: KindId, monitor: &Monitor, node: &Object, silent: bool) -> Result<(), Status> {
    let kind = api.storage.kind(id);
    if settle(&node.value(kind), silent, api.now()).is_none() {
        return Ok(());
    }
    let writer = api.storage.write().await;
    let Some(present) = writer.get(id, &node.key) else { return Ok(()) };
    // A silent node that has just spoken is left for the next look.
    let silent = silent && present.resource_version == node.resource_version;
    if let Some(value) = settle(&present.value(kind), silent, api.now()) {
        for written in writer.commit(vec![Change::Put(id, value)]).await? {
            monitor.wrote(&written);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::super::kinds;
    use super::*;

    fn node(version: u64) -> Arc<Object> {
        let kind = kinds::find("", "v1", "nodes").unwrap();
        let value = json!({"metadata": {"name": "edge", "resourceVersion": version.to_string()}});
        Arc::new(Object::new(kind, &value))
    }

    #[test]
    fn a_node_is_silent_when_neither_it_nor_its_lease_changes() {
        let monitor = Monitor::default();
        let look = |node: &Arc<Object>, lease, now| {
            let due = monitor.observe(std::slice::from_ref(node), |_| lease, now);
            due.first().map(|(_, silent)| *silent)
        };
        let one = node(1);
        assert_eq!(look(&one, 5, 0), Some(false), "a new node is looked at");
        assert_eq!(look(&one, 5, 40), None);
        assert_eq!(look(&one, 6, 45), None, "a renewed lease is a sign");
        assert_eq!(look(&one, 6, 85), None);
        assert_eq!(look(&one, 6, 86), Some(true));
        let two = node(2);
        monitor.wrote(&two);
        assert_eq!(look(&two, 6, 87), Some(true), "what was written here is no sign");
        assert_eq!(look(&node(3), 6, 88), Some(false), "a new status is one");
    }

    #[test]
    fn a_silent_node_is_unknown_and_tainted_and_stays_so_without_writing_again() {
        let ready = json!({
            "metadata": {"name": "edge"}, "spec": {},
            "status": {"conditions": [{"type": "Ready", "status": "True"}]},
        });
        assert_eq!(settle(&ready, false, 0), None);
        let unknown = settle(&ready, true, 0).unwrap();
        assert_eq!(unknown["status"]["conditions"][0]["status"], "Unknown");
        assert_eq!(unknown["status"]["conditions"][0]["reason"], "NodeStatusUnknown");
        let taints = |effects: [(&str, &str); 2]| {
            let [schedule, execute] = effects;
            json!([
                {"key": schedule.0, "effect": schedule.1},
                {"key": execute.0, "effect": execute.1, "timeAdded": "1970-01-01T00:00:00Z"},
            ])
        };
        assert_eq!(unknown["spec"]["taints"], taints([(UNREACHABLE, "NoSchedule"), (UNREACHABLE, "NoExecute")]));
        assert_eq!(settle(&unknown, true, 9), None, "the taint keeps its time");
        let mut sick = unknown.clone();
        sick["status"]["conditions"][0]["status"] = "False".into();
        let sick = settle(&sick, false, 0).unwrap();
        assert_eq!(sick["spec"]["taints"], taints([(NOT_READY, "NoSchedule"), (NOT_READY, "NoExecute")]));
        let mut back = unknown;
        back["status"]["conditions"][0]["status"] = "True".into();
        assert_eq!(settle(&back, false, 0).unwrap()["spec"].get("taints"), None);
    }
}
