//! What the peer sent and is not settled: sequences, reassembly, acks, and marks that wait for the State before them.

use std::collections::{HashMap, VecDeque};

use bytes::{Bytes, BytesMut};
use kubeedge_proto::v1::{self, Disposition, Envelope, Settled, data::Payload, envelope::Body};
use prost::Message;

use super::{
    rising::Rising,
    types::{Class, Violation},
};
use crate::link::{
    config::{ACK_BYTES, Config, MAX_MARKS, MAX_REASON_BYTES, Window},
    ids::{ObjectId, TypeId},
};

#[derive(Debug)]
struct Open {
    cost: u64,
    assembly: Option<Assembly>,
    /// For State that is complete: the object; marks of its type wait for it.
    object: Option<About>,
}

/// What State is about.
#[derive(Debug)]
struct About {
    id: ObjectId,
    uid: String,
    /// Its end.
    gone: bool,
}

#[derive(Debug)]
struct Assembly {
    next: u32,
    total: usize,
    data: BytesMut,
}

#[derive(Debug)]
struct Lane {
    /// What the peer was told.
    announced: Window,
    /// What it may come to.
    window: Window,
    /// The highest sequence that has begun.
    begun: u64,
    open: Rising<Open>,
    /// Settled, not yet said in an Ack; with what it still counts in the window.
    to_ack: Rising<(Settled, u64)>,
    /// What `open` and `to_ack` count for.
    cost: u64,
}

/// Handed over in the order it came, after the State of its type that came before it is settled.
#[derive(Debug)]
pub(crate) enum Mark {
    Complete(v1::InventoryComplete),
    Bookmark(Box<v1::Bookmark>),
}

#[derive(Debug)]
struct Held {
    type_: TypeId,
    after: u64,
    mark: Mark,
}

/// A message that is all there.
#[derive(Debug)]
pub(crate) struct Arrived {
    pub(crate) class: Class,
    pub(crate) seq: u64,
    pub(crate) envelope: Box<Envelope>,
}

#[derive(Debug)]
pub(crate) struct Inbox {
    lanes: [Lane; 3],
    max_message: usize,
    held: VecDeque<Held>,
    /// What could not be stored and has not been stored since, with its uid: its types are not complete.
    failed: HashMap<ObjectId, String>,
    /// State was refused of which this version does not know what it is about: no type is complete.
    unknown: bool,
}

impl Inbox {
    pub(crate) fn new(config: &Config) -> Self {
        let lane = |window| Lane {
            announced: window,
            window,
            begun: 0,
            open: Rising::default(),
            to_ack: Rising::default(),
            cost: 0,
        };
        let mut lanes = [config.windows.state, config.windows.event, config.windows.call].map(lane);
        // Requests and replies share the sequence of Call; each has the window to itself, and either may go over it in
        // bytes by the one message that fills it.
        let Window { messages, bytes } = config.windows.call;
        lanes[Class::Call as usize].window =
            Window { messages: messages.saturating_mul(2), bytes: bytes.saturating_mul(3) };
        Self {
            lanes,
            max_message: config.max_message_bytes,
            held: VecDeque::new(),
            failed: HashMap::new(),
            unknown: false,
        }
    }

    /// Gives back the room of messages that were settled.
    pub(crate) fn shrink(&mut self) {
        for lane in &mut self.lanes {
            lane.open.shrink();
            lane.to_ack.shrink();
        }
        self.held.shrink_to_fit();
        self.failed.shrink_to_fit();
    }

    /// A message or a piece of it. `Some` when a message is all there.
    pub(crate) fn data(&mut self, data: v1::Data) -> Result<Option<Arrived>, Violation> {
        let class = Class::from_wire(data.class())
            .ok_or_else(|| Violation::field("Data.class", data.class, "STATE, EVENT or CALL"))?;
        let max_message = self.max_message;
        let lane = &mut self.lanes[class as usize];
        let seq = data.seq;
        let envelope = match data.payload {
            Some(Payload::Envelope(encoded)) => {
                lane.begin(seq, encoded.len(), max_message)?;
                decoded("Data.envelope", encoded)?
            }
            Some(Payload::Chunk(chunk)) => {
                if chunk.index == 0 {
                    let total = chunk.total_bytes as usize;
                    lane.begin(seq, total, max_message)?;
                    if let Some(open) = lane.open.get_mut(seq) {
                        open.assembly = Some(Assembly { next: 0, total, data: BytesMut::new() });
                    }
                }
                let Some(whole) = lane.chunk(seq, chunk)? else { return Ok(None) };
                decoded("Data.chunk", whole)?
            }
            None => return Err(Violation::field("Data.payload", "nothing", "an envelope or a chunk")),
        };
        if let Some(body) = &envelope.body
            && body.class() != class.to_wire()
        {
            let expected = format!("{:?}, which its body is", body.class());
            return Err(Violation::field("Data.class", format!("{class:?}"), expected));
        }
        if class == Class::State
            && let Some(open) = lane.open.get_mut(seq)
        {
            open.object = object_of(envelope.body.as_ref());
        }
        Ok(Some(Arrived { class, seq, envelope }))
    }

