//! MetaServer: the Kubernetes API at the edge, out of the edge's own copy.
//!
//! | | |
//! |---|---|
//! | listens | HTTP on the loopback interface; `ObjectsChanged`, `StatusChanged`, `KindCompleted`, `ObjectsReloaded` (MetaManager), none may be lost; `LinkStateChanged` (EdgeHub, if there), the newest |
//! | asks | `ReadObjects`, `ReadStatuses`, `KeepNode` (MetaManager); `CallCloud` (EdgeHub, if there): what is not held here, and the node's own object, at each connection and every ten minutes; `ReleasePods` (Edged, if there) |
//! | stores | nothing: objects and statuses are MetaManager's. In memory every object it serves, and the last changes of each kind |
//! | offline | get, list and watch are as ever; writes are answered 503 |
//!
//! kubectl, kube-rs and client-go read it like an API server: discovery, lists with selectors and pages, tables, and
//! watches that go on where they ended. `kinds` says what is served, `copy` how an object comes to be as it is served,
//! `answer` what a request is answered; [`server`] is the HTTP around it. What is not held here, and every write, goes on
//! to the cloud's DynamicController ([`cloud`]), with resourceVersions that `versions` translates.
//!
//! Bounds: [`server::MAX_CONNECTIONS`] connections, [`cloud::MAX_ASKED`] requests that the cloud answers at a time, [`server::MAX_WATCHES`] watches, 4096 changes and 16 MiB of history a kind; a watch
//! that comes back to what is no longer in it is told `410 Expired`. Who lists a kind of which the node has not heard all
//! yet is told 503, not a part of it.

mod answer;
pub mod cloud;
mod copy;
mod kinds;
mod release;
pub mod server;
mod versions;

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use actix::{Actor, ActorFutureExt, AsyncContext, Handler, ResponseActFuture, WrapFuture};
use kubeedge_proto::{
    NodeName, resource,
    v1::{
        CallCloud, CallReply, Envelope, KeepNode, KindCompleted, KubeObject, LinkStateChanged, ObjectKey, ObjectQuery,
        ObjectsChanged, ObjectsReloaded, ReadObjects, ReadStatuses, ReleasePods, ResourceType, StatusChanged,
        call_reply, envelope::Body,
    },
};
use tokio_util::sync::CancellationToken;

use self::{
    answer::Copies,
    cloud::Cloud,
    copy::{Copy, Snapshot},
    server::Shared,
};
use crate::{
    serving::Serving,
    system::{AskError, Component, Context, Contract, Overflow, Port, Ports, Stage},
};

/// How long MetaManager may take to read what is on disk.
const STORE_WITHIN: Duration = Duration::from_secs(30);
/// Pause before it is asked again.
const READ_AGAIN: Duration = Duration::from_secs(2);
/// How long the cloud may take to answer.
const CLOUD_WITHIN: Duration = Duration::from_secs(10);
/// How often the node's own object is asked for while the link is up: its labels and taints are the cloud's.
const NODE_EVERY: Duration = Duration::from_secs(600);
/// When it is asked for again after it was not there, or not told: a new node registers first.
const NODE_AGAIN: Duration = Duration::from_secs(5);
/// Pauses before a port that was taken is tried again: each twice the one before.
const LISTEN_AGAIN: std::ops::RangeInclusive<Duration> = Duration::from_millis(200)..=Duration::from_secs(30);
/// resourceVersions that a life of the store has before the numbers of the next one begin.
const VERSIONS_OF_A_LIFE: u64 = 1 << 21;

/// How MetaServer works.
#[derive(Clone)]
pub struct MetaServerConfig {
    /// Where it listens: an address of the loopback interface, since whoever reaches it reads every Secret that is here.
    pub listen: SocketAddr,
    /// This node.
    pub node: NodeName,
    /// resourceVersions go on from here.
    pub versions: Versions,
}

/// The resourceVersions of one process. Clones count on together, so that a component that is built again gives no number
/// twice.
#[derive(Clone, Debug)]
pub struct Versions(Arc<AtomicU64>);

impl Versions {
    /// Those of a life of the store (`metamanager::Tables::life`): above all of the lives before.
    pub fn of_life(life: u64) -> Self {
        Self(Arc::new(AtomicU64::new(life.saturating_mul(VERSIONS_OF_A_LIFE))))
    }

    fn next(&self) -> u64 {
        self.0.fetch_add(1, Ordering::Relaxed) + 1
    }
}

/// The component. See the module's page.
pub struct MetaServer {
    config: MetaServerConfig,
    objects: Port<ReadObjects>,
    statuses: Port<ReadStatuses>,
    keep: Port<KeepNode>,
    call: Option<Port<CallCloud>>,
    release: Option<Port<ReleasePods>>,
    /// The cloud is asked for the node's object, or will be.
    asking: bool,
    copies: Arc<Copies>,
    online: Arc<AtomicBool>,
    serving: Option<Serving>,
    /// The pause before the next attempt to listen.
    listen_again: Duration,
}

