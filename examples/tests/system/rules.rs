//! Rules, whole: every flow between REST at the cloud, and MQTT and an HTTP service at the node, on real processes.

mod service;

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use kube::{
    Api, Client,
    api::{ApiResource, DynamicObject, Patch, PatchParams},
};
use kubeedge_examples::{
    http::{self, Answer},
    lab::{Lab, NODE, Rules, free_ports, node_ready},
};
use serde_json::{Value, json};
use tokio::task::LocalSet;

use self::service::{Seen, Service};
use crate::{
    cluster::poll,
    devices::{App, modbus::define},
    report::{Outcome, Report},
};

const UP: &str = "rules::a_lab_comes_up";
const DOWN: &str = "rules::nothing_is_left_on_the_machine";
const SERVICE: &str = "rules::a_request_reaches_a_service_at_the_node_once_and_gets_its_own_answer";
const PUBLISH: &str = "rules::a_request_is_published_on_mqtt_at_the_node";
const UPWARD: &str = "rules::what_is_published_at_the_node_reaches_a_url_and_a_service";
const POSTED: &str = "rules::what_an_application_posts_reaches_a_url_and_mqtt";
const LIMITS: &str = "rules::what_cannot_be_gets_a_clear_error";
const STATUS: &str = "rules::a_rule_says_what_became_of_its_messages_and_changes_at_once";
const CUT: &str = "rules::a_cut_in_the_middle_loses_no_message_and_repeats_no_request";
const EXAMPLES: &str = "rules::the_examples_are_taken_and_the_first_of_them_works";
const ALL: [&str; 8] = [SERVICE, PUBLISH, UPWARD, POSTED, LIMITS, STATUS, EXAMPLES, CUT];

/// For one thing to come about.
const LIMIT: Duration = Duration::from_secs(120);

pub(crate) async fn stage(report: &mut Report) {
    if !report.begins(&ALL) {
        return;
    }
    let Some((mut lab, folder)) = report.lab(UP, up).await else { return };
    report.run(SERVICE, lab.guarded(async |lab| local(to_service(lab)).await)).await;
    report.run(PUBLISH, lab.guarded(async |lab| local(publish(lab)).await)).await;
    report.run(UPWARD, lab.guarded(async |lab| local(upward(lab)).await)).await;
    report.run(POSTED, lab.guarded(async |lab| local(posted(lab)).await)).await;
    report.run(LIMITS, lab.guarded(async |lab| local(limits(lab)).await)).await;
    report.run(STATUS, lab.guarded(async |lab| local(status(lab)).await)).await;
    report.run(EXAMPLES, lab.guarded(async |lab| local(examples(lab)).await)).await;
    report.run(CUT, cut(&mut lab)).await;
    report.close(DOWN, lab, folder, Ok(())).await;
}

/// MQTT clients are not sent between threads.
async fn local<T>(work: impl Future<Output = T>) -> T {
    LocalSet::new().run_until(work).await
}

/// Cloud, edge, the definitions and one endpoint of each type.
async fn up(lab: &mut Lab) -> Result<()> {
    lab.rules = Some(Rules::on_free_ports()?);
    lab.start_cloud().await?;
    lab.join().await?;
    lab.start_edge_with(&["--fake-runtime"])?;
    lab.guarded(async |lab| {
        node_ready(lab.client()?).await?;
        define(lab).await?;
        endpoint(lab, "rest", json!({"ruleEndpointType": "rest", "properties": {}})).await?;
        endpoint(lab, "mqtt", json!({"ruleEndpointType": "eventbus", "properties": {}})).await
    })
    .await
}

fn api(client: &Client, kind: &str, plural: &str) -> Api<DynamicObject> {
    let resource = ApiResource {
        group: "rules.kubeedge.io".into(),
        version: "v1".into(),
        api_version: "rules.kubeedge.io/v1".into(),
        kind: kind.into(),
        plural: plural.into(),
    };
    Api::namespaced_with(client.clone(), "default", &resource)
}

