//! Persistent volumes: what is in one stays when its pods come and go.

use std::{fs, os::unix::fs::MetadataExt, path::Path};

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use kube::{
    Api, Client,
    api::{DeleteParams, PostParams},
};
use kubeedge_examples::lab::{Lab, NODE};
use serde_json::{Value, json};

use crate::{
    cluster::{
        NAMESPACE, apply, container, delete, gone, nothing_left, poll, restarts, running, uid, until_pod, waits_for,
    },
    kubectls::{self, said},
    pods::script,
    report::Outcome,
};

pub(crate) const LOCAL: &str = "volumes::a_local_volume_is_bound_waited_for_and_outlives_its_pods";

fn claims(client: &Client) -> Api<PersistentVolumeClaim> {
    Api::namespaced(client.clone(), NAMESPACE)
}

async fn make(client: &Client, name: &str, source: Value, node: &str) -> Result<()> {
    let affinity = json!({"required": {"nodeSelectorTerms": [
        {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}]}]}});
    let mut volume = json!({
        "metadata": {"name": name},
        "spec": {"capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"], "storageClassName": "disks",
            "nodeAffinity": affinity},
    });
    for (field, part) in source.as_object().context("a source")? {
        volume["spec"][field] = part.clone();
    }
    let volume: PersistentVolume = serde_json::from_value(volume)?;
    Api::all(client.clone()).create(&PostParams::default(), &volume).await?;
    Ok(())
}

async fn phase_becomes(client: &Client, name: &str, phase: &str) -> Result<()> {
    let volumes = Api::<PersistentVolume>::all(client.clone());
    poll(&format!("volume {name} is {phase}"), async || {
        let seen = volumes.get(name).await?.status.and_then(|status| status.phase).unwrap_or_default();
        Ok(if seen == phase { Ok(()) } else { Err(seen) })
    })
    .await
}

fn manifest(name: &str, story: &str, claim: &str) -> String {
    let volume = format!("persistentVolumeClaim: {{claimName: {claim}}}");
    script(name, "Always", story)
        .replace("emptyDir: {}", &volume)
        .replace("spec:\n", "spec:\n  securityContext: {fsGroup: 2345}\n")
}

fn folder(disk: &Path) -> Result<&str> {
    disk.to_str().context("a path of UTF-8")
}

pub(crate) async fn local(lab: &Lab) -> Result<Outcome> {
    let client = lab.client()?;
    let disk = lab.folder().join("disk");
    fs::create_dir(&disk)?;
    fs::write(disk.join("before"), "kept\n")?;
    let claim: PersistentVolumeClaim = serde_json::from_value(json!({
        "metadata": {"name": "data"},
        "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "disks",
            "resources": {"requests": {"storage": "500Mi"}}},
    }))?;

    // The pod is there before its claim, and the claim before its volume.
    let story = "cat /work/before > /work/after; echo $HOSTNAME >> /work/who; while :; do sleep 1; done";
    apply(lab, &manifest("writer", story, "data")).await?;
    let creating = |pod: &Pod| waits_for(pod).is_some_and(|(reason, _)| reason == "ContainerCreating");
    let pod = until_pod(&client, "writer", "ContainerCreating", creating).await?;
    claims(&client).create(&PostParams::default(), &claim).await?;
    let says =
        |words: &'static str| move |pod: &Pod| waits_for(pod).is_some_and(|(_, message)| message.contains(words));
    until_pod(&client, "writer", "it waits for a volume", says("it is not bound to a volume yet")).await?;
    make(&client, "disk-1", json!({"local": {"path": folder(&disk)?}}), NODE).await?;
    let started = running(&client, "writer").await?;
    ensure!(started.metadata.uid == pod.metadata.uid && restarts(&started) == 0);
    phase_becomes(&client, "disk-1", "Bound").await?;
    let bound = claims(&client).get("data").await?;
    let status = bound.status.clone().unwrap_or_default();
    ensure!(status.phase.as_deref() == Some("Bound"), "the claim is {status:?}");
    if let Some(kubectl) = kubectls::newest() {
        let row = said(lab, &kubectl, &["get", "pvc", "data", "--no-headers"]).await?;
        let cells: Vec<&str> = row.split_whitespace().collect();
        ensure!(cells.starts_with(&["data", "Bound", "disk-1", "1Gi", "RWO", "disks"]), "{row}");
    }
    let writer = uid(&started)?;
    poll("the pod has written", async || {
        let seen = fs::read_to_string(disk.join("who")).unwrap_or_default();
        Ok(if seen == "writer\n" { Ok(()) } else { Err(seen) })
    })
    .await?;
    ensure!(fs::read_to_string(disk.join("after"))? == "kept\n", "what was in it is seen");
    ensure!(fs::metadata(&disk)?.gid() == 2345 && fs::metadata(disk.join("who"))?.gid() == 2345, "fsGroup has it");

    delete(&client, "writer", 1).await?;
    gone(&client, "writer", &writer).await?;
    nothing_left(lab, &writer).await?;
    ensure!(!lab.folder().join("edge/kubelet/pods").join(&writer).exists());
    ensure!(fs::read_to_string(disk.join("who"))? == "writer\n", "what is in a volume is not the pod's");

    // Another pod, which may only read it.
    let read_only = manifest("reader", "cat /work/who; while :; do sleep 1; done", "data, readOnly: true");
    apply(lab, &read_only).await?;
    let reader = uid(&running(&client, "reader").await?)?;
    let main = container(lab, &reader, "main").await?;
    ensure!(lab.exec(&main.id, &["cat", "/work/who"]).await? == "writer\n");
    let refused = lab.exec(&main.id, &["/bin/sh", "-c", "echo x > /work/x"]).await;
    ensure!(refused.is_err() && !disk.join("x").exists(), "a claim that is only read was written to");
    delete(&client, "reader", 1).await?;
    gone(&client, "reader", &reader).await?;

    // Without its claim the volume is nobody's, and what is in it stays.
    claims(&client).delete("data", &DeleteParams::default()).await?;
    phase_becomes(&client, "disk-1", "Released").await?;
    ensure!(disk.join("who").exists());

    // One that is on another node is not mistaken for a folder of this one.
    make(&client, "disk-2", json!({"local": {"path": folder(&disk)?}}), "edge-2").await?;
    claims(&client).create(&PostParams::default(), &claim).await?;
    apply(lab, &manifest("astray", "sleep 1", "data")).await?;
    let astray = until_pod(&client, "astray", "its volume is elsewhere", says("is not on node edge-1")).await?;
    delete(&client, "astray", 0).await?;
    gone(&client, "astray", &uid(&astray)?).await?;
    claims(&client).delete("data", &DeleteParams::default()).await?;
    Ok(Outcome::Proved)
}
