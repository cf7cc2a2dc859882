//! TLS configurations: TLS 1.3 and 1.2 on ring, verification always on.

use std::sync::Arc;

use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, OtherError, RootCertStore, ServerConfig,
    SignatureScheme,
    client::{
        Resumption, VerifierBuilderError, WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime},
    server::{
        NoClientAuth, NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier, danger::ClientCertVerifier,
    },
    sign::{CertifiedKey, SingleCertAndKey},
    time_provider::{DefaultTimeProvider, TimeProvider},
    version::{TLS12, TLS13},
};
use thiserror::Error as ThisError;

use super::{CaHash, FlooredClock, IdentityError, IssuedCertificate, NodeIdentity, clock};

/// HTTP/2, which the link and enrolment speak.
pub const ALPN_H2: &[u8] = b"h2";

/// The one crypto provider; nothing relies on a process-wide default.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// The system's clock, against which certificates are judged.
pub fn system_clock() -> Arc<dyn TimeProvider> {
    Arc::new(DefaultTimeProvider)
}

/// Whether a server asks its clients for certificates, and of which CA.
#[derive(Clone, Debug)]
pub enum ClientAuth {
    /// It does not ask.
    None,
    /// It asks; who presents none is let in without a name, who presents a wrong one is not.
    Optional(CertificateDer<'static>),
    /// It lets nobody in without one.
    Required(CertificateDer<'static>),
    /// It asks, and this decides: `NodeVerifier`.
    Verified(Arc<dyn ClientCertVerifier>),
}

/// A server with this chain and key.
pub fn server_config(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    clients: ClientAuth,
    alpn: &[&[u8]],
    clock: Arc<dyn TimeProvider>,
) -> Result<ServerConfig, IdentityError> {
    let certificate = SingleCertAndKey::from(certified(chain, key)?);
    resolved_server_config(Arc::new(certificate), clients, alpn, clock)
}

/// A chain and its key, ready to sign.
pub(super) fn certified(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<CertifiedKey, IdentityError> {
    let certified = CertifiedKey::from_der(chain, key, &provider())?;
    certified.keys_match()?;
    Ok(certified)
}

/// A server that shows what `certificate` gives it at each handshake.
pub(super) fn resolved_server_config(
    certificate: Arc<dyn ResolvesServerCert>,
    clients: ClientAuth,
    alpn: &[&[u8]],
    clock: Arc<dyn TimeProvider>,
) -> Result<ServerConfig, IdentityError> {
    let asks = !matches!(clients, ClientAuth::None);
    let verifier = |ca| Ok::<_, Error>(WebPkiClientVerifier::builder_with_provider(roots(&[ca])?, provider()));
    let unusable = |error: VerifierBuilderError| IdentityError::Tls(Error::General(error.to_string()));
    let clients: Arc<dyn ClientCertVerifier> = match clients {
        ClientAuth::None => Arc::new(NoClientAuth),
        ClientAuth::Optional(ca) => verifier(ca)?.allow_unauthenticated().build().map_err(unusable)?,
        ClientAuth::Required(ca) => verifier(ca)?.build().map_err(unusable)?,
        ClientAuth::Verified(verifier) => verifier,
    };
    let mut config = ServerConfig::builder_with_details(provider(), clock)
        .with_protocol_versions(&[&TLS13, &TLS12])?
        .with_client_cert_verifier(clients)
        .with_cert_resolver(certificate);
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    if asks {
        // A resumed session is not asked for a certificate again: one that has expired or was revoked would come back.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
    }
    Ok(config)
}

/// The link's client: this node's certificate, and only its own CA for the server.
pub fn client_config(
    identity: &NodeIdentity,
    alpn: &[&[u8]],
    clock: Arc<dyn TimeProvider>,
) -> Result<ClientConfig, IdentityError> {
    let mut config = ClientConfig::builder_with_details(provider(), clock)
        .with_protocol_versions(&[&TLS13, &TLS12])?
        .with_root_certificates(roots(identity.cas())?)
        .with_client_auth_cert(identity.chain(), identity.key())?;
    config.resumption = Resumption::disabled();
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    Ok(config)
}

/// A client with a certificate that an authority issued, which takes only servers of that authority.
pub fn issued_client_config(
    ca: CertificateDer<'static>,
    certificate: &IssuedCertificate,
    clock: Arc<dyn TimeProvider>,
) -> Result<ClientConfig, IdentityError> {
    Ok(ClientConfig::builder_with_details(provider(), clock)
        .with_protocol_versions(&[&TLS13, &TLS12])?
        .with_root_certificates(roots(&[ca])?)
        .with_client_auth_cert(certificate.chain(), certificate.key())?)
}

/// The client for enrolment, which knows nothing but the hash of the CA: the server has to present a chain that ends
/// in exactly that CA, for the right name, signed and valid now.
pub fn pinned_config(
    ca_hash: CaHash,
    alpn: &[&[u8]],
    clock: Arc<dyn TimeProvider>,
) -> Result<ClientConfig, IdentityError> {
    pinned(PinnedCa { pin: ca_hash, provider: provider(), clock: None }, alpn, clock)
}

/// The same on a box whose clock may be wrong.
pub fn joining_config(ca_hash: CaHash, alpn: &[&[u8]], clock: &FlooredClock) -> Result<ClientConfig, IdentityError> {
    let verifier = PinnedCa { pin: ca_hash, provider: provider(), clock: Some(clock.clone()) };
    pinned(verifier, alpn, Arc::new(clock.clone()))
}

fn pinned(verifier: PinnedCa, alpn: &[&[u8]], clock: Arc<dyn TimeProvider>) -> Result<ClientConfig, IdentityError> {
    let mut config = ClientConfig::builder_with_details(provider(), clock)
        .with_protocol_versions(&[&TLS13, &TLS12])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    Ok(config)
}

pub(crate) fn roots(cas: &[CertificateDer<'static>]) -> Result<Arc<RootCertStore>, Error> {
    let mut roots = RootCertStore::empty();
    for ca in cas {
        roots.add(ca.clone())?;
    }
    Ok(Arc::new(roots))
}

/// Finds the pinned CA in what the server presents and leaves the rest to webpki, with that CA as the only root.
#[derive(Debug)]
struct PinnedCa {
    pin: CaHash,
    provider: Arc<CryptoProvider>,
    clock: Option<FlooredClock>,
}

/// The server's chain has another CA than the join token.
#[derive(Debug, ThisError)]
#[error(
    "the server does not present the CA that the join token pins (SHA-256 {expected}), only {presented}: \
     is this the right server, and was the token made by it?"
)]
struct OtherCa {
    expected: CaHash,
    presented: String,
}

impl ServerCertVerifier for PinnedCa {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let mut presented = std::iter::once(end_entity).chain(intermediates);
        let Some(ca) = presented.clone().find(|certificate| CaHash::of(certificate) == self.pin) else {
            // A chain has a few certificates; the message stays readable if one has many.
            let hashes: Vec<_> = presented.by_ref().take(5).map(|found| CaHash::of(found).to_string()).collect();
            let error = OtherCa { expected: self.pin, presented: hashes.join(", ") };
            return Err(CertificateError::Other(OtherError(Arc::new(error))).into());
        };
        let roots = roots(&[ca.clone().into_owned()])?;
        let verifier = WebPkiServerVerifier::builder_with_provider(roots, self.provider.clone())
            .build()
            .map_err(|error| Error::General(error.to_string()))?;
        clock::judge(self.clock.as_ref(), end_entity, now, |now| {
            verifier.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
        })
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
