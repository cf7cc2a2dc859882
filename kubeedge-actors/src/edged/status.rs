//! The status of a pod as kubelet would report it, from the same inputs as the decision.

use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{
        ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting, ContainerStatus,
        HostIP, PodCondition, PodIP, PodStatus, ResourceRequirements,
    },
    apimachinery::pkg::apis::meta::v1::Time,
};

use super::{
    lifecycle::{
        ContainerPlan, Failure, Initialization, Input, ReadinessGate, Reason, RestartPolicy, Role, Step, StopCause,
        Verdict, Want, current_sandbox, initialization, instances, is_expired, misfits, quantities, verdict,
    },
    runtime::{Instance, InstanceState},
};

/// Exit code of a container that is gone without a trace, or was never started when its pod ended (kubelet's).
const UNKNOWN_EXIT_CODE: i32 = 137;

/// The reason of a pod that was active for longer than it may be.
pub const DEADLINE_EXCEEDED: &str = "DeadlineExceeded";
/// The same for a person, in kubelet's words.
pub const DEADLINE_MESSAGE: &str = "Pod was active on the node longer than the specified deadline";

/// What a status says of the node.
#[derive(Clone, Debug, Default)]
pub struct NodeFacts {
    /// The node's addresses, primary first.
    pub host_ips: Vec<String>,
    /// The runtime's name, the scheme of container ids.
    pub runtime_name: String,
}

/// Computes the status. `previous` is the last one that was computed for this pod: conditions that did not change
/// keep their times.
pub fn pod_status(input: &Input<'_>, facts: &NodeFacts, previous: Option<&PodStatus>) -> PodStatus {
    let Input { plan, observed, history, .. } = *input;
    let alive = observed.instances.iter().any(|instance| instance.state.may_run());
    // Said when it is so: what replaces the pod must not begin beside it.
    let expired = !alive && is_expired(plan, observed, history, input.now);
    let ended = !alive && (expired || matches!(input.want, Want::End { .. }) || history.failed.is_some());
    let initialization = initialization(plan, observed, history, input.now);
    let view = View { input, facts, ended, expired, initialization };

    let statuses = |wanted: fn(Role) -> bool| -> Vec<ContainerStatus> {
        plan.containers
            .iter()
            .filter(|container| wanted(container.role))
            .map(|container| view.container(container))
            .collect()
    };
    let init = statuses(|role| matches!(role, Role::Init | Role::Sidecar));
    let ephemeral = statuses(|role| role == Role::Ephemeral);
    let apps = statuses(|role| role == Role::App);
    let phase = view.phase(&apps);
    let sidecars = plan.role(Role::Sidecar).filter_map(|plan| init.iter().find(|status| status.name == plan.name));
    let asked: Vec<&ContainerStatus> = sidecars.chain(&apps).collect();
    let conditions = view.conditions(&asked, phase, previous);
    let in_sandbox = current_sandbox(observed).is_some() || !observed.instances.is_empty();
    let ips = if plan.host_network && in_sandbox { facts.host_ips.clone() } else { history.ips.clone() };
    let failed = history.failed.as_deref();
    // Of the containers of a pod that was never let in there is nothing to say.
    let never_let_in = failed.is_some() && observed.instances.is_empty() && observed.sandboxes.is_empty();
    PodStatus {
        phase: Some(phase.to_owned()),
        reason: failed.map(|failed| failed.reason.clone()).or_else(|| expired.then(|| DEADLINE_EXCEEDED.to_owned())),
        message: failed.map(|failed| failed.message.clone()).or_else(|| expired.then(|| DEADLINE_MESSAGE.to_owned())),
        conditions: Some(conditions),
        init_container_statuses: Some(init).filter(|init| !init.is_empty() && !never_let_in),
        container_statuses: Some(apps).filter(|_| !never_let_in),
        ephemeral_container_statuses: Some(ephemeral).filter(|all| !all.is_empty() && !never_let_in),
        host_ip: facts.host_ips.first().cloned(),
        host_ips: some_list(facts.host_ips.iter().map(|ip| HostIP { ip: ip.clone() })),
        pod_ip: ips.first().cloned(),
        pod_ips: some_list(ips.into_iter().map(|ip| PodIP { ip })),
        start_time: history.started_at.map(Time),
        ..PodStatus::default()
    }
}

