//! What holds on disk and in memory alike.

use kubeedge_proto::v1::ObjectKey;

use super::{noise, put};
use crate::store::{
    DecodeError, MAX_KEY_BYTES, MAX_VALUE_BYTES, Options, Proto, Record, Store, StoreError, writer::QUEUE,
};

/// Makes one test for each twin.
macro_rules! on_both {
    ($($name:ident($store:ident) $body:block)*) => {
        mod in_memory {
            use super::*;
            $(#[tokio::test] async fn $name() { let $store = Store::in_memory(); $body })*
        }
        mod on_disk {
            use super::*;
            $(#[tokio::test] async fn $name() {
                let directory = tempfile::tempdir().unwrap();
                let $store = super::super::open_whole(&directory.path().join("store"));
                $body
            })*
        }
    };
}

fn keys<V: Record>(scan: impl Iterator<Item = Result<(Vec<u8>, V), StoreError>>) -> Vec<String> {
    scan.map(|record| String::from_utf8(record.unwrap().0).unwrap()).collect()
}

on_both! {
    a_commit_is_read_back(store) {
        let table = store.table::<Proto<ObjectKey>>("keys");
        let value = Proto(ObjectKey::new("default", "web"));
        let mut batch = store.batch();
        batch.put(&table, b"a", &value);
        batch.commit().await.unwrap();
        assert_eq!(table.get(b"a").unwrap(), Some(value));
        assert_eq!(table.get(b"b").unwrap(), None);
        assert!(table.contains(b"a").unwrap() && !table.contains(b"b").unwrap());
    }

    the_last_change_of_a_key_in_a_batch_wins(store) {
        let table = store.table::<Vec<u8>>("t");
        let mut batch = store.batch();
        batch.put(&table, b"a", &vec![1]);
        batch.delete(&table, b"a");
        batch.delete(&table, b"b");
        batch.put(&table, b"b", &vec![2]);
        batch.put(&table, b"b", &vec![3]);
        batch.commit().await.unwrap();
        assert_eq!(table.get(b"a").unwrap(), None);
        assert_eq!(table.get(b"b").unwrap(), Some(vec![3]));
    }

    nothing_is_seen_before_the_commit(store) {
        let table = store.table::<Vec<u8>>("t");
        let mut batch = store.batch();
        assert!(batch.is_empty());
        batch.put(&table, b"a", &vec![1]);
        assert!(!batch.is_empty());
        drop(batch);
        assert_eq!(table.get(b"a").unwrap(), None);
        store.batch().commit().await.unwrap();
        assert_eq!(store.stats().groups, 0);
    }

    scans_are_ordered_and_stay_in_prefix_and_table(store) {
        for (table, key) in [("pods", "b/2"), ("pods", "b/1"), ("pods", "a/1"), ("pods", "c"), ("pods2", "b/9"), ("pod", "s/b")] {
            put(&store, table, key, key.as_bytes());
        }
        let pods = store.table::<Vec<u8>>("pods");
        assert_eq!(keys(pods.scan_prefix(b"")), ["a/1", "b/1", "b/2", "c"]);
        assert_eq!(keys(pods.scan_prefix(b"b/")), ["b/1", "b/2"]);
        assert_eq!(keys(pods.range_from(b"b/2", b"b/")), ["b/2"]);
        assert_eq!(keys(pods.range_from(b"b/1\0", b"")), ["b/2", "c"]);
        assert_eq!(keys(pods.range_from(b"a", b"b/")), ["b/1", "b/2"]);
        assert_eq!(keys(pods.range_from(b"d", b"b/")), [""; 0]);
        assert_eq!(keys(store.table::<Vec<u8>>("empty").scan_prefix(b"")), [""; 0]);
    }

    scans_go_over_many_pages(store) {
        let table = store.table::<Vec<u8>>("t");
        let mut batch = store.batch();
        for number in 0..1000u32 {
            batch.put(&table, format!("{number:04}").as_bytes(), &number.to_le_bytes().to_vec());
        }
        batch.commit().await.unwrap();
        let all: Vec<_> = table.scan_prefix(b"").map(Result::unwrap).collect();
        assert_eq!(all.len(), 1000);
        assert!(all.iter().zip(0u32..).all(|((key, value), number)| {
            *key == format!("{number:04}").into_bytes() && *value == number.to_le_bytes()
        }));
    }

    large_values_come_back_whole_and_their_chunks_are_no_records(store) {
        let table = store.table::<Vec<u8>>("t");
        for (seed, len) in [0, 1, 4095, 4096, 4097, 8192, 65_536, 1 << 20].into_iter().enumerate() {
            let value = noise(seed as u64, len);
            put(&store, "t", &format!("{len:08}"), &value);
            assert!(table.get(format!("{len:08}").as_bytes()).unwrap().unwrap() == value, "{len} bytes");
        }
        assert_eq!(table.scan_prefix(b"").count(), 8);
        assert!(table.scan_prefix(b"").all(|record| {
            let (key, value) = record.unwrap();
            format!("{:08}", value.len()).into_bytes() == key
        }));
    }

    a_replaced_or_deleted_large_value_leaves_no_chunks(store) {
        let everything = |store: &Store| store.0.engine.page(&(Vec::new()..Vec::new()), 100_000).unwrap().len();
        put(&store, "t", "a", b"small");
        let entries = everything(&store);
        put(&store, "t", "a", &noise(1, 1 << 20));
        assert!(everything(&store) > entries + 200);
        put(&store, "t", "a", &noise(2, 10_000));
        assert_eq!(everything(&store), entries + 3);
        put(&store, "t", "a", b"small");
        assert_eq!(everything(&store), entries);
        put(&store, "t", "a", &noise(3, 10_000));
        let mut batch = store.batch();
        batch.delete(&store.table::<Vec<u8>>("t"), b"a");
        batch.commit().await.unwrap();
        assert_eq!(everything(&store), 1, "only the header is left");
    }

    bounds_are_errors_and_nothing_of_the_batch_is_applied(store) {
        let table = store.table::<Vec<u8>>("t");
        let mut batch = store.batch();
        batch.put(&table, b"good", &vec![1]);
        batch.put(&table, b"big", &vec![0; MAX_VALUE_BYTES + 1]);
        batch.put(&table, b"good too", &vec![1]);
        assert!(matches!(batch.commit().await, Err(StoreError::TooLarge { size, .. }) if size == MAX_VALUE_BYTES + 1));
        let mut batch = store.batch();
        batch.put(&table, b"good", &vec![1]);
        batch.put(&table, &[b'k'; MAX_KEY_BYTES + 1], &vec![1]);
        assert!(matches!(batch.commit().await, Err(StoreError::TooLarge { limit: MAX_KEY_BYTES, .. })));
        assert_eq!(table.scan_prefix(b"").count(), 0);
        let longest = [b'k'; MAX_KEY_BYTES];
        put(&store, "t", std::str::from_utf8(&longest).unwrap(), b"v");
        assert!(table.get(&longest).unwrap().is_some());
    }

    a_table_of_another_store_is_refused(store) {
        let other = Store::in_memory();
        let mut batch = store.batch();
        batch.put(&store.table::<Vec<u8>>("mine"), b"a", &vec![1]);
        batch.put(&other.table::<Vec<u8>>("theirs"), b"a", &vec![1]);
        assert!(matches!(batch.commit().await, Err(StoreError::ForeignTable("theirs"))));
        assert_eq!(store.table::<Vec<u8>>("mine").get(b"a").unwrap(), None);
    }

    a_record_of_a_newer_build_is_named_and_left_alone(store) {
        #[derive(Debug, PartialEq)]
        struct New;
        impl Record for New {
            const VERSION: u8 = 2;
            fn encode(&self) -> Vec<u8> { vec![9] }
            fn decode(version: u8, bytes: &[u8]) -> Result<Self, DecodeError> {
                assert_eq!((version, bytes), (2, [9].as_slice()));
                Ok(Self)
            }
        }
        let new = store.table::<New>("t");
        let mut batch = store.batch();
        batch.put(&new, b"a", &New);
        batch.commit().await.unwrap();
        let error = store.table::<Vec<u8>>("t").get(b"a").unwrap_err();
        assert!(matches!(error, StoreError::NewerRecord { found: 2, known: 1, .. }), "{error}");
        assert_eq!(new.get(b"a").unwrap(), Some(New));
    }

    a_damaged_record_is_an_error_in_its_place_and_the_scan_goes_on(store) {
        for key in ["a", "b", "c"] {
            put(&store, "t", key, b"value");
        }
        let full = crate::store::keys::record("t", b"b");
        let mut bytes = store.0.engine.get(&full).unwrap().unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        store.0.engine.commit(99, [(full, Some(bytes))].into()).unwrap();
        let table = store.table::<Vec<u8>>("t");
        let error = table.get(b"b").unwrap_err();
        assert!(matches!(&error, StoreError::Corrupt { table, key, .. } if table == "t" && key == "b"), "{error}");
        let scan: Vec<_> = table.scan_prefix(b"").map(|record| record.map(|(key, _)| key)).collect();
        assert!(matches!(&scan[..], [Ok(a), Err(StoreError::Corrupt { .. }), Ok(c)] if a == b"a" && c == b"c"));
        put(&store, "t", "b", b"mended");
        assert_eq!(table.get(b"b").unwrap().unwrap(), b"mended");
    }

    a_lost_chunk_is_damage_and_never_a_shorter_value(store) {
        put(&store, "t", "a", &noise(1, 20_000));
        let full = crate::store::keys::record("t", b"a");
        let chunks = store.0.engine.page(&crate::store::keys::range(&crate::store::keys::chunks_of(&full), b""), 10).unwrap();
        store.0.engine.commit(99, [(chunks.last().unwrap().0.clone(), None)].into()).unwrap();
        let table = store.table::<Vec<u8>>("t");
        assert!(matches!(table.get(b"a"), Err(StoreError::Corrupt { .. })));
        put(&store, "t", "a", b"mended");
        assert_eq!(table.get(b"a").unwrap().unwrap(), b"mended");
    }

    after_close_everything_says_closed(store) {
        put(&store, "t", "a", b"v");
        let table = store.table::<Vec<u8>>("t");
        store.close().await.unwrap();
        assert!(matches!(table.get(b"a"), Err(StoreError::Closed)));
        assert!(matches!(table.scan_prefix(b"").next(), Some(Err(StoreError::Closed))));
        let mut batch = store.batch();
        batch.put(&table, b"a", &vec![1]);
        assert!(matches!(batch.commit().await, Err(StoreError::Closed)));
        let mut batch = store.batch();
        batch.put(&table, b"a", &vec![1]);
        assert!(matches!(batch.commit_blocking(), Err(StoreError::Closed)));
        store.close().await.unwrap();
    }

    readers_see_a_large_value_whole_while_it_is_replaced(store) {
        let table = store.table::<Vec<u8>>("t");
        put(&store, "t", "a", &vec![0; 30_000]);
        let reader = {
            let table = table.clone();
            std::thread::spawn(move || {
                let mut seen = 0;
                while seen != 60 {
                    let by_get = table.get(b"a").unwrap().unwrap();
                    let by_scan = table.scan_prefix(b"").next().unwrap().unwrap().1;
                    for value in [by_get, by_scan] {
                        assert_eq!(value.len(), 30_000 - usize::from(value[0]) * 100);
                        assert!(value.iter().all(|byte| *byte == value[0]));
                        seen = value[0];
                    }
                }
            })
        };
        for round in 1..=60u8 {
            let mut batch = store.batch();
            batch.put(&table, b"a", &vec![round; 30_000 - usize::from(round) * 100]);
            batch.commit().await.unwrap();
        }
        tokio::task::spawn_blocking(move || reader.join()).await.unwrap().unwrap();
    }
}

