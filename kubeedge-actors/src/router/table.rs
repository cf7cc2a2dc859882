//! The rules of the cluster: which node holds which, and where a message goes. Pure: watch events in, effects out.
//!
//! A node holds the rules whose messages begin there: those whose source names it. Endpoints stay at the cloud, and so do
//! targets: where a message goes is decided when it comes, by the rules of that moment.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use kubeedge_proto::{
    NodeName, resource,
    v1::{DesiredKind, DesiredState, KubeObject, ObjectTombstone, ObjectUpsert},
};
use serde_json::Value;

use crate::{
    controllers::objects::{envelope_of, key_of, text, tombstone, upsert, version_of},
    rule::{
        template::{Segment, append},
        types::{EndpointType, RuleEndpointSpec, RuleSpec, Source, Target},
    },
};

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

/// Where a message goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Way {
    /// Posted to a URL.
    Rest {
        /// The URL.
        url: String,
    },
    /// Published at a node.
    EventBus {
        /// The node.
        node: NodeName,
        /// The topic.
        topic: String,
    },
    /// Sent to a service at a node.
    ServiceBus {
        /// The node.
        node: NodeName,
        /// `host:port` there.
        service: String,
        /// The path there.
        path: String,
    },
}

/// Why it goes nowhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NoWay {
    /// No rule takes it.
    Unknown(String),
    /// This rule would, and cannot be carried out; why.
    Faulty(Key, String),
    /// This rule would, and the request cannot go its way; why.
    Wrong(Key, String),
}

struct Entry {
    object: KubeObject,
    spec: RuleSpec,
    /// The error: what is wrong with it.
    ends: Result<(Source, Target), String>,
}

impl Entry {
    /// The node that holds it.
    fn node(&self) -> Option<&str> {
        self.ends.as_ref().ok().and_then(|(source, _)| source.node()).map(NodeName::as_str)
    }
}

/// What a rule takes of a path: how much it says about it, and how many segments that is.
struct Taken {
    rank: (usize, usize),
    segments: usize,
}

/// What is known of the rules.
#[derive(Default)]
pub struct Table {
    rules: BTreeMap<Key, Entry>,
    endpoints: BTreeMap<Key, Result<RuleEndpointSpec, String>>,
    by_node: HashMap<String, BTreeSet<Key>>,
    as_of: Option<u64>,
    endpoints_listed: bool,
}

impl Table {
    /// Whether both lists were read.
    pub fn is_complete(&self) -> bool {
        self.as_of.is_some() && self.endpoints_listed
    }

    /// The uid of a rule.
    pub fn uid(&self, key: &Key) -> Option<&str> {
        self.rules.get(key).map(|entry| entry.object.uid.as_str())
    }

