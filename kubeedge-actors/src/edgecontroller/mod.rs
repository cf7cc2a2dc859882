//! EdgeController: what the API server wants of each node goes down, what nodes report goes up.
//!
//! | | |
//! |---|---|
//! | watches | bound pods (one watch for all nodes); ConfigMaps and Secrets one by one, counted by the pods that name them |
//! | answers | `QueryCluster`, `QueryDesired`, `ApplyFromNode`, `CallFromNode`, `NodeHeartbeat` (CloudHub), `LocatePod` (CloudStream) |
//! | listens | `NodeSessionChanged` (CloudHub); none may be lost |
//! | asks | `SendToNode`, `RecheckNodes` (CloudHub) |
//! | stores | nothing: everything is read again from the API server |
//!
//! [`desired`] decides what a node should hold, [`ownership`] what a node may say, [`events`] what an Event becomes; all
//! are pure. A node that dropped Events says so with a gap marker: it is logged, counted and told as an Event on the Node.
//! [`list_watch`] and [`upstream`] are the shells around the API server. A node reads and writes only what belongs to it: its own Node and
//! Lease, the pods bound to it, the ConfigMaps and Secrets those name, and tokens for them.

pub mod desired;
pub mod events;
mod gateway;
pub mod list_watch;
pub mod ownership;
pub mod references;
pub mod upstream;

use std::{
    collections::HashMap,
    time::{Duration, Instant, SystemTime},
};

use actix::{Actor, ActorFutureExt, AsyncContext, Handler, Message, ResponseActFuture, ResponseFuture, WrapFuture};
use kubeedge_proto::{
    NodeName, resource,
    v1::{
        ApplyFromNode, CallFromNode, CallReply, Cluster, DesiredState, Envelope, LocatePod, NodeHeartbeat,
        NodeSessionChanged, ObjectKey, PodLocation, QueryCluster, QueryDesired, RecheckNodes, SendToNode, Settled,
        envelope::Body,
    },
};
use serde_json::Value;
use tokio::sync::oneshot;
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

pub use self::gateway::StreamGateway;
use self::{
    desired::{Desired, Effect},
    events::events_dropped,
    list_watch::{Change, Scope},
    ownership::{Owner, may_tell},
    references::{ConfigKey, ConfigKind},
    upstream::Upstream,
};
use crate::system::{Component, Context, Contract, Overflow, Port, Ports, Stage};

/// How long one message of a node may take to be written, all attempts together: below what CloudHub waits, so that the
/// node does not send again what is still being written.
const WRITE_WITHIN: Duration = Duration::from_secs(25);
/// How long a node's question for its desired state waits for the lists to be complete.
const COMPLETE_WITHIN: Duration = Duration::from_secs(5);
/// How often held pods and waiting questions are looked at.
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
    watches: HashMap<ConfigKey, AbortOnDropHandle<()>>,
    pod_watch: Option<AbortOnDropHandle<()>>,
    leases: HashMap<String, Instant>,
    /// The session of each connected node: what an older one still wants to write is given up.
    sessions: HashMap<String, NodeSession>,
    questions: Vec<Question>,
    /// uid of the `kube-system` namespace, once read.
    cluster: String,
    started: Instant,
    /// Events that nodes said they had dropped, since the start; a marker told twice counts twice.
    events_dropped: u64,
}

