//! The decision: from what is wanted, what is there and what happened before to what to do next.

use std::cmp::Reverse;

use jiff::Timestamp;

use super::{
    history::{History, Reason, Step},
    plan::{ContainerPlan, PodPlan, RestartPolicy, Role},
    sizes::{Resize, Sizes},
    verdict::{Initialization, Verdict, current_sandbox, deadline, initialization, instances, is_over, verdict},
};
use crate::edged::{
    probes::ProbeKind,
    runtime::{Instance, InstanceState, ObservedPod, Sandbox},
};

/// What is wanted of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// It should run, or have run.
    Run,
    /// It should end and leave nothing behind.
    End {
        /// Seconds that its containers may take.
        grace_seconds: u32,
    },
}

/// How the pod's volumes stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VolumeState {
    /// Not set up since this worker began; there may be some from before.
    Unknown,
    /// Set up.
    Ready,
    /// Taken down, nothing is left.
    Gone,
}

/// One step. Steps of one decision are done in order; stops of containers side by side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Set up the volumes.
    SetUpVolumes,
    /// Make the sandbox.
    RunSandbox {
        /// Its number.
        attempt: u32,
    },
    /// Fetch the image if need be, make the container and start it.
    Start {
        /// The container.
        container: String,
        /// Number of the instance.
        attempt: u32,
        /// Where.
        sandbox_id: String,
        /// When the last instance ended.
        ended_at: Option<Timestamp>,
    },
    /// Ask a container to end, kill it after the grace period.
    StopContainer {
        /// The instance.
        id: String,
        /// The container.
        container: String,
        /// Seconds it may take.
        grace_seconds: u32,
        /// Why.
        why: StopCause,
        /// Instances that end before this one is asked to, as long as there is time.
        after: Vec<String>,
    },
    /// Give containers that run other resources, in place.
    Resize {
        /// Which, and what.
        containers: Vec<Fitting>,
    },
    /// Remove a container that does not run, and its log.
    RemoveContainer {
        /// The instance.
        id: String,
        /// The container.
        container: String,
        /// Number of the instance.
        attempt: u32,
    },
    /// Release a sandbox's network and end its processes.
    StopSandbox {
        /// The sandbox.
        id: String,
    },
    /// Remove a stopped sandbox.
    RemoveSandbox {
        /// The sandbox.
        id: String,
    },
    /// Take the volumes and the pod's directories down.
    TearDownVolumes,
    /// Nothing of the pod is left: say so and end.
    Finish,
}

/// A container that runs and what it is to have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fitting {
    /// The instance.
    pub id: String,
    /// The container.
    pub container: String,
    /// What it has.
    pub from: Sizes,
    /// What it is to have.
    pub to: Sizes,
}

/// Why a container is stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopCause {
    /// Its pod ends, or it is in nobody's plan.
    Ends,
    /// Its image in the spec is another one by now.
    Changed,
    /// Other resources take a restart.
    Resized,
    /// The hook after its start failed.
    PostStart,
    /// A probe failed.
    Probe {
        /// Which.
        kind: ProbeKind,
        /// Whether it is started again.
        restarts: bool,
    },
}

impl StopCause {
    /// Whether the instance is followed by another one, whatever the restart policy says about how it ended.
    pub fn is_replaced(self) -> bool {
        matches!(self, Self::Changed | Self::Resized | Self::Probe { restarts: true, .. })
    }

    /// Kubelet's words for it.
    pub fn message(self, container: &str) -> String {
        match self {
            Self::Ends => format!("Stopping container {container}"),
            Self::Changed => format!("Container {container} definition changed, will be restarted"),
            Self::Resized => format!("Container {container} resize requires restart"),
            Self::PostStart => "FailedPostStartHook".to_owned(),
            Self::Probe { kind, restarts } => {
                let which = if kind == ProbeKind::Startup { "startup" } else { "liveness" };
                let then = if restarts { ", will be restarted" } else { "" };
                format!("Container {container} failed {which} probe{then}")
            }
        }
    }
}

/// Everything a decision depends on.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a> {
    /// The pod.
    pub plan: &'a PodPlan,
    /// What is wanted.
    pub want: Want,
    /// What the runtime has.
    pub observed: &'a ObservedPod,
    /// What happened before.
    pub history: &'a History,
    /// The volumes.
    pub volumes: VolumeState,
    /// The time.
    pub now: Timestamp,
}

