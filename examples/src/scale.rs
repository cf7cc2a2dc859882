//! Thousands of nodes on one machine: a cloud as processes, and hollow nodes that link to it.
//!
//! A hollow node is a real EdgeHub and a real MetaManager (its store in memory), with one actor in place of Edged: it
//! registers the node, reports its status and its pods', and counts what comes. Many of them share one thread; a process
//! of them is a [`generator`]. [`Fleet`] starts generators and sums up what they count, [`Clouds`] runs an API server
//! and the cloudcore that is measured, each a process of its own, and [`Workload`] says which objects there are.

mod cloud;
mod fleet;
pub mod generator;
mod latencies;
mod node;
mod tally;
pub mod workload;

pub use cloud::{Clouds, Place};
pub use fleet::Fleet;
pub use latencies::Latencies;
pub use tally::Tally;
pub use workload::Workload;
