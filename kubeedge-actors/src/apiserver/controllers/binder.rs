//! The binder: gives each pod without a node one that fits.
//!
//! It looks at readiness, `unschedulable`, taints, `nodeSelector`, required node affinity, requested resources against
//! what the node can give, ports of the host, the number of pods a node takes, and where the volumes of its claims are;
//! among the nodes that fit it takes the one with the fewest pods. It does not look at pod affinity or topology, and
//! nothing makes room for a pod.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::{Value, json};

use super::super::object::{Object, text};
use super::super::selector::{Operator, Requirement};
use super::super::status::Status;
use super::super::storage::{Change, KindId};
use super::super::verbs::bind::{bound, condition};
use super::super::{Api, clock};
use super::Again;
use super::usage::{Amounts, Usage, amounts};
use super::volumes::places;

const SCHEDULER: &str = "default-scheduler";

/// What the binder knows of a node.
#[derive(Clone, Debug)]
pub(super) struct Candidate {
    name: String,
    labels: BTreeMap<String, String>,
    taints: Vec<Value>,
    ready: bool,
    unschedulable: bool,
    /// Pods it takes, `None` when it does not say.
    room: Option<usize>,
    pods: usize,
    allocatable: Amounts,
    /// What its pods take.
    used: Usage,
}

impl Candidate {
    pub(super) fn new(node: &Value, pods: &[Arc<Usage>]) -> Self {
        let labels = node["metadata"]["labels"].as_object().into_iter().flatten();
        let conditions = node["status"]["conditions"].as_array().into_iter().flatten();
        Self {
            name: text(&node["metadata"], "name").to_owned(),
            labels: labels.map(|(k, v)| (k.clone(), v.as_str().unwrap_or_default().to_owned())).collect(),
            taints: node["spec"]["taints"].as_array().cloned().unwrap_or_default(),
            ready: conditions.into_iter().any(|one| one["type"] == "Ready" && one["status"] == "True"),
            unschedulable: node["spec"]["unschedulable"] == true,
            room: text(&node["status"]["allocatable"], "pods").parse().ok(),
            pods: pods.len(),
            allocatable: amounts(&node["status"]["allocatable"]),
            used: pods.iter().fold(Usage::default(), |mut sum, pod| {
                sum.add(pod);
                sum
            }),
        }
    }

    /// Takes a pod.
    fn take(&mut self, pod: &Usage) {
        self.pods += 1;
        self.used.add(pod);
    }
}

/// What each pod takes, by uid, of the version it was last seen in: reading a pod anew at each look would cost more than
/// all the rest.
#[derive(Debug, Default)]
pub(super) struct Usages(Mutex<HashMap<String, (u64, Arc<Usage>)>>);

impl Usages {
    /// That of each of `pods`; others are forgotten.
    fn of(&self, pods: &[&Arc<Object>], read: impl Fn(&Object) -> Value) -> Vec<Arc<Usage>> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut next = HashMap::with_capacity(pods.len());
        let usages = pods
            .iter()
            .map(|pod| {
                let version = pod.resource_version;
                let usage = match known.get(&pod.uid) {
                    Some((of, usage)) if *of == version => usage.clone(),
                    _ => Arc::new(Usage::of(&read(pod)["spec"])),
                };
                next.insert(pod.uid.clone(), (version, usage.clone()));
                usage
            })
            .collect();
        *known = next;
        usages
    }
}

