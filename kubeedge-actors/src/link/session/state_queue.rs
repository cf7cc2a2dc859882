//! State that waits to be sent: newest per (key, uid), one message of a key under way at a time.
//!
//! A key's entries are a short chain, one per uid, oldest first: the end of an old object goes before its successor.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    time::Duration,
};

use kubeedge_proto::v1::{Envelope, KubeObject, ObjectUpsert, envelope::Body};

use crate::link::{
    config::KeyRate,
    ids::{ObjectId, TypeId},
};

#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) uid: String,
    pub(crate) envelope: Box<Envelope>,
    pub(crate) bytes: usize,
    /// When it got in line; stays when a newer version takes its place.
    pub(crate) order: u64,
}

#[derive(Debug, Default)]
struct Slot {
    queued: VecDeque<Entry>,
    in_flight: bool,
    delayed: Option<(Duration, u64)>,
    ready: bool,
}

#[derive(Debug, Default)]
pub(crate) struct StateQueue {
    slots: HashMap<ObjectId, Slot>,
    queued: usize,
    limit: usize,
    rate: Option<KeyRate>,
    /// Per key over its burst: when its next message would be due at the sustained rate.
    paces: HashMap<ObjectId, Duration>,
    delayed: BTreeMap<(Duration, u64), ObjectId>,
    /// Orders of what is not completely sent, per type: what completions and bookmarks wait for.
    unsent: HashMap<TypeId, BTreeSet<u64>>,
    order: u64,
}

/// What became of a submission.
#[derive(Debug)]
pub(crate) enum Queued {
    /// In line. When the key may go right away it comes back here.
    New(Option<ObjectId>),
    /// It took the place of this one. Urgent news of a key that waited for its rate makes the key ready.
    Replaced(Box<Envelope>, Option<ObjectId>),
    /// Something final is queued already: this one is dropped.
    Dropped(Box<Envelope>),
    /// At the bound.
    Full(Box<Envelope>),
}

/// What must not wait for a rate: it ends something.
fn is_final(envelope: &Envelope) -> bool {
    matches!(envelope.body, Some(Body::PodTerminated(_) | Body::ObjectTombstone(_)))
}

/// What is queued stays: "terminated" is never overwritten by a status, nor a version by an older one. The difference of a
/// resync and the news from a controller come different ways, and may overtake each other.
fn outranks(queued: &Envelope, newer: &Envelope) -> bool {
    match (&queued.body, &newer.body) {
        (Some(Body::PodTerminated(_)), Some(Body::StatusUpdate(_))) => true,
        (Some(Body::StatusUpdate(queued)), Some(Body::StatusUpdate(newer))) => queued.generation > newer.generation,
        (Some(Body::DeviceReport(queued)), Some(Body::DeviceReport(newer))) => queued.generation > newer.generation,
        (Some(Body::ObjectUpsert(queued)), Some(Body::ObjectUpsert(newer))) => {
            // Or than the list it was found in: see `ObjectUpsert.as_of`.
            let version = |upsert: &ObjectUpsert| upsert.object.as_ref().map_or(0, KubeObject::version);
            version(queued).max(queued.as_of) > version(newer).max(newer.as_of)
        }
        _ => false,
    }
}

impl StateQueue {
    pub(crate) fn new(limit: usize, rate: Option<KeyRate>) -> Self {
        Self { limit, rate, ..Self::default() }
    }

    /// Gives back the room of what has left.
    pub(crate) fn shrink(&mut self) {
        self.slots.shrink_to_fit();
        self.paces.shrink_to_fit();
        self.unsent.shrink_to_fit();
        // A tree keeps its last leaf.
        if self.delayed.is_empty() {
            self.delayed = BTreeMap::new();
        }
    }

    /// Gets in line. Keys that come back in the answer are ready: give them to a level.
    pub(crate) fn push(
        &mut self,
        now: Duration,
        id: ObjectId,
        uid: String,
        envelope: Box<Envelope>,
        bytes: usize,
    ) -> Queued {
        if let Some(slot) = self.slots.get_mut(&id)
            && let Some(last) = slot.queued.back_mut()
            && last.uid == uid
        {
            if outranks(&last.envelope, &envelope) {
                return Queued::Dropped(envelope);
            }
            let urgent = is_final(&envelope) && slot.queued.len() == 1;
            let Some(last) = slot.queued.back_mut() else { return Queued::Full(envelope) };
            last.bytes = bytes;
            let old = std::mem::replace(&mut last.envelope, envelope);
            let wake = if urgent { slot.delayed.take() } else { None };
            let ready = wake.map(|due| {
                self.delayed.remove(&due);
                slot.ready = true;
                id
            });
            return Queued::Replaced(old, ready);
        }
        if self.queued >= self.limit {
            return Queued::Full(envelope);
        }
        self.order += 1;
        let order = self.order;
        self.queued += 1;
        self.unsent.entry(id.type_.clone()).or_default().insert(order);
        self.slots.entry(id.clone()).or_default().queued.push_back(Entry { uid, envelope, bytes, order });
        Queued::New(self.wake(now, &id).then_some(id))
    }

