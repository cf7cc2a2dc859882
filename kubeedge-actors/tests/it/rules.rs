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

struct World {
    test: TestSystem,
    api: Arc<Client>,
    rest: SocketAddr,
    to_node: Recorder<SendToNode>,
    event: Recorder<SendEventToNode>,
    authority: Arc<CertificateAuthority>,
    _server: Handle,
    _folder: tempfile::TempDir,
}

impl World {
    /// A router over HTTPS that asks for a token; nodes have no session, and take events as `settled` says.
    async fn start(settled: Settled, trusted: bool) -> Self {
        Self::with(settled, trusted, None).await
    }

    /// The same; nodes have this connection for streams.
    async fn with(settled: Settled, trusted: bool, streams: Option<Connection>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let authority = Arc::new(CertificateAuthority::load_or_create(folder.path(), SystemTime::now()).unwrap());
        let names = vec![std::net::IpAddr::from(Ipv4Addr::LOCALHOST).into()];
        let server = ServerCredentials::new(authority.clone(), names, SystemTime::now()).unwrap();
        let handle = Server::start(Config::in_memory()).await.unwrap();
        let api = Arc::new(Client::new(handle.address(), "admin"));
        for definition in crds::definitions() {
            let path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
            let answer = api.send("POST", path, &[], Some(definition.to_string())).await;
            assert_eq!(answer.status, 201, "{}", answer.text);
        }
        let mut kube = kube::Config::new(format!("http://{}", handle.address()).parse().unwrap());
        kube.auth_info.token = Some("admin".to_owned().into());
        let kube = kube::Client::try_from(kube).unwrap();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let rest = listener.local_addr().unwrap();
        let ca = folder.path().join("rootCA.crt");
        let config = RouterConfig {
            listener: Arc::new(listener),
            tls: Some(Arc::new(server.server_config(ClientAuth::None, &[]).unwrap())),
            tokens: Some(Tokens::parse(TOKEN).unwrap()),
            within: Duration::from_secs(5),
            outbound: Outbound::new(trusted.then_some(ca)).unwrap(),
        };
        let to_node = Recorder::<SendToNode>::answering(|_| ());
        let recheck = Recorder::<RecheckNodes>::answering(|_| ());
        let event = Recorder::<SendEventToNode>::answering(move |_| settled.clone());
        let connect = Recorder::<ConnectStreams>::answering(move |asked| {
            streams.clone().ok_or_else(|| NotConnected::Offline(asked.node.clone()))
        });
        let test = TestSystem::builder()
            .component(move |ports: &Ports| Router::new(kube.clone(), config.clone(), ports))
            .records(&to_node)
            .records(&recheck)
            .records(&event)
            .records(&connect)
            .asks::<QueryRules>()
            .asks::<RouteEvent>()
            .asks::<RouteCall>()
            .start();
        Self { test, api, rest, to_node, event, authority, _server: handle, _folder: folder }
    }

    async fn make(&self, plural: &str, name: &str, spec: Value) {
        let path = format!("/apis/rules.kubeedge.io/v1/namespaces/default/{plural}");
        let object = json!({"metadata": {"name": name}, "spec": spec});
        let answer = self.api.send("POST", &path, &[], Some(object.to_string())).await;
        assert_eq!(answer.status, 201, "{}", answer.text);
    }

    async fn endpoints(&self) {
        for (name, properties) in
            [("rest", json!({})), ("eventbus", json!({})), ("servicebus", json!({"service_port": "80"}))]
        {
            self.make("ruleendpoints", name, json!({"ruleEndpointType": name, "properties": properties})).await;
        }
        // Rules and endpoints come by watches of their own. With the last endpoint all are known.
        self.rule("probe", ("rest", json!({"path": "/probe"})), ("servicebus", json!({"path": "/"}))).await;
        tokio::time::timeout(SOON, async {
            loop {
                let (_, text) = self.routed("/edge-1/default/probe", "").await;
                if text.contains("edge-1 is not connected") || text == PROBED {
                    return;
                }
                tokio::task::yield_now().await;
            }
        })
        .await
        .unwrap();
    }

