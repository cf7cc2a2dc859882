//! Two answers by shape: what the server must say is compared, what it may choose is compared by its form.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::excluded;

/// What the run under test gave where the recording has another value: uids, versions, continue tokens, made-up names.
#[derive(Default)]
pub(crate) struct Seen(BTreeMap<String, String>);

/// Fields that a server chooses.
const CHOSEN: &[&str] = &["uid", "resourceVersion", "continue", "token", "selfLink"];
/// Times that a server sets.
const TIMES: &[&str] = &["creationTimestamp", "deletionTimestamp", "lastTransitionTime", "expirationTimestamp"];
/// Left out on both sides: ownership records (times and managers differ), texts of columns and of an annotation (not
/// ours to copy).
const IGNORED: &[&str] = &["managedFields", "description", "kubernetes.io/description"];
/// Config maps that only the recording has: one that its distribution puts into every namespace, and the one of its
/// server-side apply exchanges, which are excluded.
const FOREIGN_CONFIG_MAPS: [&str; 2] = ["openshift-service-ca.crt", "ssa"];
/// An annotation and taints that the recorded cluster's controllers set and took away in their own time.
const NODE_TTL: &str = "node.alpha.kubernetes.io/ttl";
const CONDITION_TAINTS: &str = "node.kubernetes.io/";

impl Seen {
    fn note(&mut self, recorded: &str, given: &str) {
        self.0.insert(recorded.to_owned(), given.to_owned());
    }

    /// A recorded text in the words of this run.
    fn word(&self, recorded: &str) -> String {
        self.0.get(recorded).cloned().unwrap_or_else(|| recorded.to_owned())
    }

    /// A path with this run's versions and tokens in its query.
    pub(crate) fn translate_path(&self, path: &str) -> String {
        let Some((path, query)) = path.split_once('?') else { return path.to_owned() };
        let query: Vec<String> = query
            .split('&')
            .map(|part| match part.split_once('=') {
                Some((name @ ("resourceVersion" | "continue"), value)) => format!("{name}={}", self.word(value)),
                _ => part.to_owned(),
            })
            .collect();
        format!("{path}?{}", query.join("&"))
    }

    /// A body with this run's uids and versions.
    pub(crate) fn translate(&self, body: &Value) -> Value {
        match body {
            Value::Object(fields) => fields
                .iter()
                .map(|(name, value)| {
                    let value = match value {
                        Value::String(_) if name == "creationTimestamp" => json!(self.word(&creation_of(fields))),
                        Value::String(text) if CHOSEN.contains(&name.as_str()) => json!(self.word(text)),
                        value => self.translate(value),
                    };
                    (name.clone(), value)
                })
                .collect::<Map<_, _>>()
                .into(),
            Value::Array(items) => items.iter().map(|item| self.translate(item)).collect(),
            value => value.clone(),
        }
    }

    /// A recorded message in the words of this run, without what a Go program prints of its insides.
    fn message(&self, recorded: &str) -> String {
        let mut text = recorded.to_owned();
        for (old, new) in self.0.iter().filter(|(old, _)| old.len() >= 4) {
            text = text.replace(old.as_str(), new);
        }
        text
    }
}

/// Under which word the creation time of an object is kept: many objects were recorded in one second.
fn creation_of(metadata: &Map<String, Value>) -> String {
    format!("creation of {}", metadata.get("name").unwrap_or(&Value::Null))
}

/// The differences between two bodies.
pub(crate) fn bodies(file: &str, name: &str, recorded: &Value, given: &Value, seen: &mut Seen) -> Vec<String> {
    let mut recorded = recorded.clone();
    let mut given = given.clone();
    if recorded.get("type").is_some() && recorded.get("object").is_some() {
        recorded = json!([recorded]);
    }
    if name == "version" {
        version(&mut recorded);
        version(&mut given);
    }
    if file == "01-discovery" {
        keep_served(&mut recorded);
    }
    for body in [&mut recorded, &mut given] {
        strip(body);
        if name != "create node" {
            strip_node(body);
        }
    }
    adjust(file, name, &mut recorded);
    let mut found = Vec::new();
    value("", &recorded, &given, seen, &mut found);
    found
}

/// Which server it is: each field by what a client reads of it.
fn version(body: &mut Value) {
    for (field, value) in body.as_object_mut().into_iter().flatten() {
        let text = value.as_str().unwrap_or_default();
        let form = match field.as_str() {
            // Minor versions differ; what clients compare is that they are numbers.
            "minor" | "emulationMinor" | "minCompatibilityMinor" if text.parse::<u32>().is_ok() => "a number",
            "gitVersion" if text.starts_with('v') => "a version",
            "platform" if text.contains('/') => "a platform",
            "gitCommit" | "gitTreeState" | "goVersion" | "compiler" => "of the build",
            _ => continue,
        };
        *value = json!(form);
    }
}

