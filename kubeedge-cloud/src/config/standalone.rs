//! `standalone`: the embedded API server, and where cloudcore keeps what it has.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    str::FromStr,
};

use kubeedge_actors::config::optional;
use serde::Deserialize;

/// `standalone`: ours, not KubeEdge's.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Standalone {
    /// Whether the embedded API server runs; `--standalone` switches it on.
    pub enable: bool,
    /// The address it listens on.
    pub address: IpAddr,
    /// The port; 0 takes a free one.
    pub port: u16,
    /// The addresses that Services get, an IPv4 network; none is the API server's own default. The flag
    /// `--service-cluster-ip-range` names another.
    #[serde(rename = "serviceClusterIPRange", deserialize_with = "optional")]
    pub service_cluster_ip_range: Option<ServiceRange>,
    /// Where pods and nodes reach it: the endpoint of `default/kubernetes`. None is the address listened on, and where
    /// that is every address, this machine's own. The flag `--advertise-address` names another.
    #[serde(deserialize_with = "optional")]
    pub advertise_address: Option<AdvertiseAddress>,
    /// The folder of everything that cloudcore keeps, with and without the API server: authority, tokens, objects,
    /// the control socket. `--data-dir` names another.
    pub data_dir: PathBuf,
}

impl Default for Standalone {
    fn default() -> Self {
        Self {
            enable: false,
            address: Ipv4Addr::LOCALHOST.into(),
            port: 6443,
            service_cluster_ip_range: None,
            advertise_address: None,
            data_dir: "/var/lib/kubeedge/cloudcore".into(),
        }
    }
}

impl Standalone {
    /// Address and port.
    pub fn socket(&self) -> SocketAddr {
        (self.address, self.port).into()
    }
}

/// The addresses of Services.
#[cfg(feature = "standalone")]
pub use kubeedge_actors::apiserver::ServiceRange;
/// The addresses of Services, as they are written: this build has no API server that could use them.
#[cfg(not(feature = "standalone"))]
pub type ServiceRange = String;

/// An address that others can reach this machine by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AdvertiseAddress(pub IpAddr);

/// Why a text is no such address.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is not valid, expected an address by which pods and nodes reach this machine, such as \"192.0.2.10\"")]
pub struct NotReachable(String);

impl FromStr for AdvertiseAddress {
    type Err = NotReachable;

    fn from_str(text: &str) -> Result<Self, NotReachable> {
        // As Kubernetes has it for the addresses of endpoints.
        let special = |address: &IpAddr| {
            let link_local = match address {
                IpAddr::V4(address) => address.is_link_local(),
                IpAddr::V6(address) => address.is_unicast_link_local(),
            };
            address.is_unspecified() || address.is_loopback() || address.is_multicast() || link_local
        };
        let parsed = text.parse().ok().filter(|address| !special(address));
        parsed.map(Self).ok_or_else(|| NotReachable(text.chars().take(260).collect()))
    }
}
