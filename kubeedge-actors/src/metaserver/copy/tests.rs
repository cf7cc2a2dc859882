use proptest::prelude::*;

use super::*;
use crate::{kubeapi::event_log::Seen, metaserver::kinds};

fn kind(plural: &str) -> &'static Resource {
    kinds::all().iter().find(|kind| kind.plural == plural).unwrap()
}

/// A copy that has read nothing but `snapshot`, and its numbers.
fn loaded(plural: &str, objects: Vec<KubeObject>, complete: bool) -> (Copy, u64) {
    let copy = Copy::new(kind(plural), 100, CancellationToken::new());
    let mut version = 100;
    load(&copy, objects, complete, &mut version);
    (copy, version)
}

fn load(copy: &Copy, objects: Vec<KubeObject>, complete: bool, version: &mut u64) {
    copy.load(Snapshot { objects, statuses: Vec::new(), complete }, &mut counting(version));
}

fn counting(version: &mut u64) -> impl FnMut() -> u64 {
    move || {
        *version += 1;
        *version
    }
}

fn object(name: &str, uid: &str, version: u64) -> KubeObject {
    let json = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "d", "uid": uid},
        "spec": {"round": version}});
    KubeObject {
        key: Some(ObjectKey::new("d", name)),
        uid: uid.into(),
        resource_version: version.to_string(),
        projection_hash: version,
        json: json.to_string().into(),
        ..KubeObject::default()
    }
}

fn status(name: &str, uid: &str, generation: u64, status: Value) -> StatusUpdate {
    let status_json = status.to_string().into();
    StatusUpdate {
        key: Some(ObjectKey::new("d", name)),
        uid: uid.into(),
        generation,
        status_json,
        ..Default::default()
    }
}

fn told(copy: &Copy, after: u64) -> Vec<(&'static str, String)> {
    let (events, _) = copy.events(after, 100).unwrap();
    let seen = |event: &Event| event.seen_by(|_| true).map(Seen::name).unwrap();
    events.iter().map(|event| (seen(event), event.object.key.name.clone())).collect()
}

fn served(copy: &Copy, name: &str) -> Value {
    copy.get("d", name).unwrap().value(copy.kind())
}

#[test]
fn what_is_read_first_is_no_history_and_what_differs_later_is() {
    let (copy, mut version) = loaded("pods", vec![object("a", "1", 5), object("b", "2", 6)], true);
    let from = copy.resource_version();
    assert_eq!((from, told(&copy, from)), (version, vec![]));
    assert!(copy.events(from - 1, 1).is_err(), "nothing is known of before");
    load(&copy, vec![object("a", "1", 5), object("b", "3", 9), object("c", "4", 7)], true, &mut version);
    let expected = [("DELETED", "b"), ("ADDED", "b"), ("ADDED", "c")];
    assert_eq!(told(&copy, from), expected.map(|(what, name)| (what, name.to_owned())), "the same is no change");
    load(&copy, vec![object("a", "1", 5)], false, &mut version);
    assert_eq!(copy.list(None).1.len(), 3, "what cannot be read is not gone");
    assert!(!copy.is_complete());
    load(&copy, vec![object("a", "1", 5)], true, &mut version);
    assert_eq!(copy.list(None).1.len(), 1);
}

#[test]
fn a_pods_status_is_what_its_node_reported_last() {
    let (copy, mut version) = loaded("pods", vec![object("a", "1", 5)], true);
    assert_eq!(served(&copy, "a")["status"], json!({"phase": "Pending"}));
    let mut report = |status| copy.report(&status, &mut counting(&mut version));
    report(status("a", "1", 7, json!({"phase": "Running"})));
    report(status("a", "1", 6, json!({"phase": "Pending"})));
    report(status("a", "other", 8, json!({"phase": "Failed"})));
    report(status("nobody", "1", 8, json!({"phase": "Failed"})));
    assert_eq!(served(&copy, "a")["status"]["phase"], "Running");
    copy.put(&object("a", "1", 9), &mut counting(&mut version));
    let pod = served(&copy, "a");
    assert_eq!((&pod["status"]["phase"], &pod["spec"]["round"]), (&json!("Running"), &json!(9)));
    assert_eq!(pod["metadata"]["resourceVersion"], version.to_string());
    copy.put(&object("a", "2", 10), &mut counting(&mut version));
    assert_eq!(served(&copy, "a")["status"]["phase"], "Pending", "another pod of the name has reported nothing");
}

