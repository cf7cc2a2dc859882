//! What belongs to the node: who is let in, who waits, static pods, the end of the machine.

use std::fs;

use kubeedge_proto::v1::ShutDownPods;

use super::*;

fn lowered(pod: &Value, path: &str, value: Value) -> Value {
    let mut pod = pod.clone();
    *pod.pointer_mut(path).unwrap() = value;
    pod
}

#[actix_rt::test]
async fn a_pod_that_does_not_fit_fails_and_leaves_nothing_on_the_node() {
    let bench = bench(&[], true).await;
    let mut greedy = pod("greedy", "1");
    greedy["spec"]["containers"][0]["resources"] = json!({"requests": {"cpu": "100000"}});
    bench.tell(&greedy).await;
    let status = bench.phase("1", "Failed").await;
    assert_eq!(status["reason"], "OutOfcpu", "{status}");
    assert!(status["message"].as_str().unwrap().contains("requested: 100000000, used: 0"), "{status}");
    assert!(status.get("containerStatuses").is_none(), "{status}");
    let told = bench.event("OutOfcpu", |_| true).await;
    let said = told["message"].as_str().unwrap();
    assert!(said.starts_with("Node didn't have enough resource: cpu, requested: "), "{told}");
    assert_eq!(status["message"], format!("Pod was rejected: {said}"));
    // Others are not kept out by it.
    bench.tell(&pod("modest", "2")).await;
    bench.phase("2", "Running").await;
    assert!(bench.runtime.pod("1").sandboxes.is_empty());
    // It ends like any other.
    bench.tell(&deleted(&greedy)).await;
    bench.ended("1").await;
    bench.system.stop(LIMIT).await;
}

#[actix_rt::test]
async fn a_pod_that_wants_a_port_of_the_node_that_another_has_fails_until_that_is_free() {
    let bench = bench(&[], true).await;
    let with_port = |name: &str, uid: &str| {
        let mut pod = pod(name, uid);
        pod["spec"]["containers"][0]["ports"] = json!([{"containerPort": 80, "hostPort": 8080}]);
        pod
    };
    let first = with_port("first", "1");
    bench.tell(&first).await;
    bench.phase("1", "Running").await;
    bench.tell(&with_port("second", "2")).await;
    let status = bench.phase("2", "Failed").await;
    let why = "Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports";
    assert_eq!(
        (&status["reason"], &status["message"]),
        (&json!("NodePorts"), &json!(format!("Pod was rejected: {why}")))
    );
    let told = bench.event("NodePorts", |_| true).await;
    assert_eq!((&told["type"], &told["message"]), (&json!("Warning"), &json!(why)));
    assert!(bench.runtime.pod("2").sandboxes.is_empty());
    bench.tell(&deleted(&first)).await;
    bench.ended("1").await;
    bench.tell(&with_port("third", "3")).await;
    bench.phase("3", "Running").await;
    // One that was deleted by force is gone for the cluster before it has ended here.
    bench.runtime.make_stubborn("a");
    bench.gone("third", "3").await;
    bench.tell(&with_port("fourth", "4")).await;
    bench.phase("4", "Running").await;
    bench.system.stop(LIMIT).await;
}

#[actix_rt::test]
async fn the_node_tells_its_start_its_conditions_and_a_runtime_that_goes_and_comes_back() {
    let bench = bench(&[], true).await;
    let told = async |reason: &str| bench.event(reason, |event| event["involvedObject"]["kind"] == "Node").await;
    let starting = told("Starting").await;
    assert_eq!((&starting["type"], &starting["message"]), (&json!("Normal"), &json!("Starting kubelet.")));
    let about = json!({"apiVersion": "v1", "kind": "Node", "name": "edge-1", "uid": "edge-1"});
    assert_eq!((&starting["involvedObject"], &starting["metadata"]["namespace"]), (&about, &json!("default")));
    for reason in ["NodeHasSufficientMemory", "NodeHasNoDiskPressure", "NodeHasSufficientPID", "NodeReady"] {
        let event = told(reason).await;
        assert_eq!(event["message"], format!("Node edge-1 status is now: {reason}"));
        assert_eq!((&event["type"], &event["count"]), (&json!("Normal"), &json!(1)));
    }
    // The next look finds the runtime away, the one after it there again.
    bench.runtime.fail_next("health", "it is away");
    bench.system.topic().announce(LinkStateChanged { connected: true, reason: String::new() }).await;
    assert_eq!(told("NodeNotReady").await["message"], "Node edge-1 status is now: NodeNotReady");
    bench.event("NodeReady", |event| event["count"] == 2).await;
    bench.system.stop(LIMIT).await;
}

