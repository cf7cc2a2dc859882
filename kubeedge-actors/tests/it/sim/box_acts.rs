//! What a box does: the shell around MetaManager, EdgeHub and Edged, with the disk between decision and answer.

use std::time::Duration;

use bytes::Bytes;
use kubeedge_actors::{
    edgehub::{
        outbox::ledger::{Next, Written},
        reports::FETCH,
        session_refused,
    },
    link::session::{Class, Input, Output},
    metamanager::{reports::ReportKey, state::Instead},
};
use kubeedge_proto::{
    resource,
    v1::{
        CallReply, CompleteInventory, Envelope, InventoryComplete, KubeObject, KubernetesEvent, ObjectKey,
        PodTerminated, ReportSettled, ReportStatus, SessionStarted, Settled, StatusUpdate, TrafficClass,
        envelope::Body, report_status::Report,
    },
};
use serde_json::json;

use super::{
    api::{Kind, NAMESPACE},
    controller::is_for_good,
    edge::{Box_, News, Rows, Then, object_key},
    faults::{Fault, Good},
    world::World,
};

impl World {
    /// EdgeHub handles what its session says, one after the other. True when it handled something.
    pub fn edge_takes(&mut self, id: usize) -> bool {
        let mut moved = false;
        loop {
            let Some(line) = self.lines.get_mut(&id) else { return moved };
            let box_ = line.box_;
            let Some(edge) = &self.boxes[box_].edge else { return moved };
            if edge.hub.connection != Some(id) || edge.hub.waits {
                return moved;
            }
            if self.boxes[box_].slow_until > self.now {
                if line.edge.as_ref().is_some_and(|end| !end.outputs.is_empty()) {
                    self.meets(Fault::SlowEdge, box_);
                }
                return moved;
            }
            let Some(output) = line.edge.as_mut().and_then(|end| end.outputs.pop_front()) else { return moved };
            moved = true;
            self.edge_handles(box_, id, output);
        }
    }

    fn edge_handles(&mut self, box_: usize, id: usize, output: Output) {
        let Some(edge) = &mut self.boxes[box_].edge else { return };
        match output {
            Output::Established(session) => {
                edge.hub.cluster_uid = session.cluster_uid.clone();
                let message = SessionStarted { epoch: session.epoch, cluster_uid: session.cluster_uid };
                match edge.meta.state.session_started(&message) {
                    Ok(record) => {
                        edge.hub.waits = true;
                        self.boxes[box_].commit(Rows::Box(record), Then::SessionKept(id));
                    }
                    Err(why) => self.refuse_session(box_, id, &why),
                }
            }
            Output::Deliver { class: Class::Call, seq, .. } => {
                self.answer(id, Input::Reply { seq, reply: CallReply::default() });
            }
            Output::Deliver { class: Class::Event, seq, envelope } => match edge.hub.received.begin(&envelope.id) {
                Err(settled) => self.answer(id, Input::Settle { class: Class::Event, seq, settled }),
                Ok(()) => self.take_event(box_, id, seq, &envelope),
            },
            Output::Deliver { class: Class::State, seq, envelope } => self.apply_state(box_, id, seq, envelope.body),
            Output::NeedInventory(type_) => {
                let entries = edge.meta.state.index.inventory(&type_);
                self.answer(id, Input::InventoryKnown { type_, entries });
            }
            Output::Completed(complete) => {
                let message =
                    CompleteInventory { complete: Some(complete.clone()), cluster_uid: edge.hub.cluster_uid.clone() };
                if self.talks {
                    println!("      box {box_}: {complete:?}");
                }
                if let Ok(record) = edge.meta.state.complete(message) {
                    edge.hub.waits = true;
                    self.check_complete(box_, &complete);
                    self.boxes[box_].commit(Rows::Kind(record), Then::Completed(id));
                }
            }
            Output::Settled { class: Class::Event, envelope, settled } => self.event_settled(box_, &envelope, &settled),
            Output::Settled { envelope, settled, .. } => self.report_settled(box_, &envelope, settled),
            Output::Refused { envelope, why } if envelope.class() == Some(TrafficClass::Event) => {
                self.event_settled(box_, &envelope, &why.settled());
            }
            Output::Refused { envelope, .. } => {
                edge.hub.reports.forget(&envelope);
                self.fetch_later(box_);
            }
            Output::Reply { id, .. } | Output::CallFailed { id, .. } => self.call_ended(&id),
            Output::Closed(closed) => {
                let line = &self.lines[&id];
                self.check_closed(line, true, &closed);
                self.link_down(box_);
            }
            Output::Send(..)
            | Output::HelloReceived(_)
            | Output::NeedDesired
            | Output::Heartbeat { .. }
            | Output::RoundTrip(_)
            | Output::Bookmark(_)
            | Output::Coalesced { .. }
            | Output::OpenStreams => {}
        }
    }

