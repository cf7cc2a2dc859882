//! The typed, bounded way to whoever answers a message.

use super::{
    Component,
    letter::{Envelope, Letter},
    progress::Look,
    queue::{Refusal, Sender},
    vitals::{Observation, Phase, Vitals},
};
use actix::{Handler, Message};
use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{self, Poll},
    time::Duration,
};
use tokio::{sync::oneshot, time::timeout};

/// Why an ask has no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AskError {
    /// Neither room nor an answer within the deadline. The message may or may not have been handled: if it was still
    /// queued it will not be.
    #[error("no answer within the deadline")]
    Timeout,
    /// The component failed, or gave the message up, before it answered. It is being built again.
    #[error("the component failed before it answered")]
    Crashed,
    /// The component has ended, or was never there.
    #[error("the component has stopped")]
    Stopped,
}

/// Why a message was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TellError {
    /// The component has ended, or was never there.
    #[error("the component has stopped")]
    Stopped,
}

/// Why a message was not taken at once; carries the message back.
#[derive(PartialEq, Eq, thiserror::Error)]
pub enum TryTellError<M> {
    /// The queue is full.
    #[error("the component's queue is full")]
    Full(M),
    /// The component has ended, or was never there.
    #[error("the component has stopped")]
    Stopped(M),
}

/// Without the message: it may be a secret, and need not be `Debug`.
impl<M> fmt::Debug for TryTellError<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            TryTellError::Full(_) => "Full(..)",
            TryTellError::Stopped(_) => "Stopped(..)",
        })
    }
}

impl<M> TryTellError<M> {
    /// The message that was not taken.
    pub fn into_inner(self) -> M {
        match self {
            TryTellError::Full(message) | TryTellError::Stopped(message) => message,
        }
    }
}

pub(crate) type Reply<M> = oneshot::Sender<<M as Message>::Result>;

/// A message that was not taken, with where its answer would have gone.
pub(crate) struct Refused<M: Message> {
    pub(crate) message: M,
    pub(crate) reply: Option<Reply<M>>,
    pub(crate) stopped: bool,
}

pub(crate) type Waiting<'a> = Pin<Box<dyn Future<Output = Result<Taker, TellError>> + Send + 'a>>;

/// Which shard of a component took a message; 0 where there is one.
#[derive(Clone, Copy)]
pub(crate) struct Taker(pub(crate) usize);

/// A component's queue, seen by one of its message types.
pub(crate) trait Door<M: Message>: Send + Sync {
    /// Takes the message if there is room now.
    fn put(&self, message: M, reply: Option<Reply<M>>) -> Result<Taker, Refused<M>>;
    /// Waits for room, first come first served. Dropped before it resolves, the message was not taken.
    fn put_waiting<'a>(&'a self, message: M, reply: Option<Reply<M>>) -> Waiting<'a>
    where
        M: 'a;
    /// Why a message that was taken has no answer.
    fn why_unanswered(&self, taker: Taker) -> AskError;
}

/// The sending half of a component's queue. Made before the component, so that components can ask each other.
pub(crate) struct Gate<A: Component> {
    queue: Sender<Letter<A>>,
    vitals: Arc<Vitals>,
}

impl<A: Component> Gate<A> {
    pub(crate) fn new(queue: Sender<Letter<A>>, vitals: Arc<Vitals>) -> Self {
        Self { queue, vitals }
    }

    pub(crate) fn queue(&self) -> &Sender<Letter<A>> {
        &self.queue
    }

    pub(crate) fn vitals(&self) -> &Arc<Vitals> {
        &self.vitals
    }

    pub(crate) fn name(&self) -> &'static str {
        self.vitals.name
    }
}

