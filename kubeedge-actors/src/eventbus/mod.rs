//! EventBus: MQTT at the edge.
//!
//! | | |
//! |---|---|
//! | answers | `PublishMqtt`, `SubscribeMqtt`, `UnsubscribeMqtt` (anyone at the edge), `EventReceived` (EdgeHub): what a rule of the cloud publishes here |
//! | listens | `ObjectsChanged`, `ObjectsReloaded` (MetaManager, if there): the cloud's rules; none may be lost |
//! | asks | `TwinMessage` (DeviceTwin, if there), `PublishEvent` (EdgeHub, if there), `ReadObjects` (MetaManager, if there) |
//! | announces | `MqttReceived`: what was subscribed to; `MqttStateChanged` |
//! | stores | nothing; a broker keeps the session |
//! | offline | everything between this node's own applications works |
//!
//! [`client`] is one broker's client, `door` and `address` the way by which paho gets to it, `tls` that to a broker on TLS, [`broker`] a broker of our own where there is no
//! other, [`filters`] the rules of topics, [`rules`] which topics the cloud's rules want. What is published on one of these
//! goes into EdgeHub's outbox, once for each rule; what a broker had kept and tells a new subscriber does not, for it would
//! come again with each connection. Without a connection a publication is refused with 503, and counted. Who takes messages more slowly than they
//! come slows the broker down, and after five seconds loses some: both are counted. What nobody has subscribed to any more
//! is heard by nobody, whatever session a broker has kept.

mod address;
#[cfg(feature = "embedded-broker")]
pub mod broker;
pub mod client;
mod door;
pub mod filters;
pub mod rules;
mod sender;
#[cfg(feature = "eventbus-tls")]
pub mod tls;

