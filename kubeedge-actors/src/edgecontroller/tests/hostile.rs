//! A node that asks for what is not its own: each message that a node can send, its answer, and the audit line.

use kubeedge_proto::v1::{
    ApiRequest, CallFromNode, CallReply, CreateMirrorPod, GapMarker, KubeObject, KubernetesEvent, ObjectQuery,
    ObjectTombstone, ObjectUpsert, PodTerminated, RegisterNode, RequestToken, ResourceType, ServiceCall,
    SignCertificate, UserMessage, call_reply,
};

use super::*;
use crate::audit::testing::Heard;

/// Pod `mine` is bound to e1, `theirs` to e2; each names a Secret of its own.
fn pod(name: &str, node: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": "ns", "name": name, "uid": name, "resourceVersion": "4"},
        "spec": {"nodeName": node, "serviceAccountName": "app", "containers": [{"name": "c",
            "envFrom": [{"secretRef": {"name": format!("{name}-secret")}}]}],
            "volumes": [{"name": "t", "projected": {"sources": [{"serviceAccountToken": {"path": "token"}}]}}]},
    })
}

/// An API server with these two pods. What is written into it is heard.
async fn cluster(writes: mpsc::Sender<String>) -> kube::Client {
    api(move |line, _| {
        let (method, path) = line.split_once(' ').unwrap();
        let (path, query) = path.split_once('?').unwrap_or((path, ""));
        if query.contains("watch=") {
            return None;
        }
        if method != "GET" {
            writes.try_send(line.to_owned()).unwrap();
            return Some((200, json!({"metadata": {"name": "x"}, "status": {"token": "t"}})));
        }
        match path {
            "/api/v1/pods" => Some((
                200,
                json!({"metadata": {"resourceVersion": "5"}, "items": [pod("mine", "e1"), pod("theirs", "e2")]}),
            )),
            "/api/v1/namespaces/ns/pods/mine" => Some((200, pod("mine", "e1"))),
            "/api/v1/namespaces/ns/pods/theirs" => Some((200, pod("theirs", "e2"))),
            "/api/v1/namespaces/ns/secrets/mine-secret" => {
                Some((200, json!({"metadata": {"namespace": "ns", "name": "mine-secret", "resourceVersion": "3"}})))
            }
            _ => failure(404, "NotFound"),
        }
    })
    .await
}

fn status(type_: ResourceType, namespace: &str, name: &str, uid: &str) -> Body {
    Body::StatusUpdate(StatusUpdate {
        r#type: Some(type_),
        key: Some(ObjectKey::new(namespace, name)),
        uid: uid.into(),
        generation: 1,
        status_json: "{}".into(),
    })
}

fn event(kind: &str, name: &str) -> Body {
    let json = json!({"metadata": {"namespace": "ns", "name": format!("{name}.1")},
                      "involvedObject": {"kind": kind, "namespace": "ns", "name": name}});
    let event = KubeObject { json: json.to_string().into(), ..KubeObject::default() };
    Body::KubernetesEvent(KubernetesEvent { event: Some(event) })
}

