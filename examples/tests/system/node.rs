//! What belongs to the node rather than to one pod. One lab; a scenario that needs other settings restarts edgecore.

mod object;
mod plugin;

use std::{fs, path::PathBuf, time::Duration};

use anyhow::{Context, Result, ensure};
use futures_util::FutureExt;
use k8s_openapi::api::{
    core::v1::{Event, Node, Pod},
    node::v1::RuntimeClass,
};
use kube::{
    Api,
    api::{DeleteParams, ListParams, ObjectMeta, PostParams},
};
use kubeedge_examples::{
    containerd::Tools,
    http,
    lab::{self, Lab, NODE},
};
use serde_json::Value;

use crate::{
    cluster::{NAMESPACE, apply, container, delete, first, poll, restarts, running, uid, until_pod},
    kubectls::{self, outcome},
    pods::{script, up},
    report::{Outcome, Report},
    shims::end_lost_shims,
};

const UP: &str = "node::a_lab_comes_up";
const DOWN: &str = "node::nothing_is_left_on_the_machine";
const API: &str = "node::its_own_api_shows_pods_and_what_they_use";
const TOP: &str = "node::kubectl_top_shows_nodes_and_pods";
const LOGS: &str = "node::a_log_that_grows_is_rotated_and_kubectl_logs_goes_on";
const IMAGES: &str = "node::images_that_nobody_uses_go_when_the_disk_fills_up";
const STORAGE: &str = "node::a_pod_that_fills_its_volume_is_evicted";
const PORTS: &str = "node::a_port_of_the_node_is_one_pods_at_a_time";
const CLASSES: &str = "node::a_pod_runs_by_the_handler_of_its_class_or_waits_for_the_class";
const AWAY: &str = "node::a_node_says_that_its_runtime_is_away_and_that_it_is_back";
const ROOM: &str = "node::a_pod_that_does_not_fit_is_refused_in_a_kubelets_words";
const PRESSURE: &str = "node::a_node_that_is_short_of_memory_says_so_evicts_and_lets_nobody_in";
const EVICTED: &str = "node::what_was_evicted_does_not_come_back_by_a_restart";
const DEVICES: &str = "node::a_device_plugin_gives_a_container_its_device";
const PIDS: &str = "node::a_pod_that_forks_without_end_meets_its_limit";
const OOM: &str = "node::a_container_beyond_its_memory_limit_is_killed_and_the_reason_says_so";
const GROUPS: &str = "node::a_pod_and_its_class_have_control_groups_with_their_share";
const HELD: &str = "node::a_held_pod_waits_for_its_release";
const STATIC: &str = "node::static_pods_run_with_the_cloud_away_and_are_mirrored_when_it_is_back";
const SHUTDOWN: &str = "node::pods_end_in_order_when_the_power_goes";
const ALL: [&str; 19] = [
    API,
    TOP,
    LOGS,
    IMAGES,
    STORAGE,
    ROOM,
    PORTS,
    CLASSES,
    DEVICES,
    PIDS,
    OOM,
    GROUPS,
    HELD,
    object::SEEN,
    STATIC,
    AWAY,
    PRESSURE,
    EVICTED,
    SHUTDOWN,
];

/// Burns processor time, so that there is something to measure.
const BUSY: &str = "busy";

pub(crate) async fn stage(report: &mut Report, tools: &Result<Tools>) {
    if !report.begins(&ALL) {
        return;
    }
    let Some(tools) = report.tools(tools, &ALL) else { return };
    let begin = async |lab: &mut Lab| {
        lab.settings = vec![
            // Every second, so that nobody waits for it.
            "containerLogMaxSize: 4Ki".into(),
            "containerLogMaxFiles: 3".into(),
            "containerLogMonitorInterval: 1s".into(),
            "podPidsLimit: 40".into(),
            "shutdownGracePeriod: 20s".into(),
            "shutdownGracePeriodCriticalPods: 10s".into(),
            object::TAINTS.into(),
            format!("staticPodPath: {}", lab.folder().join("manifests").display()),
        ];
        lab.edged = object::EDGED.map(str::to_owned).into();
        up(lab, tools).await?;
        lab.guarded(async |lab| {
            apply(lab, &script(BUSY, "Always", "while :; do :; done")).await?;
            running(&lab.client()?, BUSY).await.map(drop)
        })
        .await
    };
    let Some((mut lab, folder)) = report.lab(UP, begin).await else { return };
    let ended = lab
        .guarded(async |lab| {
            report
                .together(vec![
                    (API, api(lab).boxed_local()),
                    (TOP, top(lab).boxed_local()),
                    (LOGS, rotated(lab).boxed_local()),
                    (IMAGES, images(lab).boxed_local()),
                    (STORAGE, oversized(lab).boxed_local()),
                    (ROOM, no_room(lab).boxed_local()),
                    (PORTS, ports(lab).boxed_local()),
                    (CLASSES, classes(lab).boxed_local()),
                    (DEVICES, devices(lab).boxed_local()),
                    (PIDS, forks(lab).boxed_local()),
                    (OOM, out_of_memory(lab).boxed_local()),
                    (GROUPS, groups(lab).boxed_local()),
                    (HELD, held(lab).boxed_local()),
                    (object::SEEN, object::seen(lab).boxed_local()),
                ])
                .await;
            Ok(())
        })
        .await;
    report.run(STATIC, static_pods(&mut lab)).await;
    report.run(AWAY, runtime_away(&mut lab)).await;
    report.run(PRESSURE, pressed(&mut lab)).await;
    report.run(EVICTED, stays_evicted(&mut lab)).await;
    report.run(SHUTDOWN, power_failure(&mut lab)).await;
    let ended = match ended {
        Ok(()) => without_lost_shims(&mut lab).await,
        failed => failed,
    };
    report.close(DOWN, lab, folder, ended).await;
}

