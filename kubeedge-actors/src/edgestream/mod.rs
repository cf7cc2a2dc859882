//! EdgeStream: the edge's end of the streams that the cloud opens.
//!
//! | | |
//! |---|---|
//! | answers | `ServeStream` (EdgeHub) |
//! | asks | `LocateContainerLog`, `OpenContainerStream` (Edged); `ReadKubelet` where there is a KubeletApi |
//! | stores | nothing |
//! | offline | nothing to do: streams end with the link |
//!
//! It serves what a kubelet serves: `GET /containerLogs/<namespace>/<pod>/<container>`, and through KubeletApi what is
//! about the node as a whole, such as `/stats/summary`. [`options`] reads the query of a log,
//! [`log_lines`] the container runtime's lines, `reader` the file. A log that is followed is looked at four times a
//! second; that costs nothing on the link. As many requests are served at a time as a connection has streams.
//!
//! And `/exec/<namespace>/<pod>/<container>`, `/attach/<namespace>/<pod>/<container>`, `/portForward/<namespace>/<pod>`,
//! with an HTTP upgrade: [`upgrades`] reads the request, Edged asks the runtime for a stream, `runtime` dials the
//! runtime's streaming server, which must be on the loopback interface. From there bytes are relayed and not read, a
//! refusal of the runtime included. Bounds: a text of a refusal 16 KiB, an answer 10 s, headers as
//! [`crate::upgrade`] has them; a stream lasts as long as both its ends.

pub mod log_lines;
pub mod options;
mod reader;
mod runtime;
pub mod upgrades;

use std::time::Duration;

use actix::{Actor, Handler};
use bytes::Bytes;
use kubeedge_proto::v1::{LocateContainerLog, OpenContainerStream, ReadKubelet, StreamHead, StreamOpen};
use tokio::task::JoinSet;

use self::options::LogRequest;
use crate::{
    link::streams::{Request, ServeStream, Stream, StreamError, connection::REQUESTS, relay::RelayError},
    system::{Component, Context, Contract, Port, Ports, Stage},
};

/// How long KubeletApi may take for an answer: above its own bound, which has the better words.
const KUBELET_WITHIN: Duration = Duration::from_secs(20);

/// The component. See the module's page.
pub struct EdgeStream {
    asks: Asks,
    /// Dropped with this value, which gives their streams up.
    serving: JoinSet<()>,
}

/// Whom it asks.
#[derive(Clone)]
struct Asks {
    log: Port<LocateContainerLog>,
    stream: Port<OpenContainerStream>,
    kubelet: Option<Port<ReadKubelet>>,
}

impl EdgeStream {
    /// Ready to serve.
    pub fn new(ports: &Ports) -> Self {
        let asks = Asks { log: ports.port(), stream: ports.port(), kubelet: ports.optional() };
        Self { asks, serving: JoinSet::new() }
    }
}

impl Actor for EdgeStream {
    type Context = Context<Self>;
}

impl Component for EdgeStream {
    const NAME: &'static str = "edgestream";
    const STAGE: Stage = Stage::Source;

    fn contract(contract: &mut Contract<Self>) {
        contract.answers::<ServeStream>();
        contract.asks::<LocateContainerLog>();
        contract.asks::<OpenContainerStream>();
        contract.may_ask::<ReadKubelet>();
    }
}

impl Handler<ServeStream> for EdgeStream {
    type Result = ();

    fn handle(&mut self, ServeStream { request }: ServeStream, _: &mut Context<Self>) {
        while self.serving.try_join_next().is_some() {}
        if self.serving.len() >= REQUESTS {
            // Dropped, which tells the cloud.
            tracing::warn!(limit = REQUESTS, "a stream of the cloud is refused: too many are served");
            return;
        }
        let asks = self.asks.clone();
        self.serving.spawn_local(async move {
            let path = path_of(&request.open.path_and_query);
            if let Err(error) = serve(request, asks).await {
                tracing::info!(path, "a stream was given up: {error}");
            }
        });
    }
}

/// Without the query: commands may hold secrets.
fn path_of(path_and_query: &str) -> String {
    path_and_query.split('?').next().unwrap_or_default().to_owned()
}

async fn serve(Request { open, mut stream }: Request, asks: Asks) -> Result<(), RelayError> {
    let of_a_container = open.path_and_query.starts_with("/containerLogs/");
    match (upgrades::parse(&open), asks.kubelet) {
        (Some(Ok(wanted)), _) => runtime::serve(&open, wanted, asks.stream, &mut stream).await?,
        (Some(Err(refusal)), _) => refuse(&mut stream, refusal.code, refusal.message).await?,
        (None, Some(kubelet)) if !of_a_container => node(&open, &kubelet, &mut stream).await?,
        (None, _) => match LogRequest::parse(&open) {
            Ok(request) => reader::send_log(request, asks.log, &mut stream).await?,
            Err(refusal) => refuse(&mut stream, refusal.code, refusal.message).await?,
        },
    }
    stream.finish();
    Ok(())
}

/// What is about the node as a whole.
async fn node(open: &StreamOpen, kubelet: &Port<ReadKubelet>, stream: &mut Stream) -> Result<(), StreamError> {
    if open.method != "GET" {
        return refuse(stream, 405, format!("{} is not allowed: only GET is served", open.method)).await;
    }
    let message = ReadKubelet { path_and_query: open.path_and_query.clone() };
    match kubelet.ask(message, KUBELET_WITHIN).await {
        Ok(answer) => {
            let headers = [("content-type".to_owned(), answer.content_type)].into_iter().collect();
            stream.respond(StreamHead { status: answer.code, headers });
            stream.write(answer.body).await
        }
        Err(error) => refuse(stream, 503, format!("KubeletApi: {error}")).await,
    }
}

/// An answer of plain text.
async fn refuse(stream: &mut Stream, code: u32, message: String) -> Result<(), StreamError> {
    respond(stream, code);
    stream.write(Bytes::from(message)).await
}

fn respond(stream: &mut Stream, status: u32) {
    let headers = [("content-type".to_owned(), "text/plain".to_owned())].into_iter().collect();
    stream.respond(StreamHead { status, headers });
}