/// The status of a pod that cannot run here as it is.
pub fn rejected(reason: &str, message: &str, now: Timestamp) -> PodStatus {
    PodStatus {
        phase: Some("Failed".to_owned()),
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()),
        conditions: Some(
            ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady"]
                .map(|type_| PodCondition {
                    type_: type_.to_owned(),
                    status: "False".to_owned(),
                    reason: Some("PodFailed".to_owned()),
                    last_transition_time: Some(Time(now)),
                    ..PodCondition::default()
                })
                .into(),
        ),
        start_time: Some(Time(now)),
        ..PodStatus::default()
    }
}

fn some_list<T>(items: impl Iterator<Item = T>) -> Option<Vec<T>> {
    let items: Vec<T> = items.collect();
    (!items.is_empty()).then_some(items)
}

/// A condition: its type, whether it holds, reason and message, and since when.
type Row = (&'static str, bool, Option<(&'static str, String)>, Timestamp);

struct View<'a> {
    input: &'a Input<'a>,
    facts: &'a NodeFacts,
    ended: bool,
    expired: bool,
    initialization: Initialization,
}

impl View<'_> {
    fn container(&self, container: &ContainerPlan) -> ContainerStatus {
        let Input { plan, observed, history, now, .. } = *self.input;
        let verdict = verdict(plan, container, observed, history, now);
        let seen = instances(observed, &container.name);
        let remembered = history.container(&container.name).and_then(|known| known.last_ended.as_ref());
        // The newest of all, not only of those that count for the decision.
        let newest = seen.first().copied().or(remembered);
        let before = newest.and_then(|newest| {
            let mut older = seen.iter().copied().chain(remembered).filter(|old| old.attempt < newest.attempt);
            older.find(|old| old.state == InstanceState::Exited)
        });
        let ended = |instance: Option<&Instance>| {
            instance.filter(|instance| instance.state == InstanceState::Exited).map(|ended| self.terminated(ended))
        };

        let (state, last_state) = match (&verdict, newest) {
            (Verdict::Running(instance) | Verdict::Replace(instance, _) | Verdict::Unhealthy(instance, _), _) => {
                (running(instance), ended(before))
            }
            (Verdict::Unclear(_), _) => (waiting("ContainerStatusUnknown", None), ended(before)),
            (_, None) if self.ended => (never_ran(), None),
            (_, Some(newest)) if self.ended => (terminated(self.terminated(newest)), ended(before)),
            (Verdict::Failed { failure }, newest) => {
                (waiting(failure_reason(failure), Some(&failure.message)), ended(newest))
            }
            (Verdict::CrashLoop { until }, newest) => (self.crash_loop(container, newest, *until), ended(newest)),
            (Verdict::Ended(instance), _) => (terminated(self.terminated(instance)), ended(before)),
            (Verdict::Due { .. }, Some(newest)) if newest.state == InstanceState::Exited => {
                (terminated(self.terminated(newest)), ended(before))
            }
            (Verdict::Due { .. }, _) => (self.not_yet(container), None),
        };
        let runs = newest.filter(|_| state.running.is_some());
        let checked = runs.map(|instance| history.checked(instance));
        let present = runs.and_then(|instance| history.sizes(instance));
        let (requests, limits) = container.resources.as_present(present);
        let resources = ResourceRequirements {
            requests: Some(requests).filter(|requests| !requests.is_empty()),
            limits: Some(limits).filter(|limits| !limits.is_empty()),
            claims: None,
        };
        let done = |state: &ContainerState| state.terminated.as_ref().is_some_and(|end| end.exit_code == 0);
        ContainerStatus {
            name: container.name.clone(),
            ready: match container.role {
                Role::Init => done(&state),
                Role::App | Role::Sidecar => checked.is_some_and(|checked| checked.is_ready(&container.probes)),
                Role::Ephemeral => false,
            },
            started: Some(checked.is_some_and(|checked| checked.has_started(&container.probes))),
            restart_count: newest.map_or(0, |instance| i32::try_from(instance.attempt).unwrap_or(i32::MAX)),
            image: newest.map_or_else(|| container.image.clone(), |instance| instance.image.clone()),
            image_id: newest.map_or_else(String::new, |instance| instance.image_id.clone()),
            container_id: newest.map(|instance| self.id(instance)),
            state: Some(state),
            last_state: last_state.map(terminated),
            resources: Some(resources).filter(|resources| *resources != ResourceRequirements::default()),
            allocated_resources: Some(quantities(&container.resources.requests)).filter(|all| !all.is_empty()),
            ..ContainerStatus::default()
        }
    }

    fn id(&self, instance: &Instance) -> String {
        format!("{}://{}", self.facts.runtime_name, instance.id)
    }

    fn terminated(&self, instance: &Instance) -> ContainerStateTerminated {
        let reason = match (instance.reason.as_str(), instance.exit_code) {
            ("", 0) => "Completed",
            ("", _) => "Error",
            (reason, _) => reason,
        };
        ContainerStateTerminated {
            container_id: Some(self.id(instance)),
            exit_code: instance.exit_code,
            reason: Some(reason.to_owned()),
            message: (!instance.message.is_empty()).then(|| instance.message.clone()),
            started_at: instance.started_at.map(Time),
            finished_at: instance.finished_at.map(Time),
            signal: None,
        }
    }

    fn crash_loop(&self, container: &ContainerPlan, newest: Option<&Instance>, until: Timestamp) -> ContainerState {
        if let Some(instance) = newest
            && instance.reason == "StartError"
        {
            return waiting("RunContainerError", Some(&instance.message));
        }
        let ended = newest.and_then(|instance| instance.finished_at).unwrap_or(self.input.now);
        let message = format!(
            "back-off {}s restarting failed container={} pod={}/{}",
            until.duration_since(ended).as_secs(),
            container.name,
            self.input.plan.namespace,
            self.input.plan.name
        );
        waiting("CrashLoopBackOff", Some(&message))
    }

    /// Waiting for its turn: for volumes and sandbox, or for init containers.
    fn not_yet(&self, container: &ContainerPlan) -> ContainerState {
        let history = self.input.history;
        let failed = history.step(Step::Sandbox).or(history.step(Step::Volumes));
        let behind_init = container.role == Role::App && self.input.plan.role(Role::Init).next().is_some();
        let reason = if behind_init { "PodInitializing" } else { "ContainerCreating" };
        waiting(reason, failed.map(|failed| failed.message.as_str()))
    }

    fn phase(&self, apps: &[ContainerStatus]) -> &'static str {
        let (mut running, mut stopped, mut succeeded, mut waiting) = (0, 0, 0, 0);
        for status in apps {
            let state = status.state.as_ref();
            if state.is_some_and(|state| state.running.is_some()) {
                running += 1;
            } else if let Some(end) = state.and_then(|state| state.terminated.as_ref()) {
                stopped += 1;
                succeeded += usize::from(end.exit_code == 0);
            } else if status.last_state.as_ref().is_some_and(|last| last.terminated.is_some()) {
                stopped += 1;
            } else {
                waiting += 1;
            }
        }
        if self.ended && self.input.history.failed.is_some() {
            return "Failed";
        }
        let policy = self.input.plan.restart_policy;
        if self.expired {
            return "Failed";
        }
        match self.initialization {
            Initialization::Failed(_) => return "Failed",
            Initialization::At(_) if !self.ended && running == 0 => return "Pending",
            _ => {}
        }
        if waiting > 0 {
            return "Pending";
        }
        if running > 0 {
            return "Running";
        }
        match (stopped == succeeded, policy) {
            (true, _) if self.ended => "Succeeded",
            (false, _) if self.ended => "Failed",
            (_, RestartPolicy::Always) => "Running",
            (true, _) => "Succeeded",
            (false, RestartPolicy::Never) => "Failed",
            (false, RestartPolicy::OnFailure) => "Running",
        }
    }

    /// While containers have other resources than the spec wants for them: why that is.
    fn resize_conditions(&self) -> Vec<Row> {
        let Input { plan, observed, history, now, .. } = *self.input;
        if self.ended {
            return Vec::new();
        }
        let pending = history.pending_resize.as_deref();
        let pending = pending.map(|pending| ("PodResizePending", pending.reason(), pending.message.clone()));
        let restarts = |container: &ContainerPlan| {
            let verdict = verdict(plan, container, observed, history, now);
            matches!(verdict, Verdict::Replace(_, StopCause::Resized))
        };
        let under_way = !misfits(self.input).is_empty() || plan.containers.iter().any(restarts);
        let failed = history.step(Step::Resize);
        let under_way = under_way.then(|| match failed {
            Some(failed) => ("PodResizeInProgress", "Error", failed.message.clone()),
            None => ("PodResizeInProgress", "", String::new()),
        });
        let row = |(type_, reason, message)| (type_, true, Some((reason, message)), now);
        pending.into_iter().chain(under_way).map(row).collect()
    }

    /// `asked`: the containers that must be ready for the pod to be ready.
    fn conditions(&self, asked: &[&ContainerStatus], phase: &str, previous: Option<&PodStatus>) -> Vec<PodCondition> {
        let Input { plan, observed, history, now, .. } = *self.input;
        let taken_up = history.started_at.unwrap_or(now);
        let last = |time: fn(&Instance) -> Option<Timestamp>| {
            observed.instances.iter().filter_map(time).max().unwrap_or(taken_up)
        };
        let completed = phase == "Succeeded";

        let unready: Vec<&str> =
            asked.iter().filter(|status| !status.ready).map(|status| status.name.as_str()).collect();
        let initialized = matches!(self.initialization, Initialization::Done);
        let sandbox = current_sandbox(observed);
        let containers_ready = unready.is_empty() && initialized;

        let containers_not_ready = match (containers_ready, completed, phase) {
            (true, ..) => None,
            (_, true, _) => Some(("PodCompleted", String::new())),
            (.., "Failed") => Some(("PodFailed", String::new())),
            _ => Some(("ContainersNotReady", format!("containers with unready status: [{}]", unready.join(" ")))),
        };
        let not_initialized = (!initialized).then(|| {
            let left: Vec<&str> = match self.initialization {
                Initialization::At(at) | Initialization::Failed(at) => plan.containers[at..]
                    .iter()
                    .filter(|container| matches!(container.role, Role::Init | Role::Sidecar))
                    .map(|container| container.name.as_str())
                    .collect(),
                Initialization::Done => Vec::new(),
            };
            ("ContainersNotInitialized", format!("containers with incomplete status: [{}]", left.join(" ")))
        });
        // What keeps the pod from having its volumes and its sandbox, or from losing them.
        let hindered = [
            (Step::CleanUp, "FailedKillPod"),
            (Step::Volumes, "FailedMount"),
            (Step::Sandbox, "FailedCreatePodSandBox"),
        ]
        .into_iter()
        .find_map(|(step, reason)| Some((reason, history.step(step)?.message.clone())));
        let closed: Vec<String> = plan.readiness_gates.iter().filter_map(closed_gate).collect();
        let ready = containers_ready && closed.is_empty();
        let not_ready = match &containers_not_ready {
            None if !ready => Some(("ReadinessGatesNotReady", closed.join(", "))),
            why => why.clone(),
        };
        // The times follow from what was observed, so that a restart of edgecore does not change them.
        // A probe's word counts from when it was heard.
        let probed =
            previous.is_some() && plan.containers.iter().any(|container| container.probes.iter().next().is_some());
        let since_containers =
            if probed { now } else { last(if containers_ready { |i| i.started_at } else { |i| i.finished_at }) };
        let gated = previous.is_some() && !plan.readiness_gates.is_empty();
        let since_ready = if gated { now } else { since_containers };
        let since_initialized = observed
            .instances
            .iter()
            .filter(|instance| plan.role(Role::Init).any(|container| container.name == instance.name))
            .filter_map(|instance| instance.finished_at)
            .max()
            .unwrap_or(taken_up);
        let disruption = history.failed.as_deref().filter(|failed| failed.disruption);
        let disruption = disruption
            .map(|failed| ("DisruptionTarget", true, Some(("TerminationByKubelet", failed.message.clone())), now));
        [
            // It is here. What a scheduler said of it has the same words.
            ("PodScheduled", true, None, taken_up),
            (
                "PodReadyToStartContainers",
                sandbox.is_some(),
                hindered,
                sandbox.map_or(now, |sandbox| sandbox.created_at),
            ),
            ("Initialized", initialized, not_initialized, since_initialized),
            ("Ready", ready, not_ready, since_ready),
            ("ContainersReady", containers_ready, containers_not_ready, since_containers),
        ]
        .into_iter()
        .chain(disruption)
        .chain(self.resize_conditions())
        .map(|(type_, holds, why, since)| {
            let status = if holds { "True" } else { "False" };
            let kept = previous
                .and_then(|previous| previous.conditions.as_ref())
                .and_then(|known| known.iter().find(|known| known.type_ == type_ && known.status == status))
                .and_then(|known| known.last_transition_time.clone());
            let (reason, message) = why.unzip();
            PodCondition {
                type_: type_.to_owned(),
                status: status.to_owned(),
                reason: reason.filter(|reason| !reason.is_empty()).map(str::to_owned),
                message: message.filter(|message| !message.is_empty()),
                last_transition_time: Some(kept.unwrap_or(Time(since))),
                ..PodCondition::default()
            }
        })
        .collect()
    }
}

