//! Removes a directory that containers could write to: never through a link, never into a mount, at any depth.

use std::{
    collections::VecDeque,
    ffi::{CString, OsString},
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStringExt as _,
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, RenameFlags, openat, renameat_with, unlinkat},
    io::Errno,
};

use super::error::VolumeError;

const OPEN_DIR: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Removes `dir` and all below it. Fine if it is not there; refused if it is a link.
///
/// A container may have made directories deeper than any stack or path. So a directory that is not empty is moved up
/// next to its ancestors first: what is worked on is never deeper than two levels, with two open directories. A rename
/// does not cross a mount, so neither does this.
pub(crate) fn remove_tree(dir: &Path) -> Result<(), VolumeError> {
    let busy = |source: io::Error| VolumeError::Busy { path: dir.to_owned(), source };
    let top = match openat(CWD, dir, OPEN_DIR, Mode::empty()) {
        Ok(top) => top,
        Err(Errno::NOENT) => return Ok(()),
        Err(error) => return Err(busy(error.into())),
    };
    empty(top.as_fd()).map_err(|(name, errno)| {
        let path = dir.join(PathBuf::from(OsString::from_vec(name.into_bytes())));
        VolumeError::Busy { path, source: errno.into() }
    })?;
    unlinkat(CWD, dir, AtFlags::REMOVEDIR).map_err(|errno| busy(errno.into()))
}

type Failure = (CString, Errno);

fn empty(top: BorrowedFd<'_>) -> Result<(), Failure> {
    let mut moved = 0_u64;
    loop {
        // Directories that could not be removed at once, by their names in `top`.
        let mut pending: VecDeque<CString> = VecDeque::new();
        for (name, is_dir) in entries(top)? {
            if !remove_entry(top, &name, is_dir)? {
                pending.push_back(name);
            }
        }
        if pending.is_empty() {
            return Ok(());
        }
        while let Some(name) = pending.pop_front() {
            let child: OwnedFd = openat(top, &name, OPEN_DIR, Mode::empty()).map_err(|errno| (name.clone(), errno))?;
            for (entry, is_dir) in entries(child.as_fd())? {
                if !remove_entry(child.as_fd(), &entry, is_dir)? {
                    pending.push_back(hoist(child.as_fd(), &entry, top, &mut moved)?);
                }
            }
            drop(child);
            unlinkat(top, &name, AtFlags::REMOVEDIR).map_err(|errno| (name, errno))?;
        }
    }
}

/// `Ok(false)`: a directory that is not empty.
fn remove_entry(dir: BorrowedFd<'_>, name: &CString, is_dir: bool) -> Result<bool, Failure> {
    let flags = if is_dir { AtFlags::REMOVEDIR } else { AtFlags::empty() };
    match unlinkat(dir, name, flags) {
        Ok(()) | Err(Errno::NOENT) => Ok(true),
        Err(Errno::NOTEMPTY | Errno::EXIST) if is_dir => Ok(false),
        Err(errno) => Err((name.clone(), errno)),
    }
}

/// Moves a directory up into `top`, under a name that is free there.
fn hoist(from: BorrowedFd<'_>, name: &CString, top: BorrowedFd<'_>, moved: &mut u64) -> Result<CString, Failure> {
    loop {
        *moved += 1;
        let free = CString::new(format!(".removed-{moved}")).map_err(|_| (name.clone(), Errno::INVAL))?;
        match renameat_with(from, name, top, &free, RenameFlags::NOREPLACE) {
            Ok(()) => return Ok(free),
            Err(Errno::EXIST) => {}
            Err(errno) => return Err((name.clone(), errno)),
        }
    }
}

/// The entries of a directory and whether each is a directory itself.
fn entries(dir: BorrowedFd<'_>) -> Result<Vec<(CString, bool)>, Failure> {
    let here = |errno| (CString::default(), errno);
    let mut found = Vec::new();
    for entry in Dir::read_from(dir).map_err(here)? {
        let entry = entry.map_err(here)?;
        let name = entry.file_name();
        if name.to_bytes() == b"." || name.to_bytes() == b".." {
            continue;
        }
        let is_dir = match entry.file_type() {
            FileType::Unknown => {
                let stat = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)
                    .map_err(|errno| (name.to_owned(), errno))?;
                FileType::from_raw_mode(stat.st_mode) == FileType::Directory
            }
            kind => kind == FileType::Directory,
        };
        found.push((name.to_owned(), is_dir));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::{
        super::mount_table::{bind, may_mount, unmount_one},
        *,
    };

    #[test]
    fn links_are_removed_and_not_followed() {
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("precious"), "x").unwrap();
        let dir = tempfile::tempdir().unwrap();
        let pod = dir.path().join("pod");
        fs::create_dir_all(pod.join("a/b")).unwrap();
        symlink(outside.path(), pod.join("link")).unwrap();
        symlink(outside.path(), pod.join("a/b/link")).unwrap();
        symlink("/nowhere", pod.join("a/dangling")).unwrap();
        remove_tree(&pod).unwrap();
        assert!(!pod.exists());
        assert!(outside.path().join("precious").exists());

        symlink(outside.path(), &pod).unwrap();
        assert!(matches!(remove_tree(&pod), Err(VolumeError::Busy { .. })), "the directory itself is a link");
        assert!(outside.path().join("precious").exists());
        remove_tree(&dir.path().join("none")).unwrap();
    }

    #[test]
    fn a_tree_deeper_than_any_path_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let pod = dir.path().join("pod");
        fs::create_dir(&pod).unwrap();
        let name = "d".repeat(200);
        let mut at = openat(CWD, &pod, OPEN_DIR, Mode::empty()).unwrap();
        for _ in 0..2000 {
            rustix::fs::mkdirat(&at, &name, Mode::from_raw_mode(0o755)).unwrap();
            rustix::fs::mkdirat(&at, ".removed-1", Mode::from_raw_mode(0o755)).unwrap();
            at = openat(&at, &name, OPEN_DIR, Mode::empty()).unwrap();
        }
        drop(at);
        remove_tree(&pod).unwrap();
        assert!(!pod.exists());
    }

    #[test]
    fn what_is_still_mounted_is_not_emptied() {
        if !may_mount("what_is_still_mounted_is_not_emptied") {
            return;
        }
        let host = tempfile::tempdir().unwrap();
        fs::write(host.path().join("precious"), "x").unwrap();
        let dir = tempfile::tempdir().unwrap();
        let pod = dir.path().join("pod");
        let point = pod.join("volumes/deep");
        fs::create_dir_all(&point).unwrap();
        bind(host.path(), &point).unwrap();
        let mounted = point.canonicalize().unwrap();
        let error = remove_tree(&pod).unwrap_err();
        assert!(matches!(error, VolumeError::Busy { .. }), "{error}");
        assert!(host.path().join("precious").exists());
        // The directory above the mount has moved up in the attempt, and the mount with it.
        let moved = fs::read_dir(&pod).unwrap().map(|entry| entry.unwrap().path().join("deep"));
        for point in moved.chain([mounted, pod.join("deep")]) {
            unmount_one(&point).unwrap();
        }
        super::super::mount_table::unmount_below(&pod).unwrap();
        remove_tree(&pod).unwrap();
        assert!(host.path().join("precious").exists());
    }
}
