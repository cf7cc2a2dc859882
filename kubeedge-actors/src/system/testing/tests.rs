//! The kit fails where it must, and says why.

use super::*;
use crate::system::tests::probe::{Add, Apart, LONG, Later, Log, Probe, Run, SECOND};
use crate::system::{AskError, Component, Context, Contract, Overflow, Ports, Stage};

#[derive(actix::Message, Clone, Debug, PartialEq)]
#[rtype(result = "u32")]
struct Double(u32);

/// A probe under test, and a neighbour that doubles.
fn probe_and(recorder: &Recorder<Double>) -> TestSystemBuilder {
    let log = Log::default();
    TestSystem::builder().component(move |_: &Ports| Probe::<0>::new(&log)).records(recorder)
}

fn doubling() -> Recorder<Double> {
    Recorder::answering(|Double(n)| n * 2)
}

#[test]
fn a_recorder_answers_keeps_and_hands_out_in_order() {
    run(async {
        let double = doubling();
        let test = probe_and(&double).start();
        assert_eq!(test.ask(Double(4)).await, 8);
        test.tell(Double(5)).await;
        assert_eq!((double.next().await, double.next().await), (Double(4), Double(5)));
        double.assert_received_matching("odd", |Double(n)| n % 2 == 1);
        double.assert_received(&[Double(4), Double(5)]);
        test.assert_quiet().await;
    });
}

#[test]
fn scripted_replies_and_faults_come_at_their_message() {
    run(async {
        let double = Recorder::replying([1, 2]).panics_at(2).fails_at(3).delays(SECOND);
        let name = std::any::type_name::<Double>();
        let counts = Counts { restarts: 2, panics: 1, unanswered: 2, ..Counts::default() };
        let test = probe_and(&double).expect(name, counts).start();
        let before = tokio::time::Instant::now();
        assert_eq!(test.ask(Double(0)).await, 1);
        assert!(before.elapsed() >= SECOND);
        let port = test.port::<Double>();
        assert_eq!(port.ask(Double(0), LONG).await, Err(AskError::Crashed));
        assert_eq!(port.ask(Double(0), LONG).await, Err(AskError::Crashed));
        assert_eq!(test.ask(Double(0)).await, 2);
        assert_eq!(double.count(), 4);
        test.assert_quiet().await;
    });
}

#[test]
fn injected_faults_are_a_components_own() {
    run(async {
        let double = doubling();
        let counts = Counts { restarts: 2, panics: 1, ..Counts::default() };
        let test = probe_and(&double).expect("p0", counts).start();
        assert_eq!(test.ask(Add::<0>(3)).await, 3);
        test.inject("p0", Fault::Panic);
        assert_eq!(test.ask(Add::<0>(4)).await, 4, "its state is new");
        test.inject("p0", Fault::Fail("no disk".into()));
        test.inject("p0", Fault::Delay(5 * SECOND));
        let before = tokio::time::Instant::now();
        assert_eq!(test.ask(Add::<0>(5)).await, 5);
        assert!(before.elapsed() >= 5 * SECOND);
        test.idle().await;
        assert_eq!(test.observe("p0").queued, 0);
        test.assert_quiet().await;
    });
}

/// Announces what it is told to, and listens to it with room for one.
struct Gossip(crate::system::Topic<News>);

#[derive(actix::Message, Clone, Debug, PartialEq)]
#[rtype(result = "()")]
struct News(u32);

#[derive(actix::Message)]
#[rtype(result = "()")]
struct Tell(u32);

impl actix::Actor for Gossip {
    type Context = Context<Self>;
}

impl Component for Gossip {
    const NAME: &'static str = "gossip";
    const STAGE: Stage = Stage::Processor;

    fn contract(contract: &mut Contract<Self>) {
        contract.answers::<Tell>().announces::<News>().listens::<News>(Overflow::drop_oldest(1));
    }
}

impl actix::Handler<Tell> for Gossip {
    type Result = ();

    fn handle(&mut self, Tell(times): Tell, _: &mut Context<Self>) {
        (1..=times).for_each(|n| self.0.try_announce(News(n)).unwrap());
    }
}

impl actix::Handler<News> for Gossip {
    type Result = ();

    fn handle(&mut self, _: News, _: &mut Context<Self>) {}
}

fn gossip_and(recorder: &Recorder<News>) -> TestSystemBuilder {
    TestSystem::builder().component(|ports: &Ports| Gossip(ports.topic())).hears(recorder).asks::<Tell>()
}

#[test]
fn a_recorder_hears_what_is_announced_in_order_and_misses_none() {
    run(async {
        let news = Recorder::<News>::listening().fails_at(2).delays(SECOND);
        let counts = Counts { restarts: 1, ..Counts::default() };
        let test = gossip_and(&news).expect(std::any::type_name::<News>(), counts).announces::<News>().start();
        test.ask(Tell(1)).await;
        for n in 10..13 {
            test.announce(News(n)).await;
            test.idle().await;
        }
        assert_eq!(news.next().await, News(1));
        test.assert_quiet().await;
        news.assert_received(&[News(1), News(10), News(11), News(12)]);
    });
}

