//! What controllers read from pods, and the pods they make.

use serde_json::{Value, json};

use super::family::{controller_reference, is_ending};
use crate::apiserver::clock;
use crate::apiserver::kinds::fields::{integer, list, text};

/// The label that tells the pods of one template from those of another.
pub(super) const TEMPLATE_HASH: &str = "pod-template-hash";
/// The annotation that says which pod goes first when there are too many: lower goes first, none is 0.
const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";

/// Whether a pod runs or may run: it has not ended and is not asked to.
pub(super) fn is_active(pod: &Value) -> bool {
    !has_ended(pod) && !is_ending(pod)
}

/// Whether its containers have ended for good.
pub(super) fn has_ended(pod: &Value) -> bool {
    matches!(text(pod, "/status/phase"), "Succeeded" | "Failed")
}

/// Since when a pod is ready, seconds since 1970; `None` when it is not.
pub(super) fn ready_since(pod: &Value) -> Option<i64> {
    let ready = list(pod, "/status/conditions").iter().find(|one| one["type"] == "Ready" && one["status"] == "True")?;
    Some(clock::parse(text(ready, "/lastTransitionTime")).unwrap_or_default())
}

/// When a pod is available that has to be ready for `min_ready` seconds; `None` while it is not ready.
pub(super) fn available_at(pod: &Value, min_ready: i64) -> Option<i64> {
    ready_since(pod).map(|since| if min_ready > 0 { since.saturating_add(min_ready) } else { i64::MIN })
}

/// What a status counts of pods.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) present: i64,
    pub(super) ready: i64,
    pub(super) available: i64,
    /// When the next of those that are ready is available, seconds since 1970.
    pub(super) next: Option<i64>,
}

impl Counts {
    /// Of the active ones among `pods`.
    pub(super) fn of<'a>(pods: impl IntoIterator<Item = &'a Value>, min_ready: i64, now: i64) -> Self {
        let mut counts = Self::default();
        for pod in pods.into_iter().filter(|pod| is_active(pod)) {
            counts.present += 1;
            let Some(at) = available_at(pod, min_ready) else { continue };
            counts.ready += 1;
            if at <= now {
                counts.available += 1;
            } else {
                counts.next = Some(counts.next.map_or(at, |next: i64| next.min(at)));
            }
        }
        counts
    }
}

/// The order in which pods go when there are too many: those without a node first, then those that have not started,
/// those that are not ready, those that cost less, those on a node with more of them, those ready for a shorter time,
/// those that were restarted more often, the younger ones.
pub(super) fn deletion_order(pods: &mut [&Value]) {
    let on_node = |node: &str| pods.iter().filter(|pod| text(pod, "/spec/nodeName") == node).count();
    let mut keyed: Vec<_> = pods
        .iter()
        .map(|pod| {
            let node = text(pod, "/spec/nodeName");
            let phase = match text(pod, "/status/phase") {
                "Running" => 2,
                "Unknown" => 1,
                _ => 0,
            };
            let ready = ready_since(pod);
            let cost = pod["metadata"]["annotations"][DELETION_COST].as_str().and_then(|cost| cost.parse::<i32>().ok());
            let restarts = |pod: &Value| {
                let statuses = list(pod, "/status/containerStatuses").iter();
                statuses.filter_map(|one| integer(one, "/restartCount")).max().unwrap_or_default()
            };
            let created = clock::parse(text(pod, "/metadata/creationTimestamp")).unwrap_or_default();
            let key = (
                !node.is_empty(),
                phase,
                ready.is_some(),
                cost.unwrap_or_default(),
                std::cmp::Reverse(on_node(node)),
                std::cmp::Reverse(ready),
                std::cmp::Reverse(restarts(pod)),
                std::cmp::Reverse(created),
                text(pod, "/metadata/name").to_owned(),
            );
            (key, *pod)
        })
        .collect();
    keyed.sort_by(|(a, _), (b, _)| a.cmp(b));
    for (place, (_, pod)) in pods.iter_mut().zip(keyed) {
        *place = pod;
    }
}

/// A pod of `owner`'s template, whose name begins with that of its owner.
pub(super) fn from_template(owner: &Value) -> Value {
    let template = &owner["spec"]["template"];
    let mut meta = json!({
        "generateName": format!("{}-", text(owner, "/metadata/name")), "namespace": owner["metadata"]["namespace"],
        "ownerReferences": [controller_reference(owner)],
    });
    for member in ["labels", "annotations", "finalizers"] {
        if let Some(value) = template["metadata"].get(member) {
            meta[member] = value.clone();
        }
    }
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": template["spec"]})
}

