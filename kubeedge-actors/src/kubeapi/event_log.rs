//! The event log of a kind: what happened, in order, bounded; watchers read it at their own pace.
//!
//! A watcher holds a position (a resourceVersion), not a queue: a slow one costs nothing, and when the log has moved on
//! past it, it is told `410 Expired` and ends. The same log undoes changes, so that a list continued page by page stays
//! the list that it was at its first page.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use super::object::{Key, Object};

/// Events kept for each kind at most.
pub(crate) const LOG_EVENTS: usize = 4096;
/// Bytes of objects kept for each kind's events at most.
pub(crate) const LOG_BYTES: usize = 16 << 20;

/// One change of one object.
#[derive(Clone, Debug)]
pub(crate) struct Event {
    pub(crate) resource_version: u64,
    /// Before, `None` for a new object.
    pub(crate) previous: Option<Arc<Object>>,
    /// After; for a deletion the last state, with the deletion's resourceVersion.
    pub(crate) object: Arc<Object>,
    pub(crate) deleted: bool,
}

/// What a watcher sees of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    Added,
    Modified,
    Deleted,
}

impl Seen {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Added => "ADDED",
            Self::Modified => "MODIFIED",
            Self::Deleted => "DELETED",
        }
    }
}

impl Event {
    /// What this change is to someone who sees only some objects: leaving the selection is a deletion.
    pub(crate) fn seen_by(&self, selects: impl Fn(&Object) -> bool) -> Option<Seen> {
        let before = self.previous.as_deref().is_some_and(&selects);
        let after = !self.deleted && selects(&self.object);
        match (before, after) {
            (true, true) => Some(Seen::Modified),
            (false, true) => Some(Seen::Added),
            (true, false) => Some(Seen::Deleted),
            (false, false) => None,
        }
    }

    fn size(&self) -> usize {
        // The previous state is the object of an earlier event, or was current before the log began.
        self.object.size()
    }
}

/// The asked position lies before what the log still holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TooOld {
    /// The oldest position that can be asked for.
    pub(crate) oldest: u64,
}

/// The last events of one kind, oldest first.
#[derive(Debug)]
pub(crate) struct EventLog {
    events: VecDeque<Event>,
    bytes: usize,
    /// Everything after this resourceVersion is in the log.
    floor: u64,
}

impl EventLog {
    /// An empty log: nothing happened to the kind after `floor`.
    pub(crate) fn new(floor: u64) -> Self {
        Self { events: VecDeque::new(), bytes: 0, floor }
    }

    pub(crate) fn push(&mut self, event: Event) {
        self.bytes += event.size();
        self.events.push_back(event);
        while self.events.len() > LOG_EVENTS || self.bytes > LOG_BYTES {
            let Some(oldest) = self.events.pop_front() else { break };
            self.bytes -= oldest.size();
            self.floor = oldest.resource_version;
        }
    }

    /// The events after `position`, oldest first.
    pub(crate) fn after(&self, position: u64) -> Result<impl DoubleEndedIterator<Item = &Event>, TooOld> {
        if position < self.floor {
            return Err(TooOld { oldest: self.floor });
        }
        let start = self.events.partition_point(|event| event.resource_version <= position);
        Ok(self.events.range(start..))
    }

    /// What must be put over the present to get the state at `position`: `None` for an object that was not there yet.
    pub(crate) fn undo(&self, position: u64) -> Result<BTreeMap<Key, Option<Arc<Object>>>, TooOld> {
        let mut past = BTreeMap::new();
        for event in self.after(position)?.rev() {
            past.insert(event.object.key.clone(), event.previous.clone());
        }
        Ok(past)
    }
}
