//! Probes, deadlines and readiness gates.

use super::*;

#[test]
fn a_failed_liveness_probe_restarts_what_its_policy_restarts() {
    let probes = json!({"livenessProbe": {"exec": {}, "terminationGracePeriodSeconds": 2}});
    for (policy, restarts) in [("Always", true), ("OnFailure", true), ("Never", false)] {
        let mut sim = Sim::new(&probed_pod(policy, &[], &[], &["a"], &probes));
        sim.settle();
        let first = sim.live_id("a").unwrap();
        sim.history.checks.entry(first.clone()).or_default().liveness = Some(false);
        let decision = sim.decide();
        let why = StopCause::Probe { kind: ProbeKind::Liveness, restarts };
        let (id, container, after) = (first.clone(), "a".to_owned(), Vec::new());
        let stop = Action::StopContainer { id, container, grace_seconds: 2, why, after };
        assert_eq!(decision.actions, [stop]);
        assert_eq!(sim.app_state(0)["ready"], true, "only readiness says who is ready");
        if restarts {
            sim.history.replaced.insert(first.clone());
        }
        // A clean end of a container that was asked to end is no success of the container.
        sim.model.exit(&first, 0, at(sim.now));
        sim.settle();
        assert_eq!(sim.running("a"), restarts, "{policy}");
    }
}

#[test]
fn a_container_that_is_ended_again_and_again_starts_at_once_until_the_back_off_is_longer() {
    let probes = json!({"livenessProbe": {"exec": {}}});
    let mut sim = Sim::new(&probed_pod("Always", &[], &[], &["a"], &probes));
    sim.settle();
    let mut waits = Vec::new();
    for _ in 0..6 {
        sim.now += 30;
        let id = sim.live_id("a").unwrap();
        sim.history.checks.entry(id).or_default().liveness = Some(false);
        let ended = sim.now;
        if let Some(wake) = sim.settle() {
            sim.now = u64::try_from(wake.as_second() - START).unwrap();
            sim.settle();
        }
        assert!(sim.running("a"));
        waits.push(sim.now - ended);
    }
    // Ten seconds, twenty: less than it ran. Then the back-off counts from its end.
    assert_eq!(waits, [0, 0, 0, 40, 80, 160]);
}

#[test]
fn a_pod_whose_time_is_over_fails_and_one_that_ended_before_does_not() {
    let limited = |policy: &str| {
        let mut pod = pod(policy, &[], &["s"], &["a"]);
        pod.spec.as_mut().unwrap().active_deadline_seconds = Some(60);
        Sim::new(&pod)
    };
    for policy in ["Always", "OnFailure", "Never"] {
        let mut sim = limited(policy);
        let wake = sim.settle();
        assert_eq!(wake, Some(at(60)));
        sim.now = 59;
        assert!(sim.decide().actions.is_empty());
        sim.now = 60;
        assert!(matches!(&sim.decide().actions[..], [Action::StopContainer { .. }, Action::StopContainer { .. }]));
        assert_eq!(sim.settle(), None);
        assert!(!sim.running("a") && !sim.running("s"));
        assert_eq!((sim.phase(), sim.status.reason.as_deref()), ("Failed", Some("DeadlineExceeded")));
        assert_eq!(sim.app_state(0)["state"]["terminated"]["exitCode"], TERMINATED);
        // Edgecore restarts: it stays over, by the time that the sandbox remembers.
        let began = at(0);
        sim.model.sandboxes.iter_mut().for_each(|known| known.sandbox.pod_start = Some(began));
        sim.history = History::default();
        sim.now = 1000;
        sim.settle();
        assert_eq!((sim.phase(), sim.status.reason.as_deref()), ("Failed", Some("DeadlineExceeded")));
        assert_eq!(sim.started["a"].len(), 1);
    }
    let mut sim = limited("Never");
    sim.settle();
    sim.now = 30;
    let id = sim.live_id("a").unwrap();
    sim.exit(&id, 0);
    sim.settle();
    sim.now = 100;
    sim.settle();
    assert_eq!((sim.phase(), sim.status.reason.as_deref()), ("Succeeded", None));
}

