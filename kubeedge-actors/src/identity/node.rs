//! A node's identity at the edge: its key, its certificate, the authority that it trusts.

use std::{
    fmt,
    io::ErrorKind,
    path::{Path, PathBuf},
    time::SystemTime,
};

use kubeedge_proto::NodeName;
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData};
use rustls::{
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, UnixTime},
    server::WebPkiClientVerifier,
};

use super::{
    CaHash, FlooredClock, IdentityError, authority,
    files::{self, Access},
    names, rollover, tls,
};

/// Where the files are, below the directory of the configuration: as in KubeEdge.
const CA_FILE: [&str; 2] = ["ca", "rootCA.crt"];
const CERTIFICATE_FILE: [&str; 2] = ["certs", "server.crt"];
const KEY_FILE: [&str; 2] = ["certs", "server.key"];
/// The key of a renewal that is under way. It takes its place when its certificate is there.
const NEXT_KEY_FILE: [&str; 2] = ["certs", "server.key.next"];
/// Certificates in a cloud's answer: a leaf, two CAs during a rollover, what connects them, and room.
const LONGEST_ANSWER: usize = 8;

/// The key of a node, made on the node and never leaving it.
pub struct NodeKey {
    dir: PathBuf,
    pair: KeyPair,
    file: [&'static str; 2],
}

impl NodeKey {
    /// The key in `<dir>/certs/server.key`; made if there is none. It is on disk before it is used, so that an
    /// enrolment whose answer was lost can be repeated with the same key.
    pub fn load_or_create(dir: &Path) -> Result<Self, IdentityError> {
        Self::at(dir, KEY_FILE)
    }

    /// The key of the next certificate, in `<dir>/certs/server.key.next`; made if there is none, so that a renewal whose
    /// answer was lost is repeated with the same key. The one in use stays until [`Self::renew`].
    pub fn next(dir: &Path) -> Result<Self, IdentityError> {
        Self::at(dir, NEXT_KEY_FILE)
    }

    fn at(dir: &Path, file: [&'static str; 2]) -> Result<Self, IdentityError> {
        let path = authority::joined(dir, &file);
        let pair = match files::read_key(&path)? {
            Some(key) => authority::key_pair(&path, &key)?,
            None => {
                let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
                files::write(&path, pair.serialize_pem().as_bytes(), Access::Owner)?;
                pair
            }
        };
        Ok(Self { dir: dir.to_owned(), pair, file })
    }

    /// A certificate request (PKCS#10, DER) for the node's certificate.
    pub fn request(&self, node: &NodeName) -> Result<Vec<u8>, IdentityError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = authority::subject(&node.common_name(), names::NODES_GROUP);
        Ok(params.serialize_request(&self.pair)?.der().to_vec())
    }

    /// Takes the cloud's answer to a join: checks the chain against this key and the CA that the join token pins, and
    /// writes it.
    pub fn accept(self, chain_pem: &str, pin: &CaHash, now: SystemTime) -> Result<NodeIdentity, IdentityError> {
        self.take_pinned(certificates(chain_pem)?, pin, Some(now))
    }

    /// The same by a clock that may be wrong, which learns from it how late it is at least.
    pub fn accept_by(self, chain_pem: &str, pin: &CaHash, clock: &FlooredClock) -> Result<NodeIdentity, IdentityError> {
        let answer = certificates(chain_pem)?;
        let now = (!clock.is_behind()).then(|| clock.now());
        let identity = self.take_pinned(answer, pin, now)?;
        clock.raise(identity.begins);
        Ok(identity)
    }

    fn take_pinned(
        self,
        answer: Vec<CertificateDer<'static>>,
        pin: &CaHash,
        now: Option<SystemTime>,
    ) -> Result<NodeIdentity, IdentityError> {
        let pinned = answer.iter().find(|certificate| CaHash::of(certificate) == *pin).cloned();
        let pinned = pinned.ok_or_else(|| wrong(format!("the CA with hash {pin} is not in its chain")))?;
        self.take(answer, &[pinned], None, now)
    }

    /// Takes the cloud's answer to a renewal of `current`: it has to be for the same node, and of a CA that this node
    /// trusts already or of one that such a CA has signed. Without a clock that is right, `now` is `None`.
    pub fn renew(
        self,
        chain_pem: &str,
        current: &NodeIdentity,
        now: Option<SystemTime>,
    ) -> Result<NodeIdentity, IdentityError> {
        self.take(certificates(chain_pem)?, &current.cas, Some(&current.node), now)
    }

