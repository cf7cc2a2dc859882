//! What a commit costs: the store's against bare sled with `flush` and `fdatasync` after every put.
//!
//! A commit is one record of 1 KiB. With 64 writers the store's commits share their syncs; bare sled's wait for each
//! other, as they would in a program without a writer of its own.

#![allow(missing_docs, reason = "criterion's macros make public items")]
#![allow(clippy::expect_used, reason = "a bench that cannot run should say so and end")]

use std::{
    fs::File,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use kubeedge_actors::store::{Options, Store};
use tokio::runtime::Runtime;

const RECORD_BYTES: usize = 1024;
/// Keys in use: an update as often as a new record.
const KEYS: u64 = 10_000;
const WRITERS: [u64; 2] = [1, 64];

/// sled, and its file to sync.
struct Bare {
    tree: sled::Db,
    file: Mutex<File>,
}

impl Bare {
    fn open(folder: &Path) -> Self {
        let tree = sled::Config::new().path(folder).cache_capacity(8 * 1024 * 1024).flush_every_ms(None).open();
        let tree = tree.expect("sled opens");
        let file = File::options().read(true).write(true).open(folder.join("db")).expect("sled's file");
        Self { tree, file: Mutex::new(file) }
    }

    fn commit(&self, key: u64, value: &[u8]) {
        let file = self.file.lock().expect("no writer panicked");
        self.tree.insert(key.to_be_bytes(), value).expect("an insert");
        self.tree.flush().expect("a flush");
        file.sync_data().expect("a sync");
    }
}

/// `n` commits by so many writers.
fn timed<F>(runtime: &Runtime, n: u64, writers: u64, commit: impl Fn(u64) -> F) -> Duration
where
    F: Future<Output = ()> + Send + 'static,
{
    let share = n.div_ceil(writers);
    let took = runtime.block_on(async {
        let start = Instant::now();
        let tasks: Vec<_> = (0..writers).map(|_| tokio::spawn(commit(share))).collect();
        for task in tasks {
            task.await.expect("a writer that ends");
        }
        start.elapsed()
    });
    took.mul_f64(n as f64 / (share * writers) as f64)
}

fn commits(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().expect("a runtime");
    let folder = tempfile::tempdir().expect("a folder");
    let store = Store::open(&folder.path().join("store"), Options::default()).expect("the store opens").store;
    let table = store.table::<Vec<u8>>("bench");
    let bare = Arc::new(Bare::open(&folder.path().join("bare")));
    let next = Arc::new(AtomicU64::new(0));
    let value = vec![7_u8; RECORD_BYTES];

    for writers in WRITERS {
        let mut group = criterion.benchmark_group(format!("commit by {writers}"));
        group.sample_size(10).warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(2));
        group.throughput(Throughput::Elements(1));
        group.bench_function("store", |bencher| {
            bencher.iter_custom(|n| {
                timed(&runtime, n, writers, |share| {
                    let (store, table, next, value) = (store.clone(), table.clone(), next.clone(), value.clone());
                    async move {
                        for _ in 0..share {
                            let key = next.fetch_add(1, Ordering::Relaxed) % KEYS;
                            let mut batch = store.batch();
                            batch.put(&table, &key.to_be_bytes(), &value);
                            batch.commit().await.expect("a commit");
                        }
                    }
                })
            });
        });
        group.bench_function("bare sled", |bencher| {
            bencher.iter_custom(|n| {
                timed(&runtime, n, writers, |share| {
                    let (bare, next, value) = (bare.clone(), next.clone(), value.clone());
                    async move {
                        let work = move || {
                            for _ in 0..share {
                                bare.commit(next.fetch_add(1, Ordering::Relaxed) % KEYS, &value);
                            }
                        };
                        tokio::task::spawn_blocking(work).await.expect("a writer that ends");
                    }
                })
            });
        });
        group.finish();
    }
    runtime.block_on(store.close()).expect("the store closes");
}

criterion_group!(benches, commits);
criterion_main!(benches);
