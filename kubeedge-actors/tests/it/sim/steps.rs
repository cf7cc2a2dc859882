//! What may happen next.

use std::time::Duration;

use kubeedge_actors::link::session::Input;
use kubeedge_proto::v1::{
    Data, Envelope, Frame, RegisterNode, TrafficClass, UserMessage, data::Payload, envelope::Body, frame::Frame as F,
};
use prost::Message;

use super::{
    api::{Kind, Place},
    dice::Dice,
    faults::Fault,
    line::Wire,
    world::{DownEvent, MAIN, NODES, OTHER, TWIN, World},
};

macro_rules! steps {
    ($($name:ident $weight:literal)*) => {
        /// A kind of step.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum What { $($name),* }

        impl What {
            const WEIGHTS: &[(What, usize)] = &[$((What::$name, $weight)),*];
        }
    };
}

steps! {
    // what people and the cluster do
    CreatePod 40  CreateConfig 30  ChangePod 12  ChangeConfig 20  DeletePod 20  RemovePod 10  RemoveConfig 8
    Bump 4  Snapshot 15
    // what goes its way
    Flow 220  Watch 60  Controller 60  ApiServer 40  Deliver 100  Commit 60  Edged 40  EdgedReads 20  EdgedLists 20
    PodSays 60  PodEnds 30  Publish 30  DownEvent 12  SendDown 12  Call 10  Connect 60  Time 60  LongTime 6
    // what goes wrong
    Cut 10  CutInMessage 5  HalfOpen 8  Delay 8  Tamper 4  Unknown 8
    RestartEdge 8  StopEdge 4  PowerCut 4  RestartCloud 4  StopCloud 3  RebuildMeta 6  RebuildHub 4  RebuildEdged 4  RebuildController 4
    Clock 4  SlowEdge 5  SlowController 5  DiskFull 6  Refuse 14  ListFails 5  StaleList 8  WatchBroken 5  Restore 3
    OtherCluster 2  TwinComes 5  LateWrite 14  Reconnect 6
}

impl What {
    pub fn random(dice: &mut Dice) -> Self {
        let all: usize = Self::WEIGHTS.iter().map(|(_, weight)| weight).sum();
        let mut at = dice.below(all);
        for (what, weight) in Self::WEIGHTS {
            if at < *weight {
                return *what;
            }
            at -= weight;
        }
        Self::Deliver
    }
}

fn some_place(kind: Kind, dice: &mut Dice) -> Place {
    (kind, dice.below(if kind == Kind::Pod { 4 } else { 3 }))
}

fn some_box(dice: &mut Dice) -> usize {
    // The twin is there when it is; most happens to the first.
    [MAIN, MAIN, MAIN, OTHER, TWIN][dice.below(5)]
}

