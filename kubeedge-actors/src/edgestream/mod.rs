//! EdgeStream: the edge's end of the streams that the cloud opens.
//!
//! | | |
//! |---|---|
//! | answers | `ServeStream` (EdgeHub) |
//! | asks | `LocateContainerLog` (Edged); `ReadKubelet` where there is a KubeletApi |
//! | stores | nothing |
//! | offline | nothing to do: streams end with the link |
//!
//! It serves what a kubelet serves: `GET /containerLogs/<namespace>/<pod>/<container>`, and through KubeletApi what is
//! about the node as a whole, such as `/stats/summary`. [`options`] reads the query of a log,
//! [`log_lines`] the container runtime's lines, `reader` the file. A log that is followed is looked at four times a
//! second; that costs nothing on the link. As many requests are served at a time as a connection has streams.

pub mod log_lines;
pub mod options;
mod reader;

use std::time::Duration;

use actix::{Actor, Handler};
use bytes::Bytes;
use kubeedge_proto::v1::{LocateContainerLog, ReadKubelet, StreamHead, StreamOpen};
use tokio::task::JoinSet;

use self::options::LogRequest;
use crate::{
    link::streams::{Request, ServeStream, Stream, StreamError, connection::REQUESTS},
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
    locate: Port<LocateContainerLog>,
    kubelet: Option<Port<ReadKubelet>>,
}

impl EdgeStream {
    /// Ready to serve.
    pub fn new(ports: &Ports) -> Self {
        let asks = Asks { locate: ports.port(), kubelet: ports.optional() };
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
            let path = request.open.path_and_query.clone();
            if let Err(error) = serve(request, asks).await {
                tracing::info!(path, "a stream was given up: {error}");
            }
        });
    }
}

async fn serve(Request { open, mut stream }: Request, asks: Asks) -> Result<(), StreamError> {
    let of_a_container = open.path_and_query.starts_with("/containerLogs/");
    match asks.kubelet {
        Some(kubelet) if !of_a_container => node(&open, &kubelet, &mut stream).await?,
        _ => match LogRequest::parse(&open) {
            Ok(request) => reader::send_log(request, asks.locate, &mut stream).await?,
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