#[actix_rt::test]
async fn a_machine_that_was_started_anew_is_told_once() {
    let bench = bench(&[], true).await;
    let info = json!({
        "bootID": "of the last time", "architecture": "", "containerRuntimeVersion": "", "kernelVersion": "",
        "kubeProxyVersion": "", "kubeletVersion": "", "machineID": "", "operatingSystem": "", "osImage": "",
        "systemUUID": "",
    });
    let node = json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": "edge-1", "uid": "n1"}, "status": {"nodeInfo": info},
    });
    *lock(&bench.site.node) = Some(node);
    let link = |connected: bool| LinkStateChanged { connected, reason: String::new() };
    let registered = |times: usize| {
        move |site: &Site| {
            let calls = lock(&site.calls);
            (calls.iter().filter(|call| matches!(call, Body::RegisterNode(_))).count() >= times).then_some(())
        }
    };
    bench.system.topic().announce(link(true)).await;
    let told = bench.event("Rebooted", |_| true).await;
    let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let message = format!("Node edge-1 has been rebooted, boot id: {}", boot_id.trim());
    assert_eq!((&told["type"], &told["message"]), (&json!("Warning"), &json!(message)));
    // The cloud has the same Node as long as nothing is reported.
    bench.until("it registers", registered(1)).await;
    bench.system.topic().announce(link(false)).await;
    bench.system.topic().announce(link(true)).await;
    bench.until("it registers again", registered(2)).await;
    // A node's status is reported after it has registered: what there is to say of that was said.
    bench.until("a status", |site| lock(&site.reports).iter().any(|(_, uid, _)| uid == "n1").then_some(())).await;
    bench.system.stop(LIMIT).await;
    let events = lock(&bench.site.events);
    assert_eq!(events.iter().filter(|event| event["reason"] == "Rebooted").count(), 1);
}

