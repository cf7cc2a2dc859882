//! Namespaces: the four of the bootstrap, what each has from the start, and their end.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use super::super::object::{Key, member};
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
    let mut left = 0;
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
        left += api.storage.list(id, Some(name)).1.len();
    }
    if left > 0 {
        tracing::debug!(namespace = name, left, "waiting for what ends in its own time");
        return Ok(false);
    }
    let Some(id) = api.storage.core("namespaces") else { return Ok(true) };
    let kind = api.storage.kind(id);
    let writer = api.storage.write().await;
    let Some(namespace) = writer.get(id, &Key::new("", name)) else { return Ok(true) };
    let mut value = namespace.value(kind);
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
