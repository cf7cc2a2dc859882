//! What devices cost: `make devices`. Cloud and edge are the stock programs with a container runtime beside them,
//! applications speak MQTT with the edge's own broker, a mapper speaks DMI.

use std::{
    collections::{BTreeSet, HashMap},
    path::PathBuf,
    process::ExitCode,
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
use kubeedge_examples::{
    containerd::Tools,
    figures::{Figure, table},
    lab::{Lab, NODE},
    process::Meter,
};
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use tokio_util::task::AbortOnDropHandle;

/// Measures what devices cost.
#[derive(Parser)]
struct Cli {
    /// Where cloudcore and edgecore are, as `make build` makes them
    #[arg(long, default_value = "target/release")]
    programs: PathBuf,
    /// Devices of the last row
    #[arg(long, default_value_t = 1000)]
    devices: usize,
    /// Seconds of the last row
    #[arg(long, default_value_t = 60)]
    seconds: u64,
}

const LIMIT: Duration = Duration::from_secs(60);

/// API writes a second that the cloud allows for the devices of one node, unless it is told otherwise.
const WRITES: usize = 100;

// One thread: children are told when the thread that started them ends, and this one ends last.
#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match run(Cli::parse()).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("device_load: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(cli: Cli) -> Result<bool> {
    let tools = Tools::find()?;
    let folder = tempfile::Builder::new().prefix("ke").tempdir()?;
    let mut lab = Lab::open(folder.path(), Some(cli.programs.clone()))?;
    let measured = tokio::task::LocalSet::new().run_until(measure(&mut lab, tools, &cli)).await;
    let left = lab.close().await;
    let met = table(&measured?);
    let left = left?;
    ensure!(left.is_empty(), "left on this machine: {left:?}");
    Ok(met)
}

