//! From the folder to the book, and from there to mirror pods in the API.

use std::{
    collections::{BTreeMap, HashMap},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use actix::{ActorFutureExt, AsyncContext, WrapFuture};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use kubeedge_proto::v1::{
    CallCloud, CreateMirrorPod, Envelope, ObjectKey, call_reply::Result as Reply, envelope::Body,
};
use tokio::time::Instant;

use super::{Folder, Found, MIRROR, Mirror, mirrored};
use crate::{
    edged::{Edged, events::Reason, lifecycle::PodPlan, worker::Report},
    system::{Context, Port},
};

/// Pause between two looks at the names, times and sizes of manifests.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Every so many looks each file is read again: about the kubelet's `fileCheckFrequency` of 20 s.
const READ_EVERY: u32 = 10;
/// How long the cloud may take to make a mirror pod.
const MIRROR_WITHIN: Duration = Duration::from_secs(30);
/// Pause before the cloud is asked again for the same.
const ASK_AGAIN: Duration = Duration::from_secs(20);

/// What is known of the folder.
#[derive(Default)]
pub(in crate::edged) struct StaticPods {
    /// By uid.
    pods: BTreeMap<String, Arc<Pod>>,
    /// The folder was read, or there is none: what is not in it is not wanted.
    pub(in crate::edged) ready: bool,
    /// What the cloud was asked for, and when: a mirror pod to make, by the pod's uid, or to take away, by its own.
    asked: HashMap<String, Instant>,
    /// The last error of the folder.
    error: String,
}

impl StaticPods {
    /// Their uids.
    pub(in crate::edged) fn uids(&self) -> impl Iterator<Item = &str> {
        self.pods.keys().map(String::as_str)
    }

    /// Whether the cloud may be asked now.
    fn may_ask(&mut self, what: &str) -> bool {
        let now = Instant::now();
        self.asked.retain(|_, at| now.duration_since(*at) < ASK_AGAIN);
        if self.asked.contains_key(what) {
            return false;
        }
        self.asked.insert(what.to_owned(), now);
        true
    }
}

impl Edged {
    /// Looks at the folder from now on, if there is one.
    pub(in crate::edged) fn watch_manifests(&mut self, ctx: &mut Context<Self>) {
        match self.prepared.static_pods.clone() {
            None => self.static_pods.ready = true,
            Some(path) => self.look_at_manifests(ctx, Folder::new(path, self.prepared.setup.node_name.clone()), 0),
        }
    }

    fn look_at_manifests(&self, ctx: &mut Context<Self>, mut folder: Folder, looks: u32) {
        let look = async move {
            if looks > 0 {
                tokio::time::sleep(LOOK_EVERY).await;
            }
            let look = move || {
                let found = folder.look(looks.is_multiple_of(READ_EVERY));
                (folder, found)
            };
            tokio::task::spawn_blocking(look).await
        };
        ctx.spawn(look.into_actor(self).map(move |looked, this, ctx| match looked {
            Ok((folder, found)) => {
                match found {
                    Ok(found) => this.manifests_seen(ctx, found),
                    Err(error) if error.to_string() != this.static_pods.error => {
                        this.static_pods.error = error.to_string();
                        tracing::error!("the folder of static pods cannot be read, they stay as they are: {error}");
                    }
                    Err(_) => {}
                }
                this.look_at_manifests(ctx, folder, looks.wrapping_add(1));
            }
            Err(error) => tracing::error!("static pods are not looked for any more: {error}"),
        }));
    }

    fn manifests_seen(&mut self, ctx: &mut Context<Self>, found: Found) {
        self.static_pods.error.clear();
        let first = !std::mem::replace(&mut self.static_pods.ready, true);
        for (path, why) in found.broken {
            self.broken_manifest(&path, &why);
        }
        let mut pods = BTreeMap::new();
        for pod in found.pods {
            let uid = pod.metadata.uid.clone().unwrap_or_default();
            match PodPlan::of(&pod) {
                Ok(plan) => {
                    pods.insert(uid, (Arc::new(pod), plan));
                }
                Err(error) if found.changed => {
                    self.broken_manifest(&PathBuf::from(pod.metadata.name.unwrap_or_default()), &error.to_string());
                }
                Err(_) => {}
            }
        }
        let removed: Vec<String> =
            self.static_pods.pods.keys().filter(|uid| !pods.contains_key(*uid)).cloned().collect();
        for uid in removed {
            if let Some(pod) = self.static_pods.pods.remove(&uid) {
                tracing::info!(pod = pod.metadata.name, uid, "a static pod's manifest is gone");
                let effects = self.book.gone(&key(&pod), &uid);
                self.apply(ctx, effects);
                if self.book.order(&uid).is_none() {
                    self.mirrors.remove(&uid);
                }
            }
        }
        for (uid, (pod, plan)) in pods {
            if self.static_pods.pods.insert(uid.clone(), Arc::clone(&pod)).is_none() {
                tracing::info!(pod = pod.metadata.name, uid, "a static pod's manifest is there");
            }
            self.mirrors.add(&uid, key(&pod));
            // One whose file went and came back waits for its own end.
            if self.book.order(&uid).is_none() {
                let effects = self.book.upsert(pod, plan);
                self.apply(ctx, effects);
            }
        }
        if first {
            self.absent_ones(ctx);
        }
        self.sync_mirrors(ctx);
    }

    fn broken_manifest(&self, path: &std::path::Path, why: &str) {
        let message = format!("manifest {}: {why}", path.display());
        tracing::warn!("static pod: {message}");
        self.tell_node(Reason::FailedValidation, message);
    }

    /// A pod of the API is a mirror: true, and it is taken note of and not run.
    pub(in crate::edged) fn mirror_seen(&mut self, ctx: &mut Context<Self>, pod: &Pod) -> bool {
        let Some(of) = mirrored(pod) else { return false };
        let mirror = Mirror { uid: pod.metadata.uid.clone().unwrap_or_default(), of: of.to_owned() };
        if pod.metadata.deletion_timestamp.is_some() {
            // It ends at once, and what it stands for does not.
            self.end_mirror(ctx, key(pod), &mirror);
        }
        self.mirrors.seen(key(pod), mirror);
        if let Some(worker) = self.workers.get(of) {
            worker.bell.report();
        }
        true
    }

    /// A pod has ended: if it was static, and its file is gone, its mirror goes.
    pub(in crate::edged) fn static_pod_ended(&mut self, ctx: &mut Context<Self>, uid: &str) {
        if !self.static_pods.pods.contains_key(uid) {
            self.mirrors.remove(uid);
            self.sync_mirrors(ctx);
        }
    }

    /// Asks the cloud to make the mirrors that are missing and to take those away that stand for nothing.
    pub(in crate::edged) fn sync_mirrors(&mut self, ctx: &mut Context<Self>) {
        // What the cloud has is known when its set is.
        if !self.static_pods.ready || !*self.connected.borrow() || !self.book.may_end_for_absence() {
            return;
        }
        for (key, mirror) in self.mirrors.stale() {
            if self.static_pods.may_ask(&mirror.uid) {
                self.end_mirror(ctx, key, &mirror);
            }
        }
        let Some(call) = self.call.clone() else { return };
        for uid in self.mirrors.missing() {
            let Some(pod) = self.static_pods.pods.get(&uid).cloned() else { continue };
            if !self.static_pods.may_ask(&uid) {
                continue;
            }
            let call = call.clone();
            let made = async move { make_mirror(&call, &pod).await.map_err(|error| (pod, error)) };
            ctx.spawn(made.into_actor(self).map(move |made, this, ctx| match made {
                // The cloud tells of it as of any pod; so that its status is not late, what it answered counts already.
                Ok(mirror) => {
                    // Should it go, it is made again at once.
                    this.static_pods.asked.remove(&uid);
                    this.mirror_seen(ctx, &mirror);
                }
                Err((pod, error)) => {
                    tracing::warn!(pod = pod.metadata.name, "the static pod has no mirror in the API yet: {error}");
                }
            }));
        }
    }

    /// The API's object of a mirror may go.
    fn end_mirror(&self, ctx: &mut Context<Self>, key: (String, String), mirror: &Mirror) {
        let status = self.board.of(&mirror.of).map_or_else(
            || PodStatus { phase: Some("Succeeded".to_owned()), ..PodStatus::default() },
            |status| (*status).clone(),
        );
        let (reporter, uid) = (self.reporter.clone(), mirror.uid.clone());
        let report = async move {
            let report = Report::Terminated(Box::new(status));
            if let Err(error) = reporter.send(ObjectKey::new(&key.0, &key.1), uid, report).await {
                tracing::warn!("a mirror pod's end is not reported yet: {error}");
            }
        };
        ctx.spawn(report.into_actor(self));
    }
}

fn key(pod: &Pod) -> (String, String) {
    (pod.metadata.namespace.clone().unwrap_or_default(), pod.metadata.name.clone().unwrap_or_default())
}

async fn make_mirror(call: &Port<CallCloud>, pod: &Pod) -> Result<Pod, String> {
    let mut mirror = pod.clone();
    let uid = mirror.metadata.uid.take().unwrap_or_default();
    mirror.metadata.annotations.get_or_insert_default().insert(MIRROR.to_owned(), uid);
    let pod_json = serde_json::to_vec(&mirror).map_err(|error| error.to_string())?.into();
    let now = u64::try_from(Timestamp::now().as_millisecond()).unwrap_or(0);
    let envelope = Envelope {
        timeout_ms: u32::try_from(MIRROR_WITHIN.as_millis()).unwrap_or(u32::MAX),
        ..Envelope::new("edged", now, Body::CreateMirrorPod(CreateMirrorPod { pod_json }))
    };
    let reply = call.ask(CallCloud { envelope: Some(envelope) }, MIRROR_WITHIN).await;
    match reply.map_err(|error| format!("EdgeHub: {error}"))?.result {
        Some(Reply::Object(object)) => serde_json::from_slice(&object.json).map_err(|error| error.to_string()),
        Some(Reply::Error(error)) => Err(format!("{} ({})", error.message, error.code)),
        _ => Err("the cloud answered something else than a pod".to_owned()),
    }
}
