//! Everything that waits to be sent, and in which order it goes.
//!
//! Five levels share the socket by weight (start-time fair queueing): a busy level cannot starve a quiet one, and a level
//! that has been quiet is served at once. Within a level the sources take turns, one chunk of a big message each.

use std::{collections::VecDeque, time::Duration};

use bytes::{Bytes, BytesMut};
use kubeedge_proto::v1::{self, Envelope, Settled, frame::Frame as F};
use prost::Message;

use super::{
    level::{CONFIG, CONTROL, Level, WEIGHTS, level_of},
    rising::Rising,
    state_queue::{Entry, Queued, StateQueue},
    types::{Class, Refusal, Remains, Violation, frame},
};
use crate::link::{
    config::{CHUNK_BYTES, CHUNK_THRESHOLD, Config, INVENTORY_PIECE_BYTES, MAX_MARKS, Window, Windows},
    ids::{ObjectId, TypeId},
};

/// Messages of one kind under way: sent, not settled.
#[derive(Clone, Copy, Debug)]
struct Lane {
    window: Window,
    messages: u32,
    bytes: u64,
}

impl Lane {
    fn new(window: Window) -> Self {
        Self { window, messages: 0, bytes: 0 }
    }

    fn open(&self) -> bool {
        self.window.is_open(self.messages.into(), self.bytes)
    }

    /// What to give back with [`Lane::remove`].
    fn add(&mut self, bytes: usize) -> u64 {
        let cost = self.window.cost(bytes);
        self.messages += 1;
        self.bytes += cost;
        cost
    }

    fn remove(&mut self, cost: u64) {
        self.messages -= 1;
        self.bytes -= cost;
    }
}

/// What goes through a lane. Replies have their own: requests of both sides must not wait for each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LaneId {
    State,
    Event,
    Request,
    Reply,
}

/// A message that was sent and is not settled.
#[derive(Debug)]
pub(crate) enum Sent {
    State(ObjectId, Box<Envelope>),
    Event(Box<Envelope>),
    Request(Bytes),
    Reply,
}

#[derive(Debug)]
struct InFlight {
    what: Sent,
    cost: u64,
    /// Pieces still to go out.
    partial: bool,
}

/// A big message on its way, encoded.
#[derive(Debug)]
pub(super) struct Partial {
    class: Class,
    seq: u64,
    index: u32,
    total: u32,
    rest: Bytes,
    /// For State: its place in the line of its type.
    order: Option<(TypeId, u64)>,
}

#[derive(Debug)]
enum MarkFrame {
    Complete(v1::InventoryComplete),
    Bookmark(Box<v1::Bookmark>),
}

/// Goes out after the State of its type that got in line before it.
#[derive(Debug)]
struct Mark {
    type_: TypeId,
    after: u64,
    frame: MarkFrame,
}

/// Replies that wait because the peer acknowledges none before them; a session with more ends.
pub(super) const MAX_REPLIES: usize = 1024;
/// Their bytes. What is over it is answered with an error; one that waits alone may be larger.
pub(super) const MAX_REPLY_BYTES: usize = 16 << 20;

/// Messages of one round are encoded together into pieces of this, bytes.
const TOGETHER_BYTES: usize = 16 * 1024;

/// The sources of a level, in the order of their turns.
const SOURCES: usize = 7;

#[derive(Debug)]
pub(crate) struct Outbox {
    pub(crate) state: StateQueue,
    levels: [Level; 5],
    clock: u64,
    lanes: [Lane; 4],
    sequences: [u64; 3],
    in_flight: [Rising<InFlight>; 3],
    floors: [u64; 3],
    marks: VecDeque<Mark>,
    inventories: VecDeque<(v1::ResourceType, VecDeque<v1::InventoryEntry>)>,
    replies: usize,
    reply_bytes: usize,
    events: usize,
    event_bytes: usize,
    max_events: usize,
    max_event_bytes: usize,
    /// Where the messages of this round are encoded; taken for the first one as large as that is.
    buffer: Option<BytesMut>,
}

impl Outbox {
    pub(crate) fn new(config: &Config) -> Self {
        let mut outbox = Self {
            state: StateQueue::new(config.max_queued_state, config.key_rate),
            levels: Default::default(),
            clock: 0,
            lanes: [Lane::new(Windows::DEFAULT.state); 4],
            sequences: [0; 3],
            in_flight: Default::default(),
            floors: [0; 3],
            marks: VecDeque::new(),
            inventories: VecDeque::new(),
            replies: 0,
            reply_bytes: 0,
            events: 0,
            event_bytes: 0,
            max_events: config.max_queued_events,
            max_event_bytes: config.max_queued_event_bytes,
            buffer: None,
        };
        outbox.set_windows(Windows::DEFAULT);
        outbox
    }

