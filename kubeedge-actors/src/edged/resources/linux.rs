//! Shares, quotas, limits and the order in which the kernel kills when memory runs out.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod};
use kubeedge_proto::cri::{HugepageLimit, LinuxContainerResources};

use super::qos::{InvalidResource, QosClass, limit, overhead, qos_class, request};

/// The kernel's period of a cpu quota, microseconds.
pub(super) const PERIOD: i64 = 100_000;
/// The least quota that the kernel takes, microseconds.
const LEAST_QUOTA: i64 = 1000;
/// The bounds of `cpu.shares`.
pub(super) const SHARES: (i64, i64) = (2, 262_144);
/// `oom_score_adj` of pods that are guaranteed or critical to the node.
const OOM_GUARANTEED: i64 = -997;
/// `oom_score_adj` of pods that are promised nothing.
const OOM_BEST_EFFORT: i64 = 1000;

/// What the node's machine says about limits.
#[derive(Clone, Debug, Default)]
pub struct NodeLimits {
    /// The node's memory, bytes.
    pub memory_capacity: u64,
    /// The sizes of huge pages that the kernel offers, bytes: each gets a limit, zero if the container has none.
    pub huge_page_sizes: Vec<u64>,
    /// Files of cgroup v2 to set on every container, such as `memory.oom.group`; empty on v1.
    pub unified: BTreeMap<String, String>,
    /// Whether cpu limits are enforced (`cpuCFSQuota`).
    pub cpu_quota: bool,
}

/// The resources of a container.
pub fn container_resources(
    pod: &Pod,
    container: &Container,
    node: &NodeLimits,
) -> Result<LinuxContainerResources, InvalidResource> {
    let milli = |quantity: Option<crate::edged::quantity::Quantity>| quantity.map_or(0, |q| q.milli_value());
    let memory = limit(container, "memory")?.map_or(0, |quantity| quantity.value());
    let quota = if node.cpu_quota { quota(milli(limit(container, "cpu")?)) } else { 0 };
    Ok(LinuxContainerResources {
        cpu_shares: shares(milli(request(container, "cpu")?)),
        cpu_period: if node.cpu_quota { PERIOD } else { 0 },
        cpu_quota: quota,
        memory_limit_in_bytes: memory,
        oom_score_adj: oom_score_adj(pod, container, node.memory_capacity)?,
        hugepage_limits: huge_pages(container, &node.huge_page_sizes)?,
        unified: node.unified.clone().into_iter().collect(),
        ..LinuxContainerResources::default()
    })
}

/// The resources of the whole pod, for runtimes that size a sandbox by them. A limit is there only if every container
/// that runs has it.
pub fn sandbox_resources(pod: &Pod, node: &NodeLimits) -> Result<LinuxContainerResources, InvalidResource> {
    let Some(spec) = &pod.spec else { return Ok(LinuxContainerResources::default()) };
    let sidecars = spec.init_containers.iter().flatten().filter(|container| is_sidecar(container));
    let (mut request_milli, mut limit_milli, mut memory) = (0_i64, Some(0_i64), Some(0_i64));
    let sum = |sum: Option<i64>, next: Option<i64>| Some(sum?.saturating_add(next?));
    for container in spec.containers.iter().chain(sidecars) {
        let requested = request(container, "cpu")?.map_or(0, |quantity| quantity.milli_value());
        request_milli = request_milli.saturating_add(requested);
        limit_milli = sum(limit_milli, limit(container, "cpu")?.map(|quantity| quantity.milli_value()));
        memory = sum(memory, limit(container, "memory")?.map(|quantity| quantity.value()));
    }
    Ok(LinuxContainerResources {
        cpu_shares: shares(request_milli),
        cpu_period: if node.cpu_quota { PERIOD } else { 0 },
        cpu_quota: if node.cpu_quota { quota(limit_milli.unwrap_or(0)) } else { 0 },
        memory_limit_in_bytes: memory.unwrap_or(0),
        ..LinuxContainerResources::default()
    })
}

/// What the sandbox takes beside that (`spec.overhead`), for runtimes that size it by that, too.
pub fn sandbox_overhead(pod: &Pod, node: &NodeLimits) -> Result<Option<LinuxContainerResources>, InvalidResource> {
    let Some(overhead) = overhead(pod) else { return Ok(None) };
    let milli = limit(&overhead, "cpu")?.map_or(0, |quantity| quantity.milli_value());
    Ok(Some(LinuxContainerResources {
        cpu_shares: shares(milli),
        cpu_period: if node.cpu_quota { PERIOD } else { 0 },
        cpu_quota: if node.cpu_quota { quota(milli) } else { 0 },
        memory_limit_in_bytes: limit(&overhead, "memory")?.map_or(0, |quantity| quantity.value()),
        ..LinuxContainerResources::default()
    }))
}

