//! Registers the node with the cloud and reports its status: when something changed, at most every 10 s, and every
//! 5 minutes whatever happens. Works offline: reports wait with MetaManager, the newest one.

use std::{
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use backon::{BackoffBuilder, ExponentialBuilder};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, NodeCondition, NodeStatus};
use kubeedge_proto::{
    resource,
    v1::{
        CallCloud, Envelope, ObjectKey, RegisterNode, ReportStatus, StatusUpdate, call_reply::Result as Reply,
        envelope::Body, report_status::Report,
    },
};
use thiserror::Error;
use tokio::sync::watch;

use super::{
    devices::DeviceManager,
    events::{EventRecord, Involved, Reason},
    eviction::Pressure,
    node::{
        ImageFacts, NodeSettings, RuntimeFacts, differs, node_object, node_status,
        readings::{MachinePaths, MachineReadings, ReadingError},
        told,
    },
    quantity::Quantity,
    runtime::{Runtime, RuntimeError},
    worker::Reporter,
};
use crate::system::Port;

/// The kubelet's `nodeStatusUpdateFrequency`.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// The kubelet's `nodeStatusReportFrequency`.
const REPORT_EVERY: Duration = Duration::from_secs(300);
/// How long the cloud may take to register the node.
const REGISTER_WITHIN: Duration = Duration::from_secs(30);
/// How long MetaManager may take to keep a report.
const KEEP_WITHIN: Duration = Duration::from_secs(30);
/// Pauses between attempts to register.
const RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(30));

/// Why the node was not registered or its status not reported. All of them are tried again.
#[derive(Debug, Error)]
enum Fault {
    #[error(transparent)]
    Machine(#[from] ReadingError),
    #[error("the machine could not be read: {0}")]
    Task(#[from] tokio::task::JoinError),
    #[error("the node cannot be written as JSON: {0}")]
    Json(#[from] serde_json::Error),
    #[error("the cloud: {0}")]
    Cloud(String),
    #[error("MetaManager: {0}")]
    MetaManager(String),
}

/// When the runtime last answered: what "progress" means for the node's lease.
#[derive(Clone, Debug)]
pub struct Progress(Arc<Mutex<Instant>>);

impl Default for Progress {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(Instant::now())))
    }
}

impl Progress {
    /// Something went well just now.
    pub fn made(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// How long ago that was.
    pub fn age(&self) -> Duration {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).elapsed()
    }
}

/// Keeps the Node object in the cloud true.
pub struct Registrar {
    settings: NodeSettings,
    paths: MachinePaths,
    runtime: Arc<dyn Runtime>,
    addresses: Vec<IpAddr>,
    call: Port<CallCloud>,
    report: Port<ReportStatus>,
    progress: Progress,
    pressure: watch::Receiver<Pressure>,
    devices: Option<DeviceManager>,
    going_down: watch::Receiver<bool>,
    /// Whom changes of the node are told; nobody, otherwise.
    events: Option<Arc<dyn Reporter>>,
    uid: Option<String>,
    /// What was reported last, and when.
    reported: Option<(NodeStatus, tokio::time::Instant)>,
    /// The conditions that were told last.
    told: Vec<NodeCondition>,
    /// That the machine was started anew was told.
    told_reboot: bool,
}

impl Registrar {
    /// For the node that `settings` describe, on this machine, at these addresses (primary first).
    pub fn new(
        settings: NodeSettings,
        paths: MachinePaths,
        runtime: Arc<dyn Runtime>,
        addresses: Vec<IpAddr>,
        call: Port<CallCloud>,
        report: Port<ReportStatus>,
    ) -> Self {
        Self {
            settings,
            paths,
            runtime,
            addresses,
            call,
            report,
            progress: Progress::default(),
            pressure: watch::channel(Pressure::default()).1,
            devices: None,
            going_down: watch::channel(false).1,
            events: None,
            uid: None,
            reported: None,
            told: Vec::new(),
            told_reboot: false,
        }
    }

