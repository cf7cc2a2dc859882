//! CloudHub: the cloud's end of the link, one session per node.
//!
//! | | |
//! |---|---|
//! | listens | the link (mutual TLS; the node's name comes from its certificate), and enrolment (a join token for a certificate) |
//! | signs | the nodes' next certificates ([`Registrar`]), and ends the sessions of nodes that are revoked |
//! | answers | `SendToNode`, `RecheckNodes` (the controllers), `SendEventToNode` (anyone), `ConnectStreams` (CloudStream) |
//! | asks | `QueryCluster`, `QueryDesired`, `ApplyFromNode`, `CallFromNode` (EdgeController); `QueryDevices`, `ApplyDeviceReport` (DeviceController, if there); `QueryRules`, `RouteEvent`, `RouteCall` (Router, if there); `ApiRequestFromNode` (DynamicController, if there) |
//! | tells | `NodeHeartbeat` (EdgeController) |
//! | announces | `NodeSessionChanged` |
//! | stores | nothing: what a node should hold is derived again at each hello |
//! | a node offline | State sent to it is dropped and counted, the digests of its next hello show what it lacks; Events are answered 503 ([`events`]) |
//!
//! [`crate::link::registry`] decides who holds a node, [`crate::link::session`] speaks the protocol, `session` carries
//! one node's messages between it and the controllers. A node that cannot keep up costs bounded memory: when its queue
//! is full its session ends, and it comes back and is compared anew.

mod admit;
mod certificate;
pub mod enrolment;
pub mod events;
mod revoked;
mod session;
mod streams;

use std::{collections::HashMap, net::TcpListener, sync::Arc, time::Duration};

use actix::{Actor, AsyncContext, Handler, Message, MessageResult, ResponseActFuture, WrapFuture};
use kubeedge_proto::{
    NodeName,
    v1::{
        ApiRequestFromNode, ApplyDeviceReport, ApplyFromNode, CallFromNode, Goodbye, GoodbyeReason, NodeHeartbeat,
        NodeSessionChanged, QueryCluster, QueryDesired, QueryDevices, QueryRules, RecheckNodes, RouteCall, RouteEvent,
        SendEventToNode, SendToNode,
    },
};
use tokio_util::task::AbortOnDropHandle;

use crate::{
    identity::Registrar,
    link::{queues::InputSender, registry::Registry, session::Input, streams::ConnectStreams},
    system::{Component, Context, Contract, Port, Ports, Stage, Topic, trace::Trace},
};

/// Where CloudHub listens and what it allows.
#[derive(Clone)]
pub struct CloudHubConfig {
    /// The link's listener, bound before the system starts so that a port in use is a start-up error.
    pub listener: Arc<TcpListener>,
    /// Mutual TLS: this cloud's certificate, and the authority of the nodes'.
    pub tls: Arc<rustls::ServerConfig>,
    /// Sessions at a time.
    pub node_limit: usize,
    /// The protocol's numbers.
    pub link: crate::link::Config,
    /// Where boxes join; `None` where certificates come by another way.
    pub enrolment: Option<EnrolmentConfig>,
    /// Renews the nodes' certificates over the link, and says who is revoked; `None` where certificates come by another
    /// way. [`Registrar::link_clients`] belongs into `tls`.
    pub registrar: Option<Registrar>,
}

/// Where boxes join.
#[derive(Clone)]
pub struct EnrolmentConfig {
    /// Its listener, bound before the system starts.
    pub listener: Arc<TcpListener>,
    /// TLS with this cloud's certificate; nobody is asked for one here.
    pub tls: Arc<rustls::ServerConfig>,
    /// Decides.
    pub service: Arc<enrolment::EnrolmentService>,
}

