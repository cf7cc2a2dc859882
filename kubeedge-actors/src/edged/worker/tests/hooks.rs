//! Hooks after a start and before an end, and the order of the end.

use super::*;
use crate::edged::fake::Command;

fn hooked(name: &str, handler: Value) -> Arc<Pod> {
    pod(|pod| pod["spec"]["containers"][0]["lifecycle"] = json!({name: handler}))
}

/// The stops, as container and grace period.
fn stops(bench: &Bench, pod: &crate::edged::runtime::ObservedPod) -> Vec<String> {
    let name = |id: &str| pod.instances.iter().find(|i| i.id == id).map_or("?", |i| i.name.as_str()).to_owned();
    let calls = bench.runtime.calls();
    let stops = calls.iter().filter_map(|call| call.strip_prefix("stop_container ")?.split_once(' '));
    stops.map(|(id, grace)| format!("{} {grace}", name(id))).collect()
}

#[tokio::test(start_paused = true)]
async fn what_a_pre_stop_hook_takes_counts_towards_the_grace_period() {
    for (seconds, left) in [(3, 7), (9, 2), (30, 2)] {
        let pod = hooked("preStop", json!({"sleep": {"seconds": seconds}}));
        let mut bench = Bench::new(&pod);
        bench.runtime.add_image("app:1");
        bench.runtime.make_stubborn("a");
        bench.until_phase("Running").await;
        let running = bench.runtime.pod("u");
        let before = Instant::now();
        bench.orders.send_replace(order(&deleted(&pod, 10)));
        bench.ended().await;
        assert_eq!(stops(&bench, &running), [format!("a {left}")]);
        assert_eq!(before.elapsed().as_secs(), seconds.min(10) + left);
    }
}

#[tokio::test(start_paused = true)]
async fn a_container_without_time_has_no_hook_and_a_failed_one_is_told() {
    let pod = hooked("preStop", json!({"exec": {"command": ["bye"]}}));
    for (grace, told) in [(0, false), (5, true)] {
        let mut bench = Bench::new(&pod);
        bench.runtime.add_image("app:1");
        bench.runtime.commands_end("a", Command::Ends(4));
        bench.until_phase("Running").await;
        bench.orders.send_replace(order(&deleted(&pod, grace)));
        bench.ended().await;
        assert_eq!(bench.runtime.calls().iter().any(|call| call.starts_with("exec")), told);
        let failed = "spec.containers{a} FailedPreStopHook: PreStopHook failed";
        assert_eq!(bench.told().iter().any(|found| found == failed), told, "{:?}", bench.told());
    }
}

#[tokio::test(start_paused = true)]
async fn a_shorter_grace_period_ends_a_hook_and_one_that_has_run_does_not_run_again() {
    let pod = hooked("preStop", json!({"exec": {"command": ["bye"]}}));
    let mut bench = Bench::new(&pod);
    bench.runtime.add_image("app:1");
    bench.runtime.make_stubborn("a");
    bench.until_phase("Running").await;
    let before = Instant::now();
    bench.orders.send_replace(order(&deleted(&pod, 30)));
    tokio::time::sleep(Duration::from_secs(5)).await;
    bench.orders.send_replace(order(&deleted(&pod, 1)));
    bench.ended().await;
    assert_eq!(before.elapsed().as_secs(), 6);
    assert_eq!(bench.runtime.calls().iter().filter(|call| call.starts_with("exec")).count(), 1);

    bench = Bench::new(&pod);
    bench.runtime.add_image("app:1");
    bench.runtime.commands_end("a", Command::Hangs);
    bench.until_phase("Running").await;
    let before = Instant::now();
    bench.orders.send_replace(order(&deleted(&pod, 30)));
    tokio::time::sleep(Duration::from_secs(5)).await;
    bench.orders.send_replace(order(&deleted(&pod, 1)));
    bench.ended().await;
    assert_eq!(before.elapsed().as_secs(), 6, "the hook is cut short");
}

#[tokio::test(start_paused = true)]
async fn a_failed_post_start_hook_ends_its_container_and_says_no_more_than_that() {
    let pod = hooked("postStart", json!({"exec": {"command": ["hello"]}}));
    let bench = Bench::new(&pod);
    bench.runtime.add_image("app:1");
    bench.runtime.commands_end("a", Command::Ends(1));
    let status = bench.until_waiting("PostStartHookError").await;
    assert!(state(&status)["waiting"]["message"].as_str().unwrap().contains("out err"));
    assert_eq!(status["containerStatuses"][0]["lastState"]["terminated"]["exitCode"], 143);
    let told = bench.told();
    let expected = [
        "spec.containers{a} Started: Started container a",
        "spec.containers{a} FailedPostStartHook: PostStartHook failed",
        "spec.containers{a} Killing: FailedPostStartHook",
    ];
    assert_eq!(told[told.len() - 3..], expected, "nothing of what the hook said");
    bench.runtime.commands_end("a", Command::Ends(0));
    bench.until(|status| state(status)["running"].is_object()).await;
}

#[tokio::test(start_paused = true)]
async fn a_post_start_hook_that_hangs_is_given_up_for_a_deletion() {
    let pod = hooked("postStart", json!({"sleep": {"seconds": 100_000}}));
    let mut bench = Bench::new(&pod);
    bench.runtime.add_image("app:1");
    bench.until(|status| state(status)["waiting"].is_object()).await;
    tokio::time::sleep(Duration::from_secs(1000)).await;
    let before = Instant::now();
    bench.orders.send_replace(order(&deleted(&pod, 1)));
    bench.ended().await;
    assert!(before.elapsed() < Duration::from_secs(2));
}

#[tokio::test(start_paused = true)]
async fn sidecars_start_one_by_one_and_end_after_the_others_in_reverse() {
    let pod = pod(|pod| {
        let sidecar = |name: &str| {
            json!({"name": name, "image": "app:1", "restartPolicy": "Always", "startupProbe":
            {"exec": {"command": ["up"]}, "periodSeconds": 5}})
        };
        pod["spec"]["initContainers"] = json!([sidecar("s1"), sidecar("s2")]);
    });
    let mut bench = Bench::new(&pod);
    bench.runtime.add_image("app:1");
    bench.until(|status| status["initContainerStatuses"][0]["state"]["running"].is_object()).await;
    let began = Instant::now();
    bench.until_phase("Running").await;
    assert_eq!(began.elapsed().as_secs(), 10, "each waits for the startup of the one before");
    let created: Vec<String> = bench
        .runtime
        .calls()
        .into_iter()
        .filter_map(|call| Some(call.strip_prefix("create_container ")?.to_owned()))
        .collect();
    assert_eq!(created, ["s1", "s2", "a"]);

    bench.runtime.make_stubborn("s2");
    let running = bench.runtime.pod("u");
    bench.orders.send_replace(order(&deleted(&pod, 10)));
    bench.ended().await;
    // The second one takes all the time there is: what is left is what each container has at least.
    assert_eq!(stops(&bench, &running), ["a 10", "s2 10", "s1 2"]);
}
