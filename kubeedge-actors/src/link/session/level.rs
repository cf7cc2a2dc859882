//! The five levels of what waits to be sent, by priority.

use std::{collections::VecDeque, time::Duration};

use kubeedge_proto::v1::{self, Envelope, Priority};

use super::outbox::Partial;
use crate::link::ids::ObjectId;

/// Shares of the socket per level, from liveness to telemetry: a saturated link gives telemetry 1/31.
pub(super) const WEIGHTS: [u64; 5] = [16, 8, 4, 2, 1];
pub(super) const CONTROL: usize = 1;
pub(super) const CONFIG: usize = 2;

pub(super) fn level_of(envelope: &Envelope) -> usize {
    match envelope.priority() {
        Priority::Liveness => 0,
        Priority::Control => 1,
        Priority::Config => 2,
        Priority::Bulk => 3,
        Priority::Telemetry => 4,
        Priority::Unspecified => envelope.body.as_ref().map_or(3, |body| body.default_priority() as usize - 1),
    }
}

#[derive(Debug, Default)]
pub(super) struct Level {
    pub(super) clock: u64,
    pub(super) turn: usize,
    /// There when something waits or has waited lately: a quiet session has five empty levels.
    pub(super) waiting: Option<Box<Waiting>>,
}

#[derive(Debug, Default)]
pub(super) struct Waiting {
    pub(super) control: VecDeque<v1::Frame>,
    pub(super) partial: VecDeque<Partial>,
    pub(super) replies: VecDeque<(Box<Envelope>, usize)>,
    pub(super) requests: VecDeque<(Box<Envelope>, usize, Duration)>,
    pub(super) state: VecDeque<ObjectId>,
    pub(super) events: VecDeque<(Box<Envelope>, usize)>,
}

impl Level {
    pub(super) fn waiting(&mut self) -> &mut Waiting {
        self.waiting.get_or_insert_default()
    }

    pub(super) fn shrink(&mut self) {
        self.waiting = self.waiting.take().and_then(Waiting::shrunk);
    }
}

impl Waiting {
    /// Without the room that it does not need; `None`: nothing waits.
    fn shrunk(mut self: Box<Self>) -> Option<Box<Self>> {
        let Self { control, partial, replies, requests, state, events } = &mut *self;
        control.shrink_to_fit();
        partial.shrink_to_fit();
        replies.shrink_to_fit();
        requests.shrink_to_fit();
        state.shrink_to_fit();
        events.shrink_to_fit();
        let waits = [control.len(), partial.len(), replies.len(), requests.len(), state.len(), events.len()];
        waits.iter().any(|waits| *waits > 0).then_some(self)
    }
}
