//! The Services that pods see in their environment: a node has those of its pods' namespaces. Pure.
//!
//! Only what a variable can tell goes to a node: a Service's address and ports. One without an address of its own (headless,
//! `ExternalName`) tells nothing. `default/kubernetes`, which every pod of a cluster sees, is not sent: nothing on a node
//! leads to its address, and a client library that finds the variable takes the address for the API server's.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use kubeedge_proto::{
    resource,
    v1::{DesiredKind, KubeObject, ObjectUpsert},
};
use serde_json::{Value, json};

use super::desired::{Effect, went_back};
use crate::controllers::objects::{envelope_of, key_of, text, tombstone, upsert, version_of};

/// Namespace and name.
type Key = (String, String);

/// All of them, and whose they are.
#[derive(Default)]
pub(super) struct Services {
    /// In order: those of a namespace lie together.
    known: BTreeMap<Key, KubeObject>,
    /// By namespace, the nodes with pods there, and how many see its Services.
    users: HashMap<String, HashMap<String, u32>>,
    /// The resourceVersion up to which they are known, from the first list on.
    as_of: Option<u64>,
    /// While they are listed: those that have come.
    listing: HashSet<Key>,
}

/// Whether a pod sees the Services of its namespace.
pub(super) fn are_seen_by(pod: &Value) -> bool {
    pod.pointer("/spec/enableServiceLinks") != Some(&Value::Bool(false))
}

/// What a variable can tell of it.
fn told(service: &Value) -> Option<KubeObject> {
    let address = text(service, "/spec/clusterIP");
    let (namespace, name) = key_of(service);
    if address.is_empty() || address == "None" || (&*namespace, &*name) == ("default", "kubernetes") {
        return None;
    }
    let ports = service.pointer("/spec/ports").and_then(Value::as_array).into_iter().flatten();
    let ports: Vec<Value> = ports
        .map(|port| {
            let fields = ["name", "protocol", "port"].into_iter();
            fields.filter_map(|field| Some((field.to_owned(), port.get(field)?.clone()))).collect()
        })
        .collect();
    let metadata = json!({
        "namespace": namespace, "name": name, "uid": text(service, "/metadata/uid"),
        "resourceVersion": text(service, "/metadata/resourceVersion"),
    });
    let told = json!({"metadata": metadata, "spec": {"clusterIP": address, "ports": ports}});
    Some(envelope_of(resource::services(), told))
}

impl Services {
    /// A pod of this node sees those of the namespace.
    pub(super) fn seen(&mut self, namespace: &str, node: &str, effects: &mut Vec<Effect>) {
        if !self.users.contains_key(namespace) {
            self.users.insert(namespace.to_owned(), HashMap::new());
        }
        let Some(nodes) = self.users.get_mut(namespace) else { return };
        let pods = nodes.entry(node.to_owned()).or_insert(0);
        *pods += 1;
        if *pods == 1 {
            let as_of = self.as_of.unwrap_or(0);
            effects.extend(self.of(namespace).map(|service| upserted(node, service, as_of)));
        }
    }

    /// A pod of this node does not any more. That is told as of what is known of Services, which the pods' versions may be
    /// far ahead of: a comparison would take it for news that it cannot know of.
    pub(super) fn unseen(&mut self, namespace: &str, node: &str, effects: &mut Vec<Effect>) {
        let Some(nodes) = self.users.get_mut(namespace) else { return };
        let Some(pods) = nodes.get_mut(node) else { return };
        *pods -= 1;
        if *pods > 0 {
            return;
        }
        nodes.remove(node);
        if nodes.is_empty() {
            self.users.remove(namespace);
        }
        let as_of = self.as_of.unwrap_or(0);
        effects.extend(self.of(namespace).map(|gone| Effect::Tombstone(node.to_owned(), tombstone(gone, as_of))));
    }

    fn of(&self, namespace: &str) -> impl Iterator<Item = &KubeObject> {
        let (from, of) = ((namespace.to_owned(), String::new()), namespace.to_owned());
        self.known.range(from..).take_while(move |((namespace, _), _)| *namespace == of).map(|(_, service)| service)
    }