/// What to do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decision {
    /// The next steps. None: nothing to do until something changes or `wake_at`.
    pub actions: Vec<Action>,
    /// When to decide again although nothing changed.
    pub wake_at: Option<Timestamp>,
    /// Containers whose turn it is and that wait.
    pub waits: Vec<Wait>,
}

/// What a container waits for before it is started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wait {
    /// It crashed.
    Crash {
        /// The container.
        container: String,
        /// Until when.
        until: Timestamp,
    },
    /// Starting it failed.
    Failed {
        /// The container.
        container: String,
        /// Until when.
        until: Timestamp,
        /// Why.
        reason: Reason,
    },
}

impl Decision {
    fn act(actions: Vec<Action>) -> Self {
        Self { actions, ..Self::default() }
    }

    fn wait_until(&mut self, at: Timestamp) {
        self.wake_at = Some(self.wake_at.map_or(at, |known| known.min(at)));
    }
}

/// Decides. A pure function: the same input gives the same decision, and doing a decided step twice does no harm.
pub fn decide(input: &Input<'_>) -> Decision {
    if let Some(failed) = input.history.step(Step::CleanUp)
        && failed.until > input.now
    {
        return Decision { wake_at: Some(failed.until), ..Decision::default() };
    }
    match input.want {
        Want::Run => {
            let mut decision = run(input);
            let deadline = deadline(input.plan, input.history).filter(|deadline| *deadline > input.now);
            if let Some(deadline) = deadline
                && !is_over(input.plan, input.observed, input.history, input.now)
            {
                decision.wait_until(deadline);
            }
            decision
        }
        Want::End { grace_seconds } => end(input, grace_seconds),
    }
}

fn run(input: &Input<'_>) -> Decision {
    let Input { plan, observed, history, now, .. } = *input;
    let current = current_sandbox(observed);

    let strays = strays(input, current);
    if !strays.is_empty() {
        return Decision::act(strays);
    }
    if let Some(failed) = &history.failed {
        return Decision::act(wind_up(input, current, failed.grace_seconds));
    }
    if is_over(plan, observed, history, now) {
        return Decision::act(wind_up(input, current, plan.grace_seconds));
    }

    let mut decision = Decision::default();
    for container in &plan.containers {
        match verdict(plan, container, observed, history, now) {
            Verdict::Replace(instance, why) => decision.actions.push(Action::StopContainer {
                id: instance.id.clone(),
                container: instance.name.clone(),
                grace_seconds: plan.grace_seconds,
                why,
                after: Vec::new(),
            }),
            Verdict::Unhealthy(instance, kind) => {
                let own = container.probes.get(kind).and_then(|probe| probe.grace_seconds);
                let restarts = container.role == Role::Sidecar || plan.restart_policy != RestartPolicy::Never;
                decision.actions.push(Action::StopContainer {
                    id: instance.id.clone(),
                    container: instance.name.clone(),
                    grace_seconds: own.unwrap_or(plan.grace_seconds),
                    why: StopCause::Probe { kind, restarts },
                    after: Vec::new(),
                });
            }
            Verdict::Unclear(instance) => decision.actions.push(stop(instance, plan.grace_seconds)),
            _ => {}
        }
    }
    if !decision.actions.is_empty() {
        return decision;
    }
    let containers = misfits(input);
    if !containers.is_empty() {
        try_step(input, Step::Resize, Action::Resize { containers }, &mut decision);
        if !decision.actions.is_empty() {
            return decision;
        }
    }

    let startable = startable(input, &mut decision);
    if startable.is_empty() && (current.is_some() || decision.wake_at.is_some()) {
        decision.actions = garbage(input, current);
        // Volumes are kept ready beside running containers, for their next start and for refreshed contents.
        if decision.actions.is_empty() && input.volumes != VolumeState::Ready {
            try_step(input, Step::Volumes, Action::SetUpVolumes, &mut decision);
        }
        return decision;
    }
    if input.volumes != VolumeState::Ready {
        try_step(input, Step::Volumes, Action::SetUpVolumes, &mut decision);
        return decision;
    }
    match current {
        None => {
            let attempt = observed.sandboxes.iter().map(|sandbox| sandbox.attempt.saturating_add(1)).max().unwrap_or(0);
            try_step(input, Step::Sandbox, Action::RunSandbox { attempt }, &mut decision);
        }
        Some(sandbox) => {
            decision.actions.extend(startable.into_iter().map(|(container, attempt, ended_at)| Action::Start {
                container,
                attempt,
                sandbox_id: sandbox.id.clone(),
                ended_at,
            }));
        }
    }
    decision
}

