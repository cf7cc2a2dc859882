//! Edged's pod workers on a real container runtime: a private containerd, images of the in-memory registry.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::{
    net::{Ipv4Addr, SocketAddr},
    panic::AssertUnwindSafe,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::Result;
use futures_util::{FutureExt, future::BoxFuture};
use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{ConfigMap, Pod},
    apimachinery::pkg::apis::meta::v1::Time,
};
use kubeedge_actors::edged::{
    cri::CriRuntime,
    events::EventRecord,
    lifecycle::PodPlan,
    objects::MemoryObjects,
    provision::{NodeProvision, NodeSetup},
    relist::Relist,
    runtime::Runtime,
    status::NodeFacts,
    worker::{self, Bell, Order, Report as PodReport, Reporter, Shared},
};
use kubeedge_examples::{
    containerd::{PrivateContainerd, Tools},
    http,
    image::{BusyboxImages, Image},
    registry::{Catalogue, Gate, Registry, Stock},
};
use serde_json::{Value, json};
use tokio::{
    sync::{Notify, Semaphore, watch},
    task::JoinHandle,
};

use crate::{
    report::{Outcome, Report},
    shims::end_lost_shims,
};

mod bombs;
mod events;
mod hooks;
mod killed_runtime;
mod paths;
mod probes;
mod pulls;
mod rights;
mod servers;

const STORIES: &str = "edged::pods_run_survive_edgecore_and_leave_nothing_behind";
const KILLED: &str = "edged::pods_that_are_on_their_way_survive_a_runtime_that_is_killed_and_end_when_asked_to";
const ALL: [&str; 2] = [STORIES, KILLED];

const LIMIT: Duration = Duration::from_secs(60);
/// For four pods one after the other, each with several waits within [`LIMIT`]: a wait that takes too long says so.
const STORY_LIMIT: Duration = Duration::from_secs(600);

pub(crate) async fn stage(report: &mut Report, tools: &Result<Tools>) {
    if !report.begins(&ALL) {
        return;
    }
    let Some(tools) = report.tools(tools, &ALL) else { return };
    let stories = on_a_node(tools.clone(), async |node, _| {
        let one_after_the_other = async {
            node.runs_adopts_restarts_and_ends().await;
            node.says_what_is_wrong().await;
            node.ended_pods_stay_ended().await;
            node.host_ports_and_limits().await;
        };
        tokio::join!(
            one_after_the_other,
            node.probes_decide_who_is_ready_and_who_is_restarted(),
            node.sidecars_and_hooks_keep_their_order(),
            node.a_failed_hook_and_a_deadline_are_said(),
            node.hooks_ask_for_pages_and_wait(),
            node.a_fork_bomb_stays_within_its_pod(),
            node.events_are_heard_or_known_not_to_come(),
            node.https_and_grpc_probes_ask_servers(),
            node.rights_and_namespaces_are_as_asked_for(),
            node.host_paths_of_every_type_and_parts_of_volumes_are_mounted(),
            node.images_are_mounted_or_refused(),
            node.private_images_take_a_secret(),
            node.pulls_have_a_bound(),
            node.an_image_that_is_missing_is_asked_for_again(),
            node.always_asks_the_registry_before_each_start(),
        );
    });
    report.run_within(STORIES, STORY_LIMIT, stories).await;
    let killed = on_a_node(tools, async |node, containerd| node.outlives_its_runtime(containerd).await);
    report.run_within(KILLED, STORY_LIMIT, killed).await;
}

/// Tells a story on a containerd of its own, of which nothing is to be left.
async fn on_a_node(tools: Tools, story: impl AsyncFnOnce(&Node, &mut PrivateContainerd)) -> Result<Outcome> {
    let folder = tempfile::tempdir().unwrap();
    let images = BusyboxImages::build().unwrap();
    let gate = Gate::before(pulls::SLOW);
    let stock = Stock::without(&pulls::LATE);
    let mut catalogue = Catalogue::default().gated(&gate).stocked(&stock);
    catalogue = catalogue.with("test/pause", "1", &images.pause).unwrap();
    catalogue = catalogue.with("test/busybox", "1", &images.busybox).unwrap();
    for repository in pulls::REPOSITORIES {
        // Each is an image of its own: of one with many names a runtime tells any.
        let made_for = format!("MADE_FOR={repository}");
        let image = Image::new(&images.busybox.blobs[1], &["/bin/sh"], &["PATH=/bin", &made_for]).unwrap();
        catalogue = catalogue.with(repository, "1", &image).unwrap();
    }
    for repository in pulls::PRIVATE {
        catalogue = catalogue.private(repository, &pulls::authorization());
    }
    let registry = Registry::start(catalogue, 0).unwrap();
    let pause = registry.image("test/pause", "1");
    let mut containerd = PrivateContainerd::start(tools, &folder.path().join("c"), &pause).await.unwrap();

    let node = Node::new(&containerd, &registry, folder.path(), gate, stock);
    let story = AssertUnwindSafe(story(&node, &mut containerd)).catch_unwind().await;
    drop(node);
    let shims = end_lost_shims(&folder.path().join("c")).await;

    let left = containerd.stop().await.unwrap();
    registry.stop().await.unwrap();
    if let Err(panic) = story {
        std::panic::resume_unwind(panic);
    }
    shims.unwrap();
    assert_eq!(left, []);
    Ok(Outcome::Proved)
}

