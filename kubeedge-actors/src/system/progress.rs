//! Whether a component makes progress: judged from counters that are looked at in rounds.
//!
//! Pure: no clock, no thread. Rounds are counted and not the time between them, so that a process that was paused
//! (SIGSTOP, a virtual machine that was moved) finds nobody stuck when it goes on.

use std::time::Duration;

/// The longest round of the task that looks at components.
const LONGEST_ROUND: Duration = Duration::from_secs(1);

/// The shortest, for heartbeats of a test.
const SHORTEST_ROUND: Duration = Duration::from_millis(10);

/// How long a round is so that the shortest of these limits is found missed no later than a quarter after it ended.
pub(crate) fn round(limits: impl Iterator<Item = Duration>) -> Duration {
    limits.min().map_or(LONGEST_ROUND, |limit| limit / 8).clamp(SHORTEST_ROUND, LONGEST_ROUND)
}

/// What to do about something that should go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Judgement {
    Fine,
    /// It stood still for its limit. Wake the component: it may only be that nobody gave it a turn.
    Wake,
    /// It stood still though the component had its turn.
    Stuck,
}

/// How long one thing has stood still.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Still {
    stood: Duration,
    /// The component's turns when it was first woken.
    woken_at: Option<u64>,
}

impl Still {
    /// One round later. `turns` counts twice a turn: when it begins and when it ends.
    pub(crate) fn look(&mut self, moved: bool, turns: u64, round: Duration, limit: Duration) -> Judgement {
        if moved {
            *self = Self::default();
            return Judgement::Fine;
        }
        self.stood = self.stood.saturating_add(round);
        if self.stood < limit {
            return Judgement::Fine;
        }
        match self.woken_at {
            None => {
                self.woken_at = Some(turns);
                Judgement::Wake
            }
            Some(at) if turns.wrapping_sub(at) >= 2 => Judgement::Stuck,
            Some(_) => Judgement::Wake,
        }
    }
}

/// A component as one look shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Look {
    /// Turns that its arbiter gave it, counted when they begin and when they end.
    pub(crate) turns: u64,
    /// Turns in which no exclusive future kept the component itself from its own.
    pub(crate) free: u64,
    /// Messages handled.
    pub(crate) handled: u64,
    /// Whether messages wait in its queue.
    pub(crate) waiting: bool,
    /// Whether it is to make progress at all: not while it waits to be built again, stops, or is gone.
    pub(crate) running: bool,
    /// Which life it is in.
    pub(crate) life: u64,
}

/// What a component that had its turns did not do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lack {
    /// One exclusive future did not end.
    Held,
    /// Messages waited, and it took none.
    Deaf,
}

/// One component under watch, by whoever shares no thread with it or is served by its arbiter.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Watch {
    last: Option<Look>,
    held: Still,
    deaf: Still,
}

impl Watch {
    /// One round later: the judgement, and what is lacking if it is stuck.
    pub(crate) fn look(&mut self, look: Look, round: Duration, limit: Duration) -> (Judgement, Lack) {
        let last = self.last.replace(look);
        let Some(last) = last.filter(|last| look.running && last.running && last.life == look.life) else {
            *self = Self { last: Some(look), ..Self::default() };
            return (Judgement::Fine, Lack::Held);
        };
        let held = self.held.look(look.free != last.free, look.turns, round, limit);
        let deaf = self.deaf.look(look.handled != last.handled || !look.waiting, look.turns, round, limit);
        match (held, deaf) {
            (Judgement::Stuck, _) => (Judgement::Stuck, Lack::Held),
            (_, Judgement::Stuck) => (Judgement::Stuck, Lack::Deaf),
            (Judgement::Wake, _) | (_, Judgement::Wake) => (Judgement::Wake, Lack::Held),
            (Judgement::Fine, Judgement::Fine) => (Judgement::Fine, Lack::Held),
        }
    }
}

/// How far it has come with a component whose turn does not end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Block {
    /// Its turn is short.
    None,
    /// Longer than a round: worth a warning when it ends.
    Slow,
    /// Longer than its limit: nobody on its arbiter has a turn.
    Blocked,
    /// Twice its limit: it is given up.
    Lost,
}

