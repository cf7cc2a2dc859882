//! Limits of control groups, written where the kernel reads them: version 1 and 2, cgroupfs and systemd.
//!
//! Slices are systemd's: what is written to one holds until systemd changes that slice, which it does not by itself.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::{
    cgroup::{CgroupDriver, cgroup_folder, class_folder},
    group_limits::{GroupLimits, weight},
    qos::QosClass,
};
use crate::edged::volumes::PodUid;

/// A limit below zero is none, in version 1.
const NONE: i64 = -1;

/// Which way limits may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Any.
    Set,
    /// Up only: before what is below gets more.
    Raise,
}

/// The control groups of a node.
#[derive(Clone, Debug)]
pub struct Groups {
    driver: CgroupDriver,
    root: PathBuf,
}

/// A limit by the names of its file in version 1, with the tree it is in, and in version 2.
struct File {
    tree: &'static str,
    old: &'static str,
    new: &'static str,
}

const CPU_SHARES: File = File { tree: "cpu", old: "cpu.shares", new: "cpu.weight" };
const CPU_QUOTA: File = File { tree: "cpu", old: "cpu.cfs_quota_us", new: "cpu.max" };
const MEMORY: File = File { tree: "memory", old: "memory.limit_in_bytes", new: "memory.max" };

impl Groups {
    /// The groups below `root`, `/sys/fs/cgroup`.
    pub fn new(driver: CgroupDriver, root: &Path) -> Self {
        Self { driver, root: root.to_owned() }
    }

    /// Limits all pods together.
    pub fn limit_node(&self, limits: GroupLimits) -> io::Result<()> {
        self.limit_made(&class_folder(self.driver, QosClass::Guaranteed), limits)
    }

    /// Limits the pods of a class. Those that are guaranteed have no group of their own.
    pub fn limit_class(&self, class: QosClass, limits: GroupLimits) -> io::Result<()> {
        self.limit_made(&class_folder(self.driver, class), limits)
    }

    /// Limits a pod. The runtime has made its group with its sandbox: one that is not there is an error, since the pod
    /// would have no limit.
    pub fn limit_pod(&self, class: QosClass, uid: &PodUid, limits: GroupLimits, change: Change) -> io::Result<()> {
        let folder = cgroup_folder(self.driver, class, uid)
            .ok_or_else(|| io::Error::other(format!("pod {uid} has no control group by its name")))?;
        self.limit(&folder, limits, change)
    }

    /// A group that is there before any pod. systemd makes its slices itself, with the first pod.
    fn limit_made(&self, folder: &Path, limits: GroupLimits) -> io::Result<()> {
        if self.driver == CgroupDriver::Cgroupfs {
            self.make(folder)?;
        }
        self.limit(folder, limits, Change::Set)
    }

    fn make(&self, folder: &Path) -> io::Result<()> {
        if !self.root.join("cgroup.controllers").exists() {
            for tree in [CPU_SHARES.tree, MEMORY.tree].map(|tree| self.root.join(tree)) {
                // A kernel without it: then there is nothing to limit.
                if tree.is_dir() {
                    let group = tree.join(folder);
                    fs::create_dir_all(&group).map_err(|error| named(&group, &error))?;
                }
            }
            return Ok(());
        }
        // A group of version 2 has the controllers that the group above it hands down.
        let mut group = self.root.clone();
        for part in folder.components() {
            let file = group.join("cgroup.subtree_control");
            fs::write(&file, "+cpu +memory +pids").map_err(|error| named(&file, &error))?;
            group.push(part);
            match fs::create_dir(&group) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(named(&group, &error)),
                _ => {}
            }
        }
        Ok(())
    }

    fn limit(&self, folder: &Path, limits: GroupLimits, change: Change) -> io::Result<()> {
        if let Some(shares) = limits.shares {
            self.write(folder, &CPU_SHARES, shares, weight(shares), change)?;
        }
        if let Some(quota) = limits.quota {
            self.write(folder, &CPU_QUOTA, quota, quota, change)?;
        }
        if let Some(memory) = limits.memory {
            self.write(folder, &MEMORY, memory, memory, change)?;
        }
        Ok(())
    }

    /// `old` is what version 1 is told, `new` version 2.
    fn write(&self, folder: &Path, file: &File, old: i64, new: i64, change: Change) -> io::Result<()> {
        let path =
            [(file.tree, file.old), ("", file.new)].map(|(tree, name)| self.root.join(tree).join(folder).join(name));
        let (path, limit) = match path {
            [path, _] if path.exists() => (path, old),
            [_, path] if path.exists() => (path, new),
            [path, _] => {
                let message = format!("no control group {} with {} or {}", folder.display(), file.old, file.new);
                return Err(named(&path, &io::Error::new(io::ErrorKind::NotFound, message)));
            }
        };
        let text = fs::read_to_string(&path).map_err(|error| named(&path, &error))?;
        let first = text.split_whitespace().next().unwrap_or_default();
        let known = if first == "max" { NONE } else { first.parse().unwrap_or(NONE) };
        let lower = known == NONE || limit < known;
        if known == limit || (change == Change::Raise && lower) {
            return Ok(());
        }
        let text =
            if path.ends_with(CPU_QUOTA.new) { format!("{limit} {}", GroupLimits::PERIOD) } else { limit.to_string() };
        fs::write(&path, text).map_err(|error| named(&path, &error))
    }
}

