//! What the cloud does: the shell around EdgeController's and CloudHub's decisions, with the API server behind them.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    time::Duration,
};

use kubeedge_actors::{
    edgecontroller::{
        desired::{Desired, Effect},
        references::ConfigKey,
        sessions::Sessions,
        writes::{Request, Write},
    },
    link::{
        registry::{Admission, Registry, replaced},
        session::{Class, Input, Output},
    },
};
use kubeedge_proto::{
    NodeName, resource,
    v1::{
        CallReply, DesiredState, Envelope, GoodbyeReason, NodeSessionChanged, ObjectUpsert, Settled, TrafficClass,
        envelope::Body,
    },
};
use tokio_util::sync::CancellationToken;

use super::{
    faults::{Fault, Good},
    world::World,
};

/// A watch at a place of the log.
#[derive(Clone, Copy, Debug)]
pub struct Watch {
    pub incarnation: u64,
    pub at: usize,
}

/// For EdgeController.
pub enum Mail {
    Changed(NodeSessionChanged),
    Apply { line: usize, epoch: u64, serial: u64, class: Class, seq: u64, envelope: Box<Envelope> },
    Desired(usize),
    Recheck,
}

/// A report on its way into the API server.
pub struct Writing {
    pub write: Write,
    pub request: Request,
    pub ended: CancellationToken,
    pub line: usize,
    pub class: Class,
    pub seq: u64,
    pub serial: u64,
}

/// cloudcore while it lives.
pub struct Cloud {
    pub desired: Desired,
    pub sessions: Sessions,
    pub registry: Registry,
    /// CloudHub's sessions, by node.
    pub live: BTreeMap<&'static str, usize>,
    pub pod_watch: Option<Watch>,
    pub config_watches: BTreeMap<ConfigKey, Option<Watch>>,
    pub mail: VecDeque<Mail>,
    pub questions: Vec<(usize, Duration)>,
    pub writing: Vec<Writing>,
    pub listed: bool,
    pub started: Duration,
    pub slow_until: Duration,
}

impl Cloud {
    pub fn new(now: Duration) -> Self {
        Self {
            desired: Desired::default(),
            sessions: Sessions::default(),
            registry: Registry::new(10),
            live: BTreeMap::new(),
            pod_watch: None,
            config_watches: BTreeMap::new(),
            mail: VecDeque::new(),
            questions: Vec::new(),
            writing: Vec::new(),
            listed: false,
            started: now,
            slow_until: Duration::ZERO,
        }
    }

    /// Whether every watch has told all there is.
    pub fn watches_are_current(&self, log: usize, incarnation: u64) -> bool {
        let current = |watch: &Watch| watch.incarnation == incarnation && watch.at >= log;
        self.pod_watch.as_ref().is_some_and(current)
            && self.config_watches.values().all(|watch| watch.as_ref().is_some_and(current))
    }
}

pub fn node_name(node: &str) -> NodeName {
    node.parse().expect("a node's name")
}

impl World {
    /// What CloudHub's session task does with its outputs. True when it did something.
    pub fn cloud_takes(&mut self, id: usize) -> bool {
        let mut moved = false;
        loop {
            let now = self.now;
            let Some(line) = self.lines.get_mut(&id) else { return moved };
            if let Some(input) = line.inputs.pop_front() {
                moved = true;
                line.give(false, now, Some(input));
                continue;
            }
            let Some(output) = line.cloud.as_mut().and_then(|end| end.outputs.pop_front()) else { return moved };
            moved = true;
            self.cloud_handles(id, output);
        }
    }

    pub fn cloud_handles(&mut self, id: usize, output: Output) {
        let Some(line) = self.lines.get_mut(&id) else { return };
        let (node, epoch, serial) = (line.node, line.epoch, line.serial);
        let Some(cloud) = &mut self.cloud else { return };
        match output {
            Output::HelloReceived(hello) => {
                let answer = cloud.registry.admit(&node_name(node), &hello);
                self.admitted(id, node, answer);
            }
            Output::Established(_) => {
                let epoch = epoch.unwrap_or_default();
                cloud.mail.push_back(Mail::Changed(changed(node, epoch, true)));
                self.counts.saw(Good::Established);
            }
            Output::NeedDesired => cloud.mail.push_back(Mail::Desired(id)),
            Output::Deliver { class: Class::Call, seq, .. } => {
                line.inputs.push_back(Input::Reply { seq, reply: CallReply::default() });
            }
            Output::Deliver { class, seq, envelope } => {
                let epoch = epoch.unwrap_or_default();
                cloud.mail.push_back(Mail::Apply { line: id, epoch, serial, class, seq, envelope });
            }
            Output::Settled { class: Class::Event, envelope, settled } => self.down_event_settled(&envelope, &settled),
            Output::Refused { envelope, why } if envelope.class() == Some(TrafficClass::Event) => {
                self.down_event_settled(&envelope, &why.settled());
            }
            Output::Refused { .. } => self.cloud_end_over(id),
            Output::Reply { id, .. } | Output::CallFailed { id, .. } => self.call_ended(&id),
            Output::Closed(closed) => {
                let line = &self.lines[&id];
                self.check_closed(line, false, &closed);
                self.cloud_end_over(id);
            }
            Output::Send(..)
            | Output::NeedInventory(_)
            | Output::Completed(_)
            | Output::Bookmark(_)
            | Output::Heartbeat { .. }
            | Output::Settled { .. }
            | Output::Coalesced { .. }
            | Output::OpenStreams
            | Output::RoundTrip(_) => {}
        }
    }

