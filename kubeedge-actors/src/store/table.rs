//! Tables and batches: the typed face of the store.

use std::{collections::VecDeque, fmt, marker::PhantomData, ops::Range, sync::Arc};

use super::{
    Inner, Record, StoreError,
    commit::{self, Changes, ReadError},
    engine::{Engine, Entry},
    keys,
    record::{self, Encoded},
};

/// Longest key, bytes. Two DNS names and a kind fit four times.
pub const MAX_KEY_BYTES: usize = 1024;
/// Largest value, bytes. Kubernetes objects end at 1.5 MiB.
pub const MAX_VALUE_BYTES: usize = 16 * 1024 * 1024;
/// Largest batch, bytes of its keys and values.
pub const MAX_BATCH_BYTES: usize = 64 * 1024 * 1024;

/// Entries read at once by a scan.
const SCAN_PAGE: usize = 64;

/// Records of one type under keys of bytes, ordered. Cheap to clone.
pub struct Table<V> {
    store: Arc<Inner>,
    name: &'static str,
    value: PhantomData<fn() -> V>,
}

impl<V> Clone for Table<V> {
    fn clone(&self) -> Self {
        Self { store: self.store.clone(), name: self.name, value: PhantomData }
    }
}

impl<V> fmt::Debug for Table<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Table").field("name", &self.name).finish_non_exhaustive()
    }
}

impl<V: Record> Table<V> {
    pub(crate) fn new(store: Arc<Inner>, name: &'static str) -> Self {
        Self { store, name, value: PhantomData }
    }

    /// The table's name.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// The value of a key. Microseconds: from memory or one read of the disk, never waiting for a commit.
    pub fn get(&self, key: &[u8]) -> Result<Option<V>, StoreError> {
        let full = keys::record(self.name, key);
        let found = commit::read(&*self.store.engine, &full).map_err(|error| reading(self.name, key, error))?;
        found.map(|value| record::decode(self.name, key, value.version, &value.payload)).transpose()
    }

    /// Whether the key has a value; the value itself is not read or checked.
    pub fn contains(&self, key: &[u8]) -> Result<bool, StoreError> {
        Ok(self.store.engine.get(&keys::record(self.name, key))?.is_some())
    }

    /// All records whose key starts with `prefix`, in key order.
    ///
    /// Each record is whole, the scan as a whole is no snapshot: a commit meanwhile may be seen in part. A damaged
    /// record is an `Err` in its place and the scan goes on; any other error ends it.
    pub fn scan_prefix(&self, prefix: &[u8]) -> Scan<V> {
        self.range_from(prefix, prefix)
    }

    /// As [`Self::scan_prefix`], beginning with the first key that is not before `from`: for pages of a listing.
    pub fn range_from(&self, from: &[u8], prefix: &[u8]) -> Scan<V> {
        let prefix = keys::record(self.name, prefix);
        let range = keys::range(&prefix, &keys::record(self.name, from));
        Scan { table: self.clone(), range, read: VecDeque::new(), done: false }
    }
}

fn reading(table: &str, key: &[u8], error: ReadError) -> StoreError {
    match error {
        ReadError::Store(error) => error,
        ReadError::Damaged(why) => record::corrupt(table, key, why),
    }
}

/// Records in key order, read page by page; holds no lock between two of them.
pub struct Scan<V> {
    table: Table<V>,
    range: Range<Vec<u8>>,
    read: VecDeque<Entry>,
    done: bool,
}

impl<V: Record> Scan<V> {
    fn next_head(&mut self) -> Result<Option<Entry>, StoreError> {
        if self.read.is_empty() && !self.done {
            let page = self.table.store.engine.page(&self.range, SCAN_PAGE)?;
            self.done = page.len() < SCAN_PAGE;
            if let Some((last, _)) = page.last() {
                self.range.start = [last.as_slice(), &[0]].concat();
            }
            self.read = page.into();
        }
        Ok(self.read.pop_front())
    }
}

impl<V: Record> Iterator for Scan<V> {
    type Item = Result<(Vec<u8>, V), StoreError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let (full, head) = match self.next_head() {
                Ok(entry) => entry?,
                Err(error) => {
                    self.done = true;
                    return Some(Err(error));
                }
            };
            let (name, key) = (self.table.name, keys::split_record(&full).map_or(full.as_slice(), |(_, key)| key));
            return match commit::assemble(&*self.table.store.engine, &full, head) {
                // deleted since its page was read
                Ok(None) => continue,
                Ok(Some(value)) => {
                    Some(record::decode(name, key, value.version, &value.payload).map(|value| (key.to_vec(), value)))
                }
                Err(error) => Some(Err(reading(name, key, error))),
            };
        }
    }
}

