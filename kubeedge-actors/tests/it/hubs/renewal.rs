//! Certificates that end: renewed over the standing link, by proof of the old key, or not at all.

use std::os::unix::fs::PermissionsExt;

use super::*;

/// Certificates that live for seconds, of an authority in `folder`.
fn short_lived(folder: &Path, life: Duration, grace: Duration) -> Cloud {
    let authority = CertificateAuthority::load_or_create(folder, SystemTime::now()).unwrap();
    Cloud::of(authority.with_node_life(life), grace)
}

fn credentials(identity: &NodeIdentity) -> NodeCredentials {
    let identity = NodeIdentity::load(identity.dir()).unwrap().unwrap();
    NodeCredentials::new(identity, FlooredClock::load(&std::env::temp_dir().join("no-such-folder"))).unwrap()
}

async fn edge(cloud: &Cloud, credentials: &NodeCredentials, store: &Path) -> Edge {
    let renewal = Renewal { credentials: credentials.clone(), enrolment: Some(cloud.enrolment.clone()) };
    Edge::renewing(renewal, &cloud.link, store, Bounds::default(), None).await
}

/// The state of something that others change, awaited.
async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let wait = async {
        while !done() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(SOON, wait).await.unwrap_or_else(|_| panic!("in time: {what}"));
}

/// Whether a call goes through, over the session that is there.
async fn call(edge: &Edge) -> CallReply {
    let call: Port<CallCloud> = edge.system.port();
    let body = envelope::Body::RegisterNode(RegisterNode { node_json: "{}".into() });
    call.ask(CallCloud { envelope: Some(Envelope::new("test", 0, body)) }, SOON).await.unwrap()
}

#[actix_rt::test]
async fn a_certificate_is_renewed_again_and_again_and_the_session_stays() {
    let folder = tempfile::tempdir().unwrap();
    let cloud = short_lived(&folder.path().join("pki"), Duration::from_secs(5), Duration::ZERO);
    let mut listener = cloud.script.listen();
    let identity = cloud.join("e1", &folder.path().join("e1")).await;
    let credentials = credentials(&identity);
    let edge = edge(&cloud, &credentials, &folder.path().join("store")).await;
    heard(&mut listener, connected).await;

    // Past the end of the first certificate, and of the second.
    let key = std::fs::read(identity.dir().join("certs/server.key")).unwrap();
    let far = identity.expires() + Duration::from_secs(5);
    until("the certificate is renewed", || credentials.expires() > far).await;
    until("the first ones have ended", || SystemTime::now() > identity.expires() + Duration::from_secs(1)).await;
    assert_eq!(call(&edge).await, CallReply::error(418, "Teapot", "e1"));

    // The session is the first one: nobody heard of its end.
    while let Ok(heard) = listener.try_recv() {
        assert!(!matches!(heard, Heard::Session { .. }), "{heard:?}");
    }
    // And what is on disk is what is in use: a new key, for its owner only, and nothing left lying about.
    let kept = NodeIdentity::load(identity.dir()).unwrap().unwrap();
    assert!(kept.expires() > far);
    let path = identity.dir().join("certs/server.key");
    assert_ne!(std::fs::read(&path).unwrap(), key);
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(!identity.dir().join("certs/server.key.next").exists());
    edge.stop().await;
    cloud.system.stop(SOON).await;
}

#[actix_rt::test]
async fn a_session_ends_with_a_certificate_that_nobody_renews() {
    let folder = tempfile::tempdir().unwrap();
    let cloud = short_lived(&folder.path().join("pki"), Duration::from_secs(3), Duration::ZERO);
    let mut listener = cloud.script.listen();
    let identity = cloud.join("e1", &folder.path().join("e1")).await;
    let credentials = credentials(&identity);
    let store = Store::open(&folder.path().join("store"), Options::default()).unwrap().store;
    let tables = Tables::open(store.clone()).await.unwrap();
    let config = EdgeHubConfig {
        address: cloud.link.clone(),
        tls: Arc::new(credentials.client_config(&[]).unwrap()),
        link: link::Config::default(),
        store: store.clone(),
        outbox: Bounds::default(),
        renewal: None,
    };
    let system = System::builder("edge")
        .component(move |ports: &Ports| MetaManager::new(tables.clone(), ports))
        .component(move |ports: &Ports| EdgeHub::new(config.clone(), ports))
        .start()
        .unwrap();
    heard(&mut listener, connected).await;
    heard(&mut listener, |heard| matches!(heard, Heard::Session { connected: false })).await;
    assert!(SystemTime::now() >= identity.expires());
    system.stop(SOON).await;
    store.close().await.unwrap();
    cloud.system.stop(SOON).await;
}

