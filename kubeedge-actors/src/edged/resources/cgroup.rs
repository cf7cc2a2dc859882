//! Where a pod is in the node's cgroups.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use k8s_openapi::api::core::v1::Pod;

use super::qos::{QosClass, qos_class};
use crate::edged::volumes::PodUid;

/// Who manages the node's cgroups; runtime and node have to agree.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CgroupDriver {
    /// Directories made directly.
    #[default]
    Cgroupfs,
    /// Slices of systemd.
    Systemd,
}

/// The cgroup that a pod's sandbox and containers are made in.
pub fn cgroup_parent(driver: CgroupDriver, qos: QosClass, uid: &PodUid) -> String {
    let class = match qos {
        QosClass::Guaranteed => None,
        QosClass::Burstable => Some("burstable"),
        QosClass::BestEffort => Some("besteffort"),
    };
    match (driver, class) {
        (CgroupDriver::Cgroupfs, None) => format!("/kubepods/pod{uid}"),
        (CgroupDriver::Cgroupfs, Some(class)) => format!("/kubepods/{class}/pod{uid}"),
        // A '-' in a slice's name means a level: those of the uid are written as '_'.
        (CgroupDriver::Systemd, None) => format!("kubepods-pod{}.slice", uid.as_str().replace('-', "_")),
        (CgroupDriver::Systemd, Some(class)) => {
            format!("kubepods-{class}-pod{}.slice", uid.as_str().replace('-', "_"))
        }
    }
}

/// Where cgroups are.
const ROOT: &str = "/sys/fs/cgroup";

/// How many processes and threads a pod has, as far as its cgroup tells; 0 where it does not.
pub fn pod_processes(driver: CgroupDriver, uid: &str, pod: &Pod) -> u64 {
    let (Ok(uid), Ok(qos)) = (uid.parse::<PodUid>(), qos_class(pod)) else { return 0 };
    let Some(parent) = cgroup_folder(driver, qos, &uid) else { return 0 };
    let found = ["pids", ""].into_iter().find_map(|tree| {
        let file = Path::new(ROOT).join(tree).join(&parent).join("pids.current");
        fs::read_to_string(file).ok()?.trim().parse().ok()
    });
    found.unwrap_or(0)
}

/// The folder of a pod below a tree's root; slices are nested by their names.
pub(super) fn cgroup_folder(driver: CgroupDriver, qos: QosClass, uid: &PodUid) -> Option<PathBuf> {
    let parent = cgroup_parent(driver, qos, uid);
    match driver {
        CgroupDriver::Cgroupfs => Some(parent.trim_start_matches('/').into()),
        CgroupDriver::Systemd => {
            let levels: Vec<&str> = parent.strip_suffix(".slice")?.split('-').collect();
            Some((1..=levels.len()).map(|depth| format!("{}.slice", levels[..depth].join("-"))).collect())
        }
    }
}

/// The folder of a class; of the class that has none of its own that of all pods.
pub(super) fn class_folder(driver: CgroupDriver, qos: QosClass) -> PathBuf {
    let path = match (driver, qos) {
        (CgroupDriver::Cgroupfs, QosClass::Guaranteed) => "kubepods",
        (CgroupDriver::Cgroupfs, QosClass::Burstable) => "kubepods/burstable",
        (CgroupDriver::Cgroupfs, QosClass::BestEffort) => "kubepods/besteffort",
        (CgroupDriver::Systemd, QosClass::Guaranteed) => "kubepods.slice",
        (CgroupDriver::Systemd, QosClass::Burstable) => "kubepods.slice/kubepods-burstable.slice",
        (CgroupDriver::Systemd, QosClass::BestEffort) => "kubepods.slice/kubepods-besteffort.slice",
    };
    path.into()
}

