//! From HTTP to verbs and back.

use std::sync::Arc;
use std::time::Duration;

use actix_web::body::{BodySize, BoxBody, MessageBody};
use actix_web::http::ConnectionType;
use actix_web::http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, WARNING};
use actix_web::{HttpRequest, HttpResponse, web};
use bytes::Bytes;
use serde_json::json;
use tokio_util::task::task_tracker::TaskTrackerToken;

pub(super) use crate::kubeapi::http::{JSON, error, header, json_response, lines, page_not_found, status_code};

use super::auth::User;
use super::body::MAX_BODY;
use super::kind::Kind;
use super::kubelet::Body;
use super::request::{Path, Query, Target};
use super::status::Status;
use super::verbs::{Answer, Method, Request, connect, serve, serve_virtual};
use super::{Api, auth, documents, negotiate, protobuf, upgraded};
use crate::audit;

/// Time a client has to send its body.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);

/// Every request comes here: the paths are data, not routes.
pub(super) async fn handle(api: web::Data<Arc<Api>>, http: HttpRequest, payload: web::Payload) -> HttpResponse {
    let request = api.requests.token();
    if api.storage.closing().is_cancelled() {
        let mut response = error(&Status::new(503, "ServiceUnavailable", "the server is stopping"));
        response.head_mut().set_connection_type(ConnectionType::Close);
        return response;
    }
    let response = match answer(api.get_ref(), &http, payload).await {
        Ok(response) => response,
        Err(status) => {
            if matches!(status.code, 401 | 403) {
                let what = format!("{} {}", http.method(), http.path());
                audit::refused_stranger("request to the API server", http.peer_addr(), what, &status.message);
            }
            error(&status)
        }
    };
    api.counted.count(&http, response.status().as_u16());
    response.map_body(|_, body| BoxBody::new(Held { body, _request: request }))
}

/// A body, and its request's token until it is written: a stop waits for it. The server asks for the end of a body when
/// it has less than 32 KiB that the socket has not taken yet.
struct Held {
    body: BoxBody,
    _request: TaskTrackerToken,
}

impl MessageBody for Held {
    type Error = Box<dyn std::error::Error>;

    fn size(&self) -> BodySize {
        self.body.size()
    }

    fn poll_next(
        self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<Bytes, Self::Error>>> {
        std::pin::Pin::new(&mut self.get_mut().body).poll_next(context)
    }
}

async fn answer(api: &Arc<Api>, http: &HttpRequest, payload: web::Payload) -> Result<HttpResponse, Status> {
    let path = http.path();
    if let Some(response) = documents::public(api, http) {
        return Ok(response);
    }
    let token = auth::bearer(header(http, &AUTHORIZATION));
    // A token for another audience is nobody's here.
    let known = token.and_then(|token| api.authenticate(token, &[api.tokens.issuer()]));
    let (user, _) = known.ok_or_else(Status::unauthorized)?;
    let user = impersonated(http, user)?;
    let method = method(http)?;
    if path == "/metrics" && user.admin {
        return if method == Method::Get { Ok(api.counted.page()) } else { Err(Status::method_not_allowed()) };
    }
    if method == Method::Get
        && let Some(response) = documents::open_id(api, http).map(Ok).or_else(|| documents::open_api(api, http))
    {
        return response;
    }
    let Some(parsed) = Path::parse(path) else {
        return Ok(page_not_found());
    };
    let query = Query(
        web::Query::<Vec<(String, String)>>::from_query(http.query_string())
            .map_err(|error| Status::bad_request(format!("cannot read the query: {error}")))?
            .into_inner(),
    );
    auth::authorize(&user, method, &parsed, query.flag("watch"))?;
    if let Some(response) = documents::discover(api, &parsed, http, &api.address.to_string()) {
        return if method == Method::Get { Ok(response) } else { Err(Status::method_not_allowed()) };
    }
    if let Path::Resource(resource) = &parsed
        && matches!(method, Method::Get | Method::Post)
        && (resource.group.as_str(), resource.resource.as_str()) == ("", "pods")
        && resource.subresource.as_deref().is_some_and(connect::is_stream)
        && let Some(target) = Target::find(&api.storage, resource.clone())
    {
        return upgraded::serve(api, http, payload, &query, &target).await;
    }
    let form = negotiate::choose(header(http, &ACCEPT))?;
    let mut content_type = header(http, &CONTENT_TYPE).map(str::to_owned);
    let mut body = match method {
        Method::Get => Bytes::new(),
        _ => crate::kubeapi::http::body(http, payload, MAX_BODY, BODY_TIMEOUT).await?,
    };
    if content_type.as_deref() == Some(protobuf::MEDIA) {
        if !body.is_empty() {
            body = protobuf::to_json(&body)?;
        }
        content_type = Some(JSON.into());
    }
    let request = Request { method, path: parsed, query, content_type, form, body, user };
    if let Some(answer) = serve_virtual(api, &request).await {
        return answer.map(respond);
    }
    let Path::Resource(resource) = &request.path else {
        return Ok(page_not_found());
    };
    let served = |kind: &Kind| kind.group == resource.group && kind.version == resource.version;
    match Target::find(&api.storage, resource.clone()) {
        Some(target) => serve(api, &request, &target).await.map(respond),
        None if api.storage.served().any(|(_, kind)| served(kind)) => Err(Status::no_such_resource()),
        None => Ok(page_not_found()),
    }
}

/// Who the request is made as.
fn impersonated(http: &HttpRequest, user: User) -> Result<User, Status> {
    let name = |header: &str| http.headers().get(header).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let groups: Vec<&str> =
        http.headers().get_all("Impersonate-Group").filter_map(|value| value.to_str().ok()).collect();
    let known = ["impersonate-user", "impersonate-group"];
    let others = http.headers().keys().map(|header| header.as_str());
    let others = others.into_iter().any(|header| header.starts_with("impersonate-") && !known.contains(&header));
    auth::impersonate(user, name("Impersonate-User"), &groups, others)
}

fn method(http: &HttpRequest) -> Result<Method, Status> {
    match http.method().as_str() {
        "GET" => Ok(Method::Get),
        "POST" => Ok(Method::Post),
        "PUT" => Ok(Method::Put),
        "PATCH" => Ok(Method::Patch),
        "DELETE" => Ok(Method::Delete),
        _ => Err(Status::method_not_allowed()),
    }
}

fn respond(answer: Answer) -> HttpResponse {
    match answer {
        Answer::Json { code, body, warnings } => {
            let mut response = HttpResponse::build(status_code(code));
            for warning in warnings {
                // RFC 7234 warn-text: a quoted string, without what a header cannot hold.
                let plain: String = warning.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
                response.append_header((WARNING, format!("299 - {}", json!(plain))));
            }
            response.content_type(JSON).body(body)
        }
        Answer::Text(body) => {
            let mut response = HttpResponse::Ok();
            response.content_type("text/plain");
            match body {
                Some(body) => response.streaming(text(body)),
                None => response.finish(),
            }
        }
        Answer::Watch(stream) => HttpResponse::Ok().content_type(JSON).streaming(lines(stream)),
    }
}

/// A kubelet's bytes. When they break off the client's do, too.
fn text(body: Body) -> impl futures_util::Stream<Item = Result<Bytes, hyper::Error>> {
    futures_util::stream::unfold(Some(body), |body| async move {
        let mut body = body?;
        match body.next().await? {
            Ok(bytes) => Some((Ok(bytes), Some(body))),
            Err(error) => Some((Err(error), None)),
        }
    })
}
