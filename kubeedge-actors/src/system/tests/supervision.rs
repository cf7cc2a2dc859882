use super::probe::*;
use crate::system::{AskError, Exit, Phase, Ports, RestartPolicy, System};
use actix::{ActorFutureExt, AsyncContext};
use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

fn panicking<const N: usize>() -> Run<N> {
    Run::new(|_, _| panic!("on purpose"))
}

#[actix_rt::test]
async fn address_and_queue_survive_a_panic_and_the_state_is_new() {
    tokio::time::pause();
    let log = Log::default();
    let system = one(&log);
    let add = system.port::<Add<0>>();
    assert_eq!(add.ask(Add(5), LONG).await, Ok(5));
    // The panic and three messages behind it are queued together.
    let release = hold::<0>(&system).await;
    system.port::<Run<0>>().try_tell(panicking()).unwrap();
    for n in 1..CAPACITY {
        add.try_tell(Add(n as u32)).unwrap();
    }
    release.send(()).unwrap();
    // The same port; 5 is forgotten, what was queued is not.
    assert_eq!(add.ask(Add(10), LONG).await, Ok(1 + 2 + 3 + 10));
    assert_eq!(log.count("p0 built"), 2);
    assert_eq!(log.count("p0 started"), 2);
    let observed = &system.observe()[0];
    assert_eq!((observed.panics, observed.restarts, observed.phase), (1, 1, Phase::Running));
}

#[actix_rt::test]
async fn the_message_in_hand_of_a_panic_is_answered_crashed() {
    tokio::time::pause();
    let log = Log::default();
    let system = one(&log);
    assert_eq!(system.port::<Run<0>>().ask(panicking(), LONG).await, Err(AskError::Crashed));
    assert_eq!(system.observe()[0].unanswered, 1);
    // It is not tried again.
    flush::<0>(&system).await;
    assert_eq!(system.observe()[0].panics, 1);
}

#[actix_rt::test]
async fn a_panic_in_started_is_a_failure_like_any_other() {
    tokio::time::pause();
    let log = Log::default();
    let lives = Arc::new(AtomicU32::new(0));
    let system = with_one(&log, move |probe| {
        let lives = Arc::clone(&lives);
        probe.on_start(move |_, _| assert!(lives.fetch_add(1, Ordering::SeqCst) >= 2, "too young"))
    })
    .start()
    .unwrap();
    assert_eq!(system.port::<Add<0>>().ask(Add(1), LONG).await, Ok(1));
    assert_eq!(log.count("p0 started"), 3);
    assert_eq!(system.observe()[0].restarts, 2);
}

#[actix_rt::test]
async fn a_panic_in_a_spawned_future_is_a_failure_of_the_component() {
    tokio::time::pause();
    let log = Log::default();
    let system = one(&log);
    let spawn = Run::new(|_: &mut Probe<0>, ctx| {
        ctx.run_later(SECOND, |_, _| panic!("on purpose"));
    });
    system.port::<Run<0>>().ask(spawn, LONG).await.unwrap();
    tokio::time::sleep(40 * SECOND).await;
    assert_eq!(log.count("p0 built"), 2);
    assert_eq!(system.port::<Add<0>>().ask(Add(1), LONG).await, Ok(1));
}

#[actix_rt::test]
async fn a_panic_in_an_asynchronous_answer_is_answered_crashed() {
    tokio::time::pause();
    let log = Log::default();
    let system = one(&log);
    let later = Later::new(|_: &mut Probe<0>, _| {
        let future = actix::fut::wrap_future(tokio::time::sleep(SECOND));
        Box::pin(future.map(|(), _, _| panic!("on purpose")))
    });
    assert_eq!(system.port::<Later<0>>().ask(later, LONG).await, Err(AskError::Crashed));
    let alone = Alone::new(|_: &mut Probe<0>, _| {
        let future = actix::fut::wrap_future(tokio::time::sleep(SECOND));
        Box::pin(future.map(|(), _, _| panic!("on purpose")))
    });
    assert_eq!(system.port::<Alone<0>>().ask(alone, LONG).await, Err(AskError::Crashed));
    flush::<0>(&system).await;
    assert_eq!(log.count("p0 built"), 3);
}

