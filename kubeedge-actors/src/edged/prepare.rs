//! What Edged needs to know before it starts: the operator's settings and the machine.

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
};

use thiserror::Error;

use super::{
    admission::Room,
    cri::{CriRuntime, InvalidEndpoint},
    env::KubernetesService,
    facts::Allocatable,
    housekeeping::HousekeepingPolicy,
    node::{
        NodeSettings, allocatable, allocatable_resources, capacity, node_limits,
        readings::{MachinePaths, MachineReadings, ReadingError},
    },
    provision::NodeSetup,
    resources::{CgroupDriver, GroupLimits, node_group_limits},
    runtime::Runtime,
};
use crate::route::{address_towards, own_address};

/// The operator's settings.
#[derive(Clone, Debug)]
pub struct EdgedConfig {
    /// The node's name, labels, taints and reservations.
    pub node: NodeSettings,
    /// The container runtime, `unix:///run/containerd/containerd.sock`.
    pub endpoint: String,
    /// Where the runtime keeps images, until it says so itself: its disk is looked at.
    pub image_dir: PathBuf,
    /// Kubelet's root directory.
    pub root_dir: PathBuf,
    /// Where logs are.
    pub log_dir: PathBuf,
    /// The node's address; found by the route to `cloud` when unset.
    pub node_ip: Option<IpAddr>,
    /// An address of the cloud.
    pub cloud: Option<SocketAddr>,
    /// Who manages cgroups; must be the runtime's.
    pub cgroup_driver: CgroupDriver,
    /// The cluster's DNS servers.
    pub cluster_dns: Vec<IpAddr>,
    /// The cluster's DNS domain; may be empty.
    pub cluster_domain: String,
    /// The resolver configuration that pods with DNS policy Default inherit; empty: none.
    pub resolv_conf: PathBuf,
    /// Kernel parameters beyond the safe ones that pods may set.
    pub allowed_sysctls: Vec<String>,
    /// Processes that one pod may have; no limit when unset.
    pub pod_pids: Option<u32>,
    /// Whether control groups of pods and of their classes are limited as well, not only those of containers.
    pub cgroups_per_qos: bool,
    /// Whether all pods together are held to what is not reserved; otherwise to what the machine has.
    pub enforce_allocatable: bool,
    /// The API server's service as pods see it.
    pub service: Option<KubernetesService>,
    /// Images that are pulled at the same time.
    pub parallel_pulls: usize,
    /// Whether Kubernetes Events are made.
    pub report_events: bool,
    /// How large logs and images may become.
    pub housekeeping: HousekeepingPolicy,
    /// The folder of manifests of static pods; need not be there.
    pub static_pods: Option<PathBuf>,
}

impl EdgedConfig {
    /// The defaults of `edgecore.yaml`.
    pub fn new(node: NodeSettings) -> Self {
        Self {
            node,
            endpoint: "unix:///run/containerd/containerd.sock".to_owned(),
            image_dir: "/var/lib/containerd".into(),
            root_dir: "/var/lib/kubelet".into(),
            log_dir: "/var/log".into(),
            node_ip: None,
            cloud: None,
            cgroup_driver: CgroupDriver::default(),
            cluster_dns: Vec::new(),
            cluster_domain: String::new(),
            resolv_conf: "/etc/resolv.conf".into(),
            allowed_sysctls: Vec::new(),
            pod_pids: None,
            cgroups_per_qos: true,
            enforce_allocatable: true,
            service: None,
            // kubelet's serializeImagePulls
            parallel_pulls: 1,
            report_events: true,
            housekeeping: HousekeepingPolicy::default(),
            static_pods: None,
        }
    }
}

