//! A DaemonSet against a model of a fleet: nodes come, go and are tainted, pods start and break as chance has it.

use proptest::prelude::*;
use serde_json::json;

use super::super::pods;
use super::super::revisions::hash_of;
use super::*;
use crate::apiserver::kinds;

#[derive(Clone, Debug, Default)]
struct Fleet {
    set: Value,
    nodes: BTreeMap<String, Value>,
    pods: BTreeMap<String, Value>,
    revisions: BTreeMap<String, Value>,
    made: u64,
    now: i64,
}

fn node(name: &str) -> Value {
    json!({"metadata": {"name": name, "labels": {}}, "spec": {"taints": []}})
}

impl Fleet {
    fn new(nodes: usize, update: Value) -> Self {
        let mut set = json!({
            "apiVersion": "apps/v1", "kind": "DaemonSet",
            "metadata": {"name": "agent", "namespace": "n", "uid": "agent", "generation": 1},
            "spec": {"selector": {"matchLabels": {"app": "agent"}}, "updateStrategy": update, "template": {
                "metadata": {"labels": {"app": "agent"}}, "spec": {"containers": [{"name": "c", "image": "v1"}]}}},
        });
        (kinds::find("apps", "v1", "daemonsets").unwrap().default)(&mut set);
        let nodes = (0..nodes).map(|n| format!("n{n}")).map(|name| (name.clone(), node(&name))).collect();
        Self { set, nodes, now: 1000, ..Self::default() }
    }

    fn family(&self) -> Family {
        Family {
            owner: self.set.clone(),
            pods: self.pods.values().cloned().collect(),
            revisions: self.revisions.values().cloned().collect(),
            nodes: self.nodes.values().map(|node| std::sync::Arc::new(node.clone())).collect(),
            taken_names: self.revisions.keys().cloned().collect(),
            ..Family::default()
        }
    }

    /// One look of the controller; gives how much it did.
    fn look(&mut self) -> usize {
        let plan = decide(&self.family(), self.now, None);
        let done = plan.actions.len();
        for action in plan.actions {
            match action {
                Action::Create(resource, mut object) => {
                    self.made += 1;
                    let prefix = text(&object, "/metadata/generateName").to_owned();
                    if resource == Resource::Pods {
                        object["metadata"]["name"] = format!("{prefix}{}", self.made).into();
                    }
                    object["metadata"]["uid"] = format!("uid-{}", self.made).into();
                    object["metadata"]["creationTimestamp"] = clock::rfc3339(self.now).into();
                    let name = text(&object, "/metadata/name").to_owned();
                    let all = if resource == Resource::Pods { &mut self.pods } else { &mut self.revisions };
                    assert!(all.insert(name, object).is_none(), "a name is given twice");
                }
                Action::Put(Resource::DaemonSets, set) => self.set = set,
                Action::Put(Resource::Revisions, revision) => {
                    self.revisions.insert(text(&revision, "/metadata/name").to_owned(), revision);
                }
                Action::Delete(Resource::Revisions, revision) => {
                    self.revisions.remove(text(&revision, "/metadata/name"));
                }
                Action::Delete(_, pod) => {
                    self.pods.remove(text(&pod, "/metadata/name")).expect("a pod is deleted once");
                }
                other => panic!("{other:?}"),
            }
        }
        done
    }

    fn start(&mut self, index: usize) {
        let Some(pod) = self.pods.values_mut().nth(index) else { return };
        let node = nodes::node_of(pod).to_owned();
        pod["spec"]["nodeName"] = node.into();
        if pods::ready_since(pod).is_none() && !has_ended(pod) {
            pod["status"] = json!({"phase": "Running", "conditions":
                [{"type": "Ready", "status": "True", "lastTransitionTime": clock::rfc3339(self.now)}]});
        }
    }

