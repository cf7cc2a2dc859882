//! Kubernetes Events about pods and the node, as kubelet makes them: what `kubectl describe` shows below the status.
//!
//! What [`Correlator`] remembers is bounded, and so is the queue behind it ([`sender`]): an event that has no place is
//! dropped and counted. No pod waits for one. What got through is kept by EdgeHub's outbox until the cloud has it.

mod correlator;
pub mod sender;

use jiff::{Timestamp, Unit};
use k8s_openapi::api::core::v1::Pod;
use kubeedge_proto::v1::KubeObject;
use serde_json::json;

use super::lifecycle::{PodPlan, Role};

pub use correlator::{BURST, Correlator, MAX_REMEMBERED, REFILL};

/// Longest message, bytes: what the API allows.
pub const MAX_MESSAGE: usize = 1024;
/// Longest reason, bytes: what the API allows.
const MAX_REASON: usize = 128;
/// Longest name of an object (DNS-1123 subdomain).
const MAX_NAME: usize = 253;
/// Who these events are from: what people and tools look for.
const COMPONENT: &str = "kubelet";

/// Whether an event needs somebody's attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Severity {
    /// It does not.
    Normal,
    /// It may.
    Warning,
}

impl Severity {
    /// Kubernetes' word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Normal => "Normal",
            Self::Warning => "Warning",
        }
    }
}

/// What can be told about a pod or the node, by kubelet's names.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// An image is being fetched.
    Pulling,
    /// An image is on the node.
    Pulled,
    /// A container was made.
    Created,
    /// A container was started.
    Started,
    /// A container is being ended.
    Killing,
    /// A container that crashed waits before its next start.
    BackOffRestart,
    /// An image that could not be fetched waits before the next try.
    BackOffPull,
    /// An image could not be fetched, or a container not be made or started.
    Failed,
    /// The pod's volumes could not be set up.
    FailedMount,
    /// The pod's sandbox could not be made.
    FailedCreatePodSandBox,
    /// Something of a pod could not be stopped, removed or unmounted: it is not over yet.
    FailedKillPod,
    /// The pod had a sandbox that is no good any more: what is left of it ends, and another one is made.
    SandboxChanged,
    /// A secret with credentials for a registry is not there or not usable: images are fetched without it.
    FailedToRetrieveImagePullSecret,
    /// A pod's resolver configuration does not hold all that was asked for.
    DnsConfigForming,
    /// A pod wants the cluster's name servers and there are none.
    MissingClusterDns,
    /// Keys that are no names of variables were left out of an environment. Kubelets from 1.32 on take every key that
    /// the API lets through; what is told here did not come through it.
    InvalidEnvironmentVariableNames,
    /// An image's name is not valid, or the runtime could not say whether it is there.
    InspectFailed,
    /// An image is not on the node and may not be fetched.
    ErrImageNeverPull,
    /// The images that could be removed were not enough.
    FreeDiskSpaceFailed,
    /// Images could not be removed.
    ImageGcFailed,
    /// Edged begins.
    Starting,
    /// The node can run pods.
    NodeReady,
    /// It cannot.
    NodeNotReady,
    /// It has memory to give.
    NodeHasSufficientMemory,
    /// It is short of it.
    NodeHasInsufficientMemory,
    /// It has disk to give.
    NodeHasNoDiskPressure,
    /// It is short of it.
    NodeHasDiskPressure,
    /// It has process ids to give.
    NodeHasSufficientPid,
    /// It is short of them.
    NodeHasInsufficientPid,
    /// The machine was started anew since the Node was last brought up to date.
    Rebooted,
    /// The machine goes down.
    Shutdown,
    /// Pods are limited to what the node has for them, all together.
    NodeAllocatableEnforced,
    /// They could not be.
    FailedNodeAllocatableEnforcement,
    /// The node runs short and makes room.
    EvictionThresholdMet,
    /// A pod ends because the node runs short, or because it has more than it may have.
    Evicted,
    /// A manifest makes no pod.
    FailedValidation,
    /// A pod is not taken up; the name is the status' reason, see [`Reason::rejected`].
    Rejected(Box<str>),
    /// A probe has failed, or could not be made.
    Unhealthy,
    /// A probe went well, with something to know.
    ProbeWarning,
    /// The hook after a container's start has failed: the container is ended.
    FailedPostStartHook,
    /// The hook before a container's end has failed.
    FailedPreStopHook,
    /// The pod was active for longer than it may be.
    DeadlineExceeded,
    /// Containers that run have other resources now.
    ResizeCompleted,
    /// They cannot be given them.
    ResizeError,
    /// The node has no room for them now.
    ResizeDeferred,
    /// The node will never have.
    ResizeInfeasible,
    /// What came as a pod cannot be run here as it is.
    InvalidPod,
}