fn query(type_: ResourceType, namespace: &str, name: &str) -> Body {
    Body::ObjectQuery(ObjectQuery { r#type: Some(type_), key: Some(ObjectKey::new(namespace, name)) })
}

fn token(pod: &str, account: &str, audiences: &[&str]) -> Body {
    Body::RequestToken(RequestToken {
        namespace: "ns".into(),
        service_account: account.into(),
        pod_name: pod.into(),
        pod_uid: pod.into(),
        audiences: audiences.iter().map(|audience| (*audience).to_owned()).collect(),
        expiration_seconds: 3600,
    })
}

fn ended(name: &str) -> Body {
    let key = Some(ObjectKey::new("ns", name));
    Body::PodTerminated(PodTerminated { key, uid: name.into(), generation: 1, status_json: "{}".into() })
}

/// (the message, its answer's code, what the audit line says)
fn refused() -> Vec<(Body, u32, &'static str)> {
    let other = ResourceType { resource: "roles".into(), kind: "Role".into(), ..resource::pods() };
    vec![
        (status(resource::pods(), "ns", "theirs", "theirs"), 403, "v1/pods ns/theirs"),
        (status(resource::pods(), "ns", "../../nodes/e2", "x"), 400, "../../nodes/e2"),
        (status(resource::nodes(), "", "e2", ""), 403, "v1/nodes e2"),
        (status(resource::nodes(), "ns", "e1", ""), 403, "v1/nodes ns/e1"),
        (status(resource::secrets(), "ns", "theirs-secret", "x"), 403, "v1/secrets ns/theirs-secret"),
        (Body::StatusUpdate(StatusUpdate::default()), 400, "unnamed"),
        (ended("theirs"), 403, "v1/pods ns/theirs"),
        (Body::PodTerminated(PodTerminated::default()), 400, "unnamed"),
        (event("Pod", "theirs"), 403, "not bound to node e1"),
        (event("Node", "e2"), 403, "Node e2"),
        (event("Secret", "theirs-secret"), 403, "Secret theirs-secret"),
        (Body::KubernetesEvent(KubernetesEvent::default()), 400, "KubernetesEvent"),
        (Body::ObjectUpsert(ObjectUpsert::default()), 501, "ObjectUpsert"),
        (Body::ObjectTombstone(ObjectTombstone::default()), 501, "ObjectTombstone"),
        (Body::UserMessage(UserMessage { topic: "a\nb".into(), ..UserMessage::default() }), 501, "a\u{fffd}b"),
        (query(resource::secrets(), "ns", "theirs-secret"), 403, "v1/secrets ns/theirs-secret"),
        (query(resource::secrets(), "kube-system", "mine-secret"), 403, "kube-system/mine-secret"),
        (query(resource::config_maps(), "ns", "mine-secret"), 403, "v1/configmaps ns/mine-secret"),
        (query(resource::pods(), "ns", "theirs"), 403, "v1/pods ns/theirs"),
        (query(resource::nodes(), "", "e2"), 403, "v1/nodes e2"),
        (query(resource::service_accounts(), "ns", "app"), 403, "v1/serviceaccounts ns/app"),
        (query(other, "ns", "mine"), 403, "v1/roles ns/mine"),
        (Body::ObjectQuery(ObjectQuery::default()), 400, "unnamed"),
        (token("theirs", "app", &[]), 403, "not bound to node e1"),
        (token("mine", "admin", &[]), 403, "runs as service account app"),
        (token("mine", "app", &["https://cloud.example"]), 403, "https://cloud.example"),
        (token("../secrets/x", "app", &[]), 400, "is not the name of a pod"),
        (Body::RegisterNode(RegisterNode { node_json: "not JSON".into() }), 400, "the Node is not JSON"),
        (Body::CreateMirrorPod(CreateMirrorPod::default()), 400, "the mirror pod is not JSON"),
        (mirror("web-e2", "e2"), 403, "not bound to node e1"),
        (mirror("web", "e1"), 403, "does not end with -e1"),
        (Body::CreateMirrorPod(CreateMirrorPod { pod_json: "{}".into() }), 403, "no pods but mirrors"),
        (Body::SignCertificate(SignCertificate::default()), 501, "SignCertificate"),
        (Body::ApiRequest(ApiRequest { method: "GET".into(), ..ApiRequest::default() }), 501, "ApiRequest"),
        // Without a Router.
        (
            Body::ServiceCall(ServiceCall { rule: Some(ObjectKey::new("ns", "orders")), ..ServiceCall::default() }),
            501,
            "what=ns/orders",
        ),
        (Body::CallReply(CallReply::default()), 501, "CallReply"),
    ]
}

fn mirror(name: &str, node: &str) -> Body {
    let annotations = json!({"kubernetes.io/config.mirror": "hash"});
    let pod = json!({"metadata": {"namespace": "ns", "name": name, "annotations": annotations},
        "spec": {"nodeName": node}});
    Body::CreateMirrorPod(CreateMirrorPod { pod_json: pod.to_string().into() })
}

/// What its own node sends is done, without a line.
fn allowed() -> Vec<Body> {
    vec![
        status(resource::pods(), "ns", "mine", "mine"),
        status(resource::nodes(), "", "e1", ""),
        ended("mine"),
        event("Pod", "mine"),
        Body::GapMarker(GapMarker::default()),
        query(resource::secrets(), "ns", "mine-secret"),
        query(resource::pods(), "ns", "mine"),
        token("mine", "app", &[]),
        Body::RegisterNode(RegisterNode { node_json: "{}".into() }),
    ]
}

/// P-OWN-OBJECTS
#[actix_rt::test]
async fn every_message_of_a_node_is_checked_and_each_refusal_is_audited() {
    let (writes, mut written) = mpsc::channel(100);
    let client = cluster(writes).await;
    let (rechecks, mut rechecked) = mpsc::channel(10);
    let audit = Heard::default();
    let _here = audit.here();
    let system = System::builder("cloud")
        .component(move |ports: &Ports| EdgeController::new(client.clone(), ports))
        .component(move |_: &Ports| Hub(rechecks.clone()))
        .asks::<ApplyFromNode>()
        .asks::<CallFromNode>()
        .asks::<QueryDesired>()
        .start()
        .unwrap();
    tokio::time::timeout(SOON, rechecked.recv()).await.unwrap().unwrap();
    let desired: Port<QueryDesired> = system.port();
    let known = async {
        while !desired
            .ask(QueryDesired { node: "e1".into(), waited_ms: 60_000 }, SOON)
            .await
            .unwrap()
            .kinds
            .iter()
            .any(|kind| kind.complete)
        {}
    };
    tokio::time::timeout(SOON, known).await.unwrap();

    let (apply, call): (Port<ApplyFromNode>, Port<CallFromNode>) = (system.port(), system.port());
    let answer = async |body: Body| -> u32 {
        let class = body.class();
        let envelope = Some(Envelope::new("test", 0, body));
        if class == kubeedge_proto::v1::TrafficClass::Call {
            let reply = call.ask(CallFromNode { node: "e1".into(), epoch: 1, envelope }, SOON).await.unwrap();
            match reply.result {
                Some(call_reply::Result::Error(error)) => error.code,
                _ => 0,
            }
        } else {
            apply.ask(ApplyFromNode { node: "e1".into(), epoch: 1, envelope }, SOON).await.unwrap().code
        }
    };
    for (body, code, line) in refused() {
        audit.take();
        let shown = format!("{body:?}");
        assert_eq!(answer(body).await, code, "{shown}");
        let lines = audit.take();
        assert!(lines.len() == 1 && lines[0].contains(line) && lines[0].contains("who=e1"), "{shown}: {lines:?}");
    }
    assert!(written.try_recv().is_err(), "something was written");
    for body in allowed() {
        let shown = format!("{body:?}");
        assert_eq!(answer(body).await, 0, "{shown}");
        assert_eq!(audit.take(), Vec::<String>::new(), "{shown}");
    }
    assert!(written.try_recv().is_ok());
    // The Node is made, without what it may not say of itself.
    let label = "node-restriction.kubernetes.io/zone";
    let node = json!({"metadata": {"labels": {label: "vault", "site": "a"}}}).to_string();
    assert_eq!(answer(Body::RegisterNode(RegisterNode { node_json: node.into() })).await, 0);
    let lines = audit.take();
    assert!(lines.len() == 1 && lines[0].contains(&format!("what=labels {label} ")), "{lines:?}");
    system.stop(SOON).await;
}
