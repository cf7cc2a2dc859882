//! PersistentVolume and PersistentVolumeClaim.

use serde_json::{Value, json};

use super::cells::{AGE, NAME, column, creation_age, name, text_or, wide};
use crate::kubeapi::fields::{entries, list, text};
use crate::kubeapi::resource::Resource;

/// PersistentVolume.
pub(crate) const PERSISTENT_VOLUME: Resource = Resource {
    group: "",
    version: "v1",
    kind: "PersistentVolume",
    plural: "persistentvolumes",
    singular: "persistentvolume",
    short_names: &["pv"],
    categories: &[],
    namespaced: false,
    status_subresource: true,
    stored_as: None,
    selectable: &[],
    columns: &[
        NAME,
        column("Capacity", "Its size"),
        column("Access Modes", "How it may be used"),
        column("Reclaim Policy", "What becomes of it without its claim"),
        column("Status", "Its phase"),
        column("Claim", "Who has it"),
        column("StorageClass", "Its class"),
        column("VolumeAttributesClass", "The class of its attributes"),
        column("Reason", "Why it has failed"),
        AGE,
        wide("VolumeMode", "Whether it is a file system"),
    ],
    cells: volume_cells,
};

/// PersistentVolumeClaim.
pub(crate) const PERSISTENT_VOLUME_CLAIM: Resource = Resource {
    group: "",
    version: "v1",
    kind: "PersistentVolumeClaim",
    plural: "persistentvolumeclaims",
    singular: "persistentvolumeclaim",
    short_names: &["pvc"],
    categories: &[],
    namespaced: true,
    status_subresource: true,
    stored_as: None,
    selectable: &[],
    columns: &[
        NAME,
        column("Status", "Its phase"),
        column("Volume", "What it has"),
        column("Capacity", "The size of that"),
        column("Access Modes", "How it may be used"),
        column("StorageClass", "Its class"),
        column("VolumeAttributesClass", "The class of its attributes"),
        AGE,
        wide("VolumeMode", "Whether it is a file system"),
    ],
    cells: claim_cells,
};

/// An amount of storage in a map of resources.
pub(crate) fn size<'a>(object: &'a Value, pointer: &str) -> Option<&'a str> {
    entries(object, pointer).find(|(name, _)| *name == "storage").and_then(|(_, amount)| amount.as_str())
}

/// `RWO,ROX`, as kubectl knows them.
fn modes(object: &Value, pointer: &str) -> String {
    let short = |mode: &Value| match mode.as_str().unwrap_or_default() {
        "ReadWriteOnce" => "RWO",
        "ReadOnlyMany" => "ROX",
        "ReadWriteMany" => "RWX",
        "ReadWriteOncePod" => "RWOP",
        _ => "",
    };
    list(object, pointer).iter().map(short).collect::<Vec<_>>().join(",")
}

/// The phase; of what is being deleted, that.
fn phase(object: &Value) -> &str {
    if object.pointer("/metadata/deletionTimestamp").is_some() { "Terminating" } else { text(object, "/status/phase") }
}

fn volume_cells(object: &Value, now: i64) -> Vec<Value> {
    let claim = match (text(object, "/spec/claimRef/namespace"), text(object, "/spec/claimRef/name")) {
        (_, "") => String::new(),
        (namespace, name) => format!("{namespace}/{name}"),
    };
    vec![
        name(object),
        json!(size(object, "/spec/capacity").unwrap_or_default()),
        json!(modes(object, "/spec/accessModes")),
        json!(text(object, "/spec/persistentVolumeReclaimPolicy")),
        json!(phase(object)),
        json!(claim),
        json!(text(object, "/spec/storageClassName")),
        json!(text_or(object, "/spec/volumeAttributesClassName", "<unset>")),
        json!(text(object, "/status/reason")),
        creation_age(object, now),
        json!(text_or(object, "/spec/volumeMode", "<unset>")),
    ]
}

fn claim_cells(object: &Value, now: i64) -> Vec<Value> {
    // What it has, once it has something.
    let bound = !text(object, "/spec/volumeName").is_empty();
    let capacity = size(object, "/status/capacity").filter(|_| bound).unwrap_or_default();
    vec![
        name(object),
        json!(phase(object)),
        json!(text(object, "/spec/volumeName")),
        json!(capacity),
        json!(if bound { modes(object, "/status/accessModes") } else { String::new() }),
        json!(text(object, "/spec/storageClassName")),
        json!(text_or(object, "/spec/volumeAttributesClassName", "<unset>")),
        creation_age(object, now),
        json!(text_or(object, "/spec/volumeMode", "<unset>")),
    ]
}
