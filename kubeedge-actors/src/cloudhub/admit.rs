//! Who is let in. A hello is answered with the identity of the cluster, which EdgeController tells; it is asked once for
//! all hellos that wait. A question for each of the thousands that come back to a cloud that has just started would hold
//! up what the controller has to tell this hub meanwhile.

use std::time::Duration;

use actix::{ActorFutureExt, AsyncContext, Handler, Message, WrapFuture};
use kubeedge_proto::{
    NodeName,
    v1::{Cluster, Goodbye, GoodbyeReason, Hello, QueryCluster},
};
use tokio::sync::oneshot;

use super::{CloudHub, Live};
use crate::{
    audit,
    link::{
        queues::InputSender,
        registry::{Admission, replaced},
        session::Input,
    },
    system::Context,
};

/// How long the controller may take to say which cluster it is.
const CLUSTER_WITHIN: Duration = Duration::from_secs(5);
/// A node that finds the cloud without its API server comes back after this.
const COME_BACK_MS: u32 = 2_000;

/// A connection said hello.
pub(super) struct Admit {
    pub(super) node: NodeName,
    pub(super) hello: Hello,
    pub(super) inputs: InputSender,
    /// What its session is told; dropped when the hub is rebuilt.
    pub(super) answer: oneshot::Sender<Admitted>,
}

/// The session's epoch, if it was let in, and what it is told.
pub(super) type Admitted = (Option<u64>, Input);

/// Hellos whose answer waits for the cluster's identity: at most one for each connection, which the listener bounds.
#[derive(Default)]
pub(super) struct Hellos(Vec<Admit>);

impl Message for Admit {
    type Result = ();
}

impl Handler<Admit> for CloudHub {
    type Result = ();

    fn handle(&mut self, admit: Admit, ctx: &mut Context<Self>) {
        self.hellos.0.push(admit);
        // The others share the answer to the question of the first.
        if self.hellos.0.len() > 1 {
            return;
        }
        let cluster = self.ports.cluster.clone();
        let asked = async move { cluster.ask(QueryCluster {}, CLUSTER_WITHIN).await };
        ctx.spawn(asked.into_actor(self).map(|cluster, this, _| {
            let cluster = cluster.ok().filter(|cluster| !cluster.uid.is_empty());
            for Admit { node, hello, inputs, answer } in std::mem::take(&mut this.hellos.0) {
                // Its connection ended meanwhile.
                if answer.is_closed() {
                    continue;
                }
                let admitted = match this.admit(&node, &hello, inputs, cluster.as_ref()) {
                    Ok(admitted) => admitted,
                    Err(goodbye) => (None, Input::Close(goodbye)),
                };
                if let Err((Some(epoch), _)) = answer.send(admitted) {
                    this.registry.release(&node, epoch);
                    this.sessions.remove(&node);
                }
            }
        }));
    }
}

impl CloudHub {
    fn admit(
        &mut self,
        node: &NodeName,
        hello: &Hello,
        inputs: InputSender,
        cluster: Option<&Cluster>,
    ) -> Result<Admitted, Goodbye> {
        let cluster = cluster.ok_or_else(|| Goodbye {
            reason: GoodbyeReason::Busy.into(),
            message: "the cloud does not reach its API server yet".into(),
            retry_after_ms: COME_BACK_MS,
        })?;
        let refused = |goodbye: Goodbye| {
            audit::refused("session", node, "hello", &goodbye.message);
            goodbye
        };
        if let Some(goodbye) = self.revoked(node) {
            return Err(refused(goodbye));
        }
        match self.registry.admit(node, hello) {
            Admission::Refused(goodbye) => Err(refused(goodbye)),
            Admission::Admitted { epoch, replaces } => {
                if let Some(old) = self.sessions.remove(node) {
                    tracing::info!(%node, old = old.epoch, new = epoch, ?replaces, "a newer connection takes over");
                    Self::end(old, replaced());
                }
                // From here on the node gets what is sent to it; what came before is in the answer to the question for
                // its desired state, which the session asks next.
                self.sessions.insert(node.clone(), Live { epoch, inputs });
                let input = Input::Admit {
                    epoch,
                    cluster_uid: cluster.uid.clone(),
                    resource_version: cluster.resource_version,
                };
                Ok((Some(epoch), input))
            }
        }
    }
}
