//! `persistentVolumeClaim`: a volume that outlives its pods, found by the claim that is bound to it.
//!
//! Of persistent volumes `local`, `hostPath` and `nfs` are served. A local one is a directory of the operator's: it is
//! never made, and never emptied.

use std::{
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown},
    path::Path,
};

use k8s_openapi::api::core::v1::{
    HostPathVolumeSource, NodeSelectorTerm, PersistentVolume, PersistentVolumeClaim, PersistentVolumeSpec,
};

use super::{
    error::{AtPath as _, PathError, SetUpError},
    host_path::HostPath,
    nfs::Nfs,
    plan::Source,
};

/// A claim of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Claim {
    /// Its name, in the pod's namespace.
    pub(crate) name: String,
    /// Whether the pod may only read it.
    pub(crate) read_only: bool,
}

fn not_bound(name: &str, why: impl Into<String>) -> SetUpError {
    SetUpError::Claim { name: name.to_owned(), why: why.into() }
}

/// The volume that a claim is bound to.
pub(crate) fn bound_volume(claim: &PersistentVolumeClaim) -> Result<&str, SetUpError> {
    let name = claim.metadata.name.as_deref().unwrap_or_default();
    if claim.metadata.deletion_timestamp.is_some() {
        return Err(not_bound(name, "it is being deleted"));
    }
    let spec = claim.spec.as_ref();
    if spec.and_then(|spec| spec.volume_mode.as_deref()) == Some("Block") {
        return Err(SetUpError::Unsupported("persistentVolumeClaim with volumeMode Block"));
    }
    spec.and_then(|spec| spec.volume_name.as_deref())
        .filter(|volume| !volume.is_empty())
        .ok_or_else(|| not_bound(name, "it is not bound to a volume yet"))
}

/// What a bound volume is on this node, and whether it may only be read.
pub(crate) fn source(
    claim: &PersistentVolumeClaim,
    volume: &PersistentVolume,
    node_name: &str,
) -> Result<(Source, bool), SetUpError> {
    let name = claim.metadata.name.as_deref().unwrap_or_default();
    let volume_name = volume.metadata.name.as_deref().unwrap_or_default();
    let spec = volume.spec.clone().unwrap_or_default();
    // Only the claim that the volume names has it; another one of that name came later.
    let owner = spec.claim_ref.clone().unwrap_or_default();
    let same = owner.namespace == claim.metadata.namespace && owner.name == claim.metadata.name;
    if !same || owner.uid.is_some_and(|uid| Some(uid) != claim.metadata.uid) {
        return Err(not_bound(name, format!("volume \"{volume_name}\" is bound to another claim, or to none")));
    }
    if !is_here(&spec, node_name) {
        return Err(not_bound(name, format!("volume \"{volume_name}\" is not on node {node_name}")));
    }
    let options = spec.mount_options.clone().unwrap_or_default();
    if let Some(local) = &spec.local {
        let as_host_path = HostPathVolumeSource { path: local.path.clone(), type_: None };
        return Ok((Source::Local(HostPath::plan(&as_host_path)?.path), false));
    }
    if let Some(source) = &spec.host_path {
        return Ok((Source::HostPath(HostPath::plan(source)?), false));
    }
    if let Some(source) = &spec.nfs {
        let read_only = source.read_only == Some(true);
        return Ok((Source::Nfs(Nfs::plan(&source.server, &source.path, read_only, &options)?), read_only));
    }
    Err(SetUpError::Unsupported(foreign_type(&spec)))
}

/// Whether the volume is to be had on this node, as far as the node's name tells. The scheduler has looked at the rest.
fn is_here(spec: &PersistentVolumeSpec, node_name: &str) -> bool {
    let affinity = spec.node_affinity.as_ref().and_then(|affinity| affinity.required.as_ref());
    affinity.is_none_or(|required| required.node_selector_terms.iter().any(|term| may_be(term, node_name)))
}

fn may_be(term: &NodeSelectorTerm, node_name: &str) -> bool {
    let by_label = term.match_expressions.iter().flatten().filter(|one| one.key == "kubernetes.io/hostname");
    let by_name = term.match_fields.iter().flatten().filter(|one| one.key == "metadata.name");
    by_label.chain(by_name).all(|one| {
        let named = one.values.iter().flatten().any(|value| value == node_name);
        match one.operator.as_str() {
            "In" => named,
            "NotIn" => !named,
            "DoesNotExist" => false,
            _ => true,
        }
    })
}

fn foreign_type(spec: &PersistentVolumeSpec) -> &'static str {
    let types = [
        ("persistentVolumeClaim of a csi volume", spec.csi.is_some()),
        ("persistentVolumeClaim of an iscsi volume", spec.iscsi.is_some()),
        ("persistentVolumeClaim of an fc volume", spec.fc.is_some()),
        ("persistentVolumeClaim of a flexVolume", spec.flex_volume.is_some()),
    ];
    types.into_iter().find(|(_, set)| *set).map_or("persistentVolumeClaim of another kind of volume", |(name, _)| name)
}

/// Looks whether a local volume is there, and gives its directory to the pod's group. What is in it already stays as it is.
pub(crate) fn set_up_local(path: &Path, group: Option<u32>) -> Result<(), SetUpError> {
    let found = match fs::metadata(path) {
        Ok(found) => found,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(SetUpError::Local { path: path.to_owned(), reason: "does not exist" });
        }
        Err(error) => return Err(error).at("look at", path).map_err(SetUpError::Io),
    };
    if !found.is_dir() {
        return Err(SetUpError::Local { path: path.to_owned(), reason: "is not a directory" });
    }
    group.map_or(Ok(()), |group| give_to_group(path, &found, group)).map_err(SetUpError::Io)
}

