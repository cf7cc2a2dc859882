//! Bearer tokens of service accounts: JWTs signed with ES256, as the API server gives them to pods.

use std::{
    fmt,
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData};
use ring::{
    rand::SystemRandom,
    signature::{
        ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _, UnparsedPublicKey,
    },
};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{
    IdentityError, authority,
    files::{self, Access},
    hash::sha256,
};

/// Longest token that is looked at, bytes; ours have about 1 KiB.
const LIMIT: usize = 8 * 1024;

/// What a token says, with the names of RFC 7519 and Kubernetes. Times are seconds since 1970.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    /// Who issued it: the API server's `--service-account-issuer`.
    pub iss: String,
    /// `system:serviceaccount:<namespace>:<name>`.
    pub sub: String,
    /// For whom it is.
    pub aud: Vec<String>,
    /// It is not good from then on.
    pub exp: u64,
    /// When it was issued.
    pub iat: u64,
    /// It is not good before then.
    pub nbf: u64,
    /// Its own id.
    pub jti: String,
    /// What it is bound to.
    #[serde(rename = "kubernetes.io")]
    pub kubernetes: Binding,
}

/// The objects that a token is bound to: it is void when they are gone or have another uid.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Binding {
    /// Namespace of the service account and the pod.
    pub namespace: String,
    /// The service account.
    pub serviceaccount: Reference,
    /// The pod that the token was made for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<Reference>,
    /// The node that the pod runs on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<Reference>,
}

/// One object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reference {
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
}

impl Claims {
    /// The claims for a service account, issued at `now` for `life`.
    pub fn new(issuer: &str, audiences: Vec<String>, binding: Binding, now: SystemTime, life: Duration) -> Self {
        let now = seconds(now);
        Self {
            iss: issuer.to_owned(),
            sub: format!("system:serviceaccount:{}:{}", binding.namespace, binding.serviceaccount.name),
            aud: audiences,
            exp: now.saturating_add(life.as_secs()),
            iat: now,
            nbf: now,
            jti: uuid::Uuid::new_v4().to_string(),
            kubernetes: binding,
        }
    }
}

/// Why a bearer token is refused.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum BearerError {
    /// Not a token of ours in form.
    #[error("not a service account token: {0}")]
    Malformed(String),
    /// Signed by another key.
    #[error("the token was signed by another key ({0:?}): it is from another cluster, or from before a key change")]
    OtherKey(String),
    /// Forged or changed.
    #[error("the token's signature is wrong")]
    Signature,
    /// From another issuer.
    #[error("the token was issued by {found:?}, expected {expected:?}")]
    Issuer {
        /// The token's.
        found: String,
        /// Ours.
        expected: String,
    },
    /// Not for us.
    #[error("the token is for {found:?}, none of which is accepted here")]
    Audience {
        /// The token's audiences.
        found: Vec<String>,
    },
    /// Over.
    #[error("the token expired {ago} s ago")]
    Expired {
        /// Seconds since it ended.
        ago: u64,
    },
    /// Not yet.
    #[error("the token is not valid before {wait} s from now: clocks differ")]
    NotYet {
        /// Seconds until it begins.
        wait: u64,
    },
}

#[derive(Serialize, Deserialize)]
struct Header {
    alg: String,
    kid: String,
}

/// Issues and verifies service account tokens.
pub struct ServiceAccountTokens {
    issuer: String,
    key: EcdsaKeyPair,
    key_id: String,
}

impl ServiceAccountTokens {
    /// With the key in this file (PKCS#8, PEM); made if there is none.
    pub fn load_or_create(key_file: &Path, issuer: &str) -> Result<Self, IdentityError> {
        let pair = match files::read_key(key_file)? {
            Some(key) => authority::key_pair(key_file, &key)?,
            None => {
                let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
                files::write(key_file, pair.serialize_pem().as_bytes(), Access::Owner)?;
                pair
            }
        };
        Self::with_key(&pair, issuer)
            .map_err(|error| files::content(key_file, format!("expected an ECDSA key on P-256: {error}")))
    }

    /// With a new key that is kept nowhere: its tokens end with the process.
    pub fn in_memory(issuer: &str) -> Result<Self, IdentityError> {
        let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        Self::with_key(&pair, issuer).map_err(|error| IdentityError::Answer { why: error.to_string() })
    }

