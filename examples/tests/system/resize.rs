//! Other resources for pods that run, and containers that are added to look into them.

use std::{fs, path::PathBuf};

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Client,
    api::{Patch, PatchParams},
};
use kubeedge_examples::{lab::Lab, leftovers::cgroups_naming};
use serde_json::{Value, json};

use crate::{
    cluster::{apply, container, delete, first, gone, nothing_left, pods, poll, restarts, running, uid, until_pod},
    kubectls::{self, outcome, said},
    pods::script,
    report::Outcome,
};

pub(crate) const RESIZED: &str = "resize::a_pod_gets_other_resources_in_place_or_by_a_restart_or_waits_for_them";
pub(crate) const DEBUGGED: &str = "resize::kubectl_debug_adds_a_container_that_sees_the_others_processes";

/// What a control group says: the first of these files that one of the groups has.
fn group_says(groups: &[PathBuf], names: &[&str]) -> Result<String> {
    let files = groups.iter().flat_map(|group| names.iter().map(move |name| group.join(name)));
    let file = files.clone().find(|file| file.exists()).with_context(|| format!("no {names:?} in {groups:?}"))?;
    Ok(fs::read_to_string(file)?.trim().to_owned())
}

/// Processor time in each tenth of a second, and bytes, that a group with this in its name may use.
fn limits(part: &str) -> Result<(String, String)> {
    let groups = cgroups_naming(part)?;
    let quota = group_says(&groups, &["cpu.cfs_quota_us", "cpu.max"])?;
    let quota = quota.split(' ').next().unwrap_or_default().to_owned();
    Ok((quota, group_says(&groups, &["memory.limit_in_bytes", "memory.max"])?))
}

fn with_resources(name: &str, policy: &str) -> String {
    let lines = format!(
        "    resources: {{requests: {{cpu: 50m, memory: 16Mi}}, limits: {{cpu: 200m, memory: 32Mi}}}}\n    \
         resizePolicy: [{{resourceName: memory, restartPolicy: {policy}}}]\n    imagePullPolicy"
    );
    script(name, "Always", "while :; do sleep 1; done").replace("    imagePullPolicy", &lines)
}

async fn resize(client: &Client, name: &str, resources: Value) -> Result<Pod> {
    let patch = json!({"spec": {"containers": [{"name": "main", "resources": resources}]}});
    let patch = Patch::Strategic(patch);
    Ok(pods(client).patch_subresource("resize", name, &PatchParams::default(), &patch).await?)
}

fn condition(pod: &Pod, type_: &str) -> Option<String> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    conditions.iter().find(|condition| condition.type_ == type_).map(|found| found.reason.clone().unwrap_or_default())
}

fn limit(pod: &Pod, resource: &str) -> Option<String> {
    Some(first(pod)?.resources.as_ref()?.limits.as_ref()?.get(resource)?.0.clone())
}

fn settled(pod: &Pod, cpu: &str, memory: &str) -> bool {
    let has = limit(pod, "cpu").as_deref() == Some(cpu) && limit(pod, "memory").as_deref() == Some(memory);
    has && ["PodResizePending", "PodResizeInProgress"].iter().all(|type_| condition(pod, type_).is_none())
}

