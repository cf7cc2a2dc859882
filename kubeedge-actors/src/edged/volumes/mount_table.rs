//! The node's mount table, and the mounts that volumes need.

use std::{
    ffi::{CString, OsString},
    fs, io,
    os::unix::ffi::{OsStrExt as _, OsStringExt as _},
    path::{Path, PathBuf},
};

use rustix::mount::{MountFlags, UnmountFlags, mount, mount_bind, unmount};

use super::error::{AtPath as _, PathError, VolumeError};

const MOUNTINFO: &str = "/proc/self/mountinfo";
/// How often the mount table is read again while something new appears below a directory that is taken down.
const ROUNDS: usize = 8;

/// The mount points of a mount table, in the order in which they were mounted.
fn mount_points(mountinfo: &[u8]) -> impl Iterator<Item = PathBuf> + '_ {
    // 36 35 98:0 /root /mount/point options ...
    mountinfo
        .split(|b| *b == b'\n')
        .filter_map(|line| line.split(|b| *b == b' ').nth(4))
        .map(|field| PathBuf::from(OsString::from_vec(unescape(field))))
}

/// `\040` and the like, which stand for blank, tab, newline and backslash.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        let octal = |b: &u8| (b'0'..=b'7').contains(b);
        match tail.get(..3).filter(|digits| *first == b'\\' && digits.iter().all(octal)) {
            Some(digits) => {
                let value = digits.iter().fold(0_u32, |value, digit| value * 8 + u32::from(digit - b'0'));
                out.push((value & 0xff) as u8);
                rest = &tail[3..];
            }
            None => {
                out.push(*first);
                rest = tail;
            }
        }
    }
    out
}

fn table() -> Result<Vec<u8>, PathError> {
    fs::read(MOUNTINFO).at("read", Path::new(MOUNTINFO))
}

/// What is mounted at or below `dir`, the latest mount last. `dir` must be canonical.
fn below(dir: &Path) -> Result<Vec<PathBuf>, PathError> {
    Ok(mount_points(&table()?).filter(|point| point.starts_with(dir)).collect())
}

/// Whether something is mounted on `path` itself.
pub(crate) fn is_mount_point(path: &Path) -> Result<bool, PathError> {
    let path = fs::canonicalize(path).at("resolve", path)?;
    Ok(mount_points(&table()?).any(|point| point == path))
}

/// Unmounts everything at or below `dir`, latest first, without following links.
pub(crate) fn unmount_below(dir: &Path) -> Result<(), VolumeError> {
    let dir = match fs::canonicalize(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        found => found.at("resolve", dir)?,
    };
    for _ in 0..ROUNDS {
        let points = below(&dir)?;
        if points.is_empty() {
            return Ok(());
        }
        for point in points.into_iter().rev() {
            unmount_one(&point)?;
        }
    }
    let source = io::Error::new(io::ErrorKind::ResourceBusy, "something keeps mounting here");
    Err(VolumeError::Busy { path: dir, source })
}

/// Unmounts what is on `point`; fine if nothing is.
pub(crate) fn unmount_one(point: &Path) -> Result<(), VolumeError> {
    match unmount(point, UnmountFlags::NOFOLLOW) {
        Ok(()) => Ok(()),
        // Already gone: with a mount above it, or by propagation.
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => Ok(()),
        Err(error) => Err(VolumeError::Busy { path: point.to_owned(), source: error.into() }),
    }
}

/// Mounts a tmpfs of at most `size` bytes on `dir`, unless one is there. `Ok(false)`: this process may not mount.
pub(crate) fn ensure_tmpfs(dir: &Path, size: u64) -> Result<bool, PathError> {
    if is_mount_point(dir)? {
        return Ok(true);
    }
    let options = CString::new(format!("size={size},mode=0777")).map_err(io::Error::from).at("mount tmpfs on", dir)?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    match mount("tmpfs", dir, "tmpfs", flags, options.as_c_str()) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::PERM | rustix::io::Errno::ACCESS) => Ok(false),
        Err(error) => Err(error).at("mount tmpfs on", dir),
    }
}

/// Binds `source` to `target`.
pub(crate) fn bind(source: &Path, target: &Path) -> Result<(), PathError> {
    mount_bind(source.as_os_str().as_bytes(), target.as_os_str().as_bytes()).at("bind", target)
}

/// Whether this process may mount, for tests that need it: they name themselves and pass without, since a build
/// machine need not be root.
#[cfg(test)]
pub(crate) fn may_mount(test: &str) -> bool {
    let dir = tempfile::tempdir().unwrap();
    match ensure_tmpfs(dir.path(), 4096) {
        Ok(true) => {
            unmount_one(&dir.path().canonicalize().unwrap()).unwrap();
            true
        }
        other => {
            println!("{test}: SKIPPED, mounting is not permitted here ({other:?})");
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_are_read_in_order_and_unescaped() {
        let table = b"22 27 0:21 / /proc rw,relatime - proc proc rw\n\
            40 27 0:30 / /var/a\\040b\\134c rw shared:1 - tmpfs tmpfs rw\n\
            41 40 0:31 /x /var/a\\040b\\134c/d\\9 rw - ext4 /dev/vda rw\n\ngarbage\n";
        let points: Vec<_> = mount_points(table).collect();
        assert_eq!(points, [Path::new("/proc"), Path::new("/var/a b\\c"), Path::new("/var/a b\\c/d\\9")]);
    }

    #[test]
    fn everything_below_is_unmounted_and_nothing_beside() {
        if !may_mount("everything_below_is_unmounted_and_nothing_beside") {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let (inner, beside) = (dir.path().join("pod/in ner"), dir.path().join("pod-2"));
        fs::create_dir_all(&inner).unwrap();
        fs::create_dir(&beside).unwrap();
        assert!(ensure_tmpfs(&inner, 1 << 16).unwrap());
        assert!(ensure_tmpfs(&inner, 1 << 16).unwrap(), "a second time it is left as it is");
        fs::create_dir(inner.join("deep")).unwrap();
        assert!(ensure_tmpfs(&inner.join("deep"), 1 << 16).unwrap());
        assert!(ensure_tmpfs(&beside, 1 << 16).unwrap());
        unmount_below(&dir.path().join("pod")).unwrap();
        assert!(!is_mount_point(&inner).unwrap());
        assert!(is_mount_point(&beside).unwrap());
        unmount_below(&beside).unwrap();
        assert!(!is_mount_point(&beside).unwrap());
    }
}
