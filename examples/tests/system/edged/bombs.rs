//! Containers that would take the whole machine.

use kubeedge_examples::leftovers::cgroups_naming;

use super::*;

/// Processes of one pod, in these tests.
pub(super) const PIDS: u32 = 64;

impl Node {
    pub(super) async fn a_fork_bomb_stays_within_its_pod(&self) {
        let beside = json!({"name": "beside", "command": ["/bin/sleep", "1000"],
            "readinessProbe": {"exec": {"command": ["/bin/sh", "-c", "true | true"]}, "periodSeconds": 1}});
        let beside = self.pod("beside", &[beside], |_| {});
        let neighbour = self.look_after(&beside).await;
        let before = neighbour.until(|status| ready(status) == 1).await;

        // A shell that cannot fork any more ends.
        let bomb = json!({"name": "bomb", "command": ["/bin/sh", "-c", "while true; do sleep 1000 & done"]});
        let pod = self.pod("bomb", &[bomb], |_| {});
        let looked = self.look_after(&pod).await;
        let status = looked.until(|status| container(status, "bomb")["restartCount"].as_u64() >= Some(1)).await;
        let last = &container(&status, "bomb")["lastState"]["terminated"];
        assert!(last["exitCode"].as_i64() > Some(0), "{status}");
        let limit = |group: &PathBuf| std::fs::read_to_string(group.join("pids.max")).ok();
        let groups = cgroups_naming("poduid-of-bomb").unwrap();
        let limits: Vec<String> = groups.iter().filter_map(limit).collect();
        assert!(limits.contains(&format!("{PIDS}\n")), "{limits:?} of {groups:?}");

        looked.delete(&pod, 1).await;
        self.nothing_is_left(&pod).await;
        let after = neighbour.reports.last.lock().unwrap().clone().unwrap().1;
        assert_eq!(before["containerStatuses"], after["containerStatuses"], "the pod beside it noticed nothing");
        neighbour.delete(&beside, 1).await;
        self.nothing_is_left(&beside).await;
    }
}