/// A node's session, as far as writing for it goes.
struct NodeSession {
    epoch: u64,
    /// Cancelled when the session has ended or another one has taken its place.
    ended: CancellationToken,
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
            watches: HashMap::new(),
            pod_watch: None,
            leases: HashMap::new(),
            sessions: HashMap::new(),
            questions: Vec::new(),
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
        let mut messages = Vec::new();
        for effect in effects {
            let (node, body) = match effect {
                Effect::Watch(key) => {
                    let watch = self.watch_config(key.clone(), ctx);
                    self.watches.insert(key, watch);
                    continue;
                }
                Effect::Unwatch(key) => {
                    self.watches.remove(&key);
                    continue;
                }
                Effect::Upsert(node, upsert) => (node, Body::ObjectUpsert(upsert)),
                Effect::Tombstone(node, gone) => (node, Body::ObjectTombstone(gone)),
            };
            let envelope = Envelope::new(Self::NAME, unix_ms(), body);
            messages.push(SendToNode { node, envelope: Some(envelope) });
        }
        if messages.is_empty() {
            return;
        }
        let port = self.to_node.clone();
        ctx.wait(
            async move {
                for message in messages {
                    if let Err(error) = port.tell(message).await {
                        tracing::debug!("CloudHub is stopping: {error}");
                        return;
                    }
                }
            }
            .into_actor(self),
        );
    }

    fn watch_config(&self, key: ConfigKey, ctx: &mut Context<Self>) -> AbortOnDropHandle<()> {
        let type_ = match key.kind {
            ConfigKind::ConfigMap => resource::config_maps(),
            ConfigKind::Secret => resource::secrets(),
        };
        let scope = Scope { path: type_.path(&key.namespace, None), fields: format!("metadata.name={}", key.name) };
        self.watch(scope, Some(key), ctx)
    }

    fn watch(&self, scope: Scope, key: Option<ConfigKey>, ctx: &mut Context<Self>) -> AbortOnDropHandle<()> {
        let address = ctx.address();
        let client = self.client.clone();
        AbortOnDropHandle::new(tokio::task::spawn_local(list_watch::run(client, scope, move |change| {
            // Waits for room in the queue and for the event to be handled: the watch goes as fast as we do. An error
            // means that this component was stopped or rebuilt; it begins its watches anew.
            let sent = address.send(Watched { key: key.clone(), change });
            async move { sent.await.is_ok() }
        })))
    }
}

/// A watch's news. `key` is `None` for the pod watch.
struct Watched {
    key: Option<ConfigKey>,
    change: Change,
}

impl Message for Watched {
    type Result = ();
}

impl Actor for EdgeController {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        let scope = Scope { path: resource::pods().path("", None), fields: "spec.nodeName!=".into() };
        self.pod_watch = Some(self.watch(scope, None, ctx));
        ctx.run_interval(TICK, |this, ctx| {
            let effects = this.desired.tick(this.now());
            this.carry_out(effects, ctx);
            this.answer_questions();
        });
    }
}

impl Component for EdgeController {
    const NAME: &'static str = "edgecontroller";
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

impl Handler<Watched> for EdgeController {
    type Result = ();

    fn handle(&mut self, Watched { key, change }: Watched, ctx: &mut Context<Self>) {
        let now = self.now();
        let effects = match (key, change) {
            (None, Change::Replaced(pods, as_of)) => self.desired.pods_replaced(now, pods, as_of),
            (None, Change::Applied(pod)) => self.desired.pod_applied(now, pod),
            (None, Change::Deleted(pod)) => self.desired.pod_deleted(&pod),
            (None, Change::Bookmark(version)) => {
                self.desired.pods_bookmark(version);
                Vec::new()
            }
            (Some(key), Change::Replaced(found, as_of)) => {
                self.desired.config_known(&key, found.into_iter().next(), as_of)
            }
            (Some(key), Change::Applied(object)) => {
                let version = version_of(&object);
                self.desired.config_known(&key, Some(object), version)
            }
            (Some(key), Change::Deleted(object)) => self.desired.config_known(&key, None, version_of(&object)),
            (Some(key), Change::Bookmark(version)) => {
                self.desired.config_bookmark(&key, version);
                Vec::new()
            }
        };
        self.carry_out(effects, ctx);
        if self.desired.version() > 0 && !std::mem::replace(&mut self.listed, true) {
            self.recheck_nodes(ctx);
        }
        self.answer_questions();
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
    type Result = ResponseFuture<DesiredState>;

    /// Waits a while for the lists to be complete, then answers with what there is: the kinds say whether they are.
    fn handle(&mut self, QueryDesired { node }: QueryDesired, _: &mut Context<Self>) -> Self::Result {
        if self.desired.is_complete(&node) {
            return ready(self.desired.snapshot(&node));
        }
        let (answer, answered) = oneshot::channel();
        self.questions.push(Question { node, until: self.now() + COMPLETE_WITHIN, answer });
        // The sender goes away only when this component is rebuilt: then nothing is known, and nothing complete.
        Box::pin(async move { answered.await.unwrap_or_default() })
    }
}

/// A node's question that waits for the lists. At most one per session, and CloudHub bounds the sessions.
struct Question {
    node: String,
    until: Duration,
    answer: oneshot::Sender<DesiredState>,
}

impl EdgeController {
    fn answer_questions(&mut self) {
        let now = self.now();
        for question in std::mem::take(&mut self.questions) {
            if question.answer.is_closed() {
                continue;
            }
            if self.desired.is_complete(&question.node) || question.until <= now {
                // The asker may be gone: then nobody needs the answer.
                let _ = question.answer.send(self.desired.snapshot(&question.node));
            } else {
                self.questions.push(question);
            }
        }
    }
}

impl Handler<ApplyFromNode> for EdgeController {
    type Result = ResponseFuture<Settled>;

