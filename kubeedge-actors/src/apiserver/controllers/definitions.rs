//! Custom kinds appear when the names of their definition are accepted, and vanish with it, their objects first.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use super::super::custom::{Definition, FINALIZER, GROUP, PLURAL};
use super::super::kinds::fields::{list, text};
use super::super::object::{Key, member, metadata};
use super::super::request::Target;
use super::super::status::Status;
use super::super::storage::{Change, KindId};
use super::super::verbs::delete::{DeleteOptions, deletions};
use super::super::verbs::update::may_go;
use super::super::{Api, clock};
use super::Again;

/// When a kind whose objects wait for something is looked at again, beside changes.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// Objects deleted in one commit at most.
const BATCH: usize = 200;

/// What wakes this controller.
pub(super) fn watched(api: &Api) -> Vec<KindId> {
    api.storage.find(GROUP, "v1", PLURAL).into_iter().chain([KindId::CUSTOM]).collect()
}

/// Ends the kinds whose definition is gone or going, then serves those whose names are accepted.
pub(in crate::apiserver) async fn reconcile(api: &Arc<Api>) -> Result<Again, Status> {
    let Some(id) = api.storage.find(GROUP, "v1", PLURAL) else { return Ok(Again::OnChange) };
    let mut waiting = false;
    for (kind, definition) in api.storage.definitions() {
        let object = api.storage.get(id, &Key::new("", &definition.name));
        if object.is_none_or(|object| object.deleting || object.uid != definition.uid) {
            waiting |= !end(api, kind, &definition).await?;
        }
    }
    for object in api.storage.list(id, None).1 {
        if object.deleting {
            release(api, id, &object.key).await?;
        } else {
            serve(api, id, &object.key).await?;
        }
    }
    Ok(if waiting { Again::After(LOOK_AGAIN) } else { Again::OnChange })
}

/// Deletes the objects of a kind, then the kind. Whether it is done.
async fn end(api: &Arc<Api>, id: KindId, definition: &Definition) -> Result<bool, Status> {
    let kind = definition.storage().kind;
    let target = Target { id, kind, custom: None, namespace: None, name: None, subresource: None };
    loop {
        let writer = api.storage.write().await;
        let (_, items) = api.storage.list(id, None);
        if items.is_empty() {
            tracing::info!(kind = kind.kind, group = kind.group, "a custom kind has ended");
            writer.retire(id);
            return Ok(true);
        }
        let mut changes = deletions(api, &target, &items, &DeleteOptions::default())?;
        if changes.is_empty() {
            tracing::debug!(kind = kind.kind, left = items.len(), "waiting for objects with finalizers");
            return Ok(false);
        }
        changes.truncate(BATCH);
        writer.commit(changes).await?;
    }
}

/// Lets a definition go whose kind has ended.
async fn release(api: &Arc<Api>, id: KindId, key: &Key) -> Result<(), Status> {
    let kind = api.storage.kind(id);
    let writer = api.storage.write().await;
    let Some(object) = writer.get(id, key).filter(|object| object.deleting) else { return Ok(()) };
    if api.storage.definitions().iter().any(|(_, definition)| definition.uid == object.uid) {
        return Ok(());
    }
    let mut value = object.value(kind);
    let meta = metadata(&mut value);
    let Some(finalizers) = meta.get_mut("finalizers").and_then(Value::as_array_mut) else { return Ok(()) };
    let before = finalizers.len();
    finalizers.retain(|one| one != FINALIZER);
    if finalizers.len() == before {
        return Ok(());
    }
    if finalizers.is_empty() {
        meta.remove("finalizers");
    }
    let change = if may_go(kind, &value) { Change::Delete(id, object.value(kind)) } else { Change::Put(id, value) };
    writer.commit(vec![change]).await?;
    Ok(())
}

/// Judges the names of a definition, serves its kind when they are free, and says so in its status.
async fn serve(api: &Arc<Api>, id: KindId, key: &Key) -> Result<(), Status> {
    let kind = api.storage.kind(id);
    let writer = api.storage.write().await;
    let Some(object) = writer.get(id, key).filter(|object| !object.deleting) else { return Ok(()) };
    let value = object.value(kind);
    let definition = match Definition::compile(&value) {
        Ok(definition) => definition,
        Err(errors) => {
            let why = errors.first().map(ToString::to_string).unwrap_or_default();
            tracing::error!(name = key.name, why, "a definition cannot be served: create it again");
            return Ok(());
        }
    };
    let others = api.storage.definitions();
    let installed = others.iter().find(|(_, other)| other.name == definition.name);
    if installed.is_some_and(|(_, other)| other.uid != definition.uid) {
        // The objects of an earlier definition of this name are still going.
        return Ok(());
    }
    let taken: Vec<Value> = others
        .iter()
        .filter(|(_, other)| other.name != definition.name && other.storage().kind.group == text(&value, "/spec/group"))
        .filter_map(|(_, other)| Some(api.storage.get(id, &Key::new("", &other.name))?.value(kind)))
        .map(|mut other| other["status"]["acceptedNames"].take())
        .collect();
    let verdict = judge(&value["spec"]["names"], &taken);
    let mut new = value.clone();
    set_status(&mut new, &verdict, &clock::rfc3339(api.now()));
    let changed = installed.is_none_or(|(_, other)| other.generation != definition.generation);
    if verdict.is_ok() && changed {
        tracing::info!(name = definition.name, "a custom kind is served");
        writer.install(Arc::new(definition));
    }
    if new != value {
        writer.commit(vec![Change::Put(id, new)]).await?;
    }
    Ok(())
}

