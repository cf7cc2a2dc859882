//! The cloud welcomes an edge and brings it up to date; the edge says what it holds.

use std::{collections::HashSet, time::Duration};

use kubeedge_proto::v1::{self, envelope::Body, frame::Frame as F};

use super::{
    Established, Output, Phase, RECHECK, RECHECK_LONGEST, Session,
    exchange::{Exchange, Next},
    types::{Violation, frame},
};
use crate::link::{
    config::{MAX_FRAME_BYTES, VERSIONS},
    ids::TypeId,
    resync::Step,
};

impl Session {
    pub(super) fn admit(
        &mut self,
        now: Duration,
        epoch: u64,
        cluster_uid: String,
        resource_version: u64,
        out: &mut Vec<Output>,
    ) {
        if !matches!(self.phase, Phase::AwaitAdmission(_)) {
            self.stats.unexpected_answers += 1;
            return;
        }
        let Phase::AwaitAdmission(hello) = std::mem::replace(&mut self.phase, Phase::Established) else { return };
        let version = hello.versions.unwrap_or_default().highest.min(VERSIONS.highest);
        let interval = u32::try_from(self.config.heartbeat_interval.as_millis()).unwrap_or(u32::MAX);
        let limit = |limit: usize| u32::try_from(limit).unwrap_or(u32::MAX);
        let welcome = v1::Welcome {
            version,
            epoch,
            cluster_uid: cluster_uid.clone(),
            heartbeat_interval_ms: interval,
            windows: self.config.windows.to_wire(),
            limits: Some(v1::Limits {
                max_frame_bytes: limit(MAX_FRAME_BYTES),
                max_message_bytes: limit(self.config.max_message_bytes),
                max_inventory_entries: limit(self.config.max_inventory_entries),
                max_streams: 0,
            }),
            time_unix_ms: self.unix_ms_at_zero.saturating_add(u64::try_from(now.as_millis()).unwrap_or(0)),
            received: Vec::new(),
            software_version: self.config.software_version.clone(),
            capabilities: self.config.capabilities.clone(),
            resource_version,
        };
        self.send(now, frame(F::Welcome(welcome.into())), out);
        self.liveness.established(now);
        let same_cluster = hello.cluster_uid.is_empty() || hello.cluster_uid == cluster_uid;
        if !same_cluster {
            tracing::error!(
                pinned = hello.cluster_uid,
                ours = cluster_uid,
                "the edge is pinned to another cluster: nothing is deleted there by absence"
            );
        }
        out.push(Output::Established(Established {
            version,
            epoch,
            cluster_uid,
            resource_version,
            peer_unix_ms: hello.time_unix_ms,
            software_version: hello.software_version,
            capabilities: hello.capabilities,
        }));
        self.exchange = Some(Exchange::new(&hello.kinds, same_cluster, self.config.max_inventory_entries));
        self.recheck(out);
    }

    pub(super) fn recheck(&mut self, out: &mut Vec<Output>) {
        self.recheck_at = None;
        match &mut self.exchange {
            Some(exchange) => {
                if exchange.begin(self.outbox.unsettled_state()) {
                    out.push(Output::NeedDesired);
                }
            }
            None => self.stats.unexpected_answers += 1,
        }
    }

    pub(super) fn recheck_later(&mut self, now: Duration) {
        if self.recheck_at.is_none() {
            self.recheck_at = Some(now + self.recheck_after);
            self.recheck_after = (self.recheck_after * 2).min(RECHECK_LONGEST);
        }
    }

    /// The next step of a resync.
    pub(super) fn go_on(&mut self, now: Duration, next: Next, out: &mut Vec<Output>) -> Result<(), Violation> {
        match next {
            Next::Wait => {}
            Next::Ask(types) => {
                self.outbox.push_control(frame(F::InventoryRequest(v1::InventoryRequest { types })));
            }
            Next::Send(difference) => {
                if difference.kept > 0 {
                    tracing::warn!(kept = difference.kept, "objects stay at the edge: too little is known to end them");
                }
                if difference.stale {
                    self.recheck_later(now);
                } else if !std::mem::take(&mut self.failed) {
                    self.recheck_after = RECHECK;
                }
                // A kind of which something could not be sent is not complete, whatever the list says.
                let mut partial: HashSet<TypeId> = HashSet::new();
                for step in difference.steps {
                    match step {
                        Step::Upsert(upsert) => {
                            let type_ = upsert.object.as_ref().and_then(|object| object.r#type.as_ref());
                            let type_ = type_.map(TypeId::of);
                            if !self.submit_own(now, Body::ObjectUpsert(upsert), out) {
                                partial.extend(type_);
                            }
                        }
                        Step::Tombstone(gone) => {
                            let type_ = gone.r#type.as_ref().map(TypeId::of);
                            if !self.submit_own(now, Body::ObjectTombstone(gone), out) {
                                partial.extend(type_);
                            }
                        }
                        Step::Complete(complete) => {
                            let type_ = complete.r#type.as_ref().map(TypeId::of);
                            if type_.is_some_and(|type_| !partial.contains(&type_)) {
                                self.outbox.push_complete(complete)?;
                            }
                        }
                    }
                }
                if self.exchange.as_ref().is_some_and(Exchange::wants_again) {
                    self.recheck(out);
                }
            }
        }
        Ok(())
    }

    /// Whether it was taken; the owner hears of it when not.
    pub(super) fn submit_own(&mut self, now: Duration, body: Body, out: &mut Vec<Output>) -> bool {
        let envelope = Box::new(self.envelope(now, body));
        let refused = self.stats.refused;
        self.submit(now, envelope, out);
        self.stats.refused == refused
    }

    pub(super) fn inventory_known(
        &mut self,
        type_: &v1::ResourceType,
        entries: Vec<v1::InventoryEntry>,
    ) -> Result<(), Violation> {
        let Some(at) = self.inventories.iter().position(|asked| asked == type_) else {
            self.stats.unexpected_answers += 1;
            return Ok(());
        };
        let type_ = self.inventories.remove(at);
        if entries.len() > self.config.max_inventory_entries {
            let (got, limit) = (entries.len() as u64, self.config.max_inventory_entries as u64);
            return Err(Violation::Limit { what: "entries of an inventory", got, limit });
        }
        self.outbox.push_inventory(type_, entries);
        Ok(())
    }
}
