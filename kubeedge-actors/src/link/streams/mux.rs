//! One end of a stream connection: no I/O, no clock.
//!
//! Everything that is buffered is in here, so that every bound is: see [`super`]. A stream is forgotten when it has
//! ended for both ends and its owner has [released](Mux::release) it.

use std::{
    collections::{BTreeMap, VecDeque},
    ops::Bound,
};

use bytes::{Buf, Bytes, BytesMut};
use kubeedge_proto::v1::{StreamClose, StreamCredit, StreamFrame, StreamHead, StreamOpen, stream_frame::Frame as F};
use thiserror::Error;

use super::{FRAME_BYTES, OPEN_STREAMS, SEND_BUFFER, WINDOW};

/// Credit beyond this is no credit but an attack or a fault, in bytes.
const MAX_CREDIT: u64 = 16 * 1024 * 1024;
/// Refusals that wait to be sent.
const MAX_REFUSALS: usize = 64;
/// An error's text is cut to this many bytes.
const MAX_ERROR: usize = 512;

/// Who opens streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The cloud.
    Opener,
    /// The edge.
    Acceptor,
}

/// What the peer may not do. Ends the connection.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("stream {stream}: {what}")]
pub struct Violation {
    /// The stream's number.
    pub stream: u64,
    /// The rule.
    pub what: &'static str,
}

/// What came of a frame.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// Acceptor: the peer has opened a stream.
    Opened(u64, StreamOpen),
    /// Something can be read from this stream, or it has ended.
    Readable(u64),
    /// There is room to write to this stream.
    Writable(u64),
}

/// What reading gives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Read {
    /// Bytes, never none.
    Data(Bytes),
    /// Nothing yet.
    Pending,
    /// The peer has sent everything.
    End,
    /// The stream was given up; what had arrived before has been read.
    Aborted(String),
}

#[derive(Debug, Default)]
struct State {
    /// To be sent, in this order.
    open: Option<StreamOpen>,
    head_out: Option<StreamHead>,
    /// A head was given, sent or not.
    responded: bool,
    outgoing: VecDeque<Bytes>,
    outgoing_bytes: usize,
    /// The owner writes nothing more.
    finished: bool,
    /// Which has been said to the peer.
    finish_sent: bool,
    /// What the peer has room for.
    credit: u64,
    /// Room that the peer is to be told of.
    credit_due: usize,

    head_in: Option<StreamHead>,
    incoming: BytesMut,
    /// What the peer may still send.
    granted: usize,
    /// The peer sends nothing more.
    peer_finished: bool,
    /// Given up by either end.
    aborted: Option<String>,
    /// To be told to the peer.
    abort_due: bool,
    /// The owner is done with it.
    released: bool,
}

impl State {
    fn ended(&self) -> bool {
        (self.aborted.is_some() && !self.abort_due) || (self.finish_sent && self.peer_finished)
    }

    /// Drops what is still to be sent.
    fn abort(&mut self, why: String) {
        self.open = None;
        self.head_out = None;
        self.outgoing.clear();
        self.outgoing_bytes = 0;
        self.credit_due = 0;
        self.aborted = Some(why);
    }

    /// The next frame of this stream, if it has one and may send it.
    fn next(&mut self) -> Option<F> {
        if let Some(open) = self.open.take() {
            return Some(F::Open(open));
        }
        if self.abort_due {
            self.abort_due = false;
            let error = self.aborted.clone().unwrap_or_default();
            return Some(F::Close(StreamClose { half: false, error }));
        }
        if self.aborted.is_some() {
            return None;
        }
        if self.credit_due > 0 {
            let bytes = std::mem::take(&mut self.credit_due);
            self.granted += bytes;
            return Some(F::Credit(StreamCredit { bytes: bytes as u64 }));
        }
        if let Some(head) = self.head_out.take() {
            return Some(F::Head(head));
        }
        if self.credit > 0
            && let Some(first) = self.outgoing.front_mut()
        {
            let room = usize::try_from(self.credit).unwrap_or(usize::MAX);
            let bytes = first.split_to(first.len().min(FRAME_BYTES).min(room));
            if !first.has_remaining() {
                self.outgoing.pop_front();
            }
            self.outgoing_bytes -= bytes.len();
            self.credit -= bytes.len() as u64;
            return Some(F::Data(bytes));
        }
        if self.finished && !self.finish_sent && self.outgoing.is_empty() {
            self.finish_sent = true;
            return Some(F::Close(StreamClose { half: true, error: String::new() }));
        }
        None
    }
}

