//! Writes what nodes report to the API server, and answers their calls. The shell around [`super::ownership`] and
//! [`super::writes`].

use std::{sync::Arc, time::Duration};

use kube::{
    Client,
    core::{
        Request as HttpRequests,
        params::{DeleteParams, GetParams, Patch, PatchParams, PostParams, Preconditions},
    },
};
use kubeedge_proto::{
    NodeName, is_dns_subdomain, resource,
    v1::{CallReply, KubeObject, ObjectKey, RequestToken, ResourceType, Settled, call_reply},
};
use serde_json::{Value, json};
use thiserror::Error;
use tokio::sync::Semaphore;

use super::{
    StreamGateway,
    authorization::mirror_of,
    events::update,
    ownership::registration,
    writes::{Bound, Refused, Request, Step, Write},
};
use crate::audit;

/// EdgeController's requests to the API server at a time, over all nodes, beside its lists and watches. Its nodes' reports
/// wait for their turn.
pub const REQUESTS_AT_ONCE: usize = 64;
/// Attempts for one write while the API server is overloaded or away; after them the node keeps its report and tries
/// again itself.
const ATTEMPTS: u32 = 5;
/// Pause before the second attempt, doubled for each further one.
const RETRY: Duration = Duration::from_millis(250);
/// Attempts to bring an event up to date while others do so, too.
const CONFLICTS: usize = 5;
/// Who writes, in managed fields.
const FIELD_MANAGER: &str = "kubeedge-edgecontroller";
/// A Lease is valid for this long after a renewal, in seconds: the kubelet's own default.
const LEASE_SECONDS: u32 = 40;
/// Namespace of the nodes' Leases.
const LEASE_NAMESPACE: &str = "kube-node-lease";

/// The API server, as far as nodes' reports go.
#[derive(Clone)]
pub struct Upstream {
    client: Client,
    slots: Arc<Semaphore>,
    pub(super) gateway: Option<StreamGateway>,
}

/// Why a request did not come to an answer.
#[derive(Debug, Error)]
enum Failed {
    #[error("{}", .0.message)]
    Refused(Box<kube::core::Status>),
    #[error("the API server does not answer: {0}")]
    Away(String),
}

impl Failed {
    fn code(&self) -> u16 {
        match self {
            Failed::Refused(status) => status.code,
            Failed::Away(_) => 503,
        }
    }

    fn refused(&self) -> Refused {
        Refused { code: self.code(), message: self.to_string() }
    }

    fn settled(&self) -> Settled {
        self.refused().settled()
    }

    fn reply(&self) -> CallReply {
        let reason = match self {
            Failed::Refused(status) => status.reason.clone(),
            Failed::Away(_) => "ServiceUnavailable".to_owned(),
        };
        CallReply::error(self.code().into(), reason, self.to_string())
    }
}

type HttpRequest = Result<http::Request<Vec<u8>>, kube::core::request::Error>;

impl Upstream {
    /// Talks to the API server through `client`.
    pub fn new(client: Client) -> Self {
        Self { client, slots: Arc::new(Semaphore::new(REQUESTS_AT_ONCE)), gateway: None }
    }

    /// uid of the `kube-system` namespace, by which a cluster is told from another. `None` while it cannot be read.
    pub async fn cluster_uid(&self) -> Option<String> {
        match self.send(|| HttpRequests::new("/api/v1/namespaces").get("kube-system", &GetParams::default())).await {
            Ok(namespace) => Some(text(&namespace, "/metadata/uid").to_owned()).filter(|uid| !uid.is_empty()),
            Err(failed) => {
                tracing::warn!("the cluster's identity (uid of namespace kube-system) cannot be read: {failed}");
                None
            }
        }
    }

    /// Reads one object.
    pub async fn get(&self, type_: &ResourceType, key: &ObjectKey) -> CallReply {
        let request = || HttpRequests::new(type_.path(&key.namespace, None)).get(&key.name, &GetParams::default());
        match self.send(request).await {
            Ok(object) => object_reply(type_.clone(), &object),
            Err(failed) => failed.reply(),
        }
    }

