//! Whether the node takes a pod: the kubelet's last word after the scheduler's. Pure.

mod shell;

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod};

use super::{
    eviction::{Pressure, rank::is_critical},
    lifecycle::{PendingResize, PodFailure},
    quantity::Quantity,
    resources::{QosClass, pod_sysctls, ports_conflict, qos_class},
};

/// What the node has for pods, by the names of resources, `pods` among them.
pub type Room = BTreeMap<String, Quantity>;

/// Why the node does not take a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// A kubelet's word for it: the reason of the status and of the event.
    pub reason: String,
    /// A kubelet's words: the event's message.
    pub message: String,
}

impl Refusal {
    fn new(reason: impl Into<String>, message: impl Into<String>) -> Self {
        Self { reason: reason.into(), message: message.into() }
    }

    /// What the pod has failed of. Its status says beside why that it was rejected.
    pub fn failure(&self) -> PodFailure {
        let message = format!("Pod was rejected: {}", self.message);
        PodFailure { reason: self.reason.clone(), message, disruption: false, grace_seconds: 0 }
    }
}

/// What a pod asks for, by the names of resources: the sum of what runs at the same time, or the greatest of its init
/// containers, whatever is more, and its overhead. `Err` names the container whose request cannot be read.
pub fn requests(pod: &Pod) -> Result<Room, String> {
    let Some(spec) = &pod.spec else { return Ok(Room::new()) };
    let mut running = Room::new();
    let mut most = Room::new();
    // Sidecars run beside the init containers behind them, and beside the others.
    for container in spec.init_containers.iter().flatten() {
        let own = of_container(container)?;
        if container.restart_policy.as_deref() == Some("Always") {
            add(&mut running, &own);
            raise(&mut most, &running);
        } else {
            let mut beside = running.clone();
            add(&mut beside, &own);
            raise(&mut most, &beside);
        }
    }
    for container in &spec.containers {
        add(&mut running, &of_container(container)?);
    }
    raise(&mut most, &running);
    for (name, quantity) in spec.overhead.iter().flatten() {
        let amount = Quantity::from_api(quantity).map_err(|error| format!("spec.overhead.{name}: {error}"))?;
        add(&mut most, &Room::from([(name.clone(), amount)]));
    }
    Ok(most)
}

fn of_container(container: &Container) -> Result<Room, String> {
    let Some(resources) = &container.resources else { return Ok(Room::new()) };
    // What is limited and not requested is requested up to its limit.
    let mut named = resources.limits.clone().unwrap_or_default();
    named.extend(resources.requests.clone().unwrap_or_default());
    let read = named.into_iter().map(|(name, quantity)| {
        let amount = Quantity::from_api(&quantity);
        amount.map(|amount| (name, amount)).map_err(|error| format!("container {}: {error}", container.name))
    });
    read.collect()
}

fn add(to: &mut Room, more: &Room) {
    for (name, amount) in more {
        let sum = to.entry(name.clone()).or_insert(Quantity::ZERO);
        *sum = sum.plus(*amount);
    }
}

fn raise(to: &mut Room, least: &Room) {
    for (name, amount) in least {
        let known = to.entry(name.clone()).or_insert(Quantity::ZERO);
        *known = (*known).max(*amount);
    }
}

/// Whether a pod sets only kernel parameters that are its own or that the node's operator allows.
pub fn admit_sysctls(pod: &Pod, allowed: &[String]) -> Result<(), Refusal> {
    match pod_sysctls(pod, allowed) {
        Ok(_) => Ok(()),
        Err(forbidden) => Err(Refusal::new("SysctlForbidden", forbidden.to_string())),
    }
}

