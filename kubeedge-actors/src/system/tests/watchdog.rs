//! Components that make no progress: which are found, and what becomes of them.

use super::probe::*;
use crate::system::{
    AskError, Blocked, Component, Context, Contract, Exit, Heartbeat, Phase, Port, Ports, Stage, System, SystemBuilder,
};
use actix::{Actor, AsyncContext, AtomicResponse, Handler, Message, ResponseActFuture, fut::wrap_future};
use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
        mpsc,
    },
    time::Duration,
};

/// Shorter than the default, so that the tests that need real time end soon.
const LIMIT: Duration = Duration::from_millis(600);

/// Has a heartbeat of [`LIMIT`].
struct Hasty {
    log: Log,
    /// What it declared when it started.
    heartbeat: Option<Heartbeat>,
}

impl Actor for Hasty {
    type Context = Context<Self>;
}

impl Component for Hasty {
    const NAME: &'static str = "hasty";
    const STAGE: Stage = Stage::Processor;
    const HEARTBEAT: Duration = LIMIT;
    const IN_HAND: usize = 2;

    fn contract(contract: &mut Contract<Self>) {
        contract.answers::<Do>().answers::<Exclusively>().answers::<Besides>();
    }
}

/// Runs in the handler.
#[derive(Message)]
#[rtype(result = "()")]
struct Do(What);

type What = Box<dyn FnOnce(&mut Hasty, &mut Context<Hasty>) + Send>;

impl Do {
    fn new(what: impl FnOnce(&mut Hasty, &mut Context<Hasty>) + Send + 'static) -> Self {
        Self(Box::new(what))
    }
}

impl Handler<Do> for Hasty {
    type Result = ();

    fn handle(&mut self, Do(what): Do, ctx: &mut Context<Self>) {
        what(self, ctx);
        self.log.add("did");
    }
}

/// Answered after so long; nothing else is handled meanwhile.
#[derive(Message)]
#[rtype(result = "()")]
struct Exclusively(Duration);

impl Handler<Exclusively> for Hasty {
    type Result = AtomicResponse<Self, ()>;

    fn handle(&mut self, Exclusively(time): Exclusively, _: &mut Context<Self>) -> Self::Result {
        AtomicResponse::new(Box::pin(wrap_future(tokio::time::sleep(time))))
    }
}

/// Answered after so long.
#[derive(Message)]
#[rtype(result = "()")]
struct Besides(Duration);

impl Handler<Besides> for Hasty {
    type Result = ResponseActFuture<Self, ()>;

    fn handle(&mut self, Besides(time): Besides, _: &mut Context<Self>) -> Self::Result {
        Box::pin(wrap_future(tokio::time::sleep(time)))
    }
}

fn hasty(log: &Log) -> SystemBuilder {
    let log = log.clone();
    let built = move |_: &Ports| {
        log.add("built");
        Hasty { log: log.clone(), heartbeat: None }
    };
    System::builder("watched").component(built).restart_policy(quick(2))
}

fn asked<M>(port: &Port<M>, message: M) -> actix_rt::task::JoinHandle<Result<(), AskError>>
where
    M: Message<Result = ()> + Send + 'static,
{
    let port = port.clone();
    actix_rt::spawn(async move { port.ask(message, LONG).await })
}

#[actix_rt::test]
async fn an_exclusive_future_that_does_not_end_is_dropped_its_asker_told_and_the_component_built_again() {
    tokio::time::pause();
    let log = Log::default();
    let system = hasty(&log).start().unwrap();
    let held = asked(&system.port(), Exclusively(LONG));
    let before = tokio::time::Instant::now();
    // Queued behind it, and kept.
    let behind = asked(&system.port(), Do::new(|_, _| ()));
    assert_eq!(held.await.unwrap(), Err(AskError::Crashed));
    let took = before.elapsed();
    assert!(took >= LIMIT && took <= LIMIT * 3 / 2, "{took:?}");
    assert_eq!(behind.await.unwrap(), Ok(()));
    let observed = &system.observe()[0];
    assert_eq!((observed.stuck, observed.restarts, observed.panics, observed.phase), (1, 1, 0, Phase::Running));
    assert_eq!(log.count("built"), 2);
}

