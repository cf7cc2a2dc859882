//! Objects of the API server on their way to a node. Pure.

use bytes::Bytes;
use kubeedge_proto::{
    digest::{project, projection_hash},
    v1::{KubeObject, ObjectKey, ObjectReference, ObjectTombstone, ObjectUpsert, ResourceType},
};
use serde_json::Value;

/// This very version, for what needs it.
pub(crate) fn reference_to(object: &KubeObject) -> ObjectReference {
    ObjectReference {
        r#type: object.r#type.clone(),
        key: object.key.clone(),
        uid: object.uid.clone(),
        resource_version: object.resource_version.clone(),
        projection_hash: object.projection_hash,
    }
}

/// The newest version of an object, which needs nothing.
pub(crate) fn upsert(object: &KubeObject) -> ObjectUpsert {
    ObjectUpsert { object: Some(object.clone()), ..ObjectUpsert::default() }
}

/// The end of an object, known at a resourceVersion.
pub(crate) fn tombstone(object: &KubeObject, as_of: u64) -> ObjectTombstone {
    ObjectTombstone {
        r#type: object.r#type.clone(),
        key: object.key.clone(),
        uid: object.uid.clone(),
        resource_version: as_of.max(object.version()).to_string(),
    }
}

/// Projects an object and puts it into its typed envelope.
pub(crate) fn envelope_of(type_: ResourceType, mut object: Value) -> KubeObject {
    let resource_version = text(&object, "/metadata/resourceVersion").to_owned();
    let uid = text(&object, "/metadata/uid").to_owned();
    let (namespace, name) = key_of(&object);
    project(&mut object);
    // Items of a list come without these two, events of a watch with them: the projection has them always.
    if let Some(fields) = object.as_object_mut() {
        fields.insert("apiVersion".into(), type_.api_version().into());
        fields.insert("kind".into(), type_.kind.clone().into());
    }
    KubeObject {
        r#type: Some(type_),
        key: Some(ObjectKey { namespace, name }),
        uid,
        resource_version,
        projection_hash: projection_hash(&object),
        // A copy: the text was written into twice the room that it needs.
        json: Bytes::copy_from_slice(object.to_string().as_bytes()),
    }
}

/// Namespace and name.
pub(crate) fn key_of(object: &Value) -> (String, String) {
    (text(object, "/metadata/namespace").to_owned(), text(object, "/metadata/name").to_owned())
}

/// The resourceVersion as a number; 0 when it is none.
pub(crate) fn version_of(object: &Value) -> u64 {
    text(object, "/metadata/resourceVersion").parse().unwrap_or(0)
}

/// A text in an object; empty when there is none.
pub(crate) fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}