/// Whether a pod may run beside `others`, in the room that the node has and with the ports of the node that it wants; why
/// not otherwise, in a kubelet's words.
pub fn admit(pod: &Pod, others: &[&Pod], room: &Room, pressure: Pressure) -> Result<(), Refusal> {
    if let Some(condition) = pressed(pod, pressure) {
        return Err(Refusal::new("Evicted", format!("The node had condition: [{condition}]. ")));
    }
    fits(pod, others.iter().copied(), room)?;
    if ports_conflict(pod, others.iter().copied()) {
        let why = "Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports";
        return Err(Refusal::new("NodePorts", why));
    }
    Ok(())
}

/// Whether there is room for a pod beside `others`.
fn fits<'a>(pod: &Pod, others: impl Iterator<Item = &'a Pod>, room: &Room) -> Result<(), Refusal> {
    let wanted = requests(pod).map_err(|error| Refusal::new("UnexpectedAdmissionError", error))?;
    let mut used = Room::from([("pods".to_owned(), Quantity::ZERO)]);
    for other in others {
        add(&mut used, &Room::from([("pods".to_owned(), Quantity::units(1))]));
        // One that cannot be read was not let in for its requests.
        add(&mut used, &requests(other).unwrap_or_default());
    }
    let one = ("pods".to_owned(), Quantity::units(1));
    for (name, amount) in std::iter::once(one).chain(wanted).filter(|(_, amount)| *amount > Quantity::ZERO) {
        let has = match room.get(&name) {
            Some(has) => *has,
            // Nobody on this node has it: it is counted by the cluster.
            None if name.contains('/') => continue,
            None => Quantity::ZERO,
        };
        let taken = used.get(&name).copied().unwrap_or(Quantity::ZERO);
        if taken.plus(amount) > has {
            let show = |quantity| shown(&name, quantity);
            let why = format!(
                "Node didn't have enough resource: {name}, requested: {}, used: {}, capacity: {}",
                show(amount),
                show(taken),
                show(has)
            );
            return Err(Refusal::new(format!("OutOf{name}"), why));
        }
    }
    Ok(())
}

/// Whether a pod that runs may have the resources that it asks for now, beside `others`; otherwise why not, or not yet.
pub fn admit_resize<'a>(pod: &Pod, others: impl Iterator<Item = &'a Pod>, room: &Room) -> Result<(), PendingResize> {
    let infeasible = |message: String| PendingResize { infeasible: true, message };
    let wanted = requests(pod).map_err(infeasible)?;
    for name in ["memory", "cpu"] {
        let amount = wanted.get(name).copied().unwrap_or(Quantity::ZERO);
        let has = room.get(name).copied().unwrap_or(Quantity::ZERO);
        if amount > has {
            let (amount, has) = (shown(name, amount), shown(name, has));
            let why = format!("{name}, requested: {amount}, capacity: {has}");
            return Err(infeasible(format!("Node didn't have enough capacity: {why}")));
        }
    }
    // That the node is short is no reason to keep a pod from less, or from what is there.
    fits(pod, others, room).map_err(|refused| PendingResize { infeasible: false, message: refused.message })
}

/// Processors are counted in thousandths.
fn shown(name: &str, quantity: Quantity) -> i64 {
    if name == "cpu" { quantity.milli_value() } else { quantity.value() }
}