#[actix_rt::test]
async fn a_panic_in_an_answer_apart_from_the_component_is_counted_and_harms_nobody() {
    tokio::time::pause();
    let log = Log::default();
    let system = one(&log);
    let add = system.port::<Add<0>>();
    add.ask(Add(3), LONG).await.unwrap();
    let apart = || Apart::new(|_: &mut Probe<0>, _| Box::pin(async { panic!("on purpose") }));
    assert_eq!(system.port::<Apart<0>>().ask(apart(), LONG).await, Err(AskError::Crashed));
    // Told, not asked: nobody waits, and still it is counted.
    system.port::<Apart<0>>().tell(apart()).await.unwrap();
    flush::<0>(&system).await;
    assert_eq!(add.ask(Add(0), LONG).await, Ok(3));
    let observed = &system.observe()[0];
    assert_eq!((observed.panics, observed.restarts, observed.in_hand), (2, 0, 0));
}

#[actix_rt::test]
async fn fail_ends_a_life_like_a_panic() {
    tokio::time::pause();
    let log = Log::default();
    let system = one(&log);
    let run = system.port::<Run<0>>();
    // The handler itself returns: it is answered.
    run.ask(
        Run::new(|probe, ctx| {
            probe.sum = 9;
            ctx.fail("disk gone");
        }),
        LONG,
    )
    .await
    .unwrap();
    assert_eq!(system.port::<Add<0>>().ask(Add(1), LONG).await, Ok(1));
    let observed = &system.observe()[0];
    assert_eq!((observed.panics, observed.restarts), (0, 1));
}

#[actix_rt::test]
async fn futures_of_an_ended_life_are_dropped_at_once_and_their_askers_told() {
    tokio::time::pause();
    let log = Log::default();
    let system = with_one(&log, |probe| probe)
        .restart_policy(RestartPolicy { base: 20 * SECOND, ..RestartPolicy::default() })
        .start()
        .unwrap();
    let ticks = Arc::new(AtomicU32::new(0));
    let ticking = Arc::clone(&ticks);
    let polls = Arc::new(AtomicU32::new(0));
    let (polled, polls_at_failure) = (Arc::clone(&polls), Arc::new(AtomicU32::new(0)));
    let at_failure = Arc::clone(&polls_at_failure);
    let spawn = Run::new(move |_: &mut Probe<0>, ctx| {
        ctx.spawn(actix::fut::wrap_future(std::future::poll_fn(move |_| {
            polled.fetch_add(1, Ordering::SeqCst);
            std::task::Poll::Pending
        })));
        ctx.run_interval(SECOND, move |_, _| {
            ticking.fetch_add(1, Ordering::SeqCst);
        });
    });
    let run = system.port::<Run<0>>();
    run.ask(spawn, LONG).await.unwrap();
    let later = system.port::<Later<0>>();
    let never = Later::new(|_, _| Box::pin(actix::fut::wrap_future(std::future::pending())));
    let asked = actix_rt::spawn(async move { later.ask(never, LONG).await });
    tokio::time::sleep(3 * SECOND + SECOND / 2).await;
    assert_eq!(ticks.load(Ordering::SeqCst), 3);
    let before = tokio::time::Instant::now();
    let polled = Arc::clone(&polls);
    run.tell(Run::new(move |_, ctx| {
        at_failure.store(polled.load(Ordering::SeqCst), Ordering::SeqCst);
        ctx.fail("on purpose");
        // Too late to belong to the next life.
        ctx.run_later(SECOND, |_, _| unreachable!());
    }))
    .await
    .unwrap();
    assert_eq!(asked.await.unwrap(), Err(AskError::Crashed));
    assert_eq!(before.elapsed(), Duration::ZERO, "told before the component was built again");
    flush::<0>(&system).await;
    tokio::time::sleep(60 * SECOND).await;
    assert_eq!(ticks.load(Ordering::SeqCst), 3);
    assert_eq!(polls.load(Ordering::SeqCst), polls_at_failure.load(Ordering::SeqCst), "not even once more");
    assert_eq!(log.count("p0 built"), 2);
}

