//! MetaManager: the edge's copy of its objects, and the only writer of it.
//!
//! | | |
//! |---|---|
//! | answers | `ApplyState`, `CompleteInventory`, `StoreBookmark`, `DescribeStore`, `SessionStarted`, `ListInventory` (EdgeHub), `ReportStatus` (Edged), `PendingReports`, `ReportSettled` (EdgeHub), `ReadObjects` (anyone) |
//! | announces | `ObjectsChanged`, `KindCompleted`; who cannot keep up is waited for |
//! | tells | `ReportsPending` (EdgeHub) |
//! | stores | objects by (type, namespace, name); one record per kind; the box's own record; reports not settled yet |
//! | offline | everything but news from the cloud works; reports wait on disk, the newest per object |
//!
//! A message is answered when it is on disk, and told on only then. Until a kind is complete
//! (`CompleteInventory` is on disk) nobody may conclude anything from an object's absence: `ObjectList.complete`.

pub mod index;
pub mod reports;

use std::collections::HashSet;

use actix::{Actor, ActorFutureExt, AsyncContext, Handler, MessageResult, ResponseActFuture, WrapFuture};
use kubeedge_proto::v1::{
    ApplyState, BoxRecord, CompleteInventory, DescribeStore, InventoryList, KindCompleted, KindRecord, KubeObject,
    ListInventory, ObjectKey, ObjectList, ObjectsChanged, PendingReports, PendingReportsList, ReadObjects,
    ReportSettled, ReportStatus, ReportsPending, ResourceType, SessionStarted, Settled, StoreBookmark,
    StoreDescription, envelope::Body,
};
use thiserror::Error;

use self::{
    index::{Decision, Entry, Index},
    reports::{ReportKey, Reports},
};
use crate::{
    store::{Batch, Store, StoreError, Table},
    system::{Component, Context, Contract, Port, Ports, Stage, Topic, TryTellError},
};

crate::message_records!(BoxRecord, KindRecord, KubeObject, ReportStatus);

/// Reports kept for the cloud at most; one per object, so only a node with more objects than this comes here. The
/// newest is then refused and the reporter tries again with its next status.
const MAX_REPORTS: usize = 10_000;
/// Objects of all kinds on one node at most: beyond it the cloud is refused, and says so.
const MAX_OBJECTS: usize = 100_000;
const BOX_KEY: &[u8] = b"box";

/// The component. See the module's page.
pub struct MetaManager {
    tables: Tables,
    index: Index,
    reports: Reports,
    this_box: BoxRecord,
    changed: Topic<ObjectsChanged>,
    completed: Topic<KindCompleted>,
    pending: Option<Port<ReportsPending>>,
    /// Keys whose change is being committed. What is in memory changes after the disk: no digest and no answer tells
    /// what a power cut could still take back.
    writing: HashSet<Vec<u8>>,
    /// A `ReportsPending` waits for room in EdgeHub's queue.
    telling: bool,
}

/// The store of MetaManager, opened and read. Made before the system starts, so that a failure is seen there.
#[derive(Clone)]
pub struct Tables {
    store: Store,
    objects: Table<KubeObject>,
    kinds: Table<KindRecord>,
    boxes: Table<BoxRecord>,
    reports: Table<ReportStatus>,
}

