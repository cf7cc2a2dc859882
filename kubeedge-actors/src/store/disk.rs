//! The engine on disk: sled, with what it lacks for surviving a power cut and a full disk.

use std::{
    fs::File,
    future::Future,
    io,
    ops::Range,
    os::unix::fs::FileExt,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    pin::Pin,
    sync::{Arc, PoisonError, RwLock},
    task::{Context, Poll, Wake, Waker},
    thread::{self, Thread},
    time::{Duration, Instant},
};

use io::ErrorKind::{
    FileTooLarge, Interrupted, OutOfMemory, PermissionDenied, QuotaExceeded, ReadOnlyFilesystem, StorageFull,
    WouldBlock,
};

use super::{
    StoreError,
    data::Data,
    engine::{Engine, Entries, Writes},
};

/// Room that must be free beside what a commit writes, bytes: sled rewrites pages and takes segments of 512 KiB. With
/// less, a commit is refused before sled sees it, because sled does not survive a failed write.
const SPARE_ROOM: u64 = 4 * 1024 * 1024;
/// Bytes on disk that a written byte may cost at once, by pages that are rewritten with it.
const WRITE_AMPLIFICATION: u64 = 4;
/// How long a flush may be silent before it is asked for again. sled can miss its own wake-up after a failed write;
/// asking again delivers it.
const FLUSH_PATIENCE: Duration = Duration::from_secs(2);
/// How often it is asked for before the commit is given up.
const FLUSH_ATTEMPTS: usize = 15;
/// Size of the file that keeps room for opening, bytes: sled writes when it opens, also on a disk that others filled.
const RESERVE: u64 = 1024 * 1024;
/// How long a file lock that nobody means to hold any more may take to go away: that of a sled instance that was just
/// dropped, or one that a child process of ours has for the moment between its fork and its exec.
pub(crate) const LOCK_PATIENCE: Duration = Duration::from_secs(2);
/// Between two attempts to get it.
pub(crate) const LOCK_AGAIN: Duration = Duration::from_millis(10);

/// An open sled and the descriptors beside it.
struct Handle {
    tree: sled::Db,
    /// sled's file, and what makes it respect a power cut (`P-SYNC-IN-COMMIT`).
    data: Data,
    /// sled's files for large pages, which it never syncs.
    blobs: PathBuf,
    /// The newest blob file that is known to be synced.
    synced_blob: std::sync::atomic::AtomicI64,
}

/// sled at a path.
pub(crate) struct Disk {
    path: PathBuf,
    cache_bytes: u64,
    state: RwLock<State>,
    /// Number of the last commit that was acknowledged; see [`super::open`].
    acknowledged: File,
    /// Held for the store's life so that nobody else opens it.
    lock: File,
}

enum State {
    Open(Handle),
    /// A write failed; the next commit tries to open it again.
    Broken(StoreError),
    Closed,
}

/// Why sled did not open.
#[derive(Debug)]
pub(crate) enum SledFailure {
    /// The environment refuses; the files are not to blame.
    Environment(io::Error),
    /// The files do not make a store.
    Damaged(String),
}

impl From<sled::Error> for SledFailure {
    fn from(error: sled::Error) -> Self {
        match error {
            sled::Error::Io(error) => match error.kind() {
                StorageFull | QuotaExceeded | FileTooLarge | ReadOnlyFilesystem | PermissionDenied | OutOfMemory
                | Interrupted | WouldBlock => Self::Environment(error),
                // Every process-wide limit (open files) comes without a kind of its own.
                _ if error.raw_os_error().is_some_and(|code| code == 23 || code == 24) => Self::Environment(error),
                _ if error.to_string().contains("could not acquire lock") => Self::Environment(error),
                _ => Self::Damaged(error.to_string()),
            },
            other => Self::Damaged(other.to_string()),
        }
    }
}

/// Runs sled code that may panic on bad files.
pub(crate) fn guarded<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    // sled keeps no lock that poisons, and after a failure its instance is dropped.
    catch_unwind(AssertUnwindSafe(work)).map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        format!("sled panicked: {}", text.unwrap_or_default())
    })
}

fn open_sled(path: &Path, cache_bytes: u64) -> Result<Handle, SledFailure> {
    // Before sled, which writes when it opens.
    let data = Data::open(&path.join("db")).map_err(sled::Error::Io)?;
    let config = sled::Config::default().path(path).cache_capacity(cache_bytes).flush_every_ms(None);
    let tree = guarded(|| config.open()).map_err(SledFailure::Damaged)??;
    let blobs = path.join("blobs");
    Ok(Handle { tree, data, blobs, synced_blob: std::sync::atomic::AtomicI64::new(-1) })
}

