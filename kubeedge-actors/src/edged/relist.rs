//! What changed in the runtime between two lists, and when the next one is due.
//!
//! A runtime that tells events (containerd 1.7 and newer, CRI-O where it is switched on) is listed when it tells one and
//! rarely otherwise; any other one every second. A list is two cheap calls, and only pods that differ are looked at
//! closely. Events are never more than a reason to look: what counts is the list.

use std::{collections::BTreeMap, time::Duration};

use tokio::{sync::watch, time::Instant};

use super::{runtime::PodSummary, runtime_events::Heard};

/// Pause between two lists of a runtime that tells no events (kubelet's).
pub const PERIOD: Duration = Duration::from_secs(1);

/// Pause between two lists of one that does, when it told nothing. A kubelet's is 300 s; here a list is also what says
/// that the runtime is alive, which the cloud wants to know every 3 minutes.
pub const RARELY: Duration = Duration::from_secs(60);

/// Least time between two lists, however many events come: a pod that comes up makes some ten of them.
pub const LEAST: Duration = Duration::from_millis(100);

/// Without a list, a failed one included, for this long Edged is stuck (kubelet's limit for the same).
pub const WITHIN: Duration = Duration::from_secs(180);

/// When what runs is listed next.
#[derive(Debug)]
pub struct Pace {
    listed_at: Instant,
    /// What was heard by the last look at it.
    news: Heard,
    /// Events are counted on: they stand, and nothing changed without one since the last.
    counted_on: bool,
    /// One came since the last list.
    told: bool,
    /// The last list was for an event or has failed: a runtime may tell before its list shows it, so it is listed once
    /// more.
    again: bool,
}

impl Pace {
    /// The first list is due one period after `now`.
    pub fn new(now: Instant) -> Self {
        Self { listed_at: now, news: Heard::default(), counted_on: false, told: false, again: false }
    }

    /// Takes in what is heard of events by now.
    pub fn hear(&mut self, news: Heard) {
        if news.count != self.news.count {
            (self.told, self.counted_on) = (true, true);
        } else if news.stands != self.news.stands {
            self.counted_on = news.stands;
        }
        self.counted_on &= news.stands;
        self.news = news;
    }

    /// When the next list is due.
    pub fn due(&self) -> Instant {
        let pause = match (self.told, self.counted_on && !self.again) {
            (true, _) => LEAST,
            (false, true) => RARELY,
            (false, false) => PERIOD,
        };
        self.listed_at + pause
    }

    /// Waits until the next list is due.
    pub async fn wait(&mut self, heard: &mut watch::Receiver<Heard>) {
        loop {
            let news = *heard.borrow_and_update();
            self.hear(news);
            tokio::select! {
                () = tokio::time::sleep_until(self.due()) => return,
                Ok(()) = heard.changed() => {}
            }
        }
    }

    /// A list was made. `changed`: whether it showed something new; `None` when it failed.
    pub fn listed(&mut self, changed: Option<bool>, now: Instant) {
        if changed == Some(true) && !self.told && !self.again && self.counted_on {
            tracing::debug!("the container runtime changed and told no event: it is listed every second until it does");
            self.counted_on = false;
        }
        self.again = self.told || changed.is_none();
        self.told = false;
        self.listed_at = now;
    }
}

/// The last list.
#[derive(Debug, Default)]
pub struct Relist {
    pods: BTreeMap<String, PodSummary>,
}

impl Relist {
    /// Takes in a list and answers the uids of pods that appeared, changed or went.
    pub fn take(&mut self, list: Vec<PodSummary>) -> Vec<String> {
        let new: BTreeMap<String, PodSummary> = list.into_iter().map(|pod| (pod.uid.clone(), pod)).collect();
        let changed = new
            .iter()
            .filter(|(uid, pod)| self.pods.get(*uid) != Some(pod))
            .map(|(uid, _)| uid)
            .chain(self.pods.keys().filter(|uid| !new.contains_key(*uid)))
            .cloned()
            .collect();
        self.pods = new;
        changed
    }

