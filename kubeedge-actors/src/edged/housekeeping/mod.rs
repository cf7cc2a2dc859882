//! What grows on a node by itself and has to be kept small: container logs and images.
//!
//! Ended containers and sandboxes are their pod's concern ([`super::lifecycle`]); what is here belongs to the node.

pub mod images;
pub mod logs;

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use jiff::Timestamp;
use tokio::time::MissedTickBehavior;

pub use images::{ImageCollector, ImagePolicy};
pub use logs::LogPolicy;

use super::{
    events::{EventRecord, Involved, Reason},
    runtime::Runtime,
    worker::Reporter,
};

/// What the operator says about logs and images.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HousekeepingPolicy {
    /// Container logs.
    pub logs: LogPolicy,
    /// Images.
    pub images: ImagePolicy,
}

/// Between two looks at the images (kubelet's).
const IMAGES_EVERY: Duration = Duration::from_secs(300);
/// Between two looks for links to logs that are gone (kubelet's).
const LINKS_EVERY: Duration = Duration::from_secs(60);
/// The first look at the images: what pods of the last life need is pulled and used by then.
const IMAGES_FIRST: Duration = Duration::from_secs(60);

/// Keeps logs and images small. Dropped, it stops; what it began it does whole or finds again.
pub struct Housekeeper {
    /// The container runtime.
    pub runtime: Arc<dyn Runtime>,
    /// Where logs are, `/var/log` by custom.
    pub log_dir: PathBuf,
    /// The operator's settings.
    pub policy: HousekeepingPolicy,
    /// Removes images.
    pub images: Arc<ImageCollector>,
    /// Takes events.
    pub reporter: Arc<dyn Reporter>,
    /// The node's name.
    pub node: String,
}

impl Housekeeper {
    /// Runs until it is dropped.
    pub async fn run(self) {
        let mut logs = tokio::time::interval(self.policy.logs.interval);
        logs.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut images = tokio::time::interval_at(tokio::time::Instant::now() + IMAGES_FIRST, IMAGES_EVERY);
        images.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut links = tokio::time::interval(LINKS_EVERY);
        links.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = links.tick() => self.sweep_links().await,
                _ = logs.tick() => {
                    let pods = self.log_dir.join("pods");
                    match logs::rotate(&*self.runtime, &pods, &self.policy.logs, Timestamp::now()).await {
                        Ok(0) => {}
                        Ok(rotated) => tracing::debug!(rotated, "container logs were rotated"),
                        Err(error) => tracing::warn!("container logs are not rotated: {error}"),
                    }
                }
                _ = images.tick() => self.collect_images().await,
            }
        }
    }

    async fn sweep_links(&self) {
        let (containers, pods) = (self.log_dir.join("containers"), self.log_dir.join("pods"));
        let sweep = move || logs::sweep_links(&containers, &pods, SystemTime::now());
        match tokio::task::spawn_blocking(sweep).await.map_err(std::io::Error::other).flatten() {
            Ok(0) => {}
            Ok(removed) => tracing::debug!(removed, "links to logs that are gone were removed"),
            Err(error) => tracing::warn!("links to logs that are gone stay: {error}"),
        }
    }

    async fn collect_images(&self) {
        match self.images.collect().await {
            Ok(None) => {}
            Ok(Some(collected)) if collected.freed >= collected.wanted => {
                let images::Collected { wanted, freed, removed } = collected;
                tracing::info!(wanted, freed, removed, "images were removed to make room");
            }
            Ok(Some(images::Collected { wanted, freed, .. })) => {
                let message = format!(
                    "Failed to garbage collect required amount of images. Attempted to free {wanted} bytes, but only \
                     found {freed} bytes eligible to free."
                );
                self.tell(Reason::FreeDiskSpaceFailed, message);
            }
            Err(error) => self.tell(Reason::ImageGcFailed, error.to_string()),
        }
    }

    fn tell(&self, reason: Reason, message: String) {
        tracing::warn!(reason = reason.as_str(), "{message}");
        self.reporter.event(EventRecord::new(Involved::node(&self.node), reason, message, Timestamp::now()));
    }
}
