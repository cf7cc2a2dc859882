use super::probe::*;
use crate::system::{AskError, Component, Context, Contract, Overflow, Ports, Stage, System, trace::Trace};
use actix::Handler;
use kubeedge_proto::v1::{Envelope, TraceContext};
use proptest::prelude::*;

fn two(log: &Log) -> System {
    let (log0, log1) = (log.clone(), log.clone());
    System::builder("chain")
        .component(move |_: &Ports| Probe::<0>::new(&log0))
        .component(move |_: &Ports| Probe::<1>::new(&log1))
        .start()
        .unwrap()
}

fn note(log: &Log, place: &str) {
    log.add(Trace::current().map_or(format!("{place} none"), |trace| format!("{place} {:x?}", trace.trace_id())));
}

#[actix_rt::test]
async fn a_trace_goes_with_a_message_through_every_component_and_its_answers() {
    let log = Log::default();
    let system = two(&log);
    let trace = Trace::root();
    let id = format!("{:x?}", trace.trace_id());
    let (second, note1, note2) = (system.port::<Run<1>>(), log.clone(), log.clone());
    let further = system.port::<Later<1>>();
    // The first answers by a future that asks the second twice: by a plain handler, and by a future in its context.
    let apart = Apart::<0>::new(move |_, _| {
        Box::pin(async move {
            tokio::task::yield_now().await;
            second.ask(Run::new(move |_, _| note(&note1, "handler")), LONG).await.unwrap();
            let later = Later::new(move |_, _| {
                Box::pin(actix::fut::wrap_future(async move {
                    tokio::task::yield_now().await;
                    note(&note2, "future");
                    7
                }))
            });
            further.ask(later, LONG).await.unwrap()
        })
    });
    let port = system.port();
    assert_eq!(Trace::scope(Some(trace), async move { port.ask(apart, LONG).await }).await, Ok(7));
    assert_eq!((log.count(&format!("handler {id}")), log.count(&format!("future {id}"))), (1, 1), "{:?}", log.all());
    // What comes after it belongs to nothing.
    let after = log.clone();
    system.port::<Run<1>>().ask(Run::new(move |_, _| note(&after, "after")), LONG).await.unwrap();
    assert_eq!(log.count("after none"), 1);
    assert_eq!(Trace::current(), None);
}

/// Says in its log which trace it was announced in.
struct Ear(Log);

impl actix::Actor for Ear {
    type Context = Context<Self>;
}

impl Component for Ear {
    const NAME: &'static str = "ear";
    const STAGE: Stage = Stage::Processor;

    fn contract(contract: &mut Contract<Self>) {
        contract.listens::<Said>(Overflow::drop_oldest(2)).listens::<Shown>(Overflow::newest_per_key(2, |_| ()));
    }
}

#[derive(Clone, actix::Message)]
#[rtype(result = "()")]
struct Said;

#[derive(Clone, actix::Message)]
#[rtype(result = "()")]
struct Shown;

impl Handler<Said> for Ear {
    type Result = ();

    fn handle(&mut self, _: Said, _: &mut Context<Self>) {
        note(&self.0, "said");
    }
}

impl Handler<Shown> for Ear {
    type Result = ();

    fn handle(&mut self, _: Shown, _: &mut Context<Self>) {
        note(&self.0, "shown");
    }
}

#[actix_rt::test]
async fn an_event_from_a_buffer_belongs_to_its_announcers_trace() {
    let log = Log::default();
    let ear = log.clone();
    let system = System::builder("ear")
        .component(move |_: &Ports| Ear(ear.clone()))
        .announces::<Said>()
        .announces::<Shown>()
        .start()
        .unwrap();
    let (said, shown) = (system.topic::<Said>(), system.topic::<Shown>());
    let [first, second, third] = [Trace::root(), Trace::root(), Trace::root()];
    for trace in [&first, &second, &third] {
        let (said, shown) = (said.clone(), shown.clone());
        Trace::scope(Some(trace.clone()), async move {
            said.announce(Said).await;
            shown.announce(Shown).await;
        })
        .await;
    }
    system.stop(SECOND).await;
    let ids = [&first, &second, &third].map(|trace| format!("{:x?}", trace.trace_id()));
    // The first was dropped; of one key the newest is kept, with its own trace.
    let heard: Vec<_> = log.all().into_iter().filter(|entry| entry.starts_with("said")).collect();
    assert_eq!(heard, [format!("said {}", ids[1]), format!("said {}", ids[2])]);
    let seen: Vec<_> = log.all().into_iter().filter(|entry| entry.starts_with("shown")).collect();
    assert_eq!(seen, [format!("shown {}", ids[2])]);
}

