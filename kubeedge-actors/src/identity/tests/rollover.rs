//! One authority takes over from another.

use std::{fs, path::Path, sync::Arc};

use proptest::prelude::*;
use rustls::pki_types::pem::PemObject;

use super::{
    DAY, at, authority,
    handshakes::{CLOUD, shake},
    joined, node, now,
};
use crate::identity::{
    ALPN_H2, CaHash, CertificateAuthority, ClientAuth, NodeIdentity, NodeKey, NodeRequest, Registrar, Revocations,
    client_config, peer_node_name, pinned_config, server_config,
};

fn verified(ca: &Arc<CertificateAuthority>) -> ClientAuth {
    Registrar::new(ca.clone(), Revocations::in_memory(), DAY).link_clients().unwrap()
}

fn server(ca: &Arc<CertificateAuthority>, clients: ClientAuth) -> rustls::ServerConfig {
    let certificate = ca.issue_server(&[CLOUD.try_into().unwrap()], now()).unwrap();
    server_config(certificate.chain(), certificate.key(), clients, &[ALPN_H2], at(now())).unwrap()
}

fn renewed(ca: &CertificateAuthority, current: &NodeIdentity) -> Result<NodeIdentity, crate::identity::IdentityError> {
    let key = NodeKey::next(current.dir()).unwrap();
    let request = NodeRequest::parse(&key.request(current.node()).unwrap()).unwrap();
    key.renew(&ca.sign(&request, now()).unwrap(), current, Some(now()))
}

fn links(ca: &Arc<CertificateAuthority>, node: &NodeIdentity) -> Result<(), String> {
    let client = client_config(node, &[ALPN_H2], at(now())).unwrap();
    let server = shake(client, server(ca, verified(ca)), CLOUD).map_err(|error| error.to_string())?;
    assert_eq!(peer_node_name(server.peer_certificates().unwrap()).unwrap(), *node.node());
    Ok(())
}

#[test]
fn everybody_gets_through_a_rollover_who_renews_in_it() {
    let dir = tempfile::tempdir().unwrap();
    let pki = dir.path().join("pki");
    let old = Arc::new(authority(&pki));
    let first = joined(&old, &dir.path().join("e1"), "e1");
    let asleep = joined(&old, &dir.path().join("e2"), "e2");

    let hash = CertificateAuthority::roll_over(&pki, now()).unwrap();
    let new = Arc::new(authority(&pki));
    assert_eq!((new.ca_hash(), new.previous_hash()), (hash, Some(old.ca_hash())));
    assert_ne!(new.ca_hash(), old.ca_hash());

    // A node that has heard of nothing, a token from before, and one from now.
    links(&new, &first).unwrap();
    for pin in [old.ca_hash(), new.ca_hash()] {
        let client = pinned_config(pin, &[ALPN_H2], at(now())).unwrap();
        shake(client, server(&new, ClientAuth::None), CLOUD).unwrap();
        let folder = dir.path().join(pin.to_string());
        let key = NodeKey::load_or_create(&folder).unwrap();
        let request = NodeRequest::parse(&key.request(&node("e3")).unwrap()).unwrap();
        let joined = key.accept(&new.sign(&request, now()).unwrap(), &pin, now()).unwrap();
        links(&new, &joined).unwrap();
    }

    // It renews: it knows both, and its certificate is of the new one.
    let second = renewed(&new, &first).unwrap();
    assert_eq!(second.cas().iter().map(CaHash::of).collect::<Vec<_>>(), [new.ca_hash(), old.ca_hash()]);
    links(&new, &second).unwrap();

    // The old one is not trusted any more: who has renewed does not notice, and forgets it in its turn.
    assert_eq!(CertificateAuthority::end_rollover(&pki, now()).unwrap(), Some(old.ca_hash()));
    let new = Arc::new(authority(&pki));
    links(&new, &NodeIdentity::load(second.dir()).unwrap().unwrap()).unwrap();
    let third = renewed(&new, &second).unwrap();
    assert_eq!(third.cas().iter().map(CaHash::of).collect::<Vec<_>>(), [new.ca_hash()]);
    links(&new, &NodeIdentity::load(third.dir()).unwrap().unwrap()).unwrap();

    // Who slept through it all is refused, and does not take the new cloud for its own.
    let error = links(&new, &asleep).unwrap_err();
    assert!(error.contains("UnknownIssuer") || error.contains("UnknownCA"), "{error}");
    assert_eq!(CertificateAuthority::end_rollover(&pki, now()).unwrap(), None);
}