/// One component under watch for a turn that does not end.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Blocking {
    last: u64,
    stood: Duration,
}

impl Blocking {
    /// One round later; `turns` is odd while a turn lasts.
    pub(crate) fn look(&mut self, turns: u64, round: Duration, limit: Duration) -> Block {
        if turns.is_multiple_of(2) || turns != self.last {
            *self = Self { last: turns, stood: Duration::ZERO };
            return Block::None;
        }
        self.stood = self.stood.saturating_add(round);
        match self.stood {
            stood if stood >= limit.saturating_mul(2) => Block::Lost,
            stood if stood >= limit => Block::Blocked,
            _ => Block::Slow,
        }
    }

    /// How long the turn lasts, at least.
    pub(crate) fn stood(&self) -> Duration {
        self.stood
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ROUND: Duration = Duration::from_secs(1);

    fn alive(n: u64) -> Look {
        Look { turns: 2 * n, free: n, handled: n, waiting: true, running: true, life: 0 }
    }

    proptest! {
        /// Whatever a component does: it is found stuck only after as many rounds without progress as its limit has,
        /// and only if it had a turn after it was woken.
        #[test]
        fn a_component_is_found_stuck_only_without_progress_for_its_limit_and_after_a_turn(
            limit in 1_u32..6,
            steps in proptest::collection::vec((0_u64..3, 0_u64..2, 0_u64..2, any::<bool>(), 0_u8..10), 1..60),
        ) {
            let limit = ROUND * limit;
            let (mut watch, mut look) = (Watch::default(), Look { waiting: false, ..alive(0) });
            let (mut no_free, mut no_message, mut turns_since) = (0_u32, 0_u32, 0_u64);
            watch.look(look, ROUND, limit);
            for (turns, free, handled, waiting, life) in steps {
                let again = u64::from(life == 0);
                look = Look {
                    turns: look.turns + turns, free: look.free + free, handled: look.handled + handled,
                    waiting, running: true, life: look.life + again,
                };
                let fresh = again > 0;
                no_free = if fresh || free > 0 { 0 } else { no_free + 1 };
                no_message = if fresh || handled > 0 || !waiting { 0 } else { no_message + 1 };
                turns_since = if no_free.max(no_message) == 0 { 0 } else { turns_since + turns };
                if let (Judgement::Stuck, lack) = watch.look(look, ROUND, limit) {
                    let rounds = if lack == Lack::Held { no_free } else { no_message };
                    prop_assert!(ROUND * rounds > limit, "{lack:?} after {rounds} rounds");
                    prop_assert!(turns_since >= 2);
                }
            }
        }
    }

    #[test]
    fn an_arbiter_that_gives_no_turn_makes_nobody_stuck() {
        let mut watch = Watch::default();
        for _ in 0..100 {
            let (judgement, _) = watch.look(alive(7), ROUND, 3 * ROUND);
            assert_ne!(judgement, Judgement::Stuck);
        }
        // Its arbiter serves it again, and it does nothing with its turn.
        assert_eq!(watch.look(Look { turns: 16, ..alive(7) }, ROUND, 3 * ROUND), (Judgement::Stuck, Lack::Held));
    }

    #[test]
    fn only_one_turn_that_lasts_is_a_block() {
        let mut blocking = Blocking::default();
        // Seen inside a turn every time, but always another.
        for turns in (1..41).step_by(2) {
            assert_eq!(blocking.look(turns, ROUND, 2 * ROUND), Block::None);
        }
        let found: Vec<_> = (0..5).map(|_| blocking.look(39, ROUND, 2 * ROUND)).collect();
        assert_eq!(found, [Block::Slow, Block::Blocked, Block::Blocked, Block::Lost, Block::Lost]);
        assert_eq!(blocking.look(40, ROUND, 2 * ROUND), Block::None);
    }

    #[test]
    fn a_round_is_short_enough_for_the_shortest_limit() {
        assert_eq!(round([Duration::from_secs(30), Duration::from_millis(160)].into_iter()), Duration::from_millis(20));
        assert_eq!(round([Duration::MAX].into_iter()), LONGEST_ROUND);
        assert_eq!(round(std::iter::empty()), LONGEST_ROUND);
    }
}