/// Why the tables cannot be used.
#[derive(Debug, Error)]
#[error("the edge's store cannot be read: {0}")]
pub struct TablesError(#[from] StoreError);

impl Tables {
    /// The tables in `store`. A first use makes the box's identity and puts it on disk.
    pub async fn open(store: Store) -> Result<Self, TablesError> {
        let tables = Self {
            objects: store.table("objects"),
            kinds: store.table("kinds"),
            boxes: store.table("box"),
            reports: store.table("reports"),
            store,
        };
        if tables.boxes.get(BOX_KEY)?.is_none() {
            let instance_id = uuid::Uuid::new_v4().into_bytes().to_vec().into();
            let mut batch = tables.store.batch();
            batch.put(&tables.boxes, BOX_KEY, &BoxRecord { instance_id, ..BoxRecord::default() });
            batch.commit().await?;
        }
        Ok(tables)
    }

    /// Reads everything the component keeps in memory. A record that cannot be read is left out with a warning: the
    /// digest then differs, and the cloud sends it again. Until then no kind counts as complete: what was in the record
    /// is wanted, and must not end for being absent.
    fn load(&self) -> (Index, Reports, BoxRecord) {
        let mut index = Index::default();
        let mut reports = Reports::default();
        for (_, record) in readable("kinds", self.kinds.scan_prefix(b""), &mut 0) {
            index.load_kind(&record);
        }
        let mut unread = 0;
        for (_, object) in readable("objects", self.objects.scan_prefix(b""), &mut unread) {
            if let (Some(type_), Some(key)) = (&object.r#type, &object.key) {
                index.set(type_, key, Some(Entry::of(&object)));
            }
        }
        if unread > 0 {
            index.doubt();
        }
        for (_, report) in readable("reports", self.reports.scan_prefix(b""), &mut 0) {
            if let Some(key) = ReportKey::of(&report) {
                reports.load(key, report);
            }
        }
        let this_box = self.boxes.get(BOX_KEY).ok().flatten().unwrap_or_default();
        (index, reports, this_box)
    }
}

/// The rows that can be read; the others are counted.
fn readable<'a, V>(
    table: &'static str,
    rows: impl Iterator<Item = Result<(Vec<u8>, V), StoreError>> + 'a,
    unread: &'a mut usize,
) -> impl Iterator<Item = (Vec<u8>, V)> + 'a {
    rows.filter_map(move |row| {
        row.inspect_err(|error| {
            *unread += 1;
            tracing::warn!(table, "a record is left out: {error}");
        })
        .ok()
    })
}

impl MetaManager {
    /// A MetaManager over opened tables.
    pub fn new(tables: Tables, ports: &Ports) -> Self {
        let (index, reports, this_box) = tables.load();
        Self {
            tables,
            index,
            reports,
            this_box,
            changed: ports.topic(),
            completed: ports.topic(),
            pending: ports.optional(),
            writing: HashSet::new(),
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

    fn object_key(type_: &ResourceType, key: &ObjectKey) -> Vec<u8> {
        [type_.to_string().as_bytes(), key.namespace.as_bytes(), key.name.as_bytes()].join(&0)
    }

    /// Commits `batch`, takes `entry` into the index, then tells `changes`. The answer comes when all that is done.
    fn commit(
        &mut self,
        batch: Batch,
        changes: Vec<ObjectsChanged>,
        type_: ResourceType,
        key: ObjectKey,
        entry: Option<Entry>,
    ) -> ResponseActFuture<Self, Settled> {
        let changed = self.changed.clone();
        let at = Self::object_key(&type_, &key);
        self.writing.insert(at.clone());
        Box::pin(batch.commit().into_actor(self).then(move |committed, this, _| {
            this.writing.remove(&at);
            let (answer, changes) = match committed {
                Ok(()) => {
                    this.index.set(&type_, &key, entry);
                    (Settled::applied(), changes)
                }
                Err(error) => {
                    tracing::error!(%type_, %key, "not on disk: {error}");
                    (Settled::rejected(507, format!("the edge's store refused it: {error}")), Vec::new())
                }
            };
            async move {
                for change in changes {
                    changed.announce(change).await;
                }
                answer
            }
            .into_actor(this)
        }))
    }

    fn save_box(&self) -> impl Future<Output = Result<(), StoreError>> + use<> {
        let mut batch = self.tables.store.batch();
        batch.put(&self.tables.boxes, BOX_KEY, &self.this_box);
        batch.commit()
    }

    fn save_kind(&self, type_: &ResourceType) -> impl Future<Output = Result<(), StoreError>> + use<> {
        let mut batch = self.tables.store.batch();
        batch.put(&self.tables.kinds, type_.to_string().as_bytes(), &self.index.record(type_));
        batch.commit()
    }

    fn answer(&self, answer: Settled) -> ResponseActFuture<Self, Settled> {
        Box::pin(std::future::ready(answer).into_actor(self))
    }
}

fn settled(result: Result<(), StoreError>) -> Settled {
    match result {
        Ok(()) => Settled::applied(),
        Err(error) => Settled::rejected(507, format!("the edge's store refused it: {error}")),
    }
}

impl Actor for MetaManager {
    type Context = Context<Self>;
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
        contract.announces::<ObjectsChanged>();
        contract.announces::<KindCompleted>();
        contract.may_ask::<ReportsPending>();
    }
}

impl Handler<ApplyState> for MetaManager {
    type Result = ResponseActFuture<Self, Settled>;

