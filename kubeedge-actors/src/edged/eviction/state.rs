//! Since when thresholds are met, and what follows. Pure.

use std::{collections::HashMap, time::Duration};

use jiff::Timestamp;

use super::thresholds::{Amount, Observation, SIGNALS, Signal, Threshold, Thresholds};
use crate::edged::node::readings::MachineReadings;

/// What the node is short of, as its conditions tell it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pressure {
    /// Of memory.
    pub memory: bool,
    /// Of disk or files.
    pub disk: bool,
    /// Of process ids.
    pub pids: bool,
}

impl Pressure {
    fn of(signal: Signal) -> Self {
        let none = Self::default();
        match signal {
            Signal::MemoryAvailable => Self { memory: true, ..none },
            Signal::PidAvailable => Self { pids: true, ..none },
            _ => Self { disk: true, ..none },
        }
    }

    fn and(self, other: Self) -> Self {
        Self { memory: self.memory || other.memory, disk: self.disk || other.disk, pids: self.pids || other.pids }
    }
}

/// A threshold that asks for something to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Starved {
    /// What is short.
    pub signal: Signal,
    /// What must be left.
    pub least: Amount,
    /// What is.
    pub seen: Observation,
    /// Whether it may not wait for pods to end in their time.
    pub hard: bool,
}

/// What a look at the machine says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Looked {
    /// What the node's conditions are.
    pub pressure: Pressure,
    /// The first thing to do something about.
    pub starved: Option<Starved>,
}

/// Since when each threshold is met.
#[derive(Clone, Debug, Default)]
pub struct State {
    /// By the place in [`Thresholds::all`].
    since: HashMap<usize, Timestamp>,
    /// When each condition was last the case.
    last: [Option<Timestamp>; 3],
}

impl State {
    /// Takes note of a look.
    pub fn observe(&mut self, readings: &MachineReadings, thresholds: &Thresholds, now: Timestamp) -> Looked {
        let met: Vec<(usize, &Threshold, Observation)> = thresholds
            .all
            .iter()
            .enumerate()
            .map(|(place, threshold)| (place, threshold, threshold.signal.observe(readings)))
            // What was met is met until enough was reclaimed.
            .filter(|(place, threshold, seen)| threshold.is_met(*seen, self.since.contains_key(place)))
            .collect();
        self.since.retain(|place, _| met.iter().any(|(met, ..)| met == place));
        for (place, ..) in &met {
            self.since.entry(*place).or_insert(now);
        }
        let lasts = |threshold: &Threshold, place: usize| {
            let since = self.since.get(&place).copied().unwrap_or(now);
            age(since, now) >= threshold.grace.unwrap_or(Duration::ZERO)
        };
        let due: Vec<Starved> = met
            .iter()
            .filter(|(place, threshold, _)| lasts(threshold, *place))
            .map(|(_, threshold, seen)| Starved {
                signal: threshold.signal,
                least: threshold.least,
                seen: *seen,
                hard: threshold.grace.is_none(),
            })
            .collect();
        let order = |signal| SIGNALS.iter().position(|known| *known == signal);
        let starved = due.into_iter().min_by_key(|starved| (order(starved.signal), !starved.hard));
        // A condition is told as soon as a threshold is met, its grace period over or not.
        let seen =
            met.iter().fold(Pressure::default(), |all, (_, threshold, _)| all.and(Pressure::of(threshold.signal)));
        let mut lasting = |place: usize, seen: bool| {
            let last = &mut self.last[place];
            if seen {
                *last = Some(now);
            }
            let recent = seen || last.is_some_and(|last| age(last, now) < thresholds.transition);
            if !recent {
                *last = None;
            }
            recent
        };
        let pressure =
            Pressure { memory: lasting(0, seen.memory), disk: lasting(1, seen.disk), pids: lasting(2, seen.pids) };
        Looked { pressure, starved }
    }
}