/// Makes an object or changes it. The kind may not be served yet.
async fn apply(lab: &Lab, (kind, plural): (&str, &str), name: &str, spec: &Value) -> Result<()> {
    let api = api(&lab.client()?, kind, plural);
    let object: DynamicObject = serde_json::from_value(json!({
        "apiVersion": "rules.kubeedge.io/v1", "kind": kind, "metadata": {"name": name}, "spec": spec,
    }))?;
    poll(&format!("{kind} {name} is taken"), async || {
        let patch = Patch::Merge(json!({"spec": spec}));
        let made = match api.patch(name, &PatchParams::default(), &patch).await {
            // It is not there, or its kind is not served yet.
            Err(kube::Error::Api(status)) if status.code == 404 => api.create(&Default::default(), &object).await,
            made => made,
        };
        match made {
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(Err(status.message.clone())),
            made => Ok(Ok(made.map(drop)?)),
        }
    })
    .await
}

async fn endpoint(lab: &Lab, name: &str, spec: Value) -> Result<()> {
    apply(lab, ("RuleEndpoint", "ruleendpoints"), name, &spec).await
}

async fn rule(lab: &Lab, name: &str, source: (&str, Value), target: (&str, Value)) -> Result<()> {
    let spec = json!({"source": source.0, "sourceResource": source.1, "target": target.0, "targetResource": target.1});
    apply(lab, ("Rule", "rules"), name, &spec).await
}

fn rules(lab: &Lab) -> Result<Rules> {
    lab.rules.clone().context("the lab has rules")
}

/// Posts to the cloud's REST server, for the lab's node.
async fn post(lab: &Lab, path: &str, body: &[u8]) -> Result<Answer> {
    http::post(rules(lab)?.rest, &format!("/{NODE}/default{path}"), "", body).await
}

/// Posts until the rule counts at the cloud.
async fn until_routed(lab: &Lab, path: &str, body: &[u8]) -> Result<Answer> {
    poll(&format!("a rule for {path}"), async || {
        let answer = post(lab, path, body).await?;
        // Neither the rule nor its endpoints are seen yet.
        let unknown = answer.status == 404 || text(&answer).contains("there is no RuleEndpoint");
        Ok(if unknown { Err(text(&answer)) } else { Ok(answer) })
    })
    .await
}

fn text(answer: &Answer) -> String {
    format!("{} {}", answer.status, String::from_utf8_lossy(&answer.body))
}

async fn next(seen: &mut Seen) -> Result<service::Request> {
    match tokio::time::timeout(LIMIT, seen.recv()).await {
        Ok(request) => request.context("the service has ended"),
        Err(_) => bail!("nothing reached the service within {LIMIT:?}"),
    }
}

