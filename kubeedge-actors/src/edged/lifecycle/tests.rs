//! Histories of faults against the decisions: a model runtime that fails, forgets and dies, and an edgecore that
//! restarts between any two steps.

use std::{collections::BTreeMap, time::Duration};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use serde_json::json;

use super::*;
use crate::edged::{
    fake::model::{Model, TERMINATED},
    probes::{Checked, ProbeKind},
    runtime::{Instance, InstanceState},
    status::{NodeFacts, pod_status},
};

mod faults;
mod health;
mod sizes;

const START: i64 = 1_800_000_000;

fn at(second: u64) -> Timestamp {
    Timestamp::from_second(START + i64::try_from(second).unwrap()).unwrap()
}

fn pod(policy: &str, init: &[&str], sidecars: &[&str], apps: &[&str]) -> Pod {
    probed_pod(policy, init, sidecars, apps, &json!({}))
}

/// A pod whose sidecars and app containers have these probes.
fn probed_pod(policy: &str, init: &[&str], sidecars: &[&str], apps: &[&str], probes: &serde_json::Value) -> Pod {
    let with = |name: &&str, more: serde_json::Value| {
        let mut container = json!({"name": name, "image": "i"});
        for part in [probes, &more] {
            container.as_object_mut().unwrap().extend(part.as_object().unwrap().clone());
        }
        container
    };
    let init: Vec<_> = init
        .iter()
        .map(|name| json!({"name": name, "image": "i"}))
        .chain(sidecars.iter().map(|name| with(name, json!({"restartPolicy": "Always"}))))
        .collect();
    let apps: Vec<_> = apps.iter().map(|name| with(name, json!({}))).collect();
    serde_json::from_value(json!({
        "metadata": {"namespace": "ns", "name": "p", "uid": "u"},
        "spec": {"restartPolicy": policy, "terminationGracePeriodSeconds": 5, "initContainers": init,
            "containers": apps},
    }))
    .unwrap()
}

/// A worker without I/O: applies decisions to the model, one action at a time.
struct Sim {
    plan: PodPlan,
    want: Want,
    model: Model,
    history: History,
    volumes: VolumeState,
    now: u64,
    finished: bool,
    /// How each app or init container ends by itself.
    started: BTreeMap<String, Vec<(Timestamp, Option<Timestamp>)>>,
    done_for_good: Vec<String>,
    /// Containers that somebody removed an instance of.
    forgotten: Vec<String>,
    status: PodStatus,
}

impl Sim {
    fn new(pod: &Pod) -> Self {
        Self {
            plan: PodPlan::of(pod).unwrap(),
            want: Want::Run,
            model: Model::default(),
            history: History::default(),
            volumes: VolumeState::Unknown,
            now: 0,
            finished: false,
            started: BTreeMap::new(),
            done_for_good: Vec::new(),
            forgotten: Vec::new(),
            status: PodStatus::default(),
        }
    }

    fn decide(&mut self) -> Decision {
        let observed = self.model.observe("u");
        self.history.observe(&observed, at(self.now));
        let input = Input {
            plan: &self.plan,
            want: self.want,
            observed: &observed,
            history: &self.history,
            volumes: self.volumes,
            now: at(self.now),
        };
        let decision = decide(&input);
        assert_eq!(decision, decide(&input), "the same input gives the same decision");
        let facts = NodeFacts { host_ips: vec!["192.0.2.1".into()], runtime_name: "fake".into() };
        self.status = pod_status(&input, &facts, Some(&self.status));
        let again = pod_status(&input, &facts, Some(&self.status));
        assert_eq!(self.status, again, "a status does not change by itself");
        decision
    }