/// The node for a pod, or why there is none, in the scheduler's words.
///
/// `places`: where its volumes are, each a node selector.
pub(super) fn choose<'a>(pod: &Value, places: &[Value], nodes: &'a [Candidate]) -> Result<&'a str, String> {
    let usage = Usage::of(&pod["spec"]);
    let mut reasons: BTreeMap<String, usize> = BTreeMap::new();
    let mut best: Option<&Candidate> = None;
    for node in nodes {
        let mut misfits = misfits(&pod["spec"], &usage, node);
        if misfits.is_empty() && !places.iter().all(|place| terms_match(place, node)) {
            misfits.push("node(s) didn't match PersistentVolume's node affinity".to_owned());
        }
        if misfits.is_empty() && best.is_none_or(|best| (node.pods, &node.name) < (best.pods, &best.name)) {
            best = Some(node);
        }
        for reason in misfits {
            *reasons.entry(reason).or_default() += 1;
        }
    }
    match best {
        Some(node) => Ok(&node.name),
        None if nodes.is_empty() => Err("no nodes available to schedule pods".into()),
        None => {
            let mut list: Vec<String> = reasons.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
            list.sort();
            Err(format!("0/{} nodes are available: {}.", nodes.len(), list.join(", ")))
        }
    }
}

/// Why a pod does not fit: the first reason that is not its size, or everything of which there is too little.
fn misfits(spec: &Value, usage: &Usage, node: &Candidate) -> Vec<String> {
    if let Some(reason) = misfit(spec, node) {
        return vec![reason];
    }
    if node.used.port_taken(usage) {
        return vec!["node(s) didn't have free ports for the requested pod ports".into()];
    }
    let too_many = node.room.is_some_and(|room| node.pods >= room).then(|| "Too many pods".to_owned());
    let lacking = node.used.lacking(&node.allocatable, usage).into_iter().map(|name| format!("Insufficient {name}"));
    too_many.into_iter().chain(lacking).collect()
}

fn misfit(spec: &Value, node: &Candidate) -> Option<String> {
    if node.unschedulable
        && !tolerated(spec, &json!({"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"}))
    {
        return Some("node(s) were unschedulable".into());
    }
    for taint in &node.taints {
        if matches!(text(taint, "effect"), "NoSchedule" | "NoExecute") && !tolerated(spec, taint) {
            let (key, value) = (text(taint, "key"), text(taint, "value"));
            return Some(format!("node(s) had untolerated taint {{{key}: {value}}}"));
        }
    }
    // Whoever tolerates the taint of such a node is bound to it, as what makes nodes ready has to be.
    let not_ready = json!({"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"});
    if !node.ready && !tolerated(spec, &not_ready) {
        return Some("node(s) were not ready".into());
    }
    (!selected(spec, node)).then(|| "node(s) didn't match Pod's node affinity/selector".into())
}

fn tolerated(spec: &Value, taint: &Value) -> bool {
    toleration(spec, taint).is_some()
}

/// The first toleration of a pod that covers the taint.
pub(super) fn toleration<'a>(spec: &'a Value, taint: &Value) -> Option<&'a Value> {
    spec["tolerations"].as_array()?.iter().find(|toleration| {
        let (key, effect) = (text(toleration, "key"), text(toleration, "effect"));
        let same_effect = effect.is_empty() || effect == text(taint, "effect");
        let same_key = key.is_empty() || key == text(taint, "key");
        same_effect
            && match text(toleration, "operator") {
                "Exists" => same_key,
                _ => same_key && !key.is_empty() && text(toleration, "value") == text(taint, "value"),
            }
    })
}

/// Whether the node selector and the required node affinity of a pod admit the node.
pub(super) fn selected(spec: &Value, node: &Candidate) -> bool {
    let mut selector = spec["nodeSelector"].as_object().into_iter().flatten();
    if !selector.all(|(key, value)| node.labels.get(key).map(String::as_str) == value.as_str()) {
        return false;
    }
    let required = &spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"];
    terms_match(required, node)
}

/// Terms are alternatives; an empty term selects nothing.
fn terms_match(selector: &Value, node: &Candidate) -> bool {
    let terms = selector["nodeSelectorTerms"].as_array();
    terms.is_none_or(|terms| terms.iter().any(|term| term_matches(term, node)))
}

