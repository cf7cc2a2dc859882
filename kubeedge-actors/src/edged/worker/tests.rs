//! A worker against a runtime in memory, on paused time.

use std::sync::Mutex;

use k8s_openapi::api::core::v1::Container;
use serde_json::{Value, json};
use tokio::{task::JoinHandle, time::Instant};

use super::*;
use crate::edged::{
    fake::FakeRuntime,
    labels,
    lifecycle::{DEFAULT_GRACE_SECONDS, Sizes},
    provision::{Configured, ContainerRequest, Credentials, Provided},
    resources::{Change, NodeLimits, container_resources},
    runtime::Instance,
};

mod hooks;
mod probes;
mod resize;
mod told;

#[derive(Default)]
struct Reports {
    made: Mutex<Vec<(bool, Value)>>,
    events: Mutex<Vec<EventRecord>>,
    refuse: AtomicBool,
    news: Notify,
}

impl Reporter for Reports {
    fn report<'a>(&'a self, _plan: &'a PodPlan, report: Report) -> BoxFuture<'a, Result<(), String>> {
        Box::pin(async move {
            if self.refuse.load(Ordering::Acquire) {
                return Err("disk full".to_owned());
            }
            let (ended, status) = match report {
                Report::Status(status) => (false, status),
                Report::Terminated(status) => (true, status),
            };
            self.made.lock().unwrap().push((ended, serde_json::to_value(status).unwrap()));
            self.news.notify_one();
            Ok(())
        })
    }

    fn event(&self, event: EventRecord) {
        self.events.lock().unwrap().push(event);
    }
}

/// Volumes that only exist in words.
#[derive(Default)]
struct Words {
    done: Mutex<Vec<String>>,
    missing: Mutex<Option<String>>,
    /// Why the next set-up fails.
    no_volumes: Mutex<Option<String>>,
    /// What there is to say of configurations.
    of_sandbox: Mutex<Vec<(Told, String)>>,
    of_container: Mutex<Vec<(Told, String)>>,
}

impl Words {
    fn note(&self, what: impl Into<String>) -> Provided<'_, ()> {
        self.done.lock().unwrap().push(what.into());
        Box::pin(async { Ok(()) })
    }
}

impl Provision for Words {
    fn set_up<'a>(&'a self, _pod: &'a Pod, _ips: &'a [String]) -> Provided<'a, ()> {
        match self.no_volumes.lock().unwrap().take() {
            Some(why) => Box::pin(async { Err(why) }),
            None => self.note("set up"),
        }
    }
    fn refresh<'a>(&'a self, _pod: &'a Pod, _ips: &'a [String]) -> Provided<'a, ()> {
        self.note("refresh")
    }
    fn tear_down<'a>(&'a self, _plan: &'a PodPlan) -> Provided<'a, ()> {
        self.note("tear down")
    }
    fn sandbox<'a>(
        &'a self,
        _pod: &'a Pod,
        plan: &'a PodPlan,
        attempt: u32,
        started_at: Timestamp,
    ) -> Provided<'a, Configured<kubeedge_proto::cri::PodSandboxConfig>> {
        Box::pin(async move {
            let config = kubeedge_proto::cri::PodSandboxConfig {
                metadata: Some(kubeedge_proto::cri::PodSandboxMetadata {
                    name: plan.name.clone(),
                    uid: plan.uid.clone(),
                    namespace: plan.namespace.clone(),
                    attempt,
                }),
                annotations: [(labels::POD_START.to_owned(), started_at.to_string())].into(),
                ..Default::default()
            };
            Ok(Configured { config, told: self.of_sandbox.lock().unwrap().clone() })
        })
    }
    fn handler<'a>(&'a self, _pod: &'a Pod) -> Provided<'a, String> {
        Box::pin(async { Ok(String::new()) })
    }
    fn container<'a>(
        &'a self,
        request: ContainerRequest<'a>,
    ) -> Provided<'a, Configured<kubeedge_proto::cri::ContainerConfig>> {
        Box::pin(async move {
            if let Some(missing) = self.missing.lock().unwrap().clone() {
                return Err(missing);
            }
            let image = request.container.image.clone().unwrap_or_default();
            let config = kubeedge_proto::cri::ContainerConfig {
                metadata: Some(kubeedge_proto::cri::ContainerMetadata {
                    name: request.container.name.clone(),
                    attempt: request.attempt,
                }),
                image: Some(kubeedge_proto::cri::ImageSpec { image: image.clone(), ..Default::default() }),
                annotations: [
                    (labels::SPEC_IMAGE.to_owned(), image),
                    (labels::SIZES.to_owned(), Sizes::of(request.container).unwrap().to_string()),
                ]
                .into(),
                ..Default::default()
            };
            Ok(Configured { config, told: self.of_container.lock().unwrap().clone() })
        })
    }
    fn resources(
        &self,
        pod: &Pod,
        container: &Container,
    ) -> Result<kubeedge_proto::cri::LinuxContainerResources, String> {
        let limits = NodeLimits { cpu_quota: true, ..NodeLimits::default() };
        container_resources(pod, container, &limits).map_err(|error| error.to_string())
    }
    fn resize<'a>(&'a self, _pod: &'a Pod, _plan: &'a PodPlan, change: Change) -> Provided<'a, ()> {
        self.note(if change == Change::Raise { "make room" } else { "take back" })
    }
    fn credentials<'a>(&'a self, pod: &'a Pod, _image: &'a str) -> Provided<'a, Credentials> {
        let named = pod.spec.iter().flat_map(|spec| spec.image_pull_secrets.iter().flatten());
        let missing = named.map(|secret| secret.name.clone()).collect();
        Box::pin(async { Ok(Credentials { found: Vec::new(), missing }) })
    }
    fn container_started<'a>(&'a self, _: &'a PodPlan, container: &'a str, _: u32, _: &'a str) -> Provided<'a, ()> {
        self.note(format!("link {container}"))
    }
    fn container_removed<'a>(&'a self, _: &'a PodPlan, container: &'a str, _: u32, _: &'a str) -> Provided<'a, ()> {
        self.note(format!("unlink {container}"))
    }
    fn last_words<'a>(&'a self, _: &'a Pod, _: &'a PodPlan, instance: &'a Instance) -> Provided<'a, String> {
        Box::pin(async move { Ok(format!("last words of {}", instance.name)) })
    }
}

