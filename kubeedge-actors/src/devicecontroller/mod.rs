//! DeviceController: devices and their models go down to the nodes they hang on, what nodes tell of them goes up.
//!
//! | | |
//! |---|---|
//! | watches | Devices, DeviceModels and DeviceStatuses of all namespaces (`devices.kubeedge.io/v1beta1`) |
//! | answers | `QueryDevices`, `ApplyDeviceReport` (CloudHub) |
//! | listens | `NodeSessionChanged` (CloudHub); none may be lost |
//! | asks | `SendToNode`, `RecheckNodes` (CloudHub) |
//! | stores | nothing: everything is read again from the API server |
//! | without the definitions | nothing is sent and nothing deleted; they are looked for every half a minute |
//!
//! [`desired`] decides what a node should hold, [`status`] what a report becomes and whose it may be, [`pace`] when it is
//! written, [`statuses`] which DeviceStatuses have to be made, replaced or filled again; all are pure. Each Device has a
//! DeviceStatus of its name, which is made for it and goes with it. A report is settled when it is in the API server, or
//! when it has to come again (429).

pub mod desired;
pub mod pace;
pub mod status;
pub mod statuses;
mod upstream;

use std::{
    cell::RefCell,
    rc::Rc,
    time::{Duration, Instant, SystemTime},
};

use actix::{Actor, ActorFutureExt, AsyncContext, Handler, Message, MessageResult, ResponseFuture, WrapFuture};
use kubeedge_proto::{
    NodeName, resource,
    v1::{
        ApplyDeviceReport, Envelope, NodeSessionChanged, ObjectKey, QueryDevices, RecheckNodes, ReportDevice,
        ResourceType, SendToNode, Settled, envelope::Body,
    },
};
use serde_json::json;
use tokio_util::task::AbortOnDropHandle;

use self::{
    desired::{Desired, Effect, Key},
    pace::{Pace, Rates, Verdict},
    status::Written,
    statuses::{Place, Statuses, Task},
    upstream::Upstream,
};
use crate::{
    audit,
    controllers::{
        list_watch::{self, Change, Scope},
        sessions::Sessions,
    },
    system::{Component, Context, Contract, Overflow, Port, Ports, Stage},
};

/// How often what has passed is forgotten, and missing DeviceStatuses are looked for.
const TICK: Duration = Duration::from_secs(1);
/// DeviceStatuses that something is done about at once: a cluster's first start makes one for every device.
const AT_ONCE: usize = 50;

/// The component. See the module's page.
pub struct DeviceController {
    client: kube::Client,
    upstream: Upstream,
    desired: Desired,
    pace: Rc<RefCell<Pace>>,
    sessions: Sessions,
    to_node: Port<SendToNode>,
    recheck: Port<RecheckNodes>,
    watches: Vec<AbortOnDropHandle<()>>,
    /// Both lists were complete in this life.
    listed: bool,
    statuses: Statuses,
    started: Instant,
}

impl DeviceController {
    /// A controller of the cluster that `client` talks to.
    pub fn new(client: kube::Client, rates: Rates, ports: &Ports) -> Self {
        Self {
            upstream: Upstream::new(client.clone()),
            client,
            desired: Desired::default(),
            pace: Rc::new(RefCell::new(Pace::new(rates))),
            sessions: Sessions::default(),
            to_node: ports.port(),
            recheck: ports.port(),
            watches: Vec::new(),
            listed: false,
            statuses: Statuses::default(),
            started: Instant::now(),
        }
    }

    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    fn watch(&self, kind: Kind, ctx: &mut Context<Self>) -> AbortOnDropHandle<()> {
        let address = ctx.address();
        let client = self.client.clone();
        let scope = Scope { path: kind.type_().path("", None), fields: String::new(), page: None };
        AbortOnDropHandle::new(tokio::task::spawn_local(list_watch::run(client, scope, move |change| {
            // Waits for room and for the event to be handled. An error: this component was stopped or rebuilt.
            let sent = address.send(Watched { kind, change });
            async move { sent.await.is_ok() }
        })))
    }

    /// Messages to nodes leave in order, before the next event is taken.
    fn carry_out(&mut self, effects: Vec<Effect>, ctx: &mut Context<Self>) {
        let mut messages = Vec::new();
        let mut compare =
            self.desired.is_complete() && !std::mem::replace(&mut self.listed, self.desired.is_complete());
        for effect in effects {
            let (node, body) = match effect {
                Effect::Compare => {
                    compare = true;
                    continue;
                }
                Effect::Upsert(node, upsert) => (node, Body::ObjectUpsert(upsert)),
                Effect::Tombstone(node, gone) => (node, Body::ObjectTombstone(gone)),
            };
            let envelope = Envelope::new(Self::NAME, unix_ms(), body);
            messages.push(SendToNode { node, envelope: Some(envelope) });
        }
        if messages.is_empty() && !compare {
            return;
        }
        let (to_node, recheck) = (self.to_node.clone(), self.recheck.clone());
        ctx.wait(
            async move {
                for message in messages {
                    if let Err(error) = to_node.tell(message).await {
                        tracing::debug!("CloudHub is stopping: {error}");
                        return;
                    }
                }
                if compare && let Err(error) = recheck.tell(RecheckNodes {}).await {
                    tracing::debug!("CloudHub is stopping: {error}");
                }
            }
            .into_actor(self),
        );
    }

