//! What the node's own API asks: the pods as they are, and what they use.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use actix::{Handler, MessageResult, ResponseFuture};
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use kubeedge_proto::v1::{ListPods, NodeStats, PodListing, QueryStats};
use serde::Serialize;

use super::{Edged, stats::PodFact};
use crate::system::Context;

/// The status that was computed last for each pod. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct StatusBoard(Arc<Mutex<HashMap<String, Arc<PodStatus>>>>);

impl StatusBoard {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Arc<PodStatus>>> {
        // Insertions and removals are whole, so a poisoned lock guards a whole map.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes note of a status.
    pub fn note(&self, uid: &str, status: &PodStatus) {
        self.lock().insert(uid.to_owned(), Arc::new(status.clone()));
    }

    /// The pod is nobody's concern any more.
    pub fn forget(&self, uid: &str) {
        self.lock().remove(uid);
    }

    /// The status of a pod, if there is one yet.
    pub fn of(&self, uid: &str) -> Option<Arc<PodStatus>> {
        self.lock().get(uid).cloned()
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct PodList {
    kind: &'static str,
    api_version: &'static str,
    metadata: serde_json::Map<String, serde_json::Value>,
    items: Vec<Pod>,
}

impl Handler<ListPods> for Edged {
    type Result = MessageResult<ListPods>;

    fn handle(&mut self, _: ListPods, _: &mut Context<Self>) -> Self::Result {
        let board = &self.board;
        let items = self.book.pods().map(|(uid, pod)| {
            let mut pod = pod.clone();
            pod.status = board.of(uid).map(|status| (*status).clone()).or(pod.status);
            pod
        });
        let list = PodList { kind: "PodList", api_version: "v1", metadata: Default::default(), items: items.collect() };
        let json = serde_json::to_vec(&list).unwrap_or_else(|error| {
            tracing::error!("the list of pods cannot be written as JSON: {error}");
            Vec::new()
        });
        MessageResult(PodListing { json: json.into() })
    }
}

impl Handler<QueryStats> for Edged {
    type Result = ResponseFuture<NodeStats>;

    fn handle(&mut self, _: QueryStats, _: &mut Context<Self>) -> Self::Result {
        let board = &self.board;
        let pods: Vec<PodFact> =
            self.book.pods().map(|(uid, pod)| PodFact::of(uid, pod, board.of(uid).as_deref())).collect();
        let sampler = self.sampler.clone();
        Box::pin(async move { sampler.stats(&pods).await })
    }
}
