//! The API server.

use bytes::Bytes;
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use kube::client::Body;
use kubeedge_proto::{
    digest::{project, projection_hash},
    v1::{ApiResponse, CallReply, SeenObject, call_reply},
};
use serde_json::Value;

use crate::kubeapi::{
    pass::{ANSWERED, MAX_ANSWER, Passed, version},
    status::Status,
};

/// Attempts to write an object that others write as well.
const CONFLICTS: usize = 4;
/// Bytes of a header of an answer.
const MAX_HEADER: usize = 4 * 1024;

#[derive(Clone)]
pub(super) struct Upstream {
    pub(super) client: kube::Client,
    pub(super) without_credentials: kube::Client,
}

impl Upstream {
    /// Makes the request. With `seen` only while the object is that one.
    pub(super) async fn make(
        &self,
        passed: &Passed,
        body: Bytes,
        seen: Option<SeenObject>,
    ) -> Result<CallReply, Status> {
        let Some(seen) = seen else { return Ok(reply(self.send(passed, body).await?)) };
        let mut conflicts = 0;
        loop {
            let found = self.send(&passed.read(), Bytes::new()).await?;
            if found.status != 200 {
                return Ok(reply(found));
            }
            let (present, status) = still(&seen, &found.body)?;
            let mut body = version::write(passed, &body, &present)?;
            if passed.method() == "PUT" {
                body = with_status(&body, status)?;
            }
            let answer = self.send(passed, body).await?;
            conflicts += 1;
            // Somebody wrote in between, its status perhaps: what was seen may still be there.
            if answer.status != 409 || conflicts == CONFLICTS {
                return Ok(reply(answer));
            }
        }
    }

    async fn send(&self, passed: &Passed, body: Bytes) -> Result<ApiResponse, Status> {
        // Whoever brings a token asks with its rights and no others.
        let client = if passed.has_token() { &self.without_credentials } else { &self.client };
        let mut request = http::Request::builder().method(passed.method()).uri(passed.uri());
        for (name, value) in passed.headers() {
            request = request.header(name, value);
        }
        let request = request.body(Body::from(body)).map_err(|error| Status::bad_request(error.to_string()))?;
        let away = |error: &dyn std::fmt::Display| {
            Status::unavailable(format!("the API server does not answer the cloud: {error}"))
        };
        let answer = client.send(request).await.map_err(|error| away(&error))?;
        let (head, body) = answer.into_parts();
        let headers = ANSWERED.into_iter().filter_map(|name| {
            let values: Vec<&str> = head.headers.get_all(name).iter().filter_map(|value| value.to_str().ok()).collect();
            let joined = values.join(", ");
            (!joined.is_empty() && joined.len() <= MAX_HEADER).then(|| (name.to_owned(), joined))
        });
        let headers = headers.collect();
        let body = Limited::new(body, MAX_ANSWER).collect().await.map_err(|error| {
            match error.downcast_ref::<LengthLimitError>() {
                Some(_) => {
                    let text = format!(
                        "the answer has more than {MAX_ANSWER} bytes, which are not passed on to a node: ask for less \
                         at a time, with limit"
                    );
                    Status::new(413, "RequestEntityTooLarge", text)
                }
                None => away(&error),
            }
        })?;
        Ok(ApiResponse { status: head.status.as_u16().into(), headers, body: body.to_bytes() })
    }
}

fn reply(answer: ApiResponse) -> CallReply {
    CallReply { result: Some(call_reply::Result::ApiResponse(Box::new(answer))) }
}

/// What replaces an object with the status of now, of which the edge has been told nothing: a kind without a subresource
/// for it would lose it.
fn with_status(body: &[u8], status: Option<Value>) -> Result<Bytes, Status> {
    let mut value: Value =
        serde_json::from_slice(body).map_err(|error| Status::bad_request(format!("the body is no JSON: {error}")))?;
    if let (Some(object), Some(status)) = (value.as_object_mut(), status) {
        object.insert("status".to_owned(), status);
    }
    Ok(value.to_string().into())
}

/// The resourceVersion and the status of now, if the object is what the edge has seen: its status and what the API server notes about it
/// may be others, of which the edge is not told.
pub(super) fn still(seen: &SeenObject, found: &[u8]) -> Result<(String, Option<Value>), Status> {
    let mut found: Value = serde_json::from_slice(found)
        .map_err(|error| Status::unavailable(format!("the API server gave no object: {error}")))?;
    let text = |pointer: &str| found.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
    let (uid, version) = (text("/metadata/uid"), text("/metadata/resourceVersion"));
    let status = found.get("status").cloned();
    project(&mut found);
    if uid != seen.uid || projection_hash(&found) != seen.projection_hash {
        let message = "the object has been modified; please apply your changes to the latest version and try again";
        return Err(Status::new(409, "Conflict", message));
    }
    Ok((version, status))
}
