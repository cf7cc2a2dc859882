//! What goes on to the cloud: MetaServer, a line in memory, DynamicController, and the project's own API server.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use actix::{Actor, Handler, ResponseFuture};
use kubeedge_actors::{
    apiserver::{Config, Handle, Server},
    audit::testing::Heard,
    dynamiccontroller::{DynamicController, DynamicControllerConfig},
    grants::{Grant, Grants},
    system::{Component, Context, Contract, Stage, Topic},
};
use kubeedge_proto::digest::project;
use prost::Message as _;

use super::*;

/// Stands for both hubs and the link between them: what crosses it is bytes.
pub(super) struct Line {
    to: Option<Port<ApiRequestFromNode>>,
    up: Arc<AtomicBool>,
    changed: Topic<LinkStateChanged>,
}

/// Draws or cuts it.
#[derive(actix::Message)]
#[rtype(result = "()")]
pub(super) struct Draw(bool);

impl Actor for Line {
    type Context = Context<Self>;
}

impl Component for Line {
    const NAME: &'static str = "edgehub";
    const STAGE: Stage = Stage::Link;

    fn contract(contract: &mut Contract<Self>) {
        contract.answers::<CallCloud>();
        contract.answers::<Draw>();
        contract.announces::<LinkStateChanged>();
    }
}

impl Handler<Draw> for Line {
    type Result = ResponseFuture<()>;

    fn handle(&mut self, Draw(connected): Draw, _: &mut Context<Self>) -> Self::Result {
        self.up.store(connected, Ordering::Relaxed);
        let changed = self.changed.clone();
        Box::pin(async move { changed.announce(LinkStateChanged { connected, reason: String::new() }).await })
    }
}

impl Handler<CallCloud> for Line {
    type Result = ResponseFuture<CallReply>;

    fn handle(&mut self, CallCloud { envelope }: CallCloud, _: &mut Context<Self>) -> Self::Result {
        let up = self.up.load(Ordering::Relaxed);
        let to = self.to.clone();
        Box::pin(async move {
            let frame = envelope.unwrap().encode_to_vec();
            match (up, Envelope::decode(frame.as_slice()).unwrap().body) {
                (false, _) => CallReply::error(503, "Offline", "the link to the cloud is down"),
                (true, Some(envelope::Body::ApiRequest(request))) => match to {
                    Some(to) => {
                        let node = "edge-1".to_owned();
                        to.ask(ApiRequestFromNode { node, request: Some(request) }, SOON).await.unwrap()
                    }
                    None => CallReply::error(501, "Unsupported", "this cloud runs no DynamicController"),
                },
                (true, _) => CallReply::error(404, "NotFound", "no such object"),
            }
        })
    }
}

/// Cloud and edge.
struct Site {
    api: Handle,
    cloud: System,
    edge: Edge,
}

impl Site {
    async fn start(verbs: &[&str]) -> Self {
        let api = Server::start(Config::in_memory()).await.unwrap();
        let url = format!("http://{}", api.address());
        let mut admin = kube::Config::new(url.parse().unwrap());
        admin.auth_info.token = Some("admin".to_owned().into());
        let all = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let grant = Grant {
            nodes: all(&["edge-1"]),
            namespaces: all(&["shop"]),
            api_groups: all(&[""]),
            resources: all(&["configmaps", "pods"]),
            verbs: all(verbs),
            resource_names: vec![],
        };
        let config = DynamicControllerConfig {
            grants: Arc::new(Grants::new(vec![grant]).unwrap()),
            client: KubeClient::try_from(admin).unwrap(),
            without_credentials: KubeClient::try_from(kube::Config::new(url.parse().unwrap())).unwrap(),
        };
        let cloud = System::builder("cloud")
            .component(move |ports: &Ports| DynamicController::new(config.clone(), ports))
            .asks::<ApiRequestFromNode>()
            .start()
            .unwrap();
        let edge = Self::edge(Some(cloud.port())).await;
        let site = Self { api, cloud, edge };
        let namespace = json!({"metadata": {"name": "shop"}});
        assert_eq!(site.send(Some("admin"), "POST", "/api/v1/namespaces", Some(namespace)).await.0, 201);
        site
    }

