//! A pod out of a manifest file, with what a kubelet adds. Pure.

use k8s_openapi::api::core::v1::{Pod, PodSpec, Toleration};
use kubeedge_proto::digest::projection_hash;
use serde_json::Value;
use thiserror::Error;

use super::{HASH, SOURCE};

/// A manifest that makes no pod.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum BadManifest {
    /// It is not YAML, or not a pod in it.
    #[error("it is no Pod in YAML or JSON: {0}")]
    Unreadable(String),
    /// Another kind.
    #[error("it is a {0}, expected a Pod of v1")]
    OtherKind(String),
    /// It has no name.
    #[error("metadata.name is not set")]
    NoName,
    /// It needs what only the API has.
    #[error("{0}: a static pod may not refer to objects of the API")]
    Refers(&'static str),
}

/// The pod of a manifest, for this node.
pub fn pod(text: &str, node: &str) -> Result<Pod, BadManifest> {
    // File modes are written as 0640.
    let options = serde_saphyr::options! { legacy_octal_numbers: true };
    let value: Value = serde_saphyr::from_str_with_options(text, options)
        .map_err(|error| BadManifest::Unreadable(error.to_string().lines().next().unwrap_or_default().to_owned()))?;
    let kind = value["kind"].as_str().unwrap_or("thing without a kind");
    if kind != "Pod" || value["apiVersion"].as_str().is_some_and(|version| version != "v1") {
        return Err(BadManifest::OtherKind(kind.chars().take(60).collect()));
    }
    // The uid follows from what the file says and from the node: another content is another pod.
    let hash = projection_hash(&serde_json::json!([node, value]));
    // By way of bytes, as pods come from the cloud: reading a Pod is code, and one copy of it is enough.
    let unreadable = |error: serde_json::Error| BadManifest::Unreadable(error.to_string());
    let json = serde_json::to_vec(&value).map_err(unreadable)?;
    let mut pod: Pod = serde_json::from_slice(&json).map_err(unreadable)?;
    let spec = pod.spec.get_or_insert_default();
    if let Some(field) = refers(spec) {
        return Err(BadManifest::Refers(field));
    }
    spec.node_name = Some(node.to_owned());
    // It stays whatever the node is tainted with.
    let everything = Toleration {
        operator: Some("Exists".to_owned()),
        effect: Some("NoExecute".to_owned()),
        ..Toleration::default()
    };
    spec.tolerations.get_or_insert_default().push(everything);
    let meta = &mut pod.metadata;
    let name = meta.name.as_deref().filter(|name| !name.is_empty()).ok_or(BadManifest::NoName)?;
    meta.name = Some(format!("{name}-{node}"));
    if meta.namespace.as_deref().is_none_or(str::is_empty) {
        meta.namespace = Some("default".to_owned());
    }
    let uid = format!("{hash:016x}");
    let annotations = meta.annotations.get_or_insert_default();
    annotations.insert(HASH.to_owned(), uid.clone());
    annotations.insert(SOURCE.to_owned(), "file".to_owned());
    meta.uid = Some(uid);
    (meta.resource_version, meta.deletion_timestamp, meta.owner_references) = (None, None, None);
    pod.status = None;
    Ok(pod)
}

