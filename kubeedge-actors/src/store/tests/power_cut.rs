//! The power goes: an ext4 file system is shut down under a committing process, and what was not synced is gone.
//!
//! Three cuts unless `POWER_CUTS` names more; `make powercut` does.

use std::process::Stdio;

use super::{
    crash::{acknowledgements, child, holds},
    open_whole,
    power_switch::PowerSwitch,
};

/// Cuts that one store sees: all of it is read after each.
const SERIES: usize = 12;

/// P-SYNC-IN-COMMIT
#[test]
fn acknowledged_commits_survive_a_power_cut() {
    let directory = tempfile::tempdir().unwrap();
    let name = "store::tests::power_cut::acknowledged_commits_survive_a_power_cut";
    let Some(switch) = PowerSwitch::new(name, directory.path()) else { return };
    let mut path = switch.folder().join("store");
    let mut acknowledged = Vec::new();
    let mut all = 0;
    let cuts = PowerSwitch::cuts();
    for round in 0..cuts {
        if round % SERIES == 0 {
            path.set_file_name(format!("store-{round}"));
            all += acknowledged.len();
            acknowledged.clear();
        }
        let mut child = child("store::tests::crash::committing_child", &path)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = acknowledgements(&mut child);
        acknowledged.extend(lines.by_ref().take(20 + round % SERIES * 17));
        switch.off();
        // With the disk gone the child fails by itself; what it acknowledged before is still in the pipe.
        acknowledged.extend(lines);
        child.wait().unwrap();
        switch.on_again();
        let store = open_whole(&path);
        holds(&store, &acknowledged, round);
    }
    all += acknowledged.len();
    assert!(all >= cuts * 20, "{all}");
    println!("{cuts} power cuts, {all} commits acknowledged");
}
