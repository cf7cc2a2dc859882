use super::probe::*;
use crate::system::{AskError, Exit, Ports, System};
use actix::{ActorContext, ActorFutureExt, AsyncContext};
use std::time::Duration;

/// All four stages, added in the wrong order.
fn four(log: &Log) -> crate::system::SystemBuilder {
    let (log0, log1, log2, log3) = (log.clone(), log.clone(), log.clone(), log.clone());
    System::builder("four")
        .component(move |_: &Ports| Probe::<3>::new(&log3))
        .component(move |_: &Ports| Probe::<1>::new(&log1))
        .component(move |_: &Ports| Probe::<2>::new(&log2))
        .component(move |_: &Ports| Probe::<0>::new(&log0))
}

fn stops(log: &Log) -> Vec<String> {
    log.all().into_iter().filter(|entry| entry.ends_with("stopped")).collect()
}

#[actix_rt::test]
async fn stages_stop_in_order_and_every_exit_has_a_reason() {
    let log = Log::default();
    let system = four(&log).start().unwrap();
    let exits = system.stop(SECOND).await;
    assert_eq!(stops(&log), ["p0 stopped", "p1 stopped", "p2 stopped", "p3 stopped"]);
    // In the order in which they were added.
    let all = ["p3", "p1", "p2", "p0"].map(|name| (name, Exit::Stopped));
    assert_eq!(exits, all);
    assert_eq!(system.stop(SECOND).await, all, "a second call returns the same");
    assert_eq!(log.count("p0 stopped"), 1);
}

#[actix_rt::test]
async fn queued_messages_and_replies_under_way_are_finished_before_stop_runs() {
    tokio::time::pause();
    let log = Log::default();
    let system = one(&log);
    let (later, apart) = (system.port::<Later<0>>(), system.port::<Apart<0>>());
    let slow = actix_rt::spawn(async move {
        let reply = Later::new(|_: &mut Probe<0>, _| {
            let future = actix::fut::wrap_future(tokio::time::sleep(SECOND));
            Box::pin(future.map(|(), probe: &mut Probe<0>, _| probe.sum))
        });
        later.ask(reply, LONG).await
    });
    let detached = actix_rt::spawn(async move {
        let reply = Apart::new(|_: &mut Probe<0>, _| {
            Box::pin(async {
                tokio::time::sleep(2 * SECOND).await;
                7
            })
        });
        apart.ask(reply, LONG).await
    });
    tokio::task::yield_now().await;
    let release = hold::<0>(&system).await;
    for _ in 0..CAPACITY {
        system.port::<Add<0>>().try_tell(Add(1)).unwrap();
    }
    let stopping = actix_rt::spawn({
        let system = system.clone();
        async move { system.stop(20 * SECOND).await }
    });
    tokio::task::yield_now().await;
    release.send(()).unwrap();
    assert_eq!(stopping.await.unwrap(), [("p0", Exit::Stopped)]);
    assert_eq!(slow.await.unwrap(), Ok(CAPACITY as u32));
    assert_eq!(detached.await.unwrap(), Ok(7));
    let all = log.all();
    assert_eq!(log.count("p0 add 1"), CAPACITY);
    assert_eq!(all.last().unwrap(), "p0 stopped", "{all:?}");
}

#[actix_rt::test]
async fn nothing_new_is_taken_once_the_stop_began() {
    tokio::time::pause();
    let log = Log::default();
    let system =
        with_one(&log, |probe| probe.on_stop(|| Box::pin(actix::fut::wrap_future(tokio::time::sleep(5 * SECOND)))))
            .start()
            .unwrap();
    flush::<0>(&system).await;
    let stopping = actix_rt::spawn({
        let system = system.clone();
        async move { system.stop(20 * SECOND).await }
    });
    tokio::time::sleep(SECOND).await;
    assert_eq!(system.port::<Add<0>>().ask(Add(1), LONG).await, Err(AskError::Stopped));
    assert_eq!(stopping.await.unwrap(), [("p0", Exit::Stopped)]);
    assert_eq!(log.count("p0 add 1"), 0);
}

