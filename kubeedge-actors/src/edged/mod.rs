//! Edged: the part of the node that runs pods.
//!
//! | | |
//! |---|---|
//! | answers | `QueryProgress` (EdgeHub), `LocateContainerLog`, `OpenContainerStream` (EdgeStream), `ListPods` and `QueryStats` (KubeletApi), `ShutDownPods` (the program), `ReleasePods` (MetaServer) |
//! | listens | `ObjectsChanged`, `KindCompleted`, `ObjectsReloaded` (MetaManager), in order and none lost; `LinkStateChanged`, the newest, where there is an EdgeHub |
//! | asks | `ReadObjects`, `ReportStatus` (MetaManager); `CallCloud`, `PublishEvent` where there is an EdgeHub |
//! | stores | in files of the root directory: which pods have failed ([`failures`]), who has which devices ([`devices`]), which held pods were released ([`hold`]); what is wanted is MetaManager's, what is there is the container runtime's |
//! | offline | everything works but new tokens and pulls; what is reported waits with MetaManager, [`events`] in EdgeHub's outbox, within its bounds |
//!
//! It is a reconciler. One [`worker`] looks after one pod: it looks at the runtime, [`lifecycle::decide`]s, acts,
//! reports. The [`book`] says which pods there are; a [`relist`], at every event of the runtime or every second, says whom
//! to look at. After a restart of edgecore the workers find containers by their pod's uid and go on from there. Nothing is
//! stopped because its object is absent until the set of pods is known to be complete.

pub mod admission;
pub mod book;
pub mod credentials;
pub mod cri;
pub mod devices;
pub mod downward;
pub mod env;
pub mod events;
pub mod eviction;
mod expansion;
pub mod facts;
pub mod failures;
#[cfg(any(test, feature = "fake-runtime"))]
pub mod fake;
mod groups;
pub mod hold;
pub mod hooks;
pub mod housekeeping;
pub mod image_name;
pub mod labels;
pub mod lifecycle;
mod listing;
mod loading;
mod log_files;
mod news;
pub mod node;
mod node_api;
pub mod objects;
mod prepare;
pub mod probes;
pub mod provision;
pub mod quantity;
mod references;
pub mod registrar;
pub mod relist;
mod reporter;
mod resize;
pub mod resources;
pub mod runtime;
pub mod runtime_events;
mod service_links;
mod shutdown;
pub mod source;
mod state_file;
pub mod static_pods;
pub mod stats;
pub mod status;
mod streams;
pub mod user_namespaces;
pub mod volumes;
pub mod worker;

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use actix::{Actor, ActorFutureExt, AsyncContext, WrapFuture};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kubeedge_proto::v1::{
    CallCloud, KindCompleted, LinkStateChanged, ListPods, LocateContainerLog, ObjectsChanged, ObjectsReloaded,
    OpenContainerStream, PublishEvent, QueryProgress, QueryStats, ReadObjects, ReleasePods, ReportStatus, ShutDownPods,
};
use tokio::sync::{Semaphore, watch};
use tokio_util::task::AbortOnDropHandle;

pub use expansion::expand;
pub use node_api::StatusBoard;
use prepare::existing;
pub use prepare::{EdgedConfig, PrepareError, Prepared};
pub use reporter::PortReporter;

use self::{
    book::{Book, Effect},
    devices::DeviceManager,
    events::sender::EventSender,
    eviction::Pressure,
    failures::Failures,
    housekeeping::{Housekeeper, ImageCollector},
    provision::NodeProvision,
    registrar::Registrar,
    relist::Relist,
    resize::Resizes,
    source::PortObjects,
    static_pods::{Mirrors, StaticPods},
    stats::Sampler,
    status::NodeFacts,
    worker::{Bell, Order, Shared},
};
use crate::system::{Component, Context, Contract, Overflow, Port, Ports, Stage};

/// Pause before something that failed at the start is tried again.
const AGAIN: Duration = Duration::from_secs(1);
/// How often pods with service account tokens are looked at: whether one is due.
const TOKENS_EVERY: Duration = Duration::from_secs(60);
/// When the link was down this long or longer, the cloud may have marked the node's pods as not ready: each of them is
/// then reported again. A break may be noticed half a minute late, and the node's lease lasts 40 s.
const REASSERT_AFTER: Duration = Duration::from_secs(5);
/// Pause before a worker that broke is started anew.
const WORKER_AGAIN: Duration = Duration::from_secs(5);

