//! The connection for streams: opened when the cloud asks for it, closed with the link.

use std::{cell::Cell, rc::Rc};

use kubeedge_proto::v1::StreamHead;
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use super::EdgeHubConfig;
use crate::{
    link::{
        client,
        streams::{Connection, Request, ServeService, ServeStream, Side, connection::REQUESTS},
    },
    system::Port,
};

/// Who takes what the cloud asks for.
#[derive(Clone)]
pub(super) struct Serve {
    /// Of containers and the node.
    pub(super) streams: Option<Port<ServeStream>>,
    /// Of services that rules name.
    pub(super) services: Option<Port<ServeService>>,
}

impl Serve {
    async fn hand_over(&self, request: Request) {
        let (who, told) = match (&self.streams, &self.services) {
            (_, Some(port)) if !request.open.service.is_empty() => {
                ("ServiceBus", port.tell(ServeService { request }).await)
            }
            (Some(port), _) if request.open.service.is_empty() => {
                ("EdgeStream", port.tell(ServeStream { request }).await)
            }
            _ => return refuse(request).await,
        };
        if let Err(error) = told {
            tracing::debug!("{who} is stopping: {error}");
        }
    }
}

/// Opens it, one at a time.
pub(super) struct Opener {
    config: EdgeHubConfig,
    serve: Serve,
    running: Option<AbortOnDropHandle<()>>,
    /// It is being opened: another wish of the cloud is about the same one.
    opening: Rc<Cell<bool>>,
}

impl Opener {
    pub(super) fn new(config: EdgeHubConfig, serve: Serve) -> Self {
        Self { config, serve, running: None, opening: Rc::default() }
    }

    /// The cloud has none and wants one: an older one that seems to stand is dead.
    pub(super) fn open(&mut self) {
        if self.running.as_ref().is_some_and(|task| !task.is_finished()) && self.opening.get() {
            return;
        }
        self.opening.set(true);
        let run = run(self.config.clone(), self.serve.clone(), Rc::clone(&self.opening));
        self.running = Some(AbortOnDropHandle::new(tokio::task::spawn_local(run)));
    }

    pub(super) fn close(&mut self) {
        self.running = None;
    }
}

async fn run(config: EdgeHubConfig, serve: Serve, opening: Rc<Cell<bool>>) {
    let opened = client::open_streams(&config.address, &config.tls).await;
    opening.set(false);
    let mut transport = match opened {
        Ok(transport) => transport,
        // The cloud asks again when somebody asks it again.
        Err(error) => return tracing::warn!("the cloud asked for a stream connection: {error}"),
    };
    let connection = Connection::new(Side::Acceptor);
    let (requests, mut wanted) = mpsc::channel(REQUESTS);
    let hand_over = async {
        while let Some(request) = wanted.recv().await {
            serve.hand_over(request).await;
        }
    };
    let running = connection.run(transport.outgoing.clone(), &mut transport.incoming, Some(requests));
    let (why, ()) = tokio::join!(running, hand_over);
    tracing::debug!("the stream connection ended: {why}");
}

/// Without the component that would serve it.
async fn refuse(Request { open, mut stream }: Request) {
    let missing = if open.service.is_empty() { "EdgeStream" } else { "ServiceBus (modules.serviceBus.enable)" };
    let headers = [("content-type", "text/plain; charset=utf-8"), ("x-kubeedge-answered-by", "edgehub")];
    let headers = headers.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    stream.respond(StreamHead { status: 501, headers });
    // Shorter than what is buffered: it does not wait. An error: nobody wants to know.
    if stream.write(format!("this node runs no {missing}").into()).await.is_ok() {
        stream.finish();
    }
}
