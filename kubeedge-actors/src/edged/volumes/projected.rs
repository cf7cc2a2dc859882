//! The files of a projected volume: tokens, ConfigMaps, Secrets and downward API in one directory.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, ProjectedVolumeSource, ServiceAccountTokenProjection};

use super::{
    config_map::{self, Reference},
    downward_api,
    error::SetUpError,
    payload::{DEFAULT_MODE, Payload},
    secret,
    tokens::Tokens,
};
use crate::edged::{
    downward::service_account,
    facts::PodFacts,
    objects::{ObjectSource, TokenSpec},
};

/// An hour, as the API server defaults it.
const DEFAULT_EXPIRATION: i64 = 3600;

/// A pod's tokens while its volumes are put together.
pub(crate) struct TokenBook {
    pub(crate) tokens: Tokens,
    /// Whether there is something to save.
    pub(crate) changed: bool,
    pub(crate) now: Timestamp,
}

/// Who may read a token besides root.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Readers {
    /// The user that all containers run as, if it is one.
    pub(crate) user: Option<u32>,
    /// The pod's `fsGroup`.
    pub(crate) group: Option<u32>,
}

/// The files of all sources. A later source replaces a file of an earlier one.
pub(crate) async fn payload(
    pod: &Pod,
    facts: &PodFacts,
    source: &ProjectedVolumeSource,
    readers: Readers,
    objects: &dyn ObjectSource,
    book: &mut TokenBook,
) -> Result<Payload, SetUpError> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let default_mode = source.default_mode;
    let mut payload = Payload::default();
    for projection in source.sources.iter().flatten() {
        let files = if let Some(source) = &projection.config_map {
            let (name, items, optional) = (source.name.as_str(), source.items.as_ref(), source.optional);
            config_map::payload(Reference { namespace, name, items, default_mode, optional }, objects).await?
        } else if let Some(source) = &projection.secret {
            let (name, items, optional) = (source.name.as_str(), source.items.as_ref(), source.optional);
            secret::payload(Reference { namespace, name, items, default_mode, optional }, objects).await?
        } else if let Some(source) = &projection.downward_api {
            downward_api::payload(pod, facts, source.items.as_ref(), default_mode)?
        } else if let Some(source) = &projection.service_account_token {
            let token = token(pod, source, objects, book).await?;
            let default_mode = default_mode.unwrap_or(DEFAULT_MODE);
            // Somebody in particular reads it: then nobody else does.
            let mode = if readers.user.is_some() || readers.group.is_some() { 0o600 } else { default_mode };
            let mut files = Payload::default();
            files.put_owned(&source.path, token.into_bytes(), mode, readers.user)?;
            files
        } else if projection.cluster_trust_bundle.is_some() {
            return Err(SetUpError::Unsupported("projected clusterTrustBundle"));
        } else {
            return Err(SetUpError::Unsupported("projected source of an unknown kind"));
        };
        payload.merge(files)?;
    }
    Ok(payload)
}

/// A token that is good for a while: the one that is kept, or a new one when that is due and can be had.
async fn token(
    pod: &Pod,
    source: &ServiceAccountTokenProjection,
    objects: &dyn ObjectSource,
    book: &mut TokenBook,
) -> Result<String, SetUpError> {
    let account = pod.spec.as_ref().map(service_account).filter(|name| !name.is_empty()).unwrap_or("default");
    let spec = TokenSpec {
        namespace: pod.metadata.namespace.clone().unwrap_or_default(),
        service_account: account.to_owned(),
        pod_name: pod.metadata.name.clone().unwrap_or_default(),
        pod_uid: pod.metadata.uid.clone().unwrap_or_default(),
        audiences: source.audience.iter().filter(|audience| !audience.is_empty()).cloned().collect(),
        expiration_seconds: source.expiration_seconds.unwrap_or(DEFAULT_EXPIRATION),
    };
    let kept = match book.tokens.find(&spec, book.now) {
        Some((token, false)) => return Ok(token),
        due => due.map(|(token, _)| token),
    };
    match (objects.token(spec.clone()).await, kept) {
        (Ok(token), _) => {
            book.tokens.keep(&spec, &token);
            book.changed = true;
            Ok(token.token)
        }
        (Err(error), Some(kept)) => {
            let pod = format!("{}/{}", spec.namespace, spec.pod_name);
            tracing::warn!(pod, %error, "service account token is due and could not be renewed, the old one stays");
            Ok(kept)
        }
        (Err(error), None) => Err(error.into()),
    }
}
