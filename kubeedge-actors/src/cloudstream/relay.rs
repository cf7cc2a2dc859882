//! One request: to the node of its pod and back.

use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http::{HeaderName, HeaderValue, Method, Response, StatusCode, header::CONTENT_TYPE};
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::{Frame, Incoming};
use kubeedge_proto::{
    NodeName,
    v1::{LocatePod, ObjectKey, StreamHead, StreamOpen},
};

use super::Asks;
use crate::link::streams::{NotConnected, OpenError, Stream, StreamError};

/// How long EdgeController may take to say where a pod is: it may have to ask the API server.
const LOCATE_WITHIN: Duration = Duration::from_secs(5);
/// How long CloudHub may take for a node's stream connection. Above its own bound, which has the better words.
const CONNECT_WITHIN: Duration = Duration::from_secs(12);
/// How long the edge may take to answer.
const HEAD_WITHIN: Duration = Duration::from_secs(15);
/// Longest path and query.
const MAX_PATH: usize = 4 * 1024;

/// The body of an answer.
pub(super) type Answer = UnsyncBoxBody<Bytes, StreamError>;

/// A refusal on its way.
type Refused = (StatusCode, String);

pub(super) async fn answer(request: http::Request<Incoming>, asks: &Asks) -> Response<Answer> {
    match relay(&request, asks).await {
        Ok((head, stream)) => streamed(head, stream),
        Err((status, why)) => {
            tracing::info!(path = request.uri().path(), %status, "a stream did not come about: {why}");
            text(status, why)
        }
    }
}

async fn relay(request: &http::Request<Incoming>, asks: &Asks) -> Result<(StreamHead, Stream), Refused> {
    let path_and_query = request.uri().path_and_query().map_or("", |path| path.as_str());
    if path_and_query.len() > MAX_PATH {
        return Err((StatusCode::URI_TOO_LONG, format!("the path is longer than {MAX_PATH} bytes")));
    }
    let (node, path_and_query) = match target(request.method(), request.uri().path())? {
        Target::Pod(key) => (locate(key, asks).await?, path_and_query.to_owned()),
        Target::Node(node, path) => {
            let query = request.uri().query().map_or_else(String::new, |query| format!("?{query}"));
            (node, format!("/{path}{query}"))
        }
    };
    let mut stream = open(&node, &path_and_query, asks).await?;
    stream.finish();
    match tokio::time::timeout(HEAD_WITHIN, stream.head()).await {
        Ok(Ok(head)) => Ok((head, stream)),
        Ok(Err(error)) => Err((StatusCode::BAD_GATEWAY, format!("node {node}: {error}"))),
        Err(_) => Err((StatusCode::GATEWAY_TIMEOUT, format!("node {node} did not answer within {HEAD_WITHIN:?}"))),
    }
}

/// The node that a pod is bound to.
async fn locate(key: ObjectKey, asks: &Asks) -> Result<NodeName, Refused> {
    let pod = asks.locate.ask(LocatePod { pod: Some(key.clone()) }, LOCATE_WITHIN).await;
    let pod = pod.map_err(|error| (StatusCode::SERVICE_UNAVAILABLE, format!("EdgeController: {error}")))?;
    if pod.code != 200 {
        let status = u16::try_from(pod.code).ok().and_then(|code| StatusCode::from_u16(code).ok());
        return Err((status.unwrap_or(StatusCode::BAD_GATEWAY), pod.message));
    }
    pod.node.parse().map_err(|_| (StatusCode::BAD_REQUEST, format!("pod {key} is not bound to a node of this cloud")))
}

async fn open(node: &NodeName, path_and_query: &str, asks: &Asks) -> Result<Stream, Refused> {
    let open = StreamOpen { method: "GET".into(), path_and_query: path_and_query.into(), ..StreamOpen::default() };
    let connected = asks.connect.ask(crate::link::streams::ConnectStreams { node: node.clone() }, CONNECT_WITHIN).await;
    let connection = match connected {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => {
            let status = match &error {
                NotConnected::Offline(_) => StatusCode::SERVICE_UNAVAILABLE,
                NotConnected::Late(_) => StatusCode::GATEWAY_TIMEOUT,
                NotConnected::Busy(_) => StatusCode::TOO_MANY_REQUESTS,
            };
            return Err((status, error.to_string()));
        }
        Err(error) => return Err((StatusCode::SERVICE_UNAVAILABLE, format!("CloudHub: {error}"))),
    };
    connection.open(open).map_err(|error| {
        let status = match &error {
            OpenError::Full => StatusCode::TOO_MANY_REQUESTS,
            OpenError::Disconnected(_) => StatusCode::BAD_GATEWAY,
        };
        (status, format!("node {node}: {error}"))
    })
}

