//! One event or marker of the outbox, and how much some of them are together.

use std::time::Duration;

use bytes::Bytes;
use kubeedge_proto::v1::{Envelope, envelope::Body};

use super::bounds::Gap;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// Not on disk yet.
    Writing,
    /// May go from this time on, after so many tries.
    Waiting(Duration, u32),
    /// Handed to the session, after so many tries.
    UnderWay(u32),
}

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) id: Bytes,
    /// 0 for a marker.
    pub(super) bytes: usize,
    pub(super) priority: i32,
    pub(super) expires: Duration,
    pub(super) taken_unix_ms: u64,
    pub(super) gap: Option<Gap>,
    pub(super) stage: Stage,
}

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Load {
    /// Events and markers.
    pub(super) entries: usize,
    pub(super) events: usize,
    pub(super) bytes: usize,
}

impl Load {
    pub(super) fn add(&mut self, entry: &Entry) {
        self.entries += 1;
        self.events += usize::from(entry.gap.is_none());
        self.bytes += entry.bytes;
    }

    pub(super) fn remove(&mut self, entry: &Entry) {
        self.entries -= 1;
        self.events -= usize::from(entry.gap.is_none());
        self.bytes -= entry.bytes;
    }
}

impl Entry {
    pub(super) fn marker(&self) -> Option<Envelope> {
        let body = Body::GapMarker(self.gap.as_ref()?.marker());
        Some(Envelope {
            id: self.id.clone(),
            origin: "edgehub".into(),
            time_unix_ms: self.taken_unix_ms,
            // That of what was dropped: other levels of the link overtake each other.
            priority: self.priority,
            body: Some(body),
            ..Envelope::default()
        })
    }
}
