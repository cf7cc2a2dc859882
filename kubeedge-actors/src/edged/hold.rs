//! Held pods: a new pod with the annotation `edge.kubeedge.io/hold-upgrade: "true"` waits, Pending and with the condition
//! `HeldUpgrade`, until it is released: at the cloud by another value of the annotation, or at the edge by a file.
//!
//! Files are how `edgecore unhold-upgrade` says it, also while edgecore does not run: in
//! `<root directory>/unhold-upgrade`, `<namespace>_<name>` releases a pod, and `all` those that wait now. MetaServer says
//! the same by [`ReleasePods`]. That a pod was released is kept as `<uid>.released` until it has ended, so that a restart
//! does not hold what runs.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use actix::{ActorFutureExt, AsyncContext, Handler, ResponseActFuture, WrapFuture};
use k8s_openapi::{
    api::core::v1::{Pod, PodCondition, PodStatus},
    apimachinery::pkg::apis::meta::v1::Time,
};
use kubeedge_proto::v1::{ReleasePods, Settled};

use super::{
    Edged,
    lifecycle::Want,
    worker::{Order, Report, Reporter as _},
};
use crate::system::Context;

/// The annotation.
pub const HOLD: &str = "edge.kubeedge.io/hold-upgrade";
/// The condition of a pod that is held.
pub const CONDITION: &str = "HeldUpgrade";
/// Pause between two looks whether a pod was released.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The file that releases every pod that waits: no pod's has this name, which has no underscore.
const ALL: &str = "all";

/// Whether a pod asks to be held.
pub fn is_held(pod: &Pod) -> bool {
    pod.metadata.annotations.as_ref().and_then(|all| all.get(HOLD)).is_some_and(|value| value == "true")
}

/// The folder of releases below a root directory.
pub fn folder(root_dir: &Path) -> PathBuf {
    root_dir.join("unhold-upgrade")
}

/// Says that a pod is released, whether edgecore runs or not: what `edgecore unhold-upgrade` does. The names are those of
/// a pod, which are valid as a file's.
pub fn release(root_dir: &Path, namespace: &str, name: &str) -> io::Result<()> {
    let valid = [namespace, name].iter().all(|part| kubeedge_proto::is_dns_subdomain(part));
    if !valid {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "that is not the name of a pod"));
    }
    note(&folder(root_dir), &format!("{namespace}_{name}"))
}

/// Says that every pod that waits now is released, whether edgecore runs or not.
pub fn release_all(root_dir: &Path) -> io::Result<()> {
    note(&folder(root_dir), ALL)
}

/// Whether [`release_all`] was said; it counts once.
pub(super) fn take_all(root_dir: &Path) -> bool {
    fs::remove_file(folder(root_dir).join(ALL)).is_ok()
}

/// Makes an empty file that is there after a power cut, too.
fn note(folder: &Path, name: &str) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    fs::File::create(folder.join(name))?.sync_all()?;
    fs::File::open(folder)?.sync_all()
}

fn released(uid: &str) -> String {
    format!("{uid}.released")
}

/// The pods that wait.
#[derive(Default)]
pub(super) struct Held {
    pods: BTreeMap<String, Order>,
    looking: bool,
}

impl Edged {
    /// Whether a pod has to wait; it is reported as held then, and its order kept.
    pub(super) fn hold(&mut self, ctx: &mut Context<Self>, uid: &str, order: &Order) -> bool {
        let Some(pod) = order.pod.as_deref().filter(|pod| order.want == Want::Run && is_held(pod)) else {
            return false;
        };
        // What an earlier edgecore began goes on, whatever is written on it by now.
        if self.failures.contains(uid) || self.was_taken_up(uid) {
            return false;
        }
        // One small look at a folder that is there only where pods are held.
        let root_dir = &self.prepared.setup.root_dir;
        if folder(root_dir).join(released(uid)).exists() {
            return false;
        }
        if self.held.pods.is_empty() && take_all(root_dir) {
            tracing::info!("all pods were released before one waited: that is forgotten");
        }
        let status = held_status(pod, (self.shared.clock)());
        let (reporter, plan) = (self.reporter.clone(), std::sync::Arc::clone(&order.plan));
        tracing::info!(pod = %format!("{}/{}", plan.namespace, plan.name), "the pod is held until it is released");
        let report = async move {
            if let Err(error) = reporter.report(&plan, Report::Status(Box::new(status))).await {
                tracing::warn!("a held pod is not reported: {error}");
            }
        };
        ctx.spawn(report.into_actor(self));
        self.held.pods.insert(uid.to_owned(), order.clone());
        if !std::mem::replace(&mut self.held.looking, true) {
            self.look_for_releases(ctx);
        }
        true
    }

    /// Another order for a pod that waits. False when it does not wait.
    pub(super) fn order_held(&mut self, ctx: &mut Context<Self>, uid: &str, order: &Order) -> bool {
        if self.held.pods.remove(uid).is_none() {
            return false;
        }
        let still = order.want == Want::Run && order.pod.as_deref().is_some_and(is_held);
        if still {
            self.held.pods.insert(uid.to_owned(), order.clone());
        } else {
            tracing::info!(uid, "the pod is not held any longer");
            ctx.spawn(self.start_released(vec![(uid.to_owned(), order.clone())]).map(|_, _, _| ()));
        }
        true
    }

