//! The nodes' stream connections: asked for when a stream is wanted, kept until they end.

use std::{collections::HashMap, time::Duration};

use actix::{Handler, Message, ResponseFuture};
use kubeedge_proto::NodeName;
use tokio::{sync::oneshot, time::Instant};

use super::CloudHub;
use crate::{
    audit,
    link::{
        session::Input,
        streams::{ConnectStreams, Connection, NotConnected, OPEN_STREAMS},
    },
    system::Context,
};

/// How long a node may take to open its stream connection: TCP and TLS over a slow line, three round trips.
const OPEN_WITHIN: Duration = Duration::from_secs(10);

/// What the hub knows of them.
#[derive(Default)]
pub(super) struct Streams {
    open: HashMap<NodeName, Connection>,
    waiting: HashMap<NodeName, Waiting>,
}

/// Who waits for a node, at most [`OPEN_STREAMS`].
struct Waiting {
    asked: Instant,
    askers: Vec<oneshot::Sender<Connection>>,
}

impl Streams {
    /// The node's session has ended: its streams end too, and who waits for one need not go on.
    pub(super) fn end(&mut self, node: &NodeName) {
        if let Some(connection) = self.open.remove(node) {
            connection.close("the node is not connected any more");
        }
        self.waiting.remove(node);
    }

    /// Puts an asker into the line; says whether the node has to be asked.
    fn wait(&mut self, node: &NodeName, asker: oneshot::Sender<Connection>) -> Result<bool, NotConnected> {
        let waiting = self.waiting.entry(node.clone()).or_insert(Waiting { asked: Instant::now(), askers: Vec::new() });
        waiting.askers.retain(|asker| !asker.is_closed());
        if waiting.askers.len() >= OPEN_STREAMS {
            return Err(NotConnected::Busy(node.clone()));
        }
        let ask = waiting.askers.is_empty() || waiting.asked.elapsed() >= OPEN_WITHIN;
        if ask {
            waiting.asked = Instant::now();
        }
        waiting.askers.push(asker);
        Ok(ask)
    }
}

impl Handler<ConnectStreams> for CloudHub {
    type Result = ResponseFuture<Result<Connection, NotConnected>>;

    fn handle(&mut self, ConnectStreams { node }: ConnectStreams, _: &mut Context<Self>) -> Self::Result {
        let ready = |answer| -> Self::Result { Box::pin(std::future::ready(answer)) };
        if let Some(connection) = self.streams.open.get(&node).filter(|connection| !connection.is_closed()) {
            return ready(Ok(connection.clone()));
        }
        let Some(live) = self.sessions.get(&node) else { return ready(Err(NotConnected::Offline(node))) };
        let (asker, answer) = oneshot::channel();
        match self.streams.wait(&node, asker) {
            Ok(false) => {}
            Ok(true) => {
                if let Err(error) = live.inputs.try_send(Input::OpenStreams) {
                    tracing::debug!(%node, "the node is not asked for streams: {error}");
                    return ready(Err(NotConnected::Offline(node)));
                }
            }
            Err(busy) => return ready(Err(busy)),
        }
        Box::pin(async move {
            match tokio::time::timeout(OPEN_WITHIN, answer).await {
                Ok(Ok(connection)) => Ok(connection),
                // Its session has ended meanwhile.
                Ok(Err(_)) => Err(NotConnected::Offline(node)),
                Err(_) => Err(NotConnected::Late(node)),
            }
        })
    }
}

/// A node has opened its stream connection. Answered with whether it is wanted.
pub(super) struct StreamsConnected {
    pub(super) node: NodeName,
    pub(super) connection: Connection,
}

impl Message for StreamsConnected {
    type Result = bool;
}

impl Handler<StreamsConnected> for CloudHub {
    type Result = bool;

    fn handle(&mut self, message: StreamsConnected, _: &mut Context<Self>) -> bool {
        let StreamsConnected { node, connection } = message;
        if !self.sessions.contains_key(&node) {
            audit::refused("streams", &node, "connection", "the node has no session");
            return false;
        }
        let waiting = self.streams.waiting.remove(&node);
        for asker in waiting.into_iter().flat_map(|waiting| waiting.askers) {
            // Who gave up meanwhile needs none.
            let _ = asker.send(connection.clone());
        }
        if let Some(old) = self.streams.open.insert(node, connection) {
            old.close("a newer stream connection of the node has taken over");
        }
        true
    }
}
