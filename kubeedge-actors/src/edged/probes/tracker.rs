//! The probes of one running instance: when each is due, and what its answers say so far. Pure.

use tokio::time::Instant;

use super::spec::{ProbeKind, ProbeSpec, Probes};

/// What the probes say of one instance. `None`: nothing yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Checked {
    /// Whether it has started.
    pub startup: Option<bool>,
    /// Whether it is ready.
    pub readiness: Option<bool>,
    /// Whether it works.
    pub liveness: Option<bool>,
}

impl Checked {
    /// Whether an instance of a container with these probes has started.
    pub fn has_started(&self, probes: &Probes) -> bool {
        probes.startup.is_none() || self.startup == Some(true)
    }

    /// Whether it is ready (`P-READY-WHEN-ASKED`).
    pub fn is_ready(&self, probes: &Probes) -> bool {
        self.has_started(probes) && (probes.readiness.is_none() || self.readiness == Some(true))
    }

    /// The probe that wants it to end.
    pub fn failed(&self, probes: &Probes) -> Option<ProbeKind> {
        match (self.startup, self.liveness) {
            (Some(false), _) if probes.startup.is_some() => Some(ProbeKind::Startup),
            (_, Some(false)) if probes.liveness.is_some() => Some(ProbeKind::Liveness),
            _ => None,
        }
    }

    /// Whether readiness is still to be found out.
    pub fn is_open(&self, probes: &Probes) -> bool {
        let waits = |probe: Option<&ProbeSpec>, said: Option<bool>| probe.is_some() && said.is_none();
        waits(probes.startup.as_ref(), self.startup) || waits(probes.readiness.as_ref(), self.readiness)
    }

    fn get_mut(&mut self, kind: ProbeKind) -> &mut Option<bool> {
        match kind {
            ProbeKind::Startup => &mut self.startup,
            ProbeKind::Readiness => &mut self.readiness,
            ProbeKind::Liveness => &mut self.liveness,
        }
    }
}

#[derive(Clone, Debug)]
struct Tracker {
    kind: ProbeKind,
    spec: ProbeSpec,
    /// When the next probe is due, unless it waits for something else.
    due: Instant,
    under_way: bool,
    /// The last answer, and how often it came in a row.
    last: Option<bool>,
    run: u32,
    /// It has said what there was to say about this instance.
    done: bool,
}

/// The probes of one instance.
#[derive(Clone, Debug)]
pub struct InstanceProbes {
    probes: Probes,
    trackers: Vec<Tracker>,
    checked: Checked,
}

impl InstanceProbes {
    /// The probes of an instance that started at this time.
    ///
    /// Readiness is asked for as soon as the initial delay has passed. Startup and liveness come a period after the
    /// start at the earliest, as a kubelet's do that was there all the time: a first answer that is too early must not
    /// cost the container its life.
    pub fn new(probes: Probes, started_at: Instant) -> Self {
        let trackers = probes.iter().map(|(kind, spec)| {
            let pause = if kind == ProbeKind::Readiness { spec.initial_delay } else { first(spec) };
            let due = started_at + pause;
            Tracker { kind, spec: spec.clone(), due, under_way: false, last: None, run: 0, done: false }
        });
        Self { trackers: trackers.collect(), probes, checked: Checked::default() }
    }

    /// The instance is found running by an edgecore that was not there when it started: what it said before is not
    /// known, so it is asked at once, as far as its initial delay has passed.
    pub fn adopted(mut self, started_at: Instant) -> Self {
        for tracker in &mut self.trackers {
            tracker.due = started_at + tracker.spec.initial_delay;
        }
        self
    }

    /// What they say.
    pub fn checked(&self) -> Checked {
        self.checked
    }

    /// The pod ends: whether its containers work is no longer asked.
    pub fn ends(&mut self) {
        for tracker in &mut self.trackers {
            tracker.done |= tracker.kind != ProbeKind::Readiness;
        }
    }

    /// The next probe and when it is due. None while all are under way, wait or have said everything.
    pub fn next(&self) -> Option<(Instant, ProbeKind)> {
        let started = self.checked.has_started(&self.probes);
        self.trackers
            .iter()
            .filter(|tracker| !tracker.under_way && !tracker.done)
            .filter(|tracker| started != (tracker.kind == ProbeKind::Startup))
            .map(|tracker| (tracker.due, tracker.kind))
            .min()
    }