use std::{
    cell::RefCell,
    collections::BTreeSet,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use actix::{
    Actor, ActorFutureExt, AsyncContext, Handler, MessageResult, ResponseActFuture, ResponseFuture, WrapFuture,
};
use futures_util::{StreamExt as _, future::poll_immediate, stream::FuturesOrdered};
use kubeedge_proto::{
    resource,
    v1::{
        Envelope, EventReceived, KubeObject, MqttReceived, MqttStateChanged, ObjectKey, ObjectsChanged,
        ObjectsReloaded, PublishEvent, PublishMqtt, ReadObjects, Settled, SubscribeMqtt, TwinMessage, UnsubscribeMqtt,
        UserMessage, envelope::Body,
    },
};
use tokio::sync::{mpsc, watch};
use tokio_util::task::AbortOnDropHandle;

use self::{
    client::{Broker, Client, Incoming, MAX_PAYLOAD, QUEUE, State, UNSENT},
    filters::{OF_DEVICES, Wanted, is_of_devices, is_topic, matches},
    rules::{Change, Rules},
};
use crate::system::{Component, Context, Contract, Figure, Meter, Overflow, Port, Ports, Stage, Topic};

/// How long a broker may take to confirm a publication.
const CONFIRMED_WITHIN: Duration = Duration::from_secs(30);
/// How long the disk may take, EdgeHub's for an event, MetaManager's for the rules.
const STORED_WITHIN: Duration = Duration::from_secs(30);
/// Messages for the cloud that wait for that disk at a time; who publishes more waits.
const STORING: usize = 64;
/// Pause before MetaManager is asked again.
const READ_AGAIN: Duration = Duration::from_secs(2);

/// Which brokers, and what for.
#[derive(Clone, Debug, Default)]
pub struct EventBusConfig {
    /// All are used: what comes from one of them is taken, what is published goes to each.
    pub brokers: Vec<Broker>,
}

/// The component. See the module's page.
pub struct EventBus {
    config: EventBusConfig,
    clients: Vec<Rc<Client>>,
    wanted: Wanted,
    /// What `wanted` is, for the clients.
    filters: watch::Sender<BTreeSet<String>>,
    running: Vec<AbortOnDropHandle<()>>,
    twin: Option<Port<TwinMessage>>,
    to_cloud: Option<Port<PublishEvent>>,
    read: Option<Port<ReadObjects>>,
    rules: Rc<RefCell<Rules>>,
    received: Topic<MqttReceived>,
    changed: Topic<MqttStateChanged>,
    /// Not published, for want of a connection or of room.
    refused: u64,
    refused_meter: Meter,
    /// Dropped on the way in.
    dropped: Arc<AtomicU64>,
    dropped_meter: Meter,
}

const REFUSED: Figure = Figure {
    name: "publications_refused",
    help: "MQTT messages that were not published, for want of a connection or of room",
    counter: true,
};
const DROPPED: Figure = Figure {
    name: "messages_dropped",
    help: "MQTT messages that came in and were dropped: nobody took them in time",
    counter: true,
};

impl EventBus {
    /// A bus on these brokers.
    pub fn new(config: EventBusConfig, ports: &Ports) -> Self {
        let (filters, _) = watch::channel(BTreeSet::new());
        Self {
            config,
            clients: Vec::new(),
            wanted: Wanted::default(),
            filters,
            running: Vec::new(),
            twin: ports.optional(),
            to_cloud: ports.optional(),
            read: ports.optional(),
            rules: Rc::default(),
            received: ports.topic(),
            changed: ports.topic(),
            refused: 0,
            refused_meter: ports.meter(REFUSED),
            dropped: Arc::default(),
            dropped_meter: ports.meter(DROPPED),
        }
    }

    fn tell_filters(&self) {
        let filters: BTreeSet<String> = self.wanted.filters().cloned().collect();
        self.filters.send_if_modified(|known| {
            let changed = *known != filters;
            *known = filters;
            changed
        });
    }

    /// Reads the rules on disk; what is not there any more ends.
    fn read_rules(&self, ctx: &mut Context<Self>) {
        let Some(read) = self.read.clone() else { return };
        let message = ReadObjects { r#type: Some(resource::rules()), key: None };
        ctx.wait(async move { read.ask(message, STORED_WITHIN).await }.into_actor(self).map(|found, this, ctx| {
            match found {
                Ok(list) => {
                    let known: Vec<ObjectKey> = this.rules.borrow().keys().collect();
                    let listed: Vec<&ObjectKey> = list.objects.iter().filter_map(|rule| rule.key.as_ref()).collect();
                    for key in known.iter().filter(|key| list.complete && !listed.contains(key)) {
                        let change = this.rules.borrow_mut().unset(key);
                        this.follow(change);
                    }
                    list.objects.iter().for_each(|rule| this.rule_changed(rule));
                }
                Err(error) => {
                    tracing::warn!(again_in = ?READ_AGAIN, "the rules on disk are not known yet: {error}");
                    ctx.run_later(READ_AGAIN, |this, ctx| this.read_rules(ctx));
                }
            }
        }));
    }

    fn rule_changed(&mut self, rule: &KubeObject) {
        let (change, understood) = self.rules.borrow_mut().set(rule);
        if let Err(error) = understood {
            tracing::warn!(rule = ?rule.key, "a rule cannot be understood and is left out: {error}");
        }
        self.follow(change);
    }

    fn follow(&mut self, Change { begins, ends }: Change) {
        if let Some(ends) = ends {
            self.wanted.remove(&ends);
        }
        if let Some(begins) = begins
            && let Err(error) = self.wanted.add(&begins)
        {
            tracing::error!(topic = begins, "a rule of the cloud has no effect here: {error}");
        }
        self.tell_filters();
    }

    fn publish(&mut self, message: PublishMqtt) -> ResponseFuture<Settled> {
        let PublishMqtt { topic, payload, qos, retain } = message;
        let qos = match qos.map(u8::try_from) {
            None => None,
            Some(Ok(qos @ 0..=2)) => Some(qos),
            Some(_) => return answer(self.refuse(400, "QoS is 0, 1 or 2".to_owned())),
        };
        if !is_topic(&topic) {
            return answer(self.refuse(400, format!("{topic:?} is no topic")));
        }
        if payload.len() > MAX_PAYLOAD {
            let text = format!("{} bytes on {topic}, expected at most {MAX_PAYLOAD}", payload.len());
            return answer(self.refuse(413, text));
        }
        let sent: Vec<_> =
            self.clients.iter().filter_map(|client| client.publish(&topic, &payload, qos, retain)).collect();
        if sent.is_empty() {
            return answer(self.refuse(503, "no broker is connected".to_owned()));
        }
        let mut deliveries = Vec::new();
        for sent in sent {
            match sent {
                Ok(delivery) => deliveries.push(delivery),
                Err(error) => return answer(self.refuse(429, format!("{topic} is not published: {error}"))),
            }
        }
        Box::pin(async move {
            for delivery in deliveries {
                match tokio::time::timeout(CONFIRMED_WITHIN, delivery.confirmed()).await {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => return Settled::rejected(503, format!("the broker did not take it: {error}")),
                    Err(_) => return Settled::rejected(504, "the broker did not confirm it".to_owned()),
                }
            }
            Settled::applied()
        })
    }

    fn refuse(&mut self, code: u32, reason: String) -> Settled {
        self.refused += 1;
        self.refused_meter.set(self.refused);
        Settled::rejected(code, reason)
    }
}

/// Takes what comes in to whoever wants it, one after the other.
struct Inward {
    twin: Option<Port<TwinMessage>>,
    to_cloud: Option<Port<PublishEvent>>,
    rules: Rc<RefCell<Rules>>,
    received: Topic<MqttReceived>,
    /// What is subscribed to.
    filters: watch::Receiver<BTreeSet<String>>,
}

impl Inward {
    async fn run(self, mut incoming: mpsc::Receiver<Incoming>) {
        // On their way to EdgeHub's disk, in order: it commits many at once.
        let mut storing = FuturesOrdered::new();
        loop {
            let next = tokio::select! {
                Some(()) = storing.next(), if !storing.is_empty() => continue,
                next = incoming.recv(), if storing.len() < STORING => next,
            };
            let Some(Incoming { topic, payload, oversize, retained }) = next else { break };
            if is_of_devices(&topic) {
                if let Some(twin) = &self.twin
                    && twin.tell(TwinMessage { topic, payload, oversize }).await.is_err()
                {
                    tracing::debug!("DeviceTwin is stopping");
                }
                continue;
            }
            // A broker that has kept a session still sends what an earlier life had subscribed to, and what is on its way
            // when a subscription ends.
            if !self.filters.borrow().iter().any(|filter| matches(filter, &topic)) {
                tracing::debug!(topic, "nobody has subscribed to it");
                continue;
            }
            if oversize > 0 {
                tracing::warn!(topic, oversize, limit = MAX_PAYLOAD, "a message is dropped: it is too large");
                continue;
            }
            if !retained {
                for stored in self.to_cloud(&topic, &payload) {
                    storing.push_back(stored);
                }
                // Begun now: they are in EdgeHub's queue in this order.
                let _ = poll_immediate(storing.next()).await;
            }
            self.received.announce(MqttReceived { topic, payload, retained }).await;
        }
    }
}

impl Inward {
    /// Puts a message into the outbox for the cloud, once for each rule that wants it.
    fn to_cloud(&self, topic: &str, payload: &bytes::Bytes) -> impl Iterator<Item = impl Future<Output = ()> + use<>> {
        let port = self.to_cloud.clone();
        let (topic, payload) = (topic.to_owned(), payload.clone());
        let rules = if port.is_some() { self.rules.borrow().of(&topic) } else { Vec::new() };
        rules.into_iter().map(move |rule| store(port.clone(), topic.clone(), payload.clone(), rule))
    }
}

async fn store(port: Option<Port<PublishEvent>>, topic: String, payload: bytes::Bytes, rule: ObjectKey) {
    let Some(port) = port else { return };
    let message = UserMessage { topic: topic.clone(), payload, rule: Some(rule), ..UserMessage::default() };
    let envelope = Envelope::new(EventBus::NAME, unix_ms(), Body::UserMessage(message));
    match port.ask(PublishEvent { envelope: Some(envelope) }, STORED_WITHIN).await {
        Ok(settled) if settled.code == 0 => {}
        Ok(settled) => tracing::warn!(topic, "a message for the cloud is dropped: {}", settled.reason),
        Err(error) => tracing::warn!(topic, "a message for the cloud is dropped: {error}"),
    }
}

fn unix_ms() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |now| now.as_millis() as u64)
}

