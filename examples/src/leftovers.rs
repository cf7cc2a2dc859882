//! What a run left on the machine. Read from the kernel's own tables, so that a clean end can be proved.

use std::{
    ffi::OsStr,
    fmt, fs,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

/// How deep the cgroup tree is searched: hierarchy, pods, quality of service, pod, container, and some to spare.
const CGROUP_DEPTH: usize = 8;

/// One thing that should be gone.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Leftover {
    /// A mount point.
    Mount(PathBuf),
    /// A process, by id and command line.
    Process(u32, String),
    /// A control group.
    Cgroup(PathBuf),
    /// A network interface.
    Link(String),
}

impl fmt::Display for Leftover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mount(path) => write!(f, "mount {}", path.display()),
            Self::Process(pid, command) => write!(f, "process {pid}: {command}"),
            Self::Cgroup(path) => write!(f, "cgroup {}", path.display()),
            Self::Link(name) => write!(f, "network interface {name}"),
        }
    }
}

/// Mount points at or below `folder`, the last mounted first: the order in which they can be unmounted.
pub fn mounts_below(folder: &Path) -> Result<Vec<PathBuf>> {
    let table = fs::read("/proc/self/mountinfo").context("read /proc/self/mountinfo")?;
    let mut mounts: Vec<PathBuf> = mount_points(&table).filter(|mount| mount.starts_with(folder)).collect();
    mounts.reverse();
    Ok(mounts)
}

/// Processes other than this one whose command line names something below `folder`.
pub fn processes_naming(folder: &Path) -> Result<Vec<(u32, String)>> {
    let needle = [folder.as_os_str().as_bytes(), b"/"].concat();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").context("read /proc")? {
        let entry = entry?;
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        // A process may end between the listing and this read.
        let Ok(command) = fs::read(entry.path().join("cmdline")) else { continue };
        if pid != std::process::id() && command.windows(needle.len()).any(|window| window == needle) {
            found.push((pid, String::from_utf8_lossy(&command).replace('\0', " ").trim_end().to_owned()));
        }
    }
    Ok(found)
}

/// The processes whose parent is this one.
pub fn children_of(parent: u32) -> Result<Vec<u32>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").context("read /proc")? {
        let entry = entry?;
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        // A process may end between the listing and this read.
        let Ok(status) = fs::read_to_string(entry.path().join("status")) else { continue };
        let of = status.lines().find_map(|line| line.strip_prefix("PPid:")?.trim().parse::<u32>().ok());
        if of == Some(parent) {
            found.push(pid);
        }
    }
    Ok(found)
}

/// Control groups with `part` in their name, in every mounted hierarchy.
pub fn cgroups_naming(part: &str) -> Result<Vec<PathBuf>> {
    // systemd's driver writes the dashes of a uid as underscores.
    let spellings = [part.to_owned(), part.replace('-', "_")];
    let mut found = Vec::new();
    let mut folders = vec![(PathBuf::from("/sys/fs/cgroup"), 0)];
    while let Some((folder, depth)) = folders.pop() {
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        for entry in entries.flatten() {
            // A group may be removed while it is looked at.
            if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            let name = entry.file_name();
            if spellings.iter().any(|spelling| name.to_string_lossy().contains(spelling.as_str())) {
                found.push(entry.path());
            } else if depth < CGROUP_DEPTH {
                folders.push((entry.path(), depth + 1));
            }
        }
    }
    found.sort();
    Ok(found)
}

/// Whether a network interface of this name exists.
pub fn link_exists(name: &str) -> bool {
    Path::new("/sys/class/net").join(name).exists()
}

/// The fifth field of each line, with the kernel's octal escapes undone.
fn mount_points(table: &[u8]) -> impl Iterator<Item = PathBuf> + '_ {
    table
        .split(|byte| *byte == b'\n')
        .filter_map(|line| line.split(|byte| *byte == b' ').nth(4))
        .map(|field| PathBuf::from(OsStr::from_bytes(&unescape(field))))
}

fn unescape(field: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, tail @ ..] = rest {
        let escaped = match rest {
            [b'\\', digits @ ..] => digits
                .get(..3)
                .and_then(|digits| std::str::from_utf8(digits).ok())
                .and_then(|digits| u8::from_str_radix(digits, 8).ok()),
            _ => None,
        };
        (rest, _) = match escaped {
            Some(byte) => (rest.get(4..).unwrap_or_default(), plain.push(byte)),
            None => (tail, plain.push(*first)),
        };
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_are_read_with_escapes() {
        let table = b"22 27 0:21 / /proc rw - proc proc rw\n23 27 0:2 / /a\\040b/c rw - tmpfs t rw\n";
        let mounts: Vec<_> = mount_points(table).collect();
        assert_eq!(mounts, [PathBuf::from("/proc"), PathBuf::from("/a b/c")]);
    }

    #[test]
    fn a_child_is_found_under_its_parent() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let found = children_of(std::process::id()).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(found.contains(&child.id()), "{found:?}");
    }

    #[test]
    fn the_root_is_above_every_mount() {
        assert!(mounts_below(Path::new("/")).unwrap().contains(&PathBuf::from("/proc")));
        assert_eq!(mounts_below(Path::new("/no/such/folder")).unwrap(), Vec::<PathBuf>::new());
    }

    #[test]
    fn a_process_is_found_by_the_folder_it_names() {
        let folder = tempfile::tempdir().unwrap();
        let mut child = std::process::Command::new("sh")
            .args(["-c", "echo up; read end"])
            .arg(folder.path().join("x"))
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        // Once it speaks, the command line is its own.
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut [0; 3]).unwrap();
        let found = processes_naming(folder.path()).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(found.iter().map(|(pid, _)| *pid).collect::<Vec<_>>(), [child.id()]);
        assert_eq!(processes_naming(folder.path()).unwrap(), []);
    }

    #[test]
    fn loopback_exists() {
        assert!(link_exists("lo"));
        assert!(!link_exists("no-such-link"));
    }
}
