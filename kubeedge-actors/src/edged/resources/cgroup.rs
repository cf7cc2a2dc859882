//! Where a pod is in the node's cgroups.

use super::qos::QosClass;
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

#[cfg(test)]
mod tests {
    use super::*;

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
