//! `kubectl` against the standalone API server, as a person uses it.

use std::{fs, process::Stdio};

use anyhow::{Context, Result, bail, ensure};
use kubeedge_examples::lab::{Lab, NODE};
use tokio::io::{AsyncBufReadExt, BufReader};

use crate::{
    cluster::{nothing_left, pods, running, uid},
    kubectls::{self, command, outcome, said},
    pods::{script, serving},
    report::Outcome,
};

pub(crate) const WATCH: &str = "kubectl::get_pods_w_shows_pending_container_creating_running";
pub(crate) const VERBS: &str = "kubectl::apply_get_describe_edit_and_delete_work";
pub(crate) const GRACE: &str = "kubectl::delete_waits_for_the_container_to_end_in_order";

/// The columns of one pod, a line for each change.
pub(crate) async fn watch(lab: &Lab) -> Result<Outcome> {
    let Some(kubectl) = kubectls::newest() else { return kubectls::missing() };
    let name = "watched";
    let selector = format!("metadata.name={name}");
    let mut kubectl = command(lab, &kubectl, &["get", "pods", "-w", "--field-selector", &selector]);
    let mut watching = kubectl.stderr(Stdio::inherit()).spawn().context("start kubectl")?;
    let mut lines = BufReader::new(watching.stdout.take().context("its output is ours")?).lines();
    apply(lab, &serving(name, "/")).await?;
    let mut states = Vec::new();
    let seen = async {
        while let Some(line) = lines.next_line().await? {
            let columns: Vec<&str> = line.split_whitespace().collect();
            if let [of, ready, status, restarts, _age, ..] = columns.as_slice()
                && *of == name
            {
                states.push((*status).to_owned());
                if *status == "Running" && *ready == "1/1" {
                    ensure!(*restarts == "0", "RESTARTS is {restarts}");
                    return Ok(());
                }
            }
        }
        bail!("kubectl ended")
    };
    let seen = tokio::time::timeout(std::time::Duration::from_secs(60), seen).await;
    watching.kill().await?;
    states.dedup();
    match seen {
        Ok(seen) => seen.with_context(|| format!("seen: {states:?}"))?,
        Err(_) => bail!("the pod is not shown as Running; seen: {states:?}"),
    }
    ensure!(states == ["Pending", "ContainerCreating", "Running"], "STATUS went through {states:?}");
    Ok(Outcome::Proved)
}

/// What everybody does on the first day.
pub(crate) async fn verbs(lab: &Lab) -> Result<Outcome> {
    let Some(kubectl) = kubectls::newest() else { return kubectls::missing() };
    let manifest = serving("verbs", "/");
    let said = apply(lab, &manifest).await?;
    ensure!(said.trim() == "pod/verbs created", "{said:?}");
    let said = apply(lab, &manifest).await?;
    ensure!(said.trim() == "pod/verbs unchanged", "a second time: {said:?}");
    let pod = running(&lab.client()?, "verbs").await?;
    let ip = pod.status.and_then(|status| status.pod_ip).unwrap_or_default();

    let wide = run(lab, &["get", "pod", "verbs", "-o", "wide"]).await?;
    for part in ["1/1", "Running", &ip, NODE] {
        ensure!(wide.contains(part), "{part} is not in:\n{wide}");
    }
    let nodes = run(lab, &["get", "nodes"]).await?;
    ensure!(nodes.contains(NODE) && nodes.contains(" Ready"), "{nodes}");
    let described = run(lab, &["describe", "pod", "verbs"]).await?;
    for part in ["Name:", "verbs", "Status:", "Running", "Container ID:", "containerd://", "Restart Count:", &ip] {
        ensure!(described.contains(part), "{part} is not in:\n{described}");
    }
    ensure!(run(lab, &["describe", "node", NODE]).await?.contains("Allocatable:"), "describe node");
    let label = manifest.replace("  name: verbs\n", "  name: verbs\n  labels: {applied: twice}\n");
    ensure!(apply(lab, &label).await?.trim() == "pod/verbs configured");
    ensure!(run(lab, &["get", "pods", "-l", "applied=twice", "-o", "name"]).await?.trim() == "pod/verbs");
    run(lab, &["create", "configmap", "made", "--from-literal=a=b"]).await?;
    run(lab, &["patch", "configmap", "made", "-p", "{\"data\":{\"c\":\"d\"}}"]).await?;
    let data = run(lab, &["get", "configmap", "made", "-o", "jsonpath={.data}"]).await?;
    ensure!(data == "{\"a\":\"b\",\"c\":\"d\"}", "{data}");
    let deleted = run(lab, &["delete", "pod/verbs", "configmap/made", "--now"]).await?;
    ensure!(deleted.contains("pod \"verbs\"") && deleted.contains("configmap \"made\""), "{deleted}");
    let (found, why) = outcome(lab, &kubectl, &["get", "pod", "verbs"]).await?;
    ensure!(!found && why.contains("(NotFound): pods \"verbs\" not found"), "{why}");
    Ok(Outcome::Proved)
}