/// The condition of the node that keeps a pod out. A node that is short of memory takes who asked for some.
fn pressed(pod: &Pod, pressure: Pressure) -> Option<&'static str> {
    if is_critical(pod) {
        return None;
    }
    let best_effort = qos_class(pod).is_ok_and(|class| class == QosClass::BestEffort);
    let tolerates = |key: &str| {
        let tolerations = pod.spec.iter().flat_map(|spec| spec.tolerations.iter().flatten());
        tolerations.into_iter().any(|one| {
            let key_fits = one.key.as_deref().is_none_or(|known| known == key || known.is_empty());
            let effect_fits = one.effect.as_deref().is_none_or(|effect| effect.is_empty() || effect == "NoSchedule");
            key_fits && effect_fits && (one.key.is_some() || one.operator.as_deref() == Some("Exists"))
        })
    };
    match pressure {
        Pressure { disk: true, .. } => Some("DiskPressure"),
        Pressure { pids: true, .. } => Some("PIDPressure"),
        Pressure { memory: true, .. } if best_effort && !tolerates("node.kubernetes.io/memory-pressure") => {
            Some("MemoryPressure")
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn pod(spec: Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": spec})).unwrap()
    }

    fn asks(requests: Value) -> Pod {
        pod(json!({"containers": [{"name": "c", "resources": {"requests": requests}}]}))
    }

    fn room() -> Room {
        let quantity =
            |text: &str| Quantity::from_api(&k8s_openapi::apimachinery::pkg::api::resource::Quantity(text.into()));
        [("cpu", "2"), ("memory", "1Gi"), ("ephemeral-storage", "10Gi"), ("pods", "3"), ("example.com/gpu", "1")]
            .map(|(name, amount)| (name.to_owned(), quantity(amount).unwrap()))
            .into()
    }

    fn refusal(pod: &Pod, others: &[Pod]) -> Option<(String, String)> {
        let others: Vec<&Pod> = others.iter().collect();
        let failure = admit(pod, &others, &room(), Pressure::default()).err()?.failure();
        Some((failure.reason, failure.message))
    }

    #[test]
    fn what_does_not_fit_is_refused_in_a_kubelets_words() {
        let half = asks(json!({"cpu": "1500m", "memory": "1Ki"}));
        assert_eq!(refusal(&half, &[]), None);
        let why =
            "Pod was rejected: Node didn't have enough resource: cpu, requested: 1500, used: 1500, capacity: 2000";
        assert_eq!(refusal(&half, std::slice::from_ref(&half)), Some(("OutOfcpu".into(), why.into())));
        let none = pod(json!({"containers": [{"name": "c"}]}));
        let full = [none.clone(), none.clone(), none.clone()];
        let why = "Pod was rejected: Node didn't have enough resource: pods, requested: 1, used: 3, capacity: 3";
        assert_eq!(refusal(&none, &full), Some(("OutOfpods".into(), why.into())));
        let gpu = pod(json!({"containers": [{"name": "c", "resources": {"limits": {"example.com/gpu": "1"}}}]}));
        assert_eq!(refusal(&gpu, &[]), None);
        assert_eq!(refusal(&gpu, std::slice::from_ref(&gpu)).unwrap().0, "OutOfexample.com/gpu");
        assert_eq!(refusal(&asks(json!({"example.com/other": "1"})), &[]), None, "a resource of the cluster");
        assert_eq!(refusal(&asks(json!({"hugepages-2Mi": "2Mi"})), &[]).unwrap().0, "OutOfhugepages-2Mi");
        assert_eq!(refusal(&asks(json!({"cpu": "x"})), &[]).unwrap().0, "UnexpectedAdmissionError");
    }

    #[test]
    fn a_port_of_the_node_that_another_has_is_refused_but_no_reason_against_a_resize() {
        let web = pod(json!({"containers": [{"name": "c", "ports": [{"containerPort": 80, "hostPort": 8080}]}]}));
        let why =
            "Pod was rejected: Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports";
        assert_eq!(refusal(&web, std::slice::from_ref(&web)), Some(("NodePorts".into(), why.into())));
        assert_eq!(refusal(&web, &[asks(json!({"cpu": "1"}))]), None);
        // What is said is the first that is missing.
        let full = [web.clone(), web.clone(), web.clone()];
        assert_eq!(refusal(&web, &full).unwrap().0, "OutOfpods");
        assert_eq!(admit_resize(&web, std::iter::once(&web), &room()), Ok(()));
    }

    #[test]
    fn a_kernel_parameter_beyond_the_pod_is_refused_unless_it_is_allowed() {
        let sets =
            |name: &str| pod(json!({"containers": [], "securityContext": {"sysctls": [{"name": name, "value": "1"}]}}));
        let refusal = |name: &str, allowed: &[String]| admit_sysctls(&sets(name), allowed).err();
        assert_eq!(refusal("net.ipv4.tcp_syncookies", &[]), None);
        let refused = refusal("net.core.somaxconn", &[]).unwrap();
        let why = "forbidden sysctl: \"net.core.somaxconn\" not allowlisted";
        assert_eq!((refused.reason.as_str(), refused.message.as_str()), ("SysctlForbidden", why));
        assert_eq!(refusal("net.core.somaxconn", &["net.core.*".to_owned()]), None);
        assert!(refusal("vm.swappiness", &["vm.swappiness".to_owned()]).is_some(), "it is the whole node's");
    }

    #[test]
    fn a_resize_is_deferred_while_others_have_the_room_and_infeasible_beyond_the_node() {
        let asked = |cpu: &str, others: &[Pod]| admit_resize(&asks(json!({"cpu": cpu})), others.iter(), &room()).err();
        let half = asks(json!({"cpu": "1"}));
        assert_eq!(asked("1", std::slice::from_ref(&half)), None);
        let deferred = asked("1500m", std::slice::from_ref(&half)).unwrap();
        let why = "Node didn't have enough resource: cpu, requested: 1500, used: 1000, capacity: 2000";
        assert_eq!((deferred.reason(), deferred.message.as_str()), ("Deferred", why));
        let infeasible = asked("2001m", &[]).unwrap();
        let why = "Node didn't have enough capacity: cpu, requested: 2001, capacity: 2000";
        assert_eq!((infeasible.reason(), infeasible.message.as_str()), ("Infeasible", why));
    }

    #[test]
    fn a_pod_asks_for_what_runs_at_the_same_time() {
        let with = |name: &str, cpu: &str, policy: Option<&str>| json!({"name": name, "restartPolicy": policy, "resources": {"requests": {"cpu": cpu}}});
        let spec = json!({
            "overhead": {"cpu": "1m"},
            "initContainers": [with("i", "700m", None), with("s", "100m", Some("Always")), with("j", "500m", None)],
            "containers": [with("a", "200m", None), with("b", "300m", None)],
        });
        // 700 alone; 600 = s and j; 600 = s, a and b.
        assert_eq!(requests(&pod(spec)).unwrap()["cpu"].milli_value(), 701);
    }

    #[test]
    fn a_node_that_is_short_takes_only_who_can_be_taken() {
        let (best_effort, burstable) = (pod(json!({"containers": [{"name": "c"}]})), asks(json!({"cpu": "1m"})));
        let tolerant = pod(json!({"containers": [{"name": "c"}],
            "tolerations": [{"key": "node.kubernetes.io/memory-pressure", "operator": "Exists"}]}));
        let critical = pod(json!({"priority": 2_000_000_000, "containers": [{"name": "c"}]}));
        let said = |pod: &Pod, pressure| admit(pod, &[], &room(), pressure).err().map(|why| why.message);
        let memory = Pressure { memory: true, ..Pressure::default() };
        let why = "The node had condition: [MemoryPressure]. ";
        assert_eq!(said(&best_effort, memory).as_deref(), Some(why));
        assert_eq!((said(&burstable, memory), said(&tolerant, memory), said(&critical, memory)), (None, None, None));
        let disk = Pressure { disk: true, ..Pressure::default() };
        assert!(said(&burstable, disk).unwrap().contains("[DiskPressure]"));
        assert_eq!(said(&critical, disk), None);
    }

    proptest! {
        #[test]
        fn what_is_let_in_fits(wanted in prop::collection::vec(1_i64..1500, 1..8)) {
            let mut here: Vec<Pod> = Vec::new();
            for milli in wanted {
                let next = asks(json!({"cpu": format!("{milli}m")}));
                let others: Vec<&Pod> = here.iter().collect();
                if admit(&next, &others, &room(), Pressure::default()).is_ok() {
                    here.push(next);
                }
            }
            let sum: i64 = here.iter().map(|pod| requests(pod).unwrap()["cpu"].milli_value()).sum();
            prop_assert!(sum <= 2000 && here.len() <= 3);
        }
    }
}
