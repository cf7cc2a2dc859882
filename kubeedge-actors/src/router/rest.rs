//! The REST server: requests of the cloud's applications, each for a rule.

use std::{
    io,
    net::{SocketAddr, TcpListener},
    sync::Arc,
    time::Duration,
};

use actix_web::{
    App, HttpRequest, HttpResponse, HttpServer,
    body::SizedStream,
    http::{Method, StatusCode, header},
    web::{self, BytesMut},
};
use bytes::Bytes;
use futures_util::StreamExt as _;
use kubeedge_proto::{NodeName, v1::StreamOpen};
use tokio::{sync::Semaphore, time::Instant};
use tokio_stream::wrappers::ReceiverStream;

use super::{
    Refused, RouterConfig, Shared,
    service::{self, Relayed},
    table::{Key, NoWay, Way},
};
use crate::{
    audit,
    rule::template,
    serving::Serving,
    system::trace::Trace,
    web::{ANSWERED_BY, MAX_BODY, headers},
};

/// Connections at a time; more wait in the system's queue.
pub const MAX_CONNECTIONS: usize = 1024;
/// Those that the system keeps waiting.
const BACKLOG: u32 = 256;
/// Time a client has to send the head of its request, and for TLS.
const HEAD: Duration = Duration::from_secs(10);
/// How long a connection may be idle between requests.
const KEEP_ALIVE: Duration = Duration::from_secs(75);
/// Largest message for MQTT, bytes: EventBus' bound.
pub const MAX_MESSAGE: usize = 1024 * 1024;
/// Bytes of such messages in memory at a time; who would go beyond waits.
pub const HELD: usize = 64 * 1024 * 1024;
/// What KubeEdge answers when a message was handed over. Here the broker has it.
pub const DELIVERED: &str = "message delivered";

struct Door {
    shared: Arc<Shared>,
    /// [`HELD`] in units of a KiB.
    held: Semaphore,
}

/// Serves until what is returned is stopped or dropped.
pub(super) fn start(config: &RouterConfig, shared: Arc<Shared>) -> io::Result<(SocketAddr, Serving)> {
    let listener: TcpListener = config.listener.try_clone()?;
    let bound = listener.local_addr()?;
    let data = web::Data::new(Door { shared, held: Semaphore::new(HELD / 1024) });
    let server = HttpServer::new(move || App::new().app_data(data.clone()).default_service(web::to(handle)))
        .workers(1)
        .backlog(BACKLOG)
        .max_connections(MAX_CONNECTIONS)
        .client_request_timeout(HEAD)
        .tls_handshake_timeout(HEAD)
        .keep_alive(KEEP_ALIVE)
        .disable_signals();
    let server = match &config.tls {
        None => server.listen(listener)?,
        Some(tls) => server.listen_rustls_0_23(listener, rustls::ServerConfig::clone(tls))?,
    };
    Ok((bound, Serving::begin(server.run(), "the router's REST server")))
}

async fn handle(door: web::Data<Door>, request: HttpRequest, payload: web::Payload) -> HttpResponse {
    let answer = Trace::scope(Some(Trace::root()), answer(&door, &request, payload)).await;
    answer.unwrap_or_else(|refused| {
        let what = format!("{} {}", request.method(), request.path());
        match refused.status {
            // Not allowed, not understood, or more than there may be. What is unknown, late or away refuses nobody.
            400 | 401 | 403 | 405 | 413 | 431 => {
                audit::refused_stranger("request to the router", request.peer_addr(), what, &refused.why)
            }
            status => tracing::info!(what, status, "a request was not answered: {}", refused.why),
        }
        refused.response()
    })
}

impl Refused {
    fn response(self) -> HttpResponse {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::BAD_GATEWAY);
        let mut response = HttpResponse::build(status);
        response.content_type("text/plain; charset=utf-8").insert_header((ANSWERED_BY, "router"));
        if self.status == 401 {
            response.insert_header((header::WWW_AUTHENTICATE, "Bearer"));
        }
        response.body(self.why)
    }
}

async fn answer(door: &Door, request: &HttpRequest, payload: web::Payload) -> Result<HttpResponse, Refused> {
    let shared = &door.shared;
    let until = Instant::now() + shared.within;
    authorize(shared, request)?;
    let path = template::segments(request.path()).map_err(|error| Refused::new(400, error.to_string()))?;
    let [node, namespace, rest @ ..] = path.as_slice() else {
        return Err(Refused::new(404, "expected /<node>/<namespace>/<path of a rule>"));
    };
    let node: NodeName = node.text.parse().map_err(|error| Refused::new(404, format!("{error}")))?;
    let (rule, way) = match shared.table().of_request(&node, &namespace.text, rest) {
        Ok(found) => found,
        Err(NoWay::Unknown(why)) => return Err(Refused::new(404, why)),
        Err(NoWay::Wrong(rule, why)) => return Err(shared.failed(&rule, Refused::new(400, why))),
        Err(NoWay::Faulty(rule, why)) => {
            let why = format!("rule {}/{} cannot be carried out: {why}", rule.0, rule.1);
            return Err(shared.failed(&rule, Refused::new(503, why)));
        }
    };
    let done = match way {
        Way::EventBus { node, topic } => publish(door, request, payload, &node, topic, until).await,
        Way::ServiceBus { node, service, path } => call(shared, request, payload, &node, service, path, until).await,
        Way::Rest { .. } => Err(Refused::new(503, "a rule from rest to rest is none")),
    };
    match done {
        Ok(response) if response.status().as_u16() < 400 => {
            shared.succeeded(&rule);
            Ok(response)
        }
        Ok(response) => {
            shared.count_failure(&rule, &format!("the service answered {}", response.status()));
            Ok(response)
        }
        Err(refused) => Err(shared.failed(&rule, refused)),
    }
}

