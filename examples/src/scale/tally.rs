//! What hollow nodes count.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Latencies;

/// The counts of one generator, or the sum of several.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// Nodes that were started.
    pub started: u64,
    /// Nodes whose link stands and that the cloud has registered over it.
    pub ready: u64,
    /// Links that stand.
    pub connected: u64,
    /// Links that came about, since the start.
    pub connections: u64,
    /// Objects that the nodes hold.
    pub held: u64,
    /// ConfigMaps that came or changed, since the start.
    pub configs_applied: u64,
    /// Registrations that failed and were tried again, and reports that were lost, since the start.
    pub failed: u64,
    /// From the writing of a ConfigMap at the API server to its news at the node.
    pub applied: Latencies,
    /// Round trips of heartbeats.
    pub heartbeats: Latencies,
    /// From a node's question to be registered to its answer.
    pub registered: Latencies,
}

impl Tally {
    /// Adds another's.
    pub fn add(&mut self, other: &Self) {
        self.started += other.started;
        self.ready += other.ready;
        self.connected += other.connected;
        self.connections += other.connections;
        self.held += other.held;
        self.configs_applied += other.configs_applied;
        self.failed += other.failed;
        self.applied.add(&other.applied);
        self.heartbeats.add(&other.heartbeats);
        self.registered.add(&other.registered);
    }

    /// Latencies begin anew.
    pub fn forget_latencies(&mut self) {
        self.applied = Latencies::default();
        self.heartbeats = Latencies::default();
        self.registered = Latencies::default();
    }
}

/// What a generator is asked for, one a line on its standard input; it answers in one line of JSON.
pub(super) mod questions {
    /// A [`super::Tally`].
    pub(in crate::scale) const TALLY: &str = "tally";
    /// The same, after which latencies begin anew.
    pub(in crate::scale) const LATENCIES: &str = "latencies";
    /// [`super::Held`].
    pub(in crate::scale) const HELD: &str = "held";
}

/// By node and name of a ConfigMap, the stamp in it.
pub(super) type Held = BTreeMap<String, BTreeMap<String, u64>>;
