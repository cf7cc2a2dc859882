//! Where ConfigMaps, Secrets, Services, RuntimeClasses and service account tokens come from.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use futures_util::future::BoxFuture;
use jiff::Timestamp;
use k8s_openapi::api::{
    core::v1::{ConfigMap, PersistentVolume, PersistentVolumeClaim, Secret},
    node::v1::RuntimeClass,
};
use serde::Deserialize;
use thiserror::Error;

/// Reads the objects that pods name.
///
/// `Ok(None)` means that the object is known to be absent. While that is not known the answer is an [`ObjectError`]:
/// nothing may be concluded from it.
pub trait ObjectSource: Send + Sync {
    /// The ConfigMap of that name, or `None` when there is none.
    fn config_map<'a>(
        &'a self,
        namespace: &'a str,
        name: &'a str,
    ) -> BoxFuture<'a, Result<Option<Arc<ConfigMap>>, ObjectError>>;

    /// The Secret of that name, or `None` when there is none.
    fn secret<'a>(
        &'a self,
        namespace: &'a str,
        name: &'a str,
    ) -> BoxFuture<'a, Result<Option<Arc<Secret>>, ObjectError>>;

    /// The PersistentVolumeClaim of that name, or `None` when there is none.
    fn claim<'a>(
        &'a self,
        namespace: &'a str,
        name: &'a str,
    ) -> BoxFuture<'a, Result<Option<Arc<PersistentVolumeClaim>>, ObjectError>>;

    /// The PersistentVolume of that name, or `None` when there is none.
    fn persistent_volume<'a>(
        &'a self,
        name: &'a str,
    ) -> BoxFuture<'a, Result<Option<Arc<PersistentVolume>>, ObjectError>>;

    /// The RuntimeClass of that name, or `None` when there is none.
    fn runtime_class<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Option<Arc<RuntimeClass>>, ObjectError>>;

    /// The Services of a namespace that the node has, in any order: those that are told to it, which are none before the
    /// first contact with a cloud.
    fn services<'a>(&'a self, namespace: &'a str) -> BoxFuture<'a, Result<Vec<ServiceAddress>, ObjectError>>;

    /// A new token for a pod's service account. The caller keeps it and asks again when it is due.
    fn token(&self, spec: TokenSpec) -> BoxFuture<'_, Result<Token, ObjectError>>;
}

/// The kind of an object that could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ObjectKind {
    /// A ConfigMap.
    ConfigMap,
    /// A Secret.
    Secret,
    /// A PersistentVolumeClaim.
    Claim,
    /// A PersistentVolume.
    Volume,
    /// A RuntimeClass.
    RuntimeClass,
    /// The Services of a namespace.
    Services,
    /// A token of the service account of that name.
    Token,
}

impl fmt::Display for ObjectKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ConfigMap => "configmap",
            Self::Secret => "secret",
            Self::Claim => "persistentvolumeclaim",
            Self::Volume => "persistentvolume",
            Self::RuntimeClass => "runtimeclass.node.k8s.io",
            Self::Services => "services",
            Self::Token => "token of service account",
        })
    }
}

/// Why it is not known what an object holds, or that it is absent. All of them pass: wait and ask again.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ObjectError {
    /// The node has not got the full set of this kind yet.
    #[error("{kind} \"{}\" is not on this node yet: not synced with the cloud", path(namespace, name))]
    NotSynced {
        /// What was asked for.
        kind: ObjectKind,
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
    /// The cloud would have to be asked and cannot be reached.
    #[error("{kind} \"{}\" cannot be fetched: the cloud cannot be reached", path(namespace, name))]
    Offline {
        /// What was asked for.
        kind: ObjectKind,
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
    /// The cloud or the store answered with an error.
    #[error("{kind} \"{}\" cannot be read: {reason}", path(namespace, name))]
    Failed {
        /// What was asked for.
        kind: ObjectKind,
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
        /// The other side's words.
        reason: String,
    },
}

/// What has no namespace is named alone.
fn path(namespace: &str, name: &str) -> String {
    if namespace.is_empty() { name.to_owned() } else { format!("{namespace}/{name}") }
}

impl ObjectError {
    /// Whether it says that the object is out of reach for now, rather than that reading it failed.
    pub fn is_out_of_reach(&self) -> bool {
        matches!(self, Self::NotSynced { .. } | Self::Offline { .. })
    }
}

/// What of a Service is seen in a pod's environment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceAddress {
    /// The Service's name.
    pub name: String,
    /// Its address, IPv4 or IPv6.
    pub address: String,
    /// Its ports, in order.
    pub ports: Vec<ServicePort>,
}

