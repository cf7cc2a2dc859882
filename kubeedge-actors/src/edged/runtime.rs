//! What Edged needs of a container runtime, and what it sees there.
//!
//! [`Runtime`] is implemented by the CRI client ([`super::cri`]) and by a fake for tests. What to create is said in
//! CRI's own types; what is seen comes back in small types of our own, all that a decision may depend on.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    time::Duration,
};

use futures_util::{future::BoxFuture, stream::BoxStream};
use jiff::Timestamp;
use kubeedge_proto::cri;
use thiserror::Error;

use super::lifecycle::Sizes;

/// Why a call to the runtime failed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum RuntimeError {
    /// Nobody answers at the endpoint: tried again with every next step.
    #[error("the container runtime at {endpoint} cannot be reached: {message}; is it running?")]
    Unreachable {
        /// The address that was tried.
        endpoint: String,
        /// What the transport said.
        message: String,
    },
    /// The call did not end in time; what it began may still come true, so the next step looks first.
    #[error("the container runtime did not finish {call} within {after:?}")]
    Timeout {
        /// The CRI call.
        call: &'static str,
        /// How long it was waited for.
        after: Duration,
    },
    /// The sandbox, container or image is not there (any more).
    #[error("{call}: not found: {message}")]
    NotFound {
        /// The CRI call.
        call: &'static str,
        /// What the runtime said.
        message: String,
    },
    /// The runtime is older than the call, or has it switched off.
    #[error("the container runtime has no {call}: {message}")]
    Unimplemented {
        /// The CRI call.
        call: &'static str,
        /// What the runtime said.
        message: String,
    },
    /// The runtime refused or failed.
    #[error("{call} failed: {message}")]
    Failed {
        /// The CRI call.
        call: &'static str,
        /// What the runtime said.
        message: String,
    },
    /// The runtime answered something that CRI does not allow.
    #[error("{call}: the runtime's answer is not usable: {message}")]
    BadAnswer {
        /// The CRI call.
        call: &'static str,
        /// What is wrong with it.
        message: String,
    },
}

/// What the runtime says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RuntimeVersion {
    /// Its name, the scheme of container ids in a status: `containerd`.
    pub name: String,
    /// Its version.
    pub version: String,
}

/// Whether the runtime can run pods.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RuntimeHealth {
    /// `None` when containers can run; otherwise what the runtime says is wrong.
    pub runtime: Option<String>,
    /// `None` when pods get a network; otherwise what the runtime says is wrong.
    pub network: Option<String>,
}

/// What a runtime can do that not every CRI v1 runtime can.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RuntimeFeatures {
    /// Its name and version, for a person.
    pub runtime: String,
    /// Images as volumes.
    pub image_volumes: bool,
    /// Parts of them; one that cannot mounts the whole without a word.
    pub image_sub_paths: bool,
    /// Groups of a process that are no more than the pod asks for.
    pub strict_groups: bool,
    /// By handler; the default one has the empty name.
    pub handlers: BTreeMap<String, HandlerFeatures>,
}

impl RuntimeFeatures {
    /// What a handler can do: nothing more, as long as nothing is known of it.
    pub fn handler(&self, name: &str) -> HandlerFeatures {
        self.handlers.get(name).copied().unwrap_or_default()
    }
}

/// What one of a runtime's handlers can do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HandlerFeatures {
    /// Mounts that are read-only with all that is below them.
    pub recursive_read_only: bool,
    /// Users of a pod's own, and mounts that fit them.
    pub user_namespaces: bool,
}

/// One pod as a cheap list shows it: enough to see that something changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodSummary {
    /// Namespace of the pod.
    pub namespace: String,
    /// Name of the pod.
    pub name: String,
    /// Uid of the pod.
    pub uid: String,
    /// Ids of its sandboxes, each with whether it is ready.
    pub sandboxes: BTreeMap<String, bool>,
    /// Ids of its containers, each with its state.
    pub containers: BTreeMap<String, InstanceState>,
    /// Seconds that its containers may take to end, where known.
    pub grace_seconds: Option<u32>,
}

/// Everything the runtime has of one pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ObservedPod {
    /// Its sandboxes, ready or not.
    pub sandboxes: Vec<Sandbox>,
    /// Every instance of its containers, over all sandboxes.
    pub instances: Vec<Instance>,
}