    /// The owner is done with a message. False when it is not open.
    pub(crate) fn settle(&mut self, class: Class, seq: u64, mut settled: Settled) -> bool {
        let lane = &mut self.lanes[class as usize];
        if lane.open.get(seq).is_none_or(|open| open.assembly.is_some()) {
            return false;
        }
        if settled.reason.len() > MAX_REASON_BYTES {
            let cut = (0..=MAX_REASON_BYTES).rev().find(|at| settled.reason.is_char_boundary(*at)).unwrap_or(0);
            settled.reason.truncate(cut);
        }
        if let Some(open) = lane.open.remove(seq) {
            let rejected = settled.disposition() == Disposition::Rejected;
            self.unknown |= class == Class::State && rejected && open.object.is_none();
            if let Some(About { id, uid, gone }) = open.object {
                if rejected {
                    self.failed.insert(id, uid);
                } else if !gone || self.failed.get(&id) == Some(&uid) {
                    // The end of an object says nothing of its successor.
                    self.failed.remove(&id);
                }
            }
            lane.to_ack.insert(seq, (settled, open.cost));
        }
        true
    }

    /// The next Ack, if there is something to say.
    pub(crate) fn next_ack(&mut self) -> Option<v1::Ack> {
        let class = Class::ALL.into_iter().find(|class| !self.lanes[*class as usize].to_ack.is_empty())?;
        Some(self.lanes[class as usize].ack(class))
    }

    /// A mark came. It is handed over by [`Inbox::release`].
    pub(crate) fn hold(&mut self, type_: TypeId, mark: Mark) -> Result<(), Violation> {
        if self.held.len() >= MAX_MARKS {
            let limit = MAX_MARKS as u64;
            return Err(Violation::Limit { what: "completions and bookmarks", got: limit + 1, limit });
        }
        self.held.push_back(Held { type_, after: self.lanes[Class::State as usize].begun, mark });
        Ok(())
    }

    /// The next mark whose State is settled; marks of one type keep their order. A completion is not handed over when
    /// something before it could not be stored: the peer compares again.
    pub(crate) fn release(&mut self) -> Option<Mark> {
        loop {
            let Held { type_, mark, .. } = self.release_next()?;
            let lacks = self.unknown || self.failed.keys().any(|object| object.type_ == type_);
            if matches!(mark, Mark::Complete(_)) && lacks {
                tracing::warn!(type_ = type_.as_str(), "not complete: something of it could not be stored");
                continue;
            }
            return Some(mark);
        }
    }

    fn release_next(&mut self) -> Option<Held> {
        let open = &self.lanes[Class::State as usize].open;
        let mut blocked: Vec<&TypeId> = Vec::new();
        let at = self.held.iter().position(|held| {
            let waits = blocked.contains(&&held.type_) || {
                let mut before = open.iter().take_while(|(seq, _)| *seq <= held.after);
                before.any(|(_, open)| open.is_of(&held.type_))
            };
            if waits {
                blocked.push(&held.type_);
            }
            !waits
        })?;
        self.held.remove(at)
    }

    /// Bytes that wait to become a message.
    #[cfg(test)]
    pub(crate) fn assembling(&self) -> usize {
        let open = self.lanes.iter().flat_map(|lane| lane.open.iter());
        open.filter_map(|(_, open)| open.assembly.as_ref()).map(|assembly| assembly.data.len()).sum()
    }
}

fn decoded(field: &'static str, bytes: Bytes) -> Result<Box<Envelope>, Violation> {
    Envelope::decode(bytes).map(Box::new).map_err(|error| Violation::field(field, error, "an encoded Envelope"))
}

