//! Removal of images that nobody uses, when the disk that they are on fills up: the kubelet's rules.

use std::{
    collections::{BTreeSet, HashMap},
    path::Path,
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use thiserror::Error;
use tokio::sync::Mutex;

use crate::edged::{
    node::readings::{DiskReading, ReadingError, disk},
    runtime::{LocalImage, Runtime, RuntimeError},
};

/// When images are removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImagePolicy {
    /// From this share of the disk on, percent (`imageGCHighThresholdPercent`); 100: never.
    pub high_percent: u8,
    /// Down to this share (`imageGCLowThresholdPercent`).
    pub low_percent: u8,
    /// Not before an image is here for this long (`imageMinimumGCAge`).
    pub min_age: Duration,
    /// Whatever the disk says when an image was not used for this long (`imageMaximumGCAge`); `None`: never.
    pub max_age: Option<Duration>,
}

impl Default for ImagePolicy {
    fn default() -> Self {
        Self { high_percent: 85, low_percent: 80, min_age: Duration::from_secs(120), max_age: None }
    }
}

impl ImagePolicy {
    /// How much has to be freed, bytes, if anything.
    pub fn excess(&self, disk: &DiskReading) -> Option<u64> {
        let all = u128::from(disk.capacity);
        let used = all.saturating_sub(u128::from(disk.available));
        if self.high_percent >= 100 || all == 0 || used * 100 < all * u128::from(self.high_percent) {
            return None;
        }
        let keep_free = all * u128::from(100_u8.saturating_sub(self.low_percent)) / 100;
        let excess = keep_free.saturating_sub(u128::from(disk.available));
        Some(u64::try_from(excess).unwrap_or(u64::MAX)).filter(|excess| *excess > 0)
    }
}

/// What is known of an image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Known {
    /// When it was first seen; `None`: it was here before.
    since: Option<Timestamp>,
    /// When it was last in use.
    used: Option<Timestamp>,
}

/// Since when images are here and when they were used. Pure.
#[derive(Debug, Default)]
struct Record {
    known: HashMap<String, Known>,
    begun: bool,
}

impl Record {
    /// Takes note of a look at the images, and of the names and ids that are in use.
    fn observe(&mut self, images: &[LocalImage], used: &BTreeSet<String>, now: Timestamp) {
        let since = std::mem::replace(&mut self.begun, true).then_some(now);
        self.known.retain(|id, _| images.iter().any(|image| image.id == *id));
        for image in images {
            let known = self.known.entry(image.id.clone()).or_insert(Known { since, used: None });
            if is_used(image, used) {
                known.used = Some(now);
            }
        }
    }

    /// What may go, the longest unused first.
    fn candidates<'a>(
        &self,
        images: &'a [LocalImage],
        used: &BTreeSet<String>,
        min_age: Duration,
        now: Timestamp,
    ) -> Vec<&'a LocalImage> {
        let known = |image: &LocalImage| self.known.get(&image.id).copied().unwrap_or_default();
        let mut found: Vec<&LocalImage> = images
            .iter()
            .filter(|image| !image.pinned && !is_used(image, used))
            .filter(|image| known(image).since.is_none_or(|since| age(since, now) >= min_age))
            .collect();
        found.sort_by_key(|image| (known(image).used, known(image).since, &image.id));
        found
    }

    /// Whether an image was not used for so long, as far as is known.
    fn is_stale(&self, image: &LocalImage, max_age: Duration, started: Timestamp, now: Timestamp) -> bool {
        let known = self.known.get(&image.id).copied().unwrap_or_default();
        age(known.used.or(known.since).unwrap_or(started), now) > max_age
    }
}

fn age(since: Timestamp, now: Timestamp) -> Duration {
    Duration::try_from(now.duration_since(since)).unwrap_or_default()
}

fn is_used(image: &LocalImage, used: &BTreeSet<String>) -> bool {
    used.contains(&image.id) || image.names.iter().any(|name| used.contains(name))
}

/// Why images were not removed.
#[derive(Debug, Error)]
pub enum CollectError {
    /// The runtime.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// The disk that images are on.
    #[error(transparent)]
    Disk(#[from] ReadingError),
    /// An image could not be removed; others were.
    #[error("{} of the images could not be removed, such as {first}", failed)]
    Remove {
        /// How many.
        failed: usize,
        /// The first of them, and why.
        first: String,
    },
    /// A task was cancelled.
    #[error("the disk was not read: {0}")]
    Interrupted(#[from] tokio::task::JoinError),
}

/// What was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Collected {
    /// Bytes that were to be freed.
    pub wanted: u64,
    /// Bytes of the images that were removed.
    pub freed: u64,
    /// How many images.
    pub removed: usize,
}

/// Removes images.
pub struct ImageCollector {
    runtime: Arc<dyn Runtime>,
    policy: ImagePolicy,
    started: Timestamp,
    record: Mutex<Record>,
}

impl ImageCollector {
    /// By these rules.
    pub fn new(runtime: Arc<dyn Runtime>, policy: ImagePolicy) -> Self {
        Self { runtime, policy, started: Timestamp::now(), record: Mutex::default() }
    }