    /// Where a pod is bound; `None` when there is no such pod.
    pub async fn pod_binding(&self, key: &ObjectKey) -> Result<Option<Bound>, Settled> {
        match self.request(Request::Get(resource::pods(), key.clone())).await {
            Ok(pod) => Ok(Some(Bound::of(&pod))),
            Err(failed) if failed.code() == 404 => Ok(None),
            Err(failed) => Err(failed.settled()),
        }
    }

    /// Writes what a node reports. `bound`: where the pod is bound as far as the watch knows.
    pub async fn write(&self, mut write: Write, bound: Option<Bound>) -> Settled {
        let mut step = write.begin(bound.as_ref());
        loop {
            match step {
                Step::Done(settled) => return settled,
                Step::Ask(request) => {
                    step = write.next(self.request(request).await.map_err(|failed| failed.refused()));
                }
            }
        }
    }

    /// Creates the mirror pod of a static pod; the caller has checked that the node may. Another mirror of that name, of a
    /// manifest that has changed, gives way.
    pub async fn create_mirror(&self, node: &NodeName, mut pod: Value) -> CallReply {
        let key = ObjectKey::new(text(&pod, "/metadata/namespace"), text(&pod, "/metadata/name"));
        if key.namespace.is_empty() || !key.is_valid() {
            return CallReply::error(400, "BadRequest", format!("{key:?} is not the name of a pod"));
        }
        let of = mirror_of(&pod).unwrap_or_default().to_owned();
        // As NodeRestriction wants it: the pod goes with the node.
        let own = match self.request(Request::Get(resource::nodes(), ObjectKey::new("", node.as_str()))).await {
            Ok(own) => own,
            Err(failed) => return failed.reply(),
        };
        pod["metadata"]["ownerReferences"] = json!([{"apiVersion": "v1", "kind": "Node", "name": node.as_str(),
            "uid": text(&own, "/metadata/uid"), "controller": true}]);
        let path = resource::pods().path(&key.namespace, None);
        let bytes = pod.to_string().into_bytes();
        for _ in 0..CONFLICTS {
            match self.send(|| HttpRequests::new(&path).create(&post(), bytes.clone())).await {
                Ok(made) => return object_reply(resource::pods(), &made),
                Err(failed) if failed.code() != 409 => return failed.reply(),
                Err(_) => {}
            }
            let existing = match self.request(Request::Get(resource::pods(), key.clone())).await {
                Ok(existing) => existing,
                Err(failed) if failed.code() == 404 => continue,
                Err(failed) => return failed.reply(),
            };
            let bound = text(&existing, "/spec/nodeName");
            match mirror_of(&existing) {
                Some(known) if bound == node.as_str() && known == of => {
                    return object_reply(resource::pods(), &existing);
                }
                Some(_) if bound == node.as_str() => {}
                _ => {
                    let why = format!("pod {key} is there and is no mirror pod of node {node}");
                    return CallReply::error(409, "AlreadyExists", why);
                }
            }
            let uid = text(&existing, "/metadata/uid").to_owned();
            match self.request(Request::DeletePod(key.clone(), uid)).await {
                Ok(_) => {}
                Err(failed) if matches!(failed.code(), 404 | 409) => {}
                Err(failed) => return failed.reply(),
            }
        }
        CallReply::error(503, "ServiceUnavailable", format!("others make and delete pod {key} at the same time"))
    }

    async fn request(&self, request: Request) -> Result<Value, Failed> {
        match request {
            Request::Get(type_, key) => {
                let path = type_.path(&key.namespace, None);
                self.send(|| HttpRequests::new(&path).get(&key.name, &GetParams::default())).await
            }
            Request::PatchStatus(type_, key, patch) => {
                let path = type_.path(&key.namespace, None);
                let patch = Patch::Strategic(patch);
                let params = PatchParams::default();
                self.send(|| HttpRequests::new(&path).patch_subresource("status", &key.name, &params, &patch)).await
            }
            Request::DeletePod(key, uid) => {
                let params = DeleteParams {
                    grace_period_seconds: Some(0),
                    preconditions: Some(Preconditions { uid: Some(uid), resource_version: None }),
                    ..DeleteParams::default()
                };
                let path = resource::pods().path(&key.namespace, None);
                self.send(|| HttpRequests::new(&path).delete(&key.name, &params)).await
            }
        }
    }

