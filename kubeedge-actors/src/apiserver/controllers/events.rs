//! Events: kept for an hour, and never more than a bound.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use super::super::object::{Object, text};
use super::super::status::Status;
use super::super::storage::Change;
use super::super::{Api, clock};
use super::Again;

/// Seconds an event is kept after it last happened: Kubernetes' default.
const KEPT_SECONDS: i64 = 3600;
/// Events kept at most; the oldest go first.
const KEPT_EVENTS: usize = 10_000;
/// How often it is looked.
const PERIOD: Duration = Duration::from_secs(60);
/// Events removed in one commit at most.
const BATCH: usize = 500;

/// Removes what has had its time.
pub(super) async fn reconcile(api: &Arc<Api>) -> Result<Again, Status> {
    let Some(id) = api.storage.core("events") else { return Ok(Again::After(PERIOD)) };
    let kind = api.storage.kind(id);
    let (_, mut events) = api.storage.list(id, None);
    events.sort_by_key(|event| event.resource_version);
    let surplus = events.len().saturating_sub(KEPT_EVENTS);
    let now = api.now();
    let over: Vec<Arc<Object>> = events
        .into_iter()
        .enumerate()
        .filter(|(index, event)| *index < surplus || last_seen(&event.value(kind)) + KEPT_SECONDS < now)
        .map(|(_, event)| event)
        .collect();
    for batch in over.chunks(BATCH) {
        let writer = api.storage.write().await;
        let changes = batch
            .iter()
            .filter_map(|event| writer.get(id, &event.key))
            .filter(|event| last_seen(&event.value(kind)) + KEPT_SECONDS < now || surplus > 0)
            .map(|event| Change::Delete(id, event.value(kind)))
            .collect();
        writer.commit(changes).await?;
    }
    Ok(Again::After(PERIOD))
}

/// When it happened last, seconds since 1970, by the latest of its times.
fn last_seen(event: &Value) -> i64 {
    let times = [
        text(&event["metadata"], "creationTimestamp"),
        text(event, "lastTimestamp"),
        text(event, "eventTime"),
        text(&event["series"], "lastObservedTime"),
    ];
    times.iter().filter_map(|time| clock::parse(time)).max().unwrap_or_default()
}
