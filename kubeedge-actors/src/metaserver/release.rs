//! Releases held pods, as `keadm ctl unhold-upgrade` asks for it: `POST /api/v1/pods/unhold-upgrade` with
//! `<namespace>/<name>` as body, `POST /api/v1/nodes/unhold-upgrade` with the node's name for every pod that waits.

use std::time::Duration;

use actix_web::{HttpRequest, HttpResponse, http::Method, web};
use kubeedge_proto::{NodeName, v1::ReleasePods};

use crate::{
    kubeapi::{http, status::Status},
    system::Port,
};

const OF_PODS: &str = "/api/v1/pods/unhold-upgrade";
const OF_NODE: &str = "/api/v1/nodes/unhold-upgrade";
/// The longest body: the name of a namespace, of a pod, and what stands between and behind them.
const MAX_BODY: usize = 1024;
const BODY_WITHIN: Duration = Duration::from_secs(10);
/// That pods were released is written to the disk first.
const RELEASED_WITHIN: Duration = Duration::from_secs(10);

/// Whether a request asks for this.
pub(super) fn is_asked(http: &HttpRequest) -> bool {
    http.method() == Method::POST && [OF_PODS, OF_NODE].contains(&http.path())
}

/// Answers such a request: 200 and nothing else when the pods may begin.
pub(super) async fn release(
    port: Option<&Port<ReleasePods>>,
    node: &NodeName,
    http: &HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, Status> {
    let port = port.ok_or_else(|| Status::new(503, "ServiceUnavailable", "this node runs no pods"))?;
    let body = http::body(http, payload, MAX_BODY, BODY_WITHIN).await?;
    let message = asked(http.path() == OF_NODE, &body, node)?;
    let settled = port.ask(message, RELEASED_WITHIN).await;
    let settled = settled.map_err(|error| Status::new(503, "ServiceUnavailable", format!("Edged: {error}")))?;
    match settled.code {
        0 => Ok(HttpResponse::Ok().finish()),
        404 => Err(Status::new(404, "NotFound", settled.reason)),
        _ => Err(Status::new(500, "InternalError", settled.reason)),
    }
}

/// What a body asks for.
fn asked(of_node: bool, body: &[u8], node: &NodeName) -> Result<ReleasePods, Status> {
    let text = std::str::from_utf8(body).map_err(|_| Status::bad_request("the body is not text"))?.trim();
    if of_node {
        if text == node.as_str() {
            return Ok(ReleasePods::default());
        }
        return Err(Status::new(404, "NotFound", format!("this is node {node}: the body has to be its name")));
    }
    let parts = text
        .split_once('/')
        .filter(|(namespace, name)| [namespace, name].iter().all(|part| kubeedge_proto::is_dns_subdomain(part)));
    let Some((namespace, name)) = parts else {
        return Err(Status::bad_request("the body is not a pod: expected <namespace>/<name>"));
    };
    Ok(ReleasePods { namespace: namespace.to_owned(), name: name.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_or_this_very_node_can_be_named_and_nothing_else() {
        let node: NodeName = "edge-1".parse().unwrap();
        let pod = asked(false, b"default/web.1\n", &node).unwrap();
        assert_eq!((pod.namespace.as_str(), pod.name.as_str()), ("default", "web.1"));
        assert_eq!(asked(true, b"edge-1", &node).unwrap(), ReleasePods::default());
        for bad in [&b""[..], b"web", b"/web", b"default/", b"default/a/b", b"default/../x", b"\xff/x", b"a b/c"] {
            assert_eq!(asked(false, bad, &node).unwrap_err().code, 400, "{bad:?}");
        }
        for bad in [&b""[..], b"edge-2", b"default/web"] {
            assert_eq!(asked(true, bad, &node).unwrap_err().code, 404, "{bad:?}");
        }
    }
}
