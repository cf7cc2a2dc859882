//! EdgeController between a CloudHub and an API server that the test plays.

use std::{cell::RefCell, rc::Rc};

use kubeedge_proto::{
    NodeName, resource,
    v1::{ObjectKey, Settled, StatusUpdate},
};
use serde_json::json;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    sync::mpsc,
};

mod hostile;

use super::{
    writes::{Bound, Write},
    *,
};
use crate::system::System;

const SOON: Duration = Duration::from_secs(20);

/// Answers a request line (`PATCH /api/v1/...`) and its body; `None`: never.
type Answer = dyn FnMut(&str, &[u8]) -> Option<(u16, Value)>;

/// A client of an API server that answers so.
async fn api(answer: impl FnMut(&str, &[u8]) -> Option<(u16, Value)> + 'static) -> kube::Client {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let answer: Rc<RefCell<Answer>> = Rc::new(RefCell::new(answer));
    actix_rt::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            actix_rt::spawn(serve(stream, Rc::clone(&answer)));
        }
    });
    kube::Client::try_from(kube::Config::new(url.parse().unwrap())).unwrap()
}

async fn serve(stream: TcpStream, answer: Rc<RefCell<Answer>>) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    loop {
        let (mut first, mut length) = (String::new(), 0);
        if stream.read_line(&mut first).await? == 0 {
            return Ok(());
        }
        loop {
            let mut line = String::new();
            stream.read_line(&mut line).await?;
            if line.trim().is_empty() {
                break;
            }
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().unwrap();
            }
        }
        let mut body = vec![0; length];
        stream.read_exact(&mut body).await?;
        let asked = (answer.borrow_mut())(first.trim_end_matches(" HTTP/1.1\r\n"), &body);
        let Some((code, body)) = asked else { return std::future::pending().await };
        let body = body.to_string();
        let head =
            format!("HTTP/1.1 {code} X\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n", body.len());
        stream.write_all(format!("{head}{body}").as_bytes()).await?;
    }
}

fn failure(code: u16, reason: &str) -> Option<(u16, Value)> {
    let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": reason, "reason": reason, "code": code});
    Some((code, status))
}

fn update() -> StatusUpdate {
    StatusUpdate {
        r#type: Some(resource::pods()),
        key: Some(ObjectKey::new("ns", "a")),
        uid: "u1".into(),
        generation: 1,
        status_json: r#"{"phase":"Running"}"#.into(),
    }
}

fn write() -> Write {
    Write::status(&"e1".parse().unwrap(), &update(), None).unwrap()
}

fn bound() -> Option<Bound> {
    Some(Bound { node: "e1".into(), uid: "u1".into(), resource_version: "7".into() })
}

#[actix_rt::test]
async fn a_conflict_is_tried_again_unless_it_is_another_pod() {
    for (uid, code) in [("u1", 503), ("u2", 409)] {
        let client = api(move |line, _| match line.starts_with("GET") {
            true => Some((200, json!({"metadata": {"uid": uid}, "spec": {"nodeName": "e1"}}))),
            false => failure(409, "Conflict"),
        });
        let settled = Upstream::new(client.await).write(write(), bound()).await;
        assert_eq!(settled.code, code, "{settled:?}");
    }
}

#[actix_rt::test]
async fn rights_that_the_cloud_lacks_lose_no_report() {
    for (code, reason) in [(401, "Unauthorized"), (403, "Forbidden")] {
        let client = api(move |_, _| failure(code, reason)).await;
        let settled = Upstream::new(client).write(write(), bound()).await;
        assert_eq!(settled.code, 503, "{settled:?}");
    }
}

#[actix_rt::test]
async fn an_event_of_any_shape_speaks_for_its_node() {
    let (sent, mut made) = mpsc::channel(10);
    let client = api(move |_, body| {
        sent.try_send(serde_json::from_slice::<Value>(body).unwrap()).unwrap();
        Some((201, json!({})))
    });
    let upstream = Upstream::new(client.await);
    for source in [json!("me"), json!([1]), json!(null), json!({"host": "other"})] {
        let event = json!({"metadata": {"namespace": "ns", "name": "a.1"}, "source": source});
        assert_eq!(upstream.event(&"e1".parse().unwrap(), event).await, Settled::applied());
        assert_eq!(made.recv().await.unwrap()["source"]["host"], "e1");
    }
}

#[actix_rt::test]
async fn a_repeated_event_is_superseded_and_a_later_one_brings_it_up_to_date() {
    let event = |count: u32| {
        json!({
            "metadata": {"namespace": "ns", "name": "a.1", "resourceVersion": "7"},
            "count": count, "lastTimestamp": "2027-01-15T08:00:00Z",
        })
    };
    let (sent, mut patched) = mpsc::channel(10);
    let mut conflicts = 1;
    let client = api(move |line, body| match line.split(' ').next() {
        Some("POST") => failure(409, "AlreadyExists"),
        Some("GET") => Some((200, event(2))),
        _ if conflicts > 0 => {
            conflicts -= 1;
            failure(409, "Conflict")
        }
        _ => {
            sent.try_send(serde_json::from_slice::<Value>(body).unwrap()).unwrap();
            Some((200, json!({})))
        }
    });
    let upstream = Upstream::new(client.await);
    let node: NodeName = "e1".parse().unwrap();
    for known in [1, 2] {
        assert_eq!(upstream.event(&node, event(known)).await, Settled::superseded());
    }
    assert_eq!(upstream.event(&node, event(3)).await, Settled::applied());
    let patch = patched.recv().await.unwrap();
    assert_eq!((&patch["count"], &patch["metadata"]["resourceVersion"]), (&json!(3), &json!("7")));
    assert!(patched.try_recv().is_err());
}

