//! Tokens, certificate requests and configuration files.

use kubeedge_actors::{
    config::{Document, parse},
    identity::{Credential, JoinToken, NodeRequest, peer_node_name, peer_user, validity},
};
use kubeedge_proto::NodeName;

/// A join token, or the part of one that is sent.
pub fn token(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(token) = text.parse::<JoinToken>() {
        let shown = token.expose();
        assert!(shown.eq_ignore_ascii_case(text.trim()), "{text:?} is read as {shown:?}");
        assert_eq!(shown.parse::<JoinToken>().as_ref(), Ok(&token));
    }
    if let Ok(credential) = text.parse::<Credential>() {
        assert_eq!(credential.expose(), text);
        let secret = text.rsplit('.').next().unwrap_or_default();
        assert!(!format!("{credential:?}").contains(secret), "its debug form shows the secret");
    }
}

/// A certificate request, and the same bytes as a certificate of a peer.
pub fn csr(bytes: &[u8]) {
    if let Ok(request) = NodeRequest::parse(bytes) {
        let name = request.node().as_str();
        assert!(name.parse::<NodeName>().is_ok() && request.clone().only_for(request.node()).is_ok());
    }
    let chain = [bytes.to_vec().into()];
    if let Ok(name) = peer_node_name(&chain) {
        assert_eq!(peer_user(&chain).map(|(user, _)| user), Ok(name.common_name()));
    }
    let _ = validity(&chain[0]);
}

/// A configuration file.
pub fn document<T: Document>(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Err(error) = parse::<T>("file.yaml", text) {
        let said = error.to_string();
        assert!(said.starts_with("file.yaml"), "it does not say where: {said}");
    }
}
