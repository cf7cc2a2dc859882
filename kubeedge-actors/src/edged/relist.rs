//! What changed in the runtime between two lists.
//!
//! Runtimes before containerd 1.7 tell no events, so the node looks: two cheap calls a second, and only pods that
//! differ are looked at closely.

use std::{collections::BTreeMap, time::Duration};

use super::runtime::PodSummary;

/// Pause between two lists (kubelet's).
pub const PERIOD: Duration = Duration::from_secs(1);

/// Without a list, a failed one included, for this long Edged is stuck (kubelet's limit for the same).
pub const WITHIN: Duration = Duration::from_secs(180);

/// The last list.
#[derive(Debug, Default)]
pub struct Relist {
    pods: BTreeMap<String, PodSummary>,
}

impl Relist {
    /// Takes in a list and answers the uids of pods that appeared, changed or went.
    pub fn take(&mut self, list: Vec<PodSummary>) -> Vec<String> {
        let new: BTreeMap<String, PodSummary> = list.into_iter().map(|pod| (pod.uid.clone(), pod)).collect();
        let changed = new
            .iter()
            .filter(|(uid, pod)| self.pods.get(*uid) != Some(pod))
            .map(|(uid, _)| uid)
            .chain(self.pods.keys().filter(|uid| !new.contains_key(*uid)))
            .cloned()
            .collect();
        self.pods = new;
        changed
    }

    /// The pods of the last list.
    pub fn pods(&self) -> impl Iterator<Item = &PodSummary> {
        self.pods.values()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::edged::runtime::InstanceState;

    fn pod(uid: &str, state: InstanceState) -> PodSummary {
        PodSummary {
            namespace: "ns".into(),
            name: uid.into(),
            uid: uid.into(),
            sandboxes: [("s".to_owned(), true)].into(),
            containers: [("c".to_owned(), state)].into(),
            grace_seconds: None,
        }
    }

    #[test]
    fn only_what_differs_is_told() {
        use InstanceState::{Exited, Running};
        let mut relist = Relist::default();
        assert_eq!(relist.take(vec![pod("a", Running), pod("b", Running)]), ["a", "b"]);
        assert_eq!(relist.take(vec![pod("b", Running), pod("a", Running)]), [""; 0]);
        assert_eq!(relist.take(vec![pod("a", Exited), pod("b", Running)]), ["a"]);
        assert_eq!(relist.take(vec![pod("a", Exited), pod("c", Running)]), ["c", "b"]);
    }
}
