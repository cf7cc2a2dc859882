//! Which operation a message belongs to: a W3C trace context that goes with every message and every answer.
//!
//! A [`Port`](super::Port) notes the current [`Trace`] of whoever sends. The handler, the futures it spawns in its
//! context and the future of its answer run with a child of it as theirs, and their span `handle` shows `trace_id` and
//! `span_id`. Between programs it travels in an `Envelope`: the hubs [`stamp`](Trace::stamp) what they send and
//! [`continue`](Trace::of) what they receive. Where nobody began a trace this costs one look at a thread-local.
//!
//! ```
//! use kubeedge_actors::system::trace::Trace;
//!
//! # actix_rt::System::new().block_on(async {
//! let trace = Trace::root();
//! let seen = Trace::scope(Some(trace.clone()), async { Trace::current() }).await;
//! assert_eq!(seen, Some(trace));
//! assert_eq!(Trace::current(), None);
//! # });
//! ```

use kubeedge_proto::v1::{Envelope, TraceContext};
use pin_project_lite::pin_project;
use std::{
    cell::RefCell,
    fmt,
    future::Future,
    marker::PhantomData,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

/// The longest `tracestate` that is carried, bytes: what the W3C recommendation asks for at least. A longer one is left
/// out, which that allows.
const MAX_STATE: usize = 512;

thread_local! {
    static CURRENT: RefCell<Option<Trace>> = const { RefCell::new(None) };
}

/// One operation of a trace. Cheap to clone.
#[derive(Clone, PartialEq, Eq)]
pub struct Trace(Arc<Parts>);

#[derive(PartialEq, Eq)]
struct Parts {
    trace_id: [u8; 16],
    span_id: [u8; 8],
    flags: u8,
    state: String,
}

/// `trace_id-span_id-flags` in hexadecimal, as in a `traceparent` header without its version.
impl fmt::Display for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}-{:02x}", Hex(&self.0.trace_id), Hex(&self.0.span_id), self.0.flags)
    }
}

impl fmt::Debug for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Trace({self})")
    }
}

/// Bytes in lower-case hexadecimal.
struct Hex<'a>(&'a [u8]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl Trace {
    /// Begins a trace, marked as sampled.
    pub fn root() -> Self {
        // Version 4 UUIDs are never zero, which a trace id must not be.
        Self(Arc::new(Parts {
            trace_id: uuid::Uuid::new_v4().into_bytes(),
            span_id: span_id(),
            flags: 1,
            state: String::new(),
        }))
    }

    /// A further operation of the same trace.
    #[must_use]
    pub fn child(&self) -> Self {
        let Parts { trace_id, flags, state, .. } = &*self.0;
        Self(Arc::new(Parts { trace_id: *trace_id, span_id: span_id(), flags: *flags, state: state.clone() }))
    }

    /// The trace of the handler or future that runs now on this thread, if it belongs to one.
    #[inline]
    pub fn current() -> Option<Self> {
        CURRENT.try_with(|current| current.borrow().clone()).ok().flatten()
    }

    /// Runs a future as part of a trace, or of none.
    pub fn scope<F: Future>(trace: Option<Self>, future: F) -> Scoped<F> {
        Scoped { future, trace }
    }

    /// The trace that a received envelope belongs to, if it carries a valid one.
    pub fn of(envelope: &Envelope) -> Option<Self> {
        envelope.trace.as_ref().and_then(Self::parse)
    }

    /// Writes the current trace into an envelope that has none yet.
    pub fn stamp(envelope: &mut Envelope) {
        if envelope.trace.is_none() {
            envelope.trace = Self::current().map(|trace| TraceContext::from(&trace));
        }
    }

    /// A context from outside: ids of the right length that are not all zero, or none at all.
    fn parse(context: &TraceContext) -> Option<Self> {
        let trace_id: [u8; 16] = context.trace_id.as_ref().try_into().ok()?;
        let span_id: [u8; 8] = context.span_id.as_ref().try_into().ok()?;
        if trace_id == [0; 16] || span_id == [0; 8] {
            return None;
        }
        let state = if context.state.len() <= MAX_STATE { context.state.clone() } else { String::new() };
        // Flags are one byte; bits beyond it have no meaning.
        let flags = context.flags.to_le_bytes()[0];
        Some(Self(Arc::new(Parts { trace_id, span_id, flags, state })))
    }

    /// The whole trace's id.
    pub fn trace_id(&self) -> [u8; 16] {
        self.0.trace_id
    }

    /// This operation's id.
    pub fn span_id(&self) -> [u8; 8] {
        self.0.span_id
    }

    /// Makes `trace` the current one of this thread until the guard is dropped.
    pub(crate) fn enter(trace: Option<Self>) -> Entered {
        let before = CURRENT.try_with(|current| current.replace(trace)).ok().flatten();
        Entered { before, here: PhantomData }
    }

    /// Shows the ids in a span that has the fields for them.
    pub(crate) fn record(&self, span: &tracing::Span) {
        if !span.is_disabled() {
            span.record("trace_id", tracing::field::display(Hex(&self.0.trace_id)));
            span.record("span_id", tracing::field::display(Hex(&self.0.span_id)));
        }
    }
}

/// Eight random bytes that are not all zero.
fn span_id() -> [u8; 8] {
    (rand::random::<u64>() | 1).to_be_bytes()
}

impl From<&Trace> for TraceContext {
    fn from(trace: &Trace) -> Self {
        let Parts { trace_id, span_id, flags, state } = &*trace.0;
        Self {
            trace_id: trace_id.to_vec().into(),
            span_id: span_id.to_vec().into(),
            flags: u32::from(*flags),
            state: state.clone(),
        }
    }
}

/// Gives the thread back the trace it had; not for another thread.
pub(crate) struct Entered {
    before: Option<Trace>,
    here: PhantomData<*const ()>,
}

impl Drop for Entered {
    fn drop(&mut self) {
        // A thread that ends has no current trace any more.
        let before = self.before.take();
        let _ = CURRENT.try_with(|current| current.replace(before));
    }
}

pin_project! {
    /// A future that runs as part of a trace; see [`Trace::scope`].
    #[derive(Debug)]
    pub struct Scoped<F> {
        #[pin]
        future: F,
        trace: Option<Trace>,
    }
}

impl<F: Future> Future for Scoped<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        let _entered = Trace::enter(this.trace.clone());
        this.future.poll(cx)
    }
}
