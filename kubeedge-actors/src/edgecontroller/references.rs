//! Which ConfigMaps, Secrets, claims and RuntimeClass a pod names, and which volume a claim.

use std::collections::BTreeSet;

use kubeedge_proto::{resource, v1::ResourceType};
use serde_json::Value;

/// The kinds that are followed for the pods that name them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ConfigKind {
    /// `v1/configmaps`
    ConfigMap,
    /// `v1/secrets`
    Secret,
    /// `v1/persistentvolumeclaims`
    Claim,
    /// `v1/persistentvolumes`: named by claims, not by pods.
    Volume,
    /// `node.k8s.io/v1/runtimeclasses`
    RuntimeClass,
}

impl ConfigKind {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::ConfigMap, Self::Secret, Self::Claim, Self::Volume, Self::RuntimeClass];

    /// Its resource.
    pub fn type_(self) -> ResourceType {
        match self {
            Self::ConfigMap => resource::config_maps(),
            Self::Secret => resource::secrets(),
            Self::Claim => resource::persistent_volume_claims(),
            Self::Volume => resource::persistent_volumes(),
            Self::RuntimeClass => resource::runtime_classes(),
        }
    }
}

/// One object of these kinds.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConfigKey {
    /// Which of them.
    pub kind: ConfigKind,
    /// Namespace: the pod's own; empty for a volume and for a class.
    pub namespace: String,
    /// Name.
    pub name: String,
}

/// The volume that a claim is bound to.
pub fn volume_of(claim: &Value) -> Option<ConfigKey> {
    let name = claim.pointer("/spec/volumeName").and_then(Value::as_str).filter(|name| !name.is_empty())?;
    Some(ConfigKey { kind: ConfigKind::Volume, namespace: String::new(), name: name.to_owned() })
}

/// Everything that `pod` names: volumes, projected sources, `env`, `envFrom` (of init, ordinary and
/// ephemeral containers alike), `imagePullSecrets` and `runtimeClassName`.
pub fn references(pod: &Value) -> BTreeSet<ConfigKey> {
    let of_pod = pod.pointer("/metadata/namespace").and_then(Value::as_str).unwrap_or_default();
    let mut found = BTreeSet::new();
    let mut add = |kind, name: Option<&Value>| {
        if let Some(name) = name.and_then(Value::as_str).filter(|name| !name.is_empty()) {
            let namespace = if kind == ConfigKind::RuntimeClass { "" } else { of_pod };
            found.insert(ConfigKey { kind, namespace: namespace.to_owned(), name: name.to_owned() });
        }
    };
    let Some(spec) = pod.get("spec") else { return found };

    for volume in items(spec, "volumes") {
        add(ConfigKind::ConfigMap, volume.pointer("/configMap/name"));
        add(ConfigKind::Secret, volume.pointer("/secret/secretName"));
        add(ConfigKind::Claim, volume.pointer("/persistentVolumeClaim/claimName"));
        if let Some(projected) = volume.get("projected") {
            for source in items(projected, "sources") {
                add(ConfigKind::ConfigMap, source.pointer("/configMap/name"));
                add(ConfigKind::Secret, source.pointer("/secret/name"));
            }
        }
    }
    for list in ["initContainers", "containers", "ephemeralContainers"] {
        for container in items(spec, list) {
            for env in items(container, "env") {
                add(ConfigKind::ConfigMap, env.pointer("/valueFrom/configMapKeyRef/name"));
                add(ConfigKind::Secret, env.pointer("/valueFrom/secretKeyRef/name"));
            }
            for env in items(container, "envFrom") {
                add(ConfigKind::ConfigMap, env.pointer("/configMapRef/name"));
                add(ConfigKind::Secret, env.pointer("/secretRef/name"));
            }
        }
    }
    for secret in items(spec, "imagePullSecrets") {
        add(ConfigKind::Secret, secret.get("name"));
    }
    add(ConfigKind::RuntimeClass, spec.get("runtimeClassName"));
    found
}

fn items<'a>(value: &'a Value, field: &str) -> impl Iterator<Item = &'a Value> {
    value.get(field).and_then(Value::as_array).into_iter().flatten()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_place_that_can_name_a_config_is_read() {
        let pod = json!({"metadata": {"namespace": "shop"}, "spec": {
            "volumes": [
                {"name": "a", "configMap": {"name": "cm-volume"}},
                {"name": "b", "secret": {"secretName": "secret-volume"}},
                {"name": "c", "projected": {"sources": [
                    {"configMap": {"name": "cm-projected"}}, {"secret": {"name": "secret-projected"}},
                    {"serviceAccountToken": {"path": "token"}}]}},
                {"name": "d", "emptyDir": {}}, {"name": "e", "persistentVolumeClaim": {"claimName": "claim"}}],
            "initContainers": [{"env": [{"name": "X", "valueFrom": {"configMapKeyRef": {"name": "cm-init"}}}]}],
            "containers": [{
                "env": [{"name": "X", "value": "1"}, {"valueFrom": {"secretKeyRef": {"name": "secret-env"}}}],
                "envFrom": [{"configMapRef": {"name": "cm-from"}}, {"secretRef": {"name": "secret-from"}}]}],
            "imagePullSecrets": [{"name": "pull"}], "runtimeClassName": "slim"}});
        let names: Vec<String> = references(&pod).into_iter().map(|key| key.name).collect();
        assert_eq!(
            names,
            [
                "cm-from",
                "cm-init",
                "cm-projected",
                "cm-volume",
                "pull",
                "secret-env",
                "secret-from",
                "secret-projected",
                "secret-volume",
                "claim",
                "slim"
            ]
        );
        let namespace = |key: &ConfigKey| if key.kind == ConfigKind::RuntimeClass { "" } else { "shop" };
        assert!(references(&pod).iter().all(|key| key.namespace == namespace(key)));
    }

    #[test]
    fn a_claim_names_its_volume_once_it_is_bound() {
        let bound = volume_of(&json!({"spec": {"volumeName": "pv"}})).unwrap();
        assert_eq!((bound.kind, bound.namespace.as_str(), bound.name.as_str()), (ConfigKind::Volume, "", "pv"));
        for pending in [json!({"spec": {}}), json!({"spec": {"volumeName": ""}}), json!({"spec": {"volumeName": 1}})] {
            assert_eq!(volume_of(&pending), None);
        }
    }

    #[test]
    fn a_pod_of_the_wrong_shape_names_nothing() {
        for bad in [
            json!(null),
            json!({"spec": []}),
            json!({"spec": {"volumes": {"a": 1}, "containers": [1, "x"], "runtimeClassName": {"a": 1}}}),
        ] {
            assert!(references(&bad).is_empty());
        }
    }
}