#[actix_rt::test]
async fn long_work_that_goes_on_is_not_stuck() {
    tokio::time::pause();
    let log = Log::default();
    let system = hasty(&log).start().unwrap();
    // Always held, by one after the other; always one reply under way; idle for long.
    for _ in 0..10 {
        assert_eq!(system.port().ask(Exclusively(LIMIT * 3 / 4), LONG).await, Ok(()));
        assert_eq!(system.port().ask(Besides(LIMIT * 3), LONG).await, Ok(()));
    }
    tokio::time::sleep(LIMIT * 100).await;
    assert_eq!((system.observe()[0].stuck, system.observe()[0].restarts), (0, 0));
}

#[actix_rt::test]
async fn messages_that_wait_behind_replies_that_do_not_end_are_noticed() {
    tokio::time::pause();
    let log = Log::default();
    let system = hasty(&log).start().unwrap();
    let replies = [asked(&system.port(), Besides(LONG)), asked(&system.port(), Besides(LONG))];
    tokio::time::sleep(LIMIT * 10).await;
    assert_eq!(system.observe()[0].stuck, 0, "nobody waits");
    assert_eq!(system.port().ask(Do::new(|_, _| ()), LONG).await, Ok(()));
    assert_eq!((system.observe()[0].stuck, system.observe()[0].restarts), (1, 1));
    for reply in replies {
        assert_eq!(reply.await.unwrap(), Err(AskError::Crashed));
    }
}

#[actix_rt::test]
async fn a_component_that_gets_stuck_again_and_again_ends_as_stuck_and_the_system_stops() {
    tokio::time::pause();
    let log = Log::default();
    let (log1, calm) = (log.clone(), LIMIT / 2);
    // Its lives last longer than calm, but without progress: that is none.
    let system = hasty(&log)
        .component(move |_: &Ports| Probe::<1>::new(&log1))
        .restart_policy(crate::system::RestartPolicy { calm, ..quick(2) })
        .start()
        .unwrap();
    let failed = system.failed();
    for _ in 0..3 {
        let _ = system.port().ask(Exclusively(LONG), LONG).await;
    }
    assert_eq!(failed.await, ("hasty", Exit::Stuck));
    assert_eq!(system.stop(LONG).await, [("hasty", Exit::Stuck), ("p1", Exit::Stopped)]);
    assert_eq!((log.count("built"), system.observe()[0].stuck), (3, 3));
}

#[actix_rt::test]
async fn a_declared_heartbeat_that_is_missed_ends_the_life_and_the_next_one_declares_anew() {
    tokio::time::pause();
    let log = Log::default();
    let system = hasty(&log).start().unwrap();
    let beats = Arc::new(AtomicU32::new(0));
    let (within, counted) = (4 * SECOND, Arc::clone(&beats));
    let declare = Do::new(move |_, ctx| {
        let heartbeat = ctx.heartbeat("the relist", within);
        ctx.run_interval(within * 3 / 4, move |_, _| {
            // Eight times, then the work has died without a word.
            if counted.fetch_add(1, Ordering::SeqCst) < 8 {
                heartbeat.beat();
            }
        });
    });
    system.port().ask(declare, LONG).await.unwrap();
    tokio::time::sleep(within * 6).await;
    assert_eq!(system.observe()[0].stuck, 0);
    tokio::time::sleep(within * 2).await;
    assert_eq!((system.observe()[0].stuck, system.observe()[0].restarts), (1, 1));
    // The life that was built has declared none.
    tokio::time::sleep(within * 20).await;
    assert_eq!(system.observe()[0].stuck, 1);
}