/// The forms of the lines of a verbose health check: how each part is told, and the end.
pub(crate) fn checks(text: &str) -> Vec<String> {
    let form = |line: &str| match line.strip_prefix("[+]").and_then(|rest| rest.strip_suffix(" ok")) {
        Some(name) if !name.is_empty() && !name.contains(' ') => "[+]name ok".to_owned(),
        _ => line.to_owned(),
    };
    let mut forms: Vec<String> = text.split('\n').map(form).collect();
    forms.dedup();
    forms
}

/// Takes what this server does not serve, by name, out of what the recorded one listed.
fn keep_served(recorded: &mut Value) {
    for list in ["resources", "groups"] {
        if let Some(all) = recorded.get_mut(list).and_then(Value::as_array_mut) {
            all.retain(|entry| is_served(entry["name"].as_str().unwrap_or_default()));
        }
    }
    let Some(all) = recorded.pointer_mut("/items/0/versions/0/resources").and_then(Value::as_array_mut) else { return };
    all.retain(|entry| is_served(entry["resource"].as_str().unwrap_or_default()));
    for entry in all {
        let resource = entry["resource"].as_str().unwrap_or_default().to_owned();
        if let Some(subresources) = entry.get_mut("subresources").and_then(Value::as_array_mut) {
            let name = |sub: &Value| format!("{resource}/{}", sub["subresource"].as_str().unwrap_or_default());
            subresources.retain(|sub| is_served(&name(sub)));
        }
    }
}

fn is_served(name: &str) -> bool {
    excluded::NOT_SERVED.iter().all(|(not, _)| *not != name)
}

/// Takes away what is not compared.
fn strip(body: &mut Value) {
    match body {
        Value::Object(fields) => {
            fields.retain(|name, _| !IGNORED.contains(&name.as_str()));
            fields.values_mut().for_each(strip);
        }
        Value::Array(items) => {
            items.retain(|item| !is_foreign(item));
            items.iter_mut().for_each(strip);
        }
        _ => {}
    }
}

/// The foreign config map: as an object, an event, a table row or a projected source.
fn is_foreign(item: &Value) -> bool {
    ["/metadata/name", "/object/metadata/name", "/configMap/name"]
        .iter()
        .any(|pointer| item.pointer(pointer).and_then(Value::as_str).is_some_and(|n| FOREIGN_CONFIG_MAPS.contains(&n)))
}

/// Takes away what controllers did to a node between two requests.
fn strip_node(body: &mut Value) {
    if let Some(taints) = body.pointer_mut("/spec/taints").and_then(Value::as_array_mut) {
        taints.retain(|taint| !taint["key"].as_str().is_some_and(|key| key.starts_with(CONDITION_TAINTS)));
    }
    for pointer in ["/metadata", "/rows/0/object/metadata"] {
        let Some(metadata) = body.pointer_mut(pointer).and_then(Value::as_object_mut) else { continue };
        if let Some(annotations) = metadata.get_mut("annotations").and_then(Value::as_object_mut) {
            annotations.remove(NODE_TTL);
            if annotations.is_empty() {
                metadata.remove("annotations");
            }
        }
    }
}

/// Facts of the recorded cluster that the requests do not bring about.
fn adjust(file: &str, name: &str, recorded: &mut Value) {
    // Fewer objects are left to list: without the foreign config maps.
    if let Some(count) = recorded.pointer_mut("/metadata/remainingItemCount") {
        let foreign = if file == "02-create-get-list" { 1 } else { 2 };
        *count = json!(count.as_i64().unwrap_or_default() - foreign);
    }
    // The recorder changed the answer before it wrote it down: what was there was still what had been created.
    if name == "get for update" {
        recorded["data"]["a"] = json!("1");
    }
    if name == "api" {
        recorded["serverAddressByClientCIDRs"] = json!("compared by its presence");
    }
}

fn value(place: &str, recorded: &Value, given: &Value, seen: &mut Seen, found: &mut Vec<String>) {
    if recorded == given {
        return;
    }
    let name = place.rsplit('.').next().unwrap_or_default();
    let mut differs = || found.push(format!("{place}: {given} instead of {recorded}"));
    match (recorded, given) {
        (Value::Object(old), Value::Object(new)) => {
            if let (Some(_), Some(Value::String(created))) = (old.get("name"), new.get("creationTimestamp")) {
                seen.note(&creation_of(old), created);
            }
            for (field, value_of) in old {
                match new.get(field) {
                    Some(new) => value(&format!("{place}.{field}"), value_of, new, seen, found),
                    None => found.push(format!("{place}.{field}: missing, recorded {value_of}")),
                }
            }
            for (field, value) in new.iter().filter(|(field, _)| !old.contains_key(*field)) {
                found.push(format!("{place}.{field}: {value} is too much"));
            }
        }
        (Value::Array(old), Value::Array(new)) => {
            if old.len() != new.len() {
                found.push(format!("{place}: {} items instead of {}: {}", new.len(), old.len(), given));
                return;
            }
            for (index, (old, new)) in old.iter().zip(new).enumerate() {
                value(&format!("{place}[{index}]"), old, new, seen, found);
            }
        }
        (Value::String(old), Value::String(new)) => {
            if CHOSEN.contains(&name) {
                seen.note(old, new);
            } else if TIMES.contains(&name) {
                if new.parse::<Timestamp>().is_err() {
                    differs();
                }
            } else if name.starts_with("clusterIP") {
                // Taken at random from a range of the server's own.
                match (old.parse::<Ipv4Addr>(), new.parse::<Ipv4Addr>()) {
                    (Ok(_), Ok(_)) => seen.note(old, new),
                    _ => differs(),
                }
            } else if made_up(old, new) {
                seen.note(old, new);
            } else if !same_text(name, place, old, new, seen) {
                differs();
            }
        }
        // Where and at which number a server listens is its own.
        (Value::String(_), Value::Array(new)) if name == "serverAddressByClientCIDRs" && !new.is_empty() => {}
        _ => differs(),
    }
}

