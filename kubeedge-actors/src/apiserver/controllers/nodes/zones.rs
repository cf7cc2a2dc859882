//! How fast silent nodes lose their pods: kube-controller-manager's brake for a network that is down rather than its
//! nodes.
//!
//! Nodes are counted by zone (their labels `topology.kubernetes.io/region` and `/zone`). A node that does not answer is
//! tainted with `NoExecute`, which is what evicts, one after the other at the rate of its zone: every 10 s while most of
//! the zone is there, every 100 s (or, in a zone of up to 50 nodes, not at all) while it is not. When nobody answers in
//! any zone it is the cloud that is cut off: nobody is evicted, and the taints go. The numbers are the defaults of
//! kube-controller-manager's flags, each named below.

use std::collections::{BTreeMap, HashMap};

/// `--node-eviction-rate` 0.1: seconds between two nodes of a zone.
const SECONDS: i64 = 10;
/// `--secondary-node-eviction-rate` 0.01: the same in a zone of which most is away.
const SLOW_SECONDS: i64 = 100;
/// `--large-cluster-size-threshold`: zones of up to so many nodes are not evicted from at all while most is away.
const LARGE: usize = 50;
/// `--unhealthy-zone-threshold` 0.55, as a fraction.
const UNHEALTHY: (usize, usize) = (55, 100);
/// As many nodes have to be away before a part of them counts as most.
const FEW: usize = 2;

/// How one zone is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Most nodes answer.
    Normal,
    /// Most do not.
    Partial,
    /// None does.
    Full,
}

/// Nodes of one zone that say how they are.
#[derive(Clone, Copy, Debug, Default)]
struct Count {
    ready: usize,
    away: usize,
}

impl Count {
    fn state(self) -> State {
        let all = self.ready + self.away;
        match self {
            Self { ready: 0, away } if away > 0 => State::Full,
            Self { away, .. } if away > FEW && away * UNHEALTHY.1 >= all * UNHEALTHY.0 => State::Partial,
            _ => State::Normal,
        }
    }

    /// Seconds between two evictions; `None` for none at all.
    fn pause(self) -> Option<i64> {
        match self.state() {
            State::Normal | State::Full => Some(SECONDS),
            State::Partial if self.ready + self.away > LARGE => Some(SLOW_SECONDS),
            State::Partial => None,
        }
    }
}

/// What is remembered between two looks: when each zone was last evicted from.
#[derive(Debug, Default)]
pub(super) struct Brake(HashMap<String, i64>);

/// One look at all nodes.
#[derive(Debug)]
pub(super) struct Look<'a> {
    zones: BTreeMap<String, Count>,
    brake: &'a mut Brake,
    now: i64,
}

impl Brake {
    /// Counts the nodes: of each its zone and whether it answers. Those that never said how they are do not count.
    pub(super) fn look<'a>(&mut self, nodes: impl Iterator<Item = (&'a str, bool)>, now: i64) -> Look<'_> {
        let mut zones: BTreeMap<String, Count> = BTreeMap::new();
        for (zone, ready) in nodes {
            let count = zones.entry(zone.to_owned()).or_default();
            *(if ready { &mut count.ready } else { &mut count.away }) += 1;
        }
        self.0.retain(|zone, _| zones.contains_key(zone));
        Look { zones, brake: self, now }
    }
}

impl Look<'_> {
    /// Whether nobody answers anywhere.
    pub(super) fn cut_off(&self) -> bool {
        !self.zones.is_empty() && self.zones.values().all(|count| count.state() == State::Full)
    }

    /// Takes the turn to evict from a node of this zone, if it is there.
    pub(super) fn take(&mut self, zone: &str) -> bool {
        let Some(pause) = self.zones.get(zone).and_then(|count| count.pause()).filter(|_| !self.cut_off()) else {
            return false;
        };
        if self.brake.0.get(zone).is_some_and(|last| self.now - last < pause) {
            return false;
        }
        self.brake.0.insert(zone.to_owned(), self.now);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(ready: usize, away: usize) -> Count {
        Count { ready, away }
    }

    #[test]
    fn a_zone_is_judged_by_how_many_are_away_as_kube_controller_manager_does() {
        assert_eq!(count(0, 0).state(), State::Normal);
        assert_eq!(count(1, 2).state(), State::Normal, "two are few");
        assert_eq!(count(3, 3).state(), State::Normal, "half is not most");
        assert_eq!(count(9, 11).state(), State::Partial, "0.55 is");
        assert_eq!(count(1, 3).state(), State::Partial);
        assert_eq!(count(0, 1).state(), State::Full);
        assert_eq!([count(9, 1), count(0, 9)].map(Count::pause), [Some(SECONDS); 2]);
        assert_eq!((count(20, 30).pause(), count(20, 31).pause()), (None, Some(SLOW_SECONDS)));
    }

    fn look(brake: &mut Brake, nodes: &[(&str, usize, usize)], now: i64, from: &str) -> (bool, usize) {
        let all = nodes.iter().flat_map(|(zone, ready, away)| {
            std::iter::repeat_n((*zone, true), *ready).chain(std::iter::repeat_n((*zone, false), *away))
        });
        let mut look = brake.look(all, now);
        let away = nodes.iter().find(|(zone, ..)| *zone == from).map_or(0, |(_, _, away)| *away);
        (look.cut_off(), (0..away).filter(|_| look.take(from)).count())
    }

    #[test]
    fn nodes_are_evicted_from_one_by_one_and_not_at_all_when_everybody_is_away() {
        let mut brake = Brake::default();
        assert_eq!(look(&mut brake, &[("a", 4, 2)], 100, "a"), (false, 1));
        assert_eq!(look(&mut brake, &[("a", 4, 2)], 109, "a"), (false, 0));
        assert_eq!(look(&mut brake, &[("a", 4, 2)], 110, "a"), (false, 1));
        assert_eq!(look(&mut brake, &[("a", 2, 4)], 500, "a"), (false, 0), "most are away, and they are few");
        assert_eq!(look(&mut brake, &[("a", 20, 40)], 510, "a"), (false, 1), "most are away, and they are many");
        assert_eq!(look(&mut brake, &[("a", 20, 40)], 609, "a"), (false, 0));
        assert_eq!(look(&mut brake, &[("a", 20, 40)], 610, "a"), (false, 1));
        assert_eq!(look(&mut brake, &[("a", 0, 9)], 900, "a"), (true, 0));
        // A zone of which nobody is left is evicted from while another one answers.
        assert_eq!(look(&mut brake, &[("a", 0, 9), ("b", 1, 0)], 900, "a"), (false, 1));
        assert_eq!(look(&mut brake, &[("a", 0, 9), ("b", 0, 1)], 990, "a"), (true, 0));
        assert_eq!(look(&mut brake, &[], 0, "a"), (false, 0));
    }
}
