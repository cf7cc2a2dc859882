//! From batches to one group of writes, and its commit: the part that both twins share.

use std::{collections::BTreeMap, sync::Arc};

use super::{
    StoreError,
    engine::{Engine, Writes},
    keys,
    record::{self, Encoded, Head},
};

/// What a batch changes: record key to value, or to nothing.
pub(crate) type Changes = BTreeMap<Vec<u8>, Option<Encoded>>;

/// The format that this build writes and reads.
pub(crate) const FORMAT: u32 = 1;

/// Most entries that are looked at in one page of the engine.
const PAGE: usize = 64;

/// The only one who writes to an engine.
pub(crate) struct Committer {
    engine: Arc<dyn Engine>,
    /// Number of the last commit; also names the generation of chunks.
    last: u64,
    /// The commit before this one failed: where the engine stands is to be read again.
    failed: bool,
}

impl Committer {
    /// Reads where the engine stands.
    pub(crate) fn new(engine: Arc<dyn Engine>) -> Result<Self, StoreError> {
        let last = last_commit(&*engine)?.unwrap_or(0);
        Ok(Self { engine, last, failed: false })
    }

    /// For an engine that is known to be empty.
    pub(crate) fn fresh(engine: Arc<dyn Engine>) -> Self {
        Self { engine, last: 0, failed: false }
    }

    /// Applies batches in their order as one durable commit, or nothing of them.
    pub(crate) fn commit(&mut self, batches: impl IntoIterator<Item = Changes>) -> Result<(), StoreError> {
        if self.failed {
            self.engine.recover()?;
            // The failed commit may be on disk all the same (its sync failed): its number must not be used again.
            let found = last_commit(&*self.engine)?.unwrap_or(0);
            if found < self.last {
                let (last, lost) = (self.last, self.last - found);
                return Err(StoreError::Engine(format!("{lost} acknowledged commits are missing: {found} of {last}")));
            }
            self.last = found;
        }
        // Also for the case that the engine panics.
        self.failed = true;
        let mut merged = Changes::new();
        for batch in batches {
            merged.extend(batch);
        }
        let result = self.apply(merged);
        self.failed = result.is_err();
        result
    }

    fn apply(&mut self, changes: Changes) -> Result<(), StoreError> {
        let number = self.last + 1;
        let mut writes = Writes::new();
        for (key, value) in changes {
            self.clear_chunks(&key, &mut writes)?;
            let entry = value.map(|value| {
                let (head, chunks) = record::wrap(&key, &value, number);
                writes.extend(chunks.into_iter().map(|(key, chunk)| (key, Some(chunk))));
                head
            });
            writes.insert(key, entry);
        }
        writes.insert(keys::HEADER.to_vec(), Some(header(number)));
        self.engine.commit(number, writes)?;
        self.last = number;
        Ok(())
    }

    /// The chunks of the value that is about to be replaced go with it.
    fn clear_chunks(&self, key: &[u8], writes: &mut Writes) -> Result<(), StoreError> {
        let Some(old) = self.engine.get(key)? else { return Ok(()) };
        if matches!(record::head(key, &old), Ok(Head::Inline { .. })) {
            return Ok(());
        }
        let mut range = keys::range(&keys::chunks_of(key), b"");
        loop {
            let page = self.engine.page(&range, PAGE)?;
            let full = page.len() == PAGE;
            if let Some((last, _)) = page.last() {
                range.start = [last.as_slice(), &[0]].concat();
            }
            writes.extend(page.into_iter().map(|(key, _)| (key, None)));
            if !full {
                return Ok(());
            }
        }
    }
}

fn header(number: u64) -> Vec<u8> {
    let mut bytes = FORMAT.to_le_bytes().to_vec();
    bytes.extend_from_slice(&number.to_le_bytes());
    bytes.extend_from_slice(&crc32fast::hash(&bytes).to_le_bytes());
    bytes
}

/// The number of the last commit in an engine; `None` when there was none yet.
pub(crate) fn last_commit(engine: &dyn Engine) -> Result<Option<u64>, StoreError> {
    let Some(bytes) = engine.get(keys::HEADER)? else { return Ok(None) };
    let damaged = |why: &str| StoreError::Engine(format!("the store's header is damaged: {why}"));
    let fields: &[u8; 16] = bytes.as_slice().try_into().map_err(|_| damaged("its length is wrong"))?;
    let (fields, checksum) = fields.split_at(12);
    if crc32fast::hash(fields).to_le_bytes() != *checksum {
        return Err(damaged("its checksum is wrong"));
    }
    let mut number = [0; 8];
    number.copy_from_slice(&fields[4..]);
    Ok(Some(u64::from_le_bytes(number)))
}

/// Reads a whole value. The head may be replaced while its chunks are read: then it is read again.
pub(crate) fn read(engine: &dyn Engine, key: &[u8]) -> Result<Option<Encoded>, ReadError> {
    match engine.get(key)? {
        Some(head) => assemble(engine, key, head),
        None => Ok(None),
    }
}

/// Why a value could not be read.
pub(crate) enum ReadError {
    Store(StoreError),
    Damaged(record::Damage),
}

impl From<StoreError> for ReadError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

/// Puts a value together from a head that was read before.
pub(crate) fn assemble(engine: &dyn Engine, key: &[u8], mut head: Vec<u8>) -> Result<Option<Encoded>, ReadError> {
    loop {
        let (version, checksum, len, generation) = match record::head(key, &head).map_err(ReadError::Damaged)? {
            Head::Inline { version, payload } => return Ok(Some(Encoded { version, payload: payload.to_vec() })),
            Head::Chunked { version, checksum, len, generation } => (version, checksum, len, generation),
        };
        let count = len.div_ceil(record::CHUNK_BYTES);
        let chunks = engine.page(&keys::range(&keys::generation(key, generation), b""), count)?;
        let mut payload = Vec::with_capacity(chunks.iter().map(|(_, chunk)| chunk.len()).sum());
        chunks.iter().for_each(|(_, chunk)| payload.extend_from_slice(chunk));
        let damage = match record::check_chunks(key, &payload, len, checksum) {
            Ok(()) => return Ok(Some(Encoded { version, payload })),
            Err(damage) => damage,
        };
        match engine.get(key)? {
            None => return Ok(None),
            Some(now) if now == head => return Err(ReadError::Damaged(damage)),
            Some(now) => head = now,
        }
    }
}
