//! Revoked nodes, and the grace of a certificate that has ended.

use std::{fs, sync::Arc, time::Duration};

use rustls::ServerConfig;

use super::{
    DAY, at, authority,
    handshakes::{CLOUD, refused, shake},
    joined, node, now,
};
use crate::identity::{
    ALPN_H2, CertificateAuthority, ClientAuth, IdentityError, NodeIdentity, NodeKey, NodeRequest, Registrar,
    Revocations, client_config, server_config,
};

const SECOND: Duration = Duration::from_secs(1);

struct Site {
    dir: tempfile::TempDir,
    ca: Arc<CertificateAuthority>,
    registrar: Registrar,
    edge: NodeIdentity,
}

fn site(revocations: Revocations) -> Site {
    let dir = tempfile::tempdir().unwrap();
    let ca = Arc::new(authority(&dir.path().join("ca")));
    let edge = joined(&ca, &dir.path().join("edge"), "edge-1");
    let registrar = Registrar::new(ca.clone(), revocations, 30 * DAY);
    Site { dir, ca, registrar, edge }
}

/// A server as it is at `late`.
fn server(ca: &CertificateAuthority, clients: ClientAuth, late: std::time::SystemTime) -> ServerConfig {
    let certificate = ca.issue_server(&[CLOUD.try_into().unwrap()], late).unwrap();
    server_config(certificate.chain(), certificate.key(), clients, &[ALPN_H2], at(late)).unwrap()
}

/// P-GRACE-ENDS
#[test]
fn an_ended_certificate_is_good_for_a_renewal_within_the_grace_period_and_for_nothing_else() {
    let site = site(Revocations::in_memory());
    let end = site.edge.expires();
    let shake_at = |clients: ClientAuth, late| {
        let client = client_config(&site.edge, &[ALPN_H2], at(late)).unwrap();
        shake(client, server(&site.ca, clients, late), CLOUD)
    };
    for late in [end + SECOND, end + DAY, end + 30 * DAY] {
        shake_at(site.registrar.enrolment_clients().unwrap(), late).unwrap();
        let error = refused(shake_at(site.registrar.link_clients().unwrap(), late));
        assert!(error.contains("expired"), "{error}");
    }
    let error = refused(shake_at(site.registrar.enrolment_clients().unwrap(), end + 30 * DAY + SECOND));
    assert!(error.contains("expired"), "{error}");
    // Grace is for certificates of this authority: another one's is refused, ended or not.
    let other = authority(&site.dir.path().join("other"));
    let stranger = joined(&other, &site.dir.path().join("stranger"), "edge-1");
    let mut stranger_trusts = rustls::RootCertStore::empty();
    stranger_trusts.add(site.ca.certificate().clone()).unwrap();
    for late in [now(), end + DAY] {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let client = rustls::ClientConfig::builder_with_details(provider, at(late))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(stranger_trusts.clone())
            .with_client_auth_cert(stranger.chain(), stranger.key())
            .unwrap();
        let error = refused(shake(client, server(&site.ca, site.registrar.enrolment_clients().unwrap(), late), CLOUD));
        assert!(error.contains("UnknownIssuer") || error.contains("BadSignature"), "{error}");
    }
}

