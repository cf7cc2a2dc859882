//! Pod, and the line `kubectl get pods` prints.

use serde_json::{Value, json};

use super::cells::{AGE, NAME, NONE, column, creation_age, name, text_or, wide};
use crate::kubeapi::fields::{flag, integer, list, text};
use crate::kubeapi::resource::{Column, Resource};
use crate::kubeapi::time;

/// Pod.
pub(crate) const POD: Resource = Resource {
    group: "",
    version: "v1",
    kind: "Pod",
    plural: "pods",
    singular: "pod",
    short_names: &["po"],
    categories: &["all"],
    namespaced: true,
    status_subresource: true,
    stored_as: None,
    selectable: &[
        ("spec.nodeName", |o| text(o, "/spec/nodeName").to_owned()),
        ("spec.restartPolicy", |o| text(o, "/spec/restartPolicy").to_owned()),
        ("spec.schedulerName", |o| text(o, "/spec/schedulerName").to_owned()),
        ("spec.serviceAccountName", |o| text(o, "/spec/serviceAccountName").to_owned()),
        ("spec.hostNetwork", |o| flag(o, "/spec/hostNetwork").to_string()),
        ("status.phase", |o| text(o, "/status/phase").to_owned()),
        ("status.podIP", |o| text(o, "/status/podIP").to_owned()),
        ("status.nominatedNodeName", |o| text(o, "/status/nominatedNodeName").to_owned()),
    ],
    columns: COLUMNS,
    cells,
};

const COLUMNS: &[Column] = &[
    NAME,
    column("Ready", "Ready containers of all containers"),
    column("Status", "Phase, or the reason that says more"),
    column("Restarts", "Restarts of containers and the last one's age"),
    AGE,
    wide("IP", "Address of the pod"),
    wide("Node", "Node the pod is bound to"),
    wide("Nominated Node", "Node the scheduler makes room on"),
    wide("Readiness Gates", "Readiness gates passed of all gates"),
];

fn cells(pod: &Value, now: i64) -> Vec<Value> {
    let summary = Summary::of(pod);
    let gates = list(pod, "/spec/readinessGates");
    let gates = match gates.len() {
        0 => NONE.to_owned(),
        all => {
            let passed = gates.iter().filter(|gate| condition_holds(pod, text(gate, "/conditionType"))).count();
            format!("{passed}/{all}")
        }
    };
    vec![
        name(pod),
        json!(format!("{}/{}", summary.ready, summary.total)),
        json!(summary.reason),
        json!(summary.restarts(now)),
        creation_age(pod, now),
        json!(text_or(pod, "/status/podIP", NONE)),
        json!(text_or(pod, "/spec/nodeName", NONE)),
        json!(text_or(pod, "/status/nominatedNodeName", NONE)),
        json!(gates),
    ]
}

/// Restarts and when the last one was, seconds since 1970.
#[derive(Clone, Copy, Default)]
struct Restarts {
    count: i64,
    last: Option<i64>,
}

impl Restarts {
    fn add(&mut self, status: &Value) {
        self.count += integer(status, "/restartCount").unwrap_or_default();
        let finished = time::seconds(text(status, "/lastState/terminated/finishedAt"));
        self.last = self.last.max(finished);
    }
}

/// What containers and conditions say together.
struct Summary {
    ready: usize,
    total: usize,
    reason: String,
    restarts: Restarts,
}

impl Summary {
    fn of(pod: &Value) -> Self {
        let init = list(pod, "/spec/initContainers");
        let sidecars = init.iter().filter(|c| is_sidecar(c)).count();
        let total = list(pod, "/spec/containers").len() + sidecars;
        let phase = text(pod, "/status/phase");
        let mut summary = Self {
            ready: 0,
            total,
            reason: text_or(pod, "/status/reason", phase).to_owned(),
            restarts: Restarts::default(),
        };
        let gated = |c: &Value| text(c, "/type") == "PodScheduled" && text(c, "/reason") == "SchedulingGated";
        if list(pod, "/status/conditions").iter().any(gated) {
            summary.reason = "SchedulingGated".to_owned();
        }
        let (initializing, sidecar_restarts) = summary.initialization(pod, init);
        if !initializing || condition_holds(pod, "Initialized") {
            summary.restarts = sidecar_restarts;
            summary.containers(pod);
        }
        let deleted = pod.pointer("/metadata/deletionTimestamp").is_some_and(|t| !t.is_null());
        if deleted && text(pod, "/status/reason") == "NodeLost" {
            summary.reason = "Unknown".to_owned();
        } else if deleted && !matches!(phase, "Succeeded" | "Failed") {
            summary.reason = "Terminating".to_owned();
        }
        summary
    }

