//! CRI's answers as the small types that decisions are made from.

use std::collections::BTreeMap;

use jiff::Timestamp;
use kubeedge_proto::cri::{self, ContainerState, PodSandboxState};

use crate::edged::{
    labels,
    runtime::{
        ContainerStats, HandlerFeatures, ImageDisk, ImageUser, Instance, InstanceState, LocalImage, PodSummary,
        RuntimeError, RuntimeFeatures, RuntimeHealth, RuntimeVersion, Sandbox,
    },
};

/// Nanoseconds since 1970; `None` for 0, which is CRI's "not set".
fn time(nanoseconds: i64) -> Option<Timestamp> {
    if nanoseconds <= 0 {
        return None;
    }
    Timestamp::from_nanosecond(i128::from(nanoseconds)).ok()
}

pub(super) fn id(call: &'static str, id: String) -> Result<String, RuntimeError> {
    if id.is_empty() {
        return Err(RuntimeError::BadAnswer { call, message: "it has no id".to_owned() });
    }
    Ok(id)
}

pub(super) fn health(status: cri::RuntimeStatus) -> RuntimeHealth {
    let wrong = |type_: &str| match status.conditions.iter().find(|condition| condition.r#type == type_) {
        None => Some(format!("the runtime does not report {type_}")),
        Some(condition) if condition.status => None,
        Some(condition) => Some(format!("{}: {}", condition.reason, condition.message)),
    };
    RuntimeHealth { runtime: wrong("RuntimeReady"), network: wrong("NetworkReady") }
}

pub(super) fn features(version: &RuntimeVersion, status: cri::StatusResponse) -> RuntimeFeatures {
    let handlers = status.runtime_handlers.into_iter().map(|handler| {
        let features = handler.features.unwrap_or_default();
        let features = HandlerFeatures {
            recursive_read_only: features.recursive_read_only_mounts,
            user_namespaces: features.user_namespaces,
        };
        (handler.name, features)
    });
    RuntimeFeatures {
        runtime: format!("{} {}", version.name, version.version),
        image_volumes: is_since(version, (2, 1), (1, 31)),
        image_sub_paths: is_since(version, (2, 2), (1, 33)),
        strict_groups: status.features.is_some_and(|features| features.supplemental_groups_policy),
        handlers: handlers.collect(),
    }
}

/// Whether it is this version or a newer one. CRI has no word for what is judged by it: an older runtime takes an image to
/// be mounted for a mount without a source, or mounts the whole for a part. One that is not known here is asked to.
fn is_since(version: &RuntimeVersion, containerd: (u32, u32), crio: (u32, u32)) -> bool {
    let mut numbers = version.version.trim_start_matches('v').split(['.', '-', '~', '+']).map(str::parse::<u32>);
    let (Some(Ok(major)), Some(Ok(minor))) = (numbers.next(), numbers.next()) else { return true };
    match version.name.as_str() {
        "containerd" => (major, minor) >= containerd,
        "cri-o" => (major, minor) >= crio,
        _ => true,
    }
}

pub(super) fn state(state: i32) -> InstanceState {
    match ContainerState::try_from(state) {
        Ok(ContainerState::ContainerCreated) => InstanceState::Created,
        Ok(ContainerState::ContainerRunning) => InstanceState::Running,
        Ok(ContainerState::ContainerExited) => InstanceState::Exited,
        Ok(ContainerState::ContainerUnknown) | Err(_) => InstanceState::Unknown,
    }
}

fn is_ready(state: i32) -> bool {
    state == i32::from(PodSandboxState::SandboxReady)
}

/// Pods by uid; what has no pod's labels is somebody else's and left out.
pub(super) fn summaries(sandboxes: Vec<cri::PodSandbox>, containers: Vec<cri::Container>) -> Vec<PodSummary> {
    let mut pods: BTreeMap<String, PodSummary> = BTreeMap::new();
    let mut pod_of_sandbox: BTreeMap<String, String> = BTreeMap::new();
    for mut sandbox in sandboxes {
        let Some(uid) = sandbox.labels.remove(labels::POD_UID) else { continue };
        let pod = pods.entry(uid.clone()).or_insert_with(|| PodSummary {
            namespace: sandbox.labels.remove(labels::POD_NAMESPACE).unwrap_or_default(),
            name: sandbox.labels.remove(labels::POD_NAME).unwrap_or_default(),
            uid: uid.clone(),
            sandboxes: BTreeMap::new(),
            containers: BTreeMap::new(),
            grace_seconds: None,
        });
        pod.sandboxes.insert(sandbox.id.clone(), is_ready(sandbox.state));
        pod_of_sandbox.insert(sandbox.id, uid);
    }
    for container in containers {
        let pod = pod_of_sandbox.get(&container.pod_sandbox_id).and_then(|uid| pods.get_mut(uid));
        let Some(pod) = pod else { continue };
        let grace = container.annotations.get(labels::GRACE_PERIOD).and_then(|text| text.parse().ok());
        pod.grace_seconds = pod.grace_seconds.max(grace);
        pod.containers.insert(container.id, state(container.state));
    }
    pods.into_values().collect()
}