#[actix_rt::test]
async fn work_that_is_done_ends_its_heartbeat() {
    tokio::time::pause();
    let log = Log::default();
    let system = hasty(&log).start().unwrap();
    let begin = Do::new(|hasty, ctx| hasty.heartbeat = Some(ctx.heartbeat("a copy", 2 * SECOND)));
    system.port().ask(begin, LONG).await.unwrap();
    tokio::time::sleep(SECOND).await;
    let end = Do::new(|hasty, _| {
        if let Some(heartbeat) = hasty.heartbeat.take() {
            heartbeat.end();
        }
    });
    system.port().ask(end, LONG).await.unwrap();
    tokio::time::sleep(LONG).await;
    assert_eq!(system.observe()[0].stuck, 0);
}

#[actix_rt::test]
async fn heartbeats_are_bounded() {
    tokio::time::pause();
    let log = Log::default();
    let system = hasty(&log).start().unwrap();
    let declare = Do::new(|_, ctx| {
        for _ in 0..64 {
            ctx.heartbeat("work that is done", SECOND).end();
            let beating = ctx.heartbeat("work", SECOND);
            ctx.run_interval(SECOND / 4, move |_, _| beating.beat());
        }
        // One too many: not watched, so never missed.
        let _ = ctx.heartbeat("too much", SECOND);
    });
    system.port().ask(declare, LONG).await.unwrap();
    tokio::time::sleep(100 * SECOND).await;
    assert_eq!(system.observe()[0].stuck, 0);
}

/// Holds the thread, as a handler must not.
fn block(release: mpsc::Receiver<()>) -> Do {
    Do::new(move |_, _| {
        let _ = release.recv();
    })
}

/// Waits, in real time, for what another thread is to find.
async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let look = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    assert!(tokio::time::timeout(60 * SECOND, look).await.is_ok(), "{what}");
}

/// A component on an arbiter of its own.
fn elsewhere(log: &Log) -> (actix_rt::Arbiter, SystemBuilder) {
    let (arbiter, log) = (actix_rt::Arbiter::new(), log.clone());
    let built = move |_: &Ports| {
        log.add("built");
        Hasty { log: log.clone(), heartbeat: None }
    };
    let builder = System::builder("blocked").component_on(&arbiter.handle(), built).restart_policy(quick(2));
    (arbiter, builder)
}

#[actix_rt::test]
async fn a_handler_that_blocks_its_arbiter_is_seen_from_outside_and_its_life_ends_when_it_returns() {
    let log = Log::default();
    let (arbiter, builder) = elsewhere(&log);
    let system = builder.start().unwrap();
    let (release, released) = mpsc::channel();
    let held = asked(&system.port(), block(released));
    until("it is found", || system.observe()[0].stuck == 1).await;
    let observed = &system.observe()[0];
    assert!(observed.blocking >= LIMIT, "{:?}", observed.blocking);
    assert_eq!((observed.restarts, observed.exit.clone()), (0, None), "nobody can end a thread");
    release.send(()).unwrap();
    // It was handled after all.
    assert_eq!(held.await.unwrap(), Ok(()));
    until("it is built again", || log.count("built") == 2).await;
    assert_eq!(system.port().ask(Do::new(|_, _| ()), LONG).await, Ok(()));
    let observed = &system.observe()[0];
    assert_eq!((observed.stuck, observed.restarts, log.count("built")), (1, 1, 2));
    assert!(observed.blocking < LIMIT);
    system.stop(20 * SECOND).await;
    arbiter.stop();
}

