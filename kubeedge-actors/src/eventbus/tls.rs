//! TLS to a broker, by rustls as everything else: paho, which would need OpenSSL for it, speaks plain MQTT through a door
//! within this process.
//!
//! For each connection the broker is dialled and authenticated first, with certificates as the files have them now. Then a
//! unix socket is made in a folder of its own that only this user can enter, paho's connection is taken on it, and socket
//! and folder go again. Another process that finds the way is not let in: it would speak with this node's certificate.
//! Bytes go through in both directions with a bounded buffer each, so that a slow side slows the other down.

use std::{
    fmt,
    fs::DirBuilder,
    io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{
    ClientConfig,
    pki_types::ServerName,
    version::{TLS12, TLS13},
};
use tokio::{
    io::copy_bidirectional_with_sizes,
    net::{TcpStream, UnixListener, UnixStream},
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use uuid::Uuid;

use crate::identity::{FlooredClock, IdentityError, files, tls};

/// Bytes under way in each direction.
const BUFFER: usize = 16 * 1024;

/// How a broker is authenticated, and this client to it. The files are read at each connection.
#[derive(Clone)]
pub struct BrokerTls {
    /// Certificates of the authorities that may have issued the broker's, PEM.
    pub ca: PathBuf,
    /// Certificate and key of this client, PEM, if the broker asks for one.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// By which certificates are judged.
    pub clock: FlooredClock,
}

impl fmt::Debug for BrokerTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BrokerTls").field("ca", &self.ca).field("identity", &self.identity).finish_non_exhaustive()
    }
}

impl BrokerTls {
    fn config(&self) -> Result<ClientConfig, IdentityError> {
        let missing = |path: &Path| IdentityError::Missing { path: path.to_owned() };
        let cas = files::read_certificates(&self.ca)?.ok_or_else(|| missing(&self.ca))?;
        let builder = ClientConfig::builder_with_details(tls::provider(), Arc::new(self.clock.clone()))
            .with_protocol_versions(&[&TLS13, &TLS12])?
            .with_root_certificates(tls::roots(&cas)?);
        let Some((certificate, key)) = &self.identity else { return Ok(builder.with_no_client_auth()) };
        let chain = files::read_certificates(certificate)?.ok_or_else(|| missing(certificate))?;
        let bytes = files::read(key)?.ok_or_else(|| missing(key))?;
        let key = files::any_key(&bytes).map_err(|why| files::content(key, why))?;
        Ok(builder.with_client_auth_cert(chain, key)?)
    }
}

/// `host:port` of a broker's address, whatever its scheme.
fn host_and_port(uri: &str) -> Option<(&str, u16)> {
    let (host, port) = uri.split_once("://").map_or(uri, |(_, rest)| rest).rsplit_once(':')?;
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    Some((host, port.parse().ok()?)).filter(|(host, _)| !host.is_empty())
}

/// Dials a broker and authenticates it. The error says what is wrong, and with which file or peer.
pub(super) async fn dial(uri: &str, settings: &BrokerTls) -> Result<TlsStream<TcpStream>, String> {
    let config = settings.config().map_err(|error| error.to_string())?;
    let (host, port) = host_and_port(uri).ok_or_else(|| format!("{uri:?} has no host and port"))?;
    let name = ServerName::try_from(host.to_owned()).map_err(|_| format!("{host:?} is no name of a server"))?;
    let stream = TcpStream::connect((host, port)).await.map_err(|error| error.to_string())?;
    // Small messages that wait for an answer.
    stream.set_nodelay(true).map_err(|error| error.to_string())?;
    let connected = TlsConnector::from(Arc::new(config)).connect(name, stream).await;
    connected.map_err(|error| format!("TLS: {error}"))
}

/// Where one client of this process connects, instead of at its broker.
pub(super) struct Door {
    folder: PathBuf,
}

