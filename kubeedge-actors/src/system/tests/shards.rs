//! A component over several arbiters: where its messages go, and what its shards have to do with each other.

use super::probe::{LONG, Log, Probe, SECOND, quick};
use crate::system::{
    AskError, Component, Context, Contract, Exit, Overflow, Ports, Shard, Stage, System, SystemBuilder, TryTellError,
    WiringFault,
};
use actix::{Actor, AsyncContext, Handler, Message, ResponseActFuture, fut::wrap_future};
use actix_rt::{Arbiter, ArbiterHandle};
use proptest::prelude::*;
use std::{
    collections::{HashMap, HashSet},
    thread::ThreadId,
    time::Duration,
};

const SHARDS: usize = 3;

/// The sessions of some of the nodes.
struct Sessions {
    shard: Shard,
    log: Log,
    /// What came of each node, in this life.
    visits: HashMap<String, Vec<u32>>,
}

impl Actor for Sessions {
    type Context = Context<Self>;
}

impl Component for Sessions {
    const NAME: &'static str = "sessions";
    const STAGE: Stage = Stage::Link;
    const CAPACITY: usize = 4;

    fn contract(contract: &mut Contract<Self>) {
        contract.answers_by::<Visit, _>(|visit| visit.node.clone()).answers_by::<Pause, _>(|pause| pause.node.clone());
        contract.may_listen::<Everybody>(Overflow::wait());
    }

    fn stop(&mut self, _: &mut Context<Self>) -> ResponseActFuture<Self, ()> {
        self.log.add(format!("{} stopped", self.shard.index));
        Box::pin(actix::fut::ready(()))
    }
}

/// Answered with the shard, its thread, and what came of this node so far. 0 panics.
#[derive(Message)]
#[rtype(result = "(Shard, ThreadId, Vec<u32>)")]
struct Visit {
    node: String,
    number: u32,
}

impl actix::dev::MessageResponse<Sessions, Visit> for (Shard, ThreadId, Vec<u32>) {
    fn handle(self, _: &mut Context<Sessions>, reply: Option<actix::dev::OneshotSender<Self>>) {
        let _ = reply.map(|reply| reply.send(self));
    }
}

impl Handler<Visit> for Sessions {
    type Result = (Shard, ThreadId, Vec<u32>);

    fn handle(&mut self, Visit { node, number }: Visit, _: &mut Context<Self>) -> Self::Result {
        assert_ne!(number, 0, "on purpose");
        let visits = self.visits.entry(node).or_default();
        visits.push(number);
        (self.shard, std::thread::current().id(), visits.clone())
    }
}

/// The shard of this node handles nothing until this is used or dropped.
#[derive(Message)]
#[rtype(result = "()")]
struct Pause {
    node: String,
    until: tokio::sync::oneshot::Receiver<()>,
}

impl Handler<Pause> for Sessions {
    type Result = ();

    fn handle(&mut self, Pause { until, .. }: Pause, ctx: &mut Context<Self>) {
        ctx.wait(wrap_future(async move {
            let _ = until.await;
        }));
    }
}

#[derive(Clone, Message)]
#[rtype(result = "()")]
struct Everybody;

impl Handler<Everybody> for Sessions {
    type Result = ();

    fn handle(&mut self, _: Everybody, _: &mut Context<Self>) {
        self.log.add(format!("{} heard", self.shard.index));
    }
}

/// Arbiters that end with the test.
struct Arbiters(Vec<Arbiter>);

impl Arbiters {
    fn new(n: usize) -> Self {
        Self((0..n).map(|_| Arbiter::new()).collect())
    }

    fn handles(&self) -> Vec<ArbiterHandle> {
        self.0.iter().map(Arbiter::handle).collect()
    }
}

impl Drop for Arbiters {
    fn drop(&mut self) {
        for arbiter in &self.0 {
            arbiter.stop();
        }
    }
}

fn sharded(arbiters: &Arbiters, log: &Log) -> SystemBuilder {
    let log = log.clone();
    let built = move |_: &Ports, shard| Sessions { shard, log: log.clone(), visits: HashMap::new() };
    System::builder("sharded").sharded(&arbiters.handles(), built).restart_policy(quick(5))
}

