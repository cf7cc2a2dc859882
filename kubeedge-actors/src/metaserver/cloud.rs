//! Asks the cloud what is not held here.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use actix_web::{
    HttpRequest, HttpResponse, HttpResponseBuilder,
    http::{Method, StatusCode},
    web,
};
use kubeedge_proto::v1::{ApiResponse, CallCloud, CallError, CallReply, Envelope, call_reply, envelope::Body};
use serde_json::Value;
use tokio::sync::Semaphore;

use super::{
    MetaServer,
    answer::{Asked, unavailable},
    copy::Copy,
    versions,
};
use crate::{
    kubeapi::{
        discovery,
        http::{self, JSON, tagged},
        pass::{ANSWERED, HEADERS, MAX_BODY, Passed, REFUSED},
        status::Status,
    },
    system::{AskError, Component as _, Port, trace::Trace},
};

/// Requests at a time that the cloud answers: as many as it takes of a node. More wait.
pub const MAX_ASKED: usize = 8;
/// How long they wait.
const PLACE_WITHIN: Duration = Duration::from_secs(10);
/// How long a client may take to send a body.
const BODY_WITHIN: Duration = Duration::from_secs(10);
/// How long the cloud may take, which waits for the API server itself.
const ANSWER_WITHIN: Duration = Duration::from_secs(31);
/// What EdgeHub may take beside that.
const GRACE: Duration = Duration::from_secs(2);

/// The cloud, as far as requests go.
pub(super) struct Cloud {
    call: Option<Port<CallCloud>>,
    places: Semaphore,
}

/// Why there is no answer of the API server.
pub(super) enum Missing {
    /// The request cannot be passed on.
    Wrong(Status),
    /// The cloud did not answer, or does not let this node ask.
    Unanswered(Status),
}

impl Cloud {
    pub(super) fn new(call: Option<Port<CallCloud>>) -> Self {
        Self { call, places: Semaphore::new(MAX_ASKED) }
    }

    /// Passes a request on.
    pub(super) async fn ask(
        &self,
        http: &HttpRequest,
        payload: web::Payload,
        asked: &Asked,
    ) -> Result<HttpResponse, Missing> {
        let copy = asked.copy.as_ref();
        let query = match copy {
            // The node's own numbers mean nothing in the cloud, and what is there now is as new as any: for reading.
            Some(_) if http.method() != Method::GET && demands_version(http.query_string()) => {
                let text = "a resourceVersion in the query of a write is not understood here: put it into the body";
                return Err(Missing::Wrong(Status::bad_request(text)));
            }
            Some(_) => without_versions(http.query_string()),
            None => http.query_string().to_owned(),
        };
        let headers = headers(http).map_err(Missing::Wrong)?;
        let passed = Passed::parse(http.method().as_str(), http.path(), &query, &headers).map_err(Missing::Wrong)?;
        // Of a document to which something is added, the client has another tag than the cloud.
        let passed = if asked.instead_document().is_some() { passed.unconditional() } else { passed };
        let place = tokio::time::timeout(PLACE_WITHIN, self.places.acquire()).await;
        let Ok(Ok(_place)) = place else {
            let text = format!("{MAX_ASKED} requests wait for the cloud already");
            return Err(Missing::Wrong(Status::too_many(text, 1)));
        };
        let body = http::body(http, payload, MAX_BODY, BODY_WITHIN).await.map_err(Missing::Wrong)?;
        passed.check_body(&body).map_err(Missing::Wrong)?;
        let (body, seen) = match copy {
            Some(copy) => versions::to_cloud(copy, &passed, body).map_err(Missing::Wrong)?,
            None => (body, None),
        };
        let mut request = passed.to_wire(body);
        request.seen = seen;
        let response = self.call(Body::ApiRequest(request)).await.map_err(Missing::Unanswered)?;
        match asked.instead_document() {
            Some(own) => document(http, &response, own).map_err(Missing::Unanswered),
            None => answer(response, copy).map_err(Missing::Unanswered),
        }
    }

