//! resourceVersions between the node, which counts by itself, and the cloud. Pure.
//!
//! Of the kinds that a node holds a client gets numbers of two counts: the node's own with what is served here, and the
//! cloud's with what the cloud has answered. The latter are marked on their way to the client, and so each can be told
//! when it comes back: a mark is taken off, and one of the node's own stands for what the node was told of the object,
//! by which the cloud finds its own number. `P-LOCAL-VERSION`

use bytes::Bytes;
use kubeedge_proto::v1::SeenObject;
use serde_json::Value;

use super::{answer::unavailable, copy::Copy};
use crate::kubeapi::{
    pass::{PROTOBUF, Passed, Target, version},
    request::ResourcePath,
    status::Status,
};

/// Is added to the cloud's numbers. No server counts this far, and neither does a node: that would be 2^41 starts.
const OF_CLOUD: u64 = 1 << 62;

/// A body as the cloud is to get it, and the object that the client has seen, if it says so.
pub(super) fn to_cloud(copy: &Copy, passed: &Passed, body: Bytes) -> Result<(Bytes, Option<SeenObject>), Status> {
    let Target::Resource(_, ResourcePath { namespace, name: Some(name), subresource, .. }) = &passed.target else {
        return Ok((body, None));
    };
    if passed.content_type() == Some(PROTOBUF) && !body.is_empty() {
        let text = format!("{} are changed through this node with a body of JSON", copy.kind().plural);
        return Err(Status::unsupported_media_type(text));
    }
    // What is no number is the API server's to refuse.
    let Some(sent) = version::read(passed, &body)?.and_then(|sent| sent.parse::<u64>().ok()).filter(|sent| *sent > 0)
    else {
        return Ok((body, None));
    };
    if let Some(of_cloud) = sent.checked_sub(OF_CLOUD) {
        return Ok((version::write(passed, &body, &of_cloud.to_string())?, None));
    }
    if !copy.is_loaded() {
        return Err(unavailable("the node's store is being read"));
    }
    // The copy has not what others write to a status: by its number theirs would be overwritten unseen.
    if subresource.as_deref() == Some("status") && passed.method() == "PUT" {
        let text = "a status is replaced by the resourceVersion that the cloud gave with it: get it by its name online, \
                    or patch it";
        return Err(Status::bad_request(text));
    }
    match copy.seen(namespace.as_deref().unwrap_or_default(), name, sent) {
        Some(seen) => Ok((body, Some(seen))),
        None => Err(Status::modified(copy.kind(), name)),
    }
}

/// An answer of the cloud as the client is to get it: of an object, a list or a table.
pub(super) fn to_client(answer: Bytes) -> Bytes {
    let Ok(mut value) = serde_json::from_slice::<Value>(&answer) else { return answer };
    mark(&mut value, "/metadata/resourceVersion");
    for item in value.get_mut("items").and_then(Value::as_array_mut).into_iter().flatten() {
        mark(item, "/metadata/resourceVersion");
    }
    for row in value.get_mut("rows").and_then(Value::as_array_mut).into_iter().flatten() {
        mark(row, "/object/metadata/resourceVersion");
    }
    value.to_string().into()
}

