//! Edged among its neighbours: a MetaManager and an EdgeHub that the test plays, a runtime in memory.

use std::{
    path::Path,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use actix::{Handler, MessageResult, ResponseFuture};
use kubeedge_proto::{
    NodeName, resource,
    v1::{
        CallReply, KubeObject, ObjectKey, ObjectList, ReportStatus, ResourceType, Settled, call_reply, envelope::Body,
        report_status,
    },
};
use serde_json::{Value, json};
use tokio::sync::Notify;

use super::{
    fake::FakeRuntime,
    node::NodeSettings,
    runtime::{InstanceState, PodSummary, Runtime},
    *,
};
use crate::system::System;

mod hostile;
mod listing;
mod node;
mod runtime_classes;
mod runtime_features;
mod told;
mod wrong_pods;

const LIMIT: Duration = Duration::from_secs(30);

/// What the neighbours hold and hear.
#[derive(Default)]
struct Site {
    objects: Mutex<Vec<KubeObject>>,
    complete: Mutex<Vec<ResourceType>>,
    reports: Mutex<Vec<(bool, String, Value)>>,
    calls: Mutex<Vec<Body>>,
    /// Events that reached the hub, and whether it takes them.
    events: Mutex<Vec<Value>>,
    refused: Mutex<Vec<Value>>,
    offline: AtomicBool,
    /// What the cloud answers a node that registers; otherwise it is away.
    node: Mutex<Option<Value>>,
    news: Notify,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Meta(Arc<Site>);

impl Actor for Meta {
    type Context = Context<Self>;
}

impl Component for Meta {
    const NAME: &'static str = "metamanager";
    const STAGE: Stage = Stage::Store;
    fn contract(contract: &mut Contract<Self>) {
        contract.answers::<ReadObjects>();
        contract.answers::<ReportStatus>();
    }
}

impl Handler<ReadObjects> for Meta {
    type Result = MessageResult<ReadObjects>;
    fn handle(&mut self, message: ReadObjects, _: &mut Context<Self>) -> Self::Result {
        let type_ = message.r#type.unwrap();
        let fits = |object: &&KubeObject| {
            object.r#type.as_ref() == Some(&type_) && (message.key.is_none() || object.key == message.key)
        };
        let objects = lock(&self.0.objects).iter().filter(fits).cloned().collect();
        MessageResult(ObjectList { objects, complete: lock(&self.0.complete).contains(&type_) })
    }
}

impl Handler<ReportStatus> for Meta {
    type Result = MessageResult<ReportStatus>;
    fn handle(&mut self, message: ReportStatus, _: &mut Context<Self>) -> Self::Result {
        let (ended, uid, json) = match message.report.unwrap() {
            report_status::Report::Update(update) => (false, update.uid, update.status_json),
            report_status::Report::Terminated(pod) => (true, pod.uid, pod.status_json),
            report_status::Report::Device(device) => panic!("Edged reports a device: {device:?}"),
        };
        lock(&self.0.reports).push((ended, uid, serde_json::from_slice(&json).unwrap()));
        self.0.news.notify_waiters();
        MessageResult(Settled::applied())
    }
}

struct Hub(Arc<Site>);

impl Actor for Hub {
    type Context = Context<Self>;
}

impl Component for Hub {
    const NAME: &'static str = "edgehub";
    const STAGE: Stage = Stage::Link;
    fn contract(contract: &mut Contract<Self>) {
        contract.answers::<CallCloud>();
        contract.answers::<PublishEvent>();
    }
}

impl Handler<PublishEvent> for Hub {
    type Result = MessageResult<PublishEvent>;
    fn handle(&mut self, message: PublishEvent, _: &mut Context<Self>) -> Self::Result {
        let Some(Body::KubernetesEvent(event)) = message.envelope.unwrap().body else { panic!("not an event") };
        let object = event.event.unwrap();
        let json: Value = serde_json::from_slice(&object.json).unwrap();
        assert_eq!((object.r#type, object.uid.as_str()), (Some(resource::events()), ""));
        assert_eq!(json["metadata"]["name"], object.key.unwrap().name);
        if self.0.offline.load(Ordering::Acquire) {
            lock(&self.0.refused).push(json);
            self.0.news.notify_waiters();
            return MessageResult(Settled::rejected(503, "the link is down"));
        }
        lock(&self.0.events).push(json);
        self.0.news.notify_waiters();
        MessageResult(Settled::applied())
    }
}

impl Handler<CallCloud> for Hub {
    type Result = ResponseFuture<CallReply>;
    fn handle(&mut self, message: CallCloud, _: &mut Context<Self>) -> Self::Result {
        let body = message.envelope.unwrap().body.unwrap();
        let node = lock(&self.0.node).clone().filter(|_| matches!(body, Body::RegisterNode(_)));
        lock(&self.0.calls).push(body);
        self.0.news.notify_waiters();
        Box::pin(async move {
            match node {
                Some(node) => CallReply { result: Some(call_reply::Result::Object(object(&node).into())) },
                None => CallReply::error(503, "Offline", "no cloud in this test"),
            }
        })
    }
}

struct Bench {
    site: Arc<Site>,
    runtime: FakeRuntime,
    prepared: Prepared,
    system: System,
    _folder: Arc<tempfile::TempDir>,
}

fn system(site: &Arc<Site>, prepared: &Prepared) -> System {
    let (meta, hub, prepared) = (Arc::clone(site), Arc::clone(site), prepared.clone());
    System::builder("edge")
        .component(move |ports| Edged::new(prepared.clone(), ports))
        .component(move |_| Meta(Arc::clone(&meta)))
        .announces::<ObjectsChanged>()
        .announces::<KindCompleted>()
        .announces::<LinkStateChanged>()
        .asks::<ShutDownPods>()
        .asks::<ReleasePods>()
        .component(move |_| Hub(Arc::clone(&hub)))
        .start()
        .unwrap()
}

async fn bench(pods: &[Value], complete: bool) -> Bench {
    bench_with(pods, complete, |_| ()).await
}

async fn bench_with(pods: &[Value], complete: bool, change: impl FnOnce(&mut EdgedConfig)) -> Bench {
    let folder = tempfile::tempdir().unwrap();
    let runtime = FakeRuntime::new(Arc::new(Timestamp::now));
    runtime.add_image("app:1");
    let name: NodeName = "edge-1".parse().unwrap();
    let resolv_conf = folder.path().join("resolv.conf");
    std::fs::write(&resolv_conf, "nameserver 192.0.2.53\n").unwrap();
    let mut node = NodeSettings::new(name);
    // How full this machine is is not what is tested.
    node.thresholds.all.clear();
    let mut config = EdgedConfig {
        resolv_conf,
        root_dir: folder.path().join("kubelet"),
        log_dir: folder.path().join("log"),
        node_ip: Some("192.0.2.7".parse().unwrap()),
        // The runtime is one in memory.
        cgroups_per_qos: false,
        ..EdgedConfig::new(node)
    };
    change(&mut config);
    let prepared = Prepared::with_runtime(config, Arc::new(runtime.clone())).await.unwrap();
    let site = Arc::new(Site::default());
    lock(&site.objects).extend(pods.iter().map(object));
    if complete {
        let kinds = [resource::pods(), resource::config_maps(), resource::secrets(), resource::runtime_classes()];
        lock(&site.complete).extend(kinds);
    }
    let system = system(&site, &prepared);
    Bench { site, runtime, prepared, system, _folder: Arc::new(folder) }
}

fn pod(name: &str, uid: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": "ns", "name": name, "uid": uid},
        "spec": {"terminationGracePeriodSeconds": 1, "containers": [{"name": "a", "image": "app:1"}]},
    })
}

fn object(value: &Value) -> KubeObject {
    let text = |field: &str| value["metadata"][field].as_str().unwrap_or_default().to_owned();
    let type_ = match value["kind"].as_str().unwrap() {
        "Pod" => resource::pods(),
        "ConfigMap" => resource::config_maps(),
        "RuntimeClass" => resource::runtime_classes(),
        "Node" => resource::nodes(),
        other => panic!("{other}"),
    };
    KubeObject {
        r#type: Some(type_),
        key: Some(ObjectKey::new(text("namespace"), text("name"))),
        uid: text("uid"),
        resource_version: "1".into(),
        json: value.to_string().into(),
        projection_hash: 0,
    }
}

impl Bench {
    async fn tell(&self, value: &Value) {
        let object = object(value);
        lock(&self.site.objects).push(object.clone());
        let message = ObjectsChanged {
            r#type: object.r#type.clone(),
            key: object.key.clone(),
            uid: object.uid.clone(),
            object: Some(object),
        };
        self.system.topic().announce(message).await;
    }

    async fn gone(&self, name: &str, uid: &str) {
        let message = ObjectsChanged {
            r#type: Some(resource::pods()),
            key: Some(ObjectKey::new("ns", name)),
            uid: uid.into(),
            object: None,
        };
        self.system.topic().announce(message).await;
    }

    async fn until<T>(&self, what: &str, found: impl Fn(&Site) -> Option<T>) -> T {
        let look = async {
            loop {
                let news = self.site.news.notified();
                if let Some(found) = found(&self.site) {
                    return found;
                }
                news.await;
            }
        };
        let failed = || panic!("{what} not within {LIMIT:?}: {:#?}", lock(&self.site.reports));
        tokio::time::timeout(LIMIT, look).await.unwrap_or_else(|_| failed())
    }

    async fn phase(&self, uid: &str, phase: &str) -> Value {
        self.until(&format!("{phase} of {uid}"), |site| {
            let reports = lock(&site.reports);
            let found = reports.iter().find(|(_, of, status)| of == uid && status["phase"] == phase)?;
            Some(found.2.clone())
        })
        .await
    }

    async fn ended(&self, uid: &str) {
        self.until(&format!("the end of {uid}"), |site| {
            lock(&site.reports).iter().any(|(ended, of, _)| *ended && of == uid).then_some(())
        })
        .await;
    }

    /// Until the runtime has nothing of a pod; what Edged does without a report.
    async fn vanished(&self, uid: &str) {
        let look = async {
            let mut tick = tokio::time::interval(Duration::from_millis(10));
            while !self.runtime.pod(uid).sandboxes.is_empty() {
                tick.tick().await;
            }
        };
        tokio::time::timeout(LIMIT, look).await.unwrap();
    }

    async fn event(&self, reason: &str, fits: impl Fn(&Value) -> bool) -> Value {
        self.until(reason, |site| {
            lock(&site.events).iter().find(|event| event["reason"] == reason && fits(event)).cloned()
        })
        .await
    }

    fn made(&self, call: &str) -> usize {
        self.runtime.calls().iter().filter(|made| made.starts_with(call)).count()
    }

    async fn stop(&self) {
        let exits = self.system.stop(Duration::from_secs(10)).await;
        assert!(exits.iter().all(|(_, exit)| *exit == crate::system::Exit::Stopped), "{exits:?}");
        assert_eq!(self.runtime.violations(), Vec::<String>::new());
    }
}

/// P-OFFLINE-BOOT
#[actix_rt::test]
async fn pods_on_disk_run_without_the_cloud_and_nothing_ends_for_absence() {
    let bench = bench(&[pod("p", "u1")], false).await;
    // Somebody's pod from before, of which nothing is on disk.
    let left = cri_sandbox("old", "u0");
    bench.runtime.run_sandbox(&left, "").await.unwrap();
    let status = bench.phase("u1", "Running").await;
    assert_eq!(status["hostIP"], "192.0.2.7");
    assert!(status["containerStatuses"][0]["containerID"].as_str().unwrap().starts_with("fake://"));
    // The relist has seen the old pod by now: another pod's whole life needs one.
    bench.tell(&pod("q", "u2")).await;
    bench.phase("u2", "Running").await;
    assert!(bench.runtime.exit("u2", "a", 1));
    bench.until("a restart", |site| restarted(site, "u2")).await;
    assert!(bench.runtime.pod("u0").sandboxes[0].ready);

    let completed = KindCompleted { r#type: Some(resource::pods()) };
    bench.system.topic().announce(completed).await;
    bench.vanished("u0").await;
    assert!(bench.runtime.pod("u1").instances[0].state == InstanceState::Running);
    bench.stop().await;
    assert!(bench.runtime.pod("u1").instances[0].state == InstanceState::Running, "pods outlive edgecore");
}

fn restarted(site: &Site, uid: &str) -> Option<()> {
    let reports = lock(&site.reports);
    let found = reports.iter().any(|(_, of, status)| of == uid && status["containerStatuses"][0]["restartCount"] == 1);
    found.then_some(())
}

fn cri_sandbox(name: &str, uid: &str) -> kubeedge_proto::cri::PodSandboxConfig {
    kubeedge_proto::cri::PodSandboxConfig {
        metadata: Some(kubeedge_proto::cri::PodSandboxMetadata {
            name: name.into(),
            uid: uid.into(),
            namespace: "ns".into(),
            attempt: 0,
        }),
        ..Default::default()
    }
}

#[actix_rt::test]
async fn a_deleted_pod_ends_once_and_the_next_of_its_name_begins_after_it() {
    let bench = bench(&[], true).await;
    bench.tell(&pod("p", "u1")).await;
    bench.phase("u1", "Running").await;
    bench.runtime.make_stubborn("a");
    let mut deleted = pod("p", "u1");
    deleted["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
    deleted["metadata"]["deletionGracePeriodSeconds"] = 1.into();
    bench.tell(&deleted).await;
    bench.tell(&pod("p", "u2")).await;
    bench.phase("u2", "Running").await;
    let calls = bench.runtime.calls();
    let at = |call: &str| calls.iter().position(|made| made == call);
    assert!(at("run_sandbox u2") > calls.iter().position(|made| made.starts_with("remove_sandbox")));
    assert_eq!(bench.made("stop_container"), 1);
    bench.gone("p", "u1").await;
    bench.gone("p", "u2").await;
    bench.vanished("u2").await;
    bench.stop().await;
}

#[actix_rt::test]
async fn another_edgecore_adopts_and_takes_up_a_delete_made_meanwhile() {
    let first = bench(&[pod("p", "u1"), pod("q", "u2")], true).await;
    first.phase("u1", "Running").await;
    first.phase("u2", "Running").await;
    first.stop().await;
    let before = first.runtime.pod("u1");

    lock(&first.site.objects).retain(|object| object.uid != "u2");
    let mut deleted = pod("q", "u2");
    deleted["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
    lock(&first.site.objects).push(object(&deleted));
    lock(&first.site.reports).clear();
    let second = Bench {
        system: system(&first.site, &first.prepared),
        site: Arc::clone(&first.site),
        runtime: first.runtime.clone(),
        prepared: first.prepared.clone(),
        _folder: Arc::clone(&first._folder),
    };
    second.phase("u1", "Running").await;
    second.ended("u2").await;
    assert_eq!(second.runtime.pod("u1"), before);
    assert_eq!(second.made("run_sandbox"), 2);
    second.stop().await;
}

#[actix_rt::test]
async fn a_config_map_that_arrives_starts_the_pod_that_waited_for_it() {
    let bench = bench(&[], true).await;
    let mut waiting = pod("p", "u1");
    waiting["spec"]["containers"][0]["envFrom"] = json!([{"configMapRef": {"name": "late"}}]);
    bench.tell(&waiting).await;
    bench
        .until("CreateContainerConfigError", |site| {
            let reports = lock(&site.reports);
            let reason = |status: &Value| status["containerStatuses"][0]["state"]["waiting"]["reason"].clone();
            reports.iter().any(|(_, _, status)| reason(status) == "CreateContainerConfigError").then_some(())
        })
        .await;
    bench
        .tell(&json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"namespace": "ns", "name": "late", "uid": "c1"},
            "data": {"GREETING": "hello"},
        }))
        .await;
    bench.phase("u1", "Running").await;
    let id = &bench.runtime.pod("u1").instances[0].id;
    let envs = bench.runtime.config(id).unwrap().envs;
    assert!(envs.iter().any(|env| env.key == "GREETING" && env.value == "hello"));
    bench.stop().await;
}

#[actix_rt::test]
async fn a_pod_that_cannot_be_run_is_refused_by_name() {
    let bench = bench(&[], true).await;
    let mut bad = pod("p", "u1");
    bad["spec"]["containers"][0]["name"] = "../../etc".into();
    bench.tell(&bad).await;
    let status = bench.phase("u1", "Failed").await;
    assert_eq!(status["reason"], "InvalidPod");
    assert!(status["message"].as_str().unwrap().contains("../../etc"));
    assert!(bench.runtime.calls().is_empty());
    bench.stop().await;
}

#[actix_rt::test]
async fn the_node_registers_when_the_link_is_up_and_tells_its_progress() {
    let bench = bench(&[], true).await;
    let up = LinkStateChanged { connected: true, reason: String::new() };
    bench.system.topic().announce(up).await;
    let node = bench
        .until("RegisterNode", |site| {
            lock(&site.calls).iter().find_map(|call| match call {
                Body::RegisterNode(register) => Some(register.node_json.clone()),
                _ => None,
            })
        })
        .await;
    let node: Value = serde_json::from_slice(&node).unwrap();
    assert_eq!(node["metadata"]["name"], "edge-1");
    let progress = bench.system.port().ask(QueryProgress {}, LIMIT).await.unwrap();
    assert!(progress.age_ms < 5_000, "{progress:?}");
    bench.stop().await;
}

#[actix_rt::test]
async fn pods_inherit_the_configured_resolver_configuration() {
    let bench = bench(&[], true).await;
    let mut inheriting = pod("p", "u1");
    inheriting["spec"]["dnsPolicy"] = "Default".into();
    bench.tell(&inheriting).await;
    bench.phase("u1", "Running").await;
    let dns = bench.runtime.sandbox_configs()[0].dns_config.clone().unwrap();
    assert_eq!(dns.servers, ["192.0.2.53"]);
    bench.stop().await;
}

#[actix_rt::test]
async fn events_reach_the_hub_and_those_of_an_outage_are_dropped_but_counted() {
    let bench = bench(&[], true).await;
    bench.site.offline.store(true, Ordering::Release);
    bench.tell(&pod("p", "u1")).await;
    let dropped = |site: &Site| lock(&site.refused).iter().find(|event| event["reason"] == "Started").cloned();
    let first = bench.until("Started, refused", dropped).await;
    bench.site.offline.store(false, Ordering::Release);
    assert!(bench.runtime.exit("u1", "a", 1));
    let told = |site: &Site| lock(&site.events).iter().find(|event| event["reason"] == "Started").cloned();
    let second = bench.until("Started again", told).await;
    assert_eq!(second["source"], json!({"component": "kubelet", "host": "edge-1"}));
    assert_eq!((&first["count"], &second["count"]), (&json!(1), &json!(2)));
    assert_eq!(second["metadata"]["name"], first["metadata"]["name"]);
    assert_eq!(second["firstTimestamp"], first["firstTimestamp"]);
    let events = lock(&bench.site.events).clone();
    let of_pods = events.iter().filter(|event| event["involvedObject"]["kind"] == "Pod");
    let order: Vec<&Value> = of_pods.map(|event| &event["reason"]).collect();
    assert_eq!(order, ["Pulled", "Created", "Started"]);
    bench.stop().await;
}

#[actix_rt::test]
async fn pods_run_on_a_node_that_talks_to_no_cloud() {
    let mut bench = bench(&[], true).await;
    bench.stop().await;
    let (meta, prepared) = (Arc::clone(&bench.site), bench.prepared.clone());
    // As with `modules.edgeHub.enable: false`.
    bench.system = System::builder("edge")
        .component(move |ports| Edged::new(prepared.clone(), ports))
        .component(move |_| Meta(Arc::clone(&meta)))
        .announces::<ObjectsChanged>()
        .announces::<KindCompleted>()
        .announces::<LinkStateChanged>()
        .asks::<ShutDownPods>()
        .asks::<ReleasePods>()
        .start()
        .unwrap();
    bench.tell(&pod("p", "u1")).await;
    bench.phase("u1", "Running").await;
    bench.stop().await;
}

#[actix_rt::test]
async fn events_can_be_switched_off() {
    let mut bench = bench(&[], true).await;
    bench.stop().await;
    bench.prepared.report_events = false;
    bench.system = system(&bench.site, &bench.prepared);
    bench.tell(&pod("p", "u1")).await;
    bench.phase("u1", "Running").await;
    bench.stop().await;
    assert_eq!(*lock(&bench.site.events), Vec::<Value>::new());
}

#[actix_rt::test]
async fn a_relative_directory_is_refused() {
    let name: NodeName = "edge-1".parse().unwrap();
    let config = EdgedConfig { root_dir: Path::new("kubelet").into(), ..EdgedConfig::new(NodeSettings::new(name)) };
    assert!(matches!(Prepared::new(config.clone()).await, Err(PrepareError::NotAbsolute { .. })));
    let config = EdgedConfig { root_dir: "/nowhere".into(), resolv_conf: "resolv.conf".into(), ..config };
    let refused = Prepared::new(config).await.map(drop);
    assert!(matches!(refused, Err(PrepareError::NotAbsolute { what: "resolvConf", .. })), "{refused:?}");
}
