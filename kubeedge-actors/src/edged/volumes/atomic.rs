//! Writes a volume's files so that a reader sees the old or the new set, never a mix.
//!
//! The kubelet's layout, which applications rely on:
//!
//! ```text
//! <volume>/..2026_01_31_12_00_00.123456789/key     the files
//! <volume>/..data -> ..2026_01_31_12_00_00.123456789
//! <volume>/key -> ..data/key                       what users see, one link for each top name
//! ```
//!
//! A new set is written beside the old one and `..data` is replaced by a rename. The set before the current one is
//! removed by the next look at the volume, not at once: who is between reading the link and opening the file still
//! finds it. At most two sets exist at a time.

use std::{
    collections::BTreeSet,
    ffi::OsStr,
    fs, io,
    io::Write as _,
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _, chown, symlink},
    path::{Path, PathBuf},
};

use jiff::{Timestamp, tz::TimeZone};

use super::{
    error::{AtPath as _, PathError},
    payload::Payload,
};

const DATA: &str = "..data";
const DATA_TMP: &str = "..data_tmp";
const LINK_TMP: &str = "..link_tmp";

/// Makes the directory `dir` hold exactly `payload`. Answers whether anything changed.
///
/// `group` owns the files and may read them. `now` names the new set.
pub(crate) fn write(dir: &Path, payload: &Payload, group: Option<u32>, now: Timestamp) -> Result<bool, PathError> {
    let current = current_set(dir)?;
    let same = match &current {
        Some(set) => holds(&dir.join(set), payload).at("read", dir)?,
        None => false,
    };
    let mut keep: BTreeSet<PathBuf> = current.iter().map(PathBuf::from).collect();
    if !same {
        let set = write_set(dir, payload, group, now)?;
        swap(dir, &set)?;
        keep.insert(PathBuf::from(set));
    }
    link_tops(dir, payload)?;
    clean(dir, payload, &keep)?;
    Ok(!same)
}

/// The name of the set that `..data` points to, if it is one of ours.
fn current_set(dir: &Path) -> Result<Option<String>, PathError> {
    let link = dir.join(DATA);
    match fs::read_link(&link) {
        Ok(target) => {
            let name = target.to_str().filter(|name| is_set(OsStr::new(name)) && !name.contains('/'));
            Ok(name.map(str::to_owned))
        }
        // EINVAL: something that is no link. The swap replaces it.
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidInput) => Ok(None),
        Err(error) => Err(error).at("read", &link),
    }
}

/// Whether the name is that of a set: `..` and the year.
fn is_set(name: &OsStr) -> bool {
    let bytes = name.as_encoded_bytes();
    bytes.starts_with(b"..") && bytes.get(2).is_some_and(u8::is_ascii_digit)
}

/// Whether `set` holds these files, contents and modes, and no others.
fn holds(set: &Path, payload: &Payload) -> io::Result<bool> {
    let mut expected = 0_usize;
    for (path, file) in payload.files() {
        let path = set.join(path.as_str());
        let metadata = match fs::symlink_metadata(&path) {
            Ok(metadata) if metadata.is_file() => metadata,
            Ok(_) => return Ok(false),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                return Ok(false);
            }
            Err(error) => return Err(error),
        };
        if metadata.permissions().mode() & 0o7777 != file.mode
            || metadata.len() != file.data.len() as u64
            || fs::read(&path)? != file.data
        {
            return Ok(false);
        }
        expected += 1;
    }
    Ok(count_files(set)? == Some(expected))
}

/// How many files there are in a set; `None` if the set itself is gone.
fn count_files(set: &Path) -> io::Result<Option<usize>> {
    let mut count = 0;
    let mut open = vec![set.to_owned()];
    while let Some(dir) = open.pop() {
        let entries = match fs::read_dir(&dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            entries => entries?,
        };
        for entry in entries {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                open.push(entry.path());
            } else {
                count += 1;
            }
        }
    }
    Ok(Some(count))
}

