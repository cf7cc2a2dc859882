use super::probe::*;
use crate::system::{AskError, Component, Context, Contract, Exit, Port, Ports, Stage, System, Topic, WiringFault};
use actix::{Actor, AtomicResponse, Handler, Message, ResponseFuture};
use actix_rt::Arbiter;
use std::{cell::Cell, rc::Rc};

#[derive(Message)]
#[rtype(result = "u32")]
struct Ping(u32);

#[derive(Message)]
#[rtype(result = "u32")]
struct Pong(u32);

#[derive(Clone, Message)]
#[rtype(result = "()")]
struct Heard;

/// Asks Pong while it answers Ping, and `Other` the reverse: a cycle.
struct Left {
    pong: Port<Pong>,
}

impl Actor for Left {
    type Context = Context<Self>;
}

impl Component for Left {
    const NAME: &'static str = "left";
    const STAGE: Stage = Stage::Processor;

    fn contract(contract: &mut Contract<Self>) {
        contract.answers::<Ping>().asks::<Pong>();
    }
}

impl Handler<Ping> for Left {
    type Result = ResponseFuture<u32>;

    fn handle(&mut self, Ping(n): Ping, _: &mut Context<Self>) -> Self::Result {
        let pong = self.pong.clone();
        Box::pin(async move { if n == 0 { 0 } else { 1 + pong.ask(Pong(n - 1), LONG).await.unwrap() } })
    }
}

struct Right {
    ping: Port<Ping>,
}

impl Actor for Right {
    type Context = Context<Self>;
}

impl Component for Right {
    const NAME: &'static str = "right";
    const STAGE: Stage = Stage::Processor;

    fn contract(contract: &mut Contract<Self>) {
        contract.answers::<Pong>().asks::<Ping>();
    }
}

impl Handler<Pong> for Right {
    type Result = ResponseFuture<u32>;

    fn handle(&mut self, Pong(n): Pong, _: &mut Context<Self>) -> Self::Result {
        let ping = self.ping.clone();
        Box::pin(async move { if n == 0 { 0 } else { 1 + ping.ask(Ping(n - 1), LONG).await.unwrap() } })
    }
}

/// Answers what `Left` answers too, and uses a port it did not declare.
struct Impostor;

impl Actor for Impostor {
    type Context = Context<Self>;
}

impl Component for Impostor {
    const NAME: &'static str = "impostor";
    const STAGE: Stage = Stage::Processor;

    fn contract(contract: &mut Contract<Self>) {
        contract.answers::<Ping>().may_ask::<Pong>();
    }
}

impl Handler<Ping> for Impostor {
    type Result = AtomicResponse<Self, u32>;

    fn handle(&mut self, _: Ping, _: &mut Context<Self>) -> Self::Result {
        AtomicResponse::new(Box::pin(actix::fut::ready(0)))
    }
}

fn left(ports: &Ports) -> Left {
    Left { pong: ports.port() }
}

fn right(ports: &Ports) -> Right {
    Right { ping: ports.port() }
}

#[actix_rt::test]
async fn components_may_ask_each_other_in_a_cycle() {
    let system = System::builder("cycle").component(left).component(right).start().unwrap();
    assert_eq!(system.port::<Ping>().ask(Ping(7), LONG).await.unwrap(), 7);
}

#[actix_rt::test]
async fn an_ask_nobody_answers_is_a_start_up_error_that_names_both_and_builds_nothing() {
    let built = Rc::new(Cell::new(false));
    let factory_built = Rc::clone(&built);
    let factory = move |ports: &Ports| {
        factory_built.set(true);
        left(ports)
    };
    let error = System::builder("hole").component(factory).start().unwrap_err();
    assert_eq!(error.faults, [WiringFault::Unanswered { asker: "left", message: "Pong" }]);
    assert!(error.to_string().starts_with("left asks Pong, which no component answers"), "{error}");
    assert!(!built.get());
}

#[actix_rt::test]
async fn two_answers_for_one_message_are_a_start_up_error_that_names_both() {
    let builder = System::builder("twice").component(left).component(right).component(|_: &Ports| Impostor);
    let error = builder.start().unwrap_err();
    assert_eq!(error.faults, [WiringFault::AnsweredTwice { first: "left", second: "impostor", message: "Ping" }]);
    assert_eq!(error.to_string(), "left and impostor both answer Ping: one message has one answer");
}

