//! DELETE: preconditions, grace, finalizers.

use std::sync::Arc;

use serde_json::{Value, json};

use super::super::Api;
use super::super::body::check_content_type;
use super::super::kind::Kind;
use super::super::object::{Key, Object, metadata, text};
use super::super::request::{Query, Target, dry_run};
use super::super::status::{FieldCause, FieldError, Status};
use super::super::storage::Change;
use super::super::table::ListMeta;
use super::super::{clock, custom, meta, strategy};
use super::update::may_go;
use super::{Answer, Request, commit_one, not_stored};

/// Namespaces that the cluster cannot be without.
const IMMORTAL: [&str; 3] = ["default", "kube-system", "kube-public"];

/// What becomes of the dependents.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Propagation {
    /// They go afterwards.
    #[default]
    Background,
    /// The object waits for them.
    Foreground,
    /// They stay.
    Orphan,
}

/// `metav1.DeleteOptions`.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct DeleteOptions {
    pub(crate) grace_seconds: Option<i64>,
    pub(crate) uid: Option<String>,
    pub(crate) resource_version: Option<String>,
    pub(crate) propagation: Propagation,
    pub(crate) dry_run: bool,
}

impl DeleteOptions {
    /// From the body; the query counts where there is no body.
    fn parse(request: &Request) -> Result<Self, Status> {
        let body: Value = if request.body.is_empty() {
            json!({})
        } else {
            check_content_type(request.content_type.as_deref())?;
            serde_json::from_slice(&request.body)
                .map_err(|error| Status::bad_request(format!("couldn't get version/kind; json parse error: {error}")))?
        };
        Self::from_parts(&body, &request.query)
    }

    /// The options from a `DeleteOptions` object and a query.
    pub(super) fn from_parts(body: &Value, query: &Query) -> Result<Self, Status> {
        let kind = text(body, "kind");
        if !kind.is_empty() && kind != "DeleteOptions" {
            return Err(Status::bad_request(format!("expected DeleteOptions in the body of a deletion, got {kind}")));
        }
        let grace = match body.get("gracePeriodSeconds").filter(|value| !value.is_null()) {
            Some(value) => Some(value.as_i64().ok_or_else(|| {
                Status::bad_request(format!("gracePeriodSeconds must be a whole number, not {value}"))
            })?),
            None => match query.get("gracePeriodSeconds").filter(|value| !value.is_empty()) {
                Some(value) => Some(value.parse().map_err(|_| {
                    Status::bad_request(format!("strconv.ParseInt: parsing {}: invalid syntax", Value::from(value)))
                })?),
                None => None,
            },
        };
        let asked = |name: &str| {
            let sent = text(body, name);
            if sent.is_empty() { query.get(name).unwrap_or_default().to_owned() } else { sent.to_owned() }
        };
        let orphan = body["orphanDependents"].as_bool().or_else(|| query.get("orphanDependents").map(|v| v != "false"));
        let refuse = |field: &str, cause| {
            Status::invalid_as("meta.k8s.io", "DeleteOptions", "", vec![FieldError::new(field, cause)])
        };
        let propagation = match (asked("propagationPolicy").as_str(), orphan) {
            ("", Some(true)) | ("Orphan", None) => Propagation::Orphan,
            ("", _) | ("Background", None) => Propagation::Background,
            ("Foreground", None) => Propagation::Foreground,
            (_, Some(_)) => {
                let why = "orphanDependents and deletionPropagation cannot be both set";
                return Err(refuse(
                    "propagationPolicy",
                    FieldCause::Invalid(asked("propagationPolicy").into(), why.into()),
                ));
            }
            (other, None) => {
                let supported = ["Foreground", "Background", "Orphan"].map(str::to_owned).to_vec();
                return Err(refuse("propagationPolicy", FieldCause::NotSupported(other.into(), supported)));
            }
        };
        let in_body = body["dryRun"].as_array().is_some_and(|list| list.iter().any(|one| one == "All"));
        let condition = |name: &str| body["preconditions"][name].as_str().map(str::to_owned);
        Ok(Self {
            grace_seconds: grace,
            uid: condition("uid"),
            resource_version: condition("resourceVersion"),
            propagation,
            dry_run: in_body || dry_run("DeleteOptions", query)?,
        })
    }
}

