//! Router: messages between REST at the cloud, and MQTT and HTTP services at nodes, as Rules say.
//!
//! | | |
//! |---|---|
//! | listens | HTTP or HTTPS: `/<node>/<namespace>/<path of a rule>` |
//! | watches | Rules and RuleEndpoints of all namespaces (`rules.kubeedge.io/v1`) |
//! | answers | `QueryRules`, `RouteEvent`, `RouteCall` (CloudHub) |
//! | asks | `SendEventToNode`, `SendToNode`, `RecheckNodes`, `ConnectStreams` (CloudHub) |
//! | stores | nothing: messages that wait are in the outboxes of nodes |
//! | a node offline | 503 at once for who asks; what a node sends waits there |
//! | without the definitions | nothing is sent and nothing deleted; they are looked for again and again |
//!
//! [`table`] knows the rules and the way of each message, [`counts`] what became of them; both are pure. `rest` is the
//! server, `from_node` carries what nodes send, `service` a call of a service at a node, [`outbound`] one of a URL, `status` writes `Rule.status`, a rule's
//! every two seconds at most.
//!
//! Nothing is sent twice by the Router itself. A message of a node that its target did not take (no answer, 408, 429, 5xx)
//! comes again from the node's outbox, with the same `Idempotency-Key`, until a bound of the outbox drops it.
//!
//! Bounds: [`rest::MAX_CONNECTIONS`] connections, [`crate::web::MAX_BODY`] bytes of a body to or from a service, which is
//! never held whole, [`rest::MAX_MESSAGE`] of one for MQTT, `within` for an answer.

pub mod counts;
mod from_node;
pub mod outbound;
pub mod rest;
mod service;
mod status;
pub mod table;

use std::{
    net::TcpListener,
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
    time::{Duration, SystemTime},
};

use actix::{Actor, ActorFutureExt, AsyncContext, Handler, Message, MessageResult, ResponseActFuture, WrapFuture};
use bytes::Bytes;
use kubeedge_proto::{
    NodeName, resource,
    v1::{
        Envelope, QueryRules, RecheckNodes, RouteCall, RouteEvent, SendEventToNode, SendToNode, Settled, UserMessage,
        envelope::Body,
    },
};
use tokio_util::task::AbortOnDropHandle;

use self::{
    counts::Counts,
    outbound::Outbound,
    table::{Effect, Key, Table},
};
use crate::{
    controllers::{
        list_watch::{self, Change, Scope},
        objects::{key_of, text},
    },
    link::streams::ConnectStreams,
    serving::Serving,
    system::{AskError, Component, Context, Contract, Port, Ports, Stage},
    web::tokens::Tokens,
};

/// How often statuses of rules are written.
const TICK: Duration = Duration::from_secs(2);
/// Statuses written in one tick.
const WRITTEN_AT_ONCE: usize = 64;
/// How long they may take at a stop.
const LAST_WRITES: Duration = Duration::from_secs(3);

/// How Router works.
#[derive(Clone)]
pub struct RouterConfig {
    /// Where requests come in; bound before the system starts, so that a port in use is a start-up error.
    pub listener: Arc<TcpListener>,
    /// TLS there, if wanted.
    pub tls: Option<Arc<rustls::ServerConfig>>,
    /// Who may ask; `None`: whoever reaches the port.
    pub tokens: Option<Tokens>,
    /// How long a request may take until its answer begins.
    pub within: Duration,
    /// Calls the URLs of rules.
    pub outbound: Outbound,
}

/// Whom it asks.
#[derive(Clone)]
pub(crate) struct Asks {
    connect: Port<ConnectStreams>,
    event: Port<SendEventToNode>,
}

/// What the server shares with the component.
pub(crate) struct Shared {
    table: RwLock<Table>,
    counts: Mutex<Counts>,
    tokens: Option<Tokens>,
    within: Duration,
    asks: Asks,
}

/// Why something did not come about, with HTTP's status for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refused {
    status: u16,
    why: String,
}

impl Refused {
    fn new(status: u16, why: impl Into<String>) -> Self {
        Self { status, why: why.into() }
    }

    /// Says which node it is about.
    fn at(self, node: &NodeName) -> Self {
        if self.status == 502 { Self { why: format!("node {node}: {}", self.why), ..self } } else { self }
    }

    /// For the node that sent the message: what is wrong for good stays so, everything else is tried again.
    fn settled(self) -> Settled {
        let code = match self.status {
            408 | 429 => self.status.into(),
            400..=499 | 501 => self.status.into(),
            // A redirection is not followed, and would be the same the next time.
            300..=399 => 400,
            _ => 503,
        };
        Settled::rejected(code, self.why)
    }
}

