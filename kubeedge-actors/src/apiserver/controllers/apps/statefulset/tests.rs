//! A StatefulSet against a model of a cluster: pods start, fail and end as chance has it.

use proptest::prelude::*;

use super::*;
use crate::apiserver::kinds;

#[derive(Clone, Debug)]
struct World {
    set: Value,
    pods: BTreeMap<String, Value>,
    revisions: BTreeMap<String, Value>,
    made: u64,
    now: i64,
}

impl World {
    fn new(spec: Value) -> Self {
        let mut all = json!({
            "serviceName": "db", "selector": {"matchLabels": {"app": "db"}},
            "template": {"metadata": {"labels": {"app": "db"}}, "spec": {"containers": [{"name": "c", "image": "v1"}]}},
        });
        for (field, value) in spec.as_object().unwrap() {
            all[field] = value.clone();
        }
        let mut set = json!({
            "apiVersion": "apps/v1", "kind": "StatefulSet",
            "metadata": {"name": "db", "namespace": "n", "uid": "db", "generation": 1}, "spec": all,
        });
        (kinds::find("apps", "v1", "statefulsets").unwrap().default)(&mut set);
        Self { set, pods: BTreeMap::new(), revisions: BTreeMap::new(), made: 0, now: 1000 }
    }

    fn plan(&self) -> Plan {
        let family = Family {
            owner: self.set.clone(),
            pods: self.pods.values().cloned().collect(),
            revisions: self.revisions.values().cloned().collect(),
            taken_names: self.revisions.keys().cloned().collect(),
            ..Family::default()
        };
        decide(&family, self.now, None)
    }

    /// One look; gives how much it did.
    fn look(&mut self) -> usize {
        let plan = self.plan();
        let done = plan.actions.len();
        for action in plan.actions {
            match action {
                Action::Create(resource, mut object) => {
                    self.made += 1;
                    object["metadata"]["uid"] = format!("uid-{}", self.made).into();
                    object["metadata"]["creationTimestamp"] = clock::rfc3339(self.now).into();
                    let name = text(&object, "/metadata/name").to_owned();
                    let all = if resource == Resource::Pods { &mut self.pods } else { &mut self.revisions };
                    assert!(all.insert(name, object).is_none(), "two of one name");
                }
                Action::Put(Resource::StatefulSets, set) => self.set = set,
                Action::Put(_, revision) => {
                    self.revisions.insert(text(&revision, "/metadata/name").to_owned(), revision);
                }
                Action::Delete(Resource::Revisions, revision) => {
                    self.revisions.remove(text(&revision, "/metadata/name"));
                }
                // It ends in its own time.
                Action::Delete(_, pod) => {
                    let pod = self.pods.get_mut(text(&pod, "/metadata/name")).unwrap();
                    assert!(!is_ending(pod), "a pod is deleted twice");
                    pod["metadata"]["deletionTimestamp"] = clock::rfc3339(self.now).into();
                }
                Action::Event(..) => {}
            }
        }
        done
    }

    /// What the node does with one pod.
    fn work(&mut self, index: usize) -> usize {
        let Some((name, pod)) = self.pods.iter_mut().nth(index) else { return 0 };
        if is_ending(pod) {
            let name = name.clone();
            self.pods.remove(&name);
            return 1;
        }
        if ready_since(pod).is_some() || has_ended(pod) {
            return 0;
        }
        pod["status"] = json!({"phase": "Running", "conditions":
            [{"type": "Ready", "status": "True", "lastTransitionTime": clock::rfc3339(self.now)}]});
        1
    }

    fn settle(&mut self) {
        for _ in 0..500 {
            let mut done = self.look();
            for index in 0..self.pods.len() {
                done += self.work(index);
            }
            done += usize::from(self.pods.values().any(has_ended));
            self.now += 1;
            if done == 0 {
                return;
            }
        }
        panic!("it never settles: {:#?}", self.plan());
    }

    fn set_image(&mut self, image: &str) {
        self.set["spec"]["template"]["spec"]["containers"][0]["image"] = image.into();
        let generation = self.set["metadata"]["generation"].as_i64().unwrap();
        self.set["metadata"]["generation"] = json!(generation + 1);
    }

    fn names(&self) -> Vec<&str> {
        self.pods.keys().map(String::as_str).collect()
    }

    fn images(&self) -> Vec<&str> {
        self.pods.values().map(|pod| text(pod, "/spec/containers/0/image")).collect()
    }
}

