//! What runs outlives who runs it: edgecore and cloudcore are killed, stopped and robbed of their memory.
//! One lab; the scenarios come one after the other and share a pod that has to live through most of them.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::{Api, ResourceExt};
use kubeedge_examples::{
    containerd::Tools,
    http,
    lab::{Container, Ended, Lab},
    process::Memory,
};

use crate::{
    cluster::{
        NAMESPACE, TICK, address, apply, container, delete, first, gone, log_says, node_ready, nothing_left,
        one_sandbox, page_becomes, pods, poll, restarts, running, uid, until_pod, write_config,
    },
    pods::{script, serving, up},
    report::{Outcome, Report},
};

const UP: &str = "restarts::a_lab_comes_up";
const DOWN: &str = "restarts::nothing_is_left_on_the_machine";
const MEMORY: &str = "restarts::edgecore_needs_little_memory";
const KILLED: &str = "restarts::a_killed_edgecore_takes_up_where_it_was";
const STOPPED: &str = "restarts::programs_stop_in_order_and_lose_nothing";
const CORRUPTED: &str = "restarts::a_container_outlives_the_edges_store";
const OFFLINE: &str = "restarts::pods_start_from_disk_without_a_cloud";
const ALL: [&str; 5] = [MEMORY, KILLED, STOPPED, CORRUPTED, OFFLINE];

/// The pod that is there all the time, and the page that it serves.
const STEADY: &str = "steady";
/// How long nothing may change, where something wrong would: several looks at the runtime, one a second, and a grace.
const STAYS: Duration = Duration::from_secs(5);
/// "Within seconds", on a machine that is slow.
const ORDERLY: Duration = Duration::from_secs(10);
/// Bound of edgecore's own memory in the unoptimized profile, bytes: its heap and stacks, without the program's file,
/// which is several times larger than an optimized one.
const MEMORY_LIMIT: u64 = 10_000_000;

pub(crate) async fn stage(report: &mut Report, tools: &Result<Tools>) {
    if !report.begins(&ALL) {
        return;
    }
    let Some(tools) = report.tools(tools, &ALL) else { return };
    let mut idle = None;
    let begin = async |lab: &mut Lab| {
        up(lab, tools).await?;
        idle = Some(lab.edge_memory()?);
        lab.guarded(steady).await
    };
    let Some((mut lab, folder)) = report.lab(UP, begin).await else { return };
    report.run(MEMORY, async { memory(&lab, idle) }).await;
    report.run(KILLED, killed(&mut lab)).await;
    report.run(STOPPED, stopped(&mut lab)).await;
    report.run(CORRUPTED, corrupted(&mut lab)).await;
    report.run(OFFLINE, offline(&mut lab)).await;
    report.close(DOWN, lab, folder, Ok(())).await;
}

async fn steady(lab: &Lab) -> Result<()> {
    let client = lab.client()?;
    write_config(&client, STEADY, &[("index.html", "first")]).await?;
    let manifest = serving(STEADY, "/www")
        .replace("    ports:", "    volumeMounts: [{name: www, mountPath: /www}]\n    ports:")
        + &format!("  volumes: [{{name: www, configMap: {{name: {STEADY}}}}}]\n");
    apply(lab, &manifest).await?;
    page_becomes(&running(&client, STEADY).await?, "/index.html", "first").await
}

/// What ran before and has to be found again.
struct Before {
    pod: Pod,
    uid: String,
    sandbox: String,
    container: Container,
}

impl Before {
    /// Looks, after everything is up: an earlier scenario may have failed half-way.
    async fn of(lab: &mut Lab) -> Result<Self> {
        if !lab.cloud_runs() {
            lab.resume_cloud().await?;
        }
        if !lab.edge_runs() {
            lab.start_edge()?;
        }
        lab.guarded(async |lab| {
            let client = lab.client()?;
            node_ready(&client).await?;
            let pod = running(&client, STEADY).await?;
            let uid = uid(&pod)?;
            let (sandbox, container) = (one_sandbox(lab, &uid).await?, container(lab, &uid, "web").await?);
            Ok(Self { pod, uid, sandbox, container })
        })
        .await
    }

    /// Same container, same start, same sandbox, and nothing beside them.
    async fn unchanged(&self, lab: &Lab) -> Result<()> {
        let now = lab.containers(&self.uid).await?;
        ensure!(now == [self.container.clone()], "was {:?}, is {now:?}", self.container);
        let sandbox = one_sandbox(lab, &self.uid).await?;
        ensure!(sandbox == self.sandbox, "another sandbox: was {}, is {sandbox}", self.sandbox);
        Ok(())
    }

