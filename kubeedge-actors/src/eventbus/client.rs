//! One broker's client: paho, which has threads of its own.
//!
//! What comes in goes into a queue of [`QUEUE`] messages. When it is full paho's thread waits, so that nothing more is
//! read from the broker; when that lasts longer than [`PATIENCE`], messages are dropped and counted. All of paho waits with
//! it, so nothing here asks paho on the arbiter. What goes out waits in a queue of [`UNSENT`] messages;
//! beyond them, or beyond [`UNCONFIRMED`] bytes, a publication is refused.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeSet,
    fmt,
    ops::Deref,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::FutureExt;
use paho_mqtt::{
    AsyncClient, ConnectOptions, ConnectOptionsBuilder, CreateOptionsBuilder, Message, PersistenceType, ServerResponse,
    Token,
};
use tokio::sync::{Notify, mpsc, watch};
use tokio_util::task::AbortOnDropHandle;

pub use super::sender::{Delivery, UNCONFIRMED, UNSENT};
#[cfg(feature = "eventbus-tls")]
use super::tls::{self, BrokerTls};
use super::{
    address::Address,
    door::{self, KeptOpen, loopback},
    sender::Sender,
};

/// Messages that wait to be taken.
pub const QUEUE: usize = 1024;
/// How long the broker is kept waiting before messages are dropped.
pub const PATIENCE: Duration = Duration::from_secs(5);
/// Publications that paho has and has not sent; more wait before it.
const BUFFERED: i32 = 256;
/// Publications that are sent and not confirmed.
const IN_FLIGHT: i32 = 1024;
/// Largest payload that is taken; of a larger one only its size goes on.
pub const MAX_PAYLOAD: usize = 1024 * 1024;
/// Pauses between attempts to connect, doubled from the first to the last, each with full jitter.
const AGAIN: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(20));
const CONNECT_WITHIN: Duration = Duration::from_secs(10);
const KEEP_ALIVE: Duration = Duration::from_secs(20);
/// For what is under way in a connection that ends.
const ENDS_WITHIN: Duration = Duration::from_secs(1);
/// A session that ends sooner than this does not end the back-off.
const STEADY: Duration = Duration::from_secs(5);

/// A broker, and how it is used.
#[derive(Clone)]
pub struct Broker {
    /// Such as `tcp://127.0.0.1:1883`; with TLS, such as `ssl://broker.example:8883`.
    pub uri: String,
    /// The session is kept under this name.
    pub client_id: String,
    /// If the broker asks for one.
    pub username: Option<String>,
    /// With it.
    pub password: Option<String>,
    /// Of publications and subscriptions that name none: 0, 1 or 2.
    pub qos: u8,
    /// Whether publications that do not say otherwise are kept by the broker.
    pub retain: bool,
    /// Whether the broker keeps subscriptions, and what is published to them, while this client is away.
    pub keep_session: bool,
    /// TLS to it.
    #[cfg(feature = "eventbus-tls")]
    pub tls: Option<BrokerTls>,
}

/// Without the password.
impl fmt::Debug for Broker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Broker").field("uri", &self.uri).field("client_id", &self.client_id).finish_non_exhaustive()
    }
}

impl Broker {
    /// A broker that takes everybody, at QoS 1.
    pub fn new(uri: impl Into<String>, client_id: impl Into<String>) -> Self {
        Self {
            uri: uri.into(),
            client_id: client_id.into(),
            username: None,
            password: None,
            qos: 1,
            retain: false,
            keep_session: true,
            #[cfg(feature = "eventbus-tls")]
            tls: None,
        }
    }
}

/// What came in.
#[derive(Debug)]
pub struct Incoming {
    /// Where.
    pub topic: String,
    /// What; empty when it was over the bound.
    pub payload: Bytes,
    /// Bytes of the payload when it was over the bound, else 0.
    pub oversize: u64,
    /// It was kept by the broker.
    pub retained: bool,
}

/// What became of a broker's connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// It stands.
    Connected,
    /// It does not.
    Lost(String),
}