/// Sets a condition by its type. The time of its last transition stays while its status does.
pub(super) fn set_condition(status: &mut Value, mut condition: Value, now: i64) {
    let since = clock::rfc3339(now);
    if !status["conditions"].is_array() {
        status["conditions"] = json!([]);
    }
    let Some(all) = status["conditions"].as_array_mut() else { return };
    let known = all.iter_mut().find(|one| one["type"] == condition["type"]);
    condition["lastTransitionTime"] = match &known {
        Some(before) if before["status"] == condition["status"] => before["lastTransitionTime"].clone(),
        _ => since.into(),
    };
    match known {
        Some(before) => *before = condition,
        None => all.push(condition),
    }
}

/// Removes a condition; a list of none is no list.
pub(super) fn remove_condition(status: &mut Value, type_: &str) {
    let Some(all) = status.get_mut("conditions").and_then(Value::as_array_mut) else { return };
    all.retain(|one| one["type"] != type_);
    if all.is_empty()
        && let Some(fields) = status.as_object_mut()
    {
        fields.remove("conditions");
    }
}

/// The condition of a type.
pub(super) fn find_condition<'a>(status: &'a Value, type_: &str) -> Option<&'a Value> {
    status["conditions"].as_array()?.iter().find(|one| one["type"] == type_)
}

/// Writes counts as Go does: fields that may be left out are when they are 0.
pub(super) fn set_counts(status: &mut Value, counts: &[(&str, i64)]) {
    if !status.is_object() {
        *status = json!({});
    }
    let Some(fields) = status.as_object_mut() else { return };
    for (field, count) in counts {
        if *count == 0 {
            fields.remove(*field);
        } else {
            fields.insert((*field).to_owned(), (*count).into());
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in super::super) fn pod(name: &str, node: &str, ready: Option<i64>) -> Value {
        let status = if ready.is_some() { "True" } else { "False" };
        let since = clock::rfc3339(ready.unwrap_or_default());
        json!({
            "metadata": {"name": name, "namespace": "n", "uid": name, "creationTimestamp": clock::rfc3339(0)},
            "spec": {"nodeName": node},
            "status": {
                "phase": if node.is_empty() { "Pending" } else { "Running" },
                "conditions": [{"type": "Ready", "status": status, "lastTransitionTime": since}],
            },
        })
    }

    #[test]
    fn pods_are_counted_as_available_when_they_were_ready_long_enough() {
        let mut ending = pod("e", "a", Some(0));
        ending["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        let mut failed = pod("f", "a", Some(0));
        failed["status"]["phase"] = json!("Failed");
        let pods = [pod("a", "a", Some(10)), pod("b", "a", Some(15)), pod("c", "a", None), ending, failed];
        let counts = |min_ready, now| Counts::of(&pods, min_ready, now);
        assert_eq!(counts(0, 15), Counts { present: 3, ready: 2, available: 2, next: None });
        assert_eq!(counts(10, 20), Counts { present: 3, ready: 2, available: 1, next: Some(25) });
        assert_eq!(counts(10, 19), Counts { present: 3, ready: 2, available: 0, next: Some(20) });
    }

    #[test]
    fn the_pod_that_is_missed_least_goes_first() {
        let mut cheap = pod("cheap", "c", Some(5));
        cheap["metadata"]["annotations"] = json!({DELETION_COST: "-1"});
        let pods = [
            pod("old", "a", Some(5)),
            pod("new", "b", Some(9)),
            pod("unready", "a", None),
            cheap,
            pod("unbound", "", None),
        ];
        let mut order: Vec<&Value> = pods.iter().collect();
        deletion_order(&mut order);
        let names: Vec<&str> = order.iter().map(|pod| text(pod, "/metadata/name")).collect();
        // Two are on node a, one of them is not ready: the ready one there goes before the one that is alone.
        assert_eq!(names, ["unbound", "unready", "cheap", "old", "new"]);
    }

    #[test]
    fn a_condition_keeps_its_time_while_its_status_stays() {
        let mut status = json!({});
        set_condition(&mut status, json!({"type": "A", "status": "True", "reason": "x"}), 1);
        set_condition(&mut status, json!({"type": "A", "status": "True", "reason": "y"}), 2);
        let condition = find_condition(&status, "A").unwrap();
        assert_eq!((&condition["reason"], &condition["lastTransitionTime"]), (&json!("y"), &json!(clock::rfc3339(1))));
        set_condition(&mut status, json!({"type": "A", "status": "False"}), 3);
        assert_eq!(find_condition(&status, "A").unwrap()["lastTransitionTime"], clock::rfc3339(3));
        remove_condition(&mut status, "A");
        assert_eq!(status, json!({}));
    }
}
