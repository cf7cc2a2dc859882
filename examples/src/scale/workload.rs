//! The objects of hollow nodes, and changes of them.

use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use futures_util::{StreamExt, TryStreamExt, stream};
use kube::{
    Api, Client,
    api::{Patch, PatchParams, PostParams},
    core::DynamicObject,
    discovery::ApiResource,
};
use serde_json::{Value, json};

use super::generator::node_name;

/// In a ConfigMap's data: when it was written, in nanoseconds since 1970.
pub(super) const STAMP: &str = "stamp";
/// Requests at a time.
const CONCURRENT: usize = 32;
/// How often a request is made again that the API server could not take.
const ATTEMPTS: u32 = 8;
const PAUSE: Duration = Duration::from_millis(100);

/// What is in a ConfigMap whose size does not matter.
pub const SETTINGS: &str = "level=info\n";
/// Objects of each node: so many pods, each with a ConfigMap of its own.
pub const PODS: usize = 2;

/// Writes them.
#[derive(Clone)]
pub struct Workload {
    configs: Api<DynamicObject>,
    pods: Api<DynamicObject>,
}

impl Workload {
    /// In namespace `default` of this cluster.
    pub fn new(client: &Client) -> Self {
        let api = |kind: &str| {
            let (group, version) = (String::new(), "v1".to_owned());
            let plural = format!("{}s", kind.to_lowercase());
            let resource = ApiResource { group, version, api_version: "v1".into(), kind: kind.into(), plural };
            Api::namespaced_with(client.clone(), "default", &resource)
        };
        Self { configs: api("ConfigMap"), pods: api("Pod") }
    }

    /// [`PODS`] pods and as many ConfigMaps for each of these nodes. The nodes have to be registered.
    pub async fn create(&self, nodes: impl Iterator<Item = usize>) -> Result<()> {
        stream::iter(nodes)
            .map(|node| async move {
                for part in 0..PODS {
                    let name = config_name(node, part);
                    self.create_config(&name, SETTINGS).await?;
                    self.create_pod(&name, node, [name.as_str()].into_iter()).await?;
                }
                Ok(())
            })
            .buffer_unordered(CONCURRENT)
            .try_collect()
            .await
    }

    /// ConfigMaps of these names, each with this text in it.
    pub async fn create_configs(&self, names: impl Iterator<Item = String>, settings: &str) -> Result<()> {
        stream::iter(names)
            .map(|name| async move { self.create_config(&name, settings).await })
            .buffer_unordered(CONCURRENT)
            .try_collect()
            .await
    }

    /// A pod on a node that needs these ConfigMaps.
    pub async fn create_pod(&self, name: &str, node: usize, configs: impl Iterator<Item = &str>) -> Result<()> {
        let volumes: Vec<Value> = configs
            .enumerate()
            .map(|(number, config)| json!({"name": format!("v{number}"), "configMap": {"name": config}}))
            .collect();
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "labels": {"app": "hollow"}},
            "spec": {
                "nodeName": node_name(node), "automountServiceAccountToken": false, "volumes": volumes,
                "containers": [{"name": "main", "image": "none", "resources": {"requests": {"cpu": "10m"}}}],
            },
        });
        create(&self.pods, name, &pod).await
    }

    async fn create_config(&self, name: &str, settings: &str) -> Result<()> {
        let config = json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name},
            "data": {STAMP: stamp().to_string(), "settings": settings},
        });
        create(&self.configs, name, &config).await
    }

    /// Changes a ConfigMap; the stamp that is in it now.
    pub async fn change(&self, name: &str) -> Result<u64> {
        for attempt in 1.. {
            let stamp = stamp();
            let patch = json!({"data": {STAMP: stamp.to_string()}});
            match self.configs.patch(name, &PatchParams::default(), &Patch::Merge(&patch)).await {
                Ok(_) => return Ok(stamp),
                Err(error) if attempt >= ATTEMPTS => return Err(error).with_context(|| format!("change {name}")),
                Err(_) => tokio::time::sleep(PAUSE * attempt).await,
            }
        }
        unreachable!("the last attempt returns")
    }

    /// Changes many, some at a time.
    pub async fn change_all(&self, names: impl Iterator<Item = String>) -> Result<()> {
        stream::iter(names)
            .map(|name| async move { self.change(&name).await.map(drop) })
            .buffer_unordered(CONCURRENT)
            .try_collect()
            .await
    }
}

/// The name of a node's ConfigMap, and of the pod that needs it.
pub fn config_name(node: usize, part: usize) -> String {
    format!("{}-{part}", node_name(node))
}

async fn create(api: &Api<DynamicObject>, name: &str, object: &Value) -> Result<()> {
    let object: DynamicObject = serde_json::from_value(object.clone())?;
    for attempt in 1.. {
        match api.create(&PostParams::default(), &object).await {
            Ok(_) => return Ok(()),
            // The answer to an attempt before this one was lost.
            Err(kube::Error::Api(status)) if status.code == 409 && attempt > 1 => return Ok(()),
            Err(error) if attempt >= ATTEMPTS => return Err(error).with_context(|| format!("create {name}")),
            Err(_) => tokio::time::sleep(PAUSE * attempt).await,
        }
    }
    unreachable!("the last attempt returns")
}

fn stamp() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)
}
