//! A process that is killed while it commits.

use std::{
    io::{BufRead, BufReader},
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use super::{noise, open_whole};
use crate::store::{OpenError, Options, Store};

const PATH: &str = "KUBEEDGE_TEST_STORE_PATH";

/// This test binary again, running only the named (ignored) test.
pub(crate) fn child(test: &str, path: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args([test, "--exact", "--ignored", "--nocapture", "--test-threads=1"]).env(PATH, path);
    command
}

pub(crate) fn path_of_child() -> PathBuf {
    PathBuf::from(std::env::var_os(PATH).expect("run by its parent test"))
}

/// Now and then as much as a Kubernetes object may have.
fn length(number: u64) -> usize {
    if number % 16 == 11 { 1 << 20 } else { [50, 500, 5000, 50_000][number as usize % 4] }
}

#[test]
#[ignore = "the child of acknowledged_commits_survive_kill_9"]
fn committing_child() {
    let store = open_whole(&path_of_child());
    let records = store.table::<Vec<u8>>("records");
    let pairs = store.table::<Vec<u8>>("pairs");
    let first = records.scan_prefix(b"").count() as u64;
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let mut waiting = futures_util::stream::FuturesUnordered::new();
        for number in first.. {
            let mut batch = store.batch();
            batch.put(&records, &number.to_be_bytes(), &noise(number, length(number)));
            batch.put(&pairs, &number.to_be_bytes(), &noise(number, 20));
            let commit = batch.commit();
            waiting.push(async move { commit.await.map(|()| number) });
            if waiting.len() == 8 {
                let acknowledged = futures_util::StreamExt::next(&mut waiting).await.unwrap().unwrap();
                println!("\nacknowledged {acknowledged}");
            }
        }
    });
}

/// What a child prints, to its end.
pub(crate) fn lines_of(child: &mut Child) -> impl Iterator<Item = String> + use<> {
    BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok)
}

pub(super) fn acknowledgements(child: &mut Child) -> impl Iterator<Item = u64> + use<> {
    lines_of(child).filter_map(|line| line.strip_prefix("acknowledged ")?.parse().ok())
}

/// All that was acknowledged is there; what was not is there wholly, in both tables, or not at all.
fn holds(store: &Store, acknowledged: &[u64], round: usize) {
    let records = store.table::<Vec<u8>>("records");
    let pairs = store.table::<Vec<u8>>("pairs");
    for number in acknowledged {
        let found = records.get(&number.to_be_bytes()).unwrap();
        assert!(found == Some(noise(*number, length(*number))), "record {number} is lost in round {round}");
    }
    for record in records.scan_prefix(b"") {
        let (key, value) = record.unwrap();
        let number = u64::from_be_bytes(key.as_slice().try_into().unwrap());
        assert!(value == noise(number, length(number)));
        assert!(pairs.get(&key).unwrap() == Some(noise(number, 20)), "half a batch: {number}");
    }
    assert_eq!(pairs.scan_prefix(b"").count(), records.scan_prefix(b"").count());
}

#[test]
fn acknowledged_commits_survive_kill_9() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store");
    let mut acknowledged = Vec::new();
    for round in 0..8 {
        let mut child = child("store::tests::crash::committing_child", &path).stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = acknowledgements(&mut child);
        acknowledged.extend(lines.by_ref().take(20 + round * 17));
        child.kill().unwrap();
        acknowledged.extend(lines);
        assert_eq!(child.wait().unwrap().signal(), Some(9), "it was killed while it worked");

        let store = open_whole(&path);
        holds(&store, &acknowledged, round);
    }
    assert!(acknowledged.len() > 500, "{}", acknowledged.len());
}

#[test]
fn a_store_in_use_is_refused_and_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store");
    let mut child = child("store::tests::crash::committing_child", &path).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = acknowledgements(&mut child);
    assert!(lines.next().is_some());
    let error = Store::open(&path, Options::default()).unwrap_err();
    assert!(
        matches!(&error, OpenError::Locked { holder, .. } if *holder == format!("process {}", child.id())),
        "{error}"
    );
    assert!(lines.next().is_some(), "the holder is not disturbed");
    child.kill().unwrap();
    child.wait().unwrap();
    drop(open_whole(&path));
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1, "nothing was set aside");
}
