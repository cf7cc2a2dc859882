//! The link over real sockets on loopback: mutual TLS, two drivers, a line that can be slow and be cut.

mod bench;
mod limits;

use std::{
    collections::HashMap,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use kubeedge_actors::link::{
    Class, Closed, Config, Input, Session,
    client::{self, ConnectError},
    server::{self, Limits},
    transport::memory_pair,
};
use kubeedge_proto::v1::{
    CallReply, EnrolRequest, EnrolResponse, Envelope, GoodbyeReason, ObjectQuery, RegisterNode,
    enrolment_server::Enrolment, envelope::Body,
};
use rcgen::ExtendedKeyUsagePurpose;
use tokio::{net::TcpListener, time::timeout};

use self::bench::{Ca, Cloud, End, LONG, Proxy, Seen, edge, hello, status, upsert};

#[tokio::test]
async fn ten_thousand_state_messages_and_a_call_go_each_way() {
    const MESSAGES: usize = 10_000;
    let ca = Ca::new();
    let mut cloud = Cloud::start(&ca).await;
    let mut edge = edge(cloud.address, &ca, 1, Config::default()).await;
    let mut cloud = cloud.next(Config::default(), true).await;
    edge.established().await;
    cloud.established().await;

    let (up, down) = (edge.commands.clone(), cloud.commands.clone());
    let feeders = tokio::spawn(async move {
        for n in 0..MESSAGES {
            up.send(Input::Submit(Box::new(status(format!("p{n}"), 500)))).await.unwrap();
            down.send(Input::Submit(Box::new(upsert(format!("p{n}"))))).await.unwrap();
        }
        let call = Envelope::new("test", 0, Body::RegisterNode(RegisterNode::default()));
        up.send(Input::Submit(Box::new(call))).await.unwrap();
        let call = Envelope::new("test", 0, Body::ObjectQuery(ObjectQuery::default()));
        down.send(Input::Submit(Box::new(call))).await.unwrap();
    });
    for end in [&mut edge, &mut cloud] {
        let mut settled = 0;
        let mut delivered = HashMap::new();
        let mut replies = 0;
        while settled < MESSAGES || delivered.len() < MESSAGES || replies < 1 {
            match end.next().await {
                Seen::Settled => settled += 1,
                Seen::Delivered(Class::State, envelope) => {
                    *delivered.entry(envelope.id).or_insert(0) += 1;
                }
                Seen::Replied(reply) => {
                    assert_eq!(reply, CallReply::error(404, "NotFound", "as asked"));
                    replies += 1;
                }
                Seen::Closed(closed) => panic!("{closed}"),
                _ => {}
            }
        }
        assert_eq!((settled, replies), (MESSAGES, 1));
        assert!(delivered.values().all(|times| *times == 1));
    }
    feeders.await.unwrap();
}

#[tokio::test]
async fn what_a_cut_leaves_unsettled_goes_again_in_the_next_session() {
    let ca = Ca::new();
    let mut cloud = Cloud::start(&ca).await;
    let proxy = Proxy::start(cloud.address, None).await;
    let mut first_edge = edge(proxy.address, &ca, 1, Config::default()).await;
    let mut first_cloud = cloud.next(Config::default(), false).await;
    first_edge.established().await;
    for n in 0..300 {
        first_edge.submit(status(format!("p{n}"), 10)).await;
    }
    first_cloud.until(|seen| matches!(seen, Seen::Delivered(..)).then_some(())).await;
    proxy.cut();
    assert!(matches!(first_edge.closed().await, Closed::Transport(_)));
    assert!(matches!(first_cloud.closed().await, Closed::Transport(_)));
    let remains = timeout(LONG, first_edge.ended).await.unwrap().unwrap().remains.state;
    assert_eq!(remains.len(), 300, "nothing was settled, so nothing may be forgotten");

    let second_edge = edge(proxy.address, &ca, 2, Config::default()).await;
    let mut second_cloud = cloud.next(Config::default(), true).await;
    for envelope in remains {
        second_edge.submit(envelope).await;
    }
    for n in 0..300 {
        let name = second_cloud
            .until(|seen| match seen {
                Seen::Delivered(_, envelope) => envelope.body.as_ref()?.state_key().map(|key| key.key.name),
                _ => None,
            })
            .await;
        assert_eq!(name, format!("p{n}"));
    }
}

#[tokio::test]
async fn heartbeats_and_calls_pass_a_megabyte_on_a_slow_line() {
    let ca = Ca::new();
    let mut cloud = Cloud::start(&ca).await;
    let proxy = Proxy::start(cloud.address, Some(500_000)).await;
    let config = Config { heartbeat_interval: Duration::from_millis(100), ..Config::default() };
    let edge = edge(proxy.address, &ca, 1, config.clone()).await;
    let mut cloud = cloud.next(config, true).await;
    cloud.established().await;
    edge.submit(status("big".into(), 1 << 20)).await;
    let mut heartbeats = 0;
    let mut calls = 0;
    let mut last = Instant::now();
    let mut silence = Duration::ZERO;
    loop {
        match cloud.next().await {
            Seen::Delivered(Class::State, envelope) => {
                let Some(Body::StatusUpdate(update)) = envelope.body else { panic!("{envelope:?}") };
                assert_eq!(update.status_json.len(), 1 << 20);
                break;
            }
            Seen::Heartbeat => {
                heartbeats += 1;
                silence = silence.max(last.elapsed());
                last = Instant::now();
                if heartbeats <= 3 {
                    edge.submit(Envelope::new("test", 0, Body::RegisterNode(RegisterNode::default()))).await;
                }
            }
            Seen::Delivered(Class::Call, _) => calls += 1,
            Seen::Closed(closed) => panic!("{closed}"),
            _ => {}
        }
    }
    println!("{heartbeats} heartbeats overtook 1 MiB at 500 kB/s; the longest silence was {silence:?}");
    assert!(heartbeats >= 4, "{heartbeats} heartbeats in two seconds");
    assert!(silence < Duration::from_secs(1), "{silence:?} without a heartbeat");
    assert_eq!(calls, 3, "calls overtake the big object");
}

#[tokio::test]
async fn half_open_link_is_found_at_both_ends() {
    let ca = Ca::new();
    let mut cloud = Cloud::start(&ca).await;
    let proxy = Proxy::start(cloud.address, None).await;
    let config = Config {
        heartbeat_interval: Duration::from_millis(100),
        dead_after: Duration::from_millis(500),
        ..Config::default()
    };
    let mut edge = edge(proxy.address, &ca, 1, config.clone()).await;
    let mut cloud = cloud.next(config, true).await;
    edge.established().await;
    cloud.until(|seen| matches!(seen, Seen::Heartbeat).then_some(())).await;
    proxy.swallows.store(true, Ordering::Relaxed);
    for end in [&mut edge, &mut cloud] {
        let closed = end.closed().await;
        assert!(matches!(&closed, Closed::ByUs(bye) if bye.reason() == GoodbyeReason::TimedOut), "{closed}");
    }
}

/// 3 MB a day, with headers: one exchange of heartbeats every 10 s, each in a packet of its own, and one bare
/// acknowledgement, with 66 bytes of Ethernet, IP and TCP each.
#[tokio::test]
async fn idle_link_stays_within_its_budget() {
    const EXCHANGES: usize = 20;
    let ca = Ca::new();
    let mut cloud = Cloud::start(&ca).await;
    let proxy = Proxy::start(cloud.address, None).await;
    let config = Config { heartbeat_interval: Duration::from_millis(100), ..Config::default() };
    let mut edge = edge(proxy.address, &ca, 1, config.clone()).await;
    let mut cloud = cloud.next(config, true).await;
    edge.established().await;
    let heartbeat = |seen: &Seen| matches!(seen, Seen::Heartbeat).then_some(());
    cloud.until(heartbeat).await;
    let before = proxy.bytes.load(Ordering::Relaxed);
    for _ in 0..EXCHANGES {
        cloud.until(heartbeat).await;
    }
    let exchange = (proxy.bytes.load(Ordering::Relaxed) - before) / EXCHANGES;
    let a_day = (exchange + 3 * 66) * 24 * 360;
    assert!(a_day < 3_000_000, "{exchange} bytes an exchange, {a_day} a day");
}

#[tokio::test]
async fn strangers_are_refused() {
    let ca = Ca::new();
    let other = Ca::new();
    let mut cloud = Cloud::start(&ca).await;
    let address = cloud.address.to_string();

    let error = client::connect(&address, None, &other.node("edge-1")).await.unwrap_err();
    assert!(matches!(error, ConnectError::Tls { .. }), "the edge does not trust this cloud: {error}");
    assert!(error.to_string().contains(&address), "{error}");

    let foreign = other.issue("system:node:edge-1", &[], ExtendedKeyUsagePurpose::ClientAuth);
    let nameless = ca.issue("edge-1", &[], ExtendedKeyUsagePurpose::ClientAuth);
    let cases = [("no certificate", None), ("another CA", Some(foreign)), ("not a node", Some(nameless))];
    for (what, leaf) in cases {
        let result = client::connect(&address, None, &ca.client(leaf)).await;
        assert!(result.is_err(), "{what} must be refused");
    }
    assert!(cloud.accepted.try_recv().is_err(), "no stranger reaches the hub");
    let refused = client::connect("127.0.0.1:1", None, &ca.node("edge-1")).await.unwrap_err();
    assert!(matches!(refused, ConnectError::Dial { .. }), "{refused}");
    assert!(matches!(client::connect("no port", None, &ca.node("e")).await, Err(ConnectError::Name { .. })));
}

#[tokio::test]
async fn goodbye_reaches_the_edge_with_its_reason() {
    let ca = Ca::new();
    let mut cloud = Cloud::start(&ca).await;
    let mut edge = edge(cloud.address, &ca, 1, Config::default()).await;
    let mut cloud = cloud.next(Config::default(), true).await;
    edge.established().await;
    cloud.established().await;
    let replaced = kubeedge_actors::link::registry::replaced();
    cloud.commands.send(Input::Close(replaced.clone())).await.unwrap();
    assert_eq!(edge.closed().await, Closed::ByPeer(replaced));
    timeout(LONG, cloud.ended).await.unwrap().unwrap();
}

#[tokio::test]
async fn hub_that_does_not_take_a_node_asks_it_to_come_back() {
    let ca = Ca::new();
    let mut cloud = Cloud::start(&ca).await;
    cloud.accepted.close();
    let mut edge = edge(cloud.address, &ca, 1, Config::default()).await;
    let closed = edge.closed().await;
    assert!(
        matches!(&closed, Closed::ByPeer(bye) if bye.retry_after_ms > 0 && bye.reason() == GoodbyeReason::ShuttingDown),
        "{closed}"
    );
}

#[tokio::test]
async fn owner_that_goes_away_ends_its_session_in_order() {
    let ((a_sink, a_stream), (b_sink, b_stream)) = memory_pair();
    let mut edge = End::run(Session::edge(hello(1), Config::default()), a_sink, a_stream, true);
    let cloud = End::run(Session::cloud(Config::default()), b_sink, b_stream, true);
    edge.established().await;
    cloud.owner.abort();
    let closed = edge.closed().await;
    assert!(matches!(&closed, Closed::ByPeer(bye) if bye.reason() == GoodbyeReason::ShuttingDown), "{closed}");
}

struct Handler;

#[tonic::async_trait]
impl Enrolment for Handler {
    async fn renew(
        &self,
        _: tonic::Request<kubeedge_proto::v1::RenewRequest>,
    ) -> Result<tonic::Response<EnrolResponse>, tonic::Status> {
        Err(tonic::Status::unimplemented("not asked here"))
    }

    async fn enrol(
        &self,
        request: tonic::Request<EnrolRequest>,
    ) -> Result<tonic::Response<EnrolResponse>, tonic::Status> {
        match request.into_inner().token.as_str() {
            "id.secret" => Ok(tonic::Response::new(EnrolResponse {
                certificate_chain_pem: "PEM".into(),
                link_address: "cloud:10000".into(),
            })),
            _ => Err(tonic::Status::permission_denied("no such token")),
        }
    }
}

#[tokio::test]
async fn enrolment_needs_no_client_certificate_and_hands_on_the_answer() {
    let ca = Ca::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let task = tokio::spawn(server::serve_enrolment(listener, ca.server(false), Arc::new(Handler), Limits::default()));
    let ask = |token: &str| EnrolRequest { token: token.into(), csr_der: vec![0; 10].into() };
    let answer = client::enrol(&address, None, &ca.client(None), ask("id.secret")).await.unwrap();
    assert_eq!(answer.link_address, "cloud:10000");
    let error = client::enrol(&address, None, &ca.client(None), ask("id.guess")).await.unwrap_err();
    assert!(error.to_string().contains("no such token"), "{error}");
    task.abort();
}