    /// Whether the key has become ready by this call: something is queued, nothing under way, its rate allows it.
    fn wake(&mut self, now: Duration, id: &ObjectId) -> bool {
        let Some(slot) = self.slots.get_mut(id) else { return false };
        let Some(head) = slot.queued.front() else { return false };
        if slot.in_flight || slot.ready || slot.delayed.is_some() {
            return false;
        }
        if let Some(rate) = self.rate
            && !is_final(&head.envelope)
            && let Some(pace) = self.paces.get(id)
        {
            let due = pace.saturating_sub(rate.interval * rate.burst.saturating_sub(1));
            if due > now {
                slot.delayed = Some((due, head.order));
                self.delayed.insert((due, head.order), id.clone());
                return false;
            }
        }
        slot.ready = true;
        true
    }

    /// Keys whose rate allows their next message now.
    pub(crate) fn due(&mut self, now: Duration) -> Vec<ObjectId> {
        let mut ready = Vec::new();
        while let Some(entry) = self.delayed.first_entry()
            && entry.key().0 <= now
        {
            let id = entry.remove();
            if let Some(slot) = self.slots.get_mut(&id) {
                slot.delayed = None;
                slot.ready = true;
                ready.push(id);
            }
        }
        ready
    }

    /// When [`StateQueue::due`] has something next.
    pub(crate) fn next_due(&self) -> Option<Duration> {
        self.delayed.first_key_value().map(|((due, _), _)| *due)
    }

    /// The envelope at the head of a ready key: its level follows from it.
    pub(crate) fn head(&self, id: &ObjectId) -> Option<&Envelope> {
        self.slots.get(id)?.queued.front().map(|entry| &*entry.envelope)
    }

    /// Takes a ready key's oldest entry; the key is under way until [`StateQueue::finish`].
    pub(crate) fn take(&mut self, now: Duration, id: &ObjectId) -> Option<Entry> {
        let slot = self.slots.get_mut(id)?;
        let entry = slot.queued.pop_front()?;
        slot.in_flight = true;
        slot.ready = false;
        self.queued -= 1;
        if let Some(rate) = self.rate {
            let pace = self.paces.get(id).copied().unwrap_or_default().max(now) + rate.interval;
            if self.paces.len() > 2 * self.slots.len() + 64 {
                self.paces.retain(|_, pace| *pace > now);
            }
            self.paces.insert(id.clone(), pace);
        }
        Some(entry)
    }

    /// Every byte of this entry is out.
    pub(crate) fn sent(&mut self, type_: &TypeId, order: u64) {
        if let Some(orders) = self.unsent.get_mut(type_) {
            orders.remove(&order);
            if orders.is_empty() {
                self.unsent.remove(type_);
            }
        }
    }

    /// The message under way is settled. True when the key's next one is ready.
    pub(crate) fn finish(&mut self, now: Duration, id: &ObjectId) -> bool {
        let Some(slot) = self.slots.get_mut(id) else { return false };
        slot.in_flight = false;
        if slot.queued.is_empty() {
            self.slots.remove(id);
            return false;
        }
        self.wake(now, id)
    }

    /// The order that the next submission will not be below.
    pub(crate) fn order(&self) -> u64 {
        self.order
    }

    /// Whether all State of the type that got in line up to `order` is out.
    pub(crate) fn all_sent(&self, type_: &TypeId, order: u64) -> bool {
        self.unsent.get(type_).and_then(BTreeSet::first).is_none_or(|first| *first > order)
    }

    pub(crate) fn len(&self) -> usize {
        self.queued
    }

    /// Everything queued; in order for each key, not across keys.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Envelope> {
        self.slots.values().flat_map(|slot| slot.queued.iter().map(|entry| &*entry.envelope))
    }

    /// Everything queued, in the order it got in line.
    pub(crate) fn drain(&mut self) -> Vec<Envelope> {
        let mut entries: Vec<Entry> = self.slots.drain().flat_map(|(_, slot)| slot.queued).collect();
        entries.sort_unstable_by_key(|entry| entry.order);
        *self = Self::new(self.limit, self.rate);
        entries.into_iter().map(|entry| *entry.envelope).collect()
    }
}
