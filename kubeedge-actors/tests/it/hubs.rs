//! CloudHub and EdgeHub with MetaManager over real TLS on loopback; the controllers behind them are scripted.

mod audit;
mod boxes;
mod enrolment;
mod events;
mod hellos;
mod metamanager;
mod renewal;
mod script;

use std::{
    collections::HashMap,
    net::TcpListener,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use actix::{Actor, Handler};
use kubeedge_actors::{
    cloudhub::{CloudHub, CloudHubConfig, EnrolmentConfig, enrolment::EnrolmentService},
    edgehub::{
        EdgeHub, EdgeHubConfig,
        join::{JoinError, join},
        outbox::Bounds,
        renewal::Renewal,
    },
    identity::{
        CertificateAuthority, FlooredClock, JoinToken, NodeCredentials, NodeIdentity, Registrar, Revocations,
        ServerCredentials, TokenRules, Tokens,
    },
    link,
    metamanager::{MetaManager, Tables},
    store::{Options, Store},
    system::{Component, Context, Contract, Overflow, Port, Ports, Stage, System, trace::Trace},
};
use kubeedge_proto::{NodeName, digest::projection_hash, resource, v1::*};
use serde_json::json;
use tokio::sync::mpsc;

use script::{Controller, Heard, Script, connected, disconnected, heard};

const SOON: Duration = Duration::from_secs(20);

/// Stands for Edged: hears what changed.
struct Listener(mpsc::Sender<(ObjectsChanged, Option<Trace>)>);

impl Actor for Listener {
    type Context = Context<Self>;
}

impl Component for Listener {
    const NAME: &'static str = "listener";
    const STAGE: Stage = Stage::Processor;

    fn contract(contract: &mut Contract<Self>) {
        contract.listens::<ObjectsChanged>(Overflow::wait());
    }
}

impl Handler<ObjectsChanged> for Listener {
    type Result = ();
    fn handle(&mut self, change: ObjectsChanged, _: &mut Context<Self>) {
        self.0.try_send((change, Trace::current())).unwrap();
    }
}

struct Cloud {
    system: System,
    script: Script,
    authority: Arc<CertificateAuthority>,
    registrar: Registrar,
    tokens: Tokens,
    listener: Arc<TcpListener>,
    link: String,
    enrolment: String,
}

impl Cloud {
    fn start(folder: &Path) -> Self {
        Self::of(CertificateAuthority::load_or_create(folder, SystemTime::now()).unwrap(), Duration::ZERO)
    }

    fn of(authority: CertificateAuthority, grace: Duration) -> Self {
        let authority = Arc::new(authority);
        let registrar = Registrar::new(authority.clone(), Revocations::in_memory(), grace);
        let tokens = Tokens::new(&Store::in_memory());
        let listener = Arc::new(TcpListener::bind("127.0.0.1:0").unwrap());
        let link = listener.local_addr().unwrap().to_string();
        let script = Script::default();
        *script.cluster.lock().unwrap() = "cluster-1".into();
        let (system, enrolment) = Self::serve(&authority, &registrar, &tokens, &listener, &script);
        Self { system, script, authority, registrar, tokens, listener, link, enrolment }
    }

    fn serve(
        authority: &Arc<CertificateAuthority>,
        registrar: &Registrar,
        tokens: &Tokens,
        listener: &Arc<TcpListener>,
        script: &Script,
    ) -> (System, String) {
        let names = vec!["127.0.0.1".try_into().unwrap()];
        let server = ServerCredentials::new(authority.clone(), names, SystemTime::now()).unwrap();
        let tls = |clients| Arc::new(server.server_config(clients, &[]).unwrap());
        let enrolment = Arc::new(TcpListener::bind("127.0.0.1:0").unwrap());
        let enrolment_address = enrolment.local_addr().unwrap().to_string();
        let link_address = listener.local_addr().unwrap().to_string();
        let config = CloudHubConfig {
            listener: listener.clone(),
            tls: tls(registrar.link_clients().unwrap()),
            node_limit: 10,
            link: link::Config::default(),
            enrolment: Some(EnrolmentConfig {
                listener: enrolment,
                tls: tls(registrar.enrolment_clients().unwrap()),
                service: Arc::new(EnrolmentService::new(registrar.clone(), tokens.clone(), link_address)),
            }),
            registrar: Some(registrar.clone()),
        };
        let script = script.clone();
        let system = System::builder("cloud")
            .component(move |_: &Ports| Controller(script.clone()))
            .component(move |ports: &Ports| CloudHub::new(config.clone(), ports))
            .asks::<SendEventToNode>()
            .start()
            .unwrap();
        (system, enrolment_address)
    }

    async fn token(&self, rules: TokenRules) -> JoinToken {
        self.tokens.create(self.authority.ca_hash(), rules, SystemTime::now()).await.unwrap()
    }

    async fn join(&self, node: &str, folder: &Path) -> NodeIdentity {
        let token = self.token(TokenRules::default()).await;
        let joined = join(&self.enrolment, &token, &node.parse().unwrap(), folder).await.unwrap();
        assert_eq!(joined.link_address, self.link);
        joined.identity
    }

    fn want(&self, node: &str, pods: Vec<KubeObject>, as_of: u64) {
        let kind = DesiredKind {
            r#type: Some(resource::pods()),
            complete: true,
            as_of,
            objects: pods
                .into_iter()
                .map(|pod| ObjectUpsert { object: Some(pod), ..ObjectUpsert::default() })
                .collect(),
        };
        self.script
            .desired
            .lock()
            .unwrap()
            .insert(node.into(), DesiredState { kinds: vec![kind], ..DesiredState::default() });
    }
}

struct Edge {
    system: System,
    changes: mpsc::Receiver<(ObjectsChanged, Option<Trace>)>,
    store: Store,
}

impl Edge {
    async fn start(identity: &NodeIdentity, address: &str, store: &Path) -> Self {
        Self::with(identity, address, store, Bounds::default(), None).await
    }

    async fn with(
        identity: &NodeIdentity,
        address: &str,
        store: &Path,
        bounds: Bounds,
        taker: Option<events::Taker>,
    ) -> Self {
        let identity = NodeIdentity::load(identity.dir()).unwrap().unwrap();
        let clock = FlooredClock::load(identity.dir());
        let credentials = NodeCredentials::new(identity, clock).unwrap();
        Self::renewing(Renewal { credentials, enrolment: None }, address, store, bounds, taker).await
    }

    async fn renewing(
        renewal: Renewal,
        address: &str,
        store: &Path,
        bounds: Bounds,
        taker: Option<events::Taker>,
    ) -> Self {
        let store = Store::open(store, Options::default()).unwrap().store;
        let tables = Tables::open(store.clone()).await.unwrap();
        let config = EdgeHubConfig {
            address: address.into(),
            tls: Arc::new(renewal.credentials.client_config(&[]).unwrap()),
            link: link::Config::default(),
            store: store.clone(),
            outbox: bounds,
            renewal: Some(renewal),
        };
        let (sender, changes) = mpsc::channel(1000);
        let mut builder = System::builder("edge");
        if let Some(taker) = taker {
            builder = builder.component(move |_: &Ports| taker.clone());
        }
        let system = builder
            .component(move |ports: &Ports| MetaManager::new(tables.clone(), ports))
            .component(move |ports: &Ports| EdgeHub::new(config.clone(), ports))
            .component(move |_: &Ports| Listener(sender.clone()))
            .asks::<ReadObjects>()
            .asks::<ReportStatus>()
            .asks::<CallCloud>()
            .asks::<PublishEvent>()
            .asks::<PendingReports>()
            .start()
            .unwrap();
        Self { system, changes, store }
    }

    async fn change(&mut self) -> (String, bool) {
        let (change, _) = tokio::time::timeout(SOON, self.changes.recv()).await.unwrap().unwrap();
        (format!("{}:{}", change.key.unwrap(), change.uid), change.object.is_some())
    }

    async fn pods(&self) -> ObjectList {
        let port: Port<ReadObjects> = self.system.port();
        port.ask(ReadObjects { r#type: Some(resource::pods()), key: None }, SOON).await.unwrap()
    }

    async fn stop(self) {
        self.system.stop(SOON).await;
        self.store.close().await.unwrap();
    }
}

fn pod(name: &str, uid: &str, version: u64) -> KubeObject {
    let json =
        json!({"metadata": {"name": name, "namespace": "ns", "uid": uid}, "spec": {"nodeName": "e1"}, "v": version});
    KubeObject {
        r#type: Some(resource::pods()),
        key: Some(ObjectKey::new("ns", name)),
        uid: uid.into(),
        resource_version: version.to_string(),
        projection_hash: projection_hash(&json),
        json: json.to_string().into(),
    }
}

fn upsert(object: KubeObject) -> SendToNode {
    let body = envelope::Body::ObjectUpsert(ObjectUpsert { object: Some(object), ..ObjectUpsert::default() });
    SendToNode { node: "e1".into(), envelope: Some(Envelope::new("test", 0, body)) }
}

#[actix_rt::test]
async fn state_goes_down_reports_go_up_and_calls_are_answered() {
    let folder = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(&folder.path().join("pki"));
    let mut listener = cloud.script.listen();
    cloud.want("e1", vec![pod("a", "u1", 5), pod("b", "u2", 6)], 10);
    let identity = cloud.join("e1", &folder.path().join("e1")).await;
    let mut edge = Edge::start(&identity, &cloud.link, &folder.path().join("store")).await;

    let mut first = [edge.change().await, edge.change().await];
    first.sort();
    assert_eq!(first, [("ns/a:u1".into(), true), ("ns/b:u2".into(), true)]);

    let send: Port<SendToNode> = cloud_port(&cloud);
    send.tell(upsert(pod("a", "u1", 11))).await.unwrap();
    assert_eq!(edge.change().await, ("ns/a:u1".into(), true));

    // Reports are durable first and reach the controller.
    let report: Port<ReportStatus> = edge.system.port();
    let update = StatusUpdate {
        r#type: Some(resource::pods()),
        key: Some(ObjectKey::new("ns", "a")),
        uid: "u1".into(),
        generation: 0,
        status_json: r#"{"phase":"Running"}"#.into(),
    };
    let settled = report.ask(ReportStatus { report: Some(report_status::Report::Update(update)) }, SOON).await.unwrap();
    assert_eq!(settled, Settled::applied());
    let Heard::Applied(node, envelope::Body::StatusUpdate(update)) =
        heard(&mut listener, |heard| matches!(heard, Heard::Applied(..))).await
    else {
        panic!("a status was reported")
    };
    assert_eq!((node.as_str(), update.uid.as_str()), ("e1", "u1"));

    let call: Port<CallCloud> = edge.system.port();
    let body = envelope::Body::RegisterNode(RegisterNode { node_json: "{}".into() });
    let reply = call.ask(CallCloud { envelope: Some(Envelope::new("test", 0, body)) }, SOON).await.unwrap();
    assert_eq!(reply, CallReply::error(418, "Teapot", "e1"));

    let pods = edge.pods().await;
    assert!(pods.complete);
    assert_eq!(pods.objects.len(), 2);
    edge.stop().await;
    cloud.system.stop(SOON).await;
}

#[actix_rt::test]
async fn a_trace_crosses_the_link_in_both_directions() {
    let folder = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(&folder.path().join("pki"));
    let mut listener = cloud.script.listen();
    cloud.want("e1", vec![pod("a", "u1", 5)], 10);
    let identity = cloud.join("e1", &folder.path().join("e1")).await;
    let mut edge = Edge::start(&identity, &cloud.link, &folder.path().join("store")).await;
    assert_eq!(edge.change().await, ("ns/a:u1".into(), true));

    let (up, down) = (Trace::root(), Trace::root());
    let call: Port<CallCloud> = edge.system.port();
    let body = envelope::Body::RegisterNode(RegisterNode { node_json: "{}".into() });
    let asked = call.ask(CallCloud { envelope: Some(Envelope::new("test", 0, body)) }, SOON);
    Trace::scope(Some(up.clone()), asked).await.unwrap();
    let Heard::Called(Some(seen)) = heard(&mut listener, |heard| matches!(heard, Heard::Called(_))).await else {
        panic!("the controller was called without a trace")
    };
    assert_eq!(seen.trace_id(), up.trace_id());

    let send: Port<SendToNode> = cloud_port(&cloud);
    Trace::scope(Some(down.clone()), send.tell(upsert(pod("a", "u1", 11)))).await.unwrap();
    let (_, seen) = tokio::time::timeout(SOON, edge.changes.recv()).await.unwrap().unwrap();
    assert_eq!(seen.map(|trace| trace.trace_id()), Some(down.trace_id()));

    edge.stop().await;
    cloud.system.stop(SOON).await;
}

fn report(name: &str) -> ReportStatus {
    let update = StatusUpdate {
        r#type: Some(resource::pods()),
        key: Some(ObjectKey::new("ns", name)),
        uid: name.into(),
        generation: 0,
        status_json: r#"{"phase":"Running"}"#.into(),
    };
    ReportStatus { report: Some(report_status::Report::Update(update)) }
}

#[actix_rt::test]
async fn reports_that_the_cloud_could_not_take_are_sent_again() {
    let folder = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(&folder.path().join("pki"));
    let mut listener = cloud.script.listen();
    *cloud.script.refuse.lock().unwrap() = 2;
    let identity = cloud.join("e1", &folder.path().join("e1")).await;
    let edge = Edge::start(&identity, &cloud.link, &folder.path().join("store")).await;
    let port: Port<ReportStatus> = edge.system.port();
    for name in ["a", "b"] {
        assert_eq!(port.ask(report(name), SOON).await.unwrap(), Settled::applied());
    }
    let mut seen: HashMap<String, u32> = HashMap::new();
    while seen.values().sum::<u32>() < 4 {
        let heard = heard(&mut listener, |heard| matches!(heard, Heard::Applied(..))).await;
        if let Heard::Applied(_, envelope::Body::StatusUpdate(update)) = heard {
            *seen.entry(update.uid).or_default() += 1;
        }
    }
    assert_eq!(seen, HashMap::from([("a".into(), 2), ("b".into(), 2)]));
    let pending: Port<PendingReports> = edge.system.port();
    while !pending.ask(PendingReports { limit: 10 }, SOON).await.unwrap().reports.is_empty() {
        tokio::task::yield_now().await;
    }
    edge.stop().await;
    cloud.system.stop(SOON).await;
}

fn cloud_port(cloud: &Cloud) -> Port<SendToNode> {
    cloud.system.port()
}

#[actix_rt::test]
async fn a_node_that_comes_back_gets_the_difference_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(&folder.path().join("pki"));
    let mut listener = cloud.script.listen();
    cloud.want("e1", vec![pod("a", "u1", 5), pod("b", "u2", 6), pod("c", "u3", 7)], 10);
    let identity = cloud.join("e1", &folder.path().join("e1")).await;
    let store = folder.path().join("store");
    let mut edge = Edge::start(&identity, &cloud.link, &store).await;
    for _ in 0..3 {
        edge.change().await;
    }
    while !edge.pods().await.complete {
        tokio::task::yield_now().await;
    }
    edge.stop().await;
    heard(&mut listener, |heard| matches!(heard, Heard::Session { connected: false })).await;

    // Meanwhile: b changed, c went, d came.
    cloud.want("e1", vec![pod("a", "u1", 5), pod("b", "u2", 12), pod("d", "u4", 13)], 20);
    let mut edge = Edge::start(&identity, &cloud.link, &store).await;
    let mut changes = [edge.change().await, edge.change().await, edge.change().await];
    changes.sort();
    assert_eq!(changes, [("ns/b:u2".into(), true), ("ns/c:u3".into(), false), ("ns/d:u4".into(), true)]);
    heard(&mut listener, connected).await;
    edge.stop().await;
    cloud.system.stop(SOON).await;
}

#[actix_rt::test]
async fn another_cluster_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(&folder.path().join("pki"));
    let mut listener = cloud.script.listen();
    cloud.want("e1", vec![pod("a", "u1", 5)], 10);
    let identity = cloud.join("e1", &folder.path().join("e1")).await;
    let store = folder.path().join("store");
    let mut edge = Edge::start(&identity, &cloud.link, &store).await;
    edge.change().await;
    while !edge.pods().await.complete {
        tokio::task::yield_now().await;
    }
    edge.stop().await;
    heard(&mut listener, disconnected).await;

    *cloud.script.cluster.lock().unwrap() = "cluster-2".into();
    cloud.want("e1", vec![pod("x", "u9", 90)], 100);
    let edge = Edge::start(&identity, &cloud.link, &store).await;
    heard(&mut listener, connected).await;
    // The box gives the session up.
    heard(&mut listener, disconnected).await;
    let names: Vec<String> = edge.pods().await.objects.iter().map(|pod| pod.key.clone().unwrap().name).collect();
    assert_eq!(names, ["a"]);
    edge.stop().await;
    cloud.system.stop(SOON).await;
}
