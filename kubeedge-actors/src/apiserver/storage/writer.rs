//! The turn to write: from a batch of changes to the disk, then to memory and those who watch.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};

use bytes::Bytes;
use tokio::sync::{OwnedMutexGuard, watch};

use super::disk::{self, Disk};
use super::{Change, KindId, Shelf, Storage};
use crate::apiserver::custom::Definition;
use crate::apiserver::object::{Key, Object, metadata};
use crate::apiserver::status::Status;
use crate::kubeapi::collection::Kept;
use crate::kubeapi::event_log::{Event, EventLog};
use crate::store::StoreError;

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
    pub(super) fn new(storage: Arc<Storage>, journal: OwnedMutexGuard<Disk>) -> Self {
        Self { storage, journal }
    }

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
                kept: Kept::new(BTreeMap::new(), now),
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
        shelf.kept.log = EventLog::new(now);
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

impl Storage {
    /// Makes what is on disk visible, all at once.
    fn publish(&self, prepared: Vec<Prepared>) -> Vec<Arc<Object>> {
        let mut touched = Vec::new();
        let mut results = Vec::with_capacity(prepared.len());
        {
            let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
            for Prepared { kind, object, deleted } in prepared {
                let resource_version = object.resource_version;
                let shelf = &mut state.shelves[kind.0];
                let previous = if deleted {
                    shelf.kept.objects.remove(&object.key)
                } else {
                    shelf.kept.objects.insert(object.key.clone(), object.clone())
                };
                shelf.kept.log.push(Event { resource_version, previous, object: object.clone(), deleted });
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
