//! What the server says about itself: health, version, discovery, OpenAPI.

use actix_web::http::header::ACCEPT;
use actix_web::{HttpRequest, HttpResponse};
use serde_json::{Value, json};

use super::http::{JSON, header, json_response, page_not_found};
use super::request::Path;
use super::status::Status;
use super::{Api, discovery, openapi};
use crate::kubeapi::http::{tagged, version};

const PLAIN: &str = "text/plain; charset=utf-8";

/// What is answered to anyone: whether the server is there, and which one it is.
pub(super) fn public(api: &Api, http: &HttpRequest) -> Option<HttpResponse> {
    let path = http.path();
    if matches!(path, "/version" | "/version/") {
        return Some(json_response(200, version().to_string().into()));
    }
    let name = path.trim_start_matches('/');
    if !matches!(name, "healthz" | "livez" | "readyz") {
        return None;
    }
    let stopping = api.storage.closing().is_cancelled() && name == "readyz";
    let verbose = http.query_string().split('&').any(|part| part == "verbose" || part.starts_with("verbose="));
    if !stopping && !verbose {
        return Some(HttpResponse::Ok().content_type(PLAIN).body("ok"));
    }
    let mut lines: String = ["ping", "log", "storage"].iter().map(|check| format!("[+]{check} ok\n")).collect();
    lines += if stopping { "[-]shutdown failed: the server is stopping\n" } else { "[+]shutdown ok\n" };
    lines += &format!("{name} check {}\n", if stopping { "failed" } else { "passed" });
    let mut response = if stopping { HttpResponse::InternalServerError() } else { HttpResponse::Ok() };
    Some(response.content_type(PLAIN).body(lines))
}

/// Discovery below `/api` and `/apis`; `None` for the path of a resource.
pub(super) fn discover(api: &Api, path: &Path, http: &HttpRequest, address: &str) -> Option<HttpResponse> {
    let served = &api.served();
    // Nodes are measured where they can be asked.
    let measured = api.kubelet_client.is_some();
    let accept = header(http, &ACCEPT).unwrap_or_default();
    let aggregated = discovery::aggregated_version(accept);
    let document = match path {
        Path::Root { legacy } => {
            if let Some(version) = aggregated {
                let mut all = if *legacy {
                    discovery::aggregated_core(served, version)
                } else {
                    discovery::aggregated_groups(served, version)
                };
                if let Some(items) = all["items"].as_array_mut().filter(|_| measured && !*legacy) {
                    items.push(discovery::measured::aggregated());
                }
                let content_type = discovery::aggregated_content_type(version);
                let body = all.to_string();
                let etag = discovery::etag(body.as_bytes());
                return Some(tagged(http, &content_type, &etag, body));
            }
            let mut all = if *legacy { discovery::versions(address) } else { discovery::groups(served) };
            let groups = all.get_mut("groups").and_then(Value::as_array_mut);
            if let Some(groups) = groups.filter(|_| measured) {
                groups.push(discovery::measured::entry());
            }
            Some(all)
        }
        Path::Group(group) if measured && group == discovery::measured::GROUP => Some(discovery::measured::group()),
        Path::Version { group, version }
            if measured
                && (group.as_str(), version.as_str()) == (discovery::measured::GROUP, discovery::measured::VERSION) =>
        {
            Some(discovery::measured::resources())
        }
        Path::Group(group) => discovery::group(served, group),
        Path::Version { group, version } => discovery::resources(served, group, version),
        Path::Resource(_) => return None,
    };
    Some(match document {
        Some(document) => json_response(200, document.to_string().into()),
        None => page_not_found(),
    })
}

/// `/openapi/v2` and `/openapi/v3`; `None` for another path.
pub(super) fn open_api(api: &Api, http: &HttpRequest) -> Option<Result<HttpResponse, Status>> {
    let rest = http.path().strip_prefix("/openapi/")?.trim_end_matches('/');
    let accept = header(http, &ACCEPT).unwrap_or_default();
    let custom = &api.storage.custom_versions();
    let json_taken = openapi::accepts_json(accept);
    let response = match rest {
        // Clients up to 1.28 take nothing else, and refuse to apply without it.
        "v2" if openapi::accepts_protobuf(accept) => {
            let body = openapi::v2_protobuf(custom);
            let etag = discovery::etag(&body);
            tagged(http, openapi::V2_PROTOBUF, &etag, body)
        }
        "v2" | "v3" if !json_taken => return Some(Err(Status::not_acceptable(JSON))),
        "v2" => {
            let body = openapi::v2(custom);
            let etag = discovery::etag(body.as_bytes());
            tagged(http, JSON, &etag, body)
        }
        "v3" => json_response(200, openapi::index(custom).to_string().into()),
        other => {
            let (group, version) = match other.strip_prefix("v3/")?.split('/').collect::<Vec<_>>()[..] {
                ["api", version] => ("", version),
                ["apis", group, version] => (group, version),
                _ => return Some(Ok(page_not_found())),
            };
            match (openapi::hash(custom, group, version), openapi::v3(custom, group, version)) {
                _ if !json_taken => return Some(Err(Status::not_acceptable(JSON))),
                (Some(hash), Some(body)) => tagged(http, JSON, &format!("\"{hash}\""), body),
                _ => page_not_found(),
            }
        }
    };
    Some(Ok(response))
}

/// What others need to check service account tokens; `None` for another path.
pub(super) fn open_id(api: &Api, http: &HttpRequest) -> Option<HttpResponse> {
    let issuer = api.tokens.issuer();
    match http.path() {
        "/openid/v1/jwks" => {
            let body = api.tokens.jwks().to_string();
            Some(HttpResponse::Ok().content_type("application/jwk-set+json").body(body))
        }
        "/.well-known/openid-configuration" => {
            let address = api.address;
            let configuration = json!({
                "issuer": issuer,
                "jwks_uri": format!("https://{address}/openid/v1/jwks"),
                "response_types_supported": ["id_token"],
                "subject_types_supported": ["public"],
                "id_token_signing_alg_values_supported": ["ES256"],
            });
            Some(json_response(200, configuration.to_string().into()))
        }
        _ => None,
    }
}
