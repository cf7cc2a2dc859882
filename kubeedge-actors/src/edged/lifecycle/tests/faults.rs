//! Whatever happens: faults in every order.

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Fault {
    /// The next action fails without effect.
    ActionFails,
    /// Half of it happens: a container is made and not started; a call timed out and came true.
    HalfDone,
    Restart,
    Exit(prop::sample::Index, i32),
    LoseSandbox,
    Forget(prop::sample::Index),
    Unknown(prop::sample::Index),
    Image(prop::sample::Index),
    /// A probe fails for good.
    Unhealthy(prop::sample::Index),
    Pass(u64),
    Step,
}

fn fault() -> impl Strategy<Value = Fault> {
    prop_oneof![
        2 => Just(Fault::ActionFails),
        2 => Just(Fault::HalfDone),
        1 => Just(Fault::Restart),
        4 => (any::<prop::sample::Index>(), prop_oneof![Just(0), Just(1)]).prop_map(|(i, c)| Fault::Exit(i, c)),
        1 => Just(Fault::LoseSandbox),
        1 => any::<prop::sample::Index>().prop_map(Fault::Forget),
        1 => any::<prop::sample::Index>().prop_map(Fault::Unknown),
        1 => any::<prop::sample::Index>().prop_map(Fault::Image),
        2 => any::<prop::sample::Index>().prop_map(Fault::Unhealthy),
        4 => (1_u64..400).prop_map(Fault::Pass),
        8 => Just(Fault::Step),
    ]
}

/// Restart policy, number of init containers, of sidecars, of app containers.
fn pods() -> impl Strategy<Value = (&'static str, usize, usize, usize)> {
    (prop_oneof![Just("Always"), Just("OnFailure"), Just("Never")], 0..3_usize, 0..2_usize, 1..3_usize)
}

impl Sim {
    fn suffer(&mut self, fault: &Fault) {
        match fault {
            Fault::ActionFails => {
                let decision = self.decide();
                match decision.actions.first() {
                    Some(Action::SetUpVolumes) => {
                        self.history.step_failed(Step::Volumes, "no".into(), at(self.now));
                    }
                    Some(Action::RunSandbox { .. }) => {
                        self.history.step_failed(Step::Sandbox, "no".into(), at(self.now));
                    }
                    Some(Action::Start { container, .. }) => {
                        let container = container.clone();
                        self.history.start_failed(&container, "i", Reason::ImagePull, "no".into(), at(self.now));
                    }
                    Some(_) => self.history.step_failed(Step::CleanUp, "no".into(), at(self.now)),
                    None => {}
                }
            }
            Fault::HalfDone => {
                let decision = self.decide();
                match decision.actions.first() {
                    Some(Action::Start { container, attempt, sandbox_id, .. }) => {
                        self.model.create(sandbox_id, container, *attempt, "i", at(self.now));
                        let container = container.clone();
                        self.history.start_failed(&container, "i", Reason::Run, "timeout".into(), at(self.now));
                    }
                    // Edgecore is killed in the middle of the decision's actions.
                    Some(action) => {
                        self.apply(action);
                        self.restart();
                    }
                    None => {}
                }
            }
            Fault::Restart => self.restart(),
            Fault::Exit(which, code) => {
                let live: Vec<String> =
                    self.model.instances.iter().filter(|i| i.state.may_run()).map(|i| i.id.clone()).collect();
                if !live.is_empty() {
                    self.exit(&live[which.index(live.len())], *code);
                }
            }
            Fault::LoseSandbox => {
                if let Some(id) = self.model.sandboxes.iter().find(|known| known.sandbox.ready) {
                    let id = id.sandbox.id.clone();
                    let live: Vec<String> =
                        self.model.instances.iter().filter(|i| i.state.may_run()).map(|i| i.id.clone()).collect();
                    for container in live {
                        self.exit(&container, 137);
                    }
                    self.model.lose_sandbox(&id, at(self.now));
                }
            }
            // Somebody removes an ended container by hand while edgecore runs.
            Fault::Forget(which) => {
                self.decide();
                let ended: Vec<(String, String)> = self
                    .model
                    .instances
                    .iter()
                    .filter(|i| i.state == InstanceState::Exited)
                    .map(|i| (i.id.clone(), i.name.clone()))
                    .collect();
                if !ended.is_empty() {
                    let (id, name) = &ended[which.index(ended.len())];
                    self.model.remove_container(id);
                    self.forgotten.push(name.clone());
                }
            }
            Fault::Unknown(which) => {
                let count = self.model.instances.len();
                if count > 0 {
                    let instance = &mut self.model.instances[which.index(count)];
                    if instance.state == InstanceState::Running {
                        instance.state = InstanceState::Unknown;
                    }
                }
            }
            Fault::Image(which) => {
                if self.plan.restart_policy == RestartPolicy::Always {
                    let at = which.index(self.plan.containers.len());
                    let other = if self.plan.containers[at].image == "i" { "i2" } else { "i" };
                    self.plan.containers[at].image = other.into();
                }
            }
            Fault::Unhealthy(which) => {
                let running: Vec<String> = self.with_probes();
                if !running.is_empty() {
                    let id = running[which.index(running.len())].clone();
                    self.history.checks.entry(id).or_default().liveness = Some(false);
                }
            }
            Fault::Pass(seconds) => self.now += seconds,
            Fault::Step => {
                for action in self.decide().actions {
                    self.apply(&action);
                }
            }
        }
        assert!(self.model.violations.is_empty(), "{:?} by {fault:?}", self.model.violations);
    }

