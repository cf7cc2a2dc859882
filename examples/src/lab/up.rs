//! From nothing to a node that is Ready.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use k8s_openapi::api::core::v1::Node;
use kube::{Api, Client, runtime::wait::await_condition};

use super::{Lab, NODE};
use crate::containerd::Tools;

/// From the start of edgecore to a node that is Ready: a second or so, but CI machines are slow and shared.
const NODE_LIMIT: Duration = Duration::from_secs(60);

impl Lab {
    /// Starts everything, edgecore last, and waits until its node is Ready.
    pub async fn up(&mut self, tools: Tools) -> Result<()> {
        self.start_registry()?;
        self.start_containerd(tools).await?;
        self.start_cloud().await?;
        self.join().await?;
        self.start_edge()?;
        self.guarded(async |lab| node_ready(lab.client()?).await.map(drop)).await
    }
}

/// Waits until the node is Ready.
pub async fn node_ready(client: Client) -> Result<Node> {
    let ready = |node: Option<&Node>| {
        let conditions = node.and_then(|node| node.status.as_ref()?.conditions.as_ref());
        conditions.into_iter().flatten().any(|it| it.type_ == "Ready" && it.status == "True")
    };
    match tokio::time::timeout(NODE_LIMIT, await_condition(Api::<Node>::all(client), NODE, ready)).await {
        Ok(waited) => waited.context("watch the node")?.context("the node is gone"),
        Err(_) => bail!("node {NODE} is not Ready within {NODE_LIMIT:?}"),
    }
}