impl MetaServer {
    /// Not listening yet.
    pub fn new(config: MetaServerConfig, ports: &Ports) -> Self {
        let copies = Copies::new(config.versions.next(), server::MAX_WATCHES, CancellationToken::new());
        Self {
            config,
            objects: ports.port(),
            statuses: ports.port(),
            keep: ports.port(),
            call: ports.optional(),
            release: ports.optional(),
            asking: false,
            copies: Arc::new(copies),
            online: Arc::default(),
            serving: None,
            listen_again: *LISTEN_AGAIN.start(),
        }
    }

    /// Reads every kind. Nothing else is handled meanwhile: what is told then comes after it.
    fn read_all(&mut self, ctx: &mut Context<Self>) {
        let (objects, statuses) = (self.objects.clone(), self.statuses.clone());
        let copies: Vec<Arc<Copy>> = self.copies.all().cloned().collect();
        let read = async move {
            let mut found = Vec::with_capacity(copies.len());
            for copy in copies {
                let snapshot = read(&objects, &statuses, kinds::type_of(copy.kind())).await?;
                found.push((copy, snapshot));
            }
            Ok::<_, AskError>(found)
        };
        ctx.wait(read.into_actor(self).map(|found, this, ctx| match found {
            Ok(found) => {
                for (copy, snapshot) in found {
                    copy.load(snapshot, &mut || this.config.versions.next());
                }
            }
            Err(error) => {
                tracing::warn!(again_in = ?READ_AGAIN, "what is on disk is not known yet: {error}");
                ctx.run_later(READ_AGAIN, |this, ctx| this.read_all(ctx));
            }
        }));
    }

    fn listen(&mut self, ctx: &mut Context<Self>) {
        let address = self.config.listen;
        let cloud = Cloud::new(self.call.clone());
        let (release, node) = (self.release.clone(), self.config.node.clone());
        let shared = Shared { copies: self.copies.clone(), online: self.online.clone(), cloud, release, node };
        match server::start(address, shared) {
            Ok((bound, serving)) => {
                tracing::info!(address = %bound, "MetaServer is served");
                self.serving = Some(serving);
            }
            Err(error) => {
                let again_in = self.listen_again;
                self.listen_again = (again_in * 2).min(*LISTEN_AGAIN.end());
                tracing::error!(
                    %address,
                    ?again_in,
                    "MetaServer is not served: {error}; modules.metaManager.metaServer.server chooses another port"
                );
                ctx.run_later(again_in, Self::listen);
            }
        }
    }

    /// Asks the cloud for this node's object, and has it kept.
    fn ask_for_node(&mut self, ctx: &mut Context<Self>) {
        let Some(call) = self.call.clone().filter(|_| !self.asking && self.online.load(Ordering::Relaxed)) else {
            return;
        };
        self.asking = true;
        let (keep, node) = (self.keep.clone(), self.config.node.clone());
        ctx.spawn(async move { keep_node(&call, &keep, &node).await }.into_actor(self).map(|kept, this, ctx| {
            this.asking = false;
            if let Err(why) = kept {
                tracing::debug!(again_in = ?NODE_AGAIN, "the node's own object is not known anew: {why}");
                ctx.run_later(NODE_AGAIN, Self::ask_for_node);
            }
        }));
    }

