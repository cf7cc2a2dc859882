//! Full and read-only disks: real ones, in a process of their own.
//!
//! The file systems are made in a user and mount namespace. Where the machine has none, those two tests say so and
//! pass; the file size limit works everywhere.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::Path,
    process::Command,
};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::{
    crash::{child, path_of_child},
    noise, open_whole,
    power_switch::PowerSwitch,
    put, skipped,
};
use crate::store::{Health, OpenError, Options, Store, StoreError};

fn commit(store: &Store, key: &str, value: &[u8]) -> Result<(), StoreError> {
    let mut batch = store.batch();
    batch.put(&store.table::<Vec<u8>>("t"), key.as_bytes(), &value.to_vec());
    batch.put(&store.table::<Vec<u8>>("twin"), key.as_bytes(), &value.to_vec());
    batch.commit_blocking()
}

fn holds_the_first_twenty(store: &Store) {
    let table = store.table::<Vec<u8>>("t");
    for number in 0..20u64 {
        let found = table.get(number.to_string().as_bytes()).unwrap();
        assert!(found == Some(noise(number, 10_000)), "record {number}");
    }
}

fn fill_with_twenty(store: &Store) {
    for number in 0..20u64 {
        put(store, "t", &number.to_string(), &noise(number, 10_000));
    }
}

fn fill(path: &Path) {
    let mut file = File::create(path).unwrap();
    let error = loop {
        if let Err(error) = file.write_all(&[1; 4096]) {
            break error;
        }
    };
    assert_eq!(error.kind(), io::ErrorKind::StorageFull);
}

/// Runs a test of this file on a file system of its own; false where that is not possible.
fn on_own_file_system(test: &str) -> bool {
    let directory = tempfile::tempdir().unwrap();
    let namespace = ["--user", "--map-root-user", "--mount"];
    let mount = "mount -t tmpfs -o size=16m none \"$1\"";
    let possible =
        Command::new("unshare").args(namespace).args(["sh", "-c", mount, "sh"]).arg(directory.path()).status();
    if !possible.is_ok_and(|status| status.success()) {
        skipped(test, "this machine has no user and mount namespaces");
        return false;
    }
    let inner = child(test, &directory.path().join("store"));
    let mut command = Command::new("unshare");
    command.args(namespace).args(["sh", "-c", &format!("{mount} && shift && exec \"$@\""), "sh"]);
    command.arg(directory.path()).arg(inner.get_program()).args(inner.get_args());
    command.envs(inner.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("1 passed"), "{text}{}", String::from_utf8_lossy(&output.stderr));
    true
}

#[test]
fn a_full_disk_refuses_commits_and_recovers_by_itself() {
    on_own_file_system("store::tests::disk_full::full_disk_child");
}

#[test]
#[ignore = "the child of a_full_disk_refuses_commits_and_recovers_by_itself"]
fn full_disk_child() {
    let path = path_of_child();
    let filler = path.with_file_name("filler");
    let mut store = open_whole(&path);
    fill_with_twenty(&store);
    for opened_full in [false, true] {
        fill(&filler);
        if opened_full {
            drop(store);
            store = open_whole(&path);
        }
        for attempt in 0..3 {
            let error = commit(&store, "new", b"value").unwrap_err();
            assert!(matches!(error, StoreError::Full(_)), "attempt {attempt}: {error}");
            assert!(matches!(store.stats().health, Health::Degraded(StoreError::Full(_))));
            assert_eq!(store.table::<Vec<u8>>("t").get(b"new").unwrap(), None);
            assert_eq!(store.table::<Vec<u8>>("twin").get(b"new").unwrap(), None);
            holds_the_first_twenty(&store);
        }
        fs::remove_file(&filler).unwrap();
        commit(&store, "after", b"value").unwrap();
        assert!(matches!(store.stats().health, Health::Good));
    }
    drop(store);
    let store = open_whole(&path);
    holds_the_first_twenty(&store);
    assert_eq!(store.table::<Vec<u8>>("twin").get(b"after").unwrap().unwrap(), b"value");
    assert_eq!(store.table::<Vec<u8>>("twin").get(b"new").unwrap(), None);
}

#[test]
fn a_store_on_a_read_only_disk_is_refused_and_left_alone() {
    on_own_file_system("store::tests::disk_full::read_only_child");
}

