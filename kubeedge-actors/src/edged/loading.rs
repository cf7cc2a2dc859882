//! The pods on disk: read, understood or refused.

use std::{collections::HashSet, sync::Arc, time::Duration};

use actix::{ActorFutureExt, AsyncContext, WrapFuture};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kubeedge_proto::{
    resource,
    v1::{KubeObject, ObjectList, ReadObjects},
};

use super::{
    AGAIN, Edged,
    events::{self, EventRecord, Involved},
    hold,
    lifecycle::PodPlan,
    status,
    worker::{Report, Reporter as _},
};
use crate::system::Context;

/// How long MetaManager may take to read every pod.
const READ_WITHIN: Duration = Duration::from_secs(60);

impl Edged {
    /// Reads the pods on disk; again until MetaManager answers.
    pub(super) fn load(&self, ctx: &mut Context<Self>) {
        let (read, volumes) = (self.read.clone(), self.provision.volumes().clone());
        let root_dir = self.prepared.setup.root_dir.clone();
        let message = || ReadObjects { r#type: Some(resource::pods()), key: None };
        ctx.spawn(
            async move {
                loop {
                    match (volumes.orphans(&HashSet::new()).await, read.ask(message(), READ_WITHIN).await) {
                        (Ok(folders), Ok(list)) => {
                            let released = tokio::task::spawn_blocking(move || hold::take_all(&root_dir)).await;
                            return (folders, list, released.unwrap_or_default());
                        }
                        (Err(error), _) => tracing::warn!("the folders of pods are not read yet: {error}"),
                        (_, Err(error)) => tracing::warn!("the pods on disk are not read yet: MetaManager: {error}"),
                    }
                    tokio::time::sleep(AGAIN).await;
                }
            }
            .into_actor(self)
            .map(|(folders, list, released): (Vec<String>, ObjectList, bool), this, ctx| {
                this.taken_up.extend(folders);
                let mut pods: Vec<(Arc<Pod>, PodPlan)> = Vec::new();
                for object in &list.objects {
                    let understood = this.understand(ctx, object);
                    pods.extend(understood.map(|(pod, plan)| this.sized(ctx, pod, plan)));
                }
                // Who came first has the first claim on the node, as in a kubelet that starts.
                pods.sort_by_key(|(pod, _)| created(pod));
                tracing::info!(pods = pods.len(), complete = list.complete, "pods read from disk");
                let of_folder = this.static_pods.uids();
                let uids = list.objects.iter().map(|object| object.uid.as_str()).chain(of_folder).collect();
                let effects = this.book.loaded(pods, &uids, list.complete);
                this.apply(ctx, effects);
                if released {
                    ctx.spawn(this.release_held().map(|_, _, _| ()));
                }
                this.retry_resizes(ctx);
                this.absent_ones(ctx);
                if std::mem::take(&mut this.load_again) {
                    this.reload(ctx);
                }
            }),
        );
    }

    /// Reads the pods on disk once more: what became of some may not have been told.
    pub(super) fn reload(&mut self, ctx: &mut Context<Self>) {
        if self.book.is_loading() {
            self.load_again = true;
            return;
        }
        self.book.reload();
        self.load(ctx);
    }

    /// A pod and its plan; one that cannot be run is refused, where it can be said.
    pub(super) fn understand(&mut self, ctx: &mut Context<Self>, object: &KubeObject) -> Option<(Arc<Pod>, PodPlan)> {
        let pod = match serde_json::from_slice::<Pod>(&object.json) {
            Ok(pod) => pod,
            Err(error) => {
                let key = object.key.clone().unwrap_or_default();
                self.refuse(ctx, object, is_deleted(object), &format!("pod {key} is not a Pod: {error}"));
                return None;
            }
        };
        if self.mirror_seen(ctx, &pod) {
            return None;
        }
        let deleted = pod.metadata.deletion_timestamp.is_some();
        match PodPlan::of(&pod) {
            Ok(plan) => Some((Arc::new(pod), plan)),
            Err(error) => {
                self.refuse(ctx, object, deleted, &error.to_string());
                None
            }
        }
    }

    fn refuse(&self, ctx: &mut Context<Self>, object: &KubeObject, deleted: bool, why: &str) {
        tracing::warn!("refused: {why}");
        let now = (self.shared.clock)();
        self.reporter.event(EventRecord::new(
            Involved::object(object),
            events::Reason::InvalidPod,
            why.to_owned(),
            now,
        ));
        if self.book.order(&object.uid).is_some() {
            // It runs in an earlier version, and goes on so: its worker reports, its end as well.
            return;
        }
        let status = Box::new(status::rejected("InvalidPod", why, now));
        let report = if deleted { Report::Terminated(status) } else { Report::Status(status) };
        let (reporter, key, uid) = (self.reporter.clone(), object.key.clone().unwrap_or_default(), object.uid.clone());
        ctx.spawn(
            async move {
                if let Err(error) = reporter.send(key, uid, report).await {
                    tracing::warn!("a refused pod is not reported: {error}");
                }
            }
            .into_actor(self),
        );
    }
}

fn created(pod: &Pod) -> Option<Timestamp> {
    pod.metadata.creation_timestamp.as_ref().map(|time| time.0)
}

/// Whether a deletion was asked for, of what may be no pod at all.
pub(super) fn is_deleted(object: &KubeObject) -> bool {
    let value = serde_json::from_slice::<serde_json::Value>(&object.json);
    value.is_ok_and(|value| value.pointer("/metadata/deletionTimestamp").is_some_and(|at| !at.is_null()))
}
