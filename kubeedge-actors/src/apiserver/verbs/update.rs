//! PUT on an object, and what every change of an object has to keep.

use serde_json::Value;

use super::super::Api;
use super::super::body::{check_content_type, decode};
use super::super::kind::Kind;
use super::super::kinds::portion::Portion;
use super::super::object::{Key, metadata, text};
use super::super::request::{Target, WriteOptions};
use super::super::status::{FieldCause, FieldError, Status};
use super::super::storage::{Change, Writer};
use super::super::{admission, meta, strategy};
use super::create::{new_object, same_namespace};
use super::{Request, Written, commit_one, not_stored, settle_addresses};

/// Which part of the object a request may change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// Everything but the status, where that is a subresource.
    Main,
    /// Metadata and status.
    Status,
    /// `spec.finalizers` of a namespace.
    Finalizers,
    /// What only this subresource changes.
    Portion(&'static Portion),
}

/// Replaces an object by the one in the body.
pub(super) async fn put(
    api: &Api,
    request: &Request,
    target: &Target,
    name: &str,
    part: Part,
) -> Result<Written, Status> {
    let kind = target.kind;
    let options = WriteOptions::parse("UpdateOptions", &request.query)?;
    check_content_type(request.content_type.as_deref())?;
    let body = decode(target, &request.body, options.field_validation)?;
    let mut new = body.object;
    same_namespace(&mut new, target)?;
    let sent = text(&new["metadata"], "name").to_owned();
    if sent.is_empty() {
        metadata(&mut new).insert("name".into(), name.into());
    } else if sent != name {
        return Err(Status::bad_request(format!(
            "the name of the object ({sent}) does not match the name on the URL ({name})"
        )));
    }
    let writer = api.storage.write().await;
    let Some(current) = writer.get(target.id, &Key::new(target.scope(), name)) else {
        if part != Part::Main || !strategy::creates_on_update(kind) {
            return Err(Status::not_found(kind, name));
        }
        let mut written = new_object(api, writer, target, new, options.dry_run).await?;
        written.warnings = body.warnings;
        return Ok(written);
    };
    if text(&new["metadata"], "resourceVersion").is_empty() && !strategy::updates_unconditionally(kind) {
        let why = FieldCause::Invalid(0.into(), "must be specified for an update".into());
        return Err(Status::invalid(kind, name, vec![FieldError::new("metadata.resourceVersion", why)]));
    }
    let old = current.value(kind);
    let mut written = change(api, writer, target, &old, new, part, options.dry_run).await?;
    written.warnings = body.warnings;
    Ok(written)
}

/// Stores `new` in place of `old`, or removes it when its last finalizer has gone.
pub(super) async fn change(
    api: &Api,
    writer: Writer,
    target: &Target,
    old: &Value,
    new: Value,
    part: Part,
    dry_run: bool,
) -> Result<Written, Status> {
    let kind = target.kind;
    let done = |object| Written { code: 200, object, warnings: Vec::new() };
    let mut new = settle(target, old, new, part)?;
    if part == Part::Main {
        settle_addresses(api, target, &writer, &mut new, Some(old))?;
    }
    if new == *old {
        return Ok(done(not_stored(kind, old)));
    }
    if may_go(kind, &new) {
        let answer = not_stored(kind, &new);
        if !dry_run {
            // Watchers see the last state that was stored, as in Kubernetes.
            commit_one(writer, target.id, |id| Change::Delete(id, old.clone())).await?;
        }
        return Ok(done(answer));
    }
    if dry_run {
        return Ok(done(not_stored(kind, &new)));
    }
    Ok(done(commit_one(writer, target.id, |id| Change::Put(id, new)).await?))
}

/// Whether an object that is being deleted has nothing left to wait for.
pub(crate) fn may_go(kind: &Kind, object: &Value) -> bool {
    let meta = &object["metadata"];
    let waits = meta::strings(meta, "finalizers").next().is_some()
        || (kind.plural == "namespaces" && meta::strings(&object["spec"], "finalizers").next().is_some());
    let grace = meta["deletionGracePeriodSeconds"].as_i64().unwrap_or(0);
    meta.get("deletionTimestamp").is_some() && grace == 0 && !waits
}

