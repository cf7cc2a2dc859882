//! The task that looks after one pod: looks, decides, acts, reports, and looks again.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures_util::future::BoxFuture;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use tokio::sync::{Notify, watch};

use super::{
    events::{EventRecord, Involved, Reason as Told},
    lifecycle::{
        Action, History, Input, PendingResize, PodFailure, PodPlan, Reason, Step, VolumeState, Wait, Want, decide,
        is_expired, later, newest,
    },
    provision::Provision,
    runtime::{InstanceState, ObservedPod, Runtime},
    status::{DEADLINE_MESSAGE, NodeFacts, pod_status},
};

mod prober;
mod steps;
mod stops;

use prober::{Prober, Target, Targets};

/// Without any news a pod is looked at this often: what a missed change could cost at most (kubelet's).
pub const RESYNC: Duration = Duration::from_secs(60);
/// Pause after a failed look at the runtime or a failed report.
const RETRY: Duration = Duration::from_secs(1);

/// After a restart of edgecore a pod's first status waits this long for what its readiness probes say: a pod that is
/// ready all the time should not be told to be unready in between.
const ADOPT_WITHIN: Duration = Duration::from_secs(3);

/// So often the same is done about the same things without a pause.
const MAX_IN_VAIN: u32 = 3;

/// What is wanted of a pod.
#[derive(Clone, Debug)]
pub struct Order {
    /// The pod; `None` when only the runtime knows of it.
    pub pod: Option<Arc<Pod>>,
    /// Its plan.
    pub plan: Arc<PodPlan>,
    /// What should become of it.
    pub want: Want,
    /// Whether its end is reported to the cloud.
    pub report_end: bool,
    /// It has failed as a whole.
    pub failed: Option<Arc<PodFailure>>,
    /// Its spec wants other resources, which it does not get now: `pod` and `plan` have those that it has.
    pub pending_resize: Option<Arc<PendingResize>>,
}

impl Order {
    /// Runs a pod, or ends it when its deletion was asked for.
    pub fn of(pod: Arc<Pod>, plan: Arc<PodPlan>) -> Self {
        let want = plan.deletion_grace_seconds.map_or(Want::Run, |grace_seconds| Want::End { grace_seconds });
        Self { pod: Some(pod), plan, want, report_end: true, failed: None, pending_resize: None }
    }

    /// Ends a pod whose object is gone.
    pub fn end(self) -> Self {
        let grace_seconds = self.plan.deletion_grace_seconds.unwrap_or(self.plan.grace_seconds);
        Self { want: Want::End { grace_seconds }, report_end: false, ..self }
    }

    /// The image that a container should run.
    fn image(&self, container: &str) -> Option<&str> {
        self.plan.containers.iter().find(|plan| plan.name == container).map(|plan| plan.image.as_str())
    }
}

/// What a worker reports.
#[derive(Clone, Debug)]
pub enum Report {
    /// The pod's status.
    Status(Box<PodStatus>),
    /// The pod has ended and left nothing; its last status.
    Terminated(Box<PodStatus>),
}

/// Takes reports. `Err` says why one was not taken for good; it is made again.
pub trait Reporter: Send + Sync {
    /// Takes a report about a pod.
    fn report<'a>(&'a self, plan: &'a PodPlan, report: Report) -> BoxFuture<'a, Result<(), String>>;

    /// Takes an event if there is a place for it. Returns at once.
    fn event(&self, _event: EventRecord) {}
}

/// What all workers share.
pub struct Shared {
    /// The container runtime.
    pub runtime: Arc<dyn Runtime>,
    /// Volumes and configurations.
    pub provision: Arc<dyn Provision>,
    /// Where status goes.
    pub reporter: Arc<dyn Reporter>,
    /// The clock.
    pub clock: Arc<dyn Fn() -> Timestamp + Send + Sync>,
    /// What a status says of the node.
    pub node: watch::Receiver<NodeFacts>,
    /// Pulls at the same time, over all pods.
    pub pulls: tokio::sync::Semaphore,
}

/// How a worker is told of changes.
#[derive(Default)]
pub struct Bell {
    news: Notify,
    refresh: AtomicBool,
    report: AtomicBool,
}

impl Bell {
    /// Something changed in the runtime: look.
    pub fn look(&self) {
        self.news.notify_one();
    }

    /// A ConfigMap or Secret that the pod names changed, or its tokens are due: refresh its volumes and look.
    pub fn refresh(&self) {
        self.refresh.store(true, Ordering::Release);
        self.news.notify_one();
    }

