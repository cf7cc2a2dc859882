//! What is done with the cloud and its nodes, and measured meanwhile.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::{
    Api, Client,
    api::{ListParams, PostParams},
};
use kubeedge_examples::scale::{
    Latencies, Tally,
    generator::node_name,
    workload::{PODS, SETTINGS, config_name},
};

use super::{
    figures::{Row, megabytes, millis, spread},
    measure::{FEW, Trial},
};

/// For a process that has just started, or has just had work, to come to rest.
const REST: Duration = Duration::from_secs(5);
/// Changes of which the dispatch is measured, and the pause between two.
const CHANGES: usize = 300;
const BETWEEN: Duration = Duration::from_millis(10);
/// The objects of the node whose first sync may not disturb the others, and in how many pods.
const FIRST_SYNC: usize = 5000;
const FIRST_SYNC_PODS: usize = 50;
/// Objects that change meanwhile, and the nodes that each of them concerns.
const SHARED: usize = 2000;
const INTERESTED: usize = 20;
/// Heartbeats come every 10 s: they are counted for as long.
const DISTURBED: Duration = Duration::from_secs(15);
/// Changes made while the cloud is away.
const MISSED: usize = 100;
/// State for one node that is alone: ConfigMaps with so many bytes in each, and in how many pods.
const STATE: usize = 10_000;
const STATE_BYTES: usize = 1024;
const STATE_PODS: usize = 20;

/// All of them, in order.
pub(super) async fn all(trial: &mut Trial) -> Result<Vec<Row>> {
    let nodes = trial.plan.nodes;
    let mut rows = Vec::new();
    tokio::time::sleep(REST).await;
    let empty = trial.clouds.cloud()?.memory()?;
    println!("cloudcore before any node: {} resident", megabytes(empty.resident));
    rows.push(Row {
        figure: "cloudcore RSS before any node",
        target: "under 40 MB",
        measured: megabytes(empty.resident),
        reached: Some(empty.resident < 40_000_000),
    });

    bring_up(trial, 0..FEW).await?;
    let few = dispatch(trial, FEW).await?;
    let back = restart(trial).await?;
    rows.push(Row {
        figure: "back after the cloud process restarts",
        target: "under 5 s",
        measured: format!("{} with {FEW} nodes, {} links lost", millis(back.took), back.lost),
        reached: Some(back.took < Duration::from_secs(5) && back.lost == 0),
    });
    bring_up(trial, FEW..nodes).await?;
    rows.extend(idle(trial, empty.resident).await?);
    let many = dispatch(trial, nodes).await?;
    let ratio = median(&many)?.as_secs_f64() / median(&few)?.as_secs_f64();
    rows.push(Row {
        figure: "dispatch of one change with one interested node, 10,000 against 100 connected",
        target: "ratio under 1.5",
        measured: format!("{ratio:.2}"),
        reached: (nodes >= 10_000).then_some(ratio < 1.5),
    });
    rows.push(disturbed(trial).await?);
    let back = restart(trial).await?;
    let reached = back.took < Duration::from_secs(60) && back.lost == 0;
    rows.push(Row {
        figure: "10,000 nodes back after a cloud restart",
        target: "under 60 s, no missed heartbeat of those back",
        measured: format!("{}, {} links lost", millis(back.took), back.lost),
        reached: (nodes >= 10_000).then_some(reached),
    });
    rows.push(acknowledged(trial).await?);
    Ok(rows)
}

fn median(latencies: &Latencies) -> Result<Duration> {
    latencies.quantile(0.5).context("nothing was measured")
}

/// Connects nodes, then gives them what they are to hold.
async fn bring_up(trial: &mut Trial, nodes: std::ops::Range<usize>) -> Result<()> {
    let (all, new) = (nodes.end as u64, nodes.len());
    let began = Instant::now();
    trial.start_nodes(nodes.clone())?;
    let (took, _) = trial.until("all nodes are ready", |tally| tally.ready == all).await?;
    println!(
        "{new} nodes connected and registered in {}: {:.0} a second",
        millis(took),
        new as f64 / took.as_secs_f64()
    );
    let writing = Instant::now();
    trial.work.create(nodes).await?;
    let wrote = writing.elapsed();
    let objects = all * 2 * PODS as u64;
    trial.until("all objects are held", |tally| tally.held == objects).await?;
    trial.all_run().await?;
    let Tally { registered, applied, heartbeats, .. } = trial.fleet.take_latencies().await?;
    println!(
        "  {} objects written in {}, steady {} after the start of the first of these nodes",
        new * 2 * PODS,
        millis(wrote),
        millis(began.elapsed())
    );
    println!("  registration: {}", spread(&registered));
    println!("  apply while all of it is written: {}", spread(&applied));
    println!("  heartbeats: {}", spread(&heartbeats));
    Ok(())
}

