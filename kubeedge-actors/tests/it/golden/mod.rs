//! The API server against what a real kube-apiserver answered.
//!
//! The recordings stand in `../shared/golden` beside the workspace (or where `KUBEEDGE_GOLDEN` points): one JSON
//! exchange a line, run in order. Answers are compared by shape (`compare`); what this server does not serve yet is
//! listed by name with its reason (`excluded`) and nothing is left out silently.

mod beyond;
pub(crate) mod client;
mod compare;
mod direct;
mod excluded;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use kubeedge_actors::apiserver::{Config, Server};
use serde_json::{Value, json};

use client::{Answer, Client};
use compare::Seen;

use crate::skip::skipped;

/// Files in the order they were recorded.
const FILES: [&str; 10] = [
    "01-discovery",
    "02-create-get-list",
    "03-update-patch",
    "04-pods",
    "05-nodes-leases-services",
    "06-crd",
    "07-delete-finalizers-owners",
    "08-watch",
    "09-auth",
    "10-namespace-delete",
];

/// One recorded request and its answer.
struct Exchange {
    file: &'static str,
    name: String,
    request: Value,
    response: Value,
}

/// The folder of the recordings; `None` where there is none.
fn folder() -> Option<PathBuf> {
    let folder = match std::env::var_os("KUBEEDGE_GOLDEN") {
        Some(folder) => PathBuf::from(folder),
        None => PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../shared/golden"),
    };
    folder.is_dir().then_some(folder)
}

/// All exchanges, or a line that says by name what is skipped.
fn exchanges(test: &str) -> Option<Vec<Exchange>> {
    let Some(folder) = folder() else {
        // They are not part of the repository, so that CI has none either.
        let why = "no recordings at ../shared/golden beside the workspace, and KUBEEDGE_GOLDEN names no folder";
        skipped(&format!("golden::{test}"), why);
        return None;
    };
    let mut all = Vec::new();
    for file in FILES {
        let path = folder.join(format!("{file}.jsonl"));
        let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        for line in text.lines().filter(|line| !line.trim().is_empty()) {
            let mut line: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{file}: {error}"));
            let name = line["name"].as_str().expect("an exchange has a name").to_owned();
            all.push(Exchange { file, name, request: line["request"].take(), response: line["response"].take() });
        }
    }
    Some(all)
}

#[test]
fn every_exclusion_names_a_recorded_exchange_and_has_a_reason() {
    let Some(all) = exchanges("every_exclusion_names_a_recorded_exchange_and_has_a_reason") else { return };
    for (file, name, reason) in excluded::EXCLUDED {
        assert!(all.iter().any(|e| e.file == *file && e.name == *name), "{file}: no exchange {name:?}");
        assert!(reason.len() > 10, "{file}: {name:?} needs a reason");
    }
}

#[test]
fn what_is_not_served_is_named_as_the_recorded_server_lists_it() {
    let Some(all) = exchanges("what_is_not_served_is_named_as_the_recorded_server_lists_it") else { return };
    let lists =
        all.iter().filter(|exchange| exchange.file == "01-discovery").map(|exchange| &exchange.response["body"]);
    let lists = lists.flat_map(|body| [&body["groups"], &body["resources"]]).filter_map(Value::as_array);
    let listed: Vec<&Value> = lists.flatten().map(|entry| &entry["name"]).collect();
    for (name, reason) in excluded::NOT_SERVED {
        assert!(listed.contains(&&json!(name)), "{name} is not in the recordings");
        assert!(reason.len() > 10, "{name} needs a reason");
    }
}

/// Headers that are compared.
const HEADERS: [&str; 2] = ["Content-Type", "Warning"];
/// The file whose requests are sent with a token nobody issued.
const BAD_TOKEN_FILE: &str = "09-auth";
/// How long a state that a controller brings about may take.
const PATIENCE: Duration = Duration::from_secs(20);
/// How often such a state is looked at.
const POLL: Duration = Duration::from_millis(50);

#[tokio::test]
async fn the_server_answers_as_the_recorded_one_did() {
    let Some(all) = exchanges("the_server_answers_as_the_recorded_one_did") else { return };
    let server = Server::start(Config::in_memory()).await.expect("the server starts");
    let client = Client::new(server.address(), "admin");
    let stranger = Client::new(server.address(), "nobody");
    let mut seen = Seen::default();
    let mut failures: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let (mut compared, mut left_out) = (0, 0);
    for (number, exchange) in all.iter().enumerate() {
        let label = format!("{}: {} (#{number})", exchange.file, exchange.name);
        if let Some(reason) = excluded::reason(exchange.file, &exchange.name) {
            println!("not compared: {label}: {reason}");
            left_out += 1;
            continue;
        }
        prepare(&client, exchange).await;
        let client = if exchange.file == BAD_TOKEN_FILE { &stranger } else { &client };
        let answer = ask(client, exchange, &seen).await;
        let found = judge(exchange, &answer, &mut seen);
        compared += 1;
        if !found.is_empty() {
            failures.insert(label, found);
        }
    }
    server.stop().await;
    println!("{compared} exchanges compared, {left_out} not applicable, {} different", failures.len());
    let report: Vec<String> =
        failures.iter().map(|(label, found)| format!("{label}\n    {}", found.join("\n    "))).collect();
    assert!(failures.is_empty(), "{} of {compared} answers differ:\n{}", failures.len(), report.join("\n"));
}

