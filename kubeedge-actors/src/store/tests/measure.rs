//! Figures, not promises: `cargo test --features store --lib store::tests::measure -- --ignored --nocapture`.

use std::time::Instant;

use super::{noise, open_whole, put};

#[tokio::test]
#[ignore = "a measurement"]
async fn durable_puts_alone_and_in_company() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store");
    let store = open_whole(&path);
    let table = store.table::<Vec<u8>>("t");
    for len in [1024, 8 * 1024, 1 << 20] {
        let rounds = if len > 100_000 { 100 } else { 2000 };
        let mut times: Vec<_> = Vec::with_capacity(rounds);
        for number in 0..rounds {
            let mut batch = store.batch();
            batch.put(&table, format!("{len}/{number:05}").as_bytes(), &noise(number as u64, len));
            let start = Instant::now();
            batch.commit().await.unwrap();
            times.push(start.elapsed());
        }
        times.sort();
        println!("put of {len} bytes: median {:?}, p99 {:?}", times[rounds / 2], times[rounds * 99 / 100]);
    }
    for waiting in [1, 8, 64, 512] {
        let before = store.stats();
        let start = Instant::now();
        let mut total = 0;
        while start.elapsed().as_millis() < 1500 {
            let commits = (0..waiting).map(|number: u32| {
                let mut batch = store.batch();
                batch.put(&table, format!("group/{number:05}").as_bytes(), &noise(u64::from(number), 1024));
                batch.commit()
            });
            for result in futures_util::future::join_all(commits).await {
                result.unwrap();
            }
            total += waiting;
        }
        let groups = store.stats().groups - before.groups;
        let second = f64::from(total) / start.elapsed().as_secs_f64();
        println!(
            "{waiting} waiting: {second:.0} durable puts a second, {:.1} in a sync",
            f64::from(total) / groups as f64
        );
    }
    let start = Instant::now();
    for number in 0..2000 {
        table.get(format!("1024/{number:05}").as_bytes()).unwrap().unwrap();
    }
    println!("get of 1024 bytes: {:?}", start.elapsed() / 2000);
    drop((table, store));
    let mut size = 0;
    let start = Instant::now();
    let store = open_whole(&path);
    println!("open and check: {:?}", start.elapsed());
    for entry in std::fs::read_dir(&path).unwrap() {
        size += entry.unwrap().metadata().unwrap().len();
    }
    println!("{} MB on disk", size >> 20);
    put(&store, "t", "a", b"b");
}