/// Names with five random characters behind a dash.
fn made_up(old: &str, new: &str) -> bool {
    ["gen-", "kube-api-access-"].iter().any(|prefix| {
        let random = |name: &str| name.strip_prefix(prefix).is_some_and(|rest| rest.len() == 5);
        random(old) && random(new)
    })
}

fn same_text(name: &str, place: &str, old: &str, new: &str, seen: &Seen) -> bool {
    if place.contains(".cells[") {
        return is_age(old) && is_age(new);
    }
    if name != "message" {
        return seen.message(old) == new;
    }
    // A Go program shows the difference of two of its structs behind a line break: the sentence is what is compared.
    let sentence =
        |text: &str| text.split("\n@@").next().unwrap_or_default().split("\nspec.").next().map(str::to_owned);
    let (old, new) = (sentence(&seen.message(old)), sentence(new));
    old == new || without_quotes_inside(old) == without_quotes_inside(new)
}

/// A message that quotes the whole object it refuses: what is around the quotation.
fn without_quotes_inside(text: Option<String>) -> Option<(String, String)> {
    let text = text?;
    let (before, rest) = text.split_once("Invalid value: \"{")?;
    let (_, after) = rest.rsplit_once("}\": ")?;
    Some((before.to_owned(), after.to_owned()))
}

/// `5s`, `3m10s`, `326d`.
fn is_age(text: &str) -> bool {
    !text.is_empty()
        && text.starts_with(|c: char| c.is_ascii_digit())
        && text.ends_with(|c: char| "smhdy".contains(c))
        && text.chars().all(|c| c.is_ascii_digit() || "smhdy".contains(c))
}

#[test]
fn the_comparison_finds_what_differs_and_only_that() {
    let compare = |old: Value, new: Value| bodies("x", "y", &old, &new, &mut Seen::default());
    let old =
        json!({"metadata": {"uid": "a", "name": "gen-abcde", "creationTimestamp": "2026-01-01T00:00:00Z"}, "n": 1});
    let new =
        json!({"metadata": {"uid": "b", "name": "gen-fghij", "creationTimestamp": "2027-01-01T00:00:00Z"}, "n": 1});
    assert_eq!(compare(old.clone(), new.clone()), Vec::<String>::new());
    let mut other = new.clone();
    other["n"] = json!(2);
    other["more"] = json!(true);
    assert_eq!(compare(old.clone(), other).len(), 2);
    let mut missing = new;
    missing["metadata"].as_object_mut().expect("an object").remove("uid");
    assert_eq!(compare(old, missing), [".metadata.uid: missing, recorded \"a\""]);
    let cells = |age: &str| json!({"rows": [{"cells": ["p", age]}]});
    assert!(compare(cells("5s"), cells("7s")).is_empty());
    assert_eq!(compare(cells("5s"), cells("<unknown>")).len(), 1);
}

#[test]
fn a_kind_that_is_missing_in_discovery_is_found_unless_it_is_listed_as_not_served() {
    let compare = |old: &Value, new: Value| bodies("01-discovery", "x", old, &new, &mut Seen::default());
    let names = |names: &[&str]| names.iter().map(|name| json!({"name": name})).collect::<Value>();
    let old = json!({"resources": names(&["componentstatuses", "pods", "pods/status"])});
    assert_eq!(compare(&old, json!({"resources": names(&["pods", "pods/status"])})), Vec::<String>::new());
    assert_eq!(compare(&old, json!({"resources": names(&["pods"])})).len(), 1);
    let resources = |subresources: &[&str]| {
        let all: Vec<Value> = subresources.iter().map(|name| json!({"subresource": name})).collect();
        json!({"items": [{"versions": [{"resources": [{"resource": "nodes", "subresources": all}]}]}]})
    };
    assert_eq!(compare(&resources(&["proxy", "status"]), resources(&["status"])), Vec::<String>::new());
    assert_eq!(compare(&resources(&["proxy", "status"]), resources(&[])).len(), 1);
}
