//! A pod on the private containerd, from an image of the in-memory registry, without cloud and edge.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::{net::SocketAddr, panic::AssertUnwindSafe, path::PathBuf, time::Duration};

use anyhow::Result;
use futures_util::FutureExt;
use kubeedge_examples::{
    containerd::{PrivateContainerd, Tools},
    http,
    image::BusyboxImages,
    leftovers,
    registry::{Catalogue, Registry},
};
use kubeedge_proto::cri::{
    ContainerConfig, ContainerMetadata, CreateContainerRequest, DnsConfig, ImageSpec, LinuxPodSandboxConfig,
    PodSandboxConfig, PodSandboxMetadata, PodSandboxStatusRequest, PullImageRequest, RunPodSandboxRequest,
    StartContainerRequest, image_service_client::ImageServiceClient,
};
use tonic::transport::Endpoint;

use crate::report::{Outcome, Report};

const ALL: [&str; 1] = ["containerd::a_pod_serves_a_page_and_leaves_nothing_behind"];

pub(crate) async fn stage(report: &mut Report, tools: &Result<Tools>) {
    if !report.begins(&ALL) {
        return;
    }
    let Some(tools) = report.tools(tools, &ALL) else { return };
    report.run(ALL[0], pod_serves_a_page_and_leaves_nothing_behind(tools)).await;
}

async fn pod_serves_a_page_and_leaves_nothing_behind(tools: Tools) -> Result<Outcome> {
    let folder = tempfile::tempdir().unwrap();
    let images = BusyboxImages::build().unwrap();
    let catalogue = Catalogue::default()
        .with("test/busybox", "1", &images.busybox)
        .and_then(|catalogue| catalogue.with("test/pause", "1", &images.pause))
        .unwrap();
    let registry = Registry::start(catalogue, 0).unwrap();
    let pause = registry.image("test/pause", "1");
    let containerd = PrivateContainerd::start(tools.clone(), folder.path(), &pause).await.unwrap();

    // Whatever goes wrong in between, the machine is left as it was.
    let story = AssertUnwindSafe(serve_a_page(&containerd, &registry)).catch_unwind().await;
    // Killed without order: the pods live on, and the next start in this folder finds and removes them.
    let bridge = containerd.bridge().to_owned();
    containerd.kill().await.unwrap();
    let orphans = story.as_ref().map(cgroups);
    let containerd = PrivateContainerd::start(tools, folder.path(), &pause).await.unwrap();
    let removed = story.as_ref().map(cgroups);
    let left = containerd.stop().await.unwrap();
    registry.stop().await.unwrap();

    if let Err(panic) = story {
        std::panic::resume_unwind(panic);
    }
    assert!(orphans.unwrap().iter().all(|found| !found.is_empty()), "containers outlive a killed containerd");
    assert_eq!(removed.unwrap(), [const { Vec::<PathBuf>::new() }; 2], "the next start removes them");
    assert_eq!(left, []);
    assert!(!leftovers::link_exists(&bridge));
    Ok(Outcome::Proved)
}

/// Sandbox and container: each has cgroups of its own name while it runs.
struct Pod {
    sandbox: String,
    container: String,
}

fn cgroups(pod: &Pod) -> [Vec<PathBuf>; 2] {
    [&pod.sandbox, &pod.container].map(|id| leftovers::cgroups_naming(id).unwrap())
}

async fn serve_a_page(containerd: &PrivateContainerd, registry: &Registry) -> Pod {
    let config = PodSandboxConfig {
        metadata: Some(PodSandboxMetadata {
            name: "web".into(),
            uid: "7f6b7c5e-3a39-4a53-9a53-1f0e6f5a2b11".into(),
            namespace: "default".into(),
            attempt: 0,
        }),
        hostname: "web".into(),
        log_directory: containerd.socket().with_file_name("logs").display().to_string(),
        dns_config: Some(DnsConfig::default()),
        linux: Some(LinuxPodSandboxConfig::default()),
        ..Default::default()
    };
    let mut cri = containerd.cri().await.unwrap();
    let request = RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: String::new() };
    let sandbox = cri.run_pod_sandbox(request).await.unwrap().into_inner().pod_sandbox_id;

    let image = ImageSpec { image: registry.image("test/busybox", "1"), ..Default::default() };
    let channel = Endpoint::from_shared(containerd.endpoint()).unwrap().connect().await.unwrap();
    ImageServiceClient::new(channel)
        .pull_image(PullImageRequest { image: Some(image.clone()), ..Default::default() })
        .await
        .unwrap();

    let serve = "echo it works > /tmp/index.html; exec httpd -f -p 8080 -h /tmp";
    let container = ContainerConfig {
        metadata: Some(ContainerMetadata { name: "httpd".into(), attempt: 0 }),
        image: Some(image),
        command: ["/bin/sh", "-c", serve].map(String::from).to_vec(),
        log_path: "httpd.log".into(),
        ..Default::default()
    };
    let request = CreateContainerRequest {
        pod_sandbox_id: sandbox.clone(),
        config: Some(container),
        sandbox_config: Some(config),
    };
    let container = cri.create_container(request).await.unwrap().into_inner().container_id;
    cri.start_container(StartContainerRequest { container_id: container.clone() }).await.unwrap();

    let request = PodSandboxStatusRequest { pod_sandbox_id: sandbox.clone(), verbose: false };
    let status = cri.pod_sandbox_status(request).await.unwrap().into_inner().status.unwrap();
    let ip = status.network.unwrap().ip;
    assert!(ip.starts_with(containerd.subnet().trim_end_matches("0/24")), "{ip} is not of {}", containerd.subnet());
    let page = page(SocketAddr::new(ip.parse().unwrap(), 8080)).await;
    assert_eq!((page.status, page.body), (200, b"it works\n".to_vec()));
    Pod { sandbox, container }
}

/// The program in the container opens its port some milliseconds after its start.
async fn page(address: SocketAddr) -> http::Answer {
    let mut tick = tokio::time::interval(Duration::from_millis(20));
    for _ in 0..500 {
        tick.tick().await;
        if let Ok(answer) = http::get(address, "/index.html").await {
            return answer;
        }
    }
    panic!("no page from {address} within 10 s")
}
