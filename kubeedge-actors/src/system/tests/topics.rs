//! Events: who hears them, and what becomes of them when there is no room.

use super::probe::{LONG, Log, SECOND, quick};
use crate::system::{
    Component, Context, Contract, Drops, Exit, Overflow, Ports, Stage, System, SystemBuilder, Topic, WiringFault,
};
use actix::{Actor, AsyncContext, Handler, Message};
use std::sync::Arc;
use tokio::sync::{Notify, Semaphore};

/// `key` and `value`; a value of [`BAD`] panics in the handler.
#[derive(Clone, Debug, Message, PartialEq)]
#[rtype(result = "()")]
struct News {
    key: u8,
    value: u32,
}

const BAD: u32 = 666;

fn news(value: u32) -> News {
    News { key: (value % 10) as u8, value }
}

/// Listener `N`, which listens with another policy each; all queues hold 2 messages.
const WAITS: usize = 0;
const DROPS: usize = 1;
const BY_KEY: usize = 2;

/// Lets a listener go on, one event a permit.
#[derive(Clone)]
struct Valve {
    permits: Arc<Semaphore>,
    heard: Arc<Notify>,
    log: Log,
}

impl Valve {
    fn shut() -> Self {
        Self { permits: Arc::new(Semaphore::new(0)), heard: Arc::default(), log: Log::default() }
    }

    fn open() -> Self {
        let valve = Self::shut();
        valve.release();
        valve
    }

    fn release(&self) {
        self.permits.add_permits(1000);
    }

    async fn until(&self, entries: usize) -> Vec<String> {
        let look = async {
            while self.log.all().len() < entries {
                self.heard.notified().await;
            }
        };
        tokio::time::timeout(LONG, look).await.unwrap();
        self.log.all()
    }
}

struct Listener<const N: usize>(Valve);

impl<const N: usize> Actor for Listener<N> {
    type Context = Context<Self>;
}

impl<const N: usize> Component for Listener<N> {
    const NAME: &'static str = ["waits", "drops", "by key"][N];
    const STAGE: Stage = Stage::Processor;
    const CAPACITY: usize = 2;

    fn contract(contract: &mut Contract<Self>) {
        contract.listens::<News>(match N {
            WAITS => Overflow::wait(),
            DROPS => Overflow::drop_oldest(3),
            _ => Overflow::newest_per_key(3, |news: &News| news.key),
        });
    }
}

impl<const N: usize> Handler<News> for Listener<N> {
    type Result = ();

    fn handle(&mut self, news: News, ctx: &mut Context<Self>) {
        assert_ne!(news.value, BAD, "on purpose");
        self.0.log.add(news.value.to_string());
        self.0.heard.notify_one();
        let permits = Arc::clone(&self.0.permits);
        ctx.wait(actix::fut::wrap_future(async move { permits.acquire().await.unwrap().forget() }));
    }
}

fn listener<const N: usize>(valve: &Valve) -> impl Fn(&Ports) -> Listener<N> + Send + use<N> {
    let valve = valve.clone();
    move |_: &Ports| Listener::<N>(valve.clone())
}

fn with<const N: usize>(valve: &Valve) -> SystemBuilder {
    System::builder("topics").component(listener::<N>(valve)).announces::<News>()
}

/// The first event is in the handler and holds it; what follows piles up.
async fn held<const N: usize>(valve: &Valve) -> (System, Topic<News>) {
    let system = with::<N>(valve).restart_policy(quick(10)).start().unwrap();
    let topic = system.topic::<News>();
    topic.announce(news(0)).await;
    valve.until(1).await;
    (system, topic)
}

/// Announces what it is built for; what it takes out of the ports is the test's.
struct Announcer;

impl Actor for Announcer {
    type Context = Context<Self>;
}

impl Component for Announcer {
    const NAME: &'static str = "announcer";
    const STAGE: Stage = Stage::Source;

    fn contract(contract: &mut Contract<Self>) {
        contract.announces::<News>();
    }
}

#[actix_rt::test]
async fn every_listener_hears_every_event_in_order() {
    let (first, second) = (Valve::open(), Valve::open());
    let builder = System::builder("two").component(listener::<WAITS>(&first)).component(listener::<DROPS>(&second));
    let announcer = move |ports: &Ports| {
        let topic = ports.topic::<News>();
        assert!(topic.is_heard());
        actix_rt::spawn(async move {
            for value in 1..=3 {
                topic.announce(news(value)).await;
            }
        });
        Announcer
    };
    let _system = builder.component(announcer).start().unwrap();
    assert_eq!(first.until(3).await, ["1", "2", "3"]);
    assert_eq!(second.until(3).await, ["1", "2", "3"]);
}