/// P-COMMIT-ORDER
#[tokio::test]
async fn batches_are_committed_in_the_order_of_the_calls() {
    let directory = tempfile::tempdir().unwrap();
    for store in [Store::in_memory(), super::open_whole(&directory.path().join("store"))] {
        let table = store.table::<Vec<u8>>("t");
        let commit = |value: Option<u8>| {
            let mut batch = store.batch();
            match value {
                Some(value) => batch.put(&table, b"a", &vec![value]),
                None => batch.delete(&table, b"a"),
            }
            batch.commit()
        };
        // An actor polls what it has spawned in no order of its own.
        for value in 0..100 {
            let (taken_off, put) = (commit(None), commit(Some(value)));
            put.await.unwrap();
            taken_off.await.unwrap();
            assert_eq!(table.get(b"a").unwrap(), Some(vec![value]));
        }
        drop(commit(None));
        commit(Some(100)).await.unwrap();
        assert_eq!(table.get(b"a").unwrap(), Some(vec![100]));
    }
}

#[tokio::test]
async fn waiting_batches_share_a_sync() {
    let directory = tempfile::tempdir().unwrap();
    let store = super::open_whole(&directory.path().join("store"));
    let table = store.table::<Vec<u8>>("t");
    let commits = (0..500u32).map(|number| {
        let mut batch = store.batch();
        batch.put(&table, &number.to_be_bytes(), &vec![0; 100]);
        batch.commit()
    });
    for result in futures_util::future::join_all(commits).await {
        result.unwrap();
    }
    let stats = store.stats();
    assert_eq!(stats.batches, 500);
    assert!(stats.groups < 250, "{stats:?}");
    assert_eq!(table.scan_prefix(b"").count(), 500);
}