fn authorize(shared: &Shared, request: &HttpRequest) -> Result<(), Refused> {
    let Some(tokens) = &shared.tokens else { return Ok(()) };
    let shown = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let token =
        shown.and_then(|value| value.split_once(' ')).filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
    match token {
        Some((_, token)) if tokens.has(token.trim()) => Ok(()),
        Some(_) => Err(Refused::new(401, "this bearer token is none of the router's")),
        None => Err(Refused::new(401, "a bearer token is needed")),
    }
}

/// rest -> eventbus: answered when the broker at the node has it.
async fn publish(
    door: &Door,
    request: &HttpRequest,
    payload: web::Payload,
    node: &NodeName,
    topic: String,
    until: Instant,
) -> Result<HttpResponse, Refused> {
    if !matches!(*request.method(), Method::POST | Method::PUT) {
        return Err(Refused::new(405, "a message is sent with POST"));
    }
    let shared = &door.shared;
    // KiB: fits.
    let units = MAX_MESSAGE.div_ceil(1024) as u32;
    let Ok(Ok(mut room)) = tokio::time::timeout_at(until, door.held.acquire_many(units)).await else {
        return Err(Refused::new(503, format!("too many messages are under way for {:?}", shared.within)));
    };
    let body = match tokio::time::timeout_at(until, read(payload)).await {
        Ok(body) => body?,
        Err(_) => return Err(Refused::new(408, format!("the request did not come within {:?}", shared.within))),
    };
    // What it did not need is another's.
    drop(room.split((units as usize).saturating_sub(body.len().div_ceil(1024))));
    let left = until.saturating_duration_since(Instant::now());
    shared.asks.publish(node, topic, body, left).await?;
    Ok(HttpResponse::Ok().content_type("text/plain; charset=utf-8").body(DELIVERED))
}

async fn read(mut payload: web::Payload) -> Result<Bytes, Refused> {
    let mut all = BytesMut::new();
    while let Some(chunk) = payload.next().await {
        let chunk = chunk.map_err(|error| Refused::new(400, format!("the body could not be read: {error}")))?;
        if all.len() + chunk.len() > MAX_MESSAGE {
            return Err(Refused::new(413, format!("a message has at most {MAX_MESSAGE} bytes")));
        }
        all.extend_from_slice(&chunk);
    }
    Ok(all.freeze())
}

/// rest -> servicebus: the service's own answer, as it comes.
async fn call(
    shared: &Shared,
    request: &HttpRequest,
    payload: web::Payload,
    node: &NodeName,
    service: String,
    path: String,
    until: Instant,
) -> Result<HttpResponse, Refused> {
    let pairs = request.headers().iter().map(|(name, value)| (name.as_str(), value.as_bytes()));
    let mut all = headers::collect(pairs).map_err(|error| Refused::new(431, error.to_string()))?;
    if shared.tokens.is_some() {
        // It is for this server.
        all.remove("authorization");
    }
    let length = request.headers().get(header::CONTENT_LENGTH).map(|length| length.to_str().unwrap_or("none").parse());
    let length: Option<u64> = match length {
        None if request.headers().contains_key(header::TRANSFER_ENCODING) => None,
        None => Some(0),
        Some(Ok(length)) => Some(length),
        Some(Err(_)) => return Err(Refused::new(400, "Content-Length is no number")),
    };
    if length.is_some_and(|length| length > MAX_BODY as u64) {
        return Err(Refused::new(413, format!("the body has more than {MAX_BODY} bytes")));
    }
    if let Some(length) = length {
        all.insert(headers::CONTENT_LENGTH.to_owned(), length.to_string());
    }
    let query = request.query_string();
    let open = StreamOpen {
        method: request.method().as_str().to_owned(),
        path_and_query: if query.is_empty() { path } else { format!("{path}?{query}") },
        headers: all,
        service,
        ..StreamOpen::default()
    };
    let opened = tokio::time::timeout_at(until, service::open(&shared.asks, node, open)).await;
    let stream = opened.map_err(|_| Refused::new(504, format!("node {node} did not answer")))??;
    let relayed = service::relay(stream, node, payload, until, shared.within).await?;
    Ok(streamed(request, relayed))
}

fn streamed(request: &HttpRequest, Relayed { head, body }: Relayed) -> HttpResponse {
    let status = u16::try_from(head.status).ok().and_then(|status| StatusCode::from_u16(status).ok());
    // Informational codes are no answers.
    let status = status.filter(|status| !status.is_informational()).unwrap_or(StatusCode::BAD_GATEWAY);
    let mut response = HttpResponse::build(status);
    for (name, value) in headers::each(&head.headers) {
        response.append_header((name, value));
    }
    let body = ReceiverStream::new(body);
    match headers::length(&head.headers) {
        // Of an answer to HEAD it is the length that there would be.
        Some(length) if *request.method() != Method::HEAD => response.body(SizedStream::new(length, body)),
        _ => response.streaming(body),
    }
}

impl Shared {
    fn failed(&self, rule: &Key, refused: Refused) -> Refused {
        self.count_failure(rule, &refused.why);
        refused
    }
}
