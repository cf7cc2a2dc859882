//! KubeletApi: the node's own read-only API, as a kubelet has it on its read-only port.
//!
//! | | |
//! |---|---|
//! | listens | HTTP, `GET` of `/pods`, `/healthz`, `/stats/summary`, `/metrics`, `/metrics/resource` |
//! | answers | `ReadKubelet` (EdgeStream): the same for the cloud, over the link |
//! | asks | `ListPods`, `QueryStats`, `QueryProgress` (Edged) |
//! | stores | nothing |
//! | offline | everything works |
//!
//! `/metrics` is what the components of this program tell about themselves; [`summary`] and [`resource_metrics`] write
//! what Edged measured in a kubelet's forms. There is no authentication, as there is none on a kubelet's read-only
//! port: it belongs on the loopback interface, and shows the pods' specifications to whoever can reach it there.
//!
//! Bounds: [`MAX_CONNECTIONS`] connections, no request bodies, an answer is as large as the node's pods are many. A port
//! that is taken is reported and tried again; pods run on, and the link's answers do not need it.

pub mod resource_metrics;
mod serve;
pub mod summary;

use std::{net::SocketAddr, time::Duration};

use actix::{Actor, AsyncContext, Handler, ResponseActFuture, ResponseFuture, WrapFuture};
use kubeedge_proto::v1::{KubeletAnswer, ListPods, NodeStats, QueryProgress, QueryStats, ReadKubelet};

pub use serve::MAX_CONNECTIONS;

pub use crate::system::Observed;
use crate::{
    serving::Serving,
    system::{AskError, Component, Context, Contract, Port, Ports, Stage, metrics},
};

/// How long Edged may take for an answer: two looks at the machine and the runtime.
const ANSWER_WITHIN: Duration = Duration::from_secs(15);
/// Pause before a port that was taken is tried again.
const AGAIN: Duration = Duration::from_secs(30);
/// Without progress of Edged for this long the node is not healthy: a kubelet's bound for the same.
const PROGRESS_WITHIN: Duration = Duration::from_secs(180);

/// The port that KubeEdge's edgecore serves this on.
pub const PORT: u16 = 10350;

/// How the API is served.
#[derive(Clone, Debug, Default)]
pub struct KubeletApiConfig {
    /// Where it listens; `None`: nowhere, and only the link is answered.
    pub listen: Option<SocketAddr>,
    /// Whose metrics `/metrics` tells.
    pub observed: Observed,
}

/// The component. See the module's page.
pub struct KubeletApi {
    config: KubeletApiConfig,
    asks: Asks,
    serving: Option<Serving>,
}

/// Whom it asks, and whom it observes.
#[derive(Clone)]
struct Asks {
    pods: Port<ListPods>,
    stats: Port<QueryStats>,
    progress: Port<QueryProgress>,
    observed: Observed,
}

impl KubeletApi {
    /// Not listening yet.
    pub fn new(config: KubeletApiConfig, ports: &Ports) -> Self {
        let observed = config.observed.clone();
        let asks = Asks { pods: ports.port(), stats: ports.port(), progress: ports.port(), observed };
        Self { config, asks, serving: None }
    }

    fn listen(&mut self, ctx: &mut Context<Self>, address: SocketAddr) {
        match serve::start(address, self.asks.clone()) {
            Ok((bound, handle)) => {
                tracing::info!(address = %bound, "the node's API is served");
                self.serving = Some(handle);
            }
            Err(error) => {
                tracing::error!(
                    %address,
                    again_in = ?AGAIN,
                    "the node's API is not served: {error}; \
                     modules.edged.tailoredKubeletConfig.readOnlyPort chooses another port, 0 none"
                );
                ctx.run_later(AGAIN, move |this, ctx| this.listen(ctx, address));
            }
        }
    }
}

impl Actor for KubeletApi {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        if let Some(address) = self.config.listen {
            self.listen(ctx, address);
        }
    }
}