/// P-REVOKED-STAYS-OUT
#[test]
fn what_a_revoked_node_had_is_refused_for_good() {
    let site = site(Revocations::in_memory());
    let (revocations, edge_1) = (site.registrar.revocations(), node("edge-1"));
    let links = |identity: &NodeIdentity| {
        let client = client_config(identity, &[ALPN_H2], at(now())).unwrap();
        shake(client, server(&site.ca, site.registrar.link_clients().unwrap(), now()), CLOUD).map(drop)
    };
    let other = joined(&site.ca, &site.dir.path().join("other"), "edge-2");
    links(&site.edge).unwrap();
    revocations.revoke(&edge_1, now() - SECOND).unwrap();
    assert!(links(&site.edge).unwrap_err().to_string().contains("Revoked"));
    links(&other).unwrap();

    // No certificate is signed for it, whoever vouches.
    let key = NodeKey::load_or_create(&site.dir.path().join("again")).unwrap();
    let request = NodeRequest::parse(&key.request(&edge_1).unwrap()).unwrap();
    let refused = site.registrar.sign(&request, now()).unwrap_err();
    assert!(matches!(refused, IdentityError::Revoked(_)), "{refused}");

    // Readmitted: the old one stays refused, although it would be valid; a new one, which begins after, is good.
    assert!(revocations.readmit(&edge_1).unwrap() && !revocations.readmit(&edge_1).unwrap());
    assert!(links(&site.edge).unwrap_err().to_string().contains("Revoked"));
    let again = key.accept(&site.registrar.sign(&request, now()).unwrap(), &site.ca.ca_hash(), now()).unwrap();
    assert_eq!(again.begins(), now(), "right after the second of the revocation, not five minutes before");
    links(&again).unwrap();
}

#[test]
fn the_list_outlives_a_restart_and_a_damaged_one_lets_nobody_in() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pki/revoked-nodes.json");
    let list = Revocations::load(&path).unwrap();
    list.revoke(&node("edge-1"), now()).unwrap();
    list.revoke(&node("edge-2"), now()).unwrap();
    assert!(list.readmit(&node("edge-2")).unwrap());
    let again = Revocations::load(&path).unwrap();
    assert_eq!(again.list(), list.list());
    assert!(again.may_have_one(&node("edge-1")).is_err());
    assert_eq!(again.may_have_one(&node("edge-2")).unwrap(), Some(now()));
    for damaged in ["", "[]", "{\"edge-1\": {}}", "{\"Edge_1\": {\"revokedAt\": 1}}"] {
        fs::write(&path, damaged).unwrap();
        let error = Revocations::load(&path).unwrap_err().to_string();
        assert!(error.contains("revoked-nodes.json"), "{error}");
    }
    // A revocation that is not on disk is none, and says so.
    fs::remove_file(&path).unwrap();
    let list = Revocations::load(&path).unwrap();
    fs::remove_dir_all(dir.path().join("pki")).unwrap();
    fs::write(dir.path().join("pki"), "a file").unwrap();
    assert!(list.revoke(&node("edge-1"), now()).unwrap_err().to_string().contains("revoked-nodes.json"));
    assert!(list.list().is_empty());
}

#[test]
fn the_list_holds_two_thousand_nodes_with_the_longest_names_and_is_read_again() {
    const LIMIT: usize = 2_000;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("revoked-nodes.json");
    let long =
        |n: usize| format!("n{n:04}.{}", ["a".repeat(61), "b".repeat(61), "c".repeat(61), "d".repeat(61)].join("."));
    assert_eq!(long(0).len(), 253);
    // As the list writes them; one after the other it would write four hundred megabytes.
    let entries = (1..LIMIT).map(|n| (long(n), serde_json::json!({"revokedAt": 1_700_000_000, "readmitted": false})));
    let entries: serde_json::Map<_, _> = entries.collect();
    fs::write(&path, serde_json::to_vec_pretty(&entries).unwrap()).unwrap();
    let list = Revocations::load(&path).unwrap();
    list.revoke(&node(&long(LIMIT)), now()).unwrap();
    let error = list.revoke(&node("one-more"), now()).unwrap_err().to_string();
    assert!(error.contains("2000 nodes"), "{error}");
    // Who is in the list is revoked again, and what is on disk is the same list.
    assert!(list.readmit(&node(&long(1))).unwrap());
    list.revoke(&node(&long(1)), now()).unwrap();
    let again = Revocations::load(&path).unwrap();
    assert_eq!(again.list().len(), LIMIT);
    assert_eq!(again.list(), list.list());
    assert!(again.may_have_one(&node("one-more")).is_ok() && again.may_have_one(&node(&long(1))).is_err());
}
