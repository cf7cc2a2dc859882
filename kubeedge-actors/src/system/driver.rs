//! One component at work: takes letters from its queue, builds it again after a failure, brings it to an orderly end.
//!
//! The [`Driver`] is a future inside the component's actix context and so has the component in hand; the [`Shell`]
//! around that context catches what panics outside it and enforces the end.

use super::{
    Component, Context, Exit, Ports,
    context::{Fault, panic_text},
    letter::Letter,
    queue::Receiver,
    restart::{RestartPolicy, Streak},
    topic::Feeds,
    vitals::{Command, Phase, Vitals},
};
use actix::{
    ActorContext, ActorFuture, AsyncContext, ResponseActFuture,
    dev::{AsyncContextParts, ContextFut, Mailbox},
};
use std::{
    future::Future,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{self, Poll, Waker},
    time::{Duration, Instant},
};
use tokio::time::Sleep;

/// Letters handled in one go. Below tokio's budget of 128 operations for a task's turn, so that a flooded component's
/// timers and replies get their share of every turn.
const BATCH: u64 = 64;

/// Events from buffers beside the queue that go before its messages in one batch.
const EVENTS: u64 = 16;

/// One batch in so many is timed from its first message.
const SAMPLE: u64 = 64;

/// Any batch is timed from its message of this number on: then the clock costs little beside the messages.
const TIMED_FROM: u64 = 8;

/// A batch that holds its arbiter this long delays everybody on it: worth a warning.
const SLOW: Duration = Duration::from_millis(100);

pub(crate) type Factory<A> = Rc<dyn Fn(&Ports) -> A>;

/// What a component needs to run, and to be built again.
pub(crate) struct Plan<A: Component> {
    pub(crate) queue: Receiver<Letter<A>>,
    pub(crate) feeds: Feeds<A>,
    pub(crate) factory: Factory<A>,
    pub(crate) ports: Ports,
    pub(crate) policy: RestartPolicy,
    pub(crate) vitals: Arc<Vitals>,
}

enum State<A: Component> {
    Running,
    BackingOff(Pin<Box<Sleep>>),
    /// The queue is closed; what is in it and the replies under way are finished, then it exits like this.
    Draining(Exit),
    /// `Component::stop` runs.
    Stopping(ResponseActFuture<A, ()>, Exit),
}

struct Driver<A: Component> {
    plan: Plan<A>,
    state: State<A>,
    streak: Streak,
    alive_since: tokio::time::Instant,
    batches: u64,
    exit: Rc<std::cell::Cell<Option<Exit>>>,
}

/// Letters handled in one go.
struct Batch<A: Component> {
    /// When it began to be timed, and how many letters it had handled by then.
    start: Option<(Instant, u64)>,
    letters: u64,
    events: u64,
    last: Option<Letter<A>>,
}

/// How handling a batch ended.
enum Taken {
    /// Nothing to do now; the task is registered to be woken.
    Idle,
    /// The context waits, or the component broke: somebody else's turn.
    Held,
    /// The queue is closed and empty.
    Drained,
}

impl<A: Component> Driver<A> {
    /// Handles letters until there is nothing to do, or somebody else's turn comes.
    ///
    /// The clock is read twice a long batch, and twice in a sample of the short ones: it costs a tenth of an ask.
    fn take_letters(&mut self, act: &mut A, ctx: &mut Context<A>, task: &mut task::Context<'_>) -> Taken {
        let mut batch = Batch { start: None, letters: 0, events: 0, last: None };
        let taken = self.take_batch(act, ctx, task, &mut batch);
        self.plan.queue.settle();
        if batch.letters > 0 {
            self.batches = self.batches.wrapping_add(1);
            self.plan.vitals.handled(batch.letters);
        }
        if let Some((start, before)) = batch.start {
            let took = start.elapsed();
            self.plan.vitals.timed(batch.letters - before, took);
            if took >= SLOW {
                self.plan.vitals.take_blocking();
                self.held_its_arbiter(&batch, took);
            }
        } else if let Some(took) = self.plan.vitals.take_blocking().filter(|_| batch.letters > 0) {
            self.held_its_arbiter(&batch, took);
        }
        taken
    }

