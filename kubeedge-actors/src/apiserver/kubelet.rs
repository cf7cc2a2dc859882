//! The server as a client of kubelets: where a node's kubelet is, and one GET there.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

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

/// `GET https://host:port/path`, in a real API server's words when it fails.
pub(crate) async fn get(
    tls: &Arc<ClientConfig>,
    host: &str,
    port: u16,
    path: &str,
    permit: OwnedSemaphorePermit,
    closing: CancellationToken,
) -> Result<Answered, String> {
    let authority = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
    let failed = |why: &dyn std::fmt::Display| format!("Get \"https://{authority}{path}\": {why}");
    let dial = async {
        let name = ServerName::try_from(host.to_owned()).map_err(|error| failed(&error))?;
        let stream = TcpStream::connect((host, port)).await;
        let stream = stream.map_err(|error| failed(&format!("dial tcp {authority}: {error}")))?;
        let connector = TlsConnector::from(Arc::clone(tls));
        connector.connect(name, stream).await.map_err(|error| failed(&format!("tls: {error}")))
    };
    let late = |what: &str| failed(&format!("{what} timeout"));
    let stream = tokio::time::timeout(DIAL, dial).await.map_err(|_| late("dial"))??;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|error| failed(&error))?;
    let connection = AbortOnDropHandle::new(tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "a connection to a kubelet ended");
        }
    }));
    let request = hyper::Request::get(path).header("Host", &authority).body(Empty::<Bytes>::new());
    let request = request.map_err(|error| failed(&error))?;
    let response = tokio::time::timeout(HEAD, sender.send_request(request)).await;
    let response = response.map_err(|_| late("response header"))?.map_err(|error| failed(&error))?;
    let status = response.status();
    let body = response.into_body();
    if status.is_success() {
        return Ok(Answered::Body(Body { body, _connection: connection, _permit: permit, closing }));
    }
    let text = tokio::time::timeout(DIAL, Limited::new(body, MAX_TEXT).collect()).await;
    let text = text.map_err(|_| late("response"))?.map_err(|error| failed(&error))?.to_bytes();
    Ok(Answered::Refused(status.as_u16(), String::from_utf8_lossy(&text).into_owned()))
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
