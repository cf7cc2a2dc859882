//! Calls of this end that wait for a reply, and calls of the peer that wait for this end's.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::Duration,
};

use bytes::Bytes;

#[derive(Debug, Default)]
pub(crate) struct Calls {
    outgoing: HashMap<Bytes, Duration>,
    deadlines: BTreeSet<(Duration, Bytes)>,
    incoming: BTreeMap<u64, (Bytes, Duration)>,
    incoming_deadlines: BTreeSet<(Duration, u64)>,
}

impl Calls {
    /// A call of this end. False when this id waits already.
    pub(crate) fn open(&mut self, id: Bytes, deadline: Duration) -> bool {
        if self.outgoing.contains_key(&id) {
            return false;
        }
        self.deadlines.insert((deadline, id.clone()));
        self.outgoing.insert(id, deadline);
        true
    }

    /// Gives back the room of calls that are over.
    pub(crate) fn shrink(&mut self) {
        self.outgoing.shrink_to_fit();
        // A tree keeps its last leaf.
        if self.deadlines.is_empty() {
            self.deadlines = BTreeSet::new();
        }
        if self.incoming.is_empty() {
            self.incoming = BTreeMap::new();
            self.incoming_deadlines = BTreeSet::new();
        }
    }

    pub(crate) fn outgoing(&self) -> usize {
        self.outgoing.len()
    }

    /// The call has its answer. False when nobody waits for it (any more).
    pub(crate) fn answered(&mut self, id: &Bytes) -> bool {
        let Some(deadline) = self.outgoing.remove(id) else { return false };
        self.deadlines.remove(&(deadline, id.clone()))
    }

    /// A call of the peer.
    pub(crate) fn accept(&mut self, seq: u64, id: Bytes, deadline: Duration) {
        self.incoming_deadlines.insert((deadline, seq));
        self.incoming.insert(seq, (id, deadline));
    }

    pub(crate) fn incoming(&self) -> usize {
        self.incoming.len()
    }

    /// This end has the answer: the id to name in it.
    pub(crate) fn replied(&mut self, seq: u64) -> Option<Bytes> {
        let (id, deadline) = self.incoming.remove(&seq)?;
        self.incoming_deadlines.remove(&(deadline, seq));
        Some(id)
    }

    /// A call of this end whose deadline has passed.
    pub(crate) fn next_expired(&mut self, now: Duration) -> Option<Bytes> {
        let (deadline, id) = self.deadlines.first()?;
        if *deadline > now {
            return None;
        }
        let id = id.clone();
        self.answered(&id).then_some(id)
    }

    /// A call of the peer whose caller no longer waits.
    pub(crate) fn next_abandoned(&mut self, now: Duration) -> Option<u64> {
        let (deadline, seq) = *self.incoming_deadlines.first()?;
        if deadline > now {
            return None;
        }
        self.replied(seq).map(|_| seq)
    }

    pub(crate) fn next_deadline(&self) -> Option<Duration> {
        let out = self.deadlines.first().map(|(deadline, _)| *deadline);
        let in_ = self.incoming_deadlines.first().map(|(deadline, _)| *deadline);
        out.into_iter().chain(in_).min()
    }

    /// The session is over: every call of this end, in the order of their deadlines.
    pub(crate) fn drain(&mut self) -> Vec<Bytes> {
        let open = std::mem::take(self);
        open.deadlines.into_iter().map(|(_, id)| id).collect()
    }
}
