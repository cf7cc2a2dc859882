//! What the node and its pods use: [`machine`] reads the node, the runtime tells of containers, [`rates`] makes
//! "billionths of a core now" of two looks. Nothing is read while nobody asks.

pub mod machine;
pub mod rates;

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use kubeedge_proto::v1::{ContainerUsage, DiskStats, NodeStats, PodStats, UsageStats};
use tokio::{sync::Mutex, time::Instant};

use self::{
    machine::MachineUsage,
    rates::{Look, Rates},
};
use super::{
    existing,
    node::readings::{DiskReading, MachinePaths, MachineReadings},
    runtime::{ContainerStats, Runtime},
};

/// An answer this young is given again: whoever asks more often costs nothing.
const FRESH: Duration = Duration::from_secs(5);
/// When there is no rate yet, a second look follows after this.
const SECOND_LOOK: Duration = Duration::from_millis(1000);
/// What the node itself is called among the looks; no container has this id.
const NODE: &str = "";

/// What is known of a pod beside what it uses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodFact {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Uid.
    pub uid: String,
    /// When this node took it up, nanoseconds since 1970; 0: not known.
    pub started: i64,
    /// Its containers that run, each with when it was started.
    pub containers: Vec<(String, i64)>,
}

impl PodFact {
    /// From a pod and the status that was computed last.
    pub fn of(uid: &str, pod: &Pod, status: Option<&PodStatus>) -> Self {
        let started = status.and_then(|status| status.start_time.as_ref()).map_or(0, |time| nanoseconds(time.0));
        let statuses = status.into_iter().flat_map(|status| {
            let init = status.init_container_statuses.iter().flatten();
            status
                .container_statuses
                .iter()
                .flatten()
                .chain(init)
                .chain(status.ephemeral_container_statuses.iter().flatten())
        });
        let containers = statuses.filter_map(|status| {
            let running = status.state.as_ref()?.running.as_ref()?;
            Some((status.name.clone(), running.started_at.as_ref().map_or(0, |time| nanoseconds(time.0))))
        });
        Self {
            namespace: pod.metadata.namespace.clone().unwrap_or_default(),
            name: pod.metadata.name.clone().unwrap_or_default(),
            uid: uid.to_owned(),
            started,
            containers: containers.collect(),
        }
    }
}

fn nanoseconds(time: Timestamp) -> i64 {
    i64::try_from(time.as_nanosecond()).unwrap_or(0)
}

/// What is kept between two questions.
#[derive(Default)]
struct Kept {
    rates: Rates,
    last: Option<(Instant, NodeStats)>,
}

/// Answers what the node uses. Clones share what they keep.
#[derive(Clone)]
pub struct Sampler {
    node: String,
    runtime: Arc<dyn Runtime>,
    paths: MachinePaths,
    kept: Arc<Mutex<Kept>>,
}

/// One look at everything.
struct Seen {
    now: i64,
    machine: MachineUsage,
    readings: MachineReadings,
    image_bytes: Option<u64>,
    containers: Vec<ContainerStats>,
    fault: String,
}

impl Sampler {
    /// For the node of that name.
    pub fn new(node: String, runtime: Arc<dyn Runtime>, paths: MachinePaths) -> Self {
        Self { node, runtime, paths, kept: Arc::default() }
    }

    /// What the node and these pods use. At most two looks at the machine, one second apart; one at a time.
    pub async fn stats(&self, pods: &[PodFact]) -> NodeStats {
        let mut kept = self.kept.lock().await;
        if let Some((at, stats)) = &kept.last
            && at.elapsed() < FRESH
        {
            return stats.clone();
        }
        let mut seen = self.look(&mut kept.rates).await;
        if seen.as_ref().is_ok_and(|_| !kept.rates.is_complete()) {
            tokio::time::sleep(SECOND_LOOK).await;
            seen = self.look(&mut kept.rates).await;
        }
        let stats = match seen {
            Ok(seen) => node_stats(&self.node, &seen, &kept.rates, pods),
            Err(fault) => NodeStats { node: self.node.clone(), fault, ..NodeStats::default() },
        };
        kept.last = Some((Instant::now(), stats.clone()));
        stats
    }

    async fn look(&self, rates: &mut Rates) -> Result<Seen, String> {
        let (containers, disk) = (self.runtime.container_stats().await, self.runtime.image_disk().await);
        let mut fault = String::new();
        let mut note = |error: &dyn std::fmt::Display| {
            fault.push_str(if fault.is_empty() { "" } else { "; " });
            fault.push_str(&error.to_string());
        };
        let image_bytes = disk.as_ref().map(|disk| disk.used_bytes).map_err(|error| note(error)).ok();
        let containers = containers.unwrap_or_else(|error| {
            note(&error);
            Vec::new()
        });
        let mut paths = self.paths.clone();
        if let Ok(disk) = disk {
            paths.image_dir = existing(&disk.mountpoint);
        }
        let read = tokio::task::spawn_blocking(move || {
            let usage = MachineUsage::read(&paths.proc).map_err(|error| error.to_string())?;
            let readings = MachineReadings::read(&paths).map_err(|error| error.to_string())?;
            Ok::<_, String>((usage, readings))
        });
        let (machine, readings) = read.await.map_err(|error| error.to_string())??;
        let now = nanoseconds(Timestamp::now());
        let looks = containers.iter().filter_map(|stats| {
            let cpu = stats.cpu_nano_seconds?;
            Some(Look { id: stats.id.as_str(), at: stats.at.map_or(now, nanoseconds), cpu })
        });
        rates.take([Look { id: NODE, at: now, cpu: machine.cpu_nano_seconds }].into_iter().chain(looks));
        Ok(Seen { now, machine, readings, image_bytes, containers, fault })
    }
}

