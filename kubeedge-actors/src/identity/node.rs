//! A node's identity at the edge: its key, its certificate, the authority that it trusts.

use std::{
    fmt,
    path::{Path, PathBuf},
    time::SystemTime,
};

use kubeedge_proto::NodeName;
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData};
use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, UnixTime},
    server::WebPkiClientVerifier,
};

use super::{
    CaHash, IdentityError, authority,
    files::{self, Access},
    names, tls,
};

/// Where the files are, below the directory of the configuration: as in KubeEdge.
const CA_FILE: [&str; 2] = ["ca", "rootCA.crt"];
const CERTIFICATE_FILE: [&str; 2] = ["certs", "server.crt"];
const KEY_FILE: [&str; 2] = ["certs", "server.key"];

/// The key of a node, made on the node and never leaving it.
pub struct NodeKey {
    dir: PathBuf,
    pair: KeyPair,
}

impl NodeKey {
    /// The key in `<dir>/certs/server.key`; made if there is none. It is on disk before it is used, so that an
    /// enrolment whose answer was lost can be repeated with the same key.
    pub fn load_or_create(dir: &Path) -> Result<Self, IdentityError> {
        let path = authority::joined(dir, &KEY_FILE);
        let pair = match files::read_key(&path)? {
            Some(key) => authority::key_pair(&path, &key)?,
            None => {
                let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
                files::write(&path, pair.serialize_pem().as_bytes(), Access::Owner)?;
                pair
            }
        };
        Ok(Self { dir: dir.to_owned(), pair })
    }

    /// A certificate request (PKCS#10, DER) for the node's certificate.
    pub fn request(&self, node: &NodeName) -> Result<Vec<u8>, IdentityError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = authority::subject(&node.common_name(), names::NODES_GROUP);
        Ok(params.serialize_request(&self.pair)?.der().to_vec())
    }

    /// Takes the cloud's answer: checks the chain against this key and the pinned CA, and writes it.
    ///
    /// `pin` is the hash in the join token, or that of the CA in use for a renewal.
    pub fn accept(self, chain_pem: &str, pin: &CaHash, now: SystemTime) -> Result<NodeIdentity, IdentityError> {
        let answer = |why: String| IdentityError::Answer { why };
        let mut chain = files::certificates(chain_pem.as_bytes()).map_err(answer)?;
        let at = chain.iter().position(|certificate| CaHash::of(certificate) == *pin);
        let ca = chain.remove(at.ok_or_else(|| answer(format!("the CA with hash {pin} is not in its chain")))?);
        let identity = NodeIdentity::assemble(chain, ca, self.pair).map_err(answer)?;
        identity.check(now).map_err(answer)?;
        // The certificate last: an identity is complete when it is there.
        let pem = |certificates: &[CertificateDer<'_>]| certificates.iter().map(authority::pem).collect::<String>();
        let ca = std::slice::from_ref(&identity.ca);
        files::write(&authority::joined(&self.dir, &CA_FILE), pem(ca).as_bytes(), Access::Everyone)?;
        let certificate = authority::joined(&self.dir, &CERTIFICATE_FILE);
        files::write(&certificate, pem(&identity.chain).as_bytes(), Access::Everyone)?;
        Ok(identity)
    }
}

impl fmt::Debug for NodeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeKey").field("dir", &self.dir).finish_non_exhaustive()
    }
}

/// Who this node is, for the link.
pub struct NodeIdentity {
    node: NodeName,
    chain: Vec<CertificateDer<'static>>,
    ca: CertificateDer<'static>,
    key: Vec<u8>,
    begins: SystemTime,
    expires: SystemTime,
}

impl NodeIdentity {
    /// The identity in `<dir>/ca/rootCA.crt`, `<dir>/certs/server.crt` and `<dir>/certs/server.key`.
    ///
    /// `None` when this node was not enrolled yet. An expired certificate loads: a node whose clock is wrong or that
    /// was offline for long has to know who it is; see [`Self::expires`].
    pub fn load(dir: &Path) -> Result<Option<Self>, IdentityError> {
        let path = authority::joined(dir, &CERTIFICATE_FILE);
        let Some(chain) = files::read_certificates(&path)? else { return Ok(None) };
        let ca_path = authority::joined(dir, &CA_FILE);
        let missing = |path: &Path| IdentityError::Missing { path: path.to_owned() };
        let mut ca = files::read_certificates(&ca_path)?.ok_or_else(|| missing(&ca_path))?;
        let key_path = authority::joined(dir, &KEY_FILE);
        let key = files::read_key(&key_path)?.ok_or_else(|| missing(&key_path))?;
        let pair = authority::key_pair(&key_path, &key)?;
        if ca.len() != 1 {
            return Err(files::content(&ca_path, format!("{} certificates, expected the CA alone", ca.len())));
        }
        let identity = Self::assemble(chain, ca.remove(0), pair).map_err(|why| files::content(&path, why))?;
        // Whether it is valid now is another question.
        identity.check(identity.begins).map_err(|why| files::content(&path, why))?;
        Ok(Some(identity))
    }

    fn assemble(
        chain: Vec<CertificateDer<'static>>,
        ca: CertificateDer<'static>,
        pair: KeyPair,
    ) -> Result<Self, String> {
        let leaf = names::parse(chain.first().ok_or("no certificate")?).map_err(|error| error.to_string())?;
        let node = names::node_name(leaf.subject()).map_err(|error| error.to_string())?;
        if leaf.public_key().raw != pair.subject_public_key_info() {
            return Err("the certificate does not belong to this node's key".to_owned());
        }
        let begins = super::time_of(&leaf.validity().not_before);
        let expires = super::time_of(&leaf.validity().not_after);
        let key = pair.serialized_der().to_vec();
        Ok(Self { node, chain, ca, key, begins, expires })
    }

    /// Whether the CA signed this certificate for a client, and it is valid at `now`.
    fn check(&self, now: SystemTime) -> Result<(), String> {
        let verify = || -> Result<(), Box<dyn std::error::Error>> {
            let mut roots = RootCertStore::empty();
            roots.add(self.ca.clone())?;
            let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), tls::provider()).build()?;
            let now = UnixTime::since_unix_epoch(now.duration_since(SystemTime::UNIX_EPOCH)?);
            verifier.verify_client_cert(&self.chain[0], &self.chain[1..], now)?;
            Ok(())
        };
        verify().map_err(|error| format!("the certificate does not hold against the CA: {error}"))
    }

    /// The node's name, from its certificate.
    pub fn node(&self) -> &NodeName {
        &self.node
    }

    /// When the certificate begins to be valid.
    pub fn begins(&self) -> SystemTime {
        self.begins
    }

    /// When the certificate ends.
    pub fn expires(&self) -> SystemTime {
        self.expires
    }

    /// The CA that this node trusts.
    pub fn ca(&self) -> &CertificateDer<'static> {
        &self.ca
    }

    /// The hash of that CA: the pin for a renewal.
    pub fn ca_hash(&self) -> CaHash {
        CaHash::of(&self.ca)
    }

    /// The certificate chain for a TLS configuration, leaf first.
    pub fn chain(&self) -> Vec<CertificateDer<'static>> {
        self.chain.clone()
    }

    /// The key for a TLS configuration.
    pub fn key(&self) -> PrivateKeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.key.clone()).into()
    }
}

impl fmt::Debug for NodeIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { node, expires, .. } = self;
        f.debug_struct("NodeIdentity")
            .field("node", node)
            .field("expires", expires)
            .field("ca", &self.ca_hash())
            .finish_non_exhaustive()
    }
}
