//! The end of a pod's control groups, and of what is still in them.
//!
//! By then the runtime has nothing of the pod any more. What runs there all the same it has forgotten: containerd 1.6
//! that is killed while it makes a sandbox leaves the sandbox's first process behind, names it in no call any more, and
//! its group would be busy for ever. A kubelet ends such processes as well.

use std::{
    collections::BTreeSet,
    fs, io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open, pidfd_send_signal},
};

use super::cgroup::{CgroupDriver, cgroup_folder};
use crate::edged::{resources::QosClass, volumes::PodUid};

/// So often what is in the groups is looked for: a process that forks may have had a child meanwhile (kubelet's).
const ROUNDS: u32 = 5;
/// How long what was killed may take to end, each round. One that hangs in the kernel takes longer; the removal then says
/// that its group is busy.
const ENDS_WITHIN: Duration = Duration::from_secs(1);

/// Ends the control groups of a pod below `root` (`/sys/fs/cgroup`), in every tree: kills what is still in them and
/// removes them. Slices are removed by systemd, once they are empty. They may be gone already.
pub fn end_pod_cgroups(driver: CgroupDriver, root: &Path, uid: &PodUid) -> io::Result<()> {
    let groups = pod_groups(driver, root, uid)?;
    let mut left = BTreeSet::new();
    for _ in 0..ROUNDS {
        left = processes(&groups)?;
        if left.is_empty() {
            break;
        }
        kill(&left, || processes(&groups))?;
    }
    match driver {
        CgroupDriver::Systemd if left.is_empty() => Ok(()),
        CgroupDriver::Systemd => Err(io::Error::other(format!("processes of pod {uid} do not end: {left:?}"))),
        // What is below comes later in the list, and goes first.
        CgroupDriver::Cgroupfs => groups.iter().rev().try_for_each(|group| remove(group)),
    }
}

