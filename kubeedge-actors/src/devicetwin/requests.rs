//! What a request on MQTT does to a device, and what is published about it. Pure.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    topics::{Request, of_device},
    twin::{Device, Origin, Outcome},
    wire::{self, Base, MsgAttr, MsgTwin, TwinUpdate, Twins, Wrong},
};

/// A message to publish.
#[derive(Clone, Debug, PartialEq)]
pub struct Publication {
    /// Where.
    pub topic: String,
    /// What.
    pub payload: Vec<u8>,
}

impl Publication {
    fn new(topic: String, body: &Value) -> Self {
        Self { topic, payload: body.to_string().into_bytes() }
    }
}

/// The clock and the ids of what is sent.
#[derive(Clone, Copy, Debug)]
pub struct Stamp {
    /// Milliseconds since 1970.
    pub now_ms: i64,
    /// Makes an `event_id`.
    pub fresh: fn() -> String,
}

/// What follows from a request.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Reaction {
    /// The device has changed: it is to be on disk before anything is published.
    pub changed: bool,
    /// To be published, in this order.
    pub publish: Vec<Publication>,
    /// In its place, when the disk does not take it.
    pub instead: Option<Publication>,
    /// The cloud is behind: it is told again what the edge has.
    pub conflict: bool,
}

impl Reaction {
    fn only(publication: Publication) -> Self {
        Self { publish: vec![publication], ..Self::default() }
    }
}

fn failure(topic: String, stamp: Stamp, event_id: &str, wrong: &Wrong) -> Publication {
    let body =
        json!({"event_id": event_id, "timestamp": stamp.now_ms, "code": wrong.code(), "reason": wrong.to_string()});
    Publication::new(topic, &body)
}

/// A request whose payload was over the bound and was left out.
pub fn oversize(stamp: Stamp, node: &str, request: &Request, bytes: u64) -> Reaction {
    let wrong = Wrong::TooMany(format!("the payload has {bytes} bytes, which is more than EventBus takes"));
    Reaction::only(failure(request.answered_on(node), stamp, "", &wrong))
}

/// A request that is none.
pub fn refuse(stamp: Stamp, answer: String, payload: &[u8], wrong: &Wrong) -> Reaction {
    let event_id = wire::parse::<Base>(payload).map(|base| base.event_id).unwrap_or_default();
    Reaction::only(failure(answer, stamp, &event_id, wrong))
}

/// `twin/update` (local) and `twin/cloud_updated` (with the cloud's versions).
pub fn update_twin(stamp: Stamp, id: &str, device: Option<&mut Device>, payload: &[u8], origin: Origin) -> Reaction {
    let result = || of_device(id, "twin/update/result");
    let refuse = |event_id: &str, wrong: &Wrong| Reaction::only(failure(result(), stamp, event_id, wrong));
    let TwinUpdate { event_id, twins } = match TwinUpdate::parse(payload) {
        Ok(update) => update,
        Err((event_id, wrong)) => return refuse(&event_id, &wrong),
    };
    let Some(device) = device else { return refuse(&event_id, &Wrong::NoDevice) };
    match device.update(stamp.now_ms, &twins, origin) {
        Err(wrong) => refuse(&event_id, &wrong),
        Ok(outcome) => {
            observe(device, &twins, origin);
            let instead = failure(result(), stamp, &event_id, &Wrong::Store("it cannot be written".into()));
            let conflict = !outcome.conflicts.is_empty();
            let changed = outcome.is_change();
            let mut reaction = Reaction { changed, publish: Vec::new(), instead: Some(instead), conflict };
            if conflict {
                let wrong = Wrong::Conflict;
                let body = json!({"event_id": event_id, "timestamp": stamp.now_ms, "code": wrong.code(),
                    "reason": wrong.to_string(), "twin": outcome.conflicts});
                reaction.publish.push(Publication::new(result(), &body));
            }
            if origin == Origin::Local {
                let body = json!({"event_id": event_id, "timestamp": stamp.now_ms, "twin": outcome.result});
                reaction.publish.push(Publication::new(result(), &body));
            }
            reaction.publish.extend(news(stamp, id, &event_id, device, &outcome));
            reaction
        }
    }
}

