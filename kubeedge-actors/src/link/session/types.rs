//! What goes into a session and what comes out.

use std::time::Duration;

use bytes::Bytes;
use kubeedge_proto::v1::{self, CallReply, Envelope, Goodbye, ResourceType, Settled, TrafficClass};
use thiserror::Error;

/// A class of traffic with a sequence, a window and acks of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Class {
    /// Newest per (key, uid).
    State,
    /// FIFO.
    Event,
    /// A question with a deadline, and its reply.
    Call,
}

impl Class {
    pub(crate) const ALL: [Self; 3] = [Self::State, Self::Event, Self::Call];

    pub(crate) fn from_wire(class: TrafficClass) -> Option<Self> {
        match class {
            TrafficClass::State => Some(Self::State),
            TrafficClass::Event => Some(Self::Event),
            TrafficClass::Call => Some(Self::Call),
            TrafficClass::Unspecified => None,
        }
    }

    pub(crate) fn to_wire(self) -> TrafficClass {
        match self {
            Self::State => TrafficClass::State,
            Self::Event => TrafficClass::Event,
            Self::Call => TrafficClass::Call,
        }
    }
}

/// What a session is told. Times come beside it, see [`super::Session::handle`].
#[derive(Clone, Debug)]
pub enum Input {
    /// From the peer.
    Frame(v1::Frame),
    /// The transport took frames off this end's hands: room for more.
    Drained {
        /// How many.
        frames: usize,
        /// Their encoded bytes, as [`prost::Message::encoded_len`] counts them.
        bytes: usize,
    },
    /// The transport is gone; the text says why.
    TransportEnded(String),
    /// Say this to the peer and end.
    Close(Goodbye),
    /// Send this. Its class follows from its body. State is taken from the start and sent once established;
    /// a Call fails at once while the session is not established.
    Submit(Box<Envelope>),
    /// The owner's component is done with a delivered State or Event.
    Settle {
        /// As delivered.
        class: Class,
        /// As delivered.
        seq: u64,
        /// What became of it.
        settled: Settled,
    },
    /// The answer to a delivered Call.
    Reply {
        /// As delivered.
        seq: u64,
        /// The answer.
        reply: CallReply,
    },
    /// Cloud: the Hello is welcome. See [`crate::link::registry::Registry`].
    Admit {
        /// Of this session.
        epoch: u64,
        /// uid of the cluster's `kube-system` namespace; empty when there is none to pin.
        cluster_uid: String,
        /// The highest resourceVersion the cloud can vouch for.
        resource_version: u64,
    },
    /// Cloud: the answer to [`Output::NeedDesired`].
    DesiredKnown(v1::DesiredState),
    /// Cloud: compare again what is desired with what the edge holds, since more is known now (a kind became complete).
    Recheck,
    /// Cloud: everything desired of this kind has been submitted before. Goes out after it.
    Complete(v1::InventoryComplete),
    /// Cloud: the watch of this kind has come to here. Goes out after the State of the kind submitted before.
    Bookmark(Box<v1::Bookmark>),
    /// Cloud: ask the edge to open the second connection.
    OpenStreams,
    /// Edge: the answer to [`Output::NeedInventory`].
    InventoryKnown {
        /// As asked.
        type_: Box<ResourceType>,
        /// What is on disk.
        entries: Vec<v1::InventoryEntry>,
    },
    /// Edge: how long ago Edged and the runtime last made progress. Ages by itself until told again.
    Progress {
        /// Milliseconds.
        age_ms: u64,
    },
}

