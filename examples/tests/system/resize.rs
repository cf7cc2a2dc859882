//! Other resources for pods that run, and containers that are added to look into them.

use std::{fs, path::PathBuf};

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::{ContainerStatus, Node, Pod};
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use kubeedge_examples::{
    lab::{Lab, NODE},
    leftovers::cgroups_naming,
};
use serde_json::{Value, json};

use crate::{
    cluster::{
        apply, container, delete, first, gone, nothing_left, pods, poll, restarts, running, tells, uid, until_pod,
    },
    kubectls::{self, outcome, said},
    pods::script,
    report::Outcome,
};

pub(crate) const RESIZED: &str = "resize::a_pod_gets_other_resources_in_place_or_by_a_restart_or_waits_for_them";
pub(crate) const SIDECAR: &str = "resize::a_sidecar_is_resized_and_less_memory_than_is_in_use_is_refused";
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
    resize_one(client, name, "containers", "main", resources).await
}

async fn resize_one(client: &Client, name: &str, list: &str, container: &str, resources: Value) -> Result<Pod> {
    let patch = Patch::Strategic(json!({"spec": {list: [{"name": container, "resources": resources}]}}));
    Ok(pods(client).patch_subresource("resize", name, &PatchParams::default(), &patch).await?)
}

fn condition(pod: &Pod, type_: &str) -> Option<String> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    conditions.iter().find(|condition| condition.type_ == type_).map(|found| found.reason.clone().unwrap_or_default())
}

fn limit(pod: &Pod, resource: &str) -> Option<String> {
    limit_of(first(pod)?, resource)
}

fn limit_of(status: &ContainerStatus, resource: &str) -> Option<String> {
    Some(status.resources.as_ref()?.limits.as_ref()?.get(resource)?.0.clone())
}

fn settled(pod: &Pod, cpu: &str, memory: &str) -> bool {
    first(pod).is_some_and(|status| settled_as(pod, status, cpu, memory))
}

fn settled_as(pod: &Pod, status: &ContainerStatus, cpu: &str, memory: &str) -> bool {
    let is = |resource: &str, amount: &str| limit_of(status, resource).as_deref() == Some(amount);
    let done = ["PodResizePending", "PodResizeInProgress"].iter().all(|type_| condition(pod, type_).is_none());
    is("cpu", cpu) && is("memory", memory) && done
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
    tells(
        &client,
        &pod,
        &[("Warning", "ResizeInfeasible", "Pod resize Infeasible: Node didn't have enough capacity: cpu, ")],
    )
    .await?;

    // All that the node has: it waits for the others to end, of which one surely runs.
    let beside = running(&client, other).await?;
    let node = Api::<Node>::all(client.clone()).get(NODE).await?;
    let allocatable = node.status.and_then(|status| status.allocatable).unwrap_or_default();
    let all = &allocatable.get("cpu").context("the node has processors")?.0;
    resize(&client, name, json!({"requests": {"cpu": all}, "limits": {"cpu": all}})).await?;
    let deferred = |pod: &Pod| condition(pod, "PodResizePending").as_deref() == Some("Deferred");
    let pod = until_pod(&client, name, "PodResizePending, Deferred", deferred).await?;
    ensure!(limit(&pod, "cpu").as_deref() == Some("100m") && limits(&before.id)?.0 == "10000", "{:?}", pod.status);
    tells(
        &client,
        &pod,
        &[("Warning", "ResizeDeferred", "Pod resize Deferred: Node didn't have enough resource: cpu, ")],
    )
    .await?;
    resize(&client, name, json!({"requests": {"cpu": "50m"}, "limits": {"cpu": "100m"}})).await?;
    until_pod(&client, name, "no resize", |pod| settled(pod, "100m", "24Mi")).await?;

    // A container that wants to be started again for another amount of memory.
    let pod = beside;
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

pub(crate) async fn sidecar(lab: &Lab) -> Result<Outcome> {
    let (client, name) = (lab.client()?, "served");
    // It fills sixteen MiB.
    let fills = "x=0123456789abcdef; i=0; while [ $i -lt 20 ]; do x=$x$x; i=$((i+1)); done; touch /work/full; \
                 while :; do sleep 1; done";
    let resources = "resources: {requests: {cpu: 50m, memory: 4Mi}, limits: {cpu: 200m, memory: 96Mi}}";
    let manifest = script(name, "Always", fills)
        .replace("    imagePullPolicy", &format!("    {resources}\n    imagePullPolicy"))
        .replace(
            "  containers:",
            &format!(
                "  initContainers:\n  - name: side\n    image: IMAGE\n    restartPolicy: Always\n    {resources}\n    \
                 command: [/bin/sh, -c, 'while :; do sleep 1; done']\n  containers:"
            ),
        );
    apply(lab, &manifest).await?;
    let pod = running(&client, name).await?;
    let pod_uid = uid(&pod)?;
    let (side, main) = (container(lab, &pod_uid, "side").await?, container(lab, &pod_uid, "main").await?);

    resize_one(&client, name, "initContainers", "side", json!({"limits": {"cpu": "300m", "memory": "48Mi"}})).await?;
    let sidecar = |pod: &Pod| pod.status.as_ref()?.init_container_statuses.as_ref()?.first().cloned();
    let resized = |pod: &Pod| sidecar(pod).is_some_and(|status| settled_as(pod, &status, "300m", "48Mi"));
    let pod = until_pod(&client, name, "its sidecar is resized", resized).await?;
    let same = sidecar(&pod).is_some_and(|status| status.restart_count == 0);
    ensure!(same && container(lab, &pod_uid, "side").await?.id == side.id, "{:?}", pod.status);
    let expected = ("30000".to_owned(), (48 << 20).to_string());
    ensure!(limits(&side.id)? == expected, "the sidecar has {:?}", limits(&side.id)?);
    let of_pod = limits(&format!("pod{pod_uid}"))?;
    ensure!(of_pod == ("50000".to_owned(), (144 << 20).to_string()), "the pod has {of_pod:?}");
    tells(&client, &pod, &[("Normal", "ResizeCompleted", "Pod resize completed")]).await?;

    // The kernel would end what uses more than it may.
    poll("the memory is in use", async || {
        let done = lab.exec(&main.id, &["cat", "/work/full"]).await;
        Ok(done.map(drop).map_err(|error| format!("{error:#}")))
    })
    .await?;
    resize(&client, name, json!({"limits": {"memory": "8Mi"}})).await?;
    let refused = |pod: &Pod| condition(pod, "PodResizeInProgress").as_deref() == Some("Error");
    let pod = until_pod(&client, name, "PodResizeInProgress, Error", refused).await?;
    let why = "attempting to set memory limit of container main below current usage: limit 8388608, usage ";
    let said = crate::cluster::condition(&pod, "PodResizeInProgress").unwrap_or_default().2;
    ensure!(said.starts_with(why) && limit(&pod, "memory").as_deref() == Some("96Mi"), "{:?}", pod.status);
    tells(&client, &pod, &[("Warning", "ResizeError", why)]).await?;
    resize(&client, name, json!({"limits": {"memory": "80Mi"}})).await?;
    let pod = until_pod(&client, name, "resized to more than is in use", |pod| settled(pod, "200m", "80Mi")).await?;
    ensure!(restarts(&pod) == 0 && container(lab, &pod_uid, "main").await?.id == main.id, "{:?}", pod.status);
    ensure!(limits(&main.id)?.1 == (80 << 20).to_string(), "the container has {:?}", limits(&main.id)?);
    delete(&client, name, 1).await?;
    gone(&client, name, &pod_uid).await?;
    nothing_left(lab, &pod_uid).await?;
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
