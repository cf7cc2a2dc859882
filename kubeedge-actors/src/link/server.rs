//! The cloud's sockets: the link, over mutual TLS 1.3, and enrolment, over TLS with the server's certificate only.
//!
//! Both run until their future is dropped, which closes every connection; end the sessions first, so that their
//! Goodbyes arrive.

use std::{
    fmt,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use futures_util::{StreamExt, stream::Map};
use hyper::service::service_fn;
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    service::TowerToHyperService,
};
use kubeedge_proto::{
    NodeName,
    v1::{
        Frame, Goodbye, GoodbyeReason, StreamFrame,
        enrolment_server::{Enrolment, EnrolmentServer},
        frame::Frame as F,
        link_server::{Link, LinkServer},
    },
};
use rustls::{ProtocolVersion, ServerConfig, pki_types::CertificateDer};
use socket2::SockRef;
use thiserror::Error;
use tokio::{
    io::Interest,
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot},
    task::JoinSet,
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming, codegen::Service as _, service::interceptor::InterceptedService};

use super::{
    abrupt::{Abrupt, Reset},
    config::MAX_FRAME_BYTES,
    fresh::Fresh,
    limits::{Addresses, Nodes, Rate},
    refusal,
    socket::{HANDSHAKE, SEND_BUFFER, STREAM_WINDOW, tune},
    streams::connection::TRANSPORT_FRAMES,
    transport::{FrameSink, FrameStream, Outgoing},
};
use crate::{audit, identity::validity};

/// Enrolment requests and answers are certificates: this is plenty, in bytes.
const MAX_ENROLMENT_BYTES: usize = 64 * 1024;
/// From a connection for enrolment to its end.
const ENROLMENT_TIME: Duration = Duration::from_secs(30);
/// After a session's end: for its last frames to leave.
const LINGER: Duration = Duration::from_secs(5);
/// Connections that the kernel keeps until they are accepted; a system's own bound (`net.core.somaxconn`, 4,096 on Linux)
/// may be lower. When a cloud comes back all its nodes connect, and one that finds no room here tries again after
/// seconds.
const BACKLOG: i32 = 4096;
/// After accept has failed, for want of file descriptors say.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A node has opened its link.
#[derive(Debug)]
pub struct Accepted {
    /// Out of its certificate.
    pub node: NodeName,
    /// When that certificate ends.
    pub expires: SystemTime,
    /// Where it comes from.
    pub peer: SocketAddr,
    /// To it. Dropping it ends the connection.
    pub sink: FrameSink,
    /// From it.
    pub stream: FrameStream,
}

/// A connection for streams whose handshake is done.
pub struct AcceptedStreams {
    /// From the certificate.
    pub node: NodeName,
    /// To it.
    pub outgoing: mpsc::Sender<StreamFrame>,
    /// From it.
    pub incoming: Streaming<StreamFrame>,
    /// Dropping it ends the connection.
    pub open: oneshot::Sender<()>,
}

impl fmt::Debug for AcceptedStreams {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AcceptedStreams").field("node", &self.node).finish_non_exhaustive()
    }
}

/// Where connections come out.
#[derive(Clone, Debug)]
pub struct Doors {
    /// Sessions.
    pub sessions: mpsc::Sender<Accepted>,
    /// Connections for streams; `None`: they are not served.
    pub streams: Option<mpsc::Sender<AcceptedStreams>>,
}

impl From<mpsc::Sender<Accepted>> for Doors {
    fn from(sessions: mpsc::Sender<Accepted>) -> Self {
        Self { sessions, streams: None }
    }
}

/// Reads the node's name out of a verified certificate chain, leaf first.
pub type Identify = Arc<dyn Fn(&[CertificateDer<'_>]) -> Result<NodeName, String> + Send + Sync>;

/// Bounds of a listener.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at a time that shake hands or have not begun what they came for; more wait, without memory for TLS.
    pub handshakes: usize,
    /// Connections at a time; more are closed at once.
    pub connections: usize,
    /// Connections that one address may open; more are closed before their handshake, which is what costs.
    pub per_address: Rate,
    /// Connections of one node at a time: its session, its streams, and those that take over from them.
    pub per_node: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { handshakes: 64, connections: 20_000, per_address: Rate { burst: 1_000, per_second: 200.0 }, per_node: 6 }
    }
}

