//! Events on their way to EdgeHub's outbox: a short queue, and a task that empties it.
//!
//! The outbox keeps them over an outage and a restart, within its bounds. Here they wait for the disk only.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use jiff::Timestamp;
use kubeedge_proto::{
    resource,
    v1::{Envelope, KubeObject, KubernetesEvent, ObjectKey, PublishEvent, envelope::Body},
};
use tokio::sync::mpsc;

use super::{Correlator, Event, EventRecord};
use crate::system::Port;

/// Events that wait for their turn.
pub const QUEUE: usize = 64;
/// How long the outbox's disk may take for one.
const SEND_WITHIN: Duration = Duration::from_secs(10);
/// An event waits this long for others: a pod that starts makes several within a moment, which then share a sync of the
/// disk. The status that comes with them does not wait behind theirs.
const TOGETHER: Duration = Duration::from_millis(200);

#[derive(Debug, Default)]
struct Shared {
    correlator: Mutex<Correlator>,
    dropped: AtomicU64,
}

impl Shared {
    fn correlator(&self) -> MutexGuard<'_, Correlator> {
        // At worst one count is off after a panic.
        self.correlator.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn dropped(&self, event: &Event, why: &str) {
        self.correlator().not_told(&event.record.involved.uid);
        let dropped = self.dropped.fetch_add(1, Ordering::Relaxed) + 1;
        tracing::debug!(event = event.name, reason = event.record.reason.as_str(), dropped, "not told: {why}");
    }
}

/// Takes events from the pods' workers. Clones share their queue.
#[derive(Clone, Debug)]
pub struct EventSink {
    shared: Arc<Shared>,
    queue: mpsc::Sender<Event>,
}

impl EventSink {
    /// Takes an event if there is room. Never waits.
    pub fn record(&self, record: EventRecord) {
        let Some(event) = self.shared.correlator().note(record) else { return };
        match self.queue.try_send(event) {
            Ok(()) => {}
            Err(mpsc::error::TrySendError::Full(event)) => {
                self.shared.dropped(&event, "too many events wait for the outbox already");
            }
            Err(mpsc::error::TrySendError::Closed(event)) => self.shared.dropped(&event, "edged is stopping"),
        }
    }

    /// How many events were dropped here: the queue was full, or the outbox did not take them.
    pub fn dropped(&self) -> u64 {
        self.shared.dropped.load(Ordering::Relaxed)
    }
}

/// Puts them into the outbox. Dropped, what waits is dropped too.
#[derive(Debug)]
pub struct EventSender {
    shared: Arc<Shared>,
    queue: mpsc::Receiver<Event>,
    node: String,
    port: Port<PublishEvent>,
}

/// A queue from the workers to EdgeHub's port, for events of this node.
pub fn channel(node: String, port: Port<PublishEvent>) -> (EventSink, EventSender) {
    let (sender, receiver) = mpsc::channel(QUEUE);
    let shared = Arc::<Shared>::default();
    (EventSink { shared: Arc::clone(&shared), queue: sender }, EventSender { shared, queue: receiver, node, port })
}

impl EventSender {
    /// Those of a moment together, then the next: a higher count must not be overtaken by a lower one.
    pub async fn run(mut self) {
        let mut events = Vec::with_capacity(QUEUE);
        while let Some(first) = self.queue.recv().await {
            events.push(first);
            tokio::time::sleep(TOGETHER).await;
            while events.len() < QUEUE
                && let Ok(event) = self.queue.try_recv()
            {
                // The same once more: only how often is another, and when.
                let same = |known: &&mut Event| {
                    known.name == event.name && known.record.involved.namespace == event.record.involved.namespace
                };
                match events.iter_mut().find(same) {
                    Some(known) => *known = event,
                    None => events.push(event),
                }
            }
            let all = events.iter().map(|event| self.send(event));
            futures_util::future::join_all(all).await;
            events.clear();
        }
    }

    async fn send(&self, event: &Event) {
        let message = PublishEvent { envelope: Some(self.envelope(event)) };
        match self.port.ask(message, SEND_WITHIN).await {
            Ok(settled) if settled.code == 0 => {}
            Ok(settled) => self.shared.dropped(event, &format!("{} ({})", settled.reason, settled.code)),
            Err(error) => self.shared.dropped(event, &format!("EdgeHub: {error}")),
        }
    }

