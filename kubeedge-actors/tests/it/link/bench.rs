//! What the link's tests stand on: certificates, ends with an owner, and a line that can be slow, swallow and be cut.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use kubeedge_actors::link::{
    Class, Closed, Config, FrameSink, FrameStream, Input, Output, Session, client,
    driver::{self, Ended},
    queues::{self, InputSender},
    server::{self, Accepted, Identify, Limits},
};
use kubeedge_proto::{
    NodeName, resource,
    v1::{
        CallReply, DesiredState, Envelope, Hello, KubeObject, ObjectKey, ObjectUpsert, Settled, StatusUpdate,
        envelope::Body,
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

pub(super) const LONG: Duration = Duration::from_secs(60);

pub(super) struct Ca {
    issuer: Issuer<'static, KeyPair>,
    der: CertificateDer<'static>,
}

impl Ca {
    pub(super) fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "test CA");
        let der = params.self_signed(&key).unwrap().der().clone();
        Self { issuer: Issuer::new(params, key), der }
    }

    pub(super) fn issue(&self, common_name: &str, names: &[&str], usage: ExtendedKeyUsagePurpose) -> Leaf {
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

    pub(super) fn server(&self, asks_for_clients: bool) -> Arc<ServerConfig> {
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

    pub(super) fn client(&self, leaf: Option<Leaf>) -> ClientConfig {
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(self.roots());
        match leaf {
            Some(leaf) => builder.with_client_auth_cert(leaf.chain, leaf.key).unwrap(),
            None => builder.with_no_client_auth(),
        }
    }

    pub(super) fn node(&self, name: &str) -> ClientConfig {
        self.client(Some(self.issue(&format!("system:node:{name}"), &[], ExtendedKeyUsagePurpose::ClientAuth)))
    }
}

pub(super) struct Leaf {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

pub(super) fn by_common_name() -> Identify {
    Arc::new(|chain| {
        let leaf = chain.first().ok_or("empty chain")?;
        let (_, certificate) = x509_parser::parse_x509_certificate(leaf).map_err(|error| error.to_string())?;
        let subject = certificate.subject();
        let name = subject.iter_common_name().next().and_then(|name| name.as_str().ok()).ok_or("no common name")?;
        NodeName::from_common_name(name).map_err(|error| error.to_string())
    })
}

/// Something that a test waits for.
#[derive(Debug)]
pub(super) enum Seen {
    Established,
    Delivered(Class, Box<Envelope>),
    Settled,
    Replied(CallReply),
    Heartbeat,
    Closed(Closed),
}

/// A session with an owner that settles and answers everything, unless it holds State back.
pub(super) struct End {
    pub(super) commands: InputSender,
    seen: mpsc::Receiver<Seen>,
    pub(super) ended: JoinHandle<Ended>,
    pub(super) owner: AbortHandle,
}

impl End {
    pub(super) fn run(session: Session, sink: FrameSink, stream: FrameStream, settles: bool) -> Self {
        let (commands, inputs) = queues::inputs();
        let (outputs, mut events) = queues::outputs();
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
                    Output::Deliver { class, envelope, .. } => Seen::Delivered(class, envelope),
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

    pub(super) async fn next(&mut self) -> Seen {
        timeout(LONG, self.seen.recv()).await.expect("something should have happened").expect("the session is over")
    }

    pub(super) async fn until<T>(&mut self, mut wanted: impl FnMut(&Seen) -> Option<T>) -> T {
        loop {
            let seen = self.next().await;
            if let Some(found) = wanted(&seen) {
                return found;
            }
        }
    }

    pub(super) async fn established(&mut self) {
        self.until(|seen| matches!(seen, Seen::Established).then_some(())).await;
    }

    pub(super) async fn closed(&mut self) -> Closed {
        self.until(|seen| if let Seen::Closed(closed) = seen { Some(closed.clone()) } else { None }).await
    }

    pub(super) async fn submit(&self, envelope: Envelope) {
        self.commands.send(Input::Submit(Box::new(envelope))).await.unwrap();
    }
}

/// A cloud on loopback that takes any node.
pub(super) struct Cloud {
    pub(super) address: SocketAddr,
    pub(super) accepted: mpsc::Receiver<Accepted>,
    task: JoinHandle<()>,
}

impl Drop for Cloud {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Cloud {
    pub(super) async fn start(ca: &Ca) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (accept, accepted) = mpsc::channel(16);
        let task =
            tokio::spawn(server::serve_link(listener, ca.server(true), by_common_name(), accept, Limits::default()));
        Self { address, accepted, task }
    }

    pub(super) async fn next(&mut self, config: Config, settles: bool) -> End {
        let accepted = timeout(LONG, self.accepted.recv()).await.unwrap().unwrap();
        assert_eq!(accepted.node.as_str(), "edge-1");
        End::run(Session::cloud(config).stamped(), accepted.sink, accepted.stream, settles)
    }
}

pub(super) fn hello(connection: u64) -> Hello {
    Hello { instance_id: vec![1; 16].into(), connection, last_epoch: connection - 1, ..Default::default() }
}

pub(super) async fn edge(address: SocketAddr, ca: &Ca, connection: u64, config: Config) -> End {
    let (sink, stream) = client::connect(&address.to_string(), None, &ca.node("edge-1")).await.unwrap();
    End::run(Session::edge(hello(connection), config).stamped(), sink, stream, true)
}

pub(super) fn status(name: String, bytes: usize) -> Envelope {
    let update = StatusUpdate {
        r#type: Some(resource::pods()),
        key: Some(ObjectKey::new("ns", name)),
        uid: "u".into(),
        generation: 1,
        status_json: vec![b'x'; bytes].into(),
    };
    Envelope::new("test", 0, Body::StatusUpdate(update))
}

pub(super) fn upsert(name: String) -> Envelope {
    let object = KubeObject {
        r#type: Some(resource::pods()),
        key: Some(ObjectKey::new("ns", name)),
        uid: "u".into(),
        json: vec![b'x'; 500].into(),
        ..Default::default()
    };
    Envelope::new("test", 0, Body::ObjectUpsert(ObjectUpsert { object: Some(object), ..ObjectUpsert::default() }))
}

/// Relays one connection at a time; slow when told, cut when told.
pub(super) struct Proxy {
    pub(super) address: SocketAddr,
    /// Relayed both ways, in bytes.
    pub(super) bytes: Arc<AtomicUsize>,
    /// While set, what comes is swallowed.
    pub(super) swallows: Arc<AtomicBool>,
    relays: Arc<Mutex<Vec<AbortHandle>>>,
    task: JoinHandle<()>,
}

impl Proxy {
    /// `rate` in bytes a second each way.
    pub(super) async fn start(to: SocketAddr, rate: Option<usize>) -> Self {
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

    pub(super) fn cut(&self) {
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
    if line.swallows.load(Ordering::Relaxed) {
        // The end of a connection does not come through either.
        std::future::pending::<()>().await;
    }
}
