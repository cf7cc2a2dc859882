//! The garbage collector: dependents of what is gone, and the two finalizers of a deletion that concerns dependents.
//!
//! - `foregroundDeletion` on an ending object: its dependents are deleted, but those with another owner only forget it;
//!   when those that block it are gone, it goes.
//! - `orphan`: its dependents forget it, then it goes.
//! - An object none of whose owners exists any more is deleted; one that has others left forgets those that are gone. An
//!   owner in another namespace does not exist for it. An owner of a kind that is not served here counts as existing, and
//!   one with a namespace for an object without: nothing can be said about it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use super::super::Api;
use super::super::kind::Kind;
use super::super::meta::strings;
use super::super::object::{Object, api_version, metadata, text};
use super::super::status::Status;
use super::super::storage::{Change, KindId};
use super::super::verbs::delete::{DeleteOptions, Plan, plan};
use super::super::verbs::update::may_go;
use super::Again;

/// How often everything is looked at, beside changes.
const PERIOD: Duration = Duration::from_secs(60);
const FOREGROUND: &str = "foregroundDeletion";
const ORPHAN: &str = "orphan";

/// What there is to do to one object.
#[derive(Clone, Debug, PartialEq)]
enum Task {
    /// No owner is left of these, which are all it had.
    Collect(Box<[String]>),
    /// Its owner waits for its end.
    Delete,
    /// Its owner wants it to stay.
    Disown(String),
    /// Nothing holds it any more.
    Release(&'static str),
}

/// Does what follows from owners and finalizers, one step; its own changes wake it for the next.
pub(super) async fn reconcile(api: &Arc<Api>) -> Result<Again, Status> {
    for (id, key, task) in tasks(api) {
        let kind = api.storage.kind(id);
        let writer = api.storage.write().await;
        let Some(object) = writer.get(id, &key) else { continue };
        if let Some(change) = carry_out(api, id, kind, &object, &task)? {
            tracing::debug!(kind = kind.kind, name = key.name, ?task, "garbage collector");
            writer.commit(vec![change]).await?;
        }
    }
    Ok(Again::After(PERIOD))
}

fn tasks(api: &Api) -> Vec<(KindId, super::super::object::Key, Task)> {
    let all: Vec<(KindId, &'static Kind, Arc<Object>)> = api
        .storage
        .kinds()
        .flat_map(|(id, kind)| api.storage.list(id, None).1.into_iter().map(move |object| (id, kind, object)))
        .collect();
    // Looked at after the dependents: an owner is made before what it owns, so one that is not here is gone.
    let alive: Alive = api
        .storage
        .kinds()
        .flat_map(|(id, _)| api.storage.list(id, None).1)
        .map(|object| (object.uid.clone(), object.key.namespace.clone()))
        .collect();
    let served = |owner: &Value| {
        let mut kinds = api.storage.served();
        let found =
            kinds.find(|(_, kind)| kind.kind == text(owner, "kind") && api_version(kind) == text(owner, "apiVersion"));
        found.map(|(_, kind)| kind.namespaced)
    };
    let dependents = |uid: &str| {
        let uid = uid.to_owned();
        all.iter().filter(move |(_, _, object)| object.owners.contains(&uid))
    };
    let mut tasks = Vec::new();
    for (id, kind, object) in &all {
        if object.deleting {
            let value = object.value(kind);
            let has = |finalizer| strings(&value["metadata"], "finalizers").any(|one| one == finalizer);
            if has(ORPHAN) {
                tasks.extend(
                    dependents(&object.uid)
                        .map(|(d_id, _, dependent)| (*d_id, dependent.key.clone(), Task::Disown(object.uid.clone()))),
                );
                if dependents(&object.uid).next().is_none() {
                    tasks.push((*id, object.key.clone(), Task::Release(ORPHAN)));
                }
            } else if has(FOREGROUND) {
                let mut blocked = false;
                for (d_id, d_kind, dependent) in dependents(&object.uid) {
                    blocked |= blocks(&dependent.value(d_kind), &object.uid);
                    if dependent.deleting {
                        continue;
                    }
                    let others = dependent.owners.iter().any(|uid| *uid != object.uid && alive.contains_key(uid));
                    let task = if others { Task::Disown(object.uid.clone()) } else { Task::Delete };
                    tasks.push((*d_id, dependent.key.clone(), task));
                }
                if !blocked {
                    tasks.push((*id, object.key.clone(), Task::Release(FOREGROUND)));
                }
            }
        } else if object.owners.iter().any(|uid| !reaches(&alive, uid, &object.key.namespace)) {
            let value = object.value(kind);
            let gone = gone(&value, &alive, served);
            if gone.len() == object.owners.len() {
                tasks.push((*id, object.key.clone(), Task::Collect(object.owners.clone())));
            } else {
                tasks.extend(gone.into_iter().map(|uid| (*id, object.key.clone(), Task::Disown(uid))));
            }
        }
    }
    tasks
}

/// The namespace, or none, of each object by its uid.
type Alive = HashMap<String, String>;

/// Whether there is an owner of this uid for an object of `namespace`.
fn reaches(alive: &Alive, uid: &str, namespace: &str) -> bool {
    alive.get(uid).is_some_and(|of| of.is_empty() || of == namespace)
}

/// The uids of owners that do not exist for `object`. `served` says whether an owner's kind has namespaces, `None` when
/// it is not served.
fn gone(object: &Value, alive: &Alive, served: impl Fn(&Value) -> Option<bool>) -> Vec<String> {
    let namespace = text(&object["metadata"], "namespace");
    let owners = object["metadata"]["ownerReferences"].as_array();
    let gone = owners.into_iter().flatten().filter(|owner| match served(owner) {
        None => false,
        Some(true) if namespace.is_empty() => false,
        Some(_) => !reaches(alive, text(owner, "uid"), namespace),
    });
    gone.map(|owner| text(owner, "uid").to_owned()).collect()
}

fn blocks(dependent: &Value, uid: &str) -> bool {
    let owners = dependent["metadata"]["ownerReferences"].as_array();
    owners.into_iter().flatten().any(|owner| owner["uid"] == uid && owner["blockOwnerDeletion"] == true)
}

fn carry_out(api: &Api, id: KindId, kind: &Kind, object: &Object, task: &Task) -> Result<Option<Change>, Status> {
    let mut value = object.value(kind);
    match task {
        // Its owners have changed meanwhile: the next look decides anew.
        Task::Collect(owners) if object.owners != *owners => return Ok(None),
        Task::Collect(_) | Task::Delete => {
            let options = DeleteOptions { uid: Some(object.uid.clone()), ..DeleteOptions::default() };
            return Ok(match plan(kind, &value, &options, api.now())? {
                Plan::Nothing => None,
                Plan::Mark(value) => Some(Change::Put(id, value)),
                Plan::Remove(value) => Some(Change::Delete(id, value)),
            });
        }
        Task::Disown(uid) => retain(&mut value, "ownerReferences", |owner| owner["uid"] != uid.as_str()),
        Task::Release(finalizer) => retain(&mut value, "finalizers", |one| *one != *finalizer),
    }
    // Watchers see the last state that was stored.
    Ok(Some(if may_go(kind, &value) { Change::Delete(id, object.value(kind)) } else { Change::Put(id, value) }))
}

fn retain(object: &mut Value, member: &str, keep: impl Fn(&Value) -> bool) {
    let meta = metadata(object);
    let Some(list) = meta.get_mut(member).and_then(Value::as_array_mut) else { return };
    list.retain(keep);
    if list.is_empty() {
        meta.remove(member);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_owner_is_gone_when_nothing_of_its_uid_is_where_the_object_can_see_it() {
        let alive =
            Alive::from([("here", "a"), ("there", "b"), ("node", "")].map(|(u, n)| (u.to_owned(), n.to_owned())));
        let served = |owner: &Value| match text(owner, "kind") {
            "Node" => Some(false),
            "ConfigMap" => Some(true),
            _ => None,
        };
        let look = |namespace: &str, owners: &[(&str, &str)]| {
            let owners: Vec<Value> = owners.iter().map(|(kind, uid)| json!({"kind": kind, "uid": uid})).collect();
            gone(&json!({"metadata": {"namespace": namespace, "ownerReferences": owners}}), &alive, served)
        };
        let all = [("ConfigMap", "here"), ("Node", "node"), ("Widget", "unknown")];
        assert!(look("a", &all).is_empty());
        assert_eq!(look("b", &all), ["here"], "an owner in another namespace");
        assert_eq!(look("a", &[("ConfigMap", "nobody"), ("Node", "nobody")]), ["nobody", "nobody"]);
        assert!(look("", &[("ConfigMap", "here"), ("ConfigMap", "nobody")]).is_empty(), "nothing can be said");
        assert_eq!(look("", &[("Node", "nobody")]), ["nobody"]);
    }
}
