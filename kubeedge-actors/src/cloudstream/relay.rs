//! One request: to the node of its pod and back.

use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http::{
    HeaderName, HeaderValue, Method, Response, StatusCode,
    header::{CONNECTION, CONTENT_TYPE, UPGRADE},
};
use http_body_util::{BodyExt, Empty, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    body::{Frame, Incoming},
    upgrade::OnUpgrade,
};
use hyper_util::rt::TokioIo;
use kubeedge_proto::{
    NodeName,
    v1::{LocatePod, ObjectKey, StreamHead, StreamOpen},
};

use super::Asks;
use crate::{
    link::streams::{NotConnected, OpenError, Stream, StreamError, relay::relay},
    upgrade,
};

/// How long EdgeController may take to say where a pod is: it may have to ask the API server.
const LOCATE_WITHIN: Duration = Duration::from_secs(5);
/// How long CloudHub may take for a node's stream connection. Above its own bound, which has the better words.
const CONNECT_WITHIN: Duration = Duration::from_secs(12);
/// How long the edge may take to answer.
const HEAD_WITHIN: Duration = Duration::from_secs(15);
/// Longest path and query: commands are in it. With the headers of an upgrade it fits into one frame of the link.
const MAX_PATH: usize = 32 * 1024;

/// The body of an answer.
pub(super) type Answer = UnsyncBoxBody<Bytes, StreamError>;

/// A refusal on its way.
type Refused = (StatusCode, String);

/// An upgraded connection, once its 101 is on its way.
pub(super) struct Upgraded {
    client: OnUpgrade,
    stream: Stream,
}

impl Upgraded {
    /// Relays until one of both ends.
    pub(super) async fn run(mut self) -> Result<(), Box<dyn std::error::Error>> {
        let client = self.client.await?;
        relay(&mut self.stream, TokioIo::new(client)).await?;
        // Both are told by the drop.
        self.stream.finish();
        Ok(())
    }
}

/// The answer, and what comes after it if it is an upgrade.
pub(super) async fn answer(mut request: http::Request<Incoming>, asks: &Asks) -> (Response<Answer>, Option<Upgraded>) {
    match ask(&request, asks).await {
        Ok((head, stream)) if head.status == u32::from(StatusCode::SWITCHING_PROTOCOLS.as_u16()) => {
            let client = hyper::upgrade::on(&mut request);
            (switching(&head), Some(Upgraded { client, stream }))
        }
        Ok((head, stream)) => (streamed(head, stream), None),
        Err((status, why)) => {
            tracing::info!(path = request.uri().path(), %status, "a stream did not come about: {why}");
            (text(status, why), None)
        }
    }
}

