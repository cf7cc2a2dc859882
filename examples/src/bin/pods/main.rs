//! What pods take: `make pods`. Times from the API's answer to what the API shows, beside the bare calls to the container
//! runtime for the same pod in the same run; edgecore's memory and processor time with and without pods.

mod bare;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use futures_util::future::try_join_all;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, PostParams},
    runtime::wait::{Condition, await_condition, conditions},
};
use kubeedge_examples::{
    containerd::Tools,
    figures::{Figure, table},
    lab::{Lab, NODE},
    process::Meter,
};
use serde_json::json;

const NAMESPACE: &str = "default";
/// For one state to come about.
const LIMIT: Duration = Duration::from_secs(120);
/// How long edgecore is left alone before it is looked at.
const SETTLE: Duration = Duration::from_secs(10);

/// What pods take at the edge; fails when a target is missed.
#[derive(Parser)]
#[command(name = "pods")]
struct Arguments {
    /// Where cloudcore and edgecore are, as `make build` makes them
    #[arg(long, default_value = "target/release")]
    programs: PathBuf,
    /// Pods that are made and deleted one after the other
    #[arg(long, default_value_t = 10)]
    rounds: usize,
    /// Pods that are made at once
    #[arg(long, default_value_t = 50)]
    many: usize,
    /// How many seconds edgecore is watched with these
    #[arg(long, default_value_t = 30)]
    seconds: u64,
}

// One thread: children are told when the thread that started them ends, and this one ends last.
#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match run(Arguments::parse()).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("pods: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: Arguments) -> Result<bool> {
    let tools = Tools::find()?;
    let folder = tempfile::Builder::new().prefix("ke").tempdir()?;
    let mut lab = Lab::open(folder.path(), Some(arguments.programs.clone()))?;
    let measured = measure(&mut lab, tools, &arguments).await;
    let left = lab.close().await;
    let mut figures = measured?;
    figures.push(file(&arguments.programs)?);
    let left = left?;
    let met = table(&figures);
    ensure!(left.is_empty(), "left on this machine: {left:?}");
    Ok(met)
}

async fn measure(lab: &mut Lab, tools: Tools, arguments: &Arguments) -> Result<Vec<Figure>> {
    lab.up(tools).await?;
    let edge = lab.edge_meter()?;
    let seconds_watched = Duration::from_secs(arguments.seconds);
    lab.guarded(async |lab| {
        tokio::time::sleep(SETTLE).await;
        let (empty, at_rest) = watched(&edge, seconds_watched).await?;
        let client = lab.client()?;
        let api = Api::<Pod>::namespaced(client.clone(), NAMESPACE);
        // The first one fetches the image.
        one(lab, &api, "warm-up").await?;

        let (mut created, mut deleted, mut bares) = (Vec::new(), Vec::new(), Vec::new());
        for round in 0..arguments.rounds {
            bares.push(bare::run(lab, 1).await?);
            let (create, delete) = one(lab, &api, &format!("round-{round}")).await?;
            created.push(create);
            deleted.push(delete);
        }
        let (create, delete, bare) = (median(&mut created), median(&mut deleted), median(&mut bares));
        let ratio = create.as_secs_f64() / bare.as_secs_f64();
        let mut figures = vec![
            Figure::new(
                "create -> Running in the API, image present, median",
                seconds(create),
                "under 0.5 s",
                create < Duration::from_millis(500),
            ),
            Figure::new(
                "the same beside the bare CRI calls",
                format!("{ratio:.2} x {}", seconds(bare)),
                "under 1.25 x",
                ratio < 1.25,
            ),
            Figure::new(
                "delete (grace 1 s, ignores SIGTERM) -> DELETED, median",
                seconds(delete),
                "under 1.5 s",
                delete < Duration::from_millis(1500),
            ),
        ];

        let many = arguments.many;
        let began = Instant::now();
        let pods = try_join_all((0..many).map(|number| create_pod(lab, &api, format!("many-{number}")))).await?;
        try_join_all(pods.iter().map(|pod| running(&api, pod))).await?;
        let all = began.elapsed();
        tokio::time::sleep(SETTLE).await;
        let (most, share) = watched(&edge, seconds_watched).await?;
        let began = Instant::now();
        try_join_all(pods.iter().map(|pod| delete_pod(&api, pod))).await?;
        let gone = began.elapsed();
        let bare = bare::run(lab, many).await?;
        figures.extend([
            Figure::told(
                format!("{many} pods applied at once -> all Running"),
                format!("{} (the bare CRI calls: {})", seconds(all), seconds(bare)),
            ),
            Figure::told(format!("{many} pods deleted at once -> all DELETED"), seconds(gone)),
            Figure::new("edgecore's RSS without a pod", megabytes(empty), "under 15 MB", empty < 15_000_000),
            Figure::new(format!("the same with {many} pods"), megabytes(most), "under 25 MB", most < 25_000_000),
            Figure::told("processor time without a pod".to_owned(), format!("{at_rest:.2} % of a core")),
            Figure::new(
                format!("processor time, {many} idle pods"),
                format!("{share:.2} % of a core"),
                "under 1 %",
                share < 1.0,
            ),
        ]);
        Ok(figures)
    })
    .await
}