pub(super) fn sandbox(status: cri::PodSandboxStatus) -> Result<Sandbox, RuntimeError> {
    let metadata = status.metadata.unwrap_or_default();
    let network = status.network.unwrap_or_default();
    let ips = std::iter::once(network.ip).chain(network.additional_ips.into_iter().map(|ip| ip.ip));
    Ok(Sandbox {
        id: id("PodSandboxStatus", status.id)?,
        attempt: metadata.attempt,
        ready: is_ready(status.state),
        created_at: time(status.created_at).unwrap_or(Timestamp::UNIX_EPOCH),
        ips: ips.filter(|ip| !ip.is_empty()).collect(),
        pod_start: status.annotations.get(labels::POD_START).and_then(|text| text.parse().ok()),
    })
}

pub(super) fn instance(status: cri::ContainerStatus, sandbox_id: String) -> Result<Instance, RuntimeError> {
    let metadata = status.metadata.unwrap_or_default();
    let name = status.labels.get(labels::CONTAINER_NAME).cloned().unwrap_or(metadata.name);
    let mut annotations = status.annotations;
    let words = annotations.remove(labels::TERMINATION_MESSAGE_PATH);
    let termination_log = status
        .mounts
        .into_iter()
        .find(|mount| words.as_ref() == Some(&mount.container_path))
        .map(|mount| mount.host_path.into());
    Ok(Instance {
        id: id("ContainerStatus", status.id)?,
        sandbox_id,
        name,
        attempt: metadata.attempt,
        state: state(status.state),
        created_at: time(status.created_at).unwrap_or(Timestamp::UNIX_EPOCH),
        started_at: time(status.started_at),
        finished_at: time(status.finished_at),
        exit_code: status.exit_code,
        reason: status.reason,
        message: status.message,
        image: status.image.map(|image| image.image).unwrap_or_default(),
        image_id: status.image_ref,
        spec_image: annotations.remove(labels::SPEC_IMAGE),
        sizes: annotations.remove(labels::SIZES).and_then(|text| text.parse().ok()),
        termination_log,
    })
}

pub(super) fn image(image: cri::Image) -> LocalImage {
    let user = match (image.uid, image.username) {
        (Some(uid), _) => ImageUser::Uid(uid.value),
        (None, name) if name.is_empty() => ImageUser::Unset,
        (None, name) => ImageUser::Name(name),
    };
    let names = image.repo_digests.into_iter().chain(image.repo_tags).collect();
    LocalImage { id: image.id, names, size_bytes: image.size, user, pinned: image.pinned }
}

pub(super) fn stats(stats: cri::ContainerStats) -> ContainerStats {
    let attributes = stats.attributes.unwrap_or_default();
    let mut labels = attributes.labels;
    let value = |value: Option<cri::UInt64Value>| value.map(|value| value.value);
    let cpu = stats.cpu.unwrap_or_default();
    let memory = stats.memory.unwrap_or_default();
    let layer = stats.writable_layer.unwrap_or_default();
    let name = labels.remove(labels::CONTAINER_NAME);
    ContainerStats {
        id: attributes.id,
        name: name.or_else(|| attributes.metadata.map(|metadata| metadata.name)).unwrap_or_default(),
        pod_uid: labels.remove(labels::POD_UID).unwrap_or_default(),
        at: time(cpu.timestamp),
        cpu_nano_seconds: value(cpu.usage_core_nano_seconds),
        memory_usage: value(memory.usage_bytes).or(value(memory.working_set_bytes)).unwrap_or_default(),
        memory_working_set: value(memory.working_set_bytes).unwrap_or_default(),
        memory_rss: value(memory.rss_bytes),
        page_faults: value(memory.page_faults),
        major_page_faults: value(memory.major_page_faults),
        layer_bytes: value(layer.used_bytes).unwrap_or_default(),
        layer_inodes: value(layer.inodes_used).unwrap_or_default(),
    }
}

