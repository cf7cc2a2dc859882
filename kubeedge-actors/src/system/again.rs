//! Messages that are handled once more after their handler crashed.

use super::{
    AskError, Component, Context, Parked, TellError,
    context::panic_text,
    letter::{Letter, Sealed, operation, respond},
    port::{Door, Gate, Refused, Reply, Taker, Waiting, taken_or_refused},
    trace::Trace,
    wiring::short_name,
};
use actix::{Handler, Message, dev::EnvelopeProxy};
use std::{
    any::type_name,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

/// A component's queue, for a message that is handled again after a crash.
pub(crate) struct Again<A: Component>(pub(crate) Arc<Gate<A>>);

impl<A, M> Door<M> for Again<A>
where
    A: Component + Handler<M>,
    M: Message + Clone + Send + 'static,
    M::Result: Send,
{
    fn put(&self, message: M, reply: Option<Reply<M>>) -> Result<Taker, Refused<M>> {
        let sent = self.0.queue().try_send((message, reply), |(message, reply)| Repeatable::letter(message, reply));
        taken_or_refused(sent)
    }

    fn put_waiting<'a>(&'a self, message: M, reply: Option<Reply<M>>) -> Waiting<'a>
    where
        M: 'a,
    {
        Box::pin(async move {
            let room = self.0.queue().reserve().await.map_err(|_| TellError::Stopped)?;
            room.send(Repeatable::letter(message, reply));
            Ok(Taker(0))
        })
    }

    fn why_unanswered(&self, taker: Taker) -> AskError {
        <Gate<A> as Door<M>>::why_unanswered(&self.0, taker)
    }
}

/// A message of which a copy is kept while it is handled.
struct Repeatable<M: Message> {
    message: Option<M>,
    reply: Option<Reply<M>>,
    trace: Option<Trace>,
    /// How often it was handled.
    attempts: u32,
}

impl<M> Repeatable<M>
where
    M: Message + Clone + Send + 'static,
    M::Result: Send,
{
    fn letter<A: Component + Handler<M>>(message: M, reply: Option<Reply<M>>) -> Letter<A> {
        Box::new(Self { message: Some(message), reply, trace: Trace::current(), attempts: 0 })
    }
}

impl<A, M> Sealed<A> for Repeatable<M>
where
    A: Component + Handler<M>,
    M: Message + Clone + Send + 'static,
    M::Result: Send,
{
    fn message(&self) -> &'static str {
        short_name(type_name::<M>())
    }
}

impl<A, M> EnvelopeProxy<A> for Repeatable<M>
where
    A: Component + Handler<M>,
    M: Message + Clone + Send + 'static,
    M::Result: Send,
{
    fn handle(&mut self, act: &mut A, ctx: &mut Context<A>) {
        let mut reply = self.reply.take();
        if reply.as_ref().is_some_and(|reply| reply.is_closed()) {
            ctx.vitals().expired();
            return;
        }
        let Some(message) = self.message.take() else { return };
        let (span, _traced) = operation(ctx, type_name::<M>(), self.trace.as_ref());
        let _entered = span.enter();
        let mut copy = None;
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            copy = Some(message.clone());
            let response = Handler::handle(act, message, ctx);
            respond::<A, M>(response, ctx, reply.take());
        }));
        let Err(panic) = outcome else { return };
        let attempts = self.attempts + 1;
        let text = panic_text(&*panic);
        match copy {
            // With its asker, who has not been told.
            Some(copy) if attempts == 1 => {
                tracing::warn!(component = ctx.vitals().name, message = short_name(type_name::<M>()), "is tried again");
                ctx.again(Box::new(Self { message: Some(copy), reply, trace: self.trace.take(), attempts }));
            }
            copy => {
                let report = Parked::new(ctx.vitals().name, short_name(type_name::<M>()), attempts, text);
                let body = copy.map(|copy| Box::new(copy) as Box<_>);
                ctx.vitals().park(report, body);
            }
        }
        ctx.crashed(text);
    }
}