/// What the system asks of a component of any type.
pub(crate) trait Watched: Send + Sync {
    fn vitals(&self) -> &Arc<Vitals>;
    fn observe(&self) -> Observation;
    /// What the watchdog compares.
    fn look(&self) -> Look;
    /// How long it may make no progress.
    fn heartbeat(&self) -> Duration;
    /// Puts a fault into its queue, behind what is there; `false` when there is no room or it has ended.
    #[cfg(any(test, feature = "test-kit"))]
    fn sabotage(&self, fault: super::testing::Fault) -> bool;
}

impl<A: Component> Watched for Gate<A> {
    fn vitals(&self) -> &Arc<Vitals> {
        &self.vitals
    }

    fn observe(&self) -> Observation {
        let queued = if self.queue.is_closed() { 0 } else { self.queue.held() };
        self.vitals.observe(queued, self.queue.capacity())
    }

    fn look(&self) -> Look {
        let queued = !self.queue.is_closed() && self.queue.held() > 0;
        Look {
            turns: self.vitals.turns(),
            free: self.vitals.free_turns(),
            handled: self.vitals.handled_so_far(),
            waiting: queued || self.vitals.buffered_now() > 0,
            running: self.vitals.phase() == Phase::Running,
            life: self.vitals.life(),
        }
    }

    fn heartbeat(&self) -> Duration {
        A::HEARTBEAT
    }

    #[cfg(any(test, feature = "test-kit"))]
    fn sabotage(&self, fault: super::testing::Fault) -> bool {
        self.queue.try_send(fault, |fault| Box::new(fault)).is_ok()
    }
}

impl<A, M> Door<M> for Gate<A>
where
    A: Component + Handler<M>,
    M: Message + Send + 'static,
    M::Result: Send,
{
    fn put(&self, message: M, reply: Option<Reply<M>>) -> Result<Taker, Refused<M>> {
        let sent = self.queue.try_send((message, reply), |(message, reply)| Envelope::letter(message, reply));
        taken_or_refused(sent)
    }

    fn put_waiting<'a>(&'a self, message: M, reply: Option<Reply<M>>) -> Waiting<'a>
    where
        M: 'a,
    {
        Box::pin(async move {
            let room = self.queue.reserve().await.map_err(|_| TellError::Stopped)?;
            room.send(Envelope::letter(message, reply));
            Ok(Taker(0))
        })
    }

    fn why_unanswered(&self, _: Taker) -> AskError {
        self.vitals.unanswered();
        if self.vitals.phase() == Phase::Exited { AskError::Stopped } else { AskError::Crashed }
    }
}

/// A message, with where its answer goes.
type Asked<M> = (M, Option<Reply<M>>);

/// What became of a message that does not wait for room.
pub(crate) fn taken_or_refused<M: Message>(sent: Result<(), (Asked<M>, Refusal)>) -> Result<Taker, Refused<M>> {
    match sent {
        Ok(()) => Ok(Taker(0)),
        Err(((message, reply), refusal)) => Err(Refused { message, reply, stopped: refusal == Refusal::Closed }),
    }
}

/// Where messages go that no component answers: refused as if it had stopped.
pub(crate) struct Nowhere;

impl<M: Message + Send> Door<M> for Nowhere
where
    M::Result: Send,
{
    fn put(&self, message: M, reply: Option<Reply<M>>) -> Result<Taker, Refused<M>> {
        Err(Refused { message, reply, stopped: true })
    }

    fn put_waiting<'a>(&'a self, _: M, _: Option<Reply<M>>) -> Waiting<'a>
    where
        M: 'a,
    {
        Box::pin(async { Err(TellError::Stopped) })
    }

    fn why_unanswered(&self, _: Taker) -> AskError {
        AskError::Stopped
    }
}

/// The typed, bounded way to whoever answers `M` in this system. Cheap to clone; usable from any thread.
///
/// It stays valid while its component is built again. Messages of one sender through one port arrive in order, if it awaits
/// each before it sends the next.
pub struct Port<M: Message> {
    door: Arc<dyn Door<M>>,
}

impl<M: Message> Clone for Port<M> {
    fn clone(&self) -> Self {
        Self { door: Arc::clone(&self.door) }
    }
}

