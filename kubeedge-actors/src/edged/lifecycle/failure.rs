//! A pod that has failed as a whole.

use serde::{Deserialize, Serialize};

/// Why a pod has failed: its containers end, none starts again, and its status says so.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodFailure {
    /// The status' reason, such as `Evicted` or `OutOfcpu`.
    pub reason: String,
    /// For a person.
    pub message: String,
    /// Whether the node took its place away, which the condition `DisruptionTarget` says.
    #[serde(default)]
    pub disruption: bool,
    /// Seconds that its containers may take to end.
    #[serde(default)]
    pub grace_seconds: u32,
}