    fn apply(&mut self, action: &Action) {
        let now = at(self.now);
        match action {
            Action::SetUpVolumes => {
                self.volumes = VolumeState::Ready;
                self.history.step_succeeded(Step::Volumes);
            }
            Action::RunSandbox { attempt } => {
                assert_eq!(self.volumes, VolumeState::Ready, "volumes come before the sandbox");
                self.model.run_sandbox(("ns".into(), "p".into(), "u".into()), *attempt, now);
            }
            Action::Start { container, attempt, sandbox_id, ended_at } => {
                assert_eq!(self.volumes, VolumeState::Ready, "volumes come before containers");
                assert!(!self.done_for_good.contains(container), "{container} is started after it ended for good");
                self.history.restarted(container, "i", *ended_at, now);
                let id = self.model.create(sandbox_id, container, *attempt, "i", now);
                let planned = self.plan.containers.iter().find(|planned| planned.name == *container);
                if let Some(instance) = self.model.instances.last_mut() {
                    instance.sizes = planned.and_then(|planned| planned.resources.sizes);
                }
                if let Some(id) = id
                    && self.model.start(&id, now)
                {
                    self.history.start_succeeded(container);
                    self.started.entry(container.clone()).or_default().push((now, *ended_at));
                }
            }
            Action::StopContainer { id, why, after, .. } => {
                let alive = |id: &String| self.model.instances.iter().any(|i| i.id == *id && i.state.may_run());
                assert!(!after.iter().any(alive), "{id} ends before {after:?}");
                if why.is_replaced() {
                    self.history.replaced.insert(id.clone());
                }
                self.exit(id, TERMINATED);
            }
            Action::Resize { containers } => {
                for Fitting { id, to, .. } in containers {
                    assert!(self.model.instances.iter().any(|i| i.id == *id && i.state == InstanceState::Running));
                    self.history.resized.insert(id.clone(), *to);
                }
                self.history.step_succeeded(Step::Resize);
            }
            Action::RemoveContainer { id, .. } => self.model.remove_container(id),
            Action::StopSandbox { id } => {
                self.model.stop_sandbox(id, now);
                self.history.released.insert(id.clone());
            }
            Action::RemoveSandbox { id } => self.model.remove_sandbox(id),
            Action::TearDownVolumes => {
                assert!(self.model.instances.is_empty(), "volumes go after containers");
                self.volumes = VolumeState::Gone;
            }
            Action::Finish => self.finished = true,
        }
        assert!(self.model.violations.is_empty(), "{:?} by {action:?}", self.model.violations);
    }

    fn exit(&mut self, id: &str, code: i32) {
        let Some(instance) = self.model.instances.iter().find(|instance| instance.id == id) else { return };
        let name = instance.name.clone();
        self.model.exit(id, code, at(self.now));
        let role = self.plan.containers.iter().find(|container| container.name == name).unwrap().role;
        let ends = match self.plan.restart_policy {
            RestartPolicy::Never => true,
            RestartPolicy::OnFailure => code == 0,
            RestartPolicy::Always => false,
        };
        if role == Role::App && ends {
            self.done_for_good.push(name);
        }
    }

    /// Steps until nothing is to do now. Answers when to come back.
    fn settle(&mut self) -> Option<Timestamp> {
        for _ in 0..200 {
            let decision = self.decide();
            if decision.actions.is_empty() {
                return decision.wake_at;
            }
            for action in &decision.actions {
                self.apply(action);
                if self.finished {
                    return None;
                }
            }
        }
        panic!("no rest after 200 rounds: {:?}", self.decide());
    }

    fn running(&self, name: &str) -> bool {
        self.model.instances.iter().any(|i| i.name == name && i.state == InstanceState::Running)
    }

    fn live_id(&self, name: &str) -> Option<String> {
        self.model.instances.iter().find(|i| i.name == name && i.state.may_run()).map(|i| i.id.clone())
    }

    fn phase(&self) -> &str {
        self.status.phase.as_deref().unwrap()
    }

    fn app_state(&self, at: usize) -> serde_json::Value {
        serde_json::to_value(&self.status.container_statuses.as_ref().unwrap()[at]).unwrap()
    }
}

