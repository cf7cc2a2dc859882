//! PersistentVolume and PersistentVolumeClaim.
//!
//! `controllers::volumes` binds them to each other. Volumes are made by a person: there are no storage classes and no
//! provisioners, and nothing is done to a volume whose claim is gone.

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use serde_json::{Value, json};

use super::decode;
use super::fields::{Errors, IMMUTABLE, Path, list, nothing, object_mut, set_missing, text};
use super::names;
use super::quantity::Quantity;
use crate::apiserver::kind::Kind;
use crate::apiserver::status::FieldError;
use crate::kubeapi::kinds::{self as rows, size};

const MODES: [&str; 4] = ["ReadWriteOnce", "ReadOnlyMany", "ReadWriteMany", "ReadWriteOncePod"];
const VOLUME_MODES: [&str; 2] = ["Block", "Filesystem"];
/// The kinds of source that a volume may have.
const SOURCES: [&str; 22] = [
    "awsElasticBlockStore",
    "azureDisk",
    "azureFile",
    "cephfs",
    "cinder",
    "csi",
    "fc",
    "flexVolume",
    "flocker",
    "gcePersistentDisk",
    "glusterfs",
    "hostPath",
    "iscsi",
    "local",
    "nfs",
    "photonPersistentDisk",
    "portworxVolume",
    "quobyte",
    "rbd",
    "scaleIO",
    "storageos",
    "vsphereVolume",
];

pub(super) const VOLUME: Kind = Kind {
    resource: rows::PERSISTENT_VOLUME,
    scale_subresource: false,
    has_generation: false,
    decode: decode::typed::<PersistentVolume>,
    default: default_volume,
    validate_create: validate_volume,
    validate_update: validate_volume_update,
    validate_status: nothing,
};

pub(super) const CLAIM: Kind = Kind {
    resource: rows::PERSISTENT_VOLUME_CLAIM,
    scale_subresource: false,
    has_generation: false,
    decode: decode::typed::<PersistentVolumeClaim>,
    default: default_claim,
    validate_create: validate_claim,
    validate_update: validate_claim_update,
    validate_status: nothing,
};

fn default_volume(object: &mut Value) {
    set_missing(object, "spec", json!({}));
    set_missing(object, "status", json!({}));
    if let Some(spec) = object.get_mut("spec") {
        set_missing(spec, "persistentVolumeReclaimPolicy", "Retain");
        set_missing(spec, "volumeMode", "Filesystem");
        if let Some(path) = spec.get_mut("hostPath") {
            set_missing(path, "type", "");
        }
    }
    if let Some(status) = object.get_mut("status") {
        set_missing(status, "phase", "Pending");
    }
}

fn default_claim(object: &mut Value) {
    set_missing(object, "spec", json!({}));
    set_missing(object, "status", json!({}));
    if let Some(spec) = object.get_mut("spec") {
        set_missing(spec, "volumeMode", "Filesystem");
    }
    if let Some(status) = object.get_mut("status") {
        set_missing(status, "phase", "Pending");
    }
}

/// What a volume and a claim have in common.
fn check_common(object: &Value, errors: &mut Errors) -> Path {
    let spec = Path::new("spec");
    let modes = list(object, "/spec/accessModes");
    let path = spec.field("accessModes");
    if modes.is_empty() {
        errors.required(&path, "at least 1 access mode is required");
    }
    for mode in modes {
        errors.one_of(&path, mode.as_str().unwrap_or_default(), &MODES);
    }
    errors.one_of(&spec.field("volumeMode"), text(object, "/spec/volumeMode"), &VOLUME_MODES);
    let class = text(object, "/spec/storageClassName");
    if !class.is_empty() {
        errors.format(&spec.field("storageClassName"), class, names::dns_subdomain(class));
    }
    spec
}

fn check_size(amount: Option<&str>, path: &Path, errors: &mut Errors) {
    match amount.map(|text| (text, Quantity::parse(text))) {
        None => errors.required(path, ""),
        Some((text, Some(size))) if !size.is_positive() => errors.invalid(path, text, "must be greater than zero"),
        Some(_) => {}
    }
}

fn validate_volume(object: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let spec = check_common(object, &mut errors);
    check_size(size(object, "/spec/capacity"), &spec.field("capacity").key("storage"), &mut errors);
    let policy = text(object, "/spec/persistentVolumeReclaimPolicy");
    errors.one_of(&spec.field("persistentVolumeReclaimPolicy"), policy, &["Delete", "Recycle", "Retain"]);
    let has = |field: &&str| object.pointer(&format!("/spec/{field}")).is_some();
    let sources: Vec<&str> = SOURCES.iter().copied().filter(has).collect();
    match sources.as_slice() {
        [] => errors.required(&spec, "must specify a volume type"),
        [_] => {}
        [_, others @ ..] => {
            for other in others {
                errors.forbidden(&spec.field(other), "may not specify more than 1 volume type");
            }
        }
    }
    for field in ["hostPath", "local"].into_iter().filter(|field| has(field)) {
        let (path, at) = (spec.field(field).field("path"), text(object, &format!("/spec/{field}/path")));
        if at.is_empty() {
            errors.required(&path, "");
        } else if at.split('/').any(|part| part == "..") {
            errors.invalid(&path, at, "must not contain '..'");
        }
    }
    if has(&"local") && object.pointer("/spec/nodeAffinity/required").is_none() {
        errors.required(&spec.field("nodeAffinity"), "Local volume requires node affinity");
    }
    if has(&"nfs") {
        let (server, path) = (text(object, "/spec/nfs/server"), text(object, "/spec/nfs/path"));
        if server.is_empty() {
            errors.required(&spec.field("nfs").field("server"), "");
        }
        if path.is_empty() {
            errors.required(&spec.field("nfs").field("path"), "");
        } else if !path.starts_with('/') {
            errors.invalid(&spec.field("nfs").field("path"), path, "must be an absolute path");
        }
    }
    errors.done()
}

