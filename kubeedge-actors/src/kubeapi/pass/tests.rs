use proptest::prelude::*;

use super::*;

fn headers(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn parse(method: &str, path: &str, query: &str, pairs: &[(&str, &str)]) -> Result<Passed, Status> {
    Passed::parse(method, path, query, &headers(pairs))
}

#[test]
fn a_request_is_written_anew_out_of_closed_sets() {
    let sent = parse(
        "PATCH",
        "/apis/apps/v1/namespaces/shop/deployments/w%65b/scale/",
        "fieldManager=me&token=secret&dryRun=All",
        &[
            (
                "accept",
                "application/vnd.kubernetes.protobuf, application/json;as=Table;v=v1;g=meta.k8s.io, application/json",
            ),
            ("content-type", "Application/Merge-Patch+JSON; charset=utf-8"),
            ("authorization", "bearer  abc"),
            ("cookie", "a=b"),
            ("x-forwarded-for", "1.2.3.4"),
        ],
    );
    let wire = sent.unwrap().to_wire(Bytes::new());
    assert_eq!(wire.path_and_query, "/apis/apps/v1/namespaces/shop/deployments/web/scale?fieldManager=me&dryRun=All");
    let expected = [
        ("accept", "application/json;as=Table;v=v1;g=meta.k8s.io,application/json"),
        ("content-type", "application/merge-patch+json"),
        ("authorization", "Bearer abc"),
    ];
    assert_eq!(wire.headers, expected.map(|(name, value)| (name.to_owned(), value.to_owned())).into());
    assert_eq!(wire.method, "PATCH");
}

#[test]
fn what_is_done_has_the_words_of_rbac() {
    for (method, path, expected) in [
        ("GET", "/api/v1/namespaces/a/services/b", Verb::Get),
        ("GET", "/api/v1/services", Verb::List),
        ("POST", "/api/v1/namespaces/a/services", Verb::Create),
        ("PUT", "/api/v1/namespaces/a/services/b/status", Verb::Update),
        ("PATCH", "/api/v1/namespaces/a", Verb::Patch),
        ("DELETE", "/api/v1/namespaces/a/services/b", Verb::Delete),
        ("DELETE", "/api/v1/namespaces/a/services", Verb::DeleteCollection),
    ] {
        let type_ = if method == "PATCH" { APPLY } else { JSON };
        match parse(method, path, "", &[("content-type", type_)]).unwrap().target {
            Target::Resource(verb, _) => assert_eq!(verb, expected, "{method} {path}"),
            other => panic!("{path}: {other:?}"),
        }
    }
}

/// What is no request of the API, or could be read in two ways, goes nowhere. `P-PASSED-IS-PARSED`
#[test]
fn what_could_be_read_in_two_ways_is_not_passed_on() {
    let good = "/api/v1/namespaces/a/services/b";
    let long = "a".repeat(2000);
    for (method, path, query, pairs, code) in [
        ("GET", "/api/v1/namespaces/a/services/../secrets", "", &[][..], 404),
        ("GET", "/api/v1/namespaces/a/services/%2e%2e", "", &[], 404),
        ("GET", "/api/v1/namespaces/a/services/b%2f..%2fc", "", &[], 404),
        ("GET", "/api/v1/namespaces/a/services/b%3fwatch=1", "", &[], 400),
        ("GET", "/api/v1/namespaces/a/services/b%0d%0ax", "", &[], 400),
        ("GET", "/api/v1//services", "", &[], 404),
        ("GET", "/metrics", "", &[], 404),
        ("GET", "//evil.example/api/v1/services", "", &[], 404),
        ("GET", "http://evil.example/api/v1", "", &[], 404),
        ("GET", "/openapi/v3/../../metrics", "", &[], 404),
        ("GET", "/api/v1/nodes/e2/proxy/run", "", &[], 501),
        ("POST", "/api/v1/namespaces/a/pods/b/exec", "", &[], 501),
        ("POST", "/api/v1/namespaces/a/serviceaccounts/b/token", "", &[], 501),
        ("GET", "/api/v1/services", "watch=true", &[], 501),
        ("GET", "/api/v1/watch/secrets", "", &[], 501),
        ("GET", "/apis/apps/v1/watch/deployments", "", &[], 501),
        ("GET", "/api/v1/proxy/nodes", "", &[], 501),
        ("POST", "/openapi/v2", "", &[], 405),
        ("POST", good, "", &[], 405),
        ("PUT", "/api/v1/services", "", &[], 405),
        ("DELETE", "/api/v1/namespaces/a/services/b/status", "", &[], 405),
        ("CONNECT", good, "", &[], 405),
        ("get", good, "", &[], 405),
        ("GET", &long, "", &[], 414),
        ("GET", good, &"limit=1&".repeat(2000), &[], 414),
        ("GET", good, "fieldManager=a%0db", &[], 400),
        ("GET", good, "", &[("accept", "text/csv")], 406),
        ("GET", good, "", &[("accept", "a\r\nx: y")], 400),
        ("GET", good, "", &[("authorization", "Bearer a\u{e9}")], 400),
        ("GET", good, "", &[("authorization", "Basic YTpi")], 401),
        ("GET", good, "", &[("authorization", "Bearer ")], 401),
        ("GET", good, "", &[("authorization", "Bearer a b")], 401),
        ("GET", good, "", &[("impersonate-user", "system:admin")], 400),
        ("GET", good, "", &[("user-agent", &"x".repeat(9000))], 431),
        ("PUT", good, "", &[("content-type", "application/yaml")], 415),
        ("PATCH", good, "", &[("content-type", PROTOBUF)], 415),
        ("PATCH", good, "", &[], 415),
        ("PATCH", good, "", &[("content-type", "application/json")], 415),
    ] {
        let refused = parse(method, path, query, pairs).map(|passed| passed.uri());
        assert_eq!(refused.as_ref().map_err(|status| status.code), Err(code), "{method} {path} {query} {pairs:?}");
    }
}

#[test]
fn the_cloud_takes_only_what_an_edge_would_have_sent() {
    let wire = parse("GET", "/api/v1/namespaces/a/services/b", "limit=1", &[]).unwrap().to_wire(Bytes::new());
    assert!(Passed::from_wire(&wire).is_ok());
    let changed = |change: &dyn Fn(&mut ApiRequest)| {
        let mut wire = wire.clone();
        change(&mut wire);
        Passed::from_wire(&wire).unwrap_err().code
    };
    assert_eq!(changed(&|wire| wire.path_and_query = "/api/v1/namespaces/a/services/%62".into()), 400);
    assert_eq!(changed(&|wire| wire.path_and_query.push_str("&x=y")), 400);
    assert_eq!(changed(&|wire| wire.path_and_query.push_str("#x")), 400);
    assert_eq!(changed(&|wire| wire.path_and_query = String::new()), 404);
    assert_eq!(changed(&|wire| wire.method = "TRACE".into()), 405);
    assert_eq!(changed(&|wire| drop(wire.headers.insert("host".into(), "evil".into()))), 400);
    assert_eq!(changed(&|wire| drop(wire.headers.insert("impersonate-group".into(), "system:masters".into()))), 400);
    assert_eq!(changed(&|wire| drop(wire.headers.insert("accept".into(), "application/json ,*/*".into()))), 400);
    assert_eq!(changed(&|wire| wire.headers.clear()), 400);
    assert_eq!(changed(&|wire| wire.body = Bytes::from_static(b"{}")), 400);
    let post = parse("POST", "/api/v1/namespaces/a/services", "", &[]).unwrap();
    assert_eq!(Passed::from_wire(&post.to_wire(vec![b' '; MAX_BODY + 1].into())).unwrap_err().code, 413);
    let apply = parse("PATCH", "/api/v1/namespaces/a/services/b", "", &[("content-type", APPLY)]).unwrap();
    assert_eq!(apply.check_body(b"kind: Service").unwrap_err().code, 415);
    assert!(apply.check_body(b" {}").is_ok());
    assert_eq!(Passed::from_wire(&ApiRequest::default()).unwrap_err().code, 405);
}

proptest! {
    /// Whatever comes is refused, or is written in one way that the cloud takes, and that is the path of an API server.
    #[test]
    fn what_is_passed_on_is_taken_and_is_a_plain_path(
        method in "GET|POST|PUT|PATCH|DELETE",
        path in "/(api|apis|openapi)(/[a-z0-9.%:/]{0,9}){0,7}",
        query in "((limit|continue|fieldSelector|x)=[a-zA-Z0-9%=,!+ ]{0,9}&?){0,4}",
        accept in "(application/json|\\*/\\*|\\PC{0,20})",
        token in "(Bearer \\PC{0,9}|\\PC{0,9})",
    ) {
        let type_ = if method == "PATCH" { APPLY } else { JSON };
        let pairs = [("accept", accept.as_str()), ("authorization", &token), ("content-type", type_)];
        if let Ok(passed) = parse(&method, &path, &query, &pairs) {
            let body = if method == "PATCH" { "{}" } else { "" };
            let wire = passed.to_wire(body.into());
            prop_assert_eq!(Passed::from_wire(&wire).unwrap(), passed);
            let (path, _) = wire.path_and_query.split_once('?').unwrap_or((&wire.path_and_query, ""));
            let plain = |segment: &str| is_plain(segment);
            prop_assert!(path.strip_prefix('/').unwrap().split('/').all(plain), "{}", path);
            prop_assert_eq!(wire.headers.contains_key("authorization"), !token.trim().is_empty());
        }
    }

    #[test]
    fn no_frame_makes_the_cloud_panic(method in "\\PC{0,8}", path in "\\PC{0,40}", name in "\\PC{0,9}", value in "\\PC{0,9}") {
        let wire = ApiRequest { method, path_and_query: path, headers: [(name, value)].into(), ..ApiRequest::default() };
        let _ = Passed::from_wire(&wire);
    }
}
