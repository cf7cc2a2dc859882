//! A message in a queue: what is done around each handler call.

use super::{
    Component, Context, Parked,
    context::panic_text,
    port::Reply,
    trace::{Entered, Trace},
    vitals::InHand,
    wiring::short_name,
};
use actix::{
    Handler, Message, ResponseFuture,
    dev::{EnvelopeProxy, MessageResponse, ToEnvelope},
};
use futures_util::FutureExt;
use std::{
    any::{Any, TypeId, type_name},
    panic::{AssertUnwindSafe, catch_unwind},
};

/// A message of any type that `A` handles, in `A`'s queue.
pub(crate) type Letter<A> = Box<dyn Sealed<A>>;

/// A message with where its answer goes.
pub(crate) trait Sealed<A: Component>: EnvelopeProxy<A> + Send {
    /// The message's type, for logs.
    fn message(&self) -> &'static str;
}

pub(crate) struct Envelope<M: Message> {
    message: Option<M>,
    reply: Option<Reply<M>>,
    /// What its sender was part of.
    trace: Option<Trace>,
}

impl<M> Envelope<M>
where
    M: Message + Send + 'static,
    M::Result: Send,
{
    pub(crate) fn letter<A: Component + Handler<M>>(message: M, reply: Option<Reply<M>>) -> Letter<A> {
        Box::new(Self::new(message, reply))
    }

    /// An event that was announced earlier, as part of this.
    pub(crate) fn letter_of<A: Component + Handler<M>>(event: M, trace: Option<Trace>) -> Letter<A> {
        Box::new(Self { message: Some(event), reply: None, trace })
    }

    fn new(message: M, reply: Option<Reply<M>>) -> Self {
        Self { message: Some(message), reply, trace: Trace::current() }
    }
}

impl<A, M> Sealed<A> for Envelope<M>
where
    A: Component + Handler<M>,
    M: Message + Send + 'static,
    M::Result: Send,
{
    fn message(&self) -> &'static str {
        short_name(type_name::<M>())
    }
}

impl<A, M> EnvelopeProxy<A> for Envelope<M>
where
    A: Component + Handler<M>,
    M: Message + Send + 'static,
    M::Result: Send,
{
    fn handle(&mut self, act: &mut A, ctx: &mut Context<A>) {
        let reply = self.reply.take();
        if reply.as_ref().is_some_and(|reply| reply.is_closed()) {
            ctx.vitals().expired();
            return;
        }
        let Some(message) = self.message.take() else { return };
        let (span, _traced) = operation(ctx, type_name::<M>(), self.trace.as_ref());
        let _entered = span.enter();
        // The component is rebuilt after a panic, so what it leaves behind is never seen again.
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            let response = Handler::handle(act, message, ctx);
            respond::<A, M>(response, ctx, reply);
        }));
        if let Err(panic) = outcome {
            let text = panic_text(&*panic);
            ctx.vitals().park(Parked::new(ctx.vitals().name, short_name(type_name::<M>()), 1, text), None);
            ctx.crashed(text);
        }
    }
}

/// Handling a message is an operation of its own in the sender's trace. A component has none between messages.
///
/// The message's type comes with its path: shortening it costs more than a message, and only a span that somebody looks
/// at needs it.
#[inline]
pub(crate) fn operation<A: Component>(
    ctx: &Context<A>,
    type_name: &'static str,
    sender: Option<&Trace>,
) -> (tracing::Span, Option<Entered>) {
    let span = tracing::debug_span!(
        "handle",
        component = ctx.vitals().name,
        message = short_name(type_name),
        trace_id = tracing::field::Empty,
        span_id = tracing::field::Empty,
    );
    let traced = sender.map(|sender| {
        let trace = sender.child();
        trace.record(&span);
        Trace::enter(Some(trace))
    });
    (span, traced)
}

/// Gives the answer, now or by a future.
///
/// actix spawns a `ResponseFuture` on the runtime, out of our sight; we spawn it ourselves, so that its panic is
/// counted, its asker told, and an ordered stop waits for it. The comparison of types costs nothing at run time.
pub(crate) fn respond<A, M>(response: <A as Handler<M>>::Result, ctx: &mut Context<A>, reply: Option<Reply<M>>)
where
    A: Component + Handler<M>,
    M: Message + Send + 'static,
    M::Result: Send,
{
    if TypeId::of::<<A as Handler<M>>::Result>() == TypeId::of::<ResponseFuture<M::Result>>() {
        let mut response = Some(response);
        let future =
            (&mut response as &mut dyn Any).downcast_mut::<Option<ResponseFuture<M::Result>>>().and_then(Option::take);
        if let Some(mut future) = future {
            let in_hand = InHand::new(ctx.vitals());
            let vitals = std::sync::Arc::clone(ctx.vitals());
            let span = tracing::Span::current();
            let answering = tracing::Instrument::instrument(
                async move {
                    // Its turns are the component's, for whoever looks for one that does not end.
                    let in_turns = std::future::poll_fn(|cx| {
                        let _turn = vitals.turn();
                        future.poll_unpin(cx)
                    });
                    match AssertUnwindSafe(in_turns).catch_unwind().await {
                        // An asker that left is no fault of ours.
                        Ok(answer) => drop(reply.map(|reply| reply.send(answer))),
                        Err(panic) => {
                            vitals.panicked();
                            let message = short_name(type_name::<M>());
                            vitals.park(Parked::new(vitals.name, message, 1, panic_text(&*panic)), None);
                        }
                    }
                    drop(in_hand);
                },
                span,
            );
            actix_rt::spawn(Trace::scope(Trace::current(), answering));
        }
    } else {
        ctx.replying(Some(type_name::<M>()));
        response.handle(ctx, reply);
        ctx.replying(None);
    }
}

/// For actix addresses (`ctx.address()`): the same care around a message as through a port.
impl<A, M> ToEnvelope<A, M> for Context<A>
where
    A: Component + Handler<M>,
    M: Message + Send + 'static,
    M::Result: Send,
{
    fn pack(message: M, reply: Option<Reply<M>>) -> actix::dev::Envelope<A> {
        actix::dev::Envelope::with_proxy(Box::new(Envelope::new(message, reply)))
    }
}