/// The component. See the module's page.
pub struct CloudHub {
    config: CloudHubConfig,
    ports: Controllers,
    registry: Registry,
    sessions: HashMap<NodeName, Live>,
    hellos: admit::Hellos,
    streams: streams::Streams,
    events: events::Waiting,
    accepting: Option<AbortOnDropHandle<()>>,
    enrolling: Option<AbortOnDropHandle<()>>,
    watching: Option<AbortOnDropHandle<()>>,
    /// Messages for nodes without a session.
    dropped: u64,
}

/// A node's session as the hub sees it.
struct Live {
    epoch: u64,
    inputs: InputSender,
}

/// The controllers behind the hub.
#[derive(Clone)]
struct Controllers {
    cluster: Port<QueryCluster>,
    desired: Port<QueryDesired>,
    apply: Port<ApplyFromNode>,
    call: Port<CallFromNode>,
    devices: Option<Port<QueryDevices>>,
    device_report: Option<Port<ApplyDeviceReport>>,
    rules: Option<Port<QueryRules>>,
    route_event: Option<Port<RouteEvent>>,
    route_call: Option<Port<RouteCall>>,
    api_request: Option<Port<ApiRequestFromNode>>,
    heartbeat: Port<NodeHeartbeat>,
    changed: Topic<NodeSessionChanged>,
}

impl CloudHub {
    /// A hub on a bound listener.
    pub fn new(config: CloudHubConfig, ports: &Ports) -> Self {
        Self {
            registry: Registry::new(config.node_limit),
            config,
            ports: Controllers {
                cluster: ports.port(),
                desired: ports.port(),
                apply: ports.port(),
                call: ports.port(),
                devices: ports.optional(),
                device_report: ports.optional(),
                rules: ports.optional(),
                route_event: ports.optional(),
                route_call: ports.optional(),
                api_request: ports.optional(),
                heartbeat: ports.port(),
                changed: ports.topic(),
            },
            sessions: HashMap::new(),
            hellos: admit::Hellos::default(),
            streams: streams::Streams::default(),
            events: events::Waiting::default(),
            accepting: None,
            enrolling: None,
            watching: None,
            dropped: 0,
        }
    }

    /// Ends a session from this side. A queue that is full does not keep it: dropping the sender ends it too.
    fn end(live: Live, goodbye: Goodbye) {
        if live.inputs.try_send(Input::Close(goodbye)).is_err() {
            tracing::debug!(epoch = live.epoch, "the session's queue is full or it has ended already");
        }
    }

    fn tell_changed(&self, change: NodeSessionChanged, ctx: &mut Context<Self>) {
        let changed = self.ports.changed.clone();
        ctx.spawn(async move { changed.announce(change).await }.into_actor(self));
    }
}

impl Actor for CloudHub {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        match session::listen(&self.config, self.ports.clone(), ctx.address()) {
            Ok(accepting) => self.accepting = Some(accepting),
            Err(error) => ctx.fail(format!("the link's listener: {error}")),
        }
        if let Some(config) = &self.config.enrolment {
            match session::enrol(config) {
                Ok(enrolling) => self.enrolling = Some(enrolling),
                Err(error) => ctx.fail(format!("the enrolment listener: {error}")),
            }
        }
        self.watching = self
            .config
            .registrar
            .as_ref()
            .map(|registrar| revoked::watch(registrar.revocations().clone(), ctx.address()));
    }
}

impl Component for CloudHub {
    const NAME: &'static str = "cloudhub";
    const STAGE: Stage = Stage::Link;

    fn contract(contract: &mut Contract<Self>) {
        contract.answers::<SendToNode>();
        contract.answers::<SendEventToNode>();
        contract.answers::<RecheckNodes>();
        contract.answers::<ConnectStreams>();
        contract.asks::<QueryCluster>();
        contract.asks::<QueryDesired>();
        contract.asks::<ApplyFromNode>();
        contract.asks::<CallFromNode>();
        contract.asks::<NodeHeartbeat>();
        contract.may_ask::<QueryDevices>();
        contract.may_ask::<ApplyDeviceReport>();
        contract.may_ask::<QueryRules>();
        contract.may_ask::<RouteEvent>();
        contract.may_ask::<RouteCall>();
        contract.may_ask::<ApiRequestFromNode>();
        contract.announces::<NodeSessionChanged>();
    }

