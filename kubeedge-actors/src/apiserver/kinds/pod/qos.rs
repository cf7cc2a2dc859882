//! The quality-of-service class of a pod.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::apiserver::kinds::fields::{entries, list};
use crate::apiserver::kinds::quantity::Quantity;

/// Only these count.
const COUNTED: [&str; 2] = ["cpu", "memory"];

/// `Guaranteed`, `Burstable` or `BestEffort`, from the requests and limits of all containers.
pub(super) fn class(pod: &Value) -> &'static str {
    let mut requests: BTreeMap<&str, Quantity> = BTreeMap::new();
    let mut limits: BTreeMap<&str, Quantity> = BTreeMap::new();
    let mut all_limited = true;
    // Resources of the pod as a whole stand for those of its containers.
    let whole: Vec<&Value> = pod.pointer("/spec/resources").map(|_| &pod["spec"]).into_iter().collect();
    let holders: Vec<&Value> = if whole.is_empty() {
        list(pod, "/spec/containers").iter().chain(list(pod, "/spec/initContainers")).collect()
    } else {
        whole
    };
    for holder in holders {
        add(holder, "requests", &mut requests);
        let limited = add(holder, "limits", &mut limits);
        all_limited &= COUNTED.iter().all(|name| limited.contains(name));
    }
    if requests.is_empty() && limits.is_empty() {
        return "BestEffort";
    }
    let same = limits.len() == requests.len() && limits.iter().all(|(name, limit)| requests.get(name) == Some(limit));
    if all_limited && same { "Guaranteed" } else { "Burstable" }
}

/// Adds the counted, positive amounts of one container and says which there were.
fn add<'a>(holder: &'a Value, field: &str, sums: &mut BTreeMap<&'a str, Quantity>) -> Vec<&'a str> {
    let mut found = Vec::new();
    for (name, amount) in entries(holder, &format!("/resources/{field}")) {
        if COUNTED.contains(&name.as_str())
            && let Some(amount) = amount.as_str().and_then(Quantity::parse)
            && amount.is_positive()
        {
            let sum = sums.entry(name).or_insert(Quantity::ZERO);
            *sum = sum.plus(amount);
            found.push(name.as_str());
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(containers: Value) -> Value {
        json!({"spec": {"containers": containers}})
    }

    #[test]
    fn the_class_follows_requests_and_limits() {
        let full = json!({"resources": {"limits": {"cpu": "1", "memory": "1Gi"},
            "requests": {"cpu": "1000m", "memory": "1Gi"}}});
        let cpu = json!({"resources": {"limits": {"cpu": "1"}, "requests": {"cpu": "1"}}});
        assert_eq!(class(&pod(json!([full]))), "Guaranteed");
        assert_eq!(class(&pod(json!([full, full]))), "Guaranteed");
        assert_eq!(class(&pod(json!([full, {}]))), "Burstable");
        assert_eq!(class(&pod(json!([cpu]))), "Burstable");
        assert_eq!(class(&pod(json!([{}, {"resources": {"limits": {"x/y": "1"}}}]))), "BestEffort");
        assert_eq!(class(&pod(json!([{"resources": {"requests": {"cpu": "0"}}}]))), "BestEffort");
    }
}