    fn with_key(pair: &KeyPair, issuer: &str) -> Result<Self, ring::error::KeyRejected> {
        let random = SystemRandom::new();
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pair.serialized_der(), &random)?;
        let key_id = URL_SAFE_NO_PAD.encode(sha256(&pair.subject_public_key_info()));
        Ok(Self { issuer: issuer.to_owned(), key, key_id })
    }

    /// The issuer that the tokens name.
    pub fn issuer(&self) -> &str {
        &self.issuer
    }

    /// The key's id: base64url of the SHA-256 of its SubjectPublicKeyInfo, as Kubernetes makes it.
    pub fn key_id(&self) -> &str {
        &self.key_id
    }

    /// Signs claims.
    pub fn issue(&self, claims: &Claims) -> Result<String, IdentityError> {
        let header = Header { alg: "ES256".to_owned(), kid: self.key_id.clone() };
        let encode = |json: serde_json::Result<Vec<u8>>| {
            json.map(|json| URL_SAFE_NO_PAD.encode(json))
                .map_err(|error| IdentityError::Answer { why: error.to_string() })
        };
        let mut token = encode(serde_json::to_vec(&header))?;
        token.push('.');
        token.push_str(&encode(serde_json::to_vec(claims))?);
        let signature = self.key.sign(&SystemRandom::new(), token.as_bytes()).map_err(|_| IdentityError::Random)?;
        token.push('.');
        URL_SAFE_NO_PAD.encode_string(signature, &mut token);
        Ok(token)
    }

    /// Checks a token: signature, issuer, time, and that it is for one of `audiences`. Whether the objects that it is
    /// bound to still exist is the caller's to ask.
    pub fn verify(&self, token: &str, audiences: &[&str], now: SystemTime) -> Result<Claims, BearerError> {
        let malformed = |why: &str| BearerError::Malformed(why.to_owned());
        if token.len() > LIMIT {
            return Err(malformed("it is too long"));
        }
        let (signed, signature) = token.rsplit_once('.').ok_or_else(|| malformed("it has no three parts"))?;
        let (header, claims) = signed.split_once('.').ok_or_else(|| malformed("it has no three parts"))?;
        let decode = |part: &str, which: &str| {
            URL_SAFE_NO_PAD.decode(part).map_err(|_| BearerError::Malformed(format!("its {which} is no base64url")))
        };
        let header: Header = serde_json::from_slice(&decode(header, "header")?)
            .map_err(|error| BearerError::Malformed(format!("its header: {error}")))?;
        if header.alg != "ES256" {
            return Err(BearerError::Malformed(format!("algorithm {:?}, expected ES256", header.alg)));
        }
        if header.kid != self.key_id {
            return Err(BearerError::OtherKey(header.kid));
        }
        let signature = decode(signature, "signature")?;
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, self.key.public_key().as_ref())
            .verify(signed.as_bytes(), &signature)
            .map_err(|_| BearerError::Signature)?;
        let claims: Claims = serde_json::from_slice(&decode(claims, "claims")?)
            .map_err(|error| BearerError::Malformed(format!("its claims: {error}")))?;
        if claims.iss != self.issuer {
            return Err(BearerError::Issuer { found: claims.iss, expected: self.issuer.clone() });
        }
        let now = seconds(now);
        if now >= claims.exp {
            return Err(BearerError::Expired { ago: now - claims.exp });
        }
        if now < claims.nbf {
            return Err(BearerError::NotYet { wait: claims.nbf - now });
        }
        if !claims.aud.iter().any(|audience| audiences.contains(&audience.as_str())) {
            return Err(BearerError::Audience { found: claims.aud });
        }
        Ok(claims)
    }

    /// The public key as a JSON web key set, for `/openid/v1/jwks`.
    pub fn jwks(&self) -> serde_json::Value {
        // An uncompressed point: 0x04, x, y.
        let point = self.key.public_key().as_ref();
        let (x, y) = point.get(1..).unwrap_or_default().split_at(point.len() / 2);
        serde_json::json!({ "keys": [{
            "use": "sig",
            "kty": "EC",
            "kid": self.key_id,
            "crv": "P-256",
            "alg": "ES256",
            "x": URL_SAFE_NO_PAD.encode(x),
            "y": URL_SAFE_NO_PAD.encode(y),
        }]})
    }
}

impl fmt::Debug for ServiceAccountTokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { issuer, key_id, .. } = self;
        f.debug_struct("ServiceAccountTokens").field("issuer", issuer).field("key_id", key_id).finish_non_exhaustive()
    }
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