impl Reason {
    /// A pod is not taken up, for the reason of this name. Those of extended resources are as long as a resource's name.
    pub fn rejected(name: &str) -> Self {
        Self::Rejected(prefix(name, MAX_REASON).into())
    }

    /// Kubelet's name.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Pulling => "Pulling",
            Self::Pulled => "Pulled",
            Self::Created => "Created",
            Self::Started => "Started",
            Self::Killing => "Killing",
            Self::BackOffRestart | Self::BackOffPull => "BackOff",
            Self::Failed => "Failed",
            Self::FailedMount => "FailedMount",
            Self::FailedCreatePodSandBox => "FailedCreatePodSandBox",
            Self::FailedKillPod => "FailedKillPod",
            Self::SandboxChanged => "SandboxChanged",
            Self::FailedToRetrieveImagePullSecret => "FailedToRetrieveImagePullSecret",
            Self::DnsConfigForming => "DNSConfigForming",
            Self::MissingClusterDns => "MissingClusterDNS",
            Self::InvalidEnvironmentVariableNames => "InvalidEnvironmentVariableNames",
            Self::InspectFailed => "InspectFailed",
            Self::ErrImageNeverPull => "ErrImageNeverPull",
            Self::FreeDiskSpaceFailed => "FreeDiskSpaceFailed",
            Self::ImageGcFailed => "ImageGCFailed",
            Self::Starting => "Starting",
            Self::NodeReady => "NodeReady",
            Self::NodeNotReady => "NodeNotReady",
            Self::NodeHasSufficientMemory => "NodeHasSufficientMemory",
            Self::NodeHasInsufficientMemory => "NodeHasInsufficientMemory",
            Self::NodeHasNoDiskPressure => "NodeHasNoDiskPressure",
            Self::NodeHasDiskPressure => "NodeHasDiskPressure",
            Self::NodeHasSufficientPid => "NodeHasSufficientPID",
            Self::NodeHasInsufficientPid => "NodeHasInsufficientPID",
            Self::Rebooted => "Rebooted",
            Self::Shutdown => "Shutdown",
            Self::NodeAllocatableEnforced => "NodeAllocatableEnforced",
            Self::FailedNodeAllocatableEnforcement => "FailedNodeAllocatableEnforcement",
            Self::EvictionThresholdMet => "EvictionThresholdMet",
            Self::Evicted => "Evicted",
            Self::FailedValidation => "FailedValidation",
            Self::Rejected(name) => name,
            Self::Unhealthy => "Unhealthy",
            Self::ProbeWarning => "ProbeWarning",
            Self::FailedPostStartHook => "FailedPostStartHook",
            Self::FailedPreStopHook => "FailedPreStopHook",
            Self::DeadlineExceeded => "DeadlineExceeded",
            Self::ResizeCompleted => "ResizeCompleted",
            Self::ResizeError => "ResizeError",
            Self::ResizeDeferred => "ResizeDeferred",
            Self::ResizeInfeasible => "ResizeInfeasible",
            Self::InvalidPod => "InvalidPod",
        }
    }

    /// Kubelet's type for it. What a condition of the node has become is normal, whatever it is.
    pub fn severity(&self) -> Severity {
        match self {
            Self::Pulling
            | Self::Pulled
            | Self::Created
            | Self::Started
            | Self::Killing
            | Self::BackOffPull
            | Self::SandboxChanged
            | Self::Starting
            | Self::NodeReady
            | Self::NodeNotReady
            | Self::NodeHasSufficientMemory
            | Self::NodeHasInsufficientMemory
            | Self::NodeHasNoDiskPressure
            | Self::NodeHasDiskPressure
            | Self::NodeHasSufficientPid
            | Self::NodeHasInsufficientPid
            | Self::Shutdown
            | Self::NodeAllocatableEnforced
            | Self::ResizeCompleted
            | Self::DeadlineExceeded => Severity::Normal,
            Self::BackOffRestart
            | Self::Failed
            | Self::FailedMount
            | Self::FailedCreatePodSandBox
            | Self::FailedKillPod
            | Self::FailedToRetrieveImagePullSecret
            | Self::DnsConfigForming
            | Self::MissingClusterDns
            | Self::InvalidEnvironmentVariableNames
            | Self::InspectFailed
            | Self::ErrImageNeverPull
            | Self::FreeDiskSpaceFailed
            | Self::ImageGcFailed
            | Self::Rebooted
            | Self::FailedNodeAllocatableEnforcement
            | Self::EvictionThresholdMet
            | Self::Evicted
            | Self::FailedValidation
            | Self::Rejected(_)
            | Self::Unhealthy
            | Self::ProbeWarning
            | Self::FailedPostStartHook
            | Self::FailedPreStopHook
            | Self::ResizeError
            | Self::ResizeDeferred
            | Self::ResizeInfeasible
            | Self::InvalidPod => Severity::Warning,
        }
    }
}

