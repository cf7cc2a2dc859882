//! `subPath`: a part of a volume, bound so that it cannot be swapped for something outside the volume.
//!
//! A container can change its volume while the node looks at it: what was a directory a moment ago may be a link to
//! `/etc`. So the path is resolved, must be inside the volume, and is then walked again from the volume down, part by
//! part, refusing links; what that walk holds open is what gets bound and handed to the runtime.

use std::{
    ffi::OsStr,
    fs, io,
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::fs::{MetadataExt as _, PermissionsExt as _},
    },
    path::{Component, Path, PathBuf},
};

use rustix::{
    fs::{CWD, FileType, Mode, OFlags, fchmod, fstat, mkdirat, openat},
    io::Errno,
};

use super::{
    error::{AtPath as _, MountReason, PathError, VolumeError},
    mount_table::{bind, is_mount_point, unmount_one},
};

const WALK: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Checks that a `subPath` is relative and has no `..`.
pub(crate) fn parse(sub_path: &str) -> Result<PathBuf, MountReason> {
    let path = Path::new(sub_path);
    let plain = |component: Component<'_>| matches!(component, Component::Normal(_) | Component::CurDir);
    if path.components().all(plain) && !sub_path.contains('\0') && sub_path.len() <= 4096 {
        return Ok(path.components().filter(|c| matches!(c, Component::Normal(_))).collect());
    }
    Err(MountReason::SubPath(sub_path.chars().take(300).collect()))
}

/// Opens `sub_path` of `volume` safely and makes it, as a directory with the volume's mode, if it is not there.
pub(crate) fn open(volume: &Path, sub_path: &Path) -> Result<OwnedFd, MountReason> {
    let escape = || MountReason::Escape(sub_path.display().to_string());
    let base = fs::canonicalize(volume).at("resolve", volume)?;
    // The longest part that exists, resolved; what follows it is made.
    let mut existing = base.join(sub_path);
    let mut missing: Vec<&OsStr> = Vec::new();
    let mut parts = sub_path.components().rev();
    let resolved = loop {
        match fs::canonicalize(&existing) {
            Ok(resolved) => break resolved,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let Some(Component::Normal(part)) = parts.next() else { return Err(escape()) };
                missing.push(part);
                existing.pop();
            }
            // A part that is no directory, or a loop of links.
            Err(_) => return Err(escape()),
        }
    };
    let inside = resolved.strip_prefix(&base).map_err(|_| escape())?;
    let mut at = openat(CWD, &base, WALK | OFlags::DIRECTORY, Mode::empty()).at("open", &base)?;
    for part in inside.components() {
        at = step(&at, part.as_os_str()).map_err(|_| escape())?;
    }
    let mode = fs::metadata(&base).at("look at", &base)?.permissions().mode() & 0o7777;
    for part in missing.into_iter().rev() {
        // A link that dangles "exists" for mkdir and is refused by the step after it.
        match mkdirat(&at, part, Mode::from_raw_mode(0o700)) {
            Ok(()) => at = open_new(&at, part, mode).at("create", &base.join(sub_path))?,
            Err(Errno::EXIST) => at = step(&at, part).map_err(|_| escape())?,
            Err(errno) => return Err(MountReason::Io(path_error("create", base.join(sub_path), errno))),
        }
    }
    Ok(at)
}

/// One part further down, if it is no link.
fn step(at: &OwnedFd, part: &OsStr) -> Result<OwnedFd, Errno> {
    let next = openat(at, part, WALK, Mode::empty())?;
    match FileType::from_raw_mode(fstat(&next)?.st_mode) {
        FileType::Symlink => Err(Errno::LOOP),
        _ => Ok(next),
    }
}

/// Opens a directory just made, and gives it its mode, whatever the umask is.
fn open_new(at: &OwnedFd, part: &OsStr, mode: u32) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let dir = openat(at, part, flags, Mode::empty())?;
    fchmod(&dir, Mode::from_raw_mode(mode))?;
    Ok(dir)
}

fn path_error(what: &'static str, path: PathBuf, errno: Errno) -> PathError {
    PathError { what, path, source: errno.into() }
}

