//! What a listener takes at a time and how long it waits, at its own sockets. Where a limit is a time, tokio's clock
//! stands still: it jumps to the next timer when nothing else is to be done, and no other timer is running.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use kubeedge_actors::{
    audit::testing::Heard,
    link::{
        client,
        server::{self, Accepted, Limits},
    },
};
use kubeedge_proto::v1::{GoodbyeReason, frame};
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    time::{Instant, timeout},
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_util::task::AbortOnDropHandle;

use super::{Handler, LONG, bench::Ca, bench::by_common_name};

/// A link's listener with these limits, and who is let in there.
async fn link(ca: &Ca, limits: Limits) -> (SocketAddr, mpsc::Receiver<Accepted>, AbortOnDropHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (accept, accepted) = mpsc::channel(1);
    let serve = server::serve_link(listener, ca.server(true), by_common_name(), accept, limits);
    (address, accepted, AbortOnDropHandle::new(tokio::spawn(serve)))
}

async fn shake_hands(address: SocketAddr, mut config: ClientConfig) -> TlsStream<TcpStream> {
    config.alpn_protocols = vec![b"h2".to_vec()];
    let socket = TcpStream::connect(address).await.unwrap();
    TlsConnector::from(Arc::new(config)).connect(ServerName::from(address.ip()), socket).await.unwrap()
}

/// A line of the audit log about this client.
fn line(heard: &Heard, client: SocketAddr) -> String {
    let lines = heard.after(0, &format!("who={client} "));
    assert_eq!(lines.len(), 1, "of {client}: {lines:?}");
    lines[0].clone()
}

#[tokio::test]
async fn beyond_so_many_connections_one_more_is_closed_and_audited_until_one_ends() {
    let ca = Ca::new();
    let heard = Heard::default();
    let _here = heard.here();
    let (address, mut accepted, _serving) = link(&ca, Limits { connections: 1, ..Limits::default() }).await;
    let first = client::connect(&address.to_string(), None, &ca.node("edge-1")).await.unwrap();
    let standing = timeout(LONG, accepted.recv()).await.unwrap().unwrap();
    let mut second = TcpStream::connect(address).await.unwrap();
    // An end or a break: nothing is said to it.
    let read = timeout(LONG, second.read(&mut [0; 1])).await.expect("it is closed at once");
    assert!(!matches!(read, Ok(1..)), "{read:?}");
    let line = line(&heard, second.local_addr().unwrap());
    assert!(line.contains("connection to the link refused: there are 1 connections"), "{line}");
    drop((first, standing));
    let again = async { while client::connect(&address.to_string(), None, &ca.node("edge-2")).await.is_err() {} };
    timeout(LONG, again).await.expect("there is room again");
}

#[tokio::test(start_paused = true)]
async fn beyond_so_many_handshakes_one_more_waits_for_its_turn_which_comes_after_ten_seconds_at_most() {
    let ca = Ca::new();
    let heard = Heard::default();
    let _here = heard.here();
    let (address, _accepted, _serving) = link(&ca, Limits { handshakes: 1, ..Limits::default() }).await;
    let mut slow = TcpStream::connect(address).await.unwrap();
    // It begins a record of TLS and leaves it at that.
    slow.write_all(&[0x16]).await.unwrap();
    let begun = Instant::now();
    let waiting = tokio::spawn(shake_hands(address, ca.node("edge-1")));
    assert!(!matches!(slow.read(&mut [0; 1]).await, Ok(1..)), "nothing is said to it");
    assert_eq!(begun.elapsed().as_secs(), 10);
    assert!(!waiting.is_finished(), "two handshakes were under way");
    let line = line(&heard, slow.local_addr().unwrap());
    assert!(line.contains("connection to the link refused: no TLS handshake within 10s"), "{line}");
    // The clock runs again: the other one has ten seconds of its own.
    tokio::time::resume();
    timeout(LONG, waiting).await.expect("its turn").unwrap();
}

#[tokio::test]
async fn who_says_nothing_takes_nobodys_turn() {
    let ca = Ca::new();
    let heard = Heard::default();
    let _here = heard.here();
    let (address, mut accepted, _serving) = link(&ca, Limits { handshakes: 1, ..Limits::default() }).await;
    let mut silent = TcpStream::connect(address).await.unwrap();
    let _first = client::connect(&address.to_string(), None, &ca.node("edge-1")).await.unwrap();
    timeout(LONG, accepted.recv()).await.unwrap().unwrap();
    tokio::time::pause();
    assert!(!matches!(silent.read(&mut [0; 1]).await, Ok(1..)), "nothing is said to it");
    let line = line(&heard, silent.local_addr().unwrap());
    assert!(line.contains("connection to the link refused: no TLS handshake within 10s"), "{line}");
}

