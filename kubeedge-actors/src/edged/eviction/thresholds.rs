//! From where on the node is short of something: the kubelet's eviction signals and thresholds. Pure.

use std::{collections::BTreeMap, fmt, time::Duration};

use thiserror::Error;

use crate::edged::{
    node::readings::{DiskReading, MachineReadings},
    quantity::Quantity,
};

/// What is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Signal {
    /// Memory that can be had.
    MemoryAvailable,
    /// Bytes of the volumes' file system.
    NodefsAvailable,
    /// Files of the volumes' file system.
    NodefsInodesFree,
    /// Bytes of the images' file system.
    ImagefsAvailable,
    /// Files of the images' file system.
    ImagefsInodesFree,
    /// Process ids.
    PidAvailable,
}

/// All of them, in the order in which they are acted on: memory first, as a kubelet does.
pub const SIGNALS: [Signal; 6] = [
    Signal::MemoryAvailable,
    Signal::NodefsAvailable,
    Signal::NodefsInodesFree,
    Signal::ImagefsAvailable,
    Signal::ImagefsInodesFree,
    Signal::PidAvailable,
];

impl Signal {
    /// The kubelet's name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::MemoryAvailable => "memory.available",
            Self::NodefsAvailable => "nodefs.available",
            Self::NodefsInodesFree => "nodefs.inodesFree",
            Self::ImagefsAvailable => "imagefs.available",
            Self::ImagefsInodesFree => "imagefs.inodesFree",
            Self::PidAvailable => "pid.available",
        }
    }

    /// By a kubelet's name. What it calls `containerfs` is on the images' file system here.
    pub fn parse(name: &str) -> Option<Self> {
        let name = name.replace("containerfs.", "imagefs.");
        SIGNALS.into_iter().find(|signal| signal.as_str() == name)
    }

    /// The resource, in the words of an eviction.
    pub fn resource(self) -> &'static str {
        match self {
            Self::MemoryAvailable => "memory",
            Self::NodefsAvailable | Self::ImagefsAvailable => "ephemeral-storage",
            Self::NodefsInodesFree | Self::ImagefsInodesFree => "inodes",
            Self::PidAvailable => "pids",
        }
    }

    /// Whether removing images helps.
    pub fn is_disk(self) -> bool {
        !matches!(self, Self::MemoryAvailable | Self::PidAvailable)
    }

    /// What there is of it, and how much of that is left.
    pub fn observe(self, readings: &MachineReadings) -> Observation {
        let bytes = |disk: &DiskReading| Observation { capacity: disk.capacity, available: disk.available };
        let files = |disk: &DiskReading| Observation { capacity: disk.inodes, available: disk.inodes_free };
        match self {
            Self::MemoryAvailable => Observation { capacity: readings.memory, available: readings.memory_available },
            Self::NodefsAvailable => bytes(&readings.disk),
            Self::NodefsInodesFree => files(&readings.disk),
            Self::ImagefsAvailable => bytes(&readings.image_disk),
            Self::ImagefsInodesFree => files(&readings.image_disk),
            Self::PidAvailable => {
                Observation { capacity: readings.pids, available: readings.pids.saturating_sub(readings.pids_used) }
            }
        }
    }

    /// An amount of it, for a person.
    pub fn show(self, amount: u64) -> String {
        match self {
            Self::MemoryAvailable | Self::NodefsAvailable | Self::ImagefsAvailable => {
                Quantity::bytes(amount).to_api().0
            }
            _ => amount.to_string(),
        }
    }
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One look at a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Observation {
    /// All of it; 0 where it is not counted.
    pub capacity: u64,
    /// What is left.
    pub available: u64,
}

/// An amount, or a share of all of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Amount {
    /// Bytes, or a count.
    Fixed(u64),
    /// Tenths of a percent.
    PerMille(u16),
}

