//! Typed tables on disk, with commits that survive `kill -9` and a power cut.
//!
//! **Job.** Keeps what a node must still know after a restart with the cable cut: objects, status that waits for the
//! cloud, tokens, cursors. Components use tables and batches; they never see files.
//!
//! ```
//! # async fn example(path: &std::path::Path) -> Result<(), Box<dyn std::error::Error>> {
//! use kubeedge_actors::store::{Options, Store};
//!
//! let opened = Store::open(path, Options::default())?;
//! let names = opened.store.table::<String>("names");
//! let mut batch = opened.store.batch();
//! batch.put(&names, b"edge-1", &"Hall 3".to_owned());
//! batch.commit().await?; // on disk now
//! assert_eq!(names.get(b"edge-1")?.as_deref(), Some("Hall 3"));
//! # Ok(()) }
//! ```
//!
//! # What holds
//!
//! - A batch, over any number of tables, is there wholly or not at all.
//! - Batches reach the disk in the order in which `commit` was called, whenever the futures are polled.
//! - When a commit resolves, it survives `kill -9` and a power cut. Commits that wait are synced together.
//! - A record read back is the one that was put: key, version and value stand under a checksum. Damage is an error for
//!   that record, or, if the whole cannot be trusted (unreadable, or acknowledged commits are missing), the store is
//!   set aside as `<path>.set-aside-<unix time>`, the newest three are kept, and an empty one is opened.
//! - A store of a newer format, one that is in use, or one on a full or read-only disk is refused and left as it is.
//! - On a full or read-only disk commits fail, reads go on, and commits work again by themselves.
//! - [`Store::in_memory`] has the same rules.
//!
//! # What does not
//!
//! - A read may see a commit that is still on its way to the disk.
//! - A scan is no snapshot: it may see a part of a batch that is committed meanwhile. Each record in it is whole.
//! - After an I/O error (not `Full` or `ReadOnly`) a batch may be there, wholly, although its commit failed.
//!
//! # How
//!
//! One thread writes. It takes all batches that wait, merges them into one sled batch and flushes. sled alone does not
//! survive a power cut, neither its flush nor, within a large commit, its reuse of segments: every write to its file is
//! made durable before it returns (`data.rs`), where the file system has synchronous files (ext4, XFS, Btrfs, F2FS). On
//! another one the file is synced after each flush, which a power cut within a commit over 1 MiB may still break; the
//! log says so. Values over 4 KiB are cut into chunks, so that sled's pages stay below the size at which it moves them
//! to files that it never syncs; such files, if there are any, are synced with the commit.
//!
//! A damaged store is set aside as sled left it, not as it was found: sled cannot open without writing. It blanks what
//! follows the last message it can read and the segments it takes for free, and replaces its snapshot, before any
//! record can be checked. Keeping the files as they were would take a copy of the database at every start.

mod commit;
mod data;
mod disk;
mod engine;
mod error;
mod keys;
mod open;
mod record;
mod table;
mod writer;

#[cfg(test)]
pub(crate) mod tests;

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

pub use error::{OpenError, StoreError};
pub use record::{DecodeError, Proto, Record};
pub use table::{Batch, MAX_BATCH_BYTES, MAX_KEY_BYTES, MAX_VALUE_BYTES, Scan, Table};

use commit::Committer;
use engine::{Engine, Memory};
use writer::Writer;

/// How a store is opened.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Options {
    /// Most memory for cached pages, bytes. Default 8 MiB: a node's objects fit several times.
    pub cache_bytes: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self { cache_bytes: 8 * 1024 * 1024 }
    }
}

impl Options {
    /// Sets [`Self::cache_bytes`].
    pub fn cache_bytes(mut self, bytes: u64) -> Self {
        self.cache_bytes = bytes;
        self
    }
}

/// An open store, and what had to be done to open it.
#[derive(Debug)]
pub struct Opened {
    /// The store.
    pub store: Store,
    /// The damaged store that was found in its place: it has to be filled again, from the cloud.
    pub set_aside: Option<SetAside>,
    /// Table and key of single records that are damaged; reading them fails, putting or deleting them mends them.
    pub damaged: Vec<(String, String)>,
}

/// A damaged store that was moved out of the way.
#[derive(Clone, Debug)]
pub struct SetAside {
    /// Where it is now.
    pub path: PathBuf,
    /// What was wrong with it.
    pub why: String,
}

/// How the store fares.
#[derive(Clone, Debug)]
pub enum Health {
    /// The last commit succeeded.
    Good,
    /// The last commit failed with this; the next one that succeeds makes it good again.
    Degraded(StoreError),
}

/// Counts since the store was opened.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Stats {
    /// Batches committed.
    pub batches: u64,
    /// Syncs of the disk that took: `batches / groups` shared one.
    pub groups: u64,
    /// Batches that failed.
    pub failed: u64,
    /// How it fares now.
    pub health: Health,
}

/// Typed tables over one directory. Cheap to clone; closes with its last clone, table and batch, or by [`Store::close`].
#[derive(Clone)]
pub struct Store(Arc<Inner>);

pub(crate) struct Inner {
    engine: Arc<dyn Engine>,
    writer: Writer,
}

impl Drop for Inner {
    fn drop(&mut self) {
        // First the batches that still wait, then, with the last reference, the engine.
        self.writer.finish();
    }
}

impl Store {
    /// Opens the store in directory `path`, which is made if it is missing. Reads all of it once to check it.
    pub fn open(path: &Path, options: Options) -> Result<Opened, OpenError> {
        open::open(path, &options)
    }

    /// A store without a disk and with the same semantics, for tests and for embedders that need no persistence.
    /// Commits complete at once, without a thread: tests with paused time can use it.
    pub fn in_memory() -> Self {
        let engine: Arc<dyn Engine> = Arc::new(Memory::new());
        let committer = Committer::fresh(engine.clone());
        Self::of(engine, Writer::inline(committer))
    }

    pub(crate) fn of(engine: Arc<dyn Engine>, writer: Writer) -> Self {
        Self(Arc::new(Inner { engine, writer }))
    }

    /// The table of that name. Every use of one name has to have the same type.
    pub fn table<V: Record>(&self, name: &'static str) -> Table<V> {
        Table::new(self.0.clone(), name)
    }

    /// A new, empty batch.
    pub fn batch(&self) -> Batch {
        Batch::new(self.0.clone())
    }

    /// Counts and health.
    pub fn stats(&self) -> Stats {
        self.0.writer.stats()
    }

    /// Waits until every batch handed in before is on disk or has failed: a component that was built again must not read
    /// while its former life still writes. Blocks the thread for a sync of the disk.
    pub fn settle_blocking(&self) {
        if let Err(error) = self.0.writer.commit_blocking(commit::Changes::new(), 0) {
            tracing::debug!("what waited for the disk is over: {error}");
        }
    }

    /// Commits what waits, then closes the files. Every later use, through any clone, answers [`StoreError::Closed`].
    pub async fn close(&self) -> Result<(), StoreError> {
        if matches!(self.0.writer, Writer::Inline(..)) {
            return self.0.engine.close();
        }
        let (reply, answer) = tokio::sync::oneshot::channel();
        let inner = self.0.clone();
        std::thread::Builder::new().name("store-close".to_owned()).spawn(move || {
            inner.writer.finish();
            // Whoever gave up waiting does not want the answer.
            drop(reply.send(inner.engine.close()));
        })?;
        answer.await.unwrap_or(Err(StoreError::Closed))
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").field("stats", &self.stats()).finish()
    }
}
