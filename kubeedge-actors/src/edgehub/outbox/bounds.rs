//! What the outbox may hold, and the marker that stands for what it dropped.

use std::{ops::RangeInclusive, time::Duration};

use kubeedge_proto::v1::GapMarker;

/// What the outbox holds at most. Beyond it the oldest that is not under way is dropped, and a gap marker takes its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Events. Default 10000. Gap markers do not count; there are never more than
    /// [`MAX_UNDER_WAY`](super::queue::MAX_UNDER_WAY) and one.
    pub max_events: usize,
    /// Their encoded bytes. Default 16 MiB.
    pub max_bytes: usize,
    /// How long an event is of use to anybody. Default one day.
    pub max_age: Duration,
}

impl Bounds {
    /// Sensible numbers of events. About 300 bytes of memory each: 300 MB at most.
    pub const EVENTS: RangeInclusive<usize> = 1..=1_000_000;
    /// Sensible numbers of bytes, all on disk: from one event of 64 KiB beside another to 1 GiB.
    pub const BYTES: RangeInclusive<usize> = 128 * 1024..=1024 * 1024 * 1024;
}

impl Default for Bounds {
    fn default() -> Self {
        Self { max_events: 10_000, max_bytes: 16 * 1024 * 1024, max_age: Duration::from_secs(24 * 60 * 60) }
    }
}

/// What an event was dropped for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    /// Too many.
    Count,
    /// Too large together.
    Bytes,
    /// Too old.
    Age,
}

impl Bound {
    const ALL: [Self; 3] = [Self::Count, Self::Bytes, Self::Age];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Count => "count",
            Self::Bytes => "bytes",
            Self::Age => "age",
        }
    }
}

/// What a marker stands for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Gap {
    pub(super) count: u64,
    pub(super) bytes: u64,
    pub(super) bounds: [bool; 3],
}

impl Gap {
    pub(super) fn add(&mut self, other: &Gap) {
        self.count = self.count.saturating_add(other.count);
        self.bytes = self.bytes.saturating_add(other.bytes);
        for (own, other) in self.bounds.iter_mut().zip(other.bounds) {
            *own |= other;
        }
    }

    pub(super) fn of(marker: &GapMarker) -> Self {
        let bounds = Bound::ALL.map(|bound| marker.bound.split(',').any(|name| name == bound.name()));
        Self { count: marker.dropped_count, bytes: marker.dropped_bytes, bounds }
    }

    pub(super) fn marker(&self) -> GapMarker {
        let names = Bound::ALL.into_iter().filter(|bound| self.bounds[*bound as usize]).map(Bound::name);
        GapMarker { dropped_count: self.count, dropped_bytes: self.bytes, bound: names.collect::<Vec<_>>().join(",") }
    }
}