    /// A probe begins; what it does.
    pub fn begin(&mut self, kind: ProbeKind, now: Instant) -> Option<&ProbeSpec> {
        let tracker = self.trackers.iter_mut().find(|tracker| tracker.kind == kind)?;
        tracker.under_way = true;
        tracker.due = now + tracker.spec.period;
        Some(&tracker.spec)
    }

    /// A probe has ended: good, bad, or with an error that says nothing. True when what the probes say has changed.
    pub fn end(&mut self, kind: ProbeKind, answer: Option<bool>, now: Instant) -> bool {
        let before = self.checked;
        let Some(tracker) = self.trackers.iter_mut().find(|tracker| tracker.kind == kind) else { return false };
        tracker.under_way = false;
        let Some(good) = answer.filter(|_| !tracker.done) else { return false };
        tracker.run = if tracker.last == Some(good) { tracker.run.saturating_add(1) } else { 1 };
        tracker.last = Some(good);
        let threshold = if good { tracker.spec.success_threshold } else { tracker.spec.failure_threshold };
        if tracker.run < threshold {
            return false;
        }
        *self.checked.get_mut(kind) = Some(good);
        // A container that is to be restarted is left alone, and one that has started is not asked for it again.
        tracker.done = kind == ProbeKind::Startup || (kind == ProbeKind::Liveness && !good);
        if kind == ProbeKind::Startup && good {
            for tracker in &mut self.trackers {
                let pause = if tracker.kind == ProbeKind::Liveness { tracker.spec.period } else { Default::default() };
                tracker.due = tracker.due.max(now + pause);
            }
        }
        self.checked != before
    }
}

