use proptest::prelude::*;
use serde_json::json;

use super::*;

const T0: Duration = Duration::ZERO;

fn pod(name: &str, uid: &str, version: u64, node: &str, configs: &[&str]) -> Value {
    let volumes: Vec<Value> = configs.iter().map(|name| json!({"name": name, "configMap": {"name": name}})).collect();
    json!({
        "metadata": {"namespace": "ns", "name": name, "uid": uid, "resourceVersion": version.to_string()},
        "spec": {"nodeName": node, "volumes": volumes},
    })
}

fn config(name: &str, uid: &str, version: u64, value: &str) -> Value {
    json!({
        "metadata": {"namespace": "ns", "name": name, "uid": uid, "resourceVersion": version.to_string()},
        "data": {"key": value},
    })
}

fn config_key(name: &str) -> ConfigKey {
    ConfigKey { kind: ConfigKind::ConfigMap, namespace: "ns".into(), name: name.into() }
}

/// Effects as words: `+pods/a@e1`, `-configmaps/c@e1`, `watch c`.
fn words(effects: &[Effect]) -> Vec<String> {
    effects
        .iter()
        .map(|effect| match effect {
            Effect::Watch(key) => format!("watch {}", key.name),
            Effect::Unwatch(key) => format!("unwatch {}", key.name),
            Effect::Upsert(node, upsert) => {
                let object = upsert.object.as_ref().unwrap();
                let (type_, key) = (object.r#type.as_ref().unwrap(), object.key.as_ref().unwrap());
                format!("+{}/{}:{}@{node}", type_.resource, key.name, object.uid)
            }
            Effect::Tombstone(node, gone) => {
                let (type_, key) = (gone.r#type.as_ref().unwrap(), gone.key.as_ref().unwrap());
                format!("-{}/{}:{}@{node}", type_.resource, key.name, gone.uid)
            }
            Effect::Compare => "compare".into(),
        })
        .collect()
}

#[test]
fn a_pod_waits_for_what_it_names_and_comes_after_it() {
    let mut desired = Desired::default();
    assert_eq!(words(&desired.pods_replaced(T0, vec![pod("a", "u1", 5, "e1", &["c"])], 9)), ["watch c"]);
    assert!(!desired.is_complete("e1"));
    let effects = desired.config_known(&config_key("c"), Some(config("c", "k1", 4, "x")), 10);
    assert_eq!(words(&effects), ["+configmaps/c:k1@e1", "+pods/a:u1@e1"]);
    assert!(desired.is_complete("e1"));
}

#[test]
fn a_claim_brings_its_volume_once_it_is_bound_and_takes_it_along() {
    let mut desired = Desired::default();
    let mut with_claim = pod("a", "u1", 5, "e1", &[]);
    with_claim["spec"]["volumes"] = json!([{"name": "d", "persistentVolumeClaim": {"claimName": "d"}}]);
    assert_eq!(words(&desired.pods_replaced(T0, vec![with_claim], 9)), ["watch d"]);
    let claim = ConfigKey { kind: ConfigKind::Claim, namespace: "ns".into(), name: "d".into() };
    let volume = |name: &str| ConfigKey { kind: ConfigKind::Volume, namespace: String::new(), name: name.into() };
    let bound = |version: u64, to: Option<&str>| {
        let mut claim = config("d", "c1", version, "");
        claim["spec"] = json!({"volumeName": to});
        claim
    };
    // A claim that is not bound yet is told, and its pod with it.
    let effects = desired.config_known(&claim, Some(bound(4, None)), 10);
    assert_eq!(words(&effects), ["+persistentvolumeclaims/d:c1@e1", "+pods/a:u1@e1"]);
    assert!(desired.is_complete("e1") && !desired.names("e1", &volume("v")));
    let effects = desired.config_known(&claim, Some(bound(11, Some("v"))), 11);
    assert_eq!(words(&effects), ["+persistentvolumeclaims/d:c1@e1", "watch v"]);
    assert!(!desired.is_complete("e1") && desired.names("e1", &volume("v")));
    let effects = desired.config_known(&volume("v"), Some(config("v", "v1", 3, "")), 12);
    assert_eq!(words(&effects), ["+persistentvolumes/v:v1@e1"]);
    assert!(desired.is_complete("e1"));
    let kinds = desired.snapshot("e1").kinds;
    let held: Vec<usize> = kinds.iter().map(|kind| kind.objects.len()).collect();
    assert_eq!(held, [0, 0, 1, 1, 0, 1], "config maps, secrets, claims, volumes, classes, pods");
    let needs: Vec<&str> = kinds[5].objects[0].needs.iter().map(|needed| needed.uid.as_str()).collect();
    assert_eq!(needs, ["c1", "v1"]);
    let effects = desired.config_known(&claim, Some(bound(13, Some("w"))), 13);
    assert_eq!(
        words(&effects),
        ["+persistentvolumeclaims/d:c1@e1", "watch w", "-persistentvolumes/v:v1@e1", "unwatch v"]
    );
    let gone = words(&desired.pods_replaced(T0, vec![], 14));
    assert_eq!(gone, ["-pods/a:u1@e1", "-persistentvolumeclaims/d:c1@e1", "unwatch d", "unwatch w"]);
}

#[test]
fn a_runtime_class_comes_before_its_pods_and_to_no_other_node() {
    let mut desired = Desired::default();
    let of_class = |name: &str, uid: &str, node: &str, class: Option<&str>| {
        let mut pod = pod(name, uid, 5, node, &[]);
        pod["spec"]["runtimeClassName"] = json!(class);
        pod
    };
    let pods = vec![of_class("a", "u1", "e1", Some("slim")), of_class("b", "u2", "e2", None)];
    assert_eq!(words(&desired.pods_replaced(T0, pods, 9)), ["watch slim", "+pods/b:u2@e2"]);
    let key = ConfigKey { kind: ConfigKind::RuntimeClass, namespace: String::new(), name: "slim".into() };
    let class = |uid: &str, version: u64| {
        let metadata = json!({"name": "slim", "uid": uid, "resourceVersion": version.to_string()});
        json!({"metadata": metadata, "handler": "runc"})
    };
    let effects = desired.config_known(&key, Some(class("k1", 4)), 10);
    assert_eq!(words(&effects), ["+runtimeclasses/slim:k1@e1", "+pods/a:u1@e1"]);
    assert!(desired.names("e1", &key) && !desired.names("e2", &key));
    // One that is made again, and one that is gone: its pod stays.
    let effects = desired.config_known(&key, Some(class("k2", 11)), 11);
    assert_eq!(words(&effects), ["-runtimeclasses/slim:k1@e1", "+runtimeclasses/slim:k2@e1"]);
    assert_eq!(words(&desired.config_known(&key, None, 12)), ["-runtimeclasses/slim:k2@e1"]);
    assert!(desired.is_complete("e1"));
}

#[test]
fn a_list_that_went_back_ends_nothing_and_has_every_node_compared() {
    let mut desired = Desired::default();
    desired.pods_replaced(T0, vec![pod("a", "u1", 5, "e1", &["c"]), pod("b", "u2", 8, "e1", &[])], 9);
    desired.config_known(&config_key("c"), Some(config("c", "k1", 4, "x")), 10);
    let effects = desired.pods_replaced(T0, vec![pod("a", "u1", 5, "e1", &["c"])], 6);
    assert_eq!(words(&effects), ["compare"]);
    assert_eq!(words(&desired.config_listed(&config_key("c"), None, 7)), ["compare"]);
    let kinds = desired.snapshot("e1").kinds;
    assert!(kinds.iter().all(|kind| kind.as_of <= 7), "a claim of before does not stand: {kinds:?}");
    assert_eq!(words(&desired.pods_replaced(T0, vec![], 11)), ["-pods/a:u1@e1", "unwatch c"]);
}

#[test]
fn a_pod_names_what_is_there_of_what_it_needs_until_it_is_to_end() {
    let mut desired = Desired::default();
    desired.pods_replaced(T0, vec![pod("a", "u1", 5, "e1", &["c", "d"])], 9);
    desired.config_known(&config_key("c"), Some(config("c", "k1", 4, "x")), 10);
    let needs = |effects: &[Effect]| match effects.last() {
        Some(Effect::Upsert(_, upsert)) => upsert.needs.iter().map(|needed| needed.uid.clone()).collect::<Vec<_>>(),
        other => panic!("{other:?}"),
    };
    assert_eq!(needs(&desired.config_known(&config_key("d"), None, 10)), ["k1"]);
    let mut ending = pod("a", "u1", 12, "e1", &["c", "d"]);
    ending["metadata"]["deletionTimestamp"] = "2027-01-15T08:00:00Z".into();
    assert!(needs(&desired.pod_applied(T0, ending)).is_empty());
}

#[test]
fn a_missing_config_holds_a_pod_only_until_its_absence_is_known() {
    let mut desired = Desired::default();
    desired.pods_replaced(T0, vec![pod("a", "u1", 5, "e1", &["c"])], 9);
    assert_eq!(words(&desired.config_known(&config_key("c"), None, 10)), ["+pods/a:u1@e1"]);
    let later = desired.config_known(&config_key("c"), Some(config("c", "k1", 11, "x")), 11);
    assert_eq!(words(&later), ["+configmaps/c:k1@e1"]);
}

#[test]
fn a_pod_is_not_held_longer_than_the_bound() {
    let mut desired = Desired::default();
    desired.pods_replaced(T0, vec![pod("a", "u1", 5, "e1", &["c"])], 9);
    assert!(desired.tick(HOLD - Duration::from_millis(1)).is_empty());
    assert_eq!(words(&desired.tick(HOLD)), ["+pods/a:u1@e1"]);
    assert!(desired.tick(HOLD * 2).is_empty());
    assert!(!desired.is_complete("e1"), "what the pod names is still unknown");
}

#[test]
fn the_last_pod_takes_its_configs_along_after_itself() {
    let mut desired = Desired::default();
    desired.pods_replaced(T0, vec![pod("a", "u1", 5, "e1", &["c"]), pod("b", "u2", 6, "e1", &["c"])], 9);
    desired.config_known(&config_key("c"), Some(config("c", "k1", 4, "x")), 9);
    assert_eq!(words(&desired.pod_deleted(&pod("a", "u1", 12, "e1", &[]))), ["-pods/a:u1@e1"]);
    assert_eq!(
        words(&desired.pod_deleted(&pod("b", "u2", 13, "e1", &[]))),
        ["-pods/b:u2@e1", "-configmaps/c:k1@e1", "unwatch c"]
    );
}

#[test]
fn recreated_under_one_name_the_old_one_ends_first() {
    let mut desired = Desired::default();
    desired.pods_replaced(T0, vec![pod("a", "u1", 5, "e1", &[])], 9);
    assert_eq!(words(&desired.pod_applied(T0, pod("a", "u2", 12, "e2", &[]))), ["-pods/a:u1@e1", "+pods/a:u2@e2"]);
    assert!(desired.pod_deleted(&pod("a", "u1", 11, "e1", &[])).is_empty(), "the old uid ends nothing now");
}

#[test]
fn a_change_of_status_only_is_no_change() {
    let mut desired = Desired::default();
    desired.pods_replaced(T0, vec![pod("a", "u1", 5, "e1", &[])], 9);
    let mut changed = pod("a", "u1", 10, "e1", &[]);
    changed["status"] = json!({"phase": "Running"});
    assert!(desired.pod_applied(T0, changed).is_empty());
    assert_eq!(desired.snapshot("e1").kinds[2].as_of, 10);
}

#[test]
fn nothing_is_complete_before_the_first_list() {
    let mut desired = Desired::default();
    desired.pod_applied(T0, pod("a", "u1", 5, "e1", &[]));
    assert!(desired.snapshot("e1").kinds.iter().all(|kind| !kind.complete));
    desired.pods_replaced(T0, vec![], 9);
    assert!(desired.snapshot("e1").kinds.iter().all(|kind| kind.complete && kind.objects.is_empty()));
}

#[derive(Clone, Debug)]
enum Step {
    Apply { name: u8, uid: u8, node: u8, configs: Vec<u8> },
    Delete { name: u8, uid: u8 },
    Config { name: u8, uid: Option<u8> },
    Relist { names: Vec<(u8, u8, u8, Vec<u8>)> },
    Tick,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let configs = || prop::collection::vec(0..3u8, 0..3);
    prop::collection::vec(
        prop_oneof![
            4 => (0..3u8, 0..3u8, 0..2u8, configs())
                .prop_map(|(name, uid, node, configs)| Step::Apply { name, uid, node, configs }),
            2 => (0..3u8, 0..3u8).prop_map(|(name, uid)| Step::Delete { name, uid }),
            3 => (0..3u8, prop::option::of(0..2u8)).prop_map(|(name, uid)| Step::Config { name, uid }),
            1 => prop::collection::vec((0..3u8, 0..3u8, 0..2u8, configs()), 0..3)
                .prop_map(|names| Step::Relist { names }),
            1 => Just(Step::Tick),
        ],
        1..40,
    )
}

proptest! {
    /// What a node has after all effects is what a snapshot says it should have; watches match what is named.
    #[test]
    fn effects_lead_to_the_snapshot(steps in steps()) {
        let mut desired = Desired::default();
        let mut held: HashMap<(String, String), String> = HashMap::new();
        let mut watched: HashSet<String> = HashSet::new();
        let mut now = T0;
        for (i, step) in steps.into_iter().enumerate() {
            let version = i as u64 + 10;
            let make = |name: u8, uid: u8, node: u8, configs: &[u8]| {
                let names: Vec<String> = configs.iter().map(|c| format!("c{c}")).collect();
                let names: Vec<&str> = names.iter().map(String::as_str).collect();
                pod(&format!("p{name}"), &format!("u{uid}"), version, &format!("e{node}"), &names)
            };
            let effects = match step {
                Step::Apply { name, uid, node, configs } => desired.pod_applied(now, make(name, uid, node, &configs)),
                Step::Delete { name, uid } => desired.pod_deleted(&make(name, uid, 0, &[])),
                Step::Config { name, uid } => {
                    let key = format!("c{name}");
                    let object = uid.map(|uid| config(&key, &format!("k{uid}"), version, &version.to_string()));
                    desired.config_known(&config_key(&key), object, version)
                }
                Step::Relist { names } => {
                    let mut pods: BTreeMap<u8, Value> = BTreeMap::new();
                    for (name, uid, node, configs) in names {
                        pods.insert(name, make(name, uid, node, &configs));
                    }
                    desired.pods_replaced(now, pods.into_values().collect(), version)
                }
                Step::Tick => {
                    now += HOLD;
                    desired.tick(now)
                }
            };
            for effect in &effects {
                match effect {
                    Effect::Upsert(node, upsert) => {
                        let object = upsert.object.as_ref().unwrap();
                        let id = format!("{}/{}", object.r#type.as_ref().unwrap().resource, object.key.as_ref().unwrap());
                        let old = held.insert((node.clone(), id), object.uid.clone());
                        prop_assert!(old.is_none_or(|old| old == object.uid), "an old uid must end first");
                    }
                    Effect::Tombstone(node, gone) => {
                        let id = format!("{}/{}", gone.r#type.as_ref().unwrap().resource, gone.key.as_ref().unwrap());
                        held.remove(&(node.clone(), id));
                    }
                    Effect::Watch(key) => prop_assert!(watched.insert(key.name.clone())),
                    Effect::Unwatch(key) => prop_assert!(watched.remove(&key.name)),
                    Effect::Compare => prop_assert!(false, "no list went back"),
                }
            }
        }
        let mut wanted: HashMap<(String, String), String> = HashMap::new();
        for node in ["e0", "e1"] {
            for kind in desired.snapshot(node).kinds {
                for upsert in kind.objects {
                    let object = upsert.object.unwrap();
                    let id = format!("{}/{}", object.r#type.unwrap().resource, object.key.unwrap());
                    wanted.insert((node.to_owned(), id), object.uid);
                }
            }
        }
        prop_assert_eq!(held, wanted);
        let named: HashSet<String> = desired.configs.keys().map(|key| key.name.clone()).collect();
        prop_assert_eq!(watched, named);
    }
}
