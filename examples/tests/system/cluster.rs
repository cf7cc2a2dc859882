//! What the scenarios do with a cluster: apply manifests, await states, ask pods.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::api::core::v1::{ConfigMap, ContainerStatus, Event, Pod, Secret, Service};
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, ListParams, ObjectMeta, Patch, PatchParams, PostParams},
    runtime::wait::{Condition, await_condition, conditions},
};
use kubeedge_examples::{
    http,
    lab::{self, Container, Lab, NODE},
    leftovers::cgroups_naming,
};
use serde_json::json;

/// For one state to come about. A pod takes about a second; CI machines are slow and shared.
const LIMIT: Duration = Duration::from_secs(60);
/// Between two looks at what cannot be watched.
pub(crate) const TICK: Duration = Duration::from_millis(50);
/// The namespace of all scenarios.
pub(crate) const NAMESPACE: &str = "default";
/// The port of the pods that serve pages.
pub(crate) const PORT: u16 = 8080;

/// Creates everything in a manifest; `IMAGE` in it stands for the lab's busybox.
pub(crate) async fn apply(lab: &Lab, manifest: &str) -> Result<()> {
    let client = lab.client()?;
    let manifest = manifest.replace("IMAGE", &lab.busybox()?);
    for document in manifest.split("\n---\n") {
        // File modes are written as 0640.
        let options = serde_saphyr::options! { legacy_octal_numbers: true };
        let object: serde_json::Value = serde_saphyr::from_str_with_options(document, options)?;
        let create = PostParams::default();
        match object["kind"].as_str() {
            Some("ConfigMap") => {
                let object: ConfigMap = serde_json::from_value(object)?;
                Api::namespaced(client.clone(), NAMESPACE).create(&create, &object).await.map(drop)
            }
            Some("Secret") => {
                let object: Secret = serde_json::from_value(object)?;
                Api::namespaced(client.clone(), NAMESPACE).create(&create, &object).await.map(drop)
            }
            Some("Service") => {
                let object: Service = serde_json::from_value(object)?;
                Api::namespaced(client.clone(), NAMESPACE).create(&create, &object).await.map(drop)
            }
            Some("Pod") => {
                let mut object: Pod = serde_json::from_value(object)?;
                object.spec.get_or_insert_default().node_name = Some(NODE.to_owned());
                pods(&client).create(&create, &object).await.map(drop)
            }
            other => bail!("a manifest with the kind {other:?}"),
        }
        .with_context(|| format!("create {document}"))?;
    }
    Ok(())
}

/// Pods of the scenarios' namespace.
pub(crate) fn pods(client: &Client) -> Api<Pod> {
    Api::namespaced(client.clone(), NAMESPACE)
}

/// Awaits a state of a pod; the error says which one it stays in.
pub(crate) async fn until_pod(
    client: &Client,
    name: &str,
    what: &str,
    condition: impl Fn(&Pod) -> bool + Send,
) -> Result<Pod> {
    let api = pods(client);
    let waited = await_condition(api.clone(), name, |pod: Option<&Pod>| pod.is_some_and(&condition));
    match tokio::time::timeout(LIMIT, waited).await {
        Ok(pod) => pod.with_context(|| format!("watch pod {name}"))?.context("the pod is gone"),
        Err(_) => {
            let last = api.get_opt(name).await?.and_then(|pod| pod.status);
            bail!("pod {name} within {LIMIT:?}: expected {what}; its status is {}", serde_json::to_string(&last)?)
        }
    }
}

/// Awaits that a pod runs, with an address.
pub(crate) async fn running(client: &Client, name: &str) -> Result<Pod> {
    until_pod(client, name, "Running and ready, with an address", |pod| {
        conditions::is_pod_running().matches_object(Some(pod)) && pod_ip(pod).is_some() && all_ready(pod)
    })
    .await
}

fn all_ready(pod: &Pod) -> bool {
    let wanted = pod.spec.as_ref().map_or(0, |spec| spec.containers.len());
    let statuses = statuses(pod);
    statuses.len() == wanted && statuses.iter().all(|status| status.ready)
}

