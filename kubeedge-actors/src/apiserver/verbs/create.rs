//! POST on a collection.

use serde_json::Value;

use super::super::Api;
use super::super::body::{check_content_type, decode};
use super::super::kind::Kind;
use super::super::object::{Key, metadata, text};
use super::super::request::{Target, WriteOptions};
use super::super::status::Status;
use super::super::storage::{Change, Writer};
use super::super::{admission, clock, meta, strategy};
use super::{Request, Written, not_stored, settle_addresses};

/// Creates the object in the body.
pub(super) async fn create(api: &Api, request: &Request, target: &Target) -> Result<Written, Status> {
    let options = WriteOptions::parse("CreateOptions", &request.query)?;
    check_content_type(request.content_type.as_deref())?;
    let body = decode(target, &request.body, options.field_validation)?;
    let mut object = body.object;
    same_namespace(&mut object, target)?;
    let writer = api.storage.write().await;
    let mut written = new_object(api, writer, target, object, options.dry_run).await?;
    written.warnings = body.warnings;
    Ok(written)
}

/// The part of a creation that a PUT of a new name shares.
pub(super) async fn new_object(
    api: &Api,
    writer: Writer,
    target: &Target,
    object: Value,
    dry_run: bool,
) -> Result<Written, Status> {
    let kind = target.kind;
    let object = admitted(api, &writer, target, object)?;
    if dry_run {
        return Ok(Written { code: 201, object: not_stored(kind, &object), warnings: Vec::new() });
    }
    let name = text(&object["metadata"], "name").to_owned();
    let mut changes = vec![Change::Put(target.id, object)];
    changes.extend(admission::companions(api, target, &name));
    let object = writer.commit(changes).await?.into_iter().next();
    let object = object.ok_or_else(|| Status::internal("the commit gave no object"))?;
    Ok(Written { code: 201, object, warnings: Vec::new() })
}

/// A new object as it would be stored: defaulted, admitted and valid, under a name that is free in this turn.
pub(crate) fn admitted(api: &Api, writer: &Writer, target: &Target, mut object: Value) -> Result<Value, Status> {
    let kind = target.kind;
    strategy::prepare_create(kind, &mut object);
    target.default(&mut object);
    fill_metadata(kind, &mut object, api);
    admission::create(api, target, &mut object)?;
    let name = text(&object["metadata"], "name").to_owned();
    let mut errors = meta::validate(&object);
    errors.extend(target.validate_create(&object));
    if !errors.is_empty() {
        return Err(Status::invalid(kind, &name, errors));
    }
    admission::validate(kind, &object, None)?;
    if writer.get(target.id, &Key::new(target.scope(), &name)).is_some() {
        return Err(Status::already_exists(kind, &name));
    }
    settle_addresses(api, target, writer, &mut object, None)?;
    Ok(object)
}

/// The namespace of the object must be that of the path, or empty.
pub(super) fn same_namespace(object: &mut Value, target: &Target) -> Result<(), Status> {
    let sent = text(&object["metadata"], "namespace");
    if !sent.is_empty() && sent != target.scope() {
        return Err(Status::bad_request(
            "the namespace of the provided object does not match the namespace sent on the request",
        ));
    }
    let meta = metadata(object);
    match &target.namespace {
        Some(namespace) => meta.insert("namespace".into(), namespace.as_str().into()),
        None => meta.remove("namespace"),
    };
    Ok(())
}

/// Sets what only the server sets: name from `generateName`, uid, creation time, generation.
fn fill_metadata(kind: &Kind, object: &mut Value, api: &Api) {
    let now = clock::rfc3339(api.now());
    let meta = metadata(object);
    for member in ["resourceVersion", "deletionTimestamp", "deletionGracePeriodSeconds", "selfLink", "managedFields"] {
        meta.remove(member);
    }
    let given = |member: &str| meta.get(member).and_then(Value::as_str).unwrap_or_default().to_owned();
    let (name, prefix) = (given("name"), given("generateName"));
    if name.is_empty() && !prefix.is_empty() {
        meta.insert("name".into(), meta::generated_name(&prefix, rand::random::<u32>).into());
    }
    meta.insert("uid".into(), uuid::Uuid::new_v4().to_string().into());
    meta.insert("creationTimestamp".into(), now.into());
    if kind.has_generation {
        meta.insert("generation".into(), 1.into());
    } else {
        meta.remove("generation");
    }
}
