//! Which connection of a node is its session. Pure: CloudHub asks it when a Hello has come and when a session ended.

use std::collections::HashMap;

use kubeedge_proto::{
    NodeName,
    v1::{Goodbye, GoodbyeReason, Hello},
};

/// No box has had this many sessions: a higher `last_epoch` in a Hello is a lie.
pub const MAX_EPOCH: u64 = 1 << 62;

/// Who holds a node's session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// The box.
    pub instance_id: Vec<u8>,
    /// Its connection count.
    pub connection: u64,
    /// The session's epoch.
    pub epoch: u64,
}

#[derive(Debug, Default)]
struct Node {
    /// The highest epoch given; kept when nobody holds the node, so that epochs rise also for a box with a new store.
    last_epoch: u64,
    holder: Option<Holder>,
}

/// The sessions of this cloud, one per node at most.
#[derive(Debug)]
pub struct Registry {
    nodes: HashMap<NodeName, Node>,
    held: usize,
    limit: usize,
}

/// The answer to a Hello.
#[derive(Clone, Debug, PartialEq)]
pub enum Admission {
    /// Welcome it with this epoch. `replaces` is the epoch of the session it takes over: tell that one
    /// [`replaced`] and forget it.
    Admitted {
        /// Of the new session; higher than any before.
        epoch: u64,
        /// Of the session that ends by it.
        replaces: Option<u64>,
    },
    /// Say this and close.
    Refused(Goodbye),
}

/// What a session hears that a newer one has replaced.
pub fn replaced() -> Goodbye {
    Goodbye {
        reason: GoodbyeReason::Replaced.into(),
        message: "a newer connection of this box has taken over".into(),
        retry_after_ms: 0,
    }
}

impl Registry {
    /// For at most `limit` sessions at a time.
    pub fn new(limit: usize) -> Self {
        Self { nodes: HashMap::new(), held: 0, limit }
    }

    /// Decides about a Hello of the node that its certificate names.
    ///
    /// The newest hello of one box wins at once, since its old connection may be half open. Another box with the same
    /// name is refused while the holder is alive, which its session's liveness decides: see [`Registry::release`].
    pub fn admit(&mut self, node: &NodeName, hello: &Hello) -> Admission {
        let full = self.held >= self.limit;
        let known = self.nodes.get(node).and_then(|entry| entry.holder.as_ref());
        match known {
            Some(holder) if holder.instance_id != hello.instance_id => {
                return Admission::Refused(Goodbye {
                    reason: GoodbyeReason::NameTaken.into(),
                    message: format!(
                        "another box holds the name {node} and is connected (epoch {}); join this box under another name",
                        holder.epoch
                    ),
                    retry_after_ms: 30_000,
                });
            }
            Some(holder) if holder.connection > hello.connection => return Admission::Refused(replaced()),
            None if full => {
                return Admission::Refused(Goodbye {
                    reason: GoodbyeReason::Busy.into(),
                    message: format!("this cloud serves its limit of {} nodes", self.limit),
                    retry_after_ms: 10_000,
                });
            }
            _ => {}
        }
        let entry = self.nodes.entry(node.clone()).or_default();
        // A session refuses a Hello beyond MAX_EPOCH; the bound here keeps epochs rising whoever asks.
        let epoch = entry.last_epoch.max(hello.last_epoch.min(MAX_EPOCH)) + 1;
        entry.last_epoch = epoch;
        let holder = Holder { instance_id: hello.instance_id.to_vec(), connection: hello.connection, epoch };
        let replaces = entry.holder.replace(holder).map(|old| old.epoch);
        if replaces.is_none() {
            self.held += 1;
        }
        Admission::Admitted { epoch, replaces }
    }

    /// A session ended. True when it was the node's current one; the end of a replaced one changes nothing
    /// (`P-ONE-EPOCH-HOLDS`).
    pub fn release(&mut self, node: &NodeName, epoch: u64) -> bool {
        let Some(entry) = self.nodes.get_mut(node) else { return false };
        let current = entry.holder.as_ref().is_some_and(|holder| holder.epoch == epoch);
        if current {
            entry.holder = None;
            self.held -= 1;
        }
        current
    }