#[derive(Default)]
struct Reports {
    last: Mutex<Option<(bool, Value)>>,
    /// As `field path reason: message`.
    told: Mutex<Vec<String>>,
    news: Notify,
}

impl Reporter for Reports {
    fn report<'a>(&'a self, _: &'a PodPlan, report: PodReport) -> BoxFuture<'a, Result<(), String>> {
        let (ended, status) = match report {
            PodReport::Status(status) => (false, status),
            PodReport::Terminated(status) => (true, status),
        };
        *self.last.lock().unwrap() = Some((ended, serde_json::to_value(status).unwrap()));
        self.news.notify_one();
        Box::pin(async { Ok(()) })
    }

    fn event(&self, event: EventRecord) {
        let told = format!("{} {}: {}", event.involved.field_path, event.reason.as_str(), event.message);
        self.told.lock().unwrap().push(told);
        self.news.notify_one();
    }
}

struct Node {
    runtime: Arc<CriRuntime>,
    provision: Arc<NodeProvision>,
    objects: Arc<MemoryObjects>,
    registry: SocketAddr,
    image: String,
    root: PathBuf,
    logs: PathBuf,
    /// What a handler has of its containers.
    second_handler: (&'static str, PathBuf),
    gate: Arc<Gate>,
    stock: Arc<Stock>,
}

/// A pod and its worker.
struct Looked {
    orders: watch::Sender<Order>,
    reports: Arc<Reports>,
    tasks: Vec<JoinHandle<()>>,
}

impl Drop for Looked {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

impl Node {
    fn new(
        containerd: &PrivateContainerd,
        registry: &Registry,
        folder: &Path,
        gate: Arc<Gate>,
        stock: Arc<Stock>,
    ) -> Self {
        let objects = Arc::new(MemoryObjects::default());
        let (root, logs, resolv_conf) = (folder.join("kubelet"), folder.join("log"), folder.join("resolv.conf"));
        std::fs::write(&resolv_conf, "nameserver 192.0.2.53\nsearch site.test\noptions ndots:2\n").unwrap();
        let runtime = Arc::new(CriRuntime::new(&containerd.endpoint()).unwrap());
        let second = containerd.second_handler();
        let setup = NodeSetup {
            node_name: "edge-1".into(),
            host_ips: vec!["192.0.2.1".parse().unwrap()],
            root_dir: root.clone(),
            log_dir: logs.clone(),
            pod_pids: Some(bombs::PIDS),
            cluster_dns: vec!["10.96.0.10".parse().unwrap()],
            cluster_domain: "cluster.test".into(),
            resolv_conf,
            ..NodeSetup::default()
        };
        let provision = NodeProvision::new(setup, Arc::<MemoryObjects>::clone(&objects));
        Self {
            provision: Arc::new(provision.with_runtime(Arc::<CriRuntime>::clone(&runtime))),
            runtime,
            objects,
            registry: registry.address(),
            image: registry.image("test/busybox", "1"),
            root,
            logs,
            second_handler: (second, containerd.handler_state(second)),
            gate,
            stock,
        }
    }

    fn pod(&self, name: &str, containers: &[Value], change: impl FnOnce(&mut Value)) -> Arc<Pod> {
        let mut value = json!({
            "metadata": {"namespace": "default", "name": name, "uid": format!("uid-of-{name}"), "labels": {"app": name}},
            "spec": {"terminationGracePeriodSeconds": 1, "containers": containers},
        });
        for container in value["spec"]["containers"].as_array_mut().unwrap() {
            if container["image"].is_null() {
                container["image"] = self.image.clone().into();
            }
        }
        change(&mut value);
        Arc::new(serde_json::from_value(value).unwrap())
    }

