//! A history is a list of steps; each carries the chance it needs, so that it means the same when others are left out.

use std::{
    cell::{Cell, RefCell},
    panic::{AssertUnwindSafe, catch_unwind},
    time::Duration,
};

use super::{
    api::Kind,
    dice::Dice,
    faults::{Counts, Fault, Good},
    steps::What,
    world::World,
};

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step {
    pub what: What,
    pub chance: u64,
}

#[derive(Clone, Debug)]
pub struct History {
    pub seed: u64,
    pub steps: Vec<Step>,
}

/// Steps of one history, at least and fewer than.
const STEPS: (usize, usize) = (30, 150);

impl History {
    pub fn of(seed: u64) -> Self {
        let mut dice = Dice::new(seed ^ 0x5eed);
        let length = STEPS.0 + dice.below(STEPS.1 - STEPS.0);
        // Each history likes some faults more than others: what only goes wrong together is then met.
        let favourites = [What::random(&mut dice), What::random(&mut dice), What::random(&mut dice)];
        let steps = (0..length)
            .map(|_| {
                let what =
                    if dice.percent(10) { favourites[dice.below(favourites.len())] } else { What::random(&mut dice) };
                Step { what, chance: dice.number() }
            })
            .collect();
        Self { seed, steps }
    }

    /// Runs it, then lets everything heal. The error is the first promise that was not kept.
    pub fn run(&self, talks: bool) -> Result<Counts, String> {
        let run = || {
            let mut world = World::new(self.seed, talks);
            if !self.seed.is_multiple_of(3) {
                world.begin_at_work();
            }
            for (number, step) in self.steps.iter().enumerate() {
                world.note(|| format!("-- {number} {:?}", step.what));
                world.step(step.what, &mut Dice::new(step.chance));
                world.check();
            }
            world.note(|| "-- everything heals".into());
            world.heal();
            world.counts
        };
        KEEPS.set(true);
        let outcome = catch_unwind(AssertUnwindSafe(run));
        KEEPS.set(false);
        outcome.map_err(|_| LAST_PANIC.take())
    }

    /// The shortest history found that breaks the same promise.
    pub fn shrink(self, failure: &str) -> Self {
        let id = |text: &str| text.split(':').next().unwrap_or_default().to_owned();
        let wanted = id(failure);
        let fails = |steps: &[Step]| {
            let history = Self { seed: self.seed, steps: steps.to_vec() };
            history.run(false).is_err_and(|other| id(&other) == wanted)
        };
        let mut best = self.steps.clone();
        let mut runs = 0;
        let mut piece = best.len() / 2;
        while piece > 0 && runs < 3000 {
            let mut at = 0;
            let mut smaller = false;
            while at < best.len() && runs < 3000 {
                let mut shorter = best.clone();
                shorter.drain(at..(at + piece).min(best.len()));
                runs += 1;
                if fails(&shorter) {
                    best = shorter;
                    smaller = true;
                } else {
                    at += piece;
                }
            }
            if !smaller || piece > 1 {
                piece /= 2;
            }
        }
        Self { seed: self.seed, steps: best }
    }
}

thread_local! {
    static LAST_PANIC: RefCell<String> = const { RefCell::new(String::new()) };
    /// This thread runs a history.
    static KEEPS: Cell<bool> = const { Cell::new(false) };
}

/// What a panic of a history says is kept, not printed: most are of histories on their way to a shorter one. Those of
/// other tests go where they went.
pub fn keep_panics() {
    let others = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if !KEEPS.get() {
            return others(info);
        }
        let payload = info.payload();
        let text = (payload.downcast_ref::<String>().map(String::as_str))
            .or_else(|| payload.downcast_ref::<&str>().copied())
            .unwrap_or("a panic without a text");
        let place = info.location().map(|place| format!(" ({}:{})", place.file(), place.line())).unwrap_or_default();
        LAST_PANIC.set(format!("{text}{place}"));
    }));
}

