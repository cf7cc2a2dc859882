//! Two ends face to face, step by step.

mod calls;
mod handshake;
mod hostile;
mod properties;
mod resync;
mod state;

use std::time::Duration;

use kubeedge_proto::{
    resource,
    v1::{
        self, Ack, AckRange, CallReply, Chunk, Data, Disposition, Envelope, Frame, GoodbyeReason, Hello,
        InventoryEntry, KubeObject, ObjectKey, ObjectTombstone, ObjectUpsert, PodTerminated, Priority, Settled,
        StatusUpdate, TrafficClass, envelope::Body, frame::Frame as F,
    },
};
use prost::Message;

use super::{types::frame, *};
use crate::link::config::{KeyRate, Window, Windows};

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn hello() -> Hello {
    Hello { instance_id: vec![7; 16].into(), connection: 1, ..Default::default() }
}

fn envelope(id: u8, body: Body) -> Envelope {
    Envelope {
        id: vec![id; 16].into(),
        priority: body.default_priority().into(),
        body: Some(body),
        ..Default::default()
    }
}

fn object(name: &str, uid: &str, version: u64, bytes: usize) -> KubeObject {
    KubeObject {
        r#type: Some(resource::pods()),
        key: Some(ObjectKey::new("ns", name)),
        uid: uid.into(),
        resource_version: version.to_string(),
        json: vec![b'x'; bytes].into(),
        projection_hash: version,
    }
}

fn upsert(name: &str, uid: &str, version: u64) -> Body {
    Body::ObjectUpsert(ObjectUpsert { object: Some(object(name, uid, version, 10)), ..ObjectUpsert::default() })
}

fn big(name: &str, bytes: usize) -> Body {
    Body::ObjectUpsert(ObjectUpsert { object: Some(object(name, name, 1, bytes)), ..ObjectUpsert::default() })
}

fn tombstone(name: &str, uid: &str) -> Body {
    Body::ObjectTombstone(ObjectTombstone {
        r#type: Some(resource::pods()),
        key: Some(ObjectKey::new("ns", name)),
        uid: uid.into(),
        resource_version: "9".into(),
    })
}

fn status(name: &str, generation: u64) -> Body {
    Body::StatusUpdate(StatusUpdate {
        r#type: Some(resource::pods()),
        key: Some(ObjectKey::new("ns", name)),
        uid: "u".into(),
        generation,
        status_json: b"{}".as_slice().into(),
    })
}

/// One end with what came out of it, frames apart.
struct End {
    session: Session,
    now: Duration,
    sent: Vec<Frame>,
    events: Vec<Output>,
    /// Reports frames as drained at once.
    drains: bool,
}

impl End {
    fn new(session: Session) -> Self {
        Self { session, now: Duration::ZERO, sent: Vec::new(), events: Vec::new(), drains: true }
    }

    fn give(&mut self, input: Input) {
        let mut out = Vec::new();
        self.session.handle(self.now, input, &mut out);
        self.sort(out);
        self.poll();
    }

    fn poll(&mut self) {
        loop {
            let mut out = Vec::new();
            self.session.poll(self.now, &mut out);
            if !self.sort(out) || !self.drains {
                return;
            }
        }
    }

    fn sort(&mut self, out: Vec<Output>) -> bool {
        let mut sent = false;
        for output in out {
            if let Output::Send(frame, bytes) = output {
                if self.drains {
                    let mut none = Vec::new();
                    let drained = Input::Drained { frames: 1, bytes };
                    self.session.handle(self.now, drained, &mut none);
                }
                self.sent.push(frame);
                sent = true;
            } else {
                self.events.push(output);
            }
        }
        sent
    }

    fn receive(&mut self, frame: F) {
        self.give(Input::Frame(types::frame(frame)));
    }

    fn take(&mut self) -> Vec<Output> {
        std::mem::take(&mut self.events)
    }

    fn closed(&mut self) -> Option<Closed> {
        self.take().into_iter().find_map(|event| if let Output::Closed(closed) = event { Some(closed) } else { None })
    }
}

/// Moves frames both ways until nothing moves.
fn exchange(a: &mut End, b: &mut End) {
    while !a.sent.is_empty() || !b.sent.is_empty() {
        for frame in std::mem::take(&mut a.sent) {
            b.give(Input::Frame(frame));
        }
        for frame in std::mem::take(&mut b.sent) {
            a.give(Input::Frame(frame));
        }
    }
}

fn admit() -> Input {
    Input::Admit { epoch: 1, cluster_uid: "c".into(), resource_version: 5 }
}

/// Both established, resync done with nothing desired.
fn pair(config: Config) -> (End, End) {
    let mut edge = End::new(Session::edge(hello(), config.clone()));
    let mut cloud = End::new(Session::cloud(config));
    edge.poll();
    exchange(&mut edge, &mut cloud);
    assert!(matches!(cloud.take()[..], [Output::HelloReceived(_)]));
    cloud.give(admit());
    assert!(matches!(cloud.take()[..], [Output::Established(_), Output::NeedDesired]));
    cloud.give(Input::DesiredKnown(v1::DesiredState::default()));
    exchange(&mut edge, &mut cloud);
    assert!(matches!(&edge.take()[..], [Output::Established(it)] if it.epoch == 1 && it.cluster_uid == "c"));
    (edge, cloud)
}

fn delivered(end: &mut End) -> Vec<(Class, u64, Envelope)> {
    let (delivered, rest) = end.take().into_iter().partition(|event| matches!(event, Output::Deliver { .. }));
    end.events = rest;
    delivered
        .into_iter()
        .filter_map(|event| match event {
            Output::Deliver { class, seq, envelope } => Some((class, seq, *envelope)),
            _ => None,
        })
        .collect()
}

fn data_frames(end: &End) -> Vec<&Data> {
    end.sent.iter().filter_map(|it| if let Some(F::Data(data)) = &it.frame { Some(data) } else { None }).collect()
}