#[tokio::test]
async fn a_batch_is_committed_or_refused_however_many_wait() {
    const MORE: usize = 3 * QUEUE;
    let directory = tempfile::tempdir().unwrap();
    let store = super::open_whole(&directory.path().join("store"));
    let table = store.table::<Vec<u8>>("t");
    let commits: Vec<_> = (0..MORE)
        .map(|number| {
            let mut batch = store.batch();
            batch.put(&table, &number.to_be_bytes(), &vec![0; 10]);
            batch.commit()
        })
        .collect();
    let mut refused = 0;
    for (number, result) in futures_util::future::join_all(commits).await.into_iter().enumerate() {
        match result {
            Ok(()) => assert!(table.contains(&number.to_be_bytes()).unwrap(), "{number}"),
            Err(StoreError::Busy(QUEUE)) => {
                assert!(!table.contains(&number.to_be_bytes()).unwrap(), "{number}");
                refused += 1;
            }
            Err(error) => panic!("{number}: {error}"),
        }
    }
    assert!(refused < MORE - QUEUE, "as many as fit were taken, at least: {refused} of {MORE} were refused");
    let stats = store.stats();
    assert_eq!((stats.batches, stats.failed), ((MORE - refused) as u64, refused as u64));
    put(&store, "t", "then", b"again");
}

