//! The three ways to change an object by saying only what changes.

use serde_json::Value;

use super::kind::Kind;
use super::status::Status;

mod json;
mod merge;
pub mod strategic;

/// A parsed patch.
#[derive(Debug)]
pub(crate) enum Patch {
    Json(json_patch::Patch),
    Merge(Value),
    Strategic(Value),
}

/// The patch types by content type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PatchType {
    Json,
    Merge,
    Strategic,
}

impl PatchType {
    /// From the `Content-Type`. Server-side apply is not served, and says so.
    pub(crate) fn parse(content_type: Option<&str>) -> Result<Self, Status> {
        match content_type.unwrap_or_default().split(';').next().unwrap_or_default().trim() {
            "application/json-patch+json" => Ok(Self::Json),
            "application/merge-patch+json" => Ok(Self::Merge),
            "application/strategic-merge-patch+json" => Ok(Self::Strategic),
            "application/apply-patch+yaml" | "application/apply-patch+cbor" => Err(Status::unsupported_media_type(
                "server-side apply is not served by this API server: send a strategic merge patch, a JSON merge patch \
                 or a JSON patch (kubectl: leave out --server-side)",
            )),
            _ => Err(Status::unsupported_media_type("415: Unsupported Media Type")),
        }
    }

    /// A strategic merge patch of a custom resource, in Kubernetes' own words.
    pub(crate) fn not_for_custom() -> Status {
        Status {
            details: None,
            ..Status::unsupported_media_type(
                "the body of the request was in an unknown format - accepted media types include: \
                 application/json-patch+json, application/merge-patch+json, application/apply-patch+yaml",
            )
        }
    }
}

impl Patch {
    /// Parses the body.
    pub(crate) fn parse(kind: PatchType, body: &[u8]) -> Result<Self, Status> {
        if kind == PatchType::Json {
            return json::parse(body).map(Self::Json);
        }
        let value: Value = serde_json::from_slice(body)
            .map_err(|error| Status::bad_request(format!("error decoding patch: {error}")))?;
        if !value.is_object() {
            return Err(Status::bad_request("error decoding patch: the patch must be a JSON object"));
        }
        Ok(if kind == PatchType::Merge { Self::Merge(value) } else { Self::Strategic(value) })
    }

    /// What `original` becomes.
    pub(crate) fn apply(&self, kind: &Kind, original: &Value) -> Result<Value, Status> {
        match self {
            Self::Json(patch) => json::apply(patch, original),
            Self::Merge(patch) => Ok(merge::merge(original, patch)),
            Self::Strategic(patch) => strategic::strategic_merge(kind, original, patch),
        }
    }
}
