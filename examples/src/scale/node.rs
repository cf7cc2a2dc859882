//! A hollow node: everything of an edge that the cloud notices, and nothing that runs.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use actix::{ActorFutureExt, AsyncContext, Handler, MessageResult, WrapFuture};
use anyhow::{Context as _, Result};
use jiff::Timestamp;
use kubeedge_actors::{
    edgehub::{EdgeHub, EdgeHubConfig, outbox::Bounds},
    identity::{CertificateAuthority, issued_client_config, system_clock},
    link,
    metamanager::{MetaManager, Tables},
    store::Store,
    system::{Component, Context, Contract, Overflow, Port, Ports, Stage, System},
};
use kubeedge_proto::{
    NodeName, resource,
    v1::{
        CallCloud, CallReply, Envelope, LinkStateChanged, ObjectKey, ObjectsChanged, Progress, QueryProgress,
        RegisterNode, ReportStatus, StatusUpdate, call_reply::Result as Reply, envelope::Body, report_status::Report,
    },
};
use rustls::client::Resumption;
use serde_json::{Value, json};

use super::{Tally, workload::STAMP};

/// The kubelet's `nodeStatusReportFrequency`.
const REPORT_EVERY: Duration = Duration::from_secs(300);
/// As Edged waits.
const REGISTER_WITHIN: Duration = Duration::from_secs(30);
const KEEP_WITHIN: Duration = Duration::from_secs(30);
/// The longest pause before a registration that failed is tried again.
const AGAIN: Duration = Duration::from_secs(5);

/// One of them, running.
pub(super) struct Node {
    pub(super) name: NodeName,
    /// By name, the stamp in each ConfigMap that it holds.
    pub(super) configs: Rc<RefCell<BTreeMap<String, u64>>>,
    system: System,
    /// Heartbeats whose round trips were counted.
    heartbeats: u64,
}

/// Starts a node with a certificate of this authority. It connects by itself.
pub(super) async fn start(
    name: NodeName,
    address: String,
    store: Store,
    authority: &CertificateAuthority,
    tally: Rc<RefCell<Tally>>,
) -> Result<Node> {
    let issued = authority.issue_client(&name.common_name(), "system:nodes", SystemTime::now())?;
    let mut tls = issued_client_config(authority.certificate().clone(), &issued, system_clock())?;
    tls.resumption = Resumption::disabled();
    let tables = Tables::open(store.clone()).await?;
    let hub = EdgeHubConfig {
        address,
        tls: Arc::new(tls),
        link: link::Config::default(),
        store,
        outbox: Bounds::default(),
        renewal: None,
    };
    let configs = Rc::new(RefCell::new(BTreeMap::new()));
    let (node, node_configs) = (name.clone(), Rc::clone(&configs));
    let system = System::builder(name.as_str())
        .component(move |ports: &Ports| MetaManager::new(tables.clone(), ports))
        .component(move |ports: &Ports| EdgeHub::new(hub.clone(), ports))
        .component(move |ports: &Ports| Hollow::new(node.clone(), Rc::clone(&tally), Rc::clone(&node_configs), ports))
        .start()
        .with_context(|| format!("start {name}"))?;
    Ok(Node { name, configs, system, heartbeats: 0 })
}

impl Node {
    /// Counts the round trip of the last heartbeat, if it is a new one.
    pub(super) fn count_heartbeat(&mut self, tally: &mut Tally) {
        let figures = self.system.figures();
        let figure = |name| {
            figures.iter().flat_map(|(_, figures)| figures).find(|(figure, _)| figure.name == name).map(|(_, it)| *it)
        };
        let (Some(answered), Some(micros)) =
            (figure("heartbeats_answered"), figure("heartbeat_round_trip_microseconds"))
        else {
            return;
        };
        // Fewer than before: EdgeHub was built again.
        if answered != std::mem::replace(&mut self.heartbeats, answered) && answered > 0 {
            tally.heartbeats.record(Duration::from_micros(micros));
        }
    }
}

/// In Edged's place.
struct Hollow {
    name: NodeName,
    tally: Rc<RefCell<Tally>>,
    configs: Rc<RefCell<BTreeMap<String, u64>>>,
    call: Port<CallCloud>,
    report: Port<ReportStatus>,
    connected: bool,
    registered: bool,
    /// Of the Node, once it is registered.
    uid: Option<String>,
}

