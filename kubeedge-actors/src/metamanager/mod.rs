//! MetaManager: the edge's copy of its objects, and the only writer of it.
//!
//! | | |
//! |---|---|
//! | answers | `ApplyState`, `CompleteInventory`, `StoreBookmark`, `DescribeStore`, `SessionStarted`, `ListInventory` (EdgeHub), `ReportStatus` (Edged, DeviceTwin), `PendingReports`, `ReportSettled` (EdgeHub), `ReadObjects`, `ReadStatuses` (anyone), `KeepNode` (MetaServer) |
//! | announces | `ObjectsChanged`, `StatusChanged`, `KindCompleted`, `ObjectsReloaded` (at its start); who cannot keep up is waited for |
//! | tells | `ReportsPending` (EdgeHub) |
//! | stores | objects by (type, namespace, name); the node's own object; of each the status that this node reported last; one record per kind; the box's own record; reports not settled yet |
//! | offline | everything but news from the cloud works; reports wait on disk, the newest per object |
//!
//! A message is answered when it is on disk, and told on only then. Until a kind is complete
//! (`CompleteInventory` is on disk) nobody may conclude anything from an object's absence: `ObjectList.complete`.

pub mod index;
pub mod reports;
pub mod state;
mod tables;

use std::sync::atomic::Ordering;

use actix::{Actor, ActorFutureExt, AsyncContext, Handler, MessageResult, ResponseActFuture, WrapFuture};
use kubeedge_proto::{
    resource,
    v1::{
        ApplyState, CompleteInventory, DescribeStore, InventoryList, KeepNode, KindCompleted, KubeObject,
        ListInventory, ObjectList, ObjectsChanged, ObjectsReloaded, PendingReports, PendingReportsList, ReadObjects,
        ReadStatuses, ReportSettled, ReportStatus, ReportsPending, SessionStarted, Settled, StatusChanged, StatusList,
        StatusUpdate, StoreBookmark, StoreDescription, envelope::Body, report_status::Report,
    },
};
use tokio::sync::oneshot;

pub use self::tables::{Tables, TablesError};
use self::{
    reports::{ReportKey, Reports},
    state::{Change, Instead, State},
    tables::{object_key, of_type, readable},
};
use crate::{
    store::StoreError,
    system::{Component, Context, Contract, Port, Ports, Stage, Topic, TryTellError},
};

/// Reports kept for the cloud at most; one per object, so only a node with more objects than this comes here. The
/// newest is then refused and the reporter tries again with its next status.
const MAX_REPORTS: usize = 10_000;

/// The component. See the module's page.
pub struct MetaManager {
    tables: Tables,
    state: State,
    reports: Reports,
    changed: Topic<ObjectsChanged>,
    reloaded: Topic<ObjectsReloaded>,
    completed: Topic<KindCompleted>,
    status_changed: Topic<StatusChanged>,
    pending: Option<Port<ReportsPending>>,
    /// State that needs what is being written. The session's window bounds it.
    waiting: Vec<(Box<Body>, oneshot::Sender<Settled>)>,
    /// A `ReportsPending` waits for room in EdgeHub's queue.
    telling: bool,
}

impl MetaManager {
    /// A MetaManager over opened tables.
    pub fn new(tables: Tables, ports: &Ports) -> Self {
        tables.store.settle_blocking();
        let (state, reports) = tables.load();
        Self {
            tables,
            state,
            reports,
            changed: ports.topic(),
            reloaded: ports.topic(),
            completed: ports.topic(),
            status_changed: ports.topic(),
            pending: ports.optional(),
            waiting: Vec::new(),
            telling: false,
        }
    }

    /// Tells EdgeHub that there is something to fetch. Its queue may be full of other things: then one such message
    /// waits for room, and one is as good as many.
    fn tell_pending(&mut self, ctx: &mut Context<Self>) {
        let Some(port) = self.pending.clone().filter(|_| !self.telling) else { return };
        if let Ok(()) | Err(TryTellError::Stopped(_)) = port.try_tell(ReportsPending {}) {
            return;
        }
        self.telling = true;
        ctx.spawn(async move { port.tell(ReportsPending {}).await }.into_actor(self).map(|told, this, _| {
            this.telling = false;
            if let Err(error) = told {
                tracing::debug!("nobody fetches reports any more: {error}");
            }
        }));
    }

    fn apply(&mut self, body: Option<Body>) -> ResponseActFuture<Self, Settled> {
        match self.state.apply(body) {
            Ok(change) => self.commit(change),
            Err(Instead::Answer(answer)) => self.answer(answer),
            Err(Instead::Later(body)) => {
                let (sender, answer) = oneshot::channel();
                self.waiting.push((body, sender));
                let lost = |_| Settled::rejected(503, "MetaManager was built again");
                Box::pin(async move { answer.await.unwrap_or_else(lost) }.into_actor(self))
            }
        }
    }