/// What a deletion does to an object.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Plan {
    /// It is already on its way.
    Nothing,
    /// It is marked, and goes when its grace or its finalizers are over.
    Mark(Value),
    /// It goes now; the last state.
    Remove(Value),
}

/// Decides a deletion.
pub(crate) fn plan(kind: &Kind, current: &Value, options: &DeleteOptions, now: i64) -> Result<Plan, Status> {
    let name = text(&current["metadata"], "name");
    check_preconditions(kind, name, current, options)?;
    let mut new = current.clone();
    let deleting = current["metadata"].get("deletionTimestamp").is_some();
    let is_namespace = kind.group.is_empty() && kind.plural == "namespaces";
    if is_namespace && IMMORTAL.contains(&name) {
        return Err(Status::forbidden(kind, name, "this namespace may not be deleted"));
    }
    if is_namespace && deleting && meta::strings(&current["spec"], "finalizers").next().is_some() {
        let why = "The system is ensuring all content is removed from this namespace.  Upon completion, this \
                   namespace will automatically be purged by the system.";
        return Err(Status::conflict(kind.group, kind.plural, name, why));
    }
    let grace = strategy::grace_seconds(kind, current, options.grace_seconds);
    let changed = set_finalizers(&mut new, options.propagation);
    if deleting {
        let shorter = match (grace, current["metadata"]["deletionGracePeriodSeconds"].as_i64()) {
            // Only an explicit, shorter grace hurries a pod that is already ending.
            (Some(asked), Some(left)) if asked < left && (options.grace_seconds.is_some() || asked == 0) => Some(asked),
            _ => None,
        };
        if let Some(seconds) = shorter {
            mark(&mut new, now, Some(seconds));
        } else if !changed && !may_go(kind, &new) {
            return Ok(Plan::Nothing);
        }
    } else {
        let is_definition = custom::is_definition(kind);
        mark(&mut new, now, if is_namespace || is_definition { None } else { Some(grace.unwrap_or(0)) });
        if is_namespace {
            new["status"]["phase"] = "Terminating".into();
        }
        if is_definition {
            hold_definition(&mut new, current, now);
        }
    }
    Ok(if may_go(kind, &new) {
        if grace.is_none() && !deleting {
            // What was never marked goes as it was.
            new = current.clone();
        }
        Plan::Remove(new)
    } else {
        Plan::Mark(new)
    })
}

/// A definition stays until the objects of its kind are gone, and says so.
fn hold_definition(new: &mut Value, current: &Value, now: i64) {
    let meta = metadata(new);
    if let Some(generation) = current["metadata"].get("generation") {
        meta.insert("generation".into(), generation.clone());
    }
    let finalizers = meta.entry("finalizers").or_insert_with(|| json!([]));
    if let Some(all) = finalizers.as_array_mut()
        && !all.iter().any(|one| one == custom::FINALIZER)
    {
        all.push(custom::FINALIZER.into());
    }
    let condition = json!({
        "type": "Terminating", "status": "True", "lastTransitionTime": clock::rfc3339(now),
        "reason": "InstanceDeletionPending",
        "message": "CustomResourceDefinition marked for deletion; CustomResource deletion will begin soon",
    });
    match new["status"]["conditions"].as_array_mut() {
        Some(all) => all.push(condition),
        None => new["status"]["conditions"] = json!([condition]),
    }
}

fn mark(object: &mut Value, now: i64, grace: Option<i64>) {
    let meta = metadata(object);
    if !meta.contains_key("deletionTimestamp")
        && let Some(generation) = meta.get("generation").and_then(Value::as_i64)
    {
        meta.insert("generation".into(), (generation + 1).into());
    }
    meta.insert("deletionTimestamp".into(), clock::rfc3339(now.saturating_add(grace.unwrap_or(0))).into());
    if let Some(grace) = grace {
        meta.insert("deletionGracePeriodSeconds".into(), grace.into());
    }
}

