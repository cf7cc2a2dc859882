//! What the outbox tells about itself.

use super::queue::Queue;
use crate::system::{Figure, Meter, Ports};

/// A number with how it is read from the queue.
type Row = (Figure, fn(&Queue) -> u64);

const fn gauge(name: &'static str, help: &'static str) -> Figure {
    Figure { name, help, counter: false }
}

const fn counter(name: &'static str, help: &'static str) -> Figure {
    Figure { name, help, counter: true }
}

/// Listed on the page of [`super`].
const ROWS: [Row; 10] = [
    (gauge("outbox_events", "Events in the outbox"), |queue| queue.len() as u64),
    (gauge("outbox_bytes", "Bytes of the events in the outbox"), |queue| queue.bytes() as u64),
    (counter("outbox_taken", "Events taken and on disk"), |queue| queue.counts().taken),
    (counter("outbox_applied", "Events that the cloud has"), |queue| queue.counts().applied),
    (counter("outbox_refused", "Events refused for good, or unreadable"), |queue| queue.counts().refused),
    (counter("outbox_retried", "Times that the cloud could not take an event"), |queue| queue.counts().retried),
    (counter("outbox_count_drops", "Events dropped because they were too many"), |queue| queue.counts().dropped[0]),
    (counter("outbox_bytes_drops", "Events dropped because they were too large"), |queue| queue.counts().dropped[1]),
    (counter("outbox_age_drops", "Events dropped because they were too old"), |queue| queue.counts().dropped[2]),
    (counter("outbox_dropped_bytes", "Bytes of the dropped events"), |queue| queue.counts().dropped_bytes),
];

/// Where they are written.
pub(super) struct Meters([Meter; ROWS.len()]);

impl Meters {
    pub(super) fn new(ports: &Ports) -> Self {
        Self(ROWS.map(|(figure, _)| ports.meter(figure)))
    }

    pub(super) fn tell(&self, queue: &Queue) {
        for (meter, (_, read)) in self.0.iter().zip(ROWS) {
            meter.set(read(queue));
        }
    }
}
