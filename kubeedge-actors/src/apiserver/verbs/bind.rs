//! Binding a pod to a node, and evicting it.

use serde_json::{Value, json};

use super::super::Api;
use super::super::body::{check_content_type, parse};
use super::super::clock;
use super::super::kinds::names::dns_subdomain;
use super::super::object::{Key, member, metadata, text};
use super::super::request::{Target, WriteOptions};
use super::super::status::{FieldCause, FieldError, Status};
use super::super::storage::Change;
use super::delete::{DeleteOptions, Plan, plan};
use super::{Answer, Request, commit_one};

fn object(request: &Request, kind: &str) -> Result<Value, Status> {
    check_content_type(request.content_type.as_deref())?;
    let (value, _) = parse(&request.body)
        .map_err(|error| Status::bad_request(format!("couldn't get version/kind; json parse error: {error}")))?;
    let sent = text(&value, "kind");
    if !value.is_object() || (!sent.is_empty() && sent != kind) {
        return Err(Status::bad_request(format!("expected {kind} in the body, got {sent:?}")));
    }
    Ok(value)
}

/// Sets a condition of a pod, replacing the one of that type; its time changes only with its status.
pub(crate) fn condition(pod: &mut Value, mut condition: Value, now: i64) {
    condition["lastProbeTime"] = Value::Null;
    let conditions = member(pod, "status").entry("conditions").or_insert_with(|| json!([]));
    if !conditions.is_array() {
        *conditions = json!([]);
    }
    let Some(list) = conditions.as_array_mut() else { return };
    let known = list.iter_mut().find(|one| one["type"] == condition["type"]);
    let since = match &known {
        Some(before) if before["status"] == condition["status"] => before["lastTransitionTime"].clone(),
        _ => clock::rfc3339(now).into(),
    };
    condition["lastTransitionTime"] = since;
    match known {
        Some(before) => *before = condition,
        None => list.push(condition),
    }
}

/// What a pod is once it is bound to `node`; `Err` when it cannot be.
pub(crate) fn bound(pod: &Value, node: &str, annotations: &Value, now: i64) -> Result<Value, Status> {
    let name = text(&pod["metadata"], "name");
    let refuse = |why: String| Err(Status::conflict("", "pods/binding", name, &why));
    if pod["metadata"].get("deletionTimestamp").is_some() {
        return refuse(format!("pod {name} is being deleted, cannot be assigned to a host"));
    }
    let assigned = text(&pod["spec"], "nodeName");
    if !assigned.is_empty() {
        return refuse(format!("pod {name} is already assigned to node {}", Value::from(assigned)));
    }
    let mut pod = pod.clone();
    member(&mut pod, "spec").insert("nodeName".into(), node.into());
    if let Some(more) = annotations.as_object().filter(|more| !more.is_empty()) {
        let all = metadata(&mut pod).entry("annotations").or_insert_with(|| json!({}));
        for (key, value) in more {
            all[key.as_str()] = value.clone();
        }
    }
    condition(&mut pod, json!({"type": "PodScheduled", "status": "True"}), now);
    Ok(pod)
}

/// POST of a `Binding`, below the pod or to the namespace's bindings.
pub(super) async fn bind(api: &Api, request: &Request, target: &Target, name: Option<&str>) -> Result<Answer, Status> {
    let options = WriteOptions::parse("CreateOptions", &request.query)?;
    let binding = object(request, "Binding")?;
    let sent = text(&binding["metadata"], "name");
    let name = name.unwrap_or(sent);
    if !sent.is_empty() && sent != name {
        return Err(Status::bad_request(format!(
            "the name of the object ({sent}) does not match the name on the URL ({name})"
        )));
    }
    let namespace = text(&binding["metadata"], "namespace");
    if !namespace.is_empty() && namespace != target.scope() {
        return Err(Status::bad_request(
            "the namespace of the provided object does not match the namespace sent on the request",
        ));
    }
    let node = text(&binding["target"], "name");
    let invalid =
        |field: &str, cause| Err(Status::invalid_as("", "Binding", name, vec![FieldError::new(field, cause)]));
    if node.is_empty() {
        return invalid("target.name", FieldCause::Required(String::new()));
    }
    if let Some(why) = dns_subdomain(node).into_iter().next() {
        return invalid("target.name", FieldCause::Invalid(node.into(), why));
    }
    let kind = text(&binding["target"], "kind");
    if !kind.is_empty() && kind != "Node" {
        return invalid("target.kind", FieldCause::NotSupported(kind.into(), vec!["Node".into(), "<empty>".into()]));
    }
    let writer = api.storage.write().await;
    let pod =
        writer.get(target.id, &Key::new(target.scope(), name)).ok_or_else(|| Status::not_found(target.kind, name))?;
    let pod = bound(&pod.value(target.kind), node, &binding["metadata"]["annotations"], api.now())?;
    if !options.dry_run {
        commit_one(writer, target.id, |id| Change::Put(id, pod)).await?;
    }
    Ok(Answer::success(201))
}

/// POST of an `Eviction`: a deletion that leaves its reason in the pod's conditions. There are no disruption budgets.
pub(super) async fn evict(api: &Api, request: &Request, target: &Target, name: &str) -> Result<Answer, Status> {
    let eviction = object(request, "Eviction")?;
    let sent = text(&eviction["metadata"], "name");
    if !sent.is_empty() && sent != name {
        return Err(Status::bad_request(format!(
            "name in URL does not match name in Eviction object: {name} vs {sent}"
        )));
    }
    let mut options = DeleteOptions::from_parts(&eviction["deleteOptions"], &request.query)?;
    options.dry_run |= WriteOptions::parse("CreateOptions", &request.query)?.dry_run;
    let writer = api.storage.write().await;
    let current =
        writer.get(target.id, &Key::new(target.scope(), name)).ok_or_else(|| Status::not_found(target.kind, name))?;
    let mut pod = current.value(target.kind);
    if pod["metadata"].get("deletionTimestamp").is_none() {
        let reason = json!({
            "type": "DisruptionTarget", "status": "True",
            "reason": "EvictionByEvictionAPI", "message": "Eviction API: evicting",
        });
        condition(&mut pod, reason, api.now());
    }
    let change = match plan(target.kind, &pod, &options, api.now())? {
        Plan::Nothing => None,
        Plan::Mark(value) => Some(Change::Put(target.id, value)),
        Plan::Remove(value) => Some(Change::Delete(target.id, value)),
    };
    if let Some(change) = change.filter(|_| !options.dry_run) {
        writer.commit(vec![change]).await?;
    }
    Ok(Answer::success(201))
}