/// rest -> servicebus.
async fn to_service(lab: &Lab) -> Result<Outcome> {
    let (service, mut seen) = Service::serve().await?;
    let properties = json!({"service_port": service.port().to_string()});
    endpoint(lab, "service", json!({"ruleEndpointType": "servicebus", "properties": properties})).await?;
    rule(lab, "orders", ("rest", json!({"path": "/orders/{shop}"})), ("service", json!({"path": "/in"}))).await?;

    let answer = until_routed(lab, "/orders/7/items/1?full=yes", b"{\"a\": 1}").await?;
    ensure!(answer.status == 200 && answer.body == b"took {\"a\": 1}", "{}", text(&answer));
    let request = next(&mut seen).await?;
    ensure!(request.line == "POST /in/items/1?full=yes" && request.body == b"{\"a\": 1}", "{request:?}");

    // Its own status and headers, once, though it is a failure.
    for status in [404_u16, 418, 500, 503] {
        let answer = post(lab, &format!("/orders/7/status/{status}"), b"x").await?;
        ensure!(answer.status == status && answer.body == b"took x", "{}", text(&answer));
        ensure!(answer.head.to_ascii_lowercase().contains("x-service: test"), "{}", answer.head);
        ensure!(next(&mut seen).await?.line == format!("POST /in/status/{status}"), "another request");
    }
    ensure!(seen.try_recv().is_err(), "a request was repeated");

    // A body that is larger than any buffer on the way, there and back.
    let large: Vec<u8> = (0..11 * 1024 * 1024_u32).map(|n| (n % 251) as u8).collect();
    let answer = post(lab, "/orders/7/large", &large).await?;
    ensure!(answer.status == 200, "{}", answer.head);
    ensure!(answer.body.strip_prefix(b"took ") == Some(&large[..]), "{} bytes came back", answer.body.len());
    ensure!(next(&mut seen).await?.body.len() == large.len(), "the service got less");

    // Whole paths only.
    for path in ["/orders", "/ordersx/7", "/x/orders/7"] {
        let answer = post(lab, path, b"").await?;
        ensure!(answer.status == 404, "{path}: {}", text(&answer));
    }
    Ok(Outcome::Proved)
}

/// rest -> eventbus.
async fn publish(lab: &Lab) -> Result<Outcome> {
    let mut app = App::listening(lab, "a-publisher", ["site/#".to_owned()])?;
    rule(lab, "lamp", ("rest", json!({"path": "/lamp"})), ("mqtt", json!({"topic": "site/lamp"}))).await?;
    until_routed(lab, "/lamp/hello", b"hello").await?;
    // The application is subscribed when it has heard one.
    poll("an application that hears", async || {
        post(lab, "/lamp/hello", b"hello").await?;
        let heard = tokio::time::timeout(Duration::from_millis(200), app.heard.recv()).await;
        Ok(heard.map(drop).map_err(|_| "nothing".to_owned()))
    })
    .await?;
    let answer = post(lab, "/lamp/on", b"{\"level\": 7}").await?;
    ensure!(answer.status == 200 && answer.body == b"message delivered", "{}", text(&answer));
    loop {
        let heard = tokio::time::timeout(LIMIT, app.heard.recv()).await?.context("the application's queue")?;
        match heard.topic.as_str() {
            "site/lamp/hello" => {}
            topic => {
                ensure!(topic == "site/lamp/on" && &heard.payload[..] == b"{\"level\": 7}", "{heard:?}");
                break;
            }
        }
    }
    let wild = post(lab, "/lamp/%23", b"x").await?;
    ensure!(wild.status == 400, "{}", text(&wild));
    app.client.disconnect().await;
    Ok(Outcome::Proved)
}

/// eventbus -> rest, eventbus -> servicebus.
async fn upward(lab: &Lab) -> Result<Outcome> {
    let (url, mut at_url) = Service::serve().await?;
    let (service, mut at_service) = Service::serve().await?;
    let properties = json!({"service_port": service.port().to_string()});
    endpoint(lab, "alarms", json!({"ruleEndpointType": "servicebus", "properties": properties})).await?;
    let source = |topic: &str| ("mqtt", json!({"topic": topic, "node_name": NODE}));
    let resource = format!("http://127.0.0.1:{}/readings", url.port());
    rule(lab, "readings", source("readings"), ("rest", json!({"resource": resource}))).await?;
    rule(lab, "alarms", source("alarms"), ("alarms", json!({"path": "/alarm"}))).await?;

    let app = App::listening(lab, "a-sensor", ["none".to_owned()])?;
    for (topic, seen, line) in
        [("default/readings", &mut at_url, "POST /readings"), ("default/alarms", &mut at_service, "POST /alarm")]
    {
        // Until the rule counts at the node nobody listens there.
        poll(&format!("{topic} arrives"), async || {
            app.publish_text(topic, b"hello");
            let came = tokio::time::timeout(Duration::from_millis(300), seen.recv()).await;
            Ok(came.map(drop).map_err(|_| "nothing".to_owned()))
        })
        .await?;
        app.publish_text(topic, b"{\"t\": 21.5}");
        let request = loop {
            let request = next(seen).await?;
            if request.body != b"hello" {
                break request;
            }
        };
        ensure!(request.line == line && request.body == b"{\"t\": 21.5}", "{request:?}");
        ensure!(request.headers.contains("content-type: application/json"), "{request:?}");
        ensure!(request.headers.contains("idempotency-key: "), "{request:?}");
    }
    // A topic that only begins like a rule's is none of it.
    app.publish_text("default/readings/more", b"no");
    app.publish_text("default/readings", b"last");
    let request = next(&mut at_url).await?;
    ensure!(request.body == b"last" || request.body == b"hello", "{request:?}");
    app.client.disconnect().await;
    Ok(Outcome::Proved)
}

