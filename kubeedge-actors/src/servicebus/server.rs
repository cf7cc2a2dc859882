//! What applications of this node post for the cloud: the HTTP server, and the reading of it.

use std::{io, net::SocketAddr, sync::PoisonError, time::Duration};

use actix_web::{
    App, HttpRequest, HttpResponse, HttpServer,
    http::header,
    web::{self, BytesMut},
};
use bytes::Bytes;
use futures_util::StreamExt as _;
use kubeedge_proto::v1::{CallCloud, CallReply, Envelope, ObjectKey, ServiceCall, call_reply, envelope::Body};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::sync::{Semaphore, SemaphorePermit};

use super::{ServiceBus, ServiceBusConfig, Targets};
use crate::{
    audit,
    serving::Serving,
    system::{AskError, Component as _, Port, trace::Trace},
};

/// Connections at a time; more wait in the system's queue.
pub const MAX_CONNECTIONS: usize = 64;
/// Largest body that is taken, bytes: KubeEdge's bound.
pub const MAX_POSTED: usize = 5_000_000;
/// Bytes of bodies in memory at a time; who would go beyond waits.
pub const HELD: usize = 16 * 1024 * 1024;
/// Those that the system keeps waiting.
const BACKLOG: u32 = 64;
/// Time a client has to send the head of its request, and for TLS.
const HEAD: Duration = Duration::from_secs(5);
/// How long a connection may be idle between requests.
const KEEP_ALIVE: Duration = Duration::from_secs(75);
/// Above the cloud's own bound, which has the better words.
const GRACE: Duration = Duration::from_secs(2);

/// What KubeEdge says when all went well.
const RECEIVED: &str = "receive response from cloud successfully";

/// What is posted. `method` and `payload` are for the target: the body goes there whole.
#[derive(Debug, Deserialize)]
struct Posted<'a> {
    #[serde(rename = "targetURL", alias = "targetUrl", alias = "targeturl")]
    target_url: String,
    #[serde(borrow, default, rename = "payload")]
    _payload: Option<&'a RawValue>,
}

/// What is answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Answer {
    code: u32,
    msg: String,
    body: String,
}

impl Answer {
    fn refusal(code: u32, msg: impl Into<String>) -> Self {
        Self { code, msg: msg.into(), body: String::new() }
    }
}

struct Shared {
    targets: Targets,
    call: Port<CallCloud>,
    within: Duration,
    /// [`HELD`] in units of a KiB.
    held: Semaphore,
}

/// Serves until what is returned is stopped or dropped.
pub(super) fn start(
    config: &ServiceBusConfig,
    targets: Targets,
    call: Port<CallCloud>,
) -> io::Result<(SocketAddr, Serving)> {
    let data = web::Data::new(Shared { targets, call, within: config.within, held: Semaphore::new(HELD / 1024) });
    let server = HttpServer::new(move || App::new().app_data(data.clone()).default_service(web::to(handle)))
        .workers(1)
        .backlog(BACKLOG)
        .max_connections(MAX_CONNECTIONS)
        .client_request_timeout(HEAD)
        .tls_handshake_timeout(HEAD)
        .keep_alive(KEEP_ALIVE)
        .disable_signals();
    let server = match &config.tls {
        None => server.bind(config.listen)?,
        Some(tls) => server.bind_rustls_0_23(config.listen, rustls::ServerConfig::clone(tls))?,
    };
    let bound = server.addrs().first().copied().unwrap_or(config.listen);
    Ok((bound, Serving::begin(server.run(), "ServiceBus' server")))
}

/// Every request comes here, whatever its path and method.
async fn handle(shared: web::Data<Shared>, request: HttpRequest, body: web::Payload) -> HttpResponse {
    HttpResponse::Ok().json(Trace::scope(Some(Trace::root()), answer(&shared, &request, body)).await)
}

async fn answer(shared: &Shared, request: &HttpRequest, body: web::Payload) -> Answer {
    let until = tokio::time::Instant::now() + shared.within;
    match taken(shared, request, body, until).await {
        Ok((rule, body, _room)) => call(shared, rule, body, until).await,
        Err(refusal) => {
            // Not allowed, not understood, or more than there may be.
            if matches!(refusal.code, 400 | 413) {
                audit::refused_stranger("request to ServiceBus", request.peer_addr(), "body", &refusal.msg);
            }
            refusal
        }
    }
}

