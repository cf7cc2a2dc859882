//! A pod of a RuntimeClass runs with its handler, and waits for a class that is not there.

use super::*;

fn class(name: &str, handler: &str) -> Value {
    json!({
        "apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": name, "uid": format!("{name}-1")},
        "handler": handler,
    })
}

fn of_class(name: &str, uid: &str, class: &str) -> Value {
    let mut pod = pod(name, uid);
    pod["spec"]["runtimeClassName"] = class.into();
    pod
}

async fn failed(bench: &Bench, why: &str) {
    let message = format!("Failed to create pod sandbox: {why}");
    bench.event("FailedCreatePodSandBox", |event| event["message"] == message).await;
}

#[actix_rt::test]
async fn a_pod_waits_for_its_class_and_runs_with_its_handler() {
    let bench = bench(&[], true).await;
    bench.tell(&of_class("p", "u1", "slim")).await;
    failed(&bench, "runtimeclass.node.k8s.io \"slim\" not found").await;
    assert_eq!(bench.made("run_sandbox"), 0);
    bench.tell(&class("slim", "runc-2")).await;
    bench.phase("u1", "Running").await;
    // No name is the runtime's default.
    bench.tell(&of_class("q", "u2", "")).await;
    bench.phase("u2", "Running").await;
    assert_eq!(bench.runtime.sandbox_handlers(), ["runc-2", ""]);

    // What runs needs its class no longer.
    lock(&bench.site.objects).retain(|object| object.r#type != Some(resource::runtime_classes()));
    assert!(bench.runtime.exit("u1", "a", 1));
    bench.until("a restart", |site| restarted(site, "u1")).await;
    bench.stop().await;
}

#[actix_rt::test]
async fn a_class_that_may_come_is_not_said_to_be_missing() {
    let bench = bench(&[of_class("p", "u1", "slim")], false).await;
    failed(&bench, "runtimeclass.node.k8s.io \"slim\" is not on this node yet: not synced with the cloud").await;
    lock(&bench.site.complete).push(resource::runtime_classes());
    bench.system.topic().announce(KindCompleted { r#type: Some(resource::runtime_classes()) }).await;
    failed(&bench, "runtimeclass.node.k8s.io \"slim\" not found").await;
    assert_eq!(bench.made("run_sandbox"), 0);
    bench.stop().await;
}
