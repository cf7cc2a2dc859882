//! A container's environment, command and arguments.
//!
//! As the kubelet makes them: `envFrom` first, then `env` over it in order; `$(NAME)` in a value sees what was defined
//! before it, and the Services of the pod's namespace. Values out of ConfigMaps, Secrets and fields are not expanded.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use k8s_openapi::{
    ByteString,
    api::core::v1::{ConfigMap, Container, EnvFromSource, EnvVarSource, Pod, Secret},
};
use thiserror::Error;

use super::{
    downward::{self, DownwardError},
    expansion::expand,
    facts::PodFacts,
    objects::{ObjectError, ObjectSource, ServiceAddress, ServicePort},
    service_links,
};

/// Why a container's environment cannot be made: the message of `CreateContainerConfigError`, in the kubelet's words.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum EnvError {
    /// A ConfigMap that is not optional is absent.
    #[error("configmap {0:?} not found")]
    ConfigMapNotFound(String),
    /// A Secret that is not optional is absent.
    #[error("secret {0:?} not found")]
    SecretNotFound(String),
    /// A key that is not optional is absent.
    #[error("couldn't find key {key} in {kind} {namespace}/{name}")]
    KeyNotFound {
        /// The key.
        key: String,
        /// `ConfigMap` or `Secret`.
        kind: &'static str,
        /// The object's namespace.
        namespace: String,
        /// The object's name.
        name: String,
    },
    /// It is not known yet what the object holds.
    #[error(transparent)]
    Object(#[from] ObjectError),
    /// A field or resource that cannot be told.
    #[error(transparent)]
    Downward(#[from] DownwardError),
    /// A value that no process can have: it holds a NUL byte or is not UTF-8.
    #[error("environment variable {0:?} cannot be set: its value is not text without NUL bytes")]
    Value(String),
}

impl EnvError {
    /// Whether only a new pod specification can help; everything else may come to pass by waiting.
    pub fn is_final(&self) -> bool {
        matches!(self, Self::Downward(_))
    }
}

/// The API server's service as pods see it in their environment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KubernetesService {
    /// The address, such as `10.96.0.1`.
    pub host: String,
    /// The port, usually 443.
    pub port: u16,
}

impl From<&KubernetesService> for ServiceAddress {
    fn from(KubernetesService { host, port }: &KubernetesService) -> Self {
        let port = ServicePort { name: Some("https".to_owned()), protocol: None, port: *port };
        Self { name: "kubernetes".to_owned(), address: host.clone(), ports: vec![port] }
    }
}

/// Keys of an `envFrom` source that are no names for an environment variable: for an event of reason
/// `InvalidEnvironmentVariableNames`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SkippedKeys {
    /// `configMap` or `secret`.
    pub kind: &'static str,
    /// The object's namespace.
    pub namespace: String,
    /// The object's name.
    pub name: String,
    /// The keys, sorted, with the prefix.
    pub keys: Vec<String>,
}

impl std::fmt::Display for SkippedKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { kind, namespace, name, keys } = self;
        write!(
            f,
            "Keys [{}] from the EnvFrom {kind} {namespace}/{name} were skipped since they are considered invalid \
             environment variable names.",
            keys.join(", ")
        )
    }
}

/// A container's environment.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct ContainerEnv {
    /// The variables by name.
    pub vars: BTreeMap<String, String>,
    /// What was left out of `envFrom` sources.
    pub skipped: Vec<SkippedKeys>,
}

/// Values may be secrets: only names are shown.
impl std::fmt::Debug for ContainerEnv {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names: Vec<_> = self.vars.keys().collect();
        f.debug_struct("ContainerEnv").field("names", &names).field("skipped", &self.skipped).finish()
    }
}

impl ContainerEnv {
    /// Expands `$(NAME)` in a command or in arguments.
    pub fn expand_all(&self, texts: Option<&Vec<String>>) -> Vec<String> {
        texts.into_iter().flatten().map(|text| expand(text, |name| self.vars.get(name).map(String::as_str))).collect()
    }
}

