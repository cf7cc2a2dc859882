//! What Edged hears: of objects, of the link, and who wants to know how it goes.

use actix::{Handler, MessageResult};
use k8s_openapi::api::core::v1::Pod;
use kubeedge_proto::{
    resource,
    v1::{KindCompleted, LinkStateChanged, ObjectKey, ObjectsChanged, ObjectsReloaded, Progress, QueryProgress},
};

use super::{
    Edged, REASSERT_AFTER, admission,
    book::Effect,
    events::{EventRecord, Involved, Reason, rejection},
    is_deleted,
    lifecycle::{PodFailure, Want},
    quantity::Quantity,
    references,
    worker::Reporter as _,
};
use crate::system::Context;

impl Edged {
    /// Takes up a pod that the cloud has just told of, if there is room for it.
    fn admit(&mut self, ctx: &mut Context<Self>, effects: &[Effect]) {
        for effect in effects {
            let Effect::Start { uid, order } = effect else { continue };
            let Some(pod) = order.pod.as_ref().filter(|_| order.want == Want::Run) else { continue };
            if self.failures.contains(uid) || self.relist.pods().any(|known| known.uid == *uid) {
                continue;
            }
            let pressure = *self.pressure.borrow();
            if *self.going_down.borrow() {
                let message = "Pod was rejected as the node is shutting down.".to_owned();
                let reason = "NodeShutdown".to_owned();
                let failure = PodFailure { reason, message, ..PodFailure::default() };
                self.fail(ctx, uid, failure);
                continue;
            }
            let mut room = self.prepared.room.clone();
            for (name, _, healthy) in self.devices.amounts() {
                room.insert(name, Quantity::units(i64::try_from(healthy).unwrap_or(i64::MAX)));
            }
            let admitted = {
                let over = |uid: &str| {
                    let status = self.board.of(uid);
                    status.is_some_and(|status| matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")))
                };
                let others = self
                    .book
                    .pods()
                    .filter(|(other, _)| other != uid && !self.failures.contains(other) && !over(other))
                    .map(|(_, pod)| pod);
                admission::admit(pod, others, &room, pressure)
            };
            if let Err(failure) = admitted {
                let PodFailure { reason, message, .. } = &failure;
                tracing::warn!(pod = %format!("{}/{}", order.plan.namespace, order.plan.name), reason, "{message}");
                let involved = Involved::of(&order.plan, Some(pod), None);
                let told = Reason::Rejected(rejection(reason));
                self.reporter.event(EventRecord::new(involved, told, message.clone(), (self.shared.clock)()));
                self.fail(ctx, uid, failure);
            }
        }
    }
}

impl Handler<ObjectsChanged> for Edged {
    type Result = ();

    fn handle(&mut self, message: ObjectsChanged, ctx: &mut Context<Self>) {
        let (Some(type_), Some(key)) = (message.r#type, message.key) else { return };
        if type_ == resource::pods() {
            let effects = match &message.object {
                Some(object) => match self.understand(ctx, object) {
                    Some((pod, plan)) => self.book.upsert(pod, plan),
                    None if is_deleted(object) => self.book.delete(&object.uid),
                    None => Vec::new(),
                },
                None => {
                    let key = (key.namespace, key.name);
                    self.mirrors.gone(&key, &message.uid);
                    self.sync_mirrors(ctx);
                    self.book.gone(&key, &message.uid)
                }
            };
            self.admit(ctx, &effects);
            self.apply(ctx, effects);
            return;
        }
        let ObjectKey { namespace, name } = key;
        let in_namespace = |pod: &Pod| pod.metadata.namespace.as_deref() == Some(namespace.as_str());
        if type_ == resource::config_maps() {
            self.refresh_where(|pod| in_namespace(pod) && references::names_config_map(pod, &name));
        } else if type_ == resource::secrets() {
            self.refresh_where(|pod| in_namespace(pod) && references::names_secret(pod, &name));
        }
    }
}

impl Handler<ObjectsReloaded> for Edged {
    type Result = ();

    fn handle(&mut self, _: ObjectsReloaded, ctx: &mut Context<Self>) {
        self.reload(ctx);
        self.refresh_where(|_| true);
    }
}

impl Handler<KindCompleted> for Edged {
    type Result = ();

    fn handle(&mut self, message: KindCompleted, ctx: &mut Context<Self>) {
        let Some(type_) = message.r#type else { return };
        if type_ == resource::pods() {
            if self.book.completed() {
                self.reload(ctx);
            }
            self.absent_ones(ctx);
            self.sync_mirrors(ctx);
        } else if type_ == resource::config_maps() || type_ == resource::secrets() {
            // What is absent is now known to be: optional references can do without.
            self.refresh_where(|_| true);
        }
    }
}

impl Handler<LinkStateChanged> for Edged {
    type Result = ();

    fn handle(&mut self, message: LinkStateChanged, ctx: &mut Context<Self>) {
        self.connected.send_replace(message.connected);
        self.sync_mirrors(ctx);
        if !message.connected {
            self.down_since.get_or_insert_with(tokio::time::Instant::now);
            return;
        }
        if self.down_since.take().is_some_and(|since| since.elapsed() >= REASSERT_AFTER) {
            for worker in self.workers.values() {
                worker.bell.report();
            }
        }
        // Tokens that could not be had may be had now.
        self.refresh_where(references::has_token);
    }
}

impl Handler<QueryProgress> for Edged {
    type Result = MessageResult<QueryProgress>;

    fn handle(&mut self, _: QueryProgress, _: &mut Context<Self>) -> Self::Result {
        MessageResult(Progress { age_ms: u64::try_from(self.progress.age().as_millis()).unwrap_or(u64::MAX) })
    }
}
