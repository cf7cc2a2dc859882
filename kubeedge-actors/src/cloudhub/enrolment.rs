//! Enrolment: a join token for a certificate.
//!
//! The box has checked this cloud by the hash in its token before it says anything. Here the request's own signature is
//! checked, then the token (its use is on disk before anything is signed), then the certificate is handed out. A refusal
//! says which of them it was, to the box and in the log; the token itself is in neither.

use std::{sync::Arc, time::SystemTime};

use kubeedge_proto::v1::{EnrolRequest, EnrolResponse, enrolment_server::Enrolment};
use tonic::{Request, Response, Status};

use crate::identity::{CertificateAuthority, NodeRequest, TokenError, Tokens};

/// Answers enrolment requests.
pub struct EnrolmentService {
    authority: Arc<CertificateAuthority>,
    tokens: Tokens,
    link_address: String,
}

impl EnrolmentService {
    /// Signs with `authority` for who has a token. `link_address` (`host:port`, or `:port` for "the host you came to")
    /// is where the link is served.
    pub fn new(authority: Arc<CertificateAuthority>, tokens: Tokens, link_address: String) -> Self {
        Self { authority, tokens, link_address }
    }
}

#[tonic::async_trait]
impl Enrolment for EnrolmentService {
    async fn enrol(&self, request: Request<EnrolRequest>) -> Result<Response<EnrolResponse>, Status> {
        let now = SystemTime::now();
        let EnrolRequest { token, csr_der } = request.into_inner();
        let asked = NodeRequest::parse(&csr_der).map_err(|error| {
            tracing::warn!("enrolment refused: certificate request: {error}");
            Status::invalid_argument(format!("certificate request: {error}"))
        })?;
        let grant = self.tokens.redeem(&token, &asked, now).await.map_err(|error| {
            tracing::warn!(node = %asked.node(), "enrolment refused: {error}");
            match error {
                TokenError::Store(_) => Status::unavailable(error.to_string()),
                _ => Status::permission_denied(error.to_string()),
            }
        })?;
        let chain = self.authority.sign(&asked, now).map_err(|error| {
            tracing::error!(node = %grant.node(), "enrolment failed: {error}");
            Status::internal(format!("the certificate could not be signed: {error}"))
        })?;
        tracing::info!(node = %grant.node(), token = grant.token_id(), "a node was enrolled");
        Ok(Response::new(EnrolResponse { certificate_chain_pem: chain, link_address: self.link_address.clone() }))
    }
}
