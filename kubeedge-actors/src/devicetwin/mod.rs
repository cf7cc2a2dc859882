//! DeviceTwin: what the devices of this node are, and what they are to be.
//!
//! | | |
//! |---|---|
//! | listens | `ObjectsChanged`, `ObjectsReloaded` (MetaManager); none may be lost |
//! | answers | `TwinMessage` (EventBus); `ReportDevice` (EdgeHub); mappers, over DMI on a unix socket ([`dmi`]) |
//! | asks | `ReadObjects`, `ReportStatus` (MetaManager), `PublishMqtt` (EventBus, if there) |
//! | stores | one record per device: its twins with their versions, its state, its attributes; one per mapper |
//! | offline | everything works; the newest of each device is reported when the link is back |
//!
//! [`twin`] and [`requests`] decide what a request does, [`mappers`] who is told what, [`reporter`] when the cloud is told,
//! [`report`] of what; all are pure. What is answered is on disk. Requests that come while one commit is under way share
//! the next. At most [`MAX_PENDING`] requests wait for a commit: then no more are taken, and whoever sends them waits.

mod commits;
pub mod dmi;
mod from_mappers;
pub mod mappers;
pub mod mistakes;
pub mod report;
pub mod reporter;
mod reporting;
pub mod requests;
pub mod topics;
pub mod twin;
pub mod wire;

use std::{
    collections::{BTreeMap, HashMap},
    path::PathBuf,
    rc::Rc,
    time::{Duration, Instant, SystemTime},
};

use actix::{Actor, ActorFutureExt, AsyncContext, Handler, SpawnHandle, WrapFuture};
use kubeedge_proto::{
    NodeName, resource,
    v1::{
        DeviceRecord, KubeObject, MapperRecord, ObjectsChanged, ObjectsReloaded, PropertyValue, PublishMqtt,
        ReadObjects, ReportDevice, ReportStatus, ResourceType, TwinMessage,
    },
};
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use self::{
    commits::Commits,
    dmi::{bucket::Rate, caller, server},
    mappers::{Id, Mappers, id_of},
    mistakes::Mistakes,
    reporter::Reporter,
    requests::{Publication, Reaction, Stamp},
    topics::Request,
    twin::{Device, Origin},
};
use crate::{
    store::{Store, Table},
    system::{Component, Context, Contract, Figure, Meter, Overflow, Port, Ports, Stage},
};

crate::message_records!(DeviceRecord, MapperRecord);

pub use self::commits::MAX_PENDING;

/// How long MetaManager may take: its disk decides.
const STORE_WITHIN: Duration = Duration::from_secs(30);
/// What is on disk is asked for again after this, when MetaManager does not answer.
const READ_AGAIN: Duration = Duration::from_secs(1);

/// What DeviceTwin is told when it is made.
#[derive(Clone)]
pub struct DeviceTwinConfig {
    /// This node.
    pub node: NodeName,
    /// The edge's store, which others use as well.
    pub store: Store,
    /// Where mappers call; `None`: nowhere.
    pub socket: Option<PathBuf>,
    /// How often each may.
    pub rate: Rate,
}

/// The component. See the module's page.
pub struct DeviceTwin {
    config: DeviceTwinConfig,
    twins: Table<DeviceRecord>,
    mapper_records: Table<MapperRecord>,
    devices: BTreeMap<Id, Device>,
    shared: Rc<caller::Shared>,
    mappers: Mappers,
    /// The caller of each protocol's mapper, with the registration it is for.
    callers: HashMap<String, (u64, AbortOnDropHandle<()>)>,
    /// What mappers report and what is not taken.
    mistakes: Mistakes,
    mistakes_meter: Meter,
    commits: Commits,
    reporter: Reporter,
    reporting: Option<SpawnHandle>,
    read: Port<ReadObjects>,
    report: Port<ReportStatus>,
    publish: Option<Port<PublishMqtt>>,
    /// Takes what is on disk and is to be said, once this runs; without an EventBus nobody listens.
    publisher: Option<mpsc::Sender<Vec<Publication>>>,
    serving: Option<AbortOnDropHandle<()>>,
    started: Instant,
}

