//! Calls of services at nodes, each a stream of the node's second connection. Nothing is sent twice.

use std::{cell::Cell, rc::Rc, time::Duration};

use bytes::Bytes;
use futures_util::{Stream as Bodies, StreamExt as _};
use kubeedge_proto::{
    NodeName,
    v1::{StreamHead, StreamOpen},
};
use tokio::sync::{mpsc, oneshot};

use super::{Asks, Refused};
use crate::{
    link::streams::{
        ConnectStreams, NotConnected, OpenError, Stream, StreamError,
        connection::{IncomingBytes, OutgoingBytes},
    },
    web::{Counted, MAX_BODY},
};

/// How long CloudHub may take for a node's stream connection. Above its own bound, which has the better words.
const CONNECT_WITHIN: Duration = Duration::from_secs(12);
/// Characters of a service's answer that a failure tells.
const TOLD: usize = 200;

/// Opens a stream at a node.
pub(super) async fn open(asks: &Asks, node: &NodeName, open: StreamOpen) -> Result<Stream, Refused> {
    let connected = asks.connect.ask(ConnectStreams { node: node.clone() }, CONNECT_WITHIN).await;
    let connection = match connected {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => {
            let status = match &error {
                NotConnected::Offline(_) => 503,
                NotConnected::Late(_) => 504,
                NotConnected::Busy(_) => 429,
            };
            return Err(Refused::new(status, error.to_string()));
        }
        Err(error) => return Err(Refused::new(503, format!("CloudHub: {error}"))),
    };
    connection.open(open).map_err(|error| {
        let status = if matches!(error, OpenError::Full) { 429 } else { 502 };
        Refused::new(status, format!("node {node}: {error}"))
    })
}

/// Posts a message to a service and waits for its answer. The error may be the service's own: then the status is.
pub(super) async fn post(
    asks: &Asks,
    node: &NodeName,
    request: StreamOpen,
    body: Bytes,
    within: Duration,
) -> Result<(), Refused> {
    let exchange = async {
        let mut stream = open(asks, node, request).await?;
        let broken = |error: StreamError| Refused::new(502, format!("node {node}: {error}"));
        // A service may answer before it has read everything: what it says counts then, not that it broke off.
        let written = stream.write(body).await;
        stream.finish();
        let head = match (stream.head().await, written) {
            (Ok(head), _) => head,
            (Err(error), _) => return Err(broken(error)),
        };
        let mut text = Vec::new();
        let mut counted = Counted::default();
        while let Some(bytes) = stream.read().await.map_err(broken)? {
            if !counted.add(bytes.len()) {
                return Err(Refused::new(502, format!("node {node}: the answer has more than {MAX_BODY} bytes")));
            }
            text.extend(bytes.iter().take(4 * TOLD - text.len().min(4 * TOLD)));
        }
        match head.status {
            200..=299 => Ok(()),
            status => {
                let text: String = String::from_utf8_lossy(&text).chars().take(TOLD).collect();
                Err(Refused::new(
                    u16::try_from(status).unwrap_or(502),
                    format!("the service answered {status}: {text}"),
                ))
            }
        }
    };
    match tokio::time::timeout(within, exchange).await {
        Ok(done) => done,
        Err(_) => Err(Refused::new(504, format!("node {node} did not answer within {within:?}"))),
    }
}

/// What a request's relay gives: the head of the answer, then its bytes.
pub(super) struct Relayed {
    pub(super) head: StreamHead,
    pub(super) body: mpsc::Receiver<Result<Bytes, StreamError>>,
}

