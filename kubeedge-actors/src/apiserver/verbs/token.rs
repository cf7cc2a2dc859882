//! `serviceaccounts/<name>/token`: signed tokens, bound to a pod or a node where that is asked for.

use std::time::Duration;

use serde_json::{Value, json};

use super::super::body::{check_content_type, parse};
use super::super::meta::strings;
use super::super::object::{Key, Object, text};
use super::super::request::{Target, WriteOptions};
use super::super::status::{FieldCause, FieldError, Status};
use super::super::{Api, clock};
use super::{Answer, Request, existing};
use crate::identity::{Binding, Claims, Reference};

/// Seconds a token lives that did not say.
const DEFAULT_SECONDS: u64 = 3600;
/// The least that can be asked for: ten minutes.
const MIN_SECONDS: u64 = 600;
/// The most that can be asked for.
const MAX_SECONDS: u64 = 1 << 32;
/// What the volume that admission injects asks for. Such a token is told to be renewed after that time but stays good
/// for a year, as in Kubernetes: programs that read it once, and nodes that are offline, go on.
const PROJECTED_SECONDS: u64 = 3607;
const PROJECTED_LIFE_SECONDS: u64 = 365 * 24 * 3600;

/// Issues a token.
pub(super) async fn create(api: &Api, request: &Request, target: &Target, name: &str) -> Result<Answer, Status> {
    let options = WriteOptions::parse("CreateOptions", &request.query)?;
    check_content_type(request.content_type.as_deref())?;
    let (asked, _) = parse(&request.body)
        .map_err(|error| Status::bad_request(format!("couldn't get version/kind; json parse error: {error}")))?;
    let kind = text(&asked, "kind");
    if !asked.is_object() || (!kind.is_empty() && kind != "TokenRequest") {
        return Err(Status::bad_request(format!("expected TokenRequest in the body, got {kind:?}")));
    }
    let sent = text(&asked["metadata"], "name");
    if !sent.is_empty() && sent != name {
        return Err(Status::bad_request(format!(
            "the name of the object ({sent}) does not match the name on the URL ({name})"
        )));
    }
    let spec = &asked["spec"];
    let seconds = lifetime(spec, name)?;
    let mut audiences: Vec<String> = strings(spec, "audiences").map(str::to_owned).collect();
    if audiences.is_empty() {
        audiences.push(api.tokens.issuer().to_owned());
    }
    let account = existing(api, target, name)?;
    let (pod, node) = bound_to(api, target, name, &spec["boundObjectRef"])?;
    let projected = seconds == PROJECTED_SECONDS && pod.is_some() && audiences == [api.tokens.issuer()];
    let life = Duration::from_secs(if projected { PROJECTED_LIFE_SECONDS } else { seconds });
    let binding = Binding { namespace: target.scope().to_owned(), serviceaccount: reference(&account), pod, node };
    let claims = Claims::new(api.tokens.issuer(), audiences.clone(), binding, api.time(), life);
    let token = if options.dry_run { String::new() } else { api.tokens.issue(&claims).map_err(Status::internal)? };
    let until = clock::rfc3339(api.now().saturating_add_unsigned(seconds));
    Ok(Answer::value(
        201,
        &json!({
            "kind": "TokenRequest", "apiVersion": "authentication.k8s.io/v1",
            "metadata": {
                "name": name, "namespace": target.scope(), "uid": account.uid,
                "creationTimestamp": clock::rfc3339(api.now()),
            },
            "spec": {
                "audiences": audiences, "expirationSeconds": seconds, "boundObjectRef": spec["boundObjectRef"],
            },
            "status": {"token": token, "expirationTimestamp": until},
        }),
    ))
}

fn lifetime(spec: &Value, name: &str) -> Result<u64, Status> {
    let asked = &spec["expirationSeconds"];
    let why = match asked.as_u64() {
        _ if asked.is_null() => return Ok(DEFAULT_SECONDS),
        Some(seconds) if (MIN_SECONDS..=MAX_SECONDS).contains(&seconds) => return Ok(seconds),
        Some(seconds) if seconds > MAX_SECONDS => "may not specify a duration larger than 2^32 seconds",
        _ => "may not specify a duration less than 10 minutes",
    };
    let error = FieldError::new("spec.expirationSeconds", FieldCause::Invalid(asked.clone(), why.into()));
    Err(Status::invalid_as("authentication.k8s.io", "TokenRequest", name, vec![error]))
}

fn reference(object: &Object) -> Reference {
    Reference { name: object.key.name.clone(), uid: object.uid.clone() }
}

/// The pod and the node that the token dies with.
fn bound_to(
    api: &Api,
    target: &Target,
    account: &str,
    asked: &Value,
) -> Result<(Option<Reference>, Option<Reference>), Status> {
    if asked.is_null() {
        return Ok((None, None));
    }
    let (version, kind, name) = (text(asked, "apiVersion"), text(asked, "kind"), text(asked, "name"));
    let plural = match (version, kind) {
        ("v1", "Pod") => "pods",
        ("v1", "Node") => "nodes",
        _ => {
            return Err(Status::bad_request(format!(
                "cannot bind token for serviceaccount {account:?} to {kind:?} of {version:?}"
            )));
        }
    };
    let id = api.storage.core(plural).ok_or_else(Status::no_such_resource)?;
    let served = api.storage.kind(id);
    let namespace = if served.namespaced { target.scope() } else { "" };
    let object = api.storage.get(id, &Key::new(namespace, name)).ok_or_else(|| Status::not_found(served, name))?;
    let uid = text(asked, "uid");
    if !uid.is_empty() && uid != object.uid {
        let why = format!(
            "the UID in the bound object reference ({uid}) does not match the UID in record. The object might have \
             been deleted and then recreated"
        );
        return Err(Status::conflict(served.group, served.kind, name, &why));
    }
    if plural == "nodes" {
        return Ok((None, Some(reference(&object))));
    }
    let pod = object.value(served);
    if text(&pod["spec"], "serviceAccountName") != account {
        return Err(Status::bad_request(format!(
            "cannot bind token for serviceaccount {account:?} to pod running with different serviceaccount name."
        )));
    }
    let node = api.storage.core("nodes").and_then(|nodes| {
        api.storage.get(nodes, &Key::new("", text(&pod["spec"], "nodeName"))).map(|node| reference(&node))
    });
    Ok((Some(reference(&object)), node))
}
