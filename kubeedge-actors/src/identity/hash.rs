//! The hash by which a certificate authority is pinned.

use std::{fmt, str::FromStr};

use ring::digest::{SHA256, digest};
use rustls::pki_types::CertificateDer;
use thiserror::Error;

/// SHA-256 of a CA certificate's DER, as in the first part of a join token.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct CaHash([u8; 32]);

/// Text that is no [`CaHash`].
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("a CA hash is 64 hexadecimal digits (the SHA-256 of the CA certificate's DER)")]
pub struct InvalidCaHash;

impl CaHash {
    /// The hash of a certificate.
    pub fn of(certificate: &CertificateDer<'_>) -> Self {
        Self(sha256(certificate))
    }
}

impl FromStr for CaHash {
    type Err = InvalidCaHash;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut hash = [0; 32];
        if text.len() != 64 || !text.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return Err(InvalidCaHash);
        }
        for (byte, digits) in hash.iter_mut().zip(text.as_bytes().chunks(2)) {
            let digits = std::str::from_utf8(digits).map_err(|_| InvalidCaHash)?;
            *byte = u8::from_str_radix(digits, 16).map_err(|_| InvalidCaHash)?;
        }
        Ok(Self(hash))
    }
}

impl fmt::Display for CaHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for CaHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CaHash({self})")
    }
}

/// How a cloud says, in the capabilities of its Welcome, which CA signs.
pub fn authority_capability(ca: &CaHash) -> String {
    format!("{AUTHORITY}{ca}")
}

/// The CA that signs, out of a Welcome's capabilities.
pub fn signing_authority(capabilities: &[String]) -> Option<CaHash> {
    capabilities.iter().find_map(|capability| capability.strip_prefix(AUTHORITY)?.parse().ok())
}

const AUTHORITY: &str = "authority/";

pub(crate) fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest(&SHA256, bytes).as_ref());
    hash
}
