//! Writes DeviceStatuses. The shell around [`super::status`].

use std::{sync::Arc, time::Duration};

use kube::{
    Client,
    core::{
        Request,
        params::{DeleteParams, GetParams, Patch, PatchParams, PostParams, Preconditions},
    },
};
use kubeedge_proto::{
    resource,
    v1::{ObjectKey, Settled},
};
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use super::{
    status::{Written, made_for},
    statuses::Status,
};

/// Requests to the API server at a time.
const CONCURRENT: usize = 32;
/// One request, with its answer.
const WITHIN: Duration = Duration::from_secs(10);
/// Who writes, in managed fields.
const FIELD_MANAGER: &str = "kubeedge-devicecontroller";

/// The API server, as far as DeviceStatuses go.
#[derive(Clone)]
pub(super) struct Upstream {
    client: Client,
    slots: Arc<Semaphore>,
}

/// What became of a request.
enum Failed {
    Code(u16, String),
    Away(String),
}

impl Failed {
    fn settled(self) -> Settled {
        match self {
            // Not the node's fault: it keeps its report.
            Failed::Code(code @ (401 | 403), message) => {
                let text = format!("the API server does not let this cloud write ({code}): {message}");
                Settled::rejected(503, text)
            }
            Failed::Code(code, message) => Settled::rejected(code.into(), message),
            Failed::Away(message) => Settled::rejected(503, format!("the API server does not answer: {message}")),
        }
    }
}

impl Upstream {
    pub(super) fn new(client: Client) -> Self {
        Self { client, slots: Arc::new(Semaphore::new(CONCURRENT)) }
    }

    /// Writes the status of a device into what is `there`, making its DeviceStatus where there is none. `owner` is the
    /// Device's uid.
    pub(super) async fn write(
        &self,
        key: &ObjectKey,
        owner: &str,
        written: Written,
        there: Option<&Status>,
    ) -> Settled {
        let status = if written.kept.is_empty() {
            Ok(written.status.clone())
        } else {
            self.get(key).await.map(|there| written.clone().over(&there))
        };
        let patched = match status {
            // `extensions` is the user's, who may write it beside us: a merge patch leaves it alone.
            Ok(status) => self.patch(key, there, &json!({ "status": status })).await,
            Err(failed) => Err(failed),
        };
        match patched {
            Ok(()) => Settled::applied(),
            Err(Failed::Code(404, _)) => match self.create(key, owner, written.alone()).await {
                // Made by somebody else meanwhile: the node's next attempt finds it.
                Settled { code: 409, reason, .. } => Settled::rejected(503, reason),
                settled => settled,
            },
            // Another one by now, or it changed beneath: likewise.
            Err(Failed::Code(409, reason)) => Settled::rejected(503, reason),
            Err(failed) => failed.settled(),
        }
    }

    async fn patch(&self, key: &ObjectKey, there: Option<&Status>, patch: &Value) -> Result<(), Failed> {
        let mut patch = patch.clone();
        if let Some(there) = there {
            // One that was made again meanwhile is not this one.
            patch["metadata"] = json!({"uid": there.uid});
        }
        let patched = self.send(|| {
            let params = PatchParams { field_manager: Some(FIELD_MANAGER.into()), ..PatchParams::default() };
            self.of(key).patch(&key.name, &params, &Patch::Merge(&patch)).map_err(|error| error.to_string())
        });
        patched.await.map(drop)
    }

    /// Makes the DeviceStatus of a Device. 409: it is there.
    pub(super) async fn create(&self, key: &ObjectKey, owner: &str, status: Value) -> Settled {
        let body = made_for(key, owner, status).to_string().into_bytes();
        let made = self.send(|| {
            let params = PostParams { field_manager: Some(FIELD_MANAGER.into()), ..PostParams::default() };
            self.of(key).create(&params, body.clone()).map_err(|error| error.to_string())
        });
        made.await.map_or_else(Failed::settled, |_| Settled::applied())
    }

    /// Makes a DeviceStatus the Device's own. What it says is nobody's word, and goes.
    pub(super) async fn adopt(&self, key: &ObjectKey, owner: &str, uid: &str) -> Settled {
        let mut found = match self.get(key).await {
            Ok(found) if found["metadata"]["uid"] == uid => found,
            Ok(_) => return Settled::superseded(),
            Err(failed) => return failed.settled(),
        };
        let made = made_for(key, owner, Value::Null);
        let own = made["metadata"]["ownerReferences"].as_array().cloned().unwrap_or_default();
        let mut owners = found["metadata"]["ownerReferences"].take().as_array().cloned().unwrap_or_default();
        // An object has one controller at most, and this one may have another already.
        let taken = owners.iter().any(|other| other["controller"] == true);
        owners.extend(own.into_iter().map(|mut own| {
            own["controller"] = (!taken).into();
            own
        }));
        let metadata =
            json!({"uid": uid, "resourceVersion": found["metadata"]["resourceVersion"], "ownerReferences": owners});
        let status = json!({"twins": [], "state": null, "lastOnlineTime": null});
        let patched = self.patch(key, None, &json!({"metadata": metadata, "status": status})).await;
        patched.map_or_else(Failed::settled, |()| Settled::applied())
    }

    /// Takes away this DeviceStatus, and no other of its name.
    pub(super) async fn remove(&self, key: &ObjectKey, uid: &str) -> Settled {
        let removed = self.send(|| {
            let preconditions = Preconditions { uid: Some(uid.to_owned()), resource_version: None };
            let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
            self.of(key).delete(&key.name, &params).map_err(|error| error.to_string())
        });
        match removed.await {
            Ok(_) | Err(Failed::Code(404 | 409, _)) => Settled::applied(),
            Err(failed) => failed.settled(),
        }
    }

    async fn get(&self, key: &ObjectKey) -> Result<Value, Failed> {
        let found = self.send(|| self.of(key).get(&key.name, &GetParams::default()).map_err(|error| error.to_string()));
        let found = found.await?;
        serde_json::from_str(&found).map_err(|error| Failed::Away(format!("the API server's answer: {error}")))
    }

    fn of(&self, key: &ObjectKey) -> Request {
        Request::new(resource::device_statuses().path(&key.namespace, None))
    }

    async fn send(&self, request: impl Fn() -> Result<http::Request<Vec<u8>>, String>) -> Result<String, Failed> {
        let _slot = self.slots.acquire().await.map_err(|_| Failed::Away("shutting down".into()))?;
        let request = request().map_err(Failed::Away)?;
        match tokio::time::timeout(WITHIN, self.client.request_text(request)).await {
            Err(_) => Err(Failed::Away(format!("no answer within {WITHIN:?}"))),
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(kube::Error::Api(status))) => Err(Failed::Code(status.code, status.message.clone())),
            Ok(Err(error)) => Err(Failed::Away(error.to_string())),
        }
    }
}