/// One of the two.
enum Door {
    /// In the clear.
    Loopback(loopback::LoopbackDoor),
    /// On TLS.
    #[cfg(feature = "eventbus-tls")]
    Private(door::private::PrivateDoor, BrokerTls),
}

impl Door {
    fn to(broker: &Broker) -> std::io::Result<Self> {
        #[cfg(feature = "eventbus-tls")]
        if let Some(settings) = &broker.tls {
            return Ok(Self::Private(door::private::PrivateDoor::new(), settings.clone()));
        }
        // What the door depends on otherwise.
        let _ = broker;
        loopback::LoopbackDoor::new().map(Self::Loopback)
    }

    fn uri(&self) -> String {
        match self {
            Self::Loopback(door) => door.uri(),
            #[cfg(feature = "eventbus-tls")]
            Self::Private(door, _) => door.uri(),
        }
    }
}

/// paho's own client, and what has to outlive it: fields go in this order.
pub(super) struct Paho {
    client: AsyncClient,
    kept: KeptOpen,
}

impl Deref for Paho {
    type Target = AsyncClient;

    fn deref(&self) -> &AsyncClient {
        &self.client
    }
}

/// A client, connected or not.
pub struct Client {
    client: Arc<Paho>,
    sender: Sender,
    broker: Broker,
    address: Address,
    connected: Rc<Cell<bool>>,
    /// What this client has subscribed to in some connection and not ended: the broker may have it still.
    subscribed: RefCell<BTreeSet<String>>,
    lost: Arc<Notify>,
    /// Where paho connects instead of at the broker.
    door: Door,
    /// What takes the bytes through it, while there is a connection.
    through: RefCell<Option<AbortOnDropHandle<std::io::Result<()>>>>,
}

impl Client {
    /// A client that is not connected yet; what comes in goes into `incoming`. The error is about the address.
    pub fn new(broker: Broker, incoming: mpsc::Sender<Incoming>, dropped: Arc<AtomicU64>) -> Result<Self, String> {
        let address = broker.uri.parse()?;
        let door = Door::to(&broker).map_err(|error| format!("{}: a socket to it: {error}", broker.uri))?;
        let options = CreateOptionsBuilder::new_v3()
            .server_uri(door.uri())
            .client_id(&broker.client_id)
            .persistence(PersistenceType::None)
            .max_buffered_messages(BUFFERED)
            .finalize();
        let client = AsyncClient::new(options).map_err(|error| format!("{}: {error}", broker.uri))?;
        let lost = Arc::new(Notify::new());
        let notify = Arc::clone(&lost);
        client.set_connection_lost_callback(move |_| notify.notify_one());
        client.set_message_callback(move |_, message| {
            if let Some(message) = message {
                take(&incoming, &message, &dropped);
            }
        });
        let client = Arc::new(Paho { client, kept: KeptOpen::default() });
        let sender =
            Sender::start(Arc::clone(&client)).map_err(|error| format!("{}: a thread: {error}", broker.uri))?;
        Ok(Self {
            client,
            sender,
            broker,
            address,
            connected: Rc::default(),
            subscribed: RefCell::default(),
            lost,
            door,
            through: RefCell::default(),
        })
    }

    /// Whether it is connected.
    pub fn is_connected(&self) -> bool {
        self.connected.get()
    }

    /// Publishes, in the order of the calls. `None` without a connection; the error is a bound.
    pub fn publish(
        &self,
        topic: &str,
        payload: &[u8],
        qos: Option<u8>,
        retain: Option<bool>,
    ) -> Option<Result<Delivery, String>> {
        if !self.is_connected() {
            return None;
        }
        let (qos, retain) = (qos.unwrap_or(self.broker.qos), retain.unwrap_or(self.broker.retain));
        let make = if retain { Message::new_retained } else { Message::new };
        let message = make(topic, payload, i32::from(qos));
        Some(self.sender.publish(message))
    }