    /// The pods of the last list.
    pub fn pods(&self) -> impl Iterator<Item = &PodSummary> {
        self.pods.values()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::edged::runtime::InstanceState;

    fn pod(uid: &str, state: InstanceState) -> PodSummary {
        PodSummary {
            namespace: "ns".into(),
            name: uid.into(),
            uid: uid.into(),
            sandboxes: [("s".to_owned(), true)].into(),
            containers: [("c".to_owned(), state)].into(),
            grace_seconds: None,
        }
    }

    fn heard(stands: bool, count: u64) -> Heard {
        Heard { stands, count }
    }

    /// The pauses until the next five lists, each of which shows nothing new.
    fn pauses(pace: &mut Pace) -> Vec<Duration> {
        (0..5)
            .map(|_| {
                let pause = pace.due() - pace.listed_at;
                pace.listed(Some(false), pace.due());
                pause
            })
            .collect()
    }

    #[test]
    fn without_events_it_is_listed_every_second() {
        let mut pace = Pace::new(Instant::now());
        assert_eq!(pauses(&mut pace), [PERIOD; 5]);
        // Those of a stream that has ended count for nothing any more.
        pace.hear(heard(true, 7));
        pace.hear(heard(false, 7));
        assert_eq!(pauses(&mut pace), [LEAST, PERIOD, PERIOD, PERIOD, PERIOD]);
    }

    #[test]
    fn an_event_is_followed_by_a_list_at_once_another_one_and_then_rare_ones() {
        let mut pace = Pace::new(Instant::now());
        pace.hear(heard(true, 0));
        assert_eq!(pauses(&mut pace), [RARELY; 5]);
        pace.hear(heard(true, 3));
        assert_eq!(pauses(&mut pace), [LEAST, PERIOD, RARELY, RARELY, RARELY]);
    }

    #[test]
    fn a_change_that_no_event_told_is_a_reason_to_look_every_second_until_the_next_one() {
        let mut pace = Pace::new(Instant::now());
        pace.hear(heard(true, 1));
        pauses(&mut pace);
        pace.listed(Some(true), pace.due());
        assert_eq!(pauses(&mut pace), [PERIOD; 5]);
        pace.hear(heard(true, 2));
        assert_eq!(pauses(&mut pace), [LEAST, PERIOD, RARELY, RARELY, RARELY]);
        // What an event's lists show was told.
        pace.hear(heard(true, 3));
        for _ in 0..2 {
            pace.listed(Some(true), pace.due());
        }
        assert_eq!(pauses(&mut pace), [RARELY; 5]);
    }

    #[test]
    fn a_list_that_failed_is_made_again_in_a_second() {
        let mut pace = Pace::new(Instant::now());
        pace.hear(heard(true, 0));
        pace.listed(None, pace.due());
        assert_eq!(pauses(&mut pace)[..2], [PERIOD, RARELY]);
    }

    #[tokio::test(start_paused = true)]
    async fn an_event_ends_the_wait_and_a_listener_that_is_gone_does_not() {
        let (sender, mut receiver) = watch::channel(heard(true, 0));
        let began = Instant::now();
        let mut pace = Pace::new(began);
        let told = async {
            tokio::time::sleep(Duration::from_secs(10)).await;
            sender.send_replace(heard(true, 1));
        };
        tokio::join!(pace.wait(&mut receiver), told);
        assert_eq!(began.elapsed(), Duration::from_secs(10));
        pace.listed(Some(true), Instant::now());
        drop(sender);
        pace.wait(&mut receiver).await;
        assert_eq!(began.elapsed(), Duration::from_secs(11));
    }

    proptest::proptest! {
        /// Whatever is heard: never more than ten lists a second, and every second where events do not stand.
        #[test]
        fn lists_are_neither_too_many_nor_too_few(
            history in proptest::collection::vec((proptest::bool::ANY, 0_u64..2, proptest::option::of(proptest::bool::ANY)), 0..40)
        ) {
            let mut pace = Pace::new(Instant::now());
            let mut count = 0;
            for (stands, more, changed) in history {
                count += more;
                pace.hear(heard(stands, count));
                let pause = pace.due() - pace.listed_at;
                let longest = if stands { RARELY } else { PERIOD };
                proptest::prop_assert!(pause >= LEAST && pause <= longest, "{:?}", pause);
                pace.listed(changed, pace.due());
            }
        }
    }

    #[test]
    fn only_what_differs_is_told() {
        use InstanceState::{Exited, Running};
        let mut relist = Relist::default();
        assert_eq!(relist.take(vec![pod("a", Running), pod("b", Running)]), ["a", "b"]);
        assert_eq!(relist.take(vec![pod("b", Running), pod("a", Running)]), [""; 0]);
        assert_eq!(relist.take(vec![pod("a", Exited), pod("b", Running)]), ["a"]);
        assert_eq!(relist.take(vec![pod("a", Exited), pod("c", Running)]), ["c", "b"]);
    }
}
