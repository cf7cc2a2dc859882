//! What EdgeHub tells about its heartbeats.

use std::time::Duration;

use crate::system::{Figure, Meter, Ports};

const ANSWERED: Figure =
    Figure { name: "heartbeats_answered", help: "Heartbeats that the cloud has answered", counter: true };
const ROUND_TRIP: Figure = Figure {
    name: "heartbeat_round_trip_microseconds",
    help: "From the last answered heartbeat to its answer",
    counter: false,
};

/// How many were answered, and how fast the last one.
pub(super) struct Heartbeats {
    count: u64,
    answered: Meter,
    round_trip: Meter,
}

impl Heartbeats {
    pub(super) fn new(ports: &Ports) -> Self {
        Self { count: 0, answered: ports.meter(ANSWERED), round_trip: ports.meter(ROUND_TRIP) }
    }

    pub(super) fn answered(&mut self, round_trip: Duration) {
        self.count += 1;
        self.round_trip.set(u64::try_from(round_trip.as_micros()).unwrap_or(u64::MAX));
        self.answered.set(self.count);
    }
}