/// P-CA-VOUCHED
#[test]
fn a_node_takes_no_authority_that_its_own_has_not_signed() {
    let dir = tempfile::tempdir().unwrap();
    let ca = authority(&dir.path().join("ca"));
    let edge = joined(&ca, &dir.path().join("edge"), "edge-1");
    let other = authority(&dir.path().join("other"));
    let request = |node_name: &str| {
        let key = NodeKey::next(edge.dir()).unwrap();
        NodeRequest::parse(&key.request(&node(node_name)).unwrap()).unwrap()
    };
    let take = |answer: &str| NodeKey::next(edge.dir()).unwrap().renew(answer, &edge, Some(now()));
    // Another authority's certificate; the right one's with another authority slipped in; another node's; none at all.
    let good = ca.sign(&request("edge-1"), now()).unwrap();
    let error = take(&other.sign(&request("edge-1"), now()).unwrap()).unwrap_err().to_string();
    assert!(error.contains("does not hold against the CA"), "{error}");
    let error = take(&ca.sign(&request("edge-2"), now()).unwrap()).unwrap_err().to_string();
    assert!(error.contains("it is for node edge-2"), "{error}");
    let error = take(&good.repeat(5)).unwrap_err().to_string();
    assert!(error.contains("at most 8"), "{error}");
    let kept = NodeIdentity::load(edge.dir()).unwrap().unwrap();
    assert_eq!(kept.chain(), edge.chain(), "nothing was taken");
    let slipped = take(&format!("{good}{}", other.certificate_pem())).unwrap();
    assert_eq!(slipped.cas(), [ca.certificate().clone()]);
}

/// A power cut at any step: what is there loads, and is the old authority or the new one with the old one trusted.
#[test]
fn a_rollover_that_is_cut_off_leaves_an_authority() {
    let dir = tempfile::tempdir().unwrap();
    let pki = dir.path().join("pki");
    let old = authority(&pki);
    let before = files(&pki);
    CertificateAuthority::roll_over(&pki, now()).unwrap();
    let new = authority(&pki);
    let after = files(&pki);
    let file = |set: &[(String, Vec<u8>)], name: &str| {
        set.iter().find(|(have, _)| have == name).map(|(_, bytes)| bytes.clone()).unwrap()
    };
    // In the order in which they are written; the certificate is renamed from its draft at the end.
    let steps = [
        ("previousCA.crt", file(&after, "previousCA.crt")),
        ("crossCA.crt", file(&after, "crossCA.crt")),
        ("rootCA.crt.next", file(&after, "rootCA.crt")),
        ("rootCA.key", file(&after, "rootCA.key")),
    ];
    for done in 0..=steps.len() {
        fs::remove_dir_all(&pki).unwrap();
        fs::create_dir(&pki).unwrap();
        for (name, bytes) in &before {
            fs::write(pki.join(name), bytes).unwrap();
        }
        for (name, bytes) in &steps[..done] {
            fs::write(pki.join(name), bytes).unwrap();
        }
        let found = authority(&pki);
        if done < steps.len() {
            assert_eq!((found.ca_hash(), found.previous_hash()), (old.ca_hash(), None), "after {done} steps");
        } else {
            assert_eq!((found.ca_hash(), found.previous_hash()), (new.ca_hash(), Some(old.ca_hash())));
        }
        assert!(!pki.join("rootCA.crt.next").exists());
    }
}

fn files(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let read = |entry: fs::DirEntry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap());
    fs::read_dir(dir).unwrap().map(|entry| read(entry.unwrap())).collect()
}

