//! When a device is reported to the cloud. Pure.
//!
//! The first change at once, then one report a second with the newest values: the rate at which the cloud writes it. What
//! did not get to the disk is reported again. A report that says what the one before it said is left out, for a while: what
//! changes at the edge only is none of the cloud's business.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    time::Duration,
};

use kubeedge_proto::v1::DeviceReport;

/// Between two reports of one device.
pub const EVERY: Duration = Duration::from_secs(1);
/// The same is not reported again before this, should the cloud have lost it.
pub const REPEATED: Duration = Duration::from_secs(300);
/// Reports on their way to the disk at a time.
pub const IN_FLIGHT: usize = 64;

/// Which devices have news.
#[derive(Debug, Default)]
pub struct Reporter {
    /// Changed and not reported, in the order of their turn.
    queue: VecDeque<(Duration, String)>,
    queued: HashSet<String>,
    last: HashMap<String, Duration>,
    /// What was reported last, and when.
    told: HashMap<String, (Duration, DeviceReport)>,
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

    /// The next device to report now, if there is room, of those that are `ready`.
    pub fn next(&mut self, now: Duration, ready: impl Fn(&str) -> bool) -> Option<String> {
        if self.in_flight >= IN_FLIGHT {
            return None;
        }
        let place = self.queue.iter().take_while(|(due, _)| *due <= now).position(|(_, id)| ready(id))?;
        let (_, id) = self.queue.remove(place)?;
        self.queued.remove(&id);
        self.last.insert(id.clone(), now);
        self.in_flight += 1;
        Some(id)
    }

    /// Whether a report says something that was not said already.
    pub fn is_news(&self, now: Duration, id: &str, report: &DeviceReport) -> bool {
        self.told.get(id).is_none_or(|(at, told)| told != report || now.saturating_sub(*at) >= REPEATED)
    }

    /// This is reported.
    pub fn tell(&mut self, now: Duration, id: &str, report: DeviceReport) {
        self.told.insert(id.to_owned(), (now, report));
    }

    /// The cloud does not have what it was told: the same is news again.
    pub fn tell_again(&mut self, id: &str) {
        self.told.remove(id);
    }

    /// A report is on disk, or did not get there: then it is made again after a while.
    pub fn done(&mut self, now: Duration, id: &str, on_disk: bool) {
        self.in_flight = self.in_flight.saturating_sub(1);
        if !on_disk {
            self.told.remove(id);
            self.last.insert(id.to_owned(), now);
            self.touch(now, id);
        }
    }

    /// A device is gone.
    pub fn forget(&mut self, id: &str) {
        self.last.remove(id);
        self.told.remove(id);
        if self.queued.remove(id) {
            self.queue.retain(|(_, queued)| queued != id);
        }
    }

    /// When the next of those that are `ready` is due.
    pub fn due(&self, ready: impl Fn(&str) -> bool) -> Option<Duration> {
        let next = self.queue.iter().find(|(_, id)| ready(id)).map(|(due, _)| *due);
        next.filter(|_| self.in_flight < IN_FLIGHT)
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
        assert_eq!(reporter.next(at(5000), |_| true), Some("a".into()));
        for ms in [5001, 5100, 5500] {
            reporter.touch(at(ms), "a");
            assert_eq!(reporter.next(at(ms), |_| true), None);
        }
        reporter.touch(at(5600), "b");
        assert_eq!(reporter.next(at(5600), |_| true), Some("b".into()), "another device does not wait behind it");
        assert_eq!(reporter.due(|_| true), Some(at(6000)));
        assert_eq!(reporter.next(at(6000), |_| true), Some("a".into()));
        assert_eq!(reporter.next(at(9000), |_| true), None, "many changes were one report");
    }

    #[test]
    fn what_did_not_get_to_the_disk_is_reported_again_and_what_is_gone_is_not() {
        let mut reporter = Reporter::default();
        let at = Duration::from_secs;
        for id in ["a", "b"] {
            reporter.touch(at(10), id);
            reporter.next(at(10), |_| true);
            reporter.done(at(10), id, false);
        }
        reporter.forget("b");
        assert_eq!(reporter.next(at(10), |_| true), None);
        assert_eq!(reporter.next(at(11), |_| true), Some("a".into()));
        assert_eq!(reporter.next(at(99), |_| true), None);
    }

