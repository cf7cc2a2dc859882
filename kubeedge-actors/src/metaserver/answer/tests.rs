use kubeedge_proto::v1::{KubeObject, ObjectKey};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::metaserver::copy::Snapshot;

fn pod(name: &str, node: &str, label: &str) -> KubeObject {
    let json = json!({"apiVersion": "v1", "kind": "Pod", "spec": {"nodeName": node},
        "metadata": {"name": name, "namespace": "d", "uid": name, "labels": {"app": label}}});
    KubeObject {
        key: Some(ObjectKey::new("d", name)),
        uid: name.into(),
        resource_version: "1".into(),
        json: json.to_string().into(),
        ..KubeObject::default()
    }
}

fn copies(complete: bool) -> Copies {
    let copies = Copies::new(100, 2, CancellationToken::new());
    let mut version = 100;
    for copy in copies.all() {
        let objects = match copy.kind().plural {
            "pods" => vec![pod("a", "n", "web"), pod("b", "n", "db"), pod("c", "n", "web")],
            _ => vec![],
        };
        copy.load(Snapshot { objects, statuses: vec![], complete }, &mut || {
            version += 1;
            version
        });
    }
    copies
}

fn head<'a>(method: &'a str, path: &'a str, query: &'a str) -> Head<'a> {
    Head { method, path, query, host: "127.0.0.1:10550", ..Head::default() }
}

fn get(copies: &Copies, path: &str, query: &str) -> Result<Value, Status> {
    match answer(copies, head("GET", path, query), false)? {
        Answer::Json(body) => Ok(serde_json::from_slice(&body).unwrap()),
        _ => panic!("{path}: not JSON"),
    }
}

fn names(list: &Value) -> Vec<&str> {
    list["items"].as_array().unwrap().iter().filter_map(|item| item["metadata"]["name"].as_str()).collect()
}

const PODS: &str = "/api/v1/namespaces/d/pods";

#[test]
fn lists_are_selected_and_paged() {
    let copies = copies(true);
    for (query, expected) in [
        ("", &["a", "b", "c"][..]),
        ("labelSelector=app%3Dweb", &["a", "c"]),
        ("fieldSelector=metadata.name%3Db", &["b"]),
        ("fieldSelector=spec.nodeName%3Dn,metadata.namespace%3Dd", &["a", "b", "c"]),
        ("fieldSelector=spec.nodeName%3Dother", &[]),
        ("resourceVersion=0", &["a", "b", "c"]),
    ] {
        assert_eq!(names(&get(&copies, PODS, query).unwrap()), expected, "{query}");
    }
    let first = get(&copies, "/api/v1/pods", "limit=2").unwrap();
    assert_eq!((names(&first), &first["metadata"]["remainingItemCount"]), (vec!["a", "b"], &json!(1)));
    let next = format!("limit=2&continue={}", first["metadata"]["continue"].as_str().unwrap());
    let second = get(&copies, "/api/v1/pods", &next).unwrap();
    assert_eq!((names(&second), second["metadata"].get("continue")), (vec!["c"], None));
    assert_eq!(get(&copies, PODS, "fieldSelector=spec.color%3Dred").unwrap_err().code, 400);
    assert!(names(&get(&copies, "/api/v1/namespaces/e/pods", "").unwrap()).is_empty());
}

#[test]
fn what_is_not_there_is_named_as_kubernetes_does() {
    let copies = copies(true);
    let missing = get(&copies, &format!("{PODS}/x"), "").unwrap_err();
    assert_eq!((missing.code, missing.message.as_str()), (404, "pods \"x\" not found"));
    assert_eq!(get(&copies, "/api/v1/pods/a", "").unwrap_err().code, 404);
    assert_eq!(get(&copies, "/api/v1/namespaces/d/services", "").unwrap_err().code, 503, "nobody knows");
    assert_eq!(get(&copies, &format!("{PODS}/a/log"), "").unwrap_err().code, 501);
    assert_eq!(get(&copies, &format!("{PODS}/a/status"), "").unwrap()["kind"], "Pod");
    assert!(matches!(answer(&copies, head("GET", "/apis/apps/v1", ""), false), Ok(Answer::NoPage)));
    assert!(matches!(answer(&copies, head("GET", "/", ""), false), Ok(Answer::NoPage)));
}

/// What is answered where the cloud does not answer.
fn without_the_cloud(answer: Result<Answer, Status>) -> Status {
    match answer {
        Ok(Answer::Cloud(Asked { instead: Some(instead), .. })) => instead.err().unwrap(),
        other => other.err().unwrap(),
    }
}

