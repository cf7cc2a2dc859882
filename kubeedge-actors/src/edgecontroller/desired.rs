//! What each node should hold. Pure: watch events in, effects out.
//!
//! Pods are indexed by the node they are bound to; ConfigMaps, Secrets, claims and RuntimeClasses by the nodes whose pods
//! name them, a volume by the nodes whose pods' claims are bound to it, and Services by the nodes with pods in their
//! namespace (`services`). A pod is held back until everything it names is known (there or absent), so that
//! configuration always precedes it.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    time::Duration,
};

use kubeedge_proto::{
    resource,
    v1::{DesiredKind, DesiredState, KubeObject, ObjectKey, ObjectTombstone, ObjectUpsert},
};
use serde_json::Value;

use crate::controllers::objects::{envelope_of, key_of, reference_to, text, tombstone, upsert, version_of};

use super::{
    references::{ConfigKey, ConfigKind, references, volume_of},
    services::{Services, are_seen_by},
    writes::Bound,
};

/// How long a pod waits for what it names to become known, before it is sent without.
///
/// Longer than a list request takes; after it the node itself reports what is missing.
pub const HOLD: Duration = Duration::from_secs(5);

/// What follows from an event.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Begin to watch this object.
    Watch(ConfigKey),
    /// Nobody needs it any more.
    Unwatch(ConfigKey),
    /// This version is desired at the node.
    Upsert(String, ObjectUpsert),
    /// No longer desired at the node.
    Tombstone(String, ObjectTombstone),
    /// What is known went back: every node is to be compared anew. What is missing now may be missing in a backup only.
    Compare,
}

type PodKey = (String, String);

struct PodEntry {
    node: String,
    object: KubeObject,
    /// In order. No set: one has room for eleven, and a pod names one or two.
    names: Box<[ConfigKey]>,
    /// It is told to end: for that it needs nothing.
    ending: bool,
    /// It sees the Services of its namespace.
    sees_services: bool,
    /// Set while the pod waits for something it names.
    held_since: Option<Duration>,
}

#[derive(Default)]
struct ConfigEntry {
    known: Known,
    /// resourceVersion up to which `known` holds.
    as_of: u64,
    /// Pods that name it, or claims, per node.
    users: HashMap<String, u32>,
    /// What it names itself: a claim its volume, which its users need as well.
    leads_to: Option<ConfigKey>,
}

#[derive(Default)]
enum Known {
    #[default]
    NotYet,
    Absent,
    Present(Box<KubeObject>),
}

/// The desired state of all nodes.
#[derive(Default)]
pub struct Desired {
    /// Behind pointers: a map's leaves are half empty.
    pods: BTreeMap<PodKey, Box<PodEntry>>,
    /// In order. A set's first leaf has room for eleven keys, and most nodes have few pods.
    by_node: HashMap<String, Vec<PodKey>>,
    configs: HashMap<ConfigKey, ConfigEntry>,
    waiting: HashMap<ConfigKey, HashSet<PodKey>>,
    pods_as_of: Option<u64>,
    /// While the pods are listed: those that have come.
    listing: HashSet<PodKey>,
    /// Of a kind that one watch follows as a whole: everything up to here was told.
    configs_as_of: HashMap<ConfigKind, u64>,
    /// What pods see without naming it.
    pub(super) services: Services,
}

impl Desired {
    /// The node and uid of a pod, when it is bound and known.
    pub fn pod(&self, namespace: &str, name: &str) -> Option<(&str, &str)> {
        let entry = self.pods.get(&(namespace.to_owned(), name.to_owned()))?;
        Some((&entry.node, &entry.object.uid))
    }

    /// Where a pod is bound, when it is known.
    pub fn bound(&self, key: &ObjectKey) -> Option<Bound> {
        let entry = self.pods.get(&(key.namespace.clone(), key.name.clone()))?;
        Some(Bound {
            node: entry.node.clone(),
            uid: entry.object.uid.clone(),
            resource_version: entry.object.resource_version.clone(),
        })
    }

    /// Whether any pod of `node` names this object.
    pub fn names(&self, node: &str, key: &ConfigKey) -> bool {
        self.configs.get(key).is_some_and(|config| config.users.contains_key(node))
    }

    /// A complete list of the bound pods at a resourceVersion: what is not in it is gone.
    pub fn pods_replaced(&mut self, now: Duration, pods: Vec<Value>, as_of: u64) -> Vec<Effect> {
        self.pods_listing();
        let mut effects = self.pods_page(now, pods, as_of);
        effects.extend(self.pods_listed(as_of));
        effects
    }

