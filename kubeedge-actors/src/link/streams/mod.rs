//! The second connection of a node: many byte streams over one gRPC call, opened by the edge when the cloud asks.
//!
//! | module | what it is | I/O |
//! |---|---|---|
//! | [`mux`] | one end: which frames may come, what is buffered, whose turn it is | none |
//! | [`connection`] | runs an end over a transport and gives out [`Stream`]s | channels |
//! | [`relay`] | a stream and a socket become one | the socket |
//!
//! The cloud opens streams, each with a request; the edge answers with a head and bytes. Bounds, at each end: so many
//! streams ([`OPEN_STREAMS`]), and for each of them [`WINDOW`] bytes received and not read and [`SEND_BUFFER`] bytes not
//! sent. A stream that nobody reads stops its own sender and no other: credit is per stream, and streams take turns frame
//! by frame. Either end may drop a stream at any time, which frees it at both.

pub mod connection;
pub mod mux;
pub mod relay;
#[cfg(test)]
mod tests;

use actix::Message;
use kubeedge_proto::NodeName;
use thiserror::Error;

pub use connection::{Connection, Request, Stream};
pub use mux::{Mux, Side};

/// Streams of one node that may be open at a time. The edge allows twice as many, for ends that cross on their way.
pub const OPEN_STREAMS: usize = 128;
/// Bytes that a stream's peer may send before they are read.
pub const WINDOW: usize = 64 * 1024;
/// Bytes of a stream that wait to be sent; whoever writes more waits.
pub const SEND_BUFFER: usize = 32 * 1024;
/// Bytes of one data frame.
pub const FRAME_BYTES: usize = 16 * 1024;

/// Why a stream ended before its time.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum StreamError {
    /// The other end gave it up.
    #[error("the other end gave the stream up: {0}")]
    Aborted(String),
    /// The connection ended.
    #[error("the stream connection ended: {0}")]
    Disconnected(String),
}

/// Why no stream was opened.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum OpenError {
    /// [`OPEN_STREAMS`] are open.
    #[error("{OPEN_STREAMS} streams with this node are open: close one of them")]
    Full,
    /// The connection has ended.
    #[error("the stream connection ended: {0}")]
    Disconnected(String),
}

/// CloudStream and Router ask CloudHub for the stream connection of a node, which is opened if there is none.
#[derive(Clone, Debug, Message)]
#[rtype(result = "Result<Connection, NotConnected>")]
pub struct ConnectStreams {
    /// The node.
    pub node: NodeName,
}

/// Why there is no stream connection.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum NotConnected {
    /// The node has no session.
    #[error("node {0} is not connected")]
    Offline(NodeName),
    /// The node has a session and did not open the connection in time.
    #[error("node {0} did not open a connection for streams in time")]
    Late(NodeName),
    /// Too many ask at once.
    #[error("too many requests wait for node {0}")]
    Busy(NodeName),
}

/// EdgeHub hands a request of the cloud to EdgeStream.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct ServeStream {
    /// The request, with the stream that it is answered on.
    pub request: Request,
}

/// EdgeHub hands a call of a service, which the cloud makes for a rule, to ServiceBus.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct ServeService {
    /// The request: `service` says where it goes.
    pub request: Request,
}
