//! Who writes: one object after the other, and a ledger for each.

use std::{
    collections::BTreeMap,
    rc::Rc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use futures_util::future::LocalBoxFuture;
use k8s_openapi::{
    ByteString,
    api::core::v1::{ConfigMap, Pod, Secret},
};
use kube::{
    Client, ResourceExt,
    api::{DeleteParams, ObjectMeta, Patch, PatchParams, PostParams},
};
use kubeedge_examples::{lab::NODE, ledger::Ledger};
use rand::{Rng, rngs::StdRng};
use serde_json::json;
use tokio::time::{MissedTickBehavior, interval};

use super::{Goal, api};
use crate::cluster::{TICK, pods};

/// For the API to answer again after a kill.
const OUTAGE: Duration = Duration::from_secs(60);
/// Objects that no pod uses, a writer: these are also deleted and made anew.
const UNUSED: usize = 4;
/// The largest padding of a value, bytes: values of more than one chunk of the store are among them.
const MAX_PADDING: usize = 20_000;
/// How long a pod's writer waits for the end of its pod before it makes the next: the edge may be down for some time.
const POD_PATIENCE: Duration = Duration::from_secs(15);
/// The label whose value is a pod's stamp.
const MARK: &str = "mark";

/// What an object holds: a number that comes once, and padding that follows from it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Value {
    stamp: u64,
    padding: usize,
}

impl Value {
    fn data(&self) -> BTreeMap<String, String> {
        let padding = self.stamp.to_string().chars().cycle().take(self.padding).collect();
        [("stamp".to_owned(), self.stamp.to_string()), ("padding".to_owned(), padding)].into()
    }

    /// `None` if the parts do not belong together.
    fn of(data: &BTreeMap<String, String>) -> Option<Self> {
        let value = Self { stamp: data.get("stamp")?.parse().ok()?, padding: data.get("padding")?.len() };
        (value.data() == *data).then_some(value)
    }
}

/// Why a write was not acknowledged.
pub(super) enum Fault {
    /// The connection ended: it happened or it did not.
    Open,
    /// The server said no, which nothing here gives it reason to.
    Refused(anyhow::Error),
}

impl From<kube::Error> for Fault {
    fn from(error: kube::Error) -> Self {
        match error {
            kube::Error::Api(status) => Self::Refused(anyhow::anyhow!("the API refused: {status:?}")),
            kube::Error::HyperError(_) | kube::Error::Service(_) | kube::Error::ReadEvents(_) => Self::Open,
            other => Self::Refused(other.into()),
        }
    }
}

fn version<K: ResourceExt>(object: &K) -> Result<u64> {
    object.resource_version().context("an object without resourceVersion")?.parse().context("resourceVersion")
}

type Wrote = Result<u64, Fault>;

/// Objects with data, of one kind.
pub(super) trait Kind {
    fn create<'a>(&'a self, name: &'a str, value: &'a Value) -> LocalBoxFuture<'a, Wrote>;
    fn update<'a>(&'a self, name: &'a str, value: &'a Value) -> LocalBoxFuture<'a, Wrote>;
    fn delete<'a>(&'a self, name: &'a str) -> LocalBoxFuture<'a, Result<(), Fault>>;
    fn get<'a>(&'a self, name: &'a str) -> LocalBoxFuture<'a, Result<Option<(Value, u64)>, Fault>>;
}

pub(super) struct Maps(pub(super) Client);
pub(super) struct Secrets(pub(super) Client);

impl Maps {
    fn object(name: &str, value: &Value) -> ConfigMap {
        let metadata = ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() };
        ConfigMap { metadata, data: Some(value.data()), ..ConfigMap::default() }
    }
}

impl Secrets {
    fn object(name: &str, value: &Value) -> Secret {
        let metadata = ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() };
        let data = value.data().into_iter().map(|(key, text)| (key, ByteString(text.into_bytes()))).collect();
        Secret { metadata, data: Some(data), ..Secret::default() }
    }
}

fn answered<K: ResourceExt>(object: &K) -> Wrote {
    version(object).map_err(Fault::Refused)
}

fn found<K: ResourceExt>(object: &K, data: &BTreeMap<String, String>) -> Result<Option<(Value, u64)>, Fault> {
    let whole = Value::of(data).with_context(|| format!("{} holds parts of two writes", object.name_any()));
    Ok(Some((whole.map_err(Fault::Refused)?, answered(object)?)))
}

