//! Nodes: the taints that follow from their conditions and from being closed for scheduling.

use std::sync::Arc;

use super::super::Api;
use super::super::kinds::node::condition_taints;
use super::super::status::Status;
use super::super::storage::Change;
use super::super::strategy::set_taints;
use super::Again;

/// Sets the taints of nodes that have others than they should.
pub(super) async fn reconcile(api: &Arc<Api>) -> Result<Again, Status> {
    let Some(id) = api.storage.core("nodes") else { return Ok(Again::OnChange) };
    let kind = api.storage.kind(id);
    for node in api.storage.list(id, None).1 {
        // One that has not reported yet stays as admission made it.
        if !reports(&node.value(kind)) {
            continue;
        }
        if condition_taints(&node.value(kind)).is_none() {
            continue;
        }
        let writer = api.storage.write().await;
        let Some(now) = writer.get(id, &node.key) else { continue };
        let mut value = now.value(kind);
        if let Some(taints) = condition_taints(&value) {
            set_taints(&mut value, taints);
            writer.commit(vec![Change::Put(id, value)]).await?;
        }
    }
    Ok(Again::OnChange)
}

fn reports(node: &serde_json::Value) -> bool {
    node["status"]["conditions"].as_array().is_some_and(|all| !all.is_empty())
}
