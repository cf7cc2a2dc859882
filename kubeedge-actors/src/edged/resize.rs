//! Resources of pods that run and are to have others: what the node allows goes to the pod's worker, what it does not
//! waits, and is told as the condition `PodResizePending`.
//!
//! While a change waits, the rest of Edged has the pod with the resources that it has. Which these are is kept in a file,
//! `<root directory>/edged-resizes.json`: after a restart the spec alone would not tell.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use actix::{ActorFutureExt, AsyncContext, WrapFuture};
use k8s_openapi::api::core::v1::{Container, Pod, ResourceRequirements};

use super::{
    Edged,
    admission::admit_resize,
    events::{EventRecord, Involved, Reason},
    lifecycle::{PendingResize, PodPlan, Sizes},
    state_file::StateFile,
    worker::Reporter as _,
};
use crate::system::Context;

/// The file in the root directory, and its longest: more than a node's pods can have.
const FILE: &str = "edged-resizes.json";
const MAX_FILE: u64 = 4 * 1024 * 1024;

/// The resources of a pod's containers by their names.
type Allocation = BTreeMap<String, ResourceRequirements>;

/// Changes that wait, by the pods' uids.
#[derive(Default)]
pub(super) struct Resizes {
    waiting: BTreeMap<String, Waiting>,
    /// What pods of an earlier life have whose change waited then, until they are met.
    earlier: BTreeMap<String, Allocation>,
    file: StateFile,
}

struct Waiting {
    /// The pod as it is wanted.
    desired: Arc<Pod>,
    /// What it has.
    has: Allocation,
    why: Arc<PendingResize>,
    /// Whether what it has is on disk: nobody hears of it before.
    on_disk: bool,
}

impl Resizes {
    /// Reads the file of a root directory. One that cannot be read is reported and begun anew: then what waited is done.
    pub(super) fn load(root_dir: &Path) -> Self {
        let file = StateFile::new(root_dir.join(FILE), MAX_FILE);
        let earlier = file.read().unwrap_or_else(|error| {
            tracing::error!(path = %file.path().display(), "which resizes wait is not known: {error}");
            BTreeMap::new()
        });
        Self { earlier, file, ..Self::default() }
    }

    /// Why a pod's change waits, if one does.
    pub(super) fn of(&self, uid: &str) -> Option<Arc<PendingResize>> {
        self.waiting.get(uid).filter(|waiting| waiting.on_disk).map(|waiting| Arc::clone(&waiting.why))
    }
}

/// The containers whose resources may change.
fn containers(pod: &Pod) -> impl Iterator<Item = &Container> {
    let sidecar = |container: &&Container| container.restart_policy.as_deref() == Some("Always");
    let spec = pod.spec.iter();
    spec.flat_map(move |spec| spec.containers.iter().chain(spec.init_containers.iter().flatten().filter(sidecar)))
}

/// What a pod's spec says that its containers have.
fn allocation(pod: &Pod) -> Allocation {
    containers(pod).map(|one| (one.name.clone(), one.resources.clone().unwrap_or_default())).collect()
}

/// Whether two pods want the same of processor and memory for each container.
fn same_sizes(a: &Pod, b: &Pod) -> bool {
    let sizes = |pod: &Pod| containers(pod).map(|one| (one.name.clone(), Sizes::of(one))).collect::<BTreeMap<_, _>>();
    sizes(a) == sizes(b)
}

/// The pod with the resources that its containers have.
fn with(pod: &Pod, has: &Allocation) -> Pod {
    let mut pod = pod.clone();
    if let Some(spec) = &mut pod.spec {
        for container in spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten()) {
            if let Some(resources) = has.get(&container.name) {
                container.resources = Some(resources.clone());
            }
        }
    }
    pod
}

impl Edged {
    /// The pod as it is to be here: with the resources that it has, while it cannot be given those that it wants.
    pub(super) fn sized(&mut self, ctx: &mut Context<Self>, pod: Arc<Pod>, plan: PodPlan) -> (Arc<Pod>, PodPlan) {
        let uid = plan.uid.clone();
        let known = self.book.order(&uid).and_then(|order| order.pod.clone()).map(|known| allocation(&known));
        let Some(has) = known.or_else(|| self.resizes.earlier.get(&uid).cloned()) else { return (pod, plan) };
        let present = with(&pod, &has);
        if same_sizes(&pod, &present) {
            self.forget_resize(ctx, &uid);
            return (pod, plan);
        }
        let others = self.active_pods().filter(|(other, _)| *other != uid).map(|(_, other)| other);
        match admit_resize(&pod, others, &self.room()) {
            // Of an earlier life not every pod is known yet: it is asked again when they are.
            Ok(()) if !self.resizes.earlier.contains_key(&uid) => {
                self.forget_resize(ctx, &uid);
                (pod, plan)
            }
            judged => {
                // What was a pod with one name's containers is one with other resources.
                let Ok(kept) = PodPlan::of(&present) else { return (pod, plan) };
                let deferred = PendingResize { infeasible: false, message: String::new() };
                let why = Arc::new(judged.err().unwrap_or(deferred));
                self.wait_with(ctx, &uid, Waiting { desired: pod, has, why, on_disk: false });
                (Arc::new(present), kept)
            }
        }
    }