/// The four verbs are the same for both kinds; only the types of their data differ.
macro_rules! verbs {
    ($kind:ty, $object:ty, $text:expr) => {
        impl Kind for $kind {
            fn create<'a>(&'a self, name: &'a str, value: &'a Value) -> LocalBoxFuture<'a, Wrote> {
                Box::pin(async move {
                    let object = Self::object(name, value);
                    answered(&api::<$object>(&self.0).create(&PostParams::default(), &object).await?)
                })
            }

            fn update<'a>(&'a self, name: &'a str, value: &'a Value) -> LocalBoxFuture<'a, Wrote> {
                Box::pin(async move {
                    let object = Self::object(name, value);
                    answered(&api::<$object>(&self.0).replace(name, &PostParams::default(), &object).await?)
                })
            }

            fn delete<'a>(&'a self, name: &'a str) -> LocalBoxFuture<'a, Result<(), Fault>> {
                Box::pin(
                    async move { Ok(api::<$object>(&self.0).delete(name, &DeleteParams::default()).await.map(drop)?) },
                )
            }

            fn get<'a>(&'a self, name: &'a str) -> LocalBoxFuture<'a, Result<Option<(Value, u64)>, Fault>> {
                Box::pin(async move {
                    let Some(object) = api::<$object>(&self.0).get_opt(name).await? else { return Ok(None) };
                    let data = object.data.clone().unwrap_or_default();
                    found(&object, &data.into_iter().map($text).collect())
                })
            }
        }
    };
}

verbs!(Maps, ConfigMap, |pair| pair);
verbs!(Secrets, Secret, |(key, ByteString(bytes))| (key, String::from_utf8_lossy(&bytes).into_owned()));

/// Pods, all of this image.
pub(super) struct Pods {
    pub(super) client: Client,
    pub(super) image: String,
}

/// A pod as its writer made it; one that is ending counts as gone.
struct Brief {
    name: String,
    uid: Option<String>,
    ledger: Ledger<u64>,
}

impl Pods {
    async fn create(&self, name: &str, mark: u64) -> Result<Pod, Fault> {
        let object = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "labels": {MARK: mark.to_string()}},
            "spec": {
                "nodeName": NODE, "terminationGracePeriodSeconds": 1,
                "containers": [{
                    "name": "main", "image": self.image, "imagePullPolicy": "IfNotPresent",
                    "command": ["/bin/sh", "-c", "trap 'exit 0' TERM; while :; do sleep 0.2; done"],
                    "volumeMounts": [{"name": "map", "mountPath": "/map"}, {"name": "key", "mountPath": "/key"}],
                }],
                "volumes": [
                    {"name": "map", "configMap": {"name": "map-0-0"}},
                    {"name": "key", "secret": {"secretName": "key-0-0"}},
                ],
            },
        });
        let pod: Pod = serde_json::from_value(object).map_err(|error| Fault::Refused(error.into()))?;
        Ok(pods(&self.client).create(&PostParams::default(), &pod).await?)
    }

    async fn mark(&self, name: &str, mark: u64) -> Wrote {
        let patch = Patch::Merge(json!({"metadata": {"labels": {MARK: mark.to_string()}}}));
        answered(&pods(&self.client).patch(name, &PatchParams::default(), &patch).await?)
    }

    async fn delete(&self, name: &str, grace_seconds: u32) -> Result<(), Fault> {
        let parameters = DeleteParams { grace_period_seconds: Some(grace_seconds), ..DeleteParams::default() };
        Ok(pods(&self.client).delete(name, &parameters).await.map(drop)?)
    }

    async fn get(&self, name: &str) -> Result<Option<Pod>, Fault> {
        Ok(pods(&self.client).get_opt(name).await?)
    }

    /// Reads a pod into its ledger, once the API answers.
    async fn read(&self, brief: &mut Brief) -> Result<Option<Pod>> {
        let pod = once_it_answers(async || self.get(&brief.name).await).await?;
        let seen = match pod.as_ref().filter(|pod| pod.metadata.deletion_timestamp.is_none()) {
            Some(pod) => {
                let mark = pod.labels().get(MARK).and_then(|mark| mark.parse().ok());
                Some((mark.with_context(|| format!("{} has lost its label", brief.name))?, version(pod)?))
            }
            None => None,
        };
        brief.ledger.read(seen).with_context(|| brief.name.clone())?;
        if let Some(pod) = &pod {
            brief.is(pod)?;
        }
        Ok(pod)
    }
}