    /// A list begins: it comes in pages.
    pub(super) fn listing(&mut self) {
        self.listing.clear();
    }

    /// A page of it.
    pub(super) fn page(&mut self, services: &[Value], as_of: u64) -> Vec<Effect> {
        let mut effects = Vec::new();
        for service in services {
            self.listing.insert(key_of(service));
            self.set(key_of(service), told(service), as_of, &mut effects);
        }
        if self.went_back(as_of) {
            effects.retain(|effect| !matches!(effect, Effect::Tombstone(..)));
        }
        effects
    }

    /// That was the last page: what was in none is gone.
    pub(super) fn listed(&mut self, as_of: u64) -> Vec<Effect> {
        let mut effects = Vec::new();
        let listed = std::mem::take(&mut self.listing);
        let gone: Vec<Key> = self.known.keys().filter(|key| !listed.contains(*key)).cloned().collect();
        for key in gone {
            self.set(key, None, as_of, &mut effects);
        }
        if self.went_back(as_of) {
            went_back(&mut effects);
        }
        self.as_of = Some(as_of);
        effects
    }

    fn went_back(&self, as_of: u64) -> bool {
        self.as_of.is_some_and(|before| as_of < before)
    }

    /// One was added or modified.
    pub(super) fn applied(&mut self, service: &Value) -> Vec<Effect> {
        let mut effects = Vec::new();
        self.set(key_of(service), told(service), version_of(service), &mut effects);
        self.bookmark(version_of(service));
        effects
    }

    /// One was deleted.
    pub(super) fn deleted(&mut self, service: &Value) -> Vec<Effect> {
        let mut effects = Vec::new();
        let key = key_of(service);
        if self.known.get(&key).is_some_and(|known| known.uid == text(service, "/metadata/uid")) {
            self.set(key, None, version_of(service), &mut effects);
        }
        self.bookmark(version_of(service));
        effects
    }

    /// The watch has come to here.
    pub(super) fn bookmark(&mut self, version: u64) {
        if let Some(as_of) = &mut self.as_of {
            *as_of = version.max(*as_of);
        }
    }

    fn set(&mut self, key: Key, service: Option<KubeObject>, as_of: u64, effects: &mut Vec<Effect>) {
        let before = match service.clone() {
            Some(service) => self.known.insert(key.clone(), service),
            None => self.known.remove(&key),
        };
        let same = |before: &KubeObject, after: &KubeObject| {
            before.uid == after.uid && before.projection_hash == after.projection_hash
        };
        if let (Some(before), Some(after)) = (&before, &service)
            && same(before, after)
        {
            return;
        }
        let mut nodes: Vec<&String> = self.users.get(&key.0).into_iter().flat_map(HashMap::keys).collect();
        nodes.sort_unstable();
        for node in nodes {
            // Recreated under the same name: the old one ends first.
            if let Some(gone) = &before
                && service.as_ref().is_none_or(|service| service.uid != gone.uid)
            {
                effects.push(Effect::Tombstone(node.clone(), tombstone(gone, as_of)));
            }
            effects.extend(service.as_ref().map(|service| upserted(node, service, as_of)));
        }
    }

    /// What a node with pods in these namespaces is to have; nothing is said before the first list.
    pub(super) fn desired(&self, namespaces: &BTreeSet<&str>, pods_as_of: Option<u64>) -> Option<DesiredKind> {
        let (as_of, pods_as_of) = (self.as_of?, pods_as_of?);
        let services = namespaces.iter().flat_map(|namespace| self.of(namespace));
        Some(DesiredKind {
            r#type: Some(resource::services()),
            complete: true,
            // Which are desired is known from the pods.
            as_of: as_of.min(pods_as_of),
            objects: services.map(upsert).collect(),
        })
    }
}

fn upserted(node: &str, service: &KubeObject, as_of: u64) -> Effect {
    Effect::Upsert(node.to_owned(), ObjectUpsert { as_of: as_of.max(service.version()), ..upsert(service) })
}

#[cfg(test)]
mod tests;
