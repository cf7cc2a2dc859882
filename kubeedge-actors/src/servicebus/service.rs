//! One call of a service: the cloud's stream to an HTTP request and back, bodies as they come.

use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use http::{HeaderName, HeaderValue, Method, Request as HttpRequest, Response, Uri, header};
use http_body_util::{BodyExt as _, Empty, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    body::{Frame, Incoming},
    client::conn::http1,
};
use hyper_util::rt::TokioIo;
use kubeedge_proto::v1::{StreamHead, StreamOpen};
use tokio::{net::TcpStream, sync::mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::task::AbortOnDropHandle;

use super::allow::{Allow, Forbidden};
use crate::{
    audit,
    link::streams::{
        Request, StreamError,
        connection::{IncomingBytes, OutgoingBytes},
    },
    web::{ANSWERED_BY, Counted, MAX_BODY, headers},
};

/// What a call is in the audit log, and who calls.
pub(super) const ACTION: &str = "call of a service";
pub(super) const CLOUD: &str = "the cloud";
/// How long a service may take to accept a connection.
const CONNECT_WITHIN: Duration = Duration::from_secs(10);

type Body = UnsyncBoxBody<Bytes, StreamError>;

/// A refusal: a status, and why.
type Refused = (u16, String);

/// Serves one call to its end. The error: the cloud has given it up, or its connection has ended.
pub(super) async fn serve(
    Request { open, mut stream }: Request,
    allow: &Allow,
    within: Duration,
) -> Result<(), StreamError> {
    let (mut incoming, mut outgoing) = stream.split();
    let (chunks, body) = mpsc::channel(1);
    let call = async {
        match answer(&open, allow, body, within).await {
            Ok((response, _connection)) => relay(response, &mut outgoing, within).await,
            Err((status, why)) => {
                // What is not allowed or not understood. A service that is away refuses nobody.
                if status < 500 {
                    audit::refused(ACTION, CLOUD, &open.service, &why);
                }
                refuse(&mut outgoing, status, why).await
            }
        }
    };
    tokio::select! {
        biased;
        // Who asked may have gone: then nobody needs the rest.
        gone = pump(&mut incoming, chunks) => return Err(gone),
        called = call => called?,
    }
    stream.finish();
    Ok(())
}

/// Takes the request's body over. Returns when the stream is given up, and not before.
async fn pump(incoming: &mut IncomingBytes<'_>, chunks: mpsc::Sender<Result<Bytes, StreamError>>) -> StreamError {
    let mut counted = Counted::default();
    loop {
        let next = match incoming.read().await {
            Ok(Some(bytes)) if counted.add(bytes.len()) => Ok(bytes),
            Ok(Some(_)) => Err(StreamError::Aborted(format!("the body has more than {MAX_BODY} bytes"))),
            Ok(None) => break,
            Err(error) => Err(error),
        };
        let failed = next.as_ref().err().cloned();
        // The service may have answered without reading everything; what comes then is not looked at any more.
        let wanted = chunks.send(next).await.is_ok();
        match failed {
            Some(error) => return error,
            None if !wanted => break,
            None => {}
        }
    }
    drop(chunks);
    incoming.given_up().await
}

async fn answer(
    open: &StreamOpen,
    allow: &Allow,
    body: mpsc::Receiver<Result<Bytes, StreamError>>,
    within: Duration,
) -> Result<(Response<Incoming>, AbortOnDropHandle<()>), Refused> {
    let service = allow.check(&open.service).map_err(|error| {
        let status = if matches!(error, Forbidden::Invalid(_)) { 400 } else { 403 };
        (status, error.to_string())
    })?;
    let request = request(open, body)?;
    let name = format!("the service at {}", open.service);
    let connected = tokio::time::timeout(CONNECT_WITHIN, TcpStream::connect((service.host.as_str(), service.port)));
    let socket = match connected.await {
        Ok(Ok(socket)) => socket,
        Ok(Err(error)) => return Err((502, format!("{name} cannot be reached: {error}"))),
        Err(_) => return Err((504, format!("{name} did not accept a connection within {CONNECT_WITHIN:?}"))),
    };
    // Small requests that wait for an answer. An error of the socket shows with the request.
    let _ = socket.set_nodelay(true);
    let broken = |error: hyper::Error| (502, format!("{name} broke off: {error}"));
    let (mut sender, connection) = http1::handshake(TokioIo::new(socket)).await.map_err(broken)?;
    let connection = AbortOnDropHandle::new(tokio::task::spawn_local(async move {
        if let Err(error) = connection.await {
            tracing::debug!("a service's connection ended: {error}");
        }
    }));
    match tokio::time::timeout(within, sender.send_request(request)).await {
        Ok(Ok(response)) => Ok((response, connection)),
        Ok(Err(error)) => Err(broken(error)),
        Err(_) => Err((504, format!("{name} did not answer within {within:?}"))),
    }
}

/// The request as the service gets it.
fn request(open: &StreamOpen, body: mpsc::Receiver<Result<Bytes, StreamError>>) -> Result<HttpRequest<Body>, Refused> {
    let method: Method = open.method.parse().map_err(|_| (400, format!("{:?} is no method of HTTP", open.method)))?;
    if method == Method::CONNECT {
        return Err((405, "CONNECT is not sent to services".to_owned()));
    }
    // An origin-form only: with a host in it, it would be another service's.
    let path = Some(&open.path_and_query).filter(|path| path.starts_with('/') && !path.starts_with("//"));
    let uri = path.and_then(|path| path.parse::<Uri>().ok()).filter(|uri| uri.authority().is_none());
    let uri =
        uri.ok_or_else(|| (400, format!("{:.80?} is no path: expected such as \"/orders\"", open.path_and_query)))?;
    let length = headers::length(&open.headers);
    if length.is_some_and(|length| length > MAX_BODY as u64) {
        return Err((413, format!("the body has more than {MAX_BODY} bytes")));
    }
    let body = match length {
        Some(0) => Empty::new().map_err(|never| match never {}).boxed_unsync(),
        _ => StreamBody::new(ReceiverStream::new(body).map(|chunk| chunk.map(Frame::data))).boxed_unsync(),
    };
    let mut request = HttpRequest::new(body);
    *request.method_mut() = method;
    *request.uri_mut() = uri;
    let all = request.headers_mut();
    for (name, value) in headers::each(&open.headers) {
        let (Ok(name), Ok(value)) = (name.parse::<HeaderName>(), HeaderValue::from_str(value)) else {
            return Err((400, format!("the header {name:.80?} holds what a header cannot")));
        };
        all.append(name, value);
    }
    if let Some(length) = length.filter(|length| *length > 0) {
        all.insert(header::CONTENT_LENGTH, length.into());
    }
    let host = HeaderValue::from_str(&open.service).map_err(|_| (400, "the service is no host".to_owned()))?;
    all.insert(header::HOST, host);
    all.insert(header::CONNECTION, HeaderValue::from_static("close"));
    Ok(request)
}

/// The service's answer, as it comes. One that breaks off, or is too long, breaks the stream off: the caller sees that.
async fn relay(
    response: Response<Incoming>,
    outgoing: &mut OutgoingBytes<'_>,
    within: Duration,
) -> Result<(), StreamError> {
    let pairs = response.headers().iter().map(|(name, value)| (name.as_str(), value.as_bytes()));
    let mut all = match headers::collect(pairs) {
        Ok(all) => all,
        Err(error) => return refuse(outgoing, 502, format!("the service's answer: {error}")).await,
    };
    if let Some(length) = response.headers().get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()) {
        all.insert(headers::CONTENT_LENGTH.to_owned(), length.to_owned());
    }
    if response.status().is_informational() {
        return refuse(outgoing, 502, format!("the service answers {}", response.status())).await;
    }
    outgoing.respond(StreamHead { status: response.status().as_u16().into(), headers: all });
    let mut body = response.into_body();
    let mut counted = Counted::default();
    loop {
        let next = tokio::time::timeout(within, body.frame()).await;
        let frame = match next {
            Ok(None) => return Ok(()),
            Ok(Some(Ok(frame))) => frame,
            Ok(Some(Err(error))) => return Err(StreamError::Aborted(format!("the service broke off: {error}"))),
            Err(_) => return Err(StreamError::Aborted(format!("the service said nothing for {within:?}"))),
        };
        // Trailers stay behind.
        let Ok(bytes) = frame.into_data() else { continue };
        if !counted.add(bytes.len()) {
            return Err(StreamError::Aborted(format!("the service's answer has more than {MAX_BODY} bytes")));
        }
        outgoing.write(bytes).await?;
    }
}