/// Why a name cannot be had: Kubernetes' reason and the sentence.
type Conflict = (&'static str, String);

/// Whether the names are free beside those that are `taken` in the group.
fn judge(names: &Value, taken: &[Value]) -> Result<(), Conflict> {
    let resources = |names: &Value| -> Vec<String> {
        let short = list(names, "/shortNames").iter().filter_map(Value::as_str);
        [text(names, "/plural"), text(names, "/singular")].into_iter().chain(short).map(str::to_owned).collect()
    };
    let kinds = |names: &Value| [text(names, "/kind").to_owned(), text(names, "/listKind").to_owned()];
    let taken_resources: Vec<String> = taken.iter().flat_map(resources).collect();
    let taken_kinds: Vec<String> = taken.iter().flat_map(kinds).collect();
    let check = |reason, name: &str, taken: &[String]| match taken.iter().any(|one| one == name) {
        true => Err((reason, format!("{name:?} is already in use"))),
        false => Ok(()),
    };
    check("PluralConflict", text(names, "/plural"), &taken_resources)?;
    check("SingularConflict", text(names, "/singular"), &taken_resources)?;
    for short in list(names, "/shortNames").iter().filter_map(Value::as_str) {
        check("ShortNamesConflict", short, &taken_resources)?;
    }
    check("KindConflict", text(names, "/kind"), &taken_kinds)?;
    check("ListKindConflict", text(names, "/listKind"), &taken_kinds)
}

fn set_status(object: &mut Value, verdict: &Result<(), Conflict>, now: &str) {
    let names = object["spec"]["names"].clone();
    let is_established =
        list(object, "/status/conditions").iter().any(|one| one["type"] == "Established" && one["status"] == "True");
    match verdict {
        Ok(()) => {
            member(object, "status").insert("acceptedNames".into(), names);
            set_condition(object, "NamesAccepted", true, "NoConflicts", "no conflicts found", now);
            let message = "the initial names have been accepted";
            set_condition(object, "Established", true, "InitialNamesAccepted", message, now);
        }
        Err((reason, message)) => {
            set_condition(object, "NamesAccepted", false, reason, message, now);
            if !is_established {
                let message = "not all names are accepted";
                set_condition(object, "Established", false, "NotAccepted", message, now);
            }
        }
    }
}

/// Sets a condition; the time is that of the last change of its status.
fn set_condition(object: &mut Value, type_: &str, holds: bool, reason: &str, message: &str, now: &str) {
    let status = if holds { "True" } else { "False" };
    let mut condition =
        json!({"type": type_, "status": status, "lastTransitionTime": now, "reason": reason, "message": message});
    let conditions = &mut member(object, "status")["conditions"];
    if !conditions.is_array() {
        *conditions = json!([]);
    }
    let Some(all) = conditions.as_array_mut() else { return };
    match all.iter_mut().find(|one| one["type"] == type_) {
        Some(present) => {
            if present["status"] == status {
                condition["lastTransitionTime"] = present["lastTransitionTime"].clone();
            }
            *present = condition;
        }
        None => all.push(condition),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_taken_are_refused_with_their_reason() {
        let names = |plural: &str, kind: &str| {
            json!({"plural": plural, "singular": format!("{plural}-one"), "kind": kind,
            "listKind": format!("{kind}List"), "shortNames": [format!("{plural}-s")]})
        };
        let taken = [names("lamps", "Lamp")];
        assert_eq!(judge(&names("fans", "Fan"), &taken), Ok(()));
        assert_eq!(judge(&names("lamps", "Fan"), &taken).unwrap_err().0, "PluralConflict");
        assert_eq!(judge(&names("fans", "Lamp"), &taken).unwrap_err().0, "KindConflict");
        let mut short = names("fans", "Fan");
        short["shortNames"] = json!(["lamps"]);
        assert_eq!(judge(&short, &taken).unwrap_err(), ("ShortNamesConflict", "\"lamps\" is already in use".into()));
    }

    #[test]
    fn a_condition_keeps_its_time_while_its_status_stays() {
        let mut object = json!({"spec": {"names": {"plural": "lamps"}}, "status": {"conditions": null}});
        set_status(&mut object, &Err(("KindConflict", "no".into())), "t1");
        assert_eq!(object["status"]["conditions"][1]["reason"], "NotAccepted");
        set_status(&mut object, &Ok(()), "t2");
        set_status(&mut object, &Ok(()), "t3");
        let times: Vec<&Value> =
            list(&object, "/status/conditions").iter().map(|one| &one["lastTransitionTime"]).collect();
        assert_eq!(times, ["t2", "t2"]);
        assert_eq!(object["status"]["acceptedNames"]["plural"], "lamps");
    }
}
