//! The controllers behind CloudHub, as a script: what they answer, and what they were told.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
};

use actix::{Actor, Handler, MessageResult, ResponseFuture};
use kubeedge_actors::system::{Component, Context, Contract, Overflow, Stage, trace::Trace};
use kubeedge_proto::v1::*;
use tokio::sync::{mpsc, watch};

use super::SOON;

/// What the scripted controller is asked and what it answers.
#[derive(Clone, Default)]
pub(super) struct Script {
    pub(super) desired: Arc<Mutex<HashMap<String, DesiredState>>>,
    pub(super) cluster: Arc<Mutex<String>>,
    /// While it is so, the question for the cluster waits for its answer.
    pub(super) cluster_held: Arc<watch::Sender<bool>>,
    /// So often it was asked.
    pub(super) cluster_asked: Arc<AtomicU32>,
    /// So many messages of nodes are answered with 503 first.
    pub(super) refuse: Arc<Mutex<u32>>,
    pub(super) heard: Arc<Mutex<Vec<mpsc::UnboundedSender<Heard>>>>,
}

#[derive(Clone, Debug)]
#[allow(clippy::large_enum_variant, reason = "a few of them, in a test")]
pub(super) enum Heard {
    Applied(String, envelope::Body),
    Called(Option<Trace>),
    Event(Envelope),
    Session { connected: bool },
}

impl Script {
    pub(super) fn listen(&self) -> mpsc::UnboundedReceiver<Heard> {
        #[allow(clippy::disallowed_methods, reason = "a test's recorder")]
        let (sender, receiver) = mpsc::unbounded_channel();
        self.heard.lock().unwrap().push(sender);
        receiver
    }

    pub(super) fn hear(&self, heard: Heard) {
        self.heard.lock().unwrap().retain(|listener| listener.send(heard.clone()).is_ok());
    }
}

pub(super) struct Controller(pub(super) Script);

impl Actor for Controller {
    type Context = Context<Self>;
}

impl Component for Controller {
    const NAME: &'static str = "edgecontroller";
    const STAGE: Stage = Stage::Processor;

    fn contract(contract: &mut Contract<Self>) {
        contract.answers::<QueryCluster>();
        contract.answers::<QueryDesired>();
        contract.answers::<ApplyFromNode>();
        contract.answers::<CallFromNode>();
        contract.answers::<NodeHeartbeat>();
        contract.listens::<NodeSessionChanged>(Overflow::wait());
    }
}

macro_rules! answers {
    ($($message:ident |$this:ident, $asked:ident| $answer:expr;)*) => {$(
        impl Handler<$message> for Controller {
            type Result = MessageResult<$message>;
            fn handle(&mut self, $asked: $message, _: &mut Context<Self>) -> Self::Result {
                let $this = &self.0;
                MessageResult($answer)
            }
        }
    )*};
}

impl Handler<QueryCluster> for Controller {
    type Result = ResponseFuture<Cluster>;
    fn handle(&mut self, _: QueryCluster, _: &mut Context<Self>) -> Self::Result {
        self.0.cluster_asked.fetch_add(1, Ordering::Relaxed);
        let (cluster, mut held) = (self.0.cluster.clone(), self.0.cluster_held.subscribe());
        Box::pin(async move {
            held.wait_for(|held| !held).await.unwrap();
            Cluster { uid: cluster.lock().unwrap().clone(), resource_version: 100 }
        })
    }
}

answers! {
    QueryDesired |this, asked| this.desired.lock().unwrap().get(&asked.node).cloned().unwrap_or_default();
    ApplyFromNode |this, asked| {
        let envelope = asked.envelope.unwrap();
        this.hear(match envelope.class() {
            Some(TrafficClass::Event) => Heard::Event(envelope),
            _ => Heard::Applied(asked.node, envelope.body.unwrap()),
        });
        let mut refuse = this.refuse.lock().unwrap();
        match refuse.checked_sub(1) {
            Some(left) => {
                *refuse = left;
                Settled::rejected(503, "the API server is away")
            }
            None => Settled::applied(),
        }
    };
    CallFromNode |this, asked| {
        this.hear(Heard::Called(Trace::current()));
        CallReply::error(418, "Teapot", asked.node)
    };
    NodeHeartbeat |_this, _asked| ();
    NodeSessionChanged |this, asked| this.hear(Heard::Session { connected: asked.connected });
}

pub(super) async fn heard(listener: &mut mpsc::UnboundedReceiver<Heard>, wanted: impl Fn(&Heard) -> bool) -> Heard {
    loop {
        let heard = tokio::time::timeout(SOON, listener.recv()).await.expect("heard in time").unwrap();
        if wanted(&heard) {
            return heard;
        }
    }
}

pub(super) fn connected(heard: &Heard) -> bool {
    matches!(heard, Heard::Session { connected: true })
}

pub(super) fn disconnected(heard: &Heard) -> bool {
    matches!(heard, Heard::Session { connected: false })
}