#[test]
fn a_pod_comes_to_run_and_ends_in_order() {
    let mut sim = Sim::new(&pod("Always", &[], &[], &["a", "b"]));
    let first = sim.decide();
    assert_eq!(first.actions, [Action::SetUpVolumes]);
    assert_eq!(sim.phase(), "Pending");
    assert_eq!(sim.app_state(0)["state"]["waiting"]["reason"], "ContainerCreating");
    assert_eq!(sim.settle(), None);
    assert!(sim.running("a") && sim.running("b"));
    assert_eq!(sim.phase(), "Running");
    assert_eq!(sim.status.pod_ip.as_deref(), Some("10.0.0.1"));
    assert!(sim.app_state(1)["containerID"].as_str().unwrap().starts_with("fake://container-"));

    sim.want = Want::End { grace_seconds: 2 };
    let stops = sim.decide().actions;
    assert!(matches!(stops[..], [Action::StopContainer { grace_seconds: 2, .. }, Action::StopContainer { .. }]));
    sim.settle();
    assert!(sim.finished && sim.model.sandboxes.is_empty() && sim.volumes == VolumeState::Gone);
    assert_eq!(sim.phase(), "Failed");
    assert_eq!(sim.app_state(0)["state"]["terminated"]["exitCode"], TERMINATED);
}

#[test]
fn crashes_back_off_and_say_so() {
    let mut sim = Sim::new(&pod("Always", &[], &[], &["a"]));
    sim.settle();
    let mut waits = Vec::new();
    for _ in 0..7 {
        sim.now += 1;
        let id = sim.live_id("a").unwrap();
        sim.exit(&id, 1);
        let ended = sim.now;
        if let Some(wake) = sim.settle() {
            assert_eq!(sim.app_state(0)["state"]["waiting"]["reason"], "CrashLoopBackOff");
            assert_eq!(sim.app_state(0)["lastState"]["terminated"]["exitCode"], 1);
            assert_eq!(sim.phase(), "Running");
            sim.now = u64::try_from(wake.as_second() - START).unwrap();
            sim.settle();
        }
        waits.push(sim.now - ended);
        assert!(sim.running("a"));
    }
    assert_eq!(waits, [0, 10, 20, 40, 80, 160, 300]);
    assert_eq!(sim.app_state(0)["restartCount"], 7);
    assert!(sim.model.instances.len() <= 2, "old instances are removed");
}

#[test]
fn never_and_on_failure_end_for_good() {
    for (policy, code, phase) in [("Never", 0, "Succeeded"), ("Never", 3, "Failed"), ("OnFailure", 0, "Succeeded")] {
        let mut sim = Sim::new(&pod(policy, &[], &[], &["a"]));
        sim.settle();
        let id = sim.live_id("a").unwrap();
        sim.exit(&id, code);
        assert_eq!(sim.settle(), None);
        assert_eq!((policy, code, sim.phase()), (policy, code, phase));
        assert!(!sim.model.sandboxes[0].sandbox.ready, "the network of a pod that is over is released");
        // Edgecore restarts: the pod stays over.
        sim.history = History::default();
        sim.volumes = VolumeState::Unknown;
        sim.settle();
        assert_eq!(sim.phase(), phase);
        assert_eq!(sim.started["a"].len(), 1);
    }
}

