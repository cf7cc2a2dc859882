//! The link over real sockets on loopback: mutual TLS, two drivers, a proxy that can be slow and be cut.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use kubeedge_actors::link::{
    Class, Closed, Config, FrameSink, FrameStream, Input, Output, Session,
    client::{self, ConnectError},
    driver::{self, Ended},
    server::{self, Accepted, Identify, Limits},
    transport::memory_pair,
};
use kubeedge_proto::{
    NodeName, resource,
    v1::{
        CallReply, DesiredState, EnrolRequest, EnrolResponse, Envelope, GoodbyeReason, Hello, KubeObject, ObjectKey,
        ObjectQuery, ObjectUpsert, RegisterNode, Settled, StatusUpdate, enrolment_server::Enrolment, envelope::Body,
    },
};
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer},
    server::WebPkiClientVerifier,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpSocket, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::mpsc,
    task::{AbortHandle, JoinHandle},
    time::timeout,
};

const LONG: Duration = Duration::from_secs(60);

// ---- certificates --------------------------------------------------------------------------------------------------

struct Ca {
    issuer: Issuer<'static, KeyPair>,
    der: CertificateDer<'static>,
}

impl Ca {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "test CA");
        let der = params.self_signed(&key).unwrap().der().clone();
        Self { issuer: Issuer::new(params, key), der }
    }

    fn issue(&self, common_name: &str, names: &[&str], usage: ExtendedKeyUsagePurpose) -> Leaf {
        let key = KeyPair::generate().unwrap();
        let mut params =
            CertificateParams::new(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>()).unwrap();
        params.distinguished_name.push(DnType::CommonName, common_name);
        params.extended_key_usages = vec![usage];
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        Leaf { chain: vec![certificate.der().clone()], key: PrivateKeyDer::Pkcs8(key.serialize_der().into()) }
    }

    fn roots(&self) -> Arc<RootCertStore> {
        let mut roots = RootCertStore::empty();
        roots.add(self.der.clone()).unwrap();
        Arc::new(roots)
    }

    fn server(&self, asks_for_clients: bool) -> Arc<ServerConfig> {
        let provider = Arc::new(ring::default_provider());
        let leaf = self.issue("cloud", &["127.0.0.1"], ExtendedKeyUsagePurpose::ServerAuth);
        let builder =
            ServerConfig::builder_with_provider(provider.clone()).with_protocol_versions(&[&rustls::version::TLS13]);
        let builder = builder.unwrap();
        let builder = if asks_for_clients {
            let verifier = WebPkiClientVerifier::builder_with_provider(self.roots(), provider).build().unwrap();
            builder.with_client_cert_verifier(verifier)
        } else {
            builder.with_no_client_auth()
        };
        Arc::new(builder.with_single_cert(leaf.chain, leaf.key).unwrap())
    }

    fn client(&self, leaf: Option<Leaf>) -> ClientConfig {
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(self.roots());
        match leaf {
            Some(leaf) => builder.with_client_auth_cert(leaf.chain, leaf.key).unwrap(),
            None => builder.with_no_client_auth(),
        }
    }

    fn node(&self, name: &str) -> ClientConfig {
        self.client(Some(self.issue(&format!("system:node:{name}"), &[], ExtendedKeyUsagePurpose::ClientAuth)))
    }
}