/// The containers that run as they should but for their resources, which they can be given as they are.
pub(crate) fn misfits(input: &Input<'_>) -> Vec<Fitting> {
    let Input { plan, observed, history, now, .. } = *input;
    let misfit = |container: &ContainerPlan| {
        let Verdict::Running(instance) = verdict(plan, container, observed, history, now) else { return None };
        let from = history.sizes(instance)?;
        let Some(Resize::InPlace(to)) = container.resources.resize(Some(from)) else { return None };
        Some(Fitting { id: instance.id.clone(), container: container.name.clone(), from, to })
    };
    plan.containers.iter().filter_map(misfit).collect()
}

/// Unless the step failed a moment ago.
fn try_step(input: &Input<'_>, step: Step, action: Action, decision: &mut Decision) {
    match input.history.step(step) {
        Some(failed) if failed.until > input.now => decision.wait_until(failed.until),
        _ => decision.actions.push(action),
    }
}

/// What belongs to no place: containers outside of the current sandbox, never-started ones, sandboxes beside it.
fn strays(input: &Input<'_>, current: Option<&Sandbox>) -> Vec<Action> {
    let Input { plan, observed, history, .. } = *input;
    let outside = |instance: &&Instance| current.is_none_or(|sandbox| sandbox.id != instance.sandbox_id);
    let alive: Vec<Action> = observed
        .instances
        .iter()
        .filter(|instance| instance.state.may_run())
        .filter(outside)
        .map(|instance| stop(instance, plan.grace_seconds))
        .collect();
    if !alive.is_empty() {
        return alive;
    }
    let unstarted = observed.instances.iter().filter(|instance| instance.state == InstanceState::Created).map(remove);
    let unreleased = observed
        .sandboxes
        .iter()
        .filter(|sandbox| current.is_none_or(|current| current.id != sandbox.id))
        .filter(|sandbox| sandbox.ready || !history.released.contains(&sandbox.id))
        .map(|sandbox| Action::StopSandbox { id: sandbox.id.clone() });
    unstarted.chain(unreleased).collect()
}

/// The pod is over or has failed: what runs ends, the sandbox's network is released; containers stay for their logs and
/// status.
fn wind_up(input: &Input<'_>, current: Option<&Sandbox>, grace_seconds: u32) -> Vec<Action> {
    let alive = stop_all(input, grace_seconds);
    if !alive.is_empty() {
        return alive;
    }
    if let Some(sandbox) = current {
        return vec![Action::StopSandbox { id: sandbox.id.clone() }];
    }
    garbage(input, None)
}

/// Containers that may start now, with number and the end of the last instance; waits go into the decision.
fn startable(input: &Input<'_>, decision: &mut Decision) -> Vec<(String, u32, Option<Timestamp>)> {
    let Input { plan, observed, history, now, .. } = *input;
    let initialization = initialization(plan, observed, history, now);
    let mut due = Vec::new();
    for (at, container) in plan.containers.iter().enumerate() {
        let its_turn = match (container.role, initialization) {
            (Role::Ephemeral, _) => current_sandbox(observed).is_some(),
            (Role::App, Initialization::Done) => true,
            (Role::App, _) => false,
            (Role::Sidecar, Initialization::Done) => true,
            (Role::Sidecar, Initialization::At(next)) => at <= next,
            (Role::Init, Initialization::At(next)) => at == next,
            (Role::Init, Initialization::Done) | (_, Initialization::Failed(_)) => false,
        };
        if !its_turn {
            continue;
        }
        match verdict(plan, container, observed, history, now) {
            Verdict::Due { attempt, ended_at } => due.push((container.name.clone(), attempt, ended_at)),
            Verdict::CrashLoop { until } => {
                decision.wait_until(until);
                decision.waits.push(Wait::Crash { container: container.name.clone(), until });
            }
            Verdict::Failed { failure } => {
                decision.wait_until(failure.until);
                let (container, until) = (container.name.clone(), failure.until);
                decision.waits.push(Wait::Failed { container, until, reason: failure.reason });
            }
            Verdict::Running(_)
            | Verdict::Replace(..)
            | Verdict::Unhealthy(..)
            | Verdict::Unclear(_)
            | Verdict::Ended(_) => {}
        }
    }
    due
}