impl Shared {
    pub(crate) fn table(&self) -> RwLockReadGuard<'_, Table> {
        self.table.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn table_mut(&self) -> RwLockWriteGuard<'_, Table> {
        self.table.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn succeeded(&self, rule: &Key) {
        self.counts().success(rule);
    }

    fn count_failure(&self, rule: &Key, why: &str) {
        let now =
            jiff::Timestamp::try_from(SystemTime::now()).map_or_else(|_| String::new(), |now| format!("{now:.0}"));
        self.counts().failure(rule, &now, why);
    }
}

impl Asks {
    /// Publishes at a node; answered when the broker there has it.
    async fn publish(&self, node: &NodeName, topic: String, payload: Bytes, within: Duration) -> Result<(), Refused> {
        let message = UserMessage { topic, payload, ..UserMessage::default() };
        let envelope = Envelope::new(Router::NAME, unix_ms(), Body::UserMessage(message));
        let timeout_ms = u32::try_from(within.as_millis()).unwrap_or(u32::MAX).max(1);
        let message = SendEventToNode { node: node.to_string(), envelope: Some(envelope), timeout_ms };
        match self.event.ask(message, within + Duration::from_secs(1)).await {
            Ok(settled) if settled.code == 0 => Ok(()),
            Ok(settled) => Err(Refused::new(u16::try_from(settled.code).unwrap_or(502), settled.reason)),
            Err(AskError::Timeout) => Err(Refused::new(504, format!("node {node} did not answer within {within:?}"))),
            Err(error) => Err(Refused::new(503, format!("CloudHub: {error}"))),
        }
    }
}

/// The component. See the module's page.
pub struct Router {
    client: kube::Client,
    config: RouterConfig,
    shared: Arc<Shared>,
    to_node: Port<SendToNode>,
    recheck: Port<RecheckNodes>,
    watches: Vec<AbortOnDropHandle<()>>,
    /// The list was complete in this life.
    listed: bool,
    /// Statuses are being written.
    writing: bool,
    serving: Option<Serving>,
}

impl Router {
    /// A router for the cluster that `client` talks to.
    pub fn new(client: kube::Client, config: RouterConfig, ports: &Ports) -> Self {
        let shared = Shared {
            table: RwLock::default(),
            counts: Mutex::default(),
            tokens: config.tokens.clone(),
            within: config.within,
            asks: Asks { connect: ports.port(), event: ports.port() },
        };
        Self {
            client,
            config,
            shared: Arc::new(shared),
            to_node: ports.port(),
            recheck: ports.port(),
            watches: Vec::new(),
            listed: false,
            writing: false,
            serving: None,
        }
    }

    fn watch(&self, kind: Kind, ctx: &mut Context<Self>) -> AbortOnDropHandle<()> {
        let address = ctx.address();
        let client = self.client.clone();
        let scope = Scope { path: kind.path(), fields: String::new(), page: None };
        AbortOnDropHandle::new(tokio::task::spawn_local(list_watch::run(client, scope, move |change| {
            // Waits for room and for the event to be handled. An error: this component was stopped or rebuilt.
            let sent = address.send(Watched { kind, change });
            async move { sent.await.is_ok() }
        })))
    }

    /// Messages to nodes leave in order, before the next event is taken.
    fn carry_out(&mut self, effects: Vec<Effect>, ctx: &mut Context<Self>) {
        let mut messages = Vec::new();
        let complete = self.shared.table().is_complete();
        let mut compare = complete && !std::mem::replace(&mut self.listed, complete);
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

    /// Writes statuses that have changed, some at a time.
    fn write_statuses(&mut self, ctx: &mut Context<Self>) {
        if self.writing {
            return;
        }
        let due = self.shared.counts().due(WRITTEN_AT_ONCE);
        if due.is_empty() {
            return;
        }
        self.writing = true;
        let (client, shared) = (self.client.clone(), Arc::clone(&self.shared));
        let write = async move {
            for due in due {
                if !status::write(&client, &due).await {
                    shared.counts().not_written(&due);
                }
            }
        };
        ctx.spawn(write.into_actor(self).map(|(), this, _| this.writing = false));
    }
}

/// What is watched.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Rules,
    Endpoints,
}

