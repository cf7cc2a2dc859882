//! Writes DeviceStatuses. The shell around [`super::status`].

use std::{sync::Arc, time::Duration};

use kube::{
    Client,
    core::{
        Request,
        params::{Patch, PatchParams, PostParams},
    },
};
use kubeedge_proto::{
    resource,
    v1::{ObjectKey, Settled},
};
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use super::status::made_for;

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

    /// Writes the status of a device, making its DeviceStatus where there is none. `owner` is the Device's uid.
    pub(super) async fn write(&self, key: &ObjectKey, owner: &str, status: Value) -> Settled {
        // `extensions` is the user's, who may write it beside us: a merge patch leaves it alone. What is not told any
        // more goes.
        let mut patch = json!({"status": {"state": null, "lastOnlineTime": null}});
        if let (Some(fields), Some(told)) = (patch["status"].as_object_mut(), status.as_object()) {
            fields.extend(told.iter().map(|(name, value)| (name.clone(), value.clone())));
        }
        let patched = self.send(|| {
            let params = PatchParams { field_manager: Some(FIELD_MANAGER.into()), ..PatchParams::default() };
            Request::new(resource::device_statuses().path(&key.namespace, None))
                .patch(&key.name, &params, &Patch::Merge(&patch))
                .map_err(|error| error.to_string())
        });
        match patched.await {
            Ok(()) => Settled::applied(),
            Err(Failed::Code(404, _)) => match self.create(key, owner, status).await {
                // Made by somebody else meanwhile: the node's next attempt finds it.
                Settled { code: 409, reason, .. } => Settled::rejected(503, reason),
                settled => settled,
            },
            Err(failed) => failed.settled(),
        }
    }

    /// Makes the DeviceStatus of a Device. 409: it is there.
    pub(super) async fn create(&self, key: &ObjectKey, owner: &str, status: Value) -> Settled {
        let body = made_for(key, owner, status).to_string().into_bytes();
        let made = self.send(|| {
            let params = PostParams { field_manager: Some(FIELD_MANAGER.into()), ..PostParams::default() };
            Request::new(resource::device_statuses().path(&key.namespace, None))
                .create(&params, body.clone())
                .map_err(|error| error.to_string())
        });
        made.await.map_or_else(Failed::settled, |()| Settled::applied())
    }

    async fn send(&self, request: impl Fn() -> Result<http::Request<Vec<u8>>, String>) -> Result<(), Failed> {
        let _slot = self.slots.acquire().await.map_err(|_| Failed::Away("shutting down".into()))?;
        let request = request().map_err(Failed::Away)?;
        match tokio::time::timeout(WITHIN, self.client.request_text(request)).await {
            Err(_) => Err(Failed::Away(format!("no answer within {WITHIN:?}"))),
            Ok(Ok(_)) => Ok(()),
            Ok(Err(kube::Error::Api(status))) => Err(Failed::Code(status.code, status.message.clone())),
            Ok(Err(error)) => Err(Failed::Away(error.to_string())),
        }
    }
}
