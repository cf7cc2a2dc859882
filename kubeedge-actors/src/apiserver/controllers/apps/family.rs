//! What a controller decides from: an object, what belongs to it, and what it depends on.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{Hash as _, Hasher};
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::{Value, json};

use super::{Action, Kinds, Plan, Resource};
use crate::apiserver::kinds::fields::{list, text};
use crate::apiserver::label_selector::{matches, requirements};
use crate::apiserver::object::{Object, metadata};
use crate::apiserver::storage::{KindId, Storage};

/// One object with the objects around it.
#[derive(Clone, Debug, Default)]
pub(super) struct Family {
    pub(super) owner: Value,
    pub(super) pods: Vec<Value>,
    pub(super) sets: Vec<Value>,
    pub(super) revisions: Vec<Value>,
    /// What of the nodes decides where a pod may run.
    pub(super) nodes: Vec<Arc<Value>>,
    /// Names in the namespace that something new may not have: those of ReplicaSets, or of revisions.
    pub(super) taken_names: BTreeSet<String>,
    /// Whether nothing new can be made, because the namespace is ending.
    pub(super) closed: bool,
}

impl Family {
    pub(super) fn new(owner: Value) -> Self {
        Self { owner, ..Self::default() }
    }

    pub(super) fn add(&mut self, resource: Resource, object: Value) {
        match resource {
            Resource::Pods => self.pods.push(object),
            Resource::ReplicaSets => self.sets.push(object),
            Resource::Revisions => self.revisions.push(object),
            Resource::Deployments | Resource::DaemonSets | Resource::StatefulSets => {}
        }
    }
}

/// Objects of a namespace that have this owner, and those that fit its selector and have no owner of their own yet.
fn kin(storage: &Storage, id: KindId, owner: &Object, value: &Value) -> Vec<Arc<Object>> {
    let selector = requirements(&value["spec"]["selector"]).filter(|all| !all.is_empty());
    let (_, mut all) = storage.list(id, Some(&owner.key.namespace));
    all.retain(|object| {
        object.owners.contains(&owner.uid)
            || (selector.as_ref().is_some_and(|selector| matches(selector, |key| object.label(key)))
                && controller_of(&object.value(storage.kind(id))).is_none())
    });
    all
}

/// The pods of a ReplicaSet.
pub(super) fn of_replica_set(
    storage: &Storage,
    kinds: Kinds,
    owner: &Object,
    value: &Value,
) -> Vec<(Resource, Arc<Object>)> {
    kin(storage, kinds.pods, owner, value).into_iter().map(|pod| (Resource::Pods, pod)).collect()
}

/// The ReplicaSets of a Deployment, and their pods.
pub(super) fn of_deployment(
    storage: &Storage,
    kinds: Kinds,
    owner: &Object,
    value: &Value,
) -> Vec<(Resource, Arc<Object>)> {
    let sets = kin(storage, kinds.sets, owner, value);
    let (_, pods) = storage.list(kinds.pods, Some(&owner.key.namespace));
    let pods = pods.into_iter().filter(|pod| sets.iter().any(|set| pod.owners.contains(&set.uid)));
    let pods: Vec<_> = pods.map(|pod| (Resource::Pods, pod)).collect();
    sets.into_iter().map(|set| (Resource::ReplicaSets, set)).chain(pods).collect()
}

/// The pods of a DaemonSet or StatefulSet, and its revisions.
pub(super) fn of_revisioned(
    storage: &Storage,
    kinds: Kinds,
    owner: &Object,
    value: &Value,
) -> Vec<(Resource, Arc<Object>)> {
    let pods = kin(storage, kinds.pods, owner, value).into_iter().map(|pod| (Resource::Pods, pod));
    let (_, revisions) = storage.list(kinds.revisions, Some(&owner.key.namespace));
    let revisions = revisions.into_iter().filter(|revision| revision.owners.contains(&owner.uid));
    pods.chain(revisions.map(|revision| (Resource::Revisions, revision))).collect()
}

/// What of each node decides where a pod may run, read once for each version: nodes report all the time, and what they
/// report seldom changes any of it.
#[derive(Debug, Default)]
pub(super) struct Nodes(Mutex<BTreeMap<String, (u64, Arc<Value>)>>);

impl Nodes {
    /// Reads the nodes that have changed, forgets those that are gone.
    pub(super) fn refresh(&self, storage: &Storage, id: KindId) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (_, all) = storage.list(id, None);
        let mut next = BTreeMap::new();
        for node in all {
            let facts = match known.remove(&node.key.name) {
                Some((version, facts)) if version == node.resource_version => facts,
                _ => Arc::new(facts(&node.value(storage.kind(id)))),
            };
            next.insert(node.key.name.clone(), (node.resource_version, facts));
        }
        *known = next;
    }

    /// All of them; `hasher` takes what they say.
    pub(super) fn all(&self, hasher: &mut impl Hasher) -> Vec<Arc<Value>> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let all: Vec<Arc<Value>> = known.values().map(|(_, facts)| facts.clone()).collect();
        for node in &all {
            node.hash(hasher);
        }
        all
    }
}