fn deleted(pod: &Value) -> Value {
    let mut pod = pod.clone();
    pod["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
    pod["metadata"]["deletionGracePeriodSeconds"] = 1.into();
    pod
}

#[actix_rt::test]
async fn a_pod_that_has_failed_does_not_run_again_after_a_restart() {
    let bench = bench(&[], true).await;
    let mut greedy = pod("greedy", "1");
    greedy["spec"]["containers"][0]["resources"] = json!({"requests": {"memory": "1000Ti"}});
    bench.tell(&greedy).await;
    bench.phase("1", "Failed").await;
    bench.system.stop(LIMIT).await;

    lock(&bench.site.reports).clear();
    let modest = lowered(&greedy, "/spec/containers/0/resources", json!({}));
    lock(&bench.site.objects).retain(|object| object.uid != "1");
    lock(&bench.site.objects).push(object(&modest));
    let again = system(&bench.site, &bench.prepared);
    let status = bench.phase("1", "Failed").await;
    assert_eq!(status["reason"], "OutOfmemory", "{status}");
    assert!(bench.runtime.pod("1").sandboxes.is_empty());
    again.stop(LIMIT).await;
}

#[actix_rt::test]
async fn pods_that_came_while_edgecore_was_down_are_judged_in_their_order_of_age() {
    let mut node = bench_with(&[], true, |_| ()).await;
    node.prepared.room.insert("memory".into(), crate::edged::quantity::Quantity::units(1 << 30));
    // This one runs, and keeps its place whatever the others ask for.
    let aged = |name: &str, uid: &str, age: &str, memory: &str| {
        let mut pod = pod(name, uid);
        pod["metadata"]["creationTimestamp"] = age.into();
        pod["spec"]["containers"][0]["resources"] = json!({"requests": {"memory": memory}});
        pod
    };
    node.tell(&aged("c-runs", "1", "2026-01-03T00:00:00Z", "600Mi")).await;
    node.phase("1", "Running").await;
    node.system.stop(LIMIT).await;

    for late in
        [aged("a-younger", "2", "2026-01-02T00:00:00Z", "300Mi"), aged("b-older", "3", "2026-01-01T00:00:00Z", "300Mi")]
    {
        lock(&node.site.objects).push(object(&late));
    }
    let again = system(&node.site, &node.prepared);
    node.phase("3", "Running").await;
    let status = node.phase("2", "Failed").await;
    assert_eq!(status["reason"], "OutOfmemory", "{status}");
    assert!(node.runtime.pod("2").sandboxes.is_empty());
    assert!(!lock(&node.site.reports).iter().any(|(_, uid, status)| uid == "1" && status["phase"] == "Failed"));
    again.stop(LIMIT).await;
}

#[actix_rt::test]
async fn a_resize_that_does_not_fit_waits_over_a_restart_until_there_is_room() {
    let mut node = bench(&[], true).await;
    node.system.stop(LIMIT).await;
    node.prepared.room.insert("memory".into(), crate::edged::quantity::Quantity::units(1 << 30));
    let sized = |name: &str, uid: &str, memory: &str| {
        let mut pod = pod(name, uid);
        pod["spec"]["containers"][0]["resources"] = json!({"requests": {"memory": memory}});
        pod
    };
    let pods = [sized("grows", "1", "600Mi"), sized("beside", "2", "300Mi")];
    lock(&node.site.objects).extend(pods.iter().map(object));
    node.system = system(&node.site, &node.prepared);
    node.phase("1", "Running").await;
    node.phase("2", "Running").await;

    let pending = |site: &Site| {
        let reports = lock(&site.reports);
        let (_, _, status) = reports.iter().rev().find(|(_, uid, _)| uid == "1")?;
        let conditions = status["conditions"].as_array()?;
        conditions.iter().find(|condition| condition["type"] == "PodResizePending").cloned()
    };
    lock(&node.site.objects).retain(|object| object.uid != "1");
    node.tell(&sized("grows", "1", "800Mi")).await;
    let condition = node.until("a resize that waits", pending).await;
    let why = format!(
        "Node didn't have enough resource: memory, requested: {}, used: {}, capacity: {}",
        800_u64 << 20,
        300_u64 << 20,
        1_u64 << 30
    );
    assert_eq!((&condition["reason"], &condition["message"]), (&json!("Deferred"), &json!(why)));
    let told = node.event("ResizeDeferred", |_| true).await;
    assert_eq!(told["message"], format!("Pod resize Deferred: {why}"));

    // What the pod has is known to the next edgecore, which the spec alone would not tell.
    node.system.stop(LIMIT).await;
    lock(&node.site.reports).clear();
    node.system = system(&node.site, &node.prepared);
    node.until("the same resize", |site| pending(site).filter(|it| it["message"] == why)).await;
    assert_eq!(node.made("update_resources"), 0, "{:?}", node.runtime.calls());

    lock(&node.site.objects).retain(|object| object.uid != "2");
    node.gone("beside", "2").await;
    let has = |site: &Site| {
        let reports = lock(&site.reports);
        let (_, _, status) = reports.iter().rev().find(|(_, uid, _)| uid == "1")?;
        (status["containerStatuses"][0]["resources"]["requests"]["memory"] == "800Mi").then_some(())
    };
    node.until("the resize is done", |site| has(site).filter(|()| pending(site).is_none())).await;
    assert_eq!(node.made("update_resources"), 1, "{:?}", node.runtime.calls());
    node.stop().await;
}

fn held(name: &str, uid: &str) -> Value {
    let mut pod = pod(name, uid);
    pod["metadata"]["annotations"] = json!({hold::HOLD: "true"});
    pod
}

#[actix_rt::test]
async fn a_held_pod_waits_until_it_is_released_at_the_cloud_or_at_the_edge() {
    let bench = bench(&[], true).await;
    for (name, uid) in [("a", "1"), ("b", "2"), ("c", "3")] {
        bench.tell(&held(name, uid)).await;
        let status = bench.phase(uid, "Pending").await;
        assert_eq!(status["conditions"][0]["type"], "HeldUpgrade", "{status}");
    }
    assert!(bench.runtime.calls().is_empty(), "{:?}", bench.runtime.calls());
    bench.tell(&lowered(&held("a", "1"), "/metadata/annotations", json!({hold::HOLD: "false"}))).await;
    bench.phase("1", "Running").await;
    hold::release(&bench.prepared.setup.root_dir, "ns", "b").unwrap();
    bench.phase("2", "Running").await;
    // One that is deleted while it waits ends at once.
    bench.tell(&deleted(&held("c", "3"))).await;
    bench.ended("3").await;
    assert!(bench.runtime.pod("3").sandboxes.is_empty());
    bench.system.stop(LIMIT).await;

    // The release holds over a restart, although the annotation is still there.
    lock(&bench.site.reports).clear();
    let again = system(&bench.site, &bench.prepared);
    bench.phase("2", "Running").await;
    again.stop(LIMIT).await;
}

#[actix_rt::test]
async fn what_runs_is_not_held_and_what_waits_can_be_released_all_at_once() {
    let mut bench = bench(&[], true).await;
    bench.tell(&pod("runs", "1")).await;
    bench.phase("1", "Running").await;
    bench.tell(&held("runs", "1")).await;
    bench.tell(&held("waits", "2")).await;
    bench.phase("2", "Pending").await;
    bench.system.stop(LIMIT).await;

    // What an earlier edgecore began is looked after, whatever is written on it by now; said while it did not run: all.
    hold::release_all(&bench.prepared.setup.root_dir).unwrap();
    lock(&bench.site.reports).clear();
    bench.system = system(&bench.site, &bench.prepared);
    bench.phase("1", "Running").await;
    bench.phase("2", "Running").await;
    let was_held = |report: &(bool, String, Value)| report.1 == "1" && report.2["phase"] == "Pending";
    assert!(!lock(&bench.site.reports).iter().any(was_held));

    // Said before anything waits it is of no interest to what comes later.
    hold::release_all(&bench.prepared.setup.root_dir).unwrap();
    for (name, uid) in [("a", "3"), ("b", "4"), ("c", "5")] {
        bench.tell(&held(name, uid)).await;
        bench.phase(uid, "Pending").await;
    }
    let release = bench.system.port::<ReleasePods>();
    let ask = |name: &str| {
        let namespace = if name.is_empty() { String::new() } else { "ns".to_owned() };
        release.ask(ReleasePods { namespace, name: name.to_owned() }, LIMIT)
    };
    assert_eq!(ask("none").await.unwrap().code, 404);
    assert_eq!(ask("a").await.unwrap().code, 0);
    bench.phase("3", "Running").await;
    assert_eq!(ask("").await.unwrap().code, 0);
    bench.phase("4", "Running").await;
    bench.phase("5", "Running").await;
    assert_eq!(ask("a").await.unwrap().code, 404, "it is not held any more");
    bench.system.stop(LIMIT).await;
}

fn manifest(image: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: web, namespace: ns}}\nspec:\n  terminationGracePeriodSeconds: 1\n  \
         containers: [{{name: a, image: \"{image}\"}}]\n"
    )
}

/// The uid of the static pod that runs, if one does.
fn static_uid(bench: &Bench) -> Option<String> {
    let pods = futures_util::FutureExt::now_or_never(bench.runtime.list_pods())?.ok()?;
    let running = |pod: &PodSummary| pod.containers.values().any(|state| *state == InstanceState::Running);
    pods.iter().find(|pod| pod.name == "web-edge-1" && running(pod)).map(|pod| pod.uid.clone())
}

async fn until(what: &str, mut seen: impl FnMut() -> bool) {
    let look = async {
        let mut tick = tokio::time::interval(Duration::from_millis(20));
        while !seen() {
            tick.tick().await;
        }
    };
    tokio::time::timeout(LIMIT, look).await.unwrap_or_else(|_| panic!("{what} not within {LIMIT:?}"));
}

#[actix_rt::test]
async fn static_pods_run_without_a_cloud_and_survive_its_silence_about_them() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("web.yaml");
    fs::write(&path, manifest("app:1")).unwrap();
    fs::write(folder.path().join("broken.yaml"), "kind: [").unwrap();
    let manifests = folder.path().to_owned();
    let bench = bench_with(&[], true, move |config| config.static_pods = Some(manifests)).await;
    until("the static pod runs", || static_uid(&bench).is_some()).await;
    let first = static_uid(&bench).unwrap();
    let broken = bench.event("FailedValidation", |event| event["involvedObject"]["kind"] == "Node").await;
    assert!(broken["message"].as_str().unwrap().contains("broken.yaml: it is no Pod"), "{broken}");

    // The set of the cloud's pods is complete and it is not among them: no reason to end it. It is not reported, either:
    // the API does not know it.
    bench.system.topic().announce(KindCompleted { r#type: Some(resource::pods()) }).await;
    bench.tell(&pod("other", "2")).await;
    bench.phase("2", "Running").await;
    assert_eq!(static_uid(&bench).as_ref(), Some(&first));
    assert!(!lock(&bench.site.reports).iter().any(|(_, uid, _)| *uid == first));

    // With a link the cloud is asked for a mirror; when it has one, that is reported for.
    bench.system.topic().announce(LinkStateChanged { connected: true, reason: String::new() }).await;
    let asked = bench
        .until("a mirror is asked for", |site| {
            lock(&site.calls).iter().find_map(|call| match call {
                Body::CreateMirrorPod(wanted) => Some(wanted.pod_json.clone()),
                _ => None,
            })
        })
        .await;
    let mut mirror: Value = serde_json::from_slice(&asked).unwrap();
    assert_eq!(mirror["metadata"]["annotations"][static_pods::MIRROR], first);
    mirror["metadata"]["uid"] = "mirror-1".into();
    bench.tell(&mirror).await;
    bench.phase("mirror-1", "Running").await;
    // Somebody deletes the mirror: it may go, and the pod runs on.
    bench.tell(&deleted(&mirror)).await;
    bench.ended("mirror-1").await;
    assert_eq!(static_uid(&bench).as_ref(), Some(&first));

    // Another content is another pod; no file, no pod.
    bench.runtime.add_image("app:2");
    fs::write(&path, manifest("app:2")).unwrap();
    until("the new pod runs", || static_uid(&bench).is_some_and(|uid| uid != first)).await;
    assert!(bench.runtime.pod(&first).sandboxes.is_empty(), "one after the other");
    fs::remove_file(&path).unwrap();
    until("it has ended", || static_uid(&bench).is_none()).await;
    bench.system.stop(LIMIT).await;
}

#[actix_rt::test]
async fn pods_end_in_order_when_the_machine_goes_down() {
    let mut critical = pod("critical", "2");
    critical["spec"]["priority"] = 2_000_000_000.into();
    let bench = bench(&[pod("ordinary", "1"), critical], true).await;
    for uid in ["1", "2"] {
        bench.phase(uid, "Running").await;
    }
    let down = ShutDownPods { grace_seconds: 20, critical_seconds: 10 };
    bench.system.port::<ShutDownPods>().ask(down, LIMIT).await.unwrap();
    let stops: Vec<String> =
        bench.runtime.calls().into_iter().filter(|call| call.starts_with("stop_container")).collect();
    let of = |uid: &str| bench.runtime.pod(uid).instances[0].id.clone();
    assert_eq!(stops, [format!("stop_container {} 1", of("1")), format!("stop_container {} 1", of("2"))]);
    for uid in ["1", "2"] {
        let status = bench.phase(uid, "Failed").await;
        assert_eq!(status["reason"], "Terminated", "{status}");
        let conditions = status["conditions"].as_array().unwrap();
        assert!(conditions.iter().any(|one| one["type"] == "DisruptionTarget"), "{status}");
    }
    bench.tell(&pod("late", "3")).await;
    let status = bench.phase("3", "Failed").await;
    let why = "Pod was rejected as the node is shutting down.";
    assert_eq!((&status["reason"], &status["message"]), (&json!("NodeShutdown"), &json!(why)));
    let told = bench.event("NodeShutdown", |event| event["involvedObject"]["name"] == "late").await;
    assert_eq!((&told["type"], &told["message"]), (&json!("Warning"), &json!(why)));
    let told = bench.event("Shutdown", |event| event["involvedObject"]["kind"] == "Node").await;
    assert_eq!(
        (&told["type"], &told["message"]),
        (&json!("Normal"), &json!("Shutdown manager detected shutdown event"))
    );
    bench.event("NodeNotReady", |_| true).await;
    bench.system.stop(LIMIT).await;
}
