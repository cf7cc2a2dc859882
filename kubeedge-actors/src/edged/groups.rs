//! Keeps the control groups above the pods at what pods may use: all together, and each class.

use std::time::Duration;

use tokio::sync::watch;

use super::{
    Edged,
    events::{EventRecord, Involved, Reason},
    resources::{GroupLimits, Groups, QosClass, best_effort, burstable_shares},
    worker::Reporter,
};
use crate::system::Context;

/// So often they are looked at without a change: somebody else may have written them, and what failed is tried again.
const EVERY: Duration = Duration::from_secs(60);

/// The task that does it.
pub(super) struct Keeper<R> {
    /// Where.
    pub(super) groups: Groups,
    /// What all pods together may use.
    pub(super) node: GroupLimits,
    /// Whom failures are told.
    pub(super) reporter: R,
    /// The node's name.
    pub(super) name: String,
}

impl<R: Reporter> Keeper<R> {
    /// Writes the limits now, whenever the shares of the burstable class change, and once a minute.
    pub(super) async fn run(self, mut burstable: watch::Receiver<i64>) {
        let mut told: Option<Result<(), String>> = None;
        loop {
            let shares = *burstable.borrow_and_update();
            let (groups, node) = (self.groups.clone(), self.node);
            let work = move || {
                groups.limit_node(node)?;
                groups
                    .limit_class(QosClass::Burstable, GroupLimits { shares: Some(shares), ..GroupLimits::default() })?;
                groups.limit_class(QosClass::BestEffort, best_effort())
            };
            let done = match tokio::task::spawn_blocking(work).await {
                Ok(Ok(())) => Some(Ok(())),
                // systemd makes a slice with its first pod.
                Ok(Err(error)) if error.kind() == std::io::ErrorKind::NotFound => {
                    tracing::debug!("a control group is not there yet: {error}");
                    None
                }
                Ok(Err(error)) => Some(Err(error.to_string())),
                // The program is going down.
                Err(_) => return,
            };
            if let Some(done) = done.filter(|done| told.as_ref() != Some(done)) {
                self.tell(&done);
                told = Some(done);
            }
            match tokio::time::timeout(EVERY, burstable.changed()).await {
                Ok(Ok(())) | Err(_) => {}
                Ok(Err(_)) => return,
            }
        }
    }

    /// In a kubelet's words.
    fn tell(&self, done: &Result<(), String>) {
        let (reason, message) = match done {
            Ok(()) => (Reason::NodeAllocatableEnforced, "Updated Node Allocatable limit across pods".to_owned()),
            Err(error) => {
                tracing::warn!("pods are not limited together: {error}");
                let message = format!("Failed to update Node Allocatable Limits [\"kubepods\"]: {error}");
                (Reason::FailedNodeAllocatableEnforcement, message)
            }
        };
        let involved = Involved::node(&self.name);
        self.reporter.event(EventRecord::new(involved, reason, message, jiff::Timestamp::now()));
    }
}

impl Edged {
    /// Begins to keep them, unless the settings say that pods are not limited together.
    pub(super) fn begin_to_keep_groups(&mut self, _: &mut Context<Self>) {
        let Some(node) = self.prepared.node_group else { return };
        let keeper = Keeper {
            groups: self.prepared.setup.groups(),
            node,
            reporter: self.reporter.clone(),
            name: self.prepared.setup.node_name.clone(),
        };
        let task = tokio::spawn(keeper.run(self.burstable.subscribe()));
        self.groups = Some(tokio_util::task::AbortOnDropHandle::new(task));
    }

    /// The pods of the node, or their requests, have changed.
    pub(super) fn share_out(&self) {
        if self.groups.is_none() {
            return;
        }
        let shares = burstable_shares(self.active_pods().map(|(_, pod)| pod));
        self.burstable.send_if_modified(|known| std::mem::replace(known, shares) != shares);
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        path::Path,
        sync::{Arc, Mutex},
    };

    use futures_util::future::BoxFuture;

    use super::*;
    use crate::edged::{lifecycle::PodPlan, resources::CgroupDriver, worker::Report};

    #[derive(Clone, Default)]
    struct Told(Arc<Mutex<Vec<EventRecord>>>, Arc<tokio::sync::Notify>);

    impl Reporter for Told {
        fn report<'a>(&'a self, _: &'a PodPlan, _: Report) -> BoxFuture<'a, Result<(), String>> {
            Box::pin(async { Ok(()) })
        }

        fn event(&self, event: EventRecord) {
            self.0.lock().unwrap().push(event);
            self.1.notify_one();
        }
    }

    fn files(root: &Path, folder: &str) {
        fs::create_dir_all(root.join("cpu").join(folder)).unwrap();
        fs::write(root.join("cpu").join(folder).join("cpu.shares"), "1024").unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn shares_follow_the_pods_and_what_fails_is_told_once_and_tried_again() {
        let root = tempfile::tempdir().unwrap();
        for folder in ["kubepods", "kubepods/burstable", "kubepods/besteffort"] {
            files(root.path(), folder);
        }
        // In the way of the file.
        let blocked = root.path().join("cpu/kubepods/besteffort/cpu.shares");
        fs::remove_file(&blocked).unwrap();
        fs::create_dir(&blocked).unwrap();
        let told = Told::default();
        let (shares, seen) = watch::channel(512);
        let keeper = Keeper {
            groups: Groups::new(CgroupDriver::Cgroupfs, root.path()),
            node: GroupLimits { shares: Some(2048), ..GroupLimits::default() },
            reporter: told.clone(),
            name: "edge-1".into(),
        };
        let task = tokio::spawn(keeper.run(seen));
        told.1.notified().await;
        let read = |folder: &str| fs::read_to_string(root.path().join("cpu").join(folder).join("cpu.shares")).unwrap();
        assert_eq!((read("kubepods"), read("kubepods/burstable")), ("2048".into(), "512".into()));
        fs::remove_dir(&blocked).unwrap();
        fs::write(&blocked, "1024").unwrap();
        shares.send_replace(700);
        told.1.notified().await;
        assert_eq!((read("kubepods/burstable"), read("kubepods/besteffort")), ("700".into(), "2".into()));
        let names: Vec<String> = told.0.lock().unwrap().iter().map(|event| event.reason.as_str().to_owned()).collect();
        assert_eq!(names, ["FailedNodeAllocatableEnforcement", "NodeAllocatableEnforced"]);
        drop(shares);
        task.await.unwrap();
    }
}