/// The runtime was killed in between, over which it may lose a shim.
async fn without_lost_shims(lab: &mut Lab) -> Result<()> {
    if lab.edge_runs() {
        lab.stop_edge().await?;
    }
    lab.containerd()?.remove_all_pods().await?;
    end_lost_shims(&lab.folder().join("containerd")).await
}

async fn page(lab: &Lab, path: &str) -> Result<String> {
    let address = lab.node_api()?;
    let answer = http::get(address, path).await?;
    let body = String::from_utf8(answer.body)?;
    ensure!(answer.status == 200, "{path} answered {}: {body}", answer.status);
    Ok(body)
}

async fn api(lab: &Lab) -> Result<Outcome> {
    ensure!(page(lab, "/healthz").await? == "ok");
    let pods: Value = serde_json::from_str(&page(lab, "/pods").await?)?;
    let items = pods["items"].as_array().cloned().unwrap_or_default();
    let is_busy = |pod: &Value| pod["metadata"]["name"] == BUSY && pod["status"]["phase"] == "Running";
    ensure!(items.iter().any(is_busy), "/pods: {pods}");

    let own = running(&lab.client()?, BUSY).await?;
    let uid = uid(&own)?;
    // A busy loop takes a core, or what a shared machine gives of one.
    let container = poll("the pod is seen to use a tenth of a core", async || {
        let summary: Value = serde_json::from_str(&page(lab, "/stats/summary").await?)?;
        let pods = summary["pods"].as_array().cloned().unwrap_or_default();
        let pod = pods.into_iter().find(|pod| pod["podRef"]["uid"] == *uid).context("the pod is not in the summary")?;
        let container = pod["containers"][0].clone();
        let busy = container["cpu"]["usageNanoCores"].as_u64().is_some_and(|cores| cores > 100_000_000);
        let node = &summary["node"];
        ensure!(node["memory"]["workingSetBytes"].as_u64() > Some(1 << 20), "{node}");
        ensure!(node["fs"]["capacityBytes"].as_u64() > Some(0) && node["runtime"]["imageFs"].is_object(), "{node}");
        Ok(if busy { Ok(container) } else { Err(container.to_string()) })
    })
    .await?;
    ensure!(container["name"] == "main" && container["memory"]["workingSetBytes"].as_u64() > Some(0), "{container}");

    let resource = page(lab, "/metrics/resource").await?;
    let labels = format!("{{container=\"main\",namespace=\"{NAMESPACE}\",pod=\"{BUSY}\"}} ");
    ensure!(resource.contains(&format!("\ncontainer_cpu_usage_seconds_total{labels}")), "{resource}");
    ensure!(resource.contains("\nresource_scrape_error 0\n"), "{resource}");
    let metrics = page(lab, "/metrics").await?;
    ensure!(metrics.contains("kubeedge_actor_running{component=\"edged\"} 1.0"), "{metrics}");
    let refused = http::request("DELETE", lab.node_api()?, "/pods").await?;
    ensure!(refused.status == 405, "DELETE /pods answered {}", refused.status);
    Ok(Outcome::Proved)
}

/// From the API server through the gateway and the node's stream connection to the runtime, and back.
async fn top(lab: &Lab) -> Result<Outcome> {
    let Some(kubectl) = kubectls::newest() else { return kubectls::missing() };
    let (done, nodes) = outcome(lab, &kubectl, &["top", "node"]).await?;
    let row: Vec<&str> = nodes.lines().nth(1).unwrap_or_default().split_whitespace().collect();
    let number = |cell: Option<&&str>, unit: &str| cell.and_then(|cell| cell.strip_suffix(unit)?.parse::<u64>().ok());
    ensure!(done && row.first() == Some(&"edge-1"), "{nodes}");
    ensure!(number(row.get(1), "m") > Some(0) && number(row.get(3), "Mi") > Some(0), "{nodes}");
    let (done, pods) = outcome(lab, &kubectl, &["top", "pod", BUSY, "--containers"]).await?;
    let row: Vec<&str> = pods.lines().nth(1).unwrap_or_default().split_whitespace().collect();
    ensure!(done && row.first() == Some(&BUSY) && row.get(1) == Some(&"main"), "{pods}");
    ensure!(number(row.get(2), "m") > Some(100), "a busy loop takes more than a tenth of a core: {pods}");
    let (done, none) = outcome(lab, &kubectl, &["top", "pod", "nobody"]).await?;
    ensure!(!done && none.contains("\"nobody\" not found"), "{none}");
    Ok(Outcome::Proved)
}

