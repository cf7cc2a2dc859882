//! Counts what happens again, and keeps a pod that is busy failing from filling the cluster with events.

use std::{collections::HashMap, hash::Hash, time::Duration};

use jiff::Timestamp;

use super::{Event, EventRecord};

/// How many different events are remembered, and the buckets of how many pods; beyond it the longest unused is forgotten.
pub const MAX_REMEMBERED: usize = 256;
/// Events of one pod that may be told at once (client-go's spam filter).
pub const BURST: u32 = 25;
/// How long it takes until one more may be told (client-go's: one per 5 minutes).
pub const REFILL: Duration = Duration::from_secs(300);

/// At most [`MAX_REMEMBERED`] values; the longest unused goes first.
#[derive(Debug)]
struct Recent<K, V> {
    values: HashMap<K, (u64, V)>,
    clock: u64,
}

impl<K: Clone + Eq + Hash, V> Recent<K, V> {
    fn new() -> Self {
        Self { values: HashMap::new(), clock: 0 }
    }

    fn entry(&mut self, key: K, new: impl FnOnce() -> V) -> &mut V {
        self.clock += 1;
        if !self.values.contains_key(&key) && self.values.len() >= MAX_REMEMBERED {
            let oldest = self.values.iter().min_by_key(|(_, (used, _))| *used).map(|(key, _)| key.clone());
            if let Some(oldest) = oldest {
                self.values.remove(&oldest);
            }
        }
        let (used, value) = self.values.entry(key).or_insert_with(|| (0, new()));
        *used = self.clock;
        value
    }
}

/// How often something happened, and since when.
#[derive(Debug)]
struct Seen {
    first: Timestamp,
    count: u32,
}

/// What one pod may still tell.
#[derive(Debug)]
struct Bucket {
    tokens: u32,
    /// When the bucket got its last token, or was full.
    filled_at: Timestamp,
}

impl Bucket {
    fn take(&mut self, now: Timestamp) -> bool {
        let passed = Duration::try_from(now.duration_since(self.filled_at)).unwrap_or_default();
        let earned = passed.as_secs() / REFILL.as_secs();
        let room = BURST.saturating_sub(self.tokens);
        match u32::try_from(earned) {
            Ok(earned) if earned < room => {
                self.tokens += earned;
                self.filled_at = crate::edged::lifecycle::later(self.filled_at, REFILL * earned);
            }
            _ => {
                self.tokens = BURST;
                self.filled_at = self.filled_at.max(now);
            }
        }
        let granted = self.tokens > 0;
        self.tokens = self.tokens.saturating_sub(1);
        granted
    }
}

/// Turns what happened into what is told. No I/O; the time is the records'.
#[derive(Debug)]
pub struct Correlator {
    seen: Recent<String, Seen>,
    /// By pod uid.
    buckets: Recent<String, Bucket>,
}

impl Default for Correlator {
    fn default() -> Self {
        Self { seen: Recent::new(), buckets: Recent::new() }
    }
}

impl Correlator {
    /// Takes note of a record. `None` when its pod has told enough for now: it counts, and is told the next time.
    pub fn note(&mut self, record: EventRecord) -> Option<Event> {
        let name = record.name();
        let key = format!("{}/{name}", record.involved.namespace);
        let seen = self.seen.entry(key, || Seen { first: record.at, count: 0 });
        seen.count = seen.count.saturating_add(1);
        let (first, count) = (seen.first, seen.count);
        let full = || Bucket { tokens: BURST, filled_at: record.at };
        let bucket = self.buckets.entry(record.involved.uid.clone(), full);
        bucket.take(record.at).then_some(Event { name, record, first, count })
    }

    /// An event of this pod was not told after all.
    pub fn not_told(&mut self, uid: &str) {
        if let Some((_, bucket)) = self.buckets.values.get_mut(uid) {
            bucket.tokens = (bucket.tokens + 1).min(BURST);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::edged::events::{Involved, Reason};

    fn record(pod: &str, message: &str, second: i64) -> EventRecord {
        let involved = Involved {
            namespace: "ns".into(),
            name: pod.into(),
            uid: format!("uid-of-{pod}"),
            resource_version: "1".into(),
            field_path: String::new(),
        };
        let at = Timestamp::from_second(1_800_000_000 + second).unwrap();
        EventRecord::new(involved, Reason::Failed, message.into(), at)
    }

    #[test]
    fn what_happens_again_has_the_same_name_and_a_higher_count() {
        let mut correlator = Correlator::default();
        let first = correlator.note(record("p", "m", 0)).unwrap();
        let mut changed = record("p", "m", 9);
        changed.involved.resource_version = "2".into();
        let second = correlator.note(changed).unwrap();
        assert_eq!((first.count, second.count), (1, 2));
        assert_eq!((&second.name, second.first), (&first.name, first.record.at));
        assert_eq!(correlator.note(record("p", "n", 9)).unwrap().count, 1);
        assert_eq!(correlator.note(record("q", "m", 9)).unwrap().count, 1);
    }

    #[test]
    fn a_pod_tells_25_and_then_one_in_5_minutes_and_goes_on_counting() {
        let mut correlator = Correlator::default();
        // A failure every 10 seconds for an hour.
        let told: Vec<(i64, u32)> = (0..360)
            .filter_map(|n| correlator.note(record("p", "m", n * 10)).map(|event| (n * 10, event.count)))
            .collect();
        assert_eq!(told[24], (240, 25));
        assert_eq!(told[25..28], [(300, 31), (600, 61), (900, 91)]);
        assert!(correlator.note(record("q", "m", 250)).is_some(), "another pod has its own");
    }

    #[test]
    fn what_was_not_told_is_not_held_against_the_pod() {
        let mut correlator = Correlator::default();
        for _ in 0..100 {
            assert!(correlator.note(record("p", "m", 0)).is_some());
            correlator.not_told("uid-of-p");
        }
        correlator.not_told("nobody");
    }

    #[test]
    fn the_longest_unused_is_forgotten() {
        let mut correlator = Correlator::default();
        let count = |correlator: &mut Correlator, pod: usize| {
            correlator.note(record(&format!("p{pod}"), "m", 0)).unwrap().count
        };
        for pod in 0..MAX_REMEMBERED {
            assert_eq!(count(&mut correlator, pod), 1);
        }
        assert_eq!(count(&mut correlator, 0), 2);
        assert_eq!(count(&mut correlator, MAX_REMEMBERED), 1);
        assert_eq!(count(&mut correlator, 0), 3, "it was used");
        assert_eq!(count(&mut correlator, 1), 1, "it was forgotten");
        assert_eq!(correlator.seen.values.len(), MAX_REMEMBERED);
        assert_eq!(correlator.buckets.values.len(), MAX_REMEMBERED);
    }

    proptest! {
        #[test]
        fn no_time_gives_a_pod_more_than_its_share(steps in prop::collection::vec(-100i64..2_000, 1..200)) {
            let mut correlator = Correlator::default();
            let (mut now, mut latest, mut told) = (0i64, 0i64, 0i64);
            for step in steps {
                now = (now + step).max(0);
                latest = latest.max(now);
                told += i64::from(correlator.note(record("p", "m", now)).is_some());
                prop_assert!(told <= 25 + latest / 300, "{told} by {latest}");
            }
        }
    }
}