impl Actor for EventBus {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        let (sender, incoming) = mpsc::channel(QUEUE);
        for broker in self.config.brokers.clone() {
            match Client::new(broker, sender.clone(), Arc::clone(&self.dropped)) {
                Ok(client) => self.clients.push(Rc::new(client)),
                Err(error) => return ctx.fail(format!("a broker's address: {error}")),
            }
        }
        for filter in OF_DEVICES {
            // They are filters, and few.
            let _ = self.wanted.add(filter);
        }
        self.tell_filters();
        for client in &self.clients {
            let changed = self.changed.clone();
            let tell = async move |state: State| {
                let (connected, reason) = match state {
                    State::Connected => (true, String::new()),
                    State::Lost(why) => (false, why),
                };
                changed.announce(MqttStateChanged { connected, reason }).await;
            };
            let run = Rc::clone(client).run(self.filters.subscribe(), tell);
            self.running.push(AbortOnDropHandle::new(tokio::task::spawn_local(run)));
        }
        let inward = Inward {
            twin: self.twin.clone(),
            to_cloud: self.to_cloud.clone(),
            rules: Rc::clone(&self.rules),
            received: self.received.clone(),
            filters: self.filters.subscribe(),
        };
        self.running.push(AbortOnDropHandle::new(tokio::task::spawn_local(inward.run(incoming))));
        self.read_rules(ctx);
        ctx.run_interval(Duration::from_secs(5), |this, _| {
            this.dropped_meter.set(this.dropped.load(Ordering::Relaxed));
        });
    }
}

