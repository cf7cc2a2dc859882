//! How many requests are under way at a time.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// Requests of one node at a time: as many as an edge sends.
pub const OF_NODE: usize = 8;
/// Requests of all nodes at a time. Each may have a body and an answer in memory.
pub const IN_ALL: usize = 32;

/// Requests under way, by node. Clones count together.
#[derive(Clone, Debug, Default)]
pub(super) struct Bounds(Arc<Mutex<HashMap<String, usize>>>);

/// A request's place, until it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    bounds: Bounds,
    node: String,
}

impl Bounds {
    /// `None` when there are as many as there may be.
    pub(super) fn enter(&self, node: &str) -> Option<Place> {
        let mut nodes = self.lock();
        let (all, own) = (nodes.values().sum::<usize>(), nodes.get(node).copied().unwrap_or_default());
        // The second half is for nodes that have none: a few that ask much keep nobody else out.
        if all >= IN_ALL || own >= OF_NODE || (all >= IN_ALL / 2 && own > 0) {
            return None;
        }
        *nodes.entry(node.to_owned()).or_default() += 1;
        Some(Place { bounds: self.clone(), node: node.to_owned() })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut nodes = self.bounds.lock();
        if let Some(count) = nodes.get_mut(&self.node) {
            *count -= 1;
            if *count == 0 {
                nodes.remove(&self.node);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_has_its_share_and_all_together_have_theirs() {
        let bounds = Bounds::default();
        let mut places: Vec<Place> = (0..OF_NODE).map(|_| bounds.enter("e0").unwrap()).collect();
        assert!(bounds.enter("e0").is_none());
        places.extend((OF_NODE..IN_ALL / 2).map(|_| bounds.enter("e1").unwrap()));
        assert!(bounds.enter("e1").is_none(), "the rest is for others");
        places.extend((IN_ALL / 2..IN_ALL).map(|node| bounds.enter(&format!("n{node}")).unwrap()));
        assert!(bounds.enter("another").is_none());
        places.pop();
        assert!(bounds.enter("e0").is_none(), "another node's place is not this one's");
        assert!(bounds.enter("another").is_some());
        places.clear();
        assert!(bounds.lock().is_empty(), "a node that asks nothing costs nothing");
    }
}
