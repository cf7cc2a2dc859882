//! What Devices and DeviceModels are refused for: by the generated definitions, or by a rule beyond them.

use kubeedge_actors::{
    apiserver::{Config, Server},
    device::crds,
};
use serde_json::{Value, json};

use crate::golden::client::Client;

const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
const GROUP: &str = "/apis/devices.kubeedge.io/v1beta1/namespaces/default";
const JSON: (&str, &str) = ("Content-Type", "application/json");

/// Who refuses.
#[derive(Clone, Copy, Debug, PartialEq)]
enum By {
    /// The schema of the definition: 422 and the field.
    Schema,
    /// A rule, as a webhook says it: 403 and the field.
    Rule,
}

async fn post(client: &Client, path: &str, body: &Value) -> (u16, Value) {
    let answer = client.send("POST", path, &[JSON], Some(body.to_string())).await;
    (answer.status, serde_json::from_str(&answer.text).unwrap())
}

fn object(kind: &str, spec: Value) -> Value {
    json!({"apiVersion": "devices.kubeedge.io/v1beta1", "kind": kind, "metadata": {"generateName": "d-"}, "spec": spec})
}

/// A Device that is right but for these fields.
fn device(fields: Value) -> Value {
    let mut spec = json!({"deviceModelRef": {"name": "m"}, "nodeName": "n", "protocol": {"protocolName": "p"}});
    spec.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    object("Device", spec)
}

/// A Device with one property.
fn property(property: Value) -> Value {
    device(json!({"properties": [property]}))
}

/// A DeviceModel with one property, right but for these fields.
fn model(fields: Value) -> Value {
    let mut property = json!({"name": "a", "type": "INT", "accessMode": "ReadWrite"});
    property.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    object("DeviceModel", json!({"properties": [property]}))
}

#[tokio::test]
async fn each_mistake_in_a_device_or_a_model_is_refused_by_the_definition_or_by_a_rule_and_names_its_field() {
    let server = Server::start(Config::in_memory()).await.expect("the server starts");
    let client = Client::new(server.address(), "admin");
    for definition in crds::definitions() {
        let (code, said) = post(&client, DEFINITIONS, &definition).await;
        assert_eq!(code, 201, "{said}");
    }
    for right in [
        device(json!({})),
        device(json!({"stateReport": {"reportToCloud": false, "reportCycle": 1000}, "methods": [{"name": "m"}]})),
        property(json!({"name": "a", "desired": {"value": "1"}, "collectCycle": 0, "reportCycle": 1,
            "visitors": {"protocolName": "p", "configData": {"any": [1, {"thing": true}]}},
            "pushMethod": {"mqtt": {"address": "tcp://h:1", "topic": "t", "qos": 2}}})),
        model(json!({"minimum": "-5", "maximum": "1e3"})),
        model(json!({"type": "STRING", "minimum": "none", "maximum": ""})),
    ] {
        let (code, said) = post(&client, &path_of(&right), &right).await;
        assert_eq!(code, 201, "{right}: {said}");
    }
    for (by, wrong, field) in [
        // Types.
        (By::Schema, device(json!({"nodeName": 7})), "spec.nodeName"),
        (By::Schema, device(json!({"properties": {}})), "spec.properties"),
        (By::Schema, device(json!({"protocol": {"protocolName": "p", "configData": []}})), "spec.protocol.configData"),
        (By::Schema, device(json!({"stateReport": {"reportToCloud": "yes"}})), "spec.stateReport.reportToCloud"),
        (By::Schema, property(json!({"name": "a", "reportToCloud": "no"})), "spec.properties[0].reportToCloud"),
        (By::Schema, property(json!({"name": "a", "reportCycle": "1s"})), "spec.properties[0].reportCycle"),
        (By::Schema, property(json!({"name": "a", "desired": {"value": 21}})), "spec.properties[0].desired.value"),
        (By::Schema, model(json!({"type": "NUMBER"})), "spec.properties[0].type"),
        (By::Schema, model(json!({"type": "int"})), "spec.properties[0].type"),
        // Access modes.
        (By::Schema, model(json!({"accessMode": "WriteOnly"})), "spec.properties[0].accessMode"),
        // Required fields.
        (By::Schema, property(json!({})), "spec.properties[0].name"),
        (By::Schema, property(json!({"name": "a", "desired": {}})), "spec.properties[0].desired.value"),
        (By::Schema, device(json!({"deviceModelRef": {}})), "spec.deviceModelRef.name"),
        (By::Schema, object("DeviceModel", json!({"properties": [{"name": "a"}]})), "spec.properties[0].type"),
        (By::Rule, device(json!({"deviceModelRef": {"name": ""}})), "spec.deviceModelRef.name"),
        (By::Rule, device(json!({"deviceModelRef": null})), "spec.deviceModelRef.name"),
        (By::Rule, device(json!({"protocol": {}})), "spec.protocol.protocolName"),
        (By::Rule, property(json!({"name": ""})), "spec.properties[0].name"),
        // Names twice.
        (By::Schema, device(json!({"properties": [{"name": "a"}, {"name": "a"}]})), "spec.properties[1]"),
        (
            By::Schema,
            object(
                "DeviceModel",
                json!({"properties": [{"name": "a", "type": "INT", "accessMode": "ReadOnly"},
                    {"name": "a", "type": "FLOAT", "accessMode": "ReadOnly"}]}),
            ),
            "spec.properties[1]",
        ),
        // Numbers that cannot be.
        (By::Rule, property(json!({"name": "a", "reportCycle": -1})), "spec.properties[0].reportCycle"),
        (By::Rule, property(json!({"name": "a", "collectCycle": -1})), "spec.properties[0].collectCycle"),
        (
            By::Rule,
            property(json!({"name": "a", "pushMethod": {"mqtt": {"qos": 3}}})),
            "spec.properties[0].pushMethod.mqtt.qos",
        ),
        (By::Rule, model(json!({"minimum": "low"})), "spec.properties[0].minimum"),
        (By::Rule, model(json!({"minimum": "2", "maximum": "1"})), "spec.properties[0].minimum"),
    ] {
        let (code, said) = post(&client, &path_of(&wrong), &wrong).await;
        let expected = match by {
            By::Schema => 422,
            By::Rule => 403,
        };
        assert_eq!(code, expected, "by {by:?}: {wrong}: {said}");
        let named = said["message"].as_str().is_some_and(|message| message.contains(field));
        assert!(named, "{field}, by {by:?}: {said}");
    }
    server.stop().await;
}

fn path_of(object: &Value) -> String {
    let plural = if object["kind"] == "Device" { "devices" } else { "devicemodels" };
    format!("{GROUP}/{plural}")
}
