//! What can go wrong, what has to go right, and how often it did. What never happened proves nothing.

use std::collections::BTreeMap;

macro_rules! kinds {
    ($(#[$doc:meta])* $kind:ident: $($name:ident $text:literal)*) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum $kind { $(#[doc = $text] $name,)* }

        impl $kind {
            pub const ALL: &[$kind] = &[$($kind::$name),*];

            pub fn text(self) -> &'static str {
                match self { $($kind::$name => $text,)* }
            }
        }
    };
}

kinds! {
    /// A kind of fault. It counts when it has an effect: what is slow, when something waits for it; what is refused, when
    /// somebody asked.
    Fault:
    Cut "the connection is cut"
    CutInMessage "the connection ends within a big message"
    HalfOpenUp "nothing arrives at the cloud any more, and nobody is told"
    HalfOpenDown "nothing arrives at the edge any more, and nobody is told"
    HalfOpenBoth "nothing arrives anywhere any more, and nobody is told"
    Delay "a connection stands still for a while"
    Late "frames of an old connection arrive after a newer one was made"
    Duplicate "a frame arrives twice"
    Reorder "a frame overtakes another"
    Drop "a frame is lost on a connection that stands"
    Truncated "a frame ends too early"
    UnknownState "the edge is sent State of a body that this version does not know"
    UnknownReport "the cloud is sent State of a body that this version does not know"
    UnknownEvent "an Event of a body that this version does not know"
    UnknownCall "a Call of a body that this version does not know"
    EdgeRestart "edgecore is killed"
    EdgeStop "edgecore ends in order and starts again"
    PowerCut "the box loses its power: what runs on it too"
    CommitsLost "the edge dies with writes that are not on disk"
    CommitsUnsaid "the edge dies after a write is on disk, before anybody was told"
    EffectUnsaid "the edge dies between an event's effect and the disk"
    CloudRestart "cloudcore is killed"
    CloudStop "cloudcore ends in order and starts again"
    WriteUnheard "the cloud dies before it hears what the API server has written"
    MetaManagerRebuilt "MetaManager is built again"
    EdgeHubRebuilt "EdgeHub is built again"
    EdgedRebuilt "Edged is built again"
    ControllerRebuilt "EdgeController is built again"
    ClockForth "the edge's clock jumps forth"
    ClockBack "the edge's clock jumps back"
    SlowEdge "the edge takes nothing off its session for a while"
    SlowController "the controller takes nothing off its queue for a while"
    DiskFull "the edge's disk is full"
    Refused404 "the API server says 404"
    Refused409 "the API server says 409"
    Refused422 "the API server says 422"
    Refused429 "the API server says 429"
    Refused503 "the API server does not answer"
    EventRefused "the API server refuses an Event for good"
    EventRefusedForNow "the API server refuses an Event for now"
    LateWrite "a write of a superseded session reaches the API server after all"
    ListFails "lists and watches fail"
    ListPartial "an answer is due before everything is listed"
    StaleList "a list is older than what was known"
    WatchBroken "a watch is too old and begins anew"
    Restored "the API server is restored from an older backup"
    OtherCluster "the cloud speaks for another cluster"
    Twin "another box comes under the same name"
    Takeover "a newer connection takes over from one that still stands"
    OutboxFull "the outbox drops its oldest"
}

kinds! {
    /// Something good that has to happen, too.
    Good:
    Established "a session was established"
    Replaced "the newest hello of a box replaced its old session"
    NameTaken "another box under a node's name was refused"
    SessionRefused "a session of another cluster, or one that could not be kept, was given up"
    Applied "State was applied at the edge"
    Complete "the pods of a node became complete"
    NeedsWaited "a pod that came before what it needs was refused for now"
    Settled "a report was settled by the API server"
    Rejected "a report was rejected for good"
    TookEffect "an event of the cloud took effect"
    OfflineBoot "pods began from disk while there was no connection"
}

/// How often each was hit.
#[derive(Clone, Debug, Default)]
pub struct Counts {
    pub faults: BTreeMap<Fault, u64>,
    pub seen: BTreeMap<Good, u64>,
}

impl Counts {
    pub fn hit(&mut self, fault: Fault) {
        *self.faults.entry(fault).or_default() += 1;
    }

    pub fn saw(&mut self, what: Good) {
        *self.seen.entry(what).or_default() += 1;
    }

    /// What never happened.
    pub fn never(&self) -> Vec<&'static str> {
        let faults = Fault::ALL.iter().filter(|fault| !self.faults.contains_key(fault)).map(|fault| fault.text());
        faults.chain(Good::ALL.iter().filter(|what| !self.seen.contains_key(what)).map(|what| what.text())).collect()
    }

    pub fn add(&mut self, other: &Counts) {
        for (fault, count) in &other.faults {
            *self.faults.entry(*fault).or_default() += count;
        }
        for (what, count) in &other.seen {
            *self.seen.entry(*what).or_default() += count;
        }
    }
}
