//! Nodes: the taints that follow from their conditions, and `Ready: Unknown` for one that is not heard of.
//!
//! A node is heard of when its lease is renewed or its status changes, by the time this server saw it: clocks of nodes
//! do not matter, and after a restart every node has its time again. A node that is unknown or not ready also gets the
//! `NoExecute` taint of that, with the time, as soon as `zones` lets it; what follows for its pods is decided in
//! `evictions`.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};

use super::super::kind::Kind;
use super::super::kinds::node::{NOT_READY, UNREACHABLE, condition_taints};
use super::super::object::{Key, Object, member, text};
use super::super::status::Status;
use super::super::storage::{Change, KindId};
use super::super::strategy::set_taints;
use super::super::{Api, clock};
use super::Again;

mod zones;

use zones::Brake;

/// Seconds without a sign after which nothing is known of a node: `--node-monitor-grace-period` of
/// kube-controller-manager since 1.32.
const GRACE_SECONDS: i64 = 50;
/// How often it is looked, beside changes.
const PERIOD: Duration = Duration::from_secs(5);
/// Where nodes have their leases.
const LEASES: &str = "kube-node-lease";
/// Conditions that turn unknown with the node.
const REPORTED: [&str; 4] = ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"];

/// The labels that name a node's zone.
const ZONE_LABELS: [&str; 2] = ["topology.kubernetes.io/region", "topology.kubernetes.io/zone"];

/// The last sign of one node.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Sign {
    /// Versions of the node and its lease.
    node: u64,
    lease: u64,
    /// When they were first seen like that.
    at: i64,
    /// Whether the node of this version was looked at.
    settled: bool,
    facts: Facts,
}

/// What a node of one version says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Facts {
    zone: String,
    /// `None` of one that has not said.
    ready: Option<bool>,
    /// Whether it has a taint of ours that evicts.
    evicting: bool,
}

impl Facts {
    fn of(node: &Value) -> Self {
        let labels = &node["metadata"]["labels"];
        let taints = node["spec"]["taints"].as_array();
        Self {
            zone: ZONE_LABELS.map(|label| text(labels, label)).join("/"),
            ready: ready(node).map(|status| status == "True"),
            evicting: taints.is_some_and(|all| all.iter().any(evicts)),
        }
    }
}

/// Whether pods are driven from a node that does not answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Eviction {
    /// It is this node's turn.
    Now,
    /// Others come first; a taint that is there stays.
    Later,
    /// Nobody answers: not from any.
    Never,
}

/// A node to look at.
struct Due {
    node: Arc<Object>,
    silent: bool,
    eviction: Eviction,
}

/// What the monitor remembers: one entry a node, one a zone.
#[derive(Debug, Default)]
pub(super) struct Monitor(Mutex<Memory>);

#[derive(Debug, Default)]
struct Memory {
    signs: HashMap<String, Sign>,
    brake: Brake,
}

impl Monitor {
    /// Notes the present versions; gives the nodes to look at.
    fn observe(&self, nodes: &[Arc<Object>], kind: &Kind, lease: impl Fn(&str) -> u64, now: i64) -> Vec<Due> {
        let mut memory = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Memory { signs, brake } = &mut *memory;
        let present: HashSet<&str> = nodes.iter().map(|node| node.key.name.as_str()).collect();
        signs.retain(|name, _| present.contains(name.as_str()));
        for node in nodes {
            let (version, lease) = (node.resource_version, lease(&node.key.name));
            let known = signs.get_mut(&node.key.name);
            if known.as_ref().is_some_and(|sign| sign.node == version && sign.lease == lease) {
                continue;
            }
            let fresh = |facts, settled| Sign { node: version, lease, at: now, settled, facts };
            match known {
                Some(sign) if sign.node == version => *sign = fresh(sign.facts.clone(), sign.settled),
                _ => {
                    signs.insert(node.key.name.clone(), fresh(Facts::of(&node.value(kind)), false));
                }
            }
        }
        let silent = |sign: &Sign| now - sign.at > GRACE_SECONDS;
        let answering = signs.values().filter_map(|sign| match sign.facts.ready {
            // One that never said how it is counts once it is silent.
            None if !silent(sign) => None,
            ready => Some((sign.facts.zone.clone(), ready == Some(true) && !silent(sign))),
        });
        let answering: Vec<(String, bool)> = answering.collect();
        let mut look = brake.look(answering.iter().map(|(zone, ready)| (zone.as_str(), *ready)), now);
        let cut_off = look.cut_off();
        let mut due = Vec::new();
        for node in nodes {
            let Some(sign) = signs.get_mut(&node.key.name) else { continue };
            let silent = silent(sign);
            let away = silent || sign.facts.ready == Some(false);
            let eviction = match cut_off {
                true => Eviction::Never,
                false if away && !sign.facts.evicting && look.take(&sign.facts.zone) => Eviction::Now,
                false => Eviction::Later,
            };
            let changes = eviction == Eviction::Now || (eviction == Eviction::Never && sign.facts.evicting);
            if silent || changes || !sign.settled {
                due.push(Due { node: node.clone(), silent, eviction });
                sign.settled = true;
            }
        }
        due
    }