/// The first field that names an object of the API.
fn refers(spec: &PodSpec) -> Option<&'static str> {
    if spec.service_account_name.as_deref().is_some_and(|name| !name.is_empty()) {
        return Some("spec.serviceAccountName");
    }
    for volume in spec.volumes.iter().flatten() {
        let found = [
            (volume.config_map.is_some(), "a volume's configMap"),
            (volume.secret.is_some(), "a volume's secret"),
            (volume.persistent_volume_claim.is_some(), "a volume's persistentVolumeClaim"),
        ];
        if let Some((_, field)) = found.into_iter().find(|(is, _)| *is) {
            return Some(field);
        }
        let sources = volume.projected.iter().flat_map(|projected| projected.sources.iter().flatten());
        for source in sources {
            if source.config_map.is_some() || source.secret.is_some() || source.service_account_token.is_some() {
                return Some("a projected volume's source");
            }
        }
    }
    for container in spec.containers.iter().chain(spec.init_containers.iter().flatten()) {
        let whole = |from: &k8s_openapi::api::core::v1::EnvFromSource| {
            from.config_map_ref.is_some() || from.secret_ref.is_some()
        };
        if container.env_from.iter().flatten().any(whole) {
            return Some("a container's envFrom");
        }
        let sources = container.env.iter().flatten().filter_map(|variable| variable.value_from.as_ref());
        for source in sources {
            if source.config_map_key_ref.is_some() || source.secret_key_ref.is_some() {
                return Some("a variable's valueFrom");
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const WEB: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: web, uid: forged}\nspec:\n  containers:\n  \
                       - {name: c, image: i}\n";

    #[test]
    fn a_pod_is_what_a_kubelet_makes_of_it() {
        let pod = pod(WEB, "edge-1").unwrap();
        let meta = pod.metadata.clone();
        assert_eq!((meta.namespace.as_deref(), meta.name.as_deref()), (Some("default"), Some("web-edge-1")));
        let annotations = meta.annotations.unwrap();
        assert_eq!(annotations[SOURCE], "file");
        let uid = meta.uid.unwrap();
        assert!(annotations[HASH] == uid && uid.len() == 16, "{uid}");
        let spec = pod.spec.unwrap();
        assert_eq!(spec.node_name.as_deref(), Some("edge-1"));
        assert_eq!(spec.tolerations.unwrap()[0].effect.as_deref(), Some("NoExecute"));
        let uid_of = |text: &str, node: &str| super::pod(text, node).unwrap().metadata.uid.unwrap();
        assert_eq!(uid_of(WEB, "edge-1"), uid);
        assert_eq!(uid_of(&WEB.replace("\n", "\n\n"), "edge-1"), uid, "what it says counts");
        assert_ne!(uid_of(WEB, "edge-2"), uid);
        assert_ne!(uid_of(&WEB.replace("image: i", "image: j"), "edge-1"), uid);
    }

    #[test]
    fn what_makes_no_pod_says_why() {
        let why = |text: &str| pod(text, "n").unwrap_err().to_string();
        assert!(why("kind: [").starts_with("it is no Pod in YAML or JSON: "), "{}", why("kind: ["));
        assert_eq!(why("kind: Deployment"), "it is a Deployment, expected a Pod of v1");
        assert_eq!(why("[]"), "it is a thing without a kind, expected a Pod of v1");
        assert_eq!(why("kind: Pod\nspec: {containers: []}"), "metadata.name is not set");
        let with = |field: &str| format!("kind: Pod\nmetadata: {{name: a}}\nspec: {{containers: [], {field}}}");
        let may_not = ": a static pod may not refer to objects of the API";
        for (field, named) in [
            ("serviceAccountName: x", "spec.serviceAccountName"),
            ("volumes: [{name: v, secret: {}}]", "a volume's secret"),
            ("volumes: [{name: v, projected: {sources: [{configMap: {name: m}}]}}]", "a projected volume's source"),
            ("initContainers: [{name: c, envFrom: [{secretRef: {name: s}}]}]", "a container's envFrom"),
            (
                "initContainers: [{name: c, env: [{name: E, valueFrom: {configMapKeyRef: {name: m, key: k}}}]}]",
                "a variable's valueFrom",
            ),
        ] {
            assert_eq!(why(&with(field)), format!("{named}{may_not}"));
        }
    }

    proptest! {
        #[test]
        fn any_text_is_a_pod_or_refused(text in "\\PC{0,80}|kind: Pod\\n\\PC{0,60}") {
            let _ = pod(&text, "n");
        }
    }
}
