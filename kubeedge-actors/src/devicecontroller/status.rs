//! A node's report as the status of a DeviceStatus. Pure.
//!
//! A report says what the node knows. Of what the Device names and the node has no word of yet, the last word stands, which
//! may be that of the node the device was on before. What the Device does not name, or keeps at the edge, goes.

use std::collections::BTreeSet;

use kubeedge_proto::v1::{DeviceReport, ObjectKey, PropertyValue, Settled};
use serde_json::{Value, json};

use super::statuses::Status;
use crate::device::{
    GROUP, VERSION,
    types::{DeviceSpec, OldDeviceStatus, Twin, TwinProperty},
};

/// Properties that one report may have: a device has some dozen.
const MAX_PROPERTIES: usize = 4096;

/// Why a report is not written.
pub fn check(node: &str, report: &DeviceReport, known: Option<(&str, &str)>) -> Result<ObjectKey, Settled> {
    let key = report.key.clone().ok_or_else(|| Settled::rejected(400, "a DeviceReport names no device"))?;
    if key.namespace.is_empty() || !key.is_valid() {
        return Err(Settled::rejected(400, format!("{key:?} is not the name of a device")));
    }
    if report.properties.len() > MAX_PROPERTIES {
        let text = format!("the report of {key} has {} properties, expected {MAX_PROPERTIES}", report.properties.len());
        return Err(Settled::rejected(413, text));
    }
    match known {
        None => Err(Settled::rejected(404, format!("device {key} is gone"))),
        Some((owner, _)) if owner != node => {
            Err(Settled::rejected(403, format!("device {key} does not hang on node {node}")))
        }
        Some((_, uid)) if uid != report.uid => Err(Settled::superseded()),
        Some(_) => Ok(key),
    }
}

/// What a Device lets the cloud know.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Told {
    /// The properties that it names and does not keep at the edge.
    pub properties: BTreeSet<String>,
    /// Whether its state is told.
    pub state: bool,
}

impl Told {
    /// As a Device says it. One that cannot be understood lets nothing be known: the node does not understand it either.
    pub fn of(device: &Value) -> Self {
        let spec = device.get("spec").cloned().unwrap_or_default();
        let Ok(spec) = serde_json::from_value::<DeviceSpec>(spec) else { return Self::default() };
        Self { state: spec.tells_state(), properties: spec.told().map(|property| property.name.clone()).collect() }
    }
}

/// Where a Device says nothing in `spec.stateReport`, what its `status` says counts, field by field: there it stood until
/// KubeEdge 1.22.
pub fn with_old_state_report(device: &mut Value) {
    let old = device.get("status").cloned().unwrap_or_default();
    // What cannot be understood says nothing.
    let old: OldDeviceStatus = serde_json::from_value(old).unwrap_or_default();
    if old == OldDeviceStatus::default() {
        return;
    }
    let Some(spec) = device.get_mut("spec").and_then(Value::as_object_mut) else { return };
    let said = spec.remove("stateReport").filter(|said| !said.is_null());
    let mut report = said.unwrap_or_else(|| json!({}));
    if let Some(report) = report.as_object_mut() {
        for (field, old) in [("reportToCloud", json!(old.report_to_cloud)), ("reportCycle", json!(old.report_cycle))] {
            if !old.is_null() && report.get(field).is_none_or(Value::is_null) {
                report.insert(field.to_owned(), old);
            }
        }
    }
    spec.insert("stateReport".to_owned(), report);
}

/// A report, made ready to be written.
#[derive(Clone, Debug, PartialEq)]
pub struct Written {
    /// The `status` as a merge patch, but for what is kept of what is there.
    pub status: Value,
    /// Properties whose twins are kept as they are there.
    pub kept: BTreeSet<String>,
    /// It says nothing that is not there.
    pub is_empty: bool,
}