/// Why Edged cannot start.
#[derive(Debug, Error)]
pub enum PrepareError {
    /// The runtime's address.
    #[error(transparent)]
    Endpoint(#[from] InvalidEndpoint),
    /// A directory or a file is not absolute, so that what it means would depend on where edgecore was started.
    #[error("{what} {path:?} is not an absolute path")]
    NotAbsolute {
        /// Which.
        what: &'static str,
        /// What was given.
        path: PathBuf,
    },
    /// The root directory cannot be made.
    #[error("the root directory {path:?} cannot be made: {source}")]
    RootDir {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The machine cannot be read.
    #[error(transparent)]
    Machine(#[from] ReadingError),
    /// A task was cancelled: the program is going down.
    #[error("the machine was not read: {0}")]
    Interrupted(#[from] tokio::task::JoinError),
}

/// Everything Edged starts from. Made before the system starts, so that what is wrong is seen there.
#[derive(Clone)]
pub struct Prepared {
    pub(super) settings: NodeSettings,
    pub(super) setup: NodeSetup,
    pub(super) paths: MachinePaths,
    pub(super) runtime: Arc<dyn Runtime>,
    pub(super) parallel_pulls: usize,
    pub(super) report_events: bool,
    pub(super) housekeeping: HousekeepingPolicy,
    /// What the node has for pods.
    pub(super) room: Room,
    pub(super) static_pods: Option<PathBuf>,
    /// What all pods together may use, where they are limited together.
    pub(super) node_group: Option<GroupLimits>,
}

impl Prepared {
    /// Checks the settings and reads the machine. Does not need the container runtime to answer.
    pub async fn new(config: EdgedConfig) -> Result<Self, PrepareError> {
        let runtime = Arc::new(CriRuntime::new(&config.endpoint)?);
        Self::with_runtime(config, runtime).await
    }

    /// The same with a runtime of the caller's.
    pub async fn with_runtime(config: EdgedConfig, runtime: Arc<dyn Runtime>) -> Result<Self, PrepareError> {
        tokio::task::spawn_blocking(move || Self::read(config, runtime)).await?
    }

    fn read(config: EdgedConfig, runtime: Arc<dyn Runtime>) -> Result<Self, PrepareError> {
        for (what, path) in [
            ("the root directory", &config.root_dir),
            ("the log directory", &config.log_dir),
            ("resolvConf", &config.resolv_conf),
            ("staticPodPath", config.static_pods.as_ref().unwrap_or(&config.root_dir)),
        ] {
            let none = what == "resolvConf" && path.as_os_str().is_empty();
            if !none && !path.is_absolute() {
                return Err(PrepareError::NotAbsolute { what, path: path.clone() });
            }
        }
        std::fs::create_dir_all(&config.root_dir)
            .map_err(|source| PrepareError::RootDir { path: config.root_dir.clone(), source })?;
        let paths = MachinePaths {
            root_dir: config.root_dir.clone(),
            image_dir: existing(&config.image_dir),
            ..MachinePaths::default()
        };
        let readings = MachineReadings::read(&paths)?;
        let address = config
            .node_ip
            // A cloud on this machine is reached by an address that means nothing to anybody else.
            .or_else(|| config.cloud.and_then(address_towards).filter(|address| !address.is_loopback()))
            .or_else(own_address)
            .unwrap_or_else(|| {
                tracing::warn!("this machine has no route: the node's address is the loopback's");
                Ipv4Addr::LOCALHOST.into()
            });
        let unified = if paths.sys.join("fs/cgroup/cgroup.controllers").exists() {
            // One process out of memory ends the whole container, as on cgroup v1 and with kubelet.
            BTreeMap::from([("memory.oom.group".to_owned(), "1".to_owned())])
        } else {
            BTreeMap::new()
        };
        let room = allocatable_resources(&config.node, &readings);
        let reserved = if config.enforce_allocatable { config.node.reserved } else { Allocatable::default() };
        let node_group = config.cgroups_per_qos.then(|| {
            let all = capacity(&readings);
            node_group_limits(all.cpu.minus(reserved.cpu), all.memory.minus(reserved.memory))
        });
        let setup = NodeSetup {
            node_name: config.node.name.to_string(),
            host_ips: vec![address],
            root_dir: config.root_dir,
            log_dir: config.log_dir,
            cgroup_driver: config.cgroup_driver,
            cluster_dns: config.cluster_dns,
            cluster_domain: config.cluster_domain,
            resolv_conf: config.resolv_conf,
            allowed_sysctls: config.allowed_sysctls,
            pod_pids: config.pod_pids,
            cgroups_per_qos: config.cgroups_per_qos,
            limits: node_limits(&readings, unified),
            allocatable: allocatable(&config.node, &readings),
            service: config.service,
        };
        Ok(Self {
            settings: config.node,
            setup,
            paths,
            runtime,
            parallel_pulls: config.parallel_pulls.max(1),
            report_events: config.report_events,
            housekeeping: config.housekeeping,
            room,
            static_pods: config.static_pods,
            node_group,
        })
    }
}

/// The directory, or the nearest one above it that is there: a runtime that never ran has made none yet.
pub(super) fn existing(path: &Path) -> PathBuf {
    path.ancestors().find(|ancestor| ancestor.is_dir()).unwrap_or(Path::new("/")).to_owned()
}
