//! Reviews: questions that are answered and not stored.

use serde_json::{Value, json};

use super::super::Api;
use super::super::auth::{OPEN_PATHS, User, may};
use super::super::body::{check_content_type, parse};
use super::super::meta::strings;
use super::super::object::text;
use super::super::status::{FieldCause, FieldError, Status};
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
    one_question("SelfSubjectAccessReview", &spec)?;
    let groups: Vec<&str> = request.user.groups.iter().map(String::as_str).collect();
    let status = verdict(&groups, &spec);
    Ok(Answer::value(
        201,
        &json!({
            "kind": "SelfSubjectAccessReview", "apiVersion": "authorization.k8s.io/v1", "metadata": {},
            "spec": spec, "status": status,
        }),
    ))
}

/// `kubectl auth can-i --as` of one who may ask for others: what this server would answer to a user of these groups.
pub(super) fn access(request: &Request) -> Result<Answer, Status> {
    let spec = spec(request, "SubjectAccessReview")?;
    one_question("SubjectAccessReview", &spec)?;
    about_others("SubjectAccessReview", spec)
}

fn about_others(kind: &str, spec: Value) -> Result<Answer, Status> {
    let groups: Vec<&str> = strings(&spec, "groups").collect();
    if groups.is_empty() && text(&spec, "user").is_empty() {
        let why = FieldCause::Invalid("".into(), "at least one of user or group must be specified".into());
        return Err(invalid(kind, FieldError::new("spec.user", why)));
    }
    let status = verdict(&groups, &spec);
    Ok(Answer::value(
        201,
        &json!({
            "kind": kind, "apiVersion": "authorization.k8s.io/v1", "metadata": {},
            "spec": spec, "status": status,
        }),
    ))
}

/// The same in one namespace, for those who may ask only there.
pub(super) fn local_access(request: &Request, namespace: &str) -> Result<Answer, Status> {
    const KIND: &str = "LocalSubjectAccessReview";
    let spec = spec(request, KIND)?;
    one_question(KIND, &spec)?;
    if !spec["nonResourceAttributes"].is_null() {
        let why =
            FieldCause::Invalid(spec["nonResourceAttributes"].clone(), "disallowed on this kind of request".into());
        return Err(invalid(KIND, FieldError::new("spec.nonResourceAttributes", why)));
    }
    if text(&spec["resourceAttributes"], "namespace") != namespace {
        let why = FieldCause::Invalid(
            spec["resourceAttributes"]["namespace"].clone(),
            "must match metadata.namespace".into(),
        );
        return Err(invalid(KIND, FieldError::new("spec.resourceAttributes.namespace", why)));
    }
    about_others(KIND, spec)
}

/// `kubectl auth can-i --list`.
pub(super) fn self_rules(request: &Request) -> Result<Answer, Status> {
    let spec = spec(request, "SelfSubjectRulesReview")?;
    if text(&spec, "namespace").is_empty() {
        return Err(Status::bad_request("no namespace on request"));
    }
    let (resources, paths) = if request.user.admin {
        (
            json!([{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}]),
            json!([{"verbs": ["*"], "nonResourceURLs": ["*"]}]),
        )
    } else {
        (
            json!([
                {"verbs": ["create"], "apiGroups": ["authorization.k8s.io"],
                    "resources": ["selfsubjectaccessreviews", "selfsubjectrulesreviews"]},
                {"verbs": ["create"], "apiGroups": ["authentication.k8s.io"], "resources": ["selfsubjectreviews"]},
            ]),
            json!([{"verbs": ["get"], "nonResourceURLs": OPEN_PATHS}]),
        )
    };
    Ok(Answer::value(
        201,
        &json!({
            "kind": "SelfSubjectRulesReview", "apiVersion": "authorization.k8s.io/v1", "metadata": {}, "spec": {},
            "status": {"resourceRules": resources, "nonResourceRules": paths, "incomplete": false},
        }),
    ))
}

/// A review asks about a resource or about a path.
fn one_question(kind: &str, spec: &Value) -> Result<(), Status> {
    if spec["resourceAttributes"].is_object() != spec["nonResourceAttributes"].is_object() {
        return Ok(());
    }
    let why = "exactly one of nonResourceAttributes or resourceAttributes must be specified";
    let cause = FieldCause::Invalid(spec["resourceAttributes"].clone(), why.into());
    Err(invalid(kind, FieldError::new("spec.resourceAttributes", cause)))
}

fn invalid(kind: &str, error: FieldError) -> Status {
    Status::invalid_as("authorization.k8s.io", kind, "", vec![error])
}

fn verdict(groups: &[&str], spec: &Value) -> Value {
    if may(groups, &spec["resourceAttributes"], &spec["nonResourceAttributes"]) {
        json!({"allowed": true})
    } else {
        json!({"allowed": false, "reason": "only the administrator is given rights by this server"})
    }
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

/// Whose token this is, and for which of the audiences that are asked about (the API server's own where none is).
pub(super) fn token(api: &Api, request: &Request) -> Result<Answer, Status> {
    let spec = spec(request, "TokenReview")?;
    let mut audiences: Vec<&str> = strings(&spec, "audiences").collect();
    if audiences.is_empty() {
        audiences.push(api.tokens.issuer());
    }
    let status = match api.authenticate(text(&spec, "token"), &audiences) {
        Some((user, audiences)) => json!({"authenticated": true, "user": user_info(&user), "audiences": audiences}),
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
