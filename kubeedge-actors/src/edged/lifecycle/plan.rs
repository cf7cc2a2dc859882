//! What a pod's spec asks of its containers, checked once where it comes in.

use std::{borrow::Cow, time::Duration};

use k8s_openapi::api::core::v1::{Container, EphemeralContainer, Pod};
use thiserror::Error;

use super::sizes::Resources;
use crate::edged::probes::Probes;

/// Grace period when neither the deletion nor the spec names one: the API's default, in seconds.
pub const DEFAULT_GRACE_SECONDS: u32 = 30;

/// A pod that cannot be run as it is.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum InvalidPod {
    /// A field that names things on this node is missing or has characters that do not belong there.
    #[error(
        "pod {pod}: {field} {value:?} is not valid: expected 1 to 253 lower case letters, digits, '-' and '.', \
         beginning and ending with a letter or digit"
    )]
    Name {
        /// `namespace/name`, as far as it is known.
        pod: String,
        /// The field.
        field: &'static str,
        /// What stands there.
        value: String,
    },
    /// Two containers of one name.
    #[error("pod {pod}: two containers are named {name:?}")]
    DuplicateContainer {
        /// `namespace/name`.
        pod: String,
        /// The name.
        name: String,
    },
    /// No container at all.
    #[error("pod {pod}: spec.containers is empty")]
    NoContainers {
        /// `namespace/name`.
        pod: String,
    },
    /// An unknown restart policy.
    #[error("pod {pod}: restartPolicy {value:?} is none of Always, OnFailure, Never")]
    RestartPolicy {
        /// `namespace/name`.
        pod: String,
        /// What stands there.
        value: String,
    },
}

/// When a container that ended is started again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RestartPolicy {
    /// Always.
    Always,
    /// Unless it ended with exit code 0.
    OnFailure,
    /// Never.
    Never,
}

/// Where a container stands in a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Runs to its end before the next one begins.
    Init,
    /// An init container with `restartPolicy: Always`: started in turn, runs beside the others, ends after them.
    Sidecar,
    /// One of `spec.containers`.
    App,
    /// One of `spec.ephemeralContainers`: added to a pod that runs, started once, of no weight for the pod's state.
    Ephemeral,
}

/// One container of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerPlan {
    /// Its name.
    pub name: String,
    /// Its image, as written.
    pub image: String,
    /// Its place.
    pub role: Role,
    /// What it is asked while it runs; nothing for an init container.
    pub probes: Probes,
    /// What it is to have of the machine.
    pub resources: Resources,
}

/// A condition that somebody else sets and that has to hold before the pod is ready.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadinessGate {
    /// Its type.
    pub condition: String,
    /// Its status in the API; `None` while nobody has set it.
    pub status: Option<String>,
}

/// What decisions need of a pod's spec.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodPlan {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Uid.
    pub uid: String,
    /// Restart policy of its app and init containers.
    pub restart_policy: RestartPolicy,
    /// Seconds containers may take to end when the spec decides.
    pub grace_seconds: u32,
    /// Seconds containers may take to end when the pod's deletion was asked for; `None` while it was not.
    pub deletion_grace_seconds: Option<u32>,
    /// Whether it is on the node's own network.
    pub host_network: bool,
    /// How long it may be active at all, counted from when this node took it up.
    pub active_deadline: Option<Duration>,
    /// What others have to say before it is ready.
    pub readiness_gates: Vec<ReadinessGate>,
    /// Init containers and sidecars in order, then app containers, then ephemeral ones.
    pub containers: Vec<ContainerPlan>,
}

