//! `modules.cloudHub`: where nodes come, how many, and who they are.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use kubeedge_actors::config::{HostPort, Seconds, optional, or_default};
use kubeedge_proto::is_dns_subdomain;
use serde::{Deserialize, Deserializer, de::Error as _};

/// `modules.cloudHub`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct CloudHub {
    /// Whether nodes can connect.
    pub enable: bool,
    /// A node that is silent for longer is not connected any more; [`CloudHub::dead_after`] has a lower bound.
    /// KubeEdge's default is 30.
    keepalive_interval: Seconds,
    /// How many nodes may be connected at once.
    #[serde(deserialize_with = "node_limit")]
    pub node_limit: u32,
    /// Certificate of the authority, PEM, named `rootCA.crt`; [`CloudHub::authority_folder`] says what follows. The
    /// server's own certificate is issued at every start.
    #[serde(rename = "tlsCAFile", deserialize_with = "authority_certificate")]
    tls_ca_file: PathBuf,
    /// Its key, `rootCA.key` beside it.
    #[serde(rename = "tlsCAKeyFile", deserialize_with = "authority_key")]
    tls_ca_key_file: PathBuf,
    /// Addresses by which nodes reach this cloud: the server's certificate is for them.
    #[serde(deserialize_with = "or_default")]
    pub advertise_address: Vec<IpAddr>,
    /// The same by name.
    #[serde(deserialize_with = "names")]
    pub dns_names: Vec<String>,
    /// How long a node's certificate is valid, in days.
    pub edge_cert_signing_duration: Days,
    /// How long after its end a certificate may still be renewed by who has its key, in days; ours, KubeEdge has none.
    #[serde(deserialize_with = "grace_days")]
    edge_cert_grace_period: u32,
    /// A Secret of the cluster, `namespace/name`, that has the authority instead of the files; ours. It is made where
    /// there is none.
    #[serde(deserialize_with = "optional")]
    pub ca_secret: Option<SecretName>,
    /// Half of the time that a join token is valid unless told otherwise, in hours.
    pub token_refresh_duration: Hours,
    /// Where the link is served; the name is KubeEdge's, the link is gRPC.
    #[serde(deserialize_with = "or_default")]
    pub websocket: Link,
    /// Where enrolment is served.
    #[serde(deserialize_with = "or_default")]
    pub https: Enrolment,
}

impl Default for CloudHub {
    fn default() -> Self {
        Self {
            enable: true,
            keepalive_interval: Seconds::new(23),
            node_limit: 500,
            tls_ca_file: "/etc/kubeedge/ca/rootCA.crt".into(),
            tls_ca_key_file: "/etc/kubeedge/ca/rootCA.key".into(),
            advertise_address: Vec::new(),
            dns_names: Vec::new(),
            edge_cert_signing_duration: Days(365),
            edge_cert_grace_period: 30,
            ca_secret: None,
            token_refresh_duration: Hours(12),
            websocket: Link::default(),
            https: Enrolment::default(),
        }
    }
}

impl CloudHub {
    /// The folder of the authority's `rootCA.crt` and `rootCA.key`: the one that the file names if a certificate is
    /// there, so that a KubeEdge authority is taken over; otherwise one in the data folder, where it is made if need be.
    pub fn authority_folder(&self, data_dir: &Path) -> PathBuf {
        match self.tls_ca_file.parent() {
            Some(folder) if self.tls_ca_file.exists() && self.tls_ca_key_file.parent() == Some(folder) => {
                folder.to_owned()
            }
            _ => data_dir.join("pki"),
        }
    }

    /// How long after its end a certificate may still be renewed by who has its key.
    pub fn certificate_grace(&self) -> Duration {
        Duration::from_secs(u64::from(self.edge_cert_grace_period) * 86_400)
    }

    /// How long a silent link lives: long enough for two of an edge's heartbeats, which come every 10 s at least.
    pub fn dead_after(&self) -> Duration {
        self.keepalive_interval.duration().max(Duration::from_secs(20))
    }

    /// How long a join token is valid unless told otherwise: KubeEdge's rule.
    pub fn token_validity(&self) -> Duration {
        self.token_refresh_duration.duration() * 2
    }
}