    fn envelope(&self, event: &Event) -> Envelope {
        let object = KubeObject {
            r#type: Some(resource::events()),
            key: Some(ObjectKey::new(event.record.involved.event_namespace(), &event.name)),
            uid: String::new(),
            resource_version: String::new(),
            json: event.to_json(&self.node).to_string().into(),
            projection_hash: 0,
        };
        let now = u64::try_from(Timestamp::now().as_millisecond()).unwrap_or(0);
        Envelope::new("edged", now, Body::KubernetesEvent(KubernetesEvent { event: Some(object) }))
    }
}

#[cfg(test)]
mod tests {
    use actix::{Actor, Handler, ResponseFuture};
    use kubeedge_proto::v1::Settled;
    use tokio::sync::Semaphore;

    use super::*;
    use crate::{
        edged::events::{Involved, Reason},
        system::{Component, Context, Contract, Stage, System},
    };

    /// Answers an event for each permit; every other one is refused.
    struct Hub(Arc<Semaphore>, u32);

    impl Actor for Hub {
        type Context = Context<Self>;
    }

    impl Component for Hub {
        const NAME: &'static str = "edgehub";
        const STAGE: Stage = Stage::Link;
        fn contract(contract: &mut Contract<Self>) {
            contract.answers::<PublishEvent>();
        }
    }

    impl Handler<PublishEvent> for Hub {
        type Result = ResponseFuture<Settled>;
        fn handle(&mut self, _: PublishEvent, _: &mut Context<Self>) -> Self::Result {
            let permits = Arc::clone(&self.0);
            self.1 += 1;
            let settled = if self.1.is_multiple_of(2) { Settled::rejected(503, "down") } else { Settled::applied() };
            Box::pin(async move {
                permits.acquire().await.unwrap().forget();
                settled
            })
        }
    }

    #[actix_rt::test]
    async fn a_slow_outbox_costs_events_and_never_a_workers_time() {
        let permits = Arc::new(Semaphore::new(0));
        let hub = Arc::clone(&permits);
        let system = System::builder("edge")
            .component(move |_| Hub(Arc::clone(&hub), 0))
            .asks::<PublishEvent>()
            .start()
            .unwrap();
        let (sink, sender) = channel("edge-1".into(), system.port());
        let record = |pod: usize| {
            let involved = Involved {
                namespace: "ns".into(),
                name: format!("p{pod}"),
                uid: format!("u{pod}"),
                resource_version: String::new(),
                field_path: String::new(),
            };
            sink.record(EventRecord::new(involved, Reason::Failed, "m".into(), Timestamp::UNIX_EPOCH));
        };
        // Nobody empties the queue yet.
        (0..QUEUE + 6).for_each(record);
        assert_eq!(sink.dropped(), 6);
        let sending = tokio::spawn(sender.run());
        permits.add_permits(QUEUE);
        drop(sink.clone());
        // The sender ends when all that wait were sent and nobody can send more.
        let shared = Arc::clone(&sink.shared);
        drop(sink);
        sending.await.unwrap();
        assert_eq!(shared.dropped.load(Ordering::Relaxed), 6 + QUEUE as u64 / 2);
        system.stop(Duration::from_secs(5)).await;
    }

    #[actix_rt::test]
    async fn what_happens_again_within_a_moment_is_told_once() {
        let permits = Arc::new(Semaphore::new(10));
        let hub = Arc::clone(&permits);
        let system = System::builder("edge")
            .component(move |_| Hub(Arc::clone(&hub), 0))
            .asks::<PublishEvent>()
            .start()
            .unwrap();
        let (sink, sender) = channel("edge-1".into(), system.port());
        for message in ["a", "b", "a", "a"] {
            let involved = Involved::node("edge-1");
            sink.record(EventRecord::new(involved, Reason::Failed, message.into(), Timestamp::UNIX_EPOCH));
        }
        let sending = tokio::spawn(sender.run());
        drop(sink);
        sending.await.unwrap();
        assert_eq!(permits.available_permits(), 8, "one of each");
        system.stop(Duration::from_secs(5)).await;
    }
}