    pub fn admitted(&mut self, id: usize, node: &'static str, answer: Admission) {
        let input = match answer {
            Admission::Refused(goodbye) => {
                if goodbye.reason() == GoodbyeReason::NameTaken {
                    self.counts.saw(Good::NameTaken);
                }
                if goodbye.reason() == GoodbyeReason::Replaced {
                    let holder = self.cloud.as_ref().and_then(|cloud| cloud.live.get(node));
                    let newer = holder.is_some_and(|it| *it > id && self.lines[it].box_ == self.lines[&id].box_);
                    let counts = self.lines[&id].rises;
                    promise!(
                        newer || !counts,
                        "P-ONE-EPOCH-HOLDS",
                        "the newest hello of {node} was refused as an older one"
                    );
                }
                Input::Close(goodbye)
            }
            Admission::Admitted { epoch, replaces } => {
                let Some(cloud) = &mut self.cloud else { return };
                if let Some(old) = cloud.live.insert(node, id)
                    && let Some(line) = self.lines.get_mut(&old)
                {
                    let same_box = line.box_ == self.lines[&id].box_;
                    let alive = self.lines[&old].cloud.is_some();
                    promise!(same_box || !alive, "P-ONE-BOX", "another box took {node} over from a live session");
                    let newer = old < id || !self.lines[&old].rises;
                    promise!(newer, "P-ONE-EPOCH-HOLDS", "an older hello of {node} took over from a newer one");
                    if let Some(line) = self.lines.get_mut(&old) {
                        line.inputs.push_back(Input::Close(replaced()));
                        line.disturbed = true;
                    }
                    self.counts.saw(Good::Replaced);
                }
                let rises = replaces.is_none_or(|old| old < epoch);
                promise!(rises, "P-ONE-EPOCH-HOLDS", "epoch {epoch} of {node} came after {replaces:?}");
                self.serial += 1;
                let (serial, api) = (self.serial, &self.apis[self.which]);
                let cluster_uid = api.cluster.clone();
                let resource_version = self.cloud.as_ref().map_or(0, |cloud| cloud.desired.version());
                let Some(line) = self.lines.get_mut(&id) else { return };
                line.epoch = Some(epoch);
                line.serial = serial;
                Input::Admit { epoch, cluster_uid, resource_version }
            }
        };
        if let Some(line) = self.lines.get_mut(&id) {
            line.inputs.push_back(input);
        }
    }

    /// The session's task at the cloud is over.
    pub fn cloud_end_over(&mut self, id: usize) {
        let Some(line) = self.lines.get_mut(&id) else { return };
        let (node, epoch) = (line.node, line.epoch.take());
        line.close(false);
        line.inputs.clear();
        line.ask_again = None;
        self.end_calls(id, false);
        for event in self.down_events.values_mut().filter(|event| event.line == Some(id)) {
            event.line = None;
        }
        let (Some(cloud), Some(epoch)) = (&mut self.cloud, epoch) else { return };
        for writing in cloud.writing.extract_if(.., |writing| writing.line == id) {
            self.late.push((self.which, writing.request, writing.serial));
        }
        if !cloud.registry.release(&node_name(node), epoch) {
            return;
        }
        if cloud.live.get(node) == Some(&id) {
            cloud.live.remove(node);
        }
        cloud.mail.push_back(Mail::Changed(changed(node, epoch, false)));
    }

    // ---- EdgeController