/// The component. See the module's page.
pub struct Edged {
    prepared: Prepared,
    shared: Arc<Shared>,
    provision: Arc<NodeProvision>,
    reporter: PortReporter,
    /// The statuses that went through the reporter.
    board: StatusBoard,
    sampler: Sampler,
    read: Port<ReadObjects>,
    /// Without EdgeHub there is no cloud to register with.
    call: Option<Port<CallCloud>>,
    report: Port<ReportStatus>,
    /// Until it runs.
    event_sender: Option<EventSender>,
    telling: Option<AbortOnDropHandle<()>>,
    node: watch::Sender<NodeFacts>,
    connected: watch::Sender<bool>,
    /// Since when the link is down, once it was up.
    down_since: Option<tokio::time::Instant>,
    progress: registrar::Progress,
    book: Book,
    /// The pods are to be read once more when they have been read.
    load_again: bool,
    relist: Relist,
    workers: HashMap<String, Worker>,
    /// Dropped with this value: an Edged that is built again begins anew and adopts what it finds.
    registrar: Option<AbortOnDropHandle<()>>,
    /// What hears the runtime's events.
    listening: Option<AbortOnDropHandle<()>>,
    housekeeper: Option<AbortOnDropHandle<()>>,
    images: Arc<ImageCollector>,
    eviction: eviction::State,
    /// What the node is short of, for its status.
    pressure: watch::Sender<Pressure>,
    failures: Failures,
    /// Pods whose spec wants other resources than they can be given now.
    resizes: Resizes,
    /// The machine goes down: nobody is let in, and the node is not ready.
    going_down: watch::Sender<bool>,
    mirrors: Mirrors,
    static_pods: StaticPods,
    held: hold::Held,
    devices: DeviceManager,
    /// The shares of the burstable class, for whoever keeps the control groups.
    burstable: watch::Sender<i64>,
    groups: Option<AbortOnDropHandle<()>>,
    /// Dropped, no device plugin can register.
    plugins: Option<AbortOnDropHandle<()>>,
    /// Whether directories that pods of earlier lives left were looked for.
    swept: bool,
    /// Pods that an earlier life of edgecore took up: those that have a folder.
    taken_up: HashSet<String>,
}

/// A pod's worker, as Edged holds it. Dropped, the pod stays as it is.
struct Worker {
    orders: watch::Sender<Order>,
    bell: Arc<Bell>,
    _task: AbortOnDropHandle<()>,
}

impl Edged {
    /// Edged on a machine that was read.
    pub fn new(prepared: Prepared, ports: &Ports) -> Self {
        let (read, call, report) = (ports.port(), ports.optional(), ports.port());
        let objects = Arc::new(PortObjects::new(Port::clone(&read), call.clone()));
        let devices = DeviceManager::load(&prepared.setup.root_dir);
        let provision = NodeProvision::new(prepared.setup.clone(), objects)
            .with_devices(devices.clone())
            .with_runtime(Arc::clone(&prepared.runtime));
        let provision = Arc::new(provision);
        // One queue for as long as this value lives; without EdgeHub there is nobody to tell.
        let publish = ports.optional().filter(|_| prepared.report_events);
        let events = publish.map(|port| events::sender::channel(prepared.setup.node_name.clone(), port));
        let (sink, sender) = events.unzip();
        let (board, mirrors) = (StatusBoard::default(), Mirrors::default());
        let reporter = PortReporter::new(Port::clone(&report), sink).noting(board.clone()).mirroring(mirrors.clone());
        let (name, runtime) = (prepared.setup.node_name.clone(), Arc::clone(&prepared.runtime));
        let sampler = Sampler::new(name, runtime, prepared.paths.clone());
        let failures = Failures::load(&prepared.setup.root_dir);
        let resizes = Resizes::load(&prepared.setup.root_dir);
        let images = Arc::new(ImageCollector::new(Arc::clone(&prepared.runtime), prepared.housekeeping.images.clone()));
        let host_ips = prepared.setup.host_ips.iter().map(ToString::to_string).collect();
        let (node, facts) = watch::channel(NodeFacts { host_ips, runtime_name: String::new() });
        let shared = Arc::new(Shared {
            runtime: Arc::clone(&prepared.runtime),
            provision: Arc::<NodeProvision>::clone(&provision),
            reporter: Arc::new(reporter.clone()),
            clock: Arc::new(Timestamp::now),
            node: facts,
            pulls: Semaphore::new(prepared.parallel_pulls),
        });
        Self {
            prepared,
            shared,
            provision,
            reporter,
            board,
            sampler,
            read,
            call,
            report,
            event_sender: sender,
            telling: None,
            node,
            connected: watch::channel(false).0,
            down_since: None,
            progress: registrar::Progress::default(),
            book: Book::new(),
            load_again: false,
            relist: Relist::default(),
            workers: HashMap::new(),
            registrar: None,
            listening: None,
            housekeeper: None,
            images,
            eviction: eviction::State::default(),
            pressure: watch::channel(Pressure::default()).0,
            failures,
            resizes,
            going_down: watch::channel(false).0,
            mirrors,
            static_pods: StaticPods::default(),
            held: hold::Held::default(),
            devices,
            burstable: watch::channel(0).0,
            groups: None,
            plugins: None,
            swept: false,
            taken_up: HashSet::new(),
        }
    }