async fn rotated(lab: &Lab) -> Result<Outcome> {
    let name = "verbose";
    // Some 60 bytes with the runtime's prefix, a thousand lines.
    let story = "i=0; while [ $i -lt 1000 ]; do i=$((i+1)); echo line $i; [ $((i % 50)) = 0 ] && sleep 0.2; done; \
                 while :; do sleep 1; done";
    apply(lab, &script(name, "Always", story)).await?;
    let pod = running(&lab.client()?, name).await?;
    let folder = lab.folder().join("edge/logs/pods").join(format!("{NAMESPACE}_{name}_{}", uid(&pod)?)).join("main");
    let files = || -> Result<Vec<PathBuf>> {
        let mut files = fs::read_dir(&folder)?.map(|file| Ok(file?.path())).collect::<Result<Vec<_>>>()?;
        files.sort();
        Ok(files)
    };
    poll("the log is rotated twice", async || {
        let files = files()?;
        ensure!(files.len() <= 3, "more files than containerLogMaxFiles: {files:?}");
        Ok(if files.len() == 3 { Ok(()) } else { Err(format!("{files:?}")) })
    })
    .await?;
    let Some(kubectl) = kubectls::newest() else { return kubectls::missing() };
    // The last line is in the file that is written, or alone behind a rotation.
    poll("kubectl logs shows the last line", async || {
        let (done, text) = outcome(lab, &kubectl, &["logs", name]).await?;
        let files = files()?;
        ensure!(files.len() <= 3, "more files than containerLogMaxFiles: {files:?}");
        let kept = files.iter().any(|file| fs::read_to_string(file).is_ok_and(|text| text.contains("line 1000\n")));
        Ok(if done && (text.contains("line 1000\n") || kept) { Ok(()) } else { Err(text) })
    })
    .await?;
    // A line is in one file and no other: nothing is written twice.
    let mut seen = Vec::new();
    for file in files()? {
        let text = fs::read_to_string(file)?;
        seen.extend(text.lines().filter_map(|line| line.rsplit_once("line ")?.1.parse::<u32>().ok()));
    }
    let unbroken = seen.windows(2).filter(|pair| pair[1] == pair[0] + 1).count();
    // By name the newest is `0.log`, the first; behind it the others from old to new.
    ensure!(unbroken + 2 >= seen.len(), "lines are missing: {seen:?}");
    Ok(Outcome::Proved)
}

/// The thresholds are those of the whole machine: what is tried is the rule on a real runtime, with a disk that counts
/// as full.
async fn images(lab: &Lab) -> Result<Outcome> {
    use kubeedge_actors::edged::{
        cri::CriRuntime,
        housekeeping::{ImageCollector, ImagePolicy},
        runtime::Runtime,
    };
    use std::sync::Arc;
    let runtime = Arc::new(CriRuntime::new(&lab.containerd()?.endpoint())?);
    let before = runtime.images().await?;
    let unused = lab.other_image()?;
    runtime.pull_image(&unused, None, &kubeedge_proto::cri::PodSandboxConfig::default()).await?;
    let with = runtime.images().await?;
    ensure!(with.len() == before.len() + 1, "{unused} is pulled: {with:?}");
    let full = ImagePolicy { high_percent: 0, low_percent: 0, min_age: Duration::ZERO, ..ImagePolicy::default() };
    let collected = ImageCollector::new(runtime.clone(), full).collect().await?.context("the disk counts as full")?;
    ensure!(collected.removed == 1 && collected.freed < collected.wanted, "{collected:?}");
    // The pods' image and that of their sandboxes stay.
    let after = runtime.images().await?;
    ensure!(ids(&after) == ids(&before), "{after:?} where there was {before:?}");
    Ok(Outcome::Proved)
}

/// A runtime lists its images in any order.
fn ids(images: &[kubeedge_actors::edged::runtime::LocalImage]) -> Vec<&str> {
    let mut ids: Vec<_> = images.iter().map(|image| image.id.as_str()).collect();
    ids.sort_unstable();
    ids
}

fn failed_for(pod: &Pod, reason: &str) -> bool {
    let status = pod.status.clone().unwrap_or_default();
    status.phase.as_deref() == Some("Failed") && status.reason.as_deref() == Some(reason)
}

fn message(pod: &Pod) -> String {
    pod.status.as_ref().and_then(|status| status.message.clone()).unwrap_or_default()
}

/// What was told about an object, by reason.
pub(crate) async fn told(lab: &Lab, name: &str, reason: &str) -> Result<String> {
    let events = Api::<Event>::namespaced(lab.client()?, NAMESPACE);
    let of = ListParams::default().fields(&format!("involvedObject.name={name},reason={reason}"));
    poll(&format!("an event {reason} about {name}"), async || {
        let found = events.list(&of).await?.items;
        Ok(found.first().and_then(|event| event.message.clone()).ok_or_else(|| "none".to_owned()))
    })
    .await
}

async fn oversized(lab: &Lab) -> Result<Outcome> {
    let name = "oversized";
    let story = "dd if=/dev/zero of=/work/file bs=1024 count=3000 2>/dev/null; while :; do sleep 1; done";
    let manifest = script(name, "Always", story).replace("emptyDir: {}", "emptyDir: {sizeLimit: 1Mi}");
    apply(lab, &manifest).await?;
    let pod = until_pod(&lab.client()?, name, "Failed, Evicted", |pod| failed_for(pod, "Evicted")).await?;
    ensure!(message(&pod) == "Usage of EmptyDir volume \"work\" exceeds the limit \"1Mi\". ", "{:?}", pod.status);
    let conditions = pod.status.unwrap_or_default().conditions.unwrap_or_default();
    let target = conditions.iter().find(|condition| condition.type_ == "DisruptionTarget");
    let reason = target.and_then(|target| target.reason.as_deref());
    ensure!(reason == Some("TerminationByKubelet"), "{conditions:?}");
    ensure!(told(lab, name, "Evicted").await?.contains("exceeds the limit"));
    Ok(Outcome::Proved)
}

