//! What devices cost: each figure is a row that says what was measured. Cloud and edge are the stock programs, pods are in
//! memory, applications speak MQTT with the edge's own broker.
//!
//! ```sh
//! cargo build --release --workspace --all-features --bins
//! target/release/device_load              # all rows; `--seconds 10` makes the last one shorter
//! ```

#![allow(clippy::print_stdout, reason = "a program that people look at")]

use std::{
    collections::{BTreeSet, HashMap},
    path::PathBuf,
    rc::Rc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use futures_util::{StreamExt, TryStreamExt};
use kube::{
    Api, Client,
    api::{ApiResource, DynamicObject, Patch, PatchParams, PostParams},
    core::GroupVersionKind,
    runtime::{WatchStreamExt, watcher},
};
use kubeedge_actors::{
    eventbus::client as mqtt,
    mapper::{Event, Mapper, MapperConfig},
};
use kubeedge_examples::lab::{Lab, NODE};
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use tokio_util::task::AbortOnDropHandle;

/// Measures what devices cost.
#[derive(Parser)]
struct Cli {
    /// Where cloudcore and edgecore are; without it, where this program is
    #[arg(long)]
    programs: Option<PathBuf>,
    /// Devices of the last row
    #[arg(long, default_value_t = 1000)]
    devices: usize,
    /// Seconds of the last row
    #[arg(long, default_value_t = 60)]
    seconds: u64,
}

const LIMIT: Duration = Duration::from_secs(60);

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let cli = Cli::parse();
    let folder = tempfile::Builder::new().prefix("ke").tempdir()?;
    let mut lab = Lab::open(folder.path(), cli.programs.clone())?;
    let done = tokio::task::LocalSet::new().run_until(measure(&mut lab, &cli)).await;
    let left = lab.close().await;
    done?;
    ensure!(left?.is_empty(), "something is left on this machine");
    Ok(())
}

async fn measure(lab: &mut Lab, cli: &Cli) -> Result<()> {
    lab.start_cloud().await?;
    lab.join().await?;
    lab.start_edge_with(&["--fake-runtime"])?;
    lab.guarded(async |lab| kubeedge_examples::lab::node_ready(lab.client()?).await.map(drop)).await?;
    let client = lab.client()?;
    define(lab, &client).await?;
    let mut statuses = Statuses::follow(client.clone());
    let mut app = App::connect(lab).await?;

    make(&client, "few", 100).await?;
    app.ready("few", 100).await?;
    latency(&mut app, &mut statuses).await?;
    burst(&mut app, &mut statuses).await?;
    answered(&mut app).await?;
    desired(lab, &client).await?;
    make(&client, "many", cli.devices).await?;
    app.ready("many", cli.devices).await?;
    flood(lab, &mut app, &mut statuses, cli).await
}

fn api(client: &Client, kind: &str, plural: &str) -> Api<DynamicObject> {
    let kind = GroupVersionKind::gvk("devices.kubeedge.io", "v1beta1", kind);
    Api::namespaced_with(client.clone(), "default", &ApiResource::from_gvk_with_plural(&kind, plural))
}

