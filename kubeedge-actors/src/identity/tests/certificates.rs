//! The authority, requests, and the files on both sides.

use std::{fs, os::unix::fs::PermissionsExt, path::Path, time::Duration};

use proptest::prelude::*;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    PKCS_ECDSA_P256_SHA256, PKCS_ED25519, SignatureAlgorithm,
};
use rustls::pki_types::{CertificateDer, pem::PemObject};
use x509_parser::{
    certification_request::X509CertificationRequest,
    prelude::{FromDer, X509Certificate},
};

use super::{DAY, MINUTE, authority, joined, node, now};
use crate::identity::{CaHash, CertificateAuthority, NodeIdentity, NodeKey, NodeRequest, NotANode, RequestError};

fn request(fill: impl Fn(&mut CertificateParams), algorithm: &'static SignatureAlgorithm) -> Vec<u8> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    fill(&mut params);
    params.serialize_request(&KeyPair::generate_for(algorithm).unwrap()).unwrap().der().to_vec()
}

fn names(common_name: &'static str, organization: &'static str) -> impl Fn(&mut CertificateParams) {
    move |params| {
        params.distinguished_name.push(DnType::CommonName, common_name);
        params.distinguished_name.push(DnType::OrganizationName, organization);
    }
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn an_authority_is_made_once_and_loaded_after() {
    let dir = tempfile::tempdir().unwrap();
    let made = authority(dir.path());
    let loaded = CertificateAuthority::load_or_create(dir.path(), now() + 50 * DAY).unwrap();
    assert_eq!(made.ca_hash(), loaded.ca_hash());
    assert_eq!(mode(&dir.path().join("rootCA.key")), 0o600);
    let (_, parsed) = X509Certificate::from_der(made.certificate()).unwrap();
    assert_eq!(parsed.subject().to_string(), "CN=KubeEdge");
    assert!(parsed.is_ca());
    parsed.verify_signature(None).unwrap();
    let pem = CertificateDer::from_pem_slice(made.certificate_pem().as_bytes()).unwrap();
    assert_eq!(pem, *made.certificate());
    assert_eq!(pem, CertificateDer::from_pem_file(dir.path().join("rootCA.crt")).unwrap());
}

#[test]
fn an_authority_is_never_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let made = authority(dir.path());
    let key = fs::read(dir.path().join("rootCA.key")).unwrap();

    fs::remove_file(dir.path().join("rootCA.key")).unwrap();
    let error = CertificateAuthority::load_or_create(dir.path(), now()).unwrap_err().to_string();
    assert!(error.contains("rootCA.key"), "{error}");

    fs::write(dir.path().join("rootCA.key"), KeyPair::generate().unwrap().serialize_pem()).unwrap();
    let error = CertificateAuthority::load_or_create(dir.path(), now()).unwrap_err().to_string();
    assert!(error.contains("does not belong"), "{error}");

    for nonsense in ["", "nonsense", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"] {
        fs::write(dir.path().join("rootCA.key"), nonsense).unwrap();
        let error = CertificateAuthority::load_or_create(dir.path(), now()).unwrap_err().to_string();
        assert!(error.contains("rootCA.key"), "{error}");
    }
    fs::write(dir.path().join("rootCA.key"), &key).unwrap();
    assert_eq!(authority(dir.path()).ca_hash(), made.ca_hash());
}

#[test]
fn a_first_start_that_was_cut_off_is_finished_with_the_same_key() {
    let dir = tempfile::tempdir().unwrap();
    let before = authority(dir.path());
    let edge = joined(&before, &dir.path().join("edge"), "edge-1");
    fs::remove_file(dir.path().join("rootCA.crt")).unwrap();
    let after = authority(dir.path());
    let (_, ca) = X509Certificate::from_der(after.certificate()).unwrap();
    let chain = edge.chain();
    let (_, leaf) = X509Certificate::from_der(&chain[0]).unwrap();
    leaf.verify_signature(Some(ca.public_key())).unwrap();
}

#[test]
fn a_key_that_others_could_read_is_closed() {
    let dir = tempfile::tempdir().unwrap();
    authority(dir.path());
    fs::set_permissions(dir.path().join("rootCA.key"), fs::Permissions::from_mode(0o644)).unwrap();
    authority(dir.path());
    assert_eq!(mode(&dir.path().join("rootCA.key")), 0o600);
}

/// Go's KubeEdge writes SEC1 keys. Made for this test by `openssl ecparam -genkey -noout -name prime256v1`.
#[test]
fn a_key_of_go_s_kubeedge_is_read() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("rootCA.key"), include_str!("sec1.pem")).unwrap();
    let made = authority(dir.path());
    assert_eq!(made.ca_hash(), authority(dir.path()).ca_hash());
    joined(&made, &dir.path().join("edge"), "edge-1");
}

