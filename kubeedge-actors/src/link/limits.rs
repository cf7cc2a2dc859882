//! What one address and one node may take of a listener.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use kubeedge_proto::NodeName;

use crate::audit::network;

/// How many connections one address may open: `burst` at once, then `per_second`. A site behind one address counts as
/// one, so this is far above what a site needs when its line comes back.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate {
    /// At once.
    pub burst: u32,
    /// One more after each part of a second.
    pub per_second: f64,
}

/// Addresses that are remembered. One is forgotten when it could open its whole burst again; what does not fit shares one
/// account.
const ADDRESSES: usize = 8_192;

/// Accounts of addresses. An IPv6 address counts by its first 64 bits: who has one of them has them all.
#[derive(Debug)]
pub(super) struct Addresses {
    rate: Rate,
    accounts: HashMap<IpAddr, Account>,
    others: Account,
}

#[derive(Clone, Copy, Debug)]
struct Account {
    left: f64,
    at: Instant,
}

impl Addresses {
    pub(super) fn new(rate: Rate, now: Instant) -> Self {
        let others = Account { left: f64::from(rate.burst), at: now };
        Self { rate, accounts: HashMap::new(), others }
    }

    /// Whether a connection of this address may be served.
    pub(super) fn take(&mut self, address: IpAddr, now: Instant) -> bool {
        let rate = self.rate;
        let address = network(address);
        if !self.accounts.contains_key(&address) && self.accounts.len() >= ADDRESSES {
            self.accounts.retain(|_, account| account.filled(rate, now) < f64::from(rate.burst));
        }
        let account = if self.accounts.contains_key(&address) || self.accounts.len() < ADDRESSES {
            let full = Account { left: f64::from(rate.burst), at: now };
            self.accounts.entry(address).or_insert(full)
        } else {
            &mut self.others
        };
        account.left = account.filled(rate, now);
        account.at = now;
        let served = account.left >= 1.0;
        if served {
            account.left -= 1.0;
        }
        served
    }
}

impl Account {
    fn filled(&self, rate: Rate, now: Instant) -> f64 {
        let since = now.saturating_duration_since(self.at).min(Duration::from_secs(86_400));
        (self.left + since.as_secs_f64() * rate.per_second).min(f64::from(rate.burst))
    }
}

/// How many connections each node has.
#[derive(Clone, Debug)]
pub(super) struct Nodes {
    limit: usize,
    open: Arc<Mutex<HashMap<NodeName, usize>>>,
}

/// A node's connection; counted until it is dropped.
#[derive(Debug)]
pub(super) struct Counted {
    node: NodeName,
    nodes: Nodes,
}

impl Nodes {
    pub(super) fn new(limit: usize) -> Self {
        Self { limit, open: Arc::default() }
    }

    /// `None`: the node has as many as it may.
    pub(super) fn take(&self, node: &NodeName) -> Option<Counted> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let count = open.entry(node.clone()).or_default();
        if *count >= self.limit {
            return None;
        }
        *count += 1;
        Some(Counted { node: node.clone(), nodes: self.clone() })
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut open = self.nodes.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = open.get_mut(&self.node) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.node);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const RATE: Rate = Rate { burst: 3, per_second: 2.0 };

    #[test]
    fn an_address_has_its_burst_then_its_rate_and_takes_nothing_from_others() {
        let start = Instant::now();
        let mut addresses = Addresses::new(RATE, start);
        let (one, other) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
        let served: Vec<_> = (0..5).map(|_| addresses.take(one, start)).collect();
        assert_eq!(served, [true, true, true, false, false]);
        assert!(addresses.take(other, start));
        let later = start + Duration::from_millis(500);
        assert_eq!([addresses.take(one, later), addresses.take(one, later)], [true, false]);
    }

    #[test]
    fn who_has_a_network_of_version_6_has_one_account_and_a_mapped_address_is_the_one_it_maps() {
        let start = Instant::now();
        let mut addresses = Addresses::new(RATE, start);
        let served = |addresses: &mut Addresses, of: &[&str]| {
            of.iter().filter(|address| addresses.take(address.parse().unwrap(), start)).count()
        };
        let one = ["2001:db8::1", "2001:db8::2", "2001:db8::3:4:5:6", "2001:db8::7"];
        assert_eq!(served(&mut addresses, &one), 3);
        assert_eq!(served(&mut addresses, &["2001:db8:0:1::1"]), 1);
        assert_eq!(served(&mut addresses, &["10.0.0.1", "::ffff:10.0.0.1", "10.0.0.1", "::ffff:10.0.0.1"]), 3);
    }

    proptest! {
        /// Never more than the burst and what has flowed in since, and the table keeps its bound.
        #[test]
        fn no_address_gets_more_than_its_share(steps in prop::collection::vec((0u8..3, 0u64..400), 1..200)) {
            let start = Instant::now();
            let mut addresses = Addresses::new(RATE, start);
            let mut now = Duration::ZERO;
            let mut served = [0u32; 3];
            for (address, pause) in steps {
                now += Duration::from_millis(pause);
                if addresses.take(IpAddr::from([10, 0, 0, address]), start + now) {
                    served[usize::from(address)] += 1;
                }
                let most = f64::from(RATE.burst) + now.as_secs_f64() * RATE.per_second;
                prop_assert!(served.iter().all(|count| f64::from(*count) <= most + 1e-6));
            }
        }
    }

    #[test]
    fn a_flood_of_addresses_is_bounded_and_shares_one_account() {
        let start = Instant::now();
        let mut addresses = Addresses::new(RATE, start);
        for count in 0..ADDRESSES as u32 {
            assert!(addresses.take(IpAddr::from(count.to_be_bytes()), start));
        }
        let more = (0..5u32).filter(|n| addresses.take(IpAddr::from((1 << 24 | n).to_be_bytes()), start)).count();
        assert_eq!(more, RATE.burst as usize);
        assert_eq!(addresses.accounts.len(), ADDRESSES);
        // They fill up again and are forgotten.
        let later = start + Duration::from_secs(1);
        assert!(addresses.take(IpAddr::from([200, 0, 0, 1]), later));
        assert_eq!(addresses.accounts.len(), 1);
    }

    #[test]
    fn a_node_has_so_many_connections_and_gets_room_when_one_ends() {
        let nodes = Nodes::new(2);
        let (one, other) = ("a".parse().unwrap(), "b".parse().unwrap());
        let first = nodes.take(&one);
        let second = nodes.take(&one);
        assert!(first.is_some() && second.is_some() && nodes.take(&one).is_none());
        assert!(nodes.take(&other).is_some());
        drop(first);
        assert!(nodes.take(&one).is_some());
        drop(second);
        assert!(nodes.open.lock().unwrap().is_empty());
    }
}
