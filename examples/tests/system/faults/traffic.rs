//! Who writes while something is broken, and the checker: a ledger for each object says what may be seen.
//!
//! ConfigMaps are written through the API and shown by one pod on each node, as files under the volume of that pod;
//! pods are made and deleted, and tell of it upwards. The files are looked at all the time: a value that comes after a
//! newer one was applied twice.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use futures_util::future::{join_all, try_join_all};
use k8s_openapi::api::core::v1::{ConfigMap, Event, Pod};
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, ListParams, PostParams},
};
use kubeedge_examples::ledger::Ledger;
use kubeedge_proto::{resource, v1::KubeObject};
use serde_json::json;
use tokio::time::{MissedTickBehavior, interval};

use super::site::{Site, node, until};
use crate::cluster::{NAMESPACE, TICK, pods};

/// Writers of ConfigMaps, one object each, and how often each writes.
const MAPS: usize = 8;
const PACE: Duration = Duration::from_millis(50);
/// Between two looks at a file.
const LOOK: Duration = Duration::from_millis(20);
/// For the API to answer again.
const OUTAGE: Duration = Duration::from_secs(60);
/// The volume, in the pods that show the ConfigMaps.
const VOLUME: &str = "maps";
const STAMP: &str = "stamp";
/// Where a container has it.
const MOUNTED: &str = "/volume";

/// What a phase was.
#[derive(Debug, Default)]
pub(super) struct Figures {
    /// Writes that the API acknowledged.
    pub(super) acknowledged: Cell<u64>,
    /// Writes without an answer.
    pub(super) unanswered: Cell<u64>,
    /// Changes that were seen at a node.
    pub(super) shown: Cell<u64>,
    /// Values at a node that came after a newer one.
    pub(super) duplicated: Cell<u64>,
    /// What pods were seen to do: to run, to be gone.
    pub(super) told: Cell<u64>,
    /// What was done to the system.
    pub(super) faults: Cell<u64>,
    /// The newest of each ConfigMap that each node has shown.
    newest: RefCell<BTreeMap<u8, [u64; MAPS]>>,
}

impl Figures {
    /// What has been counted so far.
    pub(super) fn taken(&self) -> [u64; 5] {
        [&self.acknowledged, &self.unanswered, &self.shown, &self.told, &self.faults].map(Cell::get)
    }

    /// The newest of each ConfigMap that a node has shown.
    pub(super) fn newest(&self, line: u8) -> [u64; MAPS] {
        self.newest.borrow().get(&line).copied().unwrap_or_default()
    }

    /// What a node has shown may come again.
    pub(super) fn forget(&self, line: u8) {
        self.newest.borrow_mut().remove(&line);
    }

    /// What has been counted since then.
    pub(super) fn since(&self, before: [u64; 5]) -> [u64; 5] {
        let mut now = self.taken();
        now.iter_mut().zip(before).for_each(|(now, before)| *now -= before);
        now
    }
}

pub(super) fn bump(counter: &Cell<u64>) {
    counter.set(counter.get() + 1);
}

/// Everyone who writes.
pub(super) struct Traffic {
    client: Client,
    maps: Vec<Map>,
    pods: Vec<Pods>,
    readers: Vec<Reader>,
    pub(super) figures: Figures,
}

/// One ConfigMap and who writes it.
struct Map {
    name: String,
    stamp: u64,
    ledger: Ledger<u64>,
}

/// Who makes and deletes pods on a node.
struct Pods {
    line: u8,
    image: String,
    made: Vec<Made>,
}

/// One of them.
struct Made {
    name: String,
    /// Once it is known.
    uid: Option<String>,
    /// It is to be there.
    lives: bool,
    /// It was seen to run.
    ran: bool,
}

/// The pod that shows ConfigMaps.
struct Reader {
    line: u8,
    uid: String,
    folder: PathBuf,
}

impl Traffic {
    /// Makes the ConfigMaps and the pods that show them.
    pub(super) async fn begin(site: &Site, lines: u8) -> Result<Self> {
        let (client, figures) = (site.client()?, Figures::default());
        let map = |n| Map { name: format!("map-{n}"), stamp: 0, ledger: Ledger::default() };
        let mut maps: Vec<Map> = (0..MAPS).map(map).collect();
        try_join_all(maps.iter_mut().map(|map| map.write(&client, &figures))).await?;
        let mut traffic = Self { client, maps, pods: Vec::new(), readers: Vec::new(), figures };
        for line in 0..lines {
            traffic.add(site, line).await?;
        }
        Ok(traffic)
    }