impl PodPlan {
    /// Reads a pod.
    pub fn of(pod: &Pod) -> Result<Self, InvalidPod> {
        let meta = &pod.metadata;
        let namespace = meta.namespace.clone().unwrap_or_default();
        let name = meta.name.clone().unwrap_or_default();
        let uid = meta.uid.clone().unwrap_or_default();
        let shown = format!("{namespace}/{name}");
        for (field, value) in [("metadata.namespace", &namespace), ("metadata.name", &name), ("metadata.uid", &uid)] {
            check_name(&shown, field, value)?;
        }
        let spec = pod.spec.as_ref().ok_or_else(|| InvalidPod::NoContainers { pod: shown.clone() })?;
        let restart_policy = match spec.restart_policy.as_deref() {
            None | Some("" | "Always") => RestartPolicy::Always,
            Some("OnFailure") => RestartPolicy::OnFailure,
            Some("Never") => RestartPolicy::Never,
            Some(other) => return Err(InvalidPod::RestartPolicy { pod: shown, value: other.to_owned() }),
        };
        let mut containers: Vec<ContainerPlan> = Vec::new();
        let init = spec.init_containers.iter().flatten().map(|container| {
            let sidecar = container.restart_policy.as_deref() == Some("Always");
            (container, if sidecar { Role::Sidecar } else { Role::Init })
        });
        let ephemeral: Vec<Container> = spec.ephemeral_containers.iter().flatten().filter_map(as_container).collect();
        let apps = spec.containers.iter().map(|container| (container, Role::App));
        let ephemeral = ephemeral.iter().map(|container| (container, Role::Ephemeral));
        for (container, role) in init.chain(apps).chain(ephemeral) {
            check_name(&shown, "container name", &container.name)?;
            if containers.iter().any(|known| known.name == container.name) {
                return Err(InvalidPod::DuplicateContainer { pod: shown, name: container.name.clone() });
            }
            let image = container.image.clone().unwrap_or_default();
            let probed = matches!(role, Role::App | Role::Sidecar);
            let probes = if probed { Probes::of(container) } else { Probes::default() };
            let mut resources = Resources::of(container, matches!(role, Role::App | Role::Sidecar));
            if role == Role::App && restart_policy == RestartPolicy::Never {
                resources = resources.in_place();
            }
            containers.push(ContainerPlan { name: container.name.clone(), image, role, probes, resources });
        }
        if spec.containers.is_empty() {
            return Err(InvalidPod::NoContainers { pod: shown });
        }
        let grace_seconds = seconds(spec.termination_grace_period_seconds).unwrap_or(DEFAULT_GRACE_SECONDS);
        let deletion_grace_seconds = meta
            .deletion_timestamp
            .as_ref()
            .map(|_| seconds(meta.deletion_grace_period_seconds).unwrap_or(grace_seconds));
        Ok(Self {
            namespace,
            name,
            uid,
            restart_policy,
            grace_seconds,
            deletion_grace_seconds,
            host_network: spec.host_network.unwrap_or(false),
            active_deadline: seconds(spec.active_deadline_seconds.filter(|seconds| *seconds > 0))
                .map(|seconds| Duration::from_secs(seconds.into())),
            readiness_gates: readiness_gates(pod),
            containers,
        })
    }

    /// The containers of one role, in order.
    pub fn role(&self, role: Role) -> impl Iterator<Item = &ContainerPlan> {
        self.containers.iter().filter(move |container| container.role == role)
    }
}

/// The container of this name in a pod's spec.
pub fn container<'a>(pod: &'a Pod, name: &str) -> Option<Cow<'a, Container>> {
    let spec = pod.spec.as_ref()?;
    let lasting = spec.init_containers.iter().flatten().chain(&spec.containers);
    if let Some(found) = lasting.into_iter().find(|container| container.name == name) {
        return Some(Cow::Borrowed(found));
    }
    let found = spec.ephemeral_containers.iter().flatten().find(|container| container.name == name)?;
    as_container(found).map(Cow::Owned)
}

/// The container whose processes an ephemeral container sees.
pub fn ephemeral_target<'a>(pod: &'a Pod, name: &str) -> Option<&'a str> {
    let found = pod.spec.as_ref()?.ephemeral_containers.iter().flatten().find(|container| container.name == name)?;
    found.target_container_name.as_deref().filter(|target| !target.is_empty())
}

