//! `metrics.k8s.io`: asks the nodes what they and their pods use, as a metrics-server does, when somebody asks.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use bytes::BytesMut;
use futures_util::{StreamExt as _, stream};
use serde_json::{Value, json};

use super::{Answer, Method, Request, log};
use crate::apiserver::Api;
use crate::apiserver::discovery::measured::{GROUP, VERSION};
use crate::apiserver::kubelet::Answered;
use crate::apiserver::object::Object;
use crate::apiserver::request::ResourcePath;
use crate::apiserver::selector::Selector;
use crate::apiserver::status::Status;

/// Nodes that are asked at the same time.
const AT_ONCE: usize = 16;
/// A node that has not answered by then is left out, as metrics-server leaves it out.
const ANSWER_WITHIN: Duration = Duration::from_secs(20);
/// A longer answer is none: a hundred pods take some 60 KiB.
const MAX_ANSWER: usize = 2 * 1024 * 1024;
/// What a rate is measured over at most; the edge says no more than that it is of the last seconds.
const WINDOW: &str = "10s";

/// The figures of nodes or pods; `None` when the path is another's or nodes cannot be asked.
pub(super) async fn serve(api: &Arc<Api>, request: &Request, path: &ResourcePath) -> Option<Result<Answer, Status>> {
    if (path.group.as_str(), path.version.as_str()) != (GROUP, VERSION) || api.kubelet_client.is_none() {
        return None;
    }
    Some(answer(api, request, path).await)
}

async fn answer(api: &Arc<Api>, request: &Request, path: &ResourcePath) -> Result<Answer, Status> {
    if path.subresource.is_some() {
        return Err(Status::no_such_resource());
    }
    if request.method != Method::Get || request.query.flag("watch") {
        return Err(Status::method_not_allowed());
    }
    let plural = path.resource.as_str();
    let id = ["nodes", "pods"].contains(&plural).then(|| api.storage.core(plural)).flatten();
    let id = id.ok_or_else(Status::no_such_resource)?;
    let (of_pods, kind) = (plural == "pods", api.storage.kind(id));
    if of_pods != path.namespace.is_some() && (path.name.is_some() || !of_pods) {
        return Err(Status::no_such_resource());
    }
    let text = |name| request.query.get(name).unwrap_or_default();
    let selector = Selector::parse(kind, &[], text("labelSelector"), text("fieldSelector"))?;
    let (_, mut objects) = api.storage.list(id, path.namespace.as_deref());
    objects.retain(|object| match &path.name {
        Some(name) => object.key.name == *name,
        None => selector.matches(object),
    });
    let mut nodes: Vec<String> = objects
        .iter()
        .map(|object| if of_pods { object.field("spec.nodeName") } else { object.key.name.clone() })
        .filter(|node| !node.is_empty())
        .collect();
    nodes.sort_unstable();
    nodes.dedup();
    let summaries = summaries(api, nodes).await;
    let measured = objects
        .iter()
        .filter_map(|object| if of_pods { pod_metrics(object, &summaries) } else { node_metrics(object, &summaries) });
    let kind = if of_pods { "PodMetrics" } else { "NodeMetrics" };
    if let Some(name) = &path.name {
        let Some(mut one) = measured.into_iter().next() else { return Err(not_found(plural, name)) };
        one["kind"] = kind.into();
        one["apiVersion"] = format!("{GROUP}/{VERSION}").into();
        return Ok(Answer::value(200, &one));
    }
    let items: Vec<Value> = measured.collect();
    let list = json!({"kind": format!("{kind}List"), "apiVersion": format!("{GROUP}/{VERSION}"), "metadata": {},
        "items": items});
    Ok(Answer::value(200, &list))
}

fn not_found(plural: &str, name: &str) -> Status {
    Status::new(404, "NotFound", format!("{plural}.{GROUP} \"{name}\" not found"))
}

/// What each node that answers says.
async fn summaries(api: &Arc<Api>, nodes: Vec<String>) -> BTreeMap<String, Value> {
    let asked = stream::iter(nodes).map(|node| async move {
        match tokio::time::timeout(ANSWER_WITHIN, summary(api, &node)).await {
            Ok(Ok(summary)) => Some((node, summary)),
            Ok(Err(why)) => {
                tracing::info!(node, "the node's figures are not known: {why}");
                None
            }
            Err(_) => {
                tracing::info!(node, "the node's figures are not known: no answer within {ANSWER_WITHIN:?}");
                None
            }
        }
    });
    asked.buffer_unordered(AT_ONCE).filter_map(std::future::ready).collect().await
}

