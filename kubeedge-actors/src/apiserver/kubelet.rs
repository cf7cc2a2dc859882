//! The server as a client of kubelets: where a node's kubelet is, one GET there, and one upgrade.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::StatusCode;
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::header::CONTENT_TYPE;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::upgrade;

/// TCP and TLS may take this long.
const DIAL: Duration = Duration::from_secs(10);
/// The head of the answer may take this long: a gateway waits for the node meanwhile.
const HEAD: Duration = Duration::from_secs(45);
/// The text of a refusal is read up to this many bytes.
const MAX_TEXT: usize = 16 * 1024;
/// The port of a kubelet that does not tell one.
const KUBELET_PORT: u64 = 10250;
/// Which of a node's addresses is dialled: the order that a real API server has by default.
const PREFERRED: [&str; 5] = ["Hostname", "InternalDNS", "InternalIP", "ExternalDNS", "ExternalIP"];

/// Where a node's kubelet is, from the node's status: host and port.
pub(crate) fn endpoint(node: &Value) -> Result<(String, u16), String> {
    let empty = Vec::new();
    let addresses = node.pointer("/status/addresses").and_then(Value::as_array).unwrap_or(&empty);
    let of_type = |wanted: &str| addresses.iter().find(|address| address["type"] == wanted);
    let address = PREFERRED.iter().find_map(|wanted| of_type(wanted)?["address"].as_str());
    let Some(host) = address.filter(|host| !host.is_empty()) else {
        return Err("no preferred addresses found; known addresses: []".into());
    };
    let port = node.pointer("/status/daemonEndpoints/kubeletEndpoint/Port").and_then(Value::as_u64);
    let port = port.filter(|port| *port != 0).unwrap_or(KUBELET_PORT);
    let port = u16::try_from(port).map_err(|_| format!("{port} is not a port"))?;
    Ok((host.to_owned(), port))
}

/// An answer: bytes as they come, or a refusal in full.
pub(crate) enum Answered {
    /// 2xx.
    Body(Body),
    /// Another status, and what it said.
    Refused(u16, String),
}

/// Bytes as they come. Dropping it ends the connection, which tells the kubelet.
pub(crate) struct Body {
    body: Incoming,
    _connection: AbortOnDropHandle<()>,
    /// Counts it among those that are open.
    _permit: OwnedSemaphorePermit,
    /// The server stops.
    closing: CancellationToken,
}

impl Body {
    /// The next bytes.
    pub(crate) async fn next(&mut self) -> Option<Result<Bytes, hyper::Error>> {
        loop {
            let frame = tokio::select! {
                frame = self.body.frame() => frame?,
                () = self.closing.cancelled() => return None,
            };
            match frame.map(|frame| frame.into_data()) {
                Ok(Ok(bytes)) => return Some(Ok(bytes)),
                // Trailers.
                Ok(Err(_)) => {}
                Err(error) => return Some(Err(error)),
            }
        }
    }
}

/// Where a kubelet is, and what it is spoken to with.
pub(crate) struct Kubelet<'a> {
    pub(crate) tls: &'a Arc<ClientConfig>,
    pub(crate) host: String,
    pub(crate) port: u16,
}

/// One connection that has carried nothing yet.
struct Dialled {
    sender: http1::SendRequest<Empty<Bytes>>,
    authority: String,
    connection: AbortOnDropHandle<()>,
}