impl Component for EventBus {
    const NAME: &'static str = "eventbus";
    const STAGE: Stage = Stage::Source;
    /// More than may wait for brokers: beyond the bounds a publication is refused and waits for nobody. A DeviceTwin that
    /// waited would take nothing, and paho, which waits then, would not read the confirmations that it waits for.
    const IN_HAND: usize = UNSENT + 2048;

    fn contract(contract: &mut Contract<Self>) {
        contract.answers::<PublishMqtt>();
        contract.answers::<SubscribeMqtt>();
        contract.answers::<UnsubscribeMqtt>();
        contract.may_ask::<TwinMessage>();
        contract.may_ask::<PublishEvent>();
        contract.may_ask::<ReadObjects>();
        contract.answers::<EventReceived>();
        contract.may_listen::<ObjectsChanged>(Overflow::wait());
        contract.may_listen::<ObjectsReloaded>(Overflow::wait());
        contract.announces::<MqttReceived>();
        contract.announces::<MqttStateChanged>();
    }

    fn stop(&mut self, _: &mut Context<Self>) -> ResponseActFuture<Self, ()> {
        self.running.clear();
        let clients = std::mem::take(&mut self.clients);
        Box::pin(
            async move {
                for client in clients {
                    client.disconnect().await;
                }
            }
            .into_actor(self),
        )
    }
}

impl Handler<PublishMqtt> for EventBus {
    type Result = ResponseFuture<Settled>;

    fn handle(&mut self, message: PublishMqtt, _: &mut Context<Self>) -> Self::Result {
        self.publish(message)
    }
}

impl Handler<EventReceived> for EventBus {
    type Result = ResponseFuture<Settled>;

    fn handle(&mut self, EventReceived { envelope }: EventReceived, _: &mut Context<Self>) -> Self::Result {
        match envelope.and_then(|envelope| envelope.body) {
            Some(Body::UserMessage(UserMessage { topic, payload, .. })) => {
                self.publish(PublishMqtt { topic, payload, qos: None, retain: None })
            }
            _ => answer(Settled::rejected(501, "this edge takes no events but messages for MQTT")),
        }
    }
}

impl Handler<ObjectsReloaded> for EventBus {
    type Result = ();

    fn handle(&mut self, _: ObjectsReloaded, ctx: &mut Context<Self>) {
        self.read_rules(ctx);
    }
}

impl Handler<ObjectsChanged> for EventBus {
    type Result = ();

    fn handle(&mut self, change: ObjectsChanged, _: &mut Context<Self>) {
        if change.r#type.as_ref() != Some(&resource::rules()) {
            return;
        }
        match (&change.object, &change.key) {
            (Some(rule), _) => self.rule_changed(rule),
            (None, Some(key)) => {
                let change = self.rules.borrow_mut().unset(key);
                self.follow(change);
            }
            (None, None) => {}
        }
    }
}

fn answer(settled: Settled) -> ResponseFuture<Settled> {
    Box::pin(std::future::ready(settled))
}

impl Handler<SubscribeMqtt> for EventBus {
    type Result = MessageResult<SubscribeMqtt>;

    fn handle(&mut self, SubscribeMqtt { filter }: SubscribeMqtt, _: &mut Context<Self>) -> Self::Result {
        let settled = match self.wanted.add(&filter) {
            Ok(()) => Settled::applied(),
            Err(wrong) => Settled::rejected(400, wrong),
        };
        self.tell_filters();
        MessageResult(settled)
    }
}

impl Handler<UnsubscribeMqtt> for EventBus {
    type Result = MessageResult<UnsubscribeMqtt>;

    fn handle(&mut self, UnsubscribeMqtt { filter }: UnsubscribeMqtt, _: &mut Context<Self>) -> Self::Result {
        // What EventBus itself subscribes to stays.
        if !OF_DEVICES.contains(&filter.as_str()) {
            self.wanted.remove(&filter);
        }
        self.tell_filters();
        MessageResult(Settled::applied())
    }
}