pub(super) fn shares(milli: i64) -> i64 {
    (milli.saturating_mul(1024) / 1000).clamp(SHARES.0, SHARES.1)
}

pub(super) fn quota(milli: i64) -> i64 {
    if milli == 0 { 0 } else { (milli.saturating_mul(PERIOD) / 1000).max(LEAST_QUOTA) }
}

fn is_sidecar(container: &Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

fn oom_score_adj(pod: &Pod, container: &Container, capacity: u64) -> Result<i64, InvalidResource> {
    let Some(spec) = &pod.spec else { return Ok(OOM_BEST_EFFORT) };
    if spec.priority_class_name.as_deref() == Some("system-node-critical") {
        return Ok(OOM_GUARANTEED);
    }
    match qos_class(pod)? {
        QosClass::Guaranteed => return Ok(OOM_GUARANTEED),
        QosClass::BestEffort => return Ok(OOM_BEST_EFFORT),
        QosClass::Burstable => {}
    }
    let memory = |container: &Container| Ok(request(container, "memory")?.map_or(0, |quantity| quantity.value()));
    let mut requested = memory(container)?;
    let sidecar = spec.init_containers.iter().flatten().any(|init| init.name == container.name && is_sidecar(init));
    if sidecar {
        // A sidecar is not killed before the containers that it serves.
        let served: Result<Vec<i64>, InvalidResource> = spec.containers.iter().map(memory).collect();
        requested = requested.max(served?.into_iter().min().unwrap_or(0));
    }
    let share = i128::from(requested) * 1000 / i128::from(capacity.max(1));
    // Between what is guaranteed and what is promised nothing, both exclusive.
    let adjusted = (1000 - share.clamp(0, 1000)) as i64;
    Ok(adjusted.clamp(1000 + OOM_GUARANTEED, OOM_BEST_EFFORT - 1))
}

fn huge_pages(container: &Container, sizes: &[u64]) -> Result<Vec<HugepageLimit>, InvalidResource> {
    let limits = container.resources.as_ref().and_then(|resources| resources.limits.as_ref());
    // By page size in bytes.
    let mut bytes: BTreeMap<u64, u64> = sizes.iter().map(|size| (*size, 0)).collect();
    for (name, size) in
        limits.into_iter().flatten().filter_map(|(name, _)| Some((name, name.strip_prefix("hugepages-")?)))
    {
        let quantity = size.parse::<crate::edged::quantity::Quantity>();
        let page = quantity.map_err(|source| InvalidResource {
            container: container.name.clone(),
            section: "limits",
            resource: name.clone(),
            source,
        })?;
        let limit = limit(container, name)?.map_or(0, |quantity| quantity.value());
        bytes.insert(u64::try_from(page.value()).unwrap_or(0), u64::try_from(limit).unwrap_or(0));
    }
    Ok(bytes.into_iter().map(|(size, limit)| HugepageLimit { page_size: page_size(size), limit }).collect())
}

/// `2MB`, as the kernel names its files.
fn page_size(bytes: u64) -> String {
    match bytes {
        b if b >= 1 << 30 && b % (1 << 30) == 0 => format!("{}GB", b >> 30),
        b if b >= 1 << 20 && b % (1 << 20) == 0 => format!("{}MB", b >> 20),
        b => format!("{}KB", b >> 10),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn node() -> NodeLimits {
        NodeLimits {
            memory_capacity: 4 << 30,
            huge_page_sizes: vec![2 << 20, 1 << 30],
            unified: BTreeMap::new(),
            cpu_quota: true,
        }
    }

    fn pod(containers: Value) -> Pod {
        serde_json::from_value(json!({"spec": {"containers": containers}})).unwrap()
    }

    fn of(requests: Value, limits: Value) -> LinuxContainerResources {
        let pod = pod(json!([{"name": "c", "resources": {"requests": requests, "limits": limits}}]));
        container_resources(&pod, &pod.spec.as_ref().unwrap().containers[0], &node()).unwrap()
    }

    #[test]
    fn cpu_becomes_shares_and_a_quota() {
        for (requests, limits, shares, quota) in [
            (json!({}), json!({}), 2, 0),
            (json!({"cpu": "1"}), json!({}), 1024, 0),
            (json!({"cpu": "100m"}), json!({"cpu": "500m"}), 102, 50_000),
            (json!({}), json!({"cpu": "2"}), 2048, 200_000),
            (json!({"cpu": "1m"}), json!({"cpu": "1m"}), 2, 1000),
            (json!({"cpu": "9999"}), json!({}), 262_144, 0),
        ] {
            let resources = of(requests, limits);
            assert_eq!((resources.cpu_shares, resources.cpu_quota, resources.cpu_period), (shares, quota, 100_000));
        }
        let mut node = node();
        node.cpu_quota = false;
        let pod = pod(json!([{"name": "c", "resources": {"limits": {"cpu": "1"}}}]));
        let resources = container_resources(&pod, &pod.spec.as_ref().unwrap().containers[0], &node).unwrap();
        assert_eq!((resources.cpu_quota, resources.cpu_period, resources.cpu_shares), (0, 0, 1024));
    }

    #[test]
    fn memory_and_huge_pages_become_limits() {
        let resources = of(json!({}), json!({"memory": "64Mi", "hugepages-2Mi": "4Mi"}));
        assert_eq!(resources.memory_limit_in_bytes, 64 << 20);
        let pages: Vec<_> = resources.hugepage_limits.iter().map(|h| (h.page_size.as_str(), h.limit)).collect();
        assert_eq!(pages, [("2MB", 4 << 20), ("1GB", 0)]);
        assert_eq!(page_size(64 << 10), "64KB");
    }

    #[test]
    fn the_kernel_kills_in_the_order_of_the_classes() {
        let full = json!({"cpu": "1", "memory": "1Gi"});
        assert_eq!(of(json!({}), json!({})).oom_score_adj, 1000);
        assert_eq!(of(full.clone(), full).oom_score_adj, -997);
        assert_eq!(of(json!({"memory": "1Gi"}), json!({})).oom_score_adj, 750);
        assert_eq!(of(json!({"cpu": "1"}), json!({})).oom_score_adj, 999);
        assert_eq!(of(json!({"memory": "4Gi"}), json!({})).oom_score_adj, 3);
        let mut critical = pod(json!([{"name": "c"}]));
        critical.spec.as_mut().unwrap().priority_class_name = Some("system-node-critical".to_owned());
        let container = critical.spec.as_ref().unwrap().containers[0].clone();
        assert_eq!(container_resources(&critical, &container, &node()).unwrap().oom_score_adj, -997);
    }

    #[test]
    fn a_sidecar_lives_as_long_as_what_it_serves() {
        let pod: Pod = serde_json::from_value(json!({"spec": {
            "containers": [{"name": "c", "resources": {"requests": {"memory": "2Gi"}}}],
            "initContainers": [{"name": "s", "restartPolicy": "Always", "resources": {"requests": {"memory": "1Gi"}}}],
        }}))
        .unwrap();
        let sidecar = &pod.spec.as_ref().unwrap().init_containers.as_ref().unwrap()[0];
        assert_eq!(container_resources(&pod, sidecar, &node()).unwrap().oom_score_adj, 500);
    }

    #[test]
    fn a_sandbox_is_sized_by_all_that_runs_in_it() {
        let limited = json!({"name": "c", "resources": {"limits": {"cpu": "1", "memory": "1Mi"}}});
        let free = json!({"name": "d", "resources": {"requests": {"cpu": "500m"}}});
        let both = sandbox_resources(&pod(json!([limited, limited])), &node()).unwrap();
        assert_eq!((both.cpu_shares, both.cpu_quota, both.memory_limit_in_bytes), (2048, 200_000, 2 << 20));
        let open = sandbox_resources(&pod(json!([limited, free])), &node()).unwrap();
        assert_eq!((open.cpu_shares, open.cpu_quota, open.memory_limit_in_bytes), (1536, 0, 0));
        let mut heavy = pod(json!([limited]));
        assert_eq!(sandbox_overhead(&heavy, &node()).unwrap(), None);
        heavy.spec.as_mut().unwrap().overhead =
            serde_json::from_value(json!({"cpu": "250m", "memory": "64Mi"})).unwrap();
        let beside = sandbox_overhead(&heavy, &node()).unwrap().unwrap();
        assert_eq!((beside.cpu_shares, beside.cpu_quota, beside.memory_limit_in_bytes), (256, 25_000, 64 << 20));
        assert_eq!(sandbox_resources(&heavy, &node()).unwrap().memory_limit_in_bytes, 1 << 20);
    }

    proptest! {
        #[test]
        fn scores_stay_between_the_classes(memory in 0_u64..(1 << 50), capacity in 0_u64..(1 << 50)) {
            let mut node = node();
            node.memory_capacity = capacity;
            let requests = json!({"cpu": "1m", "memory": memory.to_string()});
            let pod = pod(json!([{"name": "c", "resources": {"requests": requests}}]));
            let adj = container_resources(&pod, &pod.spec.as_ref().unwrap().containers[0], &node)?.oom_score_adj;
            prop_assert!((3..=999).contains(&adj));
        }
    }
}
