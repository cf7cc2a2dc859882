//! The neighbour of a component under test: answers one message type, or listens to one, and keeps what it received.

use super::WITHIN;
use crate::system::{Component, Context, Contract, Overflow, Stage};
use actix::{Actor, ActorFutureExt, AsyncContext, Handler, Message, ResponseActFuture, fut::wrap_future};
use std::{
    any::type_name,
    collections::VecDeque,
    fmt::{self, Debug},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{sync::Notify, time::timeout};

/// Messages a recorder keeps unless told otherwise.
const BOUND: usize = 10_000;

/// A component that answers `M`: it keeps every message and replies from a closure or a list. Or one that
/// [listens](Self::listening) to `M`, an event of a topic.
///
/// Cheap to clone; the test keeps one and gives another to [`TestSystemBuilder::records`], or to
/// [`TestSystemBuilder::hears`] if `M` is announced. In exits, observations and
/// [`TestSystemBuilder::expect`] its name is the full name of the message's type. It stops last.
///
/// It keeps at most 10,000 messages ([`keeps_at_most`](Self::keeps_at_most)); one more is answered, not kept, and
/// makes the test fail at [`TestSystem::assert_quiet`].
///
/// [`TestSystemBuilder::records`]: super::TestSystemBuilder::records
/// [`TestSystemBuilder::hears`]: super::TestSystemBuilder::hears
/// [`TestSystemBuilder::expect`]: super::TestSystemBuilder::expect
/// [`TestSystem::assert_quiet`]: super::TestSystem::assert_quiet
pub struct Recorder<M: Message> {
    shared: Arc<Shared<M>>,
}

struct Shared<M: Message> {
    state: Mutex<State<M>>,
    came: Notify,
}

struct State<M: Message> {
    answers: Answers<M>,
    received: Vec<M>,
    /// Messages that came, those kept and those not.
    arrived: usize,
    /// How many of `received` the test has had from `next`.
    given: usize,
    bound: usize,
    delay: Duration,
    faults: Vec<(usize, Kind)>,
    /// What makes the test fail at its end.
    complaints: Vec<String>,
}

/// Makes the reply to a message.
type Replier<M> = Box<dyn FnMut(&M) -> <M as Message>::Result + Send>;

enum Answers<M: Message> {
    Closure(Replier<M>),
    List(VecDeque<M::Result>),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Panic,
    Fail,
}

impl<M: Message> Clone for Recorder<M> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

impl<M: Message> fmt::Debug for Recorder<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Recorder<{}>", type_name::<M>())
    }
}

impl<M> Recorder<M>
where
    M: Message + Send + 'static,
    M::Result: Send + 'static,
{
    /// Replies with what the closure makes of the message.
    pub fn answering(reply: impl FnMut(&M) -> M::Result + Send + 'static) -> Self {
        Self::with(Answers::Closure(Box::new(reply)))
    }

    /// Replies with these, one after the other. A message more is a panic of the recorder, and an answer left over
    /// makes the test fail at its end.
    pub fn replying(replies: impl IntoIterator<Item = M::Result>) -> Self {
        Self::with(Answers::List(replies.into_iter().collect()))
    }

    fn with(answers: Answers<M>) -> Self {
        let state = State {
            answers,
            received: Vec::new(),
            arrived: 0,
            given: 0,
            bound: BOUND,
            delay: Duration::ZERO,
            faults: Vec::new(),
            complaints: Vec::new(),
        };
        Self { shared: Arc::new(Shared { state: Mutex::new(state), came: Notify::new() }) }
    }

    fn state(&self) -> MutexGuard<'_, State<M>> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Panics at the `nth` message, counted from 1: it is kept, and its asker is told `Crashed`.
    #[must_use]
    pub fn panics_at(self, nth: usize) -> Self {
        self.state().faults.push((nth, Kind::Panic));
        self
    }

    /// Fails with [`Context::fail`] at the `nth` message, counted from 1: it is kept, and its asker is told `Crashed`.
    #[must_use]
    pub fn fails_at(self, nth: usize) -> Self {
        self.state().faults.push((nth, Kind::Fail));
        self
    }

    /// Replies this long after it received; further messages are taken meanwhile.
    #[must_use]
    pub fn delays(self, delay: Duration) -> Self {
        self.state().delay = delay;
        self
    }

    /// Keeps this many messages instead of 10,000.
    #[must_use]
    pub fn keeps_at_most(self, bound: usize) -> Self {
        self.state().bound = bound;
        self
    }

    /// How many messages came, those of faults included.
    pub fn count(&self) -> usize {
        self.state().arrived
    }

    /// Every message kept so far, in the order in which they came.
    pub fn received(&self) -> Vec<M>
    where
        M: Clone,
    {
        self.state().received.clone()
    }

    /// The next message that this has not returned yet; waits for it up to [`WITHIN`] and fails then.
    pub async fn next(&self) -> M
    where
        M: Clone,
    {
        let next = async {
            loop {
                let came = self.shared.came.notified();
                {
                    let mut state = self.state();
                    if let Some(message) = state.received.get(state.given).cloned() {
                        state.given += 1;
                        return message;
                    }
                }
                came.await;
            }
        };
        match timeout(WITHIN, next).await {
            Ok(message) => message,
            Err(_) => {
                let given = self.state().given;
                panic!("no further {} within {WITHIN:?}, after {given} of them", type_name::<M>())
            }
        }
    }

    /// Fails unless a message was received for which `matches` holds; `what` says what the test looks for.
    #[track_caller]
    pub fn assert_received_matching(&self, what: &str, matches: impl FnMut(&M) -> bool)
    where
        M: Debug,
    {
        let state = self.state();
        if !state.received.iter().any(matches) {
            let received = format!("{:#?}", state.received);
            drop(state);
            panic!("no {} was received that is {what}; received: {received}", type_name::<M>());
        }
    }

    /// Fails unless exactly these were received, in this order.
    #[track_caller]
    pub fn assert_received(&self, expected: &[M])
    where
        M: Debug + PartialEq,
    {
        let state = self.state();
        if state.received != expected {
            let received = format!("{:#?}", state.received);
            drop(state);
            panic!("received {received}, expected {expected:#?}");
        }
    }
}

