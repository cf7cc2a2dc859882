//! Edged asks whether there is room before it takes up a pod that is new to the node.

use std::collections::HashSet;

use k8s_openapi::api::core::v1::Pod;

use super::{Refusal, Room, admit, admit_sysctls};
use crate::{
    edged::{
        Edged,
        book::Effect,
        events::{EventRecord, Involved, Reason},
        lifecycle::{PodFailure, Want},
        quantity::Quantity,
        worker::Reporter as _,
    },
    system::Context,
};

/// The reason of a pod that comes while the machine goes down.
const SHUTDOWN: &str = "NodeShutdown";

impl Edged {
    /// Whether this node has taken up the pod already, in this life of edgecore or an earlier one.
    pub(in crate::edged) fn was_taken_up(&self, uid: &str) -> bool {
        self.taken_up.contains(uid) || self.relist.pods().any(|known| known.uid == uid)
    }

    /// Judges the pods among these effects that are new to the node, one after the other: one that there is no room for
    /// fails. Those of an earlier life ran here together, and static pods are the machine's own; neither is judged.
    pub(in crate::edged) fn admit(&mut self, ctx: &mut Context<Self>, effects: &[Effect]) {
        let begin = effects.iter().filter_map(|effect| match effect {
            Effect::Start { uid, order } if order.want == Want::Run => Some((uid, order, order.pod.as_ref()?)),
            _ => None,
        });
        let is_new =
            |uid: &str| !self.failures.contains(uid) && !self.mirrors.is_static(uid) && !self.was_taken_up(uid);
        let new: Vec<_> = begin.filter(|(uid, ..)| is_new(uid)).collect();
        // A pod has no claim on the node before its turn.
        let mut waiting: HashSet<&str> = new.iter().map(|(uid, ..)| uid.as_str()).collect();
        for (uid, order, pod) in new {
            waiting.remove(uid.as_str());
            let Err(refusal) = self.room_for(uid, pod, &waiting) else { continue };
            let Refusal { reason, message } = &refusal;
            tracing::warn!(pod = %format!("{}/{}", order.plan.namespace, order.plan.name), reason, "{message}");
            let involved = Involved::of(&order.plan, Some(pod), None);
            let told = Reason::rejected(reason);
            self.reporter.event(EventRecord::new(involved, told, message.clone(), (self.shared.clock)()));
            let failure = match reason.as_str() {
                // It says so itself.
                SHUTDOWN => PodFailure { reason: reason.clone(), message: message.clone(), ..PodFailure::default() },
                _ => refusal.failure(),
            };
            self.fail(ctx, uid, failure);
        }
    }

    fn room_for(&self, uid: &str, pod: &Pod, waiting: &HashSet<&str>) -> Result<(), Refusal> {
        if *self.going_down.borrow() {
            return Err(Refusal::new(SHUTDOWN, "Pod was rejected as the node is shutting down."));
        }
        admit_sysctls(pod, &self.prepared.setup.allowed_sysctls)?;
        // For the cluster, which sent this one, what is gone has nothing any more: it ends meanwhile.
        let counts = |other: &str| other != uid && !waiting.contains(other) && !self.book.is_gone(other);
        let others: Vec<&Pod> = self.active_pods().filter(|(other, _)| counts(other)).map(|(_, pod)| pod).collect();
        admit(pod, &others, &self.room(), *self.pressure.borrow())
    }

    /// What the node has for pods.
    pub(in crate::edged) fn room(&self) -> Room {
        let mut room = self.prepared.room.clone();
        for (name, _, healthy) in self.devices.amounts() {
            room.insert(name, Quantity::units(i64::try_from(healthy).unwrap_or(i64::MAX)));
        }
        room
    }

    /// The pods that have a part of it: those that are not over.
    pub(in crate::edged) fn active_pods(&self) -> impl Iterator<Item = (&str, &Pod)> {
        let over = |uid: &str| {
            let status = self.board.of(uid);
            status.is_some_and(|status| matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")))
        };
        self.book.pods().filter(move |(uid, _)| !self.failures.contains(uid) && !over(uid))
    }
}
