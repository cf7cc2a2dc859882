//! Which models and devices each node should hold. Pure: watch events in, effects out.
//!
//! A device belongs to the node that `spec.nodeName` names, a model to every node with a device of it. A node gets the
//! model before the first device of it, and loses it after the last.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use kubeedge_proto::{
    resource,
    v1::{DesiredKind, DesiredState, KubeObject, ObjectTombstone, ObjectUpsert},
};
use serde_json::Value;

use super::{
    status::{Told, with_old_state_report},
    statuses::Owner,
};
use crate::controllers::objects::{envelope_of, key_of, reference_to, text, tombstone, upsert, version_of};

/// Namespace and name.
pub type Key = (String, String);

/// What follows from an event.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// This version is desired at the node.
    Upsert(String, ObjectUpsert),
    /// No longer desired at the node.
    Tombstone(String, ObjectTombstone),
    /// What is known went back: every node is to be compared anew.
    Compare,
}

struct DeviceEntry {
    /// Empty while it is nobody's.
    node: String,
    model: Option<Key>,
    told: Told,
    object: KubeObject,
}

/// The desired state of all nodes, as far as devices go.
#[derive(Default)]
pub struct Desired {
    devices: BTreeMap<Key, DeviceEntry>,
    by_node: HashMap<String, BTreeSet<Key>>,
    models: BTreeMap<Key, KubeObject>,
    /// Per model and node, how many devices.
    users: HashMap<Key, BTreeMap<String, u32>>,
    devices_as_of: Option<u64>,
    models_as_of: Option<u64>,
}

impl Desired {
    /// The node and uid of a device.
    pub fn device(&self, key: &Key) -> Option<(&str, &str)> {
        self.devices.get(key).map(|entry| (entry.node.as_str(), entry.object.uid.as_str()))
    }

    /// What a device lets the cloud know.
    pub fn told(&self, key: &Key) -> Option<&Told> {
        self.devices.get(key).map(|entry| &entry.told)
    }

