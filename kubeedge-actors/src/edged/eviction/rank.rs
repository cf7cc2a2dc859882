//! Which pod goes first when the node is short of something: the kubelet's order. Pure.

use std::cmp::Reverse;

use k8s_openapi::api::core::v1::Pod;

use super::{state::Starved, thresholds::Signal};
use crate::edged::{quantity::Quantity, resources::request};

/// From this priority on a pod is critical and is never evicted (`system-cluster-critical`).
pub const CRITICAL: i32 = 2_000_000_000;

/// A pod and what it has of what is short.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Its uid.
    pub uid: String,
    /// Its priority.
    pub priority: i32,
    /// What it asked for.
    pub request: u64,
    /// What it uses.
    pub usage: u64,
    /// Each container's use and request, for the words of the eviction.
    pub containers: Vec<(String, u64, u64)>,
}

/// Whether a pod is never evicted: static, a mirror of a static one, or critical.
pub fn is_critical(pod: &Pod) -> bool {
    let annotation = |name: &str| pod.metadata.annotations.as_ref().and_then(|all| all.get(name));
    let from_file = annotation("kubernetes.io/config.source").is_some_and(|source| source != "api");
    let priority = pod.spec.as_ref().and_then(|spec| spec.priority).unwrap_or(0);
    from_file || annotation("kubernetes.io/config.mirror").is_some() || priority >= CRITICAL
}

/// What a container asked for of what a signal watches.
pub fn requested(container: &k8s_openapi::api::core::v1::Container, signal: Signal) -> u64 {
    let resource = match signal {
        Signal::MemoryAvailable => "memory",
        Signal::NodefsAvailable | Signal::ImagefsAvailable => "ephemeral-storage",
        _ => return 0,
    };
    let request = request(container, resource).ok().flatten().unwrap_or(Quantity::ZERO);
    u64::try_from(request.value()).unwrap_or(0)
}

/// The order in which pods go: those that use more than they asked for, the least important, those that are furthest
/// above what they asked for. By uid last, so that it does not depend on how they were listed.
pub fn rank(mut pods: Vec<Load>) -> Vec<Load> {
    pods.sort_by_key(|pod| {
        let above = i128::from(pod.usage) - i128::from(pod.request);
        (pod.usage <= pod.request, pod.priority, Reverse(above), pod.uid.clone())
    });
    pods
}

/// The words of an eviction, a kubelet's.
pub fn message(starved: &Starved, load: &Load) -> String {
    let Starved { signal, least, seen, .. } = starved;
    let mut message = format!(
        "The node was low on resource: {}. Threshold quantity: {}, available: {}. ",
        signal.resource(),
        signal.show(least.of(seen.capacity)),
        signal.show(seen.available)
    );
    for (container, usage, request) in load.containers.iter().filter(|(_, usage, request)| usage > request) {
        message.push_str(&format!(
            "Container {container} was using {}, request is {}, has larger consumption of {}. ",
            signal.show(*usage),
            signal.show(*request),
            signal.resource()
        ));
    }
    message
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::edged::eviction::thresholds::{Amount, Observation};

    fn load(uid: &str, priority: i32, request: u64, usage: u64) -> Load {
        Load { uid: uid.into(), priority, request, usage, containers: Vec::new() }
    }

    #[test]
    fn the_order_is_the_kubelets() {
        let pods = vec![
            load("within", 0, 100, 90),
            load("above", 0, 10, 50),
            load("far-above", 0, 10, 90),
            load("important", 1000, 0, 500),
            load("unimportant-within", -5, 100, 1),
        ];
        let order: Vec<String> = rank(pods).into_iter().map(|pod| pod.uid).collect();
        assert_eq!(order, ["far-above", "above", "important", "unimportant-within", "within"]);
    }

    proptest! {
        #[test]
        fn who_keeps_to_what_it_asked_for_goes_last(pods in prop::collection::vec((0_i32..3, 0_u64..9, 0_u64..9), 0..12)) {
            let pods = pods.into_iter().enumerate().map(|(n, (p, r, u))| load(&n.to_string(), p, r, u)).collect();
            let ranked = rank(pods);
            let first_within = ranked.iter().position(|pod| pod.usage <= pod.request).unwrap_or(ranked.len());
            prop_assert!(ranked[first_within..].iter().all(|pod| pod.usage <= pod.request));
            for group in [&ranked[..first_within], &ranked[first_within..]] {
                prop_assert!(group.windows(2).all(|pair| pair[0].priority <= pair[1].priority));
            }
        }
    }

    #[test]
    fn an_eviction_says_what_was_short_and_who_had_it() {
        let containers = vec![("a".to_owned(), 20 << 20, 10 << 20), ("b".to_owned(), 1, 5)];
        let load = Load { containers, ..load("u", 0, 0, 0) };
        let seen = Observation { capacity: 1 << 30, available: 50 << 20 };
        let starved = Starved { signal: Signal::MemoryAvailable, least: Amount::Fixed(100 << 20), seen, hard: true };
        assert_eq!(
            message(&starved, &load),
            "The node was low on resource: memory. Threshold quantity: 100Mi, available: 50Mi. Container a was using \
             20Mi, request is 10Mi, has larger consumption of memory. "
        );
    }

    #[test]
    fn what_is_critical_stays() {
        let pod = |value| -> Pod { serde_json::from_value(value).unwrap() };
        let with = |priority: i32, annotation: &str, value: &str| {
            is_critical(&pod(
                json!({"metadata": {"annotations": {annotation: value}}, "spec": {"priority": priority, "containers": []}}),
            ))
        };
        assert!(with(CRITICAL, "x", "") && with(0, "kubernetes.io/config.source", "file"));
        assert!(with(0, "kubernetes.io/config.mirror", "hash"));
        assert!(!with(CRITICAL - 1, "kubernetes.io/config.source", "api"));
    }
}
