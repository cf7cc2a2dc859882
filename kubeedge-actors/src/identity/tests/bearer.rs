//! Service account tokens.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use proptest::prelude::*;
use ring::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};

use super::{DAY, MINUTE, now};
use crate::identity::{BearerError, Binding, Claims, Reference, ServiceAccountTokens};

const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";

fn reference(name: &str) -> Reference {
    Reference { name: name.to_owned(), uid: format!("uid-of-{name}") }
}

fn claims() -> Claims {
    let binding = Binding {
        namespace: "shop".to_owned(),
        serviceaccount: reference("till"),
        pod: Some(reference("till-0")),
        node: None,
    };
    Claims::new(ISSUER, vec!["api".to_owned(), "vault".to_owned()], binding, now(), 60 * MINUTE)
}

fn issuer(dir: &tempfile::TempDir) -> ServiceAccountTokens {
    ServiceAccountTokens::load_or_create(&dir.path().join("sa.key"), ISSUER).unwrap()
}

#[test]
fn a_token_says_what_was_signed_also_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let token = issuer(&dir).issue(&claims()).unwrap();
    let verified = issuer(&dir).verify(&token, &["other", "vault"], now() + MINUTE).unwrap();
    assert_eq!(verified.sub, "system:serviceaccount:shop:till");
    assert_eq!(verified.exp - verified.iat, 3600);
    assert_eq!((verified.kubernetes.pod, verified.kubernetes.node), (Some(reference("till-0")), None));
    let text = URL_SAFE_NO_PAD.decode(token.split('.').nth(1).unwrap()).unwrap();
    let json: serde_json::Value = serde_json::from_slice(&text).unwrap();
    assert_eq!(json["kubernetes.io"]["serviceaccount"]["name"], "till");
    assert!(json["kubernetes.io"].get("node").is_none());
    use std::os::unix::fs::PermissionsExt;
    assert_eq!(dir.path().join("sa.key").metadata().unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn time_issuer_audience_and_key_count() {
    let dir = tempfile::tempdir().unwrap();
    let tokens = issuer(&dir);
    let token = tokens.issue(&claims()).unwrap();
    let verify = |audience: &str, now| tokens.verify(&token, &[audience], now);
    assert!(verify("api", now()).is_ok());
    assert_eq!(verify("api", now() + 60 * MINUTE), Err(BearerError::Expired { ago: 0 }));
    assert_eq!(verify("api", now() + DAY), Err(BearerError::Expired { ago: 23 * 3600 }));
    assert_eq!(verify("api", now() - MINUTE), Err(BearerError::NotYet { wait: 60 }));
    assert!(matches!(verify("other", now()), Err(BearerError::Audience { .. })));
    assert!(matches!(tokens.verify(&token, &[], now()), Err(BearerError::Audience { .. })));

    let other_key = issuer(&tempfile::tempdir().unwrap());
    assert!(matches!(other_key.verify(&token, &["api"], now()), Err(BearerError::OtherKey(_))));
    let other_issuer = ServiceAccountTokens::load_or_create(&dir.path().join("sa.key"), "https://else").unwrap();
    assert!(matches!(other_issuer.verify(&token, &["api"], now()), Err(BearerError::Issuer { .. })));
}

#[test]
fn an_algorithm_that_the_token_chose_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let tokens = issuer(&dir);
    let token = tokens.issue(&claims()).unwrap();
    let mut parts = token.split('.');
    let (_, claims, signature) = (parts.next().unwrap(), parts.next().unwrap(), parts.next().unwrap());
    for algorithm in ["none", "HS256", "RS256"] {
        let header = format!("{{\"alg\":\"{algorithm}\",\"kid\":\"{}\"}}", tokens.key_id());
        for signature in [signature, ""] {
            let forged = format!("{}.{claims}.{signature}", URL_SAFE_NO_PAD.encode(&header));
            assert!(matches!(tokens.verify(&forged, &["api"], now()), Err(BearerError::Malformed(_))));
        }
    }
}

#[test]
fn the_published_key_verifies_a_token() {
    let dir = tempfile::tempdir().unwrap();
    let tokens = issuer(&dir);
    let token = tokens.issue(&claims()).unwrap();
    let key = &tokens.jwks()["keys"][0];
    assert_eq!((&key["kty"], &key["crv"], &key["alg"]), (&"EC".into(), &"P-256".into(), &"ES256".into()));
    assert_eq!(key["kid"], tokens.key_id());
    let coordinate = |name: &str| URL_SAFE_NO_PAD.decode(key[name].as_str().unwrap()).unwrap();
    let point = [vec![4], coordinate("x"), coordinate("y")].concat();
    assert_eq!(point.len(), 65);
    let (signed, signature) = token.rsplit_once('.').unwrap();
    UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point)
        .verify(signed.as_bytes(), &URL_SAFE_NO_PAD.decode(signature).unwrap())
        .unwrap();
}

proptest! {
    #[test]
    fn a_changed_token_is_refused(at: u16, letter in "[A-Za-z0-9_.-]") {
        let dir = tempfile::tempdir().unwrap();
        let tokens = issuer(&dir);
        let token = tokens.issue(&claims()).unwrap();
        let at = usize::from(at) % token.len();
        prop_assume!(token[at..=at] != letter);
        let changed = format!("{}{letter}{}", &token[..at], &token[at + 1..]);
        prop_assert!(tokens.verify(&changed, &["api"], now()).is_err());
    }

    #[test]
    fn any_text_is_no_token_and_no_panic(text in ".{0,300}") {
        let dir = tempfile::tempdir().unwrap();
        prop_assert!(issuer(&dir).verify(&text, &["api"], now()).is_err());
    }
}