    async fn call(&self, body: Body) -> Result<ApiResponse, Status> {
        let Some(call) = &self.call else { return Err(offline("this node has no link to a cloud")) };
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let unix_ms = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
        let mut envelope = Envelope::new(MetaServer::NAME, unix_ms, body);
        envelope.timeout_ms = u32::try_from(ANSWER_WITHIN.as_millis()).unwrap_or(u32::MAX);
        let asking = call.ask(CallCloud { envelope: Some(envelope) }, ANSWER_WITHIN + GRACE);
        match Trace::scope(Some(Trace::root()), asking).await {
            Ok(CallReply { result: Some(call_reply::Result::ApiResponse(response)) }) => Ok(*response),
            Ok(CallReply { result: Some(call_reply::Result::Error(error)) }) => Err(status(error)),
            Ok(_) => Err(Status::new(502, "", "the cloud answered something else")),
            Err(AskError::Timeout) => Err(late()),
            Err(error) => Err(offline(&format!("EdgeHub: {error}"))),
        }
    }
}

fn late() -> Status {
    let text = format!("the cloud did not answer within {ANSWER_WITHIN:?}; a write may have been made");
    Status::new(504, "Timeout", text)
}

fn offline(why: &str) -> Status {
    unavailable(format!("this node is offline: {why}"))
}

/// An error of the cloud or of the link in Kubernetes' form.
fn status(error: CallError) -> Status {
    let CallError { code, reason, message } = error;
    let reason = match code {
        503 if reason == "Offline" => return offline(&message),
        503 => return unavailable(message),
        429 => return Status::too_many(message, 1),
        501 => {
            let text = format!("{message}: modules.dynamicController.enable of the cloud switches it on");
            return Status::new(501, "NotImplemented", text);
        }
        400 => "BadRequest",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "NotFound",
        405 => "MethodNotAllowed",
        406 => "NotAcceptable",
        409 => "Conflict",
        413 => "RequestEntityTooLarge",
        415 => "UnsupportedMediaType",
        504 => "Timeout",
        _ => "",
    };
    let code = u16::try_from(code).ok().filter(|code| (400..=599).contains(code)).unwrap_or(502);
    Status::new(code, reason, message)
}

/// The headers that may go on. One that comes twice could be read in two ways.
fn headers(http: &HttpRequest) -> Result<BTreeMap<String, String>, Status> {
    let mut found = BTreeMap::new();
    for name in http.headers().keys().map(|name| name.as_str()) {
        if !HEADERS.contains(&name) && !name.starts_with(REFUSED) {
            continue;
        }
        let mut values = Vec::new();
        for value in http.headers().get_all(name) {
            let text = value.to_str();
            values.push(text.map_err(|_| Status::bad_request(format!("the header {name} holds what it cannot")))?);
        }
        if values.len() > 1 && name != "accept" {
            return Err(Status::bad_request(format!("the header {name} comes twice")));
        }
        found.insert(name.to_owned(), values.join(","));
    }
    Ok(found)
}

fn demands_version(query: &str) -> bool {
    form_urlencoded::parse(query.as_bytes()).any(|(name, _)| name == "resourceVersion")
}

fn without_versions(query: &str) -> String {
    let pairs = form_urlencoded::parse(query.as_bytes());
    let kept = pairs.filter(|(name, _)| !matches!(name.as_ref(), "resourceVersion" | "resourceVersionMatch"));
    form_urlencoded::Serializer::new(String::new()).extend_pairs(kept).finish()
}

/// A document of discovery, with what only this node names. Where the cloud has none, this node's own stands.
fn document(http: &HttpRequest, response: &ApiResponse, own: &[u8]) -> Result<HttpResponse, Status> {
    let none = || Status::new(502, "", "the cloud gave no document of its API");
    let content_type = response.headers.get("content-type").map_or(JSON, String::as_str);
    let mut value: Value = match (response.status, content_type.starts_with(JSON)) {
        (200, true) => serde_json::from_slice(&response.body).map_err(|_| none())?,
        _ => return Err(none()),
    };
    let own = serde_json::from_slice(own).unwrap_or_default();
    discovery::merge(&mut value, &own);
    let body = value.to_string();
    Ok(tagged(http, content_type, &discovery::etag(body.as_bytes()), body))
}

fn answer(response: ApiResponse, copy: Option<&Arc<Copy>>) -> Result<HttpResponse, Status> {
    let code = u16::try_from(response.status).ok().filter(|code| (200..=599).contains(code));
    let code = code.and_then(|code| StatusCode::from_u16(code).ok());
    let code = code.ok_or_else(|| Status::new(502, "", "the cloud gave an answer without a status"))?;
    let mut answer = HttpResponseBuilder::new(code);
    let mut is_json = false;
    for (name, value) in response.headers {
        if ANSWERED.contains(&name.as_str()) {
            is_json |= name == "content-type" && value.starts_with(JSON);
            answer.insert_header((name, value));
        }
    }
    let body = if copy.is_some() && is_json { versions::to_client(response.body) } else { response.body };
    Ok(answer.body(body))
}