struct Leaf {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

fn by_common_name() -> Identify {
    Arc::new(|chain| {
        let leaf = chain.first().ok_or("empty chain")?;
        let (_, certificate) = x509_parser::parse_x509_certificate(leaf).map_err(|error| error.to_string())?;
        let subject = certificate.subject();
        let name = subject.iter_common_name().next().and_then(|name| name.as_str().ok()).ok_or("no common name")?;
        NodeName::from_common_name(name).map_err(|error| error.to_string())
    })
}

// ---- owners --------------------------------------------------------------------------------------------------------

/// Something that a test waits for.
#[derive(Debug)]
enum Seen {
    Established,
    Delivered(Class, Box<Envelope>),
    Settled,
    Replied(CallReply),
    Heartbeat,
    Closed(Closed),
}

/// A session with an owner that settles and answers everything, unless it holds State back.
struct End {
    commands: mpsc::Sender<Input>,
    seen: mpsc::Receiver<Seen>,
    ended: JoinHandle<Ended>,
    owner: AbortHandle,
}

impl End {
    fn run(session: Session, sink: FrameSink, stream: FrameStream, settles: bool) -> Self {
        let (commands, inputs) = mpsc::channel(driver::COMMANDS);
        let (outputs, mut events) = mpsc::channel(driver::EVENTS);
        let (see, seen) = mpsc::channel(100_000);
        let ended = tokio::spawn(driver::run(session, sink, stream, inputs, outputs));
        let own = commands.clone();
        let owner = tokio::spawn(async move {
            while let Some(event) = events.recv().await {
                let answer = match &event {
                    Output::HelloReceived(hello) => {
                        let epoch = hello.last_epoch + 1;
                        Some(Input::Admit { epoch, cluster_uid: "c".into(), resource_version: 1 })
                    }
                    Output::NeedDesired => Some(Input::DesiredKnown(DesiredState::default())),
                    Output::Deliver { class: Class::Call, seq, .. } => {
                        Some(Input::Reply { seq: *seq, reply: CallReply::error(404, "NotFound", "as asked") })
                    }
                    Output::Deliver { class, seq, .. } if settles => {
                        Some(Input::Settle { class: *class, seq: *seq, settled: Settled::applied() })
                    }
                    _ => None,
                };
                if let Some(answer) = answer {
                    own.send(answer).await.ok();
                }
                let sight = match event {
                    Output::Established(_) => Seen::Established,
                    Output::Deliver { class, envelope, .. } => Seen::Delivered(class, Box::new(envelope)),
                    Output::Settled { .. } => Seen::Settled,
                    Output::Reply { reply, .. } => Seen::Replied(reply),
                    Output::Heartbeat { .. } => Seen::Heartbeat,
                    Output::Closed(closed) => Seen::Closed(closed),
                    _ => continue,
                };
                see.send(sight).await.ok();
            }
        });
        Self { commands, seen, ended, owner: owner.abort_handle() }
    }

    async fn next(&mut self) -> Seen {
        timeout(LONG, self.seen.recv()).await.expect("something should have happened").expect("the session is over")
    }

    async fn until<T>(&mut self, mut wanted: impl FnMut(&Seen) -> Option<T>) -> T {
        loop {
            let seen = self.next().await;
            if let Some(found) = wanted(&seen) {
                return found;
            }
        }
    }

    async fn established(&mut self) {
        self.until(|seen| matches!(seen, Seen::Established).then_some(())).await;
    }

    async fn closed(&mut self) -> Closed {
        self.until(|seen| if let Seen::Closed(closed) = seen { Some(closed.clone()) } else { None }).await
    }

    async fn submit(&self, envelope: Envelope) {
        self.commands.send(Input::Submit(envelope)).await.unwrap();
    }
}

/// A cloud on loopback that takes any node.
struct Cloud {
    address: SocketAddr,
    accepted: mpsc::Receiver<Accepted>,
    task: JoinHandle<()>,
}

impl Drop for Cloud {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Cloud {
    async fn start(ca: &Ca) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (accept, accepted) = mpsc::channel(16);
        let task =
            tokio::spawn(server::serve_link(listener, ca.server(true), by_common_name(), accept, Limits::default()));
        Self { address, accepted, task }
    }

