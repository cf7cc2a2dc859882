//! EdgeHub: the edge's end of the link.
//!
//! | | |
//! |---|---|
//! | answers | `CallCloud`, `PublishEvent` (anyone at the edge), `ReportsPending` (MetaManager) |
//! | asks | `DescribeStore`, `SessionStarted`, `ApplyState`, `ListInventory`, `CompleteInventory`, `StoreBookmark`, `PendingReports`, `ReportSettled` (MetaManager), `QueryProgress` (Edged, if there), `EventReceived` (who takes the cloud's Events, if anybody), `ServeStream` (EdgeStream, if there), `ServeService` (ServiceBus, if there), `ReportDevice` (DeviceTwin, if there) |
//! | announces | `LinkStateChanged` |
//! | renews | this node's certificate, in time ([`renewal`]) |
//! | stores | the outbox of Events for the cloud ([`outbox`]), the ids of the Events from it ([`received`]); everything else that must survive is MetaManager's |
//! | offline | calls fail at once with `Offline`, events wait in the outbox, reports wait with MetaManager; it reconnects for ever, with full jitter |
//!
//! The protocol is [`crate::link::session`]; this is the shell that connects it with the transport and the components.
//! A message of the cloud is acknowledged when MetaManager has it on disk.

mod called;
mod connection;
mod heartbeats;
pub mod join;
pub mod outbox;
pub mod received;
pub mod renewal;
pub mod reports;
mod streams;

use std::{collections::HashMap, rc::Rc, sync::Arc, time::Duration};

use actix::{Actor, ActorFutureExt, AsyncContext, Handler, Message, ResponseActFuture, ResponseFuture, WrapFuture};
use bytes::Bytes;
use kubeedge_proto::v1::{
    ApplyState, CallCloud, CallReply, CompleteInventory, DescribeStore, Envelope, EventReceived, Goodbye,
    GoodbyeReason, LinkStateChanged, ListInventory, PendingReports, PublishEvent, QueryProgress, ReportDevice,
    ReportSettled, ReportsPending, SessionStarted, Settled, StoreBookmark, TrafficClass,
};
use tokio::sync::oneshot;
use tokio_util::task::AbortOnDropHandle;

use self::{
    outbox::{Bounds, Outbox},
    received::ReceivedTable,
    reports::{FETCH, InFlight},
};
use crate::{
    link::{
        queues::InputSender,
        session::{Class, Input, Output},
        streams::{ServeService, ServeStream},
    },
    store::Store,
    system::{Component, Context, Contract, Port, Ports, Stage, Topic, trace::Trace},
};

/// How long MetaManager may take for one message. Its disk decides; after this the message is not acknowledged.
const STORE_WITHIN: Duration = Duration::from_secs(30);
/// How long Edged may take to say how it does.
const PROGRESS_WITHIN: Duration = Duration::from_secs(2);
/// How often Edged is asked.
const PROGRESS_EVERY: Duration = Duration::from_secs(5);
/// Reports that the cloud could not take are sent again after this.
const REPORT_AGAIN: Duration = Duration::from_secs(5);
/// Reports of which the cloud had too many for now are sent again after this.
const REPORT_MORE: Duration = Duration::from_secs(1);
/// Calls of this edge that wait for the cloud at a time, and events that wait for the disk; further ones are refused.
const MAX_WAITING: usize = 512;

/// Where the cloud is, and who this is.
#[derive(Clone)]
pub struct EdgeHubConfig {
    /// `host:port` of the link. The host is what the cloud's certificate is checked against.
    pub address: String,
    /// Mutual TLS: this node's certificate, and the cloud's pinned authority.
    pub tls: Arc<rustls::ClientConfig>,
    /// The protocol's numbers.
    pub link: crate::link::Config,
    /// Where the outbox and the ids of received Events are: the edge's store, which others use as well.
    pub store: Store,
    /// What the outbox holds at most.
    pub outbox: Bounds,
    /// How this node keeps its certificate; `None` where somebody else renews it.
    pub renewal: Option<renewal::Renewal>,
}