impl Door {
    /// A place for it; nothing is made yet.
    pub(super) fn new() -> Self {
        Self { folder: std::env::temp_dir().join(format!("kubeedge-mqtt-{}", Uuid::new_v4().simple())) }
    }

    /// As paho takes it.
    pub(super) fn uri(&self) -> String {
        format!("unix://{}", self.path().display())
    }

    fn path(&self) -> PathBuf {
        self.folder.join("door")
    }

    /// Makes it.
    pub(super) fn open(&self) -> Result<Opened, String> {
        let failed = |error| format!("a socket in {}: {error}", self.folder.display());
        DirBuilder::new().mode(0o700).create(&self.folder).map_err(failed)?;
        // From here on it is taken away, whatever happens.
        let mut opened = Opened { folder: self.folder.clone(), listener: None };
        opened.listener = Some(UnixListener::bind(self.path()).map_err(failed)?);
        Ok(opened)
    }
}

/// An open door; dropped, nothing of it is left.
pub(super) struct Opened {
    folder: PathBuf,
    listener: Option<UnixListener>,
}

impl Drop for Opened {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.folder) {
            tracing::warn!(path = %self.folder.display(), "a folder is left: {error}");
        }
    }
}

impl Opened {
    /// The connection of this very process.
    async fn own(self) -> io::Result<UnixStream> {
        let Some(listener) = &self.listener else { return Err(io::ErrorKind::NotConnected.into()) };
        let us = std::process::id();
        loop {
            let (stream, _) = listener.accept().await?;
            match stream.peer_cred()?.pid() {
                Some(pid) if u32::try_from(pid) == Ok(us) => return Ok(stream),
                other => tracing::warn!(pid = other, "another process came to the door of our MQTT client"),
            }
        }
    }

    /// Takes the client's connection through to the broker, until one of them ends it. The error is the broker's side's.
    pub(super) async fn through(self, mut broker: TlsStream<TcpStream>) -> io::Result<()> {
        let mut client = self.own().await?;
        copy_bidirectional_with_sizes(&mut client, &mut broker, BUFFER, BUFFER).await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[test]
    fn a_brokers_host_and_port_are_found_in_every_spelling() {
        assert_eq!(host_and_port("ssl://broker.example:8883"), Some(("broker.example", 8883)));
        assert_eq!(host_and_port("tcp://[2001:db8::1]:1883"), Some(("2001:db8::1", 1883)));
        for wrong in ["ssl://broker", "ssl://:8883", "ssl://broker:x", ""] {
            assert_eq!(host_and_port(wrong), None, "{wrong}");
        }
    }

    /// Which door another process is to go to: this test's own program, started again.
    const KNOCKS: &str = "KUBEEDGE_TEST_KNOCKS";

    /// In that other process: the door is there, and nobody speaks with it.
    #[tokio::test]
    async fn another_process_is_sent_away() {
        let Some(path) = std::env::var_os(KNOCKS) else { return };
        let mut stream = UnixStream::connect(path).await.unwrap();
        assert_eq!(stream.read(&mut [0; 1]).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn a_door_lets_in_its_own_process_alone_and_is_gone_afterwards() {
        let door = Door::new();
        let opened = door.open().unwrap();
        assert_eq!(door.folder.metadata().unwrap().permissions().mode() & 0o777, 0o700);
        let taken = tokio::spawn(opened.own());
        let other = tokio::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "eventbus::tls::tests::another_process_is_sent_away"])
            .env(KNOCKS, door.path())
            .output();
        let said = other.await.unwrap();
        assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stdout));
        assert!(String::from_utf8_lossy(&said.stdout).contains("1 passed"));
        assert!(!taken.is_finished());

        let mut ours = UnixStream::connect(door.path()).await.unwrap();
        let mut taken = taken.await.unwrap().unwrap();
        ours.write_all(b"in").await.unwrap();
        let mut heard = [0; 2];
        taken.read_exact(&mut heard).await.unwrap();
        assert_eq!(&heard, b"in");
        assert!(!door.folder.exists());
    }
}
