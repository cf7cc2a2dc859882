//! A node without anything behind a line of 1 Mbit/s.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use k8s_openapi::{
    api::{coordination::v1::Lease, core::v1::ConfigMap},
    apimachinery::pkg::apis::meta::v1::MicroTime,
};
use kube::{
    Api, Client, ResourceExt,
    api::{ObjectMeta, PostParams},
};
use serde_json::json;
use tokio::time::interval;

use super::{
    Choices, LINES,
    site::{Site, Who, node},
    traffic::{Figures, bump, pod},
};
use crate::cluster::{NAMESPACE, pods};

/// The line, and what goes over it.
const LINE: u8 = LINES - 1;
const BITS: u32 = 1_000_000;
/// One object of these is eight chunks of the link: half a second and more of the line.
const OBJECT: usize = 96 * 1024;
/// How many in a short run, 4 s of the line; a full one has 5 times as many.
const OBJECTS: usize = 5;
/// Between two looks.
const LOOK: Duration = Duration::from_millis(200);
/// The lease is renewed every 10 s; more, and a heartbeat waited for the sync.
const RENEWED: Duration = Duration::from_secs(16);
/// Of the line's rate, what has to be used at least.
const SLOWEST: f64 = 0.25;

/// The node begins with an empty store and gets ConfigMaps of some megabits; meanwhile it stays Ready.
pub(super) async fn first_sync(site: &mut Site, figures: &Figures, choices: &mut Choices) -> Result<()> {
    let client = site.client()?;
    let count = if choices.full { 5 * OBJECTS } else { OBJECTS };
    site.stop(Who::Edge(LINE)).await?;
    site.forget(LINE)?;
    let api = Api::<ConfigMap>::namespaced(client.clone(), NAMESPACE);
    for n in 0..count {
        let metadata = ObjectMeta { name: Some(format!("bulk-{n}")), ..ObjectMeta::default() };
        let data = BTreeMap::from([("text".to_owned(), n.to_string().repeat(OBJECT))]);
        api.create(&PostParams::default(), &ConfigMap { metadata, data: Some(data), ..ConfigMap::default() }).await?;
        bump(&figures.acknowledged);
    }
    let sources: Vec<_> = (0..count)
        .map(|n| {
            let item = json!([{"key": "text", "path": format!("bulk-{n}")}]);
            json!({"configMap": {"name": format!("bulk-{n}"), "items": item}})
        })
        .collect();
    let bulk = pod("bulk", LINE, &site.image(LINE), json!([{"name": "bulk", "projected": {"sources": sources}}]))?;
    let uid = pods(&client).create(&PostParams::default(), &bulk).await?.uid().context("a pod without uid")?;

    site.net().slow(LINE, BITS)?;
    bump(&figures.faults);
    let (before, _) = site.net().bytes(LINE)?;
    site.spawn(Who::Edge(LINE))?;
    let began = Instant::now();
    let least = Duration::from_secs_f64((count * OBJECT * 8) as f64 / f64::from(BITS));
    let latest = least.div_f64(SLOWEST);
    let (mut renewed, mut longest, mut last) = (renewal(&client).await?, Duration::ZERO, Instant::now());
    let folder = site.volume(LINE, &uid, "bulk");
    let mut tick = interval(LOOK);
    while !(0..count).all(|n| folder.join(format!("bulk-{n}")).exists()) {
        tick.tick().await;
        ensure!(began.elapsed() < latest, "the objects are not there after {latest:?}; the line takes {least:?}");
        ensure!(site.is_ready(LINE).await?, "{} is not Ready during its first sync", node(LINE));
        let now = renewal(&client).await?;
        if now != renewed {
            (renewed, last) = (now, Instant::now());
        }
        longest = longest.max(last.elapsed());
    }
    let (after, _) = site.net().bytes(LINE)?;
    println!(
        "     {} kB over a line of 1 Mbit/s in {:.1} s; the node's lease was renewed after {:.1} s at most",
        (after - before) / 1000,
        began.elapsed().as_secs_f32(),
        longest.as_secs_f32()
    );
    ensure!(longest < RENEWED, "heartbeats wait for the sync: the lease was not renewed for {longest:?}");
    Ok(())
}

async fn renewal(client: &Client) -> Result<Option<MicroTime>> {
    let lease = Api::<Lease>::namespaced(client.clone(), "kube-node-lease").get_opt(&node(LINE)).await?;
    Ok(lease.and_then(|lease| lease.spec?.renew_time))
}
