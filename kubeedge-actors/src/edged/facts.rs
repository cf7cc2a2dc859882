//! What Edged knows about the node and the running sandbox, and a pod's specification does not say.

use std::net::IpAddr;

use super::quantity::Quantity;

/// The facts that environment, downward API, hosts file and mounts are made from.
#[derive(Clone, Debug, Default)]
pub struct PodFacts {
    /// The node's name.
    pub node_name: String,
    /// The node's addresses, primary first.
    pub host_ips: Vec<IpAddr>,
    /// The pod's addresses, primary first; empty until its sandbox has a network.
    pub pod_ips: Vec<IpAddr>,
    /// The cluster's DNS domain, such as `cluster.local`; empty when there is none.
    pub cluster_domain: String,
    /// What pods may use of the node: the default of a `resourceFieldRef` to a limit that is not set.
    pub allocatable: Allocatable,
    /// Whether the runtime can mount recursively read-only.
    pub recursive_read_only: bool,
    /// Whether it can mount images.
    pub image_volumes: bool,
    /// Whether it can mount parts of them.
    pub image_sub_paths: bool,
    /// Its name and version, for a person; empty when they were not asked for.
    pub runtime: String,
}

/// The node's allocatable resources.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Allocatable {
    /// Cores.
    pub cpu: Quantity,
    /// Bytes of memory.
    pub memory: Quantity,
    /// Bytes of local disk.
    pub ephemeral_storage: Quantity,
}