    /// A list of the bound pods begins: it comes in pages.
    pub fn pods_listing(&mut self) {
        self.listing.clear();
    }

    /// A page of it. What is in it is there, whatever becomes of the rest.
    pub fn pods_page(&mut self, now: Duration, pods: Vec<Value>, as_of: u64) -> Vec<Effect> {
        let mut effects = Vec::new();
        for pod in pods {
            self.listing.insert(key_of(&pod));
            self.apply_pod(now, pod, as_of, &mut effects);
        }
        if self.pods_went_back(as_of) {
            effects.retain(|effect| !matches!(effect, Effect::Tombstone(..)));
        }
        effects
    }

    /// That was the last page: what was in none is gone.
    pub fn pods_listed(&mut self, as_of: u64) -> Vec<Effect> {
        let mut effects = Vec::new();
        let listed = std::mem::take(&mut self.listing);
        let gone: Vec<PodKey> = self.pods.keys().filter(|key| !listed.contains(*key)).cloned().collect();
        for key in gone {
            self.remove_pod(&key, as_of, &mut effects);
        }
        if self.pods_went_back(as_of) {
            went_back(&mut effects);
        }
        self.pods_as_of = Some(as_of);
        effects
    }

    fn pods_went_back(&self, as_of: u64) -> bool {
        self.pods_as_of.is_some_and(|before| as_of < before)
    }

    /// A pod was added or modified.
    pub fn pod_applied(&mut self, now: Duration, pod: Value) -> Vec<Effect> {
        let mut effects = Vec::new();
        let version = version_of(&pod);
        self.apply_pod(now, pod, version, &mut effects);
        self.pods_bookmark(version);
        effects
    }

    /// A pod was deleted.
    pub fn pod_deleted(&mut self, pod: &Value) -> Vec<Effect> {
        let mut effects = Vec::new();
        let (key, version) = (key_of(pod), version_of(pod));
        let uid = text(pod, "/metadata/uid");
        if self.pods.get(&key).is_some_and(|entry| entry.object.uid == uid) {
            self.remove_pod(&key, version, &mut effects);
        }
        self.pods_bookmark(version);
        effects
    }

    /// The resourceVersion up to which the pods are known; 0 before the first list.
    pub fn version(&self) -> u64 {
        self.pods_as_of.unwrap_or(0)
    }

    /// The pod watch has come to here.
    pub fn pods_bookmark(&mut self, version: u64) {
        if let Some(as_of) = &mut self.pods_as_of {
            *as_of = (*as_of).max(version);
        }
    }

    /// A list says whether a ConfigMap or Secret is there, as of a resourceVersion.
    pub fn config_listed(&mut self, key: &ConfigKey, object: Option<Value>, as_of: u64) -> Vec<Effect> {
        let Some(config) = self.configs.get_mut(key) else { return Vec::new() };
        let before = std::mem::replace(&mut config.as_of, as_of);
        let mut effects = self.config_known(key, object, as_of);
        if as_of < before {
            went_back(&mut effects);
        }
        effects
    }

    /// A ConfigMap or Secret is there (in this version) or absent, as of a resourceVersion.
    pub fn config_known(&mut self, key: &ConfigKey, object: Option<Value>, as_of: u64) -> Vec<Effect> {
        let mut effects = Vec::new();
        let Some(config) = self.configs.get_mut(key) else { return effects };
        config.as_of = config.as_of.max(as_of);
        let leads_to = object.as_ref().filter(|_| key.kind == ConfigKind::Claim).and_then(volume_of);
        let led_to = std::mem::replace(&mut config.leads_to, leads_to.clone());
        let before = std::mem::replace(
            &mut config.known,
            object.map_or(Known::Absent, |object| Known::Present(Box::new(envelope_of(key.kind.type_(), object)))),
        );
        let mut nodes: Vec<&String> = config.users.keys().collect();
        nodes.sort_unstable();
        match (&before, &config.known) {
            (Known::Present(old), Known::Present(new))
                if old.uid == new.uid && old.projection_hash == new.projection_hash => {}
            (before, Known::Present(new)) => {
                for node in nodes {
                    // Recreated under the same name: the old one ends first.
                    if let Known::Present(old) = before
                        && old.uid != new.uid
                    {
                        effects.push(Effect::Tombstone(node.clone(), tombstone(old, as_of)));
                    }
                    effects.push(Effect::Upsert(node.clone(), ObjectUpsert { as_of: config.as_of, ..upsert(new) }));
                }
            }
            (Known::Present(old), _) => {
                for node in nodes {
                    effects.push(Effect::Tombstone(node.clone(), tombstone(old, as_of)));
                }
            }
            _ => {}
        }
        if led_to != leads_to {
            let mut nodes: Vec<String> = config.users.keys().cloned().collect();
            nodes.sort_unstable();
            for node in nodes {
                if let Some(next) = &leads_to {
                    self.add_user(next, &node, &mut effects);
                }
                if let Some(last) = &led_to {
                    self.remove_user(last, &node, as_of, &mut effects);
                }
            }
        }
        let mut released: Vec<PodKey> = self.waiting.remove(key).unwrap_or_default().into_iter().collect();
        released.sort_unstable();
        for pod in released {
            self.release_if_ready(&pod, &mut effects);
        }
        effects
    }