/// The environment of `container`.
///
/// `service` is the API server's service if pods are to see it; it never replaces what the pod defines itself.
pub async fn container_env(
    pod: &Pod,
    container: &Container,
    facts: &PodFacts,
    service: Option<&KubernetesService>,
    objects: &dyn ObjectSource,
) -> Result<ContainerEnv, EnvError> {
    let fetched = Fetched::fetch(pod, container, objects).await?;
    assemble(pod, container, facts, service, &fetched)
}

/// The objects that a container's environment names; `None` is known to be absent.
#[derive(Default)]
struct Fetched {
    namespace: String,
    config_maps: HashMap<String, Option<Arc<ConfigMap>>>,
    secrets: HashMap<String, Option<Arc<Secret>>>,
    services: Vec<ServiceAddress>,
}

impl Fetched {
    async fn fetch(pod: &Pod, container: &Container, objects: &dyn ObjectSource) -> Result<Self, EnvError> {
        let mut fetched = Self { namespace: pod.metadata.namespace.clone().unwrap_or_default(), ..Self::default() };
        for source in container.env_from.iter().flatten() {
            if let Some(reference) = &source.config_map_ref {
                fetched.fetch_config_map(&reference.name, objects).await?;
            } else if let Some(reference) = &source.secret_ref {
                fetched.fetch_secret(&reference.name, objects).await?;
            }
        }
        for source in container.env.iter().flatten().filter_map(|var| var.value_from.as_ref()) {
            if let Some(reference) = &source.config_map_key_ref {
                fetched.fetch_config_map(&reference.name, objects).await?;
            } else if let Some(reference) = &source.secret_key_ref {
                fetched.fetch_secret(&reference.name, objects).await?;
            }
        }
        if pod.spec.as_ref().and_then(|spec| spec.enable_service_links) != Some(false) {
            fetched.services = objects.services(&fetched.namespace).await?;
        }
        Ok(fetched)
    }

    async fn fetch_config_map(&mut self, name: &str, objects: &dyn ObjectSource) -> Result<(), EnvError> {
        if !self.config_maps.contains_key(name) {
            let object = objects.config_map(&self.namespace, name).await?;
            self.config_maps.insert(name.to_owned(), object);
        }
        Ok(())
    }

    async fn fetch_secret(&mut self, name: &str, objects: &dyn ObjectSource) -> Result<(), EnvError> {
        if !self.secrets.contains_key(name) {
            let object = objects.secret(&self.namespace, name).await?;
            self.secrets.insert(name.to_owned(), object);
        }
        Ok(())
    }

    /// The ConfigMap, or `None` if it is absent and that is allowed.
    fn config_map(&self, name: &str, optional: Option<bool>) -> Result<Option<&ConfigMap>, EnvError> {
        match self.config_maps.get(name).and_then(Option::as_deref) {
            None if optional != Some(true) => Err(EnvError::ConfigMapNotFound(name.to_owned())),
            found => Ok(found),
        }
    }

    /// The Secret, or `None` if it is absent and that is allowed.
    fn secret(&self, name: &str, optional: Option<bool>) -> Result<Option<&Secret>, EnvError> {
        match self.secrets.get(name).and_then(Option::as_deref) {
            None if optional != Some(true) => Err(EnvError::SecretNotFound(name.to_owned())),
            found => Ok(found),
        }
    }

    fn key_not_found(&self, kind: &'static str, name: &str, key: &str) -> EnvError {
        EnvError::KeyNotFound { key: key.to_owned(), kind, namespace: self.namespace.clone(), name: name.to_owned() }
    }
}

fn assemble(
    pod: &Pod,
    container: &Container,
    facts: &PodFacts,
    service: Option<&KubernetesService>,
    fetched: &Fetched,
) -> Result<ContainerEnv, EnvError> {
    let mut env = ContainerEnv::default();
    for source in container.env_from.iter().flatten() {
        take_all(source, fetched, &mut env)?;
    }
    let services: Vec<ServiceAddress> =
        fetched.services.iter().cloned().chain(service.map(ServiceAddress::from)).collect();
    let service_env = service_links::variables(&services);
    for var in container.env.iter().flatten() {
        let value = match (var.value.as_deref().unwrap_or_default(), &var.value_from) {
            ("", Some(source)) => match value_from(pod, container, facts, source, fetched, &var.name)? {
                Some(value) => value,
                None => continue,
            },
            (text, _) => expand(text, |name| env.vars.get(name).or_else(|| service_env.get(name)).map(String::as_str)),
        };
        if value.contains('\0') {
            return Err(EnvError::Value(var.name.clone()));
        }
        env.vars.insert(var.name.clone(), value);
    }
    for (name, value) in service_env {
        env.vars.entry(name).or_insert(value);
    }
    Ok(env)
}