    /// Gives back the room of messages that were sent and settled.
    pub(crate) fn shrink(&mut self) {
        self.state.shrink();
        self.levels.iter_mut().for_each(Level::shrink);
        self.in_flight.iter_mut().for_each(Rising::shrink);
        self.marks.shrink_to_fit();
        self.inventories.shrink_to_fit();
    }

    /// What the peer takes.
    pub(crate) fn set_windows(&mut self, windows: Windows) {
        let by_lane = [windows.state, windows.event, windows.call, windows.call];
        for (lane, window) in self.lanes.iter_mut().zip(by_lane) {
            lane.window = window;
        }
    }

    /// State gets in line, newest per (key, uid).
    pub(crate) fn push_state(
        &mut self,
        now: Duration,
        id: ObjectId,
        uid: String,
        envelope: Box<Envelope>,
        bytes: usize,
    ) -> Queued {
        let mut queued = self.state.push(now, id, uid, envelope, bytes);
        if let Queued::New(ready) | Queued::Replaced(_, ready) = &mut queued
            && let Some(id) = ready.take()
        {
            self.ready(id);
        }
        queued
    }

    fn ready(&mut self, id: ObjectId) {
        let level = self.state.head(&id).map_or(CONFIG, level_of);
        self.levels[level].waiting().state.push_back(id);
    }

    /// Keys that waited for their rate.
    pub(crate) fn release_due(&mut self, now: Duration) {
        for id in self.state.due(now) {
            self.ready(id);
        }
    }

    /// Whether an Event of this size would be taken.
    pub(crate) fn event_room(&self, bytes: usize) -> Result<(), Refusal> {
        let full = |limit| Err(Refusal::QueueFull { class: Class::Event, limit });
        if self.events >= self.max_events {
            full(self.max_events)
        } else if self.event_bytes + bytes > self.max_event_bytes {
            full(self.max_event_bytes)
        } else {
            Ok(())
        }
    }

    /// An Event that there is room for.
    pub(crate) fn push_event(&mut self, envelope: Box<Envelope>, bytes: usize) {
        self.events += 1;
        self.event_bytes += bytes;
        self.levels[level_of(&envelope)].waiting().events.push_back((envelope, bytes));
    }

    /// A request; how many may wait is for the caller to bound.
    pub(crate) fn push_request(&mut self, envelope: Box<Envelope>, bytes: usize, deadline: Duration) {
        self.levels[level_of(&envelope)].waiting().requests.push_back((envelope, bytes, deadline));
    }

    /// The request's caller has gone.
    pub(crate) fn cancel_request(&mut self, id: &Bytes) {
        for level in self.levels.iter_mut().filter_map(|level| level.waiting.as_mut()) {
            level.requests.retain(|(envelope, _, _)| envelope.id != *id);
        }
    }

    /// Replies that wait, and their bytes.
    #[cfg(test)]
    pub(crate) fn waiting_replies(&self) -> (usize, usize) {
        (self.replies, self.reply_bytes)
    }

    /// Whether a reply of this size may wait.
    pub(crate) fn reply_room(&self, bytes: usize) -> bool {
        self.replies == 0 || self.reply_bytes + bytes <= MAX_REPLY_BYTES
    }

    /// A reply. Its request is settled: only these bounds hold a peer that asks on and acknowledges nothing.
    pub(crate) fn push_reply(&mut self, envelope: Box<Envelope>, bytes: usize) -> Result<(), Violation> {
        if self.replies >= MAX_REPLIES {
            let limit = MAX_REPLIES as u64;
            return Err(Violation::Limit { what: "replies that are not acknowledged", got: limit + 1, limit });
        }
        self.replies += 1;
        self.reply_bytes += bytes;
        self.levels[level_of(&envelope)].waiting().replies.push_back((envelope, bytes));
        Ok(())
    }

    pub(crate) fn push_control(&mut self, control: v1::Frame) {
        self.levels[CONTROL].waiting().control.push_back(control);
    }