/// Single changes, one after the other, of one interested node each.
async fn dispatch(trial: &mut Trial, nodes: usize) -> Result<Latencies> {
    tokio::time::sleep(REST).await;
    let before = trial.fleet.take_latencies().await?.configs_applied;
    for change in 0..CHANGES {
        trial.work.change(&config_name(change * 7 % nodes, change % PODS)).await?;
        tokio::time::sleep(BETWEEN).await;
    }
    let expected = before + CHANGES as u64;
    trial.until("all changes are applied", |tally| tally.configs_applied >= expected).await?;
    let tally = trial.fleet.take_latencies().await?;
    let applied = tally.configs_applied;
    ensure!(applied == expected, "{CHANGES} changes reached {} nodes, expected one each", applied - before);
    println!("one change, one interested node, {nodes} connected: {}", spread(&tally.applied));
    Ok(tally.applied)
}

/// Nothing happens but heartbeats.
async fn idle(trial: &mut Trial, empty: u64) -> Result<Vec<Row>> {
    let nodes = trial.plan.nodes;
    tokio::time::sleep(trial.plan.idle).await;
    let memory = trial.clouds.cloud()?.memory()?;
    let each = memory.resident.saturating_sub(empty) / nodes as u64;
    let (of_nodes, of_api) = (trial.fleet.cost()?, trial.clouds.api().memory()?);
    println!(
        "{nodes} idle nodes: cloudcore {} resident, {:.1} KB a node; the nodes' own processes {}, {:.1} KB a node; API \
         server {}",
        megabytes(memory.resident),
        each as f64 / 1e3,
        megabytes(of_nodes.1),
        of_nodes.1 as f64 / 1e3 / nodes as f64,
        megabytes(of_api.resident),
    );
    trial.fleet.take_latencies().await?;
    let (began, bytes, asked) = (Instant::now(), trial.net.bytes(0)?, requests(trial.clouds.client()).await?);
    let cpu = (trial.clouds.cloud()?.processor_time()?, trial.clouds.api().processor_time()?, of_nodes.0);
    tokio::time::sleep(trial.plan.traffic).await;
    let (seconds, after) = (began.elapsed().as_secs_f64(), trial.net.bytes(0)?);
    let now_asked = requests(trial.clouds.client()).await?;
    let (down, up) = (after.0 - bytes.0, after.1 - bytes.1);
    let busy = |before: Duration, after: Duration| (after.saturating_sub(before)).as_secs_f64() / seconds * 100.0;
    println!(
        "  of one core: cloudcore {:.1} %, API server {:.1} %, the nodes {:.1} %; requests a second at the API server: \
         {:.1} that write, {:.1} that read",
        busy(cpu.0, trial.clouds.cloud()?.processor_time()?),
        busy(cpu.1, trial.clouds.api().processor_time()?),
        busy(cpu.2, trial.fleet.cost()?.0),
        (now_asked.1 - asked.1) as f64 / seconds,
        (now_asked.0 - asked.0) as f64 / seconds,
    );
    let per_day = |bytes: u64| bytes as f64 / nodes as f64 / seconds * 86_400.0 / 1e6;
    println!(
        "  line over {seconds:.0} s: {:.2} MB a node and day down, {:.2} MB up, headers included",
        per_day(down),
        per_day(up)
    );
    println!("  heartbeats: {}", spread(&trial.fleet.take_latencies().await?.heartbeats));
    let day = per_day(down + up);
    Ok(vec![
        Row {
            figure: "RSS per connected idle node, 5,000 nodes",
            target: "under 60 KB",
            measured: format!("{:.1} KB", each as f64 / 1e3),
            reached: (nodes >= 5000).then_some(each < 60_000),
        },
        Row {
            figure: "idle traffic per node",
            target: "under 3 MB a day",
            measured: format!("{day:.2} MB"),
            reached: Some(day < 3.0),
        },
    ])
}

