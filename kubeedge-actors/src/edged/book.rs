//! Which pods this node looks after, and what becomes of them as their objects come and go. Pure.
//!
//! A pod is its uid. Of one name one pod runs: the next begins when the one before has ended. Nothing ends because its
//! object is absent, unless the set of pods is known to be complete.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use k8s_openapi::api::core::v1::Pod;

use super::{
    lifecycle::{DEFAULT_GRACE_SECONDS, PodPlan, RestartPolicy, Want},
    runtime::PodSummary,
    worker::Order,
};

/// Namespace and name.
pub type Key = (String, String);

/// What to do with a worker.
#[derive(Debug)]
pub enum Effect {
    /// Begin to look after a pod.
    Start {
        /// The pod's uid.
        uid: String,
        /// What is wanted of it.
        order: Order,
    },
    /// Something else is wanted of a pod that is looked after.
    Order {
        /// The pod's uid.
        uid: String,
        /// What is wanted now.
        order: Order,
    },
}

struct Entry {
    order: Order,
    /// Its object is gone: nothing brings it back.
    gone: bool,
}

/// The pods of this node.
#[derive(Default)]
pub struct Book {
    entries: BTreeMap<String, Entry>,
    /// The pod that begins when the one of the same name has ended.
    next: BTreeMap<Key, Order>,
    /// Pods that ended and whose end is reported: they wait for the cloud to take their object away.
    ended: BTreeSet<String>,
    complete: bool,
    /// While the pods on disk are not read yet: whose news came before them.
    early: Option<BTreeSet<Key>>,
    /// News may have been lost, and what was on disk then was not known to be all: it is to be read again when it is.
    unsure: bool,
}

impl Book {
    /// An empty book; what is on disk has still to be read.
    pub fn new() -> Self {
        Self { early: Some(BTreeSet::new()), ..Self::default() }
    }

    /// A pod is wanted, in this version.
    pub fn upsert(&mut self, pod: Arc<Pod>, plan: PodPlan) -> Vec<Effect> {
        let key = key(&plan);
        if let Some(early) = &mut self.early {
            early.insert(key);
        }
        self.take_in(pod, plan)
    }

    /// A pod is to be deleted whose new version cannot be understood: the one that is known ends, and that is reported.
    pub fn delete(&mut self, uid: &str) -> Vec<Effect> {
        let Some(entry) = self.entries.get_mut(uid).filter(|entry| !entry.gone) else { return Vec::new() };
        entry.order.want = Want::End { grace_seconds: entry.order.plan.grace_seconds };
        vec![Effect::Order { uid: uid.to_owned(), order: entry.order.clone() }]
    }

    /// A pod's object is gone.
    pub fn gone(&mut self, key: &Key, uid: &str) -> Vec<Effect> {
        if let Some(early) = &mut self.early {
            early.insert(key.clone());
        }
        self.ended.remove(uid);
        if self.next.get(key).is_some_and(|next| next.plan.uid == uid) {
            self.next.remove(key);
        }
        self.end(uid)
    }

    /// News may have been lost: the pods on disk are read again, and until then nothing ends for its absence.
    pub fn reload(&mut self) {
        self.early = Some(BTreeSet::new());
        self.complete = false;
        self.unsure = true;
    }

    /// Whether the pods on disk are still to be read.
    pub fn is_loading(&self) -> bool {
        self.early.is_some()
    }

    /// The pods on disk, as far as they can be understood, the uids of all that are there, and whether they are all that
    /// are wanted. What was told meanwhile is newer than what was read. Of a complete set, what is not in it has ended.
    pub fn loaded(&mut self, pods: Vec<(Arc<Pod>, PodPlan)>, uids: &BTreeSet<&str>, complete: bool) -> Vec<Effect> {
        let early = self.early.take().unwrap_or_default();
        self.complete |= complete;
        self.unsure &= !complete;
        let unknown = pods.into_iter().filter(|(_, plan)| !early.contains(&key(plan)));
        let mut effects: Vec<Effect> = unknown.flat_map(|(pod, plan)| self.take_in(pod, plan)).collect();
        if complete {
            self.ended.retain(|uid| uids.contains(uid.as_str()));
            self.next.retain(|key, next| early.contains(key) || uids.contains(next.plan.uid.as_str()));
            let missed = |(uid, entry): &(&String, &Entry)| {
                !uids.contains(uid.as_str()) && !early.contains(&key(&entry.order.plan))
            };
            let missed: Vec<String> = self.entries.iter().filter(missed).map(|(uid, _)| uid.clone()).collect();
            effects.extend(missed.iter().flat_map(|uid| self.end(uid)));
        }
        effects
    }

