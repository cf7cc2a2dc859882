//! Who gets a node's certificate, and whose is accepted.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use kubeedge_proto::NodeName;
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, SignatureScheme,
    client::danger::HandshakeSignatureValid,
    pki_types::{CertificateDer, UnixTime},
    server::{
        WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};

use super::{
    CaHash, CertificateAuthority, ClientAuth, IdentityError, NodeRequest, Revocations, clock::unix, names, tls,
};

/// The cloud's authority over its nodes: signs, renews, refuses the revoked. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Registrar {
    authority: Arc<CertificateAuthority>,
    revocations: Revocations,
    grace: Duration,
}

impl Registrar {
    /// `grace` is how long after its end a certificate is still good for one thing: to be renewed by who has its key.
    pub fn new(authority: Arc<CertificateAuthority>, revocations: Revocations, grace: Duration) -> Self {
        Self { authority, revocations, grace }
    }

    /// The list of revoked nodes.
    pub fn revocations(&self) -> &Revocations {
        &self.revocations
    }

    /// The hash of the CA that signs now.
    pub fn ca_hash(&self) -> CaHash {
        self.authority.ca_hash()
    }

    /// Signs for who has a token, or has proved to be that node.
    pub fn sign(&self, request: &NodeRequest, now: SystemTime) -> Result<String, IdentityError> {
        let after = self.revocations.may_have_one(request.node())?;
        self.authority.sign_after(request, now, after)
    }

    /// The next certificate of `node`, which is the name in the certificate of the connection.
    pub fn renew(&self, csr_der: &[u8], node: &NodeName, now: SystemTime) -> Result<String, IdentityError> {
        self.sign(&NodeRequest::parse(csr_der)?.only_for(node)?, now)
    }

    /// For the link: a certificate of this authority that is valid now and not revoked.
    pub fn link_clients(&self) -> Result<ClientAuth, IdentityError> {
        self.clients(None)
    }

    /// For enrolment: none, or one as for the link, or one that ended within the grace period.
    pub fn enrolment_clients(&self) -> Result<ClientAuth, IdentityError> {
        self.clients(Some(self.grace))
    }

    fn clients(&self, enrolment: Option<Duration>) -> Result<ClientAuth, IdentityError> {
        let roots = tls::roots(&self.authority.trusted())?;
        let builder = WebPkiClientVerifier::builder_with_provider(roots, tls::provider());
        let builder = if enrolment.is_some() { builder.allow_unauthenticated() } else { builder };
        let inner = builder.build().map_err(|error| Error::General(error.to_string()))?;
        let verifier = NodeVerifier { inner, revocations: self.revocations.clone(), grace: enrolment };
        Ok(ClientAuth::Verified(Arc::new(verifier)))
    }
}

/// webpki, then the list of revoked nodes.
#[derive(Debug)]
struct NodeVerifier {
    inner: Arc<dyn ClientCertVerifier>,
    revocations: Revocations,
    grace: Option<Duration>,
}

impl NodeVerifier {
    /// The time at which a certificate that has ended may still be judged: right before its end (`P-GRACE-ENDS`).
    fn in_grace(&self, leaf: &CertificateDer<'_>, now: UnixTime) -> Option<UnixTime> {
        let (_, ended) = names::validity(leaf).ok()?;
        let ended = unix(ended)?;
        let since = now.as_secs().checked_sub(ended.as_secs())?;
        let last = Duration::from_secs(ended.as_secs().checked_sub(1)?);
        (since <= self.grace?.as_secs()).then(|| UnixTime::since_unix_epoch(last))
    }
}

impl ClientCertVerifier for NodeVerifier {
    fn offer_client_auth(&self) -> bool {
        self.inner.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.inner.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.inner.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        use CertificateError::{Expired, ExpiredContext};
        let verified = match self.inner.verify_client_cert(end_entity, intermediates, now) {
            Err(error @ Error::InvalidCertificate(Expired | ExpiredContext { .. })) => {
                let then = self.in_grace(end_entity, now).ok_or(error)?;
                self.inner.verify_client_cert(end_entity, intermediates, then)?
            }
            verified => verified?,
        };
        // A certificate of this authority that names no node is not this list's business: who reads the name refuses it.
        if let (Ok(node), Ok((begins, _))) =
            (names::peer_node_name(std::slice::from_ref(end_entity)), names::validity(end_entity))
        {
            self.revocations.check(&node, begins).map_err(|_| CertificateError::Revoked)?;
        }
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}