/// One node comes for the first time and needs much, while much changes at all others.
async fn disturbed(trial: &mut Trial) -> Result<Row> {
    let nodes = trial.plan.nodes;
    let groups = nodes / INTERESTED;
    let shared = |number: usize| format!("shared-{number}");
    trial.work.create_configs((0..SHARED).map(shared), SETTINGS).await?;
    let before = trial.fleet.take_latencies().await?;
    for node in 0..groups * INTERESTED {
        let configs: Vec<String> = (node / INTERESTED..SHARED).step_by(groups).map(shared).collect();
        trial.work.create_pod(&format!("shared-{node}"), node, configs.iter().map(String::as_str)).await?;
    }
    let expected = before.configs_applied + (SHARED * INTERESTED) as u64;
    trial.until("the shared objects are held", |tally| tally.configs_applied >= expected).await?;

    // It is registered before its pods, as others are; its first link is what is measured.
    let big = |number: usize| format!("first-sync-{number}");
    register(trial.clouds.client(), nodes).await?;
    trial.work.create_configs((0..FIRST_SYNC).map(big), SETTINGS).await?;
    for pod in 0..FIRST_SYNC_PODS {
        let configs: Vec<String> = (pod..FIRST_SYNC).step_by(FIRST_SYNC_PODS).map(big).collect();
        trial.work.create_pod(&format!("first-sync-{pod}"), nodes, configs.iter().map(String::as_str)).await?;
    }
    tokio::time::sleep(REST).await;
    let before = trial.fleet.take_latencies().await?;
    let began = Instant::now();
    trial.start_nodes(nodes..nodes + 1)?;
    let mut rounds = 0;
    while rounds == 0 || began.elapsed() < DISTURBED {
        trial.work.change_all((0..SHARED).map(shared)).await?;
        rounds += 1;
    }
    // Two changes of one object may be one at the node.
    let held = before.held + (FIRST_SYNC + FIRST_SYNC_PODS) as u64;
    trial.until("the first sync is done", |tally| tally.held >= held).await?;
    tokio::time::sleep(REST).await;
    let after = trial.fleet.take_latencies().await?;
    let p99 = after.heartbeats.quantile(0.99).context("no heartbeat was counted")?;
    println!(
        "first sync of {FIRST_SYNC} objects at one node, {} changes for {INTERESTED} nodes each, {}:",
        rounds * SHARED,
        millis(began.elapsed())
    );
    println!("  heartbeats: {}", spread(&after.heartbeats));
    println!("  apply: {}", spread(&after.applied));
    ensure!(after.connections == before.connections + 1, "links ended meanwhile");
    Ok(Row {
        figure: "heartbeat p99 while one node first-syncs 5,000 objects and 2,000 objects change, 20 nodes each",
        target: "under 1 s",
        measured: millis(p99),
        reached: Some(p99 < Duration::from_secs(1)),
    })
}

/// How all nodes came back.
struct Back {
    /// From the start of cloudcore to the last node that is connected and registered, and has what changed meanwhile.
    took: Duration,
    /// Links that ended again meanwhile.
    lost: u64,
}

/// cloudcore is killed and comes again.
async fn restart(trial: &mut Trial) -> Result<Back> {
    let before = trial.fleet.take_latencies().await?;
    let nodes = before.connected;
    trial.clouds.kill().await?;
    trial.until("the nodes have noticed", |tally| tally.connected == 0).await?;
    let mut stamps = Vec::with_capacity(MISSED);
    for node in 0..MISSED {
        stamps.push((node_name(node), held_name(node), trial.work.change(&config_name(node, 0)).await?));
    }
    let cpu = (trial.clouds.api().processor_time()?, trial.fleet.cost()?.0);
    let asked = requests(trial.clouds.client()).await?;
    let began = Instant::now();
    trial.clouds.resume().await?;
    let served = began.elapsed();
    trial.until("all nodes are connected", |tally| tally.connected == nodes).await?;
    let connected = began.elapsed();
    let (_, after) = trial.until("all nodes are registered", |tally| tally.ready == nodes).await?;
    let took = began.elapsed();
    let busy = |before: Duration, after: Duration| (after.saturating_sub(before)).as_secs_f64();
    println!(
        "cloudcore killed and started again: it serves after {}, all {nodes} nodes are connected after {}, and \
         registered after {}: {:.0} a second",
        millis(served),
        millis(connected),
        millis(took),
        nodes as f64 / took.as_secs_f64()
    );
    let now_asked = requests(trial.clouds.client()).await?;
    println!(
        "  requests a second at the API server: {:.0} that write, {:.0} that read",
        (now_asked.1 - asked.1) as f64 / took.as_secs_f64(),
        (now_asked.0 - asked.0) as f64 / took.as_secs_f64()
    );
    println!(
        "  seconds of processor time: cloudcore {:.1}, API server {:.1}, the nodes {:.1}",
        trial.clouds.cloud()?.processor_time()?.as_secs_f64(),
        busy(cpu.0, trial.clouds.api().processor_time()?),
        busy(cpu.1, trial.fleet.cost()?.0)
    );
    println!("  registration: {}; {} failed", spread(&after.registered), after.failed - before.failed);
    let links = after.connections - before.connections;
    let again = links - nodes;
    trial.held(&stamps).await?;
    let took = began.elapsed();
    println!(
        "  {MISSED} changes made meanwhile are applied after {}; {again} links ended before all were back",
        millis(took)
    );
    Ok(Back { took, lost: again })
}

