//! The world: an API server, a cloud, boxes, the lines between them, and the time.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use bytes::Bytes;
use kubeedge_actors::{
    edgecontroller::writes::Request,
    link::{
        Config,
        config::{KeyRate, Window, Windows},
        session::{Input, Session},
    },
};
use kubeedge_proto::v1::{Envelope, Hello, envelope::Body};

use super::{
    api::Api,
    cloud::Cloud,
    dice::Dice,
    edge::Box_,
    faults::{Counts, Fault},
    line::Line,
};

/// Nodes: two boxes claim the first, one has the second.
pub const NODES: [&str; 2] = ["edge-1", "edge-2"];
pub const MAIN: usize = 0;
pub const TWIN: usize = 1;
pub const OTHER: usize = 2;

/// An event for a node, sent until its settlement is known.
pub struct DownEvent {
    pub node: &'static str,
    /// The session it is with.
    pub line: Option<usize>,
    pub done: bool,
    pub body: Body,
}

pub struct World {
    pub counts: Counts,
    pub now: Duration,
    pub dice: Dice,
    pub apis: [Api; 2],
    /// Which of them the cloud talks to.
    pub which: usize,
    pub cloud: Option<Cloud>,
    pub boxes: Vec<Box_>,
    pub lines: BTreeMap<usize, Line>,
    next_line: usize,
    pub serial: u64,
    /// Requests of a cloud that no longer waits for them.
    pub late: Vec<(usize, Request, u64)>,
    pub down_events: BTreeMap<Bytes, DownEvent>,
    /// Events of nodes that were refused for good.
    pub refused: BTreeSet<Bytes>,
    /// Dropped events, the word of which was.
    pub given_up: u64,
    /// Faults, of a box, that have had no effect yet.
    arranged: BTreeSet<(Fault, usize)>,
    /// Calls: their connection, whether they are the edge's, and how often they ended.
    pub calls: BTreeMap<Bytes, (usize, bool, u32)>,
    /// What a pod, in a version, was sent to need; one set for each time it was.
    pub needed: BTreeMap<(String, u64), Vec<BTreeSet<String>>>,
    edge_config: Config,
    cloud_config: Config,
    /// The end of a run: nothing fails any more.
    pub heals: bool,
    pub talks: bool,
}

impl World {
    pub fn new(seed: u64, talks: bool) -> Self {
        let mut dice = Dice::new(seed);
        let narrow = Window { messages: 1 + dice.below(3) as u32, bytes: 40_000 };
        let windows =
            if dice.percent(50) { Windows { state: narrow, event: narrow, call: narrow } } else { Windows::DEFAULT };
        let key_rate = dice.percent(30).then_some(KeyRate { burst: 2, interval: Duration::from_millis(700) });
        let boxes = [NODES[0], NODES[0], NODES[1]].map(|node| Box_::new(node, Dice::new(dice.number())));
        let mut world = Self {
            counts: Counts::default(),
            now: Duration::from_secs(1000),
            apis: [Api::new("k1"), Api::new("k2")],
            which: 0,
            cloud: None,
            boxes: boxes.into(),
            lines: BTreeMap::new(),
            next_line: 1,
            serial: 0,
            late: Vec::new(),
            down_events: BTreeMap::new(),
            refused: BTreeSet::new(),
            given_up: 0,
            arranged: BTreeSet::new(),
            calls: BTreeMap::new(),
            needed: BTreeMap::new(),
            edge_config: Config { key_rate, ..Config::default() },
            cloud_config: Config { windows, ..Config::default() },
            heals: false,
            talks,
            dice,
        };
        world.cloud = Some(Cloud::new(world.now));
        // Some worlds begin with boxes that have never met a cloud.
        if world.dice.percent(60) {
            for box_ in &mut world.boxes {
                box_.disk.this_box.cluster_uid = world.apis[0].cluster.clone();
            }
        }
        for box_ in [MAIN, OTHER] {
            world.boxes[box_].boot(world.now);
            world.boxes[box_].wanted_connection = true;
        }
        world
    }

    pub fn api(&mut self) -> &mut Api {
        &mut self.apis[self.which]
    }

    /// Told when a history is shown.
    pub fn note(&self, text: impl FnOnce() -> String) {
        if self.talks {
            println!("      {}", text());
        }
    }

    pub fn hit(&mut self, fault: Fault) {
        self.counts.hit(fault);
        self.note(|| format!("fault: {}", fault.text()));
    }

    /// What is to go wrong when it comes to that.
    pub fn arrange(&mut self, fault: Fault, box_: usize) {
        self.arranged.insert((fault, box_));
    }

    /// What was arranged has an effect: it counts, once.
    pub fn meets(&mut self, fault: Fault, box_: usize) {
        if self.arranged.remove(&(fault, box_)) {
            self.hit(fault);
        }
    }

    pub fn envelope(&mut self, body: Body) -> Envelope {
        Envelope {
            id: self.dice.bytes16().to_vec().into(),
            priority: body.default_priority().into(),
            body: Some(body),
            ..Envelope::default()
        }
    }

    // ---- lines