/// What a readiness gate that is closed says.
fn closed_gate(gate: &ReadinessGate) -> Option<String> {
    let name = &gate.condition;
    match gate.status.as_deref() {
        Some("True") => None,
        Some(status) => Some(format!("the status of pod readiness gate {name:?} is not \"True\", but {status}")),
        None => Some(format!("corresponding condition of pod readiness gate {name:?} does not exist.")),
    }
}

fn running(instance: &Instance) -> ContainerState {
    let started_at = Some(Time(instance.started_at.unwrap_or(instance.created_at)));
    ContainerState { running: Some(ContainerStateRunning { started_at }), ..ContainerState::default() }
}

fn terminated(end: ContainerStateTerminated) -> ContainerState {
    ContainerState { terminated: Some(end), ..ContainerState::default() }
}

fn waiting(reason: &str, message: Option<&str>) -> ContainerState {
    ContainerState {
        waiting: Some(ContainerStateWaiting { reason: Some(reason.to_owned()), message: message.map(str::to_owned) }),
        ..ContainerState::default()
    }
}

/// The pod ended before this container ran, or nobody knows how it ended.
fn never_ran() -> ContainerState {
    terminated(ContainerStateTerminated {
        exit_code: UNKNOWN_EXIT_CODE,
        reason: Some("ContainerStatusUnknown".to_owned()),
        message: Some("the container had not started when its pod ended".to_owned()),
        ..ContainerStateTerminated::default()
    })
}

/// Kubernetes' word for a failed start. A pull that failed once is an error, one that failed again backs off.
fn failure_reason(failure: &Failure) -> &'static str {
    match failure.reason {
        Reason::ImagePull if failure.repeated() => "ImagePullBackOff",
        reason => reason.as_str(),
    }
}
