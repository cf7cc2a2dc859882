//! The same suite on both twins, and what only a disk can do.

pub(crate) mod crash;
mod damage;
mod disk_full;
mod measure;
mod model;
mod power_cut;
pub(crate) mod power_switch;
mod twins;

use std::{io::Write, path::Path};

use super::{Opened, Options, Store};

pub(super) fn open(path: &Path) -> Opened {
    Store::open(path, Options::default()).unwrap()
}

pub(crate) fn open_whole(path: &Path) -> Store {
    let opened = open(path);
    assert!(opened.set_aside.is_none(), "{:?}", opened.set_aside);
    assert!(opened.damaged.is_empty(), "{:?}", opened.damaged);
    opened.store
}

pub(super) fn put(store: &Store, table: &'static str, key: &str, value: &[u8]) {
    let mut batch = store.batch();
    batch.put(&store.table::<Vec<u8>>(table), key.as_bytes(), &value.to_vec());
    batch.commit_blocking().unwrap();
}

/// Bytes that do not compress and differ by seed.
pub(crate) fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// Says on the terminal that a test could not be tried here; the test program would swallow what a passing test prints.
pub(crate) fn skipped(test: &str, why: &str) {
    // Without a terminal nobody is there to be told.
    let _ = writeln!(std::io::stderr(), "test {test} ... skipped: {why}");
}