async fn no_room(lab: &Lab) -> Result<Outcome> {
    let name = "greedy";
    let manifest = script(name, "Always", "sleep 1")
        .replace("    imagePullPolicy", "    resources: {requests: {cpu: \"1000\"}}\n    imagePullPolicy");
    apply(lab, &manifest).await?;
    let pod = until_pod(&lab.client()?, name, "Failed, OutOfcpu", |pod| failed_for(pod, "OutOfcpu")).await?;
    let why = "Pod was rejected: Node didn't have enough resource: cpu, requested: 1000000, used: ";
    // What the pods of the scenarios beside it request.
    let said = message(&pod);
    let (used, capacity) = said.strip_prefix(why).and_then(|rest| rest.split_once(", capacity: ")).unwrap_or_default();
    ensure!(used.parse::<u32>().is_ok() && capacity.parse::<u32>().is_ok(), "{:?}", pod.status);
    let (sandboxes, _) = lab.sandboxes(&uid(&pod)?).await?;
    ensure!(sandboxes.is_empty(), "it was never begun: {sandboxes:?}");
    if let Some(kubectl) = kubectls::newest() {
        let (_, row) = outcome(lab, &kubectl, &["get", "pod", name, "--no-headers"]).await?;
        ensure!(row.split_whitespace().nth(2) == Some("OutOfcpu"), "{row}");
    }
    Ok(Outcome::Proved)
}

async fn ports(lab: &Lab) -> Result<Outcome> {
    let client = lab.client()?;
    let [port] = lab::free_ports()?;
    let with_port = |name: &str| {
        let ports = format!("    ports: [{{containerPort: 8080, hostPort: {port}}}]\n    imagePullPolicy");
        script(name, "Always", "while :; do sleep 1; done").replace("    imagePullPolicy", &ports)
    };
    apply(lab, &with_port("port-first")).await?;
    let first = running(&client, "port-first").await?;
    apply(lab, &with_port("port-second")).await?;
    let second = until_pod(&client, "port-second", "Failed, NodePorts", |pod| failed_for(pod, "NodePorts")).await?;
    let why = "Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports";
    ensure!(message(&second) == format!("Pod was rejected: {why}"), "{:?}", second.status);
    ensure!(told(lab, "port-second", "NodePorts").await? == why);
    ensure!(lab.sandboxes(&uid(&second)?).await?.0.is_empty(), "it was begun");
    delete(&client, "port-first", 1).await?;
    crate::cluster::gone(&client, "port-first", &uid(&first)?).await?;
    apply(lab, &with_port("port-third")).await?;
    running(&client, "port-third").await?;
    delete(&client, "port-third", 0).await?;
    Ok(Outcome::Proved)
}

/// Until this was told of a pod.
async fn told_of_sandbox(lab: &Lab, name: &str, part: &str) -> Result<()> {
    let events = Api::<Event>::namespaced(lab.client()?, NAMESPACE);
    let of = ListParams::default().fields(&format!("involvedObject.name={name},reason=FailedCreatePodSandBox"));
    poll(&format!("{part:?} about {name}"), async || {
        let found: Vec<String> = events.list(&of).await?.items.into_iter().filter_map(|event| event.message).collect();
        Ok(if found.iter().any(|message| message.contains(part)) { Ok(()) } else { Err(format!("{found:?}")) })
    })
    .await
}

async fn classes(lab: &Lab) -> Result<Outcome> {
    let client = lab.client()?;
    let classes = Api::<RuntimeClass>::all(client.clone());
    let create = PostParams::default();
    let class = |name: &str, handler: &str| RuntimeClass {
        metadata: ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() },
        handler: handler.to_owned(),
        ..RuntimeClass::default()
    };
    let of_class = |class: &str| {
        let spec = format!("spec:\n  runtimeClassName: {class}\n");
        script(&format!("of-{class}"), "Always", "while :; do sleep 1; done").replace("spec:\n", &spec)
    };
    let handler = lab.containerd()?.second_handler();
    classes.create(&create, &class("slim", handler)).await?;
    apply(lab, &of_class("slim")).await?;
    let pod = running(&client, "of-slim").await?;
    let main = container(lab, &uid(&pod)?, "main").await?;
    ensure!(lab.containerd()?.handler_state(handler).join(&main.id).exists(), "{handler} has no {}", main.id);
    if let Some(kubectl) = kubectls::newest() {
        let (done, table) = outcome(lab, &kubectl, &["get", "runtimeclass"]).await?;
        let rows: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
        ensure!(done && rows.contains(&vec!["NAME", "HANDLER", "AGE"]), "{table}");
        ensure!(rows.iter().any(|row| row.starts_with(&["slim", handler])), "{table}");
    }

    // A class of a handler that this runtime does not have.
    classes.create(&create, &class("strange", "none-such")).await?;
    apply(lab, &of_class("strange")).await?;
    told_of_sandbox(lab, "of-strange", "no runtime for \"none-such\" is configured").await?;

    // One that is not there is refused at the API server; one that goes before the pod comes is waited for.
    let refused = apply(lab, &of_class("later")).await.map_or_else(|error| format!("{error:#}"), |()| String::new());
    ensure!(refused.contains("pod rejected: RuntimeClass \"later\" not found"), "{refused}");
    classes.create(&create, &class("later", handler)).await?;
    let manifest = of_class("later").replace("IMAGE", &lab.busybox()?);
    let mut pod: Pod = serde_saphyr::from_str(&manifest)?;
    // Nobody but this test gives it a node.
    pod.spec.get_or_insert_default().scheduler_name = Some("nobody".into());
    let pods = crate::cluster::pods(&client);
    pods.create(&create, &pod).await?;
    classes.delete("later", &DeleteParams::default()).await?;
    let binding = serde_json::json!({
        "apiVersion": "v1", "kind": "Binding", "metadata": {"name": "of-later"},
        "target": {"apiVersion": "v1", "kind": "Node", "name": NODE},
    });
    let _: Value = pods.create_subresource("binding", "of-later", &create, &binding).await?;
    told_of_sandbox(lab, "of-later", "Failed to create pod sandbox: runtimeclass.node.k8s.io \"later\" not found")
        .await?;
    classes.create(&create, &class("later", handler)).await?;
    running(&client, "of-later").await?;
    for name in ["of-slim", "of-strange", "of-later"] {
        delete(&client, name, 0).await?;
    }
    Ok(Outcome::Proved)
}

