//! What happens to processes.

use std::time::Duration;

use anyhow::{Result, ensure};
use rand::{Rng, seq::SliceRandom};
use rustix::process::Signal;
use tokio::time::sleep;

use super::{
    Choices, LINES,
    site::{Site, Who},
    traffic::{Figures, bump},
};

/// Who is met, one after the other.
#[derive(Default)]
struct Victims {
    /// In a full run everyone is, first; then as in a short one.
    first: Option<Vec<Who>>,
    met: Vec<Who>,
}

impl Victims {
    /// The cloud half of the time, else one of the edges.
    fn next(&mut self, choices: &mut Choices) -> Who {
        let first = self.first.get_or_insert_with(|| {
            let mut all: Vec<Who> = (0..LINES).map(Who::Edge).chain([Who::Cloud]).collect();
            all.shuffle(&mut choices.random);
            if choices.full { all } else { Vec::new() }
        });
        let edge = choices.random.random_range(0..LINES);
        let one = first.pop().unwrap_or(if choices.random.random() { Who::Cloud } else { Who::Edge(edge) });
        self.met.push(one);
        one
    }

    /// Until time is over and, in a full run, everyone was.
    fn go_on(&self, choices: &Choices) -> bool {
        !choices.over() || self.first.as_ref().is_some_and(|first| !first.is_empty())
    }

    /// In a full run everyone has to have been met.
    fn over(self, choices: &Choices) -> Result<()> {
        let times = |who| self.met.iter().filter(|met| **met == who).count();
        let edges: Vec<usize> = (0..LINES).map(|line| times(Who::Edge(line))).collect();
        println!("     cloudcore {} times, edgecores {edges:?} times", times(Who::Cloud));
        let all = times(Who::Cloud) > 0 && edges.iter().all(|times| *times > 0);
        ensure!(all || !choices.full, "somebody was never met: {:?}", self.met);
        Ok(())
    }
}

/// One at a time does not run for a while, and knows nothing of it.
pub(super) async fn paused(site: &mut Site, figures: &Figures, choices: &mut Choices) -> Result<()> {
    let mut victims = Victims::default();
    while victims.go_on(choices) {
        let who = victims.next(choices);
        site.signal(who, Signal::STOP)?;
        bump(&figures.faults);
        sleep(choices.pause(Duration::from_secs(2), Duration::from_secs(15))).await;
        site.signal(who, Signal::CONT)?;
        sleep(choices.pause(Duration::from_millis(500), Duration::from_secs(2))).await;
    }
    victims.over(choices)
}

/// One at a time is killed and started again soon after.
pub(super) async fn killed(site: &mut Site, figures: &Figures, choices: &mut Choices) -> Result<()> {
    let mut victims = Victims::default();
    while victims.go_on(choices) {
        let who = victims.next(choices);
        site.kill(who).await?;
        bump(&figures.faults);
        sleep(choices.pause(Duration::from_millis(300), Duration::from_secs(1))).await;
        site.spawn(who)?;
        sleep(choices.pause(Duration::from_millis(1500), Duration::from_secs(3))).await;
    }
    victims.over(choices)
}

/// The cloud ends in order and starts again.
pub(super) async fn restarted(site: &mut Site, figures: &Figures, choices: &mut Choices) -> Result<()> {
    while !choices.over() {
        site.stop(Who::Cloud).await?;
        bump(&figures.faults);
        site.spawn(Who::Cloud)?;
        sleep(choices.pause(Duration::from_secs(3), Duration::from_secs(6))).await;
    }
    Ok(())
}
