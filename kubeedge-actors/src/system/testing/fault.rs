//! Faults that a test puts into a component's queue.

use crate::system::{Component, Context, letter::Sealed};
use actix::{AsyncContext, dev::EnvelopeProxy};
use std::time::Duration;

/// What goes wrong in a component when the fault's turn in its queue comes. It counts as a handled message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The component panics, as far as its supervision can tell: this life ends, the futures of this life are dropped,
    /// it is built again.
    Panic,
    /// The component reports this with [`Context::fail`].
    Fail(String),
    /// The component handles nothing else for this long; its queue fills.
    Delay(Duration),
}

impl<A: Component> EnvelopeProxy<A> for Fault {
    fn handle(&mut self, _: &mut A, ctx: &mut Context<A>) {
        match self {
            Fault::Panic => ctx.crashed("a fault injected by the test"),
            Fault::Fail(error) => ctx.fail(error),
            Fault::Delay(time) => {
                ctx.wait(actix::fut::wrap_future::<_, A>(tokio::time::sleep(*time)));
            }
        }
    }
}

impl<A: Component> Sealed<A> for Fault {
    fn message(&self) -> &'static str {
        "an injected fault"
    }
}