    /// The connection of a box is made; its hello goes out.
    pub fn connect(&mut self, box_: usize) {
        let Some(edge) = &mut self.boxes[box_].edge else { return };
        if edge.hub.connection.is_some() || self.cloud.is_none() {
            return;
        }
        let store = edge.meta.state.describe();
        let hello = Hello {
            instance_id: store.instance_id,
            connection: store.connection,
            cluster_uid: store.cluster_uid,
            last_epoch: store.last_epoch,
            kinds: store.kinds,
            ..Hello::default()
        };
        let (id, connection) = (self.next_line, hello.connection);
        self.next_line += 1;
        edge.hub.connection = Some(id);
        edge.hub.established = false;
        edge.hub.reports.clear();
        edge.hub.waits = false;
        let seed = u128::from(self.dice.number()) << 64;
        let edge_session = Session::edge(hello, Config { id_seed: seed, ..self.edge_config.clone() });
        let cloud_session = Session::cloud(Config { id_seed: seed + (1 << 32), ..self.cloud_config.clone() });
        let node = self.boxes[box_].node;
        if self.lines.values().any(|line| line.node == node && line.epoch.is_some() && line.cloud.is_some()) {
            self.hit(Fault::Takeover);
        }
        self.note(|| format!("box {box_} makes connection {id}"));
        let mut line = Line::new(box_, node, self.now, edge_session, cloud_session);
        let counted = &mut self.boxes[box_].counted;
        line.rises = connection > *counted;
        *counted = connection.max(*counted);
        self.lines.insert(id, line);
        self.settle(id);
    }

    /// Gives an end something, and does what follows at once.
    pub fn give(&mut self, id: usize, at_edge: bool, input: Input) {
        let now = self.now;
        if let Some(line) = self.lines.get_mut(&id) {
            line.give(at_edge, now, Some(input));
        }
        self.settle(id);
    }

    /// Everything of a connection that happens at once: frames are taken, outputs handled.
    pub fn settle(&mut self, id: usize) {
        loop {
            let now = self.now;
            let Some(line) = self.lines.get_mut(&id) else { return };
            let before = line.up.len() + line.down.len();
            for at_edge in [true, false] {
                line.give(at_edge, now, None);
                if line.stands_until <= now {
                    line.drain(at_edge, now);
                    line.give(at_edge, now, None);
                }
            }
            let mut moved = line.up.len() + line.down.len() != before;
            moved |= self.edge_takes(id);
            moved |= self.cloud_takes(id);
            if self.lines.get(&id).is_some_and(|line| line.is_over() && line.up.is_empty() && line.down.is_empty()) {
                self.lines.remove(&id);
                return;
            }
            if !moved {
                return;
            }
        }
    }

    pub fn poll_all(&mut self) {
        for id in self.line_ids() {
            self.settle(id);
        }
    }

    pub fn line_ids(&self) -> Vec<usize> {
        self.lines.keys().copied().collect()
    }

    pub fn some_line(&self, dice: &mut Dice) -> Option<usize> {
        let ids = self.line_ids();
        (!ids.is_empty()).then(|| ids[dice.below(ids.len())])
    }

    pub fn deliver(&mut self, id: usize, to_edge: bool) -> bool {
        let now = self.now;
        let Some(line) = self.lines.get_mut(&id) else { return false };
        if line.stands_until > now {
            return false;
        }
        let newer =
            self.boxes[line.box_].edge.as_ref().is_some_and(|edge| edge.hub.connection.is_some_and(|it| it > id));
        let moved = line.deliver(to_edge, now);
        if moved && newer && !to_edge {
            self.counts.hit(Fault::Late);
        }
        self.settle(id);
        moved
    }

    /// Both ends of a connection hear that it is gone.
    pub fn cut(&mut self, id: usize) {
        let Some(line) = self.lines.get_mut(&id) else { return };
        line.up.clear();
        line.down.clear();
        line.disturbed = true;
        for at_edge in [true, false] {
            self.give(id, at_edge, Input::TransportEnded("cut".into()));
        }
        // Slow ends have it in their queue; what is left of the connection is theirs.
        self.poll_all();
    }

    // ---- time

    /// Time passes; where nothing hinders them, connections carry what is on them.
    pub fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            let step = (end - self.now).min(Duration::from_secs(2));
            self.now += step;
            if time > Duration::from_secs(1) {
                self.carry_heartbeats();
            }
            self.poll_all();
            self.timers();
        }
    }

    fn carry_heartbeats(&mut self) {
        for id in self.line_ids() {
            self.settle(id);
            for _ in 0..200 {
                let moved = [true, false].map(|to_edge| self.deliver(id, to_edge));
                if moved == [false, false] {
                    break;
                }
            }
        }
    }

    fn timers(&mut self) {
        for box_ in 0..self.boxes.len() {
            let now = self.now;
            if let Some(edge) = &mut self.boxes[box_].edge
                && edge.hub.fetch_at.is_some_and(|at| at <= now)
            {
                edge.hub.fetch_at = None;
                edge.hub.reports.retry();
                self.fetch_reports(box_);
            }
            let clock = self.boxes[box_].now(now);
            let Box_ { edge, dice, .. } = &mut self.boxes[box_];
            if let Some(edge) = edge {
                edge.hub.ledger.expire(clock, || Bytes::from(dice.bytes16().to_vec()));
            }
            self.boxes[box_].write_outbox();
            self.send_events(box_);
        }
        let due: Vec<usize> = self
            .lines
            .iter()
            .filter(|(_, line)| line.ask_again.is_some_and(|at| at <= self.now))
            .map(|(id, _)| *id)
            .collect();
        for id in due {
            if let Some(line) = self.lines.get_mut(&id) {
                line.ask_again = None;
                line.inputs.push_back(Input::Recheck);
            }
        }
        self.controller_ticks();
    }
}