#[actix_rt::test]
async fn a_component_may_ask_the_later_stages_while_it_stops() {
    let log = Log::default();
    let system = {
        let port: std::sync::Arc<std::sync::OnceLock<crate::system::Port<Add<3>>>> = Default::default();
        let (log0, log3) = (log.clone(), log.clone());
        let hooked = std::sync::Arc::clone(&port);
        let system = System::builder("two")
            .component(move |_: &Ports| {
                let port = std::sync::Arc::clone(&hooked);
                Probe::<0>::new(&log0).on_stop(move || {
                    let store = port.get().unwrap().clone();
                    Box::pin(
                        actix::fut::wrap_future(async move { store.ask(Add(11), LONG).await })
                            .map(|answer, _, _| assert_eq!(answer, Ok(11))),
                    )
                })
            })
            .component(move |_: &Ports| Probe::<3>::new(&log3))
            .start()
            .unwrap();
        port.set(system.port()).unwrap();
        system
    };
    assert_eq!(system.stop(SECOND).await, [("p0", Exit::Stopped), ("p3", Exit::Stopped)]);
    assert_eq!(log.count("p3 add 11"), 1);
}

#[actix_rt::test]
async fn a_stuck_source_is_dropped_and_leaves_the_store_its_time() {
    tokio::time::pause();
    let log = Log::default();
    let (log0, log3) = (log.clone(), log.clone());
    let system = System::builder("stuck")
        .component(move |_: &Ports| {
            Probe::<0>::new(&log0).on_stop(|| Box::pin(actix::fut::wrap_future(std::future::pending())))
        })
        .component(move |_: &Ports| {
            // Needs 4 of the 10 seconds.
            Probe::<3>::new(&log3).on_stop(|| Box::pin(actix::fut::wrap_future(tokio::time::sleep(4 * SECOND))))
        })
        .start()
        .unwrap();
    let before = tokio::time::Instant::now();
    let exits = system.stop(10 * SECOND).await;
    assert_eq!(exits, [("p0", Exit::Stuck), ("p3", Exit::Stopped)]);
    assert!(before.elapsed() < 10 * SECOND);
}

#[actix_rt::test]
async fn a_component_that_waits_for_ever_is_dropped_at_the_deadline_and_its_askers_told() {
    tokio::time::pause();
    let log = Log::default();
    let system = one(&log);
    let _release = hold::<0>(&system).await;
    let add = system.port::<Add<0>>();
    let asked = actix_rt::spawn(async move { add.ask(Add(1), LONG).await });
    tokio::task::yield_now().await;
    let before = tokio::time::Instant::now();
    assert_eq!(system.stop(3 * SECOND).await, [("p0", Exit::Stuck)]);
    assert!(before.elapsed() < 4 * SECOND);
    assert_eq!(asked.await.unwrap(), Err(AskError::Stopped));
}

#[actix_rt::test]
async fn a_component_that_waits_to_be_rebuilt_is_rebuilt_at_once_to_finish_its_queue() {
    tokio::time::pause();
    let log = Log::default();
    let policy = crate::system::RestartPolicy { base: LONG, cap: LONG, ..Default::default() };
    let system = with_one(&log, |probe| probe).restart_policy(policy).start().unwrap();
    let _ = system.port::<Run<0>>().ask(Run::new(|_, _| panic!("on purpose")), LONG).await;
    system.port::<Add<0>>().tell(Add(6)).await.unwrap();
    let before = tokio::time::Instant::now();
    assert_eq!(system.stop(10 * SECOND).await, [("p0", Exit::Stopped)]);
    assert!(before.elapsed() < SECOND);
    let all = log.all();
    assert_eq!(all[all.len() - 2..], ["p0 add 6", "p0 stopped"]);
}

