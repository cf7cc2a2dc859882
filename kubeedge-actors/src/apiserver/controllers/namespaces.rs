//! Namespaces: the four of the bootstrap, what each has from the start, and their end, which tells in conditions what it
//! still waits for.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use super::super::kind::Kind;
use super::super::meta::strings;
use super::super::object::{Key, member, text};
use super::super::request::Target;
use super::super::status::Status;
use super::super::storage::Change;
use super::super::verbs::delete::{DeleteOptions, deletions};
use super::super::verbs::update::may_go;
use super::super::{Api, admission, clock, object};
use super::Again;

/// The namespaces that are always there.
const BOOTSTRAP: [&str; 4] = ["default", "kube-system", "kube-public", "kube-node-lease"];
/// When an ending namespace is looked at again, beside changes.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// Objects changed in one commit at most.
const BATCH: usize = 200;

/// Makes what is missing, empties what is ending.
pub(super) async fn reconcile(api: &Arc<Api>) -> Result<Again, Status> {
    let Some(id) = api.storage.core("namespaces") else { return Ok(Again::OnChange) };
    let kind = api.storage.kind(id);
    for name in BOOTSTRAP {
        let key = Key::new("", name);
        if api.storage.get(id, &key).is_some() {
            continue;
        }
        let writer = api.storage.write().await;
        let mut namespace = json!({"metadata": {
            "name": name, "uid": uuid::Uuid::new_v4().to_string(), "creationTimestamp": clock::rfc3339(api.now()),
        }});
        object::add_type(&mut namespace, kind);
        (kind.default)(&mut namespace);
        let mut changes = vec![Change::Put(id, namespace)];
        changes.extend(admission::namespace_contents(api, name));
        writer.commit(changes).await?;
    }
    let mut waiting = false;
    let (_, namespaces) = api.storage.list(id, None);
    for namespace in namespaces {
        let name = &namespace.key.name;
        if namespace.deleting {
            waiting |= !finish(api, name).await?;
        } else if !admission::namespace_contents(api, name).is_empty() {
            let writer = api.storage.write().await;
            // The account of a namespace that has begun to end in the meantime is not made again.
            if writer.get(id, &namespace.key).is_some_and(|now| !now.deleting) {
                let missing = admission::namespace_contents(api, name);
                writer.commit(missing).await?;
            }
        }
    }
    Ok(if waiting { Again::After(LOOK_AGAIN) } else { Again::OnChange })
}

/// Deletes the contents of an ending namespace; when nothing is left, the namespace. Whether it is done.
async fn finish(api: &Arc<Api>, name: &str) -> Result<bool, Status> {
    let mut left = Remaining::default();
    for (id, kind) in api.storage.kinds().filter(|(_, kind)| kind.namespaced) {
        let target = Target { id, kind, custom: None, namespace: Some(name.to_owned()), name: None, subresource: None };
        loop {
            let writer = api.storage.write().await;
            let (_, items) = api.storage.list(id, Some(name));
            let mut changes = deletions(api, &target, &items, &DeleteOptions::default())?;
            let more = changes.len() > BATCH;
            changes.truncate(BATCH);
            writer.commit(changes).await?;
            if !more {
                break;
            }
        }
        for object in api.storage.list(id, Some(name)).1 {
            left.count(kind, &object.value(kind));
        }
    }
    let Some(id) = api.storage.core("namespaces") else { return Ok(true) };
    let kind = api.storage.kind(id);
    let writer = api.storage.write().await;
    let Some(namespace) = writer.get(id, &Key::new("", name)) else { return Ok(true) };
    let mut value = namespace.value(kind);
    if !left.resources.is_empty() {
        tracing::debug!(namespace = name, ?left, "waiting for what ends in its own time");
        if left.tell(&mut value, api.now()) {
            writer.commit(vec![Change::Put(id, value)]).await?;
        }
        return Ok(false);
    }
    let remaining: Vec<Value> = value["spec"]["finalizers"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|one| *one != "kubernetes")
        .cloned()
        .collect();
    if remaining.len() == value["spec"]["finalizers"].as_array().map_or(0, Vec::len) {
        return Ok(true);
    }
    member(&mut value, "spec").insert("finalizers".into(), Value::Array(remaining));
    let change = if may_go(kind, &value) { Change::Delete(id, namespace.value(kind)) } else { Change::Put(id, value) };
    writer.commit(vec![change]).await?;
    Ok(true)
}