/// The object that a message to the edge is about.
fn object_of(body: Option<&Body>) -> Option<About> {
    match body? {
        Body::ObjectUpsert(upsert) => {
            let object = upsert.object.as_ref()?;
            let id = ObjectId::of(object.r#type.as_ref()?, object.key.as_ref()?);
            Some(About { id, uid: object.uid.clone(), gone: false })
        }
        Body::ObjectTombstone(gone) => {
            let id = ObjectId::of(gone.r#type.as_ref()?, gone.key.as_ref()?);
            Some(About { id, uid: gone.uid.clone(), gone: true })
        }
        _ => None,
    }
}

impl Open {
    fn is_of(&self, type_: &TypeId) -> bool {
        self.object.as_ref().is_some_and(|object| object.id.type_ == *type_)
    }
}

/// Nearly always both are empty, which the processor is very slow to find out by comparing no bytes at a dangling address.
fn same(a: &str, b: &str) -> bool {
    a.len() == b.len() && (a.is_empty() || a == b)
}

impl Lane {
    /// A new sequence: the next one, within the window and the limit.
    fn begin(&mut self, seq: u64, bytes: usize, max_message: usize) -> Result<(), Violation> {
        if seq != self.begun + 1 {
            return Err(Violation::field("Data.seq", seq, format!("{}: the next in order", self.begun + 1)));
        }
        if bytes > max_message {
            let (got, limit) = (bytes as u64, max_message as u64);
            return Err(Violation::Limit { what: "bytes of a message", got, limit });
        }
        let messages = (self.open.len() + self.to_ack.len()) as u64;
        if !self.window.is_open(messages, self.cost) {
            let by_messages = messages >= self.window.messages.into();
            let limit = if by_messages { self.window.messages.into() } else { self.window.bytes };
            let what = if by_messages { "unsettled messages of a class" } else { "unsettled bytes of a class" };
            return Err(Violation::Limit { what, got: if by_messages { messages + 1 } else { self.cost }, limit });
        }
        let cost = self.announced.cost(bytes);
        self.begun = seq;
        self.cost += cost;
        self.open.insert(seq, Open { cost, assembly: None, object: None });
        Ok(())
    }

    fn chunk(&mut self, seq: u64, chunk: v1::Chunk) -> Result<Option<Bytes>, Violation> {
        let open = self.open.get_mut(seq);
        let Some((open, assembly)) = open.and_then(|open| open.assembly.take().map(|assembly| (open, assembly))) else {
            return Err(Violation::field("Data.seq", seq, "a message of which pieces are missing"));
        };
        let mut assembly = assembly;
        if chunk.index != assembly.next {
            return Err(Violation::field("Chunk.index", chunk.index, assembly.next));
        }
        let length = assembly.data.len() + chunk.data.len();
        if chunk.total_bytes as usize != assembly.total || length > assembly.total || chunk.data.is_empty() {
            let got = format!("{} more bytes of {}", chunk.data.len(), chunk.total_bytes);
            let expected = format!("1 to {} of {}", assembly.total - assembly.data.len(), assembly.total);
            return Err(Violation::field("Chunk", got, expected));
        }
        if chunk.last != (length == assembly.total) {
            return Err(Violation::field("Chunk.last", chunk.last, length == assembly.total));
        }
        // Grows with what has come, not with what was announced.
        assembly.data.extend_from_slice(&chunk.data);
        assembly.next += 1;
        if chunk.last {
            return Ok(Some(assembly.data.freeze()));
        }
        open.assembly = Some(assembly);
        Ok(None)
    }

    fn ack(&mut self, class: Class) -> v1::Ack {
        let mut ranges: Vec<v1::AckRange> = Vec::new();
        let mut size = 0;
        while size < ACK_BYTES
            && let Some((seq, (settled, cost))) = self.to_ack.pop_first()
        {
            self.cost -= cost;
            match ranges.last_mut() {
                Some(range)
                    if range.last + 1 == seq
                        && range.disposition == settled.disposition
                        && range.code == settled.code
                        && same(&range.reason, &settled.reason) =>
                {
                    range.last = seq;
                }
                _ => {
                    size += settled.reason.len() + 32;
                    ranges.push(v1::AckRange {
                        first: seq,
                        last: seq,
                        disposition: settled.disposition,
                        code: settled.code,
                        reason: settled.reason,
                    });
                }
            }
        }
        let first_open = self.open.first();
        let first_unsaid = self.to_ack.first();
        let floor = first_open.into_iter().chain(first_unsaid).min().unwrap_or(self.begun + 1) - 1;
        v1::Ack { class: class.to_wire().into(), floor, ranges }
    }
}
