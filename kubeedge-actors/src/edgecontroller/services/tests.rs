use proptest::prelude::*;
use serde_json::json;

use super::*;

fn service(namespace: &str, name: &str, uid: &str, version: u64, address: &str) -> Value {
    json!({
        "metadata": {"namespace": namespace, "name": name, "uid": uid, "resourceVersion": version.to_string(),
            "labels": {"app": name}},
        "spec": {"clusterIP": address, "selector": {"app": name},
            "ports": [{"name": "http", "protocol": "TCP", "port": 80, "targetPort": 8080, "nodePort": 30080}]},
    })
}

/// Effects as words: `+ns/a:u1@e1`, `-ns/a:u1@e1`.
fn words(effects: &[Effect]) -> Vec<String> {
    let word = |effect: &Effect| match effect {
        Effect::Upsert(node, upsert) => {
            let object = upsert.object.as_ref().unwrap();
            format!("+{}:{}@{node}", object.key.as_ref().unwrap(), object.uid)
        }
        Effect::Tombstone(node, gone) => format!("-{}:{}@{node}", gone.key.as_ref().unwrap(), gone.uid),
        Effect::Compare => "compare".into(),
        other => panic!("{other:?}"),
    };
    effects.iter().map(word).collect()
}

fn seen(services: &mut Services, namespace: &str, node: &str) -> Vec<String> {
    let mut effects = Vec::new();
    services.seen(namespace, node, &mut effects);
    words(&effects)
}

fn unseen(services: &mut Services, namespace: &str, node: &str) -> Vec<String> {
    let mut effects = Vec::new();
    services.unseen(namespace, node, &mut effects);
    words(&effects)
}

#[test]
fn a_node_has_the_services_of_its_pods_namespaces_while_it_has_pods_there() {
    let mut services = Services::default();
    let all = [service("a", "x", "u1", 3, "10.0.0.1"), service("ab", "y", "u2", 4, "10.0.0.2")];
    assert!(words(&services.page(&all, 9)).is_empty() && words(&services.listed(9)).is_empty());
    assert_eq!(seen(&mut services, "a", "e1"), ["+a/x:u1@e1"]);
    assert!(seen(&mut services, "a", "e1").is_empty(), "another pod");
    assert_eq!(seen(&mut services, "ab", "e2"), ["+ab/y:u2@e2"]);
    assert_eq!(words(&services.applied(&service("a", "z", "u3", 10, "10.0.0.3"))), ["+a/z:u3@e1"]);
    assert_eq!(words(&services.applied(&service("a", "x", "u4", 11, "10.0.0.1"))), ["-a/x:u1@e1", "+a/x:u4@e1"]);
    assert!(services.deleted(&service("a", "x", "u1", 12, "")).is_empty(), "the old one ends nothing now");
    assert_eq!(words(&services.deleted(&service("a", "x", "u4", 12, ""))), ["-a/x:u4@e1"]);
    assert!(unseen(&mut services, "a", "e1").is_empty());
    let mut effects = Vec::new();
    services.unseen("a", "e1", &mut effects);
    assert_eq!(words(&effects), ["-a/z:u3@e1"]);
    let [Effect::Tombstone(_, gone)] = &effects[..] else { panic!("{effects:?}") };
    assert_eq!(gone.resource_version, "12", "what is known of Services, and no more");
    assert!(words(&services.applied(&service("a", "z", "u3", 13, "10.0.0.9"))).is_empty());
}

#[test]
fn only_what_a_variable_tells_is_told() {
    let mut services = Services::default();
    seen(&mut services, "default", "e1");
    for nothing in
        [service("default", "kubernetes", "u", 1, "10.0.0.1"), service("default", "headless", "u", 1, "None")]
    {
        assert!(services.applied(&nothing).is_empty(), "{nothing}");
    }
    assert!(services.applied(&service("default", "external", "u", 1, "")).is_empty());
    let effects = services.applied(&service("default", "web", "u", 2, "10.0.0.1"));
    let [Effect::Upsert(_, upsert)] = &effects[..] else { panic!("{effects:?}") };
    let object: Value = serde_json::from_slice(&upsert.object.as_ref().unwrap().json).unwrap();
    assert_eq!(
        object["spec"],
        json!({"clusterIP": "10.0.0.1", "ports": [{"name": "http", "protocol": "TCP", "port": 80}]})
    );
    let mut other = service("default", "web", "u", 3, "10.0.0.1");
    other["spec"]["selector"] = json!({"app": "other"});
    assert!(services.applied(&other).is_empty(), "no variable tells of it");
    // It loses its address.
    assert_eq!(words(&services.applied(&service("default", "web", "u", 4, ""))), ["-default/web:u@e1"]);
}

