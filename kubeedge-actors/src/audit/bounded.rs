//! How many lines there are: who floods is counted, not written. Pure: the time comes in from outside.

use std::{
    collections::HashMap,
    fmt,
    time::{Duration, Instant},
};

/// Lines are bounded for each of these.
pub const WINDOW: Duration = Duration::from_secs(60);
/// Lines of one origin in it.
pub const OF_ONE: u32 = 20;
/// Lines of all nodes in it: of a hundred and fifty that are refused whatever they try.
pub const OF_NODES: u32 = 3_000;
/// Lines of all strangers in it.
pub const OF_STRANGERS: u32 = 600;

/// Whose lines are counted together.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Origin {
    pub(super) action: String,
    pub(super) who: String,
}

/// The lines of a window.
#[derive(Debug)]
pub(super) struct Bounded {
    most: u32,
    begun: Option<Instant>,
    written: u32,
    /// Those of whom a line was written: no more than lines.
    origins: HashMap<Origin, Lines>,
    /// Refusals of those who came when there was no line left.
    others: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Lines {
    written: u32,
    left_out: u64,
}

/// What was not written in the window before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LeftOut {
    pub(super) refusals: u64,
    /// Of whom most of them were, and how many.
    most: Option<(Origin, u64)>,
}

impl fmt::Display for LeftOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} refusals before this one were counted and not written", self.refusals)?;
        match &self.most {
            Some((Origin { action, who }, count)) => write!(f, ", {count} of them: {action} of {who}"),
            None => Ok(()),
        }
    }
}

impl Bounded {
    pub(super) fn new(most: u32) -> Self {
        Self { most, begun: None, written: 0, origins: HashMap::new(), others: 0 }
    }

    /// Counts a refusal: whether it is written, and what has to be said of the window before.
    pub(super) fn take(&mut self, origin: Origin, now: Instant) -> (Option<LeftOut>, bool) {
        let over = self.begun.is_none_or(|begun| now.saturating_duration_since(begun) >= WINDOW);
        let left_out = if over { self.begin(now) } else { None };
        if let Some(lines) = self.origins.get_mut(&origin) {
            if lines.written >= OF_ONE || self.written >= self.most {
                lines.left_out += 1;
                return (left_out, false);
            }
            lines.written += 1;
        } else if self.written < self.most {
            self.origins.insert(origin, Lines { written: 1, left_out: 0 });
        } else {
            self.others += 1;
            return (left_out, false);
        }
        self.written += 1;
        (left_out, true)
    }

    fn begin(&mut self, now: Instant) -> Option<LeftOut> {
        let before = std::mem::replace(self, Self { begun: Some(now), ..Self::new(self.most) });
        let refusals = before.others + before.origins.values().map(|lines| lines.left_out).sum::<u64>();
        let most = before.origins.into_iter().max_by_key(|(_, lines)| lines.left_out);
        let most = most.map(|(origin, lines)| (origin, lines.left_out)).filter(|(_, left_out)| *left_out > 0);
        (refusals > 0).then_some(LeftOut { refusals, most })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn origin(who: u32) -> Origin {
        Origin { action: "session".into(), who: who.to_string() }
    }

    #[test]
    fn what_is_left_out_is_told_when_the_minute_is_over() {
        let start = Instant::now();
        let mut lines = Bounded::new(OF_ONE + 1);
        let written = (0..100).filter(|_| lines.take(origin(1), start).1).count();
        assert_eq!(written, OF_ONE as usize);
        assert_eq!(lines.take(origin(2), start), (None, true), "one more line is left");
        assert_eq!(lines.take(origin(3), start), (None, false));
        assert_eq!(lines.take(origin(1), start + WINDOW - Duration::from_millis(1)), (None, false));
        let (left_out, written) = lines.take(origin(3), start + WINDOW);
        assert!(written);
        let left_out = left_out.unwrap();
        assert_eq!(left_out, LeftOut { refusals: 82, most: Some((origin(1), 81)) });
        let text = "82 refusals before this one were counted and not written, 81 of them: session of 1";
        assert_eq!(left_out.to_string(), text);
        assert_eq!(lines.take(origin(1), start + 2 * WINDOW), (None, true), "nothing was left out of this one");
    }

    proptest! {
        /// Every refusal is written or counted, no window has more lines than it may, and no more is remembered than lines.
        #[test]
        fn everything_is_written_or_counted_and_nothing_grows(
            steps in prop::collection::vec((0u32..60, 0u64..3_000), 1..400),
        ) {
            const MOST: u32 = 50;
            let mut lines = Bounded::new(MOST);
            let mut now = Instant::now();
            let (mut given, mut told, mut window) = (0u64, 0u64, (None::<Instant>, 0u32));
            for (who, pause) in steps {
                now += Duration::from_millis(pause);
                let (left_out, written) = lines.take(origin(who), now);
                // It begins with its first refusal.
                if window.0.is_none_or(|begun| now - begun >= WINDOW) {
                    window = (Some(now), 0);
                }
                given += 1;
                window.1 += u32::from(written);
                told += u64::from(written) + left_out.map_or(0, |left_out| left_out.refusals);
                prop_assert!(window.1 <= MOST && lines.origins.len() <= MOST as usize);
                prop_assert!(lines.origins.values().all(|lines| lines.written <= OF_ONE));
            }
            told += lines.take(origin(0), now + WINDOW).0.map_or(0, |left_out| left_out.refusals);
            prop_assert_eq!(told, given);
        }
    }
}