/// Sends a request whose body comes from `body` and gives the answer back as it comes. Until `until` there must be a head.
/// A caller that goes ends everything at once.
pub(super) async fn relay<E: std::fmt::Display + 'static>(
    stream: Stream,
    node: &NodeName,
    body: impl Bodies<Item = Result<Bytes, E>> + Unpin + 'static,
    until: tokio::time::Instant,
    within: Duration,
) -> Result<Relayed, Refused> {
    let (head, answered) = oneshot::channel();
    let (bytes, answer) = mpsc::channel(1);
    let sent = Rc::new(Cell::new(false));
    let running = Running { head, bytes, sent: Rc::clone(&sent), within };
    actix_rt::spawn(running.run(stream, body));
    match tokio::time::timeout_at(until, answered).await {
        Ok(Ok(Ok(head))) => Ok(Relayed { head, body: answer }),
        Ok(Ok(Err(refused))) => Err(refused.at(node)),
        // Its task ends with a word always.
        Ok(Err(_)) => Err(Refused::new(502, format!("node {node} gave the request up"))),
        Err(_) if sent.get() => Err(Refused::new(504, format!("node {node} did not answer within {within:?}"))),
        Err(_) => Err(Refused::new(408, format!("the request did not come within {within:?}"))),
    }
}

struct Running {
    head: oneshot::Sender<Result<StreamHead, Refused>>,
    bytes: mpsc::Sender<Result<Bytes, StreamError>>,
    /// The whole request went to the node.
    sent: Rc<Cell<bool>>,
    within: Duration,
}

impl Running {
    async fn run<E: std::fmt::Display>(self, mut stream: Stream, body: impl Bodies<Item = Result<Bytes, E>> + Unpin) {
        let Self { mut head, bytes, sent, within } = self;
        let finished = {
            let (mut incoming, mut outgoing) = stream.split();
            let up = up(body, &mut outgoing, &sent);
            let mut up = std::pin::pin!(up);
            let mut sending = true;
            // First the head, while the body goes up.
            let answered = loop {
                tokio::select! {
                    answered = incoming.head() => break answered.map_err(|error| Refused::new(502, error.to_string())),
                    done = &mut up, if sending => match done {
                        Ok(()) => sending = false,
                        Err(refused) => break Err(refused),
                    },
                    () = head.closed() => return,
                }
            };
            let good = answered.is_ok();
            // The caller may have gone meanwhile.
            if head.send(answered).is_err() || !good {
                return;
            }
            // Then its bytes, while the rest of the body goes up.
            let down = down(&mut incoming, &bytes, within);
            let mut down = std::pin::pin!(down);
            loop {
                tokio::select! {
                    whole = &mut down => break whole,
                    done = &mut up, if sending => match done {
                        Ok(()) => sending = false,
                        Err(_) => break false,
                    },
                    () = bytes.closed() => break false,
                }
            }
        };
        if finished {
            stream.finish();
        }
    }
}

/// The request's body, to the node.
async fn up<E: std::fmt::Display>(
    mut body: impl Bodies<Item = Result<Bytes, E>> + Unpin,
    outgoing: &mut OutgoingBytes<'_>,
    sent: &Cell<bool>,
) -> Result<(), Refused> {
    let mut counted = Counted::default();
    while let Some(chunk) = body.next().await {
        let chunk = chunk.map_err(|error| Refused::new(400, format!("the body could not be read: {error}")))?;
        if !counted.add(chunk.len()) {
            return Err(Refused::new(413, format!("the body has more than {MAX_BODY} bytes")));
        }
        if outgoing.write(chunk).await.is_err() {
            // The service answers without reading the rest, or the stream has ended: its head says which.
            std::future::pending::<()>().await;
        }
    }
    outgoing.finish();
    sent.set(true);
    Ok(())
}

/// The answer's bytes, to the caller. True: all of them.
async fn down(
    incoming: &mut IncomingBytes<'_>,
    bytes: &mpsc::Sender<Result<Bytes, StreamError>>,
    within: Duration,
) -> bool {
    let mut counted = Counted::default();
    loop {
        let next = match tokio::time::timeout(within, incoming.read()).await {
            Ok(Ok(None)) => return true,
            Ok(Ok(Some(chunk))) if counted.add(chunk.len()) => Ok(chunk),
            Ok(Ok(Some(_))) => Err(StreamError::Aborted(format!("the answer has more than {MAX_BODY} bytes"))),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(StreamError::Aborted(format!("nothing more came within {within:?}"))),
        };
        let broken = next.is_err();
        if bytes.send(next).await.is_err() || broken {
            return false;
        }
    }
}
