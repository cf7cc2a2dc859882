//! The node's own object: what is registered, and the status that is reported. Pure; [`readings`] does the reading.
//!
//! The status is the kubelet's field by field: capacity and allocatable, conditions, addresses, node info, images.
//! Fields that belong to others (`NetworkUnavailable`, attached volumes, users' labels and taints) are not written.

pub mod readings;
pub mod told;

use std::{collections::BTreeMap, net::IpAddr};

use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{
        ContainerImage, DaemonEndpoint, Node, NodeAddress, NodeCondition, NodeDaemonEndpoints, NodeSpec, NodeStatus,
        NodeSystemInfo, Taint,
    },
    apimachinery::pkg::{
        api::resource::Quantity as ApiQuantity,
        apis::meta::v1::{ObjectMeta, Time},
    },
};
use kubeedge_proto::NodeName;

use self::readings::MachineReadings;
use super::{
    admission::Room,
    eviction::{Pressure, Signal, Thresholds},
    facts::Allocatable,
    quantity::Quantity,
    resources::NodeLimits,
};

/// The version that is told as the kubelet's: that of the Kubernetes release whose rules are followed, and ours.
pub const KUBELET_VERSION: &str = concat!("v1.32.10-kubeedge-v", env!("CARGO_PKG_VERSION"));
/// So many images are reported, the greatest first: the kubelet's `nodeStatusMaxImages`.
const MAX_IMAGES: usize = 50;
/// So many names of an image are reported.
const MAX_IMAGE_NAMES: usize = 5;

/// What the operator says about the node.
#[derive(Clone, Debug)]
pub struct NodeSettings {
    /// The node's name.
    pub name: NodeName,
    /// Labels besides the node's own, which win.
    pub labels: BTreeMap<String, String>,
    /// Annotations.
    pub annotations: BTreeMap<String, String>,
    /// Taints to register with.
    pub taints: Vec<Taint>,
    /// Whether pods may be scheduled here from the beginning.
    pub schedulable: bool,
    /// How many pods may be here.
    pub max_pods: u32,
    /// What is kept from pods for the system and for KubeEdge.
    pub reserved: Allocatable,
    /// From where on the node is short of something; also kept from pods.
    pub thresholds: Thresholds,
    /// The port of the kubelet's API that is reported; 0 for none.
    pub kubelet_port: u16,
    /// Whether the `Hostname` address is reported. Not where a gateway stands for the node: an API server would
    /// prefer that name.
    pub hostname_address: bool,
}

impl NodeSettings {
    /// The defaults of `edgecore.yaml` for a node of that name.
    pub fn new(name: NodeName) -> Self {
        Self {
            name,
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            taints: Vec::new(),
            schedulable: true,
            max_pods: 110,
            reserved: Allocatable::default(),
            thresholds: Thresholds::default(),
            kubelet_port: 0,
            hostname_address: true,
        }
    }
}

/// What the runtime says.
#[derive(Clone, Debug, Default)]
pub struct RuntimeFacts {
    /// Name and version, such as `containerd://1.7.1`.
    pub version: String,
    /// Why pods cannot run now: the runtime is away, the network is not ready. Empty when they can.
    pub not_ready: Vec<String>,
    /// The images that it has.
    pub images: Vec<ImageFacts>,
}

/// An image on the node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageFacts {
    /// Names with a digest, then names with a tag.
    pub names: Vec<String>,
    /// Bytes.
    pub size: u64,
}

/// The node object to register.
pub fn node_object(settings: &NodeSettings, status: NodeStatus, readings: &MachineReadings) -> Node {
    let mut taints = settings.taints.clone();
    if !settings.schedulable && !taints.iter().any(|taint| taint.key == UNSCHEDULABLE) {
        taints.push(Taint {
            key: UNSCHEDULABLE.to_owned(),
            effect: "NoSchedule".to_owned(),
            value: None,
            time_added: None,
        });
    }
    let annotations = Some(settings.annotations.clone()).filter(|annotations| !annotations.is_empty());
    Node {
        metadata: ObjectMeta {
            name: Some(settings.name.to_string()),
            labels: Some(labels(settings, readings)),
            annotations,
            ..ObjectMeta::default()
        },
        spec: Some(NodeSpec {
            taints: Some(taints).filter(|taints| !taints.is_empty()),
            unschedulable: if settings.schedulable { None } else { Some(true) },
            ..NodeSpec::default()
        }),
        status: Some(status),
    }
}