    /// From now on the node at the end of this line has its part in it.
    pub(super) async fn add(&mut self, site: &Site, line: u8) -> Result<()> {
        let sources: Vec<_> = (0..MAPS)
            .map(|n| {
                let items = json!([{"key": STAMP, "path": format!("map-{n}")}]);
                json!({"configMap": {"name": format!("map-{n}"), "items": items}})
            })
            .collect();
        let volumes = json!([{"name": VOLUME, "projected": {"sources": sources}}]);
        let image = site.image(line);
        let wanted = pod(&format!("reader-{line}"), line, &image, volumes)?;
        let uid =
            pods(&self.client).create(&PostParams::default(), &wanted).await?.uid().context("a pod without uid")?;
        let folder = site.volume(line, &uid, VOLUME);
        self.readers.push(Reader { line, uid, folder });
        self.pods.push(Pods { line, image, made: Vec::new() });
        Ok(())
    }

    /// The same client for everyone, after the API's authority has changed.
    pub(super) fn set_client(&mut self, client: Client) {
        self.client = client;
    }

    /// What a pod on this node sees of the ConfigMaps, by a look into its container: the last of each.
    pub(super) async fn sees(&self, site: &Site, line: u8) -> Result<()> {
        let containers = site.real(line).context("no containers here")?;
        let reader = self.readers.iter().find(|reader| reader.line == line).context("no reader here")?;
        for map in &self.maps {
            let seen = containers.sees(&reader.uid, &format!("{MOUNTED}/{}", map.name)).await?;
            let last = map.ledger.last().map(u64::to_string);
            ensure!(Some(&seen) == last.as_ref(), "{}: its container sees {seen}, expected {last:?}", map.name);
        }
        Ok(())
    }

    /// The node at the end of this line has no part in it any more: its pods are deleted, and are gone.
    pub(super) async fn remove(&mut self, line: u8, limit: Duration) -> Result<()> {
        self.readers.retain(|reader| reader.line != line);
        self.pods.retain(|pods| pods.line != line);
        let (api, mine) = (pods(&self.client), ListParams::default().fields(&format!("spec.nodeName={}", node(line))));
        let grace = DeleteParams { grace_period_seconds: Some(1), ..DeleteParams::default() };
        for pod in api.list(&mine).await?.items {
            api.delete(&pod.name_any(), &grace).await?;
        }
        until(&format!("the pods of {} are gone", node(line)), limit, async || {
            let left = api.list(&mine).await.map_err(|error| error.to_string())?.items;
            if left.is_empty() { Ok(()) } else { Err(format!("{} are left", left.len())) }
        })
        .await
    }

    /// How many objects there have been so far.
    pub(super) fn objects(&self) -> usize {
        self.maps.len() + self.pods.iter().map(|pods| pods.made.len()).sum::<usize>()
    }

    /// Everyone writes while something is done to the system.
    pub(super) async fn during<T>(
        &mut self,
        site: &mut Site,
        fault: impl AsyncFnOnce(&mut Site, &Figures) -> Result<T>,
    ) -> Result<T> {
        let Self { client, maps, pods, readers, figures } = self;
        let (client, figures, over) = (&*client, &*figures, &Cell::new(false));
        let maps = join_all(maps.iter_mut().map(|map| map.write_until(over, client, figures)));
        let pods = join_all(pods.iter_mut().map(|pods| pods.write_until(over, client, figures)));
        let watching = join_all(readers.iter().map(|reader| reader.watch_until(over, figures)));
        let fault = async {
            let done = fault(site, figures).await;
            over.set(true);
            done
        };
        let (done, maps, pods, watched) = futures_util::join!(fault, maps, pods, watching);
        let done = done?;
        maps.into_iter().chain(pods).chain(watched).collect::<Result<Vec<()>>>()?;
        Ok(done)
    }

