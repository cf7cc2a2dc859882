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

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use kubeedge_proto::v1::{self, Goodbye, GoodbyeReason, Settled, frame::Frame as F};
use prost::Message;

mod admission;
mod calls;
mod exchange;
mod inbox;
mod level;
mod liveness;
mod outbox;
mod receive;
mod rising;
mod state_queue;
mod submission;
#[cfg(test)]
mod tests;
mod types;

pub use types::{CallFailure, Class, Closed, Established, Input, Output, Refusal, Remains, Stats};

use self::{
    calls::Calls,
    exchange::Exchange,
    inbox::Inbox,
    liveness::Liveness,
    outbox::Outbox,
    types::{Violation, frame},
};
use super::config::{ACK_BYTES, CHUNK_THRESHOLD, Config, MAX_REASON_BYTES, VERSIONS};

/// When the desired set was older than what the edge has seen, or the edge could not store something: both sides are
/// compared again after this, then twice as long each time.
const RECHECK: Duration = Duration::from_secs(1);
/// The longest of these waits.
const RECHECK_LONGEST: Duration = Duration::from_secs(60);
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
    /// A cloud's sessions share one.
    config: Arc<Config>,
    /// The wall clock at the session's zero.
    unix_ms_at_zero: u64,
    /// Edge: to send first.
    hello: Option<Box<v1::Hello>>,
    last_epoch: u64,
    outbox: Outbox,
    inbox: Inbox,
    calls: Calls,
    liveness: Liveness,
    exchange: Option<Exchange>,
    /// Cloud: when to compare again, and how long it waited for that.
    recheck_at: Option<Duration>,
    recheck_after: Duration,
    /// Cloud: the edge could not store something since the last comparison.
    failed: bool,
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
    pub fn edge(hello: v1::Hello, config: impl Into<Arc<Config>>) -> Self {
        let config = config.into();
        let last_epoch = hello.last_epoch;
        let hello = v1::Hello {
            versions: Some(VERSIONS),
            software_version: config.software_version.clone(),
            capabilities: config.capabilities.clone(),
            time_unix_ms: config.unix_ms_at_zero,
            ..hello
        };
        Self { hello: Some(hello.into()), last_epoch, ..Self::new(Role::Edge, Phase::AwaitWelcome, config) }
    }

    /// The cloud's end of a connection that has just been made.
    pub fn cloud(config: impl Into<Arc<Config>>) -> Self {
        Self::new(Role::Cloud, Phase::AwaitHello, config.into())
    }

    /// With the wall clock and a random number of this process, whatever the configuration has of both. Call it where the
    /// session's time zero is now.
    pub fn stamped(mut self) -> Self {
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.unix_ms_at_zero = u64::try_from(unix.as_millis()).unwrap_or(u64::MAX);
        self.ids = uuid::Uuid::new_v4().as_u128();
        if let Some(hello) = &mut self.hello {
            hello.time_unix_ms = self.unix_ms_at_zero;
        }
        self
    }

    fn new(role: Role, phase: Phase, config: Arc<Config>) -> Self {
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
            recheck_after: RECHECK,
            failed: false,
            inventories: Vec::new(),
            outstanding_bytes: 0,
            outstanding_frames: 0,
            max_message: config.max_message_bytes,
            remains: Remains::default(),
            ids: config.id_seed,
            unix_ms_at_zero: config.unix_ms_at_zero,
            stats: Stats::default(),
            config,
        }
    }

    /// Whether Hello and Welcome have passed and the session is not over.
    pub fn is_established(&self) -> bool {
        self.phase == Phase::Established
    }

    /// Gives back what a burst has needed. For when it is quiet: most sessions are idle most of the time, and a cloud has
    /// thousands of them.
    pub fn shrink(&mut self) {
        self.outbox.shrink();
        self.inbox.shrink();
        self.calls.shrink();
        self.inventories.shrink_to_fit();
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
                let bytes = frame.encoded_len();
                self.stats.bytes_received += bytes as u64;
                self.receive(now, frame, bytes, out)?;
            }
            Input::Drained { frames, bytes } => {
                self.outstanding_frames = self.outstanding_frames.saturating_sub(frames);
                self.outstanding_bytes = self.outstanding_bytes.saturating_sub(bytes);
            }
            Input::TransportEnded(why) => self.end(Closed::Transport(why), out),
            Input::Close(goodbye) => self.close(goodbye, out),
            Input::Submit(envelope) => self.submit(now, envelope, out),
            Input::Settle { class, seq, settled } => self.settle(class, seq, settled, out),
            Input::Reply { seq, reply } => self.reply(now, seq, reply)?,
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
            Input::InventoryKnown { type_, entries } => self.inventory_known(&type_, entries)?,
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
            && let Some((next, bytes)) = self.outbox.next_frame(now)
        {
            self.send_sized(now, next, bytes, out);
        }
        self.outbox.end_round();
    }

    fn room(&self, bytes: usize) -> bool {
        self.outstanding_frames < self.config.socket_frames
            && (self.outstanding_frames == 0 || self.outstanding_bytes + bytes <= self.config.socket_budget)
    }

    fn send(&mut self, now: Duration, frame: v1::Frame, out: &mut Vec<Output>) {
        let bytes = frame.encoded_len();
        self.send_sized(now, frame, bytes, out);
    }

    /// Of this many bytes, encoded.
    fn send_sized(&mut self, now: Duration, frame: v1::Frame, bytes: usize, out: &mut Vec<Output>) {
        self.outstanding_bytes += bytes;
        self.outstanding_frames += 1;
        self.stats.frames_sent += 1;
        self.stats.bytes_sent += bytes as u64;
        self.liveness.frame_sent(now);
        out.push(Output::Send(frame, bytes));
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
        let said = frame(F::Goodbye(goodbye.clone()));
        let bytes = said.encoded_len();
        out.push(Output::Send(said, bytes));
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
