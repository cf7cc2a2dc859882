//! Router and ServiceBus with their real HTTP servers and clients; CloudHub is recorded, and the link between them is a
//! pair of stream connections in memory.

use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener},
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use futures_util::StreamExt as _;
use http_body_util::{BodyExt as _, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    Request, Response,
    body::{Frame, Incoming},
    client::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use kubeedge_actors::{
    apiserver::{Config, Handle, Server},
    audit::testing::Heard,
    identity::{CertificateAuthority, ClientAuth, ServerCredentials, issued_client_config, system_clock},
    link::streams::{
        ConnectStreams, Connection, NotConnected, Request as Wanted, ServeService, Side, connection::REQUESTS,
    },
    router::{Router, RouterConfig, outbound::MAX_ANSWER, outbound::Outbound, rest::MAX_MESSAGE},
    rule::crds,
    servicebus::{ServiceBus, ServiceBusConfig, allow::Allow},
    system::{
        Ports,
        testing::{Recorder, TestSystem},
    },
    web::{MAX_BODY, tokens::Tokens},
};
use kubeedge_proto::v1::{
    CallCloud, Envelope, KubeObject, ObjectKey, ObjectList, ObjectsChanged, ObjectsReloaded, QueryRules, ReadObjects,
    RecheckNodes, RouteCall, RouteEvent, SendEventToNode, SendToNode, ServiceCall, Settled, UserMessage, call_reply,
    envelope::Body,
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::mpsc,
};
use tokio_util::task::AbortOnDropHandle;

use crate::golden::client::Client;

mod node;
mod router;

const SOON: Duration = Duration::from_secs(30);
const TOKEN: &str = "0123456789abcdef";
/// What a node of these tests answers whoever asks whether there is one.
const PROBED: &str = "a node";

/// An HTTP or HTTPS server that answers what `answer` says and tells what it got.
async fn serve(
    tls: Option<Arc<rustls::ServerConfig>>,
    status: u16,
) -> (SocketAddr, mpsc::Receiver<(String, Bytes)>, AbortOnDropHandle<()>) {
    let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let (sender, seen) = mpsc::channel(100);
    let serving = tokio::task::spawn_local(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let sender = sender.clone();
            let service = service_fn(move |request: Request<Incoming>| {
                let sender = sender.clone();
                async move {
                    let key = request.headers().get("idempotency-key").map_or("", |key| key.to_str().unwrap());
                    let line = format!("{} {} {key}", request.method(), request.uri().path());
                    let body = request.into_body().collect().await.unwrap().to_bytes();
                    sender.send((line, body.clone())).await.unwrap();
                    let response = Response::builder().status(status).header("x-a", "b");
                    Ok::<_, std::convert::Infallible>(response.body(Full::new(body)).unwrap())
                }
            });
            let server = hyper::server::conn::http1::Builder::new();
            match tls.clone().map(tokio_rustls::TlsAcceptor::from) {
                None => drop(tokio::task::spawn_local(server.serve_connection(TokioIo::new(stream), service))),
                Some(tls) => drop(tokio::task::spawn_local(async move {
                    // A client that does not trust us does not come this far.
                    if let Ok(stream) = tls.accept(stream).await {
                        server.serve_connection(TokioIo::new(stream), service).await.unwrap();
                    }
                })),
            }
        }
    });
    (address, seen, AbortOnDropHandle::new(serving))
}

/// A body of a request.
type Sent = UnsyncBoxBody<Bytes, std::convert::Infallible>;

/// So many bytes in chunks, of a body that does not end then.
fn chunked(bytes: usize) -> Sent {
    const CHUNK: usize = 64 * 1024;
    let chunks = (0..bytes.div_ceil(CHUNK)).map(move |n| Bytes::from(vec![b'x'; CHUNK.min(bytes - n * CHUNK)]));
    let chunks = futures_util::stream::iter(chunks).chain(futures_util::stream::pending());
    StreamBody::new(chunks.map(|chunk| Ok(Frame::data(chunk)))).boxed_unsync()
}

/// The client's end of a connection.
struct Asker {
    address: SocketAddr,
    _sender: http1::SendRequest<Sent>,
    _connection: AbortOnDropHandle<hyper::Result<()>>,
}

/// A server whose answers do not end, and how many bytes of each it could write.
async fn endless() -> (SocketAddr, mpsc::Receiver<usize>, AbortOnDropHandle<()>) {
    let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let (sender, written) = mpsc::channel(100);
    let serving = tokio::task::spawn_local(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.unwrap());
            }
            let chunk = [&b"10000\r\n"[..], &[b'x'; 0x10000], b"\r\n"].concat();
            stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await.unwrap();
            let mut bytes = 0;
            while stream.write_all(&chunk).await.is_ok() {
                bytes += 0x10000;
            }
            sender.send(bytes).await.unwrap();
        }
    });
    (address, written, AbortOnDropHandle::new(serving))
}

/// What may be on its way between two sockets of one machine, and is no part of what was read.
const IN_SOCKETS: usize = 16 * 1024 * 1024;

/// Both ends of a connection for streams, in memory: the cloud's, and the requests at the node.
fn joined() -> (Connection, mpsc::Receiver<Wanted>, AbortOnDropHandle<()>) {
    let (cloud, edge) = (Connection::new(Side::Opener), Connection::new(Side::Acceptor));
    let (to_edge, from_cloud) = mpsc::channel(4);
    let (to_cloud, from_edge) = mpsc::channel(4);
    let ends = |frames| tokio_stream::wrappers::ReceiverStream::new(frames).map(Ok::<_, std::convert::Infallible>);
    let (requests, wanted) = mpsc::channel(REQUESTS);
    let (running, cloud_end, edge_end) = (cloud.clone(), ends(from_edge), ends(from_cloud));
    let both = tokio::task::spawn_local(async move {
        tokio::join!(running.run(to_edge, cloud_end, None), edge.run(to_cloud, edge_end, Some(requests)));
    });
    (cloud, wanted, AbortOnDropHandle::new(both))
}
