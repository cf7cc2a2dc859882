//! The thermostat: its objects, its reading, another setpoint; with kubectl if it is there, as a person would, else through
//! the API.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use kube::{
    Api, Client,
    api::{ApiResource, DynamicObject, Patch, PatchParams, PostParams},
    core::{GroupVersionKind, TypeMeta},
};
use kubeedge_examples::lab::{Lab, NODE};
use serde_json::{Value, json};

use crate::kubectl;

/// What is applied.
const MANIFEST: &str = include_str!("../../../devices/thermostat.yaml");
/// The device's name there.
pub(crate) const DEVICE: &str = "living-room";
const NAMESPACE: &str = "default";
/// For one state to come about: the simulated room takes some seconds.
const LIMIT: Duration = Duration::from_secs(60);
const TICK: Duration = Duration::from_millis(100);
/// How long the line stays cut: some readings.
const OFFLINE: Duration = Duration::from_secs(3);
/// The reading in a DeviceStatus, as kubectl is asked for it.
const READING: &str = "jsonpath={.status.twins[?(@.propertyName=='temperature')].reported.value}";

fn api(client: Client, kind: &str, plural: &str) -> Api<DynamicObject> {
    let kind = GroupVersionKind::gvk("devices.kubeedge.io", "v1beta1", kind);
    Api::namespaced_with(client, NAMESPACE, &ApiResource::from_gvk_with_plural(&kind, plural))
}

/// Defines the kinds, makes model and device, and waits for the first reading in the API.
pub(crate) async fn apply(lab: &Lab) -> Result<String> {
    let printed = lab.command("cloudcore", &["crds"]).await?;
    ensure!(printed.status.success(), "cloudcore crds: {}", String::from_utf8_lossy(&printed.stderr));
    let definitions = String::from_utf8(printed.stdout)?;
    let broker = format!("tcp://{}", lab.mqtt()?);
    let manifest =
        MANIFEST.replace("nodeName: edge-1", &format!("nodeName: {NODE}")).replace("tcp://127.0.0.1:1883", &broker);
    if kubectl::apply(lab, "crds.yaml", &definitions).await? {
        let kinds = ["crd/devices.devices.kubeedge.io", "crd/devicemodels.devices.kubeedge.io"];
        kubectl::run(lab, &["wait", "--for=condition=Established", "--timeout=60s", kinds[0], kinds[1]]).await?;
        kubectl::apply(lab, "thermostat.yaml", &manifest).await?;
    } else {
        create(lab, &definitions, &manifest).await?;
    }
    until(lab, "a reading", |status| value(status, "temperature", "/reported/value").is_some()).await?;
    Ok(format!("{} degrees", reading(lab).await?))
}

/// Makes the kinds and what the manifest has, through the API.
async fn create(lab: &Lab, printed: &str, manifest: &str) -> Result<()> {
    let client = lab.client()?;
    let kind = GroupVersionKind::gvk("apiextensions.k8s.io", "v1", "CustomResourceDefinition");
    let definitions: Api<DynamicObject> = Api::all_with(client.clone(), &ApiResource::from_gvk(&kind));
    for definition in printed.split("---\n") {
        let definition: DynamicObject = serde_json::from_str(definition)?;
        definitions.create(&PostParams::default(), &definition).await.context("define a kind")?;
    }
    for document in manifest.split("\n---\n") {
        let object: DynamicObject = serde_saphyr::from_str(document)?;
        let plural = match &object.types {
            Some(TypeMeta { kind, .. }) if kind == "DeviceModel" => ("DeviceModel", "devicemodels"),
            Some(TypeMeta { kind, .. }) if kind == "Device" => ("Device", "devices"),
            other => bail!("the manifest has {other:?}"),
        };
        let api = api(client.clone(), plural.0, plural.1);
        // A kind is served a moment after its definition.
        let deadline = tokio::time::Instant::now() + LIMIT;
        while let Err(error) = api.create(&PostParams::default(), &object).await {
            let absent = matches!(&error, kube::Error::Api(status) if status.code == 404);
            ensure!(absent && tokio::time::Instant::now() < deadline, "create {}: {error}", plural.0);
            tokio::time::sleep(TICK).await;
        }
    }
    Ok(())
}

