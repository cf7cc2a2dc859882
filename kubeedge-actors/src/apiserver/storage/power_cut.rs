//! The power goes under the storage of an API server: what was acknowledged is there, no version is given twice, and no
//! commit is there in part, objects of 1 MiB included.
//!
//! A child makes, replaces and deletes pairs of objects, each pair in one commit. It prints what it is about to do and
//! what was acknowledged; after the cut a pair is as the last acknowledgement says, or as a later attempt would have it.

use std::{collections::BTreeMap, process::Stdio, sync::Arc};

use futures_util::{StreamExt, stream::FuturesUnordered};
use serde_json::{Value, json};

use super::super::{kinds, object::Key};
use super::{Change, Disk, KindId, Storage};
use crate::store::tests::{
    crash::{child, lines_of, path_of_child},
    noise, open_whole,
    power_switch::{PowerSwitch, now},
};

/// Pairs of objects that are changed again and again.
const PAIRS: u64 = 40;
/// Requests that wait for their turn to write.
const WAITING: usize = 8;

/// What an object holds after this change: now and then as much as an object may have.
fn text(number: u64) -> String {
    let len = if number % 16 == 11 { 1 << 20 } else { [40, 400, 4000, 40_000][number as usize % 4] };
    noise(number, len).into_iter().map(|byte| char::from(b'a' + byte % 26)).collect()
}

fn name(number: u64) -> String {
    // In another order each time round.
    format!("pair-{}", number * number / 3 % PAIRS)
}

fn object(number: u64) -> Value {
    json!({
        "metadata": {"name": name(number), "namespace": "default"},
        "data": {"number": number.to_string(), "text": text(number)},
    })
}

fn kinds_of(storage: &Storage) -> [KindId; 2] {
    ["configmaps", "secrets"].map(|plural| storage.core(plural).unwrap())
}

fn open(path: &std::path::Path) -> Arc<Storage> {
    Storage::open(kinds::kinds(), Disk::new(open_whole(path))).unwrap()
}

/// Puts a pair, or deletes it if it is there and this change's number says so.
async fn change(storage: Arc<Storage>, number: u64) {
    let writer = storage.write().await;
    let name = name(number);
    let there = storage.get(kinds_of(&storage)[0], &Key::new("default", &name)).is_some();
    let deletes = there && number.is_multiple_of(5);
    println!("\ntries {number} {name} {deletes}");
    let changes = kinds_of(&storage).map(|kind| match deletes {
        true => Change::Delete(kind, object(number)),
        false => Change::Put(kind, object(number)),
    });
    let objects = writer.commit(changes.into()).await.unwrap();
    println!("\nacknowledged {number} {} {}", objects[1].resource_version, now());
}

#[test]
#[ignore = "the child of acknowledged_changes_survive_a_power_cut"]
fn changing_child() {
    let storage = open(&path_of_child());
    let first = storage.resource_version() + 1;
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let mut waiting = FuturesUnordered::new();
        for number in first.. {
            waiting.push(change(storage.clone(), number));
            if waiting.len() == WAITING {
                waiting.next().await.unwrap();
            }
        }
    });
}

/// What a pair may be: the change that made it so, and whether it is there then.
#[derive(Default)]
struct Ledger {
    may_be: BTreeMap<String, Vec<(u64, bool)>>,
    /// The pair of a change.
    tried: BTreeMap<u64, String>,
    resource_version: u64,
    acknowledged: usize,
}

impl Ledger {
    /// Takes what was acknowledged before the power went, at `cut`.
    fn read(&mut self, line: &str, cut: Option<u128>) {
        let words: Vec<&str> = line.split(' ').collect();
        match words[..] {
            ["tries", number, name, deletes] => {
                let number = number.parse().unwrap();
                let states = self.may_be.entry(name.to_owned()).or_insert_with(|| vec![(0, false)]);
                states.push((number, deletes == "false"));
                self.tried.insert(number, name.to_owned());
            }
            ["acknowledged", number, version, at] => {
                if cut.is_some_and(|cut| at.parse::<u128>().unwrap() >= cut) {
                    return;
                }
                let number = number.parse().unwrap();
                let states = self.may_be.get_mut(&self.tried[&number]).unwrap();
                // What was before it is over.
                let at = states.iter().position(|(of, _)| *of == number).expect("acknowledged in their order");
                states.drain(..at);
                let version = version.parse().unwrap();
                assert!(version > self.resource_version, "{version} was given before: {}", self.resource_version);
                self.resource_version = version;
                self.acknowledged += 1;
            }
            // The test program's own lines.
            _ => {}
        }
    }

    /// Checks everything; what is there now is what counts from here on.
    fn holds(&mut self, storage: &Storage, round: usize) {
        let version = storage.resource_version();
        assert!(version >= self.resource_version, "round {round}: {version} was {}", self.resource_version);
        self.resource_version = version;
        for kind in kinds_of(storage) {
            for object in storage.list(kind, None).1 {
                assert!(object.resource_version <= version, "{:?} is newer than the server", object.key);
                assert!(self.may_be.contains_key(&object.key.name), "nobody made {:?}", object.key);
            }
        }
        for (name, states) in &mut self.may_be {
            let [one, twin] = kinds_of(storage).map(|kind| {
                let object = storage.get(kind, &Key::new("default", name))?;
                let value = object.value(storage.kind(kind));
                let number = value["data"]["number"].as_str().unwrap().parse().unwrap();
                assert!(value["data"]["text"] == text(number), "round {round}: {name} holds something else");
                Some(number)
            });
            assert_eq!(one, twin, "round {round}: half a commit of {name}");
            let expected = states.iter().any(|(number, there)| there.then_some(*number) == one);
            assert!(expected, "round {round}: {name} is {one:?}, expected one of {states:?}");
            *states = vec![(one.unwrap_or_default(), one.is_some())];
        }
    }
}

/// P-VERSIONS-RISE
#[test]
fn acknowledged_changes_survive_a_power_cut() {
    let directory = tempfile::tempdir().unwrap();
    let name = "apiserver::storage::power_cut::acknowledged_changes_survive_a_power_cut";
    let Some(switch) = PowerSwitch::new(name, directory.path()) else { return };
    let path = switch.folder().join("store");
    let mut ledger = Ledger::default();
    let cuts = PowerSwitch::cuts();
    for round in 0..cuts {
        let mut child = child("apiserver::storage::power_cut::changing_child", &path)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let enough = ledger.acknowledged + 20 + round % 12 * 17;
        let mut lines = lines_of(&mut child);
        while ledger.acknowledged < enough {
            ledger.read(&lines.next().expect("it works until the power goes"), None);
        }
        let cut = switch.off();
        // With the disk gone the child fails by itself; what it told before is still in the pipe.
        lines.for_each(|line| ledger.read(&line, Some(cut)));
        child.wait().unwrap();
        switch.on_again();
        ledger.holds(&open(&path), round);
    }
    assert!(ledger.acknowledged >= cuts * 20, "{}", ledger.acknowledged);
    println!("{cuts} power cuts, {} changes acknowledged", ledger.acknowledged);
}