    fn settle(&mut self) {
        for _ in 0..400 {
            let mut done = self.look();
            for index in 0..self.pods.len() {
                let before = self.pods.clone();
                self.start(index);
                done += usize::from(before != self.pods);
            }
            done += usize::from(self.pods.values().any(has_ended));
            self.now += 1;
            if done == 0 {
                return;
            }
        }
        panic!("it never settles: {:#?}", decide(&self.family(), self.now, None));
    }

    fn set_image(&mut self, image: &str) {
        self.set["spec"]["template"]["spec"]["containers"][0]["image"] = image.into();
        let generation = self.set["metadata"]["generation"].as_i64().unwrap();
        self.set["metadata"]["generation"] = json!(generation + 1);
    }

    /// Nodes without a pod that serves.
    fn unserved(&self) -> usize {
        let served = |node: &str| {
            self.pods
                .values()
                .any(|pod| nodes::node_of(pod) == node && pods::ready_since(pod).is_some() && pods::is_active(pod))
        };
        self.nodes.keys().filter(|node| !served(node)).count()
    }

    /// Whether each node has exactly the pod it should have.
    fn ended(&self) -> Result<(), TestCaseError> {
        let spec = nodes::spec(&self.set);
        for (name, node) in &self.nodes {
            let here: Vec<&Value> = self.pods.values().filter(|pod| nodes::node_of(pod) == name).collect();
            match nodes::wanted(&spec, node) {
                Wanted::Run => {
                    prop_assert_eq!(here.len(), 1, "{}", name);
                    let image = text(&self.set, "/spec/template/spec/containers/0/image");
                    prop_assert_eq!(text(here[0], "/spec/containers/0/image"), image);
                }
                Wanted::Stay => prop_assert!(here.len() <= 1),
                Wanted::Leave => prop_assert!(here.is_empty(), "{}", name),
            }
        }
        prop_assert_eq!(&self.set["status"]["observedGeneration"], &self.set["metadata"]["generation"]);
        prop_assert!(decide(&self.family(), self.now, None).actions.is_empty());
        Ok(())
    }
}

#[test]
fn each_node_gets_a_pod_and_one_that_goes_takes_none_with_it() {
    let mut fleet = Fleet::new(3, json!({}));
    fleet.settle();
    fleet.ended().unwrap();
    let status = &fleet.set["status"];
    assert_eq!((&status["desiredNumberScheduled"], &status["numberAvailable"]), (&json!(3), &json!(3)));
    fleet.nodes.get_mut("n1").unwrap()["spec"]["taints"] = json!([{"key": "out", "effect": "NoExecute"}]);
    fleet.nodes.insert("n3".into(), node("n3"));
    fleet.settle();
    fleet.ended().unwrap();
    assert_eq!(fleet.pods.len(), 3);
    // Cordoned or out of reach it keeps its pod.
    fleet.nodes.get_mut("n0").unwrap()["spec"]["taints"] = json!([
        {"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"},
        {"key": "node.kubernetes.io/unreachable", "effect": "NoExecute"},
    ]);
    let before = fleet.pods.clone();
    fleet.settle();
    assert_eq!(fleet.pods, before);
}

#[test]
fn a_pod_that_fails_is_replaced_after_a_pause() {
    let mut fleet = Fleet::new(1, json!({}));
    fleet.settle();
    let first = fleet.pods.keys().next().unwrap().clone();
    fleet.now = 1005;
    fleet.pods.get_mut(&first).unwrap()["status"]["phase"] = json!("Failed");
    fleet.look();
    let plan = decide(&fleet.family(), fleet.now, None);
    assert_eq!((plan.actions.len(), plan.at), (0, Some(1000 + FAILED_PAUSE)), "{plan:?}");
    fleet.now = 1000 + FAILED_PAUSE;
    fleet.settle();
    assert!(!fleet.pods.contains_key(&first) && fleet.pods.len() == 1);
}

