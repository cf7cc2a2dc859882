//! What pods have on the node's disk, and who has more than its limits allow.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use k8s_openapi::api::core::v1::Pod;

use crate::edged::{quantity::Quantity, resources::limit, runtime::ContainerStats};

/// Files that are counted of one pod at most; who has more counts as having at least that.
const MAX_FILES: u64 = 500_000;

/// Where a pod keeps files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodFolders {
    /// Its `emptyDir` volumes on disk, by name.
    pub empty_dirs: Vec<(String, PathBuf)>,
    /// Its logs; each container's are below a folder of its name.
    pub logs: PathBuf,
}

/// What is in them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodDisk {
    /// Bytes of each volume.
    pub empty_dirs: Vec<(String, u64)>,
    /// Bytes of each container's logs.
    pub logs: Vec<(String, u64)>,
    /// Files, all in all.
    pub inodes: u64,
}

impl PodFolders {
    /// Counts. As many reads as there are files: for the blocking pool.
    pub fn measure(&self) -> io::Result<PodDisk> {
        let mut disk = PodDisk::default();
        for (name, path) in &self.empty_dirs {
            let bytes = usage(path, &mut disk.inodes)?;
            disk.empty_dirs.push((name.clone(), bytes));
        }
        let logs = match fs::read_dir(&self.logs) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(disk),
            logs => logs?,
        };
        for folder in logs {
            let folder = folder?;
            let bytes = usage(&folder.path(), &mut disk.inodes)?;
            disk.logs.push((folder.file_name().to_string_lossy().into_owned(), bytes));
        }
        Ok(disk)
    }
}

/// Blocks in use below `path`, as `du` counts them, on its own file system; links are not followed. What goes away
/// meanwhile is not counted.
fn usage(path: &Path, inodes: &mut u64) -> io::Result<u64> {
    let root = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        metadata => metadata?,
    };
    let device = root.dev();
    let mut bytes = 0_u64;
    let mut folders = vec![path.to_owned()];
    while let Some(folder) = folders.pop() {
        let entries = match fs::read_dir(&folder) {
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => continue,
            entries => entries?,
        };
        for entry in entries {
            let Ok(entry) = entry else { continue };
            let Ok(metadata) = entry.metadata() else { continue };
            if metadata.dev() != device {
                continue;
            }
            *inodes += 1;
            // Blocks are of 512 bytes, whatever the file system's are.
            bytes = bytes.saturating_add(metadata.blocks().saturating_mul(512));
            if *inodes >= MAX_FILES {
                return Ok(bytes);
            }
            if metadata.is_dir() {
                folders.push(entry.path());
            }
        }
    }
    Ok(bytes)
}

/// Whether anything of a pod on disk is limited, so that it has to be measured.
pub fn is_limited(pod: &Pod) -> bool {
    let spec = pod.spec.as_ref();
    let sized = spec.into_iter().flat_map(|spec| spec.volumes.iter().flatten()).any(|volume| {
        volume.empty_dir.as_ref().is_some_and(|dir| dir.size_limit.is_some() && !is_memory(dir.medium.as_deref()))
    });
    let containers = spec.into_iter().flat_map(|spec| &spec.containers);
    sized || containers.into_iter().any(|container| matches!(limit(container, "ephemeral-storage"), Ok(Some(_))))
}

/// Whether an `emptyDir` is kept in memory: its size is the file system's own concern then.
pub fn is_memory(medium: Option<&str>) -> bool {
    !medium.unwrap_or_default().is_empty()
}

