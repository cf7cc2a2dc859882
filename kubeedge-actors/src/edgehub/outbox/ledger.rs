//! The queue and what of it is on disk: who waits for which place, what the next commit writes. Pure.
//!
//! One commit is under way at a time and takes everything that came up during the one before it.

use std::collections::HashMap;

use bytes::Bytes;
use kubeedge_proto::v1::{Envelope, OutboxRecord, Settled};
use prost::Message;

use super::{
    Bounds,
    queue::{Changes, Now, Outcome, Queue, Refused},
};

/// Publishers that wait for the disk at a time; further ones are refused.
const MAX_WAITING: usize = 512;
/// A commit takes no more when it has this many bytes.
const BATCH_BYTES: usize = 8 * 1024 * 1024;

/// The queue with what is not written yet. `P` is how a publisher is answered.
#[derive(Debug)]
pub struct Ledger<P> {
    queue: Queue,
    /// Not written yet. The newest per place: bounded by the queue.
    dirty: Changes,
    /// Publishers to answer when their place is on disk.
    publishers: HashMap<u64, Vec<P>>,
    committing: bool,
    max_event_bytes: usize,
}

/// How a commit went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Written {
    /// Every change of it is on disk.
    Yes,
    /// None of it, as far as is known. The code tells a full disk (507) from another fault (503).
    No(u32, String),
}

/// What goes to the session next.
#[derive(Clone, Debug, PartialEq)]
pub enum Next {
    /// This marker.
    Marker(Box<Envelope>),
    /// The event on disk at this place.
    Event(u64),
}

impl<P> Ledger<P> {
    /// What an earlier run left, see [`Queue::load`]. `max_event_bytes`: what the link takes in one message.
    pub fn load(
        bounds: Bounds,
        now: Now,
        records: impl Iterator<Item = (u64, OutboxRecord)>,
        max_event_bytes: usize,
        id: impl FnMut() -> Bytes,
    ) -> Self {
        let (queue, dirty) = Queue::load(bounds, now, records, id);
        let max_event_bytes = queue.max_event_bytes().min(max_event_bytes);
        Self { queue, dirty, publishers: HashMap::new(), committing: false, max_event_bytes }
    }

    /// The queue.
    pub fn queue(&self) -> &Queue {
        &self.queue
    }

    /// Takes an event. `publisher` is answered when it is on disk, by [`Ledger::committed`]; or with the error, now.
    pub fn publish(
        &mut self,
        now: Now,
        envelope: Envelope,
        publisher: P,
        id: impl FnMut() -> Bytes,
    ) -> Result<(), (P, Settled)> {
        match self.take_in(now, envelope, id) {
            Ok(place) => {
                self.publishers.entry(place).or_default().push(publisher);
                Ok(())
            }
            Err(settled) => Err((publisher, settled)),
        }
    }

    fn take_in(&mut self, now: Now, envelope: Envelope, id: impl FnMut() -> Bytes) -> Result<u64, Settled> {
        let (bytes, limit) = (envelope.encoded_len(), self.max_event_bytes);
        if bytes > limit {
            return Err(Settled::rejected(413, Refused::TooLarge { bytes, limit }.to_string()));
        }
        if self.publishers.len() >= MAX_WAITING {
            return Err(Settled::rejected(429, format!("{MAX_WAITING} events wait for the disk already")));
        }
        match self.queue.push(now, envelope, id) {
            Ok((place, changes)) => {
                self.dirty.extend(changes);
                Ok(place)
            }
            Err(Refused::Known { durable: true, .. }) => Err(Settled::superseded()),
            Err(Refused::Known { place, durable: false }) => Ok(place),
            Err(why) => {
                let code = match why {
                    Refused::TooLarge { .. } => 413,
                    Refused::Full => 429,
                    _ => 400,
                };
                Err(Settled::rejected(code, why.to_string()))
            }
        }
    }

    /// What the next commit writes; then comes [`Ledger::committed`].
    pub fn batch(&mut self) -> Option<Changes> {
        if self.committing || self.dirty.is_empty() {
            return None;
        }
        let mut bytes = 0;
        let mut changes = Changes::new();
        while bytes < BATCH_BYTES
            && let Some((place, record)) = self.dirty.pop_first()
        {
            bytes += record.as_ref().map_or(0, Message::encoded_len);
            changes.insert(place, record);
        }
        self.committing = true;
        Some(changes)
    }

    /// The commit is over: its publishers, with what they are told. What failed of it and nobody waits for goes with the
    /// next one, so that memory and disk agree in the end.
    pub fn committed(&mut self, written: &Written, changes: Changes) -> Vec<(P, Settled)> {
        self.committing = false;
        let settled = match written {
            Written::Yes => Settled::applied(),
            Written::No(code, error) => Settled::rejected(*code, format!("the event is not on disk: {error}")),
        };
        let mut answers = Vec::new();
        for (place, change) in changes {
            let publishers = self.publishers.remove(&place);
            match (written, &publishers) {
                (Written::Yes, Some(_)) => self.queue.written(place),
                (Written::Yes, None) => {}
                (Written::No(..), Some(_)) => {
                    self.queue.not_written(place);
                    // After some errors it may be there all the same.
                    self.dirty.insert(place, None);
                }
                (Written::No(..), None) => drop(self.dirty.entry(place).or_insert(change)),
            }
            answers.extend(publishers.into_iter().flatten().map(|publisher| (publisher, settled.clone())));
        }
        answers
    }

    /// What goes to the session next, and is under way from now on.
    pub fn next(&mut self, now: Now) -> Option<Next> {
        let place = self.queue.next(now)?;
        Some(self.queue.marker(place).map_or(Next::Event(place), |marker| Next::Marker(Box::new(marker))))
    }

    /// The record at this place cannot be read: its event is lost.
    pub fn unreadable(&mut self, place: u64) {
        self.queue.unreadable(place);
        self.dirty.insert(place, None);
    }

    /// The cloud, or this end's session, is done with an event.
    pub fn settled(&mut self, now: Now, id: &Bytes, settled: &Settled) {
        if let Outcome::Done(place) = self.queue.settled(now, id, settled) {
            self.dirty.insert(place, None);
        }
    }

    /// Drops what is too old.
    pub fn expire(&mut self, now: Now, id: impl FnMut() -> Bytes) {
        let changes = self.queue.expire(now, id);
        self.dirty.extend(changes);
    }

    /// The session is over: what was under way goes again in the next one.
    pub fn session_over(&mut self) {
        self.queue.session_over();
    }
}