/// A pod sandbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sandbox {
    /// The runtime's id.
    pub id: String,
    /// How many sandboxes the pod had before.
    pub attempt: u32,
    /// Whether containers can run in it.
    pub ready: bool,
    /// When it was made.
    pub created_at: Timestamp,
    /// Its addresses; empty on the node's network and when it is not ready.
    pub ips: Vec<String>,
    /// When this node took up the pod, as the sandbox remembers it.
    pub pod_start: Option<Timestamp>,
}

/// The state of an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum InstanceState {
    /// Made, never started.
    Created,
    /// Its process runs.
    Running,
    /// Its process ended.
    Exited,
    /// The runtime does not know; it may run.
    Unknown,
}

impl InstanceState {
    /// Whether a process of this instance may be alive.
    pub fn may_run(self) -> bool {
        matches!(self, Self::Running | Self::Unknown)
    }
}

/// One instance of a container: a restart makes a new one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    /// The runtime's id.
    pub id: String,
    /// The sandbox it is in.
    pub sandbox_id: String,
    /// The container's name in the pod's spec.
    pub name: String,
    /// How many instances of this container there were before.
    pub attempt: u32,
    /// Its state.
    pub state: InstanceState,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it started.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub finished_at: Option<Timestamp>,
    /// Its exit code, once it has ended.
    pub exit_code: i32,
    /// The runtime's word for how it ended (`Completed`, `Error`, `OOMKilled`, `StartError`); may be empty.
    pub reason: String,
    /// The runtime's words, or the container's own last words.
    pub message: String,
    /// The image by name.
    pub image: String,
    /// The image by content.
    pub image_id: String,
    /// The image as the pod's spec had it when this was made; unknown for what others made.
    pub spec_image: Option<String>,
    /// What it was made with; unknown for what others made.
    pub sizes: Option<Sizes>,
    /// The file on the node that its last words are in.
    pub termination_log: Option<PathBuf>,
}

/// An image that is on the node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LocalImage {
    /// The runtime's id.
    pub id: String,
    /// Its names: tags and digests.
    pub names: Vec<String>,
    /// Bytes on disk.
    pub size_bytes: u64,
    /// The user its containers run as unless told otherwise.
    pub user: ImageUser,
    /// Whether the runtime needs it itself, such as for sandboxes.
    pub pinned: bool,
}

/// The user an image names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ImageUser {
    /// None: root.
    #[default]
    Unset,
    /// By number.
    Uid(i64),
    /// By name, which only the image's own `/etc/passwd` can resolve.
    Name(String),
}

/// What a container uses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ContainerStats {
    /// The runtime's id.
    pub id: String,
    /// The container's name in the pod's spec.
    pub name: String,
    /// Uid of the pod; empty for what is no pod's.
    pub pod_uid: String,
    /// Processor time since its start, nanoseconds of one core; `None` when it does not run.
    pub cpu_nano_seconds: Option<u64>,
    /// Memory, bytes.
    pub memory_usage: u64,
    /// Memory without what the kernel can drop at once, bytes.
    pub memory_working_set: u64,
    /// Memory that belongs to no file, bytes; not every runtime tells.
    pub memory_rss: Option<u64>,
    /// Page faults; not every runtime tells.
    pub page_faults: Option<u64>,
    /// Those that had to wait for a disk.
    pub major_page_faults: Option<u64>,
    /// What it has written beside its volumes, bytes.
    pub layer_bytes: u64,
    /// The same in files.
    pub layer_inodes: u64,
    /// When this was read.
    pub at: Option<Timestamp>,
}

/// What images take on a disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageDisk {
    /// Where they are.
    pub mountpoint: PathBuf,
    /// Bytes that they take.
    pub used_bytes: u64,
}

/// What a command in a container left.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExecOutput {
    /// What it printed.
    pub stdout: Vec<u8>,
    /// What it complained of.
    pub stderr: Vec<u8>,
    /// Its exit code.
    pub exit_code: i32,
}

/// A stream that the runtime is asked for.
#[derive(Clone, Debug, PartialEq)]
pub enum StreamRequest {
    /// A command in a container.
    Exec(cri::ExecRequest),
    /// The container's own process.
    Attach(cri::AttachRequest),
    /// Ports in a sandbox's network.
    PortForward(cri::PortForwardRequest),
}

