//! One end of one session, at the cloud and at the edge. No I/O, no clock, no randomness of its own.
//!
//! ```text
//! handle(now, Input, &mut outputs)   something happened
//! poll(now, &mut outputs)            what follows from it and from the time: frames to send, deadlines that passed
//! next_deadline()                    when to poll again if nothing happens
//! finish()                           after the end: what was not settled
//! ```
//! `now` is the time since the session was made; it never goes back. Give everything that is ready to `handle`, then
//! `poll` once: acks of one round then travel in one frame.
//!
//! What holds here: a sequence per class, given when a message is dequeued; nothing is acked that its component has not
//! settled; one State message of a key under way at a time, the newest per uid waiting; frames are not repeated within a
//! session (the stream below is ordered and whole), so a gap, a repeat or an ack of something unknown ends it.

use std::{collections::HashSet, time::Duration};

use bytes::Bytes;
use kubeedge_proto::v1::{
    self, CallReply, Envelope, Goodbye, GoodbyeReason, Settled, envelope::Body, frame::Frame as F,
};
use prost::Message;

mod calls;
mod exchange;
mod inbox;
mod liveness;
mod outbox;
mod receive;
mod state_queue;
#[cfg(test)]
mod tests;
mod types;

pub use types::{CallFailure, Class, Closed, Established, Input, Output, Refusal, Remains, Stats};

use self::{
    calls::Calls,
    exchange::{Exchange, Next},
    inbox::Inbox,
    liveness::Liveness,
    outbox::Outbox,
    state_queue::Queued,
    types::{Violation, frame},
};
use super::{
    config::{ACK_BYTES, CHUNK_THRESHOLD, Config, MAX_FRAME_BYTES, MAX_REASON_BYTES, VERSIONS},
    ids::{ObjectId, TypeId},
    resync::Step,
};

/// A desired set that is older than what the edge has seen is asked for again after this, then twice as long each time.
const STALE_RETRY: Duration = Duration::from_secs(1);
/// The longest of these waits.
const STALE_RETRY_LONGEST: Duration = Duration::from_secs(60);
/// What a data frame may add around the Envelope or chunk inside it, in bytes.
const FRAME_OVERHEAD: usize = 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Edge,
    Cloud,
}

#[derive(Debug, PartialEq)]
enum Phase {
    /// Cloud: nothing has come yet.
    AwaitHello,
    /// Cloud: the owner decides about the Hello.
    AwaitAdmission(Box<v1::Hello>),
    /// Edge: Hello is on its way.
    AwaitWelcome,
    Established,
    Closed,
}

/// One end of one session.
#[derive(Debug)]
pub struct Session {
    role: Role,
    phase: Phase,
    config: Config,
    /// Edge: to send first.
    hello: Option<v1::Hello>,
    last_epoch: u64,
    outbox: Outbox,
    inbox: Inbox,
    calls: Calls,
    liveness: Liveness,
    exchange: Option<Exchange>,
    /// Cloud: when to compare again, and how long it waited for that.
    recheck_at: Option<Duration>,
    recheck_after: Duration,
    /// Edge: inventories asked for and not given yet.
    inventories: Vec<v1::ResourceType>,
    outstanding_bytes: usize,
    outstanding_frames: usize,
    max_message: usize,
    remains: Remains,
    ids: u128,
    stats: Stats,
}

impl Session {
    /// The edge's end. `hello` says who this box is and what it holds; versions, software and time are filled in here.
    pub fn edge(hello: v1::Hello, config: Config) -> Self {
        let last_epoch = hello.last_epoch;
        let hello = v1::Hello {
            versions: Some(VERSIONS),
            software_version: config.software_version.clone(),
            capabilities: config.capabilities.clone(),
            time_unix_ms: config.unix_ms_at_zero,
            ..hello
        };
        Self { hello: Some(hello), last_epoch, ..Self::new(Role::Edge, Phase::AwaitWelcome, config) }
    }

    /// The cloud's end of a connection that has just been made.
    pub fn cloud(config: Config) -> Self {
        Self::new(Role::Cloud, Phase::AwaitHello, config)
    }