    /// The watch of a whole kind tells that an object was added or modified. An older version than what is known is one
    /// that was overtaken when the object was read by itself.
    pub fn config_applied(&mut self, key: &ConfigKey, object: Value) -> Vec<Effect> {
        let version = version_of(&object);
        match self.configs.get(key) {
            Some(config) if matches!(config.known, Known::NotYet) || version >= config.as_of => {
                self.config_known(key, Some(object), version)
            }
            _ => Vec::new(),
        }
    }

    /// The watch of a whole kind tells that an object was deleted. One of another uid is known to be gone already. Of one
    /// that is not known yet this is the first that is: a read by itself from before does not bring it back.
    pub fn config_deleted(&mut self, key: &ConfigKey, object: &Value) -> Vec<Effect> {
        match self.configs.get(key).map(|config| &config.known) {
            Some(Known::Present(known)) if known.uid != text(object, "/metadata/uid") => Vec::new(),
            _ => self.config_known(key, None, version_of(object)),
        }
    }

    /// An object was read by itself, as of a resourceVersion. The watch of its kind may have told something newer.
    pub fn config_fetched(&mut self, key: &ConfigKey, object: Option<Value>, as_of: u64) -> Vec<Effect> {
        match self.configs.get(key) {
            Some(config) if matches!(config.known, Known::NotYet) || as_of >= config.as_of => {
                self.config_known(key, object, as_of)
            }
            _ => Vec::new(),
        }
    }

    /// A list of a whole kind is of this resourceVersion: what was known as of a later one does not stand.
    pub fn configs_listing(&mut self, kind: ConfigKind, as_of: u64) {
        if self.configs_as_of.get(&kind).is_some_and(|before| as_of < *before) {
            self.configs_as_of.remove(&kind);
        }
    }

    /// The watch of a whole kind has come to here.
    pub fn configs_bookmark(&mut self, kind: ConfigKind, version: u64) {
        let as_of = self.configs_as_of.entry(kind).or_default();
        *as_of = version.max(*as_of);
    }

    /// The kind is not followed as a whole any more.
    pub fn configs_alone(&mut self, kind: ConfigKind) {
        self.configs_as_of.remove(&kind);
    }

    /// The watch of a ConfigMap or Secret has come to here.
    pub fn config_bookmark(&mut self, key: &ConfigKey, version: u64) {
        if let Some(config) = self.configs.get_mut(key) {
            config.as_of = config.as_of.max(version);
        }
    }

    /// Lets go of pods that have waited longer than [`HOLD`].
    pub fn tick(&mut self, now: Duration) -> Vec<Effect> {
        let mut effects = Vec::new();
        for entry in self.pods.values_mut() {
            if entry.held_since.is_some_and(|since| now.saturating_sub(since) >= HOLD) {
                entry.held_since = None;
                effects.push(entry.effect(&self.configs, self.pods_as_of.unwrap_or(0)));
            }
        }
        effects
    }

    /// Whether every kind is complete for this node.
    pub fn is_complete(&self, node: &str) -> bool {
        self.pods_as_of.is_some()
            && self.pods_of(node).all(|pod| {
                pod.held_since.is_none()
                    && self
                        .named(pod)
                        .all(|key| self.configs.get(key).is_some_and(|config| !matches!(config.known, Known::NotYet)))
            })
    }