    /// The node reports its status when it has registered, which may be before its object is known here.
    fn recall_status(&self, copy: Arc<Copy>, ctx: &mut Context<Self>) {
        let (statuses, type_) = (self.statuses.clone(), kinds::type_of(copy.kind()));
        let asked = async move { statuses.ask(ReadStatuses { r#type: Some(type_) }, STORE_WITHIN).await };
        ctx.spawn(asked.into_actor(self).map(move |found, this, _| match found {
            Ok(list) => {
                for status in &list.statuses {
                    copy.report(status, &mut || this.config.versions.next());
                }
            }
            Err(error) => tracing::warn!("what the node reported of itself is not known: {error}"),
        }));
    }

    fn copy(&self, type_: Option<&ResourceType>) -> Option<&Arc<Copy>> {
        let type_ = type_?;
        self.copies.of(&type_.group, &type_.resource).filter(|copy| copy.kind().version == type_.version)
    }
}

/// The node's object as the cloud has it, on disk here.
async fn keep_node(call: &Port<CallCloud>, keep: &Port<KeepNode>, node: &NodeName) -> Result<(), String> {
    let query = ObjectQuery { r#type: Some(resource::nodes()), key: Some(ObjectKey::new("", node.as_str())) };
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let unix_ms = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
    let mut envelope = Envelope::new(MetaServer::NAME, unix_ms, Body::ObjectQuery(query));
    envelope.timeout_ms = u32::try_from(CLOUD_WITHIN.as_millis()).unwrap_or(u32::MAX);
    let asked = call.ask(CallCloud { envelope: Some(envelope) }, CLOUD_WITHIN).await;
    let object: KubeObject = match asked.map_err(|error| error.to_string())? {
        CallReply { result: Some(call_reply::Result::Object(object)) } => *object,
        CallReply { result: Some(call_reply::Result::Error(error)) } => return Err(error.message),
        _ => return Err("the cloud answered something else".to_owned()),
    };
    let kept = keep.ask(KeepNode { object: Some(object) }, STORE_WITHIN).await.map_err(|error| error.to_string())?;
    if kept.code == 0 { Ok(()) } else { Err(kept.reason) }
}

async fn read(
    objects: &Port<ReadObjects>,
    statuses: &Port<ReadStatuses>,
    type_: ResourceType,
) -> Result<Snapshot, AskError> {
    // Statuses first: one that is newer than its object's version here is told again, and known by its number.
    let statuses = match kinds::is_reported(&type_) {
        true => statuses.ask(ReadStatuses { r#type: Some(type_.clone()) }, STORE_WITHIN).await?.statuses,
        false => Vec::new(),
    };
    let list = objects.ask(ReadObjects { r#type: Some(type_), key: None }, STORE_WITHIN).await?;
    Ok(Snapshot { objects: list.objects, statuses, complete: list.complete })
}

impl Actor for MetaServer {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        self.read_all(ctx);
        self.listen(ctx);
        ctx.run_interval(NODE_EVERY, Self::ask_for_node);
    }
}

impl Component for MetaServer {
    const NAME: &'static str = "metaserver";
    const STAGE: Stage = Stage::Source;

    fn contract(contract: &mut Contract<Self>) {
        contract.listens::<ObjectsChanged>(Overflow::wait());
        contract.listens::<StatusChanged>(Overflow::wait());
        contract.listens::<KindCompleted>(Overflow::wait());
        contract.listens::<ObjectsReloaded>(Overflow::wait());
        contract.may_listen::<LinkStateChanged>(Overflow::newest_per_key(1, |_| ()));
        contract.asks::<ReadObjects>();
        contract.asks::<ReadStatuses>();
        contract.asks::<KeepNode>();
        contract.may_ask::<CallCloud>();
        contract.may_ask::<ReleasePods>();
    }

    fn stop(&mut self, _: &mut Context<Self>) -> ResponseActFuture<Self, ()> {
        self.copies.close();
        let serving = self.serving.take();
        let stop = async move {
            if let Some(serving) = serving {
                serving.stop().await;
            }
        };
        Box::pin(stop.into_actor(self))
    }
}

impl Drop for MetaServer {
    /// Watches of a life that ended end with it: they would never hear anything again.
    fn drop(&mut self) {
        self.copies.close();
    }
}

impl Handler<ObjectsReloaded> for MetaServer {
    type Result = ();

    fn handle(&mut self, _: ObjectsReloaded, ctx: &mut Context<Self>) {
        self.read_all(ctx);
    }
}

impl Handler<ObjectsChanged> for MetaServer {
    type Result = ();

    fn handle(&mut self, change: ObjectsChanged, ctx: &mut Context<Self>) {
        let Some(copy) = self.copy(change.r#type.as_ref()) else { return };
        let mut next = || self.config.versions.next();
        match (&change.object, &change.key) {
            (Some(object), _) => {
                copy.put(object, &mut next);
                if change.r#type.as_ref().is_some_and(kinds::is_own) {
                    copy.completed();
                    self.recall_status(copy.clone(), ctx);
                }
            }
            (None, Some(key)) => copy.remove(key, &change.uid, &mut next),
            (None, None) => {}
        }
    }
}

impl Handler<StatusChanged> for MetaServer {
    type Result = ();

    fn handle(&mut self, change: StatusChanged, _: &mut Context<Self>) {
        let Some(status) = change.status else { return };
        if let Some(copy) = self.copy(status.r#type.as_ref()) {
            copy.report(&status, &mut || self.config.versions.next());
        }
    }
}

impl Handler<KindCompleted> for MetaServer {
    type Result = ();

    fn handle(&mut self, complete: KindCompleted, _: &mut Context<Self>) {
        if let Some(copy) = self.copy(complete.r#type.as_ref()) {
            copy.completed();
        }
    }
}

impl Handler<LinkStateChanged> for MetaServer {
    type Result = ();

    fn handle(&mut self, change: LinkStateChanged, ctx: &mut Context<Self>) {
        self.online.store(change.connected, Ordering::Relaxed);
        self.ask_for_node(ctx);
    }
}