    /// Notes a version that this controller made itself: no sign of the node.
    fn wrote(&self, node: &Object, kind: &Kind) {
        let mut memory = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(sign) = memory.signs.get_mut(&node.key.name) {
            sign.node = node.resource_version;
            sign.facts = Facts::of(&node.value(kind));
        }
    }
}

/// The status of a node's `Ready`.
fn ready(node: &Value) -> Option<&str> {
    let mut conditions = node["status"]["conditions"].as_array().into_iter().flatten();
    conditions.find(|one| one["type"] == "Ready").map(|ready| text(ready, "status"))
}

/// Whether a taint is one of those that this controller evicts by.
fn evicts(taint: &Value) -> bool {
    taint["effect"] == "NoExecute" && [NOT_READY, UNREACHABLE].contains(&text(taint, "key"))
}

/// What a node becomes: unknown when it is silent, with the taints of its conditions. `None` when it is so already.
fn settle(node: &Value, silent: bool, eviction: Eviction, now: i64) -> Option<Value> {
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
        let taints = execution_taints(&new, taints.unwrap_or_default(), eviction, now);
        set_taints(&mut new, taints);
    }
    (new != *node).then_some(new)
}

/// `taints` with the one `NoExecute` taint that follows from `Ready`, and no other of this kind. One that is there
/// already keeps its time; a new one waits for its turn.
fn execution_taints(node: &Value, mut taints: Vec<Value>, eviction: Eviction, now: i64) -> Vec<Value> {
    let wanted = match ready(node) {
        _ if eviction == Eviction::Never => None,
        Some("False") => Some(NOT_READY),
        Some("Unknown") => Some(UNREACHABLE),
        _ => None,
    };
    let had = taints.iter().any(evicts);
    taints.retain(|taint| !evicts(taint) || wanted == Some(text(taint, "key")));
    if let Some(key) = wanted.filter(|_| had || eviction == Eviction::Now)
        && !taints.iter().any(evicts)
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
    for due in monitor.observe(&api.storage.list(id, None).1, api.storage.kind(id), lease, api.now()) {
        write(api, id, monitor, &due).await?;
    }
    Ok(Again::After(PERIOD))
}

