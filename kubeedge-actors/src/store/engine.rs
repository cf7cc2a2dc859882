//! The small trait below the tables, and its twin in memory.

use std::{
    collections::BTreeMap,
    ops::Range,
    sync::{PoisonError, RwLock},
};

use super::StoreError;

/// What one group commit changes: key to new value, or to nothing. Sorted, each key once.
pub(crate) type Writes = BTreeMap<Vec<u8>, Option<Vec<u8>>>;

/// A key and its value.
pub(crate) type Entry = (Vec<u8>, Vec<u8>);

/// Entries in key order.
pub(crate) type Entries = Vec<Entry>;

/// An ordered map of bytes with atomic, durable commits. One thread commits at a time; any may read meanwhile.
pub(crate) trait Engine: Send + Sync {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError>;

    /// The first `limit` entries of a range (empty `end`: no end). Fewer than `limit` means there are no more.
    fn page(&self, range: &Range<Vec<u8>>, limit: usize) -> Result<Entries, StoreError>;

    /// Called before a commit that follows a failed one: makes the engine usable again if it is not.
    fn recover(&self) -> Result<(), StoreError>;

    /// Applies all of `writes` or nothing. When it returns `Ok` they survive a power cut. `number` is the commit's.
    fn commit(&self, number: u64, writes: Writes) -> Result<(), StoreError>;

    /// Ends it; every later call answers `Closed`.
    fn close(&self) -> Result<(), StoreError>;
}

/// The twin in memory: the same rules, nothing on disk.
pub(crate) struct Memory(RwLock<Option<BTreeMap<Vec<u8>, Vec<u8>>>>);

impl Memory {
    pub(crate) fn new() -> Self {
        Self(RwLock::new(Some(BTreeMap::new())))
    }
}

impl Engine for Memory {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        let map = self.0.read().unwrap_or_else(PoisonError::into_inner);
        Ok(map.as_ref().ok_or(StoreError::Closed)?.get(key).cloned())
    }

    fn page(&self, range: &Range<Vec<u8>>, limit: usize) -> Result<Entries, StoreError> {
        let map = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let map = map.as_ref().ok_or(StoreError::Closed)?;
        let before_end = |key: &[u8]| range.end.is_empty() || key < range.end.as_slice();
        Ok(map
            .range(range.start.clone()..)
            .take_while(|(key, _)| before_end(key))
            .take(limit)
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect())
    }

    fn recover(&self) -> Result<(), StoreError> {
        Ok(())
    }

    fn commit(&self, _number: u64, writes: Writes) -> Result<(), StoreError> {
        let mut map = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let map = map.as_mut().ok_or(StoreError::Closed)?;
        for (key, value) in writes {
            match value {
                Some(value) => drop(map.insert(key, value)),
                None => drop(map.remove(&key)),
            }
        }
        Ok(())
    }

    fn close(&self) -> Result<(), StoreError> {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = None;
        Ok(())
    }
}