/// The same at the edge, between the certificate and its key.
#[test]
fn a_renewal_that_is_cut_off_leaves_an_identity() {
    let dir = tempfile::tempdir().unwrap();
    let ca = authority(&dir.path().join("ca"));
    let edge = joined(&ca, &dir.path().join("edge"), "edge-1");
    let folder = edge.dir().to_owned();
    let old_key = fs::read(folder.join("certs/server.key")).unwrap();
    let next = renewed(&ca, &edge).unwrap();
    let new_key = fs::read(folder.join("certs/server.key")).unwrap();
    assert_ne!(old_key, new_key);
    // The new certificate was written, its key not yet in its place.
    fs::write(folder.join("certs/server.key.next"), &new_key).unwrap();
    fs::write(folder.join("certs/server.key"), &old_key).unwrap();
    let found = NodeIdentity::load(&folder).unwrap().unwrap();
    assert_eq!(found.chain(), next.chain());
    assert_eq!(fs::read(folder.join("certs/server.key")).unwrap(), new_key);
    assert!(!folder.join("certs/server.key.next").exists());
    // A key that belongs to nothing is the next renewal's.
    NodeKey::next(&folder).unwrap();
    assert_eq!(NodeIdentity::load(&folder).unwrap().unwrap().chain(), next.chain());
}

/// Somebody who reads the identity between the certificate and its key puts the key into its place.
#[test]
fn a_renewal_whose_key_a_reader_has_put_into_place_is_whole() {
    let dir = tempfile::tempdir().unwrap();
    let ca = authority(&dir.path().join("ca"));
    let edge = joined(&ca, &dir.path().join("edge"), "edge-1");
    let (in_use, next) = (edge.dir().join("certs/server.key"), edge.dir().join("certs/server.key.next"));
    let signed = |key: &NodeKey| {
        let request = NodeRequest::parse(&key.request(edge.node()).unwrap()).unwrap();
        ca.sign(&request, now()).unwrap()
    };
    let key = NodeKey::next(edge.dir()).unwrap();
    let answer = signed(&key);
    fs::rename(&next, &in_use).unwrap();
    let renewed = key.renew(&answer, &edge, Some(now())).unwrap();
    assert_eq!(NodeIdentity::load(edge.dir()).unwrap().unwrap().chain(), renewed.chain());

    // A key of something else in its place is an error.
    let key = NodeKey::next(edge.dir()).unwrap();
    let answer = signed(&key);
    fs::remove_file(&next).unwrap();
    let error = key.renew(&answer, &renewed, Some(now())).unwrap_err().to_string();
    assert!(error.contains("server.key") && error.contains("belongs to another certificate"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// Whatever a cloud answers, an identity that was there stays whole.
    #[test]
    fn no_answer_damages_what_is_there(cut in 0usize..2000, flip: u16, bit in 0..7u8) {
        let dir = tempfile::tempdir().unwrap();
        let ca = authority(&dir.path().join("ca"));
        let edge = joined(&ca, &dir.path().join("edge"), "edge-1");
        let key = NodeKey::next(edge.dir()).unwrap();
        let request = NodeRequest::parse(&key.request(edge.node()).unwrap()).unwrap();
        let mut answer = ca.sign(&request, now()).unwrap().into_bytes();
        let at = usize::from(flip) % answer.len();
        answer[at] ^= 1 << bit;
        answer.truncate(cut.max(1));
        let answer = String::from_utf8_lossy(&answer);
        let taken = key.renew(&answer, &edge, Some(now()));
        let kept = NodeIdentity::load(edge.dir()).unwrap().unwrap();
        match taken {
            Ok(taken) => prop_assert_eq!(kept.chain(), taken.chain()),
            Err(_) => prop_assert_eq!(kept.chain(), edge.chain()),
        }
    }
}

#[test]
fn a_secret_s_parts_make_the_same_authority_in_pem_and_der() {
    let (made, key) = CertificateAuthority::generate(now()).unwrap();
    let der = rustls::pki_types::PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
    let sec1 = include_str!("sec1.pem");
    let parts = [(made.certificate_pem().as_bytes(), key.as_bytes()), (made.certificate().as_ref(), der.secret_der())];
    for (certificate, key) in parts {
        let read = CertificateAuthority::from_parts("the secret a/b", certificate, key).unwrap();
        assert_eq!(read.ca_hash(), made.ca_hash());
    }
    for (certificate, key, why) in [
        (made.certificate().as_ref(), sec1.as_bytes(), "does not belong"),
        (b"nonsense".as_slice(), der.secret_der(), "not an X.509 certificate"),
        (made.certificate().as_ref(), b"nonsense".as_slice(), "no private key in DER"),
    ] {
        let error = CertificateAuthority::from_parts("the secret a/b", certificate, key).unwrap_err().to_string();
        assert!(error.contains(why) && error.contains("the secret a/b"), "{error}");
    }
}