    /// Looks at images and disk, and removes what has to go. `None`: nothing had to.
    pub async fn collect(&self) -> Result<Option<Collected>, CollectError> {
        let mountpoint = self.runtime.image_disk().await?.mountpoint;
        let look = move || {
            let existing = mountpoint.ancestors().find(|ancestor| ancestor.is_dir()).unwrap_or(Path::new("/"));
            disk(existing)
        };
        let reading = tokio::task::spawn_blocking(look).await??;
        let excess = self.policy.excess(&reading);
        let done = self.remove(excess).await?;
        Ok(Some(done).filter(|done| done.wanted > 0 || done.removed > 0))
    }

    /// Removes every image that nobody uses and that is old enough: the node is short of disk.
    pub async fn remove_unused(&self) -> Result<Collected, CollectError> {
        self.remove(Some(u64::MAX)).await
    }

    async fn remove(&self, wanted: Option<u64>) -> Result<Collected, CollectError> {
        // One at a time: two would count the same images.
        let mut record = self.record.lock().await;
        let images = self.runtime.images().await?;
        let mut used = self.runtime.used_images().await?;
        used.extend(self.runtime.sandbox_image().await?);
        let now = Timestamp::now();
        record.observe(&images, &used, now);
        let mut done = Collected { wanted: wanted.unwrap_or(0), freed: 0, removed: 0 };
        let (mut failed, mut first) = (0, String::new());
        for image in record.candidates(&images, &used, self.policy.min_age, now) {
            let stale = self.policy.max_age.is_some_and(|age| record.is_stale(image, age, self.started, now));
            if done.freed >= done.wanted && !stale {
                continue;
            }
            let name = image.names.first().unwrap_or(&image.id);
            match self.runtime.remove_image(&image.id).await {
                Ok(()) => {
                    tracing::info!(image = name, bytes = image.size_bytes, "an image that nobody uses is removed");
                    done.freed = done.freed.saturating_add(image.size_bytes);
                    done.removed += 1;
                }
                Err(error) => {
                    failed += 1;
                    if first.is_empty() {
                        first = format!("{name}: {error}");
                    }
                }
            }
        }
        if failed > 0 { Err(CollectError::Remove { failed, first }) } else { Ok(done) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::edged::fake::FakeRuntime;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_700_000_000 + second).unwrap()
    }

    fn image(id: &str, pinned: bool) -> LocalImage {
        LocalImage { id: id.into(), names: vec![format!("{id}:1")], size_bytes: 5, pinned, ..LocalImage::default() }
    }

    fn used(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn reading(capacity: u64, available: u64) -> DiskReading {
        DiskReading { capacity, available, ..DiskReading::default() }
    }

    #[test]
    fn room_is_made_from_the_high_threshold_down_to_the_low_one() {
        let policy = ImagePolicy::default();
        assert_eq!(policy.excess(&reading(1000, 151)), None);
        assert_eq!(policy.excess(&reading(1000, 150)), Some(50));
        assert_eq!(policy.excess(&reading(1000, 0)), Some(200));
        assert_eq!(policy.excess(&reading(0, 0)), None);
        let never = ImagePolicy { high_percent: 100, ..policy };
        assert_eq!(never.excess(&reading(1000, 0)), None);
    }

    proptest! {
        #[test]
        fn what_is_to_be_freed_brings_the_disk_below_the_low_threshold(
            capacity in 1_u64.., free in 0_u64.., high in 1_u8..100, low in 0_u8..100,
        ) {
            let (low, available) = (low.min(high), free % capacity.saturating_add(1).max(1));
            let policy = ImagePolicy { high_percent: high, low_percent: low, ..ImagePolicy::default() };
            if let Some(excess) = policy.excess(&reading(capacity, available)) {
                prop_assert!(excess <= capacity - available);
                let after = u128::from(available) + u128::from(excess);
                // Percents are cut to whole bytes.
                prop_assert!((after + 1) * 100 >= u128::from(capacity) * u128::from(100 - low));
            }
        }
    }

    #[test]
    fn the_longest_unused_goes_first_and_never_what_is_needed() {
        let mut record = Record::default();
        let images = [image("old", false), image("busy", false), image("pause", true), image("seen", false)];
        record.observe(&images, &used(&["busy:1", "seen"]), at(0));
        let mut later = images.to_vec();
        later.push(image("young", false));
        record.observe(&later, &used(&["busy"]), at(100));
        let candidates = |min_age, now| -> Vec<&str> {
            let found = record.candidates(&later, &used(&["busy"]), Duration::from_secs(min_age), now);
            found.into_iter().map(|image| image.id.as_str()).collect()
        };
        assert_eq!(candidates(120, at(219)), ["old", "seen"], "the young one is too young");
        assert_eq!(candidates(120, at(220)), ["old", "young", "seen"]);
        let stale = |image: usize| record.is_stale(&later[image], Duration::from_secs(60), at(0), at(61));
        assert!(stale(0) && !stale(1));
    }

    #[tokio::test]
    async fn unused_images_go_and_what_cannot_go_is_said() {
        let runtime = FakeRuntime::new(Arc::new(Timestamp::now));
        for name in ["a:1", "b:1"] {
            runtime.add_image(name);
        }
        let collector = ImageCollector::new(Arc::new(runtime.clone()), ImagePolicy::default());
        runtime.fail_next("remove_image", "busy");
        let error = collector.remove_unused().await.unwrap_err().to_string();
        assert_eq!(error, "1 of the images could not be removed, such as a:1: remove_image failed: busy");
        assert_eq!(collector.remove_unused().await.unwrap().removed, 1);
        assert!(runtime.images().await.unwrap().is_empty());
    }
}
