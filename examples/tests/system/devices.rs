//! Devices, whole: definitions and manifests by kubectl, a mapper on edgecore's socket, readings back in the API.

mod broker;
mod cut;
mod mapper;
pub(crate) mod modbus;
mod status;

use std::{net::SocketAddr, rc::Rc, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use kube::{
    Api, Client,
    api::{ApiResource, DynamicObject, Patch, PatchParams, PostParams},
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
const TOPICS: &str = "devices::every_topic_is_answered_and_what_is_wrong_is_told_with_a_code";
const OFFLINE: &str = "devices::what_changes_offline_both_ways_is_there_after_the_cloud_is_back";
const CUT: &str = "devices::what_is_said_over_dmi_and_mqtt_while_the_line_is_cut_is_in_the_api_after_it_is_mended";
const EDGE: &str = "devices::readings_that_stay_at_the_edge_write_nothing_into_the_api";
const STATUS: &str = "devices::a_status_that_is_taken_away_is_filled_again_by_its_node";
const RECREATED: &str = "devices::a_device_made_again_has_a_status_of_its_own";
const MOVED: &str = "devices::a_device_that_moves_keeps_its_last_readings_until_its_new_node_says_more";
const KILLED: &str = "devices::a_mapper_that_is_killed_hears_when_it_is_back_of_what_was_desired";
const MODBUS: &str = "devices::a_modbus_device_is_driven_by_its_manifest_and_its_readings_are_pushed";
const BROKER: &str = "devices::a_broker_that_others_run_with_tls_and_a_password_may_restart";
const ALL: [&str; 12] = [WALK, MQTT, TOPICS, OFFLINE, CUT, EDGE, STATUS, RECREATED, MOVED, KILLED, MODBUS, BROKER];

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
    report.run(TOPICS, lab.guarded(on_every_topic)).await;
    report.run(OFFLINE, offline(&mut lab)).await;
    report.run(CUT, lab.guarded(cut::over_both)).await;
    report.run(EDGE, lab.guarded(cut::stays_at_the_edge)).await;
    report.run(STATUS, lab.guarded(status::taken_away)).await;
    report.run(RECREATED, lab.guarded(status::recreated)).await;
    report.run(MOVED, lab.guarded(status::moved)).await;
    report.run(KILLED, mapper::killed(&mut lab)).await;
    report.run(MODBUS, lab.guarded(modbus::driven)).await;
    report.run(BROKER, broker::external(&mut lab)).await;
    report.close(DOWN, lab, folder, Ok(())).await;
}

/// Cloud and edge; pods are not needed.
async fn up(lab: &mut Lab) -> Result<()> {
    lab.start_cloud().await?;
    lab.join().await?;
    lab.draw_line().await?;
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
        Self::subscribed(lab, "an-application", device, filters).await
    }

    /// Connects and hears what is published under these filters, the answers to `twin/get` of this device among it.
    async fn subscribed<const N: usize>(
        lab: &Lab,
        client_id: &str,
        device: &str,
        filters: [String; N],
    ) -> Result<Self> {
        Self::subscribed_at(lab.mqtt()?, client_id, device, filters).await
    }

    /// The same on any broker.
    async fn subscribed_at<const N: usize>(
        broker: SocketAddr,
        client_id: &str,
        device: &str,
        filters: [String; N],
    ) -> Result<Self> {
        let mut app = Self::listening_at(broker, client_id, filters)?;
        // Subscribed when it hears an answer: to itself, since the broker kept others' for it while it was away.
        let hello = format!("hello of {:?}", std::time::Instant::now());
        poll("the edge answers on MQTT", async || {
            app.publish(&format!("$hw/events/device/{device}/twin/get"), &json!({"event_id": hello}));
            let answer = tokio::time::timeout(Duration::from_millis(200), app.hears("twin/get/result", &hello)).await;
            Ok(answer.map_err(|_| "no answer".to_owned()))
        })
        .await??;
        Ok(app)
    }

    /// Connects, by and by, and hears what is published under these filters.
    pub(crate) fn listening<const N: usize>(lab: &Lab, client_id: &str, filters: [String; N]) -> Result<Self> {
        Self::listening_at(lab.mqtt()?, client_id, filters)
    }

    fn listening_at<const N: usize>(broker: SocketAddr, client_id: &str, filters: [String; N]) -> Result<Self> {
        let broker = mqtt::Broker::new(format!("tcp://{broker}"), client_id);
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

    /// Publishes a request, and hears the next that is published on a topic that ends so.
    async fn asks(&mut self, topic: &str, payload: &[u8], answered: &str) -> Result<Value> {
        self.publish_text(topic, payload);
        self.on(answered).await.with_context(|| format!("after a request on {topic}"))
    }

    /// The next message on a topic that ends so. Others are let pass.
    async fn on(&mut self, told: &str) -> Result<Value> {
        let told_on_it = async {
            loop {
                let next = self.heard.recv().await.context("the application's queue")?;
                if next.topic.ends_with(told) {
                    return Ok(serde_json::from_slice(&next.payload)?);
                }
            }
        };
        match tokio::time::timeout(LIMIT, told_on_it).await {
            Ok(message) => message,
            Err(_) => bail!("nothing on {told} within {LIMIT:?}"),
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
    let statuses = api(&lab.client()?, "DeviceStatus", "devicestatuses");
    let extensions = json!({"site": {"room": "cellar"}});
    until(&statuses, "meter", "a DeviceStatus", |status| status.is_object()).await?;
    let patch = Patch::Merge(json!({"status": {"extensions": extensions}}));
    statuses.patch("meter", &PatchParams::default(), &patch).await?;
    let refused = app.update("default/meter", "bad", json!({"kwh": {"actual": {"value": "x y"}}})).await?;
    ensure!(refused["code"] == 400, "a bad value: {refused}");
    let answer = app.update("default/meter", "good", json!({"kwh": {"actual": {"value": "42"}}})).await?;
    ensure!(answer["twin"]["kwh"]["actual"]["value"] == "42", "{answer}");
    let status = until(&statuses, "meter", "the value in the API", |status| {
        twin(status, "kwh", "/reported/value").as_deref() == Some("42")
    })
    .await?;
    ensure!(status["status"]["extensions"] == extensions, "the user's own are not left alone: {status}");
    Ok(Outcome::Proved)
}

/// Over the broker, each topic that an application publishes on, and each that it hears.
async fn on_every_topic(lab: &Lab) -> Result<Outcome> {
    tokio::task::LocalSet::new().run_until(every_topic(lab, lab.mqtt()?, "every-topic")).await
}

/// On any broker, by a client that was not there before.
async fn every_topic(lab: &Lab, broker: SocketAddr, client_id: &str) -> Result<Outcome> {
    const METER: &str = "$hw/events/device/default/meter";
    const NONE: &str = "$hw/events/device/default/none";
    let own = format!("$hw/events/node/{NODE}");
    // Answers only: its own requests are none. No message is one of two filters'.
    let of_meter = ["twin/update/document", "twin/update/delta", "state/update/result", "updated"];
    let [a, b, c, d] = of_meter.map(|what| format!("{METER}/{what}"));
    let of_node = ["membership/get/result", "membership/updated"].map(|what| format!("{own}/{what}"));
    let [e, f] = of_node;
    let filters = [a, b, c, d, e, f, "$hw/events/device/default/+/twin/+/result".to_owned()];
    let mut app = App::subscribed_at(broker, client_id, "default/meter", filters).await?;
    let update = json!({"event_id": "1", "timestamp": 0, "twin": {"kwh": {"expected": {"value": "50"}}}}).to_string();
    let (twin, state) = (format!("{METER}/twin/update"), format!("{METER}/state/update"));
    let document = app.asks(&twin, update.as_bytes(), "/twin/update/document").await?;
    ensure!(document["twin"]["kwh"]["current"]["expected"]["value"] == "50", "{document}");
    let delta = app.on("/twin/update/delta").await?;
    ensure!(delta["delta"] == json!({"kwh": "50"}), "{delta}");
    let room = json!({"room": {"value": client_id}});
    let said = json!({"event_id": "2", "timestamp": 0, "state": "online", "attributes": room});
    let answer = app.asks(&state, said.to_string().as_bytes(), "/state/update/result").await?;
    ensure!(answer["device"]["state"] == "online", "{answer}");
    let updated = app.on("/meter/updated").await?;
    ensure!(updated["attributes"]["room"]["value"] == client_id, "{updated}");
    let asked = json!({"event_id": "3", "timestamp": 0}).to_string();
    let devices =
        app.asks(&format!("{own}/membership/get"), asked.as_bytes(), "/membership/get/result").await?["devices"]
            .clone();
    let is_there = |device: &Value| device["name"] == "meter" || device["id"] == "default/meter";
    ensure!(devices.as_array().is_some_and(|all| all.iter().any(is_there)), "{devices}");
    cloud_updated(&mut app, METER).await?;
    come_and_gone(lab, &mut app).await?;

    let large = vec![b'x'; 10_000_000];
    let wrong_type = json!({"event_id": "4", "twin": {"kwh": {"actual": {"value": 7}}}}).to_string();
    let bad_name = json!({"event_id": "5", "twin": {"k w h": {"actual": {"value": "7"}}}}).to_string();
    let nowhere = json!({"event_id": "6", "twin": {"kwh": {"actual": {"value": "7"}}}}).to_string();
    let no_state = json!({"event_id": "7", "state": "flying"}).to_string();
    let long = json!({"event_id": "8", "attributes": {"room": {"value": "x".repeat(2000)}}}).to_string();
    let refused: [(String, &[u8], &str, u64); 11] = [
        (twin.clone(), b"{", "/twin/update/result", 400),
        (twin.clone(), wrong_type.as_bytes(), "/twin/update/result", 400),
        (twin.clone(), bad_name.as_bytes(), "/twin/update/result", 400),
        (twin, &large, "/twin/update/result", 400),
        (format!("{METER}/twin/cloud_updated"), b"[]", "/twin/update/result", 400),
        (format!("{NONE}/twin/update"), nowhere.as_bytes(), "/none/twin/update/result", 404),
        (format!("{NONE}/twin/get"), asked.as_bytes(), "/none/twin/get/result", 404),
        (state.clone(), no_state.as_bytes(), "/state/update/result", 400),
        (state, long.as_bytes(), "/state/update/result", 400),
        (format!("{METER}_1/twin/update"), nowhere.as_bytes(), "/meter_1/twin/update/result", 400),
        (format!("{METER}/twin/delete"), b"", "/meter/twin/delete/result", 400),
    ];
    for (topic, payload, answered, code) in refused {
        let answer = app.asks(&topic, payload, answered).await?;
        let told = answer["code"] == code && answer["reason"].as_str().is_some_and(|reason| !reason.is_empty());
        ensure!(told, "{topic} with {} bytes: {answer}, expected code {code}", payload.len());
    }
    Ok(Outcome::Proved)
}

/// A change with the cloud's versions: behind the edge's it is told so, with them it is taken.
async fn cloud_updated(app: &mut App, meter: &str) -> Result<()> {
    let topic = format!("{meter}/twin/cloud_updated");
    let change = |event_id: &str, versions: &Value| {
        let kwh = json!({"expected": {"value": "60"}, "expected_version": versions});
        json!({"event_id": event_id, "timestamp": 0, "twin": {"kwh": kwh}}).to_string()
    };
    let behind = change("behind", &json!({"cloud": 0, "edge": 0}));
    let refused = app.asks(&topic, behind.as_bytes(), "/meter/twin/update/result").await?;
    let mut versions = refused["twin"]["kwh"]["expected_version"].clone();
    ensure!(refused["code"] == 409 && versions["edge"].is_i64(), "{refused}");
    versions["cloud"] = (versions["cloud"].as_i64().context("a version")? + 1).into();
    let document = app.asks(&topic, change("known", &versions).as_bytes(), "/twin/update/document").await?;
    let taken = document["twin"]["kwh"]["current"]["expected"]["value"] == "60";
    ensure!(taken && document["event_id"] == "known", "{document}");
    let delta = app.on("/twin/update/delta").await?;
    ensure!(delta["delta"] == json!({"kwh": "60"}), "{delta}");
    Ok(())
}

/// A device comes to the node, and goes.
async fn come_and_gone(lab: &Lab, app: &mut App) -> Result<()> {
    let device = json!({"apiVersion": "devices.kubeedge.io/v1beta1", "kind": "Device",
        "metadata": {"name": "visitor", "labels": {"description": "for-a-moment"}},
        "spec": {"deviceModelRef": {"name": "meter"}, "nodeName": NODE, "protocol": {"protocolName": "none"},
            "properties": [{"name": "kwh"}]}});
    let devices = api(&lab.client()?, "Device", "devices");
    devices.create(&PostParams::default(), &serde_json::from_value(device)?).await.context("a device")?;
    let told = app.on("/membership/updated").await?;
    let expected = json!([{"id": "default/visitor", "name": "visitor", "description": "for-a-moment"}]);
    ensure!(told["added_devices"] == expected && told["removed_devices"].is_null(), "{told}");
    devices.delete("visitor", &Default::default()).await?;
    let told = app.on("/membership/updated").await?;
    let gone = told["removed_devices"][0]["id"] == "default/visitor";
    ensure!(gone && told["added_devices"].is_null(), "{told}");
    Ok(())
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
