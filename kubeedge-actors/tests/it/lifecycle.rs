//! Nodes that fall silent or vanish, and their pods, by a clock that the test moves: a step for each look, so that
//! the controllers come to see every moment they decide by.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use kubeedge_actors::apiserver::{Config, Handle, Server};
use serde_json::{Value, json};

use crate::golden::client::{Answer, Client};

const NODES: &str = "/api/v1/nodes";
const PODS: &str = "/api/v1/namespaces/default/pods";
const LEASES: &str = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";
/// Longest time for what a controller brings about.
const PATIENCE: Duration = Duration::from_secs(20);

/// Seconds since 1970, of the one test that moves it.
static NOW: AtomicI64 = AtomicI64::new(1_800_000_000);

struct Cluster {
    server: Handle,
    client: Client,
}

impl Cluster {
    async fn start() -> Self {
        let config = Config { clock: || NOW.load(Ordering::SeqCst), ..Config::in_memory() };
        let server = Server::start(config).await.unwrap();
        let client = Client::new(server.address(), "admin");
        Self { server, client }
    }

    async fn send(&self, method: &str, path: &str, body: Option<Value>) -> Answer {
        let media = if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
        let body = body.map(|body| body.to_string());
        self.client.send(method, path, &[("Content-Type", media)], body).await
    }

    async fn ok(&self, method: &str, path: &str, body: Value) {
        let answer = self.send(method, path, Some(body)).await;
        assert!(answer.status < 300, "{method} {path}: {}", answer.text);
    }

    async fn ready(&self, node: &str) {
        self.ok("POST", NODES, json!({"metadata": {"name": node}})).await;
        let status = json!({"status": {"conditions": [{"type": "Ready", "status": "True"}]}});
        self.ok("PATCH", &format!("{NODES}/{node}/status"), status).await;
        self.ok("POST", LEASES, json!({"metadata": {"name": node}})).await;
    }

    async fn pod(&self, name: &str, node: &str, more: Value) {
        let mut spec = json!({"nodeName": node, "containers": [{"name": "c", "image": "i"}]});
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        self.ok("POST", PODS, json!({"metadata": {"name": name}, "spec": spec})).await;
    }

    /// Moves the clock by steps that are shorter than a node may be silent; those of `renewing` go on renewing their
    /// leases. Something of no importance changes, so that the controllers look.
    async fn pass(&self, mut seconds: i64, renewing: &[&str]) {
        while seconds > 0 {
            let step = seconds.min(20);
            seconds -= step;
            let now = NOW.fetch_add(step, Ordering::SeqCst) + step;
            for node in renewing {
                let holder = format!("{node} at {now}");
                self.ok("PATCH", &format!("{LEASES}/{node}"), json!({"spec": {"holderIdentity": holder}})).await;
            }
            let tick = json!({"metadata": {"annotations": {"at": now.to_string()}}});
            self.ok("PATCH", &format!("{NODES}/tick"), tick).await;
        }
    }

    async fn get(&self, path: &str) -> Option<Value> {
        let answer = self.send("GET", path, None).await;
        (answer.status == 200).then(|| serde_json::from_str(&answer.text).unwrap())
    }