impl Brief {
    /// A name is used once: there is one uid to it.
    fn is(&mut self, pod: &Pod) -> Result<()> {
        let uid = pod.uid().context("a pod without uid")?;
        if self.uid.get_or_insert_with(|| uid.clone()) != &uid {
            bail!("{} was {:?} and is {uid}", self.name, self.uid);
        }
        Ok(())
    }
}

/// Asks again while the connection ends: the server is down, or is killed while it answers.
async fn once_it_answers<T>(mut ask: impl AsyncFnMut() -> Result<T, Fault>) -> Result<T> {
    let deadline = Instant::now() + OUTAGE;
    let mut tick = interval(TICK);
    loop {
        tick.tick().await;
        match ask().await {
            Ok(answer) => return Ok(answer),
            Err(Fault::Refused(error)) => return Err(error),
            Err(Fault::Open) if Instant::now() > deadline => bail!("the API does not answer within {OUTAGE:?}"),
            Err(Fault::Open) => {}
        }
    }
}

/// One who writes, with one write on its way at a time.
pub(super) struct Writer {
    name: String,
    choices: StdRng,
    /// The last number that was given to a value.
    stamp: u64,
    unanswered: u64,
    work: Work,
}

enum Work {
    Objects(Rc<dyn Kind>, Vec<Ledger<Value>>),
    Pods(Pods, Vec<Brief>),
}

impl Writer {
    /// Writes `<name>-0`, which pods show, and some more objects that no pod uses.
    pub(super) fn of_objects(kind: Rc<dyn Kind>, name: String, choices: StdRng) -> Self {
        let ledgers = vec![Ledger::default(); 1 + UNUSED];
        Self { name, choices, stamp: 0, unanswered: 0, work: Work::Objects(kind, ledgers) }
    }

    /// Writes pods, one after the other.
    pub(super) fn of_pods(pods: Pods, name: String, choices: StdRng) -> Self {
        Self { name, choices, stamp: 0, unanswered: 0, work: Work::Pods(pods, Vec::new()) }
    }

    /// Makes the object that pods show: from now on it is always there.
    pub(super) async fn begin(&mut self) -> Result<()> {
        match self.work {
            Work::Objects(..) => self.write_object(0, false).await.map(drop),
            Work::Pods(..) => Ok(()),
        }
    }

    /// Writes until then; objects one each `pace`, where an outage lets writes wait that are made up for.
    pub(super) async fn write_until(&mut self, goal: &Goal, pace: Duration) -> Result<()> {
        let mut tick = interval(pace);
        tick.set_missed_tick_behavior(MissedTickBehavior::Burst);
        while !goal.over() {
            if let Work::Pods(..) = self.work {
                self.one_pod(goal).await?;
                continue;
            }
            tick.tick().await;
            let which = self.choices.random_range(0..2 * UNUSED).saturating_sub(UNUSED - 1);
            let delete = which != 0 && self.choices.random_ratio(1, 4);
            self.write_object(which, delete).await?.then(|| goal.count());
        }
        Ok(())
    }

    fn value(&mut self) -> Value {
        self.stamp += 1;
        let padding = if self.choices.random_ratio(1, 16) { MAX_PADDING } else { 100 };
        Value { stamp: self.stamp, padding: self.choices.random_range(0..padding) }
    }

    /// Makes, changes or deletes an object. Without an answer it reads what is there. Whether it was acknowledged.
    async fn write_object(&mut self, which: usize, delete: bool) -> Result<bool> {
        let (value, name) = (self.value(), format!("{}-{which}", self.name));
        let Work::Objects(kind, ledgers) = &mut self.work else { return Ok(false) };
        let ledger = &mut ledgers[which];
        let exists = ledger.last().is_some();
        let delete = exists && delete;
        ledger.attempt((!delete).then(|| value.clone()));
        let wrote = match (exists, delete) {
            (true, true) => kind.delete(&name).await.map(|()| None),
            (true, false) => kind.update(&name, &value).await.map(Some),
            (false, _) => kind.create(&name, &value).await.map(Some),
        };
        match wrote {
            Ok(version) => ledger.acknowledge(version).context(name).map(|()| true),
            Err(Fault::Refused(error)) => Err(error.context(name)),
            Err(Fault::Open) => {
                self.unanswered += 1;
                let seen = once_it_answers(async || kind.get(&name).await).await?;
                ledger.read(seen).context(name).map(|()| false)
            }
        }
    }