struct Bench {
    runtime: FakeRuntime,
    words: Arc<Words>,
    reports: Arc<Reports>,
    shared: Arc<Shared>,
    orders: watch::Sender<Order>,
    bell: Arc<Bell>,
    worker: Option<JoinHandle<()>>,
}

fn pod(change: impl FnOnce(&mut Value)) -> Arc<Pod> {
    let mut value = json!({
        "metadata": {"namespace": "ns", "name": "p", "uid": "u"},
        "spec": {"containers": [{"name": "a", "image": "app:1"}]},
    });
    change(&mut value);
    Arc::new(serde_json::from_value(value).unwrap())
}

fn order(pod: &Arc<Pod>) -> Order {
    Order::of(Arc::clone(pod), Arc::new(PodPlan::of(pod).unwrap()))
}

fn deleted(pod: &Arc<Pod>, grace: i64) -> Arc<Pod> {
    let mut pod = Pod::clone(pod);
    pod.metadata.deletion_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(Timestamp::UNIX_EPOCH));
    pod.metadata.deletion_grace_period_seconds = Some(grace);
    Arc::new(pod)
}

impl Bench {
    fn new(pod: &Arc<Pod>) -> Self {
        let began = Instant::now();
        let clock = Arc::new(move || {
            later(Timestamp::from_second(1_800_000_000).unwrap(), Instant::now().duration_since(began))
        });
        let runtime = FakeRuntime::new(clock.clone());
        let (words, reports) = (Arc::new(Words::default()), Arc::new(Reports::default()));
        let (_, node) = watch::channel(NodeFacts { runtime_name: "fake".to_owned(), ..NodeFacts::default() });
        let shared = Arc::new(Shared {
            runtime: Arc::new(runtime.clone()),
            provision: Arc::<Words>::clone(&words),
            reporter: Arc::<Reports>::clone(&reports),
            clock,
            node,
            pulls: tokio::sync::Semaphore::new(1),
        });
        let (orders, _) = watch::channel(order(pod));
        let mut bench = Self { runtime, words, reports, shared, orders, bell: Arc::default(), worker: None };
        bench.start();
        bench
    }

    fn start(&mut self) {
        let (shared, bell) = (Arc::clone(&self.shared), Arc::clone(&self.bell));
        self.worker = Some(tokio::spawn(run(shared, self.orders.subscribe(), bell)));
    }

    /// Edgecore is killed and starts again.
    fn restart(&mut self) {
        self.worker.take().unwrap().abort();
        self.reports.made.lock().unwrap().clear();
        self.start();
    }

