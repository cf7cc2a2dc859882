//! The listener of `/ws/events`: who may look.

use std::{
    io,
    net::{SocketAddr, TcpListener},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use actix_web::{
    App, HttpRequest, HttpResponse, HttpServer,
    http::{StatusCode, header},
    web,
};
use actix_web_actors::ws;
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};

use super::{PATH, ViewsConfig, board::Board, filter::Filter, socket::Socket};
use crate::{audit, serving::Serving};

/// Clients at a time; one more is answered 503.
pub const MAX_CLIENTS: usize = 64;
/// Connections at a time, those included that are not clients yet.
const MAX_CONNECTIONS: usize = 128;
/// Those that the system keeps waiting.
const BACKLOG: u32 = 64;
/// Time a client has to send the head of its request, and for TLS.
const HEAD: Duration = Duration::from_secs(5);
/// How long a client's window may stay shut: longer than a client that can still be told why it is dropped has.
const SHUT_WITHIN: Duration = Duration::from_secs(30);
/// Largest frame of a client, bytes: it has nothing to say.
const FRAME: usize = 4096;
/// How a browser shows its token, which cannot set headers: as Kubernetes has it, with the token in base64url behind it.
pub const TOKEN_PROTOCOL: &str = "base64url.bearer.authorization.k8s.io.";
/// The protocol that is agreed on then.
pub const PROTOCOL: &str = "events.kubeedge.io";

struct Door {
    config: ViewsConfig,
    board: Board,
    clients: Arc<AtomicUsize>,
}

/// Serves until what is returned is stopped or dropped.
pub(super) fn start(config: &ViewsConfig, board: Board) -> io::Result<(SocketAddr, Serving)> {
    let listener: TcpListener = config.listener.try_clone()?;
    let bound = listener.local_addr()?;
    let data = web::Data::new(Door { config: config.clone(), board, clients: Arc::default() });
    // A client whose window stays shut: nothing else would find it, since a connection with a full buffer is not looked
    // at. Connections have it of their listener.
    #[cfg(target_os = "linux")]
    socket2::SockRef::from(&listener).set_tcp_user_timeout(Some(SHUT_WITHIN))?;
    let server = HttpServer::new(move || App::new().app_data(data.clone()).route(PATH, web::get().to(events)))
        .workers(1)
        .backlog(BACKLOG)
        .max_connections(MAX_CONNECTIONS)
        .client_request_timeout(HEAD)
        .tls_handshake_timeout(HEAD)
        .disable_signals();
    let server = match &config.tls {
        None => server.listen(listener)?,
        Some(tls) => server.listen_rustls_0_23(listener, rustls::ServerConfig::clone(tls))?,
    };
    Ok((bound, Serving::begin(server.run(), "the server of the views")))
}

/// A refusal: a status, and why.
type Refused = (StatusCode, String);

async fn events(door: web::Data<Door>, request: HttpRequest, stream: web::Payload) -> HttpResponse {
    match begin(&door, &request, stream) {
        Ok(response) => response,
        Err((status, why)) => {
            audit::refused_stranger("views", request.peer_addr(), PATH, &why);
            let mut response = HttpResponse::build(status);
            if status == StatusCode::UNAUTHORIZED {
                response.insert_header((header::WWW_AUTHENTICATE, "Bearer"));
            }
            response.content_type("text/plain; charset=utf-8").body(why)
        }
    }
}

fn begin(door: &Door, request: &HttpRequest, stream: web::Payload) -> Result<HttpResponse, Refused> {
    let protocol = authorize(door, request)?;
    let filter = Filter::parse(request.query_string()).map_err(|why| (StatusCode::BAD_REQUEST, why))?;
    let place = Place::take(&door.clients)
        .ok_or_else(|| (StatusCode::SERVICE_UNAVAILABLE, format!("{MAX_CLIENTS} clients look already")))?;
    let socket = Socket::new(door.board.seat(&filter), filter, place);
    let protocols: &[&str] = if protocol { &[PROTOCOL] } else { &[] };
    let started = ws::WsResponseBuilder::new(socket, request, stream).protocols(protocols).frame_size(FRAME).start();
    started.map_err(|error| (error.as_response_error().status_code(), format!("expected a WebSocket: {error}")))
}

/// Whether the client may look; true: its token is in a protocol, which has to be answered.
fn authorize(door: &Door, request: &HttpRequest) -> Result<bool, Refused> {
    let Some(tokens) = &door.config.tokens else {
        // On the loopback interface everybody of this machine may look, but no page of elsewhere in a browser here.
        return match foreign_origin(request) {
            Some(origin) => {
                Err((StatusCode::FORBIDDEN, format!("a page of {origin:.100?} may not look without a token")))
            }
            None => Ok(false),
        };
    };
    let text = |name: header::HeaderName| request.headers().get(name).and_then(|value| value.to_str().ok());
    let bearer = text(header::AUTHORIZATION).and_then(|value| value.split_once(' '));
    if let Some((_, token)) = bearer.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer")) {
        return match tokens.has(token.trim()) {
            true => Ok(false),
            false => Err((StatusCode::UNAUTHORIZED, "this bearer token is none of these".to_owned())),
        };
    }
    let offered = text(header::SEC_WEBSOCKET_PROTOCOL).unwrap_or_default().split(',').map(str::trim);
    let shown = offered.filter_map(|protocol| protocol.strip_prefix(TOKEN_PROTOCOL)).next();
    let token = shown.and_then(|shown| URL_SAFE_NO_PAD.decode(shown.trim_end_matches('=')).ok());
    match token.and_then(|token| String::from_utf8(token).ok()) {
        Some(token) if tokens.has(&token) => Ok(true),
        Some(_) => Err((StatusCode::UNAUTHORIZED, "this bearer token is none of these".to_owned())),
        None => Err((
            StatusCode::UNAUTHORIZED,
            format!("a bearer token is needed, in a header or, by a browser, as the protocol {TOKEN_PROTOCOL}<token>"),
        )),
    }
}

/// The origin that a browser names, if it is another than this server.
fn foreign_origin(request: &HttpRequest) -> Option<String> {
    let origin = request.headers().get(header::ORIGIN)?.to_str().unwrap_or("invalid");
    let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let same = origin.split_once("://").is_some_and(|(_, authority)| authority.eq_ignore_ascii_case(host));
    // A name that a resolver of elsewhere says is this machine is a page of elsewhere all the same.
    let local = host.parse::<SocketAddr>().is_ok_and(|host| host.ip().is_loopback())
        || host.to_ascii_lowercase().split(':').next() == Some("localhost");
    (!(same && local)).then(|| origin.to_owned())
}

/// A place among the clients; given back when it is dropped.
#[derive(Debug)]
pub(super) struct Place(Arc<AtomicUsize>);

impl Place {
    fn take(clients: &Arc<AtomicUsize>) -> Option<Self> {
        let taken = clients
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| (count < MAX_CLIENTS).then_some(count + 1));
        taken.ok().map(|_| Self(Arc::clone(clients)))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
