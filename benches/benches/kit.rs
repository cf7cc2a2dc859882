//! What the actor kit costs above raw actix, with the same bound on the queue.
//!
//! `tell`: one sender, back-pressure when the queue is full. Raw actix has no such call that wakes up again, so its
//! sender tries and yields. `ask`: one question at a time, answer awaited; the kit's has a deadline, raw actix's none.
//! `ask x64`: 64 askers at once. Each within one arbiter and across two.
//!
//! `topic`: one event to 1, 8 and 64 listeners on one arbiter, none of which may lose it. Raw actix has no topics; its
//! announcer goes through its recipients one by one, and tries and yields where there is no room.

#![allow(missing_docs, reason = "criterion's macros make public items")]
#![allow(clippy::expect_used, reason = "a bench that cannot run should say so and end")]

use actix::{Actor, Addr, Handler, Message, Recipient};
use actix_rt::{Arbiter, System as Runtime, SystemRunner};
use criterion::{BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main, measurement::WallTime};
use kubeedge_actors::system::{Component, Context, Contract, Overflow, Ports, Stage, System, Topic};
use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// The bound of every queue here, messages: the kit's default.
const BOUND: usize = 256;
const ASKERS: u64 = 64;
const DEADLINE: Duration = Duration::from_secs(10);

struct Add(u64);

impl Message for Add {
    type Result = u64;
}

/// The raw actor.
struct Raw(u64);

impl Actor for Raw {
    type Context = actix::Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(BOUND);
    }
}

impl Handler<Add> for Raw {
    type Result = u64;

    fn handle(&mut self, Add(n): Add, _: &mut Self::Context) -> u64 {
        self.0 = self.0.wrapping_add(n);
        self.0
    }
}

/// The same as a component.
struct Kit(u64);

impl Actor for Kit {
    type Context = Context<Self>;
}

impl Component for Kit {
    const NAME: &'static str = "kit";
    const STAGE: Stage = Stage::Processor;
    const CAPACITY: usize = BOUND;

    fn contract(contract: &mut Contract<Self>) {
        contract.answers::<Add>();
    }
}

impl Handler<Add> for Kit {
    type Result = u64;

    fn handle(&mut self, Add(n): Add, _: &mut Context<Self>) -> u64 {
        self.0 = self.0.wrapping_add(n);
        self.0
    }
}

/// The ways a sender reaches its actor; each future resolves when everything sent has been handled.
trait Way: Clone + 'static {
    fn tell_all(self, n: u64) -> impl Future<Output = ()>;
    fn ask_all(self, n: u64) -> impl Future<Output = ()>;
}

impl Way for Addr<Raw> {
    async fn tell_all(self, n: u64) {
        for _ in 0..n {
            let mut message = Add(1);
            while let Err(full) = self.try_send(message) {
                message = full.into_inner();
                actix_rt::task::yield_now().await;
            }
        }
        self.ask_all(1).await;
    }

    async fn ask_all(self, n: u64) {
        for _ in 0..n {
            self.send(Add(1)).await.expect("an answer");
        }
    }
}

impl Way for kubeedge_actors::system::Port<Add> {
    async fn tell_all(self, n: u64) {
        for _ in 0..n {
            self.tell(Add(1)).await.expect("a running component");
        }
        self.ask_all(1).await;
    }

    async fn ask_all(self, n: u64) {
        for _ in 0..n {
            self.ask(Add(1), DEADLINE).await.expect("an answer");
        }
    }
}

fn measure<W: Way>(group: &mut BenchmarkGroup<'_, WallTime>, runtime: &SystemRunner, way: W, name: &str) {
    group.throughput(Throughput::Elements(1));
    group.bench_function(format!("tell/{name}"), |bencher| {
        bencher.iter_custom(|n| timed(runtime, way.clone().tell_all(n)));
    });
    group.bench_function(format!("ask/{name}"), |bencher| {
        bencher.iter_custom(|n| timed(runtime, way.clone().ask_all(n)));
    });
    group.bench_function(format!("ask x64/{name}"), |bencher| {
        bencher.iter_custom(|n| {
            let way = way.clone();
            timed(runtime, async move {
                // Rounded up, so that every asker has something to ask.
                let share = n.div_ceil(ASKERS);
                let askers: Vec<_> = (0..ASKERS).map(|_| actix_rt::spawn(way.clone().ask_all(share))).collect();
                for asker in askers {
                    asker.await.expect("an asker that ends");
                }
            })
            .mul_f64(n as f64 / (n.div_ceil(ASKERS) * ASKERS) as f64)
        });
    });
}

/// The sender is a task like any component: the future that `block_on` drives itself pays a system call to be woken.
fn timed(runtime: &SystemRunner, work: impl Future<Output = ()> + 'static) -> Duration {
    let task = async {
        let start = Instant::now();
        work.await;
        start.elapsed()
    };
    runtime.block_on(async { actix_rt::spawn(task).await.expect("a sender that ends") })
}

