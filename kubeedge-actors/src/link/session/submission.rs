//! What the owner hands in: messages, settlements, replies.

use std::time::Duration;

use bytes::Bytes;
use kubeedge_proto::v1::{CallReply, Envelope, Settled, envelope::Body};
use prost::Message;

use super::{
    CallFailure, Class, Output, Phase, Refusal, Session, inbox::Mark, outbox::MAX_REPLY_BYTES, state_queue::Queued,
    types::Violation,
};
use crate::link::ids::ObjectId;

impl Session {
    pub(super) fn submit(&mut self, now: Duration, envelope: Box<Envelope>, out: &mut Vec<Output>) {
        let bytes = envelope.encoded_len();
        let class = envelope.class().and_then(Class::from_wire);
        let limit = self.max_message;
        let why = match (class, envelope.body.as_ref()) {
            (None, _) | (_, None) => Some(Refusal::Malformed { expected: "a body this version knows" }),
            (_, Some(Body::CallReply(_))) => Some(Refusal::Malformed { expected: "a reply to go by Input::Reply" }),
            _ if envelope.id.len() != 16 => Some(Refusal::Malformed { expected: "an id of 16 bytes" }),
            _ if bytes > limit => Some(Refusal::TooLarge { bytes, limit }),
            _ => None,
        };
        match (why, class) {
            (None, Some(Class::State)) => self.submit_state(now, envelope, bytes, out),
            (None, Some(Class::Event)) => match self.outbox.event_room(bytes) {
                Ok(()) => self.outbox.push_event(envelope, bytes),
                Err(why) => self.refuse(envelope, why, out),
            },
            (None, _) => self.submit_call(now, envelope, bytes, out),
            (Some(why), Some(Class::Call)) => {
                self.stats.refused += 1;
                out.push(Output::CallFailed { id: envelope.id, why: why.into() });
            }
            (Some(why), _) => self.refuse(envelope, why, out),
        }
    }

    pub(super) fn refuse(&mut self, envelope: Box<Envelope>, why: Refusal, out: &mut Vec<Output>) {
        self.stats.refused += 1;
        out.push(Output::Refused { envelope, why });
    }

    pub(super) fn submit_state(&mut self, now: Duration, envelope: Box<Envelope>, bytes: usize, out: &mut Vec<Output>) {
        let Some(key) = envelope.body.as_ref().and_then(Body::state_key) else {
            return self.refuse(envelope, Refusal::Malformed { expected: "a type and a key" }, out);
        };
        if let Some(exchange) = &mut self.exchange {
            exchange.submitted(&envelope);
        }
        let id = ObjectId::of(&key.type_, &key.key);
        match self.outbox.push_state(now, id, key.uid, envelope, bytes) {
            Queued::New(_) => {}
            Queued::Replaced(old, _) | Queued::Dropped(old) => {
                self.stats.coalesced += 1;
                out.push(Output::Coalesced { envelope: old });
            }
            Queued::Full(envelope) => {
                let limit = self.config.max_queued_state;
                self.refuse(envelope, Refusal::QueueFull { class: Class::State, limit }, out);
            }
        }
    }

    pub(super) fn submit_call(&mut self, now: Duration, envelope: Box<Envelope>, bytes: usize, out: &mut Vec<Output>) {
        let id = envelope.id.clone();
        let failed = if self.phase != Phase::Established {
            Some(CallFailure::Offline)
        } else if self.calls.outgoing() >= self.config.max_calls {
            Some(CallFailure::TooMany(self.config.max_calls))
        } else {
            let deadline = now + self.call_timeout(envelope.timeout_ms);
            if self.calls.open(id.clone(), deadline) {
                self.outbox.push_request(envelope, bytes, deadline);
                return;
            }
            Some(Refusal::Malformed { expected: "an id that no open call has" }.into())
        };
        if let Some(why) = failed {
            self.stats.refused += 1;
            out.push(Output::CallFailed { id, why });
        }
    }

    pub(super) fn call_timeout(&self, timeout_ms: u32) -> Duration {
        match timeout_ms {
            0 => self.config.default_call_timeout,
            ms => Duration::from_millis(ms.into()).min(self.config.max_call_timeout),
        }
    }

    pub(super) fn settle(&mut self, class: Class, seq: u64, settled: Settled, out: &mut Vec<Output>) {
        if class == Class::Call {
            self.calls.replied(seq);
        }
        if !self.inbox.settle(class, seq, settled) {
            self.stats.unexpected_answers += 1;
        }
        self.release_marks(out);
    }

    pub(super) fn release_marks(&mut self, out: &mut Vec<Output>) {
        while let Some(mark) = self.inbox.release() {
            out.push(match mark {
                Mark::Complete(complete) => Output::Completed(complete),
                Mark::Bookmark(bookmark) => Output::Bookmark(bookmark),
            });
        }
    }

    pub(super) fn reply(&mut self, now: Duration, seq: u64, reply: CallReply) -> Result<(), Violation> {
        let Some(id) = self.calls.replied(seq) else {
            self.stats.unexpected_answers += 1;
            return Ok(());
        };
        if !self.inbox.settle(Class::Call, seq, Settled::applied()) {
            self.stats.unexpected_answers += 1;
        }
        self.send_reply(now, id, reply)
    }

    pub(super) fn send_reply(&mut self, now: Duration, id: Bytes, reply: CallReply) -> Result<(), Violation> {
        let mut envelope = self.envelope(now, Body::CallReply(reply));
        envelope.correlation_id = id.clone();
        let mut bytes = envelope.encoded_len();
        let error = if bytes > self.max_message {
            let message = format!("the reply is {bytes} bytes, the limit is {}", self.max_message);
            Some(CallReply::error(413, "RequestEntityTooLarge", message))
        } else if !self.outbox.reply_room(bytes) {
            let message = format!("{MAX_REPLY_BYTES} bytes of replies wait to be acknowledged already");
            Some(CallReply::error(429, "TooManyRequests", message))
        } else {
            None
        };
        if let Some(error) = error {
            envelope = self.envelope(now, Body::CallReply(error));
            envelope.correlation_id = id;
            bytes = envelope.encoded_len();
        }
        self.outbox.push_reply(Box::new(envelope), bytes)
    }

    /// An envelope that the session itself makes.
    pub(super) fn envelope(&mut self, now: Duration, body: Body) -> Envelope {
        self.ids = self.ids.wrapping_add(1);
        let elapsed = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
        Envelope {
            id: self.ids.to_be_bytes().to_vec().into(),
            origin: "link".into(),
            time_unix_ms: self.unix_ms_at_zero.saturating_add(elapsed),
            priority: body.default_priority().into(),
            body: Some(body),
            ..Default::default()
        }
    }
}
