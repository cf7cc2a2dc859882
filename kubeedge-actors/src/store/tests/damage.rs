//! Files that are not what was written.

use std::{
    fs,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use super::{noise, open, open_whole, put};
use crate::store::{OpenError, Options, Store, StoreError};

const RECORDS: u64 = 120;

fn value(number: u64) -> Vec<u8> {
    noise(number, if number.is_multiple_of(10) { 20_000 } else { 300 })
}

fn filled(path: &Path) {
    let store = open_whole(path);
    for number in 0..RECORDS {
        put(&store, "t", &format!("{number:04}"), &value(number));
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &to.join(entry.file_name())),
            false => drop(fs::copy(entry.path(), to.join(entry.file_name())).unwrap()),
        }
    }
}

/// Whatever opens holds what was acknowledged, says which records are damaged, or was set aside.
fn opens_honestly(path: &Path, what: &str) -> bool {
    let opened = open(path);
    let table = opened.store.table::<Vec<u8>>("t");
    if opened.set_aside.is_some() {
        assert_eq!(table.scan_prefix(b"").count(), 0, "{what}: the new store is empty");
    } else {
        for number in 0..RECORDS {
            match table.get(format!("{number:04}").as_bytes()) {
                Ok(found) => assert!(found == Some(value(number)), "{what}: record {number} is wrong or missing"),
                Err(StoreError::Corrupt { key, .. }) => {
                    assert!(opened.damaged.contains(&("t".to_owned(), key)), "{what}: {:?}", opened.damaged);
                }
                Err(error) => panic!("{what}: {error}"),
            }
        }
    }
    put(&opened.store, "t", "new", b"works");
    assert_eq!(table.get(b"new").unwrap().unwrap(), b"works");
    opened.set_aside.is_some()
}

fn set_aside_beside(path: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(path.parent().unwrap()).unwrap().map(|entry| entry.unwrap().path());
    entries.filter(|entry| entry.to_string_lossy().contains(".set-aside-")).collect()
}

#[test]
fn flipped_bytes_are_never_wrong_data_and_never_a_panic() {
    let directory = tempfile::tempdir().unwrap();
    let original = directory.path().join("original");
    filled(&original);
    let len = fs::metadata(original.join("db")).unwrap().len();
    let mut set_aside = 0;
    for round in 0..60u64 {
        let path = directory.path().join(format!("copy-{round}/store"));
        copy(&original, &path);
        let random = noise(round + 1, 16);
        let at = u64::from_le_bytes(random[..8].try_into().unwrap()) % len;
        let count = [1, 8, 512, 5000][round as usize % 4];
        let db = fs::OpenOptions::new().read(true).write(true).open(path.join("db")).unwrap();
        let mut bytes = vec![0; count.min((len - at) as usize)];
        db.read_exact_at(&mut bytes, at).unwrap();
        bytes.iter_mut().for_each(|byte| *byte ^= random[8] | 1);
        db.write_all_at(&bytes, at).unwrap();
        let aside = opens_honestly(&path, &format!("{count} bytes at {at}"));
        assert_eq!(set_aside_beside(&path).len(), usize::from(aside));
        set_aside += u32::from(aside);
        fs::remove_dir_all(path.parent().unwrap()).unwrap();
    }
    assert!(set_aside > 5, "damage is found at all: {set_aside} of 60");
}

#[test]
fn a_file_cut_short_is_set_aside() {
    let directory = tempfile::tempdir().unwrap();
    let original = directory.path().join("original");
    filled(&original);
    let len = fs::metadata(original.join("db")).unwrap().len();
    for (round, keep) in [0, 1, 100, 4096, len / 4, len / 2, len * 3 / 4].into_iter().enumerate() {
        let path = directory.path().join(format!("copy-{round}/store"));
        copy(&original, &path);
        fs::OpenOptions::new().write(true).open(path.join("db")).unwrap().set_len(keep).unwrap();
        assert!(opens_honestly(&path, &format!("cut to {keep} of {len}")), "cut to {keep} of {len}");
    }
}

#[test]
fn damaged_or_missing_small_files_are_set_aside_or_mended() {
    let directory = tempfile::tempdir().unwrap();
    let original = directory.path().join("original");
    filled(&original);
    drop(open_whole(&original));
    let names: Vec<_> = fs::read_dir(&original).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    for name in names.iter().filter(|name| *name != "blobs" && *name != "db") {
        for (round, bytes) in [None, Some(&b""[..]), Some(&[0xa5; 300])].into_iter().enumerate() {
            let path = directory.path().join(format!("copy-{round}-{}/store", name.to_string_lossy()));
            copy(&original, &path);
            match bytes {
                None => fs::remove_file(path.join(name)).unwrap(),
                Some(bytes) => fs::write(path.join(name), bytes).unwrap(),
            }
            opens_honestly(&path, &format!("{name:?} is {bytes:?}"));
        }
    }
}

#[test]
fn lost_commits_are_noticed() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store");
    let old = directory.path().join("old");
    filled(&path);
    copy(&path, &old);
    put(&open_whole(&path), "t", "later", b"acknowledged");
    // The disk gives back an older state of the database: consistent in itself, and wrong.
    fs::copy(path.join("acknowledged"), old.join("acknowledged")).unwrap();
    let opened = open(&old);
    assert!(opened.set_aside.unwrap().why.contains("1 acknowledged commits are missing"));
}

#[test]
fn a_newer_format_is_refused_and_left_as_it_is() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store");
    filled(&path);
    fs::write(path.join("format"), "kubeedge-store 2\n").unwrap();
    fs::write(path.join("db"), "some other engine").unwrap();
    let error = Store::open(&path, Options::default()).unwrap_err();
    assert!(matches!(error, OpenError::Newer { found: 2, known: 1, .. }), "{error}");
    assert_eq!(fs::read(path.join("db")).unwrap(), b"some other engine");
    assert!(set_aside_beside(&path).is_empty());
}

#[test]
fn a_path_that_is_a_file_is_an_error_that_names_it() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store");
    fs::write(&path, "a file").unwrap();
    let error = Store::open(&path, Options::default()).unwrap_err().to_string();
    assert!(error.contains(path.to_str().unwrap()), "{error}");
    assert_eq!(fs::read(&path).unwrap(), b"a file");
}

#[test]
fn the_newest_three_that_were_set_aside_are_kept() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store");
    let mut last = None;
    for round in 0..5u8 {
        let opened = open(&path);
        put(&opened.store, "t", "round", &[round]);
        last = opened.set_aside;
        drop(opened.store);
        fs::write(path.join("format"), "nonsense").unwrap();
    }
    assert_eq!(set_aside_beside(&path).len(), 3);
    let last = last.unwrap();
    assert!(last.path.join("db").exists());
    assert!(last.why.contains("nonsense"), "{}", last.why);
}