#[test]
fn before_a_list_nothing_is_said_and_a_list_that_went_back_ends_nothing() {
    let mut services = Services::default();
    let namespaces = BTreeSet::from(["a"]);
    assert_eq!(services.desired(&namespaces, Some(9)), None);
    seen(&mut services, "a", "e1");
    assert_eq!(words(&services.page(&[service("a", "x", "u1", 3, "10.0.0.1")], 9)), ["+a/x:u1@e1"]);
    services.listed(9);
    assert_eq!(services.desired(&namespaces, None), None, "the pods are not known");
    let desired = services.desired(&namespaces, Some(7)).unwrap();
    assert_eq!((desired.complete, desired.as_of, desired.objects.len()), (true, 7, 1));
    services.listing();
    assert!(services.page(&[], 5).is_empty());
    assert_eq!(words(&services.listed(5)), ["compare"]);
    services.listing();
    assert!(services.listed(12).is_empty(), "it was forgotten here, and the comparison ends it");
}

#[derive(Clone, Debug)]
enum Step {
    Seen(u8, u8),
    Unseen(u8, u8),
    Applied(u8, u8, u8, u8),
    Deleted(u8, u8, u8),
    List(Vec<(u8, u8, u8, u8)>),
}

fn step() -> impl Strategy<Value = Step> {
    let (namespace, name, uid, address) = (0..2u8, 0..2u8, 0..2u8, 0..3u8);
    prop_oneof![
        3 => (0..2u8, 0..2u8).prop_map(|(namespace, node)| Step::Seen(namespace, node)),
        2 => (0..2u8, 0..2u8).prop_map(|(namespace, node)| Step::Unseen(namespace, node)),
        3 => (namespace.clone(), name.clone(), uid.clone(), address.clone())
            .prop_map(|(namespace, name, uid, address)| Step::Applied(namespace, name, uid, address)),
        1 => (namespace.clone(), name.clone(), uid.clone())
            .prop_map(|(namespace, name, uid)| Step::Deleted(namespace, name, uid)),
        1 => prop::collection::vec((namespace, name, uid, address), 0..4).prop_map(Step::List),
    ]
}

proptest! {
    /// What a node has after all effects is what it is said to have, and an old one ends before a new one of its name comes.
    #[test]
    fn effects_lead_to_what_is_desired(steps in prop::collection::vec(step(), 1..40)) {
        let mut services = Services::default();
        services.listed(1);
        let mut held: BTreeMap<(String, String), String> = BTreeMap::new();
        let mut pods: HashMap<(String, String), u32> = HashMap::new();
        for (version, step) in (10u64..).zip(steps) {
            let make = |namespace: u8, name: u8, uid: u8, address: u8| {
                let address = if address == 0 { String::new() } else { format!("10.0.0.{address}") };
                service(&format!("n{namespace}"), &format!("s{name}"), &format!("u{uid}"), version, &address)
            };
            let mut effects = Vec::new();
            match step {
                Step::Seen(namespace, node) => {
                    let (namespace, node) = (format!("n{namespace}"), format!("e{node}"));
                    services.seen(&namespace, &node, &mut effects);
                    *pods.entry((namespace, node)).or_default() += 1;
                }
                Step::Unseen(namespace, node) => {
                    let (namespace, node) = (format!("n{namespace}"), format!("e{node}"));
                    if let Some(count) = pods.get_mut(&(namespace.clone(), node.clone())).filter(|count| **count > 0) {
                        *count -= 1;
                        services.unseen(&namespace, &node, &mut effects);
                    }
                }
                Step::Applied(namespace, name, uid, address) => {
                    effects = services.applied(&make(namespace, name, uid, address));
                }
                Step::Deleted(namespace, name, uid) => effects = services.deleted(&make(namespace, name, uid, 1)),
                Step::List(list) => {
                    let list: BTreeMap<_, _> =
                        list.into_iter().map(|(namespace, name, uid, address)| ((namespace, name), (uid, address))).collect();
                    let list: Vec<Value> = list
                        .into_iter()
                        .map(|((namespace, name), (uid, address))| make(namespace, name, uid, address))
                        .collect();
                    services.listing();
                    effects = services.page(&list, version);
                    effects.extend(services.listed(version));
                }
            }
            for effect in effects {
                match effect {
                    Effect::Upsert(node, upsert) => {
                        let object = upsert.object.unwrap();
                        let old = held.insert((node, object.key.unwrap().to_string()), object.uid.clone());
                        prop_assert!(old.is_none_or(|old| old == object.uid), "an old uid must end first");
                    }
                    Effect::Tombstone(node, gone) => {
                        let was = held.remove(&(node, gone.key.unwrap().to_string()));
                        prop_assert_eq!(was, Some(gone.uid));
                    }
                    other => prop_assert!(false, "{:?}", other),
                }
            }
        }
        for node in ["e0", "e1"] {
            let there = |namespace: &&str| pods.get(&(namespace.to_string(), node.to_owned())).is_some_and(|count| *count > 0);
            let namespaces: BTreeSet<&str> = ["n0", "n1"].into_iter().filter(there).collect();
            let desired = services.desired(&namespaces, Some(1000)).unwrap();
            let said: BTreeSet<(String, String)> = desired
                .objects
                .into_iter()
                .map(|upsert| upsert.object.unwrap())
                .map(|object| (object.key.unwrap().to_string(), object.uid))
                .collect();
            let has: BTreeSet<(String, String)> = held
                .iter()
                .filter(|((of, _), _)| of == node)
                .map(|((_, key), uid)| (key.clone(), uid.clone()))
                .collect();
            prop_assert_eq!(has, said);
        }
    }
}