/// Why a connection did not come about.
#[derive(Debug, Error)]
enum Refused {
    #[error("socket: {0}")]
    Io(#[from] std::io::Error),
    #[error("TLS: {}", refusal::explain(.0))]
    Tls(std::io::Error),
    #[error("no TLS handshake within {HANDSHAKE:?}")]
    Slow,
    #[error("TLS 1.3 is needed, the peer speaks {0:?}")]
    OldTls(Option<ProtocolVersion>),
    #[error("the peer showed no certificate")]
    NoCertificate,
    #[error("the peer's certificate: {0}")]
    Identity(String),
    #[error("node {0} has its {1} connections already")]
    TooMany(NodeName, usize),
    #[error("HTTP/2: {0}")]
    Http(#[from] hyper::Error),
    #[error("no session within {HANDSHAKE:?}")]
    NoSession,
    #[error("an enrolment has {ENROLMENT_TIME:?}")]
    SlowEnrolment,
}

impl Refused {
    /// What the audit log says that it was about. `None`: nobody was refused, the peer or the network broke off.
    fn about(&self) -> Option<&'static str> {
        match self {
            Self::Tls(cause) if !refusal::is_refusal(cause) => None,
            Self::Tls(_) | Self::OldTls(_) | Self::NoCertificate | Self::Identity(_) => Some("TLS"),
            Self::TooMany(..) | Self::Slow | Self::NoSession | Self::SlowEnrolment => Some("limit"),
            Self::Io(_) | Self::Http(_) => None,
        }
    }

    fn audit(&self, action: &str, peer: SocketAddr) {
        match (self.about(), self) {
            (Some(about), Self::TooMany(node, _)) => audit::refused(action, node, about, self),
            (Some(about), _) => audit::refused_stranger(action, peer, about, self),
            (None, _) => tracing::info!(%peer, "{action} ended: {self}"),
        }
    }
}

/// Serves the link. Every node that connects comes out of `doors`; when a channel is full the node is asked to come
/// back. `tls` must ask for client certificates and verify them; its ALPN is set here.
pub async fn serve_link(
    listener: TcpListener,
    tls: Arc<ServerConfig>,
    identify: Identify,
    doors: impl Into<Doors>,
    limits: Limits,
) {
    let doors = doors.into();
    let nodes = Nodes::new(limits.per_node);
    accept("the link", listener, with_h2(&tls), limits, move |stream, peer, turn| {
        let (identify, doors, nodes) = (Arc::clone(&identify), doors.clone(), nodes.clone());
        async move {
            let chain = stream.get_ref().1.peer_certificates().ok_or(Refused::NoCertificate)?;
            let node = identify(chain).map_err(Refused::Identity)?;
            let leaf = chain.first().ok_or(Refused::NoCertificate)?;
            let (_, expires) = validity(leaf).map_err(|error| Refused::Identity(error.to_string()))?;
            let _counted = nodes.take(&node).ok_or_else(|| Refused::TooMany(node.clone(), limits.per_node))?;
            serve_node(stream, node, expires, peer, doors, turn).await
        }
    })
    .await;
}

/// Who asks for a certificate: what enrolment's handlers find in a request's extensions.
#[derive(Clone, Debug)]
pub struct Caller {
    /// Where it comes from.
    pub peer: SocketAddr,
    /// The certificate that it showed and whose key it has, leaf first; empty for a box that has none yet.
    pub chain: Arc<[CertificateDer<'static>]>,
}

/// Serves enrolment. The handler decides, and learns from [`Caller`] who asks.
pub async fn serve_enrolment<T: Enrolment>(
    listener: TcpListener,
    tls: Arc<ServerConfig>,
    handler: Arc<T>,
    limits: Limits,
) {
    accept("enrolment", listener, with_h2(&tls), limits, move |stream, peer, turn| {
        drop(turn);
        let service = EnrolmentServer::from_arc(Arc::clone(&handler)).max_decoding_message_size(MAX_ENROLMENT_BYTES);
        let chain = stream.get_ref().1.peer_certificates().map(|chain| chain.iter().map(|c| c.clone().into_owned()));
        let caller = Caller { peer, chain: chain.into_iter().flatten().collect() };
        let service = InterceptedService::new(service, move |mut request: Request<()>| {
            request.extensions_mut().insert(caller.clone());
            Ok(request)
        });
        async move {
            let connection = http2().serve_connection(TokioIo::new(stream), TowerToHyperService::new(service));
            match timeout(ENROLMENT_TIME, connection).await {
                Ok(result) => Ok(result?),
                Err(_) => Err(Refused::SlowEnrolment),
            }
        }
    })
    .await;
}

fn with_h2(tls: &ServerConfig) -> TlsAcceptor {
    let mut tls = tls.clone();
    tls.alpn_protocols = vec![b"h2".to_vec()];
    Arc::new(tls).into()
}

fn http2() -> hyper::server::conn::http2::Builder<TokioExecutor> {
    let mut builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
    builder
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(2 * STREAM_WINDOW)
        .max_send_buf_size(SEND_BUFFER)
        .max_concurrent_streams(4)
        .max_header_list_size(8 * 1024);
    builder
}

/// One of the connections that are being made; the next one's turn comes when it is dropped.
type Turn = OwnedSemaphorePermit;

/// Accepts, shakes hands, and runs `serve` for each connection.
///
/// A peer that says nothing takes nobody's turn. One that has given up while it waited for its turn is let go before
/// anything is done for it: when all nodes come back at once to a cloud that is too slow for it, those that are still
/// there are served, and not those whose ten seconds are over.
async fn accept<S, F>(what: &'static str, listener: TcpListener, tls: TlsAcceptor, limits: Limits, serve: S)
where
    S: Fn(Stream, SocketAddr, Turn) -> F,
    F: Future<Output = Result<(), Refused>> + Send + 'static,
    S: Clone + Send + 'static,
{
    // Who bound the socket had no reason to ask for more than the usual 128.
    if let Err(error) = SockRef::from(&listener).listen(BACKLOG) {
        tracing::warn!(%error, "{what}: few connections may wait at a time");
    }
    let action: Arc<str> = format!("connection to {what}").into();
    let handshakes = Arc::new(Semaphore::new(limits.handshakes));
    let mut addresses = Addresses::new(limits.per_address, Instant::now());
    let mut connections = JoinSet::new();
    loop {
        let (stream, peer) = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            },
            Some(_) = connections.join_next() => continue,
        };
        // Those that have ended meanwhile do not count.
        while connections.try_join_next().is_some() {}
        if connections.len() >= limits.connections {
            let why = format!("there are {} connections, as many as there may be", limits.connections);
            audit::refused_stranger(&action, peer, "limit", why);
            continue;
        }
        if !addresses.take(peer.ip(), Instant::now()) {
            let Rate { burst, per_second } = limits.per_address;
            let why = format!("more than {burst} connections of one address at once, then {per_second} a second");
            audit::refused_stranger(&action, peer, "address", why);
            continue;
        }
        let (tls, serve, action, handshakes) =
            (tls.clone(), serve.clone(), Arc::clone(&action), Arc::clone(&handshakes));
        connections.spawn(async move {
            // Each in a box of its own: the memory of a handshake is given back when it is done, and a connection that
            // lasts for months does not keep room for it.
            let served = async move {
                let Some(turn) = its_turn(&stream, handshakes).await? else { return Ok(()) };
                let stream = Box::pin(shake_hands(stream, tls)).await?;
                Box::pin(serve(stream, peer, turn)).await
            };
            if let Err(error) = served.await {
                error.audit(&action, peer);
            }
        });
    }
}

/// Behind a pointer: it has two kilobytes and is handed from one to the next.
type Stream = Box<TlsStream<Abrupt>>;

/// Waits until the peer has begun to speak, and for its turn. `None`: it has gone meanwhile.
async fn its_turn(stream: &TcpStream, turns: Arc<Semaphore>) -> Result<Option<Turn>, Refused> {
    // Not only `readable`, which a stream may be said to be without a byte in it.
    if timeout(HANDSHAKE, stream.peek(&mut [0; 1])).await.map_err(|_| Refused::Slow)?? == 0 {
        return Ok(None);
    }
    // Never closed, so that this waits and does not fail.
    let Ok(turn) = turns.acquire_owned().await else { return Ok(None) };
    let ready = stream.ready(Interest::READABLE).await?;
    Ok(Some(turn).filter(|_| !ready.is_read_closed()))
}

async fn shake_hands(stream: TcpStream, tls: TlsAcceptor) -> Result<Stream, Refused> {
    tune(&stream)?;
    let stream = timeout(HANDSHAKE, tls.accept(Abrupt::new(stream))).await.map_err(|_| Refused::Slow)?;
    let stream = stream.map_err(Refused::Tls)?;
    match stream.get_ref().1.protocol_version() {
        Some(ProtocolVersion::TLSv1_3) => Ok(Box::new(stream)),
        other => Err(Refused::OldTls(other)),
    }
}

/// One node's connection, from its handshake to its end.
async fn serve_node(
    stream: Stream,
    node: NodeName,
    expires: SystemTime,
    peer: SocketAddr,
    doors: Doors,
    turn: Turn,
) -> Result<(), Refused> {
    let (begun, begins) = oneshot::channel();
    let reset = stream.get_ref().0.reset().clone();
    let handler = NodeConnection { node, expires, peer, doors, reset: reset.clone(), begun: Mutex::new(Some(begun)) };
    let service = LinkServer::new(handler).max_decoding_message_size(MAX_FRAME_BYTES);
    let service = service_fn(move |request| {
        let answered = service.clone().call(request);
        async move { answered.await.map(|response| response.map(Fresh::of)) }
    });
    let connection = http2().serve_connection(TokioIo::new(stream), service);
    let mut connection = Box::pin(connection);
    let session_ended = async {
        let begins = timeout(HANDSHAKE, begins).await;
        drop(turn);
        match begins {
            Ok(Ok(ended)) => {
                // An error says that the sink was dropped, and that is all it can say.
                ended.await.ok();
                Ok(())
            }
            _ => Err(Refused::NoSession),
        }
    };
    let ended = tokio::select! {
        result = connection.as_mut() => return Ok(result?),
        ended = session_ended => ended,
    };
    if reset.is_set() {
        return ended;
    }
    connection.as_mut().graceful_shutdown();
    // A peer that reads nothing any more is not waited for.
    match timeout(LINGER, connection).await {
        Ok(result) => result?,
        Err(_) => tracing::debug!(%peer, "connection dropped: the peer did not close it within {LINGER:?}"),
    }
    ended
}

/// The gRPC service of one connection; its name comes from its certificate.
struct NodeConnection {
    node: NodeName,
    expires: SystemTime,
    peer: SocketAddr,
    doors: Doors,
    reset: Reset,
    /// Taken by the one session, or the one set of streams, that a connection carries.
    begun: Mutex<Option<oneshot::Sender<oneshot::Receiver<()>>>>,
}

impl fmt::Debug for NodeConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NodeConnection({} from {})", self.node, self.peer)
    }
}

