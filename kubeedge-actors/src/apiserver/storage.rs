//! The objects: one writer, the disk before the answer, memory for every read.
//!
//! A writer holds the journal's lock from reading the present state to publishing the new one, so that read, check and
//! write are one step. A commit runs in a task of its own: a client that goes away leaves either nothing or everything.
//! Every change gets the next resourceVersion of one counter, which is on disk in the same batch.

use std::sync::{Arc, PoisonError, RwLock};

use serde_json::Value;
use tokio::sync::{Mutex, watch};
use tokio_util::sync::CancellationToken;

use super::custom::{Definition, Version};
use super::kind::Kind;
use super::object::{Key, Object};
use crate::kubeapi::collection::{Collection, Kept};
use crate::kubeapi::event_log::{Event, TooOld};
use crate::store::StoreError;

mod disk;
#[cfg(test)]
mod power_cut;
mod writer;

pub(crate) use disk::Disk;
pub(crate) use writer::Writer;

/// A kind by its place among those this process has served. A custom kind that comes back after its end has its place
/// again; no other kind ever gets it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct KindId(pub(crate) usize);

impl KindId {
    /// All custom kinds together, for [`Storage::subscribe`] only: changes of their objects and of the kinds themselves.
    pub(crate) const CUSTOM: Self = Self(usize::MAX);
}

/// One change of a batch.
#[derive(Debug)]
pub(crate) enum Change {
    /// Create or replace; the resourceVersion is set by the commit.
    Put(KindId, Value),
    /// Remove; the value is the last state, for watchers.
    Delete(KindId, Value),
}

struct Shelf {
    /// The row of the stored version.
    kind: &'static Kind,
    /// What a custom kind is now; `None` for a row of the table, and for a custom kind that has ended.
    custom: Option<Arc<Definition>>,
    live: bool,
    kept: Kept,
    /// Carries the last published resourceVersion.
    signal: watch::Sender<u64>,
}

struct State {
    resource_version: u64,
    shelves: Vec<Shelf>,
}

impl State {
    fn live(&self) -> impl Iterator<Item = (KindId, &Shelf)> {
        self.shelves.iter().enumerate().filter(|(_, shelf)| shelf.live).map(|(index, shelf)| (KindId(index), shelf))
    }
}

/// All objects of all kinds.
pub(crate) struct Storage {
    state: RwLock<State>,
    journal: Arc<Mutex<Disk>>,
    /// Any change of a custom kind or of its objects.
    custom: watch::Sender<u64>,
    closing: CancellationToken,
}

impl Storage {
    /// Loads everything that `disk` holds of `kinds` and of the custom kinds defined among them.
    pub(crate) fn open(kinds: &'static [Kind], disk: Disk) -> Result<Arc<Self>, StoreError> {
        let mut rows: Vec<(&'static Kind, Option<Arc<Definition>>)> = kinds.iter().map(|kind| (kind, None)).collect();
        let mut loaded = disk.load(kinds)?;
        let definitions = super::custom::established(kinds.iter().zip(&loaded.objects));
        for definition in definitions {
            disk.load_kind(definition.storage().kind, &mut loaded)?;
            rows.push((definition.storage().kind, Some(definition)));
        }
        let loaded = disk.settle(loaded)?;
        for why in &loaded.damaged {
            tracing::error!(why, "an object is lost: create it again");
        }
        let shelves = loaded
            .objects
            .into_iter()
            .zip(loaded.last_changes)
            .zip(rows)
            .map(|((objects, last), (kind, custom))| Shelf {
                kind,
                custom,
                live: true,
                kept: Kept::new(objects, last),
                signal: watch::Sender::new(loaded.resource_version),
            })
            .collect();
        Ok(Arc::new(Self {
            state: RwLock::new(State { resource_version: loaded.resource_version, shelves }),
            journal: Arc::new(Mutex::new(disk)),
            custom: watch::Sender::new(loaded.resource_version),
            closing: CancellationToken::new(),
        }))
    }

    pub(crate) fn kind(&self, id: KindId) -> &'static Kind {
        self.read(|state| state.shelves[id.0].kind)
    }

    /// Every kind that is stored, with its id: each object is of one of them. A custom one by its stored version.
    pub(crate) fn kinds(&self) -> impl Iterator<Item = (KindId, &'static Kind)> + use<> {
        let all: Vec<_> = self.read(|state| {
            let stored = state.live().filter(|(_, shelf)| shelf.kind.stored_as.is_none());
            stored.map(|(id, shelf)| (id, shelf.kind)).collect()
        });
        all.into_iter()
    }

    /// Every kind that is served, with its id: the table's, then the custom ones in each of their versions.
    pub(crate) fn served(&self) -> impl Iterator<Item = (KindId, &'static Kind)> + use<> {
        let mut all = Vec::new();
        self.read(|state| {
            for (id, shelf) in state.live() {
                match &shelf.custom {
                    None => all.push((id, shelf.kind)),
                    Some(definition) => all.extend(definition.served().map(|version| (id, version.kind))),
                }
            }
        });
        all.into_iter()
    }

    /// Every version of every custom kind that is served now.
    pub(crate) fn custom_versions(&self) -> Vec<Arc<Version>> {
        self.read(|state| {
            let definitions = state.live().filter_map(|(_, shelf)| shelf.custom.as_ref());
            definitions.flat_map(|definition| definition.served().cloned()).collect()
        })
    }

