//! The thermostat: its objects, its reading, another setpoint.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use kube::{
    Api, Client,
    api::{ApiResource, DynamicObject, Patch, PatchParams, PostParams},
    core::{GroupVersionKind, TypeMeta},
};
use kubeedge_examples::lab::{Lab, NODE};
use serde_json::{Value, json};

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

fn api(client: Client, kind: &str, plural: &str) -> Api<DynamicObject> {
    let kind = GroupVersionKind::gvk("devices.kubeedge.io", "v1beta1", kind);
    Api::namespaced_with(client, NAMESPACE, &ApiResource::from_gvk_with_plural(&kind, plural))
}

/// Defines the kinds, makes model and device, and waits for the first reading in the API.
pub(crate) async fn apply(lab: &Lab) -> Result<String> {
    let client = lab.client()?;
    let printed = lab.command("cloudcore", &["crds"]).await?;
    ensure!(printed.status.success(), "cloudcore crds: {}", String::from_utf8_lossy(&printed.stderr));
    let kind = GroupVersionKind::gvk("apiextensions.k8s.io", "v1", "CustomResourceDefinition");
    let definitions: Api<DynamicObject> = Api::all_with(client.clone(), &ApiResource::from_gvk(&kind));
    for definition in String::from_utf8(printed.stdout)?.split("---\n") {
        let definition: DynamicObject = serde_json::from_str(definition)?;
        definitions.create(&PostParams::default(), &definition).await.context("define a kind")?;
    }
    for document in MANIFEST.replace("nodeName: edge-1", &format!("nodeName: {NODE}")).split("\n---\n") {
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
    let status = until(lab, "a reading", |status| value(status, "temperature", "/reported/value").is_some()).await?;
    let reading = value(&status, "temperature", "/reported/value").unwrap_or_default();
    Ok(format!("devicestatus {DEVICE} says {reading} degrees"))
}

/// Desires another setpoint, and waits until the device has taken it over.
pub(crate) async fn turn_up(lab: &Lab) -> Result<String> {
    set(lab, "23").await?;
    let status = until(lab, "the new setpoint at the device", |status| has_taken(status, "23")).await?;
    let reading = value(&status, "temperature", "/reported/value").unwrap_or_default();
    Ok(format!("the device has taken 23 degrees over, at {reading}"))
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
    let status = until(lab, "the setpoint at the device and a newer reading in the API", both).await?;
    let reading = value(&status, "temperature", "/reported/value").unwrap_or_default();
    let (took, was) = (mended.elapsed().as_secs_f32(), value(&before, "temperature", "/reported/value"));
    let was = was.unwrap_or_default();
    Ok(format!("19 degrees taken over {took:.1} s after the line was back; {was} degrees before, {reading} now"))
}

async fn set(lab: &Lab, setpoint: &str) -> Result<()> {
    let patch = json!({"spec": {"properties": [{"name": "temperature", "reportToCloud": true},
        {"name": "setpoint", "desired": {"value": setpoint}}, {"name": "power"}]}});
    let devices = api(lab.client()?, "Device", "devices");
    devices.patch(DEVICE, &PatchParams::default(), &Patch::Merge(patch)).await.context("patch the device")?;
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
