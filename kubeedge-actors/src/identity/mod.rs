//! Who is who: the cloud's certificate authority, the nodes' certificates, join tokens, service account tokens.
//!
//! **Joining.** The operator makes a join token ([`Tokens::create`]) and pastes it at the edge. It holds the hash of
//! the cloud's CA: the box connects with [`pinned_config`], which accepts only a server of exactly that CA, and only
//! then sends the token's other part with a request for a certificate ([`NodeKey::request`]); its key never leaves
//! it. The cloud reads the request ([`NodeRequest::parse`]), takes the token ([`Tokens::redeem`], on disk before
//! anything is handed out) and signs ([`CertificateAuthority::sign`]). The box checks and keeps the answer
//! ([`NodeKey::accept`]); from then on it is a [`NodeIdentity`].
//!
//! **The link** is TLS with certificates on both sides ([`server_config`], [`client_config`]). A node's name is what
//! [`peer_node_name`] reads from the certificate of the connection, never from a message.
//!
//! **Offline** nothing is needed: keys and certificates are files, as KubeEdge has them.
//!
//! Clocks come in as arguments. Everything is ECDSA on P-256 with ring; nothing switches verification off.

mod authority;
mod clock;
mod credentials;
pub(crate) mod files;
mod hash;
mod join_token;
mod names;
mod node;
mod registrar;
mod request;
mod revocations;
mod rollover;
mod service_account;
pub(crate) mod tls;
#[cfg(feature = "store")]
mod tokens;

#[cfg(test)]
mod tests;

use std::{
    io,
    path::PathBuf,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use thiserror::Error;

pub use authority::{CertificateAuthority, IssuedCertificate};
pub use clock::FlooredClock;
pub use credentials::{NodeCredentials, ServerCredentials};
pub use hash::{CaHash, InvalidCaHash, authority_capability, signing_authority};
pub use join_token::{Credential, InvalidJoinToken, JoinToken};
pub use names::{NODES_GROUP, NotANode, peer_node_name, peer_user, validity};
pub use node::{NodeIdentity, NodeKey};
pub use registrar::Registrar;
pub use request::{NodeRequest, RequestError};
pub use revocations::{NodeRevoked, RevocationError, Revocations, RevokedNode};
pub use service_account::{BearerError, Binding, Claims, Reference, ServiceAccountTokens};
pub use tls::{
    ALPN_H2, ClientAuth, client_config, issued_client_config, joining_config, pinned_config, server_config,
    system_clock,
};
#[cfg(feature = "store")]
pub use tokens::{DEFAULT_LIFE, Grant, TokenError, TokenInfo, TokenRules, Tokens};

/// Why an identity could not be made, read or used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum IdentityError {
    /// A file that has to be there is not.
    #[error("{path} is missing, although the files that belong to it are there: restore it")]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// The operating system refused.
    #[error("cannot {doing} {path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// What was being done.
        doing: &'static str,
        /// What the operating system said.
        source: io::Error,
    },
    /// A file is not what it should be.
    #[error("{path}: {why}")]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The cloud's answer to a request for a certificate is wrong; nothing was written.
    #[error("the certificate cannot be used: {why}")]
    Answer {
        /// What is wrong with it.
        why: String,
    },
    /// A request for a certificate is refused.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// The node is revoked.
    #[error(transparent)]
    Revoked(#[from] NodeRevoked),
    /// A certificate could not be made.
    #[error("cannot make the certificate: {0}")]
    Certificate(#[from] rcgen::Error),
    /// A TLS configuration could not be made.
    #[error("cannot configure TLS: {0}")]
    Tls(#[from] rustls::Error),
    /// The operating system gave no random bytes.
    #[error("the operating system gives no random bytes")]
    Random,
}

pub(crate) fn time_of(time: &x509_parser::time::ASN1Time) -> SystemTime {
    // A certificate that ended before 1970 ended, no matter when.
    UNIX_EPOCH + Duration::from_secs(u64::try_from(time.timestamp()).unwrap_or(0))
}