    /// Walks the init containers up to the first one that is not through; says whether there is one, and the restarts
    /// of those that run along with the pod.
    fn initialization(&mut self, pod: &Value, init: &[Value]) -> (bool, Restarts) {
        let mut sidecar_restarts = Restarts::default();
        for (index, status) in list(pod, "/status/initContainerStatuses").iter().enumerate() {
            self.restarts.add(status);
            let name = text(status, "/name");
            let sidecar = init.iter().any(|c| text(c, "/name") == name && is_sidecar(c));
            if sidecar {
                sidecar_restarts.add(status);
            }
            let terminated = status.pointer("/state/terminated");
            let waiting = text(status, "/state/waiting/reason");
            if terminated.is_some_and(|t| integer(t, "/exitCode").unwrap_or_default() == 0) {
                continue;
            }
            if sidecar && flag(status, "/started") {
                self.ready += usize::from(flag(status, "/ready"));
                continue;
            }
            self.reason = match terminated {
                Some(terminated) => format!("Init:{}", exit(terminated)),
                None if !waiting.is_empty() && waiting != "PodInitializing" => format!("Init:{waiting}"),
                None => format!("Init:{index}/{}", init.len()),
            };
            return (true, sidecar_restarts);
        }
        (false, sidecar_restarts)
    }

    fn containers(&mut self, pod: &Value) {
        let mut running = false;
        for status in list(pod, "/status/containerStatuses").iter().rev() {
            self.restarts.add(status);
            let waiting = text(status, "/state/waiting/reason");
            if !waiting.is_empty() {
                self.reason = waiting.to_owned();
            } else if let Some(terminated) = status.pointer("/state/terminated") {
                self.reason = exit(terminated);
            } else if flag(status, "/ready") && status.pointer("/state/running").is_some() {
                running = true;
                self.ready += 1;
            }
        }
        if self.reason == "Completed" && running {
            self.reason = if condition_holds(pod, "Ready") { "Running" } else { "NotReady" }.to_owned();
        }
    }

    fn restarts(&self, now: i64) -> String {
        match (self.restarts.count, self.restarts.last) {
            (count, Some(last)) if count != 0 => format!("{count} ({} ago)", time::duration(now.saturating_sub(last))),
            (count, _) => count.to_string(),
        }
    }
}

/// Why a container ended: its reason, else the signal, else the exit code.
fn exit(terminated: &Value) -> String {
    match (text(terminated, "/reason"), integer(terminated, "/signal").unwrap_or_default()) {
        ("", 0) => format!("ExitCode:{}", integer(terminated, "/exitCode").unwrap_or_default()),
        ("", signal) => format!("Signal:{signal}"),
        (reason, _) => reason.to_owned(),
    }
}

fn is_sidecar(container: &Value) -> bool {
    text(container, "/restartPolicy") == "Always"
}

