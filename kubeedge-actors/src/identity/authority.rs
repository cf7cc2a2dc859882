//! The certificate authority of the cloud.

use std::{
    fmt,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use kubeedge_proto::NodeName;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType, SerialNumber, SubjectPublicKeyInfo,
};
use ring::rand::{SecureRandom, SystemRandom};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};

use super::{
    CaHash, IdentityError, NodeRequest,
    files::{self, Access},
    names::{self, NODES_GROUP},
    rollover::{self, Rollover},
};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// Life of the CA, as KubeEdge has it.
const CA_LIFE: Duration = Duration::from_secs(DAY.as_secs() * 364 * 100);
/// Life of every other certificate, as KubeEdge's `edgeCertSigningDuration`.
pub(crate) const LIFE: Duration = Duration::from_secs(DAY.as_secs() * 365);
/// How far a certificate begins before now at most: clocks differ. One of a short life begins a tenth of it before.
const BACKDATED: Duration = Duration::from_secs(5 * 60);
pub(super) const NAME: &str = "KubeEdge";
pub(super) const CERTIFICATE_FILE: &str = "rootCA.crt";
pub(super) const KEY_FILE: &str = "rootCA.key";

/// Signs the certificates of nodes, servers and components: ECDSA on P-256.
pub struct CertificateAuthority {
    pub(super) certificate: CertificateDer<'static>,
    pem: String,
    expires: SystemTime,
    pub(super) issuer: Issuer<'static, KeyPair>,
    /// While one authority takes over from another: see [`super::rollover`].
    pub(super) rollover: Option<Rollover>,
    lives: Lives,
}

/// How long certificates live.
#[derive(Clone, Copy, Debug)]
struct Lives {
    nodes: Duration,
    servers: Duration,
}

/// A certificate with its key, as PEM.
#[derive(Clone)]
pub struct IssuedCertificate {
    /// Leaf first, then the CAs: enrolling nodes look for the CA that they pinned in what the server presents.
    pub chain_pem: String,
    /// PKCS#8.
    pub key_pem: String,
    chain: Vec<CertificateDer<'static>>,
    key: Vec<u8>,
}

impl IssuedCertificate {
    /// The chain for a TLS configuration.
    pub fn chain(&self) -> Vec<CertificateDer<'static>> {
        self.chain.clone()
    }

    /// The key for a TLS configuration.
    pub fn key(&self) -> PrivateKeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.key.clone()).into()
    }
}

impl fmt::Debug for IssuedCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IssuedCertificate").field("chain_pem", &self.chain_pem).finish_non_exhaustive()
    }
}

impl fmt::Debug for CertificateAuthority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CertificateAuthority").field("hash", &self.ca_hash()).finish_non_exhaustive()
    }
}

impl CertificateAuthority {
    /// The authority in `<dir>/rootCA.crt` and `<dir>/rootCA.key`; made if there is none.
    ///
    /// A certificate without its key is an error: it is never replaced. A key without its certificate (a first start
    /// that was cut off) gets a new certificate, which nodes with certificates of this key trust as before.
    pub fn load_or_create(dir: &Path, now: SystemTime) -> Result<Self, IdentityError> {
        let (certificate_path, key_path) = (dir.join(CERTIFICATE_FILE), dir.join(KEY_FILE));
        let key = match files::read_key(&key_path)? {
            Some(key) => Some(key_pair(&key_path, &key)?),
            None => None,
        };
        if let Some(key) = &key {
            rollover::finish(dir, &certificate_path, key)?;
        }
        match (files::read_certificates(&certificate_path)?, key) {
            (Some(certificates), Some(key)) => {
                let mut loaded = Self::loaded(&certificate_path, certificates, key)?;
                loaded.rollover = Rollover::load(dir, &loaded.certificate)?;
                Ok(loaded)
            }
            (None, Some(key)) => Self::created(&certificate_path, key, now),
            (None, None) => {
                let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
                files::write(&key_path, key.serialize_pem().as_bytes(), Access::Owner)?;
                Self::created(&certificate_path, key, now)
            }
            (Some(_), None) => Err(IdentityError::Missing { path: key_path }),
        }
    }

    /// An authority out of its parts, such as those of a Kubernetes Secret: a certificate and its key, each as PEM or
    /// DER. `place` names them in errors.
    pub fn from_parts(place: &str, certificate: &[u8], key: &[u8]) -> Result<Self, IdentityError> {
        let place = Path::new(place);
        let certificates = if certificate.trim_ascii_start().starts_with(b"-----") {
            files::certificates(certificate).map_err(|why| files::content(place, why))?
        } else {
            vec![CertificateDer::from(certificate.to_vec())]
        };
        let key = files::any_key(key).map_err(|why| files::content(place, why))?;
        Self::loaded(place, certificates, key_pair(place, &key)?)
    }

