//! What a Rule and a RuleEndpoint must be beyond their schema: the rules of admission. Pure.
//!
//! Each object is judged by itself, so that a rule and its endpoints may be applied in any order and changed later. Whether
//! the endpoints are there, and of the types that the rule takes them for, is in the rule's status.

use serde_json::Value;

use super::types::{EndpointType, RuleEndpointSpec, RuleSpec};

/// What is wrong with an object of this kind; empty for any other kind and when nothing is. Each line names the field.
pub fn violations(kind: &str, object: &Value) -> Vec<String> {
    let spec = object.get("spec").cloned().unwrap_or_default();
    let checked = match kind {
        "Rule" => serde_json::from_value::<RuleSpec>(spec).map_err(|error| format!("spec: {error}")).and_then(rule),
        "RuleEndpoint" => serde_json::from_value::<RuleEndpointSpec>(spec)
            .map_err(|error| format!("spec: {error}"))
            .and_then(endpoint),
        _ => Ok(()),
    };
    checked.err().into_iter().collect()
}

fn rule(spec: RuleSpec) -> Result<(), String> {
    for (field, name) in [("source", &spec.source), ("target", &spec.target)] {
        if !kubeedge_proto::is_dns_subdomain(name) {
            return Err(format!("spec.{field}: expected the name of a RuleEndpoint in this namespace"));
        }
    }
    spec.ends().map(drop)
}

fn endpoint(spec: RuleEndpointSpec) -> Result<(), String> {
    // KubeEdge asks for the port only where a rule needs it, which a source does not.
    match spec.rule_endpoint_type {
        EndpointType::ServiceBus if !spec.properties.is_empty() => spec.service().map(drop),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn each_violation_names_its_field() {
        let good = json!({"spec": {"source": "my-rest", "sourceResource": {"path": "/a"}, "target": "my-eventbus",
            "targetResource": {"topic": "t"}}});
        assert_eq!(violations("Rule", &good), Vec::<String>::new());
        let mut bad = good.clone();
        bad["spec"]["target"] = "My Endpoint".into();
        assert!(violations("Rule", &bad)[0].contains("spec.target"));
        bad["spec"] = json!({"source": 1});
        assert_eq!(violations("Rule", &bad).len(), 1);
        let endpoint = |type_: &str, properties: Value| {
            let object = json!({"spec": {"ruleEndpointType": type_, "properties": properties}});
            violations("RuleEndpoint", &object)
        };
        assert_eq!(endpoint("rest", json!({})), Vec::<String>::new());
        assert_eq!(endpoint("servicebus", json!({})), Vec::<String>::new(), "a source needs no port");
        assert_eq!(endpoint("servicebus", json!({"service_port": "8080"})), Vec::<String>::new());
        assert!(endpoint("servicebus", json!({"service_port": "x"}))[0].contains("service_port"));
        assert!(endpoint("bus", json!({}))[0].contains("bus"));
        assert_eq!(violations("Pod", &json!({})), Vec::<String>::new());
    }
}
