//! What happens to processes.

use std::time::Duration;

use anyhow::Result;
use rand::Rng;
use rustix::process::Signal;
use tokio::time::sleep;

use super::{
    Choices,
    site::{Site, Who},
    traffic::{Figures, bump},
};

/// The cloud half of the time, else one of the edges.
fn someone(choices: &mut Choices) -> Who {
    let edge = choices.line();
    if choices.random.random() { Who::Cloud } else { Who::Edge(edge) }
}

/// One at a time does not run for a while, and knows nothing of it.
pub(super) async fn paused(site: &mut Site, figures: &Figures, choices: &mut Choices) -> Result<()> {
    while !choices.over() {
        let who = someone(choices);
        site.signal(who, Signal::STOP)?;
        bump(&figures.faults);
        sleep(choices.pause(Duration::from_secs(2), Duration::from_secs(15))).await;
        site.signal(who, Signal::CONT)?;
        sleep(choices.pause(Duration::from_millis(500), Duration::from_secs(2))).await;
    }
    Ok(())
}

/// One at a time is killed and started again soon after.
pub(super) async fn killed(site: &mut Site, figures: &Figures, choices: &mut Choices) -> Result<()> {
    while !choices.over() {
        let who = someone(choices);
        site.kill(who).await?;
        bump(&figures.faults);
        sleep(choices.pause(Duration::from_millis(300), Duration::from_secs(1))).await;
        site.spawn(who)?;
        sleep(choices.pause(Duration::from_millis(1500), Duration::from_secs(3))).await;
    }
    Ok(())
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
