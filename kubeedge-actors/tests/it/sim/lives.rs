//! What happens to a box and to the cloud as a whole: killed, stopped, rebuilt in part, connected anew.

use kubeedge_actors::link::session::Input;
use kubeedge_proto::v1::{Goodbye, GoodbyeReason};

use super::{
    dice::Dice,
    edge::{News, Rows, Then},
    faults::Fault,
    world::World,
};

impl World {
    /// A box without a connection makes one, if it may.
    pub fn reconnect(&mut self, box_: usize) {
        let it = &mut self.boxes[box_];
        let waits = it.commits.iter().any(|commit| matches!(commit.then, Then::Counted) && commit.life == it.life);
        let Some(edge) = &mut it.edge else { return };
        if edge.hub.connection.is_none() && !waits {
            edge.meta.waiting.clear();
            edge.meta.state.this_box.connection += 1;
            let record = edge.meta.state.this_box.clone();
            it.commit(Rows::Box(record), Then::Counted);
        }
    }

    pub fn power_on(&mut self, box_: usize) {
        let now = self.now;
        self.boxes[box_].boot(now);
        self.boxes[box_].wanted_connection = true;
    }

    pub fn power_off(&mut self, box_: usize) {
        self.link_down(box_);
        let it = &mut self.boxes[box_];
        it.commits.clear();
        it.edge = None;
        it.life += 1;
        it.runtime.clear();
        self.poll_all();
    }

    /// edgecore says goodbye, writes what it has to write, and starts again.
    pub fn stop_edge(&mut self, box_: usize) {
        let Some(connection) = self.boxes[box_].edge.as_ref().map(|edge| edge.hub.connection) else { return };
        self.hit(Fault::EdgeStop);
        if let Some(id) = connection {
            self.stops(id, true);
        }
        while self.commits(box_) {}
        self.forgets_effects(box_);
        self.link_down(box_);
        let it = &mut self.boxes[box_];
        it.commits.clear();
        it.edge = None;
        self.poll_all();
        self.power_on(box_);
    }

    /// cloudcore says goodbye to everyone, hears what the API server says to its last writes, and starts again.
    pub fn stop_cloud(&mut self) {
        self.hit(Fault::CloudStop);
        for id in self.line_ids() {
            self.stops(id, false);
        }
        while self.api_handles(0) {}
        self.restart_cloud();
    }

    fn stops(&mut self, id: usize, edge: bool) {
        let Some(line) = self.lines.get_mut(&id) else { return };
        line.disturbed = true;
        let reason = GoodbyeReason::ShuttingDown.into();
        let goodbye = Goodbye { reason, message: "this end stops".into(), retry_after_ms: 0 };
        self.give(id, edge, Input::Close(goodbye));
    }

    /// edgecore dies between any two of decide, write, tell; then it is started again.
    pub fn kill_edge(&mut self, box_: usize, dice: &mut Dice, power: bool) {
        if self.boxes[box_].edge.is_none() {
            return;
        }
        self.hit(if power { Fault::PowerCut } else { Fault::EdgeRestart });
        // Some of what was on its way to the disk got there, and nobody heard of it.
        let reached = dice.below(self.boxes[box_].commits.len() + 1);
        let full = self.boxes[box_].full;
        for number in 0..self.boxes[box_].commits.len() {
            let it = &mut self.boxes[box_];
            let remember = match &it.commits[number].then {
                Then::Remembered(..) if it.commits[number].life == it.life => match &it.commits[number].rows {
                    Rows::Received(remember) => Some(remember.id.clone()),
                    _ => None,
                },
                _ => None,
            };
            if number < reached && !full {
                let Some(commit) = it.commits.get(number) else { continue };
                it.disk.write(&commit.rows);
                self.hit(Fault::CommitsUnsaid);
            } else {
                // The effect is there and the disk does not know: once more is what is promised then.
                if let Some(id) = remember {
                    it.effects.entry(id).or_insert((0, 1)).1 += 1;
                    self.hit(Fault::EffectUnsaid);
                }
                self.hit(Fault::CommitsLost);
            }
        }
        self.forgets_effects(box_);
        let quiet = dice.percent(50);
        if let Some(id) = self.boxes[box_].edge.as_ref().and_then(|edge| edge.hub.connection)
            && let Some(line) = self.lines.get_mut(&id)
        {
            line.disturbed = true;
            line.swallows_up |= quiet || power;
        }
        self.link_down(box_);
        let it = &mut self.boxes[box_];
        it.commits.clear();
        it.edge = None;
        if power {
            it.runtime.clear();
        }
        self.poll_all();
        self.power_on(box_);
    }

    /// An effect whose id could not be written is known to the life that had it only.
    fn forgets_effects(&mut self, box_: usize) {
        let it = &mut self.boxes[box_];
        let known: Vec<&bytes::Bytes> = it.disk.received.values().collect();
        for (id, (times, may)) in &mut it.effects {
            if !known.contains(&id) && *times >= *may {
                *may = *times + 1;
            }
        }
    }

    /// What is committed may not have been told; what waits for a commit is gone. The disk goes on by itself.
    pub fn rebuild_meta(&mut self, box_: usize) {
        if self.boxes[box_].edge.is_none() {
            return;
        }
        self.hit(Fault::MetaManagerRebuilt);
        let waiting: Vec<Then> = {
            let it = &mut self.boxes[box_];
            let mine = |then: &Then| {
                matches!(
                    then,
                    Then::Applied(..) | Then::SessionKept(_) | Then::Completed(_) | Then::Counted | Then::Forgotten
                )
            };
            let mut waiting = Vec::new();
            for commit in it.commits.iter_mut().filter(|commit| mine(&commit.then)) {
                waiting.push(std::mem::replace(&mut commit.then, Then::Nobody));
            }
            let later = it.edge.as_mut().map(|edge| std::mem::take(&mut edge.meta.waiting)).unwrap_or_default();
            waiting.extend(later.into_iter().map(|(_, id, seq)| Then::Applied(id, seq)));
            waiting
        };
        while self.commits(box_) {}
        let last = self.boxes[box_].edge.as_ref().map_or(0, |edge| edge.meta.reports.last());
        let meta = self.boxes[box_].load_meta(last);
        if let Some(edge) = &mut self.boxes[box_].edge {
            edge.meta = meta;
            // What was committed and on its way to Edged is lost.
            edge.news.clear();
            edge.news.push_back(News::Reloaded);
        }
        for then in waiting {
            self.meta_failed(box_, then);
        }
        if self.boxes[box_].edge.as_ref().is_some_and(|edge| !edge.meta.reports.is_empty()) {
            self.fetch_reports(box_);
        }
    }

    pub fn rebuild_hub(&mut self, box_: usize) {
        if self.boxes[box_].edge.is_none() {
            return;
        }
        self.hit(Fault::EdgeHubRebuilt);
        self.forgets_effects(box_);
        let now = self.now;
        if let Some(id) = self.boxes[box_].edge.as_ref().and_then(|edge| edge.hub.connection)
            && let Some(line) = self.lines.get_mut(&id)
        {
            line.disturbed = true;
        }
        self.link_down(box_);
        for commit in &mut self.boxes[box_].commits {
            if matches!(commit.then, Then::Outbox | Then::Remembered(..)) {
                commit.then = Then::Nobody;
            }
        }
        while self.commits(box_) {}
        let hub = self.boxes[box_].load_hub(now);
        if let Some(edge) = &mut self.boxes[box_].edge {
            edge.hub = hub;
        }
        self.poll_all();
    }
}
