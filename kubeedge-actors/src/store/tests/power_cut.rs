//! The power goes: an ext4 file system is shut down under a committing process, and what was not synced is gone.
//!
//! Three cuts unless `POWER_CUTS` names more; `make powercut` does.

use std::process::Stdio;

use super::{
    crash::{acknowledgements, child, holds},
    open_whole,
    power_switch::PowerSwitch,
};

/// P-SYNC-IN-COMMIT
#[test]
fn acknowledged_commits_survive_a_power_cut() {
    let directory = tempfile::tempdir().unwrap();
    let name = "store::tests::power_cut::acknowledged_commits_survive_a_power_cut";
    let Some(switch) = PowerSwitch::new(name, directory.path()) else { return };
    let path = switch.folder().join("store");
    let mut acknowledged = Vec::new();
    let cuts = PowerSwitch::cuts();
    for round in 0..cuts {
        let mut child = child("store::tests::crash::committing_child", &path)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = acknowledgements(&mut child);
        acknowledged.extend(lines.by_ref().take(20 + round % 12 * 17));
        switch.off();
        // With the disk gone the child fails by itself; what it acknowledged before is still in the pipe.
        acknowledged.extend(lines);
        child.wait().unwrap();
        switch.on_again();
        let store = open_whole(&path);
        holds(&store, &acknowledged, round);
    }
    assert!(acknowledged.len() >= cuts * 20, "{}", acknowledged.len());
}
