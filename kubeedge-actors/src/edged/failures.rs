//! Pods that have failed as a whole and do not run again: evicted, not admitted, overtaken by a shutdown.
//!
//! They are kept in a file, `<root directory>/edged-failed-pods.json`: a restart of edgecore must not start them again.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::Path,
    sync::Arc,
};

use actix::{ActorFutureExt, AsyncContext, WrapFuture};

use super::{Edged, lifecycle::PodFailure, state_file::StateFile};
use crate::system::Context;

/// The file in the root directory.
const FILE: &str = "edged-failed-pods.json";
/// More than as many pods as a node can have; beyond it the file is not ours.
const MAX_FILE: u64 = 4 * 1024 * 1024;

/// Failed pods by uid.
#[derive(Debug, Default)]
pub struct Failures {
    pods: BTreeMap<String, Arc<PodFailure>>,
    /// Those of them that are not written: static pods, which begin anew with the machine.
    until_restart: BTreeSet<String>,
    /// Those of them that are being written: nothing follows from them yet.
    pending: BTreeSet<String>,
    file: StateFile,
}

impl Failures {
    /// Reads the file of a root directory. One that cannot be read is reported and begun anew: then a failed pod may run
    /// once more, and fail again.
    pub fn load(root_dir: &Path) -> Self {
        let file = StateFile::new(root_dir.join(FILE), MAX_FILE);
        let pods = match file.read::<BTreeMap<String, PodFailure>>() {
            Ok(pods) => pods.into_iter().map(|(uid, failure)| (uid, Arc::new(failure))).collect(),
            Err(error) => {
                tracing::error!(path = %file.path().display(), "which pods have failed is not known: {error}");
                BTreeMap::new()
            }
        };
        Self { pods, file, ..Self::default() }
    }

    /// Why a pod has failed, if it has and that is on disk.
    pub fn of(&self, uid: &str) -> Option<Arc<PodFailure>> {
        self.pods.get(uid).filter(|_| !self.is_pending(uid)).cloned()
    }

    /// Whether its failure is being written: until then it neither runs nor ends.
    pub fn is_pending(&self, uid: &str) -> bool {
        self.pending.contains(uid)
    }

    /// Whether it has failed.
    pub fn contains(&self, uid: &str) -> bool {
        self.pods.contains_key(uid)
    }

    /// Whether one of them is like this.
    pub fn any(&self, like: impl Fn(&str) -> bool) -> bool {
        self.pods.keys().any(|uid| like(uid))
    }

    /// Takes note for as long as this edgecore lives; the first failure of a pod stands.
    fn insert_until_restart(&mut self, uid: &str, failure: PodFailure) {
        self.until_restart.insert(uid.to_owned());
        self.pods.entry(uid.to_owned()).or_insert_with(|| Arc::new(failure));
    }

    /// Takes note; the first failure of a pod stands. `None`: it is known already.
    fn insert(&mut self, uid: &str, failure: PodFailure) -> Option<impl FnOnce() -> io::Result<()> + Send + use<>> {
        if self.contains(uid) {
            return None;
        }
        self.pods.insert(uid.to_owned(), Arc::new(failure));
        self.pending.insert(uid.to_owned());
        Some(self.save())
    }

    /// The failure of this pod is written, or cannot be.
    fn settled(&mut self, uid: &str) {
        self.pending.remove(uid);
    }

    /// Forgets a pod that is gone. What is on disk goes with the next write.
    pub fn forget(&mut self, uid: &str) {
        self.pods.remove(uid);
        self.until_restart.remove(uid);
    }

    /// These pods are all that there are. What is on disk of others goes with the next write.
    pub fn retain(&mut self, known: impl Fn(&str) -> bool) {
        self.pods.retain(|uid, _| known(uid));
    }

    /// Writes what is known now; an older write that comes later does nothing.
    fn save(&mut self) -> impl FnOnce() -> io::Result<()> + Send + use<> {
        let pods: BTreeMap<String, PodFailure> = self
            .pods
            .iter()
            .filter(|(uid, _)| !self.until_restart.contains(*uid))
            .map(|(uid, failure)| (uid.clone(), (**failure).clone()))
            .collect();
        self.file.save(pods)
    }
}

impl Edged {
    /// A pod has failed for good. It is on disk before anything ends for it, and before anybody hears of it.
    pub(super) fn fail(&mut self, ctx: &mut Context<Self>, uid: &str, failure: PodFailure) {
        if self.mirrors.is_static(uid) {
            self.failures.insert_until_restart(uid, failure);
            if let (Some(order), Some(worker)) = (self.book.order(uid), self.workers.get(uid)) {
                worker.orders.send_replace(self.judged(order.clone()));
            }
            return;
        }
        let Some(save) = self.failures.insert(uid, failure) else { return };
        let uid = uid.to_owned();
        ctx.spawn(tokio::task::spawn_blocking(save).into_actor(self).map(move |saved, this, ctx| {
            if let Ok(Err(error)) = saved {
                // Ended all the same: the node needs it. After a restart the pod runs once more.
                tracing::error!(uid, "that the pod has failed is not on disk: {error}");
            }
            this.failures.settled(&uid);
            let Some(order) = this.book.order(&uid).cloned() else { return };
            match this.workers.get(&uid) {
                Some(worker) => drop(worker.orders.send_replace(this.judged(order))),
                None => this.start(ctx, uid, order),
            }
        }));
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn failure(reason: &str) -> PodFailure {
        PodFailure { reason: reason.into(), message: "m".into(), disruption: true, grace_seconds: 1 }
    }

    #[test]
    fn what_has_failed_is_known_after_a_restart_and_the_first_reason_stands() {
        let folder = tempfile::tempdir().unwrap();
        let mut failures = Failures::load(folder.path());
        failures.insert("a", failure("Evicted")).unwrap()().unwrap();
        assert!(failures.insert("a", failure("Other")).is_none());
        assert!(failures.contains("a") && failures.of("a").is_none(), "the owner has not heard of the write");
        failures.settled("a");
        assert_eq!(failures.of("a").unwrap().reason, "Evicted");
        // The second write overtakes the first.
        let (second, third) =
            (failures.insert("b", failure("B")).unwrap(), failures.insert("c", failure("C")).unwrap());
        third().unwrap();
        second().unwrap();
        let again = Failures::load(folder.path());
        assert_eq!(again.of("a").unwrap().reason, "Evicted");
        assert!(again.contains("b") && again.contains("c") && !again.contains("d"));
        failures.forget("a");
        failures.insert("d", failure("D")).unwrap()().unwrap();
        assert!(!Failures::load(folder.path()).contains("a"));
    }

    #[test]
    fn a_damaged_file_is_begun_anew() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(FILE), "{\"a\": ").unwrap();
        let mut failures = Failures::load(folder.path());
        assert!(!failures.contains("a"));
        failures.insert("b", failure("B")).unwrap()().unwrap();
        assert!(Failures::load(folder.path()).contains("b"));
    }
}
