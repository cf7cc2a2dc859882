//! How often a mapper may call. Pure.

use std::{collections::HashMap, time::Duration};

/// A token bucket's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Calls a second in the long run.
    pub per_second: u32,
    /// Calls at once.
    pub burst: u32,
}

impl Default for Rate {
    /// A mapper of a thousand properties that are read once a second, and as much again after a pause.
    fn default() -> Self {
        Self { per_second: 1000, burst: 2000 }
    }
}

/// A bucket for each caller.
#[derive(Debug)]
pub struct Buckets {
    rate: Rate,
    /// When each bucket will be full.
    full_at: HashMap<i32, Duration>,
}

/// Callers that are told apart; beyond it those whose bucket is full again are forgotten.
const CALLERS: usize = 1024;

impl Buckets {
    /// With the same numbers for everyone.
    pub fn new(rate: Rate) -> Self {
        Self { rate, full_at: HashMap::new() }
    }

    /// Whether this caller may call now.
    pub fn take(&mut self, now: Duration, caller: i32) -> bool {
        if self.full_at.len() >= CALLERS {
            self.full_at.retain(|_, full_at| *full_at > now);
        }
        let token = Duration::from_secs(1) / self.rate.per_second.max(1);
        let full_at = self.full_at.entry(caller).or_default();
        let next = (*full_at).max(now) + token;
        if next > now + token * self.rate.burst.max(1) {
            return false;
        }
        *full_at = next;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_then_the_rate_and_callers_do_not_share() {
        let mut buckets = Buckets::new(Rate { per_second: 10, burst: 5 });
        let start = Duration::from_secs(1000);
        let passed = |buckets: &mut Buckets, now, caller| (0..100).filter(|_| buckets.take(now, caller)).count();
        assert_eq!(passed(&mut buckets, start, 1), 5);
        assert_eq!(passed(&mut buckets, start, 2), 5);
        assert_eq!(passed(&mut buckets, start + Duration::from_millis(250), 1), 2);
        assert_eq!(passed(&mut buckets, start + Duration::from_secs(60), 1), 5);
    }
}
