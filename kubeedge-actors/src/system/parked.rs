//! Messages that crashed their handler and are not tried any more: a bounded list to look at, and a count of all.

use std::{
    any::Any,
    collections::{BTreeMap, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use super::trace::Trace;

/// Reports that a system keeps; a further one takes the place of the oldest.
const MOST: usize = 64;

/// The longest text of a panic that is kept, bytes.
const MAX_TEXT: usize = 1024;

/// A message that crashed its handler and is not tried again.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Parked {
    /// Whose handler crashed.
    pub component: &'static str,
    /// The message's type.
    pub message: &'static str,
    /// How often it was handled: twice if the component [answers it again](super::Contract::answers_again), else once.
    pub attempts: u32,
    /// The text of the last panic, at most 1 KiB.
    pub panic: String,
    /// The operation it belonged to, if it belonged to any.
    pub trace: Option<Trace>,
    /// When it was parked.
    pub at: SystemTime,
    /// Whether the message itself is kept: [`System::take_parked`](super::System::take_parked).
    pub kept: bool,
}

impl Parked {
    pub(crate) fn new(component: &'static str, message: &'static str, attempts: u32, panic: &str) -> Self {
        let end = (0..=MAX_TEXT.min(panic.len())).rev().find(|end| panic.is_char_boundary(*end)).unwrap_or(0);
        let panic = panic[..end].to_owned();
        let (trace, at) = (Trace::current(), SystemTime::now());
        Self { component, message, attempts, panic, trace, at, kept: false }
    }
}

struct Entry {
    report: Parked,
    body: Option<Box<dyn Any + Send>>,
}

#[derive(Default)]
struct Entries {
    newest: VecDeque<Entry>,
    /// By component and message type: as many entries as contracts name.
    counts: BTreeMap<(&'static str, &'static str), u64>,
}

/// The parked messages of one system.
#[derive(Default)]
pub(crate) struct Lot(Mutex<Entries>);

impl Lot {
    fn entries(&self) -> MutexGuard<'_, Entries> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn park(&self, mut report: Parked, body: Option<Box<dyn Any + Send>>) {
        report.kept = body.is_some();
        tracing::error!(
            component = report.component,
            message = report.message,
            attempts = report.attempts,
            panic = report.panic,
            trace = report.trace.as_ref().map(tracing::field::display),
            "a message crashed its handler and is parked"
        );
        let oldest = {
            let mut entries = self.entries();
            *entries.counts.entry((report.component, report.message)).or_default() += 1;
            let oldest = (entries.newest.len() >= MOST).then(|| entries.newest.pop_front()).flatten();
            entries.newest.push_back(Entry { report, body });
            oldest
        };
        // Not under the lock: it is dropped with whatever its destructor does.
        drop(oldest);
    }

    pub(crate) fn reports(&self) -> Vec<Parked> {
        self.entries().newest.iter().map(|entry| entry.report.clone()).collect()
    }

    pub(crate) fn counts(&self) -> Vec<(&'static str, &'static str, u64)> {
        self.entries().counts.iter().map(|((component, message), n)| (*component, *message, *n)).collect()
    }

    pub(crate) fn take<M: 'static>(&self) -> Vec<M> {
        let mut entries = self.entries();
        let of_type = entries.newest.iter_mut().filter(|entry| entry.body.as_ref().is_some_and(|body| body.is::<M>()));
        of_type
            .filter_map(|entry| {
                entry.report.kept = false;
                entry.body.take()?.downcast().ok().map(|message| *message)
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_reports_are_kept_and_all_are_counted() {
        let lot = Lot::default();
        for n in 0..100_u32 {
            lot.park(Parked::new("pump", "Follow", n, &"é".repeat(600)), Some(Box::new(n)));
        }
        lot.park(Parked::new("pump", "Stop", 1, "short"), Some(Box::new("a text")));
        let reports = lot.reports();
        assert_eq!((reports.len(), reports[0].attempts), (MOST, 37));
        assert_eq!((reports[0].panic.len(), reports[MOST - 1].panic.as_str()), (1024, "short"));
        assert_eq!(lot.counts(), [("pump", "Follow", 100), ("pump", "Stop", 1)]);
        assert_eq!(lot.take::<u32>(), (37..100).collect::<Vec<_>>());
        assert_eq!(lot.take::<u32>(), [0; 0], "taken once");
        assert_eq!(lot.reports().iter().filter(|report| report.kept).count(), 1);
    }
}
