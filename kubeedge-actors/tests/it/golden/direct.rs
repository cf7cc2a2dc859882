//! Recorded creations against the kinds alone: decode, defaults and validation without a server around them.

use kubeedge_actors::apiserver::kind::Kind;
use kubeedge_actors::apiserver::{discovery, kinds};
use serde_json::{Value, json};

use super::compare::{self, Seen};
use super::{Exchange, exchanges};

/// The kind of a recorded creation of an object.
fn created_kind(exchange: &Exchange) -> Option<&'static Kind> {
    if exchange.request["method"] != "POST" || !exchange.request["body"].is_object() {
        return None;
    }
    let path = exchange.request["path"].as_str()?.split('?').next()?;
    let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    let (group, version, rest) = match parts.as_slice() {
        ["api", version, rest @ ..] => ("", *version, rest),
        ["apis", group, version, rest @ ..] => (*group, *version, rest),
        _ => return None,
    };
    match rest {
        [plural] | ["namespaces", _, plural] => kinds::find(group, version, plural),
        _ => None,
    }
}

/// What admission and the server put into an object, which the kinds alone do not.
fn without_the_servers_part(object: &Value) -> Value {
    let mut object = object.clone();
    if let Some(metadata) = object["metadata"].as_object_mut() {
        for field in ["uid", "resourceVersion", "creationTimestamp", "managedFields", "generation", "namespace"] {
            metadata.remove(field);
        }
    }
    let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) else { return object };
    for field in ["serviceAccount", "serviceAccountName", "tolerations", "clusterIP", "clusterIPs"] {
        spec.remove(field);
    }
    let injected = |item: &Value| item["name"].as_str().is_some_and(|name| name.starts_with("kube-api-access-"));
    drop_items(spec, "volumes", &injected);
    for container in spec.get_mut("containers").and_then(Value::as_array_mut).into_iter().flatten() {
        if let Some(container) = container.as_object_mut() {
            drop_items(container, "volumeMounts", &injected);
        }
    }
    object
}

fn drop_items(owner: &mut serde_json::Map<String, Value>, field: &str, drop: &dyn Fn(&Value) -> bool) {
    if let Some(items) = owner.get_mut(field).and_then(Value::as_array_mut) {
        items.retain(|item| !drop(item));
        if items.is_empty() {
            owner.remove(field);
        }
    }
}

#[test]
fn creations_are_decoded_defaulted_and_judged_as_recorded() {
    let Some(all) = exchanges("creations_are_decoded_defaulted_and_judged_as_recorded") else { return };
    let (mut accepted, mut refused) = (0, 0);
    for exchange in &all {
        let Some(kind) = created_kind(exchange) else { continue };
        let label = format!("{}: {}", exchange.file, exchange.name);
        let answer = &exchange.response["body"];
        let body = &exchange.request["body"];
        if body["kind"] != kind.kind || body["metadata"]["namespace"].is_string() {
            continue;
        }
        let mut object =
            (kind.decode)(body.clone()).unwrap_or_else(|error| panic!("{label}: {}", error.message)).object;
        (kind.default)(&mut object);
        if kind.kind == "Node" {
            kinds::node::admit_create(&mut object);
        }
        // The generic code puts objects into the namespace of the path before it validates them.
        let namespace =
            exchange.request["path"].as_str().and_then(|path| path.split("/namespaces/").nth(1)?.split('/').next());
        let mut placed = object.clone();
        if kind.namespaced {
            placed["metadata"]["namespace"] = json!(namespace.expect("a namespace in the path"));
        }
        let errors = (kind.validate_create)(&placed);
        match exchange.response["status"].as_u64() {
            Some(201) => {
                assert!(errors.is_empty(), "{label}: {errors:?}");
                let mut expected = without_the_servers_part(answer);
                if let Some(prefix) = answer["metadata"]["generateName"].as_str() {
                    expected["metadata"] = json!({"generateName": prefix});
                }
                assert_eq!(without_the_servers_part(&object), expected, "{label}");
                accepted += 1;
            }
            Some(422) => {
                let causes: Vec<Value> = errors
                    .iter()
                    .filter(|e| e.field != "metadata.name")
                    .map(|e| json!({"reason": e.cause.reason(), "message": e.cause.message(), "field": e.field}))
                    .collect();
                let expected = answer["details"]["causes"].as_array().expect("causes");
                // Names are judged by the generic code.
                let expected: Vec<Value> = expected.iter().filter(|c| c["field"] != "metadata.name").cloned().collect();
                assert_eq!(causes, expected, "{label}");
                refused += 1;
            }
            // Conflicts, missing namespaces, strict decoding: not the kinds' to say.
            _ => {}
        }
    }
    println!("{accepted} accepted and {refused} refused creations compared");
    assert!(accepted >= 15 && refused >= 4, "the recordings hold more: {accepted} accepted, {refused} refused");
}

#[test]
fn a_secret_with_bad_base64_is_refused_in_the_recorded_words() {
    let Some(all) = exchanges("a_secret_with_bad_base64_is_refused_in_the_recorded_words") else { return };
    let exchange = all.iter().find(|e| e.name == "secret bad base64").expect("recorded");
    let sent: Value = serde_json::from_str(exchange.request["body"].as_str().expect("raw")).expect("is JSON");
    let kind = kinds::find("", "v1", "secrets").expect("secrets are served");
    let Err(error) = (kind.decode)(sent) else { panic!("accepted") };
    let message = exchange.response["body"]["message"].as_str().expect("a message");
    assert!(message.ends_with(&format!("as a Secret: {}", error.message)), "{} in {message}", error.message);
}

#[test]
fn discovery_says_of_the_served_kinds_what_was_recorded() {
    let Some(all) = exchanges("discovery_says_of_the_served_kinds_what_was_recorded") else { return };
    let served: Vec<&'static Kind> = kinds::kinds().iter().collect();
    let answers = [
        ("apis", Some(discovery::groups(&served))),
        ("core v1", discovery::resources(&served, "", "v1")),
        ("apps v1", discovery::resources(&served, "apps", "v1")),
        ("coordination v1", discovery::resources(&served, "coordination.k8s.io", "v1")),
        ("aggregated api", Some(discovery::aggregated_core(&served, "v2"))),
    ];
    for (name, answer) in answers {
        let recorded = all.iter().find(|e| e.file == "01-discovery" && e.name == name).expect("recorded");
        let answer = answer.expect("is served");
        let found = compare::bodies("01-discovery", name, &recorded.response["body"], &answer, &mut Seen::default());
        assert_eq!(found, Vec::<String>::new(), "{name}");
    }
}