/// What an event is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Involved {
    /// The pod's namespace; empty for the node itself.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its uid; of the node its name, as a kubelet has it.
    pub uid: String,
    /// The version of its object; empty when there is none.
    pub resource_version: String,
    /// The container, such as `spec.containers{app}`; empty for the whole pod.
    pub field_path: String,
}

impl Involved {
    /// The node.
    pub fn node(name: &str) -> Self {
        Self {
            namespace: String::new(),
            name: name.to_owned(),
            uid: name.to_owned(),
            resource_version: String::new(),
            field_path: String::new(),
        }
    }

    /// What came as a pod and may be none.
    pub fn object(object: &KubeObject) -> Self {
        let key = object.key.clone().unwrap_or_default();
        Self {
            namespace: key.namespace,
            name: key.name,
            uid: object.uid.clone(),
            resource_version: object.resource_version.clone(),
            field_path: String::new(),
        }
    }

    /// The namespace of its events: a node has none, its events are in `default`.
    pub fn event_namespace(&self) -> &str {
        if self.namespace.is_empty() { "default" } else { &self.namespace }
    }

    /// A pod, or one of its containers.
    pub fn of(plan: &PodPlan, pod: Option<&Pod>, container: Option<&str>) -> Self {
        let known = container.and_then(|name| plan.containers.iter().find(|known| known.name == name));
        let field_path = known.map_or_else(String::new, |container| {
            let list = match container.role {
                Role::App => "containers",
                Role::Ephemeral => "ephemeralContainers",
                Role::Init | Role::Sidecar => "initContainers",
            };
            format!("spec.{list}{{{}}}", container.name)
        });
        Self {
            namespace: plan.namespace.clone(),
            name: plan.name.clone(),
            uid: plan.uid.clone(),
            resource_version: pod.and_then(|pod| pod.metadata.resource_version.clone()).unwrap_or_default(),
            field_path,
        }
    }
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventRecord {
    /// About what.
    pub involved: Involved,
    /// What.
    pub reason: Reason,
    /// For a person; at most [`MAX_MESSAGE`] bytes are kept.
    pub message: String,
    /// When.
    pub at: Timestamp,
}

impl EventRecord {
    /// A record whose message fits.
    pub fn new(involved: Involved, reason: Reason, mut message: String, at: Timestamp) -> Self {
        message.truncate(prefix(&message, MAX_MESSAGE).len());
        Self { involved, reason, message, at }
    }