#[actix_rt::test]
async fn no_message_reaches_a_component_between_failure_and_rebuild() {
    tokio::time::pause();
    let log = Log::default();
    let system = one(&log);
    let run = system.port::<Run<0>>();
    // Through the port's queue and through the actix address.
    let (tx, rx) = tokio::sync::oneshot::channel();
    run.ask(Run::new(move |_, ctx: &mut actix_context::Of<0>| drop(tx.send(ctx.address()))), LONG).await.unwrap();
    let address = rx.await.unwrap();
    assert_eq!(run.ask(panicking(), LONG).await, Err(AskError::Crashed));
    assert_eq!(system.observe()[0].phase, Phase::BackingOff);
    system.port::<Add<0>>().tell(Add(1)).await.unwrap();
    let sent = actix_rt::spawn(address.send(Add(2)));
    tokio::task::yield_now().await;
    assert_eq!(system.observe()[0].phase, Phase::BackingOff);
    flush::<0>(&system).await;
    sent.await.unwrap().unwrap();
    let mut all = log.all();
    all[4..].sort();
    assert_eq!(all[..4], ["p0 built", "p0 started", "p0 built", "p0 started"]);
    assert_eq!(all[4..], ["p0 add 1", "p0 add 2"]);
}

mod actix_context {
    pub(super) type Of<const N: usize> = crate::system::Context<super::Probe<N>>;
}

#[actix_rt::test]
async fn a_panic_behind_an_actix_address_is_caught_too() {
    tokio::time::pause();
    let log = Log::default();
    let system = one(&log);
    let run = system.port::<Run<0>>();
    let (tx, rx) = tokio::sync::oneshot::channel();
    run.ask(Run::new(move |_, ctx: &mut actix_context::Of<0>| drop(tx.send(ctx.address()))), LONG).await.unwrap();
    let address = rx.await.unwrap();
    assert_eq!(address.send(panicking()).await, Err(actix::MailboxError::Closed));
    assert_eq!(address.send(Add(4)).await, Ok(4));
    assert_eq!(system.observe()[0].restarts, 1);
}

#[actix_rt::test]
async fn a_panic_never_takes_a_sibling_down() {
    tokio::time::pause();
    let (log, sibling_log) = (Log::default(), Log::default());
    let factory_log = sibling_log.clone();
    let system =
        with_one(&log, |probe| probe).component(move |_: &Ports| Probe::<1>::new(&factory_log)).start().unwrap();
    let sibling = system.port::<Add<1>>();
    sibling.ask(Add(1), LONG).await.unwrap();
    for _ in 0..3 {
        let _ = system.port::<Run<0>>().ask(panicking(), LONG).await;
    }
    assert_eq!(sibling.ask(Add(1), LONG).await, Ok(2));
    assert_eq!(sibling_log.count("p1 built"), 1);
}

#[actix_rt::test]
async fn a_destructor_that_panics_does_not_harm_the_next_life() {
    tokio::time::pause();
    struct Bomb;
    impl Drop for Bomb {
        fn drop(&mut self) {
            if !std::thread::panicking() {
                panic!("in a destructor");
            }
        }
    }
    let log = Log::default();
    let system = one(&log);
    let run = system.port::<Run<0>>();
    let bombs = Run::new(|_: &mut Probe<0>, ctx| {
        let bomb = Bomb;
        ctx.run_interval(SECOND, move |_, _| {
            let _ = &bomb;
        });
        ctx.fail("on purpose");
    });
    run.ask(bombs, LONG).await.unwrap();
    assert_eq!(system.port::<Add<0>>().ask(Add(2), LONG).await, Ok(2));
    assert_eq!(system.observe()[0].restarts, 1);
}

#[actix_rt::test]
async fn waits_between_restarts_grow_and_calm_resets_them() {
    tokio::time::pause();
    let log = Log::default();
    let policy = RestartPolicy { budget: 4, ..RestartPolicy::default() };
    let system = with_one(&log, |probe| probe).restart_policy(policy).dice(|| 0.5).start().unwrap();
    let run = system.port::<Run<0>>();
    // Twice the whole budget, with calm between.
    for _ in 0..2 {
        for wait in [50, 100, 200, 400] {
            assert_eq!(run.ask(panicking(), LONG).await, Err(AskError::Crashed));
            let before = tokio::time::Instant::now();
            flush::<0>(&system).await;
            // A timer is late by a millisecond at most.
            let late = before.elapsed().checked_sub(Duration::from_millis(wait));
            assert!(late.is_some_and(|late| late <= Duration::from_millis(1)), "{wait} ms: {:?}", before.elapsed());
        }
        tokio::time::sleep(60 * SECOND).await;
    }
    assert_eq!(system.observe()[0].restarts, 8);
}

