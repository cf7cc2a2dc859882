//! Everything there is to see now. What changes is an event. Pure, but for the channel that tells it.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use serde_json::{Value, json};
use tokio::sync::{broadcast, watch};

use super::filter::{Filter, KINDS, Kind};

/// Events that a client may be behind; one that is further behind is dropped.
pub const BEHIND: usize = 1024;
/// Things of one kind that are shown at most; more are counted and left out.
pub const MAX_ITEMS: usize = 50_000;

/// What an event is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Item {
    /// Its kind.
    pub kind: Kind,
    /// Empty where it has none.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The node it is at; empty where it is at none. A node is at itself.
    pub node: String,
}

/// An event, written once for all clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// What it is about.
    pub item: Item,
    /// JSON.
    pub text: Arc<str>,
}

/// The board. Clones are one.
#[derive(Clone, Debug)]
pub struct Board(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    shown: Mutex<Shown>,
    events: broadcast::Sender<Event>,
    /// How many clients want each kind.
    wanted: watch::Sender<[usize; KINDS.len()]>,
}

#[derive(Debug, Default)]
struct Shown {
    /// By kind, namespace and name.
    items: BTreeMap<(Kind, String, String), Entry>,
    counts: [usize; KINDS.len()],
    left_out: u64,
}

#[derive(Debug)]
struct Entry {
    item: Item,
    object: Value,
}

/// What a new client gets: what there is, then what changes.
#[derive(Debug)]
pub struct Seat {
    /// What there is and is wanted.
    pub now: Vec<Event>,
    /// What changes, wanted or not.
    pub changes: broadcast::Receiver<Event>,
    /// That its kinds are wanted.
    pub wish: Wish,
}

/// A client that wants some kinds, until it is dropped.
#[derive(Debug)]
pub struct Wish {
    board: Board,
    kinds: Vec<Kind>,
}

impl Default for Board {
    fn default() -> Self {
        let (events, _) = broadcast::channel(BEHIND);
        let (wanted, _) = watch::channel([0; KINDS.len()]);
        Self(Arc::new(Shared { shown: Mutex::default(), events, wanted }))
    }
}

impl Board {
    fn shown(&self) -> MutexGuard<'_, Shown> {
        self.0.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// This is there, so. Nothing happens when it was shown so before.
    pub fn set(&self, item: Item, object: Value) {
        let mut shown = self.shown();
        let key = (item.kind, item.namespace.clone(), item.name.clone());
        let change = match shown.items.get_mut(&key) {
            Some(entry) if entry.object == object && entry.item == item => return,
            Some(entry) => {
                entry.item = item.clone();
                entry.object = object;
                "changed"
            }
            None => {
                let count = &mut shown.counts[item.kind as usize];
                if *count >= MAX_ITEMS {
                    shown.left_out += 1;
                    if shown.left_out == 1 {
                        tracing::warn!(kind = %item.kind, limit = MAX_ITEMS, "there are more than can be shown");
                    }
                    return;
                }
                *count += 1;
                shown.items.insert(key.clone(), Entry { item: item.clone(), object });
                "added"
            }
        };
        if let Some(entry) = shown.items.get(&key) {
            // Told under the lock, so that a new client misses nothing and hears nothing twice. Nobody may listen.
            let _ = self.0.events.send(event(change, &entry.item, &entry.object));
        }
    }

    /// It is gone.
    pub fn unset(&self, kind: Kind, namespace: &str, name: &str) {
        let mut shown = self.shown();
        if let Some(entry) = shown.items.remove(&(kind, namespace.to_owned(), name.to_owned())) {
            shown.counts[kind as usize] -= 1;
            let _ = self.0.events.send(event("gone", &entry.item, &Value::Null));
        }
    }

    /// Only these of a kind are there: the others are gone.
    pub fn retain(&self, kind: Kind, is: impl Fn(&Item) -> bool) {
        let gone: Vec<Item> = {
            let shown = self.shown();
            let of_kind = shown.items.values().filter(|entry| entry.item.kind == kind && !is(&entry.item));
            of_kind.map(|entry| entry.item.clone()).collect()
        };
        for item in gone {
            self.unset(kind, &item.namespace, &item.name);
        }
    }

    /// A new client.
    pub fn seat(&self, filter: &Filter) -> Seat {
        let kinds: Vec<Kind> = KINDS.into_iter().filter(|kind| filter.wants(*kind)).collect();
        self.0.wanted.send_modify(|wanted| kinds.iter().for_each(|kind| wanted[*kind as usize] += 1));
        let wish = Wish { board: self.clone(), kinds };
        let shown = self.shown();
        let now = shown.items.values().filter(|entry| filter.shows(&entry.item));
        let now = now.map(|entry| event("now", &entry.item, &entry.object)).collect();
        Seat { now, changes: self.0.events.subscribe(), wish }
    }

    /// Tells when kinds begin and cease to be wanted.
    pub fn wishes(&self) -> Wishes {
        Wishes(self.0.wanted.subscribe())
    }
}

