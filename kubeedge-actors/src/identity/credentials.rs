//! What a node and a cloud show in a handshake, replaced while the program runs.
//!
//! A TLS configuration asks these at each handshake: after a renewal new connections use the new certificate, and those
//! that stand are not touched.

use std::{
    fmt,
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, SystemTime},
};

use kubeedge_proto::NodeName;
use rustls::{
    ClientConfig, DigitallySignedStruct, Error, ServerConfig, SignatureScheme,
    client::{
        ResolvesClientCert, Resumption, WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
    version::TLS13,
};

use super::{
    CaHash, CertificateAuthority, ClientAuth, FlooredClock, IdentityError, NodeIdentity, NodeKey, clock, hash::sha256,
    names, system_clock, tls,
};

/// The part of its life after which a certificate is renewed: between these two, as KubeEdge has it. Which part it is
/// follows from the certificate, so that a fleet that joined in one hour does not renew in one, and a restart changes
/// nothing.
const RENEWED_AT: (f64, f64) = (0.7, 0.9);

/// When a certificate of this life is renewed.
fn renewal(leaf: &CertificateDer<'_>, begins: SystemTime, expires: SystemTime) -> SystemTime {
    let hash = sha256(leaf);
    let unit = f64::from(u32::from_be_bytes([hash[0], hash[1], hash[2], hash[3]])) / f64::from(u32::MAX);
    let life = expires.duration_since(begins).unwrap_or_default();
    begins + life.mul_f64(RENEWED_AT.0 + (RENEWED_AT.1 - RENEWED_AT.0) * unit)
}

/// A node's certificate and the CAs it trusts, as they are now. Cheap to clone; clones share one state.
#[derive(Clone)]
pub struct NodeCredentials {
    current: Arc<RwLock<Arc<Current>>>,
    clock: FlooredClock,
}

struct Current {
    identity: NodeIdentity,
    certified: Arc<CertifiedKey>,
    verifier: Arc<WebPkiServerVerifier>,
}

impl Current {
    fn new(identity: NodeIdentity) -> Result<Arc<Self>, IdentityError> {
        let certified = Arc::new(tls::certified(identity.chain(), identity.key())?);
        let verifier = WebPkiServerVerifier::builder_with_provider(tls::roots(identity.cas())?, tls::provider());
        let verifier = verifier.build().map_err(|error| Error::General(error.to_string()))?;
        Ok(Arc::new(Self { identity, certified, verifier }))
    }
}

impl NodeCredentials {
    /// Begins with this identity; its beginning is past, whatever the clock says.
    pub fn new(identity: NodeIdentity, clock: FlooredClock) -> Result<Self, IdentityError> {
        clock.raise(identity.begins());
        Ok(Self { current: Arc::new(RwLock::new(Current::new(identity)?)), clock })
    }

    fn current(&self) -> Arc<Current> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The node's name. A renewal does not change it.
    pub fn node(&self) -> NodeName {
        self.current().identity.node().clone()
    }

    /// When the certificate ends.
    pub fn expires(&self) -> SystemTime {
        self.current().identity.expires()
    }

    /// Whether it has ended, by a clock that may be wrong: the cloud's counts.
    pub fn has_expired(&self) -> bool {
        self.expires() <= self.clock.now()
    }

    /// The clock by which certificates are judged here.
    pub fn clock(&self) -> &FlooredClock {
        &self.clock
    }

    /// How long until it is to be renewed: nothing when that is due.
    pub fn until_renewal(&self) -> Duration {
        let current = self.current();
        let (begins, expires) = (current.identity.begins(), current.identity.expires());
        let leaf = current.identity.leaf();
        renewal(leaf, begins, expires).duration_since(self.clock.now()).unwrap_or_default()
    }

    /// Whether the certificate is one of the CA with this hash.
    pub fn is_of(&self, ca: &CaHash) -> bool {
        let current = self.current();
        let Some(ca) = current.identity.cas().iter().find(|known| CaHash::of(known) == *ca) else { return false };
        let (Ok(ca), Ok(leaf)) = (names::parse(ca), names::parse(current.identity.leaf())) else { return false };
        leaf.verify_signature(Some(ca.public_key())).is_ok()
    }

    /// A request (PKCS#10, DER) for the next certificate, of a new key. The key is on disk.
    pub fn request(&self) -> Result<Vec<u8>, IdentityError> {
        let current = self.current();
        NodeKey::next(current.identity.dir())?.request(current.identity.node())
    }

    /// Takes the cloud's answer to [`Self::request`]: it is checked, on disk, and in use when this returns.
    pub fn accept(&self, chain_pem: &str) -> Result<(), IdentityError> {
        let current = self.current();
        let key = NodeKey::next(current.identity.dir())?;
        let now = if self.clock.is_behind() { None } else { Some(self.clock.now()) };
        let identity = key.renew(chain_pem, &current.identity, now)?;
        self.clock.raise(identity.begins());
        let next = Current::new(identity)?;
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = next;
        Ok(())
    }

    /// The link's client: TLS 1.3, with the certificate and the CAs of the moment of each handshake.
    pub fn client_config(&self, alpn: &[&[u8]]) -> Result<ClientConfig, IdentityError> {
        let verifier = Arc::new(Verifies(self.clone()));
        let mut config = ClientConfig::builder_with_details(tls::provider(), Arc::new(self.clock.clone()))
            .with_protocol_versions(&[&TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_client_cert_resolver(Arc::new(Shows(self.clone())));
        // A resumed session would go on with the certificate of the first one.
        config.resumption = Resumption::disabled();
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        Ok(config)
    }
}

impl fmt::Debug for NodeCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeCredentials").field("identity", &self.current().identity).finish_non_exhaustive()
    }
}

#[derive(Debug)]
struct Shows(NodeCredentials);

impl ResolvesClientCert for Shows {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0.current().certified))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// webpki with the CAs of now, and with [`clock::judge`].
#[derive(Debug)]
struct Verifies(NodeCredentials);

