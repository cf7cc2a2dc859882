//! What an object may be, after writes of which some were acknowledged and some got no answer.
//!
//! The rules of a store that keeps what it acknowledged: after an acknowledgement the value is the acknowledged one. A
//! write without an answer happened or did not. What was seen once stays: a read is never taken back by a crash.

use std::fmt::Debug;

use thiserror::Error;

/// One object with one writer, who has one write on its way at a time. `None` is an object that is not there.
#[derive(Clone, Debug)]
pub struct Ledger<V> {
    last: Option<V>,
    /// Sent and not answered, since `last`.
    open: Vec<Option<V>>,
    version: u64,
}

/// A promise was broken.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum Broken {
    /// An acknowledged write is not there.
    #[error("acknowledged was {acknowledged}, open were {open}, seen is {seen}")]
    Lost {
        /// The last acknowledged or seen value.
        acknowledged: String,
        /// Values that were sent after it and got no answer.
        open: String,
        /// What is there instead.
        seen: String,
    },
    /// A resourceVersion came again, or went back.
    #[error("resourceVersion {seen} after {before}")]
    Version {
        /// The last one that was seen.
        before: u64,
        /// The one that was seen now.
        seen: u64,
    },
}

impl<V> Default for Ledger<V> {
    fn default() -> Self {
        Self { last: None, open: Vec::new(), version: 0 }
    }
}

impl<V: Clone + Debug + PartialEq> Ledger<V> {
    /// A write is about to be sent.
    pub fn attempt(&mut self, value: Option<V>) {
        self.open.push(value);
    }

    /// The last attempt was acknowledged with this resourceVersion; a deletion may be answered without one.
    pub fn acknowledge(&mut self, version: Option<u64>) -> Result<(), Broken> {
        if let Some(seen) = version {
            if seen <= self.version {
                return Err(Broken::Version { before: self.version, seen });
            }
            self.version = seen;
        }
        if let Some(value) = self.open.pop() {
            self.last = value;
            self.open.clear();
        }
        Ok(())
    }

    /// The object was read: from now on it has to be at least this.
    pub fn read(&mut self, seen: Option<(V, u64)>) -> Result<(), Broken> {
        let (seen, version) = seen.map_or((None, None), |(value, version)| (Some(value), Some(version)));
        if seen != self.last && !self.open.contains(&seen) {
            let (acknowledged, open) = (format!("{:?}", self.last), format!("{:?}", self.open));
            return Err(Broken::Lost { acknowledged, open, seen: format!("{seen:?}") });
        }
        if let Some(seen) = version {
            if seen < self.version {
                return Err(Broken::Version { before: self.version, seen });
            }
            self.version = seen;
        }
        self.last = seen;
        self.open.clear();
        Ok(())
    }

    /// What it has to be, as long as no write is open.
    pub fn last(&self) -> Option<&V> {
        self.last.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acknowledged(values: &[u8]) -> Ledger<u8> {
        let mut ledger = Ledger::default();
        for (version, value) in (1..).zip(values) {
            ledger.attempt(Some(*value));
            ledger.acknowledge(Some(version)).unwrap();
        }
        ledger
    }

    #[test]
    fn an_acknowledged_write_that_is_gone_is_told() {
        let ledger = acknowledged(&[1, 2]);
        assert!(ledger.clone().read(Some((2, 2))).is_ok());
        for seen in [Some((1, 2)), Some((3, 3)), None] {
            assert!(matches!(ledger.clone().read(seen), Err(Broken::Lost { .. })), "{seen:?}");
        }
    }

    #[test]
    fn a_write_without_an_answer_may_be_there_or_not_and_then_stays() {
        let mut ledger = acknowledged(&[1]);
        ledger.attempt(Some(2));
        ledger.attempt(None);
        for seen in [Some((1, 1)), Some((2, 2)), None] {
            assert!(ledger.clone().read(seen).is_ok(), "{seen:?}");
        }
        ledger.read(Some((2, 2))).unwrap();
        assert!(ledger.read(Some((1, 3))).is_err(), "what was seen is taken back");
        assert_eq!(ledger.last(), Some(&2));
    }

    #[test]
    fn a_deleted_object_that_comes_back_is_told() {
        let mut ledger = acknowledged(&[1]);
        ledger.attempt(None);
        ledger.acknowledge(None).unwrap();
        assert!(ledger.clone().read(None).is_ok());
        assert!(ledger.read(Some((1, 1))).is_err());
    }

    #[test]
    fn a_version_never_comes_again() {
        let mut ledger = acknowledged(&[1, 2]);
        assert_eq!(ledger.read(Some((2, 1))), Err(Broken::Version { before: 2, seen: 1 }));
        ledger.attempt(Some(3));
        assert_eq!(ledger.acknowledge(Some(2)), Err(Broken::Version { before: 2, seen: 2 }));
    }
}
