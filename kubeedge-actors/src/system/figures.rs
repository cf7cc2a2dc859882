//! Numbers that a component tells about itself, beside those that the kit counts for it.

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicU64, Ordering},
};

/// A number that a component tells, declared as a `const` beside the component.
///
/// As a metric it bears the component's name before its own: `outbox_bytes` of `edgehub` is
/// `kubeedge_edgehub_outbox_bytes`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Figure {
    /// Small letters, digits and `_`, with the unit at the end: `outbox_bytes`. A counter's metric ends with `_total`.
    pub name: &'static str,
    /// One line for a person.
    pub help: &'static str,
    /// Whether it only rises, since the component was built; else it is a state of now.
    pub counter: bool,
}

/// Where a component writes a [`Figure`]. Cheap to clone; usable from any thread.
#[derive(Clone, Debug, Default)]
pub struct Meter(Arc<AtomicU64>);

impl Meter {
    /// The number is this from now on.
    pub fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The figures of one component.
#[derive(Debug, Default)]
pub(crate) struct Figures(Mutex<Vec<(Figure, Meter)>>);

impl Figures {
    /// The meter of a figure, the same for a component that was built again. It begins at 0.
    pub(crate) fn meter(&self, figure: Figure) -> Meter {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, meter)) = all.iter().find(|(known, _)| known.name == figure.name) {
            meter.set(0);
            return meter.clone();
        }
        let meter = Meter::default();
        all.push((figure, meter.clone()));
        meter
    }

    pub(crate) fn read(&self) -> Vec<(Figure, u64)> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.iter().map(|(figure, meter)| (*figure, meter.get())).collect()
    }
}
