//! The task that probes one pod's containers. There is none for a pod without probes.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
use jiff::Timestamp;
use tokio::{sync::watch, time::Instant};
use tokio_util::task::AbortOnDropHandle;

use super::{Bell, Order, Shared, Told, tell};
use crate::edged::probes::{Answer, Asked, Checked, InstanceProbes, ProbeKind, Probes, check};

/// How often something is asked anew at once when it could not be asked (kubelet's).
const TRIES: usize = 3;

/// One running instance.
#[derive(Clone, Debug)]
pub(super) struct Target {
    /// The runtime's id.
    pub(super) id: String,
    /// Its container.
    pub(super) container: String,
    /// What it is asked.
    pub(super) probes: Probes,
    /// When it started.
    pub(super) started_at: Timestamp,
    /// Whether it ran before this worker began.
    pub(super) adopted: bool,
}

/// What there is to probe.
#[derive(Clone)]
pub(super) struct Targets {
    /// The pod.
    pub(super) order: Order,
    /// Its address; empty when it has none.
    pub(super) address: String,
    /// What runs and has probes.
    pub(super) instances: Vec<Target>,
    /// Whether the pod ends: then only readiness is asked for.
    pub(super) ends: bool,
}

type Said = Arc<Mutex<BTreeMap<String, Checked>>>;

/// The task, and what it found out.
pub(super) struct Prober {
    targets: watch::Sender<Targets>,
    said: Said,
    _task: AbortOnDropHandle<()>,
}

impl Prober {
    /// Begins to probe.
    pub(super) fn start(shared: Arc<Shared>, bell: Arc<Bell>, targets: Targets) -> Self {
        let (sender, mut received) = watch::channel(targets);
        received.mark_changed();
        let said = Said::default();
        let task = Task {
            shared,
            bell,
            targets: received,
            said: Arc::clone(&said),
            instances: BTreeMap::new(),
            under_way: FuturesUnordered::new(),
        };
        Self { targets: sender, said, _task: AbortOnDropHandle::new(tokio::spawn(task.run())) }
    }

    /// There is something else to probe, or the same.
    pub(super) fn look_at(&self, targets: Targets) {
        self.targets.send_replace(targets);
    }

    /// What the probes say, by instance.
    pub(super) fn said(&self) -> BTreeMap<String, Checked> {
        lock(&self.said).clone()
    }
}

fn lock(said: &Said) -> MutexGuard<'_, BTreeMap<String, Checked>> {
    // Insertions and removals are whole, so a poisoned lock guards a whole map.
    said.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Task {
    shared: Arc<Shared>,
    bell: Arc<Bell>,
    targets: watch::Receiver<Targets>,
    said: Said,
    instances: BTreeMap<String, InstanceProbes>,
    under_way: FuturesUnordered<BoxFuture<'static, (String, ProbeKind, Answer)>>,
}

impl Task {
    async fn run(mut self) {
        loop {
            let next = self.instances.iter().filter_map(|(id, probes)| Some((probes.next()?, id))).min();
            let next = next.map(|((due, kind), id)| (due, kind, id.clone()));
            let due = next.as_ref().map(|(due, ..)| *due);
            tokio::select! {
                changed = self.targets.changed() => match changed {
                    Ok(()) => self.take_targets(),
                    Err(_) => return,
                },
                Some((id, kind, answer)) = self.under_way.next(), if !self.under_way.is_empty() => {
                    self.answered(&id, kind, answer);
                }
                () = wait_until(due) => if let Some((_, kind, id)) = next {
                    self.begin(id, kind);
                },
            }
        }
    }

    fn take_targets(&mut self) {
        let targets = self.targets.borrow_and_update().clone();
        self.instances.retain(|id, _| targets.instances.iter().any(|target| target.id == *id));
        let (now, wall) = (Instant::now(), (self.shared.clock)());
        for target in targets.instances {
            let probes = self.instances.entry(target.id).or_insert_with(|| {
                // A clock that was set meanwhile makes at most a longer initial delay of it.
                let age = Duration::try_from(wall.duration_since(target.started_at)).unwrap_or_default();
                let started_at = now.checked_sub(age).unwrap_or(now);
                let probes = InstanceProbes::new(target.probes, started_at);
                if target.adopted { probes.adopted(started_at) } else { probes }
            });
            if targets.ends {
                probes.ends();
            }
        }
        self.publish();
    }

    fn publish(&self) {
        *lock(&self.said) = self.instances.iter().map(|(id, probes)| (id.clone(), probes.checked())).collect();
    }

    fn begin(&mut self, id: String, kind: ProbeKind) {
        let Some(spec) = self.instances.get_mut(&id).and_then(|probes| probes.begin(kind, Instant::now())).cloned()
        else {
            return;
        };
        let (runtime, address) = (Arc::clone(&self.shared.runtime), self.targets.borrow().address.clone());
        self.under_way.push(Box::pin(async move {
            let check = match spec.check {
                Ok(check) => check,
                Err(error) => return (id, kind, Answer::Unknown(error)),
            };
            let mut tries = 1;
            loop {
                let asked = Asked { runtime: &*runtime, id: &id, address: &address, timeout: spec.timeout };
                let answer = check::ask(&check, asked).await;
                if !matches!(answer, Answer::Unknown(_)) || tries == TRIES {
                    return (id, kind, answer);
                }
                tries += 1;
            }
        }));
    }

    fn answered(&mut self, id: &str, kind: ProbeKind, answer: Answer) {
        // What has ended meanwhile has nothing to say.
        let Some(probes) = self.instances.get_mut(id) else { return };
        let good = match &answer {
            Answer::Good | Answer::Warning(_) => Some(true),
            Answer::Bad(_) => Some(false),
            Answer::Unknown(_) => None,
        };
        let changed = probes.end(kind, good, Instant::now());
        self.tell(id, kind, answer);
        if changed {
            self.publish();
            self.bell.look();
        }
    }

    fn tell(&self, id: &str, kind: ProbeKind, answer: Answer) {
        let kind = kind.as_str();
        let (reason, message) = match answer {
            Answer::Good => return,
            Answer::Warning(text) => (Told::ProbeWarning, format!("{kind} probe warning: {text}")),
            Answer::Bad(text) => (Told::Unhealthy, format!("{kind} probe failed: {text}")),
            Answer::Unknown(text) => {
                (Told::Unhealthy, format!("{kind} probe errored and resulted in unknown state: {text}"))
            }
        };
        let targets = self.targets.borrow();
        let Some(target) = targets.instances.iter().find(|target| target.id == id) else { return };
        tracing::debug!(container = target.container, "{message}");
        tell(&self.shared, &targets.order, Some(&target.container), reason, message);
    }
}

async fn wait_until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}
