//! The thermostat: its objects, its reading, another setpoint.

use std::time::Duration;

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
    let patch = json!({"spec": {"properties": [{"name": "temperature", "reportToCloud": true},
        {"name": "setpoint", "desired": {"value": "23"}}, {"name": "power"}]}});
    let devices = api(lab.client()?, "Device", "devices");
    devices.patch(DEVICE, &PatchParams::default(), &Patch::Merge(patch)).await.context("patch the device")?;
    let taken =
        |status: &Value| value(status, "setpoint", "/observedDesired/value").is_some_and(|setpoint| setpoint == "23");
    let status = until(lab, "the new setpoint at the device", taken).await?;
    let reading = value(&status, "temperature", "/reported/value").unwrap_or_default();
    Ok(format!("the device has taken 23 degrees over, at {reading}"))
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
