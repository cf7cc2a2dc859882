//! When a failed component is built again: exponential backoff with full jitter, a budget, and calm that forgives.
//!
//! Pure: time and randomness come in from outside.

use std::time::Duration;

/// How often, and how fast, a component that failed is built again.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RestartPolicy {
    /// Upper bound of the first wait; each further failure doubles it. Default 100 ms.
    pub base: Duration,
    /// No wait is longer. Default 30 s, so that a fault that heals by itself is noticed soon.
    pub cap: Duration,
    /// A component that ran this long without a failure starts again at `base` with a full budget. Default 60 s.
    pub calm: Duration,
    /// Restarts without calm in between; one failure more ends the component and stops the system. Default 10.
    pub budget: u32,
}

impl Default for RestartPolicy {
    fn default() -> Self {
        Self {
            base: Duration::from_millis(100),
            cap: Duration::from_secs(30),
            calm: Duration::from_secs(60),
            budget: 10,
        }
    }
}

/// The failures of one component since it last was calm.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Streak {
    failures: u32,
}

impl Streak {
    /// What to do about a failure after `ran` without one: wait this long, or `None` when the budget is spent.
    /// `dice` is uniform in [0, 1).
    pub(crate) fn failed(&mut self, policy: &RestartPolicy, ran: Duration, dice: f64) -> Option<Duration> {
        if ran >= policy.calm {
            self.failures = 0;
        }
        if self.failures >= policy.budget {
            return None;
        }
        let ceiling = policy.base.saturating_mul(1_u32.checked_shl(self.failures).unwrap_or(u32::MAX)).min(policy.cap);
        self.failures += 1;
        Some(ceiling.mul_f64(dice.clamp(0.0, 1.0)))
    }
}

/// How long one stage of an ordered stop may take: half of what remains while other stages wait behind it, so that a
/// stuck source cannot eat the time the store needs to sync.
pub(crate) fn stage_share(remaining: Duration, stages_behind: usize) -> Duration {
    if stages_behind == 0 { remaining } else { remaining / 2 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The first eleven waits of the default policy, in milliseconds.
    fn waits(dice: f64) -> Vec<u128> {
        let policy = RestartPolicy { budget: 11, ..RestartPolicy::default() };
        let mut streak = Streak::default();
        (0..11).map(|_| streak.failed(&policy, Duration::ZERO, dice).unwrap().as_millis()).collect()
    }

    #[test]
    fn a_wait_is_the_part_that_the_dice_say_of_a_ceiling_that_doubles_up_to_the_cap() {
        assert_eq!(waits(0.5), [50, 100, 200, 400, 800, 1600, 3200, 6400, 12_800, 15_000, 15_000]);
        assert_eq!(waits(0.25), [25, 50, 100, 200, 400, 800, 1600, 3200, 6400, 7500, 7500]);
        assert_eq!(waits(0.0), [0; 11]);
    }

    proptest! {
        #[test]
        fn a_wait_never_exceeds_the_cap_nor_its_doubling(ran in 0_u64..120, dice in 0.0..1.0, n in 1_u32..80) {
            let policy = RestartPolicy { budget: 100, ..RestartPolicy::default() };
            let mut streak = Streak::default();
            for i in 0..n {
                let ran = if i == 0 { Duration::ZERO } else { Duration::from_secs(ran.min(59)) };
                let wait = streak.failed(&policy, ran, dice).unwrap();
                prop_assert!(wait <= policy.cap);
                prop_assert!(wait.as_secs_f64() <= policy.base.as_secs_f64() * 2_f64.powi(i as i32) + 1e-9);
            }
        }

        #[test]
        fn the_budget_is_spent_exactly(budget in 0_u32..30, dice in 0.0..1.0) {
            let policy = RestartPolicy { budget, ..RestartPolicy::default() };
            let mut streak = Streak::default();
            for _ in 0..budget {
                prop_assert!(streak.failed(&policy, Duration::ZERO, dice).is_some());
            }
            prop_assert!(streak.failed(&policy, Duration::ZERO, dice).is_none());
            // Calm gives all of it back.
            prop_assert_eq!(streak.failed(&policy, policy.calm, dice).is_some(), budget > 0);
        }

        #[test]
        fn the_shares_of_all_stages_fit_the_deadline(deadline in 0_u64..100_000, stages in 1_usize..6) {
            let deadline = Duration::from_millis(deadline);
            let mut spent = Duration::ZERO;
            for behind in (0..stages).rev() {
                let share = stage_share(deadline - spent, behind);
                prop_assert!(behind == 0 || share <= (deadline - spent) / 2);
                spent += share;
            }
            prop_assert_eq!(spent, deadline);
        }
    }
}
