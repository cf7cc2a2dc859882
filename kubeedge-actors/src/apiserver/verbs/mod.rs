//! What a request does, one file a verb, apart from HTTP: from a parsed target to an answer.

use std::sync::Arc;

use bytes::Bytes;
use serde_json::{Value, json};

use super::Api;
use super::addresses::{self, Taken};
use super::auth::User;
use super::controllers::definitions;
use super::custom;
use super::kind::Kind;
use super::kinds;
use super::kubelet::Body;
use super::negotiate::Form;
use super::object::{self, Key, Object};
use super::request::{Path, Query, Target};
use super::status::Status;
use super::storage::{Change, KindId, OfKind, Writer};
use super::table::{Custom, Include, View};
use crate::kubeapi::{list, watch};

pub(crate) mod bind;
pub(crate) mod connect;
pub(crate) mod create;
pub(crate) mod delete;
mod log;
mod measured;
mod patch;
mod review;
pub(crate) mod scale;
mod token;
pub(crate) mod update;

pub(crate) use crate::kubeapi::watch::Stream;

/// The methods that are served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Method {
    Get,
    Post,
    Put,
    Patch,
    Delete,
}

/// One request, its body read.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) method: Method,
    pub(crate) path: Path,
    pub(crate) query: Query,
    pub(crate) content_type: Option<String>,
    pub(crate) form: Form,
    pub(crate) body: Bytes,
    pub(crate) user: User,
}

/// What is sent back.
pub(crate) enum Answer {
    /// A JSON body.
    Json { code: u16, body: Bytes, warnings: Vec<String> },
    /// A watch.
    Watch(Box<Stream>),
    /// Plain text as a kubelet gives it, or none.
    Text(Option<Body>),
}

impl Answer {
    pub(crate) fn ok(body: Bytes) -> Self {
        Self::Json { code: 200, body, warnings: Vec::new() }
    }

    pub(crate) fn value(code: u16, value: &Value) -> Self {
        Self::Json { code, body: value.to_string().into(), warnings: Vec::new() }
    }

    /// `Status` of a success, as binding and eviction give it.
    fn success(code: u16) -> Self {
        Self::value(
            code,
            &json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": code}),
        )
    }
}

/// An object as a write left it.
pub(crate) struct Written {
    pub(crate) code: u16,
    pub(crate) object: Arc<Object>,
    pub(crate) warnings: Vec<String>,
}

impl Request {
    fn view(&self, api: &Api, target: &Target) -> View {
        let custom = target.custom.clone().map(|version| version as Arc<dyn Custom>);
        let kind = &target.kind.resource;
        View { kind, custom, form: self.form, include: Include::parse(self.query.get("includeObject")), now: api.now() }
    }

    fn written(&self, api: &Api, target: &Target, mut written: Written) -> Answer {
        if custom::is_definition(target.kind) {
            written.warnings.extend(custom::warnings(&written.object.value(target.kind)));
        }
        let body = self.view(api, target).object(&written.object);
        Answer::Json { code: written.code, body, warnings: written.warnings }
    }
}

/// Serves a resource. A kind that the request defines is served when its answer goes out.
pub(crate) async fn serve(api: &Arc<Api>, request: &Request, target: &Target) -> Result<Answer, Status> {
    let answer = verb(api, request, target).await;
    if answer.is_ok()
        && custom::is_definition(target.kind)
        && matches!(request.method, Method::Post | Method::Put | Method::Patch)
        && let Err(error) = definitions::reconcile(api).await
    {
        // The definition is stored; its controller goes on.
        tracing::warn!(%error, "a custom kind is not served yet");
    }
    answer
}

/// The verb follows from method, name and subresource.
async fn verb(api: &Arc<Api>, request: &Request, target: &Target) -> Result<Answer, Status> {
    let kind = target.kind;
    if let Some(subresource) = &target.subresource {
        return subresource_verb(api, request, target, subresource).await;
    }
    match (request.method, &target.name) {
        (Method::Get, Some(name)) => {
            let object = existing(api, target, name)?;
            Ok(Answer::ok(request.view(api, target).object(&object)))
        }
        (Method::Get, None) => {
            let options = target.list_options(&request.query)?;
            let view = request.view(api, target);
            let objects = OfKind { storage: api.storage.clone(), id: target.id };
            let namespace = target.namespace.clone();
            if options.watch {
                let stream = watch::watch(Arc::new(objects), &api.watches, namespace, view, options, api.clock)?;
                Ok(Answer::Watch(stream))
            } else {
                Ok(Answer::ok(list::list(&objects, namespace.as_deref(), &view, &options)?))
            }
        }
        (Method::Post, None) if kind.namespaced && target.namespace.is_none() => Err(Status::method_not_allowed()),
        (Method::Post, None) => Ok(request.written(api, target, create::create(api, request, target).await?)),
        (Method::Put, Some(name)) => {
            let written = update::put(api, request, target, name, update::Part::Main).await?;
            Ok(request.written(api, target, written))
        }
        (Method::Patch, Some(name)) => {
            let written = patch::patch(api, request, target, name, update::Part::Main).await?;
            Ok(request.written(api, target, written))
        }
        (Method::Delete, Some(name)) => delete::delete(api, request, target, name).await,
        (Method::Delete, None) if kind.plural == "namespaces" || (kind.namespaced && target.namespace.is_none()) => {
            Err(Status::method_not_allowed())
        }
        (Method::Delete, None) => delete::collection(api, request, target).await,
        _ => Err(Status::method_not_allowed()),
    }
}

