//! `modules.views`: ours, not KubeEdge's.

use std::{
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
};

use serde::Deserialize;

/// `modules.views`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Views {
    /// Whether `/ws/events` is served.
    pub enable: bool,
    /// The address to listen on. One that others reach needs a file of tokens.
    pub address: IpAddr,
    /// The port; 0 takes a free one.
    pub port: u16,
    /// Certificate for it, PEM; without one it is plain HTTP.
    pub tls_cert_file: PathBuf,
    /// Its key, PEM.
    pub tls_private_key_file: PathBuf,
    /// A file of bearer tokens, one a line, of which a client must show one.
    pub token_file: PathBuf,
}

impl Default for Views {
    fn default() -> Self {
        Self {
            enable: false,
            address: Ipv4Addr::LOCALHOST.into(),
            port: 10352,
            tls_cert_file: PathBuf::new(),
            tls_private_key_file: PathBuf::new(),
            token_file: PathBuf::new(),
        }
    }
}
