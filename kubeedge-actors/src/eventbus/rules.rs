//! Which topics the cloud's rules want of this node. Pure.

use std::collections::BTreeMap;

use kubeedge_proto::v1::{KubeObject, ObjectKey};
use serde::Deserialize;

use crate::rule::types::{RuleSpec, Source};

/// Namespace and name.
type Key = (String, String);

/// The topic of each rule that begins on MQTT.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules(BTreeMap<Key, String>);

/// What follows for the subscriptions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// To be subscribed to.
    pub begins: Option<String>,
    /// Subscribed to no longer.
    pub ends: Option<String>,
}

impl Rules {
    /// A rule is there, in this version. The error: it cannot be understood, and counts as gone.
    pub fn set(&mut self, object: &KubeObject) -> (Change, Result<(), String>) {
        #[derive(Deserialize)]
        struct Rule {
            spec: RuleSpec,
        }
        let key = object.key.clone().unwrap_or_default();
        let source = serde_json::from_slice::<Rule>(&object.json)
            .map_err(|error| error.to_string())
            .and_then(|rule| rule.spec.source());
        match source {
            Ok(Source::EventBus { topic, .. }) => {
                let topic = format!("{}/{topic}", key.namespace);
                let before = self.0.insert((key.namespace, key.name), topic.clone());
                if before.as_ref() == Some(&topic) {
                    return (Change::default(), Ok(()));
                }
                (Change { begins: Some(topic), ends: before }, Ok(()))
            }
            other => (self.unset(&key), other.map(drop)),
        }
    }

    /// A rule is gone.
    pub fn unset(&mut self, key: &ObjectKey) -> Change {
        Change { begins: None, ends: self.0.remove(&(key.namespace.clone(), key.name.clone())) }
    }

    /// The rules that a message is for.
    pub fn of(&self, topic: &str) -> Vec<ObjectKey> {
        let rules = self.0.iter().filter(|(_, wanted)| *wanted == topic);
        rules.map(|((namespace, name), _)| ObjectKey::new(namespace, name)).collect()
    }

    /// All of them.
    pub fn keys(&self) -> impl Iterator<Item = ObjectKey> + '_ {
        self.0.keys().map(|(namespace, name)| ObjectKey::new(namespace, name))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn rule(name: &str, resource: serde_json::Value) -> KubeObject {
        let json = json!({"spec": {"source": "s", "sourceResource": resource, "target": "t", "targetResource": {}}});
        KubeObject { key: Some(ObjectKey::new("ns", name)), json: json.to_string().into(), ..KubeObject::default() }
    }

    #[test]
    fn a_topic_is_the_namespace_and_what_the_rule_says_until_it_says_something_else() {
        let mut rules = Rules::default();
        let (change, good) = rules.set(&rule("a", json!({"topic": "t/1", "node_name": "n"})));
        assert_eq!((change.begins.as_deref(), change.ends, good), (Some("ns/t/1"), None, Ok(())));
        let again = rules.set(&rule("a", json!({"topic": "t/1", "node_name": "n"}))).0;
        assert_eq!(again, Change::default());
        rules.set(&rule("b", json!({"topic": "t/1", "node_name": "n"}))).1.unwrap();
        assert_eq!(rules.of("ns/t/1"), [ObjectKey::new("ns", "a"), ObjectKey::new("ns", "b")]);
        assert_eq!(rules.of("ns/t"), []);
        let other = rules.set(&rule("a", json!({"topic": "t/2", "node_name": "n"}))).0;
        assert_eq!(other, Change { begins: Some("ns/t/2".into()), ends: Some("ns/t/1".into()) });
        let (gone, good) = rules.set(&rule("a", json!({"target_url": "http://a", "node_name": "n"})));
        assert_eq!((gone.ends.as_deref(), good), (Some("ns/t/2"), Ok(())));
        let (_, bad) = rules.set(&rule("b", json!({})));
        assert!(bad.is_err() && rules.of("ns/t/1").is_empty());
        assert_eq!(rules.unset(&ObjectKey::new("ns", "b")), Change::default());
    }
}
