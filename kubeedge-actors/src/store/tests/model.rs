//! Random histories against a plain map.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::{noise, open_whole};
use crate::store::{Store, StoreError};

#[derive(Clone, Debug)]
enum Change {
    Put(u8, Vec<u8>, u64, usize),
    Delete(u8, Vec<u8>),
}

#[derive(Clone, Debug)]
enum Step {
    Commit(Vec<Change>),
    Refused(Vec<Change>),
    Reopen,
    Scan(u8, Vec<u8>, Vec<u8>),
}

const TABLES: [&str; 3] = ["a", "ab", "b"];

fn key() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(prop::sample::select(vec![0u8, 1, b'a', b'/', 0xfe, 0xff]), 0..4)
}

fn change() -> impl Strategy<Value = Change> {
    let len = prop_oneof![6 => 0usize..200, 2 => 4000usize..4200, 1 => 8000usize..40_000];
    prop_oneof![
        3 => (0..3u8, key(), any::<u64>(), len).prop_map(|(t, k, seed, len)| Change::Put(t, k, seed, len)),
        1 => (0..3u8, key()).prop_map(|(t, k)| Change::Delete(t, k)),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => prop::collection::vec(change(), 0..8).prop_map(Step::Commit),
        1 => prop::collection::vec(change(), 0..4).prop_map(Step::Refused),
        1 => Just(Step::Reopen),
        2 => (0..3u8, key(), key()).prop_map(|(t, from, prefix)| Step::Scan(t, from, prefix)),
    ]
}

type Model = BTreeMap<(u8, Vec<u8>), Vec<u8>>;

fn fill(store: &Store, changes: &[Change], model: &mut Model) -> crate::store::Batch {
    let mut batch = store.batch();
    for change in changes {
        match change {
            Change::Put(t, key, seed, len) => {
                let value = noise(*seed, *len);
                batch.put(&store.table::<Vec<u8>>(TABLES[usize::from(*t)]), key, &value);
                model.insert((*t, key.clone()), value);
            }
            Change::Delete(t, key) => {
                batch.delete(&store.table::<Vec<u8>>(TABLES[usize::from(*t)]), key);
                model.remove(&(*t, key.clone()));
            }
        }
    }
    batch
}

fn check(store: &Store, model: &Model) {
    for (t, name) in (0u8..).zip(TABLES) {
        let found: Vec<_> = store.table::<Vec<u8>>(name).scan_prefix(b"").map(Result::unwrap).collect();
        let expected: Vec<_> =
            model.iter().filter(|((table, _), _)| *table == t).map(|((_, k), v)| (k.clone(), v.clone())).collect();
        assert!(found == expected, "table {name} differs: {} records, expected {}", found.len(), expected.len());
    }
}

fn history(steps: Vec<Step>, mut store: Store, reopen: impl Fn(Store) -> Store) {
    let mut model = Model::new();
    for step in steps {
        match step {
            Step::Commit(changes) => {
                fill(&store, &changes, &mut model).commit_blocking().unwrap();
                for change in &changes {
                    let (Change::Put(t, key, ..) | Change::Delete(t, key)) = change;
                    let found = store.table::<Vec<u8>>(TABLES[usize::from(*t)]).get(key).unwrap();
                    assert!(found.as_ref() == model.get(&(*t, key.clone())));
                }
            }
            Step::Refused(changes) => {
                let mut batch = fill(&store, &changes, &mut model.clone());
                batch.put(&store.table::<Vec<u8>>("a"), &[0; 2000], &vec![]);
                assert!(matches!(batch.commit_blocking(), Err(StoreError::TooLarge { .. })));
            }
            Step::Reopen => store = reopen(store),
            Step::Scan(t, from, prefix) => {
                let table = store.table::<Vec<u8>>(TABLES[usize::from(t)]);
                let found: Vec<_> = table.range_from(&from, &prefix).map(|record| record.unwrap().0).collect();
                let expected: Vec<_> = model
                    .keys()
                    .filter(|(table, key)| *table == t && key.starts_with(&prefix) && *key >= from)
                    .map(|(_, key)| key.clone())
                    .collect();
                assert_eq!(found, expected);
            }
        }
        check(&store, &model);
    }
    check(&reopen(store), &model);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn memory_is_a_map(steps in prop::collection::vec(step(), 1..25)) {
        history(steps, Store::in_memory(), |store| store);
    }

    #[test]
    fn disk_is_a_map_that_survives_reopening(steps in prop::collection::vec(step(), 1..25)) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("store");
        history(steps, open_whole(&path), |store| { drop(store); open_whole(&path) });
    }
}
