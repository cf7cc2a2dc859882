//! The files of a ConfigMap.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::KeyToPath;

use super::{error::SetUpError, payload::Payload};
use crate::edged::objects::ObjectSource;

/// What a volume or a projection says about its object.
pub(crate) struct Reference<'a> {
    pub(crate) namespace: &'a str,
    pub(crate) name: &'a str,
    pub(crate) items: Option<&'a Vec<KeyToPath>>,
    pub(crate) default_mode: Option<i32>,
    pub(crate) optional: Option<bool>,
}

/// The files that the ConfigMap gives; none if it is absent and that is allowed.
pub(crate) async fn payload(reference: Reference<'_>, objects: &dyn ObjectSource) -> Result<Payload, SetUpError> {
    let Reference { namespace, name, items, default_mode, optional } = reference;
    let mut payload = Payload::default();
    let Some(object) = objects.config_map(namespace, name).await? else {
        if optional == Some(true) {
            return Ok(payload);
        }
        return Err(SetUpError::ConfigMapNotFound(name.to_owned()));
    };
    let binary = object.binary_data.iter().flatten().map(|(key, value)| (key.as_str(), value.0.as_slice()));
    let text = object.data.iter().flatten().map(|(key, value)| (key.as_str(), value.as_bytes()));
    let data: BTreeMap<&str, &[u8]> = binary.chain(text).collect();
    payload.put_keys("config", &data, items, default_mode, optional)?;
    Ok(payload)
}
