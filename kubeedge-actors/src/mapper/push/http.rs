//! Readings to an HTTP server: a connection each, which ends with the answer.

use std::time::Duration;

use http::{Request, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio_util::task::AbortOnDropHandle;

use super::{Read, target::Http};

/// What is read of an answer, bytes; nobody looks at it.
const ANSWER: usize = 64 * 1024;

/// Sends a reading; an answer other than 2xx is a failure.
pub(super) async fn push(target: &Http, read: &Read) -> Result<(), String> {
    let within: Duration = target.within;
    match tokio::time::timeout(within, send(target, read)).await {
        Ok(done) => done.map_err(|why| format!("http://{}{}: {why}", target.authority(), target.path)),
        Err(_) => Err(format!("http://{}{}: no answer within {within:?}", target.authority(), target.path)),
    }
}

async fn send(target: &Http, read: &Read) -> Result<(), String> {
    let stream = TcpStream::connect((target.host.as_str(), target.port)).await.map_err(|error| error.to_string())?;
    let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(|error| error.to_string())?;
    let _connection = AbortOnDropHandle::new(tokio::task::spawn_local(async move {
        if let Err(error) = connection.await {
            tracing::debug!("a connection ended: {error}");
        }
    }));
    let request = Request::post(&target.path)
        .header(header::HOST, target.authority())
        .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
        .header(header::CONNECTION, "close")
        .body(Full::new(Bytes::from(target.body(read))))
        .map_err(|error| error.to_string())?;
    let answer = sender.send_request(request).await.map_err(|error| error.to_string())?;
    let status = answer.status();
    if !status.is_success() {
        return Err(format!("the answer is {status}"));
    }
    // The server has to be done with it, too.
    Limited::new(answer.into_body(), ANSWER).collect().await.map_err(|error| format!("its answer: {error}"))?;
    Ok(())
}
