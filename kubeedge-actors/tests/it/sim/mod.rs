//! The link, both its ends and the stores behind them, through histories of faults; replayable by seed.
//!
//! What decides is the real code: sessions, resync and registry of the link; MetaManager's state and reports; EdgeHub's
//! outbox, received ids and reports in flight; Edged's book; EdgeController's desired state, sessions and writes. What is
//! modelled is the disk (what is committed and what is not), the network, the clock, the API server and containerd. After
//! every step the promises of `docs/link.md` are checked; at the end everything heals, and all sides have to agree.
//!
//! | file | what it is |
//! |---|---|
//! | `world` | what there is, and how time passes |
//! | `api` `line` `edge` | the API server; a connection; a box |
//! | `cloud` `controller` `box_acts` `edged` | the shells around the real decisions: CloudHub's, EdgeController's; MetaManager's and EdgeHub's, Edged's |
//! | `steps` `lives` `faults` | what may happen, to boxes as well, and what may go wrong |
//! | `history` | a seed's history, its end, and the shortest one that fails as well |
//! | `promises` `checks` | what has to hold |
//!
//! `make sim SEEDS=100000` runs that many, `make sim SEED=42` shows one.

#![allow(unreachable_pub, reason = "its modules share everything")]

#[macro_use]
mod promises;
mod api;
mod box_acts;
mod checks;
mod cloud;
mod controller;
mod dice;
mod edge;
mod edged;
mod faults;
mod history;
mod line;
mod lives;
mod steps;
mod world;

use std::sync::{
    Mutex,
    atomic::{AtomicU64, Ordering},
};

use faults::Counts;
use history::{History, keep_panics, report};

/// Seeds when nobody says how many.
const SEEDS: u64 = 10_000;

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok().filter(|text| !text.is_empty())?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is a number, not {text:?}")))
}

/// How many histories run at a time. Few other tests are left when their turn comes, which is by name.
fn workers() -> usize {
    std::thread::available_parallelism().map_or(2, usize::from)
}

fn fail(seed: u64, failure: &str) -> ! {
    println!("seed {seed}: {failure}");
    let shortest = History::of(seed).shrink(failure);
    println!("the shortest history found has {} steps:", shortest.steps.len());
    let again = shortest.run(true).expect_err("it fails when it is told, too");
    panic!("{again}\nreplay it with: make sim SEED={seed}");
}

#[test]
fn every_promise_of_the_link_holds_in_faulty_histories() {
    keep_panics();
    if let Some(seed) = number("SIM_SEED") {
        if let Err(failure) = History::of(seed).run(false) {
            fail(seed, &failure);
        }
        println!("seed {seed} keeps every promise");
        return;
    }
    let seeds = number("SIM_SEEDS").unwrap_or(SEEDS);
    let next = AtomicU64::new(number("SIM_FROM").unwrap_or(0));
    let end = next.load(Ordering::Relaxed) + seeds;
    let all = Mutex::new((Counts::default(), None::<(u64, String)>));
    std::thread::scope(|scope| {
        for _ in 0..workers() {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= end {
                        return;
                    }
                    let outcome = History::of(seed).run(false);
                    let mut all = all.lock().expect("no thread panics with it");
                    match outcome {
                        Ok(counts) => all.0.add(&counts),
                        Err(failure) => {
                            next.store(end, Ordering::Relaxed);
                            all.1.get_or_insert((seed, failure));
                        }
                    }
                }
            });
        }
    });
    let (counts, failed) = all.into_inner().expect("no thread panicked with it");
    if let Some((seed, failure)) = failed {
        fail(seed, &failure);
    }
    println!("{seeds} seeds keep every promise\n{}", report(&counts));
    let never = counts.never();
    assert!(seeds < 1000 || never.is_empty(), "never happened: {never:?}");
}
