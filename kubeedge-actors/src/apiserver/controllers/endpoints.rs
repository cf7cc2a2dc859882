//! Keeps Endpoints and EndpointSlices for Services with a selector.
//!
//! A pod counts with an address and while it has not finished. Endpoints hold the pods that do not end (all of them where
//! not ready ones are published), slices hold every pod with its conditions. A Service without a selector, or of type
//! ExternalName, is left alone: its endpoints are someone else's. Slices go with their Service by their owner reference;
//! Endpoints have none, as in Kubernetes, and are removed here.

use std::collections::{BTreeMap, HashMap};
use std::net::Ipv4Addr;
use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::super::kinds::endpointslice::{SERVICE_NAME, says_something_else};
use super::super::kinds::fields::{entries, flag, integer, list, text};
use super::super::kinds::service::{is_headless, type_of};
use super::super::object::{Key, Object, add_type, metadata};
use super::super::status::Status;
use super::super::storage::{Change, KindId};
use super::super::{Api, clock, meta};
use super::Again;

/// The label by which slices of this controller are known, and its value.
const SLICE_MANAGER: (&str, &str) = ("endpointslice.kubernetes.io/managed-by", "endpointslice-controller.k8s.io");
/// The same of Endpoints.
const MANAGER: (&str, &str) = ("endpoints.kubernetes.io/managed-by", "endpoint-controller");
const HEADLESS_LABEL: &str = "service.kubernetes.io/headless";
const ZONE: &str = "topology.kubernetes.io/zone";
/// Set where not all addresses are in the Endpoints.
const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";
/// Addresses of one Endpoints at most, ready ones first; the slices have all.
const ADDRESSES_MAX: usize = 1000;
/// Endpoints in one slice at most.
const SLICE_ENDPOINTS: usize = 100;

/// One pod behind a Service.
#[derive(Clone, Debug, PartialEq)]
struct Backend {
    /// What Endpoints hold of it.
    address: Value,
    /// What a slice holds of it.
    endpoint: Value,
    /// Whether Endpoints hold it, and as ready.
    listed: Option<bool>,
}

/// Backends by their ports, as JSON text: an order that does not change.
type Groups = BTreeMap<String, (Vec<Value>, Vec<Backend>)>;

/// The ids of the kinds.
#[derive(Clone, Copy)]
struct Kinds {
    services: KindId,
    pods: KindId,
    nodes: KindId,
    endpoints: KindId,
    slices: KindId,
}

impl Kinds {
    fn of(api: &Api) -> Option<Self> {
        Some(Self {
            services: api.storage.core("services")?,
            pods: api.storage.core("pods")?,
            nodes: api.storage.core("nodes")?,
            endpoints: api.storage.core("endpoints")?,
            slices: api.storage.find("discovery.k8s.io", "v1", "endpointslices")?,
        })
    }
}

/// Writes what differs, one commit a Service.
pub(super) async fn reconcile(api: &Arc<Api>) -> Result<Again, Status> {
    let kinds = Kinds::of(api).ok_or_else(|| Status::internal("the kinds of endpoints are not served"))?;
    for service in api.storage.list(kinds.services, None).1 {
        if changes(api, kinds, &service.key).is_empty() {
            continue;
        }
        // Decided again in the turn to write: what it is decided from stays so until the commit.
        let writer = api.storage.write().await;
        let changes = changes(api, kinds, &service.key);
        writer.commit(changes).await?;
    }
    let left = |endpoints: &Arc<Object>| {
        endpoints.label(MANAGER.0) == Some(MANAGER.1) && api.storage.get(kinds.services, &endpoints.key).is_none()
    };
    for endpoints in api.storage.list(kinds.endpoints, None).1.iter().filter(|endpoints| left(endpoints)) {
        let writer = api.storage.write().await;
        if let Some(now) = writer.get(kinds.endpoints, &endpoints.key).filter(left) {
            let last = now.value(api.storage.kind(kinds.endpoints));
            writer.commit(vec![Change::Delete(kinds.endpoints, last)]).await?;
        }
    }
    Ok(Again::OnChange)
}

