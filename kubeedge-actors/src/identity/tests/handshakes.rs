//! Real TLS handshakes, in memory.

use std::{io::Cursor, sync::Arc};

use kubeedge_proto::NodeName;
use rustls::{ClientConfig, ClientConnection, Error, ServerConfig, ServerConnection, pki_types::ServerName};

use super::{DAY, MINUTE, at, authority, joined, now};
use crate::identity::{
    ALPN_H2, CaHash, CertificateAuthority, ClientAuth, IssuedCertificate, NodeIdentity, client_config, peer_node_name,
    peer_user, pinned_config, server_config,
};

pub(super) const CLOUD: &str = "cloud.example";

/// Runs a handshake; on success the client's certificate as the server saw it.
pub(super) fn shake(client: ClientConfig, server: ServerConfig, name: &str) -> Result<ServerConnection, Error> {
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let mut client = ClientConnection::new(Arc::new(client), name)?;
    let mut server = ServerConnection::new(Arc::new(server))?;
    while client.is_handshaking() || server.is_handshaking() || client.wants_write() || server.wants_write() {
        let mut sent = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut sent).unwrap();
        }
        let mut rest = Cursor::new(sent);
        while (rest.position() as usize) < rest.get_ref().len() {
            server.read_tls(&mut rest).unwrap();
            server.process_new_packets()?;
        }
        let mut sent = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut sent).unwrap();
        }
        let mut rest = Cursor::new(sent);
        while (rest.position() as usize) < rest.get_ref().len() {
            client.read_tls(&mut rest).unwrap();
            client.process_new_packets()?;
        }
    }
    Ok(server)
}

struct Site {
    _dir: tempfile::TempDir,
    ca: CertificateAuthority,
    other: CertificateAuthority,
    edge: NodeIdentity,
    stranger: NodeIdentity,
}

fn site() -> Site {
    let dir = tempfile::tempdir().unwrap();
    let ca = authority(&dir.path().join("ca"));
    let other = authority(&dir.path().join("other"));
    let edge = joined(&ca, &dir.path().join("edge"), "edge-1");
    let stranger = joined(&other, &dir.path().join("stranger"), "edge-1");
    Site { _dir: dir, ca, other, edge, stranger }
}

fn issued(ca: &CertificateAuthority) -> IssuedCertificate {
    ca.issue_server(&[CLOUD.try_into().unwrap(), "10.0.0.7".try_into().unwrap()], now()).unwrap()
}

fn server(ca: &CertificateAuthority, clients: ClientAuth) -> ServerConfig {
    let certificate = issued(ca);
    server_config(certificate.chain(), certificate.key(), clients, &[ALPN_H2], at(now())).unwrap()
}

fn required(ca: &CertificateAuthority) -> ClientAuth {
    ClientAuth::Required(ca.certificate().clone())
}

fn link(identity: &NodeIdentity) -> ClientConfig {
    client_config(identity, &[ALPN_H2], at(now())).unwrap()
}

fn pinned(hash: CaHash) -> ClientConfig {
    pinned_config(hash, &[ALPN_H2], at(now())).unwrap()
}

pub(super) fn refused(result: Result<ServerConnection, Error>) -> String {
    result.expect_err("the handshake has to fail").to_string()
}

#[test]
fn the_link_knows_the_node_from_its_certificate() {
    let site = site();
    for name in [CLOUD, "10.0.0.7"] {
        let server = shake(link(&site.edge), server(&site.ca, required(&site.ca)), name).unwrap();
        assert_eq!(server.alpn_protocol(), Some(ALPN_H2));
        assert_eq!(peer_node_name(server.peer_certificates().unwrap()).unwrap(), "edge-1".parse::<NodeName>().unwrap());
    }
}

#[test]
fn the_link_works_with_tls_1_2_and_1_3() {
    let site = site();
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(site.ca.certificate().clone()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let client = ClientConfig::builder_with_details(provider, at(now()))
            .with_protocol_versions(&[version])
            .unwrap()
            .with_root_certificates(roots)
            .with_client_auth_cert(site.edge.chain(), site.edge.key())
            .unwrap();
        let server = shake(client, server(&site.ca, required(&site.ca)), CLOUD).unwrap();
        assert_eq!(server.protocol_version(), Some(version.version));
    }
}

#[test]
fn enrolment_trusts_the_pinned_ca_and_needs_no_certificate_of_its_own() {
    let site = site();
    for clients in [ClientAuth::None, ClientAuth::Optional(site.ca.certificate().clone())] {
        let server = shake(pinned(site.ca.ca_hash()), server(&site.ca, clients), CLOUD).unwrap();
        assert!(server.peer_certificates().is_none());
    }
    let error = refused(shake(pinned(site.ca.ca_hash()), server(&site.ca, required(&site.ca)), CLOUD));
    assert!(error.contains("no certificates"), "{error}");
}