/// Limits the processes of a pod, all of its containers together. Its control group has been made by the runtime, with
/// the sandbox: one that is not there is an error, since the pod would have no limit.
pub fn limit_pod_pids(driver: CgroupDriver, root: &Path, qos: QosClass, uid: &PodUid, limit: u32) -> io::Result<()> {
    let parent = cgroup_parent(driver, qos, uid);
    let below = match driver {
        CgroupDriver::Cgroupfs => PathBuf::from(parent.trim_start_matches('/')),
        CgroupDriver::Systemd => slice_path(&parent),
    };
    // The controller's own tree (version 1), or the one tree that there is.
    let group =
        [root.join("pids").join(&below), root.join(&below)].into_iter().find(|group| group.join("pids.max").exists());
    let Some(group) = group else {
        let message =
            format!("no control group {} with a limit of processes below {}", below.display(), root.display());
        return Err(io::Error::new(io::ErrorKind::NotFound, message));
    };
    let file = group.join("pids.max");
    fs::write(&file, limit.to_string())
        .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", file.display())))
}

/// The folder of a slice: `a-b.slice` is `a.slice/a-b.slice`.
fn slice_path(name: &str) -> PathBuf {
    let stem = name.trim_end_matches(".slice");
    let levels = stem.match_indices('-').map(|(at, _)| at).chain([stem.len()]);
    levels.map(|end| format!("{}.slice", &stem[..end])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slice_is_in_the_slices_that_its_name_says() {
        let uid: PodUid = "a-b".parse().unwrap();
        let folder = |driver, qos| cgroup_folder(driver, qos, &uid).unwrap();
        let nested = Path::new("kubepods.slice/kubepods-burstable.slice/kubepods-burstable-poda_b.slice");
        assert_eq!(folder(CgroupDriver::Systemd, QosClass::Burstable), nested);
        assert_eq!(folder(CgroupDriver::Cgroupfs, QosClass::Guaranteed), Path::new("kubepods/poda-b"));
        for driver in [CgroupDriver::Cgroupfs, CgroupDriver::Systemd] {
            for qos in [QosClass::Guaranteed, QosClass::Burstable, QosClass::BestEffort] {
                let class = class_folder(driver, qos);
                assert_eq!(folder(driver, qos).parent(), Some(&*class), "a pod is in the folder of its class");
            }
        }
    }

    #[test]
    fn the_processes_of_a_pod_are_limited_in_either_version() {
        let uid: PodUid = "a-b".parse().unwrap();
        for (driver, below) in [
            (CgroupDriver::Cgroupfs, "pids/kubepods/burstable/poda-b"),
            (CgroupDriver::Cgroupfs, "kubepods/burstable/poda-b"),
            (CgroupDriver::Systemd, "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-poda_b.slice"),
        ] {
            let root = tempfile::tempdir().unwrap();
            let limit = || limit_pod_pids(driver, root.path(), QosClass::Burstable, &uid, 64);
            assert_eq!(limit().unwrap_err().kind(), io::ErrorKind::NotFound);
            fs::create_dir_all(root.path().join(below)).unwrap();
            let file = root.path().join(below).join("pids.max");
            fs::write(&file, "max").unwrap();
            limit().unwrap();
            assert_eq!(fs::read_to_string(file).unwrap(), "64");
        }
    }

    #[test]
    fn a_pod_is_below_the_cgroup_of_its_class() {
        let uid: PodUid = "a-b".parse().unwrap();
        for (driver, qos, path) in [
            (CgroupDriver::Cgroupfs, QosClass::Guaranteed, "/kubepods/poda-b"),
            (CgroupDriver::Cgroupfs, QosClass::Burstable, "/kubepods/burstable/poda-b"),
            (CgroupDriver::Cgroupfs, QosClass::BestEffort, "/kubepods/besteffort/poda-b"),
            (CgroupDriver::Systemd, QosClass::Guaranteed, "kubepods-poda_b.slice"),
            (CgroupDriver::Systemd, QosClass::Burstable, "kubepods-burstable-poda_b.slice"),
            (CgroupDriver::Systemd, QosClass::BestEffort, "kubepods-besteffort-poda_b.slice"),
        ] {
            assert_eq!(cgroup_parent(driver, qos, &uid), path);
        }
    }
}