#[test]
fn init_containers_run_in_order_and_block_the_rest() {
    let mut sim = Sim::new(&pod("Always", &["one", "two"], &["side"], &["a"]));
    sim.settle();
    assert!(sim.running("one") && !sim.running("two") && !sim.running("a"));
    assert_eq!(sim.app_state(0)["state"]["waiting"]["reason"], "PodInitializing");
    assert_eq!(sim.phase(), "Pending");
    for name in ["one", "two"] {
        let id = sim.live_id(name).unwrap();
        sim.exit(&id, 0);
        sim.settle();
    }
    assert!(sim.running("side") && sim.running("a"));
    assert_eq!(sim.phase(), "Running");
    // Sidecars end after the others.
    sim.want = Want::End { grace_seconds: 1 };
    let stops = sim.decide().actions;
    let order: Vec<(&str, usize)> = stops
        .iter()
        .map(|stop| match stop {
            Action::StopContainer { container, after, .. } => (container.as_str(), after.len()),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(order, [("a", 0), ("side", 1)]);
    sim.apply(&stops[0]);
    assert!(!sim.running("a") && sim.running("side"));
    sim.settle();
    assert!(sim.finished);
}

#[test]
fn a_failed_init_container_of_a_never_pod_fails_the_pod() {
    let mut sim = Sim::new(&pod("Never", &["one"], &[], &["a"]));
    sim.settle();
    let id = sim.live_id("one").unwrap();
    sim.exit(&id, 9);
    assert_eq!(sim.settle(), None);
    assert_eq!(sim.phase(), "Failed");
    assert!(!sim.started.contains_key("a"));
}

#[test]
fn a_lost_sandbox_is_replaced_once_and_initialised_again() {
    let mut sim = Sim::new(&pod("Always", &["one"], &[], &["a"]));
    sim.settle();
    let id = sim.live_id("one").unwrap();
    sim.exit(&id, 0);
    sim.settle();
    let sandbox = sim.model.sandboxes[0].sandbox.id.clone();
    sim.model.lose_sandbox(&sandbox, at(sim.now));
    sim.settle();
    assert!(sim.running("one") && !sim.running("a"));
    let id = sim.live_id("one").unwrap();
    sim.exit(&id, 0);
    sim.settle();
    assert!(sim.running("a"));
    assert_eq!(sim.model.sandboxes.iter().filter(|known| known.sandbox.ready).count(), 1);
}

#[test]
fn another_image_replaces_the_container_whatever_the_policy() {
    let mut sim = Sim::new(&pod("Never", &[], &[], &["a"]));
    sim.settle();
    sim.plan.containers[0].image = "other".into();
    let decision = sim.decide();
    assert!(matches!(&decision.actions[..], [Action::StopContainer { why: StopCause::Changed, .. }]), "{decision:?}");
    let id = sim.live_id("a").unwrap();
    sim.history.replaced.insert(id.clone());
    sim.model.exit(&id, 0, at(sim.now));
    assert!(matches!(&sim.decide().actions[..], [Action::Start { attempt: 1, .. }]));
}

#[test]
fn a_running_container_is_adopted_with_its_times() {
    let mut sim = Sim::new(&pod("Always", &[], &[], &["a"]));
    sim.settle();
    let before = sim.status.clone();
    sim.now += 1000;
    sim.history = History::default();
    sim.status = PodStatus::default();
    sim.volumes = VolumeState::Unknown;
    sim.settle();
    assert_eq!(sim.started["a"].len(), 1);
    let strip = |status: &PodStatus| {
        let mut value = serde_json::to_value(status).unwrap();
        value["conditions"] = json!(null);
        value
    };
    assert_eq!(strip(&before), strip(&sim.status));
    for kind in ["Ready", "Initialized"] {
        let since = |status: &PodStatus| {
            let found = status.conditions.iter().flatten().find(|c| c.type_ == kind).unwrap();
            found.last_transition_time.as_ref().unwrap().0.as_second()
        };
        assert_eq!(since(&before), since(&sim.status), "{kind}");
    }
}

#[test]
fn a_pull_that_fails_again_backs_off() {
    let mut sim = Sim::new(&pod("Always", &[], &[], &["a"]));
    sim.volumes = VolumeState::Ready;
    for (reason, delay) in [("ErrImagePull", 10), ("ImagePullBackOff", 20), ("ImagePullBackOff", 40)] {
        let actions = loop {
            let actions = sim.decide().actions;
            if matches!(actions[..], [Action::Start { .. }]) {
                break actions;
            }
            actions.iter().for_each(|action| sim.apply(action));
        };
        assert_eq!(actions.len(), 1);
        sim.history.start_failed("a", "i", Reason::ImagePull, "no such image".into(), at(sim.now));
        let wake = sim.settle().unwrap();
        assert_eq!(sim.app_state(0)["state"]["waiting"]["reason"], reason);
        assert_eq!(wake, at(sim.now + delay));
        sim.now += delay;
    }
}

#[test]
fn a_failed_clean_up_waits_and_then_goes_on() {
    let mut sim = Sim::new(&pod("Always", &[], &[], &["a"]));
    sim.settle();
    sim.want = Want::End { grace_seconds: 1 };
    sim.history.step_failed(Step::CleanUp, "busy".into(), at(sim.now));
    let decision = sim.decide();
    assert!(decision.actions.is_empty());
    assert_eq!(decision.wake_at, Some(later(at(sim.now), Duration::from_secs(2))));
    sim.now += 2;
    sim.settle();
    assert!(sim.finished);
}
