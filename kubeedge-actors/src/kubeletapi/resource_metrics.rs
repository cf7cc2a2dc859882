//! `/metrics/resource`: what a metrics-server scrapes, in Prometheus' text form with a kubelet's names. Pure.

use std::fmt::Write as _;

use kubeedge_proto::v1::{NodeStats, UsageStats};

use super::summary::total;

/// The content type of [`page`].
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Name, help, type, and how it is read.
type Metric = (&'static str, &'static str, &'static str, fn(&UsageStats) -> String);

const CPU: fn(&UsageStats) -> String = |usage| seconds(usage.cpu_nano_seconds);
const MEMORY: fn(&UsageStats) -> String = |usage| usage.memory_working_set.to_string();

const CONTAINER: [Metric; 2] = [
    (
        "container_cpu_usage_seconds_total",
        "[STABLE] Cumulative cpu time consumed by the container in core-seconds",
        "counter",
        CPU,
    ),
    ("container_memory_working_set_bytes", "[STABLE] Current working set of the container in bytes", "gauge", MEMORY),
];
const STARTED: (&str, &str) =
    ("container_start_time_seconds", "[STABLE] Start time of the container since unix epoch in seconds");
const NODE: [Metric; 2] = [
    (
        "node_cpu_usage_seconds_total",
        "[STABLE] Cumulative cpu time consumed by the node in core-seconds",
        "counter",
        CPU,
    ),
    ("node_memory_working_set_bytes", "[STABLE] Current working set of the node in bytes", "gauge", MEMORY),
];
const POD: [Metric; 2] = [
    ("pod_cpu_usage_seconds_total", "[STABLE] Cumulative cpu time consumed by the pod in core-seconds", "counter", CPU),
    ("pod_memory_working_set_bytes", "[STABLE] Current working set of the pod in bytes", "gauge", MEMORY),
];

/// The page.
pub fn page(stats: &NodeStats) -> String {
    let mut page = String::new();
    for (name, help, kind, read) in CONTAINER {
        head(&mut page, name, help, kind);
        for (labels, container) in containers(stats) {
            if let Some(usage) = &container.usage {
                line(&mut page, name, &labels, &read(usage), usage.time);
            }
        }
    }
    head(&mut page, STARTED.0, STARTED.1, "gauge");
    for (labels, container) in containers(stats).filter(|(_, container)| container.started > 0) {
        let started = u64::try_from(container.started).unwrap_or(0);
        push(&mut page, format_args!("{}{{{labels}}} {}\n", STARTED.0, seconds(started)));
    }
    for (name, help, kind, read) in NODE {
        head(&mut page, name, help, kind);
        if let Some(usage) = &stats.usage {
            line(&mut page, name, "", &read(usage), usage.time);
        }
    }
    for (name, help, kind, read) in POD {
        head(&mut page, name, help, kind);
        for pod in &stats.pods {
            let Some(usage) = total(pod) else { continue };
            let labels = format!("namespace=\"{}\",pod=\"{}\"", escaped(&pod.namespace), escaped(&pod.name));
            line(&mut page, name, &labels, &read(&usage), usage.time);
        }
    }
    let error = "[STABLE] 1 if there was an error while getting container metrics, 0 otherwise";
    head(&mut page, "resource_scrape_error", error, "gauge");
    push(&mut page, format_args!("resource_scrape_error {}\n", u8::from(!stats.fault.is_empty())));
    page
}

fn containers(stats: &NodeStats) -> impl Iterator<Item = (String, &kubeedge_proto::v1::ContainerUsage)> {
    stats.pods.iter().flat_map(|pod| {
        pod.containers.iter().map(|container| {
            let labels = format!(
                "container=\"{}\",namespace=\"{}\",pod=\"{}\"",
                escaped(&container.name),
                escaped(&pod.namespace),
                escaped(&pod.name)
            );
            (labels, container)
        })
    })
}

fn head(page: &mut String, name: &str, help: &str, kind: &str) {
    push(page, format_args!("# HELP {name} {help}\n# TYPE {name} {kind}\n"));
}

fn line(page: &mut String, name: &str, labels: &str, value: &str, at: i64) {
    let at = at / 1_000_000;
    if labels.is_empty() {
        push(page, format_args!("{name} {value} {at}\n"));
    } else {
        push(page, format_args!("{name}{{{labels}}} {value} {at}\n"));
    }
}

fn push(page: &mut String, text: std::fmt::Arguments<'_>) {
    // Writing into a String does not fail.
    let _ = page.write_fmt(text);
}

/// Nanoseconds as seconds, exactly.
fn seconds(nanoseconds: u64) -> String {
    let (whole, rest) = (nanoseconds / 1_000_000_000, nanoseconds % 1_000_000_000);
    format!("{whole}.{rest:09}")
}

fn escaped(label: &str) -> String {
    label.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}
