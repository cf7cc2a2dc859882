//! What a pod gets from its node: volumes, and the configurations of its sandbox and containers.

mod features;
pub mod logs;
mod node;
mod pull_secrets;

pub use node::{NodeProvision, NodeSetup};

use std::collections::BTreeMap;

use futures_util::future::BoxFuture;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod};
use kubeedge_proto::cri;

use super::{
    events::Reason,
    lifecycle::PodPlan,
    resources::Change,
    runtime::{Instance, LocalImage},
};

/// The answer of a provision; the error is for a person, in the container's or pod's status.
pub type Provided<'a, T> = BoxFuture<'a, Result<T, String>>;

/// Turns an error into the words of a status.
trait Provide<T> {
    fn provide(self) -> Result<T, String>;
}

impl<T, E: std::fmt::Display> Provide<T> for Result<T, E> {
    fn provide(self) -> Result<T, String> {
        self.map_err(|error| error.to_string())
    }
}

/// A configuration, and what a person should know of how it came about.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Configured<T> {
    /// For the runtime.
    pub config: T,
    /// For events.
    pub told: Vec<(Reason, String)>,
}

/// Credentials for a registry.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Credentials {
    /// To be tried, best first.
    pub found: Vec<cri::AuthConfig>,
    /// Secrets that the pod names and that are not there or hold none.
    pub missing: Vec<String>,
}

/// What a container is made for.
#[derive(Clone, Copy, Debug)]
pub struct ContainerRequest<'a> {
    /// The pod.
    pub pod: &'a Pod,
    /// Its plan.
    pub plan: &'a PodPlan,
    /// The container.
    pub container: &'a Container,
    /// Number of the instance.
    pub attempt: u32,
    /// The image it runs, on the node.
    pub image: &'a LocalImage,
    /// The instance whose processes it sees, for an ephemeral container that names one.
    pub target: Option<&'a str>,
    /// The pod's addresses.
    pub pod_ips: &'a [String],
    /// The images that it mounts, by volume: each was fetched.
    pub volume_images: &'a BTreeMap<String, LocalImage>,
}

/// Makes what pods need on the node beside the runtime. Every call may be repeated.
pub trait Provision: Send + Sync {
    /// Sets up the pod's volumes, or finds them set up.
    fn set_up<'a>(&'a self, pod: &'a Pod, pod_ips: &'a [String]) -> Provided<'a, ()>;
    /// Brings the contents of volumes up to date.
    fn refresh<'a>(&'a self, pod: &'a Pod, pod_ips: &'a [String]) -> Provided<'a, ()>;
    /// Removes volumes, directories and logs of a pod that has ended.
    fn tear_down<'a>(&'a self, plan: &'a PodPlan) -> Provided<'a, ()>;

    /// The configuration of the pod's sandbox. `started_at`: when the node took the pod up.
    fn sandbox<'a>(
        &'a self,
        pod: &'a Pod,
        plan: &'a PodPlan,
        attempt: u32,
        started_at: Timestamp,
    ) -> Provided<'a, Configured<cri::PodSandboxConfig>>;
    /// The name of the runtime's handler that the pod's sandbox is for; empty for the default one.
    fn handler<'a>(&'a self, pod: &'a Pod) -> Provided<'a, String>;
    /// The configuration of a container, with everything it mounts made.
    fn container<'a>(&'a self, request: ContainerRequest<'a>) -> Provided<'a, Configured<cri::ContainerConfig>>;
    /// What a container that runs is to have of processor and memory.
    fn resources(&self, pod: &Pod, container: &Container) -> Result<cri::LinuxContainerResources, String>;
    /// Makes room for a pod whose containers get other resources (`Raise`, before), or takes back what it has no more
    /// (`Set`, after).
    fn resize<'a>(&'a self, pod: &'a Pod, plan: &'a PodPlan, change: Change) -> Provided<'a, ()>;
    /// The credentials for an image; may be none.
    fn credentials<'a>(&'a self, pod: &'a Pod, image: &'a str) -> Provided<'a, Credentials>;

    /// A container was started: its log is linked to where log collectors look.
    fn container_started<'a>(
        &'a self,
        plan: &'a PodPlan,
        container: &'a str,
        attempt: u32,
        id: &'a str,
    ) -> Provided<'a, ()>;
    /// A container was removed: its log goes too.
    fn container_removed<'a>(
        &'a self,
        plan: &'a PodPlan,
        container: &'a str,
        attempt: u32,
        id: &'a str,
    ) -> Provided<'a, ()>;
    /// What an ended container wrote as its last words; empty when nothing.
    fn last_words<'a>(&'a self, pod: &'a Pod, plan: &'a PodPlan, instance: &'a Instance) -> Provided<'a, String>;
}
