//! Admission: the webhook by which a real cluster's API server lets KubeEdge change pods, and refuse devices and rules that
//! cannot be, before they are stored.
//!
//! | | |
//! |---|---|
//! | listens | HTTPS: `POST` on [`PATHS`], an `AdmissionReview` of `admission.k8s.io/v1` |
//! | asks, tells, stores | nothing |
//! | a node offline | is what it is for: [`crate::autonomy`] |
//!
//! The paths are KubeEdge's, so that its webhook configurations work with another address; what is answered follows from
//! what the review is about. An API server shows no certificate to webhooks unless told to: whoever reaches the port may ask
//! what would become of an object, and learns nothing else. The embedded API server needs no webhook, it decides by the same function.

mod listener;
mod review;

use std::{net::TcpListener, sync::Arc};

use actix::{Actor, ResponseActFuture, WrapFuture};
use tokio_util::task::AbortOnDropHandle;

use crate::system::{Component, Context, Contract, Stage};

/// Where the API server posts its reviews: of pods, and of the kinds that the others are named for.
pub const PATHS: [&str; 5] = ["/offlinemigration", "/devices", "/devicemodels", "/rules", "/ruleendpoints"];

/// Where Admission listens.
#[derive(Clone)]
pub struct AdmissionConfig {
    /// Bound before the system starts, so that a port in use is a start-up error.
    pub listener: Arc<TcpListener>,
    /// This cloud's certificate; the webhook's configuration holds its authority.
    pub tls: Arc<rustls::ServerConfig>,
}

/// The component. See the module's page.
pub struct Admission {
    config: AdmissionConfig,
    serving: Option<AbortOnDropHandle<()>>,
}

impl Admission {
    /// A webhook on a bound listener.
    pub fn new(config: AdmissionConfig) -> Self {
        Self { config, serving: None }
    }
}

impl Actor for Admission {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        match listener::listen(&self.config) {
            Ok(serving) => self.serving = Some(serving),
            Err(error) => ctx.fail(format!("the admission webhook's listener: {error}")),
        }
    }
}

impl Component for Admission {
    const NAME: &'static str = "admission";
    const STAGE: Stage = Stage::Source;

    fn contract(_: &mut Contract<Self>) {}

    /// A review that is cut short is asked again or ignored, as the webhook's configuration says.
    fn stop(&mut self, _: &mut Context<Self>) -> ResponseActFuture<Self, ()> {
        drop(self.serving.take());
        Box::pin(std::future::ready(()).into_actor(self))
    }
}