    async fn edge(to: Option<Port<ApiRequestFromNode>>) -> Edge {
        let up = Arc::new(AtomicBool::new(false));
        let line = move |ports: &Ports| Line { to: to.clone(), up: up.clone(), changed: ports.topic() };
        let more = |builder: SystemBuilder| builder.component(line).asks::<Draw>();
        let edge = Edge::with(Store::in_memory(), free_address(), more).await;
        edge.complete().await;
        draw(&edge, true).await;
        edge
    }

    /// By MetaServer. Status and body.
    async fn send(&self, token: Option<&str>, method: &str, path: &str, body: Option<Value>) -> (u16, Value) {
        let media = if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
        send(&self.edge, token, method, path, media, body).await
    }

    /// The object as EdgeController would send it.
    async fn tell_edge(&self, type_: ResourceType, path: &str) {
        let answer = Client::new(self.api.address(), "admin").send("GET", path, &[], None).await;
        let mut value: Value = serde_json::from_str(&answer.text).unwrap();
        let text = |pointer: &str| value.pointer(pointer).unwrap().as_str().unwrap().to_owned();
        let (name, uid, version) = (text("/metadata/name"), text("/metadata/uid"), text("/metadata/resourceVersion"));
        project(&mut value);
        let object = KubeObject {
            r#type: Some(type_),
            key: Some(ObjectKey::new("shop", name)),
            uid,
            resource_version: version,
            projection_hash: projection_hash(&value),
            json: value.to_string().into(),
        };
        self.edge.put(object).await;
    }

    async fn stop(self) {
        self.edge.stop().await;
        self.cloud.stop(SOON).await;
        self.api.stop().await;
    }
}

async fn draw(edge: &Edge, up: bool) {
    let port: Port<Draw> = edge.system.port();
    port.ask(Draw(up), SOON).await.unwrap();
    edge.heard().await;
}

