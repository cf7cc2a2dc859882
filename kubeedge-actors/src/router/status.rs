//! Writes the statuses of rules. The shell around [`super::counts`].

use std::time::Duration;

use http::Request;
use kube::{
    Client,
    core::{
        Request as Build,
        params::{Patch, PatchParams},
    },
};
use kubeedge_proto::resource;
use serde_json::json;

use super::counts::Due;

/// One request, with its answer.
const WITHIN: Duration = Duration::from_secs(10);
/// Who writes, in managed fields.
const FIELD_MANAGER: &str = "kubeedge-router";

/// Writes one. False: it is to be tried again.
pub(super) async fn write(client: &Client, due: &Due) -> bool {
    let patch = json!({"metadata": {"uid": due.uid}, "status": due.status});
    let params = PatchParams { field_manager: Some(FIELD_MANAGER.into()), ..PatchParams::default() };
    let rules = Build::new(resource::rules().path(&due.key.0, None));
    let (name, patch) = (due.key.1.as_str(), Patch::Merge(&patch));
    let mut answer = send(client, rules.patch_subresource("status", name, &params, &patch)).await;
    if matches!(answer, Err(Failed::Code(404, _))) {
        // KubeEdge's own definition has no status subresource: there the status is a field like any other.
        answer = send(client, rules.patch(name, &params, &patch)).await;
    }
    match answer {
        Ok(()) => true,
        // Gone, or another one by now.
        Err(Failed::Code(404 | 409, _)) => true,
        Err(Failed::Code(code, why)) => {
            tracing::warn!(namespace = due.key.0, rule = name, code, "a rule's status is not written: {why}");
            code == 422
        }
        Err(Failed::Away(why)) => {
            tracing::warn!(namespace = due.key.0, rule = name, "a rule's status is not written: {why}");
            false
        }
    }
}

enum Failed {
    Code(u16, String),
    Away(String),
}

async fn send(client: &Client, request: Result<Request<Vec<u8>>, kube::core::request::Error>) -> Result<(), Failed> {
    let request = request.map_err(|error| Failed::Away(error.to_string()))?;
    match tokio::time::timeout(WITHIN, client.request_text(request)).await {
        Err(_) => Err(Failed::Away(format!("no answer within {WITHIN:?}"))),
        Ok(Ok(_)) => Ok(()),
        Ok(Err(kube::Error::Api(status))) => Err(Failed::Code(status.code, status.message.clone())),
        Ok(Err(error)) => Err(Failed::Away(error.to_string())),
    }
}
