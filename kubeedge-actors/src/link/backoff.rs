//! When to connect again: exponential with full jitter, and the cloud's word first.

use std::time::Duration;

use kubeedge_proto::v1::Goodbye;

/// The bound of the first wait.
pub const FIRST: Duration = Duration::from_millis(500);
/// The bound of every later wait.
pub const LONGEST: Duration = Duration::from_secs(30);
/// The longest "come back after" that is believed: a site must not be silenced for a day by one frame.
pub const LONGEST_ASKED: Duration = Duration::from_secs(600);

/// How long to wait before the next attempt.
///
/// `failures` is how many attempts in a row did not lead to an established session, `goodbye` what the cloud said last,
/// `unit` a random number in `0.0..1.0`. Without a wish of the cloud the wait is anywhere between nothing and
/// `500 ms * 2^failures`, at most 30 s, so that a thousand boxes do not come back together. With one it is that wish
/// and up to a quarter more.
pub fn delay(failures: u32, goodbye: Option<&Goodbye>, unit: f64) -> Duration {
    let unit = if unit.is_finite() { unit.clamp(0.0, 1.0) } else { 1.0 };
    match goodbye.map(|goodbye| goodbye.retry_after_ms) {
        Some(asked) if asked > 0 => {
            let asked = Duration::from_millis(asked.into()).min(LONGEST_ASKED);
            asked + asked.mul_f64(unit / 4.0)
        }
        _ => FIRST.saturating_mul(1 << failures.min(16)).min(LONGEST).mul_f64(unit),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn delay_stays_within_its_bounds(failures in any::<u32>(), unit in any::<f64>(), asked in any::<u32>()) {
            prop_assert!(delay(failures, None, unit) <= LONGEST);
            let goodbye = Goodbye { retry_after_ms: asked, ..Default::default() };
            let wait = delay(failures, Some(&goodbye), unit);
            if asked > 0 {
                let wish = Duration::from_millis(asked.into()).min(LONGEST_ASKED);
                prop_assert!(wait >= wish && wait <= wish.mul_f64(1.25) + Duration::from_millis(1));
            }
        }
    }

    #[test]
    fn delay_doubles_up_to_thirty_seconds() {
        let longest = |failures| delay(failures, None, 1.0).as_millis();
        assert_eq!([0, 1, 2, 6, 7, 40].map(longest), [500, 1000, 2000, 30_000, 30_000, 30_000]);
        assert_eq!(delay(7, None, 0.0), Duration::ZERO);
    }
}
