//! The power goes: an ext4 file system is shut down under a committing process, and what was not synced is gone.
//!
//! A child writes over the same few records again and again, every second one of 1 MiB, so that sled frees and reuses its
//! segments within a commit as well as between commits. The moment of each cut is random by `POWER_SEED`. Three cuts
//! unless `POWER_CUTS` names more; `make powercut` does. All cuts are made, then those that took something are told.

use std::{
    collections::BTreeMap,
    path::Path,
    process::Stdio,
    time::{Duration, Instant},
};

use super::{
    crash::{child, lines_of, path_of_child},
    noise, open_whole,
    power_switch::{PowerSwitch, now},
};
use crate::store::{Options, Store};

/// Records, each written over by a writer of its own: what waits together is one commit of sled, of up to 4 MiB.
const RECORDS: u64 = 8;
/// Cuts that one store sees: a young one grows, and what grew is what a cut takes back.
const SERIES: usize = 6;
/// Most acknowledgements before a cut.
const BEFORE_A_CUT: u64 = 40;
/// Longest that the cut waits then.
const LINGER: Duration = Duration::from_millis(20);

fn length(number: u64) -> usize {
    [50, 1 << 20, 50_000, 1 << 20][(number + number / RECORDS) as usize % 4]
}

/// Number of the newest commit of each record; an error says what is not as it was put.
fn newest(store: &Store) -> Result<BTreeMap<u64, u64>, String> {
    let (records, numbers) = (store.table::<Vec<u8>>("records"), store.table::<Vec<u8>>("numbers"));
    let mut newest = BTreeMap::new();
    for record in 0..RECORDS {
        let number = numbers.get(&record.to_be_bytes()).map_err(|error| error.to_string())?;
        let value = records.get(&record.to_be_bytes()).map_err(|error| error.to_string())?;
        let number = number.map(|bytes| u64::from_be_bytes(bytes.as_slice().try_into().unwrap()));
        if value != number.map(|number| noise(number, length(number))) {
            return Err(format!("record {record} is not what commit {number:?} put: half a commit"));
        }
        newest.extend(number.map(|number| (record, number)));
    }
    Ok(newest)
}

#[test]
#[ignore = "the child of acknowledged_commits_survive_a_power_cut"]
fn overwriting_child() {
    let store = open_whole(&path_of_child());
    let (records, numbers) = (store.table::<Vec<u8>>("records"), store.table::<Vec<u8>>("numbers"));
    let newest = newest(&store).unwrap();
    let writers = (0..RECORDS).map(async |record| {
        let first = newest.get(&record).map_or(record, |number| number + RECORDS);
        for number in (first..).step_by(RECORDS as usize) {
            let mut batch = store.batch();
            batch.put(&records, &record.to_be_bytes(), &noise(number, length(number)));
            batch.put(&numbers, &record.to_be_bytes(), &number.to_be_bytes().to_vec());
            batch.commit().await.unwrap();
            println!("\nacknowledged {number} {}", now());
        }
    });
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(futures_util::future::join_all(writers));
}

/// Number and time of what a child acknowledged.
fn acknowledgement(line: &str) -> Option<(u64, u128)> {
    let (number, at) = line.strip_prefix("acknowledged ")?.split_once(' ')?;
    Some((number.parse().ok()?, at.parse().ok()?))
}

/// Everything that was acknowledged is there, or something newer is, wholly.
fn survived(path: &Path, acknowledged: &BTreeMap<u64, u64>) -> Result<(), String> {
    let opened = Store::open(path, Options::default()).map_err(|error| error.to_string())?;
    if let Some(aside) = opened.set_aside {
        return Err(format!("it was set aside: {}", aside.why));
    }
    if !opened.damaged.is_empty() {
        return Err(format!("{:?} are damaged", opened.damaged));
    }
    let found = newest(&opened.store)?;
    for (record, number) in acknowledged {
        if found.get(record).is_none_or(|found| found < number) {
            return Err(format!("commit {number} of record {record} is lost: there is {:?}", found.get(record)));
        }
    }
    Ok(())
}

/// P-SYNC-IN-COMMIT
#[test]
fn acknowledged_commits_survive_a_power_cut() {
    let directory = tempfile::tempdir().unwrap();
    let name = "store::tests::power_cut::acknowledged_commits_survive_a_power_cut";
    let Some(switch) = PowerSwitch::new(name, directory.path()) else { return };
    let (cuts, seed) = (PowerSwitch::cuts(), PowerSwitch::seed());
    let mut path = switch.folder().join("store");
    let mut acknowledged = BTreeMap::new();
    let mut all = 0;
    let mut lost = Vec::new();
    let start = Instant::now();
    for round in 0..cuts {
        if round % SERIES == 0 {
            path.set_file_name(format!("store-{round}"));
            acknowledged.clear();
        }
        let random = noise(seed.wrapping_add(round as u64), 24);
        let random = |at: usize| u64::from_le_bytes(random[at..at + 8].try_into().unwrap());
        let mut child = child("store::tests::power_cut::overwriting_child", &path)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut note = |number: u64| {
            acknowledged.entry(number % RECORDS).and_modify(|newest| *newest = number.max(*newest)).or_insert(number);
            all += 1;
        };
        let mut lines = lines_of(&mut child).filter_map(|line| acknowledgement(&line));
        let before = 1 + (random(8) % BEFORE_A_CUT) as usize;
        lines.by_ref().take(before).for_each(|(number, _)| note(number));
        std::thread::park_timeout(LINGER.mul_f64(random(16) as f64 / u64::MAX as f64));
        let cut = switch.off();
        // With the disk gone the child fails by itself; what it acknowledged before is still in the pipe.
        lines.filter(|(_, at)| *at < cut).for_each(|(number, _)| note(number));
        child.wait().unwrap();
        switch.on_again();
        if let Err(why) = survived(&path, &acknowledged) {
            println!("cut {round}: {why}");
            lost.push((round, why));
            acknowledged.clear();
            path.set_file_name(format!("store-after-{round}"));
        }
    }
    let took = start.elapsed();
    println!("{cuts} power cuts of seed {seed} in {took:.0?}, {all} commits acknowledged, {} lost some", lost.len());
    assert!(lost.is_empty(), "{lost:?}");
    assert!(all >= cuts, "{all}");
}
