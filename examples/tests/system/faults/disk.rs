//! What happens to the disk of an edge while everyone writes: its power is cut, it is full, it fails.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kubeedge_proto::resource;
use tokio::time::sleep;

use super::{
    Choices, LINES,
    site::{Site, Who, node},
    traffic::{Figures, bump, stamps},
};

/// The node with a disk of its own.
pub(super) const LINE: u8 = LINES - 1;
const EDGE: Who = Who::Edge(LINE);
/// How long edgecore runs on over a disk that is dead, before it is dead too.
const LINGER: Duration = Duration::from_millis(200);
/// What edgecore says of a disk that takes no more.
const REFUSES: &str = "the store does not commit";
const COMMITS: &str = "the store commits again";
/// For it to say so.
const SAID: Duration = Duration::from_secs(20);

/// The power of the box goes: its line, its disk and its process, in this order, so that nothing that it acknowledges
/// over a dead disk gets out. Then it is back, with what had reached the disk.
pub(super) async fn power(site: &mut Site, figures: &Figures, choices: &mut Choices) -> Result<()> {
    while !choices.over() {
        sleep(choices.pause(Duration::from_millis(800), Duration::from_secs(3))).await;
        let shown = figures.newest(LINE);
        site.net().cut(LINE)?;
        disk(site)?.power_off().await?;
        bump(&figures.faults);
        sleep(LINGER).await;
        site.kill(EDGE).await?;
        // The files of volumes are not synced: they may be older again.
        figures.forget(LINE);
        disk(site)?.power_on().await?;
        holds(site, &shown).await?;
        site.net().mend(LINE)?;
        site.spawn(EDGE)?;
        sleep(choices.pause(Duration::from_millis(1500), Duration::from_secs(4))).await;
    }
    Ok(())
}

/// The disk is full, and has room again.
pub(super) async fn full(site: &mut Site, figures: &Figures, choices: &mut Choices) -> Result<()> {
    while !choices.over() {
        let said = site.said(EDGE)?.len();
        disk(site)?.fill(0)?;
        bump(&figures.faults);
        site.says(EDGE, said, REFUSES, SAID).await?;
        sleep(choices.pause(Duration::from_secs(2), Duration::from_secs(8))).await;
        disk(site)?.empty()?;
        site.says(EDGE, said, COMMITS, SAID).await?;
        sleep(choices.pause(Duration::from_secs(1), Duration::from_secs(4))).await;
    }
    Ok(())
}

/// The disk takes no more writes, for an error of its own. Then somebody mends it.
pub(super) async fn failing(site: &mut Site, figures: &Figures, choices: &mut Choices) -> Result<()> {
    while !choices.over() {
        let said = site.said(EDGE)?.len();
        disk(site)?.fail()?;
        bump(&figures.faults);
        site.says(EDGE, said, REFUSES, SAID).await?;
        sleep(choices.pause(Duration::from_secs(2), Duration::from_secs(8))).await;
        let shown = figures.newest(LINE);
        // Such a disk takes no orderly end.
        site.kill(EDGE).await?;
        figures.forget(LINE);
        disk(site)?.mend().await?;
        holds(site, &shown).await?;
        site.spawn(EDGE)?;
        sleep(choices.pause(Duration::from_millis(1500), Duration::from_secs(4))).await;
    }
    Ok(())
}

fn disk(site: &Site) -> Result<&kubeedge_examples::loop_disk::LoopDisk> {
    site.disk(LINE).context("no disk of its own")
}

/// What pods have seen was told after it was on disk: it is there, or something newer.
async fn holds(site: &Site, shown: &[u64]) -> Result<()> {
    let stored = stamps(&site.read_store(LINE, resource::config_maps).await?)?;
    for (n, shown) in shown.iter().enumerate().filter(|(_, shown)| **shown > 0) {
        let there = stored.get(&format!("map-{n}"));
        ensure!(
            there.is_some_and(|there| there >= shown),
            "{} showed {shown} of map-{n}, its store has {there:?}",
            node(LINE)
        );
    }
    Ok(())
}