    /// Who holds the node now.
    pub fn holder(&self, node: &NodeName) -> Option<&Holder> {
        self.nodes.get(node)?.holder.as_ref()
    }

    /// How many nodes have a session.
    pub fn len(&self) -> usize {
        self.held
    }

    /// Whether no node has a session.
    pub fn is_empty(&self) -> bool {
        self.held == 0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn hello(instance: u8, connection: u64, last_epoch: u64) -> Hello {
        Hello { instance_id: vec![instance; 16].into(), connection, last_epoch, ..Default::default() }
    }

    fn node(name: &str) -> NodeName {
        name.parse().unwrap()
    }

    #[test]
    fn newest_hello_of_one_box_replaces_its_old_session() {
        let mut registry = Registry::new(10);
        let node = node("edge-1");
        assert_eq!(registry.admit(&node, &hello(1, 1, 0)), Admission::Admitted { epoch: 1, replaces: None });
        assert_eq!(registry.admit(&node, &hello(1, 2, 1)), Admission::Admitted { epoch: 2, replaces: Some(1) });
        assert!(!registry.release(&node, 1), "the old session's end must not touch the new one");
        assert_eq!(registry.holder(&node).unwrap().epoch, 2);
        assert!(matches!(registry.admit(&node, &hello(1, 1, 1)), Admission::Refused(bye)
            if bye.reason() == GoodbyeReason::Replaced));
    }

    /// P-ONE-BOX
    #[test]
    fn another_box_is_refused_while_the_holder_is_alive() {
        let mut registry = Registry::new(10);
        let node = node("edge-1");
        registry.admit(&node, &hello(1, 1, 0));
        assert!(matches!(registry.admit(&node, &hello(2, 9, 0)), Admission::Refused(bye)
            if bye.reason() == GoodbyeReason::NameTaken));
        assert!(registry.release(&node, 1));
        assert_eq!(registry.admit(&node, &hello(2, 9, 0)), Admission::Admitted { epoch: 2, replaces: None });
    }

    #[test]
    fn limit_counts_nodes_and_says_when_to_come_back() {
        let mut registry = Registry::new(1);
        registry.admit(&node("a"), &hello(1, 1, 0));
        assert!(matches!(registry.admit(&node("b"), &hello(2, 1, 0)), Admission::Refused(bye)
            if bye.reason() == GoodbyeReason::Busy && bye.retry_after_ms > 0));
        assert!(matches!(registry.admit(&node("a"), &hello(1, 2, 0)), Admission::Admitted { replaces: Some(1), .. }));
    }

    proptest! {
        /// P-ONE-EPOCH-HOLDS
        #[test]
        fn epochs_rise_and_one_session_holds(
            steps in prop::collection::vec((0u8..3, 0u8..2, 0u64..5, 0u64..6), 1..60),
        ) {
            let mut registry = Registry::new(2);
            let mut last = HashMap::new();
            for (action, instance, connection, epoch) in steps {
                let node = node(if action == 2 { "b" } else { "a" });
                if action == 1 {
                    let held = registry.holder(&node).map(|holder| holder.epoch);
                    prop_assert_eq!(registry.release(&node, epoch), held == Some(epoch));
                } else if let Admission::Admitted { epoch: given, .. } =
                    registry.admit(&node, &hello(instance, connection, epoch))
                {
                    let before = last.insert(node.clone(), given);
                    prop_assert!(before.is_none_or(|before| before < given) && given > epoch);
                    prop_assert_eq!(registry.holder(&node).unwrap().epoch, given);
                }
                let held = ["a", "b"].iter().filter(|n| registry.holder(&n.parse().unwrap()).is_some()).count();
                prop_assert_eq!(registry.len(), held);
            }
        }
    }
}
