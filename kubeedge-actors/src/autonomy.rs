//! Which pods stay on a node that nobody hears from: those labelled `app-offline.kubeedge.io: autonomy`. Pure.
//!
//! A cluster taints a node that is silent `node.kubernetes.io/unreachable` and deletes its pods when they no longer
//! tolerate that, after 300 s unless they say otherwise; what made them makes others, elsewhere. A pod with the label
//! tolerates the taint for ever. The embedded API server and the webhook for other clusters decide by this one function.

use serde_json::{Value, json};

/// The label, as KubeEdge has it.
pub const LABEL: &str = "app-offline.kubeedge.io";
/// Its value.
pub const AUTONOMY: &str = "autonomy";
/// The taint of a node that is silent.
pub const UNREACHABLE: &str = "node.kubernetes.io/unreachable";

/// Whether a pod is new: what its tolerations may become depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Everything may change.
    Create,
    /// Tolerations may be added, and their `tolerationSeconds` changed; an API server refuses everything else.
    Update,
}

/// The tolerations that an autonomous pod should have; `None` where nothing has to change, for other pods above all.
///
/// A label that is taken away leaves them: an API server lets no toleration be removed.
pub fn tolerations(pod: &Value, operation: Operation) -> Option<Vec<Value>> {
    if pod["metadata"]["labels"].get(LABEL).and_then(Value::as_str) != Some(AUTONOMY) {
        return None;
    }
    // What is no list is for validation to refuse.
    let present = match pod["spec"].get("tolerations") {
        None | Some(Value::Null) => &[],
        Some(list) => list.as_array()?.as_slice(),
    };
    let for_ever = json!({"key": UNREACHABLE, "operator": "Exists"});
    // The first that matches counts, and one without a key matches as well: ours comes first.
    let mut wanted = vec![for_ever.clone()];
    for one in present.iter().filter(|one| **one != for_ever) {
        let mut one = one.clone();
        if one["key"] == UNREACHABLE {
            if operation == Operation::Create {
                continue;
            }
            if let Some(fields) = one.as_object_mut() {
                fields.remove("tolerationSeconds");
            }
        }
        if one != for_ever {
            wanted.push(one);
        }
    }
    (wanted != present).then_some(wanted)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::Operation::{Create, Update};
    use super::*;

    fn pod(label: &str, tolerations: Value) -> Value {
        json!({"metadata": {"labels": {LABEL: label}}, "spec": {"tolerations": tolerations}})
    }

    fn for_ever() -> Value {
        json!({"key": UNREACHABLE, "operator": "Exists"})
    }

    #[test]
    fn only_pods_with_the_label_and_its_value_are_changed() {
        assert_eq!(tolerations(&pod("no", json!([])), Create), None);
        assert_eq!(tolerations(&json!({"metadata": {"labels": {AUTONOMY: LABEL}}, "spec": {}}), Create), None);
        assert_eq!(tolerations(&json!({}), Create), None);
        assert_eq!(tolerations(&pod(AUTONOMY, json!("none")), Create), None, "validation refuses it");
        for missing in [json!(null), json!([])] {
            assert_eq!(tolerations(&pod(AUTONOMY, missing), Create), Some(vec![for_ever()]));
        }
    }

    #[test]
    fn what_a_new_pod_says_of_the_taint_is_replaced_and_the_rest_stays() {
        let other = json!({"key": "node.kubernetes.io/not-ready", "operator": "Exists", "tolerationSeconds": 300});
        let all = json!({"operator": "Exists", "tolerationSeconds": 5});
        let usual = json!({"key": UNREACHABLE, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300});
        let made = tolerations(&pod(AUTONOMY, json!([all, usual, other])), Create);
        assert_eq!(made, Some(vec![for_ever(), all, other]), "before the one that matches every taint");
    }

    fn toleration() -> impl Strategy<Value = Value> {
        let keys = prop_oneof![Just(Some(UNREACHABLE)), Just(Some("k")), Just(None)];
        let effects = prop_oneof![Just(Some("NoExecute")), Just(Some("NoSchedule")), Just(None)];
        (keys, effects, prop::option::of(0_i64..400)).prop_map(|(key, effect, seconds)| {
            let mut one = json!({"operator": "Exists"});
            for (name, value) in [("key", key.map(Value::from)), ("effect", effect.map(Value::from))] {
                value.into_iter().for_each(|value| one[name] = value);
            }
            seconds.into_iter().for_each(|seconds| one["tolerationSeconds"] = seconds.into());
            one
        })
    }

    proptest! {
        /// What API servers check of an update: nothing is taken away but seconds.
        #[test]
        fn an_update_only_adds_and_is_done_once(present in prop::collection::vec(toleration(), 0..6)) {
            let after = tolerations(&pod(AUTONOMY, json!(present)), Update).unwrap_or_else(|| present.clone());
            let core = |one: &Value| {
                let mut core = one.clone();
                core.as_object_mut().unwrap().remove("tolerationSeconds");
                core
            };
            for one in &present {
                prop_assert!(after.iter().any(|kept| core(kept) == core(one)), "{one} is gone from {after:?}");
            }
            for operation in [Create, Update] {
                prop_assert_eq!(tolerations(&pod(AUTONOMY, json!(after)), Update), None);
                let made = tolerations(&pod(AUTONOMY, json!(present)), operation).unwrap_or_else(|| present.clone());
                prop_assert_eq!(&made[0], &for_ever());
                prop_assert_eq!(tolerations(&pod(AUTONOMY, json!(made)), operation), None, "it is done once");
            }
        }
    }
}
