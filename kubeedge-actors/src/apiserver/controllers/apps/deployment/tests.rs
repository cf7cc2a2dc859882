//! A Deployment and its ReplicaSets against a model of a cluster: pods start, become ready and break as chance has it.

use std::collections::BTreeMap;

use proptest::prelude::*;
use serde_json::json;

use super::super::pods::{self, Counts};
use super::super::replicaset;
use super::*;
use crate::apiserver::clock;
use crate::apiserver::kinds;

/// Objects by resource and name, as the server would hold them.
#[derive(Clone, Debug, Default)]
struct World {
    deployment: Value,
    sets: BTreeMap<String, Value>,
    pods: BTreeMap<String, Value>,
    made: u64,
    now: i64,
}

fn deployment(spec: Value) -> Value {
    let mut all = json!({
        "selector": {"matchLabels": {"app": "web"}},
        "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": "v1"}]}},
    });
    for (field, value) in spec.as_object().unwrap() {
        all[field] = value.clone();
    }
    let mut object = json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": "web", "namespace": "n", "uid": "web", "generation": 1}, "spec": all,
    });
    (kinds::find("apps", "v1", "deployments").unwrap().default)(&mut object);
    object
}

impl World {
    fn new(spec: Value) -> Self {
        Self { deployment: deployment(spec), now: 1000, ..Self::default() }
    }

    /// Does what a plan says, as the shell does; gives how much that was.
    fn apply(&mut self, plan: Plan) -> usize {
        let mut done = 0;
        for action in plan.actions {
            done += 1;
            match action {
                Action::Create(resource, mut object) => {
                    self.made += 1;
                    let prefix = text(&object, "/metadata/generateName").to_owned();
                    if !prefix.is_empty() {
                        object["metadata"]["name"] = format!("{prefix}{}", self.made).into();
                    }
                    let name = text(&object, "/metadata/name").to_owned();
                    object["metadata"]["uid"] = format!("uid-{}", self.made).into();
                    object["metadata"]["creationTimestamp"] = clock::rfc3339(self.now).into();
                    object["metadata"]["generation"] = json!(1);
                    let before = match resource {
                        Resource::ReplicaSets => {
                            (kinds::find("apps", "v1", "replicasets").unwrap().default)(&mut object);
                            self.sets.insert(name, object)
                        }
                        _ => self.pods.insert(name, object),
                    };
                    assert!(before.is_none(), "a name is given twice");
                }
                Action::Put(resource, mut object) => {
                    let name = text(&object, "/metadata/name").to_owned();
                    let place = match resource {
                        Resource::Deployments => &mut self.deployment,
                        Resource::ReplicaSets => self.sets.get_mut(&name).unwrap(),
                        _ => self.pods.get_mut(&name).unwrap(),
                    };
                    if place["spec"] != object["spec"] {
                        object["metadata"]["generation"] = json!(place["metadata"]["generation"].as_i64().unwrap() + 1);
                    }
                    *place = object;
                }
                Action::Delete(Resource::ReplicaSets, object) => {
                    let name = text(&object, "/metadata/name");
                    let owned = self.pods.values().filter(|pod| is_controlled_by(pod, &object)).count();
                    assert_eq!(owned, 0, "a set with pods is deleted");
                    self.sets.remove(name);
                }
                Action::Delete(_, object) => {
                    self.pods.remove(text(&object, "/metadata/name"));
                }
                Action::Event(..) => done -= 1,
            }
        }
        done
    }

    fn plan(&self) -> Plan {
        let family = Family {
            owner: self.deployment.clone(),
            sets: self.sets.values().cloned().collect(),
            pods: self.pods.values().cloned().collect(),
            taken_names: self.sets.keys().cloned().collect(),
            ..Family::default()
        };
        decide(&family, self.now, None)
    }

    fn deploy(&mut self) -> usize {
        let plan = self.plan();
        self.apply(plan)
    }

    fn replicate(&mut self, name: &str) -> usize {
        let Some(set) = self.sets.get(name) else { return 0 };
        let family = Family {
            owner: set.clone(),
            pods: self.pods.values().filter(|pod| is_controlled_by(pod, set)).cloned().collect(),
            ..Family::default()
        };
        let plan = replicaset::decide(&family, self.now, None);
        self.apply(plan)
    }

    fn set_ready(&mut self, index: usize, ready: bool) {
        let Some(name) = self.pods.keys().nth(index).cloned() else { return };
        let pod = self.pods.get_mut(&name).unwrap();
        pod["spec"]["nodeName"] = json!("edge");
        let state = if ready { "True" } else { "False" };
        pod["status"] = json!({"phase": "Running", "conditions":
            [{"type": "Ready", "status": state, "lastTransitionTime": clock::rfc3339(self.now)}]});
    }

