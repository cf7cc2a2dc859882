//! Joining: what the cloud refuses, and what the box is told.

use super::*;

#[actix_rt::test]
async fn enrolment_refuses_and_says_why() {
    let folder = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(&folder.path().join("pki"));
    let node: NodeName = "e1".parse().unwrap();
    let try_join = async |token: &JoinToken, node: &NodeName, name: &str| -> String {
        let error: JoinError = join(&cloud.enrolment, token, node, &folder.path().join(name)).await.unwrap_err();
        error.to_string()
    };

    let good = cloud.token(TokenRules::default()).await;
    let mut wrong = good.expose();
    let last = wrong.pop().unwrap();
    wrong.push(if last == 'a' { 'b' } else { 'a' });
    let text = try_join(&wrong.parse().unwrap(), &node, "wrong").await;
    assert!(text.contains("secret") || text.contains("token"), "{text}");

    let other = CertificateAuthority::load_or_create(&folder.path().join("other"), SystemTime::now()).unwrap();
    let foreign = JoinToken { ca_hash: other.ca_hash(), credential: good.credential.clone() };
    let text = try_join(&foreign, &node, "foreign").await;
    assert!(text.contains(&other.ca_hash().to_string()), "{text}");

    let yesterday = SystemTime::now() - Duration::from_secs(25 * 60 * 60);
    let short = cloud.tokens.create(cloud.authority.ca_hash(), TokenRules::default(), yesterday).await.unwrap();
    let text = try_join(&short, &node, "short").await;
    assert!(text.contains("expired"), "{text}");

    let bound = cloud.token(TokenRules { node: Some("e2".parse().unwrap()), ..TokenRules::default() }).await;
    let text = try_join(&bound, &node, "bound").await;
    assert!(text.contains("e2") || text.contains("e1"), "{text}");

    // And the good one is still good.
    let joined = join(&cloud.enrolment, &good, &node, &folder.path().join("good")).await.unwrap();
    assert_eq!(joined.identity.node(), &node);
    cloud.system.stop(SOON).await;
}

#[actix_rt::test]
async fn a_request_that_is_too_large_is_refused_before_it_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(&folder.path().join("pki"));
    let token = cloud.token(TokenRules::default()).await;
    let clock = FlooredClock::load(folder.path());
    let tls = kubeedge_actors::identity::joining_config(cloud.authority.ca_hash(), &[], &clock).unwrap();
    for (bytes, why) in [(20 * 1024, "the limit is 16384"), (1024 * 1024, "message length too large")] {
        let request = EnrolRequest { token: token.credential.expose(), csr_der: vec![0x30; bytes].into() };
        let error = link::client::enrol(&cloud.enrolment, None, &tls, request).await.unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    }
    // Neither spent the token.
    join(&cloud.enrolment, &token, &"e1".parse().unwrap(), &folder.path().join("e1")).await.unwrap();
    cloud.system.stop(SOON).await;
}
