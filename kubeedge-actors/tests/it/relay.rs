//! Upgraded streams all the way, in one process over real sockets: client, API server, CloudStream, the node's stream
//! connection, EdgeStream, and a server that stands for the container runtime's. The real ones are in the system tests.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime},
};

use actix::{Actor, Handler, MessageResult};
use kubeedge_actors::{
    apiserver::Config,
    audit::testing::Heard,
    cloudstream::{API_SERVER_USER, CloudStream, CloudStreamConfig},
    edgestream::EdgeStream,
    identity::{CertificateAuthority, ClientAuth, issued_client_config, server_config, system_clock},
    link::streams::{ConnectStreams, Connection, NotConnected, OPEN_STREAMS, ServeStream},
    system::{Component, Context, Contract, Ports, Stage, System},
};
use kubeedge_proto::v1::{
    ContainerLog, LocateContainerLog, LocatePod, OpenContainerStream, PodLocation, StreamLocation,
    open_container_stream::Stream as Wanted,
};
use rustls::ClientConfig;
use serde_json::json;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::{JoinHandle, JoinSet},
    time::timeout,
};
use tokio_rustls::TlsConnector;

use crate::{apiserver::Api, streams::join};

const LONG: Duration = Duration::from_secs(30);
/// What is given up must be free everywhere within this; it takes milliseconds.
const SOON: Duration = Duration::from_secs(5);
/// The containers of the pod: each name is what the runtime does.
const CONTAINERS: [&str; 7] = ["echo", "last", "flood", "refuse", "silent", "away", "stopped"];

/// Stands for EdgeController and CloudHub.
struct Neighbours(Connection);

impl Actor for Neighbours {
    type Context = Context<Self>;
}

impl Component for Neighbours {
    const NAME: &'static str = "neighbours";
    const STAGE: Stage = Stage::Processor;

    fn contract(contract: &mut Contract<Self>) {
        contract.answers::<LocatePod>();
        contract.answers::<ConnectStreams>();
    }
}

impl Handler<LocatePod> for Neighbours {
    type Result = MessageResult<LocatePod>;
    fn handle(&mut self, _: LocatePod, _: &mut Context<Self>) -> Self::Result {
        MessageResult(PodLocation { code: 200, node: "edge-1".into(), ..PodLocation::default() })
    }
}

impl Handler<ConnectStreams> for Neighbours {
    type Result = Result<Connection, NotConnected>;
    fn handle(&mut self, wanted: ConnectStreams, _: &mut Context<Self>) -> Self::Result {
        if self.0.is_closed() { Err(NotConnected::Offline(wanted.node)) } else { Ok(self.0.clone()) }
    }
}

/// Stands for Edged.
struct Node(SocketAddr);

impl Actor for Node {
    type Context = Context<Self>;
}

impl Component for Node {
    const NAME: &'static str = "node";
    const STAGE: Stage = Stage::Processor;

    fn contract(contract: &mut Contract<Self>) {
        contract.answers::<LocateContainerLog>();
        contract.answers::<OpenContainerStream>();
    }
}

impl Handler<LocateContainerLog> for Node {
    type Result = MessageResult<LocateContainerLog>;
    fn handle(&mut self, _: LocateContainerLog, _: &mut Context<Self>) -> Self::Result {
        MessageResult(ContainerLog { code: 404, message: "pod does not exist".into(), ..ContainerLog::default() })
    }
}

impl Handler<OpenContainerStream> for Node {
    type Result = MessageResult<OpenContainerStream>;
    fn handle(&mut self, wanted: OpenContainerStream, _: &mut Context<Self>) -> Self::Result {
        let container = match wanted.stream {
            Some(Wanted::Exec(exec)) => exec.container,
            Some(Wanted::Attach(attach)) => attach.container,
            _ => "echo".into(),
        };
        let url = match container.as_str() {
            "stopped" => {
                let message = "container not found (\"stopped\")".into();
                return MessageResult(StreamLocation { code: 500, message, ..StreamLocation::default() });
            }
            // What a runtime that was taken over would like to be dialled.
            "away" => "http://169.254.169.254:80/latest/meta-data".to_owned(),
            path => format!("http://{}/{path}", self.0),
        };
        MessageResult(StreamLocation { code: 200, url, ..StreamLocation::default() })
    }
}

/// The runtime's streaming server: what it was asked, and its connections.
#[derive(Clone, Default)]
struct Runtime {
    heads: Arc<Mutex<Vec<String>>>,
    open: Arc<AtomicUsize>,
}

