//! `pods/exec`, `pods/attach` and `pods/portforward`: an HTTP upgrade that the node's kubelet, or what stands for it, takes
//! or refuses. Nothing of it is read here.

use std::collections::HashMap;
use std::sync::Arc;

use serde_json::Value;
use tokio::sync::OwnedSemaphorePermit;

use super::{existing, log};
use crate::apiserver::Api;
use crate::apiserver::kubelet::Upgrade;
use crate::apiserver::request::{Query, Target};
use crate::apiserver::status::Status;
use crate::upgrade;

/// Whether a subresource of pods is asked for with an upgrade.
pub(crate) fn is_stream(subresource: &str) -> bool {
    matches!(subresource, "exec" | "attach" | "portforward")
}

/// Opens it: the kubelet's answer, and what counts it among the streams that are open.
pub(crate) async fn connect(
    api: &Arc<Api>,
    query: &Query,
    target: &Target,
    method: &str,
    headers: &HashMap<String, String>,
) -> Result<(Upgrade, OwnedSemaphorePermit), Status> {
    let (Some(name), Some(subresource)) = (&target.name, &target.subresource) else {
        return Err(Status::no_such_resource());
    };
    let pod = existing(api, target, name)?.value(target.kind);
    let path = kubelet_path(&pod, target.scope(), name, subresource, query)?;
    let node_name = pod.pointer("/spec/nodeName").and_then(Value::as_str).unwrap_or_default();
    if node_name.is_empty() {
        return Err(Status::bad_request(format!("pod {name} does not have a host assigned")));
    }
    let kubelet = log::kubelet_of(api, node_name)?;
    let permit = log::permit(api)?;
    let answer = tokio::select! {
        answer = kubelet.upgrade(method, &path, upgrade::each(headers)) => answer.map_err(Status::internal)?,
        () = api.storage.closing().cancelled() => {
            return Err(Status::new(503, "ServiceUnavailable", "the server is stopping"));
        }
    };
    Ok((answer, permit))
}

/// The path at the kubelet, with the options that it gets, in alphabetical order.
fn kubelet_path(pod: &Value, namespace: &str, name: &str, subresource: &str, query: &Query) -> Result<String, Status> {
    let mut options = form_urlencoded::Serializer::new(String::new());
    let path = if subresource == "portforward" {
        let ports: Vec<&str> = query.all("ports").collect();
        if !ports.is_empty() {
            options.append_pair("port", &ports.join(","));
        }
        format!("/portForward/{namespace}/{name}")
    } else {
        let container = log::container(pod, name, query.get("container").unwrap_or_default())?;
        if subresource == "exec" {
            let commands: Vec<&str> = query.all("command").collect();
            if commands.is_empty() {
                return Err(Status::bad_request("you must specify at least one command for the container"));
            }
            for command in commands {
                options.append_pair("command", command);
            }
        }
        for (ours, theirs) in [("stderr", "error"), ("stdin", "input"), ("stdout", "output"), ("tty", "tty")] {
            if query.flag(ours) {
                options.append_pair(theirs, "1");
            }
        }
        format!("/{subresource}/{namespace}/{name}/{container}")
    };
    let options = options.finish();
    Ok(if options.is_empty() { path } else { format!("{path}?{options}") })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn path(subresource: &str, query: &[(&str, &str)]) -> Result<String, String> {
        let pod = json!({"spec": {"containers": [{"name": "a"}, {"name": "b"}]}});
        let query = Query(query.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect());
        kubelet_path(&pod, "ns", "p", subresource, &query)
            .map_err(|status| format!("{} {}", status.code, status.message))
    }

    #[test]
    fn a_stream_is_asked_for_at_the_kubelet_as_a_real_api_server_asks() {
        let exec = [
            ("command", "sh"),
            ("command", "-c"),
            ("command", "echo a&b"),
            ("container", "a"),
            ("stdin", "true"),
            ("stdout", "true"),
            ("stderr", "false"),
        ];
        let expected = "/exec/ns/p/a?command=sh&command=-c&command=echo+a%26b&input=1&output=1";
        assert_eq!(path("exec", &exec), Ok(expected.into()));
        let attach = [("container", "b"), ("stdin", "true"), ("stdout", "true"), ("tty", "true")];
        assert_eq!(path("attach", &attach), Ok("/attach/ns/p/b?input=1&output=1&tty=1".into()));
        assert_eq!(path("portforward", &[]), Ok("/portForward/ns/p".into()));
        let ports = [("ports", "80"), ("ports", "8080")];
        assert_eq!(path("portforward", &ports), Ok("/portForward/ns/p?port=80%2C8080".into()));
    }

    #[test]
    fn what_cannot_be_is_refused_in_a_real_api_servers_words() {
        let choose = "400 a container name must be specified for pod p, choose one of: [a b]";
        assert_eq!(path("exec", &[("command", "ls")]), Err(choose.into()));
        assert_eq!(path("attach", &[("container", "x")]), Err("400 container x is not valid for pod p".into()));
        let none = "400 you must specify at least one command for the container";
        assert_eq!(path("exec", &[("container", "a"), ("stdout", "true")]), Err(none.into()));
    }
}