/// Takes all keys of an `envFrom` source.
fn take_all(source: &EnvFromSource, fetched: &Fetched, env: &mut ContainerEnv) -> Result<(), EnvError> {
    let mut skipped = Vec::new();
    let prefix = source.prefix.as_deref().unwrap_or_default();
    let mut take = |key: &str, value: Option<&str>| -> Result<(), EnvError> {
        let name = format!("{prefix}{key}");
        if is_env_name(&name) {
            let value = value.filter(|value| !value.contains('\0')).ok_or_else(|| EnvError::Value(name.clone()))?;
            env.vars.insert(name, value.to_owned());
        } else {
            skipped.push(name);
        }
        Ok(())
    };
    let (kind, name) = if let Some(reference) = &source.config_map_ref {
        let found = fetched.config_map(&reference.name, reference.optional)?;
        for (key, value) in found.and_then(|object| object.data.as_ref()).into_iter().flatten() {
            take(key, Some(value))?;
        }
        ("configMap", &reference.name)
    } else if let Some(reference) = &source.secret_ref {
        let found = fetched.secret(&reference.name, reference.optional)?;
        for (key, ByteString(value)) in found.and_then(|object| object.data.as_ref()).into_iter().flatten() {
            take(key, std::str::from_utf8(value).ok())?;
        }
        ("secret", &reference.name)
    } else {
        return Ok(());
    };
    if !skipped.is_empty() {
        skipped.sort();
        let (namespace, name) = (fetched.namespace.clone(), name.clone());
        env.skipped.push(SkippedKeys { kind, namespace, name, keys: skipped });
    }
    Ok(())
}

/// Kubernetes 1.32 and newer: any printable ASCII but `=`.
fn is_env_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|b| (b' '..=b'~').contains(&b) && b != b'=')
}

