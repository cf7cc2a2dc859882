//! What a node's report becomes: requests to the API server, one after the other. Pure: an answer in, the next one out.
//!
//! Every write of a pod's status carries its uid and, as far as it is known, its resourceVersion. On a conflict the pod is
//! read again and has to be the node's still: a request of an older session that comes late changes nothing.

use kubeedge_proto::{
    NodeName, resource,
    v1::{ObjectKey, PodTerminated, ResourceType, Settled, StatusUpdate},
};
use serde_json::Value;

use super::{
    StreamGateway,
    authorization::is_mirror,
    ownership::{Owner, status_patch},
};

/// Times that one report is written again because others wrote at the same time.
const CONFLICTS: u32 = 4;

/// Where a pod is bound.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bound {
    /// The node's name; empty when none.
    pub node: String,
    /// The pod's uid.
    pub uid: String,
    /// The version this is known from.
    pub resource_version: String,
}

impl Bound {
    /// As a pod says it.
    pub fn of(pod: &Value) -> Self {
        let text = |pointer| pod.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
        Self {
            node: text("/spec/nodeName"),
            uid: text("/metadata/uid"),
            resource_version: text("/metadata/resourceVersion"),
        }
    }
}

/// Lets through what concerns a pod that is bound to this node and is still the same pod (`P-OWN-OBJECTS`).
pub fn check(node: &str, key: &ObjectKey, uid: &str, bound: Option<&Bound>) -> Result<(), Settled> {
    match bound {
        None => Err(Settled::rejected(404, format!("pod {key} is gone"))),
        Some(bound) if bound.node != node => {
            Err(Settled::rejected(403, format!("pod {key} is not bound to node {node}")))
        }
        Some(bound) if bound.uid != uid => Err(Settled::superseded()),
        Some(_) => Ok(()),
    }
}

/// For the API server.
#[derive(Clone, Debug, PartialEq)]
pub enum Request {
    /// Read an object.
    Get(ResourceType, ObjectKey),
    /// Write an object's status by this strategic merge patch.
    PatchStatus(ResourceType, ObjectKey, Value),
    /// Let a pod of this uid go, with no further grace.
    DeletePod(ObjectKey, String),
}

/// What the API server did not do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// HTTP status; 503 when there was no answer.
    pub code: u16,
    /// For a person.
    pub message: String,
}

impl Refused {
    /// What the node is told.
    pub fn settled(&self) -> Settled {
        match self.code {
            // This cloud's own credentials or rights are at fault, not the node's message: it is kept and sent again.
            code @ (401 | 403) => {
                let text = format!("the API server does not let this cloud write ({code}): {}", self.message);
                Settled::rejected(503, text)
            }
            code => Settled::rejected(code.into(), self.message.clone()),
        }
    }
}

/// What follows.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Ask for this, and give the answer to [`Write::next`].
    Ask(Request),
    /// Tell the node.
    Done(Settled),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The pod is read, since the watch does not know it.
    Finding,
    Patching,
    /// Others wrote at the same time.
    Rereading,
    Deleting,
}

/// One report on its way into the API server.
#[derive(Clone, Debug)]
pub struct Write {
    node: String,
    owner: Owner,
    key: ObjectKey,
    uid: String,
    reported: Value,
    /// The pod has ended: its object may go.
    terminated: bool,
    phase: Phase,
    conflicts: u32,
}

impl Write {
    /// A node's or a pod's status. The error is the answer.
    pub fn status(node: &NodeName, update: &StatusUpdate, gateway: Option<&StreamGateway>) -> Result<Self, Settled> {
        let (Some(type_), Some(key)) = (&update.r#type, &update.key) else {
            return Err(Settled::rejected(400, "a StatusUpdate names no object"));
        };
        let owner = if *type_ == resource::nodes() && key.namespace.is_empty() && key.name == node.as_str() {
            Owner::Node
        } else if *type_ == resource::pods() {
            Owner::Pod
        } else {
            return Err(Settled::rejected(403, format!("node {node} may not write the status of {type_} {key}")));
        };
        let mut write = Self::new(node, owner, key, &update.uid, &update.status_json)?;
        if let (Owner::Node, Some(gateway)) = (owner, gateway) {
            gateway.publish(&mut write.reported);
        }
        Ok(write)
    }

    /// A pod's last status, after which its API object may go. The error is the answer.
    pub fn terminated(node: &NodeName, pod: &PodTerminated) -> Result<Self, Settled> {
        let key = pod.key.as_ref().ok_or_else(|| Settled::rejected(400, "a PodTerminated names no pod"))?;
        Ok(Self { terminated: true, ..Self::new(node, Owner::Pod, key, &pod.uid, &pod.status_json)? })
    }

