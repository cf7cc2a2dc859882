//! Deployments, DaemonSets and StatefulSets over HTTP, with a node that runs pods as fast as they come.

use std::sync::Arc;
use std::time::Duration;

use kubeedge_actors::apiserver::Config;
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::apiserver::Api;
use crate::golden::client::Client;

const PODS: &str = "/api/v1/namespaces/default/pods";
const APPS: &str = "/apis/apps/v1/namespaces/default";
/// How often the node looks for its pods.
const LOOK: Duration = Duration::from_millis(20);

/// What a kubelet does: pods of its node run and are ready at once, those that are to end are gone.
pub(crate) struct Node {
    task: JoinHandle<()>,
}

impl Node {
    pub(crate) async fn start(client: Arc<Client>, name: &'static str) -> Self {
        let node = json!({"metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}}});
        let answer = client.send("POST", "/api/v1/nodes", &[], Some(node.to_string())).await;
        assert_eq!(answer.status, 201, "{}", answer.text);
        let ready = json!({"status": {"conditions": [{"type": "Ready", "status": "True"}]}});
        merge(&client, &format!("/api/v1/nodes/{name}/status"), ready).await;
        let task = tokio::spawn(async move {
            let path = format!("/api/v1/pods?fieldSelector=spec.nodeName%3D{name}");
            loop {
                let pods: Value = serde_json::from_str(&client.send("GET", &path, &[], None).await.text).unwrap();
                for pod in pods["items"].as_array().into_iter().flatten() {
                    run(&client, pod).await;
                }
                tokio::time::sleep(LOOK).await;
            }
        });
        Self { task }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// One look at one pod; it may be gone or another by now, which the next look sees.
async fn run(client: &Client, pod: &Value) {
    let path = format!(
        "/api/v1/namespaces/{}/pods/{}",
        pod["metadata"]["namespace"].as_str().unwrap(),
        pod["metadata"]["name"].as_str().unwrap()
    );
    if pod["metadata"].get("deletionTimestamp").is_some() {
        client.send("DELETE", &format!("{path}?gracePeriodSeconds=0"), &[], None).await;
        return;
    }
    let broken = pod["spec"]["containers"][0]["image"].as_str().is_some_and(|image| image.contains("broken"));
    if pod["status"]["phase"] == "Pending" && !broken {
        let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        let condition = json!({"type": "Ready", "status": "True", "lastTransitionTime": now});
        let status = json!({"metadata": {"uid": pod["metadata"]["uid"]}, "status": {"phase": "Running", "conditions": [condition]}});
        let headers = [("Content-Type", "application/merge-patch+json")];
        client.send("PATCH", &format!("{path}/status"), &headers, Some(status.to_string())).await;
    }
}

async fn merge(client: &Client, path: &str, body: Value) {
    let answer =
        client.send("PATCH", path, &[("Content-Type", "application/merge-patch+json")], Some(body.to_string()));
    let answer = answer.await;
    assert_eq!(answer.status, 200, "{path}: {}", answer.text);
}

async fn start() -> (Api, Node) {
    let api = Api::start(Config::in_memory()).await;
    let node = Node::start(Arc::new(Client::new(api.server.address(), "admin")), "edge").await;
    (api, node)
}

fn workload(name: &str, more: Value) -> Value {
    let mut spec = json!({
        "selector": {"matchLabels": {"app": name}},
        "template": {"metadata": {"labels": {"app": name}},
            "spec": {"containers": [{"name": "c", "image": "registry.example/c:1"}]}},
    });
    for (field, value) in more.as_object().unwrap() {
        spec[field] = value.clone();
    }
    json!({"metadata": {"name": name}, "spec": spec})
}

fn items(list: &Value) -> &[Value] {
    list["items"].as_array().map_or(&[], Vec::as_slice)
}

fn images(list: &Value) -> Vec<&str> {
    items(list).iter().map(|pod| pod["spec"]["containers"][0]["image"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn a_deployment_gets_its_pods_rolls_and_takes_them_along_when_it_goes() {
    let (api, _node) = start().await;
    let web = format!("{APPS}/deployments/web");
    api.post(&format!("{APPS}/deployments"), workload("web", json!({"replicas": 2}))).await;
    let available =
        |count: i64| move |web: Option<&Value>| web.is_some_and(|web| web["status"]["availableReplicas"] == count);
    api.until(&web, available(2)).await;
    let pods = api.get(&format!("{PODS}?labelSelector=app%3Dweb")).await;
    assert_eq!(items(&pods).len(), 2);
    let pod = &items(&pods)[0];
    assert_eq!((&pod["spec"]["nodeName"], &pod["status"]["phase"]), (&json!("edge"), &json!("Running")));
    assert_eq!(pod["spec"]["serviceAccountName"], "default", "pods of a controller are admitted like any other");
    assert!(pod["metadata"]["labels"]["pod-template-hash"].is_string());

    let scale = format!("{web}/scale");
    let shown = api.get(&scale).await;
    assert_eq!((&shown["kind"], &shown["status"]), (&json!("Scale"), &json!({"replicas": 2, "selector": "app=web"})));
    let set = api.send("PUT", &scale, "application/json", {
        let mut wanted = shown.clone();
        wanted["spec"]["replicas"] = json!(3);
        wanted
    });
    assert_eq!(set.await.status, 200);
    let stale = api.send("PUT", &scale, "application/json", shown).await;
    assert_eq!(stale.status, 409, "{}", stale.text);
    assert_eq!(api.patch(&scale, json!({"spec": {"replicas": 4}})).await["spec"]["replicas"], 4);
    let refused = api.send("PATCH", &scale, "application/merge-patch+json", json!({"spec": {"replicas": -1}})).await;
    assert_eq!(refused.status, 422, "{}", refused.text);
    api.until(&web, available(4)).await;

    let template =
        json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": "registry.example/c:2"}]}}}});
    api.patch(&web, template).await;
    let rolled = |web: Option<&Value>| {
        let status = &web.unwrap()["status"];
        status["observedGeneration"] == web.unwrap()["metadata"]["generation"]
            && ["replicas", "updatedReplicas", "availableReplicas"].iter().all(|field| status[*field] == 4)
    };
    api.until(&web, rolled).await;
    let pods = api.get(&format!("{PODS}?labelSelector=app%3Dweb")).await;
    let running: Vec<&Value> =
        items(&pods).iter().filter(|pod| pod["metadata"].get("deletionTimestamp").is_none()).collect();
    assert_eq!(running.len(), 4);
    assert!(images(&pods).contains(&"registry.example/c:2"));
    let events = api.get("/api/v1/namespaces/default/events?fieldSelector=involvedObject.kind%3DDeployment").await;
    assert!(items(&events).iter().any(|event| event["reason"] == "ScalingReplicaSet"), "{events}");

    assert_eq!(api.delete(&web).await.status, 200);
    let gone = |list: Option<&Value>| items(list.unwrap()).is_empty();
    api.until(&format!("{APPS}/replicasets"), gone).await;
    api.until(PODS, gone).await;
    api.server.stop().await;
}

#[tokio::test]
async fn a_rollout_of_a_broken_image_keeps_the_old_pods_and_a_restart_goes_on_with_it() {
    let config = Config::in_memory();
    let api = Api::start(config.clone()).await;
    let node = Node::start(Arc::new(Client::new(api.server.address(), "admin")), "edge").await;
    let web = format!("{APPS}/deployments/web");
    let rolling = json!({"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}});
    api.post(&format!("{APPS}/deployments"), workload("web", json!({"replicas": 2, "strategy": rolling}))).await;
    api.until(&web, |web| web.is_some_and(|web| web["status"]["availableReplicas"] == 2)).await;
    let image = |image: &str| json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": image}]}}}});
    api.patch(&web, image("registry.example/broken:1")).await;
    api.until(&web, |web| web.is_some_and(|web| web["status"]["updatedReplicas"] == 1)).await;
    drop(node);
    api.server.stop().await;

    let api = Api::start(Config { listen: config.listen.clone(), ..config }).await;
    let status = api.get(&web).await["status"].clone();
    assert_eq!((&status["replicas"], &status["availableReplicas"]), (&json!(3), &json!(2)), "{status}");
    let client = Arc::new(Client::new(api.server.address(), "admin"));
    assert_eq!(api.delete("/api/v1/nodes/edge").await.status, 200);
    let _node = Node::start(client, "edge").await;
    api.patch(&web, image("registry.example/c:2")).await;
    let rolled = |web: Option<&Value>| {
        let status = &web.unwrap()["status"];
        ["replicas", "updatedReplicas", "availableReplicas"].iter().all(|field| status[*field] == 2)
    };
    api.until(&web, rolled).await;
    api.server.stop().await;
}

#[tokio::test]
async fn a_replica_set_adopts_what_fits_and_tells_why_it_cannot_make_more() {
    let (api, _node) = start().await;
    let spec = json!({"containers": [{"name": "c", "image": "i"}]});
    let loose = api.post(PODS, json!({"metadata": {"name": "loose", "labels": {"app": "set"}}, "spec": spec})).await;
    let mut set = workload("set", json!({"replicas": 2}));
    set["spec"]["template"]["spec"]["serviceAccountName"] = json!("nobody");
    let set = api.post(&format!("{APPS}/replicasets"), set).await;
    let path = format!("{APPS}/replicasets/set");
    let failed = |set: Option<&Value>| {
        let conditions = set.and_then(|set| set["status"]["conditions"].as_array());
        conditions.is_some_and(|all| {
            all.iter().any(|one| {
                one["type"] == "ReplicaFailure"
                    && one["message"].as_str().is_some_and(|why| why.contains("serviceaccount \"nobody\" not found"))
            })
        })
    };
    api.until(&path, failed).await;
    api.until(&format!("{PODS}/loose"), |pod| {
        pod.is_some_and(|pod| pod["metadata"]["ownerReferences"][0]["uid"] == set["metadata"]["uid"])
    })
    .await;
    assert_eq!(api.get(&format!("{PODS}/loose")).await["metadata"]["uid"], loose["metadata"]["uid"]);
    api.post("/api/v1/namespaces/default/serviceaccounts", json!({"metadata": {"name": "nobody"}})).await;
    api.until(&path, |set| set.is_some_and(|set| set["status"]["readyReplicas"] == 2 && !failed(Some(set)))).await;
    // A pod whose label is changed is let go, and replaced.
    api.patch(&format!("{PODS}/loose"), json!({"metadata": {"labels": {"app": "other"}}})).await;
    api.until(&format!("{PODS}/loose"), |pod| pod.is_some_and(|pod| pod["metadata"].get("ownerReferences").is_none()))
        .await;
    api.until(&format!("{PODS}?labelSelector=app%3Dset"), |pods| items(pods.unwrap()).len() == 2).await;
    api.server.stop().await;
}
