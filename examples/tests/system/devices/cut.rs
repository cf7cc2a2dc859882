//! What is said at the edge: while the line to the cloud is cut, and what is not for the cloud.

use std::{pin::pin, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use futures_util::TryStreamExt;
use kube::api::{ListParams, Patch, PatchParams, WatchEvent, WatchParams};
use kubeedge_actors::mapper::{Event, Mapper, MapperConfig, Reading};
use kubeedge_examples::lab::Lab;
use serde_json::{Value, json};

use super::{App, api, next, twin, until};
use crate::report::Outcome;

const METER: &str = "default/meter";
/// In which the newest of a device is in the API: once a second it is reported.
const REPORTED_WITHIN: Duration = Duration::from_secs(2);
/// Updates of what stays at the edge.
const MANY: usize = 500;

/// The meter has these properties from now on.
async fn properties(lab: &Lab, properties: Value) -> Result<()> {
    let patch = Patch::Merge(json!({"spec": {"properties": properties}}));
    api(&lab.client()?, "Device", "devices").patch("meter", &PatchParams::default(), &patch).await?;
    Ok(())
}

pub(super) async fn over_both(lab: &Lab) -> Result<Outcome> {
    tokio::task::LocalSet::new().run_until(cut_and_mended(lab)).await
}

async fn cut_and_mended(lab: &Lab) -> Result<Outcome> {
    properties(lab, json!([{"name": "kwh"}, {"name": "volts"}, {"name": "amps"}, {"name": "hertz"}])).await?;
    let config = MapperConfig {
        edgecore: lab.folder().join("edge/dmi.sock"),
        ..MapperConfig::new("meters", "none", lab.folder().join("meters.sock"))
    };
    let mut mapper = Mapper::start(config).await?;
    let device = loop {
        match next(&mut mapper).await? {
            Event::Device(device) if device.spec.properties.len() == 4 => break device,
            Event::Device(_) => {}
            Event::Gone(id) => bail!("{id} went"),
        }
    };
    let mut app = App::connect(lab, METER).await?;
    let newest = [("kwh", "103"), ("volts", "233"), ("amps", "13"), ("hertz", "53")];
    let line = lab.line()?;
    line.cut();
    mapper.report_state(&device.id, "unhealthy").await?;
    for round in 1..=3 {
        let readings = [Reading::new("kwh", 100 + round), Reading::new("volts", 230 + round)];
        mapper.report(&device.id, readings).await?;
        let said = json!({"amps": {"actual": {"value": (10 + round).to_string()}},
            "hertz": {"actual": {"value": (50 + round).to_string()}}});
        let answer = app.update(METER, &format!("cut {round}"), said).await?;
        ensure!(answer["twin"]["amps"]["actual"]["value"] == format!("{}", 10 + round), "{answer}");
    }
    let statuses = api(&lab.client()?, "DeviceStatus", "devicestatuses");
    // What is tested is a time: on a line that is whole a report takes no longer.
    tokio::time::sleep(REPORTED_WITHIN).await;
    let before = statuses.get("meter").await?.data;
    let came = newest.iter().find(|(name, value)| twin(&before, name, "/reported/value").as_deref() == Some(*value));
    ensure!(came.is_none(), "{came:?} came over a line that is cut: {before}");
    line.mend();
    until(&statuses, "meter", "the newest of each property", |status| {
        let has = |(name, value): &(&str, &str)| twin(status, name, "/reported/value").as_deref() == Some(*value);
        newest.iter().all(has) && status["status"]["state"] == "unhealthy"
    })
    .await?;
    properties(lab, json!([{"name": "kwh"}])).await?;
    Ok(Outcome::Proved)
}

pub(super) async fn stays_at_the_edge(lab: &Lab) -> Result<Outcome> {
    tokio::task::LocalSet::new().run_until(counted(lab)).await
}

async fn counted(lab: &Lab) -> Result<Outcome> {
    properties(lab, json!([{"name": "kwh"}, {"name": "fast", "reportToCloud": false}])).await?;
    let result = format!("$hw/events/device/{METER}/twin/update/result");
    let get = format!("$hw/events/device/{METER}/twin/get/result");
    let mut app = App::subscribed(lab, "a-fast-one", METER, [result, get]).await?;
    app.update(METER, "fence", json!({"kwh": {"actual": {"value": "200"}}})).await?;
    let statuses = api(&lab.client()?, "DeviceStatus", "devicestatuses");
    let reads = |status: &Value, value: &str| twin(status, "kwh", "/reported/value").as_deref() == Some(value);
    until(&statuses, "meter", "the reading before", |status| reads(status, "200")).await?;
    let listed = statuses.list(&ListParams::default()).await?;
    let since = listed.metadata.resource_version.context("a list has a version")?;
    let only = WatchParams::default().fields("metadata.name=meter");
    let changes = statuses.watch(&only, &since).await?;
    let mut changes = pin!(changes);
    for count in 0..MANY {
        let count = count.to_string();
        let answer = app.update(METER, &count, json!({"fast": {"actual": {"value": count}}})).await?;
        ensure!(answer["code"].is_null(), "{answer}");
    }
    app.update(METER, "fence", json!({"kwh": {"actual": {"value": "201"}}})).await?;
    let counted = async {
        let mut writes = 0;
        while let Some(event) = changes.try_next().await? {
            let status = match event {
                WatchEvent::Modified(status) => status,
                WatchEvent::Bookmark(_) => continue,
                other => bail!("{other:?}"),
            };
            writes += 1;
            ensure!(twin(&status.data, "fast", "/reported/value").is_none(), "{:?}", status.data);
            if reads(&status.data, "201") {
                return Ok(writes);
            }
        }
        bail!("the watch ended")
    };
    let writes = tokio::time::timeout(super::LIMIT, counted).await.context("the reading after")??;
    ensure!(writes == 1, "{writes} writes for {MANY} readings that stay at the edge and one that does not");
    properties(lab, json!([{"name": "kwh"}])).await?;
    Ok(Outcome::Proved)
}
