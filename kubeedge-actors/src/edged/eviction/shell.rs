//! Looks at the machine, and ends the pod whose turn it is.

use std::{collections::HashMap, sync::Arc, time::Duration};

use actix::{ActorFutureExt, AsyncContext, WrapFuture};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;

use super::{
    Looked, Signal, Starved,
    rank::{Load, is_critical, message, rank, requested},
    storage::{PodDisk, PodFolders, is_limited, over_its_limits},
};
use crate::{
    edged::{
        Edged,
        events::{EventRecord, Involved, Reason},
        lifecycle::{PodFailure, PodPlan},
        node::readings::MachineReadings,
        provision::logs::LogDirs,
        resources::{CgroupDriver, pod_processes},
        runtime::ContainerStats,
        worker::Reporter as _,
    },
    system::Context,
};

/// The first look: soon, but not before what runs is listed.
const FIRST_LOOK: Duration = Duration::from_secs(2);
/// Pause between two looks (kubelet's).
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// Grace of a pod that ends over a hard threshold, seconds (kubelet's).
const HARD_GRACE: u32 = 1;

/// A pod that may have to go.
struct Candidate {
    uid: String,
    pod: Arc<Pod>,
    folders: PodFolders,
}

impl Edged {
    /// Begins to look.
    pub(in crate::edged) fn begin_to_watch_pressure(&self, ctx: &mut Context<Self>) {
        self.look_after(ctx, FIRST_LOOK);
    }

    /// Looks after a pause, and so on.
    fn watch_pressure(&self, ctx: &mut Context<Self>) {
        self.look_after(ctx, LOOK_EVERY);
    }

    fn look_after(&self, ctx: &mut Context<Self>, pause: Duration) {
        let paths = self.prepared.paths.clone();
        let read = async move {
            tokio::time::sleep(pause).await;
            tokio::task::spawn_blocking(move || MachineReadings::read(&paths)).await
        };
        ctx.spawn(read.into_actor(self).map(|read, this, ctx| match read {
            Ok(Ok(readings)) => this.pressure_seen(ctx, &readings),
            Ok(Err(error)) => {
                tracing::warn!("what the node is short of is not known: {error}");
                this.watch_pressure(ctx);
            }
            Err(error) => tracing::warn!("the machine was not read: {error}"),
        }));
    }

    fn pressure_seen(&mut self, ctx: &mut Context<Self>, readings: &MachineReadings) {
        let looked = self.eviction.observe(readings, &self.prepared.settings.thresholds, Timestamp::now());
        self.tell_pressure(looked);
        self.settle(ctx, looked.starved);
    }

    /// Tells the node's status, and the cluster, what has changed.
    fn tell_pressure(&self, looked: Looked) {
        let before = self.pressure.send_replace(looked.pressure);
        for (now, before, condition) in [
            (looked.pressure.memory, before.memory, "MemoryPressure"),
            (looked.pressure.disk, before.disk, "DiskPressure"),
            (looked.pressure.pids, before.pids, "PIDPressure"),
        ] {
            if now && !before {
                tracing::warn!(condition, "the node is running short");
            } else if before && !now {
                tracing::info!(condition, "the node is no longer short of it");
            }
        }
    }