    /// The first report that fits.
    async fn until(&self, fits: impl Fn(&Value) -> bool) -> Value {
        let mut seen = 0;
        tokio::time::timeout(Duration::from_secs(3600), async {
            loop {
                {
                    let made = self.reports.made.lock().unwrap();
                    if let Some((_, status)) = made[seen.min(made.len())..].iter().find(|(_, status)| fits(status)) {
                        return status.clone();
                    }
                    seen = made.len();
                }
                self.reports.news.notified().await;
            }
        })
        .await
        .unwrap_or_else(|_| panic!("no such report: {:#?}", self.reports.made.lock().unwrap()))
    }

    async fn until_phase(&self, phase: &str) -> Value {
        self.until(|status| status["phase"] == phase).await
    }

    async fn until_waiting(&self, reason: &str) -> Value {
        self.until(|status| state(status)["waiting"]["reason"] == reason).await
    }

    /// The events so far, as `field path reason: message`.
    fn told(&self) -> Vec<String> {
        let events = self.reports.events.lock().unwrap();
        let show = |event: &EventRecord| {
            format!("{} {}: {}", event.involved.field_path, event.reason.as_str(), event.message).trim().to_owned()
        };
        events.iter().map(show).collect()
    }

    async fn ended(&mut self) -> Value {
        self.worker.take().unwrap().await.unwrap();
        let made = self.reports.made.lock().unwrap();
        let (ended, status) = made.last().unwrap();
        assert!(ended, "the last report is the pod's end");
        status.clone()
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            assert_eq!(self.runtime.violations(), Vec::<String>::new());
        }
    }
}

fn state(status: &Value) -> &Value {
    &status["containerStatuses"][0]["state"]
}

