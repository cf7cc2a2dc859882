//! `modules.metaManager`.

use std::net::{Ipv4Addr, SocketAddr};

use kubeedge_actors::config::or_default;
use serde::Deserialize;

/// `modules.metaManager`. The edge's copy itself has nothing to be set.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct MetaManager {
    /// The Kubernetes API at the edge.
    #[serde(deserialize_with = "or_default")]
    pub meta_server: MetaServer,
}

/// `modules.metaManager.metaServer`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default)]
pub struct MetaServer {
    /// Whether programs of this machine can read what the node holds as from an API server, Secrets included.
    pub enable: bool,
    /// Where it listens: an address of the loopback interface and a port.
    pub server: SocketAddr,
}

impl Default for MetaServer {
    fn default() -> Self {
        Self { enable: false, server: (Ipv4Addr::LOCALHOST, 10550).into() }
    }
}