    /// Creates a Kubernetes Event. One that is there already under this name is brought up to date when this one is later,
    /// and otherwise left as it is: superseded. The caller has checked that the node may tell it.
    pub async fn event(&self, node: &NodeName, mut body: Value) -> Settled {
        let namespace = text(&body, "/metadata/namespace").to_owned();
        let name = text(&body, "/metadata/name").to_owned();
        if !is_dns_subdomain(&namespace) || !is_dns_subdomain(&name) || !body.is_object() {
            return Settled::rejected(400, "the event has no namespace and name");
        }
        // A node speaks for itself only.
        if !body["source"].is_object() {
            body["source"] = json!({});
        }
        body["source"]["host"] = node.as_str().into();
        let path = resource::events().path(&namespace, None);
        let bytes = body.to_string().into_bytes();
        match self.send(|| HttpRequests::new(&path).create(&post(), bytes.clone())).await {
            Ok(_) => Settled::applied(),
            Err(failed) if failed.code() == 409 => self.event_again(&path, &name, &body).await,
            Err(failed) => failed.settled(),
        }
    }

    /// Brings an event up to date. Several messages of a node are written at the same time: the latest stays.
    async fn event_again(&self, path: &str, name: &str, told: &Value) -> Settled {
        for _ in 0..CONFLICTS {
            let existing = match self.send(|| HttpRequests::new(path).get(name, &GetParams::default())).await {
                Ok(existing) => existing,
                Err(failed) if failed.code() == 404 => {
                    return Settled::rejected(503, "the event has expired in between: it is to be told again");
                }
                Err(failed) => return failed.settled(),
            };
            let Some(patch) = update(&existing, told).map(Patch::Merge) else { return Settled::superseded() };
            match self.send(|| HttpRequests::new(path).patch(name, &patch_params(), &patch)).await {
                Ok(_) => return Settled::applied(),
                Err(failed) if failed.code() == 409 => {}
                Err(failed) => return failed.settled(),
            }
        }
        Settled::rejected(503, "others write the event at the same time")
    }

    /// Creates the Node, or brings labels and annotations of an existing one up to date. Answers with the Node.
    pub async fn register_node(&self, node: &NodeName, reported: &[u8]) -> CallReply {
        let Ok(reported) = serde_json::from_slice::<Value>(reported) else {
            return CallReply::error(400, "BadRequest", "the Node is not JSON");
        };
        let made = registration(node.as_str(), &reported);
        if !made.refused_labels.is_empty() {
            let what = format!("labels {}", made.refused_labels.join(", "));
            audit::refused("RegisterNode", node, what, "a node may not set these labels on itself: left out");
        }
        let path = resource::nodes().path("", None);
        let body = made.node.to_string().into_bytes();
        let answer = match self.send(|| HttpRequests::new(&path).create(&post(), body.clone())).await {
            Err(failed) if failed.code() == 409 => {
                let patch = Patch::Merge(&made.patch);
                self.send(|| HttpRequests::new(&path).patch(node.as_str(), &patch_params(), &patch)).await
            }
            other => other,
        };
        match answer {
            Ok(object) => object_reply(resource::nodes(), &object),
            Err(failed) => failed.reply(),
        }
    }