fn visit(node: impl Into<String>, number: u32) -> Visit {
    Visit { node: node.into(), number }
}

/// Two nodes that do not share a shard.
fn apart() -> (String, String) {
    let of = |shard: usize| {
        let mut nodes = (0..1000).map(|n| format!("node-{n}"));
        nodes.find(|node| Shard { index: shard, of: SHARDS }.has(node)).unwrap()
    };
    (of(0), of(1))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]
    #[test]
    fn a_key_is_always_at_one_shard_and_its_messages_arrive_in_order(
        nodes in proptest::collection::vec("[a-z]{1,8}", 1..60),
    ) {
        actix_rt::System::new().block_on(async {
            let (arbiters, log) = (Arbiters::new(SHARDS), Log::default());
            let system = sharded(&arbiters, &log).start().unwrap();
            let port = system.port::<Visit>();
            let mut told: HashMap<&String, Vec<u32>> = HashMap::new();
            for (number, node) in (1..).zip(&nodes) {
                port.tell(visit(node, number)).await.unwrap();
                told.entry(node).or_default().push(number);
            }
            let mut threads: HashMap<usize, ThreadId> = HashMap::new();
            for (node, mut numbers) in told {
                numbers.push(1000);
                let (shard, thread, came) = port.ask(visit(node, 1000), LONG).await.unwrap();
                assert_eq!(came, numbers, "all of {node} in one place");
                assert!(shard.has(node) && shard.of == SHARDS);
                assert_eq!(*threads.entry(shard.index).or_insert(thread), thread);
                assert_ne!(thread, std::thread::current().id());
            }
            let distinct: HashSet<_> = threads.values().collect();
            assert_eq!(distinct.len(), threads.len(), "a thread each");
            system.stop(LONG).await;
        });
    }
}

#[actix_rt::test]
async fn keys_are_spread_over_all_shards() {
    for of in 1..=8 {
        let mut counts = vec![0; of];
        for n in 0..of * 1000 {
            let node = format!("node-{n}");
            let here: Vec<_> = (0..of).filter(|index| Shard { index: *index, of }.has(&node)).collect();
            assert_eq!(here.len(), 1);
            counts[here[0]] += 1;
        }
        assert!(counts.iter().all(|count| (800..1200).contains(count)), "{counts:?}");
    }
}

#[actix_rt::test]
async fn a_shard_is_supervised_by_itself() {
    let (arbiters, log) = (Arbiters::new(SHARDS), Log::default());
    let system = sharded(&arbiters, &log).start().unwrap();
    let port = system.port::<Visit>();
    let (a, b) = apart();
    for node in [&a, &b] {
        port.ask(visit(node, 1), LONG).await.unwrap();
    }
    assert_eq!(port.ask(visit(&a, 0), LONG).await.unwrap_err(), AskError::Crashed);
    let (shard, _, visits) = port.ask(visit(&a, 2), LONG).await.unwrap();
    assert_eq!((shard.index, visits), (0, vec![2]), "the same shard, its state new");
    assert_eq!(port.ask(visit(&b, 2), LONG).await.unwrap().2, [1, 2]);
    let counts: Vec<_> = system.observe().iter().map(|one| (one.name, one.restarts, one.unanswered)).collect();
    assert_eq!(counts, [("sessions/0", 1, 1), ("sessions/1", 0, 0), ("sessions/2", 0, 0)]);
    system.stop(LONG).await;
}

#[actix_rt::test]
async fn a_shard_that_ends_for_good_stops_the_system() {
    let (arbiters, log) = (Arbiters::new(SHARDS), Log::default());
    let system = sharded(&arbiters, &log).restart_policy(quick(0)).start().unwrap();
    let (_, b) = apart();
    let port = system.port::<Visit>();
    port.tell(visit(&b, 0)).await.unwrap();
    assert_eq!(system.failed().await, ("sessions/1", Exit::Panicked));
    let exits = system.stop(LONG).await;
    assert_eq!(exits, [("sessions/0", Exit::Stopped), ("sessions/1", Exit::Panicked), ("sessions/2", Exit::Stopped)]);
    assert_eq!(port.ask(visit(&b, 1), LONG).await.unwrap_err(), AskError::Stopped);
}

