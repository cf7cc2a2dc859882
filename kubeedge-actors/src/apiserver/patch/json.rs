//! JSON patch (RFC 6902).

use serde_json::Value;

use super::super::status::Status;

/// Operations in one patch at most: that of a real API server.
const MAX_OPERATIONS: usize = 10_000;

pub(crate) fn parse(body: &[u8]) -> Result<json_patch::Patch, Status> {
    let patch: json_patch::Patch =
        serde_json::from_slice(body).map_err(|error| Status::bad_request(format!("error decoding patch: {error}")))?;
    if patch.0.len() > MAX_OPERATIONS {
        return Err(Status::new(
            413,
            "RequestEntityTooLarge",
            format!("The allowed maximum operations in a JSON patch is {MAX_OPERATIONS}, got {}", patch.0.len()),
        ));
    }
    Ok(patch)
}

pub(crate) fn apply(patch: &json_patch::Patch, original: &Value) -> Result<Value, Status> {
    let mut patched = original.clone();
    json_patch::patch(&mut patched, patch).map_err(|error| {
        tracing::debug!(%error, "JSON patch refused");
        Status::patch_rejected()
    })?;
    Ok(patched)
}