#[actix_rt::test]
async fn a_spent_budget_ends_the_component_and_stops_the_system_in_order() {
    tokio::time::pause();
    let log = Log::default();
    let (log1, log3) = (log.clone(), log.clone());
    let system = with_one(&log, |probe| probe)
        .component(move |_: &Ports| Probe::<3>::new(&log3))
        .component(move |_: &Ports| Probe::<1>::new(&log1))
        .restart_policy(quick(2))
        .start()
        .unwrap();
    let failed = system.failed();
    let run = system.port::<Run<0>>();
    for _ in 0..3 {
        let _ = run.ask(panicking(), LONG).await;
    }
    assert_eq!(failed.await, ("p0", Exit::Panicked));
    assert_eq!(run.ask(panicking(), LONG).await, Err(AskError::Stopped));
    // Nobody called stop; waiting for it tells how each one ended.
    let exits = system.stop(LONG).await;
    assert_eq!(exits, [("p0", Exit::Panicked), ("p3", Exit::Stopped), ("p1", Exit::Stopped)]);
    let stops: Vec<String> = log.all().into_iter().filter(|entry| entry.ends_with("stopped")).collect();
    assert_eq!(stops, ["p1 stopped", "p3 stopped"]);
    assert_eq!(log.count("p0 built"), 3);
    // Whoever asks later learns the same.
    assert_eq!(system.failed().await, ("p0", Exit::Panicked));
}

#[actix_rt::test]
async fn the_system_stops_by_itself_after_a_spent_budget() {
    tokio::time::pause();
    let log = Log::default();
    let log1 = log.clone();
    let system = with_one(&log, |probe| probe)
        .component(move |_: &Ports| Probe::<1>::new(&log1))
        .restart_policy(quick(0))
        .start()
        .unwrap();
    let sibling = system.port::<Later<1>>();
    let never = Later::new(|_, _| Box::pin(actix::fut::wrap_future(std::future::pending())));
    let waiting = actix_rt::spawn(async move { sibling.ask(never, LONG).await });
    let run = system.port::<Run<0>>();
    run.ask(Run::new(|_, ctx| ctx.fail("no disk")), LONG).await.unwrap();
    assert_eq!(system.failed().await, ("p0", Exit::Failed("no disk".into())));
    // The sibling's reply under way is waited for, and given up at the deadline.
    assert_eq!(waiting.await.unwrap(), Err(AskError::Stopped));
    assert_eq!(system.observe()[1].exit, Some(Exit::Stuck));
}

#[actix_rt::test]
async fn a_factory_that_panics_later_spends_the_budget() {
    tokio::time::pause();
    let log = Log::default();
    let built = AtomicU32::new(0);
    let factory_log = log.clone();
    let system = System::builder("test")
        .component(move |_: &Ports| {
            assert!(built.fetch_add(1, Ordering::SeqCst) == 0, "only once");
            Probe::<0>::new(&factory_log)
        })
        .restart_policy(quick(4))
        .start()
        .unwrap();
    let _ = system.port::<Run<0>>().ask(panicking(), LONG).await;
    assert_eq!(system.failed().await, ("p0", Exit::Panicked));
    assert_eq!(system.observe()[0].restarts, 4);
}

#[actix_rt::test]
async fn observation_counts_what_happened() {
    tokio::time::pause();
    let log = Log::default();
    let system = one(&log);
    let add = system.port::<Add<0>>();
    for _ in 0..10 {
        add.ask(Add(1), LONG).await.unwrap();
    }
    let observed = &system.observe()[0];
    assert_eq!((observed.name, observed.handled, observed.queued, observed.capacity), ("p0", 10, 0, CAPACITY));
    assert!(observed.mean_handling > Duration::ZERO);
    assert_eq!((observed.phase, observed.exit.clone()), (Phase::Running, None));

    // One is in hand, one is given up by its asker, one waits.
    let release = hold::<0>(&system).await;
    assert_eq!(add.ask(Add(1), SECOND).await, Err(AskError::Timeout));
    add.try_tell(Add(1)).unwrap();
    assert_eq!((system.observe()[0].queued, system.observe()[0].expired), (2, 0));
    release.send(()).unwrap();
    assert_eq!(system.port::<Run<0>>().ask(panicking(), LONG).await, Err(AskError::Crashed));
    flush::<0>(&system).await;
    let observed = &system.observe()[0];
    // Those three, the one that crashed, and the last.
    assert_eq!((observed.handled, observed.queued), (10 + 5, 0));
    assert_eq!((observed.expired, observed.unanswered, observed.panics, observed.restarts), (1, 1, 1, 1));
}
