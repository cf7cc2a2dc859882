//! One kind as it is served: MetaManager's objects with what the node reports of them, numbered by this server, and the log
//! of their last changes.
//!
//! resourceVersions are the edge's own: the cloud's do not say in which order things came here, and change with every
//! status, of which the edge is not told. They rise with each change here, over all kinds and over restarts.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use bytes::Bytes;
use kubeedge_proto::v1::{KubeObject, ObjectKey, SeenObject, StatusUpdate};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::kubeapi::{
    collection::{Collection, Kept},
    event_log::{Event, TooOld},
    fields::{list, text},
    object::{Key, Object, metadata},
    resource::Resource,
};

/// The objects of one kind. One writer, the component; read by every request.
pub(super) struct Copy {
    kind: &'static Resource,
    state: RwLock<State>,
    signal: watch::Sender<u64>,
    closing: CancellationToken,
}

struct State {
    kept: Kept,
    held: BTreeMap<Key, Held>,
    version: u64,
    /// Read once.
    loaded: bool,
    /// Absence means absence.
    complete: bool,
}

/// What an object was made of.
#[derive(Clone, Debug, Default, PartialEq)]
struct Held {
    uid: String,
    /// The cloud's resourceVersion and hash.
    version: (String, u64),
    /// The node's own report, JSON, and its place among the reports.
    reported: Option<(u64, Bytes)>,
}

impl Held {
    fn of(object: &KubeObject) -> Self {
        let version = (object.resource_version.clone(), object.projection_hash);
        Self { uid: object.uid.clone(), version, reported: None }
    }
}

/// Everything of a kind that is on disk.
pub(super) struct Snapshot {
    pub(super) objects: Vec<KubeObject>,
    pub(super) statuses: Vec<StatusUpdate>,
    pub(super) complete: bool,
}

impl Copy {
    /// Nothing known yet.
    pub(super) fn new(kind: &'static Resource, version: u64, closing: CancellationToken) -> Self {
        let kept = Kept::new(BTreeMap::new(), version);
        let state = State { kept, held: BTreeMap::new(), version, loaded: false, complete: false };
        Self { kind, state: RwLock::new(state), signal: watch::Sender::new(version), closing }
    }

