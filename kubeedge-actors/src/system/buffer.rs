//! What a listener that nobody waits for keeps of the events it has not handled: a bound, and a choice of what to lose.
//!
//! Pure: no actor, no lock.

use std::{
    collections::{HashMap, VecDeque},
    hash::Hash,
};

/// Why an event did not reach the handler of a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Loss {
    /// The buffer was full; it was the oldest.
    Overflow,
    /// A newer event of the same key came before it was handled.
    Superseded,
    /// The listener takes nothing any more.
    Stopped,
}

/// Events that wait for a handler.
pub(crate) trait Buffer<M>: Send {
    /// Takes an event, always. What had to go for it, if anything, and why.
    fn put(&mut self, event: M) -> Option<Loss>;
    fn take(&mut self) -> Option<M>;
    fn len(&self) -> usize;
}

/// The newest events, in order.
pub(crate) struct Latest<M> {
    events: VecDeque<M>,
    capacity: usize,
}

impl<M> Latest<M> {
    /// A capacity of 0 counts as 1.
    pub(crate) fn new(capacity: usize) -> Self {
        Self { events: VecDeque::new(), capacity: capacity.max(1) }
    }
}

impl<M: Send> Buffer<M> for Latest<M> {
    fn put(&mut self, event: M) -> Option<Loss> {
        let lost = (self.events.len() >= self.capacity).then(|| self.events.pop_front()).flatten();
        self.events.push_back(event);
        lost.map(|_| Loss::Overflow)
    }

    fn take(&mut self) -> Option<M> {
        self.events.pop_front()
    }

    fn len(&self) -> usize {
        self.events.len()
    }
}

/// The newest event of each key, in the order in which the keys came up.
pub(crate) struct LatestPerKey<M, K, F> {
    events: HashMap<K, M>,
    order: VecDeque<K>,
    capacity: usize,
    key: F,
}

impl<M, K, F: Fn(&M) -> K> LatestPerKey<M, K, F> {
    /// A capacity of 0 counts as 1.
    pub(crate) fn new(capacity: usize, key: F) -> Self {
        Self { events: HashMap::new(), order: VecDeque::new(), capacity: capacity.max(1), key }
    }
}

impl<M: Send, K: Clone + Eq + Hash + Send, F: Fn(&M) -> K + Send> Buffer<M> for LatestPerKey<M, K, F> {
    fn put(&mut self, event: M) -> Option<Loss> {
        let key = (self.key)(&event);
        if let Some(older) = self.events.get_mut(&key) {
            *older = event;
            return Some(Loss::Superseded);
        }
        let lost = (self.order.len() >= self.capacity).then(|| self.take()).flatten();
        self.order.push_back(key.clone());
        self.events.insert(key, event);
        lost.map(|_| Loss::Overflow)
    }

    fn take(&mut self) -> Option<M> {
        self.order.pop_front().and_then(|key| self.events.remove(&key))
    }

    fn len(&self) -> usize {
        self.order.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn drain<M>(buffer: &mut dyn Buffer<M>) -> Vec<M> {
        std::iter::from_fn(|| buffer.take()).collect()
    }

    proptest! {
        #[test]
        fn a_listener_that_drops_the_oldest_keeps_the_newest_in_order(capacity in 1_usize..8, n in 0_usize..30) {
            let mut buffer = Latest::new(capacity);
            let lost = (0..n).filter_map(|event| buffer.put(event)).count();
            prop_assert_eq!(lost, n.saturating_sub(capacity));
            prop_assert_eq!(buffer.len(), n.min(capacity));
            prop_assert_eq!(drain(&mut buffer), (n.saturating_sub(capacity)..n).collect::<Vec<_>>());
        }

        #[test]
        fn a_listener_by_key_keeps_the_newest_of_each_key(
            capacity in 1_usize..6,
            keys in proptest::collection::vec(0_u8..8, 0..40),
        ) {
            let mut buffer = LatestPerKey::new(capacity, |event: &(u8, usize)| event.0);
            // The model: a list of events, searched from the front.
            let mut model: Vec<(u8, usize)> = Vec::new();
            for (i, key) in keys.into_iter().enumerate() {
                let lost = buffer.put((key, i));
                if let Some(older) = model.iter_mut().find(|(k, _)| *k == key) {
                    older.1 = i;
                    prop_assert_eq!(lost, Some(Loss::Superseded));
                    continue;
                }
                let full = model.len() == capacity;
                if full {
                    model.remove(0);
                }
                prop_assert_eq!(lost, full.then_some(Loss::Overflow));
                model.push((key, i));
                prop_assert_eq!(buffer.len(), model.len());
            }
            prop_assert_eq!(drain(&mut buffer), model);
        }
    }
}
