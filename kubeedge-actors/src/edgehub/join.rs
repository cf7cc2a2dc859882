//! Joining a cloud: a token becomes this node's certificate. Done once, before EdgeHub runs.

use std::path::Path;

use kubeedge_proto::{NodeName, v1::EnrolRequest};
use thiserror::Error;

use crate::{
    identity::{FlooredClock, IdentityError, JoinToken, NodeIdentity, NodeKey, joining_config},
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
/// `certs/server.key`. The key is made here, unless it is there already, and never leaves. Repeating a join whose answer
/// was lost is safe. The token's secret is sent only to a server of the authority that the token pins.
pub async fn join(address: &str, token: &JoinToken, node: &NodeName, dir: &Path) -> Result<Joined, JoinError> {
    let key = NodeKey::load_or_create(dir)?;
    let clock = FlooredClock::load(dir);
    let tls = joining_config(token.ca_hash, &[], &clock)?;
    let request = EnrolRequest { token: token.credential.expose(), csr_der: key.request(node)?.into() };
    let answer = client::enrol(address, None, &tls, request).await?;
    let identity = key.accept_by(&answer.certificate_chain_pem, &token.ca_hash, &clock)?;
    let link_address = link_address(address, &answer.link_address);
    Ok(Joined { identity, link_address })
}

/// The cloud knows its port, and not by which of its names it was reached: then it says `:port`.
fn link_address(asked: &str, said: &str) -> String {
    match said.strip_prefix(':') {
        Some(port) => {
            let host = asked.rsplit_once(':').map_or(asked, |(host, _)| host);
            format!("{host}:{port}")
        }
        None => said.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_link_is_where_the_cloud_says_or_where_it_was_asked() {
        assert_eq!(link_address("cloud.example:10002", ":4321"), "cloud.example:4321");
        assert_eq!(link_address("[2001:db8::1]:10002", ":4321"), "[2001:db8::1]:4321");
        assert_eq!(link_address("cloud.example:10002", "other.example:4321"), "other.example:4321");
    }
}