    pub(super) fn kind(&self) -> &'static Resource {
        self.kind
    }

    /// Whether it was read from the disk.
    pub(super) fn is_loaded(&self) -> bool {
        self.read().loaded
    }

    /// Whether what is not here is not there.
    pub(super) fn is_complete(&self) -> bool {
        self.read().complete
    }

    pub(super) fn get(&self, namespace: &str, name: &str) -> Option<Arc<Object>> {
        self.read().kept.objects.get(&Key::new(namespace, name)).cloned()
    }

    /// The object of this name as the cloud knows it, if this is its resourceVersion here.
    pub(super) fn seen(&self, namespace: &str, name: &str, version: u64) -> Option<SeenObject> {
        let key = Key::new(namespace, name);
        let state = self.read();
        let current = state.kept.objects.get(&key).is_some_and(|object| object.resource_version == version);
        let held = state.held.get(&key).filter(|_| current)?;
        Some(SeenObject { uid: held.uid.clone(), projection_hash: held.version.1 })
    }

    /// The kind became complete.
    pub(super) fn completed(&self) {
        self.write().complete = true;
    }

    /// Takes over what is on disk. The first time that is where history begins; later, what differs from before is a change
    /// like any other. `next` gives resourceVersions.
    pub(super) fn load(&self, snapshot: Snapshot, next: &mut dyn FnMut() -> u64) {
        let Snapshot { objects, statuses, complete } = snapshot;
        let mut reported: BTreeMap<Key, StatusUpdate> =
            statuses.into_iter().filter_map(|status| Some((key_of(status.key.as_ref()?), status))).collect();
        let first = !self.is_loaded();
        let mut seen = BTreeSet::new();
        for object in &objects {
            let Some(key) = object.key.as_ref().map(key_of) else { continue };
            let status = reported.remove(&key).filter(|status| status.uid == object.uid);
            let status = status.map(|status| (status.generation, status.status_json));
            self.change(object, status, &mut *next);
            seen.insert(key);
        }
        // While something is missing on disk, absence there is no end.
        if complete {
            let gone: Vec<(Key, String)> = {
                let state = self.read();
                let others = state.held.iter().filter(|(key, _)| !seen.contains(key));
                others.map(|(key, held)| (key.clone(), held.uid.clone())).collect()
            };
            for (key, uid) in gone {
                self.remove(&ObjectKey::new(&key.namespace, &key.name), &uid, &mut *next);
            }
        }
        let mut state = self.write();
        if first {
            let version = next();
            let objects = std::mem::take(&mut state.kept.objects);
            state.kept = Kept::new(objects, version);
            state.version = version;
        }
        state.loaded = true;
        state.complete = complete;
        self.signal.send_replace(state.version);
    }

    /// A version of an object is on disk.
    pub(super) fn put(&self, object: &KubeObject, next: &mut dyn FnMut() -> u64) {
        self.change(object, None, next);
    }

    fn change(&self, object: &KubeObject, status: Option<(u64, Bytes)>, next: &mut dyn FnMut() -> u64) {
        let Some(key) = object.key.as_ref().map(key_of) else { return };
        let mut held = Held::of(object);
        let mut state = self.write();
        let old = state.held.get(&key).filter(|old| old.uid == held.uid);
        held.reported = newer(old.and_then(|old| old.reported.clone()), status);
        if old == Some(&held) {
            return;
        }
        let recreated = old.is_none();
        let value: Value = match serde_json::from_slice(&object.json) {
            Ok(value @ Value::Object(_)) => value,
            Ok(_) | Err(_) => {
                // MetaManager keeps what the cloud sent; what is no object is none of a kind's.
                tracing::error!(kind = self.kind.plural, key = %key, "an object on disk is no JSON object and is not served");
                return;
            }
        };
        let desired = value.get("status").cloned();
        let status = status_of(self.kind, desired, held.reported.as_ref().map(|(_, json)| json));
        if recreated {
            self.end(&mut state, &key, next);
        }
        state.held.insert(key.clone(), held);
        self.publish(&mut state, key, value, status, next());
    }

    /// What the node says of an object has changed.
    pub(super) fn report(&self, status: &StatusUpdate, next: &mut dyn FnMut() -> u64) {
        let Some(key) = status.key.as_ref().map(key_of) else { return };
        let mut state = self.write();
        let State { kept, held, .. } = &mut *state;
        let (Some(object), Some(held)) = (kept.objects.get(&key), held.get_mut(&key)) else { return };
        let before = held.reported.clone();
        let reported = newer(before.clone(), Some((status.generation, status.status_json.clone())));
        if held.uid != status.uid || reported == before {
            return;
        }
        let value = object.value(self.kind);
        let desired = of_others(value.get("status"), before.as_ref().map(|(_, json)| json));
        held.reported = reported;
        let status = status_of(self.kind, desired, held.reported.as_ref().map(|(_, json)| json));
        self.publish(&mut state, key, value, status, next());
    }

    fn publish(&self, state: &mut State, key: Key, mut value: Value, status: Option<Value>, version: u64) {
        metadata(&mut value).insert("resourceVersion".into(), version.to_string().into());
        if let (Some(fields), Some(status)) = (value.as_object_mut(), status) {
            fields.insert("status".into(), status);
        }
        let object = Arc::new(Object::new(self.kind, &value));
        let previous = state.kept.objects.insert(key, object.clone());
        state.kept.log.push(Event { resource_version: version, previous, object, deleted: false });
        state.version = version;
        self.signal.send_replace(version);
    }

    /// The object of this uid is gone.
    pub(super) fn remove(&self, key: &ObjectKey, uid: &str, next: &mut dyn FnMut() -> u64) {
        let key = key_of(key);
        let mut state = self.write();
        if state.held.get(&key).is_some_and(|held| held.uid == uid) {
            self.end(&mut state, &key, next);
        }
    }

    /// Whatever is under this name is gone. A change like any other, with a version of its own: `P-WATCH-GOES-ON`.
    fn end(&self, state: &mut State, key: &Key, next: &mut dyn FnMut() -> u64) {
        state.held.remove(key);
        let Some(previous) = state.kept.objects.remove(key) else { return };
        let version = next();
        let mut last = previous.value(self.kind);
        metadata(&mut last).insert("resourceVersion".into(), version.to_string().into());
        let object = Arc::new(Object::new(self.kind, &last));
        state.kept.log.push(Event { resource_version: version, previous: Some(previous), object, deleted: true });
        state.version = version;
        self.signal.send_replace(version);
    }

    fn read(&self) -> RwLockReadGuard<'_, State> {
        // Every change is prepared before it is made: a panic leaves none by half.
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Collection for Copy {
    fn resource_version(&self) -> u64 {
        self.read().version
    }

    fn list(&self, namespace: Option<&str>) -> (u64, Vec<Arc<Object>>) {
        let state = self.read();
        (state.version, state.kept.list(namespace))
    }

    fn scan(
        &self,
        namespace: Option<&str>,
        position: Option<u64>,
        start: Option<&Key>,
        visit: &mut dyn FnMut(&Arc<Object>) -> bool,
    ) -> Result<u64, TooOld> {
        let state = self.read();
        state.kept.scan(namespace, position, start, visit)?;
        Ok(position.unwrap_or(state.version))
    }

    fn events(&self, position: u64, limit: usize) -> Result<(Vec<Event>, u64), TooOld> {
        let state = self.read();
        state.kept.events(position, limit, state.version)
    }

    fn subscribe(&self) -> watch::Receiver<u64> {
        self.signal.subscribe()
    }

    fn closing(&self) -> &CancellationToken {
        &self.closing
    }
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.namespace.as_str() {
            "" => f.write_str(&self.name),
            namespace => write!(f, "{namespace}/{}", self.name),
        }
    }
}