fn node_stats(node: &str, seen: &Seen, rates: &Rates, pods: &[PodFact]) -> NodeStats {
    let Seen { now, machine, readings, .. } = seen;
    let memory_usage = machine.memory.saturating_sub(machine.memory_free);
    let usage = UsageStats {
        time: *now,
        cpu_nano_seconds: machine.cpu_nano_seconds,
        cpu_nano_cores: rates.of(NODE),
        memory_usage,
        memory_working_set: memory_usage.saturating_sub(machine.inactive_file),
        memory_available: Some(readings.memory_available),
        memory_rss: Some(machine.anonymous),
        page_faults: Some(machine.page_faults),
        major_page_faults: Some(machine.major_page_faults),
    };
    NodeStats {
        node: node.to_owned(),
        started: machine.booted,
        usage: Some(usage),
        disk: Some(disk(&readings.disk, *now)),
        image_disk: Some(disk(&readings.image_disk, *now)),
        image_bytes: seen.image_bytes,
        pids: readings.pids,
        pids_used: readings.pids_used,
        interfaces: machine.interfaces.clone(),
        pods: pods.iter().map(|pod| pod_stats(pod, &seen.containers, rates, *now)).collect(),
        fault: seen.fault.clone(),
    }
}

fn disk(reading: &DiskReading, now: i64) -> DiskStats {
    DiskStats {
        time: now,
        capacity: reading.capacity,
        available: reading.available,
        used: reading.capacity.saturating_sub(reading.available),
        inodes: reading.inodes,
        inodes_free: reading.inodes_free,
        inodes_used: reading.inodes.saturating_sub(reading.inodes_free),
    }
}

fn pod_stats(pod: &PodFact, stats: &[ContainerStats], rates: &Rates, now: i64) -> PodStats {
    let own = stats.iter().filter(|stats| stats.pod_uid == pod.uid);
    let containers = own.filter_map(|stats| {
        // What does not run uses nothing.
        let cpu = stats.cpu_nano_seconds?;
        let known = pod.containers.iter().find(|(name, _)| *name == stats.name);
        Some(ContainerUsage {
            name: stats.name.clone(),
            started: known.map_or(0, |(_, started)| *started),
            usage: Some(UsageStats {
                time: stats.at.map_or(now, nanoseconds),
                cpu_nano_seconds: cpu,
                cpu_nano_cores: rates.of(&stats.id),
                memory_usage: stats.memory_usage,
                memory_working_set: stats.memory_working_set,
                memory_available: None,
                memory_rss: stats.memory_rss,
                page_faults: stats.page_faults,
                major_page_faults: stats.major_page_faults,
            }),
            layer_bytes: stats.layer_bytes,
            layer_inodes: stats.layer_inodes,
        })
    });
    PodStats {
        namespace: pod.namespace.clone(),
        name: pod.name.clone(),
        uid: pod.uid.clone(),
        started: pod.started,
        containers: containers.collect(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::edged::fake::FakeRuntime;

    fn container(id: &str, pod: &str, name: &str, cpu: Option<u64>) -> ContainerStats {
        let (id, pod_uid, name) = (id.to_owned(), pod.to_owned(), name.to_owned());
        ContainerStats { id, pod_uid, name, cpu_nano_seconds: cpu, memory_working_set: 7, ..ContainerStats::default() }
    }

    #[test]
    fn a_pod_uses_what_its_running_containers_use() {
        let pod: Pod = serde_json::from_value(json!({"metadata": {"namespace": "ns", "name": "p"}})).unwrap();
        let status = json!({"startTime": "1970-01-01T00:00:01Z", "containerStatuses": [
            {"name": "a", "image": "", "imageID": "", "ready": true, "restartCount": 0,
             "state": {"running": {"startedAt": "1970-01-01T00:00:02Z"}}},
            {"name": "b", "image": "", "imageID": "", "ready": false, "restartCount": 0,
             "state": {"terminated": {"exitCode": 0}}}]});
        let status: PodStatus = serde_json::from_value(status).unwrap();
        let fact = PodFact::of("u", &pod, Some(&status));
        assert_eq!((fact.started, fact.containers.clone()), (1_000_000_000, vec![("a".into(), 2_000_000_000)]));
        let seen =
            [container("1", "u", "a", Some(5)), container("2", "u", "b", None), container("3", "other", "a", Some(9))];
        let stats = pod_stats(&fact, &seen, &Rates::default(), 3);
        assert_eq!(stats.containers.len(), 1);
        let usage = stats.containers[0].usage.unwrap();
        assert_eq!((usage.cpu_nano_seconds, usage.cpu_nano_cores, usage.memory_working_set), (5, None, 7));
        assert_eq!((usage.time, stats.containers[0].started), (3, 2_000_000_000));
    }

    #[tokio::test]
    async fn the_first_answer_has_a_rate_and_the_next_costs_nothing() {
        let runtime = FakeRuntime::new(Arc::new(Timestamp::now));
        let sampler = Sampler::new("edge-1".into(), Arc::new(runtime), MachinePaths::default());
        let first = sampler.stats(&[]).await;
        assert_eq!((first.node.as_str(), first.fault.as_str()), ("edge-1", ""));
        let usage = first.usage.unwrap();
        assert!(usage.cpu_nano_cores.is_some() && usage.cpu_nano_seconds > 0);
        assert!(usage.memory_working_set > 0 && usage.memory_working_set <= usage.memory_usage);
        assert!(first.started > 0 && first.disk.unwrap().capacity > 0 && first.pids > 0);
        let began = Instant::now();
        assert_eq!(sampler.stats(&[]).await, first);
        assert!(began.elapsed() < SECOND_LOOK);
    }
}