    /// Does what is due about DeviceStatuses, some at a time.
    fn tend_statuses(&mut self, ctx: &mut Context<Self>) {
        let (devices, sessions) = (self.desired.devices(), &self.sessions);
        for task in self.statuses.due(devices, |node| sessions.epoch(node), AT_ONCE) {
            match task {
                Task::Ask { key, uid, node } => self.ask_node(key, uid, node, ctx),
                Task::Make { key, uid } => self.tend(key, ctx, async move |upstream, name| {
                    // 409: it is there, and the watch is about to say so.
                    match upstream.create(&name, &uid, json!({"twins": []})).await {
                        Settled { code: 409, .. } => Settled::applied(),
                        settled => settled,
                    }
                }),
                Task::Adopt { key, uid, status } => {
                    self.tend(key, ctx, async move |upstream, name| upstream.adopt(&name, &uid, &status).await)
                }
                Task::Remove { key, status } => {
                    self.tend(key, ctx, async move |upstream, name| upstream.remove(&name, &status).await)
                }
            }
        }
    }

    fn tend(
        &self,
        key: Key,
        ctx: &mut Context<Self>,
        work: impl AsyncFnOnce(Upstream, ObjectKey) -> Settled + 'static,
    ) {
        let (upstream, name) = (self.upstream.clone(), ObjectKey::new(&key.0, &key.1));
        ctx.spawn(async move { work(upstream, name).await }.into_actor(self).map(move |settled, this, _| {
            this.statuses.done(&key);
            if settled.code != 0 {
                let (namespace, name) = (&key.0, &key.1);
                tracing::warn!(namespace, name, "its DeviceStatus is not as it should be: {}", settled.reason);
            }
        }));
    }

    /// Asks a node what it knows of a device. A node that does not answer is asked in its next session.
    fn ask_node(&self, (namespace, name): Key, uid: String, node: String, ctx: &mut Context<Self>) {
        tracing::info!(namespace, name, node, "its DeviceStatus says nothing: the node is asked");
        let body = Body::ReportDevice(ReportDevice { key: Some(ObjectKey { namespace, name }), uid });
        let message = SendToNode { node, envelope: Some(Envelope::new(Self::NAME, unix_ms(), body)) };
        let to_node = self.to_node.clone();
        ctx.spawn(async move { to_node.tell(message).await }.into_actor(self).map(|told, _, _| {
            if let Err(error) = told {
                tracing::debug!("CloudHub is stopping: {error}");
            }
        }));
    }
}

/// What is watched.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Devices,
    Models,
    Statuses,
}

impl Kind {
    fn type_(self) -> ResourceType {
        match self {
            Kind::Devices => resource::devices(),
            Kind::Models => resource::device_models(),
            Kind::Statuses => resource::device_statuses(),
        }
    }
}

/// A watch's news.
struct Watched {
    kind: Kind,
    change: Change,
}

impl Message for Watched {
    type Result = ();
}

impl Actor for DeviceController {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        self.watches = [Kind::Models, Kind::Devices, Kind::Statuses].map(|kind| self.watch(kind, ctx)).into();
        ctx.run_interval(TICK, |this, ctx| {
            let now = this.now();
            this.pace.borrow_mut().sweep(now);
            this.tend_statuses(ctx);
        });
    }
}

impl Component for DeviceController {
    const NAME: &'static str = "devicecontroller";
    /// It waits for room at CloudHub, which is to be found first if it is stuck.
    const HEARTBEAT: Duration = Duration::from_secs(120);
    const STAGE: Stage = Stage::Processor;

    fn contract(contract: &mut Contract<Self>) {
        contract.answers::<QueryDevices>();
        contract.answers::<ApplyDeviceReport>();
        contract.listens::<NodeSessionChanged>(Overflow::wait());
        contract.asks::<SendToNode>();
        contract.asks::<RecheckNodes>();
    }
}

impl Handler<Watched> for DeviceController {
    type Result = ();

