//! Custom kinds through the whole server: served at once, in several versions, over a restart, until their end.

use std::time::{Duration, Instant};

use kubeedge_actors::apiserver::{Config, Handle, Server};
use serde_json::{Value, json};

use crate::golden::client::{Answer, Client};

const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
const GAUGES: &str = "/apis/custom.example/v1/namespaces/default/gauges";
const JSON: (&str, &str) = ("Content-Type", "application/json");
const MERGE: (&str, &str) = ("Content-Type", "application/merge-patch+json");
/// How long a state that a controller brings about may take.
const PATIENCE: Duration = Duration::from_secs(20);

fn definition() -> Value {
    let schema = |default: i64| {
        json!({"openAPIV3Schema": {"type": "object", "properties": {
            "spec": {"type": "object", "properties": {"limit": {"type": "integer", "default": default},
                "unit": {"type": "string"}}}}}})
    };
    json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
    "metadata": {"name": "gauges.custom.example"},
    "spec": {"group": "custom.example", "scope": "Namespaced",
        "names": {"plural": "gauges", "kind": "Gauge", "shortNames": ["gg"], "categories": ["all"]},
        "versions": [
            {"name": "v1beta1", "served": true, "storage": false, "schema": schema(1)},
            {"name": "v1", "served": true, "storage": true, "schema": schema(2)},
        ]}})
}

async fn start(config: &Config) -> (Handle, Client) {
    let server = Server::start(config.clone()).await.expect("the server starts");
    let client = Client::new(server.address(), "admin");
    (server, client)
}

async fn get(client: &Client, path: &str) -> (u16, Value) {
    body(client.send("GET", path, &[], None).await)
}

fn body(answer: Answer) -> (u16, Value) {
    let body = serde_json::from_str(&answer.text).unwrap_or(Value::Null);
    (answer.status, body)
}

async fn send(client: &Client, method: &str, path: &str, header: (&str, &str), sent: Value) -> (u16, Value) {
    body(client.send(method, path, &[header], Some(sent.to_string())).await)
}

