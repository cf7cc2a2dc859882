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

use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use super::{
    Health, Stats, StoreError,
    commit::{Changes, Committer},
};

/// Batches that may wait for the writer; whoever comes then waits for room.
const QUEUE: usize = 1024;
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

    pub(crate) async fn commit(&self, changes: Changes, bytes: usize) -> Result<(), StoreError> {
        let queue = match self {
            Self::Inline(committer, counters) => return commit_inline(committer, counters, changes),
            Self::Thread(queue) => queue,
        };
        let room = queue.room.clone().acquire_owned().await.map_err(|_| StoreError::Closed)?;
        let (reply, answer) = oneshot::channel();
        queue.push(Job { changes, bytes, reply: Reply::Async(reply), _room: room })?;
        answer.await.unwrap_or(Err(StoreError::Closed))
    }

    pub(crate) fn commit_blocking(&self, changes: Changes, bytes: usize) -> Result<(), StoreError> {
        let queue = match self {
            Self::Inline(committer, counters) => return commit_inline(committer, counters, changes),
            Self::Thread(queue) => queue,
        };
        let room = wait_for(queue.room.clone().acquire_owned()).map_err(|_| StoreError::Closed)?;
        let (reply, answer) = mpsc::sync_channel(1);
        queue.push(Job { changes, bytes, reply: Reply::Blocking(reply), _room: room })?;
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
    fn push(&self, job: Job) -> Result<(), StoreError> {
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
        while bytes < GROUP_BYTES && group.len() < QUEUE {
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

/// Waits for a future on this thread, inside or outside a runtime.
fn wait_for<F: Future>(future: F) -> F::Output {
    struct Unpark(std::thread::Thread);
    impl std::task::Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = std::task::Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut context = std::task::Context::from_waker(&waker);
    // Within a task tokio would make the future pause for fairness, and nobody would run meanwhile.
    let mut future = std::pin::pin!(tokio::task::unconstrained(future));
    loop {
        if let std::task::Poll::Ready(output) = future.as_mut().poll(&mut context) {
            return output;
        }
        std::thread::park();
    }
}
