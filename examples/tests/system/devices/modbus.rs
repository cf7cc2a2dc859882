//! The mapper for Modbus with a device on its wire: both are programs of their own, and nothing tells them what to do but
//! manifests.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context, Result, ensure};
use kube::api::{ApiResource, DynamicObject, Patch, PatchParams, PostParams};
use kubeedge_examples::{
    lab::{Lab, NODE, free_ports},
    process::{Launch, Process},
};
use serde_json::{Value, json};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::mpsc,
};
use tokio_modbus::{client::tcp, prelude::Reader, slave::Slave};
use tokio_util::task::AbortOnDropHandle;

use super::{App, LIMIT, api, poll, twin, until};
use crate::report::Outcome;

const MANIFEST: &str = include_str!("../../../devices/boiler.yaml");
const TOPIC: &str = "site/boiler/temperature";

pub(super) async fn driven(lab: &Lab) -> Result<Outcome> {
    tokio::task::LocalSet::new().run_until(walk(lab)).await
}

async fn walk(lab: &Lab) -> Result<Outcome> {
    let client = lab.client()?;
    define(lab).await?;
    let (sink, mut pushed) = Sink::serve().await?;
    let [port] = free_ports()?;
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let device = boiler(lab, address)?;
    let mapper = launch(lab, "modbus_mapper")?
        .arg("--edgecore")
        .arg(lab.folder().join("edge/dmi.sock"))
        .arg("--socket")
        .arg(lab.folder().join("modbus.sock"))
        .spawn()?;
    let mut app = App::listening(lab, "a-listener", [TOPIC.to_owned()])?;

    // A model before its device, then everything comes by itself.
    let text = MANIFEST
        .replace("nodeName: edge-1", &format!("nodeName: {NODE}"))
        .replace("port: 1502", &format!("port: {port}"))
        .replace("tcp://127.0.0.1:1883", &format!("tcp://{}", lab.mqtt()?))
        .replace("port: 8080", &format!("port: {}", sink.port()));
    for document in text.split("\n---\n") {
        let object: DynamicObject = serde_saphyr::from_str(document)?;
        let (kind, plural) = match object.types.as_ref().map(|types| types.kind.as_str()) {
            Some("DeviceModel") => ("DeviceModel", "devicemodels"),
            _ => ("Device", "devices"),
        };
        let api = api(&client, kind, plural);
        poll(&format!("a {kind} is taken"), async || {
            Ok(api.create(&PostParams::default(), &object).await.map_err(|error| error.to_string()))
        })
        .await?;
    }
    let statuses = api(&client, "DeviceStatus", "devicestatuses");
    let reported = |status: &Value, name: &str| twin(status, name, "/reported/value");
    until(&statuses, "boiler", "what the device says, in the API", |status| {
        status["status"]["state"] == "ok"
            && twin(status, "setpoint", "/observedDesired/value").as_deref() == Some("21.5")
            && reported(status, "setpoint").as_deref() == Some("21.5")
            && reported(status, "power").as_deref() == Some("true")
            && reported(status, "temperature").as_deref() == Some("21.5")
            && reported(status, "energy").is_none()
    })
    .await?;
    ensure!(setpoint(address).await? == 215, "the device's own register");

    // Both ways of pushing.
    let body = within(pushed.recv()).await?.context("the HTTP server has ended")?;
    let (energy, time) =
        body.strip_prefix("energy=").and_then(|rest| rest.split_once("&time=")).context(body.clone())?;
    ensure!(energy.parse::<f32>().is_ok_and(|kwh| kwh > 0.0) && time.len() > 10, "pushed over HTTP: {body}");
    let said = within(app.heard.recv()).await?.context("the application's queue")?;
    let text = String::from_utf8(said.payload.to_vec())?;
    let (time, value) = text.split_once(&format!("  {TOPIC}: ")).with_context(|| text.clone())?;
    ensure!(time.starts_with("time is 20") && value.parse::<f64>().is_ok(), "pushed over MQTT: {text}");

    // Desired in the API, written on the wire, and read back.
    let devices = api(&client, "Device", "devices");
    let mut spec = devices.get("boiler").await?.data["spec"].clone();
    let properties = spec["properties"].as_array_mut().context("properties")?;
    let wanted = properties.iter_mut().find(|property| property["name"] == "setpoint").context("setpoint")?;
    wanted["desired"]["value"] = json!("23");
    let patch = Patch::Merge(json!({"spec": spec}));
    devices.patch("boiler", &PatchParams::default(), &patch).await?;
    let taken = |status: &Value| {
        twin(status, "setpoint", "/observedDesired/value").as_deref() == Some("23")
            && reported(status, "setpoint").as_deref() == Some("23")
    };
    until(&statuses, "boiler", "the new setpoint", taken).await?;
    ensure!(setpoint(address).await? == 230, "the device's own register");

    // The device loses its power: that is seen, and when it is back it is told again what is desired.
    device.kill().await?;
    until(&statuses, "boiler", "a device that is away", |status| status["status"]["state"] == "offline").await?;
    let device = boiler(lab, address)?;
    until(&statuses, "boiler", "a device that is back", |status| status["status"]["state"] == "ok").await?;
    poll("the setpoint at the device that forgot it", async || {
        Ok(match setpoint(address).await? {
            230 => Ok(()),
            other => Err(other.to_string()),
        })
    })
    .await?;

    devices.delete("boiler", &Default::default()).await?;
    poll("the DeviceStatus goes with its Device", async || {
        Ok(statuses.get_opt("boiler").await?.map_or(Ok(()), |status| Err(status.data.to_string())))
    })
    .await?;
    poll("the mapper lets go of the device", async || {
        Ok(if mapper.log_tail().contains("default/boiler: gone") { Ok(()) } else { Err(mapper.log_tail()) })
    })
    .await?;
    let log = mapper.log().to_owned();
    mapper.stop(Duration::from_secs(5)).await?;
    let said = std::fs::read_to_string(log)?;
    ensure!(said.contains("pushed: Counts { pushed: ") && said.contains("failed: 0"), "{said}");
    device.stop(Duration::from_secs(5)).await?;
    app.client.disconnect().await;
    Ok(Outcome::Proved)
}

