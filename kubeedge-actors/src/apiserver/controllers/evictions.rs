//! Evictions: pods that a node's `NoExecute` taints drive out, and pods of nodes that do not exist any more.
//!
//! A pod that tolerates a taint for some seconds stays that long after the later of the taint and its own binding. What
//! happens then is an ordinary deletion: the pod waits for its node to end it. A pod whose node has been missing for
//! [`MISSING_SECONDS`] has nobody to wait for and goes at once. When many nodes are away, `nodes` holds the taints back.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};

use super::super::object::{Object, member, text};
use super::super::status::Status;
use super::super::storage::{Change, KindId};
use super::super::verbs::bind::condition;
use super::super::verbs::delete::{DeleteOptions, Plan, plan};
use super::super::{Api, clock};
use super::Again;
use super::binder::toleration;

/// Seconds that a node must be missing before its pods go: that of Kubernetes' collector. A node that is made anew in
/// this time keeps them.
const MISSING_SECONDS: i64 = 40;
/// How often it is looked, beside changes.
const PERIOD: Duration = Duration::from_secs(5);

/// A taint that drives out, with when it began to.
#[derive(Clone, Debug, PartialEq)]
struct Taint {
    taint: Value,
    since: i64,
}

/// What was first seen when, of what the objects themselves do not say.
#[derive(Debug, Default)]
pub(super) struct Sightings(Mutex<HashMap<Sighting, i64>>);

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Sighting {
    /// A node that pods name and that is not there.
    Missing(String),
    /// A taint without a time: node, key, value.
    Taint(String, String, String),
}

impl Sightings {
    /// Notes what is seen now; forgets what is not. Gives the first time of each.
    fn note(&self, seen: impl Iterator<Item = Sighting>, now: i64) -> HashMap<Sighting, i64> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let next: HashMap<Sighting, i64> = seen
            .map(|one| {
                let at = known.get(&one).copied().unwrap_or(now);
                (one, at)
            })
            .collect();
        known.clone_from(&next);
        next
    }
}

/// When `taints` drive a pod out that was bound at `bound`, seconds since 1970; `None` when they never do.
fn leaves(spec: &Value, taints: &[Taint], bound: i64) -> Option<i64> {
    let times = taints.iter().filter_map(|Taint { taint, since }| match toleration(spec, taint) {
        None => Some(*since),
        Some(toleration) => {
            let seconds = toleration["tolerationSeconds"].as_i64()?;
            Some(bound.max(*since).saturating_add(seconds.max(0)))
        }
    });
    times.min()
}

/// When a pod was bound to its node.
fn bound_at(pod: &Value) -> i64 {
    let conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
    let mut scheduled = conditions.filter(|one| one["type"] == "PodScheduled" && one["status"] == "True");
    let time = scheduled.next().map(|one| text(one, "lastTransitionTime"));
    let created = text(&pod["metadata"], "creationTimestamp");
    clock::parse(time.unwrap_or(created)).or_else(|| clock::parse(created)).unwrap_or_default()
}

/// Why a pod goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Why {
    Taint,
    NoNode,
}

/// Takes the pods from where they cannot stay.
pub(super) async fn reconcile(api: &Arc<Api>, sightings: &Sightings) -> Result<Again, Status> {
    let (Some(pods), Some(nodes)) = (api.storage.core("pods"), api.storage.core("nodes")) else {
        return Ok(Again::OnChange);
    };
    let (kind, node_kind) = (api.storage.kind(pods), api.storage.kind(nodes));
    let field = |name: &str| kind.selectable.iter().position(|(known, _)| *known == name);
    let (Some(node_name), Some(phase)) = (field("spec.nodeName"), field("status.phase")) else {
        return Err(Status::internal("pods have no selectable node name and phase"));
    };
    let now = api.now();
    // Pods first: a node that is there afterwards was made before or after them, never missed.
    let (_, all) = api.storage.list(pods, None);
    let present: HashMap<String, Value> =
        api.storage.list(nodes, None).1.iter().map(|node| (node.key.name.clone(), node.value(node_kind))).collect();
    let seen = present.iter().flat_map(|(name, node)| {
        driving(node).filter(|taint| time_added(taint).is_none()).map(|taint| sighting(name, taint))
    });
    let missing = all.iter().map(|pod| &pod.fields[node_name]).filter(|name| !name.is_empty());
    let missing = missing.filter(|name| !present.contains_key(*name)).map(|name| Sighting::Missing(name.clone()));
    let first = sightings.note(seen.chain(missing), now);
    let tainted: HashMap<&str, Vec<Taint>> = present
        .iter()
        .map(|(name, node)| {
            let since =
                |taint: &Value| time_added(taint).or_else(|| first.get(&sighting(name, taint)).copied()).unwrap_or(now);
            (name.as_str(), driving(node).map(|taint| Taint { taint: taint.clone(), since: since(taint) }).collect())
        })
        .collect();
    for pod in all.iter().filter(|pod| !pod.fields[node_name].is_empty()) {
        let node = pod.fields[node_name].as_str();
        let why = match tainted.get(node) {
            None => {
                let since = first.get(&Sighting::Missing(node.to_owned())).copied().unwrap_or(now);
                (now - since >= MISSING_SECONDS).then_some(Why::NoNode)
            }
            Some(taints) if taints.is_empty() || pod.deleting => None,
            Some(_) if matches!(pod.fields[phase].as_str(), "Succeeded" | "Failed") => None,
            Some(taints) => {
                let value = pod.value(kind);
                leaves(&value["spec"], taints, bound_at(&value)).filter(|time| *time <= now).map(|_| Why::Taint)
            }
        };
        if let Some(why) = why {
            remove(api, pods, pod, why).await?;
        }
    }
    Ok(Again::After(PERIOD))
}

