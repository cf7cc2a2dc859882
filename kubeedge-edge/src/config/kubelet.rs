//! `modules.edged.tailoredKubeletConfig`: settings by the names and with the defaults that kubelet's configuration has.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
};

use kubeedge_actors::config::{Bytes, GoDuration, Taint, Threshold, UnixEndpoint, optional, or_default, parsed};
use serde::{Deserialize, Deserializer, de::Error as _};

/// What a kubelet can be told to enforce.
const ENFORCED: [&str; 6] =
    ["pods", "none", "system-reserved", "system-reserved-compressible", "kube-reserved", "kube-reserved-compressible"];

/// The port of the node's own API.
const NODE_API_PORT: u16 = 10350;

/// `modules.edged.tailoredKubeletConfig`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct KubeletConfig {
    /// The container runtime's CRI socket.
    #[serde(deserialize_with = "optional")]
    pub container_runtime_endpoint: Option<UnixEndpoint>,
    /// How the runtime names control groups; must be as in the runtime's own configuration.
    pub cgroup_driver: CgroupDriver,
    /// How many pods this node takes.
    #[serde(deserialize_with = "max_pods")]
    pub max_pods: u32,
    /// Where the containers' logs are written: a folder with the name `pods`.
    pub pod_logs_dir: PathBuf,
    /// Taints that the node registers with.
    #[serde(deserialize_with = "or_default")]
    pub register_with_taints: Vec<Taint>,
    /// Name servers for pods with DNS policy ClusterFirst.
    #[serde(rename = "clusterDNS", deserialize_with = "or_default")]
    pub cluster_dns: Vec<IpAddr>,
    /// The cluster's domain, searched first by such pods.
    pub cluster_domain: String,
    /// The name server configuration that pods with DNS policy Default inherit; empty: none.
    pub resolv_conf: PathBuf,
    /// Kernel parameters beyond the safe ones that pods may set in their own namespaces; `*` at the end for a group.
    #[serde(deserialize_with = "or_default")]
    pub allowed_unsafe_sysctls: Vec<String>,
    /// Where the node's own API is served: the loopback interface unless somebody wants it seen.
    #[serde(deserialize_with = "parsed")]
    pub address: IpAddr,
    /// Its port; 0: it is not served.
    pub read_only_port: u16,
    /// A container log of this size is rotated.
    pub container_log_max_size: Bytes,
    /// Files of one container log, the one that is written included.
    #[serde(deserialize_with = "log_files")]
    pub container_log_max_files: u32,
    /// Pause between two looks at the logs.
    #[serde(deserialize_with = "pause")]
    pub container_log_monitor_interval: GoDuration,
    /// From this share of the images' disk on images are removed, percent; 100: never.
    #[serde(rename = "imageGCHighThresholdPercent", deserialize_with = "percent")]
    pub image_gc_high_threshold_percent: u8,
    /// Down to this share.
    #[serde(rename = "imageGCLowThresholdPercent", deserialize_with = "percent")]
    pub image_gc_low_threshold_percent: u8,
    /// An image younger than this stays.
    #[serde(rename = "imageMinimumGCAge")]
    pub image_minimum_gc_age: GoDuration,
    /// An image that was not used for this long goes; 0: never for that.
    #[serde(rename = "imageMaximumGCAge")]
    pub image_maximum_gc_age: GoDuration,
    /// What must be left of memory, disk and process ids, by the names of signals: below it pods end at once. A map
    /// takes the place of all defaults.
    pub eviction_hard: Option<BTreeMap<String, Threshold>>,
    /// The same, below which pods end after a while.
    #[serde(deserialize_with = "or_default")]
    pub eviction_soft: BTreeMap<String, Threshold>,
    /// That while.
    #[serde(deserialize_with = "or_default")]
    pub eviction_soft_grace_period: BTreeMap<String, GoDuration>,
    /// How much more has to be left until it is over.
    #[serde(deserialize_with = "or_default")]
    pub eviction_minimum_reclaim: BTreeMap<String, Threshold>,
    /// How long a condition of the node stays after its threshold was last met.
    pub eviction_pressure_transition_period: GoDuration,
    /// The longest time that a pod which is evicted over a soft threshold gets, seconds.
    pub eviction_max_pod_grace_period: u32,
    /// Kept from pods for KubeEdge, by the names of resources.
    #[serde(deserialize_with = "or_default")]
    pub kube_reserved: BTreeMap<String, String>,
    /// Kept from pods for the system.
    #[serde(deserialize_with = "or_default")]
    pub system_reserved: BTreeMap<String, String>,
    /// Processes and threads that one pod may have; -1: as many as the node.
    #[serde(deserialize_with = "pod_pids")]
    pub pod_pids_limit: Option<u32>,
    /// Whether control groups of pods and of their classes are limited as well, not only those of containers.
    #[serde(rename = "cgroupsPerQOS")]
    pub cgroups_per_qos: bool,
    /// What is held to what is left for it: `pods`, all together, or nothing.
    #[serde(deserialize_with = "enforced")]
    pub enforce_node_allocatable: Vec<String>,
    /// Whether images are fetched one after the other.
    pub serialize_image_pulls: bool,
    /// How many images are fetched at the same time otherwise.
    #[serde(deserialize_with = "some_pulls")]
    pub max_parallel_image_pulls: Option<u32>,
    /// How long pods may take to end when the machine goes down, all together; 0: they are not ended.
    pub shutdown_grace_period: GoDuration,
    /// How much of that is the critical pods'.
    pub shutdown_grace_period_critical_pods: GoDuration,
    /// The folder of static pods' manifests; need not be there. Empty: none.
    pub static_pod_path: PathBuf,
}

