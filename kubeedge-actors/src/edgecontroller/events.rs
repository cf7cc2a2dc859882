//! What a Kubernetes Event says: which of two is newer, and the one that tells of a node's dropped events. Pure.

use jiff::Timestamp;
use kubeedge_proto::{NodeName, v1::GapMarker};
use serde_json::{Value, json};

/// Longest name of an object (DNS-1123 subdomain).
const MAX_NAME: usize = 253;

/// What an event that is there already has to become, given one told under the same name; `None` when that says nothing
/// new: it was told before, or has been overtaken by a later one. The later has the later `lastTimestamp`, and of two in
/// one second the higher count. A node that was restarted counts anew: then it is one more.
pub fn update(existing: &Value, told: &Value) -> Option<Value> {
    let count = |event: &Value| event["count"].as_u64().unwrap_or(0);
    let at = |event: &Value| event["lastTimestamp"].as_str().and_then(|time| time.parse::<Timestamp>().ok());
    ((at(told), count(told)) > (at(existing), count(existing))).then(|| {
        json!({
            // Somebody else's update in between is then noticed.
            "metadata": {"resourceVersion": existing["metadata"]["resourceVersion"]},
            "count": count(told).max(count(existing) + 1),
            "lastTimestamp": told["lastTimestamp"],
            "message": told["message"],
        })
    })
}

/// The event on the Node that says what its outbox has dropped. The marker's id names it: a repeat is recognised, and
/// one that has grown is later and has a higher count. `unix_ms` is the marker's time, by the node's clock.
pub fn events_dropped(node: &NodeName, id: &[u8], marker: &GapMarker, unix_ms: u64) -> Value {
    let at = i64::try_from(unix_ms / 1000).ok().and_then(|second| Timestamp::from_second(second).ok());
    let at = at.unwrap_or_default().to_string();
    let id: String = id.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
    let mut stem = node.as_str();
    // Names are ASCII.
    stem = stem.get(..stem.len().min(MAX_NAME - 1 - id.len())).unwrap_or(stem).trim_end_matches(['.', '-']);
    json!({
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"namespace": "default", "name": format!("{stem}.{id}")},
        // The kubelet's own events on its Node carry the name as uid; `kubectl describe node` looks for it.
        "involvedObject": {"apiVersion": "v1", "kind": "Node", "name": node.as_str(), "uid": node.as_str()},
        "type": "Warning",
        "reason": "EventsDropped",
        "message": format!(
            "The node dropped {} events ({} bytes) before the cloud had them: its outbox is bounded by {}",
            marker.dropped_count, marker.dropped_bytes, bounds(&marker.bound)
        ),
        "source": {"component": "edgehub", "host": node.as_str()},
        "reportingComponent": "edgehub",
        "reportingInstance": node.as_str(),
        "firstTimestamp": at,
        "lastTimestamp": at,
        "count": i32::try_from(marker.dropped_count).unwrap_or(i32::MAX).max(1),
    })
}

/// The bounds that a marker names, as far as they are known ones: a node does not write texts into the cluster by them.
fn bounds(named: &str) -> String {
    let known = ["count", "bytes", "age"].into_iter().filter(|known| named.split(',').any(|name| name == *known));
    match known.collect::<Vec<_>>().join(" and ") {
        none if none.is_empty() => "a rule that this version does not know".to_owned(),
        names => names,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_later_or_more_is_news() {
        let event = |second: u32, count: u32| {
            let at = format!("2027-01-15T08:00:{second:02}Z");
            json!({"metadata": {"resourceVersion": "7"}, "count": count, "lastTimestamp": at, "message": "m"})
        };
        let updated = |existing: &Value, told: &Value| update(existing, told).map(|patch| patch["count"].clone());
        assert_eq!(updated(&event(1, 2), &event(1, 2)), None, "a repeat");
        assert_eq!(updated(&event(2, 3), &event(1, 2)), None, "overtaken");
        assert_eq!(updated(&event(1, 2), &event(1, 3)), Some(json!(3)));
        assert_eq!(updated(&event(1, 2), &event(2, 5)), Some(json!(5)));
        assert_eq!(updated(&event(1, 9), &event(2, 1)), Some(json!(10)), "the node counts anew");
        assert_eq!(update(&event(1, 1), &event(2, 2)).unwrap()["metadata"]["resourceVersion"], "7");
        assert_eq!(update(&json!({}), &json!({})), None);
    }

    #[test]
    fn a_gap_is_an_event_on_the_node_that_repeats_recognise() {
        let marker = |count, bound: &str| GapMarker { dropped_count: count, dropped_bytes: 900, bound: bound.into() };
        let now = 1_800_000_000_900;
        let told = events_dropped(&"edge-1".parse().unwrap(), &[0xab; 16], &marker(6, "count,age"), now);
        assert_eq!(told["metadata"]["name"], format!("edge-1.{}", "ab".repeat(16)));
        assert_eq!((&told["reason"], &told["count"]), (&json!("EventsDropped"), &json!(6)));
        assert_eq!(told["lastTimestamp"], "2027-01-15T08:00:00Z");
        assert!(told["message"].as_str().unwrap().contains("6 events (900 bytes)"), "{told}");
        assert!(told["message"].as_str().unwrap().ends_with("by count and age"), "{told}");
        serde_json::from_value::<k8s_openapi::api::core::v1::Event>(told).unwrap();

        let grown = events_dropped(&"edge-1".parse().unwrap(), &[0xab; 16], &marker(u64::MAX, "<b>"), now);
        assert_eq!(grown["count"], i32::MAX);
        assert!(!grown["message"].as_str().unwrap().contains("<b>"), "{grown}");
        let long: NodeName = format!("{}.{}", "a".repeat(219), "b".repeat(33)).parse().unwrap();
        let name = events_dropped(&long, &[1; 16], &marker(1, "age"), now)["metadata"]["name"].clone();
        assert!(kubeedge_proto::is_dns_subdomain(name.as_str().unwrap()), "{name}");
    }
}
