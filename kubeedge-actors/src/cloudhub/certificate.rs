//! The certificate of a connection: renewed over it, and the longest that its session may last.

use std::{
    cell::Cell,
    time::{Duration, SystemTime},
};

use kubeedge_proto::{
    NodeName,
    v1::{CallReply, Goodbye, GoodbyeReason, call_reply},
};
use rustls::pki_types::{CertificateDer, pem::PemObject};
use tokio::time::Instant;

use crate::{
    audit,
    identity::{IdentityError, Registrar, validity},
};

/// One renewal of a session in so much time: a signature costs more than to ask for one.
const RENEWAL_EVERY: Duration = Duration::from_secs(1);
/// The wall clock may be set while a session waits for its end: it looks again after this.
const LOOK_AGAIN: Duration = Duration::from_secs(60);

/// What a session has to know of its node's certificate.
pub(super) struct Certificate {
    registrar: Option<Registrar>,
    expires: Cell<SystemTime>,
    renewed: Cell<Option<Instant>>,
    said: Cell<bool>,
}

impl Certificate {
    pub(super) fn new(registrar: Option<Registrar>, expires: SystemTime) -> Self {
        Self { registrar, expires: Cell::new(expires), renewed: Cell::default(), said: Cell::default() }
    }

    /// Waits for the end of the certificate, or of the one that followed it. Resolves once.
    pub(super) async fn ended(&self) {
        while !self.said.get() {
            match self.expires.get().duration_since(SystemTime::now()) {
                Ok(left) if !left.is_zero() => tokio::time::sleep(left.min(LOOK_AGAIN)).await,
                _ => {
                    self.said.set(true);
                    return;
                }
            }
        }
        std::future::pending().await
    }

    /// What the node is told then.
    pub(super) fn goodbye(&self) -> Goodbye {
        Goodbye {
            reason: GoodbyeReason::Expired.into(),
            message: "the certificate of this connection has ended and was not renewed".into(),
            retry_after_ms: 0,
        }
    }

    /// The next certificate of the node. The session may last as long as that one.
    pub(super) fn renew(&self, node: &NodeName, csr_der: &[u8]) -> CallReply {
        let Some(registrar) = &self.registrar else {
            let why = "this cloud signs no certificates";
            audit::refused("SignCertificate", node, "certificate request", why);
            return CallReply::error(501, "Unsupported", why);
        };
        if self.renewed.get().is_some_and(|at| at.elapsed() < RENEWAL_EVERY) {
            let why = format!("one certificate in {RENEWAL_EVERY:?}");
            audit::refused("SignCertificate", node, "certificate request", &why);
            return CallReply::error(429, "TooManyRequests", why);
        }
        self.renewed.set(Some(Instant::now()));
        match registrar.renew(csr_der, node, SystemTime::now()) {
            Ok(chain) => {
                let leaf = CertificateDer::from_pem_slice(chain.as_bytes()).ok();
                if let Some((_, expires)) = leaf.and_then(|leaf| validity(&leaf).ok()) {
                    self.expires.set(expires);
                }
                tracing::info!(target: audit::TARGET, %node, "a node's certificate was renewed over the link");
                CallReply { result: Some(call_reply::Result::CertificateChainPem(chain.into())) }
            }
            Err(error @ (IdentityError::Request(_) | IdentityError::Revoked(_))) => {
                audit::refused("SignCertificate", node, "certificate request", &error);
                CallReply::error(403, "Forbidden", error.to_string())
            }
            Err(error) => {
                tracing::error!(%node, "a certificate could not be signed: {error}");
                CallReply::error(500, "InternalError", error.to_string())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{
        audit::testing::Heard,
        identity::{CertificateAuthority, NodeKey, Revocations},
    };

    #[tokio::test(start_paused = true)]
    async fn a_session_gets_one_certificate_a_second() {
        let folder = tempfile::tempdir().unwrap();
        let authority = CertificateAuthority::load_or_create(&folder.path().join("ca"), SystemTime::now()).unwrap();
        let registrar = Registrar::new(Arc::new(authority), Revocations::in_memory(), Duration::ZERO);
        let node: NodeName = "edge-1".parse().unwrap();
        let request = NodeKey::load_or_create(folder.path()).unwrap().request(&node).unwrap();
        let certificate = Certificate::new(Some(registrar), SystemTime::now());
        let heard = Heard::default();
        let _here = heard.here();
        let code = |request: &[u8]| match certificate.renew(&node, request).result {
            Some(call_reply::Result::CertificateChainPem(_)) => 0,
            Some(call_reply::Result::Error(error)) => error.code,
            other => panic!("{other:?}"),
        };
        assert_eq!((code(&request), code(&request)), (0, 429));
        let lines = heard.take();
        assert!(lines.iter().any(|line| line.contains("SignCertificate refused: one certificate in 1s")), "{lines:?}");
        tokio::time::advance(RENEWAL_EVERY - Duration::from_millis(1)).await;
        assert_eq!(code(&request), 429);
        tokio::time::advance(Duration::from_millis(1)).await;
        // What is refused counts as well: it costs nearly as much.
        assert_eq!((code(b"no request"), code(&request)), (403, 429));
        tokio::time::advance(RENEWAL_EVERY).await;
        assert_eq!(code(&request), 0);
    }
}
