//! `/scale`: an object as `autoscaling/v1` `Scale`, which is its number of replicas and nothing else.
//!
//! The conversion knows a kind only by where it keeps the numbers ([`Paths`]), so that custom kinds can use it too.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::super::Api;
use super::super::body::{check_content_type, parse};
use super::super::custom::subresources::Scale;
use super::super::kinds::decode;
use super::super::kinds::fields;
use super::super::label_selector;
use super::super::object::{Key, metadata, text};
use super::super::patch::{Patch, PatchType};
use super::super::request::{Target, WriteOptions};
use super::super::status::{FieldCause, FieldError, Status};
use super::update::{Part, change};
use super::{Answer, Method, Request, existing};

const SCALE: &str = "io.k8s.api.autoscaling.v1.Scale";
const API_VERSION: &str = "autoscaling/v1";

/// Where a kind keeps what a `Scale` shows, as JSON pointers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Paths<'a> {
    /// The number that is wanted.
    pub(crate) wanted: &'a str,
    /// The number that is there.
    pub(crate) present: &'a str,
    /// The selector of what is counted.
    pub(crate) selector: SelectorAt<'a>,
}

/// How a kind keeps its selector.
#[derive(Clone, Copy, Debug)]
pub(crate) enum SelectorAt<'a> {
    /// A `LabelSelector` at this pointer.
    Object(&'a str),
    /// Its text at this pointer.
    Text(&'a str),
    /// It says none.
    Nowhere,
}

/// Where a kind keeps it; `None` for one that has no replicas.
pub(crate) fn paths(target: &Target) -> Option<Paths<'_>> {
    if let Some(custom) = &target.custom {
        return custom.scale.as_ref().map(Scale::paths);
    }
    target.kind.scale_subresource.then_some(Paths {
        wanted: "/spec/replicas",
        present: "/status/replicas",
        selector: SelectorAt::Object("/spec/selector"),
    })
}

/// An object as a `Scale`.
pub(crate) fn scale_of(object: &Value, paths: &Paths<'_>) -> Value {
    let mut meta = Map::new();
    for member in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
        if let Some(value) = object["metadata"].get(member) {
            meta.insert(member.into(), value.clone());
        }
    }
    let mut scale = json!({"kind": "Scale", "apiVersion": API_VERSION, "metadata": meta, "spec": {}});
    let wanted = fields::integer(object, paths.wanted).unwrap_or_default();
    if wanted != 0 {
        scale["spec"]["replicas"] = wanted.into();
    }
    scale["status"] = json!({"replicas": fields::integer(object, paths.present).unwrap_or_default()});
    let selector = match paths.selector {
        SelectorAt::Object(at) => object.pointer(at).map(label_selector::to_text).unwrap_or_default(),
        SelectorAt::Text(at) => fields::text(object, at).to_owned(),
        SelectorAt::Nowhere => String::new(),
    };
    if !selector.is_empty() {
        scale["status"]["selector"] = selector.into();
    }
    scale
}

/// What `object` becomes by `scale`: the number that is wanted, and the preconditions of the sender.
pub(crate) fn rescaled(object: &Value, scale: &Value, paths: &Paths<'_>) -> Result<Value, Status> {
    let name = text(&object["metadata"], "name");
    let wanted = fields::integer(scale, "/spec/replicas").unwrap_or_default();
    if wanted < 0 {
        let why = FieldCause::Invalid(wanted.into(), "must be greater than or equal to 0".into());
        return Err(Status::invalid_as("autoscaling", "Scale", name, vec![FieldError::new("spec.replicas", why)]));
    }
    let mut new = object.clone();
    set(&mut new, paths.wanted, wanted);
    for member in ["uid", "resourceVersion"] {
        if let Some(sent) = scale["metadata"].get(member).filter(|sent| sent.as_str().is_some_and(|s| !s.is_empty())) {
            metadata(&mut new).insert(member.into(), sent.clone());
        }
    }
    Ok(new)
}

/// Sets a number at a pointer, with the objects on the way to it.
fn set(object: &mut Value, pointer: &str, number: i64) {
    let mut place = object;
    for step in pointer.split('/').skip(1) {
        if !place.is_object() {
            *place = json!({});
        }
        place = &mut place[step];
    }
    *place = number.into();
}

