use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use proptest::prelude::*;
use serde_json::{Value, json};

use super::{
    super::desired::{Desired, Effect},
    *,
};

fn key(number: usize) -> ConfigKey {
    ConfigKey { kind: ConfigKind::ConfigMap, namespace: "ns".into(), name: format!("c{number}") }
}

#[test]
fn a_few_are_watched_one_by_one_and_many_by_one_watch() {
    let mut follow = Follow::default();
    assert!(follow.want(key(0)).is_empty(), "the pods are not known yet");
    assert_eq!(follow.begin(), [Order::Watch(key(0))]);
    for number in 1..MANY {
        assert_eq!(follow.want(key(number)), [Order::Watch(key(number))]);
    }
    let orders = follow.want(key(MANY));
    assert_eq!(orders.len(), MANY + 1);
    assert_eq!(orders.last(), Some(&Order::WatchAll(ConfigKind::ConfigMap)), "after the others have ended");
    assert!(follow.is_listing(), "questions wait for it");
    follow.listing(ConfigKind::ConfigMap);
    assert!(follow.found(&key(3)) && !follow.found(&key(100)));
    assert!(follow.want(key(50)).is_empty(), "it waits for the list");
    let (absent, orders) = follow.listed(ConfigKind::ConfigMap);
    assert_eq!(absent.len(), MANY, "all but the one that was found");
    assert_eq!(orders, [Order::Fetch(key(50), 1)]);
    assert!(!follow.is_listing());
    assert!(follow.fetched(&key(50), 1) && !follow.fetched(&key(50), 1));
    for number in (0..=MANY).chain([50]) {
        let orders = follow.unwant(&key(number));
        assert_eq!(orders == [Order::UnwatchAll(ConfigKind::ConfigMap)], number == 50, "{orders:?}");
    }
}

#[test]
fn what_may_not_be_listed_is_watched_one_by_one() {
    let mut follow = Follow::default();
    for number in 0..=MANY {
        follow.want(key(number));
    }
    assert_eq!(follow.begin(), [Order::WatchAll(ConfigKind::ConfigMap)]);
    let orders = follow.refused(ConfigKind::ConfigMap);
    assert_eq!(orders.len(), MANY + 2);
    assert_eq!(orders[0], Order::UnwatchAll(ConfigKind::ConfigMap));
    assert!(!follow.is_listing(), "nothing is to be waited for");
    assert_eq!(follow.want(key(100)), [Order::Watch(key(100))]);
    assert!(!follow.wants(&key(100)));
}

/// A pod of its own names each object: wishes come as they do in earnest.
fn pod(number: usize, version: u64) -> Value {
    json!({
        "metadata": {
            "namespace": "ns", "name": format!("p{number}"), "uid": format!("p{number}-{version}"),
            "resourceVersion": version.to_string(),
        },
        "spec": {"nodeName": "e", "volumes": [{"name": "v", "configMap": {"name": format!("c{number}")}}]},
    })
}

#[derive(Clone, Debug)]
enum Step {
    /// An object is made, changed or made anew under its name.
    Write {
        number: usize,
        anew: bool,
    },
    Delete(usize),
    /// A pod that names it comes or goes.
    Name(usize),
    Forget(usize),
    /// The pods are listed.
    Begin,
    /// The watch of the kind tells its next word.
    Tell,
    /// It is lost: it lists again.
    Lose,
    /// The API server answers a read; the answer arrives.
    Answer(usize),
    Arrive(usize),
}

const NAMES: usize = MANY + 6;
/// Objects of one page.
const PAGE: usize = 3;

#[derive(Default)]
struct World {
    follow: Follow,
    desired: Desired,
    version: u64,
    api: BTreeMap<usize, (String, u64)>,
    /// Version, object, its uid, whether it is gone.
    log: Vec<(u64, usize, String, bool)>,
    named: BTreeMap<usize, Value>,
    singles: BTreeSet<String>,
    watch: Option<Watch>,
    asked: Vec<(ConfigKey, u64)>,
    answered: Vec<(ConfigKey, u64, Option<Value>, u64)>,
}