#[tokio::test(start_paused = true)]
async fn a_commit_in_memory_takes_no_time_of_a_paused_clock() {
    let store = Store::in_memory();
    let mut batch = store.batch();
    batch.put(&store.table::<Vec<u8>>("t"), b"a", &vec![1]);
    tokio::time::timeout(std::time::Duration::from_nanos(1), batch.commit()).await.unwrap().unwrap();
}

#[test]
fn a_dropped_store_is_closed_and_opens_again() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("deep/er/store");
    for round in 0..5u8 {
        let store = super::open_whole(&path);
        let table = store.table::<Vec<u8>>("t");
        assert_eq!(table.scan_prefix(b"").count(), usize::from(round));
        put(&store, "t", &round.to_string(), &[round]);
    }
}

#[test]
fn files_are_for_the_owner_only() {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store");
    put(&super::open_whole(&path), "t", "a", b"secret");
    drop(super::open_whole(&path));
    let mode = |path: &std::path::Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&path), 0o700);
    let names: Vec<_> = std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(names.len() >= 7, "{names:?}");
    for name in names {
        assert_eq!(mode(&name), if name.is_dir() { 0o700 } else { 0o600 }, "{name:?}");
    }
}

/// sled never syncs what it moves to files of its own; chunking keeps pages below the size at which it does so.
#[test]
fn large_values_stay_in_the_file_that_is_synced() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store");
    let store = Store::open(&path, Options::default().cache_bytes(1 << 20)).unwrap().store;
    let table = store.table::<Vec<u8>>("t");
    for round in 0..6u64 {
        let mut batch = store.batch();
        for number in 0..40u64 {
            let len = [3000, 4096, 5000, 70_000][number as usize % 4];
            batch.put(&table, format!("namespace/object-{number}").as_bytes(), &noise(round * 100 + number, len));
        }
        batch.commit_blocking().unwrap();
        assert_eq!(std::fs::read_dir(path.join("blobs")).unwrap().count(), 0, "after round {round}");
    }
}