    /// Asks the runtime for its name, and where it keeps images, until it answers.
    fn introduce(&self, ctx: &mut Context<Self>) {
        let (runtime, node) = (Arc::clone(&self.shared.runtime), self.node.clone());
        ctx.spawn(
            async move {
                loop {
                    match runtime.version().await {
                        Ok(version) => {
                            tracing::info!(name = version.name, version = version.version, "container runtime");
                            node.send_modify(|facts| facts.runtime_name = version.name);
                            break;
                        }
                        Err(error) => tracing::warn!("{error}"),
                    }
                    tokio::time::sleep(AGAIN).await;
                }
                runtime.image_disk().await
            }
            .into_actor(self)
            .map(|disk, this, _| match disk {
                Ok(disk) => this.prepared.paths.image_dir = existing(&disk.mountpoint),
                Err(error) => {
                    let path = this.prepared.paths.image_dir.display();
                    tracing::warn!(%path, "where images are is not known, the disk of this path is watched: {error}");
                }
            }),
        );
    }

    fn apply(&mut self, ctx: &mut Context<Self>, effects: Vec<Effect>) {
        let changed = !effects.is_empty();
        self.admit(ctx, &effects);
        for effect in effects {
            match effect {
                Effect::Start { uid, order } if self.hold(ctx, &uid, &order) => {}
                Effect::Start { uid, order } => self.start(ctx, uid, order),
                Effect::Order { uid, order } if self.order_held(ctx, &uid, &order) => {}
                Effect::Order { uid, order } => {
                    if let Some(worker) = self.workers.get(&uid) {
                        worker.orders.send_replace(self.judged(order));
                    }
                }
            }
        }
        if changed {
            self.share_out();
        }
    }

    /// The order, with what is known of the pod's failure.
    fn judged(&self, order: Order) -> Order {
        let uid = &order.plan.uid;
        Order { failed: self.failures.of(uid), pending_resize: self.resizes.of(uid), ..order }
    }

    fn start(&mut self, ctx: &mut Context<Self>, uid: String, order: Order) {
        if self.failures.is_pending(&uid) {
            // It begins once its failure is on disk, to report that.
            return;
        }
        let (orders, received) = watch::channel(self.judged(order));
        let bell = Arc::new(Bell::default());
        let (done, ended) = tokio::sync::oneshot::channel();
        let run = worker::run(Arc::clone(&self.shared), received, Arc::clone(&bell));
        let task = tokio::spawn(async move {
            run.await;
            // Edged itself may be going down.
            let _ = done.send(());
        });
        self.workers.insert(uid.clone(), Worker { orders, bell, _task: AbortOnDropHandle::new(task) });
        ctx.spawn(ended.into_actor(self).map(move |ended, this, ctx| match ended {
            Ok(()) => {
                this.workers.remove(&uid);
                this.board.forget(&uid);
                this.failures.forget(&uid);
                this.forget_resize(ctx, &uid);
                this.taken_up.remove(&uid);
                this.devices.release(&uid);
                this.forget_release(&uid);
                let effects = this.book.worker_ended(&uid);
                this.static_pod_ended(ctx, &uid);
                this.apply(ctx, effects);
                this.share_out();
                this.retry_resizes(ctx);
            }
            // The worker panicked; the pod is as it was. What is wanted of it stands in the book.
            Err(_) => {
                tracing::error!(uid, "a pod's worker broke; another one begins in {WORKER_AGAIN:?}");
                this.workers.remove(&uid);
                ctx.run_later(WORKER_AGAIN, move |this, ctx| {
                    if let Some(order) = this.book.order(&uid).cloned() {
                        this.start(ctx, uid, order);
                    }
                });
            }
        }));
    }