fn key_of(key: &ObjectKey) -> Key {
    Key::new(&key.namespace, &key.name)
}

/// Of two reports the newer one.
fn newer(old: Option<(u64, Bytes)>, new: Option<(u64, Bytes)>) -> Option<(u64, Bytes)> {
    match (old, new) {
        (Some(old), Some(new)) if new.0 <= old.0 => Some(old),
        (old, None) => old,
        (_, new) => new,
    }
}

fn parsed(report: Option<&Bytes>) -> Option<Value> {
    let report = report?;
    serde_json::from_slice(report)
        .inspect_err(|error| tracing::error!("a status on disk is no JSON and is left out: {error}"))
        .ok()
}

fn types(conditions: &[Value]) -> Vec<&str> {
    conditions.iter().map(|condition| text(condition, "/type")).collect()
}

/// The conditions in a status that are not of the node's report: others set them, for readiness gates.
fn of_others(status: Option<&Value>, reported: Option<&Bytes>) -> Option<Value> {
    let (status, reported) = (status?, parsed(reported).unwrap_or_default());
    let own = types(list(&reported, "/conditions"));
    let others: Vec<&Value> =
        list(status, "/conditions").iter().filter(|condition| !own.contains(&text(condition, "/type"))).collect();
    (!others.is_empty()).then(|| json!({"conditions": others}))
}

/// The status that is served: the node's report, with the conditions that others set and it does not say. Of a pod that
/// was not reported yet what a new pod has.
fn status_of(kind: &Resource, desired: Option<Value>, reported: Option<&Bytes>) -> Option<Value> {
    let mut status = match parsed(reported) {
        Some(status @ Value::Object(_)) => status,
        _ if kind.kind == "Pod" => json!({"phase": "Pending"}),
        _ => return desired,
    };
    let own: Vec<String> = types(list(&status, "/conditions")).into_iter().map(str::to_owned).collect();
    let desired = desired.unwrap_or_default();
    let others = list(&desired, "/conditions").iter().filter(|one| !own.iter().any(|own| own == text(one, "/type")));
    let others: Vec<Value> = others.cloned().collect();
    if !others.is_empty() {
        match status.get_mut("conditions").and_then(Value::as_array_mut) {
            Some(conditions) => conditions.extend(others),
            None => status["conditions"] = others.into(),
        }
    }
    Some(status)
}

#[cfg(test)]
mod tests;