impl Component for KubeletApi {
    const NAME: &'static str = "kubeletapi";
    const STAGE: Stage = Stage::Source;

    fn contract(contract: &mut Contract<Self>) {
        contract.answers::<ReadKubelet>();
        contract.asks::<ListPods>();
        contract.asks::<QueryStats>();
        contract.asks::<QueryProgress>();
    }

    fn stop(&mut self, _: &mut Context<Self>) -> ResponseActFuture<Self, ()> {
        let serving = self.serving.take();
        let stop = async move {
            if let Some(serving) = serving {
                serving.stop().await;
            }
        };
        Box::pin(stop.into_actor(self))
    }
}

impl Handler<ReadKubelet> for KubeletApi {
    type Result = ResponseFuture<KubeletAnswer>;

    fn handle(&mut self, message: ReadKubelet, _: &mut Context<Self>) -> Self::Result {
        let asks = self.asks.clone();
        Box::pin(async move {
            let path = message.path_and_query.as_str();
            let (path, query) = path.split_once('?').unwrap_or((path, ""));
            answer(path, query, &asks).await
        })
    }
}

const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";

/// One GET.
async fn answer(path: &str, query: &str, asks: &Asks) -> KubeletAnswer {
    match path {
        "/healthz/ping" => text(200, "ok"),
        "/healthz" | "/healthz/syncloop" => health(asks).await,
        "/pods" | "/pods/" => match asks.pods.ask(ListPods {}, ANSWER_WITHIN).await {
            Ok(pods) if !pods.json.is_empty() => good(JSON, pods.json),
            Ok(_) => text(500, "the pods cannot be listed: see the log"),
            Err(error) => unanswered(&error),
        },
        "/stats/summary" | "/stats/summary/" => match stats(asks).await {
            Ok(stats) => {
                let only_cpu_and_memory = query.split('&').any(|part| part == "only_cpu_and_memory=true");
                good(JSON, summary::summary(&stats, only_cpu_and_memory).to_string().into())
            }
            Err(refusal) => refusal,
        },
        "/metrics/resource" => match stats(asks).await {
            Ok(stats) => good(resource_metrics::CONTENT_TYPE, resource_metrics::page(&stats).into()),
            Err(refusal) => refusal,
        },
        "/metrics" => match asks.observed.get().map(metrics::open_metrics) {
            Some(Ok(page)) => good(metrics::CONTENT_TYPE, page.into()),
            Some(Err(error)) => text(500, &format!("the metrics cannot be written: {error}")),
            None => text(503, "the program is starting"),
        },
        _ => text(404, "404 page not found\n"),
    }
}

async fn stats(asks: &Asks) -> Result<NodeStats, KubeletAnswer> {
    let stats = asks.stats.ask(QueryStats {}, ANSWER_WITHIN).await.map_err(|error| unanswered(&error))?;
    // Without the node's own part there is nothing to tell.
    if stats.usage.is_none() { Err(text(500, &stats.fault)) } else { Ok(stats) }
}

async fn health(asks: &Asks) -> KubeletAnswer {
    match asks.progress.ask(QueryProgress {}, ANSWER_WITHIN).await {
        Ok(progress) if Duration::from_millis(progress.age_ms) <= PROGRESS_WITHIN => text(200, "ok"),
        Ok(progress) => {
            let age = Duration::from_millis(progress.age_ms);
            text(500, &format!("[-]syncloop failed: the container runtime has not answered for {age:?}"))
        }
        Err(error) => unanswered(&error),
    }
}

fn unanswered(error: &AskError) -> KubeletAnswer {
    text(503, &format!("Edged: {error}"))
}

fn text(code: u32, text: &str) -> KubeletAnswer {
    KubeletAnswer { code, content_type: TEXT.to_owned(), body: text.to_owned().into() }
}

fn good(content_type: &str, body: bytes::Bytes) -> KubeletAnswer {
    KubeletAnswer { code: 200, content_type: content_type.to_owned(), body }
}

#[cfg(test)]
mod tests;