/// A port of a Service.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct ServicePort {
    /// Its name, where it has one.
    #[serde(default)]
    pub name: Option<String>,
    /// `TCP`, `UDP` or `SCTP`; none: `TCP`.
    #[serde(default)]
    pub protocol: Option<String>,
    /// Its number.
    pub port: u16,
}

/// What a service account token is asked for; bound to the pod.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TokenSpec {
    /// The pod's namespace.
    pub namespace: String,
    /// The service account's name.
    pub service_account: String,
    /// The pod that the token is bound to.
    pub pod_name: String,
    /// The pod's uid.
    pub pod_uid: String,
    /// Whom the token is for; empty means the API server.
    pub audiences: Vec<String>,
    /// How long it should live, seconds.
    pub expiration_seconds: i64,
}

/// A service account token.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    /// The JWT.
    pub token: String,
    /// When it expires.
    pub expires_at: Timestamp,
}

/// The token itself never gets into a log.
impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token").field("expires_at", &self.expires_at).finish_non_exhaustive()
    }
}

/// Objects in memory: for tests, and for embedders that bring their own.
#[derive(Default)]
pub struct MemoryObjects {
    inner: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    config_maps: BTreeMap<(String, String), Arc<ConfigMap>>,
    secrets: BTreeMap<(String, String), Arc<Secret>>,
    claims: BTreeMap<(String, String), Arc<PersistentVolumeClaim>>,
    volumes: BTreeMap<String, Arc<PersistentVolume>>,
    runtime_classes: BTreeMap<String, Arc<RuntimeClass>>,
    services: BTreeMap<String, Vec<ServiceAddress>>,
    token: Option<Token>,
    tokens_asked: Vec<TokenSpec>,
    offline: bool,
}

impl MemoryObjects {
    fn held(&self) -> std::sync::MutexGuard<'_, Held> {
        // Every change is a single assignment, so a poisoned lock guards a whole value.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a ConfigMap, under the name in its metadata.
    pub fn put_config_map(&self, config_map: ConfigMap) {
        let key = key_of(&config_map.metadata);
        self.held().config_maps.insert(key, Arc::new(config_map));
    }

    /// Takes a ConfigMap away.
    pub fn remove_config_map(&self, namespace: &str, name: &str) {
        self.held().config_maps.remove(&(namespace.to_owned(), name.to_owned()));
    }

    /// Puts a Secret, under the name in its metadata.
    pub fn put_secret(&self, secret: Secret) {
        let key = key_of(&secret.metadata);
        self.held().secrets.insert(key, Arc::new(secret));
    }

    /// Puts a claim, under the name in its metadata.
    pub fn put_claim(&self, claim: PersistentVolumeClaim) {
        let key = key_of(&claim.metadata);
        self.held().claims.insert(key, Arc::new(claim));
    }

    /// Puts a persistent volume, under the name in its metadata.
    pub fn put_persistent_volume(&self, volume: PersistentVolume) {
        let (_, name) = key_of(&volume.metadata);
        self.held().volumes.insert(name, Arc::new(volume));
    }

    /// Puts a RuntimeClass, under the name in its metadata.
    pub fn put_runtime_class(&self, class: RuntimeClass) {
        let (_, name) = key_of(&class.metadata);
        self.held().runtime_classes.insert(name, Arc::new(class));
    }

