//! `edgecore.yaml`: the fields of KubeEdge's own file that mean something here, with KubeEdge's defaults.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    ops::RangeInclusive,
    path::{Path, PathBuf},
    time::Duration,
};

use kubeedge_actors::config::{Document, HostPort, Seconds, UnixEndpoint, optional, or_default, parsed};
use kubeedge_actors::edgehub::outbox::Bounds;
use kubeedge_proto::NodeName;
use serde::{Deserialize, Deserializer, de::Error as _};

/// Where the file is looked for when no flag names another.
pub const DEFAULT_FILE: &str = "/etc/kubeedge/config/edgecore.yaml";
/// The document that `--defaultconfig` prints.
pub const DEFAULT_TEXT: &str = include_str!("config/default.yaml");
/// The document that `--minconfig` prints.
pub const MIN_TEXT: &str = include_str!("config/min.yaml");
/// The port of the link at the cloud.
pub const LINK_PORT: u16 = 10000;
/// The port of enrolment at the cloud.
pub const ENROLMENT_PORT: u16 = 10002;

/// The document.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct EdgeCore {
    /// Where the edge keeps its state.
    #[serde(deserialize_with = "or_default")]
    pub database: Database,
    /// The components.
    #[serde(deserialize_with = "or_default")]
    pub modules: Modules,
}

impl Document for EdgeCore {
    const KIND: &'static str = "EdgeCore";
    const GROUP: &'static str = "edgecore.config.kubeedge.io";
    const WITHOUT_EFFECT: &'static [&'static str] = without_effect::FIELDS;
}

/// `database`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Database {
    /// KubeEdge's SQLite file. It is neither read nor written here; our store is a folder beside it.
    pub data_source: PathBuf,
}

impl Default for Database {
    fn default() -> Self {
        Self { data_source: "/var/lib/kubeedge/edgecore.db".into() }
    }
}

impl Database {
    /// The folder of our store: beside KubeEdge's database, with a name of its own.
    pub fn store_folder(&self) -> PathBuf {
        self.data_source.with_extension("store")
    }
}

/// `modules`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Modules {
    /// Pods.
    #[serde(deserialize_with = "or_default")]
    pub edged: Edged,
    /// The link to the cloud.
    #[serde(deserialize_with = "or_default")]
    pub edge_hub: EdgeHub,
    /// Logs for the cloud.
    #[serde(deserialize_with = "or_default")]
    pub edge_stream: EdgeStream,
    /// Devices, and mappers for them.
    #[serde(deserialize_with = "or_default")]
    pub device_twin: DeviceTwin,
    /// MQTT.
    #[serde(deserialize_with = "or_default")]
    pub event_bus: EventBus,
    /// The edge's copy of its objects, and the local API on it.
    #[serde(deserialize_with = "or_default")]
    pub meta_manager: MetaManager,
    /// HTTP between applications and rules of the cloud.
    #[serde(deserialize_with = "or_default")]
    pub service_bus: ServiceBus,
    /// What there is to see, live.
    #[serde(deserialize_with = "or_default")]
    pub views: Views,
}

/// `modules.edgeStream`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default)]
pub struct EdgeStream {
    /// Whether the cloud can read the logs of this node's containers. KubeEdge's default is false.
    pub enable: bool,
}

impl Default for EdgeStream {
    fn default() -> Self {
        Self { enable: true }
    }
}

/// `modules.edged`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Edged {
    /// Whether this node runs pods.
    pub enable: bool,
    /// The node's name; without it, the host's.
    #[serde(deserialize_with = "optional")]
    pub hostname_override: Option<NodeName>,
    /// The node's address; without it, that of the interface with the default route.
    #[serde(rename = "nodeIP", deserialize_with = "optional")]
    pub node_ip: Option<IpAddr>,
    /// Where volumes are made.
    pub root_directory: PathBuf,
    /// Labels that the node registers with.
    #[serde(deserialize_with = "or_default")]
    pub node_labels: BTreeMap<String, String>,
    /// Annotations that the node registers with. Not part of KubeEdge's file.
    #[serde(deserialize_with = "or_default")]
    pub node_annotations: BTreeMap<String, String>,
    /// Whether the node takes pods as soon as it is registered.
    pub register_schedulable: bool,
    /// Whether Kubernetes Events are made of what happens to pods. KubeEdge's default is false.
    pub report_event: bool,
    /// Older spelling of `tailoredKubeletConfig.containerRuntimeEndpoint`.
    #[serde(deserialize_with = "optional")]
    remote_runtime_endpoint: Option<UnixEndpoint>,
    /// Settings by the names that kubelet's configuration has.
    #[serde(deserialize_with = "or_default")]
    pub tailored_kubelet_config: KubeletConfig,
}

