//! MetaServer over MetaManager, by HTTP, with kube-rs and with kubectl: nothing else runs, so the cloud is never there.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::Path,
    pin::pin,
    time::Duration,
};

use futures_util::TryStreamExt as _;
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::{
    Api, Client as KubeClient, ResourceExt as _,
    api::{ListParams, WatchEvent, WatchParams},
    runtime::watcher,
};
use kubeedge_actors::{
    metamanager::{MetaManager, Tables},
    metaserver::{MetaServer, MetaServerConfig, Versions},
    store::{Options, Store},
    system::{Port, Ports, System, SystemBuilder},
};
use kubeedge_proto::{digest::projection_hash, resource, v1::*};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::golden::client::{Answer, Client};

#[cfg(all(feature = "dynamiccontroller", feature = "test-kit"))]
mod passed;
mod released;

const SOON: Duration = Duration::from_secs(30);
const PODS: &str = "/api/v1/namespaces/shop/pods";
const MAPS: &str = "/api/v1/namespaces/shop/configmaps";

/// MetaManager and MetaServer.
struct Edge {
    system: System,
    store: Store,
    address: SocketAddr,
}

fn free_address() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    listener.local_addr().unwrap()
}

impl Edge {
    async fn start(store: Store, address: SocketAddr) -> Self {
        Self::with(store, address, |builder| builder).await
    }

