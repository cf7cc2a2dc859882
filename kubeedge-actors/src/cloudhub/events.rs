//! Events for nodes: handed to the node's session, answered with what the node has settled.
//!
//! Nothing of an event is stored here. Who sends it waits, and knows afterwards that the node has it, that it does not,
//! or that neither is known: then it sends the same envelope again, and the node recognises its id.

use std::{collections::HashMap, time::Duration};

use actix::{ActorFutureExt, Handler, Message, ResponseActFuture, WrapFuture};
use bytes::Bytes;
use kubeedge_proto::{
    NodeName,
    v1::{SendEventToNode, Settled, TrafficClass},
};
use tokio::sync::{mpsc::error::TrySendError, oneshot};

use super::CloudHub;
use crate::{link::session::Input, system::Context};

/// Events of all nodes that wait for their node at a time.
const MAX_WAITING: usize = 4096;
/// How long a node has when the sender names no time, and at most.
const DEFAULT_WITHIN: Duration = Duration::from_secs(10);
const LONGEST: Duration = Duration::from_secs(300);

struct Waiter {
    epoch: u64,
    sender: oneshot::Sender<Settled>,
}

/// Who waits for which node's word on which event.
#[derive(Default)]
pub(super) struct Waiting(HashMap<(NodeName, Bytes), Waiter>);

impl Waiting {
    /// The session of this epoch is over: nobody hears of what it had under way.
    pub(super) fn session_over(&mut self, node: &NodeName, epoch: u64) {
        // Dropping a waiter's sender answers it.
        self.0.retain(|(waiting, _), waiter| waiting != node || waiter.epoch != epoch);
    }
}

impl Handler<SendEventToNode> for CloudHub {
    type Result = ResponseActFuture<Self, Settled>;

    fn handle(&mut self, message: SendEventToNode, _: &mut Context<Self>) -> Self::Result {
        let SendEventToNode { node, envelope, timeout_ms } = message;
        let refuse = |code, why: String| -> Self::Result {
            Box::pin(std::future::ready(Settled::rejected(code, why)).into_actor(self))
        };
        let Ok(name) = node.parse::<NodeName>() else { return refuse(400, format!("{node:?} is no node's name")) };
        let Some(envelope) = envelope.filter(|sent| sent.class() == Some(TrafficClass::Event) && sent.id.len() == 16)
        else {
            return refuse(400, "a SendEventToNode carries an Event with an id of 16 bytes".into());
        };
        let Some(live) = self.sessions.get(&name) else {
            return refuse(503, format!("node {name} has no session"));
        };
        if self.events.0.len() >= MAX_WAITING {
            return refuse(429, format!("{MAX_WAITING} events wait for their nodes already"));
        }
        let key = (name, envelope.id.clone());
        if self.events.0.contains_key(&key) {
            return refuse(409, "the same event is on its way to the node already".into());
        }
        match live.inputs.try_send(Input::Submit(Box::new(envelope))) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => return refuse(429, format!("node {node} cannot keep up")),
            Err(TrySendError::Closed(_)) => return refuse(503, format!("the session of node {node} has ended")),
        }
        let (sender, answer) = oneshot::channel();
        self.events.0.insert(key.clone(), Waiter { epoch: live.epoch, sender });
        let within = match timeout_ms {
            0 => DEFAULT_WITHIN,
            ms => Duration::from_millis(ms.into()).min(LONGEST),
        };
        Box::pin(async move { tokio::time::timeout(within, answer).await }.into_actor(self).map(
            move |answered, this, _| match answered {
                Ok(Ok(settled)) => settled,
                Ok(Err(_)) => Settled::rejected(503, format!("the session of node {node} ended first: it may have it")),
                Err(_) => {
                    this.events.0.remove(&key);
                    Settled::rejected(504, format!("node {node} did not answer within {within:?}: it may have it"))
                }
            },
        ))
    }
}

/// A node, or its session here, is done with an event.
pub(super) struct EventSettled {
    pub(super) node: NodeName,
    pub(super) id: Bytes,
    pub(super) settled: Settled,
}

impl Message for EventSettled {
    type Result = ();
}

impl Handler<EventSettled> for CloudHub {
    type Result = ();

    fn handle(&mut self, EventSettled { node, id, settled }: EventSettled, _: &mut Context<Self>) {
        if let Some(waiter) = self.events.0.remove(&(node, id)) {
            // Who gave up waiting needs no answer.
            let _ = waiter.sender.send(settled);
        }
    }
}
