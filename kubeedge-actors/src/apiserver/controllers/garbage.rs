//! The garbage collector: dependents of what is gone, and the two finalizers of a deletion that concerns dependents.
//!
//! - `foregroundDeletion` on an ending object: its dependents are deleted; when those that block it are gone, it goes.
//! - `orphan`: its dependents forget it, then it goes.
//! - An object none of whose owners exists any more is deleted. An owner of a kind that is not served here counts as
//!   existing: nothing can be said about it.

use std::collections::HashSet;
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
    /// No owner is left.
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
    let uids: HashSet<&str> = all.iter().map(|(_, _, object)| object.uid.as_str()).collect();
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
                    if !dependent.deleting {
                        tasks.push((*d_id, dependent.key.clone(), Task::Delete));
                    }
                }
                if !blocked {
                    tasks.push((*id, object.key.clone(), Task::Release(FOREGROUND)));
                }
            }
        } else if !object.owners.is_empty()
            && !object.owners.iter().any(|uid| uids.contains(uid.as_str()))
            && owners_are_known(api, &object.value(kind))
        {
            tasks.push((*id, object.key.clone(), Task::Delete));
        }
    }
    tasks
}

fn blocks(dependent: &Value, uid: &str) -> bool {
    let owners = dependent["metadata"]["ownerReferences"].as_array();
    owners.into_iter().flatten().any(|owner| owner["uid"] == uid && owner["blockOwnerDeletion"] == true)
}

fn owners_are_known(api: &Api, object: &Value) -> bool {
    let owners = object["metadata"]["ownerReferences"].as_array();
    owners.into_iter().flatten().all(|owner| {
        let is = |kind: &Kind| kind.kind == text(owner, "kind") && api_version(kind) == text(owner, "apiVersion");
        api.storage.kinds().any(|(_, kind)| is(kind)) || api.storage.custom_versions().iter().any(|one| is(one.kind))
    })
}

fn carry_out(api: &Api, id: KindId, kind: &Kind, object: &Object, task: &Task) -> Result<Option<Change>, Status> {
    let mut value = object.value(kind);
    match task {
        Task::Delete => {
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