impl Runtime {
    async fn start(&self) -> (SocketAddr, JoinHandle<()>) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let runtime = self.clone();
        let serving = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((socket, _)) = listener.accept().await {
                let runtime = runtime.clone();
                connections.spawn(async move {
                    runtime.open.fetch_add(1, Ordering::SeqCst);
                    // Broken off by the other end, which is what some tests are about.
                    let _ = runtime.serve(socket).await;
                    runtime.open.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        (address, serving)
    }

    async fn serve(&self, mut socket: TcpStream) -> std::io::Result<()> {
        let head = head(&mut socket).await?;
        self.heads.lock().unwrap().push(head.clone());
        let does = head.split(' ').nth(1).unwrap_or_default().trim_start_matches('/').to_owned();
        let upgrade = header(&head, "upgrade").unwrap_or_default();
        if does == "refuse" {
            let text = "unable to negotiate: [none]";
            let answer = format!(
                "HTTP/1.1 403 Forbidden\r\nX-Accepted-Stream-Protocol-Versions: v4.channel.k8s.io\r\n\
                 Content-Length: {}\r\n\r\n{text}",
                text.len()
            );
            return socket.write_all(answer.as_bytes()).await;
        }
        if does == "silent" {
            // Until the other end gives it up.
            return socket.read(&mut [0; 1]).await.map(drop);
        }
        let answer = format!(
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: {upgrade}\r\n\
             X-Stream-Protocol-Version: v4.channel.k8s.io\r\nSet-Cookie: a=b\r\n\r\n"
        );
        socket.write_all(answer.as_bytes()).await?;
        let (mut from, mut to) = socket.split();
        match does.as_str() {
            "last" => to.write_all(&last_words()).await,
            "flood" => loop {
                to.write_all(&[b'x'; 16 * 1024]).await?;
            },
            _ => tokio::io::copy(&mut from, &mut to).await.map(drop),
        }
    }

    fn open(&self) -> usize {
        self.open.load(Ordering::SeqCst)
    }
}

fn last_words() -> Vec<u8> {
    (0..300_000u32).map(|at| (at % 253) as u8).collect()
}

async fn head(socket: &mut (impl AsyncRead + Unpin)) -> std::io::Result<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(socket.read_u8().await?);
    }
    Ok(String::from_utf8_lossy(&head).into_owned())
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let lines = head.lines().filter_map(|line| line.split_once(':'));
    lines.into_iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
}

struct Way {
    api: Api,
    cloud: Connection,
    runtime: Runtime,
    gateway: SocketAddr,
    authority: Arc<CertificateAuthority>,
    edge_task: JoinHandle<String>,
    _rest: (System, System, JoinHandle<()>, JoinHandle<()>, JoinHandle<String>),
}

impl Way {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let now = SystemTime::now();
        let authority = Arc::new(CertificateAuthority::load_or_create(folder.path(), now).unwrap());
        let runtime = Runtime::default();
        let (runtime_address, runtime_task) = runtime.start().await;

        let crate::streams::Joined { cloud, mut requests, edge_task, cloud_task, server } = join().await;
        let edge = System::builder("edge")
            .component(move |_: &Ports| Node(runtime_address))
            .component(EdgeStream::new)
            .asks::<ServeStream>()
            .start()
            .unwrap();
        let port = edge.port::<ServeStream>();
        let handing = tokio::task::spawn_local(async move {
            while let Some(request) = requests.recv().await {
                port.tell(ServeStream { request }).await.unwrap();
            }
            drop(server);
        });

        let certificate = authority.issue_server(&["127.0.0.1".try_into().unwrap()], now).unwrap();
        let clients = ClientAuth::Optional(authority.certificate().clone());
        let tls = server_config(certificate.chain(), certificate.key(), clients, &[], system_clock()).unwrap();
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let gateway = listener.local_addr().unwrap();
        let config = CloudStreamConfig { listener: Arc::new(listener), tls: Arc::new(tls) };
        let connection = cloud.clone();
        let system = System::builder("cloud")
            .component(move |_: &Ports| Neighbours(connection.clone()))
            .component(move |ports: &Ports| CloudStream::new(config.clone(), ports))
            .start()
            .unwrap();