impl World {
    pub fn step(&mut self, what: What, dice: &mut Dice) {
        match what {
            What::CreatePod => {
                let place = some_place(Kind::Pod, dice);
                let names: Vec<usize> = (0..3).filter(|_| dice.percent(40)).collect();
                let node = NODES[usize::from(dice.percent(30))];
                let content = dice.number() % 1000;
                if !self.api().objects.contains_key(&place) {
                    self.api().create(place, node, names, content, false);
                }
            }
            What::CreateConfig => {
                let place = some_place(Kind::Config, dice);
                let (content, big) = (dice.number() % 1000, dice.percent(6));
                if !self.api().objects.contains_key(&place) {
                    self.api().create(place, "", Vec::new(), content, big);
                }
            }
            What::ChangePod => {
                let (place, content) = (some_place(Kind::Pod, dice), dice.number() % 1000);
                self.api().change(place, |object| object.content = content);
            }
            What::ChangeConfig => {
                let (place, content, big) = (some_place(Kind::Config, dice), dice.number() % 1000, dice.percent(6));
                self.api().change(place, |object| (object.content, object.big) = (content, big));
            }
            What::DeletePod => {
                let place = some_place(Kind::Pod, dice);
                self.api().change(place, |object| object.deleting = true);
            }
            What::RemovePod => {
                let place = some_place(Kind::Pod, dice);
                self.api().remove(place);
            }
            What::RemoveConfig => {
                let place = some_place(Kind::Config, dice);
                self.api().remove(place);
            }
            What::Bump => {
                let by = dice.number() % 60;
                self.api().bump(by);
            }
            What::Snapshot => self.api().snapshot(),

            What::Flow => {
                const FLOW: [What; 10] = [
                    What::Watch,
                    What::Watch,
                    What::Controller,
                    What::Controller,
                    What::ApiServer,
                    What::Deliver,
                    What::Deliver,
                    What::Deliver,
                    What::Commit,
                    What::Edged,
                ];
                for _ in 0..dice.below(16) {
                    self.step(FLOW[dice.below(FLOW.len())], dice);
                }
            }
            What::Watch => drop(self.watch(dice, false)),
            What::StaleList => {
                self.break_watches();
                self.watch(dice, true);
            }
            What::Controller => drop(self.controller_handles()),
            What::ApiServer => drop(self.api_handles(dice.below(100))),
            What::Deliver => {
                if let Some(id) = self.some_line(dice) {
                    let to_edge = dice.percent(50);
                    for _ in 0..=dice.below(3) {
                        self.deliver(id, to_edge);
                    }
                }
            }
            What::Commit => {
                let box_ = some_box(dice);
                for _ in 0..=dice.below(3) {
                    self.commits(box_);
                }
            }
            What::Edged => drop(self.edged_hears(some_box(dice))),
            What::EdgedReads => drop(self.edged_reads(some_box(dice))),
            What::EdgedLists => self.edged_lists(some_box(dice)),
            What::PodSays => {
                let box_ = some_box(dice);
                self.pod_says(box_, dice.below(10));
            }
            What::PodEnds => {
                let box_ = some_box(dice);
                self.pod_ends(box_, dice.below(10));
            }
            What::Publish => {
                let box_ = [MAIN, MAIN, OTHER][dice.below(3)];
                for _ in 0..=dice.below(4) {
                    self.publish(box_);
                }
            }
            What::DownEvent => {
                let id = bytes::Bytes::from(dice.bytes16().to_vec());
                let body = Body::UserMessage(UserMessage { topic: "t".into(), ..UserMessage::default() });
                let node = NODES[usize::from(dice.percent(40))];
                self.down_events.insert(id, DownEvent { node, line: None, done: false, body });
                self.send_down_events();
            }
            What::SendDown => self.send_down_events(),
            What::Call => self.call(dice),
            What::Connect => (0..self.boxes.len()).for_each(|number| self.reconnect(number)),
            What::Time => self.pass(Duration::from_millis(dice.number() % 900)),
            What::LongTime => self.pass(Duration::from_millis(dice.number() % 40_000)),
            other => self.fault(other, dice),
        }
    }

