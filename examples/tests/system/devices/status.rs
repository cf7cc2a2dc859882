//! The life of a DeviceStatus: taken away, of another device, moved.

use anyhow::{Context, Result, ensure};
use kube::api::{DynamicObject, Patch, PatchParams, PostParams};
use kubeedge_examples::lab::{Lab, NODE};
use serde_json::{Value, json};

use super::{App, api, poll, twin, until};
use crate::report::Outcome;

const METER: &str = "default/meter";

/// The meter says something; waits until it is in the API.
async fn says(lab: &Lab, event_id: &str, value: &str) -> Result<()> {
    let mut app = App::connect(lab, METER).await?;
    let answer = app.update(METER, event_id, json!({"kwh": {"actual": {"value": value}}})).await?;
    ensure!(answer["twin"]["kwh"]["actual"]["value"] == value, "{answer}");
    until(&api(&lab.client()?, "DeviceStatus", "devicestatuses"), "meter", "the value in the API", |status| {
        reads(status).as_deref() == Some(value)
    })
    .await?;
    Ok(())
}

fn reads(status: &Value) -> Option<String> {
    twin(status, "kwh", "/reported/value")
}

async fn local(work: impl Future<Output = Result<Outcome>>) -> Result<Outcome> {
    tokio::task::LocalSet::new().run_until(work).await
}

pub(super) async fn taken_away(lab: &Lab) -> Result<Outcome> {
    local(async {
        says(lab, "before", "70").await?;
        let statuses = api(&lab.client()?, "DeviceStatus", "devicestatuses");
        let uid = statuses.get("meter").await?.metadata.uid;
        statuses.delete("meter", &Default::default()).await?;
        // Nobody says anything new of the device: what is there again is what the node knew.
        poll("another DeviceStatus with the last reading", async || {
            let found = statuses.get_opt("meter").await?;
            let is_new =
                found.as_ref().is_some_and(|status| status.metadata.uid != uid && status.metadata.uid.is_some());
            let data = found.map(|status| status.data).unwrap_or_default();
            Ok(if is_new && reads(&data).as_deref() == Some("70") { Ok(()) } else { Err(data.to_string()) })
        })
        .await?;
        let empty = json!({"status": {"twins": [], "state": null}});
        statuses.patch("meter", &PatchParams::default(), &Patch::Merge(empty)).await?;
        until(&statuses, "meter", "what was wiped out is there again", |status| reads(status).as_deref() == Some("70"))
            .await?;
        Ok(Outcome::Proved)
    })
    .await
}

/// Awaits that the meter is at its node.
async fn at_its_node(app: &mut App) -> Result<()> {
    poll("the device is at its node", async || {
        app.publish("$hw/events/device/default/meter/twin/get", &json!({"event_id": "back"}));
        let answer =
            tokio::time::timeout(std::time::Duration::from_millis(200), app.hears("twin/get/result", "back")).await;
        Ok(match answer {
            Ok(answer) if answer.as_ref().is_ok_and(|answer| answer["code"].is_null()) => Ok(()),
            other => Err(format!("{other:?}")),
        })
    })
    .await
}

/// The Device as it is, for making it again.
async fn manifest(lab: &Lab) -> Result<DynamicObject> {
    let found = api(&lab.client()?, "Device", "devices").get("meter").await?;
    let mut again = found.clone();
    again.metadata = Default::default();
    again.metadata.name = found.metadata.name;
    Ok(again)
}

