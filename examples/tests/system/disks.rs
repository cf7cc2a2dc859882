//! Disks that are full or fail under cloudcore and edgecore: both say so, serve what they have, lose nothing that was
//! acknowledged, and go on by themselves when there is room.
//!
//! Each side has a small disk of its own. Where that cannot be had, the scenarios are skipped by name.

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::api::core::v1::{ConfigMap, Node};
use kube::{Api, Client};
use kubeedge_examples::{
    containerd::Tools,
    lab::{Container, Lab, NODE, Side},
};

use crate::{
    cluster::{
        NAMESPACE, apply, container, log_says, node_ready, page_becomes, poll, restarts, running, uid, write_config,
    },
    node::told,
    pods::{serving, up},
    report::{Outcome, Report},
};

const UP: &str = "disks::a_lab_comes_up";
const DOWN: &str = "disks::nothing_is_left_on_the_machine";
const FULL_CLOUD: &str = "disks::a_full_cloud_refuses_changes_and_recovers_by_itself";
const FULL_EDGE: &str = "disks::a_full_edge_keeps_its_pods_and_recovers_by_itself";
const FAILED_CLOUD: &str = "disks::a_cloud_whose_disk_failed_serves_what_it_has_and_loses_nothing";
const FAILED_EDGE: &str = "disks::an_edge_whose_disk_failed_keeps_its_pods";
const ALL: [&str; 4] = [FULL_CLOUD, FULL_EDGE, FAILED_CLOUD, FAILED_EDGE];

/// Bytes of each disk: stores, logs and volumes of one pod, several times.
const DISK: u64 = 96 << 20;
/// Free bytes with which a node of that size is short of disk (10 %) and its store still works (4 MiB and more).
const SHORT: u64 = 8 << 20;
/// How often something is tried that must not work.
const ATTEMPTS: usize = 5;
const STEADY: &str = "steady";

pub(crate) async fn stage(report: &mut Report, tools: &Result<Tools>) {
    if !report.begins(&ALL) {
        return;
    }
    let Some(tools) = report.tools(tools, &ALL) else { return };
    let mut no_disks = None;
    let begin = async |lab: &mut Lab| {
        if let Err(why) = lab.use_small_disks(DISK).await {
            no_disks = Some(format!("this machine gives no disks of their own: {why:#}"));
            return Ok(());
        }
        // A condition is told at once, an eviction would come after an hour: this is about the store.
        lab.settings = vec![
            "evictionSoft: {nodefs.available: 10%}".into(),
            "evictionSoftGracePeriod: {nodefs.available: 1h}".into(),
        ];
        up(lab, tools).await?;
        lab.guarded(steady).await
    };
    let Some((mut lab, folder)) = report.lab(UP, begin).await else { return };
    if let Some(why) = no_disks {
        for name in ALL {
            report.run(name, async { Ok(Outcome::Skipped(why.clone())) }).await;
        }
    } else {
        report.run(FULL_CLOUD, full_cloud(&mut lab)).await;
        report.run(FULL_EDGE, full_edge(&mut lab)).await;
        report.run(FAILED_CLOUD, failed_cloud(&mut lab)).await;
        report.run(FAILED_EDGE, failed_edge(&mut lab)).await;
    }
    report.close(DOWN, lab, folder, Ok(())).await;
}

async fn steady(lab: &Lab) -> Result<()> {
    let client = lab.client()?;
    write_config(&client, STEADY, &[("index.html", "first")]).await?;
    let manifest = serving(STEADY, "/www")
        .replace("    ports:", "    volumeMounts: [{name: www, mountPath: /www}]\n    ports:")
        + &format!("  volumes: [{{name: www, configMap: {{name: {STEADY}}}}}]\n");
    apply(lab, &manifest).await?;
    shows(lab, &client, "first").await.map(drop)
}

/// The pod serves this text; its container, which has never been started again.
async fn shows(lab: &Lab, client: &Client, text: &str) -> Result<Container> {
    let pod = running(client, STEADY).await?;
    page_becomes(&pod, "/index.html", text).await?;
    ensure!(restarts(&pod) == 0, "the pod was restarted");
    container(lab, &uid(&pod)?, "web").await
}

async fn write(client: &Client, text: &str) -> Result<()> {
    write_config(client, STEADY, &[("index.html", text)]).await
}

async fn stored(client: &Client) -> Result<Option<String>> {
    let map = Api::<ConfigMap>::namespaced(client.clone(), NAMESPACE).get(STEADY).await?;
    Ok(map.data.unwrap_or_default().remove("index.html"))
}

/// No change is taken, each is answered with 507 and why, and what is read is as it was.
async fn refuses(client: &Client, why: &str, kept: &str) -> Result<()> {
    for attempt in 0..ATTEMPTS {
        let error = match write(client, "refused").await {
            Ok(()) => bail!("attempt {attempt}: acknowledged without a place to keep it"),
            Err(error) => error,
        };
        let Some(kube::Error::Api(status)) = error.downcast_ref() else { return Err(error) };
        ensure!(status.code == 507 && status.message.contains(why), "attempt {attempt}: {status:?}");
        ensure!(stored(client).await?.as_deref() == Some(kept), "attempt {attempt}: something else is read");
    }
    Ok(())
}

