//! What the cloud does: the shell around EdgeController's and CloudHub's decisions, with the API server behind them.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    time::Duration,
};

use kubeedge_actors::{
    edgecontroller::{
        desired::{Desired, Effect},
        events::{events_dropped, update},
        ownership::may_tell,
        references::ConfigKey,
        sessions::Sessions,
        writes::{Refused, Request, Step, Write},
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
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::{
    api::{Kind, Place, place_of},
    dice::Dice,
    faults::Fault,
    world::World,
};

/// A watch at a place of the log.
#[derive(Clone, Copy, Debug)]
pub struct Watch {
    incarnation: u64,
    at: usize,
}

/// For EdgeController.
enum Mail {
    Changed(NodeSessionChanged),
    Apply { line: usize, epoch: u64, serial: u64, class: Class, seq: u64, envelope: Box<Envelope> },
    Desired(usize),
    Recheck,
}

/// A report on its way into the API server.
struct Writing {
    write: Write,
    request: Request,
    ended: CancellationToken,
    line: usize,
    class: Class,
    seq: u64,
    serial: u64,
}

/// cloudcore while it lives.
pub struct Cloud {
    pub desired: Desired,
    sessions: Sessions,
    registry: Registry,
    /// CloudHub's sessions, by node.
    live: BTreeMap<&'static str, usize>,
    pod_watch: Option<Watch>,
    config_watches: BTreeMap<ConfigKey, Option<Watch>>,
    mail: VecDeque<Mail>,
    questions: Vec<(usize, Duration)>,
    writing: Vec<Writing>,
    listed: bool,
    started: Duration,
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

fn node_name(node: &str) -> NodeName {
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

    fn cloud_handles(&mut self, id: usize, output: Output) {
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
                self.counts.saw("a session was established");
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
            Output::Send(_)
            | Output::NeedInventory(_)
            | Output::Completed(_)
            | Output::Bookmark(_)
            | Output::Heartbeat { .. }
            | Output::Settled { .. }
            | Output::Coalesced { .. }
            | Output::OpenStreams => {}
        }
    }

    fn admitted(&mut self, id: usize, node: &'static str, answer: Admission) {
        let input = match answer {
            Admission::Refused(goodbye) => {
                if goodbye.reason() == GoodbyeReason::NameTaken {
                    self.counts.saw("another box under a node's name was refused");
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
                    crate::promise!(
                        same_box || !alive,
                        "P-ONE-BOX",
                        "another box took {node} over from a live session"
                    );
                    if let Some(line) = self.lines.get_mut(&old) {
                        line.inputs.push_back(Input::Close(replaced()));
                        line.disturbed = true;
                    }
                    self.counts.saw("the newest hello of a box replaced its old session");
                }
                assert!(replaces.is_none_or(|old| old < epoch));
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

    fn carry(&mut self, effects: Vec<Effect>) {
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

    fn note_needs(&mut self, upsert: &ObjectUpsert) {
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

    fn recheck_all(&mut self) {
        let live: Vec<usize> = self.cloud.iter().flat_map(|cloud| cloud.live.values().copied()).collect();
        for id in live {
            if let Some(line) = self.lines.get_mut(&id) {
                line.inputs.push_back(Input::Recheck);
            }
            self.settle(id);
        }
    }

    /// A watch of the cloud brings its next piece of news. `stale`: a list may be older than what is known.
    pub fn watch(&mut self, dice: &mut Dice, stale: bool) -> bool {
        let now = self.now;
        let api = &self.apis[self.which];
        let Some(cloud) = &mut self.cloud else { return false };
        if api.lists_fail || cloud.slow_until > now {
            return false;
        }
        let clock = now - cloud.started;
        let which = dice.below(cloud.config_watches.len() + 2);
        let config = which.checked_sub(2).and_then(|at| cloud.config_watches.keys().nth(at).cloned());
        let wanted = config.as_ref().map(|key| place_of(&key.name));
        let watch = match &config {
            Some(key) => cloud.config_watches.get(key).copied().flatten(),
            None => cloud.pod_watch,
        };
        let concerns = |place: &Place| wanted.map_or(place.0 == Kind::Pod, |wanted| wanted == *place);
        let (watch, effects) = match watch {
            Some(watch) if watch.incarnation != api.incarnation => (None, Vec::new()),
            None => {
                let (objects, version, at) = api.list(stale.then(|| dice.below(1000)));
                if stale && version < api.version {
                    self.counts.hit(Fault::StaleList);
                }
                let found = objects.iter().filter(|(place, _)| concerns(place)).map(|(place, it)| it.value(*place));
                let effects = match &config {
                    Some(key) => cloud.desired.config_listed(key, found.into_iter().next(), version),
                    None => cloud.desired.pods_replaced(clock, found.collect(), version),
                };
                (Some(Watch { incarnation: api.incarnation, at }), effects)
            }
            Some(mut watch) => {
                let next = (watch.at..api.log.len()).find(|at| concerns(&api.log[*at].place));
                watch.at = next.map_or(api.log.len(), |at| at + 1);
                let effects = match (next.map(|at| &api.log[at]), &config) {
                    (None, None) => {
                        cloud.desired.pods_bookmark(api.version);
                        Vec::new()
                    }
                    (None, Some(key)) => {
                        cloud.desired.config_bookmark(key, api.version);
                        Vec::new()
                    }
                    (Some(change), None) if change.gone => {
                        let mut object = change.object.clone();
                        object.version = change.version;
                        cloud.desired.pod_deleted(&object.value(change.place))
                    }
                    (Some(change), None) => cloud.desired.pod_applied(clock, change.object.value(change.place)),
                    (Some(change), Some(key)) => {
                        let object = (!change.gone).then(|| change.object.value(change.place));
                        cloud.desired.config_known(key, object, change.version)
                    }
                };
                (Some(watch), effects)
            }
        };
        match config {
            Some(key) => drop(cloud.config_watches.insert(key, watch)),
            None => cloud.pod_watch = watch,
        }
        self.carry(effects);
        let Some(cloud) = &mut self.cloud else { return true };
        if cloud.desired.version() > 0 && !std::mem::replace(&mut cloud.listed, true) {
            cloud.mail.push_back(Mail::Recheck);
        }
        self.answer_questions();
        true
    }

    /// A watch is told that it is too old.
    pub fn break_watches(&mut self) {
        if let Some(cloud) = &mut self.cloud {
            cloud.pod_watch = None;
            cloud.config_watches.values_mut().for_each(|watch| *watch = None);
        }
    }

    pub fn controller_ticks(&mut self) {
        let now = self.now;
        if let Some(cloud) = &mut self.cloud {
            let clock = now - cloud.started;
            let effects = cloud.desired.tick(clock);
            self.carry(effects);
        }
        self.answer_questions();
    }

    fn answer_questions(&mut self) {
        let now = self.now;
        let Some(cloud) = &mut self.cloud else { return };
        let mut answers: Vec<(usize, DesiredState)> = Vec::new();
        let lines = &self.lines;
        let desired = &cloud.desired;
        cloud.questions.retain(|(id, until)| {
            let Some(line) = lines.get(id) else { return false };
            let ready = desired.is_complete(line.node) || *until <= now;
            if ready {
                answers.push((*id, desired.snapshot(line.node)));
            }
            !ready
        });
        for (id, state) in answers {
            let complete = !state.kinds.is_empty() && state.kinds.iter().all(|kind| kind.complete);
            for upsert in state.kinds.iter().flat_map(|kind| &kind.objects) {
                self.note_needs(upsert);
            }
            let Some(line) = self.lines.get_mut(&id) else { continue };
            if complete {
                line.ask_again_after = Duration::from_secs(5);
            } else {
                line.ask_again = Some(now + line.ask_again_after);
                line.ask_again_after = (line.ask_again_after * 2).min(Duration::from_secs(300));
                self.counts.hit(Fault::ListPartial);
            }
            self.note(|| {
                let kinds = state.kinds.iter().map(|kind| {
                    let names: Vec<_> = (kind.objects.iter().filter_map(|it| it.object.as_ref()))
                        .map(|it| format!("{}@{}", it.uid, it.resource_version))
                        .collect();
                    let complete = if kind.complete { "all" } else { "some" };
                    format!("{complete} as of {}: {names:?}", kind.as_of)
                });
                format!("connection {id} is told what is desired: {}", kinds.collect::<Vec<_>>().join("; "))
            });
            let Some(line) = self.lines.get_mut(&id) else { continue };
            line.inputs.push_back(Input::DesiredKnown(state));
            self.settle(id);
        }
    }

    /// EdgeController handles the next message.
    pub fn controller_handles(&mut self) -> bool {
        let now = self.now;
        let Some(cloud) = &mut self.cloud else { return false };
        if cloud.slow_until > now {
            return false;
        }
        match cloud.mail.pop_front() {
            None => return false,
            Some(Mail::Changed(change)) => drop(cloud.sessions.changed(&change)),
            Some(Mail::Desired(id)) => {
                cloud.questions.push((id, now + Duration::from_secs(5)));
                self.answer_questions();
            }
            Some(Mail::Recheck) => {
                self.note(|| "every node is to be compared".into());
                self.recheck_all();
            }
            Some(Mail::Apply { line, epoch, serial, class, seq, envelope }) => {
                let node = self.lines.get(&line).map_or("gone", |line| line.node);
                let settled = match cloud.sessions.of(node, epoch) {
                    _ if node == "gone" => return true,
                    None => Some(Settled::rejected(503, "a newer session of this node has taken over")),
                    Some(ended) => self.write(node, line, class, seq, serial, *envelope, ended),
                };
                if let Some(settled) = settled {
                    self.settled(line, class, seq, settled);
                }
            }
        }
        true
    }

    fn settled(&mut self, line: usize, class: Class, seq: u64, settled: Settled) {
        if let Some(line) = self.lines.get_mut(&line)
            && line.cloud.is_some()
        {
            line.inputs.push_back(Input::Settle { class, seq, settled });
        }
        self.settle(line);
    }

    #[allow(clippy::too_many_arguments)] // one call
    fn write(
        &mut self,
        node: &'static str,
        line: usize,
        class: Class,
        seq: u64,
        serial: u64,
        envelope: Envelope,
        ended: CancellationToken,
    ) -> Option<Settled> {
        let node = node_name(node);
        let id = envelope.id.clone();
        let write = match envelope.body {
            Some(Body::StatusUpdate(update)) => Write::status(&node, &update, None),
            Some(Body::PodTerminated(pod)) => Write::terminated(&node, &pod),
            Some(Body::KubernetesEvent(event)) => {
                let json = event.event.map(|object| object.json).unwrap_or_default();
                let event: Value = serde_json::from_slice(&json).expect("the model's events are JSON");
                assert!(may_tell(node.as_str(), &event, |_, _| None).is_ok());
                return Some(self.event(event));
            }
            Some(Body::GapMarker(gap)) => {
                return Some(self.event(events_dropped(&node, &id, &gap, envelope.time_unix_ms)));
            }
            other => panic!("the cloud was sent {other:?}"),
        };
        let mut write = match write {
            Ok(write) => write,
            Err(settled) => return Some(settled),
        };
        let cloud = self.cloud.as_mut()?;
        match write.begin(cloud.desired.bound(write.key()).as_ref()) {
            Step::Done(settled) => Some(settled),
            Step::Ask(request) => {
                cloud.writing.push(Writing { write, request, ended, line, class, seq, serial });
                None
            }
        }
    }

    /// An Event is made or brought up to date, as `Upstream::event` does it.
    fn event(&mut self, told: Value) -> Settled {
        let api = &mut self.apis[self.which];
        if let Some(code) = api.refuses.take() {
            return Refused { code, message: "as the test says".into() }.settled();
        }
        let name = told["metadata"]["name"].as_str().expect("an event has a name").to_owned();
        match api.events.get_mut(&name) {
            None => {
                api.events.insert(name, told);
                Settled::applied()
            }
            Some(existing) => match update(existing, &told) {
                None => Settled::superseded(),
                Some(patch) => {
                    for field in ["count", "lastTimestamp", "message"] {
                        existing[field] = patch[field].clone();
                    }
                    Settled::applied()
                }
            },
        }
    }

    /// The API server carries out a request of the cloud's, and the cloud hears the answer.
    pub fn api_handles(&mut self, which: usize) -> bool {
        let Some(cloud) = &mut self.cloud else { return false };
        if cloud.writing.is_empty() {
            return false;
        }
        let mut writing = cloud.writing.swap_remove(which % cloud.writing.len());
        if writing.ended.is_cancelled() {
            // The future is dropped; what it had asked for may still be on its way.
            self.late.push((self.which, writing.request, writing.serial));
            return true;
        }
        let answer = self.apis[self.which].carry_out(&writing.request, writing.serial);
        self.note(|| {
            format!("API server: {:?} -> {:?}", writing.request, answer.as_ref().map(|_| ()).map_err(|it| it.code))
        });
        match writing.write.next(answer) {
            Step::Ask(request) => {
                writing.request = request;
                if let Some(cloud) = &mut self.cloud {
                    cloud.writing.push(writing);
                }
            }
            Step::Done(settled) => {
                self.counts.saw("a report was settled by the API server");
                self.settled(writing.line, writing.class, writing.seq, settled);
            }
        }
        true
    }

    /// A request whose asker no longer waits arrives after all, or not.
    pub fn late_arrives(&mut self, arrives: bool) {
        if let Some((which, request, serial)) = self.late.pop()
            && arrives
        {
            self.hit(Fault::LateWrite);
            // Nobody hears the answer.
            drop(self.apis[which].carry_out(&request, serial));
        }
    }

    // ---- events for nodes

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

    fn down_event_settled(&mut self, envelope: &Envelope, settled: &Settled) {
        let Some(event) = self.down_events.get_mut(&envelope.id) else { return };
        event.line = None;
        if settled.code == 0 {
            event.done = true;
            let took = self.boxes.iter().any(|it| it.node == event.node && it.effects.contains_key(&envelope.id));
            crate::promise!(took, "P-ACKED-IS-KEPT", "an event for {} is acknowledged and had no effect", event.node);
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

fn changed(node: &str, epoch: u64, connected: bool) -> NodeSessionChanged {
    NodeSessionChanged { node: node.into(), epoch, connected, reason: String::new() }
}