    /// Everyone works until nothing changes, every pod becoming ready.
    fn settle(&mut self) {
        for _ in 0..400 {
            let mut done = self.deploy();
            for name in self.sets.keys().cloned().collect::<Vec<_>>() {
                done += self.replicate(&name);
            }
            for index in 0..self.pods.len() {
                let pod = self.pods.values().nth(index).unwrap();
                if pods::ready_since(pod).is_none() {
                    self.set_ready(index, true);
                    done += 1;
                }
            }
            self.now += 1;
            if done == 0 {
                return;
            }
        }
        panic!("it never settles: {:#?}", self.plan());
    }

    fn available(&self) -> i64 {
        Counts::of(self.pods.values(), 0, self.now).available
    }

    fn set_image(&mut self, image: &str) {
        self.deployment["spec"]["template"]["spec"]["containers"][0]["image"] = image.into();
        let generation = self.deployment["metadata"]["generation"].as_i64().unwrap();
        self.deployment["metadata"]["generation"] = json!(generation + 1);
    }

    fn images(&self) -> Vec<&str> {
        self.pods.values().map(|pod| text(pod, "/spec/containers/0/image")).collect()
    }

    fn condition(&self, type_: &str) -> &str {
        pods::find_condition(&self.deployment["status"], type_).map(|one| text(one, "/reason")).unwrap_or_default()
    }

    fn revision(&self) -> &str {
        text(&self.deployment, "/metadata/annotations/deployment.kubernetes.io~1revision")
    }
}

#[test]
fn a_rollout_ends_with_the_new_template_and_an_undo_with_the_old_one() {
    let mut world = World::new(json!({"replicas": 2}));
    world.settle();
    assert_eq!(world.images(), ["v1", "v1"]);
    assert_eq!((world.revision(), world.condition("Progressing")), ("1", "NewReplicaSetAvailable"));
    let first = world.sets.keys().next().unwrap().clone();
    world.set_image("v2");
    world.settle();
    assert_eq!((world.images(), world.revision(), world.sets.len()), (vec!["v2", "v2"], "2", 2));
    // What kubectl does: the template of the old set, without the label that tells it from others.
    world.set_image("v1");
    world.settle();
    assert_eq!((world.images(), world.revision(), world.sets.len()), (vec!["v1", "v1"], "3", 2));
    assert_eq!(
        world.sets[&first]["metadata"]["annotations"]["deployment.kubernetes.io/revision-history"], "1",
        "the old set is the new one"
    );
    let status = &world.deployment["status"];
    assert_eq!((&status["availableReplicas"], &status["updatedReplicas"]), (&json!(2), &json!(2)));
    assert_eq!(status["observedGeneration"], world.deployment["metadata"]["generation"]);
}

#[test]
fn recreate_starts_nothing_new_while_an_old_pod_is_left() {
    let mut world = World::new(json!({"replicas": 3, "strategy": {"type": "Recreate"}}));
    world.settle();
    world.set_image("v2");
    world.deploy();
    let old = world.pods.clone();
    let set = world.sets.keys().next().unwrap().clone();
    world.replicate(&set);
    assert!(world.pods.is_empty());
    // One of them is only asked to end.
    let (name, mut ending) = old.into_iter().next().unwrap();
    ending["metadata"]["deletionTimestamp"] = clock::rfc3339(world.now).into();
    world.pods.insert(name.clone(), ending);
    world.deploy();
    assert_eq!(world.sets.len(), 1, "an old pod is left");
    world.pods.remove(&name);
    world.settle();
    assert_eq!(world.images(), ["v2", "v2", "v2"]);
}

#[test]
fn a_paused_deployment_is_scaled_and_does_not_roll() {
    let mut world = World::new(json!({"replicas": 2}));
    world.settle();
    world.deployment["spec"]["paused"] = json!(true);
    world.deployment["spec"]["replicas"] = json!(4);
    world.set_image("v2");
    world.settle();
    assert_eq!((world.images(), world.condition("Progressing")), (vec!["v1"; 4], "DeploymentPaused"));
    world.deployment["spec"]["paused"] = json!(false);
    world.settle();
    assert_eq!((world.images(), world.condition("Progressing")), (vec!["v2"; 4], "NewReplicaSetAvailable"));
}

#[test]
fn a_rollout_that_makes_no_progress_says_so_at_its_deadline_and_goes_on() {
    let mut world = World::new(json!({"replicas": 1, "progressDeadlineSeconds": 60}));
    while world.deploy()
        + world.sets.keys().cloned().collect::<Vec<_>>().iter().map(|n| world.replicate(n)).sum::<usize>()
        > 0
    {}
    let at = world.plan().at.unwrap();
    assert!(at > world.now && at <= world.now + 61, "{at} at {}", world.now);
    world.now = at;
    world.deploy();
    assert_eq!(
        (world.condition("Progressing"), world.condition("Available")),
        (TIMED_OUT, "MinimumReplicasUnavailable")
    );
    assert_eq!(world.deploy(), 0);
    world.settle();
    assert_eq!(
        (world.condition("Progressing"), world.condition("Available")),
        ("NewReplicaSetAvailable", "MinimumReplicasAvailable")
    );
}

