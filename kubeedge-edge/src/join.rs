//! How a box becomes a node: it makes a key, gets a certificate for it by token, and writes its configuration file.

use std::{
    fs::{self, DirBuilder, File},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use kubeedge_actors::{
    config::{HostPort, InvalidValue, UnixEndpoint},
    edgehub,
    identity::{IdentityError, InvalidJoinToken, JoinToken, NodeIdentity},
};
use kubeedge_proto::{InvalidNodeName, NodeName};
use thiserror::Error;

use crate::config::{DEFAULT_FILE, LINK_PORT};

/// Where certificates are kept unless told otherwise: as in KubeEdge.
const IDENTITY_DIR: &str = "/etc/kubeedge";

/// Why a box did not become a node.
#[derive(Debug, Error)]
pub enum JoinError {
    /// Not a token.
    #[error(transparent)]
    Token(#[from] InvalidJoinToken),
    /// The host's name does not do as a node's.
    #[error("the host's name cannot be the node's: {0}; give one with --node-name")]
    HostName(InvalidNodeName),
    /// There is an earlier join.
    #[error("{} is there: this box was joined before; --force joins it again", .0.display())]
    Joined(PathBuf),
    /// The cloud did not give a certificate, or it could not be kept.
    #[error(transparent)]
    Enrolment(#[from] edgehub::join::JoinError),
    /// Keys and certificates.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The cloud's answer names no usable address of the link.
    #[error("the cloud's address of the link: {0}")]
    Link(InvalidValue),
    /// The configuration file was not written.
    #[error("write {}: {source}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A path that YAML cannot hold.
    #[error("{} is not UTF-8: choose another folder", .0.display())]
    Path(PathBuf),
}

/// What `edgecore join` was told.
pub struct Join {
    cloud: HostPort,
    token: JoinToken,
    node: NodeName,
    data_dir: Option<PathBuf>,
    config: PathBuf,
    runtime: Option<UnixEndpoint>,
    force: bool,
}

/// What came of it.
#[derive(Debug)]
pub struct Joined {
    /// The node's name.
    pub node: NodeName,
    /// Where it will connect.
    pub link: HostPort,
    /// The file that was written.
    pub config: PathBuf,
}

impl Join {
    /// Joins the cloud that serves enrolment at `cloud`. Everything is kept in `data_dir` if one is given, and the
    /// configuration written to `config` if one is given.
    pub fn new(
        cloud: HostPort,
        token: &str,
        node: Option<NodeName>,
        data_dir: Option<&Path>,
        config: Option<PathBuf>,
    ) -> Result<Self, JoinError> {
        let data_dir = data_dir.map(absolute).transpose()?;
        let config = config
            .or_else(|| data_dir.as_ref().map(|folder| folder.join("edgecore.yaml")))
            .unwrap_or_else(|| DEFAULT_FILE.into());
        let node = node.map_or_else(host_name, Ok)?;
        Ok(Self {
            cloud,
            token: token.parse()?,
            node,
            data_dir,
            config: absolute(&config)?,
            runtime: None,
            force: false,
        })
    }

    /// Uses another container runtime than containerd's usual one.
    #[must_use]
    pub fn runtime(self, runtime: Option<UnixEndpoint>) -> Self {
        Self { runtime, ..self }
    }

    /// Replaces what an earlier join wrote.
    #[must_use]
    pub fn force(self, force: bool) -> Self {
        Self { force, ..self }
    }

    fn identity_dir(&self) -> &Path {
        self.data_dir.as_deref().unwrap_or(Path::new(IDENTITY_DIR))
    }
}

/// The node's name when none is given: the host's, in lower case.
pub fn host_name() -> Result<NodeName, JoinError> {
    let name = rustix::system::uname().nodename().to_string_lossy().to_lowercase();
    name.parse().map_err(JoinError::HostName)
}

/// Gets a certificate and writes the configuration file.
pub async fn run(join: &Join) -> Result<Joined, JoinError> {
    if !join.force {
        if join.config.exists() {
            return Err(JoinError::Joined(join.config.clone()));
        }
        if NodeIdentity::load(join.identity_dir())?.is_some() {
            return Err(JoinError::Joined(join.identity_dir().join("certs/server.crt")));
        }
    }
    let (_, link) = enrol(&join.cloud, &join.token, &join.node, join.identity_dir()).await?;
    let text = render(join, &link)?;
    write(&join.config, &text).map_err(|source| JoinError::Write { path: join.config.clone(), source })?;
    Ok(Joined { node: join.node.clone(), link, config: join.config.clone() })
}

/// Gets the first certificate of `node` into `identity_dir`, and learns where the link is served.
pub async fn enrol(
    cloud: &HostPort,
    token: &JoinToken,
    node: &NodeName,
    identity_dir: &Path,
) -> Result<(NodeIdentity, HostPort), JoinError> {
    let joined = edgehub::join::join(&cloud.to_string(), token, node, identity_dir).await?;
    let link = HostPort::parse(&joined.link_address, Some(LINK_PORT)).map_err(JoinError::Link)?;
    Ok((joined.identity, link))
}

/// The configuration file of a node that has joined. Everything that is not said has its default.
fn render(join: &Join, link: &HostPort) -> Result<String, JoinError> {
    let text = |path: &Path| path.to_str().map(quote).ok_or_else(|| JoinError::Path(path.to_owned()));
    let mut yaml = String::from("# Written by `edgecore join`.\n");
    yaml.push_str("apiVersion: edgecore.config.kubeedge.io/v1alpha2\nkind: EdgeCore\n");
    if let Some(folder) = &join.data_dir {
        yaml.push_str(&format!("database:\n  dataSource: {}\n", text(&folder.join("edgecore.db"))?));
    }
    yaml.push_str(&format!(
        "modules:\n  edgeHub:\n    httpServer: {}\n    websocket:\n      server: {}\n",
        quote(&format!("https://{}", join.cloud)),
        quote(&link.to_string())
    ));
    if let Some(folder) = &join.data_dir {
        for (field, file) in [
            ("tlsCaFile", "ca/rootCA.crt"),
            ("tlsCertFile", "certs/server.crt"),
            ("tlsPrivateKeyFile", "certs/server.key"),
        ] {
            yaml.push_str(&format!("    {field}: {}\n", text(&folder.join(file))?));
        }
    }
    if let Some(folder) = &join.data_dir {
        yaml.push_str(&format!("  deviceTwin:\n    dmiSockPath: {}\n", text(folder)?));
    }
    yaml.push_str(&format!("  edged:\n    hostnameOverride: {}\n", quote(join.node.as_str())));
    if let Some(folder) = &join.data_dir {
        yaml.push_str(&format!("    rootDirectory: {}\n", text(&folder.join("kubelet"))?));
    }
    if join.data_dir.is_some() || join.runtime.is_some() {
        yaml.push_str("    tailoredKubeletConfig:\n");
    }
    if let Some(runtime) = &join.runtime {
        yaml.push_str(&format!("      containerRuntimeEndpoint: {}\n", text(runtime.path())?));
    }
    if let Some(folder) = &join.data_dir {
        yaml.push_str(&format!("      podLogsDir: {}\n", text(&folder.join("logs/pods"))?));
    }
    Ok(yaml)
}

/// A quoted text: JSON's is YAML's, too.
fn quote(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

fn absolute(path: &Path) -> Result<PathBuf, JoinError> {
    std::path::absolute(path).map_err(|source| JoinError::Write { path: path.to_owned(), source })
}

/// Writes the whole file or nothing, through a name beside it.
fn write(path: &Path, text: &str) -> io::Result<()> {
    let folder = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    DirBuilder::new().recursive(true).mode(0o755).create(folder)?;
    let beside = path.with_extension("yaml.new");
    let mut file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&beside, path)?;
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use kubeedge_actors::config::{Loaded, parse};

    use super::*;
    use crate::config::EdgeCore;

    fn join(data_dir: Option<&str>) -> Join {
        let token = format!("{}.abcdefgh12345678.{}", "0".repeat(64), "s".repeat(43));
        let node = Some("edge-1".parse().unwrap());
        Join::new("cloud.example:10002".parse().unwrap(), &token, node, data_dir.map(Path::new), None).unwrap()
    }

    fn read(join: &Join) -> EdgeCore {
        let yaml = render(join, &"[2001:db8::1]:10000".parse().unwrap()).unwrap();
        let Loaded { value, without_effect, unknown } = parse("edgecore.yaml", &yaml).unwrap();
        assert_eq!((without_effect, unknown), (vec![], vec![]), "{yaml}");
        value
    }

    #[test]
    fn what_is_written_is_what_is_read() {
        let join = join(None);
        assert_eq!(join.config, Path::new(DEFAULT_FILE));
        let mut config = read(&join);
        let hub = &mut config.modules.edge_hub;
        assert_eq!(hub.http_server.to_string(), "cloud.example:10002");
        assert_eq!(hub.websocket.server.to_string(), "[2001:db8::1]:10000");
        assert_eq!(config.modules.edged.hostname_override.as_ref().map(NodeName::as_str), Some("edge-1"));
        let default = EdgeCore::default();
        config.modules.edged.hostname_override = None;
        config.modules.edge_hub = default.modules.edge_hub.clone();
        assert_eq!(config, default, "nothing else is said");
    }

    #[test]
    fn a_data_folder_holds_everything_whatever_its_name() {
        let folder = "/data/it's \"x\": #1\n";
        let join = join(Some(folder)).runtime(Some("unix:///run/x.sock".parse().unwrap()));
        assert_eq!(join.config, Path::new(folder).join("edgecore.yaml"));
        let EdgeCore { database, modules } = read(&join);
        let (hub, edged) = (modules.edge_hub, modules.edged);
        assert_eq!(modules.device_twin.socket(), Path::new(folder).join("dmi.sock"));
        for path in [
            &database.data_source,
            &hub.tls_ca_file,
            &hub.tls_cert_file,
            &hub.tls_private_key_file,
            &edged.root_directory,
            &edged.tailored_kubelet_config.pod_logs_dir,
        ] {
            assert!(path.starts_with(folder), "{}", path.display());
        }
        assert_eq!(edged.runtime_endpoint(), Path::new("/run/x.sock"));
    }

    #[test]
    fn the_file_is_whole_and_for_its_owner() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config/edgecore.yaml");
        write(&path, "old: text that is longer\n").unwrap();
        write(&path, "new: text\n").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "new: text\n");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }
}