#[actix_rt::test]
async fn a_panic_leaves_no_trace_behind() {
    let log = Log::default();
    let system = with_one(&log, |probe| probe).restart_policy(quick(1)).start().unwrap();
    let port = system.port::<Run<0>>();
    let asked = Trace::scope(Some(Trace::root()), port.ask(Run::new(|_, _| panic!("on purpose")), LONG)).await;
    assert_eq!(asked, Err(AskError::Crashed));
    let after = log.clone();
    port.ask(Run::new(move |_, _| note(&after, "after")), LONG).await.unwrap();
    assert_eq!((log.count("after none"), Trace::current()), (1, None));
}

#[actix_rt::test]
async fn each_handler_is_an_operation_of_its_own_in_the_trace() {
    let log = Log::default();
    let system = one(&log);
    let root = Trace::root();
    let (sender, seen) = std::sync::mpsc::channel();
    let run = Run::<0>::new(move |_, _| sender.send(Trace::current()).unwrap());
    let port = system.port();
    Trace::scope(Some(root.clone()), port.ask(run, LONG)).await.unwrap();
    let seen = seen.recv().unwrap().unwrap();
    assert_eq!(seen.trace_id(), root.trace_id());
    assert_ne!(seen.span_id(), root.span_id());
}

#[actix_rt::test]
async fn the_span_of_a_handler_shows_its_component_its_message_and_its_place_in_the_trace() {
    let (log, lines) = (Log::default(), Lines::default());
    let _logged = lines.follow();
    let system = one(&log);
    let trace = Trace::root();
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let (sender, seen) = std::sync::mpsc::channel();
    let apart = Apart::<0>::new(move |_, _| {
        tracing::info!("in the handler");
        sender.send(Trace::current()).unwrap();
        Box::pin(async {
            tokio::task::yield_now().await;
            tracing::info!("in its answer");
            1
        })
    });
    let (port, plain) = (system.port(), system.port::<Run<0>>());
    Trace::scope(Some(trace.clone()), port.ask(apart, LONG)).await.unwrap();
    plain.ask(Run::new(|_, _| tracing::info!("without a trace")), LONG).await.unwrap();
    let place = seen.recv().unwrap().unwrap();
    let (trace_id, span_id) = (hex(&trace.trace_id()), hex(&place.span_id()));
    // A field `message` is written without its name.
    let inside = format!(r#" handle{{component="p0" Apart<0> trace_id={trace_id} span_id={span_id}}}: "#);
    let lines = lines.text();
    let line = |what: &str| lines.lines().find(|line| line.contains(what)).unwrap_or_else(|| panic!("{what}: {lines}"));
    assert!(line("in the handler").contains(&inside), "not {inside}: {lines}");
    assert!(line("in its answer").contains(&inside), "not {inside}: {lines}");
    assert!(line("without a trace").contains(r#" handle{component="p0" Run<0>}: "#), "{lines}");
}

#[actix_rt::test]
async fn an_envelope_carries_the_current_trace_and_keeps_the_one_it_has() {
    let trace = Trace::root();
    let mut envelope = Envelope::default();
    Trace::stamp(&mut envelope);
    assert_eq!(envelope.trace, None);
    Trace::scope(Some(trace.clone()), async {
        Trace::stamp(&mut envelope);
    })
    .await;
    assert_eq!(Trace::of(&envelope), Some(trace.clone()));
    Trace::scope(Some(Trace::root()), async {
        Trace::stamp(&mut envelope);
    })
    .await;
    assert_eq!(Trace::of(&envelope), Some(trace));
}

proptest! {
    #[test]
    fn a_trace_from_outside_is_whole_or_none(
        trace_id in prop::collection::vec(0_u8..3, 0..20),
        span_id in prop::collection::vec(0_u8..3, 0..12),
        flags: u32,
        state in "[a-z=,]{0,600}",
    ) {
        let context = TraceContext {
            trace_id: trace_id.clone().into(), span_id: span_id.clone().into(), flags, state: state.clone(),
        };
        let trace = Trace::of(&Envelope { trace: Some(context), ..Default::default() });
        let zero = |id: &[u8]| id.iter().all(|byte| *byte == 0);
        let valid = trace_id.len() == 16 && span_id.len() == 8 && !zero(&trace_id) && !zero(&span_id);
        prop_assert_eq!(trace.is_some(), valid);
        if let Some(trace) = trace {
            let back = TraceContext::from(&trace.child());
            prop_assert_eq!(back.trace_id.to_vec(), trace_id);
            prop_assert_eq!(back.flags, flags & 0xff);
            prop_assert_eq!(back.state, if state.len() <= 512 { state } else { String::new() });
        }
    }
}