/// How often the node was told to be so, in this life of edgecore.
async fn times(lab: &Lab, reason: &str) -> Result<i32> {
    let events = Api::<Event>::namespaced(lab.client()?, NAMESPACE);
    let of = ListParams::default().fields(&format!("involvedObject.name={NODE},reason={reason}"));
    let found = events.list(&of).await?.items;
    Ok(found.iter().filter_map(|event| event.count).max().unwrap_or(0))
}

async fn runtime_away(lab: &mut Lab) -> Result<Outcome> {
    let before = times(lab, "NodeReady").await?;
    ensure!(before > 0, "the node began and did not say that it is ready");
    lab.kill_containerd().await?;
    let away = lab
        .guarded(async |lab| {
            ensure!(told(lab, NODE, "NodeNotReady").await? == format!("Node {NODE} status is now: NodeNotReady"));
            Ok(())
        })
        .await;
    lab.resume_containerd().await?;
    away?;
    lab.guarded(async |lab| {
        poll("the node says that it is ready again", async || {
            let now = times(lab, "NodeReady").await?;
            Ok(if now > before { Ok(()) } else { Err(format!("{now} times, and {before} before")) })
        })
        .await?;
        crate::cluster::node_ready(&lab.client()?).await?;
        // What ran before runs.
        running(&lab.client()?, BUSY).await.map(drop)
    })
    .await?;
    Ok(Outcome::Proved)
}

fn memory_pressure(node: &Node) -> Option<String> {
    let conditions = node.status.as_ref()?.conditions.as_ref()?;
    Some(conditions.iter().find(|condition| condition.type_ == "MemoryPressure")?.status.clone())
}

/// No machine has so much free memory as this setting wants.
async fn pressed(lab: &mut Lab) -> Result<Outcome> {
    lab.stop_edge().await?;
    // It would go first, and the next one ten seconds later.
    delete(&lab.client()?, "verbose", 0).await?;
    lab.set_kubelet("evictionHard: {memory.available: 99.9%}")?;
    lab.set_kubelet("evictionPressureTransitionPeriod: 0s")?;
    lab.start_edge()?;
    lab.guarded(async |lab| {
        let client = lab.client()?;
        let pod = until_pod(&client, BUSY, "Failed, Evicted", |pod| failed_for(pod, "Evicted")).await?;
        let said = message(&pod);
        ensure!(said.starts_with("The node was low on resource: memory. Threshold quantity: "), "{said}");
        ensure!(said.contains("Container main was using "), "{said}");
        let nodes = Api::<Node>::all(client.clone());
        poll("the node has MemoryPressure", async || {
            let pressure = memory_pressure(&nodes.get(NODE).await?);
            Ok(if pressure.as_deref() == Some("True") { Ok(()) } else { Err(format!("{pressure:?}")) })
        })
        .await?;
        ensure!(told(lab, NODE, "EvictionThresholdMet").await? == "Attempting to reclaim memory");
        let short = told(lab, NODE, "NodeHasInsufficientMemory").await?;
        ensure!(short == format!("Node {NODE} status is now: NodeHasInsufficientMemory"), "{short}");
        poll("nothing of it runs", async || {
            let running = lab.containers(&uid(&pod)?).await?.iter().any(|container| container.running);
            Ok(if running { Err("its container runs".to_owned()) } else { Ok(()) })
        })
        .await?;
        apply(lab, &script("late", "Always", "sleep 1")).await?;
        let late = until_pod(&client, "late", "Failed, Evicted", |pod| failed_for(pod, "Evicted")).await?;
        ensure!(message(&late) == "Pod was rejected: The node had condition: [MemoryPressure]. ", "{:?}", late.status);
        Ok(Outcome::Proved)
    })
    .await
}

async fn stays_evicted(lab: &mut Lab) -> Result<Outcome> {
    lab.stop_edge().await?;
    lab.set_kubelet("evictionHard: {memory.available: 1Mi}")?;
    lab.start_edge()?;
    lab.guarded(async |lab| {
        let client = lab.client()?;
        let nodes = Api::<Node>::all(client.clone());
        poll("the node has no MemoryPressure", async || {
            let pressure = memory_pressure(&nodes.get(NODE).await?);
            Ok(if pressure.as_deref() == Some("False") { Ok(()) } else { Err(format!("{pressure:?}")) })
        })
        .await?;
        // A pod that comes now runs: so the others had their chance, too.
        apply(lab, &script("after", "Always", "while :; do sleep 1; done")).await?;
        let after = uid(&running(&client, "after").await?)?;
        container(lab, &after, "main").await?;
        for name in [BUSY, "late"] {
            let pod = until_pod(&client, name, "still Failed", |pod| failed_for(pod, "Evicted")).await?;
            let left = lab.containers(&uid(&pod)?).await?;
            ensure!(!left.iter().any(|container| container.running), "{name} runs again: {left:?}");
        }
        Ok(Outcome::Proved)
    })
    .await
}