fn term_matches(term: &Value, node: &Candidate) -> bool {
    let list = |name: &str| term[name].as_array().cloned().unwrap_or_default();
    let (labels, fields) = (list("matchExpressions"), list("matchFields"));
    if labels.is_empty() && fields.is_empty() {
        return false;
    }
    labels
        .iter()
        .all(|one| requirement(one).is_some_and(|one| one.admits(node.labels.get(&one.key).map(String::as_str))))
        && fields
            .iter()
            .all(|one| requirement(one).is_some_and(|one| one.key == "metadata.name" && one.admits(Some(&node.name))))
}

fn requirement(expression: &Value) -> Option<Requirement> {
    let values = || -> Vec<String> {
        expression["values"].as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
    };
    let number = || values().first().and_then(|value| value.parse().ok());
    let operator = match text(expression, "operator") {
        "In" => Operator::In(values()),
        "NotIn" => Operator::NotIn(values()),
        "Exists" => Operator::Exists,
        "DoesNotExist" => Operator::DoesNotExist,
        "Gt" => Operator::GreaterThan(number()?),
        "Lt" => Operator::LessThan(number()?),
        _ => return None,
    };
    Some(Requirement { key: text(expression, "key").to_owned(), operator })
}

/// Binds every pod that waits and fits somewhere; tells why of the others.
pub(super) async fn reconcile(api: &Arc<Api>, usages: &Usages) -> Result<Again, Status> {
    let (Some(pods), Some(nodes)) = (api.storage.core("pods"), api.storage.core("nodes")) else {
        return Ok(Again::OnChange);
    };
    let kind = api.storage.kind(pods);
    let field = |name: &str| kind.selectable.iter().position(|(known, _)| *known == name);
    let (Some(node_name), Some(phase)) = (field("spec.nodeName"), field("status.phase")) else {
        return Err(Status::internal("pods have no selectable node name and phase"));
    };
    let (_, all) = api.storage.list(pods, None);
    if !all.iter().any(|pod| pod.fields[node_name].is_empty() && !pod.deleting) {
        return Ok(Again::OnChange);
    }
    let placed: Vec<&Arc<Object>> = all
        .iter()
        .filter(|pod| !pod.fields[node_name].is_empty())
        .filter(|pod| !matches!(pod.fields[phase].as_str(), "Succeeded" | "Failed"))
        .collect();
    let mut on: HashMap<&str, Vec<Arc<Usage>>> = HashMap::new();
    for (pod, usage) in placed.iter().zip(usages.of(&placed, |pod| pod.value(kind))) {
        on.entry(pod.fields[node_name].as_str()).or_default().push(usage);
    }
    let mut candidates: Vec<Candidate> = api
        .storage
        .list(nodes, None)
        .1
        .iter()
        .filter(|node| !node.deleting)
        .map(|node| {
            let pods = on.get(node.key.name.as_str()).map(Vec::as_slice).unwrap_or_default();
            Candidate::new(&node.value(api.storage.kind(nodes)), pods)
        })
        .collect();
    for pod in all.iter().filter(|pod| pod.fields[node_name].is_empty() && !pod.deleting) {
        let value = pod.value(kind);
        let gated = value["spec"]["schedulingGates"].as_array().is_some_and(|gates| !gates.is_empty());
        if text(&value["spec"], "schedulerName") != SCHEDULER || gated {
            continue;
        }
        let chosen = places(api, &value).and_then(|places| choose(&value, &places, &candidates).map(str::to_owned));
        match chosen {
            Ok(name) => {
                if assign(api, pods, pod, &name).await?
                    && let Some(node) = candidates.iter_mut().find(|node| node.name == name)
                {
                    node.take(&Usage::of(&value["spec"]));
                }
            }
            Err(why) => explain(api, pods, pod, &why).await?,
        }
    }
    Ok(Again::OnChange)
}