    /// Everything desired at one node, what is needed before what needs it.
    pub fn snapshot(&self, node: &str) -> DesiredState {
        let names: BTreeSet<&ConfigKey> = self.pods_of(node).flat_map(|pod| self.named(pod)).collect();
        let config = |kind| {
            let all = self.configs_as_of.get(&kind).copied().unwrap_or(0);
            let entries = || names.iter().filter(|key| key.kind == kind).filter_map(|key| self.configs.get(*key));
            DesiredKind {
                r#type: Some(kind.type_()),
                complete: self.pods_as_of.is_some() && entries().all(|config| !matches!(config.known, Known::NotYet)),
                // Which are desired is known from the pods.
                as_of: entries().map(|config| config.as_of.max(all)).chain(self.pods_as_of).min().unwrap_or(0),
                objects: entries()
                    .filter_map(|config| match &config.known {
                        Known::Present(object) => Some(upsert(object)),
                        Known::Absent | Known::NotYet => None,
                    })
                    .collect(),
            }
        };
        let pods = DesiredKind {
            r#type: Some(resource::pods()),
            complete: self.pods_as_of.is_some() && self.pods_of(node).all(|pod| pod.held_since.is_none()),
            as_of: self.pods_as_of.unwrap_or(0),
            objects: self
                .pods_of(node)
                .filter(|pod| pod.held_since.is_none())
                .map(|pod| pod.upsert(&self.configs))
                .collect(),
        };
        let sees = |key: &&PodKey| self.pods.get(*key).is_some_and(|pod| pod.sees_services);
        let seeing = self.by_node.get(node).into_iter().flatten().filter(sees);
        let namespaces = seeing.map(|(namespace, _)| namespace.as_str()).collect();
        let services = self.services.desired(&namespaces, self.pods_as_of);
        let kinds = ConfigKind::ALL.into_iter().map(config).chain(services).chain([pods]).collect();
        DesiredState { kinds, ..DesiredState::default() }
    }

    /// What a pod needs: what it names, and what that names.
    fn named<'a>(&'a self, pod: &'a PodEntry) -> impl Iterator<Item = &'a ConfigKey> {
        let next = pod.names.iter().filter_map(|key| self.configs.get(key)?.leads_to.as_ref());
        pod.names.iter().chain(next)
    }

    fn pods_of(&self, node: &str) -> impl Iterator<Item = &PodEntry> {
        self.by_node.get(node).into_iter().flatten().filter_map(|key| self.pods.get(key).map(Box::as_ref))
    }

    /// `as_of`: up to which version this is known to be the pod.
    fn apply_pod(&mut self, now: Duration, pod: Value, as_of: u64, effects: &mut Vec<Effect>) {
        let node = text(&pod, "/spec/nodeName").to_owned();
        if node.is_empty() {
            return;
        }
        let key = key_of(&pod);
        let names: Box<[ConfigKey]> = references(&pod).into_iter().collect();
        let ending = pod.pointer("/metadata/deletionTimestamp").is_some();
        let sees_services = are_seen_by(&pod);
        let object = envelope_of(resource::pods(), pod);
        if let Some(old) = self.pods.get_mut(&key) {
            if old.object.uid == object.uid && old.object.projection_hash == object.projection_hash {
                old.object.resource_version = object.resource_version;
                return;
            }
            if old.object.uid != object.uid || old.node != node {
                self.remove_pod(&key, object.version(), effects);
            }
        }
        // New names first, so that an object both versions name is neither dropped nor sent again.
        for name in names.iter() {
            self.add_user(name, &node, effects);
        }
        if sees_services {
            self.services.seen(&key.0, &node, effects);
        }
        let old = self.pods.remove(&key);
        // A pod the node has already is not held: its names hardly ever change, and it must not seem to go.
        let hold_from = match &old {
            None => Some(now),
            Some(old) => old.held_since,
        };
        if let Some(old) = old {
            for name in old.names.iter() {
                self.remove_user(name, &old.node, object.version(), effects);
            }
            if old.sees_services {
                self.services.unseen(&key.0, &old.node, effects);
            }
        }
        let of_node = self.by_node.entry(node.clone()).or_default();
        if let Err(at) = of_node.binary_search(&key) {
            of_node.insert(at, key.clone());
        }
        let unknown: Vec<&ConfigKey> = names
            .iter()
            .filter(|name| self.configs.get(*name).is_some_and(|config| matches!(config.known, Known::NotYet)))
            .collect();
        let held_since = hold_from.filter(|_| !unknown.is_empty());
        for name in unknown {
            self.waiting.entry(name.clone()).or_default().insert(key.clone());
        }
        let entry = PodEntry { node, object, names, ending, sees_services, held_since };
        if entry.held_since.is_none() {
            effects.push(entry.effect(&self.configs, as_of));
        }
        self.pods.insert(key, Box::new(entry));
    }