#[actix_rt::test]
async fn a_handler_that_blocks_for_good_is_given_up_the_program_told_and_the_others_stopped_in_order() {
    let log = Log::default();
    let (arbiter, builder) = elsewhere(&log);
    let log1 = log.clone();
    let (told, tells) = mpsc::channel();
    let system = builder
        .component(move |_: &Ports| Probe::<1>::new(&log1))
        .when_blocked(move |blocked: &Blocked| {
            let _ = told.send((blocked.clone(), std::thread::current().name().map(str::to_owned)));
        })
        .start()
        .unwrap();
    let (release, released) = mpsc::channel();
    system.port().tell(block(released)).await.unwrap();
    assert_eq!(system.failed().await, ("hasty", Exit::Stuck));
    assert_eq!(system.stop(LONG).await, [("hasty", Exit::Stuck), ("p1", Exit::Stopped)]);
    until("the program is told", || {
        let Ok((blocked, thread)) = tells.try_recv() else { return false };
        assert_eq!((blocked.system.as_str(), blocked.component), ("blocked", "hasty"));
        assert!(blocked.held >= LIMIT * 2, "{:?}", blocked.held);
        assert_eq!(thread.as_deref(), Some("actor-watchdog"));
        true
    })
    .await;
    // Should it come back, it ends with its batch.
    release.send(()).unwrap();
    let port = system.port();
    while port.ask(Do::new(|_, _| ()), LONG).await != Err(AskError::Stopped) {}
    assert_eq!(log.count("built"), 1);
    arbiter.stop();
}

/// In more of a hurry than who blocks it.
struct Neighbour;

impl Actor for Neighbour {
    type Context = Context<Self>;
}

impl Component for Neighbour {
    const NAME: &'static str = "neighbour";
    const STAGE: Stage = Stage::Processor;
    const HEARTBEAT: Duration = Duration::from_millis(200);

    fn contract(contract: &mut Contract<Self>) {
        contract.answers::<Nudge>();
    }
}

#[derive(Message)]
#[rtype(result = "()")]
struct Nudge;

impl Handler<Nudge> for Neighbour {
    type Result = ();

    fn handle(&mut self, _: Nudge, ctx: &mut Context<Self>) {
        let heartbeat = ctx.heartbeat("its timer", Self::HEARTBEAT);
        ctx.run_interval(Self::HEARTBEAT / 4, move |_, _| heartbeat.beat());
    }
}

#[actix_rt::test]
async fn whoever_shares_the_arbiter_of_a_blocked_component_is_not_blamed() {
    let log = Log::default();
    let (arbiter, builder) = elsewhere(&log);
    let system = builder.component_on(&arbiter.handle(), |_: &Ports| Neighbour).start().unwrap();
    let (release, released) = mpsc::channel();
    let neighbour = system.port::<Nudge>();
    // It has declared a heartbeat, and a message waits for it.
    neighbour.ask(Nudge, LONG).await.unwrap();
    let held = asked(&system.port(), block(released));
    until("it is found", || system.observe()[0].blocking >= Neighbour::HEARTBEAT).await;
    neighbour.tell(Nudge).await.unwrap();
    until("it is found", || system.observe()[0].stuck == 1).await;
    release.send(()).unwrap();
    held.await.unwrap().unwrap();
    neighbour.ask(Nudge, LONG).await.unwrap();
    assert_eq!((system.observe()[1].stuck, system.observe()[1].restarts), (0, 0));
    system.stop(20 * SECOND).await;
    arbiter.stop();
}

#[actix_rt::test]
async fn a_handler_that_holds_its_arbiter_for_half_a_second_is_logged_by_its_message() {
    let (log, lines) = (Log::default(), Lines::default());
    let _logged = lines.follow();
    let system = hasty(&log).start().unwrap();
    // The first batch is timed; the next are not.
    system.port().ask(Do::new(|_, _| ()), LONG).await.unwrap();
    let (_kept, nothing) = mpsc::channel::<()>();
    // Until it is seen from outside: half a second, or more on a busy machine.
    let seen = system.clone();
    let slow = Do::new(move |_, _| {
        let begin = std::time::Instant::now();
        while seen.observe()[0].blocking.is_zero() && begin.elapsed() < 60 * SECOND {
            let _ = nothing.recv_timeout(Duration::from_millis(10));
        }
        assert!(begin.elapsed() >= Duration::from_millis(250));
    });
    system.port().ask(slow, LONG).await.unwrap();
    system.port().ask(Do::new(|_, _| ()), LONG).await.unwrap();
    let lines = lines.text();
    let held: Vec<_> = lines.lines().filter(|line| line.contains("held their arbiter")).collect();
    assert!(held.len() == 1 && held[0].contains("last=\"Do\""), "{lines}");
}
