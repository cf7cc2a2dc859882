//! Edged's settings out of the configuration file.

use std::{collections::BTreeMap, net::ToSocketAddrs};

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::{api::core::v1::Taint, apimachinery::pkg::api::resource::Quantity as ApiQuantity};
use kubeedge_actors::config::Threshold;
use kubeedge_actors::edged::{
    EdgedConfig,
    eviction::{Amount, ThresholdMaps, Thresholds},
    facts::Allocatable,
    housekeeping::{HousekeepingPolicy, ImagePolicy, LogPolicy},
    node::NodeSettings,
    quantity::Quantity,
    resources::CgroupDriver,
};
use kubeedge_proto::NodeName;

use crate::config::{self, EdgeCore, KubeletConfig};

/// Images that are fetched at the same time where the file says only that it may be more than one.
const PARALLEL_PULLS: usize = 10;

/// What the file says about pods, for the node that the certificate names.
pub(super) fn settings(config: &EdgeCore, node: &NodeName) -> Result<EdgedConfig> {
    let edged = &config.modules.edged;
    let kubelet = &edged.tailored_kubelet_config;
    let taint = |taint: &kubeedge_actors::config::Taint| Taint {
        key: taint.key.clone(),
        value: Some(taint.value.clone()).filter(|value| !value.is_empty()),
        effect: taint.effect.as_str().to_owned(),
        time_added: None,
    };
    let node = NodeSettings {
        labels: edged.node_labels.clone(),
        annotations: edged.node_annotations.clone(),
        taints: kubelet.register_with_taints.iter().map(taint).collect(),
        schedulable: edged.register_schedulable,
        max_pods: kubelet.max_pods,
        thresholds: thresholds(kubelet)?,
        reserved: reserved(kubelet)?,
        ..NodeSettings::new(node.clone())
    };
    // Kubelet's layout: `pods` and `containers` side by side.
    let logs = &kubelet.pod_logs_dir;
    ensure!(
        logs.file_name().is_some_and(|name| name == "pods"),
        "modules.edged.tailoredKubeletConfig.podLogsDir is {}, expected a folder with the name pods, such as \
         /var/log/pods",
        logs.display()
    );
    let log_dir = logs.parent().unwrap_or(logs).to_owned();
    let cloud = config.modules.edge_hub.websocket.server.to_string();
    if let Some(other) = kubelet.enforce_node_allocatable.iter().find(|name| name.contains("reserved")) {
        tracing::warn!("enforceNodeAllocatable: {other} has no effect: what is reserved is kept from pods only");
    }
    Ok(EdgedConfig {
        endpoint: format!("unix://{}", edged.runtime_endpoint().display()),
        root_dir: edged.root_directory.clone(),
        log_dir,
        node_ip: edged.node_ip,
        // A name that does not resolve now is no reason not to start: the default route does as well.
        cloud: cloud.to_socket_addrs().ok().and_then(|mut addresses| addresses.next()),
        cgroup_driver: match kubelet.cgroup_driver {
            config::CgroupDriver::Cgroupfs => CgroupDriver::Cgroupfs,
            config::CgroupDriver::Systemd => CgroupDriver::Systemd,
        },
        cluster_dns: kubelet.cluster_dns.clone(),
        cluster_domain: kubelet.cluster_domain.clone(),
        resolv_conf: kubelet.resolv_conf.clone(),
        allowed_sysctls: kubelet.allowed_unsafe_sysctls.clone(),
        pod_pids: kubelet.pod_pids_limit,
        cgroups_per_qos: kubelet.cgroups_per_qos,
        enforce_allocatable: kubelet.enforce_node_allocatable.iter().any(|name| name == "pods"),
        report_events: edged.report_event,
        housekeeping: housekeeping(kubelet),
        parallel_pulls: match kubelet.max_parallel_image_pulls.filter(|_| !kubelet.serialize_image_pulls) {
            Some(pulls) => usize::try_from(pulls).unwrap_or(PARALLEL_PULLS),
            None if kubelet.serialize_image_pulls => 1,
            None => PARALLEL_PULLS,
        },
        static_pods: Some(kubelet.static_pod_path.clone()).filter(|path| !path.as_os_str().is_empty()),
        ..EdgedConfig::new(node)
    })
}

/// From where on the node is short of something.
fn thresholds(kubelet: &KubeletConfig) -> Result<Thresholds> {
    let amount = |threshold: &Threshold| match threshold {
        Threshold::Amount(amount) => Amount::Fixed(*amount),
        Threshold::PerMille(share) => Amount::PerMille(*share),
    };
    let amounts = |map: &BTreeMap<String, Threshold>| -> BTreeMap<String, Amount> {
        map.iter().map(|(name, threshold)| (name.clone(), amount(threshold))).collect()
    };
    let graces = &kubelet.eviction_soft_grace_period;
    let maps = ThresholdMaps {
        hard: kubelet.eviction_hard.as_ref().map(amounts),
        soft: amounts(&kubelet.eviction_soft),
        soft_grace: graces.iter().map(|(name, grace)| (name.clone(), grace.duration())).collect(),
        reclaim: amounts(&kubelet.eviction_minimum_reclaim),
    };
    let transition = kubelet.eviction_pressure_transition_period.duration();
    Thresholds::of(&maps, transition, kubelet.eviction_max_pod_grace_period)
        .context("modules.edged.tailoredKubeletConfig")
}

/// What is kept from pods for KubeEdge and for the system.
fn reserved(kubelet: &KubeletConfig) -> Result<Allocatable> {
    let mut sum = Allocatable::default();
    for (field, map) in [("kubeReserved", &kubelet.kube_reserved), ("systemReserved", &kubelet.system_reserved)] {
        for (name, amount) in map {
            let path = || format!("modules.edged.tailoredKubeletConfig.{field}.{name}");
            let amount = Quantity::from_api(&ApiQuantity(amount.clone())).with_context(path)?;
            let kept = match name.as_str() {
                "cpu" => &mut sum.cpu,
                "memory" => &mut sum.memory,
                "ephemeral-storage" => &mut sum.ephemeral_storage,
                // Process ids are watched, and kept for nobody.
                "pid" => continue,
                _ => bail!("{}: expected cpu, memory, ephemeral-storage or pid", path()),
            };
            *kept = kept.plus(amount);
        }
    }
    Ok(sum)
}

/// How large logs and images may become.
fn housekeeping(kubelet: &KubeletConfig) -> HousekeepingPolicy {
    let max_age = Some(kubelet.image_maximum_gc_age.duration()).filter(|age| !age.is_zero());
    HousekeepingPolicy {
        logs: LogPolicy {
            max_size: kubelet.container_log_max_size.0,
            max_files: usize::try_from(kubelet.container_log_max_files).unwrap_or(usize::MAX),
            interval: kubelet.container_log_monitor_interval.duration(),
        },
        images: ImagePolicy {
            high_percent: kubelet.image_gc_high_threshold_percent,
            low_percent: kubelet.image_gc_low_threshold_percent.min(kubelet.image_gc_high_threshold_percent),
            min_age: kubelet.image_minimum_gc_age.duration(),
            max_age,
        },
    }
}

/// A container runtime in memory that has every image.
#[cfg(feature = "fake-runtime")]
pub(super) fn in_memory() -> std::sync::Arc<kubeedge_actors::edged::fake::FakeRuntime> {
    let runtime = kubeedge_actors::edged::fake::FakeRuntime::new(std::sync::Arc::new(jiff::Timestamp::now));
    runtime.publish_every_image();
    std::sync::Arc::new(runtime)
}
