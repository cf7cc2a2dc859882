//! The CustomResourceDefinitions of `devices.kubeedge.io`, made from [`super::types`].

use schemars::{
    JsonSchema, Schema,
    generate::SchemaSettings,
    transform::{Transform, transform_subschemas},
};
use serde_json::{Value, json};

use super::{
    GROUP, VERSION,
    types::{DeviceModelSpec, DeviceSpec, DeviceStatusStatus, OldDeviceStatus},
};

/// Device, DeviceModel and DeviceStatus, ready for `kubectl apply`.
pub fn definitions() -> [Value; 3] {
    [
        definition(
            ("devices", "device", "Device"),
            schema_of::<DeviceSpec>(),
            schema_of::<OldDeviceStatus>(),
            &[("Node", ".spec.nodeName"), ("Protocol", ".spec.protocol.protocolName")],
        ),
        definition(
            ("devicemodels", "devicemodel", "DeviceModel"),
            schema_of::<DeviceModelSpec>(),
            json!(null),
            &[("Protocol", ".spec.protocol")],
        ),
        definition(
            ("devicestatuses", "devicestatus", "DeviceStatus"),
            json!({"type": "object"}),
            schema_of::<DeviceStatusStatus>(),
            &[("State", ".status.state"), ("Last Online", ".status.lastOnlineTime")],
        ),
    ]
}

/// All of them as one YAML stream; JSON is YAML.
pub fn manifest() -> String {
    let documents = definitions().map(|definition| format!("{definition:#}\n"));
    documents.join("---\n")
}

fn definition(names: (&str, &str, &str), spec: Value, status: Value, columns: &[(&str, &str)]) -> Value {
    let (plural, singular, kind) = names;
    let mut properties = json!({
        "apiVersion": {"type": "string"},
        "kind": {"type": "string"},
        "metadata": {"type": "object"},
        "spec": spec,
    });
    if !status.is_null() {
        properties["status"] = status;
    }
    let mut columns: Vec<Value> =
        columns.iter().map(|(name, path)| json!({"name": name, "type": "string", "jsonPath": path})).collect();
    columns.push(json!({"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"}));
    json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": format!("{plural}.{GROUP}")},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {"kind": kind, "listKind": format!("{kind}List"), "plural": plural, "singular": singular},
            "versions": [{
                "name": VERSION,
                "served": true,
                "storage": true,
                "schema": {"openAPIV3Schema": {"type": "object", "properties": properties}},
                "additionalPrinterColumns": columns,
            }],
        },
    })
}

fn schema_of<T: JsonSchema>() -> Value {
    let settings = SchemaSettings::openapi3().with(|settings| {
        settings.inline_subschemas = true;
        settings.meta_schema = None;
        settings.transforms.push(Box::new(Structural));
    });
    let mut schema = settings.into_generator().into_root_schema_for::<T>();
    schema.remove("title");
    schema.to_value()
}

/// What a CustomResourceDefinition asks of a schema beyond OpenAPI v3.
#[derive(Clone, Debug)]
struct Structural;

impl Transform for Structural {
    fn transform(&mut self, schema: &mut Schema) {
        transform_subschemas(self, schema);
        schema.remove("title");
        // An enumeration with a text for each value comes as alternatives of one value each.
        if let Some(Value::Array(alternatives)) = schema.remove("oneOf") {
            let values: Vec<Value> = alternatives
                .iter()
                .filter_map(|one| one["const"].as_str().or_else(|| one["enum"][0].as_str()))
                .map(Value::from)
                .collect();
            schema.insert("type".into(), "string".into());
            schema.insert("enum".into(), values.into());
        }
        // An absent field is absent: `null` is pruned by the API server where it is not wanted.
        schema.remove("nullable");
        let known = ["int32", "int64", "date-time", "double"];
        if schema.get("format").and_then(Value::as_str).is_some_and(|format| !known.contains(&format)) {
            schema.remove("format");
        }
        // What is not said is the default already, and a default in the schema would be written into every object.
        schema.remove("default");
        if schema.get("additionalProperties") == Some(&Value::Bool(true)) {
            schema.remove("additionalProperties");
            schema.insert("x-kubernetes-preserve-unknown-fields".into(), true.into());
        }
        name_is_key(schema);
    }
}

/// A list of named things has each name once.
fn name_is_key(schema: &mut Schema) {
    let Some(items) = schema.get("items") else { return };
    let required = items["required"].as_array().is_some_and(|names| names.contains(&json!("name")));
    if required && items["properties"]["name"].is_object() {
        schema.insert("x-kubernetes-list-type".into(), "map".into());
        schema.insert("x-kubernetes-list-map-keys".into(), json!(["name"]));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_schemas_are_structural_and_say_what_is_free() {
        let [device, model, status] = definitions();
        let spec = |definition: &Value| {
            definition.pointer("/spec/versions/0/schema/openAPIV3Schema/properties").unwrap().clone()
        };
        let properties = &spec(&device)["spec"]["properties"]["properties"];
        assert_eq!(properties["x-kubernetes-list-map-keys"], json!(["name"]));
        let property = &properties["items"]["properties"];
        assert_eq!(properties["items"]["required"], json!(["name"]));
        assert_eq!(property["desired"]["required"], json!(["value"]));
        assert_eq!(
            property["reportCycle"],
            json!({"description": "Milliseconds between two reports to the cloud.",
            "format": "int64", "type": "integer"})
        );
        let free = &property["visitors"]["properties"]["configData"];
        assert_eq!(free["x-kubernetes-preserve-unknown-fields"], true);
        let of_model = &spec(&model)["spec"]["properties"]["properties"]["items"];
        assert_eq!(of_model["properties"]["accessMode"]["enum"], json!(["ReadWrite", "ReadOnly"]));
        let types = ["INT", "FLOAT", "DOUBLE", "STRING", "BOOLEAN", "BYTES", "STREAM"];
        assert_eq!(of_model["properties"]["type"]["enum"], json!(types));
        assert_eq!(of_model["required"], json!(["name", "type", "accessMode"]));
        assert!(spec(&status)["status"]["properties"]["twins"].is_object());
        for definition in definitions() {
            let text = definition.to_string();
            for foreign in ["\"$ref\"", "\"nullable\"", "\"oneOf\"", "\"anyOf\"", "\"const\"", "\"$schema\""] {
                assert!(!text.contains(foreign), "{foreign} in {text}");
            }
        }
    }
}