    fn new(node: &NodeName, owner: Owner, key: &ObjectKey, uid: &str, status_json: &[u8]) -> Result<Self, Settled> {
        if owner == Owner::Pod && (key.namespace.is_empty() || !key.is_valid()) {
            return Err(Settled::rejected(400, format!("{key:?} is not the name of a pod")));
        }
        let reported = serde_json::from_slice::<Value>(status_json)
            .map_err(|_| Settled::rejected(400, format!("the status of {key} is not JSON")))?;
        Ok(Self {
            node: node.to_string(),
            owner,
            key: key.clone(),
            uid: uid.to_owned(),
            reported,
            terminated: false,
            phase: Phase::Finding,
            conflicts: 0,
        })
    }

    /// What the report is about.
    pub fn key(&self) -> &ObjectKey {
        &self.key
    }

    fn type_(&self) -> ResourceType {
        match self.owner {
            Owner::Pod => resource::pods(),
            Owner::Node => resource::nodes(),
        }
    }

    /// The first step. `bound`: where the pod is bound as far as the watch knows, which may be behind the node.
    pub fn begin(&mut self, bound: Option<&Bound>) -> Step {
        match (self.owner, bound) {
            (Owner::Node, _) => self.patch(""),
            (Owner::Pod, Some(bound)) => self.checked(bound),
            (Owner::Pod, None) => Step::Ask(Request::Get(self.type_(), self.key.clone())),
        }
    }

    fn checked(&mut self, bound: &Bound) -> Step {
        match check(&self.node, &self.key, &self.uid, Some(bound)) {
            Ok(()) => self.patch(&bound.resource_version),
            Err(settled) => Step::Done(settled),
        }
    }

    fn patch(&mut self, resource_version: &str) -> Step {
        self.phase = Phase::Patching;
        let mut patch = status_patch(self.owner, &self.uid, &self.reported);
        if !resource_version.is_empty() {
            patch["metadata"]["resourceVersion"] = resource_version.into();
        }
        Step::Ask(Request::PatchStatus(self.type_(), self.key.clone(), patch))
    }

    /// The step after an answer.
    pub fn next(&mut self, answer: Result<Value, Refused>) -> Step {
        match (self.phase, answer) {
            (Phase::Finding, Ok(pod)) => self.checked(&Bound::of(&pod)),
            (Phase::Patching, Ok(object)) => {
                // A mirror pod goes with what it stands for, whether somebody asked for that or not.
                let may_go = object.pointer("/metadata/deletionTimestamp").is_some() || is_mirror(&object);
                if !self.terminated || !may_go {
                    return Step::Done(Settled::applied());
                }
                self.phase = Phase::Deleting;
                Step::Ask(Request::DeletePod(self.key.clone(), self.uid.clone()))
            }
            (Phase::Patching, Err(refused)) if refused.code == 409 => {
                if self.conflicts >= CONFLICTS {
                    let text = format!("others write the status of {} at the same time", self.key);
                    return Step::Done(Settled::rejected(503, text));
                }
                self.conflicts += 1;
                self.phase = Phase::Rereading;
                Step::Ask(Request::Get(self.type_(), self.key.clone()))
            }
            (Phase::Rereading, Ok(now)) => {
                let now = Bound::of(&now);
                if !self.uid.is_empty() && now.uid != self.uid {
                    return Step::Done(self.of_another());
                }
                match self.owner {
                    Owner::Pod => self.checked(&now),
                    Owner::Node => self.patch(&now.resource_version),
                }
            }
            (Phase::Deleting, Ok(_)) => Step::Done(Settled::applied()),
            // Gone, or another one by now: nothing is left to do for this one.
            (Phase::Patching | Phase::Rereading | Phase::Deleting, Err(refused))
                if self.terminated && matches!(refused.code, 404 | 409) =>
            {
                Step::Done(Settled::superseded())
            }
            (Phase::Finding, Err(refused)) if refused.code == 404 => {
                Step::Done(Settled::rejected(404, format!("pod {} is gone", self.key)))
            }
            (_, Err(refused)) => Step::Done(refused.settled()),
        }
    }

    fn of_another(&self) -> Settled {
        if self.terminated {
            return Settled::superseded();
        }
        Settled::rejected(409, format!("{} is another object by now", self.key))
    }
}
