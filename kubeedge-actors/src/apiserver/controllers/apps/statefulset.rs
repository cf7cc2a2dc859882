//! StatefulSets: pods with names that stay, from the first ordinal on.
//!
//! - OrderedReady: a pod is made when all before it are available, and goes when all after it are gone, one at a time.
//! - Parallel: all are made and deleted at once.
//! - RollingUpdate: from the highest ordinal down to `partition`, one at a time, the next when the one before is
//!   available. A pod below the partition is of the former revision, when it is made anew, too.
//! - A pod that has ended is deleted and made again under its name, which it has while the old one exists.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::family::{claim, is_ending};
use super::pods::{available_at, from_template, has_ended, ready_since, set_counts};
use super::revisions::{self, REVISION_HASH, Revision};
use super::{Action, BURST, Family, Plan, Resource};
use crate::apiserver::clock;
use crate::apiserver::kinds::fields::{integer, text};
use crate::apiserver::object::{member, metadata};

/// The label with the name of the pod, by which a Service can select one.
const POD_NAME: &str = "statefulset.kubernetes.io/pod-name";
/// The label with its ordinal.
const POD_INDEX: &str = "apps.kubernetes.io/pod-index";
/// Seconds after its creation at which a pod that ended is replaced, so that one that always fails does so at a bounded
/// rate.
const ENDED_PAUSE: i64 = 10;

/// What a set says, read once.
struct Wish {
    start: i64,
    replicas: i64,
    parallel: bool,
    rolling: bool,
    partition: i64,
    min_ready: i64,
}

impl Wish {
    fn of(set: &Value) -> Self {
        let number = |pointer: &str| integer(set, pointer).unwrap_or_default().max(0);
        Self {
            start: number("/spec/ordinals/start"),
            replicas: integer(set, "/spec/replicas").unwrap_or(1).max(0),
            parallel: text(set, "/spec/podManagementPolicy") == "Parallel",
            rolling: text(set, "/spec/updateStrategy/type") == "RollingUpdate",
            partition: number("/spec/updateStrategy/rollingUpdate/partition"),
            min_ready: number("/spec/minReadySeconds"),
        }
    }

    fn ordinals(&self) -> std::ops::Range<i64> {
        self.start..self.start.saturating_add(self.replicas)
    }
}

/// The ordinal of a pod of `set`.
fn ordinal(set: &Value, pod: &Value) -> Option<i64> {
    let rest = text(pod, "/metadata/name").strip_prefix(text(set, "/metadata/name"))?.strip_prefix('-')?;
    // As it is written: `01` is no ordinal.
    rest.parse().ok().filter(|number: &i64| number.to_string() == rest)
}

/// Makes, replaces or deletes what is next, says what there is.
pub(super) fn decide(family: &Family, now: i64, _refused: Option<&str>) -> Plan {
    let set = &family.owner;
    let mut plan = Plan::default();
    let mine = claim(set, Resource::Pods, &family.pods, &mut plan);
    if is_ending(set) {
        return plan;
    }
    let wish = Wish::of(set);
    let update = revisions::present(family, &mut plan);
    let current = current(family, &update);
    let pods: BTreeMap<i64, &Value> = mine.iter().filter_map(|pod| Some((ordinal(set, pod)?, pod))).collect();
    let mut step = Step { family, wish: &wish, update: &update, current: &current, now, plan };
    step.take(&pods);
    let mut plan = step.plan;
    let mut changed = set.clone();
    changed["status"] = status(set, &wish, &update, &current, &pods, now, &mut plan);
    if changed != *set {
        plan.actions.push(Action::Put(Resource::StatefulSets, changed));
    }
    let of_pods = mine.iter().filter_map(|pod| pod["metadata"]["labels"][REVISION_HASH].as_str());
    let live: Vec<&str> = of_pods.chain([update.hash.as_str(), current.as_str()]).collect();
    revisions::clean_up(family, &live, &mut plan);
    plan
}

/// The hash of the revision that pods below the partition are of.
fn current(family: &Family, update: &Revision) -> String {
    let name = text(&family.owner, "/status/currentRevision");
    let found = family.revisions.iter().find(|revision| text(revision, "/metadata/name") == name);
    found.map_or_else(|| update.hash.clone(), |revision| revisions::hash_of(revision).to_owned())
}

fn is_of(pod: &Value, hash: &str) -> bool {
    pod["metadata"]["labels"][REVISION_HASH] == hash
}

/// One look at one set.
struct Step<'a> {
    family: &'a Family,
    wish: &'a Wish,
    update: &'a Revision,
    current: &'a str,
    now: i64,
    plan: Plan,
}