    /// Pieces of an inventory, at the level of configuration.
    pub(crate) fn push_inventory(&mut self, type_: v1::ResourceType, entries: Vec<v1::InventoryEntry>) {
        self.inventories.push_back((type_, entries.into()));
    }

    pub(crate) fn push_complete(&mut self, complete: v1::InventoryComplete) -> Result<(), Violation> {
        let type_ = TypeId::of(&complete.r#type.clone().unwrap_or_default());
        self.push_mark(type_, MarkFrame::Complete(complete))
    }

    /// Of the bookmarks of a type that wait, the first keeps its place and the last is the newest.
    pub(crate) fn push_bookmark(&mut self, bookmark: Box<v1::Bookmark>) -> Result<(), Violation> {
        let type_ = TypeId::of(&bookmark.r#type.clone().unwrap_or_default());
        let mut waiting = self.marks.iter_mut().filter(|mark| mark.type_ == type_);
        let after = self.state.order();
        if waiting.next().is_some()
            && let Some(last) = waiting.next_back()
            && matches!(last.frame, MarkFrame::Bookmark(_))
        {
            last.frame = MarkFrame::Bookmark(bookmark);
            last.after = after;
            return Ok(());
        }
        self.push_mark(type_, MarkFrame::Bookmark(bookmark))
    }

    fn push_mark(&mut self, type_: TypeId, frame: MarkFrame) -> Result<(), Violation> {
        if self.marks.len() >= MAX_MARKS {
            let limit = MAX_MARKS as u64;
            return Err(Violation::Limit { what: "completions and bookmarks to send", got: limit + 1, limit });
        }
        self.marks.push_back(Mark { type_, after: self.state.order(), frame });
        Ok(())
    }

    /// The next frame by weight, if any may go, and its encoded bytes. Never larger than a chunk and its frame.
    pub(crate) fn next_frame(&mut self, now: Duration) -> Option<(v1::Frame, usize)> {
        loop {
            let level = (0..self.levels.len())
                .filter(|level| (0..SOURCES).any(|source| self.has(*level, source)))
                .min_by_key(|level| (self.levels[*level].clock.max(self.clock), *level))?;
            let start = self.levels[level].clock.max(self.clock);
            let turn = self.levels[level].turn;
            let source = (0..SOURCES).map(|step| (turn + step) % SOURCES).find(|source| self.has(level, *source))?;
            self.levels[level].turn = (source + 1) % SOURCES;
            // A request whose deadline has passed gives nothing; the next one may.
            if let Some(frame) = self.take(now, level, source) {
                self.clock = start;
                // Scaled so that the division by a weight keeps its precision.
                let bytes = frame.encoded_len();
                let cost = (bytes as u64 + 64) * 16;
                self.levels[level].clock = start + cost / WEIGHTS[level];
                return Some((frame, bytes));
            }
        }
    }

    fn open(&self, lane: LaneId) -> bool {
        self.lanes[lane as usize].open()
    }

    fn has(&self, level: usize, source: usize) -> bool {
        match source {
            0 if level == CONFIG && self.inventories.front().is_some() => return true,
            1 => return level == CONFIG && self.mark_ready().is_some(),
            _ => {}
        }
        let Some(own) = &self.levels[level].waiting else { return false };
        match source {
            0 => !own.control.is_empty(),
            2 => !own.replies.is_empty() && self.open(LaneId::Reply),
            3 => !own.requests.is_empty() && self.open(LaneId::Request),
            4 => !own.partial.is_empty(),
            5 => !own.state.is_empty() && self.open(LaneId::State),
            _ => !own.events.is_empty() && self.open(LaneId::Event),
        }
    }

    fn take(&mut self, now: Duration, level: usize, source: usize) -> Option<v1::Frame> {
        match source {
            0 => self.levels[level].waiting().control.pop_front().or_else(|| self.inventory_piece()),
            1 => {
                let mark = self.marks.remove(self.mark_ready()?)?;
                Some(frame(match mark.frame {
                    MarkFrame::Complete(complete) => F::InventoryComplete(complete.into()),
                    MarkFrame::Bookmark(bookmark) => F::Bookmark(bookmark),
                }))
            }
            2 => {
                let (envelope, bytes) = self.levels[level].waiting().replies.pop_front()?;
                self.replies -= 1;
                self.reply_bytes -= bytes;
                let encoded = self.encode(&envelope, bytes);
                Some(self.start(level, Class::Call, LaneId::Reply, Sent::Reply, encoded, bytes, None))
            }
            3 => {
                let (mut envelope, bytes, deadline) = self.levels[level].waiting().requests.pop_front()?;
                let left = deadline.checked_sub(now)?;
                envelope.timeout_ms = u32::try_from(left.as_millis()).unwrap_or(u32::MAX).max(1);
                let encoded = self.encode(&envelope, bytes);
                let sent = Sent::Request(envelope.id);
                Some(self.start(level, Class::Call, LaneId::Request, sent, encoded, bytes, None))
            }
            4 => self.continue_partial(level),
            5 => self.start_state(now, level),
            _ => {
                let (envelope, bytes) = self.levels[level].waiting().events.pop_front()?;
                self.events -= 1;
                self.event_bytes -= bytes;
                let encoded = self.encode(&envelope, bytes);
                Some(self.start(level, Class::Event, LaneId::Event, Sent::Event(envelope), encoded, bytes, None))
            }
        }
    }

    fn start_state(&mut self, now: Duration, level: usize) -> Option<v1::Frame> {
        let id = self.levels[level].waiting().state.pop_front()?;
        let Entry { envelope, bytes, order, .. } = self.state.take(now, &id)?;
        let order = Some((id.type_.clone(), order));
        let encoded = self.encode(&envelope, bytes);
        Some(self.start(level, Class::State, LaneId::State, Sent::State(id, envelope), encoded, bytes, order))
    }

    /// A message of about this many bytes, encoded.
    fn encode(&mut self, envelope: &Envelope, bytes: usize) -> Bytes {
        let buffer = match &mut self.buffer {
            Some(buffer) => {
                if buffer.capacity() < bytes {
                    *buffer = BytesMut::with_capacity(bytes.max(TOGETHER_BYTES));
                }
                buffer
            }
            None => self.buffer.insert(BytesMut::with_capacity(bytes)),
        };
        // It grows, so that everything fits.
        let _ = envelope.encode(buffer);
        buffer.split().freeze()
    }

    /// Nothing more is sent in this round: what its messages are in goes with the last of them.
    pub(crate) fn end_round(&mut self) {
        self.buffer = None;
    }

    #[allow(clippy::too_many_arguments)] // one call per source, each with all of it
    fn start(
        &mut self,
        level: usize,
        class: Class,
        lane: LaneId,
        what: Sent,
        encoded: Bytes,
        bytes: usize,
        order: Option<(TypeId, u64)>,
    ) -> v1::Frame {
        self.sequences[class as usize] += 1;
        let seq = self.sequences[class as usize];
        let cost = self.lanes[lane as usize].add(bytes);
        let partial = bytes > CHUNK_THRESHOLD;
        self.in_flight[class as usize].insert(seq, InFlight { what, cost, partial });
        if !partial {
            if let Some((type_, order)) = order {
                self.state.sent(&type_, order);
            }
            return data(class, seq, v1::data::Payload::Envelope(encoded));
        }
        // Bounded by max_message_bytes, far below 4 GiB.
        let total = encoded.len() as u32;
        let mut partial = Partial { class, seq, index: 0, total, rest: encoded, order };
        let first = partial.next();
        self.levels[level].waiting().partial.push_back(partial);
        first
    }

    fn continue_partial(&mut self, level: usize) -> Option<v1::Frame> {
        let mut partial = self.levels[level].waiting().partial.pop_front()?;
        let piece = partial.next();
        if partial.rest.is_empty() {
            if let Some(in_flight) = self.in_flight[partial.class as usize].get_mut(partial.seq) {
                in_flight.partial = false;
            }
            if let Some((type_, order)) = partial.order {
                self.state.sent(&type_, order);
            }
        } else {
            self.levels[level].waiting().partial.push_back(partial);
        }
        Some(piece)
    }

    fn inventory_piece(&mut self) -> Option<v1::Frame> {
        let (type_, entries) = self.inventories.front_mut()?;
        let mut piece = v1::Inventory { r#type: Some(type_.clone()), entries: Vec::new(), last: false };
        let mut bytes = 0;
        while bytes < INVENTORY_PIECE_BYTES
            && let Some(entry) = entries.pop_front()
        {
            bytes += entry.encoded_len() + 4;
            piece.entries.push(entry);
        }
        piece.last = entries.is_empty();
        if piece.last {
            self.inventories.pop_front();
        }
        Some(frame(F::Inventory(piece.into())))
    }

    /// The first mark that everything before it has gone out for; marks of one type keep their order.
    fn mark_ready(&self) -> Option<usize> {
        let mut held: Vec<&TypeId> = Vec::new();
        self.marks.iter().position(|mark| {
            let ready = !held.contains(&&mark.type_) && self.state.all_sent(&mark.type_, mark.after);
            if !ready {
                held.push(&mark.type_);
            }
            ready
        })
    }

    /// An ack of the peer: what it settles, in the order it says so.
    pub(crate) fn acked(
        &mut self,
        now: Duration,
        class: Class,
        ack: v1::Ack,
    ) -> Result<Vec<(Sent, Settled)>, Violation> {
        let in_flight = &mut self.in_flight[class as usize];
        let lanes = &mut self.lanes;
        let mut done = Vec::new();
        for range in ack.ranges {
            let sent = self.sequences[class as usize];
            if range.first == 0 || range.last < range.first || range.last > sent {
                let got = format!("{}..={}", range.first, range.last);
                return Err(Violation::field("Ack.ranges", got, format!("a range within 1..={sent}")));
            }
            if range.last - range.first >= in_flight.len() as u64 {
                let got = range.last - range.first + 1;
                return Err(Violation::field("Ack.ranges", got, format!("at most {} unsettled", in_flight.len())));
            }
            done.reserve(usize::try_from(range.last - range.first).unwrap_or(0) + 1);
            let settled = Settled { disposition: range.disposition, code: range.code, reason: range.reason };
            for seq in range.first..=range.last {
                let Some(entry) = in_flight.remove(seq).filter(|entry| !entry.partial) else {
                    return Err(Violation::field("Ack.ranges", seq, "a message sent in full and not settled before"));
                };
                let lane = match entry.what {
                    Sent::State(..) => LaneId::State,
                    Sent::Event(_) => LaneId::Event,
                    Sent::Request(_) => LaneId::Request,
                    Sent::Reply => LaneId::Reply,
                };
                lanes[lane as usize].remove(entry.cost);
                done.push((entry.what, settled.clone()));
            }
        }
        let first_open = in_flight.first().unwrap_or(self.sequences[class as usize] + 1);
        if ack.floor >= first_open {
            return Err(Violation::field("Ack.floor", ack.floor, format!("below {first_open}, which is not settled")));
        }
        let floor = &mut self.floors[class as usize];
        if ack.floor < *floor {
            return Err(Violation::field("Ack.floor", ack.floor, format!("at least {floor}, as said before")));
        }
        *floor = ack.floor;
        for (what, _) in &done {
            if let Sent::State(id, _) = what
                && self.state.finish(now, id)
            {
                self.ready(id.clone());
            }
        }
        Ok(done)
    }

    /// All State that is queued or under way; in order for each key, not across keys.
    pub(crate) fn unsettled_state(&self) -> impl Iterator<Item = &Envelope> {
        let under_way = self.in_flight[Class::State as usize].iter().filter_map(|(_, entry)| match &entry.what {
            Sent::State(_, envelope) => Some(envelope.as_ref()),
            _ => None,
        });
        under_way.chain(self.state.iter())
    }

    /// The session is over: what was not settled, oldest first.
    pub(crate) fn drain(&mut self) -> Remains {
        let mut remains = Remains::default();
        for in_flight in &mut self.in_flight {
            for entry in std::mem::take(in_flight).into_values() {
                match entry.what {
                    Sent::State(_, envelope) => remains.state.push(*envelope),
                    Sent::Event(envelope) => remains.events.push(*envelope),
                    Sent::Request(_) | Sent::Reply => {}
                }
            }
        }
        remains.state.extend(self.state.drain());
        for waiting in self.levels.iter_mut().filter_map(|level| level.waiting.take()) {
            remains.events.extend(waiting.events.into_iter().map(|(envelope, _)| *envelope));
        }
        self.marks.clear();
        self.inventories.clear();
        remains
    }
}

impl Partial {
    fn next(&mut self) -> v1::Frame {
        let piece = self.rest.split_to(self.rest.len().min(CHUNK_BYTES));
        let chunk = v1::Chunk { index: self.index, total_bytes: self.total, data: piece, last: self.rest.is_empty() };
        self.index += 1;
        data(self.class, self.seq, v1::data::Payload::Chunk(chunk))
    }
}

fn data(class: Class, seq: u64, payload: v1::data::Payload) -> v1::Frame {
    frame(F::Data(v1::Data { class: class.to_wire().into(), seq, payload: Some(payload) }))
}