/// The component. See the module's page.
pub struct EdgeHub {
    config: EdgeHubConfig,
    meta: Meta,
    progress: Option<Port<QueryProgress>>,
    link_changed: Topic<LinkStateChanged>,
    streams: streams::Opener,
    heartbeats: heartbeats::Heartbeats,
    /// Dropped with this value: a rebuilt EdgeHub begins anew.
    connecting: Option<AbortOnDropHandle<()>>,
    renewing: Option<AbortOnDropHandle<()>>,
    wishes: Rc<renewal::Wishes>,
    /// The session's inputs, while there is one.
    session: Option<InputSender>,
    established: bool,
    cluster_uid: String,
    calls: HashMap<Bytes, oneshot::Sender<CallReply>>,
    outbox: Outbox,
    received: ReceivedTable,
    take_event: Option<Port<EventReceived>>,
    report_device: Option<Port<ReportDevice>>,
    reports: InFlight,
    /// A fetch of reports is under way. One at a time: two could send versions of one report in the wrong order.
    fetching: bool,
    /// Something came up while one was.
    fetch_again: bool,
    /// The next attempt at reports that did not get through is on the clock.
    retrying: bool,
}

/// MetaManager, as EdgeHub needs it.
#[derive(Clone)]
struct Meta {
    describe: Port<DescribeStore>,
    started: Port<SessionStarted>,
    apply: Port<ApplyState>,
    list: Port<ListInventory>,
    complete: Port<CompleteInventory>,
    bookmark: Port<StoreBookmark>,
    pending: Port<PendingReports>,
    settled: Port<ReportSettled>,
}

impl EdgeHub {
    /// A hub for one cloud.
    pub fn new(config: EdgeHubConfig, ports: &Ports) -> Self {
        config.store.settle_blocking();
        Self {
            streams: streams::Opener::new(
                config.clone(),
                streams::Serve { streams: ports.optional(), services: ports.optional() },
            ),
            outbox: Outbox::load(&config.store, config.outbox, &config.link, ports),
            received: ReceivedTable::load(&config.store),
            take_event: ports.optional(),
            report_device: ports.optional(),
            config,
            meta: Meta {
                describe: ports.port(),
                started: ports.port(),
                apply: ports.port(),
                list: ports.port(),
                complete: ports.port(),
                bookmark: ports.port(),
                pending: ports.port(),
                settled: ports.port(),
            },
            progress: ports.optional(),
            link_changed: ports.topic(),
            heartbeats: heartbeats::Heartbeats::new(ports),
            connecting: None,
            renewing: None,
            wishes: Rc::default(),
            session: None,
            established: false,
            cluster_uid: String::new(),
            calls: HashMap::new(),
            reports: InFlight::default(),
            fetching: false,
            fetch_again: false,
            retrying: false,
        }
    }

    /// Runs `work` beside everything else and gives its outcome to the session of now.
    fn answer(&self, ctx: &mut Context<Self>, work: impl Future<Output = Option<Input>> + 'static) {
        let Some(session) = self.session.clone() else { return };
        ctx.spawn(
            async move {
                if let Some(input) = work.await
                    && session.send(input).await.is_err()
                {
                    tracing::debug!("the session ended before an answer of this edge");
                }
            }
            .into_actor(self),
        );
    }

    /// Fetches what is pending and sends it. While that is under way another call makes it begin again afterwards.
    fn fetch_reports(&mut self, ctx: &mut Context<Self>) {
        if !self.established {
            // It is done when the session stands.
            return;
        }
        if std::mem::replace(&mut self.fetching, true) {
            self.fetch_again = true;
            return;
        }
        let pending = self.meta.pending.clone();
        ctx.spawn(
            async move { pending.ask(PendingReports { limit: FETCH }, STORE_WITHIN).await }
                .into_actor(self)
                .then(|fetched, this, ctx| {
                    let bodies = match fetched {
                        Ok(list) if this.established => this.reports.take(list.reports),
                        Ok(_) => Vec::new(),
                        Err(error) => {
                            tracing::warn!("reports could not be fetched: {error}");
                            this.fetch_later(REPORT_AGAIN, ctx);
                            Vec::new()
                        }
                    };
                    let session = this.session.clone();
                    async move {
                        let Some(session) = session else { return };
                        for body in bodies {
                            let envelope = Envelope::new("metamanager", unix_ms(), body);
                            if session.send(Input::Submit(Box::new(envelope))).await.is_err() {
                                return;
                            }
                        }
                    }
                    .into_actor(this)
                })
                .map(|(), this, ctx| {
                    this.fetching = false;
                    if std::mem::take(&mut this.fetch_again) {
                        this.fetch_reports(ctx);
                    }
                }),
        );
    }

