//! Streams over real sockets with mutual TLS: both ends of a connection, and what becomes of them when one goes.

use std::{sync::Arc, time::Duration, time::SystemTime};

use bytes::Bytes;
use kubeedge_actors::{
    identity::{CertificateAuthority, ClientAuth, issued_client_config, peer_node_name, server_config, system_clock},
    link::{
        client,
        server::{self, AcceptedStreams, Doors, Identify, Limits},
        streams::{Connection, Request, Side, StreamError, WINDOW, connection::REQUESTS},
    },
};
use kubeedge_proto::v1::{StreamHead, StreamOpen};
use tokio::{net::TcpListener, sync::mpsc, task::JoinHandle, time::timeout};

const LONG: Duration = Duration::from_secs(30);

/// The cloud's connection, the requests at the edge, and the tasks that run them.
pub(crate) struct Joined {
    pub(crate) cloud: Connection,
    pub(crate) requests: mpsc::Receiver<Request>,
    pub(crate) edge_task: JoinHandle<String>,
    pub(crate) cloud_task: JoinHandle<String>,
    pub(crate) server: tokio_util::task::AbortOnDropHandle<()>,
}

pub(crate) async fn join() -> Joined {
    let folder = tempfile::tempdir().unwrap();
    let now = SystemTime::now();
    let ca = CertificateAuthority::load_or_create(folder.path(), now).unwrap();
    let certificate = ca.issue_server(&["127.0.0.1".try_into().unwrap()], now).unwrap();
    let clients = ClientAuth::Required(ca.certificate().clone());
    let tls = server_config(certificate.chain(), certificate.key(), clients, &[], system_clock()).unwrap();
    let node = ca.issue_client("system:node:edge-1", "system:nodes", now).unwrap();
    let node = issued_client_config(ca.certificate().clone(), &node, system_clock()).unwrap();

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let identify: Identify = Arc::new(|chain| peer_node_name(chain).map_err(|error| error.to_string()));
    let (sessions, _) = mpsc::channel(1);
    let (streams, mut accepted) = mpsc::channel(1);
    let doors = Doors { sessions, streams: Some(streams) };
    let serve = server::serve_link(listener, Arc::new(tls), identify, doors, Limits::default());
    let server = tokio_util::task::AbortOnDropHandle::new(tokio::spawn(serve));

    let (requested, requests) = mpsc::channel(REQUESTS);
    let edge_task = tokio::spawn(async move {
        let mut transport = client::open_streams(&address, &node).await.unwrap();
        let edge = Connection::new(Side::Acceptor);
        edge.run(transport.outgoing.clone(), &mut transport.incoming, Some(requested)).await
    });
    let AcceptedStreams { node, outgoing, incoming, open } = timeout(LONG, accepted.recv()).await.unwrap().unwrap();
    assert_eq!(node.as_str(), "edge-1");
    let cloud = Connection::new(Side::Opener);
    let running = cloud.clone();
    let cloud_task = tokio::spawn(async move {
        let why = running.run(outgoing, incoming, None).await;
        drop(open);
        why
    });
    Joined { cloud, requests, edge_task, cloud_task, server }
}

fn get(path: &str) -> StreamOpen {
    StreamOpen { method: "GET".into(), path_and_query: path.into(), ..StreamOpen::default() }
}

fn ok() -> StreamHead {
    StreamHead { status: 200, ..StreamHead::default() }
}

#[tokio::test]
async fn megabytes_arrive_whole_beside_a_stream_that_nobody_reads() {
    let mut joined = join().await;
    let mut unread = joined.cloud.open(get("/unread")).unwrap();
    let mut read = joined.cloud.open(get("/read")).unwrap();
    unread.finish();
    read.finish();
    let total = 64 * WINDOW;
    let mut writers = Vec::new();
    for _ in 0..2 {
        let Request { open, mut stream } = timeout(LONG, joined.requests.recv()).await.unwrap().unwrap();
        assert!(["/unread", "/read"].contains(&open.path_and_query.as_str()));
        writers.push(tokio::spawn(async move {
            stream.respond(ok());
            for block in 0..64u8 {
                stream.write(Bytes::from(vec![block; WINDOW])).await?;
            }
            stream.finish();
            Ok::<_, StreamError>(())
        }));
    }
    let head = timeout(LONG, read.head()).await.unwrap().unwrap();
    assert_eq!(head.status, 200);
    let mut seen = 0;
    while let Some(bytes) = timeout(LONG, read.read()).await.unwrap().unwrap() {
        for (at, byte) in bytes.iter().enumerate() {
            assert_eq!(usize::from(*byte), (seen + at) / WINDOW);
        }
        seen += bytes.len();
    }
    assert_eq!(seen, total);
    // The other writer still waits for a reader; when that one goes, it is told.
    drop(unread);
    let mut failed = 0;
    for writer in writers {
        failed += usize::from(timeout(LONG, writer).await.unwrap().unwrap().is_err());
    }
    assert_eq!(failed, 1);
}

#[tokio::test]
async fn a_client_that_goes_ends_a_quiet_stream_at_the_edge() {
    let mut joined = join().await;
    let mut reader = joined.cloud.open(get("/quiet")).unwrap();
    reader.finish();
    let Request { mut stream, .. } = timeout(LONG, joined.requests.recv()).await.unwrap().unwrap();
    stream.respond(ok());
    timeout(LONG, reader.head()).await.unwrap().unwrap();
    drop(reader);
    let error = timeout(LONG, stream.given_up()).await.unwrap();
    assert!(matches!(&error, StreamError::Aborted(why) if why.contains("nobody wants it")), "{error}");
    drop(stream);
    assert_eq!(joined.cloud.streams(), 0);
}

#[tokio::test]
async fn a_connection_that_breaks_ends_its_streams_at_both_ends() {
    let mut joined = join().await;
    let mut reader = joined.cloud.open(get("/cut")).unwrap();
    let Request { mut stream, .. } = timeout(LONG, joined.requests.recv()).await.unwrap().unwrap();
    stream.respond(ok());
    timeout(LONG, reader.head()).await.unwrap().unwrap();
    joined.edge_task.abort();
    let error = timeout(LONG, reader.read()).await.unwrap().unwrap_err();
    assert!(matches!(error, StreamError::Disconnected(_)), "{error}");
    assert!(matches!(timeout(LONG, stream.given_up()).await.unwrap(), StreamError::Disconnected(_)));
    assert!(joined.cloud.is_closed() && joined.cloud.open(get("/late")).is_err());
    timeout(LONG, joined.cloud_task).await.unwrap().unwrap();
}