/// What is stored when `new` is sent for `old`: preconditions hold, the server's fields stay, the other part stays.
pub(crate) fn settle(target: &Target, old: &Value, mut new: Value, part: Part) -> Result<Value, Status> {
    let kind = target.kind;
    let name = text(&old["metadata"], "name").to_owned();
    preconditions(kind, &name, &old["metadata"], &new["metadata"])?;
    let has_status = kind.status_subresource;
    match part {
        Part::Main if has_status => keep(&mut new, old, "status"),
        Part::Main => {}
        Part::Status => {
            for member in other_members(old, &new) {
                keep(&mut new, old, &member);
            }
        }
        Part::Finalizers => {
            let finalizers = new["spec"]["finalizers"].take();
            let meta = new["metadata"].take();
            new = old.clone();
            new["metadata"] = meta;
            new["spec"]["finalizers"] = finalizers;
        }
        Part::Portion(portion) => new = (portion.take)(&new, old),
    }
    keep_metadata(&mut new, old);
    match part {
        Part::Main => {
            strategy::prepare_update(kind, &mut new, old);
            admission::update(kind, &mut new);
        }
        Part::Status => strategy::prepare_status(kind, &mut new),
        Part::Finalizers | Part::Portion(_) => {}
    }
    target.default(&mut new);
    let mut errors = meta::validate_update(&new, old);
    errors.extend(match part {
        Part::Main => target.validate_update(&new, old),
        Part::Status => target.validate_status(&new, old),
        Part::Finalizers => Vec::new(),
        Part::Portion(portion) => (portion.validate)(&new, old),
    });
    if !errors.is_empty() {
        return Err(Status::invalid(kind, &name, errors));
    }
    if matches!(part, Part::Main) {
        admission::validate(kind, &new, Some(old))?;
    }
    let changed = match &target.custom {
        Some(_) => other_members(old, &new).iter().any(|member| new.get(member) != old.get(member)),
        None => new.get("spec") != old.get("spec"),
    };
    if kind.has_generation && (changed || (target.custom.is_some() && !has_status && new["status"] != old["status"])) {
        let generation = old["metadata"]["generation"].as_i64().unwrap_or(0) + 1;
        metadata(&mut new).insert("generation".into(), generation.into());
    }
    Ok(new)
}

fn preconditions(kind: &Kind, name: &str, old: &Value, new: &Value) -> Result<(), Status> {
    let (uid, sent) = (text(old, "uid"), text(new, "uid"));
    if !sent.is_empty() && sent != uid {
        let why = format!("Precondition failed: UID in precondition: {sent}, UID in object meta: {uid}");
        return Err(Status::conflict(kind.group, kind.plural, name, &why));
    }
    let sent = text(new, "resourceVersion");
    if !sent.is_empty() && sent != text(old, "resourceVersion") {
        return Err(Status::modified(kind, name));
    }
    Ok(())
}

fn other_members(old: &Value, new: &Value) -> Vec<String> {
    let members = |value: &Value| value.as_object().map(|map| map.keys().cloned().collect()).unwrap_or_default();
    let mut all: Vec<String> = members(old);
    all.extend::<Vec<String>>(members(new));
    all.retain(|member| member != "metadata" && member != "status");
    all
}

fn keep(new: &mut Value, old: &Value, member: &str) {
    if let Value::Object(map) = new {
        match old.get(member) {
            Some(value) => map.insert(member.into(), value.clone()),
            None => map.remove(member),
        };
    }
}

/// The server's own metadata stays as it is, whatever was sent; only a deletion that was made up is for the check.
fn keep_metadata(new: &mut Value, old: &Value) {
    let old = &old["metadata"];
    let meta = metadata(new);
    meta.remove("managedFields");
    meta.remove("selfLink");
    for member in ["name", "namespace", "uid", "resourceVersion", "generation", "generateName", "creationTimestamp"] {
        match old.get(member) {
            Some(value) => meta.insert(member.into(), value.clone()),
            None => meta.remove(member),
        };
    }
    for member in ["deletionTimestamp", "deletionGracePeriodSeconds"] {
        match (meta.get(member), old.get(member)) {
            (_, Some(value)) => meta.insert(member.into(), value.clone()),
            (Some(Value::Null), None) => meta.remove(member),
            _ => None,
        };
    }
    // Emptied maps and lists are stored as absent, as the typed form has it.
    for member in ["labels", "annotations", "finalizers", "ownerReferences"] {
        let empty = match meta.get(member) {
            Some(Value::Object(map)) => map.is_empty(),
            Some(Value::Array(list)) => list.is_empty(),
            Some(Value::Null) => true,
            _ => false,
        };
        if empty {
            meta.remove(member);
        }
    }
}
