//! Ending containers: hook, turn, signal, all within one grace period (`P-ONE-GRACE`, `P-SIDECARS-LAST`).

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use futures_util::{StreamExt, stream::FuturesUnordered};
use tokio::{sync::watch, time::Instant};

use super::{Order, Shared, Told, Worker, show, steps::other_order, tell};
use crate::edged::{
    hooks::{self, Hook, HookTarget},
    lifecycle::{Action, container},
    runtime::RuntimeError,
};

/// What a container has at least after its hook and its turn took all the time (kubelet's), unless it had less at first.
const LEAST_GRACE: Duration = Duration::from_secs(2);

/// How far the stops of one decision are.
#[derive(Default)]
struct Progress {
    /// Instances whose hook has ended.
    hooked: BTreeSet<String>,
    /// Instances that have ended.
    ended: BTreeSet<String>,
}

/// One stop.
struct Stop {
    shared: Arc<Shared>,
    order: Order,
    id: String,
    container: String,
    grace: Duration,
    hook: Option<Hook>,
    address: String,
    after: Vec<String>,
    progress: Arc<watch::Sender<Progress>>,
}

impl Worker {
    /// Stops containers side by side, each in its turn. Ends early when something else is wanted: a shorter grace
    /// period counts at once.
    pub(super) async fn stop_containers(&mut self, order: &Order, stops: Vec<Action>) -> bool {
        let progress = Arc::new(watch::channel(Progress::default()).0);
        let mut under_way = FuturesUnordered::new();
        for stop in stops {
            let Action::StopContainer { id, container: name, grace_seconds, why, after } = stop else { continue };
            if why.is_replaced() {
                self.history.replaced.insert(id.clone());
            }
            self.tell(order, Some(&name), Told::Killing, why.message(&name));
            let spec = order.pod.as_deref().and_then(|pod| container(pod, &name));
            let stop = Stop {
                shared: Arc::clone(&self.shared),
                order: order.clone(),
                hook: spec.as_deref().and_then(hooks::pre_stop).filter(|_| !self.history.hooked.contains(&id)),
                id,
                container: name,
                grace: Duration::from_secs(grace_seconds.into()),
                address: self.address(order),
                after,
                progress: Arc::clone(&progress),
            };
            under_way.push(stop.run());
        }
        let mut failed = None;
        let all = loop {
            tokio::select! {
                stopped = under_way.next() => match stopped {
                    None => break true,
                    Some(Ok(())) => {}
                    Some(Err(error)) => failed = Some(error.to_string()),
                },
                () = other_order(&self.orders, |new| new.want != order.want) => break false,
            }
        };
        self.history.hooked.extend(progress.borrow().hooked.iter().cloned());
        all && self.cleaned_up(order, failed.map_or(Ok(()), Err))
    }
}

impl Stop {
    async fn run(self) -> Result<(), RuntimeError> {
        let Self { shared, order, id, container, grace, hook, address, after, progress } = self;
        let begun = Instant::now();
        if let Some(hook) = hook.filter(|_| !grace.is_zero()) {
            let target = HookTarget { runtime: &*shared.runtime, id: &id, container: &container, address: &address };
            match tokio::time::timeout(grace, hooks::run(&hook, target)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    tracing::warn!(pod = %show(&order.plan), container, "{error}");
                    tell(&shared, &order, Some(&container), Told::FailedPreStopHook, "PreStopHook failed".to_owned());
                }
                Err(_) => {
                    tracing::warn!(pod = %show(&order.plan), container, "its preStop hook has not ended within {grace:?}");
                }
            }
            progress.send_modify(|progress| {
                progress.hooked.insert(id.clone());
            });
        }
        if !after.is_empty() {
            let mut ended = progress.subscribe();
            let turn = ended.wait_for(|progress| after.iter().all(|id| progress.ended.contains(id)));
            // When its time is over it is its turn as well.
            let _over = tokio::time::timeout(grace.saturating_sub(begun.elapsed()), turn).await;
        }
        // In whole seconds, to the container's favour.
        let spent = Duration::from_secs(begun.elapsed().as_secs());
        let left = grace.saturating_sub(spent).max(LEAST_GRACE.min(grace));
        tracing::info!(container = id, grace = ?left, "stopping");
        shared.runtime.stop_container(&id, left).await?;
        progress.send_modify(|progress| {
            progress.ended.insert(id);
        });
        Ok(())
    }
}