async fn define(lab: &Lab, client: &Client) -> Result<()> {
    let printed = lab.command("cloudcore", &["crds"]).await?;
    let kind = GroupVersionKind::gvk("apiextensions.k8s.io", "v1", "CustomResourceDefinition");
    let definitions: Api<DynamicObject> = Api::all_with(client.clone(), &ApiResource::from_gvk(&kind));
    for definition in String::from_utf8(printed.stdout)?.split("---\n") {
        definitions.create(&PostParams::default(), &serde_json::from_str(definition)?).await?;
    }
    let model = json!({"apiVersion": "devices.kubeedge.io/v1beta1", "kind": "DeviceModel", "metadata": {"name": "m"},
        "spec": {"protocol": "p", "properties": [{"name": "t", "type": "INT", "accessMode": "ReadWrite"}]}});
    let deadline = Instant::now() + LIMIT;
    while let Err(error) = api(client, "DeviceModel", "devicemodels")
        .create(&PostParams::default(), &serde_json::from_value(model.clone())?)
        .await
    {
        ensure!(Instant::now() < deadline, "a model: {error}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

/// Makes devices `<prefix>-0` and so on.
async fn make(client: &Client, prefix: &str, count: usize) -> Result<()> {
    let api = api(client, "Device", "devices");
    let make = |index: usize| {
        let api = api.clone();
        let device = json!({"apiVersion": "devices.kubeedge.io/v1beta1", "kind": "Device",
            "metadata": {"name": format!("{prefix}-{index}")},
            "spec": {"deviceModelRef": {"name": "m"}, "nodeName": NODE, "protocol": {"protocolName": "p"},
                "properties": [{"name": "t"}]}});
        async move {
            api.create(&PostParams::default(), &serde_json::from_value(device)?).await?;
            anyhow::Ok(())
        }
    };
    futures_util::stream::iter((0..count).map(make)).buffer_unordered(16).try_collect().await
}

/// What the API says of each device, and when it began to.
struct Statuses {
    changes: mpsc::Receiver<(String, String, Instant)>,
    newest: HashMap<String, String>,
    /// Changes seen.
    count: usize,
    _watching: AbortOnDropHandle<()>,
}

impl Statuses {
    fn follow(client: Client) -> Self {
        let (sender, changes) = mpsc::channel(100_000);
        let watching = tokio::task::spawn_local(async move {
            let api = api(&client, "DeviceStatus", "devicestatuses");
            let mut stream = watcher(api, watcher::Config::default()).default_backoff().applied_objects().boxed_local();
            while let Some(next) = stream.next().await {
                let Ok(status) = next else { continue };
                let value = status.data.pointer("/status/twins/0/reported/value").and_then(Value::as_str);
                let (Some(name), Some(value)) = (status.metadata.name, value) else { continue };
                if sender.send((name, value.to_owned(), Instant::now())).await.is_err() {
                    return;
                }
            }
        });
        Self { changes, newest: HashMap::new(), count: 0, _watching: AbortOnDropHandle::new(watching) }
    }

    async fn next(&mut self) -> Result<(String, String, Instant)> {
        let next = tokio::time::timeout(LIMIT, self.changes.recv()).await.context("nothing changes in the API")?;
        let (name, value, at) = next.context("the watch has ended")?;
        if self.newest.insert(name.clone(), value.clone()).as_ref() != Some(&value) {
            self.count += 1;
        }
        Ok((name, value, at))
    }

    async fn until(&mut self, device: &str, value: &str) -> Result<Instant> {
        loop {
            let (name, seen, at) = self.next().await?;
            if name == device && seen == value {
                return Ok(at);
            }
        }
    }
}

/// An application on the edge's broker.
struct App {
    client: Rc<mqtt::Client>,
    heard: mpsc::Receiver<mqtt::Incoming>,
    _running: AbortOnDropHandle<()>,
}

impl App {
    async fn connect(lab: &Lab) -> Result<Self> {
        let broker = mqtt::Broker::new(format!("tcp://{}", lab.mqtt()?), "load");
        let (sender, heard) = mpsc::channel(100_000);
        let client = Rc::new(mqtt::Client::new(broker, sender, Default::default()).map_err(anyhow::Error::msg)?);
        let filters = ["twin/update/result", "twin/get/result"].map(|what| format!("$hw/events/device/+/+/{what}"));
        let (wanted, filters) = watch::channel(BTreeSet::from(filters));
        let run = Rc::clone(&client).run(filters, async |_| ());
        let running = AbortOnDropHandle::new(tokio::task::spawn_local(async move {
            run.await;
            drop(wanted);
        }));
        Ok(Self { client, heard, _running: running })
    }

    /// Asks every device for its twin until all have answered.
    async fn ready(&mut self, prefix: &str, count: usize) -> Result<()> {
        let deadline = Instant::now() + LIMIT;
        for index in 0..count {
            let topic = format!("$hw/events/device/default/{prefix}-{index}/twin/get");
            loop {
                ensure!(Instant::now() < deadline, "{prefix}-{index} is not at the edge");
                self.send(&topic, &json!({"event_id": "ready"})).await;
                let answer = tokio::time::timeout(Duration::from_millis(300), self.heard.recv()).await;
                let Ok(Some(answer)) = answer else { continue };
                let body: Value = serde_json::from_slice(&answer.payload)?;
                if answer.topic == format!("{topic}/result") && body.get("code").is_none() {
                    break;
                }
            }
        }
        Ok(())
    }

    /// Publishes, as soon as the broker has room.
    async fn send(&self, topic: &str, payload: &Value) {
        let payload = payload.to_string();
        while !matches!(self.client.publish(topic, payload.as_bytes(), Some(1), None), Some(Ok(_))) {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    async fn update(&self, device: &str, value: usize) {
        let topic = format!("$hw/events/device/default/{device}/twin/update");
        let twin = json!({"t": {"actual": {"value": value.to_string()}, "metadata": {"type": "int"}}});
        self.send(&topic, &json!({"event_id": value.to_string(), "timestamp": 0, "twin": twin})).await;
    }

    /// Waits for so many answers, none of which may be an error.
    async fn answers(&mut self, count: usize) -> Result<()> {
        let mut answered = 0;
        while answered < count {
            let next = tokio::time::timeout(LIMIT, self.heard.recv()).await.context("no more answers")?;
            let next = next.context("the application's queue")?;
            if !next.topic.ends_with("twin/update/result") {
                continue;
            }
            let body: Value = serde_json::from_slice(&next.payload)?;
            ensure!(body.get("code").is_none(), "{}: {body}", next.topic);
            answered += 1;
        }
        Ok(())
    }
}

fn row(what: &str, target: &str, measured: &str) {
    println!("| {what} | {target} | {measured} |");
}

fn median(mut all: Vec<Duration>) -> (Duration, Duration) {
    all.sort_unstable();
    let at = |part: usize| all.get(all.len() * part / 100).copied().unwrap_or_default();
    (at(50), at(95))
}

async fn latency(app: &mut App, statuses: &mut Statuses) -> Result<()> {
    println!("| figure | target | measured |\n|---|---|---|");
    let mut took = Vec::new();
    for round in 0..3 {
        let begun = Instant::now();
        for index in 0..100 {
            let (device, value) = (format!("few-{index}"), 1000 + round);
            let sent = Instant::now();
            app.update(&device, value).await;
            took.push(statuses.until(&device, &value.to_string()).await? - sent);
        }
        app.answers(100).await?;
        // Each device's updates are more than two seconds apart.
        tokio::time::sleep(Duration::from_millis(2100).saturating_sub(begun.elapsed())).await;
    }
    let (p50, p95) = median(took);
    row(
        "MQTT twin update -> visible in the API, 100 devices",
        "p50 under 10 ms",
        &format!("p50 {p50:.1?}, p95 {p95:.1?}"),
    );
    Ok(())
}

async fn burst(app: &mut App, statuses: &mut Statuses) -> Result<()> {
    const BURST: usize = 2000;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let begun = Instant::now();
    for value in 1..=BURST {
        app.update("few-0", value).await;
    }
    let seen = statuses.until("few-0", &BURST.to_string()).await?;
    app.answers(BURST).await?;
    row("burst of 2,000 updates of one twin -> newest visible", "under 1.5 s", &format!("{:.2?}", seen - begun));
    Ok(())
}

async fn answered(app: &mut App) -> Result<()> {
    const UPDATES: usize = 20_000;
    let begun = Instant::now();
    // So many under way: what the broker keeps for a client is bounded.
    const WINDOW: usize = 64;
    for value in 0..UPDATES {
        app.update(&format!("few-{}", value % 100), value).await;
        if value >= WINDOW {
            app.answers(1).await?;
        }
    }
    app.answers(WINDOW).await?;
    let rate = UPDATES as f64 / begun.elapsed().as_secs_f64();
    row("twin updates answered at the edge, durable", "over 5,000/s", &format!("{rate:.0}/s"));
    Ok(())
}

async fn desired(lab: &Lab, client: &Client) -> Result<()> {
    let config = MapperConfig {
        edgecore: lab.folder().join("edge/dmi.sock"),
        ..MapperConfig::new("load", "p", lab.folder().join("load.sock"))
    };
    let started = tokio::time::timeout(LIMIT, Mapper::start(config)).await;
    let mut mapper = started.context("edgecore does not take the mapper")??;
    let devices = api(client, "Device", "devices");
    let mut took = Vec::new();
    for value in 0..60usize {
        let name = format!("few-{value}");
        let patch = json!({"spec": {"properties": [{"name": "t", "desired": {"value": value.to_string()}}]}});
        let sent = Instant::now();
        devices.patch(&name, &PatchParams::default(), &Patch::Merge(patch)).await?;
        loop {
            let event = tokio::time::timeout(LIMIT, mapper.next()).await.context("the mapper is not called")?;
            let Some(Event::Device(device)) = event else { bail!("a device went") };
            if device.id.name == name && device.desired("t") == Some(value.to_string().as_str()) {
                took.push(sent.elapsed());
                break;
            }
        }
    }
    let (p50, p95) = median(took);
    row(
        "desired value changed in the API -> mapper called",
        "p50 under 20 ms",
        &format!("p50 {p50:.1?}, p95 {p95:.1?}"),
    );
    Ok(())
}

async fn flood(lab: &Lab, app: &mut App, statuses: &mut Statuses, cli: &Cli) -> Result<()> {
    let rounds = cli.seconds as usize * 10;
    // What came of the rows before is not this row's.
    while statuses.changes.try_recv().is_ok() {}
    let before = statuses.count;
    let cpu = lab.edge_processor_time()?;
    let begun = Instant::now();
    let mut tick = tokio::time::interval(Duration::from_millis(100));
    let mut heard = 0;
    for round in 1..=rounds {
        tick.tick().await;
        for index in 0..cli.devices {
            app.update(&format!("many-{index}"), 1_000_000 + round).await;
            while let Ok(answer) = app.heard.try_recv() {
                heard += usize::from(answer.topic.ends_with("twin/update/result"));
            }
        }
        while let Ok((name, value, _)) = statuses.changes.try_recv() {
            if statuses.newest.insert(name, value.clone()).as_ref() != Some(&value) {
                statuses.count += 1;
            }
        }
    }
    let sent = begun.elapsed();
    let used = lab.edge_processor_time()? - cpu;
    let memory = lab.edge_memory()?;
    let newest = (1_000_000 + rounds).to_string();
    while (0..cli.devices).any(|index| statuses.newest.get(&format!("many-{index}")) != Some(&newest)) {
        statuses.next().await?;
    }
    let all = begun.elapsed();
    let writes = (statuses.count - before) as f64 / all.as_secs_f64();
    let rate = (rounds * cli.devices) as f64 / sent.as_secs_f64();
    row(
        &format!("{} devices x 10 updates/s over MQTT for {} s", cli.devices, cli.seconds),
        "every newest value arrives, at most 100 API writes/s, edge under 40 MB and one core",
        &format!(
            "{rate:.0} updates/s sent, {heard} answers heard; {writes:.0} API writes/s; all newest after {all:.1?}; \
             edge {memory:?}, {:.2} cores",
            used.as_secs_f64() / sent.as_secs_f64()
        ),
    );
    Ok(())
}