    /// Everything desired at one node.
    pub fn snapshot(&self, node: &str) -> DesiredState {
        let Some(as_of) = self.as_of else { return DesiredState::default() };
        let keys = self.by_node.get(node).into_iter().flatten();
        let objects = keys.filter_map(|key| self.rules.get(key)).map(|entry| upsert(&entry.object)).collect();
        let kind = DesiredKind { r#type: Some(resource::rules()), complete: true, as_of, objects };
        DesiredState { kinds: vec![kind], ..DesiredState::default() }
    }

    /// A complete list of the rules: what is not in it is gone.
    pub fn replaced(&mut self, rules: Vec<Value>, as_of: u64) -> Vec<Effect> {
        let mut effects = Vec::new();
        let mut listed = HashSet::new();
        for rule in rules {
            listed.insert(key_of(&rule));
            self.apply(rule, as_of, &mut effects);
        }
        let gone: Vec<Key> = self.rules.keys().filter(|key| !listed.contains(*key)).cloned().collect();
        for key in gone {
            self.remove(&key, as_of, &mut effects);
        }
        if self.as_of.replace(as_of).is_some_and(|before| as_of < before) {
            // A list that is older than what was known says nothing about what is missing in it.
            effects.retain(|effect| !matches!(effect, Effect::Tombstone(..)));
            effects.push(Effect::Compare);
        }
        effects
    }

    /// A rule was added or modified.
    pub fn applied(&mut self, rule: Value) -> Vec<Effect> {
        let mut effects = Vec::new();
        let version = version_of(&rule);
        self.apply(rule, version, &mut effects);
        self.bookmark(version);
        effects
    }

    /// A rule was deleted.
    pub fn deleted(&mut self, rule: &Value) -> Vec<Effect> {
        let mut effects = Vec::new();
        let (key, version) = (key_of(rule), version_of(rule));
        if self.rules.get(&key).is_some_and(|entry| entry.object.uid == text(rule, "/metadata/uid")) {
            self.remove(&key, version, &mut effects);
        }
        self.bookmark(version);
        effects
    }

    /// The watch of rules has come to here.
    pub fn bookmark(&mut self, version: u64) {
        if let Some(as_of) = &mut self.as_of {
            *as_of = (*as_of).max(version);
        }
    }

    /// A complete list of the endpoints.
    pub fn endpoints_replaced(&mut self, endpoints: &[Value]) {
        self.endpoints = endpoints.iter().map(|endpoint| (key_of(endpoint), spec_of(endpoint))).collect();
        self.endpoints_listed = true;
    }

    /// An endpoint was added or modified.
    pub fn endpoint_applied(&mut self, endpoint: &Value) {
        self.endpoints.insert(key_of(endpoint), spec_of(endpoint));
    }

    /// An endpoint was deleted.
    pub fn endpoint_deleted(&mut self, endpoint: &Value) {
        self.endpoints.remove(&key_of(endpoint));
    }

    fn apply(&mut self, rule: Value, as_of: u64, effects: &mut Vec<Effect>) {
        let key = key_of(&rule);
        let (spec, ends) = match serde_json::from_value::<RuleSpec>(rule["spec"].clone()) {
            Ok(spec) => {
                let ends = spec.ends();
                (spec, ends)
            }
            Err(error) => (RuleSpec::default(), Err(format!("spec: {error}"))),
        };
        let entry = Entry { object: envelope_of(resource::rules(), rule), spec, ends };
        if let Some(old) = self.rules.get_mut(&key) {
            if old.object.uid == entry.object.uid && old.object.projection_hash == entry.object.projection_hash {
                old.object.resource_version = entry.object.resource_version;
                return;
            }
            if old.object.uid != entry.object.uid || old.node() != entry.node() {
                let version = entry.object.version();
                self.remove(&key, version, effects);
            }
        }
        if let Some(node) = entry.node() {
            self.by_node.entry(node.to_owned()).or_default().insert(key.clone());
            effects.push(Effect::Upsert(node.to_owned(), ObjectUpsert { as_of, ..upsert(&entry.object) }));
        }
        self.rules.insert(key, entry);
    }

    fn remove(&mut self, key: &Key, as_of: u64, effects: &mut Vec<Effect>) {
        let Some(entry) = self.rules.remove(key) else { return };
        let Some(node) = entry.node() else { return };
        if let Some(held) = self.by_node.get_mut(node) {
            held.remove(key);
            if held.is_empty() {
                self.by_node.remove(node);
            }
        }
        effects.push(Effect::Tombstone(node.to_owned(), tombstone(&entry.object, as_of)));
    }

    /// The way of a request: the rule of the namespace whose path says most about it, and where that leads.
    pub fn of_request(&self, node: &NodeName, namespace: &str, path: &[Segment<'_>]) -> Result<(Key, Way), NoWay> {
        let from = (namespace.to_owned(), String::new());
        let rules = self.rules.range(from..).take_while(|((of, _), _)| of == namespace);
        let mut best: Option<(Taken, &Key, &Entry, &Target)> = None;
        for (key, entry) in rules {
            let Ok((Source::Rest { path: template }, target)) = &entry.ends else { continue };
            let Some(segments) = template.takes(path) else { continue };
            let taken = Taken { rank: template.rank(), segments };
            // Of two that say as much the first by name counts.
            if best.as_ref().is_none_or(|(best, ..)| taken.rank > best.rank) {
                best = Some((taken, key, entry, target));
            }
        }
        let Some((Taken { segments: taken, .. }, key, entry, target)) = best else {
            return Err(NoWay::Unknown(format!("no rule of namespace {namespace} takes this path")));
        };
        let way = self.way(key, entry, EndpointType::Rest, target, node, &path[taken..])?;
        Ok((key.clone(), way))
    }

    /// The way of what a node sends for a rule.
    pub fn of_message(&self, node: &NodeName, from: EndpointType, key: &Key) -> Result<Way, NoWay> {
        let unknown = || NoWay::Unknown(format!("rule {}/{} takes nothing of node {node}", key.0, key.1));
        let entry = self.rules.get(key).ok_or_else(unknown)?;
        let Ok((source, target)) = &entry.ends else { return Err(unknown()) };
        if source.node() != Some(node) || source.endpoint() != from {
            return Err(unknown());
        }
        self.way(key, entry, from, target, node, &[])
    }

    fn way(
        &self,
        key: &Key,
        entry: &Entry,
        from: EndpointType,
        target: &Target,
        node: &NodeName,
        rest: &[Segment<'_>],
    ) -> Result<Way, NoWay> {
        let faulty = |why: String| NoWay::Faulty(key.clone(), why);
        self.endpoint(&key.0, &entry.spec.source, from).map_err(faulty)?;
        let endpoint = self.endpoint(&key.0, &entry.spec.target, target.endpoint()).map_err(faulty)?;
        Ok(match target {
            Target::Rest { url } => Way::Rest { url: url.clone() },
            Target::EventBus { topic, node: at } => {
                // What is left of the path becomes levels of the topic.
                let bad = |segment: &&Segment<'_>| segment.text.contains(['/', '+', '#']);
                if let Some(segment) = rest.iter().find(bad) {
                    let why = format!("{:?} is no level of a topic: it holds /, + or #", segment.text);
                    return Err(NoWay::Wrong(key.clone(), why));
                }
                let levels = rest.iter().map(|segment| segment.text.as_str());
                let levels: Vec<&str> = levels.filter(|level| !level.is_empty()).collect();
                let topic = match levels.is_empty() {
                    true => topic.clone(),
                    false => format!("{}/{}", topic.trim_end_matches('/'), levels.join("/")),
                };
                Way::EventBus { node: at.as_ref().unwrap_or(node).clone(), topic }
            }
            Target::ServiceBus { path, node: at } => {
                let service = endpoint.service().map_err(|why| faulty(format!("its target's {why}")))?;
                Way::ServiceBus { node: at.as_ref().unwrap_or(node).clone(), service, path: append(path, rest) }
            }
        })
    }

    fn endpoint(&self, namespace: &str, name: &str, type_: EndpointType) -> Result<&RuleEndpointSpec, String> {
        let key = (namespace.to_owned(), name.to_owned());
        match self.endpoints.get(&key) {
            None => Err(format!("there is no RuleEndpoint {namespace}/{name}")),
            Some(Err(error)) => Err(format!("RuleEndpoint {namespace}/{name}: {error}")),
            Some(Ok(spec)) if spec.rule_endpoint_type != type_ => {
                Err(format!("RuleEndpoint {namespace}/{name} is of type {}, expected {type_}", spec.rule_endpoint_type))
            }
            Some(Ok(spec)) => Ok(spec),
        }
    }
}

fn spec_of(endpoint: &Value) -> Result<RuleEndpointSpec, String> {
    serde_json::from_value(endpoint["spec"].clone()).map_err(|error| format!("spec: {error}"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::rule::template::segments;

    fn rule(name: &str, version: u64, source: Value, target: Value) -> Value {
        let type_of = |map: &Value, keys: [&str; 3]| {
            let found = ["rest", "eventbus", "servicebus"].into_iter().zip(keys).find(|(_, key)| map[key].is_string());
            found.unwrap().0
        };
        json!({
            "metadata": {"name": name, "namespace": "ns", "uid": format!("u-{name}"),
                "resourceVersion": version.to_string()},
            "spec": {
                "source": type_of(&source, ["path", "topic", "target_url"]), "sourceResource": source,
                "target": type_of(&target, ["resource", "topic", "path"]), "targetResource": target,
            },
        })
    }

    fn endpoint(name: &str, type_: &str) -> Value {
        json!({"metadata": {"name": name, "namespace": "ns"},
            "spec": {"ruleEndpointType": type_, "properties": {"service_port": "8080"}}})
    }

    fn table() -> Table {
        let mut table = Table::default();
        table.endpoints_replaced(&["rest", "eventbus", "servicebus"].map(|type_| endpoint(type_, type_)));
        table
    }

    fn node(name: &str) -> NodeName {
        name.parse().unwrap()
    }

    fn asked(table: &Table, path: &str) -> Result<(String, Way), NoWay> {
        let way = table.of_request(&node("n"), "ns", &segments(path).unwrap());
        way.map(|(key, way)| (key.1, way))
    }

    #[test]
    fn the_path_that_says_most_counts_and_the_rest_goes_on() {
        let mut table = table();
        let service = |path: &str| json!({"path": path});
        let rules = [
            rule("all", 1, json!({"path": "/"}), service("/all")),
            rule("any", 2, json!({"path": "/a/{x}"}), service("/any")),
            rule("one", 3, json!({"path": "/a/b"}), service("/one")),
            rule("mqtt", 4, json!({"path": "/m"}), json!({"topic": "t"})),
        ];
        table.replaced(rules.into(), 4);
        let goes = |path: &str| match asked(&table, path).unwrap() {
            (_, Way::ServiceBus { service, path, .. }) => {
                assert_eq!(service, "127.0.0.1:8080");
                path
            }
            (_, Way::EventBus { topic, .. }) => topic,
            (_, Way::Rest { url }) => url,
        };
        assert_eq!(goes("/a/b/c%20d"), "/one/c%20d");
        assert_eq!(goes("/a/c"), "/any");
        assert_eq!(goes("/ab"), "/all/ab");
        assert_eq!(goes("/m/x/y%20z/"), "t/x/y z");
        assert!(matches!(asked(&table, "/m/x%2Fy"), Err(NoWay::Wrong(..))));
        assert!(matches!(asked(&table, "/m/%23"), Err(NoWay::Wrong(..))));
        let elsewhere = table.of_request(&node("n"), "other", &segments("/a").unwrap());
        assert!(matches!(elsewhere, Err(NoWay::Unknown(_))));
    }

    #[test]
    fn a_rule_counts_at_once_and_says_what_it_lacks() {
        let mut table = Table::default();
        table.replaced(vec![], 1);
        table.applied(rule("r", 2, json!({"path": "/a"}), json!({"topic": "t"})));
        let lacks = |table: &Table| match asked(table, "/a") {
            Err(NoWay::Faulty(_, why)) => why,
            other => panic!("{other:?}"),
        };
        assert!(lacks(&table).contains("no RuleEndpoint ns/rest"));
        table.endpoint_applied(&endpoint("rest", "rest"));
        table.endpoint_applied(&endpoint("eventbus", "servicebus"));
        assert!(lacks(&table).contains("of type servicebus, expected eventbus"));
        table.endpoint_applied(&endpoint("eventbus", "eventbus"));
        assert_eq!(asked(&table, "/a").unwrap().1, Way::EventBus { node: node("n"), topic: "t".into() });
        table.applied(rule("r", 3, json!({"path": "/b"}), json!({"topic": "t"})));
        assert!(matches!(asked(&table, "/a"), Err(NoWay::Unknown(_))));
        table.deleted(&rule("r", 4, json!({"path": "/b"}), json!({"topic": "t"})));
        assert!(matches!(asked(&table, "/b"), Err(NoWay::Unknown(_))));
    }

    #[test]
    fn a_node_uses_only_rules_that_begin_at_it() {
        let mut table = table();
        let mqtt = |node: &str| json!({"topic": "t", "node_name": node});
        let effects = table.replaced(vec![rule("r", 1, mqtt("a"), json!({"resource": "http://x"}))], 1);
        assert!(matches!(&effects[..], [Effect::Upsert(at, _)] if at == "a"));
        let key = ("ns".to_owned(), "r".to_owned());
        let way = |table: &Table, at: &str, from| table.of_message(&node(at), from, &key);
        assert_eq!(way(&table, "a", EndpointType::EventBus), Ok(Way::Rest { url: "http://x".into() }));
        for (at, from) in [("b", EndpointType::EventBus), ("a", EndpointType::ServiceBus), ("a", EndpointType::Rest)] {
            assert!(matches!(way(&table, at, from), Err(NoWay::Unknown(_))), "{at} {from}");
        }
        let moved = table.applied(rule("r", 2, mqtt("b"), json!({"path": "/x", "node_name": "c"})));
        assert!(matches!(&moved[..], [Effect::Tombstone(from, _), Effect::Upsert(to, _)] if from == "a" && to == "b"));
        let expected = Way::ServiceBus { node: node("c"), service: "127.0.0.1:8080".into(), path: "/x".into() };
        assert_eq!(way(&table, "b", EndpointType::EventBus), Ok(expected));
        assert_eq!(table.snapshot("a").kinds[0].objects.len(), 0);
        assert_eq!(table.snapshot("b").kinds[0].objects.len(), 1);
        let mut counted = rule("r", 3, mqtt("b"), json!({"path": "/x", "node_name": "c"}));
        counted["status"] = json!({"successMessages": 7});
        assert_eq!(table.applied(counted), [], "a status is nothing for the node");
    }

    proptest! {
        /// What nodes are told, told again from the first on, is what they should hold.
        #[test]
        fn effects_lead_to_the_snapshot(steps in prop::collection::vec((0_usize..3, prop::option::of(0_usize..3)), 1..30)) {
            let mut table = table();
            table.replaced(vec![], 0);
            let mut held: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
            for (version, (name, at)) in steps.into_iter().enumerate() {
                let version = version as u64 + 1;
                let name = format!("r{name}");
                let source = |at: usize| json!({"topic": format!("t{version}"), "node_name": format!("n{at}")});
                let target = json!({"resource": "http://x"});
                let effects = match at {
                    Some(at) => table.applied(rule(&name, version, source(at), target)),
                    None => table.deleted(&rule(&name, version, source(0), target)),
                };
                for effect in effects {
                    match effect {
                        Effect::Upsert(node, upsert) => {
                            let name = upsert.object.unwrap().key.unwrap().name;
                            held.entry(node).or_default().insert(name);
                        }
                        Effect::Tombstone(node, gone) => {
                            held.entry(node).or_default().remove(&gone.key.unwrap().name);
                        }
                        Effect::Compare => {}
                    }
                }
            }
            for node in ["n0", "n1", "n2"] {
                let snapshot = table.snapshot(node).kinds.remove(0).objects;
                let names: BTreeSet<String> = snapshot.into_iter().map(|it| it.object.unwrap().key.unwrap().name).collect();
                prop_assert_eq!(&names, held.entry(node.to_owned()).or_default());
            }
        }
    }
}
