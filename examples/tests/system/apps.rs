//! Deployments and DaemonSets of the standalone API server with real pods.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};
use futures_util::TryStreamExt;
use k8s_openapi::api::{
    apps::v1::{DaemonSet, Deployment},
    core::v1::Pod,
};
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, WatchEvent, WatchParams},
};
use kubeedge_examples::{
    containerd::Tools,
    lab::{Lab, NODE},
};
use serde_json::json;

use crate::{
    cluster::{NAMESPACE, nothing_left, page, pods, poll, running, uid},
    pods::up,
    report::{Outcome, Report},
};

const UP: &str = "apps::a_lab_comes_up";
const DOWN: &str = "apps::nothing_is_left_on_the_machine";
const ROLLOUT: &str = "apps::a_deployment_rolls_with_as_many_ready_pods_as_it_promises";
const DAEMON: &str = "apps::a_daemon_set_puts_its_pod_on_the_node_and_takes_it_away";
const ALL: [&str; 2] = [ROLLOUT, DAEMON];

pub(crate) async fn stage(report: &mut Report, tools: &Result<Tools>) {
    if !report.begins(&ALL) {
        return;
    }
    let Some(tools) = report.tools(tools, &ALL) else { return };
    let Some((mut lab, folder)) = report.lab(UP, async |lab| up(lab, tools).await).await else { return };
    report.run(ROLLOUT, lab.guarded(rollout)).await;
    report.run(DAEMON, lab.guarded(daemon)).await;
    report.close(DOWN, lab, folder, Ok(())).await;
}

/// Serves its version as a page.
fn spec(lab: &Lab, name: &str, version: &str) -> Result<serde_json::Value> {
    let serve = "echo $VERSION > /tmp/version; exec httpd -f -p 8080 -h /tmp";
    Ok(json!({
        "selector": {"matchLabels": {"app": name}},
        "template": {"metadata": {"labels": {"app": name}}, "spec": {
            "terminationGracePeriodSeconds": 1,
            "containers": [{
                "name": "web", "image": lab.busybox()?, "command": ["sh", "-c", serve],
                "env": [{"name": "VERSION", "value": version}],
            }],
        }},
    }))
}