fn too_large() -> Answer {
    Answer::refusal(413, format!("the body has more than {MAX_POSTED} bytes"))
}

/// What is posted, the rule that it is for, and its room in memory.
async fn taken<'a>(
    shared: &'a Shared,
    request: &HttpRequest,
    body: web::Payload,
    until: tokio::time::Instant,
) -> Result<(ObjectKey, Bytes, SemaphorePermit<'a>), Answer> {
    let length = request.headers().get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
    if length.is_some_and(|length: usize| length > MAX_POSTED) {
        return Err(too_large());
    }
    // KiB: fits.
    let units = MAX_POSTED.div_ceil(1024) as u32;
    let room = tokio::time::timeout_at(until, shared.held.acquire_many(units))
        .await
        .map_err(|_| Answer::refusal(503, format!("too many requests are under way for {:?}", shared.within)))?;
    let mut room = room.map_err(|_| Answer::refusal(503, "ServiceBus is stopping"))?;
    let body = tokio::time::timeout_at(until, read(body))
        .await
        .map_err(|_| Answer::refusal(408, format!("the request did not come within {:?}", shared.within)))??;
    // What it did not need is another's.
    drop(room.split((units as usize).saturating_sub(body.len().div_ceil(1024))));
    let posted: Result<Posted<'_>, _> = serde_json::from_slice(&body);
    let url = posted.map_err(|error| Answer::refusal(400, format!("invalid params: {error}")))?.target_url;
    let rule = shared.targets.read().unwrap_or_else(PoisonError::into_inner).get(&url).cloned();
    let rule = rule
        .ok_or_else(|| Answer::refusal(400, format!("targetURL {url:.260?} is none that a rule of this node names")))?;
    Ok((rule, body, room))
}

async fn read(mut body: web::Payload) -> Result<Bytes, Answer> {
    let mut all = BytesMut::new();
    while let Some(chunk) = body.next().await {
        let chunk = chunk.map_err(|error| {
            Answer::refusal(400, format!("can't read data from body of the http's request: {error}"))
        })?;
        if all.len() + chunk.len() > MAX_POSTED {
            return Err(too_large());
        }
        all.extend_from_slice(&chunk);
    }
    Ok(all.freeze())
}

async fn call(shared: &Shared, rule: ObjectKey, body: Bytes, until: tokio::time::Instant) -> Answer {
    let within = until.saturating_duration_since(tokio::time::Instant::now());
    let message = ServiceCall { rule: Some(rule), body };
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let unix_ms = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
    let mut envelope = Envelope::new(ServiceBus::NAME, unix_ms, Body::ServiceCall(message));
    envelope.timeout_ms = u32::try_from(within.as_millis()).unwrap_or(u32::MAX).max(1);
    match shared.call.ask(CallCloud { envelope: Some(envelope) }, within + GRACE).await {
        Ok(reply) => of_reply(reply),
        Err(AskError::Timeout) => Answer::refusal(504, format!("the cloud did not answer within {within:?}")),
        Err(error) => Answer::refusal(503, format!("EdgeHub: {error}")),
    }
}

