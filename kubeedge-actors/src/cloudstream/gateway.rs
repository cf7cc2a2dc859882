//! The HTTPS listener: who may come in.

use std::{cell::RefCell, net::SocketAddr, rc::Rc, sync::Arc, time::Duration};

use http::{Response, StatusCode};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::pki_types::CertificateDer;
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_util::task::AbortOnDropHandle;

use super::{
    API_SERVER_USER, Asks, CloudStreamConfig, MASTERS,
    relay::{self, Answer},
};
use crate::{
    audit,
    identity::peer_user,
    link::{refusal, socket},
};

/// What a connection is in the audit log.
const ACTION: &str = "connection to the stream gateway";
/// Connections at a time; more are closed at once.
const MAX_CONNECTIONS: usize = 1024;
/// TLS may take this long.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// The head of a request may take this long, and so may the pause before the next on the same connection.
const HEAD: Duration = Duration::from_secs(90);
/// Pause after an accept that failed, such as for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves until the handle is dropped, which cuts every connection.
pub(super) fn listen(config: &CloudStreamConfig, asks: Asks) -> std::io::Result<AbortOnDropHandle<()>> {
    let listener = config.listener.try_clone()?;
    listener.set_nonblocking(true)?;
    let listener = TcpListener::from_std(listener)?;
    let mut tls = (*config.tls).clone();
    tls.alpn_protocols = vec![b"http/1.1".to_vec()];
    let tls = TlsAcceptor::from(Arc::new(tls));
    Ok(AbortOnDropHandle::new(tokio::task::spawn_local(accept(listener, tls, asks))))
}

async fn accept(listener: TcpListener, tls: TlsAcceptor, asks: Asks) {
    let mut connections = JoinSet::new();
    loop {
        let (stream, peer) = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "the stream gateway cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            },
            Some(_) = connections.join_next() => continue,
        };
        // Those that have ended meanwhile do not count.
        while connections.try_join_next().is_some() {}
        if connections.len() >= MAX_CONNECTIONS {
            let why = format!("there are {MAX_CONNECTIONS} connections, as many as there may be");
            audit::refused_stranger(ACTION, peer, "limit", why);
            continue;
        }
        let (tls, asks) = (tls.clone(), asks.clone());
        connections.spawn_local(async move {
            if let Err(error) = serve(stream, peer, tls, asks).await {
                tracing::debug!("a connection to the stream gateway ended: {error}");
            }
        });
    }
}

async fn shake_hands(stream: TcpStream, peer: SocketAddr, tls: TlsAcceptor) -> std::io::Result<TlsStream<TcpStream>> {
    socket::tune(&stream)?;
    let Ok(shaken) = timeout(HANDSHAKE, tls.accept(stream)).await else {
        audit::refused_stranger(ACTION, peer, "limit", format!("no TLS handshake within {HANDSHAKE:?}"));
        return Err(std::io::ErrorKind::TimedOut.into());
    };
    if let Some(error) = shaken.as_ref().err().filter(|error| refusal::is_refusal(error)) {
        audit::refused_stranger(ACTION, peer, "TLS", refusal::explain(error));
    }
    shaken
}

async fn serve(
    stream: TcpStream,
    peer: SocketAddr,
    tls: TlsAcceptor,
    asks: Asks,
) -> Result<(), Box<dyn std::error::Error>> {
    let stream = shake_hands(stream, peer, tls).await?;
    let refusal = refusal(stream.get_ref().1.peer_certificates());
    if let Some((_, why)) = &refusal {
        audit::refused_stranger(ACTION, peer, "certificate", why);
    }
    // What comes after an upgrade, which ends HTTP on this connection.
    let after = Rc::new(RefCell::new(None));
    let service = service_fn(|request: http::Request<hyper::body::Incoming>| {
        let (asks, refusal, after) = (asks.clone(), refusal.clone(), Rc::clone(&after));
        async move {
            let answer: Response<Answer> = match refusal {
                Some((status, why)) => relay::text(status, why),
                None => {
                    let (answer, upgraded) = relay::answer(request, &asks).await;
                    *after.borrow_mut() = upgraded;
                    answer
                }
            };
            Ok::<_, std::convert::Infallible>(answer)
        }
    });
    // A client that closes its end is gone: its stream is given up at once.
    hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_buf_size(64 * 1024)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades()
        .await?;
    let upgraded = after.take();
    if let Some(upgraded) = upgraded {
        upgraded.run().await?;
    }
    Ok(())
}

/// Why this client may not ask, if so. The chain was verified.
fn refusal(chain: Option<&[CertificateDer<'_>]>) -> Option<(StatusCode, String)> {
    let Some(chain) = chain.filter(|chain| !chain.is_empty()) else {
        return Some((StatusCode::UNAUTHORIZED, "a client certificate is needed: that of the API server".into()));
    };
    match peer_user(chain) {
        Ok((user, _)) if user == API_SERVER_USER => None,
        Ok((_, groups)) if groups.iter().any(|group| group == MASTERS) => None,
        Ok((user, _)) => Some((StatusCode::FORBIDDEN, format!("user {user:?} may not use the streams of nodes"))),
        Err(error) => Some((StatusCode::FORBIDDEN, error.to_string())),
    }
}