    /// Notes every answer of the runtime there.
    #[must_use]
    pub fn noting(self, progress: Progress) -> Self {
        Self { progress, ..self }
    }

    /// Reports what the node is short of from there.
    #[must_use]
    pub fn pressed(self, pressure: watch::Receiver<Pressure>) -> Self {
        Self { pressure, ..self }
    }

    /// Reports the node as not ready when the machine goes down.
    #[must_use]
    pub fn going_down(self, going_down: watch::Receiver<bool>) -> Self {
        Self { going_down, ..self }
    }

    /// Tells changes of the node there, as events about it.
    #[must_use]
    pub fn telling(self, events: Arc<dyn Reporter>) -> Self {
        Self { events: Some(events), ..self }
    }

    /// Reports the devices of plugins as extended resources.
    #[must_use]
    pub fn with_devices(self, devices: DeviceManager) -> Self {
        Self { devices: Some(devices), ..self }
    }

    /// Runs until `connected` is gone: registers at every connection, and reports.
    pub async fn run(mut self, mut connected: watch::Receiver<bool>) {
        self.tell(Reason::Starting, "Starting kubelet.".to_owned());
        let mut tick = tokio::time::interval(LOOK_EVERY);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                changed = connected.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    if *connected.borrow_and_update() {
                        self.register(&connected).await;
                        // What the cloud knows may be old: say everything.
                        self.reported = None;
                        self.look().await;
                    }
                }
                _ = tick.tick() => self.look().await,
                Ok(()) = self.going_down.changed() => self.look().await,
            }
        }
    }

    /// Registers, again and again while there is a connection.
    async fn register(&mut self, connected: &watch::Receiver<bool>) {
        let mut pauses = ExponentialBuilder::new()
            .with_min_delay(RETRY.0)
            .with_max_delay(RETRY.1)
            .without_max_times()
            .with_jitter()
            .build();
        while *connected.borrow() {
            match self.try_register().await {
                Ok(node) => {
                    let first = self.uid.is_none();
                    self.uid = node.metadata.uid;
                    if first {
                        tracing::info!(node = %self.settings.name, "the node is registered");
                    }
                    return;
                }
                Err(fault) => {
                    let pause = pauses.next().unwrap_or(RETRY.1);
                    tracing::warn!(node = %self.settings.name, again_in = ?pause, "the node is not registered: {fault}");
                    tokio::time::sleep(pause).await;
                }
            }
        }
    }

    async fn try_register(&mut self) -> Result<Node, Fault> {
        let readings = self.read().await?;
        let status = self.status(&readings).await;
        let node = node_object(&self.settings, status, &readings);
        let body = Body::RegisterNode(RegisterNode { node_json: serde_json::to_vec(&node)?.into() });
        let envelope = Envelope {
            timeout_ms: u32::try_from(REGISTER_WITHIN.as_millis()).unwrap_or(u32::MAX),
            ..Envelope::new("edged", unix_ms(), body)
        };
        let reply = self.call.ask(CallCloud { envelope: Some(envelope) }, REGISTER_WITHIN).await;
        match reply.map_err(|error| Fault::Cloud(error.to_string()))?.result {
            Some(Reply::Object(object)) => {
                let node: Node = serde_json::from_slice(&object.json)?;
                // What it says of the machine was reported by an earlier life of edgecore: this one's report follows.
                if told::is_rebooted(&node, &readings.boot_id) && !std::mem::replace(&mut self.told_reboot, true) {
                    let message =
                        format!("Node {} has been rebooted, boot id: {}", self.settings.name, readings.boot_id);
                    self.tell(Reason::Rebooted, message);
                }
                Ok(node)
            }
            Some(Reply::Error(error)) => Err(Fault::Cloud(format!("{} ({})", error.message, error.code))),
            _ => Err(Fault::Cloud("it answered something else than a Node".into())),
        }
    }

    /// Reports the status if it is due.
    async fn look(&mut self) {
        if let Err(fault) = self.try_look().await {
            tracing::warn!(node = %self.settings.name, "the node's status is not reported: {fault}");
        }
    }

    async fn try_look(&mut self) -> Result<(), Fault> {
        let readings = self.read().await?;
        let status = self.status(&readings).await;
        // Before the first registration nobody knows the node, nor its uid.
        let Some(uid) = self.uid.clone() else { return Ok(()) };
        let due = match &self.reported {
            Some((last, at)) => differs(last, &status) || at.elapsed() >= REPORT_EVERY,
            None => true,
        };
        if !due {
            return Ok(());
        }
        let update = StatusUpdate {
            r#type: Some(resource::nodes()),
            key: Some(ObjectKey::new("", self.settings.name.as_str())),
            uid,
            generation: 0,
            status_json: serde_json::to_vec(&status)?.into(),
        };
        let kept = self.report.ask(ReportStatus { report: Some(Report::Update(update)) }, KEEP_WITHIN).await;
        let kept = kept.map_err(|error| Fault::MetaManager(error.to_string()))?;
        if kept.code != 0 {
            return Err(Fault::MetaManager(kept.reason));
        }
        self.reported = Some((status, tokio::time::Instant::now()));
        Ok(())
    }

    async fn read(&self) -> Result<MachineReadings, Fault> {
        let paths = self.paths.clone();
        Ok(tokio::task::spawn_blocking(move || MachineReadings::read(&paths)).await??)
    }

    async fn status(&mut self, readings: &MachineReadings) -> NodeStatus {
        let mut runtime = self.runtime_facts().await;
        if *self.going_down.borrow() {
            runtime.not_ready.push("node is shutting down".to_owned());
        }
        let now = Timestamp::now();
        let pressure = *self.pressure.borrow();
        let last = self.reported.as_ref().map(|(status, _)| status);
        let mut status = node_status(&self.settings, readings, &self.addresses, &runtime, pressure, last, now);
        for (name, all, healthy) in self.devices.iter().flat_map(DeviceManager::amounts) {
            let amount = |count: usize| Quantity::units(i64::try_from(count).unwrap_or(i64::MAX)).to_api();
            status.capacity.get_or_insert_default().insert(name.clone(), amount(all));
            status.allocatable.get_or_insert_default().insert(name, amount(healthy));
        }
        let conditions = status.conditions.as_deref().unwrap_or_default();
        for reason in told::changes(&self.told, conditions) {
            let message = told::message(self.settings.name.as_str(), &reason);
            self.tell(reason, message);
        }
        self.told = conditions.to_vec();
        status
    }

    fn tell(&self, reason: Reason, message: String) {
        if let Some(events) = &self.events {
            let involved = Involved::node(self.settings.name.as_str());
            events.event(EventRecord::new(involved, reason, message, Timestamp::now()));
        }
    }

    async fn runtime_facts(&self) -> RuntimeFacts {
        let ask = async {
            let version = self.runtime.version().await?;
            let health = self.runtime.health().await?;
            let images = self.runtime.images().await?;
            Ok::<_, RuntimeError>((version, health, images))
        };
        match ask.await {
            Ok((version, health, images)) => {
                self.progress.made();
                let not_ready = [
                    health.runtime.map(|why| format!("container runtime not ready: {why}")),
                    health.network.map(|why| format!("container runtime network not ready: {why}")),
                ];
                RuntimeFacts {
                    version: format!("{}://{}", version.name, version.version),
                    not_ready: not_ready.into_iter().flatten().collect(),
                    images: images
                        .into_iter()
                        .map(|image| ImageFacts { names: image.names, size: image.size_bytes })
                        .collect(),
                }
            }
            Err(error) => RuntimeFacts { not_ready: vec![error.to_string()], ..RuntimeFacts::default() },
        }
    }
}