    fn refresh_where(&self, names: impl Fn(&Pod) -> bool) {
        for (uid, pod) in self.book.pods() {
            if names(pod)
                && let Some(worker) = self.workers.get(uid)
            {
                worker.bell.refresh();
            }
        }
    }
}

impl Actor for Edged {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        if let Some(sender) = self.event_sender.take() {
            self.telling = Some(AbortOnDropHandle::new(tokio::spawn(sender.run())));
        }
        self.introduce(ctx);
        self.watch_manifests(ctx);
        self.load(ctx);
        self.begin_to_list(ctx);
        let housekeeper = Housekeeper {
            runtime: Arc::clone(&self.shared.runtime),
            log_dir: self.prepared.setup.log_dir.clone(),
            policy: self.prepared.housekeeping.clone(),
            images: Arc::clone(&self.images),
            reporter: Arc::new(self.reporter.clone()),
            node: self.prepared.setup.node_name.clone(),
        };
        self.housekeeper = Some(AbortOnDropHandle::new(tokio::spawn(housekeeper.run())));
        ctx.run_interval(TOKENS_EVERY, |this, ctx| {
            this.refresh_where(references::has_token);
            // Pods that ended by themselves have no share any more.
            this.share_out();
            this.retry_resizes(ctx);
        });
        self.begin_to_keep_groups(ctx);
        self.begin_to_watch_pressure(ctx);
        self.plugins = Some(AbortOnDropHandle::new(tokio::spawn(self.devices.clone().run())));
        let Some(call) = self.call.clone() else {
            return tracing::info!("there is no EdgeHub: this node registers with no cloud");
        };
        let registrar = Registrar::new(
            self.prepared.settings.clone(),
            self.prepared.paths.clone(),
            Arc::clone(&self.shared.runtime),
            self.prepared.setup.host_ips.clone(),
            call,
            self.report.clone(),
        );
        let registrar = registrar
            .pressed(self.pressure.subscribe())
            .with_devices(self.devices.clone())
            .telling(Arc::new(self.reporter.clone()))
            .going_down(self.going_down.subscribe());
        let run = registrar.noting(self.progress.clone()).run(self.connected.subscribe());
        self.registrar = Some(AbortOnDropHandle::new(tokio::task::spawn_local(run)));
    }
}

impl Component for Edged {
    const NAME: &'static str = "edged";
    const STAGE: Stage = Stage::Processor;

    fn contract(contract: &mut Contract<Self>) {
        // Both through the queue: what is absent when a kind is complete must have been heard of before.
        contract.listens::<ObjectsChanged>(Overflow::wait());
        contract.listens::<KindCompleted>(Overflow::wait());
        contract.may_listen::<ObjectsReloaded>(Overflow::wait());
        contract.may_listen::<LinkStateChanged>(Overflow::newest_per_key(1, |_| ()));
        contract.answers::<QueryProgress>();
        contract.answers::<LocateContainerLog>();
        contract.answers::<OpenContainerStream>();
        contract.answers::<ListPods>();
        contract.answers::<QueryStats>();
        contract.answers::<ShutDownPods>();
        contract.answers::<ReleasePods>();
        contract.asks::<ReadObjects>();
        contract.asks::<ReportStatus>();
        contract.may_ask::<CallCloud>();
        contract.may_ask::<PublishEvent>();
    }
}

#[cfg(test)]
mod tests;