    fn handle(&mut self, Watched { kind, change }: Watched, ctx: &mut Context<Self>) {
        // Written statuses come back here: they are many, and none is missing.
        let is_status = matches!((kind, &change), (Kind::Statuses, Change::Applied(_) | Change::Bookmark(_)));
        let effects = match (kind, change) {
            (Kind::Devices, Change::Replaced(devices, as_of)) => self.desired.devices_replaced(devices, as_of),
            (Kind::Devices, Change::Applied(device)) => self.desired.device_applied(device),
            (Kind::Devices, Change::Deleted(device)) => self.desired.device_deleted(&device),
            (Kind::Devices, Change::Bookmark(version)) => {
                self.desired.devices_bookmark(version);
                Vec::new()
            }
            (Kind::Models, Change::Replaced(models, as_of)) => self.desired.models_replaced(models, as_of),
            (Kind::Models, Change::Applied(model)) => self.desired.model_applied(model),
            (Kind::Models, Change::Deleted(model)) => self.desired.model_deleted(&model),
            (Kind::Models, Change::Bookmark(version)) => {
                self.desired.models_bookmark(version);
                Vec::new()
            }
            (Kind::Statuses, Change::Replaced(statuses, _)) => {
                self.statuses.replaced(&statuses);
                Vec::new()
            }
            (Kind::Statuses, Change::Applied(status)) => {
                self.statuses.applied(&status);
                Vec::new()
            }
            (Kind::Statuses, Change::Deleted(status)) => {
                self.statuses.deleted(&status);
                Vec::new()
            }
            (Kind::Statuses, Change::Bookmark(_)) => Vec::new(),
            // Nothing is listed in pages; without the right to list it, a kind stays unknown.
            (_, Change::Listing | Change::Page(..) | Change::Listed(_) | Change::Forbidden) => Vec::new(),
        };
        self.carry_out(effects, ctx);
        if !is_status {
            self.tend_statuses(ctx);
        }
    }
}

impl Handler<QueryDevices> for DeviceController {
    type Result = MessageResult<QueryDevices>;

    /// Nothing is said while the kinds have not been listed: a cluster without the definitions has no devices to compare.
    fn handle(&mut self, QueryDevices { node }: QueryDevices, _: &mut Context<Self>) -> Self::Result {
        if !self.desired.is_complete() {
            return MessageResult(Default::default());
        }
        MessageResult(self.desired.snapshot(&node))
    }
}

impl Handler<ApplyDeviceReport> for DeviceController {
    type Result = ResponseFuture<Settled>;

    fn handle(&mut self, message: ApplyDeviceReport, _: &mut Context<Self>) -> Self::Result {
        let ApplyDeviceReport { node, epoch, report } = message;
        let answer = |settled| -> Self::Result { Box::pin(std::future::ready(settled)) };
        let Ok(name) = node.parse::<NodeName>() else { return answer(Settled::rejected(400, "no name of a node")) };
        let Some(ended) = self.sessions.of(&node, epoch) else {
            return answer(Settled::rejected(503, "a newer session of this node has taken over"));
        };
        let Some(report) = report else { return answer(Settled::rejected(400, "the report is empty")) };
        if !self.desired.is_complete() {
            return answer(Settled::rejected(503, "the devices of the cluster are not known yet"));
        }
        let key = report.key.clone().unwrap_or_default();
        let key = (key.namespace, key.name);
        let object = match status::check(&node, &report, self.desired.device(&key)) {
            Ok(object) => object,
            Err(settled) => {
                if matches!(settled.code, 400 | 403 | 413) {
                    audit::refused("DeviceReport", &name, format!("{}/{}", key.0, key.1), &settled.reason);
                }
                return answer(settled);
            }
        };
        let there = match self.statuses.place(&key, &report.uid) {
            Place::Here(there) => Some(there),
            Place::Anywhere => None,
            Place::Taken => {
                let text = format!("the DeviceStatus {object} is of a device that was there before, and goes first");
                return answer(Settled::rejected(503, text));
            }
        };
        let Some(told) = self.desired.told(&key) else { return answer(Settled::rejected(404, "the device is gone")) };
        let written = Written::of(&report, told, there.as_ref());
        if written.is_empty {
            return answer(Settled::applied());
        }
        let upstream = self.upstream.clone();
        let mut turn = Turn { pace: Rc::clone(&self.pace), node, holds: false };
        let started = self.started;
        let write = async move {
            loop {
                let wait = match turn.ask(started.elapsed(), &key) {
                    Verdict::Now => break,
                    Verdict::At(wait) => {
                        tokio::time::sleep(wait).await;
                        break;
                    }
                    Verdict::Again(wait) => wait,
                    Verdict::Refused => {
                        let text = format!("statuses are written more slowly than they come: {object} has to wait");
                        return Settled::rejected(429, text);
                    }
                };
                tokio::time::sleep(wait).await;
            }
            upstream.write(&object, &report.uid, written, there.as_ref()).await
        };
        Box::pin(async move {
            tokio::select! {
                biased;
                () = ended.cancelled() => Settled::rejected(503, "the session has ended"),
                settled = write => settled,
            }
        })
    }
}

/// A place among those that wait; given back when it is dropped.
struct Turn {
    pace: Rc<RefCell<Pace>>,
    node: String,
    holds: bool,
}

impl Turn {
    fn ask(&mut self, now: Duration, device: &Key) -> Verdict {
        let verdict = self.pace.borrow_mut().ask(now, &self.node, device, self.holds);
        self.holds |= matches!(verdict, Verdict::At(_) | Verdict::Again(_));
        verdict
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if self.holds {
            self.pace.borrow_mut().released(&self.node);
        }
    }
}

impl Handler<NodeSessionChanged> for DeviceController {
    type Result = ();

    fn handle(&mut self, change: NodeSessionChanged, _: &mut Context<Self>) {
        self.sessions.changed(&change);
    }
}

fn unix_ms() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |now| now.as_millis() as u64)
}
