//! When a device is reported to the cloud. Pure.
//!
//! The first change at once, then one report a second with the newest values: the rate at which the cloud writes it. What
//! did not get to the disk is reported again.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    time::Duration,
};

/// Between two reports of one device.
pub const EVERY: Duration = Duration::from_secs(1);
/// Reports on their way to the disk at a time.
pub const IN_FLIGHT: usize = 64;

/// Which devices have news.
#[derive(Debug, Default)]
pub struct Reporter {
    /// Changed and not reported, in the order of their turn.
    queue: VecDeque<(Duration, String)>,
    queued: HashSet<String>,
    last: HashMap<String, Duration>,
    in_flight: usize,
}

impl Reporter {
    /// A device has changed.
    pub fn touch(&mut self, now: Duration, id: &str) {
        if self.queued.contains(id) {
            return;
        }
        let due = self.last.get(id).map_or(now, |last| (*last + EVERY).max(now));
        // Nearly always at the end: turns are one interval apart.
        let place = self.queue.iter().rposition(|(other, _)| *other <= due).map_or(0, |place| place + 1);
        self.queue.insert(place, (due, id.to_owned()));
        self.queued.insert(id.to_owned());
    }

    /// The next device to report now, if there is room.
    pub fn next(&mut self, now: Duration) -> Option<String> {
        if self.in_flight >= IN_FLIGHT || self.queue.front().is_none_or(|(due, _)| *due > now) {
            return None;
        }
        let (_, id) = self.queue.pop_front()?;
        self.queued.remove(&id);
        self.last.insert(id.clone(), now);
        self.in_flight += 1;
        Some(id)
    }

    /// A report is on disk, or did not get there: then it is made again after a while.
    pub fn done(&mut self, now: Duration, id: &str, on_disk: bool) {
        self.in_flight = self.in_flight.saturating_sub(1);
        if !on_disk {
            self.last.insert(id.to_owned(), now);
            self.touch(now, id);
        }
    }

    /// A device is gone.
    pub fn forget(&mut self, id: &str) {
        self.last.remove(id);
        if self.queued.remove(id) {
            self.queue.retain(|(_, queued)| queued != id);
        }
    }

    /// When the next is due.
    pub fn due(&self) -> Option<Duration> {
        self.queue.front().map(|(due, _)| *due).filter(|_| self.in_flight < IN_FLIGHT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_change_is_reported_at_once_and_then_the_newest_after_a_second() {
        let mut reporter = Reporter::default();
        let at = Duration::from_millis;
        reporter.touch(at(5000), "a");
        assert_eq!(reporter.next(at(5000)), Some("a".into()));
        for ms in [5001, 5100, 5500] {
            reporter.touch(at(ms), "a");
            assert_eq!(reporter.next(at(ms)), None);
        }
        reporter.touch(at(5600), "b");
        assert_eq!(reporter.next(at(5600)), Some("b".into()), "another device does not wait behind it");
        assert_eq!(reporter.due(), Some(at(6000)));
        assert_eq!(reporter.next(at(6000)), Some("a".into()));
        assert_eq!(reporter.next(at(9000)), None, "many changes were one report");
    }

    #[test]
    fn what_did_not_get_to_the_disk_is_reported_again_and_what_is_gone_is_not() {
        let mut reporter = Reporter::default();
        let at = Duration::from_secs;
        for id in ["a", "b"] {
            reporter.touch(at(10), id);
            reporter.next(at(10));
            reporter.done(at(10), id, false);
        }
        reporter.forget("b");
        assert_eq!(reporter.next(at(10)), None);
        assert_eq!(reporter.next(at(11)), Some("a".into()));
        assert_eq!(reporter.next(at(99)), None);
    }

    #[test]
    fn so_many_and_no_more_are_on_their_way() {
        let mut reporter = Reporter::default();
        (0..100).for_each(|id| reporter.touch(Duration::ZERO, &id.to_string()));
        let sent: Vec<String> = std::iter::from_fn(|| reporter.next(Duration::ZERO)).collect();
        assert_eq!((sent.len(), reporter.due()), (IN_FLIGHT, None));
        reporter.done(Duration::ZERO, &sent[0], true);
        assert!(reporter.next(Duration::ZERO).is_some());
    }
}
