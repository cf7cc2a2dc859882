//! The files of a downward API volume: the pod's own fields.

use k8s_openapi::api::core::v1::{DownwardAPIVolumeFile, Pod};

use super::{
    error::SetUpError,
    payload::{DEFAULT_MODE, Payload},
};
use crate::edged::{downward, facts::PodFacts};

/// The files that `items` describe.
pub(crate) fn payload(
    pod: &Pod,
    facts: &PodFacts,
    items: Option<&Vec<DownwardAPIVolumeFile>>,
    default_mode: Option<i32>,
) -> Result<Payload, SetUpError> {
    let mut payload = Payload::default();
    for item in items.into_iter().flatten() {
        let text = if let Some(selector) = &item.field_ref {
            downward::field(pod, facts, selector)?
        } else if let Some(selector) = &item.resource_field_ref {
            downward::resource(pod, None, facts, selector)?
        } else {
            continue;
        };
        let mode = item.mode.or(default_mode).unwrap_or(DEFAULT_MODE);
        payload.put(&item.path, text.into_bytes(), mode)?;
    }
    Ok(payload)
}