    /// The set of pods is complete: absence means absence. True when they are to be read again: see [`Book::reload`].
    #[must_use]
    pub fn completed(&mut self) -> bool {
        self.complete = true;
        std::mem::take(&mut self.unsure) && !self.is_loading()
    }

    /// Whether pods that nobody wants may be ended (`P-NO-END-FROM-IGNORANCE`).
    pub fn may_end_for_absence(&self) -> bool {
        self.complete && self.early.is_none()
    }

    /// The pods that the runtime has. Those that nobody wants are ended, when that is known.
    pub fn seen<'a>(&mut self, pods: impl Iterator<Item = &'a PodSummary>) -> Vec<Effect> {
        if !self.may_end_for_absence() {
            return Vec::new();
        }
        let mut effects = Vec::new();
        for pod in pods {
            if self.entries.contains_key(&pod.uid) || self.next.values().any(|next| next.plan.uid == pod.uid) {
                continue;
            }
            let grace_seconds = pod.grace_seconds.unwrap_or(DEFAULT_GRACE_SECONDS);
            let plan = PodPlan {
                namespace: pod.namespace.clone(),
                name: pod.name.clone(),
                uid: pod.uid.clone(),
                restart_policy: RestartPolicy::Never,
                grace_seconds,
                deletion_grace_seconds: Some(grace_seconds),
                host_network: false,
                active_deadline: None,
                readiness_gates: Vec::new(),
                containers: Vec::new(),
            };
            let want = Want::End { grace_seconds };
            let order =
                Order { pod: None, plan: Arc::new(plan), want, report_end: false, failed: None, pending_resize: None };
            self.entries.insert(pod.uid.clone(), Entry { order: order.clone(), gone: true });
            effects.push(Effect::Start { uid: pod.uid.clone(), order });
        }
        effects
    }

    /// A pod has ended and left nothing.
    pub fn worker_ended(&mut self, uid: &str) -> Vec<Effect> {
        let Some(entry) = self.entries.remove(uid) else { return Vec::new() };
        if entry.order.report_end && !entry.gone {
            self.ended.insert(uid.to_owned());
        }
        let Some(order) = self.next.remove(&key(&entry.order.plan)) else { return Vec::new() };
        vec![self.start(order)]
    }

    /// What is wanted of a pod that is looked after.
    pub fn order(&self, uid: &str) -> Option<&Order> {
        self.entries.get(uid).map(|entry| &entry.order)
    }

    /// What is wanted of each pod that is looked after.
    pub fn orders(&self) -> impl Iterator<Item = (&str, &Order)> {
        self.entries.iter().map(|(uid, entry)| (uid.as_str(), &entry.order))
    }

    /// The uids of all pods that are here or will be.
    pub fn uids(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str).chain(self.next.values().map(|next| next.plan.uid.as_str()))
    }

    /// Whether a pod is looked after whose object is gone: it is ending.
    pub fn is_gone(&self, uid: &str) -> bool {
        self.entries.get(uid).is_some_and(|entry| entry.gone)
    }

    /// The pods that are looked after, with their objects.
    pub fn pods(&self) -> impl Iterator<Item = (&str, &Pod)> {
        self.entries.iter().filter_map(|(uid, entry)| Some((uid.as_str(), entry.order.pod.as_deref()?)))
    }

    fn take_in(&mut self, pod: Arc<Pod>, plan: PodPlan) -> Vec<Effect> {
        let uid = plan.uid.clone();
        let key = key(&plan);
        let order = Order::of(pod, Arc::new(plan));
        if self.ended.contains(&uid) {
            return Vec::new();
        }
        if let Some(entry) = self.entries.get_mut(&uid) {
            if entry.gone {
                return Vec::new();
            }
            entry.order = order.clone();
            return vec![Effect::Order { uid, order }];
        }
        let before: Vec<String> = self
            .entries
            .values()
            .filter(|entry| self::key(&entry.order.plan) == key)
            .map(|entry| entry.order.plan.uid.clone())
            .collect();
        if before.is_empty() {
            return vec![self.start(order)];
        }
        self.next.insert(key, order);
        before.iter().flat_map(|uid| self.end(uid)).collect()
    }

    fn start(&mut self, order: Order) -> Effect {
        let uid = order.plan.uid.clone();
        self.entries.insert(uid.clone(), Entry { order: order.clone(), gone: false });
        Effect::Start { uid, order }
    }

    fn end(&mut self, uid: &str) -> Vec<Effect> {
        let Some(entry) = self.entries.get_mut(uid).filter(|entry| !entry.gone) else { return Vec::new() };
        entry.gone = true;
        entry.order = entry.order.clone().end();
        vec![Effect::Order { uid: uid.to_owned(), order: entry.order.clone() }]
    }
}