impl Default for Edged {
    fn default() -> Self {
        Self {
            enable: true,
            hostname_override: None,
            node_ip: None,
            root_directory: "/var/lib/kubelet".into(),
            node_labels: BTreeMap::new(),
            node_annotations: BTreeMap::new(),
            register_schedulable: true,
            report_event: true,
            remote_runtime_endpoint: None,
            tailored_kubelet_config: KubeletConfig::default(),
        }
    }
}

impl Edged {
    /// The container runtime's socket, by either of its names, or containerd's usual one.
    pub fn runtime_endpoint(&self) -> PathBuf {
        self.tailored_kubelet_config
            .container_runtime_endpoint
            .as_ref()
            .or(self.remote_runtime_endpoint.as_ref())
            .map_or_else(|| "/run/containerd/containerd.sock".into(), |endpoint| endpoint.path().to_owned())
    }
}

/// The link's own pause between heartbeats: a file can only make it shorter.
const LONGEST_HEARTBEAT: Duration = Duration::from_secs(10);

/// `modules.edgeHub`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct EdgeHub {
    /// Whether this node talks to a cloud. Without it, what is on disk goes on running.
    pub enable: bool,
    /// Pause between heartbeats; [`EdgeHub::heartbeat_interval`] has an upper bound, below KubeEdge's default of 15.
    heartbeat: Seconds,
    /// Certificate of the cloud's authority, PEM: `<folder>/ca/rootCA.crt`.
    pub tls_ca_file: PathBuf,
    /// This node's certificate, PEM: `<folder>/certs/server.crt`.
    pub tls_cert_file: PathBuf,
    /// Its key, PEM: `<folder>/certs/server.key`.
    pub tls_private_key_file: PathBuf,
    /// Whether the certificate is renewed before it ends.
    pub rotate_certificates: bool,
    /// Join token: used while there is no certificate.
    pub token: Token,
    /// Where enrolment is served.
    #[serde(deserialize_with = "https_url")]
    pub http_server: HostPort,
    /// Where the link is served.
    #[serde(deserialize_with = "or_default")]
    pub websocket: WebSocket,
    /// Events that wait for the cloud. Not KubeEdge's.
    #[serde(deserialize_with = "or_default")]
    pub outbox: Outbox,
}

impl Default for EdgeHub {
    fn default() -> Self {
        Self {
            enable: true,
            heartbeat: Seconds::new(10),
            tls_ca_file: "/etc/kubeedge/ca/rootCA.crt".into(),
            tls_cert_file: "/etc/kubeedge/certs/server.crt".into(),
            tls_private_key_file: "/etc/kubeedge/certs/server.key".into(),
            rotate_certificates: true,
            token: Token::default(),
            http_server: local(ENROLMENT_PORT),
            websocket: WebSocket::default(),
            outbox: Outbox::default(),
        }
    }
}

/// Files that are not laid out as KubeEdge lays them out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "modules.edgeHub: expected tlsCaFile, tlsCertFile and tlsPrivateKeyFile to be ca/rootCA.crt, certs/server.crt and \
     certs/server.key of one folder, such as /etc/kubeedge"
)]
pub struct ScatteredIdentity;

impl EdgeHub {
    /// Pause between heartbeats: at most 10 s, so that two fit into the 23 s after which a silent link is dead.
    pub fn heartbeat_interval(&self) -> Duration {
        self.heartbeat.duration().min(LONGEST_HEARTBEAT)
    }