    fn held_its_arbiter(&self, batch: &Batch<A>, took: Duration) {
        let last = batch.last.as_ref().map_or("", |letter| letter.message());
        let component = self.plan.vitals.name;
        tracing::warn!(component, letters = batch.letters, last, ?took, "handlers held their arbiter");
    }

    fn take_batch(
        &mut self,
        act: &mut A,
        ctx: &mut Context<A>,
        task: &mut task::Context<'_>,
        batch: &mut Batch<A>,
    ) -> Taken {
        while batch.letters < BATCH {
            if ctx.waiting() || ctx.ending() && matches!(self.state, State::Running) {
                return Taken::Held;
            }
            let vitals = &self.plan.vitals;
            if vitals.in_hand() >= A::IN_HAND {
                vitals.watch_in_hand();
                if vitals.in_hand() >= A::IN_HAND {
                    return Taken::Idle;
                }
            }
            let next = match ctx.take_again() {
                Some(letter) => Poll::Ready(Some(letter)),
                None => self.next_letter(task, batch),
            };
            match next {
                Poll::Ready(Some(mut letter)) => {
                    if batch.letters == 0 && self.batches.is_multiple_of(SAMPLE)
                        || batch.letters == TIMED_FROM && batch.start.is_none()
                    {
                        batch.start = Some((Instant::now(), batch.letters));
                    }
                    batch.letters += 1;
                    letter.handle(act, ctx);
                    batch.last = Some(letter);
                }
                Poll::Ready(None) => return Taken::Drained,
                Poll::Pending => return Taken::Idle,
            }
        }
        task.waker().wake_by_ref();
        Taken::Idle
    }

    /// From the buffers, while they have had less than their share of this batch; from the queue; and from the buffers
    /// again when the queue is empty.
    fn next_letter(&mut self, task: &mut task::Context<'_>, batch: &mut Batch<A>) -> Poll<Option<Letter<A>>> {
        let Plan { queue, feeds, .. } = &mut self.plan;
        if feeds.is_empty() {
            return queue.poll_recv(task);
        }
        if batch.events < EVENTS
            && let Some(letter) = feeds.take()
        {
            batch.events += 1;
            return Poll::Ready(Some(letter));
        }
        match queue.poll_recv(task) {
            Poll::Ready(Some(letter)) => Poll::Ready(Some(letter)),
            nothing => feeds.take().map_or(nothing, |letter| Poll::Ready(Some(letter))),
        }
    }

    /// The next wait before a rebuild, or the exit when there is to be none.
    fn judge(&mut self, fault: &Fault) -> Result<Duration, Exit> {
        let exit = || match fault {
            Fault::Panic(_) => Exit::Panicked,
            Fault::Failed(error) => Exit::Failed(error.clone()),
            Fault::Stuck(..) => Exit::Stuck,
        };
        if matches!(self.state, State::Stopping(..)) {
            tracing::error!(component = self.plan.vitals.name, %fault, "the component failed while it stopped");
            return Err(exit());
        }
        // Time without progress is no calm.
        let stood = if let Fault::Stuck(_, stood) = fault { *stood } else { Duration::ZERO };
        let ran = self.alive_since.elapsed().saturating_sub(stood);
        match self.streak.failed(&self.plan.policy, ran, self.plan.vitals.dice()) {
            Some(wait) => {
                let component = self.plan.vitals.name;
                tracing::error!(component, %fault, ?wait, "the component failed and is built again");
                Ok(wait)
            }
            None => {
                tracing::error!(component = self.plan.vitals.name, %fault, "the component failed too often and ends");
                Err(exit())
            }
        }
    }