impl ServerCertVerifier for Verifies {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let current = self.0.current();
        clock::judge(Some(&self.0.clock), end_entity, now, |now| {
            current.verifier.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
        })
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.current().verifier.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.current().verifier.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.current().verifier.supported_verify_schemes()
    }
}

/// A server's certificate of this cloud's own authority, issued anew before it ends. Cheap to clone.
#[derive(Clone)]
pub struct ServerCredentials {
    authority: Arc<CertificateAuthority>,
    names: Arc<[ServerName<'static>]>,
    current: Arc<RwLock<Issued>>,
}

struct Issued {
    certified: Arc<CertifiedKey>,
    renewal: SystemTime,
}

impl ServerCredentials {
    /// Issues the first one, for these DNS names and addresses.
    pub fn new(
        authority: Arc<CertificateAuthority>,
        names: Vec<ServerName<'static>>,
        now: SystemTime,
    ) -> Result<Self, IdentityError> {
        let issued = Self::issue(&authority, &names, now)?;
        Ok(Self { authority, names: names.into(), current: Arc::new(RwLock::new(issued)) })
    }

    fn issue(
        authority: &CertificateAuthority,
        names: &[ServerName<'static>],
        now: SystemTime,
    ) -> Result<Issued, IdentityError> {
        let issued = authority.issue_server(names, now)?;
        let chain = issued.chain();
        let (begins, expires) =
            names::validity(&chain[0]).map_err(|error| IdentityError::Answer { why: error.to_string() })?;
        let renewal = renewal(&chain[0], begins, expires);
        Ok(Issued { certified: Arc::new(tls::certified(chain, issued.key())?), renewal })
    }

    /// Issues the next one when that is due; whether it was.
    pub fn refresh(&self, now: SystemTime) -> Result<bool, IdentityError> {
        if now < self.current.read().unwrap_or_else(PoisonError::into_inner).renewal {
            return Ok(false);
        }
        let next = Self::issue(&self.authority, &self.names, now)?;
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = next;
        Ok(true)
    }

    /// Issues the next one whenever that is due, for ever.
    pub async fn keep_fresh(self) {
        loop {
            // The clock may be set in between.
            tokio::time::sleep(Duration::from_secs(60)).await;
            match self.refresh(SystemTime::now()) {
                Ok(true) => tracing::info!("the server's certificate was renewed"),
                Ok(false) => {}
                Err(error) => tracing::error!("the server's certificate could not be renewed: {error}"),
            }
        }
    }

    /// A server that shows the certificate of the moment of each handshake.
    pub fn server_config(&self, clients: ClientAuth, alpn: &[&[u8]]) -> Result<ServerConfig, IdentityError> {
        tls::resolved_server_config(Arc::new(self.clone()), clients, alpn, system_clock())
    }
}

impl ResolvesServerCert for ServerCredentials {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner).certified))
    }
}

impl fmt::Debug for ServerCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerCredentials").field("names", &self.names).finish_non_exhaustive()
    }
}
