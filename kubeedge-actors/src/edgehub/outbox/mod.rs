//! The outbox: Events for the cloud, on disk before their publisher is answered, gone when the cloud has settled them.
//!
//! [`queue`] and [`ledger`] decide; this carries it out. One commit is under way at a time and takes everything that came
//! up during the one before it, in the order of the places. A commit that fails answers its publishers 507 or 503 (their
//! events were not taken); what else was in it is kept and written with the next, so that memory and disk agree in the
//! end.
//!
//! | | bound | beyond it |
//! |---|---|---|
//! | events, bytes, age | [`Bounds`] | the oldest not under way are dropped, counted by bound, and one marker takes their place |
//! | one event | half of the bytes, and what the link takes | 413 |
//! | publishers that wait for the disk | 512 | 429 |
//! | under way | [`queue::MAX_UNDER_WAY`], [`queue::MAX_BYTES_UNDER_WAY`] | the rest waits its turn |
//!
//! It tells, as metrics `kubeedge_edgehub_outbox_*`: `events`, `bytes`, and since the start `taken`, `applied`, `refused`,
//! `retried`, `count_drops`, `bytes_drops`, `age_drops`, `dropped_bytes`.
//!
//! What is promised: an event answered APPLIED reaches the cloud at least once, unless a bound drops it, with the id it
//! was published with, after any number of restarts and broken links. Events of one priority go out in the order they
//! were taken; one that the cloud could not take is tried again after a pause and does not hold up the others.

mod bounds;
mod entry;
mod figures;
pub mod ledger;
pub mod queue;

#[cfg(test)]
mod tests;

use std::time::{Duration, Instant};

use actix::{ActorFutureExt, AsyncContext, Handler, ResponseFuture, WrapFuture};
use bytes::Bytes;
use kubeedge_proto::v1::{Envelope, OutboxRecord, PublishEvent, Settled};
use tokio::sync::oneshot;

pub use self::bounds::{Bound, Bounds};
use self::{
    figures::Meters,
    ledger::{Ledger, Next, Written},
    queue::Now,
};
use super::{EdgeHub, unix_ms};
use crate::{
    link::session::Input,
    store::{Store, StoreError, Table},
    system::{Context, Ports, trace::Trace},
};

crate::message_records!(OutboxRecord);

/// How often what is too old is dropped, what waits for another try is looked at, and what could not be written is
/// written again.
pub(super) const TICK: Duration = Duration::from_secs(2);

/// The queue with its table.
pub(super) struct Outbox {
    store: Store,
    table: Table<OutboxRecord>,
    ledger: Ledger<oneshot::Sender<Settled>>,
    began: Instant,
    /// Envelopes are being handed to the session. One at a time: two could change their order.
    submitting: bool,
    /// Something came up while they were.
    submit_again: bool,
    /// Dropped events that were logged.
    logged: u64,
    meters: Meters,
}

impl Outbox {
    /// What is in the store. Records that cannot be read are left out with a warning.
    pub(super) fn load(store: &Store, bounds: Bounds, link: &crate::link::Config, ports: &Ports) -> Self {
        let table = store.table::<OutboxRecord>("outbox");
        let began = Instant::now();
        let readable = table.scan_prefix(b"").filter_map(|row| match row {
            Ok((key, record)) => Some((u64::from_be_bytes(key.try_into().ok()?), record)),
            Err(error) => {
                tracing::warn!("an event for the cloud is lost: {error}");
                None
            }
        });
        // The session must never refuse one for its size: what waits there is less than what is under way.
        let max_event_bytes = link.max_message_bytes.min(link.max_queued_event_bytes);
        let ledger = Ledger::load(bounds, now(began), readable, max_event_bytes, new_id);
        let meters = Meters::new(ports);
        meters.tell(ledger.queue());
        Self { store: store.clone(), table, ledger, began, submitting: false, submit_again: false, logged: 0, meters }
    }

    fn now(&self) -> Now {
        now(self.began)
    }

    /// Takes an event. The answer comes when it is on disk.
    fn publish(&mut self, mut envelope: Envelope) -> Result<oneshot::Receiver<Settled>, Settled> {
        Trace::stamp(&mut envelope);
        let (publisher, answer) = oneshot::channel();
        self.ledger.publish(self.now(), envelope, publisher, new_id).map_err(|(_, settled)| settled)?;
        Ok(answer)
    }

    /// What goes to the session now, and is under way from now on.
    fn take(&mut self) -> Vec<Envelope> {
        let mut envelopes = Vec::new();
        while let Some(next) = self.ledger.next(self.now()) {
            let place = match next {
                Next::Marker(marker) => {
                    envelopes.push(*marker);
                    continue;
                }
                Next::Event(place) => place,
            };
            match self.table.get(&place.to_be_bytes()) {
                Ok(Some(OutboxRecord { envelope: Some(envelope), .. })) => envelopes.push(envelope),
                other => {
                    let why = other.err().map_or("its record is gone".to_owned(), |error| error.to_string());
                    tracing::warn!(place, "an event for the cloud is lost: {why}");
                    self.ledger.unreadable(place);
                }
            }
        }
        envelopes
    }