    /// Nobody writes any more: waits until every node has everything and the API knows of it; how long that took.
    pub(super) async fn settle(&mut self, site: &Site, limit: Duration) -> Result<Duration> {
        let began = Instant::now();
        for map in &mut self.maps {
            let name = map.name.clone();
            map.read(&self.client).await.context(name)?;
        }
        for reader in &self.readers {
            site.node_ready(reader.line, limit).await?;
            until(&format!("{} shows the last of each ConfigMap", node(reader.line)), limit, async || {
                self.maps.iter().try_for_each(|map| {
                    let (seen, last) = (reader.shows(&map.name), map.ledger.last().copied());
                    if seen == last { Ok(()) } else { Err(format!("{}: {seen:?}, expected {last:?}", map.name)) }
                })
            })
            .await?;
        }
        let told = until("every pod is as it was asked for", limit, async || {
            let there = pods(&self.client).list(&ListParams::default()).await.map_err(|error| error.to_string())?;
            for Made { name, uid, lives, .. } in self.pods.iter().flat_map(|pods| &pods.made) {
                let pod = there.items.iter().find(|pod| pod.name_any() == *name);
                let as_asked = match (pod, lives) {
                    (Some(pod), true) => pod.uid() == *uid && runs(pod),
                    (None, false) => true,
                    _ => false,
                };
                if !as_asked {
                    return Err(format!("{name}, expected {lives}: {:?}", pod.map(|pod| &pod.status)));
                }
            }
            Ok(())
        });
        told.await?;
        Ok(began.elapsed())
    }

    /// The pods that each node has had so far.
    pub(super) fn made(&self) -> BTreeMap<u8, usize> {
        self.pods.iter().map(|pods| (pods.line, pods.made.len())).collect()
    }

    /// Of every pod that ran on these nodes, after so many others, the API has one event that says so, told once; how many
    /// there are. Their edgecores have run on: one that is killed has not promised what is not in its outbox yet.
    pub(super) async fn told_once(&self, lines: &[u8], made: &BTreeMap<u8, usize>, limit: Duration) -> Result<usize> {
        let mine = self.pods.iter().filter(|pods| lines.contains(&pods.line));
        let new = mine.flat_map(|pods| &pods.made[made.get(&pods.line).copied().unwrap_or(0)..]);
        let ran: Vec<&Made> = new.filter(|pod| pod.ran).collect();
        let api = Api::<Event>::namespaced(self.client.clone(), NAMESPACE);
        until("an event says of every pod that ran that it did", limit, async || {
            let events = api.list(&ListParams::default()).await.map_err(|error| error.to_string())?.items;
            for Made { name, uid, .. } in &ran {
                let told: Vec<_> = (events.iter())
                    .filter(|event| event.involved_object.uid == *uid && event.reason.as_deref() == Some("Started"))
                    .map(|event| (event.metadata.name.clone(), event.count))
                    .collect();
                if !matches!(told[..], [(_, Some(1))]) {
                    return Err(format!("{name}: {told:?}, expected one, counted once"));
                }
            }
            Ok(ran.len())
        })
        .await
    }

    /// Stops every edge: its store holds what the API has.
    pub(super) async fn compare(&self, site: &mut Site) -> Result<usize> {
        let mut compared = 0;
        for reader in &self.readers {
            compared += self.compare_one(site, reader.line).await?;
        }
        Ok(compared)
    }