/// One node is alone, with a store on disk, and needs much: what it acknowledges a second. Another one had the same
/// before, so that the cloud has read it: the row is about link and store, not about the API server.
async fn acknowledged(trial: &mut Trial) -> Result<Row> {
    // Those that follow on the ones of before.
    let reader = trial.plan.nodes + 1;
    let measured = reader + 1;
    let name = |number: usize| format!("state-{number}");
    let settings = SETTINGS.repeat(STATE_BYTES / SETTINGS.len());
    trial.work.create_configs((0..STATE).map(name), &settings).await?;
    for node in [reader, measured] {
        register(trial.clouds.client(), node).await?;
        for pod in 0..STATE_PODS {
            let configs: Vec<String> = (pod..STATE).step_by(STATE_PODS).map(name).collect();
            trial.work.create_pod(&format!("state-{node}-{pod}"), node, configs.iter().map(String::as_str)).await?;
        }
    }
    let unread = alone(trial, reader).await?;
    let read = alone(trial, measured).await?;
    println!(
        "{STATE} ConfigMaps of {STATE_BYTES} bytes at one node with a store on disk, from its link on: {}; at one before \
         it, while the cloud read each of them for the first time: {}",
        millis(read),
        millis(unread)
    );
    let rate = STATE as f64 / read.as_secs_f64();
    Ok(Row {
        figure: "State messages acked by one edge: 1 KiB, distinct keys, mutual TLS, real store",
        target: "over 5,000 a second",
        measured: format!("{rate:.0} a second"),
        reached: Some(rate > 5000.0),
    })
}

/// One node takes the place of all others; from its first link to its holding everything.
async fn alone(trial: &mut Trial, node: usize) -> Result<Duration> {
    trial.only_node(node).await?;
    trial.until("the node has its link", |tally| tally.connections == 1).await?;
    let (took, _) = trial.until("it holds everything", |tally| tally.held == (STATE + STATE_PODS) as u64).await?;
    Ok(took)
}

/// As a hollow node calls its first ConfigMap.
fn held_name(node: usize) -> String {
    format!("configmaps/default/{}", config_name(node, 0))
}

/// Requests that the API server has answered so far: those that read, and those that write.
async fn requests(client: &Client) -> Result<(u64, u64)> {
    let request = http::Request::get("/metrics").body(Vec::new())?;
    let page = client.request_text(request).await.context("the API server's metrics")?;
    let (mut reads, mut writes) = (0, 0);
    for line in page.lines().filter_map(|line| line.strip_prefix("apiserver_request_total{verb=\"")) {
        let (verb, rest) = line.split_once('"').context("a verb")?;
        let count: u64 = rest.rsplit(' ').next().context("a count")?.parse().context("a count is a number")?;
        match verb {
            "GET" | "LIST" | "WATCH" => reads += count,
            _ => writes += count,
        }
    }
    Ok((reads, writes))
}

/// Whether a pod does not run yet.
pub(super) async fn some_wait(client: &Client) -> Result<bool> {
    let waiting = ListParams::default().fields("status.phase!=Running").limit(1);
    Ok(!Api::<Pod>::all(client.clone()).list(&waiting).await?.items.is_empty())
}

async fn register(client: &Client, node: usize) -> Result<()> {
    let mut made = Node::default();
    made.metadata.name = Some(node_name(node));
    Api::<Node>::all(client.clone()).create(&PostParams::default(), &made).await.map(drop).context("create a node")
}