#[test]
#[ignore = "the child of a_store_on_a_read_only_disk_is_refused_and_left_alone"]
fn read_only_child() {
    let path = path_of_child();
    let store = open_whole(&path);
    fill_with_twenty(&store);
    drop(store);
    let remount = |mode: &str| {
        let mut command = Command::new("mount");
        command.args(["-o", &format!("remount,{mode}")]).arg(path.parent().unwrap());
        assert!(command.status().unwrap().success());
    };
    remount("ro");
    let error = Store::open(&path, Options::default()).unwrap_err();
    assert!(matches!(error, OpenError::ReadOnly { .. }), "{error}");
    remount("rw");
    holds_the_first_twenty(&open_whole(&path));
    assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "nothing was set aside");
}

/// P-READS-OUTLIVE-WRITES
#[test]
fn a_disk_that_fails_under_a_store_leaves_reads_and_what_was_acknowledged() {
    let name = "store::tests::disk_full::a_disk_that_fails_under_a_store_leaves_reads_and_what_was_acknowledged";
    let directory = tempfile::tempdir().unwrap();
    let Some(disk) = PowerSwitch::new(name, directory.path()) else { return };
    let path = disk.folder().join("store");
    let store = open_whole(&path);
    fill_with_twenty(&store);
    disk.fail();
    for attempt in 0..3 {
        let error = commit(&store, "new", b"value").unwrap_err();
        assert!(matches!(error, StoreError::ReadOnly(_)), "attempt {attempt}: {error}");
        assert_eq!(store.table::<Vec<u8>>("t").get(b"new").unwrap(), None);
        holds_the_first_twenty(&store);
    }
    drop(store);
    disk.on_again();
    let store = open_whole(&path);
    holds_the_first_twenty(&store);
    commit(&store, "new", b"value").unwrap();
}

/// The disk fills up between the check and the write: sled itself meets the error.
/// P-ACK-AFTER-COMMIT
#[test]
fn a_write_that_fails_under_sled_is_undone_and_recovers_by_itself() {
    let directory = tempfile::tempdir().unwrap();
    let inner = child("store::tests::disk_full::failing_write_child", &directory.path().join("store"));
    // An ignored SIGXFSZ makes a write over the limit an error.
    let mut command = Command::new("sh");
    command.args(["-c", "trap '' XFSZ; exec \"$@\"", "sh"]).arg(inner.get_program()).args(inner.get_args());
    command.envs(inner.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("1 passed"), "{text}{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
#[ignore = "the child of a_write_that_fails_under_sled_is_undone_and_recovers_by_itself"]
fn failing_write_child() {
    let path = path_of_child();
    let store = open_whole(&path);
    fill_with_twenty(&store);
    let unlimited = getrlimit(Resource::Fsize);
    let mut acknowledged = Vec::new();
    let mut refused = Vec::new();
    for round in 0..6u64 {
        let len = fs::metadata(path.join("db")).unwrap().len();
        let limit = Rlimit { current: Some(len + 50_000 * round), ..unlimited };
        setrlimit(Resource::Fsize, limit).unwrap();
        let mut failures = 0;
        for number in 0..200u64 {
            let key = format!("{round}/{number}");
            match commit(&store, &key, &noise(number, 9000)) {
                Ok(()) => acknowledged.push((key, number)),
                Err(StoreError::Full(_)) => {
                    failures += 1;
                    refused.push(key);
                }
                Err(error) => panic!("{key}: {error}"),
            }
            if failures == 5 {
                break;
            }
        }
        assert_eq!(failures, 5, "round {round} met the limit");
        setrlimit(Resource::Fsize, unlimited).unwrap();
        commit(&store, &format!("{round}/after"), b"value").unwrap();
        holds_the_first_twenty(&store);
    }
    drop(store);
    let store = open_whole(&path);
    holds_the_first_twenty(&store);
    let (table, twin) = (store.table::<Vec<u8>>("t"), store.table::<Vec<u8>>("twin"));
    for (key, number) in acknowledged {
        assert!(table.get(key.as_bytes()).unwrap() == Some(noise(number, 9000)), "{key}");
    }
    for key in refused {
        assert!(table.get(key.as_bytes()).unwrap() == twin.get(key.as_bytes()).unwrap(), "half a batch: {key}");
    }
}

#[test]
fn the_system_s_errors_are_sorted_by_what_to_do() {
    let full = [rustix::io::Errno::NOSPC, rustix::io::Errno::DQUOT, rustix::io::Errno::FBIG];
    assert!(full.iter().all(|code| matches!(StoreError::from(io::Error::from(*code)), StoreError::Full(_))));
    let read_only = io::Error::from(rustix::io::Errno::ROFS);
    assert!(matches!(StoreError::from(read_only), StoreError::ReadOnly(_)));
    assert!(matches!(StoreError::from(io::Error::from(rustix::io::Errno::IO)), StoreError::Io(_)));
}
