use std::collections::BTreeMap;

use proptest::prelude::*;
use serde_json::json;

use super::{upstream::still, *};
use crate::{
    grants::{Grant, VERBS},
    kubeapi::pass::Verb,
};
use kubeedge_proto::{
    digest::{project, projection_hash},
    v1::SeenObject,
};

fn passed(method: &str, path: &str, token: Option<&str>) -> Passed {
    let type_ = if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
    let mut headers = BTreeMap::from([("content-type".to_owned(), type_.to_owned())]);
    headers.extend(token.map(|token| ("authorization".to_owned(), format!("Bearer {token}"))));
    Passed::parse(method, path, "", &headers).unwrap()
}

fn list(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn grant(nodes: &[&str], namespaces: &[&str], groups: &[&str], resources: &[&str], verbs: &[&str]) -> Grant {
    Grant {
        nodes: list(nodes),
        namespaces: list(namespaces),
        api_groups: list(groups),
        resources: list(resources),
        verbs: list(verbs),
        resource_names: vec![],
    }
}

fn allowed(grants: &[Grant], method: &str, path: &str) -> bool {
    let grants = Grants::new(grants.to_vec()).unwrap();
    may(&"e1".parse().unwrap(), &passed(method, path, None), &grants).is_ok()
}

const MAPS: &str = "/api/v1/namespaces/shop/configmaps";

/// A node has no rights of cloudcore's. `P-NODE-GRANTED`
#[test]
fn without_a_token_a_node_may_what_any_node_may_and_what_is_granted() {
    for path in ["/api/v1/services", "/api/v1/namespaces/a/services/b", "/api/v1/nodes/e1", "/openapi/v3", "/apis"] {
        assert!(allowed(&[], "GET", path), "{path}");
    }
    for (method, path) in [
        ("GET", MAPS),
        ("GET", "/api/v1/namespaces/shop/secrets/key"),
        ("GET", "/api/v1/nodes"),
        ("GET", "/api/v1/nodes/e2"),
        ("GET", "/api/v1/nodes/e1/status"),
        ("POST", MAPS),
        ("DELETE", "/api/v1/nodes/e1"),
        ("PATCH", "/api/v1/nodes/e1"),
        ("PATCH", "/api/v1/namespaces/a/services/b"),
        ("GET", "/apis/evil.io/v1/services"),
    ] {
        assert!(!allowed(&[], method, path), "{method} {path}");
    }
    let of_e1 = grant(&["e1"], &["shop"], &[""], &["configmaps"], &["get", "create"]);
    assert!(allowed(std::slice::from_ref(&of_e1), "POST", MAPS));
    assert!(allowed(std::slice::from_ref(&of_e1), "GET", &format!("{MAPS}/menu")));
    for (method, path) in [
        ("GET", MAPS),
        ("DELETE", &format!("{MAPS}/menu")[..]),
        ("POST", "/api/v1/namespaces/other/configmaps"),
        ("POST", "/api/v1/namespaces/shop/secrets"),
        ("POST", "/apis/apps/v1/namespaces/shop/configmaps"),
        ("POST", "/api/v1/configmaps"),
    ] {
        assert!(!allowed(std::slice::from_ref(&of_e1), method, path), "{method} {path}");
    }
    assert!(!allowed(&[Grant { nodes: list(&["e2"]), ..of_e1.clone() }], "POST", MAPS));
    let named = Grant { resource_names: list(&["menu"]), ..of_e1 };
    assert!(allowed(std::slice::from_ref(&named), "GET", &format!("{MAPS}/menu")));
    assert!(!allowed(std::slice::from_ref(&named), "GET", &format!("{MAPS}/other")));
    assert!(!allowed(&[named], "POST", MAPS), "who makes an object names it in the body only");
    let parts = grant(&["*"], &["*"], &["apps"], &["deployments/scale"], &["update"]);
    assert!(allowed(std::slice::from_ref(&parts), "PUT", "/apis/apps/v1/namespaces/a/deployments/b/scale"));
    assert!(!allowed(&[parts], "PUT", "/apis/apps/v1/namespaces/a/deployments/b"));
    let all = grant(&["*"], &["*"], &["*"], &["*"], &["*"]);
    assert!(allowed(std::slice::from_ref(&all), "GET", "/api/v1/secrets"));
    assert!(allowed(std::slice::from_ref(&all), "GET", "/apis/rbac.authorization.k8s.io/v1/clusterroles"));
    for group in ["rbac.authorization.k8s.io", "certificates.k8s.io", "admissionregistration.k8s.io"] {
        assert!(!allowed(std::slice::from_ref(&all), "POST", &format!("/apis/{group}/v1/x")), "{group}");
    }
    let with = passed("POST", "/apis/rbac.authorization.k8s.io/v1/clusterroles", Some("t"));
    assert!(may(&"e1".parse().unwrap(), &with, &Grants::default()).is_ok(), "the API server decides");
}

#[test]
fn every_verb_can_be_granted() {
    let verbs = [Verb::Get, Verb::List, Verb::Create, Verb::Update, Verb::Patch, Verb::Delete, Verb::DeleteCollection];
    assert_eq!(VERBS, verbs.map(Verb::as_str));
}

#[test]
fn a_slip_in_a_grant_is_an_error_and_grants_nothing() {
    let good = json!({"nodes": ["e1"], "namespaces": ["a"], "apiGroups": [""], "resources": ["x"], "verbs": ["get"]});
    assert!(serde_json::from_value::<Grant>(good.clone()).is_ok());
    for (field, value) in [("resourcenames", json!(["x"])), ("namespace", json!("x"))] {
        let mut bad = good.clone();
        bad[field] = value;
        assert!(serde_json::from_value::<Grant>(bad).is_err(), "{field}");
    }
    for field in ["nodes", "namespaces", "apiGroups", "resources", "verbs"] {
        let mut bad = good.clone();
        bad.as_object_mut().unwrap().remove(field);
        assert!(serde_json::from_value::<Grant>(bad.clone()).is_err(), "{field}");
        bad[field] = json!([]);
        assert!(Grants::new(vec![serde_json::from_value(bad).unwrap()]).is_err(), "{field}");
    }
    for (field, value) in [("verbs", "watch"), ("verbs", "Get"), ("nodes", "no name"), ("resources", "*/scale")] {
        let mut bad = good.clone();
        bad[field] = json!([value]);
        assert!(Grants::new(vec![serde_json::from_value(bad).unwrap()]).is_err(), "{field} {value}");
    }
}

/// What is not there is made by an apply, and by an update.
#[test]
fn who_may_change_and_not_create_makes_nothing() {
    let name = format!("{MAPS}/menu");
    let of = |verbs: &[&str]| grant(&["e1"], &["shop"], &[""], &["configmaps"], verbs);
    for (verb, method) in [("update", "PUT"), ("patch", "PATCH")] {
        assert_eq!(allowed(&[of(&[verb])], method, &name), method == "PATCH");
        assert!(allowed(&[of(&[verb, "create"])], method, &name), "{method}");
    }
    let headers = BTreeMap::from([("content-type".to_owned(), "application/apply-patch+yaml".to_owned())]);
    let apply = Passed::parse("PATCH", &name, "", &headers).unwrap();
    for (verbs, may_it) in [(&["patch"][..], false), (&["patch", "create"], true)] {
        let grants = Grants::new(vec![of(verbs)]).unwrap();
        assert_eq!(may(&"e1".parse().unwrap(), &apply, &grants).is_ok(), may_it, "{verbs:?}");
    }
}

#[test]
fn an_object_whose_status_alone_has_changed_is_the_one_that_was_seen() {
    let object = |version: &str, soup: u32, phase: &str| {
        json!({"apiVersion": "v1", "kind": "X", "metadata": {"name": "a", "uid": "u", "resourceVersion": version,
            "managedFields": [{"manager": version}]}, "spec": {"soup": soup}, "status": {"phase": phase}})
    };
    let mut told = object("5", 1, "Pending");
    project(&mut told);
    let seen = SeenObject { uid: "u".into(), projection_hash: projection_hash(&told) };
    let found = |object: serde_json::Value| still(&seen, object.to_string().as_bytes()).map_err(|status| status.code);
    assert_eq!(found(object("9", 1, "Running")), Ok(("9".to_owned(), Some(json!({"phase": "Running"})))));
    assert_eq!(found(object("9", 2, "Pending")), Err(409));
    let mut another = object("9", 1, "Running");
    another["metadata"]["uid"] = "v".into();
    assert_eq!(found(another), Err(409));
    assert_eq!(still(&seen, b"no JSON").unwrap_err().code, 503);
}

proptest! {
    /// No request of one node is let through by what is granted to another.
    #[test]
    fn a_grant_of_another_node_grants_nothing(
        verb in "GET|POST|PUT|PATCH|DELETE",
        resource in "[a-z]{1,9}",
        name in "[a-z]{1,5}",
    ) {
        let path = match verb.as_str() {
            "POST" => format!("/api/v1/namespaces/a/{resource}"),
            _ => format!("/api/v1/namespaces/a/{resource}/{name}"),
        };
        let others = grant(&["e2", "e10", "e"], &["*"], &["*"], &["*"], &["*"]);
        let open = verb == "GET" && resource == "services";
        prop_assert_eq!(allowed(&[others], &verb, &path), open);
    }
}