/// servicebus -> rest, servicebus -> eventbus.
async fn posted(lab: &Lab) -> Result<Outcome> {
    let (url, mut at_url) = Service::serve().await?;
    let at = rules(lab)?.service_bus;
    endpoint(lab, "from-service", json!({"ruleEndpointType": "servicebus", "properties": {}})).await?;
    let source = |target: &str| ("from-service", json!({"target_url": target, "node_name": NODE}));
    let resource = format!("http://127.0.0.1:{}/orders", url.port());
    rule(lab, "to-url", source("http://orders.example/in"), ("rest", json!({"resource": resource}))).await?;
    rule(lab, "to-mqtt", source("http://lamp.example/"), ("mqtt", json!({"topic": "site/from-service"}))).await?;
    let call = async |body: &Value| -> Result<Value> {
        let answer = http::post(at, "/any/path", "", body.to_string().as_bytes()).await?;
        ensure!(answer.status == 200, "{}", text(&answer));
        Ok(serde_json::from_slice(&answer.body)?)
    };
    let order = json!({"method": "POST", "targetURL": "http://orders.example/in", "payload": {"item": 7}});
    // Its port is served when a rule names a URL.
    let answer = poll("ServiceBus is served and the rule counts", async || {
        let answer = match call(&order).await {
            Ok(answer) => answer,
            Err(error) => return Ok(Err(format!("{error:#}"))),
        };
        Ok(if answer["code"] == 200 { Ok(answer) } else { Err(answer.to_string()) })
    })
    .await?;
    ensure!(answer["msg"] == "receive response from cloud successfully", "{answer}");
    let request = next(&mut at_url).await?;
    let body: Value = serde_json::from_slice(&request.body)?;
    ensure!(request.line == "POST /orders" && body == order, "{request:?}");
    ensure!(answer["body"] == format!("took {}", String::from_utf8_lossy(&request.body)), "{answer}");

    let mut app = App::listening(lab, "a-lamp", ["site/from-service".to_owned()])?;
    let lamp = json!({"method": "POST", "targetURL": "http://lamp.example/", "payload": {"on": true}});
    let heard = poll("the lamp hears", async || {
        let answer = call(&lamp).await?;
        if answer["code"] != 200 {
            return Ok(Err(answer.to_string()));
        }
        let heard = tokio::time::timeout(Duration::from_millis(300), app.heard.recv()).await;
        Ok(heard.map_err(|_| "nothing".to_owned()))
    })
    .await?;
    let heard = heard.context("the application's queue")?;
    ensure!(&heard.payload[..] == b"{\"on\":true}", "{heard:?}");
    app.client.disconnect().await;

    let unknown = json!({"method": "POST", "targetURL": "http://elsewhere.example/", "payload": 1});
    let refused = call(&unknown).await?;
    ensure!(refused["code"] == 400, "{refused}");
    let none = http::post(at, "/", "", b"no JSON").await?;
    ensure!(serde_json::from_slice::<Value>(&none.body)?["code"] == 400, "{}", text(&none));
    // Of what is too large nothing is read.
    let large = http::send("POST / HTTP/1.0\r\nHost: a\r\nContent-Length: 5000001\r\n\r\n", b"", at).await?;
    ensure!(serde_json::from_slice::<Value>(&large.body)?["code"] == 413, "{}", text(&large));
    Ok(Outcome::Proved)
}