    #[test]
    fn so_many_and_no_more_are_on_their_way() {
        let mut reporter = Reporter::default();
        (0..100).for_each(|id| reporter.touch(Duration::ZERO, &id.to_string()));
        let sent: Vec<String> = std::iter::from_fn(|| reporter.next(Duration::ZERO, |_| true)).collect();
        assert_eq!((sent.len(), reporter.due(|_| true)), (IN_FLIGHT, None));
        reporter.done(Duration::ZERO, &sent[0], true);
        assert!(reporter.next(Duration::ZERO, |_| true).is_some());
    }

    #[test]
    fn what_is_not_on_disk_yet_waits_and_holds_up_nobody() {
        let mut reporter = Reporter::default();
        for id in ["a", "b"] {
            reporter.touch(Duration::ZERO, id);
        }
        let not_a = |id: &str| id != "a";
        assert_eq!(reporter.next(Duration::ZERO, not_a), Some("b".into()));
        assert_eq!((reporter.next(Duration::ZERO, not_a), reporter.due(not_a)), (None, None));
        assert_eq!(reporter.next(Duration::ZERO, |_| true), Some("a".into()));
    }

    #[test]
    fn the_same_is_not_reported_again_for_a_while() {
        let mut reporter = Reporter::default();
        let (old, new) =
            (DeviceReport::default(), DeviceReport { state: Some("online".into()), ..DeviceReport::default() });
        let at = Duration::from_secs;
        assert!(reporter.is_news(at(1), "a", &old));
        reporter.tell(at(1), "a", old.clone());
        assert!(!reporter.is_news(at(2), "a", &old) && reporter.is_news(at(2), "a", &new));
        assert!(reporter.is_news(at(2), "b", &old), "another device");
        assert!(reporter.is_news(at(1) + REPEATED, "a", &old));
        reporter.done(at(3), "a", false);
        assert!(reporter.is_news(at(3), "a", &old), "it did not get to the disk");
        reporter.tell(at(4), "a", old.clone());
        reporter.forget("a");
        assert!(reporter.is_news(at(5), "a", &old), "another device of that name");
    }

    proptest::proptest! {
        /// Whatever fails, and whenever: in the end the cloud was told the newest of each device.
        #[test]
        fn the_newest_of_each_device_gets_told(
            steps in proptest::collection::vec((0..5u8, 0..3usize, proptest::bool::ANY), 1..120),
        ) {
            let mut reporter = Reporter::default();
            let mut now = Duration::from_secs(10);
            let ids = ["a", "b", "c"];
            let mut newest = [0u64; 3];
            // What is on its way to the disk, and what got there.
            let mut under_way: Vec<(usize, DeviceReport)> = Vec::new();
            let mut told: [Option<u64>; 3] = [None; 3];
            let index = |id: &str| ids.iter().position(|one| *one == id).unwrap();
            let report = |generation| DeviceReport { generation, ..DeviceReport::default() };
            let drive = |reporter: &mut Reporter, under_way: &mut Vec<_>, newest: &[u64; 3], now| {
                while let Some(id) = reporter.next(now, |_| true) {
                    let next = report(newest[index(&id)]);
                    if !reporter.is_news(now, &id, &next) {
                        reporter.done(now, &id, true);
                        continue;
                    }
                    reporter.tell(now, &id, next.clone());
                    under_way.push((index(&id), next));
                }
            };
            for (what, device, on_disk) in steps {
                match what {
                    0 | 1 => {
                        newest[device] += 1;
                        reporter.touch(now, ids[device]);
                    }
                    2 => now += Duration::from_millis(400),
                    3 if !under_way.is_empty() => {
                        let (device, report) = under_way.remove(device % under_way.len());
                        if on_disk {
                            told[device] = told[device].max(Some(report.generation));
                        }
                        reporter.done(now, ids[device], on_disk);
                    }
                    _ => reporter.tell_again(ids[device]),
                }
                drive(&mut reporter, &mut under_way, &newest, now);
            }
            for _ in 0..5 {
                now += EVERY;
                for (device, report) in std::mem::take(&mut under_way) {
                    told[device] = told[device].max(Some(report.generation));
                    reporter.done(now, ids[device], true);
                }
                drive(&mut reporter, &mut under_way, &newest, now);
            }
            for device in 0..3 {
                proptest::prop_assert_eq!(told[device].unwrap_or_default(), newest[device]);
            }
        }
    }
}
