use super::probe::*;
use crate::system::{AskError, Component, Context, Contract, Port, Ports, Stage, System, TellError, TryTellError};
use actix::{Actor, ActorContext, AsyncContext, Handler, Message};
use proptest::prelude::*;
use std::{
    cell::Cell,
    pin::pin,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    task::Poll,
    time::Duration,
};

/// Whether the future resolves now.
async fn ready_now<F: Future>(future: &mut std::pin::Pin<&mut F>) -> Option<F::Output> {
    std::future::poll_fn(|cx| match future.as_mut().poll(cx) {
        Poll::Ready(output) => Poll::Ready(Some(output)),
        Poll::Pending => Poll::Ready(None),
    })
    .await
}

/// P-BOUNDED-QUEUE
#[actix_rt::test]
async fn a_full_queue_refuses_and_hands_the_message_back() {
    let log = Log::default();
    let system = one(&log);
    let release = hold::<0>(&system).await;
    let add = system.port::<Add<0>>();
    for n in 0..CAPACITY {
        add.try_tell(Add(n as u32)).unwrap();
    }
    assert!(matches!(add.try_tell(Add(77)), Err(TryTellError::Full(Add(77)))));
    // The bound is for all senders together: a clone brings no room with it.
    assert!(matches!(add.clone().try_tell(Add(78)), Err(TryTellError::Full(Add(78)))));
    assert_eq!(system.observe()[0].queued, CAPACITY);
    release.send(()).unwrap();
    flush::<0>(&system).await;
    assert_eq!(log.count("p0 add 77") + log.count("p0 add 78"), 0);
    assert_eq!(log.count("p0 add 3"), 1);
}

#[actix_rt::test]
async fn tell_waits_for_room_and_returns_once_the_message_is_queued() {
    let log = Log::default();
    let system = one(&log);
    let release = hold::<0>(&system).await;
    let add = system.port::<Add<0>>();
    for _ in 0..CAPACITY {
        // Room: the tell returns though nobody handles anything.
        add.tell(Add(1)).await.unwrap();
    }
    let mut waiting = pin!(add.tell(Add(50)));
    assert!(ready_now(&mut waiting).await.is_none());
    tokio::task::yield_now().await;
    assert!(ready_now(&mut waiting).await.is_none());
    release.send(()).unwrap();
    waiting.await.unwrap();
    assert_eq!(add.ask(Add(0), LONG).await.unwrap(), CAPACITY as u32 + 50);
}

#[actix_rt::test]
async fn a_tell_given_up_while_it_waits_was_not_sent() {
    let log = Log::default();
    let system = one(&log);
    let release = hold::<0>(&system).await;
    let add = system.port::<Add<0>>();
    for _ in 0..CAPACITY {
        add.try_tell(Add(1)).unwrap();
    }
    {
        let mut waiting = pin!(add.tell(Add(50)));
        assert!(ready_now(&mut waiting).await.is_none());
    }
    release.send(()).unwrap();
    flush::<0>(&system).await;
    assert_eq!(log.count("p0 add 50"), 0);
}

#[actix_rt::test]
async fn a_deadline_covers_the_wait_for_room() {
    tokio::time::pause();
    let log = Log::default();
    let system = one(&log);
    let _release = hold::<0>(&system).await;
    let add = system.port::<Add<0>>();
    for _ in 0..CAPACITY {
        add.try_tell(Add(1)).unwrap();
    }
    let before = tokio::time::Instant::now();
    assert_eq!(add.ask(Add(1), 5 * SECOND).await, Err(AskError::Timeout));
    let took = before.elapsed();
    assert!(took >= 5 * SECOND && took < 6 * SECOND, "{took:?}");
}

#[actix_rt::test]
async fn a_deadline_covers_the_answer() {
    tokio::time::pause();
    let log = Log::default();
    let system = one(&log);
    let later = system.port::<Later<0>>();
    let never = || Later::new(|_, _| Box::pin(actix::fut::wrap_future(std::future::pending())));
    let before = tokio::time::Instant::now();
    assert_eq!(later.ask(never(), 5 * SECOND).await, Err(AskError::Timeout));
    let took = before.elapsed();
    assert!(took >= 5 * SECOND && took < 6 * SECOND, "{took:?}");
    // No deadline is so far that it overflows the clock.
    let mut forever = pin!(later.ask(never(), Duration::MAX));
    assert!(ready_now(&mut forever).await.is_none());
}