/// A plugin in this test, over the node's real sockets.
async fn devices(lab: &Lab) -> Result<Outcome> {
    let folder = lab.folder().join("edge/kubelet/device-plugins");
    let plugin = plugin::serve(&folder, "test.sock")?;
    plugin::register(&folder, "test.sock", "example.com/lamp", false).await?;
    let choosy = plugin::serve(&folder, "choosy.sock")?;
    plugin::register(&folder, "choosy.sock", "example.com/bulb", true).await?;
    let nodes = Api::<Node>::all(lab.client()?);
    // Capacity and allocatable of both.
    let until = async |lamps: [&str; 2], bulbs: [&str; 2]| {
        poll(&format!("the node has {lamps:?} lamps and {bulbs:?} bulbs"), async || {
            let status = nodes.get(NODE).await?.status.unwrap_or_default();
            let [all, free] = [status.capacity, status.allocatable].map(Option::unwrap_or_default);
            let seen = |name: &str| [&all, &free].map(|of| of.get(name).map_or("", |amount| amount.0.as_str()));
            let (lamp, bulb) = (seen("example.com/lamp"), seen("example.com/bulb"));
            Ok(if (lamp, bulb) == (lamps, bulbs) { Ok(()) } else { Err(format!("{lamp:?}, {bulb:?}")) })
        })
        .await
    };
    until(["4", "3"], ["4", "3"]).await?;
    let with_lamp = |name: &str, resource: &str, count: usize| {
        let limits = format!("    resources: {{limits: {{example.com/{resource}: {count}}}}}\n    imagePullPolicy");
        let story = "echo $LAMP > /work/lamp; [ -c /dev/lamp ] && echo there >> /work/lamp; while :; do sleep 1; done";
        script(name, "Always", story).replace("    imagePullPolicy", &limits)
    };
    // Of a plugin without a preference the first is given, of the other one the one that it likes best.
    let mut lit = Vec::new();
    for (name, resource, count, given) in [("lit", "lamp", 3, "a,b,c"), ("chosen", "bulb", 1, "c")] {
        apply(lab, &with_lamp(name, resource, count)).await?;
        let pod = running(&lab.client()?, name).await?;
        let main = container(lab, &uid(&pod)?, "main").await?;
        poll("the container has its variable and its device", async || {
            let said = lab.exec(&main.id, &["cat", "/work/lamp"]).await.unwrap_or_else(|error| format!("{error:#}"));
            Ok(if said == format!("{given}\nthere\n") { Ok(()) } else { Err(said) })
        })
        .await?;
        lit.push((name, uid(&pod)?, main.id));
    }
    apply(lab, &with_lamp("dark", "lamp", 1)).await?;
    let dark = until_pod(&lab.client()?, "dark", "Failed", |pod| failed_for(pod, "OutOfexample.com/lamp")).await?;
    ensure!(message(&dark).ends_with("requested: 1, used: 3, capacity: 3"), "{:?}", dark.status);

    // One device fails, and one plugin goes: nobody gets them, who has them keeps them.
    plugin.turns("a", "Unhealthy");
    drop(choosy);
    until(["4", "2"], ["4", "0"]).await?;
    apply(lab, &with_lamp("unlit", "bulb", 1)).await?;
    let unlit = until_pod(&lab.client()?, "unlit", "Failed", |pod| failed_for(pod, "OutOfexample.com/bulb")).await?;
    ensure!(message(&unlit).ends_with("requested: 1, used: 1, capacity: 0"), "{:?}", unlit.status);
    for (name, uid, id) in &lit {
        ensure!(container(lab, uid, "main").await?.id == *id, "{name} was started again");
    }
    plugin.turns("a", "Healthy");
    let choosy = plugin::serve(&folder, "choosy.sock")?;
    plugin::register(&folder, "choosy.sock", "example.com/bulb", true).await?;
    until(["4", "3"], ["4", "3"]).await?;
    apply(lab, &with_lamp("lit-again", "bulb", 1)).await?;
    running(&lab.client()?, "lit-again").await?;
    drop((plugin, choosy));
    Ok(Outcome::Proved)
}

async fn forks(lab: &Lab) -> Result<Outcome> {
    let name = "forks";
    apply(lab, &script(name, "Always", "while :; do sleep 1; done")).await?;
    let pod = running(&lab.client()?, name).await?;
    let main = container(lab, &uid(&pod)?, "main").await?;
    let bomb = "i=0; while [ $i -lt 100 ]; do sleep 9 >/dev/null 2>&1 & i=$((i+1)); done; echo all started";
    // What it says of a failure names the command, too.
    match lab.exec(&main.id, &["/bin/sh", "-c", bomb]).await {
        Ok(said) => ensure!(!said.contains("all started"), "a hundred processes where forty are allowed: {said}"),
        Err(error) => ensure!(format!("{error:#}").contains("can't fork"), "it ended otherwise: {error:#}"),
    }
    ensure!(page(lab, "/healthz").await? == "ok", "the node goes on");
    delete(&lab.client()?, name, 0).await?;
    Ok(Outcome::Proved)
}

async fn out_of_memory(lab: &Lab) -> Result<Outcome> {
    let (name, client) = ("hungry", lab.client()?);
    let limits = "    resources: {limits: {memory: 32Mi}}\n    imagePullPolicy";
    let manifest = script(name, "Always", "x=0123456789abcdef; while :; do x=$x$x; done");
    apply(lab, &manifest.replace("    imagePullPolicy", limits)).await?;
    let end = |pod: &Pod| {
        let status = first(pod)?;
        let states = [status.state.as_ref(), status.last_state.as_ref()];
        states.into_iter().flatten().find_map(|state| state.terminated.clone())
    };
    let killed = |pod: &Pod| end(pod).is_some_and(|end| end.reason.as_deref() == Some("OOMKilled"));
    let pod = until_pod(&client, name, "OOMKilled", killed).await?;
    ensure!(end(&pod).is_some_and(|end| end.exit_code == 137), "{:?}", pod.status);
    until_pod(&client, name, "started again", |pod| restarts(pod) >= 1).await?;
    delete(&client, name, 0).await?;
    Ok(Outcome::Proved)
}

