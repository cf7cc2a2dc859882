//! What of a request to the edge's API goes on to the cluster's. Pure, and the same at both ends.
//!
//! Nothing is passed on as it came: [`Passed::parse`] takes a request apart into methods, paths, parameters and headers of
//! closed sets, and [`Passed::to_wire`] puts it together again. The cloud takes only what it would have put together
//! itself ([`Passed::from_wire`]): there is no second way to say the same, in which something could hide.
//! `P-PASSED-IS-PARSED`

pub(crate) mod version;

use std::collections::BTreeMap;

use bytes::Bytes;
use kubeedge_proto::v1::ApiRequest;

use super::{
    request::{Path, Query, ResourcePath},
    status::Status,
};

/// Bytes of a body, as an API server takes them.
pub(crate) const MAX_BODY: usize = 3 << 20;
/// Bytes of an answer. A frame of the link has room for twice as much.
pub(crate) const MAX_ANSWER: usize = 4 << 20;
/// Bytes of a path.
const MAX_PATH: usize = 1024;
/// Bytes of all parameters: selectors and `continue` can be long.
const MAX_QUERY: usize = 8 * 1024;
/// Bytes of a header's value. Tokens of service accounts have about one thousand.
const MAX_HEADER: usize = 8 * 1024;
/// Bytes of a segment of a path.
const MAX_SEGMENT: usize = 253;

/// The request headers that are passed on, by lower-case name. `user-agent` is what an API server names a field's manager
/// by.
pub(crate) const HEADERS: [&str; 5] = ["accept", "authorization", "content-type", "if-none-match", "user-agent"];
/// The headers of an answer that come back.
pub(crate) const ANSWERED: [&str; 5] = ["cache-control", "content-type", "etag", "retry-after", "warning"];
/// Headers that change who asks: without them the request would be made with other rights than it was asked with.
pub(crate) const REFUSED: &str = "impersonate-";

/// The parameters that are passed on.
const PARAMETERS: [&str; 21] = [
    "allowWatchBookmarks",
    "continue",
    "dryRun",
    "fieldManager",
    "fieldSelector",
    "fieldValidation",
    "force",
    "gracePeriodSeconds",
    "hash",
    "includeObject",
    "labelSelector",
    "limit",
    "orphanDependents",
    "pretty",
    "propagationPolicy",
    "resourceVersion",
    "resourceVersionMatch",
    "sendInitialEvents",
    "timeout",
    "timeoutSeconds",
    "uid",
];

const JSON: &str = "application/json";
/// Kubernetes' binary form, in which kubectl creates objects. It is passed on as it is.
pub(crate) const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";
/// A server-side apply. Its body has to be JSON here, which is YAML.
pub(crate) const APPLY: &str = "application/apply-patch+yaml";
/// Operations on pointers.
pub(crate) const JSON_PATCH: &str = "application/json-patch+json";
const PATCHES: [&str; 4] =
    [JSON_PATCH, "application/merge-patch+json", "application/strategic-merge-patch+json", APPLY];

/// What is done, in the words of RBAC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verb {
    Get,
    List,
    Create,
    Update,
    Patch,
    Delete,
    DeleteCollection,
}

impl Verb {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::List => "list",
            Self::Create => "create",
            Self::Update => "update",
            Self::Patch => "patch",
            Self::Delete => "delete",
            Self::DeleteCollection => "deletecollection",
        }
    }

    pub(crate) fn reads(self) -> bool {
        matches!(self, Self::Get | Self::List)
    }
}

/// What is asked.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Target {
    /// A document about the API itself: discovery, OpenAPI. Its path.
    Document(String),
    /// Objects.
    Resource(Verb, ResourcePath),
}

/// A request as it is passed on, without its body.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Passed {
    method: &'static str,
    pub(crate) target: Target,
    path: String,
    query: String,
    accept: String,
    content_type: Option<&'static str>,
    if_none_match: Option<String>,
    user_agent: Option<String>,
    /// The client's own.
    token: Option<String>,
}

