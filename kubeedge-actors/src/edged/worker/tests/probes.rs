//! Probes of a worker's containers.

use super::*;
use crate::edged::fake::Command;

fn condition(status: &Value, kind: &str) -> Value {
    let conditions = status["conditions"].as_array().unwrap();
    conditions.iter().find(|condition| condition["type"] == kind).unwrap()["status"].clone()
}

fn probed(probes: Value) -> Arc<Pod> {
    pod(|pod| pod["spec"]["containers"][0].as_object_mut().unwrap().extend(probes.as_object().unwrap().clone()))
}

#[tokio::test(start_paused = true)]
async fn a_pod_is_ready_while_its_probe_says_so() {
    let exec = json!({"exec": {"command": ["ask"]}, "initialDelaySeconds": 3, "periodSeconds": 2});
    let pod = probed(json!({"readinessProbe": exec}));
    let bench = Bench::new(&pod);
    bench.runtime.add_image("app:1");
    let running = bench.until_phase("Running").await;
    let began = Instant::now();
    assert_eq!(
        (condition(&running, "Ready"), condition(&running, "ContainersReady")),
        (json!("False"), json!("False"))
    );
    assert_eq!(running["containerStatuses"][0]["started"], true);
    bench.until(|status| condition(status, "Ready") == "True").await;
    assert_eq!(began.elapsed().as_secs(), 3);
    bench.runtime.commands_end("a", Command::Ends(1));
    bench.reports.made.lock().unwrap().clear();
    bench.until(|status| condition(status, "Ready") == "False").await;
    // Asked at 5, 7 and 9.
    assert_eq!(began.elapsed().as_secs(), 9);
    let unhealthy = bench.told().into_iter().filter(|told| told.contains("Unhealthy")).collect::<Vec<_>>();
    assert_eq!(unhealthy, vec!["spec.containers{a} Unhealthy: Readiness probe failed: out err"; 3]);
    bench.runtime.commands_end("a", Command::Fails("no runc".into()));
    tokio::time::sleep(Duration::from_secs(10)).await;
    let told = bench.told().into_iter().next_back().unwrap();
    assert!(told.contains("Readiness probe errored and resulted in unknown state: ") && told.ends_with("no runc"));
    assert_eq!(bench.runtime.pod("u").instances.len(), 1, "readiness ends nothing");
}

#[tokio::test(start_paused = true)]
async fn a_container_that_fails_its_liveness_probe_is_restarted_within_the_probes_grace() {
    let live = json!({"exec": {"command": ["ask"]}, "failureThreshold": 2, "terminationGracePeriodSeconds": 4});
    let pod = probed(json!({"livenessProbe": live}));
    let bench = Bench::new(&pod);
    bench.runtime.add_image("app:1");
    bench.runtime.make_stubborn("a");
    bench.until_phase("Running").await;
    let began = Instant::now();
    bench.runtime.commands_end("a", Command::Hangs);
    bench.until(|status| status["containerStatuses"][0]["restartCount"] == 1).await;
    // Asked at 10 and 20, a second each, then killed after the probe's own grace period.
    assert_eq!(began.elapsed().as_secs(), 25);
    let told = bench.told();
    let killing = "spec.containers{a} Killing: Container a failed liveness probe, will be restarted";
    assert!(told.iter().any(|told| told == killing), "{told:?}");
    let late = "spec.containers{a} Unhealthy: Liveness probe failed: command timed out: \"ask\" timed out after 1s";
    assert_eq!(told.iter().filter(|told| *told == late).count(), 2);
    bench.runtime.commands_end("a", Command::Ends(0));
    let settled = bench.runtime.pod("u");
    tokio::time::sleep(Duration::from_secs(100)).await;
    assert_eq!(bench.runtime.pod("u"), settled);
}

#[tokio::test(start_paused = true)]
async fn a_restart_of_edgecore_does_not_make_a_ready_pod_unready() {
    let pod = probed(json!({"readinessProbe": {"exec": {"command": ["ask"]}, "periodSeconds": 600}}));
    let mut bench = Bench::new(&pod);
    bench.runtime.add_image("app:1");
    bench.until(|status| condition(status, "Ready") == "True").await;
    tokio::time::sleep(Duration::from_secs(30)).await;
    bench.reports.made.lock().unwrap().clear();
    bench.restart();
    bench.until(|status| condition(status, "Ready") == "True").await;
    assert_eq!(bench.reports.made.lock().unwrap().len(), 1, "no other word in between");
    // One that cannot be asked does not hold its status up for long.
    bench.runtime.commands_end("a", Command::Fails("no runc".into()));
    bench.reports.made.lock().unwrap().clear();
    bench.restart();
    let before = Instant::now();
    bench.until(|status| condition(status, "Ready") == "False").await;
    assert_eq!(before.elapsed(), ADOPT_WITHIN);
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_ends_is_no_longer_asked_whether_it_lives() {
    let live = json!({"exec": {"command": ["ask"]}, "failureThreshold": 1, "periodSeconds": 1});
    let pod = probed(json!({"livenessProbe": live}));
    let mut bench = Bench::new(&pod);
    bench.runtime.add_image("app:1");
    bench.runtime.make_stubborn("a");
    bench.until_phase("Running").await;
    bench.orders.send_replace(order(&deleted(&pod, 20)));
    tokio::time::sleep(Duration::from_secs(1)).await;
    bench.runtime.commands_end("a", Command::Ends(1));
    bench.ended().await;
    assert!(!bench.told().iter().any(|told| told.contains("Unhealthy")), "{:?}", bench.told());
}

#[tokio::test(start_paused = true)]
async fn a_pod_without_probes_is_asked_nothing() {
    let pod = pod(|_| {});
    let bench = Bench::new(&pod);
    bench.runtime.add_image("app:1");
    bench.until_phase("Running").await;
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert!(!bench.runtime.calls().iter().any(|call| call.starts_with("exec")));
}