impl Hollow {
    fn new(
        name: NodeName,
        tally: Rc<RefCell<Tally>>,
        configs: Rc<RefCell<BTreeMap<String, u64>>>,
        ports: &Ports,
    ) -> Self {
        let (call, report) = (ports.port(), ports.port());
        Self { name, tally, configs, call, report, connected: false, registered: false, uid: None }
    }

    /// Counts a change of what this node is.
    fn becomes(&mut self, connected: bool, registered: bool) {
        let mut tally = self.tally.borrow_mut();
        tally.connected += u64::from(connected);
        tally.connected -= u64::from(self.connected);
        tally.ready += u64::from(registered);
        tally.ready -= u64::from(self.registered);
        (self.connected, self.registered) = (connected, registered);
    }

    fn register(&mut self, ctx: &mut Context<Self>) {
        let asked = Instant::now();
        let call = self.call.clone();
        let body = Body::RegisterNode(RegisterNode { node_json: node(&self.name).to_string().into() });
        let envelope = Envelope {
            timeout_ms: u32::try_from(REGISTER_WITHIN.as_millis()).unwrap_or(u32::MAX),
            ..Envelope::new("hollow", unix_ms(), body)
        };
        let ask = async move { call.ask(CallCloud { envelope: Some(envelope) }, REGISTER_WITHIN).await };
        ctx.spawn(ask.into_actor(self).map(move |reply, this, ctx| match reply.ok().and_then(uid_of) {
            Some(uid) => {
                this.uid = Some(uid);
                this.becomes(this.connected, this.connected);
                this.tally.borrow_mut().registered.record(asked.elapsed());
                this.report_node(ctx);
            }
            None => {
                this.tally.borrow_mut().failed += 1;
                ctx.run_later(AGAIN.mul_f64(rand::random::<f64>()), |this, ctx| {
                    if this.connected && !this.registered {
                        this.register(ctx);
                    }
                });
            }
        }));
    }

    fn report_node(&self, ctx: &mut Context<Self>) {
        let Some(uid) = self.uid.clone() else { return };
        let key = ObjectKey::new("", self.name.as_str());
        let status = node_status();
        self.tell(StatusUpdate { key: Some(key), ..update(resource::nodes(), uid, &status) }, ctx);
    }

    fn tell(&self, update: StatusUpdate, ctx: &mut Context<Self>) {
        let report = self.report.clone();
        let message = ReportStatus { report: Some(Report::Update(update)) };
        ctx.spawn(async move { report.ask(message, KEEP_WITHIN).await }.into_actor(self).map(|kept, this, _| {
            if kept.is_err() {
                this.tally.borrow_mut().failed += 1;
            }
        }));
    }
}

impl actix::Actor for Hollow {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.run_interval(REPORT_EVERY, |this, ctx| this.report_node(ctx));
    }
}

impl Component for Hollow {
    const NAME: &'static str = "hollow";
    const STAGE: Stage = Stage::Processor;

    fn contract(contract: &mut Contract<Self>) {
        contract.answers::<QueryProgress>();
        contract.listens::<ObjectsChanged>(Overflow::wait());
        contract.listens::<LinkStateChanged>(Overflow::newest_per_key(1, |_| ()));
        contract.asks::<CallCloud>();
        contract.asks::<ReportStatus>();
    }
}

impl Handler<QueryProgress> for Hollow {
    type Result = MessageResult<QueryProgress>;

    fn handle(&mut self, _: QueryProgress, _: &mut Context<Self>) -> Self::Result {
        MessageResult(Progress { age_ms: 0 })
    }
}

impl Handler<LinkStateChanged> for Hollow {
    type Result = ();

    fn handle(&mut self, link: LinkStateChanged, ctx: &mut Context<Self>) {
        self.becomes(link.connected, false);
        if link.connected {
            self.tally.borrow_mut().connections += 1;
            self.register(ctx);
        }
    }
}

impl Handler<ObjectsChanged> for Hollow {
    type Result = ();