/// The image of sandboxes out of containerd's configuration, which it tells as JSON.
pub(super) fn sandbox_image(config: &str) -> Option<String> {
    let config: serde_json::Value = serde_json::from_str(config).ok()?;
    config.get("sandboxImage")?.as_str().filter(|image| !image.is_empty()).map(str::to_owned)
}

/// The file systems of images; of several the first is the one that new images go to.
pub(super) fn image_disk(info: cri::ImageFsInfoResponse) -> Result<ImageDisk, RuntimeError> {
    let none = || RuntimeError::BadAnswer { call: "ImageFsInfo", message: "it names no file system".to_owned() };
    let usage = info.image_filesystems.into_iter().next().ok_or_else(none)?;
    Ok(ImageDisk {
        mountpoint: usage.fs_id.unwrap_or_default().mountpoint.into(),
        used_bytes: usage.used_bytes.map_or(0, |bytes| bytes.value),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_are_told_apart_by_uid_and_strangers_left_out() {
        let labelled = |uid: &str| {
            [(labels::POD_UID, uid), (labels::POD_NAMESPACE, "ns"), (labels::POD_NAME, "p")]
                .into_iter()
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .collect()
        };
        let sandboxes = vec![
            cri::PodSandbox { id: "s1".into(), labels: labelled("u1"), ..Default::default() },
            cri::PodSandbox { id: "s2".into(), labels: labelled("u2"), state: 1, ..Default::default() },
            cri::PodSandbox { id: "s3".into(), ..Default::default() },
        ];
        let containers = vec![
            cri::Container { id: "c1".into(), pod_sandbox_id: "s1".into(), state: 1, ..Default::default() },
            cri::Container { id: "c3".into(), pod_sandbox_id: "s3".into(), state: 1, ..Default::default() },
        ];
        let pods = summaries(sandboxes, containers);
        let uids: Vec<_> = pods.iter().map(|pod| (pod.uid.as_str(), pod.name.as_str())).collect();
        assert_eq!(uids, [("u1", "p"), ("u2", "p")]);
        assert_eq!(pods[0].containers["c1"], InstanceState::Running);
        assert!(pods[0].sandboxes["s1"] && !pods[1].sandboxes["s2"]);
    }

    #[test]
    fn images_are_mounted_by_the_versions_that_can() {
        for (name, version, can) in [
            ("containerd", "1.6.20~ds1", false),
            ("containerd", "v1.7.24", false),
            ("containerd", "2.0.5", false),
            ("containerd", "2.1.0-rc.1", true),
            ("containerd", "v2.1.9+unknown", true),
            ("cri-o", "1.30.4", false),
            ("cri-o", "1.31.0", true),
            ("other", "0.1", true),
            ("containerd", "main", true),
        ] {
            let version = RuntimeVersion { name: name.to_owned(), version: version.to_owned() };
            let features = features(&version, cri::StatusResponse::default());
            assert_eq!(features.image_volumes, can, "{version:?}");
            let parts = can && !["2.1.0-rc.1", "v2.1.9+unknown", "1.31.0"].contains(&version.version.as_str());
            assert_eq!(features.image_sub_paths, parts, "{version:?}");
        }
    }

    #[test]
    fn a_handler_that_is_not_named_can_nothing_more() {
        let handler = |name: &str, user_namespaces| cri::RuntimeHandler {
            name: name.to_owned(),
            features: Some(cri::RuntimeHandlerFeatures { user_namespaces, recursive_read_only_mounts: true }),
        };
        let version = RuntimeVersion { name: "containerd".to_owned(), version: "2.1.9".to_owned() };
        let status = cri::StatusResponse {
            runtime_handlers: vec![handler("", true), handler("kata", false)],
            features: Some(cri::RuntimeFeatures { supplemental_groups_policy: true }),
            ..Default::default()
        };
        let features = features(&version, status);
        assert!(features.strict_groups && !super::features(&version, cri::StatusResponse::default()).strict_groups);
        assert_eq!(features.runtime, "containerd 2.1.9");
        assert!(features.handler("").user_namespaces && !features.handler("kata").user_namespaces);
        assert!(features.handler("kata").recursive_read_only);
        assert_eq!(features.handler("other"), HandlerFeatures::default());
    }

    #[test]
    fn a_state_of_tomorrow_may_run() {
        assert!(state(17).may_run());
    }

    #[test]
    fn a_condition_that_is_not_reported_does_not_hold() {
        assert!(health(cri::RuntimeStatus::default()).runtime.is_some());
    }
}