async fn measure(lab: &mut Lab, tools: Tools, cli: &Cli) -> Result<Vec<Figure>> {
    lab.up(tools).await?;
    let edge = lab.edge_meter()?;
    lab.guarded(async |lab| {
        let client = lab.client()?;
        define(lab, &client).await?;
        let mut statuses = Statuses::follow(client.clone());
        let mut app = App::connect(lab).await?;

        make(&client, "few", 100).await?;
        app.ready("few", 100).await?;
        let mut figures = vec![
            latency(&mut app, &mut statuses).await?,
            burst(&mut app, &mut statuses).await?,
            answered(&mut app).await?,
            desired(lab, &client).await?,
        ];
        make(&client, "many", cli.devices).await?;
        app.ready("many", cli.devices).await?;
        figures.extend(flood(&edge, &mut app, &mut statuses, cli).await?);
        Ok(figures)
    })
    .await
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

/// One write of a device's status, as a watch tells it.
struct Seen {
    device: String,
    value: String,
    at: Instant,
}

/// What the API says of each device, and when it began to.
struct Statuses {
    changes: mpsc::Receiver<Seen>,
    newest: HashMap<String, String>,
    /// When each write was seen, since [`Statuses::forget`].
    writes: Vec<Instant>,
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
                let (Some(device), Some(value)) = (status.metadata.name, value) else { continue };
                if sender.send(Seen { device, value: value.to_owned(), at: Instant::now() }).await.is_err() {
                    return;
                }
            }
        });
        Self { changes, newest: HashMap::new(), writes: Vec::new(), _watching: AbortOnDropHandle::new(watching) }
    }

    fn take(&mut self, seen: &Seen) {
        self.newest.insert(seen.device.clone(), seen.value.clone());
        self.writes.push(seen.at);
    }

    /// Takes what is there already.
    fn take_all(&mut self) {
        while let Ok(seen) = self.changes.try_recv() {
            self.take(&seen);
        }
    }

    /// What came so far is of no interest any more.
    fn forget(&mut self) {
        self.take_all();
        self.writes.clear();
    }

    /// The most writes within any second.
    fn busiest_second(&self) -> usize {
        let within = |from: usize| {
            let rest = self.writes.get(from..).unwrap_or_default();
            rest.iter().take_while(|at| at.duration_since(rest[0]) < Duration::from_secs(1)).count()
        };
        (0..self.writes.len()).map(within).max().unwrap_or_default()
    }

    async fn next(&mut self) -> Result<Seen> {
        let next = tokio::time::timeout(LIMIT, self.changes.recv()).await.context("nothing changes in the API")?;
        let seen = next.context("the watch has ended")?;
        self.take(&seen);
        Ok(seen)
    }

    async fn until(&mut self, device: &str, value: &str) -> Result<Instant> {
        loop {
            let seen = self.next().await?;
            if seen.device == device && seen.value == value {
                return Ok(seen.at);
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

/// Times whose median has to be below `most`.
fn under(name: &str, mut all: Vec<Duration>, most: Duration) -> Figure {
    all.sort_unstable();
    let at = |part: usize| all.get(all.len() * part / 100).copied().unwrap_or_default();
    let (p50, p95) = (at(50), at(95));
    Figure::new(name, format!("p50 {p50:.1?}, p95 {p95:.1?}"), format!("p50 under {most:?}"), p50 < most)
}

async fn latency(app: &mut App, statuses: &mut Statuses) -> Result<Figure> {
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
    let name = "MQTT twin update -> visible in the API, 100 devices";
    Ok(under(name, took, Duration::from_millis(10)))
}

async fn burst(app: &mut App, statuses: &mut Statuses) -> Result<Figure> {
    const BURST: usize = 2000;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let begun = Instant::now();
    for value in 1..=BURST {
        app.update("few-0", value).await;
    }
    let seen = statuses.until("few-0", &BURST.to_string()).await?;
    app.answers(BURST).await?;
    let (name, took) = ("burst of 2,000 updates of one twin -> newest visible", seen - begun);
    Ok(Figure::new(name, format!("{took:.2?}"), "under 1.5 s", took < Duration::from_millis(1500)))
}

async fn answered(app: &mut App) -> Result<Figure> {
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
    let name = "twin updates answered at the edge, durable";
    Ok(Figure::new(name, format!("{rate:.0}/s"), "over 5,000/s", rate > 5000.0))
}

async fn desired(lab: &Lab, client: &Client) -> Result<Figure> {
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
    Ok(under("desired value changed in the API -> mapper called", took, Duration::from_millis(20)))
}

async fn flood(edge: &Meter, app: &mut App, statuses: &mut Statuses, cli: &Cli) -> Result<Vec<Figure>> {
    let rounds = cli.seconds as usize * 10;
    statuses.forget();
    let cpu = edge.processor_time()?;
    let begun = Instant::now();
    let mut tick = tokio::time::interval(Duration::from_millis(100));
    let (mut heard, mut most) = (0, 0);
    for round in 1..=rounds {
        tick.tick().await;
        for index in 0..cli.devices {
            app.update(&format!("many-{index}"), 1_000_000 + round).await;
            while let Ok(answer) = app.heard.try_recv() {
                heard += usize::from(answer.topic.ends_with("twin/update/result"));
            }
        }
        statuses.take_all();
        most = most.max(edge.memory()?.resident);
    }
    let sent = begun.elapsed();
    let used = edge.processor_time()?.saturating_sub(cpu);
    let newest = (1_000_000 + rounds).to_string();
    while (0..cli.devices).any(|index| statuses.newest.get(&format!("many-{index}")) != Some(&newest)) {
        statuses.next().await?;
        most = most.max(edge.memory()?.resident);
    }
    let all = begun.elapsed();
    let offered = cli.devices * 10;
    let rate = (rounds * cli.devices) as f64 / sent.as_secs_f64();
    let busiest = statuses.busiest_second();
    let cores = used.as_secs_f64() / sent.as_secs_f64();
    let name = format!("{} devices x 10 updates/s over MQTT for {} s: ", cli.devices, cli.seconds);
    let named = |what: &str| format!("{name}{what}");
    Ok(vec![
        // A broker that takes them more slowly slows the sender: then it was not this load.
        Figure::new(
            named("updates taken"),
            format!("{rate:.0}/s, {heard} answers heard meanwhile"),
            format!("{offered}/s"),
            rate > 0.98 * offered as f64,
        ),
        Figure::new(named("every newest value in the API"), format!("after {all:.1?}"), "all arrive", true),
        Figure::new(
            named("API writes in the busiest second"),
            busiest.to_string(),
            format!("at most {WRITES}, a tenth more where a watch told late"),
            busiest <= WRITES + WRITES / 10,
        ),
        Figure::new(
            named("edge's memory, the most"),
            format!("{:.1} MB", most as f64 / 1e6),
            "under 40 MB",
            most < 40_000_000,
        ),
        Figure::new(named("edge's processor time"), format!("{cores:.2} cores"), "under 1", cores < 1.0),
    ])
}
