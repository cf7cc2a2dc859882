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
//! written; all are pure. Each Device has a DeviceStatus of its name, which is made for it and goes with it. A report is
//! settled when it is in the API server, or when it has to come again (429).

pub mod desired;
pub mod pace;
pub mod status;
mod upstream;

use std::{
    cell::RefCell,
    collections::HashMap,
    rc::Rc,
    time::{Duration, Instant, SystemTime},
};

use actix::{Actor, ActorFutureExt, AsyncContext, Handler, Message, MessageResult, ResponseFuture, WrapFuture};
use kubeedge_proto::{
    NodeName, resource,
    v1::{
        ApplyDeviceReport, Envelope, NodeSessionChanged, ObjectKey, QueryDevices, RecheckNodes, ResourceType,
        SendToNode, Settled, envelope::Body,
    },
};
use serde_json::json;
use tokio_util::task::AbortOnDropHandle;

use self::{
    desired::{Desired, Effect, Key},
    pace::{Pace, Rates, Verdict},
    upstream::Upstream,
};
use crate::{
    audit,
    controllers::{
        list_watch::{self, Change, Scope},
        objects::{key_of, text},
        sessions::Sessions,
    },
    system::{Component, Context, Contract, Overflow, Port, Ports, Stage},
};

/// How often what has passed is forgotten, and missing DeviceStatuses are looked for.
const TICK: Duration = Duration::from_secs(1);
/// DeviceStatuses made in one tick: a cluster's first start makes one for every device.
const MADE_AT_ONCE: usize = 50;

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
    /// The DeviceStatuses there are, with the uid of the Device each belongs to; `None` before the first list.
    statuses: Option<HashMap<Key, String>>,
    /// Being made.
    making: std::collections::HashSet<Key>,
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
            statuses: None,
            making: std::collections::HashSet::new(),
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

    /// Makes the DeviceStatuses that are not there, some at a time.
    fn make_statuses(&mut self, ctx: &mut Context<Self>) {
        let Some(statuses) = &self.statuses else { return };
        let missing: Vec<(Key, String)> = self
            .desired
            .devices()
            .filter(|(key, _)| !statuses.contains_key(*key) && !self.making.contains(*key))
            .take(MADE_AT_ONCE)
            .map(|(key, uid)| (key.clone(), uid.to_owned()))
            .collect();
        for (key, uid) in missing {
            self.making.insert(key.clone());
            let upstream = self.upstream.clone();
            let name = ObjectKey::new(&key.0, &key.1);
            let made = async move { upstream.create(&name, &uid, json!({"twins": []})).await };
            ctx.spawn(made.into_actor(self).map(move |settled, this, _| {
                this.making.remove(&key);
                // 409: it is there, and the watch is about to say so.
                if settled.code != 0 && settled.code != 409 {
                    tracing::warn!(namespace = key.0, name = key.1, "its DeviceStatus is not made: {}", settled.reason);
                }
            }));
        }
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
            this.make_statuses(ctx);
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
                let owned = statuses.iter().map(|status| (key_of(status), owner_of(status))).collect();
                self.statuses = Some(owned);
                Vec::new()
            }
            (Kind::Statuses, Change::Applied(status)) => {
                let (key, owner) = (key_of(&status), owner_of(&status));
                self.statuses.get_or_insert_default().insert(key, owner);
                Vec::new()
            }
            (Kind::Statuses, Change::Deleted(status)) => {
                self.statuses.get_or_insert_default().remove(&key_of(&status));
                Vec::new()
            }
            (Kind::Statuses, Change::Bookmark(_)) => Vec::new(),
            // Nothing is listed in pages; without the right to list it, a kind stays unknown.
            (_, Change::Listing | Change::Page(..) | Change::Listed(_) | Change::Forbidden) => Vec::new(),
        };
        self.carry_out(effects, ctx);
        if !is_status {
            self.make_statuses(ctx);
        }
    }
}

/// The uid of the Device that a DeviceStatus belongs to; empty when it belongs to none.
fn owner_of(status: &serde_json::Value) -> String {
    text(status, "/metadata/ownerReferences/0/uid").to_owned()
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
        let upstream = self.upstream.clone();
        let status = status::status_of(&report);
        let mut place = Place { pace: Rc::clone(&self.pace), node, holds: false };
        let started = self.started;
        let write = async move {
            loop {
                let wait = match place.ask(started.elapsed(), &key) {
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
            upstream.write(&object, &report.uid, status).await
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
struct Place {
    pace: Rc<RefCell<Pace>>,
    node: String,
    holds: bool,
}

impl Place {
    fn ask(&mut self, now: Duration, device: &Key) -> Verdict {
        let verdict = self.pace.borrow_mut().ask(now, &self.node, device, self.holds);
        self.holds |= matches!(verdict, Verdict::At(_) | Verdict::Again(_));
        verdict
    }
}

impl Drop for Place {
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