    fn handle(&mut self, message: ApplyState, _: &mut Context<Self>) -> Self::Result {
        let mut batch = self.tables.store.batch();
        let mut changes = Vec::new();
        let mut entry = None;
        let (type_, key) = match message.envelope.and_then(|envelope| envelope.body) {
            Some(Body::ObjectUpsert(upsert)) => {
                let Some(object) = upsert.object else {
                    return self.answer(Settled::rejected(400, "an ObjectUpsert carries no object"));
                };
                let (Some(type_), Some(key)) = (object.r#type.clone(), object.key.clone()) else {
                    return self.answer(Settled::rejected(400, "an object has no type or key"));
                };
                if object.uid.is_empty() {
                    return self.answer(Settled::rejected(400, format!("{type_} {key} has no uid")));
                }
                if self.writing.contains(&Self::object_key(&type_, &key)) {
                    return self.answer(still_writing(&type_, &key));
                }
                match self.index.upsert(&type_, &key, &object) {
                    Decision::Put { replaces } => {
                        if self.index.get(&type_, &key).is_none() && self.index.count(&type_) >= MAX_OBJECTS {
                            let text = format!("this node holds {MAX_OBJECTS} objects of {type_} already");
                            return self.answer(Settled::rejected(507, text));
                        }
                        if let Some(uid) = replaces {
                            changes.push(gone(&type_, &key, uid));
                        }
                        entry = Some(Entry::of(&object));
                        self.index.saw(&type_, object.version());
                        batch.put(&self.tables.objects, &Self::object_key(&type_, &key), &object);
                        changes.push(ObjectsChanged {
                            r#type: Some(type_.clone()),
                            key: Some(key.clone()),
                            uid: object.uid.clone(),
                            object: Some(object),
                        });
                    }
                    Decision::Delete | Decision::Superseded => return self.answer(Settled::superseded()),
                }
                (type_, key)
            }
            Some(Body::ObjectTombstone(tombstone)) => {
                let (Some(type_), Some(key)) = (tombstone.r#type.clone(), tombstone.key.clone()) else {
                    return self.answer(Settled::rejected(400, "an ObjectTombstone names no object"));
                };
                if self.writing.contains(&Self::object_key(&type_, &key)) {
                    return self.answer(still_writing(&type_, &key));
                }
                if self.index.tombstone(&type_, &key, &tombstone) != Decision::Delete {
                    return self.answer(Settled::superseded());
                }
                batch.delete(&self.tables.objects, &Self::object_key(&type_, &key));
                changes.push(gone(&type_, &key, tombstone.uid));
                (type_, key)
            }
            _ => return self.answer(Settled::rejected(501, "MetaManager takes no State of this type")),
        };
        batch.put(&self.tables.kinds, type_.to_string().as_bytes(), &self.index.record(&type_));
        self.commit(batch, changes, type_, key, entry)
    }
}

/// A message that overtook its own first copy, by a new connection: it is compared again.
fn still_writing(type_: &ResourceType, key: &ObjectKey) -> Settled {
    Settled::rejected(503, format!("an earlier message about {type_} {key} is still being written"))
}

fn gone(type_: &ResourceType, key: &ObjectKey, uid: String) -> ObjectsChanged {
    ObjectsChanged { r#type: Some(type_.clone()), key: Some(key.clone()), uid, object: None }
}

impl Handler<CompleteInventory> for MetaManager {
    type Result = ResponseActFuture<Self, Settled>;

    fn handle(&mut self, message: CompleteInventory, _: &mut Context<Self>) -> Self::Result {
        let Some((complete, type_)) = message.complete.and_then(|complete| {
            let type_ = complete.r#type.clone()?;
            Some((complete, type_))
        }) else {
            return self.answer(Settled::rejected(400, "an InventoryComplete names no kind"));
        };
        if message.cluster_uid != self.this_box.cluster_uid {
            let text = format!(
                "cluster {} is not the one this box belongs to ({}): nothing is concluded from absence",
                message.cluster_uid, self.this_box.cluster_uid
            );
            return self.answer(Settled::rejected(409, text));
        }
        if complete.count as usize != self.index.count(&type_) {
            // A change may have overtaken the frame; the digest of the next hello settles it.
            tracing::debug!(%type_, cloud = complete.count, here = self.index.count(&type_), "counts differ");
        }
        let mut record = self.index.record(&type_);
        record.complete = true;
        record.as_of = record.as_of.max(complete.as_of);
        record.max_resource_version = record.max_resource_version.max(complete.as_of);
        let mut batch = self.tables.store.batch();
        batch.put(&self.tables.kinds, type_.to_string().as_bytes(), &record);
        let completed = self.completed.clone();
        Box::pin(batch.commit().into_actor(self).then(move |committed, this, _| {
            if committed.is_ok() {
                this.index.load_kind(&record);
            }
            async move {
                if committed.is_ok() {
                    completed.announce(KindCompleted { r#type: Some(type_) }).await;
                }
                settled(committed)
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
        let mut record = self.index.record(&type_);
        record.bookmark = version;
        self.index.load_kind(&record);
        Box::pin(self.save_kind(&type_).into_actor(self).map(|result, _, _| settled(result)))
    }
}

impl Handler<DescribeStore> for MetaManager {
    type Result = ResponseActFuture<Self, StoreDescription>;

    /// Counts a connection. When the count cannot be kept the connection is made all the same: what it tells apart are
    /// two hellos of this box on their way at once.
    fn handle(&mut self, _: DescribeStore, _: &mut Context<Self>) -> Self::Result {
        self.this_box.connection += 1;
        Box::pin(self.save_box().into_actor(self).map(|saved, this, _| {
            if let Err(error) = saved {
                tracing::warn!("the count of connections is not on disk: {error}");
            }
            StoreDescription {
                instance_id: this.this_box.instance_id.clone(),
                cluster_uid: this.this_box.cluster_uid.clone(),
                last_epoch: this.this_box.last_epoch,
                connection: this.this_box.connection,
                kinds: this.index.digests(),
            }
        }))
    }
}

impl Handler<SessionStarted> for MetaManager {
    type Result = ResponseActFuture<Self, Settled>;

    /// Pins the cluster at the first session. Another cluster later is refused: nothing of this box's is its business.
    fn handle(&mut self, message: SessionStarted, _: &mut Context<Self>) -> Self::Result {
        if self.this_box.cluster_uid.is_empty() {
            self.this_box.cluster_uid = message.cluster_uid;
        } else if self.this_box.cluster_uid != message.cluster_uid {
            let text = format!(
                "this box belongs to cluster {}, the cloud speaks for {}: nothing will be deleted by absence",
                self.this_box.cluster_uid, message.cluster_uid
            );
            tracing::error!("{text}");
            return self.answer(Settled::rejected(409, text));
        }
        self.this_box.last_epoch = message.epoch;
        Box::pin(self.save_box().into_actor(self).map(|result, _, _| settled(result)))
    }
}

impl Handler<ListInventory> for MetaManager {
    type Result = MessageResult<ListInventory>;

    fn handle(&mut self, message: ListInventory, _: &mut Context<Self>) -> Self::Result {
        let entries = message.r#type.map(|type_| self.index.inventory(&type_)).unwrap_or_default();
        MessageResult(InventoryList { entries })
    }
}

impl Handler<ReadObjects> for MetaManager {
    type Result = MessageResult<ReadObjects>;

    fn handle(&mut self, message: ReadObjects, _: &mut Context<Self>) -> Self::Result {
        let Some(type_) = message.r#type else { return MessageResult(ObjectList::default()) };
        let mut unread = 0;
        let objects = match message.key {
            Some(key) => match self.tables.objects.get(&Self::object_key(&type_, &key)) {
                Ok(object) => object.into_iter().collect(),
                Err(error) => {
                    tracing::error!(%type_, %key, "cannot be read: {error}");
                    // Not "absent": nothing may be concluded from it.
                    return MessageResult(ObjectList { objects: Vec::new(), complete: false });
                }
            },
            None => {
                let mut prefix = type_.to_string().into_bytes();
                prefix.push(0);
                let rows = self.tables.objects.scan_prefix(&prefix);
                readable("objects", rows, &mut unread).map(|(_, object)| object).collect()
            }
        };
        MessageResult(ObjectList { objects, complete: unread == 0 && self.index.is_complete(&type_) })
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
        let mut batch = self.tables.store.batch();
        batch.put(&self.tables.reports, key.bytes(), &report);
        Box::pin(batch.commit().into_actor(self).map(|committed, this, ctx| {
            if committed.is_ok() {
                this.tell_pending(ctx);
            }
            settled(committed)
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
        if message.settled.as_ref().is_some_and(|settled| settled.code == 429 || settled.code >= 500) {
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