/// The frames of streams in a response.
type StreamFrames = Map<ReceiverStream<StreamFrame>, fn(StreamFrame) -> Result<StreamFrame, Status>>;
/// The frames of a response.
type Frames = Map<Outgoing, fn(Frame) -> Result<Frame, Status>>;

#[tonic::async_trait]
impl Link for NodeConnection {
    type ConnectStream = Frames;
    type StreamsStream = StreamFrames;

    async fn connect(&self, request: Request<Streaming<Frame>>) -> Result<Response<Frames>, Status> {
        let begun = self.begin("session")?;
        let (sink, outgoing, ended) = FrameSink::watched();
        let stream = FrameStream::grpc(request.into_inner(), self.reset.clone(), None);
        let accepted = Accepted { node: self.node.clone(), expires: self.expires, peer: self.peer, sink, stream };
        if let Err(error) = self.doors.sessions.try_send(accepted) {
            let (reason, message) = match &error {
                mpsc::error::TrySendError::Full(_) => (GoodbyeReason::Busy, "too many nodes connect at once"),
                mpsc::error::TrySendError::Closed(_) => (GoodbyeReason::ShuttingDown, "the cloud stops"),
            };
            if reason == GoodbyeReason::Busy {
                audit::refused("session", &self.node, "limit", message);
            }
            let goodbye = Goodbye { reason: reason.into(), message: message.into(), retry_after_ms: 5_000 };
            let refused = error.into_inner();
            // The sink is new and empty, and its other end is right here.
            refused.sink.send(Frame { frame: Some(F::Goodbye(goodbye)) }).ok();
        }
        // The other end lives as long as the connection that this belongs to.
        begun.send(ended).ok();
        Ok(Response::new(outgoing.map(Ok as fn(Frame) -> Result<Frame, Status>)))
    }

