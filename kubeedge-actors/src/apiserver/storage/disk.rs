//! How objects lie in the store: one table of objects, one of positions.
//!
//! | table | key | value |
//! |---|---|---|
//! | `apiserver.objects` | `<plural>.<group>` 0 `<namespace>` 0 `<name>` | JSON without `kind` and `apiVersion` |
//! | `apiserver.positions` | empty, or `<plural>.<group>` | last resourceVersion, of all or of the kind, in decimal |

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;

use super::super::kind::Kind;
use super::super::object::{Key, Object};
use crate::store::{Store, StoreError, Table};

/// Added to the highest resourceVersion found when the record of it is damaged: what was deleted last is unknown.
const UNKNOWN_GAP: u64 = 100_000;

/// What a server starts with.
#[derive(Default)]
pub(crate) struct Loaded {
    pub(crate) resource_version: u64,
    /// One map a kind, in the order of the table.
    pub(crate) objects: Vec<BTreeMap<Key, Arc<Object>>>,
    /// The resourceVersion of the last change of each kind.
    pub(crate) last_changes: Vec<u64>,
    /// Records that cannot be read: their objects are gone, creating them anew mends the record.
    pub(crate) damaged: Vec<String>,
}

/// Changes of one commit.
#[derive(Default)]
pub(crate) struct Batch {
    objects: BTreeMap<Vec<u8>, Option<Bytes>>,
    positions: BTreeMap<String, u64>,
}

impl Batch {
    /// Sets (`Some`) or removes an object.
    pub(crate) fn set(&mut self, kind: &Kind, key: &Key, json: Option<Bytes>, resource_version: u64) {
        self.objects.insert(record_key(kind, key), json);
        self.positions.insert(qualified(kind), resource_version);
        self.positions.insert(String::new(), resource_version);
    }

    /// Puts an object back as it is in memory, unless this batch changes it anyway.
    fn restore(&mut self, key: &[u8], json: &Option<Bytes>) {
        self.objects.entry(key.to_owned()).or_insert_with(|| json.clone());
    }
}

fn qualified(kind: &Kind) -> String {
    format!("{}.{}", kind.plural, kind.group)
}

/// The parts hold no zero byte: they are DNS names.
fn record_key(kind: &Kind, key: &Key) -> Vec<u8> {
    let mut bytes = prefix(kind);
    bytes.extend_from_slice(key.namespace.as_bytes());
    bytes.push(0);
    bytes.extend_from_slice(key.name.as_bytes());
    bytes
}

fn prefix(kind: &Kind) -> Vec<u8> {
    let mut bytes = qualified(kind).into_bytes();
    bytes.push(0);
    bytes
}

/// The tables, held by the one writer.
pub(crate) struct Disk {
    store: Store,
    objects: Table<Bytes>,
    positions: Table<String>,
    /// After a commit that failed it is open whether it is on disk: what memory holds goes with the next one.
    unsettled: BTreeMap<Vec<u8>, Option<Bytes>>,
}

impl Disk {
    pub(crate) fn new(store: Store) -> Self {
        let (objects, positions) = (store.table("apiserver.objects"), store.table("apiserver.positions"));
        Self { store, objects, positions, unsettled: BTreeMap::new() }
    }

    /// Reads all objects of the kinds.
    pub(crate) fn load(&self, kinds: &'static [Kind]) -> Result<Loaded, StoreError> {
        let mut loaded = Loaded::default();
        for kind in kinds {
            self.load_kind(kind, &mut loaded)?;
        }
        Ok(loaded)
    }

    /// Reads the objects of one more kind.
    pub(crate) fn load_kind(&self, kind: &Kind, loaded: &mut Loaded) -> Result<(), StoreError> {
        let damaged = &mut loaded.damaged;
        let mut shelf = BTreeMap::new();
        for record in self.objects.scan_prefix(&prefix(kind)) {
            let json = match record {
                Ok((_, json)) => json,
                Err(error @ (StoreError::Corrupt { .. } | StoreError::NewerRecord { .. })) => {
                    damaged.push(error.to_string());
                    continue;
                }
                Err(error) => return Err(error),
            };
            match Object::from_stored(kind, json) {
                Ok(object) => {
                    shelf.insert(object.key.clone(), Arc::new(object));
                }
                Err(error) => damaged.push(format!("a record of {} is not an object: {error}", kind.plural)),
            }
        }
        let highest = shelf.values().map(|object| object.resource_version).max().unwrap_or_default();
        let last = self.position(&qualified(kind), damaged)?;
        loaded.last_changes.push(last.unwrap_or_default().max(highest));
        loaded.objects.push(shelf);
        Ok(())
    }

    /// Finds the resourceVersion to go on with, after all kinds are read (`P-VERSIONS-RISE`).
    pub(crate) fn settle(&self, mut loaded: Loaded) -> Result<Loaded, StoreError> {
        let highest = loaded.last_changes.iter().copied().max().unwrap_or_default();
        loaded.resource_version = match self.position("", &mut loaded.damaged)? {
            Some(position) => position.max(highest),
            None if highest == 0 && loaded.damaged.is_empty() => 0,
            None => highest + UNKNOWN_GAP,
        };
        Ok(loaded)
    }

    fn position(&self, name: &str, damaged: &mut Vec<String>) -> Result<Option<u64>, StoreError> {
        match self.positions.get(name.as_bytes()) {
            Ok(text) => Ok(text.and_then(|text| text.parse().ok())),
            Err(error @ (StoreError::Corrupt { .. } | StoreError::NewerRecord { .. })) => {
                damaged.push(error.to_string());
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Makes the batch durable. `present` tells what memory holds of a key, should the outcome stay open.
    pub(crate) async fn commit(
        &mut self,
        mut batch: Batch,
        present: BTreeMap<Vec<u8>, Option<Bytes>>,
    ) -> Result<(), StoreError> {
        for (key, json) in &self.unsettled {
            batch.restore(key, json);
        }
        let mut records = self.store.batch();
        for (key, json) in &batch.objects {
            match json {
                Some(json) => records.put(&self.objects, key, json),
                None => records.delete(&self.objects, key),
            }
        }
        for (name, position) in &batch.positions {
            records.put(&self.positions, name.as_bytes(), &position.to_string());
        }
        let outcome = records.commit().await;
        match outcome {
            Ok(()) => self.unsettled.clear(),
            Err(StoreError::Full(_) | StoreError::ReadOnly(_) | StoreError::TooLarge { .. }) => {}
            Err(_) => self.unsettled.extend(present),
        }
        outcome
    }

    /// The record's key, to say what memory holds.
    pub(crate) fn key(kind: &Kind, key: &Key) -> Vec<u8> {
        record_key(kind, key)
    }
}