/// An ephemeral container as the container that it becomes. `None` is not to be had: their fields are the same.
fn as_container(ephemeral: &EphemeralContainer) -> Option<Container> {
    serde_json::from_slice(&serde_json::to_vec(ephemeral).ok()?).ok()
}

fn readiness_gates(pod: &Pod) -> Vec<ReadinessGate> {
    let gates = pod.spec.iter().flat_map(|spec| spec.readiness_gates.iter().flatten());
    let status = |wanted: &str| {
        let conditions = pod.status.as_ref()?.conditions.as_ref()?;
        Some(conditions.iter().find(|condition| condition.type_ == wanted)?.status.clone())
    };
    let gate = |condition: &String| ReadinessGate { status: status(condition), condition: condition.clone() };
    gates.map(|known| gate(&known.condition_type)).collect()
}

fn seconds(value: Option<i64>) -> Option<u32> {
    value.map(|seconds| u32::try_from(seconds.max(0)).unwrap_or(u32::MAX))
}

/// Names become paths and labels on this node, so they are held to what the API allows.
fn check_name(pod: &str, field: &'static str, value: &str) -> Result<(), InvalidPod> {
    let edge = |byte: Option<&u8>| byte.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let bytes = value.as_bytes();
    let inside = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'.');
    if bytes.len() <= 253 && edge(bytes.first()) && edge(bytes.last()) && bytes.iter().all(inside) {
        Ok(())
    } else {
        let cut = |text: &str| text.chars().take(260).collect::<String>();
        Err(InvalidPod::Name { pod: cut(pod), field, value: cut(value) })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(value: serde_json::Value) -> Pod {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn roles_order_and_grace_come_from_the_spec() {
        let plan = PodPlan::of(&pod(json!({
            "metadata": {"namespace": "shop", "name": "till", "uid": "u-1"},
            "spec": {
                "restartPolicy": "OnFailure", "terminationGracePeriodSeconds": 7,
                "initContainers": [
                    {"name": "first", "image": "a"}, {"name": "beside", "image": "b", "restartPolicy": "Always"}],
                "containers": [{"name": "main", "image": "c"}],
            },
        })))
        .unwrap();
        let roles: Vec<_> = plan.containers.iter().map(|c| (c.name.as_str(), c.role)).collect();
        assert_eq!(roles, [("first", Role::Init), ("beside", Role::Sidecar), ("main", Role::App)]);
        assert_eq!((plan.grace_seconds, plan.deletion_grace_seconds), (7, None));
    }

    #[test]
    fn deletion_brings_its_own_grace() {
        let plan = PodPlan::of(&pod(json!({
            "metadata": {"namespace": "shop", "name": "till", "uid": "u-1",
                "deletionTimestamp": "2026-01-01T00:00:00Z", "deletionGracePeriodSeconds": 3},
            "spec": {"containers": [{"name": "main", "image": "c"}]},
        })))
        .unwrap();
        assert_eq!((plan.grace_seconds, plan.deletion_grace_seconds), (DEFAULT_GRACE_SECONDS, Some(3)));
    }

    #[test]
    fn names_that_would_leave_their_directory_are_refused() {
        for bad in ["", ".", "..", "../x", "a/b", "A", "-a", "a-"] {
            for (namespace, name, uid, container) in
                [(bad, "n", "u", "c"), ("ns", bad, "u", "c"), ("ns", "n", bad, "c"), ("ns", "n", "u", bad)]
            {
                let result = PodPlan::of(&pod(json!({
                    "metadata": {"namespace": namespace, "name": name, "uid": uid},
                    "spec": {"containers": [{"name": container, "image": "c"}]},
                })));
                assert!(matches!(result, Err(InvalidPod::Name { .. })), "{bad:?}: {result:?}");
            }
        }
    }
}