    /// Writes what a node reports, for as long as the session it came by is the node's. An attempt of an older session
    /// that is still under way must not overwrite what the newer one has written.
    fn handle(&mut self, message: ApplyFromNode, _: &mut Context<Self>) -> Self::Result {
        let Some(ended) = self.session(&message.node, message.epoch) else {
            return ready(Settled::rejected(503, "a newer session of this node has taken over"));
        };
        let write = self.write(message);
        Box::pin(async move {
            tokio::select! {
                biased;
                () = ended.cancelled() => Settled::rejected(503, "the session has ended"),
                written = tokio::time::timeout(WRITE_WITHIN, write) => written.unwrap_or_else(|_| {
                    Settled::rejected(503, format!("not written within {WRITE_WITHIN:?}"))
                }),
            }
        })
    }
}

impl EdgeController {
    /// Ends with the session of this epoch; `None` when a newer one has been seen.
    fn session(&mut self, node: &str, epoch: u64) -> Option<CancellationToken> {
        let known = self.sessions.get(node);
        if known.is_some_and(|known| known.epoch > epoch) {
            return None;
        }
        if known.is_none_or(|known| known.epoch < epoch) {
            self.begin_session(node, epoch);
        }
        self.sessions.get(node).map(|session| session.ended.clone())
    }

    fn begin_session(&mut self, node: &str, epoch: u64) {
        let session = NodeSession { epoch, ended: CancellationToken::new() };
        if let Some(old) = self.sessions.insert(node.to_owned(), session) {
            old.ended.cancel();
        }
    }

    fn write(&mut self, message: ApplyFromNode) -> ResponseFuture<Settled> {
        let upstream = self.upstream.clone();
        let node: NodeName = match message.node.parse() {
            Ok(node) => node,
            Err(error) => return ready(Settled::rejected(400, format!("{error}"))),
        };
        let Some(Envelope { id, time_unix_ms, body: Some(body), .. }) = message.envelope else {
            return ready(Settled::rejected(501, "this version does not know the message's type"));
        };
        match body {
            Body::StatusUpdate(update) => {
                let (Some(type_), Some(key)) = (&update.r#type, update.key.clone()) else {
                    return ready(Settled::rejected(400, "a StatusUpdate names no object"));
                };
                if *type_ == resource::nodes() && key.namespace.is_empty() && key.name == node.as_str() {
                    return Box::pin(async move { upstream.write_status(Owner::Node, &update).await });
                }
                if *type_ != resource::pods() {
                    return ready(Settled::rejected(
                        403,
                        format!("node {node} may not write the status of {type_} {key}"),
                    ));
                }
                let bound = self.binding(&key);
                Box::pin(async move {
                    match check_pod(&upstream, &node, &key, &update.uid, bound).await {
                        Ok(()) => upstream.write_status(Owner::Pod, &update).await,
                        Err(settled) => settled,
                    }
                })
            }
            Body::PodTerminated(pod) => {
                let Some(key) = pod.key.clone() else {
                    return ready(Settled::rejected(400, "a PodTerminated names no pod"));
                };
                let bound = self.binding(&key);
                Box::pin(async move {
                    match check_pod(&upstream, &node, &key, &pod.uid, bound).await {
                        Ok(()) => upstream.pod_terminated(&pod).await,
                        Err(settled) => settled,
                    }
                })
            }
            Body::KubernetesEvent(event) => {
                let Some(Ok(event)) = event.event.map(|object| serde_json::from_slice::<Value>(&object.json)) else {
                    return ready(Settled::rejected(400, "a KubernetesEvent carries no event in JSON"));
                };
                let node_of =
                    |namespace: &str, name: &str| self.desired.pod(namespace, name).map(|(node, _)| node.to_owned());
                match may_tell(node.as_str(), &event, node_of) {
                    Ok(()) => Box::pin(async move { upstream.event(&node, event).await }),
                    Err(why) => ready(Settled::rejected(403, why)),
                }
            }
            Body::GapMarker(gap) => {
                let (dropped, bytes, bound) = (gap.dropped_count, gap.dropped_bytes, gap.bound.as_str());
                self.events_dropped = self.events_dropped.saturating_add(dropped);
                let total = self.events_dropped;
                tracing::warn!(%node, dropped, bytes, bound, total, "the node's outbox has dropped events");
                let event = events_dropped(&node, &id, &gap, time_unix_ms);
                Box::pin(async move { upstream.event(&node, event).await })
            }
            _ => ready(Settled::rejected(501, "EdgeController takes no messages of this type")),
        }
    }
}

impl Handler<CallFromNode> for EdgeController {
    type Result = ResponseFuture<CallReply>;

