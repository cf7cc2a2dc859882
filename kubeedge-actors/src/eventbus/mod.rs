//! EventBus: MQTT at the edge.
//!
//! | | |
//! |---|---|
//! | answers | `PublishMqtt`, `SubscribeMqtt`, `UnsubscribeMqtt` (anyone at the edge) |
//! | asks | `TwinMessage` (DeviceTwin, if there), `PublishEvent` (EdgeHub, where rules are forwarded) |
//! | announces | `MqttReceived`: what was subscribed to; `MqttStateChanged` |
//! | stores | nothing; a broker keeps the session |
//! | offline | everything between this node's own applications works |
//!
//! [`client`] is one broker's client, `tls` how it gets to a broker on TLS, [`broker`] a broker of our own where there is no
//! other, [`filters`] the rules of topics. Without a connection a publication is refused with 503, and counted. Who takes messages more slowly than they
//! come slows the broker down, and after five seconds loses some: both are counted.

#[cfg(feature = "embedded-broker")]
pub mod broker;
pub mod client;
pub mod filters;
#[cfg(feature = "eventbus-tls")]
pub mod tls;

use std::{
    collections::BTreeSet,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use actix::{Actor, AsyncContext, Handler, MessageResult, ResponseActFuture, ResponseFuture, WrapFuture};
use kubeedge_proto::v1::{
    Envelope, MqttReceived, MqttStateChanged, PublishEvent, PublishMqtt, Settled, SubscribeMqtt, TwinMessage,
    UnsubscribeMqtt, UserMessage, envelope::Body,
};
use tokio::sync::{mpsc, watch};
use tokio_util::task::AbortOnDropHandle;

use self::{
    client::{Broker, Client, Incoming, MAX_PAYLOAD, QUEUE, State},
    filters::{OF_DEVICES, OF_RULES, Wanted, is_of_devices, is_of_rules, is_topic},
};
use crate::system::{Component, Context, Contract, Figure, Meter, Port, Ports, Stage, Topic};

/// How long a broker may take to confirm a publication.
const CONFIRMED_WITHIN: Duration = Duration::from_secs(30);
/// How long EdgeHub's disk may take for an event.
const STORED_WITHIN: Duration = Duration::from_secs(30);

/// Which brokers, and what for.
#[derive(Clone, Debug, Default)]
pub struct EventBusConfig {
    /// All are used: what comes from one of them is taken, what is published goes to each.
    pub brokers: Vec<Broker>,
    /// Whether what applications publish for the cloud (`+/user/#` and others) is sent there. A cloud without a router
    /// refuses it.
    pub forward_to_cloud: bool,
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
    name: "kubeedge_eventbus_publications_refused_total",
    help: "MQTT messages that were not published, for want of a connection or of room",
    counter: true,
};
const DROPPED: Figure = Figure {
    name: "kubeedge_eventbus_messages_dropped_total",
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
    received: Topic<MqttReceived>,
}

impl Inward {
    async fn run(self, mut incoming: mpsc::Receiver<Incoming>) {
        while let Some(Incoming { topic, payload, oversize, retained }) = incoming.recv().await {
            if is_of_devices(&topic) {
                if let Some(twin) = &self.twin
                    && twin.tell(TwinMessage { topic, payload, oversize }).await.is_err()
                {
                    tracing::debug!("DeviceTwin is stopping");
                }
                continue;
            }
            if oversize > 0 {
                tracing::warn!(topic, oversize, limit = MAX_PAYLOAD, "a message is dropped: it is too large");
                continue;
            }
            if let Some(port) = self.to_cloud.as_ref().filter(|_| is_of_rules(&topic)) {
                let message = UserMessage { topic: topic.clone(), payload: payload.clone(), ..UserMessage::default() };
                let envelope = Envelope::new(EventBus::NAME, unix_ms(), Body::UserMessage(message));
                match port.ask(PublishEvent { envelope: Some(envelope) }, STORED_WITHIN).await {
                    Ok(settled) if settled.code == 0 => {}
                    Ok(settled) => tracing::warn!(topic, "a message for the cloud is dropped: {}", settled.reason),
                    Err(error) => tracing::warn!(topic, "a message for the cloud is dropped: {error}"),
                }
            }
            self.received.announce(MqttReceived { topic, payload, retained }).await;
        }
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
        let rules = OF_RULES.iter().filter(|_| self.config.forward_to_cloud);
        for filter in OF_DEVICES.iter().chain(rules) {
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
            to_cloud: self.to_cloud.clone().filter(|_| self.config.forward_to_cloud),
            received: self.received.clone(),
        };
        self.running.push(AbortOnDropHandle::new(tokio::task::spawn_local(inward.run(incoming))));
        ctx.run_interval(Duration::from_secs(5), |this, _| {
            this.dropped_meter.set(this.dropped.load(Ordering::Relaxed));
        });
    }
}

impl Component for EventBus {
    const NAME: &'static str = "eventbus";
    const STAGE: Stage = Stage::Source;

    fn contract(contract: &mut Contract<Self>) {
        contract.answers::<PublishMqtt>();
        contract.answers::<SubscribeMqtt>();
        contract.answers::<UnsubscribeMqtt>();
        contract.may_ask::<TwinMessage>();
        contract.may_ask::<PublishEvent>();
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
        let mut tokens = Vec::new();
        for sent in sent {
            match sent {
                Ok(token) => tokens.push(token),
                Err(error) => return answer(self.refuse(429, format!("{topic} is not published: {error}"))),
            }
        }
        Box::pin(async move {
            for token in tokens {
                match tokio::time::timeout(CONFIRMED_WITHIN, token).await {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => return Settled::rejected(503, format!("the broker did not take it: {error}")),
                    Err(_) => return Settled::rejected(504, "the broker did not confirm it".to_owned()),
                }
            }
            Settled::applied()
        })
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