#[test]
fn what_is_held_is_answered_here_and_the_rest_by_the_cloud() {
    let copies = copies(true);
    let online = |path: &str, query: &str| answer(&copies, head("GET", path, query), true).unwrap();
    for (path, query) in
        [(PODS, ""), ("/api/v1/namespaces/d/pods/a", ""), ("/api/v1/nodes", ""), ("/api", ""), ("/version", "")]
    {
        assert!(!matches!(online(path, query), Answer::Cloud(_)), "{path}");
    }
    for path in ["/api/v1/namespaces/d/pods/x", "/api/v1/namespaces/d/pods/x/status"] {
        assert_eq!(without_the_cloud(answer(&copies, head("GET", path, ""), true)).code, 404);
        assert!(matches!(online(path, ""), Answer::Cloud(Asked { copy: Some(_), .. })), "its versions are marked");
    }
    for path in ["/api/v1/services", "/apis/apps/v1/namespaces/d/deployments/x/scale", "/openapi/v3"] {
        assert!(matches!(online(path, ""), Answer::Cloud(Asked { copy: None, instead: None })), "{path}");
        let offline = answer(&copies, head("GET", path, ""), false).err().unwrap();
        assert_eq!((offline.code, offline.retry_after()), (503, Some(1)));
        assert!(offline.message.contains("offline"), "{}", offline.message);
    }
    for path in ["/apis", "/api/v1", "/apis/rules.kubeedge.io"] {
        let Answer::Cloud(Asked { copy: None, instead: Some(own) }) = online(path, "") else { panic!("{path}") };
        assert!(matches!(*own, Ok(Answer::Json(_))), "without the cloud, what the node holds");
    }
}

/// Nothing may be concluded from a part of a kind. `P-LIST-WHOLE`
#[test]
fn a_kind_that_is_not_known_whole_is_not_listed() {
    let copies = copies(false);
    assert_eq!(get(&copies, &format!("{PODS}/a"), "").unwrap()["metadata"]["name"], "a");
    for (path, query) in [(PODS, ""), (PODS, "watch=1"), ("/api/v1/namespaces/d/pods/x", "")] {
        let refused = without_the_cloud(answer(&copies, head("GET", path, query), true));
        assert_eq!((refused.code, refused.retry_after()), (503, Some(1)), "{path}?{query}");
        assert!(refused.message.contains("not known yet"), "{}", refused.message);
    }
    copies.of("", "pods").unwrap().completed();
    assert_eq!(names(&get(&copies, PODS, "").unwrap()).len(), 3);
}

#[test]
fn writes_are_refused_with_the_reason_and_when_to_try_again() {
    let copies = copies(true);
    for (method, path) in [("POST", PODS), ("PUT", "/api/v1/namespaces/d/pods/a"), ("PATCH", PODS), ("DELETE", PODS)] {
        let offline = answer(&copies, head(method, path, ""), false).err().unwrap();
        assert_eq!((offline.code, offline.reason, offline.retry_after()), (503, "ServiceUnavailable", Some(1)));
        assert!(offline.message.contains("offline"), "{}", offline.message);
        let online = answer(&copies, head(method, path, ""), true);
        assert!(matches!(online, Ok(Answer::Cloud(Asked { copy: Some(_), instead: None }))), "{method}");
    }
    let unknown = answer(&copies, head("BREW", PODS, ""), false).err().unwrap();
    assert_eq!(unknown.code, 405);
}

#[test]
fn a_version_that_this_node_never_gave_is_expired() {
    let copies = copies(true);
    let present = copies.of("", "pods").unwrap().resource_version();
    for version in [1, present + 1, u64::MAX] {
        for watch in ["watch=1&", "resourceVersionMatch=Exact&"] {
            let query = format!("{watch}resourceVersion={version}");
            let refused = answer(&copies, head("GET", PODS, &query), false);
            match (version, watch) {
                // A watch says it as its first event.
                (1, "watch=1&") => assert!(matches!(refused, Ok(Answer::Watch(_)))),
                _ => assert_eq!(refused.err().unwrap().code, 410, "{query}"),
            }
        }
    }
}

#[tokio::test]
async fn watches_are_bounded_and_end_with_the_server() {
    let copies = copies(true);
    let open = || answer(&copies, head("GET", PODS, "watch=1&resourceVersion=0"), false);
    let (Ok(Answer::Watch(mut first)), Ok(Answer::Watch(second))) = (open(), open()) else { panic!("two watches") };
    assert_eq!(open().err().unwrap().code, 429);
    drop(second);
    assert!(open().is_ok());
    let lines = first.next().await.unwrap();
    assert_eq!(lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).count(), 3);
    copies.close();
    assert!(first.next().await.is_none());
    assert_eq!(get(&copies, "/readyz", "").err().map(|status| status.code), Some(503));
}

proptest! {
    #[test]
    fn no_head_makes_it_panic(
        method in "GET|POST|DELETE|[A-Z]{1,5}",
        path in "/(api|apis|openapi|version|healthz)?(/[a-z0-9.%]{0,9}){0,8}",
        query in "((watch|limit|continue|resourceVersion|resourceVersionMatch|sendInitialEvents|fieldSelector|labelSelector)=[a-zA-Z0-9%=,!]{0,9}&?){0,4}",
        accept in "\\PC{0,40}",
        online in any::<bool>(),
    ) {
        let copies = copies(true);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let _entered = runtime.enter();
        let head = Head { accept: Some(&accept), ..head(&method, &path, &query) };
        if let Err(status) = answer(&copies, head, online) {
            prop_assert!((400..600).contains(&status.code), "{status}");
        }
    }
}