#[test]
fn conditions_that_others_set_stand_beside_the_nodes_own() {
    let (copy, mut version) = loaded("pods", vec![], true);
    let mut pod = object("a", "1", 5);
    let mut value: Value = serde_json::from_slice(&pod.json).unwrap();
    value["status"] = json!({"conditions": [{"type": "gate", "status": "True"}]});
    pod.json = value.to_string().into();
    copy.put(&pod, &mut counting(&mut version));
    let conditions = |copy: &Copy| {
        let pod = served(copy, "a");
        types(list(&pod, "/status/conditions")).into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(conditions(&copy), ["gate"], "before the node has spoken, too");
    for (generation, own) in [(1, "Ready"), (2, "Initialized")] {
        let reported = json!({"phase": "Running", "conditions": [{"type": own, "status": "True"}]});
        copy.report(&status("a", "1", generation, reported), &mut counting(&mut version));
    }
    assert_eq!(conditions(&copy), ["Initialized", "gate"]);
}

#[test]
fn a_copy_on_disk_that_is_no_object_is_left_out() {
    let broken = |json: &'static [u8]| KubeObject { json: Bytes::from_static(json), ..object("a", "1", 5) };
    let (copy, _) = loaded("secrets", vec![broken(b"[1]"), broken(b"{"), broken(b""), object("b", "2", 6)], true);
    assert_eq!(copy.list(None).1.len(), 1);
}

#[derive(Clone, Debug)]
enum Step {
    Put(u8, u8, u64),
    Remove(u8, u8),
    Report(u8, u8, u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0..3u8, 0..2u8, 1..9u64).prop_map(|(name, uid, version)| Step::Put(name, uid, version)),
        (0..3u8, 0..2u8).prop_map(|(name, uid)| Step::Remove(name, uid)),
        (0..3u8, 0..2u8, 1..9u64).prop_map(|(name, uid, generation)| Step::Report(name, uid, generation)),
    ]
}

proptest! {
    /// Whoever lists, and then is told every change from there on, has what is there, wherever it broke off and went on.
    /// `P-WATCH-GOES-ON`
    #[test]
    fn a_list_and_what_is_told_after_it_are_what_is_there(
        before in prop::collection::vec(step(), 0..12), after in prop::collection::vec((step(), any::<bool>()), 0..24),
    ) {
        let (copy, mut version) = loaded("pods", vec![], true);
        let mut run = |copy: &Copy, step: &Step| {
            let mut next = counting(&mut version);
            match step {
                Step::Put(name, uid, at) => copy.put(&object(&name.to_string(), &uid.to_string(), *at), &mut next),
                Step::Remove(name, uid) => {
                    copy.remove(&ObjectKey::new("d", name.to_string()), &uid.to_string(), &mut next);
                }
                Step::Report(name, uid, generation) => {
                    let phase = json!({"phase": generation.to_string()});
                    copy.report(&status(&name.to_string(), &uid.to_string(), *generation, phase), &mut next);
                }
            }
        };
        before.iter().for_each(|step| run(&copy, step));
        let (mut position, objects) = copy.list(None);
        let mut known: BTreeMap<Key, Arc<Object>> =
            objects.into_iter().map(|object| (object.key.clone(), object)).collect();
        let mut last = position;
        let mut catch_up = |copy: &Copy| -> Result<(), TestCaseError> {
            let (events, reached) = copy.events(position, 1000).unwrap();
            position = reached;
            for event in events {
                prop_assert!(event.resource_version > last, "versions rise, each is told once");
                last = event.resource_version;
                prop_assert_eq!(event.object.resource_version, last, "a client can go on from what it saw");
                match event.seen_by(|_| true) {
                    Some(Seen::Added) => prop_assert!(known.insert(event.object.key.clone(), event.object).is_none()),
                    Some(Seen::Modified) => {
                        let old = known.insert(event.object.key.clone(), event.object.clone());
                        prop_assert_eq!(old.map(|old| old.uid.clone()), Some(event.object.uid.clone()));
                    }
                    Some(Seen::Deleted) => prop_assert!(known.remove(&event.object.key).is_some()),
                    None => prop_assert!(false, "every change is seen"),
                }
            }
            Ok(())
        };
        for (step, look) in &after {
            run(&copy, step);
            if *look {
                catch_up(&copy)?;
            }
        }
        catch_up(&copy)?;
        let there: Vec<_> = copy.list(None).1;
        prop_assert_eq!(there.len(), known.len());
        for object in there {
            prop_assert_eq!(known[&object.key].stored(), object.stored());
        }
    }
}