    /// The cloud may say something else of the pod by now: report its status, changed or not.
    pub fn report(&self) {
        self.report.store(true, Ordering::Release);
        self.news.notify_one();
    }
}

/// One pod's worker.
struct Worker {
    shared: Arc<Shared>,
    orders: watch::Receiver<Order>,
    bell: Arc<Bell>,
    history: History,
    volumes: VolumeState,
    /// The pod as its volumes have it: labels and annotations may be files in them.
    described: Option<Arc<Pod>>,
    status: Option<PodStatus>,
    reported: Option<serde_json::Value>,
    /// What was there and what was done about it the last time, and how often before that.
    last: Option<(ObservedPod, Vec<Action>)>,
    in_vain: u32,
    /// Until when containers wait, as far as that was told.
    waits: BTreeMap<String, Timestamp>,
    /// Only for a pod that has probes.
    prober: Option<Prober>,
    /// When this worker began: what ran before it is adopted.
    began: Timestamp,
    /// Whether the pod had been active for too long at the last look.
    expired: Option<bool>,
}

/// Looks after a pod until it has ended. Dropping the future leaves the pod as it is.
pub async fn run(shared: Arc<Shared>, orders: watch::Receiver<Order>, bell: Arc<Bell>) {
    let mut node = shared.node.clone();
    // Container ids begin with the runtime's name; while that is not known the runtime does not answer anyway.
    if node.wait_for(|facts| !facts.runtime_name.is_empty()).await.is_err() {
        tracing::debug!("the runtime's name will not be known any more");
    }
    let began = (shared.clock)();
    let worker = Worker {
        shared,
        orders,
        bell,
        history: History::default(),
        volumes: VolumeState::Unknown,
        described: None,
        status: None,
        reported: None,
        last: None,
        in_vain: 0,
        waits: BTreeMap::new(),
        prober: None,
        began,
        expired: None,
    };
    worker.run().await;
}

impl Worker {
    async fn run(mut self) {
        loop {
            let order = self.orders.borrow_and_update().clone();
            let next = self.round(&order).await;
            match next {
                Next::Ended => return,
                Next::Again => {}
                Next::Wait(until) => self.wait(until).await,
            }
        }
    }

    async fn wait(&mut self, until: Timestamp) {
        let pause = until.duration_since((self.shared.clock)());
        let pause = Duration::try_from(pause).unwrap_or_default().min(RESYNC);
        tokio::select! {
            () = self.bell.news.notified() => {}
            changed = self.orders.changed() => {
                if changed.is_err() {
                    // Nobody gives orders any more: the last one stands.
                    tokio::time::sleep(pause).await;
                }
            }
            () = tokio::time::sleep(pause) => {}
        }
    }

    async fn round(&mut self, order: &Order) -> Next {
        let plan = Arc::clone(&order.plan);
        self.refresh(order).await;
        let observed = match self.observe(order).await {
            Ok(observed) => observed,
            Err(error) => {
                tracing::warn!(pod = %show(&plan), "cannot look at the pod: {error}");
                return Next::Wait(later(self.now(), RETRY));
            }
        };
        let now = self.now();
        self.history.observe(&observed, now);
        self.history.failed.clone_from(&order.failed);
        self.history.pending_resize.clone_from(&order.pending_resize);
        let node = self.shared.node.borrow().clone();
        let adopting = self.probe(order, &observed);
        let input = Input {
            plan: &plan,
            want: order.want,
            observed: &observed,
            history: &self.history,
            volumes: self.volumes,
            now,
        };
        let decision = decide(&input);
        let status = pod_status(&input, &node, self.status.as_ref());
        self.status = Some(status.clone());

        // Told once, in the life of edgecore that ends the pod for it, whether anything of it ran or not.
        let expired = order.want == Want::Run && is_expired(&plan, &observed, &self.history, now);
        let stops = decision.actions.iter().any(|action| matches!(action, Action::StopContainer { .. }));
        if expired && !self.expired.unwrap_or(!stops) {
            self.tell(order, None, Told::DeadlineExceeded, DEADLINE_MESSAGE);
        }
        self.expired = Some(expired);
        if decision.actions.contains(&Action::Finish) {
            return self.finish(order, status).await;
        }
        self.tell_waits(order, &decision.waits);
        let mut wake_at = later(now, RESYNC);
        if let Some(at) = decision.wake_at {
            wake_at = wake_at.min(at);
        }
        let open_until = later(self.began, ADOPT_WITHIN);
        let news = if adopting && self.reported.is_none() && now < open_until {
            wake_at = wake_at.min(open_until);
            None
        } else {
            self.news(order, status)
        };
        let (reported, report) = news.unzip();
        let reporter = Arc::clone(&self.shared.reporter);
        let sending = async {
            match report {
                Some(report) => reporter.report(&plan, report).await,
                None => Ok(()),
            }
        };
        // What only begins something does not wait until the report is on a disk. What ends something does: after a
        // restart it has to be known why it ended.
        let beside = !decision.actions.is_empty() && decision.actions.iter().all(begins);
        let sent = if beside {
            futures_util::join!(sending, self.act(order, decision.actions.clone())).0
        } else {
            sending.await
        };
        match sent {
            Ok(()) => self.reported = reported.or(self.reported.take()),
            Err(error) => {
                tracing::warn!(pod = %show(&plan), "the status is not on its way yet: {error}");
                wake_at = wake_at.min(later(now, RETRY));
            }
        }
        if decision.actions.is_empty() {
            return Next::Wait(wake_at);
        }
        // A runtime that says "done" and does nothing is not asked more often than it is looked at anyway.
        let this = (observed, decision.actions);
        self.in_vain = if self.last.as_ref() == Some(&this) { self.in_vain.saturating_add(1) } else { 0 };
        if !beside {
            self.act(order, this.1.clone()).await;
        }
        self.last = Some(this);
        if self.in_vain < MAX_IN_VAIN { Next::Again } else { Next::Wait(later(self.now(), RETRY)) }
    }