    /// What workers share; so many of them pull at the same time.
    async fn shared(&self, reports: &Arc<Reports>, pulls: usize) -> Arc<Shared> {
        let version = self.runtime.version().await.unwrap();
        // The address of pods on the node's network: where this test listens.
        let node = NodeFacts { host_ips: vec![Ipv4Addr::LOCALHOST.to_string()], runtime_name: version.name };
        Arc::new(Shared {
            runtime: Arc::<CriRuntime>::clone(&self.runtime),
            provision: Arc::<NodeProvision>::clone(&self.provision),
            reporter: Arc::<Reports>::clone(reports),
            clock: Arc::new(Timestamp::now),
            node: watch::channel(node).1,
            pulls: Semaphore::new(pulls),
        })
    }

    /// Starts a worker as a new edgecore would.
    async fn look_after(&self, pod: &Arc<Pod>) -> Looked {
        let reports = Arc::new(Reports::default());
        let shared = self.shared(&reports, 1).await;
        let bell = Arc::new(Bell::default());
        let (orders, received) = watch::channel(order(pod));
        let worker = tokio::spawn(worker::run(shared, received, Arc::clone(&bell)));
        let runtime = Arc::clone(&self.runtime);
        let relist = tokio::spawn(async move {
            let mut relist = Relist::default();
            let mut tick = tokio::time::interval(Duration::from_millis(200));
            loop {
                tick.tick().await;
                if let Ok(list) = runtime.list_pods().await
                    && !relist.take(list).is_empty()
                {
                    bell.look();
                }
            }
        });
        Looked { orders, reports, tasks: vec![worker, relist] }
    }

