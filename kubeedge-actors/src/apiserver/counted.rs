//! `/metrics`: how many requests were answered, by verb and code, as `apiserver_request_total` says it at every Kubernetes
//! API server. For the administrator.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    sync::{Mutex, PoisonError},
};

use actix_web::{HttpRequest, HttpResponse, web};

use super::request::{Path, Query};

/// Prometheus' text format.
const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Requests so far. A code has three digits and a verb is one of nine: this stays small.
#[derive(Default)]
pub(super) struct Counted(Mutex<BTreeMap<(&'static str, u16), u64>>);

impl Counted {
    /// One was answered; of a watch this is its beginning.
    pub(super) fn count(&self, http: &HttpRequest, code: u16) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner).entry((verb(http), code)).or_default() += 1;
    }

    /// What `/metrics` answers.
    pub(super) fn page(&self) -> HttpResponse {
        let mut text = String::from(
            "# HELP apiserver_request_total Requests that were answered, by verb and HTTP code.\n\
             # TYPE apiserver_request_total counter\n",
        );
        for ((verb, code), count) in self.0.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            // Writing to a String does not fail.
            let _ = writeln!(text, "apiserver_request_total{{verb=\"{verb}\",code=\"{code}\"}} {count}");
        }
        HttpResponse::Ok().content_type(TEXT).body(text)
    }
}

/// As Kubernetes names it in its metrics.
fn verb(http: &HttpRequest) -> &'static str {
    let of_collection = || matches!(Path::parse(http.path()), Some(Path::Resource(path)) if path.name.is_none());
    match http.method().as_str() {
        "GET" if is_watch(http) => "WATCH",
        "GET" if of_collection() => "LIST",
        "GET" => "GET",
        "POST" => "POST",
        "PUT" => "PUT",
        "PATCH" => "PATCH",
        "DELETE" if of_collection() => "DELETECOLLECTION",
        "DELETE" => "DELETE",
        _ => "other",
    }
}

fn is_watch(http: &HttpRequest) -> bool {
    let query = http.query_string();
    // Most have none to look for.
    query.contains("watch")
        && web::Query::<Vec<(String, String)>>::from_query(query)
            .is_ok_and(|query| Query(query.into_inner()).flag("watch"))
}