fn give_to_group(path: &Path, found: &fs::Metadata, group: u32) -> Result<(), PathError> {
    // What is made in it belongs to the group as well.
    let mode = (found.mode() & 0o7777) | 0o2770;
    if found.gid() != group {
        chown(path, None, Some(group)).at("change the group of", path)?;
    }
    if mode != found.mode() & 0o7777 || found.gid() != group {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).at("set the mode of", path)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn claim(change: impl FnOnce(&mut Value)) -> PersistentVolumeClaim {
        let mut value =
            json!({"metadata": {"namespace": "ns", "name": "data", "uid": "c1"}, "spec": {"volumeName": "pv"}});
        change(&mut value);
        serde_json::from_value(value).unwrap()
    }

    fn volume(source: Value) -> PersistentVolume {
        let mut value = json!({"metadata": {"name": "pv"}, "spec": {
            "claimRef": {"namespace": "ns", "name": "data", "uid": "c1"},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [
                {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": ["edge-1"]},
                    {"key": "disk", "operator": "In", "values": ["ssd"]}]}]}}}});
        for (key, part) in source.as_object().unwrap() {
            value["spec"][key] = part.clone();
        }
        serde_json::from_value(value).unwrap()
    }

    fn said(claim: &PersistentVolumeClaim, volume: &PersistentVolume, node: &str) -> String {
        source(claim, volume, node).unwrap_err().to_string()
    }

    #[test]
    fn a_bound_claim_is_what_its_volume_is() {
        let bound = claim(|_| ());
        assert_eq!(bound_volume(&bound).unwrap(), "pv");
        let local = volume(json!({"local": {"path": "/mnt/disk"}}));
        let (found, read_only) = source(&bound, &local, "edge-1").unwrap();
        assert!(matches!(found, Source::Local(path) if path == Path::new("/mnt/disk")) && !read_only);
        let nfs = volume(json!({"nfs": {"server": "s", "path": "/a", "readOnly": true}, "mountOptions": ["hard"]}));
        let (found, read_only) = source(&bound, &nfs, "edge-1").unwrap();
        assert!(matches!(found, Source::Nfs(_)) && read_only);
        let host = volume(json!({"hostPath": {"path": "/srv", "type": "Directory"}}));
        assert!(matches!(source(&bound, &host, "edge-1").unwrap().0, Source::HostPath(_)));
    }

    #[test]
    fn what_is_not_this_claims_or_not_here_is_not_served() {
        for pending in [claim(|it| it["spec"] = json!({})), claim(|it| it["spec"]["volumeName"] = "".into())] {
            let error = bound_volume(&pending).unwrap_err();
            assert_eq!(error.to_string(), "persistentvolumeclaim \"data\": it is not bound to a volume yet");
            assert!(!error.is_final());
        }
        assert!(bound_volume(&claim(|it| it["spec"]["volumeMode"] = "Block".into())).unwrap_err().is_final());
        let deleted = claim(|it| it["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into());
        assert!(bound_volume(&deleted).unwrap_err().to_string().contains("being deleted"));

        let local = volume(json!({"local": {"path": "/mnt/disk"}}));
        assert!(said(&claim(|it| it["metadata"]["uid"] = "c2".into()), &local, "edge-1").contains("another claim"));
        assert!(
            said(&claim(|it| it["metadata"]["namespace"] = "x".into()), &local, "edge-1").contains("another claim")
        );
        assert!(said(&claim(|_| ()), &local, "edge-2").contains("is not on node edge-2"));
        let free = volume(json!({"local": {"path": "/mnt/disk"}, "claimRef": null}));
        assert!(said(&claim(|_| ()), &free, "edge-1").contains("or to none"));
        let csi = volume(json!({"csi": {"driver": "d", "volumeHandle": "h"}}));
        assert!(said(&claim(|_| ()), &csi, "edge-1").contains("a csi volume is not supported"));
        for path in ["relative", "/a/../b", ""] {
            let wrong = volume(json!({"local": {"path": path}}));
            assert!(source(&claim(|_| ()), &wrong, "edge-1").unwrap_err().is_final(), "{path:?}");
        }
    }

    #[test]
    fn a_local_volume_is_there_already_and_its_directory_becomes_the_groups() {
        let dir = tempfile::tempdir().unwrap();
        let missing = set_up_local(&dir.path().join("none"), None).unwrap_err();
        assert!(missing.to_string().ends_with("none does not exist") && !missing.is_final(), "{missing}");
        fs::write(dir.path().join("file"), "").unwrap();
        assert!(set_up_local(&dir.path().join("file"), None).is_err());
        let disk = dir.path().join("disk");
        fs::create_dir(&disk).unwrap();
        fs::set_permissions(&disk, fs::Permissions::from_mode(0o700)).unwrap();
        fs::write(disk.join("kept"), "x").unwrap();
        let own = fs::metadata(&disk).unwrap().gid();
        set_up_local(&disk, Some(own)).unwrap();
        assert_eq!(fs::metadata(&disk).unwrap().mode() & 0o7777, 0o2770);
        assert_eq!(fs::read_to_string(disk.join("kept")).unwrap(), "x");
    }
}
