//! The audit log as a test hears it.

use std::{
    fmt::{self, Write as _},
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::{Duration, Instant},
};

use tracing::{
    Event, Metadata, Subscriber,
    field::Field,
    span,
    subscriber::{DefaultGuard, set_default, set_global_default},
};

/// Keeps the lines of the audit log; clones share them. A line has each field as `name=value`.
#[derive(Clone, Default)]
pub struct Heard(Arc<Mutex<Vec<String>>>);

impl Heard {
    /// Hears what this thread writes until the guard is dropped.
    pub fn here(&self) -> DefaultGuard {
        set_default(self.clone())
    }

    /// What every thread writes that has no subscriber of its own, from the first call of any test to the end of the
    /// program. They are all tests' lines: one looks for those that can only be its own, by the port of its client say,
    /// and takes none. Nothing is heard if the program has set another subscriber.
    pub fn everywhere() -> Self {
        static EVERYWHERE: OnceLock<Heard> = OnceLock::new();
        EVERYWHERE
            .get_or_init(|| {
                let heard = Self::default();
                set_global_default(heard.clone()).ok();
                heard
            })
            .clone()
    }

    /// Takes the lines.
    pub fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.lines())
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.lines().len()
    }

    /// Those with this text, without the first so many.
    pub fn after(&self, count: usize, text: &str) -> Vec<String> {
        self.lines().iter().skip(count).filter(|line| line.contains(text)).cloned().collect()
    }

    /// Waits until the lines are as they should be, `within` at most. What is written is waited for without a clock.
    ///
    /// # Panics
    ///
    /// When they are not by then.
    pub async fn until(&self, within: Duration, wanted: impl Fn(&[String]) -> bool) {
        let until = Instant::now() + within;
        while !wanted(&self.lines()) {
            assert!(Instant::now() < until, "not so within {within:?}: {:#?}", self.lines());
            tokio::task::yield_now().await;
        }
    }

    fn lines(&self) -> std::sync::MutexGuard<'_, Vec<String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Spans have no use here.
impl Subscriber for Heard {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event() && metadata.target() == super::TARGET
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut line = String::new();
        event.record(&mut |field: &Field, value: &dyn fmt::Debug| {
            // A string takes everything.
            write!(line, "{}={value:?} ", field.name()).ok();
        });
        self.lines().push(line);
    }

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}