#[test]
fn an_undo_makes_the_old_revision_the_newest_and_only_so_many_are_kept() {
    let mut fleet = Fleet::new(1, json!({}));
    fleet.set["spec"]["revisionHistoryLimit"] = json!(2);
    for image in ["v1", "v2", "v1", "v3", "v4", "v5"] {
        fleet.set_image(image);
        fleet.settle();
    }
    let mut numbers: Vec<i64> = fleet.revisions.values().filter_map(|one| one["revision"].as_i64()).collect();
    numbers.sort_unstable();
    // v1 was 1, then 3.
    assert_eq!(numbers, [4, 5, 6]);
    let pod = fleet.pods.values().next().unwrap();
    let newest = fleet.revisions.values().find(|one| one["revision"] == 6).unwrap();
    assert_eq!(pod["metadata"]["labels"][REVISION_HASH], hash_of(newest));
    assert_eq!(newest["data"]["spec"]["template"]["$patch"], "replace");
}

#[derive(Clone, Debug)]
enum Step {
    Look,
    Start(usize),
    Break(usize),
    Image(u8),
    Taint(usize, bool),
}

fn update() -> impl Strategy<Value = Value> {
    let share = || prop_oneof![(1..4_i64).prop_map(Value::from), (1..=100_u32).prop_map(|n| json!(format!("{n}%")))];
    prop_oneof![
        share().prop_map(|n| json!({"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": n, "maxSurge": 0}})),
        share().prop_map(|n| json!({"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": n}})),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// P-APPS-DAEMON-ROLLOUT: a rollout never leaves more nodes without a serving pod than it may, and it ends.
    #[test]
    fn a_rollout_keeps_its_promise_and_ends(
        count in 1..6_usize, update in update(),
        steps in proptest::collection::vec(prop_oneof![
            4 => Just(Step::Look),
            4 => (0..8_usize).prop_map(Step::Start),
            1 => (1..4_u8).prop_map(Step::Image),
        ], 0..60),
    ) {
        let mut fleet = Fleet::new(count, update);
        fleet.settle();
        let limits = Limits::of(&fleet.set, count);
        for step in steps {
            run(&mut fleet, &step);
            prop_assert!(fleet.unserved() <= limits.unavailable, "{step:?} {fleet:#?}");
            prop_assert!(fleet.pods.len() <= count + limits.surge, "{step:?} {fleet:#?}");
        }
        fleet.settle();
        fleet.ended()?;
    }

    #[test]
    fn whatever_happens_to_the_fleet_it_ends_with_one_pod_a_node(
        count in 1..6_usize, update in update(),
        steps in proptest::collection::vec(prop_oneof![
            4 => Just(Step::Look),
            4 => (0..8_usize).prop_map(Step::Start),
            1 => (0..8_usize).prop_map(Step::Break),
            1 => (1..4_u8).prop_map(Step::Image),
            1 => (0..6_usize, any::<bool>()).prop_map(|(node, hard)| Step::Taint(node, hard)),
        ], 0..60),
    ) {
        let mut fleet = Fleet::new(count, update);
        for step in steps {
            run(&mut fleet, &step);
        }
        fleet.settle();
        fleet.ended()?;
    }
}

fn run(fleet: &mut Fleet, step: &Step) {
    fleet.now += 1;
    match step {
        Step::Look => {
            fleet.look();
        }
        Step::Start(index) => fleet.start(*index),
        Step::Break(index) => {
            if let Some(pod) = fleet.pods.values_mut().nth(*index) {
                pod["status"] = json!({"phase": "Failed"});
            }
        }
        Step::Image(number) => fleet.set_image(&format!("v{number}")),
        Step::Taint(index, hard) => {
            if let Some(node) = fleet.nodes.values_mut().nth(*index) {
                let effect = if *hard { "NoExecute" } else { "NoSchedule" };
                let taints = if node["spec"]["taints"][0].is_null() {
                    json!([{"key": "k", "effect": effect}])
                } else {
                    json!([])
                };
                node["spec"]["taints"] = taints;
            }
        }
    }
}
