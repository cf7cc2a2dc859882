//! JSON merge patch (RFC 7386).

use serde_json::{Map, Value};

/// `original` with the members of `patch` over it; `null` removes.
pub(crate) fn merge(original: &Value, patch: &Value) -> Value {
    let Value::Object(patch) = patch else {
        return patch.clone();
    };
    let mut merged: Map<String, Value> = original.as_object().cloned().unwrap_or_default();
    for (key, change) in patch {
        if change.is_null() {
            merged.remove(key);
        } else {
            let before = merged.get(key).unwrap_or(&Value::Null);
            let after = merge(before, change);
            merged.insert(key.clone(), after);
        }
    }
    Value::Object(merged)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn null_removes_maps_merge_and_lists_are_replaced() {
        let original = json!({"a": 1, "b": {"c": 2, "d": 3}, "l": [1, 2]});
        let patch = json!({"a": null, "b": {"c": null, "e": {"x": null, "y": 1}}, "l": [3]});
        assert_eq!(merge(&original, &patch), json!({"b": {"d": 3, "e": {"y": 1}}, "l": [3]}));
    }

    proptest! {
        #[test]
        fn merging_twice_is_merging_once(a in -3..3i64, b in -3..3i64, drop: bool) {
            let original = json!({"x": {"a": a}, "y": b});
            let patch = json!({"x": {"b": b}, "y": if drop { Value::Null } else { json!({"z": a}) }});
            let once = merge(&original, &patch);
            prop_assert_eq!(merge(&once, &patch), once);
        }
    }
}