#[actix_rt::test]
async fn a_node_that_was_away_past_its_end_comes_back_within_the_grace_period_and_not_after() {
    let folder = tempfile::tempdir().unwrap();
    let pki = folder.path().join("pki");
    let cloud = short_lived(&pki, Duration::from_secs(2), Duration::from_secs(600));
    let mut listener = cloud.script.listen();
    let identity = cloud.join("e1", &folder.path().join("e1")).await;
    let late = cloud.join("e2", &folder.path().join("e2")).await;
    until("both have ended", || SystemTime::now() > late.expires() + Duration::from_secs(2)).await;

    // Within: it comes back by proof of its key, and goes on renewing over the link.
    let away = credentials(&identity);
    assert!(away.has_expired());
    let edge = edge(&cloud, &away, &folder.path().join("store")).await;
    heard(&mut listener, connected).await;
    assert!(!away.has_expired() && away.expires() > identity.expires());
    edge.stop().await;
    cloud.system.stop(SOON).await;

    // After: it is told what to do.
    let authority = CertificateAuthority::load_or_create(&pki, SystemTime::now()).unwrap();
    let strict = Cloud::of(authority, Duration::from_secs(1));
    let error = renew_by_proof(&strict, &late).await;
    assert!(error.contains("it has expired"), "{error}");
    strict.system.stop(SOON).await;
}

/// Asks where boxes join with the certificate of `identity`; what it is told.
async fn renew_by_proof(cloud: &Cloud, identity: &NodeIdentity) -> String {
    let credentials = credentials(identity);
    let tls = credentials.client_config(&[]).unwrap();
    let request = RenewRequest { csr_der: credentials.request().unwrap().into() };
    match link::client::renew(&cloud.enrolment, None, &tls, request).await {
        Ok(answer) => answer.certificate_chain_pem,
        Err(error) => error.to_string(),
    }
}

#[actix_rt::test]
async fn a_renewal_is_for_the_node_of_the_connection_only() {
    let folder = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(&folder.path().join("pki"));
    let mut listener = cloud.script.listen();
    let identity = cloud.join("e1", &folder.path().join("e1")).await;
    let other = cloud.join("e2", &folder.path().join("e2")).await;
    let own = credentials(&identity);
    let foreign = credentials(&other).request().unwrap();

    // Where boxes join.
    let tls = own.client_config(&[]).unwrap();
    let request = RenewRequest { csr_der: foreign.clone().into() };
    let error = link::client::renew(&cloud.enrolment, None, &tls, request).await.unwrap_err().to_string();
    assert!(error.contains("certificate request for node e2, only e1 is allowed here"), "{error}");
    // Without a certificate nobody is renewed.
    let stranger = kubeedge_actors::identity::joining_config(cloud.authority.ca_hash(), &[], own.clock()).unwrap();
    let request = RenewRequest { csr_der: foreign.clone().into() };
    let error = link::client::renew(&cloud.enrolment, None, &stranger, request).await.unwrap_err().to_string();
    assert!(error.contains("no certificate was presented"), "{error}");

    // Over the link.
    let edge = edge(&cloud, &own, &folder.path().join("store")).await;
    heard(&mut listener, connected).await;
    while call(&edge).await != CallReply::error(418, "Teapot", "e1") {}
    let call: Port<CallCloud> = edge.system.port();
    let body = envelope::Body::SignCertificate(SignCertificate { csr_der: foreign.into() });
    let reply = call.ask(CallCloud { envelope: Some(Envelope::new("test", 0, body)) }, SOON).await.unwrap();
    let Some(call_reply::Result::Error(error)) = reply.result else { panic!("e1 got the certificate of e2") };
    assert_eq!(error.code, 403);
    assert!(error.message.contains("only e1 is allowed"), "{}", error.message);
    edge.stop().await;
    cloud.system.stop(SOON).await;
}