const MISTAKES: Figure = Figure {
    name: "reported_values_left_out",
    help: "Values in mappers' reports that are not of their model and were left out",
    counter: true,
};

impl DeviceTwin {
    /// With what its tables hold.
    pub fn new(config: DeviceTwinConfig, ports: &Ports) -> Self {
        config.store.settle_blocking();
        let twins = config.store.table::<DeviceRecord>("twins");
        let mapper_records = config.store.table::<MapperRecord>("mappers");
        let mut devices = BTreeMap::new();
        for row in twins.scan_prefix(b"") {
            match row.map(|(_, record)| Device::of(record)) {
                Ok(Some(device)) => drop(devices.insert(id_of(&device.key), device)),
                Ok(None) => {}
                Err(error) => tracing::error!("a device's twins cannot be read and begin anew: {error}"),
            }
        }
        let mut mappers = Mappers::default();
        for row in mapper_records.scan_prefix(b"") {
            match row {
                Ok((_, record)) => drop(mappers.load(record)),
                Err(error) => tracing::error!("a mapper cannot be read: it is called when it registers: {error}"),
            }
        }
        Self {
            twins,
            mapper_records,
            devices,
            shared: Rc::default(),
            mappers,
            callers: HashMap::new(),
            mistakes: Mistakes::default(),
            mistakes_meter: ports.meter(MISTAKES),
            commits: Commits::default(),
            reporter: Reporter::default(),
            reporting: None,
            read: ports.port(),
            report: ports.port(),
            publish: ports.optional(),
            publisher: None,
            serving: None,
            started: Instant::now(),
            config,
        }
    }

    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    /// Calls the mapper of each protocol; one that has a caller for this registration keeps it.
    fn call_mappers(&mut self) {
        for mapper in self.mappers.called() {
            let known = self.callers.get(&mapper.protocol).map(|(registration, _)| *registration);
            if known != Some(mapper.registration) {
                let knows = caller::Knows::Perhaps(self.devices.keys().cloned().collect());
                let calling = caller::start(mapper.clone(), knows, Rc::clone(&self.shared));
                self.callers.insert(mapper.protocol.clone(), (mapper.registration, calling));
            }
        }
    }

