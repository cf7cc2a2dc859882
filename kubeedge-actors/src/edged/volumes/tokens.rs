//! The service account tokens of a pod: kept beside its volumes, renewed in time.
//!
//! They are in a file of the pod's directory, readable by root alone, so that after a power cut with the cloud out of
//! reach the pod starts again with what it had.

use std::{fs, io, io::Write as _, os::unix::fs::OpenOptionsExt as _, path::Path};

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::error::{AtPath as _, PathError};
use crate::edged::objects::{Token, TokenSpec};

/// A token is renewed after 80 % of its life, and after a day at the latest: the kubelet's rule.
const LIFE_PERCENT: i64 = 80;
const LONGEST: SignedDuration = SignedDuration::from_hours(24);
/// More than any pod's tokens take; a greater file is not ours.
const MAX_FILE: u64 = 1 << 20;

#[derive(Clone, Serialize, Deserialize)]
struct Kept {
    service_account: String,
    audiences: Vec<String>,
    expiration_seconds: i64,
    token: String,
    /// Seconds since 1970.
    expires_at: i64,
}

impl Kept {
    fn is_for(&self, spec: &TokenSpec) -> bool {
        self.service_account == spec.service_account
            && self.audiences == spec.audiences
            && self.expiration_seconds == spec.expiration_seconds
    }
}

/// The tokens of one pod.
#[derive(Default, Serialize, Deserialize)]
pub(crate) struct Tokens {
    kept: Vec<Kept>,
}

impl Tokens {
    /// Reads a pod's tokens. What cannot be read as such counts as none: they are asked for again.
    pub(crate) fn load(path: &Path) -> Result<Self, PathError> {
        match fs::metadata(path) {
            Ok(metadata) if metadata.len() <= MAX_FILE => {}
            Ok(_) => return Ok(Self::default()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(error).at("read", path),
        }
        let bytes = fs::read(path).at("read", path)?;
        Ok(serde_json::from_slice(&bytes).unwrap_or_else(|error| {
            tracing::warn!(path = %path.display(), %error, "kept tokens are unreadable, new ones will be asked for");
            Self::default()
        }))
    }

    /// Writes them, replacing the file in one step; on disk when this returns.
    pub(crate) fn save(&self, path: &Path) -> Result<(), PathError> {
        let bytes = serde_json::to_vec(self).map_err(io::Error::from).at("write", path)?;
        let tmp = path.with_extension("tmp");
        let mut options = fs::OpenOptions::new();
        let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&tmp).at("create", &tmp)?;
        file.write_all(&bytes).and_then(|()| file.sync_all()).at("write", &tmp)?;
        fs::rename(&tmp, path).at("replace", path)
    }

    /// The token for `spec` that is kept, and whether it is due for renewal.
    pub(crate) fn find(&self, spec: &TokenSpec, now: Timestamp) -> Option<(String, bool)> {
        let kept = self.kept.iter().find(|kept| kept.is_for(spec))?;
        Some((kept.token.clone(), is_due(kept.expires_at, spec.expiration_seconds, now)))
    }

    /// Keeps a new token instead of an older one for the same `spec`.
    pub(crate) fn keep(&mut self, spec: &TokenSpec, token: &Token) {
        self.kept.retain(|kept| !kept.is_for(spec));
        self.kept.push(Kept {
            service_account: spec.service_account.clone(),
            audiences: spec.audiences.clone(),
            expiration_seconds: spec.expiration_seconds,
            token: token.token.clone(),
            expires_at: token.expires_at.as_second(),
        });
    }
}

/// Whether a token that expires then, and was to live so long, is to be renewed.
fn is_due(expires_at: i64, life_seconds: i64, now: Timestamp) -> bool {
    let issued_at = expires_at.saturating_sub(life_seconds);
    let old = life_seconds.saturating_mul(LIFE_PERCENT) / 100;
    now.as_second() >= issued_at.saturating_add(old.min(LONGEST.as_secs()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn spec(audience: &str) -> TokenSpec {
        TokenSpec {
            namespace: "ns".to_owned(),
            service_account: "sa".to_owned(),
            pod_name: "p".to_owned(),
            pod_uid: "u".to_owned(),
            audiences: vec![audience.to_owned()],
            expiration_seconds: 3600,
        }
    }

    #[test]
    fn a_token_is_due_at_80_percent_of_its_life_or_after_a_day() {
        assert!(!is_due(3600, 3600, at(2879)));
        assert!(is_due(3600, 3600, at(2880)));
        let year = 365 * 86400;
        assert!(!is_due(year, year, at(86399)));
        assert!(is_due(year, year, at(86400)));
        assert!(is_due(3600, 3600, at(999_999)));
        assert!(is_due(i64::MIN, i64::MAX, at(0)));
    }

    #[test]
    fn tokens_survive_a_restart_and_are_private() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tokens");
        let mut tokens = Tokens::load(&path).unwrap();
        let token = |text: &str| Token { token: text.to_owned(), expires_at: at(3600) };
        tokens.keep(&spec("a"), &token("one"));
        tokens.keep(&spec("b"), &token("two"));
        tokens.keep(&spec("a"), &token("three"));
        tokens.save(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let tokens = Tokens::load(&path).unwrap();
        assert_eq!(tokens.find(&spec("a"), at(0)), Some(("three".to_owned(), false)));
        assert_eq!(tokens.find(&spec("b"), at(3000)), Some(("two".to_owned(), true)));
        assert_eq!(tokens.find(&spec("c"), at(0)), None);

        fs::write(&path, "{\"kept\":[{").unwrap();
        assert_eq!(Tokens::load(&path).unwrap().find(&spec("a"), at(0)), None, "half written counts as none");
    }
}
