//! A node with real containers behind a line that breaks, beside one that keeps its pods in memory.

use std::{path::Path, time::Duration};

use anyhow::{Context, Result, ensure};
use kubeedge_examples::{
    containerd::{PrivateContainerd, Tools},
    image::BusyboxImages,
    netns::Direction,
    registry::{Catalogue, Registry},
};
use rand::Rng;
use tokio::time::sleep;

use super::{
    Choices, LINES,
    site::{Site, Who},
    traffic::{Figures, bump},
};

const BUSYBOX: (&str, &str) = ("faults/busybox", "1");
const PAUSE: (&str, &str) = ("faults/pause", "1");

/// The line behind which the containers are: one more than there are.
pub(super) const REAL: u8 = LINES;

/// A private containerd, and where it has its images from.
pub(super) struct Containers {
    registry: Registry,
    containerd: PrivateContainerd,
}

impl Containers {
    /// Starts both in this folder. Not in the cloud's network: pods and images are of the machine.
    pub(super) async fn begin(tools: Tools, folder: &Path) -> Result<Self> {
        let images = BusyboxImages::build()?;
        let catalogue =
            Catalogue::default().with(BUSYBOX.0, BUSYBOX.1, &images.busybox)?.with(PAUSE.0, PAUSE.1, &images.pause)?;
        let registry = Registry::start(catalogue, 0)?;
        let pause = registry.image(PAUSE.0, PAUSE.1);
        let containerd = PrivateContainerd::start(tools, &folder.join("containerd"), &pause).await?;
        Ok(Self { registry, containerd })
    }

    /// Where edgecore finds the runtime.
    pub(super) fn endpoint(&self) -> String {
        self.containerd.endpoint()
    }

    /// What its pods are made of.
    pub(super) fn image(&self) -> String {
        self.registry.image(BUSYBOX.0, BUSYBOX.1)
    }

    /// A file as the one container of a pod sees it.
    pub(super) async fn sees(&self, pod_uid: &str, path: &str) -> Result<String> {
        let all = self.containerd.containers(pod_uid).await?;
        let [one] = &all[..] else { anyhow::bail!("pod {pod_uid} has the containers {all:?}, expected one") };
        ensure!(one.running && one.attempt == 0, "it was started anew: {one:?}");
        self.containerd.exec(&one.id, &["/bin/cat", path]).await
    }

    /// Takes everything away; what is left is an error.
    pub(super) async fn close(self) -> Result<()> {
        let left = self.containerd.stop().await.context("containerd")?;
        self.registry.stop().await?;
        ensure!(left.is_empty(), "left on this machine: {left:?}");
        Ok(())
    }
}

/// The line of the real node is cut, or packets vanish on it: all of one way, or some of both; or its edgecore is killed.
pub(super) async fn broken(site: &mut Site, figures: &Figures, choices: &mut Choices) -> Result<()> {
    // Killed first, so that it always is: the others need some time.
    let mut what = 0;
    while !choices.over() {
        match what {
            0 => site.kill(Who::Edge(REAL)).await?,
            1 => site.net().cut(REAL)?,
            2 => site.net().drop_packets(REAL, Direction::Up)?,
            3 => site.net().drop_packets(REAL, Direction::Down)?,
            _ => site.net().lose(REAL, 0.2)?,
        }
        bump(&figures.faults);
        sleep(choices.pause(Duration::from_secs(2), Duration::from_secs(12))).await;
        match what {
            0 => site.spawn(Who::Edge(REAL))?,
            _ => site.net().mend(REAL)?,
        }
        what = choices.random.random_range(0..5);
        sleep(choices.pause(Duration::from_millis(1500), Duration::from_secs(4))).await;
    }
    Ok(())
}