    fn remove_pod(&mut self, key: &PodKey, as_of: u64, effects: &mut Vec<Effect>) {
        let Some(entry) = self.pods.remove(key) else { return };
        if let Some(pods) = self.by_node.get_mut(&entry.node) {
            if let Ok(at) = pods.binary_search(key) {
                pods.remove(at);
            }
            if pods.is_empty() {
                self.by_node.remove(&entry.node);
            }
        }
        effects.push(Effect::Tombstone(entry.node.clone(), tombstone(&entry.object, as_of)));
        for name in entry.names.iter() {
            if let Some(waiting) = self.waiting.get_mut(name) {
                waiting.remove(key);
                if waiting.is_empty() {
                    self.waiting.remove(name);
                }
            }
            self.remove_user(name, &entry.node, as_of, effects);
        }
        if entry.sees_services {
            self.services.unseen(&key.0, &entry.node, effects);
        }
    }

    fn add_user(&mut self, key: &ConfigKey, node: &str, effects: &mut Vec<Effect>) {
        let config = self.configs.entry(key.clone()).or_insert_with(|| {
            effects.push(Effect::Watch(key.clone()));
            ConfigEntry::default()
        });
        let users = config.users.entry(node.to_owned()).or_insert(0);
        *users += 1;
        if *users > 1 {
            return;
        }
        if let Known::Present(object) = &config.known {
            let as_of = config.as_of;
            effects.push(Effect::Upsert(node.to_owned(), ObjectUpsert { as_of, ..upsert(object) }));
        }
        if let Some(next) = config.leads_to.clone() {
            self.add_user(&next, node, effects);
        }
    }

    fn remove_user(&mut self, key: &ConfigKey, node: &str, as_of: u64, effects: &mut Vec<Effect>) {
        let Some(config) = self.configs.get_mut(key) else { return };
        let Some(users) = config.users.get_mut(node) else { return };
        *users -= 1;
        if *users > 0 {
            return;
        }
        config.users.remove(node);
        if let Known::Present(object) = &config.known {
            effects.push(Effect::Tombstone(node.to_owned(), tombstone(object, as_of)));
        }
        let next = config.leads_to.clone();
        if config.users.is_empty() {
            self.configs.remove(key);
            effects.push(Effect::Unwatch(key.clone()));
        }
        if let Some(next) = next {
            self.remove_user(&next, node, as_of, effects);
        }
    }

    fn release_if_ready(&mut self, key: &PodKey, effects: &mut Vec<Effect>) {
        let Some(entry) = self.pods.get_mut(key) else { return };
        let known =
            |name: &ConfigKey| self.configs.get(name).is_some_and(|config| !matches!(config.known, Known::NotYet));
        if entry.held_since.is_some() && entry.names.iter().all(known) {
            entry.held_since = None;
            effects.push(entry.effect(&self.configs, self.pods_as_of.unwrap_or(0)));
        }
    }
}

impl PodEntry {
    fn effect(&self, configs: &HashMap<ConfigKey, ConfigEntry>, as_of: u64) -> Effect {
        Effect::Upsert(self.node.clone(), ObjectUpsert { as_of, ..self.upsert(configs) })
    }

    /// The pod, with those of the objects it names that are there: they are to be on the node's disk before it.
    fn upsert(&self, configs: &HashMap<ConfigKey, ConfigEntry>) -> ObjectUpsert {
        let there = |key: &ConfigKey| match &configs.get(key)?.known {
            Known::Present(object) => Some(reference_to(object)),
            Known::Absent | Known::NotYet => None,
        };
        let named = self.names.iter().chain(self.names.iter().filter_map(|key| configs.get(key)?.leads_to.as_ref()));
        let needs = if self.ending { Vec::new() } else { named.filter_map(there).collect() };
        ObjectUpsert { needs, ..upsert(&self.object) }
    }
}

/// A list that is older than what was known says nothing about what is missing in it.
pub(super) fn went_back(effects: &mut Vec<Effect>) {
    effects.retain(|effect| !matches!(effect, Effect::Tombstone(..)));
    effects.push(Effect::Compare);
}

#[cfg(test)]
mod tests;
