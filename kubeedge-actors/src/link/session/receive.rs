//! What a frame of the peer does.

use std::time::Duration;

use kubeedge_proto::v1::{self, CallReply, Envelope, Settled, envelope::Body, frame::Frame as F};

use super::{
    Class, Closed, Established, Output, Phase, Role, Session,
    inbox::{Arrived, Mark},
    outbox::Sent,
    types::{CallFailure, Violation, is_failure},
};
use crate::link::{
    config::{MAX_FRAME_BYTES, MAX_KINDS, VERSIONS, Windows},
    ids::TypeId,
    registry::MAX_EPOCH,
};

fn name(frame: &F) -> &'static str {
    match frame {
        F::Hello(_) => "Hello",
        F::Welcome(_) => "Welcome",
        F::Data(_) => "Data",
        F::Ack(_) => "Ack",
        F::Heartbeat(_) => "Heartbeat",
        F::InventoryRequest(_) => "InventoryRequest",
        F::Inventory(_) => "Inventory",
        F::InventoryComplete(_) => "InventoryComplete",
        F::Bookmark(_) => "Bookmark",
        F::OpenStreams(_) => "OpenStreams",
        F::Goodbye(_) => "Goodbye",
    }
}

impl Session {
    /// A frame of this many bytes, encoded.
    pub(super) fn receive(
        &mut self,
        now: Duration,
        frame: v1::Frame,
        bytes: usize,
        out: &mut Vec<Output>,
    ) -> Result<(), Violation> {
        if bytes > MAX_FRAME_BYTES {
            let (got, limit) = (bytes as u64, MAX_FRAME_BYTES as u64);
            return Err(Violation::Limit { what: "bytes of a frame", got, limit });
        }
        // A frame that a later version has added says nothing to this one.
        let Some(frame) = frame.frame else { return Ok(()) };
        match (&self.phase, self.role, frame) {
            (_, _, F::Goodbye(goodbye)) => {
                self.end(Closed::ByPeer(goodbye), out);
                Ok(())
            }
            (Phase::AwaitHello, _, F::Hello(hello)) => self.hello_received(hello, out),
            (Phase::AwaitWelcome, _, F::Welcome(welcome)) => self.welcomed(now, *welcome, out),
            (Phase::Established, _, F::Data(data)) => match self.inbox.data(data)? {
                Some(arrived) => self.arrived(now, arrived, out),
                None => Ok(()),
            },
            (Phase::Established, _, F::Ack(ack)) => self.acked(now, ack, out),
            (Phase::Established, role, F::Heartbeat(heartbeat)) => {
                if let Some(round_trip) = self.liveness.heartbeat(now, &heartbeat) {
                    self.stats.round_trip_ms = u64::try_from(round_trip.as_millis()).unwrap_or(u64::MAX);
                    if role == Role::Edge {
                        out.push(Output::RoundTrip(round_trip));
                    }
                }
                if role == Role::Cloud {
                    out.push(Output::Heartbeat { progress_age_ms: heartbeat.progress_age_ms });
                }
                Ok(())
            }
            (Phase::Established, Role::Cloud, F::Inventory(piece)) => match &mut self.exchange {
                Some(exchange) => {
                    let next = exchange.inventory(*piece)?;
                    self.go_on(now, next, out)
                }
                None => Err(Violation::Unexpected { frame: "Inventory", phase: "before the session stands" }),
            },
            (Phase::Established, Role::Edge, F::InventoryRequest(request)) => self.inventory_requested(request, out),
            (Phase::Established, Role::Edge, F::InventoryComplete(complete)) => {
                let type_ = needs_type("InventoryComplete.type", complete.r#type.as_ref())?;
                self.inbox.hold(type_, Mark::Complete(*complete))?;
                self.release_marks(out);
                Ok(())
            }
            (Phase::Established, Role::Edge, F::Bookmark(bookmark)) => {
                let type_ = needs_type("Bookmark.type", bookmark.r#type.as_ref())?;
                self.inbox.hold(type_, Mark::Bookmark(bookmark))?;
                self.release_marks(out);
                Ok(())
            }
            (Phase::Established, Role::Edge, F::OpenStreams(_)) => {
                out.push(Output::OpenStreams);
                Ok(())
            }
            (phase, role, frame) => {
                let phase = match (phase, role) {
                    (Phase::Established, Role::Edge) => "at the edge's end of a session that stands",
                    (Phase::Established, Role::Cloud) => "at the cloud's end of a session that stands",
                    (Phase::AwaitWelcome, _) => "before Welcome",
                    (Phase::AwaitHello, _) => "before Hello",
                    _ => "before Hello has been answered",
                };
                Err(Violation::Unexpected { frame: name(&frame), phase })
            }
        }
    }

    fn hello_received(&mut self, hello: Box<v1::Hello>, out: &mut Vec<Output>) -> Result<(), Violation> {
        let versions = hello.versions.unwrap_or_default();
        if versions.highest < VERSIONS.lowest || versions.lowest > VERSIONS.highest || versions.highest == 0 {
            let (theirs, ours) = ((versions.lowest, versions.highest), (VERSIONS.lowest, VERSIONS.highest));
            return Err(Violation::Version { theirs, ours });
        }
        if hello.instance_id.len() != 16 {
            return Err(Violation::field(
                "Hello.instance_id",
                format!("{} bytes", hello.instance_id.len()),
                "16 bytes",
            ));
        }
        if hello.last_epoch >= MAX_EPOCH {
            return Err(Violation::field("Hello.last_epoch", hello.last_epoch, format!("below {MAX_EPOCH}")));
        }
        if hello.kinds.len() > MAX_KINDS {
            let (got, limit) = (hello.kinds.len() as u64, MAX_KINDS as u64);
            return Err(Violation::Limit { what: "kinds of a Hello", got, limit });
        }
        for kind in &hello.kinds {
            needs_type("Hello.kinds.type", kind.r#type.as_ref())?;
        }
        self.phase = Phase::AwaitAdmission(hello.clone());
        out.push(Output::HelloReceived(hello));
        Ok(())
    }

    fn welcomed(&mut self, now: Duration, welcome: v1::Welcome, out: &mut Vec<Output>) -> Result<(), Violation> {
        if welcome.version < VERSIONS.lowest || welcome.version > VERSIONS.highest {
            let theirs = (welcome.version, welcome.version);
            return Err(Violation::Version { theirs, ours: (VERSIONS.lowest, VERSIONS.highest) });
        }
        if welcome.epoch <= self.last_epoch {
            let expected = format!("above {}, the epoch of this box's last session", self.last_epoch);
            return Err(Violation::field("Welcome.epoch", welcome.epoch, expected));
        }
        self.outbox.set_windows(Windows::from_wire(&welcome.windows));
        if let Some(limits) = welcome.limits
            && limits.max_message_bytes > 0
        {
            self.max_message = self.max_message.min(limits.max_message_bytes as usize);
        }
        if welcome.heartbeat_interval_ms > 0 {
            self.liveness.set_interval(Duration::from_millis(welcome.heartbeat_interval_ms.into()));
        }
        self.liveness.established(now);
        self.phase = Phase::Established;
        out.push(Output::Established(Established {
            version: welcome.version,
            epoch: welcome.epoch,
            cluster_uid: welcome.cluster_uid,
            resource_version: welcome.resource_version,
            peer_unix_ms: welcome.time_unix_ms,
            software_version: welcome.software_version,
            capabilities: welcome.capabilities,
        }));
        Ok(())
    }

    fn inventory_requested(&mut self, request: v1::InventoryRequest, out: &mut Vec<Output>) -> Result<(), Violation> {
        for type_ in request.types {
            if self.inventories.len() >= MAX_KINDS {
                let limit = MAX_KINDS as u64;
                return Err(Violation::Limit { what: "inventories asked for", got: limit + 1, limit });
            }
            self.inventories.push(type_.clone());
            out.push(Output::NeedInventory(type_.into()));
        }
        Ok(())
    }

    fn arrived(&mut self, now: Duration, arrived: Arrived, out: &mut Vec<Output>) -> Result<(), Violation> {
        let Arrived { class, seq, envelope } = arrived;
        match (class, &envelope.body) {
            (Class::Call, Some(Body::CallReply(_))) => self.reply_arrived(seq, envelope, out),
            (Class::Call, _) => self.call_arrived(now, seq, envelope, out)?,
            (_, None) => {
                self.stats.unsupported += 1;
                let settled = Settled::rejected(501, "Unsupported: this version does not know the body");
                self.settle(class, seq, settled, out);
            }
            (Class::State, Some(body)) if body.state_key().is_none() => {
                self.settle(class, seq, Settled::rejected(400, "State without a type and a key"), out);
            }
            _ => out.push(Output::Deliver { class, seq, envelope }),
        }
        Ok(())
    }

    fn call_arrived(
        &mut self,
        now: Duration,
        seq: u64,
        envelope: Box<Envelope>,
        out: &mut Vec<Output>,
    ) -> Result<(), Violation> {
        if envelope.id.len() != 16 {
            return Err(Violation::field("Envelope.id", format!("{} bytes", envelope.id.len()), "16 bytes"));
        }
        let refusal = if envelope.body.is_none() {
            self.stats.unsupported += 1;
            Some(CallReply::error(501, "Unsupported", "this version does not know the body"))
        } else if self.calls.incoming() >= self.config.max_calls {
            let message = format!("{} calls wait here already", self.config.max_calls);
            Some(CallReply::error(429, "TooManyRequests", message))
        } else {
            None
        };
        let deadline = now + self.call_timeout(envelope.timeout_ms);
        self.calls.accept(seq, envelope.id.clone(), deadline);
        match refusal {
            Some(reply) => self.reply(now, seq, reply)?,
            None => out.push(Output::Deliver { class: Class::Call, seq, envelope }),
        }
        Ok(())
    }

    /// A reply is settled here and now, whether somebody still waits for it or not.
    fn reply_arrived(&mut self, seq: u64, envelope: Box<Envelope>, out: &mut Vec<Output>) {
        let id = envelope.correlation_id;
        if self.calls.answered(&id)
            && let Some(Body::CallReply(reply)) = envelope.body
        {
            out.push(Output::Reply { id, reply });
        } else {
            self.stats.late_replies += 1;
        }
        self.settle(Class::Call, seq, Settled::applied(), out);
    }

    fn acked(&mut self, now: Duration, ack: v1::Ack, out: &mut Vec<Output>) -> Result<(), Violation> {
        let class = Class::from_wire(ack.class())
            .ok_or_else(|| Violation::field("Ack.class", ack.class, "STATE, EVENT or CALL"))?;
        for (sent, settled) in self.outbox.acked(now, class, ack)? {
            match sent {
                Sent::State(_, envelope) | Sent::Event(envelope) => {
                    if self.role == Role::Cloud && class == Class::State && is_failure(&settled) {
                        self.failed = true;
                        if let Some(exchange) = &mut self.exchange {
                            exchange.failed(&envelope);
                        }
                        self.recheck_later(now);
                    }
                    // The edge has something newer than what is desired here: one of them has gone back.
                    if self.role == Role::Cloud
                        && settled.disposition() == v1::Disposition::Superseded
                        && matches!(envelope.body, Some(Body::ObjectUpsert(_)))
                    {
                        self.recheck_later(now);
                    }
                    out.push(Output::Settled { class, envelope, settled });
                }
                // The reply itself may still be on its way, unless the peer says that there will be none.
                Sent::Request(id) => {
                    if settled.disposition() == v1::Disposition::Rejected && self.calls.answered(&id) {
                        let why = CallFailure::GivenUp(settled.code, settled.reason);
                        out.push(Output::CallFailed { id, why });
                    }
                }
                Sent::Reply => {}
            }
        }
        Ok(())
    }
}

fn needs_type(field: &'static str, type_: Option<&v1::ResourceType>) -> Result<TypeId, Violation> {
    type_.map(TypeId::of).ok_or_else(|| Violation::field(field, "nothing", "a resource type"))
}