    async fn runs_adopts_restarts_and_ends(&self) {
        self.objects.put_config_map(config_map("hello", "it works"));
        let serve = "cat /config/text > /shared/index.html; echo $GREETING $1 >> /shared/index.html; echo serving; \
                     exec httpd -f -p 8080 -h /shared";
        let containers = [
            json!({
                "name": "web", "command": ["/bin/sh", "-c", serve, "web"], "args": ["to $(WHOM)"],
                "env": [
                    {"name": "WHOM", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
                    {"name": "GREETING", "valueFrom": {"configMapKeyRef": {"name": "hello", "key": "text"}}},
                ],
                "ports": [{"containerPort": 8080}],
                "volumeMounts": [{"name": "config", "mountPath": "/config"}, {"name": "shared", "mountPath": "/shared"}],
            }),
            json!({"name": "side", "command": ["/bin/sh", "-c", "echo side; exec sleep 1000"]}),
        ];
        let pod = self.pod("story", &containers, |pod| {
            pod["spec"]["volumes"] = json!([
                {"name": "config", "configMap": {"name": "hello"}}, {"name": "shared", "emptyDir": {}}]);
        });
        let looked = self.look_after(&pod).await;
        let status = looked.until(|status| ready(status) == 2).await;
        assert_eq!(status["phase"], "Running");
        let ip = status["podIP"].as_str().unwrap().to_owned();
        assert_eq!(page(&ip).await, "it worksit works to story\n");
        let web = &container(&status, "web");
        let id = web["containerID"].as_str().unwrap().strip_prefix("containerd://").unwrap().to_owned();
        let log = self.logs.join("pods/default_story_uid-of-story/web/0.log");
        assert!(std::fs::read_to_string(&log).unwrap().contains("stdout F serving"));
        let link = self.logs.join(format!("containers/story_default_web-{id}.log"));
        assert_eq!(std::fs::read_link(link).unwrap(), log);

        // Edgecore is killed, and another one comes.
        drop(looked);
        let looked = self.look_after(&pod).await;
        let adopted = looked.until(|status| ready(status) == 2).await;
        assert_eq!(adopted["containerStatuses"], status["containerStatuses"]);
        assert_eq!(adopted["startTime"], status["startTime"]);
        assert_eq!(self.runtime.observe("uid-of-story").await.unwrap().sandboxes.len(), 1);

        // One container ends while there is no edgecore.
        drop(looked);
        self.runtime.stop_container(&id, Duration::ZERO).await.unwrap();
        let looked = self.look_after(&pod).await;
        let again = looked.until(|status| container(status, "web")["restartCount"] == 1 && ready(status) == 2).await;
        assert_eq!(container(&again, "web")["lastState"]["terminated"]["exitCode"], 137);
        assert_eq!(container(&again, "side")["restartCount"], 0);
        assert_eq!(container(&again, "side")["containerID"], container(&status, "side")["containerID"]);
        assert_eq!(page(&ip).await, "it worksit works to story\n");

        // The sandbox dies: another one, with both containers.
        let sandbox = self.runtime.observe("uid-of-story").await.unwrap().sandboxes.remove(0);
        self.runtime.stop_sandbox(&sandbox.id).await.unwrap();
        // Its containers end one after the other, so one may have been tried in the dying sandbox.
        let restarts = |status: &Value| container(status, "side")["restartCount"].as_u64();
        let again = looked.until(|status| ready(status) == 2 && restarts(status) >= Some(1)).await;
        assert_eq!(page(again["podIP"].as_str().unwrap()).await, "it worksit works to story\n");
        looked.hears(|told| told == " SandboxChanged: Pod sandbox changed, it will be killed and re-created.").await;

        looked.delete(&pod, 1).await;
        self.nothing_is_left(&pod).await;
    }

    async fn says_what_is_wrong(&self) {
        let containers = [
            json!({"name": "no-image", "image": format!("{}-none", self.image)}),
            json!({"name": "no-name", "image": "NOT/an image"}),
            json!({"name": "no-command", "command": ["/bin/none"]}),
            json!({"name": "no-config", "env": [
                {"name": "A", "valueFrom": {"configMapKeyRef": {"name": "late", "key": "text"}}}], "command": ["/bin/sleep", "1000"]}),
            json!({"name": "crashes", "command": ["/bin/sh", "-c", "echo sorry > /dev/termination-log; exit 7"]}),
        ];
        let pod = self.pod("wrong", &containers, |_| {});
        let looked = self.look_after(&pod).await;
        let reason =
            |status: &Value, name: &str, wanted: &str| container(status, name)["state"]["waiting"]["reason"] == wanted;
        let status = looked
            .until(|status| {
                reason(status, "no-image", "ErrImagePull")
                    && reason(status, "no-name", "InvalidImageName")
                    && reason(status, "no-command", "RunContainerError")
                    && reason(status, "no-config", "CreateContainerConfigError")
                    && reason(status, "crashes", "CrashLoopBackOff")
            })
            .await;
        looked
            .hears(|told| {
                let back_off =
                    "BackOff: Back-off restarting failed container crashes in pod wrong_default(uid-of-wrong)";
                told == format!("spec.containers{{crashes}} {back_off}")
            })
            .await;
        looked
            .hears(|told| told.starts_with("spec.containers{no-command} Failed: Error: ") && told.contains("/bin/none"))
            .await;
        let last = &container(&status, "crashes")["lastState"]["terminated"];
        assert_eq!((&last["exitCode"], &last["message"]), (&json!(7), &json!("sorry\n")));
        assert_eq!(status["phase"], "Pending");
        self.objects.put_config_map(config_map("late", "there"));
        looked.until(|status| container(status, "no-config")["state"]["running"].is_object()).await;
        looked.delete(&pod, 1).await;
        self.nothing_is_left(&pod).await;
    }

    async fn ended_pods_stay_ended(&self) {
        let containers = [json!({"name": "job", "command": ["/bin/sh", "-c", "echo done; exit 3"]})];
        let pod = self.pod("job", &containers, |pod| pod["spec"]["restartPolicy"] = "Never".into());
        let looked = self.look_after(&pod).await;
        let status = looked.until(|status| status["phase"] == "Failed").await;
        assert_eq!(container(&status, "job")["state"]["terminated"]["exitCode"], 3);
        drop(looked);
        let looked = self.look_after(&pod).await;
        let again = looked.until(|status| status["phase"] == "Failed").await;
        assert_eq!(container(&again, "job"), container(&status, "job"));
        looked.delete(&pod, 1).await;
        self.nothing_is_left(&pod).await;
    }

    async fn host_ports_and_limits(&self) {
        // A port that was free a moment ago.
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let serve = "echo host > /tmp/index.html; exec httpd -f -p 8080 -h /tmp";
        let containers = [json!({
            "name": "web", "command": ["/bin/sh", "-c", serve],
            "ports": [{"containerPort": 8080, "hostPort": port}],
            "resources": {"limits": {"memory": "32Mi", "cpu": "500m"}},
            "securityContext": {"runAsUser": 65534, "allowPrivilegeEscalation": false,
                "capabilities": {"drop": ["ALL"]}, "readOnlyRootFilesystem": false},
        })];
        let pod = self.pod("ports", &containers, |_| {});
        let looked = self.look_after(&pod).await;
        let status = looked.until(|status| ready(status) == 1).await;
        assert_eq!(page(status["podIP"].as_str().unwrap()).await, "host\n");
        assert_eq!(page_at(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port)).await, "host\n");
        let observed = self.runtime.observe("uid-of-ports").await.unwrap();
        assert_eq!(observed.instances.len(), 1);
        looked.delete(&pod, 1).await;
        self.nothing_is_left(&pod).await;
    }