    async fn streams(&self, request: Request<Streaming<StreamFrame>>) -> Result<Response<StreamFrames>, Status> {
        let streams = self.doors.streams.as_ref();
        let streams = streams.ok_or_else(|| Status::unimplemented("this cloud serves no streams"))?;
        let begun = self.begin("streams")?;
        let (outgoing, frames) = mpsc::channel(TRANSPORT_FRAMES);
        let (open, ended) = oneshot::channel();
        let accepted = AcceptedStreams { node: self.node.clone(), outgoing, incoming: request.into_inner(), open };
        // Dropped when it is not taken: the connection ends.
        streams.try_send(accepted).map_err(|error| {
            let why = "too many nodes open connections for streams";
            if matches!(error, mpsc::error::TrySendError::Full(_)) {
                audit::refused("streams", &self.node, "limit", why);
            }
            Status::unavailable(why)
        })?;
        begun.send(ended).ok();
        Ok(Response::new(ReceiverStream::new(frames).map(Ok as fn(StreamFrame) -> Result<StreamFrame, Status>)))
    }
}

impl NodeConnection {
    /// A connection carries one session, or one set of streams.
    fn begin(&self, action: &str) -> Result<oneshot::Sender<oneshot::Receiver<()>>, Status> {
        let begun = self.begun.lock().unwrap_or_else(PoisonError::into_inner).take();
        begun.ok_or_else(|| {
            let why = "this connection is in use: open another one";
            audit::refused(action, &self.node, "connection", why);
            Status::already_exists(why)
        })
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt as _;

    use super::*;
    use crate::audit::testing::Heard;

    #[tokio::test]
    async fn who_has_gone_while_it_waited_for_its_turn_gets_none() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let turns = Arc::new(Semaphore::new(1));
        let connect = async || {
            let connecting = TcpStream::connect(listener.local_addr().unwrap());
            let (client, accepted) = tokio::join!(connecting, listener.accept());
            let (mut client, (accepted, _)) = (client.unwrap(), accepted.unwrap());
            client.write_all(b"hello").await.unwrap();
            (client, accepted)
        };
        let (_here, stream) = connect().await;
        let first = its_turn(&stream, Arc::clone(&turns)).await.unwrap();
        assert!(first.is_some());
        let (there, other) = connect().await;
        let (_stays, third) = connect().await;
        let waiting = its_turn(&other, Arc::clone(&turns));
        let mut waiting = std::pin::pin!(waiting);
        assert!(futures_util::poll!(&mut waiting).is_pending());
        drop(there);
        // Until the kernel has told it.
        while !other.ready(Interest::READABLE).await.unwrap().is_read_closed() {
            tokio::task::yield_now().await;
        }
        drop(first);
        assert!(waiting.await.unwrap().is_none());
        assert!(its_turn(&third, turns).await.unwrap().is_some(), "the turn is free again");
    }

