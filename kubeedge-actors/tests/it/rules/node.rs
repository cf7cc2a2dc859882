//! ServiceBus: what of the node it calls, its listener, and its limits.

use super::*;

/// A ServiceBus, and the cloud's end of its streams.
struct Edge {
    test: TestSystem,
    cloud: Connection,
    _running: (AbortOnDropHandle<()>, AbortOnDropHandle<()>),
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
