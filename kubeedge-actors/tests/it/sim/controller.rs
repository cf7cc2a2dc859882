//! What EdgeController does: the shell around its decisions, between its watches, nodes' questions and the API server.

use std::time::Duration;

use bytes::Bytes;
use kubeedge_actors::{
    edgecontroller::{
        events::{events_dropped, update},
        ownership::may_tell,
        writes::{Refused, Step, Write},
    },
    link::session::{Class, Input},
};
use kubeedge_proto::v1::{DesiredState, Envelope, Settled, envelope::Body};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::cloud::{Mail, Watch, Writing, node_name};
use super::{
    api::{Kind, Place, place_of},
    dice::Dice,
    faults::{Fault, Good},
    world::World,
};

/// Whether nobody tries again what was answered so.
pub fn is_for_good(settled: &Settled) -> bool {
    settled.code != 0 && !settled.is_for_now()
}

impl World {
    pub fn recheck_all(&mut self) {
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
            if api.lists_fail {
                self.meets(Fault::ListFails, 0);
            }
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

    pub fn answer_questions(&mut self) {
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
            if !cloud.mail.is_empty() {
                self.meets(Fault::SlowController, 0);
            }
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

    pub fn settled(&mut self, line: usize, class: Class, seq: u64, settled: Settled) {
        if let Some(line) = self.lines.get_mut(&line)
            && line.cloud.is_some()
        {
            line.inputs.push_back(Input::Settle { class, seq, settled });
        }
        self.settle(line);
    }

    #[allow(clippy::too_many_arguments)] // one call
    pub fn write(
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
                return Some(self.event(id, event));
            }
            Some(Body::GapMarker(gap)) => {
                let event = events_dropped(&node, &id, &gap, envelope.time_unix_ms);
                return Some(self.event(id, event));
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
    pub fn event(&mut self, id: Bytes, told: Value) -> Settled {
        let refused = self.refusal();
        let api = &mut self.apis[self.which];
        let name = told["metadata"]["name"].as_str().expect("an event has a name").to_owned();
        match refused {
            None => {}
            // It is there, and is brought up to date.
            Some(refused) if refused.code == 409 && api.events.contains_key(&name) => {}
            Some(refused) if refused.code == 409 => {
                self.hit(Fault::EventRefusedForNow);
                return Settled::rejected(503, "the event has expired in between: it is to be told again");
            }
            Some(refused) => {
                let settled = refused.settled();
                if is_for_good(&settled) {
                    self.hit(Fault::EventRefused);
                    self.refused.insert(id);
                } else {
                    self.hit(Fault::EventRefusedForNow);
                }
                return settled;
            }
        }
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

    /// What the API server has against a write, when somebody hears of it.
    fn refusal(&mut self) -> Option<Refused> {
        let (code, fault) = self.api().refuses.take()?;
        self.hit(fault);
        Some(Refused { code, message: "as the test says".into() })
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
        let answer = match self.refusal() {
            Some(refused) => Err(refused),
            None => self.apis[self.which].carry_out(&writing.request, writing.serial),
        };
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
                self.counts.saw(Good::Settled);
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
}