    /// The name of the event: the same for what happens again, also after a restart of edgecore.
    pub fn name(&self) -> String {
        // FNV-1a over the parts, each with an end: it must stay the same in every version of this program.
        let Involved { namespace, name, uid, field_path, .. } = &self.involved;
        let parts: [&str; 7] =
            [namespace, name, uid, field_path, self.reason.severity().as_str(), self.reason.as_str(), &self.message];
        let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
        for byte in parts.iter().flat_map(|part| part.bytes().chain([0])) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
        let suffix = format!(".{hash:016x}");
        let stem = prefix(name, MAX_NAME - suffix.len());
        format!("{}{suffix}", stem.trim_end_matches(['.', '-']))
    }
}

/// An event to be told: a record, and how often it happened by now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Its name in the pod's namespace.
    pub name: String,
    /// What happened, the last time.
    pub record: EventRecord,
    /// When it happened first.
    pub first: Timestamp,
    /// How often it happened.
    pub count: u32,
}

impl Event {
    /// The object for the API, from this node.
    pub fn to_json(&self, node: &str) -> serde_json::Value {
        let EventRecord { involved, reason, message, at } = &self.record;
        let mut about = json!({
            "apiVersion": "v1",
            "kind": if involved.namespace.is_empty() { "Node" } else { "Pod" },
            "name": involved.name,
            "uid": involved.uid,
        });
        if !involved.namespace.is_empty() {
            about["namespace"] = involved.namespace.as_str().into();
        }
        for (field, value) in [("resourceVersion", &involved.resource_version), ("fieldPath", &involved.field_path)] {
            if !value.is_empty() {
                about[field] = value.as_str().into();
            }
        }
        json!({
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"namespace": involved.event_namespace(), "name": self.name},
            "involvedObject": about,
            "type": reason.severity().as_str(),
            "reason": reason.as_str(),
            "message": message,
            "source": {"component": COMPONENT, "host": node},
            "reportingComponent": COMPONENT,
            "reportingInstance": node,
            "firstTimestamp": seconds(self.first),
            "lastTimestamp": seconds(*at),
            "count": self.count,
        })
    }
}

