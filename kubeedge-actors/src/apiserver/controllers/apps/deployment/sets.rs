//! The ReplicaSets of one Deployment, as they are and as they are to be.

use serde_json::{Map, Value, json};

use super::super::family::{controller_reference, is_controlled_by, is_ending};
use super::super::pods::{Counts, TEMPLATE_HASH};
use super::super::{Action, Family, Plan, Resource, hash};
use super::{REVISION, Wish};
use crate::apiserver::clock;
use crate::apiserver::kinds::fields::{entries, integer, text};
use crate::apiserver::object::{member, metadata};

/// Former numbers of a set that became the new one again.
const REVISION_HISTORY: &str = "deployment.kubernetes.io/revision-history";
/// What the Deployment wanted when the set was sized.
const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
/// The same with the surge.
const MAX: &str = "deployment.kubernetes.io/max-replicas";
/// Bytes of the history of numbers at most, the oldest go first. Kubernetes' number.
const HISTORY_MAX: usize = 2000;
/// Annotations of a Deployment that its sets do not take over.
const OWN: [&str; 6] = [
    "kubectl.kubernetes.io/last-applied-configuration",
    REVISION,
    REVISION_HISTORY,
    DESIRED,
    MAX,
    "deprecated.deployment.rollback.to",
];

/// One set.
#[derive(Clone, Debug)]
pub(super) struct Set {
    /// As it is stored; `None` for one that is to be made.
    before: Option<Value>,
    value: Value,
    counts: Counts,
    gone: bool,
}

impl Set {
    pub(super) fn value(&self) -> &Value {
        &self.value
    }

    pub(super) fn name(&self) -> &str {
        text(&self.value, "/metadata/name")
    }

    /// Pods it may have.
    pub(super) fn replicas(&self) -> i64 {
        integer(&self.value, "/spec/replicas").unwrap_or(1)
    }

    /// Pods it has.
    pub(super) fn counts(&self) -> Counts {
        self.counts
    }

    /// Pods that are available and stay so: what is above its size is about to go.
    pub(super) fn available(&self) -> i64 {
        self.counts.available.min(self.replicas())
    }

    fn annotation(&self, name: &str) -> Option<&str> {
        self.value["metadata"]["annotations"].get(name)?.as_str()
    }

    pub(super) fn revision(&self) -> i64 {
        self.annotation(REVISION).and_then(|number| number.parse().ok()).unwrap_or_default()
    }

    /// What the Deployment wanted when this set was sized.
    pub(super) fn desired(&self) -> Option<i64> {
        self.annotation(DESIRED)?.parse().ok()
    }

    /// The same with the surge.
    pub(super) fn max(&self) -> Option<i64> {
        self.annotation(MAX)?.parse().ok()
    }

    fn created(&self) -> (i64, String) {
        let created = clock::parse(text(&self.value, "/metadata/creationTimestamp")).unwrap_or(i64::MAX);
        (created, self.name().to_owned())
    }

    fn annotate(&mut self, name: &str, text: &str) {
        let annotations = metadata(&mut self.value).entry("annotations").or_insert_with(|| json!({}));
        if !annotations.is_object() {
            *annotations = json!({});
        }
        annotations[name] = text.into();
    }
}

/// All of them: the new one has the Deployment's template.
#[derive(Debug)]
pub(super) struct Sets {
    /// By age.
    all: Vec<Set>,
    newest: Option<usize>,
    told: Vec<Action>,
    /// Names that were found taken for the hash of the new set, over its life.
    pub(super) collisions: i64,
}