    async fn rule(&self, name: &str, source: (&str, Value), target: (&str, Value)) {
        let spec =
            json!({"source": source.0, "sourceResource": source.1, "target": target.0, "targetResource": target.1});
        self.make("rules", name, spec).await;
    }

    /// One request over HTTPS.
    async fn post(&self, path: &str, token: Option<&str>, body: &'static str) -> (u16, String) {
        let (status, answer, _asker) = self.send(path, token, Full::new(Bytes::from(body)).boxed_unsync()).await;
        let text = answer.collect().await.unwrap().to_bytes();
        (status, String::from_utf8(text.to_vec()).unwrap())
    }

    /// Sends any body; the answer's comes as it comes, as long as what is returned with it is kept.
    async fn send(&self, path: &str, token: Option<&str>, body: Sent) -> (u16, Incoming, Asker) {
        let own = self.authority.issue_client("somebody", "shops", SystemTime::now()).unwrap();
        let tls = issued_client_config(self.authority.certificate().clone(), &own, system_clock()).unwrap();
        let stream = TcpStream::connect(self.rest).await.unwrap();
        let address = stream.local_addr().unwrap();
        let tls = tokio_rustls::TlsConnector::from(Arc::new(tls));
        let stream = tls.connect(self.rest.ip().into(), stream).await.unwrap();
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
        let connection = AbortOnDropHandle::new(tokio::task::spawn_local(connection));
        let mut request = Request::post(path).header("Host", "router");
        if let Some(token) = token {
            request = request.header("Authorization", format!("Bearer {token}"));
        }
        let answer = sender.send_request(request.body(body).unwrap()).await.unwrap();
        (answer.status().as_u16(), answer.into_body(), Asker { address, _sender: sender, _connection: connection })
    }

    /// The same until a rule takes it.
    async fn routed(&self, path: &str, body: &'static str) -> (u16, String) {
        tokio::time::timeout(SOON, async {
            loop {
                let answer = self.post(path, Some(TOKEN), body).await;
                if answer.0 != 404 {
                    return answer;
                }
                tokio::task::yield_now().await;
            }
        })
        .await
        .unwrap()
    }

    async fn event(&self, rule: &str, payload: &'static str) -> Settled {
        let message = UserMessage {
            topic: "default/t".into(),
            payload: Bytes::from(payload),
            rule: Some(ObjectKey::new("default", rule)),
            ..UserMessage::default()
        };
        let envelope = Envelope::new("eventbus", 0, Body::UserMessage(message));
        self.test.ask(RouteEvent { node: "edge-1".into(), envelope: Some(envelope) }).await
    }
}

#[actix_rt::test]
async fn the_rest_server_takes_who_shows_a_token_over_https_and_says_what_the_node_said() {
    let world = World::start(Settled::applied(), true).await;
    world.endpoints().await;
    world.rule("lamp", ("rest", json!({"path": "/lamp"})), ("eventbus", json!({"topic": "lamp"}))).await;
    assert_eq!(world.routed("/edge-1/default/lamp/on", "1").await, (200, "message delivered".into()));
    let sent = world.event.next().await;
    let Some(Body::UserMessage(message)) = sent.envelope.unwrap().body else { panic!("another body") };
    assert_eq!((sent.node.as_str(), message.topic.as_str(), &message.payload[..]), ("edge-1", "lamp/on", &b"1"[..]));

    // The server has a thread of its own.
    let heard = Heard::everywhere();
    for (token, said) in [(None, "a bearer token is needed"), (Some("fedcba9876543210"), "none of the router's")] {
        let before = heard.count();
        let (status, answer, client) = world.send("/edge-1/default/lamp", token, chunked(0)).await;
        let text = String::from_utf8(answer.collect().await.unwrap().to_bytes().to_vec()).unwrap();
        assert!(status == 401 && text.contains(said), "{status} {text}");
        let lines = heard.after(before, &format!("who={} what=POST /edge-1/default/lamp ", client.address));
        let told = format!("request to the router refused: {text}");
        assert!(lines.len() == 1 && lines[0].contains(&told), "{lines:?}");
        assert!(!lines[0].contains("fedcba9876543210"), "{lines:?}");
    }
    // A service at a node without a session.
    world.rule("call", ("rest", json!({"path": "/call"})), ("servicebus", json!({"path": "/"}))).await;
    let (status, text) = world.routed("/edge-1/default/call", "").await;
    assert!(status == 503 && text.contains("edge-1 is not connected"), "{status} {text}");
    // A rule without its endpoint.
    world.rule("lost", ("nobody", json!({"path": "/lost"})), ("eventbus", json!({"topic": "t"}))).await;
    let (status, text) = world.routed("/edge-1/default/lost", "").await;
    assert!(status == 503 && text.contains("no RuleEndpoint default/nobody"), "{status} {text}");
    world.test.assert_quiet().await;
}