impl Passed {
    /// Takes a request apart. `headers`: by lower-case name, of which all but [`HEADERS`] stay behind.
    pub(crate) fn parse(
        method: &str,
        path: &str,
        query: &str,
        headers: &BTreeMap<String, String>,
    ) -> Result<Self, Status> {
        if path.len() > MAX_PATH || query.len() > MAX_QUERY {
            let text = format!("a path has {MAX_PATH} bytes at most, the parameters {MAX_QUERY}");
            return Err(Status::new(414, "RequestURITooLong", text));
        }
        if let Some(name) = headers.keys().find(|name| name.starts_with(REFUSED)) {
            return Err(Status::bad_request(format!("the header {name} is not passed on to the cloud")));
        }
        let method = ["GET", "POST", "PUT", "PATCH", "DELETE"].into_iter().find(|known| *known == method);
        let method = method.ok_or_else(Status::method_not_allowed)?;
        let (query, watch) = parameters(query)?;
        let (target, path) = target(method, path, watch)?;
        let document = matches!(target, Target::Document(_));
        let value = |name| header(headers, name);
        let passed = Self {
            method,
            path,
            query,
            accept: accept(value("accept")?, document)?,
            content_type: content_type(method, value("content-type")?)?,
            if_none_match: value("if-none-match")?.map(str::to_owned),
            user_agent: value("user-agent")?.map(str::to_owned),
            token: token(value("authorization")?)?,
            target,
        };
        Ok(passed)
    }

    /// What the cloud is sent.
    pub(crate) fn to_wire(&self, body: Bytes) -> ApiRequest {
        let path_and_query = match self.query.as_str() {
            "" => self.path.clone(),
            query => format!("{}?{query}", self.path),
        };
        let headers = self.headers().map(|(name, value)| (name.to_owned(), value)).collect();
        ApiRequest { method: self.method.to_owned(), path_and_query, headers, body, seen: None }
    }

    /// What the edge sent, if it is what this version would have sent.
    pub(crate) fn from_wire(request: &ApiRequest) -> Result<Self, Status> {
        let (path, query) = request.path_and_query.split_once('?').unwrap_or((&request.path_and_query, ""));
        if request.headers.len() > HEADERS.len() {
            return Err(Status::bad_request("the request has headers that are not passed on"));
        }
        let headers = request.headers.iter().map(|(name, value)| (name.clone(), value.clone())).collect();
        let passed = Self::parse(&request.method, path, query, &headers)?;
        let again = passed.to_wire(Bytes::new());
        if again.path_and_query != request.path_and_query || again.headers != request.headers {
            return Err(Status::bad_request("the request is not written as an edge writes it"));
        }
        passed.check_body(&request.body)?;
        Ok(passed)
    }

    /// Whether the request can have this body.
    pub(crate) fn check_body(&self, body: &[u8]) -> Result<(), Status> {
        if body.len() > MAX_BODY {
            return Err(Status::too_large(MAX_BODY));
        }
        if self.method == "GET" && !body.is_empty() {
            return Err(Status::bad_request("a GET has no body"));
        }
        let first = body.iter().find(|byte| !byte.is_ascii_whitespace());
        if self.content_type == Some(APPLY) && first != Some(&b'{') {
            return Err(Status::unsupported_media_type(
                "an apply is passed on to the cloud with a body of JSON, which is YAML",
            ));
        }
        Ok(())
    }