fn key(plan: &PodPlan) -> Key {
    (plan.namespace.clone(), plan.name.clone())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn pod(name: &str, uid: &str, deleted: bool) -> (Arc<Pod>, PodPlan) {
        let mut value = json!({
            "metadata": {"namespace": "ns", "name": name, "uid": uid},
            "spec": {"containers": [{"name": "c", "image": "i"}], "terminationGracePeriodSeconds": 9},
        });
        if deleted {
            value["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
            value["metadata"]["deletionGracePeriodSeconds"] = 3.into();
        }
        let pod: Pod = serde_json::from_value(value).unwrap();
        let plan = PodPlan::of(&pod).unwrap();
        (Arc::new(pod), plan)
    }

    fn upsert(book: &mut Book, name: &str, uid: &str) -> Vec<Effect> {
        let (pod, plan) = pod(name, uid, false);
        book.upsert(pod, plan)
    }

    fn gone(book: &mut Book, name: &str, uid: &str) -> Vec<Effect> {
        book.gone(&("ns".to_owned(), name.to_owned()), uid)
    }

    fn loaded(book: &mut Book, pods: Vec<(Arc<Pod>, PodPlan)>, complete: bool) -> Vec<Effect> {
        let uids: Vec<String> = pods.iter().map(|(_, plan)| plan.uid.clone()).collect();
        book.loaded(pods, &uids.iter().map(String::as_str).collect(), complete)
    }

    fn summary(name: &str, uid: &str) -> PodSummary {
        PodSummary {
            namespace: "ns".into(),
            name: name.into(),
            uid: uid.into(),
            sandboxes: BTreeMap::new(),
            containers: BTreeMap::new(),
            grace_seconds: None,
        }
    }

    #[test]
    fn the_next_pod_of_a_name_waits_for_the_end_of_the_one_before() {
        let mut book = Book::new();
        loaded(&mut book, Vec::new(), true);
        assert!(matches!(&upsert(&mut book, "a", "1")[..], [Effect::Start { uid, .. }] if uid == "1"));
        let effects = upsert(&mut book, "a", "2");
        assert!(matches!(&effects[..], [Effect::Order { uid, order }]
                if uid == "1" && order.want == Want::End { grace_seconds: 9 } && !order.report_end));
        assert!(upsert(&mut book, "a", "2").is_empty(), "it waits");
        assert!(matches!(&book.worker_ended("1")[..], [Effect::Start { uid, .. }] if uid == "2"));
    }

    /// P-NO-END-FROM-IGNORANCE
    #[test]
    fn nothing_ends_for_absence_while_that_is_not_known() {
        let mut book = Book::new();
        assert!(book.seen([summary("a", "1")].iter()).is_empty());
        assert!(!book.completed());
        assert!(book.seen([summary("a", "1")].iter()).is_empty(), "what is on disk is not read yet");
        loaded(&mut book, vec![pod("a", "1", false)], false);
        let effects = book.seen([summary("a", "1"), summary("b", "2")].iter());
        assert!(matches!(&effects[..], [Effect::Start { uid, order }] if uid == "2" && order.pod.is_none()));

        let mut incomplete = Book::new();
        loaded(&mut incomplete, Vec::new(), false);
        assert!(incomplete.seen([summary("a", "1")].iter()).is_empty());
    }

    #[test]
    fn news_that_overtake_the_read_win() {
        let mut book = Book::new();
        assert!(gone(&mut book, "a", "1").is_empty());
        assert!(loaded(&mut book, vec![pod("a", "1", false)], true).is_empty());
    }

    #[test]
    fn what_was_lost_with_a_life_of_metamanager_is_read_from_disk() {
        let mut book = Book::new();
        loaded(&mut book, vec![pod("a", "1", false), pod("b", "2", false)], true);
        // Pod 1 has gone and pod 3 has come, and nobody has told.
        book.reload();
        assert!(!book.may_end_for_absence());
        let effects = loaded(&mut book, vec![pod("b", "2", false), pod("c", "3", false)], true);
        let ends =
            |effect: &Effect| matches!(effect, Effect::Order { uid, order } if uid == "1" && order.want != Want::Run);
        assert!(effects.iter().any(ends), "{effects:?}");
        assert!(effects.iter().any(|effect| matches!(effect, Effect::Start { uid, .. } if uid == "3")));
        assert!(book.may_end_for_absence());
    }

    #[test]
    fn a_pod_that_is_not_on_disk_runs_on_until_the_set_is_complete() {
        let mut book = Book::new();
        loaded(&mut book, vec![pod("a", "1", false)], true);
        book.reload();
        assert!(loaded(&mut book, Vec::new(), false).is_empty(), "its record may be the one that cannot be read");
        assert!(book.completed(), "then it is read again");
        book.reload();
        assert!(matches!(&loaded(&mut book, Vec::new(), true)[..], [Effect::Order { uid, .. }] if uid == "1"));
    }

    #[test]
    fn an_ended_pod_does_not_begin_again_before_its_object_is_gone() {
        let mut book = Book::new();
        loaded(&mut book, Vec::new(), true);
        upsert(&mut book, "a", "1");
        let (object, plan) = pod("a", "1", true);
        let effects = book.upsert(Arc::clone(&object), plan.clone());
        assert!(matches!(&effects[..], [Effect::Order { order, .. }] if order.want == Want::End { grace_seconds: 3 }));
        assert!(book.worker_ended("1").is_empty());
        assert!(book.upsert(object, plan).is_empty());
        assert!(gone(&mut book, "a", "1").is_empty());
        assert!(matches!(&upsert(&mut book, "a", "2")[..], [Effect::Start { .. }]));
    }

    #[test]
    fn a_version_that_cannot_be_understood_ends_a_pod_only_when_it_is_deleted_and_then_with_a_report() {
        let mut book = Book::new();
        loaded(&mut book, Vec::new(), true);
        assert!(book.delete("1").is_empty());
        upsert(&mut book, "a", "1");
        let effects = book.delete("1");
        assert!(matches!(&effects[..], [Effect::Order { order, .. }]
                if order.want == Want::End { grace_seconds: 9 } && order.report_end));
        assert!(matches!(&gone(&mut book, "a", "1")[..], [Effect::Order { order, .. }] if !order.report_end));
        assert!(book.delete("1").is_empty(), "it is gone already");
    }

    #[derive(Clone, Debug)]
    enum Step {
        Upsert(usize, usize, bool),
        Gone(usize, usize),
        Ended(prop::sample::Index),
        Seen(usize, usize),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            4 => (0..2_usize, 0..4_usize, any::<bool>()).prop_map(|(n, u, d)| Step::Upsert(n, u, d)),
            2 => (0..2_usize, 0..4_usize).prop_map(|(n, u)| Step::Gone(n, u)),
            3 => any::<prop::sample::Index>().prop_map(Step::Ended),
            1 => (0..2_usize, 0..4_usize).prop_map(|(n, u)| Step::Seen(n, u)),
        ];
        prop::collection::vec(step, 0..60)
    }

    proptest! {
        #[test]
        fn of_one_name_one_pod_runs_and_no_worker_is_started_twice(steps in steps()) {
            let mut book = Book::new();
            loaded(&mut book, Vec::new(), true);
            // Workers that live, with the name they are for and whether they are to run.
            let mut live: BTreeMap<String, (String, bool)> = BTreeMap::new();
            for step in steps {
                let effects = match step {
                    Step::Upsert(name, uid, deleted) => {
                        let (pod, plan) = pod(["a", "b"][name], &format!("{name}-{uid}"), deleted);
                        book.upsert(pod, plan)
                    }
                    Step::Gone(name, uid) => gone(&mut book, ["a", "b"][name], &format!("{name}-{uid}")),
                    Step::Seen(name, uid) => book.seen([summary(["a", "b"][name], &format!("{name}-{uid}"))].iter()),
                    Step::Ended(which) => {
                        // Only what was told to end ends.
                        let ending: Vec<String> =
                            live.iter().filter(|(_, (_, runs))| !runs).map(|(uid, _)| uid.clone()).collect();
                        if ending.is_empty() {
                            continue;
                        }
                        let uid = &ending[which.index(ending.len())];
                        live.remove(uid);
                        book.worker_ended(uid)
                    }
                };
                for effect in effects {
                    match effect {
                        Effect::Start { uid, order } => {
                            prop_assert!(!live.contains_key(&uid), "{} is started twice", uid);
                            live.insert(uid, (order.plan.name.clone(), order.want == Want::Run));
                        }
                        Effect::Order { uid, order } => {
                            let known = live.get_mut(&uid);
                            prop_assert!(known.is_some(), "{} is not looked after", uid);
                            if let Some(known) = known {
                                known.1 = order.want == Want::Run;
                            }
                        }
                    }
                }
                for name in ["a", "b"] {
                    let running = live.values().filter(|(known, runs)| known == name && *runs).count();
                    prop_assert!(running <= 1, "{} pods named {} run", running, name);
                }
                prop_assert!(live.keys().all(|uid| book.order(uid).is_some()));
            }
        }
    }
}
