//! Answers as HTTP has them, and the socket that requests come by.

use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use actix_web::body::MessageBody;
use actix_web::http::StatusCode;
use actix_web::http::header::{CACHE_CONTROL, CONTENT_LENGTH, ETAG, HeaderName, IF_NONE_MATCH, RETRY_AFTER};
use actix_web::{HttpRequest, HttpResponse, web};
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt as _;
use serde_json::{Value, json};

use super::status::Status;
use super::watch::Stream;

/// The type of nearly every answer.
pub(crate) const JSON: &str = "application/json";

pub(crate) fn header<'a>(http: &'a HttpRequest, name: &HeaderName) -> Option<&'a str> {
    http.headers().get(name)?.to_str().ok()
}

/// Reads a body of at most `limit` bytes, which has to come `within` a time. One that is said to be longer is not read.
pub(crate) async fn body(
    http: &HttpRequest,
    mut payload: web::Payload,
    limit: usize,
    within: Duration,
) -> Result<Bytes, Status> {
    let said = header(http, &CONTENT_LENGTH).and_then(|length| length.parse::<usize>().ok());
    if said.is_some_and(|length| length > limit) {
        return Err(Status::too_large(limit));
    }
    let read = async {
        let mut body = BytesMut::new();
        while let Some(chunk) = payload.next().await {
            let chunk = chunk.map_err(|error| Status::bad_request(format!("the body cannot be read: {error}")))?;
            if body.len() + chunk.len() > limit {
                return Err(Status::too_large(limit));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body.freeze())
    };
    let late = |_| Err(Status::new(408, "Timeout", format!("the body did not come within {within:?}")));
    tokio::time::timeout(within, read).await.unwrap_or_else(late)
}

pub(crate) fn page_not_found() -> HttpResponse {
    HttpResponse::NotFound().content_type("text/plain; charset=utf-8").body("404 page not found\n")
}

pub(crate) fn json_response(code: u16, body: Bytes) -> HttpResponse {
    HttpResponse::build(status_code(code)).content_type(JSON).body(body)
}

pub(crate) fn status_code(code: u16) -> StatusCode {
    StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}

pub(crate) fn error(status: &Status) -> HttpResponse {
    let mut response = HttpResponse::build(status_code(status.code));
    if let Some(seconds) = status.retry_after() {
        response.insert_header((RETRY_AFTER, seconds.to_string()));
    }
    response.content_type(JSON).body(status.body().to_string())
}

/// The lines of a watch.
pub(crate) fn lines(stream: Box<Stream>) -> impl futures_util::Stream<Item = Result<Bytes, actix_web::Error>> {
    futures_util::stream::unfold(stream, |mut stream| async move {
        let line = stream.next().await?;
        Some((Ok(line), stream))
    })
}

/// `/version`: what clients choose their behaviour by.
pub(crate) fn version() -> Value {
    json!({
        "major": "1", "minor": "33", "emulationMajor": "1", "emulationMinor": "33",
        "minCompatibilityMajor": "1", "minCompatibilityMinor": "32", "gitVersion": "v1.33.0+kubeedge", "gitCommit": "", "gitTreeState": "",
        "buildDate": "1970-01-01T00:00:00Z", "goVersion": "", "compiler": "rustc",
        "platform": format!("{}/{}", std::env::consts::OS, architecture()),
    })
}

/// Go's name of the processor.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// An answer that a client may keep: 304 when it still has it.
pub(crate) fn tagged(
    http: &HttpRequest,
    content_type: &str,
    etag: &str,
    body: impl MessageBody + 'static,
) -> HttpResponse {
    let known = header(http, &IF_NONE_MATCH)
        .is_some_and(|tags| tags.split(',').map(str::trim).any(|tag| tag == etag || tag == "*"));
    if known {
        return HttpResponse::NotModified().insert_header((ETAG, etag)).finish();
    }
    HttpResponse::Ok()
        .insert_header((ETAG, etag))
        .insert_header((CACHE_CONTROL, "no-cache, private"))
        .content_type(content_type)
        .body(body)
}

/// How long a peer may leave sent data unread or unacknowledged, and idle before it is probed: a watch whose client is
/// gone or does not read costs no more than this.
const PEER_TIMEOUT: Duration = Duration::from_secs(60);

/// Listens with [`PEER_TIMEOUT`], which accepted connections inherit.
pub(crate) fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    let listener = TcpListener::bind(address)?;
    #[cfg(target_os = "linux")]
    {
        use rustix::net::sockopt;
        sockopt::set_socket_keepalive(&listener, true)?;
        sockopt::set_tcp_keepidle(&listener, PEER_TIMEOUT)?;
        sockopt::set_tcp_user_timeout(&listener, u32::try_from(PEER_TIMEOUT.as_millis()).unwrap_or(u32::MAX))?;
    }
    Ok(listener)
}
