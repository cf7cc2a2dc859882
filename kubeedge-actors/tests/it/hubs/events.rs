//! Events. Up, through the outbox: published offline, over a kill, beyond its bounds, past a cloud that cannot take them.
//! Down: once each, and the sender knows what became of them.

use std::{collections::BTreeSet, path::Path};

use kubeedge_actors::edgehub::outbox::queue::RETRY_FIRST;
use tokio::sync::Semaphore;

use super::*;

/// Nobody listens here.
const NOWHERE: &str = "127.0.0.1:1";

fn message(text: &str) -> Envelope {
    let body = UserMessage { topic: "t".into(), payload: text.to_owned().into(), ..UserMessage::default() };
    Envelope::new("test", 0, envelope::Body::UserMessage(body))
}

impl Edge {
    async fn publish(&self, envelope: Envelope) -> Settled {
        let port: Port<PublishEvent> = self.system.port();
        port.ask(PublishEvent { envelope: Some(envelope) }, SOON).await.unwrap()
    }

    /// What EdgeHub tells about its outbox, by the name without `outbox_`.
    fn told(&self, name: &str) -> u64 {
        let figures = self.system.figures().into_iter().find(|(component, _)| *component == "edgehub").unwrap().1;
        figures.iter().find(|(figure, _)| figure.name == format!("outbox_{name}")).unwrap().1
    }

    fn in_outbox(&self) -> usize {
        self.store.table::<OutboxRecord>("outbox").scan_prefix(b"").map(Result::unwrap).count()
    }

    async fn outbox_is_empty(&self) {
        let empty = async {
            while self.in_outbox() > 0 {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(SOON, empty).await.expect("everything is settled");
    }
}

async fn next_event(listener: &mut mpsc::UnboundedReceiver<Heard>) -> Envelope {
    match heard(listener, |heard| matches!(heard, Heard::Event(_))).await {
        Heard::Event(envelope) => envelope,
        other => panic!("{other:?}"),
    }
}

fn text(envelope: &Envelope) -> String {
    match envelope.body.as_ref() {
        Some(envelope::Body::UserMessage(message)) => String::from_utf8(message.payload.to_vec()).unwrap(),
        Some(envelope::Body::GapMarker(gap)) => format!("{} dropped by {}", gap.dropped_count, gap.bound),
        other => panic!("{other:?}"),
    }
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &target),
            false => drop(std::fs::copy(entry.path(), target).unwrap()),
        }
    }
}

#[actix_rt::test]
async fn events_published_offline_survive_a_kill_and_arrive_once_each_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(&folder.path().join("pki"));
    let mut listener = cloud.script.listen();
    let identity = cloud.join("e1", &folder.path().join("e1")).await;
    let store = folder.path().join("store");
    let offline = Edge::start(&identity, NOWHERE, &store).await;
    let events: Vec<Envelope> = (0..50).map(|n| message(&n.to_string())).collect();
    for envelope in &events {
        assert_eq!(offline.publish(envelope.clone()).await, Settled::applied(), "durable, though nobody is there");
    }
    assert_eq!(offline.publish(events[7].clone()).await, Settled::superseded(), "a repeat is known by its id");

    // The disk as a kill would leave it now: nothing was stopped and nothing closed.
    let killed = folder.path().join("killed");
    copy(&store, &killed);
    let edge = Edge::start(&identity, &cloud.link, &killed).await;
    for sent in &events {
        assert_eq!(next_event(&mut listener).await, *sent);
    }
    edge.outbox_is_empty().await;
    assert_eq!(edge.publish(message("online")).await, Settled::applied());
    assert_eq!(text(&next_event(&mut listener).await), "online", "none came twice");
    edge.outbox_is_empty().await;
    edge.stop().await;
    offline.stop().await;
    cloud.system.stop(SOON).await;
}