#[cfg(test)]
mod tests {
    use actix_web::test::TestRequest;
    use bytes::Bytes;

    use super::*;

    #[test]
    fn no_header_is_lost_that_would_change_who_asks() {
        let of = |pairs: &[(&str, &str)]| {
            let request = pairs.iter().fold(TestRequest::get(), |request, pair| request.append_header(*pair));
            headers(&request.to_http_request())
        };
        let found = of(&[("Accept", "a"), ("Accept", "b"), ("Cookie", "c"), ("Impersonate-User", "d")]).unwrap();
        assert_eq!(
            found.into_iter().collect::<Vec<_>>(),
            [("accept".to_owned(), "a,b".to_owned()), ("impersonate-user".to_owned(), "d".to_owned()),]
        );
        assert_eq!(of(&[("Authorization", "Bearer a"), ("Authorization", "Bearer b")]).unwrap_err().code, 400);
        assert_eq!(of(&[("Authorization", "Bearer \u{e9}")]).unwrap_err().code, 400);
    }

    #[test]
    fn an_error_of_the_cloud_has_kubernetes_form_and_offline_says_when_to_ask_again() {
        let of = |code: u32, reason: &str| status(CallError { code, reason: reason.into(), message: "down".into() });
        let away = of(503, "Offline");
        assert!(away.code == 503 && away.message.contains("offline") && away.retry_after() == Some(1), "{away}");
        assert_eq!(of(429, "").retry_after(), Some(1));
        assert!(of(501, "").message.contains("modules.dynamicController"));
        assert_eq!((of(403, "x").reason, of(409, "").reason), ("Forbidden", "Conflict"));
        for odd in [0, 99, 200, 70_000] {
            assert_eq!(of(odd, "").code, 502);
        }
    }

    #[test]
    fn what_only_the_node_names_is_added_to_the_clouds_documents() {
        let response = |status: u32, body: &str| ApiResponse {
            status,
            headers: [("content-type".to_owned(), JSON.to_owned())].into(),
            body: Bytes::copy_from_slice(body.as_bytes()),
        };
        let own = br#"{"kind":"APIGroupList","groups":[{"name":"apps","x":1},{"name":"rules.kubeedge.io"}]}"#;
        let cloud = r#"{"groups":[{"name":"apps"},{"name":"batch"}],"kind":"APIGroupList"}"#;
        let http = TestRequest::get().to_http_request();
        let merged = document(&http, &response(200, cloud), own).unwrap();
        let tag = merged.headers().get("etag").unwrap().clone();
        let body = futures_util::FutureExt::now_or_never(actix_web::body::to_bytes(merged.into_body()));
        let expected =
            r#"{"groups":[{"name":"apps"},{"name":"batch"},{"name":"rules.kubeedge.io"}],"kind":"APIGroupList"}"#;
        assert_eq!(body.unwrap().ok().unwrap(), expected);
        let again = TestRequest::get().insert_header(("if-none-match", tag)).to_http_request();
        assert_eq!(document(&again, &response(200, cloud), own).unwrap().status(), 304);
        for bad in [response(404, "{}"), response(200, "<html>")] {
            assert!(document(&http, &bad, own).is_err(), "the node's own stands");
        }
    }

    #[test]
    fn only_known_headers_of_an_answer_come_back() {
        let response = |status: u32| ApiResponse {
            status,
            headers: [("content-type", JSON), ("set-cookie", "a=b"), ("etag", "\"x\"")]
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .into(),
            body: Bytes::from_static(b"{}"),
        };
        let given = answer(response(201), None).unwrap();
        assert_eq!(given.status(), 201);
        assert!(given.headers().contains_key("etag") && !given.headers().contains_key("set-cookie"));
        assert!(answer(response(0), None).is_err());
        let mut bad = response(200);
        bad.headers.insert("warning".into(), "a\r\nb: c".into());
        assert_eq!(answer(bad, None).unwrap().status(), 500, "actix refuses the header");
    }
}
