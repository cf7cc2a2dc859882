//! A component that does what its messages say, and a log of what happened.

use crate::system::{Component, Context, Contract, Port, Ports, RestartPolicy, Stage, System, SystemBuilder};
use actix::{Actor, AtomicResponse, Handler, Message, ResponseActFuture, ResponseFuture};
use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

pub(crate) const SECOND: Duration = Duration::from_secs(1);
/// Longer than anything in a test with paused time takes.
pub(crate) const LONG: Duration = Duration::from_secs(3600);

/// What happened, in order.
#[derive(Clone, Default)]
pub(crate) struct Log(Arc<Mutex<Vec<String>>>);

impl Log {
    pub(crate) fn add(&self, what: impl Into<String>) {
        self.0.lock().unwrap().push(what.into());
    }

    pub(crate) fn all(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }

    pub(crate) fn count(&self, what: &str) -> usize {
        self.all().iter().filter(|entry| *entry == what).count()
    }
}

/// What was logged, as text.
#[derive(Clone, Default)]
pub(crate) struct Lines(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Lines {
    /// Takes what this thread logs, down to debug, until what is returned is dropped.
    pub(crate) fn follow(&self) -> (tracing::subscriber::DefaultGuard, tracing::Dispatch) {
        let writer = self.clone();
        let lines = tracing_subscriber::fmt().with_writer(move || writer.clone()).with_ansi(false);
        // With a single subscriber, a place that another thread logs at first would count as of no interest to anybody.
        let another = tracing::Dispatch::new(tracing_subscriber::registry());
        (tracing::subscriber::set_default(lines.with_max_level(tracing::Level::DEBUG).finish()), another)
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

/// Runs in the component at `started` and at `stop`.
type Hook<const N: usize> = Arc<dyn Fn(&mut Probe<N>, &mut Context<Probe<N>>) + Send + Sync>;
type StopHook<const N: usize> = Arc<dyn Fn() -> ResponseActFuture<Probe<N>, ()> + Send + Sync>;

/// The component of stage `N`: `p0` a source, `p1` a processor, `p2` a link, `p3` a store; all hold 4 messages.
pub(crate) struct Probe<const N: usize> {
    pub(crate) log: Log,
    /// Lost when the component is built again.
    pub(crate) sum: u32,
    on_start: Option<Hook<N>>,
    on_stop: Option<StopHook<N>>,
}

pub(crate) const CAPACITY: usize = 4;

impl<const N: usize> Probe<N> {
    pub(crate) fn new(log: &Log) -> Self {
        log.add(format!("p{N} built"));
        Self { log: log.clone(), sum: 0, on_start: None, on_stop: None }
    }

    pub(crate) fn on_start(mut self, hook: impl Fn(&mut Self, &mut Context<Self>) + Send + Sync + 'static) -> Self {
        self.on_start = Some(Arc::new(hook));
        self
    }

    pub(crate) fn on_stop(mut self, hook: impl Fn() -> ResponseActFuture<Self, ()> + Send + Sync + 'static) -> Self {
        self.on_stop = Some(Arc::new(hook));
        self
    }
}

impl<const N: usize> Actor for Probe<N> {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Context<Self>) {
        self.log.add(format!("p{N} started"));
        if let Some(hook) = self.on_start.clone() {
            hook(self, ctx);
        }
    }
}

impl<const N: usize> Component for Probe<N> {
    const NAME: &'static str = ["p0", "p1", "p2", "p3"][N];
    const STAGE: Stage = [Stage::Source, Stage::Processor, Stage::Link, Stage::Store][N];
    const CAPACITY: usize = CAPACITY;
    const IN_HAND: usize = 8;

    fn contract(contract: &mut Contract<Self>) {
        contract.answers::<Add<N>>().answers::<Run<N>>().answers::<Later<N>>().answers::<Apart<N>>();
        contract.answers::<Alone<N>>();
    }

    fn stop(&mut self, _ctx: &mut Context<Self>) -> ResponseActFuture<Self, ()> {
        self.log.add(format!("p{N} stopped"));
        match self.on_stop.clone() {
            Some(hook) => hook(),
            None => Box::pin(actix::fut::ready(())),
        }
    }
}

/// Adds to the sum, logs it, answers the sum.
#[derive(Message)]
#[rtype(result = "u32")]
pub(crate) struct Add<const N: usize>(pub(crate) u32);

impl<const N: usize> Handler<Add<N>> for Probe<N> {
    type Result = u32;

    fn handle(&mut self, message: Add<N>, _: &mut Context<Self>) -> u32 {
        self.log.add(format!("p{N} add {}", message.0));
        self.sum += message.0;
        self.sum
    }
}

type Nothing = ();

macro_rules! doing {
    ($(#[$doc:meta])* $name:ident, $answer:ty, $result:ty) => {
        $(#[$doc])*
        pub(crate) struct $name<const N: usize>(Box<dyn FnOnce(&mut Probe<N>, &mut Context<Probe<N>>) -> $result + Send>);

        impl<const N: usize> $name<N> {
            pub(crate) fn new(
                what: impl FnOnce(&mut Probe<N>, &mut Context<Probe<N>>) -> $result + Send + 'static,
            ) -> Self {
                Self(Box::new(what))
            }
        }

        impl<const N: usize> Message for $name<N> {
            type Result = $answer;
        }
    };
}

doing!(/** Runs in the handler. */ Run, (), Nothing);
doing!(/** Answered by a future with the component in hand. */ Later, u32, ResponseActFuture<Probe<N>, u32>);
doing!(/** Answered by a future apart from the component. */ Apart, u32, ResponseFuture<u32>);
doing!(/** Answered by a future that keeps other messages out. */ Alone, u32, ResponseActFuture<Probe<N>, u32>);

impl<const N: usize> Handler<Run<N>> for Probe<N> {
    type Result = ();

    fn handle(&mut self, message: Run<N>, ctx: &mut Context<Self>) {
        (message.0)(self, ctx);
    }
}

impl<const N: usize> Handler<Later<N>> for Probe<N> {
    type Result = ResponseActFuture<Self, u32>;

    fn handle(&mut self, message: Later<N>, ctx: &mut Context<Self>) -> Self::Result {
        (message.0)(self, ctx)
    }
}

impl<const N: usize> Handler<Apart<N>> for Probe<N> {
    type Result = ResponseFuture<u32>;

    fn handle(&mut self, message: Apart<N>, ctx: &mut Context<Self>) -> Self::Result {
        (message.0)(self, ctx)
    }
}

impl<const N: usize> Handler<Alone<N>> for Probe<N> {
    type Result = AtomicResponse<Self, u32>;

    fn handle(&mut self, message: Alone<N>, ctx: &mut Context<Self>) -> Self::Result {
        AtomicResponse::new((message.0)(self, ctx))
    }
}

/// One probe, the source, with no more than the log.
pub(crate) fn one(log: &Log) -> System {
    with_one(log, |probe| probe).start().unwrap()
}

/// One probe, dressed by the test.
pub(crate) fn with_one(log: &Log, dress: impl Fn(Probe<0>) -> Probe<0> + 'static) -> SystemBuilder {
    let log = log.clone();
    System::builder("test").component(move |_: &Ports| dress(Probe::<0>::new(&log)))
}

/// Restarts without delay that a test may use up.
pub(crate) fn quick(budget: u32) -> RestartPolicy {
    RestartPolicy { base: Duration::from_millis(1), budget, ..RestartPolicy::default() }
}

/// Holds the component's arbiter-side attention until the returned sender is used or dropped: messages pile up.
pub(crate) async fn hold<const N: usize>(system: &System) -> tokio::sync::oneshot::Sender<()> {
    let (release, released) = tokio::sync::oneshot::channel::<()>();
    let (taken, is_taken) = tokio::sync::oneshot::channel();
    let port: Port<Alone<N>> = system.port();
    let holding = Alone::new(move |_, _| {
        taken.send(()).unwrap();
        Box::pin(actix::fut::wrap_future(async move {
            let _ = released.await;
            0
        }))
    });
    port.tell(holding).await.unwrap();
    is_taken.await.unwrap();
    release
}

/// Everything told before this has been handled.
pub(crate) async fn flush<const N: usize>(system: &System) {
    system.port::<Run<N>>().ask(Run::new(|_, _| ()), LONG).await.unwrap();
}
