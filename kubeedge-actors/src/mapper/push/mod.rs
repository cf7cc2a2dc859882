//! What a mapper sends elsewhere, beside the twin: `pushMethod` of a Device's properties, over HTTP and MQTT.
//!
//! [`Pusher::device`] takes what a Device says, [`Pusher::reading`] what was read. The first reading of a property is
//! pushed at once, then the newest once in its `reportCycle`. One that could not be pushed waits for the next cycle, unless
//! a newer one takes its place: a receiver that is away costs one value a property. Every attempt is counted, as
//! [`Counts`] has it, and a receiver that fails is told of once, until it is well again.
//!
//! What is sent is what mappers of KubeEdge's framework send, so that receivers need not change:
//!
//! | | |
//! |---|---|
//! | HTTP | `POST http://<hostName>:<port><requestPath>`, a form: `<property>=<value>&time=<time>`; 2xx is success |
//! | MQTT | `time is <time>  <topic>: <value>` on the topic, with the QoS and the retain flag of the manifest |
//!
//! The time is that of the reading, as `2026-01-31 23:59:59` in UTC.
//!
//! Must run within a `LocalSet`, as actix has it.

mod http;
mod mqtt;
mod target;

use std::{
    cell::Cell,
    collections::BTreeMap,
    rc::{Rc, Weak},
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::{
    sync::{Semaphore, watch},
    time::MissedTickBehavior,
};
use tokio_util::task::AbortOnDropHandle;

use self::{mqtt::Broker, target::Target};
use super::{Device, DeviceId, report_cycle};

/// Longest value that is pushed, bytes.
pub const MAX_VALUE: usize = 64 * 1024;
/// Pushes under way at a time, over all properties.
const AT_A_TIME: usize = 64;

/// What became of readings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Pushed, and confirmed by whoever got it.
    pub pushed: u64,
    /// Attempts that failed.
    pub failed: u64,
    /// Values that are longer than [`MAX_VALUE`].
    pub too_long: u64,
}

/// A value, and when it was read.
#[derive(Clone, Debug)]
struct Read {
    value: String,
    at: SystemTime,
}

/// Where a property is pushed to.
struct Plan {
    target: Target,
    cycle: Duration,
    /// The newest reading.
    newest: watch::Sender<Option<Read>>,
    _pushing: AbortOnDropHandle<()>,
}

/// Pushes what is read of devices.
pub struct Pusher {
    plans: BTreeMap<DeviceId, BTreeMap<String, Plan>>,
    brokers: BTreeMap<String, Weak<Broker>>,
    counts: Rc<Cell<Counts>>,
    room: Arc<Semaphore>,
}

impl Default for Pusher {
    fn default() -> Self {
        let room = Arc::new(Semaphore::new(AT_A_TIME));
        Self { plans: BTreeMap::new(), brokers: BTreeMap::new(), counts: Rc::default(), room }
    }
}

impl Pusher {
    /// Takes what a device says, new or changed. A property with a method that cannot be used is left out, and told of.
    pub fn device(&mut self, device: &Device) {
        let mut before = self.plans.remove(&device.id).unwrap_or_default();
        let mut plans = BTreeMap::new();
        for property in &device.spec.properties {
            let Some(push) = &property.push_method else { continue };
            let target = match Target::read(push, &property.name) {
                Ok(Some(target)) => target,
                Ok(None) => continue,
                Err(wrong) => {
                    tracing::error!(device = %device.id, property = property.name, "readings are not pushed: {wrong}");
                    continue;
                }
            };
            let cycle = report_cycle(property);
            let plan = match before.remove(&property.name) {
                // What waits goes on waiting.
                Some(plan) if plan.target == target && plan.cycle == cycle => plan,
                _ => match self.plan(&device.id, &property.name, target, cycle) {
                    Ok(plan) => plan,
                    Err(wrong) => {
                        tracing::error!(device = %device.id, property = property.name, "readings are not pushed: {wrong}");
                        continue;
                    }
                },
            };
            plans.insert(property.name.clone(), plan);
        }
        if !plans.is_empty() {
            self.plans.insert(device.id.clone(), plans);
        }
    }

