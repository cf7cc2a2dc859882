//! ConfigMaps and Secrets from MetaManager's disk, tokens from the cloud.

use std::{sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use jiff::Timestamp;
use k8s_openapi::api::{
    authentication::v1::TokenRequest,
    core::v1::{ConfigMap, PersistentVolume, PersistentVolumeClaim, Secret},
    node::v1::RuntimeClass,
};
use kubeedge_proto::{
    resource,
    v1::{
        CallCloud, Envelope, ObjectKey, ReadObjects, RequestToken, ResourceType, call_reply::Result as Reply,
        envelope::Body,
    },
};
use serde::{Deserialize, de::DeserializeOwned};

use super::objects::{ObjectError, ObjectKind, ObjectSource, ServiceAddress, ServicePort, Token, TokenSpec};
use crate::system::Port;

/// How long MetaManager may take to read one object.
const READ_WITHIN: Duration = Duration::from_secs(10);
/// How long the cloud may take to give a token.
const TOKEN_WITHIN: Duration = Duration::from_secs(30);

/// What pods name, through the ports of MetaManager and EdgeHub.
#[derive(Clone)]
pub struct PortObjects {
    read: Port<ReadObjects>,
    call: Option<Port<CallCloud>>,
}

/// What the cloud tells of a Service.
#[derive(Deserialize)]
struct Service {
    spec: Spec,
}

#[derive(Deserialize)]
struct Spec {
    #[serde(rename = "clusterIP")]
    cluster_ip: String,
    #[serde(default)]
    ports: Vec<ServicePort>,
}

impl PortObjects {
    /// Reads through `read`, asks for tokens through `call`; without it there are none.
    pub fn new(read: Port<ReadObjects>, call: Option<Port<CallCloud>>) -> Self {
        Self { read, call }
    }

    async fn object<T: DeserializeOwned>(
        &self,
        type_: ResourceType,
        kind: ObjectKind,
        namespace: &str,
        name: &str,
    ) -> Result<Option<Arc<T>>, ObjectError> {
        let failed = |reason: String| ObjectError::Failed {
            kind,
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            reason,
        };
        let message = ReadObjects { r#type: Some(type_), key: Some(ObjectKey::new(namespace, name)) };
        let list =
            self.read.ask(message, READ_WITHIN).await.map_err(|error| failed(format!("MetaManager: {error}")))?;
        match list.objects.first() {
            Some(object) => {
                let parsed = serde_json::from_slice(&object.json).map_err(|error| failed(error.to_string()))?;
                Ok(Some(Arc::new(parsed)))
            }
            None if list.complete => Ok(None),
            None => Err(ObjectError::NotSynced { kind, namespace: namespace.to_owned(), name: name.to_owned() }),
        }
    }

    async fn services_of(&self, namespace: &str) -> Result<Vec<ServiceAddress>, ObjectError> {
        let failed = |reason: String| ObjectError::Failed {
            kind: ObjectKind::Services,
            namespace: namespace.to_owned(),
            name: "*".to_owned(),
            reason,
        };
        let message = ReadObjects { r#type: Some(resource::services()), key: None };
        let list =
            self.read.ask(message, READ_WITHIN).await.map_err(|error| failed(format!("MetaManager: {error}")))?;
        let mut services = Vec::new();
        for object in &list.objects {
            let Some(key) = object.key.as_ref().filter(|key| key.namespace == namespace) else { continue };
            match serde_json::from_slice(&object.json) {
                Ok(Service { spec: Spec { cluster_ip: address, ports } }) => {
                    services.push(ServiceAddress { name: key.name.clone(), address, ports });
                }
                // The others are seen, and pods start.
                Err(error) => tracing::warn!("no pod gets variables of service {key}: {error}"),
            }
        }
        Ok(services)
    }

    async fn fresh_token(&self, spec: TokenSpec) -> Result<Token, ObjectError> {
        let (namespace, name) = (spec.namespace.clone(), spec.service_account.clone());
        let failed = |reason: String| ObjectError::Failed {
            kind: ObjectKind::Token,
            namespace: namespace.clone(),
            name: name.clone(),
            reason,
        };
        let Some(call) = &self.call else {
            return Err(failed("this node talks to no cloud".to_owned()));
        };
        let body = Body::RequestToken(RequestToken {
            namespace: spec.namespace,
            service_account: spec.service_account,
            pod_name: spec.pod_name,
            pod_uid: spec.pod_uid,
            audiences: spec.audiences,
            expiration_seconds: u64::try_from(spec.expiration_seconds).unwrap_or(0),
        });
        let now = u64::try_from(Timestamp::now().as_millisecond()).unwrap_or(0);
        let envelope = Envelope {
            timeout_ms: u32::try_from(TOKEN_WITHIN.as_millis()).unwrap_or(u32::MAX),
            ..Envelope::new("edged", now, body)
        };
        let reply = call.ask(CallCloud { envelope: Some(envelope) }, TOKEN_WITHIN).await;
        match reply.map_err(|error| failed(format!("EdgeHub: {error}")))?.result {
            Some(Reply::Object(object)) => {
                let request: TokenRequest =
                    serde_json::from_slice(&object.json).map_err(|error| failed(error.to_string()))?;
                let status = request.status.ok_or_else(|| failed("the cloud's answer has no status".into()))?;
                Ok(Token { token: status.token, expires_at: status.expiration_timestamp.0 })
            }
            Some(Reply::Error(error)) if error.reason == "Offline" => {
                Err(ObjectError::Offline { kind: ObjectKind::Token, namespace, name })
            }
            Some(Reply::Error(error)) => Err(failed(error.message)),
            _ => Err(failed("the cloud answered something else than a token".into())),
        }
    }
}

impl ObjectSource for PortObjects {
    fn config_map<'a>(
        &'a self,
        namespace: &'a str,
        name: &'a str,
    ) -> BoxFuture<'a, Result<Option<Arc<ConfigMap>>, ObjectError>> {
        Box::pin(self.object(resource::config_maps(), ObjectKind::ConfigMap, namespace, name))
    }

    fn secret<'a>(
        &'a self,
        namespace: &'a str,
        name: &'a str,
    ) -> BoxFuture<'a, Result<Option<Arc<Secret>>, ObjectError>> {
        Box::pin(self.object(resource::secrets(), ObjectKind::Secret, namespace, name))
    }

    fn claim<'a>(
        &'a self,
        namespace: &'a str,
        name: &'a str,
    ) -> BoxFuture<'a, Result<Option<Arc<PersistentVolumeClaim>>, ObjectError>> {
        Box::pin(self.object(resource::persistent_volume_claims(), ObjectKind::Claim, namespace, name))
    }

    fn persistent_volume<'a>(
        &'a self,
        name: &'a str,
    ) -> BoxFuture<'a, Result<Option<Arc<PersistentVolume>>, ObjectError>> {
        Box::pin(self.object(resource::persistent_volumes(), ObjectKind::Volume, "", name))
    }

    fn runtime_class<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Option<Arc<RuntimeClass>>, ObjectError>> {
        Box::pin(self.object(resource::runtime_classes(), ObjectKind::RuntimeClass, "", name))
    }

    fn services<'a>(&'a self, namespace: &'a str) -> BoxFuture<'a, Result<Vec<ServiceAddress>, ObjectError>> {
        Box::pin(self.services_of(namespace))
    }

    fn token(&self, spec: TokenSpec) -> BoxFuture<'_, Result<Token, ObjectError>> {
        Box::pin(self.fresh_token(spec))
    }
}