#[actix_rt::test]
async fn an_event_nobody_listens_to_is_announced_in_vain() {
    let system = System::builder("deaf").component(|_: &Ports| Announcer).start().unwrap();
    let topic = system.topic::<News>();
    assert!(!topic.is_heard());
    topic.announce(news(1)).await;
    topic.try_announce(news(2)).unwrap();
}

#[actix_rt::test]
async fn an_announcement_waits_for_room_where_nothing_may_be_lost() {
    tokio::time::pause();
    let valve = Valve::shut();
    let (system, topic) = held::<WAITS>(&valve).await;
    topic.announce(news(1)).await;
    topic.announce(news(2)).await;
    // The queue is full: 3 waits, and its order is kept.
    let waiting = actix_rt::spawn({
        let topic = topic.clone();
        async move {
            for value in 3..20 {
                topic.announce(news(value)).await;
            }
        }
    });
    tokio::time::sleep(SECOND).await;
    assert!(!waiting.is_finished());
    assert_eq!((system.observe()[0].queued, valve.log.all().len()), (2, 1));
    valve.release();
    waiting.await.unwrap();
    let all: Vec<_> = (0..20).map(|value| value.to_string()).collect();
    assert_eq!(valve.until(20).await, all);
    assert_eq!(system.observe()[0].dropped, Drops::default());
}

#[actix_rt::test]
async fn a_listener_without_room_does_not_keep_the_event_from_the_others() {
    tokio::time::pause();
    let (full, free) = (Valve::shut(), Valve::open());
    let system = with::<WAITS>(&full).component(listener::<DROPS>(&free)).start().unwrap();
    let topic = system.topic::<News>();
    topic.announce(news(0)).await;
    full.until(1).await;
    topic.announce(news(1)).await;
    topic.announce(news(2)).await;
    assert!(tokio::time::timeout(SECOND, topic.announce(news(3))).await.is_err());
    assert_eq!(free.until(4).await, ["0", "1", "2", "3"]);
}

#[actix_rt::test]
async fn an_event_announced_at_once_is_heard_by_all_or_by_nobody() {
    tokio::time::pause();
    let (full, free) = (Valve::shut(), Valve::open());
    // The one with room comes first.
    let system = System::builder("all or nobody")
        .component(listener::<DROPS>(&free))
        .component(listener::<WAITS>(&full))
        .announces::<News>()
        .start()
        .unwrap();
    let topic = system.topic::<News>();
    topic.try_announce(news(0)).unwrap();
    full.until(1).await;
    topic.try_announce(news(1)).unwrap();
    topic.try_announce(news(2)).unwrap();
    let refused = topic.try_announce(news(3)).unwrap_err();
    assert_eq!((refused.listener, refused.event), ("waits", news(3)));
    full.release();
    full.until(3).await;
    topic.try_announce(news(4)).unwrap();
    assert_eq!(free.until(4).await, ["0", "1", "2", "4"]);
}

#[actix_rt::test]
async fn a_full_buffer_loses_the_oldest_and_counts_it() {
    let valve = Valve::shut();
    let (system, topic) = held::<DROPS>(&valve).await;
    for value in 1..=5 {
        topic.announce(news(value)).await;
    }
    let observed = &system.observe()[0];
    assert_eq!((observed.buffered, observed.queued), (3, 0));
    assert_eq!(observed.dropped, Drops { overflow: 2, ..Drops::default() });
    valve.release();
    assert_eq!(valve.until(4).await, ["0", "3", "4", "5"]);
    assert_eq!(system.observe()[0].buffered, 0);
}

#[actix_rt::test]
async fn a_newer_event_takes_the_place_of_an_older_one_of_its_key() {
    let valve = Valve::shut();
    let (system, topic) = held::<BY_KEY>(&valve).await;
    // Keys 1 2 1 3: one superseded. Key 4: one too many.
    for value in [1, 2, 11, 3, 4] {
        topic.announce(news(value)).await;
    }
    assert_eq!(system.observe()[0].dropped, Drops { overflow: 1, superseded: 1, stopped: 0 });
    valve.release();
    assert_eq!(valve.until(4).await, ["0", "2", "3", "4"]);
}

#[actix_rt::test]
async fn events_survive_the_rebuild_of_their_listener() {
    tokio::time::pause();
    let valve = Valve::shut();
    let (system, topic) = held::<DROPS>(&valve).await;
    for value in [BAD, 1, 2] {
        topic.announce(news(value)).await;
    }
    valve.release();
    assert_eq!(valve.until(3).await, ["0", "1", "2"]);
    assert_eq!(system.observe()[0].restarts, 1);
    topic.announce(news(3)).await;
    assert_eq!(valve.until(4).await.last().unwrap(), "3");
}

