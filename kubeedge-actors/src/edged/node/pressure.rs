//! Whether the node runs short of memory, disk or processes.

use jiff::{SignedDuration, Timestamp};

use super::readings::{DiskReading, MachineReadings};

/// A condition stays this long after the pressure was last seen, so that it does not flap: the kubelet's
/// `evictionPressureTransitionPeriod`.
const TRANSITION: SignedDuration = SignedDuration::from_mins(5);

/// From where on the node is short of something: the kubelet's hard eviction thresholds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Thresholds {
    /// Memory that must be available, bytes (`memory.available`).
    pub memory_bytes: u64,
    /// Share of the volumes' file system that must be free, percent (`nodefs.available`).
    pub disk_percent: u8,
    /// Share of the images' file system that must be free, percent (`imagefs.available`).
    pub image_disk_percent: u8,
    /// Share of files that must be free on both, percent (`nodefs.inodesFree`).
    pub inodes_percent: u8,
    /// Share of process ids that must be free, percent (`pid.available`; the kubelet has no default for it).
    pub pids_percent: u8,
}

impl Default for Thresholds {
    fn default() -> Self {
        Self { memory_bytes: 100 << 20, disk_percent: 10, image_disk_percent: 15, inodes_percent: 5, pids_percent: 5 }
    }
}

/// What the node is short of.
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
    /// What is short at this moment.
    pub fn now(readings: &MachineReadings, thresholds: &Thresholds) -> Self {
        let Thresholds { memory_bytes, disk_percent, image_disk_percent, inodes_percent, pids_percent } = *thresholds;
        let full = |disk: &DiskReading, percent| {
            below(disk.available, disk.capacity, percent) || below(disk.inodes_free, disk.inodes, inodes_percent)
        };
        let pids_free = readings.pids.saturating_sub(readings.pids_used);
        Self {
            memory: readings.memory_available < memory_bytes,
            disk: full(&readings.disk, disk_percent) || full(&readings.image_disk, image_disk_percent),
            pids: below(pids_free, readings.pids, pids_percent),
        }
    }
}

/// Whether `free` is less than that share of `all`; never of nothing.
fn below(free: u64, all: u64, percent: u8) -> bool {
    u128::from(free) * 100 < u128::from(all) * u128::from(percent)
}

/// When each pressure was last seen.
#[derive(Clone, Copy, Debug, Default)]
pub struct PressureHistory {
    memory: Option<Timestamp>,
    disk: Option<Timestamp>,
    pids: Option<Timestamp>,
}

impl PressureHistory {
    /// Takes note of a look at the machine and answers what is to be reported.
    pub fn observe(&mut self, seen: Pressure, now: Timestamp) -> Pressure {
        let lasting = |last: &mut Option<Timestamp>, seen: bool| {
            if seen {
                *last = Some(now);
            }
            let recent = last.is_some_and(|last| now.duration_since(last) < TRANSITION);
            if !recent {
                *last = None;
            }
            recent
        };
        Pressure {
            memory: lasting(&mut self.memory, seen.memory),
            disk: lasting(&mut self.disk, seen.disk),
            pids: lasting(&mut self.pids, seen.pids),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

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

    fn seen(change: impl Fn(&mut MachineReadings)) -> Pressure {
        let mut readings = healthy();
        change(&mut readings);
        Pressure::now(&readings, &Thresholds::default())
    }

    #[test]
    fn each_shortage_is_seen_at_its_threshold() {
        let none = Pressure::default();
        let disk = Pressure { disk: true, ..none };
        assert_eq!(seen(|_| ()), none);
        assert_eq!(seen(|r| r.memory_available = 100 << 20), none);
        assert_eq!(seen(|r| r.memory_available = (100 << 20) - 1), Pressure { memory: true, ..none });
        assert_eq!(seen(|r| r.disk.available = 100), none);
        assert_eq!(seen(|r| r.disk.available = 99), disk);
        assert_eq!(seen(|r| r.image_disk.available = 149), disk);
        assert_eq!(seen(|r| r.disk.inodes_free = 4), disk);
        assert_eq!(seen(|r| (r.disk.inodes, r.disk.inodes_free) = (0, 0)), none);
        assert_eq!(seen(|r| r.pids_used = 951), Pressure { pids: true, ..none });
        assert_eq!(seen(|r| r.pids_used = 2000), Pressure { pids: true, ..none });
    }

    #[test]
    fn a_pressure_stays_for_five_minutes() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let (calm, short) = (Pressure::default(), Pressure { disk: true, ..Pressure::default() });
        let mut history = PressureHistory::default();
        assert_eq!(history.observe(calm, at(0)), calm);
        assert_eq!(history.observe(short, at(10)), short);
        assert_eq!(history.observe(calm, at(309)), short);
        assert_eq!(history.observe(short, at(309)), short);
        assert_eq!(history.observe(calm, at(608)), short);
        assert_eq!(history.observe(calm, at(609)), calm);
    }

    proptest! {
        #[test]
        fn what_is_seen_now_is_always_reported(steps in prop::collection::vec((any::<bool>(), 0_i64..400), 1..20)) {
            let mut history = PressureHistory::default();
            let mut now = 0;
            for (memory, pause) in steps {
                now += pause;
                let seen = Pressure { memory, ..Pressure::default() };
                let told = history.observe(seen, Timestamp::from_second(now).unwrap());
                prop_assert!(told.memory || !memory);
                prop_assert!(!told.disk && !told.pids);
            }
        }
    }
}