    fn new(role: Role, phase: Phase, config: Config) -> Self {
        Self {
            role,
            phase,
            hello: None,
            last_epoch: 0,
            outbox: Outbox::new(&config),
            inbox: Inbox::new(&config),
            calls: Calls::default(),
            liveness: Liveness::new(&config, role == Role::Edge),
            exchange: None,
            recheck_at: None,
            recheck_after: STALE_RETRY,
            inventories: Vec::new(),
            outstanding_bytes: 0,
            outstanding_frames: 0,
            max_message: config.max_message_bytes,
            remains: Remains::default(),
            ids: config.id_seed,
            stats: Stats::default(),
            config,
        }
    }

    /// Whether Hello and Welcome have passed and the session is not over.
    pub fn is_established(&self) -> bool {
        self.phase == Phase::Established
    }

    /// Whether the session is over.
    pub fn is_closed(&self) -> bool {
        self.phase == Phase::Closed
    }

    /// Counts.
    pub fn stats(&self) -> Stats {
        self.stats
    }

    /// State messages that wait to be sent.
    pub fn queued_state(&self) -> usize {
        self.outbox.state.len()
    }

    /// After the end: what was submitted and not settled, oldest first.
    pub fn finish(mut self) -> Remains {
        let rest = self.outbox.drain();
        self.remains.state.extend(rest.state);
        self.remains.events.extend(rest.events);
        self.remains
    }

    /// Something happened.
    pub fn handle(&mut self, now: Duration, input: Input, out: &mut Vec<Output>) {
        if self.phase == Phase::Closed {
            return self.handle_closed(input, out);
        }
        if let Err(violation) = self.try_handle(now, input, out) {
            tracing::warn!(%violation, "link session ends");
            self.close(violation.goodbye(), out);
        }
    }

    fn try_handle(&mut self, now: Duration, input: Input, out: &mut Vec<Output>) -> Result<(), Violation> {
        match input {
            Input::Frame(frame) => {
                self.liveness.frame_received(now);
                self.stats.frames_received += 1;
                self.stats.bytes_received += frame.encoded_len() as u64;
                self.receive(now, frame, out)?;
            }
            Input::Drained { frames, bytes } => {
                self.outstanding_frames = self.outstanding_frames.saturating_sub(frames);
                self.outstanding_bytes = self.outstanding_bytes.saturating_sub(bytes);
            }
            Input::TransportEnded(why) => self.end(Closed::Transport(why), out),
            Input::Close(goodbye) => self.close(goodbye, out),
            Input::Submit(envelope) => self.submit(now, envelope, out),
            Input::Settle { class, seq, settled } => self.settle(class, seq, settled, out),
            Input::Reply { seq, reply } => self.reply(now, seq, reply),
            Input::Admit { epoch, cluster_uid, resource_version } => {
                self.admit(now, epoch, cluster_uid, resource_version, out);
            }
            Input::DesiredKnown(desired) => match self.exchange.as_mut().and_then(|it| it.desired(desired)) {
                Some(next) => self.go_on(now, next, out)?,
                None => self.stats.unexpected_answers += 1,
            },
            Input::Recheck => self.recheck(out),
            Input::Complete(complete) => self.outbox.push_complete(complete)?,
            Input::Bookmark(bookmark) => self.outbox.push_bookmark(bookmark)?,
            Input::OpenStreams => self.outbox.push_control(frame(F::OpenStreams(v1::OpenStreams {}))),
            Input::InventoryKnown { type_, entries } => self.inventory_known(type_, entries)?,
            Input::Progress { age_ms } => self.liveness.progress(now, age_ms),
        }
        Ok(())
    }

    fn handle_closed(&mut self, input: Input, out: &mut Vec<Output>) {
        let Input::Submit(envelope) = input else { return };
        self.stats.refused += 1;
        if matches!(envelope.class().and_then(Class::from_wire), Some(Class::Call)) {
            out.push(Output::CallFailed { id: envelope.id, why: CallFailure::Offline });
        } else {
            out.push(Output::Refused { envelope, why: Refusal::Closed });
        }
    }