        let client = client(&authority, API_SERVER_USER, "kubeedge");
        let api = Api::start(Config { kubelet_client: Some(client), ..Config::in_memory() }).await;
        api.post("/api/v1/nodes", json!({"metadata": {"name": "edge-1"}})).await;
        let status = json!({"status": {
            "addresses": [{"type": "InternalDNS", "address": "127.0.0.1"}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": gateway.port()}},
        }});
        api.patch("/api/v1/nodes/edge-1/status", status).await;
        let containers: Vec<_> = CONTAINERS.iter().map(|name| json!({"name": name, "image": "i"})).collect();
        let pod = json!({"metadata": {"name": "p"}, "spec": {"nodeName": "edge-1", "containers": containers}});
        api.post("/api/v1/namespaces/default/pods", pod).await;
        let _rest = (edge, system, runtime_task, handing, cloud_task);
        Self { api, cloud, runtime, gateway, authority, edge_task, _rest }
    }

    /// What is open at the API server, on the node's connection and at the runtime. The gateway's connections hold the
    /// second.
    fn counts(&self) -> [usize; 3] {
        [self.api.server.streams(), self.cloud.streams(), self.runtime.open()]
    }

    async fn until_counts(&self, wanted: [usize; 3]) {
        let reached = timeout(SOON, async {
            while self.counts() != wanted {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        reached.await.unwrap_or_else(|_| panic!("still open: {:?}, expected {wanted:?}", self.counts()));
    }

    /// As Go's clients do it: SPDY with POST, or WebSocket with GET.
    async fn open(&self, protocol: &str, container: &str) -> (u16, String, TcpStream) {
        let method = if protocol == "websocket" { "GET" } else { "POST" };
        let path = format!("/api/v1/namespaces/default/pods/p/exec?command=ls&container={container}&stdout=1&stdin=1");
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer admin\r\nConnection: Upgrade\r\n\
             Upgrade: {protocol}\r\nX-Stream-Protocol-Version: v5.channel.k8s.io\r\n\
             X-Stream-Protocol-Version: v4.channel.k8s.io\r\nSec-WebSocket-Key: abc\r\nCookie: secret\r\n\
             Content-Length: 0\r\n\r\n"
        );
        let mut socket = TcpStream::connect(self.api.server.address()).await.unwrap();
        let (status, head) = ask(&mut socket, &head).await;
        (status, head, socket)
    }

    async fn echoing(&self) -> TcpStream {
        let (status, head, mut socket) = self.open("SPDY/3.1", "echo").await;
        assert_eq!(status, 101, "{head}");
        echo(&mut socket, b"ready").await;
        socket
    }
}

async fn ask(socket: &mut (impl AsyncRead + AsyncWrite + Unpin), request: &str) -> (u16, String) {
    socket.write_all(request.as_bytes()).await.unwrap();
    let head = timeout(LONG, head(socket)).await.expect("an answer").unwrap();
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status");
    (status, head)
}

async fn echo(socket: &mut TcpStream, bytes: &[u8]) {
    let mut back = vec![0; bytes.len()];
    let (mut from, mut to) = socket.split();
    let both = async { tokio::try_join!(to.write_all(bytes), from.read_exact(&mut back)) };
    timeout(LONG, both).await.expect("it comes back").unwrap();
    assert!(back == bytes, "other bytes came back");
}

fn client(authority: &CertificateAuthority, user: &str, group: &str) -> Arc<ClientConfig> {
    let issued = authority.issue_client(user, group, SystemTime::now()).unwrap();
    Arc::new(issued_client_config(authority.certificate().clone(), &issued, system_clock()).unwrap())
}

/// Runs it where actors can live.
fn on_the_way<F: Future<Output = ()>>(test: impl FnOnce(Way) -> F) {
    actix::System::new().block_on(async { test(Way::start().await).await });
}

#[test]
fn bytes_go_both_ways_through_every_hop_with_either_upgrade() {
    on_the_way(|way| async move {
        let bytes: Vec<u8> = (0..1_500_000u32).map(|at| (at % 249) as u8).collect();
        for protocol in ["SPDY/3.1", "websocket"] {
            let (status, head, mut socket) = way.open(protocol, "echo").await;
            assert_eq!(status, 101, "{head}");
            assert_eq!(header(&head, "upgrade"), Some(protocol));
            assert_eq!(header(&head, "connection").map(str::to_lowercase).as_deref(), Some("upgrade"));
            assert_eq!(header(&head, "x-stream-protocol-version"), Some("v4.channel.k8s.io"));
            assert_eq!(header(&head, "set-cookie"), None);
            echo(&mut socket, &bytes).await;
            assert_eq!(way.counts(), [1, 1, 1]);
            let asked = way.runtime.heads.lock().unwrap().pop().unwrap();
            assert_eq!(header(&asked, "upgrade"), Some(protocol));
            // Each of the client's protocols in a header of its own, as older runtimes need it; nothing secret.
            let versions = asked.matches("x-stream-protocol-version: v").count();
            assert_eq!(versions, 2, "{asked}");
            assert!(!asked.to_lowercase().contains("bearer") && !asked.contains("secret"), "{asked}");
            drop(socket);
            way.until_counts([0, 0, 0]).await;
        }
        way.api.server.stop().await;
    });
}

#[test]
fn a_hundred_streams_are_open_at_a_time_and_clients_that_go_free_every_hop() {
    on_the_way(|way| async move {
        let mut sockets = Vec::new();
        for _ in 0..100 {
            sockets.push(way.echoing().await);
        }
        way.until_counts([100, 100, 100]).await;
        for socket in &mut sockets {
            echo(socket, &[7; 1000]).await;
        }
        // Half of them in order, half of them at once with bytes on their way.
        for (at, mut socket) in sockets.into_iter().enumerate() {
            if at % 2 == 0 {
                socket.shutdown().await.unwrap();
            } else {
                socket.write_all(&[1; 20_000]).await.unwrap();
            }
        }
        way.until_counts([0, 0, 0]).await;
        // And who waits for an answer that does not come.
        let path = "/api/v1/namespaces/default/pods/p/exec?command=ls&container=silent&stdout=1";
        let request = format!(
            "POST {path} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer admin\r\nConnection: Upgrade\r\n\
             Upgrade: SPDY/3.1\r\n\r\n"
        );
        let mut waiting = TcpStream::connect(way.api.server.address()).await.unwrap();
        waiting.write_all(request.as_bytes()).await.unwrap();
        way.until_counts([1, 1, 1]).await;
        drop(waiting);
        way.until_counts([0, 0, 0]).await;
        way.api.server.stop().await;
    });
}

#[test]
fn a_node_has_a_bound_of_streams_and_one_more_is_told_so() {
    on_the_way(|way| async move {
        let mut sockets = Vec::new();
        for _ in 0..OPEN_STREAMS {
            sockets.push(way.echoing().await);
        }
        let (status, _, mut socket) = way.open("SPDY/3.1", "echo").await;
        let mut text = String::new();
        socket.read_to_string(&mut text).await.unwrap();
        assert_eq!(status, 429);
        assert!(text.contains("128 streams with this node are open"), "{text}");
        echo(&mut sockets[0], b"the others go on").await;
        drop(sockets);
        way.until_counts([0, 0, 0]).await;
        way.api.server.stop().await;
    });
}

#[test]
fn the_last_byte_of_a_runtime_arrives_before_the_end() {
    on_the_way(|way| async move {
        let (status, _, mut socket) = way.open("SPDY/3.1", "last").await;
        assert_eq!(status, 101);
        let mut seen = Vec::new();
        timeout(LONG, socket.read_to_end(&mut seen)).await.expect("an end").unwrap();
        assert!(seen == last_words(), "{} bytes of {}", seen.len(), last_words().len());
        way.until_counts([0, 0, 0]).await;
        way.api.server.stop().await;
    });
}

#[test]
fn an_edge_that_dies_ends_its_streams() {
    on_the_way(|way| async move {
        let mut socket = way.echoing().await;
        way.edge_task.abort();
        let mut rest = Vec::new();
        // An end or a break: what matters is that nobody waits.
        let _ = timeout(SOON, socket.read_to_end(&mut rest)).await.expect("an end");
        way.until_counts([0, 0, 0]).await;
        let (status, _, mut socket) = way.open("SPDY/3.1", "echo").await;
        let mut text = String::new();
        socket.read_to_string(&mut text).await.unwrap();
        assert_eq!((status, text.as_str()), (503, "node edge-1 is not connected"));
        way.api.server.stop().await;
    });
}

#[test]
fn a_client_that_does_not_read_delays_nobody_else() {
    on_the_way(|way| async move {
        let (status, _, unread) = way.open("SPDY/3.1", "flood").await;
        assert_eq!(status, 101);
        let mut socket = way.echoing().await;
        for _ in 0..20 {
            timeout(SOON, echo(&mut socket, &[3; 4000])).await.expect("it is not delayed");
        }
        drop(unread);
        drop(socket);
        way.until_counts([0, 0, 0]).await;
        way.api.server.stop().await;
    });
}

#[test]
fn refusals_come_back_as_they_were_said() {
    on_the_way(|way| async move {
        let cases = [
            ("refuse", 403, "unable to negotiate: [none]"),
            ("stopped", 500, "container not found (\"stopped\")"),
            ("away", 500, "that is not on the loopback interface"),
            ("nobody", 400, "container nobody is not valid for pod p"),
        ];
        for (container, code, words) in cases {
            for protocol in ["SPDY/3.1", "websocket"] {
                let (status, head, mut socket) = way.open(protocol, container).await;
                let mut text = String::new();
                timeout(LONG, socket.read_to_string(&mut text)).await.expect("the connection ends").unwrap();
                assert_eq!(status, code, "{container}: {head}{text}");
                assert!(text.contains(words), "{container}: {text}");
                if container == "refuse" {
                    assert_eq!(header(&head, "x-accepted-stream-protocol-versions"), Some("v4.channel.k8s.io"));
                }
            }
        }
        let exec = "/api/v1/namespaces/default/pods/p/exec?command=ls&container=echo&stdout=1";
        let plain = way.api.send("POST", exec, "", json!(null)).await;
        assert_eq!(plain.status, 400);
        assert!(plain.text.contains("Upgrade request required"), "{}", plain.text);
        assert_eq!(way.api.send("PUT", exec, "", json!(null)).await.status, 405);
        // A connection that HTTP was spoken on before can carry a WebSocket, and says so of SPDY.
        for (protocol, code) in [("websocket", 101), ("SPDY/3.1", 400)] {
            let mut socket = TcpStream::connect(way.api.server.address()).await.unwrap();
            let (status, head) = ask(&mut socket, "GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n").await;
            let length = header(&head, "content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
            socket.read_exact(&mut vec![0; length]).await.unwrap();
            assert_eq!(status, 200, "{head}");
            let request = format!(
                "GET {exec} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer admin\r\nConnection: Upgrade\r\n\
                 Upgrade: {protocol}\r\n\r\n"
            );
            assert_eq!(ask(&mut socket, &request).await.0, code);
        }
        // Nobody's token.
        let mut socket = TcpStream::connect(way.api.server.address()).await.unwrap();
        let request = format!("GET {exec} HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\r\n");
        assert_eq!(ask(&mut socket, &request).await.0, 401);
        way.until_counts([0, 0, 0]).await;
        way.api.server.stop().await;
    });
}

#[test]
fn the_gateway_takes_streams_from_the_api_server_alone() {
    on_the_way(|way| async move {
        let heard = Heard::default();
        let _here = heard.here();
        let folder = tempfile::tempdir().unwrap();
        let other = CertificateAuthority::load_or_create(folder.path(), SystemTime::now()).unwrap();
        let own = |user, group| client(&way.authority, user, group);
        let request =
            |path: &str| format!("POST {path} HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\r\n");
        let asked = async |config: Arc<ClientConfig>, path: &str| {
            let socket = TcpStream::connect(way.gateway).await.unwrap();
            let name = rustls::pki_types::ServerName::from(way.gateway.ip());
            let mut socket = TlsConnector::from(config).connect(name, socket).await?;
            socket.write_all(request(path).as_bytes()).await?;
            let head = timeout(LONG, head(&mut socket)).await.expect("an answer")?;
            std::io::Result::Ok(head.split(' ').nth(1).unwrap_or_default().to_owned())
        };
        for path in
            ["/exec/default/p/echo?command=ls&output=1", "/attach/default/p/echo?output=1", "/portForward/default/p"]
        {
            assert_eq!(asked(own(API_SERVER_USER, "kubeedge"), path).await.unwrap(), "101", "{path}");
            assert_eq!(asked(own("root", "system:masters"), path).await.unwrap(), "101", "{path}");
            assert_eq!(asked(own("system:node:edge-1", "system:nodes"), path).await.unwrap(), "403", "{path}");
            // The same name, signed by another.
            let issued = other.issue_client(API_SERVER_USER, "kubeedge", SystemTime::now()).unwrap();
            let stranger = issued_client_config(way.authority.certificate().clone(), &issued, system_clock()).unwrap();
            assert!(asked(Arc::new(stranger), path).await.is_err(), "{path}");
        }
        // Each refusal has a line, and what was served has none.
        for why in ["user \"system:node:edge-1\" may not use the streams of nodes", "is of another CA than ours"] {
            heard.until(LONG, |lines| lines.iter().filter(|line| line.contains(why)).count() == 3).await;
        }
        assert_eq!(heard.take().len(), 6);
        way.until_counts([0, 0, 0]).await;
        way.api.server.stop().await;
    });
}