#[actix_rt::test]
async fn a_full_outbox_leaves_one_marker_in_place_of_what_it_dropped() {
    let folder = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(&folder.path().join("pki"));
    let mut listener = cloud.script.listen();
    let identity = cloud.join("e1", &folder.path().join("e1")).await;
    let store = folder.path().join("store");
    let bounds = Bounds { max_events: 4, ..Bounds::default() };
    let offline = Edge::with(&identity, NOWHERE, &store, bounds, None).await;
    for n in 0..10 {
        assert_eq!(offline.publish(message(&n.to_string())).await, Settled::applied());
    }
    assert_eq!(offline.in_outbox(), 5);
    let huge = offline.publish(message(&"x".repeat(9 << 20))).await;
    assert_eq!(huge.code, 413, "{}", huge.reason);
    let told = ["taken", "events", "count_drops", "age_drops"].map(|name| offline.told(name));
    assert_eq!(told, [10, 4, 6, 0], "told as metrics, too");
    assert!(offline.told("bytes") > 0 && offline.told("dropped_bytes") > offline.told("bytes"));
    offline.stop().await;

    let edge = Edge::with(&identity, &cloud.link, &store, bounds, None).await;
    let mut came = Vec::new();
    for _ in 0..5 {
        came.push(text(&next_event(&mut listener).await));
    }
    assert_eq!(came, ["6 dropped by count", "6", "7", "8", "9"]);
    edge.outbox_is_empty().await;
    // The marker is applied as well.
    assert_eq!(["applied", "events", "bytes"].map(|name| edge.told(name)), [5, 0, 0]);
    edge.stop().await;
    cloud.system.stop(SOON).await;
}

#[actix_rt::test]
async fn an_event_that_the_cloud_could_not_take_comes_again_with_its_id_and_holds_up_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(&folder.path().join("pki"));
    let mut listener = cloud.script.listen();
    *cloud.script.refuse.lock().unwrap() = 1;
    let identity = cloud.join("e1", &folder.path().join("e1")).await;
    let edge = Edge::start(&identity, &cloud.link, &folder.path().join("store")).await;
    heard(&mut listener, connected).await;
    let began = std::time::Instant::now();
    for name in ["first", "second"] {
        assert_eq!(edge.publish(message(name)).await, Settled::applied());
    }
    let came = [next_event(&mut listener).await, next_event(&mut listener).await, next_event(&mut listener).await];
    assert_eq!(came.each_ref().map(text), ["first", "second", "first"]);
    assert_eq!(came[0].id, came[2].id);
    assert!(began.elapsed() >= RETRY_FIRST);
    edge.outbox_is_empty().await;
    edge.stop().await;
    cloud.system.stop(SOON).await;
}

#[actix_rt::test]
async fn a_link_that_breaks_before_the_cloud_has_settled_loses_no_event() {
    let folder = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(&folder.path().join("pki"));
    let mut listener = cloud.script.listen();
    // Nothing is settled for good in this session.
    *cloud.script.refuse.lock().unwrap() = u32::MAX;
    let identity = cloud.join("e1", &folder.path().join("e1")).await;
    let edge = Edge::start(&identity, &cloud.link, &folder.path().join("store")).await;
    let names: Vec<String> = (0..20).map(|n| n.to_string()).collect();
    for name in &names {
        assert_eq!(edge.publish(message(name)).await, Settled::applied());
    }
    next_event(&mut listener).await;
    *cloud.script.refuse.lock().unwrap() = 0;
    cloud.system.stop(SOON).await;
    assert!(edge.in_outbox() > 0);

    let mut listener = cloud.script.listen();
    let (again, _) = Cloud::serve(&cloud.authority, &cloud.registrar, &cloud.tokens, &cloud.listener, &cloud.script);
    let mut missing: BTreeSet<String> = names.into_iter().collect();
    while !missing.is_empty() {
        missing.remove(&text(&next_event(&mut listener).await));
    }
    edge.outbox_is_empty().await;
    edge.stop().await;
    again.stop(SOON).await;
}

/// Takes the cloud's events, as their text says.
#[derive(Clone)]
pub(super) struct Taker(mpsc::Sender<String>, Arc<Semaphore>);

impl Actor for Taker {
    type Context = Context<Self>;
}

impl Component for Taker {
    const NAME: &'static str = "taker";
    const STAGE: Stage = Stage::Processor;

