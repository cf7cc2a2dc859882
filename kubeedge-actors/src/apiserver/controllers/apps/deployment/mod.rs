//! Deployments: one ReplicaSet a template, and the way from one to the next.
//!
//! - RollingUpdate: the new set grows as far as `maxSurge` allows, the old ones shrink as far as `maxUnavailable` does.
//!   What is available is counted from the pods themselves, and no set counts more than it may keep.
//! - Recreate: the new set grows when no pod of an old one is left.
//! - A Deployment that is scaled in the middle of a rollout grows and shrinks its sets in proportion.
//! - Revisions are annotations of the sets; `kubectl rollout undo` brings the template of an old set back, which makes
//!   that set the new one, with the highest number.

mod rolling;
mod sets;
mod status;

use serde_json::Value;

use super::family::{claim, is_controlled_by, is_ending};
use super::{Action, Family, Plan, Resource};
use crate::apiserver::kinds::fields::{flag, integer, text};
use crate::apiserver::object::metadata;
pub(super) use rolling::share;
use sets::{Set, Sets};
use status::Outcome;

/// The annotation with the number of a revision.
const REVISION: &str = "deployment.kubernetes.io/revision";

/// What a Deployment says, read once.
#[derive(Clone, Debug)]
struct Wish {
    replicas: i64,
    recreate: bool,
    max_surge: i64,
    max_unavailable: i64,
    paused: bool,
    history: usize,
}

impl Wish {
    fn of(deployment: &Value) -> Self {
        let number = |pointer: &str| integer(deployment, pointer);
        let replicas = number("/spec/replicas").unwrap_or(1).max(0);
        let recreate = text(deployment, "/spec/strategy/type") == "Recreate";
        let update = &deployment["spec"]["strategy"]["rollingUpdate"];
        let (max_surge, max_unavailable) =
            if recreate { (0, 0) } else { rolling::fences(&update["maxSurge"], &update["maxUnavailable"], replicas) };
        Self {
            replicas,
            recreate,
            max_surge,
            max_unavailable,
            paused: flag(deployment, "/spec/paused"),
            history: usize::try_from(number("/spec/revisionHistoryLimit").unwrap_or(10)).unwrap_or(usize::MAX),
        }
    }

    /// Pods there may be during a rollout.
    fn ceiling(&self) -> i64 {
        self.replicas.saturating_add(self.max_surge)
    }
}

/// One step of a Deployment: its sets' sizes, its revision and its status.
pub(super) fn decide(family: &Family, now: i64, refused: Option<&str>) -> Plan {
    let mut plan = Plan::default();
    let mine = claim(&family.owner, Resource::ReplicaSets, &family.sets, &mut plan);
    let wish = Wish::of(&family.owner);
    let mut sets = Sets::new(&family.owner, mine, &family.pods, now);
    let mut outcome = Outcome::default();
    if !is_ending(&family.owner) {
        steps(family, &wish, &mut sets, &mut outcome);
    }
    if let Some(why) = refused {
        outcome.progress = Some(("False", "ReplicaSetCreateError", why.to_owned()));
    }
    let mut changed = family.owner.clone();
    if let Some(revision) = sets.newest().map(Set::revision).filter(|revision| *revision > 0) {
        let annotations = metadata(&mut changed).entry("annotations").or_insert_with(|| serde_json::json!({}));
        annotations[REVISION] = revision.to_string().into();
    }
    let (status, deadline) = status::of(&family.owner, &wish, &sets, &outcome, now);
    changed["status"] = status;
    plan.again(deadline);
    plan.again(sets.next_available());
    if !is_ending(&family.owner) {
        let complete = status::is_complete(&family.owner, &changed["status"]);
        if complete || wish.paused {
            sets.clean_up(wish.history);
        }
    }
    sets.finish(&mut plan);
    if changed != family.owner {
        plan.actions.push(Action::Put(Resource::Deployments, changed));
    }
    plan
}

fn steps(family: &Family, wish: &Wish, sets: &mut Sets, outcome: &mut Outcome) {
    let scaled = sets.all().any(|set| set.replicas() > 0 && set.desired().is_some_and(|then| then != wish.replicas));
    // Recreate has no proportion to keep: the old sets go to nothing anyway.
    let several = wish.recreate && sets.active().len() > 1;
    if wish.paused || (scaled && !several) {
        sets.renumber(&family.owner);
        rolling::scale(wish, sets);
        return;
    }
    if wish.recreate {
        let old: Vec<usize> = sets.old().filter(|index| sets.at(*index).replicas() > 0).collect();
        for index in &old {
            sets.resize(*index, 0, wish);
        }
        // A pod that is ending still holds its ports and files.
        let waits = |set: &Set| {
            let left = |pod: &&Value| !super::pods::has_ended(pod) && is_controlled_by(pod, set.value());
            family.pods.iter().any(|pod| left(&pod))
        };
        if !old.is_empty() || sets.old().any(|index| waits(sets.at(index))) {
            sets.renumber(&family.owner);
            return;
        }
    }
    match sets.renumber(&family.owner) {
        Some(true) => outcome.found(sets),
        Some(false) => {}
        None if family.closed => return,
        None => {
            sets.make(family, wish);
            outcome.made(sets);
            return;
        }
    }
    rolling::roll(wish, sets);
}

#[cfg(test)]
mod tests;
