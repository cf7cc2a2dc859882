//! Events of the cloud: handed to whoever takes them at this edge, and not twice.
//!
//! When the taker says that the effect is done, the event's id goes to disk, and only then the cloud hears of it. A repeat
//! of an id on disk is answered SUPERSEDED and goes no further. The newest [`REMEMBERED`] ids are kept: a sender repeats
//! within minutes, and this many events are many minutes of them.
//!
//! What is not promised: between the effect and its id on disk lies a commit. A power cut in between lets one event take
//! effect twice.

use std::{
    collections::{HashSet, VecDeque},
    time::Duration,
};

use actix::{ActorFutureExt, AsyncContext, WrapFuture};
use bytes::Bytes;
use kubeedge_proto::v1::{Envelope, EventReceived, Settled};

use super::EdgeHub;
use crate::{
    link::session::{Class, Input},
    store::{Batch, Store, Table},
    system::{AskError, Context},
};

/// Ids that are kept.
pub const REMEMBERED: usize = 4096;
/// How long the taker may take. After it whether there was an effect is not known, and the cloud may send it again.
const TAKE_WITHIN: Duration = Duration::from_secs(30);

/// Which events took effect here. Pure: what has to be on disk comes out.
#[derive(Debug, Default)]
pub struct Received {
    order: VecDeque<(u64, Bytes)>,
    ids: HashSet<Bytes>,
    /// With the taker, or on their way to the disk. The session's window bounds them.
    busy: HashSet<Bytes>,
    next: u64,
}

/// What is to be on disk before the cloud hears that an event has taken effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remember {
    /// The number that the id is kept under.
    pub number: u64,
    /// The event's id.
    pub id: Bytes,
    /// Numbers that are forgotten for it.
    pub forget: Vec<u64>,
}

impl Received {
    /// The ids on disk, in the order of their numbers.
    pub fn load(ids: impl Iterator<Item = (u64, Bytes)>) -> Self {
        let order: VecDeque<(u64, Bytes)> = ids.collect();
        Self {
            ids: order.iter().map(|(_, id)| id.clone()).collect(),
            next: order.back().map_or(0, |(number, _)| number + 1),
            order,
            busy: HashSet::new(),
        }
    }

    /// Whether an event goes to the taker; otherwise what the cloud is told (`P-EVENT-ONCE`).
    pub fn begin(&mut self, id: &Bytes) -> Result<(), Settled> {
        if id.len() != 16 {
            return Err(Settled::rejected(400, format!("an event's id has 16 bytes, not {}", id.len())));
        }
        if self.ids.contains(id) {
            return Err(Settled::superseded());
        }
        if !self.busy.insert(id.clone()) {
            return Err(Settled::rejected(503, "the same event is being handled"));
        }
        Ok(())
    }

    /// The effect is done: what has to be committed. Then comes [`Self::remembered`].
    pub fn remember(&mut self, id: &Bytes) -> Remember {
        let number = self.next;
        self.next += 1;
        self.order.push_back((number, id.clone()));
        let mut forget = Vec::new();
        while self.order.len() > REMEMBERED
            && let Some((oldest, id)) = self.order.pop_front()
        {
            forget.push(oldest);
            self.ids.remove(&id);
        }
        Remember { number, id: id.clone(), forget }
    }

    /// The commit is over: what the cloud is told. When it failed, this run knows the id all the same, and a further try
    /// of the cloud is answered from memory.
    pub fn remembered(&mut self, id: &Bytes, settled: Settled, committed: Result<(), String>) -> Settled {
        self.busy.remove(id);
        self.ids.insert(id.clone());
        match committed {
            Ok(()) => settled,
            Err(error) => Settled::rejected(503, format!("done, but not on disk: {error}")),
        }
    }

    /// There was no effect, as far as is known.
    pub fn not_taken(&mut self, id: &Bytes) {
        self.busy.remove(id);
    }
}

/// [`Received`] with its table: ids under rising numbers.
pub(super) struct ReceivedTable {
    store: Store,
    table: Table<Bytes>,
    received: Received,
}

