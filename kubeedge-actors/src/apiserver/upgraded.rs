//! A client's connection becomes the kubelet's: answered with the kubelet's 101, then bytes both ways.

use std::sync::Arc;

use actix_web::http::ConnectionType;
use actix_web::http::header::{HeaderName, HeaderValue, UPGRADE};
use actix_web::{HttpRequest, HttpResponse, HttpResponseBuilder, web};
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt as _;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, ReadHalf, WriteHalf};
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::Api;
use super::http::status_code;
use super::kubelet::Upgrade;
use super::request::{Query, Target};
use super::status::Status;
use super::verbs::connect;
use crate::upgrade;

/// Bytes read at a time.
const READ: usize = 16 * 1024;

/// Serves a request for one of the streams of a pod.
pub(super) async fn serve(
    api: &Arc<Api>,
    http: &HttpRequest,
    payload: web::Payload,
    query: &Query,
    target: &Target,
) -> Result<HttpResponse, Status> {
    if http.head().connection_type() != ConnectionType::Upgrade || !http.headers().contains_key(UPGRADE) {
        return Err(Status::bad_request("Upgrade request required"));
    }
    let headers = http.headers().iter().map(|(name, value)| (name.as_str(), value.as_bytes()));
    let mut headers = upgrade::collect(headers).map_err(|error| Status::bad_request(error.to_string()))?;
    // Only with this word in it are the bytes behind the head ours: see `first_head`, which puts it before the client's.
    let protocols: Vec<&str> = http.headers().get_all(UPGRADE).filter_map(|value| value.to_str().ok()).collect();
    if !protocols.iter().any(|protocol| protocol.eq_ignore_ascii_case("websocket")) {
        let wanted = protocols.join(", ");
        return Err(Status::bad_request(format!("an upgrade to {wanted:?} takes a connection of its own")));
    }
    headers.insert("upgrade".into(), protocols.last().copied().unwrap_or_default().to_owned());
    match connect::connect(api, query, target, http.method().as_str(), &headers).await? {
        (Upgrade::Switched { head, io }, permit) => {
            let mut response = HttpResponse::SwitchingProtocols();
            append(&mut response, upgrade::each(&head).filter(|(name, _)| *name != "upgrade"));
            response.upgrade(head.get("upgrade").map_or("websocket", String::as_str));
            Ok(response.streaming(bytes(Relay::new(io, payload, permit, api.storage.closing().clone()))))
        }
        (Upgrade::Refused { status, head, kind, text }, _) => {
            let mut response = HttpResponse::build(status_code(status));
            append(&mut response, upgrade::each(&head).filter(|(name, _)| *name != "upgrade"));
            // Nothing else can come on a connection that was to be upgraded.
            response.force_close();
            Ok(response.content_type(kind).body(text))
        }
    }
}

fn append<'a>(response: &mut HttpResponseBuilder, headers: impl Iterator<Item = (&'a str, &'a str)>) {
    for (name, value) in headers {
        if let (Ok(name), Ok(value)) = (name.parse::<HeaderName>(), HeaderValue::from_str(value)) {
            response.append_header((name, value));
        }
    }
}

/// Both ways. Dropping it ends the connection to the kubelet, which tells it.
struct Relay {
    from_kubelet: ReadHalf<TokioIo<Upgraded>>,
    /// Ends by itself when the client has ended.
    _to_kubelet: AbortOnDropHandle<()>,
    _permit: OwnedSemaphorePermit,
    /// The server stops.
    closing: CancellationToken,
    buffer: BytesMut,
}

impl Relay {
    fn new(io: Upgraded, payload: web::Payload, permit: OwnedSemaphorePermit, closing: CancellationToken) -> Self {
        let (from_kubelet, to_kubelet) = tokio::io::split(TokioIo::new(io));
        let to_kubelet = AbortOnDropHandle::new(tokio::task::spawn_local(client_to_kubelet(payload, to_kubelet)));
        Self { from_kubelet, _to_kubelet: to_kubelet, _permit: permit, closing, buffer: BytesMut::new() }
    }

    async fn next(&mut self) -> Option<std::io::Result<Bytes>> {
        self.buffer.reserve(READ);
        let read = tokio::select! {
            read = self.from_kubelet.read_buf(&mut self.buffer) => read,
            () = self.closing.cancelled() => return None,
        };
        match read {
            Ok(0) => None,
            Ok(_) => Some(Ok(self.buffer.split().freeze())),
            // A peer that ends without the words of TLS has ended all the same: what is relayed has its own.
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => None,
            Err(error) => Some(Err(error)),
        }
    }
}

async fn client_to_kubelet(mut payload: web::Payload, mut kubelet: WriteHalf<TokioIo<Upgraded>>) {
    while let Some(Ok(chunk)) = payload.next().await {
        let written = async {
            kubelet.write_all(&chunk).await?;
            kubelet.flush().await
        };
        if let Err(error) = written.await {
            return tracing::debug!(%error, "a stream to a kubelet ended");
        }
    }
    // The client is gone: the other direction hears of it by the end of this one.
    if let Err(error) = kubelet.shutdown().await {
        tracing::debug!(%error, "a stream to a kubelet was not closed in order");
    }
}

fn bytes(relay: Relay) -> impl futures_util::Stream<Item = std::io::Result<Bytes>> {
    futures_util::stream::unfold(Some(relay), |relay| async move {
        let mut relay = relay?;
        match relay.next().await? {
            Ok(bytes) => Some((Ok(bytes), Some(relay))),
            Err(error) => Some((Err(error), None)),
        }
    })
}
