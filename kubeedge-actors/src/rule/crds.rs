//! The CustomResourceDefinitions of `rules.kubeedge.io`.

use serde_json::{Value, json};

use super::{GROUP, VERSION};

/// Rule and RuleEndpoint, ready for `kubectl apply`.
pub fn definitions() -> [Value; 2] {
    let text = |about: &str| json!({"type": "string", "description": about});
    let texts =
        |about: &str| json!({"type": "object", "additionalProperties": {"type": "string"}, "description": about});
    let rule = json!({
        "spec": {
            "type": "object",
            "required": ["source", "sourceResource", "target", "targetResource"],
            "properties": {
                "source": text("Name of a RuleEndpoint of this namespace: where messages come from."),
                "sourceResource": texts("rest: path; eventbus: topic and node_name; servicebus: target_url and node_name."),
                "target": text("Name of a RuleEndpoint of this namespace: where messages go."),
                "targetResource": texts("rest: resource, a URL; eventbus: topic; servicebus: path."),
            },
        },
        "status": {
            "type": "object",
            "properties": {
                "successMessages": {"type": "integer", "format": "int64", "description": "Messages that the target took."},
                "failMessages": {"type": "integer", "format": "int64", "description": "Messages that it did not take."},
                "errors": {"type": "array", "items": {"type": "string"}, "description": "The last failures, the newest last."},
            },
        },
    });
    let endpoint = json!({
        "spec": {
            "type": "object",
            "required": ["ruleEndpointType"],
            "properties": {
                "ruleEndpointType": {"type": "string", "enum": ["rest", "eventbus", "servicebus"]},
                "properties": texts("servicebus: service_port; service_host, the loopback address unless said."),
            },
        },
    });
    let counts = [
        ("Source", "string", ".spec.source"),
        ("Target", "string", ".spec.target"),
        ("Success", "integer", ".status.successMessages"),
        ("Fail", "integer", ".status.failMessages"),
    ];
    [
        definition(("rules", "rule", "Rule"), &[], rule, &counts, true),
        definition(
            ("ruleendpoints", "ruleendpoint", "RuleEndpoint"),
            &["re"],
            endpoint,
            &[("Type", "string", ".spec.ruleEndpointType")],
            false,
        ),
    ]
}

/// Both as one YAML stream; JSON is YAML.
pub fn manifest() -> String {
    definitions().map(|definition| format!("{definition:#}\n")).join("---\n")
}

fn definition(
    (plural, singular, kind): (&str, &str, &str),
    short: &[&str],
    mut properties: Value,
    columns: &[(&str, &str, &str)],
    status: bool,
) -> Value {
    for (name, type_) in [("apiVersion", "string"), ("kind", "string"), ("metadata", "object")] {
        properties[name] = json!({"type": type_});
    }
    let mut columns: Vec<Value> =
        columns.iter().map(|(name, type_, path)| json!({"name": name, "type": type_, "jsonPath": path})).collect();
    columns.push(json!({"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"}));
    let mut version = json!({
        "name": VERSION,
        "served": true,
        "storage": true,
        "schema": {"openAPIV3Schema": {"type": "object", "required": ["spec"], "properties": properties}},
        "additionalPrinterColumns": columns,
    });
    if status {
        version["subresources"] = json!({"status": {}});
    }
    let mut names = json!({"kind": kind, "listKind": format!("{kind}List"), "plural": plural, "singular": singular});
    if !short.is_empty() {
        names["shortNames"] = json!(short);
    }
    json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": format!("{plural}.{GROUP}")},
        "spec": {"group": GROUP, "scope": "Namespaced", "names": names, "versions": [version]},
    })
}