    fn settled(&mut self, envelope: &Envelope, settled: &Settled) {
        if settled.code != 0 {
            let (code, origin) = (settled.code, &envelope.origin);
            tracing::warn!(code, origin, "the cloud did not take an event: {}", settled.reason);
        }
        self.ledger.settled(self.now(), &envelope.id, settled);
        self.meters.tell(self.ledger.queue());
    }

    fn tick(&mut self) {
        self.ledger.expire(self.now(), new_id);
        self.meters.tell(self.ledger.queue());
        let counts = self.ledger.queue().counts();
        let dropped = counts.dropped.iter().sum();
        if dropped > std::mem::replace(&mut self.logged, dropped) {
            let [by_count, by_bytes, by_age] = counts.dropped;
            let (events, bytes) = (self.ledger.queue().len(), counts.dropped_bytes);
            tracing::warn!(
                by_count,
                by_bytes,
                by_age,
                bytes,
                events,
                "the outbox is at a bound: its oldest were dropped"
            );
        }
    }

    /// The session is over.
    pub(super) fn session_over(&mut self) {
        self.ledger.session_over();
    }
}

impl EdgeHub {
    pub(super) fn outbox_tick(&mut self, ctx: &mut Context<Self>) {
        self.outbox.tick();
        self.write_outbox(ctx);
        self.send_events(ctx);
    }

    /// Writes what is not on disk; while that is under way another call does nothing, since it goes on by itself.
    fn write_outbox(&mut self, ctx: &mut Context<Self>) {
        let Some(changes) = self.outbox.ledger.batch() else { return };
        let mut batch = self.outbox.store.batch();
        for (place, record) in &changes {
            match record {
                Some(record) => batch.put(&self.outbox.table, &place.to_be_bytes(), record),
                None => batch.delete(&self.outbox.table, &place.to_be_bytes()),
            }
        }
        ctx.spawn(async move { (batch.commit().await, changes) }.into_actor(self).map(
            |(result, changes), this, ctx| {
                let written = match result {
                    Ok(()) => Written::Yes,
                    Err(error) => {
                        tracing::warn!("the outbox could not be written: {error}");
                        let code = if matches!(error, StoreError::Full(_)) { 507 } else { 503 };
                        Written::No(code, error.to_string())
                    }
                };
                for (publisher, settled) in this.outbox.ledger.committed(&written, changes) {
                    // Who gave up waiting needs no answer.
                    let _ = publisher.send(settled);
                }
                this.outbox.meters.tell(this.outbox.ledger.queue());
                // What failed goes with the next event or tick, not over and over.
                if written == Written::Yes {
                    this.write_outbox(ctx);
                }
                this.send_events(ctx);
            },
        ));
    }

    /// Hands the session what may go.
    pub(super) fn send_events(&mut self, ctx: &mut Context<Self>) {
        let (Some(session), true) = (self.session.clone(), self.established) else { return };
        if self.outbox.submitting {
            self.outbox.submit_again = true;
            return;
        }
        let envelopes = self.outbox.take();
        if envelopes.is_empty() {
            return;
        }
        self.outbox.submitting = true;
        ctx.spawn(
            async move {
                for envelope in envelopes {
                    if session.send(Input::Submit(Box::new(envelope))).await.is_err() {
                        // The link's end makes them wait for the next session.
                        return;
                    }
                }
            }
            .into_actor(self)
            .map(|(), this, ctx| {
                this.outbox.submitting = false;
                if std::mem::take(&mut this.outbox.submit_again) {
                    this.send_events(ctx);
                }
            }),
        );
    }

    /// The cloud is done with an event.
    pub(super) fn event_settled(&mut self, envelope: &Envelope, settled: &Settled, ctx: &mut Context<Self>) {
        self.outbox.settled(envelope, settled);
        self.write_outbox(ctx);
        self.send_events(ctx);
    }
}

impl Handler<PublishEvent> for EdgeHub {
    type Result = ResponseFuture<Settled>;

    fn handle(&mut self, message: PublishEvent, ctx: &mut Context<Self>) -> Self::Result {
        let Some(envelope) = message.envelope else {
            return Box::pin(std::future::ready(Settled::rejected(400, "a PublishEvent carries no envelope")));
        };
        match self.outbox.publish(envelope) {
            Ok(answer) => {
                self.write_outbox(ctx);
                // Nobody answers when EdgeHub was rebuilt meanwhile.
                Box::pin(async move {
                    answer.await.unwrap_or_else(|_| Settled::rejected(503, "whether the event is on disk is not known"))
                })
            }
            Err(settled) => Box::pin(std::future::ready(settled)),
        }
    }
}

fn now(began: Instant) -> Now {
    Now { clock: began.elapsed(), unix_ms: unix_ms() }
}

fn new_id() -> Bytes {
    uuid::Uuid::new_v4().into_bytes().to_vec().into()
}