/// The longest beginning of a text that fits.
fn prefix(text: &str, bytes: usize) -> &str {
    let end = (0..=bytes.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    text.get(..end).unwrap_or_default()
}

/// The API's times of events have whole seconds.
fn seconds(at: Timestamp) -> String {
    let rounding = jiff::TimestampRound::new().smallest(Unit::Second).mode(jiff::RoundMode::Trunc);
    at.round(rounding).unwrap_or(at).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(pod: &str, message: &str) -> EventRecord {
        let involved = Involved {
            namespace: "ns".into(),
            name: pod.into(),
            uid: "u".into(),
            resource_version: "7".into(),
            field_path: "spec.containers{a}".into(),
        };
        let at = Timestamp::from_nanosecond(1_800_000_000_900_000_000).unwrap();
        EventRecord::new(involved, Reason::BackOffRestart, message.into(), at)
    }

    #[test]
    fn an_event_is_as_kubelet_makes_it() {
        let record = record("p", "Back-off restarting failed container a in pod p_ns(u)");
        let first = Timestamp::from_second(1_799_999_000).unwrap();
        let event = Event { name: record.name(), record, first, count: 3 };
        assert_eq!(
            event.to_json("edge-1"),
            json!({
                "apiVersion": "v1",
                "kind": "Event",
                "metadata": {"namespace": "ns", "name": event.name},
                "involvedObject": {
                    "apiVersion": "v1", "kind": "Pod", "namespace": "ns", "name": "p", "uid": "u",
                    "resourceVersion": "7", "fieldPath": "spec.containers{a}",
                },
                "type": "Warning",
                "reason": "BackOff",
                "message": "Back-off restarting failed container a in pod p_ns(u)",
                "source": {"component": "kubelet", "host": "edge-1"},
                "reportingComponent": "kubelet",
                "reportingInstance": "edge-1",
                "firstTimestamp": "2027-01-15T07:43:20Z",
                "lastTimestamp": "2027-01-15T08:00:00Z",
                "count": 3,
            })
        );
        serde_json::from_value::<k8s_openapi::api::core::v1::Event>(event.to_json("edge-1")).unwrap();
    }

    #[test]
    fn an_event_about_the_node_is_in_the_default_namespace() {
        let at = Timestamp::UNIX_EPOCH;
        let record = EventRecord::new(Involved::node("edge-1"), Reason::ImageGcFailed, "m".into(), at);
        let value = Event { name: record.name(), record, first: at, count: 1 }.to_json("edge-1");
        assert_eq!(
            value["involvedObject"],
            json!({"apiVersion": "v1", "kind": "Node", "name": "edge-1", "uid": "edge-1"})
        );
        assert_eq!((&value["metadata"]["namespace"], &value["reason"]), (&json!("default"), &json!("ImageGCFailed")));
        assert!(value["metadata"]["name"].as_str().unwrap().starts_with("edge-1."));
    }

    /// P-EVENT-ONCE
    #[test]
    fn a_name_is_valid_stays_and_tells_events_apart() {
        let name = record("p", "m").name();
        // Written down: a later version must find the events of an earlier one.
        assert_eq!(name, "p.435de2d31c3920ce");
        assert_eq!(name, EventRecord { at: Timestamp::UNIX_EPOCH, ..record("p", "m") }.name());
        assert_ne!(name, record("p", "n").name());
        let mut other = record("p", "m");
        other.involved.field_path = "spec.containers{b}".into();
        assert_ne!(name, other.name());
        // The longest name a pod may have, cut at a place where a name must not end.
        for pod in ["a".repeat(253), format!("{}.-{}", "a".repeat(234), "b".repeat(17))] {
            let name = record(&pod, "m").name();
            assert!(kubeedge_proto::is_dns_subdomain(&name), "{name}");
        }
    }

    #[test]
    fn an_extended_resource_has_a_reason_of_its_own() {
        assert_eq!(Reason::rejected("OutOfexample.com/lamp").as_str(), "OutOfexample.com/lamp");
        let long = format!("OutOf{}.com/lamp", "a".repeat(300));
        assert_eq!(Reason::rejected(&long).as_str(), &long[..MAX_REASON]);
        assert_eq!(Reason::rejected("NodePorts").severity(), Severity::Warning);
    }

    #[test]
    fn a_long_message_is_cut_between_characters() {
        let message = record("p", &"ü".repeat(2000)).message;
        assert_eq!(message.len(), MAX_MESSAGE);
        assert_eq!(record("p", &format!("x{}", "ü".repeat(2000))).message.len(), MAX_MESSAGE - 1);
    }

    #[test]
    fn a_container_is_named_by_its_place_in_the_spec() {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"namespace": "ns", "name": "p", "uid": "u", "resourceVersion": "9"},
            "spec": {"initContainers": [{"name": "i"}], "containers": [{"name": "a"}]},
        }))
        .unwrap();
        let plan = PodPlan::of(&pod).unwrap();
        let path = |container| Involved::of(&plan, Some(&pod), container).field_path;
        assert_eq!(path(Some("i")), "spec.initContainers{i}");
        assert_eq!(path(Some("a")), "spec.containers{a}");
        assert_eq!(path(Some("gone")), "");
        assert_eq!(path(None), "");
        assert_eq!(Involved::of(&plan, Some(&pod), None).resource_version, "9");
    }
}
