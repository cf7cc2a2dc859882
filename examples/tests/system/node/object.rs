//! The Node object: what the edge's file and the machine say, as `kubectl` shows it.

use std::{collections::BTreeMap, fs};

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Node;
use kube::Api;
use kubeedge_actors::edged::{cri::CriRuntime, node::KUBELET_VERSION, runtime::Runtime as _};
use kubeedge_examples::lab::{Lab, NODE};

use crate::{cluster::poll, kubectl, kubectls, report::Outcome};

pub(super) const SEEN: &str = "node::its_object_has_what_the_file_the_machine_and_the_runtime_say";

/// More of `modules.edged`.
pub(super) const EDGED: [&str; 2] =
    ["nodeLabels: {example.com/site: north}", "nodeAnnotations: {example.com/contact: nobody}"];
/// A kubelet's setting.
pub(super) const TAINTS: &str = "registerWithTaints: [{key: example.com/far, value: 'yes', effect: PreferNoSchedule}]";

fn file(path: &str) -> Result<String> {
    Ok(fs::read_to_string(path).with_context(|| format!("read {path}"))?.trim().to_owned())
}

pub(super) async fn seen(lab: &Lab) -> Result<Outcome> {
    let nodes = Api::<Node>::all(lab.client()?);
    let node = nodes.get(NODE).await?;
    let (labels, annotations) =
        (node.metadata.labels.unwrap_or_default(), node.metadata.annotations.unwrap_or_default());
    let has = |all: &BTreeMap<String, String>, name: &str, value: &str| all.get(name).is_some_and(|is| is == value);
    for (name, value) in [
        ("example.com/site", "north"),
        ("kubernetes.io/hostname", NODE),
        ("kubernetes.io/os", "linux"),
        ("node-role.kubernetes.io/edge", ""),
    ] {
        ensure!(has(&labels, name, value), "{name} is not {value:?}: {labels:?}");
    }
    ensure!(has(&annotations, "example.com/contact", "nobody"), "{annotations:?}");
    let taints = node.spec.and_then(|spec| spec.taints).unwrap_or_default();
    let far = taints.iter().find(|taint| taint.key == "example.com/far").context("it has its taint")?;
    ensure!(far.value.as_deref() == Some("yes") && far.effect == "PreferNoSchedule", "{far:?}");

    let status = node.status.unwrap_or_default();
    let info = status.node_info.context("nodeInfo")?;
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let runtime = CriRuntime::new(&lab.containerd()?.endpoint())?.version().await?;
    for (what, is, expected) in [
        ("architecture", &info.architecture, architecture.to_owned()),
        ("kernelVersion", &info.kernel_version, file("/proc/sys/kernel/osrelease")?),
        ("bootID", &info.boot_id, file("/proc/sys/kernel/random/boot_id")?),
        ("machineID", &info.machine_id, file("/etc/machine-id").unwrap_or_default()),
        ("containerRuntimeVersion", &info.container_runtime_version, format!("containerd://{}", runtime.version)),
        ("kubeletVersion", &info.kubelet_version, KUBELET_VERSION.to_owned()),
    ] {
        ensure!(*is == expected, "{what} is {is:?}, expected {expected:?}");
    }
    let system = file("/etc/os-release")?;
    ensure!(system.contains(&format!("\"{}\"", info.os_image)), "osImage is {:?}: {system}", info.os_image);
    let processors = status.capacity.unwrap_or_default().get("cpu").map(|cpu| cpu.0.clone()).unwrap_or_default();
    ensure!(labels.contains_key("kubernetes.io/arch") && processors.parse::<u32>().is_ok_and(|cpus| cpus > 0));

    // Images are told with the next status.
    let busybox = lab.busybox()?;
    poll("the node has the image of its pods", async || {
        let images = nodes.get(NODE).await?.status.and_then(|status| status.images).unwrap_or_default();
        let has = images.iter().any(|image| {
            let named = image.names.iter().flatten().any(|name| *name == busybox);
            named && image.size_bytes > Some(0)
        });
        Ok(if has { Ok(()) } else { Err(format!("{images:?}")) })
    })
    .await?;
    if kubectls::newest().is_some() {
        let described = kubectl::run(lab, &["describe", "node", NODE]).await?;
        for part in
            ["example.com/site=north", "example.com/far=yes:PreferNoSchedule", &info.kernel_version, "containerd://"]
        {
            ensure!(described.contains(part), "{part} is not in:\n{described}");
        }
    }
    Ok(Outcome::Proved)
}
