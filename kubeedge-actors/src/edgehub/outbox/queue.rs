//! What waits in the outbox, what goes next and what is dropped. Pure: no disk, no clock, no randomness.
//!
//! Every event has a place. Places rise; the first that may go goes next. What is written, under way or waits for another
//! try keeps its place and holds up nothing behind it, but an event that is not on disk yet: nothing overtakes that.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::Duration,
};

use bytes::Bytes;
use kubeedge_proto::v1::{Envelope, OutboxRecord, Settled, TrafficClass, envelope::Body};
use prost::Message;
use thiserror::Error;

use super::{
    bounds::{Bound, Bounds, Gap},
    entry::{Entry, Load, Stage},
};

/// Events under way at a time: the cloud's own window.
pub const MAX_UNDER_WAY: usize = 256;
/// Bytes of events under way at a time, and always one event: the cloud's own window.
pub const MAX_BYTES_UNDER_WAY: usize = 1024 * 1024;
/// Pause before the second try of an event that the cloud could not take, doubled for each further one.
pub const RETRY_FIRST: Duration = Duration::from_secs(2);
/// The longest such pause.
pub const RETRY_LAST: Duration = Duration::from_secs(300);
/// A clock that says less was not set yet (2020-01-01), and no age follows from it.
const CLOCK_SET: u64 = 1_577_836_800_000;

/// What became of the events since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Taken and on disk.
    pub taken: u64,
    /// The cloud has them.
    pub applied: u64,
    /// The cloud, or the link for their size, refused them for good.
    pub refused: u64,
    /// Times that the cloud could not take one, which is then tried again.
    pub retried: u64,
    /// Dropped, by [`Bound`]: count, bytes, age.
    pub dropped: [u64; 3],
    /// Bytes of those dropped.
    pub dropped_bytes: u64,
}

/// Both clocks.
#[derive(Clone, Copy, Debug, Default)]
pub struct Now {
    /// Since this program started. Everything is timed by it.
    pub clock: Duration,
    /// By the wall clock, milliseconds since 1970. Only the age over a restart is told by it.
    pub unix_ms: u64,
}

/// What has to be on disk: per place a record, or none.
pub type Changes = BTreeMap<u64, Option<OutboxRecord>>;

/// Why an event was not taken.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Refused {
    /// No Event, or no proper id.
    #[error("only Kubernetes events and user messages with an id of 16 bytes are published")]
    Malformed,
    /// Larger than any room that can be made for it.
    #[error("the event is {bytes} bytes, the limit is {limit}")]
    TooLarge {
        /// Encoded.
        bytes: usize,
        /// For one event.
        limit: usize,
    },
    /// What could be dropped for it is too little: the rest is being written or sent.
    #[error("the outbox is full of events that are being written or sent")]
    Full,
    /// One of this id is there already, at this place.
    #[error("an event of this id is in the outbox already")]
    Known {
        /// Its place.
        place: u64,
        /// Whether it is on disk.
        durable: bool,
    },
}

/// What a settlement did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The event is done with, and so is its record at this place.
    Done(u64),
    /// It goes again later.
    Later,
    /// No event of the outbox.
    Unknown,
}

/// See the module's page.
#[derive(Debug)]
pub struct Queue {
    bounds: Bounds,
    entries: BTreeMap<u64, Entry>,
    places: HashMap<Bytes, u64>,
    gaps: BTreeSet<u64>,
    next: u64,
    /// Of all events, and of those that are being written or sent.
    all: Load,
    held: Load,
    under_way: Load,
    counts: Counts,
}

impl Queue {
    /// What an earlier run left, in the order of its places. Records that are no events are among the changes, as none.
    pub fn load(
        bounds: Bounds,
        now: Now,
        records: impl Iterator<Item = (u64, OutboxRecord)>,
        id: impl FnMut() -> Bytes,
    ) -> (Self, Changes) {
        let mut queue = Self {
            bounds,
            entries: BTreeMap::new(),
            places: HashMap::new(),
            gaps: BTreeSet::new(),
            next: 0,
            all: Load::default(),
            held: Load::default(),
            under_way: Load::default(),
            counts: Counts::default(),
        };
        let mut changes = Changes::new();
        for (place, record) in records {
            queue.next = queue.next.max(place.saturating_add(1));
            let Some(envelope) = record.envelope.filter(|envelope| !queue.places.contains_key(&envelope.id)) else {
                changes.insert(place, None);
                continue;
            };
            let known = record.taken_unix_ms >= CLOCK_SET && now.unix_ms >= CLOCK_SET;
            let age = if known { now.unix_ms.saturating_sub(record.taken_unix_ms) } else { 0 };
            let gap = match &envelope.body {
                Some(Body::GapMarker(marker)) => Some(Gap::of(marker)),
                _ => None,
            };
            let entry = Entry {
                bytes: if gap.is_some() { 0 } else { envelope.encoded_len() },
                priority: envelope.priority,
                expires: (now.clock + bounds.max_age).saturating_sub(Duration::from_millis(age)),
                taken_unix_ms: record.taken_unix_ms,
                gap,
                stage: Stage::Waiting(Duration::ZERO, 0),
                id: envelope.id,
            };
            queue.insert(place, entry);
        }
        queue.make_room(now, Load::default(), id, &mut changes);
        (queue, changes)
    }

