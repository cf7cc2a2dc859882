//! The same suite on both twins, and what only a disk can do.

mod crash;
mod damage;
mod disk_full;
mod measure;
mod model;
mod power_cut;
mod twins;

use std::path::Path;

use super::{Opened, Options, Store};

pub(super) fn open(path: &Path) -> Opened {
    Store::open(path, Options::default()).unwrap()
}

pub(super) fn open_whole(path: &Path) -> Store {
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
pub(super) fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    })
    .flatten()
    .take(len)
    .collect()
}
