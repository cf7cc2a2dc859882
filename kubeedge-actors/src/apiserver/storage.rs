//! The objects: one writer, the disk before the answer, memory for every read.
//!
//! A writer holds the journal's lock from reading the present state to publishing the new one, so that read, check and
//! write are one step. A commit runs in a task of its own: a client that goes away leaves either nothing or everything.
//! Every change gets the next resourceVersion of one counter, which is on disk in the same batch.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use bytes::Bytes;
use serde_json::Value;
use tokio::sync::{Mutex, OwnedMutexGuard, watch};
use tokio_util::sync::CancellationToken;

use super::custom::{Definition, Version};
use super::kind::Kind;
use super::object::{Key, Object, metadata};
use super::status::Status;
use super::watch::{Event, EventLog, TooOld};
use crate::store::StoreError;

mod disk;
#[cfg(test)]
mod power_cut;

pub(crate) use disk::Disk;

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
    objects: BTreeMap<Key, Arc<Object>>,
    log: EventLog,
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
                objects,
                log: EventLog::new(last),
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
        self.read(|state| state.shelves[row.0].objects.get(key).cloned())
    }

    /// The objects of a kind, in one namespace or in all, in the order of their keys, with the resourceVersion.
    pub(crate) fn list(&self, kind: KindId, namespace: Option<&str>) -> (u64, Vec<Arc<Object>>) {
        let row = self.row(kind);
        self.read(|state| {
            let objects = scope(&state.shelves[row.0].objects, namespace, None).map(|(_, o)| o.clone()).collect();
            (state.resource_version, objects)
        })
    }

    /// Calls `visit` with each object after `start`, as they were at `position`; it says when to stop. `None` is now.
    /// Gives the resourceVersion of that state.
    pub(crate) fn scan(
        &self,
        kind: KindId,
        namespace: Option<&str>,
        position: Option<u64>,
        start: Option<&Key>,
        mut visit: impl FnMut(&Arc<Object>) -> bool,
    ) -> Result<u64, TooOld> {
        let row = self.row(kind);
        self.read(|state| {
            let shelf = &state.shelves[row.0];
            let past = match position {
                Some(position) => shelf.log.undo(position)?,
                None => BTreeMap::new(),
            };
            let mut present = scope(&shelf.objects, namespace, start).peekable();
            let mut past = scope(&past, namespace, start).peekable();
            loop {
                // A merge of two sorted streams; where both have a key, the past one stands.
                let take_past = match (present.peek(), past.peek()) {
                    (None, None) => break,
                    (Some(_), None) => false,
                    (None, Some(_)) => true,
                    (Some((now, _)), Some((then, _))) => then <= now,
                };
                let object = if take_past {
                    let Some((key, object)) = past.next() else { break };
                    present.next_if(|(now, _)| *now == key);
                    object.as_ref()
                } else {
                    present.next().map(|(_, object)| object)
                };
                if object.is_some_and(|object| !visit(object)) {
                    break;
                }
            }
            Ok(position.unwrap_or(state.resource_version))
        })
    }

    /// Up to `limit` events of a kind after `position`, and the position reached: the answer has everything up to it.
    pub(crate) fn events(&self, kind: KindId, position: u64, limit: usize) -> Result<(Vec<Event>, u64), TooOld> {
        let row = self.row(kind);
        self.read(|state| {
            let events: Vec<Event> = state.shelves[row.0].log.after(position)?.take(limit).cloned().collect();
            let reached = match events.last() {
                Some(last) if events.len() == limit => last.resource_version,
                _ => state.resource_version.max(position),
            };
            Ok((events, reached))
        })
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
        Writer { storage: self.clone(), journal }
    }

    fn read<R>(&self, look: impl FnOnce(&State) -> R) -> R {
        // A panic under the lock cannot leave it half changed: `publish` prepares everything before.
        look(&self.state.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn publish(&self, prepared: Vec<Prepared>) -> Vec<Arc<Object>> {
        let mut touched = Vec::new();
        let mut results = Vec::with_capacity(prepared.len());
        {
            let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
            for Prepared { kind, object, deleted } in prepared {
                let resource_version = object.resource_version;
                let shelf = &mut state.shelves[kind.0];
                let previous = if deleted {
                    shelf.objects.remove(&object.key)
                } else {
                    shelf.objects.insert(object.key.clone(), object.clone())
                };
                shelf.log.push(Event { resource_version, previous, object: object.clone(), deleted });
                state.resource_version = resource_version;
                touched.push(kind);
                results.push(object);
            }
        }
        let now = results.last().map(|object| object.resource_version).unwrap_or_default();
        self.read(|state| {
            for kind in touched {
                let shelf = &state.shelves[kind.0];
                shelf.signal.send_replace(now);
                if shelf.custom.is_some() {
                    self.custom.send_replace(now);
                }
            }
        });
        results
    }
}

fn scope<'a, T>(
    map: &'a BTreeMap<Key, T>,
    namespace: Option<&'a str>,
    after: Option<&Key>,
) -> impl Iterator<Item = (&'a Key, &'a T)> {
    use std::ops::Bound;
    let first = Key::new(namespace.unwrap_or_default(), "");
    let lower = match after {
        Some(key) => Bound::Excluded(key.clone()),
        None => Bound::Included(first),
    };
    map.range((lower, Bound::Unbounded)).take_while(move |(key, _)| namespace.is_none_or(|ns| key.namespace == ns))
}