/// GET, PUT and PATCH of a part of an object.
async fn part(
    api: &Arc<Api>,
    request: &Request,
    target: &Target,
    name: &str,
    part: update::Part,
) -> Result<Answer, Status> {
    let written = match request.method {
        Method::Get => {
            let object = existing(api, target, name)?;
            return Ok(Answer::ok(request.view(api, target).object(&object)));
        }
        Method::Put => update::put(api, request, target, name, part).await?,
        Method::Patch => patch::patch(api, request, target, name, part).await?,
        Method::Post | Method::Delete => return Err(Status::method_not_allowed()),
    };
    Ok(request.written(api, target, written))
}

async fn subresource_verb(
    api: &Arc<Api>,
    request: &Request,
    target: &Target,
    subresource: &str,
) -> Result<Answer, Status> {
    let kind = target.kind;
    let Some(name) = &target.name else {
        return Err(Status::no_such_resource());
    };
    let core = if kind.group.is_empty() { kind.plural } else { "" };
    match (core, subresource, request.method) {
        (_, "status", _) if kind.status_subresource => part(api, request, target, name, update::Part::Status).await,
        (_, subresource, _) if let Some(portion) = kinds::portion(kind, subresource) => {
            part(api, request, target, name, update::Part::Portion(portion)).await
        }
        (_, "scale", _) if let Some(paths) = scale::paths(target) => {
            scale::scale(api, request, target, name, &paths).await
        }
        ("namespaces", "finalize", Method::Put) => {
            let written = update::put(api, request, target, name, update::Part::Finalizers).await?;
            Ok(request.written(api, target, written))
        }
        ("pods", "log", Method::Get) => log::log(api, &request.query, target, name).await,
        ("pods", "binding", Method::Post) => bind::bind(api, request, target, Some(name)).await,
        ("pods", "eviction", Method::Post) => bind::evict(api, request, target, name).await,
        ("serviceaccounts", "token", Method::Post) => token::create(api, request, target, name).await,
        ("namespaces", "finalize", _)
        | ("pods", "binding" | "eviction" | "log", _)
        | ("serviceaccounts", "token", _) => Err(Status::method_not_allowed()),
        ("pods" | "services" | "nodes", "proxy", _) => Err(Status::not_implemented(kind, subresource)),
        // With GET and POST they were taken before the body is read.
        ("pods", subresource, _) if connect::is_stream(subresource) => Err(Status::method_not_allowed()),
        _ => Err(Status::no_such_resource()),
    }
}

/// What is served without being stored: `bindings`, reviews, and what nodes measure. `None` when it is neither.
pub(crate) async fn serve_virtual(api: &Arc<Api>, request: &Request) -> Option<Result<Answer, Status>> {
    let Path::Resource(path) = &request.path else { return None };
    if let Some(answer) = measured::serve(api, request, path).await {
        return Some(answer);
    }
    if path.name.is_some() {
        return None;
    }
    match (path.group.as_str(), path.version.as_str(), path.resource.as_str(), &path.namespace) {
        ("", "v1", "bindings", Some(namespace)) => {
            let pods = api.storage.core("pods")?;
            let target = Target {
                id: pods,
                kind: api.storage.kind(pods),
                custom: None,
                namespace: Some(namespace.clone()),
                name: None,
                subresource: None,
            };
            Some(if request.method == Method::Post {
                bind::bind(api, request, &target, None).await
            } else {
                Err(Status::method_not_allowed())
            })
        }
        ("authorization.k8s.io", "v1", "selfsubjectaccessreviews", None) => Some(review::self_access(request)),
        ("authorization.k8s.io", "v1", "selfsubjectrulesreviews", None) => Some(review::self_rules(request)),
        ("authorization.k8s.io", "v1", "subjectaccessreviews", None) => Some(review::access(request)),
        ("authorization.k8s.io", "v1", "localsubjectaccessreviews", Some(namespace)) => {
            Some(review::local_access(request, namespace))
        }
        ("authentication.k8s.io", "v1", "selfsubjectreviews", None) => Some(review::self_subject(request)),
        ("authentication.k8s.io", "v1", "tokenreviews", None) => Some(review::token(api, request)),
        _ => None,
    }
}

/// Gives a Service its address and ports, in the turn of `writer`: what is free now is free until its commit.
pub(crate) fn settle_addresses(
    api: &Api,
    target: &Target,
    writer: &Writer,
    object: &mut Value,
    old: Option<&Value>,
) -> Result<(), Status> {
    if !addresses::concerns(target.kind) || old.is_some_and(|old| addresses::is_settled(object, old)) {
        return Ok(());
    }
    let mut taken = Taken::default();
    let own = Key::new(target.scope(), object::text(&object["metadata"], "name"));
    for other in writer.list(target.id).iter().filter(|other| other.key != own) {
        taken.add(&other.value(target.kind));
    }
    addresses::allocate(target.kind, api.service_range, taken, object, old, rand::random::<u32>)
}

/// The object that the path names.
pub(crate) fn existing(api: &Api, target: &Target, name: &str) -> Result<Arc<Object>, Status> {
    api.storage.get(target.id, &Key::new(target.scope(), name)).ok_or_else(|| Status::not_found(target.kind, name))
}

/// What a value would be as an object: the answer to a dry run.
pub(crate) fn not_stored(kind: &Kind, value: &Value) -> Arc<Object> {
    Arc::new(Object::new(kind, value))
}

/// Commits one change and gives its object.
pub(crate) async fn commit_one(
    writer: super::storage::Writer,
    kind: KindId,
    change: impl FnOnce(KindId) -> Change,
) -> Result<Arc<Object>, Status> {
    let mut objects = writer.commit(vec![change(kind)]).await?;
    objects.pop().ok_or_else(|| Status::internal("the commit gave no object"))
}
