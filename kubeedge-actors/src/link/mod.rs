//! The link between CloudHub and EdgeHub: one mutually authenticated gRPC stream per node, opened by the edge.
//!
//! | module | what it is | I/O |
//! |---|---|---|
//! | [`session`] | one end of one session, the same code at both ends: sequences, windows, acks, coalescing, priorities, deadlines, liveness | none |
//! | [`resync`] | what to send after a reconnect: the difference of what is desired and what the edge holds | none |
//! | [`registry`] | which connection of a node is its session; epochs | none |
//! | [`backoff`] | when to try again | none |
//! | [`transport`] | a sink and a stream of frames, over TLS sockets or in memory | the ends of a connection |
//! | [`driver`] | runs a session over a transport and talks to the actor that owns it | timer, channels |
//! | [`queues`] | between a driver and its owner, and what they and a sink are made of: a queue that is small while it is empty | channels |
//! | [`streams`] | the second connection: many byte streams, for logs | the ends of a connection |
//! | [`server`], [`client`] | mutual TLS, sockets, gRPC | sockets |
//!
//! An owner (CloudHub, EdgeHub) gives [`session::Input`]s and takes [`session::Output`]s. Nothing is stored here: what is
//! not settled when a session ends comes back in [`session::Remains`], and the owner derives or sends it again.
//! Offline there is no session: a Call fails at once with `Offline`, State and Events stay with their owner.

pub mod backoff;
pub mod client;
pub mod config;
pub mod driver;
mod limits;
pub mod queues;
pub mod registry;
pub mod resync;
pub mod server;
pub mod session;
pub mod streams;
pub mod transport;

mod abrupt;
mod fresh;
mod ids;
mod overheard;
mod queue;
pub(crate) mod refusal;
pub(crate) mod socket;

pub use config::{Config, KeyRate, Window, Windows};
pub use ids::{ObjectId, TypeId};
pub use limits::Rate;
pub use session::{CallFailure, Class, Closed, Input, Output, Refusal, Remains, Session};
pub use transport::{FrameSink, FrameStream};