/// What a session wants done or known.
#[derive(Clone, Debug)]
pub enum Output {
    /// For the peer, in this order, with its encoded bytes. Counts against the socket's budget until [`Input::Drained`].
    Send(v1::Frame, usize),
    /// Cloud: answer with [`Input::Admit`] or [`Input::Close`].
    HelloReceived(Box<v1::Hello>),
    /// The session stands. The edge stores epoch and cluster before it applies anything.
    Established(Established),
    /// Cloud: answer with [`Input::DesiredKnown`]. State submitted from now on counts as newer than that answer.
    NeedDesired,
    /// Edge: answer with [`Input::InventoryKnown`].
    NeedInventory(Box<ResourceType>),
    /// Hand it to its component. State and Events are answered with [`Input::Settle`], Calls with [`Input::Reply`].
    Deliver {
        /// Its class.
        class: Class,
        /// Its sequence, to answer with.
        seq: u64,
        /// The message; its body is always one this version knows and of this class.
        envelope: Box<Envelope>,
    },
    /// Edge: everything desired of this kind has been settled here.
    Completed(v1::InventoryComplete),
    /// Edge: the watch bookmark of a kind; the State before it has been settled here.
    Bookmark(Box<v1::Bookmark>),
    /// Edge: open the second connection.
    OpenStreams,
    /// Cloud: the peer is alive and says how long ago it made progress.
    Heartbeat {
        /// Milliseconds.
        progress_age_ms: u64,
    },
    /// Edge: the cloud has answered a heartbeat, after this time.
    RoundTrip(Duration),
    /// The peer is done with a submitted State or Event.
    Settled {
        /// State or Event.
        class: Class,
        /// As submitted.
        envelope: Box<Envelope>,
        /// What became of it.
        settled: Settled,
    },
    /// A queued State gave way to a newer one of its key and uid, and will not be sent.
    Coalesced {
        /// As submitted.
        envelope: Box<Envelope>,
    },
    /// A submission was not taken.
    Refused {
        /// As submitted.
        envelope: Box<Envelope>,
        /// Why.
        why: Refusal,
    },
    /// The answer to a submitted Call.
    Reply {
        /// The Call's envelope id.
        id: Bytes,
        /// The answer.
        reply: CallReply,
    },
    /// A submitted Call has no answer.
    CallFailed {
        /// The Call's envelope id.
        id: Bytes,
        /// Why.
        why: CallFailure,
    },
    /// The session is over. Nothing follows but the failures of open Calls.
    Closed(Closed),
}

/// What both sides agreed on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Established {
    /// Protocol version.
    pub version: u32,
    /// Names the session; rises.
    pub epoch: u64,
    /// Of the cloud's cluster.
    pub cluster_uid: String,
    /// The highest resourceVersion the cloud can vouch for.
    pub resource_version: u64,
    /// The peer's clock, in milliseconds since 1970, when it said so.
    pub peer_unix_ms: u64,
    /// The peer's software.
    pub software_version: String,
    /// The peer's capabilities.
    pub capabilities: Vec<String>,
}

/// Why a submission was not taken.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Refusal {
    /// Submitted after the end.
    #[error("the session is over; submit it to the next one")]
    Closed,
    /// The body is missing, or its kind needs another input.
    #[error("an envelope to submit needs {expected}")]
    Malformed {
        /// What was expected.
        expected: &'static str,
    },
    /// Larger than either side takes.
    #[error("the message is {bytes} bytes, the limit is {limit}")]
    TooLarge {
        /// Encoded.
        bytes: usize,
        /// Of this session.
        limit: usize,
    },
    /// The queue of its class is at its bound.
    #[error("the {class:?} queue is at its bound of {limit}")]
    QueueFull {
        /// Of the message.
        class: Class,
        /// Messages or bytes, whichever was reached.
        limit: usize,
    },
}

impl Refusal {
    /// What whoever submitted an Event is told.
    pub fn settled(&self) -> Settled {
        let code = match self {
            Self::Closed => 503,
            Self::Malformed { .. } => 400,
            Self::TooLarge { .. } => 413,
            Self::QueueFull { .. } => 429,
        };
        Settled::rejected(code, self.to_string())
    }
}

/// Why a Call has no answer.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum CallFailure {
    /// There is no session.
    #[error("the link is down")]
    Offline,
    /// No answer in time.
    #[error("no answer within the deadline")]
    Timeout,
    /// As many Calls wait as may.
    #[error("{0} calls wait for an answer already")]
    TooMany(usize),
    /// It could not be sent.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The peer gave it up without an answer.
    #[error("the peer gave up the call: {1} ({0})")]
    GivenUp(u32, String),
}

