//! Events over HTTP: one stored object, seen through two groups.

use kubeedge_actors::apiserver::Config;
use serde_json::{Value, json};

use crate::apiserver::Api;

const CORE: &str = "/api/v1/namespaces/default/events";
const NEWER: &str = "/apis/events.k8s.io/v1/namespaces/default/events";

async fn watched(api: &Api, path: &str) -> Vec<Value> {
    let answer = api.send("GET", &format!("{path}?watch=1&timeoutSeconds=1"), "application/json", Value::Null).await;
    answer.text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["object"].clone()).collect()
}

#[tokio::test]
async fn an_event_is_written_and_seen_through_either_group() {
    let config = Config::in_memory();
    let api = Api::start(config.clone()).await;
    let about = json!({"kind": "Pod", "namespace": "default", "name": "p"});
    api.post(
        CORE,
        json!({"metadata": {"name": "old"}, "involvedObject": about, "message": "a", "reason": "R",
        "type": "Normal", "count": 3, "source": {"component": "kubelet"}}),
    )
    .await;
    let newer = json!({"metadata": {"name": "new"}, "eventTime": "2026-01-01T00:00:00.000000Z", "regarding": about,
        "note": "b", "reason": "R", "type": "Warning", "action": "Do", "reportingController": "example.com/c",
        "reportingInstance": "i"});
    let created = api.post(NEWER, newer).await;
    assert_eq!((&created["apiVersion"], &created["note"]), (&json!("events.k8s.io/v1"), &json!("b")));
    let core = api.get(&format!("{CORE}/new")).await;
    assert_eq!((&core["apiVersion"], &core["message"]), (&json!("v1"), &json!("b")));
    assert_eq!(core["metadata"], created["metadata"]);
    let old = api.get(&format!("{NEWER}/old")).await;
    assert_eq!((&old["note"], &old["deprecatedCount"]), (&json!("a"), &json!(3)));

    for (path, text, selector) in [(CORE, "message", "involvedObject.name"), (NEWER, "note", "regarding.name")] {
        let list = api.get(&format!("{path}?fieldSelector={selector}%3Dp,type%3DWarning")).await;
        assert_eq!(list["items"].as_array().unwrap().len(), 1, "{list}");
        assert_eq!(list["items"][0][text], "b", "{list}");
        let seen: Vec<Value> = watched(&api, path).await.iter().map(|event| event[text].clone()).collect();
        assert_eq!(seen, [json!("b"), json!("a")], "{path}");
    }
    // Written through one, changed through the other: one version, one object.
    let again = json!({"series": {"count": 2, "lastObservedTime": "2026-01-01T00:00:09.000000Z"}});
    let changed = api.patch(&format!("{NEWER}/new"), again).await;
    let core = api.get(&format!("{CORE}/new")).await;
    assert_eq!(core["series"]["count"], 2);
    assert_eq!(core["metadata"]["resourceVersion"], changed["metadata"]["resourceVersion"]);
    api.server.stop().await;

    let api = Api::start(config).await;
    assert_eq!(api.get(&format!("{NEWER}/new")).await["series"]["count"], 2);
    assert_eq!(api.delete(&format!("{NEWER}/new")).await.status, 200);
    assert_eq!(api.delete(&format!("{CORE}/new")).await.status, 404);
    api.server.stop().await;
}