/// Opens sled; on a full disk with the room that was reserved for that.
fn open_with_reserve(path: &Path, cache_bytes: u64) -> Result<Handle, SledFailure> {
    let reserve = path.join("reserve");
    let opened = match open_unlocked(path, cache_bytes) {
        Err(SledFailure::Environment(error)) if matches!(error.kind(), StorageFull | QuotaExceeded) => {
            match std::fs::remove_file(&reserve) {
                Ok(()) => open_sled(path, cache_bytes),
                Err(_) => Err(SledFailure::Environment(error)),
            }
        }
        other => other,
    };
    if opened.is_ok()
        && let Err(error) = keep_reserve(&reserve)
    {
        tracing::debug!(%error, "no room is reserved for opening the store on a full disk");
    }
    opened
}

/// Our own lock file keeps other processes away: a lock that sled still finds goes away by itself.
fn open_unlocked(path: &Path, cache_bytes: u64) -> Result<Handle, SledFailure> {
    let deadline = Instant::now() + LOCK_PATIENCE;
    loop {
        match open_sled(path, cache_bytes) {
            Err(SledFailure::Environment(error))
                if error.to_string().contains("acquire lock") && Instant::now() < deadline =>
            {
                thread::park_timeout(LOCK_AGAIN);
            }
            other => return other,
        }
    }
}

fn keep_reserve(reserve: &Path) -> io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    let file = File::options().write(true).create(true).truncate(false).mode(0o600).open(reserve)?;
    Ok(rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, RESERVE)?)
}

impl Disk {
    /// Opens sled in a directory that exists and is locked by `lock`.
    pub(crate) fn open(path: &Path, cache_bytes: u64, acknowledged: File, lock: File) -> Result<Self, SledFailure> {
        let handle = open_with_reserve(path, cache_bytes)?;
        let state = RwLock::new(State::Open(handle));
        Ok(Self { path: path.to_owned(), cache_bytes, state, acknowledged, lock })
    }

    fn read<T>(&self, work: impl FnOnce(&sled::Tree) -> sled::Result<T>) -> Result<T, StoreError> {
        match &*self.state.read().unwrap_or_else(PoisonError::into_inner) {
            State::Open(handle) => Ok(guarded(|| work(&handle.tree)).map_err(StoreError::Engine)??),
            State::Broken(why) => Err(why.clone()),
            State::Closed => Err(StoreError::Closed),
        }
    }

    /// Refuses a commit that the disk has no room for, or that it takes no writes for, while sled is still whole.
    fn check_room(&self, writes: &Writes) -> Result<(), StoreError> {
        let bytes: usize = writes.iter().map(|(key, value)| key.len() + value.as_ref().map_or(0, Vec::len) + 32).sum();
        let needed = (bytes as u64).saturating_mul(WRITE_AMPLIFICATION).saturating_add(SPARE_ROOM);
        let disk = rustix::fs::statvfs(&self.path).map_err(io::Error::from)?;
        if disk.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY) {
            return Err(StoreError::ReadOnly(self.path.display().to_string()));
        }
        // P-READS-OUTLIVE-WRITES: a file system that met an error of its own refuses writes and still calls itself
        // writable.
        let mut probe = [0; super::open::ACKNOWLEDGED_BYTES];
        match self.acknowledged.read_at(&mut probe, 0)? {
            0 => {}
            len => self.acknowledged.write_all_at(&probe[..len], 0)?,
        }
        let free = disk.f_bavail.saturating_mul(disk.f_frsize);
        if free < needed {
            let path = self.path.display();
            return Err(StoreError::Full(format!("{path}: {free} bytes are free, this commit wants {needed}")));
        }
        Ok(())
    }

    /// Takes a failed sled away and opens it anew: what was not committed is gone from memory too.
    fn reopen(&self, why: &StoreError) -> Result<(), StoreError> {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        if matches!(*state, State::Closed) {
            return Err(StoreError::Closed);
        }
        let failed = std::mem::replace(&mut *state, State::Broken(why.clone()));
        if let Err(panic) = guarded(|| drop(failed)) {
            tracing::warn!(store = %self.path.display(), panic, "a failed store did not close cleanly");
        }
        let error = match open_with_reserve(&self.path, self.cache_bytes) {
            Ok(handle) => {
                *state = State::Open(handle);
                return Ok(());
            }
            Err(SledFailure::Environment(error)) => StoreError::from(error),
            Err(SledFailure::Damaged(what)) => {
                StoreError::Engine(format!("it does not open again after a failed write: {what}"))
            }
        };
        *state = State::Broken(error.clone());
        Err(error)
    }

    fn write(&self, writes: Writes) -> Result<(), StoreError> {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        let handle = match &*state {
            State::Open(handle) => handle,
            State::Broken(why) => return Err(why.clone()),
            State::Closed => return Err(StoreError::Closed),
        };
        guarded(|| {
            let mut batch = sled::Batch::default();
            for (key, value) in writes {
                match value {
                    Some(value) => batch.insert(key, value),
                    None => batch.remove(key),
                }
            }
            handle.tree.apply_batch(batch)?;
            flush(&handle.tree)
        })
        .map_err(StoreError::Engine)??;
        handle.sync_blobs()?;
        handle.data.commit()?;
        Ok(())
    }
}

