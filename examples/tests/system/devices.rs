//! Devices, whole: definitions and manifests by kubectl, a mapper on edgecore's socket, readings back in the API.

pub(crate) mod modbus;

use std::{rc::Rc, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use kube::{
    Api, Client,
    api::{ApiResource, DynamicObject, Patch, PatchParams},
};
use kubeedge_actors::{
    eventbus::client as mqtt,
    mapper::{Event, Mapper, MapperConfig, Reading},
};
use kubeedge_examples::lab::{Lab, NODE};
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use tokio_util::task::AbortOnDropHandle;

use crate::{
    cluster::poll,
    kubectl, kubectls,
    report::{Outcome, Report},
};

const UP: &str = "devices::a_lab_comes_up";
const DOWN: &str = "devices::nothing_is_left_on_the_machine";
const WALK: &str = "devices::a_manifest_reaches_a_mapper_and_its_reading_the_api";
const MQTT: &str = "devices::a_twin_changed_on_mqtt_is_answered_and_reaches_the_api";
const OFFLINE: &str = "devices::what_changes_offline_both_ways_is_there_after_the_cloud_is_back";
const MODBUS: &str = "devices::a_modbus_device_is_driven_by_its_manifest_and_its_readings_are_pushed";
const ALL: [&str; 4] = [WALK, MQTT, OFFLINE, MODBUS];

/// For one thing to come about.
const LIMIT: Duration = Duration::from_secs(30);
const MANIFEST: &str = include_str!("devices.yaml");

pub(crate) async fn stage(report: &mut Report) {
    if !report.begins(&ALL) {
        return;
    }
    let Some((mut lab, folder)) = report.lab(UP, up).await else { return };
    report.run(WALK, lab.guarded(walk)).await;
    report.run(MQTT, lab.guarded(on_mqtt)).await;
    report.run(OFFLINE, offline(&mut lab)).await;
    report.run(MODBUS, lab.guarded(modbus::driven)).await;
    report.close(DOWN, lab, folder, Ok(())).await;
}

/// Cloud and edge; pods are not needed.
async fn up(lab: &mut Lab) -> Result<()> {
    lab.start_cloud().await?;
    lab.join().await?;
    lab.start_edge_with(&["--fake-runtime"])?;
    lab.guarded(async |lab| kubeedge_examples::lab::node_ready(lab.client()?).await.map(drop)).await
}

pub(crate) fn api(client: &Client, kind: &str, plural: &str) -> Api<DynamicObject> {
    let resource = ApiResource {
        group: "devices.kubeedge.io".into(),
        version: "v1beta1".into(),
        api_version: "devices.kubeedge.io/v1beta1".into(),
        kind: kind.into(),
        plural: plural.into(),
    };
    Api::namespaced_with(client.clone(), "default", &resource)
}

/// Awaits a state of an object.
async fn until(api: &Api<DynamicObject>, name: &str, what: &str, is: impl Fn(&Value) -> bool) -> Result<Value> {
    poll(what, async || {
        let object = api.get_opt(name).await?.map(|object| object.data).unwrap_or_default();
        Ok(if is(&object) { Ok(object) } else { Err(object.to_string()) })
    })
    .await
}

/// A property in a DeviceStatus.
fn twin(status: &Value, name: &str, pointer: &str) -> Option<String> {
    let twins = status.pointer("/status/twins")?.as_array()?;
    let twin = twins.iter().find(|twin| twin["propertyName"] == name)?;
    twin.pointer(pointer)?.as_str().map(str::to_owned)
}

/// An application on the edge's broker.
pub(crate) struct App {
    pub(crate) client: Rc<mqtt::Client>,
    pub(crate) heard: mpsc::Receiver<mqtt::Incoming>,
    _running: AbortOnDropHandle<()>,
}

impl App {
    /// Connects and hears everything that is told about this device.
    async fn connect(lab: &Lab, device: &str) -> Result<Self> {
        let filters = ["twin/update/+", "twin/get/result"].map(|what| format!("$hw/events/device/{device}/{what}"));
        let mut app = Self::listening(lab, "an-application", filters)?;
        // Subscribed when it hears an answer.
        poll("the edge answers on MQTT", async || {
            app.publish(&format!("$hw/events/device/{device}/twin/get"), &json!({"event_id": "hello"}));
            let answer = tokio::time::timeout(Duration::from_millis(200), app.hears("twin/get/result", "hello")).await;
            Ok(answer.map_err(|_| "no answer".to_owned()))
        })
        .await??;
        Ok(app)
    }

    /// Connects, by and by, and hears what is published under these filters.
    pub(crate) fn listening<const N: usize>(lab: &Lab, client_id: &str, filters: [String; N]) -> Result<Self> {
        let broker = mqtt::Broker::new(format!("tcp://{}", lab.mqtt()?), client_id);
        let (sender, heard) = mpsc::channel(1000);
        let client = Rc::new(mqtt::Client::new(broker, sender, Default::default()).map_err(anyhow::Error::msg)?);
        let (wanted, filters) = watch::channel(filters.into());
        let running = Rc::clone(&client).run(filters, async |_| ());
        let running = AbortOnDropHandle::new(tokio::task::spawn_local(async move {
            running.await;
            drop(wanted);
        }));
        Ok(Self { client, heard, _running: running })
    }

    fn publish(&self, topic: &str, payload: &Value) {
        self.publish_text(topic, payload.to_string().as_bytes());
    }

    pub(crate) fn publish_text(&self, topic: &str, payload: &[u8]) {
        // Not connected yet: it is tried again.
        let _ = self.client.publish(topic, payload, None, None);
    }

    /// Changes what the device says, and waits for the answer.
    async fn update(&mut self, device: &str, event_id: &str, twin: Value) -> Result<Value> {
        let topic = format!("$hw/events/device/{device}/twin/update");
        self.publish(&topic, &json!({"event_id": event_id, "timestamp": 0, "twin": twin}));
        match tokio::time::timeout(LIMIT, self.hears("twin/update/result", event_id)).await {
            Ok(answer) => answer,
            Err(_) => bail!("no answer to {event_id} within {LIMIT:?}"),
        }
    }

    /// The next message on a topic that ends so, with this id.
    async fn hears(&mut self, what: &str, event_id: &str) -> Result<Value> {
        loop {
            let next = self.heard.recv().await.context("the application's queue")?;
            let body: Value = serde_json::from_slice(&next.payload)?;
            if next.topic.ends_with(what) && body["event_id"] == event_id {
                return Ok(body);
            }
        }
    }
}

async fn on_mqtt(lab: &Lab) -> Result<Outcome> {
    tokio::task::LocalSet::new().run_until(answered(lab)).await
}

async fn answered(lab: &Lab) -> Result<Outcome> {
    let mut app = App::connect(lab, "default/meter").await?;
    let refused = app.update("default/meter", "bad", json!({"kwh": {"actual": {"value": "x y"}}})).await?;
    ensure!(refused["code"] == 400, "a bad value: {refused}");
    let answer = app.update("default/meter", "good", json!({"kwh": {"actual": {"value": "42"}}})).await?;
    ensure!(answer["twin"]["kwh"]["actual"]["value"] == "42", "{answer}");
    let statuses = api(&lab.client()?, "DeviceStatus", "devicestatuses");
    until(&statuses, "meter", "the value in the API", |status| {
        twin(status, "kwh", "/reported/value").as_deref() == Some("42")
    })
    .await?;
    Ok(Outcome::Proved)
}

/// The cloud is gone; an application says something, which is answered. The cloud comes back, and somebody desires.
async fn offline(lab: &mut Lab) -> Result<Outcome> {
    lab.kill_cloud().await?;
    tokio::task::LocalSet::new()
        .run_until(async {
            let mut app = App::connect(lab, "default/meter").await?;
            for value in ["43", "44"] {
                let answer = app.update("default/meter", value, json!({"kwh": {"actual": {"value": value}}})).await?;
                ensure!(answer["twin"]["kwh"]["actual"]["value"] == value, "offline: {answer}");
            }
            Ok(())
        })
        .await?;
    lab.resume_cloud().await?;
    lab.guarded(async |lab| {
        let client = lab.client()?;
        let statuses = api(&client, "DeviceStatus", "devicestatuses");
        until(&statuses, "meter", "what was said offline", |status| {
            twin(status, "kwh", "/reported/value").as_deref() == Some("44")
        })
        .await?;
        let patch = json!({"spec": {"properties": [{"name": "kwh", "desired": {"value": "0"}}]}});
        api(&client, "Device", "devices").patch("meter", &PatchParams::default(), &Patch::Merge(patch)).await?;
        tokio::task::LocalSet::new()
            .run_until(async {
                let mut app = App::connect(lab, "default/meter").await?;
                poll("the desired value at the edge", async || {
                    app.publish("$hw/events/device/default/meter/twin/get", &json!({"event_id": "look"}));
                    let answer = tokio::time::timeout(LIMIT, app.hears("twin/get/result", "look")).await??;
                    let seen = answer["twin"]["kwh"]["expected"]["value"].clone();
                    Ok(if seen == "0" { Ok(()) } else { Err(answer.to_string()) })
                })
                .await
            })
            .await
    })
    .await?;
    Ok(Outcome::Proved)
}

/// The next news of a mapper's devices.
async fn next(mapper: &mut Mapper) -> Result<Event> {
    match tokio::time::timeout(LIMIT, mapper.next()).await {
        Ok(event) => event.context("the mapper has ended"),
        Err(_) => bail!("no call of edgecore within {LIMIT:?}"),
    }
}

async fn walk(lab: &Lab) -> Result<Outcome> {
    if kubectls::newest().is_none() {
        return kubectls::missing();
    }
    let crds = lab.command("cloudcore", &["crds"]).await?;
    ensure!(crds.status.success(), "cloudcore crds: {}", String::from_utf8_lossy(&crds.stderr));
    let said = apply(lab, "crds", &String::from_utf8(crds.stdout)?).await?;
    ensure!(said.lines().filter(|line| line.ends_with("created")).count() == 5, "{said}");
    kubectl::run(lab, &["wait", "--for=condition=Established", "crd/devices.devices.kubeedge.io", "--timeout=20s"])
        .await?;
    apply(lab, "devices", &MANIFEST.replace("NODE", NODE)).await?;

    let local = tokio::task::LocalSet::new();
    local.run_until(mapped(lab)).await
}

/// `kubectl apply` of a text.
async fn apply(lab: &Lab, name: &str, text: &str) -> Result<String> {
    let path = lab.folder().join(format!("{name}.yaml"));
    std::fs::write(&path, text)?;
    kubectl::run(lab, &["apply", "-f", path.to_str().context("a path of UTF-8")?]).await
}

async fn mapped(lab: &Lab) -> Result<Outcome> {
    let client = lab.client()?;
    let config = MapperConfig {
        edgecore: lab.folder().join("edge/dmi.sock"),
        ..MapperConfig::new("simulated", "thermostat", lab.folder().join("mapper.sock"))
    };
    let mut mapper = Mapper::start(config).await?;
    let Event::Device(device) = next(&mut mapper).await? else { bail!("a device went before it came") };
    ensure!(device.desired("setpoint") == Some("21"), "told: {device:?}");
    ensure!(device.kind_of("temperature").is_some_and(|kind| kind.unit == "Celsius"), "its model: {device:?}");

    mapper.report_state(&device.id, "ok").await?;
    let readings = [Reading::new("temperature", "19.5"), Reading::new("setpoint", "21").observing("21")];
    mapper.report(&device.id, readings).await?;
    let statuses = api(&client, "DeviceStatus", "devicestatuses");
    until(&statuses, "living-room", "the reading in the API", |status| {
        twin(status, "temperature", "/reported/value").as_deref() == Some("19.5")
            && twin(status, "setpoint", "/observedDesired/value").as_deref() == Some("21")
            && status["status"]["state"] == "ok"
    })
    .await?;

    let patch = json!({"spec": {"properties": [
        {"name": "temperature", "reportToCloud": true}, {"name": "setpoint", "desired": {"value": "23"}},
        {"name": "secret", "reportToCloud": false}]}});
    let devices = api(&client, "Device", "devices");
    devices.patch("living-room", &PatchParams::default(), &Patch::Merge(patch)).await?;
    let Event::Device(device) = next(&mut mapper).await? else { bail!("the device went") };
    ensure!(device.desired("setpoint") == Some("23"), "told: {device:?}");
    mapper.report(&device.id, [Reading::new("secret", "x"), Reading::new("temperature", "20")]).await?;
    let status = until(&statuses, "living-room", "the next reading in the API", |status| {
        twin(status, "temperature", "/reported/value").as_deref() == Some("20")
    })
    .await?;
    ensure!(twin(&status, "secret", "/reported/value").is_none(), "what stays at the edge is in the API: {status}");

    devices.delete("living-room", &Default::default()).await?;
    ensure!(next(&mut mapper).await? == Event::Gone(device.id.clone()), "the device stays with the mapper");
    poll("the DeviceStatus goes with its Device", async || {
        Ok(statuses.get_opt("living-room").await?.map_or(Ok(()), |status| Err(status.data.to_string())))
    })
    .await?;
    Ok(Outcome::Proved)
}
