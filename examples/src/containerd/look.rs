//! What the runtime has of a pod.

use std::collections::HashMap;

use anyhow::{Result, ensure};
use kubeedge_proto::cri::{
    ContainerFilter, ContainerState, ContainerStatus, ContainerStatusRequest, ExecSyncRequest, ListContainersRequest,
};

use super::PrivateContainerd;

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

impl PrivateContainerd {
    /// A pod's containers, whatever their state, the first started first.
    pub async fn containers(&self, pod_uid: &str) -> Result<Vec<Container>> {
        let mut cri = self.cri().await?;
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
        let answer = self.cri().await?.exec_sync(request).await?.into_inner();
        let stderr = String::from_utf8_lossy(&answer.stderr);
        ensure!(answer.exit_code == 0, "{command:?} ended with {}: {}", answer.exit_code, stderr.trim());
        Ok(String::from_utf8_lossy(&answer.stdout).into_owned())
    }
}

pub(crate) fn by_uid(pod_uid: &str) -> HashMap<String, String> {
    [(POD_UID.to_owned(), pod_uid.to_owned())].into()
}

fn container(status: ContainerStatus) -> Container {
    let running = status.state() == ContainerState::ContainerRunning;
    let metadata = status.metadata.unwrap_or_default();
    Container { id: status.id, name: metadata.name, attempt: metadata.attempt, running, started_at: status.started_at }
}
