//! The files of a Secret.

use std::collections::BTreeMap;

use super::{config_map::Reference, error::SetUpError, payload::Payload};
use crate::edged::objects::ObjectSource;

/// The files that the Secret gives; none if it is absent and that is allowed.
pub(crate) async fn payload(reference: Reference<'_>, objects: &dyn ObjectSource) -> Result<Payload, SetUpError> {
    let Reference { namespace, name, items, default_mode, optional } = reference;
    let mut payload = Payload::default();
    let Some(object) = objects.secret(namespace, name).await? else {
        if optional == Some(true) {
            return Ok(payload);
        }
        return Err(SetUpError::SecretNotFound(name.to_owned()));
    };
    let data: BTreeMap<&str, &[u8]> =
        object.data.iter().flatten().map(|(key, value)| (key.as_str(), value.0.as_slice())).collect();
    payload.put_keys("secret", &data, items, default_mode, optional)?;
    Ok(payload)
}
