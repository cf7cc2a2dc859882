//! What CloudHub refuses is in the audit log, by node or by address, and what it grants is there as well.

use kubeedge_actors::audit::testing::Heard as Lines;

use super::*;

fn has(line: &str, texts: &[&str]) -> bool {
    texts.iter().all(|text| line.contains(text))
}

#[actix_rt::test]
async fn every_refusal_where_boxes_join_has_a_line_and_no_token_is_in_it() {
    let folder = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(&folder.path().join("pki"));
    let lines = Lines::default();
    let _here = lines.here();
    let node: NodeName = "e1".parse().unwrap();
    let try_join = async |token: &JoinToken| {
        let folder = folder.path().join(token.credential.id());
        join(&cloud.enrolment, token, &node, &folder).await
    };
    let one = async |texts: &[&str]| {
        lines.until(SOON, |lines| !lines.is_empty()).await;
        let taken = lines.take();
        assert!(taken.len() == 1 && has(&taken[0], texts), "{texts:?}: {taken:?}");
        taken
    };
    let mut all = Vec::new();

    let good = cloud.token(TokenRules::default()).await;
    let secret = good.credential.expose().rsplit_once('.').unwrap().1.to_owned();
    let stranger = ["what=e1 ", "who=127.0.0.1:", "enrolment refused"];
    let wrong = good.expose().replace(&secret, &"x".repeat(secret.len()));
    try_join(&wrong.parse().unwrap()).await.unwrap_err();
    all.extend(one(&[&stranger[..], &["has another secret"]].concat()).await);
    let bound = cloud.token(TokenRules { node: Some("e2".parse().unwrap()), ..TokenRules::default() }).await;
    try_join(&bound).await.unwrap_err();
    all.extend(one(&[&stranger[..], &["is for node e2, not for e1"]].concat()).await);
    let old = SystemTime::now() - Duration::from_secs(25 * 60 * 60);
    let old = cloud.tokens.create(cloud.authority.ca_hash(), TokenRules::default(), old).await.unwrap();
    try_join(&old).await.unwrap_err();
    all.extend(one(&[&stranger[..], &["expired"]].concat()).await);

    // No request for a certificate, and one that is too large.
    let clock = FlooredClock::load(folder.path());
    let tls = kubeedge_actors::identity::joining_config(cloud.authority.ca_hash(), &[], &clock).unwrap();
    for bytes in [10, 20 * 1024] {
        let request = EnrolRequest { token: good.credential.expose(), csr_der: vec![0x30; bytes].into() };
        link::client::enrol(&cloud.enrolment, None, &tls, request).await.unwrap_err();
        all.extend(one(&["what=certificate request", "who=127.0.0.1:", "enrolment refused"]).await);
    }
    // A renewal without a certificate.
    let request = RenewRequest { csr_der: vec![0x30; 10].into() };
    link::client::renew(&cloud.enrolment, None, &tls, request).await.unwrap_err();
    all.extend(one(&["renewal refused", "who=127.0.0.1:"]).await);

    // What is granted has a line as well; then the token is used up.
    try_join(&good).await.unwrap();
    all.extend(one(&["a node was enrolled", "node=e1"]).await);
    join(&cloud.enrolment, &good, &"e3".parse().unwrap(), &folder.path().join("third")).await.unwrap_err();
    all.extend(one(&["what=e3 ", "was already used by node e1"]).await);

    // A revoked node joins with no token.
    cloud.registrar.revocations().revoke(&node, SystemTime::now()).unwrap();
    all.extend(one(&["revoked", "node=e1"]).await);
    let more = cloud.token(TokenRules::default()).await;
    try_join(&more).await.unwrap_err();
    all.extend(one(&["what=e1 ", "who=127.0.0.1:", "node e1 was revoked"]).await);
    for token in [&good, &bound, &old, &more] {
        let credential = token.credential.expose();
        let (_, secret) = credential.rsplit_once('.').unwrap();
        assert!(all.iter().all(|line| !line.contains(secret)), "{all:?}");
    }
    cloud.system.stop(SOON).await;
}

#[actix_rt::test]
async fn every_refusal_of_a_connection_and_of_a_session_has_a_line() {
    let folder = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(&folder.path().join("pki"));
    let mut listener = cloud.script.listen();
    let identity = cloud.join("e1", &folder.path().join("e1")).await;
    let lines = Lines::default();
    let _here = lines.here();
    let one = async |texts: &[&str]| {
        lines.until(SOON, |lines| lines.iter().any(|line| has(line, texts))).await;
        lines.take();
    };

    // TLS: a certificate of another authority, for one that exists here.
    let other = CertificateAuthority::load_or_create(&folder.path().join("other"), SystemTime::now()).unwrap();
    let foreign = other.issue_client("system:node:e1", "system:nodes", SystemTime::now()).unwrap();
    let issued = |own: &kubeedge_actors::identity::IssuedCertificate| {
        let ca = cloud.authority.certificate().clone();
        kubeedge_actors::identity::issued_client_config(ca, own, kubeedge_actors::identity::system_clock()).unwrap()
    };
    link::client::connect(&cloud.link, None, &issued(&foreign)).await.unwrap_err();
    one(&["connection to the link refused", "who=127.0.0.1:", "of another CA than ours"]).await;
    // One of this authority that names no node.
    let nobody = cloud.authority.issue_client("somebody", "system:nodes", SystemTime::now()).unwrap();
    link::client::connect(&cloud.link, None, &issued(&nobody)).await.unwrap_err();
    one(&["connection to the link refused", "who=127.0.0.1:", "somebody"]).await;

    // A second box under the name of one that is connected.
    let first = Edge::start(&identity, &cloud.link, &folder.path().join("store")).await;
    heard(&mut listener, connected).await;
    assert_eq!(lines.take(), Vec::<String>::new());
    let second = Edge::start(&identity, &cloud.link, &folder.path().join("another-store")).await;
    one(&["session refused", "who=e1 ", "what=hello", "another box holds the name e1"]).await;
    second.stop().await;

    // Revoked while it is connected; then its certificate is refused in the handshake.
    cloud.registrar.revocations().revoke(&"e1".parse().unwrap(), SystemTime::now()).unwrap();
    one(&["session refused", "who=e1 ", "what=standing session", "was revoked"]).await;
    heard(&mut listener, disconnected).await;
    first.stop().await;
    let credentials = NodeCredentials::new(identity, FlooredClock::load(folder.path())).unwrap();
    link::client::connect(&cloud.link, None, &credentials.client_config(&[]).unwrap()).await.unwrap_err();
    one(&["connection to the link refused", "who=127.0.0.1:", "Revoked"]).await;
    cloud.system.stop(SOON).await;
}