    /// An authority that is in no file, and its key as PEM: who calls keeps it.
    pub fn generate(now: SystemTime) -> Result<(Self, String), IdentityError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let pem = key.serialize_pem();
        let certificate = ca_params(NAME, now)?.self_signed(&key)?;
        Ok((Self::loaded(Path::new("the new authority"), vec![certificate.der().clone()], key)?, pem))
    }

    /// The same with another life of nodes' certificates; KubeEdge's `edgeCertSigningDuration`. A year by default.
    #[must_use]
    pub fn with_node_life(mut self, life: Duration) -> Self {
        self.lives.nodes = life;
        self
    }

    /// The same with another life of the servers' certificates, which are renewed by themselves. A year by default.
    #[must_use]
    pub fn with_server_life(mut self, life: Duration) -> Self {
        self.lives.servers = life;
        self
    }

    fn created(path: &Path, key: KeyPair, now: SystemTime) -> Result<Self, IdentityError> {
        let certificate = ca_params(NAME, now)?.self_signed(&key)?;
        files::write(path, certificate.pem().as_bytes(), Access::Everyone)?;
        tracing::info!(path = %path.display(), hash = %CaHash::of(certificate.der()), "a certificate authority was made");
        Self::loaded(path, vec![certificate.der().clone()], key)
    }

    fn loaded(path: &Path, found: Vec<CertificateDer<'static>>, key: KeyPair) -> Result<Self, IdentityError> {
        let [certificate] = <[_; 1]>::try_from(found)
            .map_err(|found| files::content(path, format!("{} certificates, expected the CA alone", found.len())))?;
        let parsed = names::parse(&certificate).map_err(|error| files::content(path, error.to_string()))?;
        if parsed.public_key().raw != key.subject_public_key_info() {
            return Err(files::content(path, format!("it does not belong to the key in {KEY_FILE} beside it")));
        }
        if !parsed.is_ca() {
            return Err(files::content(path, "it is no CA certificate (basicConstraints CA:TRUE is missing)"));
        }
        let expires = super::time_of(&parsed.validity().not_after);
        let issuer = Issuer::from_ca_cert_der(&certificate, key)?;
        let pem = pem(&certificate);
        let lives = Lives { nodes: LIFE, servers: LIFE };
        Ok(Self { certificate, pem, expires, issuer, rollover: None, lives })
    }

    /// The CA's certificate.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// The CA's certificate as PEM.
    pub fn certificate_pem(&self) -> &str {
        &self.pem
    }

    /// What a node pins: SHA-256 of the certificate's DER.
    pub fn ca_hash(&self) -> CaHash {
        CaHash::of(&self.certificate)
    }

    /// Every CA whose certificates are good: this one, and during a rollover the one before it.
    pub fn trusted(&self) -> Vec<CertificateDer<'static>> {
        let previous = self.rollover.as_ref().map(|rollover| rollover.previous.clone());
        std::iter::once(self.certificate.clone()).chain(previous).collect()
    }

    /// The hash of the CA before this one, while it is trusted as well.
    pub fn previous_hash(&self) -> Option<CaHash> {
        self.rollover.as_ref().map(|rollover| CaHash::of(&rollover.previous))
    }

    /// What stands behind a leaf: what makes this CA known to who knows the one before it, then the CAs.
    fn behind(&self) -> Vec<CertificateDer<'static>> {
        let cross = self.rollover.as_ref().map(|rollover| rollover.cross.clone());
        cross.into_iter().chain(self.trusted()).collect()
    }

    /// A server's certificate for these DNS names and addresses, with a new key.
    pub fn issue_server(&self, names: &[ServerName<'_>], now: SystemTime) -> Result<IssuedCertificate, IdentityError> {
        let mut params = self.params(now, self.lives.servers)?;
        params.distinguished_name.push(DnType::CommonName, NAME);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        for name in names {
            params.subject_alt_names.push(match name {
                ServerName::DnsName(name) => SanType::DnsName(name.as_ref().try_into()?),
                ServerName::IpAddress(address) => SanType::IpAddress((*address).into()),
                _ => continue,
            });
        }
        self.issue(params)
    }

    /// A client's certificate: a Kubernetes user `common_name` in group `organization`.
    pub fn issue_client(
        &self,
        common_name: &str,
        organization: &str,
        now: SystemTime,
    ) -> Result<IssuedCertificate, IdentityError> {
        let mut params = self.params(now, LIFE)?;
        params.distinguished_name = subject(common_name, organization);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.issue(params)
    }

    /// A node's certificate for a request that was checked: the chain as PEM, leaf first.
    ///
    /// Whether this sender may have it is decided before: by a token or by the certificate of the connection.
    pub fn sign(&self, request: &NodeRequest, now: SystemTime) -> Result<String, IdentityError> {
        self.sign_after(request, now, None)
    }

    /// The same; the certificate begins after a second in which all of this node's were revoked.
    pub(crate) fn sign_after(
        &self,
        request: &NodeRequest,
        now: SystemTime,
        revoked: Option<SystemTime>,
    ) -> Result<String, IdentityError> {
        let mut params = self.params(now, self.lives.nodes)?;
        if let Some(revoked) = revoked {
            params.not_before = params.not_before.max((revoked + Duration::from_secs(1)).into());
        }
        params.distinguished_name = subject(&request.node().common_name(), NODES_GROUP);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let key = SubjectPublicKeyInfo::from_der(request.public_key())?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok(format!("{}{}", certificate.pem(), self.behind().iter().map(pem).collect::<String>()))
    }

    /// Reads a request and signs it if it is for the node `allowed`: renewal over that node's own connection.
    pub fn sign_node_csr(&self, der: &[u8], allowed: &NodeName, now: SystemTime) -> Result<String, IdentityError> {
        self.sign(&NodeRequest::parse(der)?.only_for(allowed)?, now)
    }

    fn params(&self, now: SystemTime, life: Duration) -> Result<CertificateParams, IdentityError> {
        let mut params = params(now, (now + life).min(self.expires))?;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        Ok(params)
    }

    fn issue(&self, params: CertificateParams) -> Result<IssuedCertificate, IdentityError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok(IssuedCertificate {
            chain_pem: format!("{}{}", certificate.pem(), self.behind().iter().map(pem).collect::<String>()),
            key_pem: key.serialize_pem(),
            chain: std::iter::once(certificate.der().clone()).chain(self.behind()).collect(),
            key: key.serialized_der().to_vec(),
        })
    }
}

