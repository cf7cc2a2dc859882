//! Joining, linking and every way in which they have to fail.

mod bearer;
mod certificates;
mod handshakes;
mod rollover;
mod time;
#[cfg(feature = "store")]
mod tokens;
mod trust;

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use kubeedge_proto::NodeName;
use rustls::{pki_types::UnixTime, time_provider::TimeProvider};

use super::{CertificateAuthority, NodeIdentity, NodeKey, NodeRequest};

/// 2026-06-01, so that no test depends on the machine's clock.
pub(super) fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_780_272_000)
}

pub(super) const DAY: Duration = Duration::from_secs(24 * 60 * 60);
pub(super) const MINUTE: Duration = Duration::from_secs(60);

#[derive(Debug)]
struct Stopped(SystemTime);

impl TimeProvider for Stopped {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(self.0.duration_since(UNIX_EPOCH).ok()?))
    }
}

/// A clock that stands at this time.
pub(super) fn at(time: SystemTime) -> Arc<dyn TimeProvider> {
    Arc::new(Stopped(time))
}

pub(super) fn authority(dir: &Path) -> CertificateAuthority {
    CertificateAuthority::load_or_create(dir, now()).unwrap()
}

pub(super) fn node(name: &str) -> NodeName {
    name.parse().unwrap()
}

pub(super) fn joined(ca: &CertificateAuthority, dir: &Path, name: &str) -> NodeIdentity {
    let key = NodeKey::load_or_create(dir).unwrap();
    let request = NodeRequest::parse(&key.request(&node(name)).unwrap()).unwrap();
    key.accept(&ca.sign(&request, now()).unwrap(), &ca.ca_hash(), now()).unwrap()
}