    /// Applies what has waited for a commit; what waits for another one waits on.
    fn apply_waiting(&mut self, ctx: &mut Context<Self>) {
        for (body, sender) in std::mem::take(&mut self.waiting) {
            let applied = self.apply(Some(*body));
            ctx.spawn(applied.map(move |answer, _, _| {
                // Who gave up waiting compares again.
                let _ = sender.send(answer);
            }));
        }
    }

    /// Commits a change, then tells it. The answer comes when all that is done.
    fn commit(&mut self, change: Change) -> ResponseActFuture<Self, Settled> {
        let mut batch = self.tables.store.batch();
        let at = object_key(&change.type_, &change.key);
        match &change.object {
            Some(object) => batch.put(&self.tables.objects, &at, object),
            None => batch.delete(&self.tables.objects, &at),
        }
        batch.put(&self.tables.kinds, change.type_.to_string().as_bytes(), &change.record);
        if change.news.iter().any(|news| news.object.is_none()) {
            // What was reported of it ends with it.
            batch.delete(&self.tables.statuses, &at);
        }
        let changed = self.changed.clone();
        Box::pin(batch.commit().into_actor(self).then(move |committed, this, _| {
            if let Err(error) = &committed {
                tracing::error!(type_ = %change.type_, key = %change.key, "not on disk: {error}");
            }
            let (type_, key) = (change.type_.clone(), change.key.clone());
            let (answer, news) = this.state.applied(change, said(committed));
            let telling = async move {
                for change in news {
                    changed.announce(change).await;
                }
            };
            telling.into_actor(this).map(move |(), this, ctx| {
                this.state.told(type_, key);
                this.apply_waiting(ctx);
                answer
            })
        }))
    }

    /// What a report says of an object that is here, or of this node, and where it is kept.
    fn kept_status(&self, report: ReportStatus) -> Option<(Vec<u8>, StatusUpdate)> {
        let status = match report.report? {
            Report::Update(update) => update,
            Report::Terminated(pod) => StatusUpdate {
                r#type: Some(resource::pods()),
                key: pod.key,
                uid: pod.uid,
                generation: pod.generation,
                status_json: pod.status_json,
            },
            Report::Device(_) => return None,
        };
        let (type_, key) = (status.r#type.as_ref()?, status.key.as_ref()?);
        let here = self.state.index.get(type_, key).is_some_and(|entry| entry.uid == status.uid);
        let at = object_key(type_, key);
        (here || *type_ == resource::nodes()).then_some((at, status))
    }

    fn answer(&self, answer: Settled) -> ResponseActFuture<Self, Settled> {
        Box::pin(std::future::ready(answer).into_actor(self))
    }
}

fn said(committed: Result<(), StoreError>) -> Result<(), String> {
    committed.map_err(|error| error.to_string())
}

fn settled(committed: Result<(), StoreError>) -> Settled {
    state::settled(said(committed))
}

impl Actor for MetaManager {
    type Context = Context<Self>;

    /// What the life before this one had committed may not have been told, and what it was to fetch not be fetched.
    fn started(&mut self, ctx: &mut Self::Context) {
        let reloaded = self.reloaded.clone();
        ctx.spawn(async move { reloaded.announce(ObjectsReloaded {}).await }.into_actor(self));
        if !self.reports.is_empty() {
            self.tell_pending(ctx);
        }
    }
}

impl Component for MetaManager {
    const NAME: &'static str = "metamanager";
    const STAGE: Stage = Stage::Store;

    fn contract(contract: &mut Contract<Self>) {
        contract.answers::<ApplyState>();
        contract.answers::<CompleteInventory>();
        contract.answers::<StoreBookmark>();
        contract.answers::<DescribeStore>();
        contract.answers::<SessionStarted>();
        contract.answers::<ListInventory>();
        contract.answers::<ReportStatus>();
        contract.answers::<PendingReports>();
        contract.answers::<ReportSettled>();
        contract.answers::<ReadObjects>();
        contract.answers::<ReadStatuses>();
        contract.answers::<KeepNode>();
        contract.announces::<ObjectsChanged>();
        contract.announces::<ObjectsReloaded>();
        contract.announces::<KindCompleted>();
        contract.announces::<StatusChanged>();
        contract.may_ask::<ReportsPending>();
    }
}

impl Handler<ApplyState> for MetaManager {
    type Result = ResponseActFuture<Self, Settled>;

    fn handle(&mut self, message: ApplyState, _: &mut Context<Self>) -> Self::Result {
        self.apply(message.envelope.and_then(|envelope| envelope.body))
    }
}

impl Handler<CompleteInventory> for MetaManager {
    type Result = ResponseActFuture<Self, Settled>;