/// What makes a certificate one of an authority.
pub(super) fn ca_params(name: &str, now: SystemTime) -> Result<CertificateParams, IdentityError> {
    let mut params = params(now, now + CA_LIFE)?;
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    Ok(params)
}

/// What all certificates share: no subject yet, a random serial number.
fn params(now: SystemTime, until: SystemTime) -> Result<CertificateParams, IdentityError> {
    let mut serial = [0; 16];
    SystemRandom::new().fill(&mut serial).map_err(|_| IdentityError::Random)?;
    // Positive and of full length, RFC 5280 4.1.2.2.
    serial[0] = serial[0] & 0x7f | 0x40;
    let mut params = CertificateParams::default();
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params.distinguished_name = DistinguishedName::new();
    let backdated = BACKDATED.min(until.duration_since(now).unwrap_or_default() / 10);
    params.not_before = now.checked_sub(backdated).unwrap_or(now).into();
    params.not_after = until.into();
    Ok(params)
}

pub(crate) fn subject(common_name: &str, organization: &str) -> DistinguishedName {
    let mut subject = DistinguishedName::new();
    subject.push(DnType::OrganizationName, organization);
    subject.push(DnType::CommonName, common_name);
    subject
}

pub(crate) fn key_pair(path: &Path, key: &PrivateKeyDer<'_>) -> Result<KeyPair, IdentityError> {
    let key = files::pkcs8(key).map_err(|why| files::content(path, why))?;
    let pair = KeyPair::from_pkcs8_der_and_sign_algo(&key, &PKCS_ECDSA_P256_SHA256);
    pair.map_err(|error| files::content(path, format!("expected an ECDSA key on P-256: {error}")))
}

pub(crate) fn pem(certificate: &CertificateDer<'_>) -> String {
    use base64::{Engine, engine::general_purpose::STANDARD};
    let text = STANDARD.encode(certificate);
    let mut pem = String::from("-----BEGIN CERTIFICATE-----\n");
    for line in text.as_bytes().chunks(64) {
        pem.extend(line.iter().map(|byte| char::from(*byte)));
        pem.push('\n');
    }
    pem.push_str("-----END CERTIFICATE-----\n");
    pem
}

/// Where a node keeps or the cloud finds a file of its identity, for messages.
pub(crate) fn joined(dir: &Path, names: &[&str]) -> PathBuf {
    names.iter().fold(dir.to_owned(), |path, name| path.join(name))
}
