//! Router: its REST server, the URLs that it calls for nodes, and its limits.

use super::*;

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
