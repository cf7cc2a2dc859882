//! The connection for streams: opened when the cloud asks for it, closed with the link.

use std::{cell::Cell, rc::Rc};

use kubeedge_proto::v1::StreamHead;
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use super::EdgeHubConfig;
use crate::{
    link::{
        client,
        streams::{Connection, Request, ServeStream, Side, connection::REQUESTS},
    },
    system::Port,
};

/// Opens it, one at a time.
pub(super) struct Opener {
    config: EdgeHubConfig,
    serve: Option<Port<ServeStream>>,
    running: Option<AbortOnDropHandle<()>>,
    /// It is being opened: another wish of the cloud is about the same one.
    opening: Rc<Cell<bool>>,
}

impl Opener {
    pub(super) fn new(config: EdgeHubConfig, serve: Option<Port<ServeStream>>) -> Self {
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

async fn run(config: EdgeHubConfig, serve: Option<Port<ServeStream>>, opening: Rc<Cell<bool>>) {
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
            match &serve {
                Some(port) => {
                    if let Err(error) = port.tell(ServeStream { request }).await {
                        tracing::debug!("EdgeStream is stopping: {error}");
                    }
                }
                None => refuse(request),
            }
        }
    };
    let running = connection.run(transport.outgoing.clone(), &mut transport.incoming, Some(requests));
    let (why, ()) = tokio::join!(running, hand_over);
    tracing::debug!("the stream connection ended: {why}");
}

/// Without EdgeStream.
fn refuse(Request { mut stream, .. }: Request) {
    stream.respond(StreamHead { status: 501, ..StreamHead::default() });
    stream.finish();
}
