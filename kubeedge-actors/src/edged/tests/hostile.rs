//! Pods with every wrong thing that one can write, and pods that come and go faster than they can run.

use super::{wrong_pods::wrong_pods, *};

const MANY: usize = 60;

#[actix_rt::test]
async fn a_pod_with_any_wrong_thing_in_it_says_so_and_disturbs_nobody() {
    let bench = bench(&[], true).await;
    bench.tell(&pod("well", "well")).await;
    bench.phase("well", "Running").await;
    let well = bench.runtime.pod("well");

    let pods = wrong_pods(MANY, "app:1");
    for (pod, _) in &pods {
        bench.tell(pod).await;
    }
    let mut refused = 0;
    for (pod, spoilt) in &pods {
        let uid = pod["metadata"]["uid"].as_str().unwrap();
        let shown = format!("a status of {uid} that says what is wrong ({spoilt:?})");
        // It runs, or it is said why not: in the status, and in an event.
        let status = bench
            .until(&shown, |site| {
                let reports = lock(&site.reports);
                let (_, _, status) = reports.iter().rev().find(|(_, of, _)| of == uid)?;
                let named = |event: &Value| event["involvedObject"]["uid"] == uid && event["type"] == "Warning";
                let told = lock(&site.events).iter().any(named);
                (status["phase"] == "Running" || told).then(|| status.clone())
            })
            .await;
        assert!(status["conditions"].as_array().is_some_and(|all| !all.is_empty()), "{shown}: {status}");
        if status["phase"] == "Failed" {
            assert!(status["reason"].is_string() && status["message"].is_string(), "{shown}: {status}");
            refused += 1;
        }
    }
    assert!(refused > 0 && refused < MANY, "{refused} were refused");
    assert_eq!(bench.runtime.pod("well"), well, "the pod beside them is as it was");

    for (pod, _) in &pods {
        let mut deleted = pod.clone();
        deleted["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
        deleted["metadata"]["deletionGracePeriodSeconds"] = 0.into();
        bench.tell(&deleted).await;
    }
    for (pod, _) in &pods {
        bench.ended(pod["metadata"]["uid"].as_str().unwrap()).await;
    }
    assert_eq!(bench.runtime.list_pods().await.unwrap().len(), 1);
    assert_eq!(bench.runtime.pod("well"), well);
    bench.stop().await;
}

#[actix_rt::test]
async fn a_running_pod_whose_new_version_is_no_pod_runs_on_and_ends_when_it_is_deleted() {
    let bench = bench(&[], true).await;
    bench.tell(&pod("p", "u1")).await;
    bench.phase("u1", "Running").await;
    let before = bench.runtime.pod("u1");
    let mut nonsense = pod("p", "u1");
    nonsense["spec"]["containers"] = "none".into();
    bench.tell(&nonsense).await;
    let refused = |site: &Site| lock(&site.events).iter().any(|event| event["reason"] == "InvalidPod").then_some(());
    bench.until("InvalidPod", refused).await;
    assert_eq!(bench.runtime.pod("u1"), before);
    nonsense["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
    bench.tell(&nonsense).await;
    bench.ended("u1").await;
    assert!(bench.runtime.pod("u1").sandboxes.is_empty(), "it is said when it is so");
    bench.stop().await;
}

#[actix_rt::test]
async fn of_a_pod_that_comes_again_and_again_under_its_name_the_last_one_runs() {
    let bench = bench(&[], true).await;
    bench.runtime.make_stubborn("a");
    for round in 0..100 {
        let uid = format!("u{round}");
        bench.tell(&pod("p", &uid)).await;
        // Some come to run first, most do not.
        if round % 20 == 0 {
            bench.phase(&uid, "Running").await;
        }
        let mut deleted = pod("p", &uid);
        deleted["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
        deleted["metadata"]["deletionGracePeriodSeconds"] = 0.into();
        if round % 2 == 0 {
            bench.tell(&deleted).await;
        }
        bench.gone("p", &uid).await;
    }
    bench.tell(&pod("p", "last")).await;
    bench.phase("last", "Running").await;
    let pods = bench.runtime.list_pods().await.unwrap();
    let uids: Vec<&str> = pods.iter().map(|pod| pod.uid.as_str()).collect();
    assert_eq!(uids, ["last"]);
    bench.gone("p", "last").await;
    bench.vanished("last").await;
    bench.stop().await;
}