/// Awaits that this very pod is gone from the API.
pub(crate) async fn gone(client: &Client, name: &str, uid: &str) -> Result<()> {
    let waited = await_condition(pods(client), name, conditions::is_deleted(uid));
    match tokio::time::timeout(LIMIT, waited).await {
        Ok(waited) => waited.with_context(|| format!("watch pod {name}")).map(drop),
        Err(_) => bail!("pod {name} is not gone within {LIMIT:?}"),
    }
}

/// Asks for a pod's deletion with a grace.
pub(crate) async fn delete(client: &Client, name: &str, grace_seconds: u32) -> Result<()> {
    let parameters = DeleteParams { grace_period_seconds: Some(grace_seconds), ..DeleteParams::default() };
    pods(client).delete(name, &parameters).await.with_context(|| format!("delete pod {name}")).map(drop)
}

/// Awaits that the node is Ready.
pub(crate) async fn node_ready(client: &Client) -> Result<()> {
    lab::node_ready(client.clone()).await.map(drop)
}

/// Replaces the data of a ConfigMap, or makes it.
pub(crate) async fn write_config(client: &Client, name: &str, data: &[(&str, &str)]) -> Result<()> {
    let api = Api::<ConfigMap>::namespaced(client.clone(), NAMESPACE);
    let data: std::collections::BTreeMap<_, _> =
        data.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect();
    if api.get_opt(name).await?.is_some() {
        api.patch(name, &PatchParams::default(), &Patch::Merge(json!({ "data": data }))).await?;
    } else {
        let metadata = ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() };
        let map = ConfigMap { metadata, data: Some(data), ..ConfigMap::default() };
        api.create(&PostParams::default(), &map).await?;
    }
    Ok(())
}

/// A pod's uid.
pub(crate) fn uid(pod: &Pod) -> Result<String> {
    pod.uid().context("the pod has no uid")
}

fn pod_ip(pod: &Pod) -> Option<IpAddr> {
    pod.status.as_ref()?.pod_ip.as_ref()?.parse().ok()
}

/// Where a pod serves pages.
pub(crate) fn address(pod: &Pod) -> Result<SocketAddr> {
    Ok(SocketAddr::new(pod_ip(pod).context("the pod has no address")?, PORT))
}

/// The statuses of a pod's containers.
pub(crate) fn statuses(pod: &Pod) -> &[ContainerStatus] {
    pod.status.as_ref().and_then(|status| status.container_statuses.as_deref()).unwrap_or_default()
}

/// The status of a pod's first container.
pub(crate) fn first(pod: &Pod) -> Option<&ContainerStatus> {
    statuses(pod).first()
}

/// Why a pod's first container waits.
pub(crate) fn waits_for(pod: &Pod) -> Option<(&str, &str)> {
    let waiting = first(pod)?.state.as_ref()?.waiting.as_ref()?;
    Some((waiting.reason.as_deref()?, waiting.message.as_deref().unwrap_or_default()))
}

/// How often a pod's first container was started again.
pub(crate) fn restarts(pod: &Pod) -> i32 {
    first(pod).map_or(-1, |status| status.restart_count)
}

/// Polls until `look` has something; the error says what was seen last.
pub(crate) async fn poll<T>(what: &str, mut look: impl AsyncFnMut() -> Result<Result<T, String>>) -> Result<T> {
    let deadline = tokio::time::Instant::now() + LIMIT;
    let mut tick = tokio::time::interval(TICK);
    loop {
        tick.tick().await;
        match look().await? {
            Ok(seen) => return Ok(seen),
            Err(seen) if tokio::time::Instant::now() > deadline => {
                bail!("within {LIMIT:?}: expected {what}; seen: {seen}")
            }
            Err(_) => {}
        }
    }
}

/// Awaits events about this very pod, as `kubectl describe pod` shows them: type, reason, and a part of the message.
pub(crate) async fn tells(client: &Client, pod: &Pod, wanted: &[(&str, &str, &str)]) -> Result<()> {
    let events = Api::<Event>::namespaced(client.clone(), NAMESPACE);
    let about = ListParams::default().fields(&format!("involvedObject.uid={}", uid(pod)?));
    poll(&format!("events {wanted:?} about pod {}", pod.name_any()), async || {
        let told = events.list(&about).await?.items;
        let is = |event: &Event, (type_, reason, message): (&str, &str, &str)| {
            let said = event.message.as_deref().unwrap_or_default();
            event.type_.as_deref() == Some(type_) && event.reason.as_deref() == Some(reason) && said.contains(message)
        };
        let all = wanted.iter().all(|wanted| told.iter().any(|event| is(event, *wanted)));
        let seen = || told.iter().map(|event| (&event.type_, &event.reason, &event.message)).collect::<Vec<_>>();
        Ok(if all { Ok(()) } else { Err(format!("{:?}", seen())) })
    })
    .await
}