/// What the recorded cluster had and the requests alone do not bring about.
async fn prepare(client: &Client, exchange: &Exchange) {
    let hold = "/api/v1/namespaces/golden/configmaps/hold";
    match (exchange.file, exchange.name.as_str()) {
        // The recording caught the namespace while it was being emptied: here an object with a finalizer keeps it so.
        ("10-namespace-delete", "delete ns") => {
            let object = json!({"apiVersion": "v1", "kind": "ConfigMap",
                "metadata": {"name": "hold", "finalizers": ["golden.io/hold"]}});
            let path = "/api/v1/namespaces/golden/configmaps";
            let answer = client.send("POST", path, &[], Some(object.to_string())).await;
            assert_eq!(answer.status, 201, "{}", answer.text);
        }
        // The recording's garbage collector had time to finish a foreground deletion between two files.
        ("08-watch", "list for rv") => {
            let path = "/api/v1/namespaces/golden/configmaps/c1";
            let started = std::time::Instant::now();
            while client.send("GET", path, &[], None).await.status != 404 && started.elapsed() < PATIENCE {
                tokio::time::sleep(POLL).await;
            }
        }
        ("10-namespace-delete", "ns gone?") => {
            let patch = json!({"metadata": {"finalizers": null}}).to_string();
            let headers = [("Content-Type", "application/merge-patch+json")];
            let answer = client.send("PATCH", hold, &headers, Some(patch)).await;
            assert_eq!(answer.status, 200, "{}", answer.text);
        }
        _ => {}
    }
}

async fn ask(client: &Client, exchange: &Exchange, seen: &Seen) -> Answer {
    let request = &exchange.request;
    let text = |field: &str| request[field].as_str();
    let path = seen.translate_path(text("path").expect("a path"));
    let mut headers = vec![("Accept", text("accept").unwrap_or("application/json"))];
    headers.extend(text("contentType").map(|media| ("Content-Type", media)));
    let body = match &request["body"] {
        Value::Null => None,
        Value::String(raw) => Some(raw.clone()),
        body => Some(seen.translate(body).to_string()),
    };
    let method = text("method").expect("a method");
    let wanted = exchange.response["status"].as_u64();
    let send = || client.send(method, &path, &headers, body.clone());
    if exchange.name != "ns gone?" {
        return send().await;
    }
    // A namespace ends when its controller has emptied it; the last answer is judged if it does not.
    let started = std::time::Instant::now();
    loop {
        let answer = send().await;
        if Some(u64::from(answer.status)) == wanted || started.elapsed() > PATIENCE {
            return answer;
        }
        tokio::time::sleep(POLL).await;
    }
}

/// What differs between the recorded answer and the one given.
fn judge(exchange: &Exchange, answer: &Answer, seen: &mut Seen) -> Vec<String> {
    let mut found = Vec::new();
    let wanted = &exchange.response;
    if wanted["status"].as_u64() != Some(u64::from(answer.status)) {
        found.push(format!("status: {} instead of {}: {}", answer.status, wanted["status"], answer.start()));
    }
    for header in HEADERS {
        let recorded = wanted["headers"][header].as_str();
        let given = answer.headers.get(&header.to_lowercase()).map(String::as_str);
        if recorded.map(str::to_lowercase) != given.map(str::to_lowercase) {
            found.push(format!("{header}: {given:?} instead of {recorded:?}"));
        }
    }
    match &wanted["body"] {
        // Which parts a server has is its own; how it tells of them is not.
        Value::String(text) if exchange.name == "readyz verbose" => {
            let (wanted, given) = (compare::checks(text), compare::checks(&answer.text));
            if wanted != given {
                found.push(format!("body: {given:?} instead of {wanted:?}: {}", answer.text));
            }
        }
        Value::String(text) => {
            if *text != answer.text {
                found.push(format!("body: {:?} instead of {text:?}", answer.text));
            }
        }
        body => match answer.body(body) {
            Ok(given) => found.extend(compare::bodies(exchange.file, &exchange.name, body, &given, seen)),
            Err(error) => found.push(format!("body: {error}: {}", answer.start())),
        },
    }
    found
}