impl Sets {
    pub(super) fn new(deployment: &Value, sets: Vec<Value>, pods: &[Value], now: i64) -> Self {
        let min_ready = integer(deployment, "/spec/minReadySeconds").unwrap_or_default();
        let mut all: Vec<Set> = sets
            .into_iter()
            .map(|value| {
                let counts = Counts::of(pods.iter().filter(|pod| is_controlled_by(pod, &value)), min_ready, now);
                Set { before: Some(value.clone()), value, counts, gone: false }
            })
            .collect();
        all.sort_by_key(Set::created);
        let template = template_without_hash(deployment);
        // Of twins the oldest counts, which is what the others are judged by.
        let newest = all.iter().position(|set| template_without_hash(&set.value) == template);
        let collisions = integer(deployment, "/status/collisionCount").unwrap_or_default();
        Self { all, newest, told: Vec::new(), collisions }
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Set> {
        self.all.iter()
    }

    pub(super) fn at(&self, index: usize) -> &Set {
        &self.all[index]
    }

    /// Places of the sets of former templates, the oldest first.
    pub(super) fn old(&self) -> impl Iterator<Item = usize> + use<> {
        let newest = self.newest;
        (0..self.all.len()).filter(move |index| Some(*index) != newest)
    }

    pub(super) fn newest_at(&self) -> Option<usize> {
        self.newest
    }

    pub(super) fn newest(&self) -> Option<&Set> {
        self.newest.map(|index| &self.all[index])
    }

    /// Places of those that may have pods.
    pub(super) fn active(&self) -> Vec<usize> {
        (0..self.all.len()).filter(|index| self.all[*index].replicas() > 0).collect()
    }

    /// Pods that all together may have.
    pub(super) fn total(&self) -> i64 {
        self.all.iter().map(Set::replicas).sum()
    }

    /// Pods that all together may have or still have: one that is about to go counts until it has.
    pub(super) fn held(&self) -> i64 {
        self.all.iter().map(|set| set.replicas().max(set.counts.present)).sum()
    }

    pub(super) fn next_available(&self) -> Option<i64> {
        self.all.iter().filter_map(|set| set.counts.next).min()
    }

    /// Sets a size, noting what the Deployment wants, and tells of it.
    pub(super) fn resize(&mut self, index: usize, replicas: i64, wish: &Wish) {
        let set = &mut self.all[index];
        let before = set.replicas();
        member(&mut set.value, "spec").insert("replicas".into(), replicas.into());
        set.annotate(DESIRED, &wish.replicas.to_string());
        set.annotate(MAX, &wish.ceiling().to_string());
        if before != replicas {
            let way = if replicas > before { "up" } else { "down" };
            let message = format!("Scaled {way} replica set {} from {before} to {replicas}", set.name());
            self.told.push(Action::Event("Normal", "ScalingReplicaSet", message));
        }
    }

    /// Gives the new set the highest number and what the Deployment's annotations say. `None` when there is no new set,
    /// else whether it was one of a former revision.
    pub(super) fn renumber(&mut self, deployment: &Value) -> Option<bool> {
        let index = self.newest?;
        let next = self.next_revision();
        let min_ready = deployment["spec"].get("minReadySeconds").cloned();
        let set = &mut self.all[index];
        take_annotations(set, deployment);
        let spec = member(&mut set.value, "spec");
        match min_ready {
            Some(seconds) => spec.insert("minReadySeconds".into(), seconds),
            None => spec.remove("minReadySeconds"),
        };
        let before = set.revision();
        if before >= next {
            return Some(false);
        }
        if before > 0 {
            let mut history: Vec<&str> = set.annotation(REVISION_HISTORY).unwrap_or_default().split(',').collect();
            history.retain(|one| !one.is_empty());
            let number = before.to_string();
            history.push(&number);
            let mut text = history.join(",");
            while text.len() > HISTORY_MAX {
                let Some((_, rest)) = text.split_once(',') else { break };
                text = rest.to_owned();
            }
            set.annotate(REVISION_HISTORY, &text);
        }
        set.annotate(REVISION, &next.to_string());
        Some(true)
    }

    fn next_revision(&self) -> i64 {
        self.old().map(|index| self.all[index].revision()).max().unwrap_or_default() + 1
    }

    /// A set for the present template, as large as it may begin.
    pub(super) fn make(&mut self, family: &Family, wish: &Wish) {
        let deployment = &family.owner;
        let template = template_without_hash(deployment);
        // Each name that is taken costs one try, so that this ends.
        let (name, hash) = loop {
            let hash = hash::of(&template, self.collisions);
            let name = format!("{}-{hash}", text(deployment, "/metadata/name"));
            if !family.taken_names.contains(&name) {
                break (name, hash);
            }
            self.collisions += 1;
        };
        let mut template = template;
        metadata(&mut template).entry("labels").or_insert_with(|| json!({}))[TEMPLATE_HASH] = hash.as_str().into();
        let mut selector = deployment["spec"]["selector"].clone();
        member(&mut selector, "matchLabels").insert(TEMPLATE_HASH.into(), hash.into());
        let mut spec = json!({"replicas": 0, "selector": selector, "template": template});
        if let Some(seconds) = deployment["spec"].get("minReadySeconds") {
            spec["minReadySeconds"] = seconds.clone();
        }
        let value = json!({
            "apiVersion": "apps/v1", "kind": "ReplicaSet",
            "metadata": {
                "name": name, "namespace": deployment["metadata"]["namespace"],
                "labels": template["metadata"]["labels"], "ownerReferences": [controller_reference(deployment)],
            },
            "spec": spec,
        });
        let mut set = Set { before: None, value, counts: Counts::default(), gone: false };
        take_annotations(&mut set, deployment);
        set.annotate(REVISION, &self.next_revision().to_string());
        self.all.push(set);
        let index = self.all.len() - 1;
        self.newest = Some(index);
        let room = (wish.ceiling() - self.held()).max(0);
        self.resize(index, room.min(wish.replicas), wish);
    }

    /// Deletes the sets of the oldest revisions beyond `kept`, of those that have and want no pods.
    pub(super) fn clean_up(&mut self, kept: usize) {
        let mut old: Vec<usize> = self.old().filter(|index| !is_ending(&self.all[*index].value)).collect();
        old.sort_by_key(|index| self.all[*index].revision());
        let surplus = old.len().saturating_sub(kept);
        for index in old.into_iter().take(surplus) {
            let set = &mut self.all[index];
            let current =
                integer(&set.value, "/metadata/generation") <= integer(&set.value, "/status/observedGeneration");
            let empty = set.counts.present == 0 && integer(&set.value, "/status/replicas") == Some(0);
            set.gone = empty && set.replicas() == 0 && current;
        }
    }

    /// What is to be done to bring them about.
    pub(super) fn finish(self, plan: &mut Plan) {
        for set in self.all {
            match set.before {
                None => plan.actions.push(Action::Create(Resource::ReplicaSets, set.value)),
                Some(before) if set.gone => plan.actions.push(Action::Delete(Resource::ReplicaSets, before)),
                Some(before) if before != set.value => {
                    plan.actions.push(Action::Put(Resource::ReplicaSets, set.value));
                }
                Some(_) => {}
            }
        }
        plan.actions.extend(self.told);
    }
}

/// A template without the label that tells it from others.
fn template_without_hash(owner: &Value) -> Value {
    let mut template = owner["spec"]["template"].clone();
    if let Some(labels) = template.pointer_mut("/metadata/labels").and_then(Value::as_object_mut) {
        labels.remove(TEMPLATE_HASH);
    }
    template
}

fn take_annotations(set: &mut Set, deployment: &Value) {
    let all: Map<String, Value> = entries(deployment, "/metadata/annotations")
        .filter(|(name, _)| !OWN.contains(&name.as_str()))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    for (name, value) in all {
        set.annotate(&name, value.as_str().unwrap_or_default());
    }
}