    /// Asks paho, on a thread that may wait for it.
    async fn ask<T: Send + 'static>(&self, ask: impl FnOnce(&AsyncClient) -> T + Send + 'static) -> Result<T, String> {
        let client = Arc::clone(&self.client);
        let asked = tokio::task::spawn_blocking(move || ask(&client));
        asked.await.map_err(|error| format!("a question to paho: {error}"))
    }

    /// Stays connected and subscribed to what is wanted, for ever.
    pub async fn run(self: Rc<Self>, mut wanted: watch::Receiver<BTreeSet<String>>, tell: impl AsyncFn(State)) {
        let mut pause = AGAIN.0;
        let mut told = None;
        loop {
            let connected = self.connect().await;
            let begun = Instant::now();
            let why = match connected {
                Ok(response) => {
                    let session_present = response.connect_response().is_some_and(|response| response.session_present);
                    tracing::info!(broker = self.broker.uri, session_present, "the broker is connected");
                    if !session_present {
                        self.subscribed.take();
                    }
                    self.connected.set(true);
                    told = None;
                    tell(State::Connected).await;
                    let seen = self.follow(&mut wanted).await;
                    self.connected.set(false);
                    self.reason(seen).await
                }
                Err(why) => why,
            };
            // As long as it is the same it is said once.
            if told.as_ref() != Some(&why) {
                tell(State::Lost(why.clone())).await;
                told = Some(why.clone());
            }
            if begun.elapsed() > STEADY {
                pause = AGAIN.0;
            }
            tracing::warn!(broker = self.broker.uri, again_in = ?pause, "the broker is not connected: {why}");
            tokio::time::sleep(pause.mul_f64(rand::random_range(0.1..1.0))).await;
            pause = (pause * 2).min(AGAIN.1);
        }
    }

    async fn connect(&self) -> Result<ServerResponse, String> {
        // What was said of an earlier connection says nothing of this one.
        self.lost.notified().now_or_never();
        if self.ask(AsyncClient::is_connected).await? {
            self.disconnect().await;
        }
        let through = within(self.through()).await??;
        *self.through.borrow_mut() = Some(through);
        let options = self.options();
        let connecting = async { Ok::<_, String>(self.ask(move |client| client.connect(options)).await?.await) };
        match within(connecting).await.flatten() {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => Err(self.reason(refusal(&error)).await),
            Err(why) => Err(self.reason(why).await),
        }
    }

    /// Dials the broker, and opens the door that leads to it.
    async fn through(&self) -> Result<AbortOnDropHandle<std::io::Result<()>>, String> {
        let kept = self.client.kept.clone();
        let through = match &self.door {
            Door::Loopback(door) => {
                let broker = self.address.dial().await?;
                let door = door.open().map_err(|error| format!("a socket to it: {error}"))?;
                tokio::spawn(async move { door::through(loopback::next(door).await?, broker, kept).await })
            }
            #[cfg(feature = "eventbus-tls")]
            Door::Private(door, settings) => {
                let broker = tls::dial(&self.address, settings).await?;
                let door = door.open()?;
                tokio::spawn(async move { door::through(door.own().await?, broker, kept).await })
            }
        };
        Ok(AbortOnDropHandle::new(through))
    }

    /// Why a connection ended: the door knows it better than paho, which sees only an end.
    async fn reason(&self, seen: String) -> String {
        let through = self.through.borrow_mut().take();
        if let Some(through) = through
            && let Ok(Ok(Err(error))) = tokio::time::timeout(ENDS_WITHIN, through).await
        {
            return format!("{seen}: {error}");
        }
        seen
    }

    fn options(&self) -> ConnectOptions {
        let mut options = ConnectOptionsBuilder::new_v3();
        options
            .clean_session(!self.broker.keep_session)
            .keep_alive_interval(KEEP_ALIVE)
            .max_inflight(IN_FLIGHT)
            .connect_timeout(CONNECT_WITHIN);
        if let Some(name) = &self.broker.username {
            options.user_name(name);
        }
        if let Some(password) = &self.broker.password {
            options.password(password.as_str());
        }
        options.finalize()
    }

    /// Subscribes to what is wanted, and ends what is not wanted any more, until the connection is lost. Why it was comes
    /// back.
    async fn follow(&self, wanted: &mut watch::Receiver<BTreeSet<String>>) -> String {
        // The broker may have the session still, or a part of it: it takes a subscription it has as well as a new one.
        let mut has = BTreeSet::new();
        loop {
            let wants = wanted.borrow_and_update().clone();
            let more: Vec<String> = wants.difference(&has).cloned().collect();
            if !more.is_empty() {
                self.subscribed.borrow_mut().extend(more.iter().cloned());
                let qos = i32::from(self.broker.qos);
                let asking = self.ask(move |client| client.subscribe_many_same_qos(&more, qos));
                if let Err(why) = answered(asking, "it refuses subscriptions").await {
                    return self.give_up(why).await;
                }
            }
            // What ended while there was no connection is among it: the session would bring it back.
            let less: Vec<String> = self.subscribed.borrow().difference(&wants).cloned().collect();
            if !less.is_empty() {
                let asking = self.ask(move |client| client.unsubscribe_many(&less));
                if let Err(why) = answered(asking, "it refuses to end subscriptions").await {
                    return self.give_up(why).await;
                }
            }
            self.subscribed.replace(wants.clone());
            has = wants;
            tokio::select! {
                () = self.lost.notified() => return "the connection was lost".to_owned(),
                changed = wanted.changed() => if changed.is_err() {
                    return self.give_up("EventBus begins anew".to_owned()).await;
                },
            }
        }
    }

    async fn give_up(&self, why: String) -> String {
        self.disconnect().await;
        why
    }

    /// Ends the connection in order, so that the broker keeps the session.
    pub async fn disconnect(&self) {
        self.connected.set(false);
        let bye = async { self.ask(|client| client.disconnect(None)).await.ok()?.await.ok() };
        if !matches!(tokio::time::timeout(Duration::from_secs(2), bye).await, Ok(Some(_))) {
            tracing::debug!(broker = self.broker.uri, "the connection was gone already");
        }
        // The last words have a way to go still.
        self.reason(String::new()).await;
    }
}