    fn submit(&mut self, now: Duration, envelope: Envelope, out: &mut Vec<Output>) {
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

    fn refuse(&mut self, envelope: Envelope, why: Refusal, out: &mut Vec<Output>) {
        self.stats.refused += 1;
        out.push(Output::Refused { envelope, why });
    }

    fn submit_state(&mut self, now: Duration, envelope: Envelope, bytes: usize, out: &mut Vec<Output>) {
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
                out.push(Output::Coalesced { envelope: *old });
            }
            Queued::Full(envelope) => {
                let limit = self.config.max_queued_state;
                self.refuse(*envelope, Refusal::QueueFull { class: Class::State, limit }, out);
            }
        }
    }

    fn submit_call(&mut self, now: Duration, envelope: Envelope, bytes: usize, out: &mut Vec<Output>) {
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

    fn call_timeout(&self, timeout_ms: u32) -> Duration {
        match timeout_ms {
            0 => self.config.default_call_timeout,
            ms => Duration::from_millis(ms.into()).min(self.config.max_call_timeout),
        }
    }

    fn settle(&mut self, class: Class, seq: u64, settled: Settled, out: &mut Vec<Output>) {
        if class == Class::Call {
            self.calls.replied(seq);
        }
        if !self.inbox.settle(class, seq, settled) {
            self.stats.unexpected_answers += 1;
        }
        self.release_marks(out);
    }

    fn release_marks(&mut self, out: &mut Vec<Output>) {
        while let Some(mark) = self.inbox.release() {
            out.push(match mark {
                inbox::Mark::Complete(complete) => Output::Completed(complete),
                inbox::Mark::Bookmark(bookmark) => Output::Bookmark(bookmark),
            });
        }
    }

    fn reply(&mut self, now: Duration, seq: u64, reply: CallReply) {
        let Some(id) = self.calls.replied(seq) else {
            self.stats.unexpected_answers += 1;
            return;
        };
        self.send_reply(now, id, reply);
        if !self.inbox.settle(Class::Call, seq, Settled::applied()) {
            self.stats.unexpected_answers += 1;
        }
    }

    fn send_reply(&mut self, now: Duration, id: Bytes, reply: CallReply) {
        let mut envelope = self.envelope(now, Body::CallReply(reply));
        envelope.correlation_id = id.clone();
        let mut bytes = envelope.encoded_len();
        if bytes > self.max_message {
            let message = format!("the reply is {bytes} bytes, the limit is {}", self.max_message);
            let error = CallReply::error(413, "RequestEntityTooLarge", message);
            envelope = self.envelope(now, Body::CallReply(error));
            envelope.correlation_id = id;
            bytes = envelope.encoded_len();
        }
        self.outbox.push_reply(envelope, bytes);
    }

    /// An envelope that the session itself makes.
    fn envelope(&mut self, now: Duration, body: Body) -> Envelope {
        self.ids = self.ids.wrapping_add(1);
        let elapsed = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
        Envelope {
            id: self.ids.to_be_bytes().to_vec().into(),
            origin: "link".into(),
            time_unix_ms: self.config.unix_ms_at_zero.saturating_add(elapsed),
            priority: body.default_priority().into(),
            body: Some(body),
            ..Default::default()
        }
    }

    fn admit(&mut self, now: Duration, epoch: u64, cluster_uid: String, resource_version: u64, out: &mut Vec<Output>) {
        if !matches!(self.phase, Phase::AwaitAdmission(_)) {
            self.stats.unexpected_answers += 1;
            return;
        }
        let Phase::AwaitAdmission(hello) = std::mem::replace(&mut self.phase, Phase::Established) else { return };
        let version = hello.versions.unwrap_or_default().highest.min(VERSIONS.highest);
        let interval = u32::try_from(self.config.heartbeat_interval.as_millis()).unwrap_or(u32::MAX);
        let limit = |limit: usize| u32::try_from(limit).unwrap_or(u32::MAX);
        let welcome = v1::Welcome {
            version,
            epoch,
            cluster_uid: cluster_uid.clone(),
            heartbeat_interval_ms: interval,
            windows: self.config.windows.to_wire(),
            limits: Some(v1::Limits {
                max_frame_bytes: limit(MAX_FRAME_BYTES),
                max_message_bytes: limit(self.config.max_message_bytes),
                max_inventory_entries: limit(self.config.max_inventory_entries),
                max_streams: 0,
            }),
            time_unix_ms: self.config.unix_ms_at_zero.saturating_add(u64::try_from(now.as_millis()).unwrap_or(0)),
            received: Vec::new(),
            software_version: self.config.software_version.clone(),
            capabilities: self.config.capabilities.clone(),
            resource_version,
        };
        self.send(now, frame(F::Welcome(welcome)), out);
        self.liveness.established(now);
        let same_cluster = hello.cluster_uid.is_empty() || hello.cluster_uid == cluster_uid;
        if !same_cluster {
            tracing::error!(
                pinned = hello.cluster_uid,
                ours = cluster_uid,
                "the edge is pinned to another cluster: nothing is deleted there by absence"
            );
        }
        out.push(Output::Established(Established {
            version,
            epoch,
            cluster_uid,
            resource_version,
            peer_unix_ms: hello.time_unix_ms,
            software_version: hello.software_version,
            capabilities: hello.capabilities,
        }));
        self.exchange = Some(Exchange::new(&hello.kinds, same_cluster, self.config.max_inventory_entries));
        self.recheck(out);
    }

    fn recheck(&mut self, out: &mut Vec<Output>) {
        self.recheck_at = None;
        match &mut self.exchange {
            Some(exchange) => {
                if exchange.begin(self.outbox.unsettled_state()) {
                    out.push(Output::NeedDesired);
                }
            }
            None => self.stats.unexpected_answers += 1,
        }
    }

    /// The next step of a resync.
    fn go_on(&mut self, now: Duration, next: Next, out: &mut Vec<Output>) -> Result<(), Violation> {
        match next {
            Next::Wait => {}
            Next::Ask(types) => {
                self.outbox.push_control(frame(F::InventoryRequest(v1::InventoryRequest { types })));
            }
            Next::Send(difference) => {
                if difference.kept > 0 {
                    tracing::warn!(kept = difference.kept, "objects stay at the edge: too little is known to end them");
                }
                self.recheck_at = difference.stale.then_some(now + self.recheck_after);
                if difference.stale {
                    self.recheck_after = (self.recheck_after * 2).min(STALE_RETRY_LONGEST);
                }
                // A kind of which something could not be sent is not complete, whatever the list says.
                let mut partial: HashSet<TypeId> = HashSet::new();
                for step in difference.steps {
                    match step {
                        Step::Upsert(upsert) => {
                            let type_ = upsert.object.as_ref().and_then(|object| object.r#type.as_ref());
                            let type_ = type_.map(TypeId::of);
                            if !self.submit_own(now, Body::ObjectUpsert(upsert), out) {
                                partial.extend(type_);
                            }
                        }
                        Step::Tombstone(gone) => {
                            let type_ = gone.r#type.as_ref().map(TypeId::of);
                            if !self.submit_own(now, Body::ObjectTombstone(gone), out) {
                                partial.extend(type_);
                            }
                        }
                        Step::Complete(complete) => {
                            let type_ = complete.r#type.as_ref().map(TypeId::of);
                            if type_.is_some_and(|type_| !partial.contains(&type_)) {
                                self.outbox.push_complete(complete)?;
                            }
                        }
                    }
                }
                if self.exchange.as_ref().is_some_and(Exchange::wants_again) {
                    self.recheck(out);
                }
            }
        }
        Ok(())
    }

    /// Whether it was taken; the owner hears of it when not.
    fn submit_own(&mut self, now: Duration, body: Body, out: &mut Vec<Output>) -> bool {
        let envelope = self.envelope(now, body);
        let refused = self.stats.refused;
        self.submit(now, envelope, out);
        self.stats.refused == refused
    }

    fn inventory_known(&mut self, type_: v1::ResourceType, entries: Vec<v1::InventoryEntry>) -> Result<(), Violation> {
        let Some(at) = self.inventories.iter().position(|asked| *asked == type_) else {
            self.stats.unexpected_answers += 1;
            return Ok(());
        };
        self.inventories.remove(at);
        if entries.len() > self.config.max_inventory_entries {
            let (got, limit) = (entries.len() as u64, self.config.max_inventory_entries as u64);
            return Err(Violation::Limit { what: "entries of an inventory", got, limit });
        }
        self.outbox.push_inventory(type_, entries);
        Ok(())
    }

    /// What follows from what was handled and from the time. Call after every round of `handle`.
    pub fn poll(&mut self, now: Duration, out: &mut Vec<Output>) {
        if self.phase == Phase::Closed {
            return;
        }
        if let Some(hello) = self.hello.take() {
            self.send(now, frame(F::Hello(hello)), out);
        }
        if self.phase != Phase::Established {
            if now >= self.config.handshake_timeout {
                let waited = format!("no {} within {:?}", self.awaited(), self.config.handshake_timeout);
                self.close(timed_out(waited), out);
            }
            return;
        }
        if self.liveness.is_dead(now) {
            return self.close(timed_out(format!("nothing received for {:?}", self.liveness.silent_for(now))), out);
        }
        while let Some(id) = self.calls.next_expired(now) {
            self.outbox.cancel_request(&id);
            out.push(Output::CallFailed { id, why: CallFailure::Timeout });
        }
        while let Some(seq) = self.calls.next_abandoned(now) {
            let settled = Settled::rejected(504, "the caller's deadline has passed");
            self.settle(Class::Call, seq, settled, out);
        }
        if self.recheck_at.is_some_and(|at| at <= now) {
            self.recheck(out);
        }
        self.outbox.release_due(now);
        self.send_what_fits(now, out);
    }

    /// Heartbeats and acks first, then by weight. Room for an ack is left when data has filled the budget.
    fn send_what_fits(&mut self, now: Duration, out: &mut Vec<Output>) {
        while self.room(ACK_BYTES + MAX_REASON_BYTES + FRAME_OVERHEAD) {
            let next = match self.liveness.next(now) {
                Some(heartbeat) => frame(F::Heartbeat(heartbeat)),
                None => match self.inbox.next_ack() {
                    Some(ack) => frame(F::Ack(ack)),
                    None => break,
                },
            };
            self.send(now, next, out);
        }
        while self.room(CHUNK_THRESHOLD + FRAME_OVERHEAD)
            && let Some(next) = self.outbox.next_frame(now)
        {
            self.send(now, next, out);
        }
    }

    fn room(&self, bytes: usize) -> bool {
        self.outstanding_frames < self.config.socket_frames
            && (self.outstanding_frames == 0 || self.outstanding_bytes + bytes <= self.config.socket_budget)
    }

    fn send(&mut self, now: Duration, frame: v1::Frame, out: &mut Vec<Output>) {
        let bytes = frame.encoded_len();
        self.outstanding_bytes += bytes;
        self.outstanding_frames += 1;
        self.stats.frames_sent += 1;
        self.stats.bytes_sent += bytes as u64;
        self.liveness.frame_sent(now);
        out.push(Output::Send(frame));
    }

    fn awaited(&self) -> &'static str {
        match self.phase {
            Phase::AwaitHello => "Hello",
            Phase::AwaitAdmission(_) => "decision about Hello",
            _ => "Welcome",
        }
    }

    /// When to poll again if nothing happens before. `None` after the end.
    pub fn next_deadline(&self) -> Option<Duration> {
        match self.phase {
            Phase::Closed => None,
            Phase::Established => {
                // A heartbeat that is due but has no room goes when the transport drains, not on a timer.
                let room = self.room(ACK_BYTES + MAX_REASON_BYTES + FRAME_OVERHEAD);
                let alive = if room { self.liveness.next_deadline() } else { self.liveness.dead_at() };
                [self.calls.next_deadline(), self.outbox.state.next_due(), self.recheck_at]
                    .into_iter()
                    .flatten()
                    .chain([alive])
                    .min()
            }
            _ if self.hello.is_some() => Some(Duration::ZERO),
            _ => Some(self.config.handshake_timeout),
        }
    }

    /// This end says goodbye.
    fn close(&mut self, goodbye: Goodbye, out: &mut Vec<Output>) {
        out.push(Output::Send(frame(F::Goodbye(goodbye.clone()))));
        self.end(Closed::ByUs(goodbye), out);
    }

    fn end(&mut self, closed: Closed, out: &mut Vec<Output>) {
        self.phase = Phase::Closed;
        out.push(Output::Closed(closed));
        for id in self.calls.drain() {
            out.push(Output::CallFailed { id, why: CallFailure::Offline });
        }
        self.remains = self.outbox.drain();
        self.exchange = None;
    }
}

fn timed_out(message: String) -> Goodbye {
    Goodbye { reason: GoodbyeReason::TimedOut.into(), message, retry_after_ms: 0 }
}
