//! The container runtime over CRI v1: gRPC on a unix socket.
//!
//! The channel is lazy and connects again by itself, so a runtime that restarts is an error of the calls meanwhile,
//! nothing more. Every call has a deadline; an answer is held to a size.

mod convert;

use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
    time::Duration,
};

use futures_util::{StreamExt, TryStreamExt, stream};
use kubeedge_proto::cri::{
    self, image_service_client::ImageServiceClient, runtime_service_client::RuntimeServiceClient,
};
use thiserror::Error;
use tonic::{
    Code, Response, Status,
    transport::{Channel, Endpoint},
};

use super::{
    labels,
    runtime::{
        Answer, ContainerStats, ExecOutput, ImageDisk, LocalImage, ObservedPod, PodSummary, Runtime, RuntimeError,
        RuntimeEvents, RuntimeFeatures, RuntimeHealth, RuntimeVersion, StreamRequest,
    },
};

/// Deadline of calls that only look or remove.
const QUICK: Duration = Duration::from_secs(30);
/// Deadline of calls that make or start something: networks and image snapshots take time on slow disks.
const SLOW: Duration = Duration::from_secs(240);
/// Deadline of fetching an image over a slow line.
const PULL: Duration = Duration::from_secs(3600);
/// What stopping may take beyond the grace period: the kill and the clean-up after it.
const STOP_MARGIN: Duration = Duration::from_secs(60);
/// What a command may take beyond its timeout: the runtime ends it first and says so.
const EXEC_MARGIN: Duration = Duration::from_secs(1);
/// Questions about parts of one pod at a time.
const AT_ONCE: usize = 8;
/// Largest answer, bytes: a list of some thousand containers with their labels.
const MAX_ANSWER: usize = 16 * 1024 * 1024;

/// An address that is not one of a CRI runtime.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("container runtime endpoint {given:?}: {why}; expected such as \"unix:///run/containerd/containerd.sock\"")]
pub struct InvalidEndpoint {
    given: String,
    why: String,
}

/// A CRI v1 runtime.
#[derive(Clone, Debug)]
pub struct CriRuntime {
    endpoint: String,
    runtime: RuntimeServiceClient<Channel>,
    images: ImageServiceClient<Channel>,
}

impl CriRuntime {
    /// A client of the runtime at `endpoint`, `unix:///path` or a bare absolute path. Does not connect yet; must be
    /// called within a tokio runtime.
    pub fn new(endpoint: &str) -> Result<Self, InvalidEndpoint> {
        let invalid = |why: &str| InvalidEndpoint { given: endpoint.to_owned(), why: why.to_owned() };
        let path = endpoint.strip_prefix("unix://").unwrap_or(endpoint);
        if !path.starts_with('/') {
            return Err(invalid("not a unix socket with an absolute path"));
        }
        let url = format!("unix://{path}");
        let channel = Endpoint::from_shared(url.clone())
            .map_err(|error| invalid(&error.to_string()))?
            .connect_timeout(Duration::from_secs(10))
            .connect_lazy();
        Ok(Self {
            endpoint: url,
            runtime: RuntimeServiceClient::new(channel.clone()).max_decoding_message_size(MAX_ANSWER),
            images: ImageServiceClient::new(channel).max_decoding_message_size(MAX_ANSWER),
        })
    }

