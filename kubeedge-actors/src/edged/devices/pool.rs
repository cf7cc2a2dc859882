//! Which devices there are and who has which. Pure.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Resources that plugins may have on one node.
pub const MAX_RESOURCES: usize = 64;
/// Devices of one resource.
pub const MAX_DEVICES: usize = 4096;

/// There are not enough devices.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("requested number of devices unavailable for {resource}. Requested: {requested}, Available: {available}")]
pub struct Shortage {
    /// The resource.
    pub resource: String,
    /// How many more are asked for.
    pub requested: usize,
    /// How many are free and healthy.
    pub available: usize,
}

/// What a container may be given, for a plugin that has a say in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    /// What it is given in any case.
    pub certain: BTreeSet<String>,
    /// What it may be given, that included.
    pub available: BTreeSet<String>,
}

/// Who has which devices: by pod, container and resource. What is kept on disk.
pub type Allocations = BTreeMap<String, BTreeMap<String, BTreeMap<String, BTreeSet<String>>>>;

/// The devices of one resource.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Resource {
    /// By id, whether it is healthy.
    devices: BTreeMap<String, bool>,
}

/// All of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pools {
    resources: BTreeMap<String, Resource>,
    given: Allocations,
}

/// The checkpoint.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Checkpoint {
    /// Who has which devices.
    pub given: Allocations,
}

impl Pools {
    /// With what was given away before.
    pub fn of(checkpoint: Checkpoint) -> Self {
        Self { given: checkpoint.given, ..Self::default() }
    }

    /// What has to be on disk.
    pub fn checkpoint(&self) -> Checkpoint {
        Checkpoint { given: self.given.clone() }
    }

    /// What a plugin has now. Those beyond [`MAX_DEVICES`] are left out.
    pub fn set(&mut self, resource: &str, devices: impl Iterator<Item = (String, bool)>) {
        if self.resources.contains_key(resource) || self.resources.len() < MAX_RESOURCES {
            let devices = devices.take(MAX_DEVICES).collect();
            self.resources.insert(resource.to_owned(), Resource { devices });
        }
    }

    /// Its plugin is away: none of its devices can be given.
    pub fn away(&mut self, resource: &str) {
        if let Some(known) = self.resources.get_mut(resource) {
            known.devices.values_mut().for_each(|healthy| *healthy = false);
        }
    }

    /// Whether a plugin has, or had, devices of this resource.
    pub fn knows(&self, resource: &str) -> bool {
        self.resources.contains_key(resource)
    }

    /// Each resource with how many devices there are, and how many of them are healthy: a node's capacity and what is
    /// allocatable.
    pub fn amounts(&self) -> impl Iterator<Item = (&str, usize, usize)> {
        self.resources.iter().map(|(name, resource)| {
            let healthy = resource.devices.values().filter(|healthy| **healthy).count();
            (name.as_str(), resource.devices.len(), healthy)
        })
    }

    /// What a container has of a resource.
    pub fn held(&self, pod: &str, container: &str, resource: &str) -> Option<&BTreeSet<String>> {
        self.given.get(pod)?.get(container)?.get(resource)
    }

    /// What a plugin may choose from; `None` when there is nothing to choose: the container has its devices, or there
    /// are not more of them than it needs.
    pub fn offer(
        &self,
        pod: &str,
        container: &str,
        resource: &str,
        count: usize,
        reusable: &[String],
    ) -> Option<Offer> {
        if self.held(pod, container, resource).is_some_and(|held| held.len() == count) {
            return None;
        }
        let certain = self.reused(pod, resource, count, reusable);
        let mut available: BTreeSet<String> = self.free(resource).into_iter().cloned().collect();
        let missing = count.saturating_sub(certain.len());
        if missing == 0 || available.len() <= missing {
            return None;
        }
        available.extend(certain.iter().cloned());
        Some(Offer { certain, available })
    }

    /// Gives a container so many devices. What it has it keeps; then come those that the pod's init containers had,
    /// `reusable`, then those of the free ones that are healthy which its plugin prefers, then others by their ids.
    pub fn give(
        &mut self,
        pod: &str,
        container: &str,
        resource: &str,
        count: usize,
        reusable: &[String],
        preferred: &[String],
    ) -> Result<BTreeSet<String>, Shortage> {
        if let Some(held) = self.held(pod, container, resource)
            && held.len() == count
        {
            return Ok(held.clone());
        }
        let mut chosen = self.reused(pod, resource, count, reusable);
        let free = self.free(resource);
        let missing = count.saturating_sub(chosen.len());
        if free.len() < missing {
            return Err(Shortage { resource: resource.to_owned(), requested: missing, available: free.len() });
        }
        // Others may have been given away since the plugin was asked.
        let wished: BTreeSet<&String> = preferred.iter().filter(|id| free.contains(id)).take(missing).collect();
        let others = free.iter().copied().filter(|id| !wished.contains(id));
        let more: Vec<String> = wished.iter().copied().chain(others).take(missing).cloned().collect();
        chosen.extend(more);
        let own = self.given.entry(pod.to_owned()).or_default().entry(container.to_owned()).or_default();
        own.insert(resource.to_owned(), chosen.clone());
        Ok(chosen)
    }

    /// What a container takes over from the init containers of its pod.
    fn reused(&self, pod: &str, resource: &str, count: usize, reusable: &[String]) -> BTreeSet<String> {
        let healthy =
            |id: &&String| self.resources.get(resource).and_then(|known| known.devices.get(*id)) == Some(&true);
        let held: BTreeSet<&String> =
            reusable.iter().filter_map(|from| self.held(pod, from, resource)).flatten().filter(healthy).collect();
        held.into_iter().take(count).cloned().collect()
    }

