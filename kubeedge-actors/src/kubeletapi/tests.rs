use std::sync::{Arc, Mutex};

use actix::MessageResult;
use kubeedge_proto::v1::{ContainerUsage, InterfaceStats, PodListing, PodStats, Progress, UsageStats};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::*;
use crate::system::System;

/// Answers as Edged would.
struct Edged {
    stats: NodeStats,
    age: Arc<Mutex<u64>>,
}

impl Actor for Edged {
    type Context = Context<Self>;
}

impl Component for Edged {
    const NAME: &'static str = "edged";
    const STAGE: Stage = Stage::Processor;
    fn contract(contract: &mut Contract<Self>) {
        contract.answers::<ListPods>();
        contract.answers::<QueryStats>();
        contract.answers::<QueryProgress>();
    }
}

impl Handler<ListPods> for Edged {
    type Result = MessageResult<ListPods>;
    fn handle(&mut self, _: ListPods, _: &mut Context<Self>) -> Self::Result {
        MessageResult(PodListing { json: bytes::Bytes::from_static(b"{\"kind\":\"PodList\"}") })
    }
}

impl Handler<QueryStats> for Edged {
    type Result = MessageResult<QueryStats>;
    fn handle(&mut self, _: QueryStats, _: &mut Context<Self>) -> Self::Result {
        MessageResult(self.stats.clone())
    }
}

impl Handler<QueryProgress> for Edged {
    type Result = MessageResult<QueryProgress>;
    fn handle(&mut self, _: QueryProgress, _: &mut Context<Self>) -> Self::Result {
        MessageResult(Progress { age_ms: *self.age.lock().unwrap() })
    }
}

fn usage(cpu: u64, cores: Option<u64>, memory: u64) -> Option<UsageStats> {
    Some(UsageStats {
        time: 1_700_000_000_123_456_789,
        cpu_nano_seconds: cpu,
        cpu_nano_cores: cores,
        memory_usage: memory + 1,
        memory_working_set: memory,
        ..UsageStats::default()
    })
}

fn stats() -> NodeStats {
    let container = |name: &str, usage| ContainerUsage {
        name: name.into(),
        started: 1_600_000_000_500_000_000,
        usage,
        layer_bytes: 3,
        layer_inodes: 1,
    };
    let pod = |name: &str, containers| PodStats {
        namespace: "ns".into(),
        name: name.into(),
        uid: format!("uid-{name}"),
        started: 1_600_000_000_000_000_000,
        containers,
    };
    let both = vec![container("a", usage(1_500_000_000, Some(7), 10)), container("b", usage(5, Some(8), 20))];
    let interface = InterfaceStats { name: "eth0".into(), received_bytes: 1, sent_bytes: 2, ..Default::default() };
    NodeStats {
        node: "edge-1".into(),
        usage: usage(9_000_000_001, Some(1), 99),
        interfaces: vec![interface],
        pods: vec![pod("p", both), pod("ended", vec![])],
        ..NodeStats::default()
    }
}

#[test]
fn the_summary_is_a_kubelets() {
    let value = summary::summary(&stats(), false);
    assert_eq!(value["node"]["nodeName"], "edge-1");
    assert_eq!(value["node"]["cpu"]["time"], "2023-11-14T22:13:20Z");
    assert_eq!(value["node"]["cpu"]["usageCoreNanoSeconds"], 9_000_000_001_u64);
    assert_eq!(value["node"]["network"]["name"], "eth0");
    let pod = &value["pods"][0];
    assert_eq!(pod["podRef"], serde_json::json!({"name": "p", "namespace": "ns", "uid": "uid-p"}));
    assert_eq!((&pod["cpu"]["usageNanoCores"], &pod["memory"]["workingSetBytes"]), (&15.into(), &30.into()));
    assert_eq!(pod["containers"][1]["rootfs"]["usedBytes"], 3);
    assert_eq!(pod["ephemeral-storage"]["usedBytes"], 6);
    assert!(value["pods"][1].get("cpu").is_none() && value["pods"][1]["containers"] == serde_json::json!([]));
    let short = summary::summary(&stats(), true);
    assert!(short["node"].get("network").is_none() && short["pods"][0]["containers"][0].get("rootfs").is_none());
    assert_eq!(short["pods"][0]["cpu"], pod["cpu"]);
}

