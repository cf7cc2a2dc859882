//! Past states, events and the disk against a model; what is acknowledged is on disk.

use std::collections::BTreeMap;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::apiserver::kinds;
use crate::store::Store;

#[derive(Clone, Debug)]
enum Step {
    Put(u8, u8),
    Delete(u8),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => (0..6_u8, any::<u8>()).prop_map(|(name, value)| Step::Put(name, value)),
        1 => (0..6_u8).prop_map(Step::Delete),
    ];
    proptest::collection::vec(step, 1..40)
}

fn map(name: u8, value: u8) -> Value {
    json!({
        "metadata": {"name": format!("m{name}"), "namespace": if name.is_multiple_of(2) { "a" } else { "b" }},
        "data": {"v": value.to_string()},
    })
}

/// What a reader sees: names and values.
fn seen(storage: &Storage, id: KindId, namespace: Option<&str>, position: Option<u64>) -> Vec<(Key, String)> {
    let mut all = Vec::new();
    let scanned = storage.scan(id, namespace, position, None, &mut |object| {
        let value = object.value(storage.kind(id));
        all.push((object.key.clone(), value["data"]["v"].as_str().unwrap_or_default().to_owned()));
        true
    });
    scanned.unwrap();
    all
}

fn run(steps: Vec<Step>) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let store = Store::in_memory();
        let storage = Storage::open(kinds::kinds(), Disk::new(store.clone())).unwrap();
        let id = storage.core("configmaps").unwrap();
        let mut model: BTreeMap<Key, String> = BTreeMap::new();
        let mut history = vec![(0, model.clone())];
        for step in steps {
            let (Step::Put(name, _) | Step::Delete(name)) = step;
            let value = match step {
                Step::Put(_, value) => value,
                Step::Delete(_) => 0,
            };
            let object = map(name, value);
            let key = Key::new(
                object["metadata"]["namespace"].as_str().unwrap(),
                object["metadata"]["name"].as_str().unwrap(),
            );
            let writer = storage.write().await;
            let change = match step {
                Step::Put(..) => {
                    model.insert(key, value.to_string());
                    Change::Put(id, object)
                }
                Step::Delete(_) if model.remove(&key).is_none() => continue,
                Step::Delete(_) => Change::Delete(id, object),
            };
            writer.commit(vec![change]).await.unwrap();
            history.push((storage.resource_version(), model.clone()));
        }
        // Every state that was is still to be seen, whole and by namespace.
        for (position, state) in &history {
            let expected: Vec<(Key, String)> = state.clone().into_iter().collect();
            assert_eq!(seen(&storage, id, None, Some(*position)), expected, "at {position}");
            let expected: Vec<(Key, String)> = expected.into_iter().filter(|(key, _)| key.namespace == "b").collect();
            assert_eq!(seen(&storage, id, Some("b"), Some(*position)), expected, "b at {position}");
        }
        // The events after each state lead to the last one.
        for (position, state) in history {
            let mut state = state;
            for event in storage.events(id, position, usize::MAX).unwrap().0 {
                let key = event.object.key.clone();
                if event.deleted {
                    state.remove(&key);
                } else {
                    let value = event.object.value(storage.kind(id));
                    state.insert(key, value["data"]["v"].as_str().unwrap().to_owned());
                }
            }
            assert_eq!(state, model, "from {position}");
        }
        // And it is what the disk has.
        let again = Storage::open(kinds::kinds(), Disk::new(store)).unwrap();
        assert_eq!(again.resource_version(), storage.resource_version());
        assert_eq!(seen(&again, id, None, None), model.into_iter().collect::<Vec<_>>());
    });
}

/// P-API-ANSWER-AFTER-COMMIT: nobody sees a change, and nobody is told it was made, before it is on disk.
#[tokio::test]
async fn a_change_that_is_not_on_disk_is_neither_acknowledged_nor_seen() {
    let store = Store::in_memory();
    let storage = Storage::open(kinds::kinds(), Disk::new(store.clone())).unwrap();
    let id = storage.core("configmaps").unwrap();
    store.close().await.unwrap();
    let refused = storage.write().await.commit(vec![Change::Put(id, map(0, 1))]).await;
    assert!(refused.is_err(), "acknowledged without a disk");
    assert_eq!((storage.list(id, None).1.len(), storage.resource_version()), (0, 0));
    assert!(storage.events(id, 0, usize::MAX).unwrap().0.is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn past_states_events_and_disk_agree_with_a_model(steps in steps()) {
        run(steps);
    }
}

#[tokio::test]
async fn a_position_before_the_log_is_too_old_and_one_within_is_not() {
    let storage = Storage::open(kinds::kinds(), Disk::new(Store::in_memory())).unwrap();
    let id = storage.core("configmaps").unwrap();
    let over = 10;
    for _ in 0..(crate::kubeapi::event_log::LOG_EVENTS + over) {
        storage.write().await.commit(vec![Change::Put(id, map(1, 1))]).await.unwrap();
    }
    assert_eq!(storage.events(id, over as u64 - 1, 1).unwrap_err(), TooOld { oldest: over as u64 });
    assert_eq!(storage.events(id, over as u64, 1).unwrap().0.len(), 1);
}