/// A condition of a pod: its status, reason and message.
pub(crate) fn condition<'a>(pod: &'a Pod, type_: &str) -> Option<(&'a str, &'a str, &'a str)> {
    let found = pod.status.as_ref()?.conditions.as_ref()?.iter().find(|condition| condition.type_ == type_)?;
    let text = |text: &'a Option<String>| text.as_deref().unwrap_or_default();
    Some((&found.status, text(&found.reason), text(&found.message)))
}

/// Fetches a page until it is served at all.
pub(crate) async fn page(pod: &Pod, path: &str) -> Result<String> {
    let address = address(pod)?;
    let answer = poll(&format!("http://{address}{path} answers"), async || {
        Ok(http::get(address, path).await.map_err(|error| format!("{error:#}")))
    })
    .await?;
    ensure!(answer.status == 200, "http://{address}{path} answered {}", answer.status);
    Ok(String::from_utf8_lossy(&answer.body).into_owned())
}

/// Polls a page until it is this text: a change reaches a mounted file some time after the API.
pub(crate) async fn page_becomes(pod: &Pod, path: &str, text: &str) -> Result<()> {
    poll(&format!("{path} is {text:?}"), async || {
        let seen = page(pod, path).await?;
        Ok(if seen == text { Ok(()) } else { Err(seen) })
    })
    .await
}

/// Polls the log of a program until it says this, after the first `from` bytes.
pub(crate) async fn log_says(lab: &Lab, program: &str, from: usize, parts: &[&str]) -> Result<String> {
    poll(&format!("the log of {program} says {parts:?}"), async || {
        let log = lab.log(program)?;
        let news = log.get(from..).unwrap_or_default();
        let found = news.lines().find(|line| parts.iter().all(|part| line.contains(part)));
        Ok(found.map(str::to_owned).ok_or_else(|| news.to_owned()))
    })
    .await
}

/// The one container of a pod that runs under this name.
pub(crate) async fn container(lab: &Lab, pod_uid: &str, name: &str) -> Result<Container> {
    let all = lab.containers(pod_uid).await?;
    let mut of_name = all.iter().filter(|container| container.name == name && container.running);
    match (of_name.next(), of_name.next()) {
        (Some(one), None) => Ok(one.clone()),
        _ => bail!("expected one running container {name}, the runtime has {all:?}"),
    }
}

/// Checks that a pod has one sandbox.
pub(crate) async fn one_sandbox(lab: &Lab, pod_uid: &str) -> Result<String> {
    let (ids, ready) = lab.sandboxes(pod_uid).await?;
    match (ids.as_slice(), ready) {
        ([one], 1) => Ok(one.clone()),
        _ => bail!("expected one sandbox that is ready, there are {ids:?} and {ready} of them ready"),
    }
}

/// Checks that nothing of a pod is left on the machine.
pub(crate) async fn nothing_left(lab: &Lab, pod_uid: &str) -> Result<()> {
    let (sandboxes, _) = lab.sandboxes(pod_uid).await?;
    let containers = lab.containers(pod_uid).await?;
    ensure!(
        sandboxes.is_empty() && containers.is_empty(),
        "the pod is gone from the API and the runtime still has {sandboxes:?} {containers:?}"
    );
    let groups = cgroups_naming(pod_uid)?;
    ensure!(groups.is_empty(), "the pod is gone from the API and its control groups are not: {groups:?}");
    Ok(())
}

/// Awaits that nothing of a pod is left on the machine, which the API did not wait for: one that has failed, or is deleted
/// without a grace period, is gone there first.
pub(crate) async fn nothing_stays(lab: &Lab, pod_uid: &str) -> Result<()> {
    let left = async || Ok(nothing_left(lab, pod_uid).await.map_err(|left| format!("{left:#}")));
    poll("nothing of the pod is left", left).await
}
