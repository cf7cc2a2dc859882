//! What belongs to the node rather than to one pod. One lab; a scenario that needs other settings restarts edgecore.

use std::{fs, path::PathBuf, time::Duration};

use anyhow::{Context, Result, ensure};
use kubeedge_examples::{containerd::Tools, http, lab::Lab};
use serde_json::Value;

use crate::{
    cluster::{NAMESPACE, apply, poll, running, uid},
    pods::{script, up},
    report::{Outcome, Report},
};

const UP: &str = "node::a_lab_comes_up";
const DOWN: &str = "node::nothing_is_left_on_the_machine";
const API: &str = "node::its_own_api_shows_pods_and_what_they_use";
const TOP: &str = "node::kubectl_top_shows_nodes_and_pods";
const LOGS: &str = "node::a_log_that_grows_is_rotated_and_kubectl_logs_goes_on";
const IMAGES: &str = "node::images_that_nobody_uses_go_when_the_disk_fills_up";
const ALL: [&str; 4] = [API, TOP, LOGS, IMAGES];

/// Burns processor time, so that there is something to measure.
const BUSY: &str = "busy";

pub(crate) async fn stage(report: &mut Report, tools: &Result<Tools>) {
    if !report.begins(&ALL) {
        return;
    }
    let Some(tools) = report.tools(tools, &ALL) else { return };
    let begin = async |lab: &mut Lab| {
        lab.settings = vec![
            // Every second, so that nobody waits for it.
            "containerLogMaxSize: 4Ki".into(),
            "containerLogMaxFiles: 3".into(),
            "containerLogMonitorInterval: 1s".into(),
        ];
        up(lab, tools).await?;
        lab.guarded(async |lab| {
            apply(lab, &script(BUSY, "Always", "while :; do :; done")).await?;
            running(&lab.client()?, BUSY).await.map(drop)
        })
        .await
    };
    let Some((mut lab, folder)) = report.lab(UP, begin).await else { return };
    report.run(API, lab.guarded(api)).await;
    report.run(TOP, lab.guarded(top)).await;
    report.run(LOGS, lab.guarded(rotated)).await;
    report.run(IMAGES, lab.guarded(images)).await;
    report.close(DOWN, lab, folder, Ok(())).await;
}

async fn page(lab: &Lab, path: &str) -> Result<String> {
    let address = lab.node_api()?;
    let answer = http::get(address, path).await?;
    let body = String::from_utf8(answer.body)?;
    ensure!(answer.status == 200, "{path} answered {}: {body}", answer.status);
    Ok(body)
}

async fn api(lab: &Lab) -> Result<Outcome> {
    ensure!(page(lab, "/healthz").await? == "ok");
    let pods: Value = serde_json::from_str(&page(lab, "/pods").await?)?;
    let pod = &pods["items"][0];
    ensure!(pod["metadata"]["name"] == BUSY && pod["status"]["phase"] == "Running", "/pods: {pods}");

    let own = running(&lab.client()?, BUSY).await?;
    let uid = uid(&own)?;
    // A busy loop takes a core, or what a shared machine gives of one.
    let container = poll("the pod is seen to use a tenth of a core", async || {
        let summary: Value = serde_json::from_str(&page(lab, "/stats/summary").await?)?;
        let pods = summary["pods"].as_array().cloned().unwrap_or_default();
        let pod = pods.into_iter().find(|pod| pod["podRef"]["uid"] == *uid).context("the pod is not in the summary")?;
        let container = pod["containers"][0].clone();
        let busy = container["cpu"]["usageNanoCores"].as_u64().is_some_and(|cores| cores > 100_000_000);
        let node = &summary["node"];
        ensure!(node["memory"]["workingSetBytes"].as_u64() > Some(1 << 20), "{node}");
        ensure!(node["fs"]["capacityBytes"].as_u64() > Some(0) && node["runtime"]["imageFs"].is_object(), "{node}");
        Ok(if busy { Ok(container) } else { Err(container.to_string()) })
    })
    .await?;
    ensure!(container["name"] == "main" && container["memory"]["workingSetBytes"].as_u64() > Some(0), "{container}");

    let resource = page(lab, "/metrics/resource").await?;
    let labels = format!("{{container=\"main\",namespace=\"{NAMESPACE}\",pod=\"{BUSY}\"}} ");
    ensure!(resource.contains(&format!("\ncontainer_cpu_usage_seconds_total{labels}")), "{resource}");
    ensure!(resource.contains("\nresource_scrape_error 0\n"), "{resource}");
    let metrics = page(lab, "/metrics").await?;
    ensure!(metrics.contains("kubeedge_actor_running{component=\"edged\"} 1.0"), "{metrics}");
    let refused = http::request("POST", lab.node_api()?, "/pods").await?;
    ensure!(refused.status == 405, "POST /pods answered {}", refused.status);
    Ok(Outcome::Proved)
}

async fn kubectl(lab: &Lab, arguments: &[&str]) -> Result<(bool, String)> {
    let mut kubectl = lab.kubectl().context("kubectl is on PATH")?;
    let output = kubectl.args(arguments).output().await?;
    let text = if output.status.success() { output.stdout } else { output.stderr };
    Ok((output.status.success(), String::from_utf8_lossy(&text).into_owned()))
}