    /// Every custom kind that is served now.
    pub(crate) fn definitions(&self) -> Vec<(KindId, Arc<Definition>)> {
        self.read(|state| state.live().filter_map(|(id, shelf)| Some((id, shelf.custom.clone()?))).collect())
    }

    /// Where the objects of a kind are kept: its own place, or that of the kind it is stored as.
    fn row(&self, kind: KindId) -> KindId {
        let stored = self.kind(kind).stored_as.map(|stored| stored.kind);
        stored.and_then(|kind| self.find(kind.group, kind.version, kind.plural)).unwrap_or(kind)
    }

    /// The kind served under this group, version and plural name.
    pub(crate) fn find(&self, group: &str, version: &str, plural: &str) -> Option<KindId> {
        self.find_version(group, version, plural).map(|(id, _, _)| id)
    }

    /// The same with the row of that version and, for a custom kind, what its definition says of it.
    pub(crate) fn find_version(
        &self,
        group: &str,
        version: &str,
        plural: &str,
    ) -> Option<(KindId, &'static Kind, Option<Arc<Version>>)> {
        self.read(|state| {
            let named = state.live().filter(|(_, shelf)| shelf.kind.group == group && shelf.kind.plural == plural);
            named.into_iter().find_map(|(id, shelf)| match &shelf.custom {
                None => (shelf.kind.version == version).then_some((id, shelf.kind, None)),
                Some(definition) => {
                    let found = definition.served().find(|served| served.kind.version == version)?;
                    Some((id, found.kind, Some(found.clone())))
                }
            })
        })
    }

    /// A kind of the core group by its plural name.
    pub(crate) fn core(&self, plural: &str) -> Option<KindId> {
        self.find("", "v1", plural)
    }

    pub(crate) fn get(&self, kind: KindId, key: &Key) -> Option<Arc<Object>> {
        let row = self.row(kind);
        self.read(|state| state.shelves[row.0].kept.objects.get(key).cloned())
    }

    /// The objects of a kind, in one namespace or in all, in the order of their keys, with the resourceVersion.
    pub(crate) fn list(&self, kind: KindId, namespace: Option<&str>) -> (u64, Vec<Arc<Object>>) {
        let row = self.row(kind);
        self.read(|state| (state.resource_version, state.shelves[row.0].kept.list(namespace)))
    }

    /// Calls `visit` with each object after `start`, as they were at `position`; it says when to stop. `None` is now.
    /// Gives the resourceVersion of that state.
    pub(crate) fn scan(
        &self,
        kind: KindId,
        namespace: Option<&str>,
        position: Option<u64>,
        start: Option<&Key>,
        visit: &mut dyn FnMut(&Arc<Object>) -> bool,
    ) -> Result<u64, TooOld> {
        let row = self.row(kind);
        self.read(|state| {
            state.shelves[row.0].kept.scan(namespace, position, start, visit)?;
            Ok(position.unwrap_or(state.resource_version))
        })
    }

    /// Up to `limit` events of a kind after `position`, and the position reached: the answer has everything up to it.
    pub(crate) fn events(&self, kind: KindId, position: u64, limit: usize) -> Result<(Vec<Event>, u64), TooOld> {
        let row = self.row(kind);
        self.read(|state| state.shelves[row.0].kept.events(position, limit, state.resource_version))
    }

    pub(crate) fn resource_version(&self) -> u64 {
        self.read(|state| state.resource_version)
    }

    /// Resolves `changed` after each change of the kind.
    pub(crate) fn subscribe(&self, kind: KindId) -> watch::Receiver<u64> {
        if kind == KindId::CUSTOM {
            return self.custom.subscribe();
        }
        let row = self.row(kind);
        self.read(|state| state.shelves[row.0].signal.subscribe())
    }

    /// Cancelled when the server stops: watches and controllers end.
    pub(crate) fn closing(&self) -> &CancellationToken {
        &self.closing
    }

    /// Waits for the turn to write.
    pub(crate) async fn write(self: &Arc<Self>) -> Writer {
        let journal = self.journal.clone().lock_owned().await;
        Writer::new(self.clone(), journal)
    }

    fn read<R>(&self, look: impl FnOnce(&State) -> R) -> R {
        // A panic under the lock cannot leave it half changed: `publish` prepares everything before.
        look(&self.state.read().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The objects of one kind, for lists and watches.
pub(crate) struct OfKind {
    pub(crate) storage: Arc<Storage>,
    pub(crate) id: KindId,
}

impl Collection for OfKind {
    fn resource_version(&self) -> u64 {
        self.storage.resource_version()
    }

    fn list(&self, namespace: Option<&str>) -> (u64, Vec<Arc<Object>>) {
        self.storage.list(self.id, namespace)
    }

    fn scan(
        &self,
        namespace: Option<&str>,
        position: Option<u64>,
        start: Option<&Key>,
        visit: &mut dyn FnMut(&Arc<Object>) -> bool,
    ) -> Result<u64, TooOld> {
        self.storage.scan(self.id, namespace, position, start, visit)
    }

    fn events(&self, position: u64, limit: usize) -> Result<(Vec<Event>, u64), TooOld> {
        self.storage.events(self.id, position, limit)
    }

    fn subscribe(&self) -> watch::Receiver<u64> {
        self.storage.subscribe(self.id)
    }

    fn closing(&self) -> &CancellationToken {
        self.storage.closing()
    }
}

#[cfg(test)]
mod tests;
