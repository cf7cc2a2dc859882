//! What the recording could not show: the exchanges that are excluded although this server answers them.

use kubeedge_actors::apiserver::{Config, Server};
use serde_json::{Value, json};

use super::client::Client;

#[tokio::test]
async fn initial_events_end_with_a_bookmark() {
    let server = Server::start(Config::in_memory()).await.expect("the server starts");
    let client = Client::new(server.address(), "admin");
    let path = "/api/v1/namespaces/default/configmaps";
    for name in ["a", "b"] {
        let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}});
        assert_eq!(client.send("POST", path, &[], Some(object.to_string())).await.status, 201);
    }
    let query = "watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true";
    let answer = client.send("GET", &format!("{path}?{query}&timeoutSeconds=1"), &[], None).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    let events = answer.body(&json!([])).expect("events");
    let events = events.as_array().expect("a list");
    let end = events.iter().position(|event| event["type"] == "BOOKMARK").expect("a bookmark");
    let bookmark = &events[end]["object"];
    assert_eq!(bookmark["metadata"]["annotations"], json!({"k8s.io/initial-events-end": "true"}));
    assert_eq!((&bookmark["kind"], &bookmark["apiVersion"]), (&json!("ConfigMap"), &json!("v1")));
    assert!(bookmark["metadata"]["resourceVersion"].as_str().is_some_and(|version| version.parse::<u64>().is_ok()));
    let before: Vec<&Value> = events[..end].iter().map(|event| &event["object"]["metadata"]["name"]).collect();
    assert!(events[..end].iter().all(|event| event["type"] == "ADDED"));
    assert!(before.contains(&&json!("a")) && before.contains(&&json!("b")), "{before:?}");
    server.stop().await;
}

#[tokio::test]
async fn a_watch_without_a_version_begins_with_what_is_there() {
    let server = Server::start(Config::in_memory()).await.expect("the server starts");
    let client = Client::new(server.address(), "admin");
    let path = "/api/v1/namespaces/default/configmaps";
    for name in ["c1", "c2"] {
        let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}});
        assert_eq!(client.send("POST", path, &[], Some(object.to_string())).await.status, 201);
    }
    let query = "watch=1&timeoutSeconds=1&fieldSelector=metadata.name%3Dc2";
    let answer = client.send("GET", &format!("{path}?{query}"), &[], None).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    let events = answer.body(&json!([])).expect("events");
    assert_eq!(events.as_array().map(Vec::len), Some(1), "{events}");
    assert_eq!((&events[0]["type"], &events[0]["object"]["metadata"]["name"]), (&json!("ADDED"), &json!("c2")));
    server.stop().await;
}

#[tokio::test]
async fn the_version_has_what_clients_choose_their_behaviour_by() {
    let server = Server::start(Config::in_memory()).await.expect("the server starts");
    let answer = Client::new(server.address(), "admin").send("GET", "/version", &[], None).await;
    let version: Value = serde_json::from_str(&answer.text).expect("is JSON");
    let number = |field: &str| version[field].as_str().and_then(|text| text.parse::<u32>().ok());
    assert_eq!(number("major"), Some(1));
    assert!(number("minor").is_some_and(|minor| minor >= 33), "{version}");
    for field in ["gitVersion", "platform"] {
        assert!(version[field].as_str().is_some_and(|text| !text.is_empty()), "{field} in {version}");
    }
    server.stop().await;
}