/// Oversize bodies, bad paths, services that are not allowed or do not answer.
async fn limits(lab: &Lab) -> Result<Outcome> {
    let (service, _seen) = Service::serve().await?;
    let properties = json!({"service_port": service.port().to_string()});
    endpoint(lab, "limited", json!({"ruleEndpointType": "servicebus", "properties": properties})).await?;
    rule(lab, "limited", ("rest", json!({"path": "/limited"})), ("limited", json!({"path": "/"}))).await?;
    until_routed(lab, "/limited", b"").await?;

    let rest = rules(lab)?.rest;
    // Of what is too large nothing is read.
    let length = 12 * 1024 * 1024 + 1;
    let large = format!("POST /{NODE}/default/limited HTTP/1.0\r\nHost: a\r\nContent-Length: {length}\r\n\r\n");
    let answer = http::send(&large, b"", rest).await?;
    ensure!(answer.status == 413, "{}", text(&answer));
    for path in ["/limited/../../etc", "/limited/%2e%2e/etc", "/limited/%0d%0aHost:%20evil"] {
        let answer = post(lab, path, b"").await?;
        ensure!(answer.status == 400, "{path}: {}", text(&answer));
    }
    let slow = post(lab, "/limited/hang", b"").await?;
    ensure!(slow.status == 504 && text(&slow).contains("did not answer within 10s"), "{}", text(&slow));
    let unfinished = format!("POST /{NODE}/default/limited HTTP/1.0\r\nHost: a\r\nContent-Length: 10\r\n\r\nabc");
    let answer = http::send(&unfinished, b"", rest).await?;
    ensure!(answer.status == 408, "{}", text(&answer));
    let headers = format!("x-large: {}\r\n", "a".repeat(17 * 1024));
    let answer = http::post(rest, &format!("/{NODE}/default/limited"), &headers, b"").await?;
    ensure!(answer.status == 431, "{}", text(&answer));

    // Off this machine: refused at the node, whatever the cloud says.
    let properties = json!({"service_port": "80", "service_host": "169.254.169.254"});
    endpoint(lab, "limited", json!({"ruleEndpointType": "servicebus", "properties": properties})).await?;
    let answer = poll("the changed endpoint counts", async || {
        let answer = post(lab, "/limited/latest/meta-data", b"").await?;
        Ok(if answer.status == 200 { Err(text(&answer)) } else { Ok(answer) })
    })
    .await?;
    ensure!(answer.status == 403 && text(&answer).contains("does not call 169.254.169.254:80"), "{}", text(&answer));
    let [port] = free_ports()?;
    let closed = json!({"service_port": port.to_string(), "service_host": null});
    endpoint(lab, "limited", json!({"ruleEndpointType": "servicebus", "properties": closed})).await?;
    let answer = poll("a service that is not there", async || {
        let answer = post(lab, "/limited", b"").await?;
        Ok(if answer.status == 403 { Err(text(&answer)) } else { Ok(answer) })
    })
    .await?;
    ensure!(answer.status == 502 && text(&answer).contains("cannot be reached"), "{}", text(&answer));
    let nobody = http::post(rest, "/edge-77/default/limited", "", b"").await?;
    ensure!(nobody.status == 503 && text(&nobody).contains("edge-77 is not connected"), "{}", text(&nobody));

    // Admission: what cannot work is not taken.
    let bad = json!({"source": "rest", "sourceResource": {"path": "/a{b}"}, "target": "mqtt",
        "targetResource": {"topic": "t"}});
    let refused = apply(lab, ("Rule", "rules"), "bad", &bad).await;
    let refused = format!("{:#}", refused.err().context("a rule that cannot work was taken")?);
    ensure!(refused.contains("spec.sourceResource.path"), "{refused}");
    Ok(Outcome::Proved)
}