    async fn nothing_is_left(&self, pod: &Pod) {
        let uid = pod.metadata.uid.as_deref().unwrap();
        let observed = self.runtime.observe(uid).await.unwrap();
        assert!(observed.sandboxes.is_empty() && observed.instances.is_empty(), "{observed:?}");
        assert!(!self.root.join("pods").join(uid).exists());
        let name = format!("{}_", pod.metadata.name.as_deref().unwrap());
        for folder in ["pods", "containers"] {
            // Until a container was started there is none.
            let Ok(entries) = std::fs::read_dir(self.logs.join(folder)) else { continue };
            let entries = entries.map(|entry| entry.unwrap().file_name());
            let left: Vec<String> = entries.map(|entry| entry.into_string().unwrap()).collect();
            let left: Vec<&String> = left.iter().filter(|n| n.contains(uid) || n.starts_with(&name)).collect();
            assert!(left.is_empty(), "{left:?}");
        }
    }
}

impl Looked {
    async fn until(&self, fits: impl Fn(&Value) -> bool) -> Value {
        let found = tokio::time::timeout(LIMIT, async {
            loop {
                if let Some((_, status)) = self.reports.last.lock().unwrap().clone()
                    && fits(&status)
                {
                    return status;
                }
                self.reports.news.notified().await;
            }
        });
        found.await.unwrap_or_else(|_| panic!("not within {LIMIT:?}: {:#?}", self.reports.last.lock().unwrap()))
    }

    /// Waits for an event that reads so.
    async fn hears(&self, fits: impl Fn(&str) -> bool) {
        self.hears_so_many(1, fits).await;
    }

    async fn hears_so_many(&self, count: usize, fits: impl Fn(&str) -> bool) {
        let found = tokio::time::timeout(LIMIT, async {
            while self.reports.told.lock().unwrap().iter().filter(|told| fits(told)).count() < count {
                self.reports.news.notified().await;
            }
        });
        found.await.unwrap_or_else(|_| panic!("not told: {:#?}", self.reports.told.lock().unwrap()));
    }

    async fn delete(mut self, pod: &Pod, grace: i64) {
        let mut pod = pod.clone();
        pod.metadata.deletion_timestamp = Some(Time(Timestamp::now()));
        pod.metadata.deletion_grace_period_seconds = Some(grace);
        self.orders.send_replace(order(&Arc::new(pod)));
        let worker = self.tasks.remove(0);
        tokio::time::timeout(LIMIT, worker).await.unwrap().unwrap();
        assert!(self.reports.last.lock().unwrap().as_ref().unwrap().0, "the end is reported");
    }
}

fn order(pod: &Arc<Pod>) -> Order {
    Order::of(Arc::clone(pod), Arc::new(PodPlan::of(pod).unwrap()))
}

fn config_map(name: &str, text: &str) -> ConfigMap {
    serde_json::from_value(json!({"metadata": {"namespace": "default", "name": name}, "data": {"text": text}})).unwrap()
}

fn container(status: &Value, name: &str) -> Value {
    let statuses = status["containerStatuses"].as_array().unwrap();
    statuses.iter().find(|status| status["name"] == name).unwrap().clone()
}

fn ready(status: &Value) -> usize {
    status["containerStatuses"].as_array().unwrap().iter().filter(|status| status["ready"] == true).count()
}

/// The program in the container opens its port some milliseconds after its start.
async fn page(ip: &str) -> String {
    page_at(format!("{ip}:8080").parse().unwrap()).await
}

async fn page_at(address: SocketAddr) -> String {
    let mut tick = tokio::time::interval(Duration::from_millis(20));
    for _ in 0..500 {
        tick.tick().await;
        if let Ok(answer) = http::get(address, "/index.html").await {
            return String::from_utf8(answer.body).unwrap();
        }
    }
    panic!("no page from {address} within 10 s")
}
