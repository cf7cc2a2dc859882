//! The two ends of a connection as a session's driver sees them: a sink and a stream of frames.

use std::{
    fmt,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll},
};

use futures_util::{Stream, StreamExt};
use kubeedge_proto::v1::Frame;
use prost::Message;
use thiserror::Error;
use tokio::{
    sync::{Notify, mpsc::error::TrySendError, oneshot},
    task::JoinHandle,
};

use super::{
    abrupt::Reset,
    queue::{Receiver, Sender, queue},
    refusal,
};

/// Frames that fit between a session and its transport: what a session hands out at most, and room for a Goodbye.
pub const SINK_FRAMES: usize = 320;

/// The transport broke, or refused what the peer sent.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{0}")]
pub struct TransportError(pub String);

/// The session hears of what the transport has taken when it is this many bytes, or everything: a fraction of what may
/// be under way, so that the transport does not run dry, and not every frame, each of which would wake its task.
const TELL_BYTES: usize = 16 * 1024;

/// What has gone from the sink into the transport since it was last asked.
#[derive(Debug, Default)]
struct Meter {
    frames: AtomicUsize,
    bytes: AtomicUsize,
    changed: Notify,
}

/// Frames and bytes that the transport took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drained {
    /// Frames.
    pub frames: usize,
    /// Their encoded bytes.
    pub bytes: usize,
}

/// Where a session's frames go. Dropping it ends this direction in order.
#[derive(Debug)]
pub struct FrameSink {
    /// Behind a pointer each: what a queue keeps of its room is small.
    sender: Sender<Box<(Frame, usize)>>,
    meter: Arc<Meter>,
    /// Its receiver resolves when this sink is dropped.
    _dropped: oneshot::Sender<()>,
}

/// Why a frame was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum SinkError {
    /// More frames than a session may hand out: see [`SINK_FRAMES`].
    #[error("the sink holds {SINK_FRAMES} frames already")]
    Full,
    /// The connection is gone.
    #[error("the connection is closed")]
    Closed,
}

impl FrameSink {
    /// A sink, and the stream that the transport reads it by.
    pub fn new() -> (Self, Outgoing) {
        let (sink, outgoing, _) = Self::watched();
        (sink, outgoing)
    }

    /// Also tells when the sink has been dropped, which is when its session has ended.
    pub(crate) fn watched() -> (Self, Outgoing, oneshot::Receiver<()>) {
        let (sender, receiver) = queue(SINK_FRAMES);
        let (dropped, ended) = oneshot::channel();
        let meter = Arc::new(Meter::default());
        let sink = Self { sender, meter: Arc::clone(&meter), _dropped: dropped };
        (sink, Outgoing { receiver, meter, untold: 0 }, ended)
    }

    /// Hands over a frame.
    pub fn send(&self, frame: Frame) -> Result<(), SinkError> {
        let bytes = frame.encoded_len();
        self.send_sized(frame, bytes)
    }

    /// Hands over a frame of so many bytes, encoded.
    pub(super) fn send_sized(&self, frame: Frame, bytes: usize) -> Result<(), SinkError> {
        self.sender.try_send(Box::new((frame, bytes))).map_err(|error| match error {
            TrySendError::Full(_) => SinkError::Full,
            TrySendError::Closed(_) => SinkError::Closed,
        })
    }

    /// Waits until the transport has taken frames since the last call. May be dropped and called again.
    pub async fn drained(&self) -> Drained {
        loop {
            let changed = self.meter.changed.notified();
            let frames = self.meter.frames.swap(0, Relaxed);
            // A frame whose bytes are counted a moment later is reported by the next call.
            let bytes = self.meter.bytes.swap(0, Relaxed);
            if frames > 0 || bytes > 0 {
                return Drained { frames, bytes };
            }
            changed.await;
        }
    }

    /// Waits until the transport has dropped its end.
    pub async fn closed(&self) {
        self.sender.closed().await;
    }
}

/// The transport's end of a [`FrameSink`].
#[derive(Debug)]
pub struct Outgoing {
    receiver: Receiver<Box<(Frame, usize)>>,
    meter: Arc<Meter>,
    /// Taken, and the session's task not woken for it.
    untold: usize,
}

impl Stream for Outgoing {
    type Item = Frame;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Frame>> {
        let polled = self.receiver.poll_recv(cx);
        if let Poll::Ready(Some(sized)) = &polled {
            let bytes = sized.1;
            self.meter.bytes.fetch_add(bytes, Relaxed);
            self.meter.frames.fetch_add(1, Relaxed);
            self.untold += bytes;
        }
        let all = polled.is_pending() && self.untold > 0;
        if all || self.untold >= TELL_BYTES {
            self.untold = 0;
            self.meter.changed.notify_one();
        }
        polled.map(|sized| sized.map(|sized| sized.0))
    }
}

/// Ends a task when dropped.
#[derive(Debug)]
pub(crate) struct TaskGuard(pub(crate) JoinHandle<()>);

impl Drop for TaskGuard {
    fn drop(&mut self) {
        self.0.abort();
    }
}

enum Incoming {
    Grpc(Box<tonic::Streaming<Frame>>),
    Memory(Outgoing),
}

/// Where the peer's frames come from. At the edge, dropping it closes the connection.
pub struct FrameStream {
    incoming: Incoming,
    /// Of the socket below, if there is one.
    reset: Reset,
    _connection: Option<TaskGuard>,
}

impl fmt::Debug for FrameStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FrameStream").finish_non_exhaustive()
    }
}

impl FrameStream {
    pub(super) fn grpc(stream: tonic::Streaming<Frame>, reset: Reset, connection: Option<TaskGuard>) -> Self {
        Self { incoming: Incoming::Grpc(Box::new(stream)), reset, _connection: connection }
    }

    /// The connection ends abruptly when it is dropped: a peer of which nothing arrives does not let it end in order.
    pub(super) fn reset(&self) {
        self.reset.set();
    }

    /// The next frame; `None` when the peer has ended its direction in order. May be dropped and called again.
    pub async fn next(&mut self) -> Result<Option<Frame>, TransportError> {
        match &mut self.incoming {
            Incoming::Grpc(stream) => stream.message().await.map_err(|status| TransportError(describe(&status))),
            Incoming::Memory(stream) => Ok(stream.next().await),
        }
    }
}

/// A gRPC status with what is behind it, such as the broken connection.
pub(crate) fn describe(status: &tonic::Status) -> String {
    if let Some(error) = refusal::of(status) {
        return refusal::reason(error);
    }
    let mut text = format!("{:?}: {}", status.code(), status.message());
    let mut source = std::error::Error::source(status);
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}

/// Two ends of a connection in memory, for tests and for cloud and edge in one process.
pub fn memory_pair() -> ((FrameSink, FrameStream), (FrameSink, FrameStream)) {
    let (a_sink, to_b) = FrameSink::new();
    let (b_sink, to_a) = FrameSink::new();
    let stream =
        |outgoing| FrameStream { incoming: Incoming::Memory(outgoing), reset: Reset::default(), _connection: None };
    ((a_sink, stream(to_a)), (b_sink, stream(to_b)))
}