#[actix_rt::test]
async fn a_revoked_node_is_sent_away_refused_and_comes_back_only_with_a_new_certificate() {
    let folder = tempfile::tempdir().unwrap();
    let cloud = Cloud::of(
        CertificateAuthority::load_or_create(&folder.path().join("pki"), SystemTime::now()).unwrap(),
        Duration::from_secs(600),
    );
    let mut listener = cloud.script.listen();
    let identity = cloud.join("e1", &folder.path().join("e1")).await;
    let own = credentials(&identity);
    let edge = edge(&cloud, &own, &folder.path().join("store")).await;
    heard(&mut listener, connected).await;

    let node: NodeName = "e1".parse().unwrap();
    let revocations = cloud.registrar.revocations();
    revocations.revoke(&node, SystemTime::now()).unwrap();
    heard(&mut listener, |heard| matches!(heard, Heard::Session { connected: false })).await;
    edge.stop().await;

    // Neither its certificate nor a token lets it in, nor is it renewed.
    let refused = link::client::connect(&cloud.link, None, &own.client_config(&[]).unwrap()).await.unwrap_err();
    assert!(refused.to_string().contains("it was revoked"), "{refused}");
    let refused = renew_by_proof(&cloud, &identity).await;
    assert!(refused.contains("it was revoked"), "{refused}");
    let token = cloud.token(TokenRules { reusable: true, ..TokenRules::default() }).await;
    let refused = join(&cloud.enrolment, &token, &node, &folder.path().join("again")).await.unwrap_err().to_string();
    assert!(refused.contains("node e1 was revoked"), "{refused}");

    // Readmitted it may join; what it had before stays refused.
    assert!(revocations.readmit(&node).unwrap());
    let at = revocations.list()[0].at;
    until("a second has passed", || SystemTime::now() > at + Duration::from_secs(1)).await;
    let refused = link::client::connect(&cloud.link, None, &own.client_config(&[]).unwrap()).await.unwrap_err();
    assert!(refused.to_string().contains("it was revoked"), "{refused}");
    let joined = join(&cloud.enrolment, &token, &node, &folder.path().join("again")).await.unwrap();
    let again = credentials(&joined.identity);
    let edge = super::renewal::edge(&cloud, &again, &folder.path().join("again-store")).await;
    heard(&mut listener, connected).await;
    edge.stop().await;
    cloud.system.stop(SOON).await;
}

#[actix_rt::test]
async fn the_servers_certificate_is_renewed_while_sessions_stand() {
    let folder = tempfile::tempdir().unwrap();
    let authority = CertificateAuthority::load_or_create(&folder.path().join("pki"), SystemTime::now()).unwrap();
    let authority = Arc::new(authority.with_server_life(Duration::from_secs(3)));
    let names = vec!["127.0.0.1".try_into().unwrap()];
    let server = ServerCredentials::new(authority.clone(), names, SystemTime::now()).unwrap();
    let registrar = Registrar::new(authority.clone(), Revocations::in_memory(), Duration::ZERO);
    let tls = Arc::new(server.server_config(registrar.link_clients().unwrap(), &[]).unwrap());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (accepted, mut connections) = mpsc::channel::<link::server::Accepted>(4);
    let identify: link::server::Identify =
        Arc::new(|chain| kubeedge_actors::identity::peer_node_name(chain).map_err(|error| error.to_string()));
    tokio::spawn(link::server::serve_link(listener, tls, identify, accepted, link::server::Limits::default()));

    let key = kubeedge_actors::identity::NodeKey::load_or_create(folder.path()).unwrap();
    let request = kubeedge_actors::identity::NodeRequest::parse(&key.request(&"e1".parse().unwrap()).unwrap()).unwrap();
    let chain = registrar.sign(&request, SystemTime::now()).unwrap();
    let identity = key.accept(&chain, &authority.ca_hash(), SystemTime::now()).unwrap();
    let own = credentials(&identity);
    let first = link::client::connect(&address, None, &own.client_config(&[]).unwrap()).await.unwrap();
    let standing = connections.recv().await.unwrap();
    let ends = SystemTime::now() + Duration::from_secs(4);
    assert!(!server.refresh(SystemTime::now()).unwrap(), "nothing is due yet");
    until("the first certificate has ended", || SystemTime::now() > ends).await;
    let late = link::client::connect(&address, None, &own.client_config(&[]).unwrap()).await.unwrap_err();
    assert!(late.to_string().contains("expired"), "{late}");
    assert!(server.refresh(SystemTime::now()).unwrap());
    link::client::connect(&address, None, &own.client_config(&[]).unwrap()).await.unwrap();

    // The first connection has not noticed.
    standing
        .sink
        .send(Frame { frame: Some(frame::Frame::Heartbeat(Heartbeat { nonce: 7, ..Heartbeat::default() })) })
        .unwrap();
    let (_sink, mut stream) = first;
    let frame = tokio::time::timeout(SOON, stream.next()).await.unwrap().unwrap().unwrap();
    assert!(matches!(frame.frame, Some(frame::Frame::Heartbeat(Heartbeat { nonce: 7, .. }))));
}
