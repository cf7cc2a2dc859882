//! What a certificate or a request says about its subject.

use std::time::SystemTime;

use kubeedge_proto::NodeName;
use rustls::pki_types::CertificateDer;
use thiserror::Error;
use x509_parser::{certificate::X509Certificate, prelude::FromDer, x509::X509Name};

/// The organization of every node, which Kubernetes takes for its group.
pub const NODES_GROUP: &str = "system:nodes";

/// A subject that is not a node's.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum NotANode {
    /// The peer presented no certificate.
    #[error("no certificate was presented")]
    NoCertificate,
    /// The bytes are no certificate.
    #[error("not an X.509 certificate: {0}")]
    Malformed(String),
    /// The subject is another one.
    #[error("subject {0:?} is no node: expected one CN `system:node:<name>` and one O `system:nodes`, nothing else")]
    Subject(String),
}

/// The node's name in a subject: one CN `system:node:<name>`, one O `system:nodes`, nothing else.
pub(crate) fn node_name(subject: &X509Name<'_>) -> Result<NodeName, NotANode> {
    let refused = || NotANode::Subject(subject.to_string().chars().take(300).collect());
    let one = |mut values: Box<dyn Iterator<Item = Option<String>> + '_>| match (values.next(), values.next()) {
        (Some(Some(value)), None) => Some(value),
        _ => None,
    };
    let text = |attribute: &x509_parser::x509::AttributeTypeAndValue<'_>| attribute.as_str().ok().map(str::to_owned);
    let common_name = one(Box::new(subject.iter_common_name().map(text))).ok_or_else(refused)?;
    let organization = one(Box::new(subject.iter_organization().map(text))).ok_or_else(refused)?;
    if organization != NODES_GROUP || subject.iter_attributes().count() != 2 {
        return Err(refused());
    }
    NodeName::from_common_name(&common_name).map_err(|_| refused())
}

/// The name of the node that presented this chain (leaf first) in a TLS handshake that was verified.
///
/// This is where a node's name comes from; a message never carries it.
pub fn peer_node_name(chain: &[CertificateDer<'_>]) -> Result<NodeName, NotANode> {
    let leaf = chain.first().ok_or(NotANode::NoCertificate)?;
    node_name(parse(leaf)?.subject())
}

/// The common name and the organizations of a certificate's subject: a Kubernetes user and its groups.
pub fn peer_user(chain: &[CertificateDer<'_>]) -> Result<(String, Vec<String>), NotANode> {
    let certificate = parse(chain.first().ok_or(NotANode::NoCertificate)?)?;
    let subject = certificate.subject();
    let mut names = subject.iter_common_name().filter_map(|name| name.as_str().ok());
    let groups = subject.iter_organization().filter_map(|group| group.as_str().ok()).map(str::to_owned).collect();
    match (names.next(), names.next()) {
        (Some(name), None) => Ok((name.to_owned(), groups)),
        _ => Err(NotANode::Subject(subject.to_string().chars().take(300).collect())),
    }
}

/// When a certificate begins and ends.
pub fn validity(certificate: &CertificateDer<'_>) -> Result<(SystemTime, SystemTime), NotANode> {
    let parsed = parse(certificate)?;
    let validity = parsed.validity();
    Ok((super::time_of(&validity.not_before), super::time_of(&validity.not_after)))
}

pub(crate) fn parse<'a>(certificate: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, NotANode> {
    match X509Certificate::from_der(certificate) {
        Ok(([], parsed)) => Ok(parsed),
        Ok(_) => Err(NotANode::Malformed("bytes behind its end".to_owned())),
        Err(error) => Err(NotANode::Malformed(error.to_string())),
    }
}