    /// A pod's life: made, changed, deleted, gone. The last one of the test is left alive.
    async fn one_pod(&mut self, goal: &Goal) -> Result<()> {
        let lives = Duration::from_millis(self.choices.random_range(100..4000));
        let (changes, grace) = (self.choices.random_range(0..3), self.choices.random_range(0..2));
        self.stamp += 1;
        let Work::Pods(api, all) = &mut self.work else { return Ok(()) };
        let name = format!("{}-{}", self.name, all.len());
        all.push(Brief { name: name.clone(), uid: None, ledger: Ledger::default() });
        let Some(brief) = all.last_mut() else { return Ok(()) };

        while brief.ledger.last().is_none() {
            brief.ledger.attempt(Some(self.stamp));
            match api.create(&name, self.stamp).await {
                Ok(pod) => {
                    brief.is(&pod)?;
                    brief.ledger.acknowledge(Some(version(&pod)?)).with_context(|| name.clone())?;
                    goal.count_pod();
                }
                Err(Fault::Refused(error)) => return Err(error.context(name)),
                Err(Fault::Open) => {
                    self.unanswered += 1;
                    api.read(brief).await?;
                }
            }
        }
        for _ in 0..changes {
            tokio::time::sleep(lives / changes).await;
            self.stamp += 1;
            brief.ledger.attempt(Some(self.stamp));
            match api.mark(&name, self.stamp).await {
                Ok(version) => {
                    brief.ledger.acknowledge(Some(version)).with_context(|| name.clone())?;
                    goal.count_pod();
                }
                Err(Fault::Refused(error)) => return Err(error.context(name)),
                Err(Fault::Open) => {
                    self.unanswered += 1;
                    api.read(brief).await?;
                }
            }
        }
        if goal.over_in(POD_PATIENCE / 4) {
            let mut tick = interval(TICK);
            while !goal.over() {
                tick.tick().await;
            }
            return Ok(());
        }
        while brief.ledger.last().is_some() {
            brief.ledger.attempt(None);
            match api.delete(&name, grace).await {
                Ok(()) => {
                    brief.ledger.acknowledge(None).with_context(|| name.clone())?;
                    goal.count_pod();
                }
                Err(Fault::Refused(error)) => return Err(error.context(name)),
                Err(Fault::Open) => {
                    self.unanswered += 1;
                    api.read(brief).await?;
                }
            }
        }
        let patience = Instant::now() + POD_PATIENCE;
        let mut tick = interval(TICK);
        while api.read(brief).await?.is_some() && Instant::now() < patience && !goal.over() {
            tick.tick().await;
        }
        Ok(())
    }

    /// Reads everything back: it is what was acknowledged, or came after it.
    pub(super) async fn settle(&mut self) -> Result<()> {
        match &mut self.work {
            Work::Objects(kind, ledgers) => {
                for (which, ledger) in ledgers.iter_mut().enumerate() {
                    let name = format!("{}-{which}", self.name);
                    let seen = once_it_answers(async || kind.get(&name).await).await?;
                    ledger.read(seen).context(name)?;
                }
            }
            Work::Pods(api, all) => {
                for brief in all {
                    api.read(brief).await?;
                }
            }
        }
        Ok(())
    }

    /// The object that pods show, and the text they show of it.
    pub(super) fn shown(&self) -> Option<(String, String)> {
        let Work::Objects(_, ledgers) = &self.work else { return None };
        let value = ledgers.first()?.last()?;
        Some((format!("{}-0", self.name), value.stamp.to_string()))
    }

    /// Name and uid of each pod that was seen, and whether it is to live.
    pub(super) fn pods_seen(&self) -> Vec<(String, String, bool)> {
        let Work::Pods(_, all) = &self.work else { return Vec::new() };
        let of = |brief: &Brief| Some((brief.name.clone(), brief.uid.clone()?, brief.ledger.last().is_some()));
        all.iter().filter_map(of).collect()
    }

    /// How many writes got no answer.
    pub(super) fn unanswered(&self) -> u64 {
        self.unanswered
    }
}
