//! Joining a cloud: a token becomes this node's certificate. Done once, before EdgeHub runs.

use std::{path::Path, time::SystemTime};

use kubeedge_proto::{NodeName, v1::EnrolRequest};
use thiserror::Error;

use crate::{
    identity::{IdentityError, JoinToken, NodeIdentity, NodeKey, pinned_config, system_clock},
    link::client::{self, ConnectError},
};

/// A node that has joined.
#[derive(Debug)]
pub struct Joined {
    /// Its certificate, as it was written to disk.
    pub identity: NodeIdentity,
    /// `host:port` of the link.
    pub link_address: String,
}

/// Why a box did not become a node.
#[derive(Debug, Error)]
pub enum JoinError {
    /// This box has a certificate already.
    #[error("this box is node {0} already: remove its certificates to join again")]
    AlreadyJoined(NodeName),
    /// Keys and certificates.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The cloud was not reached, is not the one that the token names, or refused the token; the text says which.
    #[error("enrolment at the cloud: {0}")]
    Cloud(#[from] ConnectError),
}

/// Joins the cloud whose enrolment service is at `address` (`host:port`) under the name `node`.
///
/// `dir` is where keys and certificates go, laid out as KubeEdge does: `ca/rootCA.crt`, `certs/server.crt`,
/// `certs/server.key`. The key is made here and never leaves. Repeating a join whose answer was lost is safe.
pub async fn join(address: &str, token: &JoinToken, node: &NodeName, dir: &Path) -> Result<Joined, JoinError> {
    if let Some(identity) = NodeIdentity::load(dir)? {
        return Err(JoinError::AlreadyJoined(identity.node().clone()));
    }
    let key = NodeKey::load_or_create(dir)?;
    let tls = pinned_config(token.ca_hash, &[], system_clock())?;
    let request = EnrolRequest { token: token.credential.expose(), csr_der: key.request(node)?.into() };
    let answer = client::enrol(address, None, &tls, request).await?;
    let identity = key.accept(&answer.certificate_chain_pem, &token.ca_hash, SystemTime::now())?;
    let link_address = match answer.link_address.strip_prefix(':') {
        // The cloud knows its port, and not by which of its names it was reached.
        Some(port) => {
            let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
            format!("{host}:{port}")
        }
        None => answer.link_address,
    };
    Ok(Joined { identity, link_address })
}