    /// Reads what is on disk; what is not there any more ends.
    fn read_all(&self, ctx: &mut Context<Self>) {
        let read = self.read.clone();
        let list = |type_: ResourceType| ReadObjects { r#type: Some(type_), key: None };
        ctx.wait(
            async move {
                let models = read.ask(list(resource::device_models()), STORE_WITHIN).await?;
                let devices = read.ask(list(resource::devices()), STORE_WITHIN).await?;
                Ok((models, devices))
            }
            .into_actor(self)
            .map(|found: Result<_, crate::system::AskError>, this, ctx| match found {
                Ok((models, devices)) => {
                    let ids = |objects: &[KubeObject]| -> std::collections::HashSet<Id> {
                        objects.iter().filter_map(|object| object.key.as_ref().map(id_of)).collect()
                    };
                    let (model_ids, device_ids) = (ids(&models.objects), ids(&devices.objects));
                    models.objects.iter().for_each(|model| this.model_changed(model));
                    devices.objects.iter().for_each(|device| this.device_changed(device));
                    let gone: Vec<Id> = this.devices.keys().filter(|id| !device_ids.contains(*id)).cloned().collect();
                    // While the set is not known to be complete, nothing ends for its absence.
                    if devices.complete {
                        gone.iter().for_each(|id| this.device_gone(id));
                    }
                    if models.complete {
                        let mut catalogue = this.shared.catalogue.borrow_mut();
                        let gone: Vec<Id> = catalogue.models().filter(|id| !model_ids.contains(*id)).cloned().collect();
                        gone.iter().for_each(|id| catalogue.remove_model(id));
                    }
                    // What was changed in a life before may not have been reported.
                    let ids: Vec<Id> = this.devices.keys().cloned().collect();
                    ids.iter().for_each(|id| this.touch(id));
                    this.shared.notify();
                    this.commit(ctx);
                    this.report_due(ctx);
                }
                Err(error) => {
                    tracing::warn!(again_in = ?READ_AGAIN, "the devices on disk are not known yet: {error}");
                    ctx.run_later(READ_AGAIN, |this, ctx| this.read_all(ctx));
                }
            }),
        );
    }

    fn model_changed(&mut self, object: &KubeObject) {
        let changed = self.shared.catalogue.borrow_mut().set_model(object);
        match changed {
            Ok(id) => {
                // The types of its devices' twins come from it.
                let devices: Vec<Id> = {
                    let catalogue = self.shared.catalogue.borrow();
                    let of_model =
                        |device: &dmi::convert::Device| device.model().is_some_and(|model| id_of(&model) == id);
                    catalogue.devices().filter(|(_, device)| of_model(device)).map(|(id, _)| id.clone()).collect()
                };
                devices.iter().for_each(|id| self.desire(id));
            }
            Err(error) => tracing::error!("a DeviceModel cannot be understood and is left out: {error}"),
        }
    }

    fn device_changed(&mut self, object: &KubeObject) {
        let (id, key, uid, description) = match self.shared.catalogue.borrow_mut().set_device(object) {
            Ok(device) => (id_of(&device.key), device.key.clone(), device.uid.clone(), device.description.clone()),
            Err(error) => {
                tracing::error!("a Device cannot be understood and is left out: {error}");
                return;
            }
        };
        if self.devices.get(&id).is_none_or(|known| known.uid != uid) {
            self.devices.insert(id.clone(), Device::new(key, uid));
            self.commits.put(&id);
            let topic = topics::of_node(self.config.node.as_str(), "membership/updated");
            let listed = requests::listed(&id, &description, None);
            self.commits.publish([requests::membership(stamp(), topic, listed, true)], None);
            self.touch(&id);
        }
        self.desire(&id);
    }

    /// Takes over what the Device wants of its properties.
    fn desire(&mut self, id: &str) {
        self.mistakes.forget(id);
        let shared = Rc::clone(&self.shared);
        let catalogue = shared.catalogue.borrow();
        let (Some(wanted), Some(device)) = (catalogue.device(id), self.devices.get_mut(id)) else { return };
        let model = catalogue.model_of(wanted);
        let mut outcome = twin::Outcome::default();
        let stamp = stamp();
        for property in &wanted.spec.properties {
            let type_ = model.map_or("string", |model| model.twin_type(&property.name));
            let desired = property.desired.as_ref().map(|desired| PropertyValue {
                value: desired.value.clone(),
                metadata: desired.metadata.clone().into_iter().collect(),
            });
            let before = device.twins.get(&property.name).filter(|twin| twin.r#type != twin::DELETED).map(twin::shown);
            if device.desire(stamp.now_ms, &property.name, type_, desired.as_ref()) {
                outcome.document.extend(requests::changed(&property.name, before, device).document);
            }
        }
        if outcome.is_change() {
            let news = requests::news(stamp, id, &(stamp.fresh)(), device, &outcome);
            self.commits.put(id);
            self.commits.publish(news, None);
        }
    }

    fn device_gone(&mut self, id: &str) {
        self.shared.catalogue.borrow_mut().remove_device(id);
        self.reporter.forget(id);
        self.mistakes.forget(id);
        if self.devices.remove(id).is_some() {
            self.commits.put(id);
            let topic = topics::of_node(self.config.node.as_str(), "membership/updated");
            let gone = requests::listed(id, "", None);
            self.commits.publish([requests::membership(stamp(), topic, gone, false)], None);
        }
    }

    /// What a request did: to disk, and then told.
    fn react(&mut self, id: &str, reaction: Reaction, ctx: &mut Context<Self>) {
        if reaction.changed {
            self.commits.put(id);
            self.touch(id);
        }
        if reaction.conflict {
            self.tell_again(id);
        }
        self.commits.publish(reaction.publish, reaction.instead);
        self.commit(ctx);
    }
}

/// The wall clock, and random ids.
fn stamp() -> Stamp {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Stamp { now_ms: i64::try_from(now.as_millis()).unwrap_or(i64::MAX), fresh: || uuid::Uuid::new_v4().to_string() }
}

fn rfc3339() -> String {
    jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

impl Actor for DeviceTwin {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        self.publisher = self.publish.clone().map(commits::publisher);
        self.read_all(ctx);
        self.call_mappers();
        if let Some(socket) = self.config.socket.clone() {
            let serve = server::serve(socket, self.config.rate, ctx.address());
            self.serving = Some(AbortOnDropHandle::new(tokio::task::spawn_local(serve)));
        }
    }
}

impl Component for DeviceTwin {
    const NAME: &'static str = "devicetwin";
    const STAGE: Stage = Stage::Processor;

    fn contract(contract: &mut Contract<Self>) {
        contract.answers::<TwinMessage>();
        contract.answers::<ReportDevice>();
        contract.listens::<ObjectsChanged>(Overflow::wait());
        contract.listens::<ObjectsReloaded>(Overflow::wait());
        contract.asks::<ReadObjects>();
        contract.asks::<ReportStatus>();
        contract.may_ask::<PublishMqtt>();
    }
}

impl Handler<ObjectsReloaded> for DeviceTwin {
    type Result = ();

    fn handle(&mut self, _: ObjectsReloaded, ctx: &mut Context<Self>) {
        self.read_all(ctx);
    }
}

impl Handler<ObjectsChanged> for DeviceTwin {
    type Result = ();

    fn handle(&mut self, change: ObjectsChanged, ctx: &mut Context<Self>) {
        let (Some(type_), Some(key)) = (change.r#type, change.key) else { return };
        let id = id_of(&key);
        if type_ == resource::devices() {
            match &change.object {
                Some(object) => {
                    self.device_changed(object);
                    // What is reported may have changed.
                    self.touch(&id);
                }
                None => self.device_gone(&id),
            }
        } else if type_ == resource::device_models() {
            match &change.object {
                Some(object) => self.model_changed(object),
                None => self.shared.catalogue.borrow_mut().remove_model(&id),
            }
        } else {
            return;
        }
        self.shared.notify();
        self.commit(ctx);
        self.report_due(ctx);
    }
}

impl Handler<TwinMessage> for DeviceTwin {
    type Result = ();

    fn handle(&mut self, TwinMessage { topic, payload, oversize }: TwinMessage, ctx: &mut Context<Self>) {
        let Some(request) = Request::of(self.config.node.as_str(), &topic) else {
            tracing::debug!(topic, "no request of an application");
            return;
        };
        let stamp = stamp();
        if oversize > 0 {
            let reaction = requests::oversize(stamp, self.config.node.as_str(), &request, oversize);
            return self.react("", reaction, ctx);
        }
        match request {
            Request::UpdateTwin(id) => {
                let device = self.devices.get_mut(&id);
                let reaction = requests::update_twin(stamp, &id, device, &payload, Origin::Local);
                self.react(&id, reaction, ctx);
            }
            Request::CloudUpdated(id) => {
                let device = self.devices.get_mut(&id);
                let reaction = requests::update_twin(stamp, &id, device, &payload, Origin::Cloud);
                self.react(&id, reaction, ctx);
            }
            Request::GetTwin(id) => {
                let reaction = requests::get_twin(stamp, &id, self.devices.get(&id), &payload);
                self.react(&id, reaction, ctx);
            }
            Request::UpdateState(id) => {
                let device = self.devices.get_mut(&id);
                let reaction = requests::update_state(stamp, &rfc3339(), &id, device, &payload);
                self.react(&id, reaction, ctx);
            }
            Request::GetMembership => {
                let topic = topics::of_node(self.config.node.as_str(), "membership/get/result");
                let catalogue = self.shared.catalogue.borrow();
                let devices = catalogue
                    .devices()
                    .map(|(id, device)| requests::listed(id, &device.description, self.devices.get(id)))
                    .collect();
                drop(catalogue);
                let reaction = requests::get_membership(stamp, topic, devices, &payload);
                self.react("", reaction, ctx);
            }
            Request::Wrong { answer, wrong } => {
                self.react("", requests::refuse(stamp, answer, &payload, &wrong), ctx);
            }
        }
    }
}

#[cfg(test)]
mod tests;