async fn assign(api: &Arc<Api>, pods: KindId, pod: &Object, node: &str) -> Result<bool, Status> {
    let writer = api.storage.write().await;
    let Some(now) = writer.get(pods, &pod.key).filter(|now| now.uid == pod.uid) else { return Ok(false) };
    let Ok(value) = bound(&now.value(api.storage.kind(pods)), node, &Value::Null, api.now()) else {
        // Bound or ending by now: someone else was first.
        return Ok(false);
    };
    let message = format!("Successfully assigned {}/{} to {node}", pod.key.namespace, pod.key.name);
    let event = event(api, pod, "Normal", "Scheduled", &message);
    let mut changes = vec![Change::Put(pods, value)];
    changes.extend(event);
    writer.commit(changes).await?;
    Ok(true)
}

/// Sets the condition and writes an event, once for each reason.
async fn explain(api: &Arc<Api>, pods: KindId, pod: &Object, why: &str) -> Result<(), Status> {
    let writer = api.storage.write().await;
    let Some(now) = writer.get(pods, &pod.key).filter(|now| now.uid == pod.uid) else { return Ok(()) };
    let mut value = now.value(api.storage.kind(pods));
    let conditions = value["status"]["conditions"].as_array();
    let known = conditions
        .into_iter()
        .flatten()
        .any(|one| one["type"] == "PodScheduled" && one["status"] == "False" && one["message"] == why);
    if known || !text(&value["spec"], "nodeName").is_empty() || now.deleting {
        return Ok(());
    }
    let unschedulable = json!({"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": why});
    condition(&mut value, unschedulable, api.now());
    let mut changes = vec![Change::Put(pods, value)];
    changes.extend(event(api, pod, "Warning", "FailedScheduling", why));
    writer.commit(changes).await?;
    Ok(())
}