async fn within<T>(work: impl Future<Output = T>) -> Result<T> {
    tokio::time::timeout(LIMIT, work).await.with_context(|| format!("nothing came within {LIMIT:?}"))
}

/// A program that is built beside this one.
fn launch(lab: &Lab, name: &'static str) -> Result<Launch> {
    let folder = std::env::current_exe()?;
    let folder = folder.parent().and_then(|deps| deps.parent()).context("this program is in a folder")?;
    let program = folder.join(name);
    ensure!(program.is_file(), "{} is not built", program.display());
    Ok(Launch::new(name, program, lab.folder().join(format!("{name}.log"))))
}

fn boiler(lab: &Lab, address: SocketAddr) -> Result<Process> {
    launch(lab, "modbus_device")?.arg("--listen").arg(address.to_string()).spawn()
}

/// What the device itself has as its setpoint, without the mapper.
async fn setpoint(address: SocketAddr) -> Result<u16> {
    let mut device = tcp::attach_slave(TcpStream::connect(address).await?, Slave(1));
    let words = within(device.read_holding_registers(0, 1)).await???;
    words.first().copied().context("one register")
}

/// The definitions, if the walk before did not make them.
pub(crate) async fn define(lab: &Lab) -> Result<()> {
    let printed = lab.command("cloudcore", &["crds"]).await?;
    let kind = kube::core::GroupVersionKind::gvk("apiextensions.k8s.io", "v1", "CustomResourceDefinition");
    let definitions: kube::Api<DynamicObject> = kube::Api::all_with(lab.client()?, &ApiResource::from_gvk(&kind));
    for definition in String::from_utf8(printed.stdout)?.split("---\n") {
        match definitions.create(&PostParams::default(), &serde_json::from_str(definition)?).await {
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            made => drop(made?),
        }
    }
    Ok(())
}

/// An HTTP server that takes everything and tells what it took.
struct Sink {
    address: SocketAddr,
    _serving: AbortOnDropHandle<()>,
}

impl Sink {
    async fn serve() -> Result<(Self, mpsc::Receiver<String>)> {
        use http_body_util::{BodyExt, Empty};
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let (sender, pushed) = mpsc::channel(10_000);
        let serving = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let sender = sender.clone();
                let service = hyper::service::service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
                    let sender = sender.clone();
                    async move {
                        let right = request.uri().path() == "/readings" && request.method() == "POST";
                        let body = request.into_body().collect().await?.to_bytes();
                        if right {
                            // Nobody listens any more when the test is over.
                            let _ = sender.send(String::from_utf8_lossy(&body).into_owned()).await;
                        }
                        Ok::<_, hyper::Error>(hyper::Response::new(Empty::<hyper::body::Bytes>::new()))
                    }
                });
                let io = hyper_util::rt::TokioIo::new(stream);
                tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(io, service));
            }
        });
        Ok((Self { address, _serving: AbortOnDropHandle::new(serving) }, pushed))
    }

    fn port(&self) -> u16 {
        self.address.port()
    }
}