    fn contract(contract: &mut Contract<Self>) {
        contract.answers::<EventReceived>();
    }
}

impl Handler<EventReceived> for Taker {
    type Result = actix::ResponseFuture<Settled>;

    fn handle(&mut self, received: EventReceived, _: &mut Context<Self>) -> Self::Result {
        let text = text(&received.envelope.unwrap());
        self.0.try_send(text.clone()).unwrap();
        let late = Arc::clone(&self.1);
        Box::pin(async move {
            match text.as_str() {
                "no" => Settled::rejected(422, "not this one"),
                "late" => {
                    late.acquire().await.unwrap().forget();
                    Settled::rejected(500, "nobody waits for this")
                }
                _ => Settled::applied(),
            }
        })
    }
}

async fn send(cloud: &Cloud, envelope: &Envelope, timeout_ms: u32) -> Settled {
    let port: Port<SendEventToNode> = cloud.system.port();
    let message = SendEventToNode { node: "e1".into(), envelope: Some(envelope.clone()), timeout_ms };
    port.ask(message, SOON).await.unwrap()
}

#[actix_rt::test]
async fn an_event_for_a_node_takes_effect_once_and_its_sender_knows() {
    let folder = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(&folder.path().join("pki"));
    let mut listener = cloud.script.listen();
    let identity = cloud.join("e1", &folder.path().join("e1")).await;
    let store = folder.path().join("store");
    let hello = message("hello");
    assert_eq!(send(&cloud, &hello, 0).await.code, 503, "no session, and nothing is kept for one");

    let (taken, mut effects) = mpsc::channel(100);
    let late = Arc::new(Semaphore::new(0));
    let taker = Taker(taken, Arc::clone(&late));
    let edge = Edge::with(&identity, &cloud.link, &store, Bounds::default(), Some(taker.clone())).await;
    heard(&mut listener, connected).await;
    assert_eq!(send(&cloud, &hello, 0).await, Settled::applied());
    assert_eq!(send(&cloud, &hello, 0).await, Settled::superseded());
    let no = message("no");
    for _ in 0..2 {
        assert_eq!(send(&cloud, &no, 0).await.code, 422, "what had no effect may be tried again");
    }
    let not_an_event = Envelope { id: Vec::new().into(), ..message("x") };
    assert_eq!(send(&cloud, &not_an_event, 0).await.code, 400);
    assert_eq!(send(&cloud, &message("late"), 300).await.code, 504);
    let last = message("late");
    let (waits, ()) = tokio::join!(send(&cloud, &last, 60_000), async {
        for _ in 0..2 {
            while effects.recv().await.unwrap() != "late" {}
        }
        // The disk as a kill would leave it, and then no session any more.
        copy(&store, &folder.path().join("killed"));
        tokio::join!(edge.stop(), async {
            heard(&mut listener, |heard| matches!(heard, Heard::Session { connected: false })).await;
            late.add_permits(2);
        });
    });
    assert_eq!(waits.code, 503, "{}", waits.reason);

    let killed = folder.path().join("killed");
    let edge = Edge::with(&identity, &cloud.link, &killed, Bounds::default(), Some(taker)).await;
    heard(&mut listener, connected).await;
    assert_eq!(send(&cloud, &hello, 0).await, Settled::superseded(), "remembered over a kill");
    assert_eq!(send(&cloud, &message("next"), 0).await, Settled::applied());
    assert_eq!(effects.recv().await.unwrap(), "next");
    edge.stop().await;
    cloud.system.stop(SOON).await;
}

#[actix_rt::test]
async fn an_edge_where_nobody_takes_events_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(&folder.path().join("pki"));
    let mut listener = cloud.script.listen();
    let identity = cloud.join("e1", &folder.path().join("e1")).await;
    let edge = Edge::start(&identity, &cloud.link, &folder.path().join("store")).await;
    heard(&mut listener, connected).await;
    assert_eq!(send(&cloud, &message("hello"), 0).await.code, 501);
    edge.stop().await;
    cloud.system.stop(SOON).await;
}