    fn handle(&mut self, change: ObjectsChanged, ctx: &mut Context<Self>) {
        let (Some(type_), Some(key)) = (change.r#type, change.key) else { return };
        let is_pod = type_ == resource::pods();
        let name = format!("{}/{key}", type_.resource);
        let Some(object) = change.object else {
            if self.configs.borrow_mut().remove(&name).is_some() {
                self.tally.borrow_mut().held -= 1;
            }
            return;
        };
        let Ok(object) = serde_json::from_slice::<Value>(&object.json) else { return };
        let stamp = object["data"][STAMP].as_str().and_then(|text| text.parse().ok()).unwrap_or(0);
        let new = self.configs.borrow_mut().insert(name, stamp).is_none();
        let mut tally = self.tally.borrow_mut();
        tally.held += u64::from(new);
        if is_pod {
            drop(tally);
            if new {
                let status = pod_status();
                self.tell(StatusUpdate { key: Some(key), ..update(type_, change.uid, &status) }, ctx);
            }
        } else {
            tally.configs_applied += 1;
            let sent = SystemTime::UNIX_EPOCH + Duration::from_nanos(stamp);
            if stamp > 0 {
                // One machine, one clock.
                tally.applied.record(sent.elapsed().unwrap_or_default());
            }
        }
    }
}

fn uid_of(reply: CallReply) -> Option<String> {
    let Some(Reply::Object(object)) = reply.result else { return None };
    Some(object.uid).filter(|uid| !uid.is_empty())
}

fn update(type_: kubeedge_proto::v1::ResourceType, uid: String, status: &Value) -> StatusUpdate {
    StatusUpdate { r#type: Some(type_), uid, status_json: status.to_string().into(), ..StatusUpdate::default() }
}

fn unix_ms() -> u64 {
    u64::try_from(Timestamp::now().as_millisecond()).unwrap_or(0)
}

fn now() -> String {
    Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// As an edgecore registers one.
fn node(name: &NodeName) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": name.as_str(), "labels": {
            "kubernetes.io/hostname": name.as_str(), "kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64",
            "beta.kubernetes.io/os": "linux", "beta.kubernetes.io/arch": "amd64",
            "node-role.kubernetes.io/edge": "", "node-role.kubernetes.io/agent": "",
        }},
        "spec": {},
        "status": node_status(),
    })
}

/// As an edgecore reports it.
fn node_status() -> Value {
    let now = now();
    let condition = |type_: &str, status: &str, reason: &str| {
        json!({"type": type_, "status": status, "reason": reason, "message": reason,
               "lastHeartbeatTime": now, "lastTransitionTime": now})
    };
    let amounts = json!({"cpu": "4", "memory": "8Gi", "ephemeral-storage": "60Gi", "pods": "110"});
    json!({
        "capacity": amounts, "allocatable": amounts,
        "conditions": [
            condition("MemoryPressure", "False", "KubeletHasSufficientMemory"),
            condition("DiskPressure", "False", "KubeletHasNoDiskPressure"),
            condition("PIDPressure", "False", "KubeletHasSufficientPID"),
            condition("Ready", "True", "KubeletReady"),
        ],
        "addresses": [{"type": "InternalIP", "address": "192.0.2.1"}],
        "nodeInfo": {
            "architecture": "amd64", "bootID": "b", "containerRuntimeVersion": "containerd://1.7.1",
            "kernelVersion": "6.1.0", "kubeProxyVersion": "", "kubeletVersion": "v1.32.10-hollow", "machineID": "m",
            "operatingSystem": "linux", "osImage": "none", "systemUUID": "s",
        },
    })
}

/// As an edgecore reports it of a pod that runs.
fn pod_status() -> Value {
    let now = now();
    let condition = |type_: &str| json!({"type": type_, "status": "True", "lastTransitionTime": now});
    json!({
        "phase": "Running", "startTime": now, "podIP": "10.88.0.2", "podIPs": [{"ip": "10.88.0.2"}],
        "conditions": (["PodScheduled", "Initialized", "ContainersReady", "Ready"].map(condition)),
        "containerStatuses": [{
            "name": "main", "image": "none", "imageID": "none", "containerID": "containerd://none", "ready": true,
            "started": true, "restartCount": 0, "state": {"running": {"startedAt": now}},
        }],
    })
}
