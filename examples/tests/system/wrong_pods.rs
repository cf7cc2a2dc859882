//! Pods with every wrong thing in them that one can write, as users' manifests: through the API server to a real
//! container runtime.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use futures_util::future::try_join_all;
use http::Request;
use k8s_openapi::api::core::v1::{Event, Pod};
use kube::{Api, Client, ResourceExt, api::ListParams};
use kubeedge_examples::lab::{Lab, NODE};
use serde_json::Value;

use crate::{
    cluster::{NAMESPACE, apply, delete, first, gone, nothing_stays, poll, restarts, running, uid},
    pods::serving,
    report::Outcome,
};

#[allow(clippy::expect_used, reason = "of a test: what it finds in its own pods is there")]
#[path = "../../../kubeedge-actors/src/edged/tests/wrong_pods.rs"]
mod generated;

pub(crate) const SAID: &str = "wrong_pods::what_is_wrong_in_a_pod_is_said_and_the_pod_beside_it_notices_nothing";
/// For all of them, on a machine that does other things as well.
pub(crate) const SAID_WITHIN: Duration = Duration::from_secs(300);

/// So many are written, unless `KUBEEDGE_WRONG_PODS` says otherwise; the API server refuses most of them.
const MANY: usize = 120;

fn many() -> Result<usize> {
    match std::env::var("KUBEEDGE_WRONG_PODS") {
        Ok(many) => many.parse().context("KUBEEDGE_WRONG_PODS, expected a number"),
        Err(_) => Ok(MANY),
    }
}

pub(crate) async fn said(lab: &Lab) -> Result<Outcome> {
    let client = lab.client()?;
    apply(lab, &serving("beside", "/etc")).await?;
    let beside = running(&client, "beside").await?;

    let (mut taken, mut refused) = (Vec::new(), 0);
    for (mut manifest, spoilt) in generated::wrong_pods(many()?, &lab.busybox()?) {
        let Some(metadata) = manifest["metadata"].as_object_mut() else { bail!("no metadata: {manifest}") };
        metadata.insert("namespace".into(), NAMESPACE.into());
        metadata.remove("uid");
        manifest["spec"]["nodeName"] = NODE.into();
        match create(&client, &manifest).await {
            Ok(pod) => taken.push((pod, spoilt)),
            Err(kube::Error::Api(status)) if [400, 422].contains(&status.code) => {
                ensure!(!status.message.is_empty(), "a refusal says why ({spoilt:?}): {status:?}");
                refused += 1;
            }
            Err(error) => return Err(error).with_context(|| format!("create a pod with {spoilt:?}")),
        }
    }
    ensure!(taken.len() >= 10 && refused >= 10, "{} were taken and {refused} refused", taken.len());
    try_join_all(taken.iter().map(|(pod, spoilt)| answer(&client, pod, spoilt))).await?;

    try_join_all(taken.iter().map(async |(pod, _)| {
        let (name, uid) = (pod.name_any(), uid(pod)?);
        // With 0 the API forgets it at once, whatever the node has of it.
        delete(&client, &name, 1).await?;
        gone(&client, &name, &uid).await?;
        nothing_stays(lab, &uid).await
    }))
    .await?;
    let after = running(&client, "beside").await?;
    let instance = |pod: &Pod| first(pod).and_then(|status| status.container_id.clone());
    ensure!(instance(&after) == instance(&beside) && restarts(&after) == 0, "the pod beside them is as it was");
    delete(&client, "beside", 1).await?;
    gone(&client, "beside", &uid(&beside)?).await?;
    Ok(Outcome::Proved)
}

/// As written: a type would leave out what it does not know.
async fn create(client: &Client, manifest: &Value) -> kube::Result<Pod> {
    let path = format!("/api/v1/namespaces/{NAMESPACE}/pods");
    let body = serde_json::to_vec(manifest).map_err(kube::Error::SerdeError)?;
    let request = Request::post(path).header("content-type", "application/json").body(body);
    client.request(request.map_err(kube::Error::HttpError)?).await
}

/// Awaits that a pod runs, or that its status and an event say why it does not.
async fn answer(client: &Client, pod: &Pod, spoilt: &[String]) -> Result<()> {
    let (name, uid) = (pod.name_any(), uid(pod)?);
    let events = Api::<Event>::namespaced(client.clone(), NAMESPACE);
    let about = ListParams::default().fields(&format!("involvedObject.uid={uid}"));
    poll(&format!("pod {name} runs or says why not ({spoilt:?})"), async || {
        let status = crate::cluster::pods(client).get(&name).await?.status.unwrap_or_default();
        let phase = status.phase.as_deref().unwrap_or_default();
        if phase == "Running" {
            return Ok(Ok(()));
        }
        let told = events.list(&about).await?.items;
        let warned = told.iter().any(|event| event.type_.as_deref() == Some("Warning"));
        let said = phase != "Failed" || (status.reason.is_some() && status.message.is_some());
        let conditions = status.conditions.as_deref().is_some_and(|conditions| !conditions.is_empty());
        Ok(if warned && said && conditions { Ok(()) } else { Err(format!("{status:?}, events {told:?}")) })
    })
    .await
}