/// Where the watch of the kind is.
enum Watch {
    New,
    Pages { rest: Vec<(usize, (String, u64))>, as_of: u64 },
    At(u64),
}

fn object(number: usize, (uid, version): &(String, u64)) -> Value {
    json!({
        "metadata": {
            "namespace": "ns", "name": format!("c{number}"), "uid": uid, "resourceVersion": version.to_string(),
        },
        "data": {"version": version.to_string()},
    })
}

fn number(key: &ConfigKey) -> usize {
    key.name[1..].parse().unwrap()
}

impl World {
    fn carry(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Watch(key) => {
                    let orders = self.follow.want(key);
                    self.obey(orders);
                }
                Effect::Unwatch(key) => {
                    let orders = self.follow.unwant(&key);
                    self.obey(orders);
                }
                Effect::Compare => panic!("no list went back"),
                Effect::Upsert(..) | Effect::Tombstone(..) => {}
            }
        }
    }

    fn obey(&mut self, orders: Vec<Order>) {
        for order in orders {
            match order {
                // Watches of one object are prompt here: their own order is the simulation's business.
                Order::Watch(key) => {
                    assert!(self.singles.insert(key.name.clone()));
                    let found = self.api.get(&number(&key)).map(|it| object(number(&key), it));
                    let effects = self.desired.config_listed(&key, found, self.version);
                    self.carry(effects);
                }
                Order::Unwatch(key) => assert!(self.singles.remove(&key.name)),
                Order::WatchAll(_) => {
                    assert!(self.watch.is_none() && self.singles.is_empty());
                    self.watch = Some(Watch::New);
                }
                Order::UnwatchAll(kind) => {
                    assert!(self.watch.take().is_some());
                    self.desired.configs_alone(kind);
                }
                Order::Fetch(key, number) => self.asked.push((key, number)),
            }
        }
    }

    fn change(&mut self, of: usize, to: Option<(String, u64)>) {
        let before = match &to {
            Some(to) => self.api.insert(of, to.clone()),
            None => self.api.remove(&of),
        };
        let uid = to.clone().or(before).map(|(uid, _)| uid).unwrap_or_default();
        self.log.push((self.version, of, uid, to.is_none()));
        if self.singles.contains(&format!("c{of}")) {
            let found = to.as_ref().map(|it| object(of, it));
            let effects = self.desired.config_known(&key(of), found, self.version);
            self.carry(effects);
        }
    }

    fn tell(&mut self) -> bool {
        let kind = ConfigKind::ConfigMap;
        match self.watch.take() {
            None => return false,
            Some(Watch::New) => {
                self.follow.listing(kind);
                let rest = self.api.iter().map(|(number, it)| (*number, it.clone())).collect();
                self.watch = Some(Watch::Pages { rest, as_of: self.version });
            }
            Some(Watch::Pages { mut rest, as_of }) if !rest.is_empty() => {
                self.desired.configs_listing(kind, as_of);
                let after = rest.split_off(PAGE.min(rest.len()));
                self.watch = Some(Watch::Pages { rest: after, as_of });
                for (number, it) in rest {
                    if self.follow.found(&key(number)) {
                        let effects = self.desired.config_listed(&key(number), Some(object(number, &it)), as_of);
                        self.carry(effects);
                    }
                }
            }
            Some(Watch::Pages { as_of, .. }) => {
                self.watch = Some(Watch::At(as_of));
                let (absent, orders) = self.follow.listed(kind);
                for key in absent {
                    let effects = self.desired.config_listed(&key, None, as_of);
                    self.carry(effects);
                }
                self.desired.configs_bookmark(kind, as_of);
                self.obey(orders);
            }
            Some(Watch::At(position)) => {
                let next = self.log.iter().find(|(version, ..)| *version > position).cloned();
                let Some((version, number, uid, gone)) = next else {
                    self.watch = Some(Watch::At(position));
                    return false;
                };
                self.watch = Some(Watch::At(version));
                let told = object(number, &(uid, version));
                let effects = match self.follow.wants(&key(number)) {
                    false => Vec::new(),
                    true if gone => self.desired.config_deleted(&key(number), &told),
                    true => self.desired.config_applied(&key(number), told),
                };
                self.desired.configs_bookmark(kind, version);
                self.carry(effects);
            }
        }
        true
    }

    fn answer(&mut self, which: usize) {
        let Some((key, order)) = (!self.asked.is_empty()).then(|| self.asked.remove(which % self.asked.len())) else {
            return;
        };
        let found = self.api.get(&number(&key)).map(|it| object(number(&key), it));
        self.answered.push((key, order, found, self.version));
    }

    fn arrive(&mut self, which: usize) {
        let Some((key, order, found, as_of)) =
            (!self.answered.is_empty()).then(|| self.answered.remove(which % self.answered.len()))
        else {
            return;
        };
        if self.follow.fetched(&key, order) {
            let effects = self.desired.config_fetched(&key, found, as_of);
            self.carry(effects);
        }
    }

    fn step(&mut self, step: &Step) {
        self.version += 1;
        let version = self.version;
        match *step {
            Step::Write { number, anew } => {
                let uid = self.api.get(&number).map(|(uid, _)| uid.clone()).filter(|_| !anew);
                self.change(number, Some((uid.unwrap_or_else(|| format!("u{version}")), version)));
            }
            Step::Delete(number) if self.api.contains_key(&number) => self.change(number, None),
            Step::Name(number) if !self.named.contains_key(&number) => {
                let pod = pod(number, version);
                self.named.insert(number, pod.clone());
                let effects = self.desired.pod_applied(Duration::ZERO, pod);
                self.carry(effects);
            }
            Step::Forget(number) => {
                if let Some(mut pod) = self.named.remove(&number) {
                    pod["metadata"]["resourceVersion"] = version.to_string().into();
                    let effects = self.desired.pod_deleted(&pod);
                    self.carry(effects);
                }
            }
            Step::Begin => {
                let orders = self.follow.begin();
                self.obey(orders);
            }
            Step::Tell => drop(self.tell()),
            Step::Lose if self.watch.is_some() => self.watch = Some(Watch::New),
            Step::Answer(which) => self.answer(which),
            Step::Arrive(which) => self.arrive(which),
            Step::Delete(_) | Step::Name(_) | Step::Lose => {}
        }
    }
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let name = 0..NAMES;
    let steps = prop_oneof![
        6 => (name.clone(), any::<bool>()).prop_map(|(number, anew)| Step::Write { number, anew }),
        2 => name.clone().prop_map(Step::Delete),
        8 => name.clone().prop_map(Step::Name),
        2 => name.prop_map(Step::Forget),
        1 => Just(Step::Begin),
        12 => Just(Step::Tell),
        1 => Just(Step::Lose),
        3 => (0..8usize).prop_map(Step::Answer),
        3 => (0..8usize).prop_map(Step::Arrive),
    ];
    prop::collection::vec(steps, 1..200)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// However lists, changes, wishes and single reads interleave: in the end what is known of each object that is named
    /// is what is there.
    #[test]
    fn what_is_known_in_the_end_is_what_is_there(steps in steps()) {
        let mut world = World::default();
        world.desired.pods_replaced(Duration::ZERO, Vec::new(), 0);
        for step in &steps {
            world.step(step);
        }
        world.step(&Step::Begin);
        while world.tell() || !world.asked.is_empty() || !world.answered.is_empty() {
            world.answer(0);
            world.arrive(0);
        }
        prop_assert!(world.desired.is_complete("e"));
        let snapshot = world.desired.snapshot("e");
        let known: BTreeMap<usize, (String, u64)> = snapshot.kinds[0].objects.iter().map(|upsert| {
            let object = upsert.object.as_ref().unwrap();
            let number = object.key.as_ref().unwrap().name[1..].parse().unwrap();
            (number, (object.uid.clone(), object.resource_version.parse().unwrap()))
        }).collect();
        let there: BTreeMap<usize, (String, u64)> =
            world.api.iter().filter(|(number, _)| world.named.contains_key(number)).map(|(n, it)| (*n, it.clone())).collect();
        prop_assert_eq!(known, there);
    }
}