    /// Puts one more Service into a namespace.
    pub fn put_service(&self, namespace: &str, service: ServiceAddress) {
        self.held().services.entry(namespace.to_owned()).or_default().push(service);
    }

    /// The token that is handed out from now on.
    pub fn set_token(&self, token: Token) {
        self.held().token = Some(token);
    }

    /// The tokens that were asked for, oldest first.
    pub fn tokens_asked(&self) -> Vec<TokenSpec> {
        self.held().tokens_asked.clone()
    }

    /// Whether everything answers [`ObjectError::Offline`].
    pub fn set_offline(&self, offline: bool) {
        self.held().offline = offline;
    }

    fn offline(&self, kind: ObjectKind, namespace: &str, name: &str) -> Result<(), ObjectError> {
        if self.held().offline {
            return Err(ObjectError::Offline { kind, namespace: namespace.to_owned(), name: name.to_owned() });
        }
        Ok(())
    }
}

fn key_of(metadata: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta) -> (String, String) {
    (metadata.namespace.clone().unwrap_or_default(), metadata.name.clone().unwrap_or_default())
}

impl ObjectSource for MemoryObjects {
    fn config_map<'a>(
        &'a self,
        namespace: &'a str,
        name: &'a str,
    ) -> BoxFuture<'a, Result<Option<Arc<ConfigMap>>, ObjectError>> {
        Box::pin(async move {
            self.offline(ObjectKind::ConfigMap, namespace, name)?;
            Ok(self.held().config_maps.get(&(namespace.to_owned(), name.to_owned())).cloned())
        })
    }

    fn secret<'a>(
        &'a self,
        namespace: &'a str,
        name: &'a str,
    ) -> BoxFuture<'a, Result<Option<Arc<Secret>>, ObjectError>> {
        Box::pin(async move {
            self.offline(ObjectKind::Secret, namespace, name)?;
            Ok(self.held().secrets.get(&(namespace.to_owned(), name.to_owned())).cloned())
        })
    }

    fn claim<'a>(
        &'a self,
        namespace: &'a str,
        name: &'a str,
    ) -> BoxFuture<'a, Result<Option<Arc<PersistentVolumeClaim>>, ObjectError>> {
        Box::pin(async move {
            self.offline(ObjectKind::Claim, namespace, name)?;
            Ok(self.held().claims.get(&(namespace.to_owned(), name.to_owned())).cloned())
        })
    }

    fn persistent_volume<'a>(
        &'a self,
        name: &'a str,
    ) -> BoxFuture<'a, Result<Option<Arc<PersistentVolume>>, ObjectError>> {
        Box::pin(async move {
            self.offline(ObjectKind::Volume, "", name)?;
            Ok(self.held().volumes.get(name).cloned())
        })
    }

    fn runtime_class<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Option<Arc<RuntimeClass>>, ObjectError>> {
        Box::pin(async move {
            self.offline(ObjectKind::RuntimeClass, "", name)?;
            Ok(self.held().runtime_classes.get(name).cloned())
        })
    }

    fn services<'a>(&'a self, namespace: &'a str) -> BoxFuture<'a, Result<Vec<ServiceAddress>, ObjectError>> {
        Box::pin(async move {
            self.offline(ObjectKind::Services, namespace, "*")?;
            Ok(self.held().services.get(namespace).cloned().unwrap_or_default())
        })
    }

    fn token(&self, spec: TokenSpec) -> BoxFuture<'_, Result<Token, ObjectError>> {
        Box::pin(async move {
            self.offline(ObjectKind::Token, &spec.namespace, &spec.service_account)?;
            let mut held = self.held();
            let token = held.token.clone().ok_or_else(|| ObjectError::Failed {
                kind: ObjectKind::Token,
                namespace: spec.namespace.clone(),
                name: spec.service_account.clone(),
                reason: "serviceaccounts not found".to_owned(),
            });
            held.tokens_asked.push(spec);
            token
        })
    }
}
