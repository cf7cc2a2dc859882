//! What a pod's worker remembers between two decisions: back-offs, failures, and what the runtime has forgotten.
//!
//! Nothing here is needed for safety. Edgecore restarts with an empty history: then the first restart of a container
//! is immediate, as it is for kubelet.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};

use super::{
    failure::PodFailure,
    sizes::{PendingResize, Sizes},
};
use crate::edged::{
    probes::Checked,
    runtime::{Instance, InstanceState, ObservedPod},
};

/// First delay between the end of a container and its restart (kubelet's).
pub const CRASH_FIRST: Duration = Duration::from_secs(10);
/// Longest such delay (kubelet's).
pub const CRASH_MAX: Duration = Duration::from_secs(300);
/// A container that ran this long after its last restart begins again without delay (kubelet's: twice the longest).
pub const CRASH_RESET: Duration = Duration::from_secs(600);
/// First delay after a failed step (volumes, sandbox).
pub(crate) const RETRY_FIRST: Duration = Duration::from_secs(2);
/// Longest delay after a failed step.
pub(crate) const RETRY_MAX: Duration = Duration::from_secs(60);

/// Why a container waits, in Kubernetes' words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reason {
    /// `ErrImagePull`, and `ImagePullBackOff` while the next try waits.
    ImagePull,
    /// `ErrImageNeverPull`: not on the node and may not be fetched.
    ImageNeverPull,
    /// `InvalidImageName`.
    InvalidImageName,
    /// `CreateContainerConfigError`: a ConfigMap, Secret or key that it needs is missing.
    Config,
    /// `CreateContainerError`: the runtime would not make it.
    Create,
    /// `RunContainerError`: the runtime would not start it.
    Run,
    /// `PostStartHookError`: its hook failed, and it was ended.
    PostStartHook,
}

impl Reason {
    /// Kubernetes' word for it while the first try has failed.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ImagePull => "ErrImagePull",
            Self::ImageNeverPull => "ErrImageNeverPull",
            Self::InvalidImageName => "InvalidImageName",
            Self::Config => "CreateContainerConfigError",
            Self::Create => "CreateContainerError",
            Self::Run => "RunContainerError",
            Self::PostStartHook => "PostStartHookError",
        }
    }
}

/// A failure and when to try again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The image it was tried with.
    pub image: String,
    /// Kind of failure.
    pub reason: Reason,
    /// For a person.
    pub message: String,
    /// When it failed last.
    pub at: Timestamp,
    /// Not tried again before.
    pub until: Timestamp,
    delay: Duration,
}

impl Failure {
    /// Whether the last try was not the first one to fail like this.
    pub fn repeated(&self) -> bool {
        self.delay > CRASH_FIRST
    }
}

/// A step of the whole pod that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepFailure {
    /// For a person.
    pub message: String,
    /// Not tried again before.
    pub until: Timestamp,
    delay: Duration,
}

/// Steps of the whole pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Step {
    /// Setting up its volumes.
    Volumes,
    /// Making its sandbox.
    Sandbox,
    /// Giving containers that run other resources.
    Resize,
    /// Stopping or removing something.
    CleanUp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Crash {
    delay: Duration,
    restarted_at: Timestamp,
}

/// What is remembered of one container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ContainerHistory {
    image: String,
    crash: Option<Crash>,
    failure: Option<Failure>,
    /// The last instance that was seen to have ended; kept after the runtime has forgotten it.
    pub last_ended: Option<Instance>,
    /// Number of the next instance, so that numbers do not repeat.
    pub next_attempt: u32,
}

/// What is remembered of one pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct History {
    containers: BTreeMap<String, ContainerHistory>,
    steps: BTreeMap<Step, StepFailure>,
    /// Sandboxes that were stopped by us: their network is released.
    pub released: BTreeSet<String>,
    /// Instances that ended for their successor: they are followed by one whatever the restart policy.
    pub replaced: BTreeSet<String>,
    /// The pod has failed as a whole and runs no more.
    pub failed: Option<Arc<PodFailure>>,
    /// Instances whose hook before their end has run.
    pub hooked: BTreeSet<String>,
    /// What instances have that were given other resources since they were made.
    pub resized: BTreeMap<String, Sizes>,
    /// A change of resources that the node does not allow yet, or at all.
    pub pending_resize: Option<Arc<PendingResize>>,
    /// What probes say of instances that run.
    pub checks: BTreeMap<String, Checked>,
    /// When this node took up the pod.
    pub started_at: Option<Timestamp>,
    /// The pod's addresses, which a stopped sandbox no longer tells.
    pub ips: Vec<String>,
}