/// SIGTERM, then time; `kubectl delete` comes back when nothing is left.
pub(crate) async fn grace(lab: &Lab) -> Result<Outcome> {
    if kubectls::newest().is_none() {
        return kubectls::missing();
    }
    let outside = lab.folder().join("grace");
    fs::create_dir(&outside)?;
    let told = "trap 'echo told >> /out/story; sleep 2; echo done >> /out/story; exit 0' TERM; \
                echo up >> /out/story; while :; do sleep 0.1; done";
    let manifest = script("grace", "Always", told)
        .replace("terminationGracePeriodSeconds: 1", "terminationGracePeriodSeconds: 20")
        .replace("volumeMounts: [{", "volumeMounts: [{name: out, mountPath: /out}, {")
        .replace(
            "volumes: [{",
            &format!("volumes: [{{name: out, hostPath: {{path: {}, type: Directory}}}}, {{", outside.display()),
        );
    apply(lab, &manifest).await?;
    let client = lab.client()?;
    let uid = uid(&running(&client, "grace").await?)?;
    crate::cluster::poll("the container has started", async || {
        let story = fs::read_to_string(outside.join("story")).unwrap_or_default();
        Ok(if story == "up\n" { Ok(()) } else { Err(story) })
    })
    .await?;
    let deleted = run(lab, &["delete", "pod", "grace"]).await?;
    ensure!(deleted.contains("pod \"grace\""), "{deleted}");
    // It is back: so the container had its time, and nothing is left anywhere.
    let story = fs::read_to_string(outside.join("story"))?;
    ensure!(story == "up\ntold\ndone\n", "the container's story: {story:?}");
    ensure!(pods(&client).get_opt("grace").await?.is_none(), "the API still has it");
    nothing_left(lab, &uid).await?;
    Ok(Outcome::Proved)
}

/// `kubectl apply` of a manifest; `IMAGE` in it stands for the lab's busybox, the node is the lab's.
async fn apply(lab: &Lab, manifest: &str) -> Result<String> {
    let text =
        manifest.replace("IMAGE", &lab.busybox()?).replace("\nspec:\n", &format!("\nspec:\n  nodeName: {NODE}\n"));
    let name = manifest.lines().find_map(|line| line.strip_prefix("  name: ")).context("a manifest has a name")?;
    let path = lab.folder().join(format!("{name}.yaml"));
    fs::write(&path, text)?;
    run(lab, &["apply", "-f", path.to_str().context("a path of UTF-8")?]).await
}

/// The newest kubectl with these arguments; what it printed.
pub(crate) async fn run(lab: &Lab, arguments: &[&str]) -> Result<String> {
    said(lab, &kubectls::newest().context("there is no kubectl")?, arguments).await
}
