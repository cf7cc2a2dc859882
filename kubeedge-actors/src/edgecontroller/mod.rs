//! EdgeController: what the API server wants of each node goes down, what nodes report goes up.
//!
//! | | |
//! |---|---|
//! | watches | bound pods (one watch for all nodes); the ConfigMaps and Secrets that they name, one by one while they are few, otherwise by one watch of the kind ([`follow`]) |
//! | answers | `QueryCluster`, `QueryDesired`, `ApplyFromNode`, `CallFromNode`, `NodeHeartbeat` (CloudHub), `LocatePod` (CloudStream) |
//! | listens | `NodeSessionChanged` (CloudHub); none may be lost |
//! | asks | `SendToNode`, `RecheckNodes` (CloudHub) |
//! | stores | nothing: everything is read again from the API server |
//!
//! [`desired`] decides what a node should hold, [`ownership`] what a node may say, [`sessions`] by which of its sessions,
//! [`writes`] and [`events`] what becomes of it; all are pure. A node that dropped Events says so with a gap marker: it is logged, counted and told as an Event on the Node.
//! [`list_watch`] and [`upstream`] are the shells around the API server, `from_node` answers what nodes send. A node reads
//! and writes only what belongs to it: its own Node and Lease, the pods bound to it, the ConfigMaps and Secrets those
//! name, and tokens for them.

mod authorization;
pub mod desired;
pub mod events;
pub mod follow;
mod from_node;
mod gateway;
pub mod ownership;
pub mod references;
mod services;
pub mod upstream;
mod watches;
pub mod writes;

use std::{
    collections::HashMap,
    time::{Duration, Instant, SystemTime},
};

use actix::{Actor, ActorFutureExt, AsyncContext, Handler, MessageResult, ResponseActFuture, WrapFuture};
use kubeedge_proto::v1::{
    ApplyFromNode, CallFromNode, Cluster, DesiredState, Envelope, LocatePod, NodeHeartbeat, NodeSessionChanged,
    QueryCluster, QueryDesired, RecheckNodes, SendToNode, envelope::Body,
};
use serde_json::Value;

pub use self::gateway::StreamGateway;
use self::{
    desired::{Desired, Effect},
    upstream::Upstream,
    watches::Watches,
};
pub use crate::controllers::{list_watch, sessions};
use crate::{
    controllers::sessions::Sessions,
    system::{Component, Context, Contract, Overflow, Port, Ports, Stage},
};

/// How long one message of a node may take to be written, all attempts together: below what CloudHub waits, so that the
/// node does not send again what is still being written.
const WRITE_WITHIN: Duration = Duration::from_secs(25);
/// How long a node's question for its desired state waits for what no list can bring: an object that cannot be read, say.
const COMPLETE_WITHIN: Duration = Duration::from_secs(5);
/// How long it waits for lists that are under way: an answer without them would be asked for again.
const LISTED_WITHIN: Duration = Duration::from_secs(12);
/// When who waits asks again, in milliseconds: not all at once.
const AGAIN_IN_MS: std::ops::Range<u32> = 300..900;
/// How often held pods are looked at.
const TICK: Duration = Duration::from_secs(1);
/// A Lease is renewed at most this often.
const RENEW_EVERY: Duration = Duration::from_secs(10);
/// A node whose Edged or runtime has made no progress for this long is not vouched for.
const PROGRESS_WITHIN: Duration = Duration::from_secs(180);

/// The component. See the module's page.
pub struct EdgeController {
    client: kube::Client,
    upstream: Upstream,
    desired: Desired,
    to_node: Port<SendToNode>,
    recheck: Port<RecheckNodes>,
    /// The pods were listed in this life.
    listed: bool,
    watches: Watches,
    leases: HashMap<String, Instant>,
    /// The session of each connected node: what an older one still wants to write is given up.
    sessions: Sessions,
    /// What goes to nodes, in order, at the end of this turn.
    outgoing: Vec<SendToNode>,
    leaving: bool,
    /// uid of the `kube-system` namespace, once read.
    cluster: String,
    started: Instant,
    /// Events that nodes said they had dropped, since the start; a marker told twice counts twice.
    events_dropped: u64,
}

impl EdgeController {
    /// A controller of the cluster that `client` talks to.
    pub fn new(client: kube::Client, ports: &Ports) -> Self {
        Self {
            upstream: Upstream::new(client.clone()),
            client,
            desired: Desired::default(),
            to_node: ports.port(),
            recheck: ports.port(),
            listed: false,
            watches: Watches::default(),
            leases: HashMap::new(),
            sessions: Sessions::default(),
            outgoing: Vec::new(),
            leaving: false,
            cluster: String::new(),
            started: Instant::now(),
            events_dropped: 0,
        }
    }

