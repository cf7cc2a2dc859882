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

    /// Gives a container so many devices. What it has it keeps; then come those that the pod's init containers had,
    /// `reusable`, then free ones that are healthy, by id.
    pub fn give(
        &mut self,
        pod: &str,
        container: &str,
        resource: &str,
        count: usize,
        reusable: &[String],
    ) -> Result<BTreeSet<String>, Shortage> {
        if let Some(held) = self.held(pod, container, resource)
            && held.len() == count
        {
            return Ok(held.clone());
        }
        let healthy = |id: &String| self.resources.get(resource).and_then(|known| known.devices.get(id)) == Some(&true);
        let mut chosen: BTreeSet<String> = reusable
            .iter()
            .filter_map(|from| self.held(pod, from, resource))
            .flatten()
            .filter(|id| healthy(id))
            .take(count)
            .cloned()
            .collect();
        let taken: BTreeSet<&String> = self
            .given
            .values()
            .flat_map(BTreeMap::values)
            .filter_map(|resources| resources.get(resource))
            .flatten()
            .collect();
        let all = self.resources.get(resource).into_iter().flat_map(|known| &known.devices);
        let free: Vec<&String> =
            all.filter(|(id, healthy)| **healthy && !taken.contains(id)).map(|(id, _)| id).collect();
        let missing = count.saturating_sub(chosen.len());
        if free.len() < missing {
            return Err(Shortage { resource: resource.to_owned(), requested: missing, available: free.len() });
        }
        chosen.extend(free.into_iter().take(missing).cloned());
        let own = self.given.entry(pod.to_owned()).or_default().entry(container.to_owned()).or_default();
        own.insert(resource.to_owned(), chosen.clone());
        Ok(chosen)
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
        assert_eq!(ids(pools.give("p", "c1", GPU, 2, &[])), ["a", "c"]);
        assert_eq!(ids(pools.give("p", "c1", GPU, 2, &[])), ["a", "c"], "again, as after a restart");
        let short = pools.give("q", "c1", GPU, 2, &[]).unwrap_err();
        let said = "requested number of devices unavailable for example.com/gpu. Requested: 2, Available: 1";
        assert_eq!(short.to_string(), said);
        let mut again = Pools::of(serde_json::from_value(serde_json::to_value(pools.checkpoint()).unwrap()).unwrap());
        assert_eq!(ids(again.give("p", "c1", GPU, 2, &[])), ["a", "c"], "before its plugin is there");
        assert!(again.give("q", "c1", GPU, 1, &[]).is_err());
        assert!(pools.release("p") && !pools.release("p"));
        assert_eq!(ids(pools.give("q", "c1", GPU, 2, &[])), ["a", "c"]);
        pools.away(GPU);
        assert_eq!(pools.amounts().collect::<Vec<_>>(), [(GPU, 4, 0)]);
        assert!(pools.give("r", "c1", GPU, 1, &[]).is_err() && pools.held("q", "c1", GPU).is_some());
    }

    #[test]
    fn what_an_init_container_had_goes_to_the_next() {
        let mut pools = pools(&[("a", true), ("b", true)]);
        assert_eq!(ids(pools.give("p", "init", GPU, 1, &[])), ["a"]);
        assert_eq!(ids(pools.give("p", "main", GPU, 2, &["init".into()])), ["a", "b"]);
        assert!(pools.give("q", "main", GPU, 1, &["init".into()]).is_err());
    }

    proptest! {
        #[test]
        fn no_device_is_two_pods(steps in prop::collection::vec((0_usize..4, 0_usize..3, any::<bool>()), 0..40)) {
            let mut pools = pools(&[("a", true), ("b", true), ("c", true)]);
            for (pod, count, release) in steps {
                let pod = format!("p{pod}");
                if release { pools.release(&pod); } else { let _ = pools.give(&pod, "c", GPU, count, &[]); }
                let given = pools.checkpoint().given;
                let all: Vec<_> = given.values().flat_map(|pod| pod["c"][GPU].clone()).collect();
                let distinct: BTreeSet<_> = all.iter().collect();
                prop_assert_eq!(distinct.len(), all.len());
            }
        }
    }
}