impl Kubelet<'_> {
    fn authority(&self) -> String {
        let Self { host, port, .. } = self;
        if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
    }

    async fn dial(&self) -> Result<Dialled, String> {
        let authority = self.authority();
        let dial = async {
            let name = ServerName::try_from(self.host.clone()).map_err(|error| error.to_string())?;
            let stream = TcpStream::connect((self.host.as_str(), self.port)).await;
            let stream = stream.map_err(|error| format!("dial tcp {authority}: {error}"))?;
            stream.set_nodelay(true).map_err(|error| format!("dial tcp {authority}: {error}"))?;
            let connector = TlsConnector::from(Arc::clone(self.tls));
            connector.connect(name, stream).await.map_err(|error| format!("tls: {error}"))
        };
        let stream = tokio::time::timeout(DIAL, dial).await.map_err(|_| "dial timeout")??;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
        let connection = AbortOnDropHandle::new(tokio::spawn(async move {
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(%error, "a connection to a kubelet ended");
            }
        }));
        Ok(Dialled { sender, authority, connection })
    }

    /// `GET https://host:port/path`, in a real API server's words when it fails.
    pub(crate) async fn get(
        &self,
        path: &str,
        permit: OwnedSemaphorePermit,
        closing: CancellationToken,
    ) -> Result<Answered, String> {
        let answered = async {
            let mut dialled = self.dial().await?;
            let request = hyper::Request::get(path).header("Host", &dialled.authority).body(Empty::new());
            let response = dialled.send(request).await?;
            let status = response.status();
            let body = response.into_body();
            if status.is_success() {
                let connection = dialled.connection;
                return Ok(Answered::Body(Body { body, _connection: connection, _permit: permit, closing }));
            }
            let text = read(body).await?;
            Ok(Answered::Refused(status.as_u16(), String::from_utf8_lossy(&text).into_owned()))
        };
        answered.await.map_err(|why: String| format!("Get \"https://{}{path}\": {why}", self.authority()))
    }

    /// Asks for an upgrade with the client's own headers.
    pub(crate) async fn upgrade(
        &self,
        method: &str,
        path: &str,
        headers: impl Iterator<Item = (&str, &str)>,
    ) -> Result<Upgrade, String> {
        let failed = |why: String| format!("error dialing backend: {why}");
        let mut dialled = self.dial().await.map_err(failed)?;
        let request = hyper::Request::builder().method(method).uri(path).header("Host", &dialled.authority);
        let mut request = request.header("Connection", "Upgrade");
        for (name, value) in headers {
            request = request.header(name, value);
        }
        let response = dialled.send(request.body(Empty::new())).await.map_err(failed)?;
        let head = response.headers().iter().map(|(name, value)| (name.as_str(), value.as_bytes()));
        let head = upgrade::collect(head).map_err(|error| failed(error.to_string()))?;
        match response.status() {
            StatusCode::SWITCHING_PROTOCOLS => {
                // With it the connection's task has given its socket away and ends.
                let io = hyper::upgrade::on(response).await.map_err(|error| failed(error.to_string()))?;
                Ok(Upgrade::Switched { head, io })
            }
            status if status.as_u16() < 400 => {
                Err(format!("invalid upgrade response: status code {}", status.as_u16()))
            }
            status => {
                let kind = response.headers().get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
                let kind = kind.unwrap_or("text/plain; charset=utf-8").to_owned();
                let text = read(response.into_body()).await.map_err(failed)?;
                Ok(Upgrade::Refused { status: status.as_u16(), head, kind, text })
            }
        }
    }
}

/// What came of an upgrade.
pub(crate) enum Upgrade {
    /// 101: the connection's bytes are the client's from here on.
    Switched { head: HashMap<String, String>, io: Upgraded },
    /// What the kubelet, or the runtime behind it, said instead.
    Refused { status: u16, head: HashMap<String, String>, kind: String, text: Bytes },
}

impl Dialled {
    async fn send(
        &mut self,
        request: Result<hyper::Request<Empty<Bytes>>, hyper::http::Error>,
    ) -> Result<hyper::Response<Incoming>, String> {
        let request = request.map_err(|error| error.to_string())?;
        let response = tokio::time::timeout(HEAD, self.sender.send_request(request)).await;
        response.map_err(|_| "response header timeout")?.map_err(|error| error.to_string())
    }
}

/// The text of a refusal.
async fn read(body: Incoming) -> Result<Bytes, String> {
    let text = tokio::time::timeout(DIAL, Limited::new(body, MAX_TEXT).collect()).await;
    Ok(text.map_err(|_| "response timeout")?.map_err(|error| error.to_string())?.to_bytes())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_kubelet_is_where_its_node_says() {
        let address = |kind: &str, address: &str| json!({"type": kind, "address": address});
        let node = |addresses: Value, port: Value| json!({"status": {"addresses": addresses, "daemonEndpoints": {"kubeletEndpoint": {"Port": port}}}});
        let both = json!([address("InternalIP", "10.0.0.1"), address("InternalDNS", "gate")]);
        assert_eq!(endpoint(&node(both, 10003.into())), Ok(("gate".into(), 10003)));
        let one = json!([address("InternalIP", "10.0.0.1")]);
        assert_eq!(endpoint(&node(one.clone(), 0.into())), Ok(("10.0.0.1".into(), 10250)));
        assert_eq!(endpoint(&json!({"status": {"addresses": one}})), Ok(("10.0.0.1".into(), 10250)));
        assert!(endpoint(&node(json!([]), 1.into())).unwrap_err().starts_with("no preferred addresses"));
    }
}