    /// The device is none of the mapper's any more.
    pub fn gone(&mut self, device: &DeviceId) {
        self.plans.remove(device);
    }

    /// What was read of a property just now. Nothing happens where the Device has no `pushMethod` for it.
    pub fn reading(&self, device: &DeviceId, property: &str, value: &str) {
        let Some(plan) = self.plans.get(device).and_then(|plans| plans.get(property)) else { return };
        if value.len() > MAX_VALUE {
            count(&self.counts, |counts| counts.too_long += 1);
            tracing::warn!(%device, property, limit = MAX_VALUE, "a value of {} bytes is not pushed", value.len());
            return;
        }
        plan.newest.send_replace(Some(Read { value: value.to_owned(), at: SystemTime::now() }));
    }

    /// What became of readings so far.
    pub fn counts(&self) -> Counts {
        self.counts.get()
    }

    fn plan(&mut self, device: &DeviceId, property: &str, target: Target, cycle: Duration) -> Result<Plan, String> {
        let broker = match &target {
            Target::Http(_) => None,
            Target::Mqtt(mqtt) => Some(self.broker(&mqtt.address)?),
        };
        let (newest, readings) = watch::channel(None);
        let pushing = Pushing {
            whose: format!("{device} {property}"),
            target: target.clone(),
            broker,
            counts: Rc::clone(&self.counts),
            room: Arc::clone(&self.room),
        };
        let pushing = AbortOnDropHandle::new(tokio::task::spawn_local(pushing.run(cycle, readings)));
        Ok(Plan { target, cycle, newest, _pushing: pushing })
    }

    /// One connection a broker, as long as somebody needs it.
    fn broker(&mut self, address: &str) -> Result<Rc<Broker>, String> {
        self.brokers.retain(|_, broker| broker.strong_count() > 0);
        if let Some(broker) = self.brokers.get(address).and_then(Weak::upgrade) {
            return Ok(broker);
        }
        let broker = Rc::new(Broker::connect(address)?);
        self.brokers.insert(address.to_owned(), Rc::downgrade(&broker));
        Ok(broker)
    }
}

fn count(counts: &Cell<Counts>, change: impl FnOnce(&mut Counts)) {
    let mut next = counts.get();
    change(&mut next);
    counts.set(next);
}

/// One property's pushes, one after the other.
struct Pushing {
    whose: String,
    target: Target,
    broker: Option<Rc<Broker>>,
    counts: Rc<Cell<Counts>>,
    room: Arc<Semaphore>,
}

impl Pushing {
    async fn run(self, cycle: Duration, mut readings: watch::Receiver<Option<Read>>) {
        let mut due = tokio::time::interval(cycle);
        due.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut failing = false;
        loop {
            // One that failed is still to be pushed.
            if !failing && readings.changed().await.is_err() {
                return;
            }
            due.tick().await;
            let Ok(_room) = self.room.acquire().await else { return };
            let Some(read) = readings.borrow_and_update().clone() else { continue };
            match self.push(&read).await {
                Ok(()) => {
                    count(&self.counts, |counts| counts.pushed += 1);
                    if std::mem::take(&mut failing) {
                        tracing::info!(whose = self.whose, "readings are pushed again");
                    }
                }
                Err(why) => {
                    count(&self.counts, |counts| counts.failed += 1);
                    if !std::mem::replace(&mut failing, true) {
                        tracing::warn!(whose = self.whose, again_in = ?cycle, "a reading is not pushed: {why}");
                    }
                }
            }
        }
    }

    async fn push(&self, read: &Read) -> Result<(), String> {
        match (&self.target, &self.broker) {
            (Target::Http(http), _) => http::push(http, read).await,
            (Target::Mqtt(mqtt), Some(broker)) => broker.push(mqtt, read).await,
            (Target::Mqtt(mqtt), None) => Err(format!("{} is not connected", mqtt.address)),
        }
    }
}