pub(super) async fn recreated(lab: &Lab) -> Result<Outcome> {
    local(async {
        says(lab, "of the first", "71").await?;
        let client = lab.client()?;
        let (devices, statuses) = (api(&client, "Device", "devices"), api(&client, "DeviceStatus", "devicestatuses"));
        let again = manifest(lab).await?;
        devices.delete("meter", &Default::default()).await?;
        let made = devices.create(&PostParams::default(), &again).await.context("make it again")?;
        let uid = made.metadata.uid.context("a uid")?;
        let owned = async |what: &str| {
            poll(what, async || {
                let found = statuses.get_opt("meter").await?;
                let owners = found.as_ref().and_then(|status| status.metadata.owner_references.clone());
                let own = owners.is_some_and(|owners| owners.iter().any(|owner| owner.uid == uid));
                let data = found.map(|status| status.data).unwrap_or_default();
                let is = own && reads(&data).is_none();
                Ok(if is { Ok(()) } else { Err(data.to_string()) })
            })
            .await
        };
        owned("a DeviceStatus of the new device, without the readings of the old").await?;
        // One that names a device that is not there any more, as a backup brings it back.
        let stale = json!({"metadata": {"ownerReferences": [{"apiVersion": "devices.kubeedge.io/v1beta1",
            "kind": "Device", "name": "meter", "uid": "00000000-0000-4000-8000-000000000000", "controller": true}]},
            "status": {"twins": [{"propertyName": "kwh", "reported": {"value": "1"}}]}});
        statuses.patch("meter", &PatchParams::default(), &Patch::Merge(stale)).await?;
        owned("one of a device that was there before is replaced").await?;
        let nobodys = json!({"metadata": {"ownerReferences": null},
            "status": {"twins": [{"propertyName": "kwh", "reported": {"value": "1"}}]}});
        statuses.patch("meter", &PatchParams::default(), &Patch::Merge(nobodys)).await?;
        owned("one that belongs to nobody becomes the device's, without what it says").await?;
        // The node may have the first one still, or neither.
        let mut app = App::connect(lab, METER).await?;
        poll("what the second says is in the API", async || {
            let said = app.update(METER, "of the second", json!({"kwh": {"actual": {"value": "72"}}})).await?;
            let status = statuses.get_opt("meter").await?.map(|status| status.data).unwrap_or_default();
            Ok(if reads(&status).as_deref() == Some("72") { Ok(()) } else { Err(format!("{said}, {status}")) })
        })
        .await?;
        Ok(Outcome::Proved)
    })
    .await
}

pub(super) async fn moved(lab: &Lab) -> Result<Outcome> {
    local(async {
        says(lab, "here", "73").await?;
        let client = lab.client()?;
        let (devices, statuses) = (api(&client, "Device", "devices"), api(&client, "DeviceStatus", "devicestatuses"));
        let to = async |node: &str| {
            let patch = json!({"spec": {"nodeName": node}});
            devices.patch("meter", &PatchParams::default(), &Patch::Merge(patch)).await.map(drop)
        };
        let stays = |status: &Value| reads(status).as_deref() == Some("73");
        to("another-node").await?;
        let mut app = App::listening(lab, "a-mover", ["$hw/events/device/default/meter/twin/get/result".to_owned()])?;
        poll("the device goes from its node", async || {
            app.publish("$hw/events/device/default/meter/twin/get", &json!({"event_id": "gone"}));
            let answer =
                tokio::time::timeout(std::time::Duration::from_millis(200), app.hears("twin/get/result", "gone")).await;
            Ok(match answer {
                Ok(answer) if answer.as_ref().is_ok_and(|answer| answer["code"] == 404) => Ok(()),
                other => Err(format!("{other:?}")),
            })
        })
        .await?;
        until(&statuses, "meter", "the last reading, while the new node is silent", stays).await?;
        // The node that it comes to knows nothing of it, and reports so.
        to(NODE).await?;
        at_its_node(&mut app).await?;
        let state = json!({"event_id": "s", "state": "ok"});
        app.publish("$hw/events/device/default/meter/state/update", &state);
        let status =
            until(&statuses, "meter", "the first word of the new node", |status| status["status"]["state"] == "ok")
                .await?;
        ensure!(stays(&status), "the last reading goes with the first word of something else: {status}");
        says(lab, "there", "74").await?;
        Ok(Outcome::Proved)
    })
    .await
}