fn no_panic(lab: &Lab, program: &str, from: usize) -> Result<()> {
    let log = lab.log(program)?;
    let panic = log.get(from..).unwrap_or_default().lines().find(|line| line.contains("panicked"));
    ensure!(panic.is_none(), "{program}: {panic:?}");
    Ok(())
}

async fn full_cloud(lab: &mut Lab) -> Result<Outcome> {
    let from = lab.log("cloudcore")?.len();
    let client = lab.client()?;
    let before = lab.guarded(async |lab| shows(lab, &client, "first").await).await?;
    write(&client, "kept").await?;
    lab.disk(Side::Cloud).fill(0)?;
    lab.guarded(async |lab| {
        refuses(&client, "disk is full", "kept").await?;
        log_says(lab, "cloudcore", from, &["the store does not commit", "disk is full"]).await?;
        // The edge has what was acknowledged, and its pods go on.
        ensure!(shows(lab, &client, "kept").await? == before, "another container");
        lab.disk(Side::Cloud).empty()?;
        write(&client, "after").await.context("with room again")?;
        log_says(lab, "cloudcore", from, &["the store commits again"]).await?;
        ensure!(shows(lab, &client, "after").await? == before, "another container");
        no_panic(lab, "cloudcore", from)
    })
    .await?;
    lab.kill_cloud().await?;
    lab.resume_cloud().await?;
    let client = lab.client()?;
    ensure!(stored(&client).await?.as_deref() == Some("after"), "something else was on disk");
    Ok(Outcome::Proved)
}

async fn full_edge(lab: &mut Lab) -> Result<Outcome> {
    let from = lab.log("edgecore")?.len();
    lab.guarded(async |lab| {
        let client = lab.client()?;
        node_ready(&client).await?;
        write(&client, "on both").await?;
        let before = shows(lab, &client, "on both").await?;

        lab.disk(Side::Edge).fill(SHORT)?;
        poll("the node is short of disk", async || {
            let node = Api::<Node>::all(client.clone()).get(NODE).await?;
            let conditions = node.status.unwrap_or_default().conditions.unwrap_or_default();
            let found = conditions.iter().any(|it| it.type_ == "DiskPressure" && it.status == "True");
            Ok(if found { Ok(()) } else { Err(format!("{conditions:?}")) })
        })
        .await?;
        let short = told(lab, NODE, "NodeHasDiskPressure").await?;
        ensure!(short == format!("Node {NODE} status is now: NodeHasDiskPressure"), "{short}");

        lab.disk(Side::Edge).fill(0)?;
        write(&client, "later").await?;
        log_says(lab, "edgecore", from, &["the store does not commit", "disk is full"]).await?;
        ensure!(shows(lab, &client, "on both").await? == before, "another container");
        lab.disk(Side::Edge).empty()?;
        log_says(lab, "edgecore", from, &["the store commits again"]).await?;
        ensure!(shows(lab, &client, "later").await? == before, "another container");
        no_panic(lab, "edgecore", from)
    })
    .await?;
    Ok(Outcome::Proved)
}

async fn failed_cloud(lab: &mut Lab) -> Result<Outcome> {
    let from = lab.log("cloudcore")?.len();
    let client = lab.client()?;
    write(&client, "before").await?;
    let before = lab.guarded(async |lab| shows(lab, &client, "before").await).await?;
    lab.disk(Side::Cloud).fail()?;
    lab.guarded(async |lab| {
        refuses(&client, "read-only", "before").await?;
        log_says(lab, "cloudcore", from, &["the store does not commit", "read-only"]).await?;
        ensure!(shows(lab, &client, "before").await? == before, "another container");
        no_panic(lab, "cloudcore", from)
    })
    .await?;
    lab.kill_cloud().await?;
    lab.disk(Side::Cloud).mend().await?;
    lab.resume_cloud().await?;
    lab.guarded(async |lab| {
        let client = lab.client()?;
        ensure!(stored(&client).await?.as_deref() == Some("before"), "something else was on disk");
        write(&client, "mended").await?;
        ensure!(shows(lab, &client, "mended").await? == before, "another container");
        Ok(())
    })
    .await?;
    Ok(Outcome::Proved)
}

async fn failed_edge(lab: &mut Lab) -> Result<Outcome> {
    let from = lab.log("edgecore")?.len();
    lab.guarded(async |lab| {
        let client = lab.client()?;
        node_ready(&client).await?;
        write(&client, "held").await?;
        let before = shows(lab, &client, "held").await?;
        lab.disk(Side::Edge).fail()?;
        write(&client, "too late").await?;
        log_says(lab, "edgecore", from, &["the store does not commit", "read-only"]).await?;
        ensure!(shows(lab, &client, "held").await? == before, "another container");
        no_panic(lab, "edgecore", from)
    })
    .await?;
    // Its disk takes no orderly end.
    lab.kill_edge().await?;
    Ok(Outcome::Proved)
}