impl<M: Message<Result = ()> + Send + 'static> Recorder<M> {
    /// Keeps what is announced; nothing is to be answered.
    pub fn listening() -> Self {
        Self::answering(|_| ())
    }
}

/// What a recorder of any type tells at the end of a test.
pub(super) trait Complains {
    fn complaints(&self) -> Vec<String>;
}

impl<M: Message> Complains for Recorder<M> {
    fn complaints(&self) -> Vec<String> {
        let state = self.shared.state.lock().unwrap_or_else(PoisonError::into_inner);
        let mut complaints = state.complaints.clone();
        let name = type_name::<M>();
        if state.arrived > state.received.len() {
            complaints.push(format!("{} {name} came, {} were kept: the bound", state.arrived, state.received.len()));
        }
        if let Answers::List(list) = &state.answers
            && !list.is_empty()
        {
            complaints.push(format!("{} replies to {name} were never asked for", list.len()));
        }
        complaints.extend(
            state.faults.iter().map(|(nth, _)| format!("a fault waited for message {nth} of {name}, which never came")),
        );
        complaints
    }
}

/// What the recorder does with a message.
enum Reply<R> {
    Now(R),
    After(Duration, R),
    Fail,
}

impl<M: Message> Recorder<M> {
    /// Keeps the message. A panic in here is the recorder's.
    fn receive(&self, message: M) -> Reply<M::Result> {
        let mut state = self.shared.state.lock().unwrap_or_else(PoisonError::into_inner);
        let state = &mut *state;
        state.arrived += 1;
        let nth = state.arrived;
        let fault = state.faults.iter().position(|(at, _)| *at == nth).map(|i| state.faults.swap_remove(i).1);
        let reply = match (&mut state.answers, fault) {
            (_, Some(_)) => None,
            (Answers::Closure(reply), None) => Some(reply(&message)),
            (Answers::List(list), None) => list.pop_front(),
        };
        if state.received.len() < state.bound {
            state.received.push(message);
            self.shared.came.notify_waiters();
        }
        match (fault, reply) {
            (None, Some(reply)) if state.delay.is_zero() => Reply::Now(reply),
            (None, Some(reply)) => Reply::After(state.delay, reply),
            (Some(Kind::Fail), _) => Reply::Fail,
            (Some(Kind::Panic), _) => panic!("a fault the test wants at message {nth} of {}", type_name::<M>()),
            (None, None) => {
                let complaint = format!("message {nth} of {} came, for which there is no reply", type_name::<M>());
                state.complaints.push(complaint.clone());
                panic!("{complaint}")
            }
        }
    }
}

/// The component behind a [`Recorder`].
pub(super) struct Recording<M: Message>(pub(super) Recorder<M>);

impl<M: Message + 'static> Unpin for Recording<M> {}

impl<M> Actor for Recording<M>
where
    M: Message + Send + 'static,
    M::Result: Send + 'static,
{
    type Context = Context<Self>;
}

impl<M> Component for Recording<M>
where
    M: Message + Send + 'static,
    M::Result: Send + 'static,
{
    const NAME: &'static str = "recorder";
    const STAGE: Stage = Stage::Store;

    fn contract(contract: &mut Contract<Self>) {
        contract.answers::<M>();
    }
}

impl<M> Handler<M> for Recording<M>
where
    M: Message + Send + 'static,
    M::Result: Send + 'static,
{
    type Result = ResponseActFuture<Self, M::Result>;

    fn handle(&mut self, message: M, ctx: &mut Context<Self>) -> Self::Result {
        match self.0.receive(message) {
            Reply::Now(reply) => Box::pin(actix::fut::ready(reply)),
            Reply::After(delay, reply) => Box::pin(wrap_future(tokio::time::sleep(delay)).map(|(), _, _| reply)),
            Reply::Fail => {
                ctx.fail("a fault the test wants");
                // Dropped with this life; the asker learns it.
                Box::pin(wrap_future(std::future::pending()))
            }
        }
    }
}

/// The component behind a [`Recorder`] of events. Who announces waits for it, so that it misses none.
pub(super) struct Hearing<M: Message>(pub(super) Recorder<M>);

impl<M: Message + 'static> Unpin for Hearing<M> {}

impl<M: Message<Result = ()> + Clone + Send + 'static> Actor for Hearing<M> {
    type Context = Context<Self>;
}

impl<M: Message<Result = ()> + Clone + Send + 'static> Component for Hearing<M> {
    const NAME: &'static str = "recorder";
    const STAGE: Stage = Stage::Store;
    /// However long the test wants it to take.
    const HEARTBEAT: Duration = Duration::MAX;

    fn contract(contract: &mut Contract<Self>) {
        contract.may_listen::<M>(Overflow::wait());
    }
}

impl<M: Message<Result = ()> + Clone + Send + 'static> Handler<M> for Hearing<M> {
    type Result = ();

    /// A [delay](Recorder::delays) keeps the next event out: its queue fills like that of a slow listener.
    fn handle(&mut self, event: M, ctx: &mut Context<Self>) {
        match self.0.receive(event) {
            Reply::Now(()) => {}
            Reply::After(delay, ()) => ctx.wait(wrap_future(tokio::time::sleep(delay))),
            Reply::Fail => ctx.fail("a fault the test wants"),
        }
    }
}