pub(crate) async fn resized(lab: &Lab) -> Result<Outcome> {
    let client = lab.client()?;
    let (name, other) = ("fits", "restarts");
    apply(lab, &with_resources(name, "NotRequired")).await?;
    apply(lab, &with_resources(other, "RestartContainer")).await?;
    let pod = running(&client, name).await?;
    let pod_uid = uid(&pod)?;
    let before = container(lab, &pod_uid, "main").await?;
    ensure!(limits(&before.id)? == ("20000".into(), (32 << 20).to_string()), "{:?}", limits(&before.id)?);

    // More of both, then less: the container goes on.
    for (cpu, memory, quota) in [("400m", "48Mi", 40_000), ("100m", "24Mi", 10_000)] {
        resize(&client, name, json!({"limits": {"cpu": cpu, "memory": memory}})).await?;
        let pod = until_pod(&client, name, "resized", |pod| settled(pod, cpu, memory)).await?;
        ensure!(restarts(&pod) == 0 && container(lab, &pod_uid, "main").await?.id == before.id, "{:?}", pod.status);
        let bytes = memory.trim_end_matches("Mi").parse::<u64>()? << 20;
        let expected = (quota.to_string(), bytes.to_string());
        ensure!(limits(&before.id)? == expected, "the container has {:?}", limits(&before.id)?);
        let of_pod = limits(&format!("pod{pod_uid}"))?;
        ensure!(of_pod == expected, "the pod has {of_pod:?}");
    }

    // More than the node has: what it has stays, until the wish is taken back.
    resize(&client, name, json!({"requests": {"cpu": "1000"}, "limits": {"cpu": "1000"}})).await?;
    let pending = |pod: &Pod| condition(pod, "PodResizePending").as_deref() == Some("Infeasible");
    let pod = until_pod(&client, name, "PodResizePending, Infeasible", pending).await?;
    ensure!(limit(&pod, "cpu").as_deref() == Some("100m"), "{:?}", pod.status);
    ensure!(limits(&before.id)?.0 == "10000", "the container has {:?}", limits(&before.id)?);
    resize(&client, name, json!({"requests": {"cpu": "50m"}, "limits": {"cpu": "100m"}})).await?;
    until_pod(&client, name, "no resize", |pod| settled(pod, "100m", "24Mi")).await?;

    // A container that wants to be started again for another amount of memory.
    let pod = running(&client, other).await?;
    let other_uid = uid(&pod)?;
    resize(&client, other, json!({"limits": {"memory": "40Mi"}})).await?;
    let again = |pod: &Pod| settled(pod, "200m", "40Mi") && restarts(pod) == 1;
    until_pod(&client, other, "started again with other resources", again).await?;
    let after = container(lab, &other_uid, "main").await?;
    ensure!(limits(&after.id)?.1 == (40 << 20).to_string(), "the container has {:?}", limits(&after.id)?);

    // The class of a pod stays.
    let refused = resize(&client, name, json!({"requests": {"cpu": "100m", "memory": "24Mi"}})).await;
    let why = refused.err().context("a resize that changes the class was let through")?.to_string();
    ensure!(why.contains("Pod QOS Class may not change"), "{why}");
    if let Some(kubectl) = kubectls::newest() {
        let patch = r#"{"spec":{"containers":[{"name":"main","resources":{"limits":{"cpu":"150m"}}}]}}"#;
        let arguments = ["patch", "pod", name, "--subresource", "resize", "-p", patch];
        let (done, said) = outcome(lab, &kubectl, &arguments).await?;
        if done {
            until_pod(&client, name, "resized by kubectl", |pod| settled(pod, "150m", "24Mi")).await?;
        } else {
            // One on PATH may be older than 1.32, which has no such subresource.
            ensure!(!kubectls::is_pinned(&kubectl) && said.contains("invalid subresource"), "{said}");
        }
    }
    for (name, uid) in [(name, pod_uid), (other, other_uid)] {
        delete(&client, name, 1).await?;
        gone(&client, name, &uid).await?;
        nothing_left(lab, &uid).await?;
    }
    Ok(Outcome::Proved)
}

pub(crate) async fn debugged(lab: &Lab) -> Result<Outcome> {
    let Some(kubectl) = kubectls::newest() else { return kubectls::missing() };
    let (client, name) = (lab.client()?, "looked-into");
    apply(lab, &script(name, "Always", "while :; do sleep 1; done")).await?;
    let pod = running(&client, name).await?;
    let pod_uid = uid(&pod)?;
    let image = format!("--image={}", lab.busybox()?);
    // The first process it sees is the target's.
    let command = ["--", "/bin/sh", "-c", "tr '\\0' ' ' < /proc/1/cmdline; exit 7"];
    let arguments =
        ["debug", name, &image, "--target=main", "--container=debugger", "--image-pull-policy=IfNotPresent"];
    said(lab, &kubectl, &[&arguments[..], &command[..]].concat()).await?;
    let ended = |pod: &Pod| -> Option<i32> {
        let all = pod.status.as_ref()?.ephemeral_container_statuses.as_ref()?;
        let one = all.iter().find(|one| one.name == "debugger")?;
        Some(one.state.as_ref()?.terminated.as_ref()?.exit_code)
    };
    let pod = until_pod(&client, name, "the debugger has ended", |pod| ended(pod).is_some()).await?;
    ensure!(ended(&pod) == Some(7) && restarts(&pod) == 0, "{:?}", pod.status);
    poll("its log names the target's process", async || {
        let (_, text) = outcome(lab, &kubectl, &["logs", name, "-c", "debugger"]).await?;
        Ok(if text.contains("while :; do sleep 1; done") { Ok(()) } else { Err(text) })
    })
    .await?;
    delete(&client, name, 1).await?;
    gone(&client, name, &pod_uid).await?;
    nothing_left(lab, &pod_uid).await?;
    Ok(Outcome::Proved)
}
