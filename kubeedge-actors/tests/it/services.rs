//! Services over HTTP: addresses that are given once, and endpoints that follow the pods.

use kubeedge_actors::apiserver::Config;
use serde_json::{Value, json};

use crate::apiserver::Api;

const SERVICES: &str = "/api/v1/namespaces/default/services";
const PODS: &str = "/api/v1/namespaces/default/pods";
const SLICES: &str = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices";

fn service(name: &str, spec: Value) -> Value {
    json!({"metadata": {"name": name}, "spec": spec})
}

fn web(more: Value) -> Value {
    let mut spec = json!({"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": "http"}]});
    for (field, value) in more.as_object().unwrap() {
        spec[field.as_str()] = value.clone();
    }
    spec
}

#[tokio::test]
async fn an_address_is_given_once_is_free_after_a_deletion_and_survives_a_restart() {
    let config = Config { service_range: "10.9.0.0/28".parse().unwrap(), ..Config::in_memory() };
    let api = Api::start(config.clone()).await;
    let kubernetes = api.get(&format!("{SERVICES}/kubernetes")).await;
    assert_eq!(kubernetes["spec"]["clusterIP"], "10.9.0.1");
    let port = api.server.address().port();
    assert_eq!(kubernetes["spec"]["ports"][0]["targetPort"], port);
    let endpoints = api.get("/api/v1/namespaces/default/endpoints/kubernetes").await;
    let expected = json!([{
        "addresses": [{"ip": "127.0.0.1"}], "ports": [{"name": "https", "port": port, "protocol": "TCP"}],
    }]);
    assert_eq!(endpoints["subsets"], expected);

    let node = api.post(SERVICES, service("node", web(json!({"type": "NodePort"})))).await;
    let node_port = node["spec"]["ports"][0]["nodePort"].as_i64().unwrap();
    assert!((30_000..=32_767).contains(&node_port));
    let mut given = vec![node["spec"]["clusterIP"].as_str().unwrap().to_owned()];
    // Many at the same time: all get another one.
    let names: Vec<String> = (0..11).map(|at| format!("s{at}")).collect();
    let posts = names.iter().map(|name| api.post(SERVICES, service(name, web(json!({})))));
    for created in futures_util::future::join_all(posts).await {
        given.push(created["spec"]["clusterIP"].as_str().unwrap().to_owned());
    }
    given.sort();
    given.dedup();
    assert_eq!(given.len(), 12, "{given:?}");
    api.server.stop().await;

    let api = Api::start(config).await;
    let last = api.post(SERVICES, service("last", web(json!({})))).await;
    assert!(!given.contains(&last["spec"]["clusterIP"].as_str().unwrap().to_owned()));
    let full = api.send("POST", SERVICES, "application/json", service("more", web(json!({})))).await;
    assert_eq!(full.status, 500, "{}", full.text);
    let twice = service("twice", web(json!({"clusterIP": given[0]})));
    let refused = api.send("POST", SERVICES, "application/json", twice.clone()).await;
    assert_eq!(refused.status, 422);
    assert!(refused.text.contains("provided IP is already allocated"), "{}", refused.text);
    let ports = json!([{"port": 80, "nodePort": node_port}]);
    let refused = service("ports", web(json!({"type": "NodePort", "clusterIP": "10.9.0.1", "ports": ports})));
    assert_eq!(api.send("POST", SERVICES, "application/json", refused).await.status, 422);

    let items = api.get(SERVICES).await["items"].as_array().unwrap().clone();
    let owner = items.iter().find(|item| item["spec"]["clusterIP"] == given[0].as_str()).unwrap();
    let gone = api.delete(&format!("{SERVICES}/{}", owner["metadata"]["name"].as_str().unwrap())).await;
    assert_eq!(gone.status, 200, "{}", gone.text);
    assert_eq!(api.post(SERVICES, twice).await["spec"]["clusterIP"], given[0].as_str());
    // A change of type gives the ports back and keeps the address.
    let plain = api.patch(&format!("{SERVICES}/twice"), json!({"spec": {"type": "NodePort"}})).await;
    assert!(plain["spec"]["ports"][0]["nodePort"].is_i64(), "{plain}");
    let plain = api.patch(&format!("{SERVICES}/twice"), json!({"spec": {"type": "ClusterIP"}})).await;
    assert_eq!(plain["spec"]["ports"][0].get("nodePort"), None, "{plain}");
    assert_eq!(plain["spec"]["clusterIP"], given[0].as_str());
    api.server.stop().await;
}

#[tokio::test]
async fn endpoints_follow_the_pods_and_go_with_their_service() {
    let api = Api::start(Config::in_memory()).await;
    api.post(SERVICES, service("web", web(json!({})))).await;
    let path = "/api/v1/namespaces/default/endpoints/web";
    api.until(path, |found| found.is_some_and(|found| found.get("subsets").is_none())).await;
    let ports = json!([{"name": "http", "containerPort": 8080}]);
    let spec = json!({"containers": [{"name": "c", "image": "i", "ports": ports}]});
    api.post(PODS, json!({"metadata": {"name": "p", "labels": {"app": "web"}}, "spec": spec})).await;
    let ready = |status: &str| {
        json!({"status": {"phase": "Running", "podIP": "10.1.0.5", "podIPs": [{"ip": "10.1.0.5"}],
            "conditions": [{"type": "Ready", "status": status}]}})
    };
    let status = format!("{PODS}/p/status");
    api.patch(&status, ready("False")).await;
    let is = |found: Option<&Value>, field: &str| {
        found.is_some_and(|found| found["subsets"][0][field][0]["ip"] == "10.1.0.5")
    };
    api.until(path, |found| is(found, "notReadyAddresses")).await;
    api.patch(&status, ready("True")).await;
    api.until(path, |found| is(found, "addresses")).await;
    let endpoints = api.get(path).await;
    assert_eq!(endpoints["subsets"][0]["ports"], json!([{"port": 8080, "protocol": "TCP"}]));
    assert_eq!(endpoints["subsets"][0]["addresses"][0]["targetRef"]["name"], "p");
    let slices = format!("{SLICES}?labelSelector=kubernetes.io/service-name%3Dweb");
    api.until(&slices, |found| {
        found.is_some_and(|found| found["items"][0]["endpoints"][0]["conditions"]["ready"] == true)
    })
    .await;
    api.delete(&format!("{PODS}/p?gracePeriodSeconds=0")).await;
    api.until(path, |found| found.is_some_and(|found| found.get("subsets").is_none())).await;
    api.delete(&format!("{SERVICES}/web")).await;
    api.until(path, |found| found.is_none()).await;
    api.until(&slices, |found| found.is_some_and(|found| found["items"] == json!([]))).await;
    api.server.stop().await;
}