fn validate_volume_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut found = validate_volume(new);
    let mut errors = Errors::default();
    let spec = Path::new("spec");
    if SOURCES.iter().any(|field| new["spec"].get(field) != old["spec"].get(field)) {
        errors.forbidden(
            &spec.field("persistentvolumesource"),
            "spec.persistentvolumesource is immutable after creation",
        );
    }
    errors.immutable(&spec.field("volumeMode"), new["spec"].get("volumeMode"), old["spec"].get("volumeMode"));
    if let Some(affinity) = old["spec"].get("nodeAffinity")
        && new["spec"].get("nodeAffinity") != Some(affinity)
    {
        errors.invalid(&spec.field("nodeAffinity"), new["spec"]["nodeAffinity"].clone(), IMMUTABLE);
    }
    found.extend(errors.done());
    found
}

fn validate_claim(object: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let spec = check_common(object, &mut errors);
    let path = spec.field("resources").key("storage");
    check_size(size(object, "/spec/resources/requests"), &path, &mut errors);
    errors.done()
}

fn validate_claim_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut found = validate_claim(new);
    let mut errors = Errors::default();
    // A volume may come to a claim that has none; of one that is bound the request may change.
    let settled = |object: &Value| {
        let mut spec = object["spec"].clone();
        if let Some(fields) = object_mut(&mut spec, "resources") {
            fields.remove("requests");
        }
        if let Some(fields) = spec.as_object_mut()
            && text(old, "/spec/volumeName").is_empty()
        {
            fields.remove("volumeName");
        }
        spec
    };
    if settled(new) != settled(old) {
        let why =
            "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims";
        errors.forbidden(&Path::new("spec"), why);
    }
    found.extend(errors.done());
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(kind: &Kind, mut object: Value) -> Vec<String> {
        (kind.default)(&mut object);
        (kind.validate_create)(&object).into_iter().map(|error| error.field).collect()
    }

    fn volume(spec: Value) -> Value {
        let mut object = json!({"metadata": {"name": "v"}, "spec": {
            "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"]}});
        for (field, value) in spec.as_object().unwrap() {
            object["spec"][field] = value.clone();
        }
        object
    }

    #[test]
    fn a_volume_has_one_source_a_size_and_a_place() {
        let affinity = json!({"required": {"nodeSelectorTerms": []}});
        let local = json!({"local": {"path": "/a"}, "nodeAffinity": affinity});
        assert_eq!(fields(&VOLUME, volume(local)), Vec::<String>::new());
        assert_eq!(fields(&VOLUME, volume(json!({"local": {"path": "/a"}}))), ["spec.nodeAffinity"]);
        assert_eq!(fields(&VOLUME, volume(json!({}))), ["spec"]);
        let two = json!({"hostPath": {"path": "/a"}, "nfs": {"server": "s", "path": "/"}});
        assert_eq!(fields(&VOLUME, volume(two)), ["spec.nfs"]);
        let wrong = json!({"hostPath": {"path": "/a/../b"}, "accessModes": ["Sometimes"], "capacity": {}});
        let at = ["spec.accessModes", "spec.capacity[storage]", "spec.hostPath.path"];
        assert_eq!(fields(&VOLUME, volume(wrong)), at);
    }

    #[test]
    fn a_claim_stays_what_it_is_but_for_its_volume_and_its_size() {
        let claim = |volume: Option<&str>, size: &str, class: &str| {
            let mut claim = json!({"metadata": {"name": "c"}, "spec": {"accessModes": ["ReadWriteOnce"],
                "storageClassName": class, "resources": {"requests": {"storage": size}}}});
            if let Some(volume) = volume {
                claim["spec"]["volumeName"] = volume.into();
            }
            (CLAIM.default)(&mut claim);
            claim
        };
        assert_eq!(fields(&CLAIM, claim(None, "1Gi", "")), Vec::<String>::new());
        assert_eq!(fields(&CLAIM, json!({})), ["spec.accessModes", "spec.resources[storage]"]);
        let free = claim(None, "1Gi", "a");
        assert!(validate_claim_update(&claim(Some("v"), "1Gi", "a"), &free).is_empty());
        assert_eq!(validate_claim_update(&claim(None, "1Gi", "b"), &free).len(), 1);
        let bound = claim(Some("v"), "1Gi", "a");
        assert!(validate_claim_update(&claim(Some("v"), "2Gi", "a"), &bound).is_empty());
        assert_eq!(validate_claim_update(&claim(Some("w"), "1Gi", "a"), &bound).len(), 1);
    }

    #[test]
    fn a_row_shows_who_has_what() {
        let mut bound = volume(json!({"claimRef": {"namespace": "n", "name": "c"}, "storageClassName": "disk"}));
        bound["status"] = json!({"phase": "Bound"});
        (VOLUME.default)(&mut bound);
        let row = (VOLUME.cells)(&bound, 0);
        assert_eq!(
            row[1..7],
            [json!("1Gi"), json!("RWO"), json!("Retain"), json!("Bound"), json!("n/c"), json!("disk")]
        );
        let claim = json!({"spec": {"volumeName": "v"}, "status": {"phase": "Bound", "capacity": {"storage": "1Gi"},
            "accessModes": ["ReadWriteOnce", "ReadOnlyMany"]}});
        assert_eq!((CLAIM.cells)(&claim, 0)[1..5], [json!("Bound"), json!("v"), json!("1Gi"), json!("RWO,ROX")]);
    }
}