fn write_set(dir: &Path, payload: &Payload, group: Option<u32>, now: Timestamp) -> Result<String, PathError> {
    let (name, set) = make_set(dir, now)?;
    let dir_mode = if group.is_some() { 0o2755 } else { 0o755 };
    set_dir(&set, dir_mode, group)?;
    for (path, file) in payload.files() {
        let full = set.join(path.as_str());
        let mut above = set.clone();
        for part in Path::new(path.as_str()).parent().into_iter().flat_map(Path::components) {
            above.push(part);
            match fs::create_dir(&above) {
                Ok(()) => set_dir(&above, dir_mode, group)?,
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error).at("create", &above),
            }
        }
        let mut out =
            fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&full).at("create", &full)?;
        out.write_all(&file.data).at("write", &full)?;
        if file.uid.is_some() || group.is_some() {
            chown(&full, file.uid, group).at("change the owner of", &full)?;
        }
        // After the owner: changing it clears bits. Before the swap: nobody sees it with another mode.
        out.set_permissions(fs::Permissions::from_mode(file.mode)).at("set the mode of", &full)?;
    }
    Ok(name)
}

fn set_dir(dir: &Path, mode: u32, group: Option<u32>) -> Result<(), PathError> {
    if group.is_some() {
        chown(dir, None, group).at("change the group of", dir)?;
    }
    fs::set_permissions(dir, fs::Permissions::from_mode(mode)).at("set the mode of", dir)
}

/// A fresh directory `..2026_01_31_12_00_00.<digits>`.
fn make_set(dir: &Path, now: Timestamp) -> Result<(String, PathBuf), PathError> {
    let time = now.to_zoned(TimeZone::UTC).strftime("..%Y_%m_%d_%H_%M_%S").to_string();
    let mut last = None;
    for offset in 0..64_u32 {
        // The digits only have to differ from those of sets that are still there, of which there are at most two.
        let digits = (now.subsec_nanosecond().unsigned_abs() + offset) % 1_000_000_000;
        let name = format!("{time}.{digits:09}");
        let set = dir.join(&name);
        match fs::create_dir(&set) {
            Ok(()) => return Ok((name, set)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => last = Some(error),
            Err(error) => return Err(error).at("create", &set),
        }
    }
    Err(last.unwrap_or_else(|| io::ErrorKind::AlreadyExists.into())).at("create a set in", dir)
}

fn swap(dir: &Path, set: &str) -> Result<(), PathError> {
    replace_link(dir, DATA_TMP, set, &dir.join(DATA))
}

/// Makes `link` point to `target` in one step.
fn replace_link(dir: &Path, tmp: &str, target: &str, link: &Path) -> Result<(), PathError> {
    let tmp = dir.join(tmp);
    match fs::remove_file(&tmp) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error).at("remove", &tmp),
        _ => {}
    }
    symlink(target, &tmp).at("create", &tmp)?;
    fs::rename(&tmp, link).at("replace", link)
}

fn link_tops(dir: &Path, payload: &Payload) -> Result<(), PathError> {
    for top in payload.tops() {
        let target = format!("{DATA}/{top}");
        let link = dir.join(top);
        if !fs::read_link(&link).is_ok_and(|found| found.as_os_str() == target.as_str()) {
            replace_link(dir, LINK_TMP, &target, &link)?;
        }
    }
    Ok(())
}

/// Removes links to files that are no more, and sets that are neither the current nor the one before.
fn clean(dir: &Path, payload: &Payload, keep: &BTreeSet<PathBuf>) -> Result<(), PathError> {
    let tops = payload.tops();
    for entry in fs::read_dir(dir).at("list", dir)? {
        let entry = entry.at("list", dir)?;
        let (name, path) = (entry.file_name(), entry.path());
        let kind = entry.file_type().at("look at", &path)?;
        if is_set(&name) {
            if kind.is_dir() && !keep.contains(Path::new(&name)) {
                fs::remove_dir_all(&path).at("remove", &path)?;
            }
        } else if kind.is_symlink() && name != DATA && !name.to_str().is_some_and(|name| tops.contains(name)) {
            fs::remove_file(&path).at("remove", &path)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