    #[test]
    fn a_connection_carries_one_session_and_a_second_one_is_refused_and_audited() {
        let heard = Heard::default();
        let _here = heard.here();
        let connection = NodeConnection {
            node: "edge-1".parse().unwrap(),
            expires: SystemTime::now(),
            peer: ([127, 0, 0, 1], 1).into(),
            doors: mpsc::channel(1).0.into(),
            reset: Reset::default(),
            begun: Mutex::new(Some(oneshot::channel().0)),
        };
        assert!(connection.begin("session").is_ok());
        assert_eq!(heard.take(), Vec::<String>::new());
        for action in ["session", "streams"] {
            assert_eq!(connection.begin(action).unwrap_err().code(), tonic::Code::AlreadyExists);
            let lines = heard.take();
            let told = format!("{action} refused: this connection is in use");
            assert!(lines.len() == 1 && lines[0].contains(&told) && lines[0].contains("who=edge-1"), "{lines:?}");
        }
    }

    #[test]
    fn what_was_refused_is_audited_and_what_broke_off_is_not() {
        let heard = Heard::default();
        let _here = heard.here();
        let tls = |error: rustls::Error| Refused::Tls(std::io::Error::other(error));
        let node: NodeName = "edge-1".parse().unwrap();
        for (refused, who) in [
            (Refused::Slow, "192.0.2.1:7"),
            (Refused::NoSession, "192.0.2.1:7"),
            (Refused::SlowEnrolment, "192.0.2.1:7"),
            (Refused::NoCertificate, "192.0.2.1:7"),
            (Refused::Identity("no name".into()), "192.0.2.1:7"),
            (Refused::OldTls(Some(ProtocolVersion::TLSv1_2)), "192.0.2.1:7"),
            (tls(rustls::CertificateError::Revoked.into()), "192.0.2.1:7"),
            (tls(rustls::PeerIncompatible::SupportedVersionsExtensionRequired.into()), "192.0.2.1:7"),
            (Refused::TooMany(node, 6), "edge-1"),
        ] {
            refused.audit("connection to the link", ([192, 0, 2, 1], 7).into());
            let lines = heard.take();
            assert!(lines.len() == 1 && lines[0].contains(&format!("who={who} ")), "{refused}: {lines:?}");
        }
        for broken in [tls(rustls::Error::DecryptError), Refused::Io(std::io::ErrorKind::ConnectionReset.into())] {
            broken.audit("connection to the link", ([192, 0, 2, 1], 7).into());
            assert_eq!(heard.take(), Vec::<String>::new(), "{broken}");
        }
    }
}
