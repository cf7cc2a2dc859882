//! `emptyDir`: a directory, or a tmpfs, that lives as long as the pod.

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, chown},
    path::Path,
};

use k8s_openapi::api::core::v1::{EmptyDirVolumeSource, Pod};

use super::{
    error::{AtPath as _, PathError, SetUpError},
    mount_table::ensure_tmpfs,
};
use crate::edged::{facts::PodFacts, quantity::Quantity};

/// An `emptyDir` as it is to be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EmptyDir {
    /// On the node's disk.
    Disk,
    /// A tmpfs of at most so many bytes.
    Memory(u64),
}

impl EmptyDir {
    /// What the source asks for. A tmpfs is bound by the least of its `sizeLimit`, the pod's memory limit and what the
    /// node has for pods.
    pub(crate) fn plan(source: &EmptyDirVolumeSource, pod: &Pod, facts: &PodFacts) -> Result<Self, SetUpError> {
        match source.medium.as_deref().unwrap_or_default() {
            "" => Ok(Self::Disk),
            "Memory" => {
                let limit = source.size_limit.as_ref().map(Quantity::from_api).transpose()?;
                let candidates = [Some(facts.allocatable.memory), pod_memory_limit(pod)?, limit];
                let least = candidates.into_iter().flatten().filter(|size| *size > Quantity::ZERO).min();
                let bytes = least.and_then(|size| u64::try_from(size.value()).ok());
                bytes.map(Self::Memory).ok_or(SetUpError::Invalid {
                    field: "emptyDir.sizeLimit",
                    value: String::new(),
                    expected: "a size, since the node's memory is not known",
                })
            }
            medium if medium.starts_with("HugePages") => Err(SetUpError::Unsupported("emptyDir with medium HugePages")),
            medium => Err(SetUpError::Invalid {
                field: "emptyDir.medium",
                value: medium.chars().take(100).collect(),
                expected: "\"\" or \"Memory\"",
            }),
        }
    }
}

/// The memory limit of the pod: what its containers may use at the same time; `None` if one of them is not limited.
fn pod_memory_limit(pod: &Pod) -> Result<Option<Quantity>, SetUpError> {
    let Some(spec) = &pod.spec else { return Ok(None) };
    let mut sum = Quantity::ZERO;
    for container in &spec.containers {
        let limits = container.resources.as_ref().and_then(|resources| resources.limits.as_ref());
        match limits.and_then(|limits| limits.get("memory")) {
            Some(limit) => sum = sum.plus(Quantity::from_api(limit)?),
            None => return Ok(None),
        }
    }
    Ok(Some(sum))
}

/// Makes the directory. A second time it is left as it is, but for a tmpfs that a reboot took away.
pub(crate) fn set_up(dir: &Path, meta: &Path, kind: EmptyDir, group: Option<u32>) -> Result<(), SetUpError> {
    let ready = meta.join("ready");
    let mounted_before = match kind {
        EmptyDir::Disk => true,
        EmptyDir::Memory(_) => dir.is_dir() && super::mount_table::is_mount_point(dir)?,
    };
    if mounted_before && dir.is_dir() && ready.exists() {
        return Ok(());
    }
    fs::create_dir_all(dir).at("create", dir)?;
    if let EmptyDir::Memory(size) = kind
        && !ensure_tmpfs(dir, size)?
    {
        let error: std::io::Error = rustix::io::Errno::PERM.into();
        return Err(error).at("mount tmpfs on", dir).map_err(SetUpError::Io);
    }
    open_to_group(dir, group)?;
    fs::create_dir_all(meta).at("create", meta)?;
    fs::write(&ready, "").at("create", &ready)?;
    Ok(())
}

/// Lets everyone into a volume's directory, as the kubelet does, and what is made in it belong to the group.
pub(crate) fn open_to_group(dir: &Path, group: Option<u32>) -> Result<(), PathError> {
    if group.is_some() {
        chown(dir, None, group).at("change the group of", dir)?;
    }
    let mode = if group.is_some() { 0o2777 } else { 0o777 };
    fs::set_permissions(dir, fs::Permissions::from_mode(mode)).at("set the mode of", dir)
}