    /// With more in the system than these two.
    async fn with(store: Store, address: SocketAddr, more: impl FnOnce(SystemBuilder) -> SystemBuilder) -> Self {
        let tables = Tables::open(store.clone()).await.unwrap();
        let versions = Versions::of_life(tables.life());
        let config = MetaServerConfig { listen: address, node: "edge-1".parse().unwrap(), versions };
        let system = System::builder("edge")
            .component(move |ports: &Ports| MetaManager::new(tables.clone(), ports))
            .component(move |ports: &Ports| MetaServer::new(config.clone(), ports))
            .asks::<ApplyState>()
            .asks::<CompleteInventory>()
            .asks::<SessionStarted>()
            .asks::<ReportStatus>()
            .asks::<KeepNode>();
        let system = more(system).start().unwrap();
        let edge = Self { system, store, address };
        let ready = async {
            // The component listens once it has started.
            while tokio::net::TcpStream::connect(address).await.is_err() {
                tokio::task::yield_now().await;
            }
            while edge.get("/readyz").await.status != 200 {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(SOON, ready).await.expect("it gets ready");
        edge
    }

    async fn in_memory() -> Self {
        let edge = Self::start(Store::in_memory(), free_address()).await;
        edge.complete().await;
        edge
    }

    async fn stop(self) -> SocketAddr {
        self.system.stop(SOON).await;
        self.store.close().await.unwrap();
        self.address
    }

    /// The cloud says that it has said everything.
    async fn complete(&self) {
        let session: Port<SessionStarted> = self.system.port();
        session.ask(SessionStarted { epoch: 1, cluster_uid: "k".into() }, SOON).await.unwrap();
        let port: Port<CompleteInventory> = self.system.port();
        for type_ in [resource::pods(), resource::config_maps(), resource::secrets(), resource::devices()] {
            let complete = Some(InventoryComplete { r#type: Some(type_), as_of: 1, count: 0 });
            let message = CompleteInventory { complete, cluster_uid: "k".into() };
            assert_eq!(port.ask(message, SOON).await.unwrap(), Settled::applied());
        }
        self.heard().await;
    }

    /// Until MetaServer has heard everything that MetaManager has told. Both are on this thread.
    async fn heard(&self) {
        let waits = || self.system.observe().iter().any(|one| one.name == "metaserver" && one.queued > 0);
        while waits() {
            tokio::task::yield_now().await;
        }
    }

    async fn apply(&self, body: envelope::Body) {
        let port: Port<ApplyState> = self.system.port();
        let message = ApplyState { envelope: Some(Envelope::new("test", 0, body)) };
        assert_eq!(port.ask(message, SOON).await.unwrap(), Settled::applied());
        self.heard().await;
    }

    async fn put(&self, object: KubeObject) {
        self.apply(envelope::Body::ObjectUpsert(ObjectUpsert { object: Some(object), ..Default::default() })).await;
    }

    async fn remove(&self, object: KubeObject) {
        let KubeObject { r#type, key, uid, resource_version, .. } = object;
        let tombstone = ObjectTombstone { r#type, key, uid, resource_version };
        self.apply(envelope::Body::ObjectTombstone(tombstone)).await;
    }

    async fn report(&self, pod: &KubeObject, status: Value) {
        let update = StatusUpdate {
            r#type: pod.r#type.clone(),
            key: pod.key.clone(),
            uid: pod.uid.clone(),
            generation: 0,
            status_json: status.to_string().into(),
        };
        let port: Port<ReportStatus> = self.system.port();
        let message = ReportStatus { report: Some(report_status::Report::Update(update)) };
        assert_eq!(port.ask(message, SOON).await.unwrap(), Settled::applied());
        self.heard().await;
    }

    async fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: Option<Value>) -> Answer {
        Client::new(self.address, "").send(method, path, headers, body.map(|body| body.to_string())).await
    }

    async fn get(&self, path: &str) -> Answer {
        self.send("GET", path, &[], None).await
    }

    async fn read(&self, path: &str) -> Value {
        let answer = self.get(path).await;
        assert_eq!(answer.status, 200, "{path}: {}", answer.text);
        serde_json::from_str(&answer.text).unwrap()
    }

    /// The events of a watch that ends after a second.
    async fn watch(&self, path: &str, query: &str) -> Vec<(String, Value)> {
        let answer = self.get(&format!("{path}?watch=1&timeoutSeconds=1&{query}")).await;
        assert_eq!(answer.status, 200, "{}", answer.text);
        let events = answer.text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        events.map(|event| (event["type"].as_str().unwrap().to_owned(), event["object"].clone())).collect()
    }

    fn kube(&self) -> KubeClient {
        KubeClient::try_from(kube::Config::new(format!("http://{}", self.address).parse().unwrap())).unwrap()
    }
}

fn object(type_: ResourceType, name: &str, uid: &str, version: u64, mut rest: Value) -> KubeObject {
    rest["apiVersion"] = type_.api_version().into();
    rest["kind"] = type_.kind.clone().into();
    let labels = json!({"app": name});
    rest["metadata"] = json!({"name": name, "namespace": "shop", "uid": uid, "labels": labels,
        "creationTimestamp": "2026-01-01T00:00:00Z"});
    KubeObject {
        r#type: Some(type_),
        key: Some(ObjectKey::new("shop", name)),
        uid: uid.into(),
        resource_version: version.to_string(),
        projection_hash: projection_hash(&rest),
        json: rest.to_string().into(),
    }
}

fn map(name: &str, uid: &str, version: u64) -> KubeObject {
    object(resource::config_maps(), name, uid, version, json!({"data": {"version": version.to_string()}}))
}

fn pod(name: &str, version: u64) -> KubeObject {
    let spec = json!({"nodeName": "edge-1", "containers": [{"name": "main", "image": "shop:1"}]});
    object(resource::pods(), name, &format!("u-{name}"), version, json!({"spec": spec}))
}

fn running(ip: &str) -> Value {
    json!({"phase": "Running", "podIP": ip, "conditions": [{"type": "Ready", "status": "True"}],
        "containerStatuses": [{"name": "main", "ready": true, "restartCount": 2, "state": {"running": {}}}]})
}

fn version(object: &Value) -> String {
    object["metadata"]["resourceVersion"].as_str().unwrap().to_owned()
}

fn told(events: &[(String, Value)]) -> Vec<(&str, &str)> {
    let each = events.iter();
    each.map(|(what, object)| (what.as_str(), object["metadata"]["name"].as_str().unwrap_or_default())).collect()
}

#[actix_rt::test]
async fn a_watch_goes_on_where_it_broke_off_and_says_410_when_it_cannot() {
    let folder = tempfile::tempdir().unwrap();
    let open = |path: &Path| Store::open(path, Options::default()).unwrap().store;
    let edge = Edge::start(open(folder.path()), free_address()).await;
    edge.complete().await;
    edge.put(map("a", "1", 50)).await;
    let list = edge.read(MAPS).await;
    // They come in the order in which they come, whatever the cloud counted.
    edge.put(map("b", "2", 40)).await;
    edge.put(map("a", "1", 60)).await;
    edge.remove(map("b", "2", 61)).await;
    edge.put(map("a", "3", 65)).await;
    let all = edge.watch(MAPS, &format!("resourceVersion={}", version(&list))).await;
    let expected = [("ADDED", "b"), ("MODIFIED", "a"), ("DELETED", "b"), ("DELETED", "a"), ("ADDED", "a")];
    assert_eq!(told(&all), expected);
    for (seen, (_, last)) in all.iter().enumerate() {
        let rest = edge.watch(MAPS, &format!("resourceVersion={}", version(last))).await;
        assert_eq!(told(&rest), expected[seen + 1..], "what was seen is not told again");
    }
    assert_eq!(version(&edge.read(MAPS).await), version(&all[4].1), "a list is of the last change");

    let address = edge.stop().await;
    let edge = Edge::start(open(folder.path()), address).await;
    let list = edge.read(MAPS).await;
    assert_eq!(list["items"][0]["data"]["version"], "65", "from disk, and nobody said anything yet");
    for old in ["1", &version(&all[0].1), &version(&all[4].1)] {
        let events = edge.watch(MAPS, &format!("resourceVersion={old}")).await;
        assert_eq!(events[0].0, "ERROR", "{events:?}");
        assert_eq!((&events[0].1["code"], &events[0].1["reason"]), (&json!(410), &json!("Expired")));
    }
    edge.put(map("c", "4", 70)).await;
    assert_eq!(told(&edge.watch(MAPS, &format!("resourceVersion={}", version(&list))).await), [("ADDED", "c")]);
    let initial = "sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true";
    let events = edge.watch(MAPS, initial).await;
    assert_eq!(told(&events), [("ADDED", "a"), ("ADDED", "c"), ("BOOKMARK", "")]);
    assert_eq!(events[2].1["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
    edge.stop().await;
}

#[actix_rt::test]
async fn a_pods_status_is_served_as_the_node_reported_it_also_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let open = |path: &Path| Store::open(path, Options::default()).unwrap().store;
    let edge = Edge::start(open(folder.path()), free_address()).await;
    edge.complete().await;
    let web = pod("web", 5);
    edge.put(web.clone()).await;
    assert_eq!(edge.read(&format!("{PODS}/web")).await["status"], json!({"phase": "Pending"}));
    edge.report(&web, running("10.1.0.5")).await;
    let served = edge.read(&format!("{PODS}/web")).await;
    assert_eq!(served["status"], running("10.1.0.5"));
    assert_eq!((&served["kind"], &served["apiVersion"]), (&json!("Pod"), &json!("v1")));
    let address = edge.stop().await;

    let edge = Edge::start(open(folder.path()), address).await;
    let again = edge.read(&format!("{PODS}/web/status")).await;
    assert_eq!(again["status"], running("10.1.0.5"));
    let from = version(&edge.read(PODS).await);
    edge.report(&web, running("10.1.0.6")).await;
    let events = edge.watch(PODS, &format!("resourceVersion={from}&fieldSelector=status.podIP%3D10.1.0.6")).await;
    assert_eq!(told(&events), [("ADDED", "web")], "it came into the selection");
    edge.remove(pod("web", 9)).await;
    edge.put(KubeObject { uid: "another".into(), ..pod("web", 10) }).await;
    assert_eq!(edge.read(&format!("{PODS}/web")).await["status"]["phase"], "Pending");
    edge.stop().await;
}

#[actix_rt::test]
async fn requests_that_cannot_be_served_are_refused_in_kubernetes_words() {
    let edge = Edge::start(Store::in_memory(), free_address()).await;
    let unknown = edge.get(MAPS).await;
    assert_eq!((unknown.status, unknown.headers["retry-after"].as_str()), (503, "1"), "{}", unknown.text);
    edge.complete().await;
    assert_eq!(edge.read(MAPS).await["items"], json!([]));
    let missing: Value = serde_json::from_str(&edge.get(&format!("{MAPS}/x")).await.text).unwrap();
    let expected = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "code": 404,
        "message": "configmaps \"x\" not found", "reason": "NotFound", "details": {"name": "x", "kind": "configmaps"}});
    assert_eq!(missing, expected);
    let write = edge.send("POST", MAPS, &[("Content-Type", "application/json")], Some(json!({"a": 1}))).await;
    let status: Value = serde_json::from_str(&write.text).unwrap();
    assert_eq!((write.status, write.headers["retry-after"].as_str()), (503, "1"));
    assert_eq!(status["reason"], "ServiceUnavailable");
    assert!(status["message"].as_str().unwrap().contains("offline"), "{status}");
    for (headers, what) in
        [(&[("Origin", "http://127.0.0.1")][..], "a page"), (&[("Accept", "text/csv")][..], "a form that there is not")]
    {
        let refused = edge.send("GET", MAPS, headers, None).await;
        assert!(matches!(refused.status, 403 | 406), "{what}: {}", refused.text);
    }
    let rebound =
        raw(edge.address, "GET /api/v1/secrets HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n").await;
    assert!(rebound.starts_with("HTTP/1.1 403 "), "{rebound}");
    assert_eq!(edge.get("/apis/apps/v1").await.status, 404);
    assert_eq!(edge.read("/version").await["major"], "1");
    let aggregated = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
    let groups = edge.send("GET", "/apis", &[("Accept", aggregated)], None).await;
    assert!(groups.headers["content-type"].contains("APIGroupDiscoveryList"), "{:?}", groups.headers);
    let same =
        edge.send("GET", "/apis", &[("Accept", aggregated), ("If-None-Match", &groups.headers["etag"])], None).await;
    assert_eq!(same.status, 304);
    edge.stop().await;
}

async fn raw(address: SocketAddr, request: &str) -> String {
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    tokio::time::timeout(SOON, stream.read_to_string(&mut answer)).await.expect("an end").unwrap();
    answer
}

#[actix_rt::test]
async fn kube_rs_lists_watches_and_follows() {
    let edge = Edge::in_memory().await;
    let api: Api<ConfigMap> = Api::namespaced(edge.kube(), "shop");
    edge.put(map("a", "1", 5)).await;
    let listed = api.list(&ListParams::default().labels("app=a")).await.unwrap();
    assert_eq!(listed.items.len(), 1);
    let from = listed.metadata.resource_version.unwrap();
    let mut events = pin!(api.watch(&WatchParams::default(), &from).await.unwrap());
    edge.put(map("b", "2", 6)).await;
    match tokio::time::timeout(SOON, events.try_next()).await.unwrap().unwrap() {
        Some(WatchEvent::Added(map)) => assert_eq!(map.name_any(), "b"),
        other => panic!("{other:?}"),
    }
    for config in [watcher::Config::default(), watcher::Config::default().streaming_lists()] {
        let mut followed = pin!(watcher(api.clone(), config));
        let mut known = BTreeMap::new();
        let whole = async {
            while let Some(event) = followed.try_next().await.unwrap() {
                match event {
                    watcher::Event::InitApply(map) | watcher::Event::Apply(map) => {
                        known.insert(map.name_any(), map.uid());
                    }
                    watcher::Event::InitDone => return,
                    watcher::Event::Init | watcher::Event::Delete(_) => {}
                }
            }
        };
        tokio::time::timeout(SOON, whole).await.expect("a whole list");
        assert_eq!(known.keys().collect::<Vec<_>>(), ["a", "b"]);
    }
    assert!(Api::<Pod>::all(edge.kube()).list(&ListParams::default()).await.unwrap().items.is_empty());
    edge.stop().await;
}

#[actix_rt::test]
async fn the_nodes_own_object_is_kept_and_shown_with_what_the_node_reports() {
    let folder = tempfile::tempdir().unwrap();
    let open = |path: &Path| Store::open(path, Options::default()).unwrap().store;
    let edge = Edge::start(open(folder.path()), free_address()).await;
    assert_eq!(edge.get("/api/v1/nodes").await.status, 503, "it is not known yet");
    let node = |uid: &str, hall: &str| {
        let json = json!({"apiVersion": "v1", "kind": "Node",
            "metadata": {"name": "edge-1", "uid": uid, "labels": {"hall": hall}}, "spec": {}});
        KubeObject {
            r#type: Some(resource::nodes()),
            key: Some(ObjectKey::new("", "edge-1")),
            uid: uid.into(),
            resource_version: "7".into(),
            projection_hash: projection_hash(&json),
            json: json.to_string().into(),
        }
    };
    let keep: Port<KeepNode> = edge.system.port();
    let kept = async |object: KubeObject| {
        let settled = keep.ask(KeepNode { object: Some(object) }, SOON).await.unwrap();
        edge.heard().await;
        settled
    };
    assert_eq!(kept(pod("web", 1)).await.code, 400);
    assert_eq!(kept(node("1", "three")).await, Settled::applied());
    edge.report(&node("1", "three"), json!({"conditions": [{"type": "Ready", "status": "True"}]})).await;
    let list = edge.read("/api/v1/nodes").await;
    assert_eq!(list["items"][0]["status"]["conditions"][0]["type"], "Ready");
    let table = "application/json;as=Table;v=v1;g=meta.k8s.io";
    let table = edge.send("GET", "/api/v1/nodes", &[("Accept", table)], None).await;
    let table: Value = serde_json::from_str(&table.text).unwrap();
    assert_eq!(table["rows"][0]["cells"][1], "Ready");
    for object in [node("1", "three"), node("1", "four"), node("2", "four")] {
        assert_eq!(kept(object).await, Settled::applied());
    }
    let told_since = edge.watch("/api/v1/nodes", &format!("resourceVersion={}", version(&list))).await;
    let expected = [("MODIFIED", "edge-1"), ("DELETED", "edge-1"), ("ADDED", "edge-1")];
    assert_eq!(told(&told_since), expected, "the same is no change");

    let address = edge.stop().await;
    let edge = Edge::start(open(folder.path()), address).await;
    assert_eq!(edge.read("/api/v1/nodes/edge-1").await["metadata"]["labels"]["hall"], "four");
    edge.stop().await;
}