#[actix_rt::test]
async fn a_panic_while_the_queue_is_drained_costs_only_its_message() {
    tokio::time::pause();
    let log = Log::default();
    let system = one(&log);
    let release = hold::<0>(&system).await;
    system.port::<Add<0>>().try_tell(Add(1)).unwrap();
    system.port::<Run<0>>().try_tell(Run::new(|_, _| panic!("on purpose"))).unwrap();
    system.port::<Add<0>>().try_tell(Add(2)).unwrap();
    let stopping = actix_rt::spawn({
        let system = system.clone();
        async move { system.stop(20 * SECOND).await }
    });
    tokio::task::yield_now().await;
    release.send(()).unwrap();
    assert_eq!(stopping.await.unwrap(), [("p0", Exit::Stopped)]);
    assert_eq!((log.count("p0 add 1"), log.count("p0 add 2"), log.count("p0 stopped")), (1, 1, 1));
}

#[actix_rt::test]
async fn a_stop_hook_that_panics_is_an_exit_and_delays_nobody() {
    tokio::time::pause();
    let log = Log::default();
    let (log0, log3) = (log.clone(), log.clone());
    let system = System::builder("bad stop")
        .component(move |_: &Ports| Probe::<0>::new(&log0).on_stop(|| panic!("on purpose")))
        .component(move |_: &Ports| {
            let stop = || actix::fut::wrap_future(tokio::time::sleep(SECOND)).map(|(), _, _| panic!("on purpose"));
            Probe::<3>::new(&log3).on_stop(move || Box::pin(stop()))
        })
        .start()
        .unwrap();
    let before = tokio::time::Instant::now();
    let exits = system.stop(10 * SECOND).await;
    assert_eq!(exits, [("p0", Exit::Panicked), ("p3", Exit::Panicked)]);
    assert!(before.elapsed() < 2 * SECOND, "{:?}", before.elapsed());
    assert_eq!((log.count("p0 built"), log.count("p0 stopped")), (1, 1));
}

#[actix_rt::test]
async fn a_component_that_ends_itself_finishes_its_queue_and_exits_done() {
    tokio::time::pause();
    let log = Log::default();
    let log1 = log.clone();
    let system = with_one(&log, |probe| probe).component(move |_: &Ports| Probe::<1>::new(&log1)).start().unwrap();
    let release = hold::<0>(&system).await;
    let run = system.port::<Run<0>>();
    run.try_tell(Run::new(|_, ctx| ctx.stop())).unwrap();
    system.port::<Add<0>>().try_tell(Add(1)).unwrap();
    release.send(()).unwrap();
    while system.observe()[0].exit.is_none() {
        tokio::task::yield_now().await;
    }
    assert_eq!(system.observe()[0].exit, Some(Exit::Done));
    assert_eq!((log.count("p0 add 1"), log.count("p0 stopped")), (1, 1));
    // Nobody else is troubled by it.
    assert_eq!(system.port::<Add<1>>().ask(Add(1), LONG).await, Ok(1));
    assert_eq!(system.stop(SECOND).await, [("p0", Exit::Done), ("p1", Exit::Stopped)]);
}

#[actix_rt::test]
async fn background_futures_are_dropped_at_stop_and_not_waited_for() {
    tokio::time::pause();
    let log = Log::default();
    let system = with_one(&log, |probe| {
        probe.on_start(|_, ctx| {
            ctx.run_interval(SECOND, |_, _| ());
            ctx.spawn(actix::fut::wrap_future(std::future::pending()));
        })
    })
    .start()
    .unwrap();
    flush::<0>(&system).await;
    let before = tokio::time::Instant::now();
    assert_eq!(system.stop(60 * SECOND).await, [("p0", Exit::Stopped)]);
    assert!(before.elapsed() < Duration::from_millis(100));
}

#[test]
fn a_runtime_that_ends_under_the_system_harms_nobody() {
    let log = Log::default();
    let add = actix_rt::System::new().block_on(async {
        let system = one(&log);
        flush::<0>(&system).await;
        system.port::<Add<0>>()
    });
    assert!(add.try_tell(Add(1)).is_err());
}
