//! When a device's status may be written. Pure.
//!
//! The first change of a device goes at once, then one a second; over all devices of a node, and over all nodes, there is
//! a rate as well. What has to wait is held, the newest of each device; who finds no room is refused for now and comes
//! again.

use std::{collections::HashMap, time::Duration};

use super::desired::Key;

/// How often the API server is written to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rates {
    /// Between two writes of one device.
    pub per_device: Duration,
    /// Writes a second for the devices of one node.
    pub per_node: u32,
    /// Writes a second for all devices.
    pub total: u32,
}

impl Default for Rates {
    /// One a second and device; 100 a node, 500 in all: a tenth of what an API server of a mid-sized cluster takes.
    fn default() -> Self {
        Self { per_device: Duration::from_secs(1), per_node: 100, total: 500 }
    }
}

/// Reports of one node that may wait at a time: a quarter of the link's window, so that pods' statuses pass.
pub const HELD_PER_NODE: usize = 64;
/// Reports of all nodes that may wait.
pub const HELD: usize = 8192;
/// Nobody is kept waiting longer than this: below what CloudHub waits for an answer.
pub const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// What a report has to wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing: it is written now.
    Now,
    /// It is written after this long.
    At(Duration),
    /// It asks again after this long, with the place that it now holds.
    Again(Duration),
    /// There is no room to wait.
    Refused,
}

/// A rate as the time that the next is due: no burst beyond one interval's worth of a second.
#[derive(Clone, Copy, Debug, Default)]
struct Line {
    next: Duration,
}

impl Line {
    /// When one more would go, if it came now.
    fn due(&self, now: Duration) -> Duration {
        // A tenth of a second's worth may go at once.
        self.next.max(now.saturating_sub(BURST))
    }

    fn take(&mut self, now: Duration, per_second: u32) {
        self.next = self.due(now) + Duration::from_secs(1) / per_second.max(1);
    }
}

const BURST: Duration = Duration::from_millis(100);

/// The state of all rates.
#[derive(Debug, Default)]
pub struct Pace {
    rates: Rates,
    devices: HashMap<Key, Duration>,
    nodes: HashMap<String, (Line, usize)>,
    total: Line,
    held: usize,
}

impl Pace {
    /// At these rates.
    pub fn new(rates: Rates) -> Self {
        Self { rates, ..Self::default() }
    }

    /// A device's status is to be written. `holds` a place from an earlier question. With `At` and `Again` it holds one
    /// until [`Pace::released`].
    pub fn ask(&mut self, now: Duration, node: &str, device: &Key, holds: bool) -> Verdict {
        let (line, held) = self.nodes.entry(node.to_owned()).or_default();
        let own = self.devices.get(device).map_or(Duration::ZERO, |last| *last + self.rates.per_device);
        let shared = line.due(now).max(self.total.due(now));
        let wait = own.max(shared).saturating_sub(now);
        if !wait.is_zero() && !holds {
            if *held >= HELD_PER_NODE || self.held >= HELD || wait > LONGEST_WAIT {
                return Verdict::Refused;
            }
            *held += 1;
            self.held += 1;
        }
        if own > now {
            // Its turn among the others is found then: nobody waits behind it meanwhile.
            return Verdict::Again(own - now);
        }
        line.take(now, self.rates.per_node);
        self.total.take(now, self.rates.total);
        self.devices.insert(device.clone(), now + wait);
        if wait.is_zero() { Verdict::Now } else { Verdict::At(wait) }
    }

    /// What waited waits no longer.
    pub fn released(&mut self, node: &str) {
        if let Some((_, held)) = self.nodes.get_mut(node) {
            *held = held.saturating_sub(1);
        }
        self.held = self.held.saturating_sub(1);
    }

    /// Forgets what has no bearing any more: devices and nodes whose time has passed.
    pub fn sweep(&mut self, now: Duration) {
        let per_device = self.rates.per_device;
        self.devices.retain(|_, last| *last + per_device > now);
        self.nodes.retain(|_, (line, held)| *held > 0 || line.next > now);
    }

    /// How many wait.
    pub fn held(&self) -> usize {
        self.held
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn key(name: u8) -> Key {
        ("ns".into(), name.to_string())
    }

    #[test]
    fn the_first_goes_at_once_and_the_next_after_a_second() {
        let mut pace = Pace::new(Rates::default());
        let start = Duration::from_secs(100);
        assert_eq!(pace.ask(start, "n", &key(1), false), Verdict::Now);
        assert_eq!(pace.ask(start, "n", &key(2), false), Verdict::Now, "another device is not in its way");
        let soon = start + Duration::from_millis(300);
        assert_eq!(pace.ask(soon, "n", &key(1), false), Verdict::Again(Duration::from_millis(700)));
        assert_eq!(pace.ask(start + Duration::from_secs(1), "n", &key(1), true), Verdict::Now);
        pace.released("n");
        assert_eq!(pace.held(), 0);
    }

    #[test]
    fn who_finds_no_room_to_wait_is_refused_and_holds_nothing() {
        let mut pace = Pace::new(Rates::default());
        for name in 0..200u8 {
            pace.ask(Duration::from_secs(9), "n", &key(name), false);
        }
        assert_eq!(pace.held(), HELD_PER_NODE);
        assert_eq!(pace.ask(Duration::from_secs(9), "n", &key(201), false), Verdict::Refused);
        assert_ne!(pace.ask(Duration::from_secs(9), "o", &key(202), false), Verdict::Refused, "another node has room");
        (0..HELD_PER_NODE).for_each(|_| pace.released("n"));
        pace.sweep(Duration::from_secs(99));
        assert!(pace.devices.is_empty());
    }

    proptest! {
        #[test]
        fn no_rate_is_exceeded(asks in prop::collection::vec((0..40u8, 0..3u8, 0..30u64), 1..300)) {
            let rates = Rates { per_device: Duration::from_secs(1), per_node: 20, total: 30 };
            let mut pace = Pace::new(rates);
            let mut now = Duration::from_secs(1000);
            // When, whether it holds a place, which device of which node; the earliest first.
            let mut waiting: BTreeSet<(Duration, usize, bool, u8, u8)> = BTreeSet::new();
            for (order, (device, node, pause)) in asks.into_iter().enumerate() {
                now += Duration::from_millis(pause);
                waiting.insert((now, order, false, device, node));
            }
            let mut writes: Vec<(Duration, u8, u8)> = Vec::new();
            while let Some((now, order, holds, device, node)) = waiting.pop_first() {
                let name = node.to_string();
                match pace.ask(now, &name, &key(device), holds) {
                    Verdict::Now => writes.push((now, device, node)),
                    Verdict::At(wait) => writes.push((now + wait, device, node)),
                    Verdict::Again(wait) => {
                        waiting.insert((now + wait, order, true, device, node));
                        continue;
                    }
                    Verdict::Refused => continue,
                }
                if holds {
                    pace.released(&name);
                }
            }
            writes.sort();
            for (index, (at, device, node)) in writes.iter().enumerate() {
                let in_a_second = |same: &dyn Fn(&(Duration, u8, u8)) -> bool| {
                    writes[index..].iter().take_while(|w| w.0 < *at + Duration::from_secs(1)).filter(|w| same(w)).count()
                };
                prop_assert_eq!(in_a_second(&|write| write.1 == *device), 1);
                // The rate, and what may go at once after a pause.
                prop_assert!(in_a_second(&|write| write.2 == *node) <= 20 + 3);
                prop_assert!(in_a_second(&|_| true) <= 30 + 4);
            }
        }
    }
}