/// What there is to write for one Service.
fn changes(api: &Api, kinds: Kinds, key: &Key) -> Vec<Change> {
    let storage = &api.storage;
    let Some(found) = storage.get(kinds.services, key).filter(|service| !service.deleting) else { return Vec::new() };
    let service = found.value(storage.kind(kinds.services));
    let selector: Vec<(&String, &Value)> = entries(&service, "/spec/selector").collect();
    if selector.is_empty() || type_of(&service) == "ExternalName" {
        return Vec::new();
    }
    let zones: HashMap<String, String> = storage
        .list(kinds.nodes, None)
        .1
        .iter()
        .filter_map(|node| Some((node.key.name.clone(), node.label(ZONE)?.to_owned())))
        .collect();
    let pods: Vec<Value> = storage
        .list(kinds.pods, Some(&key.namespace))
        .1
        .iter()
        .filter(|pod| selector.iter().all(|(label, value)| pod.label(label) == value.as_str()))
        .map(|pod| pod.value(storage.kind(kinds.pods)))
        .collect();
    let groups = groups(&service, &pods, &zones);
    let mut changes = Vec::new();
    let before = storage.get(kinds.endpoints, key).map(|one| one.value(storage.kind(kinds.endpoints)));
    let mut endpoints = before.clone().unwrap_or_else(|| json!({"metadata": new_metadata(api, key)}));
    set_endpoints(&mut endpoints, &service, &groups);
    add_type(&mut endpoints, storage.kind(kinds.endpoints));
    if before.as_ref() != Some(&endpoints) {
        changes.push(Change::Put(kinds.endpoints, endpoints));
    }
    let existing: Vec<Value> = storage
        .list(kinds.slices, Some(&key.namespace))
        .1
        .iter()
        .filter(|slice| {
            !slice.deleting
                && slice.label(SERVICE_NAME) == Some(&key.name)
                && slice.label(SLICE_MANAGER.0) == Some(SLICE_MANAGER.1)
                && slice.owners.contains(&found.uid)
        })
        .map(|slice| slice.value(storage.kind(kinds.slices)))
        .collect();
    let new = || {
        let name = meta::generated_name(&format!("{}-", key.name), rand::random::<u32>);
        let mut slice = json!({"metadata": new_metadata(api, &Key::new(&key.namespace, &name))});
        slice["metadata"]["generateName"] = format!("{}-", key.name).into();
        slice["metadata"]["generation"] = 1.into();
        slice["metadata"]["ownerReferences"] = json!([{
            "apiVersion": "v1", "kind": "Service", "name": key.name, "uid": found.uid,
            "controller": true, "blockOwnerDeletion": true,
        }]);
        add_type(&mut slice, storage.kind(kinds.slices));
        slice
    };
    for (put, slice) in slice_changes(existing, wanted_slices(&service, &groups), new) {
        changes.push(if put { Change::Put(kinds.slices, slice) } else { Change::Delete(kinds.slices, slice) });
    }
    changes
}

fn new_metadata(api: &Api, key: &Key) -> Value {
    json!({
        "name": key.name, "namespace": key.namespace, "uid": uuid::Uuid::new_v4().to_string(),
        "creationTimestamp": clock::rfc3339(api.now()),
    })
}

/// The pods behind a Service, by the ports they have for it.
fn groups(service: &Value, pods: &[Value], zones: &HashMap<String, String>) -> Groups {
    let mut groups = Groups::new();
    for pod in pods {
        let Some(backend) = backend(service, pod, zones) else { continue };
        let wanted = list(service, "/spec/ports");
        let ports: Vec<Value> = wanted.iter().filter_map(|port| endpoint_port(port, pod)).collect();
        if ports.is_empty() && !wanted.is_empty() {
            continue;
        }
        let name = Value::from(ports.clone()).to_string();
        groups.entry(name).or_insert_with(|| (ports, Vec::new())).1.push(backend);
    }
    groups
}

