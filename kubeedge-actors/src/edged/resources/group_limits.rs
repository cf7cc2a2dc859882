//! What the control groups of the node, of the classes and of pods may use, by the kubelet's rules. Pure.
//!
//! Shares say who gets how much of a processor that several want; a quota and a memory limit hold in any case. A pod has
//! the sum of what its containers have, the class of burstable pods the sum of theirs, and all pods together what the node
//! has for them: so a pod gets its share also where many small ones run beside it.

use k8s_openapi::api::core::v1::{Container, Pod};

use super::{
    linux::{PERIOD, SHARES, quota, shares},
    qos::{InvalidResource, QosClass, limit, overhead, qos_class, request},
};
use crate::edged::quantity::Quantity;

/// The limits of one control group. What is not set stays as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GroupLimits {
    /// `cpu.shares` of version 1.
    pub shares: Option<i64>,
    /// Processor time in each period of [`GroupLimits::PERIOD`] microseconds.
    pub quota: Option<i64>,
    /// Memory, bytes.
    pub memory: Option<i64>,
}

impl GroupLimits {
    /// The period that a quota is of, microseconds.
    pub const PERIOD: i64 = PERIOD;
}

/// The limits of a pod. A quota or memory limit is there only if every container has one; `cpu_quota`: whether quotas
/// are enforced at all.
pub fn pod_limits(pod: &Pod, cpu_quota: bool) -> Result<GroupLimits, InvalidResource> {
    if qos_class(pod)? == QosClass::BestEffort {
        return Ok(GroupLimits { shares: Some(SHARES.0), ..GroupLimits::default() });
    }
    let requested = together(pod, |container| Ok(Some(milli(request(container, "cpu")?))))?.unwrap_or(0);
    let cpu = together(pod, |container| Ok(limit(container, "cpu")?.map(|limit| limit.milli_value())))?;
    let memory = together(pod, |container| Ok(limit(container, "memory")?.map(|limit| limit.value())))?;
    let quota = cpu.filter(|_| cpu_quota).map(quota);
    Ok(GroupLimits { shares: Some(shares(requested)), quota, memory })
}

/// What the containers of a pod have at most at the same time: all that stay, or one init container beside the sidecars
/// before it; and its overhead. `None` if a container has no such amount.
fn together(
    pod: &Pod,
    of: impl Fn(&Container) -> Result<Option<i64>, InvalidResource>,
) -> Result<Option<i64>, InvalidResource> {
    let Some(spec) = &pod.spec else { return Ok(None) };
    let (mut stays, mut most) = (0_i64, 0_i64);
    for container in spec.init_containers.iter().flatten() {
        let Some(own) = of(container)? else { return Ok(None) };
        let beside = stays.saturating_add(own);
        most = most.max(beside);
        if container.restart_policy.as_deref() == Some("Always") {
            stays = beside;
        }
    }
    for container in &spec.containers {
        let Some(own) = of(container)? else { return Ok(None) };
        stays = stays.saturating_add(own);
    }
    let beside = overhead(pod).map(|overhead| of(&overhead)).transpose()?.flatten().unwrap_or(0);
    Ok(Some(most.max(stays).saturating_add(beside)))
}

fn milli(quantity: Option<Quantity>) -> i64 {
    quantity.map_or(0, |quantity| quantity.milli_value())
}

/// The shares of all burstable pods together. One whose requests cannot be read asks for nothing.
pub fn burstable_shares<'a>(pods: impl Iterator<Item = &'a Pod>) -> i64 {
    let burstable = pods.filter(|pod| qos_class(pod).is_ok_and(|class| class == QosClass::Burstable));
    let requested = burstable.map(|pod| together(pod, |one| Ok(Some(milli(request(one, "cpu")?)))).unwrap_or_default());
    shares(requested.fold(0, |sum, own| sum.saturating_add(own.unwrap_or(0))))
}

/// The shares of what is promised nothing.
pub fn best_effort() -> GroupLimits {
    GroupLimits { shares: Some(SHARES.0), ..GroupLimits::default() }
}

/// What all pods together may use: `cpu` and `memory` of the node without what is reserved. What is kept free for the
/// sake of eviction is theirs: they are evicted when they use it.
pub fn node_group_limits(cpu: Quantity, memory: Quantity) -> GroupLimits {
    // A reservation that leaves nothing is told at start; a limit of nothing would end every pod.
    let memory = Some(memory.value()).filter(|bytes| *bytes > 0);
    GroupLimits { shares: Some(shares(cpu.milli_value())), quota: None, memory }
}