#[tokio::test]
async fn a_custom_kind_is_served_at_once_in_all_its_versions_over_a_restart_and_until_its_end() {
    let config = Config::in_memory();
    let (server, client) = start(&config).await;
    let (code, created) = send(&client, "POST", DEFINITIONS, JSON, definition()).await;
    assert_eq!((code, &created["spec"]["names"]["singular"]), (201, &json!("gauge")), "{created}");

    // Served with the answer, stored in v1, rewritten and defaulted for whoever asks in another version.
    let gauge =
        json!({"apiVersion": "custom.example/v1", "kind": "Gauge", "metadata": {"name": "g"}, "spec": {"unit": "C"}});
    let (code, made) = send(&client, "POST", GAUGES, JSON, gauge.clone()).await;
    assert_eq!((code, &made["spec"]["limit"]), (201, &json!(2)), "{made}");
    let (_, beta) = get(&client, "/apis/custom.example/v1beta1/namespaces/default/gauges/g").await;
    assert_eq!((&beta["apiVersion"], &beta["spec"]), (&json!("custom.example/v1beta1"), &made["spec"]));

    // A second definition of the same kind is not served, and says why.
    let mut other = definition();
    other["metadata"]["name"] = json!("meters.custom.example");
    other["spec"]["names"]["plural"] = json!("meters");
    send(&client, "POST", DEFINITIONS, JSON, other).await;
    let (_, other) = get(&client, &format!("{DEFINITIONS}/meters.custom.example")).await;
    assert_eq!(other["status"]["conditions"][0]["reason"], "SingularConflict", "{other}");
    assert_eq!(get(&client, "/apis/custom.example/v1/meters").await.0, 404);

    // A changed schema counts at once, for what is stored too.
    let patch = json!([{"op": "add", "value": {"type": "string", "default": "room"},
        "path": "/spec/versions/1/schema/openAPIV3Schema/properties/spec/properties/place"}]);
    let json_patch = ("Content-Type", "application/json-patch+json");
    let (code, patched) =
        send(&client, "PATCH", &format!("{DEFINITIONS}/gauges.custom.example"), json_patch, patch).await;
    assert_eq!((code, &patched["metadata"]["generation"]), (200, &json!(2)), "{patched}");
    assert_eq!(get(&client, &format!("{GAUGES}/g")).await.1["spec"]["place"], "room");

    // What clients are told.
    let (_, groups) = get(&client, "/apis/custom.example").await;
    assert_eq!(groups["preferredVersion"]["version"], "v1", "{groups}");
    let (_, document) = get(&client, "/openapi/v3/apis/custom.example/v1").await;
    let schema = &document["components"]["schemas"]["example.custom.v1.Gauge"];
    assert_eq!(schema["properties"]["spec"]["properties"]["place"]["default"], "room");
    let named = "/apis/custom.example/v1/namespaces/{namespace}/gauges/{name}";
    let content = document["paths"][named]["patch"]["requestBody"]["content"].as_object().expect("patch types");
    assert!(!content.contains_key("application/strategic-merge-patch+json") && content.len() == 2);
    let (_, old) = get(&client, "/openapi/v2").await;
    assert!(old["definitions"]["example.custom.v1.Gauge"]["properties"]["metadata"]["$ref"].is_string());

    server.stop().await;
    let (server, client) = start(&config).await;
    let (code, kept) = get(&client, &format!("{GAUGES}/g")).await;
    assert_eq!((code, &kept["metadata"]["uid"]), (200, &made["metadata"]["uid"]));

    // The end: objects first, and the definition stays while one of them waits.
    let hold = json!({"metadata": {"finalizers": ["custom.example/hold"]}});
    assert_eq!(send(&client, "PATCH", &format!("{GAUGES}/g"), MERGE, hold).await.0, 200);
    let path = format!("{DEFINITIONS}/gauges.custom.example");
    let (code, going) = body(client.send("DELETE", &path, &[], None).await);
    assert_eq!((code, &going["status"]["conditions"][2]["type"]), (200, &json!("Terminating")), "{going}");
    let mut late = gauge;
    late["metadata"]["name"] = json!("late");
    assert_eq!(send(&client, "POST", GAUGES, JSON, late).await.0, 405);
    until(&client, &format!("{GAUGES}/g"), |_, object| object["metadata"]["deletionTimestamp"].is_string()).await;
    assert_eq!(get(&client, &path).await.0, 200);
    let free = json!({"metadata": {"finalizers": null}});
    assert_eq!(send(&client, "PATCH", &format!("{GAUGES}/g"), MERGE, free).await.0, 200);
    until(&client, &path, |code, _| code == 404).await;
    assert_eq!(get(&client, GAUGES).await.0, 404);
    // The names are free for the definition that waited for them.
    let freed = "/apis/custom.example/v1/namespaces/default/meters";
    until(&client, freed, |code, _| code == 200).await;
    server.stop().await;
}

#[tokio::test]
async fn a_custom_kind_is_scaled_and_selected_by_its_fields() {
    let (server, client) = start(&Config::in_memory()).await;
    let mut scaled = definition();
    let version = &mut scaled["spec"]["versions"][1];
    version["subresources"] = json!({"status": {}, "scale": {"specReplicasPath": ".spec.limit",
        "statusReplicasPath": ".status.count", "labelSelectorPath": ".status.selector"}});
    version["schema"]["openAPIV3Schema"]["properties"]["status"] = json!({"type": "object", "properties": {
        "count": {"type": "integer"}, "selector": {"type": "string"}}});
    version["selectableFields"] = json!([{"jsonPath": ".spec.unit"}, {"jsonPath": ".spec.limit"}]);
    assert_eq!(send(&client, "POST", DEFINITIONS, JSON, scaled).await.0, 201);
    for (name, unit) in [("a", "C"), ("b", "F"), ("c", "C")] {
        let gauge = json!({"metadata": {"name": name}, "spec": {"unit": unit}});
        assert_eq!(send(&client, "POST", GAUGES, JSON, gauge).await.0, 201);
    }
    let status = json!({"status": {"count": 1, "selector": "app=a"}});
    assert_eq!(send(&client, "PATCH", &format!("{GAUGES}/a/status"), MERGE, status).await.0, 200);

    let path = format!("{GAUGES}/a/scale");
    let (code, scale) = get(&client, &path).await;
    assert_eq!((code, &scale["kind"], &scale["spec"]), (200, &json!("Scale"), &json!({"replicas": 2})), "{scale}");
    assert_eq!(scale["status"], json!({"replicas": 1, "selector": "app=a"}));
    let (code, scale) = send(&client, "PATCH", &path, MERGE, json!({"spec": {"replicas": 7}})).await;
    assert_eq!((code, &scale["spec"]["replicas"]), (200, &json!(7)), "{scale}");
    let (_, gauge) = get(&client, &format!("{GAUGES}/a")).await;
    assert_eq!((&gauge["spec"]["limit"], &gauge["metadata"]["generation"]), (&json!(7), &json!(2)), "{gauge}");
    // The other version says nothing of it.
    assert_eq!(get(&client, "/apis/custom.example/v1beta1/namespaces/default/gauges/a/scale").await.0, 404);
    let (_, resources) = get(&client, "/apis/custom.example/v1").await;
    let names: Vec<&str> =
        resources["resources"].as_array().unwrap().iter().filter_map(|r| r["name"].as_str()).collect();
    assert_eq!(names, ["gauges", "gauges/status", "gauges/scale"]);

    let selected = async |fields: &str| {
        let (code, list) = get(&client, &format!("{GAUGES}?fieldSelector={fields}")).await;
        let names: Vec<String> = list["items"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|item| item["metadata"]["name"].as_str().map(str::to_owned))
            .collect();
        (code, names.join(" "))
    };
    assert_eq!(selected("spec.unit%3DC").await, (200, "a c".to_owned()));
    assert_eq!(selected("spec.unit%21%3DC").await, (200, "b".to_owned()));
    assert_eq!(selected("spec.limit%3D7,metadata.name%3Da").await, (200, "a".to_owned()));
    assert_eq!(selected("spec.place%3Dx").await.0, 400);
    server.stop().await;
}

