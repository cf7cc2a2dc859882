//! What a session end is told when it is made, and the numbers of protocol version 1.

use std::time::Duration;

use kubeedge_proto::v1::{self, TrafficClass};

/// The protocol versions this code speaks.
pub const VERSIONS: v1::ProtocolVersions = v1::ProtocolVersions { lowest: 1, highest: 1 };
/// The largest frame on the wire, encoded, in bytes. A decoder refuses more.
pub const MAX_FRAME_BYTES: usize = 64 * 1024;
/// An encoded Envelope larger than this travels in chunks.
pub const CHUNK_THRESHOLD: usize = 32 * 1024;
/// Bytes of an Envelope in one chunk: 130 ms of a 1 Mbit/s line, which is what a heartbeat may have to wait for.
pub const CHUNK_BYTES: usize = 16 * 1024;
/// Entries of an inventory in one frame stop here, in bytes.
pub const INVENTORY_PIECE_BYTES: usize = 16 * 1024;
/// Ranges of one Ack stop here, in bytes; the rest follows in the next.
pub const ACK_BYTES: usize = 8 * 1024;
/// A settlement's reason is cut to this many bytes on the wire.
pub const MAX_REASON_BYTES: usize = 256;
/// Kinds a Hello may carry digests of.
pub const MAX_KINDS: usize = 512;
/// Bookmarks and completions that wait, at either end, for the State before them.
pub const MAX_MARKS: usize = 1024;

/// How many unsettled messages of a class a receiver takes at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Messages.
    pub messages: u32,
    /// Encoded bytes. A message may start while there is any room, and none counts for more than half of this: one big
    /// object that takes its time does not stop the small ones. At most three big ones are under way, which bounds
    /// the receiver's memory at three times `max_message_bytes` or this, whichever is more.
    pub bytes: u64,
}

impl Window {
    /// What a message counts for in `bytes`.
    pub(crate) fn cost(&self, bytes: usize) -> u64 {
        (bytes as u64).min(self.bytes / 2)
    }

    /// Whether a message may start while so much is unsettled.
    pub(crate) fn is_open(&self, messages: u64, bytes: u64) -> bool {
        messages < self.messages.into() && bytes < self.bytes
    }
}

/// The window of each class. For Call the window holds for requests and for replies each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Windows {
    /// Of State.
    pub state: Window,
    /// Of Events.
    pub event: Window,
    /// Of Calls.
    pub call: Window,
}

impl Windows {
    /// The windows of protocol version 1. The edge always has these, the cloud tells its own in Welcome.
    pub const DEFAULT: Self = Self {
        state: Window { messages: 256, bytes: 1024 * 1024 },
        event: Window { messages: 256, bytes: 1024 * 1024 },
        call: Window { messages: 64, bytes: 1024 * 1024 },
    };

    pub(crate) fn to_wire(self) -> Vec<v1::ClassWindow> {
        [(TrafficClass::State, self.state), (TrafficClass::Event, self.event), (TrafficClass::Call, self.call)]
            .map(|(class, window)| v1::ClassWindow {
                class: class.into(),
                messages: window.messages,
                bytes: window.bytes,
            })
            .to_vec()
    }

    /// Classes that are not named keep their default; a window of nothing is raised to one message.
    pub(crate) fn from_wire(wire: &[v1::ClassWindow]) -> Self {
        let mut windows = Self::DEFAULT;
        for entry in wire {
            let window = Window { messages: entry.messages.max(1), bytes: entry.bytes.max(1) };
            match entry.class() {
                TrafficClass::State => windows.state = window,
                TrafficClass::Event => windows.event = window,
                TrafficClass::Call => windows.call = window,
                TrafficClass::Unspecified => {}
            }
        }
        windows
    }
}

/// How often State of one key may be sent: `burst` at once, then one per `interval`.
///
/// A key over its rate waits with its newest version in the sender's queue, where it holds no slot of the window.
/// `PodTerminated` and tombstones never wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyRate {
    /// Messages that may go at once.
    pub burst: u32,
    /// One more after each of these.
    pub interval: Duration,
}

/// What a session end is told when it is made.
#[derive(Clone, Debug)]
pub struct Config {
    /// This end's version, for people.
    pub software_version: String,
    /// This end's capabilities, for later versions.
    pub capabilities: Vec<String>,
    /// The wall clock when the session's own time is zero, in milliseconds since 1970. For people and metrics only.
    /// [`Session::stamped`](super::session::Session::stamped) takes it from the process.
    pub unix_ms_at_zero: u64,
    /// A random number; the ids of the messages that the session itself makes count up from it. `stamped` draws one.
    pub id_seed: u128,
    /// What this end takes. The edge leaves it at [`Windows::DEFAULT`], since Hello does not carry windows.
    pub windows: Windows,
    /// The largest Envelope, encoded, in bytes. Larger is refused with a typed error at either end.
    pub max_message_bytes: usize,
    /// The most entries one kind's inventory may have.
    pub max_inventory_entries: usize,
    /// State messages that may be queued, one per key and uid. Beyond it a submission is refused.
    pub max_queued_state: usize,
    /// Events that may be queued. Beyond it a submission is refused and counted.
    pub max_queued_events: usize,
    /// Bytes of Events that may be queued.
    pub max_queued_event_bytes: usize,
    /// Calls of this end that wait for a reply, and calls of the peer that wait for this end's.
    pub max_calls: usize,
    /// For a Call that names no timeout.
    pub default_call_timeout: Duration,
    /// No Call waits longer than this, whatever it names.
    pub max_call_timeout: Duration,
    /// How often State of one key may be sent. `None`: no limit.
    pub key_rate: Option<KeyRate>,
    /// Bytes handed to the transport and not yet taken by it.
    pub socket_budget: usize,
    /// Frames handed to the transport and not yet taken by it.
    pub socket_frames: usize,
    /// The edge sends a heartbeat when it was silent for this long; the cloud after one and a half.
    pub heartbeat_interval: Duration,
    /// Nothing from the peer for this long: the link is dead. Below the 25 s within which a half-open link is found
    /// (`P-HALF-OPEN`): what was under way when the line broke still arrives for a while, a second on a slow line, and
    /// counts as life.
    pub dead_after: Duration,
    /// From the start of the connection to Hello and Welcome.
    pub handshake_timeout: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            software_version: env!("CARGO_PKG_VERSION").to_owned(),
            capabilities: Vec::new(),
            unix_ms_at_zero: 0,
            id_seed: 0,
            windows: Windows::DEFAULT,
            max_message_bytes: 8 * 1024 * 1024,
            max_inventory_entries: 100_000,
            max_queued_state: 100_000,
            max_queued_events: 4096,
            max_queued_event_bytes: 4 * 1024 * 1024,
            max_calls: 256,
            default_call_timeout: Duration::from_secs(10),
            max_call_timeout: Duration::from_secs(300),
            key_rate: None,
            socket_budget: 64 * 1024,
            socket_frames: 256,
            heartbeat_interval: Duration::from_secs(10),
            dead_after: Duration::from_secs(23),
            handshake_timeout: Duration::from_secs(10),
        }
    }
}
