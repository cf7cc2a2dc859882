//! `cloudcore.yaml`: the fields of KubeEdge's own file that mean something here, with KubeEdge's defaults, and
//! `standalone`, which is ours.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use kubeedge_actors::{
    config::{Document, HostPort, Seconds, optional, or_default},
    grants::Grants,
};
use kubeedge_proto::is_dns_subdomain;
use serde::{Deserialize, Deserializer, de::Error as _};

/// Where the file is looked for when no flag names another.
pub const DEFAULT_FILE: &str = "/etc/kubeedge/config/cloudcore.yaml";
/// The document that `--defaultconfig` prints.
pub const DEFAULT_TEXT: &str = include_str!("config/default.yaml");
/// The document that `--minconfig` prints.
pub const MIN_TEXT: &str = include_str!("config/min.yaml");

/// The document.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct CloudCore {
    /// Which cluster.
    #[serde(rename = "kubeAPIConfig", deserialize_with = "or_default")]
    pub kube_api_config: KubeApi,
    /// The components.
    #[serde(deserialize_with = "or_default")]
    pub modules: Modules,
    /// The embedded API server, and the folder where cloudcore keeps its own state.
    #[serde(deserialize_with = "or_default")]
    pub standalone: Standalone,
}

impl Document for CloudCore {
    const KIND: &'static str = "CloudCore";
    const GROUP: &'static str = "cloudcore.config.kubeedge.io";
    const WITHOUT_EFFECT: &'static [&'static str] = without_effect::FIELDS;
}

/// `kubeAPIConfig`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct KubeApi {
    /// A kubeconfig file. Without it: the pod's own service account, or the embedded API server.
    #[serde(deserialize_with = "optional")]
    pub kube_config: Option<PathBuf>,
}

/// `modules`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Modules {
    /// The link's server.
    #[serde(deserialize_with = "or_default")]
    pub cloud_hub: CloudHub,
    /// Nodes, pods and their configuration.
    #[serde(deserialize_with = "or_default")]
    pub edge_controller: EdgeController,
    /// Devices.
    #[serde(deserialize_with = "or_default")]
    pub device_controller: DeviceController,
    /// What programs at nodes ask of the API server through their local APIs.
    #[serde(deserialize_with = "or_default")]
    pub dynamic_controller: DynamicController,
    /// The gateway to the logs of containers.
    #[serde(deserialize_with = "or_default")]
    pub cloud_stream: CloudStream,
    /// The webhook for autonomous pods.
    #[serde(deserialize_with = "or_default")]
    pub admission: Admission,
    /// Rules.
    #[serde(deserialize_with = "or_default")]
    pub router: Router,
    /// What there is to see, live.
    #[serde(deserialize_with = "or_default")]
    pub views: Views,
}

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

/// `modules.edgeController`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default)]
pub struct EdgeController {
    /// Whether nodes get pods and their configuration.
    pub enable: bool,
}

impl Default for EdgeController {
    fn default() -> Self {
        Self { enable: true }
    }
}

/// `modules.deviceController`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct DeviceController {
    /// Whether nodes get devices.
    pub enable: bool,
    /// How often DeviceStatuses are written. Not KubeEdge's.
    #[serde(deserialize_with = "or_default")]
    pub status_writes: StatusWrites,
}

impl Default for DeviceController {
    fn default() -> Self {
        Self { enable: true, status_writes: StatusWrites::default() }
    }
}

/// `modules.deviceController.statusWrites`: writes a second; a device's own status is written once a second at most.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct StatusWrites {
    /// For the devices of one node.
    #[serde(deserialize_with = "writes")]
    pub per_node: u32,
    /// For all devices.
    #[serde(deserialize_with = "writes")]
    pub total: u32,
}

impl Default for StatusWrites {
    fn default() -> Self {
        // DeviceController's own.
        Self { per_node: 100, total: 500 }
    }
}

fn writes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    match u32::deserialize(deserializer)? {
        0 => Err(D::Error::custom("0 is not valid, expected a number of writes of at least 1")),
        writes => Ok(writes),
    }
}

