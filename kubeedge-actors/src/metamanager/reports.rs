//! Reports for the cloud that are not settled yet: the newest of each object, "terminated" last of all. Pure.

use std::collections::BTreeMap;

use kubeedge_proto::{
    resource,
    v1::{ObjectKey, ReportStatus, ResourceType, report_status::Report},
};

/// What a report is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ReportKey(Vec<u8>);

impl ReportKey {
    /// The key of a report; `None` when the report names no object.
    pub fn of(report: &ReportStatus) -> Option<Self> {
        match report.report.as_ref()? {
            Report::Update(update) => Some(Self::new(update.r#type.as_ref()?, update.key.as_ref()?, &update.uid)),
            Report::Terminated(pod) => Some(Self::new(&resource::pods(), pod.key.as_ref()?, &pod.uid)),
            Report::Device(device) => Some(Self::new(&resource::devices(), device.key.as_ref()?, &device.uid)),
        }
    }

    /// The key of reports about one object.
    pub fn new(type_: &ResourceType, key: &ObjectKey, uid: &str) -> Self {
        let type_ = type_.to_string();
        Self([type_.as_str(), &key.namespace, &key.name, uid].map(str::as_bytes).join(&0))
    }

    /// As it stands in the table.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

/// The order and generations of what is pending; the reports themselves are on disk.
#[derive(Default)]
pub struct Reports {
    pending: BTreeMap<ReportKey, Pending>,
    last: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Pending {
    order: u64,
    generation: u64,
    terminated: bool,
}

impl Reports {
    /// Nothing pending; generations go on after this one. Of a component that is built again while a session stands the
    /// last one is not always on disk: what was settled is forgotten there.
    pub fn after(last: u64) -> Self {
        Self { last, ..Self::default() }
    }

    /// The last generation that was given, or above it.
    pub fn last(&self) -> u64 {
        self.last
    }

    /// Takes a report in and gives it its generation. False when it is not to be kept: the pod has ended already.
    pub fn take(&mut self, key: &ReportKey, report: &mut ReportStatus) -> bool {
        let Some((generation, terminated)) = parts(report) else { return false };
        let old = self.pending.get(key);
        if old.is_some_and(|old| old.terminated && !terminated) {
            return false;
        }
        self.last += 1;
        *generation = self.last;
        // Keeps its place: what changes often does not wait longer for it.
        let order = old.map_or(self.last, |old| old.order);
        self.pending.insert(key.clone(), Pending { order, generation: self.last, terminated });
        true
    }

    /// Takes in a report as it is on disk.
    pub fn load(&mut self, key: ReportKey, mut report: ReportStatus) {
        let Some((generation, terminated)) = parts(&mut report) else { return };
        self.last = self.last.max(*generation);
        self.pending.insert(key, Pending { order: *generation, generation: *generation, terminated });
    }

    /// Whether a settled report may be forgotten: not when a newer one has come meanwhile.
    pub fn settle(&mut self, key: &ReportKey, settled_generation: u64) -> bool {
        let done = self.pending.get(key).is_some_and(|pending| pending.generation <= settled_generation);
        if done {
            self.pending.remove(key);
        }
        done
    }

    /// The cloud could not take a report now: it goes behind the others, which must not wait for it.
    pub fn postpone(&mut self, key: &ReportKey) {
        if let Some(pending) = self.pending.get_mut(key) {
            self.last += 1;
            pending.order = self.last;
        }
    }

    /// The keys of what is pending, oldest first.
    pub fn oldest(&self, limit: usize) -> Vec<ReportKey> {
        let mut keys: Vec<(u64, &ReportKey)> = self.pending.iter().map(|(key, pending)| (pending.order, key)).collect();
        keys.sort_unstable_by_key(|(order, _)| *order);
        keys.into_iter().take(limit).map(|(_, key)| key.clone()).collect()
    }

    /// How many reports are pending.
    pub fn len(&self) -> usize {
        self.pending.len()
    }

    /// Whether nothing is pending.
    pub fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }
}

/// A report's generation, and whether it is the pod's last.
fn parts(report: &mut ReportStatus) -> Option<(&mut u64, bool)> {
    match report.report.as_mut()? {
        Report::Update(update) => Some((&mut update.generation, false)),
        Report::Terminated(pod) => Some((&mut pod.generation, true)),
        Report::Device(device) => Some((&mut device.generation, false)),
    }
}

#[cfg(test)]
mod tests {
    use kubeedge_proto::v1::{PodTerminated, StatusUpdate};

    use super::*;

    fn update() -> ReportStatus {
        ReportStatus {
            report: Some(Report::Update(StatusUpdate {
                r#type: Some(resource::pods()),
                key: Some(ObjectKey::new("ns", "a")),
                uid: "u".into(),
                ..StatusUpdate::default()
            })),
        }
    }

    fn terminated() -> ReportStatus {
        ReportStatus {
            report: Some(Report::Terminated(PodTerminated {
                key: Some(ObjectKey::new("ns", "a")),
                uid: "u".into(),
                ..PodTerminated::default()
            })),
        }
    }

    #[test]
    fn terminated_is_never_overwritten() {
        let mut reports = Reports::default();
        let key = ReportKey::of(&update()).unwrap();
        assert_eq!(Some(&key), ReportKey::of(&terminated()).as_ref());
        assert!(reports.take(&key, &mut update()));
        assert!(reports.take(&key, &mut terminated()));
        assert!(!reports.take(&key, &mut update()));
        assert!(!reports.settle(&key, 1), "the update was settled, the end was not");
        assert!(reports.settle(&key, 2));
        assert!(reports.is_empty());
    }

    #[test]
    fn a_report_settled_while_a_newer_one_came_stays_pending() {
        let mut reports = Reports::default();
        let key = ReportKey::of(&update()).unwrap();
        let (mut first, mut second) = (update(), update());
        reports.take(&key, &mut first);
        reports.take(&key, &mut second);
        assert_ne!(first, second, "each has a generation of its own");
        assert!(!reports.settle(&key, 1));
        assert_eq!(reports.oldest(10), std::slice::from_ref(&key));
        assert!(reports.settle(&key, 2));
    }

    #[test]
    fn a_report_that_the_cloud_cannot_take_lets_others_pass() {
        let mut reports = Reports::default();
        let key = |uid: &str| ReportKey::new(&resource::pods(), &ObjectKey::new("ns", "a"), uid);
        for uid in ["first", "second"] {
            assert!(reports.take(&key(uid), &mut update()));
        }
        reports.postpone(&key("first"));
        assert_eq!(reports.oldest(1), [key("second")]);
        assert!(reports.settle(&key("first"), 1), "its generation is the same");
    }

    #[test]
    fn generations_go_on_after_a_restart() {
        let mut reports = Reports::default();
        let key = ReportKey::of(&update()).unwrap();
        let mut old = update();
        (0..5).for_each(|_| assert!(reports.take(&key, &mut old)));
        let mut restarted = Reports::default();
        restarted.load(key.clone(), old);
        let mut new = update();
        assert!(restarted.take(&key, &mut new));
        assert!(!restarted.settle(&key, 5));
        assert!(restarted.settle(&key, 6));
    }

    /// P-ORDER-PER-KEY
    #[test]
    fn generations_rise_when_the_component_is_built_again_and_nothing_is_on_disk() {
        let mut reports = Reports::default();
        let key = ReportKey::of(&update()).unwrap();
        (0..5).for_each(|_| assert!(reports.take(&key, &mut update())));
        assert!(reports.settle(&key, 5));
        let mut again = Reports::after(reports.last());
        assert!(again.take(&key, &mut update()));
        assert!(!again.settle(&key, 5), "what an earlier life heard late is not about this one");
    }
}