#[actix_rt::test]
async fn a_node_that_does_not_take_a_message_is_told_to_who_sent_it() {
    let world = World::start(Settled::rejected(413, "1048577 bytes on lamp"), true).await;
    world.endpoints().await;
    world.rule("lamp", ("rest", json!({"path": "/lamp"})), ("eventbus", json!({"topic": "lamp"}))).await;
    assert_eq!(world.routed("/edge-1/default/lamp", "1").await, (413, "1048577 bytes on lamp".into()));
    world.test.assert_quiet().await;
}

#[actix_rt::test]
async fn messages_of_nodes_reach_urls_over_verified_tls_only() {
    for trusted in [true, false] {
        let world = World::start(Settled::applied(), trusted).await;
        world.endpoints().await;
        let own =
            world.authority.issue_server(&[std::net::IpAddr::from(Ipv4Addr::LOCALHOST).into()], SystemTime::now());
        let own = own.unwrap();
        let tls =
            kubeedge_actors::identity::server_config(own.chain(), own.key(), ClientAuth::None, &[], system_clock());
        let (address, mut seen, _serving) = serve(Some(Arc::new(tls.unwrap())), 200).await;
        let source = json!({"topic": "t", "node_name": "edge-1"});
        world.rule("up", ("eventbus", source), ("rest", json!({"resource": format!("https://{address}/in")}))).await;
        // The node hears of it; then the router knows it as well.
        let sent = tokio::time::timeout(SOON, world.to_node.next()).await.unwrap();
        assert_eq!(sent.node, "edge-1");
        let settled = world.event("up", "{}").await;
        if trusted {
            assert_eq!(settled, Settled::applied());
            let (line, body) = seen.recv().await.unwrap();
            assert!(
                line.starts_with("POST /in ") && line.len() == "POST /in ".len() + 36,
                "an idempotency key: {line}"
            );
            assert_eq!(&body[..], b"{}");
        } else {
            assert_eq!(settled.code, 503);
            assert!(settled.reason.contains("certificate"), "{}", settled.reason);
            assert!(seen.try_recv().is_err());
        }
        world.test.assert_quiet().await;
    }
}