fn backend(service: &Value, pod: &Value, zones: &HashMap<String, String>) -> Option<Backend> {
    if matches!(text(pod, "/status/phase"), "Succeeded" | "Failed") {
        return None;
    }
    let addresses = list(pod, "/status/podIPs").iter().map(|one| text(one, "/ip"));
    let ip = addresses.chain([text(pod, "/status/podIP")]).find(|ip| ip.parse::<Ipv4Addr>().is_ok())?;
    let published = flag(service, "/spec/publishNotReadyAddresses");
    let terminating = pod["metadata"].get("deletionTimestamp").is_some();
    let serving = list(pod, "/status/conditions").iter().any(|one| one["type"] == "Ready" && one["status"] == "True");
    let target = json!({
        "kind": "Pod", "namespace": pod["metadata"]["namespace"], "name": pod["metadata"]["name"],
        "uid": pod["metadata"]["uid"],
    });
    let mut address = json!({"ip": ip, "targetRef": target});
    let mut endpoint = json!({
        "addresses": [ip],
        "conditions": {
            "ready": published || (serving && !terminating), "serving": serving, "terminating": terminating,
        },
        "targetRef": target,
    });
    let node = text(pod, "/spec/nodeName");
    if !node.is_empty() {
        address["nodeName"] = node.into();
        endpoint["nodeName"] = node.into();
        if let Some(zone) = zones.get(node) {
            endpoint["zone"] = zone.as_str().into();
        }
    }
    let hostname = text(pod, "/spec/hostname");
    if !hostname.is_empty() && text(pod, "/spec/subdomain") == text(service, "/metadata/name") {
        address["hostname"] = hostname.into();
        endpoint["hostname"] = hostname.into();
    }
    let listed = (!terminating || published).then_some(published || serving);
    Some(Backend { address, endpoint, listed })
}

/// The port of a pod that a Service's port leads to; `None` where the pod does not have the name.
fn endpoint_port(port: &Value, pod: &Value) -> Option<Value> {
    let protocol = text(port, "/protocol");
    let number = match &port["targetPort"] {
        Value::String(name) => list(pod, "/spec/containers")
            .iter()
            .chain(list(pod, "/spec/initContainers").iter().filter(|one| text(one, "/restartPolicy") == "Always"))
            .flat_map(|container| list(container, "/ports"))
            .find(|one| text(one, "/name") == name && text(one, "/protocol") == protocol)
            .and_then(|one| integer(one, "/containerPort"))?,
        number => number.as_i64()?,
    };
    let mut endpoint = json!({"name": text(port, "/name"), "port": number, "protocol": protocol});
    if let Some(application) = port.get("appProtocol") {
        endpoint["appProtocol"] = application.clone();
    }
    Some(endpoint)
}

fn set_endpoints(endpoints: &mut Value, service: &Value, groups: &Groups) {
    let count = |ready: bool| groups.values().flat_map(|(_, all)| all).filter(|one| one.listed == Some(ready)).count();
    let (ready, total) = (count(true), count(true) + count(false));
    let mut room = [ADDRESSES_MAX.saturating_sub(ready), ADDRESSES_MAX];
    let mut subsets = Vec::new();
    for (ports, backends) in groups.values() {
        let mut subset = Map::new();
        for (field, ready) in [("addresses", true), ("notReadyAddresses", false)] {
            let room = &mut room[usize::from(ready)];
            let all = backends.iter().filter(|one| one.listed == Some(ready)).map(|one| one.address.clone());
            let addresses: Vec<Value> = all.take(*room).collect();
            *room -= addresses.len();
            if !addresses.is_empty() {
                subset.insert(field.into(), addresses.into());
            }
        }
        if subset.is_empty() {
            continue;
        }
        // Here a port without a name has no such field.
        let ports: Vec<Value> = ports.iter().cloned().map(without_empty_name).collect();
        if !ports.is_empty() {
            subset.insert("ports".into(), ports.into());
        }
        subsets.push(Value::Object(subset));
    }
    let mut labels = own_labels(service);
    labels.insert(MANAGER.0.into(), MANAGER.1.into());
    let meta = metadata(endpoints);
    meta.insert("labels".into(), labels.into());
    let mut annotations = meta.get("annotations").and_then(Value::as_object).cloned().unwrap_or_default();
    if total > ADDRESSES_MAX {
        annotations.insert(OVER_CAPACITY.into(), "truncated".into());
    } else {
        annotations.remove(OVER_CAPACITY);
    }
    if annotations.is_empty() {
        meta.remove("annotations");
    } else {
        meta.insert("annotations".into(), annotations.into());
    }
    let Some(fields) = endpoints.as_object_mut() else { return };
    if subsets.is_empty() {
        fields.remove("subsets");
    } else {
        fields.insert("subsets".into(), subsets.into());
    }
}

fn without_empty_name(mut port: Value) -> Value {
    if text(&port, "/name").is_empty()
        && let Some(fields) = port.as_object_mut()
    {
        fields.remove("name");
    }
    port
}

/// The labels that endpoints take from their Service.
fn own_labels(service: &Value) -> Map<String, Value> {
    let mut labels = service["metadata"]["labels"].as_object().cloned().unwrap_or_default();
    if is_headless(service) {
        labels.insert(HEADLESS_LABEL.into(), "".into());
    }
    labels
}