    fn now(&self) -> Timestamp {
        (self.shared.clock)()
    }

    /// Has probed what runs and takes in what the probes say. True when something that was running before this worker
    /// began has not said yet whether it is ready.
    fn probe(&mut self, order: &Order, observed: &ObservedPod) -> bool {
        let plan = &order.plan;
        let instances: Vec<Target> = plan
            .containers
            .iter()
            .filter(|container| container.probes.iter().next().is_some())
            .filter_map(|container| {
                let running = newest(container, observed, &self.history)?;
                let started_at = running.started_at.filter(|_| running.state == InstanceState::Running)?;
                Some(Target {
                    id: running.id.clone(),
                    container: container.name.clone(),
                    probes: container.probes.clone(),
                    started_at,
                    adopted: started_at < self.began,
                })
            })
            .collect();
        if instances.is_empty() && self.prober.is_none() {
            return false;
        }
        let targets = Targets {
            order: order.clone(),
            address: self.address(order),
            instances: instances.clone(),
            ends: order.want != Want::Run,
        };
        match &self.prober {
            Some(prober) => prober.look_at(targets),
            None => self.prober = Some(Prober::start(Arc::clone(&self.shared), Arc::clone(&self.bell), targets)),
        }
        self.history.checks = self.prober.as_ref().map(Prober::said).unwrap_or_default();
        let checked = |target: &Target| self.history.checks.get(&target.id).copied().unwrap_or_default();
        instances.iter().any(|target| target.adopted && checked(target).is_open(&target.probes))
    }

    /// The pod's address; empty when it has none.
    fn address(&self, order: &Order) -> String {
        let node = self.shared.node.borrow();
        let ips = if order.plan.host_network { &node.host_ips } else { &self.history.ips };
        ips.first().cloned().unwrap_or_default()
    }

    /// Makes an event about the pod or one of its containers.
    fn tell(&self, order: &Order, container: Option<&str>, reason: Told, message: impl Into<String>) {
        tell(&self.shared, order, container, reason, message.into());
    }

    /// Makes an event of each wait that is new.
    fn tell_waits(&mut self, order: &Order, waits: &[Wait]) {
        for wait in waits {
            let (container, until, failure) = match wait {
                Wait::Crash { container, until } => (container, *until, None),
                Wait::Failed { container, until, reason } => (container, *until, Some(*reason)),
            };
            if self.waits.insert(container.clone(), until) == Some(until) {
                continue;
            }
            let PodPlan { namespace, name, uid, .. } = &*order.plan;
            let told = Some(container.as_str());
            match failure {
                None => {
                    let message =
                        format!("Back-off restarting failed container {container} in pod {name}_{namespace}({uid})");
                    self.tell(order, told, Told::BackOffRestart, message);
                }
                Some(Reason::ImagePull) => {
                    let image = order.image(container).unwrap_or_default();
                    self.tell(order, told, Told::BackOffPull, format!("Back-off pulling image \"{image}\""));
                    self.tell(order, told, Told::Failed, "Error: ImagePullBackOff");
                }
                Some(_) => {}
            }
        }
    }