    async fn next(&mut self, config: Config, settles: bool) -> End {
        let accepted = timeout(LONG, self.accepted.recv()).await.unwrap().unwrap();
        assert_eq!(accepted.node.as_str(), "edge-1");
        End::run(Session::cloud(config), accepted.sink, accepted.stream, settles)
    }
}

fn hello(connection: u64) -> Hello {
    Hello { instance_id: vec![1; 16].into(), connection, last_epoch: connection - 1, ..Default::default() }
}

async fn edge(address: SocketAddr, ca: &Ca, connection: u64, config: Config) -> End {
    let (sink, stream) = client::connect(&address.to_string(), None, &ca.node("edge-1")).await.unwrap();
    End::run(Session::edge(hello(connection), config.stamped()), sink, stream, true)
}

fn status(name: String, bytes: usize) -> Envelope {
    let update = StatusUpdate {
        r#type: Some(resource::pods()),
        key: Some(ObjectKey::new("ns", name)),
        uid: "u".into(),
        generation: 1,
        status_json: vec![b'x'; bytes].into(),
    };
    Envelope::new("test", 0, Body::StatusUpdate(update))
}

fn upsert(name: String) -> Envelope {
    let object = KubeObject {
        r#type: Some(resource::pods()),
        key: Some(ObjectKey::new("ns", name)),
        uid: "u".into(),
        json: vec![b'x'; 500].into(),
        ..Default::default()
    };
    Envelope::new("test", 0, Body::ObjectUpsert(ObjectUpsert { object: Some(object), needs: vec![] }))
}

// ---- a network that fails ------------------------------------------------------------------------------------------

/// Relays one connection at a time; slow when told, cut when told.
struct Proxy {
    address: SocketAddr,
    /// Relayed both ways, in bytes.
    bytes: Arc<AtomicUsize>,
    /// While set, what comes is swallowed.
    swallows: Arc<AtomicBool>,
    relays: Arc<Mutex<Vec<AbortHandle>>>,
    task: JoinHandle<()>,
}

impl Proxy {
    /// `rate` in bytes a second each way.
    async fn start(to: SocketAddr, rate: Option<usize>) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        if rate.is_some() {
            // A fast sender must not be able to fill the path with megabytes.
            socket.set_recv_buffer_size(16 * 1024).unwrap();
        }
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener = socket.listen(16).unwrap();
        let address = listener.local_addr().unwrap();
        let relays = Arc::new(Mutex::new(Vec::new()));
        let handles = Arc::clone(&relays);
        let bytes = Arc::new(AtomicUsize::new(0));
        let swallows = Arc::new(AtomicBool::new(false));
        let line = Line { rate, bytes: Arc::clone(&bytes), swallows: Arc::clone(&swallows) };
        let task = tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let far = TcpStream::connect(to).await.unwrap();
                let line = line.clone();
                let relay = tokio::spawn(async move {
                    let (near_in, near_out) = near.into_split();
                    let (far_in, far_out) = far.into_split();
                    tokio::join!(relay(near_in, far_out, &line), relay(far_in, near_out, &line));
                });
                handles.lock().unwrap().push(relay.abort_handle());
            }
        });
        Self { address, bytes, swallows, relays, task }
    }

    fn cut(&self) {
        for relay in self.relays.lock().unwrap().drain(..) {
            relay.abort();
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.cut();
        self.task.abort();
    }
}

#[derive(Clone)]
struct Line {
    rate: Option<usize>,
    bytes: Arc<AtomicUsize>,
    swallows: Arc<AtomicBool>,
}

async fn relay(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, line: &Line) {
    let mut buffer = vec![0; 4096];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        line.bytes.fetch_add(read, Ordering::Relaxed);
        if line.swallows.load(Ordering::Relaxed) {
            continue;
        }
        if let Some(rate) = line.rate {
            // The line's speed is what is simulated here.
            tokio::time::sleep(Duration::from_secs_f64(read as f64 / rate as f64)).await;
        }
        if to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}

// ---- tests ---------------------------------------------------------------------------------------------------------

#[tokio::test]
async fn ten_thousand_state_messages_and_a_call_go_each_way() {
    const MESSAGES: usize = 10_000;
    let ca = Ca::new();
    let mut cloud = Cloud::start(&ca).await;
    let mut edge = edge(cloud.address, &ca, 1, Config::default()).await;
    let mut cloud = cloud.next(Config::default().stamped(), true).await;
    edge.established().await;
    cloud.established().await;

    let (up, down) = (edge.commands.clone(), cloud.commands.clone());
    let feeders = tokio::spawn(async move {
        for n in 0..MESSAGES {
            up.send(Input::Submit(status(format!("p{n}"), 500))).await.unwrap();
            down.send(Input::Submit(upsert(format!("p{n}")))).await.unwrap();
        }
        let call = Envelope::new("test", 0, Body::RegisterNode(RegisterNode::default()));
        up.send(Input::Submit(call)).await.unwrap();
        let call = Envelope::new("test", 0, Body::ObjectQuery(ObjectQuery::default()));
        down.send(Input::Submit(call)).await.unwrap();
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
    loop {
        match cloud.next().await {
            Seen::Delivered(Class::State, envelope) => {
                let Some(Body::StatusUpdate(update)) = envelope.body else { panic!("{envelope:?}") };
                assert_eq!(update.status_json.len(), 1 << 20);
                break;
            }
            Seen::Heartbeat => {
                heartbeats += 1;
                if heartbeats <= 3 {
                    edge.submit(Envelope::new("test", 0, Body::RegisterNode(RegisterNode::default()))).await;
                }
            }
            Seen::Delivered(Class::Call, _) => calls += 1,
            Seen::Closed(closed) => panic!("{closed}"),
            _ => {}
        }
    }
    assert!(heartbeats >= 4, "{heartbeats} heartbeats in two seconds");
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