#[test]
fn a_node_s_certificate_says_what_the_cloud_decides_and_not_what_was_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let ca = authority(dir.path());
    let greedy = request(
        |params| {
            names("system:node:edge-1", "system:nodes")(params);
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::Any];
            params.subject_alt_names = vec![rcgen::SanType::DnsName("cloud.example".try_into().unwrap())];
        },
        &PKCS_ECDSA_P256_SHA256,
    );
    let pem = ca.sign_node_csr(&greedy, &node("edge-1"), now()).unwrap();
    let chain: Vec<_> = CertificateDer::pem_slice_iter(pem.as_bytes()).map(Result::unwrap).collect();
    assert_eq!(chain[1], *ca.certificate());
    let (_, leaf) = X509Certificate::from_der(&chain[0]).unwrap();
    assert!(!leaf.is_ca());
    assert!(leaf.subject_alternative_name().unwrap().is_none());
    let usage = leaf.extended_key_usage().unwrap().unwrap().value;
    assert!(usage.client_auth && !usage.server_auth && !usage.any);
    let seconds = now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() as i64;
    assert_eq!(leaf.validity().not_before.timestamp(), seconds - 300);
    assert_eq!(leaf.validity().not_after.timestamp(), seconds + 365 * 86_400);
    assert_eq!(leaf.raw_serial().len(), 16);
}

#[test]
fn two_certificates_for_one_key_have_two_serial_numbers() {
    let dir = tempfile::tempdir().unwrap();
    let ca = authority(&dir.path().join("ca"));
    let first = joined(&ca, &dir.path().join("edge"), "edge-1").chain();
    let second = joined(&ca, &dir.path().join("edge"), "edge-1").chain();
    let serial = |chain: &[CertificateDer<'_>]| X509Certificate::from_der(&chain[0]).unwrap().1.raw_serial().to_vec();
    assert_ne!(serial(&first), serial(&second));
}

/// P-OWN-CERTIFICATE
#[test]
fn requests_for_anything_but_one_node_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let ca = authority(dir.path());
    let refused = [
        ("admin", "system:masters"),
        ("system:node:edge-1", "system:masters"),
        ("system:node:", "system:nodes"),
        ("system:node:Edge", "system:nodes"),
        ("system:node:edge-1 ", "system:nodes"),
        ("edge-1", "system:nodes"),
    ];
    for (common_name, organization) in refused {
        let der = request(names(common_name, organization), &PKCS_ECDSA_P256_SHA256);
        let error = NodeRequest::parse(&der).unwrap_err();
        assert!(matches!(error, RequestError::Subject(NotANode::Subject(_))), "{common_name} {organization}: {error}");
    }
    let incomplete =
        request(|params| params.distinguished_name.push(DnType::CommonName, "system:node:a"), &PKCS_ECDSA_P256_SHA256);
    assert!(matches!(NodeRequest::parse(&incomplete), Err(RequestError::Subject(_))));
    let more = request(
        |params| {
            names("system:node:edge-1", "system:nodes")(params);
            params.distinguished_name.push(DnType::from_oid(&[2, 5, 4, 10]), "system:masters");
        },
        &PKCS_ECDSA_P256_SHA256,
    );
    assert!(matches!(NodeRequest::parse(&more), Err(RequestError::Subject(_))));
    let other_key = request(names("system:node:edge-1", "system:nodes"), &PKCS_ED25519);
    assert_eq!(NodeRequest::parse(&other_key).unwrap_err(), RequestError::Key);
    let foreign = request(names("system:node:edge-2", "system:nodes"), &PKCS_ECDSA_P256_SHA256);
    let error = ca.sign_node_csr(&foreign, &node("edge-1"), now()).unwrap_err().to_string();
    assert!(error.contains("edge-2") && error.contains("edge-1"), "{error}");
    assert!(matches!(NodeRequest::parse(&vec![0x30; 20_000]), Err(RequestError::Malformed(_))));
}

proptest! {
    /// The parser is lenient with a few tags around the signed part; all that counts is in the signed part.
    #[test]
    fn a_changed_request_is_refused_or_says_the_same(at: u16, bit in 0..8u8) {
        let der = request(names("system:node:edge-1", "system:nodes"), &PKCS_ECDSA_P256_SHA256);
        let (_, parsed) = X509CertificationRequest::from_der(&der).unwrap();
        // The outer header has 3 bytes.
        let signed = 3..3 + parsed.certification_request_info.raw.len();
        let mut changed = der.clone();
        let at = usize::from(at) % der.len();
        changed[at] ^= 1 << bit;
        if let Ok(accepted) = NodeRequest::parse(&changed) {
            let original = NodeRequest::parse(&der).unwrap();
            prop_assert!(!signed.contains(&at));
            prop_assert_eq!((accepted.node(), accepted.key_hash()), (original.node(), original.key_hash()));
        }
    }

    #[test]
    fn any_bytes_are_no_request_and_no_panic(der in prop::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(NodeRequest::parse(&der).is_err());
    }
}