fn condition_holds(pod: &Value, type_: &str) -> bool {
    list(pod, "/status/conditions").iter().any(|c| text(c, "/type") == type_ && text(c, "/status") == "True")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(pod: &Value) -> [String; 3] {
        let cells = cells(pod, time::seconds("2026-01-01T00:10:00Z").expect("a time"));
        [1, 2, 3].map(|index: usize| cells[index].as_str().unwrap_or_default().to_owned())
    }

    fn pod(status: Value) -> Value {
        json!({"metadata": {"name": "p"}, "status": status,
            "spec": {"containers": [{"name": "a"}, {"name": "b"}], "initContainers": [{"name": "i"}, {"name": "j"}]}})
    }

    #[test]
    fn a_pod_without_container_statuses_shows_its_phase_or_reason() {
        assert_eq!(line(&pod(json!({"phase": "Pending"}))), ["0/2", "Pending", "0"]);
        assert_eq!(line(&pod(json!({"phase": "Failed", "reason": "Evicted"}))), ["0/2", "Evicted", "0"]);
    }

    #[test]
    fn the_first_container_that_is_not_well_is_shown() {
        let waiting = |reason: &str| {
            json!({"name": "a", "restartCount": 3, "state": {"waiting": {"reason": reason}},
            "lastState": {"terminated": {"finishedAt": "2026-01-01T00:05:00Z"}}})
        };
        let ready = json!({"name": "b", "ready": true, "state": {"running": {}}});
        let status = json!({"phase": "Running", "containerStatuses": [waiting("CrashLoopBackOff"), ready]});
        assert_eq!(line(&pod(status)), ["1/2", "CrashLoopBackOff", "3 (5m ago)"]);
        let status = json!({"phase": "Pending", "containerStatuses": [waiting("ContainerCreating"), ready]});
        assert_eq!(line(&pod(status))[1], "ContainerCreating");
    }

    #[test]
    fn ended_containers_show_reason_signal_or_exit_code() {
        let ended = |state: Value| {
            let status = json!({"phase": "Succeeded", "containerStatuses": [{"state": {"terminated": state}}]});
            line(&pod(status))[1].clone()
        };
        assert_eq!(ended(json!({"reason": "Completed", "exitCode": 0})), "Completed");
        assert_eq!(ended(json!({"signal": 9, "exitCode": 137})), "Signal:9");
        assert_eq!(ended(json!({"exitCode": 2})), "ExitCode:2");
    }

    #[test]
    fn one_running_container_makes_a_completed_pod_running() {
        let statuses =
            json!([{"state": {"terminated": {"reason": "Completed"}}}, {"ready": true, "state": {"running": {}}}]);
        let mut status = json!({"phase": "Running", "containerStatuses": statuses});
        assert_eq!(line(&pod(status.clone()))[1], "NotReady");
        status["conditions"] = json!([{"type": "Ready", "status": "True"}]);
        assert_eq!(line(&pod(status))[1], "Running");
    }

    #[test]
    fn initialization_shows_its_progress() {
        let done = json!({"name": "i", "state": {"terminated": {"exitCode": 0}}});
        let waiting = |reason: &str| json!({"name": "j", "state": {"waiting": {"reason": reason}}});
        let shown =
            |second: Value| line(&pod(json!({"phase": "Pending", "initContainerStatuses": [done, second]})))[1].clone();
        assert_eq!(shown(waiting("PodInitializing")), "Init:1/2");
        assert_eq!(shown(waiting("ErrImagePull")), "Init:ErrImagePull");
        assert_eq!(shown(json!({"name": "j", "state": {"terminated": {"exitCode": 3}}})), "Init:ExitCode:3");
        assert_eq!(shown(done.clone()), "Pending");
    }

    #[test]
    fn sidecars_count_as_containers_once_started() {
        let mut pod = pod(json!({"phase": "Running", "initContainerStatuses": [
            {"name": "i", "started": true, "ready": true, "restartCount": 2, "state": {"running": {}}}],
            "containerStatuses": [{"ready": true, "state": {"running": {}}},
                {"ready": true, "state": {"running": {}}}]}));
        pod["spec"]["initContainers"] = json!([{"name": "i", "restartPolicy": "Always"}]);
        assert_eq!(line(&pod), ["3/3", "Running", "2"]);
    }

    #[test]
    fn a_deleted_pod_is_terminating_and_a_lost_one_unknown() {
        let mut pod = pod(json!({"phase": "Running"}));
        pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        assert_eq!(line(&pod)[1], "Terminating");
        pod["status"]["reason"] = json!("NodeLost");
        assert_eq!(line(&pod)[1], "Unknown");
        pod["status"] = json!({"phase": "Succeeded"});
        assert_eq!(line(&pod)[1], "Succeeded");
    }
}