impl Written {
    /// Of what the Device lets the cloud know, over what is there now.
    pub fn of(report: &DeviceReport, told: &Told, there: Option<&Status>) -> Self {
        let property = |value: &Option<PropertyValue>| {
            value.as_ref().map(|value| TwinProperty {
                value: value.value.clone(),
                metadata: value.metadata.iter().map(|(name, value)| (name.clone(), value.clone())).collect(),
            })
        };
        // A node may not know yet what stays with it.
        let known = report.properties.iter().filter(|reported| told.properties.contains(&reported.name));
        let twins: Vec<Twin> = known
            .map(|reported| Twin {
                property_name: reported.name.clone(),
                reported: property(&reported.reported),
                observed_desired: property(&reported.observed_desired),
            })
            .collect();
        let is_new = |name: &&String| !twins.iter().any(|twin| twin.property_name == **name);
        let kept: BTreeSet<String> = there.map_or_else(BTreeSet::new, |there| {
            there.properties.intersection(&told.properties).filter(is_new).cloned().collect()
        });
        let all_kept = there.is_some_and(|there| there.properties.len() == kept.len());
        // Types whose maps have texts for keys are always JSON.
        let mut status = json!({"twins": serde_json::to_value(&twins).unwrap_or_default()});
        match &report.state {
            _ if !told.state => (status["state"], status["lastOnlineTime"]) = (Value::Null, Value::Null),
            Some(state) => {
                status["state"] = state.as_str().into();
                let seen = Some(report.last_online_time.as_str()).filter(|time| !time.is_empty());
                status["lastOnlineTime"] = seen.into();
            }
            None => {}
        }
        let of_state = if told.state { report.state.is_some() } else { there.is_none_or(|there| there.state) };
        Self { is_empty: twins.is_empty() && all_kept && !of_state, status, kept }
    }

    /// With the twins that are kept, out of the `status` that is there.
    pub fn over(mut self, there: &Value) -> Value {
        let twins = there.pointer("/status/twins").and_then(Value::as_array).into_iter().flatten();
        let is_kept = |twin: &&Value| twin["propertyName"].as_str().is_some_and(|name| self.kept.contains(name));
        let kept: Vec<Value> = twins.filter(is_kept).cloned().collect();
        if let Some(twins) = self.status["twins"].as_array_mut() {
            twins.extend(kept);
        }
        self.status
    }

    /// For a DeviceStatus that is made.
    pub fn alone(self) -> Value {
        let mut status = self.status;
        if let Some(fields) = status.as_object_mut() {
            fields.retain(|_, value| !value.is_null());
        }
        status
    }
}

/// A DeviceStatus of a Device, which goes with it.
pub fn made_for(key: &ObjectKey, uid: &str, status: Value) -> Value {
    let api_version = format!("{GROUP}/{VERSION}");
    json!({
        "apiVersion": api_version,
        "kind": "DeviceStatus",
        "metadata": {
            "name": key.name,
            "namespace": key.namespace,
            "ownerReferences": [{
                "apiVersion": api_version, "kind": "Device", "name": key.name, "uid": uid, "controller": true,
            }],
        },
        "spec": {},
        "status": status,
    })
}

#[cfg(test)]
mod tests {
    use kubeedge_proto::v1::ReportedProperty;

    use super::*;

    fn report() -> DeviceReport {
        DeviceReport {
            key: Some(ObjectKey::new("plant", "boiler")),
            uid: "u1".into(),
            generation: 3,
            properties: vec![ReportedProperty {
                name: "temperature".into(),
                reported: Some(PropertyValue {
                    value: "21.5".into(),
                    metadata: [("timestamp".to_owned(), "1700000000000".to_owned())].into(),
                }),
                observed_desired: None,
            }],
            state: Some("ok".into()),
            last_online_time: "2026-01-01T00:00:00Z".into(),
        }
    }

    fn told(properties: &[&str], state: bool) -> Told {
        Told { properties: properties.iter().map(|&name| name.to_owned()).collect(), state }
    }

    fn there(properties: &[&str], state: bool) -> Status {
        let Told { properties, state } = told(properties, state);
        Status { uid: "s".into(), owner: Some("u1".into()), properties, state }
    }

    #[test]
    fn a_report_becomes_a_status() {
        let written = Written::of(&report(), &told(&["temperature"], true), None);
        assert_eq!(written.status.get("extensions"), None, "they are the user's own");
        let expected = json!({
            "twins": [{"propertyName": "temperature",
                "reported": {"value": "21.5", "metadata": {"timestamp": "1700000000000"}}}],
            "state": "ok", "lastOnlineTime": "2026-01-01T00:00:00Z",
        });
        assert!(written.kept.is_empty() && !written.is_empty);
        assert_eq!(written.clone().alone(), expected);
        assert_eq!(written.over(&json!({"status": {"twins": [{"propertyName": "old"}]}})), expected);
        let silent = DeviceReport { state: Some("offline".into()), last_online_time: String::new(), ..report() };
        let written = Written::of(&silent, &told(&["temperature"], true), None);
        assert_eq!((&written.status["state"], &written.status["lastOnlineTime"]), (&json!("offline"), &Value::Null));
    }

