//! Values under rising sequence numbers: what is open of a window.
//!
//! A window holds a few hundred, they come in order and leave nearly so: a sorted queue does that without an allocation
//! a message, which a tree needs. A value that stays while later ones come and go costs no room but its own.

use std::collections::VecDeque;

#[derive(Debug)]
pub(crate) struct Rising<T>(VecDeque<(u64, T)>);

impl<T> Default for Rising<T> {
    fn default() -> Self {
        Self(VecDeque::new())
    }
}

impl<T> Rising<T> {
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The lowest number.
    pub(crate) fn first(&self) -> Option<u64> {
        self.0.front().map(|(seq, _)| *seq)
    }

    /// Puts a value in its place; one that is there already under the number is replaced.
    pub(crate) fn insert(&mut self, seq: u64, value: T) {
        if self.0.back().is_none_or(|(last, _)| *last < seq) {
            return self.0.push_back((seq, value));
        }
        match self.find(seq) {
            Ok(at) => self.0[at].1 = value,
            Err(at) => self.0.insert(at, (seq, value)),
        }
    }

    pub(crate) fn get(&self, seq: u64) -> Option<&T> {
        self.find(seq).ok().map(|at| &self.0[at].1)
    }

    pub(crate) fn get_mut(&mut self, seq: u64) -> Option<&mut T> {
        self.find(seq).ok().map(|at| &mut self.0[at].1)
    }

    pub(crate) fn remove(&mut self, seq: u64) -> Option<T> {
        let at = self.find(seq).ok()?;
        self.0.remove(at).map(|(_, value)| value)
    }

    pub(crate) fn pop_first(&mut self) -> Option<(u64, T)> {
        self.0.pop_front()
    }

    /// Gives back the room of what has left.
    pub(crate) fn shrink(&mut self) {
        self.0.shrink_to_fit();
    }

    /// In order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u64, &T)> {
        self.0.iter().map(|(seq, value)| (*seq, value))
    }

    /// In order.
    pub(crate) fn into_values(self) -> impl Iterator<Item = T> {
        self.0.into_iter().map(|(_, value)| value)
    }

    /// Where a number is, or would be. What leaves is at the front, as a rule.
    fn find(&self, seq: u64) -> Result<usize, usize> {
        match self.0.front() {
            Some((first, _)) if *first == seq => Ok(0),
            _ => self.0.binary_search_by_key(&seq, |(seq, _)| *seq),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Whatever comes and goes, it holds what a map holds.
        #[test]
        fn it_is_a_map_in_order(steps in prop::collection::vec((0..4u8, 1..12u64, any::<u8>()), 0..200)) {
            let (mut rising, mut map) = (Rising::default(), BTreeMap::new());
            for (step, seq, value) in steps {
                match step {
                    0 => prop_assert_eq!(rising.pop_first(), map.pop_first()),
                    1 => prop_assert_eq!(rising.remove(seq), map.remove(&seq)),
                    _ => {
                        rising.insert(seq, value);
                        map.insert(seq, value);
                    }
                }
                prop_assert_eq!(rising.get(seq), map.get(&seq));
                prop_assert_eq!(rising.get_mut(seq).copied(), map.get(&seq).copied());
                prop_assert_eq!(rising.first(), map.keys().next().copied());
                prop_assert_eq!((rising.len(), rising.is_empty()), (map.len(), map.is_empty()));
                prop_assert!(rising.iter().eq(map.iter().map(|(seq, value)| (*seq, value))));
            }
            prop_assert!(rising.into_values().eq(map.into_values()));
        }
    }
}