/// The propagation policy lives in two finalizers until the garbage collector has done it.
fn set_finalizers(object: &mut Value, propagation: Propagation) -> bool {
    let (add, drop): (Option<&str>, &[&str]) = match propagation {
        Propagation::Background => (None, &[]),
        Propagation::Foreground => (Some("foregroundDeletion"), &["orphan"]),
        Propagation::Orphan => (Some("orphan"), &["foregroundDeletion"]),
    };
    let meta = metadata(object);
    let before: Vec<Value> = meta.get("finalizers").and_then(Value::as_array).cloned().unwrap_or_default();
    let mut after: Vec<Value> = before.iter().filter(|one| !drop.iter().any(|d| *one == d)).cloned().collect();
    if let Some(add) = add
        && !after.iter().any(|one| one == add)
    {
        after.push(add.into());
    }
    let changed = before != after;
    if after.is_empty() {
        meta.remove("finalizers");
    } else {
        meta.insert("finalizers".into(), Value::Array(after));
    }
    changed
}

fn check_preconditions(kind: &Kind, name: &str, current: &Value, options: &DeleteOptions) -> Result<(), Status> {
    let meta = &current["metadata"];
    let (uid, version) = (text(meta, "uid"), text(meta, "resourceVersion"));
    if let Some(asked) = options.uid.as_deref().filter(|asked| *asked != uid) {
        let why = format!(
            "the UID in the precondition ({asked}) does not match the UID in record ({uid}). The object might have \
             been deleted and then recreated"
        );
        return Err(Status::conflict(kind.group, kind.kind, name, &why));
    }
    if let Some(asked) = options.resource_version.as_deref().filter(|asked| *asked != version) {
        let why = format!(
            "the ResourceVersion in the precondition ({asked}) does not match the ResourceVersion in record \
             ({version}). The object might have been modified"
        );
        return Err(Status::conflict(kind.group, kind.kind, name, &why));
    }
    Ok(())
}

/// Deletes one object.
pub(super) async fn delete(api: &Api, request: &Request, target: &Target, name: &str) -> Result<Answer, Status> {
    let options = DeleteOptions::parse(request)?;
    let kind = target.kind;
    let writer = api.storage.write().await;
    let current =
        writer.get(target.id, &Key::new(target.scope(), name)).ok_or_else(|| Status::not_found(kind, name))?;
    let view = request.view(api, target);
    let object = match plan(kind, &current.value(kind), &options, api.now())? {
        Plan::Nothing => current,
        Plan::Mark(value) if options.dry_run => not_stored(kind, &value),
        Plan::Mark(value) => commit_one(writer, target.id, |id| Change::Put(id, value)).await?,
        Plan::Remove(value) => {
            let removed = if options.dry_run {
                not_stored(kind, &value)
            } else {
                commit_one(writer, target.id, |id| Change::Delete(id, value)).await?
            };
            if !strategy::returns_deleted(kind) {
                return Ok(Answer::value(200, &removed_status(kind, &removed)));
            }
            removed
        }
    };
    Ok(Answer::ok(view.object(&object)))
}

fn removed_status(kind: &Kind, object: &Object) -> Value {
    let mut details = json!({"name": object.key.name, "kind": kind.plural, "uid": object.uid});
    if !kind.group.is_empty() {
        details["group"] = kind.group.into();
    }
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details})
}

/// Objects of a collection deleted in one commit at most.
const BATCH: usize = 200;

/// Deletes what a list selects. As in Kubernetes this is not one step: what is created meanwhile may stay.
pub(super) async fn collection(api: &Api, request: &Request, target: &Target) -> Result<Answer, Status> {
    let options = DeleteOptions::parse(request)?;
    let list = target.list_options(&request.query)?;
    let (resource_version, mut items) = api.storage.list(target.id, target.namespace.as_deref());
    items.retain(|object| list.selector.matches(object));
    for batch in items.chunks(BATCH) {
        let writer = api.storage.write().await;
        let present: Vec<Arc<Object>> = batch
            .iter()
            .filter_map(|listed| writer.get(target.id, &listed.key).filter(|now| now.uid == listed.uid))
            .collect();
        let changes = deletions(api, target, &present, &options)?;
        if !options.dry_run {
            writer.commit(changes).await?;
        }
    }
    let meta = ListMeta { resource_version, ..ListMeta::default() };
    Ok(Answer::ok(request.view(api, target).list(&meta, &items)))
}