    /// Stops one of them.
    pub(super) async fn compare_one(&self, site: &mut Site, line: u8) -> Result<usize> {
        let mut compared = 0;
        for reader in self.readers.iter().filter(|reader| reader.line == line) {
            let place = node(reader.line);
            let stored = site.stored(reader.line, resource::config_maps).await.with_context(|| place.clone())?;
            for map in &self.maps {
                let here = Api::<ConfigMap>::namespaced(self.client.clone(), NAMESPACE).get(&map.name).await?;
                let there = stored.iter().find(|object| object.key.as_ref().is_some_and(|key| key.name == map.name));
                let there = there.with_context(|| format!("{place}: {} is not in the store", map.name))?;
                let json: ConfigMap = serde_json::from_slice(&there.json)?;
                let same = Some(&there.uid) == here.metadata.uid.as_ref()
                    && Some(&there.resource_version) == here.metadata.resource_version.as_ref();
                ensure!(same && json.data == here.data, "{place}: {} is {json:?}, the API has {here:?}", map.name);
                compared += 1;
            }
            let stored = site.stored(reader.line, resource::pods).await.with_context(|| place.clone())?;
            let mut there: Vec<String> = stored.into_iter().map(|object| object.uid).collect();
            let mine = ListParams::default().fields(&format!("spec.nodeName={place}"));
            let mut here: Vec<String> =
                pods(&self.client).list(&mine).await?.iter().filter_map(ResourceExt::uid).collect();
            there.sort();
            here.sort();
            ensure!(there == here, "{place} has the pods {there:?}, the API {here:?}");
            ensure!(here.contains(&reader.uid), "{place}: the pod that shows ConfigMaps is another");
            compared += here.len();
        }
        Ok(compared)
    }
}

impl Map {
    /// Writes the next value. Without an answer it reads what is there.
    async fn write(&mut self, client: &Client, figures: &Figures) -> Result<()> {
        self.stamp += 1;
        let data = BTreeMap::from([(STAMP.to_owned(), self.stamp.to_string())]);
        let mut object = ConfigMap { data: Some(data), ..ConfigMap::default() };
        object.metadata.name = Some(self.name.clone());
        let api = Api::<ConfigMap>::namespaced(client.clone(), NAMESPACE);
        let exists = self.ledger.last().is_some();
        self.ledger.attempt(Some(self.stamp));
        let wrote = match exists {
            true => api.replace(&self.name, &PostParams::default(), &object).await,
            false => api.create(&PostParams::default(), &object).await,
        };
        match wrote {
            Ok(object) => {
                let version = object.resource_version().context("no resourceVersion")?.parse()?;
                self.ledger.acknowledge(Some(version)).with_context(|| self.name.clone())?;
                bump(&figures.acknowledged);
                Ok(())
            }
            Err(error) if is_open(&error) => {
                bump(&figures.unanswered);
                self.read(client).await
            }
            Err(error) => Err(error).with_context(|| self.name.clone()),
        }
    }

    async fn read(&mut self, client: &Client) -> Result<()> {
        let api = Api::<ConfigMap>::namespaced(client.clone(), NAMESPACE);
        let seen = once_it_answers(async || api.get_opt(&self.name).await).await?;
        let seen = match seen {
            Some(object) => {
                let version = object.resource_version().context("no resourceVersion")?.parse()?;
                let stamp = object.data.unwrap_or_default().remove(STAMP).context("no stamp")?.parse()?;
                Some((stamp, version))
            }
            None => None,
        };
        Ok(self.ledger.read(seen)?)
    }

    async fn write_until(&mut self, over: &Cell<bool>, client: &Client, figures: &Figures) -> Result<()> {
        let mut tick = interval(PACE);
        // What an outage cost is not made up for: the pace is that of the line.
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while !over.get() {
            tick.tick().await;
            self.write(client, figures).await?;
        }
        Ok(())
    }
}

impl Pods {
    async fn write_until(&mut self, over: &Cell<bool>, client: &Client, figures: &Figures) -> Result<()> {
        let api = pods(client);
        while !over.get() {
            let name = format!("brief-{}-{}", self.line, self.made.len());
            let wanted = pod(&name, self.line, &self.image, json!([]))?;
            let made = match api.create(&PostParams::default(), &wanted).await {
                Ok(made) => {
                    bump(&figures.acknowledged);
                    Some(made)
                }
                Err(error) if is_open(&error) => {
                    bump(&figures.unanswered);
                    once_it_answers(async || api.get_opt(&name).await).await?
                }
                Err(error) => return Err(error).context(name),
            };
            let lives = made.is_some();
            self.made.push(Made { name: name.clone(), uid: made.and_then(|made| made.uid()), lives, ran: false });
            if !lives || !awaited(over, async || Ok(api.get_opt(&name).await?.is_some_and(|pod| runs(&pod)))).await? {
                continue;
            }
            bump(&figures.told);
            if let Some(last) = self.made.last_mut() {
                last.ran = true;
            }
            let parameters = DeleteParams { grace_period_seconds: Some(1), ..DeleteParams::default() };
            match api.delete(&name, &parameters).await {
                Ok(_) => bump(&figures.acknowledged),
                Err(error) if is_open(&error) => {
                    bump(&figures.unanswered);
                    let there = once_it_answers(async || api.get_opt(&name).await).await?;
                    if there.is_some_and(|pod| pod.metadata.deletion_timestamp.is_none()) {
                        continue;
                    }
                }
                Err(error) => return Err(error).context(name),
            }
            if let Some(last) = self.made.last_mut() {
                last.lives = false;
            }
            if awaited(over, async || Ok(api.get_opt(&name).await?.is_none())).await? {
                bump(&figures.told);
            }
        }
        Ok(())
    }
}

