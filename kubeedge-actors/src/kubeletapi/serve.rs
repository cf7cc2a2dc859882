//! The HTTP listener.

use std::{io, net::SocketAddr, time::Duration};

use actix_web::{
    App, HttpRequest, HttpResponse, HttpServer,
    http::{Method, StatusCode, header},
    web,
};

use super::{Asks, answer};
use crate::serving::Serving;

/// Connections at a time; more wait in the system's queue.
pub const MAX_CONNECTIONS: usize = 32;
/// Those that the system keeps waiting.
const BACKLOG: u32 = 32;
/// Time a client has to send the head of its request.
const HEAD: Duration = Duration::from_secs(5);
/// How long a connection may be idle between requests: longer than the pause between two scrapes.
const KEEP_ALIVE: Duration = Duration::from_secs(75);

/// Serves until what is returned is stopped or dropped.
pub(super) fn start(address: SocketAddr, asks: Asks) -> io::Result<(SocketAddr, Serving)> {
    let data = web::Data::new(asks);
    let server = HttpServer::new(move || App::new().app_data(data.clone()).default_service(web::to(handle)))
        .workers(1)
        .backlog(BACKLOG)
        .max_connections(MAX_CONNECTIONS)
        .client_request_timeout(HEAD)
        .keep_alive(KEEP_ALIVE)
        .disable_signals()
        .bind(address)?;
    let bound = server.addrs().first().copied().unwrap_or(address);
    Ok((bound, Serving::begin(server.run(), "the node's API")))
}

/// Every request comes here. A body is not read, which ends the connection behind the answer.
async fn handle(asks: web::Data<Asks>, request: HttpRequest) -> HttpResponse {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return HttpResponse::MethodNotAllowed()
            .insert_header((header::ALLOW, "GET, HEAD"))
            .content_type("text/plain; charset=utf-8")
            .body("only GET and HEAD are served here\n");
    }
    let answer = answer(request.path(), request.query_string(), &asks).await;
    let code = u16::try_from(answer.code).ok().and_then(|code| StatusCode::from_u16(code).ok());
    HttpResponse::build(code.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR))
        .content_type(answer.content_type)
        .body(answer.body)
}