/// An application that says what is expected speaks for the device: it has taken it over.
fn observe(device: &mut Device, twins: &Twins, origin: Origin) {
    if origin == Origin::Cloud {
        return;
    }
    for (name, asked) in twins {
        let said = asked.as_ref().is_some_and(|asked| asked.expected.is_some());
        if let (true, Some(twin)) = (said, device.twins.get_mut(name)) {
            twin.observed_desired = twin.expected.as_ref().and_then(|side| super::report::told(side, &twin.r#type));
        }
    }
}

/// `document` of what changed, and `delta` when anything is not as expected.
pub fn news(stamp: Stamp, id: &str, event_id: &str, device: &Device, outcome: &Outcome) -> Vec<Publication> {
    let mut publish = Vec::new();
    if outcome.is_change() {
        let twins: BTreeMap<&str, Value> = outcome
            .document
            .iter()
            .map(|(name, (last, current))| (name.as_str(), json!({"last": last, "current": current})))
            .collect();
        let body = json!({"event_id": event_id, "timestamp": stamp.now_ms, "twin": twins});
        publish.push(Publication::new(of_device(id, "twin/update/document"), &body));
    }
    publish.extend(delta(stamp, id, device));
    publish
}

/// `delta`, when anything is not as expected.
pub fn delta(stamp: Stamp, id: &str, device: &Device) -> Option<Publication> {
    let delta = device.delta();
    if delta.is_empty() {
        return None;
    }
    let body = json!({"event_id": (stamp.fresh)(), "timestamp": stamp.now_ms, "twin": device.twins(), "delta": delta});
    Some(Publication::new(of_device(id, "twin/update/delta"), &body))
}

/// `twin/get`.
pub fn get_twin(stamp: Stamp, id: &str, device: Option<&Device>, payload: &[u8]) -> Reaction {
    let topic = of_device(id, "twin/get/result");
    let base: Base = match wire::parse(payload) {
        Ok(base) => base,
        Err(wrong) => return Reaction::only(failure(topic, stamp, "", &wrong)),
    };
    let Some(device) = device else {
        return Reaction::only(failure(topic, stamp, &base.event_id, &Wrong::NoDeviceToGet(id.to_owned())));
    };
    let body = json!({"event_id": base.event_id, "timestamp": stamp.now_ms, "twin": device.twins()});
    Reaction::only(Publication::new(topic, &body))
}

/// The states a device can have.
const STATES: [&str; 5] = ["online", "offline", "ok", "unknown", "unhealthy"];

#[derive(Default, Deserialize)]
#[serde(default)]
struct StateUpdate {
    event_id: String,
    state: Option<String>,
    attributes: BTreeMap<String, Option<MsgAttr>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct State<'a> {
    name: &'a str,
    state: &'a str,
    last_online_time: &'a str,
}

/// `state/update`. `rfc3339` is now.
pub fn update_state(stamp: Stamp, rfc3339: &str, id: &str, device: Option<&mut Device>, payload: &[u8]) -> Reaction {
    let topic = || of_device(id, "state/update/result");
    let update: StateUpdate = match wire::parse(payload) {
        Ok(update) => update,
        Err(wrong) => return Reaction::only(failure(topic(), stamp, "", &wrong)),
    };
    let refuse = |wrong: &Wrong| Reaction::only(failure(topic(), stamp, &update.event_id, wrong));
    let Some(device) = device else { return refuse(&Wrong::NoDevice) };
    if update.state.is_none() && update.attributes.is_empty() {
        return refuse(&Wrong::State(String::new()));
    }
    if let Err(wrong) = wire::check_attributes(&update.attributes) {
        return refuse(&wrong);
    }
    let before = device.clone();
    if let Some(state) = &update.state
        && let Err(wrong) = set_state(device, rfc3339, state)
    {
        return refuse(&wrong);
    }
    let attributes = match device.describe(&update.attributes) {
        Ok(changed) => changed,
        Err(wrong) => {
            *device = before;
            return refuse(&wrong);
        }
    };
    let mut publish = Vec::new();
    if let Some(state) = &update.state {
        let device = State { name: &device.key.name, state, last_online_time: &device.last_online_time };
        let body = json!({"event_id": (stamp.fresh)(), "timestamp": stamp.now_ms, "device": device});
        publish.push(Publication::new(topic(), &body));
    }
    if !attributes.is_empty() {
        let body = json!({"event_id": update.event_id, "timestamp": stamp.now_ms, "attributes": attributes});
        publish.push(Publication::new(of_device(id, "updated"), &body));
    }
    let instead = failure(topic(), stamp, &update.event_id, &Wrong::Store("it cannot be written".into()));
    Reaction { changed: *device != before, publish, instead: Some(instead), conflict: false }
}

/// Sets a state as it is sent, in whatever case. Seen it was only when it is there.
pub fn set_state(device: &mut Device, rfc3339: &str, state: &str) -> Result<(), Wrong> {
    let lower = state.to_ascii_lowercase();
    if !STATES.contains(&lower.as_str()) {
        return Err(Wrong::State(state.chars().take(64).collect()));
    }
    device.last_online_time =
        if matches!(lower.as_str(), "online" | "ok") { rfc3339.to_owned() } else { String::new() };
    device.state = Some(state.to_owned());
    Ok(())
}

/// `membership/get`.
pub fn get_membership(stamp: Stamp, topic: String, devices: Vec<wire::MsgDevice>, payload: &[u8]) -> Reaction {
    match wire::parse::<Base>(payload) {
        Ok(base) => {
            let body = json!({"event_id": base.event_id, "timestamp": stamp.now_ms, "devices": devices});
            Reaction::only(Publication::new(topic, &body))
        }
        Err(wrong) => Reaction::only(failure(topic, stamp, "", &wrong)),
    }
}

/// `membership/updated`: one device, which has come or gone.
pub fn membership(stamp: Stamp, topic: String, device: wire::MsgDevice, added: bool) -> Publication {
    let (devices, none) = (json!([device]), Value::Null);
    let (added, removed) = if added { (devices, none) } else { (none, devices) };
    let body = json!({"event_id": (stamp.fresh)(), "timestamp": stamp.now_ms, "added_devices": added,
        "removed_devices": removed});
    Publication::new(topic, &body)
}

/// A device for a list.
pub fn listed(id: &str, description: &str, device: Option<&Device>) -> wire::MsgDevice {
    let attributes = device.into_iter().flat_map(|device| device.attributes.values()).map(|one| {
        let metadata = Some(wire::TypeMetadata { type_: one.r#type.clone() }).filter(|one| !one.type_.is_empty());
        (one.name.clone(), MsgAttr { value: one.value.clone(), optional: Some(one.optional), metadata })
    });
    wire::MsgDevice {
        id: id.to_owned(),
        name: id.split_once('/').map_or(id, |(_, name)| name).to_owned(),
        description: description.to_owned(),
        state: device.and_then(|device| device.state.clone()).unwrap_or_default(),
        last_online: device.map(|device| device.last_online_time.clone()).unwrap_or_default(),
        attributes: attributes.collect(),
    }
}

/// The twins that something changed, as a document without a request.
pub fn changed(name: &str, before: Option<MsgTwin>, device: &Device) -> Outcome {
    let now = device.twins.get(name).map(super::twin::shown);
    Outcome { document: [(name.to_owned(), (before, now))].into(), ..Outcome::default() }
}

#[cfg(test)]
mod tests;