#[actix_rt::test]
async fn a_stop_finishes_the_events_that_were_announced_before() {
    tokio::time::pause();
    let valve = Valve::shut();
    let (system, topic) = held::<DROPS>(&valve).await;
    for value in 1..=3 {
        topic.announce(news(value)).await;
    }
    let stopping = actix_rt::spawn({
        let system = system.clone();
        async move { system.stop(20 * SECOND).await }
    });
    tokio::time::sleep(SECOND).await;
    valve.release();
    assert_eq!(stopping.await.unwrap(), [("drops", Exit::Stopped)]);
    assert_eq!(valve.log.all(), ["0", "1", "2", "3"]);
    // Too late.
    topic.announce(news(4)).await;
    assert_eq!(system.observe()[0].dropped, Drops { stopped: 1, ..Drops::default() });
}

#[actix_rt::test]
async fn events_of_a_listener_that_is_dropped_are_counted() {
    tokio::time::pause();
    let valve = Valve::shut();
    let (system, topic) = held::<DROPS>(&valve).await;
    topic.announce(news(1)).await;
    topic.announce(news(2)).await;
    assert_eq!(system.stop(SECOND).await, [("drops", Exit::Stuck)]);
    let observed = &system.observe()[0];
    assert_eq!((observed.dropped.stopped, observed.buffered), (2, 0));
}

#[actix_rt::test]
async fn events_cross_arbiters() {
    let arbiter = actix_rt::Arbiter::new();
    let (waits, drops) = (Valve::open(), Valve::open());
    let system = System::builder("across")
        .component_on(&arbiter.handle(), listener::<WAITS>(&waits))
        .component_on(&arbiter.handle(), listener::<BY_KEY>(&drops))
        .announces::<News>()
        .start()
        .unwrap();
    let topic = system.topic::<News>();
    for value in 0..100 {
        topic.announce(news(value)).await;
    }
    assert_eq!(waits.until(100).await.len(), 100);
    // The last event of each key reaches who keeps it, however much was superseded on the way.
    while drops.log.count("99") == 0 {
        drops.heard.notified().await;
    }
    system.stop(20 * SECOND).await;
    let observed = &system.observe()[1];
    assert_eq!(observed.handled + observed.dropped.superseded + observed.dropped.overflow, 100);
    arbiter.stop();
}

#[actix_rt::test]
async fn an_event_nobody_announces_is_a_start_up_error_unless_it_may_be_missing() {
    let error = System::builder("hole").component(listener::<WAITS>(&Valve::open())).start().unwrap_err();
    assert_eq!(error.faults, [WiringFault::Unannounced { listener: "waits", event: "News" }]);
    assert!(error.to_string().starts_with("waits listens to News, which no component announces"), "{error}");
    System::builder("patient").component(|_: &Ports| Patient).start().unwrap();
}

#[actix_rt::test]
async fn a_topic_the_contract_does_not_name_is_a_start_up_error() {
    let sneaky = |ports: &Ports| {
        assert!(!ports.topic::<News>().is_heard());
        Patient
    };
    let error = System::builder("sneaky").component(sneaky).start().unwrap_err();
    assert_eq!(error.faults, [WiringFault::UndeclaredTopic { announcer: "patient", event: "News" }]);
}

#[actix_rt::test]
async fn an_event_that_somebody_answers_is_a_start_up_error() {
    let builder = System::builder("deaf").component(|_: &Ports| Announcer).component(|_: &Ports| Answerer);
    let error = builder.start().unwrap_err();
    let fault = WiringFault::AnsweredAndAnnounced { announcer: "announcer", answerer: "answerer", event: "News" };
    assert_eq!(error.faults, [fault]);
}

/// Listens if there is something to hear.
struct Patient;

impl Actor for Patient {
    type Context = Context<Self>;
}

impl Component for Patient {
    const NAME: &'static str = "patient";
    const STAGE: Stage = Stage::Processor;

    fn contract(contract: &mut Contract<Self>) {
        contract.may_listen::<News>(Overflow::wait());
    }
}

impl Handler<News> for Patient {
    type Result = ();

    fn handle(&mut self, _: News, _: &mut Context<Self>) {}
}

/// Waits to be asked what is announced.
struct Answerer;

impl Actor for Answerer {
    type Context = Context<Self>;
}

impl Component for Answerer {
    const NAME: &'static str = "answerer";
    const STAGE: Stage = Stage::Processor;

    fn contract(contract: &mut Contract<Self>) {
        contract.answers::<News>();
    }
}

impl Handler<News> for Answerer {
    type Result = ();

    fn handle(&mut self, _: News, _: &mut Context<Self>) {}
}
