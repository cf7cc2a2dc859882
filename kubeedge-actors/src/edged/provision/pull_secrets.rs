//! What a pod's `imagePullSecrets` hold for an image.

use k8s_openapi::api::core::v1::Pod;

use super::{Credentials, Provide};
use crate::edged::{credentials::matching, image_name::ImageName, objects::ObjectSource};

/// The credentials for an image out of the secrets that a pod names, in their order.
pub(super) async fn credentials(objects: &dyn ObjectSource, pod: &Pod, image: &str) -> Result<Credentials, String> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let image = ImageName::parse(image).provide()?;
    let mut credentials = Credentials::default();
    let named = pod.spec.iter().flat_map(|spec| spec.image_pull_secrets.iter().flatten());
    for reference in named {
        // As kubelet does: a secret that is missing is said, and the pull is tried without it. So is a broken one.
        let why = match objects.secret(namespace, &reference.name).await {
            Ok(Some(secret)) => match matching(&secret, &image) {
                Ok(found) => {
                    credentials.found.extend(found);
                    continue;
                }
                Err(error) => error.to_string(),
            },
            Ok(None) => format!("\"{namespace}/{}\" not found", reference.name),
            Err(error) => error.to_string(),
        };
        tracing::warn!("image pull secret: {why}");
        credentials.missing.push(reference.name.clone());
    }
    Ok(credentials)
}
