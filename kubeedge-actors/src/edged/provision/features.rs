//! What a pod may ask for that not every runtime can do.

use k8s_openapi::api::core::v1::Pod;

use crate::edged::{objects::ObjectSource, runtime::RuntimeFeatures};

/// The runtime's handler for a pod: that of its RuntimeClass, or the default one, whose name is empty. The class has to be
/// there, and an error says that it is not in a kubelet's words.
pub(super) async fn handler(objects: &dyn ObjectSource, pod: &Pod) -> Result<String, String> {
    let class = pod.spec.as_ref().and_then(|spec| spec.runtime_class_name.as_deref()).unwrap_or_default();
    if class.is_empty() {
        return Ok(String::new());
    }
    match objects.runtime_class(class).await {
        Ok(Some(class)) => Ok(class.handler.clone()),
        Ok(None) => Err(format!("runtimeclass.node.k8s.io \"{class}\" not found")),
        Err(error) => Err(error.to_string()),
    }
}

/// What a pod says of the groups that the image's files give its users.
fn policy(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.security_context.as_ref()?.supplemental_groups_policy.as_deref()
}

/// What would be less than the pod asks for is refused, not left out: it is about its rights on this machine.
pub(super) fn groups_can_be_kept(pod: &Pod, features: &RuntimeFeatures) -> Result<(), String> {
    match policy(pod) {
        None | Some("" | "Merge") => Ok(()),
        Some("Strict") if features.strict_groups => Ok(()),
        Some("Strict") => {
            Err(format!("SupplementalGroupsPolicy=Strict is not supported by the runtime ({})", features.runtime))
        }
        Some(other) => {
            let other: String = other.chars().take(100).collect();
            Err(format!("securityContext.supplementalGroupsPolicy {other:?}: expected Merge, Strict, or none"))
        }
    }
}

/// Whether what the runtime can do makes a difference for a pod: otherwise it is not asked.
pub(super) fn matter(pod: &Pod) -> bool {
    let Some(spec) = &pod.spec else { return false };
    let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let mounts = containers.flat_map(|container| container.volume_mounts.iter().flatten());
    let ephemeral = spec.ephemeral_containers.iter().flatten();
    let mut mounts = mounts.chain(ephemeral.flat_map(|container| container.volume_mounts.iter().flatten()));
    spec.host_users == Some(false)
        || policy(pod) == Some("Strict")
        || spec.volumes.iter().flatten().any(|volume| volume.image.is_some())
        || mounts.any(|mount| mount.recursive_read_only.as_deref().is_some_and(|mode| mode != "Disabled"))
}