impl CallFailure {
    /// As the caller sees it.
    pub fn to_reply(&self) -> CallReply {
        let (code, reason) = match self {
            Self::Offline => (503, "Offline"),
            Self::Timeout => (504, "Timeout"),
            Self::TooMany(_) => (429, "TooManyRequests"),
            Self::Refused(Refusal::TooLarge { .. }) => (413, "RequestEntityTooLarge"),
            Self::Refused(_) => (400, "BadRequest"),
            Self::GivenUp(code, _) => (*code, "GivenUp"),
        };
        CallReply::error(code, reason, self.to_string())
    }
}

/// How a session ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Closed {
    /// This end said so.
    ByUs(Goodbye),
    /// The peer said so.
    ByPeer(Goodbye),
    /// The transport broke.
    Transport(String),
}

impl Closed {
    /// What the peer or this end said, if anybody said something.
    pub fn goodbye(&self) -> Option<&Goodbye> {
        match self {
            Self::ByUs(goodbye) | Self::ByPeer(goodbye) => Some(goodbye),
            Self::Transport(_) => None,
        }
    }
}

impl std::fmt::Display for Closed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::ByUs(goodbye) => write!(f, "closed by this end: {:?}: {}", goodbye.reason(), goodbye.message),
            Self::ByPeer(goodbye) => write!(f, "closed by the peer: {:?}: {}", goodbye.reason(), goodbye.message),
            Self::Transport(why) => write!(f, "transport: {why}"),
        }
    }
}

/// What was submitted and not settled when the session ended, oldest first.
#[derive(Clone, Debug, Default)]
pub struct Remains {
    /// State: sent without an ack, or never sent.
    pub state: Vec<Envelope>,
    /// Events: the same.
    pub events: Vec<Envelope>,
}

/// Counts of one session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Frames handed to the transport.
    pub frames_sent: u64,
    /// Their encoded bytes.
    pub bytes_sent: u64,
    /// Frames received.
    pub frames_received: u64,
    /// Their encoded bytes.
    pub bytes_received: u64,
    /// Queued State that a newer one replaced.
    pub coalesced: u64,
    /// Submissions refused.
    pub refused: u64,
    /// Replies that came after their Call had failed.
    pub late_replies: u64,
    /// Answers of the owner to something that is not open (any more).
    pub unexpected_answers: u64,
    /// Messages of a body this version does not know.
    pub unsupported: u64,
    /// Round trip of the last heartbeat, in milliseconds.
    pub round_trip_ms: u64,
}

/// What the peer did that the protocol forbids. Ends the session.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub(crate) enum Violation {
    #[error("{frame} is not expected {phase}")]
    Unexpected { frame: &'static str, phase: &'static str },
    #[error("{field}: got {got}, expected {expected}")]
    Field { field: &'static str, got: String, expected: String },
    #[error("{what}: {got} is over the limit of {limit}")]
    Limit { what: &'static str, got: u64, limit: u64 },
    #[error("protocol versions {theirs:?} and {ours:?} do not overlap; upgrade the older side")]
    Version { theirs: (u32, u32), ours: (u32, u32) },
}

impl Violation {
    pub(crate) fn field(field: &'static str, got: impl ToString, expected: impl ToString) -> Self {
        Self::Field { field, got: got.to_string(), expected: expected.to_string() }
    }

    pub(crate) fn goodbye(&self) -> Goodbye {
        let reason = match self {
            Self::Unexpected { .. } | Self::Field { .. } => v1::GoodbyeReason::ProtocolError,
            Self::Limit { .. } => v1::GoodbyeReason::Limit,
            Self::Version { .. } => v1::GoodbyeReason::UnsupportedVersion,
        };
        // A peer that breaks the protocol will do so again: not every half second.
        Goodbye { reason: reason.into(), message: self.to_string(), retry_after_ms: 5_000 }
    }
}

/// Not refused for what it is, but because the receiver could not: worth another try.
pub(crate) fn is_failure(settled: &Settled) -> bool {
    settled.disposition() == v1::Disposition::Rejected && settled.is_for_now()
}

pub(crate) fn frame(frame: v1::frame::Frame) -> v1::Frame {
    v1::Frame { frame: Some(frame) }
}