/// Binds what is open to `target`, which is made as needed; a bind that is there and leads elsewhere is replaced.
pub(crate) fn bind_open(source: &OwnedFd, target: &Path) -> Result<(), VolumeError> {
    let stat = fstat(source).at("look at the source of", target)?;
    let is_dir = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
    if let Ok(there) = fs::symlink_metadata(target) {
        if is_mount_point(target)? {
            // st_dev and st_ino are u64 here and may be narrower on other targets.
            #[allow(clippy::useless_conversion)]
            let same = there.dev() == u64::from(stat.st_dev) && there.ino() == u64::from(stat.st_ino);
            if same {
                return Ok(());
            }
            unmount_one(target)?;
        }
        if fs::symlink_metadata(target).at("look at", target)?.is_dir() != is_dir {
            let removed = if is_dir { fs::remove_file(target) } else { fs::remove_dir(target) };
            removed.at("replace", target)?;
        }
    }
    if let Some(parent) = target.parent() {
        fs::create_dir_all(parent).at("create", parent)?;
    }
    if is_dir {
        fs::create_dir_all(target).at("create", target)?;
    } else {
        fs::OpenOptions::new().write(true).create(true).truncate(false).open(target).at("create", target)?;
    }
    // The kernel follows this link to the very file that is open, wherever its name leads by now.
    let opened = PathBuf::from(format!("/proc/self/fd/{}", source.as_raw_fd()));
    Ok(bind(&opened, target)?)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::{super::mount_table::may_mount, *};

    fn inode(fd: &OwnedFd) -> u64 {
        fstat(fd).unwrap().st_ino
    }

    fn inode_at(path: &Path) -> u64 {
        fs::metadata(path).unwrap().ino()
    }

    #[test]
    fn only_plain_relative_paths_are_taken() {
        for bad in ["/etc", "..", "a/../b", "../a", "a/..", "a\0b"] {
            assert!(matches!(parse(bad), Err(MountReason::SubPath(_))), "{bad:?}");
        }
        assert_eq!(parse("./a//b/.").unwrap(), Path::new("a/b"));
        assert_eq!(parse("..a").unwrap(), Path::new("..a"));
    }

    #[test]
    fn links_inside_the_volume_are_followed_and_those_that_leave_it_refused() {
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("f"), "").unwrap();
        let volume = tempfile::tempdir().unwrap();
        let v = volume.path();
        fs::create_dir_all(v.join("..set/deep")).unwrap();
        fs::write(v.join("..set/key"), "").unwrap();
        symlink("..set", v.join("..data")).unwrap();
        symlink("..data/key", v.join("key")).unwrap();
        symlink(outside.path(), v.join("out")).unwrap();
        symlink("../..", v.join("up")).unwrap();
        symlink("/nowhere/at/all", v.join("dangling")).unwrap();
        symlink("loop", v.join("loop")).unwrap();
        assert_eq!(inode(&open(v, Path::new("key")).unwrap()), inode_at(&v.join("..set/key")));
        assert_eq!(inode(&open(v, Path::new("..data/deep")).unwrap()), inode_at(&v.join("..set/deep")));
        assert_eq!(inode(&open(v, Path::new("")).unwrap()), inode_at(v));
        for bad in ["out", "out/f", "out/new", "up", "up/new", "dangling", "dangling/x", "loop", "key/x"] {
            let error = open(v, Path::new(bad)).unwrap_err();
            assert!(matches!(error, MountReason::Escape(_)), "{bad}: {error}");
        }
        assert!(!outside.path().join("new").exists());
    }

    #[test]
    fn what_is_missing_is_made_with_the_volumes_mode() {
        let volume = tempfile::tempdir().unwrap();
        fs::set_permissions(volume.path(), fs::Permissions::from_mode(0o2775)).unwrap();
        let opened = open(volume.path(), Path::new("a/b")).unwrap();
        let made = volume.path().join("a/b");
        assert_eq!(inode(&opened), inode_at(&made));
        for path in [&made, &volume.path().join("a")] {
            assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o7777, 0o2775);
        }
    }

    #[test]
    fn a_swap_behind_our_back_does_not_change_what_is_bound() {
        if !may_mount("a_swap_behind_our_back_does_not_change_what_is_bound") {
            return;
        }
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("secret"), "").unwrap();
        let volume = tempfile::tempdir().unwrap();
        let pod = tempfile::tempdir().unwrap();
        let target = pod.path().join("volume-subpaths/v/c/0");
        let opened = open(volume.path(), Path::new("dir")).unwrap();
        fs::rename(volume.path().join("dir"), volume.path().join("moved")).unwrap();
        symlink(outside.path(), volume.path().join("dir")).unwrap();
        bind_open(&opened, &target).unwrap();
        fs::write(volume.path().join("moved/mine"), "").unwrap();
        assert!(target.join("mine").exists() && !target.join("secret").exists());

        bind_open(&opened, &target).unwrap();
        fs::create_dir(volume.path().join("other")).unwrap();
        bind_open(&open(volume.path(), Path::new("other")).unwrap(), &target).unwrap();
        assert!(!target.join("mine").exists(), "bound to something else now");
        fs::write(volume.path().join("file"), "text").unwrap();
        bind_open(&open(volume.path(), Path::new("file")).unwrap(), &target).unwrap();
        assert_eq!(fs::read_to_string(&target).unwrap(), "text");
        super::super::mount_table::unmount_below(pod.path()).unwrap();
    }
}
