//! What a component is, where it stands in the stop order, and how it can end.

use super::{Context, Contract};
use actix::{Actor, ResponseActFuture};
use std::{fmt, time::Duration};

/// An actix actor that a [`System`](super::System) builds, wires, supervises and stops.
///
/// Its constructor runs again after a failure, so it must be cheap and must not fail: what can fail (sockets, watches)
/// begins in `actix::Actor::started`, which is called after every build.
pub trait Component: Actor<Context = Context<Self>> + Unpin {
    /// The name in errors, logs, metrics and exits; unique in a system.
    const NAME: &'static str;
    /// When it stops, relative to the others.
    const STAGE: Stage;
    /// Messages its queue holds. A `tell` waits, a `try_tell` is refused when it is full.
    const CAPACITY: usize = 256;
    /// Replies it may have under way at once (`ResponseFuture`, `ResponseActFuture`); further messages stay queued.
    const IN_HAND: usize = 1024;

    /// How long it may make no progress before this life of it is ended as [`Exit::Stuck`]: while one exclusive future
    /// (`AtomicResponse`, `ctx.wait`) keeps everything else out, while messages wait and none is taken, or while one of
    /// its turns blocks the arbiter. Found at most a quarter later, or a second if that is longer. `Duration::MAX`:
    /// never. The default is well below the 40 s after which Kubernetes takes a node for lost.
    const HEARTBEAT: Duration = Duration::from_secs(30);

    /// Which messages it answers and which it asks; checked when the system starts.
    fn contract(contract: &mut Contract<Self>);

    /// Called once at an ordered stop, after the queue is drained and the replies under way are given: flush, close.
    /// Awaited within the deadline of the stop.
    fn stop(&mut self, _ctx: &mut Context<Self>) -> ResponseActFuture<Self, ()> {
        Box::pin(actix::fut::ready(()))
    }
}

/// The order of an ordered stop; the components of one stage stop together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stage {
    /// Where work comes in: listeners, watches, MQTT.
    Source,
    /// What works on it.
    Processor,
    /// What carries it to the other side.
    Link,
    /// What keeps it; synced last.
    Store,
}

impl Stage {
    pub(crate) const ORDER: [Stage; 4] = [Stage::Source, Stage::Processor, Stage::Link, Stage::Store];
}

/// How a component ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Exit {
    /// By itself, with `ctx.stop()` or `ctx.terminate()`.
    Done,
    /// By the ordered stop, within the deadline.
    Stopped,
    /// It reported an error with `ctx.fail` more often than its restart budget allows. The last error.
    Failed(String),
    /// It panicked more often than its restart budget allows.
    Panicked,
    /// It made no progress more often than its restart budget allows, blocks its arbiter for good, or did not stop
    /// within the deadline.
    Stuck,
}

impl Exit {
    /// Whether this exit stops the whole system.
    pub(crate) fn escalates(&self) -> bool {
        matches!(self, Exit::Failed(_) | Exit::Panicked | Exit::Stuck)
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Exit::Done => f.write_str("done"),
            Exit::Stopped => f.write_str("stopped"),
            Exit::Failed(error) => write!(f, "failed: {error}"),
            Exit::Panicked => f.write_str("panicked"),
            Exit::Stuck => f.write_str("stuck: it made no progress"),
        }
    }
}