const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";

fn labels(settings: &NodeSettings, readings: &MachineReadings) -> BTreeMap<String, String> {
    let own = [
        ("kubernetes.io/hostname", settings.name.as_str()),
        ("kubernetes.io/os", "linux"),
        ("kubernetes.io/arch", readings.architecture),
        ("beta.kubernetes.io/os", "linux"),
        ("beta.kubernetes.io/arch", readings.architecture),
        ("node-role.kubernetes.io/edge", ""),
        ("node-role.kubernetes.io/agent", ""),
    ];
    let mut labels = settings.labels.clone();
    labels.extend(own.map(|(key, value)| (key.to_owned(), value.to_owned())));
    labels
}

/// The status of the node. `previous` is what was reported before: from it comes how long a condition lasts.
pub fn node_status(
    settings: &NodeSettings,
    readings: &MachineReadings,
    addresses: &[IpAddr],
    runtime: &RuntimeFacts,
    pressure: Pressure,
    previous: Option<&NodeStatus>,
    now: Timestamp,
) -> NodeStatus {
    let mut reported: Vec<NodeAddress> = addresses.iter().map(|ip| address("InternalIP", ip.to_string())).collect();
    if settings.hostname_address {
        reported.push(address("Hostname", settings.name.to_string()));
    }
    let port = i32::from(settings.kubelet_port);
    let endpoint = NodeDaemonEndpoints { kubelet_endpoint: Some(DaemonEndpoint { port }) };
    NodeStatus {
        capacity: Some(resources(settings, readings, capacity(readings))),
        allocatable: Some(resources(settings, readings, allocatable(settings, readings))),
        conditions: Some(conditions(runtime, pressure, previous, now)),
        addresses: Some(reported),
        node_info: Some(NodeSystemInfo {
            architecture: readings.architecture.to_owned(),
            boot_id: readings.boot_id.clone(),
            container_runtime_version: runtime.version.clone(),
            kernel_version: readings.kernel_version.clone(),
            kube_proxy_version: String::new(),
            kubelet_version: KUBELET_VERSION.to_owned(),
            machine_id: readings.machine_id.clone(),
            operating_system: "linux".to_owned(),
            os_image: readings.os_image.clone(),
            system_uuid: readings.system_uuid.clone(),
            swap: None,
        }),
        images: Some(images(&runtime.images)),
        daemon_endpoints: Some(endpoint).filter(|_| port != 0),
        ..NodeStatus::default()
    }
}

fn address(type_: &str, address: String) -> NodeAddress {
    NodeAddress { type_: type_.to_owned(), address }
}

/// All that the machine has.
pub fn capacity(readings: &MachineReadings) -> Allocatable {
    Allocatable {
        cpu: Quantity::units(i64::from(readings.cpus)),
        memory: Quantity::bytes(readings.memory),
        ephemeral_storage: Quantity::bytes(readings.disk.capacity),
    }
}

/// What pods may use: the machine without what is reserved, what is kept free, and memory set aside as huge pages.
pub fn allocatable(settings: &NodeSettings, readings: &MachineReadings) -> Allocatable {
    let all = capacity(readings);
    let kept_memory = settings.thresholds.kept(Signal::MemoryAvailable, readings.memory);
    let kept_disk = Quantity::bytes(settings.thresholds.kept(Signal::NodefsAvailable, readings.disk.capacity));
    let huge: u64 = readings.huge_pages.iter().map(|(size, count)| size.saturating_mul(*count)).sum();
    let rest = |all: Quantity, kept: [Quantity; 2]| kept.into_iter().fold(all, Quantity::minus).max(Quantity::bytes(0));
    let kept_memory = Quantity::bytes(kept_memory.saturating_add(huge));
    Allocatable {
        cpu: rest(all.cpu, [settings.reserved.cpu, Quantity::ZERO]),
        memory: rest(all.memory, [settings.reserved.memory, kept_memory]),
        ephemeral_storage: rest(all.ephemeral_storage, [settings.reserved.ephemeral_storage, kept_disk]),
    }
}

/// What limits of containers are computed against.
pub fn node_limits(readings: &MachineReadings, unified: BTreeMap<String, String>) -> NodeLimits {
    NodeLimits {
        memory_capacity: readings.memory,
        huge_page_sizes: readings.huge_pages.keys().copied().collect(),
        unified,
        cpu_quota: true,
    }
}