/// What the DeviceStatus says of the temperature, with how it was asked for.
async fn reading(lab: &Lab) -> Result<String> {
    if let Some(said) = kubectl::run(lab, &["get", "devicestatus", DEVICE, "-o", READING]).await? {
        return Ok(format!("kubectl get devicestatus {DEVICE}: {said}"));
    }
    let status = api(lab.client()?, "DeviceStatus", "devicestatuses").get(DEVICE).await.context("get the status")?;
    let said = value(&status.data, "temperature", "/reported/value").unwrap_or_default();
    Ok(format!("devicestatus {DEVICE}: {said}"))
}

/// Desires another setpoint, and waits until the device has taken it over.
pub(crate) async fn turn_up(lab: &Lab) -> Result<String> {
    set(lab, "23").await?;
    until(lab, "the new setpoint at the device", |status| has_taken(status, "23")).await?;
    Ok(format!("the device has taken 23 degrees over; {} degrees", reading(lab).await?))
}

/// The same while the node does not reach the cloud: the room goes on being measured, and when the line is back the
/// device hears of the setpoint and the API of the newest reading.
pub(crate) async fn turn_down_offline(lab: &Lab) -> Result<String> {
    let line = lab.line()?;
    line.cut();
    set(lab, "19").await?;
    let before = until(lab, "a reading", |status| read_at(status).is_some()).await?;
    // What was on its way when the line was cut has arrived: nothing does any more.
    tokio::time::sleep(OFFLINE).await;
    let offline = until(lab, "a reading", |status| read_at(status).is_some()).await?;
    ensure!(!has_taken(&offline, "19"), "the device heard of the setpoint over a line that is cut");
    line.mend();
    let mended = Instant::now();
    let both = |status: &Value| has_taken(status, "19") && read_at(status) > read_at(&offline);
    until(lab, "the setpoint at the device and a newer reading in the API", both).await?;
    let (took, was) = (mended.elapsed().as_secs_f32(), value(&before, "temperature", "/reported/value"));
    let (was, now) = (was.unwrap_or_default(), reading(lab).await?);
    Ok(format!("19 degrees taken over {took:.1} s after the line was back; {was} degrees before, {now} now"))
}

/// Desires a setpoint: the second property of the manifest.
async fn set(lab: &Lab, setpoint: &str) -> Result<()> {
    let replace = json!([{"op": "replace", "path": "/spec/properties/1/desired/value", "value": setpoint}]).to_string();
    if kubectl::run(lab, &["patch", "device", DEVICE, "--type", "json", "-p", &replace]).await?.is_some() {
        return Ok(());
    }
    let devices = api(lab.client()?, "Device", "devices");
    // A merge patch takes a list as a whole.
    let mut properties = devices.get(DEVICE).await.context("get the device")?.data["spec"]["properties"].take();
    properties[1]["desired"]["value"] = setpoint.into();
    let patch = Patch::Merge(json!({"spec": {"properties": properties}}));
    devices.patch(DEVICE, &PatchParams::default(), &patch).await.context("patch the device")?;
    Ok(())
}

fn has_taken(status: &Value, setpoint: &str) -> bool {
    value(status, "setpoint", "/observedDesired/value").is_some_and(|taken| taken == setpoint)
}

/// When the temperature was read, in milliseconds since 1970.
fn read_at(status: &Value) -> Option<u64> {
    value(status, "temperature", "/reported/metadata/timestamp")?.parse().ok()
}

async fn until(lab: &Lab, what: &str, is: impl Fn(&Value) -> bool) -> Result<Value> {
    let statuses = api(lab.client()?, "DeviceStatus", "devicestatuses");
    let deadline = tokio::time::Instant::now() + LIMIT;
    loop {
        let status = statuses.get_opt(DEVICE).await?.map(|status| status.data).unwrap_or_default();
        if is(&status) {
            return Ok(status);
        }
        ensure!(tokio::time::Instant::now() < deadline, "{what} within {LIMIT:?}; devicestatus {DEVICE} is {status}");
        tokio::time::sleep(TICK).await;
    }
}

fn value(status: &Value, property: &str, pointer: &str) -> Option<String> {
    let twins = status.pointer("/status/twins")?.as_array()?;
    let twin = twins.iter().find(|twin| twin["propertyName"] == property)?;
    twin.pointer(pointer)?.as_str().map(str::to_owned)
}
