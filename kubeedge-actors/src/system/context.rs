//! The context a component runs in: actix's own, with every future it spawns guarded against panics and failures.

use super::{
    Component, Heartbeat, Parked,
    letter::Letter,
    trace::Trace,
    vitals::{InHand, Verdict, Vitals},
    wiring::short_name,
};
use actix::{
    ActorContext, ActorFuture, ActorState, Addr, AsyncContext, SpawnHandle,
    dev::{AsyncContextParts, ContextParts, Mailbox},
};
use pin_project_lite::pin_project;
use std::{
    any::Any,
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::Arc,
    task::{self, Poll},
    time::Duration,
};

/// What went wrong in a component.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// It panicked, with this text.
    Panic(String),
    /// It reported this with [`Context::fail`].
    Failed(String),
    /// It made no progress for so long.
    Stuck(String, Duration),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Panic(text) => write!(f, "panicked: {text}"),
            Fault::Failed(error) => f.write_str(error),
            Fault::Stuck(text, _) => write!(f, "is stuck: {text}"),
        }
    }
}

/// The text of a panic, as far as it has one.
pub(crate) fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("a panic without text")
}

/// The context of a [`Component`]: an actix context (`spawn`, `wait`, `run_interval`, `notify`, `address` ...).
///
/// Every future that runs in it belongs to the component's present life: after a panic or [`fail`](Self::fail) the
/// futures of that life are dropped, the component is built again and `started` runs anew.
pub struct Context<A: Component> {
    parts: ContextParts<A>,
    vitals: Arc<Vitals>,
    /// Counts the lives of the component. A future of an earlier life is dropped instead of polled.
    life: u64,
    /// Set from a failure until the component is built again.
    fault: Option<Fault>,
    ending: bool,
    /// The type, with its path, of the message whose answer is being spawned.
    replying: Option<&'static str>,
    /// What crashed its handler once; the next life begins with it.
    again: Option<Letter<A>>,
}

impl<A: Component> Context<A> {
    pub(crate) fn new(mailbox: &Mailbox<A>, vitals: Arc<Vitals>) -> Self {
        Self {
            parts: ContextParts::new(mailbox.sender_producer()),
            vitals,
            life: 0,
            fault: None,
            ending: false,
            replying: None,
            again: None,
        }
    }

    /// Ends this life of the component with an error: it is built again by the restart policy, with its address and
    /// queue kept. The answers it has under way are given up ([`AskError::Crashed`](super::AskError::Crashed)).
    pub fn fail(&mut self, error: impl fmt::Display) {
        self.broke(Fault::Failed(error.to_string()));
    }

    /// Declares work of its own, apart from messages, that has to go on: unless it [beats](Heartbeat::beat) at least
    /// once within this time, this life of the component ends as stuck. The next life declares anew.
    ///
    /// Found at most a quarter later, or a second if that is longer. A component has at most 64; one more is logged and
    /// not watched.
    pub fn heartbeat(&mut self, what: &'static str, within: Duration) -> Heartbeat {
        let alive = self.fault.is_none();
        let (heartbeat, watched) = self.vitals.heartbeats.begin(what, within, alive);
        if alive && !watched {
            tracing::error!(component = self.vitals.name, what, "one heartbeat too many: it is not watched");
        }
        heartbeat
    }

    /// The watchdog ends this life.
    pub(crate) fn stuck(&mut self, verdict: Verdict) {
        self.broke(Fault::Stuck(verdict.text, verdict.stood));
    }

    pub(crate) fn crashed(&mut self, text: &str) {
        self.vitals.panicked();
        self.broke(Fault::Panic(text.to_owned()));
    }

    fn broke(&mut self, fault: Fault) {
        self.replying = None;
        match &self.fault {
            // The first fault is the cause; what follows from it is only logged.
            Some(first) => {
                tracing::debug!(component = self.vitals.name, ?first, ?fault, "failed again before it was rebuilt")
            }
            None => {
                self.life += 1;
                self.fault = Some(fault);
            }
        }
    }

    pub(crate) fn vitals(&self) -> &Arc<Vitals> {
        &self.vitals
    }

    pub(crate) fn fault(&self) -> Option<&Fault> {
        self.fault.as_ref()
    }

    pub(crate) fn forgive(&mut self) -> Option<Fault> {
        self.fault.take()
    }

    /// Whether the component asked to end.
    pub(crate) fn ending(&self) -> bool {
        self.ending
    }

    /// While set, spawned futures carry an answer to a message of this type, which an ordered stop waits for.
    pub(crate) fn replying(&mut self, type_name: Option<&'static str>) {
        self.replying = type_name;
    }

