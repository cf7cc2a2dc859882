//! DaemonSets: one pod on each node that fits.
//!
//! A pod is made with an affinity to its node alone and is bound by the scheduler; it tolerates what every daemon does,
//! so that it stays on a node that is cordoned or out of reach. A rollout replaces pods node by node: with
//! `maxUnavailable` the old pod goes before the new one comes, with `maxSurge` after it is available. A node that is out
//! of reach counts as unavailable.

mod nodes;

use std::collections::BTreeMap;

use serde_json::Value;

use super::deployment::share;
use super::family::{claim, is_ending};
use super::pods::{available_at, from_template, has_ended, ready_since, set_counts};
use super::revisions::{self, REVISION_HASH, Revision};
use super::{Action, BURST, Family, Plan, Resource};
use crate::apiserver::clock;
use crate::apiserver::kinds::fields::{integer, text};
use crate::apiserver::object::member;
use nodes::Wanted;

/// Seconds after its creation at which a pod that failed is replaced, so that one that always fails does so at a bounded
/// rate.
const FAILED_PAUSE: i64 = 10;

/// The pods on one node.
#[derive(Default)]
struct OnNode<'a> {
    /// Of the present template, the oldest first.
    new: Vec<&'a Value>,
    /// Of former ones.
    old: Vec<&'a Value>,
    /// Ended, or ending.
    over: Vec<&'a Value>,
}

impl OnNode<'_> {
    fn is_empty(&self) -> bool {
        self.new.is_empty() && self.old.is_empty() && self.over.is_empty()
    }
}

/// Pods to delete and nodes to make one for, the most urgent first.
#[derive(Default)]
struct Steps<'a> {
    delete: Vec<&'a Value>,
    create: Vec<&'a str>,
}

/// Makes what is missing, deletes what should not be there, goes on with a rollout, says what there is.
pub(super) fn decide(family: &Family, now: i64, _refused: Option<&str>) -> Plan {
    let set = &family.owner;
    let mut plan = Plan::default();
    let mine = claim(set, Resource::Pods, &family.pods, &mut plan);
    if is_ending(set) {
        return plan;
    }
    let revision = revisions::present(family, &mut plan);
    let mut on: BTreeMap<&str, OnNode<'_>> = BTreeMap::new();
    let mut by_age: Vec<&Value> = mine.iter().collect();
    by_age.sort_by_key(|pod| (text(pod, "/metadata/creationTimestamp"), text(pod, "/metadata/name")));
    for pod in by_age {
        let here = on.entry(nodes::node_of(pod)).or_default();
        match () {
            () if is_ending(pod) || has_ended(pod) => here.over.push(pod),
            () if is_of(pod, &revision) => here.new.push(pod),
            () => here.old.push(pod),
        }
    }
    let spec = nodes::spec(set);
    let wanted: Vec<(&str, Wanted)> = family
        .nodes
        .iter()
        .filter(|node| !is_ending(node))
        .map(|node| (text(node, "/metadata/name"), nodes::wanted(&spec, node)))
        .collect();
    let limits = Limits::of(set, wanted.iter().filter(|(_, wanted)| *wanted == Wanted::Run).count());
    let mut steps = Steps::default();
    let none = OnNode::default();
    for (node, wanted) in &wanted {
        manage(node, *wanted, on.get(node).unwrap_or(&none), &limits, now, &mut steps, &mut plan);
    }
    if limits.rolling {
        let running = wanted.iter().filter(|(_, wanted)| *wanted == Wanted::Run);
        let here: Vec<(&str, &OnNode<'_>)> = running.map(|(node, _)| (*node, on.get(node).unwrap_or(&none))).collect();
        roll(&here, &limits, now, &mut steps);
    }
    let gone = steps.delete.into_iter().take(BURST).map(|pod| Action::Delete(Resource::Pods, pod.clone()));
    plan.actions.extend(gone);
    if !family.closed {
        let made = steps.create.into_iter().take(BURST);
        plan.actions.extend(made.map(|node| Action::Create(Resource::Pods, pod_for(set, &spec, node, &revision))));
    }
    finish(family, &revision, &mine, &wanted, &on, &limits, now, &mut plan);
    plan
}

/// The rest of a plan: status, and revisions that are not needed any more.
#[expect(clippy::too_many_arguments, reason = "everything that was found out about one set")]
fn finish(
    family: &Family,
    revision: &Revision,
    mine: &[Value],
    wanted: &[(&str, Wanted)],
    on: &BTreeMap<&str, OnNode<'_>>,
    limits: &Limits,
    now: i64,
    plan: &mut Plan,
) {
    let set = &family.owner;
    let mut changed = set.clone();
    changed["status"] = status(set, revision, wanted, on, limits, now, plan);
    if changed != *set {
        plan.actions.push(Action::Put(Resource::DaemonSets, changed));
    }
    let live: Vec<&str> = mine
        .iter()
        .filter_map(|pod| pod["metadata"]["labels"][REVISION_HASH].as_str())
        .chain([revision.hash.as_str()])
        .collect();
    revisions::clean_up(family, &live, plan);
}

/// How fast a rollout may go.
struct Limits {
    rolling: bool,
    unavailable: usize,
    surge: usize,
    min_ready: i64,
}

impl Limits {
    fn of(set: &Value, nodes: usize) -> Self {
        let whole = i64::try_from(nodes).unwrap_or(i64::MAX);
        let update = &set["spec"]["updateStrategy"]["rollingUpdate"];
        let number = |value: &Value| usize::try_from(share(value, whole, true)).unwrap_or_default();
        let (unavailable, surge) = (number(&update["maxUnavailable"]), number(&update["maxSurge"]));
        Self {
            rolling: text(set, "/spec/updateStrategy/type") == "RollingUpdate",
            unavailable: if unavailable == 0 && surge == 0 { 1 } else { unavailable },
            surge,
            min_ready: integer(set, "/spec/minReadySeconds").unwrap_or_default(),
        }
    }

    fn is_available(&self, pod: &Value, now: i64) -> bool {
        available_at(pod, self.min_ready).is_some_and(|at| at <= now)
    }
}

fn is_of(pod: &Value, revision: &Revision) -> bool {
    pod["metadata"]["labels"][REVISION_HASH] == revision.hash.as_str()
}

fn pod_for(set: &Value, spec: &Value, node: &str, revision: &Revision) -> Value {
    let mut pod = from_template(set);
    pod["spec"] = spec.clone();
    nodes::place(&mut pod, node);
    member(&mut pod["metadata"], "labels").insert(REVISION_HASH.into(), revision.hash.as_str().into());
    pod
}

/// Brings one node to one pod, or none.
fn manage<'a>(
    node: &'a str,
    wanted: Wanted,
    here: &OnNode<'a>,
    limits: &Limits,
    now: i64,
    steps: &mut Steps<'a>,
    plan: &mut Plan,
) {
    let running = here.new.iter().chain(&here.old);
    if wanted == Wanted::Leave {
        steps.delete.extend(running.chain(here.over.iter().filter(|pod| !is_ending(pod))));
        return;
    }
    if wanted == Wanted::Run && here.is_empty() {
        steps.create.push(node);
    }
    for pod in here.over.iter().filter(|pod| !is_ending(pod)) {
        let created = clock::parse(text(pod, "/metadata/creationTimestamp")).unwrap_or_default();
        if created + FAILED_PAUSE <= now {
            steps.delete.push(pod);
        } else {
            plan.again(Some(created + FAILED_PAUSE));
        }
    }
    steps.delete.extend(here.new.iter().skip(1).chain(here.old.iter().skip(1)));
    if let (Some(new), Some(old)) = (here.new.first(), here.old.first()) {
        // Both at once only while a rollout surges here. Where it cannot go on, the one that serves stays.
        if wanted == Wanted::Stay {
            steps.delete.push(if limits.is_available(new, now) { old } else { new });
        } else if limits.surge == 0 || !limits.rolling {
            steps.delete.push(old);
        }
    }
}

