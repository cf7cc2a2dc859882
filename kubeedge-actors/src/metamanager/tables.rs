//! MetaManager's tables: what of the edge is on disk, and how it is found there.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::SystemTime,
};

use kubeedge_proto::v1::{BoxRecord, KindRecord, KubeObject, ObjectKey, ReportStatus, ResourceType, StatusUpdate};
use thiserror::Error;

use super::{
    reports::{ReportKey, Reports},
    state::State,
};
use crate::store::{Store, StoreError, Table};

crate::message_records!(BoxRecord, KindRecord, KubeObject, ReportStatus, StatusUpdate);

const BOX_KEY: &[u8] = b"box";

/// The store of MetaManager, opened and read. Made before the system starts, so that a failure is seen there.
#[derive(Clone)]
pub struct Tables {
    pub(super) store: Store,
    pub(super) objects: Table<KubeObject>,
    pub(super) kinds: Table<KindRecord>,
    boxes: Table<BoxRecord>,
    pub(super) reports: Table<ReportStatus>,
    /// What this node reported last of each object that is here, and of itself.
    pub(super) statuses: Table<StatusUpdate>,
    /// This node's own object: one at most.
    pub(super) own: Table<KubeObject>,
    life: u64,
    /// The last generation of a report: goes on when the component is built again.
    pub(super) generations: Arc<AtomicU64>,
}

/// Why the tables cannot be used.
#[derive(Debug, Error)]
#[error("the edge's store cannot be read: {0}")]
pub struct TablesError(#[from] StoreError);

impl Tables {
    /// The tables in `store`. A first use makes the box's identity and puts it on disk.
    pub async fn open(store: Store) -> Result<Self, TablesError> {
        let mut tables = Self {
            objects: store.table("objects"),
            kinds: store.table("kinds"),
            boxes: store.table("box"),
            reports: store.table("reports"),
            statuses: store.table("statuses"),
            own: store.table("own"),
            life: 0,
            generations: Arc::default(),
            store,
        };
        let known = tables.boxes.get(BOX_KEY)?;
        let is_new = known.is_none();
        let this_box = known.unwrap_or_else(|| {
            let instance_id = uuid::Uuid::new_v4().into_bytes().to_vec().into();
            BoxRecord { instance_id, ..BoxRecord::default() }
        });
        tables.life = next_life(this_box.life, SystemTime::now());
        let mut batch = tables.store.batch();
        batch.put(&tables.boxes, BOX_KEY, &BoxRecord { life: tables.life, ..this_box });
        match batch.commit().await {
            // A full disk keeps no box from its pods. The next life is told from this one by the clock.
            Err(error) if !is_new => tracing::warn!("the count of lives is not on disk: {error}"),
            committed => committed?,
        }
        Ok(tables)
    }

    /// A number that no earlier use of this store had, and no earlier store of this box either while its clock was right.
    /// It rises.
    pub fn life(&self) -> u64 {
        self.life
    }

    /// Reads everything the component keeps in memory. A record that cannot be read is left out with a warning: the
    /// digest then differs, and the cloud sends it again. Until then no kind counts as complete: what was in the record
    /// is wanted, and must not end for being absent.
    pub(super) fn load(&self) -> (State, Reports) {
        let this_box = self.boxes.get(BOX_KEY).ok().flatten().unwrap_or_default();
        let mut unread = 0;
        let kinds =
            readable("kinds", self.kinds.scan_prefix(b""), &mut 0).map(|(_, record)| record).collect::<Vec<_>>();
        let objects = readable("objects", self.objects.scan_prefix(b""), &mut unread).map(|(_, object)| object);
        let mut state = State::load(this_box, kinds.into_iter(), objects);
        if unread > 0 {
            state.index.doubt();
        }
        // What was reported before counts on: of two statuses the higher generation is the newer one.
        let last = readable("statuses", self.statuses.scan_prefix(b""), &mut 0)
            .map(|(_, status)| status.generation)
            .max()
            .unwrap_or_default();
        let mut reports = Reports::after(self.generations.load(Ordering::Relaxed).max(last));
        for (_, report) in readable("reports", self.reports.scan_prefix(b""), &mut 0) {
            if let Some(key) = ReportKey::of(&report) {
                reports.load(key, report);
            }
        }
        (state, reports)
    }

    /// This node's own object, with its key.
    pub(super) fn own(&self) -> Vec<(Vec<u8>, KubeObject)> {
        let mut unread = 0;
        readable("own", self.own.scan_prefix(b""), &mut unread).collect()
    }

    pub(super) fn save_box(&self, record: &BoxRecord) -> impl Future<Output = Result<(), StoreError>> + use<> {
        let mut batch = self.store.batch();
        batch.put(&self.boxes, BOX_KEY, record);
        batch.commit()
    }

    pub(super) fn save_kind(&self, record: &KindRecord) -> impl Future<Output = Result<(), StoreError>> + use<> {
        let type_ = record.r#type.as_ref().map(ToString::to_string).unwrap_or_default();
        let mut batch = self.store.batch();
        batch.put(&self.kinds, type_.as_bytes(), record);
        batch.commit()
    }
}

/// The life after `last`, at least the seconds since 1970.
fn next_life(last: u64, now: SystemTime) -> u64 {
    let seconds = now.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    seconds.max(last.saturating_add(1))
}

/// The rows that can be read; the others are counted.
pub(super) fn readable<'a, V>(
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

/// Where an object, or what belongs to it, is kept.
pub(super) fn object_key(type_: &ResourceType, key: &ObjectKey) -> Vec<u8> {
    [type_.to_string().as_bytes(), key.namespace.as_bytes(), key.name.as_bytes()].join(&0)
}

/// What the keys of a type begin with.
pub(super) fn of_type(type_: &ResourceType) -> Vec<u8> {
    let mut prefix = type_.to_string().into_bytes();
    prefix.push(0);
    prefix
}