/// From the API server through the gateway and the node's stream connection to the runtime, and back.
async fn top(lab: &Lab) -> Result<Outcome> {
    if lab.kubectl().is_none() {
        return Ok(Outcome::Skipped("kubectl is not on PATH".to_owned()));
    }
    let (done, nodes) = kubectl(lab, &["top", "node"]).await?;
    let row: Vec<&str> = nodes.lines().nth(1).unwrap_or_default().split_whitespace().collect();
    let number = |cell: Option<&&str>, unit: &str| cell.and_then(|cell| cell.strip_suffix(unit)?.parse::<u64>().ok());
    ensure!(done && row.first() == Some(&"edge-1"), "{nodes}");
    ensure!(number(row.get(1), "m") > Some(0) && number(row.get(3), "Mi") > Some(0), "{nodes}");
    let (done, pods) = kubectl(lab, &["top", "pod", BUSY, "--containers"]).await?;
    let row: Vec<&str> = pods.lines().nth(1).unwrap_or_default().split_whitespace().collect();
    ensure!(done && row.first() == Some(&BUSY) && row.get(1) == Some(&"main"), "{pods}");
    ensure!(number(row.get(2), "m") > Some(100), "a busy loop takes more than a tenth of a core: {pods}");
    let (done, none) = kubectl(lab, &["top", "pod", "nobody"]).await?;
    ensure!(!done && none.contains("\"nobody\" not found"), "{none}");
    Ok(Outcome::Proved)
}

async fn rotated(lab: &Lab) -> Result<Outcome> {
    let name = "verbose";
    // Some 60 bytes with the runtime's prefix, a thousand lines.
    let story = "i=0; while [ $i -lt 1000 ]; do i=$((i+1)); echo line $i; [ $((i % 50)) = 0 ] && sleep 0.2; done; \
                 while :; do sleep 1; done";
    apply(lab, &script(name, "Always", story)).await?;
    let pod = running(&lab.client()?, name).await?;
    let folder = lab.folder().join("edge/logs/pods").join(format!("{NAMESPACE}_{name}_{}", uid(&pod)?)).join("main");
    let files = || -> Result<Vec<PathBuf>> {
        let mut files = fs::read_dir(&folder)?.map(|file| Ok(file?.path())).collect::<Result<Vec<_>>>()?;
        files.sort();
        Ok(files)
    };
    poll("the log is rotated twice", async || {
        let files = files()?;
        ensure!(files.len() <= 3, "more files than containerLogMaxFiles: {files:?}");
        Ok(if files.len() == 3 { Ok(()) } else { Err(format!("{files:?}")) })
    })
    .await?;
    if lab.kubectl().is_none() {
        return Ok(Outcome::Skipped("kubectl is not on PATH".to_owned()));
    }
    // The last line is in the file that is written, or alone behind a rotation.
    poll("kubectl logs shows the last line", async || {
        let (done, text) = kubectl(lab, &["logs", name]).await?;
        let files = files()?;
        ensure!(files.len() <= 3, "more files than containerLogMaxFiles: {files:?}");
        let kept = files.iter().any(|file| fs::read_to_string(file).is_ok_and(|text| text.contains("line 1000\n")));
        Ok(if done && (text.contains("line 1000\n") || kept) { Ok(()) } else { Err(text) })
    })
    .await?;
    // A line is in one file and no other: nothing is written twice.
    let mut seen = Vec::new();
    for file in files()? {
        let text = fs::read_to_string(file)?;
        seen.extend(text.lines().filter_map(|line| line.rsplit_once("line ")?.1.parse::<u32>().ok()));
    }
    let unbroken = seen.windows(2).filter(|pair| pair[1] == pair[0] + 1).count();
    // By name the newest is `0.log`, the first; behind it the others from old to new.
    ensure!(unbroken + 2 >= seen.len(), "lines are missing: {seen:?}");
    Ok(Outcome::Proved)
}

/// The thresholds are those of the whole machine: what is tried is the rule on a real runtime, with a disk that counts
/// as full.
async fn images(lab: &Lab) -> Result<Outcome> {
    use kubeedge_actors::edged::{
        cri::CriRuntime,
        housekeeping::{ImageCollector, ImagePolicy},
        runtime::Runtime,
    };
    use std::sync::Arc;
    let runtime = Arc::new(CriRuntime::new(&lab.containerd()?.endpoint())?);
    let before = runtime.images().await?;
    let unused = lab.other_image()?;
    runtime.pull_image(&unused, None, &kubeedge_proto::cri::PodSandboxConfig::default()).await?;
    let with = runtime.images().await?;
    ensure!(with.len() == before.len() + 1, "{unused} is pulled: {with:?}");
    let full = ImagePolicy { high_percent: 0, low_percent: 0, min_age: Duration::ZERO, ..ImagePolicy::default() };
    let collected = ImageCollector::new(runtime.clone(), full).collect().await?.context("the disk counts as full")?;
    ensure!(collected.removed == 1 && collected.freed < collected.wanted, "{collected:?}");
    // The pods' image and that of their sandboxes stay.
    ensure!(runtime.images().await? == before, "{:?}", runtime.images().await?);
    Ok(Outcome::Proved)
}