fn facts(node: &Value) -> Value {
    let mut facts = json!({"metadata": {"name": node["metadata"]["name"], "labels": node["metadata"]["labels"]}});
    if let Some(ending) = node["metadata"].get("deletionTimestamp") {
        facts["metadata"]["deletionTimestamp"] = ending.clone();
    }
    facts["spec"] = json!({"taints": node["spec"]["taints"]});
    facts
}

/// The owner that looks after an object.
pub(super) fn controller_of(object: &Value) -> Option<&Value> {
    list(object, "/metadata/ownerReferences").iter().find(|owner| owner["controller"] == true)
}

/// Whether `owner` looks after `object`.
pub(super) fn is_controlled_by(object: &Value, owner: &Value) -> bool {
    controller_of(object).is_some_and(|reference| reference["uid"] == owner["metadata"]["uid"])
}

/// A reference to `owner` as the one that looks after an object.
pub(super) fn controller_reference(owner: &Value) -> Value {
    json!({
        "apiVersion": owner["apiVersion"], "kind": owner["kind"], "name": owner["metadata"]["name"],
        "uid": owner["metadata"]["uid"], "controller": true, "blockOwnerDeletion": true,
    })
}

/// Whether an object is being deleted.
pub(super) fn is_ending(object: &Value) -> bool {
    object["metadata"].get("deletionTimestamp").is_some()
}

/// The objects that are the owner's: those it looks after and that fit its selector, and from now on those that nobody
/// looks after. Those that do not fit any more are let go. A family that is ending takes nothing new and lets nothing go.
pub(super) fn claim(owner: &Value, resource: Resource, all: &[Value], plan: &mut Plan) -> Vec<Value> {
    let Some(selector) = requirements(&owner["spec"]["selector"]).filter(|all| !all.is_empty()) else {
        return Vec::new();
    };
    let uid = text(owner, "/metadata/uid");
    let mut mine = Vec::new();
    for object in all {
        let labels = &object["metadata"]["labels"];
        let fits = matches(&selector, |key| labels.get(key).and_then(Value::as_str));
        match (controller_of(object), fits) {
            (Some(reference), true) if reference["uid"] == uid => mine.push(object.clone()),
            (Some(reference), false) if reference["uid"] == uid && !is_ending(owner) => {
                let mut let_go = object.clone();
                let owners = metadata(&mut let_go).get_mut("ownerReferences").and_then(Value::as_array_mut);
                if let Some(owners) = owners {
                    owners.retain(|one| one["uid"] != uid);
                    if owners.is_empty() {
                        metadata(&mut let_go).remove("ownerReferences");
                    }
                }
                plan.actions.push(Action::Put(resource, let_go));
            }
            (None, true) if !is_ending(owner) && !is_ending(object) => {
                let mut taken = object.clone();
                let owners = metadata(&mut taken).entry("ownerReferences").or_insert_with(|| json!([]));
                if let Some(owners) = owners.as_array_mut() {
                    // It may be named already, as an owner that does not look after it.
                    owners.retain(|one| one["uid"] != uid);
                    owners.push(controller_reference(owner));
                }
                plan.actions.push(Action::Put(resource, taken.clone()));
                mine.push(taken);
            }
            _ => {}
        }
    }
    mine
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fits_is_taken_what_does_not_is_let_go_and_what_is_anothers_stays() {
        let owner = json!({"apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": {"name": "w", "uid": "u"},
            "spec": {"selector": {"matchLabels": {"app": "web"}}}});
        let pod = |name: &str, app: &str, owner: Option<&str>| {
            let mut pod = json!({"metadata": {"name": name, "labels": {"app": app}}});
            if let Some(uid) = owner {
                pod["metadata"]["ownerReferences"] = json!([{"uid": uid, "controller": true}]);
            }
            pod
        };
        let mut ending = pod("ending", "web", None);
        ending["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        let all = [
            pod("mine", "web", Some("u")),
            pod("loose", "web", None),
            pod("strayed", "db", Some("u")),
            pod("other", "web", Some("x")),
            pod("else", "db", None),
            ending,
        ];
        let mut plan = Plan::default();
        let mine = claim(&owner, Resource::Pods, &all, &mut plan);
        let names: Vec<&str> = mine.iter().map(|pod| text(pod, "/metadata/name")).collect();
        assert_eq!(names, ["mine", "loose"]);
        assert!(is_controlled_by(&mine[1], &owner));
        let strayed = json!({"metadata": {"name": "strayed", "labels": {"app": "db"}}});
        assert_eq!(plan.actions, [Action::Put(Resource::Pods, mine[1].clone()), Action::Put(Resource::Pods, strayed)]);

        let mut leaving = owner.clone();
        leaving["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        let mut plan = Plan::default();
        assert_eq!(claim(&leaving, Resource::Pods, &all, &mut plan).len(), 1);
        assert!(plan.actions.is_empty());
        let all_of_them = json!({"metadata": {"uid": "u"}, "spec": {"selector": {}}});
        assert!(claim(&all_of_them, Resource::Pods, &all, &mut plan).is_empty(), "an empty selector owns nothing");
    }
}