    fn stop(&mut self, _: &mut Context<Self>) -> ResponseActFuture<Self, ()> {
        let goodbye = Goodbye {
            reason: GoodbyeReason::ShuttingDown.into(),
            message: "cloudcore is stopping".into(),
            retry_after_ms: 1_000,
        };
        let ended: Vec<_> = self
            .sessions
            .drain()
            .map(|(_, live)| {
                let inputs = live.inputs.clone();
                Self::end(live, goodbye.clone());
                // Closed when the session's task has said goodbye and ended.
                async move { inputs.closed().await }
            })
            .collect();
        let accepting = (self.accepting.take(), self.enrolling.take());
        Box::pin(
            async move {
                let _ = tokio::time::timeout(Duration::from_secs(2), futures_util::future::join_all(ended)).await;
                drop(accepting);
            }
            .into_actor(self),
        )
    }
}

impl Handler<SendToNode> for CloudHub {
    type Result = ();

    fn handle(&mut self, SendToNode { node, envelope }: SendToNode, _: &mut Context<Self>) {
        let (Ok(name), Some(mut envelope)) = (node.parse::<NodeName>(), envelope) else { return };
        let Some(live) = self.sessions.get(&name) else {
            self.dropped += 1;
            return;
        };
        Trace::stamp(&mut envelope);
        if let Err(error) = live.inputs.try_send(Input::Submit(Box::new(envelope))) {
            // Its next hello is compared with what is desired then: nothing is lost, and nobody waits for it.
            tracing::warn!(%node, "the node cannot keep up: its session ends and is made anew ({error})");
            self.sessions.remove(&name);
        }
    }
}

impl Handler<RecheckNodes> for CloudHub {
    type Result = ();

    fn handle(&mut self, _: RecheckNodes, _: &mut Context<Self>) {
        self.sessions.retain(|node, live| {
            let sent = live.inputs.try_send(Input::Recheck);
            if let Err(error) = &sent {
                tracing::warn!(%node, "the node cannot keep up: its session ends and is made anew ({error})");
            }
            sent.is_ok()
        });
    }
}

/// A session stands or has ended.
struct SessionChanged {
    node: NodeName,
    epoch: u64,
    connected: bool,
    reason: String,
}

impl Message for SessionChanged {
    type Result = ();
}

impl Handler<SessionChanged> for CloudHub {
    type Result = ();

    fn handle(&mut self, change: SessionChanged, ctx: &mut Context<Self>) {
        let SessionChanged { node, epoch, connected, reason } = change;
        if !connected {
            self.events.session_over(&node, epoch);
            // The teardown of a replaced session touches nothing of its successor.
            if !self.registry.release(&node, epoch) {
                return;
            }
            if self.sessions.get(&node).is_some_and(|live| live.epoch == epoch) {
                self.sessions.remove(&node);
            }
            self.streams.end(&node);
        }
        self.tell_changed(NodeSessionChanged { node: node.to_string(), epoch, connected, reason }, ctx);
    }
}

/// How many sessions there are, and how many messages found no session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HubCounts {
    /// Nodes with a session.
    pub sessions: usize,
    /// Messages for nodes without one, since the start.
    pub dropped: u64,
}

/// Asks for [`HubCounts`].
pub struct CountSessions;

impl Message for CountSessions {
    type Result = HubCounts;
}

impl Handler<CountSessions> for CloudHub {
    type Result = MessageResult<CountSessions>;

    fn handle(&mut self, _: CountSessions, _: &mut Context<Self>) -> Self::Result {
        MessageResult(HubCounts { sessions: self.sessions.len(), dropped: self.dropped })
    }
}