impl Drop for Wish {
    fn drop(&mut self) {
        let kinds = &self.kinds;
        self.board.0.wanted.send_modify(|wanted| kinds.iter().for_each(|kind| wanted[*kind as usize] -= 1));
    }
}

/// Which kinds some client wants.
#[derive(Debug)]
pub struct Wishes(watch::Receiver<[usize; KINDS.len()]>);

impl Wishes {
    /// Whether anybody wants it now.
    pub fn wants(&self, kind: Kind) -> bool {
        self.0.borrow()[kind as usize] > 0
    }

    /// Waits for a change; false when there will be none.
    pub async fn changed(&mut self) -> bool {
        self.0.changed().await.is_ok()
    }
}

fn event(change: &str, item: &Item, object: &Value) -> Event {
    let mut text = json!({"kind": item.kind.as_str(), "event": change, "name": item.name});
    for (field, value) in [("namespace", &item.namespace), ("node", &item.node)] {
        if !value.is_empty() {
            text[field] = value.as_str().into();
        }
    }
    if !object.is_null() {
        text["object"] = object.clone();
    }
    Event { item: item.clone(), text: text.to_string().into() }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn item(name: &str) -> Item {
        Item { kind: Kind::Pods, namespace: "ns".into(), name: name.into(), node: "n".into() }
    }

    fn heard(seat: &mut Seat) -> Vec<Value> {
        let mut all = Vec::new();
        while let Ok(event) = seat.changes.try_recv() {
            all.push(serde_json::from_str(&event.text).unwrap());
        }
        all
    }

    #[test]
    fn a_client_gets_what_there_is_and_then_each_change_once() {
        let board = Board::default();
        board.set(item("a"), json!({"phase": "Pending"}));
        let mut seat = board.seat(&Filter::default());
        let now: Value = serde_json::from_str(&seat.now[0].text).unwrap();
        let expected = json!({"kind": "pods", "event": "now", "namespace": "ns", "name": "a", "node": "n",
            "object": {"phase": "Pending"}});
        assert_eq!(now, expected);
        board.set(item("a"), json!({"phase": "Pending"}));
        board.set(item("a"), json!({"phase": "Running"}));
        board.set(item("b"), json!({}));
        board.retain(Kind::Pods, |item| item.name == "b");
        board.unset(Kind::Pods, "ns", "a");
        let events: Vec<_> = heard(&mut seat).iter().map(|it| format!("{} {}", it["event"], it["name"])).collect();
        assert_eq!(events, [r#""changed" "a""#, r#""added" "b""#, r#""gone" "a""#]);
        assert_eq!(board.seat(&Filter::parse("kinds=twins").unwrap()).now, []);
    }

    #[test]
    fn a_kind_is_wanted_as_long_as_a_client_wants_it() {
        let board = Board::default();
        let wishes = board.wishes();
        let pods = board.seat(&Filter::parse("kinds=pods").unwrap());
        let all = board.seat(&Filter::default());
        assert!(wishes.wants(Kind::Pods) && wishes.wants(Kind::Twins));
        drop(all);
        assert!(wishes.wants(Kind::Pods) && !wishes.wants(Kind::Twins));
        drop(pods);
        assert!(!wishes.wants(Kind::Pods));
    }

    #[test]
    fn who_is_too_far_behind_is_told_so_and_what_is_too_much_is_left_out() {
        let board = Board::default();
        let mut seat = board.seat(&Filter::default());
        for n in 0..=BEHIND {
            board.set(item("a"), json!(n));
        }
        assert!(matches!(seat.changes.try_recv(), Err(broadcast::error::TryRecvError::Lagged(1))));
        for n in 0..MAX_ITEMS + 5 {
            board.set(item(&n.to_string()), json!(0));
        }
        let shown = board.shown();
        assert_eq!((shown.items.len(), shown.left_out), (MAX_ITEMS, 6));
    }

    proptest! {
        #[test]
        fn what_a_client_was_told_is_what_there_is(
            steps in prop::collection::vec((0..4_u8, prop::option::of(0..3_u8)), 0..40), from in 0..40_usize
        ) {
            let board = Board::default();
            let apply = |&(name, value): &(u8, Option<u8>)| match value {
                Some(value) => board.set(item(&name.to_string()), json!(value)),
                None => board.unset(Kind::Pods, "ns", &name.to_string()),
            };
            let from = from.min(steps.len());
            steps[..from].iter().for_each(apply);
            let mut seat = board.seat(&Filter::default());
            steps[from..].iter().for_each(apply);
            let mut told: BTreeMap<String, Value> = BTreeMap::new();
            let now: Vec<Value> = seat.now.iter().map(|event| serde_json::from_str(&event.text).unwrap()).collect();
            for event in now.into_iter().chain(heard(&mut seat)) {
                let name = event["name"].as_str().unwrap().to_owned();
                match event["event"].as_str().unwrap() {
                    "gone" => drop(told.remove(&name)),
                    _ => drop(told.insert(name, event["object"].clone())),
                }
            }
            let shown = board.shown();
            let there: BTreeMap<String, Value> =
                shown.items.values().map(|entry| (entry.item.name.clone(), entry.object.clone())).collect();
            prop_assert_eq!(told, there);
        }
    }
}