fn group<'a>(criterion: &'a mut Criterion, name: &str) -> BenchmarkGroup<'a, WallTime> {
    let mut group = criterion.benchmark_group(name);
    group.warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2)).sample_size(30);
    group
}

fn one_arbiter(criterion: &mut Criterion) {
    let mut group = group(criterion, "one arbiter");
    let runtime = Runtime::new();
    let raw = runtime.block_on(async { Raw(0).start() });
    measure(&mut group, &runtime, raw, "raw actix");
    let system = runtime.block_on(async { System::builder("bench").component(|_: &Ports| Kit(0)).start() });
    measure(&mut group, &runtime, system.expect("the wiring").port::<Add>(), "kit");
    group.finish();
}

fn two_arbiters(criterion: &mut Criterion) {
    let mut group = group(criterion, "two arbiters");
    let runtime = Runtime::new();
    let there = runtime.block_on(async { Arbiter::new() });
    let raw = Raw::start_in_arbiter(&there.handle(), |_| Raw(0));
    measure(&mut group, &runtime, raw, "raw actix");
    let system =
        runtime.block_on(async { System::builder("bench").component_on(&there.handle(), |_: &Ports| Kit(0)).start() });
    measure(&mut group, &runtime, system.expect("the wiring").port::<Add>(), "kit");
    there.stop();
    group.finish();
}

/// An event.
#[derive(Clone, Message)]
#[rtype(result = "()")]
struct News(u64);

/// How many events all listeners together have heard.
type Heard = Arc<AtomicU64>;

/// A listener that is a raw actor.
struct RawEar(Heard);

impl Actor for RawEar {
    type Context = actix::Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(BOUND);
    }
}

impl Handler<News> for RawEar {
    type Result = ();

    fn handle(&mut self, News(n): News, _: &mut Self::Context) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }
}

/// A listener that is a component.
struct KitEar(Heard);

impl Actor for KitEar {
    type Context = Context<Self>;
}

impl Component for KitEar {
    const NAME: &'static str = "ear";
    const STAGE: Stage = Stage::Processor;
    const CAPACITY: usize = BOUND;

    fn contract(contract: &mut Contract<Self>) {
        contract.listens::<News>(Overflow::wait());
    }
}

impl Handler<News> for KitEar {
    type Result = ();

    fn handle(&mut self, News(n): News, _: &mut Context<Self>) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }
}

/// The ways to tell everybody; each future resolves when everybody has heard everything.
trait Announcer: Clone + 'static {
    fn announce(&self, event: News) -> impl Future<Output = ()>;
}

impl Announcer for Arc<[Recipient<News>]> {
    async fn announce(&self, event: News) {
        for listener in self.iter() {
            let mut event = event.clone();
            while let Err(full) = listener.try_send(event) {
                event = full.into_inner();
                actix_rt::task::yield_now().await;
            }
        }
    }
}

impl Announcer for Topic<News> {
    async fn announce(&self, event: News) {
        Topic::announce(self, event).await;
    }
}

fn announce_all(runtime: &SystemRunner, announcer: &impl Announcer, heard: &Heard, listeners: u64, n: u64) -> Duration {
    let (announcer, heard) = (announcer.clone(), Arc::clone(heard));
    timed(runtime, async move {
        let all = heard.load(Ordering::Relaxed) + n * listeners;
        for _ in 0..n {
            announcer.announce(News(1)).await;
        }
        while heard.load(Ordering::Relaxed) < all {
            actix_rt::task::yield_now().await;
        }
    })
}

fn topic(criterion: &mut Criterion) {
    let mut group = group(criterion, "topic");
    let runtime = Runtime::new();
    for listeners in [1_usize, 8, 64] {
        let count = listeners as u64;
        group.throughput(Throughput::Elements(count));
        let heard = Heard::default();
        let raw: Arc<[Recipient<News>]> = runtime
            .block_on(async { (0..listeners).map(|_| RawEar(Arc::clone(&heard)).start().recipient()).collect() });
        group.bench_function(format!("raw actix to {listeners}"), |bencher| {
            bencher.iter_custom(|n| announce_all(&runtime, &raw, &heard, count, n));
        });
        let shared = Arc::clone(&heard);
        let system = runtime.block_on(async {
            // Every shard hears every event: many listeners of one type, here on one arbiter.
            let here = vec![Arbiter::current(); listeners];
            System::builder("bench").sharded(&here, move |_, _| KitEar(Arc::clone(&shared))).announces::<News>().start()
        });
        let topic = system.expect("the wiring").topic::<News>();
        group.bench_function(format!("kit to {listeners}"), |bencher| {
            bencher.iter_custom(|n| announce_all(&runtime, &topic, &heard, count, n));
        });
    }
    group.finish();
}

criterion_group!(benches, one_arbiter, two_arbiters, topic);
criterion_main!(benches);
