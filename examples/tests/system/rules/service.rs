//! An HTTP service that takes everything, tells what it took and answers with it.

use std::net::SocketAddr;

use anyhow::Result;
use http_body_util::{BodyExt, Full};
use hyper::{
    Response,
    body::{Bytes, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpListener, sync::mpsc};
use tokio_util::task::AbortOnDropHandle;

/// What it took.
#[derive(Debug)]
pub(super) struct Request {
    /// Method, path and query.
    pub(super) line: String,
    /// A line each, names in lower case.
    pub(super) headers: String,
    pub(super) body: Vec<u8>,
}

pub(super) type Seen = mpsc::Receiver<Request>;

/// `.../status/<code>` is answered with that status, `.../hang` never.
pub(super) struct Service {
    address: SocketAddr,
    _serving: AbortOnDropHandle<()>,
}

impl Service {
    pub(super) async fn serve() -> Result<(Self, Seen)> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let (sender, seen) = mpsc::channel(10_000);
        let serving = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let sender = sender.clone();
                let service = service_fn(move |request| answer(request, sender.clone()));
                tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
            }
        });
        Ok((Self { address, _serving: AbortOnDropHandle::new(serving) }, seen))
    }

    pub(super) fn port(&self) -> u16 {
        self.address.port()
    }
}

async fn answer(
    request: hyper::Request<Incoming>,
    sender: mpsc::Sender<Request>,
) -> Result<Response<Full<Bytes>>, hyper::Error> {
    let (head, body) = request.into_parts();
    let body = body.collect().await?.to_bytes();
    let path = head.uri.path_and_query().map_or_else(String::new, ToString::to_string);
    let headers = head.headers.iter();
    let headers = headers.map(|(name, value)| format!("{name}: {}\n", String::from_utf8_lossy(value.as_bytes())));
    let took = Request { line: format!("{} {path}", head.method), headers: headers.collect(), body: body.to_vec() };
    // Nobody listens any more when the test is over.
    let _ = sender.send(took).await;
    let mut words = head.uri.path().rsplit('/');
    let (last, before) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    if last == "hang" {
        std::future::pending::<()>().await;
    }
    let status = if before == "status" { last.parse().unwrap_or(400) } else { 200 };
    let mut response = Response::new(Full::new(Bytes::from([b"took ", &body[..]].concat())));
    *response.status_mut() = hyper::StatusCode::from_u16(status).unwrap_or(hyper::StatusCode::BAD_REQUEST);
    response.headers_mut().insert("x-service", hyper::header::HeaderValue::from_static("test"));
    Ok(response)
}
