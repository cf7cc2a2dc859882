//! Events: which, in which order, in kubelet's words.

use super::*;
use crate::edged::events::Correlator;

#[tokio::test(start_paused = true)]
async fn a_start_and_an_end_are_told_in_order() {
    let pod = pod(|pod| {
        pod["spec"]["initContainers"] = json!([{"name": "i", "image": "app:1"}]);
        pod["metadata"]["resourceVersion"] = "7".into();
    });
    let mut bench = Bench::new(&pod);
    bench.runtime.publish_image("app:1");
    bench.until(|status| status["initContainerStatuses"][0]["state"]["running"].is_object()).await;
    assert!(bench.runtime.exit("u", "i", 0));
    bench.bell.look();
    bench.until_phase("Running").await;
    bench.orders.send_replace(order(&deleted(&pod, 1)));
    bench.ended().await;
    let told = [
        "spec.initContainers{i} Pulling: Pulling image \"app:1\"",
        "spec.initContainers{i} Pulled: Successfully pulled image \"app:1\" in 0s (0s including waiting). \
         Image size: 0 bytes.",
        "spec.initContainers{i} Created: Created container: i",
        "spec.initContainers{i} Started: Started container i",
        "spec.containers{a} Pulled: Container image \"app:1\" already present on machine",
        "spec.containers{a} Created: Created container: a",
        "spec.containers{a} Started: Started container a",
        "spec.containers{a} Killing: Stopping container a",
    ];
    assert_eq!(bench.told(), told);
    let events = bench.reports.events.lock().unwrap();
    assert!(events.iter().all(|event| event.involved.resource_version == "7" && event.involved.uid == "u"));
}

#[tokio::test(start_paused = true)]
async fn a_pull_tells_its_own_time_and_that_with_its_turn() {
    let bench = Bench::new(&pod(|_| {}));
    bench.runtime.publish_image("app:1");
    let place = bench.shared.pulls.acquire().await.unwrap();
    tokio::time::sleep(Duration::from_millis(2500)).await;
    drop(place);
    bench.until_phase("Running").await;
    let message = "Successfully pulled image \"app:1\" in 0s (2.5s including waiting). Image size: 0 bytes.";
    assert!(bench.told().contains(&format!("spec.containers{{a}} Pulled: {message}")), "{:?}", bench.told());
}

#[tokio::test(start_paused = true)]
async fn a_crash_loop_is_one_event_whose_count_rises() {
    let pod = pod(|_| {});
    let bench = Bench::new(&pod);
    bench.runtime.add_image("app:1");
    bench.until_phase("Running").await;
    for restarts in 1..5 {
        assert!(bench.runtime.exit("u", "a", 2));
        bench.bell.look();
        // Looks in between are no new crashes.
        tokio::time::sleep(Duration::from_secs(3)).await;
        bench.bell.look();
        bench.until(|status| status["containerStatuses"][0]["restartCount"] == restarts).await;
    }
    let mut correlator = Correlator::default();
    let events = bench.reports.events.lock().unwrap().clone();
    let told: Vec<_> = events.into_iter().filter_map(|event| correlator.note(event)).collect();
    let backs_off: Vec<_> = told.iter().filter(|event| event.record.reason == Told::BackOffRestart).collect();
    let message = "Back-off restarting failed container a in pod p_ns(u)";
    assert!(backs_off.iter().all(|event| event.record.message == message && event.name == backs_off[0].name));
    // The first restart is immediate.
    assert_eq!(backs_off.iter().map(|event| event.count).collect::<Vec<_>>(), [1, 2, 3]);
    let started = told.iter().rfind(|event| event.record.reason == Told::Started).unwrap();
    assert_eq!(started.count, 5);
}