    fn handle(&mut self, message: CallFromNode, _: &mut Context<Self>) -> Self::Result {
        let upstream = self.upstream.clone();
        let node: NodeName = match message.node.parse() {
            Ok(node) => node,
            Err(error) => return ready(CallReply::error(400, "BadRequest", format!("{error}"))),
        };
        match message.envelope.and_then(|envelope| envelope.body) {
            Some(Body::RegisterNode(register)) => {
                Box::pin(async move { upstream.register_node(&node, &register.node_json).await })
            }
            Some(Body::RequestToken(wanted)) => {
                let key = ObjectKey::new(&wanted.namespace, &wanted.pod_name);
                let bound = self.binding(&key);
                Box::pin(async move {
                    match check_pod(&upstream, &node, &key, &wanted.pod_uid, bound).await {
                        Ok(()) => upstream.request_token(&wanted).await,
                        Err(settled) => CallReply::error(settled.code, "Forbidden", settled.reason),
                    }
                })
            }
            Some(Body::ObjectQuery(query)) => {
                let (Some(type_), Some(key)) = (query.r#type, query.key) else {
                    return ready(CallReply::error(400, "BadRequest", "an ObjectQuery names no object"));
                };
                if !self.may_read(&node, &type_, &key) {
                    let text = format!("node {node} may not read {type_} {key}: no pod bound to it names it");
                    return ready(CallReply::error(403, "Forbidden", text));
                }
                Box::pin(async move { upstream.get(&type_, &key).await })
            }
            _ => ready(CallReply::error(501, "Unsupported", "this version does not answer calls of this type")),
        }
    }
}

impl EdgeController {
    /// Where a pod is bound, as far as the watch knows.
    fn binding(&self, key: &ObjectKey) -> Option<(String, String)> {
        self.desired.pod(&key.namespace, &key.name).map(|(node, uid)| (node.to_owned(), uid.to_owned()))
    }

    fn may_read(&self, node: &NodeName, type_: &kubeedge_proto::v1::ResourceType, key: &ObjectKey) -> bool {
        let config = |kind| {
            let key = ConfigKey { kind, namespace: key.namespace.clone(), name: key.name.clone() };
            self.desired.names(node.as_str(), &key)
        };
        if *type_ == resource::nodes() {
            key.namespace.is_empty() && key.name == node.as_str()
        } else if *type_ == resource::pods() {
            self.desired.pod(&key.namespace, &key.name).is_some_and(|(bound, _)| bound == node.as_str())
        } else if *type_ == resource::config_maps() {
            config(ConfigKind::ConfigMap)
        } else if *type_ == resource::secrets() {
            config(ConfigKind::Secret)
        } else {
            false
        }
    }
}

impl Handler<LocatePod> for EdgeController {
    type Result = ResponseFuture<PodLocation>;