    fn wait_with(&mut self, ctx: &mut Context<Self>, uid: &str, mut waiting: Waiting) {
        let earlier = self.resizes.earlier.remove(uid);
        let before = self.resizes.waiting.get(uid);
        let known = earlier.as_ref() == Some(&waiting.has) || before.is_some_and(|before| before.has == waiting.has);
        let news = before.is_none_or(|before| before.why != waiting.why);
        waiting.on_disk = known && before.is_none_or(|before| before.on_disk);
        self.resizes.waiting.insert(uid.to_owned(), waiting);
        if !known {
            self.save_resizes(ctx, Some(uid.to_owned()));
        } else if news {
            self.tell_resize(uid);
        }
    }

    /// Tells of a change that waits, if that is on disk.
    fn tell_resize(&self, uid: &str) {
        let Some(waiting) = self.resizes.waiting.get(uid).filter(|waiting| waiting.on_disk) else { return };
        let (desired, why) = (&waiting.desired, &waiting.why);
        let (Ok(plan), false) = (PodPlan::of(desired), why.message.is_empty()) else { return };
        let reason = if why.infeasible { Reason::ResizeInfeasible } else { Reason::ResizeDeferred };
        tracing::warn!(pod = %format!("{}/{}", plan.namespace, plan.name), "resize: {}", why.message);
        let involved = Involved::of(&plan, Some(desired), None);
        let message = format!("Pod resize {}: {}", why.reason(), why.message);
        self.reporter.event(EventRecord::new(involved, reason, message, (self.shared.clock)()));
    }

    /// A pod has what it wants, or is gone.
    pub(super) fn forget_resize(&mut self, ctx: &mut Context<Self>, uid: &str) {
        let waited = self.resizes.waiting.remove(uid).is_some();
        if self.resizes.earlier.remove(uid).is_some() || waited {
            self.save_resizes(ctx, None);
        }
    }

    /// Writes what waits. `new`: the pod that nobody has heard of yet.
    fn save_resizes(&mut self, ctx: &mut Context<Self>, new: Option<String>) {
        let Resizes { waiting, earlier, file } = &mut self.resizes;
        let now = waiting.iter().map(|(uid, waiting)| (uid.clone(), waiting.has.clone()));
        let all: BTreeMap<String, Allocation> = earlier.clone().into_iter().chain(now).collect();
        let save = file.save(all);
        ctx.spawn(tokio::task::spawn_blocking(save).into_actor(self).map(move |saved, this, _| {
            if let Ok(Err(error)) = saved {
                // After a restart the change would be made although it does not fit.
                tracing::warn!("which resizes wait is not on disk: {error}");
            }
            let Some(uid) = new else { return };
            let Some(waiting) = this.resizes.waiting.get_mut(&uid) else { return };
            waiting.on_disk = true;
            this.tell_resize(&uid);
            if let (Some(order), Some(worker)) = (this.book.order(&uid), this.workers.get(&uid)) {
                worker.orders.send_replace(this.judged(order.clone()));
            }
        }));
    }

    /// There may be room now for what waits.
    pub(super) fn retry_resizes(&mut self, ctx: &mut Context<Self>) {
        let deferred = self.resizes.waiting.iter().filter(|(_, waiting)| !waiting.why.infeasible);
        let deferred: Vec<(String, Arc<Pod>)> =
            deferred.map(|(uid, waiting)| (uid.clone(), Arc::clone(&waiting.desired))).collect();
        for (uid, desired) in deferred {
            let ends = self.book.order(&uid).is_none_or(|order| order.plan.deletion_grace_seconds.is_some());
            if let (false, Ok(plan)) = (ends, PodPlan::of(&desired)) {
                let (pod, plan) = self.sized(ctx, desired, plan);
                let effects = self.book.upsert(pod, plan);
                self.apply(ctx, effects);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(cpu: &str) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": {
            "initContainers": [
                {"name": "i", "resources": {"requests": {"cpu": cpu}}},
                {"name": "s", "restartPolicy": "Always", "resources": {"requests": {"cpu": cpu}}}],
            "containers": [{"name": "c", "image": "new", "resources": {"requests": {"cpu": cpu}}}],
        }}))
        .unwrap()
    }

    #[test]
    fn a_pod_keeps_what_it_has_and_takes_the_rest_of_its_spec() {
        let (before, after) = (pod("100m"), pod("2"));
        let kept = with(&after, &allocation(&before));
        assert!(same_sizes(&kept, &before) && !same_sizes(&kept, &after));
        assert!(same_sizes(&pod("1"), &pod("1000m")), "the same in other words");
        let spec = kept.spec.unwrap();
        assert_eq!(spec.containers[0].image.as_deref(), Some("new"));
        let init = &spec.init_containers.unwrap()[0];
        assert_eq!(init.resources.as_ref().unwrap().requests.as_ref().unwrap()["cpu"].0, "2", "it is not resized");
        let read: Allocation = serde_json::from_value(serde_json::to_value(allocation(&before)).unwrap()).unwrap();
        assert_eq!(read, allocation(&before));
    }
}
