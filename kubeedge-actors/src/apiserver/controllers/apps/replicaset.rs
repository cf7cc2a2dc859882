//! ReplicaSets: as many pods of a template as are wanted.

use serde_json::{Value, json};

use super::family::{claim, is_ending};
use super::pods::{Counts, deletion_order, from_template, is_active, remove_condition, set_condition, set_counts};
use super::{Action, BURST, Family, Plan, Resource};
use crate::apiserver::kinds::fields::{entries, integer};

const FAILURE: &str = "ReplicaFailure";

/// Makes the pods that are missing, deletes those that are too many, says what there is.
pub(super) fn decide(family: &Family, now: i64, refused: Option<&str>) -> Plan {
    let set = &family.owner;
    let mut plan = Plan::default();
    let mine = claim(set, Resource::Pods, &family.pods, &mut plan);
    let active: Vec<&Value> = mine.iter().filter(|pod| is_active(pod)).collect();
    let wanted = usize::try_from(integer(set, "/spec/replicas").unwrap_or_default()).unwrap_or_default();
    if !is_ending(set) && !family.closed {
        let missing = wanted.saturating_sub(active.len()).min(BURST);
        plan.actions.extend((0..missing).map(|_| Action::Create(Resource::Pods, from_template(set))));
    }
    if !is_ending(set) {
        let surplus = active.len().saturating_sub(wanted).min(BURST);
        let mut order = active.clone();
        deletion_order(&mut order);
        plan.actions.extend(order.into_iter().take(surplus).map(|pod| Action::Delete(Resource::Pods, pod.clone())));
    }
    let min_ready = integer(set, "/spec/minReadySeconds").unwrap_or_default();
    let counts = Counts::of(active.iter().copied(), min_ready, now);
    plan.again(counts.next);
    let mut changed = set.clone();
    changed["status"] = status(set, &active, counts, refused, now);
    if changed != *set {
        plan.actions.push(Action::Put(Resource::ReplicaSets, changed));
    }
    plan
}