fn event(api: &Api, pod: &Object, type_: &str, reason: &str, message: &str) -> Option<Change> {
    let events = api.storage.core("events")?;
    let kind = api.storage.kind(events);
    let now = clock::rfc3339(api.now());
    // A pod's name may be as long as a name can be.
    let prefix: String = pod.key.name.chars().take(200).collect();
    let mut event = json!({
        "metadata": {
            "name": format!("{}.{:016x}", prefix.trim_end_matches(['.', '-']), rand::random::<u64>()),
            "namespace": pod.key.namespace,
            "uid": uuid::Uuid::new_v4().to_string(),
            "creationTimestamp": now,
        },
        "involvedObject": {
            "apiVersion": "v1", "kind": "Pod", "namespace": pod.key.namespace, "name": pod.key.name,
            "uid": pod.uid, "resourceVersion": pod.resource_version.to_string(),
        },
        "type": type_, "reason": reason, "message": message, "count": 1,
        "firstTimestamp": now, "lastTimestamp": now,
        "source": {"component": SCHEDULER}, "reportingComponent": SCHEDULER, "reportingInstance": "",
    });
    super::super::object::add_type(&mut event, kind);
    (kind.default)(&mut event);
    Some(Change::Put(events, event))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, ready: bool, more: Value) -> Candidate {
        let mut node = json!({
            "metadata": {"name": name, "labels": {"zone": name, "n": "3"}},
            "spec": more,
            "status": {
                "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}],
                "allocatable": {"pods": "2", "cpu": "1", "memory": "1Gi"},
            },
        });
        if node["spec"].is_null() {
            node["spec"] = json!({});
        }
        Candidate::new(&node, &[])
    }

    fn pod(spec: Value) -> Value {
        json!({"spec": spec})
    }

    #[test]
    fn the_emptiest_node_that_fits_is_taken() {
        let mut nodes = [node("b", true, Value::Null), node("a", true, Value::Null)];
        assert_eq!(choose(&pod(json!({})), &[], &nodes), Ok("a"));
        let disk_of = |name: &str| {
            let term = json!({"matchFields": [{"key": "metadata.name", "operator": "In", "values": [name]}]});
            [json!({"nodeSelectorTerms": [term]})]
        };
        assert_eq!(choose(&pod(json!({})), &disk_of("b"), &nodes), Ok("b"));
        let why = choose(&pod(json!({})), &disk_of("c"), &nodes).unwrap_err();
        assert!(why.contains("2 node(s) didn't match PersistentVolume's node affinity"), "{why}");
        nodes[1].pods = 1;
        assert_eq!(choose(&pod(json!({})), &[], &nodes), Ok("b"));
        nodes[0].pods = 2;
        nodes[1].pods = 2;
        assert_eq!(choose(&pod(json!({})), &[], &nodes), Err("0/2 nodes are available: 2 Too many pods.".into()));
    }

    #[test]
    fn what_is_asked_must_be_left_and_a_host_port_free() {
        let mut nodes = [node("a", true, Value::Null), node("b", true, Value::Null)];
        let asking = |cpu: &str, memory: &str| {
            pod(json!({"containers": [{"resources": {"requests": {"cpu": cpu, "memory": memory}}}]}))
        };
        assert_eq!(choose(&asking("1", "1Gi"), &[], &nodes), Ok("a"));
        nodes[0].take(&Usage::of(&asking("600m", "1Gi")["spec"]));
        assert_eq!(choose(&asking("400m", "0"), &[], &nodes[..1]), Ok("a"));
        let why = choose(&asking("2", "1Mi"), &[], &nodes).unwrap_err();
        assert_eq!(why, "0/2 nodes are available: 1 Insufficient memory, 2 Insufficient cpu.");
        let port = pod(json!({"containers": [{"ports": [{"containerPort": 80, "hostPort": 80}]}]}));
        nodes[1].take(&Usage::of(&port["spec"]));
        assert_eq!(choose(&port, &[], &nodes), Ok("a"));
        let why = choose(&port, &[], &nodes[1..]).unwrap_err();
        assert_eq!(why, "0/1 nodes are available: 1 node(s) didn't have free ports for the requested pod ports.");
    }

    #[test]
    fn selectors_affinity_taints_and_readiness_exclude_nodes() {
        let taint = json!({"taints": [{"key": "k", "value": "v", "effect": "NoSchedule"}]});
        let nodes = [
            node("a", true, Value::Null),
            node("closed", true, json!({"unschedulable": true})),
            node("down", false, Value::Null),
            node("tainted", true, taint),
        ];
        let at = |spec: Value| choose(&pod(spec), &[], &nodes).map(str::to_owned);
        assert_eq!(at(json!({"nodeSelector": {"zone": "a"}})), Ok("a".into()));
        let why = at(json!({"nodeSelector": {"zone": "tainted"}})).unwrap_err();
        assert_eq!(
            why,
            "0/4 nodes are available: 1 node(s) didn't match Pod's node affinity/selector, 1 node(s) had untolerated \
             taint {k: v}, 1 node(s) were not ready, 1 node(s) were unschedulable."
        );
        let tolerations = json!([{"key": "k", "operator": "Equal", "value": "v", "effect": "NoSchedule"}]);
        assert_eq!(at(json!({"nodeSelector": {"zone": "tainted"}, "tolerations": tolerations})), Ok("tainted".into()));
        let affinity = |expression: Value| {
            json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution":
                {"nodeSelectorTerms": [{"matchExpressions": [expression]}]}}}})
        };
        assert_eq!(at(affinity(json!({"key": "zone", "operator": "In", "values": ["a"]}))), Ok("a".into()));
        assert_eq!(at(affinity(json!({"key": "n", "operator": "Gt", "values": ["2"]}))), Ok("a".into()));
        assert!(at(affinity(json!({"key": "zone", "operator": "NotIn", "values": ["a"]}))).is_err());
        assert!(
            at(json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution":
            {"nodeSelectorTerms": [{}]}}}}))
            .is_err()
        );
    }
}
