//! What a request is answered. No I/O: from the request's head and the copies to an answer.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::{copy::Copy, kinds};
use crate::kubeapi::{
    collection::Collection,
    discovery, list,
    negotiate::{self, Form},
    request::{ListOptions, Path, Query, ResourcePath},
    resource::Resource,
    status::Status,
    table::{Include, View},
    time,
    watch::{self, Stream},
};

/// Seconds after which a client may ask again: kubectl and client-go do so by themselves, ten times.
const RETRY_SECONDS: u32 = 1;

/// The copies of all kinds, and what bounds their readers.
pub(super) struct Copies {
    all: Vec<Arc<Copy>>,
    watches: Arc<Semaphore>,
    closing: CancellationToken,
}

impl Asked {
    /// The node's own document, of which the cloud's is the same kind.
    pub(super) fn instead_document(&self) -> Option<&[u8]> {
        match self.instead.as_deref() {
            Some(Ok(Answer::Json(body))) => Some(body),
            Some(Ok(Answer::Aggregated(_, body))) => Some(body.as_bytes()),
            _ => None,
        }
    }
}

/// The head of a request.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Head<'a> {
    pub(super) method: &'a str,
    /// Raw, still percent-encoded.
    pub(super) path: &'a str,
    pub(super) query: &'a str,
    pub(super) accept: Option<&'a str>,
    /// Where the client reached this server: `host:port`.
    pub(super) host: &'a str,
}