#[test]
fn pods_have_names_that_stay_and_come_in_order() {
    let mut world = World::new(json!({"replicas": 3}));
    world.look();
    assert_eq!(world.names(), ["db-0"]);
    world.look();
    assert_eq!(world.names(), ["db-0"], "the first is not ready");
    world.settle();
    assert_eq!(world.names(), ["db-0", "db-1", "db-2"]);
    let pod = &world.pods["db-1"];
    assert_eq!((&pod["spec"]["hostname"], &pod["spec"]["subdomain"]), (&json!("db-1"), &json!("db")));
    assert_eq!(
        (&pod["metadata"]["labels"][POD_NAME], &pod["metadata"]["labels"][POD_INDEX]),
        (&json!("db-1"), &json!("1"))
    );
    let status = &world.set["status"];
    assert_eq!(
        (&status["readyReplicas"], &status["currentReplicas"], &status["updatedReplicas"]),
        (&json!(3), &json!(3), &json!(3))
    );
    assert_eq!(status["currentRevision"], status["updateRevision"]);
    world.set["spec"]["replicas"] = json!(1);
    world.look();
    let ending: Vec<bool> = world.pods.values().map(is_ending).collect();
    assert_eq!(ending, [false, false, true]);
    world.settle();
    assert_eq!(world.names(), ["db-0"]);
    let mut parallel = World::new(json!({"replicas": 3, "podManagementPolicy": "Parallel", "ordinals": {"start": 5}}));
    parallel.look();
    assert_eq!(parallel.names(), ["db-5", "db-6", "db-7"]);
}

#[test]
fn a_partition_holds_a_rollout_and_pods_below_it_come_back_as_they_were() {
    let partition = |at: i64| json!({"type": "RollingUpdate", "rollingUpdate": {"partition": at}});
    let mut world = World::new(json!({"replicas": 3, "updateStrategy": partition(2)}));
    world.settle();
    world.set_image("v2");
    world.settle();
    assert_eq!(world.images(), ["v1", "v1", "v2"]);
    let status = &world.set["status"];
    assert_eq!((&status["currentReplicas"], &status["updatedReplicas"]), (&json!(2), &json!(1)));
    assert_ne!(status["currentRevision"], status["updateRevision"]);
    world.pods.remove("db-0");
    world.settle();
    assert_eq!(world.images(), ["v1", "v1", "v2"]);
    world.set["spec"]["updateStrategy"] = partition(0);
    world.settle();
    assert_eq!(world.images(), ["v2", "v2", "v2"]);
    assert_eq!(world.set["status"]["currentRevision"], world.set["status"]["updateRevision"]);
    world.set["spec"]["updateStrategy"] = json!({"type": "OnDelete"});
    world.set_image("v3");
    world.settle();
    assert_eq!(world.images(), ["v2", "v2", "v2"]);
    world.pods.remove("db-1");
    world.settle();
    assert_eq!(world.images(), ["v2", "v3", "v2"]);
}

#[derive(Clone, Debug)]
enum Step {
    Look,
    Work(usize),
    Fail(usize),
    Image(u8),
    Scale(i64),
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// P-APPS-IDENTITY: whatever happens there is never a second pod of a name, an ordered set never has a pod whose
    /// predecessor was not there when it was made, and it ends with exactly the names it should have.
    #[test]
    fn identities_are_unique_and_the_set_ends_as_wanted(
        replicas in 0..5_i64, parallel: bool, steps in proptest::collection::vec(prop_oneof![
            4 => Just(Step::Look),
            4 => (0..6_usize).prop_map(Step::Work),
            1 => (0..6_usize).prop_map(Step::Fail),
            1 => (1..4_u8).prop_map(Step::Image),
            1 => (0..5_i64).prop_map(Step::Scale),
        ], 0..60),
    ) {
        let policy = if parallel { "Parallel" } else { "OrderedReady" };
        let mut world = World::new(json!({"replicas": replicas, "podManagementPolicy": policy}));
        for step in steps {
            world.now += 1;
            match step {
                Step::Look => {
                    let before = world.pods.clone();
                    world.look();
                    let new: Vec<&String> = world.pods.keys().filter(|name| !before.contains_key(*name)).collect();
                    if !parallel {
                        prop_assert!(new.len() <= 1);
                        for name in new {
                            let number: i64 = name.trim_start_matches("db-").parse().unwrap();
                            for earlier in 0..number {
                                let pod = &before[&format!("db-{earlier}")];
                                prop_assert!(ready_since(pod).is_some() && !is_ending(pod), "{name} before {earlier}");
                            }
                        }
                    }
                }
                Step::Work(index) => { world.work(index); }
                Step::Fail(index) => if let Some(pod) = world.pods.values_mut().nth(index) {
                    pod["status"] = json!({"phase": "Failed"});
                },
                Step::Image(number) => world.set_image(&format!("v{number}")),
                Step::Scale(replicas) => world.set["spec"]["replicas"] = json!(replicas),
            }
        }
        world.settle();
        let wanted: Vec<String> = Wish::of(&world.set).ordinals().map(|number| format!("db-{number}")).collect();
        prop_assert_eq!(world.names(), wanted);
        let image = text(&world.set, "/spec/template/spec/containers/0/image");
        prop_assert!(world.images().iter().all(|one| *one == image));
        prop_assert!(world.plan().actions.is_empty());
        prop_assert_eq!(&world.set["status"]["currentRevision"], &world.set["status"]["updateRevision"]);
    }
}
