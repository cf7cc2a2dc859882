//! The node, the pod and its page.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use futures_util::TryFutureExt;
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::{
    Api, Client,
    api::{DeleteParams, PostParams},
    runtime::{
        conditions,
        wait::{Condition, await_condition},
    },
};
use kubeedge_examples::{
    http,
    lab::{self, Lab},
};

use crate::kubectl;

/// What is applied; `IMAGE` stands for the image.
const MANIFEST: &str = include_str!("demo.yaml");
/// The pod's name there.
pub(crate) const POD: &str = "web";
/// The ConfigMap's name there.
pub(crate) const CONFIG_MAP: &str = "page";
const NAMESPACE: &str = "default";
const PORT: u16 = 8080;

/// From the pod's creation until it runs, the image's way over loopback included.
const POD_LIMIT: Duration = Duration::from_secs(60);
/// The program in the pod opens its port some milliseconds after its start.
const PAGE_LIMIT: Duration = Duration::from_secs(10);
/// From the deletion until the object is gone: grace of a second, and the end of a sandbox.
const DELETE_LIMIT: Duration = Duration::from_secs(40);

/// A pod that runs.
pub(crate) struct Running {
    pub(crate) uid: String,
    pub(crate) address: IpAddr,
}

/// Waits until the node is Ready; returns its version.
pub(crate) async fn node_ready(client: Client) -> Result<String> {
    let info = lab::node_ready(client).await?.status.and_then(|status| status.node_info);
    Ok(info.map(|info| info.kubelet_version).unwrap_or_default())
}

/// Applies the manifest: with kubectl if it is there, as a person would, else through the API.
pub(crate) async fn apply(lab: &Lab) -> Result<()> {
    let manifest = MANIFEST.replace("IMAGE", &lab.busybox()?);
    if kubectl::apply(lab, "demo.yaml", &manifest).await? {
        return Ok(());
    }
    let (map, pod) = manifest.split_once("\n---\n").context("the manifest has two documents")?;
    let (map, pod): (ConfigMap, Pod) = (serde_saphyr::from_str(map)?, serde_saphyr::from_str(pod)?);
    let client = lab.client()?;
    Api::namespaced(client.clone(), NAMESPACE)
        .create(&PostParams::default(), &map)
        .await
        .context("create ConfigMap")?;
    Api::namespaced(client, NAMESPACE).create(&PostParams::default(), &pod).await.context("create pod")?;
    Ok(())
}

/// Waits until the pod runs.
pub(crate) async fn pod_running(client: Client) -> Result<Running> {
    let api = Api::<Pod>::namespaced(client, NAMESPACE);
    let running = |pod: Option<&Pod>| {
        conditions::is_pod_running().matches_object(pod)
            && pod.and_then(|pod| pod.status.as_ref()).is_some_and(|status| status.pod_ip.is_some())
    };
    let otherwise = format!("pod {POD} is not Running");
    let waited = within(POD_LIMIT, &otherwise, async {
        await_condition(api.clone(), POD, running).await.context("watch the pod")
    });
    let pod = match waited.await {
        Ok(pod) => pod.context("the pod is gone")?,
        Err(error) => {
            // Its status says why.
            let pod = api.get(POD).await;
            let status = pod.ok().and_then(|pod| pod.status).and_then(|status| serde_json::to_string(&status).ok());
            return Err(error.context(format!("status: {}", status.unwrap_or_default())));
        }
    };
    let address = pod.status.and_then(|status| status.pod_ip).context("no pod IP")?;
    Ok(Running {
        uid: pod.metadata.uid.context("the pod has no uid")?,
        address: address.parse().with_context(|| format!("pod IP {address:?}"))?,
    })
}

/// Fetches the page and checks that it is the ConfigMap's.
pub(crate) async fn page(pod: &Running) -> Result<String> {
    let address = SocketAddr::new(pod.address, PORT);
    let answer = within(PAGE_LIMIT, &format!("no page from http://{address}/"), async {
        let mut tick = tokio::time::interval(Duration::from_millis(50));
        loop {
            tick.tick().await;
            // Refused until the program listens.
            if let Ok(answer) = http::get(address, "/").await {
                return Ok(answer);
            }
        }
    })
    .await?;
    ensure!(answer.status == 200, "http://{address}/ answered {}", answer.status);
    let map: ConfigMap = serde_saphyr::from_str(MANIFEST.split("\n---\n").next().unwrap_or_default())?;
    let expected = map.data.as_ref().and_then(|data| data.get("index.html")).context("the ConfigMap has a page")?;
    let body = String::from_utf8_lossy(&answer.body);
    ensure!(body == expected.as_str(), "http://{address}/ served {body:?}, expected the ConfigMap's page");
    Ok(format!("http://{address}/ serves the ConfigMap ({} bytes)", answer.body.len()))
}

/// Deletes the pod and waits until it is gone from the API.
pub(crate) async fn delete(client: Client) -> Result<()> {
    let api = Api::<Pod>::namespaced(client, NAMESPACE);
    let deleted = api.delete(POD, &DeleteParams::default()).await.context("delete the pod")?;
    let uid = deleted.left().and_then(|pod| pod.metadata.uid).unwrap_or_default();
    within(DELETE_LIMIT, &format!("pod {POD} is not gone"), async {
        await_condition(api, POD, conditions::is_deleted(&uid)).await.context("watch the pod")
    })
    .map_ok(drop)
    .await
}

async fn within<T>(limit: Duration, otherwise: &str, work: impl Future<Output = Result<T>>) -> Result<T> {
    match tokio::time::timeout(limit, work).await {
        Ok(done) => done,
        Err(_) => anyhow::bail!("{otherwise} within {limit:?}"),
    }
}