    /// The running instances of containers that are probed.
    fn with_probes(&self) -> Vec<String> {
        let probed = |name: &str| self.plan.containers.iter().any(|c| c.name == name && c.probes.liveness.is_some());
        let running = self.model.instances.iter().filter(|i| i.state == InstanceState::Running && probed(&i.name));
        running.map(|instance| instance.id.clone()).collect()
    }

    /// Edgecore restarts. What the runtime forgot before that is forgotten for good, so the promise that a container
    /// stays ended holds for what the runtime still has.
    fn restart(&mut self) {
        self.history = History::default();
        if self.volumes == VolumeState::Ready {
            self.volumes = VolumeState::Unknown;
        }
        self.done_for_good.retain(|name| !self.forgotten.contains(name));
    }

    /// Until the pod rests: containers that end by themselves do so.
    fn calm_down(&mut self) {
        for container in &mut self.plan.containers {
            container.image = "i".into();
        }
        for _ in 0..200 {
            let healthy = Checked { startup: Some(true), readiness: Some(true), liveness: Some(true) };
            self.history.checks = self.with_probes().into_iter().map(|id| (id, healthy)).collect();
            let wake = self.settle();
            let sidecar = |name: &str| name.starts_with('s');
            let unstarted =
                |i: &&Instance| i.state == InstanceState::Running && !self.history.checks.contains_key(&i.id);
            if self.model.instances.iter().filter(unstarted).any(|i| sidecar(&i.name)) {
                continue;
            }
            let init = self
                .model
                .instances
                .iter()
                .find(|i| i.state == InstanceState::Running && i.name.starts_with('i'))
                .map(|i| i.id.clone());
            match (init, wake) {
                (Some(id), _) => self.exit(&id, 0),
                (None, Some(wake)) => {
                    let wake = u64::try_from(wake.as_second() - START).unwrap();
                    assert!(wake > self.now, "to be woken now, with nothing to do now, is a busy loop");
                    self.now = wake;
                }
                (None, None) => return,
            }
        }
        panic!("the pod does not come to rest");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn whatever_happens_rules_hold_and_the_pod_comes_to_rest(
        (policy, init, sidecars, apps) in pods(),
        faults in prop::collection::vec(fault(), 0..60),
        end in any::<bool>(),
        more in prop::collection::vec(fault(), 0..15),
    ) {
        let probe = json!({"exec": {"command": ["true"]}});
        let probes = json!({"startupProbe": probe, "readinessProbe": probe, "livenessProbe": probe});
        let mut sim =
            Sim::new(&probed_pod(policy, &["i1", "i2"][..init], &["s1"][..sidecars], &["a1", "a2"][..apps], &probes));
        for fault in &faults {
            sim.suffer(fault);
        }
        sim.calm_down();
        let over = matches!(sim.phase(), "Succeeded" | "Failed");
        for (place, container) in sim.plan.role(Role::App).enumerate() {
            let ended = sim.app_state(place)["state"]["terminated"].is_object();
            prop_assert!(over || ended || sim.running(&container.name), "{} neither runs nor ended", container.name);
        }
        prop_assert!(over || sim.phase() == "Running", "{}", sim.phase());
        prop_assert!(sim.plan.restart_policy != RestartPolicy::Always || !over);
        let settled = sim.decide();
        prop_assert_eq!(settled, Decision::default());
        prop_assert!(sim.model.instances.len() <= 2 * sim.plan.containers.len());
        prop_assert!(sim.model.sandboxes.len() <= 1 + 2 * sim.plan.containers.len());

        if end {
            sim.want = Want::End { grace_seconds: 1 };
            for fault in &more {
                if !sim.finished {
                    sim.suffer(fault);
                }
            }
            while !sim.finished {
                if let Some(wake) = sim.settle() {
                    sim.now = u64::try_from(wake.as_second() - START).unwrap();
                }
            }
            prop_assert!(sim.model.instances.is_empty() && sim.model.sandboxes.is_empty());
            prop_assert!(matches!(sim.phase(), "Succeeded" | "Failed"), "{}", sim.phase());
        }
    }
}