#[actix_rt::test]
async fn what_a_target_refuses_for_good_does_not_come_again_and_no_node_uses_anothers_rule() {
    let world = World::start(Settled::applied(), true).await;
    world.endpoints().await;
    let heard = Heard::default();
    let _here = heard.here();
    let (broken, mut at_broken, _one) = serve(None, 500).await;
    let (wrong, _at_wrong, _two) = serve(None, 422).await;
    let source = || json!({"topic": "t", "node_name": "edge-1"});
    for (name, at) in [("broken", broken), ("wrong", wrong)] {
        world.rule(name, ("eventbus", source()), ("rest", json!({"resource": format!("http://{at}/")}))).await;
        tokio::time::timeout(SOON, world.to_node.next()).await.unwrap();
    }
    let again = world.event("broken", "x").await;
    assert!(again.code == 503 && again.reason.contains("answered 500"), "{again:?}");
    assert_eq!(at_broken.recv().await.unwrap().1, "x");
    assert!(at_broken.try_recv().is_err(), "once");
    assert_eq!(world.event("wrong", "x").await.code, 422);
    assert_eq!(heard.take(), Vec::<String>::new(), "what a target answers is no refusal of the node");
    assert_eq!(world.event("none", "x").await.code, 404);
    let lines = heard.take();
    let told = ["UserMessage refused: ", "who=edge-1 what=default/none "];
    assert!(lines.len() == 1 && told.iter().all(|told| lines[0].contains(told)), "{lines:?}");
    let source = json!({"target_url": "http://a", "node_name": "edge-2"});
    world.rule("of-another", ("servicebus", source), ("rest", json!({"resource": format!("http://{wrong}/")}))).await;
    tokio::time::timeout(SOON, world.to_node.next()).await.unwrap();
    let call = ServiceCall { rule: Some(ObjectKey::new("default", "of-another")), body: Bytes::from("{}") };
    for (node, status) in [("edge-1", 404), ("edge-2", 422)] {
        let envelope = Envelope::new("servicebus", 0, Body::ServiceCall(call.clone()));
        let reply = world.test.ask(RouteCall { node: node.into(), envelope: Some(envelope) }).await;
        let code = match reply.result.unwrap() {
            call_reply::Result::ApiResponse(response) => response.status,
            call_reply::Result::Error(error) => error.code,
            other => panic!("{other:?}"),
        };
        assert_eq!(code, status, "{node}");
    }
    let lines = heard.take();
    let told = ["ServiceCall refused: ", "who=edge-1 what=default/of-another "];
    assert!(lines.len() == 1 && told.iter().all(|told| lines[0].contains(told)), "{lines:?}");
    world.test.assert_quiet().await;
}

/// CVE-2022-31078: what a URL answers.
#[actix_rt::test]
async fn an_endless_answer_of_a_url_is_given_up_at_its_limit() {
    let world = World::start(Settled::applied(), true).await;
    world.endpoints().await;
    let (address, mut written, _serving) = endless().await;
    let resource = json!({"resource": format!("http://{address}/")});
    for (name, source) in [
        ("event", ("eventbus", json!({"topic": "t", "node_name": "edge-1"}))),
        ("call", ("servicebus", json!({"target_url": "http://a", "node_name": "edge-1"}))),
    ] {
        world.rule(name, source, ("rest", resource.clone())).await;
        tokio::time::timeout(SOON, world.to_node.next()).await.unwrap();
    }
    let said = format!("its answer has more than {MAX_ANSWER} bytes");
    let settled = world.event("event", "x").await;
    assert!(settled.code == 503 && settled.reason.contains(&said), "{settled:?}");
    let call = ServiceCall { rule: Some(ObjectKey::new("default", "call")), body: Bytes::from("{}") };
    let envelope = Some(Envelope::new("servicebus", 0, Body::ServiceCall(call)));
    let reply = world.test.ask(RouteCall { node: "edge-1".into(), envelope }).await;
    let Some(call_reply::Result::Error(error)) = reply.result else { panic!("the answer was taken") };
    assert!(error.code == 502 && error.message.contains(&said), "{error:?}");
    for _ in 0..2 {
        let written = tokio::time::timeout(SOON, written.recv()).await.unwrap().unwrap();
        assert!((MAX_ANSWER - 0x10000..MAX_ANSWER + IN_SOCKETS).contains(&written), "{written} bytes");
    }
    world.test.assert_quiet().await;
}