/// Ended instances but the newest two of each container (its state and its last state), and sandboxes nobody needs.
fn garbage(input: &Input<'_>, current: Option<&Sandbox>) -> Vec<Action> {
    let Input { plan, observed, history, .. } = *input;
    let mut kept: Vec<&Instance> = Vec::new();
    let mut actions = Vec::new();
    for container in &plan.containers {
        let found = instances(observed, &container.name);
        let (keep, old) = found.split_at(found.len().min(2));
        kept.extend(keep);
        actions.extend(old.iter().filter(|old| old.state == InstanceState::Exited).map(|old| remove(old)));
    }
    if !actions.is_empty() {
        return actions;
    }
    let newest = observed.sandboxes.iter().map(|sandbox| sandbox.attempt).max();
    observed
        .sandboxes
        .iter()
        .filter(|sandbox| current.is_none_or(|current| current.id != sandbox.id))
        .filter(|sandbox| !sandbox.ready && history.released.contains(&sandbox.id))
        .filter(|sandbox| Some(sandbox.attempt) != newest)
        .filter(|sandbox| kept.iter().all(|instance| instance.sandbox_id != sandbox.id))
        .map(|sandbox| Action::RemoveSandbox { id: sandbox.id.clone() })
        .collect()
}

/// Orderly end: app containers, then sidecars, then networks, containers, sandboxes, volumes.
fn end(input: &Input<'_>, grace_seconds: u32) -> Decision {
    let Input { observed, history, .. } = *input;
    let alive = stop_all(input, grace_seconds);
    if !alive.is_empty() {
        return Decision::act(alive);
    }
    let stops: Vec<Action> = observed
        .sandboxes
        .iter()
        .filter(|sandbox| sandbox.ready || !history.released.contains(&sandbox.id))
        .map(|sandbox| Action::StopSandbox { id: sandbox.id.clone() })
        .collect();
    if !stops.is_empty() {
        return Decision::act(stops);
    }
    if !observed.instances.is_empty() {
        return Decision::act(observed.instances.iter().map(remove).collect());
    }
    if !observed.sandboxes.is_empty() {
        let removals = observed.sandboxes.iter().map(|sandbox| Action::RemoveSandbox { id: sandbox.id.clone() });
        return Decision::act(removals.collect());
    }
    if input.volumes != VolumeState::Gone {
        return Decision::act(vec![Action::TearDownVolumes]);
    }
    Decision::act(vec![Action::Finish])
}

/// Everything that may run: sidecars after the others, the one that started last first.
fn stop_all(input: &Input<'_>, grace_seconds: u32) -> Vec<Action> {
    let Input { plan, observed, .. } = *input;
    let place = |instance: &Instance| plan.role(Role::Sidecar).position(|container| container.name == instance.name);
    let mut alive: Vec<&Instance> = observed.instances.iter().filter(|instance| instance.state.may_run()).collect();
    // Sorts are stable, and what is no sidecar comes first.
    alive.sort_by_key(|instance| place(instance).map(Reverse));
    let mut actions: Vec<Action> = Vec::new();
    for (at, instance) in alive.iter().enumerate() {
        let before = alive[..at].iter().filter(|before| place(before) != place(instance));
        let after =
            if place(instance).is_some() { before.map(|before| before.id.clone()).collect() } else { Vec::new() };
        let (id, container) = (instance.id.clone(), instance.name.clone());
        actions.push(Action::StopContainer { id, container, grace_seconds, why: StopCause::Ends, after });
    }
    actions
}

fn stop(instance: &Instance, grace_seconds: u32) -> Action {
    let (id, container) = (instance.id.clone(), instance.name.clone());
    Action::StopContainer { id, container, grace_seconds, why: StopCause::Ends, after: Vec::new() }
}

fn remove(instance: &Instance) -> Action {
    Action::RemoveContainer { id: instance.id.clone(), container: instance.name.clone(), attempt: instance.attempt }
}
