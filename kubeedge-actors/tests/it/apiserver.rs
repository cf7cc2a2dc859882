//! The API server over HTTP, where the recordings do not look: consistency, restarts, bounds, tokens, controllers.

use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use kubeedge_actors::apiserver::{Config, Handle, Listen, Server};
use ring::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::golden::client::{Answer, Client};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const PODS: &str = "/api/v1/namespaces/default/pods";
/// Longest time for what a controller brings about.
const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) struct Api {
    pub(crate) server: Handle,
    client: Client,
}

impl Api {
    pub(crate) async fn start(config: Config) -> Self {
        let server = Server::start(config).await.unwrap();
        let client = Client::new(server.address(), "admin");
        Self { server, client }
    }

    pub(crate) async fn send(&self, method: &str, path: &str, media: &str, body: Value) -> Answer {
        let body = (!body.is_null()).then(|| body.to_string());
        self.client.send(method, path, &[("Content-Type", media)], body).await
    }

    pub(crate) async fn get(&self, path: &str) -> Value {
        let answer = self.client.send("GET", path, &[], None).await;
        serde_json::from_str(&answer.text).unwrap()
    }

    pub(crate) async fn post(&self, path: &str, body: Value) -> Value {
        let answer = self.send("POST", path, "application/json", body).await;
        assert_eq!(answer.status, 201, "{path}: {}", answer.text);
        serde_json::from_str(&answer.text).unwrap()
    }

    pub(crate) async fn patch(&self, path: &str, body: Value) -> Value {
        let answer = self.send("PATCH", path, "application/merge-patch+json", body).await;
        assert_eq!(answer.status, 200, "{path}: {}", answer.text);
        serde_json::from_str(&answer.text).unwrap()
    }

    pub(crate) async fn delete(&self, path: &str) -> Answer {
        self.client.send("DELETE", path, &[], None).await
    }

    async fn map(&self, name: &str, value: &str) -> Value {
        self.post(MAPS, json!({"metadata": {"name": name}, "data": {"a": value}})).await
    }