fn of_reply(reply: CallReply) -> Answer {
    match reply.result {
        Some(call_reply::Result::ApiResponse(response)) => {
            let body = String::from_utf8_lossy(&response.body).into_owned();
            match response.status {
                200..=299 => Answer { code: 200, msg: RECEIVED.to_owned(), body },
                status => Answer { code: status, msg: format!("the rule's target answered {status}"), body },
            }
        }
        Some(call_reply::Result::Error(error)) => Answer::refusal(error.code, error.message),
        _ => Answer::refusal(502, "the cloud answered something else"),
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::{BodyExt as _, StreamBody};
    use hyper::{Request, body::Frame, client::conn::http1};
    use hyper_util::rt::TokioIo;
    use kubeedge_proto::v1::ApiResponse;
    use tokio::net::TcpStream;
    use tokio_util::task::AbortOnDropHandle;

    use super::*;
    use crate::{
        audit::testing::Heard,
        servicebus::allow::Allow,
        system::testing::{Recorder, TestSystem},
    };

    /// The server has a thread of its own: lines are found by the client's port.
    #[actix_rt::test]
    async fn a_chunked_body_is_refused_at_its_limit_and_audited() {
        let call = Recorder::<CallCloud>::answering(|_| CallReply::default());
        let test = TestSystem::builder().records(&call).asks::<CallCloud>().start();
        let config = ServiceBusConfig {
            listen: ([127, 0, 0, 1], 0).into(),
            tls: None,
            within: Duration::from_secs(60),
            allow: Allow::Loopback,
        };
        let targets = Targets::default();
        targets.write().unwrap().insert("http://a".into(), ObjectKey::new("ns", "rule"));
        let (address, _serving) = start(&config, targets, test.port()).unwrap();
        let heard = Heard::everywhere();
        let post = async |bytes: usize, ends: bool, text: &'static str| {
            let stream = TcpStream::connect(address).await.unwrap();
            let client = stream.local_addr().unwrap();
            let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
            let _connection = AbortOnDropHandle::new(tokio::task::spawn_local(connection));
            let chunk = |bytes: usize| Bytes::from(vec![b' '; bytes]);
            let chunks = (0..bytes / 0x10000).map(move |_| chunk(0x10000)).chain([chunk(bytes % 0x10000), text.into()]);
            let rest = if ends {
                futures_util::future::Either::Left(futures_util::stream::empty())
            } else {
                futures_util::future::Either::Right(futures_util::stream::pending())
            };
            let body = futures_util::stream::iter(chunks).chain(rest);
            let body = StreamBody::new(body.map(|chunk| Ok::<_, std::convert::Infallible>(Frame::data(chunk))));
            let answer = sender.send_request(Request::post("/").header("Host", "a").body(body).unwrap()).await.unwrap();
            let answer = answer.into_body().collect().await.unwrap().to_bytes();
            let answer: serde_json::Value = serde_json::from_slice(&answer).unwrap();
            (answer["code"].as_u64().unwrap(), answer["msg"].as_str().unwrap().to_owned(), client)
        };
        let named = r#"{"targetURL": "http://a"}"#;
        let unnamed = r#"{"targetURL": "http://b"}"#;
        for (bytes, ends, text, code, said) in [
            (MAX_POSTED, false, " ", 413, "the body has more than 5000000 bytes"),
            (10, true, unnamed, 400, "targetURL \"http://b\" is none that a rule of this node names"),
            (10, true, "no JSON", 400, "invalid params"),
        ] {
            let before = heard.count();
            let (found, msg, client) = post(bytes, ends, text).await;
            assert!(found == code && msg.contains(said), "{found} {msg}");
            let lines = heard.after(before, &format!("who={client} "));
            let told = format!("request to ServiceBus refused: {said}");
            assert!(lines.len() == 1 && lines[0].contains(&told), "{lines:?}");
        }
        // As much as there may be is taken, and has no line.
        let before = heard.count();
        let (code, _, client) = post(MAX_POSTED - named.len(), true, named).await;
        assert_eq!((code, heard.after(before, &format!("who={client} "))), (502, Vec::new()));
        test.assert_quiet().await;
    }

    #[test]
    fn an_application_is_answered_as_kubeedge_answers_it() {
        let reply = |status, body: &'static str| CallReply {
            result: Some(call_reply::Result::ApiResponse(Box::new(ApiResponse {
                status,
                body: Bytes::from_static(body.as_bytes()),
                ..ApiResponse::default()
            }))),
        };
        let good = serde_json::to_value(of_reply(reply(201, "made"))).unwrap();
        let expected = serde_json::json!({"code": 200, "msg": RECEIVED, "body": "made"});
        assert_eq!(good, expected);
        let bad = of_reply(reply(404, "no such order"));
        assert_eq!((bad.code, bad.body.as_str()), (404, "no such order"));
        let offline = of_reply(CallReply::error(503, "Offline", "the link to the cloud is down"));
        assert_eq!(offline, Answer::refusal(503, "the link to the cloud is down"));
        assert_eq!(of_reply(CallReply::default()).code, 502);
    }

    #[test]
    fn what_is_posted_names_its_target_and_the_rest_is_the_targets() {
        let posted = |text: &'static str| serde_json::from_str::<Posted<'_>>(text).map(|posted| posted.target_url);
        let good = r#"{"method": "POST", "targetURL": "http://a", "payload": {"b": [1]}}"#;
        assert_eq!(posted(good).unwrap(), "http://a");
        for bad in ["", "[]", "{}", r#"{"targetURL": 1}"#] {
            assert!(posted(bad).is_err(), "{bad}");
        }
    }
}