#[tokio::test(start_paused = true)]
async fn a_pod_runs_and_its_deletion_leaves_nothing() {
    let pod = pod(|_| {});
    let mut bench = Bench::new(&pod);
    bench.runtime.publish_image("app:1");
    bench.until_waiting("ContainerCreating").await;
    let running = bench.until_phase("Running").await;
    assert_eq!(running["containerStatuses"][0]["image"], "app:1");
    assert_eq!(*bench.words.done.lock().unwrap(), ["set up", "link a"]);

    bench.orders.send_replace(order(&deleted(&pod, 5)));
    let last = bench.ended().await;
    assert_eq!(last["containerStatuses"][0]["state"]["terminated"]["exitCode"], 143);
    let stop = bench.runtime.calls().into_iter().find(|call| call.starts_with("stop_container"));
    assert!(stop.unwrap().ends_with(" 5"));
    assert_eq!(bench.words.done.lock().unwrap()[2..], ["unlink a", "tear down"]);
    assert!(bench.runtime.pod("u").sandboxes.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_restart_of_edgecore_adopts_what_runs() {
    let pod = pod(|_| {});
    let mut bench = Bench::new(&pod);
    bench.runtime.add_image("app:1");
    bench.until_phase("Running").await;
    let before = bench.runtime.pod("u");
    tokio::time::advance(Duration::from_secs(100)).await;
    bench.restart();
    let adopted = bench.until_phase("Running").await;
    assert_eq!(bench.runtime.pod("u"), before);
    assert_eq!(adopted["startTime"], "2027-01-15T08:00:00Z");
    let made = |call: &str| bench.runtime.calls().iter().filter(|made| made.starts_with(call)).count();
    assert_eq!((made("run_sandbox"), made("create_container")), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn what_ended_while_edgecore_was_down_is_restarted_once() {
    let pod = pod(|_| {});
    let mut bench = Bench::new(&pod);
    bench.runtime.add_image("app:1");
    bench.until_phase("Running").await;
    bench.worker.take().unwrap().abort();
    assert!(bench.runtime.exit("u", "a", 1));
    bench.worker = Some(tokio::spawn(async {}));
    bench.restart();
    let status = bench.until(|status| status["containerStatuses"][0]["restartCount"] == 1).await;
    assert!(state(&status)["running"].is_object());
    assert_eq!(status["containerStatuses"][0]["lastState"]["terminated"]["message"], "last words of a");
}

#[tokio::test(start_paused = true)]
async fn a_delete_made_while_edgecore_was_down_takes_effect() {
    let pod = pod(|_| {});
    let mut bench = Bench::new(&pod);
    bench.runtime.add_image("app:1");
    bench.until_phase("Running").await;
    bench.worker.take().unwrap().abort();
    bench.orders.send_replace(order(&deleted(&pod, 1)));
    bench.worker = Some(tokio::spawn(async {}));
    bench.restart();
    bench.ended().await;
    assert!(bench.runtime.pod("u").sandboxes.is_empty());
}

#[tokio::test(start_paused = true)]
async fn crashes_are_seen_by_the_bell_and_back_off() {
    let pod = pod(|_| {});
    let bench = Bench::new(&pod);
    bench.runtime.add_image("app:1");
    bench.until_phase("Running").await;
    for restarts in 1..4 {
        assert!(bench.runtime.exit("u", "a", 2));
        let before = Instant::now();
        bench.bell.look();
        bench
            .until(|status| {
                status["containerStatuses"][0]["restartCount"] == restarts && state(status)["running"].is_object()
            })
            .await;
        let waited = before.elapsed().as_secs();
        assert_eq!(waited, [0, 10, 20][restarts - 1]);
    }
}

#[tokio::test(start_paused = true)]
async fn an_unchanged_status_is_reported_again_when_asked_for() {
    let pod = pod(|_| {});
    let bench = Bench::new(&pod);
    bench.runtime.add_image("app:1");
    bench.until_phase("Running").await;
    tokio::time::sleep(3 * RESYNC).await;
    let before = bench.reports.made.lock().unwrap().clone();
    bench.bell.report();
    tokio::time::sleep(RESYNC).await;
    let after = bench.reports.made.lock().unwrap().clone();
    assert_eq!(after.len(), before.len() + 1);
    assert_eq!(after.last(), before.last());
}

#[tokio::test(start_paused = true)]
async fn a_pull_is_tried_again_and_given_up_for_a_deletion() {
    let pod = pod(|pod| pod["spec"]["containers"][0]["imagePullPolicy"] = "Always".into());
    let mut bench = Bench::new(&pod);
    let status = bench.until_waiting("ErrImagePull").await;
    assert!(state(&status)["waiting"]["message"].as_str().unwrap().contains("app:1: not found"));
    bench.until_waiting("ImagePullBackOff").await;
    bench.orders.send_replace(order(&deleted(&pod, 30)));
    let last = bench.ended().await;
    assert_eq!(state(&last)["terminated"]["reason"], "ContainerStatusUnknown");
}

#[tokio::test(start_paused = true)]
async fn pull_policies_are_kept() {
    let never = pod(|pod| pod["spec"]["containers"][0]["imagePullPolicy"] = "Never".into());
    let bench = Bench::new(&never);
    bench.runtime.publish_image("app:1");
    bench.until_waiting("ErrImageNeverPull").await;
    bench.runtime.add_image("app:1");
    bench.until_phase("Running").await;
    assert!(!bench.runtime.calls().iter().any(|call| call.starts_with("pull_image")));

    let unset = pod(|_| {});
    let bench = Bench::new(&unset);
    bench.runtime.add_image("app:1");
    bench.until_phase("Running").await;
    assert!(!bench.runtime.calls().iter().any(|call| call.starts_with("pull_image")), "it is on the node");

    let latest = pod(|pod| pod["spec"]["containers"][0]["image"] = "app".into());
    let bench = Bench::new(&latest);
    bench.until_waiting("ErrImagePull").await;

    let invalid = pod(|pod| pod["spec"]["containers"][0]["image"] = "App Store".into());
    let bench = Bench::new(&invalid);
    bench.until_waiting("InvalidImageName").await;
}

#[tokio::test(start_paused = true)]
async fn a_missing_config_map_is_said_and_its_arrival_starts_the_container_at_once() {
    let pod = pod(|_| {});
    let bench = Bench::new(&pod);
    bench.runtime.add_image("app:1");
    *bench.words.missing.lock().unwrap() = Some("configmap \"c\" not found".to_owned());
    let status = bench.until_waiting("CreateContainerConfigError").await;
    assert_eq!(state(&status)["waiting"]["message"], "configmap \"c\" not found");
    *bench.words.missing.lock().unwrap() = None;
    let before = Instant::now();
    bench.bell.refresh();
    bench.until_phase("Running").await;
    assert_eq!(before.elapsed().as_secs(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_command_that_cannot_start_is_said() {
    let pod = pod(|_| {});
    let bench = Bench::new(&pod);
    bench.runtime.add_image("app:1");
    bench.runtime.fail_next("start_container", "exec: no such file");
    bench.runtime.fail_next("start_container", "exec: no such file");
    let status = bench.until_waiting("RunContainerError").await;
    assert!(state(&status)["waiting"]["message"].as_str().unwrap().contains("no such file"));
    bench.until_phase("Running").await;
}

#[tokio::test(start_paused = true)]
async fn a_shorter_grace_period_counts_at_once() {
    let pod = pod(|_| {});
    let mut bench = Bench::new(&pod);
    bench.runtime.add_image("app:1");
    bench.runtime.make_stubborn("a");
    bench.until_phase("Running").await;
    let before = Instant::now();
    bench.orders.send_replace(order(&deleted(&pod, i64::from(DEFAULT_GRACE_SECONDS))));
    tokio::time::sleep(Duration::from_secs(3)).await;
    bench.orders.send_replace(order(&deleted(&pod, 1)));
    bench.ended().await;
    assert_eq!(before.elapsed().as_secs(), 4);
}

#[tokio::test(start_paused = true)]
async fn failed_steps_and_reports_are_made_again() {
    let pod = pod(|_| {});
    let mut bench = Bench::new(&pod);
    bench.runtime.add_image("app:1");
    for call in
        ["run_sandbox", "create_container", "stop_container", "stop_sandbox", "remove_container", "remove_sandbox"]
    {
        bench.runtime.fail_next(call, "out of luck");
    }
    let status = bench.until(|status| state(status)["waiting"]["message"].is_string()).await;
    assert!(state(&status)["waiting"]["message"].as_str().unwrap().contains("out of luck"));
    let hindered = |reason: &str| {
        let reason = reason.to_owned();
        move |status: &Value| {
            let condition = &status["conditions"][1];
            condition["type"] == "PodReadyToStartContainers"
                && condition["reason"] == *reason
                && condition["message"].as_str().is_some_and(|message| message.contains("out of luck"))
        }
    };
    bench.until(hindered("FailedCreatePodSandBox")).await;
    bench.until_phase("Running").await;
    bench.orders.send_replace(order(&deleted(&pod, 1)));
    bench.until(hindered("FailedKillPod")).await;
    bench.reports.refuse.store(true, Ordering::Release);
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert!(!bench.worker.as_ref().unwrap().is_finished(), "the end is not forgotten before it is reported");
    bench.reports.refuse.store(false, Ordering::Release);
    bench.ended().await;
    let killing =
        bench.told().into_iter().filter(|told| told.starts_with("FailedKillPod: error killing pod: ")).count();
    assert_eq!(killing, 4, "{:?}", bench.told());
}

#[tokio::test(start_paused = true)]
async fn other_labels_and_annotations_are_written_to_the_volumes_at_once() {
    let as_labelled = |version: &str, label: &str| {
        pod(|value| {
            value["metadata"]["resourceVersion"] = version.into();
            value["metadata"]["labels"] = json!({"track": label});
        })
    };
    let bench = Bench::new(&as_labelled("1", "stable"));
    bench.runtime.add_image("app:1");
    bench.until_phase("Running").await;
    let refreshed = || bench.words.done.lock().unwrap().iter().filter(|done| *done == "refresh").count();
    for (version, label, times) in [("2", "canary", 1), ("3", "canary", 1), ("4", "stable", 2)] {
        bench.orders.send_replace(order(&as_labelled(version, label)));
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(refreshed(), times, "{version} {label}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_pod_whose_object_is_gone_ends_without_a_report() {
    let pod = pod(|_| {});
    let mut bench = Bench::new(&pod);
    bench.runtime.add_image("app:1");
    bench.until_phase("Running").await;
    bench.orders.send_replace(order(&pod).end());
    bench.worker.take().unwrap().await.unwrap();
    assert!(bench.reports.made.lock().unwrap().iter().all(|(ended, _)| !ended));
    assert!(bench.runtime.pod("u").sandboxes.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_runtime_that_says_done_and_does_nothing_is_not_asked_in_a_busy_loop() {
    let pod = pod(|_| {});
    let mut bench = Bench::new(&pod);
    bench.runtime.add_image("app:1");
    bench.until_phase("Running").await;
    bench.runtime.lie(true);
    bench.orders.send_replace(order(&deleted(&pod, 1)));
    tokio::time::sleep(Duration::from_secs(20)).await;
    let asked = bench.runtime.calls().iter().filter(|call| call.starts_with("remove_sandbox")).count();
    assert!((10..=25).contains(&asked), "{asked}");
    bench.runtime.lie(false);
    bench.ended().await;
}