    /// The largest event that is taken, encoded, in bytes: half of the room, so that one under way leaves room for another.
    pub fn max_event_bytes(&self) -> usize {
        self.bounds.max_bytes / 2
    }

    /// Takes an event: its place, and what has to be on disk for it; then [`Self::written`] or [`Self::not_written`] is
    /// called. Drops the oldest when there is no room. `id` gives a new id for a marker.
    pub fn push(&mut self, now: Now, envelope: Envelope, id: impl FnMut() -> Bytes) -> Result<(u64, Changes), Refused> {
        let marker = matches!(envelope.body, Some(Body::GapMarker(_)));
        if envelope.class() != Some(TrafficClass::Event) || marker || envelope.id.len() != 16 {
            return Err(Refused::Malformed);
        }
        if let Some((place, entry)) = self.places.get(&envelope.id).and_then(|place| self.entries.get_key_value(place))
        {
            return Err(Refused::Known { place: *place, durable: entry.stage != Stage::Writing });
        }
        let (bytes, limit) = (envelope.encoded_len(), self.max_event_bytes());
        if bytes > limit {
            return Err(Refused::TooLarge { bytes, limit });
        }
        if self.held.events >= self.bounds.max_events || self.held.bytes + bytes > self.bounds.max_bytes {
            return Err(Refused::Full);
        }
        let mut changes = Changes::new();
        self.make_room(now, Load { entries: 1, events: 1, bytes }, id, &mut changes);
        let place = self.next;
        self.next += 1;
        let entry = Entry {
            id: envelope.id.clone(),
            bytes,
            priority: envelope.priority,
            expires: now.clock + self.bounds.max_age,
            taken_unix_ms: now.unix_ms,
            gap: None,
            stage: Stage::Writing,
        };
        self.insert(place, entry);
        changes.insert(place, Some(OutboxRecord { envelope: Some(envelope), taken_unix_ms: now.unix_ms }));
        Ok((place, changes))
    }

    /// The event at this place is on disk.
    pub fn written(&mut self, place: u64) {
        if self.stage(place) == Some(Stage::Writing) {
            self.set(place, Stage::Waiting(Duration::ZERO, 0));
            self.counts.taken += 1;
        }
    }

    /// The event at this place did not get to the disk: it was never taken.
    pub fn not_written(&mut self, place: u64) {
        if self.stage(place) == Some(Stage::Writing) {
            self.remove(place);
        }
    }

    /// Drops what is too old.
    pub fn expire(&mut self, now: Now, mut id: impl FnMut() -> Bytes) -> Changes {
        let mut changes = Changes::new();
        self.expire_into(now, &mut id, &mut changes);
        changes
    }

    /// The next event to send: it is under way from now on.
    pub fn next(&mut self, now: Now) -> Option<u64> {
        let limit = (self.bounds.max_events / 2).clamp(1, MAX_UNDER_WAY);
        let under_way = self.under_way.entries;
        let room = MAX_BYTES_UNDER_WAY.min(self.max_event_bytes());
        for (place, entry) in &self.entries {
            match entry.stage {
                Stage::Writing => return None,
                Stage::Waiting(from, tries) if from <= now.clock => {
                    let fits = under_way == 0 || self.under_way.bytes + entry.bytes <= room;
                    if under_way >= limit || !fits {
                        return None;
                    }
                    let place = *place;
                    self.set(place, Stage::UnderWay(tries));
                    return Some(place);
                }
                Stage::Waiting(..) | Stage::UnderWay(_) => {}
            }
        }
        None
    }

    /// The marker at this place, as it is now. `None`: there is an event, which is on disk.
    pub fn marker(&self, place: u64) -> Option<Envelope> {
        self.entries.get(&place).and_then(|entry| entry.marker())
    }

    /// The record at this place cannot be read: its event is lost, as if the cloud had refused it.
    pub fn unreadable(&mut self, place: u64) {
        if self.remove(place).is_some() {
            self.counts.refused += 1;
        }
    }

    /// The cloud, or this end's session, says what became of an event under way.
    pub fn settled(&mut self, now: Now, id: &Bytes, settled: &Settled) -> Outcome {
        let Some(place) = self.places.get(id).copied() else { return Outcome::Unknown };
        let Some(Stage::UnderWay(tries)) = self.stage(place) else { return Outcome::Unknown };
        if !settled.is_for_now() {
            self.remove(place);
            *(if settled.code == 0 { &mut self.counts.applied } else { &mut self.counts.refused }) += 1;
            return Outcome::Done(place);
        }
        self.counts.retried += 1;
        let pause = RETRY_FIRST.saturating_mul(1 << tries.min(16)).min(RETRY_LAST);
        self.set(place, Stage::Waiting(now.clock + pause, tries.saturating_add(1)));
        Outcome::Later
    }