    /// The next life begins with this message.
    pub(crate) fn again(&mut self, letter: Letter<A>) {
        self.again = Some(letter);
    }

    pub(crate) fn take_again(&mut self) -> Option<Letter<A>> {
        self.again.take()
    }

    /// Runs the kit's own future in this context, outside any life of the component.
    pub(crate) fn spawn_unguarded(&mut self, future: impl ActorFuture<A, Output = ()> + 'static) {
        self.parts.spawn(future);
    }

    fn guard<F: ActorFuture<A, Output = ()>>(&self, future: F) -> Guarded<F> {
        Guarded {
            future: Some(future),
            // What a failed component still spawns belongs to the life that has just ended.
            life: if self.fault.is_some() { self.life.wrapping_sub(1) } else { self.life },
            in_hand: self.replying.map(|type_name| (InHand::new(&self.vitals), short_name(type_name))),
            span: tracing::Span::current(),
            trace: Trace::current(),
        }
    }
}

impl<A: Component> fmt::Debug for Context<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context").field("component", &A::NAME).field("life", &self.life).finish_non_exhaustive()
    }
}

impl<A: Component> ActorContext for Context<A> {
    /// Ends the component in order: it takes no new messages, handles what is queued, runs `Component::stop`, and
    /// exits `Done`. It is not built again.
    fn stop(&mut self) {
        self.ending = true;
    }

    /// Ends the component at once, with whatever is queued.
    fn terminate(&mut self) {
        self.ending = true;
        self.parts.terminate();
    }

    fn state(&self) -> ActorState {
        self.parts.state()
    }
}

impl<A: Component> AsyncContext<A> for Context<A> {
    /// The component's actix address. It has a bounded queue of its own beside the ports' one and none of the ports'
    /// guarantees (actix does not wake a sender that waits for room): for actix helpers, not for other components.
    fn address(&self) -> Addr<A> {
        self.parts.address()
    }

    fn spawn<F>(&mut self, future: F) -> SpawnHandle
    where
        F: ActorFuture<A, Output = ()> + 'static,
    {
        let guarded = self.guard(future);
        self.parts.spawn(guarded)
    }

    fn wait<F>(&mut self, future: F)
    where
        F: ActorFuture<A, Output = ()> + 'static,
    {
        let guarded = self.guard(future);
        self.parts.wait(guarded);
    }

    /// Also true while the component is broken: no message reaches it before it is built again.
    fn waiting(&self) -> bool {
        self.fault.is_some() || self.parts.waiting()
    }

    fn cancel_future(&mut self, handle: SpawnHandle) -> bool {
        self.parts.cancel_future(handle)
    }
}

impl<A: Component> AsyncContextParts<A> for Context<A> {
    fn parts(&mut self) -> &mut ContextParts<A> {
        &mut self.parts
    }
}

pin_project! {
    /// A future of a component: its panic is the component's failure, and it dies with the life it was spawned in.
    struct Guarded<F> {
        #[pin]
        future: Option<F>,
        life: u64,
        in_hand: Option<(InHand, &'static str)>,
        span: tracing::Span,
        trace: Option<Trace>,
    }
}

impl<A: Component, F: ActorFuture<A, Output = ()>> ActorFuture<A> for Guarded<F> {
    type Output = ();

    fn poll(
        self: Pin<&mut Self>,
        act: &mut A,
        ctx: &mut Context<A>,
        task: &mut task::Context<'_>,
    ) -> Poll<Self::Output> {
        let mut this = self.project();
        let _entered = this.span.enter();
        let _traced = this.trace.clone().map(|trace| Trace::enter(Some(trace)));
        if *this.life == ctx.life {
            let polled = catch_unwind(AssertUnwindSafe(|| match this.future.as_mut().as_pin_mut() {
                Some(future) => future.poll(act, ctx, task),
                None => Poll::Ready(()),
            }));
            match polled {
                Ok(Poll::Pending) if *this.life == ctx.life => return Poll::Pending,
                Ok(_) => {}
                Err(panic) => {
                    let text = panic_text(&*panic);
                    if let Some((_, message)) = this.in_hand {
                        ctx.vitals.park(Parked::new(ctx.vitals.name, message, 1, text), None);
                    }
                    ctx.crashed(text);
                }
            }
            if *this.life != ctx.life {
                // The driver may have had its turn already.
                task.waker().wake_by_ref();
            }
        }
        // Dropped here, where a panic in a destructor can still be caught.
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| this.future.set(None))) {
            ctx.vitals.panicked();
            tracing::error!(
                component = ctx.vitals.name,
                panic = panic_text(&*panic),
                "a future panicked while it was dropped"
            );
        }
        *this.in_hand = None;
        Poll::Ready(())
    }
}