    /// Watches that nothing changes for a while.
    async fn stays(&self, lab: &Lab, period: Duration) -> Result<()> {
        let mut tick = tokio::time::interval(TICK);
        let end = Instant::now() + period;
        while Instant::now() < end {
            tick.tick().await;
            self.unchanged(lab).await?;
        }
        Ok(())
    }

    /// Writes the page's ConfigMap anew and waits until the pod serves it: the way from the API to a mounted file works.
    async fn converges(&self, lab: &Lab, text: &str) -> Result<()> {
        write_config(&lab.client()?, STEADY, &[("index.html", text)]).await?;
        page_becomes(&self.pod, "/index.html", text).await
    }
}

fn memory(lab: &Lab, idle: Option<Memory>) -> Result<Outcome> {
    let told = |memory: Memory| {
        format!("{:.1} MB, {:.1} of them its own", megabytes(memory.resident), megabytes(memory.anonymous))
    };
    let (idle, one_pod) = (idle.context("it was looked at before the pod")?, lab.edge_memory()?);
    println!("     edgecore, unoptimized: idle {}; with a pod {}", told(idle), told(one_pod));
    let most = idle.anonymous.max(one_pod.anonymous);
    ensure!(most < MEMORY_LIMIT, "{most} bytes of its own, expected less than {MEMORY_LIMIT}");
    Ok(Outcome::Proved)
}

fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

async fn killed(lab: &mut Lab) -> Result<Outcome> {
    let before = Before::of(lab).await?;
    let client = lab.client()?;
    let waiting = "trap 'exit 0' TERM; while :; do sleep 0.1; done";
    apply(lab, &script("mortal", "Always", waiting)).await?;
    apply(lab, &script("doomed", "Always", waiting)).await?;
    let (mortal, doomed) =
        lab.guarded(async |_| Ok((running(&client, "mortal").await?, running(&client, "doomed").await?))).await?;
    let (mortal, doomed) = (uid(&mortal)?, uid(&doomed)?);
    let mortal_sandbox = one_sandbox(lab, &mortal).await?;

    lab.kill_edge().await?;
    // Meanwhile: one container ends, one pod's deletion and a change of a ConfigMap are asked for.
    let victim = container(lab, &mortal, "main").await?;
    lab.kill_container(&victim.id).await?;
    delete(&client, "doomed", 1).await?;
    write_config(&client, STEADY, &[("index.html", "while it was dead")]).await?;
    before.unchanged(lab).await?;
    ensure!(
        lab.containers(&doomed).await?.iter().any(|container| container.running),
        "nobody deletes without edgecore"
    );

    lab.start_edge()?;
    lab.guarded(async |lab| {
        let pod = until_pod(&client, "mortal", "one restart, and running", |pod| {
            restarts(pod) >= 1 && first(pod).is_some_and(|status| status.ready)
        })
        .await?;
        gone(&client, "doomed", &doomed).await?;
        nothing_left(lab, &doomed).await?;
        page_becomes(&before.pod, "/index.html", "while it was dead").await?;

        ensure!(restarts(&pod) == 1, "started again {} times", restarts(&pod));
        let again = container(lab, &mortal, "main").await?;
        ensure!(again.attempt == victim.attempt + 1 && again.id != victim.id, "was {victim:?}, is {again:?}");
        ensure!(one_sandbox(lab, &mortal).await? == mortal_sandbox, "a container's end does not cost the sandbox");
        before.unchanged(lab).await?;
        let pod = running(&client, STEADY).await?;
        let id = first(&pod).and_then(|status| status.container_id.clone()).unwrap_or_default();
        ensure!(id == format!("containerd://{}", before.container.id) && restarts(&pod) == 0, "the API has {id}");
        delete(&client, "mortal", 1).await?;
        gone(&client, "mortal", &mortal).await
    })
    .await?;
    Ok(Outcome::Proved)
}