impl Kind {
    fn path(self) -> String {
        match self {
            Kind::Rules => resource::rules(),
            Kind::Endpoints => resource::rule_endpoints(),
        }
        .path("", None)
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

impl Actor for Router {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        self.watches = [Kind::Endpoints, Kind::Rules].map(|kind| self.watch(kind, ctx)).into();
        match rest::start(&self.config, Arc::clone(&self.shared)) {
            Ok((_, handle)) => self.serving = Some(handle),
            Err(error) => ctx.fail(format!("the router's listener: {error}")),
        }
        ctx.run_interval(TICK, Self::write_statuses);
    }
}

impl Component for Router {
    const NAME: &'static str = "router";
    /// It waits for room at CloudHub, which is to be found first if it is stuck.
    const HEARTBEAT: Duration = Duration::from_secs(120);
    const STAGE: Stage = Stage::Processor;

    fn contract(contract: &mut Contract<Self>) {
        contract.answers::<QueryRules>();
        contract.answers::<RouteEvent>();
        contract.answers::<RouteCall>();
        contract.asks::<SendToNode>();
        contract.asks::<RecheckNodes>();
        contract.asks::<SendEventToNode>();
        contract.asks::<ConnectStreams>();
    }

    fn stop(&mut self, _: &mut Context<Self>) -> ResponseActFuture<Self, ()> {
        let serving = self.serving.take();
        let due = self.shared.counts().due(WRITTEN_AT_ONCE);
        let client = self.client.clone();
        let stop = async move {
            if let Some(serving) = serving {
                serving.stop().await;
            }
            let write = async {
                for due in due {
                    status::write(&client, &due).await;
                }
            };
            // What does not get through by then is lost: counts are no promise.
            if tokio::time::timeout(LAST_WRITES, write).await.is_err() {
                tracing::warn!("not all statuses of rules were written");
            }
        };
        Box::pin(stop.into_actor(self))
    }
}

impl Handler<Watched> for Router {
    type Result = ();

    fn handle(&mut self, Watched { kind, change }: Watched, ctx: &mut Context<Self>) {
        let shared = Arc::clone(&self.shared);
        let known = |rule: &serde_json::Value| {
            shared.counts().known(key_of(rule), text(rule, "/metadata/uid"), &rule["status"]);
        };
        let effects = match (kind, change) {
            (Kind::Rules, Change::Replaced(rules, as_of)) => {
                rules.iter().for_each(known);
                let effects = shared.table_mut().replaced(rules, as_of);
                let table = shared.table();
                shared.counts().retain(|key| table.uid(key).is_some());
                effects
            }
            (Kind::Rules, Change::Applied(rule)) => {
                known(&rule);
                shared.table_mut().applied(rule)
            }
            (Kind::Rules, Change::Deleted(rule)) => {
                shared.counts().gone(&key_of(&rule));
                shared.table_mut().deleted(&rule)
            }
            (Kind::Rules, Change::Bookmark(version)) => {
                shared.table_mut().bookmark(version);
                Vec::new()
            }
            (Kind::Endpoints, Change::Replaced(endpoints, _)) => {
                shared.table_mut().endpoints_replaced(&endpoints);
                Vec::new()
            }
            (Kind::Endpoints, Change::Applied(endpoint)) => {
                shared.table_mut().endpoint_applied(&endpoint);
                Vec::new()
            }
            (Kind::Endpoints, Change::Deleted(endpoint)) => {
                shared.table_mut().endpoint_deleted(&endpoint);
                Vec::new()
            }
            (Kind::Endpoints, Change::Bookmark(_)) => Vec::new(),
            // Nothing is listed in pages; without the right to list it, a kind stays unknown.
            (_, Change::Listing | Change::Page(..) | Change::Listed(_) | Change::Forbidden) => Vec::new(),
        };
        self.carry_out(effects, ctx);
    }
}

impl Handler<QueryRules> for Router {
    type Result = MessageResult<QueryRules>;

    /// Nothing is said while the rules have not been listed: a cluster without the definitions has none to compare.
    fn handle(&mut self, QueryRules { node }: QueryRules, _: &mut Context<Self>) -> Self::Result {
        MessageResult(self.shared.table().snapshot(&node))
    }
}

fn unix_ms() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |now| now.as_millis() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_target_does_not_take_for_now_comes_again_and_what_it_refuses_does_not() {
        let code = |status| Refused::new(status, "x").settled().code;
        for again in [408, 429] {
            assert_eq!(code(again), u32::from(again));
        }
        assert_eq!((code(400), code(404), code(422), code(501)), (400, 404, 422, 501));
        assert_eq!((code(500), code(502), code(504), code(100)), (503, 503, 503, 503));
        assert_eq!(code(302), 400);
    }
}