fn age(since: Timestamp, now: Timestamp) -> Duration {
    Duration::try_from(now.duration_since(since)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::edged::node::readings::DiskReading;

    fn healthy() -> MachineReadings {
        let disk = DiskReading { capacity: 1000, available: 500, inodes: 100, inodes_free: 50 };
        let (memory, memory_available) = (1 << 30, 1 << 29);
        MachineReadings {
            memory,
            memory_available,
            disk,
            image_disk: disk,
            pids: 1000,
            pids_used: 10,
            ..MachineReadings::default()
        }
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn seen(change: impl Fn(&mut MachineReadings)) -> (Pressure, Option<Signal>) {
        let mut readings = healthy();
        change(&mut readings);
        let looked = State::default().observe(&readings, &Thresholds::default(), at(0));
        (looked.pressure, looked.starved.map(|starved| starved.signal))
    }

    #[test]
    fn each_shortage_is_seen_at_its_threshold() {
        let none = Pressure::default();
        let (memory, disk) = (Pressure { memory: true, ..none }, Pressure { disk: true, ..none });
        let pids = Pressure { pids: true, ..none };
        assert_eq!(seen(|_| ()), (none, None));
        assert_eq!(seen(|r| r.memory_available = 100 << 20), (none, None));
        assert_eq!(seen(|r| r.memory_available = (100 << 20) - 1), (memory, Some(Signal::MemoryAvailable)));
        assert_eq!(seen(|r| r.disk.available = 100), (none, None));
        assert_eq!(seen(|r| r.disk.available = 99), (disk, Some(Signal::NodefsAvailable)));
        assert_eq!(seen(|r| r.image_disk.available = 149), (disk, Some(Signal::ImagefsAvailable)));
        assert_eq!(seen(|r| r.disk.inodes_free = 4), (disk, Some(Signal::NodefsInodesFree)));
        assert_eq!(seen(|r| (r.disk.inodes, r.disk.inodes_free) = (0, 0)), (none, None));
        assert_eq!(seen(|r| r.pids_used = 951), (pids, Some(Signal::PidAvailable)));
        assert_eq!(seen(|r| r.pids_used = 2000), (pids, Some(Signal::PidAvailable)));
        let both = seen(|r| (r.pids_used, r.memory_available) = (2000, 0));
        assert_eq!(
            both,
            (Pressure { memory: true, pids: true, ..none }, Some(Signal::MemoryAvailable)),
            "memory first"
        );
    }

    #[test]
    fn a_pressure_stays_for_its_transition_period() {
        let mut state = State::default();
        let mut disk = |available, second| {
            let mut readings = healthy();
            readings.disk.available = available;
            state.observe(&readings, &Thresholds::default(), at(second)).pressure.disk
        };
        assert!(!disk(500, 0) && disk(0, 10) && disk(500, 309) && disk(0, 309) && disk(500, 608) && !disk(500, 609));
    }

    #[test]
    fn a_soft_threshold_waits_and_its_condition_does_not() {
        let soft = Threshold {
            signal: Signal::MemoryAvailable,
            least: Amount::PerMille(600),
            grace: Some(Duration::from_secs(30)),
            reclaim: Some(Amount::PerMille(100)),
        };
        let thresholds = Thresholds { all: vec![soft], ..Thresholds::default() };
        let mut state = State::default();
        let mut look = |per_mille: u64, second| {
            let mut readings = healthy();
            readings.memory_available = readings.memory / 1000 * per_mille;
            let looked = state.observe(&readings, &thresholds, at(second));
            (looked.pressure.memory, looked.starved.map(|starved| starved.hard))
        };
        assert_eq!(look(500, 0), (true, None));
        assert_eq!(look(701, 10), (true, None), "a transition period of five minutes");
        assert_eq!(look(500, 20), (true, None), "it begins anew");
        assert_eq!(look(500, 49), (true, None));
        assert_eq!(look(500, 50), (true, Some(false)));
        assert_eq!(look(650, 60), (true, Some(false)), "not enough reclaimed");
        assert_eq!(look(701, 70), (true, None));
    }

    proptest! {
        #[test]
        fn what_is_seen_now_is_always_told(steps in prop::collection::vec((any::<bool>(), 0_i64..400), 1..20)) {
            let mut state = State::default();
            let mut now = 0;
            for (short, pause) in steps {
                now += pause;
                let mut readings = healthy();
                readings.memory_available = if short { 0 } else { readings.memory };
                let looked = state.observe(&readings, &Thresholds::default(), at(now));
                prop_assert!(looked.pressure.memory || !short);
                prop_assert_eq!(looked.starved.is_some(), short);
                prop_assert!(!looked.pressure.disk && !looked.pressure.pids);
            }
        }
    }
}