    fn take(
        self,
        answer: Vec<CertificateDer<'static>>,
        trusted: &[CertificateDer<'static>],
        node: Option<&NodeName>,
        now: Option<SystemTime>,
    ) -> Result<NodeIdentity, IdentityError> {
        let (roots, chain): (Vec<_>, Vec<_>) = answer.into_iter().partition(rollover::is_root);
        let known = |ca: &CertificateDer<'_>| trusted.contains(ca) || rollover::vouched(ca, &chain, trusted);
        let cas = roots.into_iter().filter(known).collect();
        let identity = NodeIdentity::assemble(&self.dir, chain, cas, &self.pair).map_err(wrong)?;
        identity.check(trusted, now.unwrap_or(identity.begins)).map_err(wrong)?;
        if identity.cas.is_empty() {
            return Err(wrong("it brings no CA that this node trusts".to_owned()));
        }
        if node.is_some_and(|node| *node != identity.node) {
            return Err(wrong(format!("it is for node {}, this is another one", identity.node)));
        }
        // At every moment there is a CA for the certificate that is there, and a key.
        let pem = |certificates: &[CertificateDer<'_>]| certificates.iter().map(authority::pem).collect::<String>();
        let ca_path = authority::joined(&self.dir, &CA_FILE);
        let mut both = identity.cas.clone();
        both.extend(trusted.iter().filter(|ca| !identity.cas.contains(ca)).cloned());
        files::write(&ca_path, pem(&both).as_bytes(), Access::Everyone)?;
        let certificate = authority::joined(&self.dir, &CERTIFICATE_FILE);
        files::write(&certificate, pem(&identity.chain).as_bytes(), Access::Everyone)?;
        if both != identity.cas {
            files::write(&ca_path, pem(&identity.cas).as_bytes(), Access::Everyone)?;
        }
        if self.file != KEY_FILE {
            self.put_into_place(&identity)?;
        }
        Ok(identity)
    }

    /// Who reads the identity at this moment takes the renewal for one that was cut off and does it, too: see
    /// [`NodeIdentity::load`].
    fn put_into_place(&self, identity: &NodeIdentity) -> Result<(), IdentityError> {
        let path = authority::joined(&self.dir, &KEY_FILE);
        match files::rename(&authority::joined(&self.dir, &self.file), &path) {
            Err(IdentityError::File { source, .. }) if source.kind() == ErrorKind::NotFound => {
                let there = files::read_key(&path)?.ok_or_else(|| IdentityError::Missing { path: path.clone() })?;
                let there = authority::key_pair(&path, &there)?;
                let why = "it belongs to another certificate than the one just renewed";
                if belongs(&identity.chain, &there) { Ok(()) } else { Err(files::content(&path, why)) }
            }
            renamed => renamed,
        }
    }
}

fn wrong(why: String) -> IdentityError {
    IdentityError::Answer { why }
}

fn certificates(chain_pem: &str) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    let found = files::certificates(chain_pem.as_bytes()).map_err(wrong)?;
    if found.len() > LONGEST_ANSWER {
        return Err(wrong(format!("{} certificates, at most {LONGEST_ANSWER} are read", found.len())));
    }
    Ok(found)
}

impl fmt::Debug for NodeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeKey").field("dir", &self.dir).finish_non_exhaustive()
    }
}

/// Who this node is, for the link.
pub struct NodeIdentity {
    dir: PathBuf,
    node: NodeName,
    chain: Vec<CertificateDer<'static>>,
    cas: Vec<CertificateDer<'static>>,
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
        let cas = files::read_certificates(&ca_path)?.ok_or_else(|| missing(&ca_path))?;
        let key_path = authority::joined(dir, &KEY_FILE);
        let key = files::read_key(&key_path)?.ok_or_else(|| missing(&key_path))?;
        let mut pair = authority::key_pair(&key_path, &key)?;
        if cas.len() > LONGEST_ANSWER {
            let why = format!("{} certificates, expected the CA, or two during a rollover", cas.len());
            return Err(files::content(&ca_path, why));
        }
        let next_path = authority::joined(dir, &NEXT_KEY_FILE);
        if !belongs(&chain, &pair)
            && let Some(next) = files::read_key(&next_path)?
        {
            // A renewal was cut off between its certificate and its key.
            let next = authority::key_pair(&next_path, &next)?;
            if belongs(&chain, &next) {
                files::rename(&next_path, &key_path)?;
                pair = next;
            }
        }
        let identity = Self::assemble(dir, chain, cas, &pair).map_err(|why| files::content(&path, why))?;
        // Whether it is valid now is another question.
        identity.check(&identity.cas, identity.begins).map_err(|why| files::content(&path, why))?;
        Ok(Some(identity))
    }

    fn assemble(
        dir: &Path,
        chain: Vec<CertificateDer<'static>>,
        cas: Vec<CertificateDer<'static>>,
        pair: &KeyPair,
    ) -> Result<Self, String> {
        let leaf = names::parse(chain.first().ok_or("no certificate")?).map_err(|error| error.to_string())?;
        let node = names::node_name(leaf.subject()).map_err(|error| error.to_string())?;
        if leaf.public_key().raw != pair.subject_public_key_info() {
            return Err("the certificate does not belong to this node's key".to_owned());
        }
        let begins = super::time_of(&leaf.validity().not_before);
        let expires = super::time_of(&leaf.validity().not_after);
        let key = pair.serialized_der().to_vec();
        Ok(Self { dir: dir.to_owned(), node, chain, cas, key, begins, expires })
    }

    /// Whether one of these CAs signed this certificate for a client, and it is valid at `now`.
    fn check(&self, cas: &[CertificateDer<'static>], now: SystemTime) -> Result<(), String> {
        let verify = || -> Result<(), Box<dyn std::error::Error>> {
            let roots = tls::roots(cas)?;
            let verifier = WebPkiClientVerifier::builder_with_provider(roots, tls::provider()).build()?;
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

    /// The CAs that this node trusts: one, or two while one takes over from the other.
    pub fn cas(&self) -> &[CertificateDer<'static>] {
        &self.cas
    }

    pub(crate) fn leaf(&self) -> &CertificateDer<'static> {
        // `assemble` makes none without a leaf.
        &self.chain[0]
    }

    /// The folder of its files.
    pub fn dir(&self) -> &Path {
        &self.dir
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

fn belongs(chain: &[CertificateDer<'_>], pair: &KeyPair) -> bool {
    let leaf = chain.first().and_then(|leaf| names::parse(leaf).ok());
    leaf.is_some_and(|leaf| leaf.public_key().raw == pair.subject_public_key_info())
}

impl fmt::Debug for NodeIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { node, expires, .. } = self;
        f.debug_struct("NodeIdentity")
            .field("node", node)
            .field("expires", expires)
            .field("cas", &self.cas.iter().map(CaHash::of).collect::<Vec<_>>())
            .finish_non_exhaustive()
    }
}
