//! What happens to lines.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use kubeedge_examples::netns::Direction;
use tokio::time::sleep;

use super::{
    Choices, HALF_OPEN, LINES, SLACK,
    site::{Site, Who, node, until},
    traffic::{Figures, bump},
};

/// What an edge says when it notices, and when it is back.
pub(super) const DOWN: &str = "the link is down";
pub(super) const UP: &str = "the link is up";

/// Both lines are cut, for some seconds each time.
pub(super) async fn cut(site: &mut Site, figures: &Figures, choices: &mut Choices) -> Result<()> {
    while !choices.over() {
        sleep(choices.pause(Duration::from_secs(1), Duration::from_secs(5))).await;
        for line in 0..LINES {
            site.net().cut(line)?;
            bump(&figures.faults);
        }
        sleep(choices.pause(Duration::from_secs(3), Duration::from_secs(12))).await;
        for line in 0..LINES {
            site.net().mend(line)?;
        }
    }
    Ok(())
}

/// Packets vanish in one direction, then in the other. A full run waits until both ends of each line have noticed.
pub(super) async fn vanished(site: &mut Site, figures: &Figures, choices: &mut Choices) -> Result<()> {
    for direction in [Direction::Down, Direction::Up] {
        let mut from = [0; LINES as usize];
        for line in 0..LINES {
            if choices.full {
                site.says(Who::Edge(line), 0, UP, HALF_OPEN).await?;
            }
            from[usize::from(line)] = site.said(Who::Edge(line))?.len();
            site.net().drop_packets(line, direction)?;
            bump(&figures.faults);
        }
        let (began, cloud) = (Instant::now(), site.said(Who::Cloud)?.len());
        if choices.full {
            for line in 0..LINES {
                site.says(Who::Edge(line), from[usize::from(line)], DOWN, HALF_OPEN + SLACK).await?;
                let edge = began.elapsed();
                cloud_says_over(site, line, cloud).await?;
                let both = began.elapsed();
                let (place, [at_edge, at_both]) = (node(line), [edge, both].map(|it| it.as_secs_f32()));
                println!("     {direction:?}: {place} noticed after {at_edge:.1} s, both ends after {at_both:.1} s");
                ensure!(both < HALF_OPEN, "{direction:?}: both ends of {place}'s line noticed after {both:?}");
            }
        } else {
            sleep(choices.pause(Duration::from_secs(2), Duration::ZERO)).await;
        }
        for line in 0..LINES {
            site.net().mend(line)?;
            if choices.full {
                site.says(Who::Edge(line), from[usize::from(line)], UP, 2 * HALF_OPEN).await?;
            }
        }
    }
    Ok(())
}

/// Waits until the cloud says, after so much of its log, that a node's session is over.
async fn cloud_says_over(site: &Site, line: u8, from: usize) -> Result<()> {
    let name = format!("node=\"{}\"", node(line));
    until(&format!("the cloud says that the session of {} is over", node(line)), HALF_OPEN + SLACK, async || {
        let said = site.said(Who::Cloud).map_err(|error| format!("{error:#}"))?;
        let news = said.get(from..).unwrap_or_default();
        let over = |said: &str| ["node session", &name, "connected=false"].iter().all(|part| said.contains(part));
        if news.lines().any(over) { Ok(()) } else { Err(news.to_owned()) }
    })
    .await
}

/// One line or the other comes and goes.
pub(super) async fn flapping(site: &mut Site, figures: &Figures, choices: &mut Choices) -> Result<()> {
    while !choices.over() {
        let line = choices.line();
        site.net().cut(line)?;
        bump(&figures.faults);
        sleep(choices.pause(Duration::from_secs(1), Duration::from_secs(10))).await;
        site.net().mend(line)?;
        sleep(choices.pause(Duration::from_secs(1), Duration::from_secs(10))).await;
    }
    Ok(())
}

/// One packet in twenty is lost either way, on lines of 2 Mbit/s, on which the others wait for up to a quarter second.
pub(super) async fn lossy(site: &mut Site, figures: &Figures, choices: &mut Choices) -> Result<()> {
    for line in 0..LINES {
        site.net().lose(line, 0.05)?;
        site.net().slow(line, 2_000_000)?;
        bump(&figures.faults);
    }
    let left = choices.end.saturating_duration_since(Instant::now());
    sleep(left).await;
    Ok(())
}