    pub(crate) fn method(&self) -> &'static str {
        self.method
    }

    pub(crate) fn content_type(&self) -> Option<&'static str> {
        self.content_type
    }

    /// The client's own token: the API server decides what it may.
    pub(crate) fn has_token(&self) -> bool {
        self.token.is_some()
    }

    /// Changes one object that is there.
    #[cfg(feature = "dynamiccontroller")]
    pub(crate) fn changes_one(&self) -> bool {
        matches!(self.target, Target::Resource(Verb::Update | Verb::Patch | Verb::Delete, _))
    }

    /// A server-side apply, which makes what is not there.
    #[cfg(feature = "dynamiccontroller")]
    pub(crate) fn is_apply(&self) -> bool {
        self.content_type == Some(APPLY)
    }

    /// Path and parameters.
    pub(crate) fn uri(&self) -> String {
        self.to_wire(Bytes::new()).path_and_query
    }

    /// The same, whether the client has the answer already or not.
    #[cfg(feature = "metaserver")]
    pub(crate) fn unconditional(self) -> Self {
        Self { if_none_match: None, ..self }
    }

    /// The same object, read.
    pub(crate) fn read(&self) -> Self {
        let query = String::new();
        Self { method: "GET", query, accept: JSON.to_owned(), content_type: None, if_none_match: None, ..self.clone() }
    }

    /// The headers for the API server, the token among them.
    pub(crate) fn headers(&self) -> impl Iterator<Item = (&'static str, String)> {
        let values = [
            ("accept", Some(self.accept.clone())),
            ("authorization", self.token.as_ref().map(|token| format!("Bearer {token}"))),
            ("content-type", self.content_type.map(str::to_owned)),
            ("if-none-match", self.if_none_match.clone()),
            ("user-agent", self.user_agent.clone()),
        ];
        values.into_iter().filter_map(|(name, value)| Some((name, value?)))
    }
}

/// What a log says of it: never the token, and no parameters.
impl std::fmt::Display for Passed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.method, self.path)
    }
}

fn is_plain(segment: &str) -> bool {
    let known = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_' | b':');
    !matches!(segment, "" | "." | "..") && segment.len() <= MAX_SEGMENT && segment.bytes().all(known)
}

/// What is asked, and its path as it is written.
fn target(method: &'static str, path: &str, watch: bool) -> Result<(Target, String), Status> {
    let bare = path.strip_prefix('/').unwrap_or(path);
    let bare = bare.strip_suffix('/').unwrap_or(bare);
    if bare.split('/').all(is_plain) && is_document(bare) {
        if method != "GET" {
            return Err(Status::method_not_allowed());
        }
        let path = format!("/{bare}");
        return Ok((Target::Document(path.clone()), path));
    }
    let Some(Path::Resource(resource)) = Path::parse(path) else { return Err(Status::no_such_resource()) };
    let written = written(&resource);
    if !written.split('/').skip(1).all(is_plain) {
        return Err(Status::bad_request(
            "a path that goes on to the cloud has names of letters, digits, '-', '.', '_' and ':' only",
        ));
    }
    // What older API servers take as a watch, or hand on, by a word before the resource.
    if matches!(resource.resource.as_str(), "watch" | "proxy") {
        let text = format!("{}/ is not passed on to the cloud: ask the cluster's API server", resource.resource);
        return Err(Status::new(501, "NotImplemented", text));
    }
    let subresource = resource.subresource.as_deref();
    if !matches!(subresource, None | Some("status" | "scale")) {
        let text = format!(
            "{}/{} is not passed on to the cloud: ask the cluster's API server",
            resource.resource,
            subresource.unwrap_or_default()
        );
        return Err(Status::new(501, "NotImplemented", text));
    }
    if watch && method == "GET" {
        let text = format!("a watch of {} is not passed on to the cloud: list them", resource.resource);
        return Err(Status::new(501, "NotImplemented", text));
    }
    let verb = match (method, &resource.name) {
        ("GET", Some(_)) => Verb::Get,
        ("GET", None) => Verb::List,
        ("POST", None) => Verb::Create,
        ("PUT", Some(_)) => Verb::Update,
        ("PATCH", Some(_)) => Verb::Patch,
        ("DELETE", Some(_)) if subresource.is_none() => Verb::Delete,
        ("DELETE", None) => Verb::DeleteCollection,
        _ => return Err(Status::method_not_allowed()),
    };
    Ok((Target::Resource(verb, resource), written))
}

fn is_document(bare: &str) -> bool {
    let segments: Vec<&str> = bare.split('/').collect();
    matches!(
        segments.as_slice(),
        ["openapi", "v2" | "v3"]
            | ["openapi", "v3", "api" | "apis"]
            | ["openapi", "v3", "api" | "apis", _]
            | ["openapi", "v3", "apis", _, _]
            | ["api" | "apis"]
            | ["api", _]
            | ["apis", _]
            | ["apis", _, _]
    )
}