/// What an ending namespace still holds.
#[derive(Debug, Default)]
struct Remaining {
    /// Objects by resource, e.g. `pods.`.
    resources: BTreeMap<String, usize>,
    /// Objects by finalizer.
    finalizers: BTreeMap<String, usize>,
}

impl Remaining {
    fn count(&mut self, kind: &Kind, object: &Value) {
        *self.resources.entry(format!("{}.{}", kind.plural, kind.group)).or_default() += 1;
        for finalizer in strings(&object["metadata"], "finalizers") {
            *self.finalizers.entry(finalizer.to_owned()).or_default() += 1;
        }
    }

    /// Writes it into the namespace's conditions, in the words of Kubernetes; whether that changes any.
    fn tell(&self, namespace: &mut Value, now: i64) -> bool {
        let list = |counts: &BTreeMap<String, usize>, has: &str| {
            let parts: Vec<String> =
                counts.iter().map(|(name, count)| format!("{name} {has} {count} resource instances")).collect();
            parts.join(", ")
        };
        let resources = format!("Some resources are remaining: {}", list(&self.resources, "has"));
        let finalizers =
            format!("Some content in the namespace has finalizers remaining: {}", list(&self.finalizers, "in"));
        let of_finalizers = if self.finalizers.is_empty() {
            ("False", "ContentHasNoFinalizers", "All content-preserving finalizers finished")
        } else {
            ("True", "SomeFinalizersRemain", finalizers.as_str())
        };
        let deleted = "All content successfully deleted, may be waiting on finalization";
        let wanted = [
            (
                "NamespaceDeletionDiscoveryFailure",
                "False",
                "ResourcesDiscovered",
                "All resources successfully discovered",
            ),
            ("NamespaceDeletionContentFailure", "False", "ContentDeleted", deleted),
            ("NamespaceContentRemaining", "True", "SomeResourcesRemain", resources.as_str()),
            ("NamespaceFinalizersRemaining", of_finalizers.0, of_finalizers.1, of_finalizers.2),
        ];
        let conditions = member(namespace, "status").entry("conditions").or_insert_with(|| json!([]));
        if !conditions.is_array() {
            *conditions = json!([]);
        }
        let Some(list) = conditions.as_array_mut() else { return false };
        let mut changed = false;
        for (type_, status, reason, message) in wanted {
            let mut new = json!({"type": type_, "status": status, "reason": reason, "message": message,
                "lastTransitionTime": clock::rfc3339(now)});
            match list.iter_mut().find(|one| one["type"] == type_) {
                None => list.push(new),
                Some(old) if text(old, "status") == status && text(old, "message") == message => continue,
                Some(old) => {
                    if text(old, "status") == status {
                        new["lastTransitionTime"] = old["lastTransitionTime"].clone();
                    }
                    *old = new;
                }
            }
            changed = true;
        }
        changed
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::kinds;
    use super::*;

    #[test]
    fn what_remains_is_told_once_and_its_time_is_that_of_the_status() {
        let mut left = Remaining::default();
        let pods = kinds::find("", "v1", "pods").unwrap();
        left.count(pods, &json!({"metadata": {"finalizers": ["a.io/x"]}}));
        left.count(pods, &json!({"metadata": {}}));
        let mut namespace = json!({"status": {"phase": "Terminating"}});
        assert!(left.tell(&mut namespace, 0));
        assert!(!left.tell(&mut namespace, 5), "nothing new");
        let at = |namespace: &Value, index: usize| namespace["status"]["conditions"][index].clone();
        assert_eq!(at(&namespace, 2)["message"], "Some resources are remaining: pods. has 2 resource instances");
        assert_eq!(at(&namespace, 3)["reason"], "SomeFinalizersRemain");
        let mut left = Remaining::default();
        left.count(pods, &json!({"metadata": {}}));
        assert!(left.tell(&mut namespace, 9));
        assert_eq!(at(&namespace, 2)["lastTransitionTime"], clock::rfc3339(0), "it still remains");
        assert_eq!(
            (&at(&namespace, 3)["status"], &at(&namespace, 3)["lastTransitionTime"]),
            (&json!("False"), &json!(clock::rfc3339(9)))
        );
    }
}