#[test]
fn a_node_keeps_its_identity_where_kubeedge_does() {
    let dir = tempfile::tempdir().unwrap();
    let ca = authority(&dir.path().join("cloud"));
    let edge = dir.path().join("edge");
    assert!(NodeIdentity::load(&edge).unwrap().is_none());
    let made = joined(&ca, &edge, "edge-1");
    let loaded = NodeIdentity::load(&edge).unwrap().unwrap();
    assert_eq!(loaded.node(), &node("edge-1"));
    assert_eq!(loaded.chain(), made.chain());
    assert_eq!(loaded.cas(), [ca.certificate().clone()]);
    assert_eq!(loaded.expires(), now() + 365 * DAY);
    assert_eq!(loaded.begins(), now() - 5 * MINUTE);
    assert_eq!(mode(&edge.join("certs/server.key")), 0o600);
    assert_eq!(CaHash::of(&CertificateDer::from_pem_file(edge.join("ca/rootCA.crt")).unwrap()), ca.ca_hash());
    let left: Vec<_> = fs::read_dir(edge.join("certs")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left.len(), 2, "{left:?}");
}

#[test]
fn a_key_is_made_once_and_used_for_every_request() {
    let dir = tempfile::tempdir().unwrap();
    let request = || {
        let der = NodeKey::load_or_create(dir.path()).unwrap().request(&node("edge-1")).unwrap();
        NodeRequest::parse(&der).unwrap()
    };
    assert_eq!(request().key_hash(), request().key_hash());
}

#[test]
fn a_wrong_answer_of_the_cloud_is_refused_and_nothing_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let (ca, other) = (authority(&dir.path().join("ca")), authority(&dir.path().join("other")));
    let edge = dir.path().join("edge");
    let key = || NodeKey::load_or_create(&edge).unwrap();
    let own = NodeRequest::parse(&key().request(&node("edge-1")).unwrap()).unwrap();
    let foreign =
        NodeRequest::parse(&request(names("system:node:edge-1", "system:nodes"), &PKCS_ECDSA_P256_SHA256)).unwrap();
    let good = ca.sign(&own, now()).unwrap();
    let leaf_of_other = other.sign(&own, now()).unwrap();
    let leaf_of_other = leaf_of_other.split_inclusive("-----END CERTIFICATE-----\n").next().unwrap();
    let answers = [
        (String::new(), now(), "no certificate"),
        ("nonsense".to_owned(), now(), "no certificate"),
        (ca.sign(&foreign, now()).unwrap(), now(), "does not belong to this node's key"),
        (other.sign(&own, now()).unwrap(), now(), "is not in its chain"),
        (format!("{leaf_of_other}{}", ca.certificate_pem()), now(), "does not hold against the CA"),
        (ca.certificate_pem().to_owned(), now(), "no certificate"),
        (good.clone(), now() + 400 * DAY, "expired"),
        (good.clone(), now() - Duration::from_secs(3600), "not valid yet"),
    ];
    for (answer, now, why) in answers {
        let error = key().accept(&answer, &ca.ca_hash(), now).unwrap_err().to_string();
        assert!(error.contains(why), "{why}: {error}");
        assert!(NodeIdentity::load(&edge).unwrap().is_none());
    }
    key().accept(&good, &ca.ca_hash(), now()).unwrap();
}

#[test]
fn damaged_identity_files_are_errors_that_name_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let ca = authority(&dir.path().join("cloud"));
    let edge = dir.path().join("edge");
    for file in ["ca/rootCA.crt", "certs/server.crt", "certs/server.key"] {
        for bytes in ["", "nonsense", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
            joined(&ca, &edge, "edge-1");
            fs::write(edge.join(file), bytes).unwrap();
            let error = NodeIdentity::load(&edge).unwrap_err().to_string();
            assert!(error.contains(if file.ends_with("key") { "server.key" } else { ".crt" }), "{file}: {error}");
            fs::remove_dir_all(&edge).unwrap();
        }
    }
    joined(&ca, &edge, "edge-1");
    fs::remove_file(edge.join("certs/server.key")).unwrap();
    assert!(NodeIdentity::load(&edge).unwrap_err().to_string().contains("server.key"));
}
