//! The writer's thread: waits for batches, commits all that wait as one group, answers every waiter with what became of
//! its commit (`P-ACK-AFTER-COMMIT`).

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
        mpsc,
    },
    thread::JoinHandle,
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, TryAcquireError, oneshot};

use super::{
    Health, Stats, StoreError,
    commit::{Changes, Committer},
};

/// Batches that may wait for the writer, of everyone; one more is refused. Each is what a caller of its own waits for,
/// and would be held by that caller otherwise: this is far above what all components have in hand at a time.
pub(crate) const QUEUE: usize = 16 * 1024;
/// Batches of one group, which is one sync.
const GROUP: usize = 1024;
/// A group takes no further batch when it has this many bytes, so that no waiter waits for a giant sync.
const GROUP_BYTES: usize = 4 * 1024 * 1024;

/// Where batches go.
pub(crate) enum Writer {
    /// In memory: committed by the caller, at once.
    Inline(Mutex<Committer>, Arc<Counters>),
    /// On disk: handed to the writer's thread.
    Thread(Queue),
}

pub(crate) struct Queue {
    jobs: Mutex<Option<mpsc::Sender<Job>>>,
    room: Arc<Semaphore>,
    counters: Arc<Counters>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

struct Job {
    changes: Changes,
    bytes: usize,
    reply: Reply,
    _room: OwnedSemaphorePermit,
}

enum Reply {
    Async(oneshot::Sender<Result<(), StoreError>>),
    Blocking(mpsc::SyncSender<Result<(), StoreError>>),
}

#[derive(Default)]
pub(crate) struct Counters {
    batches: AtomicU64,
    groups: AtomicU64,
    failed: AtomicU64,
    trouble: Mutex<Option<StoreError>>,
}

impl Counters {
    fn note(&self, batches: u64, result: &Result<(), StoreError>) {
        let mut trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        match result {
            Ok(()) => {
                self.groups.fetch_add(1, Relaxed);
                self.batches.fetch_add(batches, Relaxed);
                if trouble.take().is_some() {
                    tracing::info!("the store commits again");
                }
            }
            Err(error) => {
                self.failed.fetch_add(batches, Relaxed);
                if trouble.is_none() && !matches!(error, StoreError::Closed) {
                    tracing::error!(%error, "the store does not commit");
                }
                *trouble = Some(error.clone());
            }
        }
    }

    /// One for which there is no room: not the disk's trouble.
    fn refused(&self) -> StoreError {
        self.failed.fetch_add(1, Relaxed);
        StoreError::Busy(QUEUE)
    }

    fn stats(&self) -> Stats {
        let trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        Stats {
            batches: self.batches.load(Relaxed),
            groups: self.groups.load(Relaxed),
            failed: self.failed.load(Relaxed),
            health: trouble.clone().map_or(Health::Good, Health::Degraded),
        }
    }
}

impl Writer {
    pub(crate) fn inline(committer: Committer) -> Self {
        Self::Inline(Mutex::new(committer), Arc::default())
    }

    pub(crate) fn thread(committer: Committer) -> std::io::Result<Self> {
        let (jobs, waiting) = mpsc::channel();
        let counters = Arc::new(Counters::default());
        let counts = counters.clone();
        let run = move || run(committer, &waiting, &counts);
        let thread = std::thread::Builder::new().name("store".to_owned()).spawn(run)?;
        Ok(Self::Thread(Queue {
            jobs: Mutex::new(Some(jobs)),
            room: Arc::new(Semaphore::new(QUEUE)),
            counters,
            thread: Mutex::new(Some(thread)),
        }))
    }

    /// The batch has its place in the line when this returns, whenever the future is polled (`P-COMMIT-ORDER`).
    pub(crate) fn commit(
        &self,
        changes: Changes,
        bytes: usize,
    ) -> impl Future<Output = Result<(), StoreError>> + Send + use<> {
        let begun = match self {
            Self::Inline(committer, counters) => Err(commit_inline(committer, counters, changes)),
            Self::Thread(queue) => {
                let (reply, answer) = oneshot::channel();
                queue.push(changes, bytes, Reply::Async(reply)).map(|()| answer).map_err(Err)
            }
        };
        async move {
            match begun {
                Ok(answer) => answer.await.unwrap_or(Err(StoreError::Closed)),
                Err(over) => over,
            }
        }
    }

    pub(crate) fn commit_blocking(&self, changes: Changes, bytes: usize) -> Result<(), StoreError> {
        let queue = match self {
            Self::Inline(committer, counters) => return commit_inline(committer, counters, changes),
            Self::Thread(queue) => queue,
        };
        let (reply, answer) = mpsc::sync_channel(1);
        queue.push(changes, bytes, Reply::Blocking(reply))?;
        answer.recv().unwrap_or(Err(StoreError::Closed))
    }

    pub(crate) fn stats(&self) -> Stats {
        match self {
            Self::Inline(_, counters) => counters.stats(),
            Self::Thread(queue) => queue.counters.stats(),
        }
    }

    /// Takes no more batches, commits those that wait, and ends.
    pub(crate) fn finish(&self) {
        let Self::Thread(queue) = self else { return };
        queue.room.close();
        drop(queue.jobs.lock().unwrap_or_else(PoisonError::into_inner).take());
        let thread = queue.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the store's writer panicked");
        }
    }
}

impl Queue {
    fn push(&self, changes: Changes, bytes: usize, reply: Reply) -> Result<(), StoreError> {
        let room = self.room.clone().try_acquire_owned().map_err(|error| match error {
            TryAcquireError::Closed => StoreError::Closed,
            TryAcquireError::NoPermits => self.counters.refused(),
        })?;
        let job = Job { changes, bytes, reply, _room: room };
        let jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        jobs.as_ref().ok_or(StoreError::Closed)?.send(job).map_err(|_| StoreError::Closed)
    }
}

fn commit_inline(committer: &Mutex<Committer>, counters: &Counters, changes: Changes) -> Result<(), StoreError> {
    let result = committer.lock().unwrap_or_else(PoisonError::into_inner).commit([changes]);
    counters.note(1, &result);
    result
}

fn run(mut committer: Committer, waiting: &mpsc::Receiver<Job>, counters: &Counters) {
    while let Ok(first) = waiting.recv() {
        let mut bytes = first.bytes;
        let mut group = vec![first];
        while bytes < GROUP_BYTES && group.len() < GROUP {
            let Ok(job) = waiting.try_recv() else { break };
            bytes += job.bytes;
            group.push(job);
        }
        let mut replies = Vec::with_capacity(group.len());
        let mut batches = Vec::with_capacity(group.len());
        for job in group {
            batches.push(job.changes);
            replies.push((job.reply, job._room));
        }
        let count = batches.len() as u64;
        let result = catch_unwind(AssertUnwindSafe(|| committer.commit(batches)))
            .unwrap_or_else(|_| Err(StoreError::Engine("the writer panicked, see the log".to_owned())));
        counters.note(count, &result);
        for (reply, room) in replies {
            drop(room);
            // Whoever gave up waiting does not want the answer.
            match reply {
                Reply::Async(reply) => drop(reply.send(result.clone())),
                Reply::Blocking(reply) => drop(reply.send(result.clone())),
            }
        }
    }
}