/// Stands for CloudHub.
struct Hub(mpsc::Sender<()>);

impl Actor for Hub {
    type Context = Context<Self>;
}

impl Component for Hub {
    const NAME: &'static str = "cloudhub";
    const STAGE: Stage = Stage::Link;
    fn contract(contract: &mut Contract<Self>) {
        contract.answers::<SendToNode>();
        contract.answers::<RecheckNodes>();
        contract.announces::<NodeSessionChanged>();
    }
}

impl Handler<SendToNode> for Hub {
    type Result = ();
    fn handle(&mut self, _: SendToNode, _: &mut Context<Self>) {}
}

impl Handler<RecheckNodes> for Hub {
    type Result = ();
    fn handle(&mut self, _: RecheckNodes, _: &mut Context<Self>) {
        self.0.try_send(()).unwrap();
    }
}

#[actix_rt::test]
async fn a_write_of_a_replaced_session_is_given_up_and_a_new_life_has_every_node_compared() {
    let (writes, mut writing) = mpsc::channel(10);
    let mut first = true;
    let client = api(move |line, _| match line {
        list if list.starts_with("GET /api/v1/pods?") && !list.contains("watch=") => {
            Some((200, json!({"metadata": {"resourceVersion": "5"}, "items": []})))
        }
        watch if watch.contains("watch=") => None,
        get if get.starts_with("GET") => Some((200, json!({"metadata": {"uid": "u1"}, "spec": {"nodeName": "e1"}}))),
        _ => {
            writes.try_send(()).unwrap();
            if std::mem::take(&mut first) { None } else { Some((200, json!({}))) }
        }
    })
    .await;
    let (rechecks, mut rechecked) = mpsc::channel(10);
    let system = System::builder("cloud")
        .component(move |ports: &Ports| EdgeController::new(client.clone(), ports))
        .component(move |_: &Ports| Hub(rechecks.clone()))
        .asks::<ApplyFromNode>()
        .start()
        .unwrap();
    tokio::time::timeout(SOON, rechecked.recv()).await.unwrap().unwrap();

    let port: Port<ApplyFromNode> = system.port();
    let message = |epoch| ApplyFromNode {
        node: "e1".into(),
        epoch,
        envelope: Some(Envelope::new("test", 0, Body::StatusUpdate(update()))),
    };
    let old = actix_rt::spawn({
        let (port, message) = (port.clone(), message(1));
        async move { port.ask(message, SOON).await.unwrap() }
    });
    tokio::time::timeout(SOON, writing.recv()).await.unwrap().unwrap();
    assert_eq!(port.ask(message(2), SOON).await.unwrap(), Settled::applied());
    assert_eq!(tokio::time::timeout(SOON, old).await.unwrap().unwrap().code, 503);
    assert_eq!(port.ask(message(1), SOON).await.unwrap().code, 503);
    system.stop(SOON).await;
}

#[actix_rt::test]
async fn who_asks_before_the_lists_are_there_is_told_when_to_ask_again() {
    let client = api(|line, _| match line {
        pods if pods.starts_with("GET /api/v1/pods?") => None,
        _ => Some((200, json!({"metadata": {"uid": "u1"}}))),
    })
    .await;
    let (rechecks, _rechecked) = mpsc::channel(10);
    let system = System::builder("cloud")
        .component(move |ports: &Ports| EdgeController::new(client.clone(), ports))
        .component(move |_: &Ports| Hub(rechecks.clone()))
        .asks::<QueryDesired>()
        .asks::<QueryCluster>()
        .start()
        .unwrap();
    let port: Port<QueryDesired> = system.port();
    let question = |waited_ms| port.ask(QueryDesired { node: "e1".into(), waited_ms }, SOON);
    // Three times what components have under way otherwise.
    let answers = futures_util::future::join_all((0..3 * 1024).map(|_| question(11_000))).await;
    for answer in answers {
        let DesiredState { kinds, again_in_ms } = answer.unwrap();
        assert!(kinds.is_empty() && again_in_ms > 0, "{kinds:?}, again in {again_in_ms} ms");
    }
    let cluster: Port<QueryCluster> = system.port();
    assert_eq!(cluster.ask(QueryCluster {}, SOON).await.unwrap().uid, "u1");
    // At the end of its patience: what there is.
    let DesiredState { kinds, again_in_ms } = question(12_000).await.unwrap();
    assert!(!kinds.is_empty() && kinds.iter().all(|kind| !kind.complete) && again_in_ms == 0, "{kinds:?}");
    system.stop(SOON).await;
}
