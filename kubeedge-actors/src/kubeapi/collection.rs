//! The objects of one resource and what happened to them: what lists and watches read.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::event_log::{Event, EventLog, TooOld};
use super::object::{Key, Object};

/// One resource's objects, whoever keeps them.
pub(crate) trait Collection: Send + Sync {
    /// The present resourceVersion.
    fn resource_version(&self) -> u64;

    /// The objects in one namespace or in all, in the order of their keys, with the resourceVersion.
    fn list(&self, namespace: Option<&str>) -> (u64, Vec<Arc<Object>>);

    /// Calls `visit` with each object after `start`, as they were at `position`; it says when to stop. `None` is now.
    /// Gives the resourceVersion of that state.
    fn scan(
        &self,
        namespace: Option<&str>,
        position: Option<u64>,
        start: Option<&Key>,
        visit: &mut dyn FnMut(&Arc<Object>) -> bool,
    ) -> Result<u64, TooOld>;

    /// Up to `limit` events after `position`, and the position reached: the answer has everything up to it.
    fn events(&self, position: u64, limit: usize) -> Result<(Vec<Event>, u64), TooOld>;

    /// Resolves `changed` after each change.
    fn subscribe(&self) -> watch::Receiver<u64>;

    /// Cancelled when the server stops: watches end.
    fn closing(&self) -> &CancellationToken;
}

/// Objects in memory, and the log of their last changes.
pub(crate) struct Kept {
    pub(crate) objects: BTreeMap<Key, Arc<Object>>,
    pub(crate) log: EventLog,
}

impl Kept {
    /// Objects of which nothing is known before `floor`.
    pub(crate) fn new(objects: BTreeMap<Key, Arc<Object>>, floor: u64) -> Self {
        Self { objects, log: EventLog::new(floor) }
    }

    /// The objects in one namespace or in all, in the order of their keys.
    pub(crate) fn list(&self, namespace: Option<&str>) -> Vec<Arc<Object>> {
        scope(&self.objects, namespace, None).map(|(_, object)| object.clone()).collect()
    }

    /// See [`Collection::scan`].
    pub(crate) fn scan(
        &self,
        namespace: Option<&str>,
        position: Option<u64>,
        start: Option<&Key>,
        visit: &mut dyn FnMut(&Arc<Object>) -> bool,
    ) -> Result<(), TooOld> {
        let past = match position {
            Some(position) => self.log.undo(position)?,
            None => BTreeMap::new(),
        };
        let mut present = scope(&self.objects, namespace, start).peekable();
        let mut past = scope(&past, namespace, start).peekable();
        loop {
            // A merge of two sorted streams; where both have a key, the past one stands.
            let take_past = match (present.peek(), past.peek()) {
                (None, None) => break,
                (Some(_), None) => false,
                (None, Some(_)) => true,
                (Some((now, _)), Some((then, _))) => then <= now,
            };
            let object = if take_past {
                let Some((key, object)) = past.next() else { break };
                present.next_if(|(now, _)| *now == key);
                object.as_ref()
            } else {
                present.next().map(|(_, object)| object)
            };
            if object.is_some_and(|object| !visit(object)) {
                break;
            }
        }
        Ok(())
    }

    /// See [`Collection::events`]; `current` is the present resourceVersion.
    pub(crate) fn events(&self, position: u64, limit: usize, current: u64) -> Result<(Vec<Event>, u64), TooOld> {
        let events: Vec<Event> = self.log.after(position)?.take(limit).cloned().collect();
        let reached = match events.last() {
            Some(last) if events.len() == limit => last.resource_version,
            _ => current.max(position),
        };
        Ok((events, reached))
    }
}

fn scope<'a, T>(
    map: &'a BTreeMap<Key, T>,
    namespace: Option<&'a str>,
    after: Option<&Key>,
) -> impl Iterator<Item = (&'a Key, &'a T)> {
    use std::ops::Bound;
    let first = Key::new(namespace.unwrap_or_default(), "");
    let lower = match after {
        Some(key) => Bound::Excluded(key.clone()),
        None => Bound::Included(first),
    };
    map.range((lower, Bound::Unbounded)).take_while(move |(key, _)| namespace.is_none_or(|ns| key.namespace == ns))
}
