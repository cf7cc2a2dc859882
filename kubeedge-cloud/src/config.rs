//! `cloudcore.yaml`: the fields of KubeEdge's own file that mean something here, with KubeEdge's defaults, and
//! `standalone`, which is ours.

use std::{
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
};

use kubeedge_actors::{
    config::{Document, Seconds, optional, or_default},
    grants::Grants,
};
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

// Their paths are said because the fuzz target includes this file: it needs no more of this crate than the document.
#[path = "config/cloud_hub.rs"]
mod cloud_hub;
#[path = "config/standalone.rs"]
mod standalone;
#[path = "config/without_effect.rs"]
mod without_effect;

pub use cloud_hub::{CloudHub, Days, Enrolment, Hours, Link, SecretName};
pub use standalone::{AdvertiseAddress, NotReachable, ServiceRange, Standalone};

#[cfg(test)]
mod tests;