/// `modules.cloudStream`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct CloudStream {
    /// Whether logs can be read. KubeEdge's default is false.
    pub enable: bool,
    /// The address to listen on; ours, KubeEdge has none. The API server has to reach it.
    pub address: IpAddr,
    /// The port; 0 takes a free one. Nodes are published with the one that was taken.
    pub stream_port: u16,
    /// Certificate of the authority of the API server's client certificate, PEM. Where there is none, and with the
    /// embedded API server, it is this cloud's own authority.
    #[serde(rename = "tlsStreamCAFile")]
    pub tls_stream_ca_file: PathBuf,
}

impl Default for CloudStream {
    fn default() -> Self {
        Self {
            enable: true,
            address: Ipv4Addr::UNSPECIFIED.into(),
            stream_port: 10003,
            tls_stream_ca_file: "/etc/kubeedge/ca/streamCA.crt".into(),
        }
    }
}

/// `modules.dynamicController`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct DynamicController {
    /// Whether requests of the local APIs of nodes are answered.
    pub enable: bool,
    /// What a node may without a token, beside what any node may. Ours: KubeEdge's nodes may what its cloudcore may.
    #[serde(deserialize_with = "or_default")]
    pub grants: Grants,
}

/// `modules.admission`: ours. In KubeEdge it is a program of its own.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default)]
pub struct Admission {
    /// Whether the webhook is served. A cluster asks it once a `MutatingWebhookConfiguration` names it.
    pub enable: bool,
    /// The address to listen on. The API server has to reach it.
    pub address: IpAddr,
    /// The port; 0 takes a free one.
    pub port: u16,
}

impl Default for Admission {
    fn default() -> Self {
        Self { enable: false, address: Ipv4Addr::UNSPECIFIED.into(), port: 10005 }
    }
}

/// `modules.router`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Router {
    /// Whether rules are carried out.
    pub enable: bool,
    /// The address of the REST server.
    pub address: IpAddr,
    /// Its port; 0 takes a free one.
    pub port: u16,
    /// How long a request may take until its answer begins, in seconds.
    pub rest_timeout: Seconds,
    /// Whether the REST server is HTTPS, with this cloud's certificate. Ours, like those below.
    pub tls: bool,
    /// A file of bearer tokens, one a line, of which a request must show one.
    #[serde(deserialize_with = "file")]
    pub token_file: Option<PathBuf>,
    /// Authorities, PEM, that may have issued the certificates of `https://` targets, beside those of this machine.
    #[serde(rename = "tlsCAFile", deserialize_with = "file")]
    pub tls_ca_file: Option<PathBuf>,
}

impl Default for Router {
    fn default() -> Self {
        Self {
            enable: false,
            address: Ipv4Addr::UNSPECIFIED.into(),
            port: 9443,
            rest_timeout: Seconds::new(60),
            tls: false,
            token_file: None,
            tls_ca_file: None,
        }
    }
}

/// `modules.views`: ours.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Views {
    /// Whether `/ws/events` is served.
    pub enable: bool,
    /// The address to listen on. One that others reach needs a file of tokens.
    pub address: IpAddr,
    /// The port; 0 takes a free one.
    pub port: u16,
    /// Whether it is HTTPS, with this cloud's certificate.
    pub tls: bool,
    /// A file of bearer tokens, one a line, of which a client must show one.
    #[serde(deserialize_with = "file")]
    pub token_file: Option<PathBuf>,
}

impl Default for Views {
    fn default() -> Self {
        Self { enable: false, address: Ipv4Addr::LOCALHOST.into(), port: 10006, tls: false, token_file: None }
    }
}

/// A path; an empty one is none.
fn file<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<PathBuf>, D::Error> {
    let path: Option<PathBuf> = Option::deserialize(deserializer)?;
    Ok(path.filter(|path| !path.as_os_str().is_empty()))
}

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

// Its path is said because the fuzz target includes this file: it needs no more of this crate than the document.
#[path = "config/without_effect.rs"]
mod without_effect;

#[cfg(test)]
mod tests;
