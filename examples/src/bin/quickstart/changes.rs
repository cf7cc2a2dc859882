//! What happens in the cluster, a line for each change.

use std::{collections::HashMap, pin::pin};

use anyhow::Result;
use futures_util::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::core::v1::{ConfigMap, Node, Pod};
use kube::{
    Api, Client, ResourceExt,
    runtime::{WatchStreamExt, watcher},
};

/// Shows changes of nodes, pods and ConfigMaps for ever; a watch that breaks is taken up again.
pub(crate) async fn show(client: Client) -> Result<()> {
    let nodes = watcher(Api::<Node>::all(client.clone()), watcher::Config::default())
        .default_backoff()
        .map_ok(|event| told("node", event, node));
    let pods = watcher(Api::<Pod>::all(client.clone()), watcher::Config::default())
        .default_backoff()
        .map_ok(|event| told("pod", event, pod));
    let maps = watcher(Api::<ConfigMap>::all(client), watcher::Config::default())
        .default_backoff()
        .try_filter(|event| std::future::ready(!is_root_ca(event)))
        .map_ok(|event| told("configmap", event, config_map));
    let mut all = pin!(stream::select(nodes, stream::select(pods, maps)));
    let mut last = HashMap::new();
    while let Some(event) = all.next().await {
        match event {
            Ok(Some(Told { name, state: Some(state) })) => {
                if last.insert(name.clone(), state.clone()).as_ref() != Some(&state) {
                    println!("{}  {name}: {state}", now());
                }
            }
            Ok(Some(Told { name, state: None })) => {
                last.remove(&name);
                println!("{}  {name}: deleted", now());
            }
            Ok(None) => {}
            Err(error) => println!("{}  watch: {error}", now()),
        }
    }
    Ok(())
}

/// An object and what is worth saying about it; nothing once it is deleted.
struct Told {
    name: String,
    state: Option<String>,
}

fn told<K: ResourceExt>(kind: &str, event: watcher::Event<K>, state: impl Fn(&K) -> String) -> Option<Told> {
    let name = |object: &K| match object.namespace() {
        Some(namespace) => format!("{kind} {namespace}/{}", object.name_any()),
        None => format!("{kind} {}", object.name_any()),
    };
    match event {
        watcher::Event::Apply(object) | watcher::Event::InitApply(object) => {
            Some(Told { name: name(&object), state: Some(state(&object)) })
        }
        watcher::Event::Delete(object) => Some(Told { name: name(&object), state: None }),
        watcher::Event::Init | watcher::Event::InitDone => None,
    }
}

fn node(node: &Node) -> String {
    let conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let ready =
        conditions.filter(|condition| condition.type_ == "Ready").map(|condition| condition.status.as_str()).next();
    match ready {
        Some("True") => "Ready".to_owned(),
        Some("False") => "not Ready".to_owned(),
        _ => "Ready is not known".to_owned(),
    }
}

fn pod(pod: &Pod) -> String {
    let status = pod.status.as_ref();
    let phase = status.and_then(|status| status.phase.as_deref()).unwrap_or("Pending");
    let restarts: i32 =
        status.iter().flat_map(|status| status.container_statuses.iter().flatten()).map(|it| it.restart_count).sum();
    let ending = if pod.metadata.deletion_timestamp.is_some() { ", ending" } else { "" };
    let address = status.and_then(|status| status.pod_ip.as_deref()).map(|ip| format!(" at {ip}")).unwrap_or_default();
    let restarts = if restarts == 0 { String::new() } else { format!(", {restarts} restarts") };
    format!("{phase}{address}{restarts}{ending}")
}

fn config_map(map: &ConfigMap) -> String {
    let keys: Vec<_> = map.data.iter().flatten().map(|(key, text)| format!("{key} ({} bytes)", text.len())).collect();
    format!("version {}: {}", map.resource_version().unwrap_or_default(), keys.join(", "))
}

/// Every namespace has one.
fn is_root_ca(event: &watcher::Event<ConfigMap>) -> bool {
    match event {
        watcher::Event::Apply(map) | watcher::Event::InitApply(map) | watcher::Event::Delete(map) => {
            map.metadata.name.as_deref() == Some("kube-root-ca.crt")
        }
        _ => false,
    }
}

/// The time of day, UTC.
fn now() -> String {
    let seconds = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    format!("{:02}:{:02}:{:02}Z", seconds / 3600 % 24, seconds / 60 % 60, seconds % 60)
}
