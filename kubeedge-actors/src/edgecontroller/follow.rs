//! How the objects that pods name are followed: ConfigMaps, Secrets, claims, their volumes, RuntimeClasses. Pure: wishes and what a watch tells in, orders out.
//!
//! A few objects of a kind are watched one by one: nothing else of the kind is read, and a cloud needs no more rights than
//! that. From [`MANY`] on, one watch of the whole kind takes their place, however many there are: each watch is a
//! connection, and an API server has few to give. What no pod names is dropped as it comes. An object that is named
//! later is read by itself, once; its changes come by the watch. Where the kind may not be listed, it stays with one by
//! one.

use std::collections::{HashMap, HashSet};

use super::references::{ConfigKey, ConfigKind};

/// So many objects of a kind are watched one by one.
pub const MANY: usize = 16;

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Order {
    /// Begin to watch this object by itself.
    Watch(ConfigKey),
    /// End that.
    Unwatch(ConfigKey),
    /// Begin to watch the whole kind.
    WatchAll(ConfigKind),
    /// End that.
    UnwatchAll(ConfigKind),
    /// Read this object, and say [`Follow::fetched`] with this number.
    Fetch(ConfigKey, u64),
}

/// How one kind is followed.
#[derive(Debug, Default, PartialEq, Eq)]
enum Mode {
    /// One by one, up to [`MANY`].
    #[default]
    Single,
    /// One by one, however many: the kind may not be listed.
    OnlySingle,
    /// By one watch, whose list is not complete.
    Listing {
        /// In the list so far.
        found: HashSet<ConfigKey>,
        /// Named after the list began, or being read when it did: whether it is in the list says nothing.
        late: HashSet<ConfigKey>,
    },
    /// By one watch.
    Shared,
}

#[derive(Debug, Default)]
struct Kind {
    mode: Mode,
    wanted: HashSet<ConfigKey>,
    /// Being read, each with the number of its last order.
    fetching: HashMap<ConfigKey, u64>,
}

/// The state of all kinds.
#[derive(Debug, Default)]
pub struct Follow {
    /// In the order of [`ConfigKind::ALL`].
    kinds: [Kind; ConfigKind::ALL.len()],
    /// Which objects are named is not known before the pods were listed: nothing is read until then.
    begun: bool,
    numbers: u64,
}

impl Follow {
    fn kind(&mut self, kind: ConfigKind) -> &mut Kind {
        &mut self.kinds[kind as usize]
    }

    fn fetch(&mut self, key: ConfigKey) -> Order {
        self.numbers += 1;
        let number = self.numbers;
        self.kind(key.kind).fetching.insert(key.clone(), number);
        Order::Fetch(key, number)
    }

    /// The pods were listed: every name that is known now is wanted.
    pub fn begin(&mut self) -> Vec<Order> {
        if std::mem::replace(&mut self.begun, true) {
            return Vec::new();
        }
        let mut orders = Vec::new();
        for kind in ConfigKind::ALL {
            let it = self.kind(kind);
            if it.wanted.len() <= MANY {
                let mut wanted: Vec<ConfigKey> = it.wanted.iter().cloned().collect();
                wanted.sort_unstable();
                orders.extend(wanted.into_iter().map(Order::Watch));
            } else {
                it.mode = Mode::Listing { found: HashSet::new(), late: HashSet::new() };
                orders.push(Order::WatchAll(kind));
            }
        }
        orders
    }

    /// A pod names this object.
    pub fn want(&mut self, key: ConfigKey) -> Vec<Order> {
        let begun = self.begun;
        let it = self.kind(key.kind);
        if !it.wanted.insert(key.clone()) || !begun {
            return Vec::new();
        }
        match &mut it.mode {
            Mode::OnlySingle => vec![Order::Watch(key)],
            Mode::Single if it.wanted.len() <= MANY => vec![Order::Watch(key)],
            Mode::Single => {
                // They end before the list begins: it shows all that they have told.
                let mut watched: Vec<ConfigKey> = it.wanted.iter().filter(|wanted| **wanted != key).cloned().collect();
                watched.sort_unstable();
                it.mode = Mode::Listing { found: HashSet::new(), late: HashSet::new() };
                watched.into_iter().map(Order::Unwatch).chain([Order::WatchAll(key.kind)]).collect()
            }
            Mode::Listing { late, .. } => {
                late.insert(key);
                Vec::new()
            }
            Mode::Shared => vec![self.fetch(key)],
        }
    }