impl Step<'_> {
    fn is_available(&mut self, pod: &Value) -> bool {
        let at = available_at(pod, self.wish.min_ready);
        if at.is_some_and(|at| at > self.now) {
            self.plan.again(at);
        }
        !is_ending(pod) && at.is_some_and(|at| at <= self.now)
    }

    fn delete(&mut self, pod: &Value) {
        self.plan.actions.push(Action::Delete(Resource::Pods, pod.clone()));
    }

    /// First the pods that are wanted, in their order, then those that are too many, then the rollout.
    fn take(&mut self, pods: &BTreeMap<i64, &Value>) {
        let mut made = 0;
        let mut waits = false;
        for number in self.wish.ordinals() {
            let is_ready = match pods.get(&number) {
                None => {
                    if !self.family.closed && made < BURST {
                        made += 1;
                        let pod = self.pod(number);
                        self.plan.actions.push(Action::Create(Resource::Pods, pod));
                    }
                    false
                }
                Some(pod) if has_ended(pod) && !is_ending(pod) => {
                    self.replace(pod);
                    false
                }
                Some(pod) => self.is_available(pod),
            };
            waits |= !is_ready;
            if waits && !self.wish.parallel {
                return;
            }
            if made >= BURST {
                return;
            }
        }
        let surplus: Vec<&Value> = pods
            .iter()
            .rev()
            .filter(|(number, _)| !self.wish.ordinals().contains(number))
            .map(|(_, pod)| *pod)
            .collect();
        if self.wish.parallel {
            for pod in surplus.iter().filter(|pod| !is_ending(pod)).take(BURST) {
                self.delete(pod);
            }
        } else if let Some(last) = surplus.first() {
            // One that is not available does not go while one before it is not: all are, or this is not reached.
            if !is_ending(last) {
                self.delete(last);
            }
            return;
        }
        if self.wish.rolling {
            self.roll(pods);
        }
    }

    /// Replaces the highest pod of a former revision, when those above it are available.
    fn roll(&mut self, pods: &BTreeMap<i64, &Value>) {
        for number in self.wish.ordinals().rev() {
            // The partition counts from the first ordinal, as numbers do.
            if number < self.wish.partition {
                return;
            }
            // One that has ended is replaced already, by one of the new revision.
            let Some(pod) = pods.get(&number).filter(|pod| !has_ended(pod)) else { return };
            if !is_of(pod, &self.update.hash) {
                if !is_ending(pod) {
                    self.delete(pod);
                }
                return;
            }
            if !self.is_available(pod) {
                return;
            }
        }
    }

    fn replace(&mut self, pod: &Value) {
        let created = clock::parse(text(pod, "/metadata/creationTimestamp")).unwrap_or_default();
        if created + ENDED_PAUSE <= self.now {
            self.delete(pod);
        } else {
            self.plan.again(Some(created + ENDED_PAUSE));
        }
    }

    /// A pod for an ordinal: of the former revision below the partition, as long as that is kept.
    fn pod(&self, number: i64) -> Value {
        let set = &self.family.owner;
        let old = (self.wish.rolling && number < self.wish.partition && self.current != self.update.hash)
            .then(|| revisions::with_template_of(self.family, self.current))
            .flatten();
        let hash = if old.is_some() { self.current } else { &self.update.hash };
        let mut pod = from_template(old.as_ref().unwrap_or(set));
        let name = format!("{}-{number}", text(set, "/metadata/name"));
        let meta = metadata(&mut pod);
        meta.remove("generateName");
        meta.insert("name".into(), name.as_str().into());
        let labels = member(&mut pod["metadata"], "labels");
        for (label, value) in [(POD_NAME, name.as_str()), (POD_INDEX, &number.to_string()), (REVISION_HASH, hash)] {
            labels.insert(label.into(), value.into());
        }
        let spec = member(&mut pod, "spec");
        spec.insert("hostname".into(), name.into());
        if let Some(service) =
            set["spec"].get("serviceName").filter(|name| !name.as_str().unwrap_or_default().is_empty())
        {
            spec.insert("subdomain".into(), service.clone());
        }
        pod
    }
}

fn status(
    set: &Value,
    wish: &Wish,
    update: &Revision,
    current: &str,
    pods: &BTreeMap<i64, &Value>,
    now: i64,
    plan: &mut Plan,
) -> Value {
    let (mut present, mut ready, mut available, mut of_current, mut of_update) = (0, 0, 0, 0, 0);
    for pod in pods.values() {
        present += 1;
        let is_ready = !has_ended(pod) && ready_since(pod).is_some();
        ready += i64::from(is_ready);
        let at = available_at(pod, wish.min_ready).filter(|_| is_ready);
        available += i64::from(at.is_some_and(|at| at <= now));
        plan.again(at.filter(|at| *at > now));
        if !is_ending(pod) {
            of_current += i64::from(is_of(pod, current));
            of_update += i64::from(is_of(pod, &update.hash));
        }
    }
    let mut status = set["status"].clone();
    // The rollout is over when all there should be are of the new revision and available.
    let over = wish.rolling && of_update == wish.replicas && present == wish.replicas && available == wish.replicas;
    let of_current = if over { of_update } else { of_current };
    set_counts(
        &mut status,
        &[
            ("currentReplicas", of_current),
            ("observedGeneration", integer(set, "/metadata/generation").unwrap_or_default()),
            ("readyReplicas", ready),
            ("updatedReplicas", of_update),
        ],
    );
    status["replicas"] = json!(present);
    status["availableReplicas"] = json!(available);
    status["collisionCount"] = json!(update.collisions);
    status["updateRevision"] = update.name.as_str().into();
    if over || current == update.hash || text(&status, "/currentRevision").is_empty() {
        status["currentRevision"] = update.name.as_str().into();
    }
    status
}

#[cfg(test)]
mod tests;