async fn send(
    edge: &Edge,
    token: Option<&str>,
    method: &str,
    path: &str,
    media: &str,
    body: Option<Value>,
) -> (u16, Value) {
    let body = body.map(|body| body.to_string()).unwrap_or_default();
    let token = token.map_or_else(String::new, |token| format!("Authorization: Bearer {token}\r\n"));
    let answer = raw(
        edge.address,
        &format!(
            "{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nContent-Type: {media}\r\n{token}\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        ),
    )
    .await;
    let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
    let body = answer.split_once("\r\n\r\n").unwrap().1;
    (status, serde_json::from_str(body).unwrap_or_else(|_| body.into()))
}

fn soup(map: &Value, soup: &str) -> Value {
    let mut map = map.clone();
    map["data"] = json!({"soup": soup});
    map
}

#[actix_rt::test]
async fn a_granted_write_is_made_and_what_is_not_granted_is_refused_and_audited() {
    let heard = Heard::default();
    let _here = heard.here();
    let site = Site::start(&["get", "create", "update", "patch", "delete"]).await;
    let (status, made) = site.send(None, "POST", MAPS, Some(soup(&json!({"metadata": {"name": "menu"}}), "1"))).await;
    assert_eq!((status, &made["data"]["soup"]), (201, &json!("1")), "{made}");
    let path = format!("{MAPS}/menu");
    let (status, shown) = site.send(None, "GET", &path, None).await;
    assert_eq!((status, &shown), (200, &made), "the edge does not hold it");
    let (status, patched) = site.send(None, "PATCH", &path, Some(json!({"data": {"soup": "2"}}))).await;
    assert_eq!((status, &patched["data"]["soup"]), (200, &json!("2")));
    // Who read it before may not write over that, and who has the answer may.
    assert_eq!(site.send(None, "PUT", &path, Some(soup(&made, "3"))).await.0, 409);
    assert_eq!(site.send(None, "PUT", &path, Some(soup(&patched, "4"))).await.0, 200);
    assert_eq!(heard.count(), 0, "{:?}", heard.take());

    for (method, path) in [
        ("GET", "/api/v1/namespaces/shop/secrets?limit=1"),
        ("GET", "/api/v1/namespaces"),
        ("POST", "/api/v1/namespaces/other/configmaps"),
        ("DELETE", "/api/v1/nodes/edge-1"),
        ("DELETE", MAPS),
    ] {
        let (status, said) = site.send(None, method, path, (method == "POST").then(|| json!({}))).await;
        match path.contains("secrets") {
            // A list of what is held is the node's own.
            true => assert_eq!((status, &said["items"]), (200, &json!([]))),
            false => assert_eq!((status, &said["reason"]), (403, &json!("Forbidden")), "{method} {path}: {said}"),
        }
    }
    let lines = heard.take();
    assert_eq!(lines.len(), 4, "{lines:?}");
    assert!(lines.iter().all(|line| line.contains("edge-1") && line.contains("ApiRequest refused")), "{lines:?}");
    assert_eq!(site.send(None, "GET", "/api/v1/namespaces/shop/secrets/x", None).await.0, 404, "it is not the node's");

    // A token's rights are the API server's to say, and cloudcore's own are not used with it.
    let (status, said) = site.send(Some("wrong"), "GET", &path, None).await;
    assert_eq!(status, 401, "{said}");
    let (status, namespaces) = site.send(Some("admin"), "GET", "/api/v1/namespaces", None).await;
    assert_eq!((status, &namespaces["kind"]), (200, &json!("NamespaceList")));
    assert_eq!(site.send(None, "DELETE", &path, None).await.0, 200);
    assert_eq!(site.send(None, "GET", &path, None).await.0, 404);
    site.stop().await;
}

/// A status that the node is not told of is no conflict, and a change is one. `P-LOCAL-VERSION`
#[actix_rt::test]
async fn a_write_by_the_nodes_own_version_conflicts_only_when_what_the_node_was_told_has_changed() {
    let site = Site::start(&["get", "create", "update", "patch"]).await;
    let spec = json!({"nodeName": "edge-1", "containers": [{"name": "main", "image": "shop:1"}]});
    let pod = json!({"metadata": {"name": "web"}, "spec": spec});
    let (status, said) = site.send(Some("admin"), "POST", PODS, Some(pod)).await;
    assert_eq!(status, 201, "{said}");
    let path = format!("{PODS}/web");
    site.tell_edge(resource::pods(), &path).await;
    let local = site.edge.read(&path).await;
    let written = json!({"status": {"phase": "Running"}});
    let (status, said) = site.send(Some("admin"), "PATCH", &format!("{path}/status"), Some(written)).await;
    assert_eq!(status, 200, "{said}");
    let label = |version: &str, day: &str| json!({"metadata": {"resourceVersion": version, "labels": {"day": day}}});
    let (status, said) = site.send(None, "PATCH", &path, Some(label(&version(&local), "monday"))).await;
    assert_eq!((status, &said["metadata"]["labels"]["day"]), (200, &json!("monday")), "{said}");
    // The node was not told of that yet: its version stands for what was before.
    let (status, said) = site.send(None, "PATCH", &path, Some(label(&version(&local), "tuesday"))).await;
    assert_eq!((status, &said["reason"]), (409, &json!("Conflict")), "{said}");
    site.tell_edge(resource::pods(), &path).await;
    assert_eq!(site.send(None, "PATCH", &path, Some(label(&version(&local), "tuesday"))).await.0, 409, "an old one");
    let local = site.edge.read(&path).await;
    assert_eq!(local["metadata"]["labels"]["day"], "monday");
    assert_eq!(site.send(None, "PATCH", &path, Some(label(&version(&local), "tuesday"))).await.0, 200);
    site.stop().await;
}

#[actix_rt::test]
async fn what_cannot_be_passed_on_is_refused_in_kubernetes_words() {
    let site = Site::start(&["*"]).await;
    let services = "/api/v1/services";
    let (status, said) = site.send(None, "GET", services, None).await;
    assert_eq!((status, &said["kind"]), (200, &json!("ServiceList")), "any node may: {said}");
    let openapi = site.send(None, "GET", "/openapi/v3", None).await;
    assert!(openapi.0 == 200 && openapi.1["paths"].is_object());
    let (_, groups) = site.send(None, "GET", "/apis", None).await;
    let names: Vec<&str> = groups["groups"].as_array().unwrap().iter().filter_map(|one| one["name"].as_str()).collect();
    assert!(names.contains(&"apps") && names.contains(&"rules.kubeedge.io"), "the cloud's and the node's: {names:?}");
    for (method, path, code) in [
        ("GET", "/api/v1/services?watch=1", 501),
        ("POST", "/api/v1/namespaces/shop/serviceaccounts/default/token", 501),
        ("GET", "/api/v1/namespaces/shop/services/..%2fsecrets", 404),
        ("GET", "/api/v1/namespaces/shop/services/a%3fb", 400),
        ("POST", &format!("{MAPS}/menu"), 405),
        ("BREW", services, 405),
    ] {
        let (status, said) = site.send(None, method, path, None).await;
        assert_eq!(status, code, "{method} {path}: {said}");
    }
    for (head, code) in [
        ("Impersonate-User: system:admin", 400),
        ("Authorization: Basic YTpi", 401),
        ("Authorization: Bearer a\r\nAuthorization: Bearer b", 400),
        ("Content-Length: 99999999", 413),
        ("Accept: text/csv", 406),
    ] {
        let method = if head.starts_with("Content-Length") { "POST" } else { "GET" };
        let path = if method == "POST" { MAPS } else { services };
        let request = format!("{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n{head}\r\n\r\n");
        let answer = raw(site.edge.address, &request).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {code} ")), "{head}: {answer}");
    }
    let (status, _) = send(&site.edge, None, "PATCH", &format!("{MAPS}/a"), "text/plain", Some(json!({}))).await;
    assert_eq!(status, 415);

    draw(&site.edge, false).await;
    for (method, path) in [("GET", services), ("POST", MAPS), ("GET", "/openapi/v2")] {
        let (status, said) = site.send(None, method, path, None).await;
        assert_eq!((status, &said["details"]["retryAfterSeconds"]), (503, &json!(1)), "{said}");
        assert!(said["message"].as_str().unwrap().contains("offline"), "{said}");
    }
    assert_eq!(site.edge.read("/apis").await["groups"].as_array().unwrap().len(), 2, "what the node holds");
    site.stop().await;
}

#[actix_rt::test]
async fn a_frame_that_is_cut_or_of_another_edge_does_nothing() {
    let site = Site::start(&["get"]).await;
    let ask = async |request: ApiRequest| {
        let port: Port<ApiRequestFromNode> = site.cloud.port();
        let message = ApiRequestFromNode { node: "edge-1".into(), request: Some(request) };
        port.ask(message, SOON).await.unwrap().result.unwrap()
    };
    let headers = BTreeMap::from([("accept", "application/json"), ("content-type", "application/json")]);
    let whole = ApiRequest {
        method: "POST".into(),
        path_and_query: MAPS.into(),
        headers: headers.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect(),
        body: json!({"metadata": {"name": "menu"}}).to_string().into(),
        seen: None,
    };
    let frame = whole.encode_to_vec();
    for end in 0..=frame.len() {
        let Ok(cut) = ApiRequest::decode(&frame[..end]) else { continue };
        match ask(cut).await {
            call_reply::Result::Error(error) => assert!((400..500).contains(&error.code), "{error:?}"),
            other => panic!("{end}: {other:?}"),
        }
    }
    let other = ApiRequest { headers: [("host".into(), "evil".into())].into(), ..whole };
    assert!(matches!(ask(other).await, call_reply::Result::Error(error) if error.code == 400));
    site.stop().await;
}

#[actix_rt::test]
async fn a_cloud_without_dynamic_controller_leaves_the_node_with_what_it_holds() {
    let edge = Site::edge(None).await;
    edge.put(map("menu", "1", 5)).await;
    assert_eq!(edge.read(&format!("{MAPS}/menu")).await["data"]["version"], "5");
    let get = async |path: &str| send(&edge, None, "GET", path, "application/json", None).await;
    assert_eq!(get(&format!("{MAPS}/other")).await.0, 404);
    assert_eq!(get("/apis").await.1["groups"].as_array().unwrap().len(), 2);
    let (status, said) = send(&edge, None, "POST", MAPS, "application/json", Some(json!({}))).await;
    assert_eq!(status, 501);
    assert!(said["message"].as_str().unwrap().contains("modules.dynamicController.enable"), "{said}");
    edge.stop().await;
}