    /// All devices there are.
    pub fn devices(&self) -> impl Iterator<Item = Owner<'_>> {
        self.devices.iter().map(|(key, entry)| Owner { key, uid: &entry.object.uid, node: &entry.node })
    }

    /// Whether both lists were read.
    pub fn is_complete(&self) -> bool {
        self.devices_as_of.is_some() && self.models_as_of.is_some()
    }

    /// A complete list of the devices: what is not in it is gone.
    pub fn devices_replaced(&mut self, devices: Vec<Value>, as_of: u64) -> Vec<Effect> {
        let mut effects = Vec::new();
        let mut listed = HashSet::new();
        for device in devices {
            listed.insert(key_of(&device));
            self.apply_device(device, as_of, &mut effects);
        }
        let gone: Vec<Key> = self.devices.keys().filter(|key| !listed.contains(*key)).cloned().collect();
        for key in gone {
            self.remove_device(&key, as_of, &mut effects);
        }
        if self.devices_as_of.replace(as_of).is_some_and(|before| as_of < before) {
            went_back(&mut effects);
        }
        effects
    }

    /// A device was added or modified.
    pub fn device_applied(&mut self, device: Value) -> Vec<Effect> {
        let mut effects = Vec::new();
        let version = version_of(&device);
        self.apply_device(device, version, &mut effects);
        self.devices_bookmark(version);
        effects
    }

    /// A device was deleted.
    pub fn device_deleted(&mut self, device: &Value) -> Vec<Effect> {
        let mut effects = Vec::new();
        let (key, version) = (key_of(device), version_of(device));
        if self.devices.get(&key).is_some_and(|entry| entry.object.uid == text(device, "/metadata/uid")) {
            self.remove_device(&key, version, &mut effects);
        }
        self.devices_bookmark(version);
        effects
    }

    /// The watch of devices has come to here.
    pub fn devices_bookmark(&mut self, version: u64) {
        if let Some(as_of) = &mut self.devices_as_of {
            *as_of = (*as_of).max(version);
        }
    }

    /// A complete list of the models.
    pub fn models_replaced(&mut self, models: Vec<Value>, as_of: u64) -> Vec<Effect> {
        let mut effects = Vec::new();
        let mut listed = HashSet::new();
        for model in models {
            listed.insert(key_of(&model));
            self.apply_model(model, as_of, &mut effects);
        }
        let gone: Vec<Key> = self.models.keys().filter(|key| !listed.contains(*key)).cloned().collect();
        for key in gone {
            self.remove_model(&key, as_of, &mut effects);
        }
        if self.models_as_of.replace(as_of).is_some_and(|before| as_of < before) {
            went_back(&mut effects);
        }
        effects
    }

    /// A model was added or modified.
    pub fn model_applied(&mut self, model: Value) -> Vec<Effect> {
        let mut effects = Vec::new();
        let version = version_of(&model);
        self.apply_model(model, version, &mut effects);
        self.models_bookmark(version);
        effects
    }

    /// A model was deleted.
    pub fn model_deleted(&mut self, model: &Value) -> Vec<Effect> {
        let mut effects = Vec::new();
        let (key, version) = (key_of(model), version_of(model));
        if self.models.get(&key).is_some_and(|known| known.uid == text(model, "/metadata/uid")) {
            self.remove_model(&key, version, &mut effects);
        }
        self.models_bookmark(version);
        effects
    }

    /// The watch of models has come to here.
    pub fn models_bookmark(&mut self, version: u64) {
        if let Some(as_of) = &mut self.models_as_of {
            *as_of = (*as_of).max(version);
        }
    }

    /// Everything desired at one node, models first.
    pub fn snapshot(&self, node: &str) -> DesiredState {
        let devices: Vec<&DeviceEntry> =
            self.by_node.get(node).into_iter().flatten().filter_map(|key| self.devices.get(key)).collect();
        let models: BTreeSet<&Key> = devices.iter().filter_map(|device| device.model.as_ref()).collect();
        let models = DesiredKind {
            r#type: Some(resource::device_models()),
            complete: self.is_complete(),
            as_of: self.models_as_of.unwrap_or(0),
            objects: models.into_iter().filter_map(|key| self.models.get(key)).map(upsert).collect(),
        };
        let devices = DesiredKind {
            r#type: Some(resource::devices()),
            complete: self.devices_as_of.is_some(),
            as_of: self.devices_as_of.unwrap_or(0),
            objects: devices.into_iter().map(|device| self.upsert_device(device)).collect(),
        };
        DesiredState { kinds: vec![models, devices], ..DesiredState::default() }
    }

    fn upsert_device(&self, device: &DeviceEntry) -> ObjectUpsert {
        let needs = device.model.as_ref().and_then(|key| self.models.get(key)).map(reference_to);
        ObjectUpsert { needs: needs.into_iter().collect(), ..upsert(&device.object) }
    }

    fn apply_device(&mut self, mut device: Value, as_of: u64, effects: &mut Vec<Effect>) {
        let key = key_of(&device);
        // A node gets no `status`.
        with_old_state_report(&mut device);
        let node = text(&device, "/spec/nodeName").to_owned();
        let model = text(&device, "/spec/deviceModelRef/name");
        let model = (!model.is_empty()).then(|| (key.0.clone(), model.to_owned()));
        let told = Told::of(&device);
        let object = envelope_of(resource::devices(), device);
        if let Some(old) = self.devices.get_mut(&key) {
            if old.object.uid == object.uid && old.object.projection_hash == object.projection_hash {
                old.object.resource_version = object.resource_version;
                return;
            }
            if old.object.uid != object.uid || old.node != node {
                self.remove_device(&key, object.version(), effects);
            }
        }
        // The new model first, so that one that both versions name is neither dropped nor sent again.
        if let (Some(model), false) = (&model, node.is_empty()) {
            self.add_user(model, &node, effects);
        }
        let old = self.devices.remove(&key);
        let entry = DeviceEntry { node: node.clone(), model, told, object };
        if !node.is_empty() {
            self.by_node.entry(node.clone()).or_default().insert(key.clone());
            let upsert = ObjectUpsert { as_of, ..self.upsert_device(&entry) };
            effects.push(Effect::Upsert(node, upsert));
        }
        self.devices.insert(key, entry);
        if let Some(DeviceEntry { node, model: Some(model), .. }) = old
            && !node.is_empty()
        {
            self.remove_user(&model, &node, as_of, effects);
        }
    }

    fn remove_device(&mut self, key: &Key, as_of: u64, effects: &mut Vec<Effect>) {
        let Some(entry) = self.devices.remove(key) else { return };
        if entry.node.is_empty() {
            return;
        }
        if let Some(devices) = self.by_node.get_mut(&entry.node) {
            devices.remove(key);
            if devices.is_empty() {
                self.by_node.remove(&entry.node);
            }
        }
        effects.push(Effect::Tombstone(entry.node.clone(), tombstone(&entry.object, as_of)));
        if let Some(model) = &entry.model {
            self.remove_user(model, &entry.node, as_of, effects);
        }
    }

    fn apply_model(&mut self, model: Value, as_of: u64, effects: &mut Vec<Effect>) {
        let key = key_of(&model);
        let object = envelope_of(resource::device_models(), model);
        let nodes: Vec<String> = self.users.get(&key).into_iter().flatten().map(|(node, _)| node.clone()).collect();
        if let Some(old) = self.models.get_mut(&key) {
            if old.uid == object.uid && old.projection_hash == object.projection_hash {
                old.resource_version = object.resource_version;
                return;
            }
            if old.uid != object.uid {
                let gone = tombstone(old, object.version());
                effects.extend(nodes.iter().map(|node| Effect::Tombstone(node.clone(), gone.clone())));
            }
        }
        let sent = ObjectUpsert { as_of, ..upsert(&object) };
        effects.extend(nodes.into_iter().map(|node| Effect::Upsert(node, sent.clone())));
        self.models.insert(key, object);
    }

    fn remove_model(&mut self, key: &Key, as_of: u64, effects: &mut Vec<Effect>) {
        let Some(model) = self.models.remove(key) else { return };
        for node in self.users.get(key).into_iter().flatten().map(|(node, _)| node) {
            effects.push(Effect::Tombstone(node.clone(), tombstone(&model, as_of)));
        }
    }

    fn add_user(&mut self, model: &Key, node: &str, effects: &mut Vec<Effect>) {
        let users = self.users.entry(model.clone()).or_default().entry(node.to_owned()).or_insert(0);
        *users += 1;
        if *users == 1
            && let Some(object) = self.models.get(model)
        {
            let as_of = self.models_as_of.unwrap_or(0);
            effects.push(Effect::Upsert(node.to_owned(), ObjectUpsert { as_of, ..upsert(object) }));
        }
    }

    fn remove_user(&mut self, model: &Key, node: &str, as_of: u64, effects: &mut Vec<Effect>) {
        let Some(nodes) = self.users.get_mut(model) else { return };
        let Some(users) = nodes.get_mut(node) else { return };
        *users -= 1;
        if *users > 0 {
            return;
        }
        nodes.remove(node);
        if nodes.is_empty() {
            self.users.remove(model);
        }
        if let Some(object) = self.models.get(model) {
            effects.push(Effect::Tombstone(node.to_owned(), tombstone(object, as_of)));
        }
    }
}

