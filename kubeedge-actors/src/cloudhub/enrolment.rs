//! Enrolment: a join token for a certificate, and the next certificate for an old one.
//!
//! The box has checked this cloud before it says anything: by the hash in its token, or by the CA that it knows. Here the
//! request's own signature is checked, then who asks, then the certificate is handed out. A join has a token, whose use
//! is on disk before anything is signed. A renewal has the old certificate and, by the handshake, its key; that it may
//! have ended no longer ago than the grace period, and is not of a revoked node, was decided there. A refusal says what
//! it was about, to the box and in the audit log; the token itself is in neither.

use std::{fmt::Display, time::SystemTime};

use kubeedge_proto::v1::{EnrolRequest, EnrolResponse, RenewRequest, enrolment_server::Enrolment};
use tonic::{Request, Response, Status};

use crate::{
    audit,
    identity::{IdentityError, NodeRequest, Registrar, TokenError, Tokens, peer_node_name},
    link::server::Caller,
};

/// Answers enrolment requests.
pub struct EnrolmentService {
    registrar: Registrar,
    tokens: Tokens,
    link_address: String,
}

impl EnrolmentService {
    /// Signs with `registrar` for who has a token. `link_address` (`host:port`, or `:port` for "the host you came to") is
    /// where the link is served.
    pub fn new(registrar: Registrar, tokens: Tokens, link_address: String) -> Self {
        Self { registrar, tokens, link_address }
    }

    fn answer(&self, certificate_chain_pem: String) -> Response<EnrolResponse> {
        Response::new(EnrolResponse { certificate_chain_pem, link_address: self.link_address.clone() })
    }
}

/// Only [`crate::link::server::serve_enrolment`] serves this, and it always says who calls.
fn caller<T>(request: &Request<T>) -> Result<Caller, Status> {
    request.extensions().get().cloned().ok_or_else(|| Status::internal("the connection is not known"))
}

/// What a certificate that was not signed means for who asked. `refused` is told what it was about, and why.
fn not_signed(error: &IdentityError, refused: impl FnOnce(&dyn Display, &dyn Display)) -> Status {
    match error {
        IdentityError::Request(why) => {
            refused(&"certificate request", why);
            Status::invalid_argument(error.to_string())
        }
        IdentityError::Revoked(why) => {
            refused(&why.node, why);
            Status::permission_denied(error.to_string())
        }
        _ => {
            tracing::error!("a certificate could not be signed: {error}");
            Status::internal(format!("the certificate could not be signed: {error}"))
        }
    }
}

#[tonic::async_trait]
impl Enrolment for EnrolmentService {
    async fn enrol(&self, request: Request<EnrolRequest>) -> Result<Response<EnrolResponse>, Status> {
        let now = SystemTime::now();
        let peer = caller(&request)?.peer;
        let refused = |what: &dyn Display, why: &dyn Display| audit::refused_stranger("enrolment", peer, what, why);
        let EnrolRequest { token, csr_der } = request.into_inner();
        let asked = NodeRequest::parse(&csr_der).map_err(|error| not_signed(&error.into(), refused))?;
        // A token is not spent on a node that would not get its certificate.
        self.registrar.revocations().may_have_one(asked.node()).map_err(|error| not_signed(&error.into(), refused))?;
        let grant = self.tokens.redeem(&token, &asked, now).await.map_err(|error| {
            refused(asked.node(), &error);
            match error {
                TokenError::Store(_) => Status::unavailable(error.to_string()),
                _ => Status::permission_denied(error.to_string()),
            }
        })?;
        let chain = self.registrar.sign(&asked, now).map_err(|error| not_signed(&error, refused))?;
        tracing::info!(target: audit::TARGET, node = %grant.node(), token = grant.token_id(), %peer, "a node was enrolled");
        Ok(self.answer(chain))
    }

    async fn renew(&self, request: Request<RenewRequest>) -> Result<Response<EnrolResponse>, Status> {
        let Caller { peer, chain } = caller(&request)?;
        let node = peer_node_name(&chain).map_err(|error| {
            audit::refused_stranger("renewal", peer, "certificate", &error);
            Status::unauthenticated(format!("a renewal needs the old certificate in the handshake: {error}"))
        })?;
        let RenewRequest { csr_der } = request.into_inner();
        let signed = self.registrar.renew(&csr_der, &node, SystemTime::now());
        let refused = |what: &dyn Display, why: &dyn Display| audit::refused("renewal", &node, what, why);
        let chain = signed.map_err(|error| not_signed(&error, refused))?;
        tracing::info!(target: audit::TARGET, %node, %peer, "a node's certificate was renewed by proof of its old key");
        Ok(self.answer(chain))
    }
}
