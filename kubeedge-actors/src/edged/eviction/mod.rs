//! Eviction: when the node is short of memory, disk or process ids, pods end so that the others and the node live on.
//!
//! [`thresholds`] are the operator's, [`state`] says since when they are met, [`rank`] who goes first, [`storage`] what
//! pods have on disk and which of them have more than they may. Every ten seconds the machine is looked at; at most one
//! pod goes at a time. Disk is first made by removing images that nobody uses.

pub mod rank;
mod shell;
pub mod state;
pub mod storage;
pub mod thresholds;

pub use state::{Looked, Pressure, Starved, State};
pub use thresholds::{Amount, InvalidThreshold, Observation, Signal, Threshold, ThresholdMaps, Thresholds};