    /// A token bound to a pod. The caller has checked that the pod is on the asking node.
    pub async fn request_token(&self, wanted: &RequestToken) -> CallReply {
        if !is_dns_subdomain(&wanted.namespace) || !is_dns_subdomain(&wanted.service_account) {
            return CallReply::error(400, "BadRequest", "namespace and service account must be DNS-1123 names");
        }
        let body = json!({
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {
                "audiences": wanted.audiences,
                "expirationSeconds": wanted.expiration_seconds,
                "boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": wanted.pod_name, "uid": wanted.pod_uid},
            },
        });
        let path = resource::service_accounts().path(&wanted.namespace, None);
        let bytes = body.to_string().into_bytes();
        let request = || {
            HttpRequests::new(&path).create_subresource(
                "token",
                &wanted.service_account,
                &PostParams::default(),
                bytes.clone(),
            )
        };
        match self.send(request).await {
            Ok(object) => {
                let type_ = ResourceType {
                    group: "authentication.k8s.io".into(),
                    version: "v1".into(),
                    resource: "tokenrequests".into(),
                    kind: "TokenRequest".into(),
                };
                object_reply(type_, &object)
            }
            Err(failed) => failed.reply(),
        }
    }

    /// Renews the node's Lease, making it where there is none. `now` is RFC 3339 with microseconds.
    pub async fn renew_lease(&self, node: &NodeName, node_uid: Option<&str>, now: &str) -> Result<(), String> {
        let path = resource::leases().path(LEASE_NAMESPACE, None);
        let spec = json!({"holderIdentity": node.as_str(), "leaseDurationSeconds": LEASE_SECONDS, "renewTime": now});
        let patch = Patch::Merge(json!({"spec": spec}));
        match self.send(|| HttpRequests::new(&path).patch(node.as_str(), &patch_params(), &patch)).await {
            Ok(_) => Ok(()),
            Err(failed) if failed.code() == 404 => {
                let mut metadata = json!({"name": node.as_str(), "namespace": LEASE_NAMESPACE});
                if let Some(uid) = node_uid {
                    metadata["ownerReferences"] =
                        json!([{"apiVersion": "v1", "kind": "Node", "name": node.as_str(), "uid": uid}]);
                }
                let body = json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata, "spec": spec});
                let bytes = body.to_string().into_bytes();
                match self.send(|| HttpRequests::new(&path).create(&post(), bytes.clone())).await {
                    Ok(_) => Ok(()),
                    // The node's heartbeat after this one has made it meanwhile: it is as new as can be.
                    Err(failed) if failed.code() == 409 => Ok(()),
                    Err(failed) => Err(failed.to_string()),
                }
            }
            Err(failed) => Err(failed.to_string()),
        }
    }

    /// Sends a request, again after a pause when the API server is overloaded or away.
    async fn send(&self, request: impl Fn() -> HttpRequest) -> Result<Value, Failed> {
        let _slot = self.slots.acquire().await.map_err(|_| Failed::Away("shutting down".into()))?;
        let mut attempt = 1;
        loop {
            let request = request().map_err(|error| Failed::Away(error.to_string()))?;
            // As text: `Client::request` writes a body that it cannot parse into the log, secrets and all.
            let failed = match self.client.request_text(request).await {
                Ok(text) => match serde_json::from_str(&text) {
                    Ok(answer) => return Ok(answer),
                    Err(error) => Failed::Away(format!("its answer is not JSON: {error}")),
                },
                Err(kube::Error::Api(status)) => Failed::Refused(status),
                Err(error) => Failed::Away(error.to_string()),
            };
            let passing = failed.code() == 429 || failed.code() >= 500;
            if !passing || attempt == ATTEMPTS {
                return Err(failed);
            }
            tokio::time::sleep(RETRY * 2u32.pow(attempt - 1)).await;
            attempt += 1;
        }
    }
}

fn post() -> PostParams {
    PostParams { field_manager: Some(FIELD_MANAGER.into()), ..PostParams::default() }
}

fn patch_params() -> PatchParams {
    PatchParams { field_manager: Some(FIELD_MANAGER.into()), ..PatchParams::default() }
}

fn object_reply(type_: ResourceType, object: &Value) -> CallReply {
    let object = KubeObject {
        r#type: Some(type_),
        key: Some(ObjectKey::new(text(object, "/metadata/namespace"), text(object, "/metadata/name"))),
        uid: text(object, "/metadata/uid").to_owned(),
        resource_version: text(object, "/metadata/resourceVersion").to_owned(),
        json: object.to_string().into(),
        projection_hash: 0,
    };
    CallReply { result: Some(call_reply::Result::Object(object.into())) }
}

fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}