impl Reader {
    fn shows(&self, map: &str) -> Option<u64> {
        std::fs::read_to_string(self.folder.join(map)).ok()?.parse().ok()
    }

    async fn watch_until(&self, over: &Cell<bool>, figures: &Figures) -> Result<()> {
        let mut tick = interval(LOOK);
        while !over.get() {
            tick.tick().await;
            let mut all = figures.newest.borrow_mut();
            for (n, newest) in all.entry(self.line).or_default().iter_mut().enumerate() {
                let Some(seen) = self.shows(&format!("map-{n}")) else { continue };
                match seen {
                    seen if seen > *newest => {
                        *newest = seen;
                        bump(&figures.shown);
                    }
                    seen if seen < *newest => bump(&figures.duplicated),
                    _ => {}
                }
            }
        }
        Ok(())
    }
}

/// A pod of one container for the node of a line.
pub(super) fn pod(name: &str, line: u8, image: &str, volumes: serde_json::Value) -> Result<Pod> {
    let names = volumes.as_array().into_iter().flatten().map(|volume| &volume["name"]);
    let mounts: Vec<_> = names.map(|name| json!({"name": name, "mountPath": MOUNTED})).collect();
    Ok(serde_json::from_value(json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {
            "nodeName": node(line), "terminationGracePeriodSeconds": 1,
            // It stays, however long its node is not heard of.
            "tolerations": [{"operator": "Exists"}],
            "containers": [{
                "name": "main", "image": image, "imagePullPolicy": "IfNotPresent", "command": ["/bin/sleep", "1000000"],
                "volumeMounts": mounts,
            }],
            "volumes": volumes,
        },
    }))?)
}

/// What the ConfigMaps of writers have in them, by name.
pub(super) fn stamps(objects: &[KubeObject]) -> Result<BTreeMap<String, u64>> {
    let mut stamps = BTreeMap::new();
    for object in objects {
        let map: ConfigMap = serde_json::from_slice(&object.json)?;
        if let (Some(name), Some(stamp)) = (map.metadata.name, map.data.unwrap_or_default().remove(STAMP)) {
            stamps.insert(name, stamp.parse()?);
        }
    }
    Ok(stamps)
}

fn runs(pod: &Pod) -> bool {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Running")
}

/// Looks until it is so (true) or all is over (false). An API that does not answer is asked again.
async fn awaited(over: &Cell<bool>, mut look: impl AsyncFnMut() -> Result<bool, kube::Error>) -> Result<bool> {
    let mut tick = interval(TICK);
    while !over.get() {
        tick.tick().await;
        match look().await {
            Ok(true) => return Ok(true),
            Err(error) if !is_open(&error) => return Err(error.into()),
            _ => {}
        }
    }
    Ok(false)
}

/// The connection ended: it happened or it did not.
fn is_open(error: &kube::Error) -> bool {
    matches!(error, kube::Error::HyperError(_) | kube::Error::Service(_) | kube::Error::ReadEvents(_))
}

async fn once_it_answers<T>(mut ask: impl AsyncFnMut() -> Result<T, kube::Error>) -> Result<T> {
    let deadline = Instant::now() + OUTAGE;
    let mut tick = interval(TICK);
    loop {
        tick.tick().await;
        match ask().await {
            Ok(answer) => return Ok(answer),
            Err(error) if !is_open(&error) => return Err(error.into()),
            Err(_) if Instant::now() > deadline => bail!("the API does not answer within {OUTAGE:?}"),
            Err(_) => {}
        }
    }
}