    pub fn carry(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            let (node, body) = match effect {
                Effect::Watch(key) => {
                    if let Some(cloud) = &mut self.cloud {
                        cloud.config_watches.insert(key, None);
                    }
                    continue;
                }
                Effect::Unwatch(key) => {
                    if let Some(cloud) = &mut self.cloud {
                        cloud.config_watches.remove(&key);
                    }
                    continue;
                }
                Effect::Compare => {
                    self.recheck_all();
                    continue;
                }
                Effect::Upsert(node, upsert) => {
                    self.note_needs(&upsert);
                    (node, Body::ObjectUpsert(upsert))
                }
                Effect::Tombstone(node, gone) => (node, Body::ObjectTombstone(gone)),
            };
            let envelope = self.envelope(body);
            let Some(id) = self.cloud.as_ref().and_then(|cloud| cloud.live.get(node.as_str()).copied()) else {
                continue;
            };
            if let Some(line) = self.lines.get_mut(&id) {
                line.inputs.push_back(Input::Submit(Box::new(envelope)));
            }
            self.settle(id);
        }
    }

    pub fn note_needs(&mut self, upsert: &ObjectUpsert) {
        let Some(object) = upsert.object.as_ref().filter(|object| object.r#type == Some(resource::pods())) else {
            return;
        };
        let names: BTreeSet<String> =
            upsert.needs.iter().filter_map(|needed| Some(needed.key.as_ref()?.name.clone())).collect();
        let ways = self.needed.entry((object.uid.clone(), object.version())).or_default();
        if !ways.contains(&names) {
            ways.push(names);
        }
    }

    pub fn send_down_events(&mut self) {
        let ids: Vec<_> =
            self.down_events.iter().filter(|(_, it)| !it.done && it.line.is_none()).map(|(id, _)| id.clone()).collect();
        for id in ids {
            let event = &self.down_events[&id];
            let Some(line) = self.cloud.as_ref().and_then(|cloud| cloud.live.get(event.node).copied()) else {
                continue;
            };
            let body = event.body.clone();
            let envelope = Envelope {
                id: id.clone(),
                priority: body.default_priority().into(),
                body: Some(body),
                ..Envelope::default()
            };
            if let Some(event) = self.down_events.get_mut(&id) {
                event.line = Some(line);
            }
            if let Some(line) = self.lines.get_mut(&line) {
                line.inputs.push_back(Input::Submit(Box::new(envelope)));
            }
            self.settle(line);
        }
    }

    pub fn down_event_settled(&mut self, envelope: &Envelope, settled: &Settled) {
        let Some(event) = self.down_events.get_mut(&envelope.id) else { return };
        event.line = None;
        if settled.code == 0 {
            event.done = true;
            let took = self.boxes.iter().any(|it| it.node == event.node && it.effects.contains_key(&envelope.id));
            promise!(took, "P-ACKED-IS-KEPT", "an event for {} is acknowledged and had no effect", event.node);
        }
    }

    // ---- restarts

    /// cloudcore is gone, and begins anew. Requests it had made may still arrive.
    pub fn restart_cloud(&mut self) {
        for id in self.line_ids() {
            if let Some(line) = self.lines.get_mut(&id) {
                line.disturbed = true;
                line.epoch = None;
                line.close(false);
                line.inputs.clear();
                line.ask_again = None;
            }
            self.end_calls(id, false);
        }
        for event in self.down_events.values_mut() {
            event.line = None;
        }
        if let Some(cloud) = self.cloud.take() {
            if !cloud.writing.is_empty() {
                self.hit(Fault::WriteUnheard);
            }
            let which = self.which;
            self.late.extend(cloud.writing.into_iter().map(|writing| (which, writing.request, writing.serial)));
        }
        self.cloud = Some(Cloud::new(self.now));
        self.poll_all();
    }

    /// EdgeController alone is built again: the sessions stand, what it knew is gone.
    pub fn rebuild_controller(&mut self) {
        let now = self.now;
        let Some(cloud) = &mut self.cloud else { return };
        let old = std::mem::replace(cloud, Cloud::new(now));
        cloud.registry = old.registry;
        cloud.live = old.live;
        // Its queue outlives it; who asked and waits hears that it has failed.
        cloud.mail = old.mail;
        let mut failed: HashMap<usize, Vec<(Class, u64)>> = HashMap::new();
        for writing in old.writing {
            self.late.push((self.which, writing.request, writing.serial));
            failed.entry(writing.line).or_default().push((writing.class, writing.seq));
        }
        let questions: Vec<usize> = old.questions.into_iter().map(|(id, _)| id).collect();
        for (id, messages) in failed {
            for (class, seq) in messages {
                self.settled(id, class, seq, Settled::rejected(503, "EdgeController: closed"));
            }
        }
        for id in questions {
            if let Some(line) = self.lines.get_mut(&id) {
                line.inputs.push_back(Input::DesiredKnown(DesiredState::default()));
                line.ask_again = Some(now + line.ask_again_after);
            }
            self.settle(id);
        }
    }
}

pub fn changed(node: &str, epoch: u64, connected: bool) -> NodeSessionChanged {
    NodeSessionChanged { node: node.into(), epoch, connected, reason: String::new() }
}