struct Prepared {
    kind: KindId,
    object: Arc<Object>,
    deleted: bool,
}

/// The turn to write: what it reads stays so until its commit.
pub(crate) struct Writer {
    storage: Arc<Storage>,
    journal: OwnedMutexGuard<Disk>,
}

impl Writer {
    pub(crate) fn get(&self, kind: KindId, key: &Key) -> Option<Arc<Object>> {
        self.storage.get(kind, key)
    }

    /// All objects of a kind.
    pub(crate) fn list(&self, kind: KindId) -> Vec<Arc<Object>> {
        self.storage.list(kind, None).1
    }

    /// Serves a custom kind from now on, or serves it as it is now defined.
    pub(crate) fn install(&self, definition: Arc<Definition>) {
        let kind = definition.storage().kind;
        let mut state = self.storage.state.write().unwrap_or_else(PoisonError::into_inner);
        let now = state.resource_version;
        let same = |shelf: &Shelf| shelf.kind.group == kind.group && shelf.kind.plural == kind.plural;
        match state.shelves.iter_mut().find(|shelf| same(shelf)) {
            Some(shelf) => {
                shelf.kind = kind;
                shelf.custom = Some(definition);
                shelf.live = true;
            }
            None => state.shelves.push(Shelf {
                kind,
                custom: Some(definition),
                live: true,
                objects: BTreeMap::new(),
                log: EventLog::new(now),
                signal: watch::Sender::new(now),
            }),
        }
        drop(state);
        self.storage.custom.send_replace(now);
    }

    /// Ends a custom kind that has no objects any more: its watches end, and so does every write to it.
    pub(crate) fn retire(&self, id: KindId) {
        let mut state = self.storage.state.write().unwrap_or_else(PoisonError::into_inner);
        let now = state.resource_version;
        let shelf = &mut state.shelves[id.0];
        shelf.live = false;
        shelf.custom = None;
        shelf.log = EventLog::new(now);
        // Receivers of the old one see its end.
        shelf.signal = watch::Sender::new(now);
        drop(state);
        self.storage.custom.send_replace(now);
    }