impl ReceivedTable {
    /// What is in the store. An id that cannot be read is forgotten, with a warning.
    pub(super) fn load(store: &Store) -> Self {
        let table = store.table::<Bytes>("received");
        let readable = table.scan_prefix(b"").filter_map(|row| match row {
            Ok((key, id)) => Some((u64::from_be_bytes(key.try_into().ok()?), id)),
            Err(error) => {
                tracing::warn!("an event of the cloud may take effect twice: {error}");
                None
            }
        });
        let received = Received::load(readable);
        Self { store: store.clone(), table, received }
    }

    fn remember(&mut self, id: &Bytes) -> Batch {
        let Remember { number, id, forget } = self.received.remember(id);
        let mut batch = self.store.batch();
        batch.put(&self.table, &number.to_be_bytes(), &id);
        for number in forget {
            batch.delete(&self.table, &number.to_be_bytes());
        }
        batch
    }
}

impl EdgeHub {
    /// An event of the cloud came.
    pub(super) fn event_received(&mut self, seq: u64, envelope: Envelope, ctx: &mut Context<Self>) {
        let class = Class::Event;
        let id = envelope.id.clone();
        let begun = match &self.take_event {
            Some(port) => self.received.received.begin(&id).map(|()| port.clone()),
            None => Err(Settled::rejected(501, "nobody at this edge takes events")),
        };
        let port = match begun {
            Ok(port) => port,
            Err(settled) => return self.answer(ctx, async move { Some(Input::Settle { class, seq, settled }) }),
        };
        // A sequence means something to the session it came by, and to no other.
        let session = self.session.clone();
        ctx.spawn(
            async move { port.ask(EventReceived { envelope: Some(envelope) }, TAKE_WITHIN).await }
                .into_actor(self)
                .then(move |answer, this, _| {
                    let settled = answer.unwrap_or_else(|error| match error {
                        AskError::Timeout => Settled::rejected(504, format!("no answer within {TAKE_WITHIN:?}")),
                        error => Settled::rejected(503, format!("who takes events: {error}")),
                    });
                    let batch = (settled.code == 0).then(|| this.received.remember(&id));
                    async move {
                        match batch {
                            Some(batch) => (id, settled, Some(batch.commit().await)),
                            None => (id, settled, None),
                        }
                    }
                    .into_actor(this)
                })
                .then(move |(id, settled, committed), this, _| {
                    let settled = match committed {
                        None => {
                            this.received.received.not_taken(&id);
                            settled
                        }
                        Some(committed) => {
                            let committed = committed.map_err(|error| error.to_string());
                            this.received.received.remembered(&id, settled, committed)
                        }
                    };
                    async move {
                        if let Some(session) = session
                            && session.send(Input::Settle { class, seq, settled }).await.is_err()
                        {
                            tracing::debug!("the session ended before the answer to an event");
                        }
                    }
                    .into_actor(this)
                }),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// P-EVENT-ONCE
    #[tokio::test]
    async fn as_many_ids_as_said_are_remembered_also_by_the_next_run() {
        let store = Store::in_memory();
        let id = |n: usize| Bytes::from((n as u128).to_be_bytes().to_vec());
        let mut table = ReceivedTable::load(&store);
        for n in 0..REMEMBERED + 10 {
            table.received.begin(&id(n)).unwrap();
            assert_eq!(table.received.begin(&id(n)).unwrap_err().code, 503);
            table.remember(&id(n)).commit().await.unwrap();
            assert_eq!(table.received.remembered(&id(n), Settled::applied(), Ok(())), Settled::applied());
            assert_eq!(table.received.begin(&id(n)), Err(Settled::superseded()));
        }
        for ReceivedTable { mut received, .. } in [table, ReceivedTable::load(&store)] {
            assert_eq!((received.ids.len(), received.order.len()), (REMEMBERED, REMEMBERED));
            assert_eq!(received.begin(&id(9)), Ok(()), "forgotten");
            assert_eq!(received.begin(&id(10)), Err(Settled::superseded()));
            assert_eq!(received.next, (REMEMBERED + 10) as u64);
        }
        assert_eq!(store.table::<Bytes>("received").scan_prefix(b"").count(), REMEMBERED);
    }

    #[test]
    fn what_had_no_effect_may_come_again() {
        let mut received = Received::default();
        let id = Bytes::from(vec![1; 16]);
        received.begin(&id).unwrap();
        received.not_taken(&id);
        assert_eq!(received.begin(&id), Ok(()));
        assert_eq!(received.begin(&Bytes::from_static(b"short")).unwrap_err().code, 400);
    }
}