    /// The session is over: what was under way goes again in the next one, and what waited for another try need not.
    pub fn session_over(&mut self) {
        let places: Vec<u64> = self.entries.keys().copied().collect();
        for place in places {
            if self.stage(place) != Some(Stage::Writing) {
                self.set(place, Stage::Waiting(Duration::ZERO, 0));
            }
        }
    }

    /// Events in the outbox, markers not among them.
    pub fn len(&self) -> usize {
        self.all.events
    }

    /// Whether there is no event.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of the events.
    pub fn bytes(&self) -> usize {
        self.all.bytes
    }

    /// Since the start.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    fn make_room(&mut self, now: Now, extra: Load, mut id: impl FnMut() -> Bytes, changes: &mut Changes) {
        self.expire_into(now, &mut id, changes);
        let over = |queue: &Self| {
            let (events, bytes) = (queue.all.events + extra.events, queue.all.bytes + extra.bytes);
            if events > queue.bounds.max_events {
                Some(Bound::Count)
            } else {
                (bytes > queue.bounds.max_bytes).then_some(Bound::Bytes)
            }
        };
        while let Some(bound) = over(self)
            && let Some(oldest) = self.oldest()
        {
            self.drop_event(oldest, bound, now, &mut id, changes);
        }
    }

    fn expire_into(&mut self, now: Now, id: &mut impl FnMut() -> Bytes, changes: &mut Changes) {
        while let Some(oldest) = self.oldest()
            && self.entries.get(&oldest).is_some_and(|entry| entry.expires <= now.clock)
        {
            self.drop_event(oldest, Bound::Age, now, id, changes);
        }
    }

    /// The first event that may be dropped.
    fn oldest(&self) -> Option<u64> {
        let may = |entry: &Entry| entry.gap.is_none() && matches!(entry.stage, Stage::Waiting(..));
        self.entries.iter().find(|(_, entry)| may(entry)).map(|(place, _)| *place)
    }

    /// Drops an event. All markers that are not under way become one, at the first place of them all. It keeps the id of
    /// the oldest: should the cloud have seen that one, it sees that it has grown.
    fn drop_event(
        &mut self,
        place: u64,
        bound: Bound,
        now: Now,
        id: &mut impl FnMut() -> Bytes,
        changes: &mut Changes,
    ) {
        let Some(dropped) = self.remove(place) else { return };
        changes.insert(place, None);
        self.counts.dropped[bound as usize] += 1;
        self.counts.dropped_bytes += dropped.bytes as u64;
        let mut gap = Gap { count: 1, bytes: dropped.bytes as u64, bounds: [false; 3] };
        gap.bounds[bound as usize] = true;

        let still = |place: &u64| matches!(self.stage(*place), Some(Stage::Waiting(..)));
        let others: Vec<u64> = self.gaps.iter().copied().filter(still).collect();
        let (mut at, mut known) = (place, None);
        for other in others {
            changes.insert(other, None);
            at = at.min(other);
            if let Some(Entry { id, gap: Some(more), .. }) = self.remove(other) {
                gap.add(&more);
                known.get_or_insert(id);
            }
        }
        let entry = Entry {
            id: known.unwrap_or_else(id),
            bytes: 0,
            priority: dropped.priority,
            expires: Duration::MAX,
            taken_unix_ms: now.unix_ms,
            gap: Some(gap),
            stage: Stage::Waiting(Duration::ZERO, 0),
        };
        changes.insert(at, Some(OutboxRecord { envelope: entry.marker(), taken_unix_ms: now.unix_ms }));
        self.insert(at, entry);
    }

    fn stage(&self, place: u64) -> Option<Stage> {
        self.entries.get(&place).map(|entry| entry.stage)
    }

    fn insert(&mut self, place: u64, entry: Entry) {
        self.places.insert(entry.id.clone(), place);
        self.all.add(&entry);
        if entry.gap.is_some() {
            self.gaps.insert(place);
        }
        self.load_of(entry.stage, |load| load.add(&entry));
        self.entries.insert(place, entry);
    }

    fn remove(&mut self, place: u64) -> Option<Entry> {
        let entry = self.entries.remove(&place)?;
        self.places.remove(&entry.id);
        self.all.remove(&entry);
        self.gaps.remove(&place);
        self.load_of(entry.stage, |load| load.remove(&entry));
        Some(entry)
    }

    fn set(&mut self, place: u64, stage: Stage) {
        if let Some(mut entry) = self.remove(place) {
            entry.stage = stage;
            self.insert(place, entry);
        }
    }

    fn load_of(&mut self, stage: Stage, change: impl Fn(&mut Load)) {
        match stage {
            Stage::Writing => change(&mut self.held),
            Stage::Waiting(..) => {}
            Stage::UnderWay(_) => {
                change(&mut self.held);
                change(&mut self.under_way);
            }
        }
    }
}
