//! What is to happen to one container: the question that both the decision and the status answer from.

use std::cmp::Reverse;

use jiff::Timestamp;

use super::{
    decide::StopCause,
    history::{Failure, History, later},
    plan::{ContainerPlan, PodPlan, RestartPolicy, Role},
    sizes::Resize,
};
use crate::edged::{
    probes::ProbeKind,
    runtime::{Instance, InstanceState, ObservedPod, Sandbox},
};

/// What is to happen to one container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict<'a> {
    /// It runs as it should.
    Running(&'a Instance),
    /// It runs with another image, or with resources that it cannot be given while it runs: stop it, then start it anew.
    Replace(&'a Instance, StopCause),
    /// It runs, and this probe says that it should not: stop it, then start it anew unless that is never done.
    Unhealthy(&'a Instance, ProbeKind),
    /// Nobody knows whether it runs: stop it to make sure.
    Unclear(&'a Instance),
    /// It may start now.
    Due {
        /// Number of the new instance.
        attempt: u32,
        /// When the last one ended.
        ended_at: Option<Timestamp>,
    },
    /// It crashed and waits.
    CrashLoop {
        /// Until when.
        until: Timestamp,
    },
    /// Starting it failed and the next try waits.
    Failed {
        /// Why, and until when.
        failure: &'a Failure,
    },
    /// It ended and its restart policy wants it no more.
    Ended(&'a Instance),
}

/// The sandbox that containers run in: the newest that is ready.
pub fn current_sandbox(observed: &ObservedPod) -> Option<&Sandbox> {
    observed
        .sandboxes
        .iter()
        .filter(|sandbox| sandbox.ready)
        .max_by(|a, b| (a.attempt, a.created_at, &a.id).cmp(&(b.attempt, b.created_at, &b.id)))
}

/// The instances of a container, newest first, without those that were never started.
pub fn instances<'a>(observed: &'a ObservedPod, name: &str) -> Vec<&'a Instance> {
    let mut found: Vec<&Instance> = observed
        .instances
        .iter()
        .filter(|instance| instance.name == name && instance.state != InstanceState::Created)
        .collect();
    found.sort_by_key(|instance| Reverse((instance.attempt, instance.created_at, instance.id.as_str())));
    found
}

/// The newest instance that counts: one that may run, else the newest the runtime or the history knows.
///
/// Of an init container only those in the current sandbox count: a new sandbox is initialised anew.
pub fn newest<'a>(container: &ContainerPlan, observed: &'a ObservedPod, history: &'a History) -> Option<&'a Instance> {
    let found = instances(observed, &container.name);
    let counts = |instance: &&'a Instance| {
        container.role != Role::Init
            || current_sandbox(observed).is_none_or(|sandbox| sandbox.id == instance.sandbox_id)
    };
    if let Some(alive) = found.iter().copied().find(|instance| instance.state.may_run()) {
        return Some(alive);
    }
    let remembered = history.container(&container.name).and_then(|known| known.last_ended.as_ref());
    found.into_iter().chain(remembered).filter(counts).max_by_key(|instance| (instance.attempt, instance.created_at))
}

/// Whether an ended instance is not to be followed by another.
fn ended_for_good(plan: &PodPlan, role: Role, instance: &Instance) -> bool {
    match (role, plan.restart_policy) {
        (Role::Sidecar, _) => false,
        (Role::Ephemeral, _) => true,
        (Role::Init, _) if instance.exit_code == 0 => true,
        (_, RestartPolicy::Never) => true,
        (_, RestartPolicy::OnFailure) => instance.exit_code == 0,
        (_, RestartPolicy::Always) => false,
    }
}

/// The verdict on one container, without regard to the others.
pub fn verdict<'a>(
    plan: &PodPlan,
    container: &ContainerPlan,
    observed: &'a ObservedPod,
    history: &'a History,
    now: Timestamp,
) -> Verdict<'a> {
    let newest = newest(container, observed, history);
    let mut until_crash = None;
    if let Some(instance) = newest {
        match instance.state {
            InstanceState::Running => {
                let asked = instance.spec_image.as_ref().is_none_or(|image| *image == container.image);
                return match history.checked(instance).failed(&container.probes) {
                    _ if !asked => Verdict::Replace(instance, StopCause::Changed),
                    Some(kind) => Verdict::Unhealthy(instance, kind),
                    None => match container.resources.resize(history.sizes(instance)) {
                        Some(Resize::Restart) => Verdict::Replace(instance, StopCause::Resized),
                        Some(Resize::InPlace(_)) | None => Verdict::Running(instance),
                    },
                };
            }
            InstanceState::Unknown => return Verdict::Unclear(instance),
            InstanceState::Created | InstanceState::Exited => {}
        }
        if ended_for_good(plan, container.role, instance) && !history.replaced.contains(&instance.id) {
            return Verdict::Ended(instance);
        }
        let ended_at = end_of(instance);
        let crash_until = |ended_at| history.crash_until(&container.name, &container.image, ended_at);
        // One that was ended for its successor is followed at once, if the one before it ended long enough ago.
        let before = instances(observed, &container.name).into_iter().find(|other| other.attempt < instance.attempt);
        let at_once = history.replaced.contains(&instance.id)
            && before.and_then(|before| crash_until(end_of(before))).is_none_or(|until| until <= ended_at);
        until_crash = crash_until(ended_at).filter(|until| *until > now && !at_once);
    }
    if let Some(failure) = history.failure(&container.name, &container.image)
        && failure.until > now
        && until_crash.is_none_or(|until| until <= failure.until)
    {
        return Verdict::Failed { failure };
    }
    if let Some(until) = until_crash {
        return Verdict::CrashLoop { until };
    }
    let remembered = history.container(&container.name).map_or(0, |known| known.next_attempt);
    let seen = observed
        .instances
        .iter()
        .filter(|instance| instance.name == container.name && instance.state != InstanceState::Created)
        .map(|instance| instance.attempt.saturating_add(1))
        .max()
        .unwrap_or(0);
    let ended_at = newest.map(end_of);
    Verdict::Due { attempt: remembered.max(seen), ended_at }
}