impl Amount {
    /// As a number.
    pub fn of(self, capacity: u64) -> u64 {
        match self {
            Self::Fixed(amount) => amount,
            Self::PerMille(share) => u64::try_from(u128::from(capacity) * u128::from(share) / 1000).unwrap_or(u64::MAX),
        }
    }
}

/// From where on, and for how long, before something is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Threshold {
    /// What is watched.
    pub signal: Signal,
    /// What must be left.
    pub least: Amount,
    /// How long it may be less: `None` for a hard threshold.
    pub grace: Option<Duration>,
    /// How much more than `least` has to be left until it is over.
    pub reclaim: Option<Amount>,
}

impl Threshold {
    /// Whether there is less; with `reclaim`, whether it is not over yet.
    pub fn is_met(&self, seen: Observation, reclaiming: bool) -> bool {
        if seen.capacity == 0 {
            return false;
        }
        let more = self.reclaim.filter(|_| reclaiming).map_or(0, |more| more.of(seen.capacity));
        seen.available < self.least.of(seen.capacity).saturating_add(more)
    }
}

/// A setting that cannot be meant.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum InvalidThreshold {
    /// Nobody knows the signal.
    #[error(
        "{field}: {name:?} is no eviction signal; expected memory.available, nodefs.available, nodefs.inodesFree, \
             imagefs.available, imagefs.inodesFree or pid.available"
    )]
    Signal {
        /// Where it stands.
        field: &'static str,
        /// What stands there.
        name: String,
    },
    /// A soft threshold without its grace period.
    #[error("evictionSoft: {0} needs a grace period in evictionSoftGracePeriod")]
    NoGrace(Signal),
}

/// All thresholds of a node, and the times that go with them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Thresholds {
    /// Hard and soft ones.
    pub all: Vec<Threshold>,
    /// How long a condition stays after its threshold was last met (`evictionPressureTransitionPeriod`).
    pub transition: Duration,
    /// The longest grace period of a pod that is evicted over a soft threshold, seconds
    /// (`evictionMaxPodGracePeriod`).
    pub max_grace_seconds: u32,
}

impl Default for Thresholds {
    /// Those of a kubelet; `pid.available` has none there, and 5 % here.
    fn default() -> Self {
        let hard = |signal, least| Threshold { signal, least, grace: None, reclaim: None };
        Self {
            all: vec![
                hard(Signal::MemoryAvailable, Amount::Fixed(100 << 20)),
                hard(Signal::NodefsAvailable, Amount::PerMille(100)),
                hard(Signal::NodefsInodesFree, Amount::PerMille(50)),
                hard(Signal::ImagefsAvailable, Amount::PerMille(150)),
                hard(Signal::ImagefsInodesFree, Amount::PerMille(50)),
                hard(Signal::PidAvailable, Amount::PerMille(50)),
            ],
            transition: Duration::from_secs(300),
            max_grace_seconds: 0,
        }
    }
}

/// The kubelet's four maps, by the names of signals.
#[derive(Clone, Debug, Default)]
pub struct ThresholdMaps {
    /// `evictionHard`; `None`: the defaults.
    pub hard: Option<BTreeMap<String, Amount>>,
    /// `evictionSoft`
    pub soft: BTreeMap<String, Amount>,
    /// `evictionSoftGracePeriod`
    pub soft_grace: BTreeMap<String, Duration>,
    /// `evictionMinimumReclaim`
    pub reclaim: BTreeMap<String, Amount>,
}