/// The most memory that it has in this time, in bytes, and its share of a core in percent.
async fn watched(edge: &Meter, time: Duration) -> Result<(u64, f64)> {
    let (before, began) = (edge.processor_time()?, Instant::now());
    let mut most = 0;
    while began.elapsed() < time {
        most = most.max(edge.memory()?.resident);
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let used = edge.processor_time()?.saturating_sub(before);
    Ok((most, 100.0 * used.as_secs_f64() / began.elapsed().as_secs_f64()))
}

/// A pod is made, runs, and is deleted: both times.
async fn one(lab: &Lab, api: &Api<Pod>, name: &str) -> Result<(Duration, Duration)> {
    let began = Instant::now();
    let pod = create_pod(lab, api, name.to_owned()).await?;
    running(api, &pod).await?;
    let created = began.elapsed();
    // The shell in it has to have come to its trap.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let deleted = delete_pod(api, &pod).await?;
    Ok((created, deleted))
}

async fn create_pod(lab: &Lab, api: &Api<Pod>, name: String) -> Result<Pod> {
    let pod: Pod = serde_json::from_value(json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {
            "nodeName": NODE, "terminationGracePeriodSeconds": 1,
            "containers": [{"name": "main", "image": lab.busybox()?, "imagePullPolicy": "IfNotPresent",
                "command": bare::COMMAND}],
        },
    }))?;
    api.create(&PostParams::default(), &pod).await.with_context(|| format!("create pod {name}"))
}

async fn running(api: &Api<Pod>, pod: &Pod) -> Result<()> {
    let name = pod.name_any();
    let waited = await_condition(api.clone(), &name, conditions::is_pod_running().and(is_here));
    match tokio::time::timeout(LIMIT, waited).await {
        Ok(waited) => waited.with_context(|| format!("watch pod {name}")).map(drop),
        Err(_) => anyhow::bail!("pod {name} does not run within {LIMIT:?}"),
    }
}

fn is_here(pod: Option<&Pod>) -> bool {
    pod.is_some()
}

/// The time from the API's answer to the end of the pod.
async fn delete_pod(api: &Api<Pod>, pod: &Pod) -> Result<Duration> {
    let (name, uid) = (pod.name_any(), pod.uid().context("the pod has no uid")?);
    let parameters = DeleteParams { grace_period_seconds: Some(1), ..DeleteParams::default() };
    api.delete(&name, &parameters).await.with_context(|| format!("delete pod {name}"))?;
    let began = Instant::now();
    match tokio::time::timeout(LIMIT, await_condition(api.clone(), &name, conditions::is_deleted(&uid))).await {
        Ok(waited) => waited.with_context(|| format!("watch pod {name}"))?,
        Err(_) => anyhow::bail!("pod {name} is not gone within {LIMIT:?}"),
    };
    Ok(began.elapsed())
}

fn file(programs: &Path) -> Result<Figure> {
    let path = programs.join("edgecore");
    let size = path.metadata().with_context(|| format!("{}: run `make build`", path.display()))?.len();
    Ok(Figure::new("edgecore's file", megabytes(size), "under 15 MB", size < 15_000_000))
}

fn median(values: &mut [Duration]) -> Duration {
    values.sort_unstable();
    values.get(values.len() / 2).copied().unwrap_or_default()
}

fn seconds(duration: Duration) -> String {
    format!("{:.2} s", duration.as_secs_f64())
}

fn megabytes(bytes: u64) -> String {
    format!("{:.2} MB", bytes as f64 / 1e6)
}