fn status(set: &Value, active: &[&Value], counts: Counts, refused: Option<&str>, now: i64) -> Value {
    let labelled = |pod: &&&Value| {
        entries(set, "/spec/template/metadata/labels")
            .all(|(key, value)| pod["metadata"]["labels"].get(key) == Some(value))
    };
    let mut status = set["status"].clone();
    let full = active.iter().filter(labelled).count();
    set_counts(
        &mut status,
        &[
            ("availableReplicas", counts.available),
            ("fullyLabeledReplicas", i64::try_from(full).unwrap_or(i64::MAX)),
            ("observedGeneration", integer(set, "/metadata/generation").unwrap_or_default()),
            ("readyReplicas", counts.ready),
        ],
    );
    status["replicas"] = counts.present.into();
    match refused {
        Some(why) => {
            let failure = json!({"type": FAILURE, "status": "True", "reason": "FailedCreate", "message": why});
            set_condition(&mut status, failure, now);
        }
        None => remove_condition(&mut status, FAILURE),
    }
    status
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::super::pods::find_condition;
    use super::super::pods::tests::pod;
    use super::*;

    pub(in super::super) fn set(name: &str, replicas: i64) -> Value {
        json!({
            "apiVersion": "apps/v1", "kind": "ReplicaSet",
            "metadata": {"name": name, "namespace": "n", "uid": name, "generation": 1},
            "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": "web"}}, "template": {
                "metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}},
            "status": {"replicas": 0},
        })
    }

    fn owned(mut pod: Value, owner: &str) -> Value {
        pod["metadata"]["labels"] = json!({"app": "web"});
        pod["metadata"]["ownerReferences"] = json!([{"uid": owner, "controller": true}]);
        pod
    }

    fn count(plan: &Plan, of: impl Fn(&Action) -> bool) -> usize {
        plan.actions.iter().filter(|action| of(action)).count()
    }

    #[test]
    fn a_refused_creation_is_a_condition_until_it_works() {
        let mut family = Family::new(set("w", 1));
        let refused = decide(&family, 100, Some("no account"));
        let Some(Action::Put(_, stored)) = refused.actions.last() else { panic!("{refused:?}") };
        assert_eq!(find_condition(&stored["status"], FAILURE).unwrap()["message"], "no account");
        family.owner = stored.clone();
        let again = decide(&family, 105, Some("no account"));
        assert_eq!(count(&again, |a| !matches!(a, Action::Create(..))), 0, "{again:?}");
        let works = decide(&family, 110, None);
        let Some(Action::Put(_, stored)) = works.actions.last() else { panic!("{works:?}") };
        assert!(find_condition(&stored["status"], FAILURE).is_none());
    }

    #[test]
    fn a_pod_is_of_its_template_and_of_its_set() {
        let plan = decide(&Family::new(set("w", 1)), 0, None);
        let Action::Create(Resource::Pods, pod) = &plan.actions[0] else { panic!("{plan:?}") };
        assert_eq!(pod["metadata"]["generateName"], "w-");
        assert_eq!(pod["metadata"]["labels"], json!({"app": "web"}));
        assert_eq!(pod["metadata"]["ownerReferences"][0]["uid"], "w");
        assert_eq!(pod["metadata"]["ownerReferences"][0]["blockOwnerDeletion"], true);
    }

    proptest! {
        /// P-APPS-REPLICAS: after a plan there are as many active pods as wanted, and no ready one went for one that is not.
        #[test]
        fn a_plan_brings_the_number_of_pods_to_what_is_wanted(
            wanted in 0..6_i64,
            pods in proptest::collection::vec((proptest::bool::weighted(0.8), any::<bool>(), proptest::bool::weighted(0.1), 0..10_u8), 0..10),
            ending in proptest::bool::weighted(0.1),
        ) {
            let mut family = Family::new(set("w", wanted));
            if ending {
                family.owner["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
            }
            for (index, (bound, ready, leaving, phase)) in pods.iter().enumerate() {
                let node = if *bound { "a" } else { "" };
                let mut one = owned(pod(&format!("p{index}"), node, (*bound && *ready).then_some(5)), "w");
                if *leaving {
                    one["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
                }
                if *phase == 0 {
                    one["status"]["phase"] = json!("Failed");
                }
                family.pods.push(one);
            }
            let active: Vec<&Value> = family.pods.iter().filter(|pod| is_active(pod)).collect();
            let plan = decide(&family, 1000, None);
            let created = count(&plan, |a| matches!(a, Action::Create(..)));
            let deleted: Vec<&Value> = plan.actions.iter().filter_map(|a| match a {
                Action::Delete(_, pod) => Some(pod),
                _ => None,
            }).collect();
            if ending {
                prop_assert_eq!((created, deleted.len()), (0, 0));
            } else {
                prop_assert_eq!((active.len() + created - deleted.len()) as i64, wanted);
                prop_assert!(created == 0 || deleted.is_empty());
                prop_assert!(deleted.iter().all(|pod| is_active(pod)));
                let ready = |pod: &Value| super::super::pods::ready_since(pod).is_some();
                if deleted.iter().any(|pod| ready(pod)) {
                    let kept = active.iter().filter(|pod| !deleted.contains(pod));
                    prop_assert!(kept.into_iter().all(|pod| ready(pod)), "an unready pod stays and a ready one goes");
                }
            }
            let stored = plan.actions.iter().find_map(|a| match a {
                Action::Put(Resource::ReplicaSets, set) => Some(set.clone()),
                _ => None,
            });
            let stored = stored.unwrap_or_else(|| family.owner.clone());
            prop_assert_eq!(stored["status"]["replicas"].as_i64(), i64::try_from(active.len()).ok());
            // With the status stored and the pods as they are, only pods are still to do.
            family.owner = stored;
            prop_assert!(decide(&family, 1000, None).actions.iter().all(|a| matches!(a, Action::Create(..) | Action::Delete(..))));
        }
    }
}