/// Counts and errors in `Rule.status`; a changed rule counts with the next request.
async fn status(lab: &Lab) -> Result<Outcome> {
    let (service, _seen) = Service::serve().await?;
    let properties = json!({"service_port": service.port().to_string()});
    endpoint(lab, "counted", json!({"ruleEndpointType": "servicebus", "properties": properties})).await?;
    rule(lab, "counted", ("rest", json!({"path": "/counted"})), ("counted", json!({"path": "/"}))).await?;
    until_routed(lab, "/counted", b"").await?;
    for status in [200_u16, 500] {
        let answer = post(lab, &format!("/counted/status/{status}"), b"").await?;
        ensure!(answer.status == status, "{}", text(&answer));
    }
    let rules = api(&lab.client()?, "Rule", "rules");
    poll("what became of the messages", async || {
        let status = rules.get("counted").await?.data["status"].clone();
        // A request that came before the endpoint was known has failed as well.
        let counted = status["successMessages"] == 2 && status["failMessages"].as_u64() >= Some(1);
        let error = status["errors"].to_string().contains("answered 500");
        Ok(if counted && error { Ok(()) } else { Err(status.to_string()) })
    })
    .await?;
    // A write of a rule is answered before the router has seen it: at once means without a restart or a pause.
    rule(lab, "counted", ("rest", json!({"path": "/moved"})), ("counted", json!({"path": "/"}))).await?;
    until_routed(lab, "/moved", b"").await?;
    ensure!(post(lab, "/counted", b"").await?.status == 404, "the old path counts");
    Ok(Outcome::Proved)
}

/// The manifests that docs/apps.md names.
async fn examples(lab: &Lab) -> Result<Outcome> {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("rules");
    let mut files: Vec<_> = std::fs::read_dir(&folder)?.collect::<std::io::Result<_>>()?;
    files.sort_by_key(std::fs::DirEntry::file_name);
    ensure!(files.len() == 7, "{} files in {}", files.len(), folder.display());
    for file in files {
        for document in std::fs::read_to_string(file.path())?.split("\n---\n") {
            let object: Value = serde_saphyr::from_str(document)?;
            let name = object["metadata"]["name"].as_str().context("a name")?;
            let kind = if object["kind"] == "Rule" { ("Rule", "rules") } else { ("RuleEndpoint", "ruleendpoints") };
            // Another scenario's of that name would be merged with it.
            match api(&lab.client()?, kind.0, kind.1).delete(name, &Default::default()).await {
                Err(kube::Error::Api(status)) if status.code == 404 => {}
                deleted => drop(deleted?),
            }
            let taken = apply(lab, kind, name, &object["spec"]).await;
            taken.with_context(|| format!("{}", file.path().display()))?;
        }
    }
    let mut app = App::listening(lab, "a-hall", ["site/lamp/hall".to_owned()])?;
    let heard = poll("the lamp in the hall hears", async || {
        post(lab, "/lamp/hall", b"{\"on\": true}").await?;
        let heard = tokio::time::timeout(Duration::from_millis(200), app.heard.recv()).await;
        Ok(heard.map_err(|_| "nothing".to_owned()))
    })
    .await?;
    ensure!(&heard.context("the application's queue")?.payload[..] == b"{\"on\": true}", "another message");
    app.client.disconnect().await;
    Ok(Outcome::Proved)
}