/// One end. See the module's page.
#[derive(Debug)]
pub struct Mux {
    side: Side,
    limit: usize,
    streams: BTreeMap<u64, State>,
    /// The highest number that was ever used.
    last: u64,
    /// Whose turn was last.
    turn: u64,
    refusals: VecDeque<u64>,
}

impl Mux {
    /// An end without streams.
    pub fn new(side: Side) -> Self {
        let limit = match side {
            Side::Opener => OPEN_STREAMS,
            Side::Acceptor => 2 * OPEN_STREAMS,
        };
        Self { side, limit, streams: BTreeMap::new(), last: 0, turn: 0, refusals: VecDeque::new() }
    }

    /// Streams that are not forgotten.
    pub fn len(&self) -> usize {
        self.streams.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.streams.is_empty()
    }

    /// Bytes in all buffers.
    pub fn buffered(&self) -> usize {
        self.streams.values().map(|state| state.outgoing_bytes + state.incoming.len()).sum()
    }

    /// Opener: a new stream; `None` when there are too many.
    pub fn open(&mut self, open: StreamOpen) -> Option<u64> {
        if self.side != Side::Opener || self.streams.len() >= self.limit {
            return None;
        }
        self.last += 1;
        self.streams.insert(self.last, State { open: Some(open), credit_due: WINDOW, ..State::default() });
        Some(self.last)
    }

    /// Acceptor: the answer's head. Only the first counts.
    pub fn respond(&mut self, stream: u64, head: StreamHead) {
        if let Some(state) = self.live(stream).filter(|state| !state.responded) {
            state.responded = true;
            state.head_out = Some(head);
        }
    }

    /// Takes as much of `bytes` as there is room for; `Err` when the stream was given up.
    pub fn write(&mut self, stream: u64, bytes: &mut Bytes) -> Result<(), String> {
        let Some(state) = self.streams.get_mut(&stream) else { return Err("it has ended".into()) };
        if let Some(why) = &state.aborted {
            return Err(why.clone());
        }
        let room = SEND_BUFFER - state.outgoing_bytes;
        let part = bytes.split_to(bytes.len().min(room));
        if !part.is_empty() && !state.finished {
            state.outgoing_bytes += part.len();
            state.outgoing.push_back(part);
        }
        Ok(())
    }

    /// Half close: nothing more will be written.
    pub fn finish(&mut self, stream: u64) {
        if let Some(state) = self.live(stream) {
            state.finished = true;
        }
        self.forget(stream);
    }

    /// Reads what has arrived, which makes room at the peer.
    pub fn read(&mut self, stream: u64) -> Read {
        let Some(state) = self.streams.get_mut(&stream) else { return Read::End };
        if !state.incoming.is_empty() {
            let bytes = state.incoming.split().freeze();
            if state.aborted.is_none() && !state.peer_finished {
                state.credit_due += bytes.len();
            }
            return Read::Data(bytes);
        }
        match &state.aborted {
            _ if state.peer_finished => Read::End,
            Some(why) => Read::Aborted(why.clone()),
            None => Read::Pending,
        }
    }

    /// Opener: the head of the answer, once it has come.
    pub fn head(&self, stream: u64) -> Option<&StreamHead> {
        self.streams.get(&stream)?.head_in.as_ref()
    }

    /// Why the stream was given up, if it was.
    pub fn aborted(&self, stream: u64) -> Option<&str> {
        match self.streams.get(&stream) {
            Some(state) => state.aborted.as_deref(),
            None => Some("it has ended"),
        }
    }

    /// `P-STREAM-FREED`. The owner is done with the stream. Unless it had said and heard everything, that gives the stream up. At the
    /// acceptor, having said everything is enough: the rest of the request is of no interest then.
    pub fn release(&mut self, stream: u64, why: &str) {
        let Some(state) = self.streams.get_mut(&stream) else { return };
        state.released = true;
        state.incoming.clear();
        let done = state.finished && (state.peer_finished || self.side == Side::Acceptor);
        if !done && state.aborted.is_none() {
            let never_told = state.open.is_some();
            state.abort(cut(why));
            // A stream that the peer has not heard of needs no end.
            state.abort_due = !never_told;
        }
        self.forget(stream);
    }

    /// Every stream ends.
    pub fn disconnect(&mut self, why: &str) {
        for state in self.streams.values_mut() {
            if !state.ended() {
                state.abort(why.to_owned());
            }
            state.abort_due = false;
        }
        self.streams.retain(|_, state| !state.released);
    }

