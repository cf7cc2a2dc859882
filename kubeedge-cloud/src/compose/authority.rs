//! Where the authority comes from: files, or a Secret of the cluster.

use std::{collections::BTreeMap, time::SystemTime};

use anyhow::{Context, Result, bail};
use k8s_openapi::{ByteString, api::core::v1::Secret};
use kube::{
    Api, Client,
    api::{ObjectMeta, PostParams},
};
use kubeedge_actors::identity::CertificateAuthority;

use crate::config::{CloudCore, SecretName};

/// Names of the certificate and the key in a Secret: Kubernetes' own (PEM), and KubeEdge's (DER).
const NAMES: [(&str, &str); 2] = [("tls.crt", "tls.key"), ("cadata", "cakeydata")];

/// The authority that the configuration names; made where there is none.
pub(super) async fn load(config: &CloudCore, client: Option<&Client>, now: SystemTime) -> Result<CertificateAuthority> {
    let hub = &config.modules.cloud_hub;
    let authority = match (&hub.ca_secret, client) {
        (None, _) => CertificateAuthority::load_or_create(&hub.authority_folder(&config.standalone.data_dir), now)?,
        (Some(_), None) => bail!(
            "modules.cloudHub.caSecret: the embedded API server needs its authority before it serves Secrets: leave the \
             field empty, and the authority is in the data folder"
        ),
        (Some(name), Some(client)) => of_secret(name, client, now).await?,
    };
    Ok(authority.with_node_life(hub.edge_cert_signing_duration.duration()))
}

async fn of_secret(name: &SecretName, client: &Client, now: SystemTime) -> Result<CertificateAuthority> {
    let SecretName { namespace, name } = name;
    let place = format!("modules.cloudHub.caSecret {namespace}/{name}");
    let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
    if let Some(secret) = secrets.get_opt(name).await.with_context(|| place.clone())? {
        return read(&place, &secret);
    }
    let (authority, key) = CertificateAuthority::generate(now)?;
    let data = [(NAMES[0].0, authority.certificate_pem().to_owned()), (NAMES[0].1, key)];
    let data: BTreeMap<_, _> =
        data.into_iter().map(|(name, text)| (name.to_owned(), ByteString(text.into_bytes()))).collect();
    let secret = Secret {
        metadata: ObjectMeta { name: Some(name.clone()), ..ObjectMeta::default() },
        type_: Some("kubernetes.io/tls".to_owned()),
        data: Some(data),
        ..Secret::default()
    };
    match secrets.create(&PostParams::default(), &secret).await {
        Ok(_) => {
            tracing::info!(secret = place, hash = %authority.ca_hash(), "a certificate authority was made");
            Ok(authority)
        }
        // Another cloudcore was first: its authority counts.
        Err(kube::Error::Api(status)) if status.code == 409 => {
            read(&place, &secrets.get(name).await.with_context(|| place.clone())?)
        }
        Err(error) => Err(error).with_context(|| format!("{place}: make it")),
    }
}

fn read(place: &str, secret: &Secret) -> Result<CertificateAuthority> {
    let data = secret.data.as_ref();
    let value = |name: &str| data.and_then(|data| data.get(name)).map(|value| value.0.as_slice());
    let found = NAMES.iter().find_map(|(certificate, key)| Some((value(certificate)?, value(key)?)));
    let Some((certificate, key)) = found else {
        bail!("{place}: expected tls.crt and tls.key, or KubeEdge's cadata and cakeydata");
    };
    Ok(CertificateAuthority::from_parts(place, certificate, key)?)
}

#[cfg(all(test, feature = "standalone"))]
mod tests;