    /// Makes room if some is needed, then looks again after a pause.
    fn settle(&mut self, ctx: &mut Context<Self>, starved: Option<Starved>) {
        let candidates = self.candidates(starved.is_some());
        if candidates.is_empty() && starved.is_none_or(|starved| !starved.signal.is_disk()) {
            return self.watch_pressure(ctx);
        }
        let (images, runtime, paths) =
            (Arc::clone(&self.images), Arc::clone(&self.shared.runtime), self.prepared.paths.clone());
        if let Some(starved) = starved {
            let (signal, seen) = (starved.signal, starved.seen);
            tracing::warn!(%signal, available = seen.available, capacity = seen.capacity, "the node needs room");
            let message = format!("Attempting to reclaim {}", signal.resource());
            self.tell_node(Reason::EvictionThresholdMet, message);
        }
        let thresholds = self.prepared.settings.thresholds.clone();
        let driver = self.prepared.setup.cgroup_driver;
        let work = async move {
            let mut starved = starved;
            if let Some(short) = starved.filter(|short| short.signal.is_disk()) {
                match images.remove_unused().await {
                    Ok(removed) => {
                        tracing::info!(bytes = removed.freed, images = removed.removed, "images were removed")
                    }
                    Err(error) => tracing::warn!("images are not removed: {error}"),
                }
                let read = tokio::task::spawn_blocking(move || MachineReadings::read(&paths)).await;
                if let Ok(Ok(readings)) = read {
                    let threshold =
                        thresholds.all.iter().find(|one| one.signal == short.signal && one.least == short.least);
                    let seen = short.signal.observe(&readings);
                    let still = threshold.is_some_and(|threshold| threshold.is_met(seen, true));
                    starved = still.then_some(Starved { seen, ..short });
                }
            }
            let stats = runtime.container_stats().await.unwrap_or_else(|error| {
                tracing::warn!("what containers use is not known: {error}");
                Vec::new()
            });
            let measure = move || measure(candidates, &stats, starved, driver);
            tokio::task::spawn_blocking(measure).await
        };
        ctx.spawn(work.into_actor(self).map(|measured, this, ctx| {
            match measured {
                Ok(victims) => {
                    for (uid, message, hard) in victims {
                        this.evict(ctx, &uid, message, hard);
                    }
                }
                Err(error) => tracing::warn!("pods were not measured: {error}"),
            }
            this.watch_pressure(ctx);
        }));
    }

    /// Pods that may have to go: all that run and are not critical, or only those whose disk is limited. None while one
    /// that was told to go has not gone: it may be enough.
    fn candidates(&self, all: bool) -> Vec<Candidate> {
        if self.failures.any(|uid| self.is_alive(uid)) {
            return Vec::new();
        }
        let volumes = self.provision.volumes();
        let running = self.book.orders().filter_map(|(uid, order)| Some((uid, order, order.pod.as_ref()?)));
        let may_go = running.filter(|(uid, order, pod)| {
            order.plan.deletion_grace_seconds.is_none()
                && !self.failures.contains(uid)
                && self.is_alive(uid)
                && ((all && !is_critical(pod)) || is_limited(pod))
        });
        may_go
            .map(|(uid, order, pod)| Candidate {
                uid: uid.to_owned(),
                pod: Arc::clone(pod),
                folders: PodFolders {
                    empty_dirs: volumes.empty_dirs_on_disk(pod),
                    logs: LogDirs::new(self.prepared.setup.log_dir.clone()).pod(&order.plan),
                },
            })
            .collect()
    }

    /// Whether a container of the pod runs, as far as the last list says.
    fn is_alive(&self, uid: &str) -> bool {
        let pod = self.relist.pods().find(|pod| pod.uid == uid);
        pod.is_some_and(|pod| pod.containers.values().any(|state| state.may_run()))
    }

    fn evict(&mut self, ctx: &mut Context<Self>, uid: &str, message: String, hard: bool) {
        let Some(order) = self.book.order(uid) else { return };
        let plan: Arc<PodPlan> = Arc::clone(&order.plan);
        let max = self.prepared.settings.thresholds.max_grace_seconds;
        let grace_seconds = if hard { HARD_GRACE } else { plan.grace_seconds.min(max) };
        tracing::warn!(pod = %format!("{}/{}", plan.namespace, plan.name), grace_seconds, "evicted: {message}");
        let involved = Involved::of(&plan, order.pod.as_deref(), None);
        self.reporter.event(EventRecord::new(involved, Reason::Evicted, message.clone(), Timestamp::now()));
        let failure = PodFailure { reason: "Evicted".to_owned(), message, disruption: true, grace_seconds };
        self.fail(ctx, uid, failure);
    }

