//! A system that has to come to a quiet end.

use super::{
    Fault, Recorder, WITHIN,
    recorder::{Complains, Hearing, Recording},
};
use crate::system::{AskError, Component, Exit, Observation, Port, Ports, RestartPolicy, System, SystemBuilder};
use actix::Message;
use std::{any::type_name, collections::HashMap, time::Duration};

/// How long the stop at the end of a test may take, by the test's clock.
const STOP_WITHIN: Duration = Duration::from_secs(30);

/// What went wrong in a component, counted as in its [`Observation`]. A quiet component has zeros.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Times it was built again.
    pub restarts: u64,
    /// Panics, in handlers, futures and replies.
    pub panics: u64,
    /// Asks that ended without an answer.
    pub unanswered: u64,
    /// Asks that were not handled because nobody waited for the answer any more.
    pub expired: u64,
    /// Times it was found to make no progress.
    pub stuck: u64,
    /// Events it lost because it had no room for them. One that a newer event of its key replaced is not lost.
    pub dropped: u64,
}

/// The components of a test.
#[must_use = "nothing runs before `start`"]
pub struct TestSystemBuilder {
    system: SystemBuilder,
    recorders: Vec<Box<dyn Complains>>,
    expected: HashMap<&'static str, Counts>,
}

impl TestSystemBuilder {
    /// Adds a component, as [`SystemBuilder::component`] does.
    pub fn component<A, F>(mut self, factory: F) -> Self
    where
        A: Component,
        F: Fn(&Ports) -> A + 'static,
    {
        self.system = self.system.component(factory);
        self
    }

    /// Adds a neighbour that answers `M` and keeps what it receives.
    pub fn records<M>(mut self, recorder: &Recorder<M>) -> Self
    where
        M: Message + Send + 'static,
        M::Result: Send + 'static,
    {
        let recording = recorder.clone();
        self.system = self.system.component_named(type_name::<M>(), move |_: &Ports| Recording(recording.clone()));
        self.recorders.push(Box::new(recorder.clone()));
        self
    }

    /// Adds a neighbour that listens to `M` and keeps what is announced.
    pub fn hears<M>(mut self, recorder: &Recorder<M>) -> Self
    where
        M: Message<Result = ()> + Clone + Send + 'static,
    {
        let recording = recorder.clone();
        self.system = self.system.component_named(type_name::<M>(), move |_: &Ports| Hearing(recording.clone()));
        self.recorders.push(Box::new(recorder.clone()));
        self
    }

    /// Declares what the test announces, as [`SystemBuilder::announces`] does.
    pub fn announces<M: Message<Result = ()> + Clone + Send + 'static>(mut self) -> Self {
        self.system = self.system.announces::<M>();
        self
    }

    /// Declares what the test sends, as [`SystemBuilder::asks`] does.
    pub fn asks<M: Message + Send + 'static>(mut self) -> Self {
        self.system = self.system.asks::<M>();
        self
    }

    /// How failed components are built again.
    pub fn restart_policy(mut self, policy: RestartPolicy) -> Self {
        self.system = self.system.restart_policy(policy);
        self
    }

    /// Exactly this happens to the component of this name until the end of the test; to every other, nothing.
    pub fn expect(mut self, component: &'static str, counts: Counts) -> Self {
        self.expected.insert(component, counts);
        self
    }

    /// Starts the components; fails on a wiring fault, and on an expectation of a component that is not there.
    #[track_caller]
    pub fn start(self) -> TestSystem {
        let system = match self.system.start() {
            Ok(system) => system,
            Err(error) => panic!("the system does not start: {error}"),
        };
        let there: Vec<_> = system.observe().into_iter().map(|component| component.name).collect();
        if let Some(absent) = self.expected.keys().find(|name| !there.contains(name)) {
            panic!("the test expects something of {absent}; there are only {there:?}");
        }
        TestSystem { system, recorders: self.recorders, expected: self.expected, ended: false }
    }
}

/// A running set of components under test. Dropped without [`assert_quiet`](Self::assert_quiet), it fails the test.
pub struct TestSystem {
    system: System,
    recorders: Vec<Box<dyn Complains>>,
    expected: HashMap<&'static str, Counts>,
    ended: bool,
}

impl TestSystem {
    /// Begins a test's system.
    pub fn builder() -> TestSystemBuilder {
        TestSystemBuilder { system: System::builder("test"), recorders: Vec::new(), expected: HashMap::new() }
    }

    /// The system itself.
    pub fn system(&self) -> &System {
        &self.system
    }

    /// The port for `M`, see [`System::port`].
    pub fn port<M>(&self) -> Port<M>
    where
        M: Message + Send + 'static,
        M::Result: Send,
    {
        self.system.port()
    }