/// The answer of a call to the runtime.
pub type Answer<'a, T> = BoxFuture<'a, Result<T, RuntimeError>>;

/// What happens in the runtime, as it happens: ids of containers and sandboxes.
pub type RuntimeEvents = BoxStream<'static, Result<String, RuntimeError>>;

/// A container runtime. Calls may be repeated: stopping or removing what is gone is no error.
pub trait Runtime: Send + Sync {
    /// Name and version.
    fn version(&self) -> Answer<'_, RuntimeVersion>;
    /// Whether it can run pods.
    fn health(&self) -> Answer<'_, RuntimeHealth>;
    /// What it can do beyond the usual.
    fn features(&self) -> Answer<'_, RuntimeFeatures>;
    /// All pods, cheaply.
    fn list_pods(&self) -> Answer<'_, Vec<PodSummary>>;
    /// Events from now on. May answer no sooner than there is one; [`RuntimeError::Unimplemented`] where there are none.
    fn events(&self) -> Answer<'_, RuntimeEvents>;
    /// Everything about one pod.
    fn observe<'a>(&'a self, pod_uid: &'a str) -> Answer<'a, ObservedPod>;

    /// Makes and starts a sandbox; answers its id.
    fn run_sandbox<'a>(&'a self, config: &'a cri::PodSandboxConfig, handler: &'a str) -> Answer<'a, String>;
    /// Ends what runs in a sandbox and releases its network.
    fn stop_sandbox<'a>(&'a self, id: &'a str) -> Answer<'a, ()>;
    /// Removes a stopped sandbox.
    fn remove_sandbox<'a>(&'a self, id: &'a str) -> Answer<'a, ()>;
    /// Makes a container in a sandbox; answers its id.
    fn create_container<'a>(
        &'a self,
        sandbox_id: &'a str,
        config: &'a cri::ContainerConfig,
        sandbox: &'a cri::PodSandboxConfig,
    ) -> Answer<'a, String>;
    /// Starts a container that was made.
    fn start_container<'a>(&'a self, id: &'a str) -> Answer<'a, ()>;
    /// Asks a container to end and kills it after `grace`; returns when it has ended.
    fn stop_container<'a>(&'a self, id: &'a str, grace: Duration) -> Answer<'a, ()>;
    /// Changes what a running container may use of processor and memory; what is 0 in `resources` stays.
    fn update_resources<'a>(&'a self, id: &'a str, resources: &'a cri::LinuxContainerResources) -> Answer<'a, ()>;
    /// Runs a command in a running container until it ends; [`RuntimeError::Timeout`] when that takes too long. A
    /// timeout of 0 is none.
    fn exec_sync<'a>(&'a self, id: &'a str, command: &'a [String], timeout: Duration) -> Answer<'a, ExecOutput>;
    /// Removes a container that has ended.
    fn remove_container<'a>(&'a self, id: &'a str) -> Answer<'a, ()>;

    /// Prepares a stream; answers the URL at the runtime's streaming server, good for one request.
    fn stream_url(&self, request: StreamRequest) -> Answer<'_, String>;

    /// Looks for an image on the node.
    fn image<'a>(&'a self, image: &'a str) -> Answer<'a, Option<LocalImage>>;
    /// Every image on the node.
    fn images(&self) -> Answer<'_, Vec<LocalImage>>;
    /// Fetches an image.
    fn pull_image<'a>(
        &'a self,
        image: &'a str,
        auth: Option<cri::AuthConfig>,
        sandbox: &'a cri::PodSandboxConfig,
    ) -> Answer<'a, ()>;

    /// What every container uses that runs.
    fn container_stats(&self) -> Answer<'_, Vec<ContainerStats>>;
    /// Opens the log file of a running container anew, after the one it had was renamed.
    fn reopen_log<'a>(&'a self, id: &'a str) -> Answer<'a, ()>;
    /// Removes an image with all its names.
    fn remove_image<'a>(&'a self, id: &'a str) -> Answer<'a, ()>;
    /// The images of all containers, whether they run or not: by id, or by a name.
    fn used_images(&self) -> Answer<'_, BTreeSet<String>>;
    /// The image that sandboxes are made of, if the runtime tells.
    fn sandbox_image(&self) -> Answer<'_, Option<String>>;
    /// Where images are and what they take.
    fn image_disk(&self) -> Answer<'_, ImageDisk>;
}