async fn ask(request: &http::Request<Incoming>, asks: &Asks) -> Result<(StreamHead, Stream), Refused> {
    let mut open = request_of(request)?;
    let upgrades = open.upgrade;
    let node = match target(request.method(), request.uri().path(), upgrades)? {
        Target::Pod(key) => locate(key, asks).await?,
        Target::Node(node, path) => {
            let query = request.uri().query().map_or_else(String::new, |query| format!("?{query}"));
            open.path_and_query = format!("/{path}{query}");
            node
        }
    };
    let mut stream = open_at(&node, open, asks).await?;
    if !upgrades {
        stream.finish();
    }
    match tokio::time::timeout(HEAD_WITHIN, stream.head()).await {
        Ok(Ok(head)) if head.status == 101 && !upgrades => {
            Err((StatusCode::BAD_GATEWAY, format!("node {node} upgrades what is no upgrade")))
        }
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

/// The request as it goes over the link.
fn request_of<B>(request: &http::Request<B>) -> Result<StreamOpen, Refused> {
    let path_and_query = request.uri().path_and_query().map_or("", |path| path.as_str());
    if path_and_query.len() > MAX_PATH {
        return Err((StatusCode::URI_TOO_LONG, format!("the path is longer than {MAX_PATH} bytes")));
    }
    let said = request.headers().get_all(CONNECTION).iter().filter_map(|value| value.to_str().ok());
    let mut said = said.flat_map(|value| value.split(',')).map(str::trim);
    let upgrade = said.any(|option| option.eq_ignore_ascii_case("upgrade")) && request.headers().contains_key(UPGRADE);
    let mut open = StreamOpen {
        method: request.method().as_str().to_owned(),
        path_and_query: path_and_query.to_owned(),
        upgrade,
        ..StreamOpen::default()
    };
    if upgrade {
        let headers = request.headers().iter().map(|(name, value)| (name.as_str(), value.as_bytes()));
        open.headers = upgrade::collect(headers)
            .map_err(|error| (StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, error.to_string()))?;
    }
    Ok(open)
}

async fn open_at(node: &NodeName, open: StreamOpen, asks: &Asks) -> Result<Stream, Refused> {
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

fn target(method: &Method, path: &str, upgrade: bool) -> Result<Target, Refused> {
    let of_node = path.strip_prefix("/nodes/").and_then(|rest| rest.split_once('/'));
    let Some((node, rest)) = of_node.filter(|(_, rest)| OF_NODES.contains(rest)) else {
        return pod_of(method, path, upgrade).map(Target::Pod);
    };
    let node: NodeName = node.parse().map_err(|error| (StatusCode::BAD_REQUEST, format!("{error}")))?;
    if method != Method::GET || upgrade {
        let why = format!("{method} is not allowed: figures of a node are read with GET");
        return Err((StatusCode::METHOD_NOT_ALLOWED, why));
    }
    Ok(Target::Node(node, rest.to_owned()))
}

/// The pod that a path is about.
fn pod_of(method: &Method, path: &str, upgrade: bool) -> Result<ObjectKey, Refused> {
    let parts: Vec<&str> = path.split('/').collect();
    let (namespace, pod) = match parts.as_slice() {
        ["", "containerLogs", namespace, pod, _container] => {
            if method != Method::GET {
                return Err((
                    StatusCode::METHOD_NOT_ALLOWED,
                    format!("{method} is not allowed: logs are read with GET"),
                ));
            }
            (*namespace, *pod)
        }
        ["", verb @ ("exec" | "attach"), namespace, pod, _] | ["", verb @ "portForward", namespace, pod] => {
            if method != Method::GET && method != Method::POST {
                let why = format!("{method} is not allowed: {verb} is asked for with GET or POST");
                return Err((StatusCode::METHOD_NOT_ALLOWED, why));
            }
            if !upgrade {
                return Err((StatusCode::BAD_REQUEST, "Upgrade request required".into()));
            }
            (*namespace, *pod)
        }
        _ => {
            let served = "/containerLogs, /exec, /attach, /portForward and figures of /nodes/<node>";
            return Err((StatusCode::NOT_FOUND, format!("{path:?} is not served here: only {served} are")));
        }
    };
    let key = ObjectKey::new(namespace.to_owned(), pod.to_owned());
    if key.namespace.is_empty() || !key.is_valid() {
        return Err((StatusCode::BAD_REQUEST, format!("{namespace:?}, {pod:?} is not the name of a pod")));
    }
    Ok(key)
}

/// 101 with the edge's headers.
fn switching(head: &StreamHead) -> Response<Answer> {
    let mut response = Response::new(Empty::new().map_err(|never| match never {}).boxed_unsync());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    append(&mut response, head);
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    response
}

fn append(response: &mut Response<Answer>, head: &StreamHead) {
    for (name, value) in upgrade::each(&head.headers) {
        if let (Ok(name), Ok(value)) = (name.parse::<HeaderName>(), HeaderValue::from_str(value)) {
            response.headers_mut().append(name, value);
        }
    }
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
    append(&mut response, &head);
    // It is a promise of this connection, and this one is not upgraded.
    response.headers_mut().remove(UPGRADE);
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
    fn only_what_a_kubelet_serves_of_a_named_pod_is_served() {
        let pod = |path| pod_of(&Method::GET, path, false).map_err(|(status, _)| status.as_u16());
        assert_eq!(pod("/containerLogs/ns/p/c"), Ok(ObjectKey::new("ns", "p")));
        assert_eq!(pod("/containerLogs/ns/p"), Err(404));
        assert_eq!(pod("/run/ns/p/c"), Err(404));
        assert_eq!(pod("/containerLogs/../p/c"), Err(400));
        assert_eq!(pod("/containerLogs//p/c"), Err(400));
        // Without an upgrade there is nothing to relay.
        assert_eq!(pod("/exec/ns/p/c"), Err(400));
        let method = |method, path| pod_of(&method, path, true).map_err(|(status, _)| status.as_u16());
        assert_eq!(method(Method::POST, "/containerLogs/ns/p/c"), Err(405));
        for path in ["/exec/ns/p/c", "/attach/ns/p/c", "/portForward/ns/p"] {
            assert_eq!(method(Method::POST, path), Ok(ObjectKey::new("ns", "p")));
            assert_eq!(method(Method::GET, path), Ok(ObjectKey::new("ns", "p")));
            assert_eq!(method(Method::PUT, path), Err(405));
        }
        assert_eq!(method(Method::POST, "/portForward/ns/p/c"), Err(404));
        assert_eq!(method(Method::POST, "/exec/ns/p"), Err(404));
    }

    #[test]
    fn figures_of_a_named_node_are_served_and_nothing_else_of_it() {
        let target = |path| super::target(&Method::GET, path, false).map_err(|(status, _)| status.as_u16());
        for (path, code) in [
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
        let refused = |method, upgrade| super::target(&method, "/nodes/edge-1/healthz", upgrade).unwrap_err().0;
        assert_eq!(refused(Method::POST, false), StatusCode::METHOD_NOT_ALLOWED);
        assert_eq!(refused(Method::GET, true), StatusCode::METHOD_NOT_ALLOWED);
    }

    #[test]
    fn an_upgrade_goes_over_the_link_with_its_headers_and_within_bounds() {
        let request = |path: &str, connection: &str| {
            let request = http::Request::post(path).header("connection", connection).header("upgrade", "SPDY/3.1");
            let request = request.header("authorization", "Bearer secret");
            request.header("x-stream-protocol-version", "v4.channel.k8s.io").body(()).unwrap()
        };
        let open = request_of(&request("/exec/ns/p/c?command=ls", "keep-alive, Upgrade")).unwrap();
        assert!(open.upgrade && open.method == "POST" && open.path_and_query == "/exec/ns/p/c?command=ls");
        let mut headers: Vec<_> = open.headers.keys().map(String::as_str).collect();
        headers.sort_unstable();
        assert_eq!(headers, ["upgrade", "x-stream-protocol-version"]);
        let plain = request_of(&request("/exec/ns/p/c", "keep-alive")).unwrap();
        assert!(!plain.upgrade && plain.headers.is_empty());
        let long = request(&format!("/exec/ns/p/c?command={}", "x".repeat(MAX_PATH)), "Upgrade");
        assert_eq!(request_of(&long).unwrap_err().0, StatusCode::URI_TOO_LONG);
        let heavy = http::Request::get("/exec/ns/p/c").header("connection", "Upgrade");
        let heavy = heavy.header("upgrade", "x".repeat(upgrade::MAX_HEADER_BYTES)).body(()).unwrap();
        assert_eq!(request_of(&heavy).unwrap_err().0, StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
    }
}