fn written(resource: &ResourcePath) -> String {
    let mut path = match resource.group.as_str() {
        "" => format!("/api/{}", resource.version),
        group => format!("/apis/{group}/{}", resource.version),
    };
    if let Some(namespace) = &resource.namespace {
        path.push_str("/namespaces/");
        path.push_str(namespace);
    }
    for segment in
        [Some(&resource.resource), resource.name.as_ref(), resource.subresource.as_ref()].into_iter().flatten()
    {
        path.push('/');
        path.push_str(segment);
    }
    path
}

/// The known parameters, written anew, and whether a watch is asked for.
fn parameters(query: &str) -> Result<(String, bool), Status> {
    let all: Vec<(String, String)> = form_urlencoded::parse(query.as_bytes()).into_owned().collect();
    let watch = Query(all.iter().filter(|(name, _)| name == "watch").cloned().collect()).flag("watch");
    if all.iter().any(|(name, value)| value.chars().any(char::is_control) && PARAMETERS.contains(&name.as_str())) {
        return Err(Status::bad_request("a parameter holds a control character"));
    }
    let known = all.iter().filter(|(name, _)| PARAMETERS.contains(&name.as_str()));
    let written = form_urlencoded::Serializer::new(String::new()).extend_pairs(known).finish();
    match written.len() > MAX_QUERY {
        true => Err(Status::new(414, "RequestURITooLong", format!("the parameters have {MAX_QUERY} bytes at most"))),
        false => Ok((written, watch)),
    }
}

fn header<'a>(headers: &'a BTreeMap<String, String>, name: &str) -> Result<Option<&'a str>, Status> {
    let Some(value) = headers.get(name).map(|value| value.trim()).filter(|value| !value.is_empty()) else {
        return Ok(None);
    };
    if value.len() > MAX_HEADER {
        return Err(Status::new(
            431,
            "RequestHeaderFieldsTooLarge",
            format!("the header {name} has {MAX_HEADER} bytes at most"),
        ));
    }
    match value.bytes().all(|byte| matches!(byte, b' '..=b'~')) {
        true => Ok(Some(value)),
        false => Err(Status::bad_request(format!("the header {name} holds what a header cannot"))),
    }
}

/// The forms of an answer that can be given: of objects those of JSON.
fn accept(wanted: Option<&str>, document: bool) -> Result<String, Status> {
    let Some(wanted) = wanted else { return Ok(JSON.to_owned()) };
    let is_json = |range: &&str| {
        let media = range.split(';').next().unwrap_or_default().trim();
        document || matches!(media, JSON | "application/*" | "*/*")
    };
    let ranges: Vec<&str> =
        wanted.split(',').map(str::trim).filter(|range| !range.is_empty()).filter(is_json).collect();
    match ranges.is_empty() {
        true => Err(Status::not_acceptable(JSON)),
        false => Ok(ranges.join(",")),
    }
}

fn content_type(method: &str, sent: Option<&str>) -> Result<Option<&'static str>, Status> {
    let known: &[&'static str] = match method {
        "GET" => return Ok(None),
        "PATCH" => &PATCHES,
        _ => &[JSON, PROTOBUF],
    };
    let media = sent.map(|sent| sent.split(';').next().unwrap_or_default().trim().to_ascii_lowercase());
    let found = match &media {
        None => known.iter().find(|known| **known == JSON),
        Some(media) => known.iter().find(|known| *known == media),
    };
    let refused = || {
        let text = format!("a body that goes on to the cloud is of one of these types: {}", known.join(", "));
        Status::unsupported_media_type(text)
    };
    found.copied().map(Some).ok_or_else(refused)
}

/// A bearer token. Other credentials are refused and not left away: what is asked with rights is not answered with others.
fn token(authorization: Option<&str>) -> Result<Option<String>, Status> {
    let Some(authorization) = authorization else { return Ok(None) };
    let token = authorization.split_once(' ').filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
    match token.map(|(_, token)| token.trim()).filter(|token| !token.is_empty() && !token.contains(' ')) {
        Some(token) => Ok(Some(token.to_owned())),
        None => Err(Status::unauthorized()),
    }
}

#[cfg(test)]
mod tests;