/// A list that is older than what was known says nothing about what is missing in it.
fn went_back(effects: &mut Vec<Effect>) {
    effects.retain(|effect| !matches!(effect, Effect::Tombstone(..)));
    effects.push(Effect::Compare);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn device(name: &str, node: &str, model: &str, version: u64) -> Value {
        json!({"metadata": {"name": name, "namespace": "ns", "uid": format!("u-{name}"),
                "resourceVersion": version.to_string()},
            "spec": {"nodeName": node, "deviceModelRef": {"name": model}, "properties": [{"name": version.to_string()}]}})
    }

    fn model(name: &str, version: u64) -> Value {
        json!({"metadata": {"name": name, "namespace": "ns", "uid": format!("u-{name}"),
                "resourceVersion": version.to_string()}, "spec": {"protocol": version.to_string()}})
    }

    fn said(effects: &[Effect]) -> Vec<String> {
        let name = |key: &Option<kubeedge_proto::v1::ObjectKey>| key.as_ref().unwrap().name.clone();
        effects
            .iter()
            .map(|effect| match effect {
                Effect::Upsert(node, upsert) => format!("{node}+{}", name(&upsert.object.as_ref().unwrap().key)),
                Effect::Tombstone(node, gone) => format!("{node}-{}", name(&gone.key)),
                Effect::Compare => "compare".into(),
            })
            .collect()
    }

    /// P-NEEDS-FIRST
    #[test]
    fn a_model_comes_before_the_first_device_of_it_and_goes_after_the_last() {
        let mut desired = Desired::default();
        assert_eq!(said(&desired.models_replaced(vec![model("m", 1)], 1)), [""; 0], "nobody needs it yet");
        assert_eq!(said(&desired.devices_replaced(vec![device("a", "n", "m", 2)], 2)), ["n+m", "n+a"]);
        let second = desired.device_applied(device("b", "n", "m", 3));
        assert_eq!(said(&second), ["n+b"]);
        let Effect::Upsert(_, upsert) = &second[0] else { panic!("{second:?}") };
        assert_eq!(upsert.needs[0].uid, "u-m");
        assert_eq!(said(&desired.device_deleted(&device("a", "n", "m", 4))), ["n-a"]);
        assert_eq!(said(&desired.device_deleted(&device("b", "n", "m", 5))), ["n-b", "n-m"]);
    }

    #[test]
    fn a_device_that_moves_ends_at_the_old_node_and_begins_at_the_new() {
        let mut desired = Desired::default();
        desired.models_replaced(vec![model("m", 1)], 1);
        desired.devices_replaced(vec![device("a", "n1", "m", 2)], 2);
        assert_eq!(said(&desired.device_applied(device("a", "n2", "m", 3))), ["n1-a", "n1-m", "n2+m", "n2+a"]);
        assert_eq!(desired.device(&("ns".into(), "a".into())), Some(("n2", "u-a")));
        assert_eq!(said(&desired.device_applied(device("a", "", "m", 4))), ["n2-a", "n2-m"]);
        assert!(desired.snapshot("n2").kinds.iter().all(|kind| kind.objects.is_empty()));
    }

    #[test]
    fn a_node_learns_of_a_state_report_that_stands_in_a_devices_status() {
        let mut desired = Desired::default();
        let mut old = device("a", "n", "", 2);
        old["status"] = json!({"reportToCloud": false, "reportCycle": 9});
        let effects = desired.device_applied(old);
        let [Effect::Upsert(_, upsert)] = effects.as_slice() else { panic!("{effects:?}") };
        let sent: Value = serde_json::from_slice(&upsert.object.as_ref().unwrap().json).unwrap();
        assert_eq!(sent["spec"]["stateReport"], json!({"reportToCloud": false, "reportCycle": 9}));
        assert!(!desired.told(&("ns".into(), "a".into())).unwrap().state);
    }

    #[test]
    fn a_list_that_is_older_ends_nothing() {
        let mut desired = Desired::default();
        desired.models_replaced(vec![], 9);
        desired.devices_replaced(vec![device("a", "n", "", 9)], 9);
        assert_eq!(said(&desired.devices_replaced(vec![], 5)), ["compare"]);
    }

    proptest! {
        /// Whatever happens in whatever order, what was sent to a node is what the snapshot says.
        #[test]
        fn what_was_sent_is_what_is_desired(steps in prop::collection::vec((0..4u8, 0..4u8, 0..3u8, 0..3u8), 1..60)) {
            let mut desired = Desired::default();
            desired.models_replaced(vec![], 1);
            desired.devices_replaced(vec![], 1);
            let mut nodes: HashMap<String, BTreeMap<String, String>> = HashMap::new();
            for (version, (what, name, node, kind)) in (2..).zip(steps) {
                let (name, kind) = (format!("d{name}"), format!("m{kind}"));
                let node = if node == 0 { String::new() } else { format!("n{node}") };
                let effects = match what {
                    0 => desired.model_applied(model(&kind, version)),
                    1 => desired.model_deleted(&model(&kind, version)),
                    2 => desired.device_applied(device(&name, &node, &kind, version)),
                    _ => desired.device_deleted(&device(&name, &node, &kind, version)),
                };
                for effect in effects {
                    match effect {
                        Effect::Upsert(node, upsert) => {
                            let object = upsert.object.unwrap();
                            let has = nodes.entry(node).or_default();
                            for need in &upsert.needs {
                                prop_assert!(has.contains_key(&need.uid), "it needs what was not sent");
                            }
                            has.insert(object.uid, object.resource_version);
                        }
                        Effect::Tombstone(node, gone) => {
                            prop_assert!(nodes.entry(node).or_default().remove(&gone.uid).is_some());
                        }
                        Effect::Compare => {}
                    }
                }
                for (node, has) in &nodes {
                    let kinds = desired.snapshot(node).kinds;
                    let wanted: BTreeSet<String> = kinds
                        .into_iter()
                        .flat_map(|kind| kind.objects)
                        .map(|upsert| upsert.object.unwrap().uid)
                        .collect();
                    prop_assert_eq!(&wanted, &has.keys().cloned().collect::<BTreeSet<_>>());
                }
            }
        }
    }
}