    /// Starts what was held, when it is on disk that it was released; says whether it is.
    fn start_released(&self, released: Vec<(String, Order)>) -> ResponseActFuture<Self, io::Result<()>> {
        let folder = folder(&self.prepared.setup.root_dir);
        let names: Vec<String> = released.iter().map(|(uid, _)| self::released(uid)).collect();
        let note_all = move || names.iter().try_for_each(|name| note(&folder, name));
        let noted =
            async move { tokio::task::spawn_blocking(note_all).await.unwrap_or_else(|error| Err(error.into())) };
        Box::pin(noted.into_actor(self).map(move |noted, this, ctx| {
            if let Err(error) = &noted {
                tracing::error!("that pods were released is not on disk, a restart holds them again: {error}");
            }
            for (uid, order) in released {
                // What is wanted of it by now.
                let order = this.book.order(&uid).cloned().unwrap_or(order);
                this.start(ctx, uid, order);
            }
            noted
        }))
    }

    /// Releases every pod that waits.
    pub(super) fn release_held(&mut self) -> ResponseActFuture<Self, io::Result<()>> {
        let held = std::mem::take(&mut self.held.pods);
        tracing::info!(pods = held.len(), "all pods that waited were released at the edge");
        self.start_released(held.into_iter().collect())
    }

    fn look_for_releases(&self, ctx: &mut Context<Self>) {
        let root_dir = self.prepared.setup.root_dir.clone();
        let folder = folder(&root_dir);
        let wanted: Vec<(String, String)> = self
            .held
            .pods
            .iter()
            .map(|(uid, order)| (uid.clone(), format!("{}_{}", order.plan.namespace, order.plan.name)))
            .collect();
        let look = async move {
            tokio::time::sleep(LOOK_EVERY).await;
            let look = move || -> Vec<String> {
                let all = take_all(&root_dir);
                let taken = |name: &String| fs::remove_file(folder.join(name)).is_ok();
                wanted.into_iter().filter(|(_, name)| taken(name) || all).map(|(uid, _)| uid).collect()
            };
            tokio::task::spawn_blocking(look).await.unwrap_or_default()
        };
        ctx.spawn(look.into_actor(self).map(|uids, this, ctx| {
            let released: Vec<(String, Order)> =
                uids.iter().filter_map(|uid| this.held.pods.remove_entry(uid)).collect();
            for (uid, _) in &released {
                tracing::info!(uid, "the pod was released at the edge");
            }
            if !released.is_empty() {
                ctx.spawn(this.start_released(released).map(|_, _, _| ()));
            }
            this.held.looking = !this.held.pods.is_empty();
            if this.held.looking {
                this.look_for_releases(ctx);
            }
        }));
    }

    /// A pod has ended: that it was released is of no interest any more.
    pub(super) fn forget_release(&self, uid: &str) {
        let file = folder(&self.prepared.setup.root_dir).join(released(uid));
        // Most pods were never held.
        tokio::task::spawn_blocking(move || fs::remove_file(file));
    }
}

impl Handler<ReleasePods> for Edged {
    type Result = ResponseActFuture<Self, Settled>;

    fn handle(&mut self, message: ReleasePods, _: &mut Context<Self>) -> Self::Result {
        let ReleasePods { namespace, name } = message;
        let released = if namespace.is_empty() && name.is_empty() {
            self.release_held()
        } else {
            let named = |order: &Order| order.plan.namespace == namespace && order.plan.name == name;
            let found = self.held.pods.iter().find(|(_, order)| named(order)).map(|(uid, _)| uid.clone());
            let Some(entry) = found.and_then(|uid| self.held.pods.remove_entry(&uid)) else {
                let text = format!("no pod {namespace}/{name} is held on this node");
                return Box::pin(actix::fut::ready(Settled::rejected(404, text)));
            };
            tracing::info!(uid = entry.0, "the pod was released at the edge");
            self.start_released(vec![entry])
        };
        Box::pin(released.map(|released, _, _| match released {
            Ok(()) => Settled::applied(),
            Err(error) => Settled::rejected(500, format!("released, but a restart holds it again: {error}")),
        }))
    }
}

fn held_status(pod: &Pod, now: jiff::Timestamp) -> PodStatus {
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let condition = PodCondition {
        type_: CONDITION.to_owned(),
        status: "True".to_owned(),
        reason: Some("HeldUpgrade".to_owned()),
        message: Some(format!("Pod {name} is held by its annotation {HOLD} until it is released")),
        last_transition_time: Some(Time(now)),
        ..PodCondition::default()
    };
    PodStatus { phase: Some("Pending".to_owned()), conditions: Some(vec![condition]), ..PodStatus::default() }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_the_word_true_holds() {
        let held = |annotations: serde_json::Value| {
            is_held(&serde_json::from_value(json!({"metadata": {"annotations": annotations}})).unwrap())
        };
        assert!(held(json!({HOLD: "true"})));
        assert!(!held(json!({HOLD: "false"})) && !held(json!({HOLD: ""})) && !held(json!({})));
    }

    #[test]
    fn a_release_names_a_pod_and_nothing_else() {
        let root = tempfile::tempdir().unwrap();
        release(root.path(), "ns", "web.1").unwrap();
        assert!(folder(root.path()).join("ns_web.1").is_file());
        release_all(root.path()).unwrap();
        assert!(take_all(root.path()) && !take_all(root.path()), "it counts once");
        for (namespace, name) in [("..", "x"), ("ns", "../x"), ("", "x"), ("ns", "a/b"), ("ns", "")] {
            assert!(release(root.path(), namespace, name).is_err(), "{namespace} {name}");
        }
    }
}
