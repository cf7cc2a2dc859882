//! How much of a core something uses now, from what it had used at two times. Pure.

use std::collections::HashMap;

/// Looks closer together than this say nothing: the second keeps the rate that was.
const NEAR: i64 = 500_000_000;
/// A look older than this says too much of the past: the rate begins anew.
const FAR: i64 = 120_000_000_000;

/// What something had used at a time.
#[derive(Clone, Copy, Debug)]
pub struct Look<'a> {
    /// What.
    pub id: &'a str,
    /// When, nanoseconds.
    pub at: i64,
    /// Processor time until then, nanoseconds of one core.
    pub cpu: u64,
}

#[derive(Clone, Copy, Debug)]
struct Known {
    at: i64,
    cpu: u64,
    rate: Option<u64>,
}

/// The last look at each, and its rate.
#[derive(Debug, Default)]
pub struct Rates {
    known: HashMap<String, Known>,
}

impl Rates {
    /// Takes in a look at everything there is; what is not among it is forgotten.
    pub fn take<'a>(&mut self, looks: impl Iterator<Item = Look<'a>>) {
        let old = std::mem::take(&mut self.known);
        self.known = looks
            .map(|Look { id, at, cpu }| {
                let next = match old.get(id) {
                    Some(known) if at.saturating_sub(known.at) < NEAR && at >= known.at => *known,
                    Some(known) if at.saturating_sub(known.at) <= FAR && at > known.at && cpu >= known.cpu => {
                        let (spent, passed) = (u128::from(cpu - known.cpu), at.abs_diff(known.at));
                        let rate = spent.saturating_mul(1_000_000_000) / u128::from(passed.max(1));
                        Known { at, cpu, rate: Some(u64::try_from(rate).unwrap_or(u64::MAX)) }
                    }
                    // New, long ago, or it began anew.
                    _ => Known { at, cpu, rate: None },
                };
                (id.to_owned(), next)
            })
            .collect();
    }

    /// Billionths of a core.
    pub fn of(&self, id: &str) -> Option<u64> {
        self.known.get(id)?.rate
    }

    /// Whether everything has a rate.
    pub fn is_complete(&self) -> bool {
        self.known.values().all(|known| known.rate.is_some())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: i64 = 1_000_000_000;

    fn look(rates: &mut Rates, at: i64, cpu: u64) -> Option<u64> {
        rates.take([Look { id: "a", at, cpu }].into_iter());
        rates.of("a")
    }

    #[test]
    fn a_rate_is_what_was_used_between_two_looks() {
        let mut rates = Rates::default();
        assert_eq!(look(&mut rates, 0, 100), None);
        assert!(!rates.is_complete());
        assert_eq!(look(&mut rates, 2 * SECOND, 100 + SECOND as u64), Some(500_000_000));
        // Too near: the rate stays, and so does the look that it is measured from.
        assert_eq!(look(&mut rates, 2 * SECOND + 1, 100 + 3 * SECOND as u64), Some(500_000_000));
        assert_eq!(look(&mut rates, 4 * SECOND, 100 + SECOND as u64), Some(0));
        // Restarted, and long ago.
        assert_eq!(look(&mut rates, 6 * SECOND, 5), None);
        assert_eq!(look(&mut rates, 200 * SECOND, 6), None);
        rates.take(std::iter::empty());
        assert!(rates.of("a").is_none() && rates.is_complete());
    }

    proptest! {
        #[test]
        fn no_look_breaks_it_and_a_rate_is_never_made_of_one(looks in prop::collection::vec(any::<(i64, u64)>(), 1..20)) {
            let mut rates = Rates::default();
            for (n, (at, cpu)) in looks.into_iter().enumerate() {
                let rate = look(&mut rates, at, cpu);
                prop_assert!(n > 0 || rate.is_none());
            }
        }
    }
}