async fn summary(api: &Arc<Api>, node: &str) -> Result<Value, String> {
    let kubelet = log::kubelet_of(api, node).map_err(|status| status.message)?;
    let permit = log::permit(api).map_err(|status| status.message)?;
    // The gateway stands for every node: the path says which is meant.
    let path = format!("/nodes/{node}/stats/summary?only_cpu_and_memory=true");
    let closing = api.storage.closing().clone();
    let mut body = match kubelet.get(&path, permit, closing).await? {
        Answered::Body(body) => body,
        Answered::Refused(code, text) => return Err(format!("{code}: {text}")),
    };
    let mut bytes = BytesMut::new();
    while let Some(chunk) = body.next().await {
        let chunk = chunk.map_err(|error| error.to_string())?;
        if bytes.len() + chunk.len() > MAX_ANSWER {
            return Err(format!("its answer is longer than {MAX_ANSWER} bytes"));
        }
        bytes.extend_from_slice(&chunk);
    }
    serde_json::from_slice(&bytes).map_err(|error| format!("its answer cannot be read: {error}"))
}

fn node_metrics(node: &Object, summaries: &BTreeMap<String, Value>) -> Option<Value> {
    let own = &summaries.get(&node.key.name)?["node"];
    let (usage, at) = usage(own)?;
    Some(json!({"metadata": metadata(node), "timestamp": at, "window": WINDOW, "usage": usage}))
}

/// A pod is measured when each of its containers that run is.
fn pod_metrics(pod: &Object, summaries: &BTreeMap<String, Value>) -> Option<Value> {
    let pods = summaries.get(&pod.field("spec.nodeName"))?["pods"].as_array()?;
    let own = pods.iter().find(|one| one["podRef"]["uid"] == *pod.uid)?;
    let mut timestamp = None;
    let mut containers = Vec::new();
    for container in own["containers"].as_array()? {
        let (usage, at) = usage(container)?;
        timestamp.get_or_insert(at);
        containers.push(json!({"name": container["name"], "usage": usage}));
    }
    let timestamp = timestamp?;
    Some(json!({"metadata": metadata(pod), "timestamp": timestamp, "window": WINDOW, "containers": containers}))
}

fn metadata(object: &Object) -> Value {
    let mut metadata = json!({"name": object.key.name});
    if !object.key.namespace.is_empty() {
        metadata["namespace"] = object.key.namespace.clone().into();
    }
    if !object.labels.is_empty() {
        let labels = object.labels.iter().map(|(key, value)| (key.clone(), Value::from(value.clone())));
        metadata["labels"] = Value::Object(labels.collect());
    }
    metadata
}

/// Usage in metrics-server's units, and when it was measured; without a rate there is none.
fn usage(of: &Value) -> Option<(Value, Value)> {
    let cpu = of["cpu"]["usageNanoCores"].as_u64()?;
    let memory = of["memory"]["workingSetBytes"].as_u64()?;
    Some((json!({"cpu": format!("{cpu}n"), "memory": format!("{}Ki", memory / 1024)}), of["cpu"]["time"].clone()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apiserver::kinds;

    fn object(plural: &str, value: &Value) -> Object {
        Object::new(kinds::kinds().iter().find(|kind| kind.plural == plural).unwrap(), value)
    }

    #[test]
    fn figures_are_written_as_a_metrics_server_writes_them() {
        let measured = |cores: Value| {
            json!({"name": "c", "cpu": {"time": "t", "usageNanoCores": cores},
            "memory": {"workingSetBytes": 4097}})
        };
        let pod = |uid: &str, cores: Value| json!({"podRef": {"uid": uid}, "containers": [measured(cores)]});
        let summary = json!({"node": measured(5.into()), "pods": [pod("u", 7.into()), pod("new", Value::Null)]});
        let summaries = BTreeMap::from([("edge-1".to_owned(), summary)]);
        let usage = |cpu: &str| json!({"cpu": cpu, "memory": "4Ki"});

        let node = object("nodes", &json!({"metadata": {"name": "edge-1", "labels": {"a": "b"}}}));
        let expected = json!({"metadata": {"name": "edge-1", "labels": {"a": "b"}}, "timestamp": "t", "window": "10s",
            "usage": usage("5n")});
        assert_eq!(node_metrics(&node, &summaries), Some(expected));
        let offline = object("nodes", &json!({"metadata": {"name": "edge-2"}}));
        assert_eq!(node_metrics(&offline, &summaries), None);

        let of = |uid: &str, node: &str| {
            let value = json!({"metadata": {"name": "p", "namespace": "ns", "uid": uid}, "spec": {"nodeName": node}});
            pod_metrics(&object("pods", &value), &summaries)
        };
        let expected = json!({"metadata": {"name": "p", "namespace": "ns"}, "timestamp": "t", "window": "10s",
            "containers": [{"name": "c", "usage": usage("7n")}]});
        assert_eq!(of("u", "edge-1"), Some(expected));
        // Without a rate yet, of another life, on another node, on none.
        for (uid, node) in [("new", "edge-1"), ("other", "edge-1"), ("u", "edge-2"), ("u", "")] {
            assert_eq!(of(uid, node), None, "{uid} {node}");
        }
    }
}