    /// Fetches after a while; one timer, however many reports did not get through.
    fn fetch_later(&mut self, after: Duration, ctx: &mut Context<Self>) {
        if !std::mem::replace(&mut self.retrying, true) {
            ctx.run_later(after, |this, ctx| {
                this.reports.retry();
                this.retrying = false;
                this.fetch_reports(ctx);
            });
        }
    }

    /// Tells the session when Edged last made progress.
    fn tell_progress(&mut self, ctx: &mut Context<Self>) {
        let Some(port) = self.progress.clone() else { return };
        self.answer(ctx, async move {
            // No answer is an answer: the session lets the age grow.
            let progress = port.ask(QueryProgress {}, PROGRESS_WITHIN).await.ok()?;
            Some(Input::Progress { age_ms: progress.age_ms })
        });
    }

    fn tell_link_state(&self, ctx: &mut Context<Self>, connected: bool, reason: String) {
        let changed = self.link_changed.clone();
        ctx.spawn(async move { changed.announce(LinkStateChanged { connected, reason }).await }.into_actor(self));
    }
}

impl Actor for EdgeHub {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        let run = connection::run(self.config.clone(), self.meta.describe.clone(), ctx.address());
        self.connecting = Some(AbortOnDropHandle::new(tokio::task::spawn_local(run)));
        if let Some(renewal) = self.config.renewal.clone() {
            let run = renewal::run(renewal, Rc::clone(&self.wishes), ctx.address());
            self.renewing = Some(AbortOnDropHandle::new(tokio::task::spawn_local(run)));
        }
        ctx.run_interval(PROGRESS_EVERY, |this, ctx| this.tell_progress(ctx));
        ctx.run_interval(outbox::TICK, Self::outbox_tick);
    }
}

impl Component for EdgeHub {
    const NAME: &'static str = "edgehub";
    const STAGE: Stage = Stage::Link;

    fn contract(contract: &mut Contract<Self>) {
        contract.answers::<CallCloud>();
        contract.answers::<PublishEvent>();
        contract.answers::<ReportsPending>();
        contract.asks::<DescribeStore>();
        contract.asks::<SessionStarted>();
        contract.asks::<ApplyState>();
        contract.asks::<ListInventory>();
        contract.asks::<CompleteInventory>();
        contract.asks::<StoreBookmark>();
        contract.asks::<PendingReports>();
        contract.asks::<ReportSettled>();
        contract.may_ask::<EventReceived>();
        contract.may_ask::<ReportDevice>();
        contract.may_ask::<QueryProgress>();
        contract.may_ask::<ServeStream>();
        contract.may_ask::<ServeService>();
        contract.announces::<LinkStateChanged>();
    }
}

/// The transport stands; the session begins.
struct LinkUp {
    session: InputSender,
}

impl Message for LinkUp {
    type Result = ();
}

impl Handler<LinkUp> for EdgeHub {
    type Result = ();

    fn handle(&mut self, LinkUp { session }: LinkUp, _: &mut Context<Self>) {
        self.session = Some(session);
        self.established = false;
        self.reports.clear();
    }
}

/// The session has ended.
struct LinkDown {
    reason: String,
}

impl Message for LinkDown {
    type Result = ();
}

impl Handler<LinkDown> for EdgeHub {
    type Result = ();

    fn handle(&mut self, LinkDown { reason }: LinkDown, ctx: &mut Context<Self>) {
        self.session = None;
        self.streams.close();
        self.reports.clear();
        self.outbox.session_over();
        for (_, caller) in self.calls.drain() {
            // A caller that gave up needs no answer.
            let _ = caller.send(offline());
        }
        if std::mem::take(&mut self.established) {
            tracing::warn!("the link is down: {reason}");
            self.tell_link_state(ctx, false, reason);
        }
    }
}

/// What the session wants.
struct FromSession(Output);

impl Message for FromSession {
    type Result = ();
}

