//! CloudStream: the gateway by which an API server reads the logs of containers at the edge, and gets into them.
//!
//! | | |
//! |---|---|
//! | listens | HTTPS, as a kubelet does: `GET /containerLogs/<namespace>/<pod>/<container>`; with an upgrade `/exec/<namespace>/<pod>/<container>`, `/attach/<namespace>/<pod>/<container>`, `/portForward/<namespace>/<pod>`; of a node as a whole `GET /nodes/<node>/stats/summary`, `.../metrics/resource`, `.../healthz` |
//! | asks | `LocatePod` (EdgeController), `ConnectStreams` (CloudHub) |
//! | stores | nothing |
//! | a node offline | 503 at once, with the node's name |
//!
//! Bounds: 1024 connections, a path of 32 KiB, the headers of an upgrade 8 KiB, and for a node
//! [`OPEN_STREAMS`](crate::link::streams::OPEN_STREAMS); one more is answered 429. An upgraded connection lasts as long as
//! both its ends: a client that goes frees everything on the way at once, an edge that is dead is noticed within 25 s.
//!
//! An API server takes it for the kubelet of every node, since EdgeController publishes its address on them. It relays
//! bytes and reads nothing of them. Who asks must show a client certificate of the authority it was started with, and
//! be the API server: its own client user or a member of `system:masters`; a node's certificate gets 403.

mod gateway;
mod relay;

use std::{net::TcpListener, sync::Arc};

use actix::{Actor, ResponseActFuture, WrapFuture};
use kubeedge_proto::v1::LocatePod;
use tokio_util::task::AbortOnDropHandle;

use crate::{
    link::streams::ConnectStreams,
    system::{Component, Context, Contract, Port, Ports, Stage},
};

/// The user that a Kubernetes API server is at its kubelets.
pub const API_SERVER_USER: &str = "kube-apiserver-kubelet-client";
/// The group whose members may do everything in a cluster.
pub const MASTERS: &str = "system:masters";

/// Where CloudStream listens.
#[derive(Clone)]
pub struct CloudStreamConfig {
    /// Bound before the system starts, so that a port in use is a start-up error.
    pub listener: Arc<TcpListener>,
    /// This cloud's certificate, and the authority of the API server's client certificate. It should ask for one and
    /// not insist, so that who has none is told so.
    pub tls: Arc<rustls::ServerConfig>,
}

/// The component. See the module's page.
pub struct CloudStream {
    config: CloudStreamConfig,
    ports: Asks,
    serving: Option<AbortOnDropHandle<()>>,
}

/// Whom it asks.
#[derive(Clone)]
struct Asks {
    locate: Port<LocatePod>,
    connect: Port<ConnectStreams>,
}

impl CloudStream {
    /// A gateway on a bound listener.
    pub fn new(config: CloudStreamConfig, ports: &Ports) -> Self {
        Self { config, ports: Asks { locate: ports.port(), connect: ports.port() }, serving: None }
    }
}

impl Actor for CloudStream {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        match gateway::listen(&self.config, self.ports.clone()) {
            Ok(serving) => self.serving = Some(serving),
            Err(error) => ctx.fail(format!("the stream gateway's listener: {error}")),
        }
    }
}

impl Component for CloudStream {
    const NAME: &'static str = "cloudstream";
    const STAGE: Stage = Stage::Source;

    fn contract(contract: &mut Contract<Self>) {
        contract.asks::<LocatePod>();
        contract.asks::<ConnectStreams>();
    }

    /// Streams have no end of their own: they are cut.
    fn stop(&mut self, _: &mut Context<Self>) -> ResponseActFuture<Self, ()> {
        drop(self.serving.take());
        Box::pin(std::future::ready(()).into_actor(self))
    }
}