/// GET, PUT and PATCH of the `Scale` of an object.
pub(super) async fn scale(
    api: &Arc<Api>,
    request: &Request,
    target: &Target,
    name: &str,
    paths: &Paths<'_>,
) -> Result<Answer, Status> {
    let (what, patch) = match request.method {
        Method::Get => {
            let object = existing(api, target, name)?.value(target.kind);
            return Ok(Answer::value(200, &scale_of(&object, paths)));
        }
        Method::Put => {
            check_content_type(request.content_type.as_deref())?;
            ("UpdateOptions", None)
        }
        Method::Patch => {
            let patch_type = PatchType::parse(request.content_type.as_deref())?;
            ("PatchOptions", Some(Patch::parse(patch_type, &request.body)?))
        }
        Method::Post | Method::Delete => return Err(Status::method_not_allowed()),
    };
    let options = WriteOptions::parse(what, &request.query)?;
    let writer = api.storage.write().await;
    let current =
        writer.get(target.id, &Key::new(target.scope(), name)).ok_or_else(|| Status::not_found(target.kind, name))?;
    let old = current.value(target.kind);
    let sent = match patch {
        // A Scale has no list that is merged by a key: the kind's own facts change nothing.
        Some(patch) => patch.apply(target.kind, &scale_of(&old, paths))?,
        None => {
            let parsed = parse(&request.body);
            let why = |error| format!("couldn't get version/kind; json parse error: {error}");
            parsed.map_err(|error| Status::bad_request(why(error)))?.0
        }
    };
    let new = rescaled(&old, &checked(sent, target, name)?, paths)?;
    let written = change(api, writer, target, &old, new, Part::Main, options.dry_run).await?;
    Ok(Answer::value(written.code, &scale_of(&written.object.value(target.kind), paths)))
}

/// A `Scale` of this object, its fields of the right types.
fn checked(sent: Value, target: &Target, name: &str) -> Result<Value, Status> {
    let (kind, version) = (text(&sent, "kind"), text(&sent, "apiVersion"));
    if !matches!(kind, "" | "Scale") || !matches!(version, "" | API_VERSION) {
        return Err(Status::bad_request(format!(
            "expected Scale of {API_VERSION} in the body, got {kind} of {version}"
        )));
    }
    let decoded = decode::decode(SCALE, sent).map_err(|error| {
        Status::bad_request(format!("Scale in version \"v1\" cannot be handled as a Scale: {}", error.message))
    })?;
    let meta = &decoded.object["metadata"];
    for (member, wanted) in [("name", name), ("namespace", target.scope())] {
        let given = text(meta, member);
        if !given.is_empty() && given != wanted {
            return Err(Status::bad_request(format!(
                "the {member} of the object ({given}) does not match the {member} on the URL ({wanted})"
            )));
        }
    }
    Ok(decoded.object)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn web() -> Value {
        json!({
            "metadata": {"name": "web", "namespace": "n", "uid": "u", "resourceVersion": "7", "labels": {"a": "b"}},
            "spec": {"replicas": 2, "selector": {"matchLabels": {"app": "web"}}},
            "status": {"replicas": 1},
        })
    }

    const PATHS: Paths<'static> =
        Paths { wanted: "/spec/replicas", present: "/status/replicas", selector: SelectorAt::Object("/spec/selector") };

    #[test]
    fn a_scale_shows_the_numbers_and_the_selector() {
        let meta = json!({"name": "web", "namespace": "n", "uid": "u", "resourceVersion": "7"});
        let scale = json!({"kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": meta,
            "spec": {"replicas": 2}, "status": {"replicas": 1, "selector": "app=web"}});
        assert_eq!(scale_of(&web(), &PATHS), scale);
        let custom = json!({"metadata": {"name": "c"}, "spec": {"size": 3}, "status": {"labels": "x=y"}});
        let paths =
            Paths { wanted: "/spec/size", present: "/status/size", selector: SelectorAt::Text("/status/labels") };
        let scale = scale_of(&custom, &paths);
        assert_eq!(
            (&scale["spec"], &scale["status"]),
            (&json!({"replicas": 3}), &json!({"replicas": 0, "selector": "x=y"}))
        );
        let nowhere = Paths { selector: SelectorAt::Nowhere, ..paths };
        assert_eq!(scale_of(&custom, &nowhere)["status"], json!({"replicas": 0}));
    }

    #[test]
    fn rescaling_changes_the_number_and_carries_preconditions() {
        let new =
            rescaled(&web(), &json!({"metadata": {"resourceVersion": "6"}, "spec": {"replicas": 5}}), &PATHS).unwrap();
        assert_eq!((&new["spec"]["replicas"], &new["metadata"]["resourceVersion"]), (&json!(5), &json!("6")));
        assert_eq!(new["metadata"]["labels"], json!({"a": "b"}));
        let refused = rescaled(&web(), &json!({"spec": {"replicas": -1}}), &PATHS).unwrap_err();
        assert_eq!(
            (refused.code, refused.details.unwrap()["causes"][0]["field"].clone()),
            (422, json!("spec.replicas"))
        );
        let made = rescaled(&json!({"metadata": {}}), &json!({"spec": {"replicas": 1}}), &PATHS).unwrap();
        assert_eq!(made["spec"], json!({"replicas": 1}));
    }
}
