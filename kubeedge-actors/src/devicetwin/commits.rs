//! Changes on their way to the disk, and what is said when they are there.
//!
//! One commit is under way at a time; what changes meanwhile shares the next, each device once. So a burst costs a sync of
//! the disk a batch, and what is answered is on disk. What is said of one batch is published while the next is on its way to
//! the disk, in order; when [`PUBLISHING`] batches wait to be published, the disk waits.

use std::{collections::BTreeSet, rc::Rc, time::Duration};

use actix::{ActorFutureExt, AsyncContext, WrapFuture};
use kubeedge_proto::v1::PublishMqtt;
use tokio::sync::{Notify, mpsc, oneshot};

use super::{DeviceTwin, dmi::server::Refused, mappers::Id, requests::Publication};
use crate::system::{AskError, Context, Port};

/// What did not get to the disk is tried again after this, unless something new takes it along before.
const AGAIN: Duration = Duration::from_secs(1);
/// Requests that wait for a commit at most.
pub const MAX_PENDING: usize = 512;

/// What a broker has not confirmed by then does not hold up the rest: mappers' reports wait for the same disk.
const CONFIRMED_WITHIN: Duration = Duration::from_secs(2);

/// Batches that are on disk and wait to be published.
const PUBLISHING: usize = 2;

/// An answer to a mapper, when what it reported is on disk.
pub(super) type Reply = oneshot::Sender<Result<(), Refused>>;

enum After {
    Publish(Vec<Publication>, Option<Publication>),
    Reply(Reply),
}

/// What waits for the next commit.
#[derive(Default)]
pub(super) struct Commits {
    dirty: BTreeSet<Id>,
    after: Vec<After>,
    committing: bool,
    /// Devices in the commit under way.
    under_way: BTreeSet<Id>,
    /// A timer runs for what did not get to the disk.
    trying_again: bool,
    /// The commit under way is done.
    done: Rc<Notify>,
}

impl Commits {
    /// Whether a device is on disk as it is now.
    pub(super) fn is_on_disk(&self, id: &str) -> bool {
        !self.dirty.contains(id) && !self.under_way.contains(id)
    }

    /// A device's record is to be written as it is then; taken off when there is no such device.
    pub(super) fn put(&mut self, id: &str) {
        if !self.dirty.contains(id) {
            self.dirty.insert(id.to_owned());
        }
    }

    /// To be published when everything up to now is on disk; `instead`, when it does not get there.
    pub(super) fn publish(&mut self, all: impl IntoIterator<Item = Publication>, instead: Option<Publication>) {
        let all: Vec<Publication> = all.into_iter().collect();
        if !all.is_empty() {
            self.after.push(After::Publish(all, instead));
        }
    }

    /// To be answered then.
    pub(super) fn reply(&mut self, reply: Reply) {
        self.after.push(After::Reply(reply));
    }
}

/// Publishes one batch after the other, each when a broker has the one before: what EventBus takes is bounded, and what is
/// beyond it would be lost. It ends when its sender is gone and what was on disk by then is said.
pub(super) fn publisher(port: Port<PublishMqtt>) -> mpsc::Sender<Vec<Publication>> {
    let (sender, mut batches) = mpsc::channel::<Vec<Publication>>(PUBLISHING);
    tokio::task::spawn_local(async move {
        while let Some(batch) = batches.recv().await {
            if publish(&port, batch).await.is_err() {
                tracing::debug!("EventBus is stopping");
                return;
            }
        }
    });
    sender
}

async fn publish(port: &Port<PublishMqtt>, batch: Vec<Publication>) -> Result<(), AskError> {
    let message =
        |Publication { topic, payload }| PublishMqtt { topic, payload: payload.into(), qos: None, retain: None };
    let mut batch = batch.into_iter();
    let last = batch.next_back();
    for publication in batch {
        port.tell(message(publication)).await.map_err(|_| AskError::Stopped)?;
    }
    // A broker confirms in the order in which it is told.
    match last {
        Some(last) => match port.ask(message(last), CONFIRMED_WITHIN).await {
            Err(AskError::Stopped) => Err(AskError::Stopped),
            Err(error) => {
                tracing::warn!("a broker has not confirmed what was told of devices: {error}");
                Ok(())
            }
            // What it says otherwise, EventBus counts: there may be no broker now.
            Ok(_) => Ok(()),
        },
        None => Ok(()),
    }
}

impl DeviceTwin {
    /// Begins a commit of what waits, unless one is under way.
    pub(super) fn commit(&mut self, ctx: &mut Context<Self>) {
        if self.commits.committing || (self.commits.dirty.is_empty() && self.commits.after.is_empty()) {
            if self.commits.after.len() >= MAX_PENDING {
                // Nothing more is taken until the commit under way is done and the next has begun.
                self.hold(ctx);
            }
            return;
        }
        self.commits.committing = true;
        let mut batch = self.config.store.batch();
        self.commits.under_way = std::mem::take(&mut self.commits.dirty);
        for id in &self.commits.under_way {
            match self.devices.get(id) {
                Some(device) => batch.put(&self.twins, id.as_bytes(), &device.record()),
                None => batch.delete(&self.twins, id.as_bytes()),
            }
        }
        let after = std::mem::take(&mut self.commits.after);
        let publisher = self.publisher.clone();
        let done = Rc::clone(&self.commits.done);
        let work = async move {
            let committed = batch.commit().await;
            if let Err(error) = &committed {
                tracing::error!("twins are not on disk: {error}");
            }
            let mut all = Vec::new();
            for after in after {
                match (after, &committed) {
                    (After::Publish(told, _), Ok(())) => all.extend(told),
                    (After::Publish(_, instead), Err(_)) => all.extend(instead),
                    // A mapper that hung up needs no answer.
                    (After::Reply(reply), Ok(())) => drop(reply.send(Ok(()))),
                    (After::Reply(reply), Err(error)) => {
                        let message = format!("the edge's store refused it: {error}");
                        drop(reply.send(Err(Refused { code: tonic::Code::Internal, message })));
                    }
                }
            }
            if let Some(publisher) = publisher
                && publisher.send(all).await.is_err()
            {
                tracing::debug!("nobody is told any more: EventBus is stopping");
            }
            done.notify_one();
            committed.is_ok()
        };
        // A task of its own: while no more is taken, nothing of this component's own context runs.
        let work = tokio::task::spawn_local(work);
        ctx.spawn(work.into_actor(self).map(|ended, this, ctx| {
            let on_disk = match ended {
                Ok(on_disk) => on_disk,
                Err(error) => return ctx.fail(format!("a commit did not end: {error}")),
            };
            this.commits.committing = false;
            let ids = std::mem::take(&mut this.commits.under_way);
            if !on_disk {
                this.commits.dirty.extend(ids);
            }
            if on_disk || !this.commits.after.is_empty() {
                this.commit(ctx);
            } else {
                this.commit_later(ctx);
            }
            this.report_due(ctx);
        }));
    }

    /// Who asked was told that it is not on disk. What a device is has changed all the same, and must not stay ahead of the
    /// disk until it changes next.
    fn commit_later(&mut self, ctx: &mut Context<Self>) {
        if !std::mem::replace(&mut self.commits.trying_again, true) {
            ctx.run_later(AGAIN, |this, ctx| {
                this.commits.trying_again = false;
                this.commit(ctx);
            });
        }
    }

    /// Takes no more until the commit under way is done.
    fn hold(&mut self, ctx: &mut Context<Self>) {
        let done = Rc::clone(&self.commits.done);
        ctx.wait(async move { done.notified().await }.into_actor(self));
    }
}