fn resources(
    settings: &NodeSettings,
    readings: &MachineReadings,
    amounts: Allocatable,
) -> BTreeMap<String, ApiQuantity> {
    named(settings, readings, amounts).into_iter().map(|(name, amount)| (name, amount.to_api())).collect()
}

fn named(settings: &NodeSettings, readings: &MachineReadings, amounts: Allocatable) -> Room {
    let mut resources = Room::from([
        ("cpu".to_owned(), amounts.cpu),
        ("memory".to_owned(), amounts.memory),
        ("ephemeral-storage".to_owned(), amounts.ephemeral_storage),
        ("pods".to_owned(), Quantity::units(i64::from(settings.max_pods))),
    ]);
    for (size, count) in &readings.huge_pages {
        let name = format!("hugepages-{}", Quantity::bytes(*size));
        resources.insert(name, Quantity::bytes(size.saturating_mul(*count)));
    }
    resources
}

/// What pods may use, by the names of resources.
pub fn allocatable_resources(settings: &NodeSettings, readings: &MachineReadings) -> Room {
    named(settings, readings, allocatable(settings, readings))
}

fn conditions(
    runtime: &RuntimeFacts,
    pressure: Pressure,
    previous: Option<&NodeStatus>,
    now: Timestamp,
) -> Vec<NodeCondition> {
    let ready = runtime.not_ready.is_empty();
    let not_ready = runtime.not_ready.join(", ");
    let rows: [(&str, bool, &str, &str); 4] = [
        match pressure.memory {
            true => {
                ("MemoryPressure", true, "KubeletHasInsufficientMemory", "kubelet has insufficient memory available")
            }
            false => ("MemoryPressure", false, "KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
        },
        match pressure.disk {
            true => ("DiskPressure", true, "KubeletHasDiskPressure", "kubelet has disk pressure"),
            false => ("DiskPressure", false, "KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
        },
        match pressure.pids {
            true => ("PIDPressure", true, "KubeletHasInsufficientPID", "kubelet has insufficient PID available"),
            false => ("PIDPressure", false, "KubeletHasSufficientPID", "kubelet has sufficient PID available"),
        },
        match ready {
            true => ("Ready", true, "KubeletReady", "kubelet is posting ready status"),
            false => ("Ready", false, "KubeletNotReady", not_ready.as_str()),
        },
    ];
    let before = |type_: &str| previous?.conditions.iter().flatten().find(|condition| condition.type_ == type_);
    rows.into_iter()
        .map(|(type_, status, reason, message)| {
            let status = if status { "True" } else { "False" };
            let since = before(type_).filter(|before| before.status == status);
            let since = since.and_then(|before| before.last_transition_time.clone()).unwrap_or(Time(now));
            NodeCondition {
                type_: type_.to_owned(),
                status: status.to_owned(),
                reason: Some(reason.to_owned()),
                message: Some(message.to_owned()),
                last_heartbeat_time: Some(Time(now)),
                last_transition_time: Some(since),
            }
        })
        .collect()
}

fn images(images: &[ImageFacts]) -> Vec<ContainerImage> {
    let mut sorted: Vec<&ImageFacts> = images.iter().filter(|image| !image.names.is_empty()).collect();
    // By name too: the runtime lists in any order, and an order that changes would be a status that changes.
    sorted.sort_by(|a, b| b.size.cmp(&a.size).then_with(|| a.names.cmp(&b.names)));
    let reported = sorted.into_iter().take(MAX_IMAGES).map(|image| ContainerImage {
        names: Some(image.names.iter().take(MAX_IMAGE_NAMES).cloned().collect()),
        size_bytes: Some(i64::try_from(image.size).unwrap_or(i64::MAX)),
    });
    reported.collect()
}

/// Whether two statuses say different things; when a condition was last looked at is none.
pub fn differs(old: &NodeStatus, new: &NodeStatus) -> bool {
    let silent = |status: &NodeStatus| {
        let mut status = status.clone();
        for condition in status.conditions.iter_mut().flatten() {
            condition.last_heartbeat_time = None;
        }
        if let Some(conditions) = &mut status.conditions {
            conditions.sort_by(|a, b| a.type_.cmp(&b.type_));
        }
        status
    };
    silent(old) != silent(new)
}

#[cfg(test)]
mod tests;