/// A node's taints that drive pods out.
fn driving(node: &Value) -> impl Iterator<Item = &Value> {
    node["spec"]["taints"].as_array().into_iter().flatten().filter(|taint| taint["effect"] == "NoExecute")
}

fn time_added(taint: &Value) -> Option<i64> {
    clock::parse(text(taint, "timeAdded"))
}

fn sighting(node: &str, taint: &Value) -> Sighting {
    Sighting::Taint(node.to_owned(), text(taint, "key").to_owned(), text(taint, "value").to_owned())
}

async fn remove(api: &Arc<Api>, pods: KindId, pod: &Object, why: Why) -> Result<(), Status> {
    let kind = api.storage.kind(pods);
    let writer = api.storage.write().await;
    let Some(present) = writer.get(pods, &pod.key).filter(|now| now.uid == pod.uid) else { return Ok(()) };
    let Some(change) = departure(present.value(kind), why, api.now()) else { return Ok(()) };
    let change = match plan(kind, &change.0, &change.1, api.now())? {
        Plan::Nothing => return Ok(()),
        Plan::Mark(value) => Change::Put(pods, value),
        Plan::Remove(value) => Change::Delete(pods, value),
    };
    tracing::info!(namespace = pod.key.namespace, name = pod.key.name, ?why, "a pod is evicted");
    writer.commit(vec![change]).await?;
    Ok(())
}

/// The pod with the reason in its conditions, and how it is deleted.
fn departure(mut pod: Value, why: Why, now: i64) -> Option<(Value, DeleteOptions)> {
    let options = match why {
        Why::Taint if pod["metadata"].get("deletionTimestamp").is_some() => return None,
        Why::Taint => DeleteOptions::default(),
        Why::NoNode => DeleteOptions { grace_seconds: Some(0), ..DeleteOptions::default() },
    };
    let (reason, message) = match why {
        Why::Taint => ("DeletionByTaintManager", "Taint manager: deleting due to NoExecute taint"),
        Why::NoNode => ("DeletionByPodGC", "PodGC: node no longer exists"),
    };
    let target = json!({"type": "DisruptionTarget", "status": "True", "reason": reason, "message": message});
    condition(&mut pod, target, now);
    if why == Why::NoNode && !matches!(text(&pod["status"], "phase"), "Succeeded" | "Failed") {
        member(&mut pod, "status").insert("phase".into(), "Failed".into());
    }
    Some((pod, options))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taint(key: &str, since: i64) -> Taint {
        Taint { taint: json!({"key": key, "effect": "NoExecute"}), since }
    }

    fn tolerating(seconds: &[(&str, Option<i64>)]) -> Value {
        let list: Vec<Value> = seconds
            .iter()
            .map(|(key, seconds)| {
                let mut one = json!({"key": key, "operator": "Exists", "effect": "NoExecute"});
                if let Some(seconds) = seconds {
                    one["tolerationSeconds"] = (*seconds).into();
                }
                one
            })
            .collect();
        json!({"tolerations": list})
    }

    #[test]
    fn a_pod_leaves_when_the_first_of_its_tolerations_ends() {
        let spec = tolerating(&[("a", Some(300)), ("b", None), ("c", Some(-5))]);
        assert_eq!(leaves(&spec, &[], 0), None);
        assert_eq!(leaves(&spec, &[taint("a", 100)], 0), Some(400));
        assert_eq!(leaves(&spec, &[taint("a", 100)], 250), Some(550), "it came after the taint");
        assert_eq!(leaves(&spec, &[taint("b", 100)], 0), None, "for ever");
        assert_eq!(leaves(&spec, &[taint("a", 100), taint("c", 200)], 0), Some(200));
        assert_eq!(leaves(&spec, &[taint("a", 100), taint("x", 150)], 0), Some(150), "not tolerated");
    }

    #[test]
    fn sightings_keep_the_first_time_and_forget_what_is_gone() {
        let sightings = Sightings::default();
        let missing = || Sighting::Missing("edge".into());
        assert_eq!(sightings.note([missing()].into_iter(), 5)[&missing()], 5);
        assert_eq!(sightings.note([missing()].into_iter(), 9)[&missing()], 5);
        assert!(sightings.note(std::iter::empty(), 10).is_empty());
        assert_eq!(sightings.note([missing()].into_iter(), 12)[&missing()], 12);
    }

    #[test]
    fn a_pod_without_a_node_fails_and_goes_at_once_and_one_driven_out_has_its_grace() {
        let pod = json!({"metadata": {"name": "p"}, "spec": {"nodeName": "edge"}, "status": {"phase": "Running"}});
        let (gone, options) = departure(pod.clone(), Why::NoNode, 0).unwrap();
        assert_eq!((&gone["status"]["phase"], options.grace_seconds), (&json!("Failed"), Some(0)));
        assert_eq!(gone["status"]["conditions"][0]["reason"], "DeletionByPodGC");
        let (driven, options) = departure(pod, Why::Taint, 0).unwrap();
        assert_eq!((&driven["status"]["phase"], options.grace_seconds), (&json!("Running"), None));
        assert_eq!(driven["status"]["conditions"][0]["type"], "DisruptionTarget");
        let mut ending = driven;
        ending["metadata"]["deletionTimestamp"] = "1970-01-01T00:00:00Z".into();
        assert!(departure(ending, Why::Taint, 0).is_none());
    }
}