/// Reads until the other end has closed; how long that took.
async fn closed(mut stream: TlsStream<TcpStream>) -> Duration {
    // The first bytes of HTTP/2: the handshake is behind both ends, and the limit's timer runs.
    stream.read_exact(&mut [0; 9]).await.unwrap();
    tokio::time::pause();
    let begun = Instant::now();
    let mut rest = Vec::new();
    // An end in order or not.
    let _ = stream.read_to_end(&mut rest).await;
    begun.elapsed()
}

#[tokio::test]
async fn a_node_that_opens_no_session_is_closed_after_ten_seconds() {
    let ca = Ca::new();
    let heard = Heard::default();
    let _here = heard.here();
    let (address, mut accepted, _serving) = link(&ca, Limits::default()).await;
    let idle = shake_hands(address, ca.node("edge-1")).await;
    let client = idle.get_ref().0.local_addr().unwrap();
    let took = closed(idle).await;
    // The clock stood still from some time within the ten seconds on; a connection that is given up may linger.
    assert!(took > Duration::from_secs(5) && took < Duration::from_secs(16), "{took:?}");
    let line = line(&heard, client);
    assert!(line.contains("connection to the link refused: no session within 10s"), "{line}");
    assert!(accepted.try_recv().is_err());
}

#[tokio::test]
async fn an_enrolment_that_says_nothing_is_closed_after_thirty_seconds() {
    let ca = Ca::new();
    let heard = Heard::default();
    let _here = heard.here();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let serve = server::serve_enrolment(listener, ca.server(false), Arc::new(Handler), Limits::default());
    let _serving = AbortOnDropHandle::new(tokio::spawn(serve));
    let idle = shake_hands(address, ca.client(None)).await;
    let client = idle.get_ref().0.local_addr().unwrap();
    let took = closed(idle).await;
    assert!(took > Duration::from_secs(25) && took < Duration::from_secs(31), "{took:?}");
    let line = line(&heard, client);
    assert!(line.contains("connection to enrolment refused: an enrolment has 30s"), "{line}");
}

#[tokio::test]
async fn every_connection_beyond_an_addresss_rate_is_refused_and_has_a_line() {
    let ca = Ca::new();
    let heard = Heard::default();
    let _here = heard.here();
    let limits = Limits { per_address: kubeedge_actors::link::Rate { burst: 1, per_second: 0.0 }, ..Limits::default() };
    let (address, _accepted, _serving) = link(&ca, limits).await;
    let _first = shake_hands(address, ca.node("edge-1")).await;
    for _ in 0..3 {
        let mut more = TcpStream::connect(address).await.unwrap();
        let read = timeout(LONG, more.read(&mut [0; 1])).await.expect("it is closed at once");
        assert!(!matches!(read, Ok(1..)), "{read:?}");
        let line = line(&heard, more.local_addr().unwrap());
        assert!(line.contains("more than 1 connections of one address at once"), "{line}");
    }
}

#[tokio::test]
async fn a_node_that_comes_when_too_many_wait_is_asked_to_come_back_and_has_a_line() {
    let ca = Ca::new();
    let heard = Heard::default();
    let _here = heard.here();
    let (address, mut accepted, _serving) = link(&ca, Limits::default()).await;
    let connect = async |node: &str| client::connect(&address.to_string(), None, &ca.node(node)).await.unwrap();
    let _waits = connect("edge-1").await;
    let (_sink, mut stream) = connect("edge-2").await;
    let frame = timeout(LONG, stream.next()).await.unwrap().unwrap().unwrap();
    let Some(frame::Frame::Goodbye(goodbye)) = frame.frame else { panic!("{frame:?}") };
    assert!(goodbye.reason() == GoodbyeReason::Busy && goodbye.retry_after_ms > 0, "{goodbye:?}");
    let lines = heard.take();
    let told = "session refused: too many nodes connect at once";
    assert!(lines.len() == 1 && lines[0].contains(told) && lines[0].contains("who=edge-2"), "{lines:?}");
    assert_eq!(accepted.recv().await.unwrap().node.as_str(), "edge-1");
}