impl History {
    /// Takes note of what the runtime shows. `now` is the time of the observation.
    pub fn observe(&mut self, observed: &ObservedPod, now: Timestamp) {
        let oldest = observed.sandboxes.iter().map(|sandbox| sandbox.pod_start.unwrap_or(sandbox.created_at)).min();
        match (self.started_at, oldest) {
            (None, oldest) => self.started_at = Some(oldest.unwrap_or(now)),
            (Some(known), Some(oldest)) if oldest < known => self.started_at = Some(oldest),
            _ => {}
        }
        let newest = observed.sandboxes.iter().filter(|sandbox| sandbox.ready).max_by_key(|sandbox| sandbox.attempt);
        if let Some(sandbox) = newest
            && !sandbox.ips.is_empty()
        {
            self.ips.clone_from(&sandbox.ips);
        }
        self.released.retain(|id| observed.sandboxes.iter().any(|sandbox| sandbox.id == *id));
        let remembered = |id: &str| {
            let last = |known: &ContainerHistory| known.last_ended.as_ref().is_some_and(|last| last.id == id);
            observed.instances.iter().any(|instance| instance.id == id) || self.containers.values().any(last)
        };
        self.replaced.retain(|id| remembered(id));
        self.hooked.retain(|id| remembered(id));
        self.resized.retain(|id, _| remembered(id));
        for instance in &observed.instances {
            let known = self.containers.entry(instance.name.clone()).or_default();
            if instance.state != InstanceState::Created {
                known.next_attempt = known.next_attempt.max(instance.attempt.saturating_add(1));
            }
            let newer = known.last_ended.as_ref().is_none_or(|last| last.attempt <= instance.attempt);
            if instance.state == InstanceState::Exited && newer {
                known.last_ended = Some(instance.clone());
            }
        }
    }

    /// What is remembered of a container.
    pub fn container(&self, name: &str) -> Option<&ContainerHistory> {
        self.containers.get(name)
    }

    /// What an instance has of processor and memory, as far as it is known.
    pub fn sizes(&self, instance: &Instance) -> Option<Sizes> {
        self.resized.get(&instance.id).copied().or(instance.sizes)
    }

    /// What probes say of an instance.
    pub fn checked(&self, instance: &Instance) -> Checked {
        self.checks.get(&instance.id).copied().unwrap_or_default()
    }

    /// The failure of the last try to start a container with this image.
    pub fn failure(&self, name: &str, image: &str) -> Option<&Failure> {
        self.containers.get(name)?.failure.as_ref().filter(|failure| failure.image == image)
    }

    /// The failure of the last try of a step.
    pub fn step(&self, step: Step) -> Option<&StepFailure> {
        self.steps.get(&step)
    }

    /// Before when a container that ended at `ended_at` must not be restarted; `None` when it may at once.
    pub fn crash_until(&self, name: &str, image: &str, ended_at: Timestamp) -> Option<Timestamp> {
        let known = self.containers.get(name)?;
        if known.image != image {
            return None;
        }
        let crash = known.crash?;
        if ended_at.duration_since(crash.restarted_at) > signed(CRASH_RESET) {
            return None;
        }
        Some(later(ended_at, crash.delay))
    }

    /// A container was started again (or tried to be) whose last instance ended at `ended_at`.
    pub fn restarted(&mut self, name: &str, image: &str, ended_at: Option<Timestamp>, now: Timestamp) {
        let known = self.containers.entry(name.to_owned()).or_default();
        if known.image != image {
            known.image = image.to_owned();
            known.crash = None;
        }
        let Some(ended_at) = ended_at else { return };
        let delay = match known.crash {
            Some(crash) if ended_at.duration_since(crash.restarted_at) <= signed(CRASH_RESET) => {
                (crash.delay * 2).min(CRASH_MAX)
            }
            _ => CRASH_FIRST,
        };
        known.crash = Some(Crash { delay, restarted_at: now });
    }