/// What of a node as a whole is relayed. A kubelet's pods and its own metrics are for whoever is at the node.
const OF_NODES: [&str; 3] = ["stats/summary", "metrics/resource", "healthz"];

/// What a path is about.
#[derive(Debug, PartialEq, Eq)]
enum Target {
    /// A pod.
    Pod(ObjectKey),
    /// A node, and the path there.
    Node(NodeName, String),
}

fn target(method: &Method, path: &str) -> Result<Target, Refused> {
    let of_node = path.strip_prefix("/nodes/").and_then(|rest| rest.split_once('/'));
    let parts: Vec<&str> = path.split('/').collect();
    let target = match (of_node, parts.as_slice()) {
        (Some((node, rest)), _) if OF_NODES.contains(&rest) => {
            let node: NodeName = node.parse().map_err(|error| (StatusCode::BAD_REQUEST, format!("{error}")))?;
            Target::Node(node, rest.to_owned())
        }
        (None, ["", "containerLogs", namespace, pod, _container]) => {
            let key = ObjectKey::new(namespace.to_string(), pod.to_string());
            if key.namespace.is_empty() || !key.is_valid() {
                return Err((StatusCode::BAD_REQUEST, format!("{namespace:?}, {pod:?} is not the name of a pod")));
            }
            Target::Pod(key)
        }
        _ => {
            let served = "only /containerLogs and /nodes/<node>/ with stats/summary, metrics/resource or healthz are";
            return Err((StatusCode::NOT_FOUND, format!("{path:?} is not served here: {served}")));
        }
    };
    if method != Method::GET {
        return Err((StatusCode::METHOD_NOT_ALLOWED, format!("{method} is not allowed: only GET is served")));
    }
    Ok(target)
}

/// Plain text.
pub(super) fn text(status: StatusCode, text: String) -> Response<Answer> {
    let body = Full::new(Bytes::from(text)).map_err(|never| match never {}).boxed_unsync();
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

/// The edge's head and bytes as they come. A stream that breaks off breaks the body off: the client sees that.
fn streamed(head: StreamHead, stream: Stream) -> Response<Answer> {
    let bytes = stream::unfold(Some(stream), |stream| async move {
        let mut stream = stream?;
        match stream.read().await {
            Ok(Some(bytes)) => Some((Ok(Frame::data(bytes)), Some(stream))),
            Ok(None) => None,
            Err(error) => Some((Err(error), None)),
        }
    });
    let mut response = Response::new(StreamBody::new(bytes).boxed_unsync());
    let status = u16::try_from(head.status).ok().and_then(|code| StatusCode::from_u16(code).ok());
    // Informational codes are no answers.
    *response.status_mut() = status.filter(|status| !status.is_informational()).unwrap_or(StatusCode::BAD_GATEWAY);
    for (name, value) in &head.headers {
        // Framing is this connection's own: of the edge's headers only what says how to read the bytes goes through.
        if name.eq_ignore_ascii_case("content-type")
            && let (Ok(name), Ok(value)) = (name.parse::<HeaderName>(), HeaderValue::from_str(value))
        {
            response.headers_mut().insert(name, value);
        }
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_logs_of_a_named_pod_and_figures_of_a_named_node_are_served() {
        let target = |path| super::target(&Method::GET, path).map_err(|(status, _)| status.as_u16());
        assert_eq!(target("/containerLogs/ns/p/c"), Ok(Target::Pod(ObjectKey::new("ns", "p"))));
        for (path, code) in [
            ("/containerLogs/ns/p", 404),
            ("/exec/ns/p/c", 404),
            ("/containerLogs/../p/c", 400),
            ("/containerLogs//p/c", 400),
            ("/stats/summary", 404),
            ("/nodes/edge-1", 404),
            ("/nodes/edge-1/pods", 404),
            ("/nodes/edge-1/containerLogs/ns/p/c", 404),
            ("/nodes/../stats/summary", 400),
        ] {
            assert_eq!(target(path), Err(code), "{path}");
        }
        let node = Target::Node("edge-1".parse().unwrap(), "stats/summary".into());
        assert_eq!(target("/nodes/edge-1/stats/summary"), Ok(node));
        assert_eq!(
            super::target(&Method::POST, "/containerLogs/ns/p/c").unwrap_err().0,
            StatusCode::METHOD_NOT_ALLOWED
        );
    }
}