impl Handler<FromSession> for EdgeHub {
    /// The next output is taken when this is done: nothing is applied before its session is on disk.
    type Result = ResponseActFuture<Self, ()>;

    fn handle(&mut self, FromSession(output): FromSession, ctx: &mut Context<Self>) -> Self::Result {
        let meta = self.meta.clone();
        if self.session.is_none() {
            // Refused. Nothing of it is applied; what it settles goes again in the next.
            return Box::pin(actix::fut::ready(()));
        }
        match output {
            Output::Established(session) => {
                self.cluster_uid = session.cluster_uid.clone();
                let message = SessionStarted { epoch: session.epoch, cluster_uid: session.cluster_uid.clone() };
                return Box::pin(async move { meta.started.ask(message, STORE_WITHIN).await }.into_actor(self).map(
                    move |stored, this, ctx| {
                        let kept =
                            stored.unwrap_or_else(|error| Settled::rejected(503, format!("MetaManager: {error}")));
                        if kept.code != 0 {
                            return this.refuse_session(&kept, ctx);
                        }
                        tracing::info!(epoch = session.epoch, cluster = session.cluster_uid, "the link is up");
                        this.established = true;
                        if let Some(renewal) = &this.config.renewal {
                            this.wishes.established(renewal, &session);
                        }
                        this.tell_link_state(ctx, true, String::new());
                        this.tell_progress(ctx);
                        this.fetch_reports(ctx);
                        this.send_events(ctx);
                    },
                ));
            }
            Output::Deliver { class: Class::Call, seq, envelope } => self.called(seq, *envelope, ctx),
            Output::Deliver { class: Class::Event, seq, envelope } => self.event_received(seq, *envelope, ctx),
            Output::Deliver { class: class @ Class::State, seq, envelope } => {
                let trace = Trace::of(&envelope);
                let apply = async move {
                    match meta.apply.ask(ApplyState { envelope: Some(*envelope) }, STORE_WITHIN).await {
                        Ok(settled) => Some(Input::Settle { class, seq, settled }),
                        Err(error) => {
                            // Whether it is on disk is not known: the digests will tell at the next hello.
                            let settled = Settled::rejected(500, format!("MetaManager: {error}"));
                            Some(Input::Settle { class, seq, settled })
                        }
                    }
                };
                self.answer(ctx, Trace::scope(trace, apply));
            }
            Output::NeedInventory(type_) => self.answer(ctx, async move {
                let list = meta.list.ask(ListInventory { r#type: Some((*type_).clone()) }, STORE_WITHIN).await;
                match list {
                    Ok(list) => Some(Input::InventoryKnown { type_, entries: list.entries }),
                    Err(error) => {
                        tracing::warn!("the inventory of {type_} could not be read: {error}");
                        None
                    }
                }
            }),
            Output::Completed(complete) => {
                let cluster_uid = self.cluster_uid.clone();
                return Box::pin(
                    async move {
                        let message = CompleteInventory { complete: Some(complete), cluster_uid };
                        match meta.complete.ask(message, STORE_WITHIN).await {
                            Ok(settled) if settled.code == 0 => {}
                            Ok(settled) => tracing::warn!("a kind stays incomplete: {}", settled.reason),
                            Err(error) => tracing::warn!("a kind stays incomplete: MetaManager: {error}"),
                        }
                    }
                    .into_actor(self),
                );
            }
            Output::Bookmark(bookmark) => {
                return Box::pin(
                    async move {
                        let message = StoreBookmark { bookmark: Some(*bookmark) };
                        if let Err(error) = meta.bookmark.ask(message, STORE_WITHIN).await {
                            tracing::warn!("a bookmark is not on disk: {error}");
                        }
                    }
                    .into_actor(self),
                );
            }
            Output::Settled { class: Class::Event, envelope, settled } => self.event_settled(&envelope, &settled, ctx),
            Output::Settled { envelope, settled, .. } => self.settled(envelope, settled, ctx),
            Output::Coalesced { .. } => {}
            Output::Refused { envelope, why } if envelope.class() == Some(TrafficClass::Event) => {
                self.event_settled(&envelope, &why.settled(), ctx);
            }
            Output::Refused { envelope, why } => {
                tracing::warn!("a report did not get into the link's queue: {why}");
                self.reports.forget(&envelope);
                self.fetch_later(REPORT_AGAIN, ctx);
            }
            Output::Reply { id, reply } => {
                if let Some(caller) = self.calls.remove(&id) {
                    let _ = caller.send(reply);
                }
            }
            Output::CallFailed { id, why } => {
                if let Some(caller) = self.calls.remove(&id) {
                    let _ = caller.send(why.to_reply());
                }
            }
            Output::OpenStreams => self.streams.open(),
            Output::RoundTrip(took) => self.heartbeats.answered(took),
            // The driver's own, the cloud's side, and what `connection` has seen already.
            Output::Send(..)
            | Output::HelloReceived(_)
            | Output::NeedDesired
            | Output::Heartbeat { .. }
            | Output::Closed(_) => {}
        }
        Box::pin(actix::fut::ready(()))
    }
}

impl EdgeHub {
    /// The session cannot be used: nothing more of it is looked at.
    fn refuse_session(&mut self, why: &Settled, ctx: &mut Context<Self>) {
        tracing::error!("the session is given up: {}", why.reason);
        let goodbye = session_refused(why);
        self.answer(ctx, async move { Some(Input::Close(goodbye)) });
        self.session = None;
    }

    fn settled(&mut self, envelope: Box<Envelope>, settled: Settled, ctx: &mut Context<Self>) {
        let too_many = settled.code == 429;
        if too_many {
            tracing::debug!("the cloud takes a report later: {}", settled.reason);
        } else if settled.code != 0 {
            tracing::warn!(code = settled.code, "the cloud refused a report: {}", settled.reason);
        }
        let again = settled.is_for_now();
        let Some(message) = self.reports.settled(&envelope, settled) else { return };
        let port = self.meta.settled.clone();
        ctx.spawn(
            async move {
                if let Err(error) = port.tell(message).await {
                    tracing::debug!("MetaManager is stopping: {error}");
                }
            }
            .into_actor(self),
        );
        if again {
            self.fetch_later(if too_many { REPORT_MORE } else { REPORT_AGAIN }, ctx);
        }
        if self.reports.wants_more() {
            self.fetch_reports(ctx);
        }
    }
}

impl Handler<ReportsPending> for EdgeHub {
    type Result = ();

    fn handle(&mut self, _: ReportsPending, ctx: &mut Context<Self>) {
        if !self.reports.is_busy() {
            self.fetch_reports(ctx);
        }
    }
}

impl Handler<CallCloud> for EdgeHub {
    type Result = ResponseFuture<CallReply>;

    fn handle(&mut self, message: CallCloud, _: &mut Context<Self>) -> Self::Result {
        let (Some(mut envelope), Some(session), true) = (message.envelope, self.session.clone(), self.established)
        else {
            return Box::pin(std::future::ready(offline()));
        };
        if envelope.class() != Some(TrafficClass::Call) {
            let text = "a CallCloud carries something that is not a call";
            return Box::pin(std::future::ready(CallReply::error(400, "BadRequest", text)));
        }
        if self.calls.len() >= MAX_WAITING {
            let text = format!("{MAX_WAITING} calls wait for the cloud already");
            return Box::pin(std::future::ready(CallReply::error(429, "TooManyRequests", text)));
        }
        let (caller, answer) = oneshot::channel();
        self.calls.insert(envelope.id.clone(), caller);
        Trace::stamp(&mut envelope);
        Box::pin(async move {
            if session.send(Input::Submit(Box::new(envelope))).await.is_err() {
                return offline();
            }
            // The session answers every call, be it with a failure; without it the link is down.
            answer.await.unwrap_or_else(|_| offline())
        })
    }
}

/// What the cloud is told when MetaManager does not let a session be.
pub fn session_refused(why: &Settled) -> Goodbye {
    let (reason, retry_after_ms) = match why.code {
        // Until somebody has decided where this box belongs.
        409 => (GoodbyeReason::OtherCluster, 60_000),
        _ => (GoodbyeReason::Busy, 5_000),
    };
    Goodbye { reason: reason.into(), message: why.reason.clone(), retry_after_ms }
}

fn offline() -> CallReply {
    CallReply::error(503, "Offline", "the link to the cloud is down")
}

fn unix_ms() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}