    fn fault(&mut self, what: What, dice: &mut Dice) {
        match what {
            What::Cut => {
                if let Some(id) = self.some_line(dice) {
                    self.hit(Fault::Cut);
                    self.cut(id);
                }
            }
            What::CutInMessage => self.cut_in_message(),
            What::HalfOpen => {
                if let Some(id) = self.some_line(dice)
                    && let Some(line) = self.lines.get_mut(&id)
                {
                    let (up, down, fault) = [
                        (true, false, Fault::HalfOpenUp),
                        (false, true, Fault::HalfOpenDown),
                        (true, true, Fault::HalfOpenBoth),
                    ][dice.below(3)];
                    line.swallows_up |= up;
                    line.swallows_down |= down;
                    if up {
                        line.up.clear();
                    }
                    if down {
                        line.down.clear();
                    }
                    self.hit(fault);
                }
            }
            What::Delay => {
                if let Some(id) = self.some_line(dice) {
                    let until = self.now + Duration::from_millis(dice.number() % 30_000);
                    if let Some(line) = self.lines.get_mut(&id) {
                        line.stands_until = until;
                        line.disturbed = true;
                    }
                    self.hit(Fault::Delay);
                }
            }
            What::Tamper => self.tamper(dice),
            What::Unknown => self.unknown(dice),
            What::RestartEdge => {
                let box_ = some_box(dice);
                self.kill_edge(box_, dice, false);
            }
            What::StopEdge => {
                let box_ = some_box(dice);
                self.stop_edge(box_);
            }
            What::StopCloud => self.stop_cloud(),
            What::PowerCut => {
                let box_ = some_box(dice);
                self.kill_edge(box_, dice, true);
            }
            What::RestartCloud => {
                self.hit(Fault::CloudRestart);
                self.restart_cloud();
            }
            What::RebuildMeta => {
                let box_ = some_box(dice);
                self.rebuild_meta(box_);
            }
            What::RebuildHub => {
                let box_ = some_box(dice);
                self.rebuild_hub(box_);
            }
            What::RebuildEdged => {
                let box_ = some_box(dice);
                if let Some(edge) = &mut self.boxes[box_].edge {
                    edge.book = kubeedge_actors::edged::book::Book::new();
                    edge.ending.clear();
                    edge.asked = true;
                    edge.load_again = false;
                    self.hit(Fault::EdgedRebuilt);
                }
            }
            What::RebuildController => {
                self.hit(Fault::ControllerRebuilt);
                self.rebuild_controller();
            }
            What::Clock => {
                let by = (dice.number() % 10_000_000) as i64;
                let forth = dice.percent(50);
                let box_ = some_box(dice);
                self.boxes[box_].clock = if forth { by } else { -by - 1_000_000_000_000 };
                if self.boxes[box_].edge.is_some() {
                    self.hit(if forth { Fault::ClockForth } else { Fault::ClockBack });
                }
            }
            What::SlowEdge => {
                let box_ = some_box(dice);
                self.boxes[box_].slow_until = self.now + Duration::from_millis(dice.number() % 20_000);
                self.arrange(Fault::SlowEdge, box_);
            }
            What::SlowController => {
                let until = self.now + Duration::from_millis(dice.number() % 20_000);
                if let Some(cloud) = &mut self.cloud {
                    cloud.slow_until = until;
                }
                self.arrange(Fault::SlowController, 0);
            }
            What::DiskFull => {
                let box_ = some_box(dice);
                let full = &mut self.boxes[box_].full;
                *full = !*full;
                if self.boxes[box_].full {
                    self.arrange(Fault::DiskFull, box_);
                }
            }
            What::Refuse => {
                let (code, fault) = [
                    (404, Fault::Refused404),
                    (409, Fault::Refused409),
                    (422, Fault::Refused422),
                    (429, Fault::Refused429),
                    (503, Fault::Refused503),
                ][dice.below(5)];
                // A report that is being written meets it at once, else the next one, or the next event.
                self.api().refuses = Some((code, fault));
                self.api_handles(dice.below(100));
            }
            What::ListFails => {
                let fails = &mut self.api().lists_fail;
                *fails = !*fails;
                if self.api().lists_fail {
                    self.arrange(Fault::ListFails, 0);
                }
            }
            What::WatchBroken => {
                self.hit(Fault::WatchBroken);
                self.break_watches();
            }
            What::Restore => {
                let number = dice.below(1000);
                if self.which == 0 && self.api().restore(number) {
                    self.hit(Fault::Restored);
                }
            }
            What::OtherCluster => {
                // A box that knows none yet takes the first, whichever it is.
                if self.boxes.iter().any(|it| it.disk.this_box.cluster_uid != self.apis[0].cluster) {
                    return;
                }
                self.which = 1 - self.which;
                if self.which == 1 {
                    self.hit(Fault::OtherCluster);
                }
                self.restart_cloud();
            }
            What::TwinComes => {
                if self.boxes[TWIN].edge.is_none() {
                    self.hit(Fault::Twin);
                    self.power_on(TWIN);
                } else {
                    self.power_off(TWIN);
                }
            }
            What::LateWrite => {
                let arrives = dice.percent(70);
                self.late_arrives(arrives);
            }
            What::Reconnect => {
                // The edge gives its connection up without a word that arrives, and makes another.
                let box_ = some_box(dice);
                let Some(id) = self.boxes[box_].edge.as_ref().and_then(|edge| edge.hub.connection) else { return };
                if let Some(line) = self.lines.get_mut(&id) {
                    line.swallows_up = true;
                    line.disturbed = true;
                }
                self.link_down(box_);
                self.reconnect(box_);
            }
            _ => {}
        }
    }

    fn call(&mut self, dice: &mut Dice) {
        let Some(id) = self.some_line(dice) else { return };
        let from_edge = dice.percent(50);
        let line = &self.lines[&id];
        let current = self.boxes[line.box_].edge.as_ref().is_some_and(|edge| edge.hub.connection == Some(id));
        if (from_edge && !current) || (!from_edge && line.cloud.is_none()) {
            return;
        }
        let mut envelope = self.envelope(Body::RegisterNode(RegisterNode::default()));
        envelope.timeout_ms = 1 + dice.below(3000) as u32;
        self.calls.insert(envelope.id.clone(), (id, from_edge, 0));
        self.give(id, from_edge, Input::Submit(Box::new(envelope)));
    }

