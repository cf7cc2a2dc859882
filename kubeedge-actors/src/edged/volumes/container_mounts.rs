//! What a container gets mounted: its volumes, the managed hosts file, its termination log.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    time::SystemTime,
};

use k8s_openapi::api::core::v1::{Container, Pod, VolumeMount};

use super::{
    Mount, MountedImage, MountedVolumes, Propagation, VolumeImage,
    error::{AtPath as _, MountReason, PathError, VolumeError},
    layout::{Label, PodDir},
    sub_path,
};
use crate::edged::{
    env::ContainerEnv,
    expansion::{expand, references},
    facts::PodFacts,
    resources::{hosts_file, node_hosts_file, pod_hostname},
};

const ETC_HOSTS: &str = "/etc/hosts";
const TERMINATION_LOG: &str = "/dev/termination-log";
/// So many termination logs of a container stay: the running one and those somebody may still read.
const TERMINATION_LOGS: usize = 5;

/// The mounts of `container`. Binds sub paths, writes the hosts file, makes a termination log.
pub(crate) fn mounts(
    dir: &PodDir,
    pod: &Pod,
    container: &Container,
    facts: &PodFacts,
    env: &ContainerEnv,
    mounted: &MountedVolumes,
) -> Result<Vec<Mount>, VolumeError> {
    let name = Label::parse("container name", &container.name)?;
    if let Some(device) = container.volume_devices.iter().flatten().next() {
        return Err(mount_error(&device.name, container, MountReason::Device));
    }
    let mut mounts = Vec::new();
    for (index, mount) in container.volume_mounts.iter().flatten().enumerate() {
        mounts.push(volume_mount(dir, &name, container, facts, env, mounted, index, mount)?);
    }
    if !mounts.iter().any(|mount| mount.container_path == ETC_HOSTS)
        && let Some(host_path) = write_etc_hosts(dir, pod, facts)?
    {
        mounts.push(Mount {
            host_path,
            image: None,
            container_path: ETC_HOSTS.to_owned(),
            read_only: false,
            recursive_read_only: false,
            propagation: Propagation::Private,
            selinux_relabel: true,
        });
    }
    let log = container.termination_message_path.as_deref().unwrap_or(TERMINATION_LOG);
    if !log.is_empty() {
        mounts.push(Mount {
            host_path: make_termination_log(&dir.container(&name))?,
            image: None,
            container_path: log.to_owned(),
            read_only: false,
            recursive_read_only: false,
            propagation: Propagation::Private,
            selinux_relabel: true,
        });
    }
    Ok(mounts)
}

fn mount_error(volume: &str, container: &Container, reason: MountReason) -> VolumeError {
    VolumeError::Mount { volume: volume.to_owned(), container: container.name.clone(), reason }
}

#[allow(clippy::too_many_arguments)] // One line of a container's specification and all that it may refer to.
fn volume_mount(
    dir: &PodDir,
    name: &Label,
    container: &Container,
    facts: &PodFacts,
    env: &ContainerEnv,
    mounted: &MountedVolumes,
    index: usize,
    mount: &VolumeMount,
) -> Result<Mount, VolumeError> {
    let volume = mounted
        .get(&mount.name)
        .ok_or_else(|| VolumeError::NoSuchVolume { volume: mount.name.clone(), container: container.name.clone() })?;
    let failed = |reason| mount_error(&mount.name, container, reason);
    let read_only = mount.read_only == Some(true) || volume.read_only;
    let propagation = propagation(mount, container).map_err(failed)?;
    let recursive_read_only = recursive_read_only(mount, propagation, facts).map_err(failed)?;
    let sub_path = match mount.sub_path_expr.as_deref().filter(|text| !text.is_empty()) {
        Some(expression) => expand_sub_path(expression, env).map_err(failed)?,
        None => mount.sub_path.clone().unwrap_or_default(),
    };
    let image = match &volume.image {
        VolumeImage::No => None,
        VolumeImage::Wanted => return Err(failed(MountReason::Image)),
        VolumeImage::Here(_) if !sub_path.is_empty() && !facts.image_sub_paths => {
            return Err(failed(MountReason::ImageSubPath(facts.runtime.clone())));
        }
        VolumeImage::Here(id) => {
            sub_path::parse(&sub_path).map_err(failed)?;
            Some(MountedImage { id: id.clone(), sub_path: sub_path.clone() })
        }
    };
    let host_path = if sub_path.is_empty() || image.is_some() {
        volume.path.clone()
    } else {
        let relative = sub_path::parse(&sub_path).map_err(failed)?;
        let opened = sub_path::open(&volume.path, &relative).map_err(failed)?;
        let volume_name = Label::parse("volume name", &mount.name)?;
        let target = dir.sub_path(&volume_name, name, index);
        sub_path::bind_open(&opened, &target)?;
        target
    };
    let container_path = match mount.mount_path.strip_prefix('/') {
        Some(_) => mount.mount_path.clone(),
        None => format!("/{}", mount.mount_path),
    };
    let selinux_relabel = volume.managed;
    Ok(Mount { host_path, image, container_path, read_only, recursive_read_only, propagation, selinux_relabel })
}