    #[test]
    fn of_what_the_node_has_no_word_of_the_last_word_stands() {
        let had = there(&["temperature", "power", "gone"], true);
        let nothing = DeviceReport { properties: Vec::new(), state: None, ..report() };
        let names = told(&["temperature", "power"], true);
        let written = Written::of(&nothing, &names, Some(&there(&["temperature", "power"], true)));
        assert!(written.is_empty, "a device that has moved, and of which its new node knows nothing: {written:?}");
        let written = Written::of(&nothing, &names, Some(&had));
        assert!(!written.is_empty, "the Device names one no longer");
        assert_eq!(written.status.get("state"), None, "it is left alone");
        let written = Written::of(&report(), &names, Some(&had));
        assert_eq!(written.kept, ["power".to_owned()].into());
        let twins = json!([{"propertyName": "temperature", "reported": {"value": "1"}},
            {"propertyName": "power", "reported": {"value": "true"}}, {"propertyName": "gone"}]);
        let there = json!({"status": {"twins": twins, "state": "ok", "extensions": {"room": "cellar"}}});
        let status = written.over(&there);
        assert_eq!(status.get("extensions"), None, "a merge patch leaves alone what it does not name");
        assert_eq!(status["twins"][0]["reported"]["value"], "21.5");
        assert_eq!(status["twins"][1], twins[1]);
        assert_eq!(status["twins"].as_array().unwrap().len(), 2);
    }

    #[test]
    fn what_stays_at_the_edge_is_not_written_and_goes_if_it_was_there() {
        let written = Written::of(&report(), &told(&["power"], false), Some(&there(&["temperature"], true)));
        assert!(written.kept.is_empty() && !written.is_empty);
        let status = json!({"twins": [], "state": null, "lastOnlineTime": null});
        assert_eq!(written.status, status, "whatever its node reports");
        assert!(Written::of(&report(), &told(&[], false), Some(&there(&[], false))).is_empty);
        let device = |state: Value| {
            json!({"spec": {"properties": [{"name": "a"}, {"name": "b", "reportToCloud": false},
                {"name": "c", "reportToCloud": true}], "stateReport": state}})
        };
        for (state, is_told) in
            [(json!(null), true), (json!({"reportCycle": 5}), true), (json!({"reportToCloud": false}), false)]
        {
            assert_eq!(Told::of(&device(state.clone())), told(&["a", "c"], is_told), "{state}");
        }
        assert_eq!(Told::of(&json!({"spec": {"properties": 7}})), Told::default());
    }

    #[test]
    fn a_state_report_of_earlier_manifests_counts_where_the_spec_says_nothing() {
        for (spec, status, expected) in [
            (json!({}), json!(null), json!({})),
            (json!({}), json!({"twins": []}), json!({})),
            (json!({}), json!({"reportToCloud": "yes"}), json!({})),
            (json!({}), json!({"reportToCloud": false}), json!({"stateReport": {"reportToCloud": false}})),
            (
                json!({"stateReport": null}),
                json!({"reportToCloud": true, "reportCycle": 5}),
                json!({"stateReport": {"reportToCloud": true, "reportCycle": 5}}),
            ),
            (
                json!({"stateReport": {"reportToCloud": true}}),
                json!({"reportToCloud": false, "reportCycle": 5}),
                json!({"stateReport": {"reportToCloud": true, "reportCycle": 5}}),
            ),
        ] {
            let mut device = json!({"spec": spec, "status": status});
            with_old_state_report(&mut device);
            assert_eq!(device["spec"], expected, "{spec} with {status}");
        }
        let mut bare = json!({"status": {"reportToCloud": false}});
        with_old_state_report(&mut bare);
        assert_eq!(bare, json!({"status": {"reportToCloud": false}}));
    }

    #[test]
    fn a_node_reports_only_of_devices_that_hang_on_it() {
        assert!(check("n1", &report(), Some(("n1", "u1"))).is_ok());
        assert_eq!(check("n2", &report(), Some(("n1", "u1"))).unwrap_err().code, 403);
        assert_eq!(check("n1", &report(), None).unwrap_err().code, 404);
        assert_eq!(check("n1", &report(), Some(("n1", "u2"))), Err(Settled::superseded()), "of one before it");
        let nameless = DeviceReport { key: Some(ObjectKey::new("../x", "y")), ..report() };
        assert_eq!(check("n1", &nameless, Some(("n1", "u1"))).unwrap_err().code, 400);
    }
}
