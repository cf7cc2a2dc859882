//! What a pod may ask for that not every runtime can do.

use k8s_openapi::api::core::v1::Pod;

/// The runtime's handler for a pod. The name of a RuntimeClass is its handler's by custom; the class itself is not on
/// the node.
pub(crate) fn handler(pod: &Pod) -> &str {
    pod.spec.as_ref().and_then(|spec| spec.runtime_class_name.as_deref()).unwrap_or_default()
}

/// Whether what the runtime can do makes a difference for a pod: otherwise it is not asked.
pub(super) fn matter(pod: &Pod) -> bool {
    let Some(spec) = &pod.spec else { return false };
    let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let mounts = containers.flat_map(|container| container.volume_mounts.iter().flatten());
    let ephemeral = spec.ephemeral_containers.iter().flatten();
    let mut mounts = mounts.chain(ephemeral.flat_map(|container| container.volume_mounts.iter().flatten()));
    spec.host_users == Some(false)
        || spec.volumes.iter().flatten().any(|volume| volume.image.is_some())
        || mounts.any(|mount| mount.recursive_read_only.as_deref().is_some_and(|mode| mode != "Disabled"))
}