    async fn call<T>(
        &self,
        call: &'static str,
        deadline: Duration,
        answer: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, RuntimeError> {
        match tokio::time::timeout(deadline, answer).await {
            Err(_) => Err(RuntimeError::Timeout { call, after: deadline }),
            Ok(Ok(answer)) => Ok(answer.into_inner()),
            Ok(Err(status)) => Err(self.error(call, &status)),
        }
    }

    fn error(&self, call: &'static str, status: &Status) -> RuntimeError {
        let message = status.message().to_owned();
        match status.code() {
            Code::NotFound => RuntimeError::NotFound { call, message },
            Code::Unimplemented => RuntimeError::Unimplemented { call, message },
            // Only the transport says "unavailable" on a unix socket.
            Code::Unavailable => RuntimeError::Unreachable { endpoint: self.endpoint.clone(), message },
            code => RuntimeError::Failed { call, message: format!("{message} ({code:?})") },
        }
    }

    async fn list(
        &self,
        labels: BTreeMap<&str, &str>,
    ) -> Result<(Vec<cri::PodSandbox>, Vec<cri::Container>), RuntimeError> {
        let label_selector = || labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let filter = cri::PodSandboxFilter { label_selector: label_selector(), ..Default::default() };
        let request = cri::ListPodSandboxRequest { filter: Some(filter) };
        let (mut client, mut other) = (self.runtime.clone(), self.runtime.clone());
        let sandboxes = self.call("ListPodSandbox", QUICK, client.list_pod_sandbox(request));
        let filter = cri::ContainerFilter { label_selector: label_selector(), ..Default::default() };
        let request = cri::ListContainersRequest { filter: Some(filter) };
        let containers = self.call("ListContainers", QUICK, other.list_containers(request));
        let (sandboxes, containers) = futures_util::try_join!(sandboxes, containers)?;
        Ok((sandboxes.items, containers.containers))
    }
}

/// What is gone already needs no stop and no removal.
fn gone_is_done<T>(answer: Result<T, RuntimeError>) -> Result<(), RuntimeError> {
    match answer {
        Ok(_) | Err(RuntimeError::NotFound { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}

/// `None` for what went away between a list and a closer look: the next list tells.
fn gone_is_none<T>(answer: Result<T, RuntimeError>) -> Result<Option<T>, RuntimeError> {
    match answer {
        Ok(answer) => Ok(Some(answer)),
        Err(RuntimeError::NotFound { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

fn image_spec(image: &str) -> Option<cri::ImageSpec> {
    Some(cri::ImageSpec { image: image.to_owned(), ..Default::default() })
}

impl Runtime for CriRuntime {
    fn version(&self) -> Answer<'_, RuntimeVersion> {
        Box::pin(async move {
            let request = cri::VersionRequest { version: "v1".to_owned() };
            let answer = self.call("Version", QUICK, self.runtime.clone().version(request)).await?;
            Ok(RuntimeVersion { name: answer.runtime_name, version: answer.runtime_version })
        })
    }

    fn health(&self) -> Answer<'_, RuntimeHealth> {
        Box::pin(async move {
            let request = cri::StatusRequest { verbose: false };
            let answer = self.call("Status", QUICK, self.runtime.clone().status(request)).await?;
            Ok(convert::health(answer.status.unwrap_or_default()))
        })
    }

    fn features(&self) -> Answer<'_, RuntimeFeatures> {
        Box::pin(async move {
            let version = self.version().await?;
            let request = cri::StatusRequest { verbose: false };
            let answer = self.call("Status", QUICK, self.runtime.clone().status(request)).await?;
            Ok(convert::features(&version, answer))
        })
    }

    fn list_pods(&self) -> Answer<'_, Vec<PodSummary>> {
        Box::pin(async move {
            let (sandboxes, containers) = self.list(BTreeMap::new()).await?;
            Ok(convert::summaries(sandboxes, containers))
        })
    }

    fn events(&self) -> Answer<'_, RuntimeEvents> {
        Box::pin(async move {
            let call = "GetContainerEvents";
            // No deadline: it is answered when something happens.
            let answer = self.runtime.clone().get_container_events(cri::GetEventsRequest {}).await;
            let events = answer.map_err(|status| self.error(call, &status))?.into_inner();
            let this = self.clone();
            let ids = events.map(move |event| match event {
                Ok(event) => Ok(event.container_id),
                Err(status) => Err(this.error(call, &status)),
            });
            Ok(ids.boxed())
        })
    }

    fn observe<'a>(&'a self, pod_uid: &'a str) -> Answer<'a, ObservedPod> {
        Box::pin(async move {
            let (sandboxes, containers) = self.list([(labels::POD_UID, pod_uid)].into()).await?;
            let sandboxes = stream::iter(sandboxes).map(|sandbox| async move {
                let request = cri::PodSandboxStatusRequest { pod_sandbox_id: sandbox.id, verbose: false };
                let mut client = self.runtime.clone();
                let answer = self.call("PodSandboxStatus", QUICK, client.pod_sandbox_status(request)).await;
                let status = gone_is_none(answer)?.and_then(|answer| answer.status);
                status.map(convert::sandbox).transpose()
            });
            let instances = stream::iter(containers).map(|container| async move {
                let request = cri::ContainerStatusRequest { container_id: container.id, verbose: false };
                let mut client = self.runtime.clone();
                let answer = self.call("ContainerStatus", QUICK, client.container_status(request)).await;
                let status = gone_is_none(answer)?.and_then(|answer| answer.status);
                status.map(|status| convert::instance(status, container.pod_sandbox_id)).transpose()
            });
            let (sandboxes, instances) = futures_util::try_join!(
                sandboxes.buffered(AT_ONCE).try_collect::<Vec<_>>(),
                instances.buffered(AT_ONCE).try_collect::<Vec<_>>(),
            )?;
            Ok(ObservedPod {
                sandboxes: sandboxes.into_iter().flatten().collect(),
                instances: instances.into_iter().flatten().collect(),
            })
        })
    }

    fn run_sandbox<'a>(&'a self, config: &'a cri::PodSandboxConfig, handler: &'a str) -> Answer<'a, String> {
        Box::pin(async move {
            let request =
                cri::RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: handler.to_owned() };
            let answer = self.call("RunPodSandbox", SLOW, self.runtime.clone().run_pod_sandbox(request)).await?;
            convert::id("RunPodSandbox", answer.pod_sandbox_id)
        })
    }