    /// Puts a new component in the place of the failed one. A panic on the way is the next failure.
    fn rebuild(&mut self, act: &mut A, ctx: &mut Context<A>) {
        ctx.forgive();
        self.plan.vitals.restarted();
        self.alive_since = tokio::time::Instant::now();
        let built = catch_unwind(AssertUnwindSafe(|| {
            let failed = std::mem::replace(act, (self.plan.factory)(&self.plan.ports));
            // A destructor of the failed component must not take the new one with it.
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| drop(failed))) {
                self.plan.vitals.panicked();
                tracing::error!(
                    component = self.plan.vitals.name,
                    panic = panic_text(&*panic),
                    "its destructor panicked"
                );
            }
            act.started(ctx);
        }));
        if let Err(panic) = built {
            ctx.crashed(panic_text(&*panic));
        }
    }

    fn end(&self, ctx: &mut Context<A>, exit: Exit) -> Poll<()> {
        self.exit.set(Some(exit));
        ctx.terminate();
        Poll::Ready(())
    }
}

impl<A: Component> ActorFuture<A> for Driver<A> {
    type Output = ();

    fn poll(
        mut self: Pin<&mut Self>,
        act: &mut A,
        ctx: &mut Context<A>,
        task: &mut task::Context<'_>,
    ) -> Poll<Self::Output> {
        let this = &mut *self;
        this.plan.vitals.free();
        loop {
            if let Some(fault) = ctx.fault().filter(|_| !matches!(this.state, State::BackingOff(_))).cloned() {
                match this.judge(&fault) {
                    Err(exit) => return this.end(ctx, exit),
                    Ok(wait) => {
                        this.state = State::BackingOff(Box::pin(tokio::time::sleep(wait)));
                        this.plan.vitals.set_phase(Phase::BackingOff);
                        // Futures of the life that ended, polled before this one, notice it in the next turn.
                        task.waker().wake_by_ref();
                    }
                }
            }
            let stopping = this.plan.vitals.command() != Command::Run;
            match &mut this.state {
                State::BackingOff(sleep) => {
                    // At a stop there is nothing to wait for: what is queued has to be finished.
                    if !stopping && sleep.as_mut().poll(task).is_pending() {
                        return Poll::Pending;
                    }
                    this.state = State::Running;
                    this.plan.vitals.set_phase(Phase::Running);
                    this.rebuild(act, ctx);
                    // The actix mailbox was passed over while the component was broken.
                    task.waker().wake_by_ref();
                }
                State::Running if stopping || ctx.ending() => {
                    this.plan.queue.close();
                    this.plan.feeds.close();
                    this.plan.vitals.set_phase(Phase::Stopping);
                    this.state = State::Draining(if stopping { Exit::Stopped } else { Exit::Done });
                }
                State::Running => match this.take_letters(act, ctx, task) {
                    Taken::Held if ctx.fault().is_some() || ctx.ending() => {}
                    Taken::Idle | Taken::Held | Taken::Drained => return Poll::Pending,
                },
                State::Draining(exit) => {
                    let exit = exit.clone();
                    match this.take_letters(act, ctx, task) {
                        Taken::Held if ctx.fault().is_some() => {}
                        Taken::Idle | Taken::Held => return Poll::Pending,
                        Taken::Drained => {
                            this.plan.vitals.watch_in_hand();
                            if this.plan.vitals.in_hand() > 0 {
                                return Poll::Pending;
                            }
                            this.state = match catch_unwind(AssertUnwindSafe(|| act.stop(ctx))) {
                                Ok(stop) => State::Stopping(stop, exit),
                                Err(panic) => {
                                    ctx.crashed(panic_text(&*panic));
                                    State::Stopping(Box::pin(actix::fut::ready(())), exit)
                                }
                            };
                        }
                    }
                }
                State::Stopping(stop, exit) => {
                    let exit = exit.clone();
                    match catch_unwind(AssertUnwindSafe(|| stop.as_mut().poll(act, ctx, task))) {
                        Ok(Poll::Pending) => return Poll::Pending,
                        Ok(Poll::Ready(())) => return this.end(ctx, exit),
                        Err(panic) => ctx.crashed(panic_text(&*panic)),
                    }
                }
            }
        }
    }
}

