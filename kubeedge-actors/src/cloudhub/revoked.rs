//! Nodes that were revoked while they are connected.

use actix::{Addr, Handler, Message};
use kubeedge_proto::{
    NodeName,
    v1::{Goodbye, GoodbyeReason},
};
use tokio_util::task::AbortOnDropHandle;

use super::CloudHub;
use crate::{audit, identity::Revocations, system::Context};

/// A node that was revoked asks again after this: the handshake refuses it then, before it costs a session.
const COME_BACK_MS: u32 = 600_000;

/// Tells the hub of every change of the list, until the handle is dropped.
pub(super) fn watch(revocations: Revocations, hub: Addr<CloudHub>) -> AbortOnDropHandle<()> {
    let mut changed = revocations.changed();
    AbortOnDropHandle::new(tokio::task::spawn_local(async move {
        // The list lives as long as somebody has it, and this task does.
        let _list = revocations;
        while changed.changed().await.is_ok() && hub.send(RevocationsChanged).await.is_ok() {}
    }))
}

struct RevocationsChanged;

impl Message for RevocationsChanged {
    type Result = ();
}

impl CloudHub {
    /// What a revoked node is told.
    pub(super) fn revoked(&self, node: &NodeName) -> Option<Goodbye> {
        let error = self.config.registrar.as_ref()?.revocations().may_have_one(node).err()?;
        Some(Goodbye {
            reason: GoodbyeReason::Revoked.into(),
            message: error.to_string(),
            retry_after_ms: COME_BACK_MS,
        })
    }
}

impl Handler<RevocationsChanged> for CloudHub {
    type Result = ();

    fn handle(&mut self, _: RevocationsChanged, _: &mut Context<Self>) {
        let revoked: Vec<_> =
            self.sessions.keys().filter_map(|node| Some((node.clone(), self.revoked(node)?))).collect();
        for (node, goodbye) in revoked {
            audit::refused("session", &node, "standing session", &goodbye.message);
            self.streams.end(&node);
            if let Some(live) = self.sessions.remove(&node) {
                Self::end(live, goodbye);
            }
        }
    }
}