#[test]
fn an_ephemeral_container_starts_once_and_weighs_nothing() {
    let mut pod = pod("Always", &["i"], &[], &["a"]);
    let mut sim = Sim::new(&pod);
    sim.settle();
    let before = sim.status.clone();
    let debug = json!([{"name": "debug", "image": "i", "targetContainerName": "a"}]);
    pod.spec.as_mut().unwrap().ephemeral_containers = serde_json::from_value(debug).unwrap();
    assert_eq!((ephemeral_target(&pod, "debug"), ephemeral_target(&pod, "a")), (Some("a"), None));
    sim.plan = PodPlan::of(&pod).unwrap();
    sim.settle();
    // While the pod is initialised as well: that is what one wants to look into.
    assert!(sim.running("debug") && sim.running("i") && !sim.running("a"));
    let status = |sim: &Sim| serde_json::to_value(&sim.status.ephemeral_container_statuses).unwrap()[0].clone();
    assert!(status(&sim)["state"]["running"].is_object());
    assert_eq!((&sim.status.phase, &sim.status.conditions), (&before.phase, &before.conditions));
    let id = sim.live_id("debug").unwrap();
    sim.exit(&id, 3);
    let id = sim.live_id("i").unwrap();
    sim.exit(&id, 0);
    sim.settle();
    assert!(sim.running("a") && !sim.running("debug"));
    assert_eq!(status(&sim)["state"]["terminated"]["exitCode"], 3);
    assert_eq!(sim.phase(), "Running");
    let ready = sim.status.conditions.iter().flatten().find(|condition| condition.type_ == "Ready").unwrap();
    assert_eq!(ready.status, "True");
    sim.now += 1000;
    sim.settle();
    assert_eq!(sim.started["debug"].len(), 1);
}

#[test]
fn a_pod_is_ready_when_its_gates_are_open_as_well() {
    let mut sim = Sim::new(&pod("Always", &[], &[], &["a"]));
    sim.plan.readiness_gates = vec![ReadinessGate { condition: "lb".into(), status: None }];
    sim.settle();
    let ready = |sim: &Sim| {
        let found = |kind: &str| sim.status.conditions.iter().flatten().find(|c| c.type_ == kind).unwrap().clone();
        assert_eq!(found("ContainersReady").status, "True");
        let ready = found("Ready");
        (ready.status == "True", ready.reason, ready.message)
    };
    let not_ready = Some("ReadinessGatesNotReady".to_owned());
    let absent = "corresponding condition of pod readiness gate \"lb\" does not exist.".to_owned();
    assert_eq!(ready(&sim), (false, not_ready.clone(), Some(absent)));
    sim.plan.readiness_gates[0].status = Some("False".into());
    sim.settle();
    let closed = "the status of pod readiness gate \"lb\" is not \"True\", but False".to_owned();
    assert_eq!(ready(&sim), (false, not_ready, Some(closed)));
    sim.plan.readiness_gates[0].status = Some("True".into());
    sim.settle();
    assert_eq!(ready(&sim), (true, None, None));
}

#[test]
fn probes_say_who_has_started_and_who_is_ready() {
    let probe = json!({"exec": {}});
    let probes = json!({"startupProbe": probe, "readinessProbe": probe});
    let mut sim = Sim::new(&probed_pod("Always", &[], &["s"], &["a"], &probes));
    sim.settle();
    assert!(sim.running("s") && !sim.running("a"), "the next one waits until a sidecar has started");
    let condition = |sim: &Sim, kind: &str| {
        let found = sim.status.conditions.iter().flatten().find(|found| found.type_ == kind).unwrap().clone();
        (found.status == "True", found.message.unwrap_or_default())
    };
    assert!(!condition(&sim, "Initialized").0);
    let said = |sim: &mut Sim, name: &str, startup: bool, readiness: Option<bool>| {
        let id = sim.live_id(name).unwrap();
        sim.history.checks.insert(id, Checked { startup: Some(startup), readiness, liveness: None });
        sim.settle();
    };
    said(&mut sim, "s", true, None);
    assert!(sim.running("a") && condition(&sim, "Initialized").0);
    assert_eq!((&sim.app_state(0)["started"], &sim.app_state(0)["ready"]), (&json!(false), &json!(false)));
    said(&mut sim, "a", true, Some(true));
    assert_eq!((&sim.app_state(0)["started"], &sim.app_state(0)["ready"]), (&json!(true), &json!(true)));
    let (ready, message) = condition(&sim, "Ready");
    assert!(!ready && message == "containers with unready status: [s]", "{message}");
    said(&mut sim, "s", true, Some(true));
    assert!(condition(&sim, "Ready").0 && condition(&sim, "ContainersReady").0);
    sim.now += 5;
    said(&mut sim, "a", true, Some(false));
    assert!(!condition(&sim, "Ready").0);
    let since = sim.status.conditions.iter().flatten().find(|c| c.type_ == "Ready").unwrap();
    assert_eq!(since.last_transition_time.as_ref().unwrap().0, at(sim.now));
    assert_eq!(sim.phase(), "Running");
}
