//! Messages that crash their handler: which are tried again, and what becomes of those that are not.

use super::probe::{Apart, LONG, Later, Log, Probe, SECOND, quick};
use crate::system::{
    AskError, Component, Context, Contract, Exit, Parked, Ports, RestartPolicy, Stage, System, SystemBuilder,
    trace::Trace,
};
use actix::{Actor, ActorFutureExt, Handler, Message, fut::wrap_future};

/// Crashes its handler so often.
#[derive(Clone, Debug, Message, PartialEq)]
#[rtype(result = "u32")]
struct Order {
    number: u32,
    crashes: usize,
}

/// The same, told of a type that cannot be copied.
#[derive(Message)]
#[rtype(result = "()")]
struct Once(Order);

struct Clerk(Log);

impl Actor for Clerk {
    type Context = Context<Self>;
}

impl Component for Clerk {
    const NAME: &'static str = "clerk";
    const STAGE: Stage = Stage::Processor;

    fn contract(contract: &mut Contract<Self>) {
        contract.answers_again::<Order>().answers::<Once>();
    }
}

impl Handler<Order> for Clerk {
    type Result = u32;

    fn handle(&mut self, Order { number, crashes }: Order, _: &mut Context<Self>) -> u32 {
        let entry = format!("order {number}");
        self.0.add(&entry);
        assert!(self.0.count(&entry) > crashes, "order {number} crashes");
        number
    }
}

impl Handler<Once> for Clerk {
    type Result = ();

    fn handle(&mut self, Once(order): Once, ctx: &mut Context<Self>) {
        self.handle(order, ctx);
    }
}

fn clerk(log: &Log) -> SystemBuilder {
    let log = log.clone();
    // Just enough for one message that crashes twice.
    System::builder("parked").component(move |_: &Ports| Clerk(log.clone())).restart_policy(quick(2))
}

fn order(number: u32, crashes: usize) -> Order {
    Order { number, crashes }
}

#[actix_rt::test]
async fn a_message_that_crashes_its_handler_twice_is_parked_and_the_component_goes_on() {
    tokio::time::pause();
    let log = Log::default();
    let system = clerk(&log).start().unwrap();
    let orders = system.port::<Order>();
    let trace = Trace::root();
    let poison = Trace::scope(Some(trace.clone()), orders.ask(order(1, usize::MAX), LONG)).await;
    assert_eq!(poison, Err(AskError::Crashed));
    assert_eq!(orders.ask(order(2, 0), LONG).await, Ok(2));
    assert_eq!((log.count("order 1"), system.observe()[0].restarts, system.observe()[0].parked), (2, 2, 1));
    let [Parked { component: "clerk", message: "Order", attempts: 2, kept: true, panic, trace: of, .. }] =
        &system.parked()[..]
    else {
        panic!("{:?}", system.parked())
    };
    assert_eq!((panic.as_str(), of.as_ref().map(Trace::trace_id)), ("order 1 crashes", Some(trace.trace_id())));
    assert_eq!(system.parked_counts(), [("clerk", "Order", 1)]);
    // To be looked at, or sent again.
    assert_eq!(system.take_parked::<Order>(), [order(1, usize::MAX)]);
    assert!(!system.parked()[0].kept);
}

#[actix_rt::test]
async fn a_message_that_crashed_once_comes_first_in_the_next_life_and_its_asker_waits_on() {
    tokio::time::pause();
    let log = Log::default();
    let system = clerk(&log).start().unwrap();
    let orders = system.port::<Order>();
    let first = actix_rt::spawn({
        let orders = orders.clone();
        async move { orders.ask(order(1, 1), LONG).await }
    });
    tokio::task::yield_now().await;
    orders.tell(order(2, 0)).await.unwrap();
    assert_eq!(orders.ask(order(3, 0), LONG).await, Ok(3));
    assert_eq!(first.await.unwrap(), Ok(1));
    assert_eq!(log.all(), ["order 1", "order 1", "order 2", "order 3"]);
    assert_eq!((system.parked().len(), system.observe()[0].unanswered), (0, 0));
}

#[actix_rt::test]
async fn a_message_nobody_waits_for_any_more_is_not_tried_again() {
    tokio::time::pause();
    let log = Log::default();
    let wait = RestartPolicy { base: LONG, cap: LONG, ..RestartPolicy::default() };
    let system = clerk(&log).restart_policy(wait).start().unwrap();
    let orders = system.port::<Order>();
    // The wait before the rebuild is random: shorter than this once in millions of runs.
    assert_eq!(orders.ask(order(1, 1), SECOND / 1000).await, Err(AskError::Timeout));
    assert_eq!(orders.ask(order(2, 0), 2 * LONG).await, Ok(2));
    assert_eq!(log.all(), ["order 1", "order 2"]);
    assert_eq!((system.observe()[0].expired, system.parked().len()), (1, 0));
}

#[actix_rt::test]
async fn a_message_that_waits_to_be_tried_again_is_finished_at_a_stop() {
    tokio::time::pause();
    let log = Log::default();
    let wait = RestartPolicy { base: LONG, cap: LONG, ..RestartPolicy::default() };
    let system = clerk(&log).restart_policy(wait).start().unwrap();
    system.port().tell(order(1, 1)).await.unwrap();
    tokio::task::yield_now().await;
    assert_eq!(system.stop(SECOND).await, [("clerk", Exit::Stopped)]);
    assert_eq!(log.count("order 1"), 2);
}

#[actix_rt::test]
async fn a_message_that_cannot_be_tried_again_is_parked_at_its_first_crash_and_its_asker_told() {
    tokio::time::pause();
    let log = Log::default();
    let probe = log.clone();
    let system =
        clerk(&log).component(move |_: &Ports| Probe::<0>::new(&probe)).restart_policy(quick(10)).start().unwrap();
    assert_eq!(system.port().ask(Once(order(1, 1)), LONG).await, Err(AskError::Crashed));
    // Whose answer crashes: with the component in hand, and without.
    let later = Later::<0>::new(|_, _| {
        Box::pin(wrap_future(tokio::time::sleep(SECOND)).map(|(), _, _| panic!("in its answer")))
    });
    assert_eq!(system.port().ask(later, LONG).await, Err(AskError::Crashed));
    let apart = Apart::<0>::new(|_, _| Box::pin(async { panic!("apart from it") }));
    assert_eq!(system.port().ask(apart, LONG).await, Err(AskError::Crashed));
    let parked: Vec<_> = system
        .parked()
        .into_iter()
        .map(|one| {
            assert_eq!((one.attempts, one.kept), (1, false));
            (one.component, one.message, one.panic)
        })
        .collect();
    let expected = [
        ("clerk", "Once", "order 1 crashes"),
        ("p0", "Later<0>", "in its answer"),
        ("p0", "Apart<0>", "apart from it"),
    ];
    assert_eq!(parked.len(), 3);
    for (one, (component, message, panic)) in parked.iter().zip(expected) {
        assert_eq!((one.0, one.2.as_str()), (component, panic));
        assert!(one.1.starts_with(message.trim_end_matches("<0>")), "{}", one.1);
    }
    assert_eq!(log.count("order 1"), 1);
}
