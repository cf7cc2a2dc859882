//! `pods/log`: which container is meant, then what its node's kubelet says.

use std::sync::Arc;

use serde_json::Value;
use tokio::sync::OwnedSemaphorePermit;

use super::{Answer, existing};
use crate::apiserver::Api;
use crate::apiserver::kubelet::{self, Answered, Kubelet};
use crate::apiserver::object::Key;
use crate::apiserver::request::{Query, Target};
use crate::apiserver::status::{FieldCause, FieldError, Status};

/// Serves it. The bytes are the kubelet's, nothing of them is kept.
pub(super) async fn log(api: &Arc<Api>, query: &Query, target: &Target, name: &str) -> Result<Answer, Status> {
    let pod = existing(api, target, name)?.value(target.kind);
    let path = kubelet_path(&pod, target.scope(), name, query)?;
    let node_name = pod.pointer("/spec/nodeName").and_then(Value::as_str).unwrap_or_default();
    if node_name.is_empty() {
        // Nobody has it yet, and nothing is its log.
        return Ok(Answer::Text(None));
    }
    let kubelet = kubelet_of(api, node_name)?;
    let permit = permit(api)?;
    let closing = api.storage.closing().clone();
    match kubelet.get(&path, permit, closing).await.map_err(Status::internal)? {
        Answered::Body(body) => Ok(Answer::Text(Some(body))),
        Answered::Refused(400, text) => Err(Status::bad_request(text)),
        Answered::Refused(500, text) => Err(Status::internal(text)),
        Answered::Refused(code, text) => Err(Status::new(code, reason(code), text)),
    }
}

/// How the kubelet of a node is reached.
pub(super) fn kubelet_of<'a>(api: &'a Api, node_name: &str) -> Result<Kubelet<'a>, Status> {
    let nodes = api.storage.core("nodes").ok_or_else(Status::no_such_resource)?;
    let kind = api.storage.kind(nodes);
    let node = api.storage.get(nodes, &Key::new("", node_name)).ok_or_else(|| Status::not_found(kind, node_name))?;
    let (host, port) = kubelet::endpoint(&node.value(kind)).map_err(Status::internal)?;
    match &api.kubelet_client {
        Some(tls) => Ok(Kubelet { tls, host, port }),
        None => Err(Status::internal("this API server was started without a client certificate for kubelets")),
    }
}

/// Counts a stream among those that are open.
pub(super) fn permit(api: &Api) -> Result<OwnedSemaphorePermit, Status> {
    let permit = Arc::clone(&api.streams).try_acquire_owned();
    permit.map_err(|_| Status::too_many("too many logs and streams are open at the same time", 1))
}

fn reason(code: u16) -> &'static str {
    match code {
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "NotFound",
        405 => "MethodNotAllowed",
        429 => "TooManyRequests",
        503 => "ServiceUnavailable",
        504 => "Timeout",
        _ => "",
    }
}

/// The path at the kubelet, with the options that it gets.
fn kubelet_path(pod: &Value, namespace: &str, name: &str, query: &Query) -> Result<String, Status> {
    let options = options(name, query)?;
    let container = container(pod, name, query.get("container").unwrap_or_default())?;
    let separator = if options.is_empty() { "" } else { "?" };
    Ok(format!("/containerLogs/{namespace}/{name}/{container}{separator}{}", options.join("&")))
}

/// The container that is named, or the only one.
pub(super) fn container(pod: &Value, name: &str, wanted: &str) -> Result<String, Status> {
    let names = |list: &str| -> Vec<String> {
        let list = pod.pointer(&format!("/spec/{list}")).and_then(Value::as_array);
        list.into_iter().flatten().filter_map(|one| one["name"].as_str()).map(str::to_owned).collect()
    };
    let (main, init, ephemeral) = (names("containers"), names("initContainers"), names("ephemeralContainers"));
    if wanted.is_empty() {
        if let [only] = main.as_slice() {
            return Ok(only.clone());
        }
        let mut choose = format!("choose one of: [{}]", main.join(" "));
        if !init.is_empty() {
            choose.push_str(&format!(" or one of the init containers: [{}]", init.join(" ")));
        }
        return Err(Status::bad_request(format!("a container name must be specified for pod {name}, {choose}")));
    }
    if [&main, &init, &ephemeral].iter().any(|list| list.iter().any(|one| one == wanted)) {
        return Ok(wanted.to_owned());
    }
    Err(Status::bad_request(format!("container {wanted} is not valid for pod {name}")))
}

