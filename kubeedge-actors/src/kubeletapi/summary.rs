//! `/stats/summary`: the kubelet's Summary API, v1alpha1. Pure.

use jiff::Timestamp;
use kubeedge_proto::v1::{ContainerUsage, DiskStats, NodeStats, PodStats, UsageStats};
use serde_json::{Map, Value, json};

/// The document. With `only_cpu_and_memory`, as the query parameter of that name asks, no disks and networks.
pub fn summary(stats: &NodeStats, only_cpu_and_memory: bool) -> Value {
    let mut node = Map::new();
    node.insert("nodeName".into(), stats.node.clone().into());
    node.insert("startTime".into(), time(stats.started));
    if let Some(usage) = &stats.usage {
        usage_fields(&mut node, usage);
    }
    if !only_cpu_and_memory {
        if let Some(disk) = &stats.disk {
            node.insert("fs".into(), disk_value(disk, disk.used));
        }
        if let Some(disk) = &stats.image_disk {
            let images = disk_value(disk, stats.image_bytes.unwrap_or(disk.used));
            node.insert("runtime".into(), json!({"imageFs": images}));
        }
        let at = stats.usage.as_ref().map_or(0, |usage| usage.time);
        node.insert("rlimit".into(), json!({"time": time(at), "maxpid": stats.pids, "curproc": stats.pids_used}));
        let interfaces: Vec<Value> = stats
            .interfaces
            .iter()
            .map(|one| {
                json!({"name": one.name, "rxBytes": one.received_bytes, "rxErrors": one.receive_errors,
                    "txBytes": one.sent_bytes, "txErrors": one.send_errors})
            })
            .collect();
        if let Some(Value::Object(first)) = interfaces.first().cloned() {
            let mut network = first;
            network.insert("time".into(), time(at));
            network.insert("interfaces".into(), interfaces.into());
            node.insert("network".into(), network.into());
        }
    }
    let pods: Vec<Value> = stats.pods.iter().map(|pod| pod_value(pod, only_cpu_and_memory)).collect();
    json!({"node": node, "pods": pods})
}

fn pod_value(pod: &PodStats, only_cpu_and_memory: bool) -> Value {
    let mut value = Map::new();
    value.insert("podRef".into(), json!({"name": pod.name, "namespace": pod.namespace, "uid": pod.uid}));
    value.insert("startTime".into(), time(pod.started));
    let containers: Vec<Value> =
        pod.containers.iter().map(|container| container_value(container, only_cpu_and_memory)).collect();
    if let Some(usage) = total(pod) {
        usage_fields(&mut value, &usage);
    }
    value.insert("containers".into(), containers.into());
    if !only_cpu_and_memory {
        let bytes: u64 = pod.containers.iter().map(|one| one.layer_bytes).sum();
        value.insert("ephemeral-storage".into(), json!({"usedBytes": bytes}));
    }
    value.into()
}

/// What the containers of a pod use together; `None` while none runs. A rate of some would be one of none.
pub fn total(pod: &PodStats) -> Option<UsageStats> {
    let mut usages = pod.containers.iter().filter_map(|container| container.usage);
    let first = usages.next()?;
    Some(usages.fold(first, |sum, one| UsageStats {
        time: sum.time.max(one.time),
        cpu_nano_seconds: sum.cpu_nano_seconds.saturating_add(one.cpu_nano_seconds),
        cpu_nano_cores: sum.cpu_nano_cores.zip(one.cpu_nano_cores).map(|(a, b)| a.saturating_add(b)),
        memory_usage: sum.memory_usage.saturating_add(one.memory_usage),
        memory_working_set: sum.memory_working_set.saturating_add(one.memory_working_set),
        memory_available: None,
        memory_rss: sum.memory_rss.zip(one.memory_rss).map(|(a, b)| a.saturating_add(b)),
        page_faults: sum.page_faults.zip(one.page_faults).map(|(a, b)| a.saturating_add(b)),
        major_page_faults: sum.major_page_faults.zip(one.major_page_faults).map(|(a, b)| a.saturating_add(b)),
    }))
}

fn container_value(container: &ContainerUsage, only_cpu_and_memory: bool) -> Value {
    let mut value = Map::new();
    value.insert("name".into(), container.name.clone().into());
    value.insert("startTime".into(), time(container.started));
    if let Some(usage) = &container.usage {
        usage_fields(&mut value, usage);
    }
    if !only_cpu_and_memory {
        let layer = json!({"usedBytes": container.layer_bytes, "inodesUsed": container.layer_inodes});
        value.insert("rootfs".into(), layer);
    }
    value.into()
}

fn usage_fields(value: &mut Map<String, Value>, usage: &UsageStats) {
    let at = time(usage.time);
    let mut cpu = json!({"time": at, "usageCoreNanoSeconds": usage.cpu_nano_seconds});
    let mut memory = json!({"time": at, "usageBytes": usage.memory_usage, "workingSetBytes": usage.memory_working_set});
    if let Some(rate) = usage.cpu_nano_cores {
        cpu["usageNanoCores"] = rate.into();
    }
    for (name, number) in [
        ("availableBytes", usage.memory_available),
        ("rssBytes", usage.memory_rss),
        ("pageFaults", usage.page_faults),
        ("majorPageFaults", usage.major_page_faults),
    ] {
        if let Some(number) = number {
            memory[name] = number.into();
        }
    }
    value.insert("cpu".into(), cpu);
    value.insert("memory".into(), memory);
}

fn disk_value(disk: &DiskStats, used: u64) -> Value {
    json!({"time": time(disk.time), "availableBytes": disk.available, "capacityBytes": disk.capacity,
        "usedBytes": used, "inodesFree": disk.inodes_free, "inodes": disk.inodes, "inodesUsed": disk.inodes_used})
}

/// RFC 3339 in seconds, as Kubernetes writes times; null for what is not known.
fn time(nanoseconds: i64) -> Value {
    if nanoseconds <= 0 {
        return Value::Null;
    }
    match Timestamp::from_second(nanoseconds.div_euclid(1_000_000_000)) {
        Ok(time) => time.to_string().into(),
        Err(_) => Value::Null,
    }
}