fn unix_ms() -> u64 {
    u64::try_from(Timestamp::now().as_millisecond()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use actix::{Actor, Handler, MessageResult};
    use kubeedge_proto::v1::{CallReply, KubeObject, Settled};
    use serde_json::json;
    // Its clock is the one that the test moves.
    use tokio::time::Instant;

    use super::*;
    use crate::{
        edged::fake::FakeRuntime,
        system::{Component, Context, Contract, Stage, System},
    };

    /// When the node's status was reported.
    type Reports = Arc<Mutex<Vec<Instant>>>;

    /// Takes the node's registration for the cloud, and its reports for MetaManager.
    struct Cloud(Reports);

    impl Actor for Cloud {
        type Context = Context<Self>;
    }

    impl Component for Cloud {
        const NAME: &'static str = "cloud";
        const STAGE: Stage = Stage::Link;
        fn contract(contract: &mut Contract<Self>) {
            contract.answers::<CallCloud>();
            contract.answers::<ReportStatus>();
        }
    }

    impl Handler<CallCloud> for Cloud {
        type Result = MessageResult<CallCloud>;
        fn handle(&mut self, _: CallCloud, _: &mut Context<Self>) -> Self::Result {
            let node = json!({"metadata": {"name": "edge-1", "uid": "u"}}).to_string();
            let object = KubeObject { json: node.into(), ..KubeObject::default() };
            MessageResult(CallReply { result: Some(Reply::Object(Box::new(object))) })
        }
    }

    impl Handler<ReportStatus> for Cloud {
        type Result = MessageResult<ReportStatus>;
        fn handle(&mut self, _: ReportStatus, _: &mut Context<Self>) -> Self::Result {
            self.0.lock().unwrap().push(Instant::now());
            MessageResult(Settled::applied())
        }
    }

    #[actix_rt::test]
    async fn a_status_is_reported_when_it_changed_at_most_every_10_s_and_every_5_minutes_whatever_happens() {
        tokio::time::pause();
        let reports = Reports::default();
        let cloud = Arc::clone(&reports);
        let builder = System::builder("edge").component(move |_| Cloud(Arc::clone(&cloud)));
        let system = builder.asks::<CallCloud>().asks::<ReportStatus>().start().unwrap();
        let runtime = FakeRuntime::new(Arc::new(Timestamp::now));
        let folder = tempfile::tempdir().unwrap();
        let paths = MachinePaths {
            root_dir: folder.path().to_owned(),
            image_dir: folder.path().to_owned(),
            ..MachinePaths::default()
        };
        let settings = NodeSettings::new("edge-1".parse().unwrap());
        let (connect, connected) = watch::channel(false);
        let registrar =
            Registrar::new(settings, paths, Arc::new(runtime.clone()), Vec::new(), system.port(), system.port());
        let running = actix_rt::spawn(registrar.run(connected));
        let count = || reports.lock().unwrap().len();
        let gaps = || -> Vec<Duration> { reports.lock().unwrap().windows(2).map(|two| two[1] - two[0]).collect() };

        // Nobody knows the node before it is registered.
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!(count(), 0);
        connect.send_replace(true);
        tokio::time::sleep(Duration::from_secs(100)).await;
        assert_eq!(count(), 1, "nothing has changed since");

        for second in 0..40 {
            runtime.add_image(&format!("app:{second}"));
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        // The clock's timers go by milliseconds.
        let near = Duration::from_millis(10);
        assert!((4..=6).contains(&count()), "{:?}", gaps());
        assert!(gaps()[1..].iter().all(|gap| gap.abs_diff(LOOK_EVERY) < near), "{:?}", gaps());

        tokio::time::sleep(LOOK_EVERY).await;
        let settled = count();
        tokio::time::sleep(REPORT_EVERY - 2 * LOOK_EVERY).await;
        assert_eq!(count(), settled, "nothing has changed since");
        tokio::time::sleep(3 * LOOK_EVERY).await;
        assert_eq!(count(), settled + 1);
        let last = *gaps().last().unwrap();
        assert!((REPORT_EVERY..REPORT_EVERY + LOOK_EVERY + near).contains(&last), "{last:?}");

        // It ends with the connection's owner.
        drop(connect);
        running.await.unwrap();
        system.stop(Duration::from_secs(5)).await;
    }
}
