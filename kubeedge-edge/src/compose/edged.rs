//! Edged's settings out of the configuration file.

use std::net::ToSocketAddrs;

use anyhow::{Result, ensure};
use k8s_openapi::api::core::v1::Taint;
use kubeedge_actors::edged::{
    EdgedConfig,
    housekeeping::{HousekeepingPolicy, ImagePolicy, LogPolicy},
    node::NodeSettings,
    resources::CgroupDriver,
};
use kubeedge_proto::NodeName;

use crate::config::{self, EdgeCore, KubeletConfig};

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
        taints: kubelet.register_with_taints.iter().map(taint).collect(),
        schedulable: edged.register_schedulable,
        max_pods: kubelet.max_pods,
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
        report_events: edged.report_event,
        housekeeping: housekeeping(kubelet),
        ..EdgedConfig::new(node)
    })
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