/// The pod's groups that are there, each before those below it.
fn pod_groups(driver: CgroupDriver, root: &Path, uid: &PodUid) -> io::Result<Vec<PathBuf>> {
    // Version 2 has one tree at the root, version 1 a tree below it for each controller.
    let mut trees = vec![root.to_owned()];
    for entry in fs::read_dir(root)? {
        trees.push(entry?.path());
    }
    let mut groups = Vec::new();
    for tree in trees {
        // Its class followed from the pod's spec, which need not be known any more.
        for class in [QosClass::Guaranteed, QosClass::Burstable, QosClass::BestEffort] {
            groups.extend(cgroup_folder(driver, class, uid).map(|folder| tree.join(folder)));
        }
    }
    groups.retain(|group| group.is_dir());
    let mut next = 0;
    while let Some(group) = groups.get(next).cloned() {
        match fs::read_dir(&group) {
            Ok(entries) => {
                let folders = entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
                groups.extend(folders.map(|entry| entry.path()));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(named(&group, &error)),
        }
        next += 1;
    }
    Ok(groups)
}

/// The ids of all processes in these groups.
fn processes(groups: &[PathBuf]) -> io::Result<BTreeSet<i32>> {
    let mut found = BTreeSet::new();
    for group in groups {
        let file = group.join("cgroup.procs");
        match fs::read_to_string(&file) {
            // One that this program cannot name is 0: it is in a namespace above.
            Ok(ids) => found.extend(ids.lines().filter_map(|id| id.parse::<i32>().ok()).filter(|id| *id > 0)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            // A threaded group says this of its processes; those are in the group above it.
            Err(error) if error.raw_os_error() == Some(Errno::OPNOTSUPP.raw_os_error()) => {}
            Err(error) => return Err(named(&file, &error)),
        }
    }
    Ok(found)
}

/// Kills these processes and waits a while for their end. `again` tells who is there: an id may have become that of
/// another process since.
fn kill(ids: &BTreeSet<i32>, again: impl Fn() -> io::Result<BTreeSet<i32>>) -> io::Result<()> {
    let mut held: Vec<(Pid, Option<OwnedFd>)> = Vec::new();
    for pid in ids.iter().copied().filter_map(Pid::from_raw) {
        match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(process) => held.push((pid, Some(process))),
            // Linux before 5.3.
            Err(Errno::NOSYS) => held.push((pid, None)),
            Err(Errno::SRCH) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let there = again()?;
    held.retain(|(pid, _)| there.contains(&pid.as_raw_nonzero().get()));
    for (pid, process) in &held {
        tracing::warn!(pid = pid.as_raw_nonzero().get(), "killed: a process of a pod that the runtime has forgotten");
        let sent = match process {
            Some(process) => pidfd_send_signal(process, Signal::KILL),
            None => kill_process(*pid, Signal::KILL),
        };
        match sent {
            Ok(()) | Err(Errno::SRCH) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let limit = Timespec { tv_sec: ENDS_WITHIN.as_secs().cast_signed(), tv_nsec: 0 };
    for process in held.iter().filter_map(|(_, process)| process.as_ref()) {
        // Ready once it has ended; what has not is met in the next round.
        poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&limit))?;
    }
    Ok(())
}

fn remove(group: &Path) -> io::Result<()> {
    match fs::remove_dir(group) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(named(group, &error)),
        _ => Ok(()),
    }
}

fn named(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::{os::unix::process::ExitStatusExt, process::Command};

    use super::*;

    fn group(root: &Path, tree: &str, qos: QosClass, uid: &PodUid) -> PathBuf {
        root.join(tree).join(cgroup_folder(CgroupDriver::Cgroupfs, qos, uid).unwrap())
    }

    #[test]
    fn the_groups_of_a_pod_are_removed_from_every_tree_with_what_is_below_and_no_other() {
        let root = tempfile::tempdir().unwrap();
        let (gone, stays): (PodUid, PodUid) = ("a-b".parse().unwrap(), "a-c".parse().unwrap());
        let trees = ["", "cpu", "memory"];
        for tree in trees {
            let sandbox = group(root.path(), tree, QosClass::Burstable, &gone).join("sandbox");
            fs::create_dir_all(sandbox.join("below")).unwrap();
            fs::create_dir_all(group(root.path(), tree, QosClass::Guaranteed, &stays)).unwrap();
        }
        fs::write(root.path().join("cgroup.procs"), "").unwrap();
        let end = |uid| end_pod_cgroups(CgroupDriver::Cgroupfs, root.path(), uid);
        end(&gone).unwrap();
        end(&gone).unwrap();
        for tree in trees {
            assert!(!group(root.path(), tree, QosClass::Burstable, &gone).exists(), "{tree}");
            assert!(group(root.path(), tree, QosClass::Guaranteed, &stays).exists(), "{tree}");
        }
        // One that is busy is told by its name.
        fs::write(group(root.path(), "cpu", QosClass::Guaranteed, &stays).join("busy"), "").unwrap();
        assert!(end(&stays).unwrap_err().to_string().contains("cpu/kubepods/poda-c"));
    }

    #[test]
    fn what_the_runtime_has_forgotten_is_killed_wherever_it_is_in_the_pod() {
        for driver in [CgroupDriver::Cgroupfs, CgroupDriver::Systemd] {
            let root = tempfile::tempdir().unwrap();
            let uid: PodUid = "a-b".parse().unwrap();
            let sandbox = root.path().join("pids").join(cgroup_folder(driver, QosClass::BestEffort, &uid).unwrap());
            let sandbox = sandbox.join("sandbox");
            fs::create_dir_all(&sandbox).unwrap();
            let mut forgotten = Command::new("sleep").arg("1000").spawn().unwrap();
            let mut other = Command::new("sleep").arg("1000").spawn().unwrap();
            fs::write(sandbox.join("cgroup.procs"), format!("0\n{}\n", forgotten.id())).unwrap();
            // Here the list of processes is a file like any other, and stays.
            let busy = end_pod_cgroups(driver, root.path(), &uid).unwrap_err().to_string();
            assert!(busy.contains(if driver == CgroupDriver::Systemd { "a-b" } else { "sandbox" }), "{busy}");
            assert_eq!(forgotten.wait().unwrap().signal(), Some(Signal::KILL.as_raw()));
            assert_eq!(other.try_wait().unwrap(), None);
            other.kill().unwrap();
            other.wait().unwrap();
        }
    }

    #[test]
    fn an_id_that_is_somebody_elses_by_now_is_left_alone() {
        let mut other = Command::new("sleep").arg("1000").spawn().unwrap();
        let id = i32::try_from(other.id()).unwrap();
        kill(&[id].into(), || Ok(BTreeSet::new())).unwrap();
        assert_eq!(other.try_wait().unwrap(), None);
        kill(&[id].into(), || Ok([id].into())).unwrap();
        assert_eq!(other.wait().unwrap().signal(), Some(Signal::KILL.as_raw()));
        // It is gone: nothing is left to do.
        kill(&[id].into(), || Ok([id].into())).unwrap();
    }
}
