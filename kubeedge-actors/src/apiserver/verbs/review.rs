//! Reviews: questions that are answered and not stored.

use serde_json::{Value, json};

use super::super::Api;
use super::super::auth::User;
use super::super::body::{check_content_type, parse};
use super::super::meta::strings;
use super::super::object::text;
use super::super::status::Status;
use super::{Answer, Method, Request};

fn spec(request: &Request, kind: &str) -> Result<Value, Status> {
    if request.method != Method::Post {
        return Err(Status::method_not_allowed());
    }
    check_content_type(request.content_type.as_deref())?;
    let (mut value, _) = parse(&request.body)
        .map_err(|error| Status::bad_request(format!("couldn't get version/kind; json parse error: {error}")))?;
    let sent = text(&value, "kind");
    if !sent.is_empty() && sent != kind {
        return Err(Status::bad_request(format!("expected {kind} in the body, got {sent:?}")));
    }
    Ok(value["spec"].take())
}

/// `kubectl auth can-i`: what this server would answer to the one who asks.
pub(super) fn self_access(request: &Request) -> Result<Answer, Status> {
    let spec = spec(request, "SelfSubjectAccessReview")?;
    let status = if request.user.admin {
        json!({"allowed": true})
    } else {
        json!({"allowed": false, "reason": "only the administrator's token is given rights by this server"})
    };
    Ok(Answer::value(
        201,
        &json!({
            "kind": "SelfSubjectAccessReview", "apiVersion": "authorization.k8s.io/v1", "metadata": {},
            "spec": spec, "status": status,
        }),
    ))
}

/// `kubectl auth whoami`.
pub(super) fn self_subject(request: &Request) -> Result<Answer, Status> {
    spec(request, "SelfSubjectReview")?;
    Ok(Answer::value(
        201,
        &json!({
            "kind": "SelfSubjectReview", "apiVersion": "authentication.k8s.io/v1", "metadata": {},
            "status": {"userInfo": user_info(&request.user)},
        }),
    ))
}

/// Whose token this is.
pub(super) fn token(api: &Api, request: &Request) -> Result<Answer, Status> {
    let spec = spec(request, "TokenReview")?;
    let mut audiences: Vec<&str> = strings(&spec, "audiences").collect();
    if audiences.is_empty() {
        audiences.push(api.tokens.issuer());
    }
    let status = match api.authenticate(text(&spec, "token"), &audiences) {
        Some(user) => json!({"authenticated": true, "user": user_info(&user), "audiences": audiences}),
        None => json!({"authenticated": false, "error": "the token is not known"}),
    };
    Ok(Answer::value(
        201,
        &json!({
            "kind": "TokenReview", "apiVersion": "authentication.k8s.io/v1", "metadata": {},
            "spec": spec, "status": status,
        }),
    ))
}

fn user_info(user: &User) -> Value {
    json!({"username": user.name, "uid": user.uid, "groups": user.groups})
}
