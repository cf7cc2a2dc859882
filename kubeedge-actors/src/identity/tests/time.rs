//! A clock that is wrong, and when certificates are renewed.

use std::{
    fs,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use super::{
    DAY, MINUTE, at, authority,
    handshakes::{CLOUD, refused, shake},
    joined, node, now,
};
use crate::identity::{
    ALPN_H2, CertificateAuthority, ClientAuth, FlooredClock, NodeCredentials, NodeIdentity, NodeKey, NodeRequest,
    joining_config, server_config,
};

fn in_1970() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(100)
}

fn next_day() -> SystemTime {
    now() + DAY
}

fn server(ca: &CertificateAuthority, made: SystemTime) -> rustls::ServerConfig {
    let certificate = ca.issue_server(&[CLOUD.try_into().unwrap()], made).unwrap();
    let clients = ClientAuth::Optional(ca.certificate().clone());
    server_config(certificate.chain(), certificate.key(), clients, &[ALPN_H2], at(made)).unwrap()
}

/// P-FLOOR-OF-TIME
#[test]
fn a_box_that_boots_in_1970_joins_and_links_and_an_ended_certificate_stays_ended() {
    let dir = tempfile::tempdir().unwrap();
    let ca = authority(&dir.path().join("ca"));
    let edge = dir.path().join("edge");
    let clock = FlooredClock::with_system(Some(&edge), in_1970);
    assert!(clock.is_behind() && clock.now() > UNIX_EPOCH + 365 * 55 * DAY);

    // It joins by the token's pin.
    let client = joining_config(ca.ca_hash(), &[ALPN_H2], &clock).unwrap();
    shake(client, server(&ca, now()), CLOUD).unwrap();
    let key = NodeKey::load_or_create(&edge).unwrap();
    let request = NodeRequest::parse(&key.request(&node("edge-1")).unwrap()).unwrap();
    let identity = key.accept_by(&ca.sign(&request, now()).unwrap(), &ca.ca_hash(), &clock).unwrap();
    // Now it knows that it is at least so late.
    assert!(clock.now() >= identity.begins());
    let credentials = NodeCredentials::new(identity, clock.clone()).unwrap();
    assert!(!credentials.has_expired());

    // Boots again: the floor was kept. A server whose certificate was made since is accepted, an ended one is not.
    let clock = FlooredClock::with_system(Some(&edge), in_1970);
    assert!(clock.now() >= now() - 5 * MINUTE && clock.is_behind());
    let identity = NodeIdentity::load(&edge).unwrap().unwrap();
    let credentials = NodeCredentials::new(identity, clock).unwrap();
    let client = || credentials.client_config(&[ALPN_H2]).unwrap();
    shake(client(), server(&ca, now() + 90 * DAY), CLOUD).unwrap();
    let error = refused(shake(client(), server(&ca, now() - 366 * DAY), CLOUD));
    assert!(error.contains("expired"), "{error}");
    // The other rules hold as ever.
    let other = authority(&dir.path().join("other"));
    assert!(refused(shake(client(), server(&other, now() + 90 * DAY), CLOUD)).contains("BadSignature"));
    assert!(refused(shake(client(), server(&ca, now() + 90 * DAY), "other.example")).contains("not valid for name"));
}

#[test]
fn a_clock_that_is_right_is_not_talked_out_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let ca = authority(&dir.path().join("ca"));
    let identity = joined(&ca, &dir.path().join("edge"), "edge-1");
    let clock = FlooredClock::with_system(None, next_day);
    let credentials = NodeCredentials::new(identity, clock.clone()).unwrap();
    assert!(!clock.is_behind());
    let error = refused(shake(credentials.client_config(&[ALPN_H2]).unwrap(), server(&ca, now() + 90 * DAY), CLOUD));
    assert!(error.contains("not valid yet"), "{error}");
    // A cloud that is ahead moves nothing; one that is right becomes the floor.
    clock.told(now() + 300 * DAY);
    assert!(clock.now() < now() + 2 * DAY);
}

#[test]
fn the_floor_rises_and_never_falls_and_a_damaged_file_is_none() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("certs/time-floor");
    let clock = FlooredClock::with_system(Some(dir.path()), in_1970);
    clock.raise(now());
    clock.raise(now() - DAY);
    assert!(clock.now() >= now());
    clock.told(now() + DAY);
    assert!(clock.now() >= now() + DAY, "a clock that is wrong for certain believes the cloud");
    assert!(FlooredClock::with_system(Some(dir.path()), in_1970).now() >= now() + DAY);
    for damaged in ["", "soon", "99999999999999999999", "-1", "18446744073709551615"] {
        fs::write(&file, damaged).unwrap();
        let clock = FlooredClock::with_system(Some(dir.path()), next_day);
        assert!(clock.now() < now() + 2 * DAY, "{damaged:?}");
    }
}

#[test]
fn a_certificate_is_renewed_between_70_and_90_percent_of_its_life() {
    let dir = tempfile::tempdir().unwrap();
    let ca = authority(&dir.path().join("ca"));
    let moments: Vec<f64> = (0..40)
        .map(|_| {
            let identity = joined(&ca, &dir.path().join("edge"), "edge-1");
            let (begins, expires) = (identity.begins(), identity.expires());
            let clock = FlooredClock::with_system(None, || now() - 5 * MINUTE);
            let credentials = NodeCredentials::new(identity, clock).unwrap();
            let life = expires.duration_since(begins).unwrap().as_secs_f64();
            credentials.until_renewal().as_secs_f64() / life
        })
        .collect();
    assert!(moments.iter().all(|part| (0.699..=0.9).contains(part)), "{moments:?}");
    let (first, last) =
        moments.iter().fold((1.0, 0.0), |(low, high): (f64, f64), part| (low.min(*part), high.max(*part)));
    assert!(last - first > 0.05, "a fleet does not renew at once: {moments:?}");
}