impl Default for KubeletConfig {
    fn default() -> Self {
        Self {
            container_runtime_endpoint: None,
            cgroup_driver: CgroupDriver::Cgroupfs,
            max_pods: 110,
            pod_logs_dir: "/var/log/pods".into(),
            register_with_taints: Vec::new(),
            cluster_dns: Vec::new(),
            cluster_domain: String::new(),
            resolv_conf: "/etc/resolv.conf".into(),
            allowed_unsafe_sysctls: Vec::new(),
            address: Ipv4Addr::LOCALHOST.into(),
            read_only_port: NODE_API_PORT,
            container_log_max_size: Bytes(10 << 20),
            container_log_max_files: 5,
            container_log_monitor_interval: GoDuration::seconds(10),
            image_gc_high_threshold_percent: 85,
            image_gc_low_threshold_percent: 80,
            image_minimum_gc_age: GoDuration::seconds(120),
            image_maximum_gc_age: GoDuration::seconds(0),
            eviction_hard: None,
            eviction_soft: BTreeMap::new(),
            eviction_soft_grace_period: BTreeMap::new(),
            eviction_minimum_reclaim: BTreeMap::new(),
            eviction_pressure_transition_period: GoDuration::seconds(300),
            eviction_max_pod_grace_period: 0,
            kube_reserved: BTreeMap::new(),
            system_reserved: BTreeMap::new(),
            pod_pids_limit: None,
            cgroups_per_qos: true,
            enforce_node_allocatable: vec!["pods".to_owned()],
            serialize_image_pulls: true,
            max_parallel_image_pulls: None,
            shutdown_grace_period: GoDuration::seconds(0),
            shutdown_grace_period_critical_pods: GoDuration::seconds(0),
            static_pod_path: "/etc/kubeedge/manifests".into(),
        }
    }
}

/// How control groups are named.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CgroupDriver {
    /// As folders.
    #[default]
    Cgroupfs,
    /// As systemd slices and scopes.
    Systemd,
}

fn max_pods<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    match u32::deserialize(deserializer)? {
        0 => Err(D::Error::custom("0 is not valid, expected a number of pods of at least 1")),
        pods => Ok(pods),
    }
}

fn log_files<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    match u32::deserialize(deserializer)? {
        files @ 0..=1 => {
            Err(D::Error::custom(format!("{files} is not valid, expected a number of files of at least 2")))
        }
        files => Ok(files),
    }
}

fn pod_pids<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u32>, D::Error> {
    match i64::deserialize(deserializer)? {
        -1 => Ok(None),
        limit => match u32::try_from(limit).ok().filter(|limit| *limit > 0) {
            Some(limit) => Ok(Some(limit)),
            None => Err(D::Error::custom(format!("{limit} is not valid, expected a number of processes, or -1"))),
        },
    }
}

/// The names that a kubelet knows. Only `pods` means something here: what the system has is in groups of its own.
fn enforced<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    let names = Option::<Vec<String>>::deserialize(deserializer)?.unwrap_or_else(|| vec!["pods".to_owned()]);
    match names.iter().find(|name| !ENFORCED.contains(&name.as_str())) {
        None => Ok(names),
        Some(other) => {
            Err(D::Error::custom(format!("{other:?} is not valid, expected some of {}", ENFORCED.join(", "))))
        }
    }
}

fn some_pulls<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u32>, D::Error> {
    match Option::<u32>::deserialize(deserializer)? {
        Some(0) => Err(D::Error::custom("0 is not valid, expected a number of images of at least 1")),
        pulls => Ok(pulls),
    }
}

fn percent<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u8, D::Error> {
    match u32::deserialize(deserializer)? {
        percent @ 0..=100 => Ok(u8::try_from(percent).unwrap_or(100)),
        percent => Err(D::Error::custom(format!("{percent} is not valid, expected a percentage from 0 to 100"))),
    }
}

/// A pause of nothing would be no pause.
fn pause<'de, D: Deserializer<'de>>(deserializer: D) -> Result<GoDuration, D::Error> {
    let pause: GoDuration = parsed(deserializer)?;
    if pause.duration().is_zero() {
        return Err(D::Error::custom("0 is not valid, expected a span of time such as \"10s\""));
    }
    Ok(pause)
}
