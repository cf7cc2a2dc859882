//! What a pod's specification means to the runtime: pure functions, plain structs.

mod hostname;

pub use hostname::{HostnameError, PodHostname, hosts_file, node_hosts_file, pod_hostname};
