//! PATCH on an object: applied to the present state under the writer's turn, so it never has to be retried.

use super::super::Api;
use super::super::body::decode_patched;
use super::super::object::{Key, text};
use super::super::patch::{Patch, PatchType};
use super::super::request::{Target, WriteOptions};
use super::super::status::Status;
use super::update::{Part, change};
use super::{Request, Written};

/// Changes an object by what the body says.
pub(super) async fn patch(
    api: &Api,
    request: &Request,
    target: &Target,
    name: &str,
    part: Part,
) -> Result<Written, Status> {
    let kind = target.kind;
    let patch_type = PatchType::parse(request.content_type.as_deref())?;
    if target.custom.is_some() && patch_type == PatchType::Strategic {
        // Only Kubernetes' own types carry merge keys.
        return Err(PatchType::not_for_custom());
    }
    let options = WriteOptions::parse("PatchOptions", &request.query)?;
    let patch = Patch::parse(patch_type, &request.body)?;
    let writer = api.storage.write().await;
    let current =
        writer.get(target.id, &Key::new(target.scope(), name)).ok_or_else(|| Status::not_found(kind, name))?;
    let old = current.value(kind);
    let body = decode_patched(target, patch.apply(kind, &old)?, options.field_validation)?;
    let new = body.object;
    let sent = text(&new["metadata"], "name");
    if sent != name {
        return Err(Status::bad_request(format!(
            "the name of the object ({sent}) does not match the name on the URL ({name})"
        )));
    }
    if text(&new["metadata"], "namespace") != target.scope() {
        return Err(Status::bad_request(
            "the namespace of the provided object does not match the namespace sent on the request",
        ));
    }
    let mut written = change(api, writer, target, &old, new, part, options.dry_run).await?;
    written.warnings = body.warnings;
    Ok(written)
}
