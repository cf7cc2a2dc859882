//! `modules.serviceBus`.

use std::{
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
};

use kubeedge_actors::config::{HostPort, Seconds, or_default};
use serde::Deserialize;

/// `modules.serviceBus`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ServiceBus {
    /// Whether rules of the cloud reach HTTP services of this node, and its applications the cloud.
    pub enable: bool,
    /// Where applications call it.
    pub server: IpAddr,
    /// The port there.
    pub port: u16,
    /// How long a service, or the cloud, may take to answer, in seconds.
    pub timeout: Seconds,
    /// Certificate for that port, PEM; without one it is plain HTTP.
    pub tls_cert_file: PathBuf,
    /// Its key, PEM.
    pub tls_private_key_file: PathBuf,
    /// Services that rules may call, and no others; none: every port of the loopback interface. Not KubeEdge's.
    #[serde(deserialize_with = "or_default")]
    pub allow: Vec<HostPort>,
}

impl Default for ServiceBus {
    fn default() -> Self {
        Self {
            enable: false,
            server: Ipv4Addr::LOCALHOST.into(),
            port: 9060,
            timeout: Seconds::new(60),
            tls_cert_file: PathBuf::new(),
            tls_private_key_file: PathBuf::new(),
            allow: Vec::new(),
        }
    }
}