    /// A frame of the peer.
    pub fn receive(&mut self, frame: StreamFrame) -> Result<Option<Event>, Violation> {
        let stream = frame.stream;
        let wrong = |what| Err(Violation { stream, what });
        let Some(frame) = frame.frame else { return Ok(None) };
        if let F::Open(open) = frame {
            return self.opened(stream, open);
        }
        if stream == 0 || stream > self.last {
            return wrong("a frame for a stream that was never opened");
        }
        let side = self.side;
        // Ended here while this was on its way.
        let Some(state) = self.streams.get_mut(&stream).filter(|state| state.aborted.is_none()) else {
            return Ok(None);
        };
        let event = match frame {
            F::Open(_) => None,
            F::Head(head) => {
                if side != Side::Opener || state.head_in.is_some() {
                    return wrong("a head that is not expected");
                }
                if !(100..=599).contains(&head.status) {
                    return wrong("a head without an HTTP status");
                }
                state.head_in = Some(head);
                Some(Event::Readable(stream))
            }
            F::Data(bytes) => {
                if state.peer_finished {
                    return wrong("data after the end");
                }
                if side == Side::Opener && state.head_in.is_none() {
                    return wrong("data before the head");
                }
                if bytes.len() > state.granted {
                    return wrong("more data than there is room for");
                }
                state.granted -= bytes.len();
                state.incoming.extend_from_slice(&bytes);
                Some(Event::Readable(stream))
            }
            F::Credit(StreamCredit { bytes }) => {
                state.credit = state.credit.saturating_add(bytes);
                if state.credit > MAX_CREDIT {
                    return wrong("more credit than a stream can have");
                }
                None
            }
            F::Close(StreamClose { half: true, .. }) => {
                if state.peer_finished {
                    return wrong("a second end");
                }
                state.peer_finished = true;
                state.credit_due = 0;
                Some(Event::Readable(stream))
            }
            F::Close(StreamClose { half: false, error }) => {
                state.abort(cut(&error));
                Some(Event::Readable(stream))
            }
        };
        self.forget(stream);
        Ok(event)
    }

    fn opened(&mut self, stream: u64, open: StreamOpen) -> Result<Option<Event>, Violation> {
        if self.side != Side::Acceptor {
            return Err(Violation { stream, what: "only the cloud opens streams" });
        }
        if stream <= self.last {
            return Err(Violation { stream, what: "a stream is opened whose number was used before" });
        }
        self.last = stream;
        if self.streams.len() >= self.limit {
            if self.refusals.len() >= MAX_REFUSALS {
                return Err(Violation { stream, what: "streams are opened without regard to the limit" });
            }
            self.refusals.push_back(stream);
            return Ok(None);
        }
        self.streams.insert(stream, State { credit_due: WINDOW, ..State::default() });
        Ok(Some(Event::Opened(stream, open)))
    }

    /// The next frame for the peer. Streams take turns; with a frame of data there may be room to write again.
    pub fn next_frame(&mut self) -> Option<(StreamFrame, Option<Event>)> {
        if let Some(stream) = self.refusals.pop_front() {
            let close = StreamClose { half: false, error: format!("{} streams are open already", self.limit) };
            return Some((StreamFrame { stream, frame: Some(F::Close(close)) }, None));
        }
        let after = (Bound::Excluded(self.turn), Bound::Unbounded);
        let first = self.streams.range_mut(after).find_map(|(stream, state)| Some((*stream, state.next()?)));
        let found = match first {
            Some(found) => Some(found),
            None => self.streams.range_mut(..=self.turn).find_map(|(stream, state)| Some((*stream, state.next()?))),
        };
        let (stream, frame) = found?;
        self.turn = stream;
        let event = matches!(frame, F::Data(_)).then_some(Event::Writable(stream));
        self.forget(stream);
        Some((StreamFrame { stream, frame: Some(frame) }, event))
    }

    fn live(&mut self, stream: u64) -> Option<&mut State> {
        self.streams.get_mut(&stream).filter(|state| state.aborted.is_none())
    }

    fn forget(&mut self, stream: u64) {
        if self.streams.get(&stream).is_some_and(|state| state.released && state.ended()) {
            self.streams.remove(&stream);
        }
    }
}

fn cut(text: &str) -> String {
    text.chars()
        .scan(0, |bytes, c| {
            *bytes += c.len_utf8();
            (*bytes <= MAX_ERROR).then_some(c)
        })
        .collect()
}