    fn apply_state(&mut self, box_: usize, id: usize, seq: u64, body: Option<Body>) {
        if self.talks {
            match &body {
                Some(Body::ObjectUpsert(upsert)) => {
                    let object = upsert.object.clone().unwrap_or_default();
                    let (uid, version) = (object.uid, object.resource_version);
                    println!("      box {box_} is sent {uid}@{version}, current as of {}", upsert.as_of);
                }
                Some(Body::ObjectTombstone(gone)) => println!("      box {box_} is sent the end of {}", gone.uid),
                _ => {}
            }
        }
        let Some(edge) = &mut self.boxes[box_].edge else { return };
        match edge.meta.state.apply(body) {
            Ok(change) => self.boxes[box_].commit(Rows::Change(Box::new(change)), Then::Applied(id, seq)),
            Err(Instead::Later(body)) => edge.meta.waiting.push((body, id, seq)),
            Err(Instead::Answer(settled)) => {
                if self.talks {
                    println!("      box {box_} answers: {settled:?}");
                }
                if settled.code == 503 && settled.reason.contains("needs") {
                    self.counts.saw(Good::NeedsWaited);
                }
                self.answer(id, Input::Settle { class: Class::State, seq, settled });
            }
        }
    }

    /// An answer of a component goes to the session it came by, if that still stands.
    fn answer(&mut self, id: usize, input: Input) {
        let now = self.now;
        if let Some(line) = self.lines.get_mut(&id) {
            line.give(true, now, Some(input));
        }
    }

    fn refuse_session(&mut self, box_: usize, id: usize, why: &Settled) {
        self.note(|| format!("box {box_} gives the session up: {}", why.reason));
        self.counts.saw(Good::SessionRefused);
        self.answer(id, Input::Close(session_refused(why)));
        self.link_down(box_);
    }

    /// LinkDown: the connection's end here is gone.
    pub fn link_down(&mut self, box_: usize) {
        let Some(edge) = &mut self.boxes[box_].edge else { return };
        let Some(id) = edge.hub.connection.take() else { return };
        edge.hub.established = false;
        edge.hub.waits = false;
        edge.hub.reports.clear();
        edge.hub.ledger.session_over();
        self.end_calls(id, true);
        if let Some(line) = self.lines.get_mut(&id) {
            line.close(true);
        }
    }

    fn take_event(&mut self, box_: usize, id: usize, seq: u64, envelope: &Envelope) {
        let event = envelope.id.clone();
        let taken = self.heals || !self.dice.percent(10);
        let Some(edge) = &mut self.boxes[box_].edge else { return };
        if !taken {
            edge.hub.received.not_taken(&event);
            let settled = Settled::rejected(503, "nobody takes it now");
            return self.answer(id, Input::Settle { class: Class::Event, seq, settled });
        }
        let remember = edge.hub.received.remember(&event);
        let (times, may) = self.boxes[box_].effects.entry(event).or_insert((0, 1));
        *times += 1;
        promise!(times <= may, "P-EVENT-ONCE", "an event of the cloud took effect {times} times, {may} are allowed");
        self.counts.saw(Good::TookEffect);
        self.boxes[box_].commit(Rows::Received(remember), Then::Remembered(id, seq, Settled::applied()));
    }