/// What a file of a control group says, in either version: the trees are looked through for the first that has it.
fn group_file(folder: &str, names: [&str; 2]) -> Result<String> {
    let trees = ["cpu", "memory", ""].map(|tree| PathBuf::from("/sys/fs/cgroup").join(tree).join(folder));
    let files = trees.iter().flat_map(|tree| names.map(|name| tree.join(name)));
    let file = files.clone().find(|file| file.exists()).with_context(|| format!("{folder} has none of {names:?}"))?;
    Ok(fs::read_to_string(file)?.trim().to_owned())
}

async fn groups(lab: &Lab) -> Result<Outcome> {
    let client = lab.client()?;
    let with = |name: &str, resources: &str| {
        let resources = format!("    resources: {resources}\n    imagePullPolicy");
        script(name, "Always", "while :; do sleep 1; done").replace("    imagePullPolicy", &resources)
    };
    apply(lab, &with("shared", "{requests: {cpu: 250m}, limits: {cpu: 500m, memory: 512Mi}}")).await?;
    apply(lab, &with("promised", "{limits: {cpu: 100m, memory: 32Mi}}")).await?;
    // Shares, quota and memory limit of the pod, and the order in which the kernel ends what runs in it.
    let seen = async |name: &str, parent: &str, class: &str| -> Result<[String; 4]> {
        let pod = running(&client, name).await?;
        let said = pod.status.clone().and_then(|status| status.qos_class);
        ensure!(said.as_deref() == Some(class), "the class of {name} is {said:?}");
        let uid = uid(&pod)?;
        let group = format!("{parent}/pod{uid}");
        let main = container(lab, &uid, "main").await?;
        Ok([
            group_file(&group, ["cpu.shares", "cpu.weight"])?,
            group_file(&group, ["cpu.cfs_quota_us", "cpu.max"])?,
            group_file(&group, ["memory.limit_in_bytes", "memory.max"])?,
            lab.exec(&main.id, &["cat", "/proc/1/oom_score_adj"]).await?.trim().to_owned(),
        ])
    };
    let total = fs::read_to_string("/proc/meminfo")?;
    let total = total.lines().find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB"));
    let total: i64 = total.context("/proc/meminfo has no MemTotal")?.parse()?;
    let least = lab.containerd()?.least_oom_score()?;
    let burstable = (1000 - (512 << 10) * 1000 / total).clamp(3, 999);
    let [shares, quota, memory, score] = seen("shared", "kubepods/burstable", "Burstable").await?;
    let fits = ["256", "10"].contains(&&*shares) && ["50000", "50000 100000"].contains(&&*quota);
    ensure!(fits && memory == (512 << 20).to_string(), "{shares} shares, quota {quota}, {memory} bytes");
    ensure!(score == burstable.max(least).to_string(), "score {score}, expected {burstable} and at least {least}");
    let [shares, quota, memory, score] = seen("promised", "kubepods", "Guaranteed").await?;
    let fits = ["102", "4"].contains(&&*shares) && ["10000", "10000 100000"].contains(&&*quota);
    ensure!(fits && memory == (32 << 20).to_string(), "{shares} shares, quota {quota}, {memory} bytes");
    ensure!(score == least.max(-997).to_string(), "score {score}, expected -997 and at least {least}");
    let [shares, quota, _, score] = seen(BUSY, "kubepods/besteffort", "BestEffort").await?;
    ensure!(
        ["2", "1"].contains(&&*shares) && ["-1", "max 100000"].contains(&&*quota),
        "{shares} shares, quota {quota}"
    );
    ensure!(score == "1000", "score {score}");
    // These are the machine's own: another edgecore on it writes the same.
    let best_effort = group_file("kubepods/besteffort", ["cpu.shares", "cpu.weight"])?;
    ensure!(["2", "1"].contains(&&*best_effort), "the class that is promised nothing has {best_effort} shares");
    let all = group_file("kubepods", ["memory.limit_in_bytes", "memory.max"])?;
    ensure!(all.parse::<u64>().is_ok_and(|bytes| bytes < 1 << 50), "all pods together have {all} bytes");
    let burstable = group_file("kubepods/burstable", ["cpu.shares", "cpu.weight"])?;
    ensure!(burstable.parse::<u64>().is_ok_and(|shares| shares > 1), "the burstable class has {burstable} shares");
    ensure!(told(lab, NODE, "NodeAllocatableEnforced").await?.starts_with("Updated Node Allocatable limit"));
    for name in ["shared", "promised"] {
        delete(&client, name, 0).await?;
    }
    Ok(Outcome::Proved)
}

async fn held(lab: &Lab) -> Result<Outcome> {
    let annotation = "  annotations: {edge.kubeedge.io/hold-upgrade: \"true\"}\nspec:\n";
    let client = lab.client()?;
    for name in ["held-cloud", "held-edge"] {
        apply(lab, &script(name, "Always", "while :; do sleep 1; done").replace("spec:\n", annotation)).await?;
        let is_held = |pod: &Pod| {
            let conditions = pod.status.as_ref().and_then(|status| status.conditions.clone()).unwrap_or_default();
            conditions.iter().any(|one| one.type_ == "HeldUpgrade" && one.status == "True")
        };
        let pod = until_pod(&client, name, "held", is_held).await?;
        ensure!(lab.sandboxes(&uid(&pod)?).await?.0.is_empty(), "it has a sandbox already");
    }
    let released = serde_json::json!({"metadata": {"annotations": {"edge.kubeedge.io/hold-upgrade": "false"}}});
    let patch = kube::api::Patch::Merge(released);
    crate::cluster::pods(&client).patch("held-cloud", &kube::api::PatchParams::default(), &patch).await?;
    running(&client, "held-cloud").await?;
    let config = lab.folder().join("edge/edgecore.yaml");
    let config = config.to_str().context("a path of UTF-8")?;
    let said = lab.command("edgecore", &["unhold-upgrade", "default/held-edge", "--config", config]).await?;
    ensure!(said.status.success(), "{said:?}");
    running(&client, "held-edge").await?;
    for name in ["held-cloud", "held-edge"] {
        until_pod(&client, name, "scheduled, and not held any more", |pod| {
            let conditions = pod.status.as_ref().and_then(|status| status.conditions.clone()).unwrap_or_default();
            let is = |type_: &str| conditions.iter().any(|one| one.type_ == type_ && one.status == "True");
            is("PodScheduled") && is("Ready") && !is("HeldUpgrade")
        })
        .await?;
        delete(&client, name, 0).await?;
    }
    Ok(Outcome::Proved)
}