    fn handle(&mut self, message: CompleteInventory, _: &mut Context<Self>) -> Self::Result {
        let record = match self.state.complete(message) {
            Ok(record) => record,
            Err(answer) => return self.answer(answer),
        };
        let completed = self.completed.clone();
        Box::pin(self.tables.save_kind(&record).into_actor(self).then(move |committed, this, _| {
            let answer = this.state.completed(&record, said(committed));
            async move {
                if answer.code == 0 {
                    completed.announce(KindCompleted { r#type: record.r#type }).await;
                }
                answer
            }
            .into_actor(this)
        }))
    }
}

impl Handler<StoreBookmark> for MetaManager {
    type Result = ResponseActFuture<Self, Settled>;

    fn handle(&mut self, message: StoreBookmark, _: &mut Context<Self>) -> Self::Result {
        let Some((type_, version)) =
            message.bookmark.and_then(|bookmark| Some((bookmark.r#type?, bookmark.resource_version)))
        else {
            return self.answer(Settled::rejected(400, "a Bookmark names no kind"));
        };
        let record = self.state.bookmarked(&type_, version);
        Box::pin(self.tables.save_kind(&record).into_actor(self).map(|result, _, _| settled(result)))
    }
}

impl Handler<DescribeStore> for MetaManager {
    type Result = ResponseActFuture<Self, StoreDescription>;

    /// Counts a connection. When the count cannot be kept the connection is made all the same: what it tells apart are
    /// two hellos of this box on their way at once.
    fn handle(&mut self, _: DescribeStore, _: &mut Context<Self>) -> Self::Result {
        // What an earlier session left is compared anew: it must not get to the disk after the digests are told. A kind
        // of which something is on its way there has none.
        self.waiting.clear();
        self.state.this_box.connection += 1;
        Box::pin(self.tables.save_box(&self.state.this_box).into_actor(self).map(|saved, this, _| {
            if let Err(error) = saved {
                tracing::warn!("the count of connections is not on disk: {error}");
            }
            this.state.describe()
        }))
    }
}

impl Handler<SessionStarted> for MetaManager {
    type Result = ResponseActFuture<Self, Settled>;

    fn handle(&mut self, message: SessionStarted, _: &mut Context<Self>) -> Self::Result {
        let record = match self.state.session_started(&message) {
            Ok(record) => record,
            Err(answer) => return self.answer(answer),
        };
        Box::pin(self.tables.save_box(&record).into_actor(self).map(|saved, this, _| {
            if let Err(error) = &saved {
                tracing::warn!("the session is not on disk: {error}");
            }
            this.state.session_kept(record, said(saved))
        }))
    }
}

impl Handler<ListInventory> for MetaManager {
    type Result = MessageResult<ListInventory>;

    fn handle(&mut self, message: ListInventory, _: &mut Context<Self>) -> Self::Result {
        let entries = message.r#type.map(|type_| self.state.index.inventory(&type_)).unwrap_or_default();
        MessageResult(InventoryList { entries })
    }
}

impl Handler<ReadObjects> for MetaManager {
    type Result = MessageResult<ReadObjects>;

    fn handle(&mut self, message: ReadObjects, _: &mut Context<Self>) -> Self::Result {
        let Some(type_) = message.r#type else { return MessageResult(ObjectList::default()) };
        if type_ == resource::nodes() {
            let objects: Vec<KubeObject> = self.tables.own().into_iter().map(|(_, object)| object).collect();
            return MessageResult(ObjectList { complete: !objects.is_empty(), objects });
        }
        let mut unread = 0;
        let objects = match message.key {
            Some(key) => match self.tables.objects.get(&object_key(&type_, &key)) {
                Ok(object) => object.into_iter().collect(),
                Err(error) => {
                    tracing::error!(%type_, %key, "cannot be read: {error}");
                    // Not "absent": nothing may be concluded from it.
                    return MessageResult(ObjectList { objects: Vec::new(), complete: false });
                }
            },
            None => {
                let rows = self.tables.objects.scan_prefix(&of_type(&type_));
                readable("objects", rows, &mut unread).map(|(_, object)| object).collect()
            }
        };
        MessageResult(ObjectList { objects, complete: unread == 0 && self.state.index.is_complete(&type_) })
    }
}

impl Handler<KeepNode> for MetaManager {
    type Result = ResponseActFuture<Self, Settled>;

    fn handle(&mut self, message: KeepNode, _: &mut Context<Self>) -> Self::Result {
        let object = message.object.unwrap_or_default();
        let (Some(type_), Some(key)) = (object.r#type.clone(), object.key.clone()) else {
            return self.answer(Settled::rejected(400, "a KeepNode names no object"));
        };
        if type_ != resource::nodes() || object.uid.is_empty() {
            return self.answer(Settled::rejected(400, format!("{type_} {key} is no node with a uid")));
        }
        let at = object_key(&type_, &key);
        let mut batch = self.tables.store.batch();
        let mut news = Vec::new();
        for (other, old) in self.tables.own() {
            if other == at && old == object {
                return self.answer(Settled::applied());
            }
            if other != at || old.uid != object.uid {
                batch.delete(&self.tables.own, &other);
                news.push(ObjectsChanged { r#type: old.r#type, key: old.key, uid: old.uid, object: None });
            }
        }
        batch.put(&self.tables.own, &at, &object);
        let uid = object.uid.clone();
        news.push(ObjectsChanged { r#type: Some(type_), key: Some(key), uid, object: Some(object) });
        let changed = self.changed.clone();
        let kept = async move {
            let committed = batch.commit().await;
            if committed.is_ok() {
                for change in news {
                    changed.announce(change).await;
                }
            }
            settled(committed)
        };
        Box::pin(kept.into_actor(self))
    }
}

impl Handler<ReadStatuses> for MetaManager {
    type Result = MessageResult<ReadStatuses>;

    fn handle(&mut self, message: ReadStatuses, _: &mut Context<Self>) -> Self::Result {
        let Some(type_) = message.r#type else { return MessageResult(StatusList::default()) };
        let prefix = of_type(&type_);
        let mut unread = 0;
        let rows = readable("statuses", self.tables.statuses.scan_prefix(&prefix), &mut unread);
        MessageResult(StatusList { statuses: rows.map(|(_, status)| status).collect() })
    }
}

impl Handler<ReportStatus> for MetaManager {
    type Result = ResponseActFuture<Self, Settled>;

    fn handle(&mut self, mut report: ReportStatus, _: &mut Context<Self>) -> Self::Result {
        let Some(key) = ReportKey::of(&report) else {
            return self.answer(Settled::rejected(400, "a ReportStatus names no object"));
        };
        if self.reports.len() >= MAX_REPORTS {
            return self.answer(Settled::rejected(507, format!("{MAX_REPORTS} reports wait for the cloud already")));
        }
        if !self.reports.take(&key, &mut report) {
            return self.answer(Settled::superseded());
        }
        self.tables.generations.store(self.reports.last(), Ordering::Relaxed);
        let mut batch = self.tables.store.batch();
        batch.put(&self.tables.reports, key.bytes(), &report);
        let status = self.kept_status(report);
        if let Some((at, status)) = &status {
            batch.put(&self.tables.statuses, at, status);
        }
        Box::pin(batch.commit().into_actor(self).then(|committed, this, ctx| {
            if committed.is_ok() {
                this.tell_pending(ctx);
            }
            let changed = this.status_changed.clone();
            async move {
                if let Some((_, status)) = status.filter(|_| committed.is_ok()) {
                    changed.announce(StatusChanged { status: Some(status) }).await;
                }
                settled(committed)
            }
            .into_actor(this)
        }))
    }
}

impl Handler<PendingReports> for MetaManager {
    type Result = MessageResult<PendingReports>;

    fn handle(&mut self, message: PendingReports, _: &mut Context<Self>) -> Self::Result {
        let mut reports = Vec::new();
        for key in self.reports.oldest(message.limit as usize) {
            match self.tables.reports.get(key.bytes()) {
                Ok(Some(report)) => reports.push(report),
                // Its commit is on the way; it is told again then.
                Ok(None) => {}
                Err(error) => tracing::warn!("a report cannot be read and is left out: {error}"),
            }
        }
        MessageResult(PendingReportsList { reports })
    }
}

impl Handler<ReportSettled> for MetaManager {
    type Result = ResponseActFuture<Self, ()>;

    fn handle(&mut self, message: ReportSettled, _: &mut Context<Self>) -> Self::Result {
        let nothing = || -> ResponseActFuture<Self, ()> { Box::pin(actix::fut::ready(())) };
        let (Some(type_), Some(key)) = (&message.r#type, &message.key) else { return nothing() };
        if message.settled.as_ref().is_some_and(Settled::is_for_now) {
            // The cloud could not take it now: it stays and goes again, after the others.
            self.reports.postpone(&ReportKey::new(type_, key, &message.uid));
            return nothing();
        }
        let key = ReportKey::new(type_, key, &message.uid);
        if !self.reports.settle(&key, message.generation) {
            return nothing();
        }
        let mut batch = self.tables.store.batch();
        batch.delete(&self.tables.reports, key.bytes());
        Box::pin(batch.commit().into_actor(self).map(|committed, _, _| {
            if let Err(error) = committed {
                tracing::warn!("a settled report stays on disk and will be sent again: {error}");
            }
        }))
    }
}