/// The value of a `valueFrom`; `None` if it is absent and that is allowed.
fn value_from(
    pod: &Pod,
    container: &Container,
    facts: &PodFacts,
    source: &EnvVarSource,
    fetched: &Fetched,
    variable: &str,
) -> Result<Option<String>, EnvError> {
    if let Some(selector) = &source.field_ref {
        return Ok(Some(downward::field(pod, facts, selector)?));
    }
    if let Some(selector) = &source.resource_field_ref {
        return Ok(Some(downward::resource(pod, Some(container), facts, selector)?));
    }
    if let Some(selector) = &source.config_map_key_ref {
        let Some(object) = fetched.config_map(&selector.name, selector.optional)? else { return Ok(None) };
        return match object.data.as_ref().and_then(|data| data.get(&selector.key)) {
            None if selector.optional != Some(true) => {
                Err(fetched.key_not_found("ConfigMap", &selector.name, &selector.key))
            }
            value => Ok(value.cloned()),
        };
    }
    if let Some(selector) = &source.secret_key_ref {
        let Some(object) = fetched.secret(&selector.name, selector.optional)? else { return Ok(None) };
        return match object.data.as_ref().and_then(|data| data.get(&selector.key)) {
            None if selector.optional != Some(true) => {
                Err(fetched.key_not_found("Secret", &selector.name, &selector.key))
            }
            None => Ok(None),
            Some(ByteString(bytes)) => {
                let text = String::from_utf8(bytes.clone()).map_err(|_| EnvError::Value(variable.to_owned()))?;
                Ok(Some(text))
            }
        };
    }
    Ok(Some(String::new()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{super::objects::MemoryObjects, *};

    fn objects() -> MemoryObjects {
        let objects = MemoryObjects::default();
        objects.put_config_map(
            serde_json::from_value(json!({
                "metadata": {"name": "cm", "namespace": "ns"},
                "data": {"COLOR": "blue", "1st": "one", "REF": "$(COLOR)"},
            }))
            .unwrap(),
        );
        objects.put_secret(
            serde_json::from_value(json!({
                "metadata": {"name": "s", "namespace": "ns"},
                "data": {"PASS": "aHVudGVyMg==", "BIN": "//4="},
            }))
            .unwrap(),
        );
        objects
    }

    async fn env_of(container: serde_json::Value) -> Result<ContainerEnv, EnvError> {
        env_with(container, None, &objects()).await
    }

    async fn env_with(
        container: serde_json::Value,
        service: Option<&KubernetesService>,
        objects: &MemoryObjects,
    ) -> Result<ContainerEnv, EnvError> {
        let pod = pod_of(&container);
        let container = &pod.spec.as_ref().unwrap().containers[0];
        container_env(&pod, container, &PodFacts::default(), service, objects).await
    }

    fn pod_of(container: &serde_json::Value) -> Pod {
        let mut spec = json!({"name": "c"});
        spec.as_object_mut().unwrap().extend(container.as_object().unwrap().clone());
        let pod = json!({"metadata": {"name": "p", "namespace": "ns"}, "spec": {"containers": [spec]}});
        serde_json::from_value(pod).unwrap()
    }

    fn pairs(env: &ContainerEnv) -> Vec<(&str, &str)> {
        env.vars.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect()
    }

    #[tokio::test]
    async fn env_overrides_env_from_and_sees_what_came_before() {
        let env = env_of(json!({
            "envFrom": [{"configMapRef": {"name": "cm"}}, {"prefix": "S_", "configMapRef": {"name": "cm"}}],
            "env": [
                {"name": "LATE", "value": "$(LATER)"},
                {"name": "LATER", "value": "$(COLOR)er"},
                {"name": "COLOR", "value": "red"},
                {"name": "BOTH", "value": "$(COLOR) $(S_COLOR) $$(COLOR) $(NONE)"},
                {"name": "EMPTY"},
                {"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
                {"name": "CM", "valueFrom": {"configMapKeyRef": {"name": "cm", "key": "REF"}}},
                {"name": "PW", "valueFrom": {"secretKeyRef": {"name": "s", "key": "PASS"}}},
            ],
        }))
        .await
        .unwrap();
        assert_eq!(
            pairs(&env),
            [
                ("1st", "one"),
                ("BOTH", "red blue $(COLOR) $(NONE)"),
                ("CM", "$(COLOR)"),
                ("COLOR", "red"),
                ("EMPTY", ""),
                ("LATE", "$(LATER)"),
                ("LATER", "blueer"),
                ("POD", "p"),
                ("PW", "hunter2"),
                ("REF", "$(COLOR)"),
                ("S_1st", "one"),
                ("S_COLOR", "blue"),
                ("S_REF", "$(COLOR)"),
            ]
        );
        assert!(!format!("{env:?}").contains("hunter2"));
    }

    #[tokio::test]
    async fn a_key_that_is_no_name_is_skipped_and_reported() {
        let env = env_of(json!({"envFrom": [{"prefix": "a=", "configMapRef": {"name": "cm"}}]})).await.unwrap();
        assert!(env.vars.is_empty());
        assert_eq!(
            env.skipped[0].to_string(),
            "Keys [a=1st, a=COLOR, a=REF] from the EnvFrom configMap ns/cm were skipped since they are considered \
             invalid environment variable names."
        );
    }

    #[tokio::test]
    async fn what_is_missing_is_named_as_the_kubelet_names_it() {
        let var = |source: serde_json::Value| json!({"env": [{"name": "X", "valueFrom": source}]});
        for (container, message) in [
            (var(json!({"configMapKeyRef": {"name": "x", "key": "k"}})), "configmap \"x\" not found"),
            (var(json!({"secretKeyRef": {"name": "x", "key": "k"}})), "secret \"x\" not found"),
            (var(json!({"configMapKeyRef": {"name": "cm", "key": "k"}})), "couldn't find key k in ConfigMap ns/cm"),
            (var(json!({"secretKeyRef": {"name": "s", "key": "k"}})), "couldn't find key k in Secret ns/s"),
            (var(json!({"fieldRef": {"fieldPath": "x"}})), "unsupported fieldPath: x"),
            (json!({"envFrom": [{"configMapRef": {"name": "y"}}]}), "configmap \"y\" not found"),
            (json!({"envFrom": [{"secretRef": {"name": "y"}}]}), "secret \"y\" not found"),
        ] {
            assert_eq!(env_of(container).await.unwrap_err().to_string(), message);
        }
        let binary = env_of(var(json!({"secretKeyRef": {"name": "s", "key": "BIN"}}))).await;
        assert_eq!(binary, Err(EnvError::Value("X".to_owned())));
    }

    #[tokio::test]
    async fn what_is_optional_may_be_missing() {
        let env = env_of(json!({
            "envFrom": [
                {"configMapRef": {"name": "x", "optional": true}}, {"secretRef": {"name": "x", "optional": true}}
            ],
            "env": [
                {"name": "A", "valueFrom": {"configMapKeyRef": {"name": "x", "key": "k", "optional": true}}},
                {"name": "B", "valueFrom": {"configMapKeyRef": {"name": "cm", "key": "k", "optional": true}}},
                {"name": "C", "valueFrom": {"secretKeyRef": {"name": "x", "key": "k", "optional": true}}},
                {"name": "D", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k", "optional": true}}},
            ],
        }))
        .await
        .unwrap();
        assert_eq!(env, ContainerEnv::default());
    }

    #[tokio::test]
    async fn an_optional_object_out_of_reach_is_waited_for() {
        let objects = objects();
        objects.set_offline(true);
        let container = json!({"envFrom": [{"configMapRef": {"name": "cm", "optional": true}}]});
        let error = env_with(container, None, &objects).await.unwrap_err();
        assert!(matches!(&error, EnvError::Object(error) if error.is_out_of_reach()));
        assert!(!error.is_final());
    }

    #[tokio::test]
    async fn the_service_is_seen_and_does_not_replace_the_pods_own() {
        let service = KubernetesService { host: "10.96.0.1".to_owned(), port: 443 };
        let container = json!({"env": [
            {"name": "KUBERNETES_SERVICE_HOST", "value": "mine"},
            {"name": "URL", "value": "$(KUBERNETES_PORT)"},
        ]});
        let env = env_with(container, Some(&service), &objects()).await.unwrap();
        assert_eq!(env.vars["KUBERNETES_SERVICE_HOST"], "mine");
        assert_eq!(env.vars["URL"], "tcp://10.96.0.1:443");
        assert_eq!(env.vars["KUBERNETES_PORT_443_TCP_ADDR"], "10.96.0.1");
        assert_eq!(env.vars.len(), 9);
    }

    #[tokio::test]
    async fn the_services_of_the_namespace_are_seen_unless_the_pod_wants_none() {
        let objects = objects();
        let port = ServicePort { name: None, protocol: None, port: 80 };
        let shop = ServiceAddress { name: "web-shop".into(), address: "10.0.0.7".into(), ports: vec![port] };
        objects.put_service("ns", shop.clone());
        objects.put_service("other", ServiceAddress { name: "far".into(), ..shop });
        let container = json!({"env": [{"name": "URL", "value": "http://$(WEB_SHOP_SERVICE_HOST)/"}]});
        let env = env_with(container.clone(), None, &objects).await.unwrap();
        assert_eq!(env.vars["URL"], "http://10.0.0.7/");
        assert_eq!(env.vars["WEB_SHOP_PORT"], "tcp://10.0.0.7:80");
        assert!(!env.vars.keys().any(|name| name.starts_with("FAR")));
        let mut pod = pod_of(&container);
        pod.spec.as_mut().unwrap().enable_service_links = Some(false);
        let container = &pod.spec.as_ref().unwrap().containers[0];
        let env = container_env(&pod, container, &PodFacts::default(), None, &objects).await.unwrap();
        assert_eq!(
            env.vars.into_iter().collect::<Vec<_>>(),
            [("URL".to_owned(), "http://$(WEB_SHOP_SERVICE_HOST)/".to_owned())]
        );
    }

    #[tokio::test]
    async fn command_and_arguments_are_expanded() {
        let env = env_of(json!({"env": [{"name": "A", "value": "a b"}]})).await.unwrap();
        let args = vec!["--x=$(A)".to_owned(), "$(NONE)".to_owned(), "$$(A)".to_owned()];
        assert_eq!(env.expand_all(Some(&args)), ["--x=a b", "$(NONE)", "$(A)"]);
        assert!(env.expand_all(None).is_empty());
    }
}