    /// The devices that nobody has and that are healthy, by their ids.
    fn free(&self, resource: &str) -> BTreeSet<&String> {
        let of_resource = self.given.values().flat_map(BTreeMap::values).filter_map(|all| all.get(resource));
        let taken: BTreeSet<&String> = of_resource.flatten().collect();
        let all = self.resources.get(resource).into_iter().flat_map(|known| &known.devices);
        all.filter(|(id, healthy)| **healthy && !taken.contains(id)).map(|(id, _)| id).collect()
    }

    /// A pod has ended: its devices are free. Whether it had any.
    pub fn release(&mut self, pod: &str) -> bool {
        self.given.remove(pod).is_some()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GPU: &str = "example.com/gpu";

    fn pools(devices: &[(&str, bool)]) -> Pools {
        let mut pools = Pools::default();
        pools.set(GPU, devices.iter().map(|(id, healthy)| ((*id).to_owned(), *healthy)));
        pools
    }

    fn ids(given: Result<BTreeSet<String>, Shortage>) -> Vec<String> {
        given.unwrap().into_iter().collect()
    }

    #[test]
    fn a_container_keeps_what_it_has_and_the_rest_goes_to_others() {
        let mut pools = pools(&[("a", true), ("b", false), ("c", true), ("d", true)]);
        assert_eq!(pools.amounts().collect::<Vec<_>>(), [(GPU, 4, 3)]);
        assert_eq!(ids(pools.give("p", "c1", GPU, 2, &[], &[])), ["a", "c"]);
        assert_eq!(ids(pools.give("p", "c1", GPU, 2, &[], &[])), ["a", "c"], "again, as after a restart");
        let short = pools.give("q", "c1", GPU, 2, &[], &[]).unwrap_err();
        let said = "requested number of devices unavailable for example.com/gpu. Requested: 2, Available: 1";
        assert_eq!(short.to_string(), said);
        let mut again = Pools::of(serde_json::from_value(serde_json::to_value(pools.checkpoint()).unwrap()).unwrap());
        assert_eq!(ids(again.give("p", "c1", GPU, 2, &[], &[])), ["a", "c"], "before its plugin is there");
        assert!(again.give("q", "c1", GPU, 1, &[], &[]).is_err());
        assert!(pools.release("p") && !pools.release("p"));
        assert_eq!(ids(pools.give("q", "c1", GPU, 2, &[], &[])), ["a", "c"]);
        pools.away(GPU);
        assert_eq!(pools.amounts().collect::<Vec<_>>(), [(GPU, 4, 0)]);
        assert!(pools.give("r", "c1", GPU, 1, &[], &[]).is_err() && pools.held("q", "c1", GPU).is_some());
    }

    #[test]
    fn what_an_init_container_had_goes_to_the_next() {
        let mut pools = pools(&[("a", true), ("b", true)]);
        assert_eq!(ids(pools.give("p", "init", GPU, 1, &[], &[])), ["a"]);
        assert_eq!(ids(pools.give("p", "main", GPU, 2, &["init".into()], &[])), ["a", "b"]);
        assert!(pools.give("q", "main", GPU, 1, &["init".into()], &[]).is_err());
    }

    #[test]
    fn a_plugin_may_choose_and_what_is_not_free_any_more_is_made_up_for() {
        let prefer = |ids: &[&str]| ids.iter().map(|id| (*id).to_owned()).collect::<Vec<_>>();
        let mut pools = pools(&[("a", true), ("b", false), ("c", true), ("d", true), ("e", true)]);
        let offer = pools.offer("p", "main", GPU, 2, &[]).unwrap();
        assert!(offer.certain.is_empty());
        assert_eq!(offer.available.into_iter().collect::<Vec<_>>(), ["a", "c", "d", "e"]);
        assert_eq!(ids(pools.give("p", "main", GPU, 2, &[], &prefer(&["e", "b", "x", "d", "c"]))), ["d", "e"]);
        assert_eq!(pools.offer("p", "main", GPU, 2, &[]), None, "it has them");
        assert_eq!(pools.offer("q", "main", GPU, 2, &[]), None, "there are no others");
        assert_eq!(ids(pools.give("q", "main", GPU, 2, &[], &prefer(&["d"]))), ["a", "c"]);
        pools.release("q");
        assert_eq!(ids(pools.give("r", "init", GPU, 1, &[], &[])), ["a"]);
        pools.release("p");
        let offer = pools.offer("r", "main", GPU, 2, &["init".into()]).unwrap();
        assert_eq!((offer.certain.len(), offer.available.len()), (1, 4));
        assert_eq!(ids(pools.give("r", "main", GPU, 2, &["init".into()], &prefer(&["e"]))), ["a", "e"]);
    }

    proptest! {
        #[test]
        fn no_device_is_two_pods(
            steps in prop::collection::vec((0_usize..4, 0_usize..3, any::<bool>()), 0..40),
            prefer in prop::collection::vec("[a-d]", 0..4),
        ) {
            let mut pools = pools(&[("a", true), ("b", true), ("c", true)]);
            for (pod, count, release) in steps {
                let pod = format!("p{pod}");
                if release { pools.release(&pod); } else { let _ = pools.give(&pod, "c", GPU, count, &[], &prefer); }
                let given = pools.checkpoint().given;
                let all: Vec<_> = given.values().flat_map(|pod| pod["c"][GPU].clone()).collect();
                let distinct: BTreeSet<_> = all.iter().collect();
                prop_assert_eq!(distinct.len(), all.len());
            }
        }
    }
}
