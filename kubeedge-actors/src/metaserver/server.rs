//! The HTTP server: heads in, answers out.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use actix_web::{
    App, HttpRequest, HttpResponse, HttpServer,
    http::header::{ACCEPT, HOST, ORIGIN},
    web,
};
use kubeedge_proto::{NodeName, v1::ReleasePods};

use super::{
    answer::{Answer, Copies, Head, answer},
    cloud::{Cloud, Missing},
    release,
};
use crate::{
    kubeapi::{
        discovery,
        http::{JSON, error, header, json_response, lines, listen, page_not_found, tagged},
        status::Status,
    },
    serving::Serving,
    system::Port,
};

/// Connections at a time; more wait in the system's queue. Every watch has one.
pub const MAX_CONNECTIONS: usize = 512;
/// Watches at a time; one more is answered 429. About 2 KB each beside the connection.
pub const MAX_WATCHES: usize = 256;
/// Time a client has to send the head of its request.
const HEAD: Duration = Duration::from_secs(5);
/// How long a connection may be idle between requests: that of an API server.
const KEEP_ALIVE: Duration = Duration::from_secs(180);

/// What every request sees.
pub(super) struct Shared {
    pub(super) copies: Arc<Copies>,
    pub(super) online: Arc<AtomicBool>,
    pub(super) cloud: Cloud,
    /// Who runs pods here.
    pub(super) release: Option<Port<ReleasePods>>,
    pub(super) node: NodeName,
}

/// Serves until what is returned is stopped or dropped.
pub(super) fn start(address: SocketAddr, shared: Shared) -> io::Result<(SocketAddr, Serving)> {
    let listener = listen(address)?;
    let bound = listener.local_addr()?;
    let data = web::Data::new(shared);
    let server = HttpServer::new(move || App::new().app_data(data.clone()).default_service(web::to(handle)))
        .workers(1)
        .max_connections(MAX_CONNECTIONS)
        .client_request_timeout(HEAD)
        .keep_alive(KEEP_ALIVE)
        // A client that closes its end is gone: a quiet watch ends with it, not with its next line.
        .h1_allow_half_closed(false)
        .disable_signals()
        .listen(listener)?;
    Ok((bound, Serving::begin(server.run(), "MetaServer's server")))
}

/// Every request comes here: the paths are data, not routes. Bodies are read of what goes on to the cloud.
async fn handle(shared: web::Data<Shared>, http: HttpRequest, payload: web::Payload) -> HttpResponse {
    respond(&shared, &http, payload).await.unwrap_or_else(|status| error(&status))
}

async fn respond(shared: &Shared, http: &HttpRequest, payload: web::Payload) -> Result<HttpResponse, Status> {
    let host = local_host(http)?;
    if release::is_asked(http) {
        return release::release(shared.release.as_ref(), &shared.node, http, payload).await;
    }
    match look(shared, http, host)? {
        Answer::Cloud(asked) => match shared.cloud.ask(http, payload, &asked).await {
            Ok(response) => Ok(response),
            Err(Missing::Wrong(status)) => Err(status),
            Err(Missing::Unanswered(status)) => match asked.instead {
                // This node may not ask, or nobody is there to: what it has itself is the answer. Of a cloud that is
                // busy or away it is none: what is not here may well be there.
                Some(instead) => match *instead {
                    Err(_) | Ok(Answer::NoPage) if !matches!(status.code, 403 | 501) => Err(status),
                    own => Ok(shown(http, own?)),
                },
                None => Err(status),
            },
        },
        answer => Ok(shown(http, answer)),
    }
}

/// The host that a program of this machine asks for.
fn local_host(http: &HttpRequest) -> Result<&str, Status> {
    let host = header(http, &HOST).unwrap_or_default();
    if http.headers().contains_key(ORIGIN) || !is_local(host) {
        // A page of elsewhere in a browser of this machine, whatever name its resolver gave this address.
        return Err(Status::new(
            403,
            "Forbidden",
            "this API is for programs of this machine, not for pages in a browser",
        ));
    }
    Ok(host)
}

fn look(shared: &Shared, http: &HttpRequest, host: &str) -> Result<Answer, Status> {
    let head = Head {
        method: http.method().as_str(),
        path: http.path(),
        query: http.query_string(),
        accept: header(http, &ACCEPT),
        host,
    };
    answer(&shared.copies, head, shared.online.load(Ordering::Relaxed))
}

fn shown(http: &HttpRequest, answer: Answer) -> HttpResponse {
    match answer {
        Answer::Json(body) => json_response(200, body),
        Answer::Aggregated(version, body) => {
            let etag = discovery::etag(body.as_bytes());
            tagged(http, &discovery::aggregated_content_type(version), &etag, body)
        }
        Answer::Watch(stream) => HttpResponse::Ok().content_type(JSON).streaming(lines(stream)),
        Answer::Text(text) => HttpResponse::Ok().content_type("text/plain; charset=utf-8").body(text),
        Answer::NoPage => page_not_found(),
        // An answer that stands for the cloud's is none of the cloud's.
        Answer::Cloud(_) => page_not_found(),
    }
}

/// Whether a host, with or without a port, is an address that is written out, or `localhost`.
fn is_local(host: &str) -> bool {
    let bare = host.rsplit_once(':').filter(|(_, port)| port.bytes().all(|byte| byte.is_ascii_digit()));
    let bare = bare.map_or(host, |(bare, _)| bare);
    let inner = bare.strip_prefix('[').and_then(|bare| bare.strip_suffix(']')).unwrap_or(bare);
    bare.is_empty() || bare.eq_ignore_ascii_case("localhost") || inner.parse::<IpAddr>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_anybody_may_point_here_is_refused() {
        for good in ["127.0.0.1:10550", "127.0.0.1", "localhost", "LocalHost:1", "[::1]:10550", "[::1]", ""] {
            assert!(is_local(good), "{good:?}");
        }
        for bad in ["evil.example:10550", "evil.example", "127.0.0.1.evil.example", "localhost.evil", "[x]:1"] {
            assert!(!is_local(bad), "{bad:?}");
        }
    }
}