fn end_of(instance: &Instance) -> Timestamp {
    instance.finished_at.unwrap_or(instance.created_at)
}

/// How far the init containers are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Initialization {
    /// All are done.
    Done,
    /// The one at this place in the plan is next.
    At(usize),
    /// The one at this place failed for good.
    Failed(usize),
}

/// How far the init containers are in the current sandbox.
pub fn initialization(plan: &PodPlan, observed: &ObservedPod, history: &History, now: Timestamp) -> Initialization {
    if apps_ended(plan, observed, history, now) {
        return Initialization::Done;
    }
    let sandbox = current_sandbox(observed);
    // Once a later container was started in this sandbox, the earlier ones are done, whatever became of their traces.
    let lasting = plan.containers.iter().filter(|container| container.role != Role::Ephemeral).count();
    let reached = plan.containers[..lasting].iter().rposition(|container| {
        let here = |instance: &&Instance| sandbox.is_some_and(|sandbox| sandbox.id == instance.sandbox_id);
        instances(observed, &container.name).iter().any(here)
    });
    for (at, container) in plan.containers.iter().enumerate() {
        if container.role == Role::App {
            break;
        }
        if reached.is_some_and(|reached| at < reached) {
            continue;
        }
        match (container.role, verdict(plan, container, observed, history, now)) {
            (Role::Sidecar, Verdict::Running(instance)) if history.checked(instance).has_started(&container.probes) => {
            }
            (Role::Init, Verdict::Ended(instance)) if instance.exit_code == 0 => {}
            (Role::Init, Verdict::Ended(_)) => return Initialization::Failed(at),
            _ => return Initialization::At(at),
        }
    }
    Initialization::Done
}

fn apps_ended(plan: &PodPlan, observed: &ObservedPod, history: &History, now: Timestamp) -> bool {
    plan.role(Role::App).all(|container| matches!(verdict(plan, container, observed, history, now), Verdict::Ended(_)))
}

/// When the time of a pod is over that may be active for so long only.
pub fn deadline(plan: &PodPlan, history: &History) -> Option<Timestamp> {
    Some(later(history.started_at?, plan.active_deadline?))
}

/// Whether its time is over, and it had not ended by itself before.
pub fn is_expired(plan: &PodPlan, observed: &ObservedPod, history: &History, now: Timestamp) -> bool {
    let Some(deadline) = deadline(plan, history).filter(|deadline| *deadline <= now) else { return false };
    let in_time = |container| newest(container, observed, history).is_some_and(|last| end_of(last) < deadline);
    !(apps_ended(plan, observed, history, now) && plan.role(Role::App).all(in_time))
}

/// Whether nothing of the pod will run again.
pub fn is_over(plan: &PodPlan, observed: &ObservedPod, history: &History, now: Timestamp) -> bool {
    is_expired(plan, observed, history, now)
        || apps_ended(plan, observed, history, now)
        || matches!(initialization(plan, observed, history, now), Initialization::Failed(_))
}