#[actix_rt::test]
async fn every_fault_is_reported_at_once() {
    let log = Log::default();
    let twin = |log: &Log| {
        let log = log.clone();
        move |_: &Ports| Probe::<0>::new(&log)
    };
    let error = System::builder("bad")
        .component(left)
        .component(twin(&log))
        .component(twin(&log))
        .asks::<Add<3>>()
        .start()
        .unwrap_err();
    assert!(error.faults.contains(&WiringFault::NamedTwice { name: "p0" }));
    assert!(error.faults.contains(&WiringFault::Unanswered { asker: "left", message: "Pong" }));
    let outside =
        |fault: &&WiringFault| matches!(fault, WiringFault::Unanswered { asker, .. } if asker.contains("around"));
    assert_eq!(error.faults.iter().filter(outside).count(), 1);
}

#[actix_rt::test]
async fn a_port_the_contract_does_not_name_is_a_start_up_error() {
    let sneaky = |ports: &Ports| {
        let _: Port<Add<1>> = ports.port();
        let _: Option<Port<Add<2>>> = ports.optional();
        Impostor
    };
    let error = System::builder("sneaky").component(sneaky).start().unwrap_err();
    assert_eq!(error.faults.len(), 2);
    assert!(matches!(error.faults[0], WiringFault::Undeclared { asker: "impostor", .. }));
}

#[actix_rt::test]
async fn an_optional_port_is_there_exactly_when_somebody_answers() {
    let found = Rc::new(Cell::new(None));
    for with_right in [false, true] {
        let found_here = Rc::clone(&found);
        let factory = move |ports: &Ports| {
            found_here.set(Some(ports.optional::<Pong>().is_some()));
            Impostor
        };
        let mut builder = System::builder("optional").component(factory);
        if with_right {
            builder = builder.component(right);
        }
        builder.start().unwrap();
        assert_eq!(found.take(), Some(with_right));
    }
}

#[actix_rt::test]
async fn a_constructor_that_panics_is_a_start_up_error() {
    let unbuildable = |_: &Ports| -> Impostor { panic!("no luck") };
    let error = System::builder("unbuildable").component(unbuildable).start().unwrap_err();
    assert_eq!(error.faults, [WiringFault::Unbuildable { component: "impostor", text: "no luck".into() }]);
}

#[actix_rt::test]
async fn a_factory_on_another_arbiter_cannot_refuse_the_start_and_ends_its_component_instead() {
    let arbiter = Arbiter::new();
    let (there, shards) = (arbiter.handle(), [arbiter.handle()]);
    let sneaky = |ports: &Ports| {
        let _: Port<Add<1>> = ports.port();
        Impostor
    };
    let topical = |ports: &Ports| {
        let _: Topic<Heard> = ports.topic();
        Impostor
    };
    let unbuildable = |_: &Ports| -> Impostor { panic!("no luck") };
    let builder = || System::builder("far");
    let cases = [
        (builder().component_on(&there, sneaky), "impostor", "impostor takes a port for Add"),
        (builder().component_on(&there, topical), "impostor", "impostor takes the topic of Heard"),
        (builder().component_on(&there, unbuildable), "impostor", "its constructor panicked: no luck"),
        (builder().sharded(&shards, move |ports, _| sneaky(ports)), "impostor/0", "impostor/0 takes a port for Add"),
        (builder().sharded(&shards, move |ports, _| unbuildable(ports)), "impostor/0", "panicked: no luck"),
    ];
    for (builder, name, why) in cases {
        let system = builder.start().unwrap();
        let (failed, exit) = system.failed().await;
        assert_eq!(failed, name);
        assert!(matches!(&exit, Exit::Failed(error) if error.contains(why)), "{exit}: not {why}");
        assert_eq!(system.port::<Ping>().ask(Ping(1), LONG).await, Err(AskError::Stopped));
        // It has stopped by itself.
        assert_eq!(system.stop(LONG).await, [(name, exit)]);
    }
    arbiter.stop();
}

#[actix_rt::test]
async fn a_port_of_the_system_for_an_unknown_message_refuses_as_stopped() {
    let log = Log::default();
    let system = one(&log);
    assert_eq!(system.port::<Ping>().ask(Ping(1), LONG).await, Err(AskError::Stopped));
}