    /// The events of a watch that ends after a second.
    async fn watch(&self, query: &str) -> Vec<Value> {
        let path = format!("{MAPS}?watch=1&timeoutSeconds=1&{query}");
        let answer = self.client.send("GET", &path, &[], None).await;
        answer.text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Follows an object until it is as wanted; `None` is an object that is not there.
    pub(crate) async fn until(&self, path: &str, wanted: impl Fn(Option<&Value>) -> bool) {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let answer = self.client.send("GET", path, &[], None).await;
            let object: Value = serde_json::from_str(&answer.text).unwrap();
            if wanted((answer.status == 200).then_some(&object)) {
                return;
            }
            assert!(tokio::time::Instant::now() < deadline, "{path} stays {object}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

fn version(object: &Value) -> &str {
    object["metadata"]["resourceVersion"].as_str().unwrap()
}

fn names(list: &Value) -> Vec<&str> {
    list["items"].as_array().unwrap().iter().map(|item| item["metadata"]["name"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn the_pages_of_a_list_are_one_moment_whatever_happens_between_them() {
    let api = Api::start(Config::in_memory()).await;
    for name in ["a", "c", "e", "g"] {
        api.map(name, "1").await;
    }
    let first = api.get(&format!("{MAPS}?limit=2")).await;
    assert_eq!(names(&first), ["a", "c"]);
    api.map("d", "1").await;
    assert_eq!(api.delete(&format!("{MAPS}/e")).await.status, 200);
    api.patch(&format!("{MAPS}/g"), json!({"data": {"a": "2"}})).await;
    let token = first["metadata"]["continue"].as_str().unwrap();
    let second = api.get(&format!("{MAPS}?limit=9&continue={token}")).await;
    assert_eq!(names(&second), ["e", "g", "kube-root-ca.crt"]);
    assert_eq!(second["items"][1]["data"]["a"], "1");
    assert_eq!(second["metadata"]["resourceVersion"], first["metadata"]["resourceVersion"]);
    let exact = format!("{MAPS}?resourceVersion={}&resourceVersionMatch=Exact", version(&first));
    assert_eq!(names(&api.get(&exact).await), ["a", "c", "e", "g", "kube-root-ca.crt"]);
    api.server.stop().await;
}

#[tokio::test]
async fn a_restart_keeps_objects_and_versions_and_tells_old_watches() {
    let config = Config::in_memory();
    let api = Api::start(config.clone()).await;
    let old = version(&api.map("old", "1").await).to_owned();
    let kept = api.map("kept", "1").await;
    let deleted = api.delete(&format!("{MAPS}/old")).await;
    assert_eq!(deleted.status, 200);
    // A later change of another kind does not make a watch of this one too old.
    let list = api.get(MAPS).await;
    api.post("/api/v1/namespaces/default/secrets", json!({"metadata": {"name": "s"}})).await;
    let before = api.server.resource_version();
    // The same port: the endpoint of the API server's own Service stays as it is.
    let listen = Listen::InsecureLoopback { port: api.server.address().port() };
    api.server.stop().await;

    let api = Api::start(Config { listen, ..config }).await;
    assert_eq!(api.server.resource_version(), before);
    assert_eq!(api.get(&format!("{MAPS}/kept")).await, kept);
    let next: u64 = version(&api.map("next", "1").await).parse().unwrap();
    assert!(next > before);
    let resumed = api.watch(&format!("resourceVersion={}", version(&list))).await;
    assert_eq!(resumed.len(), 1);
    assert_eq!(resumed[0]["object"]["metadata"]["name"], "next");
    let refused = api.watch(&format!("resourceVersion={old}")).await;
    assert_eq!((&refused[0]["type"], &refused[0]["object"]["code"]), (&json!("ERROR"), &json!(410)));
    assert_eq!(refused[0]["object"]["reason"], "Expired");
    api.server.stop().await;
}

#[tokio::test]
async fn the_present_of_a_watch_ends_with_a_bookmark_that_says_so() {
    let api = Api::start(Config::in_memory()).await;
    api.map("one", "1").await;
    let query = "sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true";
    let events = api.watch(query).await;
    let kinds: Vec<&str> = events.iter().map(|event| event["type"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["ADDED", "ADDED", "BOOKMARK"]);
    assert_eq!(events[2]["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
    assert_eq!(version(&events[2]["object"]), api.server.resource_version().to_string());
    api.server.stop().await;
}

#[tokio::test]
async fn of_many_writers_with_one_version_one_wins() {
    let api = Api::start(Config::in_memory()).await;
    let object = api.map("race", "0").await;
    let writes = (1..=16).map(|number| {
        let mut object = object.clone();
        object["data"]["a"] = number.to_string().into();
        let api = &api;
        async move { api.send("PUT", &format!("{MAPS}/race"), "application/json", object).await.status }
    });
    let mut statuses = futures_util::future::join_all(writes).await;
    statuses.sort_unstable();
    assert_eq!(statuses[0], 200);
    assert!(statuses[1..].iter().all(|status| *status == 409), "{statuses:?}");
    api.server.stop().await;
}

#[tokio::test]
async fn bounds_are_answered_not_exceeded() {
    let api = Api::start(Config { max_watches: 1, ..Config::in_memory() }).await;
    let large = json!({"metadata": {"name": "large"}, "data": {"a": "x".repeat(3 << 20)}});
    let answer = api.send("POST", MAPS, "application/json", large).await;
    assert_eq!(answer.status, 413, "{}", answer.text);
    let path = format!("{MAPS}?watch=1&timeoutSeconds=2&resourceVersion=0");
    let mut first = tokio::net::TcpStream::connect(api.server.address()).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer admin\r\n\r\n");
    first.write_all(request.as_bytes()).await.unwrap();
    let mut byte = [0];
    first.read_exact(&mut byte).await.unwrap();
    let second = api.client.send("GET", &path, &[], None).await;
    assert_eq!((second.status, second.headers.get("retry-after").map(String::as_str)), (429, Some("1")));
    // The first is still open: a stop ends it and does not wait, and its end is written.
    let begun = std::time::Instant::now();
    api.server.stop().await;
    let took = begun.elapsed();
    println!("a stop with an open watch took {took:?}");
    assert!(took < Duration::from_millis(900), "{took:?}");
    let mut rest = Vec::new();
    first.read_to_end(&mut rest).await.unwrap();
    assert!(rest.ends_with(b"0\r\n\r\n"), "the end of the watch: {}", String::from_utf8_lossy(&rest));
}

#[tokio::test]
async fn a_token_is_good_while_its_pod_exists_and_opens_nothing_by_itself() {
    let api = Api::start(Config::in_memory()).await;
    let spec = json!({"containers": [{"name": "c", "image": "i"}], "schedulerName": "none"});
    let pod = api.post(PODS, json!({"metadata": {"name": "p"}, "spec": spec})).await;
    let bound = json!({"kind": "Pod", "apiVersion": "v1", "name": "p", "uid": pod["metadata"]["uid"]});
    let path = "/api/v1/namespaces/default/serviceaccounts/default/token";
    let answer = api.post(path, json!({"spec": {"expirationSeconds": 600, "boundObjectRef": bound}})).await;
    let token = answer["status"]["token"].as_str().unwrap().to_owned();
    let reviews = "/apis/authentication.k8s.io/v1/tokenreviews";
    let review = || api.post(reviews, json!({"spec": {"token": token}}));
    let status = review().await["status"].clone();
    assert_eq!(status["user"]["username"], "system:serviceaccount:default:default", "{status}");
    let stranger = Client::new(api.server.address(), &token);
    assert_eq!(stranger.send("GET", "/api/v1", &[], None).await.status, 200);
    assert_eq!(stranger.send("GET", PODS, &[], None).await.status, 403);
    assert_eq!(api.delete(&format!("{PODS}/p")).await.status, 200);
    assert_eq!(review().await["status"]["authenticated"], false);
    assert_eq!(stranger.send("GET", "/api/v1", &[], None).await.status, 401);
    let short = api.send("POST", path, "application/json", json!({"spec": {"expirationSeconds": 5}})).await;
    assert_eq!(short.status, 422, "{}", short.text);
    api.server.stop().await;
}

#[tokio::test]
async fn a_token_for_another_audience_does_not_open_this_server_and_is_known_to_those_it_is_for() {
    let api = Api::start(Config::in_memory()).await;
    let path = "/api/v1/namespaces/default/serviceaccounts/default/token";
    let token = async |audiences: &[&str]| {
        let answer = api.post(path, json!({"spec": {"audiences": audiences}})).await;
        assert_eq!(answer["spec"]["audiences"], json!(audiences), "any audience may be asked for");
        answer["status"]["token"].as_str().unwrap().to_owned()
    };
    let own = "https://kubernetes.default.svc";
    let (vault, both) = (token(&["vault"]).await, token(&["vault", own]).await);
    for (token, code) in [(&vault, 401), (&both, 200)] {
        assert_eq!(Client::new(api.server.address(), token).send("GET", "/api/v1", &[], None).await.status, code);
    }
    let review = async |token: &str, audiences: &[&str]| {
        let spec = json!({"spec": {"token": token, "audiences": audiences}});
        let status = api.post("/apis/authentication.k8s.io/v1/tokenreviews", spec).await["status"].clone();
        (status["authenticated"] == true, status["audiences"].clone())
    };
    assert_eq!(review(&vault, &[]).await, (false, Value::Null), "no audience means this server");
    assert_eq!(review(&vault, &["vault", "other"]).await, (true, json!(["vault"])), "those of both sides");
    assert_eq!(review(&vault, &["other"]).await, (false, Value::Null));
    assert_eq!(review(&both, &[]).await, (true, json!([own])));
    assert_eq!(review("admin", &["vault"]).await, (false, Value::Null), "the administrator's is for this server");
    assert_eq!(review("admin", &[own, "vault"]).await, (true, json!([own])));
    api.server.stop().await;
}

#[cfg(feature = "test-kit")]
#[tokio::test]
async fn who_is_not_known_or_not_allowed_has_a_line_in_the_audit_log() {
    let heard = kubeedge_actors::audit::testing::Heard::everywhere();
    let api = Api::start(Config::in_memory()).await;
    let path = "/api/v1/namespaces/default/serviceaccounts/default/token";
    let token = api.post(path, json!({"spec": {}})).await["status"]["token"].as_str().unwrap().to_owned();
    // A path that no other test asks for.
    let path = "/api/v1/namespaces/of-the-audit-log/configmaps";
    for (token, code, said) in [
        ("nobodys-token", 401, "Unauthorized"),
        (&*token, 403, "User \"system:serviceaccount:default:default\" cannot list resource \"configmaps\""),
        ("admin", 200, ""),
    ] {
        let before = heard.count();
        let answer = Client::new(api.server.address(), token).send("GET", path, &[], None).await;
        assert_eq!(answer.status, code, "{}", answer.text);
        let lines = heard.after(before, path);
        match code {
            200 => assert_eq!(lines, Vec::<String>::new()),
            _ => {
                assert!(lines.len() == 1 && lines[0].contains(said) && lines[0].contains("who=127.0.0.1:"), "{lines:?}")
            }
        }
        assert!(lines.iter().all(|line| !line.contains(token)), "{lines:?}");
    }
    api.server.stop().await;
}

#[tokio::test]
async fn requests_are_counted_by_verb_and_code_for_the_administrator() {
    let api = Api::start(Config::in_memory()).await;
    api.map("a", "1").await;
    api.get(MAPS).await;
    api.watch("resourceVersion=0").await;
    api.delete(&format!("{MAPS}/a")).await;
    api.delete(&format!("{MAPS}/a")).await;
    let page = api.client.send("GET", "/metrics", &[], None).await;
    let counts: Vec<&str> = page.text.lines().filter(|line| !line.starts_with('#')).collect();
    for expected in [
        "{verb=\"DELETE\",code=\"200\"} 1",
        "{verb=\"DELETE\",code=\"404\"} 1",
        "{verb=\"LIST\",code=\"200\"} 1",
        "{verb=\"POST\",code=\"201\"} 1",
        "{verb=\"WATCH\",code=\"200\"} 1",
    ] {
        let line = format!("apiserver_request_total{expected}");
        assert!(counts.contains(&&*line), "{line} is not in {counts:?}");
    }
    let path = "/api/v1/namespaces/default/serviceaccounts/default/token";
    let token = api.post(path, json!({"spec": {}})).await["status"]["token"].as_str().unwrap().to_owned();
    for (token, code) in [("nobodys-token", 401), (&*token, 404)] {
        let answer = Client::new(api.server.address(), token).send("GET", "/metrics", &[], None).await;
        assert_eq!(answer.status, code, "{}", answer.text);
    }
    api.server.stop().await;
}

#[tokio::test]
async fn who_reads_the_published_keys_verifies_a_token_by_itself() {
    let api = Api::start(Config::in_memory()).await;
    let path = "/api/v1/namespaces/default/serviceaccounts/default/token";
    let token = api.post(path, json!({"spec": {}})).await["status"]["token"].as_str().unwrap().to_owned();
    let (signed, signature) = token.rsplit_once('.').unwrap();
    let bytes = |text: &str| URL_SAFE_NO_PAD.decode(text).unwrap();
    let parts: Vec<Value> = signed.split('.').map(|part| serde_json::from_slice(&bytes(part)).unwrap()).collect();
    let (header, claims) = (&parts[0], &parts[1]);

    let configuration = api.get("/.well-known/openid-configuration").await;
    assert_eq!(configuration["issuer"], claims["iss"]);
    assert_eq!(configuration["id_token_signing_alg_values_supported"], json!([header["alg"]]));
    let keys = format!("https://{}", api.server.address());
    let keys = configuration["jwks_uri"].as_str().and_then(|uri| uri.strip_prefix(&keys)).unwrap();
    assert_eq!(keys, "/openid/v1/jwks");
    let published = api.client.send("GET", keys, &[], None).await;
    assert_eq!((published.status, published.headers["content-type"].as_str()), (200, "application/jwk-set+json"));
    let published: Value = serde_json::from_str(&published.text).unwrap();
    let key = published["keys"].as_array().unwrap().iter().find(|key| key["kid"] == header["kid"]).unwrap();
    let point = [vec![4], bytes(key["x"].as_str().unwrap()), bytes(key["y"].as_str().unwrap())].concat();
    let key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point);
    key.verify(signed.as_bytes(), &bytes(signature)).unwrap();
    assert!(key.verify(&signed.as_bytes()[1..], &bytes(signature)).is_err());
    api.server.stop().await;
}

#[tokio::test]
async fn server_side_apply_is_refused_with_what_to_send_and_changes_nothing() {
    let api = Api::start(Config::in_memory()).await;
    let before = api.map("a", "1").await;
    let config = json!({"apiVersion": "v1", "kind": "ConfigMap", "data": {"a": "2"}});
    for media in ["application/apply-patch+yaml", "application/apply-patch+cbor"] {
        for name in ["a", "new"] {
            let path = format!("{MAPS}/{name}?fieldManager=test");
            let answer = api.send("PATCH", &path, media, config.clone()).await;
            let status: Value = serde_json::from_str(&answer.text).unwrap();
            let said = (answer.status, &status["code"], &status["reason"]);
            assert_eq!(said, (415, &json!(415), &json!("UnsupportedMediaType")), "{media}: {status}");
            let message = status["message"].as_str().unwrap();
            for part in ["server-side apply is not served", "strategic merge patch", "leave out --server-side"] {
                assert!(message.contains(part), "{part}: {message}");
            }
        }
    }
    assert_eq!(api.get(&format!("{MAPS}/a")).await, before);
    assert_eq!(api.client.send("GET", &format!("{MAPS}/new"), &[], None).await.status, 404);
    api.server.stop().await;
}

#[tokio::test]
async fn a_proxy_is_refused_at_once_and_says_what_is_not_served() {
    let api = Api::start(Config::in_memory()).await;
    for (path, what) in [
        ("/api/v1/namespaces/default/services/http:web:80/proxy/a/b", "services/proxy"),
        ("/api/v1/namespaces/default/pods/web/proxy", "pods/proxy"),
        ("/api/v1/nodes/edge/proxy/stats/summary", "nodes/proxy"),
    ] {
        for method in ["GET", "POST", "DELETE"] {
            let answer = api.send(method, path, "application/json", json!({})).await;
            let status: Value = serde_json::from_str(&answer.text).unwrap();
            assert_eq!((answer.status, &status["kind"]), (501, &json!("Status")), "{method} {path}");
            assert!(status["message"].as_str().unwrap().contains(what), "{status}");
        }
    }
    assert_eq!(api.send("GET", "/api/v1/nodes/edge/status/more", "application/json", json!({})).await.status, 404);
    api.server.stop().await;
}

#[tokio::test]
async fn a_pod_is_bound_when_a_node_becomes_ready() {
    let api = Api::start(Config::in_memory()).await;
    let spec = json!({"containers": [{"name": "c", "image": "i"}], "nodeSelector": {"hall": "3"}});
    api.post(PODS, json!({"metadata": {"name": "p"}, "spec": spec})).await;
    let path = format!("{PODS}/p");
    api.until(&path, |pod| pod.is_some_and(|pod| pod["status"]["conditions"][0]["reason"] == "Unschedulable")).await;
    api.post("/api/v1/nodes", json!({"metadata": {"name": "edge", "labels": {"hall": "3"}}})).await;
    let ready = json!({"status": {"conditions": [{"type": "Ready", "status": "True"}]}});
    let node = api.patch("/api/v1/nodes/edge/status", ready).await;
    assert_eq!(node["spec"].get("taints"), None, "{node}");
    api.until(&path, |pod| pod.is_some_and(|pod| pod["spec"]["nodeName"] == "edge")).await;
    let pod = api.get(&path).await;
    assert_eq!(pod["status"]["conditions"][0]["status"], "True");
    let events = api.get("/api/v1/namespaces/default/events?fieldSelector=involvedObject.name%3Dp").await;
    let reasons: Vec<&str> =
        events["items"].as_array().unwrap().iter().map(|event| event["reason"].as_str().unwrap()).collect();
    assert!(reasons.contains(&"FailedScheduling") && reasons.contains(&"Scheduled"), "{reasons:?}");
    api.server.stop().await;
}

#[tokio::test]
async fn a_pod_of_a_runtime_class_gets_what_the_class_says_and_none_is_of_a_class_that_is_not_there() {
    let api = Api::start(Config::in_memory()).await;
    let pod = |name: &str, class: Value| {
        let containers = json!([{"name": "c", "image": "i"}]);
        json!({"metadata": {"name": name}, "spec": {"containers": containers, "runtimeClassName": class}})
    };
    let refused = api.send("POST", PODS, "application/json", pod("p", json!("slim"))).await;
    assert_eq!(refused.status, 403, "{}", refused.text);
    assert!(
        refused.text.contains("pods \\\"p\\\" is forbidden: pod rejected: RuntimeClass \\\"slim\\\" not found"),
        "{}",
        refused.text
    );
    let classes = "/apis/node.k8s.io/v1/runtimeclasses";
    let class = json!({
        "apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": "slim"}, "handler": "runc-2",
        "overhead": {"podFixed": {"memory": "64Mi"}}, "scheduling": {"nodeSelector": {"slim": "yes"}},
    });
    let made = api.post(classes, class).await;
    assert_eq!((&made["handler"], &made["metadata"]["generation"]), (&json!("runc-2"), &Value::Null));
    let made = api.post(PODS, pod("p", json!("slim"))).await;
    let given = (&made["spec"]["overhead"], &made["spec"]["nodeSelector"]);
    assert_eq!(given, (&json!({"memory": "64Mi"}), &json!({"slim": "yes"})));
    let plain = api.post(PODS, pod("q", Value::Null)).await;
    assert_eq!(plain["spec"].get("overhead"), None, "{plain}");

    let path = format!("{classes}/slim");
    let changed = api.send("PATCH", &path, "application/merge-patch+json", json!({"handler": "other"})).await;
    assert_eq!(changed.status, 422, "{}", changed.text);
    assert!(changed.text.contains("handler: Invalid value: \\\"other\\\": field is immutable"), "{}", changed.text);
    let table =
        api.client.send("GET", classes, &[("Accept", "application/json;as=Table;v=v1;g=meta.k8s.io")], None).await;
    let table: Value = serde_json::from_str(&table.text).unwrap();
    let columns: Vec<&str> =
        table["columnDefinitions"].as_array().unwrap().iter().map(|column| column["name"].as_str().unwrap()).collect();
    assert_eq!(columns, ["Name", "Handler", "Age"]);
    assert_eq!((&table["rows"][0]["cells"][0], &table["rows"][0]["cells"][1]), (&json!("slim"), &json!("runc-2")));
    assert_eq!(api.delete(&path).await.status, 200);
    api.server.stop().await;
}

#[tokio::test]
async fn dependents_go_with_their_owner_or_stay_as_it_was_asked() {
    let api = Api::start(Config::in_memory()).await;
    for (policy, stays) in [("Background", false), ("Foreground", false), ("Orphan", true)] {
        let owner = api.map("owner", "1").await;
        let reference = json!({
            "apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": owner["metadata"]["uid"],
            "blockOwnerDeletion": true,
        });
        api.post(MAPS, json!({"metadata": {"name": "child", "ownerReferences": [reference]}})).await;
        let answer = api.delete(&format!("{MAPS}/owner?propagationPolicy={policy}")).await;
        assert_eq!(answer.status, 200, "{}", answer.text);
        api.until(&format!("{MAPS}/owner"), |owner| owner.is_none()).await;
        let child = format!("{MAPS}/child");
        if stays {
            let child = api.get(&child).await;
            assert_eq!(child["metadata"].get("ownerReferences"), None, "{child}");
        } else {
            api.until(&child, |child| child.is_none()).await;
        }
    }
    api.server.stop().await;
}

/// A map with these owners in `path`.
async fn owned(api: &Api, path: &str, name: &str, owners: &[(&str, &str)]) {
    let owners: Vec<Value> = owners
        .iter()
        .map(|(kind, uid)| json!({"apiVersion": "v1", "kind": kind, "name": "owner", "uid": uid}))
        .collect();
    api.post(path, json!({"metadata": {"name": name, "ownerReferences": owners}})).await;
}

#[tokio::test]
async fn what_owns_nothing_any_more_or_lives_elsewhere_keeps_nothing_alive() {
    let api = Api::start(Config::in_memory()).await;
    api.post("/api/v1/namespaces", json!({"metadata": {"name": "n"}})).await;
    let owner = api.map("owner", "1").await;
    let uid = owner["metadata"]["uid"].as_str().unwrap();
    let other = "/api/v1/namespaces/n/configmaps";
    let nobody = "11111111-2222-3333-4444-555555555555";
    owned(&api, MAPS, "of-nobody", &[("ConfigMap", nobody)]).await;
    owned(&api, other, "of-elsewhere", &[("ConfigMap", uid)]).await;
    owned(&api, MAPS, "of-unknown", &[("Widget", nobody)]).await;
    owned(&api, MAPS, "of-both", &[("ConfigMap", nobody), ("ConfigMap", uid)]).await;
    api.until(&format!("{MAPS}/of-nobody"), |map| map.is_none()).await;
    api.until(&format!("{other}/of-elsewhere"), |map| map.is_none()).await;
    let owners = |map: Option<&Value>| map.and_then(|map| map["metadata"]["ownerReferences"].as_array()).map(Vec::len);
    api.until(&format!("{MAPS}/of-both"), |map| owners(map) == Some(1)).await;
    assert_eq!(owners(Some(&api.get(&format!("{MAPS}/of-unknown")).await)), Some(1), "nothing is known of widgets");

    // One owner waits for its dependents, the other stays: the dependent stays with it.
    let second = api.post(MAPS, json!({"metadata": {"name": "second"}})).await;
    let second = second["metadata"]["uid"].as_str().unwrap();
    owned(&api, MAPS, "shared", &[("ConfigMap", uid), ("ConfigMap", second)]).await;
    let answer = api.delete(&format!("{MAPS}/second?propagationPolicy=Foreground")).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    api.until(&format!("{MAPS}/second"), |map| map.is_none()).await;
    assert_eq!(owners(Some(&api.get(&format!("{MAPS}/shared")).await)), Some(1));
    api.server.stop().await;
}

#[tokio::test]
async fn a_collection_is_deleted_by_selector_and_by_what_it_was() {
    let api = Api::start(Config::in_memory()).await;
    for (name, side) in [("a", "left"), ("b", "right"), ("c", "left")] {
        api.post(MAPS, json!({"metadata": {"name": name, "labels": {"side": side}}})).await;
    }
    let wrong = json!({"preconditions": {"uid": "11111111-2222-3333-4444-555555555555"}});
    let refused = api.send("DELETE", &format!("{MAPS}?labelSelector=side%3Dleft"), "application/json", wrong).await;
    assert_eq!(refused.status, 409, "{}", refused.text);
    assert_eq!(names(&api.get(MAPS).await), ["a", "b", "c", "kube-root-ca.crt"]);
    let tried = api.delete(&format!("{MAPS}?labelSelector=side%3Dleft&dryRun=All")).await;
    assert_eq!((tried.status, names(&api.get(MAPS).await).len()), (200, 4));
    let answer = api.delete(&format!("{MAPS}?labelSelector=side%3Dleft&fieldSelector=metadata.name!%3Da")).await;
    assert_eq!(names(&serde_json::from_str(&answer.text).unwrap()), ["c"]);
    assert_eq!(names(&api.get(MAPS).await), ["a", "b", "kube-root-ca.crt"]);
    api.server.stop().await;
}

#[tokio::test]
async fn a_namespace_waits_for_a_pod_that_ends_in_its_own_time() {
    let api = Api::start(Config::in_memory()).await;
    api.post("/api/v1/namespaces", json!({"metadata": {"name": "n"}})).await;
    let spec = json!({"containers": [{"name": "c", "image": "i"}], "nodeName": "edge"});
    api.post("/api/v1/namespaces/n/pods", json!({"metadata": {"name": "p"}, "spec": spec})).await;
    let pod = "/api/v1/namespaces/n/pods/p";
    assert_eq!(api.delete("/api/v1/namespaces/n").await.status, 200);
    api.until(pod, |pod| pod.is_some_and(|pod| pod["metadata"].get("deletionTimestamp").is_some())).await;
    assert_eq!(api.get("/api/v1/namespaces/n").await["status"]["phase"], "Terminating");
    let waits = |namespace: Option<&Value>| {
        let conditions = namespace.and_then(|namespace| namespace["status"]["conditions"].as_array());
        let message = "Some resources are remaining: pods. has 1 resource instances";
        conditions.is_some_and(|all| {
            all.iter().any(|one| one["type"] == "NamespaceContentRemaining" && one["message"] == message)
        })
    };
    api.until("/api/v1/namespaces/n", waits).await;
    assert_eq!(api.delete(&format!("{pod}?gracePeriodSeconds=0")).await.status, 200);
    api.until("/api/v1/namespaces/n", |namespace| namespace.is_none()).await;
    let refused = api.delete("/api/v1/namespaces/default").await;
    assert_eq!(refused.status, 403, "{}", refused.text);
    api.server.stop().await;
}

#[tokio::test]
async fn reviews_say_what_the_server_would_answer() {
    let api = Api::start(Config::in_memory()).await;
    let authorization = "/apis/authorization.k8s.io/v1";
    let pods = json!({"verb": "list", "resource": "pods", "namespace": "default"});
    for (groups, allowed) in [(json!(["system:masters"]), true), (json!(["system:authenticated"]), false)] {
        let asked = json!({"spec": {"user": "u", "groups": groups, "resourceAttributes": pods}});
        let review = api.post(&format!("{authorization}/subjectaccessreviews"), asked).await;
        assert_eq!(review["status"]["allowed"], allowed, "{review}");
    }
    let nobody = json!({"spec": {"resourceAttributes": pods}});
    let path = format!("{authorization}/subjectaccessreviews");
    assert_eq!(api.send("POST", &path, "application/json", nobody).await.status, 422);

    let accounts = "/api/v1/namespaces/default/serviceaccounts/default/token";
    let token = api.post(accounts, json!({"spec": {}})).await["status"]["token"].as_str().unwrap().to_owned();
    let account = Client::new(api.server.address(), &token);
    let rules = format!("{authorization}/selfsubjectrulesreviews");
    let headers = [("Content-Type", "application/json")];
    let body = || Some(json!({"spec": {"namespace": "default"}}).to_string());
    let answer = account.send("POST", &rules, &headers, body()).await;
    assert_eq!(answer.status, 201, "{}", answer.text);
    assert!(answer.text.contains("selfsubjectrulesreviews") && !answer.text.contains("pods"), "{}", answer.text);
    let all = api.send("POST", &rules, "application/json", serde_json::from_str(&body().unwrap()).unwrap()).await;
    assert!(all.text.contains("\"apiGroups\":[\"*\"]"), "{}", all.text);
    let others = account.send("POST", &path, &headers, body()).await;
    assert_eq!(others.status, 403, "{}", others.text);
    api.server.stop().await;
}