    /// An event about the node.
    pub(in crate::edged) fn tell_node(&self, reason: Reason, message: String) {
        let involved = Involved::node(&self.prepared.setup.node_name);
        self.reporter.event(EventRecord::new(involved, reason, message, Timestamp::now()));
    }
}

/// Who has to go, why, and whether at once. Reads the pods' files: for the blocking pool.
fn measure(
    candidates: Vec<Candidate>,
    stats: &[ContainerStats],
    starved: Option<Starved>,
    driver: CgroupDriver,
) -> Vec<(String, String, bool)> {
    let mut victims = Vec::new();
    let mut loads: HashMap<String, Load> = HashMap::new();
    for Candidate { uid, pod, folders } in candidates {
        let own: Vec<ContainerStats> = stats.iter().filter(|stats| stats.pod_uid == uid).cloned().collect();
        let counts_disk = is_limited(&pod) || starved.is_some_and(|starved| starved.signal.is_disk());
        let disk = if counts_disk {
            folders.measure().unwrap_or_else(|error| {
                tracing::warn!(uid, "what a pod has on disk is not known: {error}");
                PodDisk::default()
            })
        } else {
            PodDisk::default()
        };
        if let Some(message) = over_its_limits(&pod, &disk, &own) {
            victims.push((uid, message, true));
            continue;
        }
        if let Some(starved) = starved.filter(|_| !is_critical(&pod)) {
            let processes = || pod_processes(driver, &uid, &pod);
            loads.insert(uid.clone(), load(uid.clone(), &pod, &own, &disk, starved.signal, processes));
        }
    }
    // Who had more than it may have makes room already.
    if let Some(starved) = starved.filter(|_| victims.is_empty())
        && let Some(first) = rank(loads.into_values().collect()).into_iter().next()
    {
        let message = message(&starved, &first);
        victims.push((first.uid, message, starved.hard));
    }
    victims
}

fn load(
    uid: String,
    pod: &Pod,
    stats: &[ContainerStats],
    disk: &PodDisk,
    signal: Signal,
    processes: impl FnOnce() -> u64,
) -> Load {
    let spec = pod.spec.clone().unwrap_or_default();
    let sum = |name: &str, of: fn(&ContainerStats) -> u64| -> u64 {
        stats.iter().filter(|stats| stats.name == name).map(of).fold(0, u64::saturating_add)
    };
    let containers: Vec<(String, u64, u64)> = spec
        .containers
        .iter()
        .chain(spec.init_containers.iter().flatten())
        .map(|container| {
            let name = container.name.as_str();
            let logs = disk.logs.iter().find(|(of, _)| of == name).map_or(0, |(_, bytes)| *bytes);
            let usage = match signal {
                Signal::MemoryAvailable => sum(name, |stats| stats.memory_working_set),
                Signal::NodefsAvailable | Signal::ImagefsAvailable => {
                    sum(name, |stats| stats.layer_bytes).saturating_add(logs)
                }
                Signal::NodefsInodesFree | Signal::ImagefsInodesFree => sum(name, |stats| stats.layer_inodes),
                Signal::PidAvailable => 0,
            };
            (container.name.clone(), usage, requested(container, signal))
        })
        .collect();
    let volumes = match signal {
        Signal::NodefsAvailable | Signal::ImagefsAvailable => disk.empty_dirs.iter().map(|(_, bytes)| *bytes).sum(),
        Signal::NodefsInodesFree | Signal::ImagefsInodesFree => disk.inodes,
        Signal::PidAvailable => processes(),
        Signal::MemoryAvailable => 0,
    };
    Load {
        uid,
        priority: spec.priority.unwrap_or(0),
        request: containers.iter().map(|(_, _, request)| *request).sum(),
        usage: containers.iter().map(|(_, usage, _)| *usage).sum::<u64>().saturating_add(volumes),
        containers,
    }
}