    /// The folder of the node's certificate and key.
    pub fn identity_folder(&self) -> Result<&Path, ScatteredIdentity> {
        let folder = self.tls_cert_file.parent().and_then(Path::parent).ok_or(ScatteredIdentity)?;
        let expected = ["ca/rootCA.crt", "certs/server.crt", "certs/server.key"].map(|file| folder.join(file));
        if expected == [&self.tls_ca_file, &self.tls_cert_file, &self.tls_private_key_file].map(PathBuf::clone) {
            Ok(folder)
        } else {
            Err(ScatteredIdentity)
        }
    }
}

fn https_url<'de, D: Deserializer<'de>>(deserializer: D) -> Result<HostPort, D::Error> {
    let url = String::deserialize(deserializer)?;
    HostPort::of_https_url(&url, ENROLMENT_PORT).map_err(D::Error::custom)
}

/// `modules.edgeHub.websocket`: the name is KubeEdge's, the link is gRPC.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default)]
pub struct WebSocket {
    /// Where the link is served.
    #[serde(deserialize_with = "parsed")]
    pub server: HostPort,
}

impl Default for WebSocket {
    fn default() -> Self {
        Self { server: local(LINK_PORT) }
    }
}

/// `modules.edgeHub.outbox`: what the outbox holds at most; beyond it the oldest are dropped.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Outbox {
    /// Events.
    #[serde(deserialize_with = "outbox_events")]
    max_events: usize,
    /// Their bytes.
    #[serde(deserialize_with = "outbox_bytes")]
    max_bytes: usize,
    /// How long one is of use to anybody.
    max_age_seconds: Seconds,
}

impl Default for Outbox {
    fn default() -> Self {
        let Bounds { max_events, max_bytes, .. } = Bounds::default();
        // One day, as `Bounds` has it.
        Self { max_events, max_bytes, max_age_seconds: Seconds::new(24 * 60 * 60) }
    }
}

impl Outbox {
    /// As EdgeHub takes them.
    pub fn bounds(&self) -> Bounds {
        let Self { max_events, max_bytes, max_age_seconds } = *self;
        Bounds { max_events, max_bytes, max_age: max_age_seconds.duration() }
    }
}

fn outbox_events<'de, D: Deserializer<'de>>(deserializer: D) -> Result<usize, D::Error> {
    within(Bounds::EVENTS, "events", deserializer)
}

fn outbox_bytes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<usize, D::Error> {
    within(Bounds::BYTES, "bytes", deserializer)
}

fn within<'de, D: Deserializer<'de>>(
    range: RangeInclusive<usize>,
    what: &str,
    deserializer: D,
) -> Result<usize, D::Error> {
    let number = u32::deserialize(deserializer)?;
    usize::try_from(number).ok().filter(|number| range.contains(number)).ok_or_else(|| {
        let (least, most) = range.into_inner();
        D::Error::custom(format!("{number} is not valid, expected from {least} to {most} {what}"))
    })
}

/// A cloud on this machine: what a file without an address means.
fn local(port: u16) -> HostPort {
    HostPort::from((std::net::Ipv4Addr::LOCALHOST.into(), port))
}

/// A join token. Not shown in logs.
#[derive(Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Token(String);

impl Token {
    /// The token, if one is given.
    pub fn get(&self) -> Option<&str> {
        Some(self.0.as_str()).filter(|token| !token.is_empty())
    }
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.0.is_empty() { "Token(none)" } else { "Token(...)" })
    }
}

// Their paths are said because the fuzz target includes this file: it needs no more of this crate than the document.
#[path = "config/devices.rs"]
mod devices;
#[path = "config/event_bus.rs"]
mod event_bus;
#[path = "config/kubelet.rs"]
mod kubelet;
#[path = "config/meta_manager.rs"]
mod meta_manager;
#[path = "config/service_bus.rs"]
mod service_bus;
#[path = "config/views.rs"]
mod views;
#[path = "config/without_effect.rs"]
mod without_effect;

pub use devices::DeviceTwin;
pub use event_bus::{EventBus, EventBusTls, MqttMode};
pub use kubelet::{CgroupDriver, KubeletConfig};
pub use meta_manager::{MetaManager, MetaServer};
pub use service_bus::ServiceBus;
pub use views::Views;

#[cfg(test)]
mod tests;
