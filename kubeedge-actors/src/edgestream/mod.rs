//! EdgeStream: the edge's end of the streams that the cloud opens.
//!
//! | | |
//! |---|---|
//! | answers | `ServeStream` (EdgeHub) |
//! | asks | `LocateContainerLog` (Edged) |
//! | stores | nothing |
//! | offline | nothing to do: streams end with the link |
//!
//! It serves what a kubelet serves: `GET /containerLogs/<namespace>/<pod>/<container>`. [`options`] reads the query,
//! [`log_lines`] the container runtime's lines, `reader` the file. A log that is followed is looked at four times a
//! second; that costs nothing on the link. As many requests are served at a time as a connection has streams.

pub mod log_lines;
pub mod options;
mod reader;

use actix::{Actor, Handler};
use bytes::Bytes;
use kubeedge_proto::v1::{LocateContainerLog, StreamHead};
use tokio::task::JoinSet;

use self::options::LogRequest;
use crate::{
    link::streams::{Request, ServeStream, Stream, StreamError, connection::REQUESTS},
    system::{Component, Context, Contract, Port, Ports, Stage},
};

/// The component. See the module's page.
pub struct EdgeStream {
    locate: Port<LocateContainerLog>,
    /// Dropped with this value, which gives their streams up.
    serving: JoinSet<()>,
}

impl EdgeStream {
    /// Ready to serve.
    pub fn new(ports: &Ports) -> Self {
        Self { locate: ports.port(), serving: JoinSet::new() }
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
        let locate = self.locate.clone();
        self.serving.spawn_local(async move {
            let path = request.open.path_and_query.clone();
            if let Err(error) = serve(request, locate).await {
                tracing::info!(path, "a stream was given up: {error}");
            }
        });
    }
}

async fn serve(Request { open, mut stream }: Request, locate: Port<LocateContainerLog>) -> Result<(), StreamError> {
    match LogRequest::parse(&open) {
        Ok(request) => reader::send_log(request, locate, &mut stream).await?,
        Err(refusal) => refuse(&mut stream, refusal.code, refusal.message).await?,
    }
    stream.finish();
    Ok(())
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