impl World {
    /// Everybody is connected and some pods run.
    fn begin_at_work(&mut self) {
        let node = super::world::NODES[0];
        for number in 0..2 {
            self.api().create((Kind::Config, number), "", Vec::new(), 1, false);
            self.api().create((Kind::Pod, number), node, vec![number], 1, false);
        }
        for number in 0..self.boxes.len() {
            self.reconnect(number);
        }
        self.everything_moves(0);
    }

    /// Nothing fails any more: everybody comes to agree, within a bounded time (`P-CONVERGES`).
    pub fn heal(&mut self) {
        self.heals = true;
        let now = self.now;
        for api in &mut self.apis {
            api.lists_fail = false;
            api.refuses = None;
        }
        while !self.late.is_empty() {
            self.late_arrives(true);
        }
        if std::mem::take(&mut self.which) != 0 {
            self.restart_cloud();
        }
        if let Some(cloud) = &mut self.cloud {
            cloud.slow_until = now;
        }
        // The box that is not the node's is taken away.
        self.power_off(super::world::TWIN);
        for number in [super::world::MAIN, super::world::OTHER] {
            let box_ = &mut self.boxes[number];
            box_.full = false;
            box_.slow_until = now;
            box_.wanted_connection = true;
            if box_.edge.is_none() {
                self.power_on(number);
            }
        }
        for id in self.line_ids() {
            let Some(line) = self.lines.get(&id) else { continue };
            let old = self.boxes[line.box_].edge.as_ref().is_none_or(|edge| edge.hub.connection != Some(id));
            // The other version is gone, too.
            if line.tampered || line.unknown || line.swallows_up || line.swallows_down || old {
                self.cut(id);
            } else if let Some(line) = self.lines.get_mut(&id) {
                line.stands_until = now;
            }
        }
        self.apis[0].bump(1000);
        let mut missing = String::new();
        for round in 0..150 {
            self.everything_moves(round);
            match self.agreement() {
                Ok(()) => return self.check_promised(),
                Err(why) => missing = why,
            }
            self.pass(Duration::from_millis(if round < 20 { 300 } else { 5_000 }));
        }
        panic!("P-CONVERGES: no agreement: {missing}");
    }

    fn everything_moves(&mut self, round: u64) {
        let mut dice = Dice::new(round);
        // Bookmarks come, too.
        for _ in 0..6 {
            self.watch(&mut dice, false);
        }
        for _ in 0..40 {
            let mut moved = false;
            for number in 0..self.boxes.len() {
                self.reconnect(number);
                while self.commits(number) {
                    moved = true;
                }
                while self.edged_hears(number) {
                    moved = true;
                }
                moved |= self.edged_reads(number);
                self.edged_lists(number);
                self.report_again(number);
                self.pod_ends(number, 0);
            }
            for _ in 0..6 {
                moved |= self.idle_watch(&mut dice);
            }
            while self.controller_handles() {
                moved = true;
            }
            while self.api_handles(0) {
                moved = true;
            }
            self.send_down_events();
            for id in self.line_ids() {
                while self.deliver(id, true) | self.deliver(id, false) {
                    moved = true;
                }
            }
            if !moved {
                return;
            }
        }
    }

    /// A watch, if there is any news for one.
    fn idle_watch(&mut self, dice: &mut Dice) -> bool {
        let (log, incarnation) = (self.apis[self.which].log.len(), self.apis[self.which].incarnation);
        let idle = self.cloud.as_ref().is_none_or(|cloud| cloud.watches_are_current(log, incarnation));
        !idle && self.watch(dice, false)
    }
}

pub fn report(counts: &Counts) -> String {
    let mut lines = vec![format!("{:>10}  fault", "times")];
    lines.extend(Fault::ALL.iter().map(|fault| {
        let count = counts.faults.get(fault).copied().unwrap_or(0);
        format!("{count:>10}  {}", fault.text())
    }));
    lines.push(format!("{:>10}  and what has to happen", "times"));
    lines.extend(Good::ALL.iter().map(|what| {
        let count = counts.seen.get(what).copied().unwrap_or(0);
        format!("{count:>10}  {}", what.text())
    }));
    lines.join("\n")
}