fn named(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uid() -> PodUid {
        "a-b".parse().unwrap()
    }

    const LIMITS: GroupLimits = GroupLimits { shares: Some(1024), quota: Some(50_000), memory: Some(1 << 20) };

    fn put(root: &Path, files: &[(&str, &str)]) {
        for (file, text) in files {
            let path = root.join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
    }

    fn read(root: &Path, file: &str) -> String {
        fs::read_to_string(root.join(file)).unwrap()
    }

    #[test]
    fn a_pod_is_limited_in_either_version() {
        let old = tempfile::tempdir().unwrap();
        let below = "kubepods/burstable/poda-b";
        put(
            old.path(),
            &[
                (&format!("cpu/{below}/cpu.shares"), "2\n"),
                (&format!("cpu/{below}/cpu.cfs_quota_us"), "-1\n"),
                (&format!("memory/{below}/memory.limit_in_bytes"), "9223372036854771712\n"),
            ],
        );
        let groups = Groups::new(CgroupDriver::Cgroupfs, old.path());
        groups.limit_pod(QosClass::Burstable, &uid(), LIMITS, Change::Set).unwrap();
        let of = |file: &str| read(old.path(), file);
        assert_eq!(of(&format!("cpu/{below}/cpu.shares")), "1024");
        assert_eq!(of(&format!("cpu/{below}/cpu.cfs_quota_us")), "50000");
        assert_eq!(of(&format!("memory/{below}/memory.limit_in_bytes")), "1048576");

        let new = tempfile::tempdir().unwrap();
        let below = "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-poda_b.slice";
        put(
            new.path(),
            &[
                (&format!("{below}/cpu.weight"), "100\n"),
                (&format!("{below}/cpu.max"), "max 100000\n"),
                (&format!("{below}/memory.max"), "max\n"),
            ],
        );
        let groups = Groups::new(CgroupDriver::Systemd, new.path());
        groups.limit_pod(QosClass::Burstable, &uid(), LIMITS, Change::Set).unwrap();
        let of = |file: &str| read(new.path(), &format!("{below}/{file}"));
        assert_eq!(
            (of("cpu.weight"), of("cpu.max"), of("memory.max")),
            ("39".into(), "50000 100000".into(), "1048576".into())
        );
    }

    #[test]
    fn a_raise_lowers_nothing() {
        let root = tempfile::tempdir().unwrap();
        let below = "kubepods/poda-b";
        put(
            root.path(),
            &[
                (&format!("{below}/cpu.weight"), "10"),
                (&format!("{below}/cpu.max"), "max 100000"),
                (&format!("{below}/memory.max"), "2097152"),
            ],
        );
        let groups = Groups::new(CgroupDriver::Cgroupfs, root.path());
        groups.limit_pod(QosClass::Guaranteed, &uid(), LIMITS, Change::Raise).unwrap();
        let of = |file: &str| read(root.path(), &format!("{below}/{file}"));
        assert_eq!(
            (of("cpu.weight"), of("cpu.max"), of("memory.max")),
            ("39".into(), "max 100000".into(), "2097152".into())
        );
        groups.limit_pod(QosClass::Guaranteed, &uid(), LIMITS, Change::Set).unwrap();
        assert_eq!((of("cpu.max"), of("memory.max")), ("50000 100000".into(), "1048576".into()));
    }

    #[test]
    fn a_pod_without_a_group_is_an_error_that_names_it() {
        let root = tempfile::tempdir().unwrap();
        let groups = Groups::new(CgroupDriver::Cgroupfs, root.path());
        let error = groups.limit_pod(QosClass::BestEffort, &uid(), LIMITS, Change::Set).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        assert!(error.to_string().contains("kubepods/besteffort/poda-b"), "{error}");
    }

    #[test]
    fn groups_are_made_with_the_controllers_that_they_hand_down() {
        let root = tempfile::tempdir().unwrap();
        put(root.path(), &[("cgroup.controllers", "cpu memory pids"), ("cgroup.subtree_control", "")]);
        fs::create_dir(root.path().join("kubepods")).unwrap();
        put(root.path(), &[("kubepods/cpu.weight", "100"), ("kubepods/memory.max", "max")]);
        let groups = Groups::new(CgroupDriver::Cgroupfs, root.path());
        groups.limit_node(GroupLimits { quota: None, ..LIMITS }).unwrap();
        assert_eq!(read(root.path(), "cgroup.subtree_control"), "+cpu +memory +pids");
        assert_eq!(
            (read(root.path(), "kubepods/cpu.weight"), read(root.path(), "kubepods/memory.max")),
            ("39".into(), "1048576".into())
        );
        // Not a kernel's file system: the group of a class has no files, which is said.
        let error = groups.limit_class(QosClass::Burstable, GroupLimits { shares: Some(2), ..GroupLimits::default() });
        assert_eq!(error.unwrap_err().kind(), io::ErrorKind::NotFound);
        assert!(root.path().join("kubepods/burstable").is_dir());
        assert_eq!(read(root.path(), "kubepods/cgroup.subtree_control"), "+cpu +memory +pids");
    }
}