    fn stop_sandbox<'a>(&'a self, id: &'a str) -> Answer<'a, ()> {
        Box::pin(async move {
            let request = cri::StopPodSandboxRequest { pod_sandbox_id: id.to_owned() };
            gone_is_done(self.call("StopPodSandbox", SLOW, self.runtime.clone().stop_pod_sandbox(request)).await)
        })
    }

    fn remove_sandbox<'a>(&'a self, id: &'a str) -> Answer<'a, ()> {
        Box::pin(async move {
            let request = cri::RemovePodSandboxRequest { pod_sandbox_id: id.to_owned() };
            gone_is_done(self.call("RemovePodSandbox", SLOW, self.runtime.clone().remove_pod_sandbox(request)).await)
        })
    }

    fn create_container<'a>(
        &'a self,
        sandbox_id: &'a str,
        config: &'a cri::ContainerConfig,
        sandbox: &'a cri::PodSandboxConfig,
    ) -> Answer<'a, String> {
        Box::pin(async move {
            let request = cri::CreateContainerRequest {
                pod_sandbox_id: sandbox_id.to_owned(),
                config: Some(config.clone()),
                sandbox_config: Some(sandbox.clone()),
            };
            let answer = self.call("CreateContainer", SLOW, self.runtime.clone().create_container(request)).await?;
            convert::id("CreateContainer", answer.container_id)
        })
    }

    fn start_container<'a>(&'a self, id: &'a str) -> Answer<'a, ()> {
        Box::pin(async move {
            let request = cri::StartContainerRequest { container_id: id.to_owned() };
            self.call("StartContainer", SLOW, self.runtime.clone().start_container(request)).await?;
            Ok(())
        })
    }

    fn stop_container<'a>(&'a self, id: &'a str, grace: Duration) -> Answer<'a, ()> {
        Box::pin(async move {
            let timeout = i64::try_from(grace.as_secs()).unwrap_or(i64::MAX);
            let request = cri::StopContainerRequest { container_id: id.to_owned(), timeout };
            let deadline = grace.saturating_add(STOP_MARGIN);
            gone_is_done(self.call("StopContainer", deadline, self.runtime.clone().stop_container(request)).await)
        })
    }

    fn update_resources<'a>(&'a self, id: &'a str, resources: &'a cri::LinuxContainerResources) -> Answer<'a, ()> {
        Box::pin(async move {
            let request = cri::UpdateContainerResourcesRequest {
                container_id: id.to_owned(),
                linux: Some(resources.clone()),
                annotations: Default::default(),
            };
            let mut client = self.runtime.clone();
            self.call("UpdateContainerResources", QUICK, client.update_container_resources(request)).await?;
            Ok(())
        })
    }

    fn exec_sync<'a>(&'a self, id: &'a str, command: &'a [String], timeout: Duration) -> Answer<'a, ExecOutput> {
        Box::pin(async move {
            let seconds = i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX);
            let request = cri::ExecSyncRequest { container_id: id.to_owned(), cmd: command.to_vec(), timeout: seconds };
            let late = RuntimeError::Timeout { call: "ExecSync", after: timeout };
            let deadline = if timeout.is_zero() { Duration::MAX } else { timeout.saturating_add(EXEC_MARGIN) };
            match tokio::time::timeout(deadline, self.runtime.clone().exec_sync(request)).await {
                Err(_) => Err(late),
                Ok(Err(status)) if status.code() == Code::DeadlineExceeded => Err(late),
                Ok(Err(status)) => Err(self.error("ExecSync", &status)),
                Ok(Ok(answer)) => {
                    let cri::ExecSyncResponse { stdout, stderr, exit_code } = answer.into_inner();
                    Ok(ExecOutput { stdout: stdout.into(), stderr: stderr.into(), exit_code })
                }
            }
        })
    }

    fn remove_container<'a>(&'a self, id: &'a str) -> Answer<'a, ()> {
        Box::pin(async move {
            let request = cri::RemoveContainerRequest { container_id: id.to_owned() };
            gone_is_done(self.call("RemoveContainer", QUICK, self.runtime.clone().remove_container(request)).await)
        })
    }

    fn stream_url(&self, request: StreamRequest) -> Answer<'_, String> {
        Box::pin(async move {
            let mut client = self.runtime.clone();
            Ok(match request {
                StreamRequest::Exec(request) => self.call("Exec", QUICK, client.exec(request)).await?.url,
                StreamRequest::Attach(request) => self.call("Attach", QUICK, client.attach(request)).await?.url,
                StreamRequest::PortForward(request) => {
                    self.call("PortForward", QUICK, client.port_forward(request)).await?.url
                }
            })
        })
    }

    fn image<'a>(&'a self, image: &'a str) -> Answer<'a, Option<LocalImage>> {
        Box::pin(async move {
            let request = cri::ImageStatusRequest { image: image_spec(image), verbose: false };
            let answer =
                gone_is_none(self.call("ImageStatus", QUICK, self.images.clone().image_status(request)).await)?;
            Ok(answer.and_then(|answer| answer.image).map(convert::image))
        })
    }

    fn images(&self) -> Answer<'_, Vec<LocalImage>> {
        Box::pin(async move {
            let request = cri::ListImagesRequest::default();
            let answer = self.call("ListImages", QUICK, self.images.clone().list_images(request)).await?;
            Ok(answer.images.into_iter().map(convert::image).collect())
        })
    }

    fn pull_image<'a>(
        &'a self,
        image: &'a str,
        auth: Option<cri::AuthConfig>,
        sandbox: &'a cri::PodSandboxConfig,
    ) -> Answer<'a, ()> {
        Box::pin(async move {
            let request =
                cri::PullImageRequest { image: image_spec(image), auth, sandbox_config: Some(sandbox.clone()) };
            self.call("PullImage", PULL, self.images.clone().pull_image(request)).await?;
            Ok(())
        })
    }

    fn container_stats(&self) -> Answer<'_, Vec<ContainerStats>> {
        Box::pin(async move {
            let request = cri::ListContainerStatsRequest::default();
            let answer =
                self.call("ListContainerStats", QUICK, self.runtime.clone().list_container_stats(request)).await?;
            Ok(answer.stats.into_iter().map(convert::stats).collect())
        })
    }

    fn reopen_log<'a>(&'a self, id: &'a str) -> Answer<'a, ()> {
        Box::pin(async move {
            let request = cri::ReopenContainerLogRequest { container_id: id.to_owned() };
            self.call("ReopenContainerLog", QUICK, self.runtime.clone().reopen_container_log(request)).await?;
            Ok(())
        })
    }

    fn remove_image<'a>(&'a self, id: &'a str) -> Answer<'a, ()> {
        Box::pin(async move {
            let request = cri::RemoveImageRequest { image: image_spec(id) };
            gone_is_done(self.call("RemoveImage", SLOW, self.images.clone().remove_image(request)).await)
        })
    }

    fn used_images(&self) -> Answer<'_, BTreeSet<String>> {
        Box::pin(async move {
            let request = cri::ListContainersRequest::default();
            let list = self.call("ListContainers", QUICK, self.runtime.clone().list_containers(request)).await?;
            let images = list.containers.into_iter().flat_map(|container| {
                [container.image_ref, container.image.map(|image| image.image).unwrap_or_default()]
            });
            Ok(images.filter(|image| !image.is_empty()).collect())
        })
    }

    fn sandbox_image(&self) -> Answer<'_, Option<String>> {
        Box::pin(async move {
            let request = cri::StatusRequest { verbose: true };
            let answer = self.call("Status", QUICK, self.runtime.clone().status(request)).await?;
            Ok(answer.info.get("config").and_then(|config| convert::sandbox_image(config)))
        })
    }

    fn image_disk(&self) -> Answer<'_, ImageDisk> {
        Box::pin(async move {
            let request = cri::ImageFsInfoRequest {};
            convert::image_disk(self.call("ImageFsInfo", QUICK, self.images.clone().image_fs_info(request)).await?)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_endpoint_is_a_unix_socket() {
        for good in ["unix:///run/containerd/containerd.sock", "/run/crio/crio.sock"] {
            assert!(CriRuntime::new(good).is_ok(), "{good}");
        }
        for bad in ["", "containerd.sock", "tcp://127.0.0.1:1", "unix://relative"] {
            let error = CriRuntime::new(bad).unwrap_err().to_string();
            assert!(error.contains("unix:///run"), "{error}");
        }
    }

    #[tokio::test]
    async fn a_runtime_that_is_not_there_is_an_error_of_the_call() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("none.sock");
        let runtime = CriRuntime::new(socket.to_str().unwrap()).unwrap();
        let error = runtime.version().await.unwrap_err();
        assert!(matches!(&error, RuntimeError::Unreachable { endpoint, .. } if endpoint.contains("none.sock")));
    }
}