    /// Publishes this gateway on every node, as the address of its kubelet; see [`StreamGateway`].
    pub fn with_gateway(mut self, gateway: Option<StreamGateway>) -> Self {
        self.upstream.gateway = gateway;
        self
    }

    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    /// Carries out what follows from an event. The messages to nodes leave in order, before the next event is taken.
    fn carry_out(&mut self, effects: Vec<Effect>, ctx: &mut Context<Self>) {
        let (mut messages, mut compare) = (false, false);
        for effect in effects {
            let (node, body) = match effect {
                Effect::Watch(key) => {
                    self.want(key, ctx);
                    continue;
                }
                Effect::Unwatch(key) => {
                    self.unwant(&key, ctx);
                    continue;
                }
                Effect::Compare => {
                    tracing::warn!(
                        "the API server went back: nothing ends for its absence until its lists have caught up"
                    );
                    compare = true;
                    continue;
                }
                Effect::Upsert(node, upsert) => (node, Body::ObjectUpsert(upsert)),
                Effect::Tombstone(node, gone) => (node, Body::ObjectTombstone(gone)),
            };
            let envelope = Envelope::new(Self::NAME, unix_ms(), body);
            self.outgoing.push(SendToNode { node, envelope: Some(envelope) });
            messages = true;
        }
        if compare {
            self.recheck_nodes(ctx);
        }
        if messages && !std::mem::replace(&mut self.leaving, true) {
            ctx.wait(actix::fut::ready(()).into_actor(self).then(|(), this, _| this.leave().into_actor(this)));
        }
    }

    /// Sends what is to go to nodes. Two events in one turn have one wait: of two, the second would be first.
    fn leave(&mut self) -> impl Future<Output = ()> + use<> {
        self.leaving = false;
        let (messages, port) = (std::mem::take(&mut self.outgoing), self.to_node.clone());
        async move {
            for message in messages {
                if let Err(error) = port.tell(message).await {
                    tracing::debug!("CloudHub is stopping: {error}");
                    return;
                }
            }
        }
    }
}

impl Actor for EdgeController {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        self.watch_services(ctx);
        ctx.run_interval(TICK, |this, ctx| {
            let effects = this.desired.tick(this.now());
            this.carry_out(effects, ctx);
        });
    }
}

impl Component for EdgeController {
    const NAME: &'static str = "edgecontroller";
    /// It waits for room at CloudHub, which is to be found first if it is stuck.
    const HEARTBEAT: std::time::Duration = std::time::Duration::from_secs(120);
    const STAGE: Stage = Stage::Processor;

    fn contract(contract: &mut Contract<Self>) {
        contract.answers::<QueryCluster>();
        contract.answers::<QueryDesired>();
        contract.answers::<ApplyFromNode>();
        contract.answers::<CallFromNode>();
        contract.answers::<NodeHeartbeat>();
        contract.answers::<LocatePod>();
        contract.listens::<NodeSessionChanged>(Overflow::wait());
        contract.asks::<SendToNode>();
        contract.asks::<RecheckNodes>();
    }
}

impl EdgeController {
    /// What was deleted before this life began is not known here: nodes that are connected are compared anew.
    fn recheck_nodes(&self, ctx: &mut Context<Self>) {
        let port = self.recheck.clone();
        ctx.spawn(
            async move {
                if let Err(error) = port.tell(RecheckNodes {}).await {
                    tracing::debug!("CloudHub is stopping: {error}");
                }
            }
            .into_actor(self),
        );
    }
}

impl Handler<QueryCluster> for EdgeController {
    type Result = ResponseActFuture<Self, Cluster>;

    fn handle(&mut self, _: QueryCluster, _: &mut Context<Self>) -> Self::Result {
        let upstream = self.upstream.clone();
        let known = self.cluster.clone();
        Box::pin(
            async move { if known.is_empty() { upstream.cluster_uid().await.unwrap_or_default() } else { known } }
                .into_actor(self)
                .map(|uid, this, _| {
                    // Another question may have found it meanwhile.
                    if this.cluster.is_empty() {
                        this.cluster = uid;
                    }
                    Cluster { uid: this.cluster.clone(), resource_version: this.desired.version() }
                }),
        )
    }
}

impl Handler<QueryDesired> for EdgeController {
    type Result = MessageResult<QueryDesired>;

    /// While what the node needs is not complete, the asker is told when to ask again, for longer while a list is under way;
    /// at the end of its patience the answer is what there is, and the kinds say what is complete. No answer waits here:
    /// after a restart of the cloud thousands of nodes ask before the lists are there.
    fn handle(&mut self, QueryDesired { node, waited_ms }: QueryDesired, _: &mut Context<Self>) -> Self::Result {
        let within = if self.is_listing() { LISTED_WITHIN } else { COMPLETE_WITHIN };
        let waits = Duration::from_millis(waited_ms) < within && !self.desired.is_complete(&node);
        MessageResult(if waits {
            DesiredState { again_in_ms: rand::random_range(AGAIN_IN_MS), ..DesiredState::default() }
        } else {
            self.desired.snapshot(&node)
        })
    }
}

impl EdgeController {
    /// Whether the first list of the pods, or one of a whole kind that they name, is on its way.
    fn is_listing(&self) -> bool {
        !self.listed || self.watches.is_listing()
    }
}

fn ready<T: 'static>(value: T) -> std::pin::Pin<Box<dyn Future<Output = T>>> {
    Box::pin(std::future::ready(value))
}

fn version_of(object: &Value) -> u64 {
    object.pointer("/metadata/resourceVersion").and_then(Value::as_str).and_then(|v| v.parse().ok()).unwrap_or(0)
}

fn unix_ms() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |now| now.as_millis() as u64)
}

#[cfg(test)]
mod tests;
