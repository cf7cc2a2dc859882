//! The example's mapper as a process of its own: killed, and started again.

use anyhow::{Context, Result, ensure};
use kube::api::{Patch, PatchParams, PostParams};
use kubeedge_examples::lab::{Lab, NODE};
use serde_json::{Value, json};

use super::{App, LIMIT, api, twin, until};
use crate::report::Outcome;

/// A thermostat of the model that stands in the scenarios' manifest.
const DEVICE: &str = "cellar";
/// What its setpoint is pushed under.
const TOPIC: &str = "site/cellar/setpoint";

/// Its properties; each thing that a mapper reads has a cycle, and may be pushed.
fn properties(lab: &Lab, setpoint: &str) -> Result<Value> {
    let push = json!({"mqtt": {"address": format!("tcp://{}", lab.mqtt()?), "topic": TOPIC, "qos": 1}});
    Ok(json!([{"name": "temperature", "collectCycle": 100},
        {"name": "setpoint", "collectCycle": 100, "reportCycle": 100, "desired": {"value": setpoint}, "pushMethod": push}]))
}

/// Waits until a setpoint is pushed.
async fn until_pushed(app: &mut App, setpoint: &str) -> Result<()> {
    let pushed = async {
        loop {
            let said = app.heard.recv().await.context("the application's queue")?;
            if String::from_utf8_lossy(&said.payload).ends_with(&format!("  {TOPIC}: {setpoint}")) {
                return Ok(());
            }
        }
    };
    tokio::time::timeout(LIMIT, pushed).await.with_context(|| format!("{setpoint} is not pushed"))?
}

fn has_taken(status: &Value, setpoint: &str) -> bool {
    twin(status, "setpoint", "/observedDesired/value").as_deref() == Some(setpoint)
}

async fn desire(lab: &Lab, setpoint: &str) -> Result<()> {
    let patch = json!({"spec": {"properties": properties(lab, setpoint)?}});
    api(&lab.client()?, "Device", "devices").patch(DEVICE, &PatchParams::default(), &Patch::Merge(patch)).await?;
    Ok(())
}

async fn until_taken(lab: &Lab, setpoint: &str) -> Result<()> {
    let statuses = api(&lab.client()?, "DeviceStatus", "devicestatuses");
    until(&statuses, DEVICE, &format!("{setpoint} degrees at the device"), |status| has_taken(status, setpoint))
        .await?;
    Ok(())
}

pub(super) async fn killed(lab: &mut Lab) -> Result<Outcome> {
    tokio::task::LocalSet::new().run_until(killed_and_back(lab)).await
}

async fn killed_and_back(lab: &mut Lab) -> Result<Outcome> {
    let client = lab.client()?;
    let device = json!({"apiVersion": "devices.kubeedge.io/v1beta1", "kind": "Device",
        "metadata": {"name": DEVICE},
        "spec": {"deviceModelRef": {"name": "thermostat"}, "nodeName": NODE,
            "protocol": {"protocolName": "thermostat"},
            "properties": properties(lab, "20")?}});
    let mut app = App::listening(lab, "a-follower", [TOPIC.to_owned()])?;
    let devices = api(&client, "Device", "devices");
    devices.create(&PostParams::default(), &serde_json::from_value(device)?).await.context("a device")?;
    lab.start_mapper()?;
    lab.guarded(async |lab| until_taken(lab, "20").await).await?;
    until_pushed(&mut app, "20").await?;

    lab.kill_mapper().await?;
    desire(lab, "25").await?;
    let statuses = api(&client, "DeviceStatus", "devicestatuses");
    let status = statuses.get(DEVICE).await?.data;
    ensure!(has_taken(&status, "20"), "taken over by a mapper that is dead: {status}");
    lab.start_mapper()?;
    lab.guarded(async |lab| until_taken(lab, "25").await).await?;
    until_pushed(&mut app, "25").await?;

    // The socket that mappers call is removed: the one that runs comes back to the new one, and so does one that starts.
    let socket = lab.folder().join("edge/dmi.sock");
    std::fs::remove_file(&socket).context("edgecore's socket")?;
    desire(lab, "15").await?;
    lab.guarded(async |lab| until_taken(lab, "15").await).await?;
    ensure!(socket.exists(), "the socket is not made again");
    lab.kill_mapper().await?;
    desire(lab, "16").await?;
    lab.start_mapper()?;
    lab.guarded(async |lab| until_taken(lab, "16").await).await?;

    // Edgecore is killed, and comes back on a file of the same name; the mapper has run on.
    lab.kill_edge().await?;
    lab.start_edge_with(&["--fake-runtime"])?;
    desire(lab, "17").await?;
    lab.guarded(async |lab| until_taken(lab, "17").await).await?;
    devices.delete(DEVICE, &Default::default()).await?;
    lab.kill_mapper().await?;
    Ok(Outcome::Proved)
}