/// A node that answers without an end, and how many bytes of each answer it could send. It is asked whether there is a
/// rule first.
fn endless_node() -> (Connection, mpsc::Receiver<usize>, [AbortOnDropHandle<()>; 2]) {
    let (cloud, mut wanted, running) = joined();
    let (sender, sent) = mpsc::channel(100);
    let node = tokio::task::spawn_local(async move {
        while let Some(Wanted { open, mut stream }) = wanted.recv().await {
            let sender = sender.clone();
            tokio::task::spawn_local(async move {
                stream.respond(kubeedge_proto::v1::StreamHead { status: 200, ..Default::default() });
                if open.path_and_query == "/" {
                    stream.write(Bytes::from(PROBED)).await.unwrap();
                    stream.finish();
                    return;
                }
                let mut bytes = 0;
                while stream.write(Bytes::from(vec![b'x'; 0x10000])).await.is_ok() {
                    bytes += 0x10000;
                }
                sender.send(bytes).await.unwrap();
            });
        }
    });
    (cloud, sent, [running, AbortOnDropHandle::new(node)])
}

/// CVE-2022-31078: what a service at a node answers.
#[actix_rt::test]
async fn an_endless_answer_of_a_node_is_given_up_at_its_limit() {
    let (cloud, mut sent, _running) = endless_node();
    let world = World::with(Settled::applied(), true, Some(cloud)).await;
    world.endpoints().await;
    // To who asked over REST: it sees that the answer broke off.
    world.rule("call", ("rest", json!({"path": "/call"})), ("servicebus", json!({"path": "/endless"}))).await;
    let (status, mut answer, _client) = tokio::time::timeout(SOON, async {
        loop {
            let (status, answer, client) = world.send("/edge-1/default/call", Some(TOKEN), chunked(0)).await;
            if status != 404 {
                return (status, answer, client);
            }
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
    assert_eq!(status, 200);
    let mut seen = 0;
    let broken = loop {
        match tokio::time::timeout(SOON, answer.frame()).await.unwrap() {
            Some(Ok(frame)) => seen += frame.into_data().map_or(0, |bytes| bytes.len()),
            end => break end,
        }
    };
    assert!(matches!(broken, Some(Err(_))), "it looks like a whole answer of {seen} bytes");
    assert!(seen <= MAX_BODY, "{seen} bytes");
    // And of a message of another node.
    let source = json!({"topic": "t", "node_name": "edge-1"});
    world.rule("up", ("eventbus", source), ("servicebus", json!({"path": "/endless"}))).await;
    tokio::time::timeout(SOON, world.to_node.next()).await.unwrap();
    let settled = world.event("up", "x").await;
    assert!(settled.code == 503 && settled.reason.contains(&format!("more than {MAX_BODY} bytes")), "{settled:?}");
    for _ in 0..2 {
        let sent = tokio::time::timeout(SOON, sent.recv()).await.unwrap().unwrap();
        assert!((MAX_BODY - 0x10000..MAX_BODY + 0x100000).contains(&sent), "{sent} bytes");
    }
    world.test.assert_quiet().await;
}

/// A body without a declared length ends where a declared one would have been refused, and before its own end.
#[actix_rt::test]
async fn a_chunked_request_is_refused_at_its_limit_and_audited() {
    let (cloud, mut wanted, _running) = joined();
    let _node = AbortOnDropHandle::new(tokio::task::spawn_local(async move {
        while let Some(Wanted { mut stream, open }) = wanted.recv().await {
            tokio::task::spawn_local(async move {
                if open.headers.contains_key("content-length") {
                    stream.respond(kubeedge_proto::v1::StreamHead { status: 200, ..Default::default() });
                    stream.write(Bytes::from(PROBED)).await.unwrap();
                    return stream.finish();
                }
                // Takes everything and waits for more.
                while let Ok(Some(_)) = stream.read().await {}
            });
        }
    }));
    let world = World::with(Settled::applied(), true, Some(cloud)).await;
    world.endpoints().await;
    world.rule("lamp", ("rest", json!({"path": "/lamp"})), ("eventbus", json!({"topic": "lamp"}))).await;
    world.rule("call", ("rest", json!({"path": "/call"})), ("servicebus", json!({"path": "/"}))).await;
    let heard = Heard::everywhere();
    for (path, limit, said) in [
        ("/edge-1/default/lamp", MAX_MESSAGE, format!("a message has at most {MAX_MESSAGE} bytes")),
        ("/edge-1/default/call", MAX_BODY, format!("the body has more than {MAX_BODY} bytes")),
    ] {
        assert_eq!(world.routed(path, "x").await.0, 200);
        let before = heard.count();
        let (status, answer, client) = world.send(path, Some(TOKEN), chunked(limit + 1)).await;
        let text = String::from_utf8(answer.collect().await.unwrap().to_bytes().to_vec()).unwrap();
        assert_eq!((status, text), (413, said.clone()));
        let lines = heard.after(before, &format!("who={} ", client.address));
        assert!(lines.len() == 1 && lines[0].contains(&said), "{lines:?}");
    }
    world.test.assert_quiet().await;
}

/// A ServiceBus, and the cloud's end of its streams.
struct Edge {
    test: TestSystem,
    cloud: Connection,
    _running: (AbortOnDropHandle<()>, AbortOnDropHandle<()>),
}

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

impl Edge {
    fn start(allow: Allow) -> Self {
        Self::listening((Ipv4Addr::LOCALHOST, 0).into(), allow)
    }

    fn listening(listen: SocketAddr, allow: Allow) -> Self {
        let config = ServiceBusConfig { listen, tls: None, within: Duration::from_secs(5), allow };
        let read = Recorder::<ReadObjects>::answering(|_| ObjectList { complete: true, ..ObjectList::default() });
        let call = Recorder::<CallCloud>::answering(|_| Default::default());
        let test = TestSystem::builder()
            .component(move |ports: &Ports| ServiceBus::new(config.clone(), ports))
            .records(&read)
            .records(&call)
            .announces::<ObjectsChanged>()
            .announces::<ObjectsReloaded>()
            .asks::<ServeService>()
            .start();
        let (cloud, mut wanted, running) = joined();
        let port = test.port::<ServeService>();
        let handing = tokio::task::spawn_local(async move {
            while let Some(request) = wanted.recv().await {
                port.tell(ServeService { request }).await.unwrap();
            }
        });
        Self { test, cloud, _running: (running, AbortOnDropHandle::new(handing)) }
    }

    async fn call(&self, service: &str, path: &str, body: &'static [u8]) -> (u32, String) {
        let headers = [("content-length".to_owned(), body.len().to_string())].into();
        let open = kubeedge_proto::v1::StreamOpen {
            method: "POST".into(),
            path_and_query: path.into(),
            service: service.into(),
            headers,
            ..Default::default()
        };
        let mut stream = self.cloud.open(open).unwrap();
        stream.write(Bytes::from_static(body)).await.unwrap();
        stream.finish();
        let head = stream.head().await.unwrap();
        let mut text = Vec::new();
        while let Some(bytes) = stream.read().await.unwrap() {
            text.extend_from_slice(&bytes);
        }
        (head.status, String::from_utf8(text).unwrap())
    }
}

/// `P-SERVICE-ALLOWED`
#[actix_rt::test]
async fn a_node_calls_only_what_its_configuration_allows() {
    let (address, mut seen, _serving) = serve(None, 201).await;
    let heard = Heard::default();
    let _here = heard.here();
    let edge = Edge::start(Allow::Loopback);
    assert_eq!(edge.call(&address.to_string(), "/a", b"x").await, (201, "x".into()));
    assert_eq!(heard.take(), Vec::<String>::new());
    assert_eq!(seen.recv().await.unwrap().0, "POST /a ");
    for (service, path, status) in [
        ("169.254.169.254:80", "/", 403),
        ("10.0.0.1:80", "/", 403),
        ("evil.example:80", "/", 403),
        ("127.0.0.1", "/", 400),
        (&*format!("{address}@evil.example:80"), "/", 400),
        (&*address.to_string(), "http://evil.example/", 400),
        (&*address.to_string(), "//evil.example/", 400),
        (&*address.to_string(), "/ HTTP/1.1\r\nHost: evil", 400),
    ] {
        let (code, text) = edge.call(service, path, b"").await;
        assert_eq!(code, status, "{service} {path}: {text}");
        let lines = heard.take();
        let told = "who=the cloud what=";
        let refused = format!("call of a service refused: {text}");
        assert!(lines.len() == 1 && lines[0].contains(told) && lines[0].contains(&refused), "{text}: {lines:?}");
    }
    assert!(seen.try_recv().is_err(), "nothing reached the service");
    edge.test.assert_quiet().await;

    let edge = Edge::start(Allow::parse(&["127.0.0.1:1"]).unwrap());
    assert_eq!(edge.call(&address.to_string(), "/a", b"x").await.0, 403, "a list names all there is");
    let (code, text) = edge.call("127.0.0.1:1", "/", b"").await;
    assert!(code == 502 && text.contains("cannot be reached"), "{code} {text}");
    edge.test.assert_quiet().await;
}

/// A line that this thread logs.
struct Told(mpsc::Sender<String>);

impl std::io::Write for Told {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        // Nobody asks for a line that there is no room for.
        let _ = self.0.try_send(String::from_utf8_lossy(bytes).into_owned());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[actix_rt::test]
async fn a_port_in_use_is_logged_with_its_setting_and_taken_when_it_is_free() {
    let (sender, mut told) = mpsc::channel(1000);
    let lines = tracing_subscriber::fmt().with_writer(move || Told(sender.clone())).with_ansi(false).finish();
    // With a single subscriber, a place that another thread logs at first would count as of no interest to anybody.
    let _another = tracing::Dispatch::new(tracing_subscriber::registry());
    let _logged = tracing::subscriber::set_default(lines);
    let mut says = async |words: &str| {
        loop {
            let line = tokio::time::timeout(SOON, told.recv()).await.expect(words).unwrap();
            if line.contains(words) {
                return line;
            }
        }
    };
    let holder = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let taken = holder.local_addr().unwrap();
    let edge = Edge::listening(taken, Allow::Loopback);
    // It listens for the sake of a rule.
    let rule = json!({"spec": {
        "source": "bus", "sourceResource": {"target_url": "http://orders.example/in", "node_name": "edge-1"},
        "target": "rest", "targetResource": {"resource": "http://127.0.0.1:1/orders"},
    }});
    let key = Some(ObjectKey::new("default", "orders"));
    let object = KubeObject { key: key.clone(), json: rule.to_string().into_bytes().into(), ..KubeObject::default() };
    let r#type = Some(kubeedge_proto::resource::rules());
    let change = ObjectsChanged { r#type, key, object: Some(object), ..ObjectsChanged::default() };
    edge.test.announce(change).await;
    let line = says("ServiceBus is not served").await;
    for part in [&taken.to_string(), "Address already in use", "modules.serviceBus.port chooses another port"] {
        assert!(line.contains(part), "{part}: {line}");
    }
    drop(holder);
    says("ServiceBus is served").await;
    TcpStream::connect(taken).await.unwrap();
    edge.test.assert_quiet().await;
}

#[actix_rt::test]
async fn an_endless_answer_of_a_service_is_given_up_at_its_limit_at_the_node() {
    let (address, mut written, _serving) = endless().await;
    let edge = Edge::start(Allow::Loopback);
    let open = kubeedge_proto::v1::StreamOpen {
        method: "GET".into(),
        path_and_query: "/".into(),
        service: address.to_string(),
        ..Default::default()
    };
    let mut stream = edge.cloud.open(open).unwrap();
    stream.finish();
    assert_eq!(stream.head().await.unwrap().status, 200);
    let mut seen = 0;
    let broken = loop {
        match tokio::time::timeout(SOON, stream.read()).await.unwrap() {
            Ok(Some(bytes)) => seen += bytes.len(),
            end => break end,
        }
    };
    let error = broken.expect_err("it looks like a whole answer").to_string();
    assert!(seen <= MAX_BODY, "{seen} bytes");
    let written = tokio::time::timeout(SOON, written.recv()).await.unwrap().unwrap();
    assert!((MAX_BODY - 0x10000..MAX_BODY + IN_SOCKETS).contains(&written), "{written} bytes, {error}");
    edge.test.assert_quiet().await;
}