    /// A container started: failures of the way there are over.
    pub fn start_succeeded(&mut self, name: &str) {
        self.containers.entry(name.to_owned()).or_default().failure = None;
    }

    /// A container could not be started.
    pub fn start_failed(&mut self, name: &str, image: &str, reason: Reason, message: String, now: Timestamp) {
        let known = self.containers.entry(name.to_owned()).or_default();
        let delay = match &known.failure {
            Some(last) if last.reason == reason && last.image == image => (last.delay * 2).min(CRASH_MAX),
            _ => CRASH_FIRST,
        };
        // What is missing may come any moment and looking for it is cheap; pulls and starts are not.
        let delay = if reason == Reason::Config { delay.min(CRASH_FIRST) } else { delay };
        let image = image.to_owned();
        known.failure = Some(Failure { image, reason, message, at: now, until: later(now, delay), delay });
    }

    /// Something that failed starts may have waited for has changed: try again at once.
    pub fn retry_now(&mut self) {
        for known in self.containers.values_mut() {
            known.failure = known.failure.take().filter(|failure| failure.reason != Reason::Config);
        }
        self.steps.remove(&Step::Volumes);
    }

    /// A step of the pod worked.
    pub fn step_succeeded(&mut self, step: Step) {
        self.steps.remove(&step);
    }

    /// A step of the pod failed.
    pub fn step_failed(&mut self, step: Step, message: String, now: Timestamp) {
        let delay = self.steps.get(&step).map_or(RETRY_FIRST, |last| (last.delay * 2).min(RETRY_MAX));
        self.steps.insert(step, StepFailure { message, until: later(now, delay), delay });
    }
}

/// `at` plus `delay`; the end of time when there is no such time.
pub fn later(at: Timestamp, delay: Duration) -> Timestamp {
    at.checked_add(signed(delay)).unwrap_or(Timestamp::MAX)
}

fn signed(delay: Duration) -> SignedDuration {
    SignedDuration::try_from(delay).unwrap_or(SignedDuration::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_000_000 + second).unwrap()
    }

    #[test]
    fn restarts_are_delayed_by_10_seconds_to_5_minutes_and_reset_after_10_minutes() {
        let mut history = History::default();
        history.restarted("c", "i", None, at(0));
        let mut now = 0;
        let mut delays = Vec::new();
        for _ in 0..8 {
            now += 1;
            let ended = at(now);
            let until = history.crash_until("c", "i", ended).unwrap_or(ended);
            let delay = until.duration_since(ended).as_secs();
            delays.push(delay);
            now += delay;
            history.restarted("c", "i", Some(ended), at(now));
        }
        assert_eq!(delays, [0, 10, 20, 40, 80, 160, 300, 300]);

        let after_a_long_run = at(now + 601);
        assert_eq!(history.crash_until("c", "i", after_a_long_run), None);
        history.restarted("c", "i", Some(after_a_long_run), at(now + 601));
        assert_eq!(history.crash_until("c", "i", at(now + 602)), Some(at(now + 612)));
    }

    #[test]
    fn another_image_begins_without_delay() {
        let mut history = History::default();
        history.restarted("c", "bad", Some(at(0)), at(0));
        assert!(history.crash_until("c", "bad", at(1)).is_some());
        assert_eq!(history.crash_until("c", "good", at(1)), None);
    }

    #[test]
    fn repeated_failures_wait_longer_each_time() {
        let mut history = History::default();
        for expected in [10, 20, 40, 80, 160, 300, 300] {
            history.start_failed("c", "i", Reason::ImagePull, "no".into(), at(0));
            assert_eq!(history.failure("c", "i").unwrap().until, at(expected));
        }
        history.start_failed("c", "i", Reason::Run, "no".into(), at(0));
        assert_eq!(history.failure("c", "i").unwrap().until, at(10));
    }
}
