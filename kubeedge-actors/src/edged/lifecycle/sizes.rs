//! What a container has of processor and memory, which may change while it runs. Pure.

use std::{collections::BTreeMap, fmt, str::FromStr};

use k8s_openapi::{api::core::v1::Container, apimachinery::pkg::api::resource::Quantity as ApiQuantity};

use crate::edged::{
    quantity::Quantity,
    resources::{InvalidResource, limit, request},
};

/// What a container asks for and is limited to: thousandths of a processor, and bytes. `None`: nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sizes {
    /// Processor time that it asks for.
    pub cpu_request: Option<i64>,
    /// Processor time that it may use.
    pub cpu_limit: Option<i64>,
    /// Memory that it asks for.
    pub memory_request: Option<i64>,
    /// Memory that it may use.
    pub memory_limit: Option<i64>,
}

impl Sizes {
    /// Reads a container of a pod's spec.
    pub fn of(container: &Container) -> Result<Self, InvalidResource> {
        let milli = |quantity: Option<Quantity>| quantity.map(|quantity| quantity.milli_value());
        let bytes = |quantity: Option<Quantity>| quantity.map(|quantity| quantity.value());
        Ok(Self {
            cpu_request: milli(request(container, "cpu")?),
            cpu_limit: milli(limit(container, "cpu")?),
            memory_request: bytes(request(container, "memory")?),
            memory_limit: bytes(limit(container, "memory")?),
        })
    }
}

/// Four numbers in the order of the fields, `-` for none: what stands in a container's annotation.
impl fmt::Display for Sizes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = [self.cpu_request, self.cpu_limit, self.memory_request, self.memory_limit];
        let words = all.map(|number| number.map_or_else(|| "-".to_owned(), |number| number.to_string()));
        f.write_str(&words.join(" "))
    }
}

impl FromStr for Sizes {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let number = |word: &str| match word {
            "-" => Ok(None),
            word => word.parse::<i64>().map(Some).map_err(|_| ()),
        };
        let words: Vec<Option<i64>> = text.split(' ').map(number).collect::<Result<_, ()>>()?;
        match <[Option<i64>; 4]>::try_from(words) {
            Ok([cpu_request, cpu_limit, memory_request, memory_limit]) => {
                Ok(Self { cpu_request, cpu_limit, memory_request, memory_limit })
            }
            Err(_) => Err(()),
        }
    }
}

/// What a container of a plan is to have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    /// Processor and memory; `None` where they cannot be read, or cannot change while it runs.
    pub sizes: Option<Sizes>,
    /// Whether another amount of processor time takes a restart.
    pub restarts_for_cpu: bool,
    /// The same of memory.
    pub restarts_for_memory: bool,
    /// All that it asks for as the spec has it, for its status.
    pub requests: BTreeMap<String, String>,
    /// All that it is limited to.
    pub limits: BTreeMap<String, String>,
}

/// How a container that runs gets what it is to have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resize {
    /// In place.
    InPlace(Sizes),
    /// By another instance.
    Restart,
}

impl Resources {
    /// Reads a container of a pod's spec; `may_change`: whether its resources can change while it runs.
    pub fn of(container: &Container, may_change: bool) -> Self {
        let restarts = |resource: &str| {
            let mut policies = container.resize_policy.iter().flatten();
            policies.any(|policy| policy.resource_name == resource && policy.restart_policy == "RestartContainer")
        };
        let all = container.resources.clone().unwrap_or_default();
        let words = |amounts: Option<BTreeMap<String, ApiQuantity>>| {
            amounts.unwrap_or_default().into_iter().map(|(name, ApiQuantity(words))| (name, words)).collect()
        };
        Self {
            // What cannot be read keeps the container from starting, where it is told.
            sizes: Sizes::of(container).ok().filter(|_| may_change),
            restarts_for_cpu: restarts("cpu"),
            restarts_for_memory: restarts("memory"),
            requests: words(all.requests),
            limits: words(all.limits),
        }
    }

    /// The same, of a container that is never started again.
    #[must_use]
    pub fn in_place(self) -> Self {
        Self { restarts_for_cpu: false, restarts_for_memory: false, ..self }
    }

    /// What is to happen to an instance that has `present`; nothing if it has what it is to have, or that is not known.
    pub fn resize(&self, present: Option<Sizes>) -> Option<Resize> {
        let (present, wanted) = (present?, self.sizes?);
        if present == wanted {
            return None;
        }
        let cpu = (present.cpu_request, present.cpu_limit) != (wanted.cpu_request, wanted.cpu_limit);
        let memory = (present.memory_request, present.memory_limit) != (wanted.memory_request, wanted.memory_limit);
        let restarts = (cpu && self.restarts_for_cpu) || (memory && self.restarts_for_memory);
        Some(if restarts { Resize::Restart } else { Resize::InPlace(wanted) })
    }

