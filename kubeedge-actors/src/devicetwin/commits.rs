//! Changes on their way to the disk, and what is said when they are there.
//!
//! One commit is under way at a time; what changes meanwhile shares the next, each device once. So a burst costs a sync of
//! the disk a batch, and what is answered is on disk.

use std::{collections::BTreeSet, rc::Rc};

use actix::{ActorFutureExt, AsyncContext, WrapFuture};
use tokio::sync::{Notify, oneshot};

use super::{DeviceTwin, dmi::server::Refused, mappers::Id, requests::Publication};
use crate::system::Context;

/// Requests that wait for a commit at most.
pub const MAX_PENDING: usize = 1024;

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
    /// The commit under way is done.
    done: Rc<Notify>,
}

impl Commits {
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
        for id in std::mem::take(&mut self.commits.dirty) {
            match self.devices.get(&id) {
                Some(device) => batch.put(&self.twins, id.as_bytes(), &device.record()),
                None => batch.delete(&self.twins, id.as_bytes()),
            }
        }
        let after = std::mem::take(&mut self.commits.after);
        let publish = self.publish.clone();
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
            Self::publish_all(publish, all).await;
            done.notify_one();
        };
        // A task of its own: while no more is taken, nothing of this component's own context runs.
        let work = tokio::task::spawn_local(work);
        ctx.spawn(work.into_actor(self).map(|ended, this, ctx| {
            if let Err(error) = ended {
                return ctx.fail(format!("a commit did not end: {error}"));
            }
            this.commits.committing = false;
            this.commit(ctx);
            this.report_due(ctx);
        }));
    }

    /// Takes no more until the commit under way is done.
    fn hold(&mut self, ctx: &mut Context<Self>) {
        let done = Rc::clone(&self.commits.done);
        ctx.wait(async move { done.notified().await }.into_actor(self));
    }
}
