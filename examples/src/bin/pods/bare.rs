//! The container runtime's own time for the same pods: three calls each, all at once, nothing else.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::Result;
use futures_util::future::try_join_all;
use kubeedge_examples::lab::Lab;
use kubeedge_proto::cri::{
    ContainerConfig, ContainerMetadata, CreateContainerRequest, ImageSpec, PodSandboxConfig, PodSandboxMetadata,
    RemovePodSandboxRequest, RunPodSandboxRequest, StartContainerRequest,
};

/// What every measured pod runs: it does nothing, and ignores SIGTERM.
pub(crate) const COMMAND: [&str; 3] = ["/bin/sh", "-c", "trap '' TERM; while true; do sleep 1000; done"];

/// Makes so many pods at once and takes them away again; the time for the first.
pub(crate) async fn run(lab: &Lab, pods: usize) -> Result<Duration> {
    let folder = lab.folder().join("bare");
    fs::create_dir_all(&folder)?;
    let (cri, image) = (lab.containerd()?.cri().await?, lab.busybox()?);
    let began = Instant::now();
    let sandboxes = try_join_all((0..pods).map(|number| {
        let (mut cri, image, folder) = (cri.clone(), image.clone(), folder.clone());
        async move {
            let pod = PodSandboxConfig {
                metadata: Some(PodSandboxMetadata {
                    name: format!("bare-{number}"),
                    uid: format!("00000000-0000-4000-8000-{number:012}"),
                    namespace: "bare".into(),
                    attempt: 0,
                }),
                hostname: format!("bare-{number}"),
                log_directory: folder.join(number.to_string()).to_string_lossy().into_owned(),
                ..PodSandboxConfig::default()
            };
            let run = RunPodSandboxRequest { config: Some(pod.clone()), runtime_handler: String::new() };
            let pod_sandbox_id = cri.run_pod_sandbox(run).await?.into_inner().pod_sandbox_id;
            let config = ContainerConfig {
                metadata: Some(ContainerMetadata { name: "main".into(), attempt: 0 }),
                image: Some(ImageSpec { image, ..ImageSpec::default() }),
                command: COMMAND.map(str::to_owned).to_vec(),
                log_path: "main.log".into(),
                ..ContainerConfig::default()
            };
            let sandbox = pod_sandbox_id.clone();
            let create = CreateContainerRequest { pod_sandbox_id, config: Some(config), sandbox_config: Some(pod) };
            let container_id = cri.create_container(create).await?.into_inner().container_id;
            cri.start_container(StartContainerRequest { container_id }).await?;
            anyhow::Ok(sandbox)
        }
    }))
    .await?;
    let took = began.elapsed();
    try_join_all(sandboxes.into_iter().map(|pod_sandbox_id| {
        let mut cri = cri.clone();
        // Ends what runs inside.
        async move { cri.remove_pod_sandbox(RemovePodSandboxRequest { pod_sandbox_id }).await }
    }))
    .await?;
    Ok(took)
}
