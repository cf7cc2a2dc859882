//! What follows from a body's type: its traffic class, its priority, and for State the key it coalesces on.

use crate::v1::{self, ObjectKey, Priority, ResourceType, TrafficClass, envelope::Body};

/// What State coalesces on: the newest message of one key and uid replaces older ones.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct StateKey {
    /// The type of the object.
    pub type_: ResourceType,
    /// Its namespace and name.
    pub key: ObjectKey,
    /// Its uid: delete and recreate under one name are two keys, kept in order.
    pub uid: String,
}

impl Body {
    /// The traffic class, fixed by the type.
    pub fn class(&self) -> TrafficClass {
        match self {
            Body::ObjectUpsert(_)
            | Body::ObjectTombstone(_)
            | Body::StatusUpdate(_)
            | Body::PodTerminated(_)
            | Body::DeviceReport(_) => TrafficClass::State,
            Body::KubernetesEvent(_) | Body::UserMessage(_) | Body::GapMarker(_) => TrafficClass::Event,
            Body::ObjectQuery(_)
            | Body::RegisterNode(_)
            | Body::RequestToken(_)
            | Body::SignCertificate(_)
            | Body::CreateMirrorPod(_)
            | Body::ApiRequest(_)
            | Body::ServiceCall(_)
            | Body::ReportDevice(_)
            | Body::CallReply(_) => TrafficClass::Call,
        }
    }

    /// The priority a message of this type has unless its sender says otherwise.
    pub fn default_priority(&self) -> Priority {
        match self {
            Body::CallReply(_)
            | Body::ObjectQuery(_)
            | Body::RegisterNode(_)
            | Body::RequestToken(_)
            | Body::CreateMirrorPod(_)
            | Body::SignCertificate(_) => Priority::Control,
            Body::ObjectUpsert(_) | Body::ObjectTombstone(_) | Body::StatusUpdate(_) | Body::PodTerminated(_) => {
                Priority::Config
            }
            Body::ApiRequest(_) | Body::ServiceCall(_) | Body::UserMessage(_) => Priority::Bulk,
            Body::KubernetesEvent(_) | Body::GapMarker(_) | Body::DeviceReport(_) | Body::ReportDevice(_) => {
                Priority::Telemetry
            }
        }
    }

    /// For State: what it coalesces on. `None` for other classes and for a body without a key.
    pub fn state_key(&self) -> Option<StateKey> {
        let make = |type_: Option<&ResourceType>, key: Option<&ObjectKey>, uid: &str| {
            Some(StateKey { type_: type_?.clone(), key: key?.clone(), uid: uid.to_owned() })
        };
        match self {
            Body::ObjectUpsert(v1::ObjectUpsert { object: Some(object), .. }) => {
                make(object.r#type.as_ref(), object.key.as_ref(), &object.uid)
            }
            Body::ObjectTombstone(gone) => make(gone.r#type.as_ref(), gone.key.as_ref(), &gone.uid),
            Body::StatusUpdate(status) => make(status.r#type.as_ref(), status.key.as_ref(), &status.uid),
            Body::PodTerminated(pod) => make(Some(&crate::resource::pods()), pod.key.as_ref(), &pod.uid),
            Body::DeviceReport(device) => make(Some(&crate::resource::devices()), device.key.as_ref(), &device.uid),
            _ => None,
        }
    }
}

impl v1::Envelope {
    /// A new envelope around `body` with a fresh id and the body's default priority.
    pub fn new(origin: impl Into<String>, time_unix_ms: u64, body: Body) -> Self {
        Self {
            id: uuid::Uuid::new_v4().into_bytes().to_vec().into(),
            origin: origin.into(),
            time_unix_ms,
            priority: body.default_priority().into(),
            body: Some(body),
            ..Default::default()
        }
    }

    /// The traffic class of the body; `None` when the body is of a type this version does not know.
    pub fn class(&self) -> Option<TrafficClass> {
        self.body.as_ref().map(Body::class)
    }
}

impl v1::Settled {
    /// Committed.
    pub fn applied() -> Self {
        Self { disposition: v1::Disposition::Applied.into(), ..Default::default() }
    }

    /// A newer version was there already.
    pub fn superseded() -> Self {
        Self { disposition: v1::Disposition::Superseded.into(), ..Default::default() }
    }

    /// Refused, with an HTTP status and a reason for a person.
    pub fn rejected(code: u32, reason: impl Into<String>) -> Self {
        Self { disposition: v1::Disposition::Rejected.into(), code, reason: reason.into() }
    }

    /// Whether it was refused for now: whoever could not take it, or the API server behind it, may take it later. Other
    /// codes are for good.
    pub fn is_for_now(&self) -> bool {
        matches!(self.code, 408 | 429) || (self.code >= 500 && self.code != 501)
    }
}

impl v1::CallReply {
    /// An error reply.
    pub fn error(code: u32, reason: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            result: Some(v1::call_reply::Result::Error(v1::CallError {
                code,
                reason: reason.into(),
                message: message.into(),
            })),
        }
    }
}
