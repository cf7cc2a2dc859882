//! A node's request for a certificate.

use kubeedge_proto::NodeName;
use thiserror::Error;
use x509_parser::{
    certification_request::X509CertificationRequest,
    oid_registry::{OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_NIST_EC_P384},
    prelude::FromDer,
};

use super::{NotANode, hash::sha256, names};

/// Largest request, bytes; one on P-256 has about 250.
const LIMIT: usize = 16 * 1024;

/// A certificate request that was read and checked: its sender holds the key, and it asks for a node's name.
///
/// Extensions that it asks for are ignored: what a node's certificate may do is not the node's choice.
#[derive(Clone, Debug)]
pub struct NodeRequest {
    node: NodeName,
    public_key: Vec<u8>,
}

/// Why a request is refused.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum RequestError {
    /// The bytes are no PKCS#10 request in DER.
    #[error("not a certificate request (PKCS#10, DER): {0}")]
    Malformed(String),
    /// It was not signed by the key in it, or was changed on its way.
    #[error("the certificate request's signature is wrong: it was changed, or its sender does not hold the key")]
    Signature,
    /// The key is of a kind that is not accepted.
    #[error("the certificate request's key is not accepted: expected ECDSA on P-256 or P-384")]
    Key,
    /// It asks for something else than a node's certificate.
    #[error("certificate request: {0}")]
    Subject(#[from] NotANode),
    /// It asks for another node's certificate.
    #[error("certificate request for node {requested}, only {allowed} is allowed here")]
    OtherNode {
        /// The node in the request.
        requested: NodeName,
        /// The node that may ask.
        allowed: NodeName,
    },
}

impl NodeRequest {
    /// Reads and checks a PKCS#10 request in DER.
    pub fn parse(der: &[u8]) -> Result<Self, RequestError> {
        if der.len() > LIMIT {
            return Err(RequestError::Malformed(format!("{} bytes, the limit is {LIMIT}", der.len())));
        }
        let request = match X509CertificationRequest::from_der(der) {
            Ok(([], request)) => request,
            Ok(_) => return Err(RequestError::Malformed("bytes behind its end".to_owned())),
            Err(error) => return Err(RequestError::Malformed(error.to_string())),
        };
        let info = &request.certification_request_info;
        let algorithm = &info.subject_pki.algorithm;
        let curve = algorithm.parameters.as_ref().and_then(|parameters| parameters.as_oid().ok());
        let known = curve.is_some_and(|curve| curve == OID_EC_P256 || curve == OID_NIST_EC_P384);
        if algorithm.algorithm != OID_KEY_TYPE_EC_PUBLIC_KEY || !known {
            return Err(RequestError::Key);
        }
        request.verify_signature().map_err(|_| RequestError::Signature)?;
        let node = names::node_name(&info.subject)?;
        Ok(Self { node, public_key: info.subject_pki.raw.to_vec() })
    }

    /// The node that the certificate will name.
    pub fn node(&self) -> &NodeName {
        &self.node
    }

    /// Refuses a request for any other node than `allowed`: for renewal, where the name is that of the peer
    /// (`P-OWN-CERTIFICATE`).
    pub fn only_for(self, allowed: &NodeName) -> Result<Self, RequestError> {
        if self.node == *allowed {
            Ok(self)
        } else {
            Err(RequestError::OtherNode { requested: self.node, allowed: allowed.clone() })
        }
    }

    /// The key as SubjectPublicKeyInfo, DER.
    pub(crate) fn public_key(&self) -> &[u8] {
        &self.public_key
    }

    /// SHA-256 of the key: tells a repeated request from another box's.
    pub fn key_hash(&self) -> [u8; 32] {
        sha256(&self.public_key)
    }
}
