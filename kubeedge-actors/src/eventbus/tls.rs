//! TLS to a broker, by rustls as everything else; paho would need OpenSSL for it.
//!
//! A broker is dialled and authenticated at each connection, with certificates as the files have them then.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{
    ClientConfig,
    pki_types::ServerName,
    version::{TLS12, TLS13},
};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::address::Address;
use crate::identity::{FlooredClock, IdentityError, files, tls};

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

/// Dials a broker and authenticates it. The error says what is wrong, and with which file or peer.
pub(super) async fn dial(address: &Address, settings: &BrokerTls) -> Result<TlsStream<TcpStream>, String> {
    let config = settings.config().map_err(|error| error.to_string())?;
    let host = address.host();
    let name = ServerName::try_from(host.to_owned()).map_err(|_| format!("{host:?} is no name of a server"))?;
    let stream = address.dial().await?;
    let connected = TlsConnector::from(Arc::new(config)).connect(name, stream).await;
    connected.map_err(|error| format!("TLS: {error}"))
}