/// An answer of plain text, of ours and not the service's.
async fn refuse(outgoing: &mut OutgoingBytes<'_>, status: u16, why: String) -> Result<(), StreamError> {
    let all = [
        ("content-type".to_owned(), "text/plain; charset=utf-8".to_owned()),
        (ANSWERED_BY.to_owned(), "servicebus".to_owned()),
    ];
    outgoing.respond(StreamHead { status: status.into(), headers: all.into() });
    outgoing.write(Bytes::from(why)).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(method: &str, path: &str) -> StreamOpen {
        StreamOpen {
            method: method.into(),
            path_and_query: path.into(),
            service: "127.0.0.1:80".into(),
            ..StreamOpen::default()
        }
    }

    fn read(open: &StreamOpen) -> Result<HttpRequest<Body>, u16> {
        request(open, mpsc::channel(1).1).map_err(|(status, _)| status)
    }

    #[test]
    fn a_request_cannot_lead_elsewhere_nor_hold_another() {
        let good = read(&open("POST", "/a/b?c=d")).unwrap();
        assert_eq!(
            (good.uri().to_string(), good.headers()["host"].to_str().unwrap()),
            ("/a/b?c=d".into(), "127.0.0.1:80")
        );
        for bad in ["", "a", "//evil/x", "http://evil/x", "/a b", "/a\r\nHost: evil", "*", "evil:80"] {
            assert_eq!(read(&open("GET", bad)).map(drop), Err(400), "{bad:?}");
        }
        assert_eq!(read(&open("GE T", "/")).map(drop), Err(400));
        assert_eq!(read(&open("CONNECT", "/")).map(drop), Err(405));
        let mut long = open("POST", "/");
        long.headers.insert("content-length".into(), (MAX_BODY + 1).to_string());
        assert_eq!(read(&long).map(drop), Err(413));
        let mut forged = open("POST", "/");
        forged.headers.insert("host".into(), "evil".into());
        forged.headers.insert("transfer-encoding".into(), "chunked".into());
        forged.headers.insert("x-a".into(), "b\r\nx-c: d".into());
        let request = read(&forged).unwrap();
        let mut names: Vec<_> = request.headers().keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(
            (names, &request.headers()["host"]),
            (vec!["connection", "host"], &HeaderValue::from_static("127.0.0.1:80"))
        );
    }
}
