//! What Edged hears: of objects, of the link, and who wants to know how it goes.

use actix::{Handler, MessageResult};
use k8s_openapi::api::core::v1::Pod;
use kubeedge_proto::{
    resource,
    v1::{KindCompleted, LinkStateChanged, ObjectKey, ObjectsChanged, ObjectsReloaded, Progress, QueryProgress},
};

use super::{Edged, REASSERT_AFTER, loading::is_deleted, references};
use crate::system::Context;

impl Handler<ObjectsChanged> for Edged {
    type Result = ();

    fn handle(&mut self, message: ObjectsChanged, ctx: &mut Context<Self>) {
        let (Some(type_), Some(key)) = (message.r#type, message.key) else { return };
        if type_ == resource::pods() {
            let effects = match &message.object {
                Some(object) => match self.understand(ctx, object) {
                    Some((pod, plan)) => {
                        let (pod, plan) = self.sized(ctx, pod, plan);
                        self.book.upsert(pod, plan)
                    }
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
            self.apply(ctx, effects);
            return;
        }
        let ObjectKey { namespace, name } = key;
        let in_namespace = |pod: &Pod| pod.metadata.namespace.as_deref() == Some(namespace.as_str());
        if type_ == resource::config_maps() {
            self.refresh_where(|pod| in_namespace(pod) && references::names_config_map(pod, &name));
        } else if type_ == resource::secrets() {
            self.refresh_where(|pod| in_namespace(pod) && references::names_secret(pod, &name));
        } else if type_ == resource::persistent_volume_claims() {
            self.refresh_where(|pod| in_namespace(pod) && references::names_claim(pod, &name));
        } else if type_ == resource::persistent_volumes() {
            self.refresh_where(references::has_claim);
        } else if type_ == resource::runtime_classes() {
            self.refresh_where(|pod| references::names_runtime_class(pod, &name));
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
        } else if [
            resource::config_maps(),
            resource::secrets(),
            resource::persistent_volume_claims(),
            resource::persistent_volumes(),
            resource::runtime_classes(),
        ]
        .contains(&type_)
        {
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