#[tokio::test]
async fn rules_of_a_definition_are_enforced_at_creation_at_a_change_and_for_the_status() {
    let (server, client) = start(&Config::in_memory()).await;
    let mut ruled = definition();
    let version = &mut ruled["spec"]["versions"][1];
    version["subresources"] = json!({"status": {}});
    let schema = &mut version["schema"]["openAPIV3Schema"];
    schema["x-kubernetes-validations"] = json!([
        {"rule": "!has(self.status) || self.status.level <= self.spec.limit", "message": "above its limit"}]);
    schema["properties"]["spec"]["x-kubernetes-validations"] =
        json!([{"rule": "self.unit == oldSelf.unit", "message": "the unit stays", "fieldPath": ".unit"}]);
    schema["properties"]["status"] = json!({"type": "object", "properties": {"level": {"type": "integer"}}});
    let mut wrong = ruled.clone();
    wrong["spec"]["versions"][1]["schema"]["openAPIV3Schema"]["x-kubernetes-validations"][0]["rule"] = json!("self.");
    let (code, refused) = send(&client, "POST", DEFINITIONS, JSON, wrong).await;
    let field = "spec.versions[1].schema.openAPIV3Schema.x-kubernetes-validations[0].rule";
    assert_eq!((code, &refused["details"]["causes"][0]["field"]), (422, &json!(field)), "{refused}");
    assert_eq!(send(&client, "POST", DEFINITIONS, JSON, ruled).await.0, 201);

    let gauge = json!({"metadata": {"name": "g"}, "spec": {"unit": "C", "limit": 5}});
    assert_eq!(send(&client, "POST", GAUGES, JSON, gauge).await.0, 201);
    let path = format!("{GAUGES}/g");
    let (code, refused) = send(&client, "PATCH", &path, MERGE, json!({"spec": {"unit": "F"}})).await;
    let cause = &refused["details"]["causes"][0];
    assert_eq!((code, &cause["field"]), (422, &json!("spec.unit")), "{refused}");
    assert_eq!(cause["message"], "Invalid value: \"object\": the unit stays");
    assert_eq!(send(&client, "PATCH", &path, MERGE, json!({"spec": {"limit": 4}})).await.0, 200);
    let status = format!("{path}/status");
    assert_eq!(send(&client, "PATCH", &status, MERGE, json!({"status": {"level": 4}})).await.0, 200);
    let (code, refused) = send(&client, "PATCH", &status, MERGE, json!({"status": {"level": 5}})).await;
    assert_eq!(code, 422, "{refused}");
    assert!(refused["message"].as_str().unwrap().contains("above its limit"), "{refused}");
    server.stop().await;
}

async fn until(client: &Client, path: &str, done: impl Fn(u16, &Value) -> bool) {
    let started = Instant::now();
    loop {
        let (code, body) = get(client, path).await;
        if done(code, &body) {
            return;
        }
        assert!(started.elapsed() < PATIENCE, "{path} stays {code}: {body}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
