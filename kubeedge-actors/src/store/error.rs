//! What can go wrong, and what to do about it.

use std::{
    io::{self, ErrorKind},
    path::PathBuf,
    sync::Arc,
};

use thiserror::Error;

/// Why a read or a commit failed. Nothing is ever half applied.
#[derive(Clone, Debug, Error)]
#[non_exhaustive]
pub enum StoreError {
    /// No room on the disk, or a quota or file size limit is reached. The batch was not applied; later commits work
    /// again by themselves once there is room. Reads keep working.
    #[error("the store's disk is full ({0}): free some space; commits work again by themselves")]
    Full(String),
    /// The file system is mounted read-only. As with `Full`, commits work again once it is writable.
    #[error("the store's file system is read-only ({0}): remount it writable; commits work again by themselves")]
    ReadOnly(String),
    /// This record's bytes are damaged. Other records are not affected; putting or deleting the key mends it.
    #[error("record {key:?} of table {table} is damaged: {why}")]
    Corrupt {
        /// Table of the record.
        table: String,
        /// Its key, as text as far as it is text.
        key: String,
        /// What was found.
        why: String,
    },
    /// This record was written by a newer build. It is left alone.
    #[error("record {key:?} of table {table} has version {found}, this build reads up to {known}: use a newer build")]
    NewerRecord {
        /// Table of the record.
        table: String,
        /// Its key, as text as far as it is text.
        key: String,
        /// Version in the record.
        found: u8,
        /// Newest version this build reads.
        known: u8,
    },
    /// A key, value or batch is over its bound; the batch was not applied.
    #[error("{what} has {size} bytes or entries, the limit is {limit}")]
    TooLarge {
        /// What is too large.
        what: String,
        /// Its size.
        size: usize,
        /// The bound.
        limit: usize,
    },
    /// A batch holds a table that belongs to another store; nothing was applied.
    #[error("table {0} belongs to another store")]
    ForeignTable(&'static str),
    /// So many batches wait for the disk that this one was not taken; later ones are when some are done.
    #[error("{0} batches wait for the store's disk already")]
    Busy(usize),
    /// The store was closed.
    #[error("the store is closed")]
    Closed,
    /// The operating system refused. The batch is wholly there or not at all.
    #[error("store: {0}")]
    Io(Arc<io::Error>),
    /// The engine below failed in a way of its own.
    #[error("the store's engine failed: {0}")]
    Engine(String),
}

impl From<io::Error> for StoreError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => {
                Self::Full(error.to_string())
            }
            ErrorKind::ReadOnlyFilesystem => Self::ReadOnly(error.to_string()),
            _ => Self::Io(Arc::new(error)),
        }
    }
}

impl From<sled::Error> for StoreError {
    fn from(error: sled::Error) -> Self {
        match error {
            sled::Error::Io(error) => error.into(),
            other => Self::Engine(other.to_string()),
        }
    }
}

/// Why a store could not be opened. In all of these cases the files are left as they are.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum OpenError {
    /// Another process (or another `Store` of this one) has it open.
    #[error("store {path} is in use by {holder}: stop it, or give this one another path")]
    Locked {
        /// The store's directory.
        path: PathBuf,
        /// Who holds it, as far as known.
        holder: String,
    },
    /// Written by a newer build: neither opened nor set aside.
    #[error("store {path} has format {found}, this build reads format {known}: use the newer build, or another path")]
    Newer {
        /// The store's directory.
        path: PathBuf,
        /// Format on disk.
        found: u32,
        /// Format of this build.
        known: u32,
    },
    /// There is no room to open it.
    #[error("store {path} cannot be opened, its disk is full: {source}")]
    Full {
        /// The store's directory.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// Its file system is read-only.
    #[error("store {path} cannot be opened, its file system is read-only: {source}")]
    ReadOnly {
        /// The store's directory.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// Any other refusal of the operating system.
    #[error("store {path}: cannot {doing}: {source}")]
    Io {
        /// The file or directory concerned.
        path: PathBuf,
        /// What was being done.
        doing: &'static str,
        /// What the operating system said.
        source: io::Error,
    },
    /// A store was set aside as damaged, and the empty one in its place did not open either.
    #[error("store {path}: a fresh store does not open: {why}")]
    Unusable {
        /// The store's directory.
        path: PathBuf,
        /// What was found.
        why: String,
    },
}

impl OpenError {
    /// An I/O error on `path`, sorted by what to do about it.
    pub(crate) fn io(path: impl Into<PathBuf>, doing: &'static str) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| match source.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => Self::Full { path, source },
            ErrorKind::ReadOnlyFilesystem => Self::ReadOnly { path, source },
            _ => Self::Io { path, doing, source },
        }
    }
}