    /// Requests and limits as an instance has them, for its status.
    pub fn as_present(&self, present: Option<Sizes>) -> (BTreeMap<String, ApiQuantity>, BTreeMap<String, ApiQuantity>) {
        let (mut requests, mut limits) = (quantities(&self.requests), quantities(&self.limits));
        let (Some(present), Some(wanted)) = (present, self.sizes) else { return (requests, limits) };
        // What did not change is shown in the words of the spec.
        let put = |map: &mut BTreeMap<String, ApiQuantity>, name: &str, has: Option<Quantity>| {
            match has {
                Some(amount) => map.insert(name.to_owned(), amount.to_api()),
                None => map.remove(name),
            };
        };
        let bytes = |number: i64| Quantity::bytes(u64::try_from(number).unwrap_or(0));
        if present.cpu_request != wanted.cpu_request {
            put(&mut requests, "cpu", present.cpu_request.map(Quantity::milli));
        }
        if present.memory_request != wanted.memory_request {
            put(&mut requests, "memory", present.memory_request.map(bytes));
        }
        if present.cpu_limit != wanted.cpu_limit {
            put(&mut limits, "cpu", present.cpu_limit.map(Quantity::milli));
        }
        if present.memory_limit != wanted.memory_limit {
            put(&mut limits, "memory", present.memory_limit.map(bytes));
        }
        (requests, limits)
    }
}

/// Amounts as the API has them.
pub(crate) fn quantities(words: &BTreeMap<String, String>) -> BTreeMap<String, ApiQuantity> {
    words.iter().map(|(name, words)| (name.clone(), ApiQuantity(words.clone()))).collect()
}

/// A resize that the node does not allow, or not yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PendingResize {
    /// It would not fit if the pod were alone: it is not tried again.
    pub infeasible: bool,
    /// For a person, in a kubelet's words.
    pub message: String,
}

impl PendingResize {
    /// The reason of the condition.
    pub fn reason(&self) -> &'static str {
        if self.infeasible { "Infeasible" } else { "Deferred" }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn resources(policy: serde_json::Value, cpu: &str, memory: &str) -> Resources {
        let container: Container = serde_json::from_value(json!({
            "name": "c", "resizePolicy": policy,
            "resources": {"limits": {"cpu": cpu, "memory": memory, "example.com/x": "1"}, "requests": {"cpu": "100m"}},
        }))
        .unwrap();
        Resources::of(&container, true)
    }

    #[test]
    fn a_change_is_made_in_place_unless_its_policy_wants_a_restart() {
        let policy = json!([{"resourceName": "cpu", "restartPolicy": "NotRequired"},
            {"resourceName": "memory", "restartPolicy": "RestartContainer"}]);
        let before = resources(policy.clone(), "500m", "64Mi").sizes;
        assert_eq!(resources(policy.clone(), "0.5", "65536Ki").resize(before), None, "the same in other words");
        let cpu = resources(policy.clone(), "1", "64Mi");
        assert_eq!(cpu.resize(before), Some(Resize::InPlace(cpu.sizes.unwrap())));
        assert_eq!(resources(policy.clone(), "500m", "128Mi").resize(before), Some(Resize::Restart));
        assert_eq!(resources(policy, "1", "128Mi").resize(None), None, "nobody knows what it has");
        let init = Resources { sizes: None, ..cpu };
        assert_eq!(init.resize(before), None);
    }

    #[test]
    fn a_status_shows_what_the_instance_has() {
        let before = resources(json!([]), "500m", "64Mi").sizes;
        let after = resources(json!([]), "1", "64Mi");
        let (requests, limits) = after.as_present(before);
        let text = |map: &BTreeMap<String, ApiQuantity>, name: &str| map[name].0.clone();
        assert_eq!((text(&limits, "cpu"), text(&limits, "memory")), ("500m".into(), "64Mi".into()));
        assert_eq!((text(&requests, "cpu"), text(&limits, "example.com/x")), ("100m".into(), "1".into()));
        assert_eq!(after.as_present(after.sizes).1["cpu"].0, "1");
    }

    proptest! {
        #[test]
        fn sizes_are_read_as_they_are_written(all in prop::collection::vec(prop::option::of(any::<i64>()), 4)) {
            let sizes = Sizes { cpu_request: all[0], cpu_limit: all[1], memory_request: all[2], memory_limit: all[3] };
            prop_assert_eq!(sizes.to_string().parse(), Ok(sizes));
        }

        #[test]
        fn what_others_wrote_is_no_size(text in "\\PC{0,20}") {
            if let Ok(sizes) = text.parse::<Sizes>() {
                prop_assert_eq!(sizes.to_string().split(' ').count(), 4);
            }
        }
    }
}