/// Why a pod has to go, in a kubelet's words: a volume, a container, or all of it has more than its limit.
pub fn over_its_limits(pod: &Pod, disk: &PodDisk, layers: &[ContainerStats]) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    for volume in spec.volumes.iter().flatten() {
        let Some(dir) = volume.empty_dir.as_ref().filter(|dir| !is_memory(dir.medium.as_deref())) else { continue };
        let Some(limit) = dir.size_limit.as_ref().and_then(|size| Quantity::from_api(size).ok()) else { continue };
        let used = disk.empty_dirs.iter().find(|(name, _)| *name == volume.name).map_or(0, |(_, bytes)| *bytes);
        if limit > Quantity::ZERO && Quantity::bytes(used) > limit {
            return Some(format!(
                "Usage of EmptyDir volume \"{}\" exceeds the limit \"{}\". ",
                volume.name,
                limit.to_api().0
            ));
        }
    }
    let of_container = |name: &str| {
        let layer = layers.iter().filter(|stats| stats.name == name).map(|stats| stats.layer_bytes).max();
        let logs = disk.logs.iter().find(|(of, _)| of == name).map_or(0, |(_, bytes)| *bytes);
        layer.unwrap_or(0).saturating_add(logs)
    };
    let mut total_limit = Some(Quantity::ZERO);
    let mut total: u64 = disk.empty_dirs.iter().fold(0, |sum, (_, bytes)| sum.saturating_add(*bytes));
    for container in &spec.containers {
        let limit = limit(container, "ephemeral-storage").ok().flatten();
        let used = of_container(&container.name);
        total = total.saturating_add(used);
        total_limit = total_limit.zip(limit).map(|(sum, limit)| sum.plus(limit));
        if let Some(limit) = limit
            && Quantity::bytes(used) > limit
        {
            return Some(format!(
                "Container {} exceeded its local ephemeral storage limit \"{}\". ",
                container.name,
                limit.to_api().0
            ));
        }
    }
    // Only when every container is limited is the pod as a whole.
    let limit = total_limit.filter(|limit| *limit > Quantity::ZERO)?;
    (Quantity::bytes(total) > limit).then(|| {
        let limit = Quantity::bytes(u64::try_from(limit.value()).unwrap_or(0)).to_api().0;
        format!("Pod ephemeral local storage usage exceeds the total limit of containers {limit}. ")
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(volumes: Value, limits: &[Value]) -> Pod {
        let containers: Vec<Value> = limits
            .iter()
            .enumerate()
            .map(|(n, limits)| json!({"name": format!("c{n}"), "resources": {"limits": limits}}))
            .collect();
        serde_json::from_value(json!({"metadata": {}, "spec": {"volumes": volumes, "containers": containers}})).unwrap()
    }

    fn layer(name: &str, bytes: u64) -> ContainerStats {
        ContainerStats { name: name.into(), layer_bytes: bytes, ..ContainerStats::default() }
    }

    #[test]
    fn who_has_more_than_its_limit_is_told_which() {
        let volumes = json!([{"name": "v", "emptyDir": {"sizeLimit": "1Ki"}},
            {"name": "m", "emptyDir": {"sizeLimit": "1", "medium": "Memory"}}]);
        let sized = pod(volumes, &[json!({})]);
        let disk = |volume: u64, logs: u64| PodDisk {
            empty_dirs: vec![("v".into(), volume), ("m".into(), 99)],
            logs: vec![("c0".into(), logs)],
            inodes: 0,
        };
        assert!(is_limited(&sized) && !is_limited(&pod(json!([]), &[json!({"memory": "1"})])));
        assert_eq!(over_its_limits(&sized, &disk(1024, 0), &[]), None);
        let said = over_its_limits(&sized, &disk(1025, 0), &[]).unwrap();
        assert_eq!(said, "Usage of EmptyDir volume \"v\" exceeds the limit \"1Ki\". ");

        let limit = json!({"ephemeral-storage": "1Ki"});
        let one = pod(json!([]), std::slice::from_ref(&limit));
        assert!(is_limited(&one));
        let none = PodDisk::default();
        assert_eq!(over_its_limits(&one, &none, &[layer("c0", 1024)]), None);
        let said = over_its_limits(&one, &disk(0, 1), &[layer("c0", 1024)]).unwrap();
        assert_eq!(said, "Container c0 exceeded its local ephemeral storage limit \"1Ki\". ");
        let two = pod(json!([{"name": "v", "emptyDir": {}}]), &[limit.clone(), limit.clone()]);
        let said = over_its_limits(&two, &disk(2000, 0), &[layer("c0", 30), layer("c1", 19)]).unwrap();
        assert_eq!(said, "Pod ephemeral local storage usage exceeds the total limit of containers 2Ki. ");
        assert_eq!(over_its_limits(&pod(json!([]), &[limit, json!({})]), &disk(9999, 0), &[]), None);
    }

    #[test]
    fn blocks_are_counted_and_links_are_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        let (volume, logs) = (folder.path().join("v"), folder.path().join("logs"));
        fs::create_dir_all(volume.join("deep")).unwrap();
        fs::create_dir_all(logs.join("c0")).unwrap();
        fs::write(volume.join("deep/file"), vec![1; 100_000]).unwrap();
        std::os::unix::fs::symlink("/", volume.join("everything")).unwrap();
        fs::write(logs.join("c0/0.log"), vec![1; 5000]).unwrap();
        let folders =
            PodFolders { empty_dirs: vec![("v".into(), volume), ("gone".into(), folder.path().join("x"))], logs };
        let disk = folders.measure().unwrap();
        assert!((100_000..200_000).contains(&disk.empty_dirs[0].1), "{disk:?}");
        assert_eq!(disk.empty_dirs[1], ("gone".into(), 0));
        assert!(disk.logs[0].0 == "c0" && disk.logs[0].1 >= 5000 && disk.inodes == 4, "{disk:?}");
    }
}