/// The options for the kubelet, checked, in alphabetical order.
fn options(name: &str, query: &Query) -> Result<Vec<String>, Status> {
    let mut errors = Vec::new();
    let mut options = Vec::new();
    if query.flag("follow") {
        options.push("follow=true".to_owned());
    }
    let mut number = |field: &'static str, least: i64, rule: &str| -> Result<Option<String>, Status> {
        let Some(text) = query.get(field).filter(|text| !text.is_empty()) else { return Ok(None) };
        let value: i64 = text.parse().map_err(|_| {
            let quoted = Value::from(text);
            Status::bad_request(format!("strconv.ParseInt: parsing {quoted}: invalid syntax"))
        })?;
        if value < least {
            errors.push(FieldError::new(field, FieldCause::Invalid(value.into(), rule.into())));
        }
        Ok(Some(format!("{field}={value}")))
    };
    let limit = number("limitBytes", 1, "must be greater than 0")?;
    let since = number("sinceSeconds", 1, "must be greater than 0")?;
    let tail = number("tailLines", 0, "must be greater than or equal to 0")?;
    options.extend(limit);
    if query.flag("previous") {
        options.push("previous=true".into());
    }
    let has_seconds = since.is_some();
    options.extend(since);
    if let Some(text) = query.get("sinceTime").filter(|text| !text.is_empty()) {
        let time: jiff::Timestamp = text.parse().map_err(|_| {
            Status::bad_request(format!("sinceTime: {} is not a time as RFC 3339 has it", Value::from(text)))
        })?;
        if has_seconds {
            let why = "at most one of `sinceTime` or `sinceSeconds` may be specified";
            errors.push(FieldError::new("", FieldCause::Forbidden(why.into())));
        }
        options.push(format!("sinceTime={}", time.to_string().replace(':', "%3A")));
    }
    options.extend(tail);
    if query.flag("timestamps") {
        options.push("timestamps=true".into());
    }
    if errors.is_empty() { Ok(options) } else { Err(Status::invalid_as("", "PodLogOptions", name, errors)) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn path(pod: &Value, query: &[(&str, &str)]) -> Result<String, String> {
        let query = Query(query.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect());
        kubelet_path(pod, "ns", "p", &query).map_err(|status| format!("{} {}", status.code, status.message))
    }

    #[test]
    fn the_container_is_the_named_or_the_only_one() {
        let one = json!({"spec": {"containers": [{"name": "a"}]}});
        assert_eq!(path(&one, &[]), Ok("/containerLogs/ns/p/a".into()));
        assert_eq!(path(&one, &[("container", "x")]), Err("400 container x is not valid for pod p".into()));
        let two = json!({"spec": {"containers": [{"name": "a"}, {"name": "b"}]}});
        let choose = "400 a container name must be specified for pod p, choose one of: [a b]";
        assert_eq!(path(&two, &[]), Err(choose.into()));
        let init = json!({"spec": {"containers": [{"name": "a"}, {"name": "b"}], "initContainers": [{"name": "i"}]}});
        assert_eq!(path(&init, &[]), Err(format!("{choose} or one of the init containers: [i]")));
        assert_eq!(path(&init, &[("container", "i")]), Ok("/containerLogs/ns/p/i".into()));
    }

    #[test]
    fn options_are_checked_and_passed_on() {
        let pod = json!({"spec": {"containers": [{"name": "a"}]}});
        let all = [
            ("follow", "true"),
            ("previous", "false"),
            ("tailLines", "5"),
            ("timestamps", "true"),
            ("limitBytes", "9"),
            ("sinceTime", "2026-01-02T03:04:05Z"),
        ];
        let expected = "/containerLogs/ns/p/a?follow=true&limitBytes=9&sinceTime=2026-01-02T03%3A04%3A05Z&tailLines=5\
                        &timestamps=true";
        assert_eq!(path(&pod, &all), Ok(expected.into()));
        let wrong = path(&pod, &[("tailLines", "-1"), ("limitBytes", "0")]).unwrap_err();
        assert_eq!(
            wrong,
            "422 PodLogOptions \"p\" is invalid: [limitBytes: Invalid value: 0: must be greater than 0, \
             tailLines: Invalid value: -1: must be greater than or equal to 0]"
        );
        assert!(path(&pod, &[("tailLines", "many")]).unwrap_err().starts_with("400"));
    }
}