#[test]
fn a_wrong_pin_names_the_hash_that_was_expected_and_those_presented() {
    let site = site();
    let error = refused(shake(pinned(site.other.ca_hash()), server(&site.ca, ClientAuth::None), CLOUD));
    assert!(error.contains(&site.other.ca_hash().to_string()), "{error}");
    assert!(error.contains(&site.ca.ca_hash().to_string()), "{error}");
}

#[test]
fn a_server_that_only_shows_the_pinned_ca_without_being_signed_by_it_is_refused() {
    let site = site();
    let certificate = issued(&site.other);
    let chain = vec![certificate.chain()[0].clone(), site.ca.certificate().clone()];
    let server = server_config(chain, certificate.key(), ClientAuth::None, &[ALPN_H2], at(now())).unwrap();
    let error = refused(shake(pinned(site.ca.ca_hash()), server, CLOUD));
    assert!(error.contains("UnknownIssuer") || error.contains("BadSignature"), "{error}");
}

#[test]
fn the_servers_name_counts_for_the_link_and_for_enrolment() {
    let site = site();
    for client in [link(&site.edge), pinned(site.ca.ca_hash())] {
        let clients = ClientAuth::Optional(site.ca.certificate().clone());
        let error = refused(shake(client, server(&site.ca, clients), "other.example"));
        assert!(error.contains("not valid for name"), "{error}");
    }
}

#[test]
fn an_expired_server_is_refused_by_the_link_and_by_enrolment() {
    let site = site();
    for late in [now() + 366 * DAY, now() - 6 * MINUTE] {
        let clients = [
            client_config(&site.edge, &[ALPN_H2], at(late)).unwrap(),
            pinned_config(site.ca.ca_hash(), &[ALPN_H2], at(late)).unwrap(),
        ];
        for client in clients {
            let error = refused(shake(client, server(&site.ca, ClientAuth::None), CLOUD));
            assert!(error.contains("expired") || error.contains("not valid yet"), "{error}");
        }
    }
}

#[test]
fn an_expired_node_is_refused_by_the_server() {
    let site = site();
    let certificate = issued(&site.ca);
    let late = at(now() + 366 * DAY);
    let server = server_config(certificate.chain(), certificate.key(), required(&site.ca), &[ALPN_H2], late).unwrap();
    let error = refused(shake(link(&site.edge), server, CLOUD));
    assert!(error.contains("expired"), "{error}");
}

#[test]
fn a_node_of_another_ca_is_refused_even_where_certificates_are_optional() {
    let site = site();
    for clients in [required(&site.ca), ClientAuth::Optional(site.ca.certificate().clone())] {
        // It trusts this server, and presents its own certificate.
        let mut roots = rustls::RootCertStore::empty();
        roots.add(site.ca.certificate().clone()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let client = ClientConfig::builder_with_details(provider, at(now()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_client_auth_cert(site.stranger.chain(), site.stranger.key())
            .unwrap();
        let error = refused(shake(client, server(&site.ca, clients), CLOUD));
        assert!(error.contains("UnknownIssuer") || error.contains("BadSignature"), "{error}");
    }
    let error = refused(shake(link(&site.stranger), server(&site.ca, required(&site.ca)), CLOUD));
    assert!(error.contains("UnknownIssuer") || error.contains("BadSignature"), "{error}");
}

#[test]
fn a_node_cannot_pose_as_the_cloud() {
    let site = site();
    let mut chain = site.edge.chain();
    chain.push(site.ca.certificate().clone());
    for client in [link(&site.edge), pinned(site.ca.ca_hash())] {
        let posing = server_config(chain.clone(), site.edge.key(), ClientAuth::None, &[ALPN_H2], at(now())).unwrap();
        let error = refused(shake(client, posing, "edge-1"));
        assert!(error.contains("invalid peer certificate"), "{error}");
    }
}

#[test]
fn a_component_is_a_user_and_no_node() {
    let site = site();
    let admin = site.ca.issue_client("kubernetes-admin", "system:masters", now()).unwrap();
    let chain = admin.chain();
    assert_eq!(peer_user(&chain).unwrap(), ("kubernetes-admin".to_owned(), vec!["system:masters".to_owned()]));
    assert!(peer_node_name(&chain).unwrap_err().to_string().contains("kubernetes-admin"));
    assert!(peer_node_name(&[]).is_err());
    assert_eq!(peer_user(&site.edge.chain()).unwrap().0, "system:node:edge-1");
}
