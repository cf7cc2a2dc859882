//! Looks at the lab from outside: the container runtime itself, the logs, `kubectl`.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use kubeedge_proto::cri::{
    ListPodSandboxRequest, PodSandboxFilter, PodSandboxState, StopContainerRequest, StopPodSandboxRequest,
};

use super::Lab;
use crate::containerd::{Container, PrivateContainerd, by_uid};

impl Lab {
    /// The container runtime.
    pub fn containerd(&self) -> Result<&PrivateContainerd> {
        self.containerd.as_ref().context("containerd does not run")
    }

    /// Ids of a pod's sandboxes, whatever their state; the number of those that are ready.
    pub async fn sandboxes(&self, pod_uid: &str) -> Result<(Vec<String>, usize)> {
        let filter = PodSandboxFilter { label_selector: by_uid(pod_uid), ..PodSandboxFilter::default() };
        let listed =
            self.containerd()?.cri().await?.list_pod_sandbox(ListPodSandboxRequest { filter: Some(filter) }).await?;
        let items = listed.into_inner().items;
        let ready = items.iter().filter(|item| item.state() == PodSandboxState::SandboxReady).count();
        Ok((items.into_iter().map(|item| item.id).collect(), ready))
    }

    /// The pods of all sandboxes that the runtime has, whatever their state: one uid for each sandbox, sorted.
    pub async fn pods_in_runtime(&self) -> Result<Vec<String>> {
        let listed = self.containerd()?.cri().await?.list_pod_sandbox(ListPodSandboxRequest::default()).await?;
        let items = listed.into_inner().items.into_iter();
        let mut uids: Vec<String> = items.map(|item| item.metadata.unwrap_or_default().uid).collect();
        uids.sort();
        Ok(uids)
    }

    /// A pod's containers, whatever their state, the first started first.
    pub async fn containers(&self, pod_uid: &str) -> Result<Vec<Container>> {
        self.containerd()?.containers(pod_uid).await
    }

    /// Runs a command in a container; what it printed on standard output.
    pub async fn exec(&self, container_id: &str, command: &[&str]) -> Result<String> {
        self.containerd()?.exec(container_id, command).await
    }

    /// Kills a container behind edgecore's back.
    pub async fn kill_container(&self, container_id: &str) -> Result<()> {
        let request = StopContainerRequest { container_id: container_id.to_owned(), timeout: 0 };
        self.containerd()?.cri().await?.stop_container(request).await.context("kill a container").map(drop)
    }

    /// Stops a sandbox and what is in it behind edgecore's back.
    pub async fn kill_sandbox(&self, sandbox_id: &str) -> Result<()> {
        let request = StopPodSandboxRequest { pod_sandbox_id: sandbox_id.to_owned() };
        self.containerd()?.cri().await?.stop_pod_sandbox(request).await.context("kill a sandbox").map(drop)
    }

    /// The folder of a pod's container logs.
    pub fn pod_logs(&self, namespace: &str, name: &str, uid: &str) -> PathBuf {
        self.folder.join("edge/logs/pods").join(format!("{namespace}_{name}_{uid}"))
    }

    /// Everything that all runs of `program` (`cloudcore` or `edgecore`) wrote to the log.
    pub fn log(&self, program: &str) -> Result<String> {
        read(&self.folder.join(format!("{program}.log")))
    }
}

fn read(path: &Path) -> Result<String> {
    let bytes = fs::read(path).with_context(|| format!("read {}", path.display()))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