    async fn refresh(&mut self, order: &Order) {
        let rung = self.bell.refresh.swap(false, Ordering::AcqRel);
        if rung {
            self.history.retry_now();
        }
        if !self.is_described_anew(order) && !rung {
            return;
        }
        if let (Some(pod), VolumeState::Ready, Want::Run) = (&order.pod, self.volumes, order.want)
            && let Err(error) = self.shared.provision.refresh(pod, &self.history.ips).await
        {
            tracing::warn!(pod = %show(&order.plan), "volumes are not up to date: {error}");
            self.tell(order, None, Told::FailedMount, error);
        }
    }

    /// Whether the pod has other labels or annotations than at the last look.
    fn is_described_anew(&mut self, order: &Order) -> bool {
        let before = std::mem::replace(&mut self.described, order.pod.clone());
        before.zip(order.pod.as_ref()).is_some_and(|(before, now)| {
            before.metadata.labels != now.metadata.labels || before.metadata.annotations != now.metadata.annotations
        })
    }

    async fn observe(&self, order: &Order) -> Result<ObservedPod, super::runtime::RuntimeError> {
        let mut observed = self.shared.runtime.observe(&order.plan.uid).await?;
        let Some(pod) = &order.pod else { return Ok(observed) };
        for instance in &mut observed.instances {
            if instance.state == InstanceState::Exited && instance.message.is_empty() {
                match self.shared.provision.last_words(pod, &order.plan, instance).await {
                    Ok(words) => instance.message = words,
                    Err(error) => {
                        tracing::debug!(pod = %show(&order.plan), container = instance.name, "no last words: {error}");
                    }
                }
            }
        }
        Ok(observed)
    }

    /// The report of a status that differs from the last one, and what is kept of it to compare the next one with. A pod
    /// without an object has nobody to report to.
    fn news(&mut self, order: &Order, status: PodStatus) -> Option<(serde_json::Value, Report)> {
        order.pod.as_ref()?;
        let value = match serde_json::to_value(&status) {
            Ok(value) => value,
            Err(error) => {
                tracing::error!(pod = %show(&order.plan), "the status cannot be written as JSON: {error}");
                return None;
            }
        };
        if self.bell.report.swap(false, Ordering::AcqRel) {
            self.reported = None;
        }
        (self.reported.as_ref() != Some(&value)).then(|| (value, Report::Status(Box::new(status))))
    }

    async fn finish(&mut self, order: &Order, status: PodStatus) -> Next {
        if order.report_end && order.pod.is_some() {
            let report = Report::Terminated(Box::new(status));
            if let Err(error) = self.shared.reporter.report(&order.plan, report).await {
                tracing::warn!(pod = %show(&order.plan), "the pod's end is not on its way yet: {error}");
                return Next::Wait(later(self.now(), RETRY));
            }
        }
        tracing::info!(pod = %show(&order.plan), uid = order.plan.uid, "pod has ended");
        Next::Ended
    }

    /// Whether a part of the pod is away; a pod that cannot end says so.
    fn cleaned_up(&mut self, order: &Order, result: Result<(), String>) -> bool {
        if let Err(error) = &result {
            self.tell(order, None, Told::FailedKillPod, format!("error killing pod: {error}"));
        }
        self.step_done(&order.plan, Step::CleanUp, result)
    }

    fn step_done(&mut self, plan: &PodPlan, step: Step, result: Result<(), String>) -> bool {
        match result {
            Ok(()) => {
                self.history.step_succeeded(step);
                true
            }
            Err(error) => {
                tracing::warn!(pod = %show(plan), ?step, "{error}");
                let now = self.now();
                self.history.step_failed(step, error, now);
                false
            }
        }
    }
}

/// Makes an event about the pod or one of its containers.
fn tell(shared: &Shared, order: &Order, container: Option<&str>, reason: Told, message: String) {
    let involved = Involved::of(&order.plan, order.pod.as_deref(), container);
    shared.reporter.event(EventRecord::new(involved, reason, message, (shared.clock)()));
}

/// Whether an action only begins something.
fn begins(action: &Action) -> bool {
    matches!(action, Action::SetUpVolumes | Action::RunSandbox { .. } | Action::Start { .. })
}

enum Next {
    /// Look again at once.
    Again,
    /// Look again when something changes, at this time at the latest.
    Wait(Timestamp),
    /// The pod has ended.
    Ended,
}

fn show(plan: &PodPlan) -> String {
    format!("{}/{}", plan.namespace, plan.name)
}

#[cfg(test)]
mod tests;