#[tokio::test(start_paused = true)]
async fn what_goes_wrong_is_told_as_kubelet_does() {
    let absent = pod(|_| {});
    let bench = Bench::new(&absent);
    bench.until_waiting("ImagePullBackOff").await;
    let told = [
        "spec.containers{a} Pulling: Pulling image \"app:1\"",
        "spec.containers{a} Failed: Failed to pull image \"app:1\": pull_image: not found: app:1: not found",
        "spec.containers{a} Failed: Error: ErrImagePull",
        "spec.containers{a} BackOff: Back-off pulling image \"app:1\"",
        "spec.containers{a} Failed: Error: ImagePullBackOff",
    ];
    assert_eq!(bench.told()[..5], told);

    let never = pod(|pod| pod["spec"]["containers"][0]["imagePullPolicy"] = "Never".into());
    let bench = Bench::new(&never);
    bench.until_waiting("ErrImageNeverPull").await;
    let told = [
        "spec.containers{a} ErrImageNeverPull: Container image \"app:1\" is not present with pull policy of Never",
        "spec.containers{a} Failed: Error: ErrImageNeverPull",
    ];
    assert_eq!(bench.told()[..2], told);

    let invalid = pod(|pod| pod["spec"]["containers"][0]["image"] = "App Store".into());
    let bench = Bench::new(&invalid);
    bench.until_waiting("InvalidImageName").await;
    assert!(bench.told()[0].starts_with("spec.containers{a} InspectFailed: Failed to inspect image \"App Store\": "));
    assert_eq!(bench.told()[1], "spec.containers{a} Failed: Error: InvalidImageName");

    let bench = Bench::new(&absent);
    bench.runtime.add_image("app:1");
    *bench.words.no_volumes.lock().unwrap() = Some("MountVolume.SetUp failed for volume \"v\"".to_owned());
    bench.runtime.fail_next("run_sandbox", "no network");
    bench.runtime.fail_next("create_container", "no disk");
    bench.until_phase("Running").await;
    let told = bench.told();
    assert_eq!(told[0], "FailedMount: MountVolume.SetUp failed for volume \"v\"");
    assert_eq!(told[1], "FailedCreatePodSandBox: Failed to create pod sandbox: run_sandbox failed: no network");
    assert_eq!(told[3], "spec.containers{a} Failed: Error: create_container failed: no disk");
}

#[tokio::test(start_paused = true)]
async fn a_sandbox_that_died_is_told_once_and_a_first_one_is_not() {
    let pod = pod(|_| {});
    let bench = Bench::new(&pod);
    bench.runtime.add_image("app:1");
    bench.until_phase("Running").await;
    let changed = |told: &Vec<String>| told.iter().filter(|told| told.starts_with("SandboxChanged")).count();
    assert_eq!(changed(&bench.told()), 0);
    bench.runtime.lose_sandbox("u");
    bench.bell.look();
    bench.until(|status| status["containerStatuses"][0]["restartCount"] == 1).await;
    let told = bench.told();
    assert_eq!(changed(&told), 1, "{told:?}");
    assert!(told.contains(&"SandboxChanged: Pod sandbox changed, it will be killed and re-created.".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn a_pull_secret_that_is_not_there_is_told_with_every_pull_and_the_pull_is_tried() {
    let pod = pod(|pod| pod["spec"]["imagePullSecrets"] = json!([{"name": "one"}, {"name": "two"}]));
    let bench = Bench::new(&pod);
    bench.runtime.publish_image("app:1");
    bench.until_phase("Running").await;
    let told = "FailedToRetrieveImagePullSecret: Unable to retrieve some image pull secrets (one, two); attempting to pull \
                the image may not succeed.";
    assert_eq!(bench.told()[1], told, "{:?}", bench.told());
}

#[tokio::test(start_paused = true)]
async fn what_there_is_to_say_of_a_configuration_is_told_of_the_pod_and_once_for_a_sandbox() {
    let pod = pod(|pod| {
        pod["spec"]["containers"] = json!([{"name": "a", "image": "app:1"}, {"name": "b", "image": "app:1"}])
    });
    let bench = Bench::new(&pod);
    bench.words.of_sandbox.lock().unwrap().push((Told::DnsConfigForming, "three servers".to_owned()));
    bench.words.of_container.lock().unwrap().push((Told::InvalidEnvironmentVariableNames, "a=b".to_owned()));
    bench.runtime.add_image("app:1");
    bench.until_phase("Running").await;
    let told = bench.told();
    let count = |event: &str| told.iter().filter(|told| *told == event).count();
    assert_eq!(count("DNSConfigForming: three servers"), 1, "{told:?}");
    assert_eq!(count("InvalidEnvironmentVariableNames: a=b"), 2, "{told:?}");
}

#[tokio::test(start_paused = true)]
async fn a_deadline_is_told_once_of_a_pod_that_never_ran_and_not_again_after_a_restart() {
    let pod = pod(|pod| pod["spec"]["activeDeadlineSeconds"] = 60.into());
    let mut bench = Bench::new(&pod);
    let expired = |status: &Value| status["reason"] == "DeadlineExceeded";
    bench.until(expired).await;
    let told = || bench.told().iter().filter(|told| told.starts_with("DeadlineExceeded: ")).count();
    assert_eq!(told(), 1, "{:?}", bench.told());
    // It is looked at every minute.
    tokio::time::sleep(Duration::from_secs(200)).await;
    assert_eq!(told(), 1, "{:?}", bench.told());
    bench.restart();
    bench.until(expired).await;
    let told = bench.told().iter().filter(|told| told.starts_with("DeadlineExceeded: ")).count();
    assert_eq!(told, 1, "{:?}", bench.told());
}