#[test]
#[should_panic(expected = "gossip: 2 events lost for want of room, expected 0")]
fn an_event_lost_for_want_of_room_fails_the_test() {
    run(async {
        let news = Recorder::listening();
        let test = gossip_and(&news).start();
        test.ask(Tell(3)).await;
        test.assert_quiet().await;
    });
}

#[test]
fn an_expected_loss_is_quiet() {
    run(async {
        let news = Recorder::listening();
        let test = gossip_and(&news).expect("gossip", Counts { dropped: 2, ..Counts::default() }).start();
        test.ask(Tell(3)).await;
        test.assert_quiet().await;
        assert_eq!(news.count(), 3);
    });
}

#[test]
#[should_panic(expected = "p0: 1 panics, expected 0")]
fn a_panic_nobody_expected_fails_the_test() {
    run(async {
        let test = probe_and(&doubling()).start();
        test.inject("p0", Fault::Panic);
        test.assert_quiet().await;
    });
}

#[test]
#[should_panic(expected = "p0: 2 times it was built again, expected 1")]
fn a_restart_more_than_expected_fails_the_test() {
    run(async {
        let test = probe_and(&doubling()).expect("p0", Counts { restarts: 1, ..Counts::default() }).start();
        test.inject("p0", Fault::Fail("one".into()));
        test.inject("p0", Fault::Fail("two".into()));
        test.assert_quiet().await;
    });
}

#[test]
#[should_panic(expected = "p0: 0 times it was built again, expected 1")]
fn a_restart_that_did_not_come_fails_the_test() {
    run(async {
        probe_and(&doubling()).expect("p0", Counts { restarts: 1, ..Counts::default() }).start().assert_quiet().await;
    });
}

#[test]
#[should_panic(expected = "p0: leaked")]
fn a_component_that_does_not_exit_fails_the_test() {
    run(async {
        let test = probe_and(&doubling()).start();
        test.tell(Later::<0>::new(|_, _| Box::pin(actix::fut::wrap_future(std::future::pending())))).await;
        test.assert_quiet().await;
    });
}

#[test]
#[should_panic(expected = "p0: 1 asks unanswered, expected 0")]
fn an_ask_without_an_answer_fails_the_test() {
    run(async {
        let test = probe_and(&doubling()).expect("p0", Counts { panics: 1, ..Counts::default() }).start();
        let broken = Apart::<0>::new(|_, _| Box::pin(async { panic!("on purpose") }));
        assert_eq!(test.port().ask(broken, LONG).await, Err(AskError::Crashed));
        test.assert_quiet().await;
    });
}

#[test]
#[should_panic(expected = "p0: 1 asks nobody waited for, expected 0")]
fn a_message_that_was_given_up_fails_the_test() {
    run(async {
        let test = probe_and(&doubling()).start();
        test.inject("p0", Fault::Delay(5 * SECOND));
        assert_eq!(test.port().ask(Add::<0>(1), SECOND).await, Err(AskError::Timeout));
        test.tell(Run::<0>::new(|_, _| ())).await;
        test.assert_quiet().await;
    });
}

#[test]
#[should_panic(expected = "Double came, for which there is no reply")]
fn a_message_more_than_replies_fails_the_test() {
    run(async {
        let test = probe_and(&Recorder::replying([])).start();
        test.tell(Double(1)).await;
        test.assert_quiet().await;
    });
}

#[test]
#[should_panic(expected = "Double were never asked for")]
fn replies_left_over_fail_the_test() {
    run(async { probe_and(&Recorder::replying([1])).start().assert_quiet().await });
}

#[test]
#[should_panic(expected = "a fault waited for message 3 of")]
fn a_fault_that_did_not_happen_fails_the_test() {
    run(async { probe_and(&doubling().panics_at(3)).start().assert_quiet().await });
}

#[test]
#[should_panic(expected = "Double came, 1 were kept: the bound")]
fn more_messages_than_a_recorder_keeps_fail_the_test() {
    run(async {
        let test = probe_and(&doubling().keeps_at_most(1)).start();
        assert_eq!(test.ask(Double(1)).await, 2);
        assert_eq!(test.ask(Double(2)).await, 4);
        test.assert_quiet().await;
    });
}

#[test]
#[should_panic(expected = "within 60s, after 0 of them")]
fn waiting_for_a_message_that_does_not_come_fails_the_test() {
    run(async {
        let double = doubling();
        let _test = probe_and(&double).start();
        double.next().await;
    });
}

#[test]
#[should_panic(expected = "Double was received that is big; received")]
fn a_message_that_was_not_received_fails_the_test() {
    run(async {
        let double = doubling();
        let test = probe_and(&double).start();
        test.ask(Double(1)).await;
        double.assert_received_matching("big", |Double(n)| *n > 100);
    });
}

#[test]
#[should_panic(expected = "end the test with `assert_quiet`")]
fn a_test_that_does_not_look_at_the_end_fails() {
    run(async { drop(probe_and(&doubling()).start()) });
}

#[test]
#[should_panic(expected = "the test expects something of nobody")]
fn an_expectation_of_nobody_fails_the_test() {
    run(async { drop(probe_and(&doubling()).expect("nobody", Counts::default()).start()) });
}

#[test]
#[should_panic(expected = "which no component answers")]
fn a_wiring_fault_fails_the_test() {
    run(async { drop(TestSystem::builder().asks::<Double>().start()) });
}