    // ---- the disk

    /// The writer is done with the next commit.
    pub fn commits(&mut self, box_: usize) -> bool {
        let Some(commit) = self.boxes[box_].commits.pop_front() else { return false };
        let written = if self.boxes[box_].full { Err("no space left".to_owned()) } else { Ok(()) };
        if written.is_err() {
            self.meets(Fault::DiskFull, box_);
        }
        if written.is_ok() {
            if let Rows::Change(change) = &commit.rows {
                self.check_needs(box_, change);
            }
            self.boxes[box_].disk.write(&commit.rows);
        }
        if commit.life == self.boxes[box_].life {
            self.committed(box_, commit.rows, commit.then, written);
        }
        true
    }

    fn committed(&mut self, box_: usize, rows: Rows, then: Then, written: Result<(), String>) {
        let ok = written.is_ok();
        let Some(edge) = &mut self.boxes[box_].edge else { return };
        match (then, rows) {
            (Then::Applied(id, seq), Rows::Change(change)) => {
                let kept = (change.type_.clone(), change.key.clone(), change.object.clone());
                let (settled, news) = edge.meta.state.applied(*change, written);
                edge.meta.state.told(kept.0.clone(), kept.1.clone());
                if self.talks {
                    let uid = kept.2.as_ref().map_or("nothing", |object| object.uid.as_str());
                    println!("      box {box_} has on disk: {} {}: {uid} ({})", kept.0, kept.1, settled.code);
                }
                edge.news.extend(news.into_iter().map(|news| News::Changed(Box::new(news))));
                if settled.code == 0 {
                    let at = object_key(&kept.0.resource, &kept.1);
                    let there = self.boxes[box_].disk.objects.get(&at);
                    promise!(there == kept.2.as_ref(), "P-ACKED-IS-KEPT", "{at} is acknowledged and not on disk");
                    self.counts.saw(Good::Applied);
                }
                self.answer(id, Input::Settle { class: Class::State, seq, settled });
                let waiting = self.boxes[box_].edge.as_mut().map(|edge| std::mem::take(&mut edge.meta.waiting));
                for (body, id, seq) in waiting.into_iter().flatten() {
                    self.apply_state(box_, id, seq, Some(*body));
                    self.settle(id);
                }
                self.settle(id);
            }
            (Then::SessionKept(id), Rows::Box(record)) => {
                edge.hub.waits = false;
                let kept = edge.meta.state.session_kept(record, written);
                if edge.hub.connection != Some(id) {
                    return;
                }
                if kept.code != 0 {
                    self.refuse_session(box_, id, &kept);
                } else {
                    edge.hub.established = true;
                    self.fetch_reports(box_);
                    self.send_events(box_);
                }
                self.settle(id);
            }
            (Then::Completed(id), Rows::Kind(record)) => {
                edge.hub.waits = false;
                let completed = edge.meta.state.completed(&record, written);
                if completed.code == 0 && record.r#type == Some(resource::pods()) {
                    edge.news.push_back(News::PodsComplete);
                    self.counts.saw(Good::Complete);
                }
                self.settle(id);
            }
            (Then::Counted, _) => self.connect(box_),
            (Then::Reported(uid, said), Rows::Report(_, report)) => match written {
                Ok(()) => {
                    let newest = self.boxes[box_].statuses.entry(uid).or_default();
                    *newest = said.max(*newest);
                    self.fetch_reports(box_);
                }
                Err(_) => self.boxes[box_].again.extend(report.map(|report| (*report, uid, said))),
            },
            (Then::Outbox, Rows::Outbox(changes)) => {
                let written = if ok { Written::Yes } else { Written::No(507, "full".into()) };
                self.boxes[box_].answer_publishers(&written, changes);
                self.send_events(box_);
            }
            (Then::Remembered(id, seq, settled), Rows::Received(remember)) => {
                let settled = edge.hub.received.remembered(&remember.id, settled, written);
                self.answer(id, Input::Settle { class: Class::Event, seq, settled });
                self.settle(id);
            }
            _ => {}
        }
    }

    // ---- reports and events

    pub fn fetch_later(&mut self, box_: usize) {
        let at = self.now + Duration::from_secs(5);
        if let Some(edge) = &mut self.boxes[box_].edge {
            edge.hub.fetch_at.get_or_insert(at);
        }
    }

    pub fn fetch_reports(&mut self, box_: usize) {
        let Some(edge) = &mut self.boxes[box_].edge else { return };
        let (Some(id), true) = (edge.hub.connection, edge.hub.established) else { return };
        let keys = edge.meta.reports.oldest(FETCH as usize);
        let disk = &self.boxes[box_].disk;
        let fetched = keys.iter().filter_map(|key| disk.reports.get(key.bytes()).cloned()).collect();
        let Some(edge) = &mut self.boxes[box_].edge else { return };
        let bodies = edge.hub.reports.take(fetched);
        for body in bodies {
            let envelope = self.envelope(body);
            self.answer(id, Input::Submit(Box::new(envelope)));
        }
        let now = self.now;
        if let Some(line) = self.lines.get_mut(&id) {
            line.give(true, now, None);
        }
    }

    fn report_settled(&mut self, box_: usize, envelope: &Envelope, settled: Settled) {
        let Some(edge) = &mut self.boxes[box_].edge else { return };
        let rejected = is_for_good(&settled);
        let again = settled.code != 0 && !rejected;
        let Some(message) = edge.hub.reports.settled(envelope, settled) else { return };
        let ReportSettled { r#type: Some(type_), key: Some(key), uid, generation, .. } = message else { return };
        let key = ReportKey::new(&type_, &key, &uid);
        let Some(edge) = &mut self.boxes[box_].edge else { return };
        if again {
            edge.meta.reports.postpone(&key);
            self.fetch_later(box_);
        } else {
            if edge.meta.reports.settle(&key, generation) {
                self.boxes[box_].commit(Rows::Report(key, None), Then::Forgotten);
                if rejected {
                    // The cloud has said why, and nobody tries again.
                    self.boxes[box_].statuses.remove(&uid);
                    self.counts.saw(Good::Rejected);
                }
            }
            if self.boxes[box_].edge.as_ref().is_some_and(|edge| edge.hub.reports.wants_more()) {
                self.fetch_reports(box_);
            }
        }
    }

    fn event_settled(&mut self, box_: usize, envelope: &Envelope, settled: &Settled) {
        let now = self.boxes[box_].now(self.now);
        if is_for_good(settled) {
            let id = &envelope.id;
            promise!(
                self.refused.contains(id),
                "P-ACKED-IS-KEPT",
                "an event was given up, and nobody refused it: {settled:?}"
            );
            match &envelope.body {
                Some(Body::GapMarker(gap)) => self.given_up += gap.dropped_count,
                _ => drop(self.boxes[box_].promised.remove(id)),
            }
        }
        if let Some(edge) = &mut self.boxes[box_].edge {
            edge.hub.ledger.settled(now, &envelope.id, settled);
        }
        self.boxes[box_].write_outbox();
        self.send_events(box_);
    }

    pub fn send_events(&mut self, box_: usize) {
        let now = self.boxes[box_].now(self.now);
        loop {
            let Some(edge) = &mut self.boxes[box_].edge else { return };
            let (Some(id), true) = (edge.hub.connection, edge.hub.established) else { return };
            let envelope = match edge.hub.ledger.next(now) {
                None => break,
                Some(Next::Marker(marker)) => *marker,
                Some(Next::Event(place)) => match self.boxes[box_].disk.outbox.get(&place) {
                    Some(record) => record.envelope.clone().expect("a record has an event"),
                    None => panic!("P-ACKED-IS-KEPT: the event at place {place} is not on disk and not dropped"),
                },
            };
            self.answer(id, Input::Submit(Box::new(envelope)));
        }
    }

    /// Somebody at the edge publishes an event.
    pub fn publish(&mut self, box_: usize) {
        let envelope = {
            let number = self.dice.number();
            let node = self.boxes[box_].node;
            let name = format!("{node}.{number:x}");
            let json = json!({
                "metadata": {"namespace": "default", "name": name},
                "involvedObject": {"kind": "Node", "name": node}, "count": 1,
                "lastTimestamp": "2027-01-15T08:00:00Z", "message": "m",
            });
            let event = KubeObject {
                r#type: Some(resource::events()),
                key: Some(ObjectKey::new("default", name)),
                json: json.to_string().into(),
                ..KubeObject::default()
            };
            self.envelope(Body::KubernetesEvent(KubernetesEvent { event: Some(event) }))
        };
        let now = self.boxes[box_].now(self.now);
        let id = envelope.id.clone();
        let Box_ { edge, dice, .. } = &mut self.boxes[box_];
        let Some(edge) = edge else { return };
        let new_id = || Bytes::from(dice.bytes16().to_vec());
        let before: u64 = edge.hub.ledger.queue().counts().dropped.iter().sum();
        if edge.hub.ledger.publish(now, envelope, id, new_id).is_ok() {
            let after: u64 = edge.hub.ledger.queue().counts().dropped.iter().sum();
            let queue = edge.hub.ledger.queue();
            let within =
                queue.len() <= super::edge::BOUNDS.max_events && queue.bytes() <= super::edge::BOUNDS.max_bytes;
            promise!(within, "P-MEMORY-BOUNDED", "the outbox holds {} events", queue.len());
            if after > before {
                self.hit(Fault::OutboxFull);
            }
        }
        self.boxes[box_].write_outbox();
    }

    // ---- Edged

    /// MetaManager takes a report of Edged.
    fn report(&mut self, box_: usize, mut report: ReportStatus, uid: String, said: u64) {
        let Some(edge) = &mut self.boxes[box_].edge else { return };
        let key = ReportKey::of(&report).expect("a report names its object");
        if edge.meta.reports.take(&key, &mut report) {
            self.boxes[box_].commit(Rows::Report(key, Some(Box::new(report))), Then::Reported(uid, said));
        }
    }

    fn status_json(&mut self, box_: usize, uid: &str) -> (Bytes, u64) {
        self.boxes[box_].said += 1;
        let said = self.boxes[box_].said;
        self.boxes[box_].last_said.insert(uid.to_owned(), said);
        (json!({"phase": "Running", "message": format!("{box_}:{said}")}).to_string().into(), said)
    }

    /// A pod that runs has something to say.
    pub fn pod_says(&mut self, box_: usize, which: usize) {
        let Some(edge) = &self.boxes[box_].edge else { return };
        let uids: Vec<(String, String)> = (edge.book.pods())
            .filter(|(uid, _)| !edge.ending.contains_key(*uid))
            .filter_map(|(uid, pod)| Some((uid.to_owned(), pod.metadata.name.clone()?)))
            .collect();
        self.report_again(box_);
        if uids.is_empty() {
            return;
        }
        let (uid, name) = uids[which % uids.len()].clone();
        let (status_json, said) = self.status_json(box_, &uid);
        let update = StatusUpdate {
            r#type: Some(resource::pods()),
            key: Some(ObjectKey::new(NAMESPACE, name)),
            uid: uid.clone(),
            generation: 0,
            status_json,
        };
        self.report(box_, ReportStatus { report: Some(Report::Update(update)) }, uid, said);
    }

    /// Workers tell again what could not be kept.
    pub fn report_again(&mut self, box_: usize) {
        for (report, uid, said) in std::mem::take(&mut self.boxes[box_].again) {
            if self.boxes[box_].last_said.get(&uid) == Some(&said) {
                self.report(box_, report, uid, said);
            }
        }
    }

    /// MetaManager was built again: who waited for it hears that it failed.
    pub fn meta_failed(&mut self, box_: usize, then: Then) {
        let failed = || Settled::rejected(500, "MetaManager: closed");
        let Some(edge) = &mut self.boxes[box_].edge else { return };
        match then {
            Then::Applied(id, seq) => {
                self.answer(id, Input::Settle { class: Class::State, seq, settled: failed() });
                self.settle(id);
            }
            Then::SessionKept(id) => {
                edge.hub.waits = false;
                if edge.hub.connection == Some(id) {
                    self.refuse_session(box_, id, &Settled::rejected(503, "MetaManager: closed"));
                }
                self.settle(id);
            }
            Then::Completed(id) => {
                edge.hub.waits = false;
                self.settle(id);
            }
            _ => {}
        }
    }

    /// A pod that was told to end has ended.
    pub fn pod_ends(&mut self, box_: usize, which: usize) {
        let Some(edge) = &mut self.boxes[box_].edge else { return };
        let Some((uid, report)) = edge.ending.iter().nth(which % edge.ending.len().max(1)) else { return };
        let (uid, report) = (uid.clone(), *report);
        edge.ending.remove(&uid);
        let name = edge.book.order(&uid).map(|order| order.plan.name.clone()).unwrap_or_default();
        let effects = edge.book.worker_ended(&uid);
        self.boxes[box_].runtime.remove(&uid);
        self.note(|| format!("box {box_}: pod {uid} has ended"));
        if report {
            self.boxes[box_].told_end.insert(uid.clone());
            let (status_json, said) = self.status_json(box_, &uid);
            let key = Some(ObjectKey::new(NAMESPACE, name));
            let pod = PodTerminated { key, uid: uid.clone(), generation: 0, status_json };
            self.report(box_, ReportStatus { report: Some(Report::Terminated(pod)) }, uid, said);
        }
        self.apply(box_, effects);
    }

    pub fn call_ended(&mut self, id: &Bytes) {
        let (_, _, ends) = self.calls.get_mut(id).expect("a call of the model");
        *ends += 1;
        assert_eq!(*ends, 1, "a call ends once");
    }

    /// An end is gone: its owner tells every caller.
    pub fn end_calls(&mut self, line: usize, of_edge: bool) {
        for call in self.calls.values_mut().filter(|call| (call.0, call.1, call.2) == (line, of_edge, 0)) {
            call.2 = 1;
        }
    }

    // ---- what only a box knows

    fn check_complete(&self, box_: usize, complete: &InventoryComplete) {
        if complete.r#type != Some(resource::pods()) {
            return;
        }
        let api = &self.apis[0];
        let node = self.boxes[box_].node;
        for (place, object) in
            api.objects.iter().filter(|((kind, _), object)| *kind == Kind::Pod && object.node == node)
        {
            // Unchanged since then, and so on that list.
            if object.version > complete.as_of || api.incarnation > 0 {
                continue;
            }
            let name = super::api::name_of(*place);
            let there = self.boxes[box_].disk.objects.get(&format!("pods/{name}"));
            promise!(
                there.is_some_and(|there| there.uid == object.uid),
                "P-ABSENCE-KNOWN",
                "the pods are complete as of {}, and {name} of {} is not there",
                complete.as_of,
                object.version
            );
        }
    }

    fn check_needs(&self, box_: usize, change: &kubeedge_actors::metamanager::state::Change) {
        let Some(object) = &change.object else { return };
        if change.type_ != resource::pods() {
            return;
        }
        let Some(ways) = self.needed.get(&(object.uid.clone(), object.version())) else { return };
        let there = |name: &String| self.boxes[box_].disk.objects.contains_key(&format!("configmaps/{name}"));
        let kept = ways.iter().any(|names| names.iter().all(there));
        promise!(kept, "P-NEEDS-FIRST", "{} is on disk before what it needs: {ways:?}", change.key);
    }
}