async fn write(api: &Arc<Api>, id: KindId, monitor: &Monitor, due: &Due) -> Result<(), Status> {
    let kind = api.storage.kind(id);
    if settle(&due.node.value(kind), due.silent, due.eviction, api.now()).is_none() {
        return Ok(());
    }
    let writer = api.storage.write().await;
    let Some(present) = writer.get(id, &due.node.key) else { return Ok(()) };
    // A silent node that has just spoken is left for the next look.
    let silent = due.silent && present.resource_version == due.node.resource_version;
    if let Some(value) = settle(&present.value(kind), silent, due.eviction, api.now()) {
        for written in writer.commit(vec![Change::Put(id, value)]).await? {
            monitor.wrote(&written, kind);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::super::kinds;
    use super::*;

    fn kind() -> &'static Kind {
        kinds::find("", "v1", "nodes").unwrap()
    }

    fn node(name: &str, version: u64, ready: Option<&str>) -> Arc<Object> {
        let conditions: Vec<Value> = ready.iter().map(|status| json!({"type": "Ready", "status": status})).collect();
        let value = json!({
            "metadata": {"name": name, "resourceVersion": version.to_string()}, "status": {"conditions": conditions},
        });
        Arc::new(Object::new(kind(), &value))
    }

    #[test]
    fn a_node_is_silent_when_neither_it_nor_its_lease_changes() {
        let monitor = Monitor::default();
        let look = |node: &Arc<Object>, lease, now| {
            let due = monitor.observe(std::slice::from_ref(node), kind(), |_| lease, now);
            due.first().map(|due| due.silent)
        };
        let one = node("edge", 1, None);
        assert_eq!(look(&one, 5, 0), Some(false), "a new node is looked at");
        assert_eq!(look(&one, 5, 50), None);
        assert_eq!(look(&one, 6, 55), None, "a renewed lease is a sign");
        assert_eq!(look(&one, 6, 105), None);
        assert_eq!(look(&one, 6, 106), Some(true));
        let two = node("edge", 2, None);
        monitor.wrote(&two, kind());
        assert_eq!(look(&two, 6, 107), Some(true), "what was written here is no sign");
        assert_eq!(look(&node("edge", 3, None), 6, 108), Some(false), "a new status is one");
    }

    #[test]
    fn nodes_that_are_not_ready_are_evicted_from_in_turn_and_from_none_when_all_are_away() {
        let monitor = Monitor::default();
        let look = |nodes: &[Arc<Object>], now| -> Vec<Eviction> {
            monitor.observe(nodes, kind(), |_| 0, now).into_iter().map(|due| due.eviction).collect()
        };
        let (away, there) = (|name, version| node(name, version, Some("False")), node("c", 3, Some("True")));
        let all = [away("a", 1), away("b", 2), there];
        assert_eq!(look(&all, 0), [Eviction::Now, Eviction::Later, Eviction::Later]);
        let tainted = settle(&all[0].value(kind()), false, Eviction::Now, 0).unwrap();
        let [_, b, c] = all;
        let tainted = Arc::new(Object::new(kind(), &tainted));
        monitor.wrote(&tainted, kind());
        let all = [tainted.clone(), b, c];
        assert_eq!(look(&all, 9), [], "the second waits for its turn");
        assert_eq!(look(&all, 10), [Eviction::Now], "and nothing has to change for it");
        let gone = [tainted, away("b", 2), away("c", 4)];
        assert_eq!(look(&gone, 20), [Eviction::Never; 2], "the taint goes, and a change is looked at");
    }

    #[test]
    fn a_silent_node_is_unknown_and_tainted_and_stays_so_without_writing_again() {
        let ready = json!({
            "metadata": {"name": "edge"}, "spec": {},
            "status": {"conditions": [{"type": "Ready", "status": "True"}]},
        });
        assert_eq!(settle(&ready, false, Eviction::Now, 0), None);
        let unknown = settle(&ready, true, Eviction::Now, 0).unwrap();
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
        assert_eq!(settle(&unknown, true, Eviction::Later, 9), None, "the taint keeps its time");
        let mut sick = unknown.clone();
        sick["status"]["conditions"][0]["status"] = "False".into();
        let sick = settle(&sick, false, Eviction::Later, 0).unwrap();
        assert_eq!(sick["spec"]["taints"], taints([(NOT_READY, "NoSchedule"), (NOT_READY, "NoExecute")]));
        let held = settle(&ready, true, Eviction::Later, 0).unwrap();
        assert_eq!(held["spec"]["taints"], json!([{"key": UNREACHABLE, "effect": "NoSchedule"}]), "others come first");
        let lifted = settle(&unknown, true, Eviction::Never, 9).unwrap();
        assert_eq!(lifted["spec"]["taints"], held["spec"]["taints"], "nobody answers: the taint goes");
        let mut back = unknown;
        back["status"]["conditions"][0]["status"] = "True".into();
        assert_eq!(settle(&back, false, Eviction::Now, 0).unwrap()["spec"].get("taints"), None);
    }
}
