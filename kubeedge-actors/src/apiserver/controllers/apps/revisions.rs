//! ControllerRevisions: the former templates of a DaemonSet or StatefulSet, by number.

use serde_json::{Value, json};

use super::family::{controller_reference, is_controlled_by, is_ending};
use super::{Action, Family, Plan, Resource, hash};
use crate::apiserver::kinds::fields::{integer, text};

/// The label with the hash of the revision that a pod is of.
pub(super) const REVISION_HASH: &str = "controller-revision-hash";
/// Annotations of the owner that its revisions do not take over.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// The revision of the present template.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Revision {
    pub(super) name: String,
    pub(super) hash: String,
    /// Hashes found taken over the life of the owner.
    pub(super) collisions: i64,
}

/// What a revision holds: a patch that brings the template back.
fn data(owner: &Value) -> Value {
    let mut template = owner["spec"]["template"].clone();
    template["$patch"] = "replace".into();
    json!({"spec": {"template": template}})
}

fn number(revision: &Value) -> i64 {
    integer(revision, "/revision").unwrap_or_default()
}

/// The revisions of the owner, by number.
fn own(family: &Family) -> Vec<&Value> {
    let owned = |revision: &&Value| is_controlled_by(revision, &family.owner) && !is_ending(revision);
    let mut all: Vec<&Value> = family.revisions.iter().filter(owned).collect();
    all.sort_by_key(|revision| (number(revision), text(revision, "/metadata/name")));
    all
}

/// The template of a revision, by its hash, as the owner's; `None` when it is not kept any more.
pub(super) fn with_template_of(family: &Family, hash: &str) -> Option<Value> {
    let all = own(family);
    let found = all.iter().find(|revision| hash_of(revision) == hash)?;
    let mut owner = family.owner.clone();
    let template = found.pointer("/data/spec/template")?;
    owner["spec"]["template"] = template.clone();
    if let Some(fields) = owner["spec"]["template"].as_object_mut() {
        fields.remove("$patch");
    }
    Some(owner)
}

/// The hash of a revision, which its pods carry.
pub(super) fn hash_of(revision: &Value) -> &str {
    revision["metadata"]["labels"][REVISION_HASH].as_str().unwrap_or_default()
}

/// The revision of the present template, made or given the highest number where it has to be.
pub(super) fn present(family: &Family, plan: &mut Plan) -> Revision {
    let owner = &family.owner;
    let data = data(owner);
    let all = own(family);
    let highest = all.last().map(|revision| number(revision)).unwrap_or_default();
    let mut collisions = integer(owner, "/status/collisionCount").unwrap_or_default();
    // Of twins the youngest counts.
    if let Some(same) = all.iter().rev().find(|revision| revision["data"] == data) {
        if number(same) < highest {
            let mut raised = (*same).clone();
            raised["revision"] = (highest + 1).into();
            plan.actions.push(Action::Put(Resource::Revisions, raised));
        }
        let (name, hash) = (text(same, "/metadata/name").to_owned(), hash_of(same).to_owned());
        return Revision { name, hash, collisions };
    }
    // Each name that is taken costs one try, so that this ends.
    let (name, hash) = loop {
        let hash = hash::of(&data, collisions);
        let name = format!("{}-{hash}", text(owner, "/metadata/name"));
        if !family.taken_names.contains(&name) {
            break (name, hash);
        }
        collisions += 1;
    };
    let mut labels = owner["spec"]["template"]["metadata"]["labels"].clone();
    labels[REVISION_HASH] = hash.as_str().into();
    let mut meta = json!({
        "name": name, "namespace": owner["metadata"]["namespace"], "labels": labels,
        "ownerReferences": [controller_reference(owner)],
    });
    if let Some(mut annotations) = owner["metadata"]["annotations"].as_object().cloned() {
        annotations.remove(LAST_APPLIED);
        if !annotations.is_empty() {
            meta["annotations"] = annotations.into();
        }
    }
    if !family.closed {
        let revision = json!({
            "apiVersion": "apps/v1", "kind": "ControllerRevision", "metadata": meta, "data": data,
            "revision": highest + 1,
        });
        plan.actions.push(Action::Create(Resource::Revisions, revision));
    }
    Revision { name, hash, collisions }
}

/// Deletes the oldest revisions beyond those kept, of those that nothing is of.
pub(super) fn clean_up(family: &Family, live: &[&str], plan: &mut Plan) {
    let kept = integer(&family.owner, "/spec/revisionHistoryLimit").unwrap_or(10);
    let all = own(family);
    let unused: Vec<&&Value> = all.iter().filter(|revision| !live.contains(&hash_of(revision))).collect();
    let surplus = unused.len().saturating_sub(usize::try_from(kept).unwrap_or(0));
    let gone =
        unused.into_iter().take(surplus).map(|revision| Action::Delete(Resource::Revisions, (*revision).clone()));
    plan.actions.extend(gone);
}