impl<M: Message> fmt::Debug for Port<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Port<{}>", std::any::type_name::<M>())
    }
}

impl<M: Message + Send + 'static> Port<M>
where
    M::Result: Send,
{
    pub(crate) fn new(door: Arc<dyn Door<M>>) -> Self {
        Self { door }
    }

    pub(crate) fn nowhere() -> Self {
        Self { door: Arc::new(Nowhere) }
    }

    /// Sends and waits for the answer; the deadline covers waiting for room and the answer. Its clock starts when the
    /// queue is full, or else once the other tasks of this arbiter had a turn.
    ///
    /// An ask whose future is dropped, or whose deadline passes, while the message is still queued is not handled.
    pub async fn ask(&self, message: M, deadline: Duration) -> Result<M::Result, AskError> {
        let (reply, mut answer) = oneshot::channel();
        let waiting = match self.door.put(message, Some(reply)) {
            Ok(taker) => match NextTurn::of(&mut answer).await {
                Some(answered) => return answered.map_err(|_| self.door.why_unanswered(taker)),
                None => Ok(taker),
            },
            Err(refused) => Err(refused),
        };
        // Boxed, so that the future of an ask that a neighbour answers stays small.
        Box::pin(self.wait_for_answer(waiting, answer, deadline)).await
    }

    /// With a timer: for room, if the message was refused, and for the answer.
    async fn wait_for_answer(
        &self,
        put: Result<Taker, Refused<M>>,
        answer: oneshot::Receiver<M::Result>,
        deadline: Duration,
    ) -> Result<M::Result, AskError> {
        let queued_and_answered = async {
            let taker = match put {
                Ok(taker) => taker,
                Err(refused) if refused.stopped => return Err(AskError::Stopped),
                Err(Refused { message, reply, .. }) => {
                    let taker = self.door.put_waiting(message, reply).await;
                    taker.map_err(|TellError::Stopped| AskError::Stopped)?
                }
            };
            answer.await.map_err(|_| self.door.why_unanswered(taker))
        };
        timeout(deadline, queued_and_answered).await.map_err(|_| AskError::Timeout)?
    }

    /// Sends without waiting for an answer; waits for room. Once this returns `Ok` the message is in the queue, and it
    /// is handled unless the component ends first.
    ///
    /// Dropped before it returns, the message was not sent.
    pub async fn tell(&self, message: M) -> Result<(), TellError> {
        match self.door.put(message, None) {
            Ok(_) => Ok(()),
            Err(refused) if refused.stopped => Err(TellError::Stopped),
            Err(refused) => self.door.put_waiting(refused.message, None).await.map(|_| ()),
        }
    }

    /// Sends without waiting, for an answer or for room: a full queue refuses and hands the message back.
    pub fn try_tell(&self, message: M) -> Result<(), TryTellError<M>> {
        self.door.put(message, None).map(|_| ()).map_err(|refused| match refused.stopped {
            true => TryTellError::Stopped(refused.message),
            false => TryTellError::Full(refused.message),
        })
    }
}

/// The answer, if it is there after every other runnable task had a turn.
///
/// A neighbour on the same arbiter answers within that turn: neither a timer nor a waker is worth its price before.
struct NextTurn<'a, F> {
    answer: &'a mut F,
    waited: bool,
}

impl<'a, F> NextTurn<'a, F> {
    fn of(answer: &'a mut F) -> Self {
        Self { answer, waited: false }
    }
}

impl<F: Future + Unpin> Future for NextTurn<'_, F> {
    type Output = Option<F::Output>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut task::Context<'_>) -> Poll<Self::Output> {
        if !std::mem::replace(&mut self.waited, true) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        match Pin::new(&mut *self.answer).poll(cx) {
            Poll::Ready(answer) => Poll::Ready(Some(answer)),
            Poll::Pending => Poll::Ready(None),
        }
    }
}