    async fn until(&self, path: &str, what: &str, wanted: impl Fn(Option<&Value>) -> bool) {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let object = self.get(path).await;
            if wanted(object.as_ref()) {
                return;
            }
            assert!(tokio::time::Instant::now() < deadline, "{what}: {path} stays {object:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

fn ready(node: Option<&Value>) -> Option<&Value> {
    node?["status"]["conditions"].as_array()?.iter().find(|one| one["type"] == "Ready")
}

fn taints(node: Option<&Value>) -> Vec<String> {
    let list = node.and_then(|node| node["spec"]["taints"].as_array());
    let text = |taint: &Value, name: &str| taint[name].as_str().unwrap_or_default().to_owned();
    list.into_iter().flatten().map(|taint| format!("{}:{}", text(taint, "key"), text(taint, "effect"))).collect()
}

fn ending(pod: Option<&Value>) -> bool {
    pod.is_some_and(|pod| pod["metadata"].get("deletionTimestamp").is_some())
}

/// One story, since it moves the one clock.
#[tokio::test]
async fn a_silent_node_is_unknown_after_50_s_and_its_pods_leave_when_they_no_longer_tolerate_it() {
    let cluster = Cluster::start().await;
    cluster.ready("edge").await;
    cluster.ready("other").await;
    cluster.ok("POST", NODES, json!({"metadata": {"name": "tick"}})).await;
    let edge = format!("{NODES}/edge");
    cluster.pod("usual", "edge", json!({})).await;
    let forever = json!([{"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute"}]);
    cluster.pod("stays", "edge", json!({"tolerations": forever})).await;
    cluster.pod("elsewhere", "other", json!({})).await;
    // One is labelled from the start, one later.
    let label = json!({"app-offline.kubeedge.io": "autonomy"});
    let born = json!({"nodeName": "edge", "containers": [{"name": "c", "image": "i"}]});
    cluster.ok("POST", PODS, json!({"metadata": {"name": "born", "labels": label}, "spec": born})).await;
    cluster.pod("turned", "edge", json!({})).await;
    let turned = format!("{PODS}/turned");
    cluster.ok("PATCH", &turned, json!({"metadata": {"labels": label}})).await;
    let autonomous = [format!("{PODS}/born"), turned];
    let usual = format!("{PODS}/usual");
    let tolerations = cluster.get(&usual).await.unwrap()["spec"]["tolerations"].clone();
    assert_eq!(tolerations[1]["tolerationSeconds"], 300, "admission gave it: {tolerations}");
    // One goes on renewing its lease and the other does not.
    let unknown = |node: Option<&Value>| ready(node).is_some_and(|one| one["status"] == "Unknown");
    let spoke = NOW.load(Ordering::SeqCst);
    while !unknown(cluster.get(&edge).await.as_ref()) {
        cluster.pass(1, &["other"]).await;
        assert!(NOW.load(Ordering::SeqCst) < spoke + 400, "it is never unknown");
    }
    assert!(NOW.load(Ordering::SeqCst) > spoke + 50, "too early");
    let node = cluster.get(&edge).await;
    assert_eq!(ready(node.as_ref()).unwrap()["reason"], "NodeStatusUnknown");
    let unreachable = "node.kubernetes.io/unreachable";
    assert_eq!(taints(node.as_ref()), [format!("{unreachable}:NoSchedule"), format!("{unreachable}:NoExecute")]);
    let other = cluster.get(&format!("{NODES}/other")).await;
    assert_eq!(ready(other.as_ref()).unwrap()["status"], "True", "its lease was renewed");

    // 300 s are tolerated.
    let tainted = NOW.load(Ordering::SeqCst);
    let left = tainted + 280 - NOW.load(Ordering::SeqCst);
    cluster.pass(left, &["other"]).await;
    assert!(!ending(cluster.get(&usual).await.as_ref()), "too early");
    cluster.pass(30, &["other"]).await;
    cluster.until(&usual, "evicted", ending).await;
    let pod = cluster.get(&usual).await.unwrap();
    let conditions = pod["status"]["conditions"].as_array().unwrap();
    assert!(conditions.iter().any(|one| one["reason"] == "DeletionByTaintManager"), "{pod}");
    assert!(!ending(cluster.get(&format!("{PODS}/stays")).await.as_ref()), "it tolerates it for ever");
    for pod in &autonomous {
        let pod = cluster.get(pod).await;
        assert!(pod.is_some() && !ending(pod.as_ref()), "autonomous pods stay: {pod:?}");
    }

    // It speaks again: the taints go.
    let status = json!({"status": {"conditions": [{"type": "Ready", "status": "True"}]}});
    cluster.ok("PATCH", &format!("{edge}/status"), status).await;
    cluster.until(&edge, "clean", |node| taints(node).is_empty()).await;

    // Everybody falls silent: it is this server that is cut off, and nobody is driven out.
    let all = [&edge, &format!("{NODES}/other")];
    let nobody_answers = async || {
        for node in all {
            if !unknown(cluster.get(node).await.as_ref()) {
                return false;
            }
        }
        true
    };
    while !nobody_answers().await {
        cluster.pass(1, &[]).await;
    }
    for node in all {
        let only = format!("{unreachable}:NoSchedule");
        cluster.until(node, "not driving out", |node| taints(node) == [only.as_str()]).await;
    }

    // A node that is deleted: after 40 s its pods go at once, ending ones too.
    assert_eq!(cluster.send("DELETE", &edge, None).await.status, 200);
    let deleted = NOW.load(Ordering::SeqCst);
    let stays = format!("{PODS}/stays");
    while cluster.get(&stays).await.is_some() {
        cluster.pass(1, &[]).await;
        assert!(NOW.load(Ordering::SeqCst) < deleted + 400, "it is never collected");
    }
    assert!(NOW.load(Ordering::SeqCst) >= deleted + 40, "too early");
    cluster.until(&usual, "collected", |pod| pod.is_none()).await;
    assert!(cluster.get(&format!("{PODS}/elsewhere")).await.is_some());
    cluster.server.stop().await;
}