/// Why a broker did not take the connection. What the broker itself says, paho's text leaves out.
fn refusal(error: &paho_mqtt::Error) -> String {
    match error {
        paho_mqtt::Error::ConnectReturn(code) => format!("the broker refuses: {code}"),
        other => other.to_string(),
    }
}

/// Waits for the broker's answer to what paho is asked.
async fn answered(asking: impl Future<Output = Result<Token, String>>, refused: &str) -> Result<(), String> {
    let answer = within(async { Ok::<_, String>(asking.await?.await) }).await.flatten()?;
    answer.map(drop).map_err(|error| format!("{refused}: {error}"))
}

async fn within<T>(work: impl Future<Output = T>) -> Result<T, String> {
    tokio::time::timeout(CONNECT_WITHIN, work).await.map_err(|_| format!("no answer within {CONNECT_WITHIN:?}"))
}

/// On paho's own thread, which may wait: that keeps the broker waiting.
#[expect(clippy::disallowed_methods, reason = "it is no thread of an arbiter")]
fn take(incoming: &mpsc::Sender<Incoming>, message: &Message, dropped: &AtomicU64) {
    let payload = message.payload();
    let over = payload.len() > MAX_PAYLOAD;
    let mut next = Incoming {
        topic: message.topic().to_owned(),
        payload: if over { Bytes::new() } else { Bytes::copy_from_slice(payload) },
        oversize: if over { payload.len() as u64 } else { 0 },
        retained: message.retained(),
    };
    let until = Instant::now() + PATIENCE;
    loop {
        next = match incoming.try_send(next) {
            Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => return,
            Err(mpsc::error::TrySendError::Full(next)) => next,
        };
        if Instant::now() > until {
            let count = dropped.fetch_add(1, Ordering::Relaxed) + 1;
            tracing::warn!(topic = next.topic, count, "a message is dropped: nobody takes any for {PATIENCE:?}");
            return;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}