impl Handle {
    /// Syncs the files that sled made since the last commit for pages over 128 KiB. Chunking keeps them rare.
    fn sync_blobs(&self) -> io::Result<()> {
        use std::sync::atomic::Ordering::Relaxed;
        let known = self.synced_blob.load(Relaxed);
        let mut newest = known;
        for entry in std::fs::read_dir(&self.blobs)? {
            let entry = entry?;
            let Some(number) = entry.file_name().to_str().and_then(|name| name.parse::<i64>().ok()) else { continue };
            if number > known {
                match File::open(entry.path()) {
                    Ok(file) => file.sync_data()?,
                    // sled removes the file of a page that was written again
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => return Err(error),
                }
                newest = newest.max(number);
            }
        }
        if newest > known {
            File::open(&self.blobs)?.sync_all()?;
            self.synced_blob.store(newest, Relaxed);
        }
        Ok(())
    }
}

impl Engine for Disk {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.read(|tree| tree.get(key))?.map(|value| value.to_vec()))
    }

    fn page(&self, range: &Range<Vec<u8>>, limit: usize) -> Result<Entries, StoreError> {
        self.read(|tree| {
            let entries = match range.end.is_empty() {
                true => tree.range(range.start.as_slice()..),
                false => tree.range(range.start.as_slice()..range.end.as_slice()),
            };
            entries.take(limit).map(|entry| entry.map(|(key, value)| (key.to_vec(), value.to_vec()))).collect()
        })
    }

    fn recover(&self) -> Result<(), StoreError> {
        let broken = match &*self.state.read().unwrap_or_else(PoisonError::into_inner) {
            State::Open(_) | State::Closed => return Ok(()),
            State::Broken(why) => why.clone(),
        };
        self.reopen(&broken)
    }

    fn commit(&self, number: u64, writes: Writes) -> Result<(), StoreError> {
        self.check_room(&writes)?;
        if let Err(error) = self.write(writes) {
            tracing::error!(store = %self.path.display(), %error, "a commit failed, the store is opened again");
            if let Err(again) = self.reopen(&error) {
                tracing::error!(store = %self.path.display(), error = %again, "the store stays closed until it opens");
            }
            return Err(error);
        }
        // Behind the sync: this file is never ahead of what is on disk, so it needs no sync of its own.
        if let Err(error) = self.acknowledged.write_all_at(&super::open::acknowledged_bytes(number), 0) {
            tracing::debug!(%error, "the number of the last commit was not noted");
        }
        Ok(())
    }

    fn close(&self) -> Result<(), StoreError> {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        let closed = match std::mem::replace(&mut *state, State::Closed) {
            State::Open(handle) => guarded(|| {
                handle.tree.flush()?;
                handle.data.sync()?;
                drop(handle);
                Ok(())
            })
            .unwrap_or_else(|panic| Err(StoreError::Engine(panic))),
            State::Broken(_) | State::Closed => Ok(()),
        };
        if let Err(error) = self.lock.unlock() {
            tracing::debug!(%error, "the store's lock goes with its descriptor");
        }
        closed
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if let Err(error) = self.close() {
            tracing::error!(store = %self.path.display(), %error, "the store did not close cleanly");
        }
    }
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// `tree.flush()` that cannot hang for ever.
fn flush(tree: &sled::Tree) -> sled::Result<()> {
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut context = Context::from_waker(&waker);
    let mut asked: Vec<Pin<Box<dyn Future<Output = sled::Result<usize>> + '_>>> = Vec::new();
    while asked.len() < FLUSH_ATTEMPTS {
        asked.push(Box::pin(tree.flush_async()));
        let deadline = Instant::now() + FLUSH_PATIENCE;
        loop {
            for flush in &mut asked {
                if let Poll::Ready(done) = flush.as_mut().poll(&mut context) {
                    return done.map(drop);
                }
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            thread::park_timeout(left);
        }
    }
    Err(sled::Error::ReportableBug("its writing thread does not answer".to_owned()))
}