async fn stopped(lab: &mut Lab) -> Result<Outcome> {
    let before = Before::of(lab).await?;
    let node_uid = uid_of_node(lab).await?;
    in_order("edgecore", &lab.stop_edge().await?)?;
    before.unchanged(lab).await?;
    ensure!(http::get(address(&before.pod)?, "/index.html").await?.status == 200, "the pod serves without edgecore");
    lab.start_edge()?;
    lab.guarded(async |lab| before.converges(lab, "edgecore is back").await).await?;
    before.unchanged(lab).await?;

    let map = config(lab).await?;
    in_order("cloudcore", &lab.stop_cloud().await?)?;
    ensure!(http::get(address(&before.pod)?, "/index.html").await?.status == 200, "the pod serves without a cloud");
    lab.resume_cloud().await?;
    ensure!(config(lab).await? == map, "the ConfigMap is another after a restart of the API server");
    let pod = pods(&lab.client()?).get(STEADY).await?;
    ensure!(pod.uid().as_deref() == Some(&before.uid), "the pod is another after a restart of the API server");
    ensure!(uid_of_node(lab).await? == node_uid, "the node is another after a restart of the API server");
    // edgecore, which was not told, comes back by itself.
    lab.guarded(async |lab| before.converges(lab, "cloudcore is back").await).await?;
    before.unchanged(lab).await?;
    Ok(Outcome::Proved)
}

fn in_order(name: &str, ended: &Ended) -> Result<()> {
    ensure!(ended.status.success(), "{name} ended with {} on SIGTERM", ended.status);
    ensure!(ended.took < ORDERLY, "{name} took {:?} to end", ended.took);
    Ok(())
}

async fn config(lab: &Lab) -> Result<ConfigMap> {
    Ok(Api::namespaced(lab.client()?, NAMESPACE).get(STEADY).await?)
}

async fn uid_of_node(lab: &Lab) -> Result<Option<String>> {
    let node = Api::<k8s_openapi::api::core::v1::Node>::all(lab.client()?).get(kubeedge_examples::lab::NODE).await?;
    Ok(node.uid())
}

async fn corrupted(lab: &mut Lab) -> Result<Outcome> {
    let before = Before::of(lab).await?;
    lab.stop_edge().await?;
    lab.stop_cloud().await?;
    let database = lab.edge_store().join("db");
    let len = fs::metadata(&database).with_context(|| format!("{}", database.display()))?.len();
    let garbage: Vec<u8> = (0..len).map(|n| (n.wrapping_mul(2_654_435_761) >> 7) as u8).collect();
    fs::write(&database, garbage)?;
    let said = lab.log("edgecore")?.len();

    lab.start_edge()?;
    lab.guarded(async |lab| {
        log_says(lab, "edgecore", said, &["ERROR", "store", "set aside"]).await?;
        log_says(lab, "edgecore", said, &["pods read from disk", "pods=0", "complete=false"]).await?;
        log_says(lab, "edgecore", said, &["container runtime", "version"]).await?;
        log_says(lab, "edgecore", said, &["not connected"]).await?;
        // It works, and knows of no pods and no cloud. What it would do for their absence it does when it looks at the
        // runtime the next time, and the container would take its grace to end.
        before.stays(lab, STAYS).await
    })
    .await?;
    let stopping = format!("stopping container=\"{}\"", before.container.id);
    ensure!(!lab.log("edgecore")?.contains(&stopping), "edgecore began to stop the container");
    lab.resume_cloud().await?;
    lab.guarded(async |lab| before.converges(lab, "a new store").await).await?;
    before.unchanged(lab).await?;
    Ok(Outcome::Proved)
}

async fn offline(lab: &mut Lab) -> Result<Outcome> {
    let before = Before::of(lab).await?;
    lab.guarded(async |lab| before.converges(lab, "from disk").await).await?;
    // As after a power cut of the whole site: nothing runs, and no cloud is to be had.
    lab.stop_edge().await?;
    lab.containerd()?.remove_all_pods().await?;
    lab.stop_cloud().await?;
    lab.start_edge()?;
    let again = lab
        .guarded(async |lab| {
            let again = poll("the pod's container runs again", async || {
                let all = lab.containers(&before.uid).await?;
                let found = all.iter().find(|container| container.running).cloned();
                Ok(found.ok_or_else(|| format!("{all:?}")))
            })
            .await?;
            one_sandbox(lab, &before.uid).await?;
            let page = lab.exec(&again.id, &["cat", "/www/index.html"]).await?;
            ensure!(page == "from disk", "it serves {page:?}");
            Ok(again)
        })
        .await?;
    ensure!(again.id != before.container.id);
    lab.resume_cloud().await?;
    lab.guarded(async |lab| {
        let id = format!("containerd://{}", again.id);
        let pod = until_pod(&lab.client()?, STEADY, "the new container in the API", |pod| {
            first(pod).is_some_and(|status| status.container_id.as_ref() == Some(&id) && status.ready)
        })
        .await?;
        let before = Before { pod, container: again.clone(), sandbox: one_sandbox(lab, &before.uid).await?, ..before };
        before.converges(lab, "with a cloud again").await?;
        before.unchanged(lab).await
    })
    .await?;
    Ok(Outcome::Proved)
}