/// Puts and deletes, in one or several tables, that happen together or not at all. Later ones win over earlier ones.
#[must_use = "a batch does nothing until it is committed"]
pub struct Batch {
    store: Arc<Inner>,
    changes: Changes,
    bytes: usize,
    refused: Option<StoreError>,
}

impl Batch {
    pub(crate) fn new(store: Arc<Inner>) -> Self {
        Self { store, changes: Changes::new(), bytes: 0, refused: None }
    }

    /// Sets a key's value. A key or value over its bound is reported by the commit.
    pub fn put<V: Record>(&mut self, table: &Table<V>, key: &[u8], value: &V) {
        let payload = value.encode();
        if payload.len() > MAX_VALUE_BYTES {
            let what = format!("the value of {:?} in table {}", record::show(key), table.name);
            self.refuse(StoreError::TooLarge { what, size: payload.len(), limit: MAX_VALUE_BYTES });
            return;
        }
        self.change(table, key, Some(Encoded { version: V::VERSION, payload }));
    }

    /// Removes a key; one that is not there is no error.
    pub fn delete<V: Record>(&mut self, table: &Table<V>, key: &[u8]) {
        self.change(table, key, None);
    }

    /// Whether there is nothing to commit.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty() && self.refused.is_none()
    }

    fn change<V>(&mut self, table: &Table<V>, key: &[u8], value: Option<Encoded>) {
        if !Arc::ptr_eq(&self.store, &table.store) {
            self.refuse(StoreError::ForeignTable(table.name));
        } else if key.len() > MAX_KEY_BYTES {
            let what = format!("the key {:?} of table {}", record::show(key), table.name);
            self.refuse(StoreError::TooLarge { what, size: key.len(), limit: MAX_KEY_BYTES });
        } else {
            self.bytes += key.len() + value.as_ref().map_or(0, |value| value.payload.len());
            if self.bytes > MAX_BATCH_BYTES {
                let what = "the batch".to_owned();
                self.refuse(StoreError::TooLarge { what, size: self.bytes, limit: MAX_BATCH_BYTES });
            } else {
                self.changes.insert(keys::record(table.name, key), value);
            }
        }
    }

    /// The first mistake is what the commit reports.
    fn refuse(&mut self, error: StoreError) {
        self.refused.get_or_insert(error);
        self.changes.clear();
    }

    /// Commits the batch: resolves when it survives a power cut. All of it or nothing.
    ///
    /// It has its place now: batches reach the disk in the order of these calls, whoever polls which future first, or
    /// none. Readers may see it a moment before. When the future is dropped, the batch is committed all the same. With
    /// 16,384 batches of everyone waiting for the disk it is refused: [`StoreError::Busy`].
    pub fn commit(self) -> impl Future<Output = Result<(), StoreError>> + Send + use<> {
        let begun =
            self.checked().map(|batch| batch.map(|(store, changes, bytes)| store.writer.commit(changes, bytes)));
        async move {
            match begun? {
                Some(committed) => committed.await,
                None => Ok(()),
            }
        }
    }

    /// As [`Self::commit`], for code that is not async: blocks the thread for a sync of the disk.
    pub fn commit_blocking(self) -> Result<(), StoreError> {
        match self.checked()? {
            Some((store, changes, bytes)) => store.writer.commit_blocking(changes, bytes),
            None => Ok(()),
        }
    }

    fn checked(self) -> Result<Option<(Arc<Inner>, Changes, usize)>, StoreError> {
        match self.refused {
            Some(error) => Err(error),
            None if self.changes.is_empty() => Ok(None),
            None => Ok(Some((self.store, self.changes, self.bytes))),
        }
    }
}

impl fmt::Debug for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Batch")
            .field("changes", &self.changes.len())
            .field("bytes", &self.bytes)
            .finish_non_exhaustive()
    }
}

/// Reads every record of every table once and tells which are damaged.
pub(crate) fn damaged_records(engine: &dyn Engine) -> Result<Vec<(String, String)>, StoreError> {
    let mut range = keys::range(&keys::all_records(), b"");
    let mut damaged = Vec::new();
    loop {
        let page = engine.page(&range, SCAN_PAGE)?;
        let full = page.len() == SCAN_PAGE;
        for (key, head) in page {
            range.start = [key.as_slice(), &[0]].concat();
            match commit::assemble(engine, &key, head) {
                Ok(_) => {}
                Err(ReadError::Store(error)) => return Err(error),
                Err(ReadError::Damaged(why)) => {
                    let (table, name) = keys::split_record(&key).unwrap_or((b"?", &key));
                    let (table, key) = (record::show(table), record::show(name));
                    tracing::error!(table, key, why, "a record of the store is damaged");
                    damaged.push((table, key));
                }
            }
        }
        if !full {
            return Ok(damaged);
        }
    }
}
