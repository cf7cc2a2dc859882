//! Other resources for containers that run.

use super::*;
use crate::edged::lifecycle::PendingResize;

fn sized(cpu: &str, memory: &str, policy: &str) -> Arc<Pod> {
    pod(|pod| {
        let amounts = json!({"cpu": cpu, "memory": memory});
        pod["spec"]["containers"][0]["resources"] = json!({"limits": amounts, "requests": amounts});
        pod["spec"]["containers"][0]["resizePolicy"] = json!([{"resourceName": "memory", "restartPolicy": policy}]);
    })
}

fn condition<'a>(status: &'a Value, type_: &str) -> Option<&'a Value> {
    status["conditions"].as_array()?.iter().find(|condition| condition["type"] == type_)
}

fn limit<'a>(status: &'a Value, name: &str) -> &'a Value {
    &status["containerStatuses"][0]["resources"]["limits"][name]
}

fn updates(bench: &Bench) -> Vec<String> {
    bench.runtime.calls().into_iter().filter(|call| call.starts_with("update_resources")).collect()
}

#[tokio::test(start_paused = true)]
async fn a_container_gets_other_resources_as_it_runs() {
    let mut bench = Bench::new(&sized("500m", "64Mi", "NotRequired"));
    bench.runtime.add_image("app:1");
    let before = bench.until_phase("Running").await;
    assert_eq!((limit(&before, "cpu"), limit(&before, "memory")), (&json!("500m"), &json!("64Mi")));
    assert_eq!(before["containerStatuses"][0]["allocatedResources"]["cpu"], "500m");
    assert_eq!(condition(&before, "PodResizeInProgress"), None);

    bench.orders.send_replace(order(&sized("1", "128Mi", "NotRequired")));
    let during = bench.until(|status| condition(status, "PodResizeInProgress").is_some()).await;
    assert_eq!((limit(&during, "cpu"), limit(&during, "memory")), (&json!("500m"), &json!("64Mi")), "what it has");
    let after =
        bench.until(|status| limit(status, "cpu") == "1" && condition(status, "PodResizeInProgress").is_none()).await;
    assert_eq!((limit(&after, "memory"), &after["containerStatuses"][0]["restartCount"]), (&json!("128Mi"), &json!(0)));
    let id = bench.runtime.pod("u").instances[0].id.clone();
    assert_eq!(updates(&bench), [format!("update_resources {id} 1024 100000 {}", 128 << 20)]);
    let done = bench.words.done.lock().unwrap().clone();
    assert_eq!(done[done.len() - 2..], ["make room", "take back"]);
    assert!(bench.told().iter().any(|told| told == "ResizeCompleted: Pod resize completed"), "{:?}", bench.told());

    // What another edgecore finds is made with the old ones, so it says the new ones again: that does no harm.
    bench.restart();
    bench.until(|status| limit(status, "cpu") == "1").await;
    assert_eq!(updates(&bench).len(), 2);
    assert_eq!(bench.runtime.pod("u").instances.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn what_takes_a_restart_gets_one_whatever_the_restart_policy() {
    let of = |memory: &str| {
        let mut pod = Pod::clone(&sized("500m", memory, "RestartContainer"));
        pod.spec.as_mut().unwrap().restart_policy = Some("OnFailure".to_owned());
        Arc::new(pod)
    };
    let bench = Bench::new(&of("64Mi"));
    bench.runtime.add_image("app:1");
    bench.until_phase("Running").await;
    bench.orders.send_replace(order(&of("128Mi")));
    let after = bench.until(|status| limit(status, "memory") == "128Mi" && state(status)["running"].is_object());
    let after = after.await;
    assert_eq!(after["containerStatuses"][0]["restartCount"], 1);
    assert_eq!(updates(&bench), Vec::<String>::new());
    let told = "spec.containers{a} Killing: Container a resize requires restart";
    assert!(bench.told().iter().any(|found| found == told), "{:?}", bench.told());
}

#[tokio::test(start_paused = true)]
async fn less_memory_than_is_used_is_not_given_and_a_refusal_is_told_and_tried_again() {
    let bench = Bench::new(&sized("500m", "64Mi", "NotRequired"));
    bench.runtime.add_image("app:1");
    bench.until_phase("Running").await;
    // Each container of this runtime uses ten megabytes.
    bench.orders.send_replace(order(&sized("500m", "8Mi", "NotRequired")));
    let status =
        bench.until(|status| condition(status, "PodResizeInProgress").is_some_and(|it| it["reason"] == "Error"));
    let status = status.await;
    let message = condition(&status, "PodResizeInProgress").unwrap()["message"].as_str().unwrap().to_owned();
    assert!(message.starts_with("attempting to set memory limit of container a below current usage"), "{message}");
    assert_eq!((limit(&status, "memory"), updates(&bench)), (&json!("64Mi"), Vec::new()));

    bench.runtime.fail_next("update_resources", "no");
    bench.orders.send_replace(order(&sized("500m", "32Mi", "NotRequired")));
    bench.until(|status| limit(status, "memory") == "32Mi").await;
    assert_eq!(updates(&bench).len(), 2, "refused once");
    assert!(bench.told().iter().any(|told| told.contains("ResizeError: container a: update_resources failed: no")));
}

#[tokio::test(start_paused = true)]
async fn a_resize_that_waits_is_a_condition_and_touches_nothing() {
    let pod = sized("500m", "64Mi", "NotRequired");
    let bench = Bench::new(&pod);
    bench.runtime.add_image("app:1");
    bench.until_phase("Running").await;
    let why = Arc::new(PendingResize { infeasible: false, message: "no room".to_owned() });
    bench.orders.send_replace(Order { pending_resize: Some(why), ..order(&pod) });
    let status = bench.until(|status| condition(status, "PodResizePending").is_some()).await;
    let pending = condition(&status, "PodResizePending").unwrap();
    assert_eq!((&pending["reason"], &pending["message"]), (&json!("Deferred"), &json!("no room")));
    bench.reports.made.lock().unwrap().clear();
    bench.orders.send_replace(order(&pod));
    bench.until(|status| condition(status, "PodResizePending").is_none() && limit(status, "cpu") == "500m").await;
    assert_eq!(updates(&bench), Vec::<String>::new());
}