/// Ready, and not asked to end.
fn serves(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    pod.metadata.deletion_timestamp.is_none()
        && conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

async fn rollout(lab: &Lab) -> Result<Outcome> {
    let client = lab.client()?;
    let api: Api<Deployment> = Api::namespaced(client.clone(), NAMESPACE);
    let mut wanted = spec(lab, "web", "v1")?;
    wanted["replicas"] = json!(2);
    let web = serde_json::from_value(json!({"metadata": {"name": "web"}, "spec": wanted}))?;
    api.create(&PostParams::default(), &web).await.context("create the deployment")?;
    rolled(&api, "web").await?;
    let before = served(&client, "web", "v1\n", 2).await?;

    // Every change of every pod from here on, none left out.
    let selected = ListParams::default().labels("app=web");
    let list = pods(&client).list(&selected).await?;
    let version = list.metadata.resource_version.clone().context("a list has a version")?;
    let mut now: BTreeMap<String, bool> = list.iter().map(|pod| (pod.name_any(), serves(pod))).collect();
    let update = json!({"spec": spec(lab, "web", "v2")?});
    api.patch("web", &PatchParams::default(), &Patch::Strategic(update)).await.context("change the version")?;
    let watching = async {
        let mut changes = Box::pin(pods(&client).watch(&WatchParams::default().labels("app=web"), &version).await?);
        while let Some(change) = changes.try_next().await? {
            match change {
                WatchEvent::Added(pod) | WatchEvent::Modified(pod) => now.insert(pod.name_any(), serves(&pod)),
                WatchEvent::Deleted(pod) => now.remove(&pod.name_any()),
                WatchEvent::Bookmark(_) => None,
                WatchEvent::Error(error) => bail!("the watch ends: {error}"),
            };
            let serving = now.values().filter(|serves| **serves).count();
            ensure!(serving >= 2, "a moment with {serving} ready pods: {now:?}");
            ensure!(now.len() <= 5, "more pods than a rollout may have, the ending ones included: {now:?}");
        }
        bail!("the watch ended")
    };
    tokio::select! {
        failed = watching => { failed?; }
        done = rolled(&api, "web") => done?,
    }
    let after = served(&client, "web", "v2\n", 2).await?;
    ensure!(before.iter().all(|uid| !after.contains(uid)), "a pod of the old template is left");

    api.delete("web", &DeleteParams::default()).await?;
    for uid in before.iter().chain(&after) {
        gone(lab, &client, "web", uid).await?;
    }
    Ok(Outcome::Proved)
}

/// Awaits that a Deployment is where it wants to be.
async fn rolled(api: &Api<Deployment>, name: &str) -> Result<()> {
    poll(&format!("deployment {name} is rolled out"), async || {
        let found = api.get(name).await?;
        let status = found.status.clone().unwrap_or_default();
        let wanted = found.spec.as_ref().and_then(|spec| spec.replicas);
        let counts = [status.replicas, status.updated_replicas, status.available_replicas];
        let done = status.observed_generation == found.metadata.generation && counts.iter().all(|one| *one == wanted);
        Ok(if done { Ok(()) } else { Err(format!("{status:?}")) })
    })
    .await
}

/// The uids of the pods of an app that do not end; each is on the node and serves this.
async fn served(client: &Client, app: &str, text: &str, count: usize) -> Result<Vec<String>> {
    let all = pods(client).list(&ListParams::default().labels(&format!("app={app}"))).await?;
    let mut uids = Vec::new();
    for pod in all.iter().filter(|pod| pod.metadata.deletion_timestamp.is_none()) {
        let pod = running(client, &pod.name_any()).await?;
        let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref());
        ensure!(node == Some(NODE), "pod {} is on {node:?}", pod.name_any());
        let seen = page(&pod, "/version").await?;
        ensure!(seen == text, "pod {} serves {seen:?} instead of {text:?}", pod.name_any());
        uids.push(uid(&pod)?);
    }
    ensure!(uids.len() == count, "expected {count} pods of {app}, there are {uids:?}");
    Ok(uids)
}

/// Awaits that a pod of an app is gone from the API, and checks that it is from the machine.
async fn gone(lab: &Lab, client: &Client, app: &str, uid: &str) -> Result<()> {
    poll(&format!("the pod {uid} of {app} is gone"), async || {
        let all = pods(client).list(&ListParams::default().labels(&format!("app={app}"))).await?;
        let left = all.iter().find(|pod| pod.metadata.uid.as_deref() == Some(uid));
        Ok(left.map_or(Ok(()), |pod| Err(format!("{:?}", pod.metadata))))
    })
    .await?;
    nothing_left(lab, uid).await
}

async fn daemon(lab: &Lab) -> Result<Outcome> {
    let client = lab.client()?;
    let api: Api<DaemonSet> = Api::namespaced(client.clone(), NAMESPACE);
    let agent = json!({"metadata": {"name": "agent"}, "spec": spec(lab, "agent", "v1")?});
    api.create(&PostParams::default(), &serde_json::from_value(agent)?).await.context("create the daemon set")?;
    available(&api).await?;
    let first = served(&client, "agent", "v1\n", 1).await?;
    let update = json!({"spec": spec(lab, "agent", "v2")?});
    api.patch("agent", &PatchParams::default(), &Patch::Strategic(update)).await.context("change the version")?;
    available(&api).await?;
    let second = served(&client, "agent", "v2\n", 1).await?;
    gone(lab, &client, "agent", &first[0]).await?;
    api.delete("agent", &DeleteParams::default()).await?;
    gone(lab, &client, "agent", &second[0]).await?;
    Ok(Outcome::Proved)
}

/// Awaits that the daemon set's pod is there, of the present template and available.
async fn available(api: &Api<DaemonSet>) -> Result<()> {
    poll("the daemon set is rolled out", async || {
        let found = api.get("agent").await?;
        let status = found.status.clone().unwrap_or_default();
        let done = status.observed_generation == found.metadata.generation
            && status.desired_number_scheduled == 1
            && status.updated_number_scheduled == Some(1)
            && status.number_available == Some(1);
        Ok(if done { Ok(()) } else { Err(format!("{status:?}")) })
    })
    .await
}