/// Shares of version 1 as a weight of version 2 (the kubelet's and runc's conversion).
pub fn weight(shares: i64) -> i64 {
    1 + (shares.clamp(SHARES.0, SHARES.1) - SHARES.0) * 9999 / (SHARES.1 - SHARES.0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn pod(spec: Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": spec})).unwrap()
    }

    fn container(name: &str, requests: Value, limits: Value) -> Value {
        json!({"name": name, "resources": {"requests": requests, "limits": limits}})
    }

    #[test]
    fn a_pod_has_what_its_containers_have_together() {
        let limited = container("a", json!({}), json!({"cpu": "500m", "memory": "64Mi"}));
        let asks = container("b", json!({"cpu": "250m"}), json!({}));
        for (containers, shares, quota, memory) in [
            (json!([limited, limited]), 1024, Some(100_000), Some(128 << 20)),
            (json!([limited, asks]), 768, None, None),
            (json!([container("c", json!({}), json!({}))]), 2, None, None),
            (json!([container("c", json!({"memory": "1Mi"}), json!({}))]), 2, None, None),
        ] {
            let found = pod_limits(&pod(json!({"containers": containers})), true).unwrap();
            assert_eq!(found, GroupLimits { shares: Some(shares), quota, memory }, "{containers}");
        }
        let found = pod_limits(&pod(json!({"containers": [limited]})), false).unwrap();
        assert_eq!((found.quota, found.memory), (None, Some(64 << 20)), "quotas are not enforced");
    }

    #[test]
    fn a_pods_overhead_counts_where_its_containers_are_limited() {
        let limited = container("a", json!({}), json!({"cpu": "500m", "memory": "64Mi"}));
        let asks = container("b", json!({"cpu": "500m"}), json!({}));
        for (containers, shares, quota, memory) in [
            (json!([limited]), 768, Some(75_000), Some(80 << 20)),
            (json!([asks]), 768, None, None),
            (json!([container("c", json!({}), json!({}))]), 2, None, None),
        ] {
            let overhead = json!({"cpu": "250m", "memory": "16Mi"});
            let found = pod_limits(&pod(json!({"containers": containers, "overhead": overhead})), true).unwrap();
            assert_eq!(found, GroupLimits { shares: Some(shares), quota, memory }, "{containers}");
        }
    }

    #[test]
    fn an_init_container_counts_while_it_is_more_and_a_sidecar_beside_all() {
        let of = |cpu: &str| json!({"cpu": cpu});
        let mut sidecar = container("s", of("100m"), json!({}));
        sidecar["restartPolicy"] = "Always".into();
        let init = |cpu: &str| container("i", of(cpu), json!({}));
        let app = container("a", of("400m"), json!({}));
        for (inits, milli) in [
            (json!([init("700m")]), 700),
            (json!([init("200m")]), 400),
            (json!([sidecar, init("700m")]), 800),
            (json!([init("450m"), sidecar]), 500),
        ] {
            let found = pod_limits(&pod(json!({"initContainers": inits, "containers": [app]})), true).unwrap();
            assert_eq!(found.shares, Some(milli * 1024 / 1000), "{inits}");
        }
    }

    #[test]
    fn the_burstable_class_has_what_its_pods_ask_for() {
        let burstable = |cpu: &str| pod(json!({"containers": [container("c", json!({"cpu": cpu}), json!({}))]}));
        let full = json!({"cpu": "2", "memory": "1Gi"});
        let guaranteed = pod(json!({"containers": [container("c", full.clone(), full)]}));
        let nothing = pod(json!({"containers": [{"name": "c"}]}));
        let broken = burstable("x");
        let pods = [burstable("500m"), burstable("1"), guaranteed, nothing, broken];
        assert_eq!(burstable_shares(pods.iter()), 1536);
        assert_eq!(burstable_shares(std::iter::empty()), 2);
    }

    #[test]
    fn a_weight_is_that_of_a_kubelet() {
        assert_eq!([2, 1024, 2048, 262_144].map(weight), [1, 39, 79, 10_000]);
        assert_eq!(node_group_limits(Quantity::units(4), Quantity::bytes(1 << 30)).shares, Some(4096));
        assert_eq!(node_group_limits(Quantity::units(4), Quantity::ZERO).memory, None);
    }

    proptest! {
        #[test]
        fn more_shares_never_weigh_less(a in any::<i64>(), b in any::<i64>()) {
            let (least, most) = (a.min(b), a.max(b));
            prop_assert!((1..=10_000).contains(&weight(least)) && weight(least) <= weight(most));
        }

        #[test]
        fn a_pod_has_at_least_what_each_container_has(amounts in prop::collection::vec(1_i64..4000, 1..6)) {
            let containers: Vec<Value> = amounts.iter().enumerate().map(|(at, milli)| {
                let cpu = json!({"cpu": format!("{milli}m"), "memory": "1Mi"});
                container(&format!("c{at}"), cpu.clone(), cpu)
            }).collect();
            let limits = pod_limits(&pod(json!({"containers": containers})), true).unwrap();
            let most = amounts.iter().max().unwrap();
            prop_assert!(limits.quota.unwrap() >= quota(*most) && limits.shares.unwrap() >= shares(*most));
            prop_assert_eq!(limits.memory, Some((amounts.len() as i64) << 20));
        }
    }
}
