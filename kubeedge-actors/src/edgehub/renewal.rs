//! This node's next certificate: asked for over the link between 70 and 90 % of the life of the one in use, and soon when
//! the cloud has another authority. What stands goes on standing; the next handshake shows the new one.
//!
//! A node that was away for so long that its certificate has ended cannot open the link. It asks where boxes join, and
//! shows the old certificate there: that is good for this one thing for as long as the cloud's grace period.

use std::{
    cell::Cell,
    rc::Rc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use actix::Addr;
use kubeedge_proto::v1::{CallCloud, CallError, Envelope, RenewRequest, SignCertificate, call_reply, envelope::Body};
use thiserror::Error;
use tokio::{sync::Notify, time::Instant};

use super::{EdgeHub, unix_ms};
use crate::{
    identity::{IdentityError, NodeCredentials, signing_authority},
    link::{
        client::{self, ConnectError},
        session::Established,
    },
};

/// The clock may be set while this waits: it looks again after this.
const LOOK_AGAIN: Duration = Duration::from_secs(3600);
/// Nodes of another authority ask for the new one's certificate within this time, each at another moment.
const SPREAD: Duration = Duration::from_secs(300);
/// From an attempt that failed to the next one: a part of what is left of the certificate's life, between these.
const AGAIN: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(600));

/// How this node keeps its certificate.
#[derive(Clone, Debug)]
pub struct Renewal {
    /// What it shows; [`NodeCredentials::client_config`] belongs into [`super::EdgeHubConfig::tls`].
    pub credentials: NodeCredentials,
    /// `host:port` where boxes join; without it a certificate that has ended stays so.
    pub enrolment: Option<String>,
}

/// Why there is no next certificate yet.
#[derive(Debug, Error)]
pub enum RenewalError {
    /// Over the link: the cloud said no, or there is no link.
    #[error("the cloud answers {code}: {message}", code = .0.code, message = .0.message)]
    Call(CallError),
    /// Where boxes join.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The certificate has ended too long ago, by the cloud's clock.
    #[error(
        "the certificate ended longer ago than the cloud's grace period: make a token with `cloudcore token create` and \
         join again with `edgecore join --force`"
    )]
    TooLate,
    /// What came is not this node's certificate, or could not be kept.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// There is no way to renew a certificate that has ended.
    #[error("it is not known where boxes join: join again")]
    Nowhere,
    /// The answer is of another kind.
    #[error("the cloud's answer is no certificate")]
    Answer,
}

impl Renewal {
    /// By proof of the old key, where boxes join.
    pub(super) async fn by_proof(&self) -> Result<(), RenewalError> {
        let credentials = &self.credentials;
        let address = self.enrolment.as_deref().ok_or(RenewalError::Nowhere)?;
        let tls = credentials.client_config(&[])?;
        let request = RenewRequest { csr_der: credentials.request()?.into() };
        let answer = client::renew(address, None, &tls, request)
            .await
            .map_err(|error| if error.says_expired() { RenewalError::TooLate } else { error.into() })?;
        credentials.accept(&answer.certificate_chain_pem)?;
        tracing::info!(node = %credentials.node(), "the certificate had ended: it was renewed by proof of its key");
        Ok(())
    }

    async fn over_link(&self, hub: &Addr<EdgeHub>) -> Result<(), RenewalError> {
        let body = Body::SignCertificate(SignCertificate { csr_der: self.credentials.request()?.into() });
        let envelope = Some(Envelope::new("edgehub", unix_ms(), body));
        let reply = hub.send(CallCloud { envelope }).await.ok().and_then(|reply| reply.result);
        match reply {
            Some(call_reply::Result::CertificateChainPem(chain)) => {
                self.credentials.accept(&String::from_utf8_lossy(&chain))?;
                Ok(())
            }
            Some(call_reply::Result::Error(error)) => Err(RenewalError::Call(error)),
            _ => Err(RenewalError::Answer),
        }
    }
}

/// What the sessions tell the task that renews.
#[derive(Default)]
pub(super) struct Wishes {
    /// A session stands: what could not be asked before can be now.
    up: Notify,
    /// The cloud's authority is another one than that of the certificate.
    other_authority: Cell<Option<Instant>>,
}

impl Wishes {
    /// A session stands.
    pub(super) fn established(&self, renewal: &Renewal, session: &Established) {
        let told = UNIX_EPOCH.checked_add(Duration::from_millis(session.peer_unix_ms));
        if let Some(told) = told.filter(|_| session.peer_unix_ms > 0) {
            renewal.credentials.clock().told(told);
        }
        let signs = signing_authority(&session.capabilities);
        let other = signs.is_some_and(|ca| !renewal.credentials.is_of(&ca));
        if other && self.other_authority.get().is_none() {
            self.other_authority.set(Some(Instant::now() + SPREAD.mul_f64(rand::random())));
        } else if !other {
            self.other_authority.set(None);
        }
        self.up.notify_one();
    }

    fn until_due(&self, credentials: &NodeCredentials) -> Duration {
        let other = self.other_authority.get().map(|at| at.saturating_duration_since(Instant::now()));
        other.unwrap_or(Duration::MAX).min(credentials.until_renewal())
    }
}

/// Renews for as long as EdgeHub runs.
pub(super) async fn run(renewal: Renewal, wishes: Rc<Wishes>, hub: Addr<EdgeHub>) {
    let credentials = &renewal.credentials;
    loop {
        let due = wishes.until_due(credentials);
        if !due.is_zero() {
            tokio::select! {
                () = tokio::time::sleep(due.min(LOOK_AGAIN)) => {}
                () = wishes.up.notified() => {}
            }
            continue;
        }
        match renewal.over_link(&hub).await {
            Ok(()) => {
                wishes.other_authority.set(None);
                let days =
                    credentials.expires().duration_since(SystemTime::now()).unwrap_or_default().as_secs() / 86_400;
                tracing::info!(node = %credentials.node(), days, "the certificate was renewed");
            }
            Err(error) => {
                let left = credentials.expires().duration_since(credentials.clock().now()).unwrap_or_default();
                let pause = (left / 20).clamp(AGAIN.0, AGAIN.1).mul_f64(0.5 + rand::random::<f64>() / 2.0);
                match &error {
                    // It is asked again when there is a link.
                    RenewalError::Call(CallError { code: 503, .. }) => {
                        tracing::debug!("the certificate is due: {error}")
                    }
                    _ => tracing::warn!(again_in = ?pause, "the certificate was not renewed: {error}"),
                }
                tokio::select! {
                    () = tokio::time::sleep(pause) => {}
                    () = wishes.up.notified() => {}
                }
            }
        }
    }
}