    fn cut_in_message(&mut self) {
        let partial = |wire: &Wire| {
            matches!(wire, Wire::Frame(Frame { frame: Some(F::Data(Data { payload: Some(Payload::Chunk(chunk)), .. })) })
                if !chunk.last)
        };
        let found = self.lines.iter().find(|(_, line)| line.down.iter().any(partial)).map(|(id, _)| *id);
        let Some(id) = found else { return };
        while self.lines.get(&id).is_some_and(|line| line.down.front().is_some_and(|wire| !partial(wire))) {
            if !self.deliver(id, true) {
                return;
            }
        }
        if self.deliver(id, true) {
            self.hit(Fault::CutInMessage);
            self.cut(id);
        }
    }

    /// What no transport does, and what must not get through all the same.
    fn tamper(&mut self, dice: &mut Dice) {
        let Some(id) = self.some_line(dice) else { return };
        let Some(line) = self.lines.get_mut(&id) else { return };
        let up = dice.percent(50);
        let wire = if up { &mut line.up } else { &mut line.down };
        let data = |wire: &Wire| matches!(wire, Wire::Frame(Frame { frame: Some(F::Data(_)) }));
        let Some(at) = wire.iter().position(data) else { return };
        let fault = match dice.below(4) {
            0 => {
                let Wire::Frame(frame) = &wire[at] else { return };
                let copy = Wire::Frame(frame.clone());
                wire.insert(at + 1, copy);
                Fault::Duplicate
            }
            1 => {
                let Some(next) = wire.iter().skip(at + 1).position(data) else { return };
                wire.swap(at, at + 1 + next);
                Fault::Reorder
            }
            2 => {
                let Wire::Frame(frame) = &wire[at] else { return };
                let bytes = frame.encode_to_vec();
                let Err(why) = Frame::decode(&bytes[..dice.below(bytes.len())]) else { return };
                // Nothing more is read of a stream that is broken.
                wire.truncate(at);
                wire.push_back(Wire::Broken(why.to_string()));
                let swallows = if up { &mut line.swallows_up } else { &mut line.swallows_down };
                *swallows = true;
                Fault::Truncated
            }
            _ => {
                // With what comes after it: a gap.
                if wire.iter().filter(|it| data(it)).count() < 2 {
                    return;
                }
                wire.remove(at);
                Fault::Drop
            }
        };
        line.tampered = true;
        line.disturbed = true;
        self.hit(fault);
    }

    /// A peer of another version sends what is not known here, in the place of a message.
    fn unknown(&mut self, dice: &mut Dice) {
        let mut messages = Vec::new();
        for (id, line) in &self.lines {
            let up = line.up.iter().enumerate().map(|(at, wire)| (true, at, wire));
            let down = line.down.iter().enumerate().map(|(at, wire)| (false, at, wire));
            for (up, at, wire) in up.chain(down) {
                let Wire::Frame(Frame { frame: Some(F::Data(data)) }) = wire else { continue };
                let Some(Payload::Envelope(encoded)) = &data.payload else { continue };
                let Ok(envelope) = Envelope::decode(encoded.clone()) else { continue };
                let fault = match (&envelope.body, data.class()) {
                    (None | Some(Body::GapMarker(_) | Body::CallReply(_)), _) => continue,
                    (_, TrafficClass::State) if up => Fault::UnknownReport,
                    (_, TrafficClass::State) => Fault::UnknownState,
                    (_, TrafficClass::Event) => Fault::UnknownEvent,
                    _ => Fault::UnknownCall,
                };
                messages.push((*id, up, at, envelope, fault));
            }
        }
        if messages.is_empty() {
            return;
        }
        let (id, up, at, envelope, fault) = messages.swap_remove(dice.below(messages.len()));
        let Some(line) = self.lines.get_mut(&id) else { return };
        let wire = if up { &mut line.up } else { &mut line.down };
        // The receiver's decoder leaves a body it does not know unset. The sender is told 501 and gives it up.
        let Envelope { id, priority, timeout_ms, .. } = envelope;
        let unknown = Envelope { id: id.clone(), priority, timeout_ms, ..Envelope::default() };
        if let Some(Wire::Frame(Frame { frame: Some(F::Data(data)) })) = wire.get_mut(at) {
            data.payload = Some(Payload::Envelope(unknown.encode_to_vec().into()));
        }
        line.unknown = true;
        if up && fault == Fault::UnknownEvent {
            self.refused.insert(id);
        }
        self.hit(fault);
    }
}
