//! What the runtime has, looked at again and again: changes go to the workers, what nobody wants is ended.

use std::{collections::HashSet, sync::Arc, time::Duration};

use actix::{ActorFutureExt, AsyncContext, WrapFuture};
use tokio::{sync::watch, time::Instant};
use tokio_util::task::AbortOnDropHandle;

use super::{
    Edged,
    relist::{self, Pace},
    runtime::{PodSummary, RuntimeError},
    runtime_events::{self, Heard},
};
use crate::system::{Context, Heartbeat};

/// Pause before what pods of earlier lives left is looked for: what the runtime was doing for an edgecore that was
/// killed, such as taking a half-made sandbox back, is over by then.
const SWEEP_AFTER: Duration = Duration::from_secs(5);

/// The loop that lists, from one list to the next.
struct Lists {
    pace: Pace,
    heard: watch::Receiver<Heard>,
    heartbeat: Heartbeat,
}

impl Edged {
    /// Listens to the runtime's events and lists what it has, from now on.
    pub(super) fn begin_to_list(&mut self, ctx: &mut Context<Self>) {
        let (sender, heard) = watch::channel(Heard::default());
        let listen = runtime_events::listen(Arc::clone(&self.shared.runtime), sender);
        self.listening = Some(AbortOnDropHandle::new(tokio::spawn(listen)));
        let heartbeat = ctx.heartbeat("the list of what runs", relist::WITHIN);
        self.keep_listing(ctx, Lists { pace: Pace::new(Instant::now()), heard, heartbeat });
    }

    /// Lists what the runtime has, when it is due, and so on.
    fn keep_listing(&self, ctx: &mut Context<Self>, mut lists: Lists) {
        lists.heartbeat.beat();
        let runtime = Arc::clone(&self.shared.runtime);
        ctx.spawn(
            async move {
                lists.pace.wait(&mut lists.heard).await;
                (runtime.list_pods().await, lists)
            }
            .into_actor(self)
            .map(|(list, mut lists), this, ctx| {
                lists.pace.listed(this.listed(ctx, list), Instant::now());
                this.keep_listing(ctx, lists);
            }),
        );
    }

    /// Takes in a list and answers whether it showed something new.
    fn listed(&mut self, ctx: &mut Context<Self>, list: Result<Vec<PodSummary>, RuntimeError>) -> Option<bool> {
        let list = match list {
            Ok(list) => list,
            Err(error) => {
                tracing::warn!("what runs is not known: {error}");
                return None;
            }
        };
        self.progress.made();
        let changed = self.relist.take(list);
        for uid in &changed {
            if let Some(worker) = self.workers.get(uid) {
                worker.bell.look();
            }
        }
        if !changed.is_empty() {
            self.absent_ones(ctx);
        }
        Some(!changed.is_empty())
    }

    /// Ends pods that nobody wants, when that is known.
    pub(super) fn absent_ones(&mut self, ctx: &mut Context<Self>) {
        // What the folder has is wanted, too.
        if !self.static_pods.ready {
            return;
        }
        let effects = self.book.seen(self.relist.pods());
        self.apply(ctx, effects);
        if self.book.may_end_for_absence() && !self.swept {
            self.swept = true;
            ctx.run_later(SWEEP_AFTER, |this, ctx| this.sweep(ctx));
        }
    }

    /// Removes what is left of pods that ended while edgecore was down: neither wanted nor in the runtime.
    fn sweep(&self, ctx: &mut Context<Self>) {
        let volumes = self.provision.volumes().clone();
        let runtime = Arc::clone(&self.shared.runtime);
        let look = async move {
            // What is on disk first: a pod that is made meanwhile is not among it.
            let found = volumes.orphans(&HashSet::new()).await.map_err(|error| error.to_string())?;
            let pods = runtime.list_pods().await.map_err(|error| error.to_string())?;
            Ok((found, pods))
        };
        let swept = look.into_actor(self).then(|looked: Result<(Vec<String>, Vec<PodSummary>), String>, this, _| {
            let provision = Arc::clone(&this.provision);
            let looked = looked.map(|(mut found, pods)| {
                let mut known: HashSet<&str> = this.book.uids().collect();
                known.extend(pods.iter().map(|pod| pod.uid.as_str()));
                found.retain(|uid| !known.contains(uid.as_str()));
                this.devices.retain(|uid| known.contains(uid));
                this.failures.retain(|uid| known.contains(uid));
                found
            });
            let remove = async move {
                for uid in looked? {
                    provision.remove_orphan(&uid).await?;
                    tracing::info!(uid, "what a pod had left is removed");
                }
                Ok::<(), String>(())
            };
            remove.into_actor(this)
        });
        ctx.spawn(swept.map(|swept, _, ctx| {
            if let Err(error) = swept {
                tracing::warn!("what pods had left is not removed, and is tried again: {error}");
                ctx.run_later(SWEEP_AFTER, |this, ctx| this.sweep(ctx));
            }
        }));
    }
}