    /// Asks, with [`WITHIN`] as the deadline, and fails without an answer. For the errors: [`port`](Self::port).
    pub async fn ask<M>(&self, message: M) -> M::Result
    where
        M: Message + Send + 'static,
        M::Result: Send,
    {
        match self.port::<M>().ask(message, WITHIN).await {
            Ok(answer) => answer,
            Err(error @ (AskError::Timeout | AskError::Crashed | AskError::Stopped)) => {
                panic!("{} has no answer: {error}", type_name::<M>())
            }
        }
    }

    /// Tells, waits for room up to [`WITHIN`], and fails if the message is not taken.
    pub async fn tell<M>(&self, message: M)
    where
        M: Message + Send + 'static,
        M::Result: Send,
    {
        match tokio::time::timeout(WITHIN, self.port::<M>().tell(message)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => panic!("{} was not taken: {error}", type_name::<M>()),
            Err(_) => panic!("{} was not taken: no room within {WITHIN:?}", type_name::<M>()),
        }
    }

    /// Announces, waits for room up to [`WITHIN`], and fails if a listener has none.
    pub async fn announce<M: Message<Result = ()> + Clone + Send + 'static>(&self, event: M) {
        if tokio::time::timeout(WITHIN, self.system.topic::<M>().announce(event)).await.is_err() {
            panic!("{} was not heard by all: no room within {WITHIN:?}", type_name::<M>());
        }
    }

    /// Puts a fault into the queue of a component, behind what is there: it happens when its turn comes.
    #[track_caller]
    pub fn inject(&self, component: &str, fault: Fault) {
        let taken = self.system.sabotage(component, fault.clone());
        assert!(taken, "{component} takes no {fault:?}: it is not there, has ended, or its queue is full");
    }

    /// Returns when nothing on this arbiter can go on unless the clock does. Only under [`run`](super::run), whose
    /// clock jumps no earlier than that.
    pub async fn idle(&self) {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }

    /// The component of this name as it is now.
    #[track_caller]
    pub fn observe(&self, component: &str) -> Observation {
        let found = self.system.observe().into_iter().find(|one| one.name == component);
        found.unwrap_or_else(|| panic!("there is no component {component}"))
    }

    /// Stops the system in order, within 30 s of the test's clock, and fails with everything that was not quiet:
    ///
    /// * a component that panicked, was built again, was stuck, lost an event for want of room, left an ask unanswered,
    ///   or found one nobody waited for any more, more or less often than the test
    ///   [expects](TestSystemBuilder::expect);
    /// * a component that did not exit ([`Exit::Stuck`]: whatever it still had in its queue was never handled) or
    ///   failed for good;
    /// * a recorder that had no reply, more messages than its bound, replies or faults left over.
    pub async fn assert_quiet(mut self) {
        self.ended = true;
        let exits = self.system.stop(STOP_WITHIN).await;
        let mut noise = Vec::new();
        for (one, (_, exit)) in self.system.observe().iter().zip(&exits) {
            let expected = self.expected.get(one.name).copied().unwrap_or_default();
            noise.extend(noise_of(one, exit, expected));
        }
        noise.extend(self.recorders.iter().flat_map(|recorder| recorder.complaints()));
        assert!(noise.is_empty(), "the test did not end quietly:\n  {}", noise.join("\n  "));
    }
}

impl Drop for TestSystem {
    fn drop(&mut self) {
        if !self.ended && !std::thread::panicking() {
            panic!("a TestSystem was dropped: end the test with `assert_quiet`");
        }
    }
}

impl std::fmt::Debug for TestSystem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TestSystem").field("system", &self.system).finish_non_exhaustive()
    }
}

/// What a component has done that the test did not expect.
fn noise_of(one: &Observation, exit: &Exit, expected: Counts) -> Vec<String> {
    let counts = Counts {
        restarts: one.restarts,
        panics: one.panics,
        unanswered: one.unanswered,
        expired: one.expired,
        stuck: one.stuck,
        dropped: one.dropped.overflow,
    };
    let differs = [
        (counts.restarts, expected.restarts, "times it was built again"),
        (counts.panics, expected.panics, "panics"),
        (counts.unanswered, expected.unanswered, "asks unanswered"),
        (counts.expired, expected.expired, "asks nobody waited for"),
        (counts.stuck, expected.stuck, "times it was stuck"),
        (counts.dropped, expected.dropped, "events lost for want of room"),
    ];
    let mut noise: Vec<String> = differs
        .into_iter()
        .filter(|(found, expected, _)| found != expected)
        .map(|(found, expected, what)| format!("{}: {found} {what}, expected {expected}", one.name))
        .collect();
    if !matches!(exit, Exit::Stopped | Exit::Done) {
        noise.push(format!("{}: leaked, its exit is \"{exit}\"", one.name));
    }
    noise
}
