//! The time by which a node judges certificates, on a box whose own clock may be wrong.
//!
//! A box without a battery boots in 1970, and by that clock no certificate is valid yet. What such a box does know is a
//! *floor*: the beginning of its own certificate, and the last time at which a cloud was connected, are past. The floor
//! is kept in a file and goes on with the machine's uptime. A clock that is behind its floor is known to be wrong: then
//! the floor counts, and a server's certificate that begins after it is not refused for that (the floor says that it is
//! at least so late, not that it is not later). One that ended before the floor is refused, always.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use rustls::{
    CertificateError, Error,
    client::danger::ServerCertVerified,
    pki_types::{CertificateDer, UnixTime},
    time_provider::TimeProvider,
};

use super::{
    authority,
    files::{self, Access},
    names,
};

/// Seconds since 1970, as text, below the folder of the node's identity.
const FILE: [&str; 2] = ["certs", "time-floor"];
/// 2026-01-01: this program was not there before.
const BUILT: Duration = Duration::from_secs(1_767_225_600);
/// The file is written when the floor has risen by this much: flash wears.
const WRITE_EVERY: Duration = Duration::from_secs(3600);
/// A clock may be this much behind what others say and be right: clocks differ, and steps of NTP are small.
const TOLERANCE: Duration = Duration::from_secs(5 * 60);

/// A clock that is never before what is known to be past. Cheap to clone; clones share the floor.
#[derive(Clone)]
pub struct FlooredClock(Arc<Inner>);

struct Inner {
    path: Option<PathBuf>,
    system: fn() -> SystemTime,
    floor: Mutex<Floor>,
}

struct Floor {
    at: SystemTime,
    /// When it was that late.
    since: Instant,
    /// What is in the file.
    kept: SystemTime,
}

impl FlooredClock {
    /// The system's clock over the floor that is kept in `dir`, the folder of the node's identity.
    ///
    /// A file that cannot be read is as good as none: it is a help for a wrong clock, and never the reason that a node
    /// with a right one does not start.
    pub fn load(dir: &Path) -> Self {
        Self::with_system(Some(dir), SystemTime::now)
    }

    /// Over another clock than the system's: for tests of wrong ones. Without `dir` nothing is kept.
    pub fn with_system(dir: Option<&Path>, system: fn() -> SystemTime) -> Self {
        let path = dir.map(|dir| authority::joined(dir, &FILE));
        let kept = path.as_deref().and_then(read);
        let built = UNIX_EPOCH + BUILT;
        let at = kept.unwrap_or(built).max(built);
        let floor = Floor { at, since: Instant::now(), kept: kept.unwrap_or(UNIX_EPOCH) };
        Self(Arc::new(Inner { path, system, floor: Mutex::new(floor) }))
    }

    /// The time, as far as it is known.
    pub fn now(&self) -> SystemTime {
        (self.0.system)().max(self.floor())
    }

    /// Whether the system's clock is wrong for certain.
    pub fn is_behind(&self) -> bool {
        (self.0.system)() + TOLERANCE < self.floor()
    }

    /// This time is past.
    pub fn raise(&self, past: SystemTime) {
        let mut floor = self.0.floor.lock().unwrap_or_else(PoisonError::into_inner);
        if past <= floor.at + floor.since.elapsed() {
            return;
        }
        (floor.at, floor.since) = (past, Instant::now());
        let due = past.duration_since(floor.kept).is_ok_and(|risen| risen >= WRITE_EVERY);
        if let (true, Some(path)) = (due, &self.0.path) {
            let seconds = past.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
            match files::write(path, format!("{seconds}\n").as_bytes(), Access::Everyone) {
                Ok(()) => floor.kept = past,
                Err(error) => tracing::warn!("the floor of time is not kept: {error}"),
            }
        }
    }

    /// A cloud that this node has authenticated says how late it is. What both clocks agree on is past; where this one
    /// is known to be wrong, the cloud's word counts.
    pub fn told(&self, by_cloud: SystemTime) {
        let own = (self.0.system)();
        self.raise(if self.is_behind() { by_cloud } else { own.min(by_cloud) });
    }

    fn floor(&self) -> SystemTime {
        let floor = self.0.floor.lock().unwrap_or_else(PoisonError::into_inner);
        floor.at + floor.since.elapsed()
    }
}

impl TimeProvider for FlooredClock {
    fn current_time(&self) -> Option<UnixTime> {
        unix(self.now())
    }
}

impl fmt::Debug for FlooredClock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FlooredClock").field("now", &self.now()).field("is_behind", &self.is_behind()).finish()
    }
}

fn read(path: &Path) -> Option<SystemTime> {
    let bytes = match files::read(path) {
        Ok(bytes) => bytes?,
        Err(error) => {
            tracing::warn!("the floor of time is not known: {error}");
            return None;
        }
    };
    let seconds = std::str::from_utf8(&bytes).ok().and_then(|text| text.trim().parse::<u64>().ok());
    // What no SystemTime can hold is no time.
    let at = seconds.and_then(|seconds| UNIX_EPOCH.checked_add(Duration::from_secs(seconds)));
    if at.is_none() {
        tracing::warn!(path = %path.display(), "the floor of time is not known: expected seconds since 1970");
    }
    at
}

pub(super) fn unix(time: SystemTime) -> Option<UnixTime> {
    Some(UnixTime::since_unix_epoch(time.duration_since(UNIX_EPOCH).ok()?))
}

/// Judges a server's certificate at `now`, and where that is only a floor also at the certificate's beginning
/// (`P-FLOOR-OF-TIME`).
pub(super) fn judge(
    clock: Option<&FlooredClock>,
    leaf: &CertificateDer<'_>,
    now: UnixTime,
    verify: impl Fn(UnixTime) -> Result<ServerCertVerified, Error>,
) -> Result<ServerCertVerified, Error> {
    let early = |error: &Error| {
        use CertificateError::{NotValidYet, NotValidYetContext};
        matches!(error, Error::InvalidCertificate(NotValidYet | NotValidYetContext { .. }))
    };
    match verify(now) {
        Err(error) if early(&error) && clock.is_some_and(FlooredClock::is_behind) => {
            let begins = names::parse(leaf).ok().map(|leaf| super::time_of(&leaf.validity().not_before));
            verify(begins.and_then(unix).ok_or(error)?)
        }
        verified => verified,
    }
}