/// `modules.cloudHub.websocket`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default)]
pub struct Link {
    /// The address to listen on.
    pub address: IpAddr,
    /// The port; 0 takes a free one.
    pub port: u16,
}

impl Default for Link {
    fn default() -> Self {
        Self { address: Ipv4Addr::UNSPECIFIED.into(), port: 10000 }
    }
}

impl Link {
    /// Both.
    pub fn socket(&self) -> SocketAddr {
        (self.address, self.port).into()
    }
}

/// `modules.cloudHub.https`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default)]
pub struct Enrolment {
    /// Whether boxes can enrol.
    pub enable: bool,
    /// The address to listen on.
    pub address: IpAddr,
    /// The port; 0 takes a free one.
    pub port: u16,
}

impl Default for Enrolment {
    fn default() -> Self {
        Self { enable: true, address: Ipv4Addr::UNSPECIFIED.into(), port: 10002 }
    }
}

impl Enrolment {
    /// Both.
    pub fn socket(&self) -> SocketAddr {
        (self.address, self.port).into()
    }
}

macro_rules! span {
    ($(#[$doc:meta])* $name:ident, $unit:literal, $seconds:literal, $max:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub struct $name(u32);

        impl $name {
            /// As a duration.
            pub fn duration(self) -> Duration {
                Duration::from_secs(u64::from(self.0) * $seconds)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                match u32::deserialize(deserializer)? {
                    count @ 1..=$max => Ok(Self(count)),
                    count => Err(D::Error::custom(format!(
                        concat!("{} is not valid, expected a number of ", $unit, " from 1 to ", $max),
                        count
                    ))),
                }
            }
        }
    };
}

span!(
    /// Whole hours, from 1 to a year.
    Hours, "hours", 3_600, 8_760
);

span!(
    /// Whole days, from 1 to ten years.
    Days, "days", 86_400, 3_650
);

/// A Secret's namespace and name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SecretName {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl FromStr for SecretName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once('/') {
            Some((namespace, name)) if is_dns_subdomain(namespace) && is_dns_subdomain(name) => {
                Ok(Self { namespace: namespace.to_owned(), name: name.to_owned() })
            }
            _ => Err(format!("{text:?} is not valid, expected namespace/name of a Secret, such as \"kubeedge/ca\"")),
        }
    }
}

impl<'de> Deserialize<'de> for SecretName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

fn grace_days<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    match u32::deserialize(deserializer)? {
        days @ 0..=3_650 => Ok(days),
        days => Err(D::Error::custom(format!("{days} is not valid, expected a number of days from 0 to 3650"))),
    }
}

fn authority_certificate<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PathBuf, D::Error> {
    named(deserializer, "rootCA.crt")
}

fn authority_key<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PathBuf, D::Error> {
    named(deserializer, "rootCA.key")
}

/// A path to a file of this name, or nothing.
fn named<'de, D: Deserializer<'de>>(deserializer: D, name: &str) -> Result<PathBuf, D::Error> {
    let path = PathBuf::deserialize(deserializer)?;
    if path.as_os_str().is_empty() || path.file_name().is_some_and(|it| it == name) {
        return Ok(path);
    }
    Err(D::Error::custom(format!(
        "{path:?} is not valid, expected a file named {name}, such as \"/etc/kubeedge/ca/{name}\""
    )))
}

fn node_limit<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    match u32::deserialize(deserializer)? {
        0 => Err(D::Error::custom("0 is not valid, expected a number of nodes of at least 1")),
        nodes => Ok(nodes),
    }
}

/// DNS names; KubeEdge writes an empty one where there is none.
fn names<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    let names: Vec<Name> = or_default(deserializer)?;
    Ok(names.into_iter().map(|Name(name)| name).filter(|name| !name.is_empty()).collect())
}

/// One of them, checked where it stands.
struct Name(String);

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        if name.is_empty() || HostPort::from_str(&format!("{name}:1")).is_ok() {
            Ok(Self(name))
        } else {
            Err(D::Error::custom(format!("{name:?} is not valid, expected a host name such as \"cloud.example\"")))
        }
    }
}