async fn static_pods(lab: &mut Lab) -> Result<Outcome> {
    let manifests = lab.folder().join("manifests");
    fs::create_dir_all(&manifests)?;
    let manifest = |word: &str| {
        let text = script("web", "Always", &format!("echo {word} > /work/word; while :; do sleep 1; done"));
        Ok::<_, anyhow::Error>(text.replace("IMAGE", &lab.busybox()?))
    };
    let (first, second) = (manifest("first")?, manifest("second")?);
    let in_runtime = async |lab: &Lab, word: &str| -> Result<()> {
        poll(&format!("the static pod says {word}"), async || {
            for uid in lab.pods_in_runtime().await? {
                for container in lab.containers(&uid).await?.into_iter().filter(|one| one.running) {
                    if lab.exec(&container.id, &["cat", "/work/word"]).await.is_ok_and(|said| said.trim() == word) {
                        return Ok(Ok(()));
                    }
                }
            }
            Ok(Err("no container says so".to_owned()))
        })
        .await
    };
    lab.stop_cloud().await?;
    fs::write(manifests.join("web.yaml"), first)?;
    in_runtime(lab, "first").await?;
    lab.resume_cloud().await?;
    let client = lab.client()?;
    let mirror = running(&client, "web-edge-1").await?;
    ensure!(mirror.metadata.annotations.unwrap_or_default().contains_key("kubernetes.io/config.mirror"));
    // A mirror is no pod: deleting it ends nothing, and it comes back.
    delete(&client, "web-edge-1", 0).await?;
    until_pod(&client, "web-edge-1", "another mirror", |pod| pod.metadata.uid != mirror.metadata.uid).await?;
    in_runtime(lab, "first").await?;
    fs::write(manifests.join("web.yaml"), second)?;
    in_runtime(lab, "second").await?;
    running(&client, "web-edge-1").await?;
    fs::write(manifests.join("broken.yaml"), "kind: [")?;
    ensure!(told(lab, NODE, "FailedValidation").await?.contains("broken.yaml"));
    fs::remove_file(manifests.join("web.yaml"))?;
    poll("the mirror is gone", async || {
        let left = crate::cluster::pods(&client).get_opt("web-edge-1").await?;
        Ok(if left.is_none() { Ok(()) } else { Err("it is there".to_owned()) })
    })
    .await?;
    Ok(Outcome::Proved)
}

/// One that is critical is asked to end when the others have ended.
async fn power_failure(lab: &mut Lab) -> Result<Outcome> {
    let outside = lab.folder().join("power");
    fs::create_dir(&outside)?;
    let ends = |name: &str, takes: &str| {
        let story = format!(
            "trap '{takes} echo {name} >> /out/story; exit 0' TERM; touch /out/{name}; while :; do sleep 0.1; done"
        );
        let volume = format!("volumes: [{{name: out, hostPath: {{path: {}, type: Directory}}}}, {{", outside.display());
        script(name, "Always", &story)
            .replace("terminationGracePeriodSeconds: 1", "terminationGracePeriodSeconds: 8")
            .replace("volumeMounts: [{", "volumeMounts: [{name: out, mountPath: /out}, {")
            .replace("volumes: [{", &volume)
    };
    let critical = ends("critical", "").replace("spec:\n", "spec:\n  priorityClassName: system-node-critical\n");
    let ordinary = ends("ordinary", "sleep 1;");
    lab.guarded(async |lab| {
        for manifest in [&critical, &ordinary] {
            apply(lab, manifest).await?;
        }
        poll("both wait for their end", async || {
            let up = ["critical", "ordinary"].iter().all(|name| outside.join(name).exists());
            Ok(if up { Ok(()) } else { Err("not yet".to_owned()) })
        })
        .await?;
        let pod = running(&lab.client()?, "critical").await?;
        let priority = pod.spec.and_then(|spec| spec.priority);
        ensure!(priority == Some(2_000_001_000), "its class has the priority {priority:?}");
        running(&lab.client()?, "ordinary").await.map(drop)
    })
    .await?;
    lab.power_failure().await?;
    let story = fs::read_to_string(outside.join("story"))?;
    ensure!(story == "ordinary\ncritical\n", "they ended so: {story:?}");
    for name in ["ordinary", "critical"] {
        let pod = until_pod(&lab.client()?, name, "Failed, Terminated", |pod| failed_for(pod, "Terminated")).await?;
        ensure!(message(&pod) == "Pod was terminated in response to imminent node shutdown.", "{:?}", pod.status);
        let left = lab.containers(&uid(&pod)?).await?;
        ensure!(!left.iter().any(|container| container.running), "{left:?}");
    }
    lab.start_edge()?;
    lab.guarded(async |lab| {
        crate::cluster::node_ready(&lab.client()?).await?;
        ensure!(told(lab, NODE, "Shutdown").await? == "Shutdown manager detected shutdown event");
        Ok(())
    })
    .await?;
    Ok(Outcome::Proved)
}