fn mark(value: &mut Value, pointer: &str) {
    let Some(place) = value.pointer_mut(pointer) else { return };
    let number = place.as_str().and_then(|text| text.parse::<u64>().ok()).filter(|number| *number > 0);
    if let Some(marked) = number.and_then(|number| number.checked_add(OF_CLOUD)) {
        *place = marked.to_string().into();
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use kubeedge_proto::v1::{KubeObject, ObjectKey};
    use proptest::prelude::*;
    use serde_json::json;
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::metaserver::{copy::Snapshot, kinds};

    /// ConfigMap `menu`, which has resourceVersion 7 here and 41 in the cloud.
    fn copy() -> Copy {
        let kind = kinds::all().iter().find(|kind| kind.plural == "configmaps").unwrap();
        let copy = Copy::new(kind, 1, CancellationToken::new());
        let object = KubeObject {
            key: Some(ObjectKey::new("shop", "menu")),
            uid: "u".into(),
            resource_version: "41".into(),
            projection_hash: 99,
            json: json!({"metadata": {"name": "menu", "namespace": "shop", "uid": "u"}}).to_string().into(),
            ..KubeObject::default()
        };
        copy.load(Snapshot { objects: vec![object], statuses: vec![], complete: true }, &mut || 7);
        copy
    }

    fn passed(method: &str, type_: &str, name: &str) -> Passed {
        let headers = BTreeMap::from([("content-type".to_owned(), type_.to_owned())]);
        Passed::parse(method, &format!("/api/v1/namespaces/shop/configmaps/{name}"), "", &headers).unwrap()
    }

    fn sent(method: &str, type_: &str, name: &str, body: Value) -> Result<(Value, Option<u64>), u16> {
        let passed = passed(method, type_, name);
        let (body, seen) = to_cloud(&copy(), &passed, body.to_string().into()).map_err(|status| status.code)?;
        Ok((serde_json::from_slice(&body).unwrap(), seen.map(|seen| seen.projection_hash)))
    }

    const JSON: &str = "application/json";

    #[test]
    fn a_number_of_the_nodes_own_stands_for_what_the_node_was_told() {
        let with = |version: &str| json!({"metadata": {"resourceVersion": version}});
        assert_eq!(sent("PUT", JSON, "menu", with("7")), Ok((with("7"), Some(99))));
        for stale in ["6", "8", "41"] {
            assert_eq!(sent("PUT", JSON, "menu", with(stale)), Err(409), "{stale}");
        }
        assert_eq!(sent("PUT", JSON, "other", with("7")), Err(409));
        for none in ["", "0", "x"] {
            assert_eq!(sent("PUT", JSON, "menu", with(none)), Ok((with(none), None)), "{none:?}");
        }
        let marked = (OF_CLOUD + 41).to_string();
        assert_eq!(sent("PUT", JSON, "menu", with(&marked)), Ok((with("41"), None)));
        assert_eq!(sent("PATCH", "application/merge-patch+json", "menu", with("7")), Ok((with("7"), Some(99))));
        let patch = |version: &str| {
            json!([{"op": "test", "path": "/metadata/resourceVersion", "value": version},
                   {"op": "add", "path": "/data/resourceVersion", "value": "5"}])
        };
        let json_patch = "application/json-patch+json";
        assert_eq!(sent("PATCH", json_patch, "menu", patch(&marked)), Ok((patch("41"), None)));
        assert_eq!(sent("PATCH", json_patch, "menu", patch("7")), Ok((patch("7"), Some(99))));
        assert_eq!(sent("PATCH", json_patch, "menu", patch("8")), Err(409));
        let options = |version: &str| json!({"preconditions": {"uid": "u", "resourceVersion": version}});
        assert_eq!(sent("DELETE", JSON, "menu", options("7")), Ok((options("7"), Some(99))));
        assert_eq!(sent("DELETE", JSON, "menu", options(&marked)), Ok((options("41"), None)));
        let binary = to_cloud(&copy(), &passed("PUT", PROTOBUF, "menu"), Bytes::from_static(b"k8s"));
        assert_eq!(binary.map_err(|status| status.code), Err(415), "its number is not found in it");
        let bad = to_cloud(&copy(), &passed("PUT", JSON, "menu"), Bytes::from_static(b"{"));
        assert_eq!(bad.map_err(|status| status.code), Err(400));
        let none = to_cloud(&copy(), &passed("DELETE", JSON, "menu"), Bytes::new());
        assert_eq!(none, Ok((Bytes::new(), None)));
    }

    #[test]
    fn answers_of_the_cloud_are_marked_wherever_objects_stand() {
        let marked = (OF_CLOUD + 5).to_string();
        let both = |version: &str| {
            let metadata = json!({"resourceVersion": version, "name": "a"});
            [
                json!({"metadata": metadata}),
                json!({"metadata": metadata, "items": [{"metadata": metadata}]}),
                json!({"metadata": metadata, "rows": [{"cells": [1], "object": {"metadata": metadata}}]}),
            ]
        };
        for (given, expected) in both("5").into_iter().zip(both(&marked)) {
            assert_eq!(to_client(given.to_string().into()), expected.to_string());
        }
        assert_eq!(to_client(Bytes::from_static(b"no JSON")), "no JSON");
    }

    proptest! {
        #[test]
        fn what_the_cloud_answered_comes_back_as_it_was(version in 1..OF_CLOUD) {
            let answer = json!({"metadata": {"name": "menu", "resourceVersion": version.to_string()}});
            let shown = to_client(answer.to_string().into());
            let (body, seen) = to_cloud(&copy(), &passed("PUT", JSON, "menu"), shown).unwrap();
            prop_assert_eq!((body, seen), (Bytes::from(answer.to_string()), None));
        }
    }
}