/// A component's task.
pub(crate) struct Shell<A: Component> {
    context: Option<ContextFut<A, Context<A>>>,
    vitals: Arc<Vitals>,
    exit: Rc<std::cell::Cell<Option<Exit>>>,
    task: Option<Waker>,
}

impl<A: Component> Shell<A> {
    pub(crate) fn new(component: A, plan: Plan<A>) -> Self {
        let vitals = Arc::clone(&plan.vitals);
        let exit = Rc::new(std::cell::Cell::new(None));
        let mut mailbox = Mailbox::default();
        mailbox.set_capacity(A::CAPACITY);
        let mut ctx = Context::new(&mailbox, Arc::clone(&vitals));
        ctx.spawn_unguarded(Driver {
            plan,
            state: State::Running,
            streak: Streak::default(),
            alive_since: tokio::time::Instant::now(),
            batches: 0,
            exit: Rc::clone(&exit),
        });
        Self { context: Some(ContextFut::new(ctx, component, mailbox)), vitals, exit, task: None }
    }

    /// Reports the exit, then drops the component and its queue: askers that lose their answer learn that it stopped.
    fn end(&mut self, exit: Exit) -> Poll<()> {
        tracing::info!(component = self.vitals.name, %exit, "the component ended");
        self.vitals.exited(exit);
        if let Some(mut context) = self.context.take() {
            // Without this, actix polls the component once more while it drops it.
            context.ctx().parts().terminate();
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| drop(context))) {
                self.vitals.panicked();
                tracing::error!(component = self.vitals.name, panic = panic_text(&*panic), "its destructor panicked");
            }
        }
        Poll::Ready(())
    }
}

impl<A: Component> Drop for Shell<A> {
    /// The arbiter ends under the component.
    fn drop(&mut self) {
        if self.context.is_some() {
            let _ = self.end(Exit::Stuck);
        }
    }
}

impl<A: Component> Future for Shell<A> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut task::Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        if !this.task.as_ref().is_some_and(|task| task.will_wake(cx.waker())) {
            this.vitals.listen(cx.waker());
            this.task = Some(cx.waker().clone());
        }
        this.vitals.turn_changes();
        let polled = this.turn(cx);
        if let Some(took) = this.vitals.take_blocking() {
            tracing::warn!(component = this.vitals.name, ?took, "its futures held their arbiter");
        }
        this.vitals.turn_changes();
        polled
    }
}

impl<A: Component> Shell<A> {
    fn turn(&mut self, cx: &mut task::Context<'_>) -> Poll<()> {
        let this = self;
        if this.vitals.command() == Command::Abort {
            return this.end(Exit::Stuck);
        }
        if let (Some(verdict), Some(context)) = (this.vitals.verdict(), this.context.as_mut()) {
            context.ctx().stuck(verdict);
        }
        loop {
            let Some(context) = this.context.as_mut() else { return Poll::Ready(()) };
            match catch_unwind(AssertUnwindSafe(|| Pin::new(&mut *context).poll(cx))) {
                Ok(Poll::Pending) => return Poll::Pending,
                Ok(Poll::Ready(())) => {
                    let exit = this.exit.take().unwrap_or(Exit::Done);
                    return this.end(exit);
                }
                // Outside handlers and futures: `started`, or a hook at the end.
                Err(panic) if context.ctx().state().alive() => context.ctx().crashed(panic_text(&*panic)),
                Err(_) => {
                    this.vitals.panicked();
                    let exit = this.exit.take().unwrap_or(Exit::Panicked);
                    return this.end(exit);
                }
            }
        }
    }
}