/// What is sent back.
pub(super) enum Answer {
    /// JSON.
    Json(Bytes),
    /// A document of discovery in the aggregated form of this version, which clients keep by its tag.
    Aggregated(&'static str, String),
    /// A watch.
    Watch(Box<Stream>),
    /// Plain text.
    Text(&'static str),
    /// Not a path of the API.
    NoPage,
    /// The cloud answers.
    Cloud(Asked),
}

/// What the cloud is asked.
#[derive(Default)]
pub(super) struct Asked {
    /// The kind, when objects of it are held here: its resourceVersions are the node's own.
    pub(super) copy: Option<Arc<Copy>>,
    /// What is answered where the cloud does not answer, or does not let this node ask.
    pub(super) instead: Option<Box<Result<Answer, Status>>>,
}

impl Copies {
    /// Nothing known yet. At most `watches` are open at a time.
    pub(super) fn new(version: u64, watches: usize, closing: CancellationToken) -> Self {
        let all = kinds::all().iter().map(|kind| Arc::new(Copy::new(kind, version, closing.clone()))).collect();
        Self { all, watches: Arc::new(Semaphore::new(watches)), closing }
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Arc<Copy>> {
        self.all.iter()
    }

    pub(super) fn of(&self, group: &str, plural: &str) -> Option<&Arc<Copy>> {
        self.all().find(|copy| (copy.kind().group, copy.kind().plural) == (group, plural))
    }

    /// Ends every watch.
    pub(super) fn close(&self) {
        self.closing.cancel();
    }

    fn is_ready(&self) -> bool {
        !self.closing.is_cancelled() && self.all().all(|copy| copy.is_loaded())
    }
}

/// 503, and when to ask again.
pub(super) fn unavailable(message: impl Into<String>) -> Status {
    Status { details: Some(serde_json::json!({"retryAfterSeconds": RETRY_SECONDS})), ..Status::unavailable(message) }
}

/// Answers a request. `online`: the link to the cloud is up.
pub(super) fn answer(copies: &Copies, head: Head<'_>, online: bool) -> Result<Answer, Status> {
    let document = head.path.trim_matches('/');
    match document {
        "healthz" | "livez" => return Ok(Answer::Text("ok")),
        "readyz" if copies.is_ready() => return Ok(Answer::Text("ok")),
        "readyz" => return Err(unavailable("the node's store is being read")),
        "version" => return Ok(Answer::Json(crate::kubeapi::http::version().to_string().into())),
        _ => {}
    }
    if document.starts_with("openapi/") {
        return only_in_the_cloud("OpenAPI documents are not kept at this node", online, Asked::default());
    }
    let Some(path) = Path::parse(head.path) else { return Ok(Answer::NoPage) };
    let Path::Resource(path) = path else {
        return match head.method {
            "GET" => Ok(discover(&path, head, online)),
            _ => Err(Status::method_not_allowed()),
        };
    };
    let Some(copy) = copies.of(&path.group, &path.resource).filter(|copy| copy.kind().version == path.version) else {
        let what = format!("this node holds no {}", path.resource);
        return only_in_the_cloud(&what, online, Asked::default());
    };
    let kind = copy.kind();
    let scoped = path.namespace.is_some();
    if (scoped && !kind.namespaced) || (!scoped && kind.namespaced && path.name.is_some()) {
        return Err(Status::no_such_resource());
    }
    match head.method {
        "GET" => {}
        "POST" | "PUT" | "PATCH" | "DELETE" => {
            let asked = Asked { copy: Some(copy.clone()), instead: None };
            return only_in_the_cloud("objects are written in the cloud", online, asked);
        }
        _ => return Err(Status::method_not_allowed()),
    }
    if !copy.is_loaded() {
        return Err(unavailable("the node's store is being read"));
    }
    let form = negotiate::choose(head.accept)?;
    let query = query(head.query)?;
    match (&path.name, path.subresource.as_deref()) {
        (Some(name), None) => or_cloud(copy, one(copy, &path, name, form, &query), online),
        (Some(name), Some("status")) if kind.status_subresource => {
            or_cloud(copy, one(copy, &path, name, form, &query), online)
        }
        (Some(_), Some(subresource)) if (kind.plural, subresource) == ("pods", "log") => {
            Err(Status::not_implemented(kind, subresource))
        }
        (None, None) => many(copies, copy, &path, form, &query),
        _ => Err(Status::no_such_resource()),
    }
}

fn query(text: &str) -> Result<Query, Status> {
    let pairs = actix_web::web::Query::<Vec<(String, String)>>::from_query(text);
    Ok(Query(pairs.map_err(|error| Status::bad_request(format!("cannot read the query: {error}")))?.into_inner()))
}

/// What needs the API server.
fn only_in_the_cloud(what: &str, online: bool, asked: Asked) -> Result<Answer, Status> {
    match online {
        false => Err(unavailable(format!("{what}, and this node is offline: the link to the cloud is down"))),
        true => Ok(Answer::Cloud(asked)),
    }
}

/// An object that is not here may be in the cloud.
fn or_cloud(copy: &Arc<Copy>, found: Result<Answer, Status>, online: bool) -> Result<Answer, Status> {
    match found {
        Err(missing) if online => {
            Ok(Answer::Cloud(Asked { copy: Some(copy.clone()), instead: Some(Box::new(Err(missing))) }))
        }
        found => found,
    }
}

/// The API server's documents name what it serves, and so what is passed on to it; those of this node name what it holds.
fn discover(path: &Path, head: Head<'_>, online: bool) -> Answer {
    let aggregated = discovery::aggregated_version(head.accept.unwrap_or_default()).is_some();
    let own = discover_here(path, head);
    match path {
        // Where the API server is reached is of no use here.
        Path::Root { legacy: true } if !aggregated => own,
        _ if online => Answer::Cloud(Asked { copy: None, instead: Some(Box::new(Ok(own))) }),
        _ => own,
    }
}

fn discover_here(path: &Path, head: Head<'_>) -> Answer {
    let catalog = kinds::catalog();
    let document = match path {
        Path::Root { legacy } => match (discovery::aggregated_version(head.accept.unwrap_or_default()), legacy) {
            (Some(version), true) => return Answer::Aggregated(version, catalog.aggregated_core(version).to_string()),
            (Some(version), false) => {
                return Answer::Aggregated(version, catalog.aggregated_groups(version).to_string());
            }
            (None, true) => Some(discovery::versions(head.host)),
            (None, false) => Some(catalog.groups()),
        },
        Path::Group(group) => catalog.group(group),
        Path::Version { group, version } => catalog.resources(group, version),
        Path::Resource(_) => None,
    };
    document.map_or(Answer::NoPage, |document| Answer::Json(document.to_string().into()))
}

fn view(kind: &'static Resource, form: Form, query: &Query) -> View {
    View { kind, custom: None, form, include: Include::parse(query.get("includeObject")), now: time::now() }
}

/// What is not here may be missing only because the cloud has not said yet what there is. `P-LIST-WHOLE`.
fn not_known_yet(kind: &Resource) -> Status {
    let plural = kind.plural;
    unavailable(format!("which {plural} this node holds is not known yet: it has not heard all of them from the cloud"))
}

fn one(copy: &Copy, path: &ResourcePath, name: &str, form: Form, query: &Query) -> Result<Answer, Status> {
    let kind = copy.kind();
    match copy.get(path.namespace.as_deref().unwrap_or_default(), name) {
        Some(object) => Ok(Answer::Json(view(kind, form, query).object(&object))),
        None if copy.is_complete() => Err(Status::not_found(kind, name)),
        None => Err(not_known_yet(kind)),
    }
}

fn many(copies: &Copies, copy: &Arc<Copy>, path: &ResourcePath, form: Form, query: &Query) -> Result<Answer, Status> {
    let kind = copy.kind();
    let options = ListOptions::parse(kind, &[], query)?;
    if !copy.is_complete() {
        return Err(not_known_yet(kind));
    }
    // This server counts up, over restarts too: what it never came to was counted by another one, and says nothing here.
    let present = copy.resource_version();
    if let Some(version) = options.resource_version.filter(|version| *version > present) {
        return Err(Status::expired(format!("too new resource version: {version} ({present}): it is not this node's")));
    }
    let view = view(kind, form, query);
    if options.watch {
        let stream = watch::watch(copy.clone(), &copies.watches, path.namespace.clone(), view, options, time::now)?;
        return Ok(Answer::Watch(stream));
    }
    Ok(Answer::Json(list::list(&**copy, path.namespace.as_deref(), &view, &options)?))
}

#[cfg(test)]
mod tests;