/// What the slices say: everything of them that follows from Service and pods. One that is empty stands for no pods.
fn wanted_slices(service: &Value, groups: &Groups) -> Vec<Map<String, Value>> {
    let mut labels = own_labels(service);
    labels.insert(SERVICE_NAME.into(), service["metadata"]["name"].clone());
    labels.insert(SLICE_MANAGER.0.into(), SLICE_MANAGER.1.into());
    let slice = |ports: &[Value], endpoints: Vec<Value>| {
        let mut slice = Map::new();
        slice.insert("labels".into(), labels.clone().into());
        slice.insert("addressType".into(), "IPv4".into());
        slice.insert("endpoints".into(), endpoints.into());
        if !ports.is_empty() {
            slice.insert("ports".into(), ports.to_vec().into());
        }
        slice
    };
    let mut all = Vec::new();
    for (ports, backends) in groups.values() {
        for chunk in backends.chunks(SLICE_ENDPOINTS) {
            all.push(slice(ports, chunk.iter().map(|backend| backend.endpoint.clone()).collect()));
        }
    }
    if all.is_empty() {
        all.push(slice(&[], Vec::new()));
    }
    all
}

/// Slices to put (`true`) and to delete. One that says what is wanted stays; others are used again before new ones.
fn slice_changes(
    mut existing: Vec<Value>,
    wanted: Vec<Map<String, Value>>,
    new: impl Fn() -> Value,
) -> Vec<(bool, Value)> {
    let with = |mut slice: Value, wanted: &Map<String, Value>| {
        if let Some(fields) = slice.as_object_mut() {
            fields.remove("ports");
        }
        for (field, value) in wanted {
            match field.as_str() {
                "labels" => slice["metadata"]["labels"] = value.clone(),
                field => slice[field] = value.clone(),
            }
        }
        slice
    };
    let open: Vec<Map<String, Value>> = wanted
        .into_iter()
        .filter(|wanted| match existing.iter().position(|slice| with(slice.clone(), wanted) == *slice) {
            Some(same) => {
                existing.remove(same);
                false
            }
            None => true,
        })
        .collect();
    let mut changes = Vec::new();
    for wanted in &open {
        let slice = match existing.pop() {
            Some(before) => {
                let mut slice = with(before.clone(), wanted);
                if says_something_else(&slice, &before) {
                    let generation = before["metadata"]["generation"].as_i64().unwrap_or(0) + 1;
                    slice["metadata"]["generation"] = generation.into();
                }
                slice
            }
            None => with(new(), wanted),
        };
        changes.push((true, slice));
    }
    changes.extend(existing.into_iter().map(|slice| (false, slice)));
    changes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(number: u32, ready: bool) -> Value {
        json!({
            "metadata": {"name": format!("p{number}"), "namespace": "a", "uid": format!("u{number}")},
            "spec": {"nodeName": "n", "containers": [{"ports": [
                {"name": "web", "containerPort": 8000 + number / 1000, "protocol": "TCP"}]}]},
            "status": {
                "phase": "Running", "podIP": format!("10.0.{}.{}", number / 250, number % 250 + 1),
                "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}],
            },
        })
    }

    fn service(spec: Value) -> Value {
        json!({"metadata": {"name": "s", "namespace": "a", "labels": {"l": "v"}}, "spec": spec})
    }

    fn web() -> Value {
        json!({"ports": [{"port": 80, "protocol": "TCP", "targetPort": "web"}]})
    }

    fn zones() -> HashMap<String, String> {
        [("n".to_owned(), "z".to_owned())].into()
    }

    fn endpoints(service: &Value, pods: &[Value]) -> Value {
        let mut endpoints = json!({"metadata": {"name": "s"}});
        set_endpoints(&mut endpoints, service, &groups(service, pods, &zones()));
        endpoints
    }

    #[test]
    fn ready_pods_are_addresses_and_others_are_not_ready() {
        let mut ending = pod(3, true);
        ending["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        let mut finished = pod(4, true);
        finished["status"]["phase"] = json!("Succeeded");
        let pods = [pod(1, true), pod(2, false), ending, finished];
        let service = service(web());
        let subsets = &endpoints(&service, &pods)["subsets"];
        let target = |n: u32| json!({"kind": "Pod", "namespace": "a", "name": format!("p{n}"), "uid": format!("u{n}")});
        let expected = json!([{
            "addresses": [{"ip": "10.0.0.2", "nodeName": "n", "targetRef": target(1)}],
            "notReadyAddresses": [{"ip": "10.0.0.3", "nodeName": "n", "targetRef": target(2)}],
            "ports": [{"port": 8000, "protocol": "TCP"}],
        }]);
        assert_eq!(*subsets, expected);
        let slices = wanted_slices(&service, &groups(&service, &pods, &zones()));
        assert_eq!(slices.len(), 1);
        let conditions: Vec<&Value> = list(&slices[0]["endpoints"], "").iter().map(|one| &one["conditions"]).collect();
        assert_eq!(
            json!(conditions),
            json!([
                {"ready": true, "serving": true, "terminating": false},
                {"ready": false, "serving": false, "terminating": false},
                {"ready": false, "serving": true, "terminating": true},
            ])
        );
        assert_eq!(slices[0]["endpoints"][0]["zone"], "z");
        assert_eq!(slices[0]["ports"], json!([{"name": "", "port": 8000, "protocol": "TCP"}]));
    }

    #[test]
    fn a_headless_service_may_publish_pods_that_are_not_ready() {
        let service = service(json!({"clusterIP": "None", "clusterIPs": ["None"], "publishNotReadyAddresses": true}));
        let mut named = pod(1, false);
        named["spec"]["hostname"] = json!("h");
        named["spec"]["subdomain"] = json!("s");
        let endpoints = endpoints(&service, &[named]);
        assert_eq!(endpoints["subsets"][0]["addresses"][0]["hostname"], "h");
        assert!(endpoints["subsets"][0].get("ports").is_none());
        let labels = json!({"l": "v", HEADLESS_LABEL: "", MANAGER.0: MANAGER.1});
        assert_eq!(endpoints["metadata"]["labels"], labels);
    }

    #[test]
    fn pods_with_other_ports_stand_apart_and_those_without_nowhere() {
        let mut without = pod(1, true);
        without["spec"]["containers"] = json!([]);
        let service = service(web());
        let found = endpoints(&service, &[pod(0, true), pod(1000, true), without]);
        let ports: Vec<&Value> = list(&found, "/subsets").iter().map(|subset| &subset["ports"][0]["port"]).collect();
        assert_eq!(ports, [&json!(8000), &json!(8001)]);
        assert!(endpoints(&service, &[]).get("subsets").is_none());
    }

    #[test]
    fn endpoints_are_cut_at_their_bound_and_slices_are_not() {
        let pods: Vec<Value> = (0..1100).map(|number| pod(number % 1000, number >= 200)).collect();
        let service = service(json!({"ports": [{"port": 80, "protocol": "TCP", "targetPort": 80}]}));
        let found = endpoints(&service, &pods);
        let count = |field: &str| list(&found, &format!("/subsets/0/{field}")).len();
        assert_eq!((count("addresses"), count("notReadyAddresses")), (900, 100));
        assert_eq!(found["metadata"]["annotations"][OVER_CAPACITY], "truncated");
        let slices = wanted_slices(&service, &groups(&service, &pods, &zones()));
        assert_eq!(slices.iter().map(|slice| list(&slice["endpoints"], "").len()).sum::<usize>(), 1100);
        assert!(slices.iter().all(|slice| list(&slice["endpoints"], "").len() <= SLICE_ENDPOINTS));
    }

    #[test]
    fn slices_that_say_what_is_wanted_stay_and_others_are_used_again() {
        let service = service(web());
        let of = |numbers: &[u32]| {
            let pods: Vec<Value> = numbers.iter().map(|number| pod(*number, true)).collect();
            wanted_slices(&service, &groups(&service, &pods, &zones()))
        };
        let new = || json!({"metadata": {"name": "new", "generation": 1}});
        let first = slice_changes(Vec::new(), of(&[0, 1000]), new);
        assert_eq!(first.len(), 2);
        let stored: Vec<Value> = first.into_iter().map(|(_, slice)| slice).collect();
        assert!(slice_changes(stored.clone(), of(&[0, 1000]), new).is_empty());
        let changed = slice_changes(stored.clone(), of(&[0, 1001]), new);
        assert_eq!(changed.len(), 1);
        assert!(changed[0].0 && changed[0].1["metadata"]["generation"] == 2);
        // The last pod gone leaves one empty slice.
        let emptied = slice_changes(stored, of(&[]), new);
        assert_eq!(emptied.iter().filter(|(put, _)| *put).count(), 1);
        assert_eq!(emptied.len(), 2);
    }
}