/// The changes that delete `items`.
pub(crate) fn deletions(
    api: &Api,
    target: &Target,
    items: &[Arc<Object>],
    options: &DeleteOptions,
) -> Result<Vec<Change>, Status> {
    let mut changes = Vec::new();
    for object in items {
        match plan(target.kind, &object.value(target.kind), options, api.now())? {
            Plan::Nothing => {}
            Plan::Mark(value) => changes.push(Change::Put(target.id, value)),
            Plan::Remove(value) => changes.push(Change::Delete(target.id, value)),
        }
    }
    Ok(changes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::super::kinds;
    use super::*;

    fn kind(plural: &str) -> &'static Kind {
        kinds::find("", "v1", plural).unwrap()
    }

    fn pod(node: &str, grace: i64, finalizers: &[&str]) -> Value {
        let mut pod = json!({
            "metadata": {"name": "p", "namespace": "n", "uid": "u", "resourceVersion": "7", "generation": 1},
            "spec": {"nodeName": node, "terminationGracePeriodSeconds": grace},
        });
        if !finalizers.is_empty() {
            pod["metadata"]["finalizers"] = json!(finalizers);
        }
        pod
    }

    #[test]
    fn a_bound_pod_gets_its_grace_and_a_shorter_one_hurries_it() {
        let options = |grace| DeleteOptions { grace_seconds: grace, ..DeleteOptions::default() };
        let Plan::Mark(ending) = plan(kind("pods"), &pod("edge", 30, &[]), &options(None), 1000).unwrap() else {
            panic!("a bound pod is marked")
        };
        assert_eq!(ending["metadata"]["deletionTimestamp"], clock::rfc3339(1030));
        assert_eq!(ending["metadata"]["generation"], 2);
        assert_eq!(plan(kind("pods"), &ending, &options(None), 1001).unwrap(), Plan::Nothing);
        assert_eq!(plan(kind("pods"), &ending, &options(Some(60)), 1001).unwrap(), Plan::Nothing);
        let Plan::Mark(sooner) = plan(kind("pods"), &ending, &options(Some(5)), 1001).unwrap() else {
            panic!("a shorter grace is taken")
        };
        assert_eq!(sooner["metadata"]["deletionTimestamp"], clock::rfc3339(1006));
        assert!(matches!(plan(kind("pods"), &sooner, &options(Some(0)), 1002).unwrap(), Plan::Remove(_)));
        assert!(matches!(plan(kind("pods"), &pod("", 30, &[]), &options(None), 1000).unwrap(), Plan::Remove(_)));
    }

    proptest! {
        #[test]
        fn what_has_finalizers_is_never_removed_and_nothing_is_marked_twice(
            bound: bool, grace in 0..100_i64, asked in proptest::option::of(-5..100_i64), finalizers in 0..3_usize,
            propagation in prop_oneof![
                Just(Propagation::Background), Just(Propagation::Foreground), Just(Propagation::Orphan)
            ],
        ) {
            let names = ["a.io/x", "a.io/y"];
            let object = pod(if bound { "edge" } else { "" }, grace, &names[..finalizers.min(2)]);
            let options = DeleteOptions { grace_seconds: asked, propagation, ..DeleteOptions::default() };
            match plan(kind("pods"), &object, &options, 1000).unwrap() {
                Plan::Remove(_) => {
                    prop_assert_eq!(finalizers, 0);
                    prop_assert_eq!(propagation, Propagation::Background);
                    prop_assert!(!bound || asked.unwrap_or(grace) == 0);
                }
                Plan::Mark(ending) => {
                    let again = plan(kind("pods"), &ending, &options, 1000).unwrap();
                    prop_assert!(!matches!(again, Plan::Mark(_)), "{:?}", again);
                }
                Plan::Nothing => prop_assert!(false, "the first deletion does something"),
            }
        }
    }
}
