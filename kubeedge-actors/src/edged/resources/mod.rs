//! What a pod's specification means to the container runtime.
//!
//! Pure functions from the API's types to CRI's, with the kubelet's rules. What depends on the node comes in as an
//! argument. An error is of the specification: no waiting mends it.

mod cgroup;
mod cgroup_end;
mod dns;
mod group_files;
mod group_limits;
mod hostname;
mod linux;
mod ports;
mod qos;
mod security;
mod sysctls;

pub use cgroup::{CgroupDriver, cgroup_parent, limit_pod_pids, pod_processes};
pub use cgroup_end::end_pod_cgroups;
pub use dns::{DnsError, NodeDns, PodDns, ResolvConf, pod_dns};
pub use group_files::{Change, Groups};
pub use group_limits::{GroupLimits, best_effort, burstable_shares, node_group_limits, pod_limits, weight};
pub use hostname::{HostnameError, PodHostname, hosts_file, node_hosts_file, pod_hostname};
pub use linux::{NodeLimits, container_resources, sandbox_overhead, sandbox_resources};
pub use ports::{InvalidPort, port_mappings, ports_conflict};
pub use qos::{InvalidResource, QosClass, qos_class};
pub(crate) use qos::{limit, request};
pub use security::{ImageUser, SecurityError, container_security, namespace_options, sandbox_security};
pub use sysctls::{SysctlForbidden, pod_sysctls};