/// Goes on with the rollout over `nodes`.
fn roll<'a>(nodes: &[(&'a str, &OnNode<'a>)], limits: &Limits, now: i64, steps: &mut Steps<'a>) {
    let available = |pod: &Value| limits.is_available(pod, now);
    // What serves on a node: a new pod or an old one.
    let serves = |here: &OnNode<'_>| here.new.iter().chain(&here.old).any(|pod| available(pod));
    let mut unavailable = nodes.iter().filter(|(_, here)| !serves(here)).count();
    let mut surging = nodes.iter().filter(|(_, here)| !here.new.is_empty() && !here.old.is_empty()).count();
    for (node, here) in nodes {
        let (Some(old), new) = (here.old.first(), here.new.first()) else { continue };
        match (limits.surge, new) {
            // Nothing is lost with one that does not serve.
            (0, None) if !available(old) => steps.delete.push(old),
            (0, None) if unavailable < limits.unavailable => {
                unavailable += 1;
                steps.delete.push(old);
            }
            (0, _) => {}
            (_, Some(new)) if available(new) => steps.delete.push(old),
            (_, Some(_)) => {}
            (surge, None) if here.over.is_empty() && (surging < surge || !available(old)) => {
                surging += 1;
                steps.create.push(node);
            }
            (_, None) => {}
        }
    }
}

fn status(
    set: &Value,
    revision: &Revision,
    wanted: &[(&str, Wanted)],
    on: &BTreeMap<&str, OnNode<'_>>,
    limits: &Limits,
    now: i64,
    plan: &mut Plan,
) -> Value {
    let (mut desired, mut current, mut misplaced) = (0, 0, 0);
    let (mut ready, mut available, mut updated) = (0, 0, 0);
    for (node, wanted) in wanted {
        let here = on.get(node);
        let running = here.map(|here| here.old.iter().chain(&here.new).collect::<Vec<_>>()).unwrap_or_default();
        if *wanted != Wanted::Run {
            misplaced += i64::from(!running.is_empty());
            continue;
        }
        desired += 1;
        current += i64::from(here.is_some_and(|here| !here.is_empty()));
        ready += i64::from(running.iter().any(|pod| ready_since(pod).is_some()));
        available += i64::from(running.iter().any(|pod| limits.is_available(pod, now)));
        updated += i64::from(here.is_some_and(|here| !here.new.is_empty()));
        let next = running.iter().filter_map(|pod| available_at(pod, limits.min_ready)).filter(|at| *at > now).min();
        plan.again(next);
    }
    let mut status = set["status"].clone();
    set_counts(
        &mut status,
        &[
            ("numberAvailable", available),
            ("numberUnavailable", desired - available),
            ("observedGeneration", integer(set, "/metadata/generation").unwrap_or_default()),
            ("updatedNumberScheduled", updated),
        ],
    );
    for (field, count) in [
        ("currentNumberScheduled", current),
        ("desiredNumberScheduled", desired),
        ("numberMisscheduled", misplaced),
        ("numberReady", ready),
    ] {
        status[field] = count.into();
    }
    if revision.collisions > 0 {
        status["collisionCount"] = revision.collisions.into();
    }
    status
}

#[cfg(test)]
mod tests;