#[actix_rt::test]
async fn an_ask_nobody_waits_for_any_more_is_not_handled() {
    tokio::time::pause();
    let log = Log::default();
    let system = one(&log);
    let release = hold::<0>(&system).await;
    assert_eq!(system.port::<Add<0>>().ask(Add(9), SECOND).await, Err(AskError::Timeout));
    release.send(()).unwrap();
    flush::<0>(&system).await;
    assert_eq!(log.count("p0 add 9"), 0);
    assert_eq!(system.observe()[0].expired, 1);
}

#[actix_rt::test]
async fn a_stopped_component_refuses_at_once() {
    let log = Log::default();
    let system = one(&log);
    let add = system.port::<Add<0>>();
    system.stop(SECOND).await;
    assert_eq!(add.ask(Add(1), LONG).await, Err(AskError::Stopped));
    assert_eq!(add.tell(Add(1)).await, Err(TellError::Stopped));
    assert!(matches!(add.try_tell(Add(1)), Err(TryTellError::Stopped(Add(1)))));
}

#[actix_rt::test]
async fn who_waits_for_room_learns_that_the_component_ended() {
    let log = Log::default();
    let system = one(&log);
    let release = hold::<0>(&system).await;
    let add = system.port::<Add<0>>();
    system.port::<Run<0>>().try_tell(Run::new(|_, ctx| ctx.terminate())).unwrap();
    for _ in 1..CAPACITY {
        add.try_tell(Add(1)).unwrap();
    }
    let mut told = pin!(add.tell(Add(1)));
    let mut asked = pin!(add.ask(Add(1), LONG));
    assert!(ready_now(&mut told).await.is_none() && ready_now(&mut asked).await.is_none());
    release.send(()).unwrap();
    // Termination hands out one slot before it closes the queue, so a waiter may be queued; it is not answered.
    let _ = told.await;
    assert_eq!(asked.await, Err(AskError::Stopped));
}

#[actix_rt::test]
async fn ports_work_across_arbiters() {
    let log = Log::default();
    let there = actix_rt::Arbiter::new();
    let log_there = log.clone();
    let system = System::builder("two arbiters")
        .component_on(&there.handle(), move |_: &Ports| Probe::<0>::new(&log_there))
        .start()
        .unwrap();
    let add = system.port::<Add<0>>();
    let thread = std::thread::current().id();
    let (tx, rx) = tokio::sync::oneshot::channel();
    let run = Run::new(move |_: &mut Probe<0>, _| tx.send(std::thread::current().id()).unwrap());
    system.port::<Run<0>>().ask(run, LONG).await.unwrap();
    assert_ne!(rx.await.unwrap(), thread);
    let told = async {
        for _ in 0..1000 {
            add.tell(Add(1)).await.unwrap();
        }
    };
    let asked = async {
        for _ in 0..1000 {
            add.ask(Add(1), LONG).await.unwrap();
        }
    };
    futures_util::future::join(told, asked).await;
    assert_eq!(add.ask(Add(0), LONG).await.unwrap(), 2000);
    assert_eq!(system.stop(SECOND).await, [("p0", crate::system::Exit::Stopped)]);
    there.stop();
}

#[test]
fn a_port_can_be_used_from_any_thread() {
    fn sendable<T: Send + Sync>() {}
    fn send<T: Send>(future: T) -> T {
        future
    }
    sendable::<Port<Add<0>>>();
    sendable::<System>();
    let _check = |port: Port<Add<0>>| {
        let port = Arc::new(port);
        drop(send({
            let port = Arc::clone(&port);
            async move { port.ask(Add(1), SECOND).await }
        }));
        drop(send(async move { port.tell(Add(1)).await }));
    };
}

#[actix_rt::test]
async fn timers_and_replies_get_their_turn_under_a_flood() {
    let log = Log::default();
    let ticks = Arc::new(AtomicU32::new(0));
    let hook_ticks = Arc::clone(&ticks);
    let there = actix_rt::Arbiter::new();
    let log_there = log.clone();
    let system = System::builder("flooded")
        .component_on(&there.handle(), move |_: &Ports| {
            let ticks = Arc::clone(&hook_ticks);
            Probe::<0>::new(&log_there).on_start(move |_, ctx| {
                let ticks = Arc::clone(&ticks);
                ctx.run_interval(Duration::from_millis(1), move |_, _| {
                    ticks.fetch_add(1, Ordering::Relaxed);
                });
            })
        })
        .start()
        .unwrap();
    // Each message puts the next one in the queue: it is never empty.
    fn chain(port: Port<Run<0>>, until: Arc<AtomicU32>, done: tokio::sync::oneshot::Sender<()>) -> Run<0> {
        Run::new(move |_, _| {
            if until.load(Ordering::Relaxed) >= 20 {
                done.send(()).unwrap();
            } else {
                let next = chain(port.clone(), until, done);
                port.try_tell(next).unwrap();
            }
        })
    }
    let (done, is_done) = tokio::sync::oneshot::channel();
    let run = system.port::<Run<0>>();
    run.tell(chain(run.clone(), Arc::clone(&ticks), done)).await.unwrap();
    // Real time, on another thread than the flood.
    tokio::time::timeout(60 * SECOND, is_done).await.expect("timers that fire").unwrap();
    there.stop();
}