fn propagation(mount: &VolumeMount, container: &Container) -> Result<Propagation, MountReason> {
    match mount.mount_propagation.as_deref().unwrap_or_default() {
        "" | "None" => Ok(Propagation::Private),
        "HostToContainer" => Ok(Propagation::HostToContainer),
        "Bidirectional" => {
            let context = container.security_context.as_ref();
            if context.and_then(|context| context.privileged) == Some(true) {
                Ok(Propagation::Bidirectional)
            } else {
                Err(MountReason::Bidirectional)
            }
        }
        other => Err(MountReason::Propagation(other.chars().take(100).collect())),
    }
}

fn recursive_read_only(mount: &VolumeMount, propagation: Propagation, facts: &PodFacts) -> Result<bool, MountReason> {
    let mode = mount.recursive_read_only.as_deref().unwrap_or("Disabled");
    let refused = |reason| Err(MountReason::RecursiveReadOnly(mode.chars().take(100).collect(), reason));
    match mode {
        "Disabled" => Ok(false),
        _ if mount.read_only != Some(true) => refused("the mount is not readOnly"),
        _ if propagation != Propagation::Private => refused("the mount has a mountPropagation"),
        "IfPossible" => Ok(facts.recursive_read_only),
        "Enabled" if facts.recursive_read_only => Ok(true),
        "Enabled" => refused("the container runtime does not support it"),
        _ => refused("expected Disabled, IfPossible or Enabled"),
    }
}

fn expand_sub_path(expression: &str, env: &ContainerEnv) -> Result<String, MountReason> {
    match references(expression).into_iter().find(|name| !env.vars.contains_key(name)) {
        Some(missing) => Err(MountReason::Variable(missing)),
        None => Ok(expand(expression, |name| env.vars.get(name).map(String::as_str))),
    }
}

/// Writes the hosts file in place, since running containers hold it mounted. `None` while the pod has no address.
fn write_etc_hosts(dir: &PodDir, pod: &Pod, facts: &PodFacts) -> Result<Option<PathBuf>, VolumeError> {
    let spec = pod.spec.as_ref();
    let aliases = spec.and_then(|spec| spec.host_aliases.as_ref());
    let content = if spec.and_then(|spec| spec.host_network) == Some(true) {
        let node = fs::read(ETC_HOSTS).at("read", Path::new(ETC_HOSTS))?;
        node_hosts_file(&node, aliases)?
    } else if facts.pod_ips.is_empty() {
        return Ok(None);
    } else {
        hosts_file(&facts.pod_ips, &pod_hostname(pod, &facts.cluster_domain)?, aliases)?.into_bytes()
    };
    let path = dir.etc_hosts();
    fs::write(&path, content).at("write", &path)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).at("set the mode of", &path)?;
    Ok(Some(path))
}

/// A fresh file that any user of the container can write its last words to.
fn make_termination_log(dir: &Path) -> Result<PathBuf, PathError> {
    fs::create_dir_all(dir).at("create", dir)?;
    fs::set_permissions(dir, fs::Permissions::from_mode(0o750)).at("set the mode of", dir)?;
    let mut name = uuid::Uuid::new_v4().simple().to_string();
    name.truncate(8);
    let path = dir.join(name);
    let mut options = fs::OpenOptions::new();
    let file = options.write(true).create_new(true).open(&path).at("create", &path)?;
    file.set_permissions(fs::Permissions::from_mode(0o666)).at("set the mode of", &path)?;
    forget_old_logs(dir, &path)?;
    Ok(path)
}

/// A container that crashes again and again would fill the directory.
fn forget_old_logs(dir: &Path, newest: &Path) -> Result<(), PathError> {
    let mut logs: Vec<(SystemTime, PathBuf)> = Vec::new();
    for entry in fs::read_dir(dir).at("list", dir)? {
        let path = entry.at("list", dir)?.path();
        let metadata = fs::symlink_metadata(&path).at("look at", &path)?;
        if metadata.is_file() && path != newest {
            logs.push((metadata.modified().at("look at", &path)?, path));
        }
    }
    logs.sort();
    let surplus = (logs.len() + 1).saturating_sub(TERMINATION_LOGS);
    for (_, path) in logs.into_iter().take(surplus) {
        fs::remove_file(&path).at("remove", &path)?;
    }
    Ok(())
}