fn first(spec: &ProbeSpec) -> std::time::Duration {
    spec.initial_delay.max(spec.period)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::{super::spec::Check, *};

    fn spec(initial: u64, period: u64, success: u32, failure: u32) -> ProbeSpec {
        ProbeSpec {
            check: Ok(Check::Tcp { host: None, port: 1 }),
            initial_delay: Duration::from_secs(initial),
            period: Duration::from_secs(period),
            timeout: Duration::from_secs(1),
            success_threshold: success,
            failure_threshold: failure,
            grace_seconds: None,
        }
    }

    /// Answers what is due, one after the other, and notes when each was asked and what was known then.
    fn drive(
        probes: &Probes,
        mut answer: impl FnMut(ProbeKind, u64) -> bool,
        seconds: u64,
    ) -> (Vec<(u64, ProbeKind)>, Checked) {
        let start = Instant::now();
        let mut instance = InstanceProbes::new(probes.clone(), start);
        let mut asked = Vec::new();
        while let Some((due, kind)) = instance.next() {
            let at = due.duration_since(start).as_secs();
            if at > seconds {
                break;
            }
            asked.push((at, kind));
            instance.begin(kind, due);
            instance.end(kind, Some(answer(kind, at)), due);
        }
        (asked, instance.checked())
    }

    #[test]
    fn readiness_goes_up_and_down_by_its_thresholds() {
        let probes = Probes { readiness: Some(spec(3, 2, 2, 3)), ..Probes::default() };
        let good = |at: u64| !(9..17).contains(&at);
        let ready_at = |second: u64| drive(&probes, |_, at| good(at), second).1.is_ready(&probes);
        // Asked at 3, 5, 7 ... good from the second good answer, bad from the third bad one.
        let (asked, _) = drive(&probes, |_, at| good(at), 9);
        assert_eq!(asked.iter().map(|(at, _)| *at).collect::<Vec<_>>(), [3, 5, 7, 9]);
        let seen: Vec<u64> = (0..24).filter(|second| ready_at(*second)).collect();
        assert_eq!(seen, [5, 6, 7, 8, 9, 10, 11, 12, 19, 20, 21, 22, 23]);
    }

    #[test]
    fn a_failed_liveness_probe_is_said_once_and_the_instance_left_alone() {
        let probes = Probes { liveness: Some(spec(0, 10, 1, 3)), ..Probes::default() };
        let (asked, checked) = drive(&probes, |_, at| at < 20, 1000);
        assert_eq!(asked.iter().map(|(at, _)| *at).collect::<Vec<_>>(), [10, 20, 30, 40]);
        assert_eq!(checked.failed(&probes), Some(ProbeKind::Liveness));
    }

    #[test]
    fn the_others_wait_for_startup() {
        let probes = Probes {
            startup: Some(spec(0, 1, 1, 30)),
            readiness: Some(spec(0, 10, 1, 3)),
            liveness: Some(spec(2, 5, 1, 3)),
        };
        let (asked, checked) = drive(&probes, |kind, at| kind != ProbeKind::Startup || at >= 4, 15);
        use ProbeKind::{Liveness, Readiness, Startup};
        let expected =
            [(1, Startup), (2, Startup), (3, Startup), (4, Startup), (4, Readiness), (9, Liveness), (14, Readiness)];
        assert_eq!(asked[..7], expected);
        assert!(checked.has_started(&probes) && checked.is_ready(&probes));

        let (asked, checked) = drive(&probes, |_, _| false, 1000);
        assert_eq!(asked.len(), 30);
        assert_eq!(checked.failed(&probes), Some(Startup));
        assert!(!checked.has_started(&probes));
    }

    #[test]
    fn an_error_says_nothing_and_the_end_of_the_pod_ends_liveness() {
        let probes =
            Probes { liveness: Some(spec(0, 1, 1, 1)), readiness: Some(spec(0, 1, 1, 1)), ..Probes::default() };
        let now = Instant::now();
        let mut instance = InstanceProbes::new(probes, now);
        instance.begin(ProbeKind::Liveness, now);
        assert!(!instance.end(ProbeKind::Liveness, None, now));
        instance.begin(ProbeKind::Liveness, now);
        instance.ends();
        assert!(!instance.end(ProbeKind::Liveness, Some(false), now), "what was under way counts no more");
        assert_eq!(instance.next().map(|(_, kind)| kind), Some(ProbeKind::Readiness));
    }

    fn any_spec() -> impl Strategy<Value = ProbeSpec> {
        (0..4_u64, 1..5_u64, 1..4_u32, 1..4_u32)
            .prop_map(|(initial, period, success, failure)| spec(initial, period, success, failure))
    }

    fn any_probes() -> impl Strategy<Value = Probes> {
        let some = || proptest::option::of(any_spec());
        (some(), some(), some()).prop_map(|(startup, readiness, liveness)| Probes { startup, readiness, liveness })
    }

    proptest! {
        #[test]
        fn probes_keep_their_order_their_period_and_their_thresholds(
            probes in any_probes(), answers in proptest::collection::vec(any::<bool>(), 1..120),
        ) {
            let start = Instant::now();
            let mut instance = InstanceProbes::new(probes.clone(), start);
            let mut last_at: std::collections::HashMap<ProbeKind, Instant> = Default::default();
            let mut runs: std::collections::HashMap<ProbeKind, (bool, u32)> = Default::default();
            for good in answers {
                let Some((due, kind)) = instance.next() else { break };
                let spec = probes.get(kind).unwrap();
                let before = instance.checked();
                prop_assert!(due >= start + spec.initial_delay);
                if let Some(last) = last_at.insert(kind, due) {
                    prop_assert!(due >= last + spec.period);
                }
                prop_assert_eq!(before.has_started(&probes), kind != ProbeKind::Startup);
                prop_assert!(before.liveness != Some(false) || kind != ProbeKind::Liveness);
                instance.begin(kind, due);
                let changed = instance.end(kind, Some(good), due);
                let run = runs.entry(kind).or_insert((good, 0));
                *run = if run.0 == good { (good, run.1 + 1) } else { (good, 1) };
                let threshold = if good { spec.success_threshold } else { spec.failure_threshold };
                let after = instance.checked();
                if changed {
                    prop_assert!(run.1 >= threshold);
                    let said = match kind {
                        ProbeKind::Startup => after.startup,
                        ProbeKind::Readiness => after.readiness,
                        ProbeKind::Liveness => after.liveness,
                    };
                    prop_assert_eq!(said, Some(good));
                } else if run.1 == threshold {
                    prop_assert_eq!(before, after);
                }
                prop_assert!(!after.is_ready(&probes) || after.has_started(&probes));
            }
        }
    }
}