#[actix_rt::test]
async fn replies_under_way_are_bounded() {
    tokio::time::pause();
    let log = Log::default();
    let system = one(&log);
    let later = system.port::<Later<0>>();
    let in_hand = <Probe<0> as Component>::IN_HAND;
    let (release, _) = tokio::sync::broadcast::channel::<()>(1);
    for _ in 0..in_hand + CAPACITY {
        let mut released = release.subscribe();
        let reply = Later::new(move |_, _| {
            Box::pin(actix::fut::wrap_future(async move {
                let _ = released.recv().await;
                1
            }))
        });
        later.tell(reply).await.unwrap();
    }
    // Time passes only when nobody has anything left to do.
    tokio::time::sleep(SECOND).await;
    assert_eq!(system.observe()[0].in_hand, in_hand);
    assert_eq!(system.observe()[0].queued, CAPACITY);
    assert!(matches!(system.port::<Add<0>>().try_tell(Add(1)), Err(TryTellError::Full(_))));
    release.send(()).unwrap();
    drop(release);
    flush::<0>(&system).await;
    assert_eq!(system.observe()[0].queued, 0);
}

/// Takes one message at a time, slowly, and counts.
struct Sink {
    seen: Rc<Cell<u32>>,
    last: [u32; 3],
}

struct Numbered {
    sender: usize,
    n: u32,
}

impl Message for Numbered {
    type Result = ();
}

impl Actor for Sink {
    type Context = Context<Self>;
}

impl Component for Sink {
    const NAME: &'static str = "sink";
    const STAGE: Stage = Stage::Store;
    const CAPACITY: usize = 2;

    fn contract(contract: &mut Contract<Self>) {
        contract.answers::<Numbered>();
    }
}

impl Handler<Numbered> for Sink {
    type Result = ();

    fn handle(&mut self, message: Numbered, ctx: &mut Context<Self>) {
        assert_eq!(message.n, self.last[message.sender] + 1, "sender {}", message.sender);
        self.last[message.sender] = message.n;
        self.seen.set(self.seen.get() + 1);
        if message.n.is_multiple_of(3) {
            ctx.wait(actix::fut::wrap_future(tokio::task::yield_now()));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn one_senders_messages_arrive_in_order_and_none_is_lost(
        plans in prop::collection::vec(prop::collection::vec(0_u8..4, 0..40), 3),
    ) {
        let seen = Rc::new(Cell::new(0));
        let sent: usize = plans.iter().map(Vec::len).sum();
        let exits = actix_rt::System::new().block_on({
            let seen = Rc::clone(&seen);
            async move {
                let system = System::builder("order")
                    .component(move |_: &Ports| Sink { seen: Rc::clone(&seen), last: [0; 3] })
                    .start()
                    .unwrap();
                let senders = plans.into_iter().enumerate().map(|(sender, plan)| {
                    let port = system.port::<Numbered>();
                    async move {
                        for (i, how) in plan.into_iter().enumerate() {
                            let mut message = Numbered { sender, n: i as u32 + 1 };
                            match how {
                                0 => port.ask(message, LONG).await.unwrap(),
                                1 => port.tell(message).await.unwrap(),
                                2 => {
                                    tokio::task::yield_now().await;
                                    port.tell(message).await.unwrap();
                                }
                                _ => loop {
                                    match port.try_tell(message) {
                                        Ok(()) => break,
                                        Err(refused) => message = refused.into_inner(),
                                    }
                                    tokio::task::yield_now().await;
                                },
                            }
                        }
                    }
                });
                futures_util::future::join_all(senders).await;
                system.stop(LONG).await
            }
        });
        prop_assert_eq!(exits, [("sink", crate::system::Exit::Stopped)]);
        prop_assert_eq!(seen.get() as usize, sent);
    }
}
