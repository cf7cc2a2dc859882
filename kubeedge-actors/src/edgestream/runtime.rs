//! An upgraded stream: to the runtime's streaming server and back.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use kubeedge_proto::v1::{OpenContainerStream, StreamHead, StreamOpen};
use tokio::net::TcpStream;
use tokio_util::task::AbortOnDropHandle;

use super::{refuse, upgrades::StreamingServer};
use crate::{
    link::streams::{
        Stream,
        relay::{Ended, RelayError, relay},
    },
    system::Port,
    upgrade,
};

/// How long Edged may take; it asks the container runtime.
const LOCATE_WITHIN: Duration = Duration::from_secs(10);
/// How long the runtime may take to answer the request. It starts nothing before that.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// The text of a refusal is read up to this many bytes.
const MAX_TEXT: usize = 16 * 1024;

/// What the runtime answered.
enum Answered {
    Upgraded(StreamHead, hyper::upgrade::Upgraded),
    Refused(StreamHead, Bytes),
}

/// Serves one request to its end.
pub(super) async fn serve(
    open: &StreamOpen,
    wanted: OpenContainerStream,
    locate: Port<OpenContainerStream>,
    stream: &mut Stream,
) -> Result<(), RelayError> {
    let located = match locate.ask(wanted, LOCATE_WITHIN).await {
        Ok(located) if located.code == 200 => StreamingServer::parse(&located.url).map_err(|why| (500, why)),
        Ok(located) => Err((located.code, located.message)),
        Err(error) => Err((503, format!("Edged: {error}"))),
    };
    let server = match located {
        Ok(server) => server,
        Err((code, why)) => return Ok(refuse(stream, code, why).await?),
    };
    // Who asked may have gone meanwhile: then nothing is started for nobody.
    let answered = tokio::select! {
        error = stream.given_up() => return Err(error.into()),
        answered = tokio::time::timeout(ANSWER_WITHIN, ask(open, &server)) => answered,
    };
    match answered {
        Ok(Ok(Answered::Upgraded(head, upgraded))) => {
            stream.respond(head);
            if relay(stream, TokioIo::new(upgraded)).await? == Ended::Stream {
                tracing::debug!("a client ended its stream");
            }
            Ok(())
        }
        Ok(Ok(Answered::Refused(head, text))) => {
            stream.respond(head);
            Ok(stream.write(text).await?)
        }
        Ok(Err(why)) => {
            Ok(refuse(stream, 502, format!("the container runtime's streaming server at {}: {why}", server.address))
                .await?)
        }
        Err(_) => {
            let why = format!(
                "the container runtime's streaming server at {} did not answer within {ANSWER_WITHIN:?}",
                server.address
            );
            Ok(refuse(stream, 504, why).await?)
        }
    }
}

async fn ask(open: &StreamOpen, server: &StreamingServer) -> Result<Answered, String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let socket = TcpStream::connect(server.address).await.map_err(|error| text(&error))?;
    socket.set_nodelay(true).map_err(|error| text(&error))?;
    let mut request = hyper::Request::builder()
        .method(open.method.as_str())
        .uri(&server.path_and_query)
        .header("host", server.address.to_string())
        .header("connection", "Upgrade");
    for (name, value) in upgrade::each(&open.headers) {
        request = request.header(name, value);
    }
    let request = request.body(Empty::<Bytes>::new()).map_err(|error| text(&error))?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(socket)).await.map_err(|error| text(&error))?;
    let connection = AbortOnDropHandle::new(tokio::task::spawn_local(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "a connection to the container runtime's streaming server ended");
        }
    }));
    let response = sender.send_request(request).await.map_err(|error| text(&error))?;
    let status = response.status();
    let headers = response.headers().iter().map(|(name, value)| (name.as_str(), value.as_bytes()));
    let headers = upgrade::collect(headers).map_err(|error| text(&error))?;
    let mut head = StreamHead { status: u32::from(status.as_u16()), headers };
    if status == hyper::StatusCode::SWITCHING_PROTOCOLS {
        // With the upgrade the connection's task has given its socket away and ends.
        let upgraded = hyper::upgrade::on(response).await.map_err(|error| text(&error))?;
        return Ok(Answered::Upgraded(head, upgraded));
    }
    if status.is_informational() || status.is_success() || status.is_redirection() {
        return Err(format!("it answered {status} and not with an upgrade"));
    }
    if let Some(kind) = response.headers().get(hyper::header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()) {
        head.headers.insert("content-type".into(), kind.to_owned());
    }
    let refusal = Limited::new(response.into_body(), MAX_TEXT).collect().await.map_err(|error| text(&error))?;
    drop(connection);
    Ok(Answered::Refused(head, refusal.to_bytes()))
}