    /// Makes the changes durable, then visible, all or none, and gives the objects as they are now
    /// (`P-API-ANSWER-AFTER-COMMIT`).
    pub(crate) async fn commit(self, changes: Vec<Change>) -> Result<Vec<Arc<Object>>, Status> {
        let Self { storage, mut journal } = self;
        let mut resource_version = storage.resource_version();
        let mut prepared = Vec::with_capacity(changes.len());
        let mut batch = disk::Batch::default();
        let mut present = BTreeMap::new();
        for change in changes {
            resource_version += 1;
            let (kind, mut value, deleted) = match change {
                Change::Put(kind, value) => (kind, value, false),
                Change::Delete(kind, value) => (kind, value, true),
            };
            if !storage.read(|state| state.shelves[kind.0].live) {
                // A custom kind that ended while the request waited for its turn.
                return Err(Status::no_such_resource());
            }
            metadata(&mut value).insert("resourceVersion".into(), resource_version.to_string().into());
            let object = Arc::new(Object::new(storage.kind(kind), &value));
            let kind = storage.row(kind);
            let stored: Option<Bytes> = (!deleted).then(|| object.stored().clone());
            batch.set(storage.kind(kind), &object.key, stored, resource_version);
            let before = storage.get(kind, &object.key).map(|before| before.stored().clone());
            present.insert(Disk::key(storage.kind(kind), &object.key), before);
            prepared.push(Prepared { kind, object, deleted });
        }
        if prepared.is_empty() {
            return Ok(Vec::new());
        }
        // Not tied to the request: dropping it between disk and memory would let them differ.
        let commit = tokio::spawn(async move {
            journal.commit(batch, present).await.map_err(|error| {
                match error {
                    // The store says once that it does not commit, and once that it does again.
                    StoreError::Full(_) | StoreError::ReadOnly(_) => Status::insufficient_storage(error),
                    _ => {
                        tracing::error!(%error, "cannot write to the store");
                        Status::internal(error)
                    }
                }
            })?;
            let published = storage.publish(prepared);
            drop(journal);
            Ok(published)
        });
        commit.await.unwrap_or_else(|error| Err(Status::internal(error)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::super::kinds;
    use super::*;
    use crate::store::Store;

    #[derive(Clone, Debug)]
    enum Step {
        Put(u8, u8),
        Delete(u8),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            3 => (0..6_u8, any::<u8>()).prop_map(|(name, value)| Step::Put(name, value)),
            1 => (0..6_u8).prop_map(Step::Delete),
        ];
        proptest::collection::vec(step, 1..40)
    }

    fn map(name: u8, value: u8) -> Value {
        json!({
            "metadata": {"name": format!("m{name}"), "namespace": if name.is_multiple_of(2) { "a" } else { "b" }},
            "data": {"v": value.to_string()},
        })
    }

    /// What a reader sees: names and values.
    fn seen(storage: &Storage, id: KindId, namespace: Option<&str>, position: Option<u64>) -> Vec<(Key, String)> {
        let mut all = Vec::new();
        let scanned = storage.scan(id, namespace, position, None, |object| {
            let value = object.value(storage.kind(id));
            all.push((object.key.clone(), value["data"]["v"].as_str().unwrap_or_default().to_owned()));
            true
        });
        scanned.unwrap();
        all
    }

    fn run(steps: Vec<Step>) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let store = Store::in_memory();
            let storage = Storage::open(kinds::kinds(), Disk::new(store.clone())).unwrap();
            let id = storage.core("configmaps").unwrap();
            let mut model: BTreeMap<Key, String> = BTreeMap::new();
            let mut history = vec![(0, model.clone())];
            for step in steps {
                let (Step::Put(name, _) | Step::Delete(name)) = step;
                let value = match step {
                    Step::Put(_, value) => value,
                    Step::Delete(_) => 0,
                };
                let object = map(name, value);
                let key = Key::new(
                    object["metadata"]["namespace"].as_str().unwrap(),
                    object["metadata"]["name"].as_str().unwrap(),
                );
                let writer = storage.write().await;
                let change = match step {
                    Step::Put(..) => {
                        model.insert(key, value.to_string());
                        Change::Put(id, object)
                    }
                    Step::Delete(_) if model.remove(&key).is_none() => continue,
                    Step::Delete(_) => Change::Delete(id, object),
                };
                writer.commit(vec![change]).await.unwrap();
                history.push((storage.resource_version(), model.clone()));
            }
            // Every state that was is still to be seen, whole and by namespace.
            for (position, state) in &history {
                let expected: Vec<(Key, String)> = state.clone().into_iter().collect();
                assert_eq!(seen(&storage, id, None, Some(*position)), expected, "at {position}");
                let expected: Vec<(Key, String)> =
                    expected.into_iter().filter(|(key, _)| key.namespace == "b").collect();
                assert_eq!(seen(&storage, id, Some("b"), Some(*position)), expected, "b at {position}");
            }
            // The events after each state lead to the last one.
            for (position, state) in history {
                let mut state = state;
                for event in storage.events(id, position, usize::MAX).unwrap().0 {
                    let key = event.object.key.clone();
                    if event.deleted {
                        state.remove(&key);
                    } else {
                        let value = event.object.value(storage.kind(id));
                        state.insert(key, value["data"]["v"].as_str().unwrap().to_owned());
                    }
                }
                assert_eq!(state, model, "from {position}");
            }
            // And it is what the disk has.
            let again = Storage::open(kinds::kinds(), Disk::new(store)).unwrap();
            assert_eq!(again.resource_version(), storage.resource_version());
            assert_eq!(seen(&again, id, None, None), model.into_iter().collect::<Vec<_>>());
        });
    }

    /// P-API-ANSWER-AFTER-COMMIT: nobody sees a change, and nobody is told it was made, before it is on disk.
    #[tokio::test]
    async fn a_change_that_is_not_on_disk_is_neither_acknowledged_nor_seen() {
        let store = Store::in_memory();
        let storage = Storage::open(kinds::kinds(), Disk::new(store.clone())).unwrap();
        let id = storage.core("configmaps").unwrap();
        store.close().await.unwrap();
        let refused = storage.write().await.commit(vec![Change::Put(id, map(0, 1))]).await;
        assert!(refused.is_err(), "acknowledged without a disk");
        assert_eq!((storage.list(id, None).1.len(), storage.resource_version()), (0, 0));
        assert!(storage.events(id, 0, usize::MAX).unwrap().0.is_empty());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn past_states_events_and_disk_agree_with_a_model(steps in steps()) {
            run(steps);
        }
    }

    #[tokio::test]
    async fn a_position_before_the_log_is_too_old_and_one_within_is_not() {
        let storage = Storage::open(kinds::kinds(), Disk::new(Store::in_memory())).unwrap();
        let id = storage.core("configmaps").unwrap();
        let over = 10;
        for _ in 0..(super::super::watch::LOG_EVENTS + over) {
            storage.write().await.commit(vec![Change::Put(id, map(1, 1))]).await.unwrap();
        }
        assert_eq!(storage.events(id, over as u64 - 1, 1).unwrap_err(), TooOld { oldest: over as u64 });
        assert_eq!(storage.events(id, over as u64, 1).unwrap().0.len(), 1);
    }
}