impl Thresholds {
    /// From a kubelet's settings. As there, a map of hard thresholds takes the place of all defaults.
    pub fn of(maps: &ThresholdMaps, transition: Duration, max_grace_seconds: u32) -> Result<Self, InvalidThreshold> {
        let signal = |field: &'static str, name: &String| {
            Signal::parse(name).ok_or_else(|| InvalidThreshold::Signal { field, name: name.chars().take(60).collect() })
        };
        let mut reclaim = BTreeMap::new();
        for (name, amount) in &maps.reclaim {
            reclaim.insert(signal("evictionMinimumReclaim", name)?, *amount);
        }
        let mut graces = BTreeMap::new();
        for (name, grace) in &maps.soft_grace {
            graces.insert(signal("evictionSoftGracePeriod", name)?, *grace);
        }
        let mut all = Vec::new();
        match &maps.hard {
            None => all.extend(Self::default().all),
            Some(hard) => {
                for (name, least) in hard {
                    let signal = signal("evictionHard", name)?;
                    all.push(Threshold { signal, least: *least, grace: None, reclaim: None });
                }
            }
        }
        for (name, least) in &maps.soft {
            let signal = signal("evictionSoft", name)?;
            let grace = graces.get(&signal).copied().ok_or(InvalidThreshold::NoGrace(signal))?;
            all.push(Threshold { signal, least: *least, grace: Some(grace), reclaim: None });
        }
        for threshold in &mut all {
            threshold.reclaim = reclaim.get(&threshold.signal).copied();
        }
        Ok(Self { all, transition, max_grace_seconds })
    }

    /// What a hard threshold keeps from pods.
    pub fn kept(&self, signal: Signal, capacity: u64) -> u64 {
        let hard = self.all.iter().filter(|threshold| threshold.signal == signal && threshold.grace.is_none());
        hard.map(|threshold| threshold.least.of(capacity)).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map<T: Copy>(entries: &[(&str, T)]) -> BTreeMap<String, T> {
        entries.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect()
    }

    #[test]
    fn settings_are_a_kubelets() {
        let (soft, grace) = (map(&[("memory.available", Amount::PerMille(200))]), Duration::from_secs(90));
        let maps = ThresholdMaps {
            hard: Some(map(&[("memory.available", Amount::Fixed(7)), ("containerfs.available", Amount::PerMille(10))])),
            soft: soft.clone(),
            soft_grace: map(&[("memory.available", grace)]),
            reclaim: map(&[("memory.available", Amount::Fixed(3))]),
        };
        let read = Thresholds::of(&maps, Duration::ZERO, 5).unwrap();
        assert_eq!(read.all.len(), 3);
        assert_eq!((read.kept(Signal::MemoryAvailable, 100), read.kept(Signal::ImagefsAvailable, 1000)), (7, 10));
        assert_eq!(read.kept(Signal::NodefsAvailable, 1000), 0, "defaults are replaced");
        let last = read.all[2];
        assert_eq!((last.grace, last.reclaim), (Some(grace), Some(Amount::Fixed(3))));
        assert_eq!(Thresholds::of(&ThresholdMaps::default(), Duration::from_secs(300), 0), Ok(Thresholds::default()));

        let no_grace = ThresholdMaps { soft, ..ThresholdMaps::default() };
        let error = Thresholds::of(&no_grace, Duration::ZERO, 0).unwrap_err();
        assert_eq!(error, InvalidThreshold::NoGrace(Signal::MemoryAvailable));
        let unknown = ThresholdMaps { hard: Some(map(&[("memory", Amount::Fixed(1))])), ..ThresholdMaps::default() };
        let error = Thresholds::of(&unknown, Duration::ZERO, 0).unwrap_err().to_string();
        assert!(error.starts_with("evictionHard: \"memory\" is no eviction signal"), "{error}");
    }

    #[test]
    fn a_threshold_is_met_below_it_and_over_when_enough_was_reclaimed() {
        let (least, reclaim) = (Amount::PerMille(100), Some(Amount::Fixed(50)));
        let threshold = Threshold { signal: Signal::NodefsAvailable, least, grace: None, reclaim };
        let seen = |available| Observation { capacity: 1000, available };
        assert!(threshold.is_met(seen(99), false) && !threshold.is_met(seen(100), false));
        assert!(threshold.is_met(seen(149), true) && !threshold.is_met(seen(150), true));
        assert!(!threshold.is_met(Observation { capacity: 0, available: 0 }, true), "not counted there");
    }
}