#[actix_rt::test]
async fn a_full_shard_keeps_nobody_from_the_others() {
    let (arbiters, log) = (Arbiters::new(SHARDS), Log::default());
    let system = sharded(&arbiters, &log).start().unwrap();
    let (a, b) = apart();
    let (release, until) = tokio::sync::oneshot::channel();
    system.port().ask(Pause { node: a.clone(), until }, LONG).await.unwrap();
    let port = system.port::<Visit>();
    for number in 1..=4 {
        port.try_tell(visit(&a, number)).unwrap();
    }
    assert!(matches!(port.try_tell(visit(&a, 5)), Err(TryTellError::Full(_))));
    // Who waits for room there gets it there.
    let waiting = actix_rt::spawn({
        let (port, a) = (port.clone(), a.clone());
        async move { port.ask(visit(a, 5), LONG).await }
    });
    assert_eq!(port.ask(visit(&b, 1), LONG).await.unwrap().2, [1]);
    release.send(()).unwrap();
    assert_eq!(waiting.await.unwrap().unwrap().2, [1, 2, 3, 4, 5]);
    system.stop(LONG).await;
}

#[actix_rt::test]
async fn shards_stop_in_their_stage_with_their_queues_finished() {
    let (arbiters, log) = (Arbiters::new(SHARDS), Log::default());
    let (source, store) = (log.clone(), log.clone());
    let system = sharded(&arbiters, &log)
        .component(move |_: &Ports| Probe::<3>::new(&store))
        .component(move |_: &Ports| Probe::<0>::new(&source))
        .announces::<Everybody>()
        .start()
        .unwrap();
    let (a, _) = apart();
    let (release, until) = tokio::sync::oneshot::channel();
    system.port().ask(Pause { node: a, until }, LONG).await.unwrap();
    system.topic::<Everybody>().announce(Everybody).await;
    let stopping = actix_rt::spawn({
        let system = system.clone();
        async move { system.stop(LONG).await }
    });
    while log.count("1 stopped") + log.count("2 stopped") < 2 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!((log.count("p0 stopped"), log.count("p3 stopped"), log.count("0 stopped")), (1, 0, 0));
    release.send(()).unwrap();
    assert!(stopping.await.unwrap().iter().all(|(_, exit)| *exit == Exit::Stopped));
    let last: Vec<_> = log.all().into_iter().rev().take(3).collect();
    assert_eq!(last, ["p3 stopped", "0 stopped", "0 heard"], "what was queued came before the stop");
}

#[actix_rt::test]
async fn every_shard_hears_every_event() {
    let (arbiters, log) = (Arbiters::new(SHARDS), Log::default());
    let system = sharded(&arbiters, &log).announces::<Everybody>().start().unwrap();
    system.topic::<Everybody>().announce(Everybody).await;
    system.stop(20 * SECOND).await;
    let heard = ["0 heard", "1 heard", "2 heard"].map(|entry| log.count(entry));
    assert_eq!(heard, [1, 1, 1]);
}

#[actix_rt::test]
async fn a_message_without_a_key_to_several_shards_is_a_start_up_error() {
    let arbiters = Arbiters::new(2);
    let start = |handles: &[ArbiterHandle]| {
        let log = Log::default();
        System::builder("keyless").sharded(handles, move |_: &Ports, _| Probe::<0>::new(&log)).start()
    };
    let error = start(&arbiters.handles()).unwrap_err();
    assert_eq!(error.faults.len(), 5);
    assert!(error.faults.iter().all(|fault| matches!(fault, WiringFault::NoKey { component: "p0", .. })), "{error}");
    assert!(error.to_string().contains("say `contract.answers_by` there"), "{error}");
    let none = start(&[]).unwrap_err();
    assert_eq!(none.faults, [WiringFault::NoShard { component: "p0" }]);
    // One shard is no choice.
    let system = start(&arbiters.handles()[..1]).unwrap();
    assert_eq!(system.stop(20 * SECOND).await, [("p0/0", Exit::Stopped)]);
}
