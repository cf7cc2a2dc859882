//! The objects that a pod names: a change of one is a reason to look at the pod.

use k8s_openapi::api::core::v1::{EnvFromSource, EnvVar, Pod, PodSpec, Volume};

/// Whether the pod names this ConfigMap of its namespace.
pub(crate) fn names_config_map(pod: &Pod, name: &str) -> bool {
    volumes(pod).any(|volume| {
        let projected = volume.projected.iter().flat_map(|projected| projected.sources.iter().flatten());
        volume.config_map.as_ref().is_some_and(|source| source.name == name)
            || projected.into_iter().any(|source| source.config_map.as_ref().is_some_and(|map| map.name == name))
    }) || env_from(pod).any(|from| from.config_map_ref.as_ref().is_some_and(|reference| reference.name == name))
        || env(pod)
            .filter_map(|var| var.value_from.as_ref())
            .any(|from| from.config_map_key_ref.as_ref().is_some_and(|reference| reference.name == name))
}

/// Whether the pod names this Secret of its namespace.
pub(crate) fn names_secret(pod: &Pod, name: &str) -> bool {
    let pull_secrets = pod.spec.iter().flat_map(|spec| spec.image_pull_secrets.iter().flatten());
    pull_secrets.into_iter().any(|reference| reference.name == name)
        || volumes(pod).any(|volume| {
            let projected = volume.projected.iter().flat_map(|projected| projected.sources.iter().flatten());
            volume.secret.as_ref().is_some_and(|source| source.secret_name.as_deref() == Some(name))
                || projected.into_iter().any(|source| source.secret.as_ref().is_some_and(|secret| secret.name == name))
        })
        || env_from(pod).any(|from| from.secret_ref.as_ref().is_some_and(|reference| reference.name == name))
        || env(pod)
            .filter_map(|var| var.value_from.as_ref())
            .any(|from| from.secret_key_ref.as_ref().is_some_and(|reference| reference.name == name))
}

/// Whether the pod has a service account token that is renewed while it runs.
pub(crate) fn has_token(pod: &Pod) -> bool {
    volumes(pod)
        .flat_map(|volume| volume.projected.iter().flat_map(|projected| projected.sources.iter().flatten()))
        .any(|source| source.service_account_token.is_some())
}

/// Whether the pod has this claim of its namespace.
pub(crate) fn names_claim(pod: &Pod, name: &str) -> bool {
    volumes(pod).any(|volume| volume.persistent_volume_claim.as_ref().is_some_and(|claim| claim.claim_name == name))
}

/// Whether the pod has any claim.
pub(crate) fn has_claim(pod: &Pod) -> bool {
    volumes(pod).any(|volume| volume.persistent_volume_claim.is_some())
}

/// Whether the pod is of this RuntimeClass.
pub(crate) fn names_runtime_class(pod: &Pod, name: &str) -> bool {
    pod.spec.as_ref().and_then(|spec| spec.runtime_class_name.as_deref()).is_some_and(|class| class == name)
}

fn volumes(pod: &Pod) -> impl Iterator<Item = &Volume> {
    pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten())
}

/// Of every container, those that somebody adds to debug the pod among them.
fn env(pod: &Pod) -> impl Iterator<Item = &EnvVar> {
    fn of(spec: &PodSpec) -> impl Iterator<Item = &Option<Vec<EnvVar>>> {
        let own = spec.init_containers.iter().flatten().chain(&spec.containers).map(|container| &container.env);
        own.chain(spec.ephemeral_containers.iter().flatten().map(|container| &container.env))
    }
    pod.spec.iter().flat_map(of).flatten().flatten()
}

fn env_from(pod: &Pod) -> impl Iterator<Item = &EnvFromSource> {
    fn of(spec: &PodSpec) -> impl Iterator<Item = &Option<Vec<EnvFromSource>>> {
        let own = spec.init_containers.iter().flatten().chain(&spec.containers).map(|container| &container.env_from);
        own.chain(spec.ephemeral_containers.iter().flatten().map(|container| &container.env_from))
    }
    pod.spec.iter().flat_map(of).flatten().flatten()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_way_to_name_an_object_is_seen() {
        let pod: Pod = serde_json::from_value(json!({
            "spec": {
                "imagePullSecrets": [{"name": "s-pull"}],
                "runtimeClassName": "slim",
                "initContainers": [{"name": "i", "envFrom": [{"configMapRef": {"name": "c-from"}}]}],
                "containers": [{"name": "a",
                    "envFrom": [{"secretRef": {"name": "s-from"}}],
                    "env": [
                        {"name": "A", "valueFrom": {"configMapKeyRef": {"name": "c-key", "key": "k"}}},
                        {"name": "B", "valueFrom": {"secretKeyRef": {"name": "s-key", "key": "k"}}}]}],
                "ephemeralContainers": [{"name": "d",
                    "envFrom": [{"configMapRef": {"name": "c-debug"}}],
                    "env": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "s-debug", "key": "k"}}}]}],
                "volumes": [
                    {"name": "v1", "configMap": {"name": "c-volume"}}, {"name": "v2", "secret": {"secretName": "s-volume"}},
                    {"name": "v3", "projected": {"sources": [
                        {"configMap": {"name": "c-projected"}}, {"secret": {"name": "s-projected"}},
                        {"serviceAccountToken": {"path": "token"}}]}},
                    {"name": "v4", "persistentVolumeClaim": {"claimName": "data"}}],
            },
        }))
        .unwrap();
        for name in ["c-from", "c-key", "c-debug", "c-volume", "c-projected"] {
            assert!(names_config_map(&pod, name) && !names_secret(&pod, name), "{name}");
        }
        for name in ["s-pull", "s-from", "s-key", "s-debug", "s-volume", "s-projected"] {
            assert!(names_secret(&pod, name) && !names_config_map(&pod, name), "{name}");
        }
        assert!(names_claim(&pod, "data") && !names_claim(&pod, "c-volume"));
        assert!(names_runtime_class(&pod, "slim") && !names_runtime_class(&pod, "s-pull"));
        assert!(!names_runtime_class(&Pod::default(), ""));
        assert!(has_claim(&pod) && !has_claim(&Pod::default()));
        assert!(has_token(&pod) && !has_token(&Pod::default()));
    }
}