const TIMED_OUT: &str = "ProgressDeadlineExceeded";

#[test]
fn only_so_many_old_revisions_are_kept_and_a_taken_name_is_another_hash() {
    let mut world = World::new(json!({"replicas": 1, "revisionHistoryLimit": 2}));
    for version in ["v1", "v2", "v3", "v4", "v5"] {
        world.set_image(version);
        world.settle();
    }
    let mut revisions: Vec<&str> =
        world.sets.values().map(|set| text(set, "/metadata/annotations/deployment.kubernetes.io~1revision")).collect();
    revisions.sort_unstable();
    assert_eq!(revisions, ["3", "4", "5"]);

    let mut fresh = World::new(json!({"replicas": 1}));
    let plan = fresh.plan();
    let Some(Action::Create(_, set)) = plan.actions.first() else { panic!("{plan:?}") };
    let name = text(set, "/metadata/name").to_owned();
    // Someone else's.
    fresh.sets.insert(name.clone(), json!({"metadata": {"name": name, "namespace": "n", "uid": "other"}}));
    fresh.deploy();
    assert_eq!((fresh.sets.len(), &fresh.deployment["status"]["collisionCount"]), (2, &json!(1)));
}

/// What happens to the cluster.
#[derive(Clone, Debug)]
enum Step {
    Deploy,
    Replicate(usize),
    Ready(usize),
    Image(u8),
    Scale(i64),
}

fn steps(with_changes: bool) -> impl Strategy<Value = Vec<Step>> {
    let quiet = prop_oneof![
        4 => Just(Step::Deploy),
        4 => (0..4_usize).prop_map(Step::Replicate),
        4 => (0..12_usize).prop_map(Step::Ready),
        1 => (1..4_u8).prop_map(Step::Image),
    ];
    let any = prop_oneof![
        8 => quiet.boxed(),
        u32::from(with_changes) => (0..7_i64).prop_map(Step::Scale),
    ];
    proptest::collection::vec(any, 0..80)
}

fn share() -> impl Strategy<Value = Value> {
    prop_oneof![(0..4_i64).prop_map(Value::from), (0..=100_u32).prop_map(|n| json!(format!("{n}%")))]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// P-APPS-ROLLOUT: whatever order things happen in, a rollout never has fewer available pods than it promises nor
    /// more pods than it may, and it ends.
    #[test]
    fn a_rollout_keeps_its_promise_and_ends(
        replicas in 0..6_i64, surge in share(), unavailable in share(), steps in steps(false),
    ) {
        let rolling = json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable}});
        let mut world = World::new(json!({"replicas": replicas, "strategy": rolling}));
        world.settle();
        let wish = Wish::of(&world.deployment);
        for step in steps {
            run(&mut world, &step);
            prop_assert!(world.available() >= replicas - wish.max_unavailable, "{step:?}: {world:#?}");
            prop_assert!(i64::try_from(world.pods.len()).unwrap() <= wish.ceiling(), "{step:?}: {world:#?}");
        }
        world.settle();
        ended(&world)?;
    }

    #[test]
    fn however_it_is_scaled_and_changed_it_ends_with_what_is_wanted(
        replicas in 0..6_i64, recreate: bool, steps in steps(true),
    ) {
        let strategy = if recreate { json!({"type": "Recreate"}) } else { json!({}) };
        let mut world = World::new(json!({"replicas": replicas, "strategy": strategy}));
        for step in steps {
            run(&mut world, &step);
        }
        world.settle();
        ended(&world)?;
    }
}

fn run(world: &mut World, step: &Step) {
    world.now += 1;
    match step {
        Step::Deploy => {
            world.deploy();
        }
        Step::Replicate(index) => {
            if let Some(name) = world.sets.keys().nth(*index).cloned() {
                world.replicate(&name);
            }
        }
        Step::Ready(index) => world.set_ready(*index, true),
        Step::Image(number) => world.set_image(&format!("v{number}")),
        Step::Scale(replicas) => {
            world.deployment["spec"]["replicas"] = json!(replicas);
            let generation = world.deployment["metadata"]["generation"].as_i64().unwrap();
            world.deployment["metadata"]["generation"] = json!(generation + 1);
        }
    }
}

fn ended(world: &World) -> Result<(), TestCaseError> {
    let wanted = world.deployment["spec"]["replicas"].as_i64().unwrap();
    let image = text(&world.deployment, "/spec/template/spec/containers/0/image");
    prop_assert_eq!(world.available(), wanted);
    prop_assert!(world.images().iter().all(|one| *one == image), "{:?} instead of {}", world.images(), image);
    prop_assert_eq!(world.condition("Progressing"), "NewReplicaSetAvailable");
    prop_assert_eq!(&world.deployment["status"]["observedGeneration"], &world.deployment["metadata"]["generation"]);
    prop_assert!(world.plan().actions.is_empty());
    Ok(())
}
