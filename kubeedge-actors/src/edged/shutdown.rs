//! The machine goes down: pods end in order while there is time, the critical ones last.
//!
//! It is the program that learns of it and asks for it. What a kubelet does beside this with systemd, such as holding the
//! shutdown up, is not done here: the time that the machine gives has to be enough.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use actix::{ActorFutureExt, Handler, ResponseActFuture, WrapFuture};
use kubeedge_proto::v1::ShutDownPods;

use super::{Edged, events::Reason, eviction::rank::is_critical, lifecycle::PodFailure, runtime::Runtime};
use crate::system::Context;

/// Pause between two looks at what still runs.
const LOOK_EVERY: Duration = Duration::from_millis(250);

impl Edged {
    /// Ends all pods that are critical, or all that are not; answers which.
    fn end_for_shutdown(&mut self, ctx: &mut Context<Self>, critical: bool, seconds: u32) -> BTreeSet<String> {
        let ending: Vec<(String, u32)> = self
            .book
            .orders()
            .filter(|(uid, _)| !self.failures.contains(uid))
            .filter_map(|(uid, order)| {
                let pod = order.pod.as_ref().filter(|pod| is_critical(pod) == critical)?;
                let _ = pod;
                Some((uid.to_owned(), order.plan.grace_seconds.min(seconds)))
            })
            .collect();
        for (uid, grace_seconds) in &ending {
            let failure = PodFailure {
                reason: "Terminated".to_owned(),
                message: "Pod was terminated in response to imminent node shutdown.".to_owned(),
                disruption: true,
                grace_seconds: *grace_seconds,
            };
            self.fail(ctx, uid, failure);
        }
        ending.into_iter().map(|(uid, _)| uid).collect()
    }
}

/// Until none of these pods has a container that runs, or the time is over.
async fn ended(runtime: Arc<dyn Runtime>, pods: BTreeSet<String>, within: Duration) {
    let wait = async {
        loop {
            match runtime.list_pods().await {
                Ok(list) => {
                    let alive = |pod: &super::runtime::PodSummary| pod.containers.values().any(|state| state.may_run());
                    if !list.iter().any(|pod| pods.contains(&pod.uid) && alive(pod)) {
                        return;
                    }
                }
                Err(error) => tracing::warn!("what runs is not known: {error}"),
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    };
    if tokio::time::timeout(within, wait).await.is_err() {
        tracing::warn!(?within, "pods that have not ended are not waited for any longer");
    }
}

impl Handler<ShutDownPods> for Edged {
    type Result = ResponseActFuture<Self, ()>;

    fn handle(&mut self, message: ShutDownPods, ctx: &mut Context<Self>) -> Self::Result {
        let critical = message.critical_seconds.min(message.grace_seconds);
        let ordinary = message.grace_seconds - critical;
        tracing::warn!(ordinary, critical, "the machine goes down: pods end");
        self.tell_node(Reason::Shutdown, "Shutdown manager detected shutdown event".to_owned());
        self.going_down.send_replace(true);
        let pods = self.end_for_shutdown(ctx, false, ordinary);
        let runtime = Arc::clone(&self.shared.runtime);
        let first = ended(Arc::clone(&runtime), pods, Duration::from_secs(ordinary.into()));
        Box::pin(first.into_actor(self).then(move |(), this, ctx| {
            let pods = this.end_for_shutdown(ctx, true, critical);
            ended(runtime, pods, Duration::from_secs(critical.into())).into_actor(this)
        }))
    }
}
