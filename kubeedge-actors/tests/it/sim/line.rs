//! One connection: two real sessions and what is on the wire between them.

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use kubeedge_actors::link::session::{Class, Input, Output, Session};
use kubeedge_proto::v1::{Disposition, Envelope, Frame, envelope::Body, frame::Frame as F};

/// What is on the wire.
pub enum Wire {
    Frame(Frame),
    /// What is left of a frame, which no decoder takes: why.
    Broken(String),
    /// The other side has closed.
    End,
}

/// One end, with its owner's queue of outputs.
pub struct End {
    pub session: Session,
    pub undrained: VecDeque<usize>,
    pub outputs: VecDeque<Output>,
    floors: HashMap<i32, u64>,
    /// When a frame came last, or the session was established.
    pub heard: Duration,
    /// Delivered State, not settled: one of a key at a time.
    open: Vec<(u64, String)>,
    /// The newest generation delivered, per object.
    generations: HashMap<String, u64>,
}

pub struct Line {
    pub box_: usize,
    pub node: &'static str,
    pub start: Duration,
    pub edge: Option<End>,
    pub cloud: Option<End>,
    pub up: VecDeque<Wire>,
    pub down: VecDeque<Wire>,
    pub swallows_up: bool,
    pub swallows_down: bool,
    /// Something was done to its frames that no transport does.
    pub tampered: bool,
    /// Its count is higher than those of the box's connections before it.
    pub rises: bool,
    /// A message on it was of a version that is not known here.
    pub unknown: bool,
    /// It stands still until then.
    pub stands_until: Duration,
    /// Somebody or something may have kept it from being alive in time.
    pub disturbed: bool,
    // the cloud's
    /// What CloudHub has for the session.
    pub inputs: VecDeque<Input>,
    pub epoch: Option<u64>,
    /// Counts admissions of this world: which session is the newer one.
    pub serial: u64,
    pub ask_again: Option<Duration>,
    pub ask_again_after: Duration,
}

impl End {
    pub fn new(session: Session, now: Duration) -> Self {
        Self {
            session,
            heard: now,
            undrained: VecDeque::new(),
            outputs: VecDeque::new(),
            floors: HashMap::new(),
            open: Vec::new(),
            generations: HashMap::new(),
        }
    }
}

fn state_key(envelope: &Envelope) -> Option<String> {
    let key = envelope.body.as_ref().and_then(Body::state_key)?;
    Some(format!("{}/{}", key.type_.resource, key.key.name))
}

impl Line {
    pub fn new(box_: usize, node: &'static str, start: Duration, edge: Session, cloud: Session) -> Self {
        Self {
            box_,
            node,
            start,
            edge: Some(End::new(edge, start)),
            cloud: Some(End::new(cloud, start)),
            up: VecDeque::new(),
            down: VecDeque::new(),
            swallows_up: false,
            swallows_down: false,
            tampered: false,
            rises: true,
            unknown: false,
            stands_until: Duration::ZERO,
            disturbed: false,
            inputs: VecDeque::new(),
            epoch: None,
            serial: 0,
            ask_again: None,
            ask_again_after: Duration::from_secs(5),
        }
    }

    fn end(&mut self, at_edge: bool) -> Option<&mut End> {
        if at_edge { self.edge.as_mut() } else { self.cloud.as_mut() }
    }

    /// An end handles something, or looks at the time; its frames go on the wire.
    pub fn give(&mut self, at_edge: bool, at: Duration, input: Option<Input>) {
        let now = at.saturating_sub(self.start);
        let Some(end) = self.end(at_edge) else { return };
        if let Some(Input::Frame(_) | Input::Admit { .. }) = &input {
            end.heard = at;
        }
        if let Some(Input::Settle { class: Class::State, seq, .. }) = &input {
            end.open.retain(|(open, _)| open != seq);
        }
        let mut out = Vec::new();
        match input {
            Some(input) => end.session.handle(now, input, &mut out),
            None => {
                end.session.poll(now, &mut out);
                // As a driver does when it is quiet.
                end.session.shrink();
            }
        }
        for output in out {
            self.output(at_edge, output);
        }
    }

    fn output(&mut self, at_edge: bool, output: Output) {
        let swallows = if at_edge { self.swallows_up } else { self.swallows_down };
        let (end, wire) = if at_edge { (&mut self.edge, &mut self.up) } else { (&mut self.cloud, &mut self.down) };
        let Some(end) = end else { return };
        match output {
            Output::Send(frame, bytes) => {
                end.undrained.push_back(bytes);
                let waiting: usize = end.undrained.iter().sum();
                promise!(
                    waiting <= 64 * 1024 || end.undrained.len() == 1 || end.session.is_closed(),
                    "P-MEMORY-BOUNDED",
                    "{waiting} bytes are handed to the transport"
                );
                if let Some(F::Ack(ack)) = &frame.frame {
                    let floor = end.floors.entry(ack.class).or_default();
                    promise!(ack.floor >= *floor, "P-ACKED-IS-KEPT", "the floor fell from {floor} to {}", ack.floor);
                    *floor = ack.floor;
                }
                if !swallows {
                    wire.push_back(Wire::Frame(frame));
                }
            }
            output => {
                if let Output::Deliver { class: Class::State, seq, envelope } = &output
                    && let Some(key) = state_key(envelope)
                {
                    let twice = end.open.iter().any(|(_, open)| *open == key);
                    promise!(!twice, "P-ORDER-PER-KEY", "two messages about {key} are open at a time");
                    if let Some(Body::StatusUpdate(update)) = &envelope.body {
                        let last = end.generations.insert(format!("{key}/{}", update.uid), update.generation);
                        let rises = last.is_none_or(|last| last <= update.generation);
                        promise!(rises, "P-ORDER-PER-KEY", "{key} went back to {}", update.generation);
                    }
                    end.open.push((*seq, key));
                }
                if let Output::Settled { settled, .. } = &output {
                    assert_ne!(settled.disposition(), Disposition::Unspecified);
                }
                end.outputs.push_back(output);
            }
        }
    }

    /// An end goes away: the other hears of it, unless nothing gets there.
    pub fn close(&mut self, edge: bool) {
        let gone = if edge { self.edge.take() } else { self.cloud.take() };
        if gone.is_none() {
            return;
        }
        if edge && !self.swallows_up {
            self.up.push_back(Wire::End);
        }
        if !edge && !self.swallows_down {
            self.down.push_back(Wire::End);
        }
    }

    pub fn is_over(&self) -> bool {
        self.edge.is_none() && self.cloud.is_none()
    }

    pub fn drain(&mut self, at_edge: bool, now: Duration) {
        let Some(end) = self.end(at_edge) else { return };
        let frames = end.undrained.len();
        let bytes = end.undrained.drain(..).sum();
        if frames > 0 {
            self.give(at_edge, now, Some(Input::Drained { frames, bytes }));
        }
    }

    /// The next thing on the wire arrives. False when there is none.
    pub fn deliver(&mut self, to_edge: bool, now: Duration) -> bool {
        let wire = if to_edge { &mut self.down } else { &mut self.up };
        let Some(next) = wire.pop_front() else { return false };
        let input = match next {
            Wire::Frame(frame) => Input::Frame(frame),
            Wire::Broken(why) => Input::TransportEnded(why),
            Wire::End => Input::TransportEnded("the peer has closed".into()),
        };
        self.give(to_edge, now, Some(input));
        true
    }
}