#[test]
fn the_resource_metrics_are_a_kubelets() {
    let page = resource_metrics::page(&stats());
    for line in [
        "# TYPE container_cpu_usage_seconds_total counter",
        "container_cpu_usage_seconds_total{container=\"a\",namespace=\"ns\",pod=\"p\"} 1.500000000 1700000000123",
        "container_memory_working_set_bytes{container=\"b\",namespace=\"ns\",pod=\"p\"} 20 1700000000123",
        "container_start_time_seconds{container=\"a\",namespace=\"ns\",pod=\"p\"} 1600000000.500000000",
        "node_cpu_usage_seconds_total 9.000000001 1700000000123",
        "node_memory_working_set_bytes 99 1700000000123",
        "pod_cpu_usage_seconds_total{namespace=\"ns\",pod=\"p\"} 1.500000005 1700000000123",
        "pod_memory_working_set_bytes{namespace=\"ns\",pod=\"p\"} 30 1700000000123",
        "resource_scrape_error 0",
    ] {
        assert!(page.lines().any(|have| have == line), "{line} is missing in\n{page}");
    }
    assert!(!page.contains("pod=\"ended\""), "{page}");
    let fault = NodeStats { fault: "the runtime is away".into(), ..stats() };
    assert!(resource_metrics::page(&fault).ends_with("resource_scrape_error 1\n"));
}

/// Status line and body of one request.
async fn request(address: SocketAddr, request: &str) -> (String, String) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    let answer = String::from_utf8(answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.lines().next().unwrap().to_owned(), body.to_owned())
}

async fn get(address: SocketAddr, path: &str) -> (String, String) {
    request(address, &format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")).await
}

#[actix_rt::test]
async fn every_path_is_served_on_the_port_and_over_the_link() {
    // A port that was free a moment ago.
    let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let observed = Observed::default();
    let config = KubeletApiConfig { listen: Some(address), observed: observed.clone() };
    let age = Arc::new(Mutex::new(5));
    let edged_age = Arc::clone(&age);
    let system = System::builder("edge")
        .component(move |_: &Ports| Edged { stats: stats(), age: Arc::clone(&edged_age) })
        .component(move |ports: &Ports| KubeletApi::new(config.clone(), ports))
        .asks::<ReadKubelet>()
        .start()
        .unwrap();
    let link = system.port::<ReadKubelet>();
    let over_the_link = async |path: &str| {
        let message = ReadKubelet { path_and_query: path.to_owned() };
        link.ask(message, Duration::from_secs(5)).await.unwrap()
    };
    // It listens before it answers anything.
    assert_eq!(over_the_link("/healthz/ping").await.code, 200);
    assert_eq!(get(address, "/metrics").await.0, "HTTP/1.1 503 Service Unavailable", "not set yet");
    observed.set(&system);

    for path in ["/healthz", "/healthz/ping", "/healthz/syncloop"] {
        assert_eq!(get(address, path).await, ("HTTP/1.1 200 OK".to_owned(), "ok".to_owned()), "{path}");
    }
    assert_eq!(get(address, "/pods").await.1, "{\"kind\":\"PodList\"}");
    let (_, body) = get(address, "/stats/summary?only_cpu_and_memory=true").await;
    let value: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(value, summary::summary(&stats(), true));
    assert_eq!(get(address, "/metrics/resource").await.1, resource_metrics::page(&stats()));
    let (_, page) = get(address, "/metrics").await;
    assert!(page.contains("kubeedge_actor_running{component=\"edged\"} 1.0"), "{page}");

    assert_eq!(get(address, "/run/ns/p/c").await.0, "HTTP/1.1 404 Not Found");
    let post = "POST /pods HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nConnection: close\r\n\r\nxx";
    assert_eq!(request(address, post).await.0, "HTTP/1.1 405 Method Not Allowed");

    let answer = over_the_link("/metrics/resource").await;
    assert_eq!((answer.code, answer.body), (200, resource_metrics::page(&stats()).into()));
    assert_eq!(over_the_link("/secret").await.code, 404);

    *age.lock().unwrap() = 181_000;
    let (status, why) = get(address, "/healthz").await;
    assert!(status.ends_with("500 Internal Server Error") && why.contains("181s"), "{status} {why}");
    system.stop(Duration::from_secs(5)).await;
    assert!(TcpStream::connect(address).await.is_err(), "the port is free again");
}
