//! Looks at the lab from outside: the container runtime itself, the logs, `kubectl`.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use kubeedge_proto::cri::{
    ContainerFilter, ContainerState, ContainerStatus, ContainerStatusRequest, ExecSyncRequest, ListContainersRequest,
    ListPodSandboxRequest, PodSandboxFilter, PodSandboxState, StopContainerRequest,
};
use tokio::process::Command;

use super::Lab;
use crate::{
    containerd::PrivateContainerd,
    process::{find_program, search_path},
};

/// The label by which a runtime knows a pod's sandboxes and containers.
const POD_UID: &str = "io.kubernetes.pod.uid";
/// Bound of a command in a container, seconds.
const EXEC_LIMIT: i64 = 20;

/// A container as the runtime has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Container {
    /// Its id.
    pub id: String,
    /// Its name in the pod.
    pub name: String,
    /// Which start of this name it is, from 0.
    pub attempt: u32,
    /// Whether it runs.
    pub running: bool,
    /// When it was started, nanoseconds of Unix time.
    pub started_at: i64,
}

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
        let mut cri = self.containerd()?.cri().await?;
        let filter = ContainerFilter { label_selector: by_uid(pod_uid), ..ContainerFilter::default() };
        let listed = cri.list_containers(ListContainersRequest { filter: Some(filter) }).await?.into_inner();
        let mut containers = Vec::new();
        for item in listed.containers {
            let request = ContainerStatusRequest { container_id: item.id, verbose: false };
            // One that is removed meanwhile is not there.
            match cri.container_status(request).await {
                Ok(answer) => containers.extend(answer.into_inner().status.map(container)),
                Err(status) if status.code() == tonic::Code::NotFound => {}
                Err(status) => return Err(status.into()),
            }
        }
        containers.sort_by_key(|container| (container.started_at, container.attempt));
        Ok(containers)
    }

    /// Runs a command in a container; what it printed on standard output.
    pub async fn exec(&self, container_id: &str, command: &[&str]) -> Result<String> {
        let request = ExecSyncRequest {
            container_id: container_id.to_owned(),
            cmd: command.iter().map(|&part| part.to_owned()).collect(),
            timeout: EXEC_LIMIT,
        };
        let answer = self.containerd()?.cri().await?.exec_sync(request).await?.into_inner();
        let stderr = String::from_utf8_lossy(&answer.stderr);
        ensure!(answer.exit_code == 0, "{command:?} ended with {}: {}", answer.exit_code, stderr.trim());
        Ok(String::from_utf8_lossy(&answer.stdout).into_owned())
    }

    /// Kills a container behind edgecore's back.
    pub async fn kill_container(&self, container_id: &str) -> Result<()> {
        let request = StopContainerRequest { container_id: container_id.to_owned(), timeout: 0 };
        self.containerd()?.cri().await?.stop_container(request).await.context("kill a container").map(drop)
    }

    /// The folder of a pod's container logs.
    pub fn pod_logs(&self, namespace: &str, name: &str, uid: &str) -> PathBuf {
        self.folder.join("edge/logs/pods").join(format!("{namespace}_{name}_{uid}"))
    }

    /// Everything that all runs of `program` (`cloudcore` or `edgecore`) wrote to the log.
    pub fn log(&self, program: &str) -> Result<String> {
        read(&self.folder.join(format!("{program}.log")))
    }

    /// A `kubectl` for this cluster, to which arguments can be added; `None` without one on this machine.
    pub fn kubectl(&self) -> Option<Command> {
        let mut command = Command::new(find_program("kubectl")?);
        command.env("PATH", search_path()).env("KUBECONFIG", self.kubeconfig()).kill_on_drop(true);
        // Its cache of the API's kinds is kept in the home folder.
        command.arg("--cache-dir").arg(self.folder.join("kubectl"));
        Some(command)
    }
}

fn by_uid(pod_uid: &str) -> std::collections::HashMap<String, String> {
    [(POD_UID.to_owned(), pod_uid.to_owned())].into()
}

fn container(status: ContainerStatus) -> Container {
    let running = status.state() == ContainerState::ContainerRunning;
    let metadata = status.metadata.unwrap_or_default();
    Container { id: status.id, name: metadata.name, attempt: metadata.attempt, running, started_at: status.started_at }
}

fn read(path: &Path) -> Result<String> {
    let bytes = fs::read(path).with_context(|| format!("read {}", path.display()))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