    fn handle(&mut self, LocatePod { pod }: LocatePod, _: &mut Context<Self>) -> Self::Result {
        let Some(key) = pod.filter(|key| !key.namespace.is_empty() && key.is_valid()) else {
            return ready(PodLocation { code: 400, message: "no name of a pod".into(), ..PodLocation::default() });
        };
        let found = |(node, uid)| PodLocation { code: 200, message: String::new(), node, uid };
        if let Some(bound) = self.binding(&key) {
            return ready(found(bound));
        }
        // The watch may be behind, and knows only pods that are bound.
        let upstream = self.upstream.clone();
        Box::pin(async move {
            match upstream.pod_binding(&key).await {
                Ok(Some(bound)) => found(bound),
                Ok(None) => {
                    let message = format!("pod {key} does not exist");
                    PodLocation { code: 404, message, ..PodLocation::default() }
                }
                Err(refused) => PodLocation { code: refused.code, message: refused.reason, ..PodLocation::default() },
            }
        })
    }
}

/// Lets through what concerns a pod that is bound to this node and is still the same pod.
async fn check_pod(
    upstream: &Upstream,
    node: &NodeName,
    key: &ObjectKey,
    uid: &str,
    bound: Option<(String, String)>,
) -> Result<(), Settled> {
    if key.namespace.is_empty() || !key.is_valid() {
        return Err(Settled::rejected(400, format!("{key:?} is not the name of a pod")));
    }
    // The watch may be behind what the node knows already.
    let bound = match bound {
        Some(bound) => Some(bound),
        None => upstream.pod_binding(key).await?,
    };
    match bound {
        None => Err(Settled::rejected(404, format!("pod {key} is gone"))),
        Some((other, _)) if other != node.as_str() => {
            Err(Settled::rejected(403, format!("pod {key} is not bound to node {node}")))
        }
        Some((_, other)) if other != uid => Err(Settled::superseded()),
        Some(_) => Ok(()),
    }
}

impl Handler<NodeHeartbeat> for EdgeController {
    type Result = ResponseFuture<()>;

    /// Renews the node's Lease, as long as the node reports progress.
    fn handle(&mut self, beat: NodeHeartbeat, _: &mut Context<Self>) -> Self::Result {
        let Ok(node) = beat.node.parse::<NodeName>() else { return ready(()) };
        let now = Instant::now();
        let due = self.leases.get(&beat.node).is_none_or(|last| now.duration_since(*last) >= RENEW_EVERY / 2);
        if !due {
            return ready(());
        }
        if Duration::from_millis(beat.progress_age_ms) > PROGRESS_WITHIN {
            tracing::warn!(%node, age_ms = beat.progress_age_ms, "no progress at the node: its lease is not renewed");
            return ready(());
        }
        self.leases.insert(beat.node, now);
        let upstream = self.upstream.clone();
        Box::pin(async move {
            let time = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string();
            if let Err(error) = upstream.renew_lease(&node, None, &time).await {
                tracing::warn!(%node, "the node's lease could not be renewed: {error}");
            }
        })
    }
}

impl Handler<NodeSessionChanged> for EdgeController {
    type Result = ();

    fn handle(&mut self, change: NodeSessionChanged, _: &mut Context<Self>) {
        let known = self.sessions.get(&change.node).map(|session| session.epoch);
        if change.connected {
            // What CloudHub says stands, also when it counts anew.
            if known != Some(change.epoch) {
                self.begin_session(&change.node, change.epoch);
            }
        } else if known.is_none_or(|known| known <= change.epoch) {
            self.leases.remove(&change.node);
            if let Some(session) = self.sessions.remove(&change.node) {
                session.ended.cancel();
            }
        }
        tracing::info!(
            node = change.node,
            epoch = change.epoch,
            connected = change.connected,
            reason = change.reason,
            "node session"
        );
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
