//! Latencies, counted in buckets: as many as there may be, in little memory, and those of several processes in one.

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};

/// One bucket ends where the next one begins, at so many times its beginning: no figure is off by more than 1 %.
const GROWTH: f64 = 1.02;

/// Counts of latencies between 1 us and an hour.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Latencies {
    buckets: BTreeMap<u16, u64>,
}

impl Latencies {
    /// Counts one.
    pub fn record(&mut self, latency: Duration) {
        let micros = latency.as_micros().clamp(1, 3_600_000_000) as f64;
        // Between 0 and 1,113.
        let bucket = (micros.ln() / GROWTH.ln()).round() as u16;
        *self.buckets.entry(bucket).or_default() += 1;
    }

    /// Adds those of another.
    pub fn add(&mut self, other: &Self) {
        for (bucket, count) in &other.buckets {
            *self.buckets.entry(*bucket).or_default() += count;
        }
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        self.buckets.values().sum()
    }

    /// The one that this part of all does not exceed: 0.5 is the median, 1.0 the longest. `None` of none.
    pub fn quantile(&self, part: f64) -> Option<Duration> {
        let rank = (part.clamp(0.0, 1.0) * self.count() as f64).ceil().max(1.0) as u64;
        let mut below = 0;
        let bucket = self.buckets.iter().find(|(_, count)| {
            below += **count;
            below >= rank
        });
        bucket.map(|(bucket, _)| Duration::from_secs_f64(GROWTH.powi(i32::from(*bucket)) / 1e6))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_of_several_counts_are_those_of_all_of_them() {
        let mut odd = Latencies::default();
        let mut even = Latencies::default();
        assert_eq!(odd.quantile(0.5), None);
        for millis in 1..=1000 {
            if millis % 2 == 0 { &mut even } else { &mut odd }.record(Duration::from_millis(millis));
        }
        odd.add(&even);
        assert_eq!(odd.count(), 1000);
        for (part, expected) in [(0.5, 0.5), (0.99, 0.99), (1.0, 1.0), (0.0, 0.001)] {
            let got = odd.quantile(part).unwrap().as_secs_f64();
            assert!((got / expected - 1.0).abs() < 0.011, "{part}: {got}, expected {expected}");
        }
    }

    #[test]
    fn the_shortest_and_the_longest_have_buckets() {
        let mut all = Latencies::default();
        all.record(Duration::ZERO);
        all.record(Duration::from_secs(1_000_000));
        assert_eq!(all.quantile(0.5), Some(Duration::from_micros(1)));
        assert!((all.quantile(1.0).unwrap().as_secs_f64() / 3600.0 - 1.0).abs() < 0.011);
    }
}
