//! The digests that resync rests on. Both sides compute them over the same bytes, so the format is part of the wire.

use ring::digest::{Context, SHA256, digest};
use serde_json::Value;

use crate::v1::InventoryEntry;

/// Hash of an object's projection: what the edge needs of it. The cloud computes it; the edge stores and echoes it.
///
/// The projection has no `status`, `metadata.managedFields` and `metadata.resourceVersion`; its JSON is canonical
/// (object keys sorted, no white space). The hash is the first 8 bytes of SHA-256, big endian.
pub fn projection_hash(projection: &Value) -> u64 {
    let mut text = Vec::with_capacity(512);
    write_canonical(projection, &mut text);
    let hash = digest(&SHA256, &text);
    let mut first = [0; 8];
    first.copy_from_slice(&hash.as_ref()[..8]);
    u64::from_be_bytes(first)
}

/// Makes the projection of an object in place: drops `status`, `metadata.managedFields`, `metadata.resourceVersion`.
///
/// Of a pod with readiness gates the conditions that they name stay, type and status: others set them in the API, and
/// the node has to know them.
///
/// The resource version travels beside the object, in its own field.
pub fn project(object: &mut Value) {
    let gates = gate_conditions(object);
    if let Some(fields) = object.as_object_mut() {
        fields.remove("status");
        if !gates.is_empty() {
            fields.insert("status".to_owned(), serde_json::json!({ "conditions": gates }));
        }
        if let Some(metadata) = fields.get_mut("metadata").and_then(Value::as_object_mut) {
            metadata.remove("managedFields");
            metadata.remove("resourceVersion");
        }
    }
}

/// The conditions that readiness gates name, in the order of the gates.
fn gate_conditions(object: &Value) -> Vec<Value> {
    let gates = object.pointer("/spec/readinessGates").and_then(Value::as_array);
    let conditions = object.pointer("/status/conditions").and_then(Value::as_array);
    let (Some(gates), Some(conditions)) = (gates, conditions) else { return Vec::new() };
    let found = gates.iter().filter_map(|gate| {
        let wanted = gate.get("conditionType").and_then(Value::as_str)?;
        let of = |condition: &&Value| condition.get("type").and_then(Value::as_str) == Some(wanted);
        let status = conditions.iter().find(of)?.get("status").and_then(Value::as_str)?;
        Some(serde_json::json!({ "type": wanted, "status": status }))
    });
    found.collect()
}

fn write_canonical(value: &Value, out: &mut Vec<u8>) {
    match value {
        Value::Object(map) => {
            let mut keys: Vec<&String> = map.keys().collect();
            keys.sort_unstable();
            out.push(b'{');
            for (i, key) in keys.into_iter().enumerate() {
                if i > 0 {
                    out.push(b',');
                }
                out.extend_from_slice(Value::String(key.clone()).to_string().as_bytes());
                out.push(b':');
                write_canonical(&map[key], out);
            }
            out.push(b'}');
        }
        Value::Array(items) => {
            out.push(b'[');
            for (i, item) in items.iter().enumerate() {
                if i > 0 {
                    out.push(b',');
                }
                write_canonical(item, out);
            }
            out.push(b']');
        }
        scalar => out.extend_from_slice(scalar.to_string().as_bytes()),
    }
}

/// SHA-256 over the entries of one kind, in the order of (namespace, name) whatever order they come in.
///
/// Per entry: namespace, name and uid, each with its length in bytes as a big-endian u32 before it, then the
/// projection hash as a big-endian u64.
pub fn kind_digest<'a>(entries: impl IntoIterator<Item = &'a InventoryEntry>) -> [u8; 32] {
    let mut rows: Vec<(&str, &str, &str, u64)> = entries
        .into_iter()
        .map(|entry| {
            let (namespace, name) =
                entry.key.as_ref().map_or(("", ""), |key| (key.namespace.as_str(), key.name.as_str()));
            (namespace, name, entry.uid.as_str(), entry.projection_hash)
        })
        .collect();
    rows.sort_unstable();
    let mut context = Context::new(&SHA256);
    for (namespace, name, uid, hash) in rows {
        for field in [namespace, name, uid] {
            // A Kubernetes name is at most 253 bytes; a longer field still hashes to something definite.
            context.update(&(field.len() as u32).to_be_bytes());
            context.update(field.as_bytes());
        }
        context.update(&hash.to_be_bytes());
    }
    let mut out = [0; 32];
    out.copy_from_slice(context.finish().as_ref());
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::v1::ObjectKey;

    fn entry(namespace: &str, name: &str, uid: &str, hash: u64) -> InventoryEntry {
        InventoryEntry {
            key: Some(ObjectKey::new(namespace, name)),
            uid: uid.into(),
            projection_hash: hash,
            resource_version: String::new(),
        }
    }

    #[test]
    fn what_readiness_gates_wait_for_stays_in_the_projection() {
        let mut pod = json!({
            "spec": {"readinessGates": [{"conditionType": "lb"}, {"conditionType": "absent"}]},
            "status": {"phase": "Running", "conditions": [
                {"type": "Ready", "status": "True"}, {"type": "lb", "status": "False", "reason": "x"}]},
        });
        project(&mut pod);
        assert_eq!(pod["status"], json!({"conditions": [{"type": "lb", "status": "False"}]}));
        let again = pod.clone();
        project(&mut pod);
        assert_eq!(pod, again, "a projection is its own projection");
    }

    #[test]
    fn projection_hash_ignores_status_and_field_order() {
        let mut one =
            json!({"metadata": {"name": "a", "resourceVersion": "1", "managedFields": []}, "status": {"x": 1}});
        let mut two = json!({"status": {}, "metadata": {"resourceVersion": "2", "name": "a"}});
        project(&mut one);
        project(&mut two);
        assert_eq!(projection_hash(&one), projection_hash(&two));
        two["metadata"]["labels"] = json!({"a": "b"});
        assert_ne!(projection_hash(&one), projection_hash(&two));
    }

    #[test]
    fn field_boundaries_count() {
        assert_ne!(kind_digest(&[entry("a", "bc", "u", 1)]), kind_digest(&[entry("ab", "c", "u", 1)]));
    }

    proptest! {
        #[test]
        fn digest_does_not_depend_on_order(
            rows in prop::collection::vec(("[a-c]{0,2}", "[a-c]{1,2}", "[a-c]{1,2}", any::<u64>()), 0..20),
            seed in any::<prop::sample::Index>(),
        ) {
            let entries: Vec<_> = rows.iter().map(|(ns, n, u, h)| entry(ns, n, u, *h)).collect();
            let mut turned = entries.clone();
            if !turned.is_empty() {
                let at = seed.index(turned.len());
                turned.rotate_left(at);
            }
            prop_assert_eq!(kind_digest(&entries), kind_digest(&turned));
        }
    }
}