/// The cloud is killed while messages come; a request is under way while the edge is killed.
async fn cut(lab: &mut Lab) -> Result<Outcome> {
    let (service, mut seen) = Service::serve().await?;
    let port = service.port();
    lab.guarded(async |lab| {
        let resource = format!("http://127.0.0.1:{port}/cut");
        let source = ("mqtt", json!({"topic": "cut", "node_name": NODE}));
        rule(lab, "cut", source, ("rest", json!({"resource": resource}))).await?;
        let properties = json!({"service_port": port.to_string()});
        endpoint(lab, "cut", json!({"ruleEndpointType": "servicebus", "properties": properties})).await?;
        rule(lab, "once", ("rest", json!({"path": "/once"})), ("cut", json!({"path": "/"}))).await?;
        local(async {
            let app = App::listening(lab, "before-the-cut", ["none".to_owned()])?;
            poll("the rule counts at the node", async || {
                app.publish_text("default/cut", b"hello");
                let came = tokio::time::timeout(Duration::from_millis(300), seen.recv()).await;
                Ok(came.map(drop).map_err(|_| "nothing".to_owned()))
            })
            .await?;
            app.client.disconnect().await;
            until_routed(lab, "/once", b"").await.map(drop)
        })
        .await
    })
    .await?;

    // Nobody hears them for now.
    lab.kill_cloud().await?;
    const MESSAGES: usize = 50;
    local(async {
        let app = App::listening(lab, "in-the-cut", ["default/cut".to_owned()])?;
        let mut app = app;
        poll("the application is connected", async || {
            app.publish_text("default/cut", b"hello");
            let heard = tokio::time::timeout(Duration::from_millis(200), app.heard.recv()).await;
            Ok(heard.map(drop).map_err(|_| "nothing".to_owned()))
        })
        .await?;
        for n in 0..MESSAGES {
            app.publish_text("default/cut", format!("message {n}").as_bytes());
        }
        // Each has been through the broker when the application hears it.
        for n in 0..MESSAGES {
            loop {
                let heard = tokio::time::timeout(LIMIT, app.heard.recv()).await?.context("the application's queue")?;
                if heard.payload == format!("message {n}").as_bytes() {
                    break;
                }
            }
        }
        app.client.disconnect().await;
        anyhow::Ok(())
    })
    .await?;
    lab.resume_cloud().await?;
    let mut missing: Vec<String> = (0..MESSAGES).map(|n| format!("message {n}")).collect();
    while !missing.is_empty() {
        let request = next(&mut seen).await.with_context(|| format!("still missing: {missing:?}"))?;
        let body = String::from_utf8_lossy(&request.body).into_owned();
        missing.retain(|wanted| *wanted != body);
    }

    // A request is at the service when the edge dies: the caller learns it, and nobody asks the service again.
    let lab_rest = rules(lab)?.rest;
    let path = format!("/{NODE}/default/once/hang");
    poll("the node is back", async || {
        let answer = http::post(lab_rest, &format!("/{NODE}/default/once"), "", b"").await?;
        Ok(if answer.status == 200 { Ok(()) } else { Err(text(&answer)) })
    })
    .await?;
    while seen.try_recv().is_ok() {}
    let asking = tokio::spawn(async move { http::post(lab_rest, &path, "", b"once").await });
    let request = next(&mut seen).await?;
    ensure!(request.line == "POST /hang", "{request:?}");
    lab.kill_edge().await?;
    let answer = tokio::time::timeout(LIMIT, asking).await.context("the caller was not told")???;
    ensure!(matches!(answer.status, 502..=504), "{}", text(&answer));
    lab.start_edge_with(&["--fake-runtime"])?;
    lab.guarded(async |_| {
        poll("the node is back", async || {
            let answer = http::post(lab_rest, &format!("/{NODE}/default/once/back"), "", b"").await?;
            Ok(if answer.status == 200 { Ok(()) } else { Err(text(&answer)) })
        })
        .await
    })
    .await?;
    while let Ok(request) = seen.try_recv() {
        ensure!(request.line != "POST /hang", "the request was repeated");
    }
    Ok(Outcome::Proved)
}