    /// No pod names it any more.
    pub fn unwant(&mut self, key: &ConfigKey) -> Vec<Order> {
        let begun = self.begun;
        let it = self.kind(key.kind);
        it.fetching.remove(key);
        if !it.wanted.remove(key) || !begun {
            return Vec::new();
        }
        match &mut it.mode {
            Mode::Single | Mode::OnlySingle => vec![Order::Unwatch(key.clone())],
            Mode::Listing { .. } | Mode::Shared if it.wanted.is_empty() => {
                it.mode = Mode::Single;
                vec![Order::UnwatchAll(key.kind)]
            }
            Mode::Listing { found, late } => {
                found.remove(key);
                late.remove(key);
                Vec::new()
            }
            Mode::Shared => Vec::new(),
        }
    }

    /// Whether news of this object, by a watch of its whole kind, concerns anybody.
    pub fn wants(&self, key: &ConfigKey) -> bool {
        let it = &self.kinds[key.kind as usize];
        matches!(it.mode, Mode::Listing { .. } | Mode::Shared) && it.wanted.contains(key)
    }

    /// The watch of a whole kind begins a list.
    pub fn listing(&mut self, kind: ConfigKind) {
        let it = self.kind(kind);
        if matches!(it.mode, Mode::Listing { .. } | Mode::Shared) {
            let late = it.fetching.keys().cloned().collect();
            it.mode = Mode::Listing { found: HashSet::new(), late };
        }
    }

    /// Whether the list of a whole kind is not complete yet.
    pub fn is_listing(&self) -> bool {
        self.kinds.iter().any(|kind| matches!(kind.mode, Mode::Listing { .. }))
    }

    /// It is in the list; whether its content counts.
    pub fn found(&mut self, key: &ConfigKey) -> bool {
        let it = self.kind(key.kind);
        let Mode::Listing { found, late } = &mut it.mode else { return false };
        it.wanted.contains(key) && !late.contains(key) && found.insert(key.clone())
    }

    /// The list is complete. Returns what is wanted and absent, and what follows.
    pub fn listed(&mut self, kind: ConfigKind) -> (Vec<ConfigKey>, Vec<Order>) {
        let it = self.kind(kind);
        let Mode::Listing { found, late } = std::mem::replace(&mut it.mode, Mode::Shared) else {
            return (Vec::new(), Vec::new());
        };
        let mut absent: Vec<ConfigKey> =
            it.wanted.iter().filter(|key| !found.contains(*key) && !late.contains(*key)).cloned().collect();
        absent.sort_unstable();
        let mut late: Vec<ConfigKey> = late.into_iter().collect();
        late.sort_unstable();
        (absent, late.into_iter().map(|key| self.fetch(key)).collect())
    }

    /// An object was read by itself; whether what was found counts.
    pub fn fetched(&mut self, key: &ConfigKey, number: u64) -> bool {
        let it = self.kind(key.kind);
        let counts = it.fetching.get(key) == Some(&number);
        if counts {
            it.fetching.remove(key);
        }
        counts
    }

    /// Whether an order to read an object stands.
    pub fn is_fetching(&self, key: &ConfigKey, number: u64) -> bool {
        let it = &self.kinds[key.kind as usize];
        it.fetching.get(key) == Some(&number)
    }

    /// The whole kind may not be listed: one by one, then.
    pub fn refused(&mut self, kind: ConfigKind) -> Vec<Order> {
        let it = self.kind(kind);
        if !matches!(it.mode, Mode::Listing { .. } | Mode::Shared) {
            return Vec::new();
        }
        it.mode = Mode::OnlySingle;
        it.fetching.clear();
        let mut wanted: Vec<ConfigKey> = it.wanted.iter().cloned().collect();
        wanted.sort_unstable();
        std::iter::once(Order::UnwatchAll(kind)).chain(wanted.into_iter().map(Order::Watch)).collect()
    }
}

#[cfg(test)]
mod tests;
